//! What a sidecar's workload sends: a listener for each port, or for each address and port where bytes do not name the
//! service, and one for everything else.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::{CidrRange, TrafficDirection};
use envoy_types::pb::envoy::config::listener::v3::{Filter, FilterChain, FilterChainMatch, Listener, ListenerFilter};

use super::connection_manager::{self as manager, Role};
use super::http_route::{self, Place};
use super::{gateway, inbound, names, wire};
use crate::model::api::{L4Match, VirtualService};
use crate::model::protocol::Protocol;
use crate::model::sidecar::{Reach, Scope};
use crate::model::{Config, MESH, Mesh, Origin, Proxy, Resolution, Service, ServicePort, host};

/// Where a sidecar takes what its workload sends.
pub(super) const PORT: u32 = 15_001;

pub(super) const ANY_ADDRESS: &str = "0.0.0.0";

/// What Envoy's HTTP inspector calls plain HTTP.
pub(super) const PLAIN_HTTP: [&str; 3] = ["http/1.0", "http/1.1", "h2c"];

/// How a listener tells what it is sent.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Http,
    Tcp,
    /// HTTP or not, by the first bytes.
    Auto,
}

/// The routes that a listener asks for.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct RouteKey {
    pub(super) name: String,
    pub(super) port: u32,
    /// The one service that a listener of its own is for.
    pub(super) host: Option<String>,
    /// Index of the egress listener in the scope.
    pub(super) reach: usize,
}

struct Entry {
    kind: Kind,
    chains: Vec<FilterChain>,
    route: Option<RouteKey>,
    origin: Arc<Origin>,
    captured: bool,
}

type Entries = BTreeMap<(String, u32), Entry>;

/// The routes that the sidecar's listeners ask for, each once.
pub(super) fn route_keys(mesh: &Mesh, proxy: &Proxy, scope: &Scope<'_>) -> Vec<RouteKey> {
    let mut keys: Vec<RouteKey> = Vec::new();
    for key in entries(mesh, proxy, scope).into_values().filter_map(|entry| entry.route) {
        if !keys.iter().any(|known| known.name == key.name) {
            keys.push(key);
        }
    }
    keys
}

/// All listeners for what the workload sends.
pub(super) fn listeners(mesh: &Mesh, proxy: &Proxy, scope: &Scope<'_>) -> Vec<Listener> {
    let made = entries(mesh, proxy, scope).into_iter();
    let mut list: Vec<Listener> =
        made.map(|((address, port), entry)| finished(mesh, scope, &address, port, entry)).collect();
    list.push(catch_all(mesh, scope));
    list
}

fn entries(mesh: &Mesh, proxy: &Proxy, scope: &Scope<'_>) -> Entries {
    let mut entries = Entries::new();
    for (index, reach) in scope.egress.iter().enumerate() {
        let maker = Maker { mesh, proxy, reach, index };
        match reach.port {
            Some(port) => maker.named(port, scope, &mut entries),
            None => {
                for service in &reach.services {
                    for port in &service.ports {
                        maker.of_port(service, port, &mut entries);
                    }
                }
            }
        }
    }
    entries
}

struct Maker<'a> {
    mesh: &'a Mesh,
    proxy: &'a Proxy,
    reach: &'a Reach<'a>,
    index: usize,
}

