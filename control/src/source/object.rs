//! One object as a user wrote it: its identity, its content, and where each field of it stands.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde_json::Value;
use torus_xds::Diagnostic;
use torus_xds::diagnostic;

/// Kind, namespace and name: what makes an object one and the same. The API version is left out, since Istio serves
/// one object under several.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceName {
    /// API group without version, empty for Kubernetes' core.
    pub group: String,
    pub kind: String,
    /// Empty for objects of the cluster.
    pub namespace: String,
    pub name: String,
}

impl fmt::Display for ResourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind, self.name)
        } else {
            write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}

/// A file and a position in it. Lines and columns count from 1.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    pub file: Arc<str>,
    pub line: u32,
    pub column: u32,
}

/// One object. `content` is the whole document with defaults not yet applied; `places` maps the path of a field
/// (`spec.http[0].route[1].weight`) to where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    pub resource: ResourceName,
    /// As written, for instance `v1beta1`.
    pub version: String,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    pub content: Value,
    /// Where the document begins.
    pub place: Place,
    pub places: Arc<BTreeMap<String, Place>>,
}

impl Object {
    /// The place of the field at `path`, or of the nearest field around it.
    pub fn place_of(&self, path: &str) -> &Place {
        let mut path = path;
        loop {
            if let Some(place) = self.places.get(path) {
                return place;
            }
            match path.rfind(['.', '[']) {
                Some(end) => path = &path[..end],
                None => return &self.place,
            }
        }
    }

    /// The object's `spec`, or null.
    pub fn spec(&self) -> &Value {
        self.content.get("spec").unwrap_or(&Value::Null)
    }

    /// An error about the field at `path`.
    pub fn diagnose(&self, path: &str, reason: String) -> Diagnostic {
        let place = self.place_of(path);
        Diagnostic {
            place: Some(diagnostic::Place { line: place.line, column: place.column, source_line: "".into() }),
            ..Diagnostic::error(place.file.clone(), path, reason)
        }
    }
}
