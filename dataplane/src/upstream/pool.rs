//! The upstream connections of one core: leased to one request at a time, returned, reused last-in first-out.
//!
//! A request that finds no idle connection opens one; where the circuit breaker forbids that, it waits for the next one
//! returned. An endpoint without any connection may always open one, so that nothing waits for ever (as Envoy does).

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use torus_ring::{ConnectOptions, Keepalive, Nanos, PeerAddr, Ring, Socket, SocketOption, Timer};

use super::connection::{Counted, Place, Upstream};
use super::http2::{HOST_GONE, Http2Connection, Http2Upstream};
use super::stream::UpstreamStream;
use crate::cluster::endpoint_set::AssignmentOptions;
use crate::cluster::host::HostTemplate;
use crate::cluster::{
    Admission, Balancer, Choice, Cluster, ClusterIndex, EndpointSet, Host, HostIndex, Priority, Resource, RetryHosts,
    UpstreamConnectOptions,
};
use crate::config::address::Address;
use crate::slab::{Slab, SlabKey};
use crate::telemetry::counters::Core;
use crate::telemetry::names::{ClusterStat, HostStat};
use crate::tls::{ClientTls, Offer};
use crate::transport::Transport;
use crate::worker::random::Random;

/// Set in the token of a parked upstream connection; tokens of client connections leave it clear.
pub const UPSTREAM_TOKEN_BIT: u64 = 1 << 63;

/// Endpoints that a core keeps of one ORIGINAL_DST cluster.
const FOUND_HOSTS_MAX: usize = 65_536;

/// How long a peer is heard out after an alert.
const ALERT_LINGER: Duration = Duration::from_secs(1);

/// The pools of one core.
pub struct Pools {
    pub(super) ring: Ring,
    pub(super) core: Core,
    pub(super) state: RefCell<State>,
}

#[derive(Default)]
pub(super) struct State {
    clusters: Vec<Option<Box<ClusterPool>>>,
    /// Boxed, so that a connection moves between here and a lease as one pointer.
    idle: Slab<Box<Upstream>>,
    waiting: Slab<Waiting>,
    connection_count: u64,
    /// The epoch that a new pool begins with.
    first_epoch: u32,
}

fn trust_epoch(cluster: &Cluster) -> u64 {
    cluster.tls.as_ref().map_or(0, |tls| tls.trust_epoch())
}

/// What one core knows of one cluster; made when the cluster is first used.
pub(super) struct ClusterPool {
    pub(super) cluster: Arc<Cluster>,
    balancer: Balancer,
    pub(super) admission: Admission,
    /// By [`HostIndex`].
    pub(super) hosts: Vec<HostPool>,
    /// Requests in progress, by [`HostIndex`]; what least-request balancing compares.
    pub(super) active: Vec<u32>,
    /// Grows when the endpoints change; a [`Chosen`] of an older epoch is looked up by address.
    epoch: u32,
    /// The epoch in which the cluster was configured as it is; what is older has no place any more.
    began: u32,
    /// The cluster is gone; the pool goes with its last request.
    is_removed: bool,
    /// Of the cluster's TLS: connections of before were made to servers that may not be believed any more.
    trust_epoch: u64,
    /// When unused endpoints were last forgotten, where endpoints are found here.
    forgot_at: Nanos,
}

#[derive(Default)]
pub(super) struct HostPool {
    /// Most recently used last; keys of connections that closed meanwhile find nothing.
    idle: Vec<SlabKey>,
    /// Connections that carry several requests, oldest first.
    pub(super) http2: Vec<Rc<Http2Connection>>,
    /// How many more are being opened.
    pub(super) http2_connecting: u32,
    pub(super) connection_count: u32,
    /// Whether it chose HTTP/2, where the handshake decides.
    pub(super) chose_http2: Option<bool>,
    waiters: VecDeque<SlabKey>,
}

/// A request that waits for a connection.
struct Waiting {
    waker: Waker,
    answer: Option<Answer>,
}

pub(super) enum Answer {
    /// A returned connection, for this request.
    Granted(Box<Upstream>),
    /// A connection closed: there may be room to open one.
    TryAgain,
}

/// An endpoint chosen for an attempt.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// The cluster.
    pub cluster: ClusterIndex,
    /// The endpoint's place at `epoch`.
    pub host: HostIndex,
    /// The endpoint's address.
    pub address: Address,
    /// What a connection of its own begins with; the connection then serves nobody else.
    pub preamble: Option<Arc<[u8]>>,
    epoch: u32,
}

/// What a connection is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Carried {
    Bytes,
    Http1,
    Http2,
    /// What the handshake decides.
    Either,
}

/// Why a request got no connection.
#[derive(Debug)]
pub enum AcquireError {
    /// No more requests may wait: the pending breaker is open.
    PendingOverflow,
    /// No more requests may be in progress: the request breaker is open.
    RequestOverflow,
    /// The endpoint is gone from the cluster.
    HostGone,
    /// The endpoint refused or was unreachable.
    Connect(io::Error),
    /// The endpoint did not accept in time.
    ConnectTimeout,
}

impl Pools {
    /// Empty pools for the core that owns `ring`.
    pub fn new(ring: &Ring, core: Core) -> Rc<Self> {
        Rc::new(Self { ring: ring.clone(), core, state: RefCell::default() })
    }

