//! The time between accept and the choice of a filter chain: bytes are received for the listener filters and put back.

use std::future::poll_fn;
use std::task::Poll;

use torus_ring::Chunk;

use crate::config::snapshot::Listener;
use crate::downstream::connection::Connection;
use crate::exchange::core_state::CoreState;
use crate::listener::chain_match::{ConnectionFacts, Found};
use crate::listener::filter::{Inspection, Verdict};
use crate::telemetry::names::ListenerStat;
use crate::transport::Transport;

/// What is known of `connection` without a look at its bytes.
pub(super) fn facts(connection: &Connection) -> ConnectionFacts {
    ConnectionFacts {
        local: connection.info.local.clone(),
        remote: connection.info.direct_remote.clone(),
        direct_remote: connection.info.direct_remote.clone(),
        found: Found::default(),
    }
}

/// Receives until the listener filters know enough; `None` where the connection is over. Everything received is still to be read.
pub(super) async fn inspect(
    core: &CoreState,
    listener: &Listener,
    connection: &mut Connection,
) -> Option<ConnectionFacts> {
    let mut inspection = Inspection::new(facts(connection));
    let socket = &mut connection.client.socket;
    let mut received = Received::None;
    let mut timer = core.ring.timer();
    if let Some(timeout) = listener.filters_timeout {
        timer.set(connection.opened_at + timeout);
    }
    let verdict = loop {
        match inspection.look(&listener.filters, core.core, received.bytes()) {
            Verdict::More => {}
            verdict => break Some(verdict),
        }
        let event = poll_fn(|cx| match socket.poll_recv(cx) {
            Poll::Ready(received) => Poll::Ready(Some(received)),
            Poll::Pending if listener.filters_timeout.is_some() => timer.poll_expired(cx).map(|()| None),
            Poll::Pending => Poll::Pending,
        });
        match event.await {
            Some(Ok(Some(chunk))) => received.push(chunk),
            Some(Ok(None) | Err(_)) => {
                listener.stats.increment(core.core, ListenerStat::DownstreamListenerFilterRemoteClose);
                break None;
            }
            None => {
                listener.stats.increment(core.core, ListenerStat::DownstreamPreCxTimeout);
                break listener.filters_timeout_continues.then_some(Verdict::Done);
            }
        }
    };
    if verdict == Some(Verdict::Refuse) {
        listener.stats.increment(core.core, ListenerStat::DownstreamListenerFilterError);
    }
    received.put_back(core, socket);
    (verdict == Some(Verdict::Done)).then_some(inspection.facts)
}

/// The first bytes. In most cases they are one chunk, which is not copied.
enum Received {
    None,
    One(Chunk),
    Several(Vec<u8>),
}

impl Received {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::None => &[],
            Self::One(chunk) => chunk,
            Self::Several(bytes) => bytes,
        }
    }

    fn push(&mut self, chunk: Chunk) {
        match self {
            Self::None => *self = Self::One(chunk),
            Self::One(first) => *self = Self::Several([&**first, &*chunk].concat()),
            Self::Several(bytes) => bytes.extend_from_slice(&chunk),
        }
    }

    fn put_back(self, core: &CoreState, socket: &mut Transport) {
        match self {
            Self::None => {}
            Self::One(chunk) => socket.unread(chunk),
            Self::Several(bytes) => socket.unread(core.ring.chunk(&bytes)),
        }
    }
}
