//! What a sidecar's workload receives: one listener with filter chains for each port, and clusters back to the workload.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3::{Cluster, cluster::DiscoveryType};
use envoy_types::pb::envoy::config::core::v3::{
    BindConfig, SocketAddress, TrafficDirection, socket_address::PortSpecifier,
};
use envoy_types::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint as EnvoyEndpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier,
};
use envoy_types::pb::envoy::config::listener::v3::{
    Filter, FilterChain, FilterChainMatch, Listener, ListenerFilter, ListenerFilterChainMatchPredicate,
    listener_filter::ConfigType, listener_filter_chain_match_predicate as predicate,
};
use envoy_types::pb::envoy::config::route::v3::{RouteConfiguration, VirtualHost};
use envoy_types::pb::envoy::extensions::filters::listener::http_inspector::v3::HttpInspector;
use envoy_types::pb::envoy::extensions::filters::listener::original_dst::v3::OriginalDst;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::DownstreamTlsContext;
use envoy_types::pb::envoy::r#type::v3::Int32Range;

use super::connection_manager::{self as manager, Role};
use super::outbound::{ANY_ADDRESS, PLAIN_HTTP};
use super::{cluster, gateway, http_route, names, tls, wire};
use crate::model::api::{Ingress, ServerTls, TrafficPolicy};
use crate::model::peer_authentication::{MutualTls, PortModes};
use crate::model::protocol::Protocol;
use crate::model::sidecar::Scope;
use crate::model::{Mesh, Origin, Proxy, Service};

/// Where a sidecar takes what its workload receives.
const PORT: u32 = 15_006;

/// The address from which a sidecar speaks to its own workload, so that the node's redirection leaves it alone.
const OWN_SOURCE: &str = "127.0.0.6";

/// What other sidecars offer in a TLS handshake around HTTP.
const MESH_HTTP: [&str; 3] = ["istio-http/1.0", "istio-http/1.1", "istio-h2"];
/// And around other bytes.
const MESH_BYTES: [&str; 2] = ["istio-peer-exchange", "istio"];
const MESH_ANY: [&str; 5] = ["istio-peer-exchange", "istio", "istio-http/1.0", "istio-http/1.1", "istio-h2"];

/// One port of the workload.
struct Port<'a> {
    /// The workload's own port.
    number: u32,
    bind: String,
    protocol: Protocol,
    /// The number by which clients know it.
    service_port: u32,
    target: Target<'a>,
    services: Vec<&'a Service>,
    tls: Option<&'a ServerTls>,
    origin: Arc<Origin>,
}

/// Where the workload listens.
enum Target<'a> {
    /// Where the connection was going.
    Original,
    Address(&'a str, u32),
    Socket(&'a str),
}

/// The workload's ports by number: as its Sidecar lists them, else those of services that have it as an endpoint.
fn ports<'a>(mesh: &'a Mesh, proxy: &'a Proxy, scope: &Scope<'a>) -> BTreeMap<u32, Port<'a>> {
    let mut found: BTreeMap<u32, Port<'a>> = BTreeMap::new();
    if let Some(config) = scope.config.filter(|config| !config.spec.ingress.is_empty()) {
        for ingress in &config.spec.ingress {
            let port = of_ingress(proxy, ingress, &config.origin);
            found.entry(port.number).or_insert(port);
        }
        return found;
    }
    let local = mesh.config.inbound_traffic_policy.as_ref().is_some_and(|policy| policy.mode == "LOCALHOST");
    for service in &mesh.services {
        for port in service.ports.iter().filter(|port| port.protocol != Protocol::Udp) {
            let here = service.endpoints_of(port.number).iter();
            for endpoint in here.filter(|endpoint| proxy.ip_addresses.contains(&endpoint.address)) {
                let number = endpoint.port;
                let known = found.entry(number).or_insert_with(|| Port {
                    number,
                    bind: ANY_ADDRESS.to_owned(),
                    protocol: port.protocol,
                    service_port: port.number,
                    target: if local { Target::Address("127.0.0.1", number) } else { Target::Original },
                    services: Vec::new(),
                    tls: None,
                    origin: service.origin.clone(),
                });
                if !known.services.iter().any(|known| known.hostname == service.hostname) {
                    known.services.push(service);
                }
            }
        }
    }
    found
}

