//! The ring: one thread's loop, and the handle through which everything on that thread asks for input, output and time.

use std::cell::{Cell, RefCell};
use std::future::{self, Future};
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime};

use crate::address::PeerAddr;
use crate::buffer::{Chunk, Pool};
use crate::clock::Nanos;
use crate::config::{DriverKind, DriverReport, RingConfig, SetupError};
use crate::connect::{self, ConnectOptions};
use crate::core::{Core, Phase, Receive, SocketSlot};
use crate::driver::{self, Driver, Stalled, Wait};
use crate::executor::{self, Executor, TaskName};
use crate::listener::Listener;
use crate::listener_slot::{ACCEPT_PAUSE, Accepting};
use crate::part::{WriteBuffer, WritePool};
use crate::remote::{self, Heartbeat, Mailbox, RemoteWake};
use crate::socket::Socket;
use crate::stats::RingStats;
use crate::sys;
use crate::timer::{Sleep, Timer};
use crate::timer_heap::{Action, TimerHeap};

/// Task polls in one turn: a task that is always ready must not keep the others' bytes from moving.
const POLLS_MAX: usize = 1024;
/// Turns that `shutdown` gives the kernel to complete what was cancelled; each waits at most `SHUTDOWN_WAIT`.
const SHUTDOWN_TURNS: usize = 1000;
const SHUTDOWN_WAIT: Duration = Duration::from_millis(5);

/// A per-core runtime: tasks, sockets, timers and buffers of one thread. Cloning makes another handle to the same ring.
///
/// Create it on the thread that runs it: io_uring accepts submissions from that thread alone. Dropping the handle that
/// `new` returned ends the ring: tasks are dropped, connections closed, and the kernel's hold on memory waited out.
pub struct Ring {
    inner: Rc<Inner>,
    /// Whether this is the handle that `new` returned.
    first: bool,
}

impl Clone for Ring {
    fn clone(&self) -> Ring {
        Ring { inner: Rc::clone(&self.inner), first: false }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if self.first {
            self.inner.shutdown();
            if self.inner.is_busy() {
                // The kernel has not let go: what it refers to must not be freed.
                mem::forget(Rc::clone(&self.inner));
            }
        }
    }
}

/// What the kernel side of a ring is made of.
pub(crate) struct State {
    pub(crate) core: Core,
    pub(crate) driver: Driver,
}

/// A ring as its handles share it.
pub(crate) struct Inner {
    pub(crate) state: RefCell<State>,
    pub(crate) timers: RefCell<TimerHeap>,
    executor: Executor,
    pub(crate) pool: Rc<Pool>,
    pub(crate) write_pool: Rc<WritePool>,
    /// The clock as of this turn.
    now: Cell<Nanos>,
    /// The wall clock as of this turn, once somebody has asked.
    wall: Cell<Option<SystemTime>>,
    number: u16,
    mailbox: Arc<Mailbox>,
    letters: Receiver<TaskName>,
    remote_calls: Cell<bool>,
    remote_waker: RefCell<Option<Waker>>,
    busy_poll: Option<Duration>,
    heartbeat: Heartbeat,
    report: DriverReport,
    loop_lag_max: Cell<Duration>,
    turns: Cell<u64>,
}

/// What a ring timer is for, in `Action::Ring`: the kind above, the slot below.
const TIMER_LINGER: u64 = 1 << 32;
const TIMER_ACCEPT: u64 = 2 << 32;

impl Ring {
    /// Sets up a ring for the calling thread.
    ///
    /// With `DriverChoice::Auto` io_uring is probed flag by flag and its provided buffers are tested; where a gate is
    /// shut, epoll takes over and [`Ring::report`] names the gate.
    pub fn new(config: &RingConfig) -> Result<Ring, SetupError> {
        driver::check(config)?;
        let (mailbox, letters) = Mailbox::new().map_err(|error| SetupError::System { call: "eventfd", error })?;
        let (driver, report, pool) = driver::open(config, &mailbox)?;
        Ok(Self::assemble(config, pool, driver, report, mailbox, letters))
    }

