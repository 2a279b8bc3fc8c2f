//! Routes of all kinds: virtual services for the parents that they attach to, and their status.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::attach::{Attachment, Hall, Reference, To, is_isolated};
use super::backend::Backends;
use super::grant::Pointing;
use super::status::{CONTROLLER, Fault, Status, condition};
use super::{INFIX, http, spec};
use crate::model::api::{Destination, HttpRoute, L4Match, L4Route, PortSelector, VirtualService, WeightedDestination};
use crate::model::config::Config;
use crate::model::finding::{Finding, Severity};
use crate::model::virtual_service::MESH;

/// Where the virtual service of several routes is kept: the parent, and the host there.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    /// `namespace/name` of the Gateway, and the host.
    Gateway(String, String),
    /// The namespace of the routes, the only port (0 for all), and the host.
    Mesh(String, u32, String),
}

/// Routes become virtual services one after the other, oldest first.
pub(super) struct Routes<'a> {
    pub(super) hall: Hall<'a>,
    pub(super) backends: Backends<'a>,
    merged: BTreeMap<Key, Config<VirtualService>>,
    single: Vec<Config<VirtualService>>,
    /// How many routes each listener has, by the name of its Gateway.
    pub(super) attached: BTreeMap<String, usize>,
    pub(super) statuses: Vec<Status>,
    pub(super) findings: Vec<Finding>,
}

impl<'a> Routes<'a> {
    pub(super) fn new(hall: Hall<'a>, backends: Backends<'a>) -> Self {
        Self {
            hall,
            backends,
            merged: BTreeMap::new(),
            single: Vec::new(),
            attached: BTreeMap::new(),
            statuses: Vec::new(),
            findings: Vec::new(),
        }
    }

    /// Takes up one route object.
    pub(super) fn add(&mut self, config: &'a Config<spec::Route>) {
        let kind = config.origin.resource.kind.as_str();
        let references = self.hall.attach(kind, &config.origin.version, &config.namespace, &config.spec);
        let mut faults: Vec<(String, Fault)> = Vec::new();
        match kind {
            "HTTPRoute" | "GRPCRoute" => self.add_http(config, &references, &mut faults),
            _ => self.add_bytes(config, &references, &mut faults),
        }
        for reference in &references {
            let listeners = reference.results.iter().filter(|result| result.denied.is_none());
            for attachment in listeners {
                if let To::Listener { parent, .. } = &attachment.to {
                    *self.attached.entry(parent.name.clone()).or_default() += 1;
                }
            }
            if let Err(fault) = reference.accepted() {
                self.tell(config, &format!("spec.parentRefs[{}]", reference.index), fault);
            }
        }
        for (index, (path, fault)) in faults.iter().enumerate() {
            if faults.iter().position(|known| known.0 == *path && known.1 == *fault) == Some(index) {
                self.tell(config, path, fault);
            }
        }
        self.statuses.extend(status(config, &references, faults.last().map(|(_, fault)| fault)));
    }

    /// All virtual services, routes within each in the API's order of precedence.
    pub(super) fn finish(&mut self) -> Vec<Config<VirtualService>> {
        let mut made: Vec<Config<VirtualService>> = std::mem::take(&mut self.merged).into_values().collect();
        for config in &mut made {
            config.spec.http.sort_by_key(http::rank);
        }
        made.append(&mut self.single);
        made
    }

    fn tell(&mut self, config: &Config<spec::Route>, path: &str, fault: &Fault) {
        let code = match fault.reason {
            "BackendNotFound" | "RefNotPermitted" | "NoMatchingParent" => "IST0101",
            _ => "TORUS0001",
        };
        self.findings.push(Finding {
            severity: Severity::Error,
            code,
            resource: config.origin.resource.clone(),
            place: config.origin.place_of(path).clone(),
            message: fault.message.clone(),
        });
    }

