//! The client's side: the HTTP connection manager's configuration, its header rules, and the connection itself.

pub mod connection;
pub mod edge;
pub mod http2;
pub mod request_id;
pub mod tcp;

use std::cell::Cell;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use torus_codec::RequestOptions;
pub use torus_codec::path::EscapedSlashes;

use crate::config::address::Address;
use crate::listener::chain_match::ChainIndex;
use crate::listener::proxy_protocol::Tlv;
use crate::route::RouteTable;
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::counters::{Core, Stats};
use crate::telemetry::names::{Http1Stat, Http2Stat, HttpStat, ListenerHttpStat, ResponseClass};
use crate::transport::TlsInfo;
use crate::wire::http2::Http2Options;

/// The HTTP connection manager, parsed.
/// Source: envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.
pub struct HttpConnectionManager {
    /// `http.<stat_prefix>.`
    pub stat_prefix: Box<str>,
    /// Counters under that prefix.
    pub stats: Arc<Stats<HttpStat>>,
    /// Response codes under `listener.<address>.http.<stat_prefix>.`
    pub listener_stats: Arc<Stats<ListenerHttpStat>>,
    /// The codec's counters, shared by all.
    pub http1_stats: Arc<Stats<Http1Stat>>,
    /// The same for HTTP/2.
    pub http2_stats: Arc<Stats<Http2Stat>>,
    /// Which version of HTTP a connection speaks.
    pub codec: CodecType,
    /// Where requests go.
    pub routes: RouteSource,
    /// Timers of a connection and a request.
    pub timeouts: HttpTimeouts,
    /// Bytes of start line and fields that a request head may have.
    pub header_bytes_max: u32,
    /// Fields that a request head may have.
    pub header_count_max: u32,
    /// How request heads are read, limits included.
    pub request_options: RequestOptions,
    /// Requests on one connection before it is closed.
    pub requests_per_connection_max: Option<u32>,
    /// HTTP/1.1 details.
    pub http1: Http1Options,
    /// HTTP/2 details.
    pub http2: Http2Options,
    /// `server` field and how it is set on replies.
    pub server_name: Box<str>,
    /// What happens to a reply's `server` field.
    pub server_header: ServerHeader,
    /// How forwarded-for, scheme, request id, via and path are treated (see `edge`).
    pub edge: EdgeOptions,
    /// Rewrites of the proxy's own replies.
    pub local_reply: crate::route::local_reply::LocalReplyMapper,
    /// Where finished requests are logged.
    pub access_logs: Vec<AccessLog>,
    /// Log also when a request starts.
    pub log_on_new_request: bool,
    /// Log at this interval while a request lasts.
    pub log_interval: Option<Duration>,
    /// Upgrade tokens that are allowed, in lower case (`websocket`); empty refuses all.
    pub upgrades: Vec<Box<str>>,
    /// The filters before the router.
    pub filters: crate::filter::FilterChain,
    /// The router filter's options.
    pub router: RouterOptions,
    /// Whether `100-continue` is passed to the upstream instead of answered here (`proxy_100_continue`).
    pub proxy_100_continue: bool,
    /// Name for `http.<prefix>` tracing and logs; where `true`, a bad message ends the stream and not the connection.
    pub stream_error_on_invalid_message: bool,
}

/// Where a connection manager's route table is.
pub enum RouteSource {
    /// It came with the listener.
    Own(Box<RouteTable>),
    /// It is discovered, and found in the snapshot.
    Discovered(crate::config::snapshot::RouteIndex),
}

impl RouteSource {
    /// The table, unless it is discovered and did not come yet.
    #[inline]
    pub fn table<'a>(&'a self, snapshot: &'a crate::config::snapshot::Snapshot) -> Option<&'a RouteTable> {
        match self {
            Self::Own(table) => Some(table),
            Self::Discovered(index) => snapshot.route_table(*index),
        }
    }
}

/// Which version of HTTP a client's connection speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CodecType {
    /// HTTP/2 where the connection begins with its preface (RFC 9113 §3.3), HTTP/1.1 otherwise.
    #[default]
    Auto,
    Http1,
    Http2,
}

