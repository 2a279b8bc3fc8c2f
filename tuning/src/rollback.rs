//! Puts back what stood before, newest write first. Nothing is written until every target was looked at.

use crate::facts::Facts;
use crate::journal::{JournalError, Start, Store, Trace};
use crate::target::{Machine, ReadFault, Target, WriteFault};

/// What a rollback did.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Targets that were put back.
    pub restored: Vec<Target>,
    /// Targets that stood as before already, as after a reboot.
    pub already: usize,
    /// Targets that are not there any more, so that nothing is left to put back.
    pub gone: Vec<Target>,
}

/// Why nothing, or not everything, was put back.
#[derive(Debug, thiserror::Error)]
pub enum RollbackError {
    /// The journal failed.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// There is no journal.
    #[error("nothing to roll back: {0} is not there")]
    Nothing(String),
    /// The journal belongs to another place.
    #[error("{0}")]
    Elsewhere(String),
    /// Someone else changed what we had written. Nothing was put back.
    #[error("changed since by something else, nothing was put back (`--force` puts it back all the same):\n{}", lines(.0))]
    Changed(Vec<Drift>),
    /// Some could not be put back; the journal stays, so that another rollback can go on.
    #[error("not put back:\n{}", lines(.0))]
    Left(Vec<String>),
}

fn lines<T: std::fmt::Display>(items: &[T]) -> String {
    items.iter().map(|item| format!("  {item}")).collect::<Vec<_>>().join("\n")
}

/// A target on which something else has written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{target}: we wrote '{}', it is '{}', before us it was '{}'", .wrote.trim_end(), .now.trim_end(), .before.trim_end())]
pub struct Drift {
    /// Where.
    pub target: Target,
    /// What we wrote.
    pub wrote: String,
    /// What stands there.
    pub now: String,
    /// What stood there before us.
    pub before: String,
}

/// Whether a journal that began at `start` speaks of where we are.
///
/// A journal of an earlier boot does: the values that a reboot reset are found as they were. A network namespace lives as long
/// as its boot.
pub fn same_place(start: &Start, facts: &Facts) -> Result<(), String> {
    if !start.machine_id.is_empty() && !facts.machine_id.is_empty() && start.machine_id != facts.machine_id {
        return Err(format!(
            "the journal is of machine {}, this is machine {}: it cannot say what stood here before",
            start.machine_id, facts.machine_id
        ));
    }
    if start.boot_id == facts.boot_id && start.netns != facts.netns {
        return Err(format!(
            "the journal is of network namespace {}, this is {}: run it there (nsenter --net), or give this one its own --state-dir",
            start.netns, facts.netns
        ));
    }
    Ok(())
}

/// Where a target stands.
enum Standing {
    /// As before us.
    Before,
    /// As we wrote it.
    Ours,
    /// Neither.
    Changed(String),
    /// Not there.
    Gone,
    /// Not readable.
    Unreadable(String),
}

fn standing(machine: &Machine, trace: &Trace) -> Standing {
    let now = match machine.read_target(&trace.target) {
        Ok(now) => now,
        Err(ReadFault::Missing) => return Standing::Gone,
        Err(fault) => return Standing::Unreadable(fault.to_string()),
    };
    if now == trace.before {
        return Standing::Before;
    }
    let ours = match &trace.read_back {
        Some(read_back) => now == *read_back,
        // The run ended between the write and its record: the machine alone knows, in its own spelling.
        None => match trace.target {
            Target::Document(_) => now == trace.after,
            _ => equivalent(&now, &trace.after),
        },
    };
    if ours { Standing::Ours } else { Standing::Changed(now) }
}

/// Whether what the kernel shows is what was written: it normalises blanks, leading zeroes and lists, and marks a choice.
fn equivalent(now: &str, written: &str) -> bool {
    use crate::setting::Format;
    let chosen = now.split_whitespace().find_map(|word| word.strip_prefix('[')?.strip_suffix(']'));
    [Format::Words, Format::Mask, Format::List].into_iter().any(|format| crate::value::same(format, now, written))
        || chosen == Some(written.trim())
}

/// Targets on which something else has written since.
pub fn drift(machine: &Machine, traces: &[Trace]) -> Vec<Drift> {
    let drifted = |trace: &Trace| match standing(machine, trace) {
        Standing::Changed(now) => Some(drift_of(trace, now)),
        // Ours, put back by someone else.
        Standing::Before if trace.read_back.as_ref().is_some_and(|read_back| *read_back != trace.before) => {
            Some(drift_of(trace, trace.before.clone()))
        }
        _ => None,
    };
    traces.iter().filter_map(drifted).collect()
}

fn drift_of(trace: &Trace, now: String) -> Drift {
    Drift {
        target: trace.target.clone(),
        wrote: trace.read_back.clone().unwrap_or_else(|| trace.after.clone()),
        now,
        before: trace.before.clone(),
    }
}

/// Puts back everything in the journal of `store`.
pub fn rollback(machine: &Machine, facts: &Facts, store: &Store, force: bool) -> Result<Outcome, RollbackError> {
    let journal = store.load()?;
    let Some(start) = journal.last_start() else {
        return Err(RollbackError::Nothing(store.path().display().to_string()));
    };
    if !force {
        same_place(start, facts).map_err(RollbackError::Elsewhere)?;
    }
    let traces = journal.traces();
    let mut changed = Vec::new();
    let mut outcome = Outcome::default();
    let mut to_restore = Vec::new();
    let mut left = Vec::new();
    for trace in traces.iter().rev() {
        match standing(machine, trace) {
            Standing::Before => outcome.already += 1,
            Standing::Ours => to_restore.push(trace),
            Standing::Changed(_) if force => to_restore.push(trace),
            Standing::Changed(now) => changed.push(drift_of(trace, now)),
            Standing::Gone => outcome.gone.push(trace.target.clone()),
            Standing::Unreadable(reason) => left.push(format!("{}: {reason}", trace.target)),
        }
    }
    if !changed.is_empty() {
        return Err(RollbackError::Changed(changed));
    }
    for trace in to_restore {
        match restore(machine, trace) {
            Ok(true) => outcome.restored.push(trace.target.clone()),
            Ok(false) => outcome.gone.push(trace.target.clone()),
            Err(reason) => left.push(format!("{}: {reason}", trace.target)),
        }
    }
    if !left.is_empty() {
        return Err(RollbackError::Left(left));
    }
    store.retire()?;
    Ok(outcome)
}

/// Writes what stood before and reads it back; `false` where the target went away meanwhile.
fn restore(machine: &Machine, trace: &Trace) -> Result<bool, String> {
    let value = machine.undo_value(&trace.target, &trace.before);
    match machine.write_target(&trace.target, &value) {
        Ok(()) => {}
        Err(WriteFault::Missing) => return Ok(false),
        Err(fault) => return Err(fault.to_string()),
    }
    match machine.read_target(&trace.target) {
        Ok(now) if now == trace.before => Ok(true),
        Ok(now) => Err(format!("was '{}', is '{}' after writing it back", trace.before.trim_end(), now.trim_end())),
        Err(fault) => Err(fault.to_string()),
    }
}
