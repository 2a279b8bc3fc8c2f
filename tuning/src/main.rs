//! The program: check, plan, apply, verify, rollback, explain, watch, bench, report, persist.

mod commands;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use torus_tune::facts::IrqPlace;
use torus_tune::persist::Form;
use torus_tune::setting::{Profile, Risk, Scope, Weight};

/// Tunes a node or a pod for Torus, and knows the way back.
///
/// Exit codes: 0 nothing to do or done, 1 findings or drift, 2 an error; then nothing was changed unless the message says so.
#[derive(Debug, Parser)]
#[command(name = "torus-tune", version)]
struct Program {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Shows each setting: what it is, what it should be, and why.
    Check {
        #[command(flatten)]
        run: Run,
        /// Only the two or three findings that cost this program most, as it prints them when it starts.
        #[arg(long = "for", value_enum)]
        for_program: Option<ForProgram>,
        /// Exit with 1 only for findings of this weight or more.
        #[arg(long, value_enum, default_value = "small")]
        fail_on: FailOn,
        /// Also what is not applicable here.
        #[arg(long)]
        all: bool,
        #[arg(short, long, value_enum, default_value = "text")]
        output: Output,
    },
    /// Shows the exact writes in order, and the undo of each.
    Plan {
        #[command(flatten)]
        run: Run,
    },
    /// Writes what the plan says; each former value is in the journal before it is replaced.
    Apply {
        #[command(flatten)]
        run: Run,
        /// Also writes sysctl.d, a systemd unit and a udev rule, so that it outlives a reboot.
        #[arg(long)]
        persist: bool,
        /// Where this program is found at boot.
        #[arg(long, default_value = "/usr/local/bin/torus-tune")]
        program: String,
    },
    /// Says whether everything that was applied still stands.
    Verify {
        #[command(flatten)]
        place: PlaceOptions,
    },
    /// Puts back what stood before, also after a reboot.
    Rollback {
        #[command(flatten)]
        place: PlaceOptions,
        /// Puts back even what something else has changed since, and the journal of another machine.
        #[arg(long)]
        force: bool,
    },
    /// Tells one setting whole; without a name lists them all.
    Explain {
        /// Its name, or the sysctl's.
        setting: Option<String>,
    },
    /// Says when something that was applied is changed by something else.
    Watch {
        #[command(flatten)]
        place: PlaceOptions,
        /// Seconds between looks.
        #[arg(long, default_value_t = 10)]
        interval: u64,
        /// Ends after this many looks.
        #[arg(long)]
        count: Option<u64>,
    },
    /// Measures with torus-load what a profile or single settings change, and puts everything back.
    ///
    /// Exit code 1 when a figure is shown to be worse.
    Bench {
        #[command(flatten)]
        run: Run,
        #[command(flatten)]
        bench: BenchOptions,
    },
    /// Writes a report.
    Report {
        #[command(flatten)]
        run: Run,
        #[arg(short, long, value_enum, default_value = "html")]
        output: ReportOutput,
        /// The file; standard output without it.
        #[arg(long)]
        file: Option<PathBuf>,
    },
    /// Prints the plan in a form that outlives a reboot.
    Persist {
        #[command(flatten)]
        run: Run,
        /// Which form.
        #[arg(long, value_enum)]
        form: Form,
        /// Where this program is found at boot.
        #[arg(long, default_value = "/usr/local/bin/torus-tune")]
        program: String,
        /// The image that carries this program.
        #[arg(long, default_value = "torus-tune:latest")]
        image: String,
    },
}

/// Which machine, and where its journal is.
#[derive(Debug, Clone, Args)]
struct PlaceOptions {
    /// A recorded tree with proc and sys in it, in place of this machine.
    #[arg(long, default_value = "/")]
    root: PathBuf,
    /// The folder of the journal.
    #[arg(long, env = "TORUS_TUNE_STATE_DIR", default_value = "/var/lib/torus-tune")]
    state_dir: PathBuf,
}

