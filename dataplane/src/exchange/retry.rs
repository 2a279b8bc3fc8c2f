//! Whether a failed attempt is made again, and when.
//!
//! Pure decisions: the caller does I/O, takes circuit-breaker tickets and waits.

use std::time::{Duration, SystemTime};

use torus_codec::headers::HeaderMap;

/// A compiled RetryPolicy.
#[derive(Clone, Default)]
pub struct RetryPolicy {
    /// Time for one attempt, off where `None`.
    pub per_try_timeout: Option<Duration>,
    /// Time without a byte from the upstream in one attempt, off where `None`.
    pub per_try_idle_timeout: Option<Duration>,
    /// Times that another host is drawn where a predicate refuses one; 1 by default.
    pub host_selection_attempts_max: u32,
    /// `envoy.retry_host_predicates.previous_hosts`
    pub avoid_previous_hosts: bool,
}

/// Why an attempt ended without a full reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttemptFailure {
    /// The connection was refused or could not be made.
    ConnectRefused,
    /// `connect_timeout` passed.
    ConnectTimeout,
    /// A circuit breaker is open; never retried.
    Overflow,
    /// The connection ended before a byte of the request was sent.
    ResetBeforeRequest,
    /// The connection ended after the request was sent (in part) and before a full head of the reply.
    Reset,
    /// The reply is no valid HTTP.
    ProtocolError,
    /// `per_try_timeout` or `per_try_idle_timeout` passed.
    PerTryTimeout,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Try again after [`RetryState::backoff`], if a retry ticket is free.
    Retry,
    /// Give the client what there is.
    No,
    /// It would be tried again, but all retries are used up: flag `URX`.
    LimitExceeded,
}

/// The retries of one request; reused from request to request.
#[derive(Default)]
pub struct RetryState {
    attempts_made: u32,
}

impl RetryState {
    /// Begins a request: merges the policy with the `x-envoy-retry-on` family of request fields, and removes those.
    pub fn start(&mut self, policy: &RetryPolicy, request: &mut HeaderMap) {
        let _ = (policy, request);
        self.attempts_made = 0;
    }

    /// Whether a retry is possible at all; where not, the request's body need not be kept.
    pub fn enabled(&self) -> bool {
        false
    }

    /// Judges a reply's head; `attempt_is_last_allowed` plays no part. A retry is counted as made.
    pub fn on_response(
        &mut self,
        policy: &RetryPolicy,
        status: u16,
        response: &HeaderMap,
        request: &HeaderMap,
    ) -> Verdict {
        let _ = (policy, status, response, request);
        Verdict::No
    }

    /// Judges a failed attempt. A retry is counted as made.
    pub fn on_failure(&mut self, policy: &RetryPolicy, failure: AttemptFailure, request: &HeaderMap) -> Verdict {
        let _ = (policy, failure, request);
        Verdict::No
    }

    /// How long to wait before the next attempt: full jitter over an exponential interval, or what the upstream's reset header
    /// says. `random` is evenly distributed.
    pub fn backoff(&mut self, policy: &RetryPolicy, random: u64, now: SystemTime) -> Duration {
        let _ = (policy, random, now);
        Duration::ZERO
    }

    /// Retries made so far.
    pub fn retries_made(&self) -> u32 {
        self.attempts_made
    }
}
