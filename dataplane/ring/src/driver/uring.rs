//! The io_uring driver: multishot accept and receive into provided buffers, one gathered send per socket, one enter a
//! turn.
//!
//! Each operation is counted in its slot from the moment that its entry is made until its last completion is taken in.
//! An entry that was made is never taken back: a full queue or a refused submit only makes it wait. So what an entry
//! points to stays where it is until the kernel has answered, and a slot with operations is never freed.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::rc::Rc;

use io_uring::squeue::{Entry, Flags};
use io_uring::types::{CancelBuilder, Fd, SubmitArgs, Timespec};
use io_uring::{EnterFlags, cqueue, opcode};

use crate::buffer::{Chunk, Pool};
use crate::clock::Nanos;
use crate::config::{Features, Gate, RingConfig};
use crate::core::{AfterReceive, Core, Phase, Receive};
use crate::driver::epoll::is_peers_failure;
use crate::driver::uring_setup::{self, BUFFER_GROUP, BufferRing, Handle};
use crate::driver::{About, Dice, Stalled, Wait};
use crate::lanes::Gathered;
use crate::listener_slot::{ACCEPTED_MAX, Accepting};
use crate::remote::Mailbox;
use crate::sys;

const RECEIVE: u8 = 1;
const SEND: u8 = 2;
const CONNECT: u8 = 3;
const ACCEPT: u8 = 4;
const CANCEL: u8 = 5;
const BELL: u8 = 6;

/// Completions handled in one turn: what one turn's work is bounded by.
const COMPLETIONS_MAX: usize = 512;
/// The smallest submission queue that is tried when memory is short.
const SUBMISSIONS_MIN: u32 = 64;
/// Buffers that the kernel is given at first; it uses them in turn, so fewer stay warmer in cache. Doubled whenever they
/// run out.
const PROVIDED_AT_FIRST: u16 = 128;

/// A completion, copied out of the queue.
#[derive(Clone, Copy)]
struct Completion {
    data: u64,
    result: i32,
    flags: u32,
}

/// The driver. Fields are dropped in this order: the ring before the memory that it knows.
pub(crate) struct Uring {
    handle: Handle,
    buffers: BufferRing,
    /// Buffers that the kernel shall have.
    buffers_wanted: u16,
    /// Entries that found no room in the submission queue, in order.
    backlog: VecDeque<Entry>,
    /// Operations whose last completion has not been taken in, cancels aside.
    in_flight: u64,
    completions: Vec<Completion>,
    /// Completions were left in the queue by the last turn.
    leftover: bool,
    features: Features,
    enter_flags: EnterFlags,
    bell_is_watched: bool,
    /// The ring ends: nothing new is begun.
    ending: bool,
    faults: Option<(Dice, u32)>,
}

impl Uring {
    /// Opens the driver. Where the memory lock limit has no room for queues of the size that was asked for (kernels before
    /// 5.12 and after 6.13 charge an unprivileged user for them), it makes do with smaller ones.
    pub(crate) fn new(config: &RingConfig, pool: &Rc<Pool>, mailbox: &Mailbox) -> Result<Uring, Gate> {
        let mut submissions = config.submission_entries;
        loop {
            match Self::with_entries(config, submissions, pool, mailbox) {
                Err(Gate::Memlock) if submissions > SUBMISSIONS_MIN => submissions /= 2,
                answer => return answer,
            }
        }
    }

    fn with_entries(config: &RingConfig, submissions: u32, pool: &Rc<Pool>, mailbox: &Mailbox) -> Result<Uring, Gate> {
        let completions = config.completion_entries.unwrap_or(submissions * uring_setup::COMPLETIONS_PER_SUBMISSION);
        let (handle, features) = uring_setup::open(submissions, completions)?;
        let buffers = BufferRing::register(&handle, pool, config.buffer_count)?;
        let mut enter_flags = EnterFlags::GETEVENTS | EnterFlags::EXT_ARG;
        if features.no_iowait {
            enter_flags |= EnterFlags::NO_IOWAIT;
        }
        let mut driver = Uring {
            handle,
            buffers,
            buffers_wanted: PROVIDED_AT_FIRST.min(config.buffer_count),
            backlog: VecDeque::new(),
            in_flight: 0,
            completions: Vec::with_capacity(COMPLETIONS_MAX),
            leftover: false,
            features,
            enter_flags,
            bell_is_watched: false,
            ending: false,
            faults: None,
        };
        driver.self_test(pool)?;
        driver.watch_bell(mailbox);
        driver.faults = config.submit_faults.map(|faults| (Dice::new(faults.seed), faults.one_in));
        Ok(driver)
    }

