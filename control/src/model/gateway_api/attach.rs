//! Which parents a route attaches to, and why not to the others.

use std::collections::BTreeSet;

use super::gateway::Parent;
use super::spec;
use super::status::Fault;
use crate::model::host;

/// A parent reference and what it was found to mean: several listeners where it names a whole gateway.
pub(super) struct Reference<'a> {
    /// Which of the route's references it is.
    pub(super) index: usize,
    pub(super) written: &'a spec::Parent,
    pub(super) results: Vec<Attachment<'a>>,
}

/// One parent.
pub(super) struct Attachment<'a> {
    pub(super) to: To<'a>,
    pub(super) denied: Option<Fault>,
}

/// What is attached to.
#[derive(Clone)]
pub(super) enum To<'a> {
    Listener {
        parent: &'a Parent,
        /// Hosts of the gateway's other listeners of the same port and protocol.
        taken: BTreeSet<&'a str>,
    },
    /// A service of the mesh, for the clients' sidecars.
    Service { host: String, namespace: String },
}

/// What decides about attaching.
pub(super) struct Hall<'a> {
    pub(super) parents: &'a [Parent],
    /// Names of all services.
    pub(super) hosts: &'a BTreeSet<&'a str>,
    /// Hosts of each ServiceEntry, by namespace and name.
    pub(super) entries: &'a dyn Fn(&str, &str) -> Option<Vec<String>>,
    pub(super) domain: &'a str,
}

impl<'a> Hall<'a> {
    /// The references of a route that are to be answered: those to what is known, or should be.
    pub(super) fn attach(
        &self,
        kind: &str,
        version: &str,
        namespace: &str,
        route: &'a spec::Route,
    ) -> Vec<Reference<'a>> {
        let mut found = Vec::new();
        for (index, written) in route.parent_refs.iter().enumerate() {
            let place = written.namespace.as_deref().unwrap_or(namespace);
            let group = written.group.as_deref().unwrap_or(super::GROUP);
            let results = match (group, written.kind.as_deref().unwrap_or("Gateway")) {
                (super::GROUP, "Gateway") => {
                    let own: Vec<&Parent> = self
                        .parents
                        .iter()
                        .filter(|parent| parent.gateway.0 == place && parent.gateway.1 == written.name)
                        .collect();
                    let one = |parent: &&'a Parent| {
                        let taken = own.iter().filter(|other| {
                            !std::ptr::eq(**other, *parent)
                                && other.port == parent.port
                                && other.protocol == parent.protocol
                                && other.hostname != parent.hostname
                        });
                        Attachment {
                            to: To::Listener { parent, taken: taken.map(|other| other.hostname.as_str()).collect() },
                            denied: deny(parent, written, kind, version, namespace, &route.hostnames),
                        }
                    };
                    own.iter().map(one).collect()
                }
                ("" | "core", "Service") => {
                    let host = format!("{}.{place}.svc.{}", written.name, self.domain);
                    let denied = (!self.hosts.contains(host.as_str())).then(|| {
                        Fault::new("NoMatchingParent", format!("parent service: \"{}\" not found", written.name))
                    });
                    vec![Attachment { to: To::Service { host, namespace: place.to_owned() }, denied }]
                }
                ("networking.istio.io", "ServiceEntry") => match (self.entries)(place, &written.name) {
                    Some(hosts) => hosts
                        .into_iter()
                        .map(|host| Attachment { to: To::Service { host, namespace: place.to_owned() }, denied: None })
                        .collect(),
                    None => {
                        let message = format!("parent service entry: \"{}\" not found", written.name);
                        let to = To::Service { host: String::new(), namespace: place.to_owned() };
                        vec![Attachment { to, denied: Some(Fault::new("NoMatchingParent", message)) }]
                    }
                },
                // For another controller.
                _ => continue,
            };
            if !results.is_empty() {
                found.push(Reference { index, written, results });
            }
        }
        found
    }
}

impl Reference<'_> {
    /// Whether the reference attached, as the condition's reason and message, or why not: the fault that is nearest
    /// to success.
    pub(super) fn accepted(&self) -> Result<String, &Fault> {
        let attached = self.results.iter().filter(|result| result.denied.is_none()).count();
        match attached {
            0 => {}
            1 => return Ok("Route was valid".to_owned()),
            several => return Ok(format!("Route was valid, bound to {several} parents")),
        }
        let rank = |fault: &&Fault| match fault.reason {
            "NotAllowedByListeners" => 0,
            "NoMatchingListenerHostname" => 1,
            _ => 2,
        };
        let denied = self.results.iter().filter_map(|result| result.denied.as_ref()).min_by_key(rank);
        denied.map_or(Ok("Route was valid".to_owned()), Err)
    }
}

fn deny(
    parent: &Parent,
    written: &spec::Parent,
    kind: &str,
    version: &str,
    namespace: &str,
    hostnames: &[String],
) -> Option<Fault> {
    if let Some(port) = written.port.filter(|port| *port != parent.port) {
        return Some(Fault::new("NoMatchingParent", format!("port {port} not found")));
    }
    if let Some(section) = written.section_name.as_ref().filter(|section| **section != parent.section) {
        return Some(Fault::new("NoMatchingParent", format!("sectionName \"{section}\" not found")));
    }
    let any = ["*".to_owned()];
    let hostnames = if hostnames.is_empty() { &any[..] } else { hostnames };
    let mut fits = false;
    let mut allowed = false;
    for own in &parent.hosts {
        let (place, own) = own.split_once('/').unwrap_or(("*", own));
        let matches = hostnames.iter().any(|wanted| host::overlap(own, wanted));
        fits |= matches;
        allowed |= matches && (place == "*" || place == namespace);
    }
    if !fits {
        let message = format!("no hostnames matched parent hostname \"{}\"", parent.hostname);
        return Some(Fault::new("NoMatchingListenerHostname", message));
    }
    if !allowed {
        let message = format!(
            "hostnames matched parent hostname \"{}\", but namespace \"{namespace}\" is not allowed by the parent",
            parent.hostname
        );
        return Some(Fault::new("NotAllowedByListeners", message));
    }
    if !parent.kinds.contains(&kind) {
        let message = format!("kind {}/{version}/{kind} is not allowed", super::GROUP);
        return Some(Fault::new("NotAllowedByListeners", message));
    }
    None
}

/// True if requests for `wanted`, a route's host, are this listener's and no nearer one's.
///
/// Source: GEP-1713 and `Listener` in the Gateway API: listeners of one port are isolated by the most specific hostname.
pub(super) fn is_isolated(parent: &Parent, taken: &BTreeSet<&str>, wanted: &str) -> bool {
    let own = parent.hostname.as_str();
    if !own.is_empty() && !own.starts_with('*') {
        return true;
    }
    if !own.is_empty() && !host::overlap(wanted, own) {
        return false;
    }
    !taken.iter().any(|other| !other.is_empty() && own.len() <= other.len() && host::subset_of(wanted, other))
}
