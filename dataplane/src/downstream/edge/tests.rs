//! Every expectation here was observed on Envoy 1.40.

use std::net::{Ipv4Addr, SocketAddr};

use super::*;
use crate::config::cidr::Cidr;
use crate::downstream::{StripPort, UserAgent};

const LOCAL: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

fn connection(peer: &str) -> ConnectionInfo {
    let direct_remote = match peer.strip_prefix('@') {
        Some(_) => Address::Pipe(std::path::Path::new(peer).into()),
        None => Address::Ip(SocketAddr::new(peer.parse().unwrap(), 1234)),
    };
    let local = "127.0.0.1:8080".parse().map(Address::Ip).unwrap();
    ConnectionInfo { id: 1, ..ConnectionInfo::new(direct_remote, local) }
}

fn behind() -> EdgeOptions {
    EdgeOptions {
        generate_request_id: true,
        reset_trace_reason: true,
        local_ip: Some(LOCAL.into()),
        ..Default::default()
    }
}

fn at_edge() -> EdgeOptions {
    EdgeOptions { use_remote_address: true, ..behind() }
}

fn internal(options: EdgeOptions) -> EdgeOptions {
    let ranges = [("10.0.0.0", 8), ("127.0.0.0", 8), ("::1", 128)];
    let range = |(network, bits): (&str, u8)| Cidr::new(network.parse().unwrap(), bits).unwrap();
    EdgeOptions { internal_ranges: ranges.into_iter().map(range).collect(), ..options }
}

fn head(fields: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::default();
    headers.append_known(Known::Method, b"GET");
    if !fields.iter().any(|(name, _)| *name == ":path") {
        headers.append_known(Known::Path, b"/");
    }
    for (name, value) in fields {
        headers.append_wire(name.as_bytes(), value.as_bytes());
    }
    headers
}

fn run(options: &EdgeOptions, peer: &str, fields: &[(&str, &str)]) -> (HeaderMap, Result<Prepared, EdgeRefusal>) {
    let mut headers = head(fields);
    let mut random = Random::seeded(1);
    let internal_only = [torus_codec::HeaderName::new("x-internal-only").unwrap()];
    let connection = connection(peer);
    let scratch = &mut Scratch::default();
    let result = apply_request_rules(options, &connection, &mut headers, &internal_only, scratch, &mut random);
    (headers, result)
}

fn text(headers: &HeaderMap, known: Known) -> String {
    String::from_utf8(headers.get_known(known).unwrap_or(b"-").to_vec()).unwrap()
}

