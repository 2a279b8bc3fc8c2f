//! Listener and filter chain of a connection, in Envoy's order of criteria.

use std::net::IpAddr;

use envoy_types::pb::envoy::config::core::v3::{
    CidrRange, address::Address, socket_address::PortSpecifier, transport_socket::ConfigType,
};
use envoy_types::pb::envoy::config::listener::v3::{
    FilterChain, FilterChainMatch, Listener, ListenerFilter, ListenerFilterChainMatchPredicate,
    filter::ConfigType as FilterConfig, listener_filter_chain_match_predicate::Rule,
};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::DownstreamTlsContext;
use prost::Message;

use super::{Call, Failure, Security, Spoken};

pub(super) enum Terminal {
    Http(Box<HttpConnectionManager>),
    Tcp(Box<TcpProxy>),
}

pub(super) fn listener<'a>(listeners: &'a [Listener], call: &Call) -> Option<&'a Listener> {
    let named = |name: &str| listeners.iter().find(|listener| listener.name == name);
    if call.inbound {
        return named("virtualInbound");
    }
    let at = |address: &str| listeners.iter().find(|listener| bound(listener) == Some((address, call.port)));
    at(&call.address).or_else(|| at("0.0.0.0")).or_else(|| named("virtualOutbound"))
}

fn bound(listener: &Listener) -> Option<(&str, u32)> {
    match listener.address.as_ref()?.address.as_ref()? {
        Address::SocketAddress(socket) => match socket.port_specifier.as_ref()? {
            PortSpecifier::PortValue(port) => Some((socket.address.as_str(), *port)),
            PortSpecifier::NamedPort(_) => None,
        },
        _ => None,
    }
}

/// True if a listener filter whose name ends in `name` looks at connections to `port`.
fn inspects(filters: &[ListenerFilter], name: &str, port: u32) -> bool {
    filters.iter().any(|filter| {
        filter.name.ends_with(name) && !filter.filter_disabled.as_ref().is_some_and(|rule| disabled(rule, port))
    })
}

fn disabled(predicate: &ListenerFilterChainMatchPredicate, port: u32) -> bool {
    match &predicate.rule {
        Some(Rule::DestinationPortRange(range)) => {
            i32::try_from(port).is_ok_and(|port| range.start <= port && port < range.end)
        }
        Some(Rule::OrMatch(set)) => set.rules.iter().any(|rule| disabled(rule, port)),
        Some(Rule::AndMatch(set)) => set.rules.iter().all(|rule| disabled(rule, port)),
        Some(Rule::NotMatch(rule)) => !disabled(rule, port),
        Some(Rule::AnyMatch(any)) => *any,
        None => false,
    }
}

/// The chain that Envoy would take.
pub(super) fn choose<'a>(listener: &'a Listener, call: &Call) -> Result<&'a FilterChain, Failure> {
    let tls_seen = inspects(&listener.listener_filters, "tls_inspector", call.port);
    let http_seen = inspects(&listener.listener_filters, "http_inspector", call.port);
    let plaintext = call.security == Security::Plaintext;
    let mut alpn = if tls_seen { call.alpn.clone() } else { String::new() };
    if http_seen && plaintext {
        match call.spoken {
            Spoken::Http => "http/1.1".clone_into(&mut alpn),
            Spoken::Http2 => "h2c".clone_into(&mut alpn),
            Spoken::Tcp => {}
        }
    }
    let transport = if tls_seen && !plaintext { "tls" } else { "raw_buffer" };
    let sni = if tls_seen { call.sni.as_str() } else { "" };

    let none = FilterChainMatch::default();
    let mut chains: Vec<(&FilterChain, &FilterChainMatch)> = listener
        .filter_chains
        .iter()
        .map(|chain| (chain, chain.filter_chain_match.as_ref().unwrap_or(&none)))
        .collect();
    sieve(
        &mut chains,
        |chain| chain.destination_port.is_some(),
        |chain| usize::from(chain.destination_port.as_ref().is_some_and(|port| port.value == call.port)),
    );
    sieve(
        &mut chains,
        |chain| !chain.prefix_ranges.is_empty(),
        |chain| chain.prefix_ranges.iter().filter(|range| covers(range, &call.address)).map(length).max().unwrap_or(0),
    );
    sieve(
        &mut chains,
        |chain| !chain.server_names.is_empty(),
        |chain| chain.server_names.iter().map(|name| server_name(name, sni)).max().unwrap_or(0),
    );
    sieve(
        &mut chains,
        |chain| !chain.transport_protocol.is_empty(),
        |chain| usize::from(chain.transport_protocol == transport),
    );
    sieve(
        &mut chains,
        |chain| !chain.application_protocols.is_empty(),
        |chain| usize::from(chain.application_protocols.contains(&alpn)),
    );
    match chains.as_slice() {
        [(chain, _)] => Ok(chain),
        [] => listener.default_filter_chain.as_ref().ok_or(Failure::NoFilterChain),
        _ => Err(Failure::MultipleFilterChains),
    }
}

