//! The swap: the config thread publishes a [`Snapshot`], each worker takes the newest at the top of its loop.
//!
//! A worker's check is one relaxed load of a word that changes only with a publication; it takes no lock and never waits. A worker
//! that is behind skips what it missed. The publisher keeps each snapshot until no worker holds it, so that the memory of ten
//! thousand clusters is given back on the config thread and not in the middle of a worker's turn.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crossbeam::queue::ArrayQueue;

use crate::config::snapshot::Snapshot;
use crate::telemetry::counters::Core;

/// The config thread's end.
pub struct Publisher {
    current: Arc<Snapshot>,
    /// Snapshots that a worker may still hold.
    retired: Vec<Arc<Snapshot>>,
    slots: Arc<[Slot]>,
    published: Instant,
    /// Versions that not every worker has taken, with the time when what they bring was received.
    unsettled: VecDeque<(u64, Instant)>,
}

/// A worker's end.
pub struct Subscriber {
    slots: Arc<[Slot]>,
    worker: usize,
    seen: u64,
}

/// What passes between the two.
struct Slot {
    /// The newest snapshot that the worker has not taken; a newer one pushes it out.
    waiting: ArrayQueue<Arc<Snapshot>>,
    /// Number of publications.
    offered: AtomicU64,
    /// Version of the snapshot that the worker took last.
    taken_version: AtomicU64,
    /// When it took that one, in nanoseconds after `epoch`.
    taken_at_ns: AtomicU64,
    epoch: Instant,
    wake: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

/// A publisher of `first`, and a subscriber for each worker that holds `first` already.
pub fn channel(first: Arc<Snapshot>, worker_count: usize) -> (Publisher, Vec<Subscriber>) {
    let epoch = Instant::now();
    let slot = || Slot {
        waiting: ArrayQueue::new(1),
        offered: AtomicU64::new(0),
        taken_version: AtomicU64::new(first.version),
        taken_at_ns: AtomicU64::new(0),
        epoch,
        wake: OnceLock::new(),
    };
    let slots: Arc<[Slot]> = (0..worker_count).map(|_| slot()).collect();
    let subscribers = (0..worker_count).map(|worker| Subscriber { slots: slots.clone(), worker, seen: 0 });
    let subscribers = subscribers.collect();
    (
        Publisher { current: first, retired: Vec::new(), slots, published: epoch, unsettled: VecDeque::new() },
        subscribers,
    )
}

impl Publisher {
    /// The newest snapshot.
    pub fn current(&self) -> &Arc<Snapshot> {
        &self.current
    }

    /// As [`Self::publish`], for something that was `received` then; [`Self::take_settled`] tells how long it took.
    pub fn publish_received(&mut self, snapshot: Snapshot, received: Instant) {
        self.publish(snapshot);
        if self.unsettled.len() == UNSETTLED_MAX {
            self.unsettled.pop_front();
        }
        self.unsettled.push_back((self.current.version, received));
    }

    /// Whether a worker has not taken what was last published with [`Self::publish_received`].
    pub fn is_unsettled(&self) -> bool {
        !self.unsettled.is_empty()
    }

    /// How long it took from receipt until the last worker had it, for each publication that all have taken since the last call.
    pub fn take_settled(&mut self) -> Vec<Duration> {
        let taken = self.slots.iter().map(|slot| slot.taken_version.load(Ordering::Acquire)).min().unwrap_or(u64::MAX);
        let at = |slot: &Slot| slot.epoch + Duration::from_nanos(slot.taken_at_ns.load(Ordering::Relaxed));
        let latest = self.slots.iter().map(at).max();
        let mut settled = Vec::new();
        while let Some((_, received)) = self.unsettled.front().copied().filter(|(version, _)| *version <= taken) {
            self.unsettled.pop_front();
            settled.push(latest.unwrap_or(received).saturating_duration_since(received));
        }
        settled
    }

    /// Hands `snapshot` to every worker, with the next version, and wakes them.
    pub fn publish(&mut self, mut snapshot: Snapshot) {
        snapshot.version = self.current.version + 1;
        let snapshot = Arc::new(snapshot);
        let before = std::mem::replace(&mut self.current, snapshot.clone());
        self.retired.push(before);
        self.published = Instant::now();
        for slot in self.slots.iter() {
            // What the worker did not take yet is pushed out; the publisher still holds it.
            slot.waiting.force_push(snapshot.clone());
            slot.offered.fetch_add(1, Ordering::Release);
        }
        self.wake_all();
        self.collect();
    }

