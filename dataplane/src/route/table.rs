//! A compiled RouteConfiguration: virtual hosts by domain, and what a match gives.

use std::borrow::Borrow;

use envoy_types::pb::envoy::config::route::v3 as proto;
use prost::{DecodeError, Message as _};
use torus_codec::headers::{HeaderMap, HeaderName, Known};

use torus_xds::wire;

use super::action::{Action, Inherited, WeightedEntry};
use super::domain::{DomainIndex, without_port};
use super::header_match::{HeaderMatcher, all_match, header_name};
use super::mutation::Mutations;
use super::parameters::{CookieMatcher, QueryMatcher, header_names, is_grpc, without_query};
use super::path_match::PathMatch;
use super::scratch::Scratch;
use crate::cluster::ClusterIndex;
use crate::config::parse::ParseContext;
use crate::config::parse::runtime::Fraction;
use crate::config::reject::Refused;
use crate::exchange::retry::RetryPolicy;

/// A compiled RouteConfiguration.
#[derive(Debug, Default)]
pub struct RouteTable {
    /// `name`
    pub name: Box<str>,
    /// Fields that requests from outside lose.
    pub internal_only_headers: Vec<HeaderName>,
    virtual_hosts: Vec<VirtualHost>,
    domains: DomainIndex,
    pub(super) request: Mutations,
    pub(super) response: Mutations,
    pub(super) most_specific_wins: bool,
    ignore_port: bool,
    ignore_path_parameters: bool,
    /// Field that holds the domain in place of `:authority`.
    host_header: Option<HeaderName>,
}

/// A compiled VirtualHost.
#[derive(Debug)]
pub struct VirtualHost {
    /// `name`
    pub name: Box<str>,
    /// Put `x-envoy-attempt-count` on requests.
    pub include_request_attempt_count: bool,
    /// Put `x-envoy-attempt-count` on replies.
    pub include_attempt_count_in_response: bool,
    /// Put `x-envoy-is-timeout-retry` on requests.
    pub include_is_timeout_retry: bool,
    require_tls: RequireTls,
    routes: Vec<Route>,
    virtual_clusters: Vec<VirtualCluster>,
    pub(super) request: Mutations,
    pub(super) response: Mutations,
}

/// Source: VirtualHost.TlsRequirementType.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RequireTls {
    No,
    External,
    All,
}

#[derive(Debug)]
struct VirtualCluster {
    name: Box<str>,
    headers: Vec<HeaderMatcher>,
}

/// A compiled Route.
#[derive(Debug)]
pub struct Route {
    /// `name`
    pub name: Box<str>,
    /// `stat_prefix`
    pub stat_prefix: Box<str>,
    /// What happens to the request.
    pub action: Action,
    pub(super) path: PathMatch,
    conditions: Option<Box<Conditions>>,
    pub(super) request: Mutations,
    pub(super) response: Mutations,
}

/// What a route asks for besides its path; most ask for nothing.
#[derive(Debug, Default)]
struct Conditions {
    fraction: Option<Fraction>,
    grpc: bool,
    headers: Vec<HeaderMatcher>,
    query: Vec<QueryMatcher>,
    cookies: Vec<CookieMatcher>,
    /// A certificate was presented or validated: never without TLS.
    client_certificate: bool,
}

