//! A new configuration on its way from the config thread to the workers.

use std::sync::Arc;

use torus_proxy::config::publish::{self, Publisher, Subscriber};
use torus_proxy::config::snapshot::Snapshot;

/// A publisher and the workers that take what it publishes.
pub struct Publication {
    publisher: Publisher,
    subscribers: Vec<Subscriber>,
    held: Vec<Arc<Snapshot>>,
    next: Option<Snapshot>,
}

const WORKER_COUNT: usize = 4;

impl Publication {
    /// For four workers that hold the first snapshot.
    pub fn new() -> Self {
        let first = Arc::new(Snapshot::default());
        let (publisher, subscribers) = publish::channel(Arc::clone(&first), WORKER_COUNT);
        let held = vec![first; WORKER_COUNT];
        let mut bench = Self { publisher, subscribers, held, next: None };
        bench.prepare();
        bench.run();
        bench.prepare();
        bench
    }

    /// The next snapshot; making it is not part of the work.
    pub fn prepare(&mut self) {
        self.next = Some(Snapshot::default());
    }

    /// Publishes it, has every worker take it and gives the old one back; the version that all have.
    pub fn run(&mut self) -> u64 {
        self.publisher.publish(self.next.take().unwrap_or_default());
        for (subscriber, held) in self.subscribers.iter_mut().zip(&mut self.held) {
            if let Some(newer) = subscriber.take_newer() {
                *held = newer;
            }
        }
        self.publisher.collect();
        self.held.iter().map(|snapshot| snapshot.version).min().unwrap_or_default()
    }
}

impl Default for Publication {
    fn default() -> Self {
        Self::new()
    }
}
