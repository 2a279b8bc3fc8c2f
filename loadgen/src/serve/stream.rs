//! A connection's bytes: TCP or a unix socket by completion, TLS on readiness.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use monoio::io::{AsyncReadRent, AsyncWriteRent, AsyncWriteRentExt, IntoPollIo};
use monoio::net::tcp::stream_poll::TcpStreamPoll;
use monoio::net::{TcpStream, UnixStream};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_rustls::server::TlsStream;

pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<TlsStream<TcpStreamPoll>>),
}

impl Stream {
    /// Reads into `buffer`, from its begin.
    pub(super) async fn read(&mut self, mut buffer: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
        match self {
            Stream::Tcp(stream) => stream.read(buffer).await,
            Stream::Unix(stream) => stream.read(buffer).await,
            Stream::Tls(stream) => {
                buffer.clear();
                (stream.read_buf(&mut buffer).await, buffer)
            }
        }
    }

    /// Writes all of `bytes` and gives them back.
    pub(super) async fn write_all(&mut self, bytes: Vec<u8>) -> (io::Result<()>, Vec<u8>) {
        match self {
            Stream::Tcp(stream) => {
                let (written, bytes) = stream.write_all(bytes).await;
                (written.map(drop), bytes)
            }
            Stream::Unix(stream) => {
                let (written, bytes) = stream.write_all(bytes).await;
                (written.map(drop), bytes)
            }
            Stream::Tls(stream) => {
                let written = stream.write_all(&bytes).await;
                let flushed = if written.is_ok() { stream.flush().await } else { written };
                (flushed, bytes)
            }
        }
    }

    pub(super) async fn shutdown(&mut self) {
        let _ = match self {
            Stream::Tcp(stream) => AsyncWriteRent::shutdown(stream).await,
            Stream::Unix(stream) => AsyncWriteRent::shutdown(stream).await,
            Stream::Tls(stream) => AsyncWriteExt::shutdown(stream).await,
        };
    }

    /// The same for a codec that polls, which reads `received` first.
    pub(super) fn polled(self, received: Vec<u8>) -> io::Result<Polled> {
        let inner: Box<dyn Duplex> = match self {
            Stream::Tcp(stream) => Box::new(stream.into_poll_io()?),
            Stream::Unix(stream) => Box::new(stream.into_poll_io()?),
            Stream::Tls(stream) => stream,
        };
        Ok(Polled { received, used: 0, inner })
    }
}

trait Duplex: AsyncRead + AsyncWrite + Unpin {}

impl<S: AsyncRead + AsyncWrite + Unpin> Duplex for S {}

pub(super) struct Polled {
    received: Vec<u8>,
    used: usize,
    inner: Box<dyn Duplex>,
}

impl AsyncRead for Polled {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let rest = self.received.get(self.used..).unwrap_or_default();
        let taken = rest.len().min(buffer.remaining());
        if taken == 0 {
            return Pin::new(&mut self.inner).poll_read(context, buffer);
        }
        buffer.put_slice(rest.get(..taken).unwrap_or_default());
        self.used += taken;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Polled {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}
