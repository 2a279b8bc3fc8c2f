//! Request heads.

use std::ops::Range;

use crate::fields::{Framing, TransferEncoding};
use crate::headers::Verdict;
use crate::scan::{self, Stop};
use crate::target::{self, Target};
use crate::{BodyLength, Known, Limits, Malformed, RequestHead, Version, bytes};

/// How requests are read. The defaults are Envoy's, save for the limits that it leaves open.
#[derive(Clone, Debug)]
pub struct RequestOptions {
    /// What is read before a request is refused.
    pub limits: Limits,
    /// Serve HTTP/1.0 instead of answering 426 (`accept_http_10`).
    pub accept_http_10: bool,
    /// `:authority` of an HTTP/1.0 request without `host` (`default_host_for_http_10`).
    pub default_host: Option<Box<str>>,
    /// Accept targets in absolute form (`allow_absolute_url`).
    pub allow_absolute_url: bool,
    /// Refuse `https://` targets: the connection has no TLS and the proxy is the edge.
    pub refuse_https_target: bool,
    /// Take `transfer-encoding: chunked` and drop `content-length` where both come, and close afterwards (`allow_chunked_length`).
    pub allow_chunked_length: bool,
    /// Accept any token as a method (`allow_custom_methods`).
    pub allow_custom_methods: bool,
    /// What happens to field names with `_` (`headers_with_underscores_action`).
    pub underscores: Underscores,
}

impl Default for RequestOptions {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            accept_http_10: false,
            default_host: None,
            allow_absolute_url: true,
            refuse_https_target: false,
            allow_chunked_length: false,
            allow_custom_methods: false,
            underscores: Underscores::default(),
        }
    }
}

/// What happens to field names with `_`, which CGI-like backends cannot tell from `-`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Underscores {
    #[default]
    Allow,
    Reject,
    Drop,
}

/// Reads one request head from the front of `input`: `Some` bytes of it, or `None` where more are needed.
///
/// Source: RFC 9112 §2 to §6, RFC 9110 §5 to §10; every leniency of a SHOULD or MAY is refused unless Envoy's default keeps it.
/// Shape:  `head` is cleared and filled again; it means something only after `Some`.
/// Errors: the caller answers [`Malformed::status`] and closes the connection.
pub fn parse_request(
    input: &[u8],
    options: &RequestOptions,
    head: &mut RequestHead,
) -> Result<Option<usize>, Malformed> {
    parse_request_from(input, 0, options, head)
}

/// As [`parse_request`], for input of which an earlier call has already seen the first `scan_from` bytes and wanted more: what was seen
/// is not scanned again until the head is whole.
pub fn parse_request_from(
    input: &[u8],
    scan_from: usize,
    options: &RequestOptions,
    head: &mut RequestHead,
) -> Result<Option<usize>, Malformed> {
    let bytes_max = options.limits.header_bytes_max;
    if scan_from > 0 && !scan::is_whole(input, scan_from, bytes_max)? {
        return Ok(None);
    }
    match scan_and_judge(input, options, head) {
        Ok(length) => Ok(Some(length)),
        Err(Stop::Partial) if input.len() > bytes_max => Err(Malformed::HeadTooLarge),
        Err(Stop::Partial) => Ok(None),
        Err(Stop::Malformed(fault)) => Err(fault),
    }
}

fn scan_and_judge(input: &[u8], options: &RequestOptions, head: &mut RequestHead) -> Result<usize, Stop> {
    head.headers.clear();
    let line = request_line(input, options, head)?;
    let length = scan::fields(input, line.end, options.limits.header_count_max, &mut head.headers)?;
    if length > options.limits.header_bytes_max {
        return Err(Malformed::HeadTooLarge.into());
    }
    head.headers.load(input.get(..length).unwrap_or_default());
    judge(input, &line, options, head)?;
    Ok(length)
}

/// The request line, and where the fields start.
struct RequestLine<'a> {
    method: &'a [u8],
    form: Target,
    /// Where the target is in the input.
    target: Range<usize>,
    end: usize,
}

