//! Whether a failed attempt is made again, and when.
//!
//! Pure decisions: the caller does I/O, takes circuit-breaker tickets and waits. A retry happens only where the route's policy
//! or the request's own `x-envoy-retry-on` names the kind of failure, and only so often; the wait grows exponentially with full
//! jitter, unless the upstream says when to come back. Source: Envoy, router filter, "x-envoy-retry-on".

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use envoy_types::pb::envoy::config::core::v3::Metadata;
use envoy_types::pb::envoy::config::route::v3 as proto;
use envoy_types::pb::envoy::extensions::retry::host::omit_host_metadata::v3::OmitHostMetadataConfig;
use envoy_types::pb::google::protobuf::{Any, Value};
use torus_codec::headers::{HeaderMap, HeaderName, Known};

use crate::config::parse::ParseContext;
use crate::config::parse::context::type_name;
use crate::config::reject::Refused;
use crate::route::Scratch;
use crate::route::header_match::{HeaderMatcher, header_name};

/// A compiled RetryPolicy.
#[derive(Clone, Debug)]
pub struct RetryPolicy {
    /// Time for one attempt, off where `None`.
    pub per_try_timeout: Option<Duration>,
    /// Time without a byte from the upstream in one attempt, off where `None`.
    pub per_try_idle_timeout: Option<Duration>,
    /// Times that another host is drawn where a predicate refuses one; 1 by default.
    pub host_selection_attempts_max: u32,
    /// `envoy.retry_host_predicates.previous_hosts`
    pub avoid_previous_hosts: bool,
    /// `envoy.retry_host_predicates.omit_canary_hosts`
    pub avoid_canary_hosts: bool,
    /// `envoy.retry_host_predicates.omit_host_metadata`: what an avoided host has under `envoy.lb`.
    pub avoid_metadata: Option<MetadataPairs>,
    on: RetryOn,
    retry_count_max: u32,
    status_codes: Arc<[u16]>,
    headers: Arc<[HeaderMatcher]>,
    request_headers: Arc<[HeaderMatcher]>,
    backoff_base: Duration,
    backoff_max: Duration,
    resets: Arc<[ResetField]>,
    reset_max: Duration,
}

/// Keys under `envoy.lb` and their values.
pub type MetadataPairs = Arc<[(Box<str>, Value)]>;

/// A set of conditions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct RetryOn(u32);

/// A field that says when to come back.
#[derive(Clone, Debug)]
struct ResetField {
    name: HeaderName,
    form: ResetForm,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ResetForm {
    /// So many seconds from now.
    Seconds,
    /// At this second since 1970.
    UnixTime,
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
    /// The upstream reset the stream before a full head of the reply.
    RemoteReset,
    /// The upstream refused the stream: it did nothing with it (RFC 9113 §8.7).
    RefusedStream,
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
#[derive(Debug, Default)]
pub struct RetryState {
    on: RetryOn,
    retries_left: u64,
    retries_made: u32,
    status_codes: Vec<u16>,
    /// Names from `x-envoy-retriable-header-names`, in lower case, each ended by a comma.
    header_names: Vec<u8>,
    reset_after: Option<Duration>,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            per_try_timeout: None,
            per_try_idle_timeout: None,
            host_selection_attempts_max: 1,
            avoid_previous_hosts: false,
            avoid_canary_hosts: false,
            avoid_metadata: None,
            on: RetryOn::default(),
            retry_count_max: 1,
            status_codes: Arc::default(),
            headers: Arc::default(),
            request_headers: Arc::default(),
            backoff_base: BACKOFF_BASE,
            backoff_max: BACKOFF_BASE * BACKOFF_MAX_FACTOR,
            resets: Arc::default(),
            reset_max: RESET_MAX,
        }
    }
}