impl Maker<'_> {
    /// Listeners for one port of a service.
    fn of_port(&self, service: &Service, port: &ServicePort, entries: &mut Entries) {
        match port.protocol {
            Protocol::Udp => {}
            protocol if protocol.is_http() => self.http(ANY_ADDRESS, port.number, &service.origin, entries),
            _ if service.resolution == Resolution::Passthrough && service.addresses.is_empty() => {
                let mut addresses: Vec<&str> = service
                    .endpoints_of(port.number)
                    .iter()
                    .map(|endpoint| endpoint.address.as_str())
                    // What a workload sends to itself never meets its sidecar.
                    .filter(|address| address.parse::<IpAddr>().is_ok() && !self.is_own(address))
                    .collect();
                addresses.dedup();
                if addresses.is_empty() && !service.kubernetes {
                    self.bytes(service, port, ANY_ADDRESS, port.number, None, entries);
                }
                for address in addresses {
                    self.bytes(service, port, address, port.number, None, entries);
                }
            }
            _ if service.addresses.is_empty() => {
                self.bytes(service, port, ANY_ADDRESS, port.number, None, entries);
            }
            _ => {
                for address in &service.addresses {
                    match range(address) {
                        Some(range) if address.contains('/') && !is_single(&range) => {
                            self.bytes(service, port, ANY_ADDRESS, port.number, Some(range), entries);
                        }
                        Some(range) => self.bytes(service, port, &range.address_prefix, port.number, None, entries),
                        None => {}
                    }
                }
            }
        }
    }

    /// The listener that a Sidecar asks for on a port of its own.
    fn named(&self, port: &crate::model::api::Port, scope: &Scope<'_>, entries: &mut Entries) {
        let Some(config) = scope.config else { return };
        let given = self.reach.bind;
        let bind = match given {
            "" if !self.reach.captured => "127.0.0.1",
            "" => ANY_ADDRESS,
            given => given,
        };
        let protocol = Protocol::parse(&port.protocol);
        if protocol.is_http() {
            self.http(bind, port.number, &config.origin, entries);
            return;
        }
        for service in &self.reach.services {
            // The service's port of that number, or its only one.
            let only = match service.ports.as_slice() {
                [only] => Some(only),
                _ => None,
            };
            let Some(target) = service.port(port.number).or(only) else { continue };
            let target = ServicePort { protocol, ..target.clone() };
            let bind = match service.addresses.first() {
                Some(address) if given.is_empty() && self.reach.captured && !address.contains('/') => address.as_str(),
                _ => bind,
            };
            self.bytes(service, &target, bind, port.number, None, entries);
        }
    }

    fn is_own(&self, address: &str) -> bool {
        self.proxy.ip_addresses.iter().any(|own| own == address)
    }

    fn http(&self, address: &str, port: u32, origin: &Arc<Origin>, entries: &mut Entries) {
        let key = RouteKey { name: port.to_string(), port, host: None, reach: self.index };
        entries.entry((address.to_owned(), port)).or_insert_with(|| Entry {
            kind: Kind::Http,
            chains: vec![self.http_chain(address, port, &key)],
            route: Some(key),
            origin: origin.clone(),
            captured: self.reach.captured,
        });
    }

    fn http_chain(&self, address: &str, port: u32, key: &RouteKey) -> FilterChain {
        let stat = format!("outbound_{address}_{port}");
        let filter = manager::http(self.mesh, Role::Outbound, &stat, manager::discovered(key.name.clone()));
        FilterChain { filters: vec![filter], ..FilterChain::default() }
    }

    /// A listener for a port whose bytes may not be HTTP.
    fn bytes(
        &self,
        service: &Service,
        port: &ServicePort,
        address: &str,
        listen: u32,
        range: Option<CidrRange>,
        entries: &mut Entries,
    ) {
        let ranged = range.is_some();
        let mut chains = self.byte_chains(service, port, address, range);
        let mut route = None;
        // A range shares its listener with others, where the first bytes are not looked at.
        let kind = if port.protocol == Protocol::Auto && !ranged { Kind::Auto } else { Kind::Tcp };
        if kind == Kind::Auto {
            let own = address != ANY_ADDRESS;
            let name = if own { format!("{}:{listen}", service.hostname) } else { listen.to_string() };
            let host = own.then(|| service.hostname.clone());
            let key = RouteKey { name, port: listen, host, reach: self.index };
            let mut chain = self.http_chain(address, listen, &key);
            chain.filter_chain_match = Some(plain_http());
            chains.push(chain);
            route = Some(key);
        }
        match entries.get_mut(&(address.to_owned(), listen)) {
            None => {
                let entry =
                    Entry { kind, chains, route, origin: service.origin.clone(), captured: self.reach.captured };
                entries.insert((address.to_owned(), listen), entry);
            }
            // Services that bytes tell apart share a listener; otherwise the older service has it.
            Some(entry) if entry.kind == Kind::Tcp && kind == Kind::Tcp => {
                for chain in chains {
                    if !entry.chains.iter().any(|known| known.filter_chain_match == chain.filter_chain_match) {
                        entry.chains.push(chain);
                    }
                }
            }
            Some(_) => {}
        }
    }

    fn byte_chains(
        &self,
        service: &Service,
        port: &ServicePort,
        address: &str,
        range: Option<CidrRange>,
    ) -> Vec<FilterChain> {
        let gateways = [MESH.to_owned()];
        let place = Place { mesh: self.mesh, proxy: self.proxy, gateways: &gateways, port: port.number };
        let ranges: Vec<CidrRange> = range.into_iter().collect();
        let rules = self
            .reach
            .virtual_services
            .iter()
            .filter(|config| config.spec.hosts.iter().any(|own| host::subset_of(&service.hostname, own)));
        let mut chains = Vec::new();
        let plain = |names: Vec<String>| {
            let cluster = names::outbound_cluster(port.number, "", &service.hostname);
            chain(names, ranges.clone(), manager::tcp(self.mesh, &cluster), &service.origin, "spec")
        };
        if port.protocol.is_tls() {
            for config in rules {
                for (index, route) in config.spec.tls.iter().enumerate() {
                    for condition in route.matches.iter().filter(|condition| fits(&place, condition)) {
                        let filter = self.destinations(&place, config, &route.route);
                        let ranges = subnets(condition).unwrap_or_else(|| ranges.clone());
                        chains.extend(filter.map(|filter| {
                            let path = format!("spec.tls[{index}]");
                            chain(condition.sni_hosts.clone(), ranges, filter, &config.origin, &path)
                        }));
                    }
                }
            }
            if chains.is_empty() {
                // On an address that services share, the name in the handshake tells them apart.
                let shared = address == ANY_ADDRESS && ranges.is_empty();
                chains.push(plain(if shared { vec![service.hostname.clone()] } else { Vec::new() }));
            }
            return chains;
        }
        for config in rules {
            for (index, route) in config.spec.tcp.iter().enumerate() {
                let path = format!("spec.tcp[{index}]");
                let Some(filter) = self.destinations(&place, config, &route.route) else { continue };
                let fitting: Vec<&L4Match> = route.matches.iter().filter(|condition| fits(&place, condition)).collect();
                if route.matches.is_empty() || fitting.iter().any(|condition| condition.destination_subnets.is_empty())
                {
                    chains.push(chain(Vec::new(), ranges.clone(), filter, &config.origin, &path));
                    return chains;
                }
                for ranges in fitting.iter().filter_map(|condition| subnets(condition)) {
                    chains.push(chain(Vec::new(), ranges, filter.clone(), &config.origin, &path));
                }
            }
        }
        chains.push(plain(Vec::new()));
        chains
    }

    fn destinations(
        &self,
        place: &Place<'_>,
        config: &Config<VirtualService>,
        route: &[crate::model::api::WeightedDestination],
    ) -> Option<Filter> {
        manager::tcp_route(self.mesh, route, |to| http_route::cluster(place, config, &to.destination))
    }
}