fn of_ingress<'a>(proxy: &'a Proxy, ingress: &'a Ingress, origin: &Arc<Origin>) -> Port<'a> {
    let own = proxy.ip_addresses.first().map_or(ANY_ADDRESS, String::as_str);
    let target = match ingress.default_endpoint.strip_prefix("unix://") {
        Some(path) => Target::Socket(path),
        None => match ingress.default_endpoint.rsplit_once(':') {
            Some((address, port)) => match (address.trim_matches(['[', ']']), port.parse()) {
                ("0.0.0.0" | "::", Ok(port)) => Target::Address(own, port),
                (address, Ok(port)) if !address.is_empty() => Target::Address(address, port),
                _ => Target::Original,
            },
            None => Target::Original,
        },
    };
    let protocol = match Protocol::parse(&ingress.port.protocol) {
        // Once decrypted it is HTTP.
        Protocol::Https if ingress.tls.is_some() => Protocol::Http,
        protocol => protocol,
    };
    Port {
        number: ingress.port.number,
        bind: if ingress.bind.is_empty() { own.to_owned() } else { ingress.bind.clone() },
        protocol,
        service_port: ingress.port.number,
        target,
        services: Vec::new(),
        tls: ingress.tls.as_ref(),
        origin: origin.clone(),
    }
}

/// Clusters towards the workload's ports.
pub(super) fn clusters(mesh: &Mesh, proxy: &Proxy, scope: &Scope<'_>) -> Vec<Cluster> {
    ports(mesh, proxy, scope).values().map(|port| back(mesh, port)).collect()
}

fn back(mesh: &Mesh, port: &Port<'_>) -> Cluster {
    let name = names::inbound_cluster(port.number);
    let address = match &port.target {
        Target::Original => None,
        Target::Address(address, number) => wire::socket(address, *number),
        Target::Socket(path) => wire::endpoint_address(&format!("unix://{path}"), 0),
    };
    let mut made = match address {
        None => outward_free(cluster::passthrough(mesh, &name)),
        Some(address) => {
            let endpoint = LbEndpoint {
                host_identifier: Some(HostIdentifier::Endpoint(EnvoyEndpoint {
                    address: Some(address),
                    ..EnvoyEndpoint::default()
                })),
                ..LbEndpoint::default()
            };
            let mut made = cluster::unlimited(mesh, &name, DiscoveryType::Static);
            made.load_assignment = Some(ClusterLoadAssignment {
                cluster_name: name,
                endpoints: vec![LocalityLbEndpoints { lb_endpoints: vec![endpoint], ..LocalityLbEndpoints::default() }],
                ..ClusterLoadAssignment::default()
            });
            made
        }
    };
    cluster::http_options(&mut made, port.protocol, &TrafficPolicy::default(), true);
    let mut more = Default::default();
    if !port.services.is_empty() {
        let list: Vec<(&str, &str, &str)> = port
            .services
            .iter()
            .map(|service| (service.hostname.as_str(), service.name.as_str(), service.namespace.as_str()))
            .collect();
        more = wire::fields([("services", wire::services(&list))]);
    }
    made.metadata = wire::metadata(&port.origin, "spec", more);
    made
}

/// The cluster for ports that no service has.
pub(super) fn passthrough(mesh: &Mesh) -> Cluster {
    outward_free(cluster::passthrough(mesh, names::INBOUND_PASSTHROUGH))
}

fn outward_free(mut made: Cluster) -> Cluster {
    made.upstream_bind_config = Some(BindConfig {
        source_address: Some(SocketAddress {
            address: OWN_SOURCE.to_owned(),
            port_specifier: Some(PortSpecifier::PortValue(0)),
            ..SocketAddress::default()
        }),
        ..BindConfig::default()
    });
    made
}

