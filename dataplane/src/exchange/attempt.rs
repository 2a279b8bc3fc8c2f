//! One try: lease a connection to the chosen endpoint, send the request, wait for the head of the reply.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::task::Poll;

use torus_codec::{ConnectionToken, EncodeOptions, Known, Limits, remove_hop_by_hop};

use super::client::WhileWaiting;
use super::client_stream::ClientStream;
use super::deadline::Deadline;
use super::forward::{Forwarding, system_error_text};
use super::retry::AttemptFailure;
use super::upload::{Passing, UploadError};
use super::{Exchange, Scope};
use crate::filter::FilterRefusal;
use crate::telemetry::names::ClusterStat;
use crate::telemetry::stream_info::ResponseFlag;
use crate::tls::TlsError;
use crate::upstream::{AcquireError, Chosen, Lease, SendHeadError};
use crate::wire::{BodyError, HeadError};

/// How an attempt ended.
#[allow(
    clippy::large_enum_variant,
    reason = "it moves once an attempt, and a box would be an allocation for a request"
)]
pub(super) enum Outcome {
    /// The head of a reply is in `Exchange::response`; its body is still to be read.
    Head(Lease),
    /// The upstream gave none.
    Failed(Failure),
    /// The client closed its connection.
    ClientGone,
    /// The client's body can't be read.
    ClientFailed(BodyError),
    /// A filter refuses the client's body.
    Refused(FilterRefusal),
    /// A limit was reached.
    Deadline(Deadline),
}

/// A failed attempt.
pub(super) struct Failure {
    /// What a retry policy judges.
    pub kind: AttemptFailure,
    /// What the operating system said.
    error: Option<io::Error>,
}

impl Failure {
    pub(super) fn new(kind: AttemptFailure) -> Self {
        Self { kind, error: None }
    }

    /// Envoy's name of the reset.
    pub(super) fn reason(&self) -> &'static str {
        match self.kind {
            AttemptFailure::ConnectRefused => "remote connection failure",
            AttemptFailure::ConnectTimeout => "connection timeout",
            AttemptFailure::RemoteReset => "remote reset",
            AttemptFailure::RefusedStream => "remote refused stream reset",
            AttemptFailure::Overflow => "overflow",
            AttemptFailure::ResetBeforeRequest | AttemptFailure::Reset | AttemptFailure::PerTryTimeout => {
                "connection termination"
            }
            AttemptFailure::ProtocolError => "protocol error",
        }
    }

    /// The response flag. Source: Envoy, the stream reset reason's flag.
    pub(super) fn flag(&self) -> ResponseFlag {
        match self.kind {
            AttemptFailure::ConnectRefused | AttemptFailure::ConnectTimeout => ResponseFlag::UpstreamConnectionFailure,
            AttemptFailure::Overflow => ResponseFlag::UpstreamOverflow,
            AttemptFailure::ResetBeforeRequest | AttemptFailure::Reset => ResponseFlag::UpstreamConnectionTermination,
            AttemptFailure::RemoteReset | AttemptFailure::RefusedStream => ResponseFlag::UpstreamRemoteReset,
            AttemptFailure::PerTryTimeout => ResponseFlag::UpstreamRequestTimeout,
            AttemptFailure::ProtocolError => ResponseFlag::UpstreamProtocolError,
        }
    }

    /// 502 for a reply that is no HTTP, 503 otherwise.
    pub(super) fn status(&self) -> u16 {
        if self.kind == AttemptFailure::ProtocolError { 502 } else { 503 }
    }

    /// Whether a circuit breaker refused.
    pub(super) fn is_overflow(&self) -> bool {
        self.kind == AttemptFailure::Overflow
    }

    /// Why the connection could not be made, for instance `delayed connect error: Connection refused`.
    pub(super) fn transport_failure(&self) -> Option<String> {
        self.error.as_ref().map(connect_failure)
    }
}

/// Why a connection to an endpoint could not be made, for instance `delayed connect error: Connection refused`.
pub fn connect_failure(error: &io::Error) -> String {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>()) {
        Some(tls) => tls.reason(),
        None => format!("delayed connect error: {}", system_error_text(error)),
    }
}

