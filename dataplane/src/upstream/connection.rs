//! One HTTP/1.1 connection to an endpoint.

use std::task::{Context, Poll};

use torus_codec::{ChunkedDecoder, HeaderMap, Limits, RequestMethod, ResponseHead, parse_response_from};
use torus_ring::Nanos;

use crate::cluster::{ClusterIndex, HostIndex, Priority};
use crate::config::address::Address;
use crate::transport::Transport;
use crate::wire::{BodyError, BodyEvent, BodyReader, HeadError, HeadReader};

/// A connection to an endpoint, and where it belongs.
pub struct Upstream {
    /// The connection itself.
    pub socket: Transport,
    /// Our end of it.
    pub local: Option<Address>,
    /// Counted from 1 on this core.
    pub id: u64,
    /// Requests sent on it.
    pub request_count: u32,
    /// When it was opened.
    pub opened_at: Nanos,
    /// When it was last returned.
    pub idle_since: Nanos,
    pub(super) place: Place,
    /// Priority of the request that uses it.
    pub(super) request_priority: Priority,
    /// Bytes received and sent that the cluster's counters have.
    pub(super) counted_bytes: (u64, u64),
    head: HeadReader,
    body: BodyReader,
    /// The peer announced that it closes after this reply, or something makes another request unsafe.
    pub must_close: bool,
    /// The peer ended it.
    pub is_closed_by_peer: bool,
}

/// Where a connection belongs, and in which limits it is counted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub cluster: ClusterIndex,
    /// The endpoint's place in the endpoints of `epoch`.
    pub host: HostIndex,
    pub epoch: u32,
    pub priority: Priority,
    pub counted: Counted,
}

/// Which connection limits count a connection; the first one to an endpoint may be over a limit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counted {
    pub by_cluster: bool,
    pub by_host: bool,
}

impl Upstream {
    pub(super) fn new(socket: Transport, id: u64, place: Place, now: Nanos) -> Self {
        let local = socket.local_addr().ok().map(|local| Address::from(&local));
        Self {
            socket,
            local,
            id,
            request_count: 0,
            opened_at: now,
            idle_since: now,
            request_priority: place.priority,
            place,
            counted_bytes: (0, 0),
            head: HeadReader::default(),
            body: BodyReader::Done,
            must_close: false,
            is_closed_by_peer: false,
        }
    }

    /// The length in bytes of the next response head, which is then in `response`.
    ///
    /// The body that it announces is read with [`Self::poll_body`]; a 1xx head has none and another head follows.
    pub fn poll_head(
        &mut self,
        method: RequestMethod,
        limits: &Limits,
        response: &mut ResponseHead,
        cx: &mut Context<'_>,
    ) -> Poll<Result<usize, HeadError>> {
        let parsed = self.head.poll_head(&mut self.socket, cx, |bytes, seen_bytes| {
            parse_response_from(bytes, seen_bytes, method, limits, response)
        });
        if let Poll::Ready(Ok(_)) = parsed {
            self.body = BodyReader::new(response.body, ChunkedDecoder::new(limits));
            if !response.is_informational() && !response.keep_alive {
                self.must_close = true;
            }
        }
        parsed
    }

    /// The next piece of the response body.
    pub fn poll_body(&mut self, trailers: &mut HeaderMap, cx: &mut Context<'_>) -> Poll<Result<BodyEvent, BodyError>> {
        let until_close = matches!(self.body, BodyReader::UntilClose);
        self.must_close |= until_close;
        let event = self.body.poll_next(&mut self.socket, trailers, cx);
        if until_close && matches!(event, Poll::Ready(Ok(BodyEvent::End))) {
            self.is_closed_by_peer = true;
        }
        event
    }

    /// The protocol was switched by the last head: everything up to the end of the connection is its body.
    pub fn start_bytes(&mut self) {
        self.body = BodyReader::UntilClose;
        self.must_close = true;
    }

    /// Whether a part of a head was received.
    pub fn head_is_partial(&self) -> bool {
        self.head.is_partial()
    }

    /// Whether the whole response was read.
    pub fn response_is_complete(&self) -> bool {
        self.body.is_done() && !self.head.is_partial()
    }
}