    pub(crate) fn assemble(
        config: &RingConfig,
        pool: Rc<Pool>,
        driver: Driver,
        report: DriverReport,
        mailbox: Arc<Mailbox>,
        letters: Receiver<TaskName>,
    ) -> Ring {
        let number = remote::register(&mailbox);
        let write_pool = Rc::new(WritePool::default());
        let now = match report.kind {
            DriverKind::Simulated => Nanos::ZERO,
            DriverKind::Uring | DriverKind::Epoll => Nanos::from_nanos(sys::monotonic_nanos()),
        };
        let core = Core::new(Rc::clone(&pool), Rc::clone(&write_pool), now, config.receive_queue_bytes_max);
        let inner = Inner {
            state: RefCell::new(State { core, driver }),
            timers: RefCell::default(),
            executor: Executor::new(number),
            pool,
            write_pool,
            now: Cell::new(now),
            wall: Cell::new(None),
            number,
            mailbox,
            letters,
            remote_calls: Cell::new(false),
            remote_waker: RefCell::default(),
            busy_poll: config.busy_poll.filter(|spin| !spin.is_zero()),
            heartbeat: Heartbeat { turn_began: Arc::new(AtomicU64::new(0)) },
            report,
            loop_lag_max: Cell::new(Duration::ZERO),
            turns: Cell::new(0),
        };
        Ring { inner: Rc::new(inner), first: true }
    }

    /// Which driver runs, and what shut the better one out.
    pub fn report(&self) -> &DriverReport {
        &self.inner.report
    }

