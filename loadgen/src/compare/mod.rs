//! `torus-load compare`: the same load on two or more targets, interleaved, and what can be shown of their differences.
//!
//! ```text
//! round: A -> B -> C -> C -> B -> A      what the machine does meanwhile meets all of them, and slow drift cancels
//! ```
//! Reports that were saved are compared second by second, without rounds.
//!
//! A round in which a run was not valid says nothing and is made anew, up to as many rounds again as were asked for.

mod html;
mod saved;
mod server;
mod text;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Parser;
use serde::Serialize;
use torus_tune::bench::difference::{self, Answer, Difference, PAIR_COUNT_MIN};

use self::saved::Saved;
use self::server::Server;
use crate::environment::{self, Environment};
use crate::report::Report;
use crate::run::execute::execute;
use crate::run::setup::{self, Setup};
use crate::run::target::Target;
use crate::run::{self, RunError, show};
use crate::verdict::Kind;
use crate::worker::Load;

/// Name and version of the JSON form.
const SCHEMA: &str = "torus-load.compare.v1";

/// Flags of `torus-load compare`.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Targets, each compared with the first; or files that `run --json` wrote.
    #[arg(required = true, num_args = 2.., value_name = "TARGET")]
    pub targets: Vec<String>,
    /// Rounds in which every run is valid; each has two runs of every target.
    #[arg(long, default_value_t = PAIR_COUNT_MIN, value_name = "N")]
    pub rounds: usize,
    /// Write the comparison as JSON to this file; `-` for standard output, instead of the text.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Command that serves a target, in the order of the targets: it is started for each run of it and ended after it.
    #[arg(long, value_name = "COMMAND")]
    pub start: Vec<String>,
    /// Compare saved reports although they were made in different environments.
    #[arg(long)]
    pub different_environments: bool,
    /// Write a page that opens without a network.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Print nothing while it lasts.
    #[arg(short, long)]
    pub quiet: bool,
    /// Flags of `torus-load run` for every run, as: -- --rate 2k --duration 5s
    #[arg(last = true, value_name = "RUN FLAGS", allow_hyphen_values = true)]
    pub flags: Vec<String>,
}

/// Why nothing was compared.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    #[error("--rounds {0}: fewer than {PAIR_COUNT_MIN} cannot show a difference beyond doubt")]
    Rounds(usize),
    #[error("flags after `--`: {0}; see torus-load run --help")]
    Flags(String),
    #[error("flags after `--`: {0} belongs to a single run; leave it out")]
    Single(&'static str),
    #[error("{target}: {source}")]
    Run { target: String, source: RunError },
    #[error("{path}: {source}")]
    File { path: String, source: std::io::Error },
    #[error("{path}: {what}")]
    Report { path: String, what: String },
    #[error(
        "{one} and {other} were made in different environments: {what}; add --different-environments to compare them still"
    )]
    Environment { one: String, other: String, what: String },
    #[error("--start: {starts} commands for {targets} targets; as many are wanted")]
    Starts { starts: usize, targets: usize },
    #[error("--start `{command}`: {what}")]
    Start { command: String, what: String },
    #[error("{0} is a file and the others are not; either all are, or none")]
    Mixed(String),
    #[error(transparent)]
    Other(#[from] RunError),
}

/// What was found.
#[derive(Debug, Serialize)]
pub struct Comparison {
    pub schema: &'static str,
    pub targets: Vec<String>,
    pub flags: Vec<String>,
    pub environment: Environment,
    pub rounds: Vec<Round>,
    /// Rounds that are left out, for one of their runs was not valid.
    pub unfit_round_count: usize,
    pub interrupted: bool,
    /// Of each target but the first.
    pub against: Vec<Against>,
}

/// How a target differs from the first.
#[derive(Debug, Serialize)]
pub struct Against {
    pub target: String,
    pub differences: Vec<Difference>,
}

/// Two runs of each target, in the order of the targets.
#[derive(Debug, Serialize)]
pub struct Round(Vec<[Sample; 2]>);

/// One run in short; times in microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Sample {
    pub verdict: Kind,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub service_p50: f64,
}

impl Sample {
    fn of(report: &Report) -> Sample {
        let at = |percentile| report.response_time.at(percentile) as f64 / 1e3;
        Sample {
            verdict: report.verdict.kind,
            p50: at(50.0),
            p90: at(90.0),
            p99: at(99.0),
            p999: at(99.9),
            service_p50: report.service_time.at(50.0) as f64 / 1e3,
        }
    }
}

impl Round {
    fn is_fit(&self) -> bool {
        self.0.iter().flatten().all(|sample| sample.verdict == Kind::Valid)
    }

