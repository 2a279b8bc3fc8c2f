//! The client connections of one core: those that wait for a request, and places for those in a runner's hands.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use torus_ring::{Nanos, Socket};

use crate::config::address::Address;
use crate::config::snapshot::{FilterChain, Listener};
use crate::downstream::connection::{Connection, Rest};
use crate::downstream::{CodecType, ConnectionInfo};
use crate::exchange::client::Client;
use crate::exchange::core_state::CoreState;
use crate::filter;
use crate::listener::chain_match::{ChainIndex, ConnectionFacts};
use crate::slab::{Slab, SlabKey};
use crate::telemetry::names::{HttpStat, ListenerStat};
use crate::transport::Transport;
use crate::worker::ListenerHandle;
use crate::worker::connection_limit::LimitReached;

/// The connections of one core.
#[derive(Default)]
pub(super) struct Connections {
    slots: Slab<Slot>,
    /// One entry for each connection, looked at when its idle time would be over; most have been busy since and get another.
    idle_checks: VecDeque<IdleCheck>,
    /// When handshakes that have not even begun are given up.
    handshake_checks: VecDeque<(Nanos, SlabKey)>,
    /// When listener filters that have not seen a byte are given up.
    inspection_checks: VecDeque<(Nanos, SlabKey)>,
    /// Idle connections whose last reply was not wholly sent when they were put back.
    unsent: Vec<SlabKey>,
}

struct Slot {
    /// `None` while a runner has it. Boxed, so that it moves to a runner and back as one pointer.
    connection: Option<Box<Connection>>,
    idle_since: Nanos,
    is_unsent: bool,
}

struct IdleCheck {
    at: Nanos,
    timeout: Duration,
    key: SlabKey,
}

impl Connections {
    /// How many connections there are, idle or in a runner's hands.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Adds a connection that waits for its first request.
    pub(super) fn insert_idle(&mut self, connection: Box<Connection>, now: Nanos, chain: &FilterChain) -> SlabKey {
        let key = self.slots.insert(Slot { connection: Some(connection), idle_since: now, is_unsent: false });
        self.expire(key, now, chain);
        self.park(key);
        key
    }

    /// Adds a connection whose filter chain is not chosen yet; nothing was received of it.
    pub(super) fn insert_unchosen(
        &mut self,
        connection: Box<Connection>,
        now: Nanos,
        timeout: Option<Duration>,
    ) -> SlabKey {
        let key = self.slots.insert(Slot { connection: Some(connection), idle_since: now, is_unsent: false });
        if let Some(timeout) = timeout {
            self.inspection_checks.push_back((now + timeout, key));
        }
        self.park(key);
        key
    }

    /// Sees to it that a connection which has its chain now does not stay idle for ever.
    pub(super) fn expire(&mut self, key: SlabKey, now: Nanos, chain: &FilterChain) {
        let Some(manager) = chain.http() else { return };
        if let Some(timeout) = manager.timeouts.idle {
            self.idle_checks.push_back(IdleCheck { at: now + timeout, timeout, key });
        }
        if chain.tls.is_some() {
            self.handshake_checks.push_back((now + chain.handshake_timeout, key));
        }
    }

    /// Connections whose listener filters have waited for a first byte for too long.
    pub(super) fn take_uninspected(&mut self, now: Nanos) -> Vec<SlabKey> {
        let mut late = Vec::new();
        while self.inspection_checks.front().is_some_and(|(at, _)| *at <= now) {
            let Some((_, key)) = self.inspection_checks.pop_front() else { break };
            let connection = self.slots.get_mut(key).and_then(|slot| slot.connection.as_ref());
            if connection.is_some_and(|connection| connection.info.chain.is_none()) {
                late.push(key);
            }
        }
        late
    }

    /// Hands the connection to a runner; its place stays.
    pub(super) fn take(&mut self, key: SlabKey) -> Option<Box<Connection>> {
        let mut connection = self.slots.get_mut(key)?.connection.take()?;
        connection.client.socket.unpark();
        Some(connection)
    }

