//! Who the client is. Source: Envoy's documentation of `x-forwarded-for`.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use torus_codec::{HeaderMap, Known};

use super::Scratch;
use crate::config::address::Address;
use crate::downstream::{ConnectionInfo, EdgeOptions};

/// Where a request comes from.
pub(super) struct Origin {
    pub(super) remote: Address,
    pub(super) internal: bool,
}

/// Finds the client and appends the peer to `x-forwarded-for` where that is asked for.
///
/// Internal is a client with an internal address that no other proxy stands before: at the edge a request without
/// `x-forwarded-for`, behind one a single address in it.
pub(super) fn establish(
    options: &EdgeOptions,
    connection: &ConnectionInfo,
    headers: &mut HeaderMap,
    scratch: &mut Scratch,
) -> Origin {
    let peer = &connection.remote;
    let forwarded = headers.get_known(Known::XForwardedFor);
    if options.use_remote_address {
        let trusted = forwarded.filter(|_| options.trusted_hop_count > 0);
        let client = trusted.and_then(|list| nth_from_end(list, options.trusted_hop_count - 1));
        let remote = client.map_or_else(|| peer.clone(), from_header);
        let internal = forwarded.is_none() && is_internal(options, &remote);
        if !options.skip_forwarded_for_append {
            append_peer(options, peer, headers, scratch);
        }
        Origin { remote, internal }
    } else {
        let client = forwarded.and_then(|list| nth_from_end(list, options.trusted_hop_count)).map(from_header);
        let single = options.trusted_hop_count == 0 && forwarded.is_some_and(|list| !list.contains(&b','));
        let internal = single && client.as_ref().is_some_and(|client| is_internal(options, client));
        Origin { remote: client.unwrap_or_else(|| peer.clone()), internal }
    }
}

/// Writes an address as `x-forwarded-for` and `x-envoy-external-address` have it: without port or brackets.
pub(super) fn write_ip(ip: IpAddr, out: &mut Vec<u8>) {
    out.clear();
    // Writing to a Vec cannot fail.
    let _ = write!(out, "{ip}");
}

fn append_peer(options: &EdgeOptions, peer: &Address, headers: &mut HeaderMap, scratch: &mut Scratch) {
    let Some(peer) = peer.ip() else { return };
    let peer = if is_loopback(peer.ip()) { options.local_ip.unwrap_or(peer.ip()) } else { peer.ip() };
    scratch.value.clear();
    if let Some(before) = headers.get_known(Known::XForwardedFor).filter(|before| !before.is_empty()) {
        scratch.value.extend_from_slice(before);
        scratch.value.push(b',');
    }
    let _ = write!(scratch.value, "{peer}");
    headers.set_known(Known::XForwardedFor, &scratch.value);
}

/// Envoy takes only the canonical loopback addresses for this, not all of 127.0.0.0/8.
fn is_loopback(ip: IpAddr) -> bool {
    ip == Ipv4Addr::LOCALHOST || ip == Ipv6Addr::LOCALHOST
}

fn is_internal(options: &EdgeOptions, address: &Address) -> bool {
    match address {
        Address::Ip(address) => options.internal_ranges.iter().any(|range| range.contains(address.ip())),
        Address::Pipe(_) => options.unix_sockets_internal,
    }
}

/// The address that has `skipped` others after it in the list.
fn nth_from_end(list: &[u8], skipped: u32) -> Option<IpAddr> {
    let text = list.rsplit(|byte| *byte == b',').nth(skipped as usize)?;
    std::str::from_utf8(text).ok()?.trim_matches([' ', '\t']).parse().ok()
}

fn from_header(ip: IpAddr) -> Address {
    Address::Ip(SocketAddr::new(ip, 0))
}
