//! The configuration that workers read: immutable, complete, resolved to indices. A request sees one snapshot (invariant 9).

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crate::cluster::{Cluster, ClusterIndex};
use crate::config::address::Address;
use crate::downstream::tcp::TcpProxy;
use crate::downstream::{ConnectionInfo, HttpConnectionManager};
use crate::filter::network::ConnectionFilter;
use crate::listener::chain_match::{ChainIndex, ChainMatcher};
use crate::listener::filter::ListenerFilter;
use crate::listener::socket::ListenSockets;
use crate::route::RouteTable;
use crate::telemetry::counters::Stats;
use crate::telemetry::names::ListenerStat;
use crate::tls::ServerTls;
use crate::worker::connection_limit::ConnectionCount;

/// Everything that a worker needs to serve, from one moment.
#[derive(Clone, Default)]
pub struct Snapshot {
    /// Grows by one with each publication.
    pub version: u64,
    /// Listeners in configuration order. A connection keeps its own, which may have been replaced here since.
    pub listeners: Vec<Arc<Listener>>,
    /// Where workers accept, and for which of the listeners.
    pub listening: Vec<Listening>,
    /// Discovered route tables by [`RouteIndex`]; `None` until one came. A name keeps its place for the life of the process.
    pub route_tables: Vec<Option<Arc<RouteTable>>>,
    /// Clusters by [`ClusterIndex`]; `None` while there is none of that name. A name keeps its place for the life of the process.
    pub clusters: Vec<Option<Arc<Cluster>>>,
    /// For `cluster_header` and admin; routes hold indices.
    pub cluster_by_name: Arc<HashMap<Box<str>, ClusterIndex>>,
}

/// The sockets of one address, and the listener that takes their connections now.
#[derive(Clone)]
pub struct Listening {
    /// Serves new connections.
    pub listener: Arc<Listener>,
    /// They outlive an update of the listener, and with them the connections that the kernel has accepted.
    pub sockets: Arc<ListenSockets>,
}

/// A discovered route table's place in [`Snapshot::route_tables`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteIndex(pub u32);

impl Snapshot {
    /// Whether `other` has the same content, shared with this one; versions may differ.
    pub fn is_shared_with(&self, other: &Self) -> bool {
        fn same<T>(one: Option<&Arc<T>>, other: Option<&Arc<T>>) -> bool {
            match (one, other) {
                (Some(one), Some(other)) => Arc::ptr_eq(one, other),
                (None, None) => true,
                _ => false,
            }
        }
        fn all<T>(one: &[Option<Arc<T>>], other: &[Option<Arc<T>>]) -> bool {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same(one.as_ref(), other.as_ref()))
        }
        // A listener's sockets change with the listener.
        self.listeners.len() == other.listeners.len()
            && self.listeners.iter().zip(&other.listeners).all(|(one, other)| Arc::ptr_eq(one, other))
            && all(&self.route_tables, &other.route_tables)
            && all(&self.clusters, &other.clusters)
    }

    /// The cluster at `index`.
    pub fn cluster(&self, index: ClusterIndex) -> Option<&Arc<Cluster>> {
        self.clusters.get(index.0 as usize)?.as_ref()
    }

    /// The route table at `index`, if it came.
    pub fn route_table(&self, index: RouteIndex) -> Option<&RouteTable> {
        self.route_tables.get(index.0 as usize)?.as_deref()
    }

    /// Every cluster that is there.
    pub fn live_clusters(&self) -> impl Iterator<Item = (ClusterIndex, &Arc<Cluster>)> {
        let places = (0u32..).map(ClusterIndex).zip(&self.clusters);
        places.filter_map(|(index, cluster)| Some((index, cluster.as_ref()?)))
    }

    /// The cluster called `name`.
    pub fn cluster_named(&self, name: &str) -> Option<(ClusterIndex, &Arc<Cluster>)> {
        let index = *self.cluster_by_name.get(name)?;
        Some((index, self.cluster(index)?))
    }
}

/// One configured listener. Source: envoy.config.listener.v3.Listener.
pub struct Listener {
    /// Unique; Envoy makes one from the address where it is empty.
    pub name: Box<str>,
    /// The main address and `additional_addresses`, in order.
    pub addresses: Vec<Address>,
    /// One socket a worker (`SO_REUSEPORT`) or one shared by all.
    pub reuse_port: bool,
    /// `listen(2)` backlog.
    pub backlog: u32,
    /// Soft limit on bytes buffered for one connection.
    pub connection_buffer_bytes_max: u32,
    /// Open connections of all workers, and how many are allowed at once.
    pub connections: Arc<ConnectionCount>,
    /// Whether its connections are to end because the listener was replaced or removed.
    pub drain: ListenerDrain,
    /// Accepts handled in one turn of the loop.
    pub accepts_per_turn_max: Option<u32>,
    /// Socket options for the listening socket of the main address, and keep-alive for what it accepts.
    pub socket: ListenSocketOptions,
    /// The same for each of `additional_addresses`.
    pub additional_sockets: Vec<ListenSocketOptions>,
    /// What may serve a connection, by [`ChainIndex`].
    pub chains: Vec<FilterChain>,
    /// Which of them serves it.
    pub chain_matcher: ChainMatcher,
    /// Look at a connection's first bytes before its chain is chosen, in order.
    pub filters: Vec<ListenerFilter>,
    /// Filters that take longer are given up. Source: Listener.listener_filters_timeout, 15 s.
    pub filters_timeout: Option<Duration>,
    /// A connection whose filters took too long goes on with what is known, instead of being closed.
    pub filters_timeout_continues: bool,
    /// Counters `listener.<address>.*`.
    pub stats: Arc<Stats<ListenerStat>>,
    /// `true` for the admin-like listeners that the global connection limit leaves alone.
    pub ignore_global_connection_limit: bool,
    /// A connection whose destination was restored goes to the listener with that address, where there is one.
    pub use_original_dst: bool,
    /// It has sockets of its own. One without gets its connections from a listener with `use_original_dst`.
    pub binds: bool,
    /// Which way the traffic flows, for `drain_listeners?inboundonly`.
    pub direction: TrafficDirection,
}

