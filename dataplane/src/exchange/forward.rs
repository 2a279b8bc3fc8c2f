//! A request that goes to a cluster: attempts, retries, and what is answered when none succeeds.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::Poll;

use torus_codec::{Known, RequestHead};

use super::attempt::{Failure, Outcome};
use super::client::WhileWaiting;
use super::client_stream::ClientStream;
use super::deadline::Deadline;
use super::local_reply::{Decimal, Refusal};
use super::retry::{AttemptFailure, Verdict};
use super::{After, Exchange, Scope};
use crate::cluster::{Cluster, ClusterIndex, Resource};
use crate::route::hash::HashedConnection;
use crate::route::timeout::{EffectiveTimeouts, TimeoutOptions, failed_strict_check};
use crate::route::{Forward, Match, Weighted};
use crate::telemetry::counters::ResponseOrigin;
use crate::telemetry::names::{ClusterStat, HttpStat};
use crate::telemetry::stream_info::ResponseFlag;
use crate::upstream::pool::Tried;

/// Where a forwarded request goes and how long it may take.
#[derive(Clone, Copy)]
pub(super) struct Forwarding<'a> {
    pub matched: &'a Match<'a>,
    pub forward: &'a Forward,
    pub weighted: Weighted<'a>,
    pub index: ClusterIndex,
    pub cluster: &'a Arc<Cluster>,
    pub timeouts: EffectiveTimeouts,
    pub hash: Option<u64>,
}

impl Forwarding<'_> {
    /// Whether the request is a CONNECT whose tunnel ends here: the upstream gets its bytes alone (`connect_config`).
    pub(super) fn terminates_connect(&self, request: &RequestHead) -> bool {
        self.forward.terminates_connect && request.headers.get_known(Known::Method) == Some(b"CONNECT")
    }
}

