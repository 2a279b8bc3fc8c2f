use std::time::Duration;

use super::*;
use crate::config::snapshot::{RawSocketOption, SocketState, TcpKeepalive};
use crate::listener::filter::ListenerFilter;

const CHAIN: &str = "filters: [{name: hcm, typed_config: {'@type': \
    type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, \
    stat_prefix: in, route_config: {}, http_filters: [{name: r, typed_config: {'@type': \
    type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]}}]";
const ADDRESS: &str = "address: {socket_address: {address: 0.0.0.0, port_value: 8080}}";

fn parse_text(text: &str, context: &mut ParseContext) -> Result<Listener, Refused> {
    let config = torus_xds::from_yaml(text).unwrap_or_else(|findings| panic!("{text}\n{findings:?}"));
    parse(&config, context)
}

fn accepted(text: &str) -> Listener {
    let mut context = ParseContext::new(1);
    parse_text(text, &mut context).unwrap_or_else(|_| panic!("{text}: {:?}", context.problems))
}

#[test]
fn a_small_listener_has_envoys_defaults() {
    let listener = accepted(&format!("{{{ADDRESS}, filter_chains: [{{{CHAIN}}}]}}"));
    assert_eq!(&*listener.name, "0.0.0.0:8080");
    assert_eq!(listener.stats.prefix(), "listener.0.0.0.0_8080.");
    assert!(listener.reuse_port && listener.backlog > 0 && !listener.ignore_global_connection_limit);
    assert_eq!(listener.connection_buffer_bytes_max, 1024 * 1024);
    assert_eq!((listener.connections.max(), listener.accepts_per_turn_max), (None, None));
    let manager = listener.chains[0].http().unwrap();
    assert_eq!(listener.chain_matcher.only(), Some(ChainIndex(0)));
    assert_eq!(manager.listener_stats.prefix(), "listener.0.0.0.0_8080.http.in.");
}

#[test]
fn every_option_arrives() {
    let listener = accepted(&format!(
        "
name: l
stat_prefix: short
{ADDRESS}
additional_addresses:
- address: {{socket_address: {{address: '::1', port_value: 8080}}}}
- {{address: {{pipe: {{path: '@a', mode: 420}}}}, tcp_keepalive: {{keepalive_probes: 9}}, socket_options: {{socket_options: []}}}}
enable_reuse_port: false
tcp_backlog_size: 7
freebind: true
transparent: true
tcp_fast_open_queue_length: 5
tcp_keepalive: {{keepalive_time: 60, keepalive_interval: 10}}
socket_options: [{{level: 1, name: 9, int_value: 1, state: STATE_BOUND}}]
per_connection_buffer_limit_bytes: 100
max_connections_to_accept_per_socket_event: 3
ignore_global_conn_limit: true
traffic_direction: INBOUND
default_filter_chain: {{name: d, {CHAIN}}}
"
    ));
    assert_eq!((&*listener.name, listener.stats.prefix()), ("l", "listener.short."));
    let addresses: Vec<String> = listener.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["0.0.0.0:8080", "[::1]:8080", "@a"]);
    let sockets: Vec<&ListenSocketOptions> = listener.sockets().map(|(_, socket)| socket).collect();
    assert!(sockets.iter().all(|socket| socket.freebind && socket.transparent && socket.fast_open_queue == Some(5)));
    let keepalive = |probe_count, seconds: Option<(u64, u64)>| TcpKeepalive {
        probe_count,
        idle: seconds.map(|(idle, _)| Duration::from_secs(idle)),
        interval: seconds.map(|(_, interval)| Duration::from_secs(interval)),
    };
    assert_eq!(sockets[1].keepalive, Some(keepalive(None, Some((60, 10)))));
    assert_eq!(sockets[2].keepalive, Some(keepalive(Some(9), None)));
    let option = RawSocketOption { state: SocketState::Bound, level: 1, name: 9, value: 1i32.to_ne_bytes().into() };
    assert_eq!((&*sockets[1].raw, &*sockets[2].raw), (&[option][..], &[][..]));
    assert_eq!((sockets[1].pipe_mode, sockets[2].pipe_mode), (None, Some(0o644)));
    assert!(!listener.reuse_port && listener.ignore_global_connection_limit);
    assert_eq!((listener.backlog, listener.connection_buffer_bytes_max), (7, 100));
    assert_eq!((listener.accepts_per_turn_max, listener.direction), (Some(3), TrafficDirection::Inbound));
    assert_eq!(&*listener.chains[0].name, "d");
    assert_eq!(listener.chain_matcher.only(), Some(ChainIndex(0)));
}

