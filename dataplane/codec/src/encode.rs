//! Heads and chunks as they are written: always from the parsed form, with every byte checked again.

use crate::headers::Field;
use crate::{BodyLength, HeaderMap, Known, KnownSet, RequestMethod, Version, bytes, chunked};

/// How a head is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EncodeOptions {
    /// How field names are written.
    pub case: NameCase,
    /// The method that a response answers; it decides whether a body follows. Requests ignore it.
    pub request_method: RequestMethod,
}

/// How field names are written (`header_key_format`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NameCase {
    /// `content-type`
    #[default]
    Lower,
    /// `Content-Type`
    ProperCase,
}

/// What `connection` says; a `connection` in the fields is never written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ConnectionToken {
    /// No field: the version's default.
    #[default]
    None,
    /// `keep-alive`, which an HTTP/1.0 client wants to hear.
    KeepAlive,
    /// `close`
    Close,
    /// `upgrade`, and `upgrade` from the fields is written too.
    Upgrade,
}

/// Why a head cannot be written: something in it would change the message. Nothing of it is left in the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unencodable {
    /// A pseudo-header that the start line needs is missing or is no token, target, authority or status.
    StartLine,
    /// A field name is no token (RFC 9110 §5.1).
    FieldName,
    /// A field value has a control character (RFC 9110 §5.5).
    FieldValue,
    /// A request cannot end with its connection (RFC 9112 §6.3).
    BodyLength,
}

impl std::fmt::Display for Unencodable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::StartLine => {
                "the start line lacks a part, or a part has a byte that may not be there (RFC 9112 §3, §4)"
            }
            Self::FieldName => "a field name is no token (RFC 9110 §5.1)",
            Self::FieldValue => "a field value has a control character (RFC 9110 §5.5)",
            Self::BodyLength => "a request body needs a length or chunks (RFC 9112 §6.3)",
        })
    }
}

impl std::error::Error for Unencodable {}

/// Writes a request head to the end of `out`.
///
/// Source: RFC 9112 §3 and §6; which methods get `content-length: 0` is Envoy's.
/// Shape:  `host` comes first, then the fields in order. `body` alone decides the framing fields; `connection` alone decides
///         `connection`. A `:path` is not written for CONNECT.
/// Errors: `out` is as before.
pub fn encode_request_head(
    headers: &HeaderMap,
    body: BodyLength,
    connection: ConnectionToken,
    options: &EncodeOptions,
    out: &mut Vec<u8>,
) -> Result<(), Unencodable> {
    let start = out.len();
    let written = write_request_head(headers, body, connection, options, out);
    if written.is_err() {
        out.truncate(start);
    }
    written
}

fn write_request_head(
    headers: &HeaderMap,
    body: BodyLength,
    connection: ConnectionToken,
    options: &EncodeOptions,
    out: &mut Vec<u8>,
) -> Result<(), Unencodable> {
    // What came from a parser has been looked at; a rewrite may have put anything there.
    let start_line_part = |known, is_good: fn(&[u8]) -> bool| {
        headers.get_checked(known).filter(|(text, checked)| *checked || is_good(text)).map(|(text, _)| text)
    };
    let method = start_line_part(Known::Method, bytes::is_token_text);
    let authority = start_line_part(Known::Authority, bytes::is_authority_text);
    let (Some(method), Some(authority)) = (method, authority) else { return Err(Unencodable::StartLine) };
    let target = if method == b"CONNECT" {
        Some(authority).filter(|target| bytes::is_target_text(target))
    } else {
        start_line_part(Known::Path, bytes::is_target_text)
    };
    let Some(target) = target.filter(|target| !target.is_empty()) else {
        return Err(Unencodable::StartLine);
    };
    out.reserve(headers.arena().len() + HEAD_EXTRA_BYTES);
    out.extend_from_slice(method);
    out.push(b' ');
    out.extend_from_slice(target);
    out.extend_from_slice(b" HTTP/1.1\r\n");
    push_field(b"host", authority, options.case, out);

    let framing = match body {
        BodyLength::Empty if needs_no_length(method) => WrittenLength::IfPresent(0),
        BodyLength::Empty => WrittenLength::Always(0),
        BodyLength::Length(length) => WrittenLength::Always(length),
        BodyLength::Chunked => WrittenLength::Chunked,
        BodyLength::UntilClose => return Err(Unencodable::BodyLength),
    };
    write_fields(headers, framing, connection, options.case, out)
}

/// Writes a response head to the end of `out`; how its body has to be framed.
///
/// Source: RFC 9112 §4 and §6; RFC 9110 §8.6 for the fields of responses without a body.
/// Shape:  `version` is the peer's: an HTTP/1.0 client gets no chunks but the end of the connection, and then `connection: close`
///         whatever `connection` is. The reason phrase is that of RFC 9110 §15. A body that ended with its connection becomes chunked.
/// Errors: `out` is as before.
pub fn encode_response_head(
    version: Version,
    headers: &HeaderMap,
    body: BodyLength,
    connection: ConnectionToken,
    options: &EncodeOptions,
    out: &mut Vec<u8>,
) -> Result<BodyLength, Unencodable> {
    let start = out.len();
    let written = write_response_head(version, headers, body, connection, options, out);
    if written.is_err() {
        out.truncate(start);
    }
    written
}

