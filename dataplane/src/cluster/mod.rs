//! Upstream clusters: endpoints, load balancing, circuit breakers, DNS.

/// A cluster's place in [`crate::config::snapshot::Snapshot::clusters`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClusterIndex(pub u32);

/// One configured cluster. Source: envoy.config.cluster.v3.Cluster.
pub struct Cluster {}
