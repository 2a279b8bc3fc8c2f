//! The backend's end of one exchange: an HTTP/1.1 connection, or one stream of an HTTP/2 connection. What an exchange does with it is
//! the same; how it is written is said here, once.

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use torus_codec::{
    BodyLength, ConnectionToken, EncodeOptions, HeaderMap, Known, Limits, NameCase, RequestMethod, ResponseHead,
};
use torus_ring::Ring;

use super::connection::Upstream;
use super::http2::{Http2Upstream, SendHeadError};
use crate::config::address::Address;
use crate::transport::TlsInfo;
use crate::wire::{BodyData, BodyError, BodyEvent, BodyWriter, HeadError};

/// The upstream of an attempt.
pub enum UpstreamStream<'a> {
    /// A connection that carries one exchange at a time.
    Http1(&'a mut Upstream),
    /// A stream among others.
    Http2(&'a mut Http2Upstream),
}

/// The upstream takes no more.
pub struct UpstreamGone;

impl UpstreamStream<'_> {
    /// The connection's number on this core.
    pub fn id(&self) -> u64 {
        match self {
            Self::Http1(upstream) => upstream.id,
            Self::Http2(stream) => stream.id(),
        }
    }

    /// Our end of the connection.
    pub fn local(&self) -> Option<Address> {
        match self {
            Self::Http1(upstream) => upstream.local.clone(),
            Self::Http2(stream) => stream.local(),
        }
    }

    /// What the connection's TLS handshake established; `None` without TLS.
    pub fn tls(&self) -> Option<Arc<TlsInfo>> {
        match self {
            Self::Http1(upstream) => upstream.socket.tls().cloned(),
            Self::Http2(stream) => stream.tls(),
        }
    }

    /// `UPSTREAM_PROTOCOL`
    pub fn protocol(&self) -> &'static str {
        match self {
            Self::Http1(_) => "HTTP/1.1",
            Self::Http2(_) => "HTTP/2",
        }
    }

    /// Whether trailers pass to and from this upstream: over HTTP/1.1 only where the cluster's `enable_trailers` says so.
    pub fn takes_trailers(&self, http1_trailers: bool) -> bool {
        http1_trailers || matches!(self, Self::Http2(_))
    }

    /// Ready when it is known whether a request that asks for an upgrade may be sent here.
    pub fn poll_takes_upgrade(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        match self {
            Self::Http1(_) => Poll::Ready(true),
            Self::Http2(stream) => stream.poll_takes_protocol(cx),
        }
    }

    /// Whether it is a stream among others.
    pub fn is_http2(&self) -> bool {
        matches!(self, Self::Http2(_))
    }

    /// Sends the request's head. Bytes of it.
    pub fn send_head(
        &mut self,
        ring: &Ring,
        headers: &HeaderMap,
        body: BodyLength,
        token: ConnectionToken,
        options: &EncodeOptions,
    ) -> Result<usize, SendHeadError> {
        match self {
            Self::Http1(upstream) => {
                let mut buffer = ring.buffer();
                torus_codec::encode_request_head(headers, body, token, options, &mut buffer)?;
                let head_bytes = buffer.len();
                upstream.socket.write(buffer);
                Ok(head_bytes)
            }
            // Only an HTTP/1.1 connection is switched by `upgrade` (RFC 9113 §8.6).
            Self::Http2(stream) => {
                let protocol = headers.get_known(Known::Upgrade).filter(|_| token == ConnectionToken::Upgrade);
                stream.send_head(headers, body, protocol)
            }
        }
    }

    /// Ready when the request's next piece may be sent.
    pub fn poll_writable(
        &mut self,
        ring: &Ring,
        queued_bytes_max: usize,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), UpstreamGone>> {
        match self {
            Self::Http1(upstream) if upstream.socket.queued_bytes() <= queued_bytes_max => Poll::Ready(Ok(())),
            Self::Http1(upstream) => {
                upstream.socket.poll_drained(cx, queued_bytes_max).map(|drained| drained.map_err(|_| UpstreamGone))
            }
            Self::Http2(stream) => match stream.sender() {
                Some(sender) => sender.poll_ready(ring.now(), cx).map(|ready| ready.map_err(|_| UpstreamGone)),
                None => Poll::Ready(Err(UpstreamGone)),
            },
        }
    }

    /// Sends a piece of the request's body. Bytes put onto the wire.
    pub fn send_body(&mut self, ring: &Ring, writer: BodyWriter, data: BodyData) -> usize {
        match self {
            Self::Http1(upstream) => writer.write(ring, &mut upstream.socket, data),
            Self::Http2(stream) => {
                let data_bytes = data.len();
                if let Some(sender) = stream.sender() {
                    sender.send(data, ring.now());
                }
                data_bytes
            }
        }
    }

    /// Sends a copy of `data` as body. Bytes put onto the wire.
    pub fn send_slice(&mut self, ring: &Ring, writer: BodyWriter, data: &[u8]) -> usize {
        match self {
            Self::Http1(upstream) => writer.write_slice(ring, &mut upstream.socket, data),
            Self::Http2(_) => self.send_body(ring, writer, BodyData::Bytes(Bytes::copy_from_slice(data))),
        }
    }

    /// Ends the request's body. Bytes put onto the wire.
    pub fn finish_body(&mut self, ring: &Ring, writer: BodyWriter, trailers: &HeaderMap, case: NameCase) -> usize {
        match self {
            Self::Http1(upstream) => writer.finish(ring, &mut upstream.socket, trailers, case),
            Self::Http2(stream) => {
                if let Some(sender) = stream.sender() {
                    sender.finish(trailers);
                }
                trailers.byte_count()
            }
        }
    }

    /// Moves what waits for the upstream's window after the body was ended.
    pub fn poll_flush(&mut self, ring: &Ring, cx: &mut Context<'_>) {
        if let Self::Http2(stream) = self
            && let Some(sender) = stream.sender()
            && sender.is_blocked()
        {
            // A stream that is over is noticed where the reply is awaited.
            let _ = sender.poll_ready(ring.now(), cx);
        }
    }

    /// The next response head, which is then in `response`; bytes of it.
    pub fn poll_head(
        &mut self,
        method: RequestMethod,
        limits: &Limits,
        response: &mut ResponseHead,
        cx: &mut Context<'_>,
    ) -> Poll<Result<usize, HeadError>> {
        match self {
            Self::Http1(upstream) => upstream.poll_head(method, limits, response, cx),
            Self::Http2(stream) => stream.poll_head(method, limits.header_count_max, response, cx),
        }
    }

    /// Whether a part of a head was received.
    pub fn head_is_partial(&self) -> bool {
        matches!(self, Self::Http1(upstream) if upstream.head_is_partial())
    }

    /// The next piece of the response body.
    pub fn poll_body(&mut self, trailers: &mut HeaderMap, cx: &mut Context<'_>) -> Poll<Result<BodyEvent, BodyError>> {
        match self {
            Self::Http1(upstream) => upstream.poll_body(trailers, cx),
            Self::Http2(stream) => stream.poll_body(trailers, cx),
        }
    }

    /// The protocol was switched: what is read with [`Self::poll_body`] goes on to the end of the connection.
    pub fn start_bytes(&mut self) {
        if let Self::Http1(upstream) = self {
            upstream.start_bytes();
        }
    }

    /// Ends our side after the protocol was switched.
    pub fn end_bytes(&mut self) {
        match self {
            Self::Http1(upstream) => upstream.socket.shutdown_write(),
            Self::Http2(stream) => {
                if let Some(sender) = stream.sender() {
                    sender.finish(&HeaderMap::default());
                }
            }
        }
    }

    /// Notes that the peer ended the connection.
    pub fn note_closed_by_peer(&mut self) {
        if let Self::Http1(upstream) = self {
            upstream.is_closed_by_peer = true;
        }
    }
}
