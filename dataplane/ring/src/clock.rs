//! Time as the ring counts it: nanoseconds of the monotonic clock.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

/// A point on the ring's monotonic clock, in nanoseconds; only differences between points of one ring mean anything.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct Nanos(u64);

impl Nanos {
    /// The start of the clock.
    pub const ZERO: Nanos = Nanos(0);
    /// A point that is never reached.
    pub const MAX: Nanos = Nanos(u64::MAX);

    /// The point this many nanoseconds after the start of the clock.
    pub const fn from_nanos(nanos: u64) -> Nanos {
        Nanos(nanos)
    }

    /// Nanoseconds since the start of the clock.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The time from `earlier` to this point; zero when `earlier` is later.
    pub const fn since(self, earlier: Nanos) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Nanos {
    type Output = Nanos;

    /// The point after a wait; a wait beyond the clock's range ends at [`Nanos::MAX`].
    fn add(self, wait: Duration) -> Nanos {
        // 2^64 ns are 584 years: seconds above the range cannot be told from never.
        let nanos = wait.as_secs().saturating_mul(1_000_000_000).saturating_add(u64::from(wait.subsec_nanos()));
        Nanos(self.0.saturating_add(nanos))
    }
}

impl Sub<Nanos> for Nanos {
    type Output = Duration;

    fn sub(self, earlier: Nanos) -> Duration {
        self.since(earlier)
    }
}

impl fmt::Debug for Nanos {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{:09}s", self.0 / 1_000_000_000, self.0 % 1_000_000_000)
    }
}
