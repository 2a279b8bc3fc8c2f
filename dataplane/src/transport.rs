//! A connection's bytes, plain or under TLS: what the HTTP codec and the TCP proxy read and write on both sides.
//!
//! The calls are those of [`Socket`], and a plain connection costs one branch more. Bytes counted and queued are those of
//! the wire; chunks received and parts written are always the application's.

use std::future;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use torus_ring::{Chunk, Nanos, Part, PeerAddr, Socket};

use crate::tls::{Identity, TlsSession};

/// A connection to a client or an endpoint.
pub enum Transport {
    /// Bytes as they are on the wire.
    Plain(Socket),
    /// Bytes in TLS records.
    Tls(Box<TlsSession>),
}

/// What a TLS handshake established.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsInfo {
    /// The application protocol that both sides agreed on (RFC 7301), for instance `h2`.
    pub alpn: Option<Arc<[u8]>>,
    /// The server name that the client asked for (RFC 6066 §3).
    pub server_name: Option<Arc<str>>,
    /// `TLSv1.2`, `TLSv1.3`; empty before the handshake is complete.
    pub version: &'static str,
    /// The cipher suite as BoringSSL calls it.
    pub cipher: &'static str,
    /// The key-exchange group as BoringSSL calls it.
    pub group: &'static str,
    /// The session was resumed.
    pub is_resumed: bool,
    /// The peer's certificate was checked and proves who it is.
    pub is_verified: bool,
    /// Who the peer says it is.
    pub peer: Option<Arc<Identity>>,
    /// Who we say we are.
    pub local: Option<Arc<Identity>>,
}

impl From<Socket> for Transport {
    fn from(socket: Socket) -> Self {
        Self::Plain(socket)
    }
}

impl Transport {
    /// What the handshake established; `None` without TLS.
    pub fn tls(&self) -> Option<&Arc<TlsInfo>> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(session) => Some(session.info()),
        }
    }

    /// Whether a TLS handshake is to be completed before anything else.
    pub fn is_handshaking(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            Self::Tls(session) => session.is_handshaking(),
        }
    }

    /// The protocol that was agreed on by ALPN.
    pub fn alpn(&self) -> Option<&[u8]> {
        self.tls()?.alpn.as_deref()
    }

    /// Ready with the next received chunk, or `None` at the end of the peer's side.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Chunk>>> {
        match self {
            Self::Plain(socket) => socket.poll_recv(cx),
            Self::Tls(session) => session.poll_recv(cx),
        }
    }

    /// The next received chunk, or `None` at the end of the peer's side.
    pub async fn recv(&mut self) -> io::Result<Option<Chunk>> {
        future::poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// Puts a chunk back: the next receive returns it first.
    pub fn unread(&mut self, chunk: Chunk) {
        match self {
            Self::Plain(socket) => socket.unread(chunk),
            Self::Tls(session) => session.unread(chunk),
        }
    }

    /// Whether bytes, the end of the peer's side or an error wait to be received.
    pub fn has_received(&mut self) -> bool {
        match self {
            Self::Plain(socket) => socket.has_received(),
            Self::Tls(session) => session.has_received(),
        }
    }

    /// Queues a part. All parts of a turn leave in one send at its end.
    pub fn write(&mut self, part: impl Into<Part>) {
        match self {
            Self::Plain(socket) => socket.write(part),
            Self::Tls(session) => session.write(&part.into()),
        }
    }

    /// Bytes written and not yet sent.
    pub fn queued_bytes(&self) -> usize {
        self.socket().queued_bytes()
    }

    /// Ready once at most so many bytes wait to be sent; an error when the peer is gone.
    pub fn poll_drained(&mut self, cx: &mut Context<'_>, at_most_queued: usize) -> Poll<io::Result<()>> {
        self.socket_mut().poll_drained(cx, at_most_queued)
    }

    /// Completes once at most so many bytes wait to be sent.
    pub async fn drained(&mut self, at_most_queued: usize) -> io::Result<()> {
        future::poll_fn(|cx| self.poll_drained(cx, at_most_queued)).await
    }

    /// When bytes last left, or when the queue last began to fill.
    pub fn last_write_progress(&self) -> Nanos {
        self.socket().last_write_progress()
    }

    /// Bytes received over the connection's life.
    pub fn bytes_received(&self) -> u64 {
        self.socket().bytes_received()
    }

    /// Bytes sent over the connection's life.
    pub fn bytes_sent(&self) -> u64 {
        self.socket().bytes_sent()
    }

    /// Ends our side once everything written has been sent; under TLS a close_notify goes first (RFC 8446 §6.1).
    pub fn shutdown_write(&mut self) {
        match self {
            Self::Plain(socket) => socket.shutdown_write(),
            Self::Tls(session) => session.shutdown_write(),
        }
    }

    /// Sends what was written, ends our side and hears the peer out for at most `linger` (see
    /// [`Socket::close_gracefully`]); under TLS a close_notify goes first.
    pub fn close_gracefully(self, linger: Duration) {
        match self {
            Self::Plain(socket) => socket.close_gracefully(linger),
            Self::Tls(session) => session.close_gracefully(linger),
        }
    }

    /// Closes at once with a reset.
    pub fn abort(self) {
        match self {
            Self::Plain(socket) => socket.abort(),
            Self::Tls(session) => session.abort(),
        }
    }

    /// Leaves an idle connection to the ring (see [`Socket::park`]).
    pub fn park(&mut self, token: u64) {
        self.socket_mut().park(token);
    }

    /// Takes a parked connection back.
    pub fn unpark(&mut self) {
        self.socket_mut().unpark();
    }

    /// The peer's address.
    pub fn peer_addr(&self) -> io::Result<PeerAddr> {
        self.socket().peer_addr()
    }

    /// Our address.
    pub fn local_addr(&self) -> io::Result<PeerAddr> {
        self.socket().local_addr()
    }

    /// See [`Socket::original_destination`].
    pub fn original_destination(&self) -> Option<PeerAddr> {
        self.socket().original_destination()
    }

    fn socket(&self) -> &Socket {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(session) => &session.socket,
        }
    }

    fn socket_mut(&mut self) -> &mut Socket {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(session) => &mut session.socket,
        }
    }
}
