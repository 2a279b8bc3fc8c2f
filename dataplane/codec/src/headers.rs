//! The fields of one message, in wire order, in one arena that is reused from request to request.
//!
//! Pseudo-headers (`:method`, `:scheme`, `:authority`, `:path`, `:status`) are ordinary entries, as Envoy and HTTP/2 treat them;
//! the HTTP/1.1 encoder writes them as the start line and `host`. Names are stored in lower case.

/// The fields of one message. After warm-up neither reading nor changing it allocates.
#[derive(Clone, Default)]
pub struct HeaderMap {
    arena: Vec<u8>,
    entries: Vec<Entry>,
}

#[derive(Clone, Copy)]
struct Entry {
    name: Span,
    value: Span,
    known: Option<Known>,
}

#[derive(Clone, Copy)]
struct Span {
    start: u32,
    len: u32,
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
            /// The name in lower case.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
            /// The known id of a name that is already in lower case.
            pub fn from_lower(name: &[u8]) -> Option<Self> {
                $(if name == $text.as_bytes() { return Some(Self::$variant); })*
                None
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

impl HeaderName {
    /// The name in lower case, or `None` if it is no token (RFC 9110 §5.1; a leading `:` is allowed for pseudo-headers).
    pub fn new(text: &str) -> Option<Self> {
        let token = text.strip_prefix(':').unwrap_or(text);
        let valid = !token.is_empty() && token.bytes().all(is_token);
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
        self.entries.iter().map(|entry| (self.bytes(entry.name), self.bytes(entry.value)))
    }

    /// The first value of `name`.
    pub fn get(&self, name: &HeaderName) -> Option<&[u8]> {
        self.entries.iter().find(|entry| self.is_named(entry, name)).map(|entry| self.bytes(entry.value))
    }

    /// The first value of a known name.
    pub fn get_known(&self, known: Known) -> Option<&[u8]> {
        self.entries.iter().find(|entry| entry.known == Some(known)).map(|entry| self.bytes(entry.value))
    }

    /// Every value of `name`, in order.
    pub fn get_all<'a>(&'a self, name: &'a HeaderName) -> impl Iterator<Item = &'a [u8]> + 'a {
        self.entries.iter().filter(move |entry| self.is_named(entry, name)).map(|entry| self.bytes(entry.value))
    }

    /// Adds a field after the others.
    pub fn append(&mut self, name: &HeaderName, value: &[u8]) {
        let entry = Entry { known: name.known, name: self.store(name.text.as_bytes()), value: self.store(value) };
        self.entries.push(entry);
    }

    /// Adds a field with a known name after the others.
    pub fn append_known(&mut self, known: Known, value: &[u8]) {
        let entry = Entry { known: Some(known), name: self.store(known.as_str().as_bytes()), value: self.store(value) };
        self.entries.push(entry);
    }

    /// Adds a field as read from the wire; `name` is stored in lower case.
    pub fn append_wire(&mut self, name: &[u8], value: &[u8]) {
        let start = self.arena.len();
        self.arena.extend(name.iter().map(u8::to_ascii_lowercase));
        let span = Span { start: start as u32, len: name.len() as u32 };
        let known = Known::from_lower(self.bytes(span));
        let entry = Entry { known, name: span, value: self.store(value) };
        self.entries.push(entry);
    }

    /// Makes `value` the only value of `name`: the first field with that name takes it, the others go.
    pub fn set(&mut self, name: &HeaderName, value: &[u8]) {
        let value_span = self.store(value);
        let mut found = false;
        let (arena, entries) = (&self.arena, &mut self.entries);
        entries.retain_mut(|entry| {
            if !is_named(arena, entry, name.known, &name.text) {
                return true;
            }
            let first = !found;
            found = true;
            entry.value = value_span;
            first
        });
        if !found {
            let entry = Entry { known: name.known, name: self.store(name.text.as_bytes()), value: value_span };
            self.entries.push(entry);
        }
    }

    /// Makes `value` the only value of a known name.
    pub fn set_known(&mut self, known: Known, value: &[u8]) {
        let value_span = self.store(value);
        let mut found = false;
        self.entries.retain_mut(|entry| {
            if entry.known != Some(known) {
                return true;
            }
            let first = !found;
            found = true;
            entry.value = value_span;
            first
        });
        if !found {
            let entry = Entry { known: Some(known), name: self.store(known.as_str().as_bytes()), value: value_span };
            self.entries.push(entry);
        }
    }

    /// Removes every field called `name`; whether there was one.
    pub fn remove(&mut self, name: &HeaderName) -> bool {
        let before = self.entries.len();
        let arena = &self.arena;
        self.entries.retain(|entry| !is_named(arena, entry, name.known, &name.text));
        self.entries.len() != before
    }

    /// Removes every field with a known name; whether there was one.
    pub fn remove_known(&mut self, known: Known) -> bool {
        let before = self.entries.len();
        self.entries.retain(|entry| entry.known != Some(known));
        self.entries.len() != before
    }

    /// Removes every field with a known name for which `goes` holds.
    pub fn remove_all_known(&mut self, goes: impl Fn(Known) -> bool) {
        self.entries.retain(|entry| !entry.known.is_some_and(&goes));
    }

    /// Keeps the fields for which `keep(name, value)` holds.
    pub fn retain(&mut self, mut keep: impl FnMut(&[u8], &[u8]) -> bool) {
        let arena = &self.arena;
        self.entries.retain(|entry| keep(slice(arena, entry.name), slice(arena, entry.value)));
    }

    /// Joins the values of fields that come more than once and for which `joins` holds, with `,` and in order, at the place
    /// of the first (RFC 9110 §5.3). Envoy does so to every field that it keeps by name.
    pub fn join_repeated(&mut self, joins: impl Fn(Known) -> bool) {
        let (mut seen, mut repeated) = (0u128, 0u128);
        for known in self.entries.iter().filter_map(|entry| entry.known) {
            let bit = 1u128 << known as u8;
            repeated |= seen & bit;
            seen |= bit;
        }
        while repeated != 0 {
            let index = repeated.trailing_zeros() as u8;
            repeated &= repeated - 1;
            let is_it = |entry: &Entry| entry.known.is_some_and(|known| known as u8 == index);
            let Some(known) = self.entries.iter().find(|entry| is_it(entry)).and_then(|entry| entry.known) else {
                continue;
            };
            if !joins(known) {
                continue;
            }
            let start = self.arena.len();
            for entry in self.entries.iter().filter(|entry| is_it(entry)) {
                if self.arena.len() != start {
                    self.arena.push(b',');
                }
                let value = entry.value.start as usize..(entry.value.start + entry.value.len) as usize;
                self.arena.extend_from_within(value);
            }
            let joined = Span { start: start as u32, len: (self.arena.len() - start) as u32 };
            let mut first = true;
            self.entries.retain_mut(|entry| {
                if !is_it(entry) {
                    return true;
                }
                entry.value = joined;
                std::mem::take(&mut first)
            });
        }
    }

    /// Bytes of all names and values, without separators.
    pub fn byte_count(&self) -> usize {
        self.entries.iter().map(|entry| entry.name.len as usize + entry.value.len as usize).sum()
    }

    fn store(&mut self, bytes: &[u8]) -> Span {
        let start = self.arena.len() as u32;
        self.arena.extend_from_slice(bytes);
        Span { start, len: bytes.len() as u32 }
    }

    fn bytes(&self, span: Span) -> &[u8] {
        slice(&self.arena, span)
    }

    fn is_named(&self, entry: &Entry, name: &HeaderName) -> bool {
        is_named(&self.arena, entry, name.known, &name.text)
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

fn is_named(arena: &[u8], entry: &Entry, known: Option<Known>, text: &str) -> bool {
    match (entry.known, known) {
        (Some(a), Some(b)) => a == b,
        (None, None) => slice(arena, entry.name) == text.as_bytes(),
        _ => false,
    }
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
