//! Measures what a change does: `torus-load` runs without and with it, interleaved, and what can be shown of the difference.
//!
//! ```text
//! round: without (A) -> apply -> with (B) -> with (B) -> roll back -> without (A)      slow drift of the machine cancels
//! ```
//! The change has a journal of its own, so that what an earlier `apply` set stands as it is.

pub mod difference;
pub mod load;
pub mod report;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;

use self::difference::{Difference, compare};
use self::load::{Load, LoadError, Sample};
use crate::apply::{self, ApplyError};
use crate::facts::{Choices, Facts, FactsError};
use crate::journal::{JournalError, Store};
use crate::rollback::{self, RollbackError};
use crate::setting::Setting;
use crate::target::Machine;

/// With fewer rounds not even the clearest difference is beyond doubt.
pub const ROUND_COUNT_MIN: usize = difference::PAIR_COUNT_MIN;

/// Why a measurement gave no answer. What it had applied was rolled back unless the message says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The journal failed.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The facts failed.
    #[error(transparent)]
    Facts(#[from] FactsError),
    /// Nothing could be applied.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// A run of the load gave no report.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// There is nothing to compare.
    #[error(
        "nothing to measure: everything that was chosen stands as wanted, or cannot be written here; see `torus-tune check`"
    )]
    NoChange,
    /// An earlier measurement was killed.
    #[error(
        "an earlier bench was killed before it could put back what it had changed; run `torus-tune rollback --state-dir {0}` first"
    )]
    Leftover(String),
    /// Someone asked for the end.
    #[error("stopped; everything was put back")]
    Stopped,
    /// The change still stands.
    #[error("{cause}the change could not be taken back: {error}\nrun `torus-tune rollback --state-dir {folder}`")]
    Stands {
        /// What had happened before, with a separator.
        cause: String,
        /// Why it stands.
        error: RollbackError,
        /// The journal's folder.
        folder: String,
    },
}

/// What is compared, and how.
#[derive(Debug)]
pub struct Bench<'a> {
    /// The settings of the change.
    pub settings: &'a [Setting],
    /// Where they are.
    pub machine: &'a Machine,
    /// What they depend on.
    pub choices: &'a Choices,
    /// The folder of the journal that `apply` uses.
    pub state_dir: PathBuf,
    /// Rounds of four runs.
    pub round_count: usize,
    /// One run of the load.
    pub load: &'a Load,
    /// Set by a signal.
    pub stop: &'a AtomicBool,
}

/// One write of the change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Written {
    /// The setting.
    pub setting: String,
    /// Where.
    pub target: String,
    /// What stood there.
    pub before: String,
    /// What the change put there.
    pub after: String,
}

/// Samples of one round, in the order in which they were taken.
#[derive(Debug, Clone, Serialize)]
pub struct Round {
    /// Without the change: before and after it stood.
    pub without: [Sample; 2],
    /// With the change.
    pub with: [Sample; 2],
}

impl Round {
    fn is_fit(&self) -> bool {
        self.without.iter().chain(&self.with).all(Sample::is_fit)
    }

    /// The means without and with the change, where every run has the figure.
    fn pair(&self, figure: impl Fn(&Sample) -> Option<f64>) -> Option<(f64, f64)> {
        let mean = |[first, second]: &[Sample; 2]| Some(f64::midpoint(figure(first)?, figure(second)?));
        Some((mean(&self.without)?, mean(&self.with)?))
    }
}

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// What the change is.
    pub written: Vec<Written>,
    /// All rounds.
    pub rounds: Vec<Round>,
    /// Rounds that are left out, for the load generator itself was the bottleneck in one of their runs.
    pub unfit_round_count: usize,
    /// The figures that were compared.
    pub differences: Vec<Difference>,
}

/// Takes one figure from a sample that has it.
type Figure = fn(&Sample) -> Option<f64>;

/// Measures, and puts back what it applied whatever happens; `progress` hears of each round.
pub fn run(bench: &Bench<'_>, mut progress: impl FnMut(usize)) -> Result<Comparison, BenchError> {
    // Nobody else changes the machine meanwhile.
    let _others = Store::open(&bench.state_dir)?;
    let folder = bench.state_dir.join("bench");
    let store = Store::open(&folder)?;
    if !store.load()?.is_empty() {
        return Err(BenchError::Leftover(folder.display().to_string()));
    }
    let mut written = Vec::new();
    let mut rounds = Vec::new();
    for number in 1..=bench.round_count {
        let first = bench.sample()?;
        let measured = bench.apply(&store, &mut written).and_then(|()| Ok([bench.sample()?, bench.sample()?]));
        let with = bench.put_back(&store, measured)?;
        rounds.push(Round { without: [first, bench.sample()?], with });
        progress(number);
    }
    let fit: Vec<&Round> = rounds.iter().filter(|round| round.is_fit()).collect();
    let figures: [(&'static str, Figure); 3] = [
        ("response time p50", |sample| Some(sample.p50_us)),
        ("response time p99", |sample| Some(sample.p99_us)),
        ("processor time a request", |sample| sample.cpu_us),
    ];
    let mut differences = Vec::new();
    for (name, figure) in figures {
        let pairs: Vec<(f64, f64)> = fit.iter().filter_map(|round| round.pair(figure)).collect();
        let is_measured = rounds.iter().any(|round| round.pair(figure).is_some());
        if is_measured {
            differences.push(compare(name, "us", &pairs));
        }
    }
    let unfit_round_count = rounds.len() - fit.len();
    Ok(Comparison { written, rounds, unfit_round_count, differences })
}

impl Bench<'_> {
    fn sample(&self) -> Result<Sample, BenchError> {
        let sample = self.load.run(self.stop);
        if self.stop.load(Ordering::Relaxed) { Err(BenchError::Stopped) } else { Ok(sample?) }
    }

    fn apply(&self, store: &Store, written: &mut Vec<Written>) -> Result<(), BenchError> {
        let outcome = apply::apply(self.settings, self.machine, self.choices, Vec::new(), store)?;
        if outcome.written.is_empty() {
            return Err(BenchError::NoChange);
        }
        let row = |change: &crate::plan::Change| Written {
            setting: change.setting.clone(),
            target: change.target.to_string(),
            before: change.before.trim_end().to_owned(),
            after: change.after.trim_end().to_owned(),
        };
        *written = outcome.written.iter().map(row).collect();
        Ok(())
    }

    /// Takes the change back, however the measuring went.
    fn put_back<T>(&self, store: &Store, measured: Result<T, BenchError>) -> Result<T, BenchError> {
        if store.load()?.is_empty() {
            return measured;
        }
        let taken_back =
            Facts::basics(self.machine, self.choices).map_err(|error| RollbackError::Elsewhere(error.to_string()));
        let taken_back = taken_back.and_then(|facts| rollback::rollback(self.machine, &facts, store, false));
        match taken_back {
            Ok(_) => measured,
            Err(error) => Err(BenchError::Stands {
                cause: measured.err().map(|cause| format!("{cause}; ")).unwrap_or_default(),
                error,
                folder: store.path().parent().unwrap_or(&store.path()).display().to_string(),
            }),
        }
    }
}
