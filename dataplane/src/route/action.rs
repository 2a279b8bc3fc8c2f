//! What a route does with its requests.

use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::route::v3 as proto;
use envoy_types::pb::envoy::extensions::path::rewrite::uri_template::v3::UriTemplateRewriteConfig;
use envoy_types::pb::envoy::r#type::matcher::v3::RegexMatchAndSubstitute;
use torus_codec::headers::HeaderName;

use super::hash::HashPolicy;
use super::header_match::header_name;
use super::mutation::Mutations;
use super::path_match::PathMatch;
use super::pattern::Substitution;
use crate::cluster::ClusterIndex;
use crate::config::parse::ParseContext;
use crate::config::reject::Refused;
use crate::exchange::retry::RetryPolicy;
use crate::telemetry::format::{Format, data_source};

/// What happens to a request.
#[derive(Debug)]
pub enum Action {
    /// `route`
    Forward(Box<Forward>),
    /// `redirect`
    Redirect(Box<Redirect>),
    /// `direct_response`
    DirectResponse(Box<DirectResponse>),
    /// `non_forwarding_action`: 503 with `NC`.
    NonForwarding,
}

/// A compiled RouteAction.
#[derive(Debug)]
pub struct Forward {
    /// Whole request to whole reply; `None` is off. 15 s by default; off by default where `max_stream_duration` is set.
    pub timeout: Option<Duration>,
    /// Overrides the connection manager's stream idle timeout; `Some(None)` turns it off.
    pub idle_timeout: Option<Option<Duration>>,
    /// Overrides the connection manager's stream flush timeout; `Some(None)` turns it off.
    pub flush_timeout: Option<Option<Duration>>,
    /// Overrides the connection manager's maximum stream duration; `Some(None)` turns it off.
    pub max_stream_duration: Option<Option<Duration>>,
    /// How `grpc-timeout` of gRPC requests counts.
    pub(super) grpc_timeout: GrpcTimeout,
    /// The route's policy, or else its virtual host's.
    pub retry: RetryPolicy,
    /// Which circuit breakers.
    pub priority: Priority,
    /// Status where the cluster is not there: 503 by default.
    pub cluster_not_found_status: u16,
    /// `auto_host_rewrite`: call [`super::Match::rewrite_host_for_endpoint`] when the endpoint is chosen.
    pub auto_host_rewrite: bool,
    /// `upgrade_configs`: upgrade token in lower case, and whether it is allowed here; overrides the connection manager's list.
    pub upgrades: Vec<(Box<str>, bool)>,
    /// `connect_config`: the tunnel of a CONNECT ends here, and the upstream gets its bytes alone.
    pub terminates_connect: bool,
    /// Whether a hash policy is there at all.
    pub(super) hash: HashPolicy,
    pub(super) cluster: ClusterSpecifier,
    pub(super) path_rewrite: PathRewrite,
    pub(super) host_rewrite: HostRewrite,
    pub(super) append_forwarded_host: bool,
}

/// How `grpc-timeout` counts. Source: RouteAction.max_grpc_timeout and RouteAction.MaxStreamDuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct GrpcTimeout {
    /// Deprecated form: upper bound, 0 is none.
    pub(super) max: Option<Duration>,
    /// Deprecated form: taken off.
    pub(super) offset: Duration,
    /// `grpc_timeout_header_max`, 0 is none.
    pub(super) stream_max: Option<Duration>,
    /// `grpc_timeout_header_offset`
    pub(super) stream_offset: Duration,
}

/// Which set of circuit breakers a request uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Priority {
    #[default]
    Default,
    High,
}

impl From<Priority> for crate::cluster::Priority {
    fn from(priority: Priority) -> Self {
        match priority {
            Priority::Default => Self::Default,
            Priority::High => Self::High,
        }
    }
}

/// Where requests go.
#[derive(Debug)]
pub(super) enum ClusterSpecifier {
    Index(ClusterIndex),
    /// Configured, and not there.
    Named(Box<str>),
    Header(HeaderName),
    Weighted(Box<WeightedClusters>),
}

