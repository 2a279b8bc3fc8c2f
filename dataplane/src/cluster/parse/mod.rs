//! `envoy.config.cluster.v3.Cluster` becomes a [`Cluster`].

mod connect;
mod dns;
mod eds;
mod endpoints;
mod http;
mod original_dst;
mod policy;
mod thresholds;

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3 as proto;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::clusters::dns::v3::DnsCluster;
use envoy_types::pb::envoy::extensions::transport_sockets::proxy_protocol::v3::ProxyProtocolUpstreamTransport;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::UpstreamTlsContext;

use super::eds::EdsPlan;
use super::options::UpstreamProtocol;
use super::original_dst::OriginalDst;
use super::proxy_protocol::UpstreamProxyProtocol;
use super::{Cluster, ClusterKind, EndpointSet, Policy, TrackedStats, UpstreamConnectOptions, UpstreamHttp};
use crate::config::parse::context::type_name;
use crate::config::parse::{ParseContext, proxy_protocol};
use crate::config::reject::Refused;
use crate::tls::{ClientTls, parse_client};

/// Envoy's default for `connect_timeout`.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Envoy's default for `per_connection_buffer_limit_bytes`.
const CONNECTION_BUFFER_BYTES_MAX: u32 = 1024 * 1024;

impl Cluster {
    /// The cluster that `config` describes; every fault is in `context.problems`.
    pub fn parse(config: &proto::Cluster, context: &mut ParseContext) -> Result<Self, Refused> {
        let start = context.problems.checkpoint();
        let name = context.non_empty("name", &config.name);
        let discovery = Discovery::parse(config, context);
        let policy = policy::parse(config, context);
        let connect_timeout = match context.duration("connect_timeout", &config.connect_timeout) {
            Ok(Some(Duration::ZERO)) => Err(context.reject("connect_timeout", "must be greater than 0s")),
            other => other,
        };
        let http = http::parse(config, context);
        let connect = connect::parse(config, context);
        let shown_name = if config.alt_stat_name.is_empty() { &config.name } else { &config.alt_stat_name };
        let stat_name: Arc<str> = shown_name.replace(':', "_").into();
        let transport = match &config.transport_socket {
            Some(socket) => context.within("transport_socket", |context| transport(socket, &stat_name, context)),
            None => Ok(Transport::default()),
        };
        let thresholds = thresholds::parse(config, context);
        let (discovery, policy) = (discovery?, policy?);
        let assignment = endpoints::parse(config, &discovery, context);
        context.problems.clean_since(start)?;
        let (thresholds, assignment) = (thresholds?, assignment?);

        let (http, transport) = (http?, transport?);
        if transport.proxy_protocol.is_some() && http.protocol != UpstreamProtocol::Http1 {
            // One HTTP/2 connection carries many clients, and its header can name one.
            return Err(
                context.reject("transport_socket", "the PROXY protocol goes with HTTP/1.1 and TCP, not with HTTP/2")
            );
        }
        if http.protocol == UpstreamProtocol::ByAlpn && transport.tls.is_none() {
            return Err(context.reject(
                "transport_socket",
                "`auto_config` lets the TLS handshake choose the version of HTTP, so it needs TLS; without it name one in explicit_http_config",
            ));
        }
        let policy = shared(policy, &POLICY);
        let hosts = endpoints::static_hosts(&assignment, thresholds.host_connections_max, context.core_count);
        let endpoints = EndpointSet::new(hosts, &assignment.options, &policy);
        let kind = discovery.kind();
        let name: Arc<str> = name?.into();
        Ok(Self {
            shown_name: if **shown_name == *name { Arc::clone(&name) } else { shown_name.as_str().into() },
            stat_name: if *stat_name == *name { Arc::clone(&name) } else { Arc::clone(&stat_name) },
            stats: context.registry.group(&format!("cluster.{stat_name}.")),
            name,
            kind,
            connect_timeout: connect_timeout?.unwrap_or(CONNECT_TIMEOUT),
            connection_buffer_bytes_max: config
                .per_connection_buffer_limit_bytes
                .map_or(CONNECTION_BUFFER_BYTES_MAX, |limit| limit.value),
            http: shared(http, &HTTP),
            connect: shared(connect?, &CONNECT),
            tls: transport.tls.map(Arc::new),
            proxy_protocol: transport.proxy_protocol.map(Arc::new),
            // The config thread has a core of its own and sends no requests.
            breakers: Arc::new(thresholds.breakers(context.core_count.saturating_sub(1))),
            host_connections_max: thresholds.host_connections_max,
            policy,
            endpoints: Arc::new(endpoints),
            eds: discovery.eds().map(Arc::new),
            original_dst: discovery.original_dst().map(Arc::new),
            dns: discovery.plan(assignment).map(Arc::new),
            track: tracked(config),
            close_connections_on_host_set_change: config
                .common_lb_config
                .as_ref()
                .is_some_and(|common| common.close_connections_on_host_set_change),
            metadata: config.metadata.clone().map(Arc::new),
        })
    }
}

/// How endpoints are found, with what each way needs.
enum Discovery {
    Static,
    Dns(dns::Settings),
    Eds(EdsPlan),
    OriginalDst(OriginalDst),
}

impl Discovery {
    fn parse(config: &proto::Cluster, context: &mut ParseContext) -> Result<Self, Refused> {
        let mut discovery = Self::parse_kind(config, context)?;
        if let Self::Dns(settings) = &mut discovery {
            settings.wait_for_warm = config.wait_for_warm_on_init.is_none_or(|wait| wait.value);
        }
        Ok(discovery)
    }

