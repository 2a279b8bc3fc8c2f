//! What a ring is told at start, and what it reports back.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Which driver a ring may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum DriverChoice {
    /// io_uring where the kernel allows it, else epoll.
    #[default]
    Auto,
    /// io_uring, or an error that names the shut gate.
    Uring,
    /// epoll.
    Epoll,
}

/// A driver name that is none of `auto`, `uring` and `epoll`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown I/O driver {0:?}; give one of: auto, uring, epoll")]
pub struct UnknownDriver(pub String);

impl FromStr for DriverChoice {
    type Err = UnknownDriver;

    fn from_str(text: &str) -> Result<Self, UnknownDriver> {
        match text {
            "auto" | "" => Ok(Self::Auto),
            "uring" | "io_uring" => Ok(Self::Uring),
            "epoll" => Ok(Self::Epoll),
            other => Err(UnknownDriver(other.to_owned())),
        }
    }
}

impl DriverChoice {
    /// The choice that the environment variable `TORUS_IO` makes; `Auto` when it is unset.
    pub fn from_environment() -> Result<Self, UnknownDriver> {
        match std::env::var("TORUS_IO") {
            Ok(text) => text.parse(),
            Err(std::env::VarError::NotPresent) => Ok(Self::Auto),
            Err(std::env::VarError::NotUnicode(text)) => Err(UnknownDriver(text.to_string_lossy().into_owned())),
        }
    }
}

/// The driver that moves a ring's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriverKind {
    /// The kernel's io_uring.
    Uring,
    /// epoll and plain system calls.
    Epoll,
    /// A seeded network in memory with a virtual clock.
    Simulated,
}

impl fmt::Display for DriverKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Uring => "io_uring",
            Self::Epoll => "epoll",
            Self::Simulated => "simulated",
        })
    }
}

/// How a ring is set up; the default is a gateway's.
#[derive(Clone, Debug)]
pub struct RingConfig {
    /// Which driver may be used.
    pub driver: DriverChoice,
    /// Submission queue entries, a power of two.
    pub submission_entries: u32,
    /// Completion queue entries, a power of two; sixteen times the submission queue's when `None`, for a multishot receive
    /// completes many times.
    pub completion_entries: Option<u32>,
    /// Receive buffers, a power of two, at most 32768.
    pub buffer_count: u16,
    /// Size of one receive buffer, in bytes.
    pub buffer_bytes: u32,
    /// How long a worker looks for work before it sleeps; `None`: it sleeps at once.
    pub busy_poll: Option<Duration>,
    /// Received bytes that may wait in one socket before the ring stops receiving for it.
    pub receive_queue_bytes_max: usize,
    /// Fails submissions on purpose, for tests of the error paths.
    pub submit_faults: Option<SubmitFaults>,
}

/// Makes one in `one_in` submissions of the io_uring driver, and system calls of the epoll driver, fail as a loaded
/// kernel would.
#[derive(Clone, Copy, Debug)]
pub struct SubmitFaults {
    /// Seed of the choice.
    pub seed: u64,
    /// Mean number of calls between two failures.
    pub one_in: u32,
}

impl Default for RingConfig {
    fn default() -> Self {
        Self {
            driver: DriverChoice::Auto,
            // Both queues are walked through in turn, so what they take of the cache is their size. A fuller turn submits twice.
            submission_entries: 256,
            completion_entries: None,
            buffer_count: 512,
            buffer_bytes: 16 * 1024,
            busy_poll: None,
            receive_queue_bytes_max: 64 * 1024,
            submit_faults: None,
        }
    }
}

/// Why a ring could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// A number of the configuration is out of range.
    #[error("ring configuration: {field} is {value}; it must be {must}")]
    OutOfRange {
        /// Name of the field.
        field: &'static str,
        /// What it was.
        value: u64,
        /// What it must be.
        must: &'static str,
    },
    /// io_uring was demanded and is not to be had.
    #[error("io_uring is not usable: {0}")]
    Uring(Gate),
    /// The kernel refused a descriptor or memory that every driver needs.
    #[error("the I/O driver could not start: {call}: {error}")]
    System {
        /// The system call that failed.
        call: &'static str,
        /// The kernel's answer.
        error: std::io::Error,
    },
}

