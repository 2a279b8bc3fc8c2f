//! gRPC clients without a proxy (`xds:///host:port`): the resources that they ask for by name, in the form that gRPC takes.
//!
//! What they cannot do is left out: filters other than the router, matches of transport sockets, policies of balancing but round robin
//! and ring hash. Source: gRPC's proposals A27, A28 and A42.

use std::collections::BTreeSet;

use envoy_types::pb::envoy::config::cluster::v3::{Cluster, cluster};
use envoy_types::pb::envoy::config::listener::v3::{ApiListener, Listener};
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, http_filter,
};

use super::connection_manager::discovered;
use super::outbound::RouteKey;
use super::{cluster as clusters_of, names, outbound_route, wire};
use crate::model::sidecar::Scope;
use crate::model::{Mesh, Proxy, Service};

/// The listeners called `wanted`, each named as the client dials: `host:port`.
pub(super) fn listeners(mesh: &Mesh, proxy: &Proxy, wanted: &BTreeSet<String>) -> Vec<Listener> {
    let found = wanted.iter().filter_map(|name| {
        let (host, port) = name.rsplit_once(':')?;
        let (service, port) = service(mesh, proxy, host, port)?;
        let manager = HttpConnectionManager {
            route_specifier: Some(discovered(names::outbound_cluster(port, "", &service.hostname))),
            http_filters: vec![HttpFilter {
                name: "envoy.filters.http.router".to_owned(),
                config_type: Some(http_filter::ConfigType::TypedConfig(wire::any(
                    "envoy.extensions.filters.http.router.v3.Router",
                    &Router::default(),
                ))),
                ..HttpFilter::default()
            }],
            ..HttpConnectionManager::default()
        };
        Some(Listener {
            name: name.clone(),
            metadata: wire::metadata(&service.origin, "spec", Default::default()),
            api_listener: Some(ApiListener {
                api_listener: Some(wire::any(
                    "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                    &manager,
                )),
            }),
            ..Listener::default()
        })
    });
    found.collect()
}

/// The route configurations called `wanted`: `outbound|port||host`.
pub(super) fn routes(mesh: &Mesh, proxy: &Proxy, wanted: &BTreeSet<String>) -> Vec<RouteConfiguration> {
    let scope = Scope::of(mesh, proxy);
    let found = wanted.iter().filter_map(|name| {
        let (service, port) = cluster(mesh, proxy, name)?;
        let here = |known: &&Service| known.hostname == service.hostname;
        let reach = scope.egress.iter().position(|reach| reach.services.iter().any(here))?;
        let key = RouteKey { name: name.clone(), port, host: Some(service.hostname.clone()), reach };
        let mut made = outbound_route::configuration(mesh, proxy, &scope, scope.egress.get(reach)?, &key);
        for route in made.virtual_hosts.iter_mut().flat_map(|host| &mut host.routes) {
            // For filters that are not there.
            route.typed_per_filter_config.clear();
        }
        Some(made)
    });
    found.collect()
}

/// The clusters called `wanted`: `outbound|port|subset|host`.
pub(super) fn clusters(mesh: &Mesh, proxy: &Proxy, wanted: &BTreeSet<String>) -> Vec<Cluster> {
    let found = wanted.iter().filter_map(|name| {
        let (service, port) = cluster(mesh, proxy, name)?;
        let port = service.port(port)?;
        let all = clusters_of::of_port(mesh, proxy, service, port);
        let mut made = all.into_iter().find(|made| made.name == *name)?;
        made.transport_socket_matches.clear();
        made.typed_extension_protocol_options.clear();
        if made.lb_policy != i32::from(cluster::LbPolicy::RingHash) {
            made.lb_policy = cluster::LbPolicy::RoundRobin.into();
            made.lb_config = None;
        }
        Some(made)
    });
    found.collect()
}

fn service<'a>(mesh: &'a Mesh, proxy: &Proxy, host: &str, port: &str) -> Option<(&'a Service, u32)> {
    let port = port.parse().ok()?;
    let host = mesh.full_name(host, &proxy.namespace);
    let service = mesh.service(&host, &proxy.namespace)?;
    service.port(port)?;
    Some((service, port))
}

fn cluster<'a>(mesh: &'a Mesh, proxy: &Proxy, name: &str) -> Option<(&'a Service, u32)> {
    let mut parts = name.splitn(4, '|');
    let (direction, port, _, host) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    service(mesh, proxy, host, port).filter(|_| direction == "outbound")
}
