use super::*;
use crate::cluster::dns::{FailureRefresh, LookupFamily};
use crate::cluster::options::{UpstreamHttp1, UpstreamProtocol};
use crate::cluster::policy::{Algorithm, ConsistentHashing, HashFunction, LeastRequest, Maglev, RingHash};
use crate::cluster::{HostHealth, Priority};
use crate::config::parse::runtime::Runtime;
use crate::downstream::HeaderCase;

fn parse_with(yaml: &str, context: &mut ParseContext) -> Result<Cluster, Vec<String>> {
    let config: proto::Cluster = torus_xds::from_yaml(yaml).unwrap_or_else(|problems| panic!("{problems:?}\n{yaml}"));
    let parsed = Cluster::parse(&config, context);
    let problems: Vec<String> = context.problems.iter().map(ToString::to_string).collect();
    parsed.map_err(|_| problems)
}

fn parse(yaml: &str) -> Result<Cluster, Vec<String>> {
    parse_with(yaml, &mut ParseContext::new(3))
}

fn accepted(yaml: &str) -> Cluster {
    parse(yaml).unwrap_or_else(|problems| panic!("{problems:?}\n{yaml}"))
}

/// A cluster with one endpoint and `fields`.
fn with(fields: &str) -> String {
    let address = "address: { socket_address: { address: 127.0.0.1, port_value: 80 } }";
    format!(
        "{{ name: c, load_assignment: {{ cluster_name: c, endpoints: [ {{ lb_endpoints: [ {{ endpoint: {{ {address} }} }} ] \
         }} ] }}, {fields} }}"
    )
}

#[test]
fn defaults_are_envoys() {
    let cluster = accepted("{ name: 'outbound|80||a:b' }");
    assert_eq!(&*cluster.name, "outbound|80||a:b");
    assert_eq!(&*cluster.stat_name, "outbound|80||a_b");
    assert_eq!(cluster.stats.prefix(), "cluster.outbound|80||a_b.");
    assert_eq!(cluster.kind, ClusterKind::Static);
    assert_eq!(cluster.connect_timeout, Duration::from_secs(5));
    assert_eq!(cluster.connection_buffer_bytes_max, 1024 * 1024);
    assert_eq!(*cluster.http, UpstreamHttp::default());
    assert_eq!(*cluster.policy, Policy::default());
    assert_eq!(cluster.breakers.thresholds(Priority::High).connections, 1024);
    assert_eq!(cluster.breakers.thresholds(Priority::Default).retries, 3);
    assert!(cluster.endpoints.hosts.is_empty() && cluster.dns.is_none());
    assert_eq!(&*accepted("{ name: c, alt_stat_name: 'x:y' }").stat_name, "x_y");
}

#[test]
fn equal_defaults_share_memory() {
    let (a, b) = (accepted("{ name: a }"), accepted("{ name: b }"));
    assert!(Arc::ptr_eq(&a.http, &b.http) && Arc::ptr_eq(&a.policy, &b.policy) && Arc::ptr_eq(&a.connect, &b.connect));
    assert!(Arc::ptr_eq(&a.name, &a.stat_name));
}