    /// Runs the ring until a future completes. What was written by then is handed to the kernel.
    ///
    /// On the simulated driver it panics when everybody waits and nothing can happen any more; the message names the
    /// seed. See [`Ring::try_block_on`].
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        match self.try_block_on(future) {
            Ok(output) => output,
            Err(deadlock) => panic!("{deadlock}"),
        }
    }

    /// Runs the ring until a future completes, or until the simulated world comes to a stop before it does.
    pub fn try_block_on<F: Future>(&self, future: F) -> Result<F::Output, Deadlock> {
        let inner = &*self.inner;
        let mut future = pin!(future);
        let _entered = inner.executor.enter();
        let _root = RootGuard::begin(&inner.executor);
        inner.begin_turn();
        loop {
            for _ in 0..POLLS_MAX {
                match inner.executor.next_ready() {
                    Some(executor::ROOT) => {
                        if let Poll::Ready(output) = inner.executor.poll_root(future.as_mut()) {
                            // A stall is no news once the future is done.
                            let _ = inner.turn(false);
                            inner.end_turns();
                            return Ok(output);
                        }
                    }
                    Some(task) => inner.executor.poll_task(task),
                    None => break,
                }
            }
            if let Err(Stalled) = inner.turn(!inner.executor.has_ready()) {
                inner.end_turns();
                return Err(inner.deadlock());
            }
        }
    }

    /// Adds a task to the ring.
    pub fn spawn(&self, future: impl Future<Output = ()> + 'static) {
        self.inner.executor.spawn(Box::pin(future));
    }

    /// The monotonic clock, read once a turn.
    pub fn now(&self) -> Nanos {
        self.inner.now.get()
    }

    /// The wall clock, read at most once a turn.
    pub fn wall(&self) -> SystemTime {
        self.inner.wall()
    }

    /// A timer that is not set yet.
    pub fn timer(&self) -> Timer {
        Timer::new(Rc::clone(&self.inner))
    }

    /// Completes after a wait.
    pub fn sleep(&self, wait: Duration) -> Sleep {
        let mut timer = self.timer();
        timer.set(self.now() + wait);
        Sleep::new(timer)
    }

    /// A handle that wakes this ring from other threads.
    pub fn remote(&self) -> RemoteWake {
        RemoteWake::new(Arc::clone(&self.inner.mailbox))
    }

    /// Completes when a [`RemoteWake`] was used since this last completed. One task at a time may wait for it.
    pub fn remote_woken(&self) -> impl Future<Output = ()> + use<> {
        let inner = Rc::clone(&self.inner);
        future::poll_fn(move |context| {
            if inner.remote_calls.replace(false) {
                return Poll::Ready(());
            }
            *inner.remote_waker.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
    }

    /// Begins to accept on a listening socket, which stays the process's own: the ring keeps a descriptor of it and never
    /// shuts it down. TCP_NODELAY is set on it, which accepted sockets inherit.
    pub fn listen(&self, fd: OwnedFd) -> Listener {
        let state = &mut *self.inner.state.borrow_mut();
        // Not every listening socket speaks TCP; the option is refused there and means nothing.
        let _ = sys::set_integer_option(fd.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_NODELAY, 1);
        let _ = sys::set_nonblocking(fd.as_raw_fd(), state.driver.nonblocking());
        let index = state.core.insert_listener(Some(fd));
        state.driver.arm_accept(&mut state.core, index);
        Listener::new(Rc::clone(&self.inner), index)
    }

    /// Connects to a peer. Dropping the future gives the attempt up and closes its descriptor once the kernel is done.
    pub async fn connect(&self, peer: &PeerAddr, options: &ConnectOptions) -> io::Result<Socket> {
        connect::connect(&self.inner, peer, options)?.await
    }

    /// Takes over a connected stream socket.
    pub fn adopt(&self, fd: OwnedFd) -> Socket {
        let state = &mut *self.inner.state.borrow_mut();
        let _ = sys::set_nonblocking(fd.as_raw_fd(), state.driver.nonblocking());
        let index = state.core.insert_socket(fd.into_raw_fd(), Phase::Open);
        if let Some(slot) = state.core.sockets.get_mut(index) {
            slot.adopted = true;
        }
        Socket::new(Rc::clone(&self.inner), index)
    }

    /// An empty write buffer from the ring's free list.
    pub fn buffer(&self) -> WriteBuffer {
        WritePool::get(&self.inner.write_pool)
    }

    /// A chunk of memory of its own with a copy of these bytes, for what was not received, such as in tests.
    pub fn chunk(&self, bytes: &[u8]) -> Chunk {
        Chunk::copied(&self.inner.pool, bytes)
    }

    /// Copies bytes into a receive buffer of the ring where one can be spared, and at most as many as it holds; into
    /// memory of their own otherwise.
    pub fn leased_copy(&self, bytes: &[u8]) -> Chunk {
        let pool = &self.inner.pool;
        let bytes = &bytes[..bytes.len().min(pool.buffer_bytes() as usize)];
        match if pool.is_scarce() { None } else { pool.take() } {
            Some(buffer) => {
                pool.fill(buffer, bytes);
                Chunk::lease(pool, buffer, bytes.len())
            }
            None => Chunk::copied(pool, bytes),
        }
    }

    /// Completes with the token of a parked socket that has received something. One task at a time may wait for it.
    pub fn next_parked(&self) -> impl Future<Output = u64> + use<> {
        let inner = Rc::clone(&self.inner);
        future::poll_fn(move |context| inner.poll_parked(context))
    }

    /// As [`Ring::next_parked`], for a task that waits for other things too.
    pub fn poll_parked(&self, context: &mut Context<'_>) -> Poll<u64> {
        self.inner.poll_parked(context)
    }

    /// What the ring has counted.
    pub fn stats(&self) -> RingStats {
        self.inner.stats()
    }

    /// Tells another thread whether this ring's worker is stuck.
    pub fn heartbeat(&self) -> Heartbeat {
        self.inner.heartbeat.clone()
    }

    /// When the running turn began, as an atomic that another thread may read: nanoseconds of the monotonic clock, zero
    /// while the worker waits. [`Ring::heartbeat`] reads it for you.
    pub fn turn_stamp(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.inner.heartbeat.turn_began)
    }

    pub(crate) fn inner(&self) -> &Rc<Inner> {
        &self.inner
    }
}

