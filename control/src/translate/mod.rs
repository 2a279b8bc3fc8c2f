//! The mesh as one proxy must see it, in Envoy's API. Pure: the same mesh and proxy give the same messages, in the same order.

mod balance;
mod cluster;
mod connection_manager;
mod endpoint;
mod gateway;
mod grpc;
mod http_route;
mod inbound;
pub mod names;
mod outbound;
mod outbound_route;
mod tls;
mod wire;

use std::collections::{BTreeMap, BTreeSet};

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::Secret;

use crate::model::protocol::Protocol;
use crate::model::sidecar::Scope;
use crate::model::{Mesh, Proxy, ProxyKind, Service};

/// The largest body of a direct response, as Istio sets it.
const DIRECT_RESPONSE_LIMIT: u32 = 1024 * 1024;

/// All listeners of `proxy`, each under its name.
pub fn listeners(mesh: &Mesh, proxy: &Proxy) -> Vec<(String, Listener)> {
    let list = match proxy.kind {
        ProxyKind::Gateway => gateway::listeners(mesh, proxy),
        ProxyKind::Sidecar => {
            let scope = Scope::of(mesh, proxy);
            let mut list = outbound::listeners(mesh, proxy, &scope);
            list.push(inbound::listener(mesh, proxy, &scope));
            list
        }
    };
    list.into_iter().map(|listener| (listener.name.clone(), listener)).collect()
}

/// All route configurations of `proxy`.
pub fn routes(mesh: &Mesh, proxy: &Proxy) -> Vec<(String, RouteConfiguration)> {
    let list = match proxy.kind {
        ProxyKind::Gateway => gateway::routes(mesh, proxy),
        ProxyKind::Sidecar => outbound_route::routes(mesh, proxy, &Scope::of(mesh, proxy)),
    };
    list.into_iter().map(|routes| (routes.name.clone(), routes)).collect()
}

/// What a gRPC client without a proxy asked for by name: its listeners, each under its name.
pub fn grpc_listeners(mesh: &Mesh, proxy: &Proxy, wanted: &BTreeSet<String>) -> Vec<(String, Listener)> {
    grpc::listeners(mesh, proxy, wanted).into_iter().map(|listener| (listener.name.clone(), listener)).collect()
}

/// The route configurations that a gRPC client without a proxy asked for.
pub fn grpc_routes(mesh: &Mesh, proxy: &Proxy, wanted: &BTreeSet<String>) -> Vec<(String, RouteConfiguration)> {
    grpc::routes(mesh, proxy, wanted).into_iter().map(|routes| (routes.name.clone(), routes)).collect()
}

/// The clusters that a gRPC client without a proxy asked for.
pub fn grpc_clusters(mesh: &Mesh, proxy: &Proxy, wanted: &BTreeSet<String>) -> Vec<(String, Cluster)> {
    grpc::clusters(mesh, proxy, wanted).into_iter().map(|cluster| (cluster.name.clone(), cluster)).collect()
}

/// The services whose clusters a gateway gets: those that its routes lead to.
fn services<'a>(mesh: &'a Mesh, proxy: &Proxy) -> Vec<&'a Service> {
    let hosts = gateway::destinations(mesh, proxy);
    hosts.iter().filter_map(|host| mesh.service(host, &proxy.namespace)).map(|service| service.as_ref()).collect()
}

/// All clusters of `proxy`.
pub fn clusters(mesh: &Mesh, proxy: &Proxy) -> Vec<(String, Cluster)> {
    let mut list: Vec<Cluster> = Vec::new();
    let services = match proxy.kind {
        ProxyKind::Gateway => services(mesh, proxy),
        ProxyKind::Sidecar => {
            let scope = Scope::of(mesh, proxy);
            list.extend(inbound::clusters(mesh, proxy, &scope));
            list.push(cluster::passthrough(mesh, names::PASSTHROUGH));
            list.push(inbound::passthrough(mesh));
            scope.services(mesh, proxy)
        }
    };
    for service in services {
        for port in service.ports.iter().filter(|port| port.protocol != Protocol::Udp) {
            list.extend(cluster::of_port(mesh, proxy, service, port));
        }
    }
    list.push(cluster::black_hole(mesh));
    let by_name: BTreeMap<String, Cluster> = list.into_iter().map(|cluster| (cluster.name.clone(), cluster)).collect();
    by_name.into_iter().collect()
}

/// The endpoints of the clusters called `wanted`, or of all clusters of `proxy` that are discovered.
pub fn endpoints(
    mesh: &Mesh,
    proxy: &Proxy,
    wanted: Option<&BTreeSet<String>>,
) -> Vec<(String, ClusterLoadAssignment)> {
    match wanted {
        Some(wanted) => {
            wanted.iter().filter_map(|name| Some((name.clone(), endpoints_of(mesh, proxy, name)?))).collect()
        }
        None => clusters(mesh, proxy)
            .into_iter()
            .filter(|(_, cluster)| cluster.eds_cluster_config.is_some())
            .filter_map(|(name, _)| endpoints_of(mesh, proxy, &name).map(|assignment| (name, assignment)))
            .collect(),
    }
}

/// The endpoints of one outbound cluster; `None` where its service does not exist. Costs no more than that cluster.
pub fn endpoints_of(mesh: &Mesh, proxy: &Proxy, name: &str) -> Option<ClusterLoadAssignment> {
    let mut parts = name.splitn(4, '|');
    let (direction, port, subset, host) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    if direction != "outbound" {
        return None;
    }
    let port = port.parse().ok()?;
    let service = mesh.service(host, &proxy.namespace)?;
    service.port(port)?;
    Some(endpoint::assignment(mesh, proxy, name, service, port, subset))
}

/// The secrets called `wanted` that `proxy` may have: those of its own namespace.
pub fn secrets(mesh: &Mesh, proxy: &Proxy, wanted: &BTreeSet<String>) -> Vec<(String, Secret)> {
    let found =
        wanted.iter().filter_map(|name| Some((name.clone(), tls::secret(mesh, &proxy.metadata_namespace, name)?)));
    found.collect()
}
