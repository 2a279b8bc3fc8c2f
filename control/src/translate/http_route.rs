//! One HTTP route of a VirtualService as Envoy's routes.

use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::HeaderValueOption;
use envoy_types::pb::envoy::config::core::v3::{DataSource, RuntimeFractionalPercent, data_source};
use envoy_types::pb::envoy::config::route::v3 as envoy;
use envoy_types::pb::envoy::config::route::v3::{
    header_matcher::HeaderMatchSpecifier, query_parameter_matcher::QueryParameterMatchSpecifier, route::Action,
    route_action::ClusterSpecifier, route_action::HostRewriteSpecifier, route_match::PathSpecifier,
};
use envoy_types::pb::envoy::extensions::filters::common::fault::v3::{FaultDelay, fault_delay};
use envoy_types::pb::envoy::extensions::filters::http::cors::v3::CorsPolicy;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::{FaultAbort, HttpFault, fault_abort};
use envoy_types::pb::envoy::extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate;
use envoy_types::pb::envoy::r#type::matcher::v3::{
    RegexMatchAndSubstitute, RegexMatcher, StringMatcher, string_matcher::MatchPattern,
};
use envoy_types::pb::envoy::r#type::v3::{FractionalPercent, fractional_percent::DenominatorType};
use envoy_types::pb::google::protobuf as google;

use super::{names, wire};
use crate::model::api::{
    Cors, Destination, Fault, HttpMatch, HttpRedirect, HttpRetry, HttpRoute, Percent, StringMatch,
};
use crate::model::api::{Headers, VirtualService};
use crate::model::{Config, Mesh, Origin, Proxy};

/// Where a route is made for.
pub(super) struct Place<'a> {
    pub(super) mesh: &'a Mesh,
    pub(super) proxy: &'a Proxy,
    /// `mesh`, or the gateways (`namespace/name`) whose servers share the virtual host.
    pub(super) gateways: &'a [String],
    pub(super) port: u32,
}

/// Envoy's routes for all HTTP routes of `config`, in order. A route that takes every request ends the list.
pub(super) fn routes(place: &Place<'_>, config: &Config<VirtualService>) -> Vec<envoy::Route> {
    let mut result = Vec::new();
    'all: for (index, route) in config.spec.http.iter().enumerate() {
        let path = format!("spec.http[{index}]");
        if route.matches.is_empty() {
            result.push(one(place, config, route, None, &path));
            break;
        }
        for (at, condition) in route.matches.iter().enumerate() {
            if !applies(place, condition) {
                continue;
            }
            let made = one(place, config, route, Some(condition), &format!("{path}.match[{at}]"));
            let everything = takes_everything(&made);
            result.push(made);
            if everything {
                break 'all;
            }
        }
    }
    result
}

/// The route of a service that no VirtualService speaks of.
pub(super) fn plain(place: &Place<'_>, name: &str, cluster: String, origin: Option<&Origin>) -> envoy::Route {
    let mut action = bare(cluster);
    action.retry_policy = retry(place.mesh.config.default_http_retry_policy.as_ref());
    envoy::Route {
        metadata: origin.and_then(|origin| wire::metadata(origin, "spec", google::Struct::default())),
        ..to(name, action)
    }
}

/// A route to one cluster, without retries.
pub(super) fn direct(name: &str, cluster: &str) -> envoy::Route {
    to(name, bare(cluster.to_owned()))
}

fn to(name: &str, action: envoy::RouteAction) -> envoy::Route {
    envoy::Route {
        name: name.to_owned(),
        r#match: Some(matcher(None)),
        action: Some(Action::Route(action)),
        ..envoy::Route::default()
    }
}

// The newer form of `max_grpc_timeout` ends streams that Istio lets live.
#[allow(deprecated)]
fn bare(cluster: String) -> envoy::RouteAction {
    envoy::RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster)),
        timeout: wire::span(Duration::ZERO),
        max_grpc_timeout: wire::span(Duration::ZERO),
        ..envoy::RouteAction::default()
    }
}