/// The listener for all that the workload receives.
pub(super) fn listener(mesh: &Mesh, proxy: &Proxy, scope: &Scope<'_>) -> Listener {
    let modes = mesh.peer_authentications.modes(&proxy.namespace, &proxy.labels);
    let ports = ports(mesh, proxy, scope);
    let hole = FilterChain {
        name: "virtualInbound-blackhole".to_owned(),
        filter_chain_match: Some(FilterChainMatch {
            destination_port: wire::number(PORT),
            ..FilterChainMatch::default()
        }),
        filters: vec![manager::tcp(mesh, names::BLACK_HOLE)],
        ..FilterChain::default()
    };
    let mut chains = vec![hole];
    for port in ports.values() {
        of_port(mesh, &modes, port, &mut chains);
    }
    // Ports without a service that a policy speaks of, then all others.
    let unknown = modes.ports.iter().filter(|(port, _)| !ports.contains_key(*port));
    for (port, mode) in unknown.map(|(port, mode)| (Some(*port), *mode)).chain([(None, modes.default)]) {
        for shape in shapes(mode, Protocol::Auto) {
            let (name, filter) = if shape.http {
                let routes = inline(names::INBOUND_PASSTHROUGH, 0, names::INBOUND_PASSTHROUGH);
                ("virtualInbound-catchall-http", manager::http(mesh, Role::Inbound, names::INBOUND_PASSTHROUGH, routes))
            } else {
                ("virtualInbound", manager::tcp(mesh, names::INBOUND_PASSTHROUGH))
            };
            let context = shape.mutual.then(|| tls::workload(shape.http));
            chains.push(shape.chain(name.to_owned(), port, filter, context.as_ref()));
        }
    }
    Listener {
        name: "virtualInbound".to_owned(),
        address: wire::socket(ANY_ADDRESS, PORT),
        filter_chains: chains,
        listener_filters: inspectors(&modes, &ports),
        listener_filters_timeout: wire::span(Duration::ZERO),
        continue_on_listener_filters_timeout: true,
        traffic_direction: TrafficDirection::Inbound.into(),
        ..Listener::default()
    }
}

fn of_port(mesh: &Mesh, modes: &PortModes, port: &Port<'_>, chains: &mut Vec<FilterChain>) {
    let mode = modes.of(port.number);
    let cluster = names::inbound_cluster(port.number);
    let stat = format!("inbound_{ANY_ADDRESS}_{}", port.number);
    // The workload's own certificate serves where the mesh's is not wanted.
    let own = port.tls.filter(|_| mode == MutualTls::Disable);
    let shapes = match own {
        Some(_) => vec![Shape { transport: "tls", alpn: &[], http: port.protocol.is_http(), mutual: false }],
        None => shapes(mode, port.protocol),
    };
    for shape in shapes {
        let filter = if shape.http {
            manager::http(mesh, Role::Inbound, &stat, inline(&cluster, port.service_port, &cluster))
        } else {
            manager::tcp(mesh, &cluster)
        };
        let context = match own {
            Some(own) => Some(tls::ingress(own, shape.http)),
            None => shape.mutual.then(|| tls::workload(shape.http)),
        };
        let mut chain =
            shape.chain(names::listener(&port.bind, port.number), Some(port.number), filter, context.as_ref());
        chain.metadata = wire::metadata(&port.origin, "spec", Default::default());
        chains.push(chain);
    }
}

/// One way in which a port is spoken to.
struct Shape {
    transport: &'static str,
    alpn: &'static [&'static str],
    http: bool,
    /// True if the mesh's own mutual TLS is ended here.
    mutual: bool,
}

impl Shape {
    fn chain(
        &self,
        name: String,
        port: Option<u32>,
        filter: Filter,
        context: Option<&DownstreamTlsContext>,
    ) -> FilterChain {
        FilterChain {
            name,
            filter_chain_match: Some(FilterChainMatch {
                destination_port: port.and_then(wire::number),
                transport_protocol: self.transport.to_owned(),
                application_protocols: self.alpn.iter().map(|&name| name.to_owned()).collect(),
                ..FilterChainMatch::default()
            }),
            filters: vec![filter],
            transport_socket: context.map(tls::downstream_socket),
            ..FilterChain::default()
        }
    }
}

