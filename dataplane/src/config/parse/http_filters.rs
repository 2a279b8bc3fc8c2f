//! `http_filters`: the chain of a connection manager. The router ends it; other filters are refused by name.

use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as proto;
use envoy_types::pb::google::protobuf::Any;
use torus_codec::HeaderName;

use super::ParseContext;
use super::context::type_name;
use crate::config::reject::Refused;
use crate::downstream::RouterOptions;

/// The router's options from the chain in `field`, which must end with it.
pub fn parse(field: &str, filters: &[proto::HttpFilter], context: &mut ParseContext) -> Result<RouterOptions, Refused> {
    let mut router = None;
    let last = filters.len().saturating_sub(1);
    let checkpoint = context.problems.checkpoint();
    for (index, filter) in filters.iter().enumerate() {
        context.within_item(field, index, |context| {
            let _ = context.non_empty("name", &filter.name);
            let Some(packed) = typed_config(filter, context) else { return };
            if type_name(&packed.type_url) != ROUTER {
                refuse_or_skip(filter, packed, context);
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
    Ok(RouterOptions {
        dynamic_stats: router.dynamic_stats.is_none_or(|on| on.value),
        suppress_envoy_headers: router.suppress_envoy_headers,
        respect_expected_timeout: router.respect_expected_rq_timeout,
        strict_check_headers: router.strict_check_headers.iter().filter_map(|name| HeaderName::new(name)).collect(),
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
