//! The sockets and listeners of one ring, as every driver sees them: drivers report what happened, handles ask for what
//! they want, and this is where both meet.

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::task::Waker;
use std::time::Duration;

use crate::address::RawAddr;
use crate::buffer::{Chunk, Pool};
use crate::clock::Nanos;
use crate::lanes::{FreeLanes, Lanes};
use crate::listener_slot::ListenerSlot;
use crate::part::{Part, WritePool};
use crate::slab::Slab;
use crate::stats::RingStats;
use crate::sys;

/// How far a socket's life has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Phase {
    /// The connect has not been answered.
    Connecting,
    /// Both sides may speak.
    Open,
    /// The handle is gone; what was written is still being sent.
    Flushing,
    /// The handle is gone and our side is shut; what the peer still sends is thrown away.
    Discarding,
    /// The handle is gone; the slot waits for the kernel's last completions.
    Closing,
}

/// How receiving stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Receive {
    /// Nothing asks for bytes.
    Idle,
    /// The driver delivers bytes as they come.
    Armed,
    /// The driver was told to stop and has not confirmed.
    Stopping,
    /// No buffer was free; the driver goes on when one returns.
    Starved,
    /// The peer has ended its side, or the connection is broken.
    Ended,
}

/// One socket.
pub(crate) struct SocketSlot {
    pub(crate) fd: RawFd,
    pub(crate) phase: Phase,
    pub(crate) receive: Receive,
    /// A send is with the driver.
    pub(crate) sending: bool,
    /// The slot stands in the list of sockets with something to send.
    dirty: bool,
    /// Our side is to be shut once everything is sent.
    shut_when_sent: bool,
    /// Our side is shut.
    is_shut: bool,
    parked: bool,
    eof: bool,
    /// The descriptor came from outside: somebody may hold a duplicate.
    pub(crate) adopted: bool,
    /// Completions that the kernel owes (io_uring).
    pub(crate) operations: u16,
    /// errno that ended receiving; zero: none.
    receive_error: i32,
    /// errno that ended sending; zero: none.
    send_error: i32,
    /// What epoll watches for this socket; zero: it is not registered.
    pub(crate) interest: u32,
    input_bytes: u32,
    output_bytes: u32,
    drained_at: u32,
    /// The timer of a graceful close.
    pub(crate) linger_timer: Option<u32>,
    linger: Duration,
    park_token: u64,
    bytes_received: u64,
    bytes_sent: u64,
    write_progress: Nanos,
    receive_waker: Option<Waker>,
    drain_waker: Option<Waker>,
    lanes: Option<Box<Lanes>>,
    /// The address of a connect that runs.
    pub(crate) address: Option<Box<RawAddr>>,
}

impl SocketSlot {
    pub(crate) fn new(fd: RawFd, phase: Phase, now: Nanos) -> SocketSlot {
        SocketSlot {
            fd,
            phase,
            receive: Receive::Idle,
            sending: false,
            dirty: false,
            shut_when_sent: false,
            is_shut: false,
            parked: false,
            eof: false,
            adopted: false,
            operations: 0,
            receive_error: 0,
            send_error: 0,
            interest: 0,
            input_bytes: 0,
            output_bytes: 0,
            drained_at: 0,
            linger_timer: None,
            linger: Duration::ZERO,
            park_token: 0,
            bytes_received: 0,
            bytes_sent: 0,
            write_progress: now,
            receive_waker: None,
            drain_waker: None,
            lanes: None,
            address: None,
        }
    }

    fn has_input(&self) -> bool {
        self.lanes.as_ref().is_some_and(|lanes| !lanes.input.is_empty())
    }

    /// Whether bytes, the end or an error wait to be read.
    pub(crate) fn has_received(&self) -> bool {
        self.eof || self.receive_error != 0 || self.has_input()
    }

    /// Whether the handle is gone and the ring ends the connection itself.
    pub(crate) fn is_ours_to_close(&self) -> bool {
        matches!(self.phase, Phase::Flushing | Phase::Discarding)
    }

    /// Whether somebody waits for bytes that would otherwise not come.
    pub(crate) fn wants_input(&self) -> bool {
        match self.phase {
            Phase::Open => self.receive_waker.is_some() || self.parked,
            Phase::Discarding => true,
            Phase::Connecting | Phase::Flushing | Phase::Closing => false,
        }
    }

    /// Gathers the next send; `None` when there is nothing to send or a send is running.
    pub(crate) fn lanes_to_send(&mut self) -> Option<&mut Lanes> {
        match self.lanes.as_deref_mut() {
            Some(lanes) if !self.sending && lanes.has_output() => Some(lanes),
            _ => None,
        }
    }

