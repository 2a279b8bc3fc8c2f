//! Listener filters: what a connection's first bytes say, before a filter chain is chosen.
//!
//! Filters run in the order configured, each until it knows enough. They look at bytes; only a PROXY header is taken out, and whoever
//! serves the connection reads what follows it.

use std::net::SocketAddr;
use std::sync::Arc;

use super::chain_match::ConnectionFacts;
use super::client_hello::{ClientHello, client_hello};
use super::proxy_protocol::{self, Parsed, ProxyHeader, Tlv, Version};
use crate::config::address::Address;
use crate::telemetry::counters::{Core, Stats};
use crate::telemetry::names::{HttpInspectorStat, ProxyProtocolStat, TlsInspectorStat};

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
    /// Whom the connection comes from, in its first bytes.
    ProxyProtocol(Box<ProxyProtocol>),
    /// Where the connection was going before the kernel redirected it here.
    /// Source: envoy.extensions.filters.listener.original_dst.v3.OriginalDst.
    OriginalDst,
}

/// The PROXY protocol's filter. Source: envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol.
pub struct ProxyProtocol {
    /// Connections that begin with something else are taken as they are.
    pub is_optional: bool,
    /// Version 1 is refused.
    pub refuses_v1: bool,
    /// Version 2 is refused.
    pub refuses_v2: bool,
    /// Types of the facts that are kept for endpoints.
    pub kept: KeptTlvs,
    /// `proxy_proto.<stat_prefix>.`
    pub stats: Arc<Stats<ProxyProtocolStat>>,
}

/// Facts of a PROXY header that go on to endpoints. Source: envoy.config.core.v3.ProxyProtocolPassThroughTLVs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum KeptTlvs {
    /// None of them.
    #[default]
    None,
    /// All of them.
    All,
    /// Those of these types.
    Types(Vec<u8>),
}

impl KeptTlvs {
    /// Whether a fact of this type goes on.
    pub fn includes(&self, kind: u8) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Types(kinds) => kinds.contains(&kind),
        }
    }
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
    /// The same, and the filter has counted it.
    End,
}

/// How far the filters of one connection have come.
pub struct Inspection {
    place: usize,
    /// What is known so far.
    pub facts: ConnectionFacts,
    /// Bytes at the front that were for a filter alone.
    pub taken_bytes: usize,
    /// Where the connection was going before it was redirected, if it was.
    pub original: Option<SocketAddr>,
    /// `facts.local` is where the client wanted to go, as a filter found out.
    pub is_restored: bool,
    /// Facts of a PROXY header that are kept.
    pub tlvs: Vec<Tlv>,
}

impl Inspection {
    /// One that knows the addresses only.
    pub fn new(facts: ConnectionFacts) -> Self {
        Self { place: 0, facts, taken_bytes: 0, original: None, is_restored: false, tlvs: Vec::new() }
    }

    /// Lets the filters look at `bytes`, all that was received.
    pub fn look(&mut self, filters: &[ListenerFilter], core: Core, bytes: &[u8]) -> Verdict {
        while let Some(filter) = filters.get(self.place) {
            match filter.look(self, core, bytes.get(self.taken_bytes..).unwrap_or_default()) {
                Verdict::Done => self.place += 1,
                other => return other,
            }
        }
        Verdict::Done
    }
}

