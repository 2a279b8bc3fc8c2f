//! Gateways: each listener becomes a Gateway of Istio's with one server, and a parent for routes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Value, json};

use super::credential::{Credentials, certificate, frontend};
use super::spec::{self, Listener};
use super::status::{Fault, Status, condition};
use super::{GROUP, INFIX};
use crate::model::api::{Gateway, Port, Server, ServerTls};
use crate::model::config::Config;
use crate::model::service::Service;

/// Gateways of this class are Istio's even where no GatewayClass says so.
const CLASSES: [&str; 3] = ["istio", "istio-remote", EAST_WEST];
const EAST_WEST: &str = "istio-east-west";
/// Services whose ports a gateway's servers are on.
const OWN_SERVICES: &str = "internal.istio.io/gateway-service";
/// A label of the pods, and here also an annotation, by which a gateway without a Service knows its proxies.
pub(crate) const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";
const NETWORK: &str = "topology.istio.io/network";
/// Where gateways of networks pass each other's mutual TLS on.
const CROSS_NETWORK_PORT: u32 = 15443;

/// A listener that routes may attach to.
pub(super) struct Parent {
    /// `namespace/name` of the gateway object.
    pub(super) gateway: (String, String),
    pub(super) section: String,
    pub(super) port: u32,
    pub(super) protocol: String,
    /// As written; empty for all.
    pub(super) hostname: String,
    /// `namespace/host` for each namespace that may attach.
    pub(super) hosts: Vec<String>,
    /// Kinds of routes that may attach.
    pub(super) kinds: Vec<&'static str>,
    /// `namespace/name` of the Gateway that was made, whether or not it could be.
    pub(super) name: String,
}

/// Namespaces with their labels.
pub(super) type Namespaces = BTreeMap<String, BTreeMap<String, String>>;

/// What gateways are made from.
pub(super) struct Maker<'a> {
    pub(super) classes: &'a [Config<spec::GatewayClass>],
    pub(super) namespaces: &'a Namespaces,
    pub(super) services: &'a BTreeMap<&'a str, &'a Arc<Service>>,
    pub(super) credentials: &'a Credentials<'a>,
    pub(super) domain: &'a str,
}

/// A gateway with its listeners, and the first part of its status.
pub(super) struct Made {
    pub(super) gateways: Vec<Config<Gateway>>,
    pub(super) parents: Vec<Parent>,
    /// Without `attachedRoutes`, which come when routes were attached.
    pub(super) status: Status,
}

/// A listener as far as it was understood.
struct Heard {
    accepted: Option<Fault>,
    programmed: Option<Fault>,
    resolved: Option<Fault>,
    kinds: Vec<&'static str>,
}

