//! `load_assignment` becomes hosts, or names to resolve.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use envoy_types::pb::envoy::config::cluster::v3 as proto;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::endpoint::v3 as endpoint;

use super::Discovery;
use crate::cluster::dns::DnsName;
use crate::cluster::endpoint_set::AssignmentOptions;
use crate::cluster::host::{HostTemplate, lb_flag};
use crate::cluster::{Host, HostHealth, Locality};
use crate::config::address::Address;
use crate::config::parse::{ParseContext, address};
use crate::config::reject::Refused;

/// Most priorities that Envoy takes (`LocalityLbEndpoints.priority`).
const PRIORITY_MAX: u32 = 128;

/// A ClusterLoadAssignment, parsed.
#[derive(Default)]
pub(super) struct Assignment {
    pub(super) options: AssignmentOptions,
    /// Names to resolve, for DNS clusters.
    pub(super) names: Vec<DnsName>,
    /// Addresses that need no resolving.
    addresses: Vec<(Address, HostTemplate)>,
}

pub(super) fn parse(
    config: &proto::Cluster,
    discovery: &Discovery,
    context: &mut ParseContext,
) -> Result<Assignment, Refused> {
    let Some(assignment) = &config.load_assignment else {
        if let Discovery::Dns(settings) = discovery
            && settings.logical
        {
            return Err(context.reject("load_assignment", LOGICAL_NEEDS_ONE));
        }
        return Ok(Assignment::default());
    };
    context.within("load_assignment", |context| load_assignment(assignment, discovery, context))
}

/// The hosts that are there before any name is resolved.
pub(super) fn static_hosts(assignment: &Assignment, connections_max: Option<u32>, core_count: usize) -> Vec<Host> {
    let static_hosts = assignment.addresses.iter();
    static_hosts.map(|(address, host)| host.host(address.clone(), connections_max, core_count)).collect()
}

const LOGICAL_NEEDS_ONE: &str = "a LOGICAL_DNS cluster needs exactly one endpoint";

pub(super) fn load_assignment(
    config: &endpoint::ClusterLoadAssignment,
    discovery: &Discovery,
    context: &mut ParseContext,
) -> Result<Assignment, Refused> {
    let start = context.problems.checkpoint();
    let _ = context.non_empty("cluster_name", &config.cluster_name);
    let mut assignment = Assignment::default();
    if let Some(policy) = &config.policy {
        context.within("policy", |context| options(policy, &mut assignment.options, context));
    }
    let mut localities = Interned::default();
    let mut locality_weight_sums: HashMap<u32, u64> = HashMap::new();
    for (index, group) in config.endpoints.iter().enumerate() {
        context.within_item("endpoints", index, |context| {
            let locality = localities.locality(group.locality.as_ref());
            locality_options(group, &locality, &mut locality_weight_sums, &mut assignment.options, context);
            let mut weight_sum = 0_u64;
            for (index, entry) in group.lb_endpoints.iter().enumerate() {
                weight_sum += entry.load_balancing_weight.map_or(1, |weight| u64::from(weight.value));
                context.within_item("lb_endpoints", index, |context| {
                    // What is wrong is in the context's problems.
                    let _ = lb_endpoint(entry, group.priority, &locality, discovery, &mut assignment, context);
                });
            }
            if weight_sum > u64::from(u32::MAX) {
                let _ = context.reject("lb_endpoints", "the weights of a locality add up to more than 4294967295");
            }
        });
    }
    if let Discovery::Dns(settings) = discovery
        && settings.logical
        && !matches!(config.endpoints.as_slice(), [group] if group.lb_endpoints.len() == 1)
    {
        let _ = context.reject("endpoints", LOGICAL_NEEDS_ONE);
    }
    context.problems.clean_since(start).map(|()| assignment)
}

fn options(
    policy: &endpoint::cluster_load_assignment::Policy,
    options: &mut AssignmentOptions,
    context: &mut ParseContext,
) {
    if !policy.drop_overloads.is_empty() {
        let _ = context.reject("drop_overloads", "is not there yet in this version");
    }
    match policy.overprovisioning_factor {
        Some(factor) if factor.value == 0 => {
            let _ = context.reject("overprovisioning_factor", "must be greater than 0");
        }
        Some(factor) => options.overprovisioning_percent = factor.value,
        None => {}
    }
    options.weighted_priority_health = policy.weighted_priority_health;
}

fn locality_options(
    group: &endpoint::LocalityLbEndpoints,
    locality: &Arc<Locality>,
    weight_sums: &mut HashMap<u32, u64>,
    options: &mut AssignmentOptions,
    context: &mut ParseContext,
) {
    if group.priority > PRIORITY_MAX {
        let _ = context.reject("priority", format!("must be at most {PRIORITY_MAX}"));
    }
    if group.lb_config.is_some() {
        let _ = context.reject("leds_cluster_locality_config", "is not there yet in this version");
    }
    let Some(weight) = group.load_balancing_weight else { return };
    if weight.value == 0 {
        let _ = context.reject("load_balancing_weight", "must be at least 1");
    }
    let sum = weight_sums.entry(group.priority).or_default();
    *sum += u64::from(weight.value);
    if *sum > u64::from(u32::MAX) {
        let reason = "the weights of the localities of a priority add up to more than 4294967295";
        let _ = context.reject("load_balancing_weight", reason);
    }
    options.locality_weights.insert((group.priority, Arc::clone(locality)), weight.value);
}

