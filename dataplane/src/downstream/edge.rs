//! Header rules of the HTTP connection manager: who the client is, which fields it may set, and what the proxy says of itself.
//!
//! Requests go through [`prepare_request`] before routing, replies through [`prepare_response`] before they are written. The order of
//! the steps and of added fields is Envoy's.
//! Source: Envoy's documentation, "HTTP header sanitizing" and "HTTP header manipulation"; each row of the tests was observed on
//! Envoy 1.40.

mod address;
mod client_cert;
mod host;
mod sanitize;

pub use self::client_cert::{ClientCertDetails, ForwardClientCert};
use torus_codec::path::{self, Outcome, PathError, PathOptions};
use torus_codec::{HeaderMap, Known};

use super::request_id;
use super::{ConnectionInfo, EdgeOptions, HttpConnectionManager, ServerHeader};
use crate::config::address::Address;
use crate::telemetry::stream_info::ResponseFlag;
use crate::worker::random::Random;

/// What the header rules found out about a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prepared {
    /// The client: the connection's peer, or the last untrusted address of `x-forwarded-for`. Port 0 where it has none.
    pub remote: Address,
    /// It comes from an internal address and may use `x-envoy-*` fields.
    pub internal: bool,
    /// It comes from outside to a proxy at the edge (`use_remote_address`).
    pub edge: bool,
}

/// Why a request gets no further than the header rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EdgeRefusal {
    /// An `https` target came over a connection without TLS, to a proxy that does not trust the peer.
    HttpsOnPlaintext,
    /// The target does not start with `/`.
    PathNotAbsolute,
    /// The path cannot be normalised, or has escaped slashes where those are rejected.
    PathNormalizationFailed,
    /// The client is to come back with the path that `:path` now has (307, `location`).
    RedirectToNormalizedPath,
}

impl EdgeRefusal {
    /// Status of the reply.
    pub fn status(self) -> u16 {
        match self {
            Self::HttpsOnPlaintext => 403,
            Self::PathNotAbsolute => 404,
            Self::PathNormalizationFailed => 400,
            Self::RedirectToNormalizedPath => 307,
        }
    }

    /// `RESPONSE_CODE_DETAILS`.
    pub fn details(self) -> &'static str {
        match self {
            Self::HttpsOnPlaintext => "http1.https_url_on_plaintext_connection",
            Self::PathNotAbsolute => "absolute_path_rejected",
            Self::PathNormalizationFailed | Self::RedirectToNormalizedPath => "path_normalization_failed",
        }
    }

    /// Body of the reply.
    pub fn body(self) -> &'static str {
        match self {
            Self::HttpsOnPlaintext => "Forbidden",
            Self::PathNotAbsolute | Self::PathNormalizationFailed | Self::RedirectToNormalizedPath => "",
        }
    }

    /// The response flag, if there is one.
    pub fn flag(self) -> Option<ResponseFlag> {
        match self {
            Self::HttpsOnPlaintext => Some(ResponseFlag::DownstreamProtocolError),
            Self::PathNotAbsolute | Self::PathNormalizationFailed | Self::RedirectToNormalizedPath => None,
        }
    }

    /// Whether the connection closes after the reply.
    pub fn closes(self) -> bool {
        match self {
            Self::HttpsOnPlaintext | Self::PathNormalizationFailed => true,
            Self::PathNotAbsolute | Self::RedirectToNormalizedPath => false,
        }
    }
}

/// Memory for building values, one a worker; after warm-up nothing here allocates.
#[derive(Debug, Default)]
pub struct Scratch {
    value: Vec<u8>,
}

/// Makes a request's head what routing and the upstream may rely on. `internal_only` comes with the route table and is removed from
/// external requests besides Envoy's own.
pub fn prepare_request(
    manager: &HttpConnectionManager,
    connection: &ConnectionInfo,
    headers: &mut HeaderMap,
    internal_only: &[torus_codec::HeaderName],
    scratch: &mut Scratch,
    random: &mut Random,
) -> Result<Prepared, EdgeRefusal> {
    apply_request_rules(&manager.edge, connection, headers, internal_only, scratch, random)
}