    /// The means of the first target and of target number `other`.
    fn pair(&self, other: usize, figure: fn(&Sample) -> f64) -> Option<(f64, f64)> {
        let mean = |[first, second]: &[Sample; 2]| f64::midpoint(figure(first), figure(second));
        Some((mean(self.0.first()?), mean(self.0.get(other)?)))
    }
}

/// Takes one figure from a sample.
type Figure = fn(&Sample) -> f64;

const FIGURES: [(&str, Figure); 5] = [
    ("response time p50", |sample| sample.p50),
    ("response time p90", |sample| sample.p90),
    ("response time p99", |sample| sample.p99),
    ("response time p99.9", |sample| sample.p999),
    ("service time p50", |sample| sample.service_p50),
];

/// The flags of one run, as its own command line has them.
#[derive(Parser)]
struct Single {
    #[command(flatten)]
    options: run::Options,
}

/// One of the targets.
struct Side {
    setup: Setup,
    load: Load,
    options: run::Options,
    /// Command of its server.
    start: Option<String>,
}

/// Compares and prints what was found; the exit code is 3 where too few rounds were valid.
pub fn run(options: &Options) -> Result<ExitCode, CompareError> {
    if options.rounds < PAIR_COUNT_MIN {
        return Err(CompareError::Rounds(options.rounds));
    }
    let files: Vec<_> = options.targets.iter().filter(|target| Path::new(target).is_file()).collect();
    if let Some(file) = files.first() {
        if files.len() < options.targets.len() {
            return Err(CompareError::Mixed((*file).clone()));
        }
        return run_saved(options);
    }
    if !options.start.is_empty() && options.start.len() != options.targets.len() {
        return Err(CompareError::Starts { starts: options.start.len(), targets: options.targets.len() });
    }
    let side = |(at, target): (usize, &String)| side(target, &options.flags, options.start.get(at));
    let sides = options.targets.iter().enumerate().map(side).collect::<Result<Vec<_>, _>>()?;
    let stop = run::stop_flag()?;
    let mut rounds: Vec<Round> = Vec::new();
    let mut fit_count = 0;
    while fit_count < options.rounds && rounds.len() < options.rounds * 2 {
        let Some(round) = round(&sides, &stop)? else { break };
        fit_count += usize::from(round.is_fit());
        rounds.push(round);
        if !options.quiet {
            eprintln!("round {}: {fit_count} of {} are valid", rounds.len(), options.rounds);
        }
    }
    write(options, &conclude(options, rounds, stop.load(Ordering::Relaxed)))
}

fn run_saved(options: &Options) -> Result<ExitCode, CompareError> {
    let mut all = Vec::new();
    for path in &options.targets {
        all.push((path, Saved::read(path)?));
    }
    let against = saved::compare(&all, options.different_environments)?;
    write(options, &Comparison { against, ..conclude(options, Vec::new(), false) })
}

/// Writes the comparison in every form that was asked for.
fn write(options: &Options, comparison: &Comparison) -> Result<ExitCode, CompareError> {
    if options.json.as_deref() == Some(Path::new("-")) {
        show(&json(comparison))?;
    } else {
        show(&text::render(comparison))?;
    }
    let json_path = options.json.as_ref().filter(|path| *path != Path::new("-"));
    for (path, content) in [(json_path, json as fn(&Comparison) -> String), (options.html.as_ref(), html::render)] {
        let Some(path) = path else { continue };
        let fail = |source| RunError::Write { path: path.display().to_string(), source };
        std::fs::write(path, content(comparison)).map_err(fail)?;
    }
    let cannot_tell = |against: &Against| against.differences.iter().any(|found| found.answer == Answer::CannotTell);
    Ok(if comparison.against.iter().any(cannot_tell) { ExitCode::from(3) } else { ExitCode::SUCCESS })
}

fn json(comparison: &Comparison) -> String {
    // Plain structs of numbers and strings always have a JSON form.
    serde_json::to_string_pretty(comparison).unwrap_or_default() + "\n"
}