fn fits(place: &Place<'_>, condition: &L4Match) -> bool {
    let gateway = condition.gateways.is_empty() || condition.gateways.iter().any(|name| place.gateways.contains(name));
    let port = condition.port == 0 || condition.port == place.port;
    let namespace = condition.source_namespace.is_empty() || condition.source_namespace == place.proxy.namespace;
    gateway && port && namespace && place.proxy.matches(&condition.source_labels)
}

fn subnets(condition: &L4Match) -> Option<Vec<CidrRange>> {
    let ranges: Vec<CidrRange> = condition.destination_subnets.iter().filter_map(|subnet| range(subnet)).collect();
    (!ranges.is_empty()).then_some(ranges)
}

fn chain(
    server_names: Vec<String>,
    prefix_ranges: Vec<CidrRange>,
    filter: Filter,
    origin: &Origin,
    path: &str,
) -> FilterChain {
    // An asterisk alone stands for no condition.
    let server_names = if server_names.iter().any(|name| name == "*") { Vec::new() } else { server_names };
    let asks = !server_names.is_empty() || !prefix_ranges.is_empty();
    FilterChain {
        filter_chain_match: asks.then(|| FilterChainMatch {
            server_names,
            prefix_ranges,
            ..FilterChainMatch::default()
        }),
        filters: vec![filter],
        metadata: wire::metadata(origin, path, Default::default()),
        ..FilterChain::default()
    }
}

