//! A client's connection that is passed on as bytes: the TCP proxy.
//!
//! ```text
//! TLS handshake, where the chain has TLS ─ cluster ─ endpoint ─ connected ─ bytes both ways ─ both sides ended ─ closed
//!                                             └ refused or late: the next attempt, or closed
//! ```
//! Each side's end is passed on alone, so that a half-closed connection stays half-closed. A reset, or a TLS connection that was
//! cut without a word, resets the other side: nobody takes what was cut for whole.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use torus_codec::HeaderMap;
use torus_ring::Nanos;
use xxhash_rust::xxh64::xxh64;

use super::connection::{Connection, Rest};
use crate::cluster::ClusterIndex;
use crate::cluster::circuit_breaker::Priority;
use crate::exchange::attempt::connect_failure;
use crate::exchange::core_state::CoreState;
use crate::filter::network::ConnectionFilter;
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::counters::Stats;
use crate::telemetry::format::{FormatContext, LogType};
use crate::telemetry::names::{ClusterStat, TcpStat};
use crate::telemetry::stream_info::{ResponseFlag, StreamInfo};
use crate::tls::{ClientTls, TlsError};
use crate::transport::Transport;
use crate::upstream::{AcquireError, Lease, UpstreamStream};

/// The TCP proxy, parsed. Source: envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.
pub struct TcpProxy {
    /// `tcp.<stat_prefix>.`
    pub stats: Arc<Stats<TcpStat>>,
    /// Where connections go, by weight.
    pub clusters: Vec<WeightedCluster>,
    /// The sum of their weights.
    pub weight_total: u64,
    /// The client's address chooses the endpoint in clusters that hash.
    pub hash_source_ip: bool,
    /// No byte in either direction. 1 h.
    pub idle_timeout: Option<Duration>,
    /// Age of a connection.
    pub duration_max: Option<Duration>,
    /// Endpoints tried before a connection is given up.
    pub connect_attempts_max: u32,
    /// Where connections are logged when they end.
    pub access_logs: Vec<AccessLog>,
}

/// A share of the connections.
pub struct WeightedCluster {
    /// Where it goes.
    pub cluster: TcpTarget,
    /// How large it is.
    pub weight: u32,
}

/// A cluster of the TCP proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TcpTarget {
    /// Its place was known when the listener was read.
    Index(ClusterIndex),
    /// It may come later.
    Named(Box<str>),
}

impl TcpProxy {
    /// The cluster for a connection that drew `draw`, which is below the sum of the weights.
    fn cluster(&self, draw: u64) -> Option<&TcpTarget> {
        let mut passed = 0;
        let chosen = self.clusters.iter().find(|share| {
            passed += u64::from(share.weight);
            draw < passed
        });
        Some(&chosen?.cluster)
    }

    /// Serves the connection to its end; what becomes of it.
    pub async fn serve(&self, core: &Rc<CoreState>, connection: &mut Connection) -> Rest {
        self.stats.increment(core.core, TcpStat::DownstreamCxTotal);
        let mut info = StreamInfo::default();
        let mut moved = (0, 0);
        let rest = match self.connect(core, connection, &mut info).await {
            Some((mut lease, server)) => match lease.stream() {
                Some(UpstreamStream::Http1(upstream)) => {
                    info.upstream_local.clone_from(&upstream.local);
                    info.upstream_connection_id = upstream.id;
                    info.upstream_tls = upstream.socket.tls().cloned();
                    let passed = self.pass(core, connection, &mut upstream.socket, server).await;
                    upstream.is_closed_by_peer = passed.by_endpoint;
                    info.upstream_wire_bytes_received = upstream.socket.bytes_received();
                    info.upstream_wire_bytes_sent = upstream.socket.bytes_sent();
                    moved = passed.moved;
                    passed.flag.into_iter().for_each(|flag| info.flags.set(flag));
                    passed.rest
                }
                Some(UpstreamStream::Http2(_)) | None => Rest::Close,
            },
            None => Rest::Close,
        };
        self.stats.add(core.core, TcpStat::DownstreamCxRxBytesTotal, moved.0);
        self.stats.add(core.core, TcpStat::DownstreamCxTxBytesTotal, moved.1);
        (info.body_bytes_received, info.body_bytes_sent) = moved;
        self.log(core, connection, info);
        rest
    }

