//! Where the process is in its life, as workers see it: one relaxed load a turn.
//!
//! ```text
//!            first names             healthcheck/fail              SIGTERM            last connection or deadline
//!  warming -----------------> serving <-------------> failing    ------------> leaving ---------------------------> ended
//!            resolved                healthcheck/ok    health      a second SIGTERM, quitquitquit -------------------^
//! ```
//! `drain_listeners` is beside that: connections are asked to end and listeners stop, the process stays.
//! The config thread writes the [`Phase`]; each worker acts on it and reports what it has seen and how many connections it holds.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::config::snapshot::{Listener, TrafficDirection};
use crate::telemetry::counters::Core;

/// Shared by the config thread and all workers.
pub struct Lifecycle {
    phase: AtomicU64,
    started: Instant,
    /// Milliseconds after `started` when draining began.
    drain_began_ms: AtomicU64,
    drain_time: Duration,
    strategy: DrainStrategy,
    workers: Box<[WorkerReport]>,
}

/// How many replies carry `Connection: close` while the process drains. Source: Envoy, `--drain-strategy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DrainStrategy {
    /// A share that grows from none to all over the drain time.
    #[default]
    Gradual,
    /// All.
    Immediate,
}

/// What workers have to do; a set of flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Phase(u64);

impl Phase {
    const LISTENERS_STOPPED: u64 = 1;
    const INBOUND_LISTENERS_STOPPED: u64 = 1 << 1;
    const DRAINING: u64 = 1 << 2;
    const INBOUND_DRAINING: u64 = 1 << 3;
    const HEALTH_FAILED: u64 = 1 << 4;
    const LEAVING: u64 = 1 << 5;
    const ENDED: u64 = 1 << 6;
    const WARMING: u64 = 1 << 7;

    /// Whether a listener of this direction takes new connections.
    pub fn accepts(self, direction: TrafficDirection) -> bool {
        let stopped = match direction {
            TrafficDirection::Inbound => Self::LISTENERS_STOPPED | Self::INBOUND_LISTENERS_STOPPED,
            _ => Self::LISTENERS_STOPPED,
        };
        self.0 & (stopped | Self::ENDED | Self::WARMING) == 0
    }

    /// Whether what the configuration needs is still waited for, for instance the first answers to DNS queries.
    pub fn is_warming(self) -> bool {
        self.0 & Self::WARMING != 0
    }

    /// Whether a listener of this direction will take no connection any more, so that its socket can be closed.
    pub fn listeners_stopped(self, direction: TrafficDirection) -> bool {
        !Self(self.0 & !Self::WARMING).accepts(direction)
    }

    /// Whether the process is on its way out: idle connections close at once, replies carry `Connection: close`.
    pub fn is_leaving(self) -> bool {
        self.0 & (Self::LEAVING | Self::ENDED) != 0
    }

    /// Whether connections of a listener of this direction are to be closed after a reply;
    /// [`Lifecycle::close_after_reply`] says which.
    pub fn is_draining(self, direction: TrafficDirection) -> bool {
        let draining = match direction {
            TrafficDirection::Inbound => Self::DRAINING | Self::INBOUND_DRAINING,
            _ => Self::DRAINING,
        };
        self.0 & (draining | Self::HEALTH_FAILED | Self::LEAVING | Self::ENDED) != 0
    }

    /// Whether `/healthcheck/fail` was called.
    pub fn health_failed(self) -> bool {
        self.0 & Self::HEALTH_FAILED != 0
    }

    /// Whether everything still open is to be closed now; the worker returns.
    pub fn is_ended(self) -> bool {
        self.0 & Self::ENDED != 0
    }
}

/// What a worker says of itself.
#[derive(Default)]
#[repr(align(64))]
struct WorkerReport {
    phase: AtomicU64,
    connections: AtomicU64,
}