/// Scans the request line and adds the pseudo-headers.
fn request_line<'a>(
    input: &'a [u8],
    options: &RequestOptions,
    head: &mut RequestHead,
) -> Result<RequestLine<'a>, Stop> {
    if input == b"\r" {
        return Err(Stop::Partial);
    }
    // One empty line may come before (RFC 9112 §2.2).
    let start = if input.starts_with(b"\r\n") { 2 } else { 0 };
    let text = input.get(start..).unwrap_or_default();
    let Some(method_length) = text.iter().position(|byte| !bytes::is_token(*byte)) else {
        return Err(if text.len() <= METHOD_BYTES_MAX { Stop::Partial } else { Malformed::Method.into() });
    };
    let method = text.get(..method_length).unwrap_or_default();
    if method.is_empty() || method.len() > METHOD_BYTES_MAX || !options.allow_custom_methods && !is_known_method(method)
    {
        return Err(Malformed::Method.into());
    }
    match text.get(method_length) {
        Some(b' ') => {}
        Some(b'\r' | b'\n') => return Err(Malformed::StartLine.into()),
        _ => return Err(Malformed::Method.into()),
    }
    let target_start = start + method_length + 1;
    let target_end = scan::target_end(input, target_start);
    let target = input.get(target_start..target_end).unwrap_or_default();
    if target.len() > options.limits.header_bytes_max {
        return Err(Malformed::HeadTooLarge.into());
    }
    if target.len() > options.limits.target_bytes_max {
        return Err(Malformed::TargetTooLong.into());
    }
    match input.get(target_end) {
        Some(b' ') => {}
        None => return Err(Stop::Partial),
        Some(_) => return Err(refine_line(text, options).into()),
    }
    let version = input.get(target_end + 1..).unwrap_or_default();
    head.version = match version {
        [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'1', b'\r', b'\n', ..] => Version::Http11,
        [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'0', b'\r', b'\n', ..] => Version::Http10,
        _ if b"HTTP/1.1\r\n".starts_with(version) || b"HTTP/1.0\r\n".starts_with(version) => return Err(Stop::Partial),
        _ => return Err(refine_line(text, options).into()),
    };
    let form = target::parse(method, target, options.allow_absolute_url)?;
    let at = target_start..target_end;
    let headers = &mut head.headers;
    headers.push_scanned_known(Known::Method, start..start + method.len());
    match &form {
        Target::Path => {
            headers.push_scanned_known(Known::Authority, 0..0);
            headers.push_scanned_known(Known::Path, at.clone());
        }
        Target::Authority => headers.push_scanned_known(Known::Authority, at.clone()),
        Target::Absolute { scheme, authority, path } => {
            if scheme.len() == b"https".len() && options.refuse_https_target {
                return Err(Malformed::SchemeOnPlaintext.into());
            }
            headers.push_scanned_known(Known::Scheme, at.start..at.start + scheme.len());
            headers.push_scanned_known(Known::Authority, at.start + authority.start..at.start + authority.end);
            headers.push_scanned_known(Known::Path, at.start + path.start..at.end);
        }
    }
    Ok(RequestLine { method, form, target: at, end: target_end + b" HTTP/1.1\r\n".len() })
}

