use envoy_types::pb::google::protobuf::UInt32Value;
use envoy_types::pb::google::protobuf::value::Kind;

use super::*;

fn policy(retry_on: &str) -> RetryPolicy {
    let config = proto::RetryPolicy {
        retry_on: retry_on.into(),
        num_retries: Some(UInt32Value { value: 2 }),
        retriable_status_codes: vec![418],
        retriable_headers: vec![proto::HeaderMatcher { name: "x-again".into(), ..Default::default() }],
        ..Default::default()
    };
    RetryPolicy::parse(&config, &mut ParseContext::new(1)).unwrap()
}

fn headers(fields: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::default();
    fields.iter().for_each(|(name, value)| headers.append_wire(name.as_bytes(), value.as_bytes()));
    headers
}

fn started(policy: &RetryPolicy, request: &[(&str, &str)]) -> RetryState {
    let mut state = RetryState::default();
    let mut request = headers(request);
    state.start(policy, &mut request, &mut Scratch::default());
    assert!(request.iter().all(|(name, _)| !name.starts_with(b"x-envoy")), "{request:?}");
    state
}

#[test]
fn each_condition_retries_its_replies() {
    let check = |retry_on: &str, status: u16, fields: &[(&str, &str)], expect: Verdict| {
        let policy = policy(retry_on);
        let mut state = started(&policy, &[]);
        let verdict =
            state.on_response(&policy, status, &headers(fields), SystemTime::UNIX_EPOCH, &mut Scratch::default());
        assert_eq!(verdict, expect, "{retry_on} {status} {fields:?}");
    };
    check("", 503, &[], Verdict::No);
    check("5xx", 500, &[], Verdict::Retry);
    check("5xx", 499, &[], Verdict::No);
    check("5xx", 503, &[("x-envoy-ratelimited", "true")], Verdict::No);
    check("5xx,envoy-ratelimited", 429, &[("x-envoy-ratelimited", "true")], Verdict::Retry);
    check("gateway-error", 500, &[], Verdict::No);
    check("gateway-error", 502, &[], Verdict::Retry);
    check("gateway-error", 504, &[], Verdict::Retry);
    check("retriable-4xx", 409, &[], Verdict::Retry);
    check("retriable-4xx", 404, &[], Verdict::No);
    check("retriable-status-codes", 418, &[], Verdict::Retry);
    check("retriable-status-codes", 503, &[], Verdict::No);
    check("5xx", 418, &[], Verdict::No);
    check("retriable-headers", 200, &[("x-again", "1")], Verdict::Retry);
    check("5xx", 200, &[("x-again", "1")], Verdict::No);
    check("cancelled , unavailable", 200, &[("grpc-status", "14")], Verdict::Retry);
    check("cancelled", 200, &[("grpc-status", "14")], Verdict::No);
    check("reset,connect-failure,refused-stream", 503, &[], Verdict::No);
}

#[test]
fn each_condition_retries_its_failures() {
    use AttemptFailure::{
        ConnectRefused, ConnectTimeout, Overflow, PerTryTimeout, ProtocolError, Reset, ResetBeforeRequest,
    };
    let check = |retry_on: &str, retried: &[AttemptFailure]| {
        let all = [ConnectRefused, ConnectTimeout, Overflow, ResetBeforeRequest, Reset, ProtocolError, PerTryTimeout];
        for failure in all {
            let verdict = started(&policy(retry_on), &[]).on_failure(failure);
            let expect = if retried.contains(&failure) { Verdict::Retry } else { Verdict::No };
            assert_eq!(verdict, expect, "{retry_on} {failure:?}");
        }
    };
    let resets = [ConnectRefused, ConnectTimeout, ResetBeforeRequest, Reset, ProtocolError, PerTryTimeout];
    check("5xx", &resets);
    check("gateway-error", &resets);
    check("reset", &resets);
    check("connect-failure", &[ConnectRefused, ConnectTimeout]);
    check("reset-before-request", &[ConnectRefused, ConnectTimeout, ResetBeforeRequest]);
    check("refused-stream,retriable-4xx,unavailable", &[]);
}