impl HttpConnectionManager {
    /// Counts a finished request and its reply.
    pub fn count_reply(&self, core: Core, status: u16, elapsed: Duration) {
        self.stats.record(core, HttpStat::DownstreamRqTime, elapsed.as_millis() as u64);
        if status == 0 {
            return;
        }
        self.stats.increment(core, HttpStat::DownstreamRqCompleted);
        self.listener_stats.increment(core, ListenerHttpStat::DownstreamRqCompleted);
        if let Some(class) = HttpStat::response_class(status) {
            self.stats.increment(core, class);
        }
        if let Some(class) = ListenerHttpStat::response_class(status) {
            self.listener_stats.increment(core, class);
        }
    }
}

/// Timers; `None` is off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HttpTimeouts {
    /// Whole head, from its first byte. 10 s by default (Envoy: off).
    pub request_headers: Option<Duration>,
    /// Whole request, from its first byte to its last.
    pub request: Option<Duration>,
    /// No byte in either direction of a request. 5 min.
    pub stream_idle: Option<Duration>,
    /// Connection without a request. 1 h.
    pub idle: Option<Duration>,
    /// Age of a connection.
    pub connection_duration_max: Option<Duration>,
    /// A connection that is too old is asked to close with its next reply and not cut off after the drain time
    /// (`http1_safe_max_connection_duration`).
    pub connection_duration_waits: bool,
    /// Age of a request.
    pub stream_duration_max: Option<Duration>,
    /// Time between announcing the end of a connection and closing it.
    pub drain: Duration,
    /// Time that a client gets to read the last reply before the socket closes.
    pub delayed_close: Duration,
    /// No byte accepted by the client although some wait. 30 s (Envoy: the stream idle timeout).
    pub write_progress: Option<Duration>,
}

/// HTTP/1.1 options of a downstream connection. Source: envoy.config.core.v3.Http1ProtocolOptions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Http1Options {
    /// Serve HTTP/1.0 requests instead of answering 426.
    pub accept_http_10: bool,
    /// `:authority` of an HTTP/1.0 request without `host`.
    pub default_host: Option<Box<str>>,
    /// How names are written on replies.
    pub header_case: HeaderCase,
    /// Forward trailers instead of dropping them.
    pub enable_trailers: bool,
    /// Whether `Content-Length` beside `Transfer-Encoding: chunked` is tolerated; always refused here unless set.
    pub allow_chunked_length: bool,
    /// Take a target in absolute form (RFC 9112 §3.2.2).
    pub allow_absolute_url: bool,
    /// Take methods that Envoy does not know.
    pub allow_custom_methods: bool,
}

impl Default for Http1Options {
    fn default() -> Self {
        Self {
            accept_http_10: false,
            default_host: None,
            header_case: HeaderCase::default(),
            enable_trailers: false,
            allow_chunked_length: false,
            allow_absolute_url: true,
            allow_custom_methods: false,
        }
    }
}

pub use torus_codec::{NameCase as HeaderCase, Underscores as UnderscoreAction};

/// What happens to a reply's `server` field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ServerHeader {
    #[default]
    Overwrite,
    AppendIfAbsent,
    PassThrough,
}

/// Options of the router filter. Source: envoy.extensions.filters.http.router.v3.Router.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouterOptions {
    /// Keep `x-envoy-*` fields out of requests and replies.
    pub suppress_envoy_headers: bool,
    /// Count every status code in a stat of its own. On by default.
    pub dynamic_stats: bool,
    /// Trust `x-envoy-expected-rq-timeout-ms` from the downstream.
    pub respect_expected_timeout: bool,
    /// Names of `x-envoy-*` request fields whose bad values answer 400.
    pub strict_check_headers: Vec<torus_codec::HeaderName>,
}