/// What shut io_uring out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gate {
    /// A seccomp filter refuses the system calls, as container runtimes' default profiles do.
    Seccomp,
    /// The administrator switched io_uring off (`kernel.io_uring_disabled`).
    Sysctl {
        /// Value of the setting.
        value: u32,
    },
    /// The memory lock limit is too low (kernels before 5.12 and after 6.13 charge an unprivileged user for rings).
    Memlock,
    /// The kernel lacks something that cannot be done without.
    OldKernel {
        /// What it lacks.
        missing: &'static str,
    },
    /// Too many open files.
    OpenFiles,
    /// Provided buffers did not deliver what was sent.
    SelfTestFailed {
        /// What was seen.
        seen: String,
    },
    /// Another error of the kernel.
    Other {
        /// The call that failed.
        call: &'static str,
        /// errno.
        errno: i32,
    },
}

impl fmt::Display for Gate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Seccomp => formatter.write_str(
                "gate seccomp: a seccomp profile refuses io_uring_setup; allow io_uring_setup, io_uring_enter and \
                 io_uring_register in the container's seccomp profile",
            ),
            Self::Sysctl { value } => write!(
                formatter,
                "gate sysctl: kernel.io_uring_disabled is {value}; try: sysctl -w kernel.io_uring_disabled=0"
            ),
            Self::Memlock => formatter.write_str(
                "gate memlock: the memory lock limit is too low for the ring; raise it (ulimit -l, LimitMEMLOCK=) or \
                 grant CAP_IPC_LOCK",
            ),
            Self::OldKernel { missing } => {
                write!(formatter, "gate kernel: this kernel lacks {missing}; run Linux 6.1 or newer")
            }
            Self::OpenFiles => formatter
                .write_str("gate open files: the descriptor limit is reached; raise it (ulimit -n, LimitNOFILE=)"),
            Self::SelfTestFailed { seen } => write!(
                formatter,
                "gate self-test: provided buffers delivered wrong data ({seen}); update the kernel, or set TORUS_IO=epoll"
            ),
            Self::Other { call, errno } => write!(
                formatter,
                "gate kernel: {call} failed: {}; set TORUS_IO=epoll to silence this",
                std::io::Error::from_raw_os_error(*errno)
            ),
        }
    }
}

/// Which parts of io_uring the ring uses; all false on other drivers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// IORING_SETUP_SINGLE_ISSUER (Linux 6.0).
    pub single_issuer: bool,
    /// IORING_SETUP_DEFER_TASKRUN (Linux 6.1).
    pub defer_taskrun: bool,
    /// IORING_SETUP_COOP_TASKRUN (Linux 5.19), used where `defer_taskrun` is not to be had.
    pub coop_taskrun: bool,
    /// IORING_SETUP_SUBMIT_ALL (Linux 5.18).
    pub submit_all: bool,
    /// IORING_SETUP_NO_SQARRAY (Linux 6.6).
    pub no_sqarray: bool,
    /// IORING_ENTER_NO_IOWAIT (Linux 6.15).
    pub no_iowait: bool,
    /// IORING_REGISTER_RING_FDS (Linux 5.18).
    pub registered_ring: bool,
}

impl fmt::Display for Features {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = [
            (self.single_issuer, "single_issuer"),
            (self.defer_taskrun, "defer_taskrun"),
            (self.coop_taskrun, "coop_taskrun"),
            (self.submit_all, "submit_all"),
            (self.no_sqarray, "no_sqarray"),
            (self.no_iowait, "no_iowait"),
            (self.registered_ring, "registered_ring"),
        ];
        let mut separator = "";
        for (_, name) in named.iter().filter(|(used, _)| *used) {
            write!(formatter, "{separator}{name}")?;
            separator = ",";
        }
        Ok(())
    }
}

/// Which driver runs, and why not the better one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriverReport {
    /// The driver that runs.
    pub kind: DriverKind,
    /// What shut io_uring out, where it was tried and refused.
    pub gate: Option<Gate>,
    /// What of io_uring is used.
    pub features: Features,
}

impl fmt::Display for DriverReport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.kind)?;
        if self.kind == DriverKind::Uring {
            write!(formatter, " ({})", self.features)?;
        }
        if let Some(gate) = &self.gate {
            write!(formatter, "; {gate}")?;
        }
        Ok(())
    }
}
