//! `envoy.config.listener.v3.FilterChainMatch` becomes [`ChainCriteria`].

use envoy_types::pb::envoy::config::core::v3::CidrRange;
use envoy_types::pb::envoy::config::listener::v3 as proto;

use super::{ParseContext, cidr};
use crate::config::cidr::Cidr;
use crate::config::reject::Refused;
use crate::listener::chain_match::{ChainCriteria, SourceType};

/// Compiles the rules of one chain.
pub fn parse(config: &proto::FilterChainMatch, context: &mut ParseContext) -> Result<ChainCriteria, Refused> {
    use proto::filter_chain_match::ConnectionSourceType;
    let start = context.problems.checkpoint();
    let destination_port = match config.destination_port.map(|port| u16::try_from(port.value)) {
        None => None,
        Some(Ok(port)) if port > 0 => Some(port),
        Some(_) => return Err(context.reject("destination_port", "must be from 1 to 65535")),
    };
    let ranges =
        |field: &str, ranges: &[CidrRange], context: &mut ParseContext| context.each(field, ranges, cidr::parse);
    let destination_ranges = ranges("prefix_ranges", &config.prefix_ranges, context);
    let direct_source_ranges = ranges("direct_source_prefix_ranges", &config.direct_source_prefix_ranges, context);
    let source_ranges = ranges("source_prefix_ranges", &config.source_prefix_ranges, context);
    let mut server_names = Vec::with_capacity(config.server_names.len());
    for (index, name) in config.server_names.iter().enumerate() {
        let known = name.strip_prefix('*').filter(|rest| rest.len() > 1 && rest.starts_with('.')).unwrap_or(name);
        if known.contains('*') {
            let reason = format!("`{name}`: a wildcard stands for whole labels at the start, as in `*.example.com`");
            let _ = context.reject(&format!("server_names[{index}]"), reason);
        }
        server_names.push(known.to_ascii_lowercase().into_boxed_str());
    }
    let transport_protocol = match config.transport_protocol.as_str() {
        "" => None,
        "tls" | "raw_buffer" => Some(config.transport_protocol.as_str().into()),
        other => {
            context.warn("transport_protocol", format!("no listener filter finds `{other}`, so nothing matches"));
            Some(other.into())
        }
    };
    let source_ports = config.source_ports.iter().enumerate().map(|(index, port)| {
        let port = u16::try_from(*port).ok().filter(|port| *port > 0);
        port.ok_or_else(|| context.reject(&format!("source_ports[{index}]"), "must be from 1 to 65535"))
    });
    let source_ports: Result<Vec<u16>, Refused> = source_ports.collect();
    context.problems.clean_since(start)?;
    let canonical = |mut ranges: Vec<Cidr>| {
        for range in &mut ranges {
            *range = range.masked();
        }
        ranges
    };
    Ok(ChainCriteria {
        destination_port,
        destination_ranges: canonical(destination_ranges?),
        server_names,
        transport_protocol,
        application_protocols: config.application_protocols.iter().map(|name| name.as_str().into()).collect(),
        direct_source_ranges: canonical(direct_source_ranges?),
        source_type: match config.source_type() {
            ConnectionSourceType::Any => SourceType::Any,
            ConnectionSourceType::SameIpOrLoopback => SourceType::SameIpOrLoopback,
            ConnectionSourceType::External => SourceType::External,
        },
        source_ranges: canonical(source_ranges?),
        source_ports: source_ports?,
    })
}

/// Whether the rules can only match with what a tls_inspector finds.
pub fn needs_tls_inspector(criteria: &ChainCriteria) -> bool {
    match criteria.transport_protocol.as_deref() {
        Some("tls") => true,
        Some(_) => false,
        None => !criteria.server_names.is_empty(),
    }
}
