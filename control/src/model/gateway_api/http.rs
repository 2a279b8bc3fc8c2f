//! Rules of HTTPRoutes and GRPCRoutes as HTTP routes.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::backend::Backends;
use super::grant::Pointing;
use super::spec::{Condition, Cors, Filter, GrpcMethod, Match, Method, Redirect, Retry, Rewrite, Rule};
use super::status::Fault;
use crate::model::api::{
    Cors as CorsPolicy, DirectResponse, HeaderOperations, Headers, HttpMatch, HttpRedirect, HttpRetry, HttpRewrite,
    HttpRoute, MadeFrom, Mirror, Percent, RegexRewrite, Span, StringMatch, WeightedDestination,
};
use crate::model::config::Origin;

/// A route object, as its rules need it.
pub(super) struct Maker<'a> {
    pub(super) backends: &'a Backends<'a>,
    pub(super) from: Pointing<'a>,
    pub(super) name: &'a str,
    pub(super) origin: &'a Arc<Origin>,
    /// Whether backends of other namespaces need a grant.
    pub(super) granted: bool,
    /// The only port that routes are for; 0 for all.
    pub(super) port: u32,
}

/// Where a fault is, and what.
type At = (String, Fault);

impl Maker<'_> {
    /// A route for each match of each rule. What cannot be done as written fails each request, and is told in `faults`.
    pub(super) fn routes(&self, rules: &[Rule], faults: &mut Vec<At>) -> Vec<HttpRoute> {
        let mut routes = Vec::new();
        for (index, rule) in rules.iter().enumerate() {
            let path = format!("spec.rules[{index}]");
            let name = if rule.name.is_empty() {
                format!("{}.{}.{index}", self.from.namespace, self.name)
            } else {
                rule.name.clone()
            };
            let one = [Match::default()];
            let matches = if rule.matches.is_empty() { &one[..] } else { &rule.matches };
            for condition in matches {
                let conditions = HttpMatch { port: self.port, ..matched(condition) };
                let mut made = HttpRoute {
                    name: name.clone(),
                    matches: if conditions == HttpMatch::default() { Vec::new() } else { vec![conditions] },
                    made_from: Some(MadeFrom { origin: self.origin.clone(), path: path.clone() }),
                    ..HttpRoute::default()
                };
                if let Err(fault) = self.fill(&mut made, rule, condition, &path, faults) {
                    faults.push(fault);
                    // What cannot be done as written must not be done otherwise.
                    made.route = Vec::new();
                    made.redirect = None;
                    made.direct_response = Some(DirectResponse { status: 500, body: None });
                }
                routes.push(made);
            }
        }
        routes
    }

    /// Adds filters and backends; what cannot be served at all comes back with its place.
    fn fill(
        &self,
        made: &mut HttpRoute,
        rule: &Rule,
        condition: &Match,
        path: &str,
        faults: &mut Vec<At>,
    ) -> Result<(), At> {
        let prefix = condition.path.as_ref().map_or("/", |path| path.value.as_str());
        for (index, filter) in rule.filters.iter().enumerate() {
            let at = format!("{path}.filters[{index}]");
            match filter.kind.as_str() {
                "RequestRedirect" => made.redirect = Some(redirect(&filter.request_redirect)),
                "URLRewrite" => made.rewrite = Some(rewrite(&filter.url_rewrite, prefix)),
                "CORS" => made.cors_policy = Some(cors(&filter.cors)),
                "RequestMirror" => {
                    let mirror = &filter.request_mirror;
                    let found = self.backends.find(self.from, &mirror.backend_ref, self.granted);
                    let exists = !found.destination.host.is_empty()
                        && found.fault.as_ref().is_none_or(|fault| fault.reason != "BackendNotFound");
                    faults.extend(found.fault.map(|fault| (at, fault)));
                    if exists {
                        let part = mirror.fraction.as_ref().map(|fraction| {
                            f64::from(fraction.numerator) * 100.0
                                / f64::from(fraction.denominator.unwrap_or(100).max(1))
                        });
                        let value = mirror.percent.map(f64::from).or(part);
                        made.mirrors.push(Mirror {
                            destination: found.destination,
                            percentage: value.map(|value| Percent { value }),
                        });
                    }
                }
                _ => modify(made.headers.get_or_insert_default(), filter, &at)?,
            }
        }
        made.retries = rule.retry.as_ref().map(retries);
        made.timeout = rule.timeouts.request.filter(|span| !span.0.is_zero());
        if let Some(span) = rule.timeouts.backend_request.filter(|span| !span.0.is_zero()) {
            match &mut made.retries {
                Some(retries) => retries.per_try_timeout = Some(span),
                None => made.timeout = Some(span),
            }
        }
        let chosen: Vec<_> =
            rule.backend_refs.iter().enumerate().filter(|(_, backend)| backend.weight != Some(0)).collect();
        if chosen.is_empty() && made.redirect.is_none() {
            made.direct_response = Some(DirectResponse { status: 500, body: None });
        }
        for (index, backend) in &chosen {
            let at = format!("{path}.backendRefs[{index}]");
            let mut headers = None;
            for filter in &backend.filters {
                modify(headers.get_or_insert_default(), filter, &at)?;
            }
            let found = self.backends.find(self.from, backend, self.granted);
            faults.extend(found.fault.map(|fault| (at, fault)));
            let weight = if chosen.len() == 1 { 0 } else { backend.weight.unwrap_or(1) };
            made.route.push(WeightedDestination { destination: found.destination, weight, headers });
        }
        Ok(())
    }
}

