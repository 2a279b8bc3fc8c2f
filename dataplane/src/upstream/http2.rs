//! HTTP/2 connections to endpoints: shared by the requests of one core, each a stream of its own.
//!
//! A request takes a connection that has room; where none has, it opens one or waits while another request does. One task a
//! connection drives the codec, and ends the connection once it is retired (too old, used often enough, told to go away, its endpoint
//! gone) and its last stream is over.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use h2::client::{self, ResponseFuture, SendRequest};
use torus_codec::{BodyLength, HeaderMap, Known, RequestMethod, ResponseHead, Unencodable};
use torus_ring::{Nanos, Ring, Timer};

use super::connection::{Place, Upstream};
use super::pool::{AcquireError, Answer, Carried, Chosen, Lease, PendingPermit, Pools, WaitForConnection, count_ended};
use crate::cluster::{HostIndex, Priority, Resource};
use crate::config::address::Address;
use crate::telemetry::names::{ClusterStat, HostStat};
use crate::transport::TlsInfo;
use crate::wire::http2::{BodyReceiver, BodySender, Http2Options, Keepalive, RingIo, SharedSocket, message};
use crate::wire::{BodyData, BodyError, BodyEvent, HeadError};

/// A connection that carries many requests.
pub(super) struct Http2Connection {
    id: u64,
    local: Option<Address>,
    tls: Option<Arc<TlsInfo>>,
    pub(super) address: Address,
    pub(super) place: Place,
    opened_at: Nanos,
    requests: RefCell<Option<SendRequest<BodyData>>>,
    shared: Rc<SharedSocket>,
    streams_max: usize,
    active: Cell<usize>,
    request_count: Cell<u32>,
    idle_since: Cell<Nanos>,
    /// The peer's SETTINGS, the first it says, have come.
    settled: Cell<bool>,
    /// It takes no new request.
    retired: Cell<bool>,
    closed_by_peer: Cell<bool>,
    driver: RefCell<Waker>,
    /// Who waits for the peer's SETTINGS.
    unsettled: RefCell<Vec<Waker>>,
}

/// One request's stream.
pub struct Http2Upstream {
    ring: Ring,
    connection: Rc<Http2Connection>,
    pub(super) priority: Priority,
    response: Option<ResponseFuture>,
    sender: Option<BodySender>,
    receiver: Option<BodyReceiver>,
    trailer_count_max: usize,
    /// The request asks for it in place of `upgrade`.
    protocol: Option<Box<[u8]>>,
}

/// Why a request's head could not be sent.
pub enum SendHeadError {
    /// A header change made something that is no HTTP.
    Unencodable,
    /// The connection takes no more requests; nothing was sent.
    Refused,
}

impl From<Unencodable> for SendHeadError {
    fn from(_: Unencodable) -> Self {
        Self::Unencodable
    }
}

impl Http2Connection {
    /// Lets no new request in; the connection ends with its last stream.
    pub(super) fn retire(&self) {
        self.retired.set(true);
        self.driver.borrow().wake_by_ref();
    }

    fn has_room(&self) -> bool {
        if self.retired.get() {
            return false;
        }
        let mut requests = self.requests.borrow_mut();
        let Some(requests) = requests.as_mut() else { return false };
        // The peer may have said that it goes away (RFC 9113 §6.8).
        if let Poll::Ready(Err(_)) = requests.poll_ready(&mut Context::from_waker(Waker::noop())) {
            self.retire();
            return false;
        }
        let max = if self.settled.get() { requests.current_max_send_streams() } else { STREAMS_UNTIL_SETTINGS };
        self.active.get() < self.streams_max.min(max)
    }

    /// Whether it will soon be known how many streams it takes.
    fn is_settling(&self) -> bool {
        !self.settled.get() && !self.retired.get()
    }

    fn end_stream(&self, now: Nanos) {
        let active = self.active.get().saturating_sub(1);
        self.active.set(active);
        if active == 0 {
            self.idle_since.set(now);
            self.driver.borrow().wake_by_ref();
        }
    }
}

