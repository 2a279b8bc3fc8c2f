//! When and whom a cluster's names are asked, from the older fields of Cluster and from DnsCluster.

use std::net::SocketAddr;
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3 as proto;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::clusters::common::dns::v3::DnsLookupFamily as ExtensionFamily;
use envoy_types::pb::envoy::extensions::clusters::dns::v3::DnsCluster;
use envoy_types::pb::envoy::extensions::network::dns_resolver::cares::v3::CaresDnsResolverConfig;
use envoy_types::pb::envoy::extensions::network::dns_resolver::getaddrinfo::v3::GetAddrInfoDnsResolverConfig;
use envoy_types::pb::google::protobuf;
use prost::Name as _;

use super::endpoints::Assignment;
use crate::cluster::DnsPlan;
use crate::cluster::dns::{FailureRefresh, LookupFamily, ResolverPlan};
use crate::config::address::Address;
use crate::config::parse::context::type_name;
use crate::config::parse::{ParseContext, address};
use crate::config::reject::Refused;

/// Envoy's default for `dns_refresh_rate`.
const REFRESH: Duration = Duration::from_secs(5);

/// A [`DnsPlan`] without its names.
pub(super) struct Settings {
    pub(super) logical: bool,
    refresh: Duration,
    failure_refresh: Option<FailureRefresh>,
    respect_ttl: bool,
    ttl_min: Duration,
    jitter: Duration,
    family: LookupFamily,
    resolver: ResolverPlan,
    pub(super) wait_for_warm: bool,
}

impl Settings {
    pub(super) fn plan(self, assignment: Assignment) -> DnsPlan {
        DnsPlan {
            names: assignment.names,
            refresh: self.refresh,
            failure_refresh: self.failure_refresh,
            respect_ttl: self.respect_ttl,
            ttl_min: self.ttl_min,
            jitter: self.jitter,
            family: self.family,
            resolver: self.resolver,
            logical: self.logical,
            wait_for_warm: self.wait_for_warm,
            assignment: assignment.options,
        }
    }
}

/// The settings in the cluster's own fields.
#[expect(deprecated, reason = "Envoy still honours the older fields")]
pub(super) fn legacy(config: &proto::Cluster, logical: bool, context: &mut ParseContext) -> Result<Settings, Refused> {
    use proto::cluster::DnsLookupFamily;
    let start = context.problems.checkpoint();
    let refresh = refresh("dns_refresh_rate", &config.dns_refresh_rate, context);
    let failure = config.dns_failure_refresh_rate.map(|rate| {
        let intervals = [rate.base_interval, rate.max_interval];
        context.within("dns_failure_refresh_rate", |context| failure_refresh(intervals, context))
    });
    let jitter = context.duration("dns_jitter", &config.dns_jitter);
    let family = match DnsLookupFamily::try_from(config.dns_lookup_family) {
        Ok(DnsLookupFamily::Auto) => LookupFamily::Auto,
        Ok(DnsLookupFamily::V4Only) => LookupFamily::V4Only,
        Ok(DnsLookupFamily::V6Only) => LookupFamily::V6Only,
        Ok(DnsLookupFamily::V4Preferred) => LookupFamily::V4Preferred,
        Ok(DnsLookupFamily::All) => LookupFamily::All,
        Err(_) => return Err(context.reject("dns_lookup_family", "is no known family")),
    };
    let resolver = if let Some(typed) = &config.typed_dns_resolver_config {
        context.within("typed_dns_resolver_config", |context| typed_resolver(typed, context))
    } else if let Some(resolution) = &config.dns_resolution_config {
        context.within("dns_resolution_config", |context| {
            let servers = servers("resolvers", &resolution.resolvers, context)?;
            Ok(with_options(resolution.dns_resolver_options.as_ref(), servers))
        })
    } else {
        let servers = servers("dns_resolvers", &config.dns_resolvers, context);
        servers.map(|servers| ResolverPlan {
            servers,
            tcp_only: config.use_tcp_for_dns_lookups,
            ..ResolverPlan::default()
        })
    };
    context.problems.clean_since(start)?;
    Ok(Settings {
        logical,
        refresh: refresh?.unwrap_or(REFRESH),
        failure_refresh: failure.transpose()?,
        respect_ttl: config.respect_dns_ttl,
        ttl_min: Duration::ZERO,
        jitter: jitter?.unwrap_or_default(),
        family,
        resolver: resolver?,
        wait_for_warm: true,
    })
}

