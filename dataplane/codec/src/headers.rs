//! The fields of one message, in wire order, in one arena that is reused from request to request.
//!
//! Pseudo-headers (`:method`, `:scheme`, `:authority`, `:path`, `:status`) are ordinary entries, as Envoy and HTTP/2 treat them;
//! the HTTP/1.1 encoder writes them as the start line and `host`. Names are stored in lower case.

use crate::{KnownSet, bytes};
use std::ops::Range;

/// The fields of one message. After warm-up neither reading nor changing it allocates.
#[derive(Clone, Default)]
pub struct HeaderMap {
    arena: Vec<u8>,
    entries: Vec<Entry>,
    /// One bit for each [`Known`] that was ever added since [`clear`](Self::clear): an absent name costs one test.
    seen: u128,
    /// One bit for each [`Known`] that was added again while `seen` had it: what is absent here occurs once at most.
    repeated: u128,
}

#[derive(Clone, Copy)]
struct Entry {
    /// Empty where `known` says the name.
    name: Span,
    value: Span,
    known: Option<Known>,
    /// Whether a parser has already refused every byte that may not be on the wire.
    checked: bool,
}

#[derive(Clone, Copy, Default)]
struct Span {
    start: u32,
    len: u32,
}

/// One field as an encoder needs it.
pub(crate) struct Field<'a> {
    pub(crate) known: Option<Known>,
    pub(crate) name: &'a [u8],
    pub(crate) value: &'a [u8],
    pub(crate) checked: bool,
}

/// A field name in lower case, with its known id if it has one; made at configuration time.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HeaderName {
    known: Option<Known>,
    text: Box<str>,
}

