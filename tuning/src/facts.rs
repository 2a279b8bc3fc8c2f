//! What is known of the machine before any setting is looked at: cores, memory, interfaces, who we are.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::cpu_set::CpuSet;
use crate::ethtool::{EthtoolError, Table};
use crate::setting::{EthtoolTable, Profile};
use crate::target::Machine;

/// What the user chose for this run.
#[derive(Debug, Clone)]
pub struct Choices {
    /// For whom the machine is tuned.
    pub profile: Profile,
    /// Interfaces to tune; empty for those that carry traffic.
    pub nics: Vec<String>,
    /// Ports to keep out of connection tracking.
    pub ports: Vec<u16>,
    /// Where interrupts go.
    pub irqs: IrqPlace,
    /// The process whose limits count; `None` for ourselves, which says what a child of this shell would get.
    pub pid: Option<u32>,
}

/// Where interrupts of the interface go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum IrqPlace {
    /// Onto the workers' cores, queue i to core i.
    Onto,
    /// Onto cores that no worker uses: one of each eight.
    Away,
}

/// What is known of the machine.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Release of the kernel.
    pub kernel: String,
    /// This boot; another after every restart.
    pub boot_id: String,
    /// This installation; empty where nobody wrote one.
    pub machine_id: String,
    /// The network namespace we are in; empty in a recorded tree.
    pub netns: String,
    /// Cores that run.
    pub cpus: CpuSet,
    /// Cores for workers.
    pub data_cpus: CpuSet,
    /// Cores for interrupts.
    pub irq_cpus: CpuSet,
    /// Memory of the machine in bytes.
    pub memory_bytes: u64,
    /// Whether this is a container.
    pub container: bool,
    /// Whether node-wide network sysctls are visible: only the host's namespace shows them.
    pub host_netns: bool,
    /// Interfaces to tune.
    pub nics: Vec<Nic>,
    /// Path of our control group (version 2), without a slash at its end.
    pub cgroup: Option<String>,
    /// The process whose limits count, and when it started.
    pub process: (u32, u64),
}

/// One interface.
#[derive(Debug, Clone, Default)]
pub struct Nic {
    /// Its name.
    pub name: String,
    /// Its driver; `None` for purely virtual ones.
    pub driver: Option<String>,
    /// Cores of its memory node; empty where it has none.
    pub local_cpus: CpuSet,
    /// Folders of its receive queues.
    pub rx: Vec<String>,
    /// Folders of its transmit queues.
    pub tx: Vec<String>,
    /// Interrupts of its queues.
    pub irqs: Vec<Irq>,
    /// What ethtool says.
    pub tables: BTreeMap<EthtoolTable, Result<Table, EthtoolError>>,
}

/// One interrupt of a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Irq {
    /// Its number.
    pub number: u32,
    /// The queue it belongs to, counted from 0.
    pub queue: usize,
}

/// Why the facts cannot be gathered.
#[derive(Debug, thiserror::Error)]
pub enum FactsError {
    /// An interface was named that is not there.
    #[error("no interface is called '{name}'; there are: {there}")]
    NoSuchNic {
        /// What was asked for.
        name: String,
        /// What there is.
        there: String,
    },
    /// A process was named that is not there.
    #[error("no process has the number {0}")]
    NoSuchProcess(u32),
    /// The tree has no /proc to speak of.
    #[error("{0}: no such file; --root must name a folder with proc and sys in it")]
    NoTree(String),
}

impl Facts {
    /// Reads what is known of `machine`, interfaces included.
    pub fn gather(machine: &Machine, choices: &Choices) -> Result<Self, FactsError> {
        Ok(Self { nics: nics(machine, choices)?, ..Self::basics(machine, choices)? })
    }

    /// Reads what is known of `machine` without its interfaces: a few small files, no other program.
    pub fn basics(machine: &Machine, choices: &Choices) -> Result<Self, FactsError> {
        let kernel = kernel(machine)?;
        let cpus = machine
            .word("/sys/devices/system/cpu/online")
            .and_then(|text| CpuSet::from_list(&text))
            .filter(|cpus| !cpus.is_empty())
            .unwrap_or_else(|| CpuSet::from_iter([0]));
        let irq_cpus = match choices.irqs {
            IrqPlace::Onto => CpuSet::default(),
            // One core of each eight; none on a machine that has no core to spare.
            IrqPlace::Away if cpus.len() >= 4 => cpus.iter().take(cpus.len().div_ceil(8)).collect(),
            IrqPlace::Away => CpuSet::default(),
        };
        let pid = choices.pid.unwrap_or_else(std::process::id);
        let started = match machine.process_started(pid) {
            Some(started) => started,
            None if choices.pid.is_some() => return Err(FactsError::NoSuchProcess(pid)),
            None => 0,
        };
        let container = ["/.dockerenv", "/run/.containerenv", "/var/run/secrets/kubernetes.io"]
            .iter()
            .any(|path| machine.exists(path));
        let netns = machine
            .is_live()
            .then(|| std::fs::read_link("/proc/self/ns/net").ok())
            .flatten()
            .map_or_else(String::new, |link| link.display().to_string());
        Ok(Self {
            kernel,
            boot_id: machine.word("/proc/sys/kernel/random/boot_id").unwrap_or_default(),
            machine_id: machine.word("/etc/machine-id").unwrap_or_default(),
            netns,
            data_cpus: cpus.without(&irq_cpus),
            irq_cpus,
            cpus,
            memory_bytes: memory_bytes(machine),
            container,
            host_netns: machine.exists("/proc/sys/net/core/netdev_budget"),
            nics: Vec::new(),
            cgroup: cgroup(machine, choices.pid),
            process: (pid, started),
        })
    }
}

