//! One core of the generator: its pacer, its connections, its record. Nothing is shared with other workers but the start and the stop.

mod connection;
mod core;
mod echo;
mod grpc;
pub mod http2;
pub mod reply;
mod stream;
mod websocket;
mod wire;

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Barrier, OnceLock};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use self::core::{Core, Job, Work};
use self::reply::Checks;
use crate::plan::{Arrival, Plan, Random};
use crate::record::{Counts, Record};
use crate::run::crew::Begin;
use crate::timer::Timer;
use crate::tls::Tls;

/// How long the pacer sleeps at most before it looks whether the run was stopped.
const SLEEP_MAX: Duration = Duration::from_millis(50);
/// Between two updates, in nanoseconds.
const UPDATE_INTERVAL: u64 = 1_000_000_000;
/// After an interruption, how long replies are waited for, in nanoseconds.
const INTERRUPTED_DRAIN: u64 = 500_000_000;

/// When requests are sent.
#[derive(Clone, Debug)]
pub enum Load {
    /// As planned, whatever the target does.
    Open(Arc<Plan>),
    /// The next one when the one before has ended; in nanoseconds.
    Closed { warm_up: u64, length: u64 },
}

impl Load {
    /// When measuring begins, in nanoseconds.
    pub fn measured_from(&self) -> u64 {
        match self {
            Load::Open(plan) => plan.measured_from(),
            Load::Closed { warm_up, .. } => *warm_up,
        }
    }

    /// When the last request may be sent, in nanoseconds.
    pub fn end(&self) -> u64 {
        match self {
            Load::Open(plan) => plan.end(),
            Load::Closed { warm_up, length } => warm_up + length,
        }
    }
}

/// What one worker does.
#[derive(Clone, Debug)]
pub struct Config {
    pub index: usize,
    pub workers: usize,
    pub core: Option<usize>,
    pub load: Load,
    pub addresses: Arc<[SocketAddr]>,
    pub tls: Option<Tls>,
    pub request: Request,
    pub head_request: bool,
    pub checks: Arc<Checks>,
    /// Connections of this worker.
    pub connections: usize,
    /// Requests that each of them may have in flight.
    pub streams: usize,
    pub requests_per_connection: Option<u64>,
    /// Connections that this worker opens anew, a second.
    pub connect_rate: Option<f64>,
    /// Which of the arrivals are for this target.
    pub share: Share,
    /// In nanoseconds.
    pub timeout: u64,
    /// The pacer never sleeps.
    pub spin: bool,
    /// How long before a send the pacer stops sleeping.
    pub spin_margin: Duration,
    pub stop: Arc<AtomicBool>,
    pub start: Arc<OnceLock<Instant>>,
    pub begin: Begin,
    pub barrier: Arc<Barrier>,
    pub updates: Sender<Update>,
}

/// The part of all arrivals that one of several targets takes.
#[derive(Clone, Debug)]
pub struct Share {
    /// Of the target among all.
    pub index: usize,
    pub weights: Arc<[f64]>,
}

impl Share {
    /// Whether arrival number `ordinal` of worker `worker` is for this target: all targets agree on it.
    fn takes(&self, seed: u64, worker: u64, ordinal: u64) -> bool {
        if self.weights.len() < 2 {
            return true;
        }
        let (worker, ordinal) =
            (worker.wrapping_mul(0xD6E8_FEB8_6659_FD93), ordinal.wrapping_mul(0xA24B_AED4_963E_E407));
        let mut random = Random(seed ^ worker ^ ordinal);
        let mut left = random.unit() * self.weights.iter().sum::<f64>();
        let chosen = self.weights.iter().position(|weight| {
            left -= weight;
            left <= 0.0
        });
        chosen.unwrap_or(0) == self.index
    }
}

/// What is sent; of several one after the other.
#[derive(Clone, Debug)]
pub enum Request {
    /// HTTP/1.1, as it goes on the wire.
    Http1(Arc<[Arc<Vec<u8>>]>),
    Http2(Arc<[http2::Message]>),
    /// Bytes that are expected back.
    Tcp(Arc<[Arc<Vec<u8>>]>),
    /// Messages that are expected back.
    WebSocket {
        /// The head of the upgrade, without its key and its empty line.
        upgrade: Arc<Vec<u8>>,
        messages: Arc<[Arc<Vec<u8>>]>,
    },
}