impl Lifecycle {
    /// A process that serves, with `worker_count` workers.
    pub fn new(worker_count: usize, drain_time: Duration, strategy: DrainStrategy) -> Arc<Self> {
        Arc::new(Self {
            phase: AtomicU64::new(0),
            started: Instant::now(),
            drain_began_ms: AtomicU64::new(0),
            drain_time,
            strategy,
            workers: (0..worker_count).map(|_| WorkerReport::default()).collect(),
        })
    }

    /// What to do now. Workers read this at the top of each turn.
    #[inline]
    pub fn phase(&self) -> Phase {
        Phase(self.phase.load(Ordering::Relaxed))
    }

    /// Whether a reply sent now is to carry `Connection: close`.
    #[inline]
    pub fn close_after_reply(&self, direction: TrafficDirection, random: u64) -> bool {
        let phase = self.phase();
        if !phase.is_draining(direction) {
            return false;
        }
        phase.is_leaving() || phase.health_failed() || self.share_is_due(self.drained_for(), random)
    }

    /// As [`Self::close_after_reply`], also where the listener drains because it was replaced or removed.
    #[inline]
    pub fn closes_connections_of(&self, listener: &Listener, random: u64) -> bool {
        let replaced = listener.drain.passed().is_some_and(|passed| self.share_is_due(passed, random));
        replaced || self.close_after_reply(listener.direction, random)
    }

    /// Whether a listener has drained for so long that what is left of its connections is to end.
    pub fn drain_time_is_over(&self, listener: &Listener) -> bool {
        listener.drain.passed().is_some_and(|passed| passed >= self.drain_time)
    }

    fn share_is_due(&self, passed: Duration, random: u64) -> bool {
        let drain_ms = self.drain_time.as_millis() as u64;
        self.strategy == DrainStrategy::Immediate || drain_ms == 0 || random % drain_ms < passed.as_millis() as u64
    }

    /// Says what this worker has acted on and how many client connections it holds. Called once a turn.
    #[inline]
    pub fn report(&self, worker: Core, acted_on: Phase, connections: u64) {
        if let Some(report) = self.workers.get(usize::from(worker.0)) {
            // The count first: who sees the phase sees a count from after it.
            report.connections.store(connections, Ordering::Relaxed);
            report.phase.store(acted_on.0, Ordering::Release);
        }
    }

    /// The drain time as configured (`--drain-time-s`).
    pub fn drain_time(&self) -> Duration {
        self.drain_time
    }

    /// Since when the process exists.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// How long the drain has lasted.
    pub fn drained_for(&self) -> Duration {
        let began = Duration::from_millis(self.drain_began_ms.load(Ordering::Relaxed));
        self.started.elapsed().saturating_sub(began)
    }

    /// Connections of all workers.
    pub fn connections(&self) -> u64 {
        self.workers.iter().map(|report| report.connections.load(Ordering::Relaxed)).sum()
    }

    /// Whether every worker has acted on the present phase and holds no connection.
    pub fn is_drained(&self) -> bool {
        let phase = self.phase().0;
        self.workers.iter().all(|report| {
            report.phase.load(Ordering::Acquire) == phase && report.connections.load(Ordering::Relaxed) == 0
        })
    }

    /// Listeners wait until [`Self::finish_warming`].
    pub fn begin_warming(&self) {
        self.phase.fetch_or(Phase::WARMING, Ordering::Relaxed);
    }

    /// Listeners may take connections.
    pub fn finish_warming(&self) {
        self.phase.fetch_and(!Phase::WARMING, Ordering::Relaxed);
    }

    /// `/healthcheck/fail` and `/healthcheck/ok`.
    pub fn set_health(&self, healthy: bool) {
        match healthy {
            false => self.phase.fetch_or(Phase::HEALTH_FAILED, Ordering::Relaxed),
            true => self.phase.fetch_and(!Phase::HEALTH_FAILED, Ordering::Relaxed),
        };
    }

