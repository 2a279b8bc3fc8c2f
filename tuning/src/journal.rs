//! The journal: what stood where before each write, on the disk before the write happens.
//!
//! One JSON object a line. A line without its newline was cut by a crash; since a write waits for its line to be on the disk,
//! such a line speaks of a write that never happened and is dropped.
//! ```text
//! start -> intend -> [write] -> wrote -> intend -> ... -> complete
//!            |                                               |
//!            +-- crash: rollback asks the machine which side of the write it is on
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::facts::Facts;
use crate::target::Target;

/// Version of the lines; a journal of another version is refused.
const SCHEMA: u32 = 1;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Record {
    /// A run of `apply` begins.
    Start(Start),
    /// A write is about to happen.
    Intend {
        /// The setting that asks for it.
        setting: String,
        /// Where.
        target: Target,
        /// What stands there, to the byte.
        before: String,
        /// What will be written.
        after: String,
    },
    /// The write of the last `Intend` happened, and this is read back.
    Wrote {
        /// What stands there now, to the byte.
        read_back: String,
    },
    /// The write of the last `Intend` was refused and nothing changed.
    Refused {
        /// What the kernel said.
        reason: String,
    },
    /// The run came to its end.
    Complete,
}

/// Where and when a run began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// Version of the lines.
    pub schema: u32,
    /// The profile.
    pub profile: String,
    /// The installation.
    pub machine_id: String,
    /// The boot.
    pub boot_id: String,
    /// The network namespace.
    pub netns: String,
    /// The kernel.
    pub kernel: String,
}

impl Start {
    /// The start of a run on the machine that `facts` describe.
    pub fn new(facts: &Facts, profile: &str) -> Self {
        Self {
            schema: SCHEMA,
            profile: profile.to_owned(),
            machine_id: facts.machine_id.clone(),
            boot_id: facts.boot_id.clone(),
            netns: facts.netns.clone(),
            kernel: facts.kernel.clone(),
        }
    }
}

/// Why the journal is of no use.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The disk said no.
    #[error("journal {path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What happened.
        error: io::Error,
    },
    /// A whole line makes no sense.
    #[error("journal {path}:{line}: {message}; the file was changed by something else and cannot be trusted")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// A newer program wrote it.
    #[error(
        "journal {path} has version {found}, this program knows {SCHEMA}: roll back with the program that wrote it"
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// Another run holds it.
    #[error("another torus-tune is at work in {0}; wait for it")]
    Busy(PathBuf),
}

/// The folder of the journal, held by one run at a time.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    _lock: File,
}

impl Store {
    /// Opens the folder and keeps others out until the end.
    pub fn open(folder: &Path) -> Result<Self, JournalError> {
        let fail = |error| JournalError::Io { path: folder.to_owned(), error };
        fs::create_dir_all(folder).map_err(fail)?;
        let lock =
            OpenOptions::new().create(true).truncate(false).write(true).open(folder.join("lock")).map_err(fail)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { folder: folder.to_owned(), _lock: lock }),
            Err(fs::TryLockError::WouldBlock) => Err(JournalError::Busy(folder.to_owned())),
            Err(fs::TryLockError::Error(error)) => Err(fail(error)),
        }
    }

    /// The file of the journal.
    pub fn path(&self) -> PathBuf {
        path_in(&self.folder)
    }

    /// What the journal holds; empty where there is none.
    pub fn load(&self) -> Result<Journal, JournalError> {
        load(&self.folder)
    }

    /// A pen behind the last whole line.
    pub fn append(&self, journal: &Journal) -> Result<Pen, JournalError> {
        let path = self.path();
        let fail = |error| JournalError::Io { path: path.clone(), error };
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(fail)?;
        // A line that a crash cut is cut off for good.
        file.set_len(journal.whole_bytes).map_err(fail)?;
        let mut pen = Pen { path: path.clone(), file };
        io::Seek::seek(&mut pen.file, io::SeekFrom::End(0)).map_err(fail)?;
        self.sync_folder()?;
        Ok(pen)
    }

    /// The journal is done with: it is kept under another name until the next one is.
    pub fn retire(&self) -> Result<(), JournalError> {
        let fail = |error| JournalError::Io { path: self.path(), error };
        fs::rename(self.path(), self.folder.join("journal.rolled-back")).map_err(fail)?;
        self.sync_folder()
    }

    fn sync_folder(&self) -> Result<(), JournalError> {
        let fail = |error| JournalError::Io { path: self.folder.clone(), error };
        File::open(&self.folder).and_then(|folder| folder.sync_all()).map_err(fail)
    }
}

fn path_in(folder: &Path) -> PathBuf {
    folder.join("journal")
}

/// What a journal's folder holds, read without keeping others out.
pub fn load(folder: &Path) -> Result<Journal, JournalError> {
    let path = path_in(folder);
    match fs::read(&path) {
        Ok(bytes) => parse(&path, &bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Journal::default()),
        Err(error) => Err(JournalError::Io { path, error }),
    }
}

fn parse(path: &Path, bytes: &[u8]) -> Result<Journal, JournalError> {
    let mut journal = Journal::default();
    for (line, text) in bytes.split_inclusive(|byte| *byte == b'\n').enumerate() {
        let Some(text) = text.strip_suffix(b"\n") else { break };
        let record: Record = serde_json::from_slice(text).map_err(|error| JournalError::Damaged {
            path: path.to_owned(),
            line: line + 1,
            message: error.to_string(),
        })?;
        if let Record::Start(start) = &record
            && start.schema != SCHEMA
        {
            return Err(JournalError::Version { path: path.to_owned(), found: start.schema });
        }
        journal.whole_bytes += text.len() as u64 + 1;
        journal.records.push(record);
    }
    Ok(journal)
}

