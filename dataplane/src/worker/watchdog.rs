//! Reports a worker that is stuck in one turn of its loop.
//!
//! Why: a stuck worker stops every connection of its core, and nothing else would say so. When: a turn that has lasted longer than
//! [`MISS`] is logged and counted once (`server.worker_stuck`, `server.worker_<n>.watchdog_miss`), one longer than [`MEGA_MISS`] again
//! (`watchdog_mega_miss`). Recovery: when the turn ends, that is logged with how long it took. What it leaves alone: a worker that
//! waits for work has no turn running and is never late, and nothing is killed.

use std::sync::Arc;
use std::time::Duration;

use crate::telemetry::counters::{Core, Stats};
use crate::telemetry::names::{ServerStat, WatchdogStat};
use crate::telemetry::registry::Registry;

/// How long the turn that a worker is in has lasted; `None` while it waits for work.
pub type TurnAge = Box<dyn Fn() -> Option<Duration> + Send>;

/// Watches all workers; lives on the config thread.
pub struct Watchdog {
    core: Core,
    workers: Vec<Watched>,
    all: Arc<Stats<WatchdogStat>>,
    server: Arc<Stats<ServerStat>>,
}

struct Watched {
    age: TurnAge,
    state: Lateness,
    stats: Arc<Stats<WatchdogStat>>,
}

/// How late a worker was when last looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Lateness {
    Alive,
    Missed,
    MegaMissed,
}

impl Watchdog {
    /// Watches the workers whose turns have the given ages, worker 0 first.
    pub fn new(registry: &Registry, ages: Vec<TurnAge>) -> Self {
        let watched = |(worker, age): (usize, TurnAge)| Watched {
            age,
            state: Lateness::Alive,
            stats: registry.group(&format!("server.worker_{worker}.")),
        };
        Self {
            core: registry.config_core(),
            workers: ages.into_iter().enumerate().map(watched).collect(),
            all: registry.group("workers."),
            server: registry.group("server."),
        }
    }

    /// Looks at every worker. Called every [`CHECK_INTERVAL`].
    pub fn check(&mut self) {
        for (worker, watched) in self.workers.iter_mut().enumerate() {
            let age = (watched.age)().unwrap_or_default();
            let now = match age {
                age if age >= MEGA_MISS => Lateness::MegaMissed,
                age if age >= MISS => Lateness::Missed,
                _ => Lateness::Alive,
            };
            let before = std::mem::replace(&mut watched.state, now);
            if before < Lateness::Missed && now >= Lateness::Missed {
                tracing::error!(target: "main", "worker {worker} is stuck: one turn of its loop has lasted {age:.1?}");
                self.server.increment(self.core, ServerStat::WorkerStuck);
                watched.stats.increment(self.core, WatchdogStat::WatchdogMiss);
                self.all.increment(self.core, WatchdogStat::WatchdogMiss);
            }
            if before < Lateness::MegaMissed && now == Lateness::MegaMissed {
                tracing::error!(target: "main", "worker {worker} is still stuck after {age:.1?}; restart the process if it stays so");
                watched.stats.increment(self.core, WatchdogStat::WatchdogMegaMiss);
                self.all.increment(self.core, WatchdogStat::WatchdogMegaMiss);
            }
            if before >= Lateness::Missed && now == Lateness::Alive {
                tracing::warn!(target: "main", "worker {worker} runs again");
            }
        }
    }
}

/// A turn longer than this is a miss.
pub const MISS: Duration = Duration::from_secs(1);
/// A turn longer than this is a mega miss.
pub const MEGA_MISS: Duration = Duration::from_secs(5);
/// How often [`Watchdog::check`] is to be called.
pub const CHECK_INTERVAL: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn a_stuck_worker_is_counted_once_for_each_stage() {
        let registry = Registry::new(3);
        let stuck_ms = Arc::new(AtomicU64::new(0));
        let seen = stuck_ms.clone();
        let waiting: TurnAge = Box::new(|| None);
        let stuck: TurnAge = Box::new(move || Some(Duration::from_millis(seen.load(Ordering::Relaxed))));
        let mut watchdog = Watchdog::new(&registry, vec![waiting, stuck]);
        let server = registry.group::<ServerStat>("server.");
        let second = registry.group::<WatchdogStat>("server.worker_1.");
        let mut check = |age_ms: u64, misses: u64, mega_misses: u64| {
            stuck_ms.store(age_ms, Ordering::Relaxed);
            watchdog.check();
            assert_eq!(server.total(ServerStat::WorkerStuck), misses, "{age_ms}");
            assert_eq!(second.total(WatchdogStat::WatchdogMiss), misses, "{age_ms}");
            assert_eq!(second.total(WatchdogStat::WatchdogMegaMiss), mega_misses, "{age_ms}");
        };
        check(0, 0, 0);
        check(999, 0, 0);
        check(1_000, 1, 0);
        check(2_000, 1, 0);
        check(5_000, 1, 1);
        check(6_000, 1, 1);
        check(0, 1, 1);
        check(7_000, 2, 2);
        let first = registry.group::<WatchdogStat>("server.worker_0.");
        assert_eq!(first.total(WatchdogStat::WatchdogMiss), 0);
        assert_eq!(registry.group::<WatchdogStat>("workers.").total(WatchdogStat::WatchdogMiss), 2);
    }
}