macro_rules! known_names {
    ($($variant:ident = $text:literal,)*) => {
        /// Field names that the proxy itself reads or writes; comparing one is comparing a byte.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Known { $(#[doc = $text] $variant,)* }

        impl Known {
            /// Every known name, in the order of its number.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The name in lower case.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}

known_names! {
    Method = ":method", Scheme = ":scheme", Authority = ":authority", Path = ":path", Status = ":status", Protocol = ":protocol",
    Host = "host", ContentLength = "content-length", TransferEncoding = "transfer-encoding", Connection = "connection",
    KeepAlive = "keep-alive", ProxyConnection = "proxy-connection", Te = "te", Trailer = "trailer", Upgrade = "upgrade",
    Expect = "expect", Date = "date", Server = "server", Via = "via", UserAgent = "user-agent", Accept = "accept",
    AcceptEncoding = "accept-encoding", AcceptLanguage = "accept-language", Cookie = "cookie", SetCookie = "set-cookie",
    ContentType = "content-type", ContentEncoding = "content-encoding", CacheControl = "cache-control", Location = "location",
    Authorization = "authorization", ProxyAuthenticate = "proxy-authenticate", ProxyAuthorization = "proxy-authorization",
    Origin = "origin", Referer = "referer", Age = "age", Etag = "etag", Vary = "vary", LastModified = "last-modified",
    RetryAfter = "retry-after", XForwardedFor = "x-forwarded-for", XForwardedProto = "x-forwarded-proto",
    XForwardedHost = "x-forwarded-host", XForwardedPort = "x-forwarded-port", XForwardedClientCert = "x-forwarded-client-cert",
    XRequestId = "x-request-id", XClientTraceId = "x-client-trace-id", XEnvoyInternal = "x-envoy-internal",
    XEnvoyExternalAddress = "x-envoy-external-address", XEnvoyForceTrace = "x-envoy-force-trace",
    XEnvoyDownstreamServiceCluster = "x-envoy-downstream-service-cluster",
    XEnvoyDownstreamServiceNode = "x-envoy-downstream-service-node", XEnvoyMaxRetries = "x-envoy-max-retries",
    XEnvoyRetryOn = "x-envoy-retry-on", XEnvoyRetryGrpcOn = "x-envoy-retry-grpc-on",
    XEnvoyRetriableHeaderNames = "x-envoy-retriable-header-names", XEnvoyRetriableStatusCodes = "x-envoy-retriable-status-codes",
    XEnvoyUpstreamAltStatName = "x-envoy-upstream-alt-stat-name", XEnvoyUpstreamRqTimeoutMs = "x-envoy-upstream-rq-timeout-ms",
    XEnvoyUpstreamRqPerTryTimeoutMs = "x-envoy-upstream-rq-per-try-timeout-ms",
    XEnvoyUpstreamRqTimeoutAltResponse = "x-envoy-upstream-rq-timeout-alt-response",
    XEnvoyHedgeOnPerTryTimeout = "x-envoy-hedge-on-per-try-timeout",
    XEnvoyUpstreamStreamDurationMs = "x-envoy-upstream-stream-duration-ms",
    XEnvoyExpectedRqTimeoutMs = "x-envoy-expected-rq-timeout-ms", XEnvoyOriginalPath = "x-envoy-original-path",
    XEnvoyOriginalHost = "x-envoy-original-host", XEnvoyAttemptCount = "x-envoy-attempt-count",
    XEnvoyIsTimeoutRetry = "x-envoy-is-timeout-retry", XEnvoyUpstreamServiceTime = "x-envoy-upstream-service-time",
    XEnvoyOverloaded = "x-envoy-overloaded", XEnvoyRateLimited = "x-envoy-ratelimited",
    XEnvoyDecoratorOperation = "x-envoy-decorator-operation",
    XEnvoyImmediateHealthCheckFail = "x-envoy-immediate-health-check-fail",
    XEnvoyUpstreamCanary = "x-envoy-upstream-canary", XEnvoyDegraded = "x-envoy-degraded", XEnvoyIpTags = "x-envoy-ip-tags",
    GrpcStatus = "grpc-status", GrpcMessage = "grpc-message", GrpcTimeout = "grpc-timeout",
    Traceparent = "traceparent", Tracestate = "tracestate",
}

impl Known {
    /// The known id of a name that is already in lower case.
    pub fn from_lower(name: &[u8]) -> Option<Self> {
        let slot = KNOWN_SLOTS.get(slot_of(name, HASH_FACTOR))?;
        let known = *Self::ALL.get(usize::from(*slot))?;
        (known.as_str().as_bytes() == name).then_some(known)
    }

    const fn bit(self) -> u128 {
        1 << self as u8
    }
}

/// Where each known name hashes to: its place in [`Known::ALL`], or [`SLOT_FREE`].
const KNOWN_SLOTS: [u8; 1 << SLOT_BITS] = known_slots(HASH_FACTOR).0;

/// The first odd number of a fixed row with which no two known names share a slot; found when the crate is compiled.
const HASH_FACTOR: u64 = {
    let mut factor: u64 = 0x9e37_79b9_7f4a_7c15;
    while !known_slots(factor).1 {
        factor = factor.wrapping_mul(5).wrapping_add(2);
    }
    factor
};

const SLOT_FREE: u8 = u8::MAX;
const SLOT_BITS: u32 = 11;

/// The slots for a factor, and whether every name has one of its own.
#[allow(clippy::indexing_slicing, reason = "runs when the crate is compiled")]
const fn known_slots(factor: u64) -> ([u8; 1 << SLOT_BITS], bool) {
    assert!(Known::ALL.len() <= 128, "one bit for each in `HeaderMap::seen`");
    let mut slots = [SLOT_FREE; 1 << SLOT_BITS];
    let mut index = 0;
    while index < Known::ALL.len() {
        let slot = slot_of(Known::ALL[index].as_str().as_bytes(), factor);
        if slots[slot] != SLOT_FREE {
            return (slots, false);
        }
        slots[slot] = index as u8;
        index += 1;
    }
    (slots, true)
}

/// Mixes the first, middle and last eight bytes of a name, which tells all known names apart.
const fn slot_of(name: &[u8], factor: u64) -> usize {
    let mixed = if let (Some(first), Some(last)) = (name.first_chunk::<8>(), name.last_chunk::<8>()) {
        let middle = match name.split_at(name.len() / 2 - 4).1.first_chunk::<8>() {
            Some(middle) => u64::from_le_bytes(*middle),
            None => 0,
        };
        let ends = u64::from_le_bytes(*first) ^ u64::from_le_bytes(*last).rotate_left(23);
        ends ^ middle.rotate_left(41)
    } else {
        let mut packed = 0;
        let mut rest = name;
        while let Some((byte, tail)) = rest.split_first() {
            packed = packed << 8 | *byte as u64;
            rest = tail;
        }
        packed
    };
    ((mixed ^ name.len() as u64).wrapping_mul(factor) >> (u64::BITS - SLOT_BITS)) as usize
}

impl HeaderName {
    /// The name in lower case, or `None` if it is no token (RFC 9110 §5.1; a leading `:` is allowed for pseudo-headers).
    pub fn new(text: &str) -> Option<Self> {
        let token = text.strip_prefix(':').unwrap_or(text);
        let valid = !token.is_empty() && token.bytes().all(bytes::is_token);
        valid.then(|| {
            let text = text.to_ascii_lowercase();
            // Envoy keeps `host` as `:authority`; so do we, from configuration to wire.
            let text = if text == "host" { ":authority".to_owned() } else { text };
            Self { known: Known::from_lower(text.as_bytes()), text: text.into() }
        })
    }

    /// The name in lower case.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl From<Known> for HeaderName {
    fn from(known: Known) -> Self {
        Self { known: Some(known), text: known.as_str().into() }
    }
}

impl HeaderMap {
    /// Removes every field and keeps the memory.
    pub fn clear(&mut self) {
        self.arena.clear();
        self.entries.clear();
        self.seen = 0;
        self.repeated = 0;
    }

    /// How many fields there are, pseudo-headers included.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no field.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Every field in order, pseudo-headers included.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> + '_ {
        self.entries.iter().map(|entry| (entry.name_in(&self.arena), slice(&self.arena, entry.value)))
    }

    /// The first value of `name`.
    pub fn get(&self, name: &HeaderName) -> Option<&[u8]> {
        match name.known {
            Some(known) => self.get_known(known),
            None => {
                let named = |entry: &&Entry| is_named(&self.arena, entry, None, &name.text);
                self.entries.iter().find(named).map(|entry| slice(&self.arena, entry.value))
            }
        }
    }

    /// The first value of a known name.
    pub fn get_known(&self, known: Known) -> Option<&[u8]> {
        if !self.may_have(known) {
            return None;
        }
        self.entries.iter().find(|entry| entry.known == Some(known)).map(|entry| slice(&self.arena, entry.value))
    }

    /// Every value of `name`, in order.
    pub fn get_all<'a>(&'a self, name: &'a HeaderName) -> impl Iterator<Item = &'a [u8]> + 'a {
        let named = |entry: &&Entry| is_named(&self.arena, entry, name.known, &name.text);
        self.entries.iter().filter(named).map(|entry| slice(&self.arena, entry.value))
    }

    /// Every value of a known name, in order.
    pub fn get_all_known(&self, known: Known) -> impl Iterator<Item = &[u8]> + '_ {
        let entries = if self.may_have(known) { self.entries.as_slice() } else { &[] };
        let named = move |entry: &&Entry| entry.known == Some(known);
        entries.iter().filter(named).map(|entry| slice(&self.arena, entry.value))
    }

    /// Adds a field after the others.
    pub fn append(&mut self, name: &HeaderName, value: &[u8]) {
        let value = self.store(value);
        self.push(name.known, name.text.as_bytes(), value);
    }

    /// Adds a field with a known name after the others.
    pub fn append_known(&mut self, known: Known, value: &[u8]) {
        let value = self.store(value);
        self.push(Some(known), &[], value);
    }

    /// Adds a field with a known name whose value is made of two parts.
    pub(crate) fn append_known_parts(&mut self, known: Known, first: &[u8], second: &[u8]) {
        let Span { start, len } = self.store(first);
        let len = len + self.store(second).len;
        self.push(Some(known), &[], Span { start, len });
    }

    /// Adds a field as read from the wire; `name` is stored in lower case.
    pub fn append_wire(&mut self, name: &[u8], value: &[u8]) {
        let name = self.store(name);
        let known = Known::from_lower(lower_in_place(&mut self.arena, name));
        let value = self.store(value);
        let name = if known.is_some() { Span::default() } else { name };
        self.push_entry(Entry { name, value, known, checked: false });
    }

    /// Makes `value` the only value of `name`: the first field with that name takes it, the others go.
    pub fn set(&mut self, name: &HeaderName, value: &[u8]) {
        let value = self.store(value);
        if !self.replace(name.known, &name.text, value) {
            self.push(name.known, name.text.as_bytes(), value);
        }
    }

    /// Makes `value` the only value of a known name.
    pub fn set_known(&mut self, known: Known, value: &[u8]) {
        let value = self.store(value);
        if !self.may_have(known) || !self.replace(Some(known), "", value) {
            self.push(Some(known), &[], value);
        }
    }

    /// Removes every field called `name`; whether there was one.
    pub fn remove(&mut self, name: &HeaderName) -> bool {
        if let Some(known) = name.known {
            return self.remove_known(known);
        }
        let before = self.entries.len();
        let arena = &self.arena;
        self.entries.retain(|entry| !is_named(arena, entry, None, &name.text));
        self.entries.len() != before
    }

    /// Removes every field with a known name; whether there was one.
    pub fn remove_known(&mut self, known: Known) -> bool {
        if !self.may_have(known) {
            return false;
        }
        let before = self.entries.len();
        self.entries.retain(|entry| entry.known != Some(known));
        self.seen &= !known.bit();
        self.entries.len() != before
    }

    /// Removes every field whose name is in `names`.
    pub fn remove_all(&mut self, names: KnownSet) {
        if self.seen & names.bits() == 0 {
            return;
        }
        self.entries.retain(|entry| !entry.known.is_some_and(|known| names.has(known)));
        self.seen &= !names.bits();
    }

    /// Keeps the fields for which `keep(name, value)` holds.
    pub fn retain(&mut self, mut keep: impl FnMut(&[u8], &[u8]) -> bool) {
        let arena = &self.arena;
        self.entries.retain(|entry| keep(entry.name_in(arena), slice(arena, entry.value)));
    }

    /// Joins the values of fields that come more than once and whose name is in `names`, with `,` and in order, at the place of
    /// the first (RFC 9110 §5.3). Envoy does so to every field that it keeps by name.
    pub fn join_repeated(&mut self, names: KnownSet) {
        let mut repeated = self.repeated & names.bits();
        self.repeated &= !names.bits();
        while repeated != 0 {
            let only = KnownSet::from_bits(1 << repeated.trailing_zeros());
            repeated &= !only.bits();
            self.join(only);
        }
    }

    fn join(&mut self, name: KnownSet) {
        let is_named = |entry: &Entry| entry.known.is_some_and(|known| name.has(known));
        let start = self.arena.len();
        for entry in self.entries.iter().filter(|entry| is_named(entry)) {
            if self.arena.len() != start {
                self.arena.push(b',');
            }
            let value = entry.value.start as usize..(entry.value.start + entry.value.len) as usize;
            self.arena.extend_from_within(value);
        }
        let joined = Span { start: start as u32, len: (self.arena.len() - start) as u32 };
        let mut first = true;
        self.entries.retain_mut(|entry| {
            if !is_named(entry) {
                return true;
            }
            entry.value = joined;
            entry.checked = false;
            std::mem::take(&mut first)
        });
    }

    /// Bytes of all names and values, without separators.
    pub fn byte_count(&self) -> usize {
        self.entries.iter().map(|entry| entry.name_in(&self.arena).len() + entry.value.len as usize).sum()
    }

    /// Whether a field with one of these names may be there; `false` is certain.
    pub(crate) fn may_have(&self, known: Known) -> bool {
        self.seen & known.bit() != 0
    }

    /// Every field with what an encoder asks of it.
    pub(crate) fn fields(&self) -> impl Iterator<Item = Field<'_>> {
        self.entries.iter().map(|entry| Field {
            known: entry.known,
            name: entry.name_in(&self.arena),
            value: slice(&self.arena, entry.value),
            checked: entry.checked,
        })
    }

    /// Starts over with a copy of a head whose fields [`push_wire`](Self::push_wire) then points into: one copy for all of them.
    pub(crate) fn load(&mut self, head: &[u8]) {
        self.clear();
        self.arena.extend_from_slice(head);
    }

    /// Adds a field of the loaded head whose bytes a parser has checked; the name becomes lower case. Its known id.
    pub(crate) fn push_wire(&mut self, name: Range<usize>, value: Range<usize>) -> Option<Known> {
        let (name, value) = (Span::from(name), Span::from(value));
        let known = Known::from_lower(lower_in_place(&mut self.arena, name));
        self.push_entry(Entry { name, value, known, checked: true });
        known
    }

    /// Adds a field with a known name whose value is in the loaded head.
    pub(crate) fn push_wire_known(&mut self, known: Known, value: Range<usize>) {
        self.push_entry(Entry { name: Span::default(), value: value.into(), known: Some(known), checked: true });
    }

    /// Takes the last field away again.
    pub(crate) fn pop(&mut self) {
        self.entries.pop();
    }

    /// Gives the field at `index` another value of the loaded head.
    pub(crate) fn set_wire_value(&mut self, index: usize, value: Range<usize>) {
        if let Some(entry) = self.entries.get_mut(index) {
            entry.value = value.into();
        }
    }

    /// Removes the fields that `connection` nominates (RFC 9110 §7.6.1) and that are not `protected`.
    pub(crate) fn remove_nominated(&mut self, protected: impl Fn(&[u8]) -> bool) {
        let is_connection = |entry: &&Entry| entry.known == Some(Known::Connection);
        let mut line = 0;
        while let Some(nominations) = self.entries.iter().filter(is_connection).nth(line).map(|entry| entry.value) {
            line += 1;
            let arena = &self.arena;
            let nominations = slice(arena, nominations);
            if bytes::list(nominations).all(is_connection_option) {
                continue;
            }
            self.entries.retain(|entry| {
                let name = entry.name_in(arena);
                let nominated = bytes::list(nominations).any(|nominated| nominated.eq_ignore_ascii_case(name));
                !nominated || entry.known == Some(Known::Connection) || protected(name)
            });
        }
    }

    fn replace(&mut self, known: Option<Known>, text: &str, value: Span) -> bool {
        let mut found = false;
        let arena = &self.arena;
        self.entries.retain_mut(|entry| {
            if !is_named(arena, entry, known, text) {
                return true;
            }
            let first = !found;
            found = true;
            entry.value = value;
            entry.checked = false;
            first
        });
        found
    }

    fn push(&mut self, known: Option<Known>, text: &[u8], value: Span) {
        let name = if known.is_some() { Span::default() } else { self.store(text) };
        self.push_entry(Entry { name, value, known, checked: false });
    }

    fn push_entry(&mut self, entry: Entry) {
        if let Some(known) = entry.known {
            self.repeated |= self.seen & known.bit();
            self.seen |= known.bit();
        }
        self.entries.push(entry);
    }

    fn store(&mut self, bytes: &[u8]) -> Span {
        let start = self.arena.len() as u32;
        self.arena.extend_from_slice(bytes);
        Span { start, len: bytes.len() as u32 }
    }
}

