//! The plan file: one phase a line.
//!
//! ```text
//! # rates are a second, in total
//! constant 2k 10s        evenly spaced
//! poisson 2k 10s         independent arrivals
//! ramp 100 5k 1m         from the first rate to the second
//! pause 5s
//! at 0ms 0.2ms 1.5ms     a recorded trace: exact times after the end of the phase before; lines of `at` join
//! ```

use std::fmt;

use super::{Phase, Plan, Shape};
use crate::quantity;

/// Recorded arrivals that one file may hold.
const TIMES_MAX: usize = 20_000_000;
/// Phases that one file may hold.
const PHASES_MAX: usize = 100_000;

/// What is wrong with a plan, and where; both counted from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadPlan {
    pub line: usize,
    pub column: usize,
    pub what: String,
}

impl std::error::Error for BadPlan {}

impl fmt::Display for BadPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.line, self.column, self.what)
    }
}

/// The plan that `text` says.
///
/// Errors: the first line that is no phase, with its place and what would be right.
pub fn parse(text: &str, seed: u64) -> Result<Plan, BadPlan> {
    let mut plan = Plan { phases: Vec::new(), seed };
    let mut trace: Vec<u64> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line_number = index + 1;
        let bad = |at: usize, what: String| {
            let column = line.get(..at).unwrap_or(line).chars().count() + 1;
            BadPlan { line: line_number, column, what }
        };
        let mut words = words(line.split('#').next().unwrap_or_default());
        let Some((at, keyword)) = words.next() else { continue };
        if keyword != "at" {
            end_trace(&mut plan, &mut trace);
        }
        let end = line.trim_end().len();
        let mut word = |what: &str| words.next().ok_or_else(|| bad(end, format!("`{keyword}` lacks {what}")));
        let mut number = |what: &str| {
            let (at, text) = word(what)?;
            quantity::rate(text).map_err(|error| bad(at, error.to_string()))
        };
        let shape = match keyword {
            "constant" => Shape::Constant(number("its rate")?),
            "poisson" => Shape::Poisson(number("its rate")?),
            "ramp" => Shape::Ramp { from: number("its first rate")?, to: number("its last rate")? },
            "pause" => Shape::Pause,
            "at" => {
                let before = trace.len();
                for (at, text) in words {
                    let time = quantity::duration(text).map_err(|error| bad(at, error.to_string()))?;
                    let time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
                    if trace.last().is_some_and(|&last| time < last) {
                        return Err(bad(at, format!("`{text}` is before the time that stands before it")));
                    }
                    if trace.len() >= TIMES_MAX {
                        return Err(bad(at, format!("more than {TIMES_MAX} recorded times; split the file")));
                    }
                    trace.push(time);
                }
                if trace.len() == before {
                    return Err(bad(end, "`at` lacks its times".to_owned()));
                }
                continue;
            }
            _ => {
                let what = format!("`{keyword}` is no phase; one of: constant, poisson, ramp, pause, at");
                return Err(bad(at, what));
            }
        };
        let (at, text) = word("its duration")?;
        let length = quantity::duration(text).map_err(|error| bad(at, error.to_string()))?;
        if length.is_zero() {
            return Err(bad(at, "a phase of no length".to_owned()));
        }
        if let Some((at, text)) = words.next() {
            return Err(bad(at, format!("`{text}` is more than `{keyword}` takes")));
        }
        if plan.phases.len() >= PHASES_MAX {
            return Err(bad(0, format!("more than {PHASES_MAX} phases")));
        }
        let length = u64::try_from(length.as_nanos()).unwrap_or(u64::MAX);
        plan.phases.push(Phase { shape, length, measured: true });
    }
    end_trace(&mut plan, &mut trace);
    if plan.phases.iter().all(|phase| phase.shape == Shape::Pause) {
        let line = text.lines().count().max(1);
        return Err(BadPlan { line, column: 1, what: "the plan sends nothing; try: constant 1k 10s".to_owned() });
    }
    // 30 days for each of many phases would overflow the clock.
    if plan.phases.iter().try_fold(0_u64, |sum, phase| sum.checked_add(phase.length)).is_none_or(|sum| sum > 1 << 62) {
        return Err(BadPlan { line: 1, column: 1, what: "the plan lasts longer than a century".to_owned() });
    }
    Ok(plan)
}

fn end_trace(plan: &mut Plan, trace: &mut Vec<u64>) {
    if let Some(&last) = trace.last() {
        let shape = Shape::At(std::mem::take(trace).into());
        plan.phases.push(Phase { shape, length: last + 1, measured: true });
    }
}

/// The words of a line with the byte at which each begins.
fn words(line: &str) -> impl Iterator<Item = (usize, &str)> {
    line.split_whitespace().map(move |word| (word.as_ptr() as usize - line.as_ptr() as usize, word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_phase_is_understood() {
        let plan =
            parse("# a plan\nconstant 2k 10s\n\npoisson 1 1ms # one\nramp 1 2 1s\npause 2s\nat 0ms 1ms\nat 1ms\n", 7);
        let phase = |shape, length| Phase { shape, length, measured: true };
        let expected = Plan {
            phases: vec![
                phase(Shape::Constant(2000.0), 10_000_000_000),
                phase(Shape::Poisson(1.0), 1_000_000),
                phase(Shape::Ramp { from: 1.0, to: 2.0 }, 1_000_000_000),
                phase(Shape::Pause, 2_000_000_000),
                phase(Shape::At([0, 1_000_000, 1_000_000].into()), 1_000_001),
            ],
            seed: 7,
        };
        assert_eq!(plan, Ok(expected));
    }

    #[test]
    fn errors_say_where_and_how() {
        for (text, expected) in [
            ("constant 2k 10s\nramp 1 10s", "2:8: `10s` is no rate; try: 500, 2.5k, 1M (a second)"),
            ("constant 2k", "1:12: `constant` lacks its duration"),
            ("  burst 5", "1:3: `burst` is no phase; one of: constant, poisson, ramp, pause, at"),
            ("at 2ms 1ms", "1:8: `1ms` is before the time that stands before it"),
            ("at", "1:3: `at` lacks its times"),
            ("constant 1 1s x", "1:15: `x` is more than `constant` takes"),
            ("constant 1 0s", "1:12: a phase of no length"),
            ("", "1:1: the plan sends nothing; try: constant 1k 10s"),
            ("pause 1s", "1:1: the plan sends nothing; try: constant 1k 10s"),
        ] {
            assert_eq!(parse(text, 0).unwrap_err().to_string(), expected, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in "(?s).{0,200}") {
            let _ = parse(&text, 0);
        }
    }
}