/// The condition of plain HTTP, as the HTTP inspector finds it.
pub(super) fn plain_http() -> FilterChainMatch {
    FilterChainMatch {
        application_protocols: PLAIN_HTTP.iter().map(|&name| name.to_owned()).collect(),
        transport_protocol: "raw_buffer".to_owned(),
        ..FilterChainMatch::default()
    }
}

/// `address` or `address/length` as Envoy's range.
fn range(text: &str) -> Option<CidrRange> {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length.parse::<u32>().ok()?)),
        None => (text, None),
    };
    let parsed: IpAddr = address.parse().ok()?;
    let full = if parsed.is_ipv4() { 32 } else { 128 };
    let length = length.unwrap_or(full);
    (length <= full).then(|| CidrRange { address_prefix: address.to_owned(), prefix_len: wire::number(length) })
}

fn is_single(range: &CidrRange) -> bool {
    let full = if range.address_prefix.contains(':') { 128 } else { 32 };
    range.prefix_len.as_ref().is_some_and(|length| length.value == full)
}

/// Where bytes go that no chain knows.
fn elsewhere(scope: &Scope<'_>) -> &'static str {
    if scope.allow_any { names::PASSTHROUGH } else { names::BLACK_HOLE }
}

fn finished(mesh: &Mesh, scope: &Scope<'_>, address: &str, port: u32, mut entry: Entry) -> Listener {
    let mut default = None;
    if entry.kind == Kind::Auto {
        // Among conditions on transport and protocol a chain without any would be passed by; as the default it is not.
        let plain = entry.chains.iter().position(|chain| chain.filter_chain_match.is_none());
        default = plain.map(|index| entry.chains.remove(index));
    }
    if address == ANY_ADDRESS && default.is_none() {
        if entry.kind == Kind::Http {
            for chain in &mut entry.chains {
                chain.filter_chain_match = Some(plain_http());
            }
        }
        if entry.chains.iter().all(|chain| chain.filter_chain_match.is_some()) {
            default = Some(FilterChain {
                name: "PassthroughFilterChain".to_owned(),
                filters: vec![manager::tcp(mesh, elsewhere(scope))],
                ..FilterChain::default()
            });
        }
    }
    let asks = |test: fn(&FilterChainMatch) -> bool| {
        entry.chains.iter().filter_map(|chain| chain.filter_chain_match.as_ref()).any(test)
    };
    let mut filters: Vec<ListenerFilter> = Vec::new();
    if asks(|condition| !condition.server_names.is_empty() || !condition.transport_protocol.is_empty()) {
        filters.push(gateway::tls_inspector());
    }
    if asks(|condition| !condition.application_protocols.is_empty()) {
        filters.push(inbound::http_inspector());
    }
    Listener {
        name: names::listener(address, port),
        address: wire::socket(address, port),
        metadata: wire::metadata(&entry.origin, "spec", Default::default()),
        filter_chains: entry.chains,
        default_filter_chain: default,
        continue_on_listener_filters_timeout: !filters.is_empty(),
        listener_filters: filters,
        listener_filters_timeout: wire::span(std::time::Duration::ZERO),
        // Connections come by way of the listener that takes everything.
        bind_to_port: wire::flag(false).filter(|_| entry.captured),
        traffic_direction: TrafficDirection::Outbound.into(),
        ..Listener::default()
    }
}

/// Takes every connection and gives it to the listener of its original destination, or sends it on as it came.
fn catch_all(mesh: &Mesh, scope: &Scope<'_>) -> Listener {
    let hole = FilterChain {
        name: "virtualOutbound-blackhole".to_owned(),
        filter_chain_match: Some(FilterChainMatch {
            destination_port: wire::number(PORT),
            ..FilterChainMatch::default()
        }),
        filters: vec![manager::tcp(mesh, names::BLACK_HOLE)],
        ..FilterChain::default()
    };
    let rest = FilterChain {
        name: "virtualOutbound-catchall-tcp".to_owned(),
        filters: vec![manager::tcp(mesh, elsewhere(scope))],
        ..FilterChain::default()
    };
    Listener {
        name: "virtualOutbound".to_owned(),
        address: wire::socket(ANY_ADDRESS, PORT),
        filter_chains: vec![hole, rest],
        use_original_dst: wire::flag(true),
        traffic_direction: TrafficDirection::Outbound.into(),
        ..Listener::default()
    }
}
