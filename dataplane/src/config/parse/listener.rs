//! `envoy.config.listener.v3.Listener` becomes a [`Listener`].

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::listener::v3 as proto;
use envoy_types::pb::envoy::extensions::filters::network::direct_response;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy as TcpProxyProto;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::DownstreamTlsContext;

use super::context::type_name;
use super::http_connection_manager::{self, is_http_connection_manager};
use super::socket_option;
use super::{ParseContext, address, chain_match, listener_filters, network_filters, tcp_proxy};
use crate::config::address::Address;
use crate::config::reject::Refused;
use crate::config::snapshot::{
    FilterChain, ListenSocketOptions, Listener, ListenerDrain, NetworkFilter, TrafficDirection,
};
use crate::listener::chain_match::{ChainCriteria, ChainIndex, ChainMatcher};
use crate::tls::server::HANDSHAKE_TIMEOUT;
use crate::tls::{ServerTls, parse_server};
use crate::worker::connection_limit::ConnectionCount;

/// Compiles `config`.
pub fn parse(config: &proto::Listener, context: &mut ParseContext) -> Result<Listener, Refused> {
    let start = context.problems.checkpoint();
    let main = context.required("address", &config.address).and_then(|main| {
        let parsed = context.within("address", |context| address::parse(main, context))?;
        Ok((parsed, pipe_mode(main, context), ipv4_compat(main)))
    });
    let (main, mode, ipv4_compat) = main?;
    let name = if config.name.is_empty() { main.to_string() } else { config.name.clone() };
    let mut socket = socket_options(config, mode, ipv4_compat);
    socket.raw = socket_option::parse_all("socket_options", &config.socket_options, context)?;
    let additional = context.each("additional_addresses", &config.additional_addresses, |additional, context| {
        additional_address(additional, &socket, context)
    });
    let stat_prefix = if config.stat_prefix.is_empty() { main.to_string() } else { config.stat_prefix.clone() };
    // Envoy's characters that would break a stat name become `_`.
    let stat_prefix = format!("listener.{}.", stat_prefix.replace(':', "_"));
    let chains = filter_chains(config, &stat_prefix, context);
    let filters = context.each("listener_filters", &config.listener_filters, listener_filters::parse);
    let filters_timeout =
        context.timeout("listener_filters_timeout", &config.listener_filters_timeout, Some(LISTENER_FILTERS_TIMEOUT));
    let connection_buffer_bytes_max =
        config.per_connection_buffer_limit_bytes.map_or(CONNECTION_BUFFER_BYTES, |limit| limit.value);
    let accepts_per_turn_max = config.max_connections_to_accept_per_socket_event.map(|count| count.value);
    if accepts_per_turn_max == Some(0) {
        let _ = context.reject("max_connections_to_accept_per_socket_event", "must be at least 1");
    }
    context.problems.clean_since(start)?;

    let (chains, chain_matcher) = chains?;
    let (additional_addresses, additional_sockets): (Vec<_>, Vec<_>) = additional?.into_iter().unzip();
    let limit_key = format!("envoy.resource_limits.listener.{name}.connection_limit");
    let connection_count_max = context.runtime.get(&limit_key).map(|_| context.runtime.integer(&limit_key, u64::MAX));
    let reuse_port = config.enable_reuse_port.is_none_or(|reuse| reuse.value);
    Ok(Listener {
        name: name.into(),
        addresses: std::iter::once(main).chain(additional_addresses).collect(),
        reuse_port,
        backlog: config.tcp_backlog_size.map_or_else(system_backlog, |size| size.value),
        connection_buffer_bytes_max,
        connections: Arc::new(ConnectionCount::new(connection_count_max)),
        drain: ListenerDrain::default(),
        accepts_per_turn_max,
        socket,
        additional_sockets,
        chains,
        chain_matcher,
        filters: filters?,
        filters_timeout: filters_timeout?,
        filters_timeout_continues: config.continue_on_listener_filters_timeout,
        stats: context.registry.group(&stat_prefix),
        use_original_dst: config.use_original_dst.is_some_and(|on| on.value),
        binds: config.bind_to_port.is_none_or(|on| on.value),
        // The overload manager keeps the limit, so who bypasses the one ignores the other.
        ignore_global_connection_limit: config.ignore_global_conn_limit || config.bypass_overload_manager,
        direction: match config.traffic_direction() {
            core::TrafficDirection::Unspecified => TrafficDirection::Unspecified,
            core::TrafficDirection::Inbound => TrafficDirection::Inbound,
            core::TrafficDirection::Outbound => TrafficDirection::Outbound,
        },
    })
}

/// Refuses a name or an address that an earlier listener has. Port 0 is a new port each time.
pub fn refuse_duplicates(listeners: &[Arc<Listener>], added: &Listener, context: &mut ParseContext) {
    if listeners.iter().any(|listener| listener.name == added.name) {
        let _ = context.reject("name", format!("another listener is called `{}`", added.name));
    }
    for address in &added.addresses {
        let is_taken = |listener: &&Arc<Listener>| listener.addresses.contains(address);
        if address.ip().is_some_and(|address| address.port() == 0) {
            continue;
        }
        if let Some(other) = listeners.iter().find(is_taken) {
            let _ = context.reject("address", format!("listener `{}` has the address {address} already", other.name));
        }
    }
}