/// Which kinds of connection a port takes, and what is inside.
fn shapes(mode: MutualTls, protocol: Protocol) -> Vec<Shape> {
    let plain = |alpn, http| Shape { transport: "raw_buffer", alpn, http, mutual: false };
    let opaque = |http| Shape { transport: "tls", alpn: &[], http, mutual: false };
    let mutual = |alpn, http| Shape { transport: "tls", alpn, http, mutual: true };
    let http = protocol.is_http();
    match (mode, protocol) {
        (MutualTls::Strict, Protocol::Auto) => vec![mutual(&MESH_HTTP, true), mutual(&[], false)],
        (MutualTls::Strict, _) => vec![mutual(&[], http)],
        (MutualTls::Permissive, Protocol::Auto) => vec![
            mutual(&MESH_HTTP, true),
            plain(&PLAIN_HTTP, true),
            mutual(&MESH_BYTES, false),
            plain(&[], false),
            opaque(false),
        ],
        (MutualTls::Permissive, _) if http => vec![mutual(&MESH_ANY, true), plain(&[], true)],
        (MutualTls::Permissive, _) => vec![mutual(&MESH_ANY, false), opaque(false), plain(&[], false)],
        (MutualTls::Disable, Protocol::Auto) => vec![plain(&PLAIN_HTTP, true), plain(&[], false), opaque(false)],
        (MutualTls::Disable, _) => vec![plain(&[], http), opaque(http)],
    }
}

fn inline(name: &str, service_port: u32, cluster: &str) -> RouteSpecifier {
    RouteSpecifier::RouteConfig(RouteConfiguration {
        name: name.to_owned(),
        virtual_hosts: vec![VirtualHost {
            name: format!("inbound|http|{service_port}"),
            domains: vec!["*".to_owned()],
            routes: vec![http_route::direct("default", cluster)],
            ..VirtualHost::default()
        }],
        validate_clusters: wire::flag(false),
        max_direct_response_body_size_bytes: wire::number(super::DIRECT_RESPONSE_LIMIT),
        ..RouteConfiguration::default()
    })
}

/// Listener filters. One that waits for the client's first bytes must not run where the server speaks first.
fn inspectors(modes: &PortModes, ports: &BTreeMap<u32, Port<'_>>) -> Vec<ListenerFilter> {
    let plaintext = ports.values().filter(|port| modes.of(port.number) == MutualTls::Disable && port.tls.is_none());
    let declared = ports.values().filter(|port| port.protocol != Protocol::Auto);
    let mut tls = gateway::tls_inspector();
    tls.filter_disabled = disabled(plaintext.map(|port| port.number));
    let mut http = http_inspector();
    http.filter_disabled = disabled(declared.map(|port| port.number));
    vec![original_destination(), tls, http]
}

fn disabled(ports: impl Iterator<Item = u32>) -> Option<ListenerFilterChainMatchPredicate> {
    let mut rules: Vec<ListenerFilterChainMatchPredicate> = ports
        .filter_map(|port| i32::try_from(port).ok())
        .map(|port| ListenerFilterChainMatchPredicate {
            rule: Some(predicate::Rule::DestinationPortRange(Int32Range { start: port, end: port + 1 })),
        })
        .collect();
    if rules.len() < 2 {
        return rules.pop();
    }
    Some(ListenerFilterChainMatchPredicate { rule: Some(predicate::Rule::OrMatch(predicate::MatchSet { rules })) })
}

fn original_destination() -> ListenerFilter {
    ListenerFilter {
        name: "envoy.filters.listener.original_dst".to_owned(),
        config_type: Some(ConfigType::TypedConfig(wire::any(
            "envoy.extensions.filters.listener.original_dst.v3.OriginalDst",
            &OriginalDst {},
        ))),
        ..ListenerFilter::default()
    }
}

pub(super) fn http_inspector() -> ListenerFilter {
    ListenerFilter {
        name: "envoy.filters.listener.http_inspector".to_owned(),
        config_type: Some(ConfigType::TypedConfig(wire::any(
            "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector",
            &HttpInspector::default(),
        ))),
        ..ListenerFilter::default()
    }
}
