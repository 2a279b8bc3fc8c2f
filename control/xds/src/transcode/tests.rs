//! Documents against the messages that prost reads from their bytes, and against the errors that they deserve.

use envoy_types::pb::envoy::config::bootstrap::v3::Bootstrap;
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::core::v3::{Metadata, Node as EnvoyNode, SocketOption};
use envoy_types::pb::envoy::config::route::v3::RouteAction;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use envoy_types::pb::google::protobuf::{Any, Duration, Struct, UInt32Value, value::Kind as ValueKind};
use prost::Message;

use crate::{Diagnostic, from_json, from_yaml};

fn errors_of<M: Message + prost::Name + Default + std::fmt::Debug>(text: &str) -> Vec<Diagnostic> {
    from_yaml::<M>(text).expect_err(text)
}

/// One error with this first line.
fn check_error<M: Message + prost::Name + Default + std::fmt::Debug>(text: &str, expected: &str) {
    let errors = errors_of::<M>(text);
    let lines: Vec<String> = errors.iter().map(|error| error.line().to_string()).collect();
    assert_eq!(lines, [expected], "{text}");
}

#[test]
fn scalars_enums_and_lists() {
    let cluster: Cluster = from_yaml(
        "name: a\nconnectTimeout: 0.25s\nlb_policy: RING_HASH\nper_connection_buffer_limit_bytes: 4096\ntype: STRICT_DNS\n\
         load_assignment: {cluster_name: a, endpoints: [{lb_endpoints: [{endpoint: {address: {pipe: {path: /x, mode: 0644}}}}]}]}\n\
         common_lb_config: {healthy_panic_threshold: {value: 12.5}}\ndns_lookup_family: 1\nignore_health_on_host_removal: yes\n",
    )
    .unwrap();
    assert_eq!(cluster.connect_timeout, Some(Duration { seconds: 0, nanos: 250_000_000 }));
    assert_eq!(cluster.lb_policy, 2);
    assert_eq!(cluster.per_connection_buffer_limit_bytes, Some(UInt32Value { value: 4096 }));
    assert_eq!(cluster.dns_lookup_family, 1);
    assert!(cluster.ignore_health_on_host_removal);
    assert_eq!(cluster.common_lb_config.unwrap().healthy_panic_threshold.unwrap().value, 12.5);
    let text = format!("{:?}", cluster.load_assignment);
    assert!(text.contains("mode: 420"), "{text}");
}

#[test]
#[expect(deprecated, reason = "a field with a bool")]
fn what_envoy_takes_is_taken() {
    let cluster: Cluster =
        from_yaml("{lb_policy: ring_hash, respect_dns_ttl: 'true', health_checks: {timeout: 1s}}").unwrap();
    assert_eq!((cluster.lb_policy, cluster.respect_dns_ttl, cluster.health_checks.len()), (2, true, 1));
    let cluster: Cluster = from_yaml("{lb_policy: 2, respect_dns_ttl: on, name: 5}").unwrap();
    assert_eq!((cluster.lb_policy, cluster.respect_dns_ttl, &*cluster.name), (2, true, "5"));
}

#[test]
fn structs_take_envoys_types() {
    let check = |node: EnvoyNode, expected: &str| {
        let fields = node.metadata.unwrap().fields;
        let mut shown: Vec<String> =
            fields.iter().map(|(name, value)| format!("{name}={}", show(value.kind.as_ref()))).collect();
        shown.sort();
        assert_eq!(shown.join(" "), expected);
    };
    check(
        from_yaml("metadata: {a: 1, b: on, c: '1', d: 1.5, e: ~, f: [x], g: {h: 99999999999}}").unwrap(),
        "a=1 b=true c='1' d='1.5' e=null f=['x'] g={h='99999999999'}",
    );
    check(
        from_json("{\"metadata\": {\"a\": 1, \"b\": \"on\", \"d\": 1.5, \"g\": {\"h\": 99999999999}}}").unwrap(),
        "a=1 b='on' d=1.5 g={h=99999999999}",
    );
}

fn show(kind: Option<&ValueKind>) -> String {
    match kind {
        None => "nothing".into(),
        Some(ValueKind::NullValue(_)) => "null".into(),
        Some(ValueKind::NumberValue(number)) => number.to_string(),
        Some(ValueKind::StringValue(text)) => format!("'{text}'"),
        Some(ValueKind::BoolValue(value)) => value.to_string(),
        Some(ValueKind::StructValue(value)) => {
            let fields: Vec<String> =
                value.fields.iter().map(|(name, value)| format!("{name}={}", show(value.kind.as_ref()))).collect();
            format!("{{{}}}", fields.join(","))
        }
        Some(ValueKind::ListValue(list)) => {
            let values: Vec<String> = list.values.iter().map(|value| show(value.kind.as_ref())).collect();
            format!("[{}]", values.join(","))
        }
    }
}