    /// Begins to drain connections; listeners go on.
    pub fn begin_drain(&self, inbound_only: bool) {
        self.note_drain_begin();
        let flag = if inbound_only { Phase::INBOUND_DRAINING } else { Phase::DRAINING };
        self.phase.fetch_or(flag, Ordering::Relaxed);
    }

    /// Listeners take no new connections.
    pub fn stop_listeners(&self, inbound_only: bool) {
        let flag = if inbound_only { Phase::INBOUND_LISTENERS_STOPPED } else { Phase::LISTENERS_STOPPED };
        self.phase.fetch_or(flag, Ordering::Relaxed);
    }

    /// The process is to end once its connections did: listeners stop, idle connections close.
    pub fn leave(&self) {
        self.note_drain_begin();
        self.phase.fetch_or(Phase::LEAVING | Phase::LISTENERS_STOPPED, Ordering::Relaxed);
    }

    /// The process ends now.
    pub fn end(&self) {
        self.phase.fetch_or(Phase::ENDED, Ordering::Relaxed);
    }

    fn note_drain_begin(&self) {
        let now = self.started.elapsed().as_millis() as u64;
        // Only the first drain sets the clock.
        let _ = self.drain_began_ms.compare_exchange(0, now.max(1), Ordering::Relaxed, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lifecycle(strategy: DrainStrategy) -> Arc<Lifecycle> {
        Lifecycle::new(2, Duration::from_secs(600), strategy)
    }

    #[test]
    fn health_closes_connections_but_not_listeners() {
        let life = lifecycle(DrainStrategy::Gradual);
        assert!(!life.close_after_reply(TrafficDirection::Unspecified, 0));
        life.set_health(false);
        assert!(life.close_after_reply(TrafficDirection::Unspecified, 0));
        assert!(life.phase().accepts(TrafficDirection::Inbound) && !life.phase().is_leaving());
        life.set_health(true);
        assert!(!life.close_after_reply(TrafficDirection::Unspecified, 0));
    }

    #[test]
    fn nothing_is_accepted_while_warming() {
        let life = lifecycle(DrainStrategy::Gradual);
        life.begin_warming();
        assert!(!life.phase().accepts(TrafficDirection::Unspecified));
        assert!(!life.phase().listeners_stopped(TrafficDirection::Unspecified));
        life.finish_warming();
        assert!(life.phase().accepts(TrafficDirection::Unspecified));
        life.stop_listeners(false);
        assert!(life.phase().listeners_stopped(TrafficDirection::Unspecified));
    }

    #[test]
    fn an_inbound_drain_leaves_the_others_alone() {
        let life = lifecycle(DrainStrategy::Immediate);
        life.begin_drain(true);
        life.stop_listeners(true);
        let check = |direction, accepts: bool| {
            assert_eq!(life.phase().accepts(direction), accepts, "{direction:?}");
            assert_eq!(life.close_after_reply(direction, 0), !accepts, "{direction:?}");
        };
        check(TrafficDirection::Inbound, false);
        check(TrafficDirection::Outbound, true);
        check(TrafficDirection::Unspecified, true);
    }

    #[test]
    fn a_gradual_drain_closes_few_at_first() {
        let life = lifecycle(DrainStrategy::Gradual);
        life.begin_drain(false);
        assert!(!life.close_after_reply(TrafficDirection::Unspecified, 599_999));
        life.leave();
        assert!(life.close_after_reply(TrafficDirection::Unspecified, 599_999));
    }

    #[test]
    fn drained_means_that_all_have_seen_it() {
        let life = lifecycle(DrainStrategy::Gradual);
        life.report(Core(0), life.phase(), 0);
        life.report(Core(1), life.phase(), 0);
        assert!(life.is_drained());
        life.leave();
        assert!(!life.is_drained(), "a worker may still accept");
        life.report(Core(0), life.phase(), 1);
        life.report(Core(1), life.phase(), 0);
        assert_eq!(life.connections(), 1);
        assert!(!life.is_drained());
        life.report(Core(0), life.phase(), 0);
        assert!(life.is_drained());
    }
}
