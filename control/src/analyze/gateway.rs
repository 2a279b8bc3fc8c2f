//! Gateways that take each other's hosts, ports that no Service leads to, certificates served twice.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::world::{ISTIO, World, finding, labels, list, selects, shown, text, texts};
use crate::model::{Finding, Severity};
use crate::source::Object;

fn port_of(server: &Value) -> Option<u64> {
    server.get("port")?.get("number")?.as_u64().filter(|number| *number > 0)
}

/// IST0145: two gateways for the same proxies with one host on one port.
pub(super) fn conflicts(world: &World<'_>, findings: &mut Vec<Finding>) {
    let gateways: Vec<(&Object, BTreeMap<String, String>)> =
        world.of(ISTIO, "Gateway").map(|gateway| (gateway, labels(gateway.spec(), "selector"))).collect();
    for (gateway, selector) in &gateways {
        for (index, server) in list(gateway.spec(), "servers").iter().enumerate() {
            let Some(port) = port_of(server) else { continue };
            let mut others = BTreeSet::new();
            for (other, theirs) in &gateways {
                if std::ptr::eq(*other, *gateway) || !meet(world, selector, theirs) {
                    continue;
                }
                let clash = list(other.spec(), "servers").iter().any(|theirs| {
                    port_of(theirs) == Some(port)
                        && text(server, "bind") == text(theirs, "bind")
                        && share_host((gateway, server), (other, theirs))
                });
                if clash {
                    others.insert(format!("{}/{}", other.resource.namespace, other.resource.name));
                }
            }
            if !others.is_empty() {
                let others: Vec<String> = others.into_iter().collect();
                let message = format!(
                    "conflict with gateways {} (workload selector {}, port {port}, hosts {:?})",
                    others.join(", "),
                    shown(selector),
                    texts(server, "hosts")
                );
                let path = format!("spec.servers[{index}]");
                findings.push(finding(gateway, &path, Severity::Error, "IST0145", message));
            }
        }
    }
}

/// True if a proxy can have both selectors' labels: those of a pod there is, or one selector is a part of the other.
fn meet(world: &World<'_>, one: &BTreeMap<String, String>, other: &BTreeMap<String, String>) -> bool {
    selects(one, other) || selects(other, one) || world.pods(None, one).any(|pod| selects(other, &pod.labels))
}

fn share_host(one: (&Object, &Value), other: (&Object, &Value)) -> bool {
    let hosts = |(gateway, server): (&Object, &Value)| -> Vec<(String, String)> {
        let split = texts(server, "hosts").into_iter().map(|host| match host.split_once('/') {
            Some((".", host)) => (gateway.resource.namespace.clone(), host.to_owned()),
            Some((namespace, host)) => (namespace.to_owned(), host.to_owned()),
            None => ("*".to_owned(), host.to_owned()),
        });
        split.collect()
    };
    let theirs = hosts(other);
    hosts(one).iter().any(|(namespace, host)| {
        theirs.iter().any(|(their_namespace, their_host)| {
            let meet = namespace == their_namespace || namespace == "*" || their_namespace == "*";
            meet && host == their_host
        })
    })
}

/// IST0162: a port that no Service of the gateway's pods leads to.
pub(super) fn ports(world: &World<'_>, findings: &mut Vec<Finding>) {
    for gateway in world.of(ISTIO, "Gateway") {
        let selector = labels(gateway.spec(), "selector");
        let mut known: BTreeSet<u64> = BTreeSet::new();
        let mut is_open = false;
        for pod in world.pods(None, &selector) {
            for service in world.of("", "Service") {
                let of_service = labels(service.spec(), "selector");
                if service.resource.namespace != pod.resource.namespace
                    || of_service.is_empty()
                    || !selects(&of_service, &pod.labels)
                {
                    continue;
                }
                for port in list(service.spec(), "ports") {
                    known.extend(port.get("port").and_then(Value::as_u64));
                    match port.get("targetPort") {
                        // What a name stands for is the container's to say.
                        Some(Value::String(_)) => is_open = true,
                        target => known.extend(target.and_then(Value::as_u64)),
                    }
                }
            }
        }
        if known.is_empty() || is_open {
            continue;
        }
        for (index, server) in list(gateway.spec(), "servers").iter().enumerate() {
            let Some(port) = port_of(server).filter(|port| !known.contains(port)) else { continue };
            let message = format!(
                "port {port} is not defined in the Service of the gateway's pods (selector {}): it cannot be reached through the Service",
                shown(&selector)
            );
            findings.push(finding(
                gateway,
                &format!("spec.servers[{index}].port"),
                Severity::Warning,
                "IST0162",
                message,
            ));
        }
    }
}

/// IST0138: one certificate in several gateways of the same proxies, so that clients reuse a connection for the wrong one.
pub(super) fn certificates(world: &World<'_>, findings: &mut Vec<Finding>) {
    let mut by_credential: BTreeMap<(String, String), Vec<(&Object, usize)>> = BTreeMap::new();
    for gateway in world.of(ISTIO, "Gateway") {
        let selector = shown(&labels(gateway.spec(), "selector"));
        for (index, server) in list(gateway.spec(), "servers").iter().enumerate() {
            let tls = server.get("tls").unwrap_or(&Value::Null);
            let name = match text(tls, "credentialName") {
                "" => text(tls, "serverCertificate"),
                name => name,
            };
            if !name.is_empty() {
                by_credential.entry((selector.clone(), name.to_owned())).or_default().push((gateway, index));
            }
        }
    }
    for ((_, credential), users) in by_credential {
        let names: BTreeSet<String> = users.iter().map(|(gateway, _)| gateway.resource.to_string()).collect();
        if names.len() < 2 {
            continue;
        }
        let names: Vec<String> = names.into_iter().collect();
        let mut told = BTreeSet::new();
        for (gateway, index) in users {
            if told.insert(&gateway.resource) {
                let message = format!(
                    "certificate {credential} is also in other gateways ({}): clients that reuse HTTP/2 connections may get 404",
                    names.join(", ")
                );
                let path = format!("spec.servers[{index}].tls");
                findings.push(finding(gateway, &path, Severity::Warning, "IST0138", message));
            }
        }
    }
}