/// The API's precedence: exact paths, then the longer prefix, a method, more fields, more parameters; the rest as written.
pub(super) fn rank(route: &HttpRoute) -> impl Ord + use<> {
    use std::cmp::Reverse;
    let condition = route.matches.first().cloned().unwrap_or_default();
    let uri = condition.uri.unwrap_or_default();
    let (class, length) = match (&uri.exact, &uri.prefix, &uri.regex) {
        (Some(exact), _, _) => (0, exact.len()),
        (_, Some(prefix), _) => (1, prefix.len()),
        (_, _, Some(regex)) => (2, regex.len()),
        // A condition without a path is one on the prefix `/`, by the schema's defaults.
        _ => (1, 1),
    };
    let counts = (condition.headers.len(), condition.query_params.len());
    (class, Reverse(length), condition.method.is_none(), Reverse(counts))
}

fn value(condition: &Condition) -> StringMatch {
    let text = Some(condition.value.clone());
    match condition.kind.as_str() {
        "RegularExpression" => StringMatch { regex: text, ..StringMatch::default() },
        _ => StringMatch { exact: text, ..StringMatch::default() },
    }
}

fn matched(condition: &Match) -> HttpMatch {
    let all = |list: &[Condition]| list.iter().map(|one| (one.name.clone(), value(one))).collect::<BTreeMap<_, _>>();
    let mut made = HttpMatch {
        headers: all(&condition.headers),
        query_params: all(&condition.query_params),
        ..HttpMatch::default()
    };
    match &condition.method {
        Some(Method::Http(method)) => {
            made.method = Some(StringMatch { exact: Some(method.clone()), ..StringMatch::default() });
        }
        Some(Method::Grpc(method)) => made.uri = called(method),
        None => {}
    }
    if let Some(path) = &condition.path {
        made.uri = Some(match path.kind.as_str() {
            "Exact" | "RegularExpression" => value(path),
            _ => {
                let prefix = path.value.trim_end_matches('/');
                made.whole_segments = !prefix.is_empty();
                let prefix = if prefix.is_empty() { "/" } else { prefix };
                StringMatch { prefix: Some(prefix.to_owned()), ..StringMatch::default() }
            }
        });
    }
    made
}

/// A gRPC method as a path: `/service/method`.
fn called(method: &GrpcMethod) -> Option<StringMatch> {
    let (exact, prefix, regex) = match (method.kind.as_str(), &method.service, &method.method) {
        (_, None, None) => return None,
        (_, None, Some(method)) => (None, None, Some(format!("/[^/]+/{method}"))),
        ("RegularExpression", Some(service), None) => (None, None, Some(format!("/{service}/.+"))),
        ("RegularExpression", Some(service), Some(method)) => (None, None, Some(format!("/{service}/{method}"))),
        (_, Some(service), None) => (None, Some(format!("/{service}/")), None),
        (_, Some(service), Some(method)) => (Some(format!("/{service}/{method}")), None, None),
    };
    Some(StringMatch { exact, prefix, regex })
}

