//! One TLS connection over a ring socket: records in from leased chunks, records out into the ring's write buffers.
//!
//! ```text
//! handshaking --complete--> open --close_notify received--> peer closed
//!      \-----any error-----> failed (an alert was queued)
//! ```

use std::future;
use std::io::{self, BufRead as _, Write as _};
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use rustls::{CertificateError, Connection, Error, HandshakeKind, ProtocolVersion};
use thiserror::Error as ThisError;
use torus_ring::{Chunk, Part, Ring, Socket};

use super::identity::Identity;
use super::names;
use super::server::take_chosen;
use super::validate::NameMismatch;
use crate::transport::TlsInfo;

/// Why a TLS connection could not be set up or kept.
#[derive(Clone, Debug, ThisError)]
pub enum TlsError {
    /// A rule of the protocol or of the certificate check; the peer was sent the alert that says so.
    #[error("{}", text(.0))]
    Protocol(Error),
    /// The socket failed.
    #[error("{0:?}")]
    Io(io::ErrorKind),
    /// The peer ended the connection without a word.
    #[error("the peer closed the connection during the handshake")]
    Closed,
    /// The handshake took too long.
    #[error("the handshake took too long")]
    Late,
    /// The certificate, or what the peer is judged by, has not come.
    #[error("Secret is not supplied by SDS")]
    NotReady,
}

impl TlsError {
    /// As Envoy's logs frame it: the words of the TLS library between marks.
    pub fn reason(&self) -> String {
        format!("TLS_error:|{self}:TLS_error_end")
    }

    /// Whether the peer's certificate, or the lack of one, is the reason.
    pub fn certificate(&self) -> Option<CertificateFault> {
        match self {
            Self::Protocol(Error::NoCertificatesPresented) => Some(CertificateFault::Missing),
            Self::Protocol(Error::InvalidCertificate(error)) => Some(match error {
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                    CertificateFault::Name
                }
                error if NameMismatch::is_in(error) => CertificateFault::Name,
                CertificateError::ApplicationVerificationFailure => CertificateFault::Pin,
                _ => CertificateFault::Chain,
            }),
            Self::Protocol(_) | Self::Io(_) | Self::Closed | Self::Late | Self::NotReady => None,
        }
    }
}

/// What rustls says, with the words of our own checks in place of their type.
fn text(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(CertificateError::Other(other)) => format!("invalid peer certificate: {}", other.0),
        error => error.to_string(),
    }
}

/// What is wrong with a peer's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CertificateFault {
    /// None was sent where one is required.
    Missing,
    /// No chain to an authority, revoked, or out of its validity.
    Chain,
    /// No name matches.
    Name,
    /// It is none of the pinned ones.
    Pin,
}

/// A TLS connection and its socket.
pub struct TlsSession {
    pub(crate) socket: Socket,
    ring: Ring,
    connection: Connection,
    /// Received records that were not taken in yet.
    input: Option<Chunk>,
    /// Plaintext put back; the last one put back comes first.
    unread: Vec<Chunk>,
    /// Plaintext that waits in `connection`.
    plain_bytes: usize,
    peer_has_closed: bool,
    failed: Option<TlsError>,
    info: Arc<TlsInfo>,
    /// Whether an accepted certificate of the peer proves who it is.
    proves_identity: bool,
    /// Who we said to be.
    local: Option<Arc<Identity>>,
    /// When the client was judged, in the context's count.
    trust_epoch: u64,
}

impl TlsSession {
    /// A session whose handshake has not begun.
    pub(super) fn new(socket: Socket, ring: &Ring, mut connection: Connection, proves_identity: bool) -> Self {
        // What is written goes to the socket's queue at once, which the callers keep small.
        connection.set_buffer_limit(None);
        let mut session = Self {
            socket,
            ring: ring.clone(),
            connection,
            input: None,
            unread: Vec::new(),
            plain_bytes: 0,
            peer_has_closed: false,
            failed: None,
            info: Arc::default(),
            proves_identity,
            local: None,
            trust_epoch: 0,
        };
        session.flush();
        session
    }

    /// Says who we are, for formats and headers.
    pub(super) fn set_local(&mut self, local: Option<Arc<Identity>>) {
        self.local = local;
    }

    pub(super) fn set_trust_epoch(&mut self, epoch: u64) {
        self.trust_epoch = epoch;
    }

    /// When the client was judged, for [`super::ServerTls::still_believes`].
    pub fn trust_epoch(&self) -> u64 {
        self.trust_epoch
    }

    /// Notes the server name that is asked for.
    pub(super) fn set_server_name(&mut self, name: Option<Arc<str>>) {
        self.info = Arc::new(TlsInfo { server_name: name, ..TlsInfo::default() });
    }

    /// What the handshake established; empty before it is complete.
    pub fn info(&self) -> &Arc<TlsInfo> {
        &self.info
    }

    /// Whether the handshake is not complete.
    pub fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    /// Ready when the handshake is complete or has failed. A failure's alert is queued on the socket.
    pub fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TlsError>> {
        loop {
            if let Some(error) = &self.failed {
                return Poll::Ready(Err(error.clone()));
            }
            if !self.connection.is_handshaking() {
                self.info = Arc::new(self.describe());
                return Poll::Ready(Ok(()));
            }
            if self.input.is_none() {
                match ready!(self.socket.poll_recv(cx)) {
                    Ok(Some(chunk)) => self.input = Some(chunk),
                    Ok(None) => return Poll::Ready(Err(TlsError::Closed)),
                    Err(error) => return Poll::Ready(Err(TlsError::Io(error.kind()))),
                }
            }
            if let Err(error) = self.take_in() {
                return Poll::Ready(Err(error));
            }
        }
    }