impl Http2Upstream {
    /// The connection's number on this core.
    pub fn id(&self) -> u64 {
        self.connection.id
    }

    /// Our end of the connection.
    pub fn local(&self) -> Option<Address> {
        self.connection.local.clone()
    }

    /// What the connection's TLS handshake established.
    pub fn tls(&self) -> Option<Arc<TlsInfo>> {
        self.connection.tls.clone()
    }

    /// Whether both directions are complete.
    pub(super) fn is_complete(&self) -> bool {
        let received = self.receiver.as_ref().is_some_and(BodyReceiver::is_done);
        received && self.sender.as_ref().is_some_and(|sender| sender.is_finished() || sender.is_blocked())
    }

    /// Ready when it is known whether the peer takes CONNECT with a protocol (RFC 8441 §3).
    pub(super) fn poll_takes_protocol(&self, cx: &mut Context<'_>) -> Poll<bool> {
        let connection = &self.connection;
        if let Some(requests) = connection.requests.borrow().as_ref() {
            if !connection.settled.get() {
                connection.unsettled.borrow_mut().push(cx.waker().clone());
                return Poll::Pending;
            }
            return Poll::Ready(requests.is_extended_connect_protocol_enabled());
        }
        Poll::Ready(false)
    }

    /// Sends the request's head. Bytes of it.
    pub fn send_head(
        &mut self,
        headers: &HeaderMap,
        body: BodyLength,
        protocol: Option<&[u8]>,
    ) -> Result<usize, SendHeadError> {
        let request = message::write_request(headers, body, protocol)?;
        let is_tunnel = request.method() == http::Method::CONNECT;
        let ends = !is_tunnel && matches!(body, BodyLength::Empty | BodyLength::Length(0));
        self.protocol = protocol.map(Into::into);
        let requests = self.connection.requests.borrow().clone();
        let sent = requests.and_then(|mut requests| requests.send_request(request, ends).ok());
        let Some((response, stream)) = sent else {
            self.connection.retire();
            return Err(SendHeadError::Refused);
        };
        self.response = Some(response);
        self.sender = Some(BodySender::new(stream, ends, self.ring.now()));
        Ok(headers.byte_count())
    }

    /// The next response head, which is then in `response`; bytes of it.
    pub fn poll_head(
        &mut self,
        method: RequestMethod,
        header_count_max: usize,
        response: &mut ResponseHead,
        cx: &mut Context<'_>,
    ) -> Poll<Result<usize, HeadError>> {
        let Some(future) = &mut self.response else { return Poll::Ready(Err(HeadError::Closed { partial: false })) };
        let (head, stream) = if let Poll::Ready(Some(Ok(informational))) = future.poll_informational(cx) {
            (informational.into_parts().0, None)
        } else {
            match Pin::new(future).poll(cx) {
                Poll::Ready(Ok(received)) => {
                    let (head, stream) = received.into_parts();
                    (head, Some(stream))
                }
                Poll::Ready(Err(error)) => {
                    self.note(&error);
                    return Poll::Ready(Err(HeadError::Stream(error)));
                }
                Poll::Pending => return Poll::Pending,
            }
        };
        let is_complete = stream.as_ref().is_none_or(h2::RecvStream::is_end_stream);
        let read = message::read_response(head.status, &head.headers, is_complete, method, header_count_max, response);
        if let Err(malformed) = read {
            return Poll::Ready(Err(HeadError::Malformed(malformed)));
        }
        if let Some(protocol) = self.protocol.as_ref().filter(|_| (200..300).contains(&response.status)) {
            // What HTTP/1.1 calls a switch (RFC 8441 §5).
            response.status = 101;
            response.headers.set_known(Known::Status, b"101");
            response.headers.set_known(Known::Upgrade, protocol);
            response.headers.set_known(Known::Connection, b"upgrade");
            response.headers.remove_known(Known::ContentLength);
        }
        if let Some(stream) = stream {
            self.response = None;
            self.receiver = Some(BodyReceiver::new(stream, self.trailer_count_max));
        }
        Poll::Ready(Ok(response.headers.byte_count()))
    }

