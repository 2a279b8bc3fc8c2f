//! What can be discovered.

use std::fmt;

use torus_xds::subscription::Protocol;

/// A type of resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Cluster.
    Cluster,
    /// ClusterLoadAssignment.
    Endpoints,
    /// Listener.
    Listener,
    /// RouteConfiguration.
    Routes,
    /// Secret.
    Secret,
}

impl Kind {
    /// Every one, in the order in which a gateway needs them.
    pub const ALL: [Self; 5] = [Self::Cluster, Self::Endpoints, Self::Listener, Self::Routes, Self::Secret];

    /// `type_url` of its messages.
    pub fn type_url(self) -> &'static str {
        match self {
            Self::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Self::Endpoints => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Self::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Self::Routes => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
            Self::Secret => "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
        }
    }

    /// The kind of a type URL.
    pub fn of(type_url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == type_url)
    }

    /// A SotW answer names everything that there is, so that what it leaves out is deleted.
    pub fn absence_deletes(self) -> bool {
        matches!(self, Self::Cluster | Self::Listener)
    }

    /// The method of a server that has this kind alone. Source: envoy/service/*/v3/*ds.proto.
    pub fn method(self, protocol: Protocol) -> &'static str {
        match (self, protocol) {
            (Self::Cluster, Protocol::Sotw) => "/envoy.service.cluster.v3.ClusterDiscoveryService/StreamClusters",
            (Self::Cluster, Protocol::Delta) => "/envoy.service.cluster.v3.ClusterDiscoveryService/DeltaClusters",
            (Self::Endpoints, Protocol::Sotw) => "/envoy.service.endpoint.v3.EndpointDiscoveryService/StreamEndpoints",
            (Self::Endpoints, Protocol::Delta) => "/envoy.service.endpoint.v3.EndpointDiscoveryService/DeltaEndpoints",
            (Self::Listener, Protocol::Sotw) => "/envoy.service.listener.v3.ListenerDiscoveryService/StreamListeners",
            (Self::Listener, Protocol::Delta) => "/envoy.service.listener.v3.ListenerDiscoveryService/DeltaListeners",
            (Self::Routes, Protocol::Sotw) => "/envoy.service.route.v3.RouteDiscoveryService/StreamRoutes",
            (Self::Routes, Protocol::Delta) => "/envoy.service.route.v3.RouteDiscoveryService/DeltaRoutes",
            (Self::Secret, Protocol::Sotw) => "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets",
            (Self::Secret, Protocol::Delta) => "/envoy.service.secret.v3.SecretDiscoveryService/DeltaSecrets",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Cluster => "cluster",
            Self::Endpoints => "endpoints of",
            Self::Listener => "listener",
            Self::Routes => "route table",
            Self::Secret => "secret",
        })
    }
}
