//! Writes a plan: each write is in the journal before it happens, and a refusal that matters undoes everything of this run.

use crate::facts::{Choices, Facts, FactsError};
use crate::journal::{Journal, JournalError, Pen, Record, Start, Store};
use crate::observe::observe;
use crate::plan::{self, Change, Finding, Selection};
use crate::setting::{Refusal, Setting};
use crate::target::{ABSENT, Machine, Target, WriteFault};

/// What a run did.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Writes that happened.
    pub written: Vec<Change>,
    /// Writes that were refused and passed over, with the reason.
    pub refused: Vec<(Change, String)>,
    /// What should change and could not be written from here.
    pub denied: Vec<(String, String)>,
}

/// Why a run failed. Nothing of it is left on the machine unless `left` says so.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The journal failed.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The facts failed.
    #[error(transparent)]
    Facts(#[from] FactsError),
    /// An earlier run ended in the middle.
    #[error("an earlier apply ended in the middle ({0}); run `torus-tune rollback` first")]
    Interrupted(String),
    /// The journal belongs to another place.
    #[error("{0}")]
    Elsewhere(String),
    /// The journal could not be written on the way.
    #[error("{error}; the {undone} writes before it were undone{}", left_text(.left))]
    Unrecorded {
        /// What happened to the journal.
        error: JournalError,
        /// Writes that were undone.
        undone: usize,
        /// Writes that could not be undone, with the reason.
        left: Vec<String>,
    },
    /// A write was refused.
    #[error(
        "{setting}: {target} = '{value}': {fault}; the {undone} writes before it were undone{}; \
         `--skip {setting}` leaves it out", left_text(.left)
    )]
    Refused {
        /// The setting.
        setting: String,
        /// Where.
        target: Target,
        /// What was to be written.
        value: String,
        /// What the kernel said.
        fault: WriteFault,
        /// Writes that were undone.
        undone: usize,
        /// Writes that could not be undone, with the reason.
        left: Vec<String>,
    },
}

fn left_text(left: &[String]) -> String {
    if left.is_empty() { String::new() } else { format!(", except {}", left.join("; ")) }
}

/// Finds and writes what the profile wants, and writes `documents` (path, text) below /etc.
pub fn apply(
    settings: &[Setting],
    machine: &Machine,
    choices: &Choices,
    documents: Vec<(String, String)>,
    store: &Store,
) -> Result<Outcome, ApplyError> {
    let facts = Facts::gather(machine, choices)?;
    let journal = store.load()?;
    if !journal.is_complete() {
        return Err(ApplyError::Interrupted(store.path().display().to_string()));
    }
    if let Some(start) = journal.last_start() {
        crate::rollback::same_place(start, &facts).map_err(ApplyError::Elsewhere)?;
    }
    let mut run = Run {
        machine,
        pen: None,
        journal,
        store,
        start: Start::new(&facts, choices.profile.name()),
        outcome: Outcome::default(),
    };
    match run.execute(settings, choices, &facts, documents) {
        Ok(()) => Ok(run.outcome),
        // A full disk must not leave half a plan behind either.
        Err(ApplyError::Journal(error)) => Err(run.undo_after(error)),
        Err(error) => Err(error),
    }
}

fn denied(findings: &[Finding]) -> Vec<(String, String)> {
    let name = |finding: &Finding| format!("{} {}", finding.setting.name, finding.label).trim_end().to_owned();
    let barred = |finding: &Finding| match &finding.verdict {
        plan::Verdict::Denied(barrier) => Some((name(finding), barrier.to_string())),
        plan::Verdict::Unreadable(reason) => Some((name(finding), reason.clone())),
        _ => None,
    };
    findings.iter().filter_map(barred).collect()
}

fn document_changes(machine: &Machine, documents: Vec<(String, String)>) -> Vec<Change> {
    let change = |(path, text): (String, String)| {
        let target = Target::Document(path);
        let before = machine.read_target(&target).unwrap_or_else(|_| ABSENT.to_owned());
        (before != text).then(|| Change {
            setting: "persist".to_owned(),
            target,
            before,
            after: text,
            refusal: Refusal::Stop,
        })
    };
    documents.into_iter().filter_map(change).collect()
}

/// What `select` takes of all settings.
pub fn selected(settings: &[Setting], select: &Selection) -> Vec<Setting> {
    settings.iter().filter(|setting| select.takes(setting)).cloned().collect()
}

