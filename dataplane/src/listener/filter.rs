//! Listener filters: what a connection's first bytes say, before a filter chain is chosen.
//!
//! Filters run in the order configured, each until it knows enough. They look at bytes and take none; whoever serves the connection
//! reads them from the first.

use std::sync::Arc;

use super::chain_match::{ConnectionFacts, Found};
use super::client_hello::{ClientHello, client_hello};
use crate::telemetry::counters::{Core, Stats};
use crate::telemetry::names::{HttpInspectorStat, TlsInspectorStat};

/// A configured listener filter.
pub enum ListenerFilter {
    /// Server name and application protocols from a TLS ClientHello.
    /// Source: envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector.
    TlsInspector {
        /// Longest ClientHello.
        hello_bytes_max: usize,
        /// `tls_inspector.`
        stats: Arc<Stats<TlsInspectorStat>>,
    },
    /// The version of HTTP, where no TLS was found.
    /// Source: envoy.extensions.filters.listener.http_inspector.v3.HttpInspector.
    HttpInspector {
        /// `http_inspector.`
        stats: Arc<Stats<HttpInspectorStat>>,
    },
}

/// What a look at the bytes came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// More bytes are needed.
    More,
    /// All filters are done.
    Done,
    /// The connection is to be closed.
    Refuse,
}

/// How far the filters of one connection have come.
pub struct Inspection {
    place: usize,
    /// What is known so far.
    pub facts: ConnectionFacts,
}

impl Inspection {
    /// One that knows the addresses only.
    pub fn new(facts: ConnectionFacts) -> Self {
        Self { place: 0, facts }
    }

    /// Lets the filters look at `bytes`, all that was received.
    pub fn look(&mut self, filters: &[ListenerFilter], core: Core, bytes: &[u8]) -> Verdict {
        while let Some(filter) = filters.get(self.place) {
            match filter.look(&mut self.facts.found, core, bytes) {
                Verdict::Done => self.place += 1,
                other => return other,
            }
        }
        Verdict::Done
    }
}

