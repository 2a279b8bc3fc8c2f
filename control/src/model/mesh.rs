//! The whole mesh: built from objects once, then only read.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use super::api::{
    DestinationRule, Gateway, MeshConfig, PeerAuthentication, ServiceEntry, Sidecar, VirtualService, WorkloadEntry,
};
use super::config::{Config, Origin, Visibility};
use super::finding::{Finding, Severity};
use super::gateway_api::{self, Status};
use super::peer_authentication::PeerAuthentications;
use super::secret::Secrets;
use super::service::Service;
use super::{check, destination, host, registry, virtual_service};
use crate::source::Object;

/// What does not come from objects.
#[derive(Debug, Clone)]
pub struct MeshOptions {
    /// DNS domain of Kubernetes Services.
    pub domain: String,
    /// What completes a short host name after its namespace; empty where configuration knows no domain.
    pub short_name_suffix: String,
    pub root_namespace: String,
    /// Used where no ConfigMap `istio` in the root namespace has a `mesh` key.
    pub mesh_config: serde_json::Value,
}

impl Default for MeshOptions {
    fn default() -> Self {
        Self {
            domain: "cluster.local".to_owned(),
            short_name_suffix: ".svc.cluster.local".to_owned(),
            root_namespace: "istio-system".to_owned(),
            mesh_config: serde_json::Value::Object(serde_json::Map::new()),
        }
    }
}

impl MeshOptions {
    /// Takes the mesh configuration from a file, in YAML or JSON. Errors name the file, and what is wrong with it.
    pub fn read_mesh_config(&mut self, path: &Path) -> Result<(), String> {
        let told = |error: &dyn std::fmt::Display| {
            format!("{}: {}", path.display(), error.to_string().lines().next().unwrap_or_default())
        };
        let text = std::fs::read_to_string(path).map_err(|error| told(&error))?;
        let value: serde_json::Value = serde_saphyr::from_str(&text).map_err(|error| told(&error))?;
        serde_json::from_value::<MeshConfig>(value.clone()).map_err(|error| told(&error))?;
        self.mesh_config = value;
        Ok(())
    }
}

/// Everything that translation reads, in a fixed order: the same objects give the same mesh, in whatever order they come.
#[derive(Debug, Clone)]
pub struct Mesh {
    pub options: MeshOptions,
    pub config: MeshConfig,
    /// Oldest first.
    pub services: Vec<Arc<Service>>,
    /// Where in `services` those of a host name are.
    pub(crate) by_host: Arc<HashMap<String, Vec<usize>>>,
    /// Where in `services` those with an endpoint at an address are; made when it is first asked for.
    by_address: OnceLock<HashMap<Box<str>, Vec<usize>>>,
    pub gateways: Vec<Arc<Config<Gateway>>>,
    /// Delegates are resolved, names are full.
    pub virtual_services: Vec<Arc<Config<VirtualService>>>,
    pub(crate) destination_rules: Arc<destination::DestinationRules>,
    pub(crate) sidecars: Arc<[Config<Sidecar>]>,
    pub(crate) peer_authentications: Arc<PeerAuthentications>,
    pub secrets: Arc<Secrets>,
    /// What is said of the Gateway API's objects.
    pub statuses: Arc<[Status]>,
}

/// Objects by kind, each kind oldest first.
#[derive(Debug, Default)]
pub(super) struct Sorted<'a> {
    pub(super) kubernetes: HashMap<&'a str, Vec<&'a Object>>,
    pub(super) service_entries: Vec<Config<ServiceEntry>>,
    pub(super) workload_entries: Vec<Config<WorkloadEntry>>,
}

impl Sorted<'_> {
    fn sort(&mut self) {
        for list in self.kubernetes.values_mut() {
            list.sort_by(|one, other| one.resource.cmp(&other.resource));
        }
        oldest_first(&mut self.service_entries);
        oldest_first(&mut self.workload_entries);
    }
}

impl Mesh {
    /// The mesh that `objects` describe, and what is to be said of them. An object that cannot be used is left out and
    /// found; it never keeps the others from working.
    pub fn build(objects: &[Object], options: &MeshOptions) -> (Self, Vec<Finding>) {
        Self::assemble(objects, options, None)
    }

    /// This mesh after a change of nothing but virtual services. Services are not looked at again, which are most of a large mesh.
    pub fn with_routes(&self, objects: &[Object]) -> (Self, Vec<Finding>) {
        Self::assemble(objects, &self.options, Some(self))
    }

