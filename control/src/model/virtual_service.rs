//! VirtualServices with names made full and delegates put in place.

use std::collections::{BTreeMap, BTreeSet};

use super::api::{Destination, HttpMatch, HttpRoute, VirtualService};
use super::config::{Config, Visibility};
use super::finding::{Finding, Severity};
use super::host::resolve_short_name;
use super::mesh::MeshOptions;

/// The gateway name that stands for all sidecars.
pub const MESH: &str = "mesh";

impl VirtualService {
    /// Collects the hosts that routes lead to.
    pub(crate) fn destinations(&self, into: &mut BTreeSet<String>) {
        for route in &self.http {
            into.extend(route.route.iter().map(|to| to.destination.host.clone()));
            into.extend(route.mirror.iter().map(|to| to.host.clone()));
            into.extend(route.mirrors.iter().map(|mirror| mirror.destination.host.clone()));
        }
        for route in self.tls.iter().chain(&self.tcp) {
            into.extend(route.route.iter().map(|to| to.destination.host.clone()));
        }
    }
}

pub(super) fn resolve(
    list: Vec<Config<VirtualService>>,
    options: &MeshOptions,
    findings: &mut Vec<Finding>,
) -> Vec<Config<VirtualService>> {
    let full: Vec<_> = list.into_iter().map(|config| with_full_names(config, options)).collect();
    let delegates: BTreeMap<(String, String), Config<VirtualService>> = full
        .iter()
        .filter(|config| config.spec.hosts.is_empty())
        .map(|config| ((config.namespace.clone(), config.name.clone()), config.clone()))
        .collect();
    let roots = full.into_iter().filter(|config| !config.spec.hosts.is_empty());
    roots.map(|root| with_delegates(root, &delegates, findings)).collect()
}

fn with_full_names(mut config: Config<VirtualService>, options: &MeshOptions) -> Config<VirtualService> {
    let namespace = config.namespace.clone();
    let full = |host: &mut String| *host = resolve_short_name(host, &namespace, &options.short_name_suffix);
    let gateway = |name: &mut String| {
        if let Some(own) = name.strip_prefix("./") {
            *name = format!("{namespace}/{own}");
        } else if name != MESH && !name.contains('/') {
            // `gateway.namespace.svc.domain` is an old way to name one.
            *name = match name.split_once('.') {
                Some((gateway, rest)) => format!("{}/{gateway}", rest.split('.').next().unwrap_or_default()),
                None => format!("{namespace}/{name}"),
            };
        }
    };
    let spec = &mut config.spec;
    spec.hosts.iter_mut().for_each(full);
    spec.gateways.iter_mut().for_each(gateway);
    if spec.gateways.is_empty() {
        spec.gateways.push(MESH.to_owned());
    }
    let destination = |destination: &mut Destination| full(&mut destination.host);
    for route in &mut spec.http {
        route.route.iter_mut().for_each(|to| destination(&mut to.destination));
        route.mirror.iter_mut().for_each(destination);
        route.mirrors.iter_mut().for_each(|mirror| destination(&mut mirror.destination));
        for condition in &mut route.matches {
            condition.gateways.iter_mut().for_each(gateway);
        }
    }
    for route in spec.tls.iter_mut().chain(&mut spec.tcp) {
        route.route.iter_mut().for_each(|to| destination(&mut to.destination));
        for condition in &mut route.matches {
            condition.gateways.iter_mut().for_each(gateway);
        }
    }
    config
}

/// Routes that name a delegate become the delegate's routes, one level deep.
fn with_delegates(
    mut root: Config<VirtualService>,
    delegates: &BTreeMap<(String, String), Config<VirtualService>>,
    findings: &mut Vec<Finding>,
) -> Config<VirtualService> {
    let mut routes = Vec::with_capacity(root.spec.http.len());
    for (index, route) in std::mem::take(&mut root.spec.http).into_iter().enumerate() {
        let Some(delegate) = route.delegate.clone() else {
            routes.push(route);
            continue;
        };
        let namespace = if delegate.namespace.is_empty() { root.namespace.clone() } else { delegate.namespace.clone() };
        let found = delegates.get(&(namespace.clone(), delegate.name.clone()));
        match found
            .filter(|found| Visibility::parse(&found.spec.export_to, &[], &found.namespace).includes(&root.namespace))
        {
            Some(found) => routes.extend(found.spec.http.iter().flat_map(|inner| merged(&route, inner))),
            None => findings.push(Finding {
                severity: Severity::Error,
                code: "IST0101",
                resource: root.origin.resource.clone(),
                place: root.origin.place_of(&format!("spec.http[{index}].delegate")).clone(),
                message: format!(
                    "there is no delegate VirtualService {namespace}/{} that this one may use",
                    delegate.name
                ),
            }),
        }
    }
    root.spec.http = routes;
    root
}

