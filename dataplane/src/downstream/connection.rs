//! A client's connection: one request after another until it is idle, closes or must close.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use torus_codec::Malformed;
use torus_ring::Nanos;

use super::ConnectionInfo;
use crate::config::snapshot::{FilterChain, Listener, NetworkFilter};
use crate::downstream::{CodecType, HttpConnectionManager};
use crate::exchange::client::Client;
use crate::exchange::client_stream::ClientStream;
use crate::exchange::core_state::CoreState;
use crate::exchange::deadline::Deadline;
use crate::exchange::local_reply::{Refusal, is_codec_error};
use crate::exchange::upload::QUEUED_BYTES_MAX;
use crate::exchange::{After, Exchange, Scope};
use crate::filter;
use crate::filter::network::Admission;
use crate::telemetry::names::{HttpStat, ListenerStat};
use crate::tls::TlsError;
use crate::transport::Transport;
use crate::wire::HeadError;
use crate::worker::ListenerHandle;

/// A client's connection between two requests; what a runner takes and gives back.
pub struct Connection {
    /// Its socket and the state of its messages.
    pub client: Client,
    /// Its addresses.
    pub info: ConnectionInfo,
    /// The listener that took it.
    pub listener: ListenerHandle,
    /// When it was accepted.
    pub opened_at: Nanos,
    /// Requests served.
    pub request_count: u32,
    /// The filters of its chain have let it pass.
    pub is_admitted: bool,
    /// It is counted as one of HTTP/1.1; until its first bytes came nobody knows.
    pub is_http1: bool,
}

/// Why a runner stopped serving a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// No request has begun to arrive.
    Idle,
    /// It closes once the last reply is sent.
    Close,
    /// It is reset.
    Abort,
    /// The client closed it.
    Gone,
    /// It speaks HTTP/2.
    Http2,
    /// Its chain does not read it as HTTP.
    Raw,
}

/// What came of waiting for a head.
enum Head {
    Ready(usize),
    Idle,
    Late,
    Failed(HeadError),
    Http2,
}

impl Connection {
    /// Serves requests until none is waiting.
    pub async fn serve(&mut self, core: &Rc<CoreState>, exchange: &mut Exchange) -> Rest {
        let listener = Rc::clone(&self.listener);
        let listener: &Listener = &listener;
        loop {
            let snapshot = core.snapshot();
            let Some(chain) = listener.chain(self.info.chain) else { return Rest::Close };
            let Some(manager) = chain.http() else { return Rest::Raw };
            if self.client.socket.is_handshaking()
                && let Some(rest) = self.handshake(core, listener, chain).await
            {
                return rest;
            }
            if !self.is_admitted
                && let Some(rest) = self.admit(core, chain).await
            {
                return rest;
            }
            if !chain.still_believes(&self.info) {
                return Rest::Close;
            }
            // What ALPN has settled needs no look at the first bytes.
            let by_alpn = manager.codec == CodecType::Auto && self.client.socket.alpn() == Some(b"h2");
            if manager.codec == CodecType::Http2 || by_alpn {
                return Rest::Http2;
            }
            let head = self.read_head(core, exchange, manager).await;
            if !self.is_http1 && !matches!(head, Head::Idle | Head::Http2) {
                self.is_http1 = true;
                manager.stats.increment(core.core, HttpStat::DownstreamCxHttp1Total);
                manager.stats.increment(core.core, HttpStat::DownstreamCxHttp1Active);
            }
            let last_request = matches!(head, Head::Ready(_)) && self.is_last_request(core, manager);
            let scope = Scope { core, snapshot: &snapshot, listener, manager, connection: &self.info, last_request };
            let after = match head {
                Head::Idle => return Rest::Idle,
                Head::Http2 => return Rest::Http2,
                Head::Ready(head_bytes) => {
                    exchange.run(&scope, &mut ClientStream::Http1(&mut self.client), head_bytes).await
                }
                Head::Late => {
                    manager.stats.increment(core.core, HttpStat::DownstreamRqHeaderTimeout);
                    exchange.run_refused(&scope, &mut ClientStream::Http1(&mut self.client), &Refusal::HEAD_TIMEOUT)
                }
                Head::Failed(HeadError::Malformed(malformed)) => {
                    if is_codec_error(malformed) {
                        manager.stats.increment(core.core, HttpStat::DownstreamCxProtocolError);
                    } else if malformed == Malformed::TargetFragment {
                        manager.stats.increment(core.core, HttpStat::DownstreamRqFailedPathNormalization);
                    }
                    exchange.run_refused(
                        &scope,
                        &mut ClientStream::Http1(&mut self.client),
                        &Refusal::malformed(&malformed),
                    )
                }
                Head::Failed(HeadError::Closed { .. } | HeadError::Io(_) | HeadError::Stream(_)) => return Rest::Gone,
            };
            self.request_count += 1;
            match after {
                After::Close => return Rest::Close,
                After::Abort => return Rest::Abort,
                After::Gone => return Rest::Gone,
                After::KeepAlive => {}
            }
            if !self.wait_until_sent(core, exchange, manager).await {
                return Rest::Abort;
            }
        }
    }

    /// Serves a connection that is not read as HTTP to its end.
    pub async fn serve_raw(&mut self, core: &Rc<CoreState>) -> Rest {
        let listener = Rc::clone(&self.listener);
        let Some(chain) = listener.chain(self.info.chain) else { return Rest::Close };
        if self.client.socket.is_handshaking()
            && let Some(rest) = self.handshake(core, &listener, chain).await
        {
            return rest;
        }
        if let Some(rest) = self.admit(core, chain).await {
            return rest;
        }
        match &chain.terminal {
            NetworkFilter::Tcp(proxy) => proxy.serve(core, self).await,
            NetworkFilter::DirectResponse(bytes) => {
                self.client.socket.write(Arc::clone(bytes));
                Rest::Close
            }
            NetworkFilter::Http(_) => Rest::Close,
        }
    }