impl Listener {
    /// The filter chain at `index`, once a connection has one.
    pub fn chain(&self, index: Option<ChainIndex>) -> Option<&FilterChain> {
        self.chains.get(index?.0 as usize)
    }

    /// Each address that is listened on, with the options of its socket, the main one first.
    pub fn sockets(&self) -> impl Iterator<Item = (&Address, &ListenSocketOptions)> {
        let bound: &[Address] = if self.binds { &self.addresses } else { &[] };
        bound.iter().zip(std::iter::once(&self.socket).chain(&self.additional_sockets))
    }
}

/// When a listener began to drain, if it did.
#[derive(Debug, Default)]
pub struct ListenerDrain {
    began: OnceLock<Instant>,
}

impl ListenerDrain {
    /// New connections go elsewhere from now on; the first call counts.
    pub fn begin(&self) {
        let _ = self.began.set(Instant::now());
    }

    /// How long it has been draining; `None` for one that serves.
    #[inline]
    pub fn passed(&self) -> Option<Duration> {
        self.began.get().map(Instant::elapsed)
    }
}

/// Options set on a listening socket and on the connections it accepts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListenSocketOptions {
    /// `IP_FREEBIND`.
    pub freebind: bool,
    /// `IP_TRANSPARENT`.
    pub transparent: bool,
    /// `TCP_FASTOPEN` queue length.
    pub fast_open_queue: Option<u32>,
    /// Keep-alive probes on accepted connections.
    pub keepalive: Option<TcpKeepalive>,
    /// An IPv6 socket takes IPv4 too (`ipv4_compat`).
    pub ipv4_compat: bool,
    /// `mode` of a unix socket.
    pub pipe_mode: Option<u32>,
    /// Raw options from `socket_options`, in order.
    pub raw: Vec<RawSocketOption>,
}

/// TCP keep-alive settings; `None` leaves the kernel's default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpKeepalive {
    /// Probes without answer before the connection is dropped.
    pub probe_count: Option<u32>,
    /// Idle time before the first probe.
    pub idle: Option<Duration>,
    /// Time between probes.
    pub interval: Option<Duration>,
}

/// One `setsockopt` call as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawSocketOption {
    /// When it is made.
    pub state: SocketState,
    /// Protocol level, for instance `SOL_SOCKET`.
    pub level: i32,
    /// Option name.
    pub name: i32,
    /// Option value, in native byte order for integers.
    pub value: Box<[u8]>,
}

/// When a socket option is set. Source: envoy.config.core.v3.SocketOption.SocketState.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketState {
    /// Before `bind(2)`.
    Prebind,
    /// Between `bind(2)` and `listen(2)`.
    Bound,
    /// After `listen(2)`.
    Listening,
}

/// Which way a listener's traffic flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrafficDirection {
    #[default]
    Unspecified,
    Inbound,
    Outbound,
}

/// The filters of one chain: any number that let a connection pass or end it, and one that serves it.
pub struct FilterChain {
    /// For access logs and admin.
    pub name: Box<str>,
    /// TLS that ends here; plain where `None`.
    pub tls: Option<ServerTls>,
    /// A TLS handshake that takes longer is given up.
    pub handshake_timeout: Duration,
    /// What lets a connection pass before that.
    pub filters: Vec<ConnectionFilter>,
    /// What serves the connection.
    pub terminal: NetworkFilter,
}

impl FilterChain {
    /// Whether a client that proved who it is in a handshake would be believed today.
    #[inline]
    pub fn still_believes(&self, connection: &ConnectionInfo) -> bool {
        match (&self.tls, &connection.tls) {
            (Some(tls), Some(client)) => tls.still_believes(&connection.trust_epoch, client),
            _ => true,
        }
    }

    /// The HTTP connection manager, where that serves the connection.
    pub fn http(&self) -> Option<&Arc<HttpConnectionManager>> {
        match &self.terminal {
            NetworkFilter::Http(manager) => Some(manager),
            NetworkFilter::Tcp(_) | NetworkFilter::DirectResponse(_) => None,
        }
    }
}

/// A terminal network filter.
pub enum NetworkFilter {
    /// HTTP connection manager.
    Http(Arc<HttpConnectionManager>),
    /// TCP proxy.
    Tcp(Box<TcpProxy>),
    /// These bytes, and then the end. Source: envoy.extensions.filters.network.direct_response.v3.Config.
    DirectResponse(Arc<[u8]>),
}
