//! Services and their endpoints out of Kubernetes' objects and ServiceEntries.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde_json::Value;

use super::api::{MeshConfig, ServiceEntry, WorkloadEntry};
use super::config::{Config, Origin, Visibility, created};
use super::mesh::{MeshOptions, Sorted, selects};
use super::protocol::Protocol;
use super::service::{Endpoint, Resolution, Service, ServicePort};
use crate::source::Object;

/// All services, oldest first.
pub(super) fn services(sorted: &Sorted<'_>, config: &MeshConfig, options: &MeshOptions) -> Vec<Arc<Service>> {
    let workloads = Workloads::read(sorted);
    let slices = Slices::read(sorted, &workloads);
    let mut services = Vec::new();
    for object in sorted.kubernetes.get("Service").into_iter().flatten() {
        services.push(Arc::new(from_kubernetes(object, &workloads, &slices, config, options)));
    }
    for entry in &sorted.service_entries {
        services.extend(from_entry(entry, &workloads, config, options).into_iter().map(Arc::new));
    }
    services.sort_by(|one, other| {
        (&one.created, &one.hostname, &one.namespace).cmp(&(&other.created, &other.hostname, &other.namespace))
    });
    services
}

/// Pods and WorkloadEntries: what selectors find.
struct Workloads<'a> {
    /// By namespace.
    found: HashMap<&'a str, OfNamespace>,
}

/// The workloads of one namespace, found by the name of the pod and by address.
#[derive(Default)]
struct OfNamespace {
    list: Vec<Workload>,
    by_pod: HashMap<String, usize>,
    by_address: HashMap<String, usize>,
}

impl OfNamespace {
    fn push(&mut self, workload: Workload) {
        let index = self.list.len();
        if let Some(pod) = &workload.pod {
            self.by_pod.entry(pod.clone()).or_insert(index);
        }
        self.by_address.entry(workload.entry.address.clone()).or_insert(index);
        self.list.push(workload);
    }
}

struct Workload {
    pod: Option<String>,
    entry: WorkloadEntry,
    named_ports: BTreeMap<String, u32>,
    ready: bool,
}

impl<'a> Workloads<'a> {
    fn read(sorted: &'a Sorted<'_>) -> Self {
        let mut found: HashMap<&str, OfNamespace> = HashMap::new();
        for pod in sorted.kubernetes.get("Pod").into_iter().flatten() {
            let Some(address) = text(&pod.content, &["status", "podIP"]) else { continue };
            let containers = pod.spec().get("containers").and_then(Value::as_array);
            let ports =
                containers.into_iter().flatten().filter_map(|container| container.get("ports")?.as_array()).flatten();
            let named_ports = ports
                .filter_map(|port| Some((port.get("name")?.as_str()?.to_owned(), number(port.get("containerPort")?)?)))
                .collect();
            let conditions =
                pod.content.get("status").and_then(|status| status.get("conditions")).and_then(Value::as_array);
            let ready = conditions.is_none_or(|conditions| {
                conditions.iter().any(|condition| {
                    text(condition, &["type"]) == Some("Ready") && text(condition, &["status"]) == Some("True")
                })
            });
            found.entry(&pod.resource.namespace).or_default().push(Workload {
                pod: Some(pod.resource.name.clone()),
                entry: WorkloadEntry {
                    address: address.to_owned(),
                    labels: pod.labels.clone(),
                    locality: pod
                        .labels
                        .get("istio-locality")
                        .map(|locality| locality.replace('.', "/"))
                        .unwrap_or_default(),
                    ..WorkloadEntry::default()
                },
                named_ports,
                ready,
            });
        }
        for entry in &sorted.workload_entries {
            found.entry(&entry.namespace).or_default().push(Workload {
                pod: None,
                entry: entry.spec.clone(),
                named_ports: BTreeMap::new(),
                ready: true,
            });
        }
        Self { found }
    }