    /// Logs a connection whose handshake failed.
    pub fn log_failed_handshake(&self, core: &CoreState, connection: &Connection, error: &TlsError) {
        self.log(
            core,
            connection,
            StreamInfo { downstream_transport_failure: error.reason(), ..StreamInfo::default() },
        );
    }

    fn log(&self, core: &CoreState, connection: &Connection, mut info: StreamInfo) {
        if self.access_logs.is_empty() {
            return;
        }
        let lasted = core.ring.now().since(connection.opened_at);
        let from = &connection.info;
        info.start = core.wall().checked_sub(lasted);
        info.complete = Some(lasted);
        info.stream_id = core.next_stream_id();
        info.connection_id = from.id;
        info.downstream_wire_bytes_received = connection.client.socket.bytes_received();
        info.downstream_wire_bytes_sent = connection.client.socket.bytes_sent();
        info.downstream_local = Some(from.local.clone());
        info.downstream_direct_remote = Some(from.direct_remote.clone());
        info.downstream_remote = Some(from.remote.clone());
        info.downstream_tls.clone_from(&from.tls);
        info.inspected_name.clone_from(&from.inspected_name);
        info.listener_name.push_str(&connection.listener.name);
        if let Some(chain) = connection.listener.chain(from.chain) {
            info.filter_chain_name.push_str(&chain.name);
        }
        let request = HeaderMap::default();
        let now = core.wall();
        let context = FormatContext { log_type: LogType::TcpConnectionEnd, now, ..FormatContext::new(&info, &request) };
        let random = core.random.borrow_mut().next_u64();
        let mut buffers = core.log_buffers.borrow_mut();
        for log in &self.access_logs {
            log.log(&mut buffers, &context, random);
        }
    }