    /// Takes an idle connection back.
    pub(super) fn put_back(&mut self, key: SlabKey, connection: Box<Connection>, now: Nanos) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        let has_unsent = connection.client.socket.queued_bytes() > 0;
        if has_unsent && !slot.is_unsent {
            slot.is_unsent = true;
            self.unsent.push(key);
        }
        slot.connection = Some(connection);
        slot.idle_since = now;
        self.park(key);
    }

    /// Gives up the place of a connection that a runner had.
    pub(super) fn remove(&mut self, key: SlabKey) {
        self.slots.remove(key);
    }

    /// Takes out every idle connection that is `wanted`.
    #[allow(clippy::vec_box, reason = "they are in their boxes already")]
    pub(super) fn take_idle(&mut self, wanted: impl Fn(&Connection) -> bool) -> Vec<Box<Connection>> {
        let is_wanted = |slot: &Slot| slot.connection.as_ref().is_some_and(|connection| wanted(connection));
        let keys: Vec<SlabKey> =
            self.slots.iter_mut().filter(|(_, slot)| is_wanted(slot)).map(|(key, _)| key).collect();
        keys.into_iter().filter_map(|key| self.slots.remove(key)?.connection).collect()
    }

    /// Takes out the connections that were idle for too long, and those whose client takes no more of its last reply.
    pub(super) fn take_expired(&mut self, core: &CoreState, now: Nanos) -> Vec<(Box<Connection>, Rest)> {
        let mut expired = Vec::new();
        while self.idle_checks.front().is_some_and(|check| check.at <= now) {
            let Some(check) = self.idle_checks.pop_front() else { break };
            let Some(slot) = self.slots.get_mut(check.key) else { continue };
            let idle = slot.connection.is_some();
            if idle && now.since(slot.idle_since) >= check.timeout {
                count_idle_timeout(core, slot);
                let connection = self.slots.remove(check.key).and_then(|slot| slot.connection);
                expired.extend(connection.map(|connection| (connection, Rest::Close)));
            } else {
                let from = if idle { slot.idle_since } else { now };
                self.idle_checks.push_back(IdleCheck { at: from + check.timeout, ..check });
            }
        }
        // A handshake that has begun has a timer of its own, with its runner.
        while self.handshake_checks.front().is_some_and(|(at, _)| *at <= now) {
            let Some((_, key)) = self.handshake_checks.pop_front() else { break };
            let waits = self.slots.get_mut(key).and_then(|slot| slot.connection.as_ref());
            if waits.is_some_and(|connection| connection.client.socket.is_handshaking())
                && let Some(connection) = self.slots.remove(key).and_then(|slot| slot.connection)
            {
                let stats = &connection.listener.stats;
                stats.increment(core.core, ListenerStat::DownstreamCxTransportSocketConnectTimeout);
                expired.push((connection, Rest::Abort));
            }
        }
        let mut place = 0;
        while let Some(key) = self.unsent.get(place).copied() {
            let stays = match self.slots.get_mut(key) {
                None => false,
                Some(slot) => match &slot.connection {
                    Some(connection) if connection.client.socket.queued_bytes() > 0 => {
                        let socket = &connection.client.socket;
                        let chain = connection.listener.chain(connection.info.chain);
                        let manager = chain.and_then(FilterChain::http);
                        let timeout = manager.and_then(|manager| manager.timeouts.write_progress);
                        let stuck = timeout.is_some_and(|it| now.since(socket.last_write_progress()) >= it);
                        if stuck {
                            let connection = self.slots.remove(key).and_then(|slot| slot.connection);
                            expired.extend(connection.map(|connection| (connection, Rest::Abort)));
                        }
                        !stuck
                    }
                    Some(_) | None => {
                        slot.is_unsent = false;
                        false
                    }
                },
            };
            if stays {
                place += 1;
            } else {
                self.unsent.swap_remove(place);
            }
        }
        expired
    }

    fn park(&mut self, key: SlabKey) {
        if let Some(connection) = self.slots.get_mut(key).and_then(|slot| slot.connection.as_mut()) {
            connection.client.socket.park(key.token());
        }
    }
}

