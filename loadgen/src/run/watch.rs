//! What the target uses: processor time and memory of a process or a control group.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// Whom to watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Watch {
    Process(u32),
    Group(PathBuf),
}

/// Totals at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// In microseconds.
    pub user: u64,
    pub system: u64,
    /// In bytes.
    pub memory: u64,
}

/// Why the watched one cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    #[error("cannot watch {path}: {source}; is it running, and may this user read it?")]
    Read { path: String, source: io::Error },
    #[error("{0} is not as the kernel documents it")]
    Format(String),
}

impl Watch {
    /// The totals now.
    pub fn usage(&self) -> Result<Usage, WatchError> {
        match self {
            Watch::Process(id) => {
                let stat = read(&PathBuf::from(format!("/proc/{id}/stat")))?;
                let statm = read(&PathBuf::from(format!("/proc/{id}/statm")))?;
                let ticks = rustix::param::clock_ticks_per_second().max(1);
                let page = rustix::param::page_size() as u64;
                process(&stat, &statm, ticks, page).ok_or_else(|| WatchError::Format(format!("/proc/{id}/stat")))
            }
            Watch::Group(path) => {
                let stat = read(&path.join("cpu.stat"))?;
                // The root group has no memory.current.
                let memory = fs::read_to_string(path.join("memory.current")).unwrap_or_default();
                group(&stat, &memory).ok_or_else(|| WatchError::Format(path.join("cpu.stat").display().to_string()))
            }
        }
    }
}

fn read(path: &Path) -> Result<String, WatchError> {
    fs::read_to_string(path).map_err(|source| WatchError::Read { path: path.display().to_string(), source })
}

/// proc(5): fields 14 and 15 of stat, counted after the name, which may hold spaces and parentheses; field 2 of statm.
fn process(stat: &str, statm: &str, ticks: u64, page: u64) -> Option<Usage> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace().skip(11).map(str::parse::<u64>);
    let (user, system) = (fields.next()?.ok()?, fields.next()?.ok()?);
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(Usage { user: user * 1_000_000 / ticks, system: system * 1_000_000 / ticks, memory: pages * page })
}

fn group(stat: &str, memory: &str) -> Option<Usage> {
    let value = |name: &str| {
        let line = stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
        line.parse::<u64>().ok()
    };
    Some(Usage {
        user: value("user_usec")?,
        system: value("system_usec")?,
        memory: memory.trim().parse().unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_of_any_name_is_read() {
        let stat = "7 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0 1 0 100";
        let usage = Usage { user: 2_500_000, system: 500_000, memory: 8192 };
        assert_eq!(process(stat, "9 2 1", 100, 4096), Some(usage));
        assert_eq!(process("7 (a", "9 2 1", 100, 4096), None);
    }

    #[test]
    fn a_group_is_read() {
        let usage = Usage { user: 5, system: 7, memory: 99 };
        assert_eq!(group("usage_usec 12\nuser_usec 5\nsystem_usec 7\n", "99\n"), Some(usage));
        assert_eq!(group("usage_usec 12\n", "99\n"), None);
    }

    #[test]
    fn this_process_can_be_watched_and_none_cannot() {
        assert!(Watch::Process(std::process::id()).usage().unwrap().memory > 0);
        let error = Watch::Process(u32::MAX).usage().unwrap_err().to_string();
        assert!(error.starts_with("cannot watch /proc/4294967295/stat: No such file"), "{error}");
    }
}
