//! Request heads.

use std::mem::MaybeUninit;

use crate::fields::{self, FIELD_SLOTS, FIELD_SLOTS_MAX, Framing, Scan, TransferEncoding};
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
    let limits = &options.limits;
    if scan_from > 0 && fields::scan(input, scan_from, limits.header_bytes_max)? == Scan::Partial {
        return Ok(None);
    }
    if limits.header_count_max <= FIELD_SLOTS {
        parse_with::<FIELD_SLOTS>(input, options, head)
    } else {
        parse_with::<FIELD_SLOTS_MAX>(input, options, head)
    }
}

fn parse_with<const SLOTS: usize>(
    input: &[u8],
    options: &RequestOptions,
    head: &mut RequestHead,
) -> Result<Option<usize>, Malformed> {
    let limits = &options.limits;
    let mut slots = [const { MaybeUninit::uninit() }; SLOTS];
    let slots = slots.get_mut(..limits.header_count_max.min(SLOTS)).unwrap_or_default();
    let mut request = httparse::Request::new(&mut []);
    let parsed = httparse::ParserConfig::default().parse_request_with_uninit_headers(&mut request, input, slots);
    let length = match parsed {
        Ok(httparse::Status::Complete(length)) if length <= limits.header_bytes_max => length,
        Ok(httparse::Status::Complete(_)) => return Err(Malformed::HeadTooLarge),
        Ok(httparse::Status::Partial) => return partial(input, options).map(|()| None),
        Err(error) => return Err(refine(error, input, options)),
    };
    let (Some(method), Some(path), Some(version)) = (request.method, request.path, request.version) else {
        return Err(Malformed::StartLine);
    };
    // The scanner skips any number of empty lines, with bare LF too; one is due (RFC 9112 §2.2).
    let before = input.get(..fields::range_in(input, method.as_bytes()).start).unwrap_or_default();
    if !(before.is_empty() || before == b"\r\n") || !input.get(..length).is_some_and(|head| head.ends_with(b"\r\n\r\n"))
    {
        return Err(Malformed::LineEnd);
    }
    head.version = if version == 0 { Version::Http10 } else { Version::Http11 };
    head.headers.load(input.get(..length).unwrap_or_default());
    fill(input, method.as_bytes(), path.as_bytes(), request.headers, options, head)?;
    Ok(Some(length))
}