/// True if no request passes the route by.
pub(super) fn takes_everything(route: &envoy::Route) -> bool {
    let Some(condition) = &route.r#match else { return false };
    let path = match &condition.path_specifier {
        Some(PathSpecifier::Prefix(prefix)) => prefix == "/",
        Some(PathSpecifier::SafeRegex(regex)) => regex.regex == ".*" || regex.regex == "*",
        _ => false,
    };
    path && condition.headers.is_empty()
        && condition.query_parameters.is_empty()
        && condition.runtime_fraction.is_none()
}

fn applies(place: &Place<'_>, condition: &HttpMatch) -> bool {
    let gateway =
        condition.gateways.is_empty() || condition.gateways.iter().any(|gateway| place.gateways.contains(gateway));
    let port = condition.port == 0 || condition.port == place.port;
    let namespace = condition.source_namespace.is_empty() || condition.source_namespace == place.proxy.namespace;
    gateway && port && namespace && place.proxy.matches(&condition.source_labels)
}

fn one(
    place: &Place<'_>,
    config: &Config<VirtualService>,
    route: &HttpRoute,
    condition: Option<&HttpMatch>,
    path: &str,
) -> envoy::Route {
    let name = match condition.map(|condition| condition.name.as_str()).filter(|name| !name.is_empty()) {
        Some(matched) if route.name.is_empty() => matched.to_owned(),
        Some(matched) => format!("{}.{matched}", route.name),
        None => route.name.clone(),
    };
    let mut made = envoy::Route {
        name,
        r#match: Some(matcher(condition)),
        metadata: match &route.made_from {
            Some(made) => wire::metadata(&made.origin, &made.path, google::Struct::default()),
            None => wire::metadata(&config.origin, path, google::Struct::default()),
        },
        ..envoy::Route::default()
    };
    if let Some(condition) = condition {
        made.stat_prefix.clone_from(&condition.stat_prefix);
    }
    if let Some(headers) = &route.headers {
        let changes = Changes::of(headers);
        made.request_headers_to_add = changes.request_add;
        made.request_headers_to_remove = changes.request_remove;
        made.response_headers_to_add = changes.response_add;
        made.response_headers_to_remove = changes.response_remove;
    }
    made.action = Some(if let Some(redirect) = &route.redirect {
        Action::Redirect(redirection(place, redirect))
    } else if let Some(direct) = &route.direct_response {
        let body = direct.body.as_ref().and_then(|body| body.string.clone().or_else(|| body.bytes.clone()));
        Action::DirectResponse(envoy::DirectResponseAction {
            status: direct.status,
            body: body.map(|text| DataSource {
                specifier: Some(data_source::Specifier::InlineString(text)),
                ..DataSource::default()
            }),
            ..envoy::DirectResponseAction::default()
        })
    } else {
        Action::Route(forward(place, config, route))
    });
    if let Some(fault) = &route.fault {
        made.typed_per_filter_config.insert(
            "envoy.filters.http.fault".to_owned(),
            wire::any("envoy.extensions.filters.http.fault.v3.HTTPFault", &injected(fault)),
        );
    }
    if let Some(cors) = &route.cors_policy {
        made.typed_per_filter_config.insert(
            "envoy.filters.http.cors".to_owned(),
            wire::any("envoy.extensions.filters.http.cors.v3.CorsPolicy", &cors_policy(cors)),
        );
    }
    made
}

