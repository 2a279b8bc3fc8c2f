//! The reply on its way to the client: head rewritten, body passed on as the received buffers, trailers where allowed.

use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use torus_codec::{BodyLength, ConnectionToken, Known, Unencodable, Version};

use super::client_stream::ClientStream;
use super::deadline::Deadline;
use super::forward::Forwarding;
use super::local_reply::{Decimal, Refusal};
use super::upload::{Passing, UploadError};
use super::{After, Exchange, Scope};
use crate::downstream::edge;
use crate::filter::Hold;
use crate::telemetry::counters::ResponseOrigin;
use crate::telemetry::names::{ClusterStat, HttpStat};
use crate::telemetry::stream_info::ResponseFlag;
use crate::upstream::Lease;
use crate::wire::{BodyError, BodyEvent};

/// How the passing on of a body ended.
pub(super) enum Ended {
    Complete,
    ClientGone,
    UpstreamFailed(BodyError),
    /// The reply is kept back and longer than may be kept.
    TooLong,
    Deadline(Deadline),
}

impl Exchange {
    /// Sends the reply whose head is in `self.response` and whose body comes from the lease.
    pub(super) async fn relay(
        &mut self,
        scope: &Scope<'_>,
        client: &mut ClientStream<'_>,
        forwarding: &Forwarding<'_>,
        mut lease: Lease,
    ) -> After {
        let core = scope.core;
        let stats = &forwarding.cluster.stats;
        self.deadlines.clear(Deadline::PerTry);
        let elapsed = self.elapsed(core);
        self.info.upstream_first_received = Some(elapsed);
        self.info.response_code = self.response.status;
        let says_canary = self.response.headers.get_known(Known::XEnvoyUpstreamCanary) == Some(b"true");
        self.count_upstream_code(scope, forwarding.cluster, self.response.status);
        if self.is_canary || says_canary {
            stats.response_code_from(core.core, ResponseOrigin::Canary, self.response.status);
        }
        self.prepare_reply(scope, forwarding, elapsed);
        let hold = if self.filters.is_empty() { None } else { self.filters.on_response(&mut self.response) };
        let (framing, ended) = if let Some(hold) = hold {
            match self.relay_held(scope, client, forwarding, &mut lease, hold).await {
                Ok(both) => both,
                Err(_) => return self.send_bare_error(scope, client),
            }
        } else {
            let Ok(framing) = self.send_reply_head(scope, client, elapsed) else {
                return self.send_bare_error(scope, client);
            };
            let ended = if framing.is_switched {
                self.pass_both_ways(scope, client, &mut lease).await
            } else {
                self.relay_body(scope, client, forwarding, &mut lease, None).await
            };
            (framing, ended)
        };
        let elapsed = self.elapsed(core);
        match ended {
            Ended::Complete => {
                self.info.upstream_last_received = Some(elapsed);
                self.info.downstream_last_sent = Some(elapsed);
                if framing.is_switched {
                    if let Some(mut upstream) = lease.stream() {
                        upstream.note_closed_by_peer();
                    }
                    lease.give_back();
                    return After::Close;
                }
                let elapsed_ms = elapsed.as_millis() as u64;
                stats.record(core.core, ClusterStat::UpstreamRqTime, elapsed_ms);
                let by_origin = match self.origin() {
                    ResponseOrigin::Internal => ClusterStat::InternalUpstreamRqTime,
                    _ => ClusterStat::ExternalUpstreamRqTime,
                };
                stats.record(core.core, by_origin, elapsed_ms);
                // A client that still sends its body can't be waited for (RFC 9112 §9.3): both connections end.
                if !self.upload.is_received() {
                    self.count_early(scope);
                    return After::Close;
                }
                lease.give_back();
                if framing.close { After::Close } else { After::KeepAlive }
            }
            Ended::ClientGone => {
                self.note_client_gone(scope, client);
                After::Gone
            }
            Ended::UpstreamFailed(error) => {
                if let (BodyError::Truncated | BodyError::Io(_), Some(mut upstream)) = (&error, lease.stream()) {
                    upstream.note_closed_by_peer();
                }
                match &error {
                    BodyError::Stream(reset) if reset.is_reset() && reset.is_remote() => {
                        stats.increment(core.core, ClusterStat::UpstreamRqRxReset);
                        let details = "upstream_reset_after_response_started{remote_reset}";
                        self.note(Some(ResponseFlag::UpstreamRemoteReset), details);
                    }
                    BodyError::Stream(ended) if !ended.is_library() => {
                        let details = "upstream_reset_after_response_started{connection_termination}";
                        self.note(Some(ResponseFlag::UpstreamConnectionTermination), details);
                    }
                    BodyError::Truncated | BodyError::Io(_) if framing.is_switched => {
                        let details = "upstream_reset_after_response_started{connection_termination}";
                        self.note(Some(ResponseFlag::UpstreamConnectionTermination), details);
                    }
                    _ => {
                        // A body that breaks off, by a close or a reset, is an unfinished message.
                        stats.increment(core.core, ClusterStat::UpstreamCxProtocolError);
                        let details = "upstream_reset_after_response_started{protocol_error}";
                        self.note(Some(ResponseFlag::UpstreamProtocolError), details);
                    }
                }
                scope.manager.stats.increment(core.core, HttpStat::DownstreamRqTxReset);
                framing.broken_off()
            }
            Ended::TooLong => {
                let matched = Some((forwarding.matched, forwarding.weighted));
                self.refuse(scope, client, matched, &Refusal::REPLY_TOO_LONG)
            }
            Ended::Deadline(deadline) => {
                self.note_late(scope, forwarding, deadline);
                framing.broken_off()
            }
        }
    }