impl ListenerFilter {
    fn look(&self, inspection: &mut Inspection, core: Core, bytes: &[u8]) -> Verdict {
        let found = &mut inspection.facts.found;
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
            Self::ProxyProtocol(filter) => filter.look(inspection, core, bytes),
            Self::OriginalDst => {
                if let Some(original) = inspection.original {
                    inspection.facts.local = Address::Ip(original);
                    inspection.is_restored = true;
                }
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

impl ProxyProtocol {
    fn look(&self, inspection: &mut Inspection, core: Core, bytes: &[u8]) -> Verdict {
        let refuses = |version| match version {
            Version::V1 => self.refuses_v1,
            Version::V2 => self.refuses_v2,
        };
        if self.is_optional && proxy_protocol::signature(bytes).is_some_and(refuses) {
            // A version that is not looked for is none (as in Envoy).
            self.stats.increment(core, ProxyProtocolStat::NotFoundAllowed);
            return Verdict::Done;
        }
        let (header, length) = match proxy_protocol::parse(bytes) {
            Parsed::Incomplete => return Verdict::More,
            Parsed::Absent if self.is_optional => {
                self.stats.increment(core, ProxyProtocolStat::NotFoundAllowed);
                return Verdict::Done;
            }
            Parsed::Absent => {
                self.stats.increment(core, ProxyProtocolStat::NotFoundDisallowed);
                return self.refuse(inspection, "no PROXY header");
            }
            Parsed::Malformed(version) => {
                self.stats.increment(
                    core,
                    match version {
                        Version::V1 => ProxyProtocolStat::V1Error,
                        Version::V2 => ProxyProtocolStat::V2Error,
                    },
                );
                return self.refuse(inspection, "a PROXY header that breaks its rules");
            }
            Parsed::Complete { header, length } => (header, length),
        };
        let (found, disallowed) = match header.version {
            Version::V1 => (ProxyProtocolStat::V1Found, ProxyProtocolStat::V1Disallowed),
            Version::V2 => (ProxyProtocolStat::V2Found, ProxyProtocolStat::V2Disallowed),
        };
        self.stats.increment(core, found);
        if refuses(header.version) {
            self.stats.increment(core, disallowed);
            return self.refuse(inspection, "a PROXY header of a version that is not allowed");
        }
        inspection.taken_bytes += length;
        let ProxyHeader { addresses, tlvs, .. } = header;
        inspection.tlvs = tlvs.into_iter().filter(|tlv| self.kept.includes(tlv.kind)).collect();
        if let Some((source, destination)) = addresses {
            inspection.facts.remote = Address::Ip(source);
            // As in Envoy, only another address than the socket's is one that was restored.
            inspection.is_restored |= inspection.facts.local != Address::Ip(destination);
            inspection.facts.local = Address::Ip(destination);
        }
        Verdict::Done
    }

    fn refuse(&self, inspection: &Inspection, what: &str) -> Verdict {
        tracing::debug!(target: "connection", "{} sent {what}", inspection.facts.direct_remote);
        Verdict::End
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
    use crate::listener::chain_match::Found;
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

    #[test]
    fn a_proxy_header_is_taken_and_what_follows_is_looked_at() {
        let registry = Registry::new(1);
        let stats = registry.group("proxy_proto.");
        let filter = |is_optional, refuses_v1| ProxyProtocol {
            is_optional,
            refuses_v1,
            refuses_v2: false,
            kept: KeptTlvs::Types(vec![2]),
            stats: Arc::clone(&stats),
        };
        let http = registry.group("http_inspector.");
        let address = |text: &str| Address::Ip(text.parse().unwrap());
        let facts = ConnectionFacts {
            local: address("127.0.0.1:1"),
            remote: address("127.0.0.1:2"),
            direct_remote: address("127.0.0.1:2"),
            found: Found::default(),
        };
        let look = |filter: ProxyProtocol, bytes: &[u8]| {
            let filters = [
                ListenerFilter::ProxyProtocol(Box::new(filter)),
                ListenerFilter::HttpInspector { stats: http.clone() },
            ];
            let mut inspection = Inspection::new(facts.clone());
            let verdict = inspection.look(&filters, Core(0), bytes);
            (verdict, inspection)
        };
        let line: &[u8] = b"PROXY TCP4 1.2.3.4 5.6.7.8 111 222\r\nGET / HTTP/1.1\r\n";
        let (verdict, inspection) = look(filter(false, false), line);
        assert_eq!((verdict, inspection.taken_bytes, inspection.is_restored), (Verdict::Done, 36, true));
        assert_eq!(inspection.facts.remote, address("1.2.3.4:111"));
        assert_eq!(inspection.facts.local, address("5.6.7.8:222"));
        assert_eq!(inspection.facts.direct_remote, address("127.0.0.1:2"));
        assert_eq!(inspection.facts.found.application_protocols, [b"http/1.1"[..].into()]);
        assert_eq!(look(filter(false, false), &line[..36]).0, Verdict::More);
        assert_eq!(look(filter(false, true), line).0, Verdict::End);
        let (verdict, inspection) = look(filter(true, true), line);
        assert_eq!((verdict, inspection.taken_bytes), (Verdict::Done, 0));
        assert_eq!(look(filter(false, false), b"GET / HTTP/1.1\r\n").0, Verdict::End);
        let (verdict, inspection) = look(filter(true, false), b"GET / HTTP/1.1\r\n");
        assert_eq!((verdict, inspection.taken_bytes, inspection.is_restored), (Verdict::Done, 0, false));
        assert_eq!(look(filter(true, false), b"PROXY nonsense\r\n").0, Verdict::End);
        let tlv = |kind| Tlv { kind, value: [7][..].into() };
        let addresses = Some(("1.2.3.4:111".parse().unwrap(), "127.0.0.1:1".parse().unwrap()));
        let header = proxy_protocol::encode(Version::V2, addresses, &[&tlv(2), &tlv(3)]);
        let (_, inspection) = look(filter(false, false), &header);
        assert_eq!((inspection.tlvs.as_slice(), inspection.is_restored), (&[tlv(2)][..], false));
        let totals = [ProxyProtocolStat::V1Found, ProxyProtocolStat::V1Disallowed, ProxyProtocolStat::V1Error];
        assert_eq!(totals.map(|stat| stats.total(stat)), [3, 1, 1]);
    }
}
