//! What a message is made of besides its fields: version, body framing, limits.

use crate::HeaderMap;

/// The version that a message came in: that of its start line (RFC 9112 §2.3), or HTTP/2, which has none (RFC 9113). Others are refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    Http10,
    #[default]
    Http11,
    Http2,
}

/// How the end of a body is found (RFC 9112 §6.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BodyLength {
    /// There is no body.
    #[default]
    Empty,
    /// So many bytes follow; at least one.
    Length(u64),
    /// Chunks follow, then trailers.
    Chunked,
    /// Everything until the connection closes; responses only.
    UntilClose,
}

/// What a request's method says about the framing of its response (RFC 9112 §6.3, rules 1 and 2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RequestMethod {
    /// The response has no body, whatever its fields say.
    Head,
    /// A 2xx response turns the connection into a tunnel.
    Connect,
    #[default]
    Other,
}

impl RequestMethod {
    /// The framing class of a method; methods are case-sensitive (RFC 9110 §9.1).
    pub fn of(method: &[u8]) -> Self {
        match method {
            b"HEAD" => Self::Head,
            b"CONNECT" => Self::Connect,
            _ => Self::Other,
        }
    }
}

/// How much of a message is read before it is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a whole head, start line and line ends included.
    pub header_bytes_max: usize,
    /// Fields of a head, up to 1,024 (`max_headers_count`).
    pub header_count_max: usize,
    /// Bytes of a request target; a longer one answers 414.
    pub target_bytes_max: usize,
    /// Bytes of all chunk extensions of one message; they are read and dropped.
    pub chunk_extension_bytes_max: usize,
    /// Bytes of a trailer section.
    pub trailer_bytes_max: usize,
    /// Fields of a trailer section.
    pub trailer_count_max: usize,
    /// 1xx responses before the final one.
    pub informational_count_max: u32,
}

impl Default for Limits {
    /// Envoy's limits where it has them: 60 KiB and 100 fields.
    fn default() -> Self {
        Self {
            header_bytes_max: 60 * 1024,
            header_count_max: 100,
            target_bytes_max: 60 * 1024,
            chunk_extension_bytes_max: 4 * 1024,
            trailer_bytes_max: 60 * 1024,
            trailer_count_max: 100,
            informational_count_max: 10,
        }
    }
}

/// A request's head.
#[derive(Clone, Debug, Default)]
pub struct RequestHead {
    /// The version it came in.
    pub version: Version,
    /// `:method`, `:scheme` (absolute form only), `:authority`, `:path` (not for CONNECT), then the fields in wire order without
    /// `host` and `transfer-encoding`. `connection` and the fields it nominates are still there: see
    /// [`remove_hop_by_hop`](crate::remove_hop_by_hop).
    pub headers: HeaderMap,
    /// How its body ends.
    pub body: BodyLength,
    /// Whether the client wants the connection afterwards (RFC 9112 §9.3).
    pub keep_alive: bool,
    /// `expect: 100-continue` (RFC 9110 §10.1.1).
    pub expect_continue: bool,
    /// `connection: upgrade` with an `upgrade` other than `h2c` (RFC 9110 §7.8).
    pub upgrade: bool,
    /// Fields left out because of `_` in their name ([`Underscores::Drop`](crate::Underscores::Drop)).
    pub dropped_underscore_count: u32,
}

/// A response's head.
#[derive(Clone, Debug, Default)]
pub struct ResponseHead {
    /// The version it came in.
    pub version: Version,
    /// The status code, 100 to 999.
    pub status: u16,
    /// `:status`, then the fields in wire order without `transfer-encoding`.
    pub headers: HeaderMap,
    /// How its body ends. For 101 and for 2xx to CONNECT it is `Empty` and a tunnel follows.
    pub body: BodyLength,
    /// Whether the connection can carry another exchange (RFC 9112 §9.3).
    pub keep_alive: bool,
}

impl ResponseHead {
    /// Whether another response to the same request follows: 1xx but 101 (RFC 9110 §15.2).
    pub fn is_informational(&self) -> bool {
        self.status < 200 && self.status != 101
    }
}
