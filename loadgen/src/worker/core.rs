//! What the tasks of one worker share: the connections that are free, the requests in flight, the record.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::task::{Poll, Waker};
use std::time::Instant;

use super::{Config, Update};
use crate::record::{Cause, Record, Times};

/// One request to be sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Job {
    /// When it was meant to be sent, in nanoseconds since the start.
    pub(super) intended: u64,
    pub(super) measured: bool,
    /// It found no free connection when it was due.
    pub(super) blocked: bool,
}

/// What a connection has to do.
#[derive(Clone, Copy, Debug)]
pub(super) enum Work {
    Request(Job),
    /// Close and open anew.
    Renew,
}

/// One connection as the pacer and the sweeper see it.
#[derive(Default)]
pub(super) struct Slot {
    work: Cell<Option<Work>>,
    waker: RefCell<Option<Waker>>,
    /// When what it does now has taken too long, in nanoseconds since the start; 0 when it does nothing.
    pub(super) deadline: Cell<u64>,
    pub(super) timed_out: Cell<bool>,
}

impl Slot {
    fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn wake_by(&self, waker: &Waker) {
        let mut slot = self.waker.borrow_mut();
        if !slot.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *slot = Some(waker.clone());
        }
    }

    /// What this connection has to do next; nothing when the run is over.
    pub(super) async fn work(&self, core: &Core) -> Option<Work> {
        poll_fn(|context| {
            if let Some(work) = self.work.take() {
                return Poll::Ready(Some(work));
            }
            if core.over.get() {
                return Poll::Ready(None);
            }
            self.wake_by(context.waker());
            Poll::Pending
        })
        .await
    }

    /// What `work` gives; nothing when the sweeper found that it took too long.
    pub(super) async fn in_time<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let mut work = pin!(work);
        poll_fn(|context| {
            if let Poll::Ready(value) = work.as_mut().poll(context) {
                return Poll::Ready(Some(value));
            }
            if self.timed_out.get() {
                return Poll::Ready(None);
            }
            self.wake_by(context.waker());
            Poll::Pending
        })
        .await
    }
}

pub(super) struct Core {
    pub(super) config: Config,
    pub(super) start: Cell<Instant>,
    /// The start is that of the run, not of this value.
    pub(super) has_started: Cell<bool>,
    pub(super) record: RefCell<Record>,
    /// Response times since the last update.
    interval: RefCell<Times>,
    lag_max: Cell<u64>,
    pub(super) idle: RefCell<VecDeque<usize>>,
    pub(super) slots: Vec<Slot>,
    pacer: RefCell<Option<Waker>>,
    /// Connections whose first attempt to open has ended.
    pub(super) tried: Cell<usize>,
    /// Measured requests in flight, and since when that many.
    in_flight: Cell<u64>,
    in_flight_since: Cell<u64>,
    /// Requests in flight, measured or not.
    pub(super) busy: Cell<usize>,
    pub(super) over: Cell<bool>,
    /// Which of the requests is next.
    next_request: Cell<usize>,
}

impl Core {
    pub(super) fn new(config: Config) -> Core {
        let connections = config.connections.saturating_mul(config.streams);
        let first = config.index % config.request.count().max(1);
        Core {
            config,
            start: Cell::new(Instant::now()),
            has_started: Cell::new(false),
            record: RefCell::default(),
            interval: RefCell::default(),
            lag_max: Cell::new(0),
            idle: RefCell::new(VecDeque::with_capacity(connections)),
            slots: (0..connections).map(|_| Slot::default()).collect(),
            pacer: RefCell::default(),
            tried: Cell::new(0),
            in_flight: Cell::new(0),
            in_flight_since: Cell::new(0),
            busy: Cell::new(0),
            over: Cell::new(false),
            next_request: Cell::new(first),
        }
    }

    /// Nanoseconds since the start of the run, which all workers share; 0 before it.
    pub(super) fn now(&self) -> u64 {
        Instant::now().saturating_duration_since(self.start.get()).as_nanos() as u64
    }

    /// Number of the next request: the workers take turns.
    pub(super) fn next_request(&self) -> usize {
        let this = self.next_request.get();
        self.next_request.set((this + self.config.workers) % self.config.request.count().max(1));
        this
    }

    pub(super) fn stopped(&self) -> bool {
        self.config.stop.load(Ordering::Relaxed)
    }