    fn selected<'b>(
        &'b self,
        namespace: &str,
        selector: &'b BTreeMap<String, String>,
    ) -> impl Iterator<Item = &'b Workload> {
        self.found
            .get(namespace)
            .into_iter()
            .flat_map(|of| &of.list)
            .filter(move |workload| selects(selector, &workload.entry.labels))
    }

    fn labels_of(&self, namespace: &str, pod: Option<&str>, address: &str) -> Option<&WorkloadEntry> {
        let of = self.found.get(namespace)?;
        let index = match pod {
            Some(name) => of.by_pod.get(name),
            None => of.by_address.get(address),
        };
        Some(&of.list.get(*index?)?.entry)
    }
}

/// Endpoints of Kubernetes Services by namespace and name, with the name of the port.
struct Slices<'a> {
    found: HashMap<(&'a str, &'a str), Vec<(String, Endpoint)>>,
}

impl<'a> Slices<'a> {
    fn read(sorted: &'a Sorted<'_>, workloads: &Workloads<'_>) -> Self {
        let mut found: HashMap<(&str, &str), Vec<(String, Endpoint)>> = HashMap::new();
        for slice in sorted.kubernetes.get("EndpointSlice").into_iter().flatten() {
            let Some(service) = slice.labels.get("kubernetes.io/service-name") else { continue };
            let namespace = slice.resource.namespace.as_str();
            let list = found.entry((namespace, service)).or_default();
            for endpoint in slice.content.get("endpoints").and_then(Value::as_array).into_iter().flatten() {
                let ready = endpoint
                    .get("conditions")
                    .and_then(|conditions| conditions.get("ready"))
                    .and_then(Value::as_bool)
                    .unwrap_or(true);
                let pod = text(endpoint, &["targetRef", "name"]);
                let zone = text(endpoint, &["zone"]);
                let addresses =
                    endpoint.get("addresses").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
                for address in addresses {
                    for port in slice.content.get("ports").and_then(Value::as_array).into_iter().flatten() {
                        let Some(to) = port.get("port").and_then(number) else { continue };
                        let name = text(port, &["name"]).unwrap_or_default().to_owned();
                        list.push((name, kubernetes_endpoint(workloads, namespace, pod, address, to, ready, zone)));
                    }
                }
            }
        }
        for object in sorted.kubernetes.get("Endpoints").into_iter().flatten() {
            let key = (object.resource.namespace.as_str(), object.resource.name.as_str());
            if found.contains_key(&key) {
                continue;
            }
            let mut list = Vec::new();
            for subset in object.content.get("subsets").and_then(Value::as_array).into_iter().flatten() {
                for (field, ready) in [("addresses", true), ("notReadyAddresses", false)] {
                    for address in subset.get(field).and_then(Value::as_array).into_iter().flatten() {
                        let Some(ip) = text(address, &["ip"]) else { continue };
                        let pod = text(address, &["targetRef", "name"]);
                        for port in subset.get("ports").and_then(Value::as_array).into_iter().flatten() {
                            let Some(to) = port.get("port").and_then(number) else { continue };
                            let name = text(port, &["name"]).unwrap_or_default().to_owned();
                            list.push((name, kubernetes_endpoint(workloads, key.0, pod, ip, to, ready, None)));
                        }
                    }
                }
            }
            found.insert(key, list);
        }
        Self { found }
    }
}

fn kubernetes_endpoint(
    workloads: &Workloads<'_>,
    namespace: &str,
    pod: Option<&str>,
    address: &str,
    port: u32,
    ready: bool,
    zone: Option<&str>,
) -> Endpoint {
    let workload = workloads.labels_of(namespace, pod, address);
    let locality = workload.map(|entry| entry.locality.clone()).filter(|locality| !locality.is_empty());
    Endpoint {
        address: address.to_owned(),
        port,
        labels: workload.map(|entry| entry.labels.clone()).unwrap_or_default(),
        locality: locality.or_else(|| zone.map(|zone| format!("/{zone}"))).unwrap_or_default(),
        weight: 1,
        ready,
    }
}

