//! `envoy.config.bootstrap.v3.Bootstrap.DynamicResources`: who is asked for what is not in the bootstrap.

use std::time::Duration;

use envoy_types::pb::envoy::config::bootstrap::v3::bootstrap::DynamicResources;
use envoy_types::pb::envoy::config::core::v3 as core;
use torus_xds::subscription::Protocol;

use super::{ParseContext, config_source};
use crate::cluster::eds::EdsSource;
use crate::config::discovery::ads::AdsPlan;
use crate::config::reject::Refused;
use crate::config::snapshot::Snapshot;

/// What is discovered.
pub struct Dynamic {
    /// Whom to ask.
    pub ads: AdsPlan,
    /// Whether for all clusters and for all listeners, and how long the first answer may be missing.
    pub wildcards: (Option<Duration>, Option<Duration>),
}

/// Whom to ask, and whether for clusters and for listeners.
pub fn parse(
    config: &DynamicResources,
    node: core::Node,
    context: &mut ParseContext,
) -> Result<Option<Dynamic>, Refused> {
    let ads = match &config.ads_config {
        Some(ads) => Some(context.within("ads_config", |context| ads_config(ads, node, context))?),
        None => None,
    };
    context.has_ads = ads.is_some();
    let mut wildcard = |field: &str, source: &Option<core::ConfigSource>| match source {
        Some(source) => context.within(field, |context| config_source::aggregated(source, context)).map(Some),
        None => Ok(None),
    };
    let clusters = wildcard("cds_config", &config.cds_config);
    let listeners = wildcard("lds_config", &config.lds_config);
    let wildcards = (clusters?, listeners?);
    Ok(ads.map(|ads| Dynamic { ads, wildcards }))
}

fn ads_config(
    config: &core::ApiConfigSource,
    node: core::Node,
    context: &mut ParseContext,
) -> Result<AdsPlan, Refused> {
    use core::api_config_source::ApiType;
    let protocol = match config.api_type() {
        ApiType::Grpc | ApiType::AggregatedGrpc => Protocol::Sotw,
        ApiType::DeltaGrpc | ApiType::AggregatedDeltaGrpc => Protocol::Delta,
        other => {
            let reason = format!("must be GRPC or DELTA_GRPC, is {}", other.as_str_name());
            return Err(context.reject("api_type", reason));
        }
    };
    let [service] = config.grpc_services.as_slice() else {
        let reason = format!("must be exactly one, there are {}", config.grpc_services.len());
        return Err(context.reject("grpc_services", reason));
    };
    let cluster = context.within_item("grpc_services", 0, |context| match &service.target_specifier {
        Some(core::grpc_service::TargetSpecifier::EnvoyGrpc(grpc)) => {
            context.within("envoy_grpc", |context| context.non_empty("cluster_name", &grpc.cluster_name))
        }
        _ => Err(context.reject("", "needs envoy_grpc; other clients are not there yet in this version")),
    })?;
    if context.node.id.is_empty() || context.node.cluster.is_empty() {
        let reason = "needs node.id and node.cluster in the bootstrap, or --service-node and --service-cluster";
        return Err(context.reject("", reason));
    }
    let node = core::Node {
        id: context.node.id.to_string(),
        cluster: context.node.cluster.to_string(),
        user_agent_name: "torus-proxy".to_owned(),
        user_agent_version_type: Some(core::node::UserAgentVersionType::UserAgentVersion(
            env!("CARGO_PKG_VERSION").to_owned(),
        )),
        ..node
    };
    Ok(AdsPlan { protocol, cluster: cluster.into(), node, node_once: config.set_node_on_first_message_only })
}

/// Refuses a control plane that cannot be reached, or not as it is configured.
pub fn check_cluster(ads: &AdsPlan, snapshot: &Snapshot, context: &mut ParseContext) -> Result<(), Refused> {
    let field = "dynamic_resources.ads_config.grpc_services[0].envoy_grpc.cluster_name";
    let index = context.cluster(field, &ads.cluster)?;
    let Some(cluster) = index.and_then(|index| snapshot.cluster(index)) else { return Ok(()) };
    if cluster.tls.is_some() {
        let reason = "names a cluster with TLS; TLS to a control plane is not there yet in this version";
        return Err(context.reject(field, reason));
    }
    if cluster.eds.as_ref().is_some_and(|plan| plan.source == EdsSource::Ads) {
        return Err(context.reject(field, "names a cluster whose endpoints the control plane itself would have to say"));
    }
    Ok(())
}
