//! One thing that can be read and written, and the machine on which that happens.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::Access;
use rustix::io::Errno;
use rustix::process::{Pid, Resource as KernelResource, Rlimit};
use serde::{Deserialize, Serialize};

use crate::ethtool::{self, EthtoolError, Table};
use crate::setting::{EthtoolTable, Resource};

/// One thing that can be read and written, as the journal names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// A file of /proc or /sys, by its absolute path.
    File(String),
    /// A line of a table of an interface.
    Ethtool {
        /// The interface.
        nic: String,
        /// Which table.
        table: EthtoolTable,
        /// The line, as ethtool prints it.
        key: String,
    },
    /// A limit of a process.
    Limit {
        /// The process.
        pid: u32,
        /// When it started, in ticks since boot: a number that was given again is another process.
        started: u64,
        /// Which limit.
        resource: LimitName,
    },
    /// The nftables table `inet torus_tune`.
    Notrack,
    /// A whole file that the tool puts below /etc; its value `ABSENT` stands for no file.
    Document(String),
}

/// A limit of a process, ordered for the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LimitName {
    /// Open files.
    Nofile,
    /// Locked memory.
    Memlock,
}

impl From<Resource> for LimitName {
    fn from(resource: Resource) -> Self {
        match resource {
            Resource::Nofile => Self::Nofile,
            Resource::Memlock => Self::Memlock,
        }
    }
}

/// The value of a document or a table that is not there.
pub const ABSENT: &str = "(absent)";

impl fmt::Display for Target {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) | Self::Document(path) => out.write_str(path),
            Self::Ethtool { nic, table, key } => write!(out, "{nic} {table:?} {key}"),
            Self::Limit { pid, resource, .. } => write!(out, "process {pid} {resource:?}"),
            Self::Notrack => out.write_str("nftables inet torus_tune"),
        }
    }
}

impl Target {
    /// What to write so that `before` stands there again: of a choice in a file the word in brackets.
    pub fn undo_value(&self, before: &str) -> String {
        let chosen = || before.split_whitespace().find_map(|word| word.strip_prefix('[')?.strip_suffix(']'));
        match self {
            Self::File(_) => chosen().unwrap_or(before).to_owned(),
            _ => before.to_owned(),
        }
    }

    /// The command that a person would type to write `value`.
    pub fn command_line(&self, value: &str) -> String {
        let value = value.trim_end();
        match self {
            Self::File(path) => match path.strip_prefix("/proc/sys/") {
                Some(key) => format!("sysctl -w {}={}", key.replace('/', "."), shell_word(value)),
                None => format!("echo {} > {path}", shell_word(value)),
            },
            Self::Ethtool { nic, table, key } => ethtool::command_line(nic, *table, key, value),
            Self::Limit { pid, resource, .. } => {
                let flag = match resource {
                    LimitName::Nofile => "nofile",
                    LimitName::Memlock => "memlock",
                };
                format!("prlimit --pid {pid} --{flag}={}", value.replace(' ', ":"))
            }
            Self::Notrack if value == ABSENT => "nft delete table inet torus_tune".to_owned(),
            Self::Notrack => format!("nft -f - <<< '{}'", notrack_script(value)),
            Self::Document(path) if value == ABSENT => format!("rm {path}"),
            Self::Document(path) => format!("write {path} ({} bytes)", value.len()),
        }
    }
}

fn shell_word(value: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-+_.,/".contains(&byte);
    if !value.is_empty() && value.bytes().all(plain) {
        value.to_owned()
    } else {
        format!("'{}'", value.replace('\t', " "))
    }
}

/// Why a thing could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadFault {
    /// There is no such thing.
    #[error("not there")]
    Missing,
    /// It is there and may not be read.
    #[error("may not be read: {0}")]
    Denied(String),
    /// It is there and says no.
    #[error("cannot be read: {0}")]
    Failed(String),
}

/// Why a thing could not be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WriteFault {
    /// There is no such thing any more.
    #[error("it is not there any more")]
    Missing,
    /// Rights or the mount forbid it.
    #[error("writing is not allowed: {0}")]
    Denied(String),
    /// The kernel or the driver did not take the value.
    #[error("the kernel refused the value: {0}")]
    Refused(String),
}

/// Why a thing may not be written here, as far as one can tell without writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Barrier {
    /// The user has no right to.
    #[error("not root")]
    NotRoot,
    /// /proc/sys or /sys is mounted read-only, as in a container.
    #[error("mounted read-only here, as in a container: set it on the node or in the pod's securityContext")]
    ReadOnlyMount,
    /// The kernel shows the value here and lets only the host's namespace change it.
    #[error("shown here, changed on the node only")]
    NodeOnly,
    /// The tree was recorded and this part of it is no file.
    #[error("recorded, not live")]
    Recorded,
}

