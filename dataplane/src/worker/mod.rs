//! One core: owns every connection, pool, timer and buffer of that core (invariant 1).
//!
//! Connections that wait for a request are entries of a slab and no tasks. When bytes arrive, the ring hands the entry's key
//! out and a runner takes the connection. Runners are tasks that are reused, each with the memory of one exchange: an idle
//! connection costs a few hundred bytes, and a request allocates nothing.

pub mod connection_limit;
mod connections;
mod inspect;
pub mod random;
pub mod ring_stats;
mod runner;
pub mod thread;
pub mod watchdog;

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use self::connections::{Connections, EndedConnection};
use self::runner::{Job, Runners};
use crate::config::address::Address;
use crate::config::publish::Subscriber;
use crate::config::snapshot::{FilterChain, Listener, Listening, Snapshot};
use crate::downstream::connection::{Connection, Rest};
use crate::downstream::http2::Http2Connection;
use crate::exchange::core_state::CoreState;
use crate::listener::filter::{Inspection, Verdict};
use crate::listener::socket::ListenSockets;
use crate::slab::SlabKey;
use crate::telemetry::counters::Stats;
use crate::telemetry::names::TorusStat;
use crate::upstream::pool::UPSTREAM_TOKEN_BIT;

/// How often idle connections are looked at.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// How long to wait after a failed accept, for instance when no file descriptor is left: the cause does not go away at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// One core's worker.
pub struct Worker {
    /// What exchanges use.
    pub core: Rc<CoreState>,
    connections: RefCell<Connections>,
    runners: RefCell<Runners>,
    /// Tasks that accept, or drive a connection of their own, to be woken when the process's phase changes or a listener has drained.
    phase_watchers: RefCell<Vec<Waker>>,
    /// The sockets of the snapshot that this worker accepts on.
    accepting: RefCell<Vec<(Arc<ListenSockets>, Rc<AcceptSlot>)>>,
    /// Listeners that connections were handed to, by their restored destination.
    handed: RefCell<Vec<ListenerHandle>>,
    /// Listeners that were replaced or removed, until the rest of their connections was told to end.
    draining: RefCell<Vec<ListenerHandle>>,
    /// Grows whenever they were woken.
    phase_epoch: Cell<u64>,
}

/// A listener, as the connections of one core share it.
pub type ListenerHandle = Rc<Arc<Listener>>;

/// What became of a connection that its listener filters have looked at.
enum Settled {
    /// It has its filter chain.
    Chosen(Box<Connection>),
    /// Its listener's filters want to see its first bytes.
    Unread(Box<Connection>),
    /// It is closed.
    Over,
}

/// Which listener a socket's connections go to. An update replaces it while the socket goes on.
struct AcceptSlot {
    listener: RefCell<ListenerHandle>,
    /// The address is no longer configured.
    is_over: Cell<bool>,
}

/// A listening socket that this worker accepts on from its start, besides those of the snapshot.
pub struct WorkerListener {
    /// The listener's place in the snapshot.
    pub listener: u32,
    /// Accepts its connections.
    pub accepting: torus_ring::Listener,
}

impl AcceptSlot {
    fn new(listener: &Arc<Listener>) -> Rc<Self> {
        Rc::new(Self { listener: RefCell::new(Rc::new(Arc::clone(listener))), is_over: Cell::new(false) })
    }
}

impl Worker {
    /// A worker without connections.
    pub fn new(core: Rc<CoreState>) -> Rc<Self> {
        Rc::new(Self {
            core,
            connections: RefCell::default(),
            runners: RefCell::default(),
            phase_watchers: RefCell::default(),
            accepting: RefCell::default(),
            handed: RefCell::default(),
            draining: RefCell::default(),
            phase_epoch: Cell::new(0),
        })
    }