    fn parse_kind(config: &proto::Cluster, context: &mut ParseContext) -> Result<Self, Refused> {
        use proto::cluster::{ClusterDiscoveryType, DiscoveryType};
        let kind = match &config.cluster_discovery_type {
            None => DiscoveryType::Static,
            Some(ClusterDiscoveryType::Type(kind)) => {
                DiscoveryType::try_from(*kind).map_err(|_| context.reject("type", "is no known discovery type"))?
            }
            Some(ClusterDiscoveryType::ClusterType(custom)) => {
                return context.within("cluster_type", |context| Self::custom(custom, context));
            }
        };
        match kind {
            DiscoveryType::Static => Ok(Self::Static),
            DiscoveryType::StrictDns => Ok(Self::Dns(dns::legacy(config, false, context)?)),
            DiscoveryType::LogicalDns => Ok(Self::Dns(dns::legacy(config, true, context)?)),
            DiscoveryType::Eds => Ok(Self::Eds(eds::parse(config, context)?)),
            DiscoveryType::OriginalDst => Ok(Self::OriginalDst(original_dst::parse(config, context)?)),
        }
    }

    fn custom(custom: &proto::cluster::CustomClusterType, context: &mut ParseContext) -> Result<Self, Refused> {
        let config = context.required("typed_config", &custom.typed_config)?;
        let name = type_name(&config.type_url);
        if name != <DnsCluster as prost::Name>::full_name() {
            return Err(
                context.reject("typed_config", format!("cluster type `{name}` is not there yet in this version"))
            );
        }
        let config: DnsCluster = context.unpack("typed_config", config)?;
        Ok(Self::Dns(context.within("typed_config", |context| dns::extension(&config, context))?))
    }

    fn kind(&self) -> ClusterKind {
        match self {
            Self::Static => ClusterKind::Static,
            Self::Dns(settings) if settings.logical => ClusterKind::LogicalDns,
            Self::Dns(_) => ClusterKind::StrictDns,
            Self::Eds(_) => ClusterKind::Eds,
            Self::OriginalDst(_) => ClusterKind::OriginalDst,
        }
    }

    fn eds(&self) -> Option<EdsPlan> {
        match self {
            Self::Eds(plan) => Some(plan.clone()),
            Self::Static | Self::Dns(_) | Self::OriginalDst(_) => None,
        }
    }

    fn original_dst(&self) -> Option<OriginalDst> {
        match self {
            Self::OriginalDst(options) => Some(options.clone()),
            Self::Static | Self::Dns(_) | Self::Eds(_) => None,
        }
    }

    fn plan(self, assignment: endpoints::Assignment) -> Option<super::DnsPlan> {
        match self {
            Self::Static | Self::Eds(_) | Self::OriginalDst(_) => None,
            Self::Dns(settings) => Some(settings.plan(assignment)),
        }
    }
}

/// What a connection to an endpoint begins with.
#[derive(Default)]
struct Transport {
    /// First a PROXY header.
    proxy_protocol: Option<UpstreamProxyProtocol>,
    /// Then TLS.
    tls: Option<ClientTls>,
}

fn transport(
    socket: &core::TransportSocket,
    stat_name: &str,
    context: &mut ParseContext,
) -> Result<Transport, Refused> {
    let Some(core::transport_socket::ConfigType::TypedConfig(packed)) = &socket.config_type else {
        return Err(context.reject("typed_config", "is required"));
    };
    match type_name(&packed.type_url) {
        "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer" => Ok(Transport::default()),
        "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext" => {
            let config: UpstreamTlsContext = context.unpack("typed_config", packed)?;
            let prefix = format!("cluster.{stat_name}.");
            let tls = context.within("typed_config", |context| parse_client(&config, &prefix, context))?;
            Ok(Transport { tls: Some(tls), ..Transport::default() })
        }
        "envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport" => {
            let config: ProxyProtocolUpstreamTransport = context.unpack("typed_config", packed)?;
            context.within("typed_config", |context| {
                let header = context.required("config", &config.config)?;
                let header = context.within("config", |context| proxy_protocol::parse_upstream(header, context));
                let inner = context.required("transport_socket", &config.transport_socket)?;
                let inner = context.within("transport_socket", |context| transport(inner, stat_name, context))?;
                if inner.proxy_protocol.is_some() {
                    return Err(context.reject("transport_socket", "sends a PROXY header of its own; one is enough"));
                }
                Ok(Transport { proxy_protocol: Some(header?), ..inner })
            })
        }
        other => Err(context.reject("typed_config", format!("`{other}` is not there yet in this version"))),
    }
}

fn tracked(config: &proto::Cluster) -> TrackedStats {
    let track = config.track_cluster_stats.unwrap_or_default();
    #[expect(deprecated, reason = "Envoy still honours it")]
    let timeout_budgets = track.timeout_budgets || config.track_timeout_budgets;
    TrackedStats { timeout_budgets, request_response_sizes: track.request_response_sizes }
}

static POLICY: LazyLock<Arc<Policy>> = LazyLock::new(Arc::default);
static HTTP: LazyLock<Arc<UpstreamHttp>> = LazyLock::new(Arc::default);
static CONNECT: LazyLock<Arc<UpstreamConnectOptions>> = LazyLock::new(Arc::default);

/// `value`, in the memory of the default where it equals that: thousands of clusters usually do.
fn shared<T: PartialEq>(value: T, default: &Arc<T>) -> Arc<T> {
    if value == **default { Arc::clone(default) } else { Arc::new(value) }
}

#[cfg(test)]
mod tests;
