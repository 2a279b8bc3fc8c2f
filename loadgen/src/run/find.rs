//! `--find-max`: the highest rate that meets the objective, with every rate that was tried on the way.
//!
//! A try that this program itself spoiled says nothing about the target: it is made again and the search does not hear of it. When a
//! rate cannot be made at all, the search goes on below it, and an answer that ends there is said to be this program's limit.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;

use super::search::{Search, Step};
use super::setup::{self, Options, Setup};
use super::{RunError, once};
use crate::quantity::nanoseconds;
use crate::report::Report;
use crate::verdict::Kind;

/// Width of the interval at which the search ends.
const PRECISION: f64 = 0.05;
/// Runs of one try, when this program spoils them.
const ATTEMPTS_MAX: u32 = 4;

/// What the search found.
#[derive(Clone, Debug, Serialize)]
pub struct Found {
    /// The highest rate that met the objective and did so again when it was confirmed, a second.
    pub rate: Option<f64>,
    /// Who kept the next higher rate from being the answer; none when no higher rate was tried.
    pub limit: Option<Limit>,
    /// Ratio less 1 of the rates between which the answer lies, at most.
    pub precision: f64,
    pub interrupted: bool,
    /// In the order in which they were made.
    pub tries: Vec<Tried>,
}

/// Who is the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// It missed the objective.
    Target,
    /// All connections were busy at unchanged service times.
    Connections,
    /// This program could not send at the rate.
    Generator,
}

impl Limit {
    pub fn words(self) -> &'static str {
        match self {
            Limit::Target => "the target is the limit",
            Limit::Connections => "the number of connections is the limit; try more --connections",
            Limit::Generator => {
                "this program is the limit; the target may do more; try more --threads, or cores of their own"
            }
        }
    }
}

/// A rate that was tried: one point of the rate-latency curve. Times are nanoseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Tried {
    pub rate: f64,
    pub completed: f64,
    pub p50: u64,
    pub p99: u64,
    pub p999: u64,
    pub error_share: f64,
    pub cpu_us_per_request: Option<f64>,
    pub verdict: Kind,
    pub met: bool,
    /// Whether the search heard of it.
    pub counted: bool,
}

impl Tried {
    fn new(rate: f64, report: &Report, met: bool, counted: bool) -> Tried {
        Tried {
            rate,
            completed: report.rates.completed,
            p50: report.response_time.at(50.0),
            p99: report.response_time.at(99.0),
            p999: report.response_time.at(99.9),
            error_share: report.requests.error_share,
            cpu_us_per_request: report.target_usage.map(|usage| usage.cpu_us_per_request),
            verdict: report.verdict.kind,
            met,
            counted,
        }
    }

    fn progress(&self) {
        let Tried { rate, completed, p50, p99, .. } = self;
        let word = if self.met { "met" } else { "missed" };
        let word = if self.counted { word } else { "tried again" };
        let kind = self.verdict.words();
        let (p50, p99) = (nanoseconds(*p50), nanoseconds(*p99));
        eprintln!("{rate:.1}/s: {word} ({kind}), succeeded {completed:.1}/s, p50 {p50}, p99 {p99}");
    }
}

/// Searches, and gives the report of the last try, which is the one that confirmed the answer where there is one.
///
/// Errors: a run could not be made.
pub fn find(setup: &mut Setup, options: &Options, stop: &Arc<AtomicBool>) -> Result<Report, RunError> {
    let mut search = Search::new(options.rate, PRECISION);
    let mut options = options.clone();
    let mut tries = Vec::new();
    let mut attempt = 0;
    let mut last = None;
    let rate = loop {
        let rate = match search.step() {
            Step::Done(rate) => break rate,
            Step::Try(rate) => rate,
        };
        options.rate = rate;
        let load = setup::load(&options)?;
        let outcome = once(setup, &options, &load, stop)?;
        let report = Report::new(setup, &options, &load, &outcome);
        attempt += 1;
        let kind = report.verdict.kind;
        let spoiled = match kind {
            Kind::GeneratorLimited => true,
            // Replies came, yet the counts contradict each other.
            Kind::Invalid => report.requests.succeeded > 0,
            Kind::Valid | Kind::TargetLimited | Kind::ConnectionLimited => false,
        };
        let met = kind == Kind::Valid && report.objective.iter().all(|judged| judged.met);
        let interrupted = stop.load(Ordering::Relaxed);
        let counted = !interrupted && (!spoiled || attempt >= ATTEMPTS_MAX);
        let tried = Tried::new(rate, &report, met, counted);
        if !setup.quiet {
            tried.progress();
        }
        tries.push(tried);
        last = Some(report);
        if interrupted {
            break None;
        }
        if counted {
            attempt = 0;
            search.on_tried(met);
        }
    };
    // The first step of a search is always a try.
    let mut report = last.ok_or(RunError::NothingTried)?;
    let limit = limit(rate, &tries);
    let interrupted = stop.load(Ordering::Relaxed);
    report.search = Some(Found { rate, limit, precision: PRECISION, interrupted, tries });
    Ok(report)
}

/// Who failed the lowest rate above the answer.
fn limit(answer: Option<f64>, tries: &[Tried]) -> Option<Limit> {
    let failed =
        || tries.iter().filter(|tried| tried.counted && !tried.met && answer.is_none_or(|rate| tried.rate > rate));
    let lowest = failed().map(|tried| tried.rate).min_by(f64::total_cmp)?;
    let at_lowest = |kind| failed().any(|tried| tried.rate == lowest && tried.verdict == kind);
    Some(if at_lowest(Kind::GeneratorLimited) {
        Limit::Generator
    } else if at_lowest(Kind::ConnectionLimited) {
        Limit::Connections
    } else {
        Limit::Target
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_who_failed_the_next_higher_rate() {
        let tried = |rate, verdict, met, counted| Tried {
            rate,
            completed: rate,
            p50: 0,
            p99: 0,
            p999: 0,
            error_share: 0.0,
            cpu_us_per_request: None,
            verdict,
            met,
            counted,
        };
        let tries = [
            tried(100.0, Kind::Valid, true, true),
            tried(400.0, Kind::GeneratorLimited, false, true),
            tried(200.0, Kind::GeneratorLimited, false, false),
            tried(200.0, Kind::ConnectionLimited, false, true),
            tried(150.0, Kind::Valid, false, true),
        ];
        assert_eq!(limit(Some(100.0), &tries), Some(Limit::Target));
        assert_eq!(limit(Some(160.0), &tries), Some(Limit::Connections));
        assert_eq!(limit(Some(200.0), &tries), Some(Limit::Generator));
        assert_eq!(limit(Some(400.0), &tries), None);
        assert_eq!(limit(None, &tries), Some(Limit::Target));
    }
}
