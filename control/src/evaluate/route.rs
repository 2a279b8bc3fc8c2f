//! Virtual host, route and cluster of a request.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use envoy_types::pb::envoy::config::listener::v3::FilterChain;
use envoy_types::pb::envoy::config::route::v3::{
    HeaderMatcher, QueryParameterMatcher, Route, RouteConfiguration, VirtualHost, header_matcher::HeaderMatchSpecifier,
    query_parameter_matcher::QueryParameterMatchSpecifier, redirect_action::RedirectResponseCode, route::Action,
    route_action::ClusterSpecifier, route_match::PathSpecifier, virtual_host::TlsRequirementType,
};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, http_connection_manager::RouteSpecifier,
};
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::{TcpProxy, tcp_proxy};
use envoy_types::pb::envoy::r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern};
use regex::Regex;

use super::{Call, Failure, Outcome, Security, Spoken};

pub(super) fn tcp(proxy: &TcpProxy, outcome: &mut Outcome) {
    match &proxy.cluster_specifier {
        Some(tcp_proxy::ClusterSpecifier::Cluster(cluster)) => outcome.cluster.clone_from(cluster),
        Some(tcp_proxy::ClusterSpecifier::WeightedClusters(split)) => {
            outcome.split = split.clusters.iter().map(|cluster| (cluster.name.clone(), cluster.weight)).collect();
        }
        _ => {}
    }
}

pub(super) fn http(
    manager: &HttpConnectionManager,
    routes: &[RouteConfiguration],
    chain: &FilterChain,
    call: &Call,
    outcome: &mut Outcome,
) -> Result<(), Failure> {
    if call.spoken == Spoken::Tcp || (call.security != Security::Plaintext && chain.transport_socket.is_none()) {
        return Err(Failure::Protocol);
    }
    let configuration = match &manager.route_specifier {
        Some(RouteSpecifier::RouteConfig(inline)) => inline,
        Some(RouteSpecifier::Rds(rds)) => {
            outcome.route_config.clone_from(&rds.route_config_name);
            routes.iter().find(|routes| routes.name == rds.route_config_name).ok_or(Failure::NoVirtualHost)?
        }
        _ => return Err(Failure::NoVirtualHost),
    };
    let host = virtual_host(configuration, &call.host).ok_or(Failure::NoVirtualHost)?;
    outcome.virtual_host.clone_from(&host.name);
    outcome.decided_by(host.metadata.as_ref());
    if host.require_tls == i32::from(TlsRequirementType::All) && call.security == Security::Plaintext {
        return Err(Failure::TlsRedirect);
    }
    let route = host.routes.iter().find(|route| matches(route, call)).ok_or(Failure::NoRoute)?;
    outcome.route.clone_from(&route.name);
    outcome.decided_by(route.metadata.as_ref());
    outcome.route_filters = route.typed_per_filter_config.keys().cloned().collect();
    outcome.route_filters.sort();
    outcome.answer = match &route.action {
        Some(Action::Redirect(redirect)) => Some(redirect_status(redirect.response_code)),
        Some(Action::DirectResponse(direct)) => Some(direct.status),
        _ => None,
    };
    if let Some(Action::Route(action)) = &route.action {
        match &action.cluster_specifier {
            Some(ClusterSpecifier::Cluster(cluster)) => outcome.cluster.clone_from(cluster),
            Some(ClusterSpecifier::WeightedClusters(split)) => {
                let weight = |weight: &Option<envoy_types::pb::google::protobuf::UInt32Value>| {
                    weight.as_ref().map_or(0, |weight| weight.value)
                };
                outcome.split =
                    split.clusters.iter().map(|cluster| (cluster.name.clone(), weight(&cluster.weight))).collect();
            }
            _ => {}
        }
    }
    Ok(())
}

fn redirect_status(code: i32) -> u32 {
    match RedirectResponseCode::try_from(code) {
        Ok(RedirectResponseCode::Found) => 302,
        Ok(RedirectResponseCode::SeeOther) => 303,
        Ok(RedirectResponseCode::TemporaryRedirect) => 307,
        Ok(RedirectResponseCode::PermanentRedirect) => 308,
        Ok(RedirectResponseCode::MovedPermanently) | Err(_) => 301,
    }
}

