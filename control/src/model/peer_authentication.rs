//! PeerAuthentication: what a workload's ports accept, plaintext or mutual TLS.

use std::collections::BTreeMap;

use super::api::{PeerAuthentication, Policy};
use super::config::Config;
use super::mesh::{MeshOptions, selects};

/// What a port accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MutualTls {
    Disable,
    Permissive,
    Strict,
}

/// What all ports of one workload accept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PortModes {
    pub(crate) default: MutualTls,
    pub(crate) ports: BTreeMap<u32, MutualTls>,
}

impl PortModes {
    pub(crate) fn of(&self, port: u32) -> MutualTls {
        self.ports.get(&port).copied().unwrap_or(self.default)
    }
}

/// All policies, oldest first: inside a scope the oldest one counts.
#[derive(Debug, Clone, Default)]
pub(crate) struct PeerAuthentications {
    list: Vec<Config<PeerAuthentication>>,
    root: String,
}

impl PeerAuthentications {
    pub(super) fn new(list: Vec<Config<PeerAuthentication>>, options: &MeshOptions) -> Self {
        Self { list, root: options.root_namespace.clone() }
    }

    /// The modes of a workload in `namespace`: its own policy's, else its namespace's, else the mesh's, else both are taken.
    pub(crate) fn modes(&self, namespace: &str, labels: &BTreeMap<String, String>) -> PortModes {
        let selector = |config: &Config<PeerAuthentication>| {
            config.spec.selector.as_ref().map(|selector| selector.match_labels.clone()).unwrap_or_default()
        };
        let wide = |namespace: &str| {
            self.list.iter().find(|config| config.namespace == namespace && selector(config).is_empty())
        };
        let own = self.list.iter().find(|config| {
            let selector = selector(config);
            config.namespace == namespace && !selector.is_empty() && selects(&selector, labels)
        });
        let whole =
            |config: Option<&Config<PeerAuthentication>>| config.and_then(|config| mode(config.spec.mtls.as_ref()));
        let default = whole(own)
            .or_else(|| whole(wide(namespace)))
            .or_else(|| whole(wide(&self.root)))
            .unwrap_or(MutualTls::Permissive);
        let ports = own.into_iter().flat_map(|config| &config.spec.port_level_mtls);
        let ports =
            ports.filter_map(|(port, policy)| Some((port.parse().ok()?, mode(Some(policy)).unwrap_or(default))));
        PortModes { default, ports: ports.collect() }
    }
}

fn mode(policy: Option<&Policy>) -> Option<MutualTls> {
    match policy?.mode.as_str() {
        "DISABLE" => Some(MutualTls::Disable),
        "PERMISSIVE" => Some(MutualTls::Permissive),
        "STRICT" => Some(MutualTls::Strict),
        _ => None,
    }
}
