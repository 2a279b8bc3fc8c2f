//! How long to wait before the next attempt to reach a control plane.

use std::time::Duration;

/// Waits at random below an interval that doubles with each failure: many clients that lost one server do not come back at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackOff {
    base: Duration,
    max: Duration,
    interval: Duration,
}

impl BackOff {
    /// The first wait is below `base`, none is above `max`.
    pub fn new(base: Duration, max: Duration) -> Self {
        let max = max.max(base);
        Self { base, max, interval: base }
    }

    /// The wait after one more failure; `random` is uniform over all numbers.
    pub fn next(&mut self, random: u64) -> Duration {
        let below = self.interval;
        self.interval = self.interval.saturating_mul(2).min(self.max);
        // The upper half is always waited, so that a server that refuses at once is not asked in a loop.
        below / 2 + (below / 2).mul_f64(random as f64 / u64::MAX as f64)
    }

    /// The attempt succeeded.
    pub fn reset(&mut self) {
        self.interval = self.base;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_maximum() {
        let ms = Duration::from_millis;
        let mut back_off = BackOff::new(ms(500), ms(3000));
        let least: Vec<Duration> = (0..5).map(|_| back_off.next(0)).collect();
        assert_eq!(least, [ms(250), ms(500), ms(1000), ms(1500), ms(1500)]);
        assert_eq!(back_off.next(u64::MAX), ms(3000));
        back_off.reset();
        assert_eq!(back_off.next(u64::MAX), ms(500));
    }
}
