//! One upstream host.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use envoy_types::pb::envoy::config::core::v3::Metadata;

use super::Locality;
use crate::config::address::Address;
use crate::telemetry::counters::Stats;
use crate::telemetry::names::HostStat;

/// A host's place in [`super::EndpointSet::hosts`]; it means nothing in another set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostIndex(pub u32);

/// One upstream host. Source: envoy.config.endpoint.v3.LbEndpoint.
#[derive(Clone)]
pub struct Host {
    /// Where connections go.
    pub address: Address,
    /// `endpoint.hostname`, or the name that resolved to the address; may be empty. For `auto_host_rewrite` and hashing.
    pub hostname: Arc<str>,
    /// Share of the load among the hosts of a locality, at least 1.
    pub weight: u32,
    /// 0 is tried first.
    pub priority: u32,
    /// Region, zone and sub-zone.
    pub locality: Arc<Locality>,
    /// Whether the host takes requests.
    pub health: HostHealth,
    /// `envoy.lb` metadata says `canary: true`.
    pub canary: bool,
    /// Endpoint metadata as configured.
    pub metadata: Option<Arc<Metadata>>,
    /// Counters of this host; kept while an update leaves the address in place.
    pub stats: Arc<Stats<HostStat>>,
    /// Open connections of all cores, counted only where `per_host_thresholds` limits them.
    pub connections: Option<Arc<HostConnections>>,
}

impl Host {
    /// Whether `other`, of an earlier or later set of endpoints, is the same host: its counters and connections go on.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.stats, &other.stats)
    }

    /// The `envoy.lb` metadata value at `hash_key`, the hostname or the address, as hash policies name the host.
    pub fn hash_key(&self, use_hostname: bool) -> String {
        if let Some(key) = self.metadata.as_deref().and_then(|metadata| lb_text(metadata, "hash_key")) {
            return key.to_owned();
        }
        if use_hostname && !self.hostname.is_empty() { self.hostname.to_string() } else { self.address.to_string() }
    }
}

/// What an endpoint says of its hosts, whatever their addresses turn out to be. Fields as in [`Host`].
#[derive(Clone, Debug, PartialEq)]
pub struct HostTemplate {
    /// See [`Host::hostname`].
    pub hostname: Arc<str>,
    /// See [`Host::weight`].
    pub weight: u32,
    /// See [`Host::priority`].
    pub priority: u32,
    /// See [`Host::locality`].
    pub locality: Arc<Locality>,
    /// See [`Host::health`].
    pub health: HostHealth,
    /// See [`Host::canary`].
    pub canary: bool,
    /// See [`Host::metadata`].
    pub metadata: Option<Arc<Metadata>>,
}

impl HostTemplate {
    /// A healthy host of the first priority about which nothing else is known.
    pub fn plain() -> Self {
        Self {
            hostname: Arc::default(),
            weight: 1,
            priority: 0,
            locality: Arc::default(),
            health: HostHealth::default(),
            canary: false,
            metadata: None,
        }
    }

    /// A new host at `address`.
    pub fn host(&self, address: Address, connections_max: Option<u32>, core_count: usize) -> Host {
        Host {
            address,
            hostname: Arc::clone(&self.hostname),
            weight: self.weight,
            priority: self.priority,
            locality: Arc::clone(&self.locality),
            health: self.health,
            canary: self.canary,
            metadata: self.metadata.clone(),
            stats: Arc::new(Stats::new("", core_count)),
            connections: connections_max.map(|limit| Arc::new(HostConnections::new(limit))),
        }
    }
}

/// Whether a host takes requests. Source: envoy.config.core.v3.HealthStatus.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum HostHealth {
    /// `UNKNOWN` or `HEALTHY`.
    #[default]
    Healthy,
    /// Takes requests when healthy hosts are too few.
    Degraded,
    /// Takes requests only in panic.
    Unhealthy,
    /// As unhealthy, and left out when the health of a priority is computed.
    Draining,
}

impl HostHealth {
    /// Envoy's name of the status in admin output.
    pub fn name(self) -> &'static str {
        match self {
            Self::Healthy => "HEALTHY",
            Self::Degraded => "DEGRADED",
            Self::Unhealthy => "UNHEALTHY",
            Self::Draining => "DRAINING",
        }
    }
}

/// An exact limit on the connections that all cores together hold to one host.
/// Source: CircuitBreakers.per_host_thresholds.max_connections.
#[derive(Debug)]
pub struct HostConnections {
    count: AtomicU32,
    count_max: u32,
}

impl HostConnections {
    /// No connection of at most `count_max`.
    pub fn new(count_max: u32) -> Self {
        Self { count: AtomicU32::new(0), count_max }
    }

    /// Counts one more connection, unless the limit is reached.
    pub fn try_acquire(&self) -> bool {
        let more = |count: u32| (count < self.count_max).then_some(count + 1);
        self.count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    /// Counts one connection less.
    pub fn release(&self) {
        let previous = self.count.fetch_sub(1, Ordering::Relaxed);
        debug_assert!(previous > 0, "a connection was released that was never acquired");
    }
}

/// The text at `key` under `envoy.lb`.
pub(super) fn lb_text<'a>(metadata: &'a Metadata, key: &str) -> Option<&'a str> {
    use envoy_types::pb::google::protobuf::value::Kind;
    match metadata.filter_metadata.get("envoy.lb")?.fields.get(key)?.kind.as_ref()? {
        Kind::StringValue(text) => Some(text),
        _ => None,
    }
}

/// Whether `key` under `envoy.lb` is `true`.
pub(super) fn lb_flag(metadata: &Metadata, key: &str) -> bool {
    use envoy_types::pb::google::protobuf::value::Kind;
    let value = metadata.filter_metadata.get("envoy.lb").and_then(|fields| fields.fields.get(key));
    matches!(value.and_then(|value| value.kind.as_ref()), Some(Kind::BoolValue(true)))
}
