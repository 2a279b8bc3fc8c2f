//! When requests are meant to be sent: one schedule for all workers, drawn before the run and never moved by it.
//!
//! A plan is a list of phases. The times are nanoseconds since the start of the run. Worker `w` of `n` takes every n-th arrival
//! (of a Poisson phase: an independent stream of an n-th of the rate, which together are the Poisson stream of the whole rate),
//! so the rate of a plan is the total whatever the number of workers.

pub mod parse;

use std::sync::Arc;

const SECOND: f64 = 1e9;

/// The arrivals of one phase.
#[derive(Clone, Debug, PartialEq)]
pub enum Shape {
    /// Evenly spaced, a second.
    Constant(f64),
    /// Independent of each other, this many a second in the mean.
    Poisson(f64),
    /// Evenly spaced at a rate that changes steadily.
    Ramp { from: f64, to: f64 },
    /// No arrivals.
    Pause,
    /// At these nanoseconds after the phase's start, sorted.
    At(Arc<[u64]>),
}

/// One phase.
#[derive(Clone, Debug, PartialEq)]
pub struct Phase {
    pub shape: Shape,
    /// In nanoseconds.
    pub length: u64,
    /// Its requests are recorded; those of a warm-up are not.
    pub measured: bool,
}

/// The whole schedule.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    pub phases: Vec<Phase>,
    /// Of the Poisson phases.
    pub seed: u64,
}

/// One request to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Nanoseconds after the start of the run.
    pub at: u64,
    pub measured: bool,
}

impl Phase {
    /// Requests a second, `at` nanoseconds after the phase's start.
    fn rate_at(&self, at: u64) -> f64 {
        match &self.shape {
            Shape::Constant(rate) | Shape::Poisson(rate) => *rate,
            Shape::Ramp { from, to } => from + (to - from) * at as f64 / self.length.max(1) as f64,
            Shape::Pause => 0.0,
            Shape::At(times) => times.len() as f64 * SECOND / self.length.max(1) as f64,
        }
    }

    /// Requests that the phase asks for; of a Poisson phase in the mean.
    pub fn expected(&self) -> f64 {
        match &self.shape {
            Shape::At(times) => times.len() as f64,
            _ => self.rate_at(self.length / 2) * self.length as f64 / SECOND,
        }
    }

    /// When arrival `index` of the phase is due, in nanoseconds after the phase's start; none when it has no such arrival.
    fn offset(&self, index: u64) -> Option<u64> {
        let seconds = match &self.shape {
            Shape::Constant(rate) => index as f64 / rate,
            Shape::Ramp { from, to } => {
                // Solves index = from t + slope t^2 / 2 in the form that keeps its digits for any slope.
                let slope = (to - from) * SECOND / self.length.max(1) as f64;
                let under_root = from * from + 2.0 * slope * index as f64;
                if index == 0 {
                    0.0
                } else if under_root < 0.0 {
                    return None;
                } else {
                    2.0 * index as f64 / (from + under_root.sqrt())
                }
            }
            Shape::At(times) => return times.get(usize::try_from(index).ok()?).copied(),
            Shape::Pause | Shape::Poisson(_) => return None,
        };
        let nanos = seconds * SECOND;
        // Half a nanosecond of rounding must not add an arrival at the very end.
        (nanos < self.length as f64 - 0.5).then_some(nanos as u64)
    }
}

impl Plan {
    /// When the last phase ends, in nanoseconds.
    pub fn end(&self) -> u64 {
        self.phases.iter().map(|phase| phase.length).sum()
    }

    /// When the first measured phase begins, in nanoseconds.
    pub fn measured_from(&self) -> u64 {
        self.phases.iter().take_while(|phase| !phase.measured).map(|phase| phase.length).sum()
    }

    /// Requests a second that the plan asks for at `at`.
    pub fn rate_at(&self, at: u64) -> f64 {
        let mut start = 0_u64;
        for phase in &self.phases {
            if at < start + phase.length {
                return phase.rate_at(at - start);
            }
            start += phase.length;
        }
        0.0
    }

    /// The plan with `length` nanoseconds at its first rate before it, which are not measured.
    pub fn with_warm_up(mut self, length: u64) -> Plan {
        if length > 0 {
            let rate = self.rate_at(0);
            let shape = if rate > 0.0 { Shape::Constant(rate) } else { Shape::Pause };
            self.phases.insert(0, Phase { shape, length, measured: false });
        }
        self
    }

