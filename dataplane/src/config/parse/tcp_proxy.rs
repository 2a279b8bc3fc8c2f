//! `envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy` becomes a [`TcpProxy`].

use std::time::Duration;

use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3 as proto;
use envoy_types::pb::envoy::r#type::v3::hash_policy::PolicySpecifier;
use proto::tcp_proxy::ClusterSpecifier;

use super::ParseContext;
use crate::config::reject::Refused;
use crate::downstream::tcp::{TcpProxy, TcpTarget, WeightedCluster};
use crate::telemetry::access_log::AccessLog;

/// Compiles `config`.
pub fn parse(config: &proto::TcpProxy, context: &mut ParseContext) -> Result<TcpProxy, Refused> {
    let start = context.problems.checkpoint();
    let prefix = context.non_empty("stat_prefix", &config.stat_prefix);
    let clusters = clusters(config, context);
    let idle_timeout = context.timeout("idle_timeout", &config.idle_timeout, Some(IDLE_TIMEOUT));
    let duration_max =
        context.duration("max_downstream_connection_duration", &config.max_downstream_connection_duration);
    if matches!(duration_max, Ok(Some(max)) if max < Duration::from_millis(1)) {
        let _ = context.reject("max_downstream_connection_duration", "must be at least 1ms");
    }
    let connect_attempts_max = config.max_connect_attempts.map_or(1, |attempts| attempts.value);
    if connect_attempts_max == 0 {
        let _ = context.reject("max_connect_attempts", "must be at least 1");
    }
    if config.hash_policy.len() > 1 {
        let _ = context.reject("hash_policy", "must hold at most one policy");
    }
    let access_logs = context.each("access_log", &config.access_log, AccessLog::parse);
    context.problems.clean_since(start)?;
    let clusters = clusters?;
    Ok(TcpProxy {
        stats: context.registry.group(&format!("tcp.{}.", prefix?)),
        weight_total: clusters.iter().map(|share| u64::from(share.weight)).sum(),
        clusters,
        hash_source_ip: config
            .hash_policy
            .iter()
            .any(|policy| matches!(policy.policy_specifier, Some(PolicySpecifier::SourceIp(_)))),
        idle_timeout: idle_timeout?,
        duration_max: duration_max?,
        connect_attempts_max,
        access_logs: access_logs?,
    })
}

fn clusters(config: &proto::TcpProxy, context: &mut ParseContext) -> Result<Vec<WeightedCluster>, Refused> {
    match &config.cluster_specifier {
        Some(ClusterSpecifier::Cluster(name)) => {
            Ok(vec![WeightedCluster { cluster: target("cluster", name, context)?, weight: 1 }])
        }
        Some(ClusterSpecifier::WeightedClusters(weighted)) => context.within("weighted_clusters", |context| {
            if weighted.clusters.is_empty() {
                return Err(context.reject("clusters", "must hold at least one cluster"));
            }
            context.each("clusters", &weighted.clusters, |share, context| {
                if share.weight == 0 {
                    return Err(context.reject("weight", "must be at least 1"));
                }
                let name = context.non_empty("name", &share.name)?;
                Ok(WeightedCluster { cluster: target("name", name, context)?, weight: share.weight })
            })
        }),
        None => Err(context.reject("cluster", "one of `cluster` and `weighted_clusters` is required")),
    }
}

fn target(field: &str, name: &str, context: &mut ParseContext) -> Result<TcpTarget, Refused> {
    Ok(context.cluster(field, name)?.map_or_else(|| TcpTarget::Named(name.into()), TcpTarget::Index))
}

/// Source: TcpProxy.idle_timeout, one hour.
const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
