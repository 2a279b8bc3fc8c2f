//! The client's half of an exchange: its request body in, the reply out.

use std::task::{Context, Poll};

use torus_codec::{
    BodyLength, HeaderMap, Limits, Malformed, NameCase, RequestHead, RequestOptions, Unencodable, parse_request_from,
};
use torus_ring::Ring;

use crate::transport::Transport;
use crate::wire::{BodyData, BodyError, BodyEvent, BodyReader, BodyWriter, HeadError, HeadReader};

/// A client's HTTP/1.1 connection.
pub struct Client {
    /// The connection itself.
    pub socket: Transport,
    head: HeadReader,
    body: BodyReader,
    writer: BodyWriter,
    /// The next request has begun to arrive: its bytes stay in the socket, and nothing is received until it is served.
    pipelined: bool,
    preface: Preface,
}

/// Whether the connection may turn out to speak HTTP/2.
enum Preface {
    /// Its first bytes say.
    Awaited,
    /// It does; these bytes were received.
    Received(Vec<u8>),
    /// It does not.
    None,
}

/// With what a client's HTTP/2 connection begins (RFC 9113 §3.4), as far as nothing else begins so.
const PREFACE: &[u8] = b"PRI * HTTP/2";

/// What a client that should be waiting for its reply did.
pub enum WhileWaiting {
    /// It closed its connection.
    Gone,
}

impl Client {
    /// A connection on which nothing was received yet; `may_be_http2`: its first bytes say what it speaks.
    pub fn new(socket: Transport, may_be_http2: bool) -> Self {
        Self {
            socket,
            head: HeadReader::default(),
            body: BodyReader::Done,
            writer: BodyWriter::Empty,
            pipelined: false,
            preface: if may_be_http2 { Preface::Awaited } else { Preface::None },
        }
    }

    /// Whether the client was found to speak HTTP/2; the head that [`Self::poll_head`] refused then was its preface.
    pub fn speaks_http2(&self) -> bool {
        matches!(self.preface, Preface::Received(_))
    }

    /// The socket, with everything that was received of HTTP/2 still to be read.
    pub fn into_http2(mut self, ring: &Ring) -> Transport {
        if let Preface::Received(bytes) = &self.preface {
            self.socket.unread(ring.chunk(bytes));
        }
        self.socket
    }

    /// Whether a request has begun to arrive.
    pub fn head_is_partial(&self) -> bool {
        self.head.is_partial()
    }

    /// The length in bytes of the next request head, which is then in `request`.
    pub fn poll_head(
        &mut self,
        options: &RequestOptions,
        request: &mut RequestHead,
        cx: &mut Context<'_>,
    ) -> Poll<Result<usize, HeadError>> {
        self.pipelined = false;
        let preface = &mut self.preface;
        self.head.poll_head(&mut self.socket, cx, |bytes, seen_bytes| {
            if let Preface::Awaited = preface {
                if bytes.starts_with(PREFACE) {
                    *preface = Preface::Received(bytes.to_vec());
                    return Err(Malformed::StartLine);
                }
                if PREFACE.starts_with(bytes) {
                    return Ok(None);
                }
                *preface = Preface::None;
            }
            parse_request_from(bytes, seen_bytes, options, request)
        })
    }

    /// Makes the body announced by `request` readable.
    pub fn start_body(&mut self, request: &RequestHead, limits: &Limits) {
        self.body = BodyReader::new(request.body, torus_codec::ChunkedDecoder::new(limits));
    }

    /// The protocol was switched: bytes both ways, to the end of the connection.
    pub fn start_bytes(&mut self) {
        self.body = BodyReader::UntilClose;
        self.writer = BodyWriter::Plain;
    }

    /// Whether the whole request was received.
    pub fn request_is_complete(&self) -> bool {
        self.body.is_done()
    }

    /// The next piece of the request body.
    pub fn poll_body(&mut self, trailers: &mut HeaderMap, cx: &mut Context<'_>) -> Poll<Result<BodyEvent, BodyError>> {
        self.body.poll_next(&mut self.socket, trailers, cx)
    }

    /// Ready when the client has closed while its reply is awaited. A pipelined request is left for later.
    ///
    /// A client that closes its sending half only is taken for gone as well, as Envoy does.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<WhileWaiting> {
        if self.pipelined {
            return Poll::Pending;
        }
        match self.socket.poll_recv(cx) {
            Poll::Ready(Ok(Some(chunk))) => {
                self.socket.unread(chunk);
                self.pipelined = true;
                Poll::Pending
            }
            Poll::Ready(Ok(None) | Err(_)) => Poll::Ready(WhileWaiting::Gone),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Looks for the client's close again: what comes from now on is no part of the request.
    pub fn watch(&mut self) {
        self.pipelined = false;
    }

    /// Sends a head that `encode` writes; what `encode` says of the body is the framing of what follows. The head's length in bytes.
    pub fn send_head(
        &mut self,
        ring: &Ring,
        encode: impl FnOnce(&mut Vec<u8>) -> Result<BodyLength, Unencodable>,
    ) -> Result<(usize, BodyLength), Unencodable> {
        let mut buffer = ring.buffer();
        let length = encode(&mut buffer)?;
        let head_bytes = buffer.len();
        self.writer = BodyWriter::new(length);
        self.socket.write(buffer);
        Ok((head_bytes, length))
    }

    /// Sends a piece of the reply's body. Bytes put onto the wire.
    pub fn send_body(&mut self, ring: &Ring, data: BodyData) -> usize {
        self.writer.write(ring, &mut self.socket, data)
    }

    /// Sends a copy of `data` as body. Bytes put onto the wire.
    pub fn send_slice(&mut self, ring: &Ring, data: &[u8]) -> usize {
        self.writer.write_slice(ring, &mut self.socket, data)
    }

    /// Ends the reply's body. Bytes put onto the wire.
    pub fn finish_body(&mut self, ring: &Ring, trailers: &HeaderMap, case: NameCase) -> usize {
        let writer = std::mem::take(&mut self.writer);
        writer.finish(ring, &mut self.socket, trailers, case)
    }
}

/// How a body or head that could not be read is answered.
pub fn malformed_of(error: &BodyError) -> Option<&Malformed> {
    match error {
        BodyError::Malformed(malformed) => Some(malformed),
        BodyError::Truncated | BodyError::Io(_) | BodyError::Stream(_) => None,
    }
}