    /// Builds a mesh, with the services of one that is `known`.
    fn assemble(objects: &[Object], options: &MeshOptions, known: Option<&Self>) -> (Self, Vec<Finding>) {
        let mut findings = Vec::new();
        let mut sorted = Sorted::default();
        let mut gateways = Vec::new();
        let mut virtual_services: Vec<Config<VirtualService>> = Vec::new();
        let mut rules: Vec<Config<DestinationRule>> = Vec::new();
        let mut sidecars: Vec<Config<Sidecar>> = Vec::new();
        let mut peers: Vec<Config<PeerAuthentication>> = Vec::new();
        for object in objects {
            match (object.resource.group.as_str(), object.resource.kind.as_str()) {
                ("networking.istio.io", "Gateway") => keep(object, &mut gateways, &mut findings),
                ("networking.istio.io", "VirtualService") => keep(object, &mut virtual_services, &mut findings),
                ("networking.istio.io", "DestinationRule") => keep(object, &mut rules, &mut findings),
                ("networking.istio.io", "Sidecar") => keep(object, &mut sidecars, &mut findings),
                ("security.istio.io", "PeerAuthentication") => keep(object, &mut peers, &mut findings),
                ("networking.istio.io", "ServiceEntry") => keep(object, &mut sorted.service_entries, &mut findings),
                ("networking.istio.io", "WorkloadEntry") => keep(object, &mut sorted.workload_entries, &mut findings),
                ("" | "discovery.k8s.io", kind) => sorted.kubernetes.entry(kind).or_default().push(object),
                _ => {}
            }
        }
        sorted.sort();
        oldest_first(&mut gateways);
        oldest_first(&mut virtual_services);
        oldest_first(&mut rules);
        oldest_first(&mut sidecars);
        oldest_first(&mut peers);

        let config = mesh_config(&sorted, options, &mut findings);
        let (services, by_host) = match known {
            Some(known) => (known.services.clone(), known.by_host.clone()),
            None => {
                let services = registry::services(&sorted, &config, options);
                let mut by_host: HashMap<String, Vec<usize>> = HashMap::new();
                for (index, service) in services.iter().enumerate() {
                    by_host.entry(service.hostname.clone()).or_default().push(index);
                }
                (services, Arc::new(by_host))
            }
        };
        let mut virtual_services = virtual_service::resolve(virtual_services, options, &mut findings);
        let derived = gateway_api::derive(objects, &services, &options.domain);
        findings.extend(derived.findings);
        gateways.extend(derived.gateways);
        oldest_first(&mut gateways);
        virtual_services.extend(derived.virtual_services);
        oldest_first(&mut virtual_services);
        // After those that were written: what a policy derives only fills gaps.
        rules.extend(derived.destination_rules);
        let mesh = Self {
            options: options.clone(),
            services,
            by_host,
            by_address: OnceLock::new(),
            gateways: gateways.into_iter().map(Arc::new).collect(),
            virtual_services: virtual_services.into_iter().map(Arc::new).collect(),
            destination_rules: Arc::new(destination::DestinationRules::merge(rules, &config, options)),
            sidecars: sidecars.into(),
            peer_authentications: Arc::new(PeerAuthentications::new(peers, options)),
            secrets: Arc::new(Secrets::read(
                sorted.kubernetes.get("Secret").map_or(&[], Vec::as_slice),
                sorted.kubernetes.get("ConfigMap").map_or(&[], Vec::as_slice),
                derived.credentials,
            )),
            statuses: derived.statuses.into(),
            config,
        };
        check::references(&mesh, &mut findings);
        check::gateways(&mesh, &mut findings);
        findings.sort_by(|one, other| {
            (&one.resource, &one.place, one.code).cmp(&(&other.resource, &other.place, other.code))
        });
        (mesh, findings)
    }

    /// This mesh after a change of nothing but the endpoints of the Kubernetes Services `touched` (namespace and name), and
    /// the clusters whose endpoints may be others now. Costs no more than those services.
    pub fn with_endpoints(&self, objects: &[Object], touched: &BTreeSet<(String, String)>) -> (Self, Vec<Box<str>>) {
        let keys: HashSet<(&str, &str)> = touched.iter().map(|(namespace, name)| (&**namespace, &**name)).collect();
        let namespaces: HashSet<&str> = keys.iter().map(|(namespace, _)| *namespace).collect();
        let mut sorted = Sorted::default();
        for object in objects {
            let resource = &object.resource;
            let named = |name: &str| keys.contains(&(resource.namespace.as_str(), name));
            let concerns = match (resource.group.as_str(), resource.kind.as_str()) {
                ("", "Service" | "Endpoints") => named(&resource.name),
                ("discovery.k8s.io", "EndpointSlice") => {
                    object.labels.get("kubernetes.io/service-name").is_some_and(|name| named(name))
                }
                ("", "Pod") => namespaces.contains(resource.namespace.as_str()),
                ("networking.istio.io", "WorkloadEntry") if namespaces.contains(resource.namespace.as_str()) => {
                    sorted.workload_entries.extend(Config::parse(object).ok());
                    false
                }
                _ => false,
            };
            if concerns {
                sorted.kubernetes.entry(resource.kind.as_str()).or_default().push(object);
            }
        }
        sorted.sort();
        let mut mesh = Self { by_address: OnceLock::new(), ..self.clone() };
        let mut names = Vec::new();
        for service in registry::services(&sorted, &self.config, &self.options) {
            let known = self.by_host.get(&service.hostname).into_iter().flatten().copied().find(|index| {
                let known = self.services.get(*index);
                known.is_some_and(|known| known.kubernetes && known.namespace == service.namespace)
            });
            let subsets = self.destination_rules.subsets(&service.hostname);
            for port in &service.ports {
                for subset in std::iter::once("").chain(subsets.iter().copied()) {
                    names.push(format!("outbound|{}|{subset}|{}", port.number, service.hostname).into_boxed_str());
                }
            }
            if let Some(place) = known.and_then(|index| mesh.services.get_mut(index)) {
                *place = service;
            }
        }
        (mesh, names)
    }

