//! The epoll driver: level-triggered, one receive per readiness, one gathered send per socket and turn.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::time::Duration;

use crate::buffer::Chunk;
use crate::clock::Nanos;
use crate::config::SubmitFaults;
use crate::core::{AfterReceive, Core, Phase, Receive};
use crate::driver::{About, Dice, Stalled, Wait};
use crate::lanes::Gathered;
use crate::listener_slot::{ACCEPTED_MAX, Accepting};
use crate::remote::Mailbox;
use crate::sys;

const READABLE: u32 = libc::EPOLLIN as u32;
const WRITABLE: u32 = libc::EPOLLOUT as u32;
const BROKEN: u32 = (libc::EPOLLERR | libc::EPOLLHUP) as u32;
/// One of several rings that share a listening socket is woken, not all (epoll_ctl(2), EPOLLEXCLUSIVE).
const EXCLUSIVE: u32 = libc::EPOLLEXCLUSIVE as u32;

/// Events taken from the kernel in one turn: what one turn's work is bounded by.
const EVENTS_MAX: usize = 256;
/// Receives for one socket in one turn, as long as each fills its buffer.
const RECEIVES_MAX: usize = 4;
/// Sends for one socket in one turn.
const SENDS_MAX: usize = 4;
/// Connections accepted for one listener in one turn.
const ACCEPTS_MAX: usize = 64;

const ABOUT_SOCKET: u8 = 1;
const ABOUT_LISTENER: u8 = 2;
const ABOUT_BELL: u8 = 3;

/// The driver.
pub(crate) struct Epoll {
    epoll: OwnedFd,
    events: Vec<libc::epoll_event>,
    /// Whether the kernel takes timeouts in nanoseconds.
    precise: bool,
    faults: Option<(Dice, u32)>,
}

impl Epoll {
    pub(crate) fn new(mailbox: &Mailbox, faults: Option<SubmitFaults>) -> io::Result<Epoll> {
        let epoll = sys::epoll_create()?;
        let bell = mailbox.bell().as_raw_fd();
        sys::epoll_control(&epoll, libc::EPOLL_CTL_ADD, bell, READABLE, About::bell(ABOUT_BELL).pack())?;
        Ok(Epoll {
            epoll,
            events: vec![libc::epoll_event { events: 0, u64: 0 }; EVENTS_MAX],
            precise: true,
            faults: faults.map(|faults| (Dice::new(faults.seed), faults.one_in)),
        })
    }

    /// Fails a call on purpose, as a test has asked.
    fn injected(&mut self) -> io::Result<()> {
        if let Some((dice, one_in)) = &mut self.faults
            && dice.below(u64::from(*one_in)) == 0
        {
            let errno = if dice.below(2) == 0 { libc::EAGAIN } else { libc::EINTR };
            return Err(io::Error::from_raw_os_error(errno));
        }
        Ok(())
    }

    /// Makes epoll watch for what the socket's state wants.
    fn update_interest(&mut self, core: &mut Core, socket: u32) {
        let Some(key) = core.sockets.key(socket) else { return };
        let Some(slot) = core.sockets.get_mut(socket) else { return };
        let mut wanted = 0;
        if slot.receive == Receive::Armed {
            wanted |= READABLE;
        }
        if slot.sending || slot.phase == Phase::Connecting {
            wanted |= WRITABLE;
        }
        if wanted == slot.interest {
            return;
        }
        let operation = match (slot.interest, wanted) {
            (0, _) => libc::EPOLL_CTL_ADD,
            // An idle registration would still report a broken connection, again and again.
            (_, 0) => libc::EPOLL_CTL_DEL,
            _ => libc::EPOLL_CTL_MOD,
        };
        slot.interest = wanted;
        if let Err(error) =
            sys::epoll_control(&self.epoll, operation, slot.fd, wanted, About { kind: ABOUT_SOCKET, key }.pack())
        {
            slot.interest = 0;
            slot.sending = false;
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            if slot.phase == Phase::Connecting {
                core.on_connected(socket, Err(errno));
            } else {
                core.on_receive_end(socket, Err(errno));
            }
        }
    }

    pub(crate) fn arm_receive(&mut self, core: &mut Core, socket: u32) {
        if let Some(slot) = core.sockets.get_mut(socket) {
            slot.receive = Receive::Armed;
            self.update_interest(core, socket);
        }
    }

