//! Chunked bodies (RFC 9112 §7.1), read strictly and byte by byte where they are not data.
//!
//! ```text
//! Size -> [Extension] -> SizeEnd -> Data -> DataEnd, DataEndLineFeed -> Size
//!                          | size 0
//!                          v
//!                       Trailers -> Done             any fault -> Failed
//! ```

use std::ops::Range;

use crate::{HeaderMap, Limits, Malformed, bytes};

/// What [`ChunkedDecoder::decode`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChunkedEvent {
    /// All input is consumed and the body goes on.
    NeedMore,
    /// Body bytes, as a range of the input.
    Data(Range<usize>),
    /// The body and its trailers are over; what follows in the input belongs to the next message.
    End,
}

/// Reads one chunked body after another. Extensions are checked and dropped; trailers are collected.
#[derive(Debug)]
pub struct ChunkedDecoder {
    state: State,
    extension: Extension,
    extension_bytes_left: usize,
    extension_bytes_max: usize,
    trailer_bytes_left: usize,
    trailer_bytes_max: usize,
    trailer_count: usize,
    trailer_count_max: usize,
    /// The trailer line that is not whole yet.
    line: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Size {
        value: u64,
        digit_count: u32,
    },
    Extension {
        size: u64,
    },
    SizeEnd {
        size: u64,
    },
    Data {
        left: u64,
    },
    DataEnd,
    DataEndLineFeed,
    Trailers,
    /// The CR of the empty line that ends the body is read.
    LastLineFeed,
    Done,
    Failed(Malformed),
}

/// Where in `*( BWS ";" BWS name [ BWS "=" BWS value ] )` a chunk extension is (RFC 9112 §7.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extension {
    BeforeSemicolon,
    BeforeName,
    Name,
    AfterName,
    BeforeValue,
    Token,
    Quoted,
    QuotedPair,
    AfterValue,
}

impl ChunkedDecoder {
    /// A decoder at the start of a body.
    pub fn new(limits: &Limits) -> Self {
        let mut decoder = Self {
            state: State::Done,
            extension: Extension::BeforeSemicolon,
            extension_bytes_left: 0,
            extension_bytes_max: limits.chunk_extension_bytes_max,
            trailer_bytes_left: 0,
            trailer_bytes_max: limits.trailer_bytes_max,
            trailer_count: 0,
            trailer_count_max: limits.trailer_count_max,
            line: Vec::new(),
        };
        decoder.reset();
        decoder
    }

    /// Goes to the start of the next body and keeps the memory.
    pub fn reset(&mut self) {
        self.state = State::START;
        self.extension_bytes_left = self.extension_bytes_max;
        self.trailer_bytes_left = self.trailer_bytes_max;
        self.trailer_count = 0;
        self.line.clear();
    }

    /// Reads on: how many bytes of `input` are done with, and what they were.
    ///
    /// Shape:  call again with the rest of the input until `NeedMore` or `End`. Trailers are in `trailers` at `End`; those that frame,
    ///         route or authenticate are left out (RFC 9110 §6.5.1).
    /// Errors: the first fault; every later call repeats it.
    pub fn decode(&mut self, input: &[u8], trailers: &mut HeaderMap) -> Result<(usize, ChunkedEvent), Malformed> {
        let decoded = self.advance(input, trailers);
        if let Err(fault) = decoded {
            self.state = State::Failed(fault);
        }
        decoded
    }