    /// Begins to accept and serve on the core's ring.
    pub fn start(self: &Rc<Self>, listeners: Vec<WorkerListener>) {
        let ring = &self.core.ring;
        let snapshot = self.core.snapshot();
        for WorkerListener { listener, accepting } in listeners {
            if let Some(listener) = snapshot.listeners.get(listener as usize) {
                ring.spawn(Rc::clone(self).accept(AcceptSlot::new(listener), accepting));
            }
        }
        self.listen(&snapshot);
        drop(snapshot);
        ring.spawn(Rc::clone(self).dispatch());
        ring.spawn(Rc::clone(self).sweep());
        ring.spawn(Rc::clone(self).flush_logs());
    }

    /// Runs the core until the process ends, or drains and every request is finished.
    pub fn run(self: &Rc<Self>, subscriber: Subscriber, stats: &Stats<TorusStat>) {
        let ring = self.core.ring.clone();
        ring.block_on(self.follow(subscriber, stats));
        self.core.log_buffers.borrow_mut().flush();
    }

    /// Takes new snapshots and obeys the lifecycle; returns when the worker has nothing left to do.
    async fn follow(self: &Rc<Self>, mut subscriber: Subscriber, stats: &Stats<TorusStat>) {
        let lifecycle = Arc::clone(&self.core.lifecycle);
        loop {
            if let Some(snapshot) = subscriber.take_newer() {
                let began = Instant::now();
                self.listen(&snapshot);
                self.core.set_snapshot(snapshot);
                stats.record(self.core.core, TorusStat::ConfigSwapUs, began.elapsed().as_micros() as u64);
            }
            let phase = lifecycle.phase();
            if phase.is_leaving() {
                self.close_idle();
            }
            self.wake_watchers();
            self.report();
            if phase.is_ended() {
                return;
            }
            self.core.ring.remote_woken().await;
        }
    }

    /// Tells the config thread how many connections are left.
    fn report(&self) {
        let phase = self.core.lifecycle.phase();
        self.core.lifecycle.report(self.core.core, phase, self.connections.borrow().len() as u64);
    }

    /// Accepts on the sockets of `snapshot` and no others; a socket that stays loses no connection.
    fn listen(self: &Rc<Self>, snapshot: &Snapshot) {
        self.handed.borrow_mut().retain(|listener| {
            let stays = snapshot.listeners.iter().any(|known| Arc::ptr_eq(known, listener));
            if !stays {
                self.draining.borrow_mut().push(Rc::clone(listener));
            }
            stays
        });
        let mut accepting = self.accepting.borrow_mut();
        accepting.retain(|(sockets, slot)| {
            let stays = snapshot.listening.iter().any(|listening| Arc::ptr_eq(&listening.sockets, sockets));
            if !stays {
                slot.is_over.set(true);
                self.draining.borrow_mut().push(Rc::clone(&slot.listener.borrow()));
            }
            stays
        });
        for Listening { listener, sockets } in &snapshot.listening {
            if let Some((_, slot)) = accepting.iter().find(|(known, _)| Arc::ptr_eq(known, sockets)) {
                let mut current = slot.listener.borrow_mut();
                if !Arc::ptr_eq(&current, listener) {
                    let before = std::mem::replace(&mut *current, Rc::new(Arc::clone(listener)));
                    self.draining.borrow_mut().push(before);
                }
                continue;
            }
            match sockets.for_worker(usize::from(self.core.core.0)) {
                Ok(socket) => {
                    let slot = AcceptSlot::new(listener);
                    accepting.push((Arc::clone(sockets), Rc::clone(&slot)));
                    let ring = &self.core.ring;
                    ring.spawn(Rc::clone(self).accept(slot, ring.listen(socket)));
                }
                Err(error) => {
                    let (name, address) = (&listener.name, &sockets.address);
                    tracing::error!(
                        target: "connection",
                        "listener `{name}`: a worker cannot accept on {address}: {error}; raise the limit of open files (ulimit -n)"
                    );
                }
            }
        }
    }

