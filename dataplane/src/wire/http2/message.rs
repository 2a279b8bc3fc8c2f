//! Messages of `h2` and of `torus-codec`, both ways; the one place where HTTP/2 becomes HTTP/1.1 or the reverse.
//!
//! What is malformed is refused, never repaired (RFC 9113 §8.1.1): a field that would mean something else to an HTTP/1.1 backend is
//! where requests are smuggled. `h2` has already refused upper-case names, control characters, fields of the connection, wrong or
//! misplaced pseudo-headers and a body that differs from `content-length`; the HTTP/1.1 encoder checks every byte once more.

use http::header::{HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri};
use torus_codec::{
    BodyLength, HeaderMap, Known, Malformed, RequestHead, RequestMethod, RequestOptions, ResponseHead, Underscores,
    Unencodable, Version,
};

/// What a request's connection and stream say of it.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The stream ended with its head.
    pub is_complete: bool,
    /// TLS ends here.
    pub is_secure: bool,
    /// CONNECT may name a protocol: our SETTINGS said so.
    pub takes_protocols: bool,
}

/// Reads a request into `head`, which is cleared first. CONNECT with a protocol becomes a GET that asks to be upgraded to it.
///
/// Source: RFC 9113 §8.2, §8.3.1; RFC 8441 §4, §5.
/// Errors: the stream is answered with the fault's status.
pub fn read_request(
    request: &http::request::Parts,
    place: Place,
    options: &RequestOptions,
    head: &mut RequestHead,
) -> Result<(), Malformed> {
    let Place { is_complete, is_secure, takes_protocols } = place;
    let headers = &mut head.headers;
    headers.clear();
    head.version = Version::Http2;
    head.keep_alive = true;
    head.upgrade = false;
    head.expect_continue = false;
    head.dropped_underscore_count = 0;
    head.body = BodyLength::Empty;
    let protocol = request.extensions.get::<h2::ext::Protocol>();
    if protocol.is_some_and(|protocol| !takes_protocols || !is_protocol(protocol.as_str())) {
        return Err(Malformed::FieldName);
    }
    let method = if protocol.is_some() { b"GET" } else { request.method.as_str().as_bytes() };
    if !options.allow_custom_methods && !torus_codec::is_known_method(method) {
        return Err(Malformed::Method);
    }
    headers.append_known(Known::Method, method);
    // A scheme that is not the connection's own proves nothing.
    match request.uri.scheme_str() {
        Some("https") if is_secure => headers.append_known(Known::Scheme, b"https"),
        Some("http") if !is_secure => headers.append_known(Known::Scheme, b"http"),
        Some("http" | "https") | None => {}
        Some(_) => return Err(Malformed::Scheme),
    }
    headers.append_known(Known::Authority, authority(request)?);
    if let Some(path) = request.uri.path_and_query() {
        let path = path.as_str().as_bytes();
        if path.len() > options.limits.target_bytes_max {
            return Err(Malformed::TargetTooLong);
        }
        if !torus_codec::is_path(method, path) {
            return Err(Malformed::Target);
        }
        headers.append_known(Known::Path, path);
    }
    let mut content_length = None;
    let mut cookies = Cookies::default();
    let mut count = 0;
    for (name, value) in &request.headers {
        count += 1;
        if count > options.limits.header_count_max {
            return Err(Malformed::TooManyFields);
        }
        let (name, value) = (name.as_str().as_bytes(), value.as_bytes());
        // HTTP/1.1 would take the space away and read another value (RFC 9113 §8.2.1).
        if [value.first(), value.last()].into_iter().flatten().any(|byte| matches!(byte, b' ' | b'\t')) {
            return Err(Malformed::FieldValue);
        }
        match Known::from_lower(name) {
            // Compared with `:authority` already.
            Some(Known::Host) => continue,
            Some(
                Known::Connection
                | Known::KeepAlive
                | Known::ProxyConnection
                | Known::TransferEncoding
                | Known::Upgrade,
            ) => {
                return Err(Malformed::FieldName);
            }
            Some(Known::Te) if !value.eq_ignore_ascii_case(b"trailers") => return Err(Malformed::FieldValue),
            Some(Known::ContentLength) => {
                let length = torus_codec::decimal(value).ok_or(Malformed::ContentLength)?;
                if content_length.replace(length).is_some() {
                    return Err(Malformed::ContentLengthRepeated);
                }
            }
            Some(Known::Expect) => {
                if !value.eq_ignore_ascii_case(b"100-continue") {
                    return Err(Malformed::Expectation);
                }
                head.expect_continue = true;
            }
            Some(Known::Cookie) => {
                cookies.add(value);
                continue;
            }
            None if options.underscores != Underscores::Allow && name.contains(&b'_') => {
                if options.underscores == Underscores::Reject {
                    return Err(Malformed::Underscore);
                }
                head.dropped_underscore_count += 1;
                continue;
            }
            _ => {}
        }
        headers.append_wire(name, value);
    }
    cookies.write(headers);
    if let Some(protocol) = protocol {
        headers.append_known(Known::Upgrade, protocol.as_str().as_bytes());
        headers.append_known(Known::Connection, b"upgrade");
        head.upgrade = true;
    }
    if protocol.is_some() || request.method == Method::CONNECT {
        // What follows is no body (RFC 9113 §8.5).
        return if content_length.is_none_or(|length| length == 0) { Ok(()) } else { Err(Malformed::ContentLength) };
    }
    head.body = match (is_complete, content_length) {
        (true, None | Some(0)) | (false, Some(0)) => BodyLength::Empty,
        (true, Some(_)) => return Err(Malformed::ContentLength),
        (false, Some(length)) => BodyLength::Length(length),
        (false, None) => BodyLength::Chunked,
    };
    Ok(())
}

