//! One setting, as its file in `settings/` says it: where it lives, what each profile wants, why, and what it may cost.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// A setting that was read and found sound.
#[derive(Debug, Clone, PartialEq)]
pub struct Setting {
    /// The name of its file, and what `explain`, `--only` and `--skip` take.
    pub name: String,
    /// What the file says.
    pub card: Card,
}

/// The content of a setting's file.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Card {
    /// A line for tables.
    pub title: String,
    /// Which kind of machinery this belongs to; also the order of writes.
    pub group: Group,
    /// Whose setting it is.
    pub scope: Scope,
    /// Whether a pod may carry it.
    pub pod: Pod,
    /// Where it is read and written.
    pub at: Place,
    /// How two spellings are compared, and what may be written.
    pub format: Format,
    /// Unit of the value.
    pub unit: String,
    /// What each profile wants; a profile without a line leaves the setting alone.
    pub want: BTreeMap<Profile, Want>,
    /// How much it matters where it applies.
    pub weight: Weight,
    /// How likely it does harm.
    pub risk: Risk,
    /// Why the value helps.
    pub why: String,
    /// What to expect, and how to see it.
    pub effect: String,
    /// What it may cost.
    pub cost: String,
    /// Where this is written down.
    pub source: String,
    /// What happens when the kernel or the driver refuses the value.
    #[serde(default)]
    pub refusal: Refusal,
    /// Whether the tool writes it at all.
    #[serde(default)]
    pub change: ChangePolicy,
    /// Why the file may be missing on this kernel.
    #[serde(default)]
    pub missing: Option<String>,
}

/// For whom a node or a pod is tuned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    /// A node that runs a gateway and little else: most requests a second for each core.
    GatewayThroughput,
    /// A node that runs a gateway and little else: shortest tail of latencies.
    GatewayLatency,
    /// A proxy beside an application in its pod.
    Sidecar,
    /// A machine that generates load.
    Loadgen,
}

impl Profile {
    /// All profiles, in the order of the guide.
    pub const ALL: [Self; 4] = [Self::GatewayThroughput, Self::GatewayLatency, Self::Sidecar, Self::Loadgen];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::GatewayThroughput => "gateway-throughput",
            Self::GatewayLatency => "gateway-latency",
            Self::Sidecar => "sidecar",
            Self::Loadgen => "loadgen",
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

/// What a setting belongs to, in the order of writes: limits that others are measured against come first, and offloads and
/// queue counts before what hangs on each queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Group {
    /// Files, sockets, memory locks.
    Limits,
    /// io_uring and what may refuse it.
    IoUring,
    /// Socket memory.
    Buffers,
    /// TCP's behaviour.
    Tcp,
    /// Connection tracking.
    Conntrack,
    /// Queues, offloads, rings and coalescing of a network interface.
    Nic,
    /// What hangs on each queue: steering and interrupts.
    Queues,
    /// Packet processing in the kernel.
    Napi,
    /// Cores: frequency, idle states, isolation.
    Cpu,
    /// Virtual memory.
    Memory,
    /// The scheduler and its timers.
    Scheduler,
    /// Quotas of the control group.
    Cgroup,
}

impl Group {
    /// The heading in reports.
    pub fn title(self) -> &'static str {
        match self {
            Self::Limits => "Limits",
            Self::IoUring => "io_uring",
            Self::Buffers => "Socket buffers",
            Self::Tcp => "TCP",
            Self::Conntrack => "Connection tracking",
            Self::Nic => "Network interface",
            Self::Queues => "Queues and interrupts",
            Self::Napi => "Packet processing",
            Self::Cpu => "CPU",
            Self::Memory => "Memory",
            Self::Scheduler => "Scheduler",
            Self::Cgroup => "Control group",
        }
    }
}

/// Whose setting it is, and so who feels a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// The whole machine.
    Node,
    /// One network namespace: a pod, or the host.
    Netns,
    /// One control group.
    Cgroup,
    /// One process.
    Process,
}

impl Scope {
    /// The name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Netns => "netns",
            Self::Cgroup => "cgroup",
            Self::Process => "process",
        }
    }
}

/// Whether a pod may set it for itself.
///
/// Source: Kubernetes, "Using sysctls in a Kubernetes Cluster": the safe list needs no flag, other namespaced sysctls need the
/// kubelet's `--allowed-unsafe-sysctls`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pod {
    /// On Kubernetes' safe list: `securityContext.sysctls`, no flag.
    Safe,
    /// Namespaced, but the kubelet must allow it by name.
    Unsafe,
    /// Not a pod's to set.
    Never,
}

impl Pod {
    /// The word in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Safe => "pod-safe",
            Self::Unsafe => "pod-unsafe",
            Self::Never => "not in a pod",
        }
    }
}

