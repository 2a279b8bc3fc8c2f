//! Connections to control planes: by TCP or a unix socket, plain or under TLS with ALPN `h2`.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::codegen::Service;
use tonic::codegen::http::Uri;
use tonic::transport::{Channel, Endpoint};

use crate::config::address::Address;
use crate::tls::{ClientTls, Offer, TlsError};

/// A server to ask.
#[derive(Clone)]
pub struct Target {
    /// Where it is.
    pub place: Place,
    /// How it is spoken to, and the host name of its endpoint; in the clear where `None`.
    pub tls: Option<(Arc<ClientTls>, Arc<str>)>,
}

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// An address.
    Address(Address),
    /// A name, resolved for each connection, and a port.
    Named(Box<str>, u16),
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(formatter),
            Self::Named(host, port) => write!(formatter, "{host}:{port}"),
        }
    }
}

/// An HTTP/2 connection to `target`; the error says where and why.
pub async fn connect(target: &Target) -> Result<Channel, String> {
    let place = &target.place;
    let authority = match place {
        Place::Address(Address::Pipe(_)) => "localhost".to_owned(),
        _ => place.to_string(),
    };
    let uri = match (place, &target.tls) {
        (Place::Address(Address::Pipe(path)), None) => format!("unix:{}", path.display()),
        (_, None) => format!("http://{authority}"),
        (_, Some(_)) => format!("https://{authority}"),
    };
    let endpoint = Endpoint::from_shared(uri).map_err(|error| format!("{place}: {error}"))?;
    let endpoint = endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    let connected = match &target.tls {
        None => endpoint.connect().await,
        Some(_) => endpoint.connect_with_connector(Connector(target.clone())).await,
    };
    connected.map_err(|error| format!("{place}: {}", cause(&error)))
}

/// What an error began with.
fn cause(error: &dyn Error) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}

/// Opens connections under TLS.
struct Connector(Target);

/// The bytes below TLS.
trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

impl Service<Uri> for Connector {
    type Response = TokioIo<TlsStream<Box<dyn Wire>>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        Box::pin(handshake(self.0.clone()))
    }
}

async fn handshake(target: Target) -> io::Result<TokioIo<TlsStream<Box<dyn Wire>>>> {
    let (wire, address): (Box<dyn Wire>, Option<IpAddr>) = match &target.place {
        Place::Address(Address::Ip(address)) => (Box::new(TcpStream::connect(address).await?), Some(address.ip())),
        Place::Address(Address::Pipe(path)) => (Box::new(UnixStream::connect(path).await?), None),
        Place::Named(host, port) => {
            let socket = TcpStream::connect((&**host, *port)).await?;
            let address = socket.peer_addr()?.ip();
            (Box::new(socket), Some(address))
        }
    };
    let Some((tls, host_name)) = &target.tls else { return Err(io::ErrorKind::InvalidInput.into()) };
    let (config, name) = tls.handshake_config(host_name, address, Offer::Http2).map_err(io::Error::other)?;
    let connected = TlsConnector::from(config).connect(name, wire).await.map_err(in_our_words)?;
    Ok(TokioIo::new(connected))
}

/// What TLS says, as it is said of the endpoints of clusters.
fn in_our_words(error: io::Error) -> io::Error {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(inner) => io::Error::other(TlsError::Protocol(inner.clone()).to_string()),
        None => error,
    }
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A server that is gone without a word is noticed after both.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