fn pipe_mode(address: &core::Address, context: &mut ParseContext) -> Option<u32> {
    let Some(core::address::Address::Pipe(pipe)) = &address.address else { return None };
    if pipe.mode > 0o777 {
        let _ = context.reject("address.pipe.mode", format!("must be at most 511 (0777 octal), is {}", pipe.mode));
    }
    (pipe.mode != 0).then_some(pipe.mode)
}

fn ipv4_compat(address: &core::Address) -> bool {
    matches!(&address.address, Some(core::address::Address::SocketAddress(socket)) if socket.ipv4_compat)
}

fn socket_options(config: &proto::Listener, pipe_mode: Option<u32>, ipv4_compat: bool) -> ListenSocketOptions {
    ListenSocketOptions {
        freebind: config.freebind.is_some_and(|on| on.value),
        transparent: config.transparent.is_some_and(|on| on.value),
        fast_open_queue: config.tcp_fast_open_queue_length.map(|length| length.value),
        keepalive: config.tcp_keepalive.as_ref().and_then(socket_option::keepalive),
        ipv4_compat,
        pipe_mode,
        raw: Vec::new(),
    }
}

fn additional_address(
    config: &proto::AdditionalAddress,
    main: &ListenSocketOptions,
    context: &mut ParseContext,
) -> Result<(Address, ListenSocketOptions), Refused> {
    let proto_address = context.required("address", &config.address)?;
    let parsed = context.within("address", |context| address::parse(proto_address, context));
    let keepalive = match &config.tcp_keepalive {
        Some(config) => socket_option::keepalive(config),
        None => main.keepalive,
    };
    let raw = match &config.socket_options {
        Some(options) => context.within("socket_options", |context| {
            socket_option::parse_all("socket_options", &options.socket_options, context)
        })?,
        None => main.raw.clone(),
    };
    let pipe_mode = pipe_mode(proto_address, context);
    let ipv4_compat = ipv4_compat(proto_address);
    Ok((parsed?, ListenSocketOptions { keepalive, raw, ipv4_compat, pipe_mode, ..main.clone() }))
}

/// Every filter chain, and which connection goes to which; the default one comes last.
fn filter_chains(
    config: &proto::Listener,
    listener_prefix: &str,
    context: &mut ParseContext,
) -> Result<(Vec<FilterChain>, ChainMatcher), Refused> {
    let start = context.problems.checkpoint();
    let mut chains = Vec::with_capacity(config.filter_chains.len() + 1);
    let mut criteria = Vec::with_capacity(config.filter_chains.len());
    for (index, chain) in config.filter_chains.iter().enumerate() {
        context.within_item("filter_chains", index, |context| {
            let rules = context.within("filter_chain_match", |context| match &chain.filter_chain_match {
                Some(rules) => chain_match::parse(rules, context),
                None => Ok(ChainCriteria::default()),
            });
            criteria.extend(rules);
            chains.extend(parse_chain(chain, listener_prefix, context));
        });
    }
    let default = config
        .default_filter_chain
        .as_ref()
        .map(|chain| context.within("default_filter_chain", |context| parse_chain(chain, listener_prefix, context)));
    context.problems.clean_since(start)?;
    let default = match default {
        Some(chain) => {
            chains.push(chain?);
            Some(ChainIndex(place(config.filter_chains.len())))
        }
        None if chains.is_empty() => {
            return Err(context.reject("filter_chains", "is required: no filter chain would take a connection"));
        }
        None => None,
    };
    let candidates: Vec<_> =
        criteria.iter().enumerate().map(|(index, rules)| (ChainIndex(place(index)), rules)).collect();
    let matcher = ChainMatcher::new(&candidates, default).map_err(|same| {
        let other = config.filter_chains.get(same.first.0 as usize).map_or("", |chain| chain.name.as_str());
        let other = if other.is_empty() { format!("filter_chains[{}]", same.first.0) } else { format!("`{other}`") };
        let field = format!("filter_chains[{}].filter_chain_match", same.second.0);
        context.reject(&field, format!("has the same matching rules as {other}, so a connection could go to either"))
    })?;
    let inspects = config.listener_filters.iter().any(|filter| {
        let Some(proto::listener_filter::ConfigType::TypedConfig(packed)) = &filter.config_type else { return false };
        type_name(&packed.type_url) == TLS_INSPECTOR
    });
    if !inspects && criteria.iter().any(chain_match::needs_tls_inspector) {
        context.warn("filter_chains", "server names and TLS match only with the listener filter tls_inspector");
    }
    Ok((chains, matcher))
}

