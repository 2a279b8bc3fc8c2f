//! The PROXY protocol on both sides: the listener filter, and what clusters send.

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::filters::listener::proxy_protocol::v3 as inbound;

use super::ParseContext;
use crate::cluster::proxy_protocol::UpstreamProxyProtocol;
use crate::config::reject::Refused;
use crate::listener::filter::{KeptTlvs, ProxyProtocol};
use crate::listener::proxy_protocol::{Tlv, Version};

/// Compiles the listener filter.
pub fn parse(config: &inbound::ProxyProtocol, context: &mut ParseContext) -> Result<ProxyProtocol, Refused> {
    use core::proxy_protocol_config::Version as Proto;
    let refuses = |version: Proto| config.disallowed_versions.contains(&(version as i32));
    let kept = context.within("pass_through_tlvs", |context| kept(config.pass_through_tlvs.as_ref(), context))?;
    let dot = if config.stat_prefix.is_empty() || config.stat_prefix.ends_with('.') { "" } else { "." };
    Ok(ProxyProtocol {
        is_optional: config.allow_requests_without_proxy_protocol,
        refuses_v1: refuses(Proto::V1),
        refuses_v2: refuses(Proto::V2),
        kept,
        stats: context.registry.group(&format!("proxy_proto.{}{dot}", config.stat_prefix)),
    })
}

/// Compiles what a cluster sends.
pub fn parse_upstream(
    config: &core::ProxyProtocolConfig,
    context: &mut ParseContext,
) -> Result<UpstreamProxyProtocol, Refused> {
    use core::proxy_protocol_config::Version as Proto;
    let kept = context.within("pass_through_tlvs", |context| kept(config.pass_through_tlvs.as_ref(), context));
    let added = context.each("added_tlvs", &config.added_tlvs, |entry, context| {
        let kind = tlv_type("type", entry.r#type, context)?;
        if entry.value.is_empty() {
            return Err(context.reject("value", "must not be empty"));
        }
        Ok(Tlv { kind, value: entry.value.as_slice().into() })
    });
    let version = match config.version() {
        Proto::V1 => Version::V1,
        Proto::V2 => Version::V2,
    };
    Ok(UpstreamProxyProtocol { version, kept: kept?, added: added? })
}

fn kept(config: Option<&core::ProxyProtocolPassThroughTlVs>, context: &mut ParseContext) -> Result<KeptTlvs, Refused> {
    use core::proxy_protocol_pass_through_tl_vs::PassTlVsMatchType;
    let Some(config) = config else { return Ok(KeptTlvs::None) };
    match config.match_type() {
        PassTlVsMatchType::IncludeAll => Ok(KeptTlvs::All),
        PassTlVsMatchType::Include => {
            let kinds = config.tlv_type.iter().map(|kind| tlv_type("tlv_type", *kind, context));
            kinds.collect::<Result<_, _>>().map(KeptTlvs::Types)
        }
    }
}

fn tlv_type(field: &str, kind: u32, context: &mut ParseContext) -> Result<u8, Refused> {
    u8::try_from(kind).map_err(|_| context.reject(field, format!("must be at most 255, is {kind}")))
}