    /// Takes a cluster's new version: endpoints that stay keep their connections, those that left lose the idle ones. A cluster that
    /// was configured anew keeps none: protocol, TLS or socket options may be others. `None` is a cluster that is gone.
    pub fn update(&self, index: ClusterIndex, cluster: Option<&Arc<Cluster>>, random: &mut Random) {
        let mut state = self.state.borrow_mut();
        let State { clusters, idle, .. } = &mut *state;
        let Some(Some(pool)) = clusters.get_mut(index.0 as usize) else { return };
        let emptied;
        let is_gone = cluster.is_none();
        let cluster = match cluster {
            Some(cluster) if Arc::ptr_eq(&pool.cluster, cluster) => return,
            // Its endpoints were found here.
            Some(cluster)
                if cluster.original_dst.is_some()
                    && pool.cluster.is_same_configuration(cluster)
                    && pool.trust_epoch == trust_epoch(cluster) =>
            {
                return;
            }
            Some(cluster) => cluster,
            None if pool.is_removed => return,
            // What still runs is counted to its end.
            None => {
                emptied = Arc::new(pool.cluster.with_endpoints(EndpointSet::default()));
                &emptied
            }
        };
        pool.is_removed = is_gone;
        let is_same = pool.cluster.is_same_configuration(cluster) && pool.trust_epoch == trust_epoch(cluster);
        pool.trust_epoch = trust_epoch(cluster);
        let mut hosts: Vec<HostPool> = Vec::new();
        let mut active = Vec::new();
        for host in &cluster.endpoints.hosts {
            let old = pool.cluster.endpoints.hosts.iter().position(|old| is_same && old.address == host.address);
            hosts.push(old.and_then(|old| pool.hosts.get_mut(old)).map(std::mem::take).unwrap_or_default());
            active.push(old.and_then(|old| pool.active.get(old).copied()).unwrap_or_default());
        }
        for (place, host) in hosts.iter().enumerate() {
            for key in &host.idle {
                if let Some(upstream) = idle.get_mut(*key) {
                    upstream.place.host = HostIndex(place as u32);
                    upstream.place.epoch = pool.epoch.wrapping_add(1);
                }
            }
        }
        for (left, host) in (0..).map(HostIndex).zip(&mut pool.hosts) {
            for connection in host.http2.drain(..) {
                connection.retire();
            }
            for key in host.idle.drain(..) {
                if let Some(upstream) = idle.remove(key) {
                    count_closed(&pool.cluster, &mut pool.admission, self.core, &upstream, Some(left), self.ring.now());
                }
            }
        }
        pool.hosts = hosts;
        pool.active = active;
        pool.epoch = pool.epoch.wrapping_add(1);
        pool.cluster = Arc::clone(cluster);
        if is_same {
            pool.balancer.on_endpoints_changed(cluster);
        } else {
            pool.began = pool.epoch;
            pool.balancer = Balancer::new(cluster, random);
            pool.admission.move_to(&cluster.breakers);
        }
    }

    /// An endpoint for the next attempt, or `None` where no healthy one is left.
    pub fn choose(
        &self,
        index: ClusterIndex,
        cluster: &Arc<Cluster>,
        hash: Option<u64>,
        tried: &Tried<'_>,
        random: &mut Random,
    ) -> Option<Chosen> {
        let mut state = self.state.borrow_mut();
        let pool = state.cluster_pool(index, cluster, self.core, random)?;
        let ClusterPool { cluster, balancer, admission, active, .. } = pool;
        let avoid = |_: HostIndex, host: &Host| tried.hosts.contains(&host.address);
        let mut choice = Choice {
            core: self.core,
            hash,
            random,
            active: &|host| active.get(host.0 as usize).copied().unwrap_or_default(),
            active_total: admission.in_flight(Resource::Requests, Priority::Default)
                + admission.in_flight(Resource::Requests, Priority::High),
            retry: (!tried.hosts.is_empty())
                .then_some(RetryHosts { avoid: &avoid, attempts_max: tried.host_attempts_max }),
        };
        let host = balancer.choose(cluster, &mut choice)?;
        let address = cluster.endpoints.hosts.get(host.0 as usize)?.address.clone();
        Some(Chosen { cluster: index, host, address, preamble: None, epoch: pool.epoch })
    }

    /// The endpoint at `address` of a cluster that has none of its own; `None` where it has too many.
    pub fn choose_address(
        &self,
        index: ClusterIndex,
        cluster: &Arc<Cluster>,
        address: Address,
        random: &mut Random,
    ) -> Option<Chosen> {
        let mut state = self.state.borrow_mut();
        let pool = state.cluster_pool(index, cluster, self.core, random)?;
        let hosts = &pool.cluster.endpoints.hosts;
        let place = match hosts.iter().position(|host| host.address == address) {
            Some(place) => place,
            None if hosts.len() >= FOUND_HOSTS_MAX => return None,
            None => {
                let place = hosts.len();
                let mut hosts = hosts.clone();
                let template = HostTemplate::plain();
                let host = template.host(address.clone(), cluster.host_connections_max, usize::from(self.core.0) + 1);
                hosts.push(host);
                let endpoints = EndpointSet::new(hosts, &AssignmentOptions::default(), &pool.cluster.policy);
                // Those before it keep their places.
                pool.cluster = Arc::new(pool.cluster.with_endpoints(endpoints));
                pool.hosts.push(HostPool::default());
                pool.active.push(0);
                place
            }
        };
        let host = HostIndex(u32::try_from(place).ok()?);
        Some(Chosen { cluster: index, host, address, preamble: None, epoch: pool.epoch })
    }

    /// Reads the chosen endpoint, unless it left the cluster.
    pub fn with_host<R>(&self, chosen: &Chosen, read: impl FnOnce(&Cluster, &Host) -> R) -> Option<R> {
        let state = self.state.borrow();
        let pool = state.clusters.get(chosen.cluster.0 as usize)?.as_ref()?;
        let host = pool.place(chosen)?;
        Some(read(&pool.cluster, pool.cluster.endpoints.hosts.get(host.0 as usize)?))
    }

    /// Asks a circuit breaker for one more `resource`; give it back with [`Self::release`].
    pub fn try_admit(&self, index: ClusterIndex, resource: Resource, priority: Priority) -> bool {
        let mut state = self.state.borrow_mut();
        match state.clusters.get_mut(index.0 as usize) {
            Some(Some(pool)) => pool.admission.try_acquire(resource, priority),
            _ => true,
        }
    }

