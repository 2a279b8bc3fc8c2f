//! Names that the proxy knows: found by a hash whose table is made when the crate is compiled.

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
            #[inline]
            pub const fn as_str(self) -> &'static str {
                // The table is as long as the enum; a match would become a jump and not a load.
                const TEXTS: [&str; Known::ALL.len()] = [$($text,)*];
                let (_, rest) = TEXTS.split_at(self as usize);
                match rest.first() {
                    Some(text) => text,
                    None => "",
                }
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
    XEnvoyOriginalUrl = "x-envoy-original-url",
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
    #[inline]
    pub fn from_lower(name: &[u8]) -> Option<Self> {
        Self::with(&Ends::of(name), name)
    }

    /// The known id of a name, which becomes lower case.
    #[inline]
    pub(crate) fn from_wire(name: &mut [u8]) -> Option<Self> {
        let ends = Ends::of_lowered(name);
        Self::with(&ends, name)
    }

    #[inline]
    fn with(ends: &Ends, name: &[u8]) -> Option<Self> {
        let index = usize::from(*KNOWN_SLOTS.get(ends.slot(HASH_FACTOR))?);
        let known = *Self::ALL.get(index)?;
        // Two words hold all of a name of up to 16 bytes.
        let same = *KNOWN_ENDS.get(index)? == *ends && (name.len() <= 16 || known.as_str().as_bytes() == name);
        same.then_some(known)
    }

    /// The bit of this name in a set. Made of two halves: shifting 128 bits by a variable takes twice the instructions.
    #[inline]
    pub(crate) const fn bit(self) -> u128 {
        let number = self as u8;
        let half = 1_u64 << (number % 64);
        if number < 64 { half as u128 } else { (half as u128) << 64 }
    }

    /// Whether it is a pseudo-header: those come first, and an encoder writes them as something else than a field.
    #[inline]
    pub(crate) const fn is_pseudo(self) -> bool {
        self as u8 <= Self::Protocol as u8
    }
}

/// Makes the ASCII letters of a word lower case. Bytes above ASCII stay.
fn lower_word(word: u64) -> u64 {
    let ascii = word & !HIGH;
    let from_a = ascii + ONES * (0x80 - b'A' as u64);
    let after_z = ascii + ONES * (0x80 - b'Z' as u64 - 1);
    // 0x80 >> 2 is the bit between the cases.
    word | (from_a & !after_z & !word & HIGH) >> 2
}

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGH: u64 = 0x8080_8080_8080_8080;

/// The length of a name with its first and last eight bytes; a shorter one is all in `first`.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Ends {
    first: u64,
    last: u64,
    /// The eight bytes in the middle of a name that is longer than the two words.
    middle: u64,
    length: usize,
}

impl Ends {
    #[inline]
    const fn of(name: &[u8]) -> Self {
        let length = name.len();
        let (Some(first), Some(last)) = (name.first_chunk::<8>(), name.last_chunk::<8>()) else {
            return Self { first: short_word(name), last: 0, middle: 0, length };
        };
        let middle = if length > 16 { word_at(name, length / 2 - 4) } else { 0 };
        Self { first: u64::from_le_bytes(*first), last: u64::from_le_bytes(*last), middle, length }
    }

    /// Makes a name lower case on the way: its words are in registers anyway.
    #[inline]
    fn of_lowered(name: &mut [u8]) -> Self {
        let length = name.len();
        if length < 8 {
            let word = lower_word(short_word(name));
            for (place, byte) in name.iter_mut().zip(word.to_le_bytes()) {
                *place = byte;
            }
            return Self { first: word, last: 0, middle: 0, length };
        }
        // The last word overlaps the one before it, so it is read before that is written.
        let last = lower_word(name.last_chunk::<8>().map_or(0, |word| u64::from_le_bytes(*word)));
        let mut first = None;
        for word in name.as_chunks_mut::<8>().0 {
            let lowered = lower_word(u64::from_le_bytes(*word));
            *word = lowered.to_le_bytes();
            first.get_or_insert(lowered);
        }
        if let Some(word) = name.last_chunk_mut::<8>() {
            *word = last.to_le_bytes();
        }
        let middle = if length > 16 { word_at(name, length / 2 - 4) } else { 0 };
        Self { first: first.unwrap_or(0), last, middle, length }
    }

