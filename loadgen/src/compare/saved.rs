//! Reports of runs that were made before, as `run --json` wrote them.

use std::fs;
use std::path::Path;

use serde::Deserialize;
use torus_tune::bench::difference;

use super::{Against, CompareError};
use crate::environment::{self, Environment};

/// The form that is understood; see `report`.
const SCHEMA: &str = "torus-load.run.v1";
/// Differing facts that an error names.
const NAMED_MAX: usize = 3;

/// What is read of a report.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Saved {
    schema: String,
    verdict: Verdict,
    environment: Environment,
    series: Vec<Point>,
}

#[derive(Clone, Debug, Deserialize)]
struct Verdict {
    kind: String,
}

/// Times in nanoseconds.
#[derive(Clone, Copy, Debug, Deserialize)]
struct Point {
    p50: u64,
    p90: u64,
    p99: u64,
    p999: u64,
}

/// Takes one figure from a point.
type Figure = fn(&Point) -> u64;

const FIGURES: [(&str, Figure); 4] = [
    ("response time p50", |point| point.p50),
    ("response time p90", |point| point.p90),
    ("response time p99", |point| point.p99),
    ("response time p99.9", |point| point.p999),
];

impl Saved {
    /// The report in the file `path`.
    ///
    /// Errors: it cannot be read, is no report of a run, or of a run that was not valid.
    pub(super) fn read(path: &str) -> Result<Saved, CompareError> {
        let text = fs::read_to_string(Path::new(path));
        let text = text.map_err(|source| CompareError::File { path: path.to_owned(), source })?;
        let bad = |what: String| CompareError::Report { path: path.to_owned(), what };
        let saved: Saved = serde_json::from_str(&text).map_err(|error| bad(format!("no report of a run: {error}")))?;
        if saved.schema != SCHEMA {
            return Err(bad(format!("its form is {}, {SCHEMA} is understood", saved.schema)));
        }
        if saved.verdict.kind != "valid" {
            return Err(bad(format!("the run was {}: its figures say nothing", saved.verdict.kind)));
        }
        Ok(saved)
    }
}

/// The differences of every report to the first: second by second, as many as both have.
///
/// Errors: the runs were made in different environments and `forced` does not say that this is known.
pub(super) fn compare(all: &[(&String, Saved)], forced: bool) -> Result<Vec<Against>, CompareError> {
    let Some(((first_path, first), others)) = all.split_first() else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for (path, other) in others {
        let mut differing = environment::differences(&first.environment, &other.environment);
        if !differing.is_empty() && !forced {
            let more = differing.len().saturating_sub(NAMED_MAX);
            differing.truncate(NAMED_MAX);
            let more = if more > 0 { format!("; and {more} more") } else { String::new() };
            let what = differing.join("; ") + &more;
            return Err(CompareError::Environment { one: (*first_path).clone(), other: (*path).clone(), what });
        }
        let differences = FIGURES.iter().map(|(name, figure)| {
            let micros = |point: &Point| figure(point) as f64 / 1e3;
            let pairs: Vec<_> = first.series.iter().map(micros).zip(other.series.iter().map(micros)).collect();
            difference::compare(name, "us", &pairs)
        });
        found.push(Against { target: (*path).clone(), differences: differences.collect() });
    }
    Ok(found)
}
