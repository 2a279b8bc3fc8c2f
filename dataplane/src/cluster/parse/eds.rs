//! `eds_cluster_config`, and the assignments that come by it.

use std::collections::HashMap;

use envoy_types::pb::envoy::config::cluster::v3 as proto;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;

use super::{Discovery, endpoints};
use crate::cluster::eds::{EdsPlan, EdsSource};
use crate::cluster::{Cluster, EndpointSet, Host};
use crate::config::address::Address;
use crate::config::discovery::kind::Kind;
use crate::config::discovery::source::Source;
use crate::config::parse::{ParseContext, config_source};
use crate::config::reject::Refused;

/// Where the endpoints of an EDS cluster come from.
pub(super) fn parse(config: &proto::Cluster, context: &mut ParseContext) -> Result<EdsPlan, Refused> {
    if config.load_assignment.is_some() {
        let _ =
            context.reject("load_assignment", "must not be set in an EDS cluster: its endpoints come by eds_config");
    }
    let eds = context.required("eds_cluster_config", &config.eds_cluster_config)?;
    let name = if eds.service_name.is_empty() { &config.name } else { &eds.service_name };
    context.within("eds_cluster_config", |context| {
        let source = context.required("eds_config", &eds.eds_config)?;
        context.within("eds_config", |context| source_plan(source, name, context))
    })
}

fn source_plan(source: &core::ConfigSource, name: &str, context: &mut ParseContext) -> Result<EdsPlan, Refused> {
    let asked = config_source::parse(source, Kind::Endpoints, context)?;
    let file = context.sources.iter().find(|(index, _)| *index == asked.source).and_then(|(_, source)| match source {
        Source::File { path, poll_interval, .. } => Some((path.clone(), *poll_interval)),
        _ => None,
    });
    let source = match file {
        Some((path, poll_interval)) => EdsSource::File { path, poll_interval },
        None => EdsSource::Stream(asked.source),
    };
    Ok(EdsPlan { source, name: name.into(), fetch_timeout: asked.limit })
}

impl Cluster {
    /// This cluster with the endpoints of `config`; hosts whose address stays keep their counters and connections.
    pub fn with_assignment(&self, config: &ClusterLoadAssignment, context: &mut ParseContext) -> Result<Self, Refused> {
        let assignment = endpoints::load_assignment(config, &Discovery::Static, context)?;
        let known: HashMap<&Address, &Host> = self.endpoints.hosts.iter().map(|host| (&host.address, host)).collect();
        let mut hosts = endpoints::static_hosts(&assignment, self.host_connections_max, context.core_count);
        // Of equal addresses the first counts, as in Envoy.
        let mut seen = std::collections::HashSet::new();
        hosts.retain(|host| seen.insert(host.address.clone()));
        for host in &mut hosts {
            if let Some(known) = known.get(&host.address) {
                host.stats = known.stats.clone();
                host.connections = known.connections.clone();
            }
        }
        Ok(self.with_endpoints(EndpointSet::new(hosts, &assignment.options, &self.policy)))
    }
}
