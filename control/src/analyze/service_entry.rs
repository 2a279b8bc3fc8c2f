//! ServiceEntries that cannot be told apart from others, or from each other.

use std::collections::BTreeSet;

use serde_json::Value;

use super::world::{ISTIO, World, finding, list, meet, text, texts};
use crate::model::{Finding, Severity};
use crate::source::Object;

/// IST0134: TCP without an address, where none is allocated either, takes the port for all hosts.
pub(super) fn addresses(world: &World<'_>, findings: &mut Vec<Finding>) {
    let metadata = world.mesh.get("defaultConfig").and_then(|config| config.get("proxyMetadata"));
    let is_on = |name: &str| metadata.and_then(|metadata| metadata.get(name)).and_then(Value::as_str) == Some("true");
    if is_on("ISTIO_META_DNS_CAPTURE") {
        return;
    }
    for entry in world.of(ISTIO, "ServiceEntry") {
        let allocated = entry.content.get("status").is_some_and(|status| !list(status, "addresses").is_empty());
        if allocated || !list(entry.spec(), "addresses").is_empty() {
            continue;
        }
        for (index, port) in list(entry.spec(), "ports").iter().enumerate() {
            if matches!(text(port, "protocol"), "" | "TCP") {
                let message = "addresses are required for this protocol: without one the port is taken for all hosts";
                let path = format!("spec.ports[{index}].protocol");
                findings.push(finding(entry, &path, Severity::Warning, "IST0134", message));
            }
        }
    }
}

/// IST0177: one host and port with two protocols.
pub(super) fn protocols(world: &World<'_>, findings: &mut Vec<Finding>) {
    let ports = |entry: &Object| -> BTreeSet<(String, u64, String)> {
        let hosts = texts(entry.spec(), "hosts").into_iter();
        hosts
            .flat_map(|host| {
                list(entry.spec(), "ports").iter().map(move |port| {
                    let number = port.get("number").and_then(Value::as_u64).unwrap_or_default();
                    (host.to_owned(), number, text(port, "protocol").to_ascii_uppercase())
                })
            })
            .collect()
    };
    let all: Vec<_> = world.of(ISTIO, "ServiceEntry").map(|entry| (entry, ports(entry))).collect();
    for (entry, own) in &all {
        let clash = own.iter().find_map(|(host, number, protocol)| {
            let other = all.iter().find(|(other, theirs)| {
                let differs =
                    theirs.iter().any(|(name, at, speaks)| name == host && at == number && speaks != protocol);
                !std::ptr::eq(*other, *entry) && differs && meet(entry, other)
            });
            other.map(|(other, _)| (host, number, other))
        });
        if let Some((host, number, other)) = clash {
            let message =
                format!("{} defines {host}:{number} with another protocol; one of the two is ignored", other.resource);
            findings.push(finding(entry, "spec.ports", Severity::Warning, "IST0177", message));
        }
    }
}