    /// Keeps the reply back until it is complete, lets the filters have all of it, and sends it.
    async fn relay_held(
        &mut self,
        scope: &Scope<'_>,
        client: &mut ClientStream<'_>,
        forwarding: &Forwarding<'_>,
        lease: &mut Lease,
        hold: Hold,
    ) -> Result<(Framing, Ended), Unencodable> {
        self.body.clear();
        let ended = self.relay_body(scope, client, forwarding, lease, Some(hold)).await;
        if !matches!(ended, Ended::Complete) {
            return Ok((Framing::NONE, ended));
        }
        self.filters.on_held(&mut self.response, &mut self.body, &mut self.response_trailers);
        self.info.response_code = self.response.status;
        let body_bytes = self.body.len() as u64;
        self.response.body = if body_bytes == 0 { BodyLength::Empty } else { BodyLength::Length(body_bytes) };
        let elapsed = self.elapsed(scope.core);
        let framing = self.send_reply_head(scope, client, elapsed)?;
        if framing.length != BodyLength::Empty {
            self.info.body_bytes_sent = body_bytes;
            let ring = &scope.core.ring;
            let mut wire_bytes = client.send_slice(ring, &self.body);
            wire_bytes += client.finish_body(ring, &self.response_trailers, scope.manager.http1.header_case);
            self.info.downstream_wire_bytes_sent += wire_bytes as u64;
        }
        Ok((framing, ended))
    }

    /// Makes the head of the reply what the route says.
    fn prepare_reply(&mut self, scope: &Scope<'_>, forwarding: &Forwarding<'_>, elapsed: Duration) {
        let is_switched = self.is_switched();
        if is_switched {
            self.response.body = BodyLength::UntilClose;
            self.complete_websocket_reply();
        }
        let response = &mut self.response.headers;
        torus_codec::remove_hop_by_hop(response, is_switched);
        // A request that asks for an upgrade has no end from which its time could be counted.
        if !scope.manager.router.suppress_envoy_headers && !self.asks_upgrade {
            let since_request = elapsed.saturating_sub(self.info.request_complete.unwrap_or_default());
            let service_ms = Decimal::new(since_request.as_millis() as u64);
            response.set_known(Known::XEnvoyUpstreamServiceTime, service_ms.as_bytes());
        }
        if forwarding.matched.virtual_host.include_attempt_count_in_response {
            let count = Decimal::new(u64::from(self.info.attempt_count));
            response.set_known(Known::XEnvoyAttemptCount, count.as_bytes());
        }
        for cookie in self.text.split(|byte| *byte == 0).filter(|cookie| !cookie.is_empty()) {
            response.append_known(Known::SetCookie, cookie);
        }
        let (request, scratch) = (&self.request.headers, &mut self.route_scratch);
        self.info.response_code_details.clear();
        self.info.response_code_details.push_str("via_upstream");
        forwarding.matched.finalize_response(forwarding.weighted, &self.info, request, response, scratch);
    }

