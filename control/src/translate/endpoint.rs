//! Endpoints of one cluster by locality.

use std::collections::{BTreeMap, HashMap};

use envoy_types::pb::envoy::config::core::v3::{HealthStatus, Locality, Metadata};
use envoy_types::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint as EnvoyEndpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier,
};

use super::{balance, wire};
use crate::model::api::LocalitySetting;
use crate::model::peer_authentication::MutualTls;
use crate::model::{Endpoint, Mesh, Proxy, Service};

/// The endpoints behind `outbound|port|subset|host`; empty where there is none.
pub(super) fn assignment(
    mesh: &Mesh,
    proxy: &Proxy,
    name: &str,
    service: &Service,
    port: u32,
    subset: &str,
) -> ClusterLoadAssignment {
    let labels = subset_labels(mesh, proxy, service, subset);
    let policy = balance::policy(mesh, proxy, service, port, subset);
    let mut places: BTreeMap<&str, Vec<&Endpoint>> = BTreeMap::new();
    for endpoint in service.endpoints_of(port) {
        let selected = labels.iter().all(|(name, value)| endpoint.labels.get(*name) == Some(*value));
        if endpoint.ready && selected && !endpoint.address.is_empty() {
            places.entry(endpoint.locality.as_str()).or_default().push(endpoint);
        }
    }
    let mut groups: Vec<LocalityLbEndpoints> = places
        .into_iter()
        .map(|(locality, list)| LocalityLbEndpoints {
            locality: Some(parse(locality)),
            load_balancing_weight: wire::number(list.iter().map(|endpoint| endpoint.weight).sum()),
            lb_endpoints: list.into_iter().map(|endpoint| one(mesh, service, endpoint)).collect(),
            ..LocalityLbEndpoints::default()
        })
        .collect();
    let own = policy.load_balancer.as_ref().and_then(|balancer| balancer.locality_lb_setting.as_ref());
    let setting = own.or(mesh.config.locality_lb_setting.as_ref()).cloned().unwrap_or_default();
    if setting.enabled != Some(false) && !proxy.locality.is_empty() {
        // Failover needs someone to notice failures; a distribution does not.
        distribute(&mut groups, proxy, &setting, policy.outlier_detection.is_some());
    }
    ClusterLoadAssignment { cluster_name: name.to_owned(), endpoints: groups, ..ClusterLoadAssignment::default() }
}

fn subset_labels<'a>(mesh: &'a Mesh, proxy: &Proxy, service: &Service, subset: &str) -> Vec<(&'a String, &'a String)> {
    let rule = mesh.destination_rules.find(proxy, service);
    let found = rule.and_then(|rule| rule.spec.subsets.iter().find(|known| !subset.is_empty() && known.name == subset));
    found.map(|subset| subset.labels.iter().collect()).unwrap_or_default()
}

fn one(mesh: &Mesh, service: &Service, endpoint: &Endpoint) -> LbEndpoint {
    // Where the workload's policy wants plaintext, its proxy does not end mutual TLS.
    let accepted = endpoint.is_mutual_tls()
        && mesh.peer_authentications.modes(&service.namespace, &endpoint.labels).of(endpoint.port)
            != MutualTls::Disable;
    let mutual_tls = accepted.then(|| Metadata {
        filter_metadata: HashMap::from([(
            "envoy.transport_socket_match".to_owned(),
            wire::fields([("tlsMode", wire::text("istio"))]),
        )]),
        ..Metadata::default()
    });
    LbEndpoint {
        health_status: HealthStatus::Healthy.into(),
        metadata: mutual_tls,
        load_balancing_weight: wire::number(endpoint.weight),
        host_identifier: Some(HostIdentifier::Endpoint(EnvoyEndpoint {
            address: wire::endpoint_address(&endpoint.address, endpoint.port),
            ..EnvoyEndpoint::default()
        })),
    }
}

fn parse(locality: &str) -> Locality {
    let mut parts = locality.splitn(3, '/').map(str::to_owned);
    let mut next = || parts.next().unwrap_or_default();
    Locality { region: next(), zone: next(), sub_zone: next() }
}

/// Sets priorities (near before far) or weights (as `distribute` says).
fn distribute(groups: &mut Vec<LocalityLbEndpoints>, proxy: &Proxy, setting: &LocalitySetting, failover: bool) {
    let rule = setting.distribute.iter().find(|rule| covers(&rule.from, &proxy.locality));
    if let Some(rule) = rule {
        for group in groups.iter_mut() {
            let locality = text(group.locality.as_ref());
            let weight = rule.to.iter().find(|(to, _)| covers(to, &locality)).map(|(_, weight)| *weight).unwrap_or(0);
            group.load_balancing_weight = wire::number(weight);
        }
        groups.retain(|group| group.load_balancing_weight.as_ref().is_some_and(|weight| weight.value > 0));
        return;
    }
    if !failover {
        return;
    }
    let own = parse(&proxy.locality);
    for group in groups.iter_mut() {
        let Some(other) = &group.locality else { continue };
        group.priority = if other.region != own.region {
            let to = setting.failover.iter().find(|rule| rule.from == own.region).map(|rule| rule.to.as_str());
            if to.is_none_or(|to| to == other.region) { 3 } else { 4 }
        } else if other.zone != own.zone {
            2
        } else {
            u32::from(other.sub_zone != own.sub_zone)
        };
    }
    // Envoy wants priorities without gaps.
    let mut used: Vec<u32> = groups.iter().map(|group| group.priority).collect();
    used.sort_unstable();
    used.dedup();
    for group in groups.iter_mut() {
        let rank = used.iter().position(|priority| *priority == group.priority);
        group.priority = rank.and_then(|rank| u32::try_from(rank).ok()).unwrap_or_default();
    }
    groups.sort_by_key(|group| group.priority);
}

fn text(locality: Option<&Locality>) -> String {
    locality
        .map(|at| format!("{}/{}/{}", at.region, at.zone, at.sub_zone).trim_end_matches('/').to_owned())
        .unwrap_or_default()
}

/// True if `pattern` (`region/zone/*`, `region`) covers the locality.
fn covers(pattern: &str, locality: &str) -> bool {
    let mut parts = locality.split('/');
    pattern.split('/').all(|wanted| {
        let part = parts.next();
        wanted == "*" || part == Some(wanted)
    })
}

#[cfg(test)]
mod tests {
    use super::covers;

    #[test]
    fn localities_are_covered_part_by_part() {
        for (pattern, locality, wanted) in [
            ("eu/*", "eu/a/1", true),
            ("eu", "eu/a", true),
            ("eu/a/*", "eu/b/1", false),
            ("us/*", "eu/a", false),
            ("*", "eu", true),
        ] {
            assert_eq!(covers(pattern, locality), wanted, "{pattern} {locality}");
        }
    }
}