/// Makes a reply's head what the client is to see. `date` is an IMF-fixdate (RFC 9110 §5.6.7).
pub fn prepare_response(
    manager: &HttpConnectionManager,
    request: &HeaderMap,
    date: &[u8],
    headers: &mut HeaderMap,
    scratch: &mut Scratch,
) {
    apply_response_rules(&manager.edge, manager.server_header, &manager.server_name, request, date, headers, scratch);
}

fn apply_request_rules(
    options: &EdgeOptions,
    connection: &ConnectionInfo,
    headers: &mut HeaderMap,
    internal_only: &[torus_codec::HeaderName],
    scratch: &mut Scratch,
    random: &mut Random,
) -> Result<Prepared, EdgeRefusal> {
    headers.join_repeated(sanitize::JOINED_ON_REQUEST);
    let distrusted = options.use_remote_address && options.trusted_hop_count == 0;
    if distrusted && !connection.secure && headers.get_known(Known::Scheme).is_some_and(|scheme| scheme == b"https") {
        return Err(EdgeRefusal::HttpsOnPlaintext);
    }
    // `upgrade` stays until the route says whether it is allowed; before ours are added, so that a nomination cannot remove them.
    torus_codec::remove_hop_by_hop(headers, is_upgrade(headers));
    normalize_path(options, headers, scratch)?;
    host::normalize(options, &connection.local, headers, scratch);

    headers.remove_known(Known::XEnvoyInternal);
    let origin = address::establish(options, connection, headers, scratch);
    let own_scheme: &[u8] = if connection.secure { b"https" } else { b"http" };
    if distrusted || headers.get_known(Known::XForwardedProto).is_none() {
        headers.set_known(Known::XForwardedProto, own_scheme);
    }
    if options.append_forwarded_port
        && (distrusted || headers.get_known(Known::XForwardedPort).is_none())
        && let Some(local) = connection.local.ip()
    {
        let mut digits = [0; 5];
        headers.set_known(Known::XForwardedPort, decimal(local.port(), &mut digits));
    }
    let edge = options.use_remote_address && !origin.internal;
    if origin.internal {
        headers.set_known(Known::XEnvoyInternal, b"true");
    } else {
        sanitize::remove_untrusted(edge, internal_only, headers);
    }
    if let Some(user_agent) = &options.user_agent {
        headers.set_known(Known::XEnvoyDownstreamServiceCluster, user_agent.cluster.as_bytes());
        if is_blank(headers, Known::UserAgent) {
            headers.set_known(Known::UserAgent, user_agent.cluster.as_bytes());
        }
        if !user_agent.node.is_empty() {
            headers.set_known(Known::XEnvoyDownstreamServiceNode, user_agent.node.as_bytes());
        }
    }
    append_via(&options.via, headers, scratch);
    if edge && let Some(remote) = origin.remote.ip() {
        address::write_ip(remote.ip(), &mut scratch.value);
        headers.set_known(Known::XEnvoyExternalAddress, &scratch.value);
    }
    establish_request_id(options, edge, headers, random);
    let tls = connection.tls.as_deref();
    client_cert::apply(options.forward_client_cert, options.client_cert_details, tls, headers, &mut scratch.value);
    establish_scheme(options, own_scheme, headers);
    Ok(Prepared { remote: origin.remote, internal: origin.internal, edge })
}

fn apply_response_rules(
    options: &EdgeOptions,
    server_header: ServerHeader,
    server_name: &str,
    request: &HeaderMap,
    date: &[u8],
    headers: &mut HeaderMap,
    scratch: &mut Scratch,
) {
    headers.join_repeated(sanitize::JOINED_ON_RESPONSE);
    if headers.get_known(Known::Date).is_none() {
        headers.append_known(Known::Date, date);
    }
    match server_header {
        ServerHeader::Overwrite => headers.set_known(Known::Server, server_name.as_bytes()),
        ServerHeader::AppendIfAbsent if headers.get_known(Known::Server).is_none() => {
            headers.append_known(Known::Server, server_name.as_bytes());
        }
        ServerHeader::AppendIfAbsent | ServerHeader::PassThrough => {}
    }
    let forced = || request.get_known(Known::XEnvoyForceTrace).is_some();
    if (options.request_id_in_response || forced())
        && let Some(id) = request.get_known(Known::XRequestId)
    {
        headers.set_known(Known::XRequestId, id);
    }
    append_via(&options.via, headers, scratch);
}