/// Whether a `:protocol` can stand in `upgrade` (RFC 9110 §7.8).
fn is_protocol(text: &str) -> bool {
    let is_good = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~/".contains(&byte);
    !text.is_empty() && text.bytes().all(is_good)
}

/// `:authority`, or `host` in its place; where both are there they must agree (RFC 9113 §8.3.1).
fn authority(request: &http::request::Parts) -> Result<&[u8], Malformed> {
    let mut hosts = request.headers.get_all(http::header::HOST).iter().map(HeaderValue::as_bytes);
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(Malformed::HostRepeated);
    }
    let authority = match (request.uri.authority().map(|authority| authority.as_str().as_bytes()), host) {
        (Some(authority), Some(host)) if !authority.eq_ignore_ascii_case(host) => return Err(Malformed::Authority),
        (Some(authority), _) => authority,
        (None, Some(host)) => host,
        (None, None) => return Err(Malformed::HostMissing),
    };
    if torus_codec::is_authority(authority) { Ok(authority) } else { Err(Malformed::Authority) }
}

/// Joins the pieces that a client may cut `cookie` into (RFC 9113 §8.2.3).
#[derive(Default)]
struct Cookies {
    joined: Vec<u8>,
    any: bool,
}

impl Cookies {
    fn add(&mut self, crumb: &[u8]) {
        if self.any {
            self.joined.extend_from_slice(b"; ");
        }
        self.any = true;
        self.joined.extend_from_slice(crumb);
    }

    fn write(&self, headers: &mut HeaderMap) {
        if self.any {
            headers.append_known(Known::Cookie, &self.joined);
        }
    }
}

/// Reads a response into `head`, which is cleared first. Source: RFC 9113 §8.3.2.
pub fn read_response(
    status: StatusCode,
    fields: &http::HeaderMap,
    is_complete: bool,
    method: RequestMethod,
    header_count_max: usize,
    head: &mut ResponseHead,
) -> Result<(), Malformed> {
    let headers = &mut head.headers;
    headers.clear();
    head.version = Version::Http2;
    head.status = status.as_u16();
    head.keep_alive = true;
    headers.append_known(Known::Status, status.as_str().as_bytes());
    let mut content_length = None;
    if fields.len() > header_count_max {
        return Err(Malformed::TooManyFields);
    }
    for (name, value) in fields {
        let (name, value) = (name.as_str().as_bytes(), value.as_bytes());
        match Known::from_lower(name) {
            Some(
                Known::Connection
                | Known::KeepAlive
                | Known::ProxyConnection
                | Known::TransferEncoding
                | Known::Upgrade,
            ) => {
                return Err(Malformed::FieldName);
            }
            Some(Known::ContentLength) => {
                let length = torus_codec::decimal(value).ok_or(Malformed::ContentLength)?;
                if content_length.replace(length).is_some() {
                    return Err(Malformed::ContentLengthRepeated);
                }
            }
            _ => {}
        }
        headers.append_wire(name, value);
    }
    let without_body = head.status < 200 || matches!(head.status, 204 | 304) || method == RequestMethod::Head;
    if without_body && !is_complete && head.status >= 200 {
        return Err(Malformed::ContentLengthNotAllowed);
    }
    if head.status < 200 || head.status == 204 {
        if content_length.is_some_and(|length| length > 0) {
            return Err(Malformed::ContentLengthNotAllowed);
        }
        headers.remove_known(Known::ContentLength);
    }
    head.body = match content_length {
        _ if without_body => BodyLength::Empty,
        None | Some(0) if is_complete => BodyLength::Empty,
        Some(_) if is_complete => return Err(Malformed::ContentLength),
        Some(0) => BodyLength::Empty,
        Some(length) => BodyLength::Length(length),
        None => BodyLength::Chunked,
    };
    Ok(())
}

/// Reads trailers; those that may not be trailers are left out (RFC 9110 §6.5.1). Whether there are few enough of them.
pub fn read_trailers(fields: &http::HeaderMap, count_max: usize, trailers: &mut HeaderMap) -> bool {
    if fields.len() > count_max {
        return false;
    }
    for (name, value) in fields {
        if torus_codec::may_be_trailer(name.as_str().as_bytes()) {
            trailers.append_wire(name.as_str().as_bytes(), value.as_bytes());
        }
    }
    true
}

