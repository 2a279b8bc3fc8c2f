//! What the control plane sends, in wire format.

use prost::Message as _;
use serde_json::{Value, json};
use torus_xds::{MessageType, Source, UnknownFields};

use crate::plane::{CLUSTER, ENDPOINTS, LISTENER, Put, ROUTES};

const TYPE: &str = "type.googleapis.com/envoy.extensions";

pub fn address(host: &str, port: u16) -> Value {
    json!({"socket_address": {"address": host, "port_value": port}})
}

fn ads() -> Value {
    json!({"ads": {}, "resource_api_version": "V3"})
}

fn put(kind: &'static str, name: &str, resource: &Value) -> Put {
    let source = Source::parse("resource", resource.to_string().into_bytes()).unwrap();
    let encoded = torus_xds::encode(vec![source], MessageType::named(kind).unwrap(), UnknownFields::Refuse);
    let bytes = encoded.unwrap_or_else(|error| panic!("{resource}: {error:?}")).bytes;
    (kind, name.to_owned(), bytes)
}

/// A cluster whose endpoints come by the same stream.
pub fn cluster(name: &str, connect_timeout_s: u32) -> Put {
    let timeout = format!("{connect_timeout_s}s");
    let config =
        json!({"name": name, "type": "EDS", "connect_timeout": timeout, "eds_cluster_config": {"eds_config": ads()}});
    put(CLUSTER, name, &config)
}

/// Its one endpoint.
pub fn endpoint(cluster: &str, host: &str, port: u16) -> Put {
    use envoy_types::pb::envoy::config::core::v3 as core;
    use envoy_types::pb::envoy::config::endpoint::v3 as proto;
    // Thousands of these are made: without the way through text.
    let socket = core::SocketAddress {
        address: host.to_owned(),
        port_specifier: Some(core::socket_address::PortSpecifier::PortValue(port.into())),
        ..Default::default()
    };
    let address = core::Address { address: Some(core::address::Address::SocketAddress(socket)) };
    let endpoint = proto::Endpoint { address: Some(address), ..Default::default() };
    let host = proto::LbEndpoint {
        host_identifier: Some(proto::lb_endpoint::HostIdentifier::Endpoint(endpoint)),
        ..Default::default()
    };
    let locality = proto::LocalityLbEndpoints { lb_endpoints: vec![host], ..Default::default() };
    let assignment = proto::ClusterLoadAssignment {
        cluster_name: cluster.to_owned(),
        endpoints: vec![locality],
        ..Default::default()
    };
    (ENDPOINTS, cluster.to_owned(), assignment.encode_to_vec())
}

/// Routes of the table `routes`: `/checked` to the cluster `checked`, what names a cluster in `x-cluster` there, all else to `a`. Both the
/// request and the reply carry `version`.
pub fn routes(version: u32) -> Put {
    let field = |key: &str| {
        json!([{
            "header": {"key": key, "value": version.to_string()},
            "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
        }])
    };
    let named = json!({"prefix": "/", "headers": [{"name": "x-cluster", "present_match": true}]});
    let table = json!({
        "name": "routes",
        "request_headers_to_add": field("x-version"),
        "response_headers_to_add": field("x-reply-version"),
        "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
            {"match": {"prefix": "/checked"}, "route": {"cluster": "checked"}},
            {"match": named, "route": {"cluster_header": "x-cluster"}},
            {"match": {"prefix": "/"}, "route": {"cluster": "a"}},
        ]}],
    });
    put(ROUTES, "routes", &table)
}

/// A listener on `port` with that table; `revision` makes it another one.
pub fn listener(port: u16, revision: u32) -> Put {
    let router = json!({"@type": format!("{TYPE}.filters.http.router.v3.Router")});
    let manager = json!({
        "@type": format!("{TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "in",
        "server_name": format!("revision-{revision}"),
        "rds": {"route_config_name": "routes", "config_source": ads()},
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": router}],
    });
    let filter = json!({"name": "envoy.filters.network.http_connection_manager", "typed_config": manager});
    let config = json!({
        "name": "in",
        "address": address("127.0.0.1", port),
        "filter_chains": [{"filters": [filter]}],
    });
    put(LISTENER, "in", &config)
}

/// A proxy that asks the control plane on `plane` for all that it has.
pub fn bootstrap(plane: u16, admin: u16) -> Value {
    let options = json!({
        "@type": format!("{TYPE}.upstreams.http.v3.HttpProtocolOptions"),
        "explicit_http_config": {"http2_protocol_options": {}},
    });
    let endpoint = json!({"endpoint": {"address": address("127.0.0.1", plane)}});
    json!({
        "node": {"id": "figures", "cluster": "figures"},
        "admin": {"address": address("127.0.0.1", admin)},
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": "plane"}}],
            },
            "cds_config": ads(),
            "lds_config": ads(),
        },
        "static_resources": {"clusters": [{
            "name": "plane",
            "type": "STATIC",
            "connect_timeout": "1s",
            "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
            "load_assignment": {"cluster_name": "plane", "endpoints": [{"lb_endpoints": [endpoint]}]},
        }]},
    })
}
