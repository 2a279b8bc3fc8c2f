//! Network filters that let a connection pass or end it, before the one that serves it.

use std::sync::Arc;

use envoy_types::pb::envoy::config::listener::v3 as proto;
use envoy_types::pb::envoy::extensions::filters::network::{connection_limit, local_ratelimit, rbac, sni_cluster};

use super::ParseContext;
use super::context::type_name;
use crate::config::reject::Refused;
use crate::filter::network::ConnectionFilter;
use crate::filter::network::connection_limit::ConnectionLimit;
use crate::filter::network::local_ratelimit::LocalRateLimit;
use crate::filter::network::rbac::NetworkRbac;

/// What can stand before the filter that serves connections.
pub const KNOWN: [&str; 4] = [CONNECTION_LIMIT, LOCAL_RATE_LIMIT, RBAC, SNI_CLUSTER];

/// Compiles one of them.
pub fn parse(filter: &proto::Filter, context: &mut ParseContext) -> Result<ConnectionFilter, Refused> {
    let _ = context.non_empty("name", &filter.name);
    let packed = match &filter.config_type {
        Some(proto::filter::ConfigType::TypedConfig(packed)) => packed,
        Some(proto::filter::ConfigType::ConfigDiscovery(_)) => {
            return Err(context.reject("config_discovery", "discovered filters are not there yet in this version"));
        }
        None => return Err(context.reject("typed_config", "is required")),
    };
    match type_name(&packed.type_url) {
        CONNECTION_LIMIT => {
            let config: connection_limit::v3::ConnectionLimit = context.unpack("typed_config", packed)?;
            let limit = context.within("typed_config", |context| ConnectionLimit::parse(&config, context))?;
            Ok(ConnectionFilter::ConnectionLimit(Arc::new(limit)))
        }
        LOCAL_RATE_LIMIT => {
            let config: local_ratelimit::v3::LocalRateLimit = context.unpack("typed_config", packed)?;
            let limit = context.within("typed_config", |context| LocalRateLimit::parse(&config, context))?;
            Ok(ConnectionFilter::LocalRateLimit(Arc::new(limit)))
        }
        RBAC => {
            let config: rbac::v3::Rbac = context.unpack("typed_config", packed)?;
            let rbac = context.within("typed_config", |context| NetworkRbac::parse(&config, context))?;
            Ok(ConnectionFilter::Rbac(Box::new(rbac)))
        }
        SNI_CLUSTER => {
            let _: sni_cluster::v3::SniCluster = context.unpack("typed_config", packed)?;
            Ok(ConnectionFilter::SniCluster)
        }
        name if SERVING.contains(&name) => {
            Err(context
                .reject("typed_config", format!("`{name}` serves the connection, so it must be the last filter")))
        }
        name => {
            Err(context.reject("typed_config", format!("network filter `{name}` is not there yet in this version")))
        }
    }
}

const CONNECTION_LIMIT: &str = "envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit";
const LOCAL_RATE_LIMIT: &str = "envoy.extensions.filters.network.local_ratelimit.v3.LocalRateLimit";
const RBAC: &str = "envoy.extensions.filters.network.rbac.v3.RBAC";
const SNI_CLUSTER: &str = "envoy.extensions.filters.network.sni_cluster.v3.SniCluster";
const SERVING: [&str; 3] = [
    "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
    "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
    "envoy.extensions.filters.network.direct_response.v3.Config",
];
