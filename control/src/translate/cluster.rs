//! Clusters towards services.

use std::collections::HashMap;
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3::{
    CircuitBreakers, Cluster, OutlierDetection, UpstreamConnectionOptions, circuit_breakers::Thresholds, cluster,
    cluster::ClusterDiscoveryType, cluster::DiscoveryType,
};
use envoy_types::pb::envoy::config::core::v3::{
    Http1ProtocolOptions, Http2ProtocolOptions, HttpProtocolOptions as Common, RoutingPriority, TcpKeepalive,
};
use envoy_types::pb::envoy::extensions::upstreams::http::v3::{HttpProtocolOptions, http_protocol_options};

use super::{balance, endpoint, names, tls, wire};
use crate::model::api::{ConnectionPool, OutlierDetection as Outlier, TrafficPolicy};
use crate::model::protocol::Protocol;
use crate::model::{Mesh, Proxy, ProxyKind, Resolution, Service, ServicePort};

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// All clusters of one port: the port's own and one a subset.
pub(super) fn of_port(mesh: &Mesh, proxy: &Proxy, service: &Service, port: &ServicePort) -> Vec<Cluster> {
    let rule = mesh.destination_rules.find(proxy, service);
    let subsets = rule.into_iter().flat_map(|rule| rule.spec.subsets.iter().map(|subset| subset.name.as_str()));
    std::iter::once("").chain(subsets).map(|subset| one(mesh, proxy, service, port, subset)).collect()
}

