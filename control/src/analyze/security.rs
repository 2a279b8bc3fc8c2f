//! Policies for workloads and namespaces that do not exist, and selectors that are not looked at.

use std::collections::BTreeMap;

use serde_json::Value;

use super::world::{World, finding, labels, list, shown, text, texts};
use crate::model::{Finding, Severity};
use crate::source::Object;

const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";

fn has_target(object: &Object) -> bool {
    let spec = object.spec();
    spec.get("targetRef").is_some() || !list(spec, "targetRefs").is_empty()
}

/// IST0127, IST0101: no workload to apply to, no namespace of a source's name. Judged where pods and namespaces are known.
pub(super) fn policies(world: &World<'_>, findings: &mut Vec<Finding>) {
    for policy in world.of("security.istio.io", "AuthorizationPolicy") {
        let namespace = policy.resource.namespace.as_str();
        let is_root = namespace == world.options.root_namespace;
        let selector = labels(policy.spec(), "selector.matchLabels");
        let place = (!is_root).then_some(namespace);
        let applies_to_all = is_root && selector.is_empty();
        if world.has("", "Pod")
            && !applies_to_all
            && !has_target(policy)
            && world.pods(place, &selector).next().is_none()
        {
            let message = format!("no matching workloads with the following labels: {}", shown(&selector));
            findings.push(finding(policy, "spec.selector", Severity::Warning, "IST0127", message));
        }
        if !world.has("", "Namespace") {
            continue;
        }
        for (rule, part) in list(policy.spec(), "rules").iter().enumerate() {
            for (from, source) in list(part, "from").iter().enumerate() {
                let source = source.get("source").unwrap_or(&Value::Null);
                for field in ["namespaces", "notNamespaces"] {
                    for (index, pattern) in texts(source, field).into_iter().enumerate() {
                        if world.of("", "Namespace").any(|known| covers(pattern, &known.resource.name)) {
                            continue;
                        }
                        let path = format!("spec.rules[{rule}].from[{from}].source.{field}[{index}]");
                        let message = format!("referenced namespace not found: {pattern:?}");
                        findings.push(finding(policy, &path, Severity::Error, "IST0101", message));
                    }
                }
            }
        }
    }
}

/// Names with one `*` at an end, as authorization compares them.
fn covers(pattern: &str, name: &str) -> bool {
    match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        _ if pattern == "*" => true,
        (Some(end), _) => name.ends_with(end),
        (_, Some(start)) => name.starts_with(start),
        _ => name == pattern,
    }
}

/// IST0166: a selector of pods that belong to a Gateway of the Gateway API, where only a target reference counts.
pub(super) fn selectors(world: &World<'_>, findings: &mut Vec<Finding>) {
    let kinds = [
        ("security.istio.io", "RequestAuthentication"),
        ("security.istio.io", "AuthorizationPolicy"),
        ("extensions.istio.io", "WasmPlugin"),
        ("telemetry.istio.io", "Telemetry"),
    ];
    for policy in kinds.into_iter().flat_map(|(group, kind)| world.of(group, kind)) {
        let selector: BTreeMap<String, String> = labels(policy.spec(), "selector.matchLabels");
        if selector.is_empty() || has_target(policy) {
            continue;
        }
        let of_gateway =
            world.pods(Some(&policy.resource.namespace), &selector).find_map(|pod| pod.labels.get(GATEWAY_NAME));
        if let Some(name) = of_gateway {
            let message = format!("the selector has no effect on Kubernetes Gateway {name}; use targetRef");
            findings.push(finding(policy, "spec.selector", Severity::Warning, "IST0166", message));
        }
    }
}

/// IST0157: a Telemetry with neither a provider of its own nor one of the mesh.
pub(super) fn telemetry(world: &World<'_>, findings: &mut Vec<Finding>) {
    let defaults = world.mesh.get("defaultProviders").unwrap_or(&Value::Null);
    for object in world.of("telemetry.istio.io", "Telemetry") {
        let without = ["accessLogging", "metrics", "tracing"].into_iter().find_map(|kind| {
            let parts = list(object.spec(), kind);
            let bare = parts.iter().position(|part| list(part, "providers").is_empty())?;
            list(defaults, kind).is_empty().then_some((kind, bare))
        });
        if let Some((kind, index)) = without {
            let message = format!(
                "{kind} without a provider is ignored: name one, or a default in the mesh configuration ({})",
                text(object.spec(), "name")
            );
            let message = message.trim_end_matches(" ()").to_owned();
            let path = format!("spec.{kind}[{index}]");
            findings.push(finding(object, &path, Severity::Warning, "IST0157", message));
        }
    }
}