/// Everything after the scan.
fn judge(
    input: &[u8],
    line: &RequestLine<'_>,
    options: &RequestOptions,
    head: &mut RequestHead,
) -> Result<(), Malformed> {
    if let Target::Absolute { scheme, path, .. } = &line.form {
        let target = line.target.start;
        head.headers.lower_loaded(target + scheme.start..target + scheme.end);
        // An empty path is sent as `/` (RFC 9112 §3.2.1), and for OPTIONS as `*` (§3.2.4).
        match input.get(target + path.start..line.target.end).unwrap_or_default() {
            [] if line.method == b"OPTIONS" => head.headers.set_parts(ABSOLUTE_PATH_INDEX, b"*", b""),
            query @ ([] | [b'?', ..]) => head.headers.set_parts(ABSOLUTE_PATH_INDEX, b"/", query),
            _ => {}
        }
    }

    let mut framing = Framing::default();
    let mut host = None;
    let mut upgrade_h2c = None;
    let (mut expect_continue, mut dropped_underscore_count) = (false, 0);
    head.headers.settle(|known, name, value, place| {
        match known {
            Some(Known::Host) => {
                if host.replace(place).is_some() {
                    return Err(Malformed::HostRepeated);
                }
                if !target::is_authority(value) {
                    return Err(Malformed::Authority);
                }
                return Ok(Verdict::Drop);
            }
            Some(Known::Upgrade) => upgrade_h2c = Some(value.eq_ignore_ascii_case(b"h2c")),
            Some(Known::Expect) => {
                if !value.eq_ignore_ascii_case(b"100-continue") {
                    return Err(Malformed::Expectation);
                }
                expect_continue = true;
            }
            None if options.underscores != Underscores::Allow && name.contains(&b'_') => {
                if options.underscores == Underscores::Reject {
                    return Err(Malformed::Underscore);
                }
                dropped_underscore_count += 1;
                return Ok(Verdict::Drop);
            }
            _ => return framing.on_field(known, value),
        }
        Ok(Verdict::Keep)
    })?;

    head.body = body_length(&framing, line.method, options, head)?;
    head.keep_alive = match head.version {
        Version::Http11 | Version::Http2 => !framing.close,
        Version::Http10 => framing.keep_alive && !framing.close,
    };
    // Both lengths were there and one was dropped: nothing after this message is trusted (RFC 9112 §6.1).
    head.keep_alive &= framing.content_length.is_none() || framing.transfer_encoding.is_none();
    head.expect_continue = expect_continue && head.version == Version::Http11;
    head.upgrade = framing.connection_upgrade && upgrade_h2c == Some(false) && head.version == Version::Http11;
    head.dropped_underscore_count = dropped_underscore_count;
    if framing.connection_nominates {
        check_nominations(head)?;
    }
    if head.version == Version::Http10 && !options.accept_http_10 {
        return Err(Malformed::VersionTooLow);
    }
    match (host, &options.default_host) {
        // The authority of the target replaces `host` (RFC 9112 §3.2.2).
        (Some(_), _) if line.form != Target::Path => {}
        (Some(host), _) => head.headers.set_loaded(PATH_AUTHORITY_INDEX, host),
        // A host is due in every HTTP/1.1 request, also beside an absolute target (RFC 9112 §3.2).
        (None, _) if head.version == Version::Http11 => return Err(Malformed::HostMissing),
        (None, _) if line.form != Target::Path => {}
        (None, Some(host)) => head.headers.set_known(Known::Authority, host.as_bytes()),
        (None, None) => return Err(Malformed::HostMissing),
    }
    Ok(())
}

/// Where [`request_line`] puts `:authority` for a target that is a path.
const PATH_AUTHORITY_INDEX: usize = 1;
/// Where [`request_line`] puts `:path` for an absolute target.
const ABSOLUTE_PATH_INDEX: usize = 3;
/// A method that is longer is refused before its end comes.
const METHOD_BYTES_MAX: usize = 64;