    /// The next piece of the response body.
    pub fn poll_body(&mut self, trailers: &mut HeaderMap, cx: &mut Context<'_>) -> Poll<Result<BodyEvent, BodyError>> {
        let Some(receiver) = &mut self.receiver else { return Poll::Ready(Err(BodyError::Truncated)) };
        let event = receiver.poll_next(trailers, cx);
        if let Poll::Ready(Err(BodyError::Stream(error))) = &event {
            self.note(error);
        }
        event
    }

    /// The request's body on its way out.
    pub fn sender(&mut self) -> Option<&mut BodySender> {
        self.sender.as_mut()
    }

    fn note(&self, error: &h2::Error) {
        if error.is_go_away() || error.is_io() {
            self.connection.closed_by_peer.set(true);
        }
    }
}

impl Pools {
    /// A stream to the chosen endpoint, on a connection that has room or on a new one.
    pub(super) async fn acquire_http2(
        self: &Rc<Self>,
        chosen: &Chosen,
        priority: Priority,
    ) -> Result<Lease, AcquireError> {
        let mut pending: Option<PendingPermit<'_>> = None;
        loop {
            if let Some(connection) = self.http2_with_room(chosen)? {
                drop(pending);
                return self.attach_http2(chosen, connection, priority);
            }
            if pending.is_none() {
                pending = Some(PendingPermit::new(self, chosen.cluster, priority)?);
            }
            if !self.http2_is_connecting(chosen)
                && let Some(counted) = self.may_connect(chosen, priority)?
            {
                let connecting = Connecting::new(self, chosen);
                let upstream = self.connect(chosen, priority, counted, Carried::Http2).await?;
                drop(connecting);
                self.open_http2(chosen, upstream)?;
                continue;
            }
            match WaitForConnection::new(self, chosen)?.await {
                // One that speaks HTTP/1.1: another request may want it.
                Answer::Granted(upstream) => self.put_back(upstream),
                Answer::TryAgain => {}
            }
        }
    }

    fn http2_with_room(&self, chosen: &Chosen) -> Result<Option<Rc<Http2Connection>>, AcquireError> {
        let mut state = self.state.borrow_mut();
        let host = state.host_pool(chosen).ok_or(AcquireError::HostGone)?;
        // The oldest first: the others can then become idle and close.
        Ok(host.http2.iter().find(|connection| connection.has_room()).cloned())
    }

    pub(super) fn http2_is_connecting(&self, chosen: &Chosen) -> bool {
        let mut state = self.state.borrow_mut();
        let Some(host) = state.host_pool(chosen) else { return false };
        host.http2_connecting > 0 || host.http2.iter().any(|connection| connection.is_settling())
    }