#[test]
fn what_is_wrong_is_named() {
    let check = |text: &str, expect: &[&str]| {
        let mut context = ParseContext::new(1);
        assert!(parse_text(text, &mut context).is_err(), "{text}");
        let problems: Vec<String> = context.problems.iter().map(ToString::to_string).collect();
        assert_eq!(problems, expect, "{text}");
    };
    let with = |fields: &str| format!("{{{ADDRESS}, {fields}}}");
    let chain = |fields: &str| with(&format!("filter_chains: [{{{fields}}}]"));
    check("filter_chains: []", &["address: is required"]);
    check(&with("name: a"), &["filter_chains: is required: no filter chain would take a connection"]);
    check(
        &chain("filters: []"),
        &["filter_chains[0].filters: must end with one that serves the connection; there are none"],
    );
    check(&chain("filters: [{name: a}]"), &["filter_chains[0].filters[0].typed_config: is required"]);
    check(
        &chain(
            "filters: [{name: a, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: a, cluster: b, max_connect_attempts: 0}}]",
        ),
        &[
            "filter_chains[0].filters[0].typed_config.cluster: unknown cluster `b`",
            "filter_chains[0].filters[0].typed_config.max_connect_attempts: must be at least 1",
        ],
    );
    check(
        &chain(&CHAIN.replace("stat_prefix: in", "stat_prefix: ''")),
        &["filter_chains[0].filters[0].typed_config.stat_prefix: must not be empty"],
    );
    let matching = |rules: &str| chain(&format!("filter_chain_match: {{{rules}}}, {CHAIN}"));
    let rules = "filter_chains[0].filter_chain_match";
    check(
        &matching("destination_port: 0, source_ports: [65536]"),
        &[&format!("{rules}.destination_port: must be from 1 to 65535")],
    );
    check(&matching("source_ports: [1, 65536]"), &[&format!("{rules}.source_ports[1]: must be from 1 to 65535")]);
    let wildcard = "a wildcard stands for whole labels at the start, as in `*.example.com`";
    check(
        &matching("server_names: ['*', 'a*.test', '*.test']"),
        &[
            &format!("{rules}.server_names[0]: `*`: {wildcard}"),
            &format!("{rules}.server_names[1]: `a*.test`: {wildcard}"),
        ],
    );
    check(
        &with(&format!("filter_chains: [{{{CHAIN}, name: a}}, {{{CHAIN}}}]")),
        &[
            "filter_chains[1].filter_chain_match: has the same matching rules as `a`, so a connection could go to either",
        ],
    );
    let ranged = |prefix: &str| {
        format!("{{filter_chain_match: {{prefix_ranges: [{{address_prefix: {prefix}, prefix_len: 8}}]}}, {CHAIN}}}")
    };
    check(
        &with(&format!("filter_chains: [{}, {}]", ranged("10.0.0.0"), ranged("10.1.0.0"))),
        &[
            "filter_chains[1].filter_chain_match: has the same matching rules as filter_chains[0], so a connection could go to either",
        ],
    );
    check(
        &chain(&format!(
            "transport_socket: {{name: t, typed_config: {{'@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext}}}}, {CHAIN}"
        )),
        &["filter_chains[0].transport_socket.typed_config.common_tls_context: is required"],
    );
    let rest = format!("filter_chains: [{{{CHAIN}}}]");
    check(
        &format!("{{address: {{pipe: {{path: /a, mode: 512}}}}, {rest}}}"),
        &["address.pipe.mode: must be at most 511 (0777 octal), is 512"],
    );
    check(
        &with(&format!("max_connections_to_accept_per_socket_event: 0, {rest}")),
        &["max_connections_to_accept_per_socket_event: must be at least 1"],
    );
    check(
        &with(&format!("socket_options: [{{level: 1, name: 2}}], {rest}")),
        &["socket_options[0].int_value: one of `int_value` and `buf_value` is required"],
    );
}