    /// Gives back what [`Self::try_admit`] granted.
    pub fn release(&self, index: ClusterIndex, resource: Resource, priority: Priority) {
        let mut state = self.state.borrow_mut();
        if let Some(Some(pool)) = state.clusters.get_mut(index.0 as usize) {
            pool.admission.release(resource, priority);
        }
    }

    /// A connection to the chosen endpoint, idle or new, or a stream of one; `http2`: what it speaks, `None` where its handshake decides.
    pub async fn acquire(
        self: &Rc<Self>,
        chosen: &Chosen,
        priority: Priority,
        http2: Option<bool>,
    ) -> Result<Lease, AcquireError> {
        match http2 {
            Some(false) => self.acquire_http1(chosen, priority).await,
            Some(true) => self.acquire_http2(chosen, priority).await,
            None => self.acquire_by_alpn(chosen, priority).await,
        }
    }

    /// A connection of its own to the chosen endpoint, for bytes that are not HTTP. It ends with its lease.
    pub async fn acquire_whole(self: &Rc<Self>, chosen: &Chosen, priority: Priority) -> Result<Lease, AcquireError> {
        let pending = PendingPermit::new(self, chosen.cluster, priority)?;
        let counted = self.may_connect(chosen, priority)?.ok_or(AcquireError::PendingOverflow)?;
        let upstream = self.connect(chosen, priority, counted, Carried::Bytes).await?;
        drop(pending);
        self.attach(upstream, priority)
    }

    pub(super) async fn acquire_http1(
        self: &Rc<Self>,
        chosen: &Chosen,
        priority: Priority,
    ) -> Result<Lease, AcquireError> {
        if chosen.preamble.is_some() {
            let pending = PendingPermit::new(self, chosen.cluster, priority)?;
            let counted = self.may_connect(chosen, priority)?.ok_or(AcquireError::PendingOverflow)?;
            let mut upstream = self.connect(chosen, priority, counted, Carried::Http1).await?;
            upstream.must_close = true;
            drop(pending);
            return self.attach(upstream, priority);
        }
        // A request without an idle connection is pending, whether a connection is being opened for it or not.
        let mut pending: Option<PendingPermit> = None;
        loop {
            if let Some(upstream) = self.take_idle(chosen, Some(priority)) {
                return self.attach(upstream, priority);
            }
            if pending.is_none() {
                pending = Some(PendingPermit::new(self, chosen.cluster, priority)?);
            }
            if let Some(counted) = self.may_connect(chosen, priority)? {
                let upstream = self.connect(chosen, priority, counted, Carried::Http1).await?;
                drop(pending);
                return self.attach(upstream, priority);
            }
            // None may be opened: one of the other priority serves as well, and might stay idle for long.
            if let Some(upstream) = self.take_idle(chosen, None) {
                drop(pending);
                return self.attach(upstream, priority);
            }
            match WaitForConnection::new(self, chosen)?.await {
                Answer::Granted(upstream) => {
                    drop(pending);
                    return self.attach(upstream, priority);
                }
                Answer::TryAgain => continue,
            }
        }
    }

    /// An idle connection became readable: it closed, or said something that nobody asked for. It is dropped.
    pub fn on_idle_readable(&self, token: u64) {
        let key = SlabKey::from_token(token & !UPSTREAM_TOKEN_BIT);
        let removed = {
            let mut state = self.state.borrow_mut();
            if let Some(upstream) = state.idle.get_mut(key)
                && !upstream.socket.has_received()
            {
                // Only what TLS says between requests, such as session tickets.
                upstream.socket.park(token);
                return;
            }
            state.idle.remove(key)
        };
        if let Some(upstream) = removed {
            self.count(&upstream, ClusterStat::UpstreamCxDestroyRemote);
            self.close(upstream);
        }
    }

    /// Closes the connections that were idle for too long. Called about once a second.
    pub fn sweep(&self, now: Nanos) {
        let mut expired = Vec::new();
        {
            let mut state = self.state.borrow_mut();
            let State { clusters, idle, first_epoch, .. } = &mut *state;
            for pool in clusters.iter_mut().flatten() {
                pool.forget_unused(idle, now);
            }
            for slot in clusters.iter_mut() {
                if let Some(ended) = slot.take_if(|pool| pool.is_removed && pool.is_unused()) {
                    *first_epoch = (*first_epoch).max(ended.epoch.wrapping_add(1));
                }
            }
            for pool in clusters.iter_mut().flatten() {
                let Some(idle_timeout) = pool.cluster.http.idle_timeout else { continue };
                for host in &mut pool.hosts {
                    // The oldest come first; keys of closed connections go on the way.
                    let kept_from = host.idle.iter().position(|key| {
                        idle.get_mut(*key).is_some_and(|upstream| now.since(upstream.idle_since) < idle_timeout)
                    });
                    for key in host.idle.drain(..kept_from.unwrap_or(host.idle.len())) {
                        expired.extend(idle.remove(key));
                    }
                }
            }
        }
        for upstream in expired {
            self.count(&upstream, ClusterStat::UpstreamCxIdleTimeout);
            self.close(upstream);
        }
    }

    /// Connections open to a cluster's endpoint on this core.
    pub fn connection_count(&self, chosen: &Chosen) -> u32 {
        let state = self.state.borrow();
        let pool = state.clusters.get(chosen.cluster.0 as usize).and_then(Option::as_ref);
        pool.and_then(|pool| pool.hosts.get(pool.place(chosen)?.0 as usize)).map_or(0, |host| host.connection_count)
    }