    /// Begins to speak HTTP/2 on a new connection.
    pub(super) fn open_http2(self: &Rc<Self>, chosen: &Chosen, upstream: Box<Upstream>) -> Result<(), AcquireError> {
        let (options, header_bytes_max) = {
            let mut state = self.state.borrow_mut();
            let pool = state.existing(chosen.cluster).ok_or(AcquireError::HostGone)?;
            (pool.cluster.http.http2, pool.cluster.http.header_bytes_max)
        };
        let now = self.ring.now();
        let Upstream { socket, local, id, place, .. } = *upstream;
        let tls = socket.tls().cloned();
        let shared = SharedSocket::new(&self.ring, socket, options.frames, false);
        let mut builder = client::Builder::new();
        builder
            .initial_window_size(options.stream_window_bytes)
            .initial_connection_window_size(options.connection_window_bytes.max(options.stream_window_bytes))
            .header_table_size(options.header_table_bytes)
            .max_header_list_size(header_bytes_max)
            .max_send_buffer_size(SEND_BUFFER_BYTES_MAX)
            .enable_push(false)
            .initial_max_send_streams(STREAMS_MAX_ADVISED)
            // The frame meter bounds them by rate; the codec would count them over the connection's life.
            .max_local_error_reset_streams(None);
        let mut handshake = std::pin::pin!(builder.handshake(RingIo(Rc::clone(&shared))));
        // A client's handshake only writes: it is over at once.
        let done = handshake.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        let Poll::Ready(Ok((requests, codec))) = done else { return Err(AcquireError::HostGone) };
        let connection = Rc::new(Http2Connection {
            id,
            local,
            tls,
            address: chosen.address.clone(),
            place,
            opened_at: now,
            requests: RefCell::new(Some(requests)),
            shared,
            streams_max: options.streams_max as usize,
            active: Cell::new(0),
            request_count: Cell::new(0),
            idle_since: Cell::new(now),
            settled: Cell::new(false),
            retired: Cell::new(false),
            closed_by_peer: Cell::new(false),
            driver: RefCell::new(Waker::noop().clone()),
            unsettled: RefCell::default(),
        });
        let mut state = self.state.borrow_mut();
        match state.host_pool(chosen) {
            Some(host) => host.http2.push(Rc::clone(&connection)),
            None => connection.retire(),
        }
        state.invite_all(chosen.cluster, &connection.place, &connection.address);
        drop(state);
        self.ring.spawn(drive(Rc::clone(self), connection, codec, options));
        Ok(())
    }

    fn attach_http2(
        self: &Rc<Self>,
        chosen: &Chosen,
        connection: Rc<Http2Connection>,
        priority: Priority,
    ) -> Result<Lease, AcquireError> {
        let mut state = self.state.borrow_mut();
        let pool = state.existing(chosen.cluster).ok_or(AcquireError::HostGone)?;
        if !pool.admission.try_acquire(Resource::Requests, priority) {
            pool.cluster.stats.increment(self.core, ClusterStat::UpstreamRqActiveOverflow);
            return Err(AcquireError::RequestOverflow);
        }
        pool.begin_request(self.core, chosen);
        connection.active.set(connection.active.get() + 1);
        let count = connection.request_count.get() + 1;
        connection.request_count.set(count);
        if pool.cluster.http.requests_per_connection_max.is_some_and(|max| max <= count) {
            pool.cluster.stats.increment(self.core, ClusterStat::UpstreamCxMaxRequests);
            connection.retired.set(true);
        }
        let trailer_count_max = pool.cluster.http.header_count_max as usize;
        drop(state);
        let stream = Http2Upstream {
            ring: self.ring.clone(),
            connection,
            priority,
            response: None,
            sender: None,
            receiver: None,
            trailer_count_max,
            protocol: None,
        };
        Ok(Lease::of_http2(self, stream))
    }

    /// A stream is over.
    pub(super) fn on_http2_ended(&self, stream: Http2Upstream) {
        let connection = Rc::clone(&stream.connection);
        let is_complete = stream.is_complete();
        let priority = stream.priority;
        let was_sent = stream.sender.is_some();
        // What is not complete is reset by the codec.
        drop(stream);
        connection.end_stream(self.ring.now());
        let mut state = self.state.borrow_mut();
        let cluster = connection.place.cluster;
        let Some(pool) = state.existing(cluster) else { return };
        pool.admission.release(Resource::Requests, priority);
        pool.cluster.stats.decrement(self.core, ClusterStat::UpstreamRqActive);
        if was_sent && !is_complete {
            pool.cluster.stats.increment(self.core, ClusterStat::UpstreamRqTxReset);
        }
        if let Some(place) =
            pool.place_at(connection.place.epoch, connection.place.host, || Some(connection.address.clone()))
        {
            if let Some(active) = pool.active.get_mut(place.0 as usize) {
                *active = active.saturating_sub(1);
            }
            if let Some(host) = pool.cluster.host(place) {
                host.stats.decrement(self.core, HostStat::RqActive);
            }
        }
        state.invite_all(cluster, &connection.place, &connection.address);
    }

