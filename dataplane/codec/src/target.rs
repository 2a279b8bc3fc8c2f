//! Request targets in their four forms (RFC 9112 §3.2) and authorities.

use std::ops::Range;

use crate::Malformed;
use crate::bytes;

/// A request target, taken apart. Ranges are offsets in the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// `/path?query`, or `*` for OPTIONS.
    Path,
    /// `http://host:port/path?query`; `path` is empty where there is none, and may begin with `?`.
    Absolute { scheme: Range<usize>, authority: Range<usize>, path: Range<usize> },
    /// `host:port`, for CONNECT.
    Authority,
}

/// Takes a target apart.
///
/// Source: RFC 9112 §3.2.1 to §3.2.4.
/// Errors: everything that is in none of the forms, or in the form of another method.
pub(crate) fn parse(method: &[u8], target: &[u8], allow_absolute: bool) -> Result<Target, Malformed> {
    if !bytes::is_target_text(target) {
        return Err(if target.contains(&b'#') { Malformed::TargetFragment } else { Malformed::Target });
    }
    if method == b"CONNECT" {
        let valid = is_authority(target) && has_port(target);
        return if valid { Ok(Target::Authority) } else { Err(Malformed::TargetForm) };
    }
    match target {
        [b'/', ..] => Ok(Target::Path),
        b"*" if method == b"OPTIONS" => Ok(Target::Path),
        _ if allow_absolute => absolute(target),
        _ => Err(Malformed::TargetForm),
    }
}

/// Whether this may stand as a `:path`: `/` and what follows, or `*` for OPTIONS, without a byte that no URI has (RFC 9113 §8.3.1).
pub fn is_path(method: &[u8], path: &[u8]) -> bool {
    bytes::is_target_text(path) && (path.starts_with(b"/") || path == b"*" && method == b"OPTIONS")
}

fn absolute(target: &[u8]) -> Result<Target, Malformed> {
    let colon = memchr::memmem::find(target, b"://").ok_or(Malformed::TargetForm)?;
    let scheme = target.get(..colon).unwrap_or_default();
    let valid = scheme.iter().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(byte));
    if !valid || !scheme.first().is_some_and(u8::is_ascii_alphabetic) {
        return Err(Malformed::TargetForm);
    }
    if !scheme.eq_ignore_ascii_case(b"http") && !scheme.eq_ignore_ascii_case(b"https") {
        return Err(Malformed::Scheme);
    }
    let start = colon + 3;
    let rest = target.get(start..).unwrap_or_default();
    let end = memchr::memchr2(b'/', b'?', rest).map_or(target.len(), |length| start + length);
    if !target.get(start..end).is_some_and(is_authority) {
        return Err(Malformed::Authority);
    }
    Ok(Target::Absolute { scheme: 0..colon, authority: start..end, path: end..target.len() })
}

/// Whether this is a host with an optional port and nothing else: no user information (RFC 9110 §4.2.4), no list, not empty.
pub fn is_authority(text: &[u8]) -> bool {
    if text.is_empty() || !bytes::is_authority_text(text) {
        return false;
    }
    let after_host = if text.starts_with(b"[") {
        // IP-literal (RFC 3986 §3.2.2).
        let Some(end) = memchr::memchr(b']', text) else { return false };
        let literal = text.get(1..end).unwrap_or_default();
        if literal.is_empty() || literal.contains(&b'[') {
            return false;
        }
        text.get(end + 1..).unwrap_or_default()
    } else {
        let end = memchr::memchr3(b':', b'[', b']', text).unwrap_or(text.len());
        if end == 0 {
            return false;
        }
        text.get(end..).unwrap_or_default()
    };
    match after_host {
        [] => true,
        // An empty port is the scheme's own (RFC 3986 §3.2.3).
        [b':'] => true,
        [b':', port @ ..] => is_port(port),
        _ => false,
    }
}

fn has_port(authority: &[u8]) -> bool {
    memchr::memrchr(b':', authority).and_then(|colon| authority.get(colon + 1..)).is_some_and(is_port)
}

fn is_port(text: &[u8]) -> bool {
    text.len() <= 5 && bytes::decimal(text).is_some_and(|port| port <= u64::from(u16::MAX))
}