/// The machine, or a recorded tree of one.
#[derive(Debug, Clone)]
pub struct Machine {
    root: PathBuf,
}

impl Machine {
    /// The machine whose /proc and /sys are below `root`.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// Whether this is the machine that runs us.
    pub fn is_live(&self) -> bool {
        self.root == Path::new("/")
    }

    /// Where `path` is in this tree.
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// The text of a file.
    pub fn read(&self, path: &str) -> Result<String, ReadFault> {
        match fs::read(self.path(path)) {
            Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
            Err(error) => Err(read_fault(&error)),
        }
    }

    /// The text of a file without blanks at its ends; `None` where it cannot be read.
    pub fn word(&self, path: &str) -> Option<String> {
        self.read(path).ok().map(|text| text.trim().to_owned())
    }

    /// Names in a folder, sorted; none where there is no such folder.
    pub fn names(&self, folder: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.path(folder)) else { return Vec::new() };
        let mut names: Vec<String> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
        names.sort_by_key(|name| natural_key(name));
        names
    }

    /// Whether there is such a file or folder.
    pub fn exists(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    /// What ethtool says, or what was recorded of it in `ethtool/<nic>.<table>`.
    pub fn ethtool(&self, nic: &str, table: EthtoolTable) -> Result<Table, EthtoolError> {
        if self.is_live() {
            return ethtool::show(nic, table).map(|text| Table::parse(&text));
        }
        let name = format!("{table:?}").to_ascii_lowercase();
        self.read(&format!("/ethtool/{nic}.{name}"))
            .map(|text| Table::parse(&text))
            .map_err(|_| EthtoolError::Refused("Operation not supported".to_owned()))
    }

    /// What keeps `target` from being written; `None` where nothing is known to.
    pub fn barrier(&self, target: &Target) -> Option<Barrier> {
        let path = match target {
            Target::File(path) => path,
            Target::Document(_) => return self.is_live().then(not_root).flatten(),
            Target::Ethtool { .. } | Target::Limit { .. } | Target::Notrack => {
                return if self.is_live() { not_root() } else { Some(Barrier::Recorded) };
            }
        };
        match rustix::fs::access(self.path(path), Access::WRITE_OK) {
            Ok(()) => None,
            Err(Errno::ROFS) => Some(Barrier::ReadOnlyMount),
            Err(_) => Some(not_root().unwrap_or(Barrier::NodeOnly)),
        }
    }

    /// What to write so that `before` stands at `target` again; in a recorded tree a file takes it as it is.
    pub fn undo_value(&self, target: &Target, before: &str) -> String {
        if self.is_live() { target.undo_value(before) } else { before.to_owned() }
    }

    /// What stands at `target` now, to the byte.
    pub fn read_target(&self, target: &Target) -> Result<String, ReadFault> {
        match target {
            Target::File(path) => self.read(path),
            Target::Ethtool { nic, table, key } => {
                let table = self.ethtool(nic, *table).map_err(|error| match error {
                    EthtoolError::Refused(text) if text.contains("No such device") => ReadFault::Missing,
                    error => ReadFault::Failed(error.to_string()),
                })?;
                table.now(key).map(str::to_owned).ok_or(ReadFault::Missing)
            }
            Target::Limit { pid, started, resource } => self.read_limit(*pid, *started, *resource),
            Target::Notrack => read_notrack(),
            Target::Document(path) => match self.read(path) {
                Err(ReadFault::Missing) => Ok(ABSENT.to_owned()),
                other => other,
            },
        }
    }

    /// Writes `value` to `target`.
    pub fn write_target(&self, target: &Target, value: &str) -> Result<(), WriteFault> {
        match target {
            Target::File(path) => write_file(&self.path(path), value),
            Target::Ethtool { nic, table, key } => {
                ethtool::change(nic, *table, key, value.trim()).map_err(|error| WriteFault::Refused(error.to_string()))
            }
            Target::Limit { pid, started, resource } => self.write_limit(*pid, *started, *resource, value),
            Target::Notrack => write_notrack(value),
            Target::Document(path) => write_document(&self.path(path), value),
        }
    }

    /// When a process started, in ticks since boot; `None` where there is no such process.
    ///
    /// Source: proc_pid_stat(5), field 22; the name in field 2 may hold blanks and brackets.
    pub fn process_started(&self, pid: u32) -> Option<u64> {
        let stat = self.read(&format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
    }

    fn read_limit(&self, pid: u32, started: u64, resource: LimitName) -> Result<String, ReadFault> {
        if self.process_started(pid) != Some(started) {
            return Err(ReadFault::Missing);
        }
        let limits = self.read(&format!("/proc/{pid}/limits"))?;
        let title = match resource {
            LimitName::Nofile => "Max open files",
            LimitName::Memlock => "Max locked memory",
        };
        let mut words = limits.lines().find_map(|line| line.strip_prefix(title)).unwrap_or("").split_whitespace();
        match (words.next(), words.next()) {
            (Some(soft), Some(hard)) => Ok(format!("{soft} {hard}")),
            _ => Err(ReadFault::Failed(format!("/proc/{pid}/limits has no line '{title}'"))),
        }
    }

    fn write_limit(&self, pid: u32, started: u64, resource: LimitName, value: &str) -> Result<(), WriteFault> {
        if self.process_started(pid) != Some(started) {
            return Err(WriteFault::Missing);
        }
        let number = |word: &str| if word == "unlimited" { Ok(None) } else { word.parse().map(Some) };
        let parse = |value: &str| -> Result<Rlimit, std::num::ParseIntError> {
            let (soft, hard) = value.trim().split_once(' ').unwrap_or((value.trim(), value.trim()));
            Ok(Rlimit { current: number(soft)?, maximum: number(hard)? })
        };
        let limit = parse(value).map_err(|error| WriteFault::Refused(format!("'{value}': {error}")))?;
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(WriteFault::Missing)?;
        let resource = match resource {
            LimitName::Nofile => KernelResource::Nofile,
            LimitName::Memlock => KernelResource::Memlock,
        };
        rustix::process::prlimit(Some(pid), resource, limit).map(drop).map_err(|error| match error {
            Errno::SRCH => WriteFault::Missing,
            Errno::PERM => WriteFault::Denied("the hard limit may be raised by root only".to_owned()),
            other => WriteFault::Refused(other.to_string()),
        })
    }
}

fn not_root() -> Option<Barrier> {
    (!rustix::process::geteuid().is_root()).then_some(Barrier::NotRoot)
}

/// Digits compare as numbers, so that `rx-10` follows `rx-9`.
fn natural_key(name: &str) -> (String, u64) {
    let digits_at = name.trim_end_matches(|letter: char| letter.is_ascii_digit()).len();
    let (stem, digits) = name.split_at(digits_at);
    (stem.to_owned(), digits.parse().unwrap_or(0))
}

fn read_fault(error: &io::Error) -> ReadFault {
    match error.kind() {
        io::ErrorKind::NotFound => ReadFault::Missing,
        io::ErrorKind::PermissionDenied => ReadFault::Denied(error.to_string()),
        _ => ReadFault::Failed(error.to_string()),
    }
}

fn write_fault(error: &io::Error) -> WriteFault {
    match error.kind() {
        io::ErrorKind::NotFound => WriteFault::Missing,
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => WriteFault::Denied(error.to_string()),
        _ => WriteFault::Refused(error.to_string()),
    }
}

/// One write of the whole value: files of /proc and /sys take a value in one piece.
fn write_file(path: &Path, value: &str) -> Result<(), WriteFault> {
    let mut file = OpenOptions::new().write(true).truncate(true).open(path).map_err(|error| write_fault(&error))?;
    let text = format!("{}\n", value.trim_end());
    let written = file.write(text.as_bytes()).map_err(|error| match write_fault(&error) {
        // ENOENT on a write is the kernel's "no such algorithm".
        WriteFault::Missing => WriteFault::Refused("no such value".to_owned()),
        fault => fault,
    })?;
    if written == text.len() { Ok(()) } else { Err(WriteFault::Refused("only a part was taken".to_owned())) }
}

/// A file below /etc appears whole or not at all.
fn write_document(path: &Path, value: &str) -> Result<(), WriteFault> {
    let change = || -> io::Result<()> {
        let folder = path.parent().unwrap_or(Path::new("/"));
        if value == ABSENT {
            return match fs::remove_file(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                other => other,
            };
        }
        fs::create_dir_all(folder)?;
        let scratch = path.with_extension("torus-tune-new");
        let mut file = fs::File::create(&scratch)?;
        file.write_all(value.as_bytes())?;
        file.sync_all()?;
        fs::rename(&scratch, path)?;
        fs::File::open(folder)?.sync_all()
    };
    change().map_err(|error| write_fault(&error))
}

/// The rules that keep `ports` (`80,443`) out of connection tracking, as one nftables transaction.
fn notrack_script(ports: &str) -> String {
    format!(
        "add table inet torus_tune; delete table inet torus_tune; table inet torus_tune {{ \
         chain prerouting {{ type filter hook prerouting priority raw; policy accept; tcp dport {{ {ports} }} notrack; }}; \
         chain output {{ type filter hook output priority raw; policy accept; tcp sport {{ {ports} }} notrack; }}; }}"
    )
}

fn read_notrack() -> Result<String, ReadFault> {
    let output = Command::new("nft").args(["-j", "list", "table", "inet", "torus_tune"]).output().map_err(|error| {
        if error.kind() == io::ErrorKind::NotFound {
            ReadFault::Failed("nft is not installed (Debian: apt-get install nftables)".to_owned())
        } else {
            ReadFault::Failed(error.to_string())
        }
    })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return if said.contains("No such file or directory") {
            Ok(ABSENT.to_owned())
        } else {
            Err(ReadFault::Failed(said.lines().next().unwrap_or("nft gave no reason").to_owned()))
        };
    }
    let listing: serde_json::Value =
        serde_json::from_slice(&output.stdout).map_err(|error| ReadFault::Failed(format!("nft: {error}")))?;
    let mut ports = Vec::new();
    collect_destination_ports(&listing, &mut ports);
    ports.sort_unstable();
    let texts: Vec<String> = ports.iter().map(u64::to_string).collect();
    Ok(texts.join(","))
}