impl Exchange {
    pub(super) async fn attempt(
        &mut self,
        scope: &Scope<'_>,
        client: &mut ClientStream<'_>,
        forwarding: &Forwarding<'_>,
        chosen: &Chosen,
    ) -> Outcome {
        let core = scope.core;
        self.note_host(scope, forwarding, chosen);
        self.deadlines.clear(Deadline::PerTry);
        self.deadlines.clear(Deadline::UpstreamStreamDuration);
        if self.upload.is_received() {
            self.start_per_try(scope, forwarding);
        }
        let mut lease = match self.lease(scope, client, forwarding, chosen).await {
            Ok(lease) => lease,
            Err(outcome) => return outcome,
        };
        let duration_max =
            forwarding.timeouts.upstream_stream_duration.unwrap_or(forwarding.cluster.http.max_stream_duration);
        self.deadlines.set(Deadline::UpstreamStreamDuration, core.ring.now(), duration_max);
        let elapsed = self.elapsed(core);
        self.info.upstream_connection_ready = Some(elapsed);
        if self.asks_upgrade && !forwarding.terminates_connect(&self.request) {
            match self.await_upgrade_support(scope, client, &mut lease).await {
                Ok(()) => {}
                Err(outcome) => return outcome,
            }
        }
        let Some(mut upstream) = lease.stream() else { return Outcome::ClientGone };
        self.info.upstream_connection_id = upstream.id();
        self.info.connection_ids_attempted.push(upstream.id());
        self.info.upstream_local = upstream.local();
        self.info.upstream_tls = upstream.tls();
        if forwarding.terminates_connect(&self.request) {
            self.grant_tunnel();
            return Outcome::Head(lease);
        }
        self.info.upstream_protocol = Some(upstream.protocol());
        if self.asks_upgrade {
            self.complete_websocket_request(core, upstream.is_http2());
        }
        let http1 = &forwarding.cluster.http.http1;
        let options = EncodeOptions { case: http1.header_case, ..EncodeOptions::default() };
        let (headers, body) = (&self.request.headers, self.request.body);
        let token = if self.asks_upgrade && headers.get_known(Known::Upgrade).is_some() {
            ConnectionToken::Upgrade
        } else {
            ConnectionToken::None
        };
        let head_bytes = match upstream.send_head(&core.ring, headers, body, token, &options) {
            Ok(head_bytes) => head_bytes,
            // A header change made something that is no HTTP: nothing of it leaves.
            Err(SendHeadError::Unencodable) => {
                return Outcome::Failed(Failure::new(AttemptFailure::ProtocolError));
            }
            Err(SendHeadError::Refused) => return Outcome::Failed(Failure::new(AttemptFailure::ResetBeforeRequest)),
        };
        let trailers = &self.request_trailers;
        let body_bytes = self.upload.start_attempt(&core.ring, &mut upstream, trailers, http1);
        self.info.upstream_header_bytes_sent += headers.byte_count() as u64;
        self.info.upstream_wire_bytes_sent += (head_bytes + body_bytes) as u64;
        self.info.upstream_first_sent = Some(elapsed);
        if self.upload.is_done() {
            self.info.upstream_last_sent = Some(elapsed);
        }
        loop {
            match self.await_head(scope, client, forwarding, &mut lease).await {
                HeadOutcome::Head => {}
                HeadOutcome::Failed(failure) => {
                    if failure.kind == AttemptFailure::ProtocolError {
                        forwarding.cluster.stats.increment(core.core, ClusterStat::UpstreamCxProtocolError);
                    }
                    return Outcome::Failed(failure);
                }
                HeadOutcome::ClientGone => return Outcome::ClientGone,
                HeadOutcome::ClientFailed(error) => return Outcome::ClientFailed(error),
                HeadOutcome::Refused(refusal) => return Outcome::Refused(refusal),
                HeadOutcome::Deadline(deadline) => {
                    let stats = &forwarding.cluster.stats;
                    match deadline {
                        Deadline::PerTry => stats.increment(core.core, ClusterStat::UpstreamRqPerTryTimeout),
                        Deadline::PerTryIdle => stats.increment(core.core, ClusterStat::UpstreamRqPerTryIdleTimeout),
                        _ => {}
                    }
                    return Outcome::Deadline(deadline);
                }
            }
            if self.response.status >= 200 || self.is_switched() {
                return Outcome::Head(lease);
            }
            if let Some(failed) = self.relay_informational(scope, client, forwarding) {
                return failed;
            }
        }
    }

