//! `envoy.config.core.v3.ConfigSource`: where a resource that is named elsewhere comes from.

use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;
use torus_xds::subscription::Protocol;

use super::{ParseContext, google_grpc};
use crate::cluster::eds::POLL_INTERVAL;
use crate::config::discovery::kind::Kind;
use crate::config::discovery::source::{Asked, GrpcTarget, Server, Source};
use crate::config::reject::Refused;

/// Whom a resource of `kind` is asked from, and how long it may be missing at first.
pub fn parse(source: &core::ConfigSource, kind: Kind, context: &mut ParseContext) -> Result<Asked, Refused> {
    use core::config_source::ConfigSourceSpecifier as Specifier;
    let limit = context.duration("initial_fetch_timeout", &source.initial_fetch_timeout)?.unwrap_or(FETCH_TIMEOUT);
    let place = match &source.config_source_specifier {
        Some(field @ (Specifier::Ads(_) | Specifier::Self_(_))) => {
            let field = if matches!(field, Specifier::Ads(_)) { "ads" } else { "self" };
            let reason = "needs dynamic_resources.ads_config in the bootstrap, which says whom to ask";
            context.sources.ads().ok_or_else(|| context.reject(field, reason))?
        }
        Some(Specifier::ApiConfigSource(server)) => {
            let target = context.within("api_config_source", |context| grpc_target(server, context))?;
            placed(Source::Grpc(kind, target), context)?
        }
        Some(Specifier::PathConfigSource(file)) => {
            let file = context.within("path_config_source", |context| file_source(file, kind, context))?;
            placed(file, context)?
        }
        _ => return Err(context.reject("", "needs one of ads, self, api_config_source, path_config_source")),
    };
    Ok(Asked { source: place, limit })
}

fn placed(
    source: Source,
    context: &mut ParseContext,
) -> Result<crate::config::discovery::source::SourceIndex, Refused> {
    context.sources.place(source).ok_or_else(|| context.reject("", "is one source of configuration too many"))
}

/// A server of discovery.
pub fn grpc_target(config: &core::ApiConfigSource, context: &mut ParseContext) -> Result<GrpcTarget, Refused> {
    use core::api_config_source::ApiType;
    let protocol = match config.api_type() {
        ApiType::Grpc | ApiType::AggregatedGrpc => Protocol::Sotw,
        ApiType::DeltaGrpc | ApiType::AggregatedDeltaGrpc => Protocol::Delta,
        other => {
            let reason = format!("must be GRPC or DELTA_GRPC, is {}", other.as_str_name());
            return Err(context.reject("api_type", reason));
        }
    };
    if config.grpc_services.is_empty() {
        return Err(context.reject("grpc_services", "must name at least one server"));
    }
    let servers = context.each("grpc_services", &config.grpc_services, |service, context| {
        use core::grpc_service::TargetSpecifier;
        match &service.target_specifier {
            Some(TargetSpecifier::EnvoyGrpc(grpc)) => context.within("envoy_grpc", |context| {
                let name = context.non_empty("cluster_name", &grpc.cluster_name)?;
                // Who asks has to be reachable before anything is discovered.
                let before = std::mem::replace(&mut context.validate_clusters, !context.cluster_by_name.is_empty());
                let known = context.cluster("cluster_name", name);
                context.validate_clusters = before;
                known.map(|_| Server::Cluster(name.into()))
            }),
            Some(TargetSpecifier::GoogleGrpc(grpc)) => {
                let server = context.within("google_grpc", |context| google_grpc::parse(grpc, context));
                server.map(Server::Google)
            }
            None => {
                Err(context.reject("", "needs envoy_grpc, which names a cluster, or google_grpc, which names a server"))
            }
        }
    })?;
    if context.node.id.is_empty() || context.node.cluster.is_empty() {
        let reason = "needs node.id and node.cluster in the bootstrap, or --service-node and --service-cluster";
        return Err(context.reject("", reason));
    }
    Ok(GrpcTarget { protocol, servers: servers.into(), node_once: config.set_node_on_first_message_only })
}

fn file_source(config: &core::PathConfigSource, kind: Kind, context: &mut ParseContext) -> Result<Source, Refused> {
    let path = context.non_empty("path", &config.path)?;
    // Source: Envoy, "paths must refer to an existing path in the system".
    if let Err(error) = std::fs::metadata(path) {
        return Err(context.reject("path", format!("cannot be read: {error}; create `{path}` before the start")));
    }
    let poll_interval = context.duration("poll_interval", &config.poll_interval)?;
    let poll_interval = poll_interval.filter(|interval| !interval.is_zero()).unwrap_or(POLL_INTERVAL);
    Ok(Source::File { kind, path: path.into(), poll_interval })
}

/// Source: ConfigSource.initial_fetch_timeout.
pub const FETCH_TIMEOUT: Duration = Duration::from_secs(15);