/// A retry stanza is also for errors of the connection.
fn retries(retry: &Retry) -> HttpRetry {
    let attempts = retry.attempts.unwrap_or(2);
    let mut retry_on = "connect-failure,refused-stream,unavailable,cancelled".to_owned();
    for code in &retry.codes {
        retry_on.push_str(&format!(",{code}"));
    }
    HttpRetry {
        attempts,
        retry_on: if attempts == 0 { String::new() } else { retry_on },
        backoff: retry.backoff,
        ..HttpRetry::default()
    }
}

fn cors(cors: &Cors) -> CorsPolicy {
    let origin = |text: &String| match text.as_str() {
        // Any scheme and host, and nothing after.
        "*" => {
            StringMatch { regex: Some(r"^[a-zA-Z][a-zA-Z0-9+.-]*://[^/\s?#]+$".to_owned()), ..StringMatch::default() }
        }
        text if text.contains('*') => {
            let parts: Vec<String> = text.split('*').map(escape).collect();
            StringMatch { regex: Some(format!("^{}$", parts.join(".*"))), ..StringMatch::default() }
        }
        text => StringMatch { exact: Some(text.to_owned()), ..StringMatch::default() },
    };
    CorsPolicy {
        allow_origins: cors.allow_origins.iter().map(origin).collect(),
        allow_methods: cors.allow_methods.clone(),
        allow_headers: cors.allow_headers.clone(),
        expose_headers: cors.expose_headers.clone(),
        max_age: cors.max_age.map(|seconds| Span(std::time::Duration::from_secs(seconds))),
        allow_credentials: cors.allow_credentials,
        unmatched_preflights: "IGNORE".to_owned(),
        ..CorsPolicy::default()
    }
}

/// `text` as a regular expression that matches itself; `-`, `/` and their like have no meaning outside of sets.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        if r"\.+*?()|[]{}^$".contains(letter) {
            escaped.push('\\');
        }
        escaped.push(letter);
    }
    escaped
}

fn redirect(redirect: &Redirect) -> HttpRedirect {
    HttpRedirect {
        uri: redirect.path.replace_full_path.clone().unwrap_or_default(),
        prefix_rewrite: redirect.path.replace_prefix_match.clone().unwrap_or_default(),
        authority: redirect.hostname.clone(),
        port: redirect.port,
        derive_port: match (redirect.port, redirect.scheme.as_str()) {
            (0, "") => "FROM_REQUEST_PORT".to_owned(),
            (0, _) => "FROM_PROTOCOL_DEFAULT".to_owned(),
            _ => String::new(),
        },
        scheme: redirect.scheme.clone(),
        redirect_code: if redirect.status_code == 0 { 302 } else { redirect.status_code },
    }
}

fn rewrite(rewrite: &Rewrite, prefix: &str) -> HttpRewrite {
    let mut made = HttpRewrite { authority: rewrite.hostname.clone(), ..HttpRewrite::default() };
    let whole = |pattern: String, rewrite: &str| Some(RegexRewrite { pattern, rewrite: rewrite.to_owned() });
    if let Some(full) = &rewrite.path.replace_full_path {
        made.uri_regex_rewrite = whole("/.*".to_owned(), full);
    } else if let Some(to) = &rewrite.path.replace_prefix_match {
        let to = to.trim_end_matches('/');
        if to.is_empty() {
            // What follows the prefix begins with a slash or is nothing: neither two nor none may be left.
            made.uri_regex_rewrite = whole(format!("^{}/*", regex::escape(prefix.trim_end_matches('/'))), "/");
        } else {
            to.clone_into(&mut made.uri);
        }
    }
    made
}