fn lb_endpoint(
    entry: &endpoint::LbEndpoint,
    priority: u32,
    locality: &Arc<Locality>,
    discovery: &Discovery,
    assignment: &mut Assignment,
    context: &mut ParseContext,
) -> Result<(), Refused> {
    let weight = entry.load_balancing_weight.map_or(1, |weight| weight.value);
    if weight == 0 {
        let _ = context.reject("load_balancing_weight", "must be at least 1");
    }
    let health = health(entry, context)?;
    let endpoint = match &entry.host_identifier {
        Some(endpoint::lb_endpoint::HostIdentifier::Endpoint(endpoint)) => endpoint,
        Some(endpoint::lb_endpoint::HostIdentifier::EndpointName(_)) => {
            return Err(context.reject("endpoint_name", "named endpoints are not supported by Envoy either"));
        }
        None => return Err(context.reject("endpoint", "is required")),
    };
    // Envoy moves a logical cluster's only host to priority 0.
    let logical = matches!(discovery, Discovery::Dns(settings) if settings.logical);
    let priority = if logical { 0 } else { priority };
    let host = |hostname: &str| HostTemplate {
        hostname: hostname.into(),
        weight,
        priority,
        locality: Arc::clone(locality),
        health,
        canary: entry.metadata.as_ref().is_some_and(|metadata| lb_flag(metadata, "canary")),
        metadata: entry.metadata.clone().map(Arc::new),
    };
    context.within("endpoint", |context| {
        if !endpoint.additional_addresses.is_empty() {
            let _ = context.reject("additional_addresses", "Happy Eyeballs is not there yet in this version");
        }
        let address = context.required("address", &endpoint.address)?;
        context.within("address", |context| {
            match discovery {
                Discovery::Static | Discovery::Eds(_) | Discovery::OriginalDst(_) => {
                    let address = address::parse(address, context)?;
                    assignment.addresses.push((address, host(&endpoint.hostname)));
                }
                Discovery::Dns(_) => {
                    let (name, port) = name_and_port(address, context)?;
                    let hostname = if endpoint.hostname.is_empty() { name } else { &endpoint.hostname };
                    let host = host(hostname);
                    if let Ok(ip) = name.parse::<IpAddr>() {
                        assignment.addresses.push((Address::Ip((ip, port).into()), host.clone()));
                    }
                    assignment.names.push(DnsName { name: name.into(), port, host });
                }
            }
            Ok(())
        })
    })
}

fn health(entry: &endpoint::LbEndpoint, context: &mut ParseContext) -> Result<HostHealth, Refused> {
    use core::HealthStatus;
    match HealthStatus::try_from(entry.health_status) {
        Ok(HealthStatus::Unknown | HealthStatus::Healthy) => Ok(HostHealth::Healthy),
        Ok(HealthStatus::Degraded) => Ok(HostHealth::Degraded),
        Ok(HealthStatus::Unhealthy | HealthStatus::Timeout) => Ok(HostHealth::Unhealthy),
        Ok(HealthStatus::Draining) => Ok(HostHealth::Draining),
        Err(_) => Err(context.reject("health_status", "is no known health status")),
    }
}

fn name_and_port<'a>(address: &'a core::Address, context: &mut ParseContext) -> Result<(&'a str, u16), Refused> {
    let Some(core::address::Address::SocketAddress(socket)) = &address.address else {
        return Err(context.reject("socket_address", "is required in a DNS cluster"));
    };
    context.within("socket_address", |context| {
        let name = context.non_empty("address", &socket.address);
        if !socket.resolver_name.is_empty() {
            return Err(context.reject("resolver_name", "must not be set in a DNS cluster"));
        }
        let port = address::port(socket, context)?;
        Ok((name?, port))
    })
}

/// Equal localities share memory.
#[derive(Default)]
struct Interned(HashMap<Locality, Arc<Locality>>);

impl Interned {
    fn locality(&mut self, locality: Option<&core::Locality>) -> Arc<Locality> {
        let Some(locality) = locality else { return Locality::nowhere() };
        let locality = Locality {
            region: locality.region.as_str().into(),
            zone: locality.zone.as_str().into(),
            sub_zone: locality.sub_zone.as_str().into(),
        };
        if let Some(known) = self.0.get(&locality) {
            return Arc::clone(known);
        }
        let shared = Arc::new(locality.clone());
        self.0.insert(locality, Arc::clone(&shared));
        shared
    }
}