    pub(crate) fn features(&self) -> Features {
        self.features
    }

    /// Puts an entry into the submission queue, or behind those that wait for room there.
    fn push(&mut self, entry: Entry) {
        if self.backlog.is_empty() {
            // SAFETY: what the entry points to belongs to a slot, which is kept until the operation's last completion:
            // the caller has counted it there.
            if unsafe { self.handle.submission().push(&entry) }.is_ok() {
                return;
            }
        }
        self.backlog.push_back(entry);
    }

    /// Moves waiting entries into the submission queue, submitting whenever it is full.
    fn flush_backlog(&mut self, core: &mut Core) {
        while let Some(entry) = self.backlog.front() {
            // SAFETY: as in `push`.
            if unsafe { self.handle.submission().push(entry) }.is_ok() {
                self.backlog.pop_front();
                continue;
            }
            if self.enter(core, 0, None).is_err() || self.handle.submission().is_full() {
                // Completions must be taken in first (EBUSY), or memory is short: the next turn tries again.
                return;
            }
        }
    }

    fn enter(&mut self, core: &mut Core, want: u32, timeout: Option<&Timespec>) -> io::Result<()> {
        if let Some((dice, one_in)) = &mut self.faults
            && dice.below(u64::from(*one_in)) == 0
        {
            const ERRORS: [i32; 4] = [libc::EAGAIN, libc::EBUSY, libc::EINTR, libc::ENOMEM];
            let errno = ERRORS.get(dice.below(4) as usize).copied().unwrap_or(libc::EAGAIN);
            core.stats.submits_retried += 1;
            return Err(io::Error::from_raw_os_error(errno));
        }
        let mut arguments = SubmitArgs::new();
        if let Some(timeout) = timeout {
            arguments = arguments.timespec(timeout);
        }
        let submit = self.handle.submission().len() as u32;
        core.stats.enters += 1;
        // SAFETY: with EXT_ARG the argument is a getevents argument, as given here; the time outlives the call. Entries
        // in the queue are good by the contract of `push`.
        let entered = unsafe { self.handle.submitter().enter(submit, want, self.enter_flags.bits(), Some(&arguments)) };
        match entered {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                // The time is over, or a signal came: the wait ended, and what was submitted is submitted.
                Some(libc::ETIME | libc::EINTR) => Ok(()),
                _ => {
                    core.stats.submits_retried += 1;
                    Err(error)
                }
            },
        }
    }

    /// Counts an operation of a socket and gives it its name.
    fn begin(&mut self, core: &mut Core, socket: u32, kind: u8) -> Option<u64> {
        let key = core.sockets.key(socket)?;
        let slot = core.sockets.get_mut(socket)?;
        if self.ending {
            return None;
        }
        slot.operations += 1;
        self.in_flight += 1;
        Some(About { kind, key }.pack())
    }

    fn cancel(&mut self, core: &mut Core, data: u64) {
        core.stats.cancelled += 1;
        let cancel = opcode::AsyncCancel::new(data).build();
        // Success is told by the cancelled operation itself.
        self.push(cancel.flags(Flags::SKIP_SUCCESS).user_data(About::bell(CANCEL).pack()));
    }

    pub(crate) fn arm_receive(&mut self, core: &mut Core, socket: u32) {
        let Some(data) = self.begin(core, socket, RECEIVE) else { return };
        let Some(slot) = core.sockets.get_mut(socket) else { return };
        slot.receive = Receive::Armed;
        self.push(opcode::RecvMulti::new(Fd(slot.fd), BUFFER_GROUP).build().user_data(data));
    }

    /// Ends a multishot receive; what it has still taken in is delivered.
    fn stop_receive(&mut self, core: &mut Core, socket: u32) {
        let Some(key) = core.sockets.key(socket) else { return };
        if let Some(slot) = core.sockets.get_mut(socket)
            && slot.receive == Receive::Armed
        {
            slot.receive = Receive::Stopping;
            self.cancel(core, About { kind: RECEIVE, key }.pack());
        }
    }

    pub(crate) fn send(&mut self, core: &mut Core, socket: u32) {
        let Some(data) = self.begin(core, socket, SEND) else { return };
        let Some(slot) = core.sockets.get_mut(socket) else { return };
        let fd = Fd(slot.fd);
        let Some(lanes) = slot.lanes_to_send() else {
            slot.operations -= 1;
            self.in_flight -= 1;
            return;
        };
        let entry = match lanes.gather() {
            Gathered::One { start, length } => {
                let length = u32::try_from(length).unwrap_or(u32::MAX);
                opcode::Send::new(fd, start, length).flags(libc::MSG_NOSIGNAL).build()
            }
            Gathered::Many(message) => opcode::SendMsg::new(fd, message).flags(libc::MSG_NOSIGNAL as u32).build(),
        };
        slot.sending = true;
        self.push(entry.user_data(data));
    }

    pub(crate) fn connect(&mut self, core: &mut Core, socket: u32) {
        let Some(data) = self.begin(core, socket, CONNECT) else { return };
        let Some(slot) = core.sockets.get_mut(socket) else { return };
        let Some(address) = slot.address.as_deref() else { return };
        let entry = opcode::Connect::new(Fd(slot.fd), address.pointer(), address.length()).build();
        self.push(entry.user_data(data));
    }

    pub(crate) fn close(&mut self, core: &mut Core, socket: u32) {
        let Some(key) = core.sockets.key(socket) else { return };
        let Some(slot) = core.sockets.get(socket) else { return };
        if slot.operations == 0 {
            core.free_socket(socket);
            return;
        }
        let (sending, connecting) = (slot.sending, slot.address.is_some());
        self.stop_receive(core, socket);
        if sending {
            self.cancel(core, About { kind: SEND, key }.pack());
        }
        if connecting {
            self.cancel(core, About { kind: CONNECT, key }.pack());
        }
    }

    pub(crate) fn arm_accept(&mut self, core: &mut Core, listener: u32) {
        let Some(key) = core.listeners.key(listener) else { return };
        let Some(slot) = core.listeners.get_mut(listener) else { return };
        if self.ending || slot.stopped || slot.operations > 0 {
            return;
        }
        slot.operations += 1;
        slot.accepting = Accepting::Armed;
        self.in_flight += 1;
        let entry = opcode::AcceptMulti::new(Fd(slot.fd())).flags(libc::SOCK_CLOEXEC).build();
        self.push(entry.user_data(About { kind: ACCEPT, key }.pack()));
    }

    pub(crate) fn cancel_accept(&mut self, core: &mut Core, listener: u32) {
        let Some(key) = core.listeners.key(listener) else { return };
        let Some(slot) = core.listeners.get_mut(listener) else { return };
        if slot.operations == 0 {
            slot.accepting = Accepting::Idle;
            if slot.orphaned {
                core.free_listener(listener);
            }
        } else if slot.accepting == Accepting::Armed {
            slot.accepting = Accepting::Stopping;
            self.cancel(core, About { kind: ACCEPT, key }.pack());
        }
    }

    fn watch_bell(&mut self, mailbox: &Mailbox) {
        if !self.bell_is_watched && !self.ending {
            self.bell_is_watched = true;
            self.in_flight += 1;
            let bell = Fd(mailbox.bell().as_raw_fd());
            let entry = opcode::PollAdd::new(bell, libc::POLLIN as u32).multi(true).build();
            self.push(entry.user_data(About::bell(BELL).pack()));
        }
    }

    pub(crate) fn poll(&mut self, core: &mut Core, mailbox: &Mailbox, wait: Wait) -> Result<(), Stalled> {
        self.buffers.replenish(self.buffers_wanted);
        self.feed_starved(core);
        self.watch_bell(mailbox);
        self.flush_backlog(core);
        let may_wait = !self.leftover && self.backlog.is_empty();
        // An error leaves everything as it is; what it was about is tried again in the next turn.
        let _ = match wait {
            Wait::AtMost(most) if may_wait => self.enter(core, 1, Some(&Timespec::from(most))),
            Wait::Forever if may_wait => self.enter(core, 1, None),
            _ => self.enter(core, 0, None),
        };
        core.now = Nanos::from_nanos(sys::monotonic_nanos());
        self.take_completions(core);
        for at in 0..self.completions.len() {
            let Some(&completion) = self.completions.get(at) else { break };
            self.on_completion(core, mailbox, completion);
        }
        core.stats.events += self.completions.len() as u64;
        Ok(())
    }

    fn take_completions(&mut self, core: &mut Core) {
        self.completions.clear();
        let mut queue = self.handle.completion();
        for entry in queue.by_ref().take(COMPLETIONS_MAX) {
            self.completions.push(Completion { data: entry.user_data(), result: entry.result(), flags: entry.flags() });
        }
        self.leftover = !queue.is_empty();
        drop(queue);
        if self.handle.submission().cq_overflow() {
            // Kept by the kernel (IORING_FEAT_NODROP): the next enter brings them.
            core.stats.completions_overflowed += 1;
            self.leftover = true;
        }
    }

    /// Goes on for sockets that found no buffer, as many as the kernel has buffers: more would only find none again.
    fn feed_starved(&mut self, core: &mut Core) {
        let fed = core.starved.len().min(self.buffers.provided());
        for at in 0..fed {
            let Some(&socket) = core.starved.get(at) else { break };
            if core.sockets.get(socket).is_some_and(|slot| slot.receive == Receive::Starved) {
                self.arm_receive(core, socket);
            }
        }
        core.starved.drain(..fed);
    }

    pub(crate) fn is_busy(&self) -> bool {
        self.in_flight > 0 || !self.backlog.is_empty()
    }

    pub(crate) fn operations_in_flight(&self) -> u64 {
        self.in_flight
    }

    pub(crate) fn cancel_all(&mut self) {
        self.ending = true;
        let cancel = opcode::AsyncCancel2::new(CancelBuilder::any()).build();
        self.push(cancel.user_data(About::bell(CANCEL).pack()));
    }

    fn on_completion(&mut self, core: &mut Core, mailbox: &Mailbox, completion: Completion) {
        let About { kind, key } = About::unpack(completion.data);
        match kind {
            RECEIVE => self.on_receive(core, key.index, completion),
            SEND => {
                self.end(core, key.index);
                core.on_sent(key.index, outcome(completion.result));
                self.free_when_done(core, key.index);
            }
            CONNECT => {
                self.end(core, key.index);
                if let Some(slot) = core.sockets.get_mut(key.index) {
                    slot.address = None;
                }
                core.on_connected(key.index, outcome(completion.result).map(drop));
                self.free_when_done(core, key.index);
            }
            ACCEPT => self.on_accept(core, key.index, completion),
            BELL => {
                sys::lower(mailbox.bell());
                if !cqueue::more(completion.flags) {
                    self.in_flight -= 1;
                    self.bell_is_watched = false;
                }
            }
            // A cancel that found nothing: the operation had completed.
            _ => {}
        }
    }

    /// Counts a socket's operation as done.
    fn end(&mut self, core: &mut Core, socket: u32) {
        self.in_flight -= 1;
        if let Some(slot) = core.sockets.get_mut(socket) {
            slot.operations -= 1;
        }
    }

    fn free_when_done(&mut self, core: &mut Core, socket: u32) {
        if core.sockets.get(socket).is_some_and(|slot| slot.phase == Phase::Closing && slot.operations == 0) {
            core.free_socket(socket);
        }
    }

    fn on_receive(&mut self, core: &mut Core, socket: u32, completion: Completion) {
        let more = cqueue::more(completion.flags);
        let mut after = AfterReceive::GoOn;
        if let Some(buffer) = cqueue::buffer_select(completion.flags) {
            self.buffers.on_used();
            match usize::try_from(completion.result) {
                Ok(length) if length > 0 => {
                    after = core.on_received(socket, Chunk::lease(&core.pool, buffer, length));
                }
                _ => core.pool.give_back(buffer),
            }
        }
        if more {
            if after == AfterReceive::Pause {
                self.stop_receive(core, socket);
            }
            return;
        }
        self.end(core, socket);
        let Some(slot) = core.sockets.get_mut(socket) else { return };
        if slot.phase == Phase::Closing {
            self.free_when_done(core, socket);
            return;
        }
        match completion.result {
            0 => core.on_receive_end(socket, Ok(())),
            length if length > 0 => {
                let was_armed = slot.receive == Receive::Armed;
                slot.receive = Receive::Idle;
                if after == AfterReceive::GoOn && (was_armed || slot.wants_input()) {
                    self.arm_receive(core, socket);
                }
            }
            error => match -error {
                libc::ENOBUFS => {
                    // More of them, as long as there are more.
                    self.buffers_wanted = self.buffers_wanted.saturating_mul(2).min(self.buffers.entries());
                    core.on_starved(socket);
                }
                libc::ECANCELED | libc::EINTR | libc::EAGAIN => {
                    slot.receive = Receive::Idle;
                    if slot.wants_input() {
                        self.arm_receive(core, socket);
                    }
                }
                errno => core.on_receive_end(socket, Err(errno)),
            },
        }
    }

    fn on_accept(&mut self, core: &mut Core, listener: u32, completion: Completion) {
        let more = cqueue::more(completion.flags);
        if !more {
            self.in_flight -= 1;
            if let Some(slot) = core.listeners.get_mut(listener) {
                slot.operations -= 1;
                slot.accepting = Accepting::Idle;
            }
        }
        match outcome(completion.result) {
            Ok(fd) => core.on_accepted(listener, Ok(sys::own(fd as i32))),
            Err(libc::ECANCELED | libc::EAGAIN) => {}
            Err(errno) if is_peers_failure(errno) => {}
            Err(errno) => {
                if let Some(slot) = core.listeners.get_mut(listener)
                    && !slot.stopped
                {
                    slot.accepting = Accepting::Paused;
                    core.on_accepted(listener, Err(errno));
                    core.accept_paused.push(listener);
                }
            }
        }
        let Some(slot) = core.listeners.get_mut(listener) else { return };
        if more {
            if slot.accepted.len() >= ACCEPTED_MAX {
                // The kernel's queue holds the rest until these are taken.
                self.cancel_accept(core, listener);
            }
        } else if slot.orphaned {
            core.free_listener(listener);
        } else if slot.stopped {
            if let Some(waker) = slot.waker.take() {
                waker.wake();
            }
        } else if slot.accepting == Accepting::Idle && slot.accepted.len() < ACCEPTED_MAX {
            self.arm_accept(core, listener);
        }
    }

    /// Sends a pattern through a socket pair and compares what a multishot receive delivers into provided buffers:
    /// kernels have delivered them in the wrong order or under a wrong number.
    fn self_test(&mut self, pool: &Rc<Pool>) -> Result<(), Gate> {
        const PATIENCE_TURNS: usize = 200;
        let failed = |seen: String| Gate::SelfTestFailed { seen };
        let (ours, theirs) = sys::socket_pair().map_err(|error| uring_setup::gate("socketpair", &error))?;
        let piece = (pool.buffer_bytes() as usize / 2 + 17).min(8192);
        let pattern: Vec<u8> = (0..piece * 3).map(|at| (at * 7 + at / 251) as u8).collect();
        for part in pattern.chunks(piece) {
            let sent = sys::send(theirs.as_raw_fd(), part).map_err(|error| uring_setup::gate("send", &error))?;
            if sent != part.len() {
                return Err(failed(format!("a send of {} bytes took {sent}", part.len())));
            }
        }
        drop(theirs);
        let data = About::bell(RECEIVE).pack();
        let receive = opcode::RecvMulti::new(Fd(ours.as_raw_fd()), BUFFER_GROUP).build().user_data(data);
        let mut received: Vec<u8> = Vec::with_capacity(pattern.len());
        let mut armed = false;
        let mut ended = false;
        let wait = Timespec::new().nsec(10_000_000);
        let arguments = SubmitArgs::new().timespec(&wait);
        for _ in 0..PATIENCE_TURNS {
            self.buffers.replenish(self.buffers_wanted);
            if !armed {
                armed = true;
                self.push(receive.clone());
            }
            let submit = self.handle.submission().len() as u32;
            // SAFETY: as in `enter`; the receive refers to provided buffers alone, which outlive the ring.
            let entered =
                unsafe { self.handle.submitter().enter(submit, 1, self.enter_flags.bits(), Some(&arguments)) };
            if let Err(error) = entered
                && !matches!(error.raw_os_error(), Some(libc::ETIME | libc::EINTR | libc::EAGAIN))
            {
                return Err(uring_setup::gate("io_uring_enter", &error));
            }
            let completions: Vec<_> = self.handle.completion().collect();
            for completion in completions {
                if let Some(buffer) = cqueue::buffer_select(completion.flags()) {
                    self.buffers.on_used();
                    let length = usize::try_from(completion.result()).unwrap_or(0);
                    received.extend_from_slice(&Chunk::lease(pool, buffer, length));
                }
                if !cqueue::more(completion.flags()) {
                    armed = false;
                }
                match completion.result() {
                    0 => ended = true,
                    result if result > 0 => {}
                    result if result == -libc::ENOBUFS => {}
                    result if result == -libc::EINVAL => {
                        return Err(Gate::OldKernel { missing: "multishot receive (Linux 6.0)" });
                    }
                    result => return Err(failed(format!("errno {}", -result))),
                }
            }
            if ended && !armed {
                return if received == pattern {
                    Ok(())
                } else {
                    let wrong = received.iter().zip(&pattern).position(|(seen, sent)| seen != sent);
                    Err(failed(format!("{} of {} bytes, first difference at {wrong:?}", received.len(), pattern.len())))
                };
            }
        }
        Err(failed(format!("{} of {} bytes and no end", received.len(), pattern.len())))
    }
}

/// A completion's result: what was done, or errno.
fn outcome(result: i32) -> Result<usize, i32> {
    usize::try_from(result).map_err(|_| -result)
}