    /// Whether the body is over.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    fn advance(&mut self, input: &[u8], trailers: &mut HeaderMap) -> Result<(usize, ChunkedEvent), Malformed> {
        let mut at = 0;
        loop {
            match self.state {
                State::Failed(fault) => return Err(fault),
                State::Done => return Ok((at, ChunkedEvent::End)),
                State::Data { left } => {
                    let here = input.len() - at;
                    if here == 0 {
                        return Ok((at, ChunkedEvent::NeedMore));
                    }
                    let length = usize::try_from(left).map_or(here, |left| left.min(here));
                    self.state = match left - length as u64 {
                        0 => State::DataEnd,
                        left => State::Data { left },
                    };
                    return Ok((at + length, ChunkedEvent::Data(at..at + length)));
                }
                _ => {}
            }
            let Some(&byte) = input.get(at) else { return Ok((at, ChunkedEvent::NeedMore)) };
            at += 1;
            self.state = match self.state {
                State::Size { value, digit_count } => self.on_size_byte(value, digit_count, byte)?,
                State::Extension { size } => self.on_extension_byte(size, byte)?,
                State::SizeEnd { size } => match (byte, size) {
                    (b'\n', 0) => State::Trailers,
                    (b'\n', left) => State::Data { left },
                    _ => return Err(Malformed::ChunkEnd),
                },
                State::DataEnd if byte == b'\r' => State::DataEndLineFeed,
                State::DataEndLineFeed if byte == b'\n' => State::START,
                // Nothing is stored, and so nothing allocated, for a body without trailers.
                State::Trailers if byte == b'\r' && self.line.is_empty() => State::LastLineFeed,
                State::Trailers => self.on_trailer_byte(byte, trailers)?,
                State::LastLineFeed if byte == b'\n' => State::Done,
                State::LastLineFeed => return Err(Malformed::LineEnd),
                _ => return Err(Malformed::ChunkEnd),
            };
        }
    }

    fn on_size_byte(&mut self, value: u64, digit_count: u32, byte: u8) -> Result<State, Malformed> {
        if let Some(digit) = (byte as char).to_digit(16) {
            if digit_count == SIZE_DIGITS_MAX {
                return Err(Malformed::ChunkSize);
            }
            return Ok(State::Size { value: value << 4 | u64::from(digit), digit_count: digit_count + 1 });
        }
        if digit_count == 0 {
            return Err(Malformed::ChunkSize);
        }
        match byte {
            b'\r' => Ok(State::SizeEnd { size: value }),
            b';' | b' ' | b'\t' => {
                self.extension = Extension::BeforeSemicolon;
                self.on_extension_byte(value, byte)
            }
            b'\n' => Err(Malformed::ChunkEnd),
            _ => Err(Malformed::ChunkSize),
        }
    }

    fn on_extension_byte(&mut self, size: u64, byte: u8) -> Result<State, Malformed> {
        use Extension::*;
        let Some(left) = self.extension_bytes_left.checked_sub(1) else {
            return Err(Malformed::ChunkExtensionsTooLong);
        };
        self.extension_bytes_left = left;
        let blank = byte == b' ' || byte == b'\t';
        self.extension = match (self.extension, byte) {
            (Name | AfterName | Token | AfterValue, b'\r') => return Ok(State::SizeEnd { size }),
            (BeforeSemicolon | Name | AfterName | Token | AfterValue, b';') => BeforeName,
            (BeforeSemicolon | BeforeName | AfterName | BeforeValue | AfterValue, _) if blank => self.extension,
            (BeforeName | Name, _) if bytes::is_token(byte) => Name,
            (Name, _) if blank => AfterName,
            (Name | AfterName, b'=') => BeforeValue,
            (BeforeValue, b'"') => Quoted,
            (BeforeValue | Token, _) if bytes::is_token(byte) => Token,
            (Token, _) if blank => AfterValue,
            (Quoted, b'"') => AfterValue,
            (Quoted, b'\\') => QuotedPair,
            (Quoted | QuotedPair, _) if bytes::is_value_text(&[byte]) => Quoted,
            _ => return Err(Malformed::ChunkExtension),
        };
        Ok(State::Extension { size })
    }

    fn on_trailer_byte(&mut self, byte: u8, trailers: &mut HeaderMap) -> Result<State, Malformed> {
        let Some(left) = self.trailer_bytes_left.checked_sub(1) else { return Err(Malformed::TrailersTooLarge) };
        self.trailer_bytes_left = left;
        if byte != b'\n' {
            self.line.push(byte);
            return Ok(State::Trailers);
        }
        let line = self.line.strip_suffix(b"\r").ok_or(Malformed::LineEnd)?;
        if self.trailer_count == self.trailer_count_max {
            return Err(Malformed::TooManyTrailers);
        }
        self.trailer_count += 1;
        push_trailer(line, trailers)?;
        self.line.clear();
        Ok(State::Trailers)
    }
}

impl State {
    const START: Self = Self::Size { value: 0, digit_count: 0 };
}

/// 16 digits fill 64 bits.
const SIZE_DIGITS_MAX: u32 = 16;

/// Checks one trailer line and keeps it unless it may not be a trailer.
fn push_trailer(line: &[u8], trailers: &mut HeaderMap) -> Result<(), Malformed> {
    if line.starts_with(b" ") || line.starts_with(b"\t") {
        return Err(Malformed::FieldFolded);
    }
    let colon = memchr::memchr(b':', line).ok_or(Malformed::FieldName)?;
    let name = line.get(..colon).unwrap_or_default();
    let value = bytes::trim(line.get(colon + 1..).unwrap_or_default());
    if !bytes::is_token_text(name) {
        return Err(Malformed::FieldName);
    }
    if !bytes::is_value_text(value) {
        return Err(Malformed::FieldValue);
    }
    if !FORBIDDEN_TRAILERS.iter().any(|forbidden| name.eq_ignore_ascii_case(forbidden.as_bytes())) {
        trailers.append_wire(name, value);
    }
    Ok(())
}