#[test]
fn the_client_is_found_and_the_peer_appended() {
    /// Peer, `x-forwarded-for`; then `x-forwarded-for`, `x-envoy-external-address`, `x-envoy-internal`, remote.
    type Row = (&'static str, &'static str, &'static str, &'static str, &'static str, &'static str);
    let check = |name: &str, options: &EdgeOptions, rows: &[Row]| {
        for (peer, before, after, external, internal, remote) in rows {
            let fields: &[(&str, &str)] = if *before == "-" { &[] } else { &[("x-forwarded-for", before)] };
            let (headers, prepared) = run(options, peer, fields);
            let prepared = prepared.unwrap();
            let found = [
                text(&headers, Known::XForwardedFor),
                text(&headers, Known::XEnvoyExternalAddress),
                text(&headers, Known::XEnvoyInternal),
                prepared.remote.to_string(),
            ];
            assert_eq!(found, [*after, *external, *internal, *remote], "{name}: {peer} {before}");
            assert_eq!(prepared.internal, *internal == "true");
        }
    };
    check(
        "behind another proxy",
        &behind(),
        &[
            ("127.0.0.1", "-", "-", "-", "-", "127.0.0.1:1234"),
            ("127.0.0.1", "10.9.9.9", "10.9.9.9", "-", "-", "10.9.9.9:0"),
            ("1.2.3.4", "8.8.8.8, 10.9.9.9", "8.8.8.8, 10.9.9.9", "-", "-", "10.9.9.9:0"),
            ("1.2.3.4", "junk", "junk", "-", "-", "1.2.3.4:1234"),
            ("1.2.3.4", "1.1.1.1, junk", "1.1.1.1, junk", "-", "-", "1.2.3.4:1234"),
            ("1.2.3.4", "2001:db8::1", "2001:db8::1", "-", "-", "[2001:db8::1]:0"),
        ],
    );
    check(
        "behind, internal ranges",
        &internal(behind()),
        &[
            ("1.2.3.4", "10.0.0.1", "10.0.0.1", "-", "true", "10.0.0.1:0"),
            ("1.2.3.4", "8.8.8.8", "8.8.8.8", "-", "-", "8.8.8.8:0"),
            ("1.2.3.4", "8.8.8.8, 10.0.0.1", "8.8.8.8, 10.0.0.1", "-", "-", "10.0.0.1:0"),
            ("1.2.3.4", "::1", "::1", "-", "true", "[::1]:0"),
            ("10.0.0.1", "-", "-", "-", "-", "10.0.0.1:1234"),
            ("10.0.0.1", "", "", "-", "-", "10.0.0.1:1234"),
        ],
    );
    check(
        "behind, one trusted hop",
        &internal(EdgeOptions { trusted_hop_count: 1, ..behind() }),
        &[
            ("1.2.3.4", "8.8.8.8", "8.8.8.8", "-", "-", "1.2.3.4:1234"),
            ("1.2.3.4", "8.8.8.8, 10.9.9.9", "8.8.8.8, 10.9.9.9", "-", "-", "8.8.8.8:0"),
            ("1.2.3.4", "10.0.0.1, 8.8.8.8", "10.0.0.1, 8.8.8.8", "-", "-", "10.0.0.1:0"),
            ("1.2.3.4", "10.0.0.1", "10.0.0.1", "-", "-", "1.2.3.4:1234"),
            ("1.2.3.4", "1.1.1.1, junk", "1.1.1.1, junk", "-", "-", "1.1.1.1:0"),
        ],
    );
    check(
        "at the edge",
        &at_edge(),
        &[
            ("127.0.0.1", "-", "192.0.2.2", "127.0.0.1", "-", "127.0.0.1:1234"),
            ("::1", "8.8.8.8", "8.8.8.8,192.0.2.2", "::1", "-", "[::1]:1234"),
            ("127.0.0.2", "-", "127.0.0.2", "127.0.0.2", "-", "127.0.0.2:1234"),
            ("10.1.2.3", "-", "10.1.2.3", "10.1.2.3", "-", "10.1.2.3:1234"),
            ("1.2.3.4", "8.8.8.8, 10.9.9.9", "8.8.8.8, 10.9.9.9,1.2.3.4", "1.2.3.4", "-", "1.2.3.4:1234"),
            ("fd00::1", "junk", "junk,fd00::1", "fd00::1", "-", "[fd00::1]:1234"),
            ("10.0.0.1", "", "10.0.0.1", "10.0.0.1", "-", "10.0.0.1:1234"),
        ],
    );
    check(
        "at the edge, internal ranges",
        &internal(at_edge()),
        &[
            ("10.1.2.3", "-", "10.1.2.3", "-", "true", "10.1.2.3:1234"),
            ("10.1.2.3", "10.9.9.9", "10.9.9.9,10.1.2.3", "10.1.2.3", "-", "10.1.2.3:1234"),
            ("::1", "-", "192.0.2.2", "-", "true", "[::1]:1234"),
            ("1.2.3.4", "-", "1.2.3.4", "1.2.3.4", "-", "1.2.3.4:1234"),
            ("10.0.0.1", "", "10.0.0.1", "10.0.0.1", "-", "10.0.0.1:1234"),
        ],
    );
    check(
        "at the edge, one trusted hop",
        &EdgeOptions { trusted_hop_count: 1, ..at_edge() },
        &[
            ("127.0.0.1", "10.9.9.9", "10.9.9.9,192.0.2.2", "10.9.9.9", "-", "10.9.9.9:0"),
            ("1.2.3.4", "8.8.8.8, 10.9.9.9", "8.8.8.8, 10.9.9.9,1.2.3.4", "10.9.9.9", "-", "10.9.9.9:0"),
            ("1.2.3.4", "junk", "junk,1.2.3.4", "1.2.3.4", "-", "1.2.3.4:1234"),
            ("1.2.3.4", "[2001:db8::1]", "[2001:db8::1],1.2.3.4", "1.2.3.4", "-", "1.2.3.4:1234"),
            ("1.2.3.4", "1.2.3.4:555", "1.2.3.4:555,1.2.3.4", "1.2.3.4", "-", "1.2.3.4:1234"),
            ("1.2.3.4", "2001:DB8:0:0::1", "2001:DB8:0:0::1,1.2.3.4", "2001:db8::1", "-", "[2001:db8::1]:0"),
        ],
    );
    check(
        "at the edge, two trusted hops",
        &EdgeOptions { trusted_hop_count: 2, ..at_edge() },
        &[
            ("1.2.3.4", "10.9.9.9", "10.9.9.9,1.2.3.4", "1.2.3.4", "-", "1.2.3.4:1234"),
            ("1.2.3.4", "8.8.8.8,9.9.9.9,10.9.9.9", "8.8.8.8,9.9.9.9,10.9.9.9,1.2.3.4", "9.9.9.9", "-", "9.9.9.9:0"),
            ("1.2.3.4", "1.1.1.1, junk", "1.1.1.1, junk,1.2.3.4", "1.1.1.1", "-", "1.1.1.1:0"),
        ],
    );
    check(
        "at the edge, no append",
        &internal(EdgeOptions { skip_forwarded_for_append: true, ..at_edge() }),
        &[
            ("10.0.0.1", "-", "-", "-", "true", "10.0.0.1:1234"),
            ("10.0.0.1", "10.0.0.1", "10.0.0.1", "10.0.0.1", "-", "10.0.0.1:1234"),
            ("1.2.3.4", "10.0.0.1", "10.0.0.1", "1.2.3.4", "-", "1.2.3.4:1234"),
        ],
    );
    check(
        "unix socket",
        &EdgeOptions { unix_sockets_internal: true, ..at_edge() },
        &[("@peer", "-", "-", "-", "true", "@peer"), ("@peer", "8.8.8.8", "8.8.8.8", "-", "-", "@peer")],
    );
}