/// `weighted_clusters`, compiled.
#[derive(Debug)]
pub(super) struct WeightedClusters {
    pub(super) entries: Box<[WeightedEntry]>,
    pub(super) weight_total: u64,
    /// Field whose number takes the place of the random one.
    pub(super) random_header: Option<HeaderName>,
    pub(super) use_hash_policy: bool,
}

/// One entry of `weighted_clusters`.
#[derive(Debug)]
pub struct WeightedEntry {
    pub(super) cluster: ClusterSpecifier,
    pub(super) weight: u64,
    pub(super) request: Mutations,
    pub(super) response: Mutations,
    pub(super) host: Option<Box<str>>,
}

/// How the path changes.
#[derive(Debug)]
pub(super) enum PathRewrite {
    None,
    /// What matched becomes this.
    Prefix(Box<str>),
    /// Applied to the path without its query.
    Substitution(Box<Substitution>),
    /// Takes the place of the path without its query, unless it comes out empty.
    Format(Box<Format>),
}

/// How `:authority` changes.
#[derive(Debug)]
pub(super) enum HostRewrite {
    None,
    Literal(Box<str>),
    Header(HeaderName),
    PathRegex(Box<Substitution>),
    Format(Box<Format>),
}

/// A compiled RedirectAction.
#[derive(Debug)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
    pub(super) scheme: Option<Box<str>>,
    pub(super) host: Option<Box<str>>,
    /// With its colon.
    pub(super) port: Option<Box<str>>,
    pub(super) path: Option<Box<str>>,
    /// The same as `path`, made for each request.
    pub(super) path_format: Option<Format>,
    pub(super) rewrite: PathRewrite,
    pub(super) strip_query: bool,
}

/// A compiled DirectResponseAction.
#[derive(Debug)]
pub struct DirectResponse {
    /// 200 to 599.
    pub status: u16,
    pub(super) body: Box<[u8]>,
    pub(super) format: Option<Format>,
}

/// What actions inherit from their table and virtual host.
pub(super) struct Inherited<'a> {
    pub(super) retry: &'a RetryPolicy,
    pub(super) direct_response_bytes_max: usize,
    pub(super) path: &'a PathMatch,
}

impl Action {
    /// Compiles the action of `route`; `context` stands at the route.
    pub(super) fn parse(
        route: &proto::Route,
        inherited: &Inherited<'_>,
        context: &mut ParseContext,
    ) -> Result<Self, Refused> {
        use proto::route::Action as Kind;
        match &route.action {
            Some(Kind::Route(action)) => {
                let forward = context.within("route", |context| Forward::parse(action, inherited, context))?;
                Ok(Self::Forward(Box::new(forward)))
            }
            Some(Kind::Redirect(action)) => {
                let redirect = context.within("redirect", |context| Redirect::parse(action, context))?;
                Ok(Self::Redirect(Box::new(redirect)))
            }
            Some(Kind::DirectResponse(action)) => {
                let direct =
                    context.within("direct_response", |context| DirectResponse::parse(action, inherited, context))?;
                Ok(Self::DirectResponse(Box::new(direct)))
            }
            Some(Kind::NonForwardingAction(_)) => Ok(Self::NonForwarding),
            Some(Kind::FilterAction(_)) => {
                Err(context.reject("filter_action", "filter actions are not there yet in this version"))
            }
            None => Err(context.reject("", "needs one of route, redirect, direct_response or non_forwarding_action")),
        }
    }
}

