//! `envoy.config.bootstrap.v3.Bootstrap.DynamicResources`: who is asked for what is not in the bootstrap.

use envoy_types::pb::envoy::config::bootstrap::v3::bootstrap::DynamicResources;
use envoy_types::pb::envoy::config::core::v3 as core;

use super::{ParseContext, config_source};
use crate::cluster::eds::EdsSource;
use crate::config::discovery::kind::Kind;
use crate::config::discovery::source::{Asked, Server, Source};
use crate::config::reject::Refused;
use crate::config::snapshot::Snapshot;

/// The kinds of which everything is asked for, and of whom. What is named by the rest of the bootstrap may ask the same servers.
pub fn parse(config: &DynamicResources, context: &mut ParseContext) -> Result<Vec<(Kind, Asked)>, Refused> {
    if let Some(ads) = &config.ads_config {
        let target = context.within("ads_config", |context| config_source::grpc_target(ads, context))?;
        context.sources.place(Source::Ads(target));
    }
    let mut wildcards = Vec::new();
    let mut refused = None;
    for (field, source, kind) in
        [("cds_config", &config.cds_config, Kind::Cluster), ("lds_config", &config.lds_config, Kind::Listener)]
    {
        let Some(source) = source else { continue };
        match context.within(field, |context| config_source::parse(source, kind, context)) {
            Ok(asked) => wildcards.push((kind, asked)),
            Err(why) => refused = Some(why),
        }
    }
    refused.map_or(Ok(wildcards), Err)
}

/// Who asks, in the words of a request.
pub fn node(config: Option<&core::Node>, context: &ParseContext) -> core::Node {
    core::Node {
        id: context.node.id.to_string(),
        cluster: context.node.cluster.to_string(),
        user_agent_name: "torus-proxy".to_owned(),
        user_agent_version_type: Some(core::node::UserAgentVersionType::UserAgentVersion(
            env!("CARGO_PKG_VERSION").to_owned(),
        )),
        ..config.cloned().unwrap_or_default()
    }
}

/// Refuses servers that cannot be reached, or not as they are configured.
pub fn check_clusters(snapshot: &Snapshot, context: &mut ParseContext) -> Result<(), Refused> {
    let sources: Vec<Source> = context.sources.iter().map(|(_, source)| source.clone()).collect();
    let mut refused = None;
    for source in &sources {
        let field = match source {
            Source::Ads(_) => "dynamic_resources.ads_config.grpc_services.envoy_grpc.cluster_name",
            _ => "api_config_source.grpc_services.envoy_grpc.cluster_name",
        };
        for server in source.target().into_iter().flat_map(|target| &target.servers) {
            let Server::Cluster(name) = server else { continue };
            match context.cluster(field, name) {
                Err(why) => refused = Some(why),
                Ok(index) => {
                    let Some(cluster) = index.and_then(|index| snapshot.cluster(index)) else { continue };
                    if matches!(cluster.eds.as_deref(), Some(plan) if matches!(plan.source, EdsSource::Stream(_))) {
                        let reason = "names a cluster whose endpoints a control plane would have to say first";
                        refused = Some(context.reject(field, reason));
                    }
                }
            }
        }
    }
    refused.map_or(Ok(()), Err)
}