#[test]
fn scheme_and_forwarded_proto() {
    let check = |options: &EdgeOptions, scheme: &str, forwarded: &str, expect: [&str; 2]| {
        let fields = [(":scheme", scheme), ("x-forwarded-proto", forwarded)];
        let fields: Vec<_> = fields.into_iter().filter(|(_, value)| *value != "-").collect();
        let (headers, prepared) = run(options, "1.2.3.4", &fields);
        prepared.unwrap();
        let found = [text(&headers, Known::Scheme), text(&headers, Known::XForwardedProto)];
        assert_eq!(found, expect, "{scheme} {forwarded}");
    };
    let behind = behind();
    check(&behind, "-", "-", ["http", "http"]);
    check(&behind, "-", "https", ["https", "https"]);
    check(&behind, "-", "HTTPS", ["https", "HTTPS"]);
    check(&behind, "-", "ftp", ["http", "ftp"]);
    check(&behind, "-", "https, http", ["http", "https, http"]);
    check(&behind, "https", "-", ["https", "http"]);
    check(&behind, "https", "http", ["https", "http"]);
    let at_edge = at_edge();
    check(&at_edge, "-", "https", ["http", "http"]);
    check(&at_edge, "http", "ftp", ["http", "http"]);
    let trusted = EdgeOptions { trusted_hop_count: 1, ..at_edge };
    check(&trusted, "-", "https", ["https", "https"]);
    check(&trusted, "https", "-", ["https", "http"]);
    let overwritten = EdgeOptions { scheme_overwrite: Some("https".into()), ..behind };
    check(&overwritten, "http", "http", ["https", "https"]);
    check(&overwritten, "-", "-", ["https", "https"]);
}

#[test]
fn requests_that_get_no_further() {
    let check = |options: &EdgeOptions, fields: &[(&str, &str)], expect: EdgeRefusal| {
        assert_eq!(run(options, "1.2.3.4", fields).1, Err(expect), "{fields:?}");
    };
    check(&at_edge(), &[(":scheme", "https")], EdgeRefusal::HttpsOnPlaintext);
    check(&behind(), &[(":path", "*")], EdgeRefusal::PathNotAbsolute);
}

