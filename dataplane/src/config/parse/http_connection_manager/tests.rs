use torus_codec::HeaderName;

use super::*;

/// Parses `fields` beside what is required.
fn parse_with(fields: &str) -> (Result<HttpConnectionManager, Refused>, Vec<String>) {
    let mut text = String::new();
    if !fields.contains("stat_prefix") {
        text.push_str("stat_prefix: in\n");
    }
    if !fields.contains("route_config") {
        text.push_str("route_config: {}\n");
    }
    if !fields.contains("http_filters") {
        text.push_str("http_filters: [{name: r, typed_config: {'@type': ");
        text.push_str(
            "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router, respect_expected_rq_timeout: true}}]\n",
        );
    }
    text.push_str(fields);
    let config: proto::HttpConnectionManager =
        torus_xds::from_yaml(&text).unwrap_or_else(|findings| panic!("{text}\n{findings:?}"));
    let mut context = ParseContext::new(1);
    let parsed = parse(&config.encode_to_vec(), "listener.a.", &mut context);
    assert_eq!(parsed.is_err(), context.problems.has_errors());
    (parsed, context.problems.iter().map(ToString::to_string).collect())
}

fn accepted(fields: &str) -> HttpConnectionManager {
    let (parsed, problems) = parse_with(fields);
    parsed.unwrap_or_else(|_| panic!("{fields}: {problems:?}"))
}

#[test]
fn defaults_are_envoys_and_ours_where_envoy_is_open() {
    let manager = accepted("");
    assert_eq!(manager.stats.prefix(), "http.in.");
    assert_eq!(manager.listener_stats.prefix(), "listener.a.http.in.");
    assert_eq!((manager.header_bytes_max, manager.header_count_max), (61_440, 100));
    let seconds = Duration::from_secs;
    let expect = HttpTimeouts {
        request_headers: Some(seconds(10)),
        request: None,
        stream_idle: Some(seconds(300)),
        idle: Some(seconds(3600)),
        connection_duration_max: None,
        connection_duration_waits: false,
        stream_duration_max: None,
        drain: seconds(5),
        delayed_close: seconds(1),
        write_progress: Some(seconds(30)),
    };
    assert_eq!(manager.timeouts, expect);
    assert_eq!((&*manager.server_name, manager.server_header), ("envoy", ServerHeader::Overwrite));
    assert!(manager.edge.generate_request_id && manager.edge.reset_trace_reason && !manager.edge.use_remote_address);
    assert!(manager.upgrades.is_empty() && manager.router.respect_expected_timeout);
    assert!(manager.router.dynamic_stats);
    assert_eq!(manager.requests_per_connection_max, None);
}

#[test]
fn zero_turns_a_timer_off() {
    let manager = accepted(
        "{request_headers_timeout: 0s, stream_idle_timeout: 0s, request_timeout: 0s, stream_flush_timeout: 0s, \
         delayed_close_timeout: 0s, common_http_protocol_options: {idle_timeout: 0s, max_stream_duration: 0s}, \
         stat_prefix: a, route_config: {}, http_filters: [{name: r, typed_config: {'@type': \
         type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]}",
    );
    let timeouts = manager.timeouts;
    assert_eq!((timeouts.request_headers, timeouts.stream_idle, timeouts.request), (None, None, None));
    assert_eq!((timeouts.write_progress, timeouts.idle, timeouts.stream_duration_max), (None, None, None));
    assert_eq!(timeouts.delayed_close, Duration::ZERO);
}

#[test]
fn what_is_wrong_is_named() {
    let check = |fields: &str, expect: &[&str]| {
        let (parsed, problems) = parse_with(fields);
        assert!(parsed.is_err(), "{fields}");
        assert_eq!(problems, expect, "{fields}");
    };
    check("stat_prefix: ''", &["stat_prefix: must not be empty"]);
    check("max_request_headers_kb: 0", &["max_request_headers_kb: must be from 1 to 8192, is 0"]);
    check("max_request_headers_kb: 8193", &["max_request_headers_kb: must be from 1 to 8192, is 8193"]);
    check(
        "common_http_protocol_options: {max_headers_count: 0, idle_timeout: -1s}",
        &[
            "common_http_protocol_options.max_headers_count: must be at least 1",
            "common_http_protocol_options.idle_timeout: must be a duration from 0s to 315576000000s",
        ],
    );
    check(
        "scheme_header_transformation: {scheme_to_overwrite: ftp}",
        &["scheme_header_transformation.scheme_to_overwrite: must be `http` or `https`"],
    );
    check(
        "strip_matching_host_port: true\nstrip_any_host_port: true",
        &["strip_any_host_port: only one of `strip_matching_host_port` and `strip_any_host_port` can be set"],
    );
    check(
        "internal_address_config: {cidr_ranges: [{address_prefix: 10.0.0.0, prefix_len: 129}, {address_prefix: x}]}",
        &[
            "internal_address_config.cidr_ranges[0].prefix_len: must be at most 128, is 129",
            "internal_address_config.cidr_ranges[1].address_prefix: malformed IP address `x`",
        ],
    );
    check("via: \"a\\nb\"", &["via: must not contain control characters"]);
    check(
        "upgrade_configs: [{upgrade_type: CONNECT-UDP}]",
        &["upgrade_configs[0].upgrade_type: `connect-udp` is not there yet in this version"],
    );
    check(
        "upgrade_configs: [{upgrade_type: websocket}, {upgrade_type: WebSocket}]",
        &["upgrade_configs[1].upgrade_type: `websocket` is there twice"],
    );
    check(
        "access_log_options: {access_log_flush_interval: 0s}",
        &["access_log_options.access_log_flush_interval: must be at least 1ms"],
    );
}

