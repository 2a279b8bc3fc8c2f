//! The mesh as what is pushed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use envoy_types::pb::envoy::config::core::v3::Node;
use prost::Message;
use serde_json::{Value, json};
use torus_xds::serving::{Resource, Wanted, url};
use torus_xds::{MessageType, canonical};

use super::hub::{Change, View};
use crate::model::gateway_api::Status;
use crate::model::{Finding, Mesh, MeshOptions, Proxy, ProxyKind, Severity};
use crate::source::Object;
use crate::translate;

/// A mesh with what was found while it was built.
pub struct MeshView {
    mesh: Mesh,
    findings: Arc<[Finding]>,
    /// Findings about files, which the model never saw.
    unread: Arc<[String]>,
    configuration: Arc<[Value]>,
    /// What gateways of one shape are sent; each is translated when the first of them asks.
    shared: Mutex<HashMap<(Shape, &'static str), Shared>>,
}

type Shared = Arc<OnceLock<Arc<[Resource]>>>;

/// All that two gateways must have in common to be sent the same clusters, listeners and routes.
#[derive(PartialEq, Eq, Hash)]
struct Shape {
    namespace: String,
    metadata_namespace: String,
    labels: BTreeMap<String, String>,
    locality: String,
    /// The services that lead to it, with the ports at which they do.
    services: Vec<(String, BTreeMap<u32, BTreeSet<u32>>)>,
}

impl Shape {
    fn of(mesh: &Mesh, proxy: &Proxy) -> Option<Self> {
        if proxy.kind != ProxyKind::Gateway {
            return None;
        }
        let services = mesh.services_at(&proxy.ip_addresses).into_iter().map(|service| {
            let mut ports: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
            for port in &service.ports {
                let endpoints = service.endpoints_of(port.number).iter();
                let here = endpoints.filter(|endpoint| proxy.ip_addresses.contains(&endpoint.address));
                ports.entry(port.number).or_default().extend(here.map(|endpoint| endpoint.port));
            }
            (format!("{}/{}", service.namespace, service.hostname), ports)
        });
        Some(Self {
            namespace: proxy.namespace.clone(),
            metadata_namespace: proxy.metadata_namespace.clone(),
            labels: proxy.labels.clone(),
            locality: proxy.locality.clone(),
            services: services.collect(),
        })
    }
}

impl MeshView {
    /// The view of `objects`; `unread` tells of the files that are broken.
    pub fn build(objects: &[Object], unread: Vec<String>, options: &MeshOptions) -> Self {
        let (mesh, findings) = Mesh::build(objects, options);
        Self::new(mesh, findings.into(), unread.into(), configuration(objects))
    }

    fn new(mesh: Mesh, findings: Arc<[Finding]>, unread: Arc<[String]>, configuration: Arc<[Value]>) -> Self {
        Self { mesh, findings, unread, configuration, shared: Mutex::default() }
    }

    /// This view after a change of nothing but virtual services.
    pub fn with_routes(&self, objects: &[Object], unread: Vec<String>) -> Self {
        let (mesh, findings) = self.mesh.with_routes(objects);
        Self::new(mesh, findings.into(), unread.into(), configuration(objects))
    }

    /// This view after a change of nothing but endpoints, those of the Services `touched`; and what is to be published of it.
    pub fn with_endpoints(&self, objects: &[Object], touched: &BTreeSet<(String, String)>) -> (Self, Change) {
        let (mesh, names) = self.mesh.with_endpoints(objects, touched);
        let (findings, unread) = (self.findings.clone(), self.unread.clone());
        (Self::new(mesh, findings, unread, self.configuration.clone()), Change::Endpoints(names))
    }

    /// What is wrong, a line each.
    pub fn findings(&self) -> impl Iterator<Item = (Severity, String)> {
        let unread = self.unread.iter().map(|line| (Severity::Error, line.clone()));
        unread.chain(self.findings.iter().map(|finding| (finding.severity, line(finding))))
    }

    /// What is said of objects in their status.
    pub fn statuses(&self) -> &[Status] {
        &self.mesh.statuses
    }

    /// What `translate` makes for this proxy, or made for another one of its shape.
    fn shared(
        &self,
        proxy: &Proxy,
        type_url: &'static str,
        wanted: &Wanted,
        translate: impl FnOnce(&Wanted) -> Vec<Resource>,
    ) -> Vec<Resource> {
        let Some(shape) = Shape::of(&self.mesh, proxy) else { return translate(wanted) };
        let slot = {
            // A map of slots is whole even if a holder of the lock panicked.
            let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
            shared.entry((shape, type_url)).or_default().clone()
        };
        let all = slot.get_or_init(|| translate(&Wanted::All).into());
        all.iter().filter(|resource| wanted.contains(&resource.name)).cloned().collect()
    }

    fn registry(&self) -> Value {
        let services = self.mesh.services.iter().map(|service| {
            let ports: Vec<Value> = service
                .ports
                .iter()
                .map(|port| json!({"name": port.name, "port": port.number, "protocol": format!("{:?}", port.protocol)}))
                .collect();
            json!({
                "hostname": service.hostname,
                "ports": ports,
                "Attributes": {"Name": service.name, "Namespace": service.namespace, "Labels": service.labels},
                "clusterVIPs": service.addresses,
                "Resolution": format!("{:?}", service.resolution),
                "MeshExternal": service.mesh_external,
            })
        });
        services.collect()
    }

