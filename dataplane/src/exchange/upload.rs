//! The request's body on its way to the upstream, and the copy that a retry sends again.

use std::task::{Context, Poll, Waker, ready};

use torus_codec::{BodyLength, HeaderMap, NameCase, RequestHead};
use torus_ring::Ring;

use super::client_stream::ClientStream;
use crate::cluster::options::UpstreamHttp1;
use crate::filter::{FilterRefusal, Running};
use crate::telemetry::stream_info::StreamInfo;
use crate::upstream::UpstreamStream;
use crate::wire::{BodyError, BodyEvent, BodyWriter};

/// Bytes that may wait for a slow upstream or client before reading pauses.
pub const QUEUED_BYTES_MAX: usize = 256 * 1024;

/// The state of one request's body.
#[derive(Default)]
pub struct Upload {
    length: BodyLength,
    writer: BodyWriter,
    /// The whole body is queued on the current attempt's connection.
    done: bool,
    /// What was read so far, if a retry may need it.
    kept: Vec<u8>,
    keep_bytes_max: usize,
    keeping: bool,
    case: NameCase,
    /// The client's body was read to its end.
    received: bool,
    /// The client's trailers are taken.
    with_trailers: bool,
    /// `enable_trailers` of the cluster: they go on to an upstream of HTTP/1.1.
    http1_trailers: bool,
}

/// What a body passes on its way.
pub struct Passing<'a> {
    /// The filters of the request.
    pub filters: &'a mut Running,
    /// Where its trailers go.
    pub trailers: &'a mut HeaderMap,
    /// Where its bytes are counted.
    pub info: &'a mut StreamInfo,
}

/// Why a body could not be sent.
pub enum UploadError {
    /// The client's side failed.
    Client(BodyError),
    /// A filter refuses it.
    Refused(FilterRefusal),
    /// The upstream takes no more.
    Upstream,
}

impl Upload {
    /// Begins a request's body.
    pub fn start(&mut self, request: &RequestHead, received: bool, with_trailers: bool) {
        self.with_trailers = with_trailers;
        self.length = request.body;
        self.kept.clear();
        self.keeping = false;
        self.received = received;
        self.done = false;
    }

    /// A filter changed how the body is framed.
    pub fn set_length(&mut self, length: BodyLength) {
        self.length = length;
    }

    /// Keeps what is read, up to `bytes_max`, so that an attempt can be made again.
    pub fn keep(&mut self, bytes_max: usize) {
        self.keeping = true;
        self.keep_bytes_max = bytes_max;
    }

    /// Whether another attempt can send the whole body.
    pub fn can_restart(&self) -> bool {
        self.received && matches!(self.length, BodyLength::Empty | BodyLength::Length(0)) || self.keeping
    }

    /// Whether the client's body was read to its end.
    pub fn is_received(&self) -> bool {
        self.received
    }

    /// Whether the client's whole body is here or may still come; not after the upstream refused to take it.
    pub fn can_finish(&self) -> bool {
        self.received || !self.done
    }

    /// Whether the current attempt has the whole body.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Begins an attempt: what was kept goes first. Bytes put onto the wire.
    pub fn start_attempt(
        &mut self,
        ring: &Ring,
        upstream: &mut UpstreamStream<'_>,
        trailers: &HeaderMap,
        http1: &UpstreamHttp1,
    ) -> usize {
        self.case = http1.header_case;
        self.http1_trailers = http1.enable_trailers;
        self.writer = BodyWriter::new(self.length);
        self.done = matches!(self.length, BodyLength::Empty | BodyLength::Length(0));
        if self.done {
            return 0;
        }
        let mut sent_bytes = 0;
        if !self.kept.is_empty() {
            sent_bytes += upstream.send_slice(ring, self.writer, &self.kept);
        }
        if self.received {
            sent_bytes += upstream.finish_body(ring, self.writer, trailers, self.case);
            self.done = true;
        }
        sent_bytes
    }

    /// Moves body bytes from the client to the upstream; ready when the last one is queued.
    pub fn poll(
        &mut self,
        ring: &Ring,
        client: &mut ClientStream<'_>,
        upstream: &mut UpstreamStream<'_>,
        passing: Passing<'_>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), UploadError>> {
        let Passing { filters, trailers, info } = passing;
        while !self.done {
            if ready!(upstream.poll_writable(ring, QUEUED_BYTES_MAX, cx)).is_err() {
                return Poll::Ready(Err(UploadError::Upstream));
            }
            match ready!(client.poll_body(trailers, cx)) {
                Ok(BodyEvent::Data(mut data)) => {
                    info.body_bytes_received += data.len() as u64;
                    info.downstream_wire_bytes_received += data.len() as u64;
                    if !filters.is_empty() {
                        data = match filters.on_request_data(data) {
                            Ok(data) if data.is_empty() => continue,
                            Ok(data) => data,
                            Err(refusal) => return Poll::Ready(Err(UploadError::Refused(refusal))),
                        };
                    }
                    self.remember(&data);
                    let sent_bytes = upstream.send_body(ring, self.writer, data);
                    info.upstream_wire_bytes_sent += sent_bytes as u64;
                }
                Ok(BodyEvent::End) => {
                    if !filters.is_empty()
                        && let Err(refusal) = filters.on_request_end()
                    {
                        return Poll::Ready(Err(UploadError::Refused(refusal)));
                    }
                    if !self.with_trailers || !upstream.takes_trailers(self.http1_trailers) {
                        trailers.clear();
                    }
                    let sent_bytes = upstream.finish_body(ring, self.writer, trailers, self.case);
                    info.upstream_wire_bytes_sent += sent_bytes as u64;
                    self.received = true;
                    self.done = true;
                    client.watch();
                }
                Err(error) => return Poll::Ready(Err(UploadError::Client(error))),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Reads and drops what is left of a body that is already here, so that the connection can go on after a failure.
    pub fn discard_received(&mut self, client: &mut ClientStream<'_>, trailers: &mut HeaderMap, info: &mut StreamInfo) {
        let mut context = Context::from_waker(Waker::noop());
        let mut left_bytes = QUEUED_BYTES_MAX;
        while !self.received && left_bytes > 0 {
            match client.poll_body(trailers, &mut context) {
                Poll::Ready(Ok(BodyEvent::Data(data))) => {
                    info.body_bytes_received += data.len() as u64;
                    left_bytes = left_bytes.saturating_sub(data.len());
                }
                Poll::Ready(Ok(BodyEvent::End)) => self.received = true,
                Poll::Ready(Err(_)) | Poll::Pending => return,
            }
        }
    }

    /// The upstream gets no request at all, but the bytes of a tunnel.
    pub fn skip(&mut self) {
        self.done = true;
    }

    /// Sends no more of the body: the upstream takes none.
    pub fn give_up(&mut self) {
        self.done = true;
        self.received = false;
    }

    fn remember(&mut self, data: &[u8]) {
        if !self.keeping {
            return;
        }
        if self.kept.len() + data.len() > self.keep_bytes_max {
            self.keeping = false;
            self.kept.clear();
        } else {
            self.kept.extend_from_slice(data);
        }
    }
}