impl Forward {
    #[allow(deprecated, reason = "istiod still sets max_grpc_timeout")]
    fn parse(
        action: &proto::RouteAction,
        inherited: &Inherited<'_>,
        context: &mut ParseContext,
    ) -> Result<Self, Refused> {
        let checkpoint = context.problems.checkpoint();
        let cluster = ClusterSpecifier::parse(action, context);
        let path_rewrite = forward_path_rewrite(action, inherited.path, context);
        let host_rewrite = HostRewrite::parse(action, context);
        let retry = match &action.retry_policy {
            Some(policy) => context.within("retry_policy", |context| RetryPolicy::parse(policy, context)),
            None => Ok(inherited.retry.clone()),
        };
        let hash = HashPolicy::parse(&action.hash_policy, context);
        let upgrades = upgrades(&action.upgrade_configs, context);
        let optional = |field: &str, value: &Option<_>, context: &mut ParseContext| {
            Ok::<_, Refused>(context.duration(field, value)?.map(|value| (!value.is_zero()).then_some(value)))
        };
        let default = if action.max_stream_duration.is_some() { None } else { Some(TIMEOUT) };
        let timeout = context.timeout("timeout", &action.timeout, default);
        let idle_timeout = optional("idle_timeout", &action.idle_timeout, context);
        let flush_timeout = optional("flush_timeout", &action.flush_timeout, context);
        let mut grpc_timeout = GrpcTimeout {
            max: context.duration("max_grpc_timeout", &action.max_grpc_timeout)?,
            offset: context.duration("grpc_timeout_offset", &action.grpc_timeout_offset)?.unwrap_or_default(),
            ..GrpcTimeout::default()
        };
        let max_stream_duration = match &action.max_stream_duration {
            None => Ok(None),
            Some(limits) => context.within("max_stream_duration", |context| {
                grpc_timeout.max = None;
                grpc_timeout.stream_max =
                    context.duration("grpc_timeout_header_max", &limits.grpc_timeout_header_max)?;
                let offset = context.duration("grpc_timeout_header_offset", &limits.grpc_timeout_header_offset)?;
                grpc_timeout.stream_offset = offset.unwrap_or_default();
                optional("max_stream_duration", &limits.max_stream_duration, context)
            }),
        };
        context.problems.clean_since(checkpoint)?;
        use proto::route_action::{ClusterNotFoundResponseCode as NotFound, HostRewriteSpecifier};
        Ok(Self {
            // With max_stream_duration Envoy uses no route timeout at all.
            timeout: if action.max_stream_duration.is_some() { None } else { timeout? },
            idle_timeout: idle_timeout?,
            flush_timeout: flush_timeout?,
            max_stream_duration: max_stream_duration?,
            grpc_timeout,
            retry: retry?,
            priority: match action.priority() {
                core_priority::High => Priority::High,
                core_priority::Default => Priority::Default,
            },
            cluster_not_found_status: match action.cluster_not_found_response_code() {
                NotFound::ServiceUnavailable => 503,
                NotFound::NotFound => 404,
                NotFound::InternalServerError => 500,
            },
            auto_host_rewrite: matches!(
                &action.host_rewrite_specifier,
                Some(HostRewriteSpecifier::AutoHostRewrite(auto)) if auto.value
            ),
            upgrades: upgrades?,
            terminates_connect: action.upgrade_configs.iter().any(|config| config.connect_config.is_some()),
            hash: hash?,
            cluster: cluster?,
            path_rewrite: path_rewrite?,
            host_rewrite: host_rewrite?,
            append_forwarded_host: action.append_x_forwarded_host,
        })
    }
}

use core::RoutingPriority as core_priority;

impl ClusterSpecifier {
    fn parse(action: &proto::RouteAction, context: &mut ParseContext) -> Result<Self, Refused> {
        use proto::route_action::ClusterSpecifier as Kind;
        match &action.cluster_specifier {
            Some(Kind::Cluster(name)) => Self::named("cluster", name, context),
            Some(Kind::ClusterHeader(name)) => Ok(Self::Header(header_name("cluster_header", name, context)?)),
            Some(Kind::WeightedClusters(weighted)) => context.within("weighted_clusters", |context| {
                Ok(Self::Weighted(Box::new(WeightedClusters::parse(weighted, context)?)))
            }),
            Some(Kind::ClusterSpecifierPlugin(_) | Kind::InlineClusterSpecifierPlugin(_)) => {
                Err(context.reject("", "cluster specifier plugins are not there yet in this version"))
            }
            None => Err(context.reject("", "needs one of cluster, cluster_header or weighted_clusters")),
        }
    }

