//! The timeouts of one request, from its route and its `x-envoy-*` fields.
//!
//! A field from the request wins over the route. 0 is off. What is left tells the upstream how long the proxy will wait, in
//! `x-envoy-expected-rq-timeout-ms`. Source: Envoy, router filter, "HTTP headers (consumed)".

use std::time::Duration;

use torus_codec::headers::{HeaderMap, HeaderName, Known};

use super::action::Forward;
use super::parameters::is_grpc;
use super::rewrite::set_number;
use super::scratch::Scratch;
use crate::exchange::retry::{is_retry_grpc_on, is_retry_on};

/// The timeouts of one request; `None` is off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EffectiveTimeouts {
    /// Whole request received to whole reply.
    pub global: Option<Duration>,
    /// One attempt.
    pub per_try: Option<Duration>,
    /// Nothing received within one attempt.
    pub per_try_idle: Option<Duration>,
    /// Age of the stream from the route (or `grpc-timeout`); `None`: the connection manager's applies.
    pub max_stream_duration: Option<Option<Duration>>,
    /// Age of an attempt from `x-envoy-upstream-stream-duration-ms`; `None`: the cluster's applies. When it passes, the reply is
    /// 504 `upstream max stream duration reached` with `UMSDR`.
    pub upstream_stream_duration: Option<Option<Duration>>,
    /// Status of the reply after a timeout: 504, or 204 with `x-envoy-upstream-rq-timeout-alt-response`.
    pub status: u16,
}

/// What the router filter's options say of timeouts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimeoutOptions {
    /// Do not put `x-envoy-expected-rq-timeout-ms`.
    pub suppress_envoy_headers: bool,
    /// Trust `x-envoy-expected-rq-timeout-ms` from the downstream.
    pub respect_expected_timeout: bool,
}

impl EffectiveTimeouts {
    /// The timeouts of `request`. Reads and removes its `x-envoy-upstream-*` fields and sets
    /// `x-envoy-expected-rq-timeout-ms`. Call before [`super::Match::finalize_request`].
    pub fn take(forward: &Forward, options: TimeoutOptions, request: &mut HeaderMap, scratch: &mut Scratch) -> Self {
        let grpc = is_grpc(request);
        let mut timeouts = Self {
            global: forward.timeout,
            per_try: forward.retry.per_try_timeout,
            per_try_idle: forward.retry.per_try_idle_timeout,
            max_stream_duration: forward.max_stream_duration,
            upstream_stream_duration: take_milliseconds(request, Known::XEnvoyUpstreamStreamDurationMs),
            status: 504,
        };
        if grpc {
            timeouts.apply_grpc(forward, request);
        }
        let expected = if options.respect_expected_timeout {
            milliseconds(request, Known::XEnvoyExpectedRqTimeoutMs).map(Some)
        } else {
            None
        };
        let has_expected =
            options.respect_expected_timeout && request.get_known(Known::XEnvoyExpectedRqTimeoutMs).is_some();
        let asked = if has_expected {
            expected.flatten()
        } else {
            take_milliseconds(request, Known::XEnvoyUpstreamRqTimeoutMs)
        };
        if let Some(asked) = asked {
            timeouts.global = asked;
        }
        if let Some(asked) = take_milliseconds(request, Known::XEnvoyUpstreamRqPerTryTimeoutMs) {
            timeouts.per_try = asked;
        }
        // One that cannot pass before the global one is left out.
        if let (Some(per_try), Some(global)) = (timeouts.per_try, timeouts.global)
            && per_try >= global
        {
            timeouts.per_try = None;
        }
        if request.remove_known(Known::XEnvoyUpstreamRqTimeoutAltResponse) {
            timeouts.status = 204;
        }
        request.remove_known(Known::XEnvoyUpstreamAltStatName);
        timeouts.announce(Duration::ZERO, forward, grpc, options, request, scratch);
        timeouts
    }

    /// Tells the upstream how long it has, `elapsed` after the request was received; call again before each retry.
    pub fn announce_again(
        &self,
        elapsed: Duration,
        forward: &Forward,
        options: TimeoutOptions,
        request: &mut HeaderMap,
        scratch: &mut Scratch,
    ) {
        let grpc = is_grpc(request);
        self.announce(elapsed, forward, grpc, options, request, scratch);
    }