fn memory_bytes(machine: &Machine) -> u64 {
    let text = machine.read("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0).saturating_mul(1024)
}

/// The kernel's release. Recorded trees seldom hold it: one with `proc` and `sys` in it is good enough.
fn kernel(machine: &Machine) -> Result<String, FactsError> {
    match machine.word("/proc/sys/kernel/osrelease") {
        Some(release) => Ok(release),
        None if !machine.is_live() && machine.exists("/proc") && machine.exists("/sys") => Ok("unknown".to_owned()),
        None => Err(FactsError::NoTree(machine.path("/proc/sys/kernel/osrelease").display().to_string())),
    }
}

/// The group of version 2 that `/proc/<pid>/cgroup` names in its line `0::`.
fn cgroup(machine: &Machine, pid: Option<u32>) -> Option<String> {
    let process = pid.map_or_else(|| "self".to_owned(), |pid| pid.to_string());
    let text = machine.read(&format!("/proc/{process}/cgroup")).ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    Some(path.trim_end_matches('/').to_owned())
}

fn nics(machine: &Machine, choices: &Choices) -> Result<Vec<Nic>, FactsError> {
    let there = machine.names("/sys/class/net");
    if let Some(name) = choices.nics.iter().find(|name| !there.contains(name)) {
        return Err(FactsError::NoSuchNic { name: name.clone(), there: there.join(", ") });
    }
    let chosen: Vec<&String> = if choices.nics.is_empty() {
        let routed = default_route_nics(machine);
        there
            .iter()
            .filter(|name| machine.exists(&format!("/sys/class/net/{name}/device")) || routed.contains(name))
            .collect()
    } else {
        choices.nics.iter().collect()
    };
    let interrupts = machine.read("/proc/interrupts").unwrap_or_default();
    Ok(chosen.into_iter().map(|name| nic(machine, name, &interrupts)).collect())
}

/// Interfaces that carry a default route of IPv4.
fn default_route_nics(machine: &Machine) -> Vec<String> {
    let text = machine.read("/proc/net/route").unwrap_or_default();
    text.lines()
        .skip(1)
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let (name, destination) = (words.next()?, words.next()?);
            (destination == "00000000").then(|| name.to_owned())
        })
        .collect()
}

fn nic(machine: &Machine, name: &str, interrupts: &str) -> Nic {
    let folder = format!("/sys/class/net/{name}");
    let (rx, tx): (Vec<String>, Vec<String>) =
        machine.names(&format!("{folder}/queues")).into_iter().partition(|queue| queue.starts_with("rx-"));
    let tables = [
        EthtoolTable::Channels,
        EthtoolTable::Rings,
        EthtoolTable::Coalesce,
        EthtoolTable::Features,
        EthtoolTable::Pause,
    ];
    let driver = machine
        .read(&format!("{folder}/device/uevent"))
        .ok()
        .and_then(|text| text.lines().find_map(|line| line.strip_prefix("DRIVER=").map(str::to_owned)));
    Nic {
        name: name.to_owned(),
        driver,
        local_cpus: machine
            .word(&format!("{folder}/device/local_cpulist"))
            .and_then(|text| CpuSet::from_list(&text))
            .unwrap_or_default(),
        rx,
        tx,
        irqs: irqs(machine, &folder, interrupts),
        tables: tables.into_iter().map(|table| (table, machine.ethtool(name, table))).collect(),
    }
}

/// The interrupts of the queues: those that the device owns, without the ones for its configuration and events.
fn irqs(machine: &Machine, folder: &str, interrupts: &str) -> Vec<Irq> {
    // A virtio device has its vectors at the PCI device above it.
    let numbers: Vec<u32> = [format!("{folder}/device/msi_irqs"), format!("{folder}/device/../msi_irqs")]
        .iter()
        .map(|path| machine.names(path))
        .find(|names| !names.is_empty())
        .unwrap_or_default()
        .iter()
        .filter_map(|name| name.parse().ok())
        .collect();
    let name_of = |number: u32| {
        let start = format!("{number}:");
        interrupts.lines().find(|line| line.trim_start().starts_with(&start))?.split_whitespace().last()
    };
    numbers
        .into_iter()
        .filter_map(|number| queue_of_interrupt(name_of(number)?).map(|queue| Irq { number, queue }))
        .collect()
}

/// The queue that an interrupt's name speaks of: `virtio3-input.1`, `mlx5_comp7@pci:0000:3b:00.0`, `eth0-TxRx-3`, `virtio3-rx`.
fn queue_of_interrupt(name: &str) -> Option<usize> {
    let name = name.split('@').next()?.to_ascii_lowercase();
    if !["rx", "tx", "input", "output", "comp", "queue"].iter().any(|word| name.contains(word)) {
        return None;
    }
    let digits_at = name.trim_end_matches(|letter: char| letter.is_ascii_digit()).len();
    let digits = name.get(digits_at..)?;
    if digits.is_empty() { Some(0) } else { digits.parse().ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interrupts_name_their_queue() {
        for (name, queue) in [
            ("virtio3-input.1", Some(1)),
            ("virtio3-output.0", Some(0)),
            ("virtio3-rx", Some(0)),
            ("virtio3-config", None),
            ("mlx5_comp7@pci:0000:3b:00.0", Some(7)),
            ("mlx5_async0@pci:0000:3b:00.0", None),
            ("eth0-TxRx-12", Some(12)),
            ("ens5-Tx-Rx-2", Some(2)),
        ] {
            assert_eq!(queue_of_interrupt(name), queue, "{name}");
        }
    }
}