    fn named(field: &str, name: &str, context: &mut ParseContext) -> Result<Self, Refused> {
        context.non_empty(field, name)?;
        Ok(context.cluster(field, name)?.map_or_else(|| Self::Named(name.into()), Self::Index))
    }
}

impl WeightedClusters {
    fn parse(config: &proto::WeightedCluster, context: &mut ParseContext) -> Result<Self, Refused> {
        use proto::weighted_cluster::RandomValueSpecifier;
        let prefix = &config.runtime_key_prefix;
        let entries = context
            .each("clusters", &config.clusters, |entry, context| WeightedEntry::parse(entry, prefix, context))?;
        if entries.is_empty() {
            return Err(context.reject("clusters", "must not be empty"));
        }
        let weight_total: u64 = entries.iter().map(|entry| entry.weight).sum();
        if weight_total == 0 {
            return Err(context.reject("clusters", "the weights must not all be 0"));
        }
        if weight_total > u64::from(u32::MAX) {
            return Err(context.reject("clusters", format!("the weights add up to {weight_total}, above 4294967295")));
        }
        let (random_header, use_hash_policy) = match &config.random_value_specifier {
            None => (None, false),
            Some(RandomValueSpecifier::HeaderName(name)) => (Some(header_name("header_name", name, context)?), false),
            Some(RandomValueSpecifier::UseHashPolicy(wished)) => (None, wished.value),
        };
        Ok(Self { entries: entries.into(), weight_total, random_header, use_hash_policy })
    }
}

impl WeightedEntry {
    fn parse(
        config: &proto::weighted_cluster::ClusterWeight,
        runtime_key_prefix: &str,
        context: &mut ParseContext,
    ) -> Result<Self, Refused> {
        let cluster = match (config.name.as_str(), config.cluster_header.as_str()) {
            ("", "") => return Err(context.reject("name", "needs one of name or cluster_header")),
            (name, "") => ClusterSpecifier::named("name", name, context),
            ("", header) => header_name("cluster_header", header, context).map(ClusterSpecifier::Header),
            _ => return Err(context.reject("cluster_header", "both name and cluster_header are set")),
        };
        let mut weight = u64::from(config.weight.map_or(0, |weight| weight.value));
        if !runtime_key_prefix.is_empty() {
            weight = context.runtime.integer(&format!("{runtime_key_prefix}.{}", config.name), weight);
        }
        let request =
            Mutations::parse("request", &config.request_headers_to_add, &config.request_headers_to_remove, context);
        let response =
            Mutations::parse("response", &config.response_headers_to_add, &config.response_headers_to_remove, context);
        use proto::weighted_cluster::cluster_weight::HostRewriteSpecifier;
        let host = match &config.host_rewrite_specifier {
            Some(HostRewriteSpecifier::HostRewriteLiteral(host)) if !host.is_empty() => Some(host.as_str().into()),
            _ => None,
        };
        Ok(Self { cluster: cluster?, weight, request: request?, response: response?, host })
    }
}

