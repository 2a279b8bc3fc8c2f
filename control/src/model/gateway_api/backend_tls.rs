//! BackendTLSPolicies: how backends are spoken to under TLS, as DestinationRules.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::INFIX;
use super::credential::{Credentials, Missing, authority};
use super::spec::{BackendTlsPolicy, Target};
use super::status::{Fault, MESH_CONTROLLER, Status, condition};
use crate::model::api::{ClientTls, DestinationRule, PortPolicy, PortSelector, TrafficPolicy};
use crate::model::config::Config;
use crate::model::service::Service;
use crate::source::Object;

/// What policies are judged by.
pub(super) struct Maker<'a> {
    pub(super) services: &'a BTreeMap<&'a str, &'a Arc<Service>>,
    pub(super) entries: &'a dyn Fn(&str, &str) -> Option<Vec<String>>,
    pub(super) credentials: &'a Credentials<'a>,
    pub(super) domain: &'a str,
}

/// A name for no credential: who asks for it waits, and nothing is sent without verification.
const INVALID: &str = "invalid://";

impl Maker<'_> {
    /// The rules of all policies, which are oldest first. Of two for one target the older counts.
    pub(super) fn make(
        &self,
        policies: &[(Config<BackendTlsPolicy>, &Object)],
    ) -> (Vec<Config<DestinationRule>>, Vec<Status>) {
        let mut rules: BTreeMap<(String, String), Config<DestinationRule>> = BTreeMap::new();
        let mut statuses = Vec::new();
        let mut holders: BTreeMap<(String, String, String, Option<String>), String> = BTreeMap::new();
        for (policy, object) in policies {
            let (tls, unresolved) = self.tls(policy);
            let mut ancestors = Vec::new();
            for target in &policy.spec.target_refs {
                let key =
                    (policy.namespace.clone(), target.kind.clone(), target.name.clone(), target.section_name.clone());
                let holder = holders.entry(key).or_insert_with(|| policy.name.clone());
                let fault = if *holder == policy.name {
                    self.apply(policy, target, &tls, &mut rules).err()
                } else {
                    let message = format!("Conflicts with BackendTLSPolicy \"{holder}\" targeting the same backend");
                    Some(Fault::new("Conflicted", message))
                };
                let authority = unresolved.as_ref().map(|(accepted, _)| accepted);
                let resolved = unresolved.as_ref().map(|(_, resolved)| resolved);
                ancestors.push(json!({
                    "ancestorRef": written(target),
                    "controllerName": MESH_CONTROLLER,
                    "conditions": [
                        condition("Accepted", "Accepted", VALID, authority.or(fault.as_ref())),
                        condition("ResolvedRefs", "ResolvedRefs", VALID, resolved),
                    ],
                }));
            }
            // What other controllers say stays.
            let others = object.content.get("status").and_then(|status| status.get("ancestors"));
            let others = others.and_then(Value::as_array).into_iter().flatten().filter(|one| {
                one.get("controllerName").and_then(Value::as_str).is_some_and(|name| !name.starts_with("istio.io/"))
            });
            let all: Vec<Value> = others.cloned().chain(ancestors).collect();
            statuses.push(Status {
                resource: policy.origin.resource.clone(),
                version: policy.origin.version.clone(),
                status: json!({"ancestors": all}),
            });
        }
        (rules.into_values().collect(), statuses)
    }

    /// What a policy says, and the faults of its authority: for `Accepted` and for `ResolvedRefs`.
    fn tls(&self, policy: &Config<BackendTlsPolicy>) -> (ClientTls, Option<(Fault, Fault)>) {
        let validation = &policy.spec.validation;
        let mut made = ClientTls {
            mode: "SIMPLE".to_owned(),
            sni: validation.hostname.clone(),
            subject_alt_names: validation
                .subject_alt_names
                .iter()
                .map(|name| if name.uri.is_empty() { name.hostname.clone() } else { name.uri.clone() })
                .collect(),
            ..ClientTls::default()
        };
        if validation.well_known.is_some() {
            return (made, None);
        }
        let Some(to) = validation.ca_certificate_refs.first() else { return (made, None) };
        INVALID.clone_into(&mut made.credential_name);
        let kind = to.kind.as_deref().unwrap_or_default();
        let unaccepted =
            |message: String| Fault::new("NoValidCACertificate", format!("Certificate reference invalid: {message}"));
        if !matches!(kind, "ConfigMap" | "Secret") {
            let message = format!("unsupported kind {kind}");
            let resolved = Fault::new("InvalidKind", format!("Certificate reference not supported: {message}"));
            return (made, Some((unaccepted(message), resolved)));
        }
        match authority(self.credentials, kind, &policy.namespace, &to.name) {
            Ok(name) => {
                made.credential_name = name;
                (made, None)
            }
            Err(Missing::Object) => {
                let message = format!("reference {}/{} (of kind {kind}) not found", policy.namespace, to.name);
                let resolved =
                    Fault::new("InvalidCACertificateRef", format!("Certificate reference not found: {message}"));
                (made, Some((unaccepted(message), resolved)))
            }
            Err(Missing::Key(message)) => {
                let resolved = Fault::new("InvalidCACertificateRef", format!("Certificate invalid: {message}"));
                (made, Some((unaccepted(message), resolved)))
            }
        }
    }

    /// Adds the policy to the rules of one target.
    fn apply(
        &self,
        policy: &Config<BackendTlsPolicy>,
        target: &Target,
        tls: &ClientTls,
        rules: &mut BTreeMap<(String, String), Config<DestinationRule>>,
    ) -> Result<(), Fault> {
        let place = &policy.namespace;
        let missing = || {
            let message =
                format!("targetRefs invalid: reference {place}/{} (of kind {}) not found", target.name, target.kind);
            Fault::new("TargetNotFound", message)
        };
        let is_entry = target.kind == "ServiceEntry";
        let hosts = match target.kind.as_str() {
            "Service" => vec![format!("{}.{place}.svc.{}", target.name, self.domain)],
            "ServiceEntry" => (self.entries)(place, &target.name).ok_or_else(missing)?,
            kind => return Err(Fault::new("Invalid", format!("targetRefs invalid: unsupported kind {kind}"))),
        };
        for host in hosts {
            let service = self.services.get(host.as_str()).ok_or_else(missing)?;
            let port = match &target.section_name {
                None => None,
                Some(section) => {
                    let found = service.ports.iter().find(|port| port.name == *section);
                    let absent = || {
                        let message = format!(
                            "targetRefs invalid: sectionName \"{section}\" does not exist in {} {place}/{}",
                            target.kind, target.name
                        );
                        Fault::new("TargetNotFound", message)
                    };
                    Some(found.ok_or_else(absent)?.number)
                }
            };
            let middle = if is_entry { format!("~{}", host.replace('.', "-")) } else { String::new() };
            let name = format!("{}{middle}{INFIX}", target.name);
            let rule = rules.entry((place.clone(), name.clone())).or_insert_with(|| Config {
                name,
                namespace: place.clone(),
                created: policy.created.clone(),
                annotations: BTreeMap::new(),
                spec: DestinationRule { host: host.clone(), ..DestinationRule::default() },
                origin: Arc::clone(&policy.origin),
            });
            let into = rule.spec.traffic_policy.get_or_insert_with(TrafficPolicy::default);
            match port {
                None => into.tls = Some(tls.clone()),
                Some(number) => into.port_level_settings.push(PortPolicy {
                    port: Some(PortSelector { number }),
                    tls: Some(tls.clone()),
                    ..PortPolicy::default()
                }),
            }
        }
        Ok(())
    }
}

fn written(target: &Target) -> Value {
    let mut made = json!({"group": target.group, "kind": target.kind, "name": target.name});
    if let (Some(section), Some(fields)) = (&target.section_name, made.as_object_mut()) {
        fields.insert("sectionName".to_owned(), section.as_str().into());
    }
    made
}

const VALID: &str = "Configuration is valid";
