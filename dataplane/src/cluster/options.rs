//! How a cluster's connections are made and what HTTP on them looks like.

use std::net::SocketAddr;
use std::time::Duration;

use torus_codec::Version;

use crate::config::snapshot::{RawSocketOption, TcpKeepalive};
use crate::downstream::HeaderCase;
use crate::wire::http2::Http2Options;

/// HTTP on upstream connections; `None` is off or unlimited.
/// Source: envoy.extensions.upstreams.http.v3.HttpProtocolOptions and the older fields of Cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamHttp {
    /// Connection without a request. 1 h unless configured.
    pub idle_timeout: Option<Duration>,
    /// Age of a connection.
    pub max_connection_duration: Option<Duration>,
    /// Requests on one connection before it is closed.
    pub requests_per_connection_max: Option<u32>,
    /// Bytes of status line and fields that a response head may have. 80 KiB unless configured.
    pub header_bytes_max: u32,
    /// Fields that a response head may have. 100 unless configured.
    pub header_count_max: u32,
    /// Age of a request.
    pub max_stream_duration: Option<Duration>,
    /// Which version of HTTP its connections speak.
    pub protocol: UpstreamProtocol,
    /// HTTP/1.1 details.
    pub http1: UpstreamHttp1,
    /// HTTP/2 details.
    pub http2: Http2Options,
}

/// Which version of HTTP a cluster's connections speak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UpstreamProtocol {
    #[default]
    Http1,
    Http2,
    /// That of the request.
    SameAsDownstream,
    /// The endpoint chooses in the TLS handshake.
    ByAlpn,
}

impl UpstreamProtocol {
    /// Whether a request that came in `version` goes on over HTTP/2; `None` where the endpoint chooses.
    pub fn is_http2_for(self, version: Version) -> Option<bool> {
        match self {
            Self::Http1 => Some(false),
            Self::Http2 => Some(true),
            Self::SameAsDownstream => Some(version == Version::Http2),
            Self::ByAlpn => None,
        }
    }
}

impl Default for UpstreamHttp {
    fn default() -> Self {
        Self {
            idle_timeout: Some(Duration::from_secs(3600)),
            max_connection_duration: None,
            requests_per_connection_max: None,
            header_bytes_max: 80 * 1024,
            header_count_max: 100,
            max_stream_duration: None,
            protocol: UpstreamProtocol::default(),
            http1: UpstreamHttp1::default(),
            http2: Http2Options::default(),
        }
    }
}

/// HTTP/1.1 on upstream connections. Source: envoy.config.core.v3.Http1ProtocolOptions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UpstreamHttp1 {
    /// How names are written on requests.
    pub header_case: HeaderCase,
    /// Forward trailers of requests and take those of responses instead of dropping them.
    pub enable_trailers: bool,
    /// Tolerate `Content-Length` beside `Transfer-Encoding: chunked` on responses.
    pub allow_chunked_length: bool,
    /// Write the absolute form of the target.
    pub send_fully_qualified_url: bool,
}

/// How sockets to a cluster's hosts are made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UpstreamConnectOptions {
    /// Address to connect from. Source: BindConfig.source_address.
    pub source: Option<SocketAddr>,
    /// Addresses to connect from for hosts of the other family. Source: BindConfig.extra_source_addresses.
    pub extra_sources: Vec<SocketAddr>,
    /// `IP_FREEBIND` on the source address.
    pub freebind: bool,
    /// Keep-alive probes. Source: UpstreamConnectionOptions.tcp_keepalive.
    pub keepalive: Option<TcpKeepalive>,
    /// Raw options set before connecting.
    pub raw: Vec<RawSocketOption>,
}

impl UpstreamConnectOptions {
    /// The address to connect from: the first configured one of the target's family; where none is, the first at all, so
    /// that connecting fails rather than leaves from an address that nobody chose.
    pub fn source_for(&self, target: SocketAddr) -> Option<SocketAddr> {
        let mut sources = self.source.iter().chain(&self.extra_sources);
        sources.find(|source| source.is_ipv4() == target.is_ipv4()).copied().or(self.source)
    }
}
