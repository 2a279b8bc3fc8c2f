//! Gateways that select one proxy, merged by port: listeners and routes.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use envoy_types::pb::envoy::config::core::v3::TrafficDirection;
use envoy_types::pb::envoy::config::listener::v3::{
    FilterChain, FilterChainMatch, Listener, ListenerFilter, listener_filter,
};
use envoy_types::pb::envoy::config::route::v3::{RouteConfiguration, VirtualHost, virtual_host::TlsRequirementType};
use envoy_types::pb::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;

use super::connection_manager::{self as manager, Role};
use super::http_route::{self, Place};
use super::{names, tls, wire};
use crate::model::api::{Gateway, L4Match, Server, VirtualService};
use crate::model::protocol::Protocol;
use crate::model::{Config, Mesh, Proxy, host};

const PORT_KEPT: &str = "experimental.istio.io/disable-gateway-port-translation";
const OWN_SERVICES: &str = "internal.istio.io/gateway-service";
const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";

/// A server of some Gateway on the port where this proxy serves it.
struct Bound<'a> {
    gateway: &'a Config<Gateway>,
    server: &'a Server,
    /// Which of the gateway's servers it is.
    index: usize,
    port: u32,
    protocol: Protocol,
    /// `namespace/host` or `host`; what an earlier server of the port has already is left out.
    hosts: Vec<String>,
}

impl<'a> Bound<'a> {
    fn new(gateway: &'a Config<Gateway>, index: usize, port: u32, server: &'a Server) -> Self {
        let hosts = server.hosts.iter().map(|host| match host.split_once('/') {
            Some((".", host)) => format!("{}/{host}", gateway.namespace),
            Some(("*", host)) => host.to_owned(),
            _ => host.clone(),
        });
        let protocol = Protocol::parse(&server.port.protocol);
        Self { gateway, server, index, port, protocol, hosts: hosts.collect() }
    }

    /// Where the gateway's object says it.
    fn path(&self) -> String {
        format!("spec.servers[{}]", self.index)
    }

    fn name(&self) -> String {
        format!("{}/{}", self.gateway.namespace, self.gateway.name)
    }

    fn terminates(&self) -> bool {
        self.server.tls.as_ref().is_some_and(|tls| !matches!(tls.mode.as_str(), "PASSTHROUGH" | "AUTO_PASSTHROUGH"))
    }

    fn redirects(&self) -> bool {
        self.server.tls.as_ref().is_some_and(|tls| tls.https_redirect)
    }

    fn is_https(&self) -> bool {
        self.protocol == Protocol::Https && self.terminates()
    }

    fn plain_hosts(&self) -> Vec<String> {
        self.hosts.iter().map(|host| host.rsplit('/').next().unwrap_or_default().to_owned()).collect()
    }

    fn route_name(&self) -> Option<String> {
        if self.protocol.is_http() {
            Some(format!("http.{}", self.port))
        } else if self.is_https() {
            let port = &self.server.port;
            Some(names::https_route(port.number, &port.name, &self.gateway.name, &self.gateway.namespace))
        } else {
            None
        }
    }

    /// Hosts that both the virtual service and this server have, the narrower of each pair.
    fn common_hosts(&self, config: &Config<VirtualService>) -> Vec<String> {
        let mut found = Vec::new();
        for wanted in &config.spec.hosts {
            for own in &self.hosts {
                let own = match own.split_once('/') {
                    Some((namespace, host)) if namespace == config.namespace => host,
                    Some(_) => continue,
                    None => own,
                };
                let narrower = if host::subset_of(own, wanted) {
                    own
                } else if host::subset_of(wanted, own) {
                    wanted
                } else {
                    continue;
                };
                if !found.iter().any(|known| known == narrower) {
                    found.push(narrower.to_owned());
                }
            }
        }
        found
    }
}

