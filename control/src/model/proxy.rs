//! The proxy that asks for configuration: a gateway, which Istio calls router, or a sidecar.

use std::collections::BTreeMap;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::google::protobuf::{Struct, value::Kind};

/// What a proxy is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyKind {
    /// At the edge of the mesh, for everyone.
    Gateway,
    /// Beside one workload, for what it sends and receives.
    Sidecar,
}

/// A proxy as it introduced itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proxy {
    pub kind: ProxyKind,
    pub id: String,
    /// The namespace whose configuration applies, and in which its pod runs.
    pub namespace: String,
    /// The namespace in its metadata; Istio matches gateways and their secrets against it.
    pub metadata_namespace: String,
    pub labels: BTreeMap<String, String>,
    pub ip_addresses: Vec<String>,
    /// `region/zone/subzone`.
    pub locality: String,
    /// String fields of the metadata.
    pub metadata: BTreeMap<String, String>,
}

/// Why a node cannot be served.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NodeError {
    #[error(
        "node id `{0}` is not of the form kind~address~name.namespace~domain, for instance router~10.0.0.1~gw.default~default.svc.cluster.local"
    )]
    Shape(String),
    #[error("node id begins with `{0}`: gateways, whose node id begins with router, and sidecars are served")]
    Kind(String),
}

impl Proxy {
    /// Reads Istio's node id and metadata.
    pub fn from_node(node: &Node) -> Result<Self, NodeError> {
        let mut parts = node.id.splitn(4, '~');
        let (Some(kind), Some(address), Some(id), Some(domain)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(NodeError::Shape(node.id.clone()));
        };
        let kind = match kind {
            "router" => ProxyKind::Gateway,
            "sidecar" => ProxyKind::Sidecar,
            other => return Err(NodeError::Kind(other.to_owned())),
        };
        let metadata = strings(node.metadata.as_ref());
        let namespace = metadata.get("NAMESPACE").cloned().unwrap_or_else(|| {
            let from_id = id.rsplit_once('.').map(|(_, namespace)| namespace);
            from_id.or(domain.split('.').next()).unwrap_or_default().to_owned()
        });
        let mut ip_addresses: Vec<String> = metadata
            .get("INSTANCE_IPS")
            .map(|list| list.split(',').filter(|ip| !ip.is_empty()).map(str::to_owned).collect())
            .unwrap_or_default();
        if ip_addresses.is_empty() && !address.is_empty() {
            ip_addresses.push(address.to_owned());
        }
        let labels = match node
            .metadata
            .as_ref()
            .and_then(|metadata| metadata.fields.get("LABELS"))
            .and_then(|value| value.kind.as_ref())
        {
            Some(Kind::StructValue(labels)) => strings(Some(labels)),
            _ => BTreeMap::new(),
        };
        let locality = node
            .locality
            .as_ref()
            .map(|at| {
                [at.region.as_str(), at.zone.as_str(), at.sub_zone.as_str()].join("/").trim_end_matches('/').to_owned()
            })
            .unwrap_or_default();
        Ok(Self {
            kind,
            id: id.to_owned(),
            metadata_namespace: namespace.clone(),
            namespace,
            labels,
            ip_addresses,
            locality,
            metadata,
        })
    }

    /// True if this is a gRPC client that has no proxy: `GENERATOR: grpc`.
    pub fn is_grpc(&self) -> bool {
        self.metadata.get("GENERATOR").is_some_and(|generator| generator == "grpc")
    }

    /// True if every label of `selector` is on the proxy.
    pub fn matches(&self, selector: &BTreeMap<String, String>) -> bool {
        selector.iter().all(|(name, value)| self.labels.get(name) == Some(value))
    }
}

fn strings(fields: Option<&Struct>) -> BTreeMap<String, String> {
    let Some(fields) = fields else { return BTreeMap::new() };
    fields
        .fields
        .iter()
        .filter_map(|(name, value)| match &value.kind {
            Some(Kind::StringValue(text)) => Some((name.clone(), text.clone())),
            _ => None,
        })
        .collect()
}