    fn on_http2_closed(&self, connection: &Rc<Http2Connection>) {
        let cluster = connection.place.cluster;
        let mut state = self.state.borrow_mut();
        let Some(pool) = state.existing(cluster) else { return };
        let counts = connection.shared.byte_counts();
        let requests = u64::from(connection.request_count.get());
        let now = self.ring.now();
        let place = pool.place_at(connection.place.epoch, connection.place.host, || Some(connection.address.clone()));
        let counted_at = Place { host: place.unwrap_or(HOST_GONE), ..connection.place };
        count_ended(&pool.cluster, &mut pool.admission, self.core, &counted_at, requests, counts);
        let length = now.since(connection.opened_at);
        pool.cluster.stats.record(self.core, ClusterStat::UpstreamCxLengthMs, length.as_millis() as u64);
        let (by_whom, with_requests) = match connection.closed_by_peer.get() {
            true => (ClusterStat::UpstreamCxDestroyRemote, ClusterStat::UpstreamCxDestroyRemoteWithActiveRq),
            false => (ClusterStat::UpstreamCxDestroyLocal, ClusterStat::UpstreamCxDestroyLocalWithActiveRq),
        };
        pool.cluster.stats.increment(self.core, by_whom);
        if connection.active.get() > 0 {
            pool.cluster.stats.increment(self.core, with_requests);
            pool.cluster.stats.increment(self.core, ClusterStat::UpstreamCxDestroyWithActiveRq);
        }
        if let Some(host) = place.and_then(|place| pool.hosts.get_mut(place.0 as usize)) {
            host.http2.retain(|other| !Rc::ptr_eq(other, connection));
            host.connection_count = host.connection_count.saturating_sub(1);
        }
        state.invite_all(cluster, &connection.place, &connection.address);
    }

    /// The peer said how many streams it takes: those that waited for that may come.
    fn on_http2_settled(&self, connection: &Http2Connection) {
        connection.settled.set(true);
        connection.unsettled.take().into_iter().for_each(Waker::wake);
        let place = &connection.place;
        self.state.borrow_mut().invite_all(place.cluster, place, &connection.address);
    }

    fn count_http2(&self, connection: &Http2Connection, stat: ClusterStat) {
        if let Some(pool) = self.state.borrow_mut().existing(connection.place.cluster) {
            pool.cluster.stats.increment(self.core, stat);
        }
    }

    /// Idle time and age that a connection may reach.
    fn http2_limits(&self, connection: &Http2Connection) -> (Option<Duration>, Option<Duration>) {
        let mut state = self.state.borrow_mut();
        let pool = state.existing(connection.place.cluster);
        pool.map_or((None, None), |pool| (pool.cluster.http.idle_timeout, pool.cluster.http.max_connection_duration))
    }
}

/// Says that a connection is being opened, so that others wait for it instead of opening one each.
pub(super) struct Connecting<'a> {
    pools: &'a Pools,
    chosen: &'a Chosen,
}

impl<'a> Connecting<'a> {
    pub(super) fn new(pools: &'a Pools, chosen: &'a Chosen) -> Self {
        if let Some(host) = pools.state.borrow_mut().host_pool(chosen) {
            host.http2_connecting += 1;
        }
        Self { pools, chosen }
    }
}

impl Drop for Connecting<'_> {
    fn drop(&mut self) {
        let mut state = self.pools.state.borrow_mut();
        if let Some(host) = state.host_pool(self.chosen) {
            host.http2_connecting = host.http2_connecting.saturating_sub(1);
        }
        state.invite_all_of(self.chosen);
    }
}