    /// Writes the reply's head as the client is to see it.
    fn send_reply_head(
        &mut self,
        scope: &Scope<'_>,
        client: &mut ClientStream<'_>,
        elapsed: Duration,
    ) -> Result<Framing, Unencodable> {
        let core = scope.core;
        let is_switched = self.is_switched();
        let (request, response) = (&self.request.headers, &mut self.response.headers);
        edge::prepare_response(scope.manager, request, &core.date(), response, &mut self.edge_scratch);
        let close = self.closes_after_reply(scope) || !self.request.keep_alive || !self.upload.can_finish();
        // What follows an upgrade that was not granted may be no HTTP.
        let close = close || self.asks_upgrade;
        // An HTTP/1.0 client sees the end of an unmeasured body by the close.
        let version = self.request.version;
        let unmeasured = matches!(self.response.body, BodyLength::Chunked | BodyLength::UntilClose);
        let close = close || version == Version::Http10 && unmeasured;
        let options = self.encode_options(scope);
        let token = match (is_switched, self.response.status) {
            (true, 101) => ConnectionToken::Upgrade,
            (true, _) => ConnectionToken::None,
            (false, _) => self.connection_token(close),
        };
        let (response, body) = (&self.response.headers, self.response.body);
        let (head_bytes, length) = client.send_head(&core.ring, version, response, body, token, &options)?;
        self.info.header_bytes_sent = response.byte_count() as u64;
        self.info.downstream_wire_bytes_sent += head_bytes as u64;
        self.info.downstream_first_sent = Some(elapsed);
        Ok(Framing { length, close, is_switched })
    }

    async fn relay_body(
        &mut self,
        scope: &Scope<'_>,
        client: &mut ClientStream<'_>,
        forwarding: &Forwarding<'_>,
        lease: &mut Lease,
        hold: Option<Hold>,
    ) -> Ended {
        let core = scope.core;
        let Some(mut upstream) = lease.stream() else { return Ended::ClientGone };
        let write_timeout = scope.manager.timeouts.write_progress;
        poll_fn(|cx| {
            let now = core.ring.now();
            while let Poll::Ready(deadline) = self.deadlines.poll_expired(now, cx) {
                if deadline == Deadline::WriteProgress {
                    let stalled = now.since(client.last_write_progress());
                    if let Some(left) = write_timeout.and_then(|timeout| timeout.checked_sub(stalled))
                        && !left.is_zero()
                    {
                        self.deadlines.set(Deadline::WriteProgress, now, Some(left));
                        continue;
                    }
                }
                return Poll::Ready(Ended::Deadline(deadline));
            }
            let before_bytes = (self.info.body_bytes_received, self.info.body_bytes_sent);
            if !self.upload.is_done() {
                let (filters, info) = (&mut self.filters, &mut self.info);
                let passing = Passing { filters, trailers: &mut self.request_trailers, info };
                match self.upload.poll(&core.ring, client, &mut upstream, passing, cx) {
                    Poll::Ready(Ok(())) => self.on_upload_done(scope, forwarding),
                    // The reply is on its way: there is no other answer left.
                    Poll::Ready(Err(UploadError::Client(_) | UploadError::Refused(_))) => {
                        return Poll::Ready(Ended::ClientGone);
                    }
                    Poll::Ready(Err(UploadError::Upstream)) => self.upload.give_up(),
                    Poll::Pending => {}
                }
            }
            upstream.poll_flush(&core.ring, cx);
            loop {
                match if hold.is_some() { Poll::Ready(Ok(())) } else { client.poll_writable(&core.ring, cx) } {
                    Poll::Ready(Ok(())) => self.deadlines.clear(Deadline::WriteProgress),
                    Poll::Ready(Err(_)) => return Poll::Ready(Ended::ClientGone),
                    Poll::Pending => {
                        self.deadlines.set(Deadline::WriteProgress, now, write_timeout);
                        break;
                    }
                }
                match upstream.poll_body(&mut self.response_trailers, cx) {
                    Poll::Ready(Ok(BodyEvent::Data(mut data))) => {
                        self.info.upstream_wire_bytes_received += data.len() as u64;
                        if !self.filters.is_empty() {
                            data = self.filters.on_response_data(data);
                        }
                        if let Some(hold) = hold {
                            let bytes_max = forwarding.cluster.connection_buffer_bytes_max as usize;
                            if !keep(&mut self.body, &data, hold, bytes_max) {
                                return Poll::Ready(Ended::TooLong);
                            }
                            continue;
                        }
                        self.info.body_bytes_sent += data.len() as u64;
                        let wire_bytes = client.send_body(&core.ring, data);
                        self.info.downstream_wire_bytes_sent += wire_bytes as u64;
                    }
                    Poll::Ready(Ok(BodyEvent::End)) => {
                        let from_upstream = upstream.takes_trailers(forwarding.cluster.http.http1.enable_trailers);
                        if !from_upstream {
                            self.response_trailers.clear();
                        }
                        if !self.filters.is_empty() {
                            let more = self.filters.on_response_end(&mut self.response_trailers);
                            if let Some(data) = more.filter(|_| hold.is_none()) {
                                self.info.body_bytes_sent += data.len() as u64;
                                let wire_bytes = client.send_body(&core.ring, data);
                                self.info.downstream_wire_bytes_sent += wire_bytes as u64;
                            }
                            if hold.is_some() {
                                return Poll::Ready(Ended::Complete);
                            }
                        }
                        if !client.takes_trailers(scope.manager.http1.enable_trailers) {
                            self.response_trailers.clear();
                        }
                        let wire_bytes =
                            client.finish_body(&core.ring, &self.response_trailers, scope.manager.http1.header_case);
                        self.info.downstream_wire_bytes_sent += wire_bytes as u64;
                        return Poll::Ready(Ended::Complete);
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Ended::UpstreamFailed(error)),
                    Poll::Pending => break,
                }
            }
            if before_bytes != (self.info.body_bytes_received, self.info.body_bytes_sent) {
                self.deadlines.set(Deadline::StreamIdle, now, self.idle_timeout);
                self.deadlines.set(Deadline::PerTryIdle, now, forwarding.timeouts.per_try_idle);
            }
            if self.upload.is_received() && client.poll_gone(cx).is_ready() {
                return Poll::Ready(Ended::ClientGone);
            }
            Poll::Pending
        })
        .await
    }

