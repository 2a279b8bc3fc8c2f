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
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use self::connections::{Connections, EndedConnection};
use self::runner::{Job, Runners};
use crate::config::publish::Subscriber;
use crate::config::snapshot::FilterChain;
use crate::downstream::connection::{Connection, Rest};
use crate::downstream::http2::Http2Connection;
use crate::exchange::core_state::CoreState;
use crate::slab::SlabKey;
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
    /// Tasks that accept or drive an HTTP/2 connection, to be woken when the process's phase changes.
    phase_watchers: RefCell<Vec<Waker>>,
    /// Grows whenever they were woken.
    phase_epoch: Cell<u64>,
}

/// A listening socket that this worker accepts on.
pub struct WorkerListener {
    /// The listener's place in the snapshot.
    pub listener: u32,
    /// Accepts its connections.
    pub accepting: torus_ring::Listener,
}

impl Worker {
    /// A worker without connections.
    pub fn new(core: Rc<CoreState>) -> Rc<Self> {
        Rc::new(Self {
            core,
            connections: RefCell::default(),
            runners: RefCell::default(),
            phase_watchers: RefCell::default(),
            phase_epoch: Cell::new(0),
        })
    }

    /// Begins to accept and serve on the core's ring.
    pub fn start(self: &Rc<Self>, listeners: Vec<WorkerListener>) {
        let ring = &self.core.ring;
        for listener in listeners {
            ring.spawn(Rc::clone(self).accept(listener));
        }
        ring.spawn(Rc::clone(self).dispatch());
        ring.spawn(Rc::clone(self).sweep());
        ring.spawn(Rc::clone(self).flush_logs());
    }

    /// Runs the core until the process ends, or drains and every request is finished.
    pub fn run(self: &Rc<Self>, subscriber: Subscriber) {
        let ring = self.core.ring.clone();
        ring.block_on(self.follow(subscriber));
        self.core.log_buffers.borrow_mut().flush();
    }