fn one(mesh: &Mesh, proxy: &Proxy, service: &Service, port: &ServicePort, subset: &str) -> Cluster {
    let name = names::outbound_cluster(port.number, subset, &service.hostname);
    let policy = balance::policy(mesh, proxy, service, port.number, subset);
    let rule = mesh.destination_rules.find(proxy, service);
    let origin = rule.map_or(&service.origin, |rule| &rule.origin);
    let services = wire::services(&[(&service.hostname, &service.name, &service.namespace)]);
    let mut made = Cluster {
        name: name.clone(),
        connect_timeout: wire::span(mesh.config.connect_timeout.map_or(Duration::from_secs(10), |timeout| timeout.0)),
        metadata: wire::metadata(
            origin,
            "spec",
            wire::fields([("services", services), ("default_original_port", wire::integer(port.number))]),
        ),
        common_lb_config: Some(cluster::CommonLbConfig::default()),
        ..Cluster::default()
    };
    discovery(&mut made, mesh, proxy, service, port.number, subset);
    if made.cluster_discovery_type != Some(ClusterDiscoveryType::Type(DiscoveryType::OriginalDst.into())) {
        balance::apply(&mut made, policy.load_balancer.as_ref());
    }
    let locality_aware = proxy.locality.is_empty() || policy.outlier_detection.is_some();
    if locality_aware && made.lb_policy != i32::from(cluster::LbPolicy::ClusterProvided) {
        made.common_lb_config = Some(cluster::CommonLbConfig {
            locality_config_specifier: Some(
                cluster::common_lb_config::LocalityConfigSpecifier::LocalityWeightedLbConfig(
                    cluster::common_lb_config::LocalityWeightedLbConfig::default(),
                ),
            ),
            ..cluster::CommonLbConfig::default()
        });
    }
    limits(&mut made, policy.connection_pool.as_ref());
    made.outlier_detection = policy.outlier_detection.as_ref().map(outlier);
    if let Some(percent) = policy.outlier_detection.as_ref().and_then(|outlier| outlier.min_health_percent) {
        let common = made.common_lb_config.get_or_insert_default();
        common.healthy_panic_threshold =
            Some(envoy_types::pb::envoy::r#type::v3::Percent { value: f64::from(percent) });
    }
    http_options(&mut made, port.protocol, &policy, proxy.kind == ProxyKind::Sidecar);
    tls::upstream(&mut made, mesh, service, port, &policy);
    made
}

// Envoy's newer place for these settings of DNS is an extension that Istio does not use yet.
#[allow(deprecated)]
fn discovery(made: &mut Cluster, mesh: &Mesh, proxy: &Proxy, service: &Service, port: u32, subset: &str) {
    let kind = match service.resolution {
        Resolution::Static => DiscoveryType::Eds,
        Resolution::Dns => DiscoveryType::StrictDns,
        Resolution::DnsRoundRobin => DiscoveryType::LogicalDns,
        // A gateway is never on the path of the original connection.
        Resolution::Passthrough if service.kubernetes && proxy.kind == ProxyKind::Gateway => DiscoveryType::Eds,
        Resolution::Passthrough => DiscoveryType::OriginalDst,
    };
    match kind {
        DiscoveryType::Eds => {
            made.eds_cluster_config =
                Some(cluster::EdsClusterConfig { eds_config: wire::aggregated(), service_name: made.name.clone() });
        }
        DiscoveryType::StrictDns | DiscoveryType::LogicalDns => {
            let name = made.name.clone();
            made.load_assignment = Some(endpoint::assignment(mesh, proxy, &name, service, port, subset));
            made.dns_lookup_family = cluster::DnsLookupFamily::V4Only.into();
            made.dns_refresh_rate = wire::span(Duration::from_secs(60));
            made.respect_dns_ttl = true;
        }
        _ => made.lb_policy = cluster::LbPolicy::ClusterProvided.into(),
    }
    made.cluster_discovery_type = Some(ClusterDiscoveryType::Type(kind.into()));
}

/// Circuit breakers and connection settings; without a policy nothing is limited.
fn limits(made: &mut Cluster, pool: Option<&ConnectionPool>) {
    let tcp = pool.and_then(|pool| pool.tcp.clone()).unwrap_or_default();
    let http = pool.and_then(|pool| pool.http.clone()).unwrap_or_default();
    let or_all = |limit: Option<u32>| wire::number(limit.filter(|limit| *limit > 0).unwrap_or(u32::MAX));
    made.circuit_breakers = Some(CircuitBreakers {
        thresholds: vec![Thresholds {
            priority: RoutingPriority::Default.into(),
            max_connections: or_all(tcp.max_connections),
            max_pending_requests: or_all(http.http1_max_pending_requests),
            max_requests: or_all(http.http2_max_requests),
            max_retries: or_all(http.max_retries),
            track_remaining: true,
            ..Thresholds::default()
        }],
        ..CircuitBreakers::default()
    });
    if let Some(timeout) = tcp.connect_timeout {
        made.connect_timeout = wire::span(timeout.0);
    }
    if let Some(keepalive) = tcp.tcp_keepalive {
        let seconds = |span: Option<crate::model::api::Span>| {
            span.and_then(|span| u32::try_from(span.0.as_secs()).ok()).and_then(wire::number)
        };
        made.upstream_connection_options = Some(UpstreamConnectionOptions {
            tcp_keepalive: Some(TcpKeepalive {
                keepalive_probes: wire::number(keepalive.probes).filter(|probes| probes.value > 0),
                keepalive_time: seconds(keepalive.time),
                keepalive_interval: seconds(keepalive.interval),
            }),
            ..UpstreamConnectionOptions::default()
        });
    }
}

pub(super) fn http_options(made: &mut Cluster, protocol: Protocol, policy: &TrafficPolicy, sniffs: bool) {
    use http_protocol_options::explicit_http_config::ProtocolConfig;
    use http_protocol_options::{ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig};
    let http = policy.connection_pool.as_ref().and_then(|pool| pool.http.clone()).unwrap_or_default();
    let streams = http.max_concurrent_streams.and_then(wire::number);
    let http2 = Http2ProtocolOptions { max_concurrent_streams: streams, ..Http2ProtocolOptions::default() };
    let upgrade = protocol == Protocol::Http && http.h2_upgrade_policy == "UPGRADE";
    // What was detected on the way in is spoken on the way out.
    let as_client = http.use_client_protocol || (sniffs && protocol == Protocol::Auto);
    let options = if as_client && !protocol.is_http2() {
        Some(UpstreamProtocolOptions::UseDownstreamProtocolConfig(UseDownstreamHttpConfig {
            http_protocol_options: Some(Http1ProtocolOptions::default()),
            http2_protocol_options: Some(http2),
            ..UseDownstreamHttpConfig::default()
        }))
    } else if protocol.is_http2() || upgrade {
        Some(UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
            protocol_config: Some(ProtocolConfig::Http2ProtocolOptions(http2)),
        }))
    } else {
        None
    };
    let tcp = policy.connection_pool.as_ref().and_then(|pool| pool.tcp.clone()).unwrap_or_default();
    let common = Common {
        idle_timeout: http.idle_timeout.or(tcp.idle_timeout).and_then(|timeout| wire::span(timeout.0)),
        max_connection_duration: tcp.max_connection_duration.and_then(|duration| wire::span(duration.0)),
        max_requests_per_connection: http.max_requests_per_connection.filter(|limit| *limit > 0).and_then(wire::number),
        ..Common::default()
    };
    let has_common = common != Common::default();
    if options.is_none() && !has_common {
        return;
    }
    let options = options.unwrap_or_else(|| {
        UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
            protocol_config: Some(ProtocolConfig::HttpProtocolOptions(Http1ProtocolOptions::default())),
        })
    });
    let message = HttpProtocolOptions {
        common_http_protocol_options: has_common.then_some(common),
        upstream_protocol_options: Some(options),
        ..HttpProtocolOptions::default()
    };
    made.typed_extension_protocol_options =
        HashMap::from([(HTTP_OPTIONS.to_owned(), wire::any(HTTP_OPTIONS, &message))]);
}