#[test]
fn chains_and_listener_filters_arrive() {
    let named = |name: &str| format!("{{filter_chain_match: {{server_names: [{name}]}}, name: {name}, {CHAIN}}}");
    let inspector = |name: &str, more: &str| {
        format!(
            "{{name: a, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.listener.{name}{more}}}}}"
        )
    };
    let text = format!(
        "{{{ADDRESS}, filter_chains: [{}, {}], default_filter_chain: {{name: d, {CHAIN}}}, listener_filters_timeout: 0s, \
          continue_on_listener_filters_timeout: true, listener_filters: [{}, {}]}}",
        named("a.test"),
        named("b.test"),
        inspector("tls_inspector.v3.TlsInspector", ", max_client_hello_size: 500"),
        inspector("http_inspector.v3.HttpInspector", ""),
    );
    let mut context = ParseContext::new(1);
    let listener = parse_text(&text, &mut context).unwrap();
    let names: Vec<&str> = listener.chains.iter().map(|chain| &*chain.name).collect();
    assert_eq!(names, ["a.test", "b.test", "d"]);
    assert_eq!((listener.filters_timeout, listener.filters_timeout_continues), (None, true));
    let [ListenerFilter::TlsInspector { hello_bytes_max: 500, .. }, ListenerFilter::HttpInspector { .. }] =
        &listener.filters[..]
    else {
        panic!("not the filters configured");
    };
    assert_eq!(context.problems.iter().count(), 0);
    // Without an inspector the names match nothing, which is said.
    let text = format!("{{{ADDRESS}, filter_chains: [{}]}}", named("a.test"));
    let listener = parse_text(&text, &mut context).unwrap();
    assert_eq!(listener.filters_timeout, Some(Duration::from_secs(15)));
    let problems: Vec<String> = context.problems.iter().map(ToString::to_string).collect();
    assert_eq!(problems, ["filter_chains: server names and TLS match only with the listener filter tls_inspector"]);
}

#[test]
fn a_zero_turns_keepalive_off() {
    let listener = accepted(&format!(
        "{{{ADDRESS}, tcp_keepalive: {{keepalive_probes: 9, keepalive_time: 0}}, filter_chains: [{{{CHAIN}}}]}}"
    ));
    assert_eq!(listener.socket.keepalive, None);
}

#[test]
fn names_and_addresses_are_unique() {
    let text = format!("{{{ADDRESS}, filter_chains: [{{{CHAIN}}}]}}");
    let first = [Arc::new(accepted(&text))];
    let mut context = ParseContext::new(1);
    refuse_duplicates(&first, &accepted(&text), &mut context);
    let problems: Vec<String> = context.problems.iter().map(ToString::to_string).collect();
    assert_eq!(
        problems,
        [
            "name: another listener is called `0.0.0.0:8080`",
            "address: listener `0.0.0.0:8080` has the address 0.0.0.0:8080 already",
        ]
    );
    let mut context = ParseContext::new(1);
    let any_port = text.replace("8080", "0");
    let named = |name: &str| accepted(&any_port.replacen('{', &format!("{{name: {name}, "), 1));
    refuse_duplicates(&[Arc::new(named("a"))], &named("b"), &mut context);
    assert!(!context.problems.has_errors());
}

#[test]
fn the_runtime_limits_connections() {
    let mut context = ParseContext::new(1);
    let layer = torus_xds::from_yaml("{envoy.resource_limits.listener.l.connection_limit: 5}").unwrap();
    context.runtime.add_layer(&layer);
    let text = format!("{{name: l, {ADDRESS}, filter_chains: [{{{CHAIN}}}]}}");
    assert_eq!(parse_text(&text, &mut context).unwrap().connections.max(), Some(5));
}