/// The settings of the cluster extension `envoy.clusters.dns`.
pub(super) fn extension(config: &DnsCluster, context: &mut ParseContext) -> Result<Settings, Refused> {
    let start = context.problems.checkpoint();
    let refresh = refresh("dns_refresh_rate", &config.dns_refresh_rate, context);
    let failure = config.dns_failure_refresh_rate.map(|rate| {
        let intervals = [rate.base_interval, rate.max_interval];
        context.within("dns_failure_refresh_rate", |context| failure_refresh(intervals, context))
    });
    let jitter = context.duration("dns_jitter", &config.dns_jitter);
    let ttl_min = context.duration("dns_min_refresh_rate", &config.dns_min_refresh_rate);
    if matches!(ttl_min, Ok(Some(ttl_min)) if ttl_min < Duration::from_secs(1)) {
        let _ = context.reject("dns_min_refresh_rate", "must be at least 1s");
    }
    let family = match ExtensionFamily::try_from(config.dns_lookup_family) {
        Ok(ExtensionFamily::Unspecified | ExtensionFamily::Auto) => LookupFamily::Auto,
        Ok(ExtensionFamily::V4Only) => LookupFamily::V4Only,
        Ok(ExtensionFamily::V6Only) => LookupFamily::V6Only,
        Ok(ExtensionFamily::V4Preferred) => LookupFamily::V4Preferred,
        Ok(ExtensionFamily::All) => LookupFamily::All,
        Err(_) => return Err(context.reject("dns_lookup_family", "is no known family")),
    };
    let resolver = match &config.typed_dns_resolver_config {
        Some(typed) => context.within("typed_dns_resolver_config", |context| typed_resolver(typed, context)),
        None => Ok(ResolverPlan::default()),
    };
    context.problems.clean_since(start)?;
    Ok(Settings {
        logical: config.all_addresses_in_single_endpoint,
        refresh: refresh?.unwrap_or(REFRESH),
        failure_refresh: failure.transpose()?,
        respect_ttl: config.respect_dns_ttl,
        ttl_min: ttl_min?.unwrap_or_default(),
        jitter: jitter?.unwrap_or_default(),
        family,
        resolver: resolver?,
        wait_for_warm: true,
    })
}

/// An interval between questions; Envoy wants more than 1 ms.
fn refresh(
    field: &str,
    value: &Option<protobuf::Duration>,
    context: &mut ParseContext,
) -> Result<Option<Duration>, Refused> {
    match context.duration(field, value)? {
        Some(value) if value <= Duration::from_millis(1) => Err(context.reject(field, "must be greater than 1 ms")),
        value => Ok(value),
    }
}

fn failure_refresh(
    [base, max]: [Option<protobuf::Duration>; 2],
    context: &mut ParseContext,
) -> Result<FailureRefresh, Refused> {
    let max = refresh("max_interval", &max, context);
    let Some(base) = refresh("base_interval", &base, context)? else {
        return Err(context.reject("base_interval", "is required"));
    };
    let max = max?.unwrap_or(base.saturating_mul(10));
    if max < base {
        return Err(context.reject("max_interval", "must be at least `base_interval`"));
    }
    Ok(FailureRefresh { base, max })
}

fn typed_resolver(typed: &core::TypedExtensionConfig, context: &mut ParseContext) -> Result<ResolverPlan, Refused> {
    let config = context.required("typed_config", &typed.typed_config)?;
    let name = type_name(&config.type_url);
    if name == CaresDnsResolverConfig::full_name() {
        let config: CaresDnsResolverConfig = context.unpack("typed_config", config)?;
        return context.within("typed_config", |context| {
            let servers = servers("resolvers", &config.resolvers, context)?;
            if config.use_resolvers_as_fallback {
                return Err(context.reject("use_resolvers_as_fallback", "is not there yet in this version"));
            }
            let plan = with_options(config.dns_resolver_options.as_ref(), servers);
            Ok(ResolverPlan {
                query_timeout: config.query_timeout_seconds.map(|seconds| Duration::from_secs(seconds.value)),
                query_tries: config.query_tries.map(|tries| tries.value),
                ..plan
            })
        });
    }
    if name == GetAddrInfoDnsResolverConfig::full_name() {
        return Ok(ResolverPlan::default());
    }
    Err(context.reject("typed_config", format!("resolver type `{name}` is not there in this version")))
}

fn with_options(options: Option<&core::DnsResolverOptions>, servers: Vec<SocketAddr>) -> ResolverPlan {
    ResolverPlan {
        servers,
        tcp_only: options.is_some_and(|options| options.use_tcp_for_dns_lookups),
        no_search_domains: options.is_some_and(|options| options.no_default_search_domain),
        ..ResolverPlan::default()
    }
}

fn servers(field: &str, list: &[core::Address], context: &mut ParseContext) -> Result<Vec<SocketAddr>, Refused> {
    context.each(field, list, |server, context| match address::parse(&as_tcp(server), context)? {
        Address::Ip(address) => Ok(address),
        Address::Pipe(_) => Err(context.reject("pipe", "a name server needs an IP address")),
    })
}

/// A name server's address may say UDP, which an endpoint's may not.
fn as_tcp(server: &core::Address) -> core::Address {
    let mut server = server.clone();
    if let Some(core::address::Address::SocketAddress(socket)) = &mut server.address {
        socket.set_protocol(core::socket_address::Protocol::Tcp);
    }
    server
}