struct Run<'a> {
    machine: &'a Machine,
    store: &'a Store,
    journal: Journal,
    start: Start,
    /// Opened with the first write, so that a run without one leaves no journal.
    pen: Option<Pen>,
    outcome: Outcome,
}

impl Run<'_> {
    fn execute(
        &mut self,
        settings: &[Setting],
        choices: &Choices,
        facts: &Facts,
        documents: Vec<(String, String)>,
    ) -> Result<(), ApplyError> {
        let findings = plan::plan(observe(settings, self.machine, facts, choices), facts, choices);
        // The number of queues decides what hangs on them: it comes first, and then everything is looked at again.
        let (reshaping, rest): (Vec<Change>, Vec<Change>) =
            plan::changes(&findings).into_iter().partition(plan::reshapes);
        let (findings, rest) = if reshaping.is_empty() {
            (findings, rest)
        } else {
            self.write_all(reshaping)?;
            let facts = Facts::gather(self.machine, choices)?;
            let findings = plan::plan(observe(settings, self.machine, &facts, choices), &facts, choices);
            let rest = plan::changes(&findings).into_iter().filter(|change| !plan::reshapes(change)).collect();
            (findings, rest)
        };
        self.write_all(rest)?;
        self.write_all(document_changes(self.machine, documents))?;
        self.outcome.denied = denied(&findings);
        if let Some(pen) = &mut self.pen {
            pen.write(&Record::Complete)?;
        }
        Ok(())
    }

    fn write_all(&mut self, changes: Vec<Change>) -> Result<(), ApplyError> {
        for change in changes {
            self.write(change)?;
        }
        Ok(())
    }

    fn write(&mut self, change: Change) -> Result<(), ApplyError> {
        let intend = Record::Intend {
            setting: change.setting.clone(),
            target: change.target.clone(),
            before: change.before.clone(),
            after: change.after.clone(),
        };
        let pen = match &mut self.pen {
            Some(pen) => pen,
            None => {
                let mut pen = self.store.append(&self.journal)?;
                pen.write(&Record::Start(self.start.clone()))?;
                self.pen.insert(pen)
            }
        };
        pen.write(&intend)?;
        let written = self.machine.write_target(&change.target, &change.after);
        let read_back = self.machine.read_target(&change.target);
        match (written, read_back) {
            (Ok(()), Ok(read_back)) => {
                self.outcome.written.push(change);
                pen.write(&Record::Wrote { read_back })?;
                Ok(())
            }
            (written, read_back) => {
                let fault = written.err().unwrap_or(WriteFault::Missing);
                let untouched = read_back.is_ok_and(|text| text == change.before);
                if change.refusal == Refusal::Skip && untouched {
                    pen.write(&Record::Refused { reason: fault.to_string() })?;
                    self.outcome.refused.push((change, fault.to_string()));
                    return Ok(());
                }
                Err(self.undo(change, fault, untouched)?)
            }
        }
    }

    /// Undoes this run after a refusal, and says what happened.
    fn undo(&mut self, refused: Change, fault: WriteFault, untouched: bool) -> Result<ApplyError, JournalError> {
        if !untouched {
            self.outcome.written.push(refused.clone());
        }
        let (undone, left) = self.undo_writes();
        // What is as it was needs no rollback: the journal is cut back to the runs before this one.
        if left.is_empty() {
            self.store.append(&self.journal)?;
        }
        Ok(ApplyError::Refused {
            setting: refused.setting,
            target: refused.target,
            value: refused.after,
            fault,
            undone,
            left,
        })
    }

    /// Undoes this run after the journal failed; the journal may be of no use any more.
    fn undo_after(&mut self, error: JournalError) -> ApplyError {
        let (undone, left) = self.undo_writes();
        if left.is_empty() {
            // The error that is reported is the first one.
            let _ = self.store.append(&self.journal);
        }
        ApplyError::Unrecorded { error, undone, left }
    }

    /// Writes back what stood before, newest first: how many, and which failed.
    fn undo_writes(&mut self) -> (usize, Vec<String>) {
        let mut left = Vec::new();
        let mut undone = 0;
        for change in std::mem::take(&mut self.outcome.written).iter().rev() {
            match self.machine.write_target(&change.target, &self.machine.undo_value(&change.target, &change.before)) {
                Ok(()) => undone += 1,
                Err(fault) => left.push(format!("{}: {fault}", change.target)),
            }
        }
        (undone, left)
    }
}