fn forward_path_rewrite(
    action: &proto::RouteAction,
    path: &PathMatch,
    context: &mut ParseContext,
) -> Result<PathRewrite, Refused> {
    let count = [
        !action.prefix_rewrite.is_empty(),
        action.regex_rewrite.is_some(),
        action.path_rewrite_policy.is_some(),
        !action.path_rewrite.is_empty(),
    ];
    if count.into_iter().filter(|set| *set).count() > 1 {
        let reason = "only one of prefix_rewrite, regex_rewrite, path_rewrite_policy or path_rewrite may be set";
        return Err(context.reject("", reason));
    }
    if !action.prefix_rewrite.is_empty() {
        if path.template().is_some() {
            return Err(context.reject("prefix_rewrite", "does not work with path_match_policy"));
        }
        return Ok(PathRewrite::Prefix(header_value("prefix_rewrite", &action.prefix_rewrite, context)?.into()));
    }
    if let Some(rewrite) = &action.regex_rewrite {
        return Ok(PathRewrite::Substitution(Box::new(substitution("regex_rewrite", rewrite, context)?)));
    }
    if !action.path_rewrite.is_empty() {
        let format = Format::parse_text("path_rewrite", &action.path_rewrite, true, context)?;
        return Ok(PathRewrite::Format(Box::new(format)));
    }
    let Some(policy) = &action.path_rewrite_policy else { return Ok(PathRewrite::None) };
    context.within("path_rewrite_policy", |context| {
        let packed = context.required("typed_config", &policy.typed_config)?;
        let config: UriTemplateRewriteConfig = context.unpack("typed_config", packed)?;
        let Some(template) = path.template() else {
            return Err(context.reject("typed_config", "needs path_match_policy with a path_template"));
        };
        let field = "typed_config.path_template_rewrite";
        let rewrite = template.rewrite(&config.path_template_rewrite);
        let rewrite = rewrite.map_err(|reason| context.reject(field, reason))?;
        Ok(PathRewrite::Substitution(Box::new(rewrite)))
    })
}

impl HostRewrite {
    fn parse(action: &proto::RouteAction, context: &mut ParseContext) -> Result<Self, Refused> {
        use proto::route_action::HostRewriteSpecifier as Kind;
        Ok(match &action.host_rewrite_specifier {
            None | Some(Kind::AutoHostRewrite(_)) => Self::None,
            Some(Kind::HostRewriteLiteral(host)) if host.is_empty() => Self::None,
            Some(Kind::HostRewriteLiteral(host)) => {
                Self::Literal(header_value("host_rewrite_literal", host, context)?.into())
            }
            Some(Kind::HostRewriteHeader(name)) if name.is_empty() => Self::None,
            Some(Kind::HostRewriteHeader(name)) => Self::Header(header_name("host_rewrite_header", name, context)?),
            Some(Kind::HostRewritePathRegex(rewrite)) => {
                Self::PathRegex(Box::new(substitution("host_rewrite_path_regex", rewrite, context)?))
            }
            Some(Kind::HostRewrite(text)) if text.is_empty() => Self::None,
            Some(Kind::HostRewrite(text)) => {
                Self::Format(Box::new(Format::parse_text("host_rewrite", text, false, context)?))
            }
        })
    }
}

/// Compiles the pattern and replacement in `field`.
pub(super) fn substitution(
    field: &str,
    config: &RegexMatchAndSubstitute,
    context: &mut ParseContext,
) -> Result<Substitution, Refused> {
    context.within(field, |context| {
        let pattern = context.required("pattern", &config.pattern)?;
        context.within("pattern", |context| context.non_empty("regex", &pattern.regex).map(|_| ()))?;
        let replacement = header_value("substitution", &config.substitution, context)?;
        let compiled = Substitution::new(&pattern.regex, replacement);
        let compiled = compiled.map_err(|error| context.reject("", error.to_string()))?;
        if compiled.group_max() > compiled.group_count() {
            let reason =
                format!("uses group {} of a pattern that has {}", compiled.group_max(), compiled.group_count());
            return Err(context.reject("substitution", reason));
        }
        Ok(compiled)
    })
}

/// The text in `field`, which becomes (part of) a header value.
fn header_value<'a>(field: &str, text: &'a str, context: &mut ParseContext) -> Result<&'a str, Refused> {
    if text.bytes().any(|byte| matches!(byte, b'\r' | b'\n' | 0)) {
        return Err(context.reject(field, "must not contain line breaks or NUL"));
    }
    Ok(text)
}