    /// The most recently used idle connection, of one priority where given: each has its own, as in Envoy.
    fn take_idle(&self, chosen: &Chosen, priority: Option<Priority>) -> Option<Box<Upstream>> {
        loop {
            let upstream = {
                let mut state = self.state.borrow_mut();
                let State { clusters, idle, .. } = &mut *state;
                let pool = clusters.get_mut(chosen.cluster.0 as usize)?.as_mut()?;
                let place = pool.place(chosen)?;
                let host = pool.hosts.get_mut(place.0 as usize)?;
                loop {
                    let fits = |key: &SlabKey| {
                        let upstream = idle.get_mut(*key);
                        upstream.is_none_or(|upstream| priority.is_none_or(|it| it == upstream.place.priority))
                    };
                    let at = host.idle.iter().rposition(fits)?;
                    let key = host.idle.remove(at);
                    if let Some(upstream) = idle.remove(key) {
                        break upstream;
                    }
                }
            };
            let mut upstream = upstream;
            upstream.socket.unpark();
            // What came while the connection was idle answers no request of ours (RFC 9112 §9.2).
            if upstream.socket.has_received() {
                self.count(&upstream, ClusterStat::UpstreamCxDestroyRemote);
                self.close(upstream);
                continue;
            }
            return Some(upstream);
        }
    }

    /// Whether a connection may be opened now, and how it is counted; it is counted from here on.
    pub(super) fn may_connect(&self, chosen: &Chosen, priority: Priority) -> Result<Option<Counted>, AcquireError> {
        let mut state = self.state.borrow_mut();
        let pool = state.existing(chosen.cluster).ok_or(AcquireError::HostGone)?;
        let place = pool.place(chosen).ok_or(AcquireError::HostGone)?;
        let ClusterPool { cluster, admission, hosts, .. } = pool;
        let host = hosts.get_mut(place.0 as usize).ok_or(AcquireError::HostGone)?;
        let limit = cluster.host(place).and_then(|host| host.connections.as_ref());
        let by_host = limit.is_none_or(|limit| limit.try_acquire());
        let by_cluster = by_host && admission.try_acquire(Resource::Connections, priority);
        if by_cluster {
            host.connection_count += 1;
            return Ok(Some(Counted { by_cluster, by_host }));
        }
        cluster.stats.increment(self.core, ClusterStat::UpstreamCxOverflow);
        if host.connection_count == 0 {
            host.connection_count += 1;
            return Ok(Some(Counted { by_cluster, by_host }));
        }
        if by_host && let Some(limit) = limit {
            limit.release();
        }
        Ok(None)
    }

    pub(super) async fn connect(
        self: &Rc<Self>,
        chosen: &Chosen,
        priority: Priority,
        counted: Counted,
        carried: Carried,
    ) -> Result<Box<Upstream>, AcquireError> {
        let (options, timeout, tls) = {
            let mut state = self.state.borrow_mut();
            let pool = state.existing(chosen.cluster).ok_or(AcquireError::HostGone)?;
            let cluster = &pool.cluster;
            cluster.stats.increment(self.core, ClusterStat::UpstreamCxTotal);
            let by_version = match carried {
                Carried::Bytes | Carried::Either => None,
                Carried::Http1 => Some(ClusterStat::UpstreamCxHttp1Total),
                Carried::Http2 => Some(ClusterStat::UpstreamCxHttp2Total),
            };
            if let Some(by_version) = by_version {
                cluster.stats.increment(self.core, by_version);
            }
            cluster.stats.increment(self.core, ClusterStat::UpstreamCxActive);
            if let Some(host) = pool.place(chosen).and_then(|place| cluster.endpoints.hosts.get(place.0 as usize)) {
                host.stats.increment(self.core, HostStat::CxTotal);
                host.stats.increment(self.core, HostStat::CxActive);
            }
            let host = pool.place(chosen).and_then(|place| cluster.host(place));
            let tls =
                cluster.tls.clone().map(|tls| (tls, host.map(|host| host.hostname.to_string()).unwrap_or_default()));
            (connect_options(&cluster.connect, &chosen.address), cluster.connect_timeout, tls)
        };
        let started_at = self.ring.now();
        // Counted as open from here on; the guard takes it back if the attempt fails or is given up.
        let mut guard =
            ConnectGuard { pools: self, chosen, priority, counted, started_at, done: false, is_late: false };
        let mut timer = self.ring.timer();
        timer.set(started_at + timeout);
        let peer = PeerAddr::from(&chosen.address);
        let mut connecting = pin!(self.ring.connect(&peer, &options));
        let connected = std::future::poll_fn(|cx| {
            if let Poll::Ready(connected) = connecting.as_mut().poll(cx) {
                return Poll::Ready(Some(connected));
            }
            timer.poll_expired(cx).map(|()| None)
        })
        .await;
        let connected = connected.map(|connected| {
            connected.map(|mut socket| {
                if let Some(preamble) = &chosen.preamble {
                    socket.write(Arc::clone(preamble));
                }
                socket
            })
        });
        // The connect timeout counts the handshake too.
        let connected = match (connected, tls) {
            (Some(Ok(socket)), Some((tls, host_name))) => {
                self.handshake(socket, &tls, &host_name, chosen, carried, &mut timer).await
            }
            (connected, _) => connected.map(|connected| connected.map(Transport::from)),
        };
        match connected {
            Some(Ok(socket)) => {
                guard.finish();
                let mut state = self.state.borrow_mut();
                state.connection_count += 1;
                let id = state.connection_count;
                let pool = state.existing(chosen.cluster).ok_or(AcquireError::HostGone)?;
                let now = self.ring.now();
                let connect_ms = now.since(started_at).as_millis() as u64;
                pool.cluster.stats.record(self.core, ClusterStat::UpstreamCxConnectMs, connect_ms);
                let place =
                    Place { cluster: chosen.cluster, host: chosen.host, epoch: chosen.epoch, priority, counted };
                Ok(Box::new(Upstream::new(socket, id, place, now)))
            }
            Some(Err(error)) => Err(AcquireError::Connect(error)),
            None => {
                guard.is_late = true;
                let mut state = self.state.borrow_mut();
                if let Some(pool) = state.existing(chosen.cluster) {
                    pool.cluster.stats.increment(self.core, ClusterStat::UpstreamCxConnectTimeout);
                }
                Err(AcquireError::ConnectTimeout)
            }
        }
    }

