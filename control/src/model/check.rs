//! References that lead nowhere.

use std::collections::HashSet;

use super::api::{Destination, VirtualService};
use super::config::Config;
use super::finding::{Finding, Severity};
use super::host;
use super::mesh::Mesh;
use super::virtual_service::MESH;

/// Finds gateways, hosts, subsets and secrets that are named but do not exist.
pub(super) fn references(mesh: &Mesh, findings: &mut Vec<Finding>) {
    let gateways: HashSet<String> =
        mesh.gateways.iter().map(|gateway| format!("{}/{}", gateway.namespace, gateway.name)).collect();
    // What the Gateway API names was looked up when it was read.
    for config in mesh.virtual_services.iter().filter(|config| !config.is_of_gateway_api()) {
        for (index, gateway) in config.spec.gateways.iter().enumerate() {
            if gateway != MESH && !gateways.contains(gateway) {
                findings.push(missing(
                    config,
                    &format!("spec.gateways[{index}]"),
                    format!("there is no Gateway {gateway}"),
                ));
            }
        }
        for (index, route) in config.spec.http.iter().enumerate() {
            for (at, to) in route.route.iter().enumerate() {
                destination(
                    mesh,
                    config,
                    &to.destination,
                    &format!("spec.http[{index}].route[{at}].destination"),
                    findings,
                );
            }
        }
        for (kind, routes) in [("tls", &config.spec.tls), ("tcp", &config.spec.tcp)] {
            for (index, route) in routes.iter().enumerate() {
                for (at, to) in route.route.iter().enumerate() {
                    destination(
                        mesh,
                        config,
                        &to.destination,
                        &format!("spec.{kind}[{index}].route[{at}].destination"),
                        findings,
                    );
                }
            }
        }
    }
}

/// Finds servers of gateways that cannot do what they say.
pub(super) fn gateways(mesh: &Mesh, findings: &mut Vec<Finding>) {
    for config in &mesh.gateways {
        for (index, server) in config.spec.servers.iter().enumerate() {
            let Some(tls) = &server.tls else { continue };
            let mut tell = |severity, code, field: &str, message: String| {
                findings.push(Finding {
                    severity,
                    code,
                    resource: config.origin.resource.clone(),
                    place: config.origin.place_of(&format!("spec.servers[{index}].tls.{field}")).clone(),
                    message,
                });
            };
            if tls.mode == "AUTO_PASSTHROUGH" {
                let message = "AUTO_PASSTHROUGH is not served: nothing listens for this server; write PASSTHROUGH and a \
                               VirtualService with tls routes";
                tell(Severity::Error, "TORUS0001", "mode", message.to_owned());
            }
            let names = std::iter::once(&tls.credential_name).chain(&tls.credential_names);
            for name in names.filter(|name| !name.is_empty() && !mesh.secrets.exists(name)) {
                tell(Severity::Error, "IST0101", "credentialName", format!("there is no Secret {name}"));
            }
        }
    }
}

fn destination(
    mesh: &Mesh,
    config: &Config<VirtualService>,
    to: &Destination,
    path: &str,
    findings: &mut Vec<Finding>,
) {
    let known = mesh.by_host.contains_key(&to.host)
        || mesh
            .services
            .iter()
            .any(|service| service.hostname.starts_with('*') && host::subset_of(&to.host, &service.hostname));
    if !known {
        findings.push(missing(config, &format!("{path}.host"), format!("there is no service {}", to.host)));
    } else if !to.subset.is_empty() && !mesh.destination_rules.knows_subset(&to.host, &to.subset) {
        let message = format!("no DestinationRule for {} has a subset {}", to.host, to.subset);
        findings.push(missing(config, &format!("{path}.subset"), message));
    }
}

fn missing(config: &Config<VirtualService>, path: &str, message: String) -> Finding {
    Finding {
        severity: Severity::Error,
        code: "IST0101",
        resource: config.origin.resource.clone(),
        place: config.origin.place_of(path).clone(),
        message,
    }
}
