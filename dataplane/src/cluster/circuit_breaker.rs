//! Circuit breakers: upper bounds on a cluster's connections, waiting requests, requests and retries over all cores.
//!
//! Why: a slow upstream must not take every connection and buffer of the proxy with it.
//!
//! Rule: the limit is a pool of tickets. A core borrows tickets in batches, spends them without touching anything shared, and
//! gives surplus back; what all cores hold never exceeds the limit, so neither does what is in flight. The batch is
//! `limit / (8 x cores)`, at least 1: a small limit is counted ticket by ticket, and a single core borrows all at once.
//!
//! Consequence: with batches, a core may refuse while other cores hold unspent tickets, at most two batches each, thus while
//! at least 3/4 of the limit is in flight. Cores give all surplus back as soon as the pool is empty, so this lasts no
//! longer than their next release. With a batch of 1, or one core, refusals are exact.
//!
//! Retries under a `retry_budget` are counted one by one against `budget_percent` of the requests that are active or wait,
//! added over all cores when a retry asks.
//!
//! Source: envoy.config.cluster.v3.CircuitBreakers.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use crate::telemetry::counters::Core;

/// Which of a cluster's two sets of limits a request counts against. Source: envoy.config.core.v3.RoutingPriority.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Priority {
    /// `DEFAULT`
    #[default]
    Default,
    /// `HIGH`
    High,
}

impl Priority {
    /// Both, in stat order.
    pub const ALL: [Self; 2] = [Self::Default, Self::High];

    /// The part of stat names after `circuit_breakers.`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::High => "high",
        }
    }
}

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Resource {
    /// Upstream connections.
    Connections,
    /// Requests that wait for a connection.
    Pending,
    /// Requests that have a connection.
    Requests,
    /// Attempts after the first.
    Retries,
}

impl Resource {
    /// All, in stat order.
    pub const ALL: [Self; RESOURCE_COUNT] = [Self::Connections, Self::Pending, Self::Requests, Self::Retries];
}

const RESOURCE_COUNT: usize = 4;
const CELL_COUNT: usize = Priority::ALL.len() * RESOURCE_COUNT;

/// One priority's limits. Source: CircuitBreakers.Thresholds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Thresholds {
    /// `max_connections`, 1024 unless configured.
    pub connections: u32,
    /// `max_pending_requests`, 1024 unless configured.
    pub pending: u32,
    /// `max_requests`, 1024 unless configured.
    pub requests: u32,
    /// `max_retries`, 3 unless configured; without effect beside a budget.
    pub retries: u32,
    /// `retry_budget`.
    pub retry_budget: Option<RetryBudget>,
    /// Publish `remaining_*` gauges.
    pub track_remaining: bool,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            connections: 1024,
            pending: 1024,
            requests: 1024,
            retries: 3,
            retry_budget: None,
            track_remaining: false,
        }
    }
}

impl Thresholds {
    fn limit(&self, resource: Resource) -> u32 {
        match resource {
            Resource::Connections => self.connections,
            Resource::Pending => self.pending,
            Resource::Requests => self.requests,
            Resource::Retries => self.retries,
        }
    }
}

/// Retries as a share of the requests under way. Source: CircuitBreakers.Thresholds.RetryBudget.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryBudget {
    /// `budget_percent`, 20 unless configured.
    pub percent: f64,
    /// `min_retry_concurrency`, 3 unless configured.
    pub concurrency_min: u32,
}

impl RetryBudget {
    /// Retries allowed at once beside `active` requests.
    pub fn limit(&self, active: u64) -> u64 {
        // Float to integer casts saturate; a percentage is at most 100.
        ((self.percent / 100.0 * active as f64) as u64).max(u64::from(self.concurrency_min))
    }
}

/// A cluster's limits and what is taken of them; shared by all cores and by every version of the cluster.
#[derive(Debug)]
pub struct Breakers {
    thresholds: [Thresholds; 2],
    worker_count: u32,
    pools: [Pool; CELL_COUNT],
    /// What each core has in flight: written by that core, added up by readers. Made on first use: most clusters idle.
    in_flight: OnceLock<Box<[InFlight]>>,
}

