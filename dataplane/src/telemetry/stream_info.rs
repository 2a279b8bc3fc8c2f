//! The facts of one request, filled while it runs; read by access logs, header formats and statistics.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::config::address::Address;
use crate::transport::TlsInfo;

/// Everything that is known of one request. Reused from request to request; strings keep their memory.
#[derive(Default)]
pub struct StreamInfo {
    /// Wall clock when the first byte of the request arrived.
    pub start: Option<SystemTime>,
    /// Since start: last byte of the request received.
    pub request_complete: Option<Duration>,
    /// Since start: first byte of the request sent upstream.
    pub upstream_first_sent: Option<Duration>,
    /// Since start: last byte of the request sent upstream.
    pub upstream_last_sent: Option<Duration>,
    /// Since start: first byte of the reply received from upstream.
    pub upstream_first_received: Option<Duration>,
    /// Since start: last byte of the reply received from upstream.
    pub upstream_last_received: Option<Duration>,
    /// Since start: first byte of the reply sent to the client.
    pub downstream_first_sent: Option<Duration>,
    /// Since start: last byte of the reply sent to the client.
    pub downstream_last_sent: Option<Duration>,
    /// Since start: the request's end.
    pub complete: Option<Duration>,
    /// Request body bytes received, chunk framing not counted (`BYTES_RECEIVED`).
    pub body_bytes_received: u64,
    /// Reply body bytes sent (`BYTES_SENT`).
    pub body_bytes_sent: u64,
    /// Request head bytes received.
    pub header_bytes_received: u64,
    /// Reply head bytes sent.
    pub header_bytes_sent: u64,
    /// Request head bytes sent upstream.
    pub upstream_header_bytes_sent: u64,
    /// Reply head bytes received from upstream.
    pub upstream_header_bytes_received: u64,
    /// Bytes received from the client, all.
    pub downstream_wire_bytes_received: u64,
    /// Bytes sent to the client, all.
    pub downstream_wire_bytes_sent: u64,
    /// Bytes received from the upstream, all.
    pub upstream_wire_bytes_received: u64,
    /// Bytes sent to the upstream, all.
    pub upstream_wire_bytes_sent: u64,
    /// `HTTP/1.1`, `HTTP/1.0`.
    pub protocol: Option<&'static str>,
    /// Protocol spoken to the upstream.
    pub upstream_protocol: Option<&'static str>,
    /// Status of the reply; 0 where there was none.
    pub response_code: u16,
    /// Envoy's `RESPONSE_CODE_DETAILS`, for instance `via_upstream`.
    pub response_code_details: String,
    /// Why the connection ended, if the proxy ended it.
    pub connection_termination_details: Option<&'static str>,
    /// What went wrong.
    pub flags: ResponseFlags,
    /// Name of the matched route; empty where it has none.
    pub route_name: String,
    /// Name of the matched virtual host.
    pub virtual_host_name: String,
    /// Name of the virtual cluster; empty where none matched.
    pub virtual_cluster_name: String,
    /// Name of the chosen cluster (`alt_stat_name` or name); empty where none was.
    pub cluster_name: String,
    /// The chosen endpoint.
    pub upstream_host: Option<Address>,
    /// Host name of the chosen endpoint.
    pub upstream_host_name: String,
    /// Our end of the upstream connection.
    pub upstream_local: Option<Address>,
    /// Number of attempts, 0 before the first.
    pub attempt_count: u32,
    /// Why the upstream connection could not be made.
    pub upstream_transport_failure: String,
    /// Id of the upstream connection, counted from 1; 0 where none.
    pub upstream_connection_id: u64,
    /// Id of the downstream connection.
    pub connection_id: u64,
    /// The client, after `x-forwarded-for` was judged.
    pub downstream_remote: Option<Address>,
    /// The other end of the client's socket.
    pub downstream_direct_remote: Option<Address>,
    /// Our end of the client's socket.
    pub downstream_local: Option<Address>,
    /// The server name that tls_inspector saw, for connections whose TLS does not end here.
    pub inspected_name: Option<Arc<str>>,
    /// Why the handshake with the client failed.
    pub downstream_transport_failure: String,
    /// TLS with the client.
    pub downstream_tls: Option<Arc<TlsInfo>>,
    /// TLS with the upstream of the last attempt.
    pub upstream_tls: Option<Arc<TlsInfo>>,
    /// Name of the filter chain.
    pub filter_chain_name: String,
    /// Name of the listener.
    pub listener_name: String,
    /// Every endpoint tried, in order; where empty, formats take `upstream_host`.
    pub hosts_attempted: Vec<Address>,
    /// Id of every upstream connection used, in order; where empty, formats take `upstream_connection_id`.
    pub connection_ids_attempted: Vec<u64>,
    /// Since start: the last upstream connection began to connect, whichever request it was made for.
    pub upstream_connect_start: Option<Duration>,
    /// Since start: it was connected.
    pub upstream_connect_end: Option<Duration>,
    /// Time to get an upstream connection, since start.
    pub upstream_connection_ready: Option<Duration>,
    /// Whether the proxy itself made the reply.
    pub local_reply: bool,
    /// Unique id of this stream (`STREAM_ID`).
    pub stream_id: u64,
    /// The request came as gRPC Web and went on as gRPC.
    pub is_grpc_web: bool,
}