#[test]
fn what_envoy_refuses_is_refused_by_name() {
    let check = |yaml: &str, expect: &str| match parse(yaml) {
        Ok(_) => panic!("accepted: {yaml}"),
        Err(problems) => assert_eq!(problems, [expect], "{yaml}"),
    };
    check("{ }", "name: must not be empty");
    check("{ name: c, connect_timeout: 0s }", "connect_timeout: must be greater than 0s");
    check("{ name: c, type: EDS }", "eds_cluster_config: is required");
    check("{ name: c, type: LOGICAL_DNS }", "load_assignment: a LOGICAL_DNS cluster needs exactly one endpoint");
    check("{ name: c, load_assignment: { } }", "load_assignment.cluster_name: must not be empty");
    check(
        "{ name: c, lb_policy: CLUSTER_PROVIDED }",
        "lb_policy: CLUSTER_PROVIDED does not go with this type of cluster",
    );
    check("{ name: c, load_balancing_policy: { } }", "load_balancing_policy.policies: names no policy");
    check(
        "{ name: c, lb_policy: MAGLEV, maglev_lb_config: { table_size: 12 } }",
        "maglev_lb_config.table_size: must be a prime of at most 5000011",
    );
    check(
        "{ name: c, lb_policy: RING_HASH, ring_hash_lb_config: { minimum_ring_size: 9, maximum_ring_size: 8 } }",
        "ring_hash_lb_config.minimum_ring_size: is 9, above the maximum of 8",
    );
    check(
        "{ name: c, lb_policy: LEAST_REQUEST, least_request_lb_config: { choice_count: 1 } }",
        "least_request_lb_config.choice_count: must be at least 2",
    );
    check(
        "{ name: c, common_lb_config: { consistent_hashing_lb_config: { use_hostname_for_hashing: true } } }",
        "common_lb_config.consistent_hashing_lb_config.use_hostname_for_hashing: needs a cluster of type STRICT_DNS, or \
         `load_balancing_policy`",
    );
    check(
        "{ name: c, common_lb_config: { healthy_panic_threshold: { value: 120 } } }",
        "common_lb_config.healthy_panic_threshold: must be from 0 to 100",
    );
    check(
        "{ name: c, circuit_breakers: { per_host_thresholds: [ { max_requests: 1 } ] } }",
        "circuit_breakers.per_host_thresholds[0].max_requests: only `max_connections` can be limited per host",
    );
    check(
        "{ name: c, circuit_breakers: { thresholds: [ { retry_budget: { budget_percent: { value: 101 } } } ] } }",
        "circuit_breakers.thresholds[0].retry_budget.budget_percent: must be from 0 to 100",
    );
    check("{ name: c, type: STRICT_DNS, dns_refresh_rate: 0.001s }", "dns_refresh_rate: must be greater than 1 ms");
    check(
        "{ name: c, type: STRICT_DNS, dns_failure_refresh_rate: { base_interval: 2s, max_interval: 1s } }",
        "dns_failure_refresh_rate.max_interval: must be at least `base_interval`",
    );
    check(
        "{ name: c, upstream_bind_config: { extra_source_addresses: [ { address: { address: 127.0.0.1, port_value: 0 } } ] } }",
        "upstream_bind_config.source_address: is required beside extra source addresses",
    );
    let endpoints =
        |endpoints: &str| format!("{{ name: c, load_assignment: {{ cluster_name: c, endpoints: {endpoints} }} }}");
    check(&endpoints("[ { priority: 129 } ]"), "load_assignment.endpoints[0].priority: must be at most 128");
    check(
        &endpoints("[ { lb_endpoints: [ { } ] } ]"),
        "load_assignment.endpoints[0].lb_endpoints[0].endpoint: is required",
    );
    check(
        &endpoints(
            "[ { lb_endpoints: [ { endpoint: { address: { socket_address: { address: a.example, port_value: 1 } } } } ] } ]",
        ),
        "load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.address: malformed IP address \
         `a.example`; a host name works in a STRICT_DNS cluster",
    );
    check(
        &endpoints(
            "[ { lb_endpoints: [ { load_balancing_weight: 0, endpoint: { address: { socket_address: { address: 127.0.0.1, \
             port_value: 1 } } } } ] } ]",
        ),
        "load_assignment.endpoints[0].lb_endpoints[0].load_balancing_weight: must be at least 1",
    );
    let two = "load_balancing_weight: 4000000000, lb_endpoints: []";
    check(
        &endpoints(&format!("[ {{ {two} }}, {{ locality: {{ zone: a }}, {two} }} ]")),
        "load_assignment.endpoints[1].load_balancing_weight: the weights of the localities of a priority add up to more than \
         4294967295",
    );
}

#[test]
fn every_fault_is_reported_in_one_run() {
    let problems = parse("{ connect_timeout: 0s, lb_policy: MAGLEV, maglev_lb_config: { table_size: 4 }, type: EDS }");
    assert_eq!(problems.err().map(|problems| problems.len()), Some(4));
}