impl RetryPolicy {
    /// Compiles `config`; `context` stands at the message.
    pub fn parse(config: &proto::RetryPolicy, context: &mut ParseContext) -> Result<Self, Refused> {
        let checkpoint = context.problems.checkpoint();
        let mut policy = Self { on: RetryOn::parse_known(&config.retry_on), ..Self::default() };
        policy.per_try_timeout = context.timeout("per_try_timeout", &config.per_try_timeout, None)?;
        policy.per_try_idle_timeout = context.timeout("per_try_idle_timeout", &config.per_try_idle_timeout, None)?;
        if let Some(count) = &config.num_retries {
            policy.retry_count_max = count.value;
        }
        for (index, predicate) in config.retry_host_predicate.iter().enumerate() {
            use proto::retry_policy::retry_host_predicate::ConfigType;
            context.within_item("retry_host_predicate", index, |context| {
                let packed = predicate.config_type.as_ref().map(|ConfigType::TypedConfig(packed)| packed);
                policy.add_host_predicate(&predicate.name, packed, context)
            })?;
        }
        if let Some(priority) = &config.retry_priority {
            let reason = format!("retry priority `{}` is not there yet in this version", priority.name);
            context.reject("retry_priority", reason);
        }
        if !config.retry_options_predicates.is_empty() {
            context.reject("retry_options_predicates", "is not there yet in this version");
        }
        match u32::try_from(config.host_selection_retry_max_attempts) {
            Ok(0) => {}
            Ok(attempts) => policy.host_selection_attempts_max = attempts,
            Err(_) => {
                context.reject("host_selection_retry_max_attempts", "must be from 0 to 4294967295");
            }
        }
        policy.status_codes =
            config.retriable_status_codes.iter().filter_map(|code| u16::try_from(*code).ok()).collect();
        let headers = context.each("retriable_headers", &config.retriable_headers, HeaderMatcher::parse);
        policy.headers = headers?.into();
        let headers =
            context.each("retriable_request_headers", &config.retriable_request_headers, HeaderMatcher::parse);
        policy.request_headers = headers?.into();
        if let Some(back_off) = &config.retry_back_off {
            context.within("retry_back_off", |context| policy.set_back_off(back_off, context))?;
        }
        if let Some(limited) = &config.rate_limited_retry_back_off {
            context.within("rate_limited_retry_back_off", |context| policy.set_resets(limited, context))?;
        }
        context.problems.clean_since(checkpoint)?;
        Ok(policy)
    }

    fn add_host_predicate(
        &mut self,
        name: &str,
        packed: Option<&Any>,
        context: &mut ParseContext,
    ) -> Result<(), Refused> {
        let kind = packed.map_or(name, |packed| type_name(&packed.type_url));
        match kind.strip_prefix("envoy.extensions.retry.host.").unwrap_or(kind) {
            "previous_hosts.v3.PreviousHostsPredicate" | "envoy.retry_host_predicates.previous_hosts" => {
                self.avoid_previous_hosts = true;
            }
            "omit_canary_hosts.v3.OmitCanaryHostsPredicate" | "envoy.retry_host_predicates.omit_canary_hosts" => {
                self.avoid_canary_hosts = true;
            }
            "omit_host_metadata.v3.OmitHostMetadataConfig" => {
                let packed = packed.ok_or_else(|| context.reject("typed_config", "is required"))?;
                let config: OmitHostMetadataConfig = context.unpack("typed_config", packed)?;
                let metadata = config.metadata_match.unwrap_or_default();
                let wanted = metadata.filter_metadata.get(LB_NAMESPACE).map(|fields| &fields.fields);
                let pairs = wanted.into_iter().flatten().map(|(key, value)| (key.as_str().into(), value.clone()));
                self.avoid_metadata = Some(pairs.collect());
            }
            other => return Err(context.reject("", format!("host predicate `{other}` is not known"))),
        }
        Ok(())
    }

    /// Whether a host with this metadata is avoided by `omit_host_metadata`.
    pub fn avoids_metadata(&self, metadata: Option<&Metadata>) -> bool {
        let Some(wanted) = self.avoid_metadata.as_deref().filter(|wanted| !wanted.is_empty()) else { return false };
        let Some(fields) = metadata.and_then(|metadata| metadata.filter_metadata.get(LB_NAMESPACE)) else {
            return false;
        };
        wanted.iter().all(|(key, value)| fields.fields.get(&**key) == Some(value))
    }

    fn set_back_off(
        &mut self,
        config: &proto::retry_policy::RetryBackOff,
        context: &mut ParseContext,
    ) -> Result<(), Refused> {
        let base = context.duration("base_interval", &config.base_interval)?;
        let base = base.filter(|base| !base.is_zero());
        let base = base.ok_or_else(|| context.reject("base_interval", "is required and must be above 0s"))?;
        let max = context.duration("max_interval", &config.max_interval)?;
        if max == Some(Duration::ZERO) {
            return Err(context.reject("max_interval", "must be above 0s"));
        }
        self.backoff_base = base.max(BACKOFF_MIN);
        self.backoff_max = max.map_or(self.backoff_base.saturating_mul(BACKOFF_MAX_FACTOR), |max| max.max(BACKOFF_MIN));
        if self.backoff_max < self.backoff_base {
            return Err(context.reject("max_interval", "must not be below base_interval"));
        }
        Ok(())
    }

