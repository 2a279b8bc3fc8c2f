//! `http_filters`: the chain of a connection manager. The router ends it; filters that are not there are refused by name.

use std::sync::Arc;

use envoy_types::pb::envoy::extensions::filters::http::grpc_http1_bridge::v3::Config as GrpcHttp1BridgeConfig;
use envoy_types::pb::envoy::extensions::filters::http::grpc_stats::v3::FilterConfig as GrpcStatsConfig;
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as proto;
use envoy_types::pb::google::protobuf::Any;
use torus_codec::HeaderName;

use super::ParseContext;
use super::context::type_name;
use crate::config::reject::Refused;
use crate::downstream::RouterOptions;
use crate::filter::grpc_http1_bridge::GrpcHttp1Bridge;
use crate::filter::grpc_stats::GrpcStats;
use crate::filter::grpc_web::GrpcWeb;
use crate::filter::{Filter, FilterChain};

/// The chain in `field` and the options of the router, with which it must end.
pub fn parse(
    field: &str,
    filters: &[proto::HttpFilter],
    context: &mut ParseContext,
) -> Result<(FilterChain, RouterOptions), Refused> {
    let mut router = None;
    let mut chain = FilterChain::default();
    let last = filters.len().saturating_sub(1);
    let checkpoint = context.problems.checkpoint();
    for (index, filter) in filters.iter().enumerate() {
        context.within_item(field, index, |context| {
            let _ = context.non_empty("name", &filter.name);
            let Some(packed) = typed_config(filter, context) else { return };
            if type_name(&packed.type_url) != ROUTER {
                let parsed = other(filter, packed, context).ok().flatten();
                // Nothing can turn a disabled one on: a route cannot name it.
                chain.filters.extend(parsed.filter(|_| !filter.disabled));
            } else if index != last {
                let _ = context.reject("", "the router must be the last filter of the chain");
            } else if filter.disabled {
                let _ = context.reject("disabled", "the last filter of the chain cannot be disabled");
            } else {
                router = context.unpack::<Router>("typed_config", packed).ok();
                if let Some(router) = &router {
                    context.within("typed_config", |context| check_strict_names(router, context));
                }
            }
        });
    }
    context.problems.clean_since(checkpoint)?;
    let router = router.ok_or_else(|| context.reject(field, format!("must end with `{ROUTER_NAME}`")))?;
    if !chain.filters.is_empty() {
        chain.registry = Some(Arc::clone(&context.registry));
    }
    let router = RouterOptions {
        dynamic_stats: router.dynamic_stats.is_none_or(|on| on.value),
        suppress_envoy_headers: router.suppress_envoy_headers,
        respect_expected_timeout: router.respect_expected_rq_timeout,
        strict_check_headers: router.strict_check_headers.iter().filter_map(|name| HeaderName::new(name)).collect(),
    };
    Ok((chain, router))
}

/// A filter that is not the router; `None` where it is left out.
fn other(filter: &proto::HttpFilter, packed: &Any, context: &mut ParseContext) -> Result<Option<Filter>, Refused> {
    let kind = type_name(&packed.type_url);
    Ok(match kind.strip_prefix("envoy.extensions.filters.http.").unwrap_or(kind) {
        "grpc_stats.v3.FilterConfig" => {
            let config: GrpcStatsConfig = context.unpack("typed_config", packed)?;
            let parsed = context.within("typed_config", |context| GrpcStats::parse(&config, context))?;
            Some(Filter::GrpcStats(Arc::new(parsed)))
        }
        "grpc_web.v3.GrpcWeb" => Some(Filter::GrpcWeb(GrpcWeb::new(context)?)),
        "grpc_http1_bridge.v3.Config" => {
            let config: GrpcHttp1BridgeConfig = context.unpack("typed_config", packed)?;
            Some(Filter::GrpcHttp1Bridge(GrpcHttp1Bridge::new(&config)))
        }
        _ => {
            refuse_or_skip(filter, packed, context);
            None
        }
    })
}

fn typed_config<'a>(filter: &'a proto::HttpFilter, context: &mut ParseContext) -> Option<&'a Any> {
    use proto::http_filter::ConfigType;
    match &filter.config_type {
        Some(ConfigType::TypedConfig(packed)) => Some(packed),
        Some(ConfigType::ConfigDiscovery(_)) => {
            let _ = context.reject("config_discovery", "discovered filters are not there yet in this version");
            None
        }
        None => {
            let _ = context.reject("typed_config", "is required");
            None
        }
    }
}

/// Source: HttpFilter.is_optional: who does not know an optional filter goes without it.
fn refuse_or_skip(filter: &proto::HttpFilter, packed: &Any, context: &mut ParseContext) {
    let reason = format!("filter `{}` is not there yet in this version", type_name(&packed.type_url));
    if filter.is_optional {
        context.warn("typed_config", format!("{reason}; it is optional and left out"));
    } else {
        let _ = context.reject("typed_config", reason);
    }
}

/// Source: Router.strict_check_headers, which lists what it may name.
fn check_strict_names(router: &Router, context: &mut ParseContext) {
    for (index, name) in router.strict_check_headers.iter().enumerate() {
        if !STRICT_NAMES.contains(&name.to_ascii_lowercase().as_str()) {
            context.within_item("strict_check_headers", index, |context| {
                let _ = context.reject("", format!("`{name}` is none of {}", STRICT_NAMES.join(", ")));
            });
        }
    }
}

const ROUTER: &str = "envoy.extensions.filters.http.router.v3.Router";
const ROUTER_NAME: &str = "envoy.filters.http.router";
const STRICT_NAMES: &[&str] = &[
    "x-envoy-upstream-rq-timeout-ms",
    "x-envoy-upstream-rq-per-try-timeout-ms",
    "x-envoy-max-retries",
    "x-envoy-retry-grpc-on",
    "x-envoy-retry-on",
];