#[test]
fn paths_become_canonical() {
    use crate::downstream::EscapedSlashes::{Keep, Reject, UnescapeAndForward, UnescapeAndRedirect};
    let check = |options: &EdgeOptions, before: &str, expect: Result<&str, EdgeRefusal>| {
        let (headers, result) = run(options, "1.2.3.4", &[(":path", before)]);
        assert_eq!(result.map(|_| text(&headers, Known::Path)), expect.map(str::to_owned), "{before}");
    };
    let off = behind();
    for path in ["/a/../b", "/a//b", "/a%2fb", "/a\\b", "/%41"] {
        check(&off, path, Ok(path));
    }
    let on = EdgeOptions { normalize_path: true, escaped_slashes: Keep, ..behind() };
    for (before, after) in [
        ("/a/../b", "/b"),
        ("/a/./b/", "/a/b/"),
        ("/a//b", "/a//b"),
        ("/a%2Fb", "/a%2Fb"),
        ("/a%5cb", "/a%5cb"),
        ("/a\\b", "/a/b"),
        ("/%7Ea/%41", "/~a/A"),
        ("/a/..%2fb", "/a/..%2fb"),
        ("/../x", "/x"),
        ("/a/..", "/"),
        ("/a/.", "/a/"),
        ("/a%zz", "/a%zz"),
        ("/a?x=/../y", "/a?x=/../y"),
        ("/a;p/../b", "/b"),
        ("/%2e%2e/x", "/x"),
        ("/..;/x", "/x"),
        ("//", "//"),
    ] {
        check(&on, before, Ok(after));
    }
    check(&on, "/a%00b", Err(EdgeRefusal::PathNormalizationFailed));
    let merged = EdgeOptions { merge_slashes: true, ..on.clone() };
    check(&merged, "/a//b", Ok("/a/b"));
    check(&merged, "//a//b///c?d//e", Ok("/a/b/c?d//e"));
    check(&EdgeOptions { merge_slashes: true, ..behind() }, "/a/..//b", Ok("/a/../b"));
    let rejected = EdgeOptions { escaped_slashes: Reject, ..on.clone() };
    for path in ["/a%2Fb", "/a%5cb", "/a/..%2fb", "/a%2fb%2F..%2fc?q=%2f"] {
        check(&rejected, path, Err(EdgeRefusal::PathNormalizationFailed));
    }
    check(&rejected, "/a?%2f", Ok("/a?%2f"));
    let forwarded = EdgeOptions { escaped_slashes: UnescapeAndForward, ..on.clone() };
    check(&forwarded, "/a/..%2fb", Ok("/b"));
    check(&forwarded, "/a%2fb%2F..%2fc?q=%2f", Ok("/a/c?q=%2f"));
    let redirected = EdgeOptions { escaped_slashes: UnescapeAndRedirect, ..on };
    let (headers, result) = run(&redirected, "1.2.3.4", &[(":path", "/a%2fb%2F..%2fc?q=%2f")]);
    assert_eq!(
        (result, text(&headers, Known::Path).as_str()),
        (Err(EdgeRefusal::RedirectToNormalizedPath), "/a/c?q=%2f")
    );
    check(&redirected, "/a/../b", Ok("/b"));
}

#[test]
fn a_client_outside_cannot_steer_the_proxy() {
    const STEERING: &[&str] = &[
        "x-envoy-retry-on",
        "x-envoy-retry-grpc-on",
        "x-envoy-max-retries",
        "x-envoy-upstream-alt-stat-name",
        "x-envoy-upstream-rq-timeout-ms",
        "x-envoy-upstream-rq-per-try-timeout-ms",
        "x-envoy-upstream-rq-timeout-alt-response",
        "x-envoy-expected-rq-timeout-ms",
        "x-envoy-force-trace",
        "x-envoy-ip-tags",
        "x-envoy-hedge-on-per-try-timeout",
        "x-envoy-retriable-header-names",
        "x-envoy-retriable-status-codes",
        "x-envoy-upstream-stream-duration-ms",
        "x-internal-only",
    ];
    const EDGE: &[&str] = &[
        "x-envoy-decorator-operation",
        "x-envoy-downstream-service-cluster",
        "x-envoy-downstream-service-node",
        "x-envoy-original-path",
        "x-envoy-original-host",
    ];
    const HARMLESS: &[&str] = &[
        "x-envoy-attempt-count",
        "x-envoy-is-timeout-retry",
        "x-envoy-immediate-health-check-fail",
        "x-envoy-degraded",
        "x-envoy-overloaded",
        "x-envoy-peer-metadata",
        "x-envoy-whatever",
    ];
    let check = |options: EdgeOptions, kept: [bool; 3]| {
        for (names, kept) in [STEERING, EDGE, HARMLESS].into_iter().zip(kept) {
            for name in names {
                let (headers, prepared) = run(&options, "10.0.0.1", &[(name, "1")]);
                prepared.unwrap();
                let found = headers.iter().any(|(found, value)| found == name.as_bytes() && value == b"1");
                assert_eq!(found, kept, "{name}");
            }
        }
        let (headers, _) = run(&options, "10.0.0.1", &[("x-forwarded-client-cert", "By=a")]);
        assert_eq!(text(&headers, Known::XForwardedClientCert), "-");
    };
    check(behind(), [false, true, true]);
    check(at_edge(), [false, false, true]);
    check(internal(at_edge()), [true, true, true]);
}

