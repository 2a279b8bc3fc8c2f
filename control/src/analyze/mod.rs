//! What objects say together that is not what their author can have meant, under Istio's message codes.
//!
//! Each analyzer reads the objects as they were written, so that it can be asked about a folder that no proxy runs on. References
//! of virtual services that lead nowhere are found by the model itself, when a mesh is built.

mod destination_rule;
mod envoy_filter;
mod gateway;
mod matches;
mod security;
mod service;
mod service_entry;
mod sidecar;
mod virtual_service;
mod workload;
mod world;

use serde_json::Value;

use crate::model::{Finding, MeshOptions};
use crate::source::Object;
use world::World;

/// All findings, in the order of objects; `mesh` is the mesh configuration.
pub fn analyze(objects: &[Object], options: &MeshOptions, mesh: &Value) -> Vec<Finding> {
    let world = World::new(objects, options, mesh);
    let mut findings = Vec::new();
    for analyzer in ANALYZERS {
        analyzer(&world, &mut findings);
    }
    findings.sort_by(|one, other| (&one.place, one.code).cmp(&(&other.place, other.code)));
    findings
}

type Analyzer = fn(&World<'_>, &mut Vec<Finding>);

const ANALYZERS: [Analyzer; 20] = [
    destination_rule::authorities,
    destination_rule::hosts,
    envoy_filter::operations,
    gateway::certificates,
    gateway::conflicts,
    gateway::ports,
    matches::unreachable,
    security::policies,
    security::selectors,
    security::telemetry,
    service::port_names,
    service_entry::addresses,
    service_entry::protocols,
    sidecar::selectors,
    virtual_service::claims,
    virtual_service::deprecated,
    virtual_service::gateways,
    virtual_service::hosts,
    virtual_service::ports,
    workload::deployments,
];
