//! HTTPRoutes whose parents are Services: routes for sidecars, as virtual services of one host each.
//!
//! A route beside its Service is for every client; one elsewhere is for clients of its own namespace and comes first there.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::api::{
    Destination, DirectResponse, HeaderOperations, Headers, HttpMatch, HttpRedirect, HttpRewrite, HttpRoute, Mirror,
    Percent, PortSelector, RegexRewrite, Span, StringMatch, VirtualService, WeightedDestination,
};
use super::config::Config;
use super::finding::{Finding, Severity};
use super::virtual_service::MESH;
use crate::source::Object;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Spec {
    parent_refs: Vec<Reference>,
    rules: Vec<Rule>,
}

/// A parent or a backend.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Reference {
    group: Option<String>,
    kind: Option<String>,
    namespace: Option<String>,
    name: String,
    port: Option<u32>,
    weight: Option<u32>,
    filters: Vec<Filter>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Rule {
    name: String,
    matches: Vec<Match>,
    filters: Vec<Filter>,
    backend_refs: Vec<Reference>,
    timeouts: Timeouts,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Timeouts {
    request: Option<Span>,
    backend_request: Option<Span>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Match {
    path: Option<Condition>,
    headers: Vec<Condition>,
    query_params: Vec<Condition>,
    method: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    name: String,
    value: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Filter {
    #[serde(rename = "type")]
    kind: String,
    request_header_modifier: Modifier,
    response_header_modifier: Modifier,
    request_redirect: Redirect,
    url_rewrite: Rewrite,
    request_mirror: Mirrored,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Modifier {
    set: Vec<Condition>,
    add: Vec<Condition>,
    remove: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Redirect {
    scheme: String,
    hostname: String,
    path: Path,
    port: u32,
    status_code: u32,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Rewrite {
    hostname: String,
    path: Path,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Path {
    replace_full_path: Option<String>,
    replace_prefix_match: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Mirrored {
    backend_ref: Reference,
    percent: Option<u32>,
}

/// ReferenceGrants: who may lead to a namespace's Services.
pub(super) struct Grants<'a> {
    pub(super) objects: Vec<&'a Object>,
}

impl Grants<'_> {
    fn allow(&self, from: &str, to: &str, service: &str) -> bool {
        let list = |spec: &Value, field: &str| spec.get(field).and_then(Value::as_array).cloned().unwrap_or_default();
        let is = |entry: &Value, field: &str, wanted: &str| entry.get(field).and_then(Value::as_str) == Some(wanted);
        self.objects.iter().filter(|grant| grant.resource.namespace == to).any(|grant| {
            let spec = grant.spec();
            list(spec, "from").iter().any(|entry| is(entry, "kind", "HTTPRoute") && is(entry, "namespace", from))
                && list(spec, "to").iter().any(|entry| {
                    is(entry, "kind", "Service") && (entry.get("name").is_none() || is(entry, "name", service))
                })
        })
    }
}

/// The virtual services of one route: one for each Service that is its parent.
pub(super) fn convert(
    route: &Config<Spec>,
    domain: &str,
    grants: &Grants<'_>,
    findings: &mut Vec<Finding>,
) -> Vec<Config<VirtualService>> {
    let maker = Maker { route, domain, grants };
    let mut made = Vec::new();
    for (index, parent) in route.spec.parent_refs.iter().enumerate() {
        if parent.kind.as_deref() != Some("Service") {
            findings.push(maker.finding(
                Severity::Warning,
                "TORUS0001",
                &format!("spec.parentRefs[{index}]"),
                "HTTPRoutes are served for parents of kind Service; for a gateway write a VirtualService".to_owned(),
            ));
            continue;
        }
        let namespace = parent.namespace.as_deref().unwrap_or(&route.namespace);
        let mut http = maker.http(parent.port.unwrap_or_default(), findings);
        http.sort_by_key(rank);
        made.push(Config {
            name: route.name.clone(),
            namespace: route.namespace.clone(),
            created: route.created.clone(),
            annotations: route.annotations.clone(),
            spec: VirtualService {
                hosts: vec![format!("{}.{namespace}.svc.{domain}", parent.name)],
                gateways: vec![MESH.to_owned()],
                http,
                export_to: if namespace == route.namespace { Vec::new() } else { vec![".".to_owned()] },
                ..VirtualService::default()
            },
            origin: route.origin.clone(),
        });
    }
    made
}

/// The API's precedence: exact paths, then the longer prefix, a method, more fields, more parameters; the rest as written.
fn rank(route: &HttpRoute) -> impl Ord + use<> {
    use std::cmp::Reverse;
    let condition = route.matches.first().cloned().unwrap_or_default();
    let uri = condition.uri.unwrap_or_default();
    let (class, length) = match (&uri.exact, &uri.prefix, &uri.regex) {
        (Some(exact), _, _) => (0, exact.len()),
        (_, Some(prefix), _) => (1, prefix.len()),
        (_, _, Some(regex)) => (2, regex.len()),
        _ => (3, 0),
    };
    let counts = (condition.headers.len(), condition.query_params.len());
    (class, Reverse(length), condition.method.is_none(), Reverse(counts))
}

struct Maker<'a> {
    route: &'a Config<Spec>,
    domain: &'a str,
    grants: &'a Grants<'a>,
}

impl Maker<'_> {
    fn http(&self, port: u32, findings: &mut Vec<Finding>) -> Vec<HttpRoute> {
        let mut routes = Vec::new();
        for (index, rule) in self.route.spec.rules.iter().enumerate() {
            let path = format!("spec.rules[{index}]");
            let one = [Match::default()];
            let matches = if rule.matches.is_empty() { &one[..] } else { &rule.matches };
            for condition in matches {
                let mut made = HttpRoute {
                    name: rule.name.clone(),
                    matches: vec![HttpMatch { port, ..matched(condition) }],
                    timeout: rule.timeouts.request.or(rule.timeouts.backend_request),
                    ..HttpRoute::default()
                };
                if let Err((at, code, message)) = self.fill(&mut made, rule, condition, &path) {
                    let finding = self.finding(Severity::Error, code, &at, message);
                    if !findings.contains(&finding) {
                        findings.push(finding);
                    }
                    // What cannot be done as written must not be done otherwise.
                    (made.route, made.redirect) = (Vec::new(), None);
                }
                if made.route.is_empty() && made.redirect.is_none() {
                    made.direct_response = Some(DirectResponse { status: 500, body: None });
                }
                routes.push(made);
            }
        }
        routes
    }

    /// Adds filters and backends; what cannot be served comes back with its place.
    fn fill(
        &self,
        made: &mut HttpRoute,
        rule: &Rule,
        condition: &Match,
        path: &str,
    ) -> Result<(), (String, &'static str, String)> {
        let prefix = condition.path.as_ref().map_or("/", |path| path.value.as_str());
        for (index, filter) in rule.filters.iter().enumerate() {
            let at = format!("{path}.filters[{index}]");
            match filter.kind.as_str() {
                "RequestRedirect" => made.redirect = Some(redirect(&filter.request_redirect)),
                "URLRewrite" => made.rewrite = Some(rewrite(&filter.url_rewrite, prefix)),
                "RequestMirror" => made.mirrors.push(Mirror {
                    destination: self.destination(&filter.request_mirror.backend_ref, &at)?,
                    percentage: filter.request_mirror.percent.map(|percent| Percent { value: f64::from(percent) }),
                }),
                _ => modify(made.headers.get_or_insert_default(), filter, &at)?,
            }
        }
        for (index, backend) in rule.backend_refs.iter().enumerate() {
            let at = format!("{path}.backendRefs[{index}]");
            let mut headers = None;
            for filter in &backend.filters {
                modify(headers.get_or_insert_default(), filter, &at)?;
            }
            let weight = backend.weight.unwrap_or(1);
            let destination = self.destination(backend, &at)?;
            if weight > 0 {
                made.route.push(WeightedDestination { destination, weight, headers });
            }
        }
        Ok(())
    }

    fn destination(&self, to: &Reference, at: &str) -> Result<Destination, (String, &'static str, String)> {
        let namespace = to.namespace.as_deref().unwrap_or(&self.route.namespace);
        let group = to.group.as_deref().unwrap_or_default();
        let host = match (group, to.kind.as_deref().unwrap_or("Service")) {
            ("" | "core", "Service") => {
                let own = namespace == self.route.namespace;
                if !own && !self.grants.allow(&self.route.namespace, namespace, &to.name) {
                    let message = format!(
                        "no ReferenceGrant in namespace {namespace} lets an HTTPRoute of {} lead to Service {}",
                        self.route.namespace, to.name
                    );
                    return Err((at.to_owned(), "IST0101", message));
                }
                format!("{}.{namespace}.svc.{}", to.name, self.domain)
            }
            ("networking.istio.io", "Hostname") => to.name.clone(),
            (_, kind) => return Err((at.to_owned(), "TORUS0001", format!("backends of kind {kind} are not served"))),
        };
        Ok(Destination { host, subset: String::new(), port: to.port.map(|number| PortSelector { number }) })
    }

    fn finding(&self, severity: Severity, code: &'static str, path: &str, message: String) -> Finding {
        let origin = &self.route.origin;
        Finding { severity, code, resource: origin.resource.clone(), place: origin.place_of(path).clone(), message }
    }
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
        method: condition.method.clone().map(|method| StringMatch { exact: Some(method), ..StringMatch::default() }),
        ..HttpMatch::default()
    };
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

fn redirect(redirect: &Redirect) -> HttpRedirect {
    let keeps_port = redirect.port == 0 && redirect.scheme.is_empty();
    HttpRedirect {
        uri: redirect.path.replace_full_path.clone().unwrap_or_default(),
        prefix_rewrite: redirect.path.replace_prefix_match.clone().unwrap_or_default(),
        authority: redirect.hostname.clone(),
        port: redirect.port,
        derive_port: if keeps_port { "FROM_REQUEST_PORT".to_owned() } else { String::new() },
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

fn modify(into: &mut Headers, filter: &Filter, at: &str) -> Result<(), (String, &'static str, String)> {
    let (slot, modifier) = match filter.kind.as_str() {
        "RequestHeaderModifier" => (&mut into.request, &filter.request_header_modifier),
        "ResponseHeaderModifier" => (&mut into.response, &filter.response_header_modifier),
        kind => return Err((at.to_owned(), "TORUS0001", format!("filters of type {kind} are not served"))),
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

    fn build(rules: &str, more: &str) -> (Mesh, Vec<String>) {
        let text = format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r, namespace: a}}\nspec:\n  parentRefs: [{{group: '', kind: Service, name: web, namespace: b}}]\n  rules: [{rules}]\n---\napiVersion: v1\nkind: Service\nmetadata: {{name: cart, namespace: b}}\nspec: {{ports: [{{port: 80, name: http}}]}}\n{more}"
        );
        let (mesh, findings) = Mesh::build(&read("a.yaml", &text).unwrap(), &MeshOptions::default());
        (mesh, findings.into_iter().map(|finding| format!("{} {}", finding.code, finding.message)).collect())
    }

    #[test]
    fn a_backend_elsewhere_needs_a_grant() {
        let rules = "{backendRefs: [{name: cart, namespace: b, port: 80}]}";
        let (mesh, found) = build(rules, "");
        assert!(found.iter().any(|line| line.starts_with("IST0101 no ReferenceGrant in namespace b")), "{found:?}");
        let route = &mesh.virtual_services[0].spec.http[0];
        assert_eq!(route.direct_response.as_ref().map(|answer| answer.status), Some(500));
        let grant = "---\napiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {name: g, namespace: b}\nspec:\n  from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: a}]\n  to: [{group: '', kind: Service}]\n";
        let (mesh, found) = build(rules, grant);
        assert_eq!(found, Vec::<String>::new());
        let config = &mesh.virtual_services[0];
        assert_eq!(config.spec.hosts, ["web.b.svc.cluster.local"]);
        assert_eq!(config.spec.export_to, ["."]);
        assert_eq!(config.spec.http[0].route[0].destination.host, "cart.b.svc.cluster.local");
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
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: GRPCRoute\nmetadata: {name: g}\nspec: {}\n",
        );
        for wanted in ["filters of type ExtensionRef are not served", "objects of kind GRPCRoute"] {
            assert!(found.iter().any(|line| line.contains(wanted)), "{wanted}: {found:?}");
        }
    }
}
