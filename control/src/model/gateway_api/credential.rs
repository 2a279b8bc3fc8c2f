//! Certificates and authorities that gateways and policies name.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::grant::{Grants, Pointing};
use super::spec::{FrontendValidation, Reference};
use super::status::Fault;
use crate::source::Object;

/// Secrets and ConfigMaps by namespace and name.
pub(super) struct Credentials<'a> {
    pub(super) secrets: BTreeMap<(&'a str, &'a str), &'a Object>,
    pub(super) config_maps: BTreeMap<(&'a str, &'a str), &'a Object>,
    pub(super) grants: &'a Grants,
}

impl Credentials<'_> {
    pub(super) fn config_map(&self, namespace: &str, name: &str) -> Option<&Object> {
        self.config_maps.get(&(namespace, name)).copied()
    }

    fn secret(&self, namespace: &str, name: &str) -> Option<&Object> {
        self.secrets.get(&(namespace, name)).copied()
    }
}

/// The name under which the certificate of a listener in `namespace` is asked for.
pub(super) fn certificate(known: &Credentials<'_>, namespace: &str, to: &Reference) -> Result<String, Fault> {
    let (group, kind) = (to.group.as_deref().unwrap_or_default(), to.kind.as_deref().unwrap_or("Secret"));
    let other = to.namespace.as_deref();
    let shown = format!("{group}/{kind}/{}.{}", to.name, other.unwrap_or_default());
    if !matches!(group, "" | "core") || kind != "Secret" {
        let message = format!("invalid certificate reference {shown}, only secret is allowed");
        return Err(Fault::new("InvalidCertificateRef", message));
    }
    let place = other.unwrap_or(namespace);
    let from = Pointing { kind: "Gateway", namespace };
    if place != namespace && !known.grants.allow(from, "", "Secret", place, &to.name) {
        let message = format!(
            "certificateRef {place}/{} not accessible to a Gateway in namespace \"{namespace}\" (missing a ReferenceGrant?)",
            to.name
        );
        return Err(Fault::new("RefNotPermitted", message));
    }
    let Some(secret) = known.secret(place, &to.name) else {
        let message = format!("invalid certificate reference {shown}, secret {place}/{} not found", to.name);
        return Err(Fault::new("InvalidCertificateRef", message));
    };
    let is_pem = ["tls.crt", "cert"]
        .iter()
        .find_map(|field| field_of(secret, field))
        .is_some_and(|bytes| bytes.windows(PEM.len()).any(|window| window == PEM));
    if !is_pem {
        let message = format!(
            "invalid certificate reference {shown}, the certificate is malformed: tls: failed to find any PEM data in certificate input"
        );
        return Err(Fault::new("InvalidCertificateRef", message));
    }
    Ok(format!("kubernetes-gateway://{place}/{}", to.name))
}

/// The name under which the authority of clients' certificates is asked for, without the ending that says so.
pub(super) fn frontend(
    known: &Credentials<'_>,
    namespace: &str,
    validation: &FrontendValidation,
) -> Result<String, Fault> {
    let [to] = validation.ca_certificate_refs.as_slice() else {
        return Err(Fault::new("InvalidCACertificateRef", "only one caCertificateRef is supported"));
    };
    let (group, kind) = (to.group.as_deref().unwrap_or_default(), to.kind.as_deref().unwrap_or_default());
    let place = to.namespace.as_deref().unwrap_or(namespace);
    let shown = format!("{group}/{kind}/{}.{}", to.name, to.namespace.as_deref().unwrap_or_default());
    if !group.is_empty() || !matches!(kind, "ConfigMap" | "Secret") {
        let message = format!("invalid CA certificate reference {shown}, only secret and configmap are allowed");
        return Err(Fault::new("InvalidCACertificateKind", message));
    }
    let from = Pointing { kind: "Gateway", namespace };
    if place != namespace && !known.grants.allow(from, "", kind, place, &to.name) {
        let message = format!(
            "caCertificateRef {place}/{} not accessible to a Gateway in namespace \"{namespace}\" (missing a ReferenceGrant?)",
            to.name
        );
        return Err(Fault::new("RefNotPermitted", message));
    }
    authority(known, kind, place, &to.name).map_err(|reason| {
        let message = match reason {
            Missing::Object => {
                format!(
                    "invalid CA certificate reference {shown}, {} {place}/{} not found",
                    kind.to_lowercase(),
                    to.name
                )
            }
            Missing::Key(found) => {
                format!("invalid CA certificate reference {shown}, the certificate is malformed: {found}")
            }
        };
        Fault::new("InvalidCACertificateRef", message)
    })
}

/// Why there is no authority.
pub(super) enum Missing {
    Object,
    Key(String),
}

/// The name of an authority in a ConfigMap or Secret.
pub(super) fn authority(known: &Credentials<'_>, kind: &str, place: &str, name: &str) -> Result<String, Missing> {
    let is_map = kind == "ConfigMap";
    let object = if is_map { known.config_map(place, name) } else { known.secret(place, name) };
    let object = object.ok_or(Missing::Object)?;
    if ["ca.crt", "cacert"].iter().all(|field| field_of(object, field).is_none_or(|bytes| bytes.is_empty())) {
        let names = |part: &str| object.content.get(part).and_then(serde_json::Value::as_object);
        let found: Vec<&str> = ["data", "stringData"]
            .iter()
            .filter_map(|part| names(part))
            .flat_map(|fields| fields.keys().map(String::as_str))
            .collect();
        let message =
            format!("found secret, but didn't have expected keys cacert or ca.crt; found: {}", found.join(", "));
        return Err(Missing::Key(message));
    }
    let scheme = if is_map { "configmap" } else { "kubernetes-gateway" };
    Ok(format!("{scheme}://{place}/{name}"))
}

/// A value of a Secret or ConfigMap.
fn field_of(object: &Object, name: &str) -> Option<Vec<u8>> {
    let text = |part: &str| object.content.get(part)?.get(name)?.as_str().map(str::to_owned);
    if let Some(text) = text("stringData") {
        return Some(text.into_bytes());
    }
    let text = text("data")?;
    if object.resource.kind == "ConfigMap" {
        return Some(text.into_bytes());
    }
    let packed: String = text.split_whitespace().collect();
    STANDARD.decode(packed).ok()
}

/// True if `name` is a credential in another namespace than `namespace`, which only a grant gives.
pub(super) fn is_foreign(name: &str, namespace: &str) -> bool {
    let place = name.strip_prefix("kubernetes-gateway://").and_then(|place| place.split_once('/'));
    place.is_some_and(|(other, _)| other != namespace)
}

const PEM: &[u8] = b"-----BEGIN";