impl Request {
    /// Requests before the first one comes again.
    pub fn count(&self) -> usize {
        match self {
            Request::Http1(all) | Request::Tcp(all) | Request::WebSocket { messages: all, .. } => all.len(),
            Request::Http2(all) => all.len(),
        }
    }
}

/// Bytes that all workers share, with a count of this worker's own, so that no two cores count in one place.
type Payload = Rc<Arc<Vec<u8>>>;

/// What a worker tells each second.
#[derive(Clone, Debug)]
pub struct Update {
    pub worker: usize,
    /// Number of the target.
    pub target: usize,
    /// In nanoseconds since the start.
    pub at: u64,
    /// The latest that a request was written behind its time, since the update before; in nanoseconds.
    pub lag_max: u64,
    /// Since the start.
    pub counts: Counts,
    /// Response times since the update before: nanoseconds and how many.
    pub response: Vec<(u64, u64)>,
}

/// What a worker has when the run is over.
#[derive(Clone, Debug, Default)]
pub struct Finished {
    /// Of each target.
    pub records: Vec<Record>,
    /// Of the measured part.
    pub used: Used,
}

/// What a worker used, in nanoseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Used {
    pub cpu: u64,
    /// Processor time that went into waiting for the moment of a send.
    pub spun: u64,
    pub wall: u64,
}

/// Runs one worker to the end of its load; it has a configuration for each target, and at least one.
///
/// Errors: no runtime or no timer; the run is stopped then, for a part of the load would be missing.
pub fn run(configs: Vec<Config>) -> io::Result<Finished> {
    let Some(first) = configs.first().cloned() else { return Ok(Finished::default()) };
    if let Some(core) = first.core {
        core_affinity::set_for_current(core_affinity::CoreId { id: core });
    }
    let fail = |error| {
        first.stop.store(true, Ordering::Relaxed);
        first.barrier.wait();
        error
    };
    let mut runtime = crate::runtime::start().map_err(fail)?;
    runtime.block_on(async {
        let mut targets = Vec::new();
        for config in configs {
            targets.push(Target::new(config).map_err(fail)?);
        }
        Ok(drive(targets, &first).await)
    })
}

/// What is sent to one target.
struct Target {
    core: Rc<Core>,
    pacer: Timer,
    sweeper: Timer,
    renewer: Timer,
    spun: Rc<Cell<u64>>,
}

impl Target {
    fn new(config: Config) -> io::Result<Target> {
        let spun = Rc::new(Cell::new(0));
        let (pacer, sweeper, renewer) = (Timer::new(&spun)?, Timer::new(&spun)?, Timer::new(&spun)?);
        Ok(Target { core: Rc::new(Core::new(config)), pacer, sweeper, renewer, spun })
    }

    /// Opens the connections.
    fn connect(&self) {
        let core = &self.core;
        match core.config.request.clone() {
            Request::Http1(all) | Request::Tcp(all) | Request::WebSocket { messages: all, .. } => {
                let payloads: Rc<[Payload]> = all.iter().map(|payload| Rc::new(Arc::clone(payload))).collect();
                for index in 0..core.slots.len() {
                    monoio::spawn(connection::run(Rc::clone(core), index, Rc::clone(&payloads)));
                }
            }
            Request::Http2(messages) => {
                let count = core.config.connections;
                let shared: Vec<_> = (0..count).map(|index| Rc::new(http2::Shared::new(index))).collect();
                // Neighbours in the queue of free streams are streams of different connections.
                for (index, shared) in (0..core.slots.len()).zip(shared.iter().cycle()) {
                    monoio::spawn(http2::run(Rc::clone(core), index, Rc::clone(shared), Arc::clone(&messages)));
                }
            }
        }
    }
}