impl Maker<'_> {
    /// True if Istio's controller is responsible for the class.
    pub(super) fn is_ours(&self, class: &str) -> bool {
        match self.classes.iter().find(|known| known.name == class) {
            Some(known) => known.spec.controller_name == super::CONTROLLER,
            None => CLASSES.contains(&class),
        }
    }

    pub(super) fn make(&self, config: &Config<spec::Gateway>, labels: &BTreeMap<String, String>) -> Made {
        let spec = &config.spec;
        let mut made = Made {
            gateways: Vec::new(),
            parents: Vec::new(),
            status: Status {
                resource: config.origin.resource.clone(),
                version: config.origin.version.clone(),
                status: Value::Null,
            },
        };
        let (services, addresses) = self.own_services(config);
        if let Some(fault) = addresses {
            let programmed = Fault::new("UnsupportedAddress", "Failed to assign to any requested addresses");
            made.status.status = json!({"conditions": [
                condition("Accepted", "Accepted", "", Some(&fault)),
                condition("Programmed", "Programmed", "", Some(&programmed)),
                condition("ResolvedRefs", "ResolvedRefs", "All references resolved", None),
            ]});
            return made;
        }
        let mut listeners = Vec::new();
        let mut invalid = 0;
        for (index, listener) in spec.listeners.iter().enumerate() {
            let (heard, tls) = self.listen(config, listener, labels);
            let is_bad = heard.accepted.is_some() || heard.programmed.is_some();
            invalid += usize::from(is_bad);
            let name = format!("{}{INFIX}~{}", config.name, listener.name);
            let hosts = self.hosts(&config.namespace, listener);
            let serves = !is_bad && listener.protocol != "HBONE";
            if serves {
                made.gateways.push(self.gateway(config, index, name.clone(), &services, &hosts, tls));
            }
            listeners.push(json!({
                "name": listener.name,
                "attachedRoutes": 0,
                "supportedKinds":
                    heard.kinds.iter().map(|kind| json!({"group": GROUP, "kind": kind})).collect::<Vec<_>>(),
                "conditions": [
                    condition("Accepted", "Accepted", NO_ERRORS, heard.accepted.as_ref()),
                    json!({"type": "Conflicted", "status": "False", "reason": "NoConflicts", "message": NO_ERRORS}),
                    condition("Programmed", "Programmed", NO_ERRORS, heard.programmed.as_ref()),
                    condition("ResolvedRefs", "ResolvedRefs", NO_ERRORS, heard.resolved.as_ref()),
                ],
            }));
            made.parents.push(Parent {
                gateway: (config.namespace.clone(), config.name.clone()),
                section: listener.name.clone(),
                port: listener.port,
                protocol: listener.protocol.clone(),
                hostname: listener.hostname.clone(),
                hosts,
                kinds: heard.kinds,
                name: format!("{}/{name}", config.namespace),
            });
        }
        let accepted = self.parameters(config).or_else(|| {
            let message = "None of the Gateway's listeners are valid";
            (invalid > 0 && invalid == listeners.len()).then(|| Fault::new("ListenersNotValid", message))
        });
        // Served in part.
        let reason = if invalid > 0 { "ListenersNotValid" } else { "Accepted" };
        let (programmed, reported) = self.assigned(config, &services);
        let mut status = json!({
            "conditions": [
                condition("Accepted", reason, "Resource accepted", accepted.as_ref()),
                programmed,
                condition("ResolvedRefs", "ResolvedRefs", "All references resolved", None),
            ],
            "listeners": listeners,
        });
        if let (Some(fields), false) = (status.as_object_mut(), reported.is_empty()) {
            fields.insert("addresses".to_owned(), reported.into());
        }
        made.status.status = status;
        made
    }

    /// The Services that lead to the gateway's proxies, by host name: those it names as addresses, else the one
    /// that a deployment of it would have.
    fn own_services(&self, config: &Config<spec::Gateway>) -> (Vec<String>, Option<Fault>) {
        let full = |name: &str| format!("{name}.{}.svc.{}", config.namespace, self.domain);
        let named = |address: &spec::Address| address.kind.as_deref().unwrap_or("IPAddress") == "Hostname";
        let others: Vec<&str> = config
            .spec
            .addresses
            .iter()
            .filter(|address| !address.value.is_empty() && !named(address))
            .map(|address| address.value.as_str())
            .collect();
        if !others.is_empty() {
            let message = format!("only Hostname is supported, ignoring [{}]", others.join(" "));
            return (Vec::new(), Some(Fault::new("UnsupportedAddress", message)));
        }
        let services: Vec<String> = config
            .spec
            .addresses
            .iter()
            .filter(|address| named(address))
            .map(|address| if address.value.contains('.') { address.value.clone() } else { full(&address.value) })
            .collect();
        let services = if services.is_empty() { vec![full(&managed_name(config))] } else { services };
        (services, None)
    }

    fn listen(
        &self,
        config: &Config<spec::Gateway>,
        listener: &Listener,
        labels: &BTreeMap<String, String>,
    ) -> (Heard, Option<ServerTls>) {
        let mut heard = Heard { accepted: None, programmed: None, resolved: None, kinds: Vec::new() };
        let protocol = listener.protocol.as_str();
        if !matches!(protocol, "HTTP" | "HTTPS" | "TLS" | "TCP" | "HBONE") {
            let upper = protocol.to_uppercase();
            let hint = if upper == protocol {
                String::new()
            } else {
                format!(". hint: \"{upper}\" (uppercase) may be supported")
            };
            let hint =
                if matches!(upper.as_str(), "HTTP" | "HTTPS" | "TLS" | "TCP" | "HBONE") { hint } else { String::new() };
            let message = format!("protocol \"{protocol}\" is unsupported{hint}");
            heard.accepted = Some(Fault::new("UnsupportedProtocol", message));
        }
        let (kinds, all) = kinds(listener);
        heard.kinds = kinds;
        if !all {
            heard.resolved = Some(Fault::new("InvalidRouteKinds", "Invalid route kinds"));
        }
        let mut tls = None;
        match self.tls(config, listener, labels) {
            Ok(settings) => tls = settings,
            Err((fault, authority)) => {
                heard.programmed = Some(Fault::new("Invalid", "Bad TLS configuration"));
                if authority {
                    heard.accepted = Some(Fault::new("NoValidCACertificate", fault.message.clone()));
                }
                heard.resolved = Some(fault);
            }
        }
        (heard, tls)
    }

    /// The fault says why TLS is not served, and whether the authority of client certificates is to blame.
    fn tls(
        &self,
        config: &Config<spec::Gateway>,
        listener: &Listener,
        labels: &BTreeMap<String, String>,
    ) -> Result<Option<ServerTls>, (Fault, bool)> {
        let Some(tls) = &listener.tls else { return Ok(None) };
        if listener.protocol == "HBONE" {
            return Ok(None);
        }
        let mut made = ServerTls::default();
        if tls.mode == "Passthrough" {
            let crosses = listener.port == CROSS_NETWORK_PORT && labels.contains_key(NETWORK);
            made.mode = if crosses { "AUTO_PASSTHROUGH" } else { "PASSTHROUGH" }.to_owned();
            return Ok(Some(made));
        }
        made.mode = "SIMPLE".to_owned();
        match tls.options.get("gateway.istio.io/tls-terminate-mode").map(String::as_str) {
            Some("MUTUAL") => made.mode = "MUTUAL".to_owned(),
            Some("ISTIO_MUTUAL") => {
                made.mode = "ISTIO_MUTUAL".to_owned();
                return Ok(Some(made));
            }
            _ => {}
        }
        let frontends = &config.spec.tls.frontend;
        let of_port = frontends.per_port.iter().find(|port| port.port == listener.port).map(|port| &port.tls);
        if let Some(validation) = &of_port.unwrap_or(&frontends.default).validation {
            let name = frontend(self.credentials, &config.namespace, validation).map_err(|fault| (fault, true))?;
            made.ca_cert_credential_name = format!("{name}-cacert");
            made.mode =
                if validation.mode == "AllowInsecureFallback" { "OPTIONAL_MUTUAL" } else { "MUTUAL" }.to_owned();
        }
        let mut names = Vec::new();
        for reference in &tls.certificate_refs {
            names.push(certificate(self.credentials, &config.namespace, reference).map_err(|fault| (fault, false))?);
        }
        match names.as_slice() {
            [] => {
                let fault = Fault::new("InvalidCertificateRef", "at least one certificate reference is required");
                return Err((fault, false));
            }
            [only] => made.credential_name.clone_from(only),
            _ => made.credential_names = names,
        }
        Ok(Some(made))
    }

    fn hosts(&self, own: &str, listener: &Listener) -> Vec<String> {
        let hostname = if listener.hostname.is_empty() { "*" } else { listener.hostname.as_str() };
        let allowed = &listener.allowed_routes.namespaces;
        let namespaces: Vec<&str> = match allowed.from.as_str() {
            "All" => vec!["*"],
            "Selector" => {
                let chosen = self.namespaces.iter().filter(|(_, labels)| allowed.selector.matches(labels));
                chosen.map(|(name, _)| name.as_str()).collect()
            }
            "None" => Vec::new(),
            _ => vec![own],
        };
        // A server without hosts is not allowed; this one is nobody's.
        let namespaces = if namespaces.is_empty() { vec!["~"] } else { namespaces };
        namespaces.iter().map(|namespace| format!("{namespace}/{hostname}")).collect()
    }

    fn gateway(
        &self,
        config: &Config<spec::Gateway>,
        index: usize,
        name: String,
        services: &[String],
        hosts: &[String],
        tls: Option<ServerTls>,
    ) -> Config<Gateway> {
        let listener = config.spec.listeners.get(index).cloned().unwrap_or_default();
        let server = Server {
            port: Port {
                number: listener.port,
                protocol: listener.protocol,
                name: "default".to_owned(),
                ..Port::default()
            },
            hosts: hosts.to_vec(),
            tls,
            ..Server::default()
        };
        Config {
            name,
            namespace: config.namespace.clone(),
            created: config.created.clone(),
            annotations: [(OWN_SERVICES, services.join(",")), (GATEWAY_NAME, config.name.clone())]
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
            spec: Gateway { servers: vec![server], ..Gateway::default() },
            origin: Arc::new(config.origin.below(&format!("spec.listeners[{index}]"))),
        }
    }

    /// What is wrong with the parameters that a deployment would take.
    fn parameters(&self, config: &Config<spec::Gateway>) -> Option<Fault> {
        let parameters = config.spec.infrastructure.parameters_ref.as_ref()?;
        let (group, kind) = (parameters.group.as_deref().unwrap_or_default(), parameters.kind.as_deref());
        if !group.is_empty() || kind != Some("ConfigMap") {
            let message = format!(
                "Unsupported parametersRef group/kind {group}/{}, only ConfigMap is supported",
                kind.unwrap_or_default()
            );
            return Some(Fault::new("InvalidParameters", message));
        }
        if self.credentials.config_map(&config.namespace, &parameters.name).is_none() {
            let message = format!("parametersRef ConfigMap {}/{} does not exist", config.namespace, parameters.name);
            return Some(Fault::new("InvalidParameters", message));
        }
        None
    }

    /// The condition `Programmed`, and the addresses at which the gateway is reached.
    fn assigned(&self, config: &Config<spec::Gateway>, services: &[String]) -> (Value, Vec<Value>) {
        let ports: BTreeSet<u32> = config.spec.listeners.iter().map(|listener| listener.port).collect();
        let mut found = BTreeSet::new();
        let mut warnings = Vec::new();
        let mut addresses = BTreeSet::new();
        for hostname in services {
            let Some(service) = self.services.get(hostname.as_str()) else {
                warnings.push(format!("hostname \"{hostname}\" not found"));
                continue;
            };
            for port in &ports {
                if service.port(*port).is_some() {
                    found.insert(format!("{hostname}:{port}"));
                    addresses.extend(service.external_addresses.iter().cloned());
                } else {
                    warnings.push(format!("port {port} not found for hostname \"{hostname}\"{}", hint(service, *port)));
                }
            }
        }
        let found: Vec<String> = found.into_iter().collect();
        let programmed = if warnings.is_empty() {
            let message = format!("Resource programmed, assigned to service(s) {}", join(&found));
            condition("Programmed", "Programmed", &message, None)
        } else if found.is_empty() {
            let message = format!("Failed to assign to any requested addresses: {}", warnings.join("; "));
            condition("Programmed", "", "", Some(&Fault::new("AddressNotUsable", message)))
        } else {
            let message = format!(
                "Assigned to service(s) {}, but failed to assign to all requested addresses: {}",
                join(&found),
                warnings.join("; ")
            );
            condition("Programmed", "", "", Some(&Fault::new("AddressNotUsable", message)))
        };
        let reported = addresses.into_iter().map(|address| {
            let kind = if address.parse::<std::net::IpAddr>().is_ok() { "IPAddress" } else { "Hostname" };
            json!({"type": kind, "value": address})
        });
        (programmed, reported.collect())
    }
}

