//! Sidecars that select nothing, or what another one selects.

use std::collections::{BTreeMap, BTreeSet};

use super::world::{ISTIO, World, finding, labels, shown};
use crate::model::{Finding, Severity};
use crate::source::Object;

/// IST0101, IST0110, IST0111. Selectors are judged where pods are known.
pub(super) fn selectors(world: &World<'_>, findings: &mut Vec<Finding>) {
    let mut of_namespace: BTreeMap<&str, Vec<&Object>> = BTreeMap::new();
    let mut of_pod: BTreeMap<(&str, &str), Vec<&Object>> = BTreeMap::new();
    for sidecar in world.of(ISTIO, "Sidecar") {
        let namespace = sidecar.resource.namespace.as_str();
        let selector = labels(sidecar.spec(), "workloadSelector.labels");
        if selector.is_empty() {
            of_namespace.entry(namespace).or_default().push(sidecar);
            continue;
        }
        let mut found = false;
        for pod in world.pods(Some(namespace), &selector) {
            found = true;
            of_pod.entry((namespace, pod.resource.name.as_str())).or_default().push(sidecar);
        }
        if !found && world.has("", "Pod") {
            let message = format!("referenced selector not found: {:?}", shown(&selector));
            findings.push(finding(sidecar, "spec.workloadSelector", Severity::Error, "IST0101", message));
        }
    }
    let names = |list: &[&Object]| list.iter().map(|one| one.resource.name.as_str()).collect::<Vec<_>>().join(", ");
    for (namespace, list) in of_namespace.iter().filter(|(_, list)| list.len() > 1) {
        for sidecar in list {
            let message = format!(
                "Sidecars {} in namespace {namespace:?} have no workload selector; the oldest counts",
                names(list)
            );
            findings.push(finding(sidecar, "spec", Severity::Error, "IST0111", message));
        }
    }
    let mut told = BTreeSet::new();
    for ((namespace, pod), list) in of_pod.iter().filter(|(_, list)| list.len() > 1) {
        for sidecar in list.iter().filter(|sidecar| told.insert(&sidecar.resource)) {
            let message = format!(
                "Sidecars {} in namespace {namespace:?} select the same pod {pod:?}; the oldest counts",
                names(list)
            );
            findings.push(finding(sidecar, "spec.workloadSelector", Severity::Error, "IST0110", message));
        }
    }
}