async fn drive(targets: Vec<Target>, config: &Config) -> Finished {
    targets.iter().for_each(Target::connect);
    let mut running = Vec::new();
    for Target { core, pacer, sweeper, renewer, spun } in targets {
        let sweeper = monoio::spawn(sweep(Rc::clone(&core), sweeper, spun));
        running.push((core, pacer, renewer, sweeper));
    }
    for (core, ..) in &running {
        core.until(|| core.tried.get() == core.slots.len()).await;
    }
    config.barrier.wait();
    // All workers are ready; whoever comes first sets the start of all.
    let start = *config.start.get_or_init(|| config.begin.ask());
    let mut sending = Vec::new();
    for (core, pacer, renewer, sweeper) in running {
        core.start.set(start);
        core.has_started.set(true);
        if let Some(rate) = core.config.connect_rate {
            monoio::spawn(renew(Rc::clone(&core), renewer, rate));
        }
        sending.push((monoio::spawn(send(Rc::clone(&core), pacer)), core, sweeper));
    }
    let mut finished = Finished::default();
    for (sent, core, sweeper) in sending {
        sent.await;
        core.end();
        // Targets share the thread, and so its processor time; the waiting is each one's own.
        let used: Used = sweeper.await;
        finished.used.cpu = finished.used.cpu.max(used.cpu);
        finished.used.wall = finished.used.wall.max(used.wall);
        finished.used.spun += used.spun;
        core.update(core.now());
        finished.records.push(core.record.take());
    }
    finished
}

/// Sends all that is meant for one target and waits for the replies.
async fn send(core: Rc<Core>, mut timer: Timer) {
    match core.config.load.clone() {
        Load::Open(plan) => {
            let (worker, workers) = (core.config.index as u64, core.config.workers as u64);
            let (seed, share) = (plan.seed, core.config.share.clone());
            let schedule = plan.arrivals(worker, workers).zip(0..);
            let mine = schedule.filter(move |(_, ordinal)| share.takes(seed, worker, *ordinal));
            pace(&core, mine.map(|(arrival, _)| arrival), &mut timer).await;
        }
        Load::Closed { .. } => {
            wait_until(&core, &mut timer, 1).await;
            while let Some(index) = { core.idle.borrow_mut().pop_front() } {
                core.assign(index, Work::Request(core.closed_job()));
            }
            wait_until(&core, &mut timer, core.config.load.end()).await;
        }
    }
    let drained_by = core.now() + if core.stopped() { INTERRUPTED_DRAIN } else { core.config.timeout + 100_000_000 };
    core.until(|| core.busy.get() == 0 || core.now() > drained_by).await;
}

/// Opens connections anew, `rate` a second, each when it is free: the renewals of all workers are spaced evenly.
async fn renew(core: Rc<Core>, mut timer: Timer, rate: f64) {
    let gap = 1e9 / rate.max(1e-9);
    let first = gap * core.config.index as f64 / core.config.workers.max(1) as f64;
    let end = core.config.load.end();
    for number in 0_u64.. {
        let at = (first + gap * number as f64) as u64;
        if at >= end {
            return;
        }
        while core.now() < at && !core.over.get() && !core.stopped() {
            timer.sleep(Duration::from_nanos(at.saturating_sub(core.now())).min(SLEEP_MAX)).await;
        }
        loop {
            if core.over.get() || core.stopped() {
                return;
            }
            let free = core.idle.borrow_mut().pop_front();
            if let Some(index) = free {
                core.assign(index, Work::Renew);
                break;
            }
            timer.sleep(Duration::from_micros(200)).await;
        }
    }
}

