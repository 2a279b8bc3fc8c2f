//! What each command does; the library does the work, this says it.

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use torus_tune::apply::{self, ApplyError};
use torus_tune::bench::difference::Answer;
use torus_tune::bench::load::{Goal, Load, beside};
use torus_tune::bench::{self, Bench, BenchError};
use torus_tune::catalogue::{Catalogue, SettingError};
use torus_tune::facts::{Choices, Facts, FactsError, IrqPlace};
use torus_tune::gates;
use torus_tune::journal::{self, JournalError, Store};
use torus_tune::observe::observe;
use torus_tune::persist::Source;
use torus_tune::plan::{self, Finding, Selection};
use torus_tune::report::{html, json, text};
use torus_tune::rollback::{self, Drift, RollbackError};
use torus_tune::setting::{Profile, Scope, Setting};
use torus_tune::target::Machine;

use crate::{BenchOptions, Command, Output, PlaceOptions, ReportOutput, Run};

/// How a command ended that came to its end.
pub(crate) enum Done {
    Fine,
    Findings,
}

/// Why a command did not come to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    #[error(transparent)]
    Setting(#[from] SettingError),
    #[error(transparent)]
    Facts(#[from] FactsError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Apply(#[from] ApplyError),
    #[error(transparent)]
    Rollback(#[from] RollbackError),
    #[error(transparent)]
    Bench(#[from] BenchError),
    #[error("cannot listen for Ctrl-C: {0}")]
    Signal(io::Error),
    #[error("nothing was applied here: {0} is not there")]
    NothingApplied(String),
    #[error("{path}: {error}")]
    Write { path: String, error: io::Error },
    #[error("cannot print: {0}")]
    Print(#[from] io::Error),
}

pub(crate) fn run(command: Command, out: &mut impl Write) -> Result<Done, CommandError> {
    match command {
        Command::Check { for_program: Some(program), run, .. } => {
            let found = gates::findings(&run.place.root, program.profile());
            for line in &found {
                writeln!(out, "{line}")?;
            }
            Ok(if found.is_empty() { Done::Fine } else { Done::Findings })
        }
        Command::Check { run, fail_on, all, output, .. } => Looked::new(&run)?.with(|facts, choices, findings| {
            let text = match output {
                Output::Text => text::render(findings, facts, choices, all),
                Output::Json => json::render(findings, facts, choices),
            };
            out.write_all(text.as_bytes())?;
            Ok(if plan::fails(findings, fail_on.into()) { Done::Findings } else { Done::Fine })
        }),
        Command::Plan { run } => Looked::new(&run)?.with(|_, _, findings| {
            out.write_all(text::render_plan(findings).as_bytes())?;
            Ok(Done::Fine)
        }),
        Command::Apply { run, persist, program } => apply(&run, persist.then_some(program.as_str()), out),
        Command::Verify { place } => verify(&place, out),
        Command::Rollback { place, force } => rollback(&place, force, out),
        Command::Explain { setting } => explain(setting.as_deref(), out),
        Command::Watch { place, interval, count } => watch(&place, Duration::from_secs(interval), count, out),
        Command::Bench { run, bench } => measure(&run, bench, out),
        Command::Report { run, output, file } => Looked::new(&run)?.with(|facts, choices, findings| {
            let report = match output {
                ReportOutput::Text => text::render(findings, facts, choices, true),
                ReportOutput::Json => json::render(findings, facts, choices),
                ReportOutput::Html => html::render(findings, facts, choices),
            };
            put(file.as_deref(), &report, out)
        }),
        Command::Persist { run, form, program, image } => Looked::new(&run)?.with(|facts, choices, findings| {
            let source = Source { findings, facts, choices, program: &program, image: &image };
            put(None, &source.text(form), out)
        }),
    }
}

fn put(file: Option<&Path>, text: &str, out: &mut impl Write) -> Result<Done, CommandError> {
    match file {
        Some(path) => std::fs::write(path, text)
            .map_err(|error| CommandError::Write { path: path.display().to_string(), error })?,
        None => out.write_all(text.as_bytes())?,
    }
    Ok(Done::Fine)
}

/// A machine that was looked at.
struct Looked {
    machine: Machine,
    choices: Choices,
    facts: Facts,
    settings: Vec<Setting>,
}

impl Looked {
    fn new(run: &Run) -> Result<Self, CommandError> {
        let catalogue = Catalogue::load()?;
        for name in run.only.iter().chain(&run.skip) {
            catalogue.find(name)?;
        }
        let named =
            |names: &[String]| names.iter().filter_map(|name| Some(catalogue.find(name).ok()?.name.clone())).collect();
        let selection = Selection {
            only: named(&run.only),
            skip: named(&run.skip),
            scopes: run.scope.clone(),
            risk_max: run.max_risk.map(Into::into),
        };
        let irqs = run.irqs.unwrap_or(match run.profile {
            Profile::GatewayLatency => IrqPlace::Away,
            _ => IrqPlace::Onto,
        });
        let choices =
            Choices { profile: run.profile, nics: run.nic.clone(), ports: run.ports.clone(), irqs, pid: run.pid };
        let machine = Machine::new(&run.place.root);
        let facts = Facts::gather(&machine, &choices)?;
        let settings = apply::selected(catalogue.settings(), &selection);
        Ok(Self { machine, choices, facts, settings })
    }

    fn with(
        &self,
        show: impl FnOnce(&Facts, &Choices, &[Finding]) -> Result<Done, CommandError>,
    ) -> Result<Done, CommandError> {
        let seen = observe(&self.settings, &self.machine, &self.facts, &self.choices);
        show(&self.facts, &self.choices, &plan::plan(seen, &self.facts, &self.choices))
    }
}

fn apply(run: &Run, persist: Option<&str>, out: &mut impl Write) -> Result<Done, CommandError> {
    let looked = Looked::new(run)?;
    let mut documents = Vec::new();
    if let Some(program) = persist {
        looked.with(|facts, choices, findings| {
            documents = Source { findings, facts, choices, program, image: "" }.documents();
            Ok(Done::Fine)
        })?;
    }
    let store = Store::open(&run.place.state_dir)?;
    let outcome = apply::apply(&looked.settings, &looked.machine, &looked.choices, documents, &store)?;
    for change in &outcome.written {
        writeln!(out, "set      {}: {}", change.setting, change.target.command_line(&change.after))?;
    }
    for (change, reason) in &outcome.refused {
        writeln!(out, "refused  {}: {} = '{}': {reason}", change.setting, change.target, change.after)?;
    }
    for (name, reason) in &outcome.denied {
        writeln!(out, "denied   {name}: {reason}")?;
    }
    writeln!(
        out,
        "{} changes{}{}",
        outcome.written.len(),
        count_text(outcome.refused.len(), "refused"),
        count_text(outcome.denied.len(), "denied")
    )?;
    if looked.choices.pid.is_none() && looked.settings.iter().any(|setting| setting.card.scope == Scope::Process) {
        writeln!(
            out,
            "limits of a process are set for one process (--pid) or in its unit (persist --form systemd-limits)"
        )?;
    }
    Ok(if outcome.denied.is_empty() { Done::Fine } else { Done::Findings })
}

fn measure(run: &Run, options: BenchOptions, out: &mut impl Write) -> Result<Done, CommandError> {
    let looked = Looked::new(run)?;
    let stop = Arc::new(AtomicBool::new(false));
    let signals = [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP];
    for signal in signals {
        signal_hook::flag::register(signal, Arc::clone(&stop)).map_err(CommandError::Signal)?;
    }
    let load = Load {
        program: options.torus_load.unwrap_or_else(|| beside(std::env::current_exe())),
        goal: options.target.map_or(Goal::Own(options.path), |url| Goal::Url(url, options.watch_pid)),
        arguments: options.load,
    };
    let bench = Bench {
        settings: &looked.settings,
        machine: &looked.machine,
        choices: &looked.choices,
        state_dir: run.place.state_dir.clone(),
        round_count: usize::try_from(options.rounds).unwrap_or(bench::ROUND_COUNT_MIN),
        load: &load,
        stop: &stop,
    };
    let comparison = bench::run(&bench, |number| eprintln!("round {number} of {}", options.rounds))?;
    let text = match options.output {
        Output::Text => bench::report::text(&comparison),
        Output::Json => bench::report::json(&comparison),
    };
    out.write_all(text.as_bytes())?;
    let is_worse = comparison.differences.iter().any(|row| row.answer == Answer::Worse);
    Ok(if is_worse { Done::Findings } else { Done::Fine })
}

fn count_text(count: usize, what: &str) -> String {
    if count == 0 { String::new() } else { format!(", {count} {what}") }
}

fn drifts(place: &PlaceOptions) -> Result<(usize, Vec<Drift>), CommandError> {
    let machine = Machine::new(&place.root);
    let journal = journal::load(&place.state_dir)?;
    if journal.is_empty() {
        return Err(CommandError::NothingApplied(place.state_dir.join("journal").display().to_string()));
    }
    let traces = journal.traces();
    Ok((traces.len(), rollback::drift(&machine, &traces)))
}

fn verify(place: &PlaceOptions, out: &mut impl Write) -> Result<Done, CommandError> {
    let (count, drifts) = drifts(place)?;
    for drift in &drifts {
        writeln!(out, "drift    {drift}")?;
    }
    writeln!(out, "{} of {count} stand as applied", count.saturating_sub(drifts.len()))?;
    Ok(if drifts.is_empty() { Done::Fine } else { Done::Findings })
}

fn watch(
    place: &PlaceOptions,
    interval: Duration,
    count: Option<u64>,
    out: &mut impl Write,
) -> Result<Done, CommandError> {
    let mut known: Vec<Drift> = Vec::new();
    let mut looks = 0u64;
    loop {
        let (_, now) = drifts(place)?;
        for drift in now.iter().filter(|drift| !known.contains(drift)) {
            writeln!(out, "drift    {drift}")?;
        }
        for settled in known.iter().filter(|drift| !now.iter().any(|other| other.target == drift.target)) {
            writeln!(out, "settled  {}: again '{}'", settled.target, settled.wrote.trim_end())?;
        }
        out.flush()?;
        known = now;
        looks += 1;
        if count.is_some_and(|count| looks >= count) {
            return Ok(if known.is_empty() { Done::Fine } else { Done::Findings });
        }
        std::thread::sleep(interval);
    }
}

fn rollback(place: &PlaceOptions, force: bool, out: &mut impl Write) -> Result<Done, CommandError> {
    let machine = Machine::new(&place.root);
    let choices =
        Choices { profile: Profile::Sidecar, nics: Vec::new(), ports: Vec::new(), irqs: IrqPlace::Onto, pid: None };
    let facts = Facts::basics(&machine, &choices)?;
    let store = Store::open(&place.state_dir)?;
    let outcome = rollback::rollback(&machine, &facts, &store, force)?;
    for target in &outcome.restored {
        writeln!(out, "restored {target}")?;
    }
    for target in &outcome.gone {
        writeln!(out, "gone     {target}: nothing left to put back")?;
    }
    writeln!(
        out,
        "{} restored{}{}",
        outcome.restored.len(),
        count_text(outcome.already, "as before already"),
        count_text(outcome.gone.len(), "gone")
    )?;
    Ok(Done::Fine)
}

fn explain(name: Option<&str>, out: &mut impl Write) -> Result<Done, CommandError> {
    let catalogue = Catalogue::load()?;
    if let Some(name) = name {
        out.write_all(text::explain(catalogue.find(name)?).as_bytes())?;
        return Ok(Done::Fine);
    }
    for setting in catalogue.settings() {
        writeln!(out, "{:<24} {}", setting.name, setting.card.title)?;
    }
    Ok(Done::Fine)
}