/// Everything after the scan.
fn fill(
    input: &[u8],
    method: &[u8],
    target: &[u8],
    fields: &[httparse::Header<'_>],
    options: &RequestOptions,
    head: &mut RequestHead,
) -> Result<(), Malformed> {
    if !options.allow_custom_methods && !is_known_method(method) {
        return Err(Malformed::Method);
    }
    if target.len() > options.limits.target_bytes_max {
        return Err(Malformed::TargetTooLong);
    }
    let form = target::parse(method, target, options.allow_absolute_url)?;
    let authority_index = push_start_line(input, method, target, &form, options, head)?;

    let mut framing = Framing::default();
    let mut host_count = 0_u32;
    let mut upgrade_h2c = None;
    head.expect_continue = false;
    head.dropped_underscore_count = 0;
    for field in fields {
        let known = fields::push(input, field, &mut head.headers)?;
        match known {
            Some(Known::Host) => {
                host_count += 1;
                head.headers.pop();
                if host_count > 1 {
                    return Err(Malformed::HostRepeated);
                }
                if !target::is_authority(field.value) {
                    return Err(Malformed::Authority);
                }
                // The authority of an absolute target replaces `host` (RFC 9112 §3.2.2).
                if form == Target::Path {
                    head.headers.set_wire_value(authority_index, fields::range_in(input, field.value));
                }
            }
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
            Some(Known::Upgrade) => upgrade_h2c = Some(field.value.eq_ignore_ascii_case(b"h2c")),
            Some(Known::Expect) => {
                if !field.value.eq_ignore_ascii_case(b"100-continue") {
                    return Err(Malformed::Expectation);
                }
                head.expect_continue = head.version == Version::Http11;
            }
            None if options.underscores != Underscores::Allow && field.name.contains('_') => {
                if options.underscores == Underscores::Reject {
                    return Err(Malformed::Underscore);
                }
                head.headers.pop();
                head.dropped_underscore_count += 1;
            }
            _ => {}
        }
    }

    head.body = body_length(&framing, method, options, head)?;
    head.keep_alive = match head.version {
        Version::Http11 => !framing.close,
        Version::Http10 => framing.keep_alive && !framing.close,
    };
    // Both lengths were there and one was dropped: nothing after this message is trusted (RFC 9112 §6.1).
    head.keep_alive &= framing.content_length.is_none() || framing.transfer_encoding.is_none();
    head.upgrade = framing.connection_upgrade && upgrade_h2c == Some(false) && head.version == Version::Http11;
    if head.headers.may_have(Known::Connection) {
        check_nominations(head)?;
    }
    if head.version == Version::Http10 && !options.accept_http_10 {
        return Err(Malformed::VersionTooLow);
    }
    if host_count == 0 {
        // A host is due in every HTTP/1.1 request, also beside an absolute target (RFC 9112 §3.2).
        match &options.default_host {
            Some(host) if head.version == Version::Http10 => head.headers.set_known(Known::Authority, host.as_bytes()),
            _ if head.version == Version::Http10 && form != Target::Path => {}
            _ => return Err(Malformed::HostMissing),
        }
    }
    Ok(())
}

/// Adds the pseudo-headers; where `:authority` is.
fn push_start_line(
    input: &[u8],
    method: &[u8],
    target: &[u8],
    form: &Target,
    options: &RequestOptions,
    head: &mut RequestHead,
) -> Result<usize, Malformed> {
    let headers = &mut head.headers;
    headers.push_wire_known(Known::Method, fields::range_in(input, method));
    let at = fields::range_in(input, target);
    match form {
        Target::Path => {
            headers.push_wire_known(Known::Authority, 0..0);
            headers.push_wire_known(Known::Path, at);
            Ok(1)
        }
        Target::Authority => {
            headers.push_wire_known(Known::Authority, at);
            Ok(1)
        }
        Target::Absolute { scheme, authority, path } => {
            let https = scheme.len() == b"https".len();
            if https && options.refuse_https_target {
                return Err(Malformed::SchemeOnPlaintext);
            }
            headers.append_known(Known::Scheme, if https { b"https" } else { b"http" });
            headers.push_wire_known(Known::Authority, at.start + authority.start..at.start + authority.end);
            match target.get(path.clone()).unwrap_or_default() {
                [] if method == b"OPTIONS" => headers.append_known(Known::Path, b"*"),
                [] => headers.append_known(Known::Path, b"/"),
                // An empty path is sent as `/` (RFC 9112 §3.2.1).
                query @ [b'?', ..] => headers.append_known_parts(Known::Path, b"/", query),
                _ => headers.push_wire_known(Known::Path, at.start + path.start..at.end),
            }
            Ok(2)
        }
    }
}

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

/// Why a head that is not whole cannot become one.
fn partial(input: &[u8], options: &RequestOptions) -> Result<(), Malformed> {
    if fields::scan(input, 0, options.limits.header_bytes_max)? == Scan::Whole {
        // Only an empty line before the request line looks whole to one and partial to the other.
        return Err(Malformed::LineEnd);
    }
    Ok(())
}

/// Names the fault more closely than the scanner does.
fn refine(error: httparse::Error, input: &[u8], options: &RequestOptions) -> Malformed {
    match error {
        httparse::Error::Version | httparse::Error::Token => {
            let input = input.strip_prefix(b"\r\n").unwrap_or(input);
            let line = memchr::memchr2(b'\r', b'\n', input).and_then(|end| input.get(..end)).unwrap_or(input);
            let mut parts = line.split(|byte| *byte == b' ');
            let (method, target) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
            let (version, more) = (parts.next().unwrap_or_default(), parts.next().is_some());
            let low = if options.accept_http_10 { Malformed::Version } else { Malformed::VersionTooLow };
            if !options.allow_custom_methods && !is_known_method(method) || !bytes::is_token_text(method) {
                Malformed::Method
            } else if target.is_empty() || more {
                Malformed::StartLine
            } else if let Err(fault) = target::parse(method, target, options.allow_absolute_url) {
                fault
            } else {
                match version {
                    // HTTP/0.9 named no version.
                    [] => low,
                    [b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9'] => low,
                    _ => Malformed::StartLine,
                }
            }
        }
        httparse::Error::HeaderName if memchr::memmem::find(input, b"\n ").is_some() => Malformed::FieldFolded,
        httparse::Error::HeaderName if memchr::memmem::find(input, b"\n\t").is_some() => Malformed::FieldFolded,
        other => fields::reason(other),
    }
}

/// Whether Envoy serves this method without `allow_custom_methods`.
fn is_known_method(method: &[u8]) -> bool {
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
