//! The simulated driver: a seeded network in memory and a virtual clock.
//!
//! What TCP promises, it keeps: each direction of a connection delivers in order and once, a close with unread bytes and
//! bytes sent to a closed end are answered by a reset, and a full window makes the sender wait. Everything else is drawn:
//! how bytes are cut, how long each piece takes, what is refused or reset.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use crate::address::PeerAddr;
use crate::buffer::Chunk;
use crate::clock::Nanos;
use crate::core::{AfterReceive, Core, Phase, Receive};
use crate::driver::{Dice, Stalled, Wait};
use crate::listener_slot::Accepting;
use crate::remote::Mailbox;
use crate::sim::SimConfig;
use crate::slab::Key;

/// How far the clock moves in a turn that does not wait: a task that is always ready must not stop time.
const BUSY_TURN: Duration = Duration::from_micros(1);
/// First port that connecting ends are given.
const EPHEMERAL_PORT_FIRST: u16 = 32768;

/// Something on its way to one end of a connection.
enum Piece {
    Data(Vec<u8>),
    End,
    Reset,
}

enum Event {
    /// A connect reaches the listener.
    Knock { client: Key, address: PeerAddr },
    /// The answer to a connect reaches the client.
    Connected { client: Key, result: Result<(), i32> },
    /// A piece reaches an end.
    Arrive { at: Key, piece: Piece },
    /// The sender's kernel has taken bytes.
    Sent { from: Key, bytes: usize },
    /// An end begins to receive.
    Deliver { at: Key },
}

/// One end of a connection.
struct End {
    key: Key,
    local: PeerAddr,
    remote: PeerAddr,
    /// The other end, once it exists.
    peer: Option<Key>,
    /// Arrived and not delivered.
    inbound: VecDeque<Piece>,
    /// Bytes on their way to this end or arrived there: what the window bounds.
    inbound_bytes: usize,
    /// When the last piece that was sent to this end arrives: the next one comes later.
    last_arrival: Nanos,
    /// The peer waits for room in the window.
    peer_is_blocked: bool,
    /// The end of our side was sent.
    has_ended: bool,
    /// The connection is to be reset when the handle goes.
    aborts: bool,
}

/// The driver.
pub(crate) struct Sim {
    config: SimConfig,
    dice: Dice,
    now: Nanos,
    events: BinaryHeap<Reverse<(Nanos, u64)>>,
    /// What happens at an event, by its number.
    what: BTreeMap<u64, Event>,
    event_number: u64,
    /// The ends of connections, by socket slot.
    ends: BTreeMap<u32, End>,
    listeners: BTreeMap<String, u32>,
    ports: u16,
}

impl Sim {
    pub(crate) fn new(config: SimConfig) -> Sim {
        Sim {
            dice: Dice::new(config.seed),
            config,
            now: Nanos::ZERO,
            events: BinaryHeap::new(),
            what: BTreeMap::new(),
            event_number: 0,
            ends: BTreeMap::new(),
            listeners: BTreeMap::new(),
            ports: 0,
        }
    }

    pub(crate) fn seed(&self) -> u64 {
        self.config.seed
    }

    fn chance(&mut self, per_mille: u16) -> bool {
        self.dice.below(1000) < u64::from(per_mille)
    }

    /// How long the next piece takes.
    fn latency(&mut self) -> Duration {
        let mut wait = self.dice.below(self.config.latency_max.as_nanos() as u64 + 1);
        if self.chance(self.config.delay_per_mille) {
            wait += self.dice.below(self.config.delay_max.as_nanos() as u64 + 1);
        }
        Duration::from_nanos(wait)
    }

    fn schedule(&mut self, at: Nanos, event: Event) {
        self.event_number += 1;
        self.events.push(Reverse((at, self.event_number)));
        self.what.insert(self.event_number, event);
    }

    /// The end of a tenancy; `None` once its socket is closed.
    fn end(&mut self, key: Key) -> Option<&mut End> {
        self.ends.get_mut(&key.index).filter(|end| end.key == key)
    }

