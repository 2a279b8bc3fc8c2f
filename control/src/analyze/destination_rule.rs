//! DestinationRules: servers that nobody verifies, hosts and subsets that do not exist.

use serde_json::Value;

use super::world::{ISTIO, World, finding, labels, list, selects, text};
use crate::model::{Finding, Severity, host};
use crate::source::Object;

/// IST0128, IST0129: TLS to a server whose certificate is not verified.
pub(super) fn authorities(world: &World<'_>, findings: &mut Vec<Finding>) {
    for rule in world.of(ISTIO, "DestinationRule") {
        let policy = rule.spec().get("trafficPolicy").unwrap_or(&Value::Null);
        let host = text(rule.spec(), "host");
        let mut check = |policy: &Value, path: &str, code, at: String| {
            let tls = policy.get("tls").unwrap_or(&Value::Null);
            let mode = text(tls, "mode");
            // Only proxies that a selector names read a credential.
            let by_credential =
                !text(tls, "credentialName").is_empty() && rule.spec().get("workloadSelector").is_some();
            if matches!(mode, "SIMPLE" | "MUTUAL") && text(tls, "caCertificates").is_empty() && !by_credential {
                let message = format!(
                    "TLS mode is {mode}, but no caCertificates are set to validate server identity for host: {host}{at}"
                );
                findings.push(finding(rule, path, Severity::Warning, code, message));
            }
        };
        check(policy, "spec.trafficPolicy.tls", "IST0128", String::new());
        for (index, settings) in list(policy, "portLevelSettings").iter().enumerate() {
            let number = settings.get("port").and_then(|port| port.get("number")).cloned().unwrap_or_default();
            let path = format!("spec.trafficPolicy.portLevelSettings[{index}].tls");
            check(settings, &path, "IST0129", format!(" at port {number}"));
        }
    }
}

/// IST0173, IST0174: a host that no service has, a subset that selects no pod.
pub(super) fn hosts(world: &World<'_>, findings: &mut Vec<Finding>) {
    for rule in world.of(ISTIO, "DestinationRule") {
        let written = text(rule.spec(), "host");
        let full = world.full_name(written, &rule.resource.namespace);
        let covers = |service: &&Object| host::subset_of(&world.host_of(service), &full);
        let services: Vec<&Object> = world.of("", "Service").filter(covers).collect();
        if services.is_empty() && !world.knows_host(&full) {
            let message = format!("the host {written} does not match any service in the mesh");
            findings.push(finding(rule, "spec.host", Severity::Warning, "IST0174", message));
            continue;
        }
        let [service] = services.as_slice() else { continue };
        let selector = labels(service.spec(), "selector");
        if selector.is_empty() {
            continue;
        }
        for (index, subset) in list(rule.spec(), "subsets").iter().enumerate() {
            let wanted = labels(subset, "labels");
            let entries = world.of(ISTIO, "WorkloadEntry").filter(|entry| {
                let has = labels(entry.spec(), "labels");
                selects(&selector, &has) && selects(&wanted, &has)
            });
            let mut pods = world.pods(Some(&service.resource.namespace), &selector);
            if entries.count() == 0
                && !pods.any(|pod| selects(&wanted, &pod.labels))
                && !templates(world, service, &wanted)
            {
                let message =
                    format!("subset {} does not select any pods; requests to it get 503", text(subset, "name"));
                let path = format!("spec.subsets[{index}]");
                findings.push(finding(rule, &path, Severity::Error, "IST0173", message));
            }
        }
    }
}

/// True if a Deployment makes pods of the service with these labels.
fn templates(world: &World<'_>, service: &Object, wanted: &std::collections::BTreeMap<String, String>) -> bool {
    let selector = labels(service.spec(), "selector");
    world.of("apps", "Deployment").any(|deployment| {
        let has = labels(deployment.spec(), "template.metadata.labels");
        deployment.resource.namespace == service.resource.namespace && selects(&selector, &has) && selects(wanted, &has)
    })
}
