//! Requests as the server reads them.

use std::fmt::Write;

/// Fields that a request head may have.
const FIELD_COUNT_MAX: usize = 256;
/// Bytes that a request head or a chunk line may have.
pub(super) const HEAD_BYTES_MAX: usize = 256 << 10;
/// Body bytes that are repeated as text in the reply.
const TEXT_BYTES_MAX: usize = 16 << 10;

/// A request head, copied out of the receive buffer.
pub(super) struct Head {
    pub(super) method: String,
    pub(super) target: String,
    /// Minor version: 0 or 1.
    pub(super) version: u8,
    pub(super) fields: Vec<(String, String)>,
    /// Bytes up to and including the empty line.
    pub(super) length: usize,
}

/// How a body is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    Length(u64),
    Chunked,
}

/// Why bytes are not a request; the connection is closed after a 400.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed;

impl Head {
    /// The head at the start of `bytes`, or `None` while it is incomplete.
    pub(super) fn parse(bytes: &[u8]) -> Result<Option<Self>, Malformed> {
        let mut fields = [httparse::EMPTY_HEADER; FIELD_COUNT_MAX];
        let mut request = httparse::Request::new(&mut fields);
        let length = match request.parse(bytes) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) if bytes.len() < HEAD_BYTES_MAX => return Ok(None),
            _ => return Err(Malformed),
        };
        let field = |header: &httparse::Header<'_>| (header.name.to_owned(), latin1(header.value));
        Ok(Some(Self {
            method: request.method.unwrap_or_default().to_owned(),
            target: request.path.unwrap_or_default().to_owned(),
            version: request.version.unwrap_or(1),
            fields: request.headers.iter().map(field).collect(),
            length,
        }))
    }

    /// Values of the fields called `name`, in wire order.
    pub(super) fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.fields.iter().filter(move |(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// Whether a list field `name` has `token`.
    pub(super) fn has_token(&self, name: &str, token: &str) -> bool {
        self.values(name).any(|value| value.split(',').any(|part| part.trim().eq_ignore_ascii_case(token)))
    }

    /// Whether the connection goes on afterwards (RFC 9112 §9.3).
    pub(super) fn keeps_alive(&self) -> bool {
        match self.version {
            0 => self.has_token("connection", "keep-alive"),
            _ => !self.has_token("connection", "close"),
        }
    }

    /// How the body is delimited (RFC 9112 §6.3); both ways at once are refused.
    pub(super) fn framing(&self) -> Result<Framing, Malformed> {
        let mut lengths = self.values("content-length");
        let mut codings = self.values("transfer-encoding");
        match (lengths.next(), codings.next()) {
            (None, None) => Ok(Framing::Length(0)),
            (Some(length), None) if lengths.next().is_none() => {
                let digits = !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit());
                length.parse().ok().filter(|_| digits).map(Framing::Length).ok_or(Malformed)
            }
            (None, Some(coding)) if coding.eq_ignore_ascii_case("chunked") && codings.next().is_none() => {
                Ok(Framing::Chunked)
            }
            _ => Err(Malformed),
        }
    }

    /// Path and query of the target.
    pub(super) fn path_and_query(&self) -> (&str, &str) {
        self.target.split_once('?').unwrap_or((&self.target, ""))
    }
}

/// What came after a head: counted and hashed, its beginning kept as text.
pub(super) struct Body {
    pub(super) length: u64,
    /// FNV-1a, 64 bits.
    hash: u64,
    text: Vec<u8>,
    pub(super) trailers: Vec<(String, String)>,
}

impl Body {
    pub(super) fn new() -> Self {
        Self { length: 0, hash: 0xcbf2_9ce4_8422_2325, text: Vec::new(), trailers: Vec::new() }
    }

    pub(super) fn add(&mut self, bytes: &[u8]) {
        self.length += bytes.len() as u64;
        let step = |hash: u64, &byte: &u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        self.hash = bytes.iter().fold(self.hash, step);
        let room = TEXT_BYTES_MAX.saturating_sub(self.text.len()).min(bytes.len());
        self.text.extend_from_slice(&bytes[..room]);
    }

    pub(super) fn to_json(&self) -> serde_json::Value {
        let mut hash = String::new();
        let _ = write!(hash, "{:016x}", self.hash);
        serde_json::json!({
            "length": self.length,
            "fnv1a64": hash,
            "text": String::from_utf8_lossy(&self.text),
            "truncated": self.length > self.text.len() as u64,
        })
    }
}

