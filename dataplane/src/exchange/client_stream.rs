//! The client's end of one exchange: an HTTP/1.1 connection, or one stream of an HTTP/2 connection. What an exchange does with it is
//! the same; how it is written is said here, once.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream, server::SendResponse};
use torus_codec::{
    BodyLength, ConnectionToken, EncodeOptions, HeaderMap, Known, Limits, NameCase, RequestHead, Unencodable, Version,
};
use torus_ring::{Nanos, Ring};

use super::client::{Client, WhileWaiting};
use super::upload::QUEUED_BYTES_MAX;
use crate::wire::http2::{BodyReceiver, BodySender, message};
use crate::wire::{BodyData, BodyError, BodyEvent};

/// The client of an exchange.
pub enum ClientStream<'a> {
    /// A connection that carries one exchange at a time.
    Http1(&'a mut Client),
    /// A stream among others.
    Http2(&'a mut Http2Client),
}

/// A request's stream on a client's HTTP/2 connection.
pub struct Http2Client {
    receiver: BodyReceiver,
    respond: SendResponse<BodyData>,
    sender: Option<BodySender>,
    was_reset: bool,
    /// The request has no body: what comes on the stream is for the tunnel that it asks for.
    is_tunnel: bool,
    /// Bytes of the request that came after its reply.
    discarded_bytes: usize,
}

/// The client takes no more.
pub struct ClientGone;

/// How much of a request is read after its reply.
const DISCARD_BYTES_MAX: usize = 1024 * 1024;

impl Http2Client {
    /// A stream whose head was read.
    pub fn new(stream: RecvStream, respond: SendResponse<BodyData>, trailer_count_max: usize) -> Self {
        let receiver = BodyReceiver::new(stream, trailer_count_max);
        Self { receiver, respond, sender: None, was_reset: false, is_tunnel: false, discarded_bytes: 0 }
    }

    /// Ends a stream after its exchange: ready once the reply is with the codec as far as the client's window lets it; what the
    /// exchange left unfinished is reset.
    pub fn poll_end(&mut self, now: Nanos, cx: &mut Context<'_>) -> Poll<()> {
        let Some(sender) = &mut self.sender else {
            self.respond.send_reset(if self.was_reset { Reason::CANCEL } else { Reason::INTERNAL_ERROR });
            return Poll::Ready(());
        };
        if sender.is_blocked() && sender.poll_ready(now, cx).is_pending() {
            // A client that resets the stream is noticed by `poll_ready`'s capacity.
            return Poll::Pending;
        }
        if !sender.is_finished() && !self.was_reset {
            sender.reset(Reason::INTERNAL_ERROR);
        }
        Poll::Ready(())
    }

    /// Whether the reply is complete but for the client's window.
    pub fn awaits_window(&self) -> bool {
        self.sender.as_ref().is_some_and(BodySender::is_blocked)
    }

    /// Gives up a reply that the client does not take.
    pub fn cancel(&mut self) {
        self.reset(Reason::CANCEL);
    }

    /// Ends the stream at once.
    pub fn reset(&mut self, reason: Reason) {
        match &mut self.sender {
            Some(sender) => sender.reset(reason),
            None => self.respond.send_reset(reason),
        }
    }

    /// Whether the reply is complete while the request is not.
    pub fn is_answered_early(&self) -> bool {
        let is_answered = self.sender.as_ref().is_some_and(BodySender::is_complete);
        is_answered && !self.was_reset && !self.receiver.is_done()
    }

    /// Reads and drops what is left of the request: ready at its end, or after enough of it.
    pub fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.discarded_bytes < DISCARD_BYTES_MAX {
            match ready!(self.receiver.poll_next(&mut HeaderMap::default(), cx)) {
                Ok(BodyEvent::Data(data)) => self.discarded_bytes += data.len(),
                Ok(BodyEvent::End) | Err(_) => return Poll::Ready(()),
            }
        }
        Poll::Ready(())
    }

    /// When bytes of the reply last moved.
    pub fn last_progress(&self) -> Nanos {
        self.sender.as_ref().map_or(Nanos::ZERO, BodySender::last_progress)
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<WhileWaiting> {
        let reset = match &mut self.sender {
            Some(sender) if sender.is_finished() => return Poll::Pending,
            Some(sender) => sender.poll_reset(cx),
            None => self.respond.poll_reset(cx),
        };
        reset.map(|reset| {
            self.was_reset |= reset.is_ok();
            WhileWaiting::Gone
        })
    }

    fn send_head(
        &mut self,
        now: Nanos,
        headers: &HeaderMap,
        body: BodyLength,
        options: &EncodeOptions,
    ) -> Result<(usize, BodyLength), Unencodable> {
        let (response, length) = message::write_response(headers, body, options.request_method)?;
        let ends = length == BodyLength::Empty;
        // A stream that is over meanwhile is noticed where the exchange looks for the client.
        self.sender = self.respond.send_response(response, ends).ok().map(|stream| BodySender::new(stream, ends, now));
        Ok((headers.byte_count(), length))
    }
}

impl ClientStream<'_> {
    /// Makes the body announced by `request` readable.
    pub fn start_body(&mut self, request: &RequestHead, limits: &Limits) {
        match self {
            Self::Http1(client) => client.start_body(request, limits),
            Self::Http2(stream) => {
                let method = request.headers.get_known(Known::Method).unwrap_or_default();
                stream.is_tunnel = request.upgrade || method == b"CONNECT";
            }
        }
    }

    /// Whether the whole request was received.
    pub fn request_is_complete(&self) -> bool {
        match self {
            Self::Http1(client) => client.request_is_complete(),
            Self::Http2(stream) => stream.is_tunnel || stream.receiver.is_done(),
        }
    }

    /// The next piece of the request body.
    pub fn poll_body(&mut self, trailers: &mut HeaderMap, cx: &mut Context<'_>) -> Poll<Result<BodyEvent, BodyError>> {
        match self {
            Self::Http1(client) => client.poll_body(trailers, cx),
            Self::Http2(stream) => {
                let event = stream.receiver.poll_next(trailers, cx);
                if let Poll::Ready(Err(BodyError::Stream(error))) = &event {
                    stream.was_reset |= error.is_reset();
                }
                event
            }
        }
    }

    /// Ready when the client is gone while its reply is awaited.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<WhileWaiting> {
        match self {
            Self::Http1(client) => client.poll_gone(cx),
            Self::Http2(stream) => stream.poll_gone(cx),
        }
    }

    /// Looks for the client's close again: what comes from now on is no part of the request.
    pub fn watch(&mut self) {
        if let Self::Http1(client) = self {
            client.watch();
        }
    }

    /// The protocol was switched: what [`Self::poll_body`] reads and [`Self::send_body`] writes is bytes from now on.
    pub fn start_bytes(&mut self) {
        if let Self::Http1(client) = self {
            client.start_bytes();
        }
    }

    /// Ends our side after the protocol was switched.
    pub fn end_bytes(&mut self) {
        match self {
            Self::Http1(client) => client.socket.shutdown_write(),
            Self::Http2(stream) => {
                if let Some(sender) = &mut stream.sender {
                    sender.finish(&HeaderMap::default());
                }
            }
        }
    }

    /// Ready when the client gave up a stream whose end it had sent already.
    pub fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<WhileWaiting> {
        match self {
            // A socket that fails is noticed on writing.
            Self::Http1(_) => Poll::Pending,
            Self::Http2(stream) => stream.poll_gone(cx),
        }
    }

    /// Whether the client reset its stream while its connection lives on.
    pub fn was_reset(&self) -> bool {
        matches!(self, Self::Http2(stream) if stream.was_reset)
    }

    /// Tells the client to send its body (RFC 9110 §10.1.1).
    pub fn send_continue(&mut self) {
        match self {
            Self::Http1(client) => client.socket.write(&b"HTTP/1.1 100 Continue\r\n\r\n"[..]),
            Self::Http2(stream) => {
                let mut response = http::Response::new(());
                *response.status_mut() = http::StatusCode::CONTINUE;
                let _ = stream.respond.send_informational(response);
            }
        }
    }

    /// Passes a 1xx head on. Bytes of it.
    pub fn send_informational(
        &mut self,
        ring: &Ring,
        version: Version,
        headers: &HeaderMap,
        options: &EncodeOptions,
    ) -> usize {
        match self {
            Self::Http1(client) => {
                let sent = client.send_head(ring, |out| {
                    torus_codec::encode_response_head(
                        version,
                        headers,
                        BodyLength::Empty,
                        ConnectionToken::None,
                        options,
                        out,
                    )
                });
                sent.map_or(0, |(head_bytes, _)| head_bytes)
            }
            Self::Http2(stream) => match message::write_response(headers, BodyLength::Empty, options.request_method) {
                Ok((response, _)) => stream.respond.send_informational(response).map_or(0, |()| headers.byte_count()),
                Err(_) => 0,
            },
        }
    }

    /// Sends the head of the reply; the head's length in bytes and the framing of what follows.
    pub fn send_head(
        &mut self,
        ring: &Ring,
        version: Version,
        headers: &HeaderMap,
        body: BodyLength,
        token: ConnectionToken,
        options: &EncodeOptions,
    ) -> Result<(usize, BodyLength), Unencodable> {
        match self {
            Self::Http1(client) => client
                .send_head(ring, |out| torus_codec::encode_response_head(version, headers, body, token, options, out)),
            Self::Http2(stream) => stream.send_head(ring.now(), headers, body, options),
        }
    }

    /// Answers where no head can be made of what the configuration says. Bytes put onto the wire.
    pub fn send_bare_error(&mut self) -> usize {
        const REPLY: &[u8] = b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        match self {
            Self::Http1(client) => {
                client.socket.write(REPLY);
                REPLY.len()
            }
            Self::Http2(stream) => {
                let mut response = http::Response::new(());
                *response.status_mut() = http::StatusCode::INTERNAL_SERVER_ERROR;
                let sent = stream.respond.send_response(response, true);
                stream.sender = sent.ok().map(|stream| BodySender::new(stream, true, Nanos::ZERO));
                0
            }
        }
    }

    /// Ready when the reply's next piece may be sent.
    pub fn poll_writable(&mut self, ring: &Ring, cx: &mut Context<'_>) -> Poll<Result<(), ClientGone>> {
        match self {
            Self::Http1(client) if client.socket.queued_bytes() <= QUEUED_BYTES_MAX => Poll::Ready(Ok(())),
            Self::Http1(client) => {
                client.socket.poll_drained(cx, QUEUED_BYTES_MAX).map(|drained| drained.map_err(|_| ClientGone))
            }
            Self::Http2(stream) => match &mut stream.sender {
                Some(sender) => sender.poll_ready(ring.now(), cx).map(|ready| ready.map_err(|_| ClientGone)),
                None => Poll::Ready(Err(ClientGone)),
            },
        }
    }

    /// When the client last took bytes.
    pub fn last_write_progress(&self) -> Nanos {
        match self {
            Self::Http1(client) => client.socket.last_write_progress(),
            Self::Http2(stream) => stream.last_progress(),
        }
    }

    /// Sends a piece of the reply's body. Bytes put onto the wire.
    pub fn send_body(&mut self, ring: &Ring, data: BodyData) -> usize {
        match self {
            Self::Http1(client) => client.send_body(ring, data),
            Self::Http2(stream) => {
                let data_bytes = data.len();
                if let Some(sender) = &mut stream.sender {
                    sender.send(data, ring.now());
                }
                data_bytes
            }
        }
    }

    /// Sends a copy of `data` as body. Bytes put onto the wire.
    pub fn send_slice(&mut self, ring: &Ring, data: &[u8]) -> usize {
        match self {
            Self::Http1(client) => client.send_slice(ring, data),
            Self::Http2(_) => self.send_body(ring, BodyData::Bytes(Bytes::copy_from_slice(data))),
        }
    }

    /// Ends the reply's body. Bytes put onto the wire.
    pub fn finish_body(&mut self, ring: &Ring, trailers: &HeaderMap, case: NameCase) -> usize {
        match self {
            Self::Http1(client) => client.finish_body(ring, trailers, case),
            Self::Http2(stream) => {
                if let Some(sender) = &mut stream.sender {
                    sender.finish(trailers);
                }
                trailers.byte_count()
            }
        }
    }

    /// Whether trailers reach this client: over HTTP/1.1 only where the configuration says so.
    pub fn takes_trailers(&self, http1_trailers: bool) -> bool {
        http1_trailers || matches!(self, Self::Http2(_))
    }
}
