//! What ethtool prints, as tables, and the words that it takes.
//!
//! The program is driven in place of its netlink protocol: it is on every node that has interfaces worth tuning, and knows the
//! older drivers that answer ioctl alone.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use crate::setting::EthtoolTable;

/// One table of one interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    now: BTreeMap<String, String>,
    max: BTreeMap<String, String>,
    fixed: BTreeSet<String>,
}

impl Table {
    /// The table that `text` shows; lines that are not understood are passed over.
    pub fn parse(text: &str) -> Self {
        let mut table = Self::default();
        let mut in_maximums = false;
        for line in text.lines() {
            let line = line.trim();
            if line.starts_with("Pre-set maximums") {
                in_maximums = true;
            } else if line.starts_with("Current hardware settings") {
                in_maximums = false;
            }
            let Some((key, value)) = line.split_once(':') else { continue };
            // `Adaptive RX: off  TX: off` holds two values.
            if key == "Adaptive RX" {
                let mut words = value.split_whitespace();
                let (receive, transmit) = (words.next(), words.nth(1));
                table.insert(key, receive, false);
                table.insert("Adaptive TX", transmit, false);
                continue;
            }
            if value.contains("[fixed]") {
                table.fixed.insert(key.to_owned());
            }
            table.insert(key, value.split_whitespace().next(), in_maximums);
        }
        table
    }

    fn insert(&mut self, key: &str, value: Option<&str>, in_maximums: bool) {
        let Some(value) = value.filter(|value| *value != "n/a") else { return };
        let values = if in_maximums { &mut self.max } else { &mut self.now };
        values.insert(key.to_owned(), value.to_owned());
    }

    /// What stands there now; `None` where the interface has no such thing.
    pub fn now(&self, key: &str) -> Option<&str> {
        self.now.get(key).map(String::as_str)
    }

    /// The most that the interface can have; `None` where ethtool names no maximum.
    pub fn max(&self, key: &str) -> Option<u64> {
        self.max.get(key)?.parse().ok()
    }

    /// Whether the driver lets nobody change it.
    pub fn fixed(&self, key: &str) -> bool {
        self.fixed.contains(key)
    }
}

/// Why ethtool gave no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EthtoolError {
    /// The program is not there.
    #[error("ethtool is not installed (Debian: apt-get install ethtool)")]
    NotInstalled,
    /// The interface or its driver refused.
    #[error("{0}")]
    Refused(String),
}

/// The text of one table of a live interface.
pub fn show(nic: &str, table: EthtoolTable) -> Result<String, EthtoolError> {
    run(&[show_flag(table), nic])
}

/// Changes one line of one table of a live interface.
pub fn change(nic: &str, table: EthtoolTable, key: &str, value: &str) -> Result<(), EthtoolError> {
    run(&[change_flag(table), nic, &argument(table, key), value]).map(drop)
}

/// The command that a person would type for the same change.
pub fn command_line(nic: &str, table: EthtoolTable, key: &str, value: &str) -> String {
    format!("ethtool {} {nic} {} {value}", change_flag(table), argument(table, key))
}

fn run(arguments: &[&str]) -> Result<String, EthtoolError> {
    let output = Command::new("ethtool").args(arguments).env("LC_ALL", "C").output().map_err(|error| {
        if error.kind() == std::io::ErrorKind::NotFound {
            EthtoolError::NotInstalled
        } else {
            EthtoolError::Refused(format!("ethtool did not start: {error}"))
        }
    })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let line = said.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or("no reason given");
    Err(EthtoolError::Refused(line.trim_start_matches("netlink error: ").to_owned()))
}

fn show_flag(table: EthtoolTable) -> &'static str {
    match table {
        EthtoolTable::Channels => "-l",
        EthtoolTable::Rings => "-g",
        EthtoolTable::Coalesce => "-c",
        EthtoolTable::Features => "-k",
        EthtoolTable::Pause => "-a",
    }
}

fn change_flag(table: EthtoolTable) -> &'static str {
    match table {
        EthtoolTable::Channels => "-L",
        EthtoolTable::Rings => "-G",
        EthtoolTable::Coalesce => "-C",
        EthtoolTable::Features => "-K",
        EthtoolTable::Pause => "-A",
    }
}

/// The word that ethtool takes for the line that it prints as `key`.
fn argument(table: EthtoolTable, key: &str) -> String {
    match (table, key) {
        (EthtoolTable::Features, key) => key.to_owned(),
        (_, "Adaptive RX") => "adaptive-rx".to_owned(),
        (_, "Adaptive TX") => "adaptive-tx".to_owned(),
        (_, key) => key.to_ascii_lowercase(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_read() {
        let channels = Table::parse(
            "Channel parameters for va:\nPre-set maximums:\nRX:\t\t4\nTX:\t\t4\nOther:\t\tn/a\nCombined:\tn/a\n\
             Current hardware settings:\nRX:\t\t2\nTX:\t\t1\nOther:\t\tn/a\nCombined:\tn/a\n",
        );
        assert_eq!((channels.now("RX"), channels.max("RX")), (Some("2"), Some(4)));
        assert_eq!((channels.now("TX"), channels.now("Combined")), (Some("1"), None));
        let features = Table::parse(
            "Features for va:\ngeneric-receive-offload: off\nlarge-receive-offload: off [fixed]\n\ttx-tcp-segmentation: on\n",
        );
        assert_eq!(features.now("generic-receive-offload"), Some("off"));
        assert!(features.fixed("large-receive-offload") && !features.fixed("generic-receive-offload"));
        let coalesce =
            Table::parse("Coalesce parameters for eth0:\nAdaptive RX: on  TX: n/a\n\nrx-usecs: 8\ntx-usecs: n/a\n");
        assert_eq!((coalesce.now("Adaptive RX"), coalesce.now("Adaptive TX")), (Some("on"), None));
        assert_eq!((coalesce.now("rx-usecs"), coalesce.now("tx-usecs")), (Some("8"), None));
    }

    #[test]
    fn commands_are_ethtools_own() {
        for (table, key, value, expected) in [
            (EthtoolTable::Channels, "Combined", "8", "ethtool -L eth0 combined 8"),
            (EthtoolTable::Rings, "RX", "1024", "ethtool -G eth0 rx 1024"),
            (EthtoolTable::Coalesce, "Adaptive RX", "off", "ethtool -C eth0 adaptive-rx off"),
            (EthtoolTable::Coalesce, "rx-usecs", "8", "ethtool -C eth0 rx-usecs 8"),
            (EthtoolTable::Features, "generic-receive-offload", "on", "ethtool -K eth0 generic-receive-offload on"),
            (EthtoolTable::Pause, "TX", "off", "ethtool -A eth0 tx off"),
        ] {
            assert_eq!(command_line("eth0", table, key, value), expected);
        }
    }
}