impl Entry {
    fn name_in<'a>(&self, arena: &'a [u8]) -> &'a [u8] {
        match self.known {
            Some(known) => known.as_str().as_bytes(),
            None => slice(arena, self.name),
        }
    }
}

impl From<Range<usize>> for Span {
    fn from(range: Range<usize>) -> Self {
        Self { start: range.start as u32, len: range.len() as u32 }
    }
}

impl std::fmt::Debug for HeaderMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.iter().map(|(n, v)| (String::from_utf8_lossy(n), String::from_utf8_lossy(v))))
            .finish()
    }
}

fn slice(arena: &[u8], span: Span) -> &[u8] {
    arena.get(span.start as usize..span.start as usize + span.len as usize).unwrap_or_default()
}

/// Whether a `connection` member is an option of its own and nominates no field.
fn is_connection_option(member: &[u8]) -> bool {
    [b"close".as_slice(), b"keep-alive", b"upgrade"].iter().any(|option| member.eq_ignore_ascii_case(option))
}

fn lower_in_place(arena: &mut [u8], span: Span) -> &[u8] {
    let Some(bytes) = arena.get_mut(span.start as usize..span.start as usize + span.len as usize) else { return &[] };
    bytes.make_ascii_lowercase();
    bytes
}

fn is_named(arena: &[u8], entry: &Entry, known: Option<Known>, text: &str) -> bool {
    match (entry.known, known) {
        (Some(a), Some(b)) => a == b,
        (None, None) => slice(arena, entry.name) == text.as_bytes(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::default();
        for (name, value) in fields {
            map.append_wire(name.as_bytes(), value.as_bytes());
        }
        map
    }

    fn check(map: &HeaderMap, expected: &[(&str, &str)]) {
        let expected = expected.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())).collect::<Vec<_>>();
        assert_eq!(map.iter().collect::<Vec<_>>(), expected);
        assert_eq!(map.len(), expected.len());
        assert_eq!(map.is_empty(), expected.is_empty());
        assert_eq!(map.byte_count(), expected.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>());
    }

    #[test]
    fn every_known_name_is_found_and_no_other() {
        for known in Known::ALL {
            let text = known.as_str();
            assert_eq!(Known::from_lower(text.as_bytes()), Some(*known));
            assert_eq!(Known::from_lower(format!("{text}x").as_bytes()), None);
            assert_eq!(
                Known::from_lower(&text.as_bytes()[1..]),
                Known::ALL.iter().copied().find(|k| k.as_str() == &text[1..])
            );
            assert_eq!(HeaderName::from(*known).as_str(), text);
        }
        assert_eq!(Known::from_lower(b""), None);
    }

    #[test]
    fn names_are_tokens_in_lower_case() {
        for (text, name) in
            [("X-Y", Some("x-y")), (":Path", Some(":path")), ("Host", Some(":authority")), ("a_b!", Some("a_b!"))]
        {
            assert_eq!(HeaderName::new(text).as_ref().map(HeaderName::as_str), name, "{text}");
        }
        for text in ["", ":", "a b", "a:b", "a\r\n", "é", "a,b"] {
            assert_eq!(HeaderName::new(text), None, "{text}");
        }
    }

    #[test]
    fn fields_keep_their_order_and_repeat() {
        let map = map(&[("Cookie", "a"), ("X-Own", "1"), ("cookie", "b"), ("X-OWN", "2")]);
        check(&map, &[("cookie", "a"), ("x-own", "1"), ("cookie", "b"), ("x-own", "2")]);
        let own = HeaderName::new("x-own").unwrap();
        assert_eq!(map.get(&own), Some(b"1".as_slice()));
        assert_eq!(map.get_all(&own).collect::<Vec<_>>(), [b"1", b"2"]);
        assert_eq!(map.get_known(Known::Cookie), Some(b"a".as_slice()));
        assert_eq!(map.get_all_known(Known::Cookie).collect::<Vec<_>>(), [b"a", b"b"]);
        assert_eq!(map.get_known(Known::Host), None);
        assert_eq!(map.get(&HeaderName::new("x-other").unwrap()), None);
    }

    #[test]
    fn set_replaces_the_first_and_removes_the_others() {
        let own = HeaderName::new("x-own").unwrap();
        let mut map = map(&[("x-own", "1"), ("via", "a"), ("x-own", "2"), ("via", "b")]);
        map.set(&own, b"3");
        map.set_known(Known::Via, b"c");
        check(&map, &[("x-own", "3"), ("via", "c")]);
        map.set_known(Known::Date, b"now");
        map.set(&HeaderName::new("x-new").unwrap(), b"");
        check(&map, &[("x-own", "3"), ("via", "c"), ("date", "now"), ("x-new", "")]);
    }

    #[test]
    fn removed_fields_can_come_again() {
        let own = HeaderName::new("x-own").unwrap();
        let mut map = map(&[("x-own", "1"), ("via", "a"), ("x-own", "2")]);
        assert!(map.remove(&own));
        assert!(!map.remove(&own));
        assert!(map.remove_known(Known::Via));
        assert!(!map.remove_known(Known::Via));
        check(&map, &[]);
        map.append_known(Known::Via, b"b");
        map.append(&own, b"3");
        check(&map, &[("via", "b"), ("x-own", "3")]);
        map.retain(|name, _| name == b"via");
        check(&map, &[("via", "b")]);
        map.clear();
        assert_eq!(map.get_known(Known::Via), None);
        check(&map, &[]);
    }
}