/// How a request's origin, scheme, id and path are established. The rules are in `edge.rs`.
#[derive(Clone, Debug, Default)]
pub struct EdgeOptions {
    /// Trust the connection's address rather than `x-forwarded-for`.
    pub use_remote_address: bool,
    /// Hops in `x-forwarded-for` that are ours.
    pub trusted_hop_count: u32,
    /// Leave `x-forwarded-for` as it came.
    pub skip_forwarded_for_append: bool,
    /// Add `x-forwarded-port`.
    pub append_forwarded_port: bool,
    /// Added to `via` in both directions.
    pub via: Box<str>,
    /// Make `x-request-id` where there is none.
    pub generate_request_id: bool,
    /// Keep the client's `x-request-id` at the edge.
    pub preserve_external_request_id: bool,
    /// The digit of a kept `x-request-id` that would have it traced is reset at the edge (`pack_trace_reason`).
    pub reset_trace_reason: bool,
    /// Put `x-request-id` on replies.
    pub request_id_in_response: bool,
    /// Addresses that count as internal; none unless configured, as in Envoy since CVE-2024-45806.
    pub internal_ranges: Vec<crate::config::cidr::Cidr>,
    /// Unix socket peers count as internal.
    pub unix_sockets_internal: bool,
    /// RFC 3986 dot segments and percent-encoded letters.
    pub normalize_path: bool,
    /// `//` becomes `/`.
    pub merge_slashes: bool,
    /// `%2F`, `%5C` in a path.
    pub escaped_slashes: EscapedSlashes,
    /// Which port is removed from `:authority`.
    pub strip_port: StripPort,
    /// `host.` becomes `host`.
    pub strip_trailing_dot: bool,
    /// `:scheme` is overwritten with this.
    pub scheme_overwrite: Option<Box<str>>,
    /// `:scheme` becomes that of the upstream connection, just before the request goes there.
    pub scheme_match_upstream: bool,
    /// What happens to field names with `_`.
    pub underscores: UnderscoreAction,
    /// Goes to `x-forwarded-for` where the peer is the loopback address: this machine's own address, as in Envoy.
    pub local_ip: Option<IpAddr>,
    /// Names this proxy in `user-agent` and `x-envoy-downstream-service-*` (`add_user_agent`).
    pub user_agent: Option<UserAgent>,
    /// What happens to `x-forwarded-client-cert`.
    pub forward_client_cert: edge::ForwardClientCert,
    /// Which parts of a client's certificate it tells.
    pub client_cert_details: edge::ClientCertDetails,
}

/// What `add_user_agent` writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserAgent {
    /// `node.cluster`, to `x-envoy-downstream-service-cluster` and to `user-agent` where the request has none.
    pub cluster: Box<str>,
    /// `node.id`, to `x-envoy-downstream-service-node`.
    pub node: Box<str>,
}

/// Which port is removed from `:authority` before routing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StripPort {
    #[default]
    Keep,
    Matching,
    Any,
}

/// What is known of a client's connection before its first request.
#[derive(Clone, Debug)]
pub struct ConnectionInfo {
    /// Counted from 1 in this process.
    pub id: u64,
    /// The other end of the socket.
    pub direct_remote: Address,
    /// The client: the other end of the socket, or whom a PROXY header names.
    pub remote: Address,
    /// Where the client connected to: our end of the socket, or what a listener filter found out.
    pub local: Address,
    /// A listener filter found `local` out.
    pub is_restored: bool,
    /// The server name in a ClientHello that tls_inspector saw.
    pub inspected_name: Option<Arc<str>>,
    /// Facts of a PROXY header that go on to endpoints.
    pub tlvs: Option<Arc<[Tlv]>>,
    /// The filter chain that serves it; `None` until it is chosen.
    pub chain: Option<ChainIndex>,
    /// TLS ends here.
    pub secure: bool,
    /// What the handshake established, once it is complete.
    pub tls: Option<Arc<TlsInfo>>,
    /// When the client was last found to be believed, in the count of its [`crate::tls::ServerTls`].
    pub trust_epoch: Cell<u64>,
}

impl ConnectionInfo {
    /// What is known of a connection that was just accepted.
    pub fn new(direct_remote: Address, local: Address) -> Self {
        Self {
            id: 0,
            remote: direct_remote.clone(),
            direct_remote,
            local,
            is_restored: false,
            inspected_name: None,
            tlvs: None,
            chain: None,
            secure: false,
            tls: None,
            trust_epoch: Cell::new(0),
        }
    }

    /// The server name that the client asked for, whether TLS ends here or passes through.
    pub fn server_name(&self) -> Option<&str> {
        self.tls.as_ref().and_then(|tls| tls.server_name.as_deref()).or(self.inspected_name.as_deref())
    }
}