/// The delegate's route within the root's, or nothing where their conditions contradict.
fn merged(root: &HttpRoute, delegate: &HttpRoute) -> Option<HttpRoute> {
    let mut result = delegate.clone();
    result.matches = if root.matches.is_empty() {
        delegate.matches.clone()
    } else if delegate.matches.is_empty() {
        root.matches.clone()
    } else {
        let pairs = root.matches.iter().flat_map(|outer| delegate.matches.iter().map(move |inner| (outer, inner)));
        pairs.filter_map(|(outer, inner)| both(outer, inner)).collect()
    };
    if result.matches.is_empty() && !(root.matches.is_empty() && delegate.matches.is_empty()) {
        return None;
    }
    result.name = match (root.name.as_str(), delegate.name.as_str()) {
        ("", name) | (name, "") => name.to_owned(),
        (outer, inner) => format!("{outer}-{inner}"),
    };
    result.redirect = result.redirect.or_else(|| root.redirect.clone());
    result.rewrite = result.rewrite.or_else(|| root.rewrite.clone());
    result.direct_response = result.direct_response.or_else(|| root.direct_response.clone());
    result.timeout = result.timeout.or(root.timeout);
    result.retries = result.retries.or_else(|| root.retries.clone());
    result.fault = result.fault.or_else(|| root.fault.clone());
    result.mirror = result.mirror.or_else(|| root.mirror.clone());
    result.mirror_percentage = result.mirror_percentage.or_else(|| root.mirror_percentage.clone());
    if result.mirrors.is_empty() {
        result.mirrors.clone_from(&root.mirrors);
    }
    result.cors_policy = result.cors_policy.or_else(|| root.cors_policy.clone());
    result.headers = result.headers.or_else(|| root.headers.clone());
    Some(result)
}

/// The intersection of two conditions, or nothing where both set the same thing in ways that do not nest.
fn both(outer: &HttpMatch, inner: &HttpMatch) -> Option<HttpMatch> {
    let one_of = |one: &Option<super::api::StringMatch>, other: &Option<super::api::StringMatch>| match (one, other) {
        (Some(one), Some(other)) if one != other => None,
        (Some(one), _) => Some(Some(one.clone())),
        (None, other) => Some(other.clone()),
    };
    let uri = match (&outer.uri, &inner.uri) {
        (Some(prefix), Some(within)) => {
            let base = prefix.prefix.as_deref()?;
            let path = within.exact.as_deref().or(within.prefix.as_deref())?;
            path.starts_with(base).then(|| within.clone())?.into()
        }
        (Some(uri), None) | (None, Some(uri)) => Some(uri.clone()),
        (None, None) => None,
    };
    let mut result = inner.clone();
    result.uri = uri;
    result.scheme = one_of(&outer.scheme, &inner.scheme)?;
    result.method = one_of(&outer.method, &inner.method)?;
    result.authority = one_of(&outer.authority, &inner.authority)?;
    for (into, from) in [
        (&mut result.headers, &outer.headers),
        (&mut result.without_headers, &outer.without_headers),
        (&mut result.query_params, &outer.query_params),
    ] {
        for (name, condition) in from {
            if into.insert(name.clone(), condition.clone()).is_some_and(|known| known != *condition) {
                return None;
            }
        }
    }
    for (name, value) in &outer.source_labels {
        if result.source_labels.insert(name.clone(), value.clone()).is_some_and(|known| known != *value) {
            return None;
        }
    }
    result.port = match (outer.port, inner.port) {
        (0, port) | (port, 0) => port,
        (one, other) if one == other => one,
        _ => return None,
    };
    if result.gateways.is_empty() {
        result.gateways.clone_from(&outer.gateways);
    }
    if result.source_namespace.is_empty() {
        result.source_namespace.clone_from(&outer.source_namespace);
    }
    result.ignore_uri_case |= outer.ignore_uri_case;
    Some(result)
}
