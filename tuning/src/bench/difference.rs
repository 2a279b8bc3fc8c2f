//! What paired measurements show of a difference: an interval, and whether chance could have made it.
//!
//! A difference is claimed only when two independent arguments agree: the interval leaves out nothing, and so many rounds point
//! the same way that swapping "with" and "without" at random would seldom have given as much. The second is exact for any
//! distribution, where the first is narrow for a handful of rounds.

use serde::Serialize;

/// Fewest pairs with which the exact test can reach its level: 2 of 2^8 assignments are below 1%.
pub const PAIR_COUNT_MIN: usize = 8;
/// The chance, for each figure, of claiming a difference that is none.
const CHANCE_MAX: f64 = 0.01;
/// Resamples of the bootstrap, and assignments of the exact test where there are too many to try all.
const SAMPLE_COUNT: usize = 10_000;
/// Pairs up to which all assignments are tried.
const EXACT_COUNT_MAX: usize = 13;

/// What is said of a figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// The change made it smaller, which all these figures should be.
    Better,
    /// The change made it larger.
    Worse,
    /// What was seen may well be chance.
    NoneShown,
    /// Too few rounds are worth their figures.
    CannotTell,
}

impl Answer {
    /// As a reader sees it.
    pub fn words(self) -> &'static str {
        match self {
            Self::Better => "better",
            Self::Worse => "worse",
            Self::NoneShown => "no effect shown",
            Self::CannotTell => "cannot tell: too few rounds are worth their figures",
        }
    }
}

/// One figure without and with the change.
#[derive(Debug, Clone, Serialize)]
pub struct Difference {
    /// The figure.
    pub name: &'static str,
    /// Of everything below but the shares.
    pub unit: &'static str,
    /// Mean without the change.
    pub without: f64,
    /// Mean with the change.
    pub with: f64,
    /// Mean of with minus without.
    pub difference: f64,
    /// Where the difference lies with 99% confidence.
    pub interval: [f64; 2],
    /// How often chance alone would show as much, 0 to 1.
    pub chance: f64,
    /// The answer.
    pub answer: Answer,
}

/// Compares pairs (without, with).
pub fn compare(name: &'static str, unit: &'static str, pairs: &[(f64, f64)]) -> Difference {
    let differences: Vec<f64> = pairs.iter().map(|(without, with)| with - without).collect();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let interval = interval(&differences, &mut random);
    let chance = chance(&differences, &mut random);
    let difference = mean(differences.iter().copied());
    let [low, high] = interval;
    let answer = if pairs.len() < PAIR_COUNT_MIN {
        Answer::CannotTell
    } else if chance > CHANCE_MAX || low <= 0.0 && high >= 0.0 {
        Answer::NoneShown
    } else if difference < 0.0 {
        Answer::Better
    } else {
        Answer::Worse
    };
    let without = mean(pairs.iter().map(|pair| pair.0));
    let with = mean(pairs.iter().map(|pair| pair.1));
    Difference { name, unit, without, with, difference, interval, chance, answer }
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len().max(1) as f64;
    values.sum::<f64>() / count
}

/// The percentiles of the means of resamples.
fn interval(differences: &[f64], random: &mut Random) -> [f64; 2] {
    if differences.is_empty() {
        return [0.0, 0.0];
    }
    let resample = |_| {
        let pick = || differences.get(random.below(differences.len())).copied().unwrap_or_default();
        mean(std::iter::repeat_with(pick).take(differences.len()).collect::<Vec<_>>().into_iter())
    };
    let mut means: Vec<f64> = (0..SAMPLE_COUNT).map(resample).collect();
    means.sort_by(f64::total_cmp);
    let tail = (SAMPLE_COUNT as f64 * CHANCE_MAX / 2.0) as usize;
    let at = |place: usize| means.get(place).copied().unwrap_or_default();
    [at(tail), at(SAMPLE_COUNT - 1 - tail)]
}

/// The share of assignments of signs whose sum is at least as far from zero as the one that was seen.
fn chance(differences: &[f64], random: &mut Random) -> f64 {
    let seen = differences.iter().sum::<f64>().abs();
    // Sums of the same numbers in another order differ in their last digits.
    let limit = seen - seen * 1e-9;
    let reaches = |signs: u64| {
        let signed = differences.iter().enumerate().map(|(place, value)| {
            let is_swapped = signs.checked_shr(place as u32 % u64::BITS).unwrap_or_default() & 1 == 1;
            if is_swapped { -value } else { *value }
        });
        signed.sum::<f64>().abs() >= limit
    };
    if differences.len() <= EXACT_COUNT_MAX {
        let assignments = 1u64 << differences.len();
        return (0..assignments).filter(|signs| reaches(*signs)).count() as f64 / assignments as f64;
    }
    let reached = (0..SAMPLE_COUNT).filter(|_| reaches(random.next())).count();
    // The assignment that was seen is one of them.
    (reached + 1) as f64 / (SAMPLE_COUNT + 1) as f64
}

/// xorshift64*: the same data give the same answer.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `limit`, which is small.
    fn below(&mut self, limit: usize) -> usize {
        (((self.next() >> 32) * limit as u64) >> 32) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Noise of about one around `shift`.
    fn pairs(seed: u64, count: usize, shift: f64) -> Vec<(f64, f64)> {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let mut noise = || (0..12).map(|_| random.below(1000) as f64 / 1000.0).sum::<f64>() - 6.0;
        (0..count).map(|_| (100.0 + noise(), 100.0 + shift + noise())).collect()
    }

    #[test]
    fn answers() {
        for (what, pairs, expected) in [
            ("much less", pairs(1, 10, -20.0), Answer::Better),
            ("much more", pairs(2, 10, 20.0), Answer::Worse),
            ("more than the signs can be tried", pairs(3, 30, 5.0), Answer::Worse),
            ("the same", vec![(5.0, 5.0); 10], Answer::NoneShown),
            ("one outlier", [vec![(5.0, 5.0); 9], vec![(5.0, 900.0)]].concat(), Answer::NoneShown),
            ("too few", pairs(4, PAIR_COUNT_MIN - 1, -50.0), Answer::CannotTell),
            ("none", Vec::new(), Answer::CannotTell),
            ("the fewest", pairs(5, PAIR_COUNT_MIN, -50.0), Answer::Better),
        ] {
            assert_eq!(compare("p50", "us", &pairs).answer, expected, "{what}");
        }
    }

    #[test]
    fn the_interval_holds_the_shift() {
        let found = compare("p50", "us", &pairs(7, 12, -10.0));
        let [low, high] = found.interval;
        assert!(low < -10.0 && -10.0 < high && high < 0.0, "{found:?}");
    }

    #[test]
    fn chance_is_seldom_taken_for_an_effect() {
        let claims = (0..200)
            .filter(|seed| compare("p50", "us", &pairs(100 + seed, 8, 0.0)).answer != Answer::NoneShown)
            .count();
        assert!(claims <= 6, "{claims} of 200");
    }
}