    /// Takes new snapshots and obeys the lifecycle; returns when the worker has nothing left to do.
    async fn follow(self: &Rc<Self>, mut subscriber: Subscriber) {
        let lifecycle = Arc::clone(&self.core.lifecycle);
        loop {
            if let Some(snapshot) = subscriber.take_newer() {
                self.core.set_snapshot(snapshot);
            }
            let phase = lifecycle.phase();
            if phase.is_leaving() {
                self.close_idle();
            }
            self.phase_epoch.set(self.phase_epoch.get() + 1);
            for watcher in self.phase_watchers.borrow_mut().drain(..) {
                watcher.wake();
            }
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

    /// Accepts until the process's phase says otherwise.
    async fn accept(self: Rc<Self>, mut listener: WorkerListener) {
        let core = &self.core;
        let snapshot = core.snapshot();
        let direction = snapshot.listeners.get(listener.listener as usize).map(|listener| listener.direction);
        let direction = direction.unwrap_or_default();
        drop(snapshot);
        let mut seen_epoch = None;
        loop {
            let accepted = poll_fn(|cx| {
                let phase = core.lifecycle.phase();
                if phase.listeners_stopped(direction) {
                    return Poll::Ready(None);
                }
                let accepted = if phase.is_warming() { Poll::Pending } else { listener.accepting.poll_accept(cx) };
                if accepted.is_pending() {
                    self.watch_phase(&mut seen_epoch, cx);
                }
                accepted.map(Some)
            })
            .await;
            match accepted {
                None => return,
                Some(Ok(socket)) => self.admit(listener.listener, socket),
                Some(Err(error)) => {
                    tracing::warn!(target: "connection", "a connection was not accepted: {error}");
                    core.ring.sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Takes a new connection, unless a limit is reached.
    fn admit(self: &Rc<Self>, index: u32, socket: torus_ring::Socket) {
        let snapshot = self.core.snapshot();
        let Some(listener) = snapshot.listeners.get(index as usize) else { return };
        let Some(connection) = connections::open(&self.core, listener, index, socket) else { return };
        let now = self.core.ring.now();
        if !listener.filters.is_empty() {
            let key = self.connections.borrow_mut().insert_unchosen(connection, now, listener.filters_timeout);
            if listener.filters_timeout_continues {
                // Its timer is to be exact: a client that waits for the server's first word waits for it.
                runner::run(self, Job::Connection(key));
            }
            return;
        }
        let facts = inspect::facts(&connection);
        if let Some(connection) = connections::choose(&self.core, listener, connection, &facts)
            && let Some(chain) = listener.chain(connection.info.chain)
        {
            let key = self.connections.borrow_mut().insert_idle(connection, now, chain);
            if chain.http().is_none() {
                // The other side may speak first.
                runner::run(self, Job::Connection(key));
            }
        }
    }

    /// Lets the listener filters look at a connection's first bytes and gives it its filter chain; `None` where it is over.
    async fn establish(&self, key: SlabKey, mut connection: Connection) -> Option<Connection> {
        let snapshot = self.core.snapshot();
        let chosen = match snapshot.listeners.get(connection.listener as usize) {
            Some(listener) => match inspect::inspect(&self.core, listener, &mut connection).await {
                Some(facts) => {
                    let chosen = connections::choose(&self.core, listener, connection, &facts);
                    if let Some(chain) = chosen.as_ref().and_then(|chosen| listener.chain(chosen.info.chain)) {
                        self.connections.borrow_mut().expire(key, self.core.ring.now(), chain);
                    }
                    chosen
                }
                None => {
                    connections::close(&self.core, connection, Rest::Gone);
                    None
                }
            },
            None => None,
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
            self.report();
        }
    }

    async fn flush_logs(self: Rc<Self>) {
        let interval = self.core.log_buffers.borrow().flush_interval();
        loop {
            self.core.ring.sleep(interval).await;
            self.core.log_buffers.borrow_mut().flush();
        }
    }

    fn close_idle(&self) {
        let idle = self.connections.borrow_mut().take_idle();
        for connection in idle {
            connections::close(&self.core, connection, Rest::Close);
        }
    }

    fn take(&self, key: SlabKey) -> Option<Connection> {
        self.connections.borrow_mut().take(key)
    }

    /// Keeps or closes a connection that a runner is done with.
    fn put_back(self: &Rc<Self>, key: SlabKey, connection: Connection, rest: Rest) {
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

    /// Serves a connection that is not read as HTTP to its end.
    async fn serve_raw(self: Rc<Self>, key: SlabKey, mut connection: Connection) {
        let rest = connection.serve_raw(&self.core).await;
        self.connections.borrow_mut().remove(key);
        connections::close(&self.core, connection, rest);
        if self.core.lifecycle.phase().is_leaving() {
            self.report();
        }
    }

    /// Drives an HTTP/2 connection to its end; its requests go to runners.
    async fn serve_http2(self: Rc<Self>, key: SlabKey, connection: Connection) {
        let core = &self.core;
        let Connection { client, info, listener: index, opened_at, .. } = connection;
        let chain = info.chain;
        let socket = client.into_http2(&core.ring);
        let snapshot = core.snapshot();
        let listener = snapshot.listeners.get(index as usize);
        let manager = listener.and_then(|listener| listener.chain(chain)).and_then(FilterChain::http);
        let (socket, rest) = match listener.zip(manager) {
            Some((listener, manager)) => {
                let mut connection = Http2Connection::new(core, socket, info, index, listener, manager);
                drop(snapshot);
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
        let ended = EndedConnection { socket, listener: index, chain, opened_at, is_http1: false };
        connections::close_ended(core, ended, rest);
        if core.lifecycle.phase().is_leaving() {
            self.report();
        }
    }

    /// Has the task woken when the process's phase changes; `seen_epoch` is the task's own memory of having asked.
    fn watch_phase(&self, seen_epoch: &mut Option<u64>, cx: &Context<'_>) {
        let epoch = self.phase_epoch.get();
        if *seen_epoch != Some(epoch) {
            *seen_epoch = Some(epoch);
            self.phase_watchers.borrow_mut().push(cx.waker().clone());
        }
    }
}