    fn set_resets(
        &mut self,
        config: &proto::retry_policy::RateLimitedRetryBackOff,
        context: &mut ParseContext,
    ) -> Result<(), Refused> {
        use proto::retry_policy::ResetHeaderFormat;
        if config.reset_headers.is_empty() {
            return Err(context.reject("reset_headers", "must not be empty"));
        }
        self.resets = context
            .each("reset_headers", &config.reset_headers, |field, context| {
                let name = header_name("name", &field.name, context)?;
                let form = match field.format() {
                    ResetHeaderFormat::Seconds => ResetForm::Seconds,
                    ResetHeaderFormat::UnixTimestamp => ResetForm::UnixTime,
                };
                Ok(ResetField { name, form })
            })?
            .into();
        if let Some(max) = context.duration("max_interval", &config.max_interval)? {
            if max.is_zero() {
                return Err(context.reject("max_interval", "must be above 0s"));
            }
            self.reset_max = max.max(BACKOFF_MIN);
        }
        Ok(())
    }

    /// How long the upstream asks to wait, if it does and the policy allows so long.
    fn reset_after(&self, response: &HeaderMap, now: SystemTime) -> Option<Duration> {
        self.resets.iter().find_map(|field| {
            let value = std::str::from_utf8(response.get(&field.name)?).ok()?;
            let seconds: u64 = value.trim_ascii().parse().ok()?;
            let wait = match field.form {
                ResetForm::Seconds => Duration::from_secs(seconds),
                ResetForm::UnixTime => {
                    let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))?;
                    at.duration_since(now).ok()?
                }
            };
            (wait <= self.reset_max && !wait.is_zero()).then_some(wait)
        })
    }
}

impl RetryOn {
    const SERVER_ERROR: u32 = 1;
    const GATEWAY_ERROR: u32 = 1 << 1;
    const RESET: u32 = 1 << 2;
    const RESET_BEFORE_REQUEST: u32 = 1 << 3;
    const CONNECT_FAILURE: u32 = 1 << 4;
    const RATE_LIMITED: u32 = 1 << 5;
    const RETRIABLE_4XX: u32 = 1 << 6;
    const REFUSED_STREAM: u32 = 1 << 7;
    const STATUS_CODES: u32 = 1 << 8;
    const HEADERS: u32 = 1 << 9;
    const HTTP3_POST_CONNECT_FAILURE: u32 = 1 << 10;
    const GRPC_CANCELLED: u32 = 1 << 11;
    const GRPC_DEADLINE_EXCEEDED: u32 = 1 << 12;
    const GRPC_INTERNAL: u32 = 1 << 13;
    const GRPC_RESOURCE_EXHAUSTED: u32 = 1 << 14;
    const GRPC_UNAVAILABLE: u32 = 1 << 15;

    fn http(token: &[u8]) -> Option<u32> {
        Some(match token {
            b"5xx" => Self::SERVER_ERROR,
            b"gateway-error" => Self::GATEWAY_ERROR,
            b"reset" => Self::RESET,
            b"reset-before-request" => Self::RESET_BEFORE_REQUEST,
            b"connect-failure" => Self::CONNECT_FAILURE,
            b"envoy-ratelimited" => Self::RATE_LIMITED,
            b"retriable-4xx" => Self::RETRIABLE_4XX,
            b"refused-stream" => Self::REFUSED_STREAM,
            b"retriable-status-codes" => Self::STATUS_CODES,
            b"retriable-headers" => Self::HEADERS,
            b"http3-post-connect-failure" => Self::HTTP3_POST_CONNECT_FAILURE,
            _ => return None,
        })
    }

    fn grpc(token: &[u8]) -> Option<u32> {
        Some(match token {
            b"cancelled" => Self::GRPC_CANCELLED,
            b"deadline-exceeded" => Self::GRPC_DEADLINE_EXCEEDED,
            b"internal" => Self::GRPC_INTERNAL,
            b"resource-exhausted" => Self::GRPC_RESOURCE_EXHAUSTED,
            b"unavailable" => Self::GRPC_UNAVAILABLE,
            _ => return None,
        })
    }

    /// The known names in a configured list; as in Envoy, others are left out.
    fn parse_known(list: &str) -> Self {
        Self(tokens(list.as_bytes()).filter_map(|token| Self::http(token).or_else(|| Self::grpc(token))).sum_bits())
    }