#[derive(Debug, Default)]
struct Pool {
    taken: AtomicU64,
}

/// One core's counts, on cache lines of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
struct InFlight {
    cells: [AtomicU32; CELL_COUNT],
}

impl Breakers {
    /// Limits for `worker_count` workers, nothing taken.
    pub fn new(default: Thresholds, high: Thresholds, worker_count: usize) -> Self {
        Self {
            thresholds: [default, high],
            worker_count: u32::try_from(worker_count).unwrap_or(u32::MAX).max(1),
            pools: Default::default(),
            in_flight: OnceLock::new(),
        }
    }

    /// The limits of `priority`.
    pub fn thresholds(&self, priority: Priority) -> &Thresholds {
        let [default, high] = &self.thresholds;
        match priority {
            Priority::Default => default,
            Priority::High => high,
        }
    }

    /// How many of `resource` are in flight on all cores.
    pub fn in_flight(&self, priority: Priority, resource: Resource) -> u64 {
        let cores = self.in_flight.get().map(|cores| &**cores).unwrap_or_default();
        let cells = cores.iter().filter_map(|core| core.cells.get(cell(priority, resource)));
        cells.map(|cell| u64::from(cell.load(Ordering::Relaxed))).sum()
    }

    /// How many of `resource` may be in flight now.
    pub fn limit(&self, priority: Priority, resource: Resource) -> u64 {
        let thresholds = self.thresholds(priority);
        match (resource, thresholds.retry_budget) {
            (Resource::Retries, Some(budget)) => {
                let requests = self.in_flight(priority, Resource::Requests);
                budget.limit(requests + self.in_flight(priority, Resource::Pending))
            }
            _ => u64::from(thresholds.limit(resource)),
        }
    }

    /// Whether the next one of `resource` would be refused: the `*_open` gauges.
    pub fn is_open(&self, priority: Priority, resource: Resource) -> bool {
        self.in_flight(priority, resource) >= self.limit(priority, resource)
    }

    /// How many more of `resource` may start: the `remaining_*` gauges.
    pub fn remaining(&self, priority: Priority, resource: Resource) -> u64 {
        self.limit(priority, resource).saturating_sub(self.in_flight(priority, resource))
    }

    #[inline]
    fn batch(&self, priority: Priority, resource: Resource) -> u32 {
        let thresholds = self.thresholds(priority);
        let limit = thresholds.limit(resource);
        match (resource, thresholds.retry_budget) {
            (Resource::Retries, Some(_)) => 1,
            _ if self.worker_count == 1 => limit.max(1),
            _ => (limit / self.worker_count.saturating_mul(8)).max(1),
        }
    }
}

/// One core's share of a cluster's breakers; a core has one. What is acquired must be released; dropping it returns everything.
#[derive(Debug)]
pub struct Admission {
    breakers: Arc<Breakers>,
    core: Core,
    tickets: [Tickets; CELL_COUNT],
}

#[derive(Clone, Copy, Debug, Default)]
struct Tickets {
    spent: u32,
    held: u32,
}

impl Admission {
    /// `core`'s share, nothing acquired.
    pub fn new(breakers: &Arc<Breakers>, core: Core) -> Self {
        breakers.in_flight.get_or_init(|| (0..breakers.worker_count).map(|_| InFlight::default()).collect());
        Self { breakers: Arc::clone(breakers), core, tickets: Default::default() }
    }

    /// Counts one more of `resource`, unless the limit is reached.
    #[inline]
    pub fn try_acquire(&mut self, resource: Resource, priority: Priority) -> bool {
        let index = cell(priority, resource);
        let Some(tickets) = self.tickets.get_mut(index) else { return false };
        if tickets.spent >= tickets.held {
            let borrowed = borrow(&self.breakers, resource, priority);
            if borrowed == 0 {
                return false;
            }
            tickets.held += borrowed;
        }
        tickets.spent += 1;
        let spent = tickets.spent;
        self.publish(index, spent);
        true
    }