/// Fields that are no use after the body, or a danger if a recipient merges them into the head: framing, routing, authentication,
/// request modifiers and response control data (RFC 9110 §6.5.1).
const FORBIDDEN_TRAILERS: &[&str] = &[
    "transfer-encoding",
    "content-length",
    "host",
    "trailer",
    "te",
    "connection",
    "keep-alive",
    "proxy-connection",
    "upgrade",
    "content-encoding",
    "content-type",
    "content-range",
    "authorization",
    "proxy-authorization",
    "proxy-authenticate",
    "www-authenticate",
    "cookie",
    "set-cookie",
    "expect",
    "max-forwards",
    "range",
    "if-match",
    "if-none-match",
    "if-modified-since",
    "if-unmodified-since",
    "if-range",
    "cache-control",
    "expires",
    "date",
    "location",
    "retry-after",
    "vary",
    "age",
    "warning",
    "pragma",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "x-forwarded-client-cert",
];

/// Whether a field may be sent as a trailer.
pub fn may_be_trailer(name: &[u8]) -> bool {
    !name.starts_with(b":") && !FORBIDDEN_TRAILERS.iter().any(|forbidden| name == forbidden.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Body, trailers and unread rest of `input`, fed `step` bytes at a time.
    fn decode(input: &[u8], step: usize, limits: &Limits) -> Result<(Vec<u8>, String, usize), Malformed> {
        let mut decoder = ChunkedDecoder::new(limits);
        let (mut body, mut trailers, mut at) = (Vec::new(), HeaderMap::default(), 0);
        loop {
            let part = &input[at..(at + step).min(input.len())];
            let (used, event) = decoder.decode(part, &mut trailers)?;
            at += used;
            match event {
                ChunkedEvent::Data(range) => body.extend_from_slice(&part[range]),
                ChunkedEvent::End => return Ok((body, format!("{trailers:?}"), input.len() - at)),
                ChunkedEvent::NeedMore => {
                    assert!(at < input.len(), "{:?} ends early", input.escape_ascii().to_string())
                }
            }
        }
    }

    fn check(input: &str, body: &str, trailers: &str, rest: usize) {
        for step in 1..=input.len() {
            let expected = (body.as_bytes().to_vec(), trailers.to_string(), rest);
            assert_eq!(decode(input.as_bytes(), step, &Limits::default()), Ok(expected), "{input:?} by {step}");
        }
    }

    fn check_fault(input: &str, fault: Malformed) {
        let limits =
            Limits { chunk_extension_bytes_max: 8, trailer_bytes_max: 32, trailer_count_max: 2, ..Limits::default() };
        for step in 1..=input.len() {
            assert_eq!(decode(input.as_bytes(), step, &limits), Err(fault), "{input:?} by {step}");
        }
    }

    #[test]
    fn bodies_are_the_same_wherever_the_input_is_cut() {
        check("0\r\n\r\n", "", "[]", 0);
        check("5\r\nhello\r\n0\r\n\r\nGET", "hello", "[]", 3);
        check("A\r\n0123456789\r\n1\r\nx\r\n000\r\n\r\n", "0123456789x", "[]", 0);
        check("5;a;b=c ; d = \"e;\\\"\t\" ;f\r\nhello\r\n0;g\r\n\r\n", "hello", "[]", 0);
        check("1\r\n\n\r\n0\r\nX-Sum: 1 \r\nY:\r\n\r\n", "\n", r#"[("x-sum", "1"), ("y", "")]"#, 0);
        check("0\r\nContent-Length: 5\r\nhost: b\r\nGrpc-Status: 0\r\n\r\n", "", r#"[("grpc-status", "0")]"#, 0);
    }

    #[test]
    fn limits_are_met_before_the_bytes_are_kept() {
        check_fault("1;aaaa\r\nx\r\n1;bbbb\r\nx\r\n0\r\n\r\n", Malformed::ChunkExtensionsTooLong);
        check_fault("0\r\nX: 6789012345678901234567890123456\r\n\r\n", Malformed::TrailersTooLarge);
        check_fault("0\r\na:b\r\nc:d\r\ne:f\r\n\r\n", Malformed::TooManyTrailers);
    }

    #[test]
    fn a_fault_stays() {
        let mut decoder = ChunkedDecoder::new(&Limits::default());
        let mut trailers = HeaderMap::default();
        assert_eq!(decoder.decode(b"x", &mut trailers), Err(Malformed::ChunkSize));
        assert_eq!(decoder.decode(b"0\r\n\r\n", &mut trailers), Err(Malformed::ChunkSize));
        decoder.reset();
        assert_eq!(decoder.decode(b"0\r\n\r\n", &mut trailers), Ok((5, ChunkedEvent::End)));
        assert!(decoder.is_done());
    }

    #[test]
    fn the_largest_size_is_no_overflow() {
        let mut decoder = ChunkedDecoder::new(&Limits::default());
        let decoded = decoder.decode(b"ffffffffffffffff\r\nab", &mut HeaderMap::default());
        assert_eq!(decoded, Ok((20, ChunkedEvent::Data(18..20))));
    }
}