impl Exchange {
    pub(super) async fn forward(
        &mut self,
        scope: &Scope<'_>,
        client: &mut ClientStream<'_>,
        matched: &Match<'_>,
        forward: &Forward,
    ) -> Result<After, Refusal<'static>> {
        let core = scope.core;
        let router = &scope.manager.router;
        let random = core.random.borrow_mut().next_u64();
        // Cookies that the hash policy makes wait here for the reply.
        self.text.clear();
        let weight_hash = if forward.weighs_by_hash() { self.request_hash(scope, matched, false) } else { None };
        let choice = matched.choose_cluster(&self.request.headers, random, weight_hash);
        let weighted = choice.weighted;
        let Some((index, cluster)) = scope.cluster(&choice.target) else {
            scope.manager.stats.increment(core.core, HttpStat::NoCluster);
            let refusal = Refusal { status: forward.cluster_not_found_status, ..Refusal::NO_CLUSTER };
            return Ok(self.refuse(scope, client, Some((matched, weighted)), &refusal));
        };
        self.info.cluster_name.push_str(&cluster.shown_name);
        if !self.filters.is_empty() {
            let path = self.request.headers.get_known(Known::Path).unwrap_or_default();
            self.filters.on_cluster(&mut core.grpc_stats.borrow_mut(), cluster, path);
        }
        let virtual_cluster = matched.virtual_host.virtual_cluster(&self.request.headers, &mut self.route_scratch);
        self.info.virtual_cluster_name.push_str(virtual_cluster.unwrap_or_default());
        if let Some(name) = failed_strict_check(&router.strict_check_headers, &self.request.headers) {
            self.text.clear();
            self.text.extend_from_slice(b"request_headers_failed_strict_check{");
            self.text.extend_from_slice(name.as_str().as_bytes());
            self.text.push(b'}');
            let text = std::mem::take(&mut self.text);
            let details = String::from_utf8_lossy(&text);
            let value = String::from_utf8_lossy(self.request.headers.get(name).unwrap_or_default());
            let body = format!("invalid header '{}' with value '{value}'", name.as_str());
            let refusal = Refusal::new(400, &body, Some(ResponseFlag::InvalidEnvoyRequestHeaders), &details).closing();
            let after = self.refuse(scope, client, Some((matched, weighted)), &refusal);
            drop(details);
            self.text = text;
            return Ok(after);
        }
        let options = timeout_options(scope);
        let timeouts = EffectiveTimeouts::take(forward, options, &mut self.request.headers, &mut self.route_scratch);
        self.retry.start(&forward.retry, &mut self.request.headers, &mut self.route_scratch);
        let hash = cluster.policy.hashing().and_then(|_| self.request_hash(scope, matched, true));
        let keep_original = !router.suppress_envoy_headers;
        let (request, scratch) = (&mut self.request.headers, &mut self.route_scratch);
        matched.finalize_request(weighted, keep_original, &self.info, request, scratch);
        self.apply_route_deadlines(scope, forward, &timeouts, client);
        if self.retry.enabled() && !self.upload.is_received() {
            self.upload.keep(cluster.connection_buffer_bytes_max as usize);
        }
        let forwarding = Forwarding { matched, forward, weighted, index, cluster, timeouts, hash };
        self.run_attempts(scope, client, &forwarding).await
    }

    async fn run_attempts(
        &mut self,
        scope: &Scope<'_>,
        client: &mut ClientStream<'_>,
        forwarding: &Forwarding<'_>,
    ) -> Result<After, Refusal<'static>> {
        let Forwarding { matched, forward, weighted, index, cluster, .. } = *forwarding;
        let core = scope.core;
        loop {
            self.info.attempt_count += 1;
            if matched.virtual_host.include_request_attempt_count {
                let count = Decimal::new(u64::from(self.info.attempt_count));
                self.request.headers.set_known(Known::XEnvoyAttemptCount, count.as_bytes());
            }
            let chosen = {
                let hosts = if forward.retry.avoid_previous_hosts { self.tried.as_slice() } else { &[] };
                let tried = Tried { hosts, host_attempts_max: forward.retry.host_selection_attempts_max };
                let mut random = core.random.borrow_mut();
                match &cluster.original_dst {
                    None => core.pools.choose(index, cluster, forwarding.hash, &tried, &mut random),
                    Some(original) => {
                        let address = original.endpoint(scope.connection, Some(&self.request.headers));
                        address.and_then(|address| core.pools.choose_address(index, cluster, address, &mut random))
                    }
                }
            };

            let Some(mut chosen) = chosen else {
                cluster.stats.increment(core.core, ClusterStat::UpstreamCxNoneHealthy);
                let refusal = Refusal::NO_HEALTHY_UPSTREAM;
                self.count_upstream_code(scope, cluster, refusal.status);
                return Ok(self.refuse(scope, client, Some((matched, weighted)), &refusal));
            };
            chosen.preamble = cluster.proxy_protocol.as_ref().map(|header| header.header(scope.connection));
            let outcome = self.attempt(scope, client, forwarding, &chosen).await;
            let verdict = match &outcome {
                Outcome::Head(_) => {
                    let (status, headers) = (self.response.status, &self.response.headers);
                    let scratch = &mut self.route_scratch;
                    self.retry.on_response(&forward.retry, status, headers, core.wall(), scratch)
                }
                Outcome::Failed(failure) => self.retry.on_failure(failure.kind),
                Outcome::Deadline(Deadline::PerTry | Deadline::PerTryIdle) => {
                    self.retry.on_failure(AttemptFailure::PerTryTimeout)
                }
                Outcome::Deadline(Deadline::UpstreamStreamDuration) => self.retry.on_failure(AttemptFailure::Reset),
                Outcome::ClientGone | Outcome::ClientFailed(_) | Outcome::Refused(_) | Outcome::Deadline(_) => {
                    Verdict::No
                }
            };
            let retry =
                verdict == Verdict::Retry && self.upload.can_restart() && self.retry_is_admitted(scope, forwarding);
            if retry {
                if let Outcome::Head(_) = &outcome {
                    cluster.stats.response_code_from(core.core, ResponseOrigin::Retry, self.response.status);
                }
                let timed_out = matches!(outcome, Outcome::Deadline(_));
                drop(outcome);
                self.tried.push(chosen.address);
                let waited = self.wait_before_retry(scope, client, forwarding).await;
                core.pools.release(index, Resource::Retries, forward.priority.into());
                match waited {
                    Ok(()) => {
                        self.prepare_retry(scope, forwarding, timed_out);
                        continue;
                    }
                    Err(outcome) => return self.give_up(scope, client, forwarding, outcome),
                }
            }
            if verdict == Verdict::LimitExceeded {
                self.info.flags.set(ResponseFlag::UpstreamRetryLimitExceeded);
                cluster.stats.increment(core.core, ClusterStat::UpstreamRqRetryLimitExceeded);
            }
            return match outcome {
                Outcome::Head(lease) => {
                    if self.retry.retries_made() > 0 && self.response.status < 500 {
                        cluster.stats.increment(core.core, ClusterStat::UpstreamRqRetrySuccess);
                    }
                    Ok(self.relay(scope, client, forwarding, lease).await)
                }
                outcome => self.give_up(scope, client, forwarding, outcome),
            };
        }
    }

    /// Ends a request to which no upstream gave a reply.
    fn give_up(
        &mut self,
        scope: &Scope<'_>,
        client: &mut ClientStream<'_>,
        forwarding: &Forwarding<'_>,
        outcome: Outcome,
    ) -> Result<After, Refusal<'static>> {
        let (core, cluster) = (scope.core, forwarding.cluster);
        let matched = Some((forwarding.matched, forwarding.weighted));
        let is_overflow = matches!(&outcome, Outcome::Failed(failure) if failure.is_overflow());
        if !is_overflow {
            self.upload.discard_received(client, &mut self.request_trailers, &mut self.info);
        }
        match outcome {
            Outcome::Failed(failure) => Ok(self.refuse_failed(scope, client, forwarding, &failure)),
            Outcome::ClientGone => {
                self.note_client_gone(scope, client);
                Ok(After::Gone)
            }
            Outcome::ClientFailed(error) => match super::client::malformed_of(&error) {
                Some(malformed) => {
                    let refusal = Refusal::malformed(malformed);
                    Ok(self.refuse(scope, client, matched, &refusal))
                }
                None => {
                    self.note_client_gone(scope, client);
                    Ok(After::Gone)
                }
            },
            Outcome::Refused(refusal) => Ok(self.refuse(scope, client, matched, &Refusal::from(refusal))),
            Outcome::Deadline(deadline) => {
                let refusal = match deadline {
                    Deadline::Route | Deadline::PerTry | Deadline::PerTryIdle => {
                        let details = match deadline {
                            Deadline::PerTry => "upstream_per_try_timeout",
                            Deadline::PerTryIdle => "upstream_per_try_idle_timeout",
                            _ => "response_timeout",
                        };
                        if deadline == Deadline::Route {
                            cluster.stats.increment(core.core, ClusterStat::UpstreamRqTimeout);
                        }
                        let status = forwarding.timeouts.status;
                        let body = if status == 204 { "" } else { "upstream request timeout" };
                        self.count_upstream_code(scope, cluster, status);
                        Refusal::new(status, body, Some(ResponseFlag::UpstreamRequestTimeout), details)
                    }
                    Deadline::UpstreamStreamDuration => {
                        let status = if self.upload.is_received() { 504 } else { 408 };
                        cluster.stats.increment(core.core, ClusterStat::UpstreamRqMaxDurationReached);
                        cluster.stats.response_code(core.core, status);
                        let flag = Some(ResponseFlag::UpstreamMaxStreamDurationReached);
                        let details = "upstream_max_stream_duration_reached";
                        Refusal::new(status, "upstream max stream duration reached", flag, details)
                    }
                    Deadline::Request => {
                        scope.manager.stats.increment(core.core, HttpStat::DownstreamRqTimeout);
                        Refusal::REQUEST_TIMEOUT
                    }
                    Deadline::StreamDuration => {
                        scope.manager.stats.increment(core.core, HttpStat::DownstreamRqMaxDurationReached);
                        Refusal::too_long(self.upload.is_received())
                    }
                    _ => {
                        scope.manager.stats.increment(core.core, HttpStat::DownstreamRqIdleTimeout);
                        Refusal::stream_idle(self.upload.is_received())
                    }
                };
                Ok(self.refuse(scope, client, matched, &refusal))
            }
            // A head is relayed, not given up.
            Outcome::Head(_) => Ok(After::Abort),
        }
    }

    /// Brings the request's own fields up to date for the next attempt.
    fn prepare_retry(&mut self, scope: &Scope<'_>, forwarding: &Forwarding<'_>, timed_out: bool) {
        if forwarding.matched.virtual_host.include_is_timeout_retry {
            let value: &[u8] = if timed_out { b"true" } else { b"false" };
            self.request.headers.set_known(Known::XEnvoyIsTimeoutRetry, value);
        }
        let elapsed = self.elapsed(scope.core).saturating_sub(self.info.request_complete.unwrap_or_default());
        let options = timeout_options(scope);
        let (request, scratch) = (&mut self.request.headers, &mut self.route_scratch);
        forwarding.timeouts.announce_again(elapsed, forwarding.forward, options, request, scratch);
    }

    /// Answers for a failed attempt with Envoy's words.
    fn refuse_failed(
        &mut self,
        scope: &Scope<'_>,
        client: &mut ClientStream<'_>,
        forwarding: &Forwarding<'_>,
        failure: &Failure,
    ) -> After {
        let matched = Some((forwarding.matched, forwarding.weighted));
        let reason = failure.reason();
        self.body.clear();
        self.body.extend_from_slice(b"upstream connect error or disconnect/reset before headers. ");
        if self.info.attempt_count > 1 {
            self.body.extend_from_slice(b"retried and the latest ");
        }
        self.body.extend_from_slice(b"reset reason: ");
        self.body.extend_from_slice(reason.as_bytes());
        self.note(Some(failure.flag()), "upstream_reset_before_response_started{");
        let details = &mut self.info.response_code_details;
        details.extend(reason.chars().map(without_space));
        self.info.upstream_transport_failure.clear();
        if let Some(transport) = failure.transport_failure() {
            // As Envoy does, only the log says it: the client has no use for it.
            self.info.upstream_transport_failure.extend(transport.chars().map(without_space));
            details.push('|');
            details.push_str(&self.info.upstream_transport_failure);
        }
        details.push('}');
        let status = failure.status();
        self.count_upstream_code(scope, forwarding.cluster, status);
        let refusal = Refusal { overloaded: failure.is_overflow(), ..Refusal::new(status, "", None, "") };
        self.send_local_reply(scope, client, matched, &refusal)
    }

    /// Counts a reply of the cluster, or the proxy's own in its place, once for all and once by where the request came from.
    pub(super) fn count_upstream_code(&self, scope: &Scope<'_>, cluster: &Cluster, status: u16) {
        let (core, stats) = (scope.core.core, &cluster.stats);
        stats.response_code(core, status);
        stats.response_code_from(core, self.origin(), status);
    }

    /// Whether the request came from inside (`x-envoy-internal`).
    pub(super) fn origin(&self) -> ResponseOrigin {
        match self.request.headers.get_known(Known::XEnvoyInternal) {
            Some(b"true") => ResponseOrigin::Internal,
            _ => ResponseOrigin::External,
        }
    }

    pub(super) fn note_client_gone(&mut self, scope: &Scope<'_>, client: &ClientStream<'_>) {
        let (core, stats) = (scope.core.core, &scope.manager.stats);
        stats.increment(core, HttpStat::DownstreamRqRxReset);
        if client.was_reset() {
            return self.note(Some(ResponseFlag::DownstreamRemoteReset), "http2.remote_reset");
        }
        stats.increment(core, HttpStat::DownstreamCxDestroyActiveRq);
        stats.increment(core, HttpStat::DownstreamCxDestroyRemoteActiveRq);
        self.note(Some(ResponseFlag::DownstreamConnectionTermination), "downstream_remote_disconnect");
    }

    fn request_hash(&mut self, scope: &Scope<'_>, matched: &Match<'_>, make_cookies: bool) -> Option<u64> {
        self.text.clear();
        let connection = scope.connection;
        let hashed = HashedConnection {
            remote: self.info.downstream_remote.as_ref(),
            direct_remote: Some(&connection.direct_remote),
            local: Some(&connection.local),
        };
        let cookies = make_cookies.then_some(&mut self.text);
        matched.hash(&self.request.headers, hashed, cookies, &mut self.route_scratch)
    }

    fn apply_route_deadlines(
        &mut self,
        scope: &Scope<'_>,
        forward: &Forward,
        timeouts: &EffectiveTimeouts,
        client: &ClientStream<'_>,
    ) {
        let now = scope.core.ring.now();
        if let Some(idle_timeout) = forward.idle_timeout {
            self.idle_timeout = idle_timeout;
            self.deadlines.set(Deadline::StreamIdle, now, idle_timeout);
        }
        if let Some(duration) = timeouts.max_stream_duration {
            self.deadlines.set(Deadline::StreamDuration, self.started_at, duration);
        }
        if client.request_is_complete() {
            self.deadlines.set(Deadline::Route, now, timeouts.global);
        }
    }

    fn retry_is_admitted(&mut self, scope: &Scope<'_>, forwarding: &Forwarding<'_>) -> bool {
        let (core, stats) = (scope.core, &forwarding.cluster.stats);
        let priority = forwarding.forward.priority.into();
        let admitted = core.pools.try_admit(forwarding.index, Resource::Retries, priority);
        let stat = if admitted { ClusterStat::UpstreamRqRetry } else { ClusterStat::UpstreamRqRetryOverflow };
        stats.increment(core.core, stat);
        if !admitted {
            self.info.flags.set(ResponseFlag::UpstreamOverflow);
        }
        admitted
    }

    /// Waits for the back-off time; `Err` says what ended the request meanwhile.
    async fn wait_before_retry(
        &mut self,
        scope: &Scope<'_>,
        client: &mut ClientStream<'_>,
        forwarding: &Forwarding<'_>,
    ) -> Result<(), Outcome> {
        let core = scope.core;
        let random = core.random.borrow_mut().next_u64();
        let wait = self.retry.backoff(&forwarding.forward.retry, random);
        let stat = match self.retry.is_rate_limited() {
            true => ClusterStat::UpstreamRqRetryBackoffRatelimited,
            false => ClusterStat::UpstreamRqRetryBackoffExponential,
        };
        forwarding.cluster.stats.increment(core.core, stat);
        self.deadlines.set(Deadline::BackOff, core.ring.now(), Some(wait));
        let deadlines = &mut self.deadlines;
        poll_fn(|cx| {
            if let Poll::Ready(deadline) = deadlines.poll_expired(core.ring.now(), cx) {
                return Poll::Ready(match deadline {
                    Deadline::BackOff => Ok(()),
                    deadline => Err(Outcome::Deadline(deadline)),
                });
            }
            client.poll_gone(cx).map(|WhileWaiting::Gone| Err(Outcome::ClientGone))
        })
        .await
    }
}

fn timeout_options(scope: &Scope<'_>) -> TimeoutOptions {
    let router = &scope.manager.router;
    TimeoutOptions {
        suppress_envoy_headers: router.suppress_envoy_headers,
        respect_expected_timeout: router.respect_expected_timeout,
    }
}

fn without_space(character: char) -> char {
    if character == ' ' { '_' } else { character }
}

/// The text of an operating system error without Rust's number, for instance `Connection refused`.
pub(super) fn system_error_text(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}
