//! Names of Services' ports.

use serde_json::Value;

use super::world::{World, finding, list, text};
use crate::model::protocol::Protocol;
use crate::model::{Finding, Severity};

const SYSTEM: [&str; 4] = ["kube-system", "kube-public", "kube-node-lease", "local-path-storage"];

/// IST0118, IST0150: a port whose name does not say its protocol.
pub(super) fn port_names(world: &World<'_>, findings: &mut Vec<Finding>) {
    for service in world.of("", "Service") {
        let labelled = |name: &str| service.labels.get(name).map_or("", String::as_str);
        let is_of_istio = !labelled("istio").is_empty() || labelled("release") == "istio";
        if SYSTEM.contains(&service.resource.namespace.as_str()) || is_of_istio {
            continue;
        }
        let is_external = text(service.spec(), "type") == "ExternalName";
        for (index, port) in list(service.spec(), "ports").iter().enumerate() {
            let number = port.get("port").and_then(Value::as_u64).unwrap_or_default();
            let declared = port.get("appProtocol").and_then(Value::as_str);
            if text(port, "protocol") == "UDP" || declared.is_some() {
                continue;
            }
            let name = text(port, "name");
            // By its name alone: port 0 is none that stands for a protocol.
            let protocol = Protocol::of_service_port(0, name, text(port, "protocol"), None);
            let path = format!("spec.ports[{index}].name");
            if is_external && matches!(protocol, Protocol::Auto | Protocol::Tcp) {
                let message = "the port of an ExternalName Service needs a name that says its protocol, and not tcp: traffic may not be forwarded";
                findings.push(finding(service, &path, Severity::Warning, "IST0150", message));
            } else if protocol == Protocol::Auto {
                let target = port.get("targetPort").cloned().unwrap_or_else(|| number.into());
                let message = format!(
                    "port name {name:?} (port: {number}, targetPort: {target}) doesn't follow the naming convention of Istio ports, protocol[-suffix]"
                );
                findings.push(finding(service, &path, Severity::Info, "IST0118", message));
            }
        }
    }
}
