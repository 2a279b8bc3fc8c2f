//! Certificates and keys out of Kubernetes Secrets.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::source::Object;

/// What a Secret gives a TLS listener.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credential {
    pub certificate: Vec<u8>,
    pub key: Vec<u8>,
    pub root: Vec<u8>,
}

/// The key never reaches a log.
impl std::fmt::Debug for Credential {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Credential")
            .field("certificate", &self.certificate.len())
            .field("root", &self.root.len())
            .finish()
    }
}

/// Secrets by namespace and name.
#[derive(Debug, Clone, Default)]
pub struct Secrets {
    found: BTreeMap<(String, String), Credential>,
    /// Authorities in ConfigMaps, which are no secret.
    roots: BTreeMap<(String, String), Vec<u8>>,
    /// Names of credentials that proxies of a namespace may have though they are another's.
    granted: BTreeSet<(String, String)>,
}

impl Secrets {
    pub(super) fn read(objects: &[&Object], maps: &[&Object], granted: BTreeSet<(String, String)>) -> Self {
        let found = objects.iter().map(|object| {
            let field = |names: &[&str]| names.iter().find_map(|name| entry(&object.content, name)).unwrap_or_default();
            let credential = Credential {
                certificate: field(&["tls.crt", "cert"]),
                key: field(&["tls.key", "key"]),
                root: field(&["ca.crt", "cacert"]),
            };
            ((object.resource.namespace.clone(), object.resource.name.clone()), credential)
        });
        let roots = maps.iter().filter_map(|object| {
            let data = object.content.get("data")?;
            let root = ["ca.crt", "cacert"].iter().find_map(|name| data.get(name)?.as_str())?;
            Some(((object.resource.namespace.clone(), object.resource.name.clone()), root.as_bytes().to_vec()))
        });
        Self { found: found.collect(), roots: roots.collect(), granted }
    }

    /// The authority in a ConfigMap.
    pub fn root(&self, namespace: &str, name: &str) -> Option<&[u8]> {
        self.roots.get(&(namespace.to_owned(), name.to_owned())).map(Vec::as_slice)
    }

    /// True if a proxy of `namespace` was granted the credential called `name` of another namespace.
    pub fn is_granted(&self, namespace: &str, name: &str) -> bool {
        self.granted.contains(&(namespace.to_owned(), name.to_owned()))
    }

    /// True if some namespace has a Secret of that name, or the name belongs to another store.
    pub(super) fn exists(&self, name: &str) -> bool {
        name.contains("://") || self.found.keys().any(|(_, known)| known == name)
    }

    pub fn get(&self, namespace: &str, name: &str) -> Option<&Credential> {
        self.found.get(&(namespace.to_owned(), name.to_owned()))
    }
}

fn entry(content: &Value, name: &str) -> Option<Vec<u8>> {
    if let Some(text) = content.get("stringData").and_then(|data| data.get(name)).and_then(Value::as_str) {
        return Some(text.as_bytes().to_vec());
    }
    let text = content.get("data")?.get(name)?.as_str()?;
    let text: String = text.split_whitespace().collect();
    STANDARD.decode(text).ok()
}
