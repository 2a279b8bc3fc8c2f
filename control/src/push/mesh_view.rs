//! The mesh as what is pushed.

use std::collections::BTreeSet;

use envoy_types::pb::envoy::config::core::v3::Node;
use prost::Message;
use serde_json::{Value, json};
use torus_xds::serving::{Resource, Wanted, url};

use super::hub::View;
use crate::model::{Finding, Mesh, MeshOptions, Proxy, Severity};
use crate::source::Object;
use crate::translate;

/// A mesh with what was found while it was built.
pub struct MeshView {
    mesh: Mesh,
    findings: Vec<Finding>,
    /// Findings about files, which the model never saw.
    unread: Vec<String>,
    configuration: Vec<Value>,
}

impl MeshView {
    /// The view of `objects`; `unread` tells of the files that are broken.
    pub fn build(objects: &[Object], unread: Vec<String>, options: &MeshOptions) -> Self {
        let (mesh, findings) = Mesh::build(objects, options);
        let configures = |group: &str| group.ends_with("istio.io") || group == "gateway.networking.k8s.io";
        let configuration = objects
            .iter()
            .filter(|object| configures(&object.resource.group))
            .map(|object| object.content.clone())
            .collect();
        Self { mesh, findings, unread, configuration }
    }

    /// What is wrong, a line each.
    pub fn findings(&self) -> impl Iterator<Item = (Severity, String)> {
        let unread = self.unread.iter().map(|line| (Severity::Error, line.clone()));
        unread.chain(self.findings.iter().map(|finding| (finding.severity, line(finding))))
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
        match type_url {
            url::CLUSTER => encode(translate::clusters(&self.mesh, &proxy), wanted),
            url::LISTENER => encode(translate::listeners(&self.mesh, &proxy), wanted),
            url::ROUTES => encode(translate::routes(&self.mesh, &proxy), wanted),
            url::ENDPOINTS => encode(translate::endpoints(&self.mesh, &proxy, names().as_ref()), wanted),
            url::SECRET => encode(translate::secrets(&self.mesh, &proxy, &names().unwrap_or_default()), wanted),
            _ => Vec::new(),
        }
    }

    fn page(&self, name: &str) -> Option<Value> {
        match name {
            "registryz" => Some(self.registry()),
            "endpointz" => Some(self.endpoints()),
            "configz" => Some(self.configuration.clone().into()),
            "findings" => Some(self.findings().map(|(_, line)| line).collect()),
            _ => None,
        }
    }
}

fn encode<M: Message>(list: Vec<(String, M)>, wanted: &Wanted) -> Vec<Resource> {
    let list = list.into_iter().filter(|(name, _)| wanted.contains(name));
    list.map(|(name, message)| Resource::new(name, message.encode_to_vec())).collect()
}