    /// Wakes every worker, for instance to look at the [`super::lifecycle::Lifecycle`].
    pub fn wake_all(&self) {
        for slot in self.slots.iter() {
            if let Some(wake) = slot.wake.get() {
                wake();
            }
        }
    }

    /// Gives back snapshots that no worker holds any more.
    pub fn collect(&mut self) {
        self.retired.retain(|snapshot| Arc::strong_count(snapshot) > 1);
    }

    /// How long the slowest worker took to take the newest snapshot; `None` until all have it.
    pub fn convergence(&self) -> Option<Duration> {
        let mut slowest = Duration::ZERO;
        for slot in self.slots.iter() {
            if slot.taken_version.load(Ordering::Acquire) != self.current.version {
                return None;
            }
            let taken = slot.epoch + Duration::from_nanos(slot.taken_at_ns.load(Ordering::Relaxed));
            slowest = slowest.max(taken.saturating_duration_since(self.published));
        }
        Some(slowest)
    }
}

impl Subscriber {
    /// Which worker this is.
    pub fn core(&self) -> Core {
        Core(self.worker as u16)
    }

    /// Says how to wake this worker; the first call counts.
    pub fn set_wake(&self, wake: impl Fn() + Send + Sync + 'static) {
        if let Some(slot) = self.slots.get(self.worker) {
            let _ = slot.wake.set(Box::new(wake));
        }
    }

    /// The newest snapshot, if there is one that was not taken yet.
    #[inline]
    pub fn take_newer(&mut self) -> Option<Arc<Snapshot>> {
        let slot = self.slots.get(self.worker)?;
        let offered = slot.offered.load(Ordering::Acquire);
        if offered == self.seen {
            return None;
        }
        self.seen = offered;
        let snapshot = slot.waiting.pop()?;
        slot.taken_at_ns.store(slot.epoch.elapsed().as_nanos() as u64, Ordering::Relaxed);
        slot.taken_version.store(snapshot.version, Ordering::Release);
        Some(snapshot)
    }
}

/// Publications whose time to the last worker is still measured.
const UNSETTLED_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_takes_only_the_newest() {
        let woken = Arc::new(AtomicU64::new(0));
        let (mut publisher, mut subscribers) = channel(Arc::new(Snapshot::default()), 2);
        for subscriber in &subscribers {
            let woken = woken.clone();
            subscriber.set_wake(move || {
                woken.fetch_add(1, Ordering::Relaxed);
            });
        }
        assert!(subscribers[0].take_newer().is_none());
        assert!(publisher.convergence().is_some(), "all hold the first one");
        publisher.publish(Snapshot::default());
        publisher.publish(Snapshot::default());
        assert_eq!(woken.load(Ordering::Relaxed), 4);
        assert_eq!(subscribers[0].take_newer().map(|snapshot| snapshot.version), Some(2));
        assert!(subscribers[0].take_newer().is_none());
        assert_eq!(publisher.convergence(), None, "one worker is behind");
        assert!(subscribers[1].take_newer().is_some());
        assert!(publisher.convergence().is_some());
    }

    #[test]
    fn a_snapshot_dies_on_the_config_thread() {
        let (mut publisher, mut subscribers) = channel(Arc::new(Snapshot::default()), 1);
        publisher.publish(Snapshot::default());
        let held = subscribers[0].take_newer();
        publisher.publish(Snapshot::default());
        assert_eq!(publisher.retired.len(), 1, "version 1 is held by the worker, version 0 is gone");
        drop(held);
        publisher.collect();
        assert!(publisher.retired.is_empty());
    }

    #[test]
    fn publications_meet_takers_on_other_threads() {
        let (mut publisher, subscribers) = channel(Arc::new(Snapshot::default()), 2);
        let last = 200;
        std::thread::scope(|scope| {
            for mut subscriber in subscribers {
                scope.spawn(move || {
                    let mut version = 0;
                    while version < last {
                        match subscriber.take_newer() {
                            Some(snapshot) => {
                                assert!(snapshot.version > version);
                                version = snapshot.version;
                            }
                            None => std::thread::yield_now(),
                        }
                    }
                });
            }
            for _ in 0..last {
                publisher.publish(Snapshot::default());
            }
        });
        publisher.collect();
        assert!(publisher.retired.is_empty());
        assert!(publisher.convergence().is_some());
    }
}