fn upgrades(
    configs: &[proto::route_action::UpgradeConfig],
    context: &mut ParseContext,
) -> Result<Vec<(Box<str>, bool)>, Refused> {
    let mut seen: Vec<(Box<str>, bool)> = Vec::new();
    for (index, config) in configs.iter().enumerate() {
        context.within_item("upgrade_configs", index, |context| {
            let token = context.non_empty("upgrade_type", &config.upgrade_type)?.to_ascii_lowercase();
            if seen.iter().any(|(other, _)| **other == *token) {
                return Err(context.reject("upgrade_type", format!("`{token}` occurs twice")));
            }
            if config.connect_config.is_some() && token != "connect" {
                return Err(context.reject("connect_config", "is for the upgrade type CONNECT alone"));
            }
            seen.push((token.into(), config.enabled.is_none_or(|enabled| enabled.value)));
            Ok(())
        })?;
    }
    Ok(seen)
}

impl Redirect {
    fn parse(config: &proto::RedirectAction, context: &mut ParseContext) -> Result<Self, Refused> {
        use proto::redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier};
        let scheme = match &config.scheme_rewrite_specifier {
            Some(SchemeRewriteSpecifier::HttpsRedirect(true)) => Some("https".into()),
            Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) if !scheme.is_empty() => {
                Some(header_value("scheme_redirect", scheme, context)?.into())
            }
            _ => None,
        };
        let mut path = None;
        let mut path_format = None;
        let mut rewrite = PathRewrite::None;
        match &config.path_rewrite_specifier {
            Some(PathRewriteSpecifier::PathRedirect(text)) if !text.is_empty() => {
                path = Some(header_value("path_redirect", text, context)?.into());
            }
            Some(PathRewriteSpecifier::PrefixRewrite(text)) if !text.is_empty() => {
                rewrite = PathRewrite::Prefix(header_value("prefix_rewrite", text, context)?.into());
            }
            Some(PathRewriteSpecifier::RegexRewrite(regex)) => {
                rewrite = PathRewrite::Substitution(Box::new(substitution("regex_rewrite", regex, context)?));
            }
            Some(PathRewriteSpecifier::PathRewrite(text)) if !text.is_empty() => {
                path_format = Some(Format::parse_text("path_rewrite", text, true, context)?);
            }
            _ => {}
        }
        if config.port_redirect > u32::from(u16::MAX) {
            return Err(context.reject("port_redirect", format!("{} is above 65535", config.port_redirect)));
        }
        let host = header_value("host_redirect", &config.host_redirect, context)?;
        Ok(Self {
            status: match config.response_code() {
                RedirectResponseCode::MovedPermanently => 301,
                RedirectResponseCode::Found => 302,
                RedirectResponseCode::SeeOther => 303,
                RedirectResponseCode::TemporaryRedirect => 307,
                RedirectResponseCode::PermanentRedirect => 308,
            },
            scheme,
            host: (!host.is_empty()).then(|| host.into()),
            port: (config.port_redirect != 0).then(|| format!(":{}", config.port_redirect).into()),
            path,
            path_format,
            rewrite,
            strip_query: config.strip_query,
        })
    }
}

impl DirectResponse {
    fn parse(
        config: &proto::DirectResponseAction,
        inherited: &Inherited<'_>,
        context: &mut ParseContext,
    ) -> Result<Self, Refused> {
        let status = u16::try_from(config.status).ok().filter(|status| (200..600).contains(status));
        let status = status.ok_or_else(|| context.reject("status", "must be from 200 to 599"));
        let body = match &config.body {
            None => Vec::new(),
            Some(source) => context.within("body", |context| {
                if source.watched_directory.is_some() {
                    return Err(context.reject("watched_directory", "is not there yet in this version"));
                }
                let body = data_source(source, context)?;
                let bytes_max = inherited.direct_response_bytes_max;
                if body.len() > bytes_max {
                    let reason =
                        format!("has {} bytes; max_direct_response_body_size_bytes is {bytes_max}", body.len());
                    return Err(context.reject("", reason));
                }
                Ok(body)
            })?,
        };
        let format = match &config.body_format {
            None => None,
            Some(format) => Some(context.within("body_format", |context| Format::parse(format, context))?),
        };
        Ok(Self { status: status?, body: body.into(), format })
    }
}

/// Source: RouteAction.timeout.
const TIMEOUT: Duration = Duration::from_secs(15);