/// Keeps the chains of the best rank; where none matches, those that do not ask.
fn sieve(
    chains: &mut Vec<(&FilterChain, &FilterChainMatch)>,
    asks: impl Fn(&FilterChainMatch) -> bool,
    rank: impl Fn(&FilterChainMatch) -> usize,
) {
    if !chains.iter().any(|(_, condition)| asks(condition)) {
        return;
    }
    let best = chains.iter().map(|(_, condition)| rank(condition)).max().unwrap_or(0);
    chains.retain(|(_, condition)| if best > 0 { rank(condition) == best } else { !asks(condition) });
}

fn length(range: &CidrRange) -> usize {
    range.prefix_len.as_ref().and_then(|length| usize::try_from(length.value).ok()).unwrap_or(0)
}

fn covers(range: &CidrRange, address: &str) -> bool {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(address) => (32_u32, u128::from(u32::from(address)) << 96),
        IpAddr::V6(address) => (128, u128::from(address)),
    };
    let (Ok(network), Ok(address)) = (range.address_prefix.parse::<IpAddr>(), address.parse::<IpAddr>()) else {
        return false;
    };
    let ((family, network), (other, address)) = (bits(network), bits(address));
    let length = u32::try_from(length(range)).unwrap_or(family).min(family);
    family == other && (length == 0 || (network ^ address) >> (128 - length) == 0)
}

fn server_name(pattern: &str, sni: &str) -> usize {
    if sni.is_empty() {
        return 0;
    }
    if pattern == sni {
        return usize::MAX;
    }
    match pattern.strip_prefix('*') {
        Some(suffix) if sni.ends_with(suffix) => pattern.len(),
        _ => 0,
    }
}

/// TLS and mutual TLS must be what the chain terminates.
pub(super) fn check_tls(chain: &FilterChain, call: &Call) -> Result<(), Failure> {
    let Some(socket) = &chain.transport_socket else { return Ok(()) };
    if call.security == Security::Plaintext {
        return Err(Failure::Tls);
    }
    let Some(ConfigType::TypedConfig(any)) = &socket.config_type else { return Ok(()) };
    let context = DownstreamTlsContext::decode(any.value.as_slice()).map_err(|_| Failure::Tls)?;
    let first =
        context.common_tls_context.as_ref().and_then(|common| common.tls_certificate_sds_secret_configs.first());
    let mesh = first.is_some_and(|secret| secret.name == call.mesh_certificate)
        && context.require_client_certificate.as_ref().is_some_and(|required| required.value);
    if mesh == (call.security == Security::MutualTls) { Ok(()) } else { Err(Failure::MutualTls) }
}

pub(super) fn terminal(chain: &FilterChain) -> Option<Terminal> {
    chain.filters.iter().find_map(|filter| {
        let Some(FilterConfig::TypedConfig(any)) = &filter.config_type else { return None };
        if any.type_url.ends_with(".HttpConnectionManager") {
            HttpConnectionManager::decode(any.value.as_slice()).ok().map(|manager| Terminal::Http(Box::new(manager)))
        } else if any.type_url.ends_with(".TcpProxy") {
            TcpProxy::decode(any.value.as_slice()).ok().map(|proxy| Terminal::Tcp(Box::new(proxy)))
        } else {
            None
        }
    })
}