    /// A connection to an endpoint, after as many attempts as allowed.
    async fn connect(
        &self,
        core: &Rc<CoreState>,
        connection: &Connection,
        info: &mut StreamInfo,
    ) -> Option<(Lease, Option<ServerTrust>)> {
        let draw = core.random.borrow_mut().below(self.weight_total.max(1));
        let snapshot = core.snapshot();
        let chain = connection.listener.chain(connection.info.chain);
        let by_name =
            chain.is_some_and(|chain| chain.filters.iter().any(|it| matches!(it, ConnectionFilter::SniCluster)));
        let by_name = connection.info.server_name().filter(|name| by_name && !name.is_empty());
        let by_name = by_name.map(|name| TcpTarget::Named(name.into()));
        let found = by_name.as_ref().or_else(|| self.cluster(draw)).and_then(|target| match target {
            TcpTarget::Index(index) => Some((*index, Arc::clone(snapshot.cluster(*index)?))),
            TcpTarget::Named(name) => snapshot.cluster_named(name).map(|(index, cluster)| (index, Arc::clone(cluster))),
        });
        drop(snapshot);
        let Some((index, cluster)) = found else {
            self.stats.increment(core.core, TcpStat::DownstreamCxNoRoute);
            info.flags.set(ResponseFlag::NoClusterFound);
            return None;
        };
        info.cluster_name.push_str(&cluster.shown_name);
        let client = connection.info.remote.ip().filter(|_| self.hash_source_ip);
        let hash = client.map(|address| xxh64(address.ip().to_string().as_bytes(), 0));
        for _ in 0..self.connect_attempts_max {
            let chosen = {
                let mut random = core.random.borrow_mut();
                match &cluster.original_dst {
                    None => core.pools.choose(index, &cluster, hash, &Default::default(), &mut random),
                    Some(original) => original
                        .endpoint(&connection.info, None)
                        .and_then(|address| core.pools.choose_address(index, &cluster, address, &mut random)),
                }
            };
            let Some(mut chosen) = chosen else {
                cluster.stats.increment(core.core, ClusterStat::UpstreamCxNoneHealthy);
                info.flags.set(ResponseFlag::NoHealthyUpstream);
                return None;
            };
            chosen.preamble = cluster.proxy_protocol.as_ref().map(|header| header.header(&connection.info));
            info.attempt_count += 1;
            info.upstream_host = Some(chosen.address.clone());
            let trust = cluster.tls.as_ref().map(|tls| ServerTrust { seen: tls.trust_epoch(), tls: Arc::clone(tls) });
            match core.pools.acquire_whole(&chosen, Priority::Default).await {
                Ok(lease) => return Some((lease, trust)),
                Err(AcquireError::Connect(error)) => {
                    tracing::debug!(target: "connection", "{} was not reached: {error}", chosen.address);
                    info.upstream_transport_failure.clear();
                    // Logs of connections have no blanks in it (as in Envoy).
                    info.upstream_transport_failure.push_str(&connect_failure(&error).replace(' ', "_"));
                    info.flags.set(ResponseFlag::UpstreamConnectionFailure);
                }
                Err(AcquireError::ConnectTimeout | AcquireError::HostGone) => {
                    info.flags.set(ResponseFlag::UpstreamConnectionFailure);
                }
                // A full breaker does not empty by asking again.
                Err(AcquireError::PendingOverflow | AcquireError::RequestOverflow) => {
                    info.flags.set(ResponseFlag::UpstreamOverflow);
                    return None;
                }
            }
        }
        cluster.stats.increment(core.core, ClusterStat::UpstreamCxConnectAttemptsExceeded);
        info.flags.set(ResponseFlag::UpstreamRetryLimitExceeded);
        None
    }