    /// Waits for a connection; `Err` says what ended the attempt.
    async fn lease(
        &mut self,
        scope: &Scope<'_>,
        client: &mut ClientStream<'_>,
        forwarding: &Forwarding<'_>,
        chosen: &Chosen,
    ) -> Result<Lease, Outcome> {
        let core = scope.core;
        let http2 = forwarding.cluster.http.protocol.is_http2_for(self.request.version);
        let priority = forwarding.forward.priority.into();
        let is_whole = forwarding.terminates_connect(&self.request);
        let mut acquire = pin!(async {
            match is_whole {
                true => core.pools.acquire_whole(chosen, priority).await,
                false => core.pools.acquire(chosen, priority, http2).await,
            }
        });
        let deadlines = &mut self.deadlines;
        let acquired = poll_fn(|cx| {
            if let Poll::Ready(acquired) = acquire.as_mut().poll(cx) {
                return Poll::Ready(Ok(acquired));
            }
            if let Poll::Ready(deadline) = deadlines.poll_expired(core.ring.now(), cx) {
                return Poll::Ready(Err(Outcome::Deadline(deadline)));
            }
            client.poll_gone(cx).map(|WhileWaiting::Gone| {
                forwarding.cluster.stats.increment(core.core, ClusterStat::UpstreamRqCancelled);
                Err(Outcome::ClientGone)
            })
        })
        .await;
        // What came while waiting may be body as well as the next request.
        client.watch();
        let failure = match acquired? {
            Ok(lease) => return Ok(lease),
            Err(AcquireError::PendingOverflow) => {
                // No endpoint was asked.
                self.info.upstream_host = None;
                Failure::new(AttemptFailure::Overflow)
            }
            Err(AcquireError::RequestOverflow) => Failure::new(AttemptFailure::Overflow),
            Err(AcquireError::ConnectTimeout) => Failure::new(AttemptFailure::ConnectTimeout),
            Err(AcquireError::HostGone) => Failure::new(AttemptFailure::ConnectRefused),
            Err(AcquireError::Connect(error)) => Failure { kind: AttemptFailure::ConnectRefused, error: Some(error) },
        };
        Err(Outcome::Failed(failure))
    }

    /// Sends the request's body while it waits for a head.
    async fn await_head(
        &mut self,
        scope: &Scope<'_>,
        client: &mut ClientStream<'_>,
        forwarding: &Forwarding<'_>,
        lease: &mut Lease,
    ) -> HeadOutcome {
        let core = scope.core;
        let method = self.method();
        let http = &forwarding.cluster.http;
        let limits = Limits {
            header_bytes_max: http.header_bytes_max as usize,
            header_count_max: http.header_count_max as usize,
            ..Limits::default()
        };
        let Some(mut upstream) = lease.stream() else { return HeadOutcome::ClientGone };
        poll_fn(|cx| {
            let now = core.ring.now();
            if let Poll::Ready(deadline) = self.deadlines.poll_expired(now, cx) {
                return Poll::Ready(HeadOutcome::Deadline(deadline));
            }
            if !self.upload.is_done() {
                let before_bytes = self.info.body_bytes_received;
                let (filters, info) = (&mut self.filters, &mut self.info);
                let passing = Passing { filters, trailers: &mut self.request_trailers, info };
                match self.upload.poll(&core.ring, client, &mut upstream, passing, cx) {
                    Poll::Ready(Ok(())) => self.on_upload_done(scope, forwarding),
                    Poll::Ready(Err(UploadError::Client(error))) => {
                        return Poll::Ready(HeadOutcome::ClientFailed(error));
                    }
                    Poll::Ready(Err(UploadError::Refused(refusal))) => {
                        return Poll::Ready(HeadOutcome::Refused(refusal));
                    }
                    // The reply may explain: look for it below.
                    Poll::Ready(Err(UploadError::Upstream)) => self.upload.give_up(),
                    Poll::Pending => {}
                }
                if self.info.body_bytes_received != before_bytes {
                    self.deadlines.set(Deadline::StreamIdle, now, self.idle_timeout);
                }
            }
            upstream.poll_flush(&core.ring, cx);
            match upstream.poll_head(method, &limits, &mut self.response, cx) {
                Poll::Ready(Ok(head_bytes)) => {
                    self.info.upstream_header_bytes_received = self.response.headers.byte_count() as u64;
                    self.info.upstream_wire_bytes_received += head_bytes as u64;
                    return Poll::Ready(HeadOutcome::Head);
                }
                Poll::Ready(Err(error)) => {
                    if !matches!(error, HeadError::Malformed(_)) {
                        upstream.note_closed_by_peer();
                    }
                    return Poll::Ready(HeadOutcome::Failed(failure_of(error, upstream.head_is_partial())));
                }
                Poll::Pending => {}
            }
            if self.upload.is_received() && client.poll_gone(cx).is_ready() {
                return Poll::Ready(HeadOutcome::ClientGone);
            }
            Poll::Pending
        })
        .await
    }

