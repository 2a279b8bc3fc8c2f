//! Deployments against the Services that lead to them.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::world::{World, finding, labels, list, selects, text};
use crate::model::protocol::Protocol;
use crate::model::{Finding, Severity};
use crate::source::Object;

/// The user under which a sidecar runs, whose traffic is not captured.
const PROXY_USER: u64 = 1337;

/// IST0116, IST0137, IST0144.
pub(super) fn deployments(world: &World<'_>, findings: &mut Vec<Finding>) {
    for deployment in world.of("apps", "Deployment") {
        user(deployment, findings);
        if is_in_mesh(world, deployment) {
            services(world, deployment, findings);
        }
    }
}

fn user(deployment: &Object, findings: &mut Vec<Finding>) {
    let pod = deployment.spec().get("template").and_then(|template| template.get("spec")).unwrap_or(&Value::Null);
    let runs_as = |part: &Value| part.get("securityContext").and_then(|context| context.get("runAsUser")?.as_u64());
    let mut containers = list(pod, "containers").iter().filter(|container| text(container, "name") != "istio-proxy");
    if runs_as(pod) == Some(PROXY_USER) || containers.any(|container| runs_as(container) == Some(PROXY_USER)) {
        let message = "user 1337 is the sidecar's own: what this workload sends is not captured; run it as another";
        findings.push(finding(deployment, "spec.template.spec", Severity::Warning, "IST0144", message));
    }
}

fn is_in_mesh(world: &World<'_>, deployment: &Object) -> bool {
    let of_pod = labels(deployment.spec(), "template.metadata.labels");
    if let Some(inject) = of_pod.get("sidecar.istio.io/inject") {
        return inject == "true";
    }
    world.of("", "Namespace").any(|namespace| {
        let injected = namespace.labels.get("istio-injection").is_some_and(|way| way == "enabled");
        namespace.resource.name == deployment.resource.namespace
            && (injected || namespace.labels.contains_key("istio.io/rev"))
    })
}

fn services(world: &World<'_>, deployment: &Object, findings: &mut Vec<Finding>) {
    let of_pod = labels(deployment.spec(), "template.metadata.labels");
    let mut protocols: BTreeMap<u64, BTreeSet<Protocol>> = BTreeMap::new();
    let mut targets: BTreeMap<String, BTreeSet<u64>> = BTreeMap::new();
    for service in world.of("", "Service") {
        let selector = labels(service.spec(), "selector");
        if service.resource.namespace != deployment.resource.namespace
            || selector.is_empty()
            || !selects(&selector, &of_pod)
        {
            continue;
        }
        for port in list(service.spec(), "ports") {
            let Some(number) = port.get("port").and_then(Value::as_u64) else { continue };
            let declared = port.get("appProtocol").and_then(Value::as_str);
            let at = u32::try_from(number).unwrap_or_default();
            let protocol = Protocol::of_service_port(at, text(port, "name"), text(port, "protocol"), declared);
            protocols.entry(number).or_default().insert(protocol);
            let target = port.get("targetPort").filter(|target| target.as_u64() != Some(0) && !target.is_null());
            let target = match target {
                Some(Value::String(name)) => name.clone(),
                Some(number) => number.to_string(),
                None => number.to_string(),
            };
            targets.entry(target).or_default().insert(number);
        }
    }
    for (number, spoken) in protocols.iter().filter(|(_, spoken)| spoken.len() > 1) {
        let message =
            format!("associated with multiple services using port {number} but different protocols: {spoken:?}");
        findings.push(finding(deployment, "metadata", Severity::Warning, "IST0116", message));
    }
    for (target, numbers) in targets.iter().filter(|(_, numbers)| numbers.len() > 1) {
        let message =
            format!("associated with multiple services using targetPort {target:?} but different ports: {numbers:?}");
        findings.push(finding(deployment, "metadata", Severity::Warning, "IST0137", message));
    }
}