    pub(crate) fn listen(&mut self, core: &mut Core, address: &PeerAddr) -> u32 {
        let index = core.insert_listener(None);
        let before = self.listeners.insert(address.to_string(), index);
        assert!(before.is_none(), "somebody listens on {address} already");
        self.arm_accept(core, index);
        index
    }

    fn insert_end(&mut self, core: &Core, socket: u32, local: PeerAddr, remote: PeerAddr, peer: Option<Key>) -> Key {
        let key = core.sockets.key(socket).unwrap_or(Key { index: socket, generation: 0 });
        let end = End {
            key,
            local,
            remote,
            peer,
            inbound: VecDeque::new(),
            inbound_bytes: 0,
            last_arrival: self.now,
            peer_is_blocked: false,
            has_ended: false,
            aborts: false,
        };
        self.ends.insert(socket, end);
        key
    }

    pub(crate) fn connect_simulated(&mut self, core: &mut Core, address: &PeerAddr) -> u32 {
        let socket = core.insert_socket(-1, Phase::Connecting);
        let port = EPHEMERAL_PORT_FIRST + self.ports % (u16::MAX - EPHEMERAL_PORT_FIRST);
        self.ports = self.ports.wrapping_add(1);
        let local = PeerAddr::Ip(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
        let client = self.insert_end(core, socket, local, address.clone(), None);
        let at = self.now + self.latency();
        self.schedule(at, Event::Knock { client, address: address.clone() });
        socket
    }

    /// A socket that exists already has nothing to connect.
    pub(crate) fn connect(&mut self, _core: &mut Core, _socket: u32) {}

    pub(crate) fn arm_receive(&mut self, core: &mut Core, socket: u32) {
        let Some(at) = core.sockets.key(socket) else { return };
        if let Some(slot) = core.sockets.get_mut(socket) {
            slot.receive = Receive::Armed;
            self.schedule(self.now, Event::Deliver { at });
        }
    }

    pub(crate) fn send(&mut self, core: &mut Core, socket: u32) {
        let Some(from) = core.sockets.key(socket) else { return };
        let split = self.chance(self.config.split_per_mille);
        let cut = self.dice.next();
        let window = self.config.window_bytes;
        let peer = self.end(from).and_then(|end| end.peer);
        let room = match peer.and_then(|peer| self.end(peer)) {
            Some(peer) => window.saturating_sub(peer.inbound_bytes),
            // A closed peer takes everything, and answers with a reset.
            None => usize::MAX,
        };
        let Some(slot) = core.sockets.get_mut(socket) else { return };
        let Some(lanes) = slot.lanes_to_send() else { return };
        lanes.gather();
        let mut bytes = Vec::new();
        lanes.each_unsent(|part| bytes.extend_from_slice(part));
        slot.sending = true;
        bytes.truncate(room);
        if split && !bytes.is_empty() {
            bytes.truncate(1 + (cut % bytes.len() as u64) as usize);
        }
        if bytes.is_empty() {
            if let Some(peer) = peer.and_then(|peer| self.end(peer)) {
                peer.peer_is_blocked = true;
            }
            return;
        }
        let at = self.now + self.latency();
        self.schedule(at, Event::Sent { from, bytes: bytes.len() });
        match peer.filter(|&peer| self.end(peer).is_some()) {
            Some(_) if self.chance(self.config.reset_per_mille) => self.break_connection(from),
            Some(peer) => self.post(peer, Piece::Data(bytes)),
            None => self.post(from, Piece::Reset),
        }
    }

    /// Sends a piece to an end, behind what was sent there before.
    fn post(&mut self, to: Key, piece: Piece) {
        let arrival = self.now + self.latency();
        let Some(end) = self.end(to) else { return };
        if let Piece::Data(bytes) = &piece {
            end.inbound_bytes += bytes.len();
        }
        end.last_arrival = end.last_arrival.max(arrival);
        let at = end.last_arrival;
        self.schedule(at, Event::Arrive { at: to, piece });
    }

    /// Resets a connection for both ends, as something in the middle may.
    fn break_connection(&mut self, one: Key) {
        let other = self.end(one).and_then(|end| end.peer);
        self.post(one, Piece::Reset);
        if let Some(other) = other {
            self.post(other, Piece::Reset);
        }
    }

    /// Tells peers of sockets whose side was shut.
    fn post_ends(&mut self, core: &mut Core) {
        while let Some(socket) = core.shut_without_descriptor.pop() {
            let Some(key) = core.sockets.key(socket) else { continue };
            let Some(end) = self.end(key) else { continue };
            if end.has_ended {
                continue;
            }
            end.has_ended = true;
            if let Some(peer) = end.peer {
                self.post(peer, Piece::End);
            }
        }
    }

    /// Makes the close of a socket a reset.
    pub(crate) fn reset(&mut self, core: &mut Core, socket: u32) {
        if let Some(key) = core.sockets.key(socket)
            && let Some(end) = self.end(key)
        {
            end.aborts = true;
        }
    }

    pub(crate) fn close(&mut self, core: &mut Core, socket: u32) {
        self.post_ends(core);
        if let Some(end) = self.ends.remove(&socket)
            && let Some(peer) = end.peer
        {
            let has_unread = end.inbound.iter().any(|piece| matches!(piece, Piece::Data(_)));
            if end.aborts || has_unread {
                self.post(peer, Piece::Reset);
            } else if !end.has_ended {
                self.post(peer, Piece::End);
            }
            // A peer that waits for room here would wait for ever: its bytes now meet a closed end.
            if end.peer_is_blocked {
                self.schedule(self.now, Event::Sent { from: peer, bytes: 0 });
            }
        }
        core.free_socket(socket);
    }

    pub(crate) fn arm_accept(&mut self, core: &mut Core, listener: u32) {
        if let Some(slot) = core.listeners.get_mut(listener)
            && !slot.stopped
        {
            slot.accepting = Accepting::Armed;
        }
    }

    pub(crate) fn cancel_accept(&mut self, core: &mut Core, listener: u32) {
        let Some(slot) = core.listeners.get_mut(listener) else { return };
        slot.accepting = Accepting::Idle;
        let orphaned = slot.orphaned;
        self.listeners.retain(|_, &mut index| index != listener);
        if orphaned {
            let untaken: Vec<u32> = slot.accepted.drain(..).flatten().collect();
            untaken.into_iter().for_each(|socket| self.close(core, socket));
            core.free_listener(listener);
        }
    }

    pub(crate) fn peer_addr(&self, socket: u32) -> Option<PeerAddr> {
        self.ends.get(&socket).map(|end| end.remote.clone())
    }

    pub(crate) fn local_addr(&self, socket: u32) -> Option<PeerAddr> {
        self.ends.get(&socket).map(|end| end.local.clone())
    }

    pub(crate) fn poll(&mut self, core: &mut Core, mailbox: &Mailbox, wait: Wait) -> Result<(), Stalled> {
        core.stats.enters += 1;
        self.post_ends(core);
        self.feed_starved(core);
        let next = self.events.peek().map(|&Reverse((at, _))| at);
        self.now = match (wait, next) {
            (Wait::No, _) => self.now + BUSY_TURN,
            (_, Some(next)) if next <= self.now => self.now,
            (Wait::AtMost(most), Some(next)) => next.min(self.now + most),
            (Wait::AtMost(most), None) => self.now + most,
            (Wait::Forever, Some(next)) => next,
            (Wait::Forever, None) if mailbox.has_pending() => self.now,
            (Wait::Forever, None) => return Err(Stalled),
        };
        core.now = self.now;
        while let Some(&Reverse((at, number))) = self.events.peek()
            && at <= self.now
        {
            self.events.pop();
            if let Some(event) = self.what.remove(&number) {
                core.stats.events += 1;
                self.on_event(core, event);
            }
        }
        Ok(())
    }

    fn feed_starved(&mut self, core: &mut Core) {
        if core.pool.free_count() == 0 {
            return;
        }
        for socket in std::mem::take(&mut core.starved) {
            if core.sockets.get(socket).is_some_and(|slot| slot.receive == Receive::Starved) {
                self.arm_receive(core, socket);
            }
        }
    }

    fn on_event(&mut self, core: &mut Core, event: Event) {
        match event {
            Event::Knock { client, address } => self.on_knock(core, client, &address),
            Event::Connected { client, result } => {
                if core.sockets.holds(client) {
                    core.on_connected(client.index, result);
                }
            }
            Event::Sent { from, bytes } => {
                if core.sockets.holds(from) {
                    core.on_sent(from.index, Ok(bytes));
                }
            }
            Event::Arrive { at, piece } => {
                if let Some(end) = self.end(at) {
                    end.inbound.push_back(piece);
                    self.deliver(core, at);
                }
            }
            Event::Deliver { at } => self.deliver(core, at),
        }
    }

    fn on_knock(&mut self, core: &mut Core, client: Key, address: &PeerAddr) {
        let Some(local) = self.end(client).map(|end| end.local.clone()) else { return };
        let refused = self.chance(self.config.refuse_per_mille);
        let answer_at = self.now + self.latency();
        let listener = self.listeners.get(&address.to_string()).copied();
        let Some(listener) = listener.filter(|_| !refused) else {
            self.schedule(answer_at, Event::Connected { client, result: Err(libc::ECONNREFUSED) });
            return;
        };
        let socket = core.insert_socket(-1, Phase::Open);
        let server = self.insert_end(core, socket, address.clone(), local, Some(client));
        // What the server sends at once must not overtake the answer to the connect.
        if let Some(end) = self.end(client) {
            end.peer = Some(server);
            end.last_arrival = answer_at;
        }
        core.enqueue_accepted(listener, Ok(socket));
        self.schedule(answer_at, Event::Connected { client, result: Ok(()) });
    }

    /// Gives an end what has arrived, as far as it wants it.
    fn deliver(&mut self, core: &mut Core, at: Key) {
        if !core.sockets.holds(at) {
            return;
        }
        while core.sockets.get(at.index).is_some_and(|slot| slot.receive == Receive::Armed) {
            let Some(end) = self.ends.get_mut(&at.index).filter(|end| end.key == at) else { return };
            match end.inbound.front_mut() {
                None => return,
                Some(Piece::End) => {
                    end.inbound.pop_front();
                    core.on_receive_end(at.index, Ok(()));
                }
                Some(Piece::Reset) => {
                    end.inbound.pop_front();
                    core.on_receive_end(at.index, Err(libc::ECONNRESET));
                }
                Some(Piece::Data(bytes)) => {
                    let Some(buffer) = core.pool.take() else {
                        core.on_starved(at.index);
                        return;
                    };
                    let mut length = bytes.len().min(core.pool.buffer_bytes() as usize);
                    if self.dice.below(1000) < u64::from(self.config.split_per_mille) {
                        length = 1 + self.dice.below(length as u64) as usize;
                    }
                    let rest = bytes.split_off(length);
                    core.pool.fill(buffer, bytes);
                    if rest.is_empty() {
                        end.inbound.pop_front();
                    } else {
                        *bytes = rest;
                    }
                    end.inbound_bytes -= length;
                    let blocked = std::mem::take(&mut end.peer_is_blocked).then_some(end.peer).flatten();
                    if let Some(peer) = blocked {
                        self.schedule(self.now, Event::Sent { from: peer, bytes: 0 });
                    }
                    let chunk = Chunk::lease(&core.pool, buffer, length);
                    if core.on_received(at.index, chunk) == AfterReceive::Pause
                        && let Some(slot) = core.sockets.get_mut(at.index)
                    {
                        slot.receive = Receive::Idle;
                    }
                }
            }
        }
    }
}