#[test]
fn any_holds_the_message_of_its_type() {
    let check = |text: &str, type_url: &str| {
        let any: Any = from_yaml(text).unwrap_or_else(|errors| panic!("{text}: {}", errors[0]));
        assert_eq!(any.type_url, type_url);
        any.value
    };
    let hcm = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    let bytes = check(&format!("'@type': {hcm}\nstat_prefix: x"), hcm);
    assert_eq!(HttpConnectionManager::decode(&*bytes).unwrap().stat_prefix, "x");
    for carrier in ["udpa.type.v1.TypedStruct", "xds.type.v3.TypedStruct"] {
        let text = format!("'@type': type.googleapis.com/{carrier}\ntypeUrl: {hcm}\nvalue: {{statPrefix: y}}");
        assert_eq!(HttpConnectionManager::decode(&*check(&text, hcm)).unwrap().stat_prefix, "y");
    }
    let unknown = "type.googleapis.com/udpa.type.v1.TypedStruct";
    check(&format!("'@type': {unknown}\ntype_url: x/istio.workload.BootstrapExtension\nvalue: {{a: b}}"), unknown);
    let duration = "type.googleapis.com/google.protobuf.Duration";
    let bytes = check(&format!("'@type': {duration}\nvalue: 2s"), duration);
    assert_eq!(Duration::decode(&*bytes).unwrap().seconds, 2);
    let structure = "type.googleapis.com/google.protobuf.Struct";
    let bytes = check(&format!("'@type': {structure}\nvalue: {{a: 1}}"), structure);
    assert!(Struct::decode(&*bytes).unwrap().fields.contains_key("a"));
}

#[test]
fn maps_and_presence() {
    let metadata: Metadata = from_yaml("filter_metadata: {envoy.lb: {canary: true}, x: {}}").unwrap();
    assert_eq!(metadata.filter_metadata.len(), 2);
    let action: RouteAction = from_yaml("cluster: ''\ntimeout: 0s").unwrap();
    assert!(action.cluster_specifier.is_some(), "a oneof member is present with its default");
    assert_eq!(action.timeout, Some(Duration::default()));
    let option: SocketOption = from_yaml("level: 1\nname: 2\nbuf_value: aGk=\nstate: STATE_PREBIND").unwrap();
    assert!(format!("{option:?}").contains("BufValue"));
    let empty: Bootstrap = from_yaml("").unwrap();
    assert_eq!(empty, Bootstrap::default());
    let nulls: Bootstrap = from_yaml("admin: ~\nstatic_resources:\n").unwrap();
    assert_eq!(nulls, Bootstrap::default());
}

#[test]
fn errors_say_where_and_what_was_meant() {
    check_error::<Bootstrap>(
        "admin:\n  address:\n    socket_address: {address: 1.2.3.4, prot_value: 80}\n",
        "yaml:3:40: admin.address.socket_address: unknown field `prot_value` of envoy.config.core.v3.SocketAddress; did you mean `port_value`?",
    );
    check_error::<Cluster>(
        "lb_policy: ROUND_ROBBIN",
        "yaml:1:12: lb_policy: `ROUND_ROBBIN` is not a value of envoy.config.cluster.v3.Cluster.LbPolicy; did you mean `ROUND_ROBIN`?",
    );
    check_error::<Cluster>(
        "connect_timeout: 5",
        "yaml:1:18: connect_timeout: a duration in seconds, for instance \"0.25s\", is expected, not `5`",
    );
    check_error::<Cluster>(
        "per_connection_buffer_limit_bytes: -1",
        "yaml:1:36: per_connection_buffer_limit_bytes: `-1` is not a whole number from 0 to 4294967295",
    );
    check_error::<Cluster>("name: [a]", "yaml:1:7: name: a text is expected, not a list");
    check_error::<Cluster>("- a", "yaml:1:1: Cluster is a mapping of fields, not a list");
    check_error::<Cluster>("respect_dns_ttl: \"yes\"", "yaml:1:18: respect_dns_ttl: `yes` is neither true nor false");
    check_error::<Cluster>(
        "connectTimeout: 1s\nconnect_timeout: 1s",
        "yaml:2:1: connect_timeout: `connect_timeout` is given twice, once in each spelling",
    );
    check_error::<RouteAction>(
        "cluster: a\ncluster_header: b",
        "yaml:2:1: cluster_header: only one of `cluster` and `cluster_header` can be set in RouteAction",
    );
    check_error::<Any>(
        "'@type': type.googleapis.com/envoy.extensions.filters.http.ruoter.v3.Router",
        "yaml:1:10: [\"@type\"]: unknown message type `envoy.extensions.filters.http.ruoter.v3.Router`; did you mean `type.googleapis.com/envoy.extensions.filters.http.router.v3.Router`?",
    );
    check_error::<Any>("a: b", "yaml:1:1: `@type` is missing, which says what these fields are");
}

#[test]
fn all_errors_come_in_one_run() {
    let errors = errors_of::<Bootstrap>(
        "nod: {}\nadmin: {adress: {}}\nstatic_resources: {clusters: [{name: a, typ: EDS}, {lb_policy: X}]}",
    );
    assert_eq!(errors.len(), 4);
    assert!(errors.iter().all(|error| error.place.is_some()));
}

#[test]
fn deep_messages_are_refused() {
    let mut text = String::from("{or_match: {rules: [");
    let levels = 60;
    text = text.repeat(levels) + &"]}}".repeat(levels);
    let errors = errors_of::<envoy_types::pb::envoy::config::common::matcher::v3::MatchPredicate>(&text);
    assert!(errors[0].reason.contains("nested deeper"), "{}", errors[0]);
}