    /// Waits until `ready` says so; it is asked again whenever a connection changed or the sweeper came by.
    pub(super) async fn until(&self, mut ready: impl FnMut() -> bool) {
        poll_fn(|context| {
            if ready() {
                return Poll::Ready(());
            }
            *self.pacer.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    pub(super) fn wake_pacer(&self) {
        if let Some(waker) = self.pacer.take() {
            waker.wake();
        }
    }

    /// Connection `index` is free.
    pub(super) fn free(&self, index: usize) {
        self.idle.borrow_mut().push_back(index);
        self.wake_pacer();
    }

    pub(super) fn assign(&self, index: usize, work: Work) {
        if let Some(slot) = self.slots.get(index) {
            slot.work.set(Some(work));
            slot.wake();
        }
    }

    /// Ends what has taken longer than it may.
    pub(super) fn sweep(&self, now: u64) {
        for slot in &self.slots {
            let deadline = slot.deadline.get();
            if deadline != 0 && now > deadline && !slot.timed_out.replace(true) {
                slot.wake();
            }
        }
    }

    /// The run is over: every connection ends.
    pub(super) fn end(&self) {
        self.over.set(true);
        for slot in &self.slots {
            slot.wake();
        }
    }

    fn change_in_flight(&self, now: u64, count: u64) {
        let since = self.in_flight_since.replace(now);
        let area = u128::from(now.saturating_sub(since)) * u128::from(self.in_flight.get());
        self.record.borrow_mut().in_flight_area += area;
        self.in_flight.set(count);
    }

    /// `job` is written at `now`.
    pub(super) fn sent(&self, job: &Job, now: u64, connected: bool) {
        self.busy.set(self.busy.get() + 1);
        if !job.measured {
            return;
        }
        self.change_in_flight(now, self.in_flight.get() + 1);
        let mut record = self.record.borrow_mut();
        record.counts.sent += 1;
        let lag = now.saturating_sub(job.intended);
        record.lag.record(lag);
        self.lag_max.set(self.lag_max.get().max(lag));
        if !job.blocked && connected {
            record.release.record(lag);
        }
    }

    /// The request that was written at `written` ended.
    pub(super) fn ended(&self, job: &Job, written: u64, now: u64, outcome: Result<(), Cause>, status: Option<u16>) {
        self.busy.set(self.busy.get().saturating_sub(1));
        if !job.measured {
            return;
        }
        self.change_in_flight(now, self.in_flight.get().saturating_sub(1));
        let response = now.saturating_sub(job.intended);
        let service = now.saturating_sub(written);
        let mut record = self.record.borrow_mut();
        record.service_sum += u128::from(service);
        match outcome {
            Ok(()) => record.counts.succeeded += 1,
            Err(cause) => record.counts.fail(cause),
        }
        // A request that timed out took at least so long; other failures say nothing about the time of a success.
        if matches!(outcome, Ok(()) | Err(Cause::Timeout)) {
            record.response.record(response);
            record.service.record(service);
            self.interval.borrow_mut().record(response);
        }
        if let Some(class) = status.and_then(|status| record.classes.get_mut(usize::from(status / 100).wrapping_sub(1)))
        {
            class.record(response);
        }
    }

    /// A connection was opened anew, or could not be, for the schedule of connections.
    pub(super) fn renewed(&self, outcome: Result<(), Cause>) {
        if self.now() < self.config.load.measured_from() {
            return;
        }
        let mut record = self.record.borrow_mut();
        match outcome {
            Ok(()) => record.counts.renewed += 1,
            Err(_) => record.counts.renewals_failed += 1,
        }
    }

    /// `job` failed before it could be written.
    pub(super) fn not_sent(&self, job: &Job, cause: Cause, now: u64) {
        if !job.measured {
            return;
        }
        let mut record = self.record.borrow_mut();
        record.counts.fail(cause);
        if cause == Cause::Timeout {
            let response = now.saturating_sub(job.intended);
            record.response.record(response);
            self.interval.borrow_mut().record(response);
        }
    }

    /// An arrival whose turn never came before the run ended at `end`: it waited at least so long.
    pub(super) fn unsent(&self, intended: u64, end: u64) {
        let mut record = self.record.borrow_mut();
        record.counts.planned += 1;
        record.counts.unsent += 1;
        let waited = end.saturating_sub(intended);
        record.response.record(waited);
        self.interval.borrow_mut().record(waited);
    }

    /// Tells the coordinator what has happened since the last time.
    pub(super) fn update(&self, now: u64) {
        let mut interval = self.interval.borrow_mut();
        let counts = self.record.borrow().counts;
        let response = interval.counts().collect();
        interval.clear();
        // The coordinator may be gone at the very end.
        // Replies to the last requests come after the end; they must not make the last second longer.
        let at = now.min(self.config.load.end());
        let _ = self.config.updates.send(Update {
            lag_max: self.lag_max.take(),
            worker: self.config.index,
            target: self.config.share.index,
            at,
            counts,
            response,
        });
    }
}