    fn has(self, condition: u32) -> bool {
        self.0 & condition != 0
    }
}

trait SumBits {
    fn sum_bits(self) -> u32;
}

impl<I: Iterator<Item = u32>> SumBits for I {
    fn sum_bits(self) -> u32 {
        self.fold(0, |bits, bit| bits | bit)
    }
}

/// The parts of a comma-separated list, without blanks around them and without empty ones.
fn tokens(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|token| !token.is_empty())
}

fn number(text: Option<&[u8]>) -> Option<u64> {
    std::str::from_utf8(text?).ok()?.trim_ascii().parse().ok()
}

/// Whether `value` is a list of known conditions. Source: Router.strict_check_headers.
pub fn is_retry_on(value: &[u8]) -> bool {
    tokens(value).all(|token| RetryOn::http(token).is_some())
}

/// Whether `value` is a list of known gRPC conditions. Source: Router.strict_check_headers.
pub fn is_retry_grpc_on(value: &[u8]) -> bool {
    tokens(value).all(|token| RetryOn::grpc(token).is_some())
}

impl RetryState {
    /// Begins a request: merges the policy with the `x-envoy-retry-on` family of request fields, and removes those.
    pub fn start(&mut self, policy: &RetryPolicy, request: &mut HeaderMap, scratch: &mut Scratch) {
        self.on = policy.on;
        self.retries_left = policy.retry_count_max.into();
        self.retries_made = 0;
        self.status_codes.clear();
        self.header_names.clear();
        self.reset_after = None;
        let list = |request: &HeaderMap, name, meaning: fn(&[u8]) -> Option<u32>| {
            tokens(request.get_known(name).unwrap_or_default()).filter_map(meaning).sum_bits()
        };
        self.on.0 |= list(request, Known::XEnvoyRetryOn, RetryOn::http);
        self.on.0 |= list(request, Known::XEnvoyRetryGrpcOn, RetryOn::grpc);
        if self.on.0 != 0 {
            let limited = !policy.request_headers.is_empty();
            if limited && !policy.request_headers.iter().any(|matcher| matcher.matches(request, scratch)) {
                self.on = RetryOn::default();
            }
            if let Some(count) = number(request.get_known(Known::XEnvoyMaxRetries)) {
                self.retries_left = count;
            }
            if let Some(codes) = request.get_known(Known::XEnvoyRetriableStatusCodes) {
                let codes = tokens(codes).filter_map(|code| u16::try_from(number(Some(code))?).ok());
                self.status_codes.extend(codes);
            }
            for name in tokens(request.get_known(Known::XEnvoyRetriableHeaderNames).unwrap_or_default()) {
                self.header_names.extend(name.iter().map(u8::to_ascii_lowercase));
                self.header_names.push(b',');
            }
        }
        for name in RETRY_FIELDS {
            request.remove_known(name);
        }
    }

    /// Whether a retry is possible at all; where not, the request's body need not be kept.
    pub fn enabled(&self) -> bool {
        self.on.0 != 0 && self.retries_left > 0
    }

    /// Judges a reply's head. A retry is counted as made.
    pub fn on_response(
        &mut self,
        policy: &RetryPolicy,
        status: u16,
        response: &HeaderMap,
        now: SystemTime,
        scratch: &mut Scratch,
    ) -> Verdict {
        let wanted = self.wants_after_response(policy, status, response, scratch);
        self.reset_after = if wanted { policy.reset_after(response, now) } else { None };
        self.judge(wanted)
    }

    /// Judges a failed attempt. A retry is counted as made.
    pub fn on_failure(&mut self, failure: AttemptFailure) -> Verdict {
        self.reset_after = None;
        self.judge(self.wants_after_failure(failure))
    }

