//! Connections to the xDS ports, plain and under TLS, with what is known of the other end.
//!
//! A connection is handed over once it has begun as HTTP/2 does. What begins otherwise is told in the log, with what to do about it, and
//! closed: a browser, a client of the wrong port, a scan.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use envoy_types::pb::envoy::config::core::v3::Node;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use super::tls::{self, Tls};
use crate::model::Proxy;

/// Who is at the other end of a connection.
#[derive(Clone, Debug, Default)]
pub struct Peer {
    pub address: Option<SocketAddr>,
    /// Names in the certificate that it showed, which was verified; none without one.
    pub names: Arc<[String]>,
}

impl Peer {
    /// Whether the holder of the certificate may ask for what `node` is to be sent: a SPIFFE identity must be of the node's namespace, and
    /// of its service account where it names one. Other certificates say nothing about that.
    ///
    /// Source: Istio's `checkConnectionIdentity`.
    pub fn may_speak_for(&self, node: &Node) -> Result<(), String> {
        let mut identities = self.names.iter().filter_map(|name| spiffe(name)).peekable();
        if identities.peek().is_none() {
            return Ok(());
        }
        let proxy = Proxy::from_node(node).map_err(|error| error.to_string())?;
        let account = proxy.metadata.get("SERVICE_ACCOUNT");
        let is_of = |(namespace, name): (&str, &str)| {
            namespace == proxy.namespace && account.is_none_or(|account| account == name)
        };
        if identities.any(is_of) {
            return Ok(());
        }
        let of_account = account.map(|account| format!(", service account `{account}`")).unwrap_or_default();
        Err(format!(
            "the client's certificate is for {}, but its node is of namespace `{}`{of_account}",
            self.names.join(", "),
            proxy.namespace
        ))
    }
}

/// Namespace and service account of Istio's SPIFFE identities: `spiffe://domain/ns/namespace/sa/account`.
fn spiffe(name: &str) -> Option<(&str, &str)> {
    let (_, path) = name.strip_prefix("spiffe://")?.split_once('/')?;
    path.strip_prefix("ns/")?.split_once("/sa/")
}

/// A connection that has begun.
pub enum Connection {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        match self {
            Self::Plain(stream) => Peer { address: stream.peer_addr().ok(), names: Arc::default() },
            Self::Tls(stream) => {
                let (socket, session) = stream.get_ref();
                let shown = session.peer_certificates().and_then(<[_]>::first);
                let names = shown.map(tls::subject_names).unwrap_or_default().into();
                Peer { address: socket.peer_addr().ok(), names }
            }
        }
    }
}

/// The connections to `plain`, and to the other port under TLS, until `ended` is ready; no port accepts any from then on.
pub fn incoming<E>(
    plain: TcpListener,
    tls: Option<(TcpListener, Arc<Tls>)>,
    ended: impl Fn() -> E,
) -> tokio_stream::wrappers::ReceiverStream<io::Result<Connection>>
where
    E: Future<Output = ()> + Send + 'static,
{
    let (begun, receiver) = mpsc::channel(BEGUN_WAITING_MAX);
    tokio::spawn(accept(plain, None, begun.clone(), ended()));
    if let Some((listener, tls)) = tls {
        tokio::spawn(accept(listener, Some(tls), begun, ended()));
    }
    receiver.into()
}

async fn accept(
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
    begun: mpsc::Sender<io::Result<Connection>>,
    ended: impl Future<Output = ()>,
) {
    let beginning = Arc::new(Semaphore::new(BEGINNING_MAX));
    let told = Arc::new(AtomicU64::new(0));
    let accept = async {
        loop {
            // The kernel keeps the others waiting.
            let Ok(place) = beginning.clone().acquire_owned().await else { return };
            let (stream, address) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!("a connection to the xDS port is lost: {error}");
                    // Out of files, most likely: it does not help to try at once.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let (tls, begun, told) = (tls.clone(), begun.clone(), told.clone());
            tokio::spawn(async move {
                let connection = tokio::time::timeout(BEGIN_WITHIN, begin(stream, tls.as_deref())).await;
                drop(place);
                match connection.unwrap_or(Err(format!("sent nothing that begins a connection in {BEGIN_WITHIN:?}"))) {
                    // The server may have ended meanwhile.
                    Ok(Some(connection)) => drop(begun.send(Ok(connection)).await),
                    Ok(None) => {}
                    Err(reason) if is_to_be_told(&told) => tracing::warn!("xDS port: {address}: {reason}"),
                    Err(reason) => tracing::debug!("xDS port: {address}: {reason}"),
                }
            });
        }
    };
    tokio::select! {
        () = accept => {}
        () = ended => {}
    }
}

/// Nothing if the other end hung up at once, as a probe of a port does.
async fn begin(stream: TcpStream, tls: Option<&Tls>) -> Result<Option<Connection>, String> {
    let failed = |error: io::Error| error.to_string();
    stream.set_nodelay(true).map_err(failed)?;
    let mut first = [0; PREFACE.len()];
    let length = match stream.peek(&mut first).await {
        Ok(0) => return Ok(None),
        Ok(length) => length,
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let first = first.get(..length).unwrap_or_default();
    let is_tls = first.first() == Some(&TLS_HANDSHAKE);
    match tls {
        None if PREFACE.starts_with(first) => Ok(Some(Connection::Plain(stream))),
        None if is_tls => {
            Err("speaks TLS, and this port is for plaintext; let it use that of --xds-tls-address".into())
        }
        Some(_) if PREFACE.starts_with(first) => {
            Err("speaks without TLS, and this port is for TLS; let it use that of --xds-address".into())
        }
        Some(tls) if is_tls => {
            let accepted = TlsAcceptor::from(tls.current()).accept(stream).await;
            let stream = accepted.map_err(|error| format!("TLS handshake failed: {error}"))?;
            Ok(Some(Connection::Tls(Box::new(stream))))
        }
        _ => Err(format!(
            "begins with `{}`, which is not gRPC; pages for operators are on the port of --http-address",
            first.escape_ascii()
        )),
    }
}

/// Once a second at most, so that a scan does not fill the log.
fn is_to_be_told(last: &AtomicU64) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    last.swap(now, Ordering::Relaxed) != now
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

/// How an HTTP/2 connection begins (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The type of the first record of a TLS connection (RFC 8446 §5.1).
const TLS_HANDSHAKE: u8 = 22;
/// Connections of one port that have not begun yet.
const BEGINNING_MAX: usize = 256;
/// Connections that have begun and wait for the server to take them.
const BEGUN_WAITING_MAX: usize = 64;
/// Clients speak first, and at once.
const BEGIN_WITHIN: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_speaks_for_its_own_namespace() {
        let peer = |name: &str| Peer { names: vec![name.to_owned()].into(), ..Peer::default() };
        let node = Node { id: "sidecar~10.0.0.1~web.shop~shop.svc.cluster.local".to_owned(), ..Node::default() };
        for (name, reason) in [
            ("spiffe://cluster.local/ns/shop/sa/web", None),
            ("spiffe://cluster.local/ns/bank/sa/web", Some("is of namespace `shop`")),
            ("proxy.example", None),
        ] {
            let judged = peer(name).may_speak_for(&node);
            assert_eq!(
                judged.as_ref().err().map(|told| told.contains(reason.unwrap_or("-"))),
                reason.map(|_| true),
                "{name}"
            );
        }
    }
}
