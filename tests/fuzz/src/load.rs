//! What must hold for any text given to the load generator; the fuzz targets and the replay of their seeds share it.

use std::sync::Arc;

use torus_load::plan::parse;
use torus_load::slo::Objective;

/// Arrivals that are looked at; a plan may have millions.
const ARRIVALS: usize = 1000;

/// A plan is refused at a place inside its text, or its arrivals come in order and before its end.
#[allow(dead_code, reason = "each target checks one thing")]
pub(crate) fn plan(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match parse::parse(text, 1) {
        Ok(plan) => {
            let plan = Arc::new(plan);
            for workers in [1, 3] {
                let mut last = 0;
                for arrival in plan.arrivals(0, workers).take(ARRIVALS) {
                    assert!((last..plan.end()).contains(&arrival.at), "{} after {last} in {plan:?}", arrival.at);
                    last = arrival.at;
                }
            }
        }
        Err(bad) => {
            assert!((1..=text.lines().count().max(1)).contains(&bad.line), "{bad}");
            let line = text.lines().nth(bad.line - 1).unwrap_or_default();
            assert!((1..=line.chars().count() + 1).contains(&bad.column), "{bad}");
        }
    }
}

/// An objective is refused at a place inside its text, or judges zeros and infinities without harm, and what is infinite is not met.
#[allow(dead_code, reason = "each target checks one thing")]
pub(crate) fn objective(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match text.parse::<Objective>() {
        Ok(objective) => {
            let judged = objective.judge(|_| f64::INFINITY);
            assert!(!judged.is_empty() && judged.iter().all(|judged| !judged.met), "{judged:?}");
            assert_eq!(objective.judge(|_| 0.0).len(), judged.len());
        }
        Err(bad) => assert!((1..=text.chars().count() + 1).contains(&bad.column), "{bad}"),
    }
}