    /// How long to wait before the next attempt: evenly between 0 and an interval that doubles each time, or a little more than
    /// what the upstream asks for. `random` is evenly distributed.
    pub fn backoff(&mut self, policy: &RetryPolicy, random: u64) -> Duration {
        if let Some(wait) = self.reset_after {
            let milliseconds = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
            return Duration::from_millis(milliseconds.saturating_add(random % (milliseconds / 2).max(1)));
        }
        let doublings = self.retries_made.saturating_sub(1).min(31);
        let interval = policy.backoff_base.saturating_mul(1 << doublings).min(policy.backoff_max);
        let milliseconds = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX).max(1);
        Duration::from_millis(random % milliseconds)
    }

    /// Whether the upstream says how long to wait.
    pub fn is_rate_limited(&self) -> bool {
        self.reset_after.is_some()
    }

    /// Retries made so far.
    pub fn retries_made(&self) -> u32 {
        self.retries_made
    }

    fn judge(&mut self, wanted: bool) -> Verdict {
        if !wanted {
            return Verdict::No;
        }
        let Some(left) = self.retries_left.checked_sub(1) else { return Verdict::LimitExceeded };
        self.retries_left = left;
        self.retries_made = self.retries_made.saturating_add(1);
        Verdict::Retry
    }

    fn wants_after_response(
        &self,
        policy: &RetryPolicy,
        status: u16,
        response: &HeaderMap,
        scratch: &mut Scratch,
    ) -> bool {
        // Another proxy of this kind refused the request for its rate: retried only where asked for.
        if response.get_known(Known::XEnvoyRateLimited).is_some() {
            return self.on.has(RetryOn::RATE_LIMITED);
        }
        if (self.on.has(RetryOn::SERVER_ERROR) && (500..600).contains(&status))
            || (self.on.has(RetryOn::GATEWAY_ERROR) && (502..=504).contains(&status))
            || (self.on.has(RetryOn::RETRIABLE_4XX) && status == 409)
        {
            return true;
        }
        if self.on.has(RetryOn::STATUS_CODES)
            && (policy.status_codes.contains(&status) || self.status_codes.contains(&status))
        {
            return true;
        }
        if self.on.has(RetryOn::HEADERS) {
            let configured = policy.headers.iter().any(|matcher| matcher.matches(response, scratch));
            let named = || response.iter().any(|(name, _)| tokens(&self.header_names).any(|wanted| wanted == name));
            if configured || named() {
                return true;
            }
        }
        let grpc = match number(response.get_known(Known::GrpcStatus)) {
            Some(1) => RetryOn::GRPC_CANCELLED,
            Some(4) => RetryOn::GRPC_DEADLINE_EXCEEDED,
            Some(8) => RetryOn::GRPC_RESOURCE_EXHAUSTED,
            Some(13) => RetryOn::GRPC_INTERNAL,
            Some(14) => RetryOn::GRPC_UNAVAILABLE,
            _ => 0,
        };
        self.on.has(grpc)
    }

    fn wants_after_failure(&self, failure: AttemptFailure) -> bool {
        // An upstream that ends the attempt counts as the 5xx that the client would get.
        let as_reset = RetryOn::SERVER_ERROR | RetryOn::GATEWAY_ERROR | RetryOn::RESET;
        let before = RetryOn::RESET_BEFORE_REQUEST;
        let conditions = match failure {
            AttemptFailure::Overflow => 0,
            AttemptFailure::ConnectRefused | AttemptFailure::ConnectTimeout => {
                as_reset | before | RetryOn::CONNECT_FAILURE
            }
            AttemptFailure::ResetBeforeRequest => as_reset | before,
            AttemptFailure::RefusedStream => as_reset | RetryOn::REFUSED_STREAM,
            AttemptFailure::Reset
            | AttemptFailure::RemoteReset
            | AttemptFailure::ProtocolError
            | AttemptFailure::PerTryTimeout => as_reset,
        };
        self.on.has(conditions)
    }
}

/// Fields that are for this proxy and go no further.
const RETRY_FIELDS: [Known; 6] = [
    Known::XEnvoyRetryOn,
    Known::XEnvoyRetryGrpcOn,
    Known::XEnvoyMaxRetries,
    Known::XEnvoyHedgeOnPerTryTimeout,
    Known::XEnvoyRetriableHeaderNames,
    Known::XEnvoyRetriableStatusCodes,
];

/// Source: RetryPolicy.RetryBackOff.base_interval.
const BACKOFF_BASE: Duration = Duration::from_millis(25);

/// Source: RetryPolicy.RetryBackOff.max_interval, times the base.
const BACKOFF_MAX_FACTOR: u32 = 10;

/// Shorter intervals are rounded up to this.
const BACKOFF_MIN: Duration = Duration::from_millis(1);

/// Source: RetryPolicy.RateLimitedRetryBackOff.max_interval.
const RESET_MAX: Duration = Duration::from_secs(300);

/// Where load balancing looks for metadata.
const LB_NAMESPACE: &str = "envoy.lb";

#[cfg(test)]
mod tests;