// The newer form of `max_grpc_timeout` ends streams that Istio lets live.
#[allow(deprecated)]
fn forward(place: &Place<'_>, config: &Config<VirtualService>, route: &HttpRoute) -> envoy::RouteAction {
    let mut action = envoy::RouteAction {
        timeout: wire::span(route.timeout.map_or(Duration::ZERO, |timeout| timeout.0)),
        max_grpc_timeout: wire::span(route.timeout.map_or(Duration::ZERO, |timeout| timeout.0)),
        retry_policy: retry(route.retries.as_ref().or(place.mesh.config.default_http_retry_policy.as_ref())),
        ..envoy::RouteAction::default()
    };
    if let Some(rewrite) = &route.rewrite {
        if let Some(regex) = &rewrite.uri_regex_rewrite {
            action.regex_rewrite = Some(RegexMatchAndSubstitute {
                pattern: Some(RegexMatcher { regex: regex.pattern.clone(), ..RegexMatcher::default() }),
                substitution: regex.rewrite.clone(),
            });
        } else {
            action.prefix_rewrite.clone_from(&rewrite.uri);
        }
        if !rewrite.authority.is_empty() {
            action.host_rewrite_specifier = Some(HostRewriteSpecifier::HostRewriteLiteral(rewrite.authority.clone()));
        }
    }
    let host = route.headers.as_ref().and_then(|headers| headers.request.as_ref()).and_then(host_of);
    if let Some(host) = host {
        action.host_rewrite_specifier = Some(HostRewriteSpecifier::HostRewriteLiteral(host));
    }
    let mirrors = route.mirror.iter().map(|to| (to, route.mirror_percentage.as_ref()));
    for (to, percentage) in
        mirrors.chain(route.mirrors.iter().map(|mirror| (&mirror.destination, mirror.percentage.as_ref())))
    {
        if percentage.is_some_and(|percentage| percentage.value <= 0.0) {
            continue;
        }
        action.request_mirror_policies.push(envoy::route_action::RequestMirrorPolicy {
            cluster: cluster(place, config, to),
            runtime_fraction: Some(RuntimeFractionalPercent {
                default_value: Some(fraction(percentage)),
                ..RuntimeFractionalPercent::default()
            }),
            ..envoy::route_action::RequestMirrorPolicy::default()
        });
    }
    match route.route.as_slice() {
        [only] => {
            action.cluster_specifier = Some(ClusterSpecifier::Cluster(cluster(place, config, &only.destination)));
            if let Some(host) = only.headers.as_ref().and_then(|headers| headers.request.as_ref()).and_then(host_of) {
                action.host_rewrite_specifier = Some(HostRewriteSpecifier::HostRewriteLiteral(host));
            }
            if only.headers.is_some() {
                // Header changes of one destination need the weighted form.
                action.cluster_specifier =
                    Some(ClusterSpecifier::WeightedClusters(weighted(place, config, &route.route)));
            }
        }
        several => {
            action.cluster_specifier = Some(ClusterSpecifier::WeightedClusters(weighted(place, config, several)))
        }
    }
    if config.is_of_gateway_api() {
        action.cluster_not_found_response_code =
            envoy::route_action::ClusterNotFoundResponseCode::InternalServerError.into();
    }
    if let Some(first) = route.route.first()
        && let Some(service) = place.mesh.service(&first.destination.host, &place.proxy.namespace)
    {
        action.hash_policy = super::balance::hash_policy(place.mesh, place.proxy, service, &first.destination);
    }
    action
}

fn weighted(
    place: &Place<'_>,
    config: &Config<VirtualService>,
    list: &[crate::model::api::WeightedDestination],
) -> envoy::WeightedCluster {
    let only = list.len() == 1;
    let clusters = list.iter().filter(|to| only || to.weight > 0).map(|to| {
        let changes = to.headers.as_ref().map(Changes::of).unwrap_or_default();
        let host = to.headers.as_ref().and_then(|headers| headers.request.as_ref()).and_then(host_of);
        envoy::weighted_cluster::ClusterWeight {
            name: cluster(place, config, &to.destination),
            weight: wire::number(if only { to.weight.max(1) } else { to.weight }),
            request_headers_to_add: changes.request_add,
            request_headers_to_remove: changes.request_remove,
            response_headers_to_add: changes.response_add,
            response_headers_to_remove: changes.response_remove,
            host_rewrite_specifier: host
                .map(envoy::weighted_cluster::cluster_weight::HostRewriteSpecifier::HostRewriteLiteral),
            ..envoy::weighted_cluster::ClusterWeight::default()
        }
    });
    envoy::WeightedCluster { clusters: clusters.collect(), ..envoy::WeightedCluster::default() }
}

