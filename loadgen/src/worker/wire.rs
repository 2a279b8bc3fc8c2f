//! What the one connection speaks that carries a request after the other: HTTP/1.1, raw TCP or WebSocket. No I/O, no clock.

use super::echo::{Tcp, WebSocket};
use super::reply::{Checks, Malformed, Outcome, Progress, Reader};
use super::{Payload, Request};

pub(super) enum Wire {
    Http(Reader),
    Tcp(Tcp),
    WebSocket(WebSocket),
}

impl Wire {
    /// For a new connection that carries `request`; `seed` is of the masks and keys.
    pub(super) fn new(request: &Request, head_request: bool, seed: u64) -> Wire {
        match request {
            Request::Tcp(_) => Wire::Tcp(Tcp::new(Payload::default())),
            Request::WebSocket { .. } => Wire::WebSocket(WebSocket::new(seed, Payload::default())),
            Request::Http1(_) | Request::Http2(_) => Wire::Http(Reader::new(head_request)),
        }
    }

    /// The bytes of the request that `payload` is; what comes from now on is its reply.
    pub(super) fn request(&mut self, payload: &Payload) -> Payload {
        match self {
            Wire::Http(_) => payload.clone(),
            Wire::Tcp(tcp) => {
                *tcp = Tcp::new(payload.clone());
                payload.clone()
            }
            Wire::WebSocket(socket) => Payload::new(socket.frame(payload).into()),
        }
    }

    pub(super) fn feed(&mut self, bytes: &[u8], checks: &Checks) -> Result<Progress, Malformed> {
        match self {
            Wire::Http(reader) => reader.feed(bytes, checks),
            Wire::Tcp(tcp) => Ok(tcp.feed(bytes)),
            Wire::WebSocket(socket) => socket.feed(bytes, checks),
        }
    }

    /// What the end of the connection means for the reply that has begun.
    pub(super) fn closed(&mut self, checks: &Checks) -> Option<Outcome> {
        match self {
            Wire::Http(reader) => reader.closed(checks),
            Wire::Tcp(_) | Wire::WebSocket(_) => None,
        }
    }

    /// What has to be written before the rest of the reply is waited for.
    pub(super) fn answers(&mut self) -> Option<Payload> {
        match self {
            Wire::WebSocket(socket) => socket.answers().map(|frames| Payload::new(frames.into())),
            Wire::Http(_) | Wire::Tcp(_) => None,
        }
    }
}
