//! The objects, found by kind, and what several analyzers ask of them.

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;

use crate::model::{Finding, MeshOptions, Severity, host};
use crate::source::Object;

/// Everything there is.
pub(super) struct World<'a> {
    by_kind: HashMap<(&'a str, &'a str), Vec<&'a Object>>,
    pub(super) options: &'a MeshOptions,
    pub(super) mesh: &'a Value,
}

pub(super) const ISTIO: &str = "networking.istio.io";

impl<'a> World<'a> {
    pub(super) fn new(objects: &'a [Object], options: &'a MeshOptions, mesh: &'a Value) -> Self {
        let mut by_kind: HashMap<(&str, &str), Vec<&Object>> = HashMap::new();
        for object in objects {
            by_kind.entry((object.resource.group.as_str(), object.resource.kind.as_str())).or_default().push(object);
        }
        Self { by_kind, options, mesh }
    }

    pub(super) fn of(&self, group: &'static str, kind: &'static str) -> impl Iterator<Item = &'a Object> + '_ {
        self.by_kind.get(&(group, kind)).into_iter().flatten().copied()
    }

    pub(super) fn has(&self, group: &'static str, kind: &'static str) -> bool {
        self.by_kind.contains_key(&(group, kind))
    }

    /// Pods of `namespace`, or all of them, that carry `selector`.
    pub(super) fn pods<'s>(
        &'s self,
        namespace: Option<&'s str>,
        selector: &'s BTreeMap<String, String>,
    ) -> impl Iterator<Item = &'a Object> + 's {
        let here = move |pod: &&Object| namespace.is_none_or(|namespace| pod.resource.namespace == namespace);
        self.of("", "Pod").filter(here).filter(|pod| selects(selector, &pod.labels))
    }

    /// `name` as configuration in `namespace` means it.
    pub(super) fn full_name(&self, name: &str, namespace: &str) -> String {
        host::resolve_short_name(name, namespace, &self.options.short_name_suffix)
    }

    /// The full name of a Kubernetes Service.
    pub(super) fn host_of(&self, service: &Object) -> String {
        format!("{}.{}.svc.{}", service.resource.name, service.resource.namespace, self.options.domain)
    }

    /// True if some service has that name, or a wildcard that covers it.
    pub(super) fn knows_host(&self, host: &str) -> bool {
        let written = self.of(ISTIO, "ServiceEntry").flat_map(|entry| texts(entry.spec(), "hosts"));
        self.of("", "Service").any(|service| self.host_of(service) == host)
            || written.into_iter().any(|known| host::overlap(host, known))
    }
}

/// A remark on the field at `path` of `object`.
pub(super) fn finding(
    object: &Object,
    path: &str,
    severity: Severity,
    code: &'static str,
    message: impl Into<String>,
) -> Finding {
    Finding {
        severity,
        code,
        resource: object.resource.clone(),
        place: object.place_of(path).clone(),
        message: message.into(),
    }
}

/// A text below `value`; empty where there is none.
pub(super) fn text<'v>(value: &'v Value, path: &str) -> &'v str {
    path.split('.').try_fold(value, |value, name| value.get(name)).and_then(Value::as_str).unwrap_or_default()
}

pub(super) fn list<'v>(value: &'v Value, name: &str) -> &'v [Value] {
    value.get(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

pub(super) fn texts<'v>(value: &'v Value, name: &str) -> Vec<&'v str> {
    list(value, name).iter().filter_map(Value::as_str).collect()
}

/// Labels below `value`.
pub(super) fn labels(value: &Value, path: &str) -> BTreeMap<String, String> {
    let found = path.split('.').try_fold(value, |value, name| value.get(name)).and_then(Value::as_object);
    let pairs = found.into_iter().flatten();
    pairs.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect()
}

/// True if every label of `selector` is there.
pub(super) fn selects(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(name, value)| labels.get(name) == Some(value))
}

/// Labels in one line, as kubectl takes them.
pub(super) fn shown(labels: &BTreeMap<String, String>) -> String {
    let pairs: Vec<String> = labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    pairs.join(",")
}

/// True if something exported so by `owner` and something by `other` can be seen from one namespace.
pub(super) fn meet(owner: &Object, other: &Object) -> bool {
    let scope = |object: &Object| -> Option<Vec<String>> {
        let names = texts(object.spec(), "exportTo");
        if names.is_empty() || names.contains(&"*") {
            return None;
        }
        let own = object.resource.namespace.as_str();
        Some(names.iter().map(|name| if *name == "." { own } else { *name }.to_owned()).collect())
    };
    match (scope(owner), scope(other)) {
        (Some(one), Some(two)) => one.iter().any(|name| two.contains(name)),
        _ => true,
    }
}