fn write_response_head(
    version: Version,
    headers: &HeaderMap,
    body: BodyLength,
    mut connection: ConnectionToken,
    options: &EncodeOptions,
    out: &mut Vec<u8>,
) -> Result<BodyLength, Unencodable> {
    let status = headers.get_known(Known::Status).filter(|text| text.len() == 3).and_then(bytes::decimal);
    let Some(status @ 100..) = status else { return Err(Unencodable::StartLine) };
    out.extend_from_slice(match version {
        Version::Http10 => b"HTTP/1.0 ",
        Version::Http11 | Version::Http2 => b"HTTP/1.1 ",
    });
    bytes::push_decimal(status, out);
    out.push(b' ');
    out.extend_from_slice(reason_phrase(status as u16).as_bytes());
    out.extend_from_slice(b"\r\n");

    let tunnel = status == 101 || options.request_method == RequestMethod::Connect && (200..300).contains(&status);
    let (framing, on_wire) = if status < 200 || status == 204 || tunnel {
        (WrittenLength::Never, BodyLength::Empty)
    } else if status == 304 {
        (WrittenLength::Kept, BodyLength::Empty)
    } else if options.request_method == RequestMethod::Head {
        // Envoy says `chunked` for what GET would answer where no length is known.
        let unknown = version == Version::Http11 && !headers.may_have(Known::ContentLength);
        (if unknown { WrittenLength::Chunked } else { WrittenLength::Kept }, BodyLength::Empty)
    } else {
        match body {
            BodyLength::Empty => (WrittenLength::Always(0), BodyLength::Empty),
            BodyLength::Length(length) => (WrittenLength::Always(length), body),
            BodyLength::Chunked | BodyLength::UntilClose if version == Version::Http11 => {
                (WrittenLength::Chunked, BodyLength::Chunked)
            }
            BodyLength::Chunked | BodyLength::UntilClose => {
                connection = ConnectionToken::Close;
                (WrittenLength::Never, BodyLength::UntilClose)
            }
        }
    };
    write_fields(headers, framing, connection, options.case, out)?;
    Ok(on_wire)
}

/// Writes the size line of a chunk of `length` bytes; CR LF after the data is the caller's. `length` is not 0.
pub fn encode_chunk_size(length: usize, out: &mut Vec<u8>) {
    debug_assert!(length > 0, "a chunk of size 0 ends the body");
    let digit_count = (usize::BITS - length.leading_zeros()).div_ceil(4).max(1);
    for digit in (0..digit_count).rev() {
        let value = (length >> (4 * digit) & 0xf) as u8;
        out.push(if value < 10 { b'0' + value } else { b'a' + value - 10 });
    }
    out.extend_from_slice(b"\r\n");
}

/// What ends a chunked body without trailers.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// Ends a chunked body with `trailers`; those that may not be trailers are left out (RFC 9110 §6.5.1).
///
/// Errors: `out` is as before.
pub fn encode_trailers(trailers: &HeaderMap, case: NameCase, out: &mut Vec<u8>) -> Result<(), Unencodable> {
    let start = out.len();
    out.extend_from_slice(b"0\r\n");
    for field in trailers.fields().filter(|field| chunked::may_be_trailer(field.name())) {
        if let Err(fault) = push_checked(&field, case, out) {
            out.truncate(start);
            return Err(fault);
        }
    }
    out.extend_from_slice(b"\r\n");
    Ok(())
}

/// What is written of the body's length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WrittenLength {
    /// `content-length` with this number.
    Always(u64),
    /// `content-length` with this number where the fields have one.
    IfPresent(u64),
    /// `content-length` as in the fields, where it is a number.
    Kept,
    /// `transfer-encoding: chunked`
    Chunked,
    /// Neither.
    Never,
}

/// Fields that are not written, or not as they are.
const WRITTEN_APART: KnownSet = KnownSet::of(&[
    Known::Method,
    Known::Scheme,
    Known::Authority,
    Known::Path,
    Known::Status,
    Known::Protocol,
    Known::Host,
    Known::Connection,
    Known::KeepAlive,
    Known::ProxyConnection,
    Known::TransferEncoding,
    Known::Upgrade,
    Known::ContentLength,
]);

