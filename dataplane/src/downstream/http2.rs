//! A client's HTTP/2 connection: takes its requests, each of which a runner serves like any other, and ends it in order.
//!
//! ```text
//! preface ─ serving ─┬─ GOAWAY(2^31-1) and PING ─ GOAWAY(last stream) ─ streams finish ─ closed     drain, age, request count
//!                    ├─ GOAWAY(ENHANCE_YOUR_CALM) ─ closed                                           more than the frame limits
//!                    └─ GOAWAY(reason) ─ closed                                                      protocol error
//! ```
//! One task a connection drives the codec. Exchanges read and write their streams through the codec's own handles, so that a slow
//! one holds back its own window and nobody else's.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use h2::Reason;
use h2::server;
use torus_codec::Malformed;
use torus_ring::{Nanos, Timer};

use super::connection::Rest;
use super::{ConnectionInfo, HttpConnectionManager, HttpTimeouts};
use crate::config::snapshot::{FilterChain, Listener};
use crate::exchange::client_stream::{ClientStream, Http2Client};
use crate::exchange::core_state::CoreState;
use crate::exchange::deadline::Deadline;
use crate::exchange::local_reply::Refusal;
use crate::exchange::{Exchange, Scope};
use crate::telemetry::counters::Stats;
use crate::telemetry::names::{Http2Stat, HttpStat};
use crate::transport::Transport;
use crate::wire::BodyData;
use crate::wire::http2::{Keepalive, KeepaliveOptions, Offence, RingIo, SharedSocket, message};
use crate::worker::ListenerHandle;

/// What a connection is from its first byte on.
pub struct Http2Connection {
    state: State,
    shared: Rc<SharedSocket>,
    context: Rc<Shared>,
    timeouts: HttpTimeouts,
    stats: Arc<Stats<HttpStat>>,
    http2_stats: Arc<Stats<Http2Stat>>,
    requests_max: Option<u32>,
    streams_max: u32,
    trailer_count_max: usize,
    request_count: u32,
    opened_at: Nanos,
    keepalive_options: Option<KeepaliveOptions>,
    keepalive: Option<Keepalive>,
    timer: Timer,
    /// The end was announced; when the connection closes whatever its client does.
    draining_until: Option<Nanos>,
    rest: Rest,
}

enum State {
    Handshake(server::Handshake<RingIo, BodyData>),
    Open(server::Connection<RingIo, BodyData>),
}

/// What all streams of a connection share.
struct Shared {
    info: ConnectionInfo,
    listener: ListenerHandle,
    /// Streams that are being served.
    live: Cell<u32>,
    /// What their heads take, decoded.
    head_bytes: Cell<usize>,
    idle_since: Cell<Nanos>,
}

/// A request that was received and waits for a runner.
pub struct Http2Request {
    head: http::request::Parts,
    is_complete: bool,
    stream: Http2Client,
    place: LiveStream,
}

/// A stream that is being served.
struct LiveStream {
    context: Rc<Shared>,
    ring: torus_ring::Ring,
    head_bytes: usize,
}

impl Drop for LiveStream {
    fn drop(&mut self) {
        let live = &self.context.live;
        live.set(live.get().saturating_sub(1));
        let head_bytes = &self.context.head_bytes;
        head_bytes.set(head_bytes.get().saturating_sub(self.head_bytes));
        self.context.idle_since.set(self.ring.now());
    }
}

