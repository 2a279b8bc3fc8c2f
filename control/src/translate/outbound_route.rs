//! Routes of what a sidecar's workload sends.

use std::collections::{BTreeMap, BTreeSet};

use envoy_types::pb::envoy::config::route::v3::{
    DirectResponseAction, Route, RouteConfiguration, RouteMatch, VirtualHost, route::Action, route_match::PathSpecifier,
};

use super::http_route::{self, Place};
use super::outbound::{self, RouteKey};
use super::{balance, names, wire};
use crate::model::api::{Destination, VirtualService};
use crate::model::protocol::Protocol;
use crate::model::sidecar::{Reach, Scope};
use crate::model::{Config, MESH, Mesh, Origin, Proxy, Resolution, Service, host};

/// The port at which hosts outside the registry are taken to be.
const OUTSIDE_PORT: u32 = 80;

/// All route configurations that the sidecar's listeners ask for.
pub(super) fn routes(mesh: &Mesh, proxy: &Proxy, scope: &Scope<'_>) -> Vec<RouteConfiguration> {
    let keys = outbound::route_keys(mesh, proxy, scope);
    keys.iter().filter_map(|key| Some(configuration(mesh, proxy, scope, scope.egress.get(key.reach)?, key))).collect()
}

/// The routes of one key.
pub(super) fn configuration(
    mesh: &Mesh,
    proxy: &Proxy,
    scope: &Scope<'_>,
    reach: &Reach<'_>,
    key: &RouteKey,
) -> RouteConfiguration {
    let gateways = [MESH.to_owned()];
    let place = Place { mesh, proxy, gateways: &gateways, port: key.port };
    let services: BTreeMap<&str, &Service> = reach
        .services
        .iter()
        .filter(|service| key.host.as_ref().is_none_or(|host| *host == service.hostname))
        .filter(|service| {
            let port = service.port(key.port);
            port.is_some_and(|port| port.protocol.is_http() || port.protocol == Protocol::Auto)
        })
        .map(|service| (service.hostname.as_str(), *service))
        .collect();
    let rules: Vec<&Config<VirtualService>> =
        reach.virtual_services.iter().copied().filter(|config| speaks_of(config, key.port)).collect();
    let mut hosts =
        Hosts { place: &place, list: Vec::new(), taken: BTreeSet::new(), real: services.keys().copied().collect() };
    let mut covered: BTreeSet<&str> = BTreeSet::new();
    let deciding: BTreeMap<&str, &Config<VirtualService>> =
        services.keys().filter_map(|name| Some((*name, most_specific(&rules, name)?))).collect();
    for config in &rules {
        let own: Vec<&Service> = deciding
            .iter()
            .filter(|(_, decides)| std::ptr::eq(**decides, *config))
            .filter_map(|(name, _)| services.get(name).copied())
            .collect();
        // A host that is no service has no port of its own.
        let outside: Vec<&String> = config
            .spec
            .hosts
            .iter()
            .filter(|wanted| !services.keys().any(|name| host::subset_of(name, wanted)))
            // The Gateway API speaks of services only.
            .filter(|_| !config.is_of_gateway_api())
            .filter(|_| key.host.is_none() && (key.port == OUTSIDE_PORT || !own.is_empty()))
            .collect();
        if own.is_empty() && outside.is_empty() {
            continue;
        }
        let routes = http_route::routes(&place, config);
        if routes.is_empty() {
            continue;
        }
        for host in outside {
            hosts.add(host, None, routes.clone(), &config.origin, "spec.hosts");
        }
        for service in own {
            covered.insert(&service.hostname);
            hosts.add(&service.hostname, Some(service), routes.clone(), &config.origin, "spec.hosts");
        }
    }
    for service in services.values().copied().filter(|service| !covered.contains(service.hostname.as_str())) {
        let cluster = names::outbound_cluster(key.port, "", &service.hostname);
        let mut route = http_route::plain(&place, "default", cluster, Some(&service.origin));
        if let Some(Action::Route(action)) = &mut route.action {
            let to = Destination {
                port: Some(crate::model::api::PortSelector { number: key.port }),
                ..Destination::default()
            };
            action.hash_policy = balance::hash_policy(mesh, proxy, service, &to);
        }
        hosts.add(&service.hostname, Some(service), vec![route], &service.origin, "spec");
    }
    let mut list = hosts.list;
    if key.host.is_some() {
        // The listener's address says which service is meant, whatever the host field says.
        list.truncate(1);
        if let Some(only) = list.first_mut() {
            only.domains = vec!["*".to_owned()];
        }
    }
    if !list.iter().any(|host| host.domains.iter().any(|domain| domain == "*")) {
        list.push(everything_else(scope));
    }
    RouteConfiguration {
        name: key.name.clone(),
        virtual_hosts: list,
        ignore_port_in_host_matching: true,
        validate_clusters: wire::flag(false),
        max_direct_response_body_size_bytes: wire::number(super::DIRECT_RESPONSE_LIMIT),
        ..RouteConfiguration::default()
    }
}

