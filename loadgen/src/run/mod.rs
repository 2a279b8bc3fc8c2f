//! `torus-load run`: asks a target for what a plan says, and reports what happened.
//!
//! Exit codes: 0 all well, 1 the run could not be made, 2 an objective was missed, 3 the run is not worth its figures.

pub mod crew;
pub mod data;
pub mod execute;
pub mod find;
pub mod grpc;
mod live;
pub mod request;
pub mod search;
pub mod setup;
pub mod target;
pub mod watch;

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use self::execute::{ExecuteError, Outcome};
use self::find::Limit;
pub use self::setup::Options;
use self::setup::{Setup, SetupError};
use crate::distributed::coordinator::{self, CoordinatorError};
use crate::report::{Report, files, html, text};
use crate::verdict::Kind;
use crate::worker::Load;

/// Why a run gave no report.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Setup(#[from] SetupError),
    #[error(transparent)]
    Execute(#[from] ExecuteError),
    #[error(transparent)]
    Coordinator(#[from] CoordinatorError),
    #[error("cannot listen for Ctrl-C: {0}")]
    Signal(io::Error),
    #[error("cannot write {path}: {source}")]
    Write { path: String, source: io::Error },
    #[error("the search tried no rate; this is a fault of torus-load")]
    NothingTried,
}

/// Runs and prints the report; the exit code says what it found.
pub fn run(options: &Options) -> Result<ExitCode, RunError> {
    // The plan first: a mistake in a file is told before anything is connected.
    let load = setup::load(options)?;
    let mut setup = Setup::new(options)?;
    if !options.quiet && options.workers.is_empty() {
        for finding in torus_tune::gates::findings(Path::new("/"), torus_tune::setting::Profile::Loadgen) {
            eprintln!("note: {finding}");
        }
    }
    writable(options)?;
    let stop = stop_flag()?;
    let report = if options.find_max {
        find::find(&mut setup, options, &stop)?
    } else {
        let outcome = once(&mut setup, options, &load, &stop)?;
        Report::new(&setup, options, &load, &outcome)
    };
    write(options, &report)?;
    Ok(exit_code(&report))
}

/// One run of `load`, which is what `options` ask for: from here, or from the workers.
fn once(setup: &mut Setup, options: &Options, load: &Load, stop: &Arc<AtomicBool>) -> Result<Outcome, RunError> {
    if options.workers.is_empty() {
        Ok(execute::execute(setup, load, stop)?)
    } else {
        Ok(coordinator::execute(setup, options, load, stop)?)
    }
}

/// A flag that Ctrl-C and SIGTERM set.
pub fn stop_flag() -> Result<Arc<AtomicBool>, RunError> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop)).map_err(RunError::Signal)?;
    }
    Ok(stop)
}

fn exit_code(report: &Report) -> ExitCode {
    if let Some(found) = &report.search {
        return if found.interrupted || found.limit == Some(Limit::Generator) {
            ExitCode::from(3)
        } else if found.rate.is_none() {
            ExitCode::from(2)
        } else {
            ExitCode::SUCCESS
        };
    }
    if report.verdict.kind != Kind::Valid {
        ExitCode::from(3)
    } else if report.objective.iter().any(|judged| !judged.met) {
        ExitCode::from(2)
    } else {
        ExitCode::SUCCESS
    }
}

/// How a report becomes the content of a file.
type Form = fn(&Report) -> String;

/// Prints `text`; a reader that has seen enough, as `head`, may leave before the end of it.
pub(crate) fn show(text: &str) -> Result<(), RunError> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(source) if source.kind() != io::ErrorKind::BrokenPipe => {
            Err(RunError::Write { path: "the report to standard output".to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Sees that the folders of all files are there, before a run whose report could not be kept.
fn writable(options: &Options) -> Result<(), RunError> {
    let files = [&options.json, &options.csv, &options.hgrm, &options.html, &options.hlog];
    for path in files.into_iter().flatten() {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let source = match folder.metadata() {
            Err(source) => source,
            Ok(found) if !found.is_dir() => io::ErrorKind::NotADirectory.into(),
            Ok(_) if path.is_dir() => io::ErrorKind::IsADirectory.into(),
            Ok(_) => continue,
        };
        return Err(RunError::Write { path: path.display().to_string(), source });
    }
    Ok(())
}

/// Writes the report in every form that was asked for.
fn write(options: &Options, report: &Report) -> Result<(), RunError> {
    let json_only = options.json.as_deref() == Some(Path::new("-"));
    if json_only {
        show(&(report.json() + "\n"))?;
    } else {
        show(&text::render(report))?;
    }
    let forms: [(_, Form); 5] = [
        (&options.json, Report::json),
        (&options.csv, files::csv),
        (&options.hgrm, files::hgrm),
        (&options.html, html::render),
        (&options.hlog, files::hlog),
    ];
    for (path, form) in forms {
        let Some(path) = path.as_ref().filter(|path| *path != Path::new("-")) else { continue };
        let content = form(report);
        std::fs::write(path, content).map_err(|source| RunError::Write { path: path.display().to_string(), source })?;
    }
    Ok(())
}
