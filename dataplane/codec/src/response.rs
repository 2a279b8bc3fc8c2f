//! Response heads.

use crate::fields::{Framing, TransferEncoding};
use crate::scan::{self, Stop};
use crate::{BodyLength, Known, Limits, Malformed, RequestMethod, ResponseHead, Version};

/// Reads one response head from the front of `input`: `Some` bytes of it, or `None` where more are needed.
///
/// Source: RFC 9112 §4 to §6. `method` is the request's, which decides whether a body follows.
/// Shape:  `head` is cleared and filled again; it means something only after `Some`. After [`ResponseHead::is_informational`] another
///         head follows.
/// Errors: the response is no use and its connection is closed; the client gets 502.
pub fn parse_response(
    input: &[u8],
    method: RequestMethod,
    limits: &Limits,
    head: &mut ResponseHead,
) -> Result<Option<usize>, Malformed> {
    parse_response_from(input, 0, method, limits, head)
}

/// As [`parse_response`], for input of which an earlier call has already seen the first `scan_from` bytes and wanted more.
pub fn parse_response_from(
    input: &[u8],
    scan_from: usize,
    method: RequestMethod,
    limits: &Limits,
    head: &mut ResponseHead,
) -> Result<Option<usize>, Malformed> {
    let bytes_max = limits.header_bytes_max;
    if scan_from > 0 && !scan::is_whole(input, scan_from, bytes_max)? {
        return Ok(None);
    }
    match scan_and_judge(input, method, limits, head) {
        Ok(length) => Ok(Some(length)),
        Err(Stop::Partial) if input.len() > bytes_max => Err(Malformed::HeadTooLarge),
        Err(Stop::Partial) => Ok(None),
        Err(Stop::Malformed(fault)) => Err(fault),
    }
}

fn scan_and_judge(
    input: &[u8],
    method: RequestMethod,
    limits: &Limits,
    head: &mut ResponseHead,
) -> Result<usize, Stop> {
    head.headers.clear();
    let fields_start = status_line(input, head)?;
    let length = scan::fields(input, fields_start, limits.header_count_max, &mut head.headers)?;
    if length > limits.header_bytes_max {
        return Err(Malformed::HeadTooLarge.into());
    }
    head.headers.load(input.get(..length).unwrap_or_default());
    let mut framing = Framing::default();
    head.headers.settle(|known, _, value, _| framing.on_field(known, value))?;
    head.body = body_length(&framing, method, head)?;
    head.keep_alive = head.body != BodyLength::UntilClose
        && !framing.close
        && (head.version == Version::Http11 || framing.keep_alive);
    Ok(length)
}

/// Scans the status line and adds `:status`; where the fields start. The reason phrase is read and dropped, and may be missing with
/// its space.
fn status_line(input: &[u8], head: &mut ResponseHead) -> Result<usize, Stop> {
    head.version = match input {
        [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'1', b' ', ..] => Version::Http11,
        [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'0', b' ', ..] => Version::Http10,
        _ if b"HTTP/1.1 ".starts_with(input) || b"HTTP/1.0 ".starts_with(input) => return Err(Stop::Partial),
        [b'\r' | b'\n', ..] => return Err(Malformed::LineEnd.into()),
        _ => return Err(Malformed::StartLine.into()),
    };
    let place = "HTTP/1.1 ".len().."HTTP/1.1 200".len();
    let digits = input.get(place.start..place.end.min(input.len())).unwrap_or_default();
    if digits.starts_with(b"0") || !digits.iter().all(u8::is_ascii_digit) {
        return Err(Malformed::Status.into());
    }
    match input.get(place.end) {
        None => return Err(Stop::Partial),
        Some(b' ' | b'\r') => {}
        Some(_) => return Err(Malformed::Status.into()),
    }
    head.status = digits.iter().fold(0, |status, digit| status * 10 + u16::from(digit - b'0'));
    head.headers.push_scanned_known(Known::Status, place.clone());
    Ok(scan::line_end(input, place.end, Malformed::StartLine)? + b"\r\n".len())
}

/// How the body ends (RFC 9112 §6.3, rules in the order given there).
fn body_length(framing: &Framing, method: RequestMethod, head: &mut ResponseHead) -> Result<BodyLength, Malformed> {
    let tunnel = head.status == 101 || method == RequestMethod::Connect && (200..300).contains(&head.status);
    if (head.status < 200 || head.status == 204) && framing.transfer_encoding.is_some() {
        return Err(Malformed::TransferEncodingNotAllowed);
    }
    if head.status < 200 || head.status == 204 {
        if framing.content_length.is_some_and(|length| length > 0) {
            return Err(Malformed::ContentLengthNotAllowed);
        }
        head.headers.remove_known(Known::ContentLength);
        return Ok(BodyLength::Empty);
    }
    let length = match (framing.transfer_encoding, framing.content_length) {
        (Some(_), Some(_)) => return Err(Malformed::LengthConflict),
        (Some(TransferEncoding::Other), None) => return Err(Malformed::TransferEncoding),
        (Some(TransferEncoding::Chunked), None) if head.version == Version::Http10 => {
            return Err(Malformed::TransferEncodingInHttp10);
        }
        (Some(TransferEncoding::Chunked), None) => BodyLength::Chunked,
        (None, Some(0)) => BodyLength::Empty,
        (None, Some(length)) => BodyLength::Length(length),
        (None, None) => BodyLength::UntilClose,
    };
    if tunnel {
        // Both lengths mean nothing here (RFC 9110 §9.3.6).
        head.headers.remove_known(Known::ContentLength);
        return Ok(BodyLength::Empty);
    }
    if method == RequestMethod::Head || head.status == 304 {
        return Ok(BodyLength::Empty);
    }
    Ok(length)
}

#[cfg(test)]
mod tests;