    /// Passes bytes both ways until both sides have ended, a limit is reached or the listener has drained; whether the endpoint
    /// was what ended it, as the one that ended last or broke.
    async fn pass(
        &self,
        core: &CoreState,
        connection: &mut Connection,
        upstream: &mut Transport,
        mut trust: Option<ServerTrust>,
    ) -> Passed {
        let listener = Rc::clone(&connection.listener);
        let chain = listener.chain(connection.info.chain);
        let info = &connection.info;
        let server = upstream.tls().cloned();
        let mut server_is_believed = || match (&mut trust, &server) {
            (Some(trust), Some(server)) if trust.tls.trust_epoch() != trust.seen => {
                trust.seen = trust.tls.trust_epoch();
                trust.tls.still_believes(server)
            }
            _ => true,
        };
        let client = &mut connection.client.socket;
        let (mut up, mut down) = (Direction::default(), Direction::default());
        let mut endpoint_ended_first = false;
        let mut last_byte = core.ring.now();
        let ends_at = self.duration_max.map(|max| connection.opened_at + max);
        let mut timer = core.ring.timer();
        let due = |last_byte: Nanos| {
            let idle = self.idle_timeout.map(|timeout| last_byte + timeout);
            idle.into_iter().chain(ends_at).min()
        };
        let mut set_for = due(last_byte);
        if let Some(at) = set_for {
            timer.set(at);
        }
        let ended = poll_fn(|cx| {
            let now = core.ring.now();
            let before = (up.chunks, down.chunks);
            let (sent, received) = (up.poll(client, upstream, cx), down.poll(upstream, client, cx));
            if before != (up.chunks, down.chunks) {
                last_byte = now;
            }
            match (sent, received) {
                (Poll::Ready(Err(broken)), _) => return Poll::Ready((Rest::Abort, broken == Broken::To, None)),
                (_, Poll::Ready(Err(broken))) => return Poll::Ready((Rest::Abort, broken == Broken::From, None)),
                (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => {
                    return Poll::Ready((Rest::Gone, !endpoint_ended_first, None));
                }
                (Poll::Pending, Poll::Ready(Ok(()))) => endpoint_ended_first = true,
                _ => {}
            }
            // The worker wakes this task when one of these is so.
            let is_believed = chain.is_none_or(|chain| chain.still_believes(info)) && server_is_believed();
            if !is_believed || core.lifecycle.drain_time_is_over(&listener) {
                return Poll::Ready((Rest::Close, false, None));
            }
            while set_for.is_some() && timer.poll_expired(cx).is_ready() {
                if ends_at.is_some_and(|at| at <= now) {
                    self.stats.increment(core.core, TcpStat::MaxDownstreamConnectionDuration);
                    return Poll::Ready((Rest::Close, false, Some(ResponseFlag::DurationTimeout)));
                }
                set_for = due(last_byte);
                match set_for {
                    Some(at) if at > now => timer.set(at),
                    _ => {
                        self.stats.increment(core.core, TcpStat::IdleTimeout);
                        return Poll::Ready((Rest::Close, false, None));
                    }
                }
            }
            Poll::Pending
        })
        .await;
        let (rest, by_endpoint, flag) = ended;
        let is_reset = rest == Rest::Abort && by_endpoint;
        let flag = flag.or_else(|| is_reset.then_some(ResponseFlag::UpstreamRemoteReset));
        Passed { rest, by_endpoint, flag, moved: (up.bytes, down.bytes) }
    }
}

/// Whom the endpoint was judged by.
struct ServerTrust {
    tls: Arc<ClientTls>,
    /// When it was judged, in the count of `tls`.
    seen: u64,
}

/// How the bytes of a connection came to their end.
struct Passed {
    rest: Rest,
    /// The endpoint ended last, or broke.
    by_endpoint: bool,
    /// What went wrong, if something did.
    flag: Option<ResponseFlag>,
    /// Bytes from the client and to it.
    moved: (u64, u64),
}

/// The bytes of one side.
#[derive(Default)]
struct Direction {
    chunks: u64,
    bytes: u64,
    has_ended: bool,
}

/// Which end of a direction broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broken {
    From,
    To,
}

impl Direction {
    /// Ready when `from` has ended and `to` was sent everything.
    fn poll(&mut self, from: &mut Transport, to: &mut Transport, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        while !self.has_ended {
            ready!(to.poll_drained(cx, QUEUED_BYTES_MAX)).map_err(|_| Broken::To)?;
            match ready!(from.poll_recv(cx)).map_err(|_| Broken::From)? {
                Some(chunk) => {
                    self.chunks += 1;
                    self.bytes += chunk.len() as u64;
                    to.write(chunk);
                }
                None => {
                    self.has_ended = true;
                    to.shutdown_write();
                }
            }
        }
        to.poll_drained(cx, 0).map_err(|_| Broken::To)
    }
}

/// Bytes that one side may be behind before the other is held back.
const QUEUED_BYTES_MAX: usize = 256 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::registry::Registry;

    #[test]
    fn weights_share_the_connections() {
        let target = |index| TcpTarget::Index(ClusterIndex(index));
        let share = |index, weight| WeightedCluster { cluster: target(index), weight };
        let proxy = TcpProxy {
            stats: Registry::new(1).group("tcp.a."),
            clusters: vec![share(0, 1), share(1, 0), share(2, 3)],
            weight_total: 4,
            hash_source_ip: false,
            idle_timeout: None,
            duration_max: None,
            connect_attempts_max: 1,
            access_logs: Vec::new(),
        };
        let drawn: Vec<_> = (0..5).map(|draw| proxy.cluster(draw).cloned()).collect();
        assert_eq!(drawn, [Some(target(0)), Some(target(2)), Some(target(2)), Some(target(2)), None]);
    }
}