#[test]
fn retries_run_out() {
    let mut state = started(&policy("5xx"), &[]);
    assert!(state.enabled());
    assert_eq!(state.on_failure(AttemptFailure::Reset), Verdict::Retry);
    assert_eq!(state.on_failure(AttemptFailure::Reset), Verdict::Retry);
    assert_eq!(state.retries_made(), 2);
    assert!(!state.enabled());
    assert_eq!(state.on_failure(AttemptFailure::Reset), Verdict::LimitExceeded);
    assert_eq!(state.on_failure(AttemptFailure::Overflow), Verdict::No);
}

#[test]
fn a_request_may_ask_for_retries_itself() {
    let check = |configured: &RetryPolicy,
                 request: &[(&str, &str)],
                 status: u16,
                 fields: &[(&str, &str)],
                 expect: &[Verdict]| {
        let mut state = started(configured, request);
        for expect in expect {
            let verdict = state.on_response(
                configured,
                status,
                &headers(fields),
                SystemTime::UNIX_EPOCH,
                &mut Scratch::default(),
            );
            assert_eq!(verdict, *expect, "{request:?}");
        }
    };
    let none = RetryPolicy::default();
    use Verdict::{LimitExceeded, No, Retry};
    check(&none, &[("x-envoy-retry-on", "5xx")], 503, &[], &[Retry, LimitExceeded]);
    check(
        &none,
        &[("x-envoy-retry-on", "5xx"), ("x-envoy-max-retries", "3")],
        503,
        &[],
        &[Retry, Retry, Retry, LimitExceeded],
    );
    check(&policy("5xx"), &[("x-envoy-max-retries", "0")], 503, &[], &[LimitExceeded]);
    check(&policy("5xx"), &[("x-envoy-max-retries", "x")], 503, &[], &[Retry, Retry, LimitExceeded]);
    check(&none, &[("x-envoy-retry-on", "unknown")], 503, &[], &[No]);
    check(&none, &[("x-envoy-retry-on", "unavailable")], 200, &[("grpc-status", "14")], &[No]);
    check(&none, &[("x-envoy-retry-grpc-on", "unavailable")], 200, &[("grpc-status", "14")], &[Retry]);
    let codes = [("x-envoy-retry-on", "retriable-status-codes"), ("x-envoy-retriable-status-codes", "420, 421")];
    check(&none, &codes, 421, &[], &[Retry]);
    check(&none, &codes, 418, &[], &[No]);
    let names = [("x-envoy-retry-on", "retriable-headers"), ("x-envoy-retriable-header-names", "X-A, x-b")];
    check(&none, &names, 200, &[("x-b", "")], &[Retry]);
    check(&none, &names, 200, &[("x-c", "")], &[No]);
}

#[test]
fn a_policy_may_be_limited_to_some_requests() {
    let config = proto::RetryPolicy {
        retry_on: "5xx".into(),
        retriable_request_headers: vec![proto::HeaderMatcher { name: "x-safe".into(), ..Default::default() }],
        ..Default::default()
    };
    let policy = RetryPolicy::parse(&config, &mut ParseContext::new(1)).unwrap();
    assert_eq!(started(&policy, &[]).on_failure(AttemptFailure::Reset), Verdict::No);
    assert_eq!(started(&policy, &[("x-safe", "1")]).on_failure(AttemptFailure::Reset), Verdict::Retry);
}

#[test]
fn waits_double_up_to_ten_times_the_base() {
    let policy = RetryPolicy { retry_count_max: 9, ..policy("5xx") };
    let mut state = started(&policy, &[]);
    let mut waits = Vec::new();
    for _ in 0..6 {
        assert_eq!(state.on_failure(AttemptFailure::Reset), Verdict::Retry);
        // One below a multiple of every interval gives the longest wait.
        waits.push(state.backoff(&policy, 25 * 2 * 2 * 2 * 2 * 5 - 1).as_millis());
    }
    assert_eq!(waits, [24, 49, 99, 199, 249, 249]);
}

