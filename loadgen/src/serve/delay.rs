//! How long replies are kept back: a distribution, and stalls in which nothing is answered.

use std::str::FromStr;
use std::time::Duration;

use crate::plan::Random;
use crate::quantity::{self, BadQuantity};

/// The normal quantile of 0.99: a lognormal delay is told by its median and its 99th percentile.
const Z99: f64 = 2.326_347_874_040_841;

/// A distribution of delays.
#[derive(Clone, Debug, PartialEq)]
pub enum Delay {
    Constant(Duration),
    /// Each between the two as likely.
    Uniform(Duration, Duration),
    /// With this mean.
    Exponential(Duration),
    /// The second one in this share of the replies, the first one otherwise.
    Bimodal(Duration, Duration, f64),
    /// The logarithm is normal: median, and deviation of the logarithm.
    Lognormal(Duration, f64),
}

/// Why a text is no delay; it ends with an example.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadDelay {
    #[error(
        "`{0}` is no delay; try: 5ms, uniform:1ms,9ms, exponential:5ms, bimodal:1ms,50ms,5%, lognormal:5ms,20ms (median, p99)"
    )]
    Form(String),
    #[error("`{0}`: the second time must not be shorter than the first")]
    Order(String),
    #[error("`{0}` is no share of the replies; try: 5%")]
    Share(String),
    #[error("`{0}` is no stall; try: 200ms/1s, for 200 ms in each second")]
    Stall(String),
    #[error(transparent)]
    Quantity(#[from] BadQuantity),
}

impl FromStr for Delay {
    type Err = BadDelay;

    fn from_str(text: &str) -> Result<Delay, BadDelay> {
        let bad = || BadDelay::Form(text.to_owned());
        let (name, values) = text.split_once(':').unwrap_or(("constant", text));
        let values: Vec<&str> = values.split(',').map(str::trim).collect();
        let two = |low: &str, high: &str| {
            let (low, high) = (quantity::duration(low)?, quantity::duration(high)?);
            if low <= high { Ok((low, high)) } else { Err(BadDelay::Order(text.to_owned())) }
        };
        match (name, values.as_slice()) {
            ("constant", [time]) => Ok(Delay::Constant(quantity::duration(time)?)),
            ("exponential", [mean]) => Ok(Delay::Exponential(quantity::duration(mean)?)),
            ("uniform", [low, high]) => two(low, high).map(|(low, high)| Delay::Uniform(low, high)),
            ("bimodal", [low, high, share]) => {
                let (low, high) = two(low, high)?;
                let number = share.strip_suffix('%').and_then(|percent| percent.parse::<f64>().ok());
                let share = number.filter(|percent| (0.0..=100.0).contains(percent));
                let share = share.ok_or_else(|| BadDelay::Share(values.last().copied().unwrap_or_default().to_owned()));
                Ok(Delay::Bimodal(low, high, share? / 100.0))
            }
            ("lognormal", [median, p99]) => {
                let (median, p99) = two(median, p99)?;
                if median.is_zero() {
                    return Err(bad());
                }
                Ok(Delay::Lognormal(median, (p99.as_secs_f64() / median.as_secs_f64()).ln() / Z99))
            }
            _ => Err(bad()),
        }
    }
}

impl Delay {
    /// One delay.
    pub fn draw(&self, random: &mut Random) -> Duration {
        let scaled = |time: &Duration, factor: f64| {
            Duration::try_from_secs_f64(time.as_secs_f64() * factor)
                .unwrap_or(Duration::MAX)
                .min(quantity::DURATION_MAX)
        };
        match self {
            Delay::Constant(time) => *time,
            Delay::Uniform(low, high) => *low + scaled(&(*high - *low), random.unit()),
            Delay::Exponential(mean) => scaled(mean, random.exponential()),
            Delay::Bimodal(low, high, share) => *if random.unit() <= *share { high } else { low },
            Delay::Lognormal(median, deviation) => {
                // Box and Muller's transform: one normal number from two uniform ones.
                let radius = (2.0 * random.exponential()).sqrt();
                let normal = radius * (std::f64::consts::TAU * random.unit()).cos();
                scaled(median, (deviation * normal).exp())
            }
        }
    }
}