#[test]
fn internal_and_external_address_cannot_be_forged() {
    let forged = [("x-envoy-internal", "true"), ("x-envoy-external-address", "9.9.9.9")];
    let check = |options: EdgeOptions, expect: [&str; 2]| {
        let (headers, _) = run(&options, "10.0.0.1", &forged);
        assert_eq!([text(&headers, Known::XEnvoyInternal), text(&headers, Known::XEnvoyExternalAddress)], expect);
    };
    check(behind(), ["-", "9.9.9.9"]);
    check(at_edge(), ["-", "10.0.0.1"]);
    check(internal(at_edge()), ["true", "9.9.9.9"]);
}

#[test]
fn request_ids() {
    const ID: &str = "a4f7b7ae-9e4f-4a1b-8a4b-1f0b9d7e6c11";
    const TRACED: &str = "a4f7b7ae-9e4f-9a1b-8a4b-1f0b9d7e6c11";
    /// `new` stands for a generated one.
    fn check(options: &EdgeOptions, before: &str, expect: &str) {
        let fields: &[(&str, &str)] = if before == "-" { &[] } else { &[("x-request-id", before)] };
        let (headers, _) = run(options, "127.0.0.1", fields);
        let generated = String::from_utf8(request_id::generate(&mut Random::seeded(1)).to_vec()).unwrap();
        let expect = if expect == "new" { &generated } else { expect };
        assert_eq!(text(&headers, Known::XRequestId), expect, "{before}");
    }
    check(&behind(), "-", "new");
    check(&behind(), "", "new");
    check(&behind(), "junk", "junk");
    check(&behind(), TRACED, TRACED);
    check(&at_edge(), ID, "new");
    check(&internal(at_edge()), TRACED, TRACED);
    let kept = EdgeOptions { preserve_external_request_id: true, ..at_edge() };
    check(&kept, "-", "new");
    check(&kept, TRACED, ID);
    check(&kept, "junk", "junk");
    check(&EdgeOptions { reset_trace_reason: false, ..kept }, TRACED, TRACED);
    let off = EdgeOptions { generate_request_id: false, ..at_edge() };
    check(&off, "-", "-");
    check(&off, "junk", "junk");
}

#[test]
fn ports_via_and_user_agent() {
    let check = |options: &EdgeOptions, fields: &[(&str, &str)], known: Known, expect: &str| {
        assert_eq!(text(&run(options, "1.2.3.4", fields).0, known), expect, "{fields:?}");
    };
    let port = EdgeOptions { append_forwarded_port: true, ..at_edge() };
    check(&port, &[], Known::XForwardedPort, "8080");
    check(&port, &[("x-forwarded-port", "1")], Known::XForwardedPort, "8080");
    check(&EdgeOptions { trusted_hop_count: 1, ..port }, &[("x-forwarded-port", "1")], Known::XForwardedPort, "1");
    let port = EdgeOptions { append_forwarded_port: true, ..behind() };
    check(&port, &[], Known::XForwardedPort, "8080");
    check(&port, &[("x-forwarded-port", "1")], Known::XForwardedPort, "1");
    let via = EdgeOptions { via: "gw".into(), ..behind() };
    check(&via, &[], Known::Via, "gw");
    check(&via, &[("via", "1.1 foo")], Known::Via, "1.1 foo, gw");
    check(&via, &[("via", "")], Known::Via, "gw");
    let named = UserAgent { cluster: "cluster".into(), node: "node".into() };
    let named = EdgeOptions { user_agent: Some(named), ..at_edge() };
    check(&named, &[], Known::UserAgent, "cluster");
    check(&named, &[("user-agent", "")], Known::UserAgent, "cluster");
    check(&named, &[("user-agent", "x")], Known::UserAgent, "x");
    check(&named, &[("user-agent", "x")], Known::XEnvoyDownstreamServiceCluster, "cluster");
    check(&named, &[], Known::XEnvoyDownstreamServiceNode, "node");
}

