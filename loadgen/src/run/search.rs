//! The highest rate that meets an objective, as a plain value: it says which rate to try, and is told how that went.
//!
//! The rate doubles until it fails (or halves until it succeeds), then the interval between the best success and the worst failure is
//! bisected by its geometric mean until it is narrow. Near the knee a single try is luck, so there two of three decide. The rate that is
//! left is tried once more; where it fails, the search goes on below it.

/// Rates below this are not worth searching, a second.
const RATE_MIN: f64 = 1.0;
/// Tries of one search at most.
const TRIES_MAX: usize = 60;
/// Confirmations that may fail.
const CONFIRMATIONS_MAX: usize = 5;

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Step {
    /// Try this rate.
    Try(f64),
    /// The search is over: the highest rate that met the objective and was confirmed, if any did.
    Done(Option<f64>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// No success or no failure yet.
    Bracket,
    Bisect,
    Confirm,
    Over,
}

/// The state of a search.
#[derive(Clone, Debug)]
pub struct Search {
    stage: Stage,
    rate: f64,
    best: Option<f64>,
    worst: Option<f64>,
    /// Highest over lowest at the end, less 1.
    precision: f64,
    /// Successes and failures at this rate.
    votes: (u32, u32),
    tries: usize,
    confirmations: usize,
}

impl Search {
    /// A search that begins at `rate` and ends with an interval of `precision` (0.05 for 5%).
    pub fn new(rate: f64, precision: f64) -> Search {
        Search {
            stage: Stage::Bracket,
            rate,
            best: None,
            worst: None,
            precision,
            votes: (0, 0),
            tries: 0,
            confirmations: 0,
        }
    }

    pub fn step(&self) -> Step {
        if self.stage == Stage::Over { Step::Done(self.best) } else { Step::Try(self.rate) }
    }

    /// The rate of [`Search::step`] was tried.
    pub fn on_tried(&mut self, met: bool) {
        self.tries += 1;
        if self.tries >= TRIES_MAX {
            // What was not confirmed is no answer.
            self.best = None;
            self.stage = Stage::Over;
            return;
        }
        if met {
            self.votes.0 += 1;
        } else {
            self.votes.1 += 1;
        }
        let needed = if self.stage == Stage::Bisect { 2 } else { 1 };
        if self.votes.0 < needed && self.votes.1 < needed {
            return;
        }
        let met = self.votes.0 >= needed;
        self.votes = (0, 0);
        if self.stage == Stage::Confirm {
            self.confirmations += 1;
            if met || self.confirmations >= CONFIRMATIONS_MAX {
                self.best = self.best.filter(|_| met);
                self.stage = Stage::Over;
                return;
            }
        }
        if met {
            self.best = Some(self.rate);
        } else {
            self.worst = Some(self.rate);
            self.best = self.best.filter(|best| *best < self.rate);
        }
        self.choose();
    }

    fn choose(&mut self) {
        (self.stage, self.rate) = match (self.best, self.worst) {
            (Some(best), None) => (Stage::Bracket, best * 2.0),
            (None, Some(worst)) if self.confirmations > 0 => (Stage::Bracket, worst / (1.0 + self.precision)),
            (None, Some(worst)) => (Stage::Bracket, worst / 2.0),
            (Some(best), Some(worst)) if worst / best <= 1.0 + self.precision => (Stage::Confirm, best),
            (Some(best), Some(worst)) => (Stage::Bisect, (best * worst).sqrt()),
            (None, None) => (Stage::Bracket, self.rate),
        };
        if self.best.is_none() && self.rate < RATE_MIN {
            self.stage = Stage::Over;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(start: f64, mut met: impl FnMut(f64) -> bool) -> (Option<f64>, usize) {
        let mut search = Search::new(start, 0.05);
        loop {
            match search.step() {
                Step::Done(best) => return (best, search.tries),
                Step::Try(rate) => search.on_tried(met(rate)),
            }
        }
    }

    #[test]
    fn the_knee_is_found_from_anywhere() {
        for knee in [3.0, 10.0, 777.0, 123_456.0] {
            for start in [1.0, 100.0, 1000.0, 1e6] {
                let (best, tries) = run(start, |rate| rate <= knee);
                let best = best.unwrap();
                assert!(best <= knee && best * 1.05 >= knee, "{knee} from {start}: {best}");
                assert!(tries < 40, "{knee} from {start}: {tries} tries");
            }
        }
    }

    #[test]
    fn a_noisy_knee_is_found_nearly() {
        let mut random = crate::plan::Random(3);
        for _ in 0..50 {
            let (best, _) = run(1000.0, |rate| rate * (1.0 + 0.04 * (random.unit() - 0.5)) <= 5000.0);
            assert!((4500.0..5500.0).contains(&best.unwrap()), "{best:?}");
        }
    }

    #[test]
    fn a_search_ends_whatever_it_is_told() {
        assert_eq!(run(1000.0, |_| false).0, None);
        assert_eq!(run(1000.0, |_| true), (None, TRIES_MAX));
        let mut random = crate::plan::Random(4);
        for _ in 0..100 {
            assert!(run(1000.0, |_| random.unit() < 0.5).1 <= TRIES_MAX);
        }
    }
}