/// What a run is about.
#[derive(Debug, Clone, Args)]
struct Run {
    #[command(flatten)]
    place: PlaceOptions,
    /// For whom the machine is tuned.
    #[arg(long, value_enum, default_value = "gateway-throughput")]
    profile: Profile,
    /// Interfaces; those that carry traffic without it.
    #[arg(long)]
    nic: Vec<String>,
    /// Ports to keep out of connection tracking.
    #[arg(long, value_delimiter = ',')]
    ports: Vec<u16>,
    /// Interrupts onto the workers' cores, or away from them; the profile's choice without it.
    #[arg(long, value_enum)]
    irqs: Option<IrqPlace>,
    /// The process whose limits count.
    #[arg(long)]
    pid: Option<u32>,
    /// Only these settings.
    #[arg(long, visible_alias = "setting", value_delimiter = ',')]
    only: Vec<String>,
    /// All but these settings.
    #[arg(long, value_delimiter = ',')]
    skip: Vec<String>,
    /// Only settings of these scopes.
    #[arg(long, value_enum)]
    scope: Vec<Scope>,
    /// Leaves out settings above this risk.
    #[arg(long, value_enum)]
    max_risk: Option<MaxRisk>,
}

/// How a change is measured.
#[derive(Debug, Clone, Args)]
struct BenchOptions {
    /// Where requests go, as `http://HOST:PORT/PATH`; without it a `torus-load serve` is started for each run.
    #[arg(long, value_name = "URL")]
    target: Option<String>,
    /// The process of the target, whose processor time is compared.
    #[arg(long, value_name = "PID", requires = "target")]
    watch_pid: Option<u32>,
    /// What is asked of the server that is started.
    #[arg(long, value_name = "PATH", default_value = "/fixed", conflicts_with = "target")]
    path: String,
    /// Rounds of four runs; with fewer than 8 nothing can be shown.
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = clap::value_parser!(u64).range(torus_tune::bench::ROUND_COUNT_MIN as u64..=1000))]
    rounds: u64,
    /// The load generator; beside this program, or on the search path.
    #[arg(long, value_name = "PATH")]
    torus_load: Option<PathBuf>,
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
    /// Flags of `torus-load run`, as: -- --rate 5k --duration 5s --connections 100
    #[arg(last = true, value_name = "FLAGS")]
    load: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ReportOutput {
    Text,
    Json,
    Html,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ForProgram {
    Gateway,
    Sidecar,
    Loadgen,
}

impl ForProgram {
    fn profile(self) -> Profile {
        match self {
            Self::Gateway => Profile::GatewayThroughput,
            Self::Sidecar => Profile::Sidecar,
            Self::Loadgen => Profile::Loadgen,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FailOn {
    Small,
    Medium,
    Large,
}

impl From<FailOn> for Weight {
    fn from(from: FailOn) -> Self {
        match from {
            FailOn::Small => Self::Small,
            FailOn::Medium => Self::Medium,
            FailOn::Large => Self::Large,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum MaxRisk {
    None,
    Low,
    Medium,
    High,
}

impl From<MaxRisk> for Risk {
    fn from(max: MaxRisk) -> Self {
        match max {
            MaxRisk::None => Self::None,
            MaxRisk::Low => Self::Low,
            MaxRisk::Medium => Self::Medium,
            MaxRisk::High => Self::High,
        }
    }
}

fn main() -> ExitCode {
    let program = Program::parse();
    let mut out = std::io::stdout().lock();
    let done = match commands::run(program.command, &mut out) {
        Ok(done) => done,
        Err(error) => {
            eprintln!("torus-tune: {error}");
            return ExitCode::from(2);
        }
    };
    // A reader that went away, as `| head` does, is no failure.
    let _ = out.flush();
    match done {
        commands::Done::Fine => ExitCode::SUCCESS,
        commands::Done::Findings => ExitCode::from(1),
    }
}