#[test]
fn an_upstream_may_say_when_to_come_back() {
    use proto::retry_policy::{RateLimitedRetryBackOff, ResetHeader, ResetHeaderFormat};
    let reset = |name: &str, format: ResetHeaderFormat| ResetHeader { name: name.into(), format: format.into() };
    let config = proto::RetryPolicy {
        retry_on: "5xx".into(),
        rate_limited_retry_back_off: Some(RateLimitedRetryBackOff {
            reset_headers: vec![
                reset("retry-after", ResetHeaderFormat::Seconds),
                reset("x-at", ResetHeaderFormat::UnixTimestamp),
            ],
            max_interval: None,
        }),
        ..Default::default()
    };
    let policy = RetryPolicy::parse(&config, &mut ParseContext::new(1)).unwrap();
    let check = |fields: &[(&str, &str)], random: u64, expect_milliseconds: u128| {
        let mut state = started(&policy, &[]);
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
        let verdict = state.on_response(&policy, 503, &headers(fields), now, &mut Scratch::default());
        assert_eq!(verdict, Verdict::Retry);
        assert_eq!(state.backoff(&policy, random).as_millis(), expect_milliseconds, "{fields:?}");
    };
    check(&[("retry-after", "2")], 0, 2_000);
    check(&[("retry-after", "2")], 999, 2_999);
    check(&[("retry-after", "301")], 24, 24);
    check(&[("retry-after", "soon"), ("x-at", "1003")], 0, 3_000);
    check(&[("x-at", "999")], 24, 24);
}

#[test]
fn policies_that_cannot_work_are_refused() {
    let check = |config: proto::RetryPolicy, expect: &str| {
        let mut context = ParseContext::new(1);
        assert!(RetryPolicy::parse(&config, &mut context).is_err());
        let shown: Vec<String> = context.problems.iter().map(ToString::to_string).collect();
        assert!(shown.concat().contains(expect), "{shown:?}");
    };
    let seconds = |seconds| Some(envoy_types::pb::google::protobuf::Duration { seconds, nanos: 0 });
    let back_off = |base_interval, max_interval| proto::RetryPolicy {
        retry_back_off: Some(proto::retry_policy::RetryBackOff { base_interval, max_interval }),
        ..Default::default()
    };
    check(back_off(None, None), "retry_back_off.base_interval: is required");
    check(back_off(seconds(2), seconds(1)), "retry_back_off.max_interval: must not be below base_interval");
    let priority = proto::retry_policy::RetryPriority { name: "p".into(), config_type: None };
    check(proto::RetryPolicy { retry_priority: Some(priority), ..Default::default() }, "retry priority `p`");
    let predicate = proto::retry_policy::RetryHostPredicate { name: "x".into(), config_type: None };
    check(proto::RetryPolicy { retry_host_predicate: vec![predicate], ..Default::default() }, "host predicate `x`");
}

#[test]
fn hosts_are_avoided_by_their_metadata() {
    use envoy_types::pb::google::protobuf::Struct;
    let metadata = |pairs: &[(&str, &str)]| {
        let fields = pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), Value { kind: Some(Kind::StringValue((*value).into())) }));
        let filter_metadata = [(LB_NAMESPACE.to_owned(), Struct { fields: fields.collect() })];
        Metadata { filter_metadata: filter_metadata.into(), ..Default::default() }
    };
    let wanted: Vec<(Box<str>, Value)> =
        vec![("stage".into(), Value { kind: Some(Kind::StringValue("canary".into())) })];
    let policy = RetryPolicy { avoid_metadata: Some(wanted.into()), ..RetryPolicy::default() };
    assert!(policy.avoids_metadata(Some(&metadata(&[("stage", "canary"), ("x", "y")]))));
    assert!(!policy.avoids_metadata(Some(&metadata(&[("stage", "production")]))));
    assert!(!policy.avoids_metadata(None));
    assert!(!RetryPolicy::default().avoids_metadata(Some(&metadata(&[("stage", "canary")]))));
}