#[test]
fn policies_parse_in_both_forms() {
    let check = |fields: &str, expect: Policy| assert_eq!(*accepted(&with(fields)).policy, expect, "{fields}");
    let typed = |policy: &str, fields: &str| {
        format!(
            "load_balancing_policy: {{ policies: [ {{ typed_extension_config: {{ name: x, typed_config: {{ \"@type\": \
             type.googleapis.com/envoy.extensions.load_balancing_policies.{policy}{fields} }} }} }} ] }}"
        )
    };
    let of = |algorithm| Policy { algorithm, ..Policy::default() };
    let least = |choice_count, bias| Algorithm::LeastRequest(LeastRequest { choice_count, active_request_bias: bias });
    check("lb_policy: RANDOM", of(Algorithm::Random));
    check("lb_policy: LEAST_REQUEST", of(least(Some(2), 1.0)));
    check("lb_policy: LEAST_REQUEST, least_request_lb_config: { choice_count: 5 }", of(least(Some(5), 1.0)));
    check(&typed("random.v3.Random", ""), of(Algorithm::Random));
    check(&typed("round_robin.v3.RoundRobin", ""), of(Algorithm::RoundRobin));
    check(&typed("least_request.v3.LeastRequest", ", enable_full_scan: true"), of(least(None, 1.0)));
    let ring = RingHash {
        point_count_min: 1024,
        point_count_max: 8 * 1024 * 1024,
        function: HashFunction::XxHash,
        hashing: ConsistentHashing::default(),
    };
    check("lb_policy: RING_HASH", of(Algorithm::RingHash(ring)));
    let factor = ConsistentHashing { use_hostname: true, balance_factor_percent: Some(120) };
    check(
        &typed(
            "ring_hash.v3.RingHash",
            ", hash_function: MURMUR_HASH_2, minimum_ring_size: 7, consistent_hashing_lb_config: { use_hostname_for_hashing: \
             true, hash_balance_factor: 120 }",
        ),
        of(Algorithm::RingHash(RingHash {
            point_count_min: 7,
            function: HashFunction::MurmurHash2,
            hashing: factor,
            ..ring
        })),
    );
    let maglev = Maglev { table_size: 65_537, hashing: ConsistentHashing::default() };
    check("lb_policy: MAGLEV", of(Algorithm::Maglev(maglev)));
    check(
        &typed("maglev.v3.Maglev", ", table_size: 13, locality_weighted_lb_config: {}"),
        Policy { locality_weighted: true, ..of(Algorithm::Maglev(Maglev { table_size: 13, ..maglev })) },
    );
    check(
        "common_lb_config: { healthy_panic_threshold: { value: 33.5 }, locality_weighted_lb_config: {} }",
        Policy { panic_threshold_percent: 34, locality_weighted: true, ..Policy::default() },
    );
    // The first known policy of the list counts.
    let list = "load_balancing_policy: { policies: [ { typed_extension_config: { name: x, typed_config: { \"@type\": \
                type.googleapis.com/envoy.extensions.load_balancing_policies.pick_first.v3.PickFirst } } }, { \
                typed_extension_config: { name: y, typed_config: { \"@type\": \
                type.googleapis.com/envoy.extensions.load_balancing_policies.random.v3.Random } } } ] }";
    check(list, of(Algorithm::Random));
}