/// The ports in every `tcp dport` match of a listing.
fn collect_destination_ports(value: &serde_json::Value, ports: &mut Vec<u64>) {
    match value {
        serde_json::Value::Array(items) => items.iter().for_each(|item| collect_destination_ports(item, ports)),
        serde_json::Value::Object(fields) => {
            let is_destination = value.pointer("/left/payload/field").and_then(|field| field.as_str()) == Some("dport");
            match (is_destination, value.get("right")) {
                (true, Some(right)) => {
                    let set = right.get("set").and_then(|set| set.as_array());
                    ports.extend(set.into_iter().flatten().filter_map(serde_json::Value::as_u64));
                    ports.extend(right.as_u64());
                }
                _ => fields.values().for_each(|field| collect_destination_ports(field, ports)),
            }
        }
        _ => {}
    }
}

fn write_notrack(value: &str) -> Result<(), WriteFault> {
    let value = value.trim();
    let script = if value == ABSENT {
        "add table inet torus_tune; delete table inet torus_tune".to_owned()
    } else {
        notrack_script(value)
    };
    let run = || -> io::Result<std::process::Output> {
        let mut child = Command::new("nft")
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut input) = child.stdin.take() {
            input.write_all(script.as_bytes())?;
        }
        child.wait_with_output()
    };
    let output = run().map_err(|error| WriteFault::Refused(format!("nft: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(WriteFault::Refused(format!("nft: {}", said.lines().next().unwrap_or("no reason given"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_what_a_person_types() {
        let file = |path: &str| Target::File(path.to_owned());
        for (target, value, expected) in [
            (file("/proc/sys/net/core/somaxconn"), "65535", "sysctl -w net.core.somaxconn=65535"),
            (
                file("/proc/sys/net/ipv4/tcp_rmem"),
                "4096\t131072\t6291456\n",
                "sysctl -w net.ipv4.tcp_rmem='4096 131072 6291456'",
            ),
            (file("/sys/class/net/eth0/threaded"), "1", "echo 1 > /sys/class/net/eth0/threaded"),
            (Target::Notrack, ABSENT, "nft delete table inet torus_tune"),
        ] {
            assert_eq!(target.command_line(value), expected);
        }
    }

    #[test]
    fn a_listing_names_its_ports() {
        let listing = serde_json::json!({"nftables": [
            {"rule": {"expr": [{"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": {"set": [80, 443]}}}, {"notrack": null}]}},
            {"rule": {"expr": [{"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "sport"}}, "right": {"set": [80, 443]}}}]}},
            {"rule": {"expr": [{"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": 8080}}]}},
        ]});
        let mut ports = Vec::new();
        collect_destination_ports(&listing, &mut ports);
        assert_eq!(ports, [80, 443, 8080]);
    }

    #[test]
    fn names_sort_by_their_numbers() {
        let mut names = ["rx-10", "rx-9", "rx-0", "tx-1"];
        names.sort_by_key(|name| natural_key(name));
        assert_eq!(names, ["rx-0", "rx-9", "rx-10", "tx-1"]);
    }
}
