//! The configuration that workers read: immutable, complete, resolved to indices. A request sees one snapshot (invariant 9).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::cluster::{Cluster, ClusterIndex};
use crate::config::address::Address;
use crate::downstream::HttpConnectionManager;
use crate::downstream::tcp::TcpProxy;
use crate::listener::chain_match::{ChainIndex, ChainMatcher};
use crate::listener::filter::ListenerFilter;
use crate::telemetry::counters::Stats;
use crate::telemetry::names::ListenerStat;
use crate::tls::ServerTls;

/// Everything that a worker needs to serve, from one moment.
#[derive(Default)]
pub struct Snapshot {
    /// Grows by one with each publication.
    pub version: u64,
    /// Listeners in configuration order.
    pub listeners: Vec<Arc<Listener>>,
    /// Clusters by [`ClusterIndex`].
    pub clusters: Vec<Arc<Cluster>>,
    /// For `cluster_header` and admin; routes hold indices.
    pub cluster_by_name: HashMap<Box<str>, ClusterIndex>,
}

impl Snapshot {
    /// The cluster at `index`.
    pub fn cluster(&self, index: ClusterIndex) -> Option<&Arc<Cluster>> {
        self.clusters.get(index.0 as usize)
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
    /// Open connections allowed at once on this listener, all workers together, if limited.
    pub connection_count_max: Option<u64>,
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
    /// Which way the traffic flows, for `drain_listeners?inboundonly`.
    pub direction: TrafficDirection,
}

impl Listener {
    /// The filter chain at `index`, once a connection has one.
    pub fn chain(&self, index: Option<ChainIndex>) -> Option<&FilterChain> {
        self.chains.get(index?.0 as usize)
    }

    /// Each address with the options of its socket, the main one first.
    pub fn sockets(&self) -> impl Iterator<Item = (&Address, &ListenSocketOptions)> {
        self.addresses.iter().zip(std::iter::once(&self.socket).chain(&self.additional_sockets))
    }
}

/// Options set on a listening socket and on the connections it accepts.
#[derive(Clone, Debug, Default)]
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

/// The filters of one chain: one terminal network filter.
pub struct FilterChain {
    /// For access logs and admin.
    pub name: Box<str>,
    /// TLS that ends here; plain where `None`.
    pub tls: Option<ServerTls>,
    /// A TLS handshake that takes longer is given up.
    pub handshake_timeout: Duration,
    /// What serves the connection.
    pub terminal: NetworkFilter,
}

impl FilterChain {
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