#[test]
fn fields_are_added_in_envoys_order() {
    let named = UserAgent { cluster: "c".into(), node: "n".into() };
    let options = EdgeOptions { via: "gw".into(), append_forwarded_port: true, user_agent: Some(named), ..at_edge() };
    let (headers, _) = run(&options, "1.2.3.4", &[(":scheme", "http"), ("accept", "*/*")]);
    let names: Vec<String> = headers.iter().map(|(name, _)| String::from_utf8(name.to_vec()).unwrap()).collect();
    let expect = [
        ":path",
        ":method",
        ":scheme",
        "accept",
        "x-forwarded-for",
        "x-forwarded-proto",
        "x-forwarded-port",
        "x-envoy-downstream-service-cluster",
        "user-agent",
        "x-envoy-downstream-service-node",
        "via",
        "x-envoy-external-address",
        "x-request-id",
    ];
    assert_eq!(names[2..], expect[2..]);
}

#[test]
fn repeated_fields_become_one() {
    let check = |name: &str, joined: bool| {
        let (headers, _) = run(&behind(), "1.2.3.4", &[(name, "one"), ("x-other", "a"), (name, "two")]);
        let values: Vec<_> = headers.iter().filter(|(found, _)| *found == name.as_bytes()).map(|(_, v)| v).collect();
        let expect: &[&[u8]] = if joined { &[b"one,two"] } else { &[b"one", b"two"] };
        assert_eq!(values, expect, "{name}");
    };
    for name in ["accept", "accept-encoding", "authorization", "cache-control", "content-type", "origin", "referer"] {
        check(name, true);
    }
    for name in ["user-agent", "x-forwarded-for", "x-forwarded-host", "x-request-id", "x-client-trace-id", "via"] {
        check(name, true);
    }
    for name in ["cookie", "accept-language", "traceparent", "etag", "date", "server", "x-foo", "proxy-authorization"] {
        check(name, false);
    }
}

#[test]
fn hop_by_hop_fields_end_here() {
    let check = |fields: &[(&str, &str)], expect: &[&str]| {
        let (headers, _) = run(&behind(), "1.2.3.4", fields);
        let left =
            headers.iter().map(|(n, v)| format!("{}: {}", String::from_utf8_lossy(n), String::from_utf8_lossy(v)));
        let ours = [":method", ":path", ":scheme", "x-forwarded-proto", "x-request-id"];
        let left: Vec<String> = left.filter(|line| !ours.iter().any(|name| line.starts_with(name))).collect();
        assert_eq!(left, expect, "{fields:?}");
    };
    check(&[("connection", "x-foo, close"), ("x-foo", "1"), ("keep-alive", "5"), ("proxy-connection", "x")], &[]);
    check(&[("te", "trailers, gzip"), ("trailer", "x")], &["te: trailers", "trailer: x"]);
    check(&[("te", "gzip")], &[]);
    check(&[("te", "trailers"), ("connection", "te")], &["te: trailers"]);
    check(&[("upgrade", "websocket")], &[]);
    check(&[("connection", "Upgrade"), ("upgrade", "websocket")], &["upgrade: websocket", "connection: upgrade"]);
    check(&[("connection", "upgrade, http2-settings"), ("upgrade", "h2c"), ("http2-settings", "a")], &[]);
    check(
        &[("connection", "x-forwarded-for, x-request-id"), ("x-forwarded-for", "1.1.1.1")],
        &["x-forwarded-for: 1.1.1.1"],
    );
}