    fn endpoints(&self) -> Value {
        let ports = self.mesh.services.iter().flat_map(|service| service.ports.iter().map(move |port| (service, port)));
        ports
            .map(|(service, port)| {
                let endpoints: Vec<Value> = service
                    .endpoints_of(port.number)
                    .iter()
                    .map(|endpoint| {
                        json!({
                            "address": endpoint.address, "port": endpoint.port, "labels": endpoint.labels,
                            "locality": endpoint.locality, "weight": endpoint.weight, "ready": endpoint.ready,
                        })
                    })
                    .collect();
                json!({"svc": format!("{}:{}", service.hostname, port.name), "ep": endpoints})
            })
            .collect()
    }
}

/// The objects that configure the mesh, for `/debug/configz`.
fn configuration(objects: &[Object]) -> Arc<[Value]> {
    let configures = |group: &str| group.ends_with("istio.io") || group == "gateway.networking.k8s.io";
    let of_mesh = objects.iter().filter(|object| configures(&object.resource.group));
    of_mesh.map(|object| object.content.clone()).collect()
}

/// A finding in one line: `file:line:column: CODE severity object: message`.
pub fn line(finding: &Finding) -> String {
    let place = &finding.place;
    let severity = match finding.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Info => "info",
    };
    format!(
        "{}:{}:{}: {} {severity} {}: {}",
        place.file, place.line, place.column, finding.code, finding.resource, finding.message
    )
}

impl View for MeshView {
    fn admit(&self, node: &Node) -> Result<(), String> {
        Proxy::from_node(node).map(|_| ()).map_err(|error| error.to_string())
    }

    fn resources(&self, node: &Node, type_url: &str, wanted: &Wanted) -> Vec<Resource> {
        // Nodes are admitted when they connect.
        let Ok(proxy) = Proxy::from_node(node) else { return Vec::new() };
        let names = || -> Option<BTreeSet<String>> {
            match wanted {
                Wanted::All => None,
                Wanted::Names(names) => Some(names.iter().map(|name| name.to_string()).collect()),
            }
        };
        if proxy.is_grpc() && matches!(type_url, url::CLUSTER | url::LISTENER | url::ROUTES) {
            let names = names().unwrap_or_default();
            return match type_url {
                url::CLUSTER => encode(translate::grpc_clusters(&self.mesh, &proxy, &names), type_url, wanted),
                url::LISTENER => encode(translate::grpc_listeners(&self.mesh, &proxy, &names), type_url, wanted),
                _ => encode(translate::grpc_routes(&self.mesh, &proxy, &names), type_url, wanted),
            };
        }
        match type_url {
            url::CLUSTER => self.shared(&proxy, url::CLUSTER, wanted, |wanted| {
                encode(translate::clusters(&self.mesh, &proxy), type_url, wanted)
            }),
            url::LISTENER => self.shared(&proxy, url::LISTENER, wanted, |wanted| {
                encode(translate::listeners(&self.mesh, &proxy), type_url, wanted)
            }),
            url::ROUTES => self.shared(&proxy, url::ROUTES, wanted, |wanted| {
                encode(translate::routes(&self.mesh, &proxy), type_url, wanted)
            }),
            url::ENDPOINTS => encode(translate::endpoints(&self.mesh, &proxy, names().as_ref()), type_url, wanted),
            url::SECRET => {
                encode(translate::secrets(&self.mesh, &proxy, &names().unwrap_or_default()), type_url, wanted)
            }
            _ => Vec::new(),
        }
    }

    fn page(&self, name: &str) -> Option<Value> {
        match name {
            "registryz" => Some(self.registry()),
            "endpointz" => Some(self.endpoints()),
            "configz" => Some(self.configuration.to_vec().into()),
            "findings" => Some(self.findings().map(|(_, line)| line).collect()),
            _ => None,
        }
    }
}

/// Encodes what is wanted. Equal messages become equal bytes, so that what did not change is not pushed again.
fn encode<M: Message>(list: Vec<(String, M)>, type_url: &str, wanted: &Wanted) -> Vec<Resource> {
    let message_type = MessageType::from_type_url(type_url);
    let list = list.into_iter().filter(|(name, _)| wanted.contains(name));
    list.map(|(name, message)| {
        let mut body = message.encode_to_vec();
        if let Some(message_type) = message_type {
            canonical::sort_maps(message_type, &mut body);
        }
        Resource::new(name, body)
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::google::protobuf::{Struct, Value, value::Kind};

    use super::*;
    use crate::source::read;

    const SHOP: &str = r"
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {clusterIP: 10.0.0.1, ports: [{name: http, port: 80}, {name: tcp, port: 90}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: cart, namespace: shop}
spec:
  host: cart
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: cart, namespace: shop}
spec:
  hosts: [cart]
  http:
  - fault: {delay: {percentage: {value: 10}, fixedDelay: 1s}}
    route: [{destination: {host: cart, subset: v1}, weight: 90}, {destination: {host: cart, subset: v2}, weight: 10}]
";

    #[test]
    fn one_mesh_is_always_the_same_bytes() {
        let value = |text: &str| Value { kind: Some(Kind::StringValue(text.to_owned())) };
        let node = Node {
            id: "sidecar~10.0.0.9~web.shop~shop.svc.cluster.local".to_owned(),
            metadata: Some(Struct { fields: [("NAMESPACE".to_owned(), value("shop"))].into() }),
            ..Node::default()
        };
        let objects = read("shop.yaml", SHOP).unwrap();
        for type_url in [url::CLUSTER, url::LISTENER, url::ROUTES] {
            let once = || {
                let view = MeshView::build(&objects, Vec::new(), &MeshOptions::default());
                view.resources(&node, type_url, &Wanted::All)
            };
            let first = once();
            assert!(!first.is_empty(), "{type_url}");
            for _ in 0..8 {
                assert!(first == once(), "{type_url}: unchanged resources would be pushed again");
            }
        }
    }
}