fn from_kubernetes(
    object: &Object,
    workloads: &Workloads<'_>,
    slices: &Slices<'_>,
    config: &MeshConfig,
    options: &MeshOptions,
) -> Service {
    let (name, namespace) = (&object.resource.name, &object.resource.namespace);
    let spec = object.spec();
    let mut addresses: Vec<String> = spec
        .get("clusterIPs")
        .and_then(Value::as_array)
        .map(|list| list.iter().filter_map(Value::as_str).map(str::to_owned).collect())
        .unwrap_or_default();
    if addresses.is_empty() {
        addresses.extend(text(spec, &["clusterIP"]).map(str::to_owned));
    }
    let headless = addresses.iter().any(|address| address == "None");
    addresses.retain(|address| !address.is_empty() && address != "None");
    let external = text(spec, &["externalName"]).filter(|_| text(spec, &["type"]) == Some("ExternalName"));
    let selector: BTreeMap<String, String> = spec
        .get("selector")
        .and_then(Value::as_object)
        .map(|fields| {
            fields.iter().filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
        })
        .unwrap_or_default();
    let listed = slices.found.get(&(namespace.as_str(), name.as_str()));
    let unready_too = spec.get("publishNotReadyAddresses").and_then(Value::as_bool).unwrap_or(false);

    let mut ports = Vec::new();
    let mut endpoints: BTreeMap<u32, Vec<Endpoint>> = BTreeMap::new();
    for port in spec.get("ports").and_then(Value::as_array).into_iter().flatten() {
        let Some(port_number) = port.get("port").and_then(number) else { continue };
        let port_name = text(port, &["name"]).unwrap_or_default();
        let transport = text(port, &["protocol"]).unwrap_or("TCP");
        let protocol = Protocol::of_service_port(port_number, port_name, transport, text(port, &["appProtocol"]));
        ports.push(ServicePort { number: port_number, name: port_name.to_owned(), protocol });
        let target = port.get("targetPort");
        let to = endpoints.entry(port_number).or_default();
        if let Some(external) = external {
            to.push(plain_endpoint(external, port_number));
            continue;
        }
        if let Some(listed) = listed {
            to.extend(listed.iter().filter(|(name, _)| name == port_name).map(|(_, endpoint)| endpoint.clone()));
        }
        if selector.is_empty() {
            continue;
        }
        for workload in workloads.selected(namespace, &selector) {
            if workload.pod.is_some() && listed.is_some() {
                continue;
            }
            let entry = &workload.entry;
            let named = target.and_then(Value::as_str).and_then(|name| workload.named_ports.get(name).copied());
            let port = entry
                .ports
                .get(port_name)
                .copied()
                .or(named)
                .or_else(|| target.and_then(number))
                .unwrap_or(port_number);
            to.push(workload_endpoint(entry, port, workload.ready));
        }
    }
    for list in endpoints.values_mut() {
        for endpoint in list.iter_mut() {
            endpoint.ready |= unready_too;
        }
        in_order(list);
    }
    let export: Vec<String> = object
        .annotations
        .get("networking.istio.io/exportTo")
        .map(|list| list.split(',').map(|entry| entry.trim().to_owned()).filter(|entry| !entry.is_empty()).collect())
        .unwrap_or_default();
    let resolution = if external.is_some() {
        Resolution::Dns
    } else if headless {
        Resolution::Passthrough
    } else {
        Resolution::Static
    };
    Service {
        hostname: format!("{name}.{namespace}.svc.{}", options.domain),
        name: name.clone(),
        namespace: namespace.clone(),
        addresses,
        external_addresses: external_addresses(object),
        ports,
        resolution,
        mesh_external: external.is_some(),
        kubernetes: true,
        visibility: Visibility::parse(&export, &config.default_service_export_to, namespace),
        labels: object.labels.clone(),
        created: created(object),
        origin: Arc::new(Origin::of(object)),
        endpoints,
    }
}

