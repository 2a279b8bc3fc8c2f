//! Upstream clusters: endpoints, load balancing, circuit breakers, DNS.

pub mod balance;
pub mod circuit_breaker;
pub mod dns;
pub mod eds;
pub mod endpoint_set;
pub mod gauges;
pub mod host;
pub mod locality;
pub mod options;
pub mod original_dst;
mod parse;
pub mod policy;
pub mod priority_load;
pub mod proxy_protocol;

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::Metadata;

pub use balance::{Balancer, Choice, RetryHosts};
pub use circuit_breaker::{Admission, Breakers, Priority, Resource};
pub use dns::DnsPlan;
pub use endpoint_set::EndpointSet;
pub use host::{Host, HostHealth, HostIndex};
pub use locality::Locality;
pub use options::{UpstreamConnectOptions, UpstreamHttp};
pub use policy::Policy;

use self::original_dst::OriginalDst;
use self::proxy_protocol::UpstreamProxyProtocol;
use crate::telemetry::counters::Stats;
use crate::telemetry::names::ClusterStat;
use crate::tls::ClientTls;

/// A cluster's place in [`crate::config::snapshot::Snapshot::clusters`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterIndex(pub u32);

/// One configured cluster. Source: envoy.config.cluster.v3.Cluster.
///
/// Immutable; a change of endpoints makes another one that shares stats, breakers and hosts (see [`Cluster::with_endpoints`]).
#[derive(Clone)]
pub struct Cluster {
    /// Unique among clusters.
    pub name: Arc<str>,
    /// `alt_stat_name` or the name, as `UPSTREAM_CLUSTER` shows it.
    pub shown_name: Arc<str>,
    /// `alt_stat_name` or the name, `:` replaced by `_`; the part after `cluster.` in stat names.
    pub stat_name: Arc<str>,
    /// How endpoints are found.
    pub kind: ClusterKind,
    /// Counters `cluster.<stat_name>.*`.
    pub stats: Arc<Stats<ClusterStat>>,
    /// How long connecting may take. 5 s unless configured.
    pub connect_timeout: Duration,
    /// Soft limit on bytes buffered for one connection. 1 MiB unless configured.
    pub connection_buffer_bytes_max: u32,
    /// HTTP on upstream connections.
    pub http: Arc<UpstreamHttp>,
    /// How sockets are made.
    pub connect: Arc<UpstreamConnectOptions>,
    /// TLS to the endpoints; plain where `None`.
    pub tls: Option<Arc<ClientTls>>,
    /// Connections begin with a PROXY header; `None` sends none.
    pub proxy_protocol: Option<Arc<UpstreamProxyProtocol>>,
    /// How an endpoint is found, for the kind that has none of its own.
    pub original_dst: Option<Arc<OriginalDst>>,
    /// Limits over all cores.
    pub breakers: Arc<Breakers>,
    /// Limit on the connections of all cores to one host, which new hosts of the cluster get too.
    pub host_connections_max: Option<u32>,
    /// How a host is chosen.
    pub policy: Arc<Policy>,
    /// The hosts and what is computed from them.
    pub endpoints: Arc<EndpointSet>,
    /// What to resolve, for the kinds that do.
    pub dns: Option<Arc<DnsPlan>>,
    /// Where assignments come from, for the kind that has some.
    pub eds: Option<Arc<eds::EdsPlan>>,
    /// Optional stats.
    pub track: TrackedStats,
    /// Close connections of all hosts when the set of hosts changes.
    pub close_connections_on_host_set_change: bool,
    /// The configured metadata, for `%CLUSTER_METADATA%`.
    pub metadata: Option<Arc<Metadata>>,
}

/// How a cluster's endpoints are found. Source: Cluster.DiscoveryType.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClusterKind {
    /// As configured.
    #[default]
    Static,
    /// Every address that a name resolves to is a host.
    StrictDns,
    /// A name is one host, which connects to the first address of the latest answer.
    LogicalDns,
    /// As the newest ClusterLoadAssignment says.
    Eds,
    /// Where a connection was going.
    OriginalDst,
}

/// Optional stats of a cluster. Source: TrackClusterStats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrackedStats {
    /// `upstream_rq_timeout_budget_percent_used`.
    pub timeout_budgets: bool,
    /// `upstream_rq_headers_size` and its kin.
    pub request_response_sizes: bool,
}

impl Cluster {
    /// The same cluster with other endpoints; everything else is shared.
    pub fn with_endpoints(&self, endpoints: EndpointSet) -> Self {
        Self { endpoints: Arc::new(endpoints), ..self.clone() }
    }

    /// Whether `other` differs in its endpoints alone. A cluster that was configured anew has breakers of its own.
    pub fn is_same_configuration(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.breakers, &other.breakers)
    }

    /// The host at `index`.
    pub fn host(&self, index: HostIndex) -> Option<&Host> {
        self.endpoints.hosts.get(index.0 as usize)
    }
}