/// The cluster of a destination. Without a port it is the service's only one, else that of the listener.
pub(super) fn cluster(place: &Place<'_>, config: &Config<VirtualService>, to: &Destination) -> String {
    if to.host.is_empty() {
        return names::UNKNOWN.to_owned();
    }
    let host = place.mesh.full_name(&to.host, &config.namespace);
    let service = place.mesh.service(&host, &place.proxy.namespace);
    let port = match (&to.port, service) {
        (Some(port), _) => port.number,
        (None, Some(service)) => match service.ports.as_slice() {
            [only] => only.number,
            _ => place.port,
        },
        (None, None) => place.port,
    };
    names::outbound_cluster(port, &to.subset, &host)
}

#[derive(Default)]
struct Changes {
    request_add: Vec<HeaderValueOption>,
    request_remove: Vec<String>,
    response_add: Vec<HeaderValueOption>,
    response_remove: Vec<String>,
}

impl Changes {
    fn of(headers: &Headers) -> Self {
        let request = headers.request.clone().unwrap_or_default();
        let response = headers.response.clone().unwrap_or_default();
        Self {
            request_add: wire::headers(&request.set, &request.add),
            request_remove: request.remove,
            response_add: wire::headers(&response.set, &response.add),
            response_remove: response.remove,
        }
    }
}

fn host_of(operations: &crate::model::api::HeaderOperations) -> Option<String> {
    operations.set.iter().find(|(name, _)| wire::is_host(name)).map(|(_, value)| value.clone())
}

fn matcher(condition: Option<&HttpMatch>) -> envoy::RouteMatch {
    let Some(condition) = condition else {
        return envoy::RouteMatch {
            path_specifier: Some(PathSpecifier::Prefix("/".to_owned())),
            ..envoy::RouteMatch::default()
        };
    };
    let mut headers: Vec<envoy::HeaderMatcher> =
        condition.headers.iter().map(|(name, value)| header(name, value, false)).collect();
    headers.extend(condition.without_headers.iter().map(|(name, value)| header(name, value, true)));
    for (name, value) in
        [(":method", &condition.method), (":authority", &condition.authority), (":scheme", &condition.scheme)]
    {
        headers.extend(value.as_ref().map(|value| header(name, value, false)));
    }
    let query_parameters = condition.query_params.iter().map(|(name, value)| envoy::QueryParameterMatcher {
        name: name.clone(),
        query_parameter_match_specifier: Some(match pattern(value) {
            Some(pattern) => QueryParameterMatchSpecifier::StringMatch(StringMatcher {
                match_pattern: Some(pattern),
                ..StringMatcher::default()
            }),
            None => QueryParameterMatchSpecifier::PresentMatch(true),
        }),
    });
    let uri = condition.uri.clone().unwrap_or_default();
    let path = match (uri.exact, uri.prefix, uri.regex) {
        (Some(exact), _, _) => PathSpecifier::Path(exact),
        (_, _, Some(regex)) => PathSpecifier::SafeRegex(RegexMatcher { regex, ..RegexMatcher::default() }),
        (_, Some(prefix), _) if condition.whole_segments => PathSpecifier::PathSeparatedPrefix(prefix),
        (_, Some(prefix), _) if !prefix.is_empty() => PathSpecifier::Prefix(prefix),
        _ => PathSpecifier::Prefix("/".to_owned()),
    };
    envoy::RouteMatch {
        path_specifier: Some(path),
        case_sensitive: condition.ignore_uri_case.then(|| wire::flag(false)).flatten(),
        headers,
        query_parameters: query_parameters.collect(),
        ..envoy::RouteMatch::default()
    }
}