fn place(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

fn parse_chain(
    chain: &proto::FilterChain,
    listener_prefix: &str,
    context: &mut ParseContext,
) -> Result<FilterChain, Refused> {
    let tls = match &chain.transport_socket {
        Some(socket) => context.within("transport_socket", |context| transport(socket, listener_prefix, context)),
        None => Ok(None),
    };
    let timeout = context.timeout("transport_socket_connect_timeout", &chain.transport_socket_connect_timeout, None);
    let Some((last, before)) = chain.filters.split_last() else {
        return Err(context.reject("filters", "must end with one that serves the connection; there are none"));
    };
    let filters = context.each("filters", before, network_filters::parse);
    let terminal =
        context.within_item("filters", before.len(), |context| terminal_filter(last, listener_prefix, context))?;
    let handshake_timeout = timeout?.unwrap_or(HANDSHAKE_TIMEOUT);
    Ok(FilterChain { name: chain.name.as_str().into(), tls: tls?, handshake_timeout, filters: filters?, terminal })
}

fn transport(
    socket: &core::TransportSocket,
    listener_prefix: &str,
    context: &mut ParseContext,
) -> Result<Option<ServerTls>, Refused> {
    let Some(core::transport_socket::ConfigType::TypedConfig(packed)) = &socket.config_type else {
        return Err(context.reject("typed_config", "is required"));
    };
    match type_name(&packed.type_url) {
        "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer" => Ok(None),
        "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext" => {
            let config: DownstreamTlsContext = context.unpack("typed_config", packed)?;
            let parsed = context.within("typed_config", |context| parse_server(&config, listener_prefix, context));
            parsed.map(Some)
        }
        other => Err(context.reject("typed_config", format!("`{other}` is not there yet in this version"))),
    }
}

fn terminal_filter(
    filter: &proto::Filter,
    listener_prefix: &str,
    context: &mut ParseContext,
) -> Result<NetworkFilter, Refused> {
    let _ = context.non_empty("name", &filter.name);
    let packed = match &filter.config_type {
        Some(proto::filter::ConfigType::TypedConfig(packed)) => packed,
        Some(proto::filter::ConfigType::ConfigDiscovery(_)) => {
            return Err(context.reject("config_discovery", "discovered filters are not there yet in this version"));
        }
        None => return Err(context.reject("typed_config", "is required")),
    };
    match type_name(&packed.type_url) {
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy" => {
            let config: TcpProxyProto = context.unpack("typed_config", packed)?;
            let proxy = context.within("typed_config", |context| tcp_proxy::parse(&config, context))?;
            return Ok(NetworkFilter::Tcp(Box::new(proxy)));
        }
        "envoy.extensions.filters.network.direct_response.v3.Config" => {
            let config: direct_response::v3::Config = context.unpack("typed_config", packed)?;
            return context.within("typed_config", |context| direct_response(&config, context));
        }
        _ if is_http_connection_manager(&packed.type_url) => {}
        name if network_filters::KNOWN.contains(&name) => {
            return Err(
                context.reject("typed_config", format!("`{name}` serves no connection; another filter must follow"))
            );
        }
        name => {
            let reason = format!("network filter `{name}` is not there yet in this version");
            return Err(context.reject("typed_config", reason));
        }
    }
    context.within("typed_config", |context| {
        let manager = http_connection_manager::parse(&packed.value, listener_prefix, context)?;
        Ok(NetworkFilter::Http(Arc::new(manager)))
    })
}

fn direct_response(config: &direct_response::v3::Config, context: &mut ParseContext) -> Result<NetworkFilter, Refused> {
    use core::data_source::Specifier;
    let bytes: &[u8] = match config.response.as_ref().and_then(|response| response.specifier.as_ref()) {
        None => &[],
        Some(Specifier::InlineString(text)) => text.as_bytes(),
        Some(Specifier::InlineBytes(bytes)) => bytes,
        Some(Specifier::Filename(path)) => {
            return match std::fs::read(path) {
                Ok(bytes) => Ok(NetworkFilter::DirectResponse(bytes.into())),
                Err(error) => Err(context.reject("response.filename", format!("cannot read {path}: {error}"))),
            };
        }
        Some(Specifier::EnvironmentVariable(name)) => {
            return match std::env::var(name) {
                Ok(text) => Ok(NetworkFilter::DirectResponse(text.into_bytes().into())),
                Err(_) => Err(context.reject("response.environment_variable", format!("`{name}` is not set"))),
            };
        }
    };
    Ok(NetworkFilter::DirectResponse(bytes.into()))
}

/// What the kernel allows at most; Envoy asks for that too.
fn system_backlog() -> u32 {
    let text = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap_or_default();
    text.trim().parse().unwrap_or(BACKLOG_FALLBACK)
}

/// Source: Listener.per_connection_buffer_limit_bytes, 1 MiB.
const CONNECTION_BUFFER_BYTES: u32 = 1024 * 1024;
/// Source: Listener.listener_filters_timeout.
const LISTENER_FILTERS_TIMEOUT: Duration = Duration::from_secs(15);
const TLS_INSPECTOR: &str = "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector";
/// Source: Listener.tcp_backlog_size, where the system does not say.
const BACKLOG_FALLBACK: u32 = 128;

#[cfg(test)]
mod tests;