/// What the Service's status and spec say of load balancers.
fn external_addresses(object: &Object) -> Vec<String> {
    let balancer = object.content.get("status").and_then(|status| status.get("loadBalancer"));
    let ingress = balancer.and_then(|balancer| balancer.get("ingress")).and_then(Value::as_array);
    let assigned =
        ingress.into_iter().flatten().filter_map(|one| text(one, &["ip"]).or_else(|| text(one, &["hostname"])));
    let own = object.spec().get("externalIPs").and_then(Value::as_array).into_iter().flatten();
    assigned.chain(own.filter_map(Value::as_str)).map(str::to_owned).collect()
}

fn from_entry(
    entry: &Config<ServiceEntry>,
    workloads: &Workloads<'_>,
    config: &MeshConfig,
    options: &MeshOptions,
) -> Vec<Service> {
    let spec = &entry.spec;
    let resolution = match spec.resolution.as_str() {
        "STATIC" => Resolution::Static,
        "DNS" => Resolution::Dns,
        "DNS_ROUND_ROBIN" => Resolution::DnsRoundRobin,
        _ => Resolution::Passthrough,
    };
    let visibility = Visibility::parse(&spec.export_to, &config.default_service_export_to, &entry.namespace);
    spec.hosts
        .iter()
        .map(|hostname| {
            let mut endpoints = BTreeMap::new();
            for port in &spec.ports {
                let target = if port.target_port == 0 { port.number } else { port.target_port };
                let to_port = |workload: &WorkloadEntry| workload.ports.get(&port.name).copied().unwrap_or(target);
                let mut list: Vec<Endpoint> =
                    spec.endpoints.iter().map(|one| workload_endpoint(one, to_port(one), true)).collect();
                if let Some(selector) = &spec.workload_selector {
                    let selected = workloads.selected(&entry.namespace, &selector.labels);
                    list.extend(selected.map(|one| workload_endpoint(&one.entry, to_port(&one.entry), one.ready)));
                }
                let dns = matches!(resolution, Resolution::Dns | Resolution::DnsRoundRobin);
                if list.is_empty() && dns && spec.workload_selector.is_none() && !hostname.starts_with('*') {
                    list.push(plain_endpoint(hostname, target));
                }
                in_order(&mut list);
                endpoints.insert(port.number, list);
            }
            Service {
                hostname: super::host::resolve_short_name(hostname, &entry.namespace, &options.short_name_suffix),
                name: hostname.clone(),
                namespace: entry.namespace.clone(),
                addresses: spec.addresses.clone(),
                external_addresses: Vec::new(),
                ports: spec
                    .ports
                    .iter()
                    .map(|port| ServicePort {
                        number: port.number,
                        name: port.name.clone(),
                        protocol: Protocol::parse(&port.protocol),
                    })
                    .collect(),
                resolution,
                mesh_external: spec.location != "MESH_INTERNAL",
                kubernetes: false,
                visibility: visibility.clone(),
                labels: BTreeMap::new(),
                created: entry.created.clone(),
                origin: entry.origin.clone(),
                endpoints,
            }
        })
        .collect()
}

fn plain_endpoint(address: &str, port: u32) -> Endpoint {
    Endpoint {
        address: address.to_owned(),
        port,
        labels: BTreeMap::new(),
        locality: String::new(),
        weight: 1,
        ready: true,
    }
}

fn workload_endpoint(workload: &WorkloadEntry, port: u32, ready: bool) -> Endpoint {
    Endpoint {
        address: workload.address.clone(),
        port,
        labels: workload.labels.clone(),
        locality: workload.locality.clone(),
        weight: workload.weight.max(1),
        ready,
    }
}

fn in_order(list: &mut Vec<Endpoint>) {
    list.sort_by(|one, other| (&one.address, one.port).cmp(&(&other.address, other.port)));
    list.dedup_by(|one, other| one.address == other.address && one.port == other.port);
}

/// The string at the end of `path`.
fn text<'a>(value: &'a Value, path: &[&str]) -> Option<&'a str> {
    path.iter().try_fold(value, |value, field| value.get(*field))?.as_str()
}

fn number(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|number| u32::try_from(number).ok()).filter(|port| (1..=65_535).contains(port))
}