fn count_idle_timeout(core: &CoreState, slot: &Slot) {
    let Some(connection) = &slot.connection else { return };
    if let Some(manager) = connection.listener.chain(connection.info.chain).and_then(FilterChain::http) {
        manager.stats.increment(core.core, HttpStat::DownstreamCxIdleTimeout);
    }
}

/// A new connection whose filter chain is not chosen yet; `None` where a limit refuses it.
pub(super) fn open(core: &Rc<CoreState>, listener: &ListenerHandle, socket: Socket) -> Option<Box<Connection>> {
    let stats = &listener.stats;
    let local = Address::from(&socket.local_addr().ok()?);
    // A client on a unix socket has no address of its own; Envoy shows the listener's.
    let direct_remote = match Address::from(&socket.peer_addr().ok()?) {
        Address::Pipe(path) if path.as_os_str().is_empty() => local.clone(),
        address => address,
    };
    if let Err(reached) = core.limits.admit(&listener.connections, listener.ignore_global_connection_limit) {
        stats.increment(core.core, reached.into());
        return None;
    }
    stats.increment(core.core, ListenerStat::DownstreamPreCxActive);
    let info = ConnectionInfo::new(direct_remote, local);
    Some(Box::new(Connection {
        client: Client::new(Transport::from(socket), false),
        info,
        listener: Rc::clone(listener),
        opened_at: core.ring.now(),
        request_count: 0,
        is_admitted: false,
        is_http1: false,
    }))
}

/// Gives a connection without a chain to another listener; `None` where a limit of that one refuses it.
pub(super) fn hand_over(
    core: &Rc<CoreState>,
    mut connection: Box<Connection>,
    to: &ListenerHandle,
) -> Option<Box<Connection>> {
    let from = std::mem::replace(&mut connection.listener, Rc::clone(to));
    from.stats.decrement(core.core, ListenerStat::DownstreamPreCxActive);
    core.limits.release(&from.connections, from.ignore_global_connection_limit);
    if let Err(reached) = core.limits.admit(&to.connections, to.ignore_global_connection_limit) {
        to.stats.increment(core.core, reached.into());
        return None;
    }
    to.stats.increment(core.core, ListenerStat::DownstreamPreCxActive);
    Some(connection)
}

impl From<LimitReached> for ListenerStat {
    fn from(reached: LimitReached) -> Self {
        match reached {
            LimitReached::Listener => Self::DownstreamCxOverflow,
            LimitReached::Global => Self::DownstreamGlobalCxOverflow,
        }
    }
}

/// Gives a connection its filter chain and counts it; `None` where no chain takes it, and it is closed.
pub(super) fn choose(
    core: &Rc<CoreState>,
    listener: &Listener,
    connection: Box<Connection>,
    facts: &ConnectionFacts,
) -> Option<Box<Connection>> {
    let stats = &listener.stats;
    let index = listener.chain_matcher.find(facts);
    let Some(chain) = listener.chain(index) else {
        stats.increment(core.core, ListenerStat::NoFilterChainMatch);
        close(core, connection, Rest::Gone);
        return None;
    };
    let Connection { client, mut info, listener: place, opened_at, request_count, is_admitted, is_http1 } = *connection;
    let transport = match (&chain.tls, client.socket) {
        (Some(tls), Transport::Plain(socket)) => match tls.accept(socket, &core.ring) {
            Ok(session) => Transport::Tls(Box::new(session)),
            Err(error) => {
                tls.count_failure(core.core, &error);
                let ended =
                    EndedConnection { socket: None, listener: place, chain: None, opened_at, is_admitted, is_http1 };
                close_ended(core, ended, Rest::Gone);
                return None;
            }
        },
        (_, transport) => transport,
    };
    stats.decrement(core.core, ListenerStat::DownstreamPreCxActive);
    stats.increment(core.core, ListenerStat::DownstreamCxTotal);
    stats.increment(core.core, ListenerStat::DownstreamCxActive);
    let mut may_be_http2 = false;
    if let Some(manager) = chain.http() {
        may_be_http2 = manager.codec == CodecType::Auto;
        manager.stats.increment(core.core, HttpStat::DownstreamCxTotal);
        manager.stats.increment(core.core, HttpStat::DownstreamCxActive);
        if chain.tls.is_some() {
            manager.stats.increment(core.core, HttpStat::DownstreamCxSslTotal);
            manager.stats.increment(core.core, HttpStat::DownstreamCxSslActive);
        }
    }
    info.id = core.next_connection_id();
    info.chain = index;
    info.secure = chain.tls.is_some();
    let client = Client::new(transport, may_be_http2);
    Some(Box::new(Connection { client, info, listener: place, opened_at, request_count, is_admitted, is_http1 }))
}