    /// TLS on a new connection; `None` when it took too long.
    async fn handshake(
        &self,
        socket: Socket,
        tls: &ClientTls,
        host_name: &str,
        chosen: &Chosen,
        carried: Carried,
        timer: &mut Timer,
    ) -> Option<io::Result<Transport>> {
        let address = chosen.address.ip().map(|it| it.ip());
        let offer = match carried {
            Carried::Bytes | Carried::Http1 => Offer::Http1,
            Carried::Http2 => Offer::Http2,
            Carried::Either => Offer::Either,
        };
        let mut session = match tls.connect(socket, &self.ring, host_name, address, offer) {
            Ok(session) => session,
            Err(error) => {
                tls.count_failure(self.core, &error);
                return Some(Err(io::Error::other(error)));
            }
        };
        let done = std::future::poll_fn(|cx| match session.poll_handshake(cx) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending => timer.poll_expired(cx).map(|()| None),
        })
        .await?;
        match done {
            Ok(()) => {
                tls.count_handshake(self.core, session.info());
                Some(Ok(Transport::Tls(Box::new(session))))
            }
            Err(error) => {
                tls.count_failure(self.core, &error);
                // The alert is to arrive.
                session.close_gracefully(ALERT_LINGER);
                Some(Err(io::Error::other(error)))
            }
        }
    }

    /// Takes the connection into use for one request, if the request breaker allows.
    pub(super) fn attach(
        self: &Rc<Self>,
        mut upstream: Box<Upstream>,
        priority: Priority,
    ) -> Result<Lease, AcquireError> {
        {
            let mut state = self.state.borrow_mut();
            let pool = state.existing(upstream.place.cluster).ok_or(AcquireError::HostGone)?;
            if !pool.admission.try_acquire(Resource::Requests, priority) {
                pool.cluster.stats.increment(self.core, ClusterStat::UpstreamRqActiveOverflow);
                drop(state);
                self.put_back(upstream);
                return Err(AcquireError::RequestOverflow);
            }
            pool.cluster.stats.increment(self.core, ClusterStat::UpstreamRqTotal);
            pool.cluster.stats.increment(self.core, ClusterStat::UpstreamRqActive);
            if let Some(place) = pool.place_of(&upstream) {
                if let Some(active) = pool.active.get_mut(place.0 as usize) {
                    *active += 1;
                }
                if let Some(host) = pool.cluster.endpoints.hosts.get(place.0 as usize) {
                    host.stats.increment(self.core, HostStat::RqTotal);
                    host.stats.increment(self.core, HostStat::RqActive);
                }
            }
        }
        upstream.request_count += 1;
        upstream.request_priority = priority;
        Ok(Lease { pools: Rc::clone(self), leased: Some(Leased::Http1(upstream)) })
    }

    /// Ends a request's use of the connection and decides whether another request may have it.
    fn on_returned(&self, mut upstream: Box<Upstream>, reusable: bool, is_complete: bool) {
        let mut reusable = reusable && !upstream.must_close && !upstream.socket.has_received();
        {
            let mut state = self.state.borrow_mut();
            if let Some(pool) = state.existing(upstream.place.cluster) {
                pool.admission.release(Resource::Requests, upstream.request_priority);
                pool.cluster.stats.decrement(self.core, ClusterStat::UpstreamRqActive);
                let http = &pool.cluster.http;
                if http.requests_per_connection_max.is_some_and(|max| max <= upstream.request_count) {
                    pool.cluster.stats.increment(self.core, ClusterStat::UpstreamCxMaxRequests);
                    reusable = false;
                }
                let age = self.ring.now().since(upstream.opened_at);
                if http.max_connection_duration.is_some_and(|max| age >= max) {
                    pool.cluster.stats.increment(self.core, ClusterStat::UpstreamCxMaxDurationReached);
                    reusable = false;
                }
                match pool.place_of(&upstream) {
                    Some(place) => {
                        upstream.place.host = place;
                        upstream.place.epoch = pool.epoch;
                        if let Some(active) = pool.active.get_mut(place.0 as usize) {
                            *active = active.saturating_sub(1);
                        }
                        if let Some(host) = pool.cluster.endpoints.hosts.get(place.0 as usize) {
                            host.stats.decrement(self.core, HostStat::RqActive);
                        }
                    }
                    None => reusable = false,
                }
            }
        }
        if reusable {
            self.put_back(upstream);
        } else {
            self.count_end(&upstream, is_complete);
            self.close(upstream);
        }
    }

    /// Gives the connection to the first waiting request, or keeps it idle.
    pub(super) fn put_back(&self, mut upstream: Box<Upstream>) {
        let mut state = self.state.borrow_mut();
        let State { clusters, idle, waiting, .. } = &mut *state;
        let pool = clusters.get_mut(upstream.place.cluster.0 as usize).and_then(Option::as_mut);
        let host = pool.and_then(|pool| pool.hosts.get_mut(upstream.place.host.0 as usize));
        let Some(host) = host else { return };
        while let Some(key) = host.waiters.pop_front() {
            if let Some(waiter) = waiting.get_mut(key) {
                waiter.answer = Some(Answer::Granted(upstream));
                waiter.waker.wake_by_ref();
                return;
            }
        }
        upstream.idle_since = self.ring.now();
        let key = idle.insert(upstream);
        host.idle.push(key);
        if let Some(upstream) = idle.get_mut(key) {
            upstream.socket.park(key.token() | UPSTREAM_TOKEN_BIT);
        }
    }

    fn close(&self, upstream: Box<Upstream>) {
        let mut state = self.state.borrow_mut();
        let State { clusters, waiting, .. } = &mut *state;
        let Some(Some(pool)) = clusters.get_mut(upstream.place.cluster.0 as usize) else { return };
        let place = pool.place_of(&upstream);
        count_closed(&pool.cluster, &mut pool.admission, self.core, &upstream, place, self.ring.now());
        let Some(place) = place else { return };
        let Some(host) = pool.hosts.get_mut(place.0 as usize) else { return };
        host.connection_count = host.connection_count.saturating_sub(1);
        invite_waiter(host, waiting);
    }

    /// Counts who ended a connection that a request used.
    fn count_end(&self, upstream: &Upstream, is_complete: bool) {
        let by_peer = upstream.is_closed_by_peer;
        let stat = if by_peer { ClusterStat::UpstreamCxDestroyRemote } else { ClusterStat::UpstreamCxDestroyLocal };
        self.count(upstream, stat);
        if upstream.must_close && !by_peer {
            self.count(upstream, ClusterStat::UpstreamCxCloseNotify);
        }
        if !is_complete {
            let stat = match by_peer {
                true => ClusterStat::UpstreamCxDestroyRemoteWithActiveRq,
                false => ClusterStat::UpstreamCxDestroyLocalWithActiveRq,
            };
            self.count(upstream, stat);
            self.count(upstream, ClusterStat::UpstreamCxDestroyWithActiveRq);
        }
    }

    pub(super) fn count(&self, upstream: &Upstream, stat: ClusterStat) {
        if let Some(pool) = self.state.borrow_mut().existing(upstream.place.cluster) {
            pool.cluster.stats.increment(self.core, stat);
        }
    }
}