/// The simulated world came to a stop: every task waits, and no event or timer is left to wake one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the simulated world came to a stop at {at:?}: {tasks} tasks wait and nothing will happen; seed {seed}")]
pub struct Deadlock {
    /// The seed that repeats it.
    pub seed: u64,
    /// When.
    pub at: Nanos,
    /// Tasks that wait.
    pub tasks: usize,
}

struct RootGuard<'a>(&'a Executor);

impl<'a> RootGuard<'a> {
    fn begin(executor: &'a Executor) -> Self {
        executor.begin_root();
        RootGuard(executor)
    }
}

impl Drop for RootGuard<'_> {
    fn drop(&mut self) {
        self.0.end_root();
    }
}

impl Inner {
    /// Runs something on sockets and driver together.
    pub(crate) fn with<T>(&self, run: impl FnOnce(&mut Core, &mut Driver) -> T) -> T {
        let state = &mut *self.state.borrow_mut();
        run(&mut state.core, &mut state.driver)
    }

    pub(crate) fn now(&self) -> Nanos {
        self.now.get()
    }

    fn wall(&self) -> SystemTime {
        if let Some(wall) = self.wall.get() {
            return wall;
        }
        let wall = match self.report.kind {
            DriverKind::Simulated => SystemTime::UNIX_EPOCH + self.now.get().since(Nanos::ZERO),
            DriverKind::Uring | DriverKind::Epoll => sys::wall(),
        };
        self.wall.set(Some(wall));
        wall
    }