/// Where a setting is read and written.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// A sysctl by its dotted name.
    Sysctl(String),
    /// Files of /proc or /sys. `{nic}`, `{rx}`, `{tx}`, `{irq}`, `{cpu}` and `{cgroup}` stand for each that there is.
    /// Several lines: the first that exists counts.
    Files(Vec<String>),
    /// A line of one of ethtool's tables.
    Ethtool {
        /// Which table.
        table: EthtoolTable,
        /// The line, as ethtool prints it.
        key: String,
    },
    /// A limit of a process (`--pid`).
    Limit(Resource),
    /// The nftables rules that keep ports out of connection tracking.
    Notrack,
    /// A fact that the program works out itself; never written.
    Fact(Fact),
}

/// One of the tables that ethtool prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EthtoolTable {
    /// `ethtool -l`, `-L`.
    Channels,
    /// `ethtool -g`, `-G`.
    Rings,
    /// `ethtool -c`, `-C`.
    Coalesce,
    /// `ethtool -k`, `-K`.
    Features,
    /// `ethtool -a`, `-A`.
    Pause,
}

/// A limit of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Resource {
    /// Open files.
    Nofile,
    /// Locked memory.
    Memlock,
}

/// What no single file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fact {
    /// Whether a seccomp filter stands in front of io_uring.
    Seccomp,
    /// Whether irqbalance moves what was pinned.
    Irqbalance,
    /// CPU time that the control group may use.
    CpuQuota,
    /// Share of the connection table in use.
    ConntrackUse,
    /// Vulnerabilities with a mitigation that costs system calls.
    Mitigations,
    /// The spread of the receive hash over queues.
    RssSpread,
}

/// How two spellings are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// One whole number.
    Integer,
    /// Words between blanks.
    Words,
    /// A CPU mask in hexadecimal.
    Mask,
    /// A CPU list.
    List,
    /// Words of which the chosen one stands in brackets.
    Choice,
}

/// What a profile wants.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Want {
    /// This text alone.
    Exactly(Text),
    /// This number or more.
    AtLeast(Number),
    /// This number or less.
    AtMost(Number),
    /// Any of these; the first is written.
    OneOf(Vec<String>),
    /// The first of these that the file beside it offers.
    FirstOffered {
        /// The sysctl that lists what there is.
        by: String,
        /// The names, best first.
        of: Vec<String>,
    },
    /// One wish for each word of the value.
    Fields(Vec<Field>),
    /// Anything but nothing; the text says what.
    Present(String),
}

/// What one word of several should be.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Field {
    /// As it is.
    Keep,
    /// This number or more.
    AtLeast(Number),
    /// This number or less.
    AtMost(Number),
}

/// A number, or the name of the rule that computes it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Number {
    /// As written.
    Literal(u64),
    /// Computed from the machine.
    Formula(NumberFormula),
}

/// A text, or the name of the rule that computes it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Text {
    /// Computed from the machine.
    Formula(TextFormula),
    /// A number as written.
    Number(u64),
    /// As written.
    Literal(String),
}

/// Numbers that depend on cores, memory and network interfaces; `value.rs` has the arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NumberFormula {
    /// Largest buffer of one socket.
    SocketBufferMax,
    /// Entries of the table that steers flows to the core of their reader.
    RfsEntries,
    /// The share of one receive queue in that table.
    RfsEntriesPerQueue,
    /// Entries of the connection table.
    ConntrackMax,
    /// Sockets in time-wait.
    TimeWaitMax,
    /// Open files of the whole machine.
    FileMax,
    /// Locked memory for the workers' registered buffers.
    Memlock,
    /// A queue for each data core, as far as the interface has them.
    NicQueues,
    /// 4096 descriptors, as far as the interface has them.
    RingThroughput,
    /// 1024 descriptors, as far as the interface has them.
    RingLatency,
}

/// Texts that depend on cores, queues and interrupts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TextFormula {
    /// The cores that help one receive queue.
    RpsMask,
    /// The cores that send on one transmit queue.
    XpsMask,
    /// The core of one interrupt.
    IrqCpu,
}

/// How much a setting matters where it applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Weight {
    /// Seen only by measuring.
    Small,
    /// Seen under load.
    Medium,
    /// Requests fail, or a core's work doubles.
    Large,
}

impl Weight {
    /// The word in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::Medium => "medium",
            Self::Large => "large",
        }
    }
}

/// How likely a setting does harm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Risk {
    /// None that we know.
    None,
    /// Costs memory or power.
    Low,
    /// May surprise other software of the node.
    Medium,
    /// May cut connections or weaken a protection.
    High,
}

impl Risk {
    /// The word in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        }
    }
}

/// What a refusal by the kernel or a driver means for the run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Refusal {
    /// Everything done so far is undone.
    #[default]
    Stop,
    /// Said and passed over: drivers and kernels differ here, and nothing else depends on it.
    Skip,
}

/// Whether the tool writes a setting.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChangePolicy {
    /// `apply` writes it.
    #[default]
    Write,
    /// Reported with what to do, never written: boot arguments, protections, other programs' business.
    Advise,
}