    /// Accepts until the process's phase says otherwise, or the address is configured no longer.
    async fn accept(self: Rc<Self>, slot: Rc<AcceptSlot>, mut accepting: torus_ring::Listener) {
        let core = &self.core;
        let mut seen_epoch = None;
        let mut is_stopped = false;
        loop {
            let accepted = poll_fn(|cx| {
                let phase = core.lifecycle.phase();
                if phase.listeners_stopped(slot.listener.borrow().direction) {
                    return Poll::Ready(None);
                }
                if slot.is_over.get() && !is_stopped {
                    is_stopped = true;
                    accepting.stop();
                }
                let waits = phase.is_warming() && !is_stopped;
                let accepted = if waits { Poll::Pending } else { accepting.poll_accept(cx) };
                if accepted.is_pending() {
                    self.watch_phase(&mut seen_epoch, cx);
                }
                accepted.map(Some)
            })
            .await;
            match accepted {
                None => return,
                Some(Ok(socket)) => self.admit(&slot.listener.borrow(), socket),
                Some(Err(error)) if is_stopped && error.kind() == std::io::ErrorKind::NotConnected => return,
                // The config thread has shut the socket; the word that it is over is on the way.
                Some(Err(error)) if error.kind() == std::io::ErrorKind::InvalidInput => {
                    core.ring.sleep(ACCEPT_PAUSE).await
                }
                Some(Err(error)) => {
                    tracing::warn!(target: "connection", "a connection was not accepted: {error}");
                    core.ring.sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Takes a new connection, unless a limit is reached.
    fn admit(self: &Rc<Self>, listener: &ListenerHandle, socket: torus_ring::Socket) {
        let Some(connection) = connections::open(&self.core, listener, socket) else { return };
        let now = self.core.ring.now();
        match self.settle_unread(connection) {
            Settled::Chosen(connection) => {
                let listener = Rc::clone(&connection.listener);
                let Some(chain) = listener.chain(connection.info.chain) else { return };
                let asks_filters = !chain.filters.is_empty();
                let is_http = chain.http().is_some();
                let key = self.connections.borrow_mut().insert_idle(connection, now, chain);
                if !is_http || asks_filters {
                    // The other side may speak first, and a filter counts from the beginning.
                    runner::run(self, Job::Connection(key));
                }
            }
            Settled::Unread(connection) => {
                let listener = Rc::clone(&connection.listener);
                let key = self.connections.borrow_mut().insert_unchosen(connection, now, listener.filters_timeout);
                if listener.filters_timeout_continues {
                    // Its timer is to be exact: a client that waits for the server's first word waits for it.
                    runner::run(self, Job::Connection(key));
                }
            }
            Settled::Over => {}
        }
    }

    /// Lets the listener filters have their say before a byte was received: some need none.
    fn settle_unread(&self, connection: Box<Connection>) -> Settled {
        let listener = Rc::clone(&connection.listener);
        let mut inspection = inspect::begin(&connection);
        match inspection.look(&listener.filters, self.core.core, &[]) {
            Verdict::Done => self.settle(connection, inspection),
            Verdict::More | Verdict::Refuse | Verdict::End => Settled::Unread(connection),
        }
    }

    /// Gives a connection that its listener's filters are done with to the listener at its restored destination, where there is one,
    /// and otherwise its filter chain.
    fn settle(&self, mut connection: Box<Connection>, mut inspection: Inspection) -> Settled {
        inspect::note(&mut connection.info, &mut inspection);
        let listener = Rc::clone(&connection.listener);
        if listener.use_original_dst
            && inspection.is_restored
            && let Some(next) = self.listener_at(&connection.info.local, &listener)
        {
            return match connections::hand_over(&self.core, connection, &next) {
                Some(connection) => self.settle_unread(connection),
                None => Settled::Over,
            };
        }
        match connections::choose(&self.core, &listener, connection, &inspection.facts) {
            Some(connection) => Settled::Chosen(connection),
            None => Settled::Over,
        }
    }

    /// The listener with `address`, or with all addresses of its port, other than `from`.
    fn listener_at(&self, address: &Address, from: &ListenerHandle) -> Option<ListenerHandle> {
        let wanted = address.ip()?;
        let snapshot = self.core.snapshot();
        let others = || snapshot.listeners.iter().filter(|listener| !Arc::ptr_eq(listener, from));
        let has = |listener: &Listener, test: &dyn Fn(SocketAddr) -> bool| {
            listener.addresses.iter().filter_map(Address::ip).any(test)
        };
        let exact = |address: SocketAddr| address == wanted;
        let any = |address: SocketAddr| {
            address.ip().is_unspecified() && address.port() == wanted.port() && address.is_ipv4() == wanted.is_ipv4()
        };
        let found = others()
            .find(|listener| has(listener, &exact))
            .or_else(|| others().find(|listener| has(listener, &any)))?;
        let mut handed = self.handed.borrow_mut();
        if let Some(known) = handed.iter().find(|known| Arc::ptr_eq(known, found)) {
            return Some(Rc::clone(known));
        }
        let handle = Rc::new(Arc::clone(found));
        handed.push(Rc::clone(&handle));
        Some(handle)
    }

    /// Lets the listener filters look at a connection's first bytes and gives it its filter chain; `None` where it is over.
    async fn establish(&self, key: SlabKey, mut connection: Box<Connection>) -> Option<Box<Connection>> {
        let chosen = loop {
            let listener = Rc::clone(&connection.listener);
            let Some(inspection) = inspect::inspect(&self.core, &listener, &mut connection).await else {
                connections::close(&self.core, connection, Rest::Gone);
                break None;
            };
            match self.settle(connection, inspection) {
                Settled::Chosen(chosen) => {
                    if let Some(chain) = chosen.listener.chain(chosen.info.chain) {
                        self.connections.borrow_mut().expire(key, self.core.ring.now(), chain);
                    }
                    break Some(chosen);
                }
                // The filters of the listener that has it now.
                Settled::Unread(unread) => connection = unread,
                Settled::Over => break None,
            }
        };
        if chosen.is_none() {
            self.connections.borrow_mut().remove(key);
            if self.core.lifecycle.phase().is_leaving() {
                self.report();
            }
        }
        chosen
    }

    /// Hands connections on which something happened to runners, and idle upstream connections back to their pool.
    async fn dispatch(self: Rc<Self>) {
        let ring = self.core.ring.clone();
        loop {
            let token = ring.next_parked().await;
            if token & UPSTREAM_TOKEN_BIT != 0 {
                self.core.pools.on_idle_readable(token);
            } else {
                runner::run(&self, Job::Connection(SlabKey::from_token(token)));
            }
        }
    }

    /// Closes what was idle or stuck for too long.
    async fn sweep(self: Rc<Self>) {
        let ring = self.core.ring.clone();
        loop {
            ring.sleep(SWEEP_INTERVAL).await;
            let now = ring.now();
            self.core.pools.sweep(now);
            let uninspected = self.connections.borrow_mut().take_uninspected(now);
            for key in uninspected {
                runner::run(&self, Job::Connection(key));
            }
            let expired = self.connections.borrow_mut().take_expired(&self.core, now);
            for (connection, rest) in expired {
                connections::close(&self.core, connection, rest);
            }
            self.end_drained();
            self.report();
        }
    }

    /// Closes what is idle or no HTTP on listeners whose drain time is over; what is busy closes after its reply.
    fn end_drained(&self) {
        let lifecycle = &self.core.lifecycle;
        let mut over = Vec::new();
        self.draining.borrow_mut().retain(|listener| {
            let is_over = lifecycle.drain_time_is_over(listener);
            if is_over {
                over.push(Rc::clone(listener));
            }
            !is_over
        });
        if over.is_empty() {
            return;
        }
        let is_over = |connection: &Connection| over.iter().any(|it| Arc::ptr_eq(it, &connection.listener));
        let idle = self.connections.borrow_mut().take_idle(is_over);
        for connection in idle {
            connections::close(&self.core, connection, Rest::Close);
        }
        self.wake_watchers();
    }

    async fn flush_logs(self: Rc<Self>) {
        let interval = self.core.log_buffers.borrow().flush_interval();
        loop {
            self.core.ring.sleep(interval).await;
            self.core.log_buffers.borrow_mut().flush();
        }
    }

    fn close_idle(&self) {
        let idle = self.connections.borrow_mut().take_idle(|_| true);
        for connection in idle {
            connections::close(&self.core, connection, Rest::Close);
        }
    }

    fn take(&self, key: SlabKey) -> Option<Box<Connection>> {
        self.connections.borrow_mut().take(key)
    }

    /// Keeps or closes a connection that a runner is done with.
    fn put_back(self: &Rc<Self>, key: SlabKey, connection: Box<Connection>, rest: Rest) {
        let is_leaving = self.core.lifecycle.phase().is_leaving();
        if rest == Rest::Idle && !is_leaving {
            self.connections.borrow_mut().put_back(key, connection, self.core.ring.now());
            return;
        }
        if rest == Rest::Http2 {
            // Its place stays: it counts as a connection in a runner's hands.
            self.core.ring.spawn(Rc::clone(self).serve_http2(key, connection));
            return;
        }
        if rest == Rest::Raw {
            self.core.ring.spawn(Rc::clone(self).serve_raw(key, connection));
            return;
        }
        self.connections.borrow_mut().remove(key);
        connections::close(&self.core, connection, rest);
        if is_leaving {
            self.report();
        }
    }

    /// Serves a connection that is not read as HTTP to its end, or to that of the drain of its listener.
    async fn serve_raw(self: Rc<Self>, key: SlabKey, mut connection: Box<Connection>) {
        let rest = {
            let mut serving = pin!(connection.serve_raw(&self.core));
            let mut seen_epoch = None;
            poll_fn(|cx| {
                self.watch_phase(&mut seen_epoch, cx);
                serving.as_mut().poll(cx)
            })
            .await
        };
        self.connections.borrow_mut().remove(key);
        connections::close(&self.core, connection, rest);
        if self.core.lifecycle.phase().is_leaving() {
            self.report();
        }
    }

    /// Drives an HTTP/2 connection to its end; its requests go to runners.
    async fn serve_http2(self: Rc<Self>, key: SlabKey, connection: Box<Connection>) {
        let core = &self.core;
        let Connection { client, info, listener, opened_at, is_admitted, .. } = *connection;
        let chain = info.chain;
        let socket = client.into_http2(&core.ring);
        let (socket, rest) = match listener.chain(chain).and_then(FilterChain::http) {
            Some(manager) => {
                let mut connection = Http2Connection::new(core, socket, info, &listener, manager);
                let mut seen_epoch = None;
                loop {
                    let request = poll_fn(|cx| {
                        self.watch_phase(&mut seen_epoch, cx);
                        connection.poll_request(core, cx)
                    });
                    match request.await {
                        Some(request) => runner::run(&self, Job::Stream(request)),
                        None => break,
                    }
                }
                connection.into_socket(core)
            }
            None => (Some(socket), Rest::Close),
        };
        self.connections.borrow_mut().remove(key);
        let ended = EndedConnection { socket, listener, chain, opened_at, is_admitted, is_http1: false };
        connections::close_ended(core, ended, rest);
        if core.lifecycle.phase().is_leaving() {
            self.report();
        }
    }

    fn wake_watchers(&self) {
        self.phase_epoch.set(self.phase_epoch.get() + 1);
        for watcher in self.phase_watchers.borrow_mut().drain(..) {
            watcher.wake();
        }
    }

    /// Has the task woken when the process's phase changes or a listener has drained; `seen_epoch` is the task's own memory of having asked.
    fn watch_phase(&self, seen_epoch: &mut Option<u64>, cx: &Context<'_>) {
        let epoch = self.phase_epoch.get();
        if *seen_epoch != Some(epoch) {
            *seen_epoch = Some(epoch);
            self.phase_watchers.borrow_mut().push(cx.waker().clone());
        }
    }
}