fn pattern(value: &StringMatch) -> Option<MatchPattern> {
    match (&value.exact, &value.prefix, &value.regex) {
        (Some(exact), _, _) => Some(MatchPattern::Exact(exact.clone())),
        (_, Some(prefix), _) => Some(MatchPattern::Prefix(prefix.clone())),
        (_, _, Some(regex)) if regex == "*" => None,
        (_, _, Some(regex)) => {
            Some(MatchPattern::SafeRegex(RegexMatcher { regex: regex.clone(), ..RegexMatcher::default() }))
        }
        _ => None,
    }
}

fn header(name: &str, value: &StringMatch, without: bool) -> envoy::HeaderMatcher {
    let specifier = match pattern(value) {
        Some(pattern) => HeaderMatchSpecifier::StringMatch(StringMatcher {
            match_pattern: Some(pattern),
            ..StringMatcher::default()
        }),
        None => HeaderMatchSpecifier::PresentMatch(true),
    };
    let by_value = matches!(specifier, HeaderMatchSpecifier::StringMatch(_));
    envoy::HeaderMatcher {
        name: name.to_owned(),
        invert_match: without,
        // A request without the field is one without that value too.
        treat_missing_header_as_empty: without && by_value,
        header_match_specifier: Some(specifier),
    }
}

fn redirection(place: &Place<'_>, redirect: &HttpRedirect) -> envoy::RedirectAction {
    use envoy::redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier};
    let code = match redirect.redirect_code {
        302 => RedirectResponseCode::Found,
        303 => RedirectResponseCode::SeeOther,
        307 => RedirectResponseCode::TemporaryRedirect,
        308 => RedirectResponseCode::PermanentRedirect,
        _ => RedirectResponseCode::MovedPermanently,
    };
    let path = if !redirect.uri.is_empty() {
        Some(PathRewriteSpecifier::PathRedirect(redirect.uri.clone()))
    } else if !redirect.prefix_rewrite.is_empty() {
        Some(PathRewriteSpecifier::PrefixRewrite(redirect.prefix_rewrite.clone()))
    } else {
        None
    };
    envoy::RedirectAction {
        host_redirect: redirect.authority.clone(),
        port_redirect: if redirect.derive_port == "FROM_REQUEST_PORT" { place.port } else { redirect.port },
        response_code: code.into(),
        scheme_rewrite_specifier: (!redirect.scheme.is_empty())
            .then(|| SchemeRewriteSpecifier::SchemeRedirect(redirect.scheme.clone())),
        path_rewrite_specifier: path,
        ..envoy::RedirectAction::default()
    }
}

/// Envoy's policy for Istio's, with Istio's defaults; none where attempts are 0.
pub(super) fn retry(policy: Option<&HttpRetry>) -> Option<envoy::RetryPolicy> {
    use envoy::retry_policy::{RetryBackOff, RetryHostPredicate, retry_host_predicate::ConfigType};
    let attempts = match policy {
        Some(policy) if policy.attempts == 0 => return None,
        Some(policy) => policy.attempts,
        None => 2,
    };
    let mut retry_on = policy.map(|policy| policy.retry_on.clone()).unwrap_or_default();
    let mut codes = Vec::new();
    if retry_on.is_empty() {
        "connect-failure,refused-stream,unavailable,cancelled".clone_into(&mut retry_on);
    } else {
        let (numbers, words): (Vec<&str>, Vec<&str>) =
            retry_on.split(',').map(str::trim).partition(|word| word.parse::<u32>().is_ok());
        codes = numbers.iter().filter_map(|word| word.parse().ok()).collect();
        let mut words = words;
        if !codes.is_empty() && !words.contains(&"retriable-status-codes") {
            words.push("retriable-status-codes");
        }
        retry_on = words.join(",");
    }
    let previous = policy.and_then(|policy| policy.retry_ignore_previous_hosts).unwrap_or(true);
    let predicate = RetryHostPredicate {
        name: "envoy.retry_host_predicates.previous_hosts".to_owned(),
        config_type: Some(ConfigType::TypedConfig(wire::any(
            "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate",
            &PreviousHostsPredicate {},
        ))),
    };
    Some(envoy::RetryPolicy {
        retry_on,
        num_retries: wire::number(attempts),
        retriable_status_codes: codes,
        per_try_timeout: policy.and_then(|policy| policy.per_try_timeout).and_then(|timeout| wire::span(timeout.0)),
        retry_host_predicate: if previous { vec![predicate] } else { Vec::new() },
        host_selection_retry_max_attempts: if previous { 5 } else { 0 },
        retry_back_off: policy
            .and_then(|policy| policy.backoff)
            .map(|backoff| RetryBackOff { base_interval: wire::span(backoff.0), ..RetryBackOff::default() }),
        ..envoy::RetryPolicy::default()
    })
}

