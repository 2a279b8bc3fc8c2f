//! The time between accept and the choice of a filter chain: bytes are received for the listener filters and put back, but for what
//! was meant for a filter.

use std::future::poll_fn;
use std::task::Poll;

use torus_ring::Chunk;

use crate::config::address::Address;
use crate::config::snapshot::Listener;
use crate::downstream::ConnectionInfo;
use crate::downstream::connection::Connection;
use crate::exchange::core_state::CoreState;
use crate::listener::chain_match::{ConnectionFacts, Found};
use crate::listener::filter::{Inspection, ListenerFilter, Verdict};
use crate::telemetry::names::ListenerStat;
use crate::transport::Transport;

/// What is known of `connection` without a look at its bytes.
pub(super) fn facts(connection: &Connection) -> ConnectionFacts {
    ConnectionFacts {
        local: connection.info.local.clone(),
        remote: connection.info.remote.clone(),
        direct_remote: connection.info.direct_remote.clone(),
        found: Found::default(),
    }
}

/// The filters of `connection`'s listener before they have seen a byte.
pub(super) fn begin(connection: &Connection) -> Inspection {
    let mut inspection = Inspection::new(facts(connection));
    if connection.listener.filters.iter().any(|filter| matches!(filter, ListenerFilter::OriginalDst)) {
        let original = connection.client.socket.original_destination();
        inspection.original = original.and_then(|original| Address::from(&original).ip());
    }
    inspection
}

/// Keeps what the filters found out.
pub(super) fn note(info: &mut ConnectionInfo, inspection: &mut Inspection) {
    info.local.clone_from(&inspection.facts.local);
    info.remote.clone_from(&inspection.facts.remote);
    info.is_restored |= inspection.is_restored;
    info.inspected_name.clone_from(&inspection.facts.found.server_name);
    if !inspection.tlvs.is_empty() {
        info.tlvs = Some(std::mem::take(&mut inspection.tlvs).into());
    }
}

/// Receives until the listener filters know enough; `None` where the connection is over. What no filter has taken is still to be read.
pub(super) async fn inspect(core: &CoreState, listener: &Listener, connection: &mut Connection) -> Option<Inspection> {
    let mut inspection = begin(connection);
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
    received.put_back(core, socket, inspection.taken_bytes);
    (verdict == Some(Verdict::Done)).then_some(inspection)
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

    /// All but the first `taken_bytes` is to be read again.
    fn put_back(self, core: &CoreState, socket: &mut Transport, taken_bytes: usize) {
        let left = match self {
            Self::None => return,
            Self::One(mut chunk) => {
                chunk.advance(taken_bytes);
                chunk
            }
            Self::Several(bytes) => core.ring.chunk(bytes.get(taken_bytes..).unwrap_or_default()),
        };
        if !left.is_empty() {
            socket.unread(left);
        }
    }
}
