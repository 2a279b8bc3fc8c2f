//! EnvoyFilters whose patches are ignored, or depend on an order that nobody set.

use std::collections::BTreeSet;

use super::world::{ISTIO, World, finding, list, text};
use crate::model::{Finding, Severity};

/// IST0151 to IST0155.
pub(super) fn operations(world: &World<'_>, findings: &mut Vec<Finding>) {
    for filter in world.of(ISTIO, "EnvoyFilter") {
        let has_priority = filter.spec().get("priority").and_then(serde_json::Value::as_i64).is_some_and(|at| at != 0);
        let mut told = BTreeSet::new();
        for (index, patch) in list(filter.spec(), "configPatches").iter().enumerate() {
            let (operation, target) = (text(patch, "patch.operation"), text(patch, "applyTo"));
            let is_route = matches!(target, "ROUTE_CONFIGURATION" | "HTTP_ROUTE");
            let mut tell = |severity, code, message: &str| {
                let path = format!("spec.configPatches[{index}].patch.operation");
                findings.push(finding(filter, &path, severity, code, message));
            };
            match operation {
                // Without a priority the order is told first, as Istio does.
                "REPLACE" if has_priority && !matches!(target, "HTTP_FILTER" | "NETWORK_FILTER") => {
                    tell(Severity::Error, "IST0152", "REPLACE is only valid for HTTP_FILTER and NETWORK_FILTER");
                    continue;
                }
                "ADD" if is_route => {
                    tell(Severity::Error, "IST0153", "ADD is ignored for ROUTE_CONFIGURATION and HTTP_ROUTE");
                    continue;
                }
                "REMOVE" if is_route => {
                    tell(Severity::Error, "IST0154", "REMOVE is ignored for ROUTE_CONFIGURATION and HTTP_ROUTE");
                    continue;
                }
                _ => {}
            }
            let is_relative = matches!(operation, "INSERT_BEFORE" | "INSERT_AFTER" | "REPLACE" | "REMOVE");
            let any_version = text(patch, "match.proxy.proxyVersion").is_empty();
            if has_priority || !is_relative || !told.insert(any_version) {
                continue;
            }
            if any_version {
                let message = "a relative operation without a priority may find nothing to act on; set spec.priority, or use INSERT_FIRST or ADD";
                tell(Severity::Warning, "IST0151", message);
            } else {
                let message = "a relative operation without a priority, for some versions only, may not be applied during an upgrade; set spec.priority, or use INSERT_FIRST or ADD";
                tell(Severity::Warning, "IST0155", message);
            }
        }
    }
}