/// Writes lines, each on the disk before it returns.
#[derive(Debug)]
pub struct Pen {
    path: PathBuf,
    file: File,
}

impl Pen {
    /// Puts `record` on the disk.
    pub fn write(&mut self, record: &Record) -> Result<(), JournalError> {
        let put = |file: &mut File| -> io::Result<()> {
            let mut line = serde_json::to_vec(record)?;
            line.push(b'\n');
            file.write_all(&line)?;
            file.sync_data()
        };
        put(&mut self.file).map_err(|error| JournalError::Io { path: self.path.clone(), error })
    }
}

/// What a journal holds.
#[derive(Debug, Clone, Default)]
pub struct Journal {
    records: Vec<Record>,
    whole_bytes: u64,
}

/// Everything that was done to one target, over all runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// The setting that asked for it first.
    pub setting: String,
    /// Where.
    pub target: Target,
    /// What stood there before the first write, to the byte.
    pub before: String,
    /// What the last write meant to put there.
    pub after: String,
    /// What was read back after the last write; `None` where the run ended before it could tell.
    pub read_back: Option<String>,
}

impl Journal {
    /// Whether nothing was ever done.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Whether the last run came to its end.
    pub fn is_complete(&self) -> bool {
        matches!(self.records.last(), Some(Record::Complete) | None)
    }

    /// Where and when the last run began.
    pub fn last_start(&self) -> Option<&Start> {
        self.records.iter().rev().find_map(|record| if let Record::Start(start) = record { Some(start) } else { None })
    }

    /// What was done to each target, in the order of the first write.
    pub fn traces(&self) -> Vec<Trace> {
        let mut traces: Vec<Trace> = Vec::new();
        let mut places: BTreeMap<Target, usize> = BTreeMap::new();
        let mut open: Option<Trace> = None;
        let mut settle = |intended: Option<Trace>| {
            let Some(intended) = intended else { return };
            match places.get(&intended.target).and_then(|place| traces.get_mut(*place)) {
                Some(known) => {
                    known.after = intended.after;
                    known.read_back = intended.read_back;
                }
                None => {
                    places.insert(intended.target.clone(), traces.len());
                    traces.push(intended);
                }
            }
        };
        for record in &self.records {
            match record {
                Record::Intend { setting, target, before, after } => {
                    settle(open.take());
                    open = Some(Trace {
                        setting: setting.clone(),
                        target: target.clone(),
                        before: before.clone(),
                        after: after.clone(),
                        read_back: None,
                    });
                }
                Record::Wrote { read_back } => {
                    if let Some(trace) = &mut open {
                        trace.read_back = Some(read_back.clone());
                    }
                }
                // Nothing changed: there is nothing to undo.
                Record::Refused { .. } => open = None,
                Record::Start(_) | Record::Complete => {}
            }
        }
        settle(open.take());
        traces
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn intend(path: &str, before: &str, after: &str) -> Record {
        Record::Intend {
            setting: "s".into(),
            target: Target::File(path.into()),
            before: before.into(),
            after: after.into(),
        }
    }

    fn journal(records: &[Record]) -> Journal {
        Journal { records: records.to_vec(), whole_bytes: 0 }
    }

    #[test]
    fn traces_keep_the_first_before_and_the_last_after() {
        let wrote = |text: &str| Record::Wrote { read_back: text.into() };
        let traces = journal(&[
            intend("/a", "1\n", "2"),
            wrote("2\n"),
            intend("/b", "x\n", "y"),
            Record::Refused { reason: "no".into() },
            Record::Complete,
            intend("/a", "2\n", "3"),
            wrote("3\n"),
            intend("/c", "5\n", "6"),
        ])
        .traces();
        let short: Vec<(String, &str, &str, Option<&str>)> = traces
            .iter()
            .map(|trace| (trace.target.to_string(), &*trace.before, &*trace.after, trace.read_back.as_deref()))
            .collect();
        assert_eq!(short, [("/a".into(), "1\n", "3", Some("3\n")), ("/c".into(), "5\n", "6", None)]);
    }

    #[test]
    fn a_cut_line_is_dropped_and_a_damaged_one_refused() {
        let path = Path::new("/j/journal");
        let mut bytes = serde_json::to_vec(&intend("/a", "1", "2")).unwrap();
        bytes.push(b'\n');
        let whole = bytes.len() as u64;
        bytes.extend_from_slice(b"{\"wro");
        let read = parse(path, &bytes).unwrap();
        assert_eq!((read.records.len(), read.whole_bytes), (1, whole));
        bytes.push(b'\n');
        let error = parse(path, &bytes).unwrap_err().to_string();
        assert!(error.starts_with("journal /j/journal:2: "), "{error}");
    }

    #[test]
    fn another_version_is_refused() {
        let line = b"{\"start\":{\"schema\":9,\"profile\":\"\",\"machine_id\":\"\",\"boot_id\":\"\",\"netns\":\"\",\"kernel\":\"\"}}\n";
        let error = parse(Path::new("j"), line).unwrap_err().to_string();
        assert!(error.contains("has version 9, this program knows 1"), "{error}");
    }
}