fn fraction(percentage: Option<&Percent>) -> FractionalPercent {
    let value = percentage.map_or(100.0, |percentage| percentage.value).clamp(0.0, 100.0);
    // Clamped: at most a million.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let numerator = (value * 10_000.0).round() as u32;
    FractionalPercent { numerator, denominator: DenominatorType::Million.into() }
}

fn injected(fault: &Fault) -> HttpFault {
    let delay = fault.delay.as_ref().map(|delay| {
        let percentage =
            delay.percentage.clone().or_else(|| delay.percent.map(|percent| Percent { value: f64::from(percent) }));
        FaultDelay {
            percentage: Some(fraction(percentage.as_ref())),
            fault_delay_secifier: delay
                .fixed_delay
                .and_then(|delay| wire::span(delay.0))
                .map(fault_delay::FaultDelaySecifier::FixedDelay),
        }
    });
    let abort = fault.abort.as_ref().map(|abort| FaultAbort {
        percentage: Some(fraction(abort.percentage.as_ref())),
        error_type: match (&abort.grpc_status, abort.http_status) {
            (Some(status), _) => Some(fault_abort::ErrorType::GrpcStatus(grpc_status(status))),
            (None, status) => status.map(fault_abort::ErrorType::HttpStatus),
        },
        ..FaultAbort::default()
    });
    HttpFault { delay, abort, ..HttpFault::default() }
}

/// gRPC's status codes by name, in the order of their numbers.
const GRPC: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

fn grpc_status(name: &str) -> u32 {
    let by_name = GRPC.iter().position(|known| *known == name).and_then(|index| u32::try_from(index).ok());
    by_name.or_else(|| name.parse().ok()).unwrap_or(2)
}

fn cors_policy(cors: &Cors) -> CorsPolicy {
    let exact = cors.allow_origin.iter().map(|origin| StringMatch {
        exact: (origin != "*").then(|| origin.clone()),
        regex: (origin == "*").then(|| ".*".to_owned()),
        prefix: None,
    });
    let origins: Vec<StringMatch> = exact.chain(cors.allow_origins.iter().cloned()).collect();
    let forward = match cors.unmatched_preflights.as_str() {
        "FORWARD" => wire::flag(true),
        "IGNORE" => wire::flag(false),
        _ => None,
    };
    CorsPolicy {
        allow_origin_string_match: origins
            .iter()
            .filter_map(pattern)
            .map(|pattern| StringMatcher { match_pattern: Some(pattern), ..StringMatcher::default() })
            .collect(),
        allow_methods: cors.allow_methods.join(","),
        allow_headers: cors.allow_headers.join(","),
        expose_headers: cors.expose_headers.join(","),
        max_age: cors.max_age.map(|age| age.0.as_secs().to_string()).unwrap_or_default(),
        allow_credentials: cors.allow_credentials.and_then(wire::flag),
        filter_enabled: Some(RuntimeFractionalPercent {
            default_value: Some(fraction(None)),
            ..RuntimeFractionalPercent::default()
        }),
        forward_not_matching_preflights: forward,
        ..CorsPolicy::default()
    }
}