/// What the table says of a request.
#[derive(Clone, Copy, Debug)]
pub enum Found<'a> {
    /// This route takes it.
    Route(Match<'a>),
    /// The virtual host wants https: 301 to [`super::rewrite::tls_location`], no route's changes to the reply.
    NeedsTls(&'a VirtualHost),
    /// No virtual host has its domain: 404.
    NoVirtualHost,
    /// No route of the virtual host matches: 404.
    NoRoute(&'a VirtualHost),
}

/// The route that takes a request.
#[derive(Clone, Copy, Debug)]
pub struct Match<'a> {
    /// The table.
    pub table: &'a RouteTable,
    /// The virtual host.
    pub virtual_host: &'a VirtualHost,
    /// The route.
    pub route: &'a Route,
}

/// The cluster that a request goes to, and what the choice itself changes.
#[derive(Clone, Copy, Debug)]
pub struct ClusterChoice<'a, 'h> {
    /// Which cluster.
    pub target: ClusterTarget<'h>,
    /// For [`Match::finalize_request`] and [`Match::finalize_response`].
    pub weighted: Weighted<'a>,
}

/// A cluster, by index or by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterTarget<'h> {
    /// Known at configuration time.
    Index(ClusterIndex),
    /// Named by a request field, or configured and not there (yet); empty where the field is missing. Where no cluster has the
    /// name, the reply is [`super::Forward::cluster_not_found_status`] with `NC`.
    Named(&'h [u8]),
}

/// The entry of `weighted_clusters` that was chosen, if any; it has header changes of its own.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weighted<'a>(pub(super) Option<&'a WeightedEntry>);

impl RouteTable {
    /// Compiles `config`; `context` stands at the message.
    pub fn parse(config: &proto::RouteConfiguration, context: &mut ParseContext) -> Result<Self, Refused> {
        Self::compile(config, config.virtual_hosts.iter().map(Ok), context)
    }

    /// As [`Self::parse`], from the wire format of one table, in parts where sources were merged.
    ///
    /// Virtual hosts are decoded one at a time: ten thousand of them as messages take many times the memory of the table.
    pub fn parse_wire(parts: &[&[u8]], context: &mut ParseContext) -> Result<Self, Refused> {
        let mut config = proto::RouteConfiguration::default();
        for part in parts {
            let rest = wire::without(part, &[VIRTUAL_HOSTS]);
            config.merge(rest.as_slice()).map_err(|error| context.reject("", error.to_string()))?;
        }
        let hosts = parts.iter().flat_map(|part| wire::length_values(part, VIRTUAL_HOSTS));
        Self::compile(&config, hosts.map(proto::VirtualHost::decode), context)
    }

    fn compile<H: Borrow<proto::VirtualHost>>(
        config: &proto::RouteConfiguration,
        hosts: impl Iterator<Item = Result<H, DecodeError>>,
        context: &mut ParseContext,
    ) -> Result<Self, Refused> {
        let checkpoint = context.problems.checkpoint();
        let validate_by_default = context.validate_clusters;
        if let Some(validate) = &config.validate_clusters {
            context.validate_clusters = validate.value;
        }
        let request =
            Mutations::parse("request", &config.request_headers_to_add, &config.request_headers_to_remove, context);
        let response =
            Mutations::parse("response", &config.response_headers_to_add, &config.response_headers_to_remove, context);
        let internal_only_headers = header_names("internal_only_headers", &config.internal_only_headers, context);
        let host_header = match config.vhost_header.as_str() {
            "" => Ok(None),
            name => header_name("vhost_header", name, context).map(Some),
        };
        let bytes_max = config.max_direct_response_body_size_bytes.map_or(DIRECT_RESPONSE_BYTES_MAX, |max| max.value);
        let bytes_max = usize::try_from(bytes_max).unwrap_or(usize::MAX);
        let mut domains = DomainIndex::default();
        let mut virtual_hosts: Vec<VirtualHost> = Vec::new();
        for (index, host) in hosts.enumerate() {
            context.within_item("virtual_hosts", index, |context| {
                let host = match &host {
                    Ok(host) => host.borrow(),
                    Err(error) => {
                        let _ = context.reject("", error.to_string());
                        return;
                    }
                };
                let position = u32::try_from(virtual_hosts.len()).unwrap_or(u32::MAX);
                if host.domains.is_empty() {
                    context.reject("domains", "must not be empty");
                }
                for (number, domain) in host.domains.iter().enumerate() {
                    add_domain(&mut domains, domain, position, &format!("domains[{number}]"), context);
                }
                if let Ok(host) = VirtualHost::parse(host, bytes_max, context) {
                    virtual_hosts.push(host);
                }
            });
        }
        virtual_hosts.shrink_to_fit();
        context.validate_clusters = validate_by_default;
        let mut names: Vec<&str> = virtual_hosts.iter().map(|host| &*host.name).collect();
        names.sort_unstable();
        if let Some([name, _]) = names.windows(2).find(|pair| pair.first() == pair.last()) {
            context.reject("virtual_hosts", format!("two virtual hosts are called `{name}`"));
        }
        context.problems.clean_since(checkpoint)?;
        Ok(Self {
            name: config.name.as_str().into(),
            internal_only_headers: internal_only_headers?,
            virtual_hosts,
            domains,
            request: request?,
            response: response?,
            most_specific_wins: config.most_specific_header_mutations_wins,
            ignore_port: config.ignore_port_in_host_matching,
            ignore_path_parameters: config.ignore_path_parameters_in_path_matching,
            host_header: host_header?,
        })
    }

    /// The route for `request`; `random` decides `runtime_fraction`. Reads `x-forwarded-proto` and `x-envoy-internal` as
    /// [`crate::downstream::edge`] left them.
    pub fn find(&self, request: &HeaderMap, random: u64, scratch: &mut Scratch) -> Found<'_> {
        let Some(virtual_host) = self.virtual_host(request, scratch) else { return Found::NoVirtualHost };
        // Envoy gives no route to a request whose scheme is unknown.
        let scheme = request.get_known(Known::XForwardedProto).unwrap_or_default();
        if scheme.is_empty() {
            return Found::NoRoute(virtual_host);
        }
        let tls_wanted = match virtual_host.require_tls {
            RequireTls::No => false,
            RequireTls::All => true,
            RequireTls::External => request.get_known(Known::XEnvoyInternal) != Some(b"true"),
        };
        if tls_wanted && scheme != b"https" {
            return Found::NeedsTls(virtual_host);
        }
        let full_path = request.get_known(Known::Path);
        let mut path = full_path.unwrap_or_default();
        if self.ignore_path_parameters {
            path = path.split(|byte| *byte == b';').next().unwrap_or(path);
        }
        let path = without_query(path);
        let is_connect = request.get_known(Known::Method) == Some(b"CONNECT");
        let found = virtual_host.routes.iter().find(|route| {
            let takes_path = match (route.path.takes_connect(), full_path) {
                (true, _) => is_connect,
                (false, None) => false,
                (false, Some(_)) => route.path.matches(path, &mut scratch.regex),
            };
            takes_path && route.conditions.as_ref().is_none_or(|wanted| wanted.hold(request, random, scratch))
        });
        match found {
            Some(route) => Found::Route(Match { table: self, virtual_host, route }),
            None => Found::NoRoute(virtual_host),
        }
    }

    /// The virtual hosts, in configuration order.
    pub fn virtual_hosts(&self) -> &[VirtualHost] {
        &self.virtual_hosts
    }

    fn virtual_host(&self, request: &HeaderMap, scratch: &mut Scratch) -> Option<&VirtualHost> {
        let index = match self.domains.is_trivial() {
            Some(index) => index?,
            None => {
                let host = match &self.host_header {
                    None => request.get_known(Known::Authority)?,
                    Some(name) => request.get(name)?,
                };
                let host = if self.ignore_port { without_port(host) } else { host };
                if host.iter().any(u8::is_ascii_uppercase) {
                    scratch.value.clear();
                    scratch.value.extend(host.iter().map(u8::to_ascii_lowercase));
                    self.domains.find(&scratch.value)?
                } else {
                    self.domains.find(host)?
                }
            }
        };
        self.virtual_hosts.get(usize::try_from(index).ok()?)
    }
}