    pub(crate) fn send(&mut self, core: &mut Core, socket: u32) {
        for _ in 0..SENDS_MAX {
            let injected = self.injected();
            let Some(slot) = core.sockets.get_mut(socket) else { return };
            let fd = slot.fd;
            let Some(lanes) = slot.lanes_to_send() else { break };
            let gathered = lanes.gather();
            let mut wanted = 0;
            lanes.each_unsent(|bytes| wanted += bytes.len());
            let result = injected.and_then(|()| match gathered {
                Gathered::One { .. } => sys::send(fd, lanes.first_unsent()),
                Gathered::Many(_) => sys::send_gathered(fd, lanes),
            });
            core.stats.enters += 1;
            match result {
                Ok(sent) => {
                    core.on_sent(socket, Ok(sent));
                    if sent < wanted {
                        self.wait_until_writable(core, socket);
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    core.on_sent(socket, Ok(0));
                    self.wait_until_writable(core, socket);
                    return;
                }
                Err(error) => {
                    core.on_sent(socket, Err(error.raw_os_error().unwrap_or(libc::EIO)));
                }
            }
        }
        self.update_interest(core, socket);
    }

    fn wait_until_writable(&mut self, core: &mut Core, socket: u32) {
        if let Some(slot) = core.sockets.get_mut(socket)
            && slot.lanes_to_send().is_some()
        {
            slot.sending = true;
        }
        self.update_interest(core, socket);
    }

    pub(crate) fn connect(&mut self, core: &mut Core, socket: u32) {
        let Some(slot) = core.sockets.get_mut(socket) else { return };
        let Some(address) = slot.address.take() else { return };
        match sys::connect(slot.fd, &address) {
            Ok(()) => core.on_connected(socket, Ok(())),
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => self.update_interest(core, socket),
            Err(error) => core.on_connected(socket, Err(error.raw_os_error().unwrap_or(libc::EIO))),
        }
    }

    pub(crate) fn close(&mut self, core: &mut Core, socket: u32) {
        if let Some(slot) = core.sockets.get_mut(socket)
            && slot.interest != 0
            && slot.adopted
        {
            // A duplicate held elsewhere would keep the registration alive beyond the close.
            let _ = sys::epoll_control(&self.epoll, libc::EPOLL_CTL_DEL, slot.fd, 0, 0);
        }
        core.free_socket(socket);
    }

    pub(crate) fn arm_accept(&mut self, core: &mut Core, listener: u32) {
        let Some(key) = core.listeners.key(listener) else { return };
        let Some(slot) = core.listeners.get_mut(listener) else { return };
        if slot.stopped {
            return;
        }
        slot.accepting = Accepting::Armed;
        if !slot.registered {
            let fd = slot.fd();
            let about = About { kind: ABOUT_LISTENER, key }.pack();
            match sys::epoll_control(&self.epoll, libc::EPOLL_CTL_ADD, fd, READABLE | EXCLUSIVE, about) {
                Ok(()) => slot.registered = true,
                Err(error) => {
                    slot.accepting = Accepting::Paused;
                    core.on_accepted(listener, Err(error.raw_os_error().unwrap_or(libc::EIO)));
                    core.accept_paused.push(listener);
                }
            }
        }
    }

    pub(crate) fn cancel_accept(&mut self, core: &mut Core, listener: u32) {
        // What the kernel has queued here is served where somebody is left to serve it, as the ring's multishot does.
        if core.listeners.get(listener).is_some_and(|slot| !slot.orphaned) {
            self.on_listener(core, listener);
        }
        let Some(slot) = core.listeners.get_mut(listener) else { return };
        slot.accepting = Accepting::Idle;
        self.unwatch(core, listener);
        if core.listeners.get(listener).is_some_and(|slot| slot.orphaned) {
            core.free_listener(listener);
        }
    }

    fn unwatch(&mut self, core: &mut Core, listener: u32) {
        if let Some(slot) = core.listeners.get_mut(listener)
            && slot.registered
        {
            slot.registered = false;
            let _ = sys::epoll_control(&self.epoll, libc::EPOLL_CTL_DEL, slot.fd(), 0, 0);
        }
    }

    pub(crate) fn poll(&mut self, core: &mut Core, mailbox: &Mailbox, wait: Wait) -> Result<(), Stalled> {
        self.feed_starved(core);
        let timeout = match wait {
            Wait::No => Some(Duration::ZERO),
            Wait::AtMost(most) => Some(most),
            Wait::Forever => None,
        };
        core.stats.enters += 1;
        // An interrupted wait is a wait without events; nothing else can go wrong with a descriptor of our own.
        let count = sys::epoll_wait(&self.epoll, &mut self.events, timeout, &mut self.precise).unwrap_or(0);
        core.now = Nanos::from_nanos(sys::monotonic_nanos());
        core.stats.events += count as u64;
        for at in 0..count {
            let Some(&event) = self.events.get(at) else { break };
            let About { kind, key } = About::unpack(event.u64);
            match kind {
                ABOUT_SOCKET if core.sockets.holds(key) => self.on_socket(core, key.index, event.events),
                ABOUT_LISTENER if core.listeners.holds(key) => self.on_listener(core, key.index),
                ABOUT_BELL => sys::lower(mailbox.bell()),
                // The slot's former tenant: closed earlier in this very turn.
                _ => {}
            }
        }
        Ok(())
    }

    /// Goes on for sockets that found no buffer, as far as buffers have come back.
    fn feed_starved(&mut self, core: &mut Core) {
        if core.starved.is_empty() {
            return;
        }
        let fed = core.pool.free_count().min(core.starved.len());
        let sockets: Vec<u32> = core.starved.drain(..fed).collect();
        for socket in sockets {
            if core.sockets.get(socket).is_some_and(|slot| slot.receive == Receive::Starved) {
                self.arm_receive(core, socket);
            }
        }
    }

    fn on_socket(&mut self, core: &mut Core, socket: u32, events: u32) {
        let Some(slot) = core.sockets.get_mut(socket) else { return };
        if slot.phase == Phase::Connecting {
            let result = sys::take_error(slot.fd);
            core.on_connected(socket, result.map_err(|error| error.raw_os_error().unwrap_or(libc::EIO)));
            self.update_interest(core, socket);
            return;
        }
        if events & (WRITABLE | BROKEN) != 0 && slot.sending {
            slot.sending = false;
            self.send(core, socket);
        }
        let Some(slot) = core.sockets.get_mut(socket) else { return };
        if events & (READABLE | BROKEN) != 0 && slot.receive == Receive::Armed {
            self.receive(core, socket);
        }
    }

    fn receive(&mut self, core: &mut Core, socket: u32) {
        for _ in 0..RECEIVES_MAX {
            let Some(slot) = core.sockets.get(socket) else { return };
            let fd = slot.fd;
            let Some(buffer) = core.pool.take() else {
                core.on_starved(socket);
                break;
            };
            let room = core.pool.buffer_bytes() as usize;
            let result = match (self.injected(), NonNull::new(core.pool.pointer(buffer))) {
                (Ok(()), Some(start)) => sys::receive(fd, start, room),
                (Err(error), _) => Err(error),
                (Ok(()), None) => Err(io::ErrorKind::OutOfMemory.into()),
            };
            core.stats.enters += 1;
            match result {
                Ok(0) => {
                    core.pool.give_back(buffer);
                    core.on_receive_end(socket, Ok(()));
                    break;
                }
                Ok(length) => {
                    let chunk = Chunk::lease(&core.pool, buffer, length);
                    if core.on_received(socket, chunk) == AfterReceive::Pause {
                        if let Some(slot) = core.sockets.get_mut(socket) {
                            slot.receive = Receive::Idle;
                        }
                        break;
                    }
                    if length < room {
                        return;
                    }
                }
                Err(error) => {
                    core.pool.give_back(buffer);
                    match error.kind() {
                        // Level-triggered: the event comes again when there is something.
                        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => return,
                        _ => core.on_receive_end(socket, Err(error.raw_os_error().unwrap_or(libc::EIO))),
                    }
                    break;
                }
            }
        }
        self.update_interest(core, socket);
    }

    fn on_listener(&mut self, core: &mut Core, listener: u32) {
        for _ in 0..ACCEPTS_MAX {
            let Some(slot) = core.listeners.get_mut(listener) else { return };
            if slot.accepting != Accepting::Armed {
                return;
            }
            if slot.accepted.len() >= ACCEPTED_MAX {
                // The kernel's queue holds the rest until these are taken.
                slot.accepting = Accepting::Idle;
                self.unwatch(core, listener);
                return;
            }
            core.stats.enters += 1;
            match sys::accept(slot.fd()) {
                Ok(fd) => core.on_accepted(listener, Ok(fd)),
                Err(error) => {
                    let errno = error.raw_os_error().unwrap_or(libc::EIO);
                    if errno == libc::EAGAIN {
                        return;
                    }
                    if !is_peers_failure(errno) {
                        slot.accepting = Accepting::Paused;
                        self.unwatch(core, listener);
                        core.on_accepted(listener, Err(errno));
                        core.accept_paused.push(listener);
                        return;
                    }
                }
            }
        }
    }
}

/// Whether an accept failed for the one connection alone, so that the next may be tried at once (accept(2), "Error
/// handling").
pub(crate) fn is_peers_failure(errno: i32) -> bool {
    matches!(
        errno,
        libc::ECONNABORTED
            | libc::EINTR
            | libc::EPROTO
            | libc::ENETDOWN
            | libc::ENOPROTOOPT
            | libc::EHOSTDOWN
            | libc::ENONET
            | libc::EHOSTUNREACH
            | libc::EOPNOTSUPP
            | libc::ENETUNREACH
            | libc::EPERM
    )
}
