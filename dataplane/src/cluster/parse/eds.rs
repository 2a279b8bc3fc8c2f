//! `eds_cluster_config`, and the assignments that come by it.

use std::collections::HashMap;

use envoy_types::pb::envoy::config::cluster::v3 as proto;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;

use super::{Discovery, endpoints};
use crate::cluster::eds::{EdsPlan, EdsSource, POLL_INTERVAL};
use crate::cluster::{Cluster, EndpointSet, Host};
use crate::config::address::Address;
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
    use core::config_source::ConfigSourceSpecifier;
    let fetch_timeout = context.duration("initial_fetch_timeout", &source.initial_fetch_timeout)?;
    let fetch_timeout = fetch_timeout.unwrap_or(config_source::FETCH_TIMEOUT);
    let file = match &source.config_source_specifier {
        Some(ConfigSourceSpecifier::PathConfigSource(file)) => file,
        Some(ConfigSourceSpecifier::Ads(_)) => {
            config_source::aggregated(source, context)?;
            return Ok(EdsPlan { source: EdsSource::Ads, name: name.into(), fetch_timeout });
        }
        _ => {
            let reason = "needs ads or a path_config_source; other sources are not there yet in this version";
            return Err(context.reject("", reason));
        }
    };
    context.within("path_config_source", |context| {
        let path = context.non_empty("path", &file.path)?;
        // Source: Envoy, "paths must refer to an existing path in the system".
        if let Err(error) = std::fs::metadata(path) {
            return Err(context.reject("path", format!("cannot be read: {error}; create `{path}` before the start")));
        }
        let poll_interval = context.duration("poll_interval", &file.poll_interval)?;
        Ok(EdsPlan {
            source: EdsSource::File {
                path: path.into(),
                poll_interval: poll_interval.filter(|interval| !interval.is_zero()).unwrap_or(POLL_INTERVAL),
            },
            name: name.into(),
            fetch_timeout,
        })
    })
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