/// A request as `h2` sends it. One that asks for the upgrade to `protocol` becomes CONNECT with it.
///
/// Source: RFC 9113 §8.3.1; RFC 8441 §4. `:authority` stands for `host`; `te` says `trailers` or is not there.
/// Errors: a header change made something that is no HTTP.
pub fn write_request(
    headers: &HeaderMap,
    body: BodyLength,
    protocol: Option<&[u8]>,
) -> Result<Request<()>, Unencodable> {
    let method = headers.get_known(Known::Method).and_then(|method| Method::from_bytes(method).ok());
    let method = method.ok_or(Unencodable::StartLine)?;
    let authority = headers.get_known(Known::Authority).unwrap_or_default();
    let mut uri = Uri::builder().authority(authority);
    if method != Method::CONNECT || protocol.is_some() {
        let path = headers.get_known(Known::Path).filter(|path| torus_codec::is_path(method.as_str().as_bytes(), path));
        uri = uri.path_and_query(path.ok_or(Unencodable::StartLine)?);
        uri = uri.scheme(headers.get_known(Known::Scheme).unwrap_or(b"http"));
    }
    let mut request = Request::new(());
    *request.version_mut() = http::Version::HTTP_2;
    *request.uri_mut() = uri.build().map_err(|_| Unencodable::StartLine)?;
    *request.method_mut() = method;
    write_fields(headers, request.headers_mut())?;
    if let Some(protocol) = protocol {
        let text = std::str::from_utf8(protocol).map_err(|_| Unencodable::FieldValue)?;
        *request.method_mut() = Method::CONNECT;
        request.extensions_mut().insert(h2::ext::Protocol::from(text));
        request.headers_mut().remove(http::header::CONTENT_LENGTH);
    } else if request.method() == Method::CONNECT {
        request.headers_mut().remove(http::header::CONTENT_LENGTH);
    } else {
        write_length(body, request.headers_mut());
    }
    Ok(request)
}

/// A response as `h2` sends it, and how its body is framed: `Empty` where the stream ends with the head.
///
/// Source: RFC 9113 §8.3.2; RFC 9110 §8.6 for the fields of responses without a body; RFC 8441 §5: a switch is 200.
pub fn write_response(
    headers: &HeaderMap,
    body: BodyLength,
    method: RequestMethod,
) -> Result<(Response<()>, BodyLength), Unencodable> {
    let status = headers.get_known(Known::Status).and_then(|status| StatusCode::from_bytes(status).ok());
    let status = status.ok_or(Unencodable::StartLine)?;
    let mut response = Response::new(());
    *response.version_mut() = http::Version::HTTP_2;
    *response.status_mut() = status;
    let fields = response.headers_mut();
    write_fields(headers, fields)?;
    let code = status.as_u16();
    if code == 101 || method == RequestMethod::Connect && status.is_success() {
        fields.remove(http::header::CONTENT_LENGTH);
        if code == 101 {
            *response.status_mut() = StatusCode::OK;
        }
        return Ok((response, BodyLength::UntilClose));
    }
    let on_wire = if code < 200 || code == 204 {
        fields.remove(http::header::CONTENT_LENGTH);
        BodyLength::Empty
    } else if code == 304 || method == RequestMethod::Head {
        BodyLength::Empty
    } else {
        write_length(body, fields);
        body
    };
    Ok((response, on_wire))
}

/// Trailers as `h2` sends them. Those that cannot be written are left out: the body itself is complete.
pub fn write_trailers(trailers: &HeaderMap) -> http::HeaderMap {
    let mut fields = http::HeaderMap::with_capacity(trailers.len());
    for (name, value) in trailers.iter().filter(|(name, _)| torus_codec::may_be_trailer(name)) {
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            fields.append(name, value);
        }
    }
    fields
}

fn write_fields(headers: &HeaderMap, fields: &mut http::HeaderMap) -> Result<(), Unencodable> {
    fields.reserve(headers.len());
    for (name, value) in headers.iter() {
        match Known::from_lower(name) {
            Some(
                Known::Host
                | Known::Connection
                | Known::KeepAlive
                | Known::ProxyConnection
                | Known::TransferEncoding
                | Known::Upgrade,
            ) => continue,
            // `expect` ends here or is passed on; both peers know it.
            _ if name.starts_with(b":") => continue,
            _ => {}
        }
        let name = HeaderName::from_bytes(name).map_err(|_| Unencodable::FieldName)?;
        let value = HeaderValue::from_bytes(value).map_err(|_| Unencodable::FieldValue)?;
        fields.append(name, value);
    }
    Ok(())
}

/// Makes `content-length` what the body is.
fn write_length(body: BodyLength, fields: &mut http::HeaderMap) {
    match body {
        BodyLength::Length(length) => {
            fields.insert(http::header::CONTENT_LENGTH, HeaderValue::from(length));
        }
        BodyLength::Empty => {
            if let http::header::Entry::Occupied(mut entry) = fields.entry(http::header::CONTENT_LENGTH) {
                entry.insert(HeaderValue::from(0));
            }
        }
        BodyLength::Chunked | BodyLength::UntilClose => {
            fields.remove(http::header::CONTENT_LENGTH);
        }
    }
}
