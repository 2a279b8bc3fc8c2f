//! How many client connections may be open at once, counted over all workers: per listener and in the whole process.
//!
//! The counters are shared, and touched once when a connection opens and once when it closes, never by a request.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The limits of the process and of its listeners.
pub struct ConnectionLimits {
    global: Counted,
    listeners: Vec<Counted>,
}

/// Where a connection was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitReached {
    /// The listener's own limit.
    Listener,
    /// The process's limit (`envoy.resource_monitors.global_downstream_max_connections`).
    Global,
}

struct Counted {
    open_count: AtomicU64,
    max: Option<u64>,
}

impl Counted {
    fn new(max: Option<u64>) -> Self {
        Self { open_count: AtomicU64::new(0), max }
    }

    fn admit(&self) -> bool {
        let Some(max) = self.max else { return true };
        if self.open_count.fetch_add(1, Ordering::Relaxed) < max {
            return true;
        }
        self.open_count.fetch_sub(1, Ordering::Relaxed);
        false
    }

    fn release(&self) {
        if self.max.is_some() {
            self.open_count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl ConnectionLimits {
    /// The process's limit, and one entry for each listener in the order of the snapshot.
    pub fn new(global_max: Option<u64>, listener_max: impl IntoIterator<Item = Option<u64>>) -> Arc<Self> {
        let listeners = listener_max.into_iter().map(Counted::new).collect();
        Arc::new(Self { global: Counted::new(global_max), listeners })
    }

    /// Counts one more connection, or says which limit refuses it.
    pub fn admit(&self, listener: u32, ignore_global: bool) -> Result<(), LimitReached> {
        let counted = self.listeners.get(listener as usize);
        if !counted.is_none_or(Counted::admit) {
            return Err(LimitReached::Listener);
        }
        if ignore_global || self.global.admit() {
            return Ok(());
        }
        if let Some(counted) = counted {
            counted.release();
        }
        Err(LimitReached::Global)
    }

    /// Counts one connection less.
    pub fn release(&self, listener: u32, ignore_global: bool) {
        if let Some(counted) = self.listeners.get(listener as usize) {
            counted.release();
        }
        if !ignore_global {
            self.global.release();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_refuses_what_is_over_it() {
        let limits = ConnectionLimits::new(Some(2), [Some(1), None]);
        assert_eq!(limits.admit(0, false), Ok(()));
        assert_eq!(limits.admit(0, false), Err(LimitReached::Listener));
        assert_eq!(limits.admit(1, false), Ok(()));
        assert_eq!(limits.admit(1, false), Err(LimitReached::Global));
        assert_eq!(limits.admit(1, true), Ok(()));
        limits.release(0, false);
        assert_eq!(limits.admit(0, false), Ok(()));
        // A connection that the global limit refused does not count for its listener.
        assert_eq!(limits.admit(0, false), Err(LimitReached::Listener));
        limits.release(0, false);
        limits.release(1, false);
        assert_eq!(limits.admit(0, false), Ok(()));
    }
}