/// What a deployment of the gateway is called.
fn managed_name(config: &Config<spec::Gateway>) -> String {
    match (config.annotations.get("gateway.istio.io/name-override"), config.spec.gateway_class_name.as_str()) {
        (Some(name), _) => name.clone(),
        (None, EAST_WEST) => config.name.clone(),
        (None, class) => format!("{}-{class}", config.name),
    }
}

/// Which kinds may attach, and whether all that were asked for may.
fn kinds(listener: &Listener) -> (Vec<&'static str>, bool) {
    let passes = listener.tls.as_ref().is_some_and(|tls| tls.mode == "Passthrough");
    let able: &[&'static str] = match listener.protocol.as_str() {
        "HTTP" | "HTTPS" => &["HTTPRoute", "GRPCRoute"],
        "TCP" => &["TCPRoute"],
        "TLS" if passes => &["TLSRoute"],
        "TLS" => &["TCPRoute"],
        _ => &[],
    };
    let wanted = &listener.allowed_routes.kinds;
    if wanted.is_empty() {
        return (able.to_vec(), true);
    }
    let is_wanted = |kind: &&&'static str| {
        wanted.iter().any(|one| one.kind == **kind && one.group.as_deref().is_none_or(|group| group == GROUP))
    };
    let chosen: Vec<_> = able.iter().filter(is_wanted).copied().collect();
    let all = chosen.len() == wanted.len();
    (chosen, all)
}

/// A port of the workload in place of the service's is a common slip.
fn hint(service: &Service, port: u32) -> String {
    let mut meant = BTreeSet::new();
    for (number, endpoints) in &service.endpoints {
        if endpoints.iter().any(|endpoint| endpoint.port == port) {
            meant.insert(number.to_string());
        }
    }
    if meant.is_empty() {
        return String::new();
    }
    let meant: Vec<String> = meant.into_iter().collect();
    format!(
        " (hint: the service port should be specified, not the workload port. Did you mean one of these ports: [{}]?)",
        meant.join(" ")
    )
}

/// `a`, `a and b`, `a, b, and c`.
fn join(list: &[String]) -> String {
    match list {
        [] => String::new(),
        [only] => only.clone(),
        [one, other] => format!("{one} and {other}"),
        [first @ .., last] => format!("{}, and {last}", first.join(", ")),
    }
}

const NO_ERRORS: &str = "No errors found";