#[test]
fn http_options_parse_in_both_forms() {
    let check = |fields: &str, expect: UpstreamHttp| assert_eq!(*accepted(&with(fields)).http, expect, "{fields}");
    let extension = |fields: &str| {
        format!(
            "typed_extension_protocol_options: {{ envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {{ \"@type\": \
             type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, {fields} }} }}"
        )
    };
    let mut http = UpstreamHttp::default();
    check(&extension("explicit_http_config: { http_protocol_options: {} }"), http.clone());
    http.idle_timeout = None;
    http.requests_per_connection_max = Some(7);
    http.header_count_max = 20;
    http.header_bytes_max = 4096;
    http.max_stream_duration = Some(Duration::from_secs(3));
    http.max_connection_duration = Some(Duration::from_secs(9));
    http.http1.header_case = HeaderCase::ProperCase;
    http.http1.enable_trailers = true;
    let common = "common_http_protocol_options: { idle_timeout: 0s, max_requests_per_connection: 7, max_headers_count: 20, \
                  max_response_headers_kb: 4, max_stream_duration: 3s, max_connection_duration: 9s }";
    let http1 = "http_protocol_options: { header_key_format: { proper_case_words: {} }, enable_trailers: true }";
    check(&extension(&format!("{common}, explicit_http_config: {{ {http1} }}")), http.clone());
    check(&format!("{common}, {http1}"), http.clone());
    http.protocol = UpstreamProtocol::SameAsDownstream;
    http.http2.streams_max = 0x7fff_ffff;
    check(&extension(&format!("{common}, use_downstream_protocol_config: {{ {http1} }}")), http.clone());
    http.protocol = UpstreamProtocol::Http2;
    http.http1 = UpstreamHttp1::default();
    http.http2.streams_max = 7;
    http.http2.stream_window_bytes = 65_535;
    let http2 = "http2_protocol_options: { max_concurrent_streams: 7, initial_stream_window_size: 65535 }";
    check(&extension(&format!("{common}, explicit_http_config: {{ {http2} }}")), http);
    let window = "http2_protocol_options: { initial_stream_window_size: 1 }";
    let refused = parse(&with(&extension(&format!("explicit_http_config: {{ {window} }}"))));
    let path = "typed_extension_protocol_options[\"envoy.extensions.upstreams.http.v3.HttpProtocolOptions\"]";
    let reason = "must be from 65535 to 2147483647, is 1";
    let field = "explicit_http_config.http2_protocol_options.initial_stream_window_size";
    let expect = format!("{path}.{field}: {reason}");
    assert_eq!(refused.err(), Some(vec![expect]));
}

#[test]
fn breakers_parse_and_runtime_goes_over_them() {
    let thresholds = "circuit_breakers: { thresholds: [ { max_connections: 1, max_retries: 9 }, { priority: HIGH, max_requests: 2, \
                      retry_budget: {} }, { max_connections: 5 } ], per_host_thresholds: [ { max_connections: 4 } ] }";
    let cluster = accepted(&with(thresholds));
    let default = cluster.breakers.thresholds(Priority::Default);
    assert_eq!((default.connections, default.pending, default.requests, default.retries), (1, 1024, 1024, 9));
    let high = cluster.breakers.thresholds(Priority::High);
    assert_eq!(
        (high.requests, high.retry_budget.map(|budget| (budget.percent, budget.concurrency_min))),
        (2, Some((20.0, 3)))
    );
    let connections = cluster.endpoints.hosts[0].connections.as_ref().unwrap();
    assert!((0..4).all(|_| connections.try_acquire()) && !connections.try_acquire());

    let mut context = ParseContext::new(3);
    context.runtime = Runtime::default();
    context.runtime.add_layer(&torus_xds::from_yaml("{ circuit_breakers.c.default.max_connections: 77 }").unwrap());
    let cluster = parse_with(&with(thresholds), &mut context).unwrap();
    assert_eq!(cluster.breakers.thresholds(Priority::Default).connections, 77);
}

#[test]
fn endpoints_keep_what_is_said_of_them() {
    let cluster = accepted(
        "{ name: c, load_assignment: { cluster_name: c, policy: { overprovisioning_factor: 200 }, endpoints: [ { locality: { \
         region: r, zone: z }, priority: 1, lb_endpoints: [ { load_balancing_weight: 3, health_status: DEGRADED, metadata: { \
         filter_metadata: { envoy.lb: { canary: true } } }, endpoint: { hostname: h, address: { pipe: { path: /run/x } } } } \
         ] } ] } }",
    );
    let host = &cluster.endpoints.hosts[0];
    assert_eq!((host.weight, host.priority, host.canary, host.health), (3, 1, true, HostHealth::Degraded));
    assert_eq!((&*host.hostname, &*host.locality.zone, host.address.to_string()), ("h", "z", "/run/x".into()));
    assert_eq!(cluster.endpoints.priorities.len(), 2);
}