    /// The arrivals of worker `worker` of `workers`, in order of time.
    pub fn arrivals(self: &Arc<Plan>, worker: u64, workers: u64) -> Schedule {
        let mut random = Random(self.seed ^ (worker + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        random.next();
        Schedule {
            plan: Arc::clone(self),
            workers: workers.max(1),
            phase: 0,
            phase_start: 0,
            index: worker,
            poisson: None,
            random,
        }
    }
}

/// The arrivals of one worker.
#[derive(Debug)]
pub struct Schedule {
    plan: Arc<Plan>,
    workers: u64,
    phase: usize,
    phase_start: u64,
    /// Of the next arrival in its phase.
    index: u64,
    /// Time of the last Poisson arrival of this phase, in nanoseconds.
    poisson: Option<f64>,
    random: Random,
}

impl Iterator for Schedule {
    type Item = Arrival;

    fn next(&mut self) -> Option<Arrival> {
        loop {
            let phase = self.plan.phases.get(self.phase)?;
            let offset = match phase.shape {
                Shape::Poisson(rate) => {
                    let gap = self.random.exponential() * SECOND * self.workers as f64 / rate;
                    let at = self.poisson.unwrap_or(0.0) + gap;
                    self.poisson = Some(at);
                    (at < phase.length as f64).then_some(at as u64)
                }
                _ => phase.offset(self.index),
            };
            if let Some(offset) = offset {
                self.index += self.workers;
                return Some(Arrival { at: self.phase_start + offset, measured: phase.measured });
            }
            self.phase_start += phase.length;
            self.phase += 1;
            self.index %= self.workers;
            self.poisson = None;
        }
    }
}

/// splitmix64: a small generator whose every seed is good.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    #[expect(clippy::should_implement_trait, reason = "it never ends")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// In (0, 1].
    pub fn unit(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }

    /// Exponential with mean 1.
    pub fn exponential(&mut self) -> f64 {
        -self.unit().ln()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    fn plan(phases: &[(Shape, u64)]) -> Arc<Plan> {
        let phases = phases
            .iter()
            .map(|(shape, length)| Phase { shape: shape.clone(), length: *length, measured: true })
            .collect();
        Arc::new(Plan { phases, seed: 1 })
    }

    fn all(plan: &Arc<Plan>, workers: u64) -> Vec<u64> {
        let mut times: Vec<u64> = (0..workers).flat_map(|w| plan.arrivals(w, workers).map(|a| a.at)).collect();
        times.sort_unstable();
        times
    }

    #[test]
    fn the_rate_is_the_total_for_any_number_of_workers() {
        let plan =
            plan(&[(Shape::Constant(1000.0), 2 * S), (Shape::Pause, S), (Shape::Ramp { from: 100.0, to: 900.0 }, S)]);
        let one = all(&plan, 1);
        assert_eq!(one.len(), 2500);
        for workers in [2, 3, 7, 64] {
            assert_eq!(all(&plan, workers), one, "{workers} workers");
        }
    }

    #[test]
    fn a_rate_below_the_number_of_workers_is_kept() {
        assert_eq!(all(&plan(&[(Shape::Constant(3.0), S)]), 64).len(), 3);
    }

    #[test]
    fn a_ramp_has_the_mean_of_its_rates() {
        for (from, to) in [(0.0, 1000.0), (1000.0, 0.0), (500.0, 500.0), (1.0, 999.0)] {
            let times = all(&plan(&[(Shape::Ramp { from, to }, 4 * S)]), 3);
            let expected = (from + to) / 2.0 * 4.0;
            assert!((times.len() as f64 - expected).abs() <= 1.0, "{from} to {to}: {}", times.len());
            let first_half = times.iter().filter(|&&at| at < 2 * S).count() as f64;
            assert!((first_half - (0.75 * from + 0.25 * to) * 2.0).abs() <= 2.0, "{from} to {to}: {first_half}");
        }
    }

    #[test]
    fn poisson_gaps_are_exponential_whatever_the_workers() {
        for workers in [1, 4] {
            let times = all(&plan(&[(Shape::Poisson(10_000.0), 10 * S)]), workers);
            assert!((times.len() as f64 - 100_000.0).abs() < 1_500.0, "{}", times.len());
            let gaps: Vec<f64> = times.windows(2).map(|pair| (pair[1] - pair[0]) as f64).collect();
            let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
            let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
            // The standard deviation of an exponential distribution is its mean.
            assert!((variance.sqrt() / mean - 1.0).abs() < 0.03, "{workers} workers: {}", variance.sqrt() / mean);
        }
    }

    #[test]
    fn a_warm_up_runs_at_the_first_rate_and_is_not_measured() {
        let phase = Phase { shape: Shape::Ramp { from: 100.0, to: 200.0 }, length: S, measured: true };
        let plan = Arc::new(Plan { phases: vec![phase], seed: 0 }.with_warm_up(S));
        let unmeasured = plan.arrivals(0, 1).filter(|arrival| !arrival.measured).count();
        assert_eq!((unmeasured, plan.measured_from(), plan.end()), (100, S, 2 * S));
    }
}
