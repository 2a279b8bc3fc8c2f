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

#[cfg(test)]
mod tests {
    use super::*;

    fn check(fields: &[(&str, &str)], keep_upgrade: bool, expected: &[(&str, &str)]) {
        let mut map = HeaderMap::default();
        for (name, value) in fields {
            map.append_wire(name.as_bytes(), value.as_bytes());
        }
        remove_hop_by_hop(&mut map, keep_upgrade);
        let expected = expected.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())).collect::<Vec<_>>();
        assert_eq!(map.iter().collect::<Vec<_>>(), expected, "{fields:?}");
    }

    #[test]
    fn nominated_fields_go() {
        check(
            &[("connection", "close, X-A ,,x-b"), ("X-A", "1"), ("x-b", "2"), ("x-a", "3"), ("x-c", "4")],
            false,
            &[("x-c", "4")],
        );
        check(&[("x-a", "1"), ("connection", "close"), ("connection", "x-a"), ("x-b", "2")], false, &[("x-b", "2")]);
        check(&[("connection", "connection, x-a"), ("connection", "x-b"), ("x-a", "1"), ("x-b", "2")], false, &[]);
        check(&[("connection", "authorization, cookie"), ("cookie", "a"), ("authorization", "b")], false, &[]);
    }

    #[test]
    fn what_the_proxy_knows_stays() {
        let kept = [
            (":path", "/"),
            ("content-length", "5"),
            ("x-forwarded-for", "1"),
            ("x-forwarded-client-cert", "2"),
            ("x-request-id", "3"),
            ("x-envoy-internal", "true"),
            ("forwarded", "for=x"),
        ];
        let names = kept.map(|(name, _)| name).join(", ");
        let mut fields = kept.to_vec();
        fields.push(("connection", &names));
        check(&fields, false, &kept);
    }

    #[test]
    fn fields_of_the_connection_go() {
        let fields = [
            ("keep-alive", "5"),
            ("proxy-connection", "close"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("a", "b"),
        ];
        check(&fields, false, &[("a", "b")]);
    }

    #[test]
    fn te_keeps_trailers_only() {
        check(&[("te", "trailers")], false, &[("te", "trailers")]);
        check(&[("te", "deflate;q=0.5, Trailers"), ("te", "gzip"), ("connection", "te")], false, &[("te", "trailers")]);
        check(&[("te", "gzip")], false, &[]);
    }

    #[test]
    fn upgrade_stays_where_it_is_wanted() {
        let fields = [("connection", "Upgrade, x-a"), ("upgrade", "websocket"), ("x-a", "1")];
        check(&fields, true, &[("upgrade", "websocket"), ("connection", "upgrade")]);
        check(&fields, false, &[]);
        check(&[("connection", "upgrade"), ("b", "c")], true, &[("b", "c")]);
    }
}