/// A connection that is over.
pub(super) struct EndedConnection {
    pub socket: Option<Transport>,
    pub listener: ListenerHandle,
    pub chain: Option<ChainIndex>,
    pub opened_at: Nanos,
    pub is_admitted: bool,
    pub is_http1: bool,
}

/// Closes a connection and counts its end.
pub(super) fn close(core: &Rc<CoreState>, connection: Box<Connection>, rest: Rest) {
    let Connection { client, info, listener, opened_at, is_admitted, is_http1, .. } = *connection;
    let socket = Some(client.socket);
    let ended = EndedConnection { socket, listener, chain: info.chain, opened_at, is_admitted, is_http1 };
    close_ended(core, ended, rest);
}

/// Closes what is left of a connection and counts its end.
pub(super) fn close_ended(core: &Rc<CoreState>, ended: EndedConnection, rest: Rest) {
    let listener = &ended.listener;
    core.limits.release(&listener.connections, listener.ignore_global_connection_limit);
    let Some(chain) = listener.chain(ended.chain) else {
        listener.stats.decrement(core.core, ListenerStat::DownstreamPreCxActive);
        return;
    };
    if ended.is_admitted {
        filter::network::release(&chain.filters, core.core);
    }
    listener.stats.decrement(core.core, ListenerStat::DownstreamCxActive);
    listener.stats.increment(core.core, ListenerStat::DownstreamCxDestroy);
    let length_ms = core.ring.now().since(ended.opened_at).as_millis() as u64;
    listener.stats.record(core.core, ListenerStat::DownstreamCxLengthMs, length_ms);
    let mut linger = DELAYED_CLOSE;
    if let Some(manager) = chain.http() {
        linger = manager.timeouts.delayed_close;
        manager.stats.decrement(core.core, HttpStat::DownstreamCxActive);
        if chain.tls.is_some() {
            manager.stats.decrement(core.core, HttpStat::DownstreamCxSslActive);
        }
        if ended.is_http1 {
            manager.stats.decrement(core.core, HttpStat::DownstreamCxHttp1Active);
        }
        manager.stats.increment(core.core, HttpStat::DownstreamCxDestroy);
        // A handshake that failed was ended by what the peer sent.
        let has_failed = rest == Rest::Close && ended.socket.as_ref().is_some_and(Transport::is_handshaking);
        let by_whom = match rest {
            Rest::Gone => HttpStat::DownstreamCxDestroyRemote,
            _ if has_failed => HttpStat::DownstreamCxDestroyRemote,
            Rest::Idle | Rest::Close | Rest::Abort | Rest::Http2 | Rest::Raw => HttpStat::DownstreamCxDestroyLocal,
        };
        manager.stats.increment(core.core, by_whom);
        manager.stats.record(core.core, HttpStat::DownstreamCxLengthMs, length_ms);
    }
    let Some(socket) = ended.socket else { return };
    match rest {
        Rest::Abort => socket.abort(),
        Rest::Close | Rest::Idle | Rest::Http2 | Rest::Raw => socket.close_gracefully(linger),
        Rest::Gone => drop(socket),
    }
}

/// How long a client without HTTP may take to hear the end. Source: HttpConnectionManager.delayed_close_timeout, its default.
const DELAYED_CLOSE: Duration = Duration::from_secs(1);
