//! What one sidecar may reach: the Sidecar object that applies to it, and the services and virtual services it lets through.

use std::collections::{BTreeMap, BTreeSet};

use super::api::{Egress, Port, Sidecar, VirtualService};
use super::config::Config;
use super::host;
use super::mesh::{Mesh, selects};
use super::proxy::Proxy;
use super::service::Service;
use super::virtual_service::MESH;

/// The reach of one sidecar.
pub(crate) struct Scope<'a> {
    pub(crate) config: Option<&'a Config<Sidecar>>,
    pub(crate) egress: Vec<Reach<'a>>,
    /// True if what the mesh does not know may be reached too.
    pub(crate) allow_any: bool,
}

/// What is reached through one egress listener.
pub(crate) struct Reach<'a> {
    /// The listener's own port and address; all ports of the services where there is none.
    pub(crate) port: Option<&'a Port>,
    pub(crate) bind: &'a str,
    pub(crate) captured: bool,
    /// Oldest first, one for each host name.
    pub(crate) services: Vec<&'a Service>,
    /// Those for the mesh, oldest first.
    pub(crate) virtual_services: Vec<&'a Config<VirtualService>>,
}

impl<'a> Scope<'a> {
    pub(crate) fn of(mesh: &'a Mesh, proxy: &Proxy) -> Self {
        let config = selected(mesh, proxy);
        let policy = config
            .and_then(|config| config.spec.outbound_traffic_policy.as_ref())
            .or(mesh.config.outbound_traffic_policy.as_ref());
        let egress = config.map_or(&[][..], |config| config.spec.egress.as_slice());
        let everything = ["*/*".to_owned()];
        let egress = if egress.is_empty() {
            vec![reach(mesh, proxy, None, &everything)]
        } else {
            egress.iter().map(|egress| reach(mesh, proxy, Some(egress), &egress.hosts)).collect()
        };
        Self { config, egress, allow_any: policy.is_none_or(|policy| policy.mode != "REGISTRY_ONLY") }
    }

    /// All services in reach and those that routes lead to, one for each host name.
    pub(crate) fn services(&self, mesh: &'a Mesh, proxy: &Proxy) -> Vec<&'a Service> {
        let mut found: BTreeMap<&str, &'a Service> = BTreeMap::new();
        for service in self.egress.iter().flat_map(|reach| &reach.services) {
            found.entry(&service.hostname).or_insert(service);
        }
        let mut hosts = BTreeSet::new();
        for config in self.egress.iter().flat_map(|reach| &reach.virtual_services) {
            config.spec.destinations(&mut hosts);
        }
        for host in hosts {
            if let Some(service) = mesh.service(&host, &proxy.namespace) {
                found.entry(&service.hostname).or_insert(service);
            }
        }
        found.into_values().collect()
    }
}

/// The workload's own Sidecar, else its namespace's, else the root namespace's.
fn selected<'a>(mesh: &'a Mesh, proxy: &Proxy) -> Option<&'a Config<Sidecar>> {
    let wide = |namespace: &str| {
        mesh.sidecars.iter().find(|config| {
            config.namespace == namespace
                && config.spec.workload_selector.as_ref().is_none_or(|selector| selector.labels.is_empty())
        })
    };
    let own = mesh.sidecars.iter().find(|config| {
        config.namespace == proxy.namespace
            && config
                .spec
                .workload_selector
                .as_ref()
                .is_some_and(|selector| !selector.labels.is_empty() && selects(&selector.labels, &proxy.labels))
    });
    own.or_else(|| wide(&proxy.namespace)).or_else(|| wide(&mesh.options.root_namespace))
}

fn reach<'a>(mesh: &'a Mesh, proxy: &Proxy, egress: Option<&'a Egress>, hosts: &[String]) -> Reach<'a> {
    let imports: Vec<(&str, &str)> = hosts
        .iter()
        .map(|entry| entry.split_once('/').unwrap_or(("*", entry)))
        .filter(|(namespace, _)| *namespace != "~")
        .map(|(namespace, host)| (if namespace == "." { proxy.namespace.as_str() } else { namespace }, host))
        .collect();
    let imported = |namespace: &str, fits: &dyn Fn(&str) -> bool| {
        imports.iter().any(|(wanted, host)| (*wanted == "*" || *wanted == namespace) && fits(host))
    };
    let mut by_host: BTreeMap<&str, &Service> = BTreeMap::new();
    for service in &mesh.services {
        let visible = service.visibility.includes(&proxy.namespace);
        if !visible || !imported(&service.namespace, &|host| host::subset_of(&service.hostname, host)) {
            continue;
        }
        let rank = |service: &Service| (service.namespace == proxy.namespace, service.kubernetes);
        let known = by_host.entry(&service.hostname).or_insert(service);
        if rank(service) > rank(known) {
            *known = service;
        }
    }
    let mut services: Vec<&Service> = by_host.into_values().collect();
    services.sort_by(|one, other| (&one.created, &one.hostname).cmp(&(&other.created, &other.hostname)));
    let found = mesh.virtual_services.iter().map(|config| config.as_ref()).filter(|config| {
        config.spec.gateways.iter().any(|gateway| gateway == MESH)
            && mesh.may_use(config, &proxy.namespace)
            && imported(&config.namespace, &|host| config.spec.hosts.iter().any(|own| host::overlap(own, host)))
    });
    let mut virtual_services: Vec<&Config<VirtualService>> = found.collect();
    // A client's own HTTPRoute to another namespace's service comes before that namespace's.
    virtual_services.sort_by_key(|config| !config.is_of_gateway_api() || config.spec.export_to.is_empty());
    Reach {
        port: egress.and_then(|egress| egress.port.as_ref()),
        bind: egress.map_or("", |egress| egress.bind.as_str()),
        captured: egress.is_none_or(|egress| egress.capture_mode != "NONE"),
        services,
        virtual_services,
    }
}
