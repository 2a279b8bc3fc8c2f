//! `upstream_bind_config` and `upstream_connection_options` become [`UpstreamConnectOptions`].

use std::net::SocketAddr;

use envoy_types::pb::envoy::config::cluster::v3 as proto;
use envoy_types::pb::envoy::config::core::v3 as core;

use crate::cluster::UpstreamConnectOptions;
use crate::config::address::Address;
use crate::config::parse::{ParseContext, address, socket_option};
use crate::config::reject::Refused;

pub(super) fn parse(config: &proto::Cluster, context: &mut ParseContext) -> Result<UpstreamConnectOptions, Refused> {
    let start = context.problems.checkpoint();
    let mut connect = UpstreamConnectOptions::default();
    if let Some(bind) = &config.upstream_bind_config {
        let parsed = context.within("upstream_bind_config", |context| bind_config(bind, context));
        connect = parsed.unwrap_or_default();
    }
    let keepalive = config.upstream_connection_options.as_ref().and_then(|options| options.tcp_keepalive.as_ref());
    connect.keepalive = keepalive.and_then(socket_option::keepalive);
    context.problems.clean_since(start).map(|()| connect)
}

fn bind_config(bind: &core::BindConfig, context: &mut ParseContext) -> Result<UpstreamConnectOptions, Refused> {
    let start = context.problems.checkpoint();
    let source = bind.source_address.as_ref().map(|source| parse_source("source_address", source, context));
    let extra = context.each("extra_source_addresses", &bind.extra_source_addresses, |extra, context| {
        if extra.socket_options.is_some() {
            return Err(context.reject("socket_options", "per source address are not there yet in this version"));
        }
        let source = context.required("address", &extra.address)?;
        parse_source("address", source, context)
    });
    #[expect(deprecated, reason = "Envoy still honours the older field")]
    let additional =
        context.each("additional_source_addresses", &bind.additional_source_addresses, |source, context| {
            parse_source("", source, context)
        });
    if !bind.extra_source_addresses.is_empty() && additional.as_ref().is_ok_and(|list| !list.is_empty()) {
        let _ = context.reject("additional_source_addresses", "cannot stand beside `extra_source_addresses`");
    }
    let raw = socket_option::parse_all("socket_options", &bind.socket_options, context);
    context.problems.clean_since(start)?;
    let extra_sources = extra?.into_iter().chain(additional?).collect::<Vec<_>>();
    if extra_sources.len() > 1 {
        return Err(context.reject("extra_source_addresses", "Envoy takes only one"));
    }
    if source.is_none() && !extra_sources.is_empty() {
        return Err(context.reject("source_address", "is required beside extra source addresses"));
    }
    Ok(UpstreamConnectOptions {
        // All zero means that no address is bound; a port alone is.
        source: source.transpose()?.filter(|source| !source.ip().is_unspecified() || source.port() != 0),
        extra_sources,
        freebind: bind.freebind.is_some_and(|flag| flag.value),
        keepalive: None,
        raw: raw?,
    })
}

fn parse_source(field: &str, source: &core::SocketAddress, context: &mut ParseContext) -> Result<SocketAddr, Refused> {
    let parse = |context: &mut ParseContext| {
        let kind = core::address::Address::SocketAddress(source.clone());
        address::parse(&core::Address { address: Some(kind) }, context)
    };
    let outer = (!field.is_empty()).then(|| context.problems.enter(field));
    let parsed = parse(context);
    if let Some(outer) = outer {
        context.problems.leave(outer);
    }
    match parsed? {
        Address::Ip(address) => Ok(address),
        Address::Pipe(_) => Err(context.reject(field, "must be an IP address")),
    }
}
