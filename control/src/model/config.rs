//! One configuration object after parsing, where it came from, and who may see it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::finding::{Finding, Severity};
use crate::source::{Object, Place, ResourceName};

/// Where something generated comes from.
#[derive(Debug, Clone, PartialEq)]
pub struct Origin {
    pub resource: ResourceName,
    pub version: String,
    pub place: Place,
    places: Arc<BTreeMap<String, Place>>,
}

impl Origin {
    pub fn of(object: &Object) -> Self {
        Self {
            resource: object.resource.clone(),
            version: object.version.clone(),
            place: object.place.clone(),
            places: object.places.clone(),
        }
    }

    /// The same object, of which only the part at `path` is meant.
    pub(super) fn below(&self, path: &str) -> Self {
        Self { place: self.place_of(path).clone(), ..self.clone() }
    }

    /// The place of the field at `path`, or of the nearest field around it.
    pub fn place_of(&self, path: &str) -> &Place {
        let mut path = path;
        loop {
            if let Some(place) = self.places.get(path) {
                return place;
            }
            match path.rfind(['.', '[']).and_then(|end| path.get(..end)) {
                Some(shorter) => path = shorter,
                None => return &self.place,
            }
        }
    }

    /// The address that Istio writes into generated metadata:
    /// `/apis/networking.istio.io/v1/namespaces/shop/virtual-service/web`.
    pub fn config_path(&self) -> String {
        let resource = &self.resource;
        let mut kind = String::new();
        for letter in resource.kind.chars() {
            if letter.is_ascii_uppercase() && !kind.is_empty() {
                kind.push('-');
            }
            kind.push(letter.to_ascii_lowercase());
        }
        format!("/apis/{}/{}/namespaces/{}/{kind}/{}", resource.group, self.version, resource.namespace, resource.name)
    }
}

/// A parsed object.
#[derive(Debug, Clone)]
pub struct Config<T> {
    pub name: String,
    pub namespace: String,
    pub created: String,
    pub annotations: BTreeMap<String, String>,
    pub spec: T,
    pub origin: Arc<Origin>,
}

impl<T: DeserializeOwned> Config<T> {
    /// Reads the object's spec. A field of the wrong shape is a finding at that field.
    pub(super) fn parse(object: &Object) -> Result<Self, Finding> {
        let spec = without_nulls(object.spec());
        let spec = if spec.is_null() { Value::Object(serde_json::Map::new()) } else { spec };
        match serde_path_to_error::deserialize(spec) {
            Ok(spec) => Ok(Self {
                name: object.resource.name.clone(),
                namespace: object.resource.namespace.clone(),
                created: created(object),
                annotations: object.annotations.clone(),
                spec,
                origin: Arc::new(Origin::of(object)),
            }),
            Err(error) => {
                let path = format!("spec.{}", error.path());
                Err(Finding {
                    severity: Severity::Error,
                    code: "IST0106",
                    resource: object.resource.clone(),
                    place: object.place_of(&path).clone(),
                    message: format!("{path}: {}", error.inner()),
                })
            }
        }
    }
}

impl<T> Config<T> {
    /// True if it was made from an object of the Gateway API.
    pub fn is_of_gateway_api(&self) -> bool {
        self.origin.resource.group == super::gateway_api::GROUP
    }

    /// Istio's order of configuration: oldest first, then by name and namespace.
    pub fn age(&self) -> (&str, &str, &str) {
        (&self.created, &self.name, &self.namespace)
    }
}

/// The object's creation time as written, or nothing.
pub(super) fn created(object: &Object) -> String {
    let time = object.content.get("metadata").and_then(|metadata| metadata.get("creationTimestamp"));
    time.and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// YAML's explicit null means that a field is not set.
fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(fields) => Value::Object(
            fields
                .iter()
                .filter(|(_, value)| !value.is_null())
                .map(|(name, value)| (name.clone(), without_nulls(value)))
                .collect(),
        ),
        Value::Array(items) => Value::Array(items.iter().map(without_nulls).collect()),
        other => other.clone(),
    }
}

/// Namespaces that may see an object: `exportTo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Visibility {
    All,
    Nowhere,
    Namespaces(BTreeSet<String>),
}

impl Visibility {
    /// Reads `exportTo` of an object in `namespace`; `default` applies where there is none.
    pub fn parse(export_to: &[String], default: &[String], namespace: &str) -> Self {
        let list = if export_to.is_empty() { default } else { export_to };
        if list.is_empty() || list.iter().any(|entry| entry == "*") {
            return Self::All;
        }
        let namespaces: BTreeSet<String> = list
            .iter()
            .filter(|entry| *entry != "~")
            .map(|entry| if entry == "." { namespace.to_owned() } else { entry.clone() })
            .collect();
        if namespaces.is_empty() { Self::Nowhere } else { Self::Namespaces(namespaces) }
    }

    pub fn includes(&self, namespace: &str) -> bool {
        match self {
            Self::All => true,
            Self::Nowhere => false,
            Self::Namespaces(namespaces) => namespaces.contains(namespace),
        }
    }
}