    /// Completes the handshake.
    pub async fn handshake(&mut self) -> Result<(), TlsError> {
        future::poll_fn(|cx| self.poll_handshake(cx)).await
    }

    /// See [`crate::transport::Transport::poll_recv`]. A connection that ends without a close_notify is an error: it may
    /// have been cut (RFC 8446 §6.1).
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Chunk>>> {
        if let Some(chunk) = self.unread.pop() {
            return Poll::Ready(Ok(Some(chunk)));
        }
        loop {
            if self.plain_bytes > 0 {
                return Poll::Ready(self.read_plain().map(Some));
            }
            if let Some(error) = &self.failed {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error.clone())));
            }
            if self.peer_has_closed {
                return Poll::Ready(Ok(None));
            }
            if self.input.is_none() {
                match ready!(self.socket.poll_recv(cx))? {
                    Some(chunk) => self.input = Some(chunk),
                    None => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                }
            }
            // An error is reported by the next turn of the loop, after the plaintext that came before it.
            let _ = self.take_in();
        }
    }

    /// Puts plaintext back.
    pub fn unread(&mut self, chunk: Chunk) {
        self.unread.push(chunk);
    }

    /// Whether plaintext, the end or an error waits. Records that carry none, such as session tickets, are taken in.
    pub fn has_received(&mut self) -> bool {
        if !self.unread.is_empty() {
            return true;
        }
        while self.input.is_some() || self.socket.has_received() {
            match self.poll_recv(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(Ok(Some(chunk))) => {
                    self.unread.push(chunk);
                    return true;
                }
                Poll::Ready(Ok(None) | Err(_)) => return true,
                Poll::Pending => {}
            }
        }
        self.plain_bytes > 0 || self.peer_has_closed || self.failed.is_some()
    }

    /// Encrypts a part and queues the records.
    pub fn write(&mut self, part: &Part) {
        if self.failed.is_none() && self.connection.writer().write_all(part.bytes()).is_ok() {
            self.flush();
        }
    }

    /// Queues a close_notify and ends our side.
    pub fn shutdown_write(&mut self) {
        self.say_goodbye();
        self.socket.shutdown_write();
    }

    /// Queues a close_notify, sends what is queued and closes (see [`Socket::close_gracefully`]).
    pub fn close_gracefully(mut self, linger: Duration) {
        self.say_goodbye();
        self.socket.close_gracefully(linger);
    }

    /// Closes at once with a reset.
    pub fn abort(self) {
        self.socket.abort();
    }

    fn say_goodbye(&mut self) {
        if self.failed.is_none() {
            self.connection.send_close_notify();
            self.flush();
        }
    }

    /// Takes received records in until plaintext waits, the handshake ends or all is read.
    fn take_in(&mut self) -> Result<(), TlsError> {
        let was_handshaking = self.connection.is_handshaking();
        while let Some(chunk) = &mut self.input {
            let mut bytes: &[u8] = chunk;
            let read = match self.connection.read_tls(&mut bytes) {
                Ok(read) => read,
                Err(error) => return Err(self.fail(TlsError::Io(error.kind()))),
            };
            chunk.advance(read);
            if chunk.is_empty() {
                self.input = None;
            }
            let processed = self.connection.process_new_packets();
            if was_handshaking && let Some(chosen) = take_chosen() {
                self.local = Some(chosen);
            }
            match processed {
                Ok(state) => {
                    self.plain_bytes = state.plaintext_bytes_to_read();
                    self.peer_has_closed = state.peer_has_closed();
                }
                Err(error) => {
                    self.flush();
                    return Err(self.fail(TlsError::Protocol(error)));
                }
            }
            if read == 0 && self.plain_bytes == 0 {
                // Nothing was taken although nothing waits: the peer has closed, and what follows means nothing.
                self.input = None;
            }
            if self.plain_bytes > 0 || was_handshaking && !self.connection.is_handshaking() {
                break;
            }
        }
        self.flush();
        Ok(())
    }

    fn fail(&mut self, error: TlsError) -> TlsError {
        self.input = None;
        self.failed = Some(error.clone());
        error
    }

    fn read_plain(&mut self) -> io::Result<Chunk> {
        let mut reader = self.connection.reader();
        let bytes = reader.fill_buf()?;
        let chunk = self.ring.leased_copy(bytes);
        reader.consume(chunk.len());
        self.plain_bytes = self.plain_bytes.saturating_sub(chunk.len());
        if chunk.is_empty() {
            self.plain_bytes = 0;
        }
        Ok(chunk)
    }

    /// Moves finished records to the socket's queue.
    fn flush(&mut self) {
        if !self.connection.wants_write() {
            return;
        }
        let mut buffer = self.ring.buffer();
        while self.connection.wants_write() {
            if self.connection.write_tls(&mut *buffer).is_err() {
                break;
            }
        }
        self.socket.write(buffer);
    }

    fn describe(&self) -> TlsInfo {
        let connection = &self.connection;
        let server_name = match connection {
            Connection::Server(server) => server.server_name().map(Arc::from),
            Connection::Client(_) => self.info.server_name.clone(),
        };
        let peer = connection.peer_certificates().and_then(|chain| Identity::parse(chain).ok()).map(Arc::new);
        TlsInfo {
            alpn: connection.alpn_protocol().map(Arc::from),
            server_name,
            version: match connection.protocol_version() {
                Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
                Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
                _ => "",
            },
            cipher: connection.negotiated_cipher_suite().map_or("", |suite| names::suite_name(suite.suite())),
            group: connection.negotiated_key_exchange_group().map_or("", |group| names::group_name(group.name())),
            is_resumed: connection.handshake_kind() == Some(HandshakeKind::Resumed),
            is_verified: peer.is_some() && self.proves_identity,
            peer,
            local: self.local.clone(),
        }
    }
}
