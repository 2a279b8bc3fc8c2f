//! What requests and responses share: walking the fields of a head once, and what they say about framing.

use std::ops::Range;

use crate::bytes;
use crate::{HeaderMap, Known, Malformed};

/// Most fields that a head can be allowed to have.
pub(crate) const FIELD_SLOTS_MAX: usize = 1024;
/// Fields for which a small array on the stack is enough.
pub(crate) const FIELD_SLOTS: usize = 128;

/// Where `part`, a slice of `whole`, lies in it.
pub(crate) fn range_in(whole: &[u8], part: &[u8]) -> Range<usize> {
    let start = (part.as_ptr() as usize).wrapping_sub(whole.as_ptr() as usize);
    start..start + part.len()
}

/// Whether the line before `start` ends with CR LF. The scanner takes a bare LF for a line end, RFC 9112 §2.2 lets us refuse it.
pub(crate) fn line_ends_before(input: &[u8], start: usize) -> bool {
    input.get(..start).is_some_and(|before| before.ends_with(b"\r\n"))
}

/// The reason in our words.
pub(crate) fn reason(error: httparse::Error) -> Malformed {
    match error {
        httparse::Error::HeaderName => Malformed::FieldName,
        httparse::Error::HeaderValue => Malformed::FieldValue,
        httparse::Error::NewLine => Malformed::LineEnd,
        httparse::Error::Status => Malformed::Status,
        httparse::Error::Token => Malformed::StartLine,
        httparse::Error::TooManyHeaders => Malformed::TooManyFields,
        httparse::Error::Version => Malformed::Version,
    }
}

/// Whether the end of a head is in `input`, looking only at line ends from `scan_from` on.
///
/// A head that comes byte by byte is parsed once, when it is whole: until then each byte is looked at once.
/// Errors: a CR or LF on its own, or more bytes than a head may have.
pub(crate) fn scan(input: &[u8], scan_from: usize, bytes_max: usize) -> Result<Scan, Malformed> {
    // A CR at the end of what was seen is judged with the byte that follows.
    let start = scan_from.saturating_sub(1);
    for offset in memchr::memchr2_iter(b'\r', b'\n', input.get(start..).unwrap_or_default()) {
        let (before, rest) = input.split_at_checked(start + offset).unwrap_or_default();
        match rest {
            [b'\r', next, ..] if *next != b'\n' => return Err(Malformed::LineEnd),
            [b'\r', ..] => {}
            _ if !before.ends_with(b"\r") => return Err(Malformed::LineEnd),
            _ if before.ends_with(b"\r\n\r") => return Ok(Scan::Whole),
            _ => {}
        }
    }
    if input.len() > bytes_max { Err(Malformed::HeadTooLarge) } else { Ok(Scan::Partial) }
}

/// Whether the end of a head is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scan {
    Whole,
    Partial,
}

/// What the fields of a head say about framing and the connection.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Framing {
    pub(crate) content_length: Option<u64>,
    pub(crate) transfer_encoding: Option<TransferEncoding>,
    pub(crate) close: bool,
    pub(crate) keep_alive: bool,
    pub(crate) connection_upgrade: bool,
}

/// What `transfer-encoding` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TransferEncoding {
    Chunked,
    Other,
}

impl Framing {
    /// Takes in one `content-length`; the value without leading zeros, as it is written on.
    pub(crate) fn on_content_length(&mut self, value: &[u8]) -> Result<usize, Malformed> {
        let length = bytes::decimal(value).ok_or(Malformed::ContentLength)?;
        // RFC 9112 §6.3 would let equal ones become one. A sender that writes two has lost track of its framing.
        if self.content_length.replace(length).is_some() {
            return Err(Malformed::ContentLengthRepeated);
        }
        let zeros = value.iter().take_while(|digit| **digit == b'0').count();
        Ok(zeros.min(value.len() - 1))
    }

    /// Takes in one `transfer-encoding`. Two of them are a list of two codings, and `chunked` twice is none that exists.
    pub(crate) fn on_transfer_encoding(&mut self, value: &[u8]) {
        let chunked = self.transfer_encoding.is_none() && value.eq_ignore_ascii_case(b"chunked");
        self.transfer_encoding = Some(if chunked { TransferEncoding::Chunked } else { TransferEncoding::Other });
    }

    /// Takes in one `connection`.
    pub(crate) fn on_connection(&mut self, value: &[u8]) {
        for token in bytes::list(value) {
            self.close |= token.eq_ignore_ascii_case(b"close");
            self.keep_alive |= token.eq_ignore_ascii_case(b"keep-alive");
            self.connection_upgrade |= token.eq_ignore_ascii_case(b"upgrade");
        }
    }
}

/// Adds one scanned field to `headers`; its known id.
pub(crate) fn push(
    input: &[u8],
    field: &httparse::Header<'_>,
    headers: &mut HeaderMap,
) -> Result<Option<Known>, Malformed> {
    let name = range_in(input, field.name.as_bytes());
    if !line_ends_before(input, name.start) {
        return Err(Malformed::LineEnd);
    }
    let value = if field.value.is_empty() { 0..0 } else { range_in(input, field.value) };
    Ok(headers.push_wire(name, value))
}
