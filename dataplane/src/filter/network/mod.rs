//! Network filters before the one that serves a connection: each lets a new connection pass or ends it.
//!
//! They run once, in order, when everything about a connection is known: its addresses, what its first bytes say, and under TLS who
//! the client is. Envoy asks some of them earlier; what they decide is the same.

pub mod connection_limit;
pub mod local_ratelimit;
pub mod rbac;

use std::sync::Arc;
use std::time::Duration;

use self::connection_limit::ConnectionLimit;
use self::local_ratelimit::LocalRateLimit;
use self::rbac::NetworkRbac;
use crate::downstream::ConnectionInfo;
use crate::telemetry::counters::Core;
use torus_ring::Nanos;

/// A configured network filter.
pub enum ConnectionFilter {
    /// No more than so many connections at once.
    ConnectionLimit(Arc<ConnectionLimit>),
    /// No more than so many connections in a time.
    LocalRateLimit(Arc<LocalRateLimit>),
    /// Only connections of some peers.
    Rbac(Box<NetworkRbac>),
    /// The server name that the client asked for is the TCP proxy's cluster.
    /// Source: envoy.extensions.filters.network.sni_cluster.v3.SniCluster.
    SniCluster,
}

/// What a filter says of a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// The next filter is asked.
    Pass,
    /// It is closed, after this long.
    End(Duration),
}

impl ConnectionFilter {
    /// Judges a new connection. What passed is given back with [`Self::release`].
    fn admit(&self, core: Core, now: Nanos, info: &ConnectionInfo) -> Admission {
        match self {
            Self::ConnectionLimit(limit) => limit.admit(core),
            Self::LocalRateLimit(limit) => limit.admit(core, now),
            Self::Rbac(rbac) => rbac.admit(core, info),
            Self::SniCluster => Admission::Pass,
        }
    }

    fn release(&self, core: Core) {
        match self {
            Self::ConnectionLimit(limit) => limit.release(core),
            Self::LocalRateLimit(_) | Self::Rbac(_) | Self::SniCluster => {}
        }
    }
}

/// Asks each filter in turn. Where one ends the connection, nothing is left to give back.
pub fn admit(filters: &[ConnectionFilter], core: Core, now: Nanos, info: &ConnectionInfo) -> Admission {
    for (place, filter) in filters.iter().enumerate() {
        let verdict = filter.admit(core, now, info);
        if verdict != Admission::Pass {
            release(filters.get(..place).unwrap_or_default(), core);
            return verdict;
        }
    }
    Admission::Pass
}

/// Gives back what a connection that passed has taken.
pub fn release(filters: &[ConnectionFilter], core: Core) {
    for filter in filters {
        filter.release(core);
    }
}