#[test]
fn the_router_ends_the_filters() {
    const ROUTER: &str =
        "{name: r, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}";
    const CORS: &str =
        "name: c, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors}";
    let check = |filters: &str, expect: &[&str]| {
        let (_, problems) = parse_with(&format!("http_filters: [{filters}]"));
        assert_eq!(problems, expect, "{filters}");
    };
    check(ROUTER, &[]);
    check("", &["http_filters: must end with `envoy.filters.http.router`"]);
    check(&format!("{ROUTER}, {ROUTER}"), &["http_filters[0]: the router must be the last filter of the chain"]);
    check(
        &format!("{{{CORS}}}, {ROUTER}"),
        &[
            "http_filters[0].typed_config: filter `envoy.extensions.filters.http.cors.v3.Cors` is not there yet in this version",
        ],
    );
    check(
        &format!("{{{CORS}, is_optional: true}}, {ROUTER}"),
        &[
            "http_filters[0].typed_config: filter `envoy.extensions.filters.http.cors.v3.Cors` is not there yet in this version; it is optional and left out",
        ],
    );
    check("{name: r}", &["http_filters[0].typed_config: is required"]);
    let strict = ROUTER.replace(".Router}", ".Router, strict_check_headers: [x-envoy-retry-on, x-foo]}");
    let (_, problems) = parse_with(&format!("http_filters: [{strict}]"));
    assert!(
        problems[0].starts_with("http_filters[0].typed_config.strict_check_headers[1]: `x-foo` is none of"),
        "{problems:?}"
    );
}

#[test]
fn every_option_arrives() {
    let manager = accepted(
        "
server_name: s
server_header_transformation: APPEND_IF_ABSENT
use_remote_address: true
xff_num_trusted_hops: 2
skip_xff_append: true
append_x_forwarded_port: true
via: gw
generate_request_id: false
preserve_external_request_id: true
always_set_request_id_in_response: true
request_id_extension: {typed_config: {'@type': type.googleapis.com/envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig, pack_trace_reason: false}}
internal_address_config: {unix_sockets: true, cidr_ranges: [{address_prefix: 10.0.0.0, prefix_len: 8}]}
normalize_path: true
merge_slashes: true
path_with_escaped_slashes_action: REJECT_REQUEST
strip_any_host_port: true
strip_trailing_host_dot: true
scheme_header_transformation: {scheme_to_overwrite: https, match_upstream: true}
add_user_agent: true
forward_client_cert_details: ALWAYS_FORWARD_ONLY
common_http_protocol_options: {headers_with_underscores_action: DROP_HEADER, max_requests_per_connection: 7, max_headers_count: 9}
http_protocol_options: {accept_http_10: true, default_host_for_http_10: h, header_key_format: {proper_case_words: {}}, enable_trailers: true, allow_absolute_url: false}
stream_error_on_invalid_http_message: true
upgrade_configs: [{upgrade_type: WebSocket}, {upgrade_type: other, enabled: false}]
proxy_100_continue: true
access_log_options: {flush_access_log_on_new_request: true, access_log_flush_interval: 1s}
route_config: {internal_only_headers: [X-Only]}
",
    );
    let edge = &manager.edge;
    assert!(edge.use_remote_address && edge.skip_forwarded_for_append && edge.append_forwarded_port);
    assert!(edge.preserve_external_request_id && edge.request_id_in_response && !edge.generate_request_id);
    assert!(!edge.reset_trace_reason && edge.unix_sockets_internal && edge.internal_ranges.len() == 1);
    assert!(edge.normalize_path && edge.merge_slashes && edge.escaped_slashes == EscapedSlashes::Reject);
    assert!(
        edge.strip_port == StripPort::Any
            && edge.strip_trailing_dot
            && edge.forward_client_cert == ForwardClientCert::AlwaysForwardOnly
    );
    assert!(edge.scheme_overwrite.as_deref() == Some("https") && !edge.scheme_match_upstream);
    assert!(edge.user_agent.is_some() && edge.underscores == UnderscoreAction::Drop && edge.trusted_hop_count == 2);
    let RouteSource::Own(table) = &manager.routes else { panic!("the table is its own") };
    assert_eq!(table.internal_only_headers, [HeaderName::new("x-only").unwrap()]);
    assert_eq!((manager.requests_per_connection_max, manager.header_count_max), (Some(7), 9));
    let http1 = Http1Options {
        accept_http_10: true,
        default_host: Some("h".into()),
        header_case: HeaderCase::ProperCase,
        enable_trailers: true,
        allow_absolute_url: false,
        ..Http1Options::default()
    };
    assert_eq!(manager.http1, http1);
    assert_eq!(manager.upgrades, ["websocket".into()]);
    assert!(manager.stream_error_on_invalid_message && manager.proxy_100_continue && manager.log_on_new_request);
    assert_eq!(manager.log_interval, Some(Duration::from_secs(1)));
    assert_eq!((&*manager.server_name, manager.server_header), ("s", ServerHeader::AppendIfAbsent));
}
