//! The Gateway API as Rust types: the fields that conversion reads, with their JSON names.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::model::api::{LabelSelector, Span};

macro_rules! specs {
    ($($(#[$doc:meta])* $name:ident { $($(#[$attribute:meta])* $field:ident: $kind:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Default, PartialEq, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        pub(super) struct $name { $($(#[$attribute])* pub(super) $field: $kind,)* }
    )*};
}

specs! {
    GatewayClass { controller_name: String, }
    Gateway {
        gateway_class_name: String,
        listeners: Vec<Listener>,
        addresses: Vec<Address>,
        infrastructure: Infrastructure,
        tls: GatewayTls,
    }
    Address {
        #[serde(rename = "type")]
        kind: Option<String>,
        value: String,
    }
    Infrastructure { parameters_ref: Option<Reference>, }
    GatewayTls { frontend: Frontend, }
    Frontend { default: FrontendTls, per_port: Vec<FrontendPort>, }
    FrontendPort { port: u32, tls: FrontendTls, }
    FrontendTls { validation: Option<FrontendValidation>, }
    FrontendValidation { ca_certificate_refs: Vec<Reference>, mode: String, }
    Listener {
        name: String,
        hostname: String,
        port: u32,
        protocol: String,
        tls: Option<ListenerTls>,
        allowed_routes: AllowedRoutes,
    }
    ListenerTls { mode: String, certificate_refs: Vec<Reference>, options: BTreeMap<String, String>, }
    AllowedRoutes { namespaces: Namespaces, kinds: Vec<Kind>, }
    Namespaces { from: String, selector: Selector, }
    Selector {
        #[serde(flatten)]
        labels: LabelSelector,
        match_expressions: Vec<Expression>,
    }
    Expression { key: String, operator: String, values: Vec<String>, }
    Kind { group: Option<String>, kind: String, }

    /// HTTPRoute, GRPCRoute, TLSRoute and TCPRoute: each has some of the fields.
    Route { parent_refs: Vec<Parent>, hostnames: Vec<String>, rules: Vec<Rule>, }
    Parent {
        group: Option<String>,
        kind: Option<String>,
        namespace: Option<String>,
        name: String,
        section_name: Option<String>,
        port: Option<u32>,
    }
    /// What is pointed at: a backend, a certificate.
    Reference {
        group: Option<String>,
        kind: Option<String>,
        namespace: Option<String>,
        name: String,
        port: Option<u32>,
        weight: Option<u32>,
        filters: Vec<Filter>,
    }
    Rule {
        name: String,
        matches: Vec<Match>,
        filters: Vec<Filter>,
        backend_refs: Vec<Reference>,
        timeouts: Timeouts,
        retry: Option<Retry>,
    }
    Timeouts { request: Option<Span>, backend_request: Option<Span>, }
    Retry { attempts: Option<u32>, backoff: Option<Span>, codes: Vec<u32>, }
    Match { path: Option<Condition>, headers: Vec<Condition>, query_params: Vec<Condition>, method: Option<Method>, }
    Condition {
        #[serde(rename = "type")]
        kind: String,
        name: String,
        value: String,
    }
    Filter {
        #[serde(rename = "type")]
        kind: String,
        request_header_modifier: Modifier,
        response_header_modifier: Modifier,
        request_redirect: Redirect,
        url_rewrite: Rewrite,
        request_mirror: Mirrored,
        cors: Cors,
    }
    Modifier { set: Vec<Condition>, add: Vec<Condition>, remove: Vec<String>, }
    Redirect { scheme: String, hostname: String, path: Path, port: u32, status_code: u32, }
    Rewrite { hostname: String, path: Path, }
    Path { replace_full_path: Option<String>, replace_prefix_match: Option<String>, }
    Mirrored { backend_ref: Reference, percent: Option<u32>, fraction: Option<Fraction>, }
    Fraction { numerator: u32, denominator: Option<u32>, }
    Cors {
        allow_origins: Vec<String>,
        allow_methods: Vec<String>,
        allow_headers: Vec<String>,
        expose_headers: Vec<String>,
        allow_credentials: Option<bool>,
        max_age: Option<u64>,
    }

    BackendTlsPolicy { target_refs: Vec<Target>, validation: Validation, }
    Target { group: String, kind: String, name: String, section_name: Option<String>, }
    Validation {
        ca_certificate_refs: Vec<Reference>,
        #[serde(rename = "wellKnownCACertificates")]
        well_known: Option<String>,
        hostname: String,
        subject_alt_names: Vec<SubjectAltName>,
    }
    SubjectAltName { hostname: String, uri: String, }
    ReferenceGrant { from: Vec<From>, to: Vec<To>, }
    From { group: String, kind: String, namespace: String, }
    To { group: String, kind: String, name: Option<String>, }
}

/// An HTTP method by name, or a gRPC method with its service.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub(super) enum Method {
    Http(String),
    Grpc(GrpcMethod),
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct GrpcMethod {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) service: Option<String>,
    pub(super) method: Option<String>,
}

impl Selector {
    /// True if a namespace with these labels is meant.
    pub(super) fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let exact = self.labels.match_labels.iter().all(|(name, value)| labels.get(name) == Some(value));
        exact
            && self.match_expressions.iter().all(|expression| {
                let found = labels.get(&expression.key);
                match expression.operator.as_str() {
                    "In" => found.is_some_and(|value| expression.values.contains(value)),
                    "NotIn" => found.is_none_or(|value| !expression.values.contains(value)),
                    "Exists" => found.is_some(),
                    "DoesNotExist" => found.is_none(),
                    _ => false,
                }
            })
    }
}