/// True if the virtual service has routes; of the Gateway API's, which may be for one port, if some are for `port`.
fn speaks_of(config: &Config<VirtualService>, port: u32) -> bool {
    let all = !config.is_of_gateway_api();
    config.spec.http.iter().any(|route| {
        all || route.matches.is_empty()
            || route.matches.iter().any(|condition| condition.port == 0 || condition.port == port)
    })
}

/// The rule whose host is nearest to `name`; of equals the oldest.
fn most_specific<'a>(rules: &[&'a Config<VirtualService>], name: &str) -> Option<&'a Config<VirtualService>> {
    let pairs = rules.iter().flat_map(|config| config.spec.hosts.iter().map(move |host| (host, *config)));
    pairs
        .filter(|(host, _)| host::subset_of(name, host))
        .min_by(|one, other| host::by_specificity(one.0, other.0))
        .map(|(_, config)| config)
}

struct Hosts<'a> {
    place: &'a Place<'a>,
    list: Vec<VirtualHost>,
    taken: BTreeSet<String>,
    /// Names of services, which short forms of other names must not hide.
    real: BTreeSet<&'a str>,
}

impl Hosts<'_> {
    fn add(&mut self, name: &str, service: Option<&Service>, routes: Vec<Route>, origin: &Origin, path: &str) {
        let mut domains = vec![name.to_owned()];
        if let Some(service) = service {
            let short = short_names(service, self.place.proxy, &self.place.mesh.options.domain);
            domains.extend(short.into_iter().filter(|short| !self.real.contains(short.as_str())));
        }
        domains.retain(|domain| self.taken.insert(domain.to_ascii_lowercase()));
        if domains.is_empty() {
            return;
        }
        self.list.push(VirtualHost {
            name: format!("{name}:{}", self.place.port),
            domains,
            routes,
            include_request_attempt_count: true,
            metadata: wire::metadata(origin, path, Default::default()),
            ..VirtualHost::default()
        });
    }
}

/// Other names of a service as a workload in the proxy's namespace may write them, and its addresses.
fn short_names(service: &Service, proxy: &Proxy, domain: &str) -> Vec<String> {
    let mut names = Vec::new();
    let suffix = format!(".svc.{domain}");
    if let Some((name, namespace)) =
        service.hostname.strip_suffix(suffix.as_str()).and_then(|rest| rest.rsplit_once('.'))
    {
        names.push(format!("{}.", service.hostname));
        if namespace == proxy.namespace {
            names.push(name.to_owned());
        }
        names.push(format!("{name}.{namespace}"));
        names.push(format!("{name}.{namespace}.svc"));
    }
    if service.resolution == Resolution::Passthrough && service.kubernetes {
        // Each pod of a headless service has a name below the service's.
        let below: Vec<String> =
            std::iter::once(&service.hostname).chain(&names).map(|name| format!("*.{name}")).collect();
        names.extend(below);
    }
    names.extend(
        service
            .addresses
            .iter()
            .filter(|address| !address.contains('/'))
            .map(|address| if address.contains(':') { format!("[{address}]") } else { address.clone() }),
    );
    names
}

/// What hosts meet that nobody knows.
fn everything_else(scope: &Scope<'_>) -> VirtualHost {
    let (name, route) = if scope.allow_any {
        ("allow_any", http_route::direct("allow_any", names::PASSTHROUGH))
    } else {
        let refused = Route {
            name: "block_all".to_owned(),
            r#match: Some(RouteMatch {
                path_specifier: Some(PathSpecifier::Prefix("/".to_owned())),
                ..RouteMatch::default()
            }),
            action: Some(Action::DirectResponse(DirectResponseAction {
                status: 502,
                ..DirectResponseAction::default()
            })),
            ..Route::default()
        };
        ("block_all", refused)
    };
    VirtualHost {
        name: name.to_owned(),
        domains: vec!["*".to_owned()],
        routes: vec![route],
        include_request_attempt_count: true,
        ..VirtualHost::default()
    }
}