/// Exact domain, else the longest suffix, else the longest prefix.
fn virtual_host<'a>(configuration: &'a RouteConfiguration, host: &str) -> Option<&'a VirtualHost> {
    let host = host.to_ascii_lowercase();
    let name = match host.rsplit_once(':') {
        Some((name, port))
            if configuration.ignore_port_in_host_matching && port.bytes().all(|byte| byte.is_ascii_digit()) =>
        {
            name
        }
        _ => host.as_str(),
    };
    let domains = || {
        configuration
            .virtual_hosts
            .iter()
            .flat_map(|host| host.domains.iter().map(move |domain| (host, domain.to_ascii_lowercase())))
    };
    let rank = |domain: &str| -> Option<(u8, Reverse<usize>)> {
        if domain == name {
            Some((0, Reverse(domain.len())))
        } else if domain.strip_prefix('*').is_some_and(|suffix| name.len() >= domain.len() && name.ends_with(suffix)) {
            Some((1, Reverse(domain.len())))
        } else if domain.strip_suffix('*').is_some_and(|prefix| name.len() >= domain.len() && name.starts_with(prefix))
        {
            Some((2, Reverse(domain.len())))
        } else {
            (domain == "*").then_some((3, Reverse(1)))
        }
    };
    domains()
        .filter_map(|(host, domain)| rank(&domain).map(|rank| (rank, host)))
        .min_by_key(|(rank, _)| *rank)
        .map(|(_, host)| host)
}

fn matches(route: &Route, call: &Call) -> bool {
    let Some(condition) = &route.r#match else { return false };
    let folded = condition.case_sensitive.as_ref().is_some_and(|sensitive| !sensitive.value);
    let fold = |text: &str| if folded { text.to_ascii_lowercase() } else { text.to_owned() };
    let path = call.path.split(['?', '#']).next().unwrap_or_default();
    let fits = match &condition.path_specifier {
        Some(PathSpecifier::Prefix(prefix)) => fold(path).starts_with(&fold(prefix)),
        Some(PathSpecifier::PathSeparatedPrefix(prefix)) => {
            fold(path).strip_prefix(&fold(prefix)).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        }
        Some(PathSpecifier::Path(exact)) => fold(path) == fold(exact),
        Some(PathSpecifier::SafeRegex(regex)) => whole(&regex.regex, path),
        _ => false,
    };
    fits && condition.query_parameters.iter().all(|wanted| query(wanted, &call.path))
        && call
            .headers
            .as_ref()
            .is_none_or(|headers| condition.headers.iter().all(|wanted| header(wanted, call, headers)))
}

/// The first parameter of the name counts, undecoded.
fn query(wanted: &QueryParameterMatcher, path: &str) -> bool {
    let path = path.split('#').next().unwrap_or_default();
    let parameters = path.split_once('?').map_or("", |(_, query)| query).split('&');
    let value = parameters
        .map(|parameter| parameter.split_once('=').unwrap_or((parameter, "")))
        .find(|(name, _)| *name == wanted.name)
        .map(|(_, value)| value);
    match &wanted.query_parameter_match_specifier {
        Some(QueryParameterMatchSpecifier::StringMatch(matcher)) => value.is_some_and(|value| text(matcher, value)),
        Some(QueryParameterMatchSpecifier::PresentMatch(present)) => value.is_some() == *present,
        None => value.is_some(),
    }
}

fn header(wanted: &HeaderMatcher, call: &Call, headers: &BTreeMap<String, String>) -> bool {
    let value = match wanted.name.as_str() {
        ":authority" => Some(call.host.as_str()),
        ":path" => Some(call.path.as_str()),
        name => headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str()),
    };
    let fits = match (&wanted.header_match_specifier, value) {
        (Some(HeaderMatchSpecifier::PresentMatch(present)), value) => value.is_some() == *present,
        (Some(HeaderMatchSpecifier::StringMatch(matcher)), Some(value)) => text(matcher, value),
        (Some(HeaderMatchSpecifier::StringMatch(matcher)), None) if wanted.treat_missing_header_as_empty => {
            text(matcher, "")
        }
        // An absent field meets no condition on its value, the opposite of one included.
        (Some(HeaderMatchSpecifier::StringMatch(_)), None) => return false,
        (_, value) => value.is_some(),
    };
    fits != wanted.invert_match
}

fn text(matcher: &StringMatcher, value: &str) -> bool {
    match &matcher.match_pattern {
        Some(MatchPattern::Exact(exact)) => value == exact,
        Some(MatchPattern::Prefix(prefix)) => value.starts_with(prefix.as_str()),
        Some(MatchPattern::Suffix(suffix)) => value.ends_with(suffix.as_str()),
        Some(MatchPattern::Contains(part)) => value.contains(part.as_str()),
        Some(MatchPattern::SafeRegex(regex)) => whole(&regex.regex, value),
        _ => false,
    }
}

fn whole(pattern: &str, value: &str) -> bool {
    Regex::new(&format!("^(?:{pattern})$")).is_ok_and(|regex| regex.is_match(value))
}