/// Which endpoints a retry avoids.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tried<'a> {
    /// Endpoints of former attempts; empty where the retry policy does not ask to avoid them.
    pub hosts: &'a [Address],
    /// How often another endpoint is drawn before a tried one is taken after all.
    pub host_attempts_max: u32,
}

/// A connection in use by one request. Dropping it closes the connection: only [`Lease::give_back`] returns it.
pub struct Lease {
    pools: Rc<Pools>,
    leased: Option<Leased>,
}

#[allow(clippy::large_enum_variant, reason = "it moves once a request, and a box would be an allocation for it")]
enum Leased {
    Http1(Box<Upstream>),
    Http2(Http2Upstream),
}

impl Lease {
    /// The lease of a stream.
    pub(super) fn of_http2(pools: &Rc<Pools>, stream: Http2Upstream) -> Self {
        Self { pools: Rc::clone(pools), leased: Some(Leased::Http2(stream)) }
    }

    /// The connection or stream; `None` never happens before the lease ends.
    pub fn stream(&mut self) -> Option<UpstreamStream<'_>> {
        self.leased.as_mut().map(|leased| match leased {
            Leased::Http1(upstream) => UpstreamStream::Http1(upstream),
            Leased::Http2(stream) => UpstreamStream::Http2(stream),
        })
    }

    /// Ends the lease after a complete exchange; the connection is kept if it can serve another request.
    pub fn give_back(mut self) {
        match self.leased.take() {
            Some(Leased::Http1(upstream)) => {
                let is_complete = upstream.response_is_complete();
                let reusable = is_complete && upstream.socket.queued_bytes() == 0;
                self.pools.on_returned(upstream, reusable, is_complete);
            }
            Some(Leased::Http2(stream)) => self.pools.on_http2_ended(stream),
            None => {}
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        match self.leased.take() {
            Some(Leased::Http1(upstream)) => self.pools.on_returned(upstream, false, false),
            Some(Leased::Http2(stream)) => self.pools.on_http2_ended(stream),
            None => {}
        }
    }
}

/// A place in the pending queue's circuit breaker; given back on drop.
pub(super) struct PendingPermit<'a> {
    pools: &'a Pools,
    cluster: ClusterIndex,
    priority: Priority,
}

impl<'a> PendingPermit<'a> {
    pub(super) fn new(pools: &'a Pools, cluster: ClusterIndex, priority: Priority) -> Result<Self, AcquireError> {
        let mut state = pools.state.borrow_mut();
        let pool = state.existing(cluster).ok_or(AcquireError::HostGone)?;
        if !pool.admission.try_acquire(Resource::Pending, priority) {
            pool.cluster.stats.increment(pools.core, ClusterStat::UpstreamRqPendingOverflow);
            return Err(AcquireError::PendingOverflow);
        }
        pool.cluster.stats.increment(pools.core, ClusterStat::UpstreamRqPendingTotal);
        pool.cluster.stats.increment(pools.core, ClusterStat::UpstreamRqPendingActive);
        Ok(Self { pools, cluster, priority })
    }
}

impl Drop for PendingPermit<'_> {
    fn drop(&mut self) {
        let mut state = self.pools.state.borrow_mut();
        if let Some(pool) = state.existing(self.cluster) {
            pool.cluster.stats.decrement(self.pools.core, ClusterStat::UpstreamRqPendingActive);
            pool.admission.release(Resource::Pending, self.priority);
        }
    }
}

/// Takes a connection attempt out of the counts unless it succeeded.
struct ConnectGuard<'a> {
    pools: &'a Pools,
    chosen: &'a Chosen,
    priority: Priority,
    counted: Counted,
    started_at: Nanos,
    done: bool,
    /// The connect timeout passed.
    is_late: bool,
}

impl ConnectGuard<'_> {
    fn finish(mut self) {
        self.done = true;
    }
}

impl Drop for ConnectGuard<'_> {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let mut state = self.pools.state.borrow_mut();
        let State { clusters, waiting, .. } = &mut *state;
        let Some(Some(pool)) = clusters.get_mut(self.chosen.cluster.0 as usize) else { return };
        let (cluster, core) = (&pool.cluster, self.pools.core);
        if self.counted.by_cluster {
            pool.admission.release(Resource::Connections, self.priority);
        }
        cluster.stats.increment(core, ClusterStat::UpstreamCxConnectFail);
        cluster.stats.increment(core, ClusterStat::UpstreamRqPendingFailureEject);
        let by_whom = match self.is_late {
            true => ClusterStat::UpstreamCxDestroyLocal,
            false => ClusterStat::UpstreamCxDestroyRemote,
        };
        cluster.stats.increment(core, by_whom);
        cluster.stats.decrement(core, ClusterStat::UpstreamCxActive);
        cluster.stats.increment(core, ClusterStat::UpstreamCxDestroy);
        let length_ms = self.pools.ring.now().since(self.started_at).as_millis() as u64;
        cluster.stats.record(core, ClusterStat::UpstreamCxLengthMs, length_ms);
        let Some(place) = pool.place(self.chosen) else { return };
        if let Some(host) = pool.cluster.host(place) {
            host.stats.increment(core, HostStat::CxConnectFail);
            host.stats.decrement(core, HostStat::CxActive);
            if self.counted.by_host
                && let Some(limit) = &host.connections
            {
                limit.release();
            }
        }
        if let Some(host) = pool.hosts.get_mut(place.0 as usize) {
            host.connection_count = host.connection_count.saturating_sub(1);
            invite_waiter(host, waiting);
        }
    }
}

