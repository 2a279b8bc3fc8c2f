//! `:authority` before routing: trailing dot and port. Source: HttpConnectionManager.strip_port_mode, strip_trailing_host_dot.

use torus_codec::{HeaderMap, Known};

use super::Scratch;
use crate::config::address::Address;
use crate::downstream::{EdgeOptions, StripPort};

/// Removes what the configuration removes from `:authority`.
pub(super) fn normalize(options: &EdgeOptions, local: &Address, headers: &mut HeaderMap, scratch: &mut Scratch) {
    if options.strip_port == StripPort::Keep && !options.strip_trailing_dot {
        return;
    }
    let Some(authority) = headers.get_known(Known::Authority) else { return };
    let (host, port) = split(authority);
    let host = if options.strip_trailing_dot { host.strip_suffix(b".").unwrap_or(host) } else { host };
    // CONNECT names a port always (RFC 9110 §9.3.6).
    let connect = headers.get_known(Known::Method).is_some_and(|method| method == b"CONNECT");
    let port_goes = match (options.strip_port, port) {
        (StripPort::Keep, _) | (_, None) => false,
        (StripPort::Any, Some(_)) => !connect,
        (StripPort::Matching, Some(port)) => {
            !connect && local.ip().is_some_and(|local| u32::from(local.port()) == port.number)
        }
    };
    scratch.value.clear();
    scratch.value.extend_from_slice(host);
    if let Some(port) = port.filter(|_| !port_goes) {
        scratch.value.extend_from_slice(port.text);
    } else if port.is_none() {
        scratch.value.extend_from_slice(authority.get(host_end(authority)..).unwrap_or_default());
    }
    if scratch.value.as_slice() != authority {
        headers.set_known(Known::Authority, &scratch.value);
    }
}

#[derive(Clone, Copy)]
struct Port<'a> {
    /// With its colon.
    text: &'a [u8],
    number: u32,
}

/// Host and port; no port where what follows the colon is no number from 0 to 65535.
fn split(authority: &[u8]) -> (&[u8], Option<Port<'_>>) {
    let (host, text) = authority.split_at_checked(host_end(authority)).unwrap_or((authority, b""));
    let digits = text.get(1..).unwrap_or_default();
    let number = std::str::from_utf8(digits).ok().filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
    let number = number.and_then(|digits| digits.parse().ok()).filter(|number| *number <= u32::from(u16::MAX));
    (host, number.map(|number| Port { text, number }))
}

/// Where the host ends: at the last colon outside the brackets of an IPv6 literal.
fn host_end(authority: &[u8]) -> usize {
    let colon = authority.iter().rposition(|byte| *byte == b':');
    let bracket = authority.iter().rposition(|byte| *byte == b']');
    match (colon, bracket) {
        (Some(colon), Some(bracket)) if colon < bracket => authority.len(),
        (Some(colon), _) => colon,
        (None, _) => authority.len(),
    }
}