    #[inline]
    const fn slot(&self, factor: u64) -> usize {
        let mixed = self.first ^ self.last.rotate_left(23) ^ self.middle.rotate_left(41) ^ self.length as u64;
        (mixed.wrapping_mul(factor) >> (u64::BITS - SLOT_BITS)) as usize
    }
}

/// Up to seven bytes in one word, by two loads that overlap.
#[inline]
const fn short_word(name: &[u8]) -> u64 {
    if let (Some(first), Some(last)) = (name.first_chunk::<4>(), name.last_chunk::<4>()) {
        let shift = 8 * (name.len() - 4);
        return u32::from_le_bytes(*first) as u64 | (u32::from_le_bytes(*last) as u64) << shift;
    }
    let mut word = 0;
    let mut rest = name;
    while let Some((byte, before)) = rest.split_last() {
        word = word << 8 | *byte as u64;
        rest = before;
    }
    word
}

const fn word_at(name: &[u8], at: usize) -> u64 {
    match name.split_at_checked(at) {
        Some((_, rest)) => match rest.first_chunk::<8>() {
            Some(word) => u64::from_le_bytes(*word),
            None => 0,
        },
        None => 0,
    }
}

/// Where each known name hashes to: its place in [`Known::ALL`], or [`SLOT_FREE`].
static KNOWN_SLOTS: [u8; 1 << SLOT_BITS] = known_slots(HASH_FACTOR).0;

/// The ends of each known name.
#[allow(clippy::indexing_slicing, reason = "runs when the crate is compiled")]
static KNOWN_ENDS: [Ends; Known::ALL.len()] = {
    let mut all = [Ends { first: 0, last: 0, middle: 0, length: 0 }; Known::ALL.len()];
    let mut index = 0;
    while index < all.len() {
        all[index] = Ends::of(Known::ALL[index].as_str().as_bytes());
        index += 1;
    }
    all
};

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
        let slot = Ends::of(Known::ALL[index].as_str().as_bytes()).slot(factor);
        if slots[slot] != SLOT_FREE {
            return (slots, false);
        }
        slots[slot] = index as u8;
        index += 1;
    }
    (slots, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_name_is_found_and_no_other() {
        let find = |name: &[u8]| Known::ALL.iter().copied().find(|known| known.as_str().as_bytes() == name);
        for known in Known::ALL {
            let text = known.as_str();
            assert_eq!(Known::from_lower(text.as_bytes()), Some(*known));
            for end in 0..text.len() {
                assert_eq!(Known::from_lower(&text.as_bytes()[..end]), find(&text.as_bytes()[..end]));
                assert_eq!(Known::from_lower(&text.as_bytes()[end..]), find(&text.as_bytes()[end..]));
                let mut other = text.as_bytes().to_vec();
                other[end] ^= 1;
                assert_eq!(Known::from_lower(&other), find(&other));
            }
        }
    }

    #[test]
    fn every_known_name_is_found_in_upper_case() {
        for known in Known::ALL {
            assert_eq!(Known::from_wire(&mut known.as_str().to_ascii_uppercase().into_bytes()), Some(*known));
        }
    }

    #[test]
    fn pseudo_headers_come_first() {
        for known in Known::ALL {
            assert_eq!(known.is_pseudo(), known.as_str().starts_with(':'), "{known:?}");
            assert_eq!(known.bit(), 1 << *known as u8, "{known:?}");
        }
    }

    #[test]
    fn lower_case_is_the_standard_librarys() {
        for length in 0..20 {
            for place in 0..length {
                for byte in 0..=u8::MAX {
                    let mut name = vec![b'Q'; length];
                    name[place] = byte;
                    let expected = name.to_ascii_lowercase();
                    assert_eq!(Known::from_wire(&mut name), Known::from_lower(&expected));
                    assert_eq!(name, expected);
                }
            }
        }
    }
}
