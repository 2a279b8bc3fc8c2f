//! What the configuration says about HTTP/2. Source: envoy.config.core.v3.Http2ProtocolOptions.

use std::time::Duration;

use super::FrameLimits;

/// Options of an HTTP/2 connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Http2Options {
    /// Bytes of the table with which the peer may compress fields (`hpack_table_size`).
    pub header_table_bytes: u32,
    /// Streams that the peer may have open at once, or that we open on one connection.
    pub streams_max: u32,
    /// Bytes that a peer may send on one stream before they are taken.
    pub stream_window_bytes: u32,
    /// Bytes that a peer may send on all streams together before they are taken.
    pub connection_window_bytes: u32,
    /// What the peer may send besides.
    pub frames: FrameLimits,
    /// Take CONNECT with a protocol (`allow_connect`, RFC 8441 §3); only what clients send is asked for it.
    pub takes_protocols: bool,
    /// How the peer is asked whether it is still there.
    pub keepalive: Option<KeepaliveOptions>,
}

impl Default for Http2Options {
    /// 100 streams, 256 KiB for a stream and 1 MiB for a connection: what a peer can make us hold stays small (RFC 9113 §10.5).
    fn default() -> Self {
        Self {
            header_table_bytes: 4_096,
            streams_max: 100,
            stream_window_bytes: 256 * 1024,
            connection_window_bytes: 1024 * 1024,
            frames: FrameLimits::default(),
            takes_protocols: false,
            keepalive: None,
        }
    }
}

/// When a PING is sent and how long its answer may take. Source: envoy.config.core.v3.KeepaliveSettings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeepaliveOptions {
    /// Time between two PINGs.
    pub interval: Duration,
    /// Time for the answer.
    pub timeout: Duration,
    /// So much of the interval, in percent, is added at random.
    pub jitter_percent: u32,
}