    /// The services with an endpoint at one of `addresses`, oldest first.
    pub fn services_at(&self, addresses: &[String]) -> Vec<&Arc<Service>> {
        let by_address = self.by_address.get_or_init(|| {
            let mut found: HashMap<Box<str>, Vec<usize>> = HashMap::new();
            for (index, service) in self.services.iter().enumerate() {
                let all = service.endpoints.values().flatten();
                for address in all.map(|endpoint| endpoint.address.as_str()).collect::<BTreeSet<_>>() {
                    match found.get_mut(address) {
                        Some(list) => list.push(index),
                        None => drop(found.insert(address.into(), vec![index])),
                    }
                }
            }
            found
        });
        let found: BTreeSet<usize> =
            addresses.iter().filter_map(|address| by_address.get(address.as_str())).flatten().copied().collect();
        found.into_iter().filter_map(|index| self.services.get(index)).collect()
    }

    /// The service that a client in `namespace` reaches as `hostname`: one of its own namespace first, then
    /// Kubernetes' own, then the oldest.
    pub fn service(&self, hostname: &str, namespace: &str) -> Option<&Arc<Service>> {
        let visible = || {
            let found = self.by_host.get(hostname).into_iter().flatten().filter_map(|index| self.services.get(*index));
            found.filter(|service| service.visibility.includes(namespace))
        };
        visible()
            .find(|service| service.namespace == namespace)
            .or_else(|| visible().find(|service| service.kubernetes))
            .or_else(|| visible().next())
    }

    /// True if a proxy in `namespace` may use this virtual service.
    pub fn may_use(&self, virtual_service: &Config<VirtualService>, namespace: &str) -> bool {
        let default = &self.config.default_virtual_service_export_to;
        Visibility::parse(&virtual_service.spec.export_to, default, &virtual_service.namespace).includes(namespace)
    }

    /// `host` as configuration in `namespace` means it.
    pub fn full_name(&self, host: &str, namespace: &str) -> String {
        host::resolve_short_name(host, namespace, &self.options.short_name_suffix)
    }
}

fn keep<T: serde::de::DeserializeOwned>(object: &Object, list: &mut Vec<Config<T>>, findings: &mut Vec<Finding>) {
    match Config::parse(object) {
        Ok(config) => list.push(config),
        Err(finding) => findings.push(finding),
    }
}

/// What is said of a kind that has no effect here.
pub(super) fn unserved(object: &Object) -> Finding {
    Finding {
        severity: Severity::Warning,
        code: "TORUS0001",
        resource: object.resource.clone(),
        place: object.place.clone(),
        message: format!("objects of kind {} in {} are not served", object.resource.kind, object.resource.group),
    }
}

fn oldest_first<T>(list: &mut [Config<T>]) {
    list.sort_by(|one, other| one.age().cmp(&other.age()));
}

fn mesh_config(sorted: &Sorted<'_>, options: &MeshOptions, findings: &mut Vec<Finding>) -> MeshConfig {
    let map = sorted
        .kubernetes
        .get("ConfigMap")
        .into_iter()
        .flatten()
        .find(|object| object.resource.namespace == options.root_namespace && object.resource.name == "istio");
    let text = map.and_then(|object| object.content.get("data")?.get("mesh")?.as_str().map(|text| (*object, text)));
    let read = match text {
        Some((object, text)) => match serde_saphyr::from_str::<MeshConfig>(text) {
            Ok(config) => config,
            Err(error) => {
                let origin = Origin::of(object);
                findings.push(Finding {
                    severity: Severity::Error,
                    code: "IST0106",
                    resource: object.resource.clone(),
                    place: origin.place_of("data.mesh").clone(),
                    message: format!("data.mesh: {}", error.to_string().lines().next().unwrap_or_default()),
                });
                MeshConfig::default()
            }
        },
        None => serde_json::from_value(options.mesh_config.clone()).unwrap_or_default(),
    };
    MeshConfig {
        trust_domain: if read.trust_domain.is_empty() { "cluster.local".to_owned() } else { read.trust_domain.clone() },
        ..read
    }
}

/// Labels that `object` carries, for selecting.
pub(super) fn selects(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(name, value)| labels.get(name) == Some(value))
}