    /// Passes a 1xx head on where the client can take it.
    fn relay_informational(
        &mut self,
        scope: &Scope<'_>,
        client: &mut ClientStream<'_>,
        forwarding: &Forwarding<'_>,
    ) -> Option<Outcome> {
        let status = self.response.status;
        self.informational_count += 1;
        self.count_upstream_code(scope, forwarding.cluster, status);
        // Nobody asked to switch protocols, and a flood of 1xx is no reply (RFC 9110 §15.2).
        if status == 101 || self.informational_count > scope.manager.request_options.limits.informational_count_max {
            return Some(Outcome::Failed(Failure::new(AttemptFailure::ProtocolError)));
        }
        let wanted = status != 100 || scope.manager.proxy_100_continue;
        if wanted && self.request.version != torus_codec::Version::Http10 {
            remove_hop_by_hop(&mut self.response.headers, false);
            let (options, version) = (self.encode_options(scope), self.request.version);
            let head_bytes = client.send_informational(&scope.core.ring, version, &self.response.headers, &options);
            self.info.downstream_wire_bytes_sent += head_bytes as u64;
        }
        None
    }

    pub(super) fn on_upload_done(&mut self, scope: &Scope<'_>, forwarding: &Forwarding<'_>) {
        let core = scope.core;
        let elapsed = self.elapsed(core);
        self.info.request_complete.get_or_insert(elapsed);
        self.info.upstream_last_sent = Some(elapsed);
        self.deadlines.clear(Deadline::Request);
        self.deadlines.set(Deadline::Route, core.ring.now(), forwarding.timeouts.global);
        self.start_per_try(scope, forwarding);
    }

    fn start_per_try(&mut self, scope: &Scope<'_>, forwarding: &Forwarding<'_>) {
        let now = scope.core.ring.now();
        self.deadlines.set(Deadline::PerTry, now, forwarding.timeouts.per_try);
        self.deadlines.set(Deadline::PerTryIdle, now, forwarding.timeouts.per_try_idle);
    }

    /// Writes down which endpoint serves the attempt, and takes its host name where the route says so.
    fn note_host(&mut self, scope: &Scope<'_>, forwarding: &Forwarding<'_>, chosen: &Chosen) {
        let keep_original = !scope.manager.router.suppress_envoy_headers;
        let (info, request, scratch) = (&mut self.info, &mut self.request.headers, &mut self.route_scratch);
        let is_canary = &mut self.is_canary;
        info.upstream_host = Some(chosen.address.clone());
        info.hosts_attempted.push(chosen.address.clone());
        info.upstream_host_name.clear();
        scope.core.pools.with_host(chosen, |_, host| {
            *is_canary = host.canary;
            info.upstream_host_name.push_str(&host.hostname);
            forwarding.matched.rewrite_host_for_endpoint(&host.hostname, keep_original, request, scratch);
        });
    }
}

/// [`Outcome`] without the lease, which stays with the caller.
enum HeadOutcome {
    Head,
    Failed(Failure),
    ClientGone,
    ClientFailed(BodyError),
    Refused(FilterRefusal),
    Deadline(Deadline),
}

/// A connection that ends inside a head broke the protocol; one that ends before it is only gone.
fn failure_of(error: HeadError, is_partial: bool) -> Failure {
    match error {
        HeadError::Closed { .. } | HeadError::Io(_) if is_partial => Failure::new(AttemptFailure::ProtocolError),
        HeadError::Closed { .. } | HeadError::Io(_) => Failure::new(AttemptFailure::Reset),
        HeadError::Malformed(_) => Failure::new(AttemptFailure::ProtocolError),
        HeadError::Stream(error) if error.is_reset() && error.is_remote() => Failure::new(match error.reason() {
            Some(h2::Reason::REFUSED_STREAM) => AttemptFailure::RefusedStream,
            _ => AttemptFailure::RemoteReset,
        }),
        HeadError::Stream(error) if error.is_library() => Failure::new(AttemptFailure::ProtocolError),
        HeadError::Stream(_) => Failure::new(AttemptFailure::Reset),
    }
}