fn normalize_path(options: &EdgeOptions, headers: &mut HeaderMap, scratch: &mut Scratch) -> Result<(), EdgeRefusal> {
    // CONNECT has no path.
    let Some(path) = headers.get_known(Known::Path) else { return Ok(()) };
    if path.first() != Some(&b'/') {
        return Err(EdgeRefusal::PathNotAbsolute);
    }
    let rules = PathOptions {
        normalize: options.normalize_path,
        merge_slashes: options.merge_slashes,
        escaped_slashes: options.escaped_slashes,
    };
    match path::normalize(path, rules, &mut scratch.value) {
        Ok(Outcome::Unchanged) => Ok(()),
        Ok(Outcome::Changed) => {
            headers.set_known(Known::Path, &scratch.value);
            Ok(())
        }
        Ok(Outcome::Redirect) => {
            headers.set_known(Known::Path, &scratch.value);
            Err(EdgeRefusal::RedirectToNormalizedPath)
        }
        Err(PathError::EscapedSlash | PathError::Nul) => Err(EdgeRefusal::PathNormalizationFailed),
    }
}

fn append_via(via: &str, headers: &mut HeaderMap, scratch: &mut Scratch) {
    if via.is_empty() {
        return;
    }
    scratch.value.clear();
    if let Some(before) = headers.get_known(Known::Via).filter(|before| !before.is_empty()) {
        scratch.value.extend_from_slice(before);
        scratch.value.extend_from_slice(b", ");
    }
    scratch.value.extend_from_slice(via.as_bytes());
    headers.set_known(Known::Via, &scratch.value);
}

fn establish_request_id(options: &EdgeOptions, edge: bool, headers: &mut HeaderMap, random: &mut Random) {
    if !options.generate_request_id {
        return;
    }
    let id = headers.get_known(Known::XRequestId).filter(|id| !id.is_empty());
    let id = match id {
        None => Some(request_id::generate(random)),
        Some(_) if !edge => None,
        Some(_) if !options.preserve_external_request_id => Some(request_id::generate(random)),
        // A client outside must not decide what is traced.
        Some(id) if options.reset_trace_reason => request_id::untraced(id),
        Some(_) => None,
    };
    if let Some(id) = id {
        headers.set_known(Known::XRequestId, &id);
    }
}

/// `:scheme` comes from the configuration, the absolute-form target, a known `x-forwarded-proto`, or the connection.
fn establish_scheme(options: &EdgeOptions, own_scheme: &[u8], headers: &mut HeaderMap) {
    if let Some(scheme) = &options.scheme_overwrite {
        headers.set_known(Known::Scheme, scheme.as_bytes());
        headers.set_known(Known::XForwardedProto, scheme.as_bytes());
    } else if is_blank(headers, Known::Scheme) {
        let forwarded = headers.get_known(Known::XForwardedProto).unwrap_or_default();
        let scheme: &[u8] = if forwarded.eq_ignore_ascii_case(b"https") {
            b"https"
        } else if forwarded.eq_ignore_ascii_case(b"http") {
            b"http"
        } else {
            own_scheme
        };
        headers.set_known(Known::Scheme, scheme);
    }
}

/// Whether the request asks for another protocol (RFC 9110 §7.8). `h2c` is never passed on: it would end what we see of the connection.
fn is_upgrade(headers: &HeaderMap) -> bool {
    let nominated = headers.get_all_known(Known::Connection).flat_map(|value| value.split(|byte| *byte == b','));
    let mut wanted = nominated.map(<[u8]>::trim_ascii).filter(|option| option.eq_ignore_ascii_case(b"upgrade"));
    let protocol = headers.get_known(Known::Upgrade).unwrap_or_default();
    wanted.next().is_some() && !protocol.eq_ignore_ascii_case(b"h2c")
}

fn is_blank(headers: &HeaderMap, known: Known) -> bool {
    headers.get_known(known).is_none_or(|value| value.is_empty())
}

fn decimal(number: u16, digits: &mut [u8; 5]) -> &[u8] {
    let mut rest = number;
    let mut start = digits.len();
    for (index, digit) in digits.iter_mut().enumerate().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
        start = index;
        if rest == 0 {
            break;
        }
    }
    digits.get(start..).unwrap_or_default()
}

#[cfg(test)]
mod tests;