    /// Asks the filters of its chain; what becomes of the connection where one does not let it pass.
    async fn admit(&mut self, core: &CoreState, chain: &FilterChain) -> Option<Rest> {
        match filter::network::admit(&chain.filters, core.core, core.ring.now(), &self.info) {
            Admission::Pass => {
                self.is_admitted = true;
                None
            }
            Admission::End(delay) => {
                if !delay.is_zero() {
                    core.ring.sleep(delay).await;
                }
                Some(Rest::Close)
            }
        }
    }

    /// Completes the TLS handshake; what becomes of the connection where that fails.
    async fn handshake(&mut self, core: &CoreState, listener: &Listener, chain: &FilterChain) -> Option<Rest> {
        let Transport::Tls(session) = &mut self.client.socket else { return None };
        let mut timer = core.ring.timer();
        timer.set(self.opened_at + chain.handshake_timeout);
        let done = poll_fn(|cx| match session.poll_handshake(cx) {
            Poll::Ready(done) => Poll::Ready(done),
            Poll::Pending => timer.poll_expired(cx).map(|()| Err(TlsError::Late)),
        })
        .await;
        match done {
            Ok(()) => {
                self.info.tls = Some(Arc::clone(session.info()));
                self.info.trust_epoch.set(session.trust_epoch());
                if let Some(tls) = &chain.tls {
                    tls.count_handshake(core.core, session.info());
                }
                None
            }
            Err(error) => {
                if let Some(tls) = &chain.tls {
                    tls.count_failure(core.core, &error);
                }
                if matches!(error, TlsError::Late) {
                    listener.stats.increment(core.core, ListenerStat::DownstreamCxTransportSocketConnectTimeout);
                }
                if let NetworkFilter::Tcp(proxy) = &chain.terminal {
                    proxy.log_failed_handshake(core, self, &error);
                }
                tracing::debug!(
                    target: "connection",
                    "listener `{}`: TLS with {} failed: {error}", listener.name, self.info.direct_remote
                );
                Some(match error {
                    // The alert is to arrive.
                    TlsError::Protocol(_) => Rest::Close,
                    TlsError::Closed | TlsError::Io(_) | TlsError::NotReady => Rest::Gone,
                    TlsError::Late => Rest::Abort,
                })
            }
        }
    }

    /// Whether the connection closes after the next reply: it is old or has served enough.
    fn is_last_request(&self, core: &CoreState, manager: &HttpConnectionManager) -> bool {
        let limit_reached = manager.requests_per_connection_max.is_some_and(|max| self.request_count + 1 >= max);
        if limit_reached {
            manager.stats.increment(core.core, HttpStat::DownstreamCxMaxRequestsReached);
        }
        let age = core.ring.now().since(self.opened_at);
        let too_old = manager.timeouts.connection_duration_max.is_some_and(|max| age >= max);
        limit_reached || too_old
    }

    /// Reads the next head. A connection on which nothing arrives is idle; one on which a head has begun must finish it in time.
    async fn read_head(&mut self, core: &CoreState, exchange: &mut Exchange, manager: &HttpConnectionManager) -> Head {
        let client = &mut self.client;
        let mut is_timed = false;
        poll_fn(|cx| {
            if let Poll::Ready(read) = client.poll_head(&manager.request_options, &mut exchange.request, cx) {
                return Poll::Ready(match read {
                    Ok(head_bytes) => Head::Ready(head_bytes),
                    Err(_) if client.speaks_http2() => Head::Http2,
                    Err(error) => Head::Failed(error),
                });
            }
            if !client.head_is_partial() {
                return Poll::Ready(Head::Idle);
            }
            let now = core.ring.now();
            if !is_timed {
                is_timed = true;
                exchange.deadlines.clear_all();
                exchange.deadlines.set(Deadline::RequestHead, now, manager.timeouts.request_headers);
            }
            exchange.deadlines.poll_expired(now, cx).map(|_| Head::Late)
        })
        .await
    }

    /// Waits while too much of the last reply is unsent; whether the client takes it.
    async fn wait_until_sent(
        &mut self,
        core: &CoreState,
        exchange: &mut Exchange,
        manager: &HttpConnectionManager,
    ) -> bool {
        let socket = &mut self.client.socket;
        if socket.queued_bytes() <= QUEUED_BYTES_MAX {
            return true;
        }
        let deadlines = &mut exchange.deadlines;
        deadlines.clear_all();
        let mut seen_progress_at = socket.last_write_progress();
        deadlines.set(Deadline::WriteProgress, core.ring.now(), manager.timeouts.write_progress);
        poll_fn(|cx| {
            if let Poll::Ready(drained) = socket.poll_drained(cx, QUEUED_BYTES_MAX) {
                return Poll::Ready(drained.is_ok());
            }
            let now = core.ring.now();
            while deadlines.poll_expired(now, cx).is_ready() {
                if socket.last_write_progress() == seen_progress_at {
                    return Poll::Ready(false);
                }
                seen_progress_at = socket.last_write_progress();
                deadlines.set(Deadline::WriteProgress, now, manager.timeouts.write_progress);
            }
            Poll::Pending
        })
        .await
    }
}