/// Drives a connection to its end.
async fn drive(
    pools: Rc<Pools>,
    connection: Rc<Http2Connection>,
    mut codec: client::Connection<RingIo, BodyData>,
    options: Http2Options,
) {
    let ring = pools.ring.clone();
    let mut timer = ring.timer();
    let ping = codec.ping_pong();
    let mut keepalive = Keepalive::new(options.keepalive, ping, ring.now(), connection.id);
    poll_fn(|cx| {
        connection.driver.borrow_mut().clone_from(cx.waker());
        if connection.retired.get() && connection.active.get() == 0 {
            // Without handles the codec says GOAWAY and ends.
            drop(connection.requests.borrow_mut().take());
        }
        connection.shared.begin_turn();
        match Pin::new(&mut codec).poll(cx) {
            Poll::Ready(ended) => {
                let by_us = ended.as_ref().is_ok_and(|()| connection.retired.get());
                let library = ended.as_ref().is_err_and(h2::Error::is_library);
                connection.closed_by_peer.set(!by_us && !library);
                if library {
                    pools.count_http2(&connection, ClusterStat::UpstreamCxProtocolError);
                }
                return Poll::Ready(());
            }
            Poll::Pending => {}
        }
        if !connection.settled.get() && connection.shared.read_bytes() > 0 {
            pools.on_http2_settled(&connection);
        }
        if connection.shared.take_offence().is_some() {
            pools.count_http2(&connection, ClusterStat::UpstreamCxProtocolError);
            return Poll::Ready(());
        }
        watch(&pools, &connection, &ring, &mut timer, keepalive.as_mut(), cx)
    })
    .await;
    connection.retired.set(true);
    drop(connection.requests.borrow_mut().take());
    connection.unsettled.take().into_iter().for_each(Waker::wake);
    // Streams that are still open notice.
    drop(codec);
    pools.on_http2_closed(&connection);
    drop(connection.shared.take());
}

/// Retires the connection when it was idle for too long or is too old; ready when its peer does not answer.
fn watch(
    pools: &Pools,
    connection: &Http2Connection,
    ring: &Ring,
    timer: &mut Timer,
    mut keepalive: Option<&mut Keepalive>,
    cx: &mut Context<'_>,
) -> Poll<()> {
    let (idle_timeout, age_max) = pools.http2_limits(connection);
    loop {
        let now = ring.now();
        let is_fresh = !connection.retired.get();
        let is_idle = is_fresh && connection.active.get() == 0;
        let idle_at = idle_timeout.map(|timeout| if is_idle { connection.idle_since.get() } else { now } + timeout);
        let age_at = age_max.map(|max| connection.opened_at + max);
        if is_idle && idle_at.is_some_and(|at| at <= now) {
            pools.count_http2(connection, ClusterStat::UpstreamCxIdleTimeout);
            connection.retire();
        } else if is_fresh && age_at.is_some_and(|at| at <= now) {
            pools.count_http2(connection, ClusterStat::UpstreamCxMaxDurationReached);
            connection.retire();
        }
        let mut next = if is_fresh { [idle_at, age_at].into_iter().flatten().min() } else { None };
        if let Some(keepalive) = &mut keepalive {
            if keepalive.poll(now, connection.id.wrapping_mul(RANDOM_FACTOR), cx).is_ready() {
                return Poll::Ready(());
            }
            next = Some(next.map_or(keepalive.deadline(), |next| next.min(keepalive.deadline())));
        }
        match next.filter(|at| *at > now) {
            Some(next) => timer.set(next),
            None => timer.clear(),
        }
        if timer.poll_expired(cx).is_pending() {
            return Poll::Pending;
        }
    }
}

/// The place of an endpoint that left its cluster: nothing is there.
pub(super) const HOST_GONE: HostIndex = HostIndex(u32::MAX);
/// Streams that are opened before the peer has said how many it takes: it would refuse those above that, and every peer takes one.
const STREAMS_UNTIL_SETTINGS: usize = 1;
/// Streams that a peer takes whose SETTINGS do not say how many until they are whole (RFC 9113 §6.5.2 advises no less).
const STREAMS_MAX_ADVISED: usize = 100;
/// Bytes of one stream's request that the codec may hold.
const SEND_BUFFER_BYTES_MAX: usize = 256 * 1024;
/// Spreads the connections' PINGs over the jitter (the golden ratio of 64 bits).
const RANDOM_FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
