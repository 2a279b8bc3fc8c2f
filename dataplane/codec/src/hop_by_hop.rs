//! Fields that end at this proxy (RFC 9110 §7.6.1).

use crate::{HeaderMap, Known, bytes};

/// Removes the fields that are meant for this connection only: `connection` and what it nominates, `keep-alive`, `proxy-connection`,
/// `transfer-encoding`, `te` except `trailers`, and `upgrade`.
///
/// With `keep_upgrade`, `upgrade` stays and `connection` becomes `upgrade`, for a request whose upgrade is configured and for its 101.
/// A nomination never removes a field that says where the message comes from, whom it is for or how long it is: a client could
/// otherwise make the backend forget what the proxy knows. Call this before the proxy adds fields of its own.
pub fn remove_hop_by_hop(headers: &mut HeaderMap, keep_upgrade: bool) {
    let upgrade = keep_upgrade && headers.may_have(Known::Upgrade);
    if headers.may_have(Known::Connection) {
        headers.remove_nominated(is_protected);
        headers.remove_known(Known::Connection);
    }
    headers.remove_known(Known::KeepAlive);
    headers.remove_known(Known::ProxyConnection);
    headers.remove_known(Known::TransferEncoding);
    if headers.may_have(Known::Te) {
        let trailers = headers.get_all_known(Known::Te).flat_map(bytes::list).any(is_trailers);
        if trailers {
            headers.set_known(Known::Te, b"trailers");
        } else {
            headers.remove_known(Known::Te);
        }
    }
    if upgrade {
        headers.set_known(Known::Connection, b"upgrade");
    } else {
        headers.remove_known(Known::Upgrade);
    }
}

fn is_trailers(coding: &[u8]) -> bool {
    // `trailers` takes no weight (RFC 9110 §10.1.4).
    coding.eq_ignore_ascii_case(b"trailers")
}

fn is_protected(name: &[u8]) -> bool {
    name.starts_with(b":")
        || name.starts_with(b"x-forwarded-")
        || name.starts_with(b"x-envoy-")
        || PROTECTED.iter().any(|protected| name == protected.as_bytes())
}

/// Fields that no nomination removes, besides `x-forwarded-*` and `x-envoy-*`. `te` and `upgrade` have rules of their own.
const PROTECTED: &[&str] =
    &["host", "content-length", "forwarded", "x-request-id", "x-client-trace-id", "traceparent", "te", "upgrade"];