fn side(target: &str, flags: &[String], start: Option<&String>) -> Result<Side, CompareError> {
    let words = ["run", target].into_iter().chain(flags.iter().map(String::as_str));
    let parsed = Single::try_parse_from(words).map_err(|error| {
        let text = error.to_string();
        CompareError::Flags(text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned())
    })?;
    let options = run::Options { quiet: true, ..parsed.options };
    let single = [
        ("a further target", options.targets.len() > 1),
        ("--find-max", options.find_max),
        ("--json", options.json.is_some()),
        ("--csv", options.csv.is_some()),
        ("--hgrm", options.hgrm.is_some()),
        ("--html", options.html.is_some()),
        ("--hlog", options.hlog.is_some()),
        ("--workers", !options.workers.is_empty()),
    ];
    if let Some((flag, _)) = single.iter().find(|(_, is_given)| *is_given) {
        return Err(CompareError::Single(flag));
    }
    let fail = |error: setup::SetupError| CompareError::Run { target: target.to_owned(), source: error.into() };
    let load = setup::load(&options).map_err(fail)?;
    let addresses = || Target::parse(target).map(|target| target.addresses).map_err(|error| fail(error.into()));
    // The set-up tries a connection.
    let _server = start.map(|command| Server::start(command, &addresses()?)).transpose()?;
    let setup = Setup::new(&options).map_err(fail)?;
    Ok(Side { setup, load, options, start: start.cloned() })
}

/// One round; nothing when it was stopped.
fn round(sides: &[Side], stop: &Arc<AtomicBool>) -> Result<Option<Round>, CompareError> {
    let mut samples: Vec<Vec<Sample>> = sides.iter().map(|_| Vec::new()).collect();
    let order: Vec<usize> = (0..sides.len()).chain((0..sides.len()).rev()).collect();
    for index in order {
        let (Some(side), Some(samples)) = (sides.get(index), samples.get_mut(index)) else { continue };
        let _server =
            side.start.as_ref().map(|command| Server::start(command, &side.setup.target.addresses)).transpose()?;
        let outcome = execute(&side.setup, &side.load, stop);
        let fail = |error: run::execute::ExecuteError| CompareError::Run {
            target: side.setup.target.url.clone(),
            source: error.into(),
        };
        let outcome = outcome.map_err(fail)?;
        if stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
        samples.push(Sample::of(&Report::new(&side.setup, &side.options, &side.load, &outcome)));
    }
    Ok(samples.into_iter().map(|both| both.try_into().ok()).collect::<Option<Vec<_>>>().map(Round))
}

fn conclude(options: &Options, rounds: Vec<Round>, interrupted: bool) -> Comparison {
    let fit: Vec<&Round> = rounds.iter().filter(|round| round.is_fit()).collect();
    let against = |(other, target): (usize, &String)| {
        let differences = FIGURES.iter().map(|(name, figure)| {
            let pairs: Vec<(f64, f64)> = fit.iter().filter_map(|round| round.pair(other, *figure)).collect();
            difference::compare(name, "us", &pairs)
        });
        Against { target: target.clone(), differences: differences.collect() }
    };
    Comparison {
        schema: SCHEMA,
        targets: options.targets.clone(),
        flags: options.flags.clone(),
        environment: environment::gather(Path::new("/")),
        unfit_round_count: rounds.len() - fit.len(),
        interrupted,
        against: options.targets.iter().enumerate().skip(1).map(against).collect(),
        rounds,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Parser)]
    struct OptionsOnly {
        #[command(flatten)]
        options: Options,
    }

    fn sample(verdict: Kind, p50: f64) -> Sample {
        Sample { verdict, p50, p90: 10.0, p99: 10.0, p999: 10.0, service_p50: 10.0 }
    }

    fn rounds(count: usize, verdict: Kind, shift: f64) -> Vec<Round> {
        let noise = |at: usize| (at * 7 % 5) as f64 / 10.0;
        let of =
            |at, shift| [sample(Kind::Valid, 10.0 + shift + noise(at)), sample(verdict, 10.0 + shift + noise(at + 1))];
        (0..count).map(|at| Round(vec![of(at, 0.0), of(at + 3, shift)])).collect()
    }

    #[test]
    fn only_valid_rounds_speak() {
        let words = ["compare", "http://a", "http://b", "-q"];
        let options = OptionsOnly::parse_from(words).options;
        for (rounds, expected, word) in [
            (rounds(8, Kind::Valid, 5.0), Answer::Worse, "higher"),
            (rounds(8, Kind::Valid, -5.0), Answer::Better, "lower"),
            (rounds(8, Kind::Valid, 0.0), Answer::NoneShown, "no difference shown"),
            (rounds(8, Kind::GeneratorLimited, 5.0), Answer::CannotTell, "cannot tell"),
            (rounds(7, Kind::Valid, 5.0), Answer::CannotTell, "cannot tell"),
        ] {
            let comparison = conclude(&options, rounds, false);
            let found = &comparison.against[0].differences;
            assert_eq!(found[0].answer, expected, "{found:?}");
            let text = text::render(&comparison);
            assert!(text.lines().any(|line| line.starts_with("response time p50") && line.contains(word)), "{text}");
        }
    }
}