    pub(crate) fn queued_bytes(&self) -> usize {
        self.output_bytes as usize
    }

    pub(crate) fn bytes_received(&self) -> u64 {
        self.bytes_received
    }

    pub(crate) fn bytes_sent(&self) -> u64 {
        self.bytes_sent
    }

    pub(crate) fn write_progress(&self) -> Nanos {
        self.write_progress
    }
}

/// Chunks that may wait in one socket, however small they are: each holds a buffer.
const INPUT_CHUNKS_MAX: usize = 8;
/// Parts that may wait in one socket before received chunks are copied rather than held.
const HELD_PARTS_MAX: usize = 16;
/// Lanes that the free list keeps.
const FREE_LANES_MAX: usize = 256;

/// Sockets, listeners and what they share.
pub(crate) struct Core {
    pub(crate) sockets: Slab<SocketSlot>,
    pub(crate) listeners: Slab<ListenerSlot>,
    pub(crate) pool: Rc<Pool>,
    pub(crate) write_pool: Rc<WritePool>,
    pub(crate) now: Nanos,
    /// Sockets with something to send, each once.
    pub(crate) dirty: Vec<u32>,
    /// Sockets whose receiving waits for a buffer.
    pub(crate) starved: Vec<u32>,
    /// Sockets that the ring is to close.
    pub(crate) finished: Vec<u32>,
    /// Sockets whose graceful close has come to its next step.
    pub(crate) lingering: Vec<u32>,
    /// Simulated sockets whose side was shut: the driver tells the peer.
    pub(crate) shut_without_descriptor: Vec<u32>,
    /// Listeners that paused after an error: the ring sets the timer that ends the pause.
    pub(crate) accept_paused: Vec<u32>,
    pub(crate) woken_parked: VecDeque<u64>,
    pub(crate) parked_waker: Option<Waker>,
    pub(crate) parked_count: usize,
    free_lanes: FreeLanes,
    pub(crate) stats: RingStats,
    pub(crate) receive_queue_bytes_max: usize,
}

/// What a driver does after it has delivered bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum AfterReceive {
    GoOn,
    /// The socket's queue is full: stop receiving for it.
    Pause,
}

impl Core {
    pub(crate) fn new(pool: Rc<Pool>, write_pool: Rc<WritePool>, now: Nanos, receive_queue_bytes_max: usize) -> Core {
        Core {
            sockets: Slab::default(),
            listeners: Slab::default(),
            pool,
            write_pool,
            now,
            dirty: Vec::new(),
            starved: Vec::new(),
            finished: Vec::new(),
            lingering: Vec::new(),
            shut_without_descriptor: Vec::new(),
            accept_paused: Vec::new(),
            woken_parked: VecDeque::new(),
            parked_waker: None,
            parked_count: 0,
            free_lanes: Vec::new(),
            stats: RingStats::default(),
            receive_queue_bytes_max,
        }
    }

    pub(crate) fn insert_socket(&mut self, fd: RawFd, phase: Phase) -> u32 {
        self.sockets.insert(SocketSlot::new(fd, phase, self.now)).index
    }

    /// Frees a socket's slot and closes its descriptor. Every completion has been reaped.
    pub(crate) fn free_socket(&mut self, index: u32) {
        let Some(mut slot) = self.sockets.remove(index) else { return };
        debug_assert_eq!(slot.operations, 0, "a slot is freed after its last completion");
        if let Some(lanes) = slot.lanes.take() {
            Self::recycle(&mut self.free_lanes, lanes);
        }
        if slot.parked {
            self.parked_count -= 1;
        }
        if slot.fd >= 0 {
            sys::close(slot.fd);
        }
    }

    fn recycle(free: &mut FreeLanes, mut lanes: Box<Lanes>) {
        lanes.sent(0);
        lanes.input.clear();
        lanes.clear_output();
        if free.len() < FREE_LANES_MAX {
            free.push(lanes);
        }
    }

