//! How many client connections may be open at once, counted over all workers: per listener and in the whole process.
//!
//! The counters are shared, and touched once when a connection opens and once when it closes, never by a request.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The limit of the process; each listener brings its own.
pub struct ConnectionLimits {
    global: ConnectionCount,
}

/// Where a connection was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitReached {
    /// The listener's own limit.
    Listener,
    /// The process's limit (`envoy.resource_monitors.global_downstream_max_connections`).
    Global,
}

/// How many connections are open, and how many may be.
#[derive(Debug, Default)]
pub struct ConnectionCount {
    open_count: AtomicU64,
    max: Option<u64>,
}

impl ConnectionCount {
    /// None open of at most `max`; without a limit nothing is counted.
    pub fn new(max: Option<u64>) -> Self {
        Self { open_count: AtomicU64::new(0), max }
    }

    /// How many may be open at once, if that is limited.
    pub fn max(&self) -> Option<u64> {
        self.max
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
    /// The process's limit.
    pub fn new(global_max: Option<u64>) -> Arc<Self> {
        Arc::new(Self { global: ConnectionCount::new(global_max) })
    }

    /// Counts one more connection of a listener, or says which limit refuses it.
    pub fn admit(&self, listener: &ConnectionCount, ignore_global: bool) -> Result<(), LimitReached> {
        if !listener.admit() {
            return Err(LimitReached::Listener);
        }
        if ignore_global || self.global.admit() {
            return Ok(());
        }
        listener.release();
        Err(LimitReached::Global)
    }

    /// Counts one connection less.
    pub fn release(&self, listener: &ConnectionCount, ignore_global: bool) {
        listener.release();
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
        let limits = ConnectionLimits::new(Some(2));
        let (one, any) = (ConnectionCount::new(Some(1)), ConnectionCount::new(None));
        assert_eq!(limits.admit(&one, false), Ok(()));
        assert_eq!(limits.admit(&one, false), Err(LimitReached::Listener));
        assert_eq!(limits.admit(&any, false), Ok(()));
        assert_eq!(limits.admit(&any, false), Err(LimitReached::Global));
        assert_eq!(limits.admit(&any, true), Ok(()));
        limits.release(&one, false);
        assert_eq!(limits.admit(&one, false), Ok(()));
        // A connection that the global limit refused does not count for its listener.
        assert_eq!(limits.admit(&one, false), Err(LimitReached::Listener));
        limits.release(&one, false);
        limits.release(&any, false);
        assert_eq!(limits.admit(&one, false), Ok(()));
    }
}