impl Http2Connection {
    /// Begins to speak HTTP/2 on a client's socket; the preface is still to be read.
    pub fn new(
        core: &Rc<CoreState>,
        socket: Transport,
        info: ConnectionInfo,
        listener: &ListenerHandle,
        manager: &HttpConnectionManager,
    ) -> Self {
        let options = &manager.http2;
        let shared = SharedSocket::new(&core.ring, socket, options.frames, true);
        let mut builder = server::Builder::new();
        builder
            .initial_window_size(options.stream_window_bytes)
            .initial_connection_window_size(options.connection_window_bytes.max(options.stream_window_bytes))
            .max_concurrent_streams(options.streams_max)
            .header_table_size(options.header_table_bytes)
            .max_header_list_size(manager.header_bytes_max)
            .max_send_buffer_size(SEND_BUFFER_BYTES_MAX)
            // The frame meter bounds both by rate; the codec would count them over the connection's life.
            .max_local_error_reset_streams(None)
            .max_pending_accept_reset_streams(PENDING_RESETS_MAX);
        if options.takes_protocols {
            builder.enable_connect_protocol();
        }
        let now = core.ring.now();
        let context = Shared {
            info,
            listener: Rc::clone(listener),
            live: Cell::new(0),
            head_bytes: Cell::new(0),
            idle_since: Cell::new(now),
        };
        let stats = &manager.stats;
        stats.increment(core.core, HttpStat::DownstreamCxHttp2Total);
        stats.increment(core.core, HttpStat::DownstreamCxHttp2Active);
        Self {
            state: State::Handshake(builder.handshake(RingIo(Rc::clone(&shared)))),
            shared,
            context: Rc::new(context),
            timeouts: manager.timeouts,
            stats: Arc::clone(stats),
            http2_stats: Arc::clone(&manager.http2_stats),
            requests_max: manager.requests_per_connection_max,
            streams_max: options.streams_max,
            trailer_count_max: manager.request_options.limits.trailer_count_max,
            request_count: 0,
            opened_at: now,
            keepalive_options: options.keepalive,
            keepalive: None,
            timer: core.ring.timer(),
            draining_until: None,
            rest: Rest::Gone,
        }
    }