fn add_domain(domains: &mut DomainIndex, domain: &str, host: u32, field: &str, context: &mut ParseContext) {
    if domain.is_empty() {
        context.reject(field, "must not be empty");
    } else if domain.bytes().any(|byte| matches!(byte, b'\r' | b'\n' | 0)) {
        context.reject(field, "must not contain line breaks or NUL");
    } else if domains.add(domain, host).is_err() {
        context.reject(field, format!("another virtual host has the domain `{domain}` already"));
    }
}

impl VirtualHost {
    fn parse(
        config: &proto::VirtualHost,
        direct_response_bytes_max: usize,
        context: &mut ParseContext,
    ) -> Result<Self, Refused> {
        use proto::virtual_host::TlsRequirementType;
        let name = context.non_empty("name", &config.name);
        if config.matcher.is_some() {
            return Err(context.reject("matcher", "generic matching of routes is not there yet in this version"));
        }
        let retry = match &config.retry_policy {
            Some(policy) => context.within("retry_policy", |context| RetryPolicy::parse(policy, context)),
            None => Ok(RetryPolicy::default()),
        };
        let retry = retry?;
        let request =
            Mutations::parse("request", &config.request_headers_to_add, &config.request_headers_to_remove, context);
        let response =
            Mutations::parse("response", &config.response_headers_to_add, &config.response_headers_to_remove, context);
        let routes = context.each("routes", &config.routes, |route, context| {
            Route::parse(route, &retry, direct_response_bytes_max, context)
        });
        let virtual_clusters = context.each("virtual_clusters", &config.virtual_clusters, |cluster, context| {
            let name = context.non_empty("name", &cluster.name)?.into();
            if cluster.headers.is_empty() {
                return Err(context.reject("headers", "must not be empty"));
            }
            Ok(VirtualCluster { name, headers: context.each("headers", &cluster.headers, HeaderMatcher::parse)? })
        });
        Ok(Self {
            name: name?.into(),
            include_request_attempt_count: config.include_request_attempt_count,
            include_attempt_count_in_response: config.include_attempt_count_in_response,
            include_is_timeout_retry: config.include_is_timeout_retry_header,
            require_tls: match config.require_tls() {
                TlsRequirementType::None => RequireTls::No,
                TlsRequirementType::ExternalOnly => RequireTls::External,
                TlsRequirementType::All => RequireTls::All,
            },
            routes: routes?,
            virtual_clusters: virtual_clusters?,
            request: request?,
            response: response?,
        })
    }

