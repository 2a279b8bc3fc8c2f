//! `envoy.config.core.v3.CidrRange` becomes a [`Cidr`].

use std::net::IpAddr;

use envoy_types::pb::envoy::config::core::v3 as core;

use super::ParseContext;
use crate::config::cidr::Cidr;
use crate::config::reject::Refused;

/// The range in `range`; without `prefix_len` it has 0 bits and so every address. Up to 128 bits are taken, and an IPv4 range has
/// 32 of them at most, as in Envoy.
pub fn parse(range: &core::CidrRange, context: &mut ParseContext) -> Result<Cidr, Refused> {
    let network = context.non_empty("address_prefix", &range.address_prefix)?;
    let network: IpAddr = network
        .parse()
        .map_err(|_| context.reject("address_prefix", format!("malformed IP address `{}`", range.address_prefix)))?;
    let prefix_bits = range.prefix_len.map_or(0, |bits| bits.value);
    let bits_max = if network.is_ipv4() { 32 } else { 128 };
    let bits = u8::try_from(prefix_bits).ok().filter(|bits| *bits <= 128);
    bits.and_then(|bits| Cidr::new(network, bits.min(bits_max)))
        .ok_or_else(|| context.reject("prefix_len", format!("must be at most 128, is {prefix_bits}")))
}
