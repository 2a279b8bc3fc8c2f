//! Load balancing: which policy, and what a request's hash is made of.

use envoy_types::pb::envoy::config::cluster::v3::{Cluster, cluster};
use envoy_types::pb::envoy::config::route::v3::route_action::{HashPolicy, hash_policy};
use envoy_types::pb::google::protobuf::UInt64Value;

use super::wire;
use crate::model::api::{ConsistentHash, Destination, LoadBalancer, TrafficPolicy};
use crate::model::{Mesh, Proxy, Service, destination};

/// The merged policy that `proxy` obeys for one port of a service, before or within a subset.
pub(super) fn policy(mesh: &Mesh, proxy: &Proxy, service: &Service, port: u32, subset: &str) -> TrafficPolicy {
    let Some(rule) = mesh.destination_rules.find(proxy, service) else { return TrafficPolicy::default() };
    let base = destination::for_port(rule.spec.traffic_policy.as_ref(), port);
    let subset = rule.spec.subsets.iter().find(|known| known.name == subset);
    destination::overlay(base, subset.and_then(|subset| subset.traffic_policy.as_ref()), port)
}

/// What the requests of a route to `to` are hashed by; empty unless its DestinationRule asks for consistent hashing.
pub(super) fn hash_policy(mesh: &Mesh, proxy: &Proxy, service: &Service, to: &Destination) -> Vec<HashPolicy> {
    let port = to
        .port
        .as_ref()
        .map(|port| port.number)
        .or_else(|| service.ports.first().map(|port| port.number))
        .unwrap_or_default();
    let policy = policy(mesh, proxy, service, port, &to.subset);
    let Some(hash) = policy.load_balancer.and_then(|balancer| balancer.consistent_hash) else { return Vec::new() };
    let specifier = if let Some(name) = hash.http_header_name {
        hash_policy::PolicySpecifier::Header(hash_policy::Header {
            header_name: name,
            ..hash_policy::Header::default()
        })
    } else if let Some(cookie) = hash.http_cookie {
        hash_policy::PolicySpecifier::Cookie(hash_policy::Cookie {
            name: cookie.name,
            path: cookie.path,
            ttl: cookie.ttl.and_then(|ttl| wire::span(ttl.0)),
            ..hash_policy::Cookie::default()
        })
    } else if hash.use_source_ip == Some(true) {
        hash_policy::PolicySpecifier::ConnectionProperties(hash_policy::ConnectionProperties { source_ip: true })
    } else if let Some(name) = hash.http_query_parameter_name {
        hash_policy::PolicySpecifier::QueryParameter(hash_policy::QueryParameter { name })
    } else {
        return Vec::new();
    };
    vec![HashPolicy { policy_specifier: Some(specifier), ..HashPolicy::default() }]
}

/// Sets the cluster's policy. Least requests is Istio's default.
pub(super) fn apply(cluster: &mut Cluster, balancer: Option<&LoadBalancer>) {
    use cluster::LbPolicy;
    if let Some(hash) = balancer.and_then(|balancer| balancer.consistent_hash.as_ref()) {
        consistent(cluster, hash);
        return;
    }
    let simple = balancer.and_then(|balancer| balancer.simple.as_deref()).unwrap_or_default();
    let warmup = balancer.and_then(|balancer| balancer.warmup_duration_secs);
    let slow_start = warmup.map(|warmup| cluster::SlowStartConfig {
        slow_start_window: wire::span(warmup.0),
        ..cluster::SlowStartConfig::default()
    });
    match simple {
        "RANDOM" => cluster.lb_policy = LbPolicy::Random.into(),
        "PASSTHROUGH" => {
            cluster.lb_policy = LbPolicy::ClusterProvided.into();
            cluster.cluster_discovery_type =
                Some(cluster::ClusterDiscoveryType::Type(cluster::DiscoveryType::OriginalDst.into()));
            cluster.eds_cluster_config = None;
            cluster.load_assignment = None;
        }
        "ROUND_ROBIN" => {
            cluster.lb_policy = LbPolicy::RoundRobin.into();
            cluster.lb_config = slow_start.map(|slow_start_config| {
                cluster::LbConfig::RoundRobinLbConfig(cluster::RoundRobinLbConfig {
                    slow_start_config: Some(slow_start_config),
                })
            });
        }
        _ => {
            cluster.lb_policy = LbPolicy::LeastRequest.into();
            cluster.lb_config = slow_start.map(|slow_start_config| {
                cluster::LbConfig::LeastRequestLbConfig(cluster::LeastRequestLbConfig {
                    slow_start_config: Some(slow_start_config),
                    ..cluster::LeastRequestLbConfig::default()
                })
            });
        }
    }
}

fn consistent(cluster: &mut Cluster, hash: &ConsistentHash) {
    if let Some(maglev) = &hash.maglev {
        cluster.lb_policy = cluster::LbPolicy::Maglev.into();
        cluster.lb_config = maglev.table_size.map(|value| {
            cluster::LbConfig::MaglevLbConfig(cluster::MaglevLbConfig { table_size: Some(UInt64Value { value }) })
        });
        return;
    }
    let size =
        hash.ring_hash.as_ref().and_then(|ring| ring.minimum_ring_size).or(hash.minimum_ring_size).unwrap_or(1024);
    cluster.lb_policy = cluster::LbPolicy::RingHash.into();
    cluster.lb_config = Some(cluster::LbConfig::RingHashLbConfig(cluster::RingHashLbConfig {
        minimum_ring_size: Some(UInt64Value { value: size }),
        ..cluster::RingHashLbConfig::default()
    }));
}