/// Sends each request of `schedule` when it is due.
async fn pace(core: &Core, schedule: impl Iterator<Item = Arrival>, timer: &mut Timer) {
    let end = core.config.load.end();
    let mut schedule = schedule;
    // What was due while an earlier request waited for a connection waited for it too.
    let mut held_until = 0;
    while let Some(arrival) = schedule.next() {
        wait_until(core, timer, arrival.at).await;
        if core.stopped() {
            return;
        }
        // What the warm-up could not send in its time is dropped, so that measuring begins without a backlog.
        if !arrival.measured && core.now() >= core.config.load.measured_from() {
            continue;
        }
        let pop = || core.idle.borrow_mut().pop_front();
        let mut free = pop();
        let none_free = free.is_none();
        if none_free {
            if core.config.spin {
                while free.is_none() && core.now() <= end && !core.stopped() {
                    timer.turn().await;
                    free = pop();
                }
            } else {
                core.until(|| {
                    free = free.or_else(pop);
                    free.is_some() || core.now() > end || core.stopped()
                })
                .await;
            }
        }
        let Some(index) = free.filter(|_| core.now() <= end.max(arrival.at)) else {
            let now = core.now();
            if arrival.measured {
                core.unsent(arrival.at, now);
            }
            schedule.filter(|late| late.measured && late.at <= now).for_each(|late| core.unsent(late.at, now));
            return;
        };
        if none_free {
            held_until = core.now();
        }
        let blocked = arrival.at < held_until;
        if arrival.measured {
            let mut record = core.record.borrow_mut();
            record.counts.planned += 1;
            record.counts.blocked += u64::from(blocked);
        }
        core.assign(index, Work::Request(Job { intended: arrival.at, measured: arrival.measured, blocked }));
    }
    wait_until(core, timer, end).await;
}

/// Waits until `at`, or until the run is stopped.
async fn wait_until(core: &Core, timer: &mut Timer, at: u64) {
    let margin = core.config.spin_margin;
    let mut turns = 0_u32;
    loop {
        let now = core.now();
        if now >= at || core.stopped() {
            return;
        }
        let left = Duration::from_nanos(at - now);
        if core.config.spin || left <= margin {
            timer.turn().await;
            // monoio's own timers do not run while tasks are ready, so the sweeper may not come by.
            turns = turns.wrapping_add(1);
            if turns.is_multiple_of(4096) {
                core.sweep(now);
            }
        } else {
            timer.sleep(left.saturating_sub(margin).min(SLEEP_MAX)).await;
        }
    }
}

/// Ends what takes too long and reports each second; gives what the worker used in the measured part.
async fn sweep(core: Rc<Core>, mut timer: Timer, spun: Rc<Cell<u64>>) -> Used {
    let period = Duration::from_nanos((core.config.timeout / 20).clamp(2_000_000, 50_000_000));
    let measured_from = core.config.load.measured_from();
    let mut next_update = measured_from + UPDATE_INTERVAL;
    let used = |now| Used { cpu: cpu_time(), spun: spun.get(), wall: now };
    let mut began: Option<Used> = None;
    loop {
        timer.sleep(period).await;
        let now = core.now();
        core.sweep(now);
        core.wake_pacer();
        // Until the start is known, the time is that of opening connections.
        if !core.has_started.get() {
            continue;
        }
        if now >= measured_from.max(1) && began.is_none() {
            began = Some(used(now));
        }
        if core.over.get() {
            let (began, ended) = (began.unwrap_or_else(|| used(now)), used(now));
            return Used {
                cpu: ended.cpu.saturating_sub(began.cpu),
                spun: ended.spun.saturating_sub(began.spun),
                wall: ended.wall.saturating_sub(began.wall),
            };
        }
        if now >= next_update {
            core.update(now);
            next_update += UPDATE_INTERVAL * (1 + (now - next_update) / UPDATE_INTERVAL);
        }
    }
}

/// Processor time of this thread, in nanoseconds.
fn cpu_time() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    u64::try_from(time.tv_sec).unwrap_or_default() * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or_default()
}

impl Core {
    fn closed_job(&self) -> Job {
        let now = self.now();
        let measured = now >= self.config.load.measured_from();
        if measured {
            self.record.borrow_mut().counts.planned += 1;
        }
        Job { intended: now, measured, blocked: false }
    }

    /// The next request of a connection in closed loop; nothing in open loop, or when the time is over.
    fn next_closed(&self) -> Option<Job> {
        let Load::Closed { .. } = self.config.load else { return None };
        (self.now() < self.config.load.end() && !self.stopped()).then(|| self.closed_job())
    }
}