    fn poll_parked(&self, context: &mut Context<'_>) -> Poll<u64> {
        let core = &mut self.state.borrow_mut().core;
        match core.woken_parked.pop_front() {
            Some(token) => Poll::Ready(token),
            None => {
                core.parked_waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Closes a socket whose handle is gone.
    pub(crate) fn close_socket(&self, core: &mut Core, driver: &mut Driver, socket: u32) {
        core.orphan(socket, Phase::Closing);
        if let Some(timer) = core.sockets.get_mut(socket).and_then(|slot| slot.linger_timer.take()) {
            self.timers.borrow_mut().remove(timer);
        }
        driver.close(core, socket);
    }

    /// Begins a graceful close.
    pub(crate) fn close_gracefully(&self, socket: u32, linger: Duration) {
        self.with(|core, driver| {
            core.begin_linger(socket, linger);
            let mut timers = self.timers.borrow_mut();
            let timer = timers.insert(Action::Ring(TIMER_LINGER | u64::from(socket)));
            timers.set(timer, core.linger_deadline(socket));
            drop(timers);
            if let Some(slot) = core.sockets.get_mut(socket) {
                slot.linger_timer = Some(timer);
            }
            self.settle(core, driver);
        });
    }

    /// Does what follows from what was reported: closes, graceful closes, pauses of listeners.
    fn settle(&self, core: &mut Core, driver: &mut Driver) {
        while let Some(socket) = core.lingering.pop() {
            if !core.begin_discard(socket) {
                core.finished.push(socket);
                continue;
            }
            let deadline = core.linger_deadline(socket);
            let Some(slot) = core.sockets.get_mut(socket) else { continue };
            if let Some(timer) = slot.linger_timer {
                self.timers.borrow_mut().set(timer, deadline);
            }
            if slot.receive == Receive::Idle {
                driver.arm_receive(core, socket);
            }
        }
        while let Some(socket) = core.finished.pop() {
            // Reported twice, or closed already: only a socket without a handle is the ring's to close.
            let is_ours = core.sockets.get(socket).is_some_and(SocketSlot::is_ours_to_close);
            if is_ours {
                self.close_socket(core, driver, socket);
            }
        }
        while let Some(listener) = core.accept_paused.pop() {
            let Some(slot) = core.listeners.get_mut(listener) else { continue };
            let mut timers = self.timers.borrow_mut();
            let timer = *slot
                .retry_timer
                .get_or_insert_with(|| timers.insert(Action::Ring(TIMER_ACCEPT | u64::from(listener))));
            timers.set(timer, self.now.get() + ACCEPT_PAUSE);
        }
    }

    /// Ends a listener's handle.
    pub(crate) fn close_listener(&self, listener: u32) {
        self.with(|core, driver| {
            let Some(slot) = core.listeners.get_mut(listener) else { return };
            slot.orphaned = true;
            slot.stopped = true;
            slot.waker = None;
            if let Some(timer) = slot.retry_timer.take() {
                self.timers.borrow_mut().remove(timer);
            }
            driver.cancel_accept(core, listener);
        });
    }

    /// One turn after the tasks have run: sends, timers, one wait, events.
    fn turn(&self, may_wait: bool) -> Result<(), Stalled> {
        self.turns.set(self.turns.get() + 1);
        let simulated = self.report.kind == DriverKind::Simulated;
        let result = self.with(|core, driver| {
            let mut at = 0;
            while let Some(&socket) = core.dirty.get(at) {
                if core.begin_send(socket) {
                    driver.send(core, socket);
                }
                at += 1;
            }
            core.dirty.clear();
            self.settle(core, driver);

            let may_wait = may_wait && !self.executor.has_ready();
            let clock = if simulated { self.now.get() } else { Nanos::from_nanos(sys::monotonic_nanos()) };
            let lag = clock.since(self.now.get());
            if lag > self.loop_lag_max.get() {
                self.loop_lag_max.set(lag);
            }
            let wait = if may_wait { self.wait_from(clock) } else { Wait::No };
            let polled = match wait {
                Wait::No => driver.poll(core, &self.mailbox, Wait::No),
                wait => self.wait_for_events(core, driver, clock, wait),
            };
            self.now.set(core.now);
            self.wall.set(None);
            self.heartbeat.turn_began.store(core.now.as_nanos(), Ordering::Relaxed);
            self.settle(core, driver);
            polled
        });
        self.expire_timers();
        self.take_letters();
        result
    }

    fn wait_from(&self, clock: Nanos) -> Wait {
        match self.timers.borrow().next_due() {
            Some(due) if due <= clock => Wait::No,
            Some(due) => Wait::AtMost(due.since(clock)),
            None => Wait::Forever,
        }
    }

    fn wait_for_events(&self, core: &mut Core, driver: &mut Driver, clock: Nanos, wait: Wait) -> Result<(), Stalled> {
        if let Some(spin) = self.busy_poll {
            let longest = if let Wait::AtMost(most) = wait { spin.min(most) } else { spin };
            let end = clock + longest;
            loop {
                let before = core.stats.events;
                driver.poll(core, &self.mailbox, Wait::No)?;
                if core.stats.events != before || self.mailbox.has_pending() {
                    return Ok(());
                }
                if core.now >= end {
                    break;
                }
                std::hint::spin_loop();
            }
        }
        // The spin may have used up the time to the next timer.
        let wait = match self.wait_from(core.now.max(clock)) {
            Wait::No => return driver.poll(core, &self.mailbox, Wait::No),
            wait => wait,
        };
        if !self.mailbox.may_sleep() {
            return driver.poll(core, &self.mailbox, Wait::No);
        }
        self.heartbeat.turn_began.store(0, Ordering::Relaxed);
        let polled = driver.poll(core, &self.mailbox, wait);
        self.mailbox.woke();
        polled
    }

    fn expire_timers(&self) {
        let now = self.now.get();
        loop {
            let expired = self.timers.borrow_mut().expire_one(now);
            match expired {
                None => break,
                Some(Action::None) => {}
                Some(Action::Wake(waker)) => waker.wake(),
                Some(Action::Ring(what)) => self.on_ring_timer(what),
            }
        }
    }

    fn on_ring_timer(&self, what: u64) {
        let index = what as u32;
        self.with(|core, driver| {
            if what & TIMER_ACCEPT != 0 {
                if core.listeners.get(index).is_some_and(|slot| slot.accepting == Accepting::Paused && !slot.stopped) {
                    driver.arm_accept(core, index);
                }
                return;
            }
            match core.linger_expired(index) {
                Some(deadline) => {
                    if let Some(timer) = core.sockets.get(index).and_then(|slot| slot.linger_timer) {
                        self.timers.borrow_mut().set(timer, deadline);
                    }
                }
                None => self.close_socket(core, driver, index),
            }
        });
    }

    /// Takes in what other threads have left.
    fn take_letters(&self) {
        if !self.mailbox.take_pending() {
            return;
        }
        while let Ok(name) = self.letters.try_recv() {
            self.executor.wake(name);
        }
        if self.mailbox.take_called() {
            self.remote_calls.set(true);
            if let Some(waker) = self.remote_waker.borrow_mut().take() {
                waker.wake();
            }
        }
    }

    fn begin_turn(&self) {
        if self.report.kind != DriverKind::Simulated {
            let now = Nanos::from_nanos(sys::monotonic_nanos());
            self.now.set(now);
            self.state.borrow_mut().core.now = now;
        }
        self.wall.set(None);
        self.heartbeat.turn_began.store(self.now.get().as_nanos().max(1), Ordering::Relaxed);
        self.take_letters();
    }

    fn end_turns(&self) {
        self.heartbeat.turn_began.store(0, Ordering::Relaxed);
    }

    fn deadlock(&self) -> Deadlock {
        let seed = self.state.borrow_mut().driver.simulated().map_or(0, |sim| sim.seed());
        Deadlock { seed, at: self.now.get(), tasks: self.executor.task_count() }
    }

    fn stats(&self) -> RingStats {
        let state = self.state.borrow();
        let mut stats = state.core.stats;
        stats.turns = self.turns.get();
        stats.task_panics = self.executor.panic_count();
        stats.loop_lag_max = self.loop_lag_max.get();
        stats.operations_in_flight = state.driver.operations_in_flight();
        stats.buffers_leased = u64::from(self.pool.leased_count());
        stats.chunks_copied = self.pool.copied_count() as u64;
        stats.sockets_open = state.core.sockets.len() as u64;
        stats.sockets_parked = state.core.parked_count as u64;
        stats.listeners_open = state.core.listeners.len() as u64;
        stats.tasks = self.executor.task_count() as u64;
        stats
    }

    /// Drops the tasks, closes what they left open, and waits until the kernel refers to no memory of the ring.
    fn shutdown(&self) {
        let _entered = self.executor.enter();
        self.executor.clear();
        remote::unregister(self.number);
        // The ring ends in the middle of a call only when that call has panicked; what it left is not looked at again.
        let Ok(mut state) = self.state.try_borrow_mut() else { return };
        let State { core, driver } = &mut *state;
        let left: Vec<u32> = core
            .sockets
            .indices()
            .filter(|&socket| core.sockets.get(socket).is_some_and(SocketSlot::is_ours_to_close))
            .collect();
        left.into_iter().for_each(|socket| self.close_socket(core, driver, socket));
        // Handles that outlive the ring keep their slots; their operations are cancelled all the same.
        driver.cancel_all();
        for _ in 0..SHUTDOWN_TURNS {
            if !driver.is_busy() || driver.poll(core, &self.mailbox, Wait::AtMost(SHUTDOWN_WAIT)).is_err() {
                break;
            }
        }
    }

    fn is_busy(&self) -> bool {
        match self.state.try_borrow() {
            Ok(state) => state.driver.is_busy(),
            Err(_) => true,
        }
    }
}
