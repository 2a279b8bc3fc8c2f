//! The filters that end a filter chain: HTTP connection manager and TCP proxy.

use std::time::Duration;

use envoy_types::pb::envoy::config::accesslog::v3::{AccessLog, access_log};
use envoy_types::pb::envoy::config::core::v3::{
    DataSource, Http1ProtocolOptions, SubstitutionFormatString, data_source, substitution_format_string,
};
use envoy_types::pb::envoy::config::listener::v3::{Filter, filter::ConfigType};
use envoy_types::pb::envoy::extensions::access_loggers::file::v3::{FileAccessLog, file_access_log};
use envoy_types::pb::envoy::extensions::filters::http::cors::v3::Cors;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::HttpFault;
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, Rds, http_connection_manager as manager,
    http_connection_manager::RouteSpecifier, http_filter,
};
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::{TcpProxy, tcp_proxy};

use super::wire;
use crate::model::Mesh;
use crate::model::api::WeightedDestination;

/// Where a manager stands.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// A gateway faces clients that nobody vouches for.
    Gateway,
    /// A sidecar takes what its own workload sends.
    Outbound,
    /// A sidecar takes what other proxies send to its workload.
    Inbound,
}

/// Routes that are discovered under a name.
pub(super) fn discovered(route_config: String) -> RouteSpecifier {
    RouteSpecifier::Rds(Rds { config_source: wire::aggregated(), route_config_name: route_config })
}

/// The manager of a gateway or sidecar.
pub(super) fn http(mesh: &Mesh, role: Role, stat_prefix: &str, routes: RouteSpecifier) -> Filter {
    let details = manager::SetCurrentClientCertDetails {
        subject: wire::flag(true),
        cert: role == Role::Gateway,
        dns: true,
        uri: true,
        ..manager::SetCurrentClientCertDetails::default()
    };
    let forwarding = match role {
        Role::Gateway => manager::ForwardClientCertDetails::SanitizeSet,
        Role::Outbound => manager::ForwardClientCertDetails::Sanitize,
        Role::Inbound => manager::ForwardClientCertDetails::AppendForward,
    };
    let message = HttpConnectionManager {
        stat_prefix: stat_prefix.to_owned(),
        http_filters: http_filters(mesh),
        server_name: "istio-envoy".to_owned(),
        use_remote_address: wire::flag(role == Role::Gateway),
        forward_client_cert_details: forwarding.into(),
        set_current_client_cert_details: (role != Role::Outbound).then_some(details),
        http_protocol_options: Some(Http1ProtocolOptions { accept_http_10: true, ..Http1ProtocolOptions::default() }),
        upgrade_configs: vec![manager::UpgradeConfig {
            upgrade_type: "websocket".to_owned(),
            ..manager::UpgradeConfig::default()
        }],
        normalize_path: wire::flag(true),
        stream_idle_timeout: wire::span(Duration::ZERO),
        access_log: access_log(mesh),
        route_specifier: Some(routes),
        ..HttpConnectionManager::default()
    };
    Filter {
        name: "envoy.filters.network.http_connection_manager".to_owned(),
        config_type: Some(ConfigType::TypedConfig(wire::any(
            "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            &message,
        ))),
    }
}

/// The router, preceded by what some route of the mesh asks for. A filter that nobody uses costs every request.
fn http_filters(mesh: &Mesh) -> Vec<HttpFilter> {
    let filter = |name: &str, config| HttpFilter {
        name: name.to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(config)),
        ..HttpFilter::default()
    };
    let mut list = Vec::new();
    let mut routes = mesh.virtual_services.iter().flat_map(|config| &config.spec.http);
    if routes.clone().any(|route| route.cors_policy.is_some()) {
        list.push(filter("envoy.filters.http.cors", wire::any("envoy.extensions.filters.http.cors.v3.Cors", &Cors {})));
    }
    if routes.any(|route| route.fault.is_some()) {
        list.push(filter(
            "envoy.filters.http.fault",
            wire::any("envoy.extensions.filters.http.fault.v3.HTTPFault", &HttpFault::default()),
        ));
    }
    list.push(filter(
        "envoy.filters.http.router",
        wire::any("envoy.extensions.filters.http.router.v3.Router", &Router::default()),
    ));
    list
}

fn access_log(mesh: &Mesh) -> Vec<AccessLog> {
    if mesh.config.access_log_file.is_empty() {
        return Vec::new();
    }
    let format = (!mesh.config.access_log_format.is_empty()).then(|| {
        file_access_log::AccessLogFormat::LogFormat(SubstitutionFormatString {
            format: Some(substitution_format_string::Format::TextFormatSource(DataSource {
                specifier: Some(data_source::Specifier::InlineString(mesh.config.access_log_format.clone())),
                ..DataSource::default()
            })),
            ..SubstitutionFormatString::default()
        })
    });
    let file = FileAccessLog { path: mesh.config.access_log_file.clone(), access_log_format: format };
    vec![AccessLog {
        name: "envoy.access_loggers.file".to_owned(),
        config_type: Some(access_log::ConfigType::TypedConfig(wire::any(
            "envoy.extensions.access_loggers.file.v3.FileAccessLog",
            &file,
        ))),
        ..AccessLog::default()
    }]
}

/// A TCP proxy to one cluster.
pub(super) fn tcp(mesh: &Mesh, cluster: &str) -> Filter {
    proxy(mesh, cluster, tcp_proxy::ClusterSpecifier::Cluster(cluster.to_owned()))
}

/// A TCP proxy to the destinations of a route; `cluster` names each one's cluster.
pub(super) fn tcp_route(
    mesh: &Mesh,
    route: &[WeightedDestination],
    cluster: impl Fn(&WeightedDestination) -> String,
) -> Option<Filter> {
    match route {
        [] => None,
        [only] => Some(tcp(mesh, &cluster(only))),
        several => {
            let clusters =
                several.iter().filter(|to| to.weight > 0).map(|to| tcp_proxy::weighted_cluster::ClusterWeight {
                    name: cluster(to),
                    weight: to.weight,
                    ..tcp_proxy::weighted_cluster::ClusterWeight::default()
                });
            let clusters: Vec<_> = clusters.collect();
            let stat = clusters.first().map(|cluster| cluster.name.clone())?;
            Some(proxy(
                mesh,
                &stat,
                tcp_proxy::ClusterSpecifier::WeightedClusters(tcp_proxy::WeightedCluster { clusters }),
            ))
        }
    }
}

fn proxy(mesh: &Mesh, stat_prefix: &str, specifier: tcp_proxy::ClusterSpecifier) -> Filter {
    let message = TcpProxy {
        stat_prefix: stat_prefix.to_owned(),
        access_log: access_log(mesh),
        cluster_specifier: Some(specifier),
        ..TcpProxy::default()
    };
    Filter {
        name: "envoy.filters.network.tcp_proxy".to_owned(),
        config_type: Some(ConfigType::TypedConfig(wire::any(
            "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            &message,
        ))),
    }
}