fn modify(into: &mut Headers, filter: &Filter, at: &str) -> Result<(), At> {
    let (slot, modifier) = match filter.kind.as_str() {
        "RequestHeaderModifier" => (&mut into.request, &filter.request_header_modifier),
        "ResponseHeaderModifier" => (&mut into.response, &filter.response_header_modifier),
        kind => {
            let message = format!("unsupported filter type \"{kind}\"");
            return Err((at.to_owned(), Fault::new("UnsupportedValue", message)));
        }
    };
    let pairs = |list: &[Condition]| list.iter().map(|one| (one.name.clone(), one.value.clone())).collect();
    *slot = Some(HeaderOperations {
        set: pairs(&modifier.set),
        add: pairs(&modifier.add),
        remove: modifier.remove.clone(),
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::model::{Mesh, MeshOptions};
    use crate::source::read;

    /// A route of Service `web` and of Gateway `edge`.
    fn build(rules: &str, more: &str) -> (Mesh, Vec<String>) {
        let service = |name: &str| {
            format!(
                "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: b}}\nspec: {{ports: [{{port: 80, name: http}}]}}\n"
            )
        };
        let text = format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r, namespace: a}}\nspec:\n  parentRefs: [{{group: '', kind: Service, name: web, namespace: b}}, {{name: edge}}]\n  rules: [{rules}]\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: edge, namespace: a}}\nspec: {{gatewayClassName: istio, listeners: [{{name: http, port: 80, protocol: HTTP}}]}}\n{}{}{more}",
            service("cart"),
            service("web"),
        );
        let (mesh, findings) = Mesh::build(&read("a.yaml", &text).unwrap(), &MeshOptions::default());
        (mesh, findings.into_iter().map(|finding| format!("{} {}", finding.code, finding.message)).collect())
    }

    #[test]
    fn a_gateways_backend_elsewhere_needs_a_grant() {
        let rules = "{backendRefs: [{name: cart, namespace: b, port: 80}]}";
        let hosts = |mesh: &Mesh| -> Vec<String> {
            mesh.virtual_services.iter().map(|config| config.spec.http[0].route[0].destination.host.clone()).collect()
        };
        let (mesh, found) = build(rules, "");
        assert!(found.iter().any(|line| line.starts_with("IST0101 backendRef cart/b not accessible")), "{found:?}");
        assert_eq!(hosts(&mesh), ["", "cart.b.svc.cluster.local"], "a client of the mesh can reach it anyway");
        assert_eq!(mesh.virtual_services[1].spec.hosts, ["web.b.svc.cluster.local"]);
        assert_eq!(mesh.virtual_services[1].spec.export_to, ["."]);
        let grant = "---\napiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {name: g, namespace: b}\nspec:\n  from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: a}]\n  to: [{group: '', kind: Service}]\n";
        let (mesh, found) = build(rules, grant);
        assert_eq!(found, Vec::<String>::new());
        assert_eq!(hosts(&mesh), ["cart.b.svc.cluster.local"; 2]);
    }

    #[test]
    fn the_more_specific_match_comes_first() {
        let redirect = "filters: [{type: RequestRedirect, requestRedirect: {statusCode: 302}}]";
        let path =
            |kind: &str, value: &str| format!("{{matches: [{{path: {{type: {kind}, value: {value}}}}}], {redirect}}}");
        let rules =
            [path("PathPrefix", "/"), path("PathPrefix", "/a/"), path("Exact", "/b"), path("PathPrefix", "/long")];
        let (mesh, _) = build(&rules.join(", "), "");
        let order: Vec<String> = mesh.virtual_services[0]
            .spec
            .http
            .iter()
            .map(|route| route.matches[0].uri.clone().unwrap())
            .map(|uri| uri.exact.or(uri.prefix).unwrap())
            .collect();
        assert_eq!(order, ["/b", "/long", "/a", "/"]);
    }

    #[test]
    fn what_is_not_served_is_said() {
        let (_, found) = build(
            "{filters: [{type: ExtensionRef}]}",
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: UDPRoute\nmetadata: {name: g}\nspec: {}\n",
        );
        for wanted in ["unsupported filter type \"ExtensionRef\"", "objects of kind UDPRoute"] {
            assert!(found.iter().any(|line| line.contains(wanted)), "{wanted}: {found:?}");
        }
    }
}
