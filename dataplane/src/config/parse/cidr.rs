//! `envoy.config.core.v3.CidrRange` becomes a [`Cidr`].

use std::net::IpAddr;

use envoy_types::pb::envoy::config::core::v3 as core;

use super::ParseContext;
use crate::config::cidr::Cidr;
use crate::config::reject::Refused;

/// The range in `range`; without `prefix_len` it has 0 bits and so every address, as in Envoy.
pub fn parse(range: &core::CidrRange, context: &mut ParseContext) -> Result<Cidr, Refused> {
    let network = context.non_empty("address_prefix", &range.address_prefix)?;
    let network: IpAddr = network
        .parse()
        .map_err(|_| context.reject("address_prefix", format!("malformed IP address `{}`", range.address_prefix)))?;
    let prefix_bits = range.prefix_len.map_or(0, |bits| bits.value);
    u8::try_from(prefix_bits)
        .ok()
        .and_then(|bits| Cidr::new(network, bits))
        .ok_or_else(|| context.reject("prefix_len", format!("{prefix_bits} is more than an address of {network} has")))
}