#[test]
fn dns_plans_parse_in_both_forms() {
    let target = "load_assignment: { cluster_name: c, endpoints: [ { priority: 3, lb_endpoints: [ { endpoint: { address: { \
                  socket_address: { address: a.example, port_value: 80 } } } } ] } ] }";
    let settings = "dns_refresh_rate: 7s, dns_failure_refresh_rate: { base_interval: 1s }, respect_dns_ttl: true, dns_jitter: \
                    0.5s, dns_lookup_family: V4_PREFERRED, typed_dns_resolver_config: { name: x, typed_config: { \"@type\": \
                    type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig, resolvers: [ { \
                    socket_address: { protocol: UDP, address: 127.0.0.1, port_value: 5353 } } ], dns_resolver_options: { \
                    use_tcp_for_dns_lookups: true, no_default_search_domain: true }, query_timeout_seconds: 3, query_tries: 2 } }";
    let check = |fields: &str, logical: bool| {
        let cluster = accepted(&format!("{{ name: c, {target}, {fields} }}"));
        let plan = cluster.dns.as_deref().unwrap();
        assert_eq!((plan.refresh, plan.jitter), (Duration::from_secs(7), Duration::from_millis(500)));
        let failure = FailureRefresh { base: Duration::from_secs(1), max: Duration::from_secs(10) };
        assert_eq!((plan.failure_refresh, plan.family), (Some(failure), LookupFamily::V4Preferred));
        assert!(plan.respect_ttl && plan.logical == logical && plan.wait_for_warm);
        assert_eq!(plan.resolver.servers, ["127.0.0.1:5353".parse().unwrap()]);
        assert!(plan.resolver.tcp_only && plan.resolver.no_search_domains);
        assert_eq!((plan.resolver.query_timeout, plan.resolver.query_tries), (Some(Duration::from_secs(3)), Some(2)));
        let name = &plan.names[0];
        let priority = if logical { 0 } else { 3 };
        assert_eq!((&*name.name, name.port, &*name.host.hostname), ("a.example", 80, "a.example"));
        assert_eq!(name.host.priority, priority);
    };
    check(&format!("type: STRICT_DNS, {settings}"), false);
    check(&format!("type: LOGICAL_DNS, {settings}"), true);
    let extension = |fields: &str| {
        format!(
            "cluster_type: {{ name: envoy.cluster.dns, typed_config: {{ \"@type\": \
             type.googleapis.com/envoy.extensions.clusters.dns.v3.DnsCluster, {settings}, {fields} }} }}"
        )
    };
    check(&extension("dns_min_refresh_rate: 2s"), false);
    check(&extension("all_addresses_in_single_endpoint: true"), true);
    let older = "type: STRICT_DNS, use_tcp_for_dns_lookups: true, dns_resolvers: [ { socket_address: { address: '::1', \
                 port_value: 53 } } ], wait_for_warm_on_init: false";
    let cluster = accepted(&format!("{{ name: c, {target}, {older} }}"));
    let plan = cluster.dns.as_deref().unwrap();
    assert!(plan.resolver.tcp_only && !plan.wait_for_warm && plan.family == LookupFamily::Auto);
    assert_eq!(plan.resolver.servers, ["[::1]:53".parse().unwrap()]);
}

#[test]
fn connections_bind_and_probe_as_configured() {
    let cluster = accepted(&with(
        "upstream_bind_config: { source_address: { address: 10.0.0.1, port_value: 0 }, freebind: true, extra_source_addresses: [ \
         { address: { address: '::1', port_value: 0 } } ] }, upstream_connection_options: { tcp_keepalive: { keepalive_time: 9 \
         } }",
    ));
    let connect = &cluster.connect;
    assert_eq!(connect.source_for("1.2.3.4:5".parse().unwrap()), Some("10.0.0.1:0".parse().unwrap()));
    assert_eq!(connect.source_for("[::2]:5".parse().unwrap()), Some("[::1]:0".parse().unwrap()));
    assert!(connect.freebind && connect.keepalive.unwrap().idle == Some(Duration::from_secs(9)));
}

/// Ten thousand clusters fit the start-up budget: what one cluster with one host takes is small.
#[test]
fn clusters_stay_small() {
    let size = size_of::<Cluster>() + size_of::<EndpointSet>() + size_of::<crate::cluster::Host>();
    assert!(size <= 640, "{size} bytes beside shared parts");
    assert!(size_of::<crate::cluster::Breakers>() <= 256, "{}", size_of::<crate::cluster::Breakers>());
}