    fn announce(
        &self,
        elapsed: Duration,
        forward: &Forward,
        grpc: bool,
        options: TimeoutOptions,
        request: &mut HeaderMap,
        scratch: &mut Scratch,
    ) {
        let Some(mut expected) = self.per_try.or(self.global) else { return };
        if let Some(global) = self.global {
            // Out of time is 1 ms, since 0 would be no limit; the timer ends the request at once.
            let left = global.checked_sub(elapsed).filter(|left| !left.is_zero()).unwrap_or(MILLISECOND);
            expected = expected.min(left);
        }
        let count = u64::try_from(expected.as_millis()).unwrap_or(u64::MAX).max(1);
        if !options.suppress_envoy_headers {
            set_number(request, Known::XEnvoyExpectedRqTimeoutMs, count, scratch);
        }
        if grpc && forward.grpc_timeout.max.is_some() {
            // gRPC over HTTP/2: at most 8 digits before the unit.
            let (value, unit) = match count {
                0..=99_999_999 => (count, b'm'),
                _ => ((count / 1_000).min(99_999_999), b'S'),
            };
            set_number(request, Known::GrpcTimeout, value, scratch);
            scratch.value.push(unit);
            request.set_known(Known::GrpcTimeout, &scratch.value);
        }
    }

    fn apply_grpc(&mut self, forward: &Forward, request: &HeaderMap) {
        let asked = request.get_known(Known::GrpcTimeout).and_then(grpc_timeout);
        let rules = &forward.grpc_timeout;
        if let Some(max) = rules.max {
            let asked = asked.unwrap_or_default();
            let asked = if rules.offset < asked { asked - rules.offset } else { asked };
            self.global = capped(asked, max);
        }
        if let Some(max) = rules.stream_max {
            let asked = asked.unwrap_or_default();
            let limit = capped(asked, max);
            self.max_stream_duration = Some(limit.map(|limit| limit.checked_sub(rules.stream_offset).unwrap_or(limit)));
        }
    }
}

/// `asked` but no more than `max`; 0 is without limit for both.
fn capped(asked: Duration, max: Duration) -> Option<Duration> {
    match (asked.is_zero(), max.is_zero()) {
        (true, true) => None,
        (true, false) => Some(max),
        (false, true) => Some(asked),
        (false, false) => Some(asked.min(max)),
    }
}

/// The value of `grpc-timeout`. Source: gRPC over HTTP/2, `Timeout`.
fn grpc_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    let count: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(match unit {
        b'H' => Duration::from_secs(count.checked_mul(3_600)?),
        b'M' => Duration::from_secs(count.checked_mul(60)?),
        b'S' => Duration::from_secs(count),
        b'm' => Duration::from_millis(count),
        // Envoy counts milliseconds and rounds up.
        b'u' => Duration::from_millis(count.div_ceil(1_000)),
        b'n' => Duration::from_millis(count.div_ceil(1_000_000)),
        _ => return None,
    })
}

/// The number in `name`, 0 as `None`; the outer `None` is no number.
fn milliseconds(request: &HeaderMap, name: Known) -> Option<Option<Duration>> {
    let value = std::str::from_utf8(request.get_known(name)?).ok()?;
    let count: u64 = value.trim_ascii().parse().ok()?;
    Some((count > 0).then(|| Duration::from_millis(count)))
}

fn take_milliseconds(request: &mut HeaderMap, name: Known) -> Option<Option<Duration>> {
    let value = milliseconds(request, name);
    request.remove_known(name);
    value
}

/// The first field of `checked` whose value is not what Envoy expects there: reply 400 `invalid header '<name>' with value
/// '<value>'`, `IH`, with `request_headers_failed_strict_check{<name>}` as details. Source: Router.strict_check_headers.
pub fn failed_strict_check<'a>(checked: &'a [HeaderName], request: &HeaderMap) -> Option<&'a HeaderName> {
    checked.iter().find(|name| {
        let Some(value) = request.get(name) else { return false };
        let valid = match name.as_str() {
            "x-envoy-retry-on" => is_retry_on(value),
            "x-envoy-retry-grpc-on" => is_retry_grpc_on(value),
            _ => std::str::from_utf8(value).is_ok_and(|text| text.trim_ascii().parse::<u64>().is_ok()),
        };
        !valid
    })
}

const MILLISECOND: Duration = Duration::from_millis(1);
