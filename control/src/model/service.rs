//! A service of the mesh, wherever it was declared, and its endpoints.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::config::{Origin, Visibility};
use super::protocol::Protocol;

/// How clients find a service's endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolution {
    /// The control plane lists them.
    Static,
    /// All addresses of DNS names.
    Dns,
    /// The first address of a DNS name, one at a time.
    DnsRoundRobin,
    /// The address that the client dialled.
    Passthrough,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    pub number: u32,
    pub name: String,
    pub protocol: Protocol,
}

/// One endpoint of one port of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub address: String,
    pub port: u32,
    pub labels: BTreeMap<String, String>,
    /// `region/zone/subzone`, possibly shorter or empty.
    pub locality: String,
    pub weight: u32,
    /// False for one that must not get requests.
    pub ready: bool,
}

impl Endpoint {
    /// True if the endpoint's proxy accepts Istio's mutual TLS.
    pub fn is_mutual_tls(&self) -> bool {
        self.labels.get("security.istio.io/tlsMode").is_some_and(|mode| mode == "istio")
    }
}

/// A service under one host name.
#[derive(Debug, Clone)]
pub struct Service {
    pub hostname: String,
    pub name: String,
    pub namespace: String,
    /// Virtual IPs or CIDR blocks; empty if there is none.
    pub addresses: Vec<String>,
    /// Where a load balancer in front of it is reached.
    pub external_addresses: Vec<String>,
    pub ports: Vec<ServicePort>,
    pub resolution: Resolution,
    pub mesh_external: bool,
    /// From a Kubernetes Service.
    pub kubernetes: bool,
    pub visibility: Visibility,
    pub labels: BTreeMap<String, String>,
    pub created: String,
    pub origin: Arc<Origin>,
    /// By number of the service's port.
    pub endpoints: BTreeMap<u32, Vec<Endpoint>>,
}

impl Service {
    pub fn port(&self, number: u32) -> Option<&ServicePort> {
        self.ports.iter().find(|port| port.number == number)
    }

    pub fn endpoints_of(&self, port: u32) -> &[Endpoint] {
        self.endpoints.get(&port).map_or(&[], Vec::as_slice)
    }
}