/// Servers by address and port, in the order in which they merge.
fn bound<'a>(mesh: &'a Mesh, proxy: &Proxy) -> BTreeMap<(String, u32), Vec<Bound<'a>>> {
    let own = mesh.services_at(&proxy.ip_addresses);
    let target = |service: &crate::model::Service, port: u32| -> Vec<u32> {
        let here = service.endpoints_of(port).iter().filter(|endpoint| proxy.ip_addresses.contains(&endpoint.address));
        let ports: BTreeSet<u32> = here.map(|endpoint| endpoint.port).collect();
        ports.into_iter().collect()
    };
    let mut result: BTreeMap<(String, u32), Vec<Bound<'a>>> = BTreeMap::new();
    for gateway in &mesh.gateways {
        let annotated = gateway.annotations.get(OWN_SERVICES);
        let selected = match annotated {
            Some(_) => gateway.namespace == proxy.metadata_namespace,
            None => proxy.matches(&gateway.spec.selector),
        };
        if !selected {
            continue;
        }
        for (index, server) in gateway.spec.servers.iter().enumerate() {
            let number = server.port.number;
            let ports: Vec<u32> = match annotated {
                Some(list) => {
                    let named: Vec<&str> = list.split(',').map(str::trim).collect();
                    let of = own.iter().filter(|service| {
                        named.contains(&service.hostname.as_str()) && service.namespace == gateway.namespace
                    });
                    let mut ports: BTreeSet<u32> = of.flat_map(|service| target(service, number)).collect();
                    // Proxies that no Service leads to say by a label whose they are.
                    let own = gateway.annotations.get(GATEWAY_NAME);
                    if ports.is_empty() && own.is_some() && proxy.labels.get(GATEWAY_NAME) == own {
                        ports.insert(number);
                    }
                    ports.into_iter().collect()
                }
                None => {
                    let mut translated = own
                        .iter()
                        .filter(|service| !service.labels.contains_key(PORT_KEPT))
                        .map(|service| target(service, number));
                    vec![translated.find_map(|ports| ports.first().copied()).unwrap_or(number)]
                }
            };
            for port in ports {
                let address = if server.bind.is_empty() { "0.0.0.0" } else { server.bind.as_str() };
                let list = result.entry((address.to_owned(), port)).or_default();
                add(list, Bound::new(gateway, index, port, server));
            }
        }
    }
    result
}

fn add<'a>(list: &mut Vec<Bound<'a>>, mut new: Bound<'a>) {
    if let Some(first) = list.first() {
        // A port speaks one language: HTTP, TLS or TCP.
        let kind =
            |bound: &Bound<'_>| (bound.protocol.is_http(), bound.server.tls.is_some() && !bound.protocol.is_http());
        // Plain TCP has no names to tell servers apart, so the first one has the port.
        let plain_tcp = !new.protocol.is_http() && new.server.tls.is_none();
        if plain_tcp || kind(first) != kind(&new) {
            return;
        }
    }
    if new.server.tls.is_some() && !new.protocol.is_http() {
        new.hosts.retain(|host| !list.iter().any(|known| known.hosts.contains(host)));
        if new.hosts.is_empty() {
            return;
        }
    }
    list.push(new);
}

/// Listeners of a gateway.
pub(super) fn listeners(mesh: &Mesh, proxy: &Proxy) -> Vec<Listener> {
    let mut result = Vec::new();
    for ((address, port), servers) in bound(mesh, proxy) {
        let name = names::listener(&address, port);
        let stat = format!("outbound_{name}");
        let mut chains: Vec<FilterChain> = Vec::new();
        let mut with_tls = false;
        if servers.first().is_some_and(|first| first.protocol.is_http()) {
            chains.push(FilterChain {
                filters: vec![manager::http(mesh, Role::Gateway, &stat, manager::discovered(format!("http.{port}")))],
                ..FilterChain::default()
            });
        } else {
            for server in &servers {
                with_tls |= server.server.tls.is_some();
                of_server(mesh, proxy, server, &stat, &mut chains);
            }
        }
        let mut seen: Vec<(Vec<String>, Vec<_>)> = Vec::new();
        chains.retain_mut(|chain| {
            let Some(condition) = &mut chain.filter_chain_match else { return true };
            // Each name leads to one chain: the first that has it.
            let before = condition.server_names.len();
            let same_prefixes = seen.iter().filter(|(_, prefixes)| *prefixes == condition.prefix_ranges);
            let taken: Vec<&String> = same_prefixes.flat_map(|(names, _)| names).collect();
            condition.server_names.retain(|name| !taken.contains(&name));
            if before > 0 && condition.server_names.is_empty() {
                return false;
            }
            seen.push((condition.server_names.clone(), condition.prefix_ranges.clone()));
            true
        });
        if chains.is_empty() {
            continue;
        }
        let origin = servers.first().map(|server| server.gateway.origin.clone());
        result.push(Listener {
            name,
            address: wire::socket(&address, port),
            metadata: origin.and_then(|origin| wire::metadata(&origin, "spec", Default::default())),
            filter_chains: chains,
            listener_filters: if with_tls { vec![tls_inspector()] } else { Vec::new() },
            continue_on_listener_filters_timeout: with_tls,
            traffic_direction: TrafficDirection::Outbound.into(),
            ..Listener::default()
        });
    }
    result
}