/// Nothing is answered in the first `length` of every `period` since the server's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stall {
    length: Duration,
    period: Duration,
}

impl FromStr for Stall {
    type Err = BadDelay;

    fn from_str(text: &str) -> Result<Stall, BadDelay> {
        let bad = || BadDelay::Stall(text.to_owned());
        let (length, period) = text.split_once('/').ok_or_else(bad)?;
        let (length, period) = (quantity::duration(length)?, quantity::duration(period)?);
        if length < period { Ok(Stall { length, period }) } else { Err(bad()) }
    }
}

impl Stall {
    /// What is left of the stall at `now`, since the server's start.
    pub fn left(&self, now: Duration) -> Duration {
        let phase = Duration::from_nanos((now.as_nanos() % self.period.as_nanos().max(1)) as u64);
        self.length.saturating_sub(phase)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn milliseconds(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn delays_and_stalls_are_understood_or_told() {
        for (text, expected) in [
            ("5ms", Delay::Constant(milliseconds(5))),
            ("constant:5ms", Delay::Constant(milliseconds(5))),
            ("uniform:1ms, 9ms", Delay::Uniform(milliseconds(1), milliseconds(9))),
            ("exponential:5ms", Delay::Exponential(milliseconds(5))),
            ("bimodal:1ms,50ms,5%", Delay::Bimodal(milliseconds(1), milliseconds(50), 0.05)),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        for (text, expected) in [
            ("normal:5ms", "`normal:5ms` is no delay; try: 5ms,"),
            ("uniform:5ms", "`uniform:5ms` is no delay"),
            ("uniform:9ms,1ms", "`uniform:9ms,1ms`: the second time must not be shorter"),
            ("bimodal:1ms,2ms,5", "`5` is no share of the replies"),
            ("bimodal:1ms,2ms,NaN%", "`NaN%` is no share of the replies"),
            ("lognormal:0ms,2ms", "`lognormal:0ms,2ms` is no delay"),
            ("5", "`5` is no duration"),
        ] {
            let error = text.parse::<Delay>().unwrap_err().to_string();
            assert!(error.starts_with(expected), "{text}: {error}");
        }
        for text in ["200ms", "1s/200ms", "1s/1s", "0s/0s"] {
            let error = text.parse::<Stall>().unwrap_err().to_string();
            assert!(error.contains("try: 200ms/1s"), "{text}: {error}");
        }
    }

    #[test]
    fn draws_have_the_quantiles_that_were_asked_for() {
        for (text, expected) in [
            ("constant:5ms", [5.0, 5.0]),
            ("uniform:10ms,20ms", [15.0, 19.9]),
            ("exponential:10ms", [6.931, 46.05]),
            ("bimodal:1ms,50ms,5%", [1.0, 50.0]),
            ("lognormal:5ms,20ms", [5.0, 20.0]),
        ] {
            let delay: Delay = text.parse().unwrap();
            let mut random = Random(7);
            let mut all: Vec<f64> = (0..100_000).map(|_| delay.draw(&mut random).as_secs_f64() * 1e3).collect();
            all.sort_by(f64::total_cmp);
            for (quantile, expected) in [0.5, 0.99].into_iter().zip(expected) {
                let found = all[(quantile * all.len() as f64) as usize];
                assert!((found / expected - 1.0).abs() < 0.03, "{text} at {quantile}: {found} is not {expected}");
            }
        }
    }

    #[test]
    fn stalls_come_again() {
        let stall: Stall = "200ms/1s".parse().unwrap();
        for (now, left) in [(0, 200), (50, 150), (200, 0), (999, 0), (1000, 200), (5199, 1)] {
            assert_eq!(stall.left(milliseconds(now)), milliseconds(left), "{now}");
        }
    }
}
