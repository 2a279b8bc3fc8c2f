//! What a backend reference leads to.

use std::collections::BTreeSet;

use super::grant::{Grants, Pointing};
use super::spec::{Reference, Rule};
use super::status::Fault;
use crate::model::api::{Destination, PortSelector, WeightedDestination};

/// What backends are judged by.
pub(super) struct Backends<'a> {
    pub(super) grants: &'a Grants,
    /// Names of all services.
    pub(super) hosts: &'a BTreeSet<&'a str>,
    pub(super) domain: &'a str,
}

/// A place to go to, and what is wrong with it. Where it is nowhere the host is empty: requests sent there fail.
pub(super) struct Found {
    pub(super) destination: Destination,
    pub(super) fault: Option<Fault>,
}

impl Backends<'_> {
    /// `granted` is false for routes of the mesh, whose client could reach the service anyway.
    pub(super) fn find(&self, from: Pointing<'_>, to: &Reference, granted: bool) -> Found {
        let nowhere = |reason, message: String| Found {
            destination: Destination::default(),
            fault: Some(Fault::new(reason, message)),
        };
        let group = match to.group.as_deref() {
            None | Some("core") => "",
            Some(group) => group,
        };
        let kind = to.kind.as_deref().unwrap_or("Service");
        let namespace = to.namespace.as_deref().unwrap_or(from.namespace);
        if granted && namespace != from.namespace && !self.grants.allow(from, group, kind, namespace, &to.name) {
            let message = format!(
                "backendRef {}/{namespace} not accessible to a {} in namespace \"{}\" (missing a ReferenceGrant?)",
                to.name, from.kind, from.namespace
            );
            return nowhere("RefNotPermitted", message);
        }
        let host = match (group, kind) {
            ("", "Service") if to.name.contains('.') => {
                let message = "service name invalid; the name of the Service must be used, not the hostname.";
                return nowhere("UnsupportedValue", message.to_owned());
            }
            ("", "Service") | ("multicluster.x-k8s.io", "ServiceImport") => {
                format!("{}.{namespace}.svc.{}", to.name, self.domain)
            }
            ("networking.istio.io", "Hostname") => to.name.clone(),
            _ => {
                let (group, kind) = (to.group.as_deref().unwrap_or_default(), to.kind.as_deref().unwrap_or_default());
                let message = format!("referencing unsupported backendRef: group \"{group}\" kind \"{kind}\"");
                return nowhere("InvalidKind", message);
            }
        };
        let Some(number) = to.port else {
            return nowhere("UnsupportedValue", "port is required in backendRef".to_owned());
        };
        let known = self.hosts.contains(host.as_str());
        let fault = (!known).then(|| Fault::new("BackendNotFound", format!("backend({host}) not found")));
        Found { destination: Destination { host, subset: String::new(), port: Some(PortSelector { number }) }, fault }
    }

    /// All backends of a rule that get a share, for routes without HTTP; the last fault with its place.
    pub(super) fn shares(
        &self,
        from: Pointing<'_>,
        rule: &Rule,
        granted: bool,
    ) -> (Vec<WeightedDestination>, Option<(usize, Fault)>) {
        let chosen: Vec<_> =
            rule.backend_refs.iter().enumerate().filter(|(_, backend)| backend.weight != Some(0)).collect();
        let mut fault = None;
        let mut list = Vec::new();
        for (index, backend) in &chosen {
            let found = self.find(from, backend, granted);
            fault = found.fault.map(|found| (*index, found)).or(fault);
            let weight = if chosen.len() == 1 { 0 } else { backend.weight.unwrap_or(1) };
            list.push(WeightedDestination { destination: found.destination, weight, headers: None });
        }
        (list, fault)
    }
}