#[test]
fn port_and_trailing_dot_of_the_host() {
    let check = |strip_port: StripPort, strip_trailing_dot: bool, before: &str, after: &str| {
        let options = EdgeOptions { strip_port, strip_trailing_dot, ..behind() };
        let (headers, _) = run(&options, "1.2.3.4", &[(":authority", before)]);
        assert_eq!(text(&headers, Known::Authority), after, "{strip_port:?} {strip_trailing_dot} {before}");
    };
    use StripPort::{Any, Keep, Matching};
    for host in ["h.com", "h.com:81", "h.com.:81", "[::1]:81", "h.com:080", "a:b"] {
        check(Matching, false, host, host);
        check(Keep, false, host, host);
    }
    check(Matching, false, "h.com:8080", "h.com");
    for (before, after) in [
        ("h.com", "h.com"),
        ("h.com:81", "h.com"),
        ("h.com:080", "h.com"),
        ("h.com:", "h.com:"),
        ("h.com.:81", "h.com."),
        ("[::1]:81", "[::1]"),
        ("[::1]", "[::1]"),
        ("[::1]:", "[::1]:"),
        ("h:x1", "h:x1"),
        ("1.2.3.4:80", "1.2.3.4"),
    ] {
        check(Any, false, before, after);
    }
    for (before, after) in [
        ("h.com.", "h.com"),
        ("h.com.:81", "h.com:81"),
        ("h.com..", "h.com."),
        ("[::1].", "[::1]"),
        (".", ""),
        ("..", "."),
        ("h.com:", "h.com:"),
        ("a:b", "a:b"),
    ] {
        check(Keep, true, before, after);
    }
    check(Any, true, "h.com.:81", "h.com");
}

#[test]
fn replies() {
    let check = |options: &EdgeOptions,
                 server: ServerHeader,
                 request: &[(&str, &str)],
                 reply: &[(&str, &str)],
                 expect: &str| {
        let mut headers = HeaderMap::default();
        for (name, value) in reply {
            headers.append_wire(name.as_bytes(), value.as_bytes());
        }
        apply_response_rules(options, server, "envoy", &head(request), b"now", &mut headers, &mut Scratch::default());
        let found: Vec<String> = headers
            .iter()
            .map(|(n, v)| format!("{}: {}", String::from_utf8_lossy(n), String::from_utf8_lossy(v)))
            .collect();
        assert_eq!(found.join(" | "), expect);
    };
    use ServerHeader::{AppendIfAbsent, Overwrite, PassThrough};
    let plain = behind();
    let via = EdgeOptions { via: "gw".into(), request_id_in_response: true, ..behind() };
    check(&plain, Overwrite, &[], &[("content-length", "0")], "content-length: 0 | date: now | server: envoy");
    check(&plain, Overwrite, &[], &[("server", "up"), ("date", "x")], "server: envoy | date: x");
    check(&plain, Overwrite, &[], &[("server", "a"), ("server", "b")], "server: envoy | date: now");
    check(&plain, AppendIfAbsent, &[], &[("server", "a"), ("server", "b")], "server: a,b | date: now");
    check(&plain, AppendIfAbsent, &[], &[], "date: now | server: envoy");
    check(&plain, PassThrough, &[], &[], "date: now");
    check(&plain, PassThrough, &[], &[("server", "up")], "server: up | date: now");
    check(&plain, PassThrough, &[("x-request-id", "r")], &[], "date: now");
    check(
        &plain,
        PassThrough,
        &[("x-request-id", "r"), ("x-envoy-force-trace", "1")],
        &[],
        "date: now | x-request-id: r",
    );
    check(&via, Overwrite, &[("x-request-id", "r")], &[], "date: now | server: envoy | x-request-id: r | via: gw");
    check(
        &via,
        Overwrite,
        &[],
        &[("via", "1.0 up"), ("x-request-id", "mine")],
        "via: 1.0 up, gw | x-request-id: mine | date: now | server: envoy",
    );
    check(
        &plain,
        PassThrough,
        &[],
        &[("set-cookie", "a"), ("set-cookie", "b"), ("vary", "a"), ("vary", "b"), ("date", "x"), ("date", "y")],
        "set-cookie: a | set-cookie: b | vary: a,b | date: x,y",
    );
}