    fn lanes<'a>(free: &mut FreeLanes, slot: &'a mut SocketSlot) -> &'a mut Lanes {
        slot.lanes.get_or_insert_with(|| free.pop().unwrap_or_else(Lanes::new))
    }

    /// Gives the queues of a socket back when nothing is in them.
    fn release_idle_lanes(free: &mut FreeLanes, slot: &mut SocketSlot) {
        if slot.lanes.as_ref().is_some_and(|lanes| lanes.is_idle())
            && let Some(lanes) = slot.lanes.take()
            && free.len() < FREE_LANES_MAX
        {
            free.push(lanes);
        }
    }

    /// Wakes whoever waits for input: the task, or the one that looks after parked sockets.
    fn announce_input(
        slot: &mut SocketSlot,
        woken: &mut VecDeque<u64>,
        waker: &mut Option<Waker>,
        parked_count: &mut usize,
    ) {
        if slot.parked {
            slot.parked = false;
            *parked_count -= 1;
            woken.push_back(slot.park_token);
            if let Some(waker) = waker.take() {
                waker.wake();
            }
        } else if let Some(waker) = slot.receive_waker.take() {
            waker.wake();
        }
    }

    // What drivers report.

    /// Takes in received bytes.
    pub(crate) fn on_received(&mut self, index: u32, mut chunk: Chunk) -> AfterReceive {
        let Some(slot) = self.sockets.get_mut(index) else { return AfterReceive::GoOn };
        slot.bytes_received += chunk.len() as u64;
        self.stats.bytes_received += chunk.len() as u64;
        match slot.phase {
            Phase::Open | Phase::Connecting => {}
            // Nobody reads any more; in the discarding phase the bytes are read only to be thrown away.
            Phase::Discarding | Phase::Closing => return AfterReceive::GoOn,
            Phase::Flushing => return AfterReceive::GoOn,
        }
        if self.pool.is_scarce() {
            // Queues that nobody reads must not hold the buffers that everybody receives into.
            chunk.compact();
        }
        slot.input_bytes += chunk.len() as u32;
        let full = slot.input_bytes as usize > self.receive_queue_bytes_max;
        let lanes = Self::lanes(&mut self.free_lanes, slot);
        lanes.input.push_back(chunk);
        let full = full || lanes.input.len() > INPUT_CHUNKS_MAX;
        Self::announce_input(slot, &mut self.woken_parked, &mut self.parked_waker, &mut self.parked_count);
        if full {
            self.stats.paused += 1;
            AfterReceive::Pause
        } else {
            AfterReceive::GoOn
        }
    }

    /// Takes in the end of the peer's side, or the error that broke the connection.
    pub(crate) fn on_receive_end(&mut self, index: u32, result: Result<(), i32>) {
        let Some(slot) = self.sockets.get_mut(index) else { return };
        slot.receive = Receive::Ended;
        match result {
            Ok(()) => slot.eof = true,
            Err(errno) => {
                slot.receive_error = errno;
                // A broken connection sends nothing any more either. A running send ends by itself.
                if slot.send_error == 0 {
                    slot.send_error = errno;
                }
                if let Some(waker) = slot.drain_waker.take() {
                    waker.wake();
                }
            }
        }
        match slot.phase {
            Phase::Open => {
                Self::announce_input(slot, &mut self.woken_parked, &mut self.parked_waker, &mut self.parked_count);
            }
            Phase::Flushing if result.is_err() => self.finished.push(index),
            Phase::Discarding => self.finished.push(index),
            Phase::Connecting | Phase::Flushing | Phase::Closing => {}
        }
    }

    /// Takes in that no buffer was free: receiving goes on when one returns.
    pub(crate) fn on_starved(&mut self, index: u32) {
        if let Some(slot) = self.sockets.get_mut(index) {
            slot.receive = Receive::Starved;
            self.starved.push(index);
            self.stats.buffers_exhausted += 1;
        }
    }

    /// Takes in the end of a send.
    pub(crate) fn on_sent(&mut self, index: u32, result: Result<usize, i32>) {
        let Some(slot) = self.sockets.get_mut(index) else { return };
        slot.sending = false;
        let Some(lanes) = slot.lanes.as_deref_mut() else { return };
        match result {
            Ok(bytes) => {
                lanes.sent(bytes);
                slot.output_bytes -= bytes as u32;
                slot.bytes_sent += bytes as u64;
                slot.write_progress = self.now;
                self.stats.bytes_sent += bytes as u64;
            }
            Err(libc::EINTR | libc::EAGAIN) => lanes.sent(0),
            Err(errno) => {
                lanes.sent(0);
                if slot.send_error == 0 {
                    slot.send_error = errno;
                }
            }
        }
        if slot.phase == Phase::Closing {
            return;
        }
        if slot.send_error != 0 {
            lanes.clear_output();
            slot.output_bytes = 0;
            slot.shut_when_sent = false;
            if let Some(waker) = slot.drain_waker.take() {
                waker.wake();
            }
            if slot.phase == Phase::Flushing {
                self.finished.push(index);
            }
        } else {
            if slot.output_bytes <= slot.drained_at
                && let Some(waker) = slot.drain_waker.take()
            {
                waker.wake();
            }
            if lanes.has_output() {
                Self::mark_dirty(&mut self.dirty, slot, index);
            } else {
                if slot.shut_when_sent {
                    Self::shut(&mut self.shut_without_descriptor, slot, index);
                }
                if slot.phase == Phase::Flushing {
                    self.lingering.push(index);
                }
            }
        }
        Self::release_idle_lanes(&mut self.free_lanes, slot);
    }

    fn mark_dirty(dirty: &mut Vec<u32>, slot: &mut SocketSlot, index: u32) {
        if !slot.dirty {
            slot.dirty = true;
            dirty.push(index);
        }
    }

    /// Takes a socket off the list of those with something to send; `false` when it no longer has.
    pub(crate) fn begin_send(&mut self, index: u32) -> bool {
        let Some(slot) = self.sockets.get_mut(index) else { return false };
        slot.dirty = false;
        slot.phase != Phase::Closing
            && slot.phase != Phase::Connecting
            && slot.send_error == 0
            && slot.lanes_to_send().is_some()
    }

    fn shut(simulated: &mut Vec<u32>, slot: &mut SocketSlot, index: u32) {
        slot.shut_when_sent = false;
        if !slot.is_shut {
            slot.is_shut = true;
            if slot.fd >= 0 {
                sys::shutdown_write(slot.fd);
            } else {
                simulated.push(index);
            }
        }
    }

    /// Takes in the answer to a connect.
    pub(crate) fn on_connected(&mut self, index: u32, result: Result<(), i32>) {
        let Some(slot) = self.sockets.get_mut(index) else { return };
        if slot.phase != Phase::Connecting {
            return;
        }
        slot.phase = Phase::Open;
        if let Err(errno) = result {
            slot.receive = Receive::Ended;
            slot.receive_error = errno;
            slot.send_error = errno;
        }
        if let Some(waker) = slot.receive_waker.take() {
            waker.wake();
        }
    }

    /// The answer to a connect; `None` while it runs.
    pub(crate) fn connected(&mut self, index: u32, waker: &Waker) -> Option<io::Result<()>> {
        let slot = self.sockets.get_mut(index)?;
        match (slot.phase, slot.receive_error) {
            (Phase::Connecting, _) => {
                slot.receive_waker = Some(waker.clone());
                None
            }
            (_, 0) => Some(Ok(())),
            (_, errno) => Some(Err(io::Error::from_raw_os_error(errno))),
        }
    }

    // What handles ask for.

    /// Takes the next received chunk.
    pub(crate) fn take_input(&mut self, index: u32) -> Option<io::Result<Option<Chunk>>> {
        let slot = self.sockets.get_mut(index)?;
        if let Some(lanes) = slot.lanes.as_deref_mut()
            && let Some(chunk) = lanes.input.pop_front()
        {
            slot.input_bytes -= chunk.len() as u32;
            if lanes.is_idle() {
                Self::release_idle_lanes(&mut self.free_lanes, slot);
            }
            return Some(Ok(Some(chunk)));
        }
        if slot.receive_error != 0 {
            return Some(Err(io::Error::from_raw_os_error(slot.receive_error)));
        }
        if slot.eof {
            return Some(Ok(None));
        }
        None
    }

    /// Leaves a waker for the next input; `true` when receiving must be started.
    pub(crate) fn await_input(&mut self, index: u32, waker: &Waker) -> bool {
        let Some(slot) = self.sockets.get_mut(index) else { return false };
        match &mut slot.receive_waker {
            Some(known) => known.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
        slot.receive == Receive::Idle
    }

    /// Puts a chunk back before what has been received.
    pub(crate) fn unread(&mut self, index: u32, mut chunk: Chunk) {
        let Some(slot) = self.sockets.get_mut(index) else { return };
        if chunk.is_empty() {
            return;
        }
        if self.pool.is_scarce() {
            chunk.compact();
        }
        slot.input_bytes += chunk.len() as u32;
        Self::lanes(&mut self.free_lanes, slot).input.push_front(chunk);
    }

    /// Queues a part; dropped when the peer is gone.
    pub(crate) fn write(&mut self, index: u32, part: Part) {
        let Some(slot) = self.sockets.get_mut(index) else { return };
        let length = part.bytes().len();
        if length == 0 || slot.send_error != 0 || slot.is_shut || slot.shut_when_sent {
            return;
        }
        if slot.output_bytes == 0 {
            slot.write_progress = self.now;
        }
        slot.output_bytes = slot.output_bytes.saturating_add(length as u32);
        let lanes = Self::lanes(&mut self.free_lanes, slot);
        match part {
            // A slow reader must not hold the buffers that everybody receives into.
            Part::Chunk(chunk)
                if chunk.is_leased() && (lanes.output_parts() >= HELD_PARTS_MAX || self.pool.is_scarce()) =>
            {
                let mut copy = WritePool::get(&self.write_pool);
                copy.extend_from_slice(&chunk);
                lanes.push(Part::Buffer(copy));
            }
            part => lanes.push(part),
        }
        if !slot.sending {
            Self::mark_dirty(&mut self.dirty, slot, index);
        }
    }

    /// Whether at most so many bytes wait to be sent; an error when the peer is gone.
    pub(crate) fn drained(&mut self, index: u32, at_most: usize, waker: &Waker) -> Option<io::Result<()>> {
        let slot = self.sockets.get_mut(index)?;
        if slot.send_error != 0 {
            return Some(Err(io::Error::from_raw_os_error(slot.send_error)));
        }
        if slot.output_bytes as usize <= at_most {
            return Some(Ok(()));
        }
        slot.drained_at = u32::try_from(at_most).unwrap_or(u32::MAX);
        match &mut slot.drain_waker {
            Some(known) => known.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
        None
    }

    pub(crate) fn shutdown_write(&mut self, index: u32) {
        let Some(slot) = self.sockets.get_mut(index) else { return };
        if slot.output_bytes == 0 {
            Self::shut(&mut self.shut_without_descriptor, slot, index);
        } else {
            slot.shut_when_sent = true;
        }
    }

    /// Parks a socket; `true` when receiving must be started.
    pub(crate) fn park(&mut self, index: u32, token: u64) -> bool {
        let Some(slot) = self.sockets.get_mut(index) else { return false };
        slot.receive_waker = None;
        if !slot.parked {
            slot.parked = true;
            self.parked_count += 1;
        }
        slot.park_token = token;
        if slot.has_received() {
            Self::announce_input(slot, &mut self.woken_parked, &mut self.parked_waker, &mut self.parked_count);
            return false;
        }
        slot.receive == Receive::Idle
    }

    pub(crate) fn unpark(&mut self, index: u32) {
        let Some(slot) = self.sockets.get_mut(index) else { return };
        if slot.parked {
            slot.parked = false;
            self.parked_count -= 1;
        }
    }

    /// Ends the handle's part in a socket: nobody waits, nothing more is read.
    pub(crate) fn orphan(&mut self, index: u32, phase: Phase) {
        let Some(slot) = self.sockets.get_mut(index) else { return };
        slot.phase = phase;
        slot.receive_waker = None;
        slot.drain_waker = None;
        if slot.parked {
            slot.parked = false;
            self.parked_count -= 1;
        }
        slot.input_bytes = 0;
        if let Some(lanes) = slot.lanes.as_deref_mut() {
            lanes.input.clear();
        }
        Self::release_idle_lanes(&mut self.free_lanes, slot);
    }

    /// Begins a graceful close: what is written is sent, then the peer is heard out for at most `linger`.
    pub(crate) fn begin_linger(&mut self, index: u32, linger: Duration) {
        self.orphan(index, Phase::Flushing);
        let Some(slot) = self.sockets.get_mut(index) else { return };
        slot.linger = linger;
        if slot.send_error != 0 {
            self.finished.push(index);
        } else if slot.output_bytes == 0 && !slot.sending {
            self.lingering.push(index);
        }
    }

    /// Takes the step after the flush; `true` when the peer must be heard out, and the socket closed otherwise.
    pub(crate) fn begin_discard(&mut self, index: u32) -> bool {
        let Some(slot) = self.sockets.get_mut(index) else { return false };
        if slot.phase != Phase::Flushing {
            return false;
        }
        Self::shut(&mut self.shut_without_descriptor, slot, index);
        slot.phase = Phase::Discarding;
        !(slot.eof || slot.receive_error != 0 || slot.linger.is_zero())
    }

    /// When a graceful close must have come further.
    pub(crate) fn linger_deadline(&self, index: u32) -> Nanos {
        self.sockets.get(index).map_or(Nanos::MAX, |slot| self.now + slot.linger)
    }

    /// Looks at a graceful close whose time is over; the new deadline when it has come further since the last look.
    pub(crate) fn linger_expired(&mut self, index: u32) -> Option<Nanos> {
        let slot = self.sockets.get_mut(index)?;
        let renewed = slot.write_progress + slot.linger;
        if slot.phase == Phase::Flushing && renewed > self.now {
            return Some(renewed);
        }
        if slot.phase == Phase::Flushing {
            // The peer does not read: what is left would keep the kernel busy with a dead connection.
            sys::reset_on_close(slot.fd);
        }
        None
    }
}