/// Completes when a connection is granted or there may be room to open one.
pub(super) struct WaitForConnection<'a> {
    pools: &'a Pools,
    key: SlabKey,
}

impl<'a> WaitForConnection<'a> {
    pub(super) fn new(pools: &'a Pools, chosen: &Chosen) -> Result<Self, AcquireError> {
        let mut state = pools.state.borrow_mut();
        let State { clusters, waiting, .. } = &mut *state;
        let pool = clusters.get_mut(chosen.cluster.0 as usize).and_then(Option::as_mut);
        let pool = pool.ok_or(AcquireError::HostGone)?;
        let place = pool.place(chosen).ok_or(AcquireError::HostGone)?;
        let host = pool.hosts.get_mut(place.0 as usize).ok_or(AcquireError::HostGone)?;
        let key = waiting.insert(Waiting { waker: Waker::noop().clone(), answer: None });
        host.waiters.push_back(key);
        Ok(Self { pools, key })
    }
}

impl Future for WaitForConnection<'_> {
    type Output = Answer;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer> {
        let mut state = self.pools.state.borrow_mut();
        let Some(waiter) = state.waiting.get_mut(self.key) else { return Poll::Ready(Answer::TryAgain) };
        match waiter.answer.take() {
            Some(answer) => Poll::Ready(answer),
            None => {
                waiter.waker.clone_from(cx.waker());
                Poll::Pending
            }
        }
    }
}

impl Drop for WaitForConnection<'_> {
    fn drop(&mut self) {
        let waiter = self.pools.state.borrow_mut().waiting.remove(self.key);
        // Granted but never polled again: the next one may have it.
        if let Some(Answer::Granted(upstream)) = waiter.and_then(|waiter| waiter.answer) {
            self.pools.put_back(upstream);
        }
    }
}

impl State {
    pub(super) fn existing(&mut self, index: ClusterIndex) -> Option<&mut ClusterPool> {
        self.clusters.get_mut(index.0 as usize)?.as_deref_mut()
    }

    /// What is known of the chosen endpoint.
    pub(super) fn host_pool(&mut self, chosen: &Chosen) -> Option<&mut HostPool> {
        let pool = self.existing(chosen.cluster)?;
        let place = pool.place(chosen)?;
        pool.hosts.get_mut(place.0 as usize)
    }

    /// Lets every request that waits for the chosen endpoint look again.
    pub(super) fn invite_all_of(&mut self, chosen: &Chosen) {
        let Self { clusters, waiting, .. } = self;
        let Some(Some(pool)) = clusters.get_mut(chosen.cluster.0 as usize) else { return };
        let Some(place) = pool.place(chosen) else { return };
        if let Some(host) = pool.hosts.get_mut(place.0 as usize) {
            invite_all(host, waiting);
        }
    }

    /// Lets every request that waits for the endpoint of a connection look again.
    pub(super) fn invite_all(&mut self, cluster: ClusterIndex, place: &Place, address: &Address) {
        let Self { clusters, waiting, .. } = self;
        let Some(Some(pool)) = clusters.get_mut(cluster.0 as usize) else { return };
        let Some(place) = pool.place_at(place.epoch, place.host, || Some(address.clone())) else { return };
        if let Some(host) = pool.hosts.get_mut(place.0 as usize) {
            invite_all(host, waiting);
        }
    }

    fn cluster_pool(
        &mut self,
        index: ClusterIndex,
        cluster: &Arc<Cluster>,
        core: Core,
        random: &mut Random,
    ) -> Option<&mut ClusterPool> {
        let place = index.0 as usize;
        let first_epoch = self.first_epoch;
        if self.clusters.len() <= place {
            self.clusters.resize_with(place + 1, || None);
        }
        let slot = self.clusters.get_mut(place)?;
        Some(slot.get_or_insert_with(|| {
            let host_count = cluster.endpoints.hosts.len();
            let mut hosts = Vec::new();
            hosts.resize_with(host_count, HostPool::default);
            Box::new(ClusterPool {
                cluster: Arc::clone(cluster),
                balancer: Balancer::new(cluster, random),
                admission: Admission::new(&cluster.breakers, core),
                hosts,
                active: vec![0; host_count],
                // Nothing of a former pool in this place is taken for one of this.
                epoch: first_epoch,
                began: first_epoch,
                is_removed: false,
                trust_epoch: trust_epoch(cluster),
                forgot_at: Nanos::ZERO,
            })
        }))
    }
}