fn outlier(policy: &Outlier) -> OutlierDetection {
    let fives = policy.consecutive_5xx_errors.or(policy.consecutive_errors);
    let enforced = |limit: Option<u32>| limit.and_then(|limit| wire::number(if limit > 0 { 100 } else { 0 }));
    OutlierDetection {
        consecutive_5xx: fives.filter(|limit| *limit > 0).and_then(wire::number),
        enforcing_consecutive_5xx: enforced(fives),
        consecutive_gateway_failure: policy
            .consecutive_gateway_errors
            .filter(|limit| *limit > 0)
            .and_then(wire::number),
        enforcing_consecutive_gateway_failure: enforced(policy.consecutive_gateway_errors),
        split_external_local_origin_errors: policy.split_external_local_origin_errors,
        consecutive_local_origin_failure: policy.consecutive_local_origin_failures.and_then(wire::number),
        enforcing_consecutive_local_origin_failure: enforced(policy.consecutive_local_origin_failures),
        interval: policy.interval.and_then(|interval| wire::span(interval.0)),
        base_ejection_time: policy.base_ejection_time.and_then(|time| wire::span(time.0)),
        max_ejection_percent: policy.max_ejection_percent.and_then(wire::number),
        // Istio judges by consecutive failures alone.
        enforcing_success_rate: wire::number(0),
        ..OutlierDetection::default()
    }
}

/// A cluster without endpoints: what is sent there fails.
pub(super) fn black_hole(mesh: &Mesh) -> Cluster {
    unlimited(mesh, names::BLACK_HOLE, DiscoveryType::Static)
}

/// A cluster that goes to the address that the client dialled.
pub(super) fn passthrough(mesh: &Mesh, name: &str) -> Cluster {
    Cluster {
        lb_policy: cluster::LbPolicy::ClusterProvided.into(),
        ..unlimited(mesh, name, DiscoveryType::OriginalDst)
    }
}

/// A cluster of the given kind that nothing limits.
pub(super) fn unlimited(mesh: &Mesh, name: &str, kind: DiscoveryType) -> Cluster {
    let mut made = Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(kind.into())),
        connect_timeout: wire::span(mesh.config.connect_timeout.map_or(Duration::from_secs(10), |timeout| timeout.0)),
        ..Cluster::default()
    };
    limits(&mut made, None);
    made
}