/// What a step of decoding chunks needs or gives.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// More bytes are needed.
    More,
    /// This many bytes were used.
    Used(usize),
    /// This many bytes were used, and the body is complete.
    End(usize),
}

/// Decoder of the chunked coding (RFC 9112 §7.1).
#[derive(Default)]
pub(super) struct Chunks {
    /// Bytes of the current chunk still to come; its CRLF follows.
    left: u64,
    in_chunk: bool,
}

impl Chunks {
    /// Takes what it can from the start of `bytes`.
    pub(super) fn step(&mut self, bytes: &[u8], body: &mut Body) -> Result<Step, Malformed> {
        if self.in_chunk {
            if self.left == 0 {
                return match bytes {
                    [b'\r', b'\n', ..] => {
                        self.in_chunk = false;
                        Ok(Step::Used(2))
                    }
                    [] | [b'\r'] => Ok(Step::More),
                    _ => Err(Malformed),
                };
            }
            let taken = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
            if taken == 0 {
                return Ok(Step::More);
            }
            body.add(&bytes[..taken]);
            self.left -= taken as u64;
            return Ok(Step::Used(taken));
        }
        let (used, size) = match httparse::parse_chunk_size(bytes) {
            Ok(httparse::Status::Complete(parsed)) => parsed,
            Ok(httparse::Status::Partial) if bytes.len() < HEAD_BYTES_MAX => return Ok(Step::More),
            _ => return Err(Malformed),
        };
        if size > 0 {
            (self.left, self.in_chunk) = (size, true);
            return Ok(Step::Used(used));
        }
        let mut fields = [httparse::EMPTY_HEADER; FIELD_COUNT_MAX];
        match httparse::parse_headers(&bytes[used..], &mut fields) {
            Ok(httparse::Status::Complete((length, fields))) => {
                body.trailers = fields.iter().map(|field| (field.name.to_owned(), latin1(field.value))).collect();
                Ok(Step::End(used + length))
            }
            Ok(httparse::Status::Partial) if bytes.len() < HEAD_BYTES_MAX => Ok(Step::More),
            _ => Err(Malformed),
        }
    }
}

/// Each byte as the character of that number, so that no byte is lost.
fn latin1(bytes: &[u8]) -> String {
    bytes.iter().map(|&byte| char::from(byte)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(text: &str) -> Head {
        Head::parse(text.as_bytes()).unwrap().unwrap()
    }

    #[test]
    fn framing_follows_the_rfc() {
        for (fields, expected) in [
            ("", Ok(Framing::Length(0))),
            ("Content-Length: 7\r\n", Ok(Framing::Length(7))),
            ("Transfer-Encoding: Chunked\r\n", Ok(Framing::Chunked)),
            ("Content-Length: 7\r\nContent-Length: 7\r\n", Err(Malformed)),
            ("Content-Length: +7\r\n", Err(Malformed)),
            ("Content-Length: 7\r\nTransfer-Encoding: chunked\r\n", Err(Malformed)),
            ("Transfer-Encoding: gzip\r\n", Err(Malformed)),
        ] {
            assert_eq!(head(&format!("POST / HTTP/1.1\r\n{fields}\r\n")).framing(), expected, "{fields}");
        }
    }

    #[test]
    fn connections_persist_as_the_version_says() {
        assert!(head("GET / HTTP/1.1\r\n\r\n").keeps_alive());
        assert!(!head("GET / HTTP/1.1\r\nConnection: foo, Close\r\n\r\n").keeps_alive());
        assert!(!head("GET / HTTP/1.0\r\n\r\n").keeps_alive());
        assert!(head("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").keeps_alive());
    }

    #[test]
    fn chunks_decode_alike_at_every_split() {
        let wire = b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nT: v\r\n\r\n";
        for split in 0..=wire.len() {
            let (mut chunks, mut body, mut pending) = (Chunks::default(), Body::new(), Vec::new());
            let mut ended = false;
            for part in [&wire[..split], &wire[split..]] {
                pending.extend_from_slice(part);
                while !ended {
                    match chunks.step(&pending, &mut body).unwrap() {
                        Step::More => break,
                        Step::Used(length) => drop(pending.drain(..length)),
                        Step::End(length) => {
                            pending.drain(..length);
                            ended = true;
                        }
                    }
                }
            }
            assert!(ended && pending.is_empty(), "split at {split}");
            assert_eq!(body.text, b"abcde");
            assert_eq!(body.trailers, [("T".to_owned(), "v".to_owned())]);
        }
    }
}