/// How the body ends (RFC 9112 §6.3; a request without either length has none).
fn body_length(
    framing: &Framing,
    method: &[u8],
    options: &RequestOptions,
    head: &mut RequestHead,
) -> Result<BodyLength, Malformed> {
    let connect = method == b"CONNECT";
    if connect && framing.content_length.is_some_and(|length| length > 0) {
        return Err(Malformed::BodyNotAllowed);
    }
    match (framing.transfer_encoding, framing.content_length) {
        (None, None) => Ok(BodyLength::Empty),
        (None, Some(0)) => {
            if connect {
                head.headers.remove_known(Known::ContentLength);
            }
            Ok(BodyLength::Empty)
        }
        (None, Some(length)) => Ok(BodyLength::Length(length)),
        (Some(TransferEncoding::Chunked), Some(_)) if !options.allow_chunked_length => Err(Malformed::LengthConflict),
        (Some(TransferEncoding::Other), Some(_)) => Err(Malformed::LengthConflict),
        (Some(TransferEncoding::Other), None) => Err(Malformed::TransferEncoding),
        (Some(TransferEncoding::Chunked), _) if connect => Err(Malformed::TransferEncoding),
        (Some(TransferEncoding::Chunked), _) if head.version == Version::Http10 => {
            Err(if options.accept_http_10 { Malformed::TransferEncodingInHttp10 } else { Malformed::VersionTooLow })
        }
        (Some(TransferEncoding::Chunked), length) => {
            if length.is_some() {
                head.headers.remove_known(Known::ContentLength);
            }
            Ok(BodyLength::Chunked)
        }
    }
}

/// Refuses a `connection` that nominates fields which are not the client's to remove, or too many (Envoy: ten).
fn check_nominations(head: &RequestHead) -> Result<(), Malformed> {
    let mut count = 0;
    for token in head.headers.get_all_known(Known::Connection).flat_map(bytes::list) {
        count += 1;
        let refused = token.starts_with(b":")
            || PROTECTED_FROM_NOMINATION.iter().any(|name| token.eq_ignore_ascii_case(name.as_bytes()));
        if refused || count >= NOMINATION_COUNT_LIMIT {
            return Err(Malformed::ConnectionNominates);
        }
    }
    Ok(())
}

const NOMINATION_COUNT_LIMIT: u32 = 10;

/// Fields that say where a request came from or how long it is; removing one would change what the backend believes.
const PROTECTED_FROM_NOMINATION: &[&str] =
    &["x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "host", "content-length"];

/// What is wrong with a request line, named closely; one that is not whole yet is judged by what is there.
fn refine_line(text: &[u8], options: &RequestOptions) -> Malformed {
    let line = memchr::memchr2(b'\r', b'\n', text).and_then(|end| text.get(..end)).unwrap_or(text);
    let mut parts = line.split(|byte| *byte == b' ');
    let (method, target) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let (version, more) = (parts.next().unwrap_or_default(), parts.next().is_some());
    if target.is_empty() || more {
        return Malformed::StartLine;
    }
    if let Err(fault) = target::parse(method, target, options.allow_absolute_url) {
        return fault;
    }
    let low = if options.accept_http_10 { Malformed::Version } else { Malformed::VersionTooLow };
    match version {
        b"HTTP/1.1" | b"HTTP/1.0" => Malformed::LineEnd,
        // HTTP/0.9 named no version.
        [] => low,
        [b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9'] => low,
        _ => Malformed::StartLine,
    }
}

/// Whether Envoy serves this method without `allow_custom_methods`.
pub fn is_known_method(method: &[u8]) -> bool {
    matches!(
        method,
        b"GET"
            | b"POST"
            | b"PUT"
            | b"HEAD"
            | b"DELETE"
            | b"OPTIONS"
            | b"PATCH"
            | b"CONNECT"
            | b"TRACE"
            | b"ACL"
            | b"BIND"
            | b"CHECKOUT"
            | b"COPY"
            | b"LINK"
            | b"LOCK"
            | b"MERGE"
            | b"MKACTIVITY"
            | b"MKCALENDAR"
            | b"MKCOL"
            | b"MOVE"
            | b"MSEARCH"
            | b"NOTIFY"
            | b"PROPFIND"
            | b"PROPPATCH"
            | b"PURGE"
            | b"REBIND"
            | b"REPORT"
            | b"SEARCH"
            | b"SOURCE"
            | b"SUBSCRIBE"
            | b"UNBIND"
            | b"UNLINK"
            | b"UNLOCK"
            | b"UNSUBSCRIBE"
    )
}

#[cfg(test)]
mod tests;