    /// Writes down which limit cut the reply short.
    fn note_late(&mut self, scope: &Scope<'_>, forwarding: &Forwarding<'_>, deadline: Deadline) {
        let (core, stats) = (scope.core.core, &scope.manager.stats);
        let (flag, details) = match deadline {
            Deadline::Route | Deadline::PerTry | Deadline::PerTryIdle => {
                forwarding.cluster.stats.increment(core, ClusterStat::UpstreamRqTimeout);
                (ResponseFlag::UpstreamRequestTimeout, "response_timeout")
            }
            Deadline::UpstreamStreamDuration => {
                forwarding.cluster.stats.increment(core, ClusterStat::UpstreamRqMaxDurationReached);
                (ResponseFlag::UpstreamMaxStreamDurationReached, "upstream_max_stream_duration_reached")
            }
            Deadline::StreamDuration => {
                stats.increment(core, HttpStat::DownstreamRqMaxDurationReached);
                (ResponseFlag::DurationTimeout, "max_duration_timeout")
            }
            _ => {
                stats.increment(core, HttpStat::DownstreamRqIdleTimeout);
                (ResponseFlag::StreamIdleTimeout, "stream_idle_timeout")
            }
        };
        stats.increment(core, HttpStat::DownstreamRqTxReset);
        self.note(Some(flag), details);
    }
}

/// How the reply's end is told, and what becomes of the connection.
#[derive(Clone, Copy)]
struct Framing {
    length: BodyLength,
    close: bool,
    /// Bytes of another protocol follow.
    is_switched: bool,
}

/// Adds to a reply that is kept back; whether it may be kept.
fn keep(body: &mut Vec<u8>, data: &[u8], hold: Hold, bytes_max: usize) -> bool {
    match hold {
        Hold::Whole if data.len() > bytes_max.saturating_sub(body.len()) => return false,
        Hold::Whole => body.extend_from_slice(data),
        Hold::First(bytes_max) => {
            let room = bytes_max.saturating_sub(body.len()).min(data.len());
            body.extend_from_slice(data.get(..room).unwrap_or_default());
        }
    }
    true
}

impl Framing {
    /// Nothing was sent: the reply cannot be told from a broken connection.
    const NONE: Self = Self { length: BodyLength::UntilClose, close: true, is_switched: false };

    /// What becomes of the connection when the body breaks off: where only the close would tell the end, a reset tells the
    /// client that this was none.
    fn broken_off(self) -> After {
        if self.is_switched || matches!(self.length, BodyLength::UntilClose) { After::Abort } else { After::Close }
    }
}