fn write_fields(
    headers: &HeaderMap,
    length: WrittenLength,
    connection: ConnectionToken,
    case: NameCase,
    out: &mut Vec<u8>,
) -> Result<(), Unencodable> {
    let mut length_written = false;
    // Lines that stand in the arena as they are to be written are copied together.
    let arena = headers.arena();
    let mut run = 0..0;
    for field in headers.fields() {
        let mut number = None;
        if let Some(known) = field.known.filter(|known| WRITTEN_APART.has(*known)) {
            number = match known {
                Known::Upgrade if connection == ConnectionToken::Upgrade => None,
                Known::ContentLength => match length {
                    WrittenLength::Chunked | WrittenLength::Never => continue,
                    _ if length_written => continue,
                    WrittenLength::Always(number) | WrittenLength::IfPresent(number) => Some(number),
                    WrittenLength::Kept => Some(bytes::decimal(field.value()).ok_or(Unencodable::FieldValue)?),
                },
                _ => continue,
            };
            // A length that stands there as it is to be written is copied with its neighbours.
            if number.is_some_and(|number| is_written_as(&field, number)) {
                length_written = true;
                number = None;
            }
        }
        if let (None, Some(line), NameCase::Lower) = (number, field.line(), case) {
            if run.end != line.start {
                out.extend_from_slice(arena.get(run).unwrap_or_default());
                run = line.start..line.start;
            }
            run.end = line.end;
            continue;
        }
        out.extend_from_slice(arena.get(std::mem::take(&mut run)).unwrap_or_default());
        match number {
            Some(number) => {
                length_written = true;
                push_length(number, case, out);
            }
            None => push_checked(&field, case, out)?,
        }
    }
    out.extend_from_slice(arena.get(run).unwrap_or_default());
    match connection {
        ConnectionToken::None => {}
        ConnectionToken::KeepAlive => push_field(b"connection", b"keep-alive", case, out),
        ConnectionToken::Close => push_field(b"connection", b"close", case, out),
        ConnectionToken::Upgrade => push_field(b"connection", b"upgrade", case, out),
    }
    match length {
        WrittenLength::Always(number) if !length_written => push_length(number, case, out),
        WrittenLength::Chunked => push_field(b"transfer-encoding", b"chunked", case, out),
        _ => {}
    }
    out.extend_from_slice(b"\r\n");
    Ok(())
}

/// Whether a field's line says this number, and says it without leading zeros.
fn is_written_as(field: &Field<'_>, number: u64) -> bool {
    let canonical = !matches!(field.value(), [b'0', _, ..]);
    field.line().is_some() && canonical && bytes::decimal(field.value()) == Some(number)
}

fn push_length(number: u64, case: NameCase, out: &mut Vec<u8>) {
    push_name(b"content-length", case, out);
    bytes::push_decimal(number, out);
    out.extend_from_slice(b"\r\n");
}

fn push_checked(field: &Field<'_>, case: NameCase, out: &mut Vec<u8>) -> Result<(), Unencodable> {
    if !field.is_checked() {
        if field.known.is_none() && !bytes::is_token_text(field.name()) {
            return Err(Unencodable::FieldName);
        }
        if !bytes::is_value_text(field.value()) {
            return Err(Unencodable::FieldValue);
        }
    }
    push_field(field.name(), field.value(), case, out);
    Ok(())
}

fn push_field(name: &[u8], value: &[u8], case: NameCase, out: &mut Vec<u8>) {
    push_name(name, case, out);
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

fn push_name(name: &[u8], case: NameCase, out: &mut Vec<u8>) {
    match case {
        NameCase::Lower => out.extend_from_slice(name),
        NameCase::ProperCase => {
            // Envoy capitalises the first letter and every letter after a byte that is no letter or digit.
            let mut first = true;
            out.extend(name.iter().map(|byte| {
                let written = if first { byte.to_ascii_uppercase() } else { *byte };
                first = !byte.is_ascii_alphanumeric();
                written
            }));
        }
    }
    out.extend_from_slice(b": ");
}

/// Bytes beside the fields for which room is made at once: the start line's fixed parts, framing and `connection`.
const HEAD_EXTRA_BYTES: usize = 128;

/// Methods whose requests usually have no body: they get no `content-length: 0` (RFC 9110 §8.6; the list is Envoy's).
fn needs_no_length(method: &[u8]) -> bool {
    matches!(method, b"GET" | b"HEAD" | b"DELETE" | b"TRACE" | b"CONNECT")
}

/// The reason phrase of a status (RFC 9110 §15 and the IANA registry).
pub fn reason_phrase(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        101 => "Switching Protocols",
        102 => "Processing",
        103 => "Early Hints",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        203 => "Non-Authoritative Information",
        204 => "No Content",
        205 => "Reset Content",
        206 => "Partial Content",
        207 => "Multi-Status",
        208 => "Already Reported",
        226 => "IM Used",
        300 => "Multiple Choices",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        305 => "Use Proxy",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        402 => "Payment Required",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        407 => "Proxy Authentication Required",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Payload Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        422 => "Unprocessable Entity",
        423 => "Locked",
        424 => "Failed Dependency",
        425 => "Too Early",
        426 => "Upgrade Required",
        428 => "Precondition Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        506 => "Variant Also Negotiates",
        507 => "Insufficient Storage",
        508 => "Loop Detected",
        510 => "Not Extended",
        511 => "Network Authentication Required",
        _ => "Unknown",
    }
}

#[cfg(test)]
mod tests;