impl StreamInfo {
    /// Forgets the last request and keeps the memory.
    pub fn reset(&mut self) {
        let mut fresh = Self {
            route_name: std::mem::take(&mut self.route_name),
            virtual_host_name: std::mem::take(&mut self.virtual_host_name),
            cluster_name: std::mem::take(&mut self.cluster_name),
            upstream_host_name: std::mem::take(&mut self.upstream_host_name),
            upstream_transport_failure: std::mem::take(&mut self.upstream_transport_failure),
            response_code_details: std::mem::take(&mut self.response_code_details),
            filter_chain_name: std::mem::take(&mut self.filter_chain_name),
            virtual_cluster_name: std::mem::take(&mut self.virtual_cluster_name),
            listener_name: std::mem::take(&mut self.listener_name),
            hosts_attempted: std::mem::take(&mut self.hosts_attempted),
            connection_ids_attempted: std::mem::take(&mut self.connection_ids_attempted),
            ..Self::default()
        };
        fresh.hosts_attempted.clear();
        fresh.connection_ids_attempted.clear();
        for text in [
            &mut fresh.route_name,
            &mut fresh.virtual_host_name,
            &mut fresh.cluster_name,
            &mut fresh.upstream_host_name,
            &mut fresh.upstream_transport_failure,
            &mut fresh.response_code_details,
            &mut fresh.filter_chain_name,
            &mut fresh.virtual_cluster_name,
            &mut fresh.listener_name,
        ] {
            text.clear();
        }
        *self = fresh;
    }
}

/// A set of [`ResponseFlag`] that knows in which order the flags were set, as Envoy prints them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResponseFlags {
    bits: u32,
    /// Up to eight flags, five bits each, the first one lowest.
    order: u64,
}

macro_rules! response_flags {
    ($($variant:ident = $short:literal $long:literal,)*) => {
        /// What went wrong with a request. Source: Envoy, `%RESPONSE_FLAGS%` and `%RESPONSE_FLAGS_LONG%`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum ResponseFlag { $(#[doc = $long] $variant,)* }

        impl ResponseFlag {
            /// Every flag, in the order in which Envoy prints them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The short form, for instance `UH`.
            pub const fn short(self) -> &'static str {
                match self { $(Self::$variant => $short,)* }
            }

            /// The long form, for instance `NoHealthyUpstream`.
            pub const fn long(self) -> &'static str {
                match self { $(Self::$variant => $long,)* }
            }
        }
    };
}

response_flags! {
    FailedLocalHealthCheck = "LH" "FailedLocalHealthCheck",
    NoHealthyUpstream = "UH" "NoHealthyUpstream",
    UpstreamRequestTimeout = "UT" "UpstreamRequestTimeout",
    LocalReset = "LR" "LocalReset",
    UpstreamRemoteReset = "UR" "UpstreamRemoteReset",
    UpstreamConnectionFailure = "UF" "UpstreamConnectionFailure",
    UpstreamConnectionTermination = "UC" "UpstreamConnectionTermination",
    UpstreamOverflow = "UO" "UpstreamOverflow",
    NoRouteFound = "NR" "NoRouteFound",
    DelayInjected = "DI" "DelayInjected",
    FaultInjected = "FI" "FaultInjected",
    RateLimited = "RL" "RateLimited",
    UnauthorizedExternalService = "UAEX" "UnauthorizedExternalService",
    RateLimitServiceError = "RLSE" "RateLimitServiceError",
    DownstreamConnectionTermination = "DC" "DownstreamConnectionTermination",
    UpstreamRetryLimitExceeded = "URX" "UpstreamRetryLimitExceeded",
    StreamIdleTimeout = "SI" "StreamIdleTimeout",
    InvalidEnvoyRequestHeaders = "IH" "InvalidEnvoyRequestHeaders",
    DownstreamProtocolError = "DPE" "DownstreamProtocolError",
    UpstreamMaxStreamDurationReached = "UMSDR" "UpstreamMaxStreamDurationReached",
    ResponseFromCacheFilter = "RFCF" "ResponseFromCacheFilter",
    NoFilterConfigFound = "NFCF" "NoFilterConfigFound",
    DurationTimeout = "DT" "DurationTimeout",
    UpstreamProtocolError = "UPE" "UpstreamProtocolError",
    NoClusterFound = "NC" "NoClusterFound",
    OverloadManagerTerminated = "OM" "OverloadManagerTerminated",
    DnsResolutionFailed = "DF" "DnsResolutionFailed",
    DropOverload = "DO" "DropOverload",
    DownstreamRemoteReset = "DR" "DownstreamRemoteReset",
    UnconditionalDropOverload = "UDO" "UnconditionalDropOverload",
}

impl ResponseFlags {
    /// Adds a flag.
    pub fn set(&mut self, flag: ResponseFlag) {
        if !self.has(flag) {
            self.order |= (flag as u64) << (5 * self.bits.count_ones().min(7));
            self.bits |= 1 << flag as u32;
        }
    }

    /// The flags in the order in which they were set.
    pub fn iter(self) -> impl Iterator<Item = ResponseFlag> {
        let place = move |place: u32| (self.order >> (5 * place)) as usize & 0x1f;
        (0..self.bits.count_ones().min(8)).filter_map(move |at| ResponseFlag::ALL.get(place(at)).copied())
    }

    /// Whether the flag is set.
    pub fn has(self, flag: ResponseFlag) -> bool {
        self.bits & (1 << flag as u32) != 0
    }

    /// Whether the two sets share a flag.
    pub fn intersects(self, other: Self) -> bool {
        self.bits & other.bits != 0
    }

    /// Whether no flag is set.
    pub fn is_empty(self) -> bool {
        self.bits == 0
    }
}