    fn add_http(
        &mut self,
        config: &'a Config<spec::Route>,
        references: &[Reference<'a>],
        faults: &mut Vec<(String, Fault)>,
    ) {
        let from = Pointing { kind: &config.origin.resource.kind, namespace: &config.namespace };
        let make = |granted: bool, port: u32, faults: &mut Vec<(String, Fault)>| {
            let maker = http::Maker {
                backends: &self.backends,
                from,
                name: &config.name,
                origin: &config.origin,
                granted,
                port,
            };
            maker.routes(&config.spec.rules, faults)
        };
        let mut for_gateways: Option<Vec<HttpRoute>> = None;
        let mut seen = std::collections::BTreeSet::new();
        for reference in references {
            for result in attached(reference) {
                match &result.to {
                    To::Listener { parent, taken } => {
                        if !seen.insert(parent.name.clone()) {
                            continue;
                        }
                        let routes = for_gateways.get_or_insert_with(|| make(true, 0, faults)).clone();
                        let any = ["*".to_owned()];
                        let hostnames = &config.spec.hostnames;
                        let hosts = if hostnames.is_empty() { &any[..] } else { hostnames };
                        for host in hosts.iter().filter(|host| is_isolated(parent, taken, host)) {
                            let key = Key::Gateway(parent.name.clone(), host.clone());
                            let name = format!("{}~{host}", parent.name.replace('/', "~"));
                            let into = self
                                .merged
                                .entry(key)
                                .or_insert_with(|| shell(config, name, vec![host.clone()], parent.name.clone()));
                            into.spec.http.extend(routes.iter().cloned());
                        }
                    }
                    To::Service { host, namespace } => {
                        let port = reference.written.port.unwrap_or_default();
                        let mut own = Vec::new();
                        let routes = make(false, port, &mut own);
                        if for_gateways.is_none() {
                            faults.extend(own);
                        }
                        let key = Key::Mesh(config.namespace.clone(), port, host.clone());
                        let infix = if port == 0 { String::new() } else { format!("{port}~") };
                        let name = format!("{}~{infix}{host}", config.namespace);
                        let into = self.merged.entry(key).or_insert_with(|| {
                            let mut made = shell(config, name, vec![host.clone()], MESH.to_owned());
                            // A route beside its Service is for every client; one elsewhere for clients there.
                            if *namespace != config.namespace {
                                made.spec.export_to = vec![".".to_owned()];
                            }
                            made
                        });
                        into.spec.http.extend(routes);
                    }
                }
            }
        }
        if references.is_empty() {
            // Nobody's route, but what is wrong with it is told all the same.
            make(true, 0, faults);
        }
    }

    /// TCPRoutes and TLSRoutes.
    fn add_bytes(
        &mut self,
        config: &'a Config<spec::Route>,
        references: &[Reference<'a>],
        faults: &mut Vec<(String, Fault)>,
    ) {
        let kind = config.origin.resource.kind.as_str();
        let from = Pointing { kind, namespace: &config.namespace };
        let mut parents: Vec<(&Reference<'a>, &Attachment<'a>)> = references
            .iter()
            .flat_map(|reference| attached(reference).map(move |result| (reference, result)))
            .collect();
        parents.sort_by_key(|(_, result)| match &result.to {
            To::Listener { parent, .. } => parent.name.clone(),
            To::Service { .. } => MESH.to_owned(),
        });
        for (position, (reference, result)) in parents.into_iter().enumerate() {
            let granted = matches!(result.to, To::Listener { .. });
            let mut routes = Vec::new();
            for (index, rule) in config.spec.rules.iter().enumerate() {
                let (mut route, fault) = self.backends.shares(from, rule, granted);
                if position == 0 {
                    faults.extend(fault.map(|(at, fault)| (format!("spec.rules[{index}].backendRefs[{at}]"), fault)));
                }
                if route.is_empty() {
                    // Connections are to be refused: this leads to a cluster that does not exist.
                    route.push(nowhere());
                }
                routes.push(L4Route { route, matches: Vec::new() });
            }
            let hostnames = &config.spec.hostnames;
            let tls = kind == "TLSRoute";
            let names = if hostnames.is_empty() { vec!["*".to_owned()] } else { hostnames.clone() };
            let (hosts, gateway) = match &result.to {
                To::Listener { parent, .. } => {
                    (if tls { names.clone() } else { vec!["*".to_owned()] }, parent.name.clone())
                }
                To::Service { host, .. } => (vec![host.clone()], MESH.to_owned()),
            };
            let port = reference.written.port.filter(|_| !granted).unwrap_or_default();
            for route in &mut routes {
                if tls {
                    route.matches = vec![L4Match { sni_hosts: names.clone(), port, ..L4Match::default() }];
                } else if port != 0 {
                    route.matches = vec![L4Match { port, ..L4Match::default() }];
                }
            }
            let word = if tls { "tls" } else { "tcp" };
            let mut made = shell(config, format!("{}~{word}~{position}{INFIX}", config.name), hosts, gateway);
            if tls {
                made.spec.tls = routes
            } else {
                made.spec.tcp = routes
            }
            self.single.push(made);
        }
    }
}

fn attached<'r, 'a>(reference: &'r Reference<'a>) -> impl Iterator<Item = &'r Attachment<'a>> {
    reference.results.iter().filter(|result| result.denied.is_none())
}

/// A virtual service without routes.
fn shell(config: &Config<spec::Route>, name: String, hosts: Vec<String>, gateway: String) -> Config<VirtualService> {
    Config {
        name,
        namespace: config.namespace.clone(),
        created: config.created.clone(),
        annotations: BTreeMap::new(),
        spec: VirtualService { hosts, gateways: vec![gateway], ..VirtualService::default() },
        origin: Arc::clone(&config.origin),
    }
}

fn nowhere() -> WeightedDestination {
    let destination =
        Destination { host: String::new(), subset: String::new(), port: Some(PortSelector { number: 65_535 }) };
    WeightedDestination { destination, ..WeightedDestination::default() }
}

/// The route's status; none where no parent is this controller's.
fn status(config: &Config<spec::Route>, references: &[Reference<'_>], unresolved: Option<&Fault>) -> Option<Status> {
    if references.is_empty() {
        return None;
    }
    let parent = |reference: &Reference<'_>| {
        let (message, fault) = match reference.accepted() {
            Ok(message) => (message, None),
            Err(fault) => (String::new(), Some(fault)),
        };
        json!({
            "controllerName": CONTROLLER,
            "parentRef": reference.written.to_json(),
            "conditions": [
                condition("Accepted", "Accepted", &message, fault),
                condition("ResolvedRefs", "ResolvedRefs", "All references resolved", unresolved),
            ],
        })
    };
    let parents: Vec<Value> = references.iter().map(parent).collect();
    Some(Status {
        resource: config.origin.resource.clone(),
        version: config.origin.version.clone(),
        status: json!({"parents": parents}),
    })
}

impl spec::Parent {
    /// As it was written.
    fn to_json(&self) -> Value {
        let mut fields = serde_json::Map::new();
        let texts = [
            ("group", &self.group),
            ("kind", &self.kind),
            ("namespace", &self.namespace),
            ("sectionName", &self.section_name),
        ];
        for (name, value) in texts {
            if let Some(value) = value {
                fields.insert(name.to_owned(), value.as_str().into());
            }
        }
        fields.insert("name".to_owned(), self.name.as_str().into());
        if let Some(port) = self.port {
            fields.insert("port".to_owned(), port.into());
        }
        fields.into()
    }
}
