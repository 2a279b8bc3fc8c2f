//! A connection's bytes, plain or under TLS.

use std::io;
use std::time::Instant;

use monoio::io::{AsyncReadRent, AsyncWriteRentExt, IntoPollIo};
use monoio::net::TcpStream;
use monoio::net::tcp::stream_poll::TcpStreamPoll;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::Payload;
use super::core::{Core, Slot};
use crate::record::Cause;

/// Plain connections are read and written by completion; TLS works on readiness.
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStreamPoll>>),
}

impl Stream {
    /// Opens connection number `index`, within the deadline of `slot`.
    pub(super) async fn open(core: &Core, slot: &Slot, index: usize) -> Result<Stream, Cause> {
        let count = core.config.addresses.len().max(1);
        let address = core.config.addresses.get(index % count).ok_or(Cause::Connect)?;
        let before = Instant::now();
        slot.timed_out.set(false);
        let stream = slot.in_time(TcpStream::connect_addr(*address)).await.ok_or(Cause::Timeout)?;
        let stream = stream.map_err(|_| Cause::Connect)?;
        let _ = stream.set_nodelay(true);
        let connected = Instant::now();
        {
            let mut record = core.record.borrow_mut();
            record.counts.connections += 1;
            record.connect.record(connected.duration_since(before).as_nanos() as u64);
        }
        let Some(tls) = &core.config.tls else { return Ok(Stream::Plain(stream)) };
        let connector = TlsConnector::from(std::sync::Arc::clone(&tls.config));
        let stream = stream.into_poll_io().map_err(|_| Cause::Connect)?;
        let stream = slot.in_time(connector.connect(tls.name.clone(), stream)).await.ok_or(Cause::Timeout)?;
        let stream = stream.map_err(|_| Cause::Tls)?;
        core.record.borrow_mut().tls.record(connected.elapsed().as_nanos() as u64);
        Ok(Stream::Tls(Box::new(stream)))
    }

    /// Reads into `buffer`, from its begin.
    pub(super) async fn read(&mut self, mut buffer: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
        match self {
            Stream::Plain(stream) => stream.read(buffer).await,
            Stream::Tls(stream) => {
                buffer.clear();
                let read = stream.read_buf(&mut buffer).await;
                (read, buffer)
            }
        }
    }

    pub(super) async fn write_all(&mut self, bytes: Payload) -> io::Result<()> {
        match self {
            Stream::Plain(stream) => stream.write_all(bytes).await.0.map(drop),
            Stream::Tls(stream) => {
                stream.write_all(&bytes).await?;
                stream.flush().await
            }
        }
    }
}