pub(super) fn tls_inspector() -> ListenerFilter {
    ListenerFilter {
        name: "envoy.filters.listener.tls_inspector".to_owned(),
        config_type: Some(listener_filter::ConfigType::TypedConfig(wire::any(
            "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector",
            &TlsInspector::default(),
        ))),
        ..ListenerFilter::default()
    }
}

/// Server names of a chain; none where any name will do.
fn server_names(hosts: &[String]) -> Vec<String> {
    if hosts.iter().any(|host| host == "*") { Vec::new() } else { hosts.to_vec() }
}

fn of_server(mesh: &Mesh, proxy: &Proxy, server: &Bound<'_>, stat: &str, chains: &mut Vec<FilterChain>) {
    let context = server.server.tls.as_ref().and_then(|tls| {
        let alpn: &[&str] = if server.is_https() { &["h2", "http/1.1"] } else { &[] };
        tls::server(tls, alpn)
    });
    let metadata = wire::metadata(&server.gateway.origin, &server.path(), Default::default());
    let chain = |names: Vec<String>, filter| FilterChain {
        filter_chain_match: (!names.is_empty())
            .then(|| FilterChainMatch { server_names: names, ..FilterChainMatch::default() }),
        filters: vec![filter],
        transport_socket: context.as_ref().map(tls::downstream_socket),
        metadata: metadata.clone(),
        ..FilterChain::default()
    };
    if let (true, Some(route)) = (server.is_https(), server.route_name()) {
        chains.push(chain(
            server_names(&server.plain_hosts()),
            manager::http(mesh, Role::Gateway, stat, manager::discovered(route)),
        ));
        return;
    }
    let name = [server.name()];
    let place = Place { mesh, proxy, gateways: &name, port: server.server.port.number };
    for config in attached(mesh, proxy, &name[0]) {
        let common = server.common_hosts(config);
        if common.is_empty() {
            continue;
        }
        let fits = |condition: &L4Match| {
            let gateway = condition.gateways.is_empty() || condition.gateways.contains(&name[0]);
            gateway && (condition.port == 0 || condition.port == server.server.port.number)
        };
        if server.server.tls.is_some() {
            for route in &config.spec.tls {
                for condition in route.matches.iter().filter(|condition| fits(condition)) {
                    let own = server.plain_hosts();
                    let names: Vec<String> = condition
                        .sni_hosts
                        .iter()
                        .filter(|sni| own.iter().any(|own| host::overlap(own, sni)))
                        .cloned()
                        .collect();
                    if names.is_empty() {
                        continue;
                    }
                    let filter = manager::tcp_route(mesh, &route.route, |to| {
                        http_route::cluster(&place, config, &to.destination)
                    });
                    chains.extend(filter.map(|filter| chain(server_names(&names), filter)));
                }
            }
        }
        if server.server.tls.is_none() || server.terminates() {
            for route in &config.spec.tcp {
                if !route.matches.is_empty() && !route.matches.iter().any(fits) {
                    continue;
                }
                let names = if server.server.tls.is_some() { server_names(&server.plain_hosts()) } else { Vec::new() };
                if names.is_empty() && chains.iter().any(|chain| chain.filter_chain_match.is_none()) {
                    continue;
                }
                let filter =
                    manager::tcp_route(mesh, &route.route, |to| http_route::cluster(&place, config, &to.destination));
                chains.extend(filter.map(|filter| chain(names, filter)));
            }
        }
    }
}

/// Virtual services of a gateway that this proxy may use, oldest first.
fn attached<'a>(
    mesh: &'a Mesh,
    proxy: &'a Proxy,
    gateway: &'a str,
) -> impl Iterator<Item = &'a Config<VirtualService>> {
    mesh.virtual_services
        .iter()
        .filter(move |config| {
            config.spec.gateways.iter().any(|name| name == gateway) && mesh.may_use(config, &proxy.metadata_namespace)
        })
        .map(|config| config.as_ref())
}