    /// Counts one less of `resource`.
    #[inline]
    pub fn release(&mut self, resource: Resource, priority: Priority) {
        let index = cell(priority, resource);
        let Some(tickets) = self.tickets.get_mut(index) else { return };
        debug_assert!(tickets.spent > 0, "{resource:?} was released more often than acquired");
        tickets.spent = tickets.spent.saturating_sub(1);
        let spent = tickets.spent;
        let surplus = tickets.held - tickets.spent;
        let limit = self.breakers.thresholds(priority).limit(resource);
        let batch = self.breakers.batch(priority, resource);
        if let Some(pool) = self.breakers.pools.get(index) {
            let exhausted = pool.taken.load(Ordering::Relaxed) >= u64::from(limit);
            let returned = match () {
                () if self.breakers.worker_count == 1 && batch > 1 => 0,
                () if batch == 1 || exhausted => surplus,
                () if surplus / 2 >= batch => batch,
                () => 0,
            };
            if returned > 0 {
                tickets.held -= returned;
                pool.taken.fetch_sub(u64::from(returned), Ordering::Relaxed);
            }
        }
        self.publish(index, spent);
    }

    /// Counts against other limits from now on; what is in flight counts there too, even above the limit.
    pub fn move_to(&mut self, breakers: &Arc<Breakers>) {
        let mut moved = Self::new(breakers, self.core);
        for (index, (to, from)) in moved.tickets.iter_mut().zip(&self.tickets).enumerate() {
            *to = Tickets { spent: from.spent, held: from.spent };
            if let Some(pool) = breakers.pools.get(index) {
                pool.taken.fetch_add(u64::from(from.spent), Ordering::Relaxed);
            }
        }
        for (index, tickets) in moved.tickets.iter().enumerate() {
            moved.publish(index, tickets.spent);
        }
        *self = moved;
    }

    /// How many of `resource` this core has in flight.
    pub fn in_flight(&self, resource: Resource, priority: Priority) -> u32 {
        self.tickets.get(cell(priority, resource)).map_or(0, |tickets| tickets.spent)
    }

    /// The limits that this counts against.
    pub fn breakers(&self) -> &Arc<Breakers> {
        &self.breakers
    }

    #[inline]
    fn publish(&self, index: usize, spent: u32) {
        let cores = self.breakers.in_flight.get();
        let core = cores.and_then(|cores| cores.get(usize::from(self.core.0)));
        if let Some(cell) = core.and_then(|core| core.cells.get(index)) {
            cell.store(spent, Ordering::Relaxed);
        }
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        for (index, tickets) in self.tickets.into_iter().enumerate() {
            if let Some(pool) = self.breakers.pools.get(index) {
                pool.taken.fetch_sub(u64::from(tickets.held), Ordering::Relaxed);
            }
            self.publish(index, 0);
        }
    }
}

/// Takes a batch from the pool, or what is left of it.
fn borrow(breakers: &Breakers, resource: Resource, priority: Priority) -> u32 {
    let Some(pool) = breakers.pools.get(cell(priority, resource)) else { return 0 };
    let limit = breakers.limit(priority, resource);
    let batch = u64::from(breakers.batch(priority, resource));
    let mut taken = pool.taken.load(Ordering::Relaxed);
    loop {
        let borrowed = batch.min(limit.saturating_sub(taken));
        if borrowed == 0 {
            return 0;
        }
        match pool.taken.compare_exchange_weak(taken, taken + borrowed, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => return u32::try_from(borrowed).unwrap_or(u32::MAX),
            Err(current) => taken = current,
        }
    }
}

const fn cell(priority: Priority, resource: Resource) -> usize {
    priority as usize * RESOURCE_COUNT + resource as usize
}

#[cfg(test)]
mod tests;