    /// The routes, in configuration order.
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// Names of the virtual clusters, in configuration order, without the catch-all `other`.
    pub fn virtual_cluster_names(&self) -> impl Iterator<Item = &str> {
        self.virtual_clusters.iter().map(|cluster| &*cluster.name)
    }

    /// The first virtual cluster that matches `request`; where there are some and none matches, the request counts as `other`.
    pub fn virtual_cluster(&self, request: &HeaderMap, scratch: &mut Scratch) -> Option<&str> {
        let found = self.virtual_clusters.iter().find(|cluster| all_match(&cluster.headers, request, scratch));
        found.map(|cluster| &*cluster.name)
    }
}

impl Route {
    fn parse(
        config: &proto::Route,
        retry: &RetryPolicy,
        direct_response_bytes_max: usize,
        context: &mut ParseContext,
    ) -> Result<Self, Refused> {
        let wanted = context.required("match", &config.r#match)?;
        let path = context.within("match", |context| PathMatch::parse(wanted, context));
        let conditions = context.within("match", |context| Conditions::parse(wanted, context));
        let request =
            Mutations::parse("request", &config.request_headers_to_add, &config.request_headers_to_remove, context);
        let response =
            Mutations::parse("response", &config.response_headers_to_add, &config.response_headers_to_remove, context);
        let path = path?;
        let inherited = Inherited { retry, direct_response_bytes_max, path: &path };
        let action = Action::parse(config, &inherited, context)?;
        Ok(Self {
            name: config.name.as_str().into(),
            stat_prefix: config.stat_prefix.as_str().into(),
            action,
            path,
            conditions: conditions?,
            request: request?,
            response: response?,
        })
    }
}

impl Conditions {
    fn parse(config: &proto::RouteMatch, context: &mut ParseContext) -> Result<Option<Box<Self>>, Refused> {
        let fraction = match &config.runtime_fraction {
            None => None,
            Some(runtime) => context.within("runtime_fraction", |context| {
                let default = Fraction::from(context.required("default_value", &runtime.default_value)?);
                Ok(Some(context.runtime.fraction(&runtime.runtime_key, default)))
            })?,
        };
        for (field, count) in
            [("dynamic_metadata", config.dynamic_metadata.len()), ("filter_state", config.filter_state.len())]
        {
            if count > 0 {
                return Err(context.reject(field, "needs filters that are not there yet in this version"));
            }
        }
        let tls = config.tls_context.unwrap_or_default();
        let headers = context.each("headers", &config.headers, HeaderMatcher::parse);
        let query = context.each("query_parameters", &config.query_parameters, QueryMatcher::parse);
        let cookies = context.each("cookies", &config.cookies, CookieMatcher::parse);
        let conditions = Self {
            fraction,
            grpc: config.grpc.is_some(),
            headers: headers?,
            query: query?,
            cookies: cookies?,
            client_certificate: tls.presented.is_some_and(|is| is.value) || tls.validated.is_some_and(|is| is.value),
        };
        let asks = conditions.fraction.is_some()
            || conditions.grpc
            || conditions.client_certificate
            || !conditions.headers.is_empty()
            || !conditions.query.is_empty()
            || !conditions.cookies.is_empty();
        Ok(asks.then(|| Box::new(conditions)))
    }

    fn hold(&self, request: &HeaderMap, random: u64, scratch: &mut Scratch) -> bool {
        if self.client_certificate
            || self.fraction.is_some_and(|fraction| !fraction.includes(random))
            || (self.grpc && !is_grpc(request))
            || !all_match(&self.headers, request, scratch)
        {
            return false;
        }
        let path = request.get_known(Known::Path).unwrap_or_default();
        self.query.iter().all(|matcher| matcher.matches(path, &mut scratch.regex))
            && self.cookies.iter().all(|matcher| matcher.matches(request, &mut scratch.regex))
    }
}

/// Field number of RouteConfiguration.virtual_hosts.
const VIRTUAL_HOSTS: u32 = 2;
/// Source: RouteConfiguration.max_direct_response_body_size_bytes.
const DIRECT_RESPONSE_BYTES_MAX: u32 = 4_096;