/// Route configurations of a gateway.
pub(super) fn routes(mesh: &Mesh, proxy: &Proxy) -> Vec<RouteConfiguration> {
    let mut by_name: BTreeMap<String, Vec<Bound<'_>>> = BTreeMap::new();
    for server in bound(mesh, proxy).into_values().flatten() {
        if let Some(name) = server.route_name() {
            by_name.entry(name).or_default().push(server);
        }
    }
    by_name.into_iter().map(|(name, servers)| configuration(mesh, proxy, name, &servers)).collect()
}

fn configuration(mesh: &Mesh, proxy: &Proxy, name: String, servers: &[Bound<'_>]) -> RouteConfiguration {
    let mut hosts: Vec<VirtualHost> = Vec::new();
    // Where in `hosts` each name is.
    let mut places: HashMap<String, usize> = HashMap::new();
    let mut merged: BTreeSet<(String, String, String)> = BTreeSet::new();
    for server in servers {
        let gateway = [server.name()];
        let number = server.server.port.number;
        let place = Place { mesh, proxy, gateways: &gateway, port: number };
        for config in attached(mesh, proxy, &gateway[0]) {
            if config.spec.http.is_empty() {
                continue;
            }
            let mut routes = None;
            for host in server.common_hosts(config) {
                // Two gateways with one host show it the same virtual service once.
                if !merged.insert((host.clone(), config.namespace.clone(), config.name.clone())) {
                    continue;
                }
                let routes = routes.get_or_insert_with(|| http_route::routes(&place, config)).clone();
                match places.get(&host).and_then(|place| hosts.get_mut(*place)) {
                    Some(known) => known.routes.extend(routes),
                    None => {
                        places.insert(host.clone(), hosts.len());
                        hosts.push(VirtualHost {
                            name: format!("{host}:{number}"),
                            domains: vec![host],
                            routes,
                            include_request_attempt_count: true,
                            metadata: wire::metadata(&config.origin, "spec.hosts", Default::default()),
                            ..VirtualHost::default()
                        });
                    }
                }
            }
        }
        if !server.redirects() {
            continue;
        }
        for host in server.plain_hosts() {
            match places.get(&host).and_then(|place| hosts.get_mut(*place)) {
                Some(known) => redirect(known, server),
                None => {
                    places.insert(host.clone(), hosts.len());
                    hosts.push(VirtualHost {
                        name: format!("{host}:{number}"),
                        domains: vec![host],
                        include_request_attempt_count: true,
                        require_tls: TlsRequirementType::All.into(),
                        metadata: wire::metadata(&server.gateway.origin, &server.path(), Default::default()),
                        ..VirtualHost::default()
                    });
                }
            }
        }
        for known in &mut hosts {
            let covered = server
                .plain_hosts()
                .iter()
                .any(|host| known.domains.iter().all(|domain| host::subset_of(domain, host)));
            if covered {
                redirect(known, server);
            }
        }
    }
    for host in &mut hosts {
        // What takes every request comes last, in whichever order virtual services were merged.
        host.routes.sort_by_key(http_route::takes_everything);
        let mut everything = false;
        host.routes.retain(|route| {
            let reached = !everything;
            everything |= http_route::takes_everything(route);
            reached
        });
    }
    if hosts.is_empty() {
        let number = servers.first().map_or(0, |server| server.port);
        hosts.push(VirtualHost {
            name: format!("blackhole:{number}"),
            domains: vec!["*".to_owned()],
            ..VirtualHost::default()
        });
    }
    RouteConfiguration {
        name,
        virtual_hosts: hosts,
        ignore_port_in_host_matching: true,
        validate_clusters: wire::flag(false),
        max_direct_response_body_size_bytes: wire::number(super::DIRECT_RESPONSE_LIMIT),
        ..RouteConfiguration::default()
    }
}

/// Every request to the host is answered with a redirect, which is the server's doing, not the virtual service's.
fn redirect(host: &mut VirtualHost, server: &Bound<'_>) {
    host.require_tls = TlsRequirementType::All.into();
    host.metadata = wire::metadata(&server.gateway.origin, &server.path(), Default::default());
}

/// Hosts that this gateway's routes lead to.
pub(super) fn destinations(mesh: &Mesh, proxy: &Proxy) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let names: BTreeSet<String> = bound(mesh, proxy).into_values().flatten().map(|server| server.name()).collect();
    for name in &names {
        for config in attached(mesh, proxy, name) {
            config.spec.destinations(&mut found);
        }
    }
    found
}