    /// The next request; `None` when the connection is over.
    pub fn poll_request(&mut self, core: &Rc<CoreState>, cx: &mut Context<'_>) -> Poll<Option<Box<Http2Request>>> {
        self.shared.begin_turn();
        loop {
            let polled = match &mut self.state {
                State::Handshake(handshake) => match Pin::new(handshake).poll(cx) {
                    Poll::Ready(Ok(mut connection)) => {
                        let random = core.random.borrow_mut().next_u64();
                        let ping = connection.ping_pong();
                        self.keepalive = Keepalive::new(self.keepalive_options, ping, core.ring.now(), random);
                        self.state = State::Open(connection);
                        continue;
                    }
                    Poll::Ready(Err(error)) => Poll::Ready(Some(Err(error))),
                    Poll::Pending => Poll::Pending,
                },
                State::Open(connection) => connection.poll_accept(cx),
            };
            match polled {
                Poll::Ready(Some(Ok((request, respond)))) => match self.accept(core, request, respond) {
                    Some(request) => return Poll::Ready(Some(request)),
                    None => continue,
                },
                Poll::Ready(Some(Err(error))) => {
                    self.note_error(core, &error);
                    return Poll::Ready(None);
                }
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => {}
            }
            if let Some(offence) = self.shared.take_offence() {
                self.end_at_once(core, offence);
                continue;
            }
            // The worker wakes this task when one of both may be so.
            if core.lifecycle.phase().is_leaving() || !self.client_is_believed() {
                self.drain(core.ring.now());
            }
            match self.poll_timers(core, cx) {
                Poll::Ready(()) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Ends the codec; the socket, if there still is one, and how it ends.
    pub fn into_socket(self, core: &Rc<CoreState>) -> (Option<Transport>, Rest) {
        self.stats.decrement(core.core, HttpStat::DownstreamCxHttp2Active);
        let live = self.context.live.get();
        if live > 0 && self.rest == Rest::Gone {
            self.stats.increment(core.core, HttpStat::DownstreamCxDestroyActiveRq);
            self.stats.increment(core.core, HttpStat::DownstreamCxDestroyRemoteActiveRq);
        }
        let rest = self.rest;
        let shared = Rc::clone(&self.shared);
        // Streams that are still served notice that they are over.
        drop(self);
        (shared.take(), rest)
    }

    fn client_is_believed(&self) -> bool {
        let Shared { info, listener, .. } = &*self.context;
        listener.chain(info.chain).is_none_or(|chain| chain.still_believes(info))
    }

    fn accept(
        &mut self,
        core: &Rc<CoreState>,
        request: http::Request<h2::RecvStream>,
        mut respond: server::SendResponse<BodyData>,
    ) -> Option<Box<Http2Request>> {
        let now = core.ring.now();
        self.request_count += 1;
        if self.requests_max.is_some_and(|max| self.request_count == max) {
            self.stats.increment(core.core, HttpStat::DownstreamCxMaxRequestsReached);
            self.drain(now);
        }
        if !self.client_is_believed() {
            self.drain(now);
            respond.send_reset(Reason::REFUSED_STREAM);
            return None;
        }
        if self.draining_until.is_none() {
            let random = core.random.borrow_mut().next_u64();
            if core.lifecycle.closes_connections_of(&self.context.listener, random) {
                self.stats.increment(core.core, HttpStat::DownstreamCxDrainClose);
                self.drain(now);
            }
        }
        let context = &self.context;
        let (head, body) = request.into_parts();
        let head_bytes = head_bytes(&head);
        // Streams that their client has reset are open no more for the codec; here they count until they are freed.
        let is_crowded = context.live.get() >= self.streams_max.saturating_mul(2);
        if is_crowded || context.head_bytes.get() + head_bytes > HEAD_BYTES_MAX {
            let stat = if is_crowded { Http2Stat::StreamRefusedErrors } else { Http2Stat::HeaderOverflow };
            self.http2_stats.increment(core.core, stat);
            // It was not looked at, so that it may be sent again (RFC 9113 §8.7).
            respond.send_reset(Reason::REFUSED_STREAM);
            return None;
        }
        context.live.set(context.live.get() + 1);
        context.head_bytes.set(context.head_bytes.get() + head_bytes);
        let is_complete = body.is_end_stream();
        Some(Box::new(Http2Request {
            head,
            is_complete,
            stream: Http2Client::new(body, respond, self.trailer_count_max),
            place: LiveStream { context: Rc::clone(context), ring: core.ring.clone(), head_bytes },
        }))
    }

    /// Announces the end (RFC 9113 §6.8): no new streams once the client has heard of it, and those that run finish.
    fn drain(&mut self, now: Nanos) {
        if self.draining_until.is_some() {
            return;
        }
        self.draining_until = Some(now + self.timeouts.drain);
        self.rest = Rest::Close;
        match &mut self.state {
            State::Open(connection) => connection.graceful_shutdown(),
            // Nothing was asked for yet.
            State::Handshake(_) => self.draining_until = Some(now),
        }
    }

    fn end_at_once(&mut self, core: &Rc<CoreState>, offence: Offence) {
        let stat = match offence {
            Offence::Resets => Http2Stat::InboundResetFlood,
            Offence::Control => Http2Stat::OutboundControlFlood,
            Offence::Empty => Http2Stat::InboundEmptyFramesFlood,
            Offence::Priority => Http2Stat::InboundPriorityFramesFlood,
            Offence::WindowUpdates => Http2Stat::InboundWindowUpdateFramesFlood,
            Offence::FrameSize
            | Offence::WindowSize
            | Offence::StreamClosed
            | Offence::Push
            | Offence::Compression
            | Offence::PseudoTrailer => Http2Stat::RxMessagingError,
        };
        self.http2_stats.increment(core.core, stat);
        self.stats.increment(core.core, HttpStat::DownstreamCxProtocolError);
        tracing::info!(
            target: "connection",
            "HTTP/2 connection {} from {} is closed: {offence}",
            self.context.info.id,
            self.context.info.direct_remote
        );
        self.rest = Rest::Close;
        if let State::Open(connection) = &mut self.state {
            connection.abrupt_shutdown(offence.reason());
        }
    }

    fn note_error(&mut self, core: &Rc<CoreState>, error: &h2::Error) {
        if error.is_io() || error.is_remote() {
            return;
        }
        // Ours: GOAWAY says why.
        self.rest = Rest::Close;
        self.stats.increment(core.core, HttpStat::DownstreamCxProtocolError);
        self.http2_stats.increment(core.core, Http2Stat::RxMessagingError);
    }

    /// Ready when a limit in time ends the connection now.
    fn poll_timers(&mut self, core: &Rc<CoreState>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let now = core.ring.now();
            let next = match self.next_deadline(core, now, cx) {
                Poll::Ready(()) => return Poll::Ready(()),
                Poll::Pending => self.next_at(now),
            };
            if self.timer.deadline() != next {
                match next {
                    Some(next) => self.timer.set(next),
                    None => self.timer.clear(),
                }
            }
            if self.timer.poll_expired(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }

    /// Acts on every deadline that has passed; ready when one ends the connection.
    fn next_deadline(&mut self, core: &Rc<CoreState>, now: Nanos, cx: &mut Context<'_>) -> Poll<()> {
        let late = |at: Option<Nanos>| at.is_some_and(|at| at <= now);
        if late(self.head_deadline()) {
            self.stats.increment(core.core, HttpStat::DownstreamRqHeaderTimeout);
            self.rest = Rest::Close;
            return Poll::Ready(());
        }
        if late(self.write_deadline()) {
            self.rest = Rest::Abort;
            return Poll::Ready(());
        }
        let idle = self.context.live.get() == 0;
        if idle && late(self.draining_until) {
            return Poll::Ready(());
        }
        if late(self.idle_deadline()) {
            self.stats.increment(core.core, HttpStat::DownstreamCxIdleTimeout);
            self.drain(now);
            // The codec has to send what was announced.
            self.draining_until = Some(now + IDLE_GOODBYE);
            cx.waker().wake_by_ref();
        }
        if late(self.age_deadline()) {
            self.stats.increment(core.core, HttpStat::DownstreamCxMaxDurationReached);
            self.drain(now);
            cx.waker().wake_by_ref();
        }
        let random = core.random.borrow_mut().next_u64();
        if let Some(keepalive) = &mut self.keepalive
            && keepalive.poll(now, random, cx).is_ready()
        {
            self.http2_stats.increment(core.core, Http2Stat::KeepaliveTimeout);
            self.rest = Rest::Abort;
            return Poll::Ready(());
        }
        Poll::Pending
    }

    fn next_at(&self, now: Nanos) -> Option<Nanos> {
        let idle = self.context.live.get() == 0;
        // A drain is looked at again even while streams run, for nobody says when the last one ends.
        let drain = self.draining_until.map(|at| if idle { at } else { at.max(now + DRAIN_LOOK) });
        let idle_at = self.idle_deadline().or_else(|| {
            let timeout = self.timeouts.idle.filter(|_| self.draining_until.is_none())?;
            Some(now + timeout)
        });
        let keepalive = self.keepalive.as_ref().map(Keepalive::deadline);
        let all = [self.head_deadline(), self.write_deadline(), drain, idle_at, self.age_deadline(), keepalive];
        all.into_iter().flatten().min()
    }

    /// The preface, or a header block that has begun, must be here.
    fn head_deadline(&self) -> Option<Nanos> {
        let since = match &self.state {
            State::Handshake(_) => Some(self.opened_at),
            State::Open(_) => self.shared.header_block_since(),
        };
        Some(since? + self.timeouts.request_headers?)
    }

    fn write_deadline(&self) -> Option<Nanos> {
        Some(self.shared.stalled_since()? + self.timeouts.write_progress?)
    }

    fn idle_deadline(&self) -> Option<Nanos> {
        let idle = self.context.live.get() == 0 && self.draining_until.is_none();
        idle.then(|| Some(self.context.idle_since.get() + self.timeouts.idle?))?
    }

    fn age_deadline(&self) -> Option<Nanos> {
        let fresh = self.draining_until.is_none();
        fresh.then(|| Some(self.opened_at + self.timeouts.connection_duration_max?))?
    }
}

impl Http2Request {
    /// Serves the request to its last byte.
    pub async fn serve(mut self: Box<Self>, core: &Rc<CoreState>, exchange: &mut Exchange) {
        let context = Rc::clone(&self.place.context);
        let snapshot = core.snapshot();
        let listener: &Listener = &context.listener;
        let chain = listener.chain(context.info.chain);
        let Some(manager) = chain.and_then(FilterChain::http) else { return };
        let connection = &context.info;
        let options = &manager.request_options;
        let read = message::read_request(
            &self.head,
            message::Place {
                is_complete: self.is_complete,
                is_secure: connection.secure,
                takes_protocols: manager.http2.takes_protocols,
            },
            options,
            &mut exchange.request,
        );
        let is_connect = self.head.method == http::Method::CONNECT;
        self.head.headers.clear();
        let scope = Scope { core, snapshot: &snapshot, listener, manager, connection, last_request: false };
        let head_bytes = exchange.request.headers.byte_count();
        let mut client = ClientStream::Http2(&mut self.stream);
        match read {
            Ok(()) => {
                let _ = exchange.run(&scope, &mut client, head_bytes).await;
            }
            Err(malformed) if resets_stream(malformed, is_connect) => {
                manager.http2_stats.increment(core.core, Http2Stat::RxMessagingError);
                exchange.run_reset(&scope, malformed);
                self.stream.reset(Reason::PROTOCOL_ERROR);
                return;
            }
            Err(malformed) => {
                manager.http2_stats.increment(core.core, Http2Stat::RxMessagingError);
                let _ = exchange.run_refused(&scope, &mut client, &Refusal::malformed(&malformed));
            }
        }
        self.finish(core, exchange, manager).await;
    }

    /// Waits until the client has room for the rest of the reply.
    async fn finish(&mut self, core: &Rc<CoreState>, exchange: &mut Exchange, manager: &HttpConnectionManager) {
        let stream = &mut self.stream;
        let timeout = manager.timeouts.write_progress;
        if stream.awaits_window() {
            // A client that takes nothing holds no more than its reply.
            exchange.release();
        }
        let deadlines = &mut exchange.deadlines;
        if stream.awaits_window() {
            deadlines.set(Deadline::WriteProgress, core.ring.now(), timeout);
        }
        std::future::poll_fn(|cx| {
            let now = core.ring.now();
            if stream.poll_end(now, cx).is_ready() {
                return Poll::Ready(());
            }
            while deadlines.poll_expired(now, cx).is_ready() {
                let stalled = now.since(stream.last_progress());
                match timeout.and_then(|timeout| timeout.checked_sub(stalled)).filter(|left| !left.is_zero()) {
                    Some(left) => deadlines.set(Deadline::WriteProgress, now, Some(left)),
                    None => {
                        manager.http2_stats.increment(core.core, Http2Stat::TxFlushTimeout);
                        manager.stats.increment(core.core, HttpStat::DownstreamRqTxReset);
                        stream.cancel();
                        return Poll::Ready(());
                    }
                }
            }
            Poll::Pending
        })
        .await;
        deadlines.clear_all();
        if stream.is_answered_early() {
            // A reset on the heels of the reply makes some clients drop the reply, and what the client has sent meanwhile may
            // still turn out malformed: it is heard out for a moment (RFC 9113 §8.1 lets a server ask for the rest to be left).
            deadlines.set(Deadline::RequestHead, core.ring.now(), Some(LINGER));
            std::future::poll_fn(|cx| {
                if deadlines.poll_expired(core.ring.now(), cx).is_ready() {
                    return Poll::Ready(());
                }
                stream.poll_discard(cx)
            })
            .await;
            deadlines.clear_all();
        }
    }
}

/// What a head takes once it is decoded, each field with its bookkeeping (RFC 9113 §6.5.2).
fn head_bytes(head: &http::request::Parts) -> usize {
    let fields = head.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + FIELD_EXTRA_BYTES);
    let target = head.uri.path_and_query().map_or(0, |target| target.as_str().len());
    target + fields.sum::<usize>()
}

/// Whether a fault is answered with a stream error instead of a reply: the request is no HTTP/2 (RFC 9113 §8.1.1).
fn resets_stream(malformed: Malformed, is_connect: bool) -> bool {
    let nowhere = is_connect && malformed == Malformed::HostMissing;
    nowhere
        || matches!(
            malformed,
            Malformed::Scheme
                | Malformed::Target
                | Malformed::FieldName
                | Malformed::FieldValue
                | Malformed::ContentLength
                | Malformed::ContentLengthRepeated
                | Malformed::HostRepeated
                | Malformed::Authority
        )
}

/// Bytes of one stream's reply that the codec may hold.
const SEND_BUFFER_BYTES_MAX: usize = 256 * 1024;
/// Streams that were reset before they were taken, which is what fits into one turn of reading; the frame meter bounds them over time.
const PENDING_RESETS_MAX: usize = 2_000;
/// What the heads of a connection's streams may take together: compressed, a byte may stand for thousands (RFC 7541 §7.3).
const HEAD_BYTES_MAX: usize = 1024 * 1024;
/// Counted for each field besides its name and value.
const FIELD_EXTRA_BYTES: usize = 32;
/// How long a client that was answered before it had sent its whole request is heard out.
const LINGER: std::time::Duration = std::time::Duration::from_secs(1);
/// How long an idle connection that was told the end may take to hear it.
const IDLE_GOODBYE: std::time::Duration = std::time::Duration::from_secs(1);
/// How often a connection that drains is looked at.
const DRAIN_LOOK: std::time::Duration = std::time::Duration::from_millis(100);
