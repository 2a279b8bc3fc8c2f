//! Response heads.

use std::mem::MaybeUninit;

use crate::fields::{self, FIELD_SLOTS, FIELD_SLOTS_MAX, Framing, Scan, TransferEncoding};
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
    if scan_from > 0 && fields::scan(input, scan_from, limits.header_bytes_max)? == Scan::Partial {
        return Ok(None);
    }
    if limits.header_count_max <= FIELD_SLOTS {
        parse_with::<FIELD_SLOTS>(input, method, limits, head)
    } else {
        parse_with::<FIELD_SLOTS_MAX>(input, method, limits, head)
    }
}

fn parse_with<const SLOTS: usize>(
    input: &[u8],
    method: RequestMethod,
    limits: &Limits,
    head: &mut ResponseHead,
) -> Result<Option<usize>, Malformed> {
    let mut slots = [const { MaybeUninit::uninit() }; SLOTS];
    let slots = slots.get_mut(..limits.header_count_max.min(SLOTS)).unwrap_or_default();
    let mut response = httparse::Response::new(&mut []);
    let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut response, input, slots);
    let length = match parsed {
        Ok(httparse::Status::Complete(length)) if length <= limits.header_bytes_max => length,
        Ok(httparse::Status::Complete(_)) => return Err(Malformed::HeadTooLarge),
        Ok(httparse::Status::Partial) => {
            return match fields::scan(input, 0, limits.header_bytes_max)? {
                Scan::Partial => Ok(None),
                Scan::Whole => Err(Malformed::LineEnd),
            };
        }
        Err(error) => return Err(fields::reason(error)),
    };
    let (Some(status), Some(version)) = (response.code, response.version) else { return Err(Malformed::StartLine) };
    // The scanner skips empty lines before the status line.
    if !input.starts_with(b"HTTP/1.") || !input.get(..length).is_some_and(|head| head.ends_with(b"\r\n\r\n")) {
        return Err(Malformed::LineEnd);
    }
    if status < 100 {
        return Err(Malformed::Status);
    }
    head.version = if version == 0 { Version::Http10 } else { Version::Http11 };
    head.status = status;
    head.headers.load(input.get(..length).unwrap_or_default());
    fill(input, method, response.headers, head)?;
    Ok(Some(length))
}

fn fill(
    input: &[u8],
    method: RequestMethod,
    fields: &[httparse::Header<'_>],
    head: &mut ResponseHead,
) -> Result<(), Malformed> {
    // The three digits after `HTTP/1.x `.
    head.headers.push_wire_known(Known::Status, STATUS_START..STATUS_START + 3);
    let mut framing = Framing::default();
    for field in fields {
        match fields::push(input, field, &mut head.headers)? {
            Some(Known::ContentLength) => {
                let zeros = framing.on_content_length(field.value)?;
                let value = fields::range_in(input, field.value);
                head.headers.set_wire_value(head.headers.len() - 1, value.start + zeros..value.end);
            }
            Some(Known::TransferEncoding) => {
                framing.on_transfer_encoding(field.value);
                head.headers.pop();
            }
            Some(Known::Connection) => framing.on_connection(field.value),
            _ => {}
        }
    }
    head.body = body_length(&framing, method, head)?;
    head.keep_alive = head.body != BodyLength::UntilClose
        && !framing.close
        && (head.version == Version::Http11 || framing.keep_alive);
    Ok(())
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

const STATUS_START: usize = b"HTTP/1.1 ".len();

#[cfg(test)]
mod tests;