impl ClusterPool {
    /// Forgets the endpoints that were found here and have no connection any more.
    fn forget_unused(&mut self, idle: &mut Slab<Box<Upstream>>, now: Nanos) {
        let Some(options) = &self.cluster.original_dst else { return };
        if now.since(self.forgot_at) < options.cleanup_interval {
            return;
        }
        self.forgot_at = now;
        let places = 0..self.cluster.endpoints.hosts.len();
        let in_use = |place: &usize| {
            self.hosts.get(*place).is_some_and(|host| host.connection_count > 0 || !host.waiters.is_empty())
                || self.active.get(*place).is_some_and(|active| *active > 0)
        };
        let kept: Vec<usize> = places.filter(in_use).collect();
        if kept.len() == self.cluster.endpoints.hosts.len() {
            return;
        }
        self.epoch = self.epoch.wrapping_add(1);
        let old = std::mem::take(&mut self.hosts);
        let mut hosts: Vec<Option<HostPool>> = old.into_iter().map(Some).collect();
        self.hosts =
            kept.iter().map(|place| hosts.get_mut(*place).and_then(Option::take).unwrap_or_default()).collect();
        self.active = kept.iter().map(|place| self.active.get(*place).copied().unwrap_or_default()).collect();
        for (place, host) in (0..).map(HostIndex).zip(&self.hosts) {
            for key in &host.idle {
                if let Some(upstream) = idle.get_mut(*key) {
                    upstream.place.host = place;
                    upstream.place.epoch = self.epoch;
                }
            }
        }
        let endpoints = &self.cluster.endpoints.hosts;
        let left = kept.iter().filter_map(|place| endpoints.get(*place).cloned()).collect();
        let left = EndpointSet::new(left, &AssignmentOptions::default(), &self.cluster.policy);
        self.cluster = Arc::new(self.cluster.with_endpoints(left));
    }

    /// Counts a request that goes to the chosen endpoint.
    pub(super) fn begin_request(&mut self, core: Core, chosen: &Chosen) {
        self.cluster.stats.increment(core, ClusterStat::UpstreamRqTotal);
        self.cluster.stats.increment(core, ClusterStat::UpstreamRqActive);
        let Some(place) = self.place(chosen) else { return };
        if let Some(active) = self.active.get_mut(place.0 as usize) {
            *active += 1;
        }
        if let Some(host) = self.cluster.host(place) {
            host.stats.increment(core, HostStat::RqTotal);
            host.stats.increment(core, HostStat::RqActive);
        }
    }

    /// Whether no request and no connection is left.
    fn is_unused(&self) -> bool {
        let admission = &self.admission;
        let none = |resource| Priority::ALL.into_iter().all(|priority| admission.in_flight(resource, priority) == 0);
        Resource::ALL.into_iter().all(none)
    }

    fn place(&self, chosen: &Chosen) -> Option<HostIndex> {
        self.place_at(chosen.epoch, chosen.host, || Some(chosen.address.clone()))
    }

    fn place_of(&self, upstream: &Upstream) -> Option<HostIndex> {
        self.place_at(upstream.place.epoch, upstream.place.host, || {
            upstream.socket.peer_addr().ok().map(|peer| Address::from(&peer))
        })
    }

    pub(super) fn place_at(
        &self,
        epoch: u32,
        host: HostIndex,
        address: impl FnOnce() -> Option<Address>,
    ) -> Option<HostIndex> {
        if epoch == self.epoch {
            return Some(host);
        }
        // Epochs count around; half of all are taken for later ones.
        if epoch.wrapping_sub(self.began) > u32::MAX / 2 {
            return None;
        }
        let address = address()?;
        let place = self.cluster.endpoints.hosts.iter().position(|host| host.address == address)?;
        Some(HostIndex(place as u32))
    }
}

/// Lets the first waiting request of the endpoint try to open a connection.
fn invite_waiter(host: &mut HostPool, waiting: &mut Slab<Waiting>) {
    while let Some(key) = host.waiters.pop_front() {
        if let Some(waiter) = waiting.get_mut(key) {
            waiter.answer = Some(Answer::TryAgain);
            waiter.waker.wake_by_ref();
            return;
        }
    }
}

/// Lets every waiting request of the endpoint look again.
fn invite_all(host: &mut HostPool, waiting: &mut Slab<Waiting>) {
    // One that waits again is asked another time.
    for _ in 0..host.waiters.len() {
        invite_waiter(host, waiting);
    }
}

fn count_closed(
    cluster: &Cluster,
    admission: &mut Admission,
    core: Core,
    upstream: &Upstream,
    place: Option<HostIndex>,
    now: Nanos,
) {
    let length = now.since(upstream.opened_at);
    cluster.stats.record(core, ClusterStat::UpstreamCxLengthMs, length.as_millis() as u64);
    let received = upstream.socket.bytes_received() - upstream.counted_bytes.0;
    let sent = upstream.socket.bytes_sent() - upstream.counted_bytes.1;
    let place = Place { host: place.unwrap_or(HOST_GONE), ..upstream.place };
    count_ended(cluster, admission, core, &place, u64::from(upstream.request_count), (received, sent));
}

/// Counts the end of a connection that served so many requests and moved so many bytes, received and sent.
pub(super) fn count_ended(
    cluster: &Cluster,
    admission: &mut Admission,
    core: Core,
    place: &Place,
    request_count: u64,
    bytes: (u64, u64),
) {
    let Place { host, priority, counted, .. } = *place;
    if counted.by_cluster {
        admission.release(Resource::Connections, priority);
    }
    let stats = &cluster.stats;
    stats.decrement(core, ClusterStat::UpstreamCxActive);
    stats.increment(core, ClusterStat::UpstreamCxDestroy);
    stats.record(core, ClusterStat::UpstreamRqPerCx, request_count);
    stats.add(core, ClusterStat::UpstreamCxRxBytesTotal, bytes.0);
    stats.add(core, ClusterStat::UpstreamCxTxBytesTotal, bytes.1);
    if let Some(host) = cluster.host(host) {
        host.stats.decrement(core, HostStat::CxActive);
        if counted.by_host
            && let Some(limit) = &host.connections
        {
            limit.release();
        }
    }
}

/// What the kernel is told of a connection to `address`.
fn connect_options(configured: &UpstreamConnectOptions, address: &Address) -> ConnectOptions {
    let source = address.ip().and_then(|target| configured.source_for(target));
    let keepalive = configured.keepalive.map(|keepalive| Keepalive {
        probes: keepalive.probe_count,
        idle: keepalive.idle,
        interval: keepalive.interval,
    });
    let options = configured.raw.iter();
    let options = options.map(|raw| SocketOption { level: raw.level, name: raw.name, value: raw.value.to_vec() });
    ConnectOptions { bind: source.map(PeerAddr::Ip), keepalive, nodelay: true, options: options.collect() }
}