impl ListenerFilter {
    fn look(&self, found: &mut Found, core: Core, bytes: &[u8]) -> Verdict {
        match self {
            Self::TlsInspector { hello_bytes_max, stats } => {
                let seen = match client_hello(bytes, *hello_bytes_max) {
                    ClientHello::Incomplete => return Verdict::More,
                    ClientHello::TooLarge => {
                        stats.increment(core, TlsInspectorStat::ClientHelloTooBig);
                        return Verdict::Refuse;
                    }
                    ClientHello::Absent => {
                        stats.increment(core, TlsInspectorStat::TlsNotFound);
                        return Verdict::Done;
                    }
                    ClientHello::Complete(seen) => seen,
                };
                stats.increment(core, TlsInspectorStat::TlsFound);
                stats.increment(
                    core,
                    match seen.server_name {
                        Some(_) => TlsInspectorStat::SniFound,
                        None => TlsInspectorStat::SniNotFound,
                    },
                );
                stats.increment(
                    core,
                    match seen.application_protocols.is_empty() {
                        false => TlsInspectorStat::AlpnFound,
                        true => TlsInspectorStat::AlpnNotFound,
                    },
                );
                *found = seen;
                Verdict::Done
            }
            Self::HttpInspector { .. } if found.is_tls => Verdict::Done,
            Self::HttpInspector { stats } => {
                let (stat, protocol) = match http_version(bytes) {
                    None => return Verdict::More,
                    Some(HttpVersion::Http10) => (HttpInspectorStat::Http10Found, Some("http/1.0")),
                    Some(HttpVersion::Http11) => (HttpInspectorStat::Http11Found, Some("http/1.1")),
                    Some(HttpVersion::Http2) => (HttpInspectorStat::Http2Found, Some("h2c")),
                    Some(HttpVersion::Other) => (HttpInspectorStat::HttpNotFound, None),
                };
                stats.increment(core, stat);
                if let Some(protocol) = protocol {
                    found.application_protocols = vec![protocol.as_bytes().into()];
                }
                Verdict::Done
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HttpVersion {
    Http10,
    Http11,
    Http2,
    Other,
}

/// The version that a connection which begins with `bytes` speaks; `None` where more bytes are needed.
fn http_version(bytes: &[u8]) -> Option<HttpVersion> {
    if bytes.starts_with(PREFACE) {
        return Some(HttpVersion::Http2);
    }
    if PREFACE.starts_with(bytes) {
        return None;
    }
    let Some(end) = bytes.iter().position(|byte| matches!(byte, b'\r' | b'\n')) else {
        let method = bytes.split(|byte| *byte == b' ').next().unwrap_or_default();
        let may_be_method = match method.len() == bytes.len() {
            true => {
                METHOD_BYTES_MAX >= method.len() && method.iter().all(|byte| byte.is_ascii_uppercase() || *byte == b'-')
            }
            false => torus_codec::is_known_method(method),
        };
        let waits = may_be_method && bytes.len() < START_LINE_BYTES_MAX;
        return if waits { None } else { Some(HttpVersion::Other) };
    };
    let mut words = bytes.get(..end)?.split(|byte| *byte == b' ').filter(|word| !word.is_empty());
    let (method, target, version) = (words.next(), words.next(), words.next());
    let is_request = method.is_some_and(torus_codec::is_known_method) && target.is_some() && words.next().is_none();
    Some(match version {
        Some(b"HTTP/1.1") if is_request => HttpVersion::Http11,
        Some(b"HTTP/1.0") if is_request => HttpVersion::Http10,
        _ => HttpVersion::Other,
    })
}

/// With what an HTTP/2 connection begins (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A start line that is not over by then is none (as in Envoy).
const START_LINE_BYTES_MAX: usize = 8 * 1024;
/// The longest known method: UNSUBSCRIBE.
const METHOD_BYTES_MAX: usize = 11;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::address::Address;
    use crate::telemetry::registry::Registry;

    #[test]
    fn the_version_is_known_from_the_start_line() {
        let check = |bytes: &[u8], expect: Option<HttpVersion>| {
            assert_eq!(http_version(bytes), expect, "{}", bytes.escape_ascii());
        };
        check(b"GET / HTTP/1.1\r\n", Some(HttpVersion::Http11));
        check(b"POST /a HTTP/1.0\n", Some(HttpVersion::Http10));
        check(PREFACE, Some(HttpVersion::Http2));
        for cut in 0..PREFACE.len() {
            check(&PREFACE[..cut], None);
        }
        check(b"PROPFIND / HTTP/1.1\r\n", Some(HttpVersion::Http11));
        check(b"GET / HTTP/1.1", None);
        check(b"GE", None);
        check(b"get", Some(HttpVersion::Other));
        check(b"GETT /", Some(HttpVersion::Other));
        check(b"GET / HTTP/2.0\r\n", Some(HttpVersion::Other));
        check(b"GET /\r\n", Some(HttpVersion::Other));
        check(b"\r\n", Some(HttpVersion::Other));
        check(b"PRI * HTTP/1.1\r\n", Some(HttpVersion::Other));
        check(b"\x16\x03\x01", Some(HttpVersion::Other));
        check(&[b"GET /", &[b'a'; START_LINE_BYTES_MAX][..]].concat(), Some(HttpVersion::Other));
    }

    #[test]
    fn filters_run_in_order_and_http_is_not_looked_for_under_tls() {
        let registry = Registry::new(1);
        let (tls, http) = (registry.group("tls_inspector."), registry.group("http_inspector."));
        let filters = [
            ListenerFilter::TlsInspector { hello_bytes_max: 16 * 1024, stats: Arc::clone(&tls) },
            ListenerFilter::HttpInspector { stats: Arc::clone(&http) },
        ];
        let address = Address::Ip("127.0.0.1:1".parse().unwrap());
        let facts = ConnectionFacts {
            local: address.clone(),
            remote: address.clone(),
            direct_remote: address,
            found: Found::default(),
        };
        let mut inspection = Inspection::new(facts.clone());
        assert_eq!(inspection.look(&filters, Core(0), b""), Verdict::More);
        assert_eq!(inspection.look(&filters, Core(0), b"GET"), Verdict::More);
        assert_eq!(inspection.look(&filters, Core(0), b"GET / HTTP/1.1\r\n"), Verdict::Done);
        assert_eq!(inspection.facts.found.application_protocols, [b"http/1.1"[..].into()]);
        assert!(!inspection.facts.found.is_tls);
        let mut inspection = Inspection::new(facts);
        assert_eq!(inspection.look(&filters, Core(0), b"\x16\x03\x01\x02\x00\x01\x01\x00\x00"), Verdict::Refuse);
        assert_eq!(tls.total(TlsInspectorStat::TlsNotFound), 1);
        assert_eq!(tls.total(TlsInspectorStat::ClientHelloTooBig), 1);
        assert_eq!(http.total(HttpInspectorStat::Http11Found), 1);
    }
}
