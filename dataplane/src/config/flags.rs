//! The command line: Envoy's flags in Envoy's spelling, and a few of our own.
//!
//! Every flag that Istio's agent passes is accepted. Help says of each flag whether it is honoured or accepted without effect, and why.

use std::ffi::OsString;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, FromArgMatches, Parser, ValueEnum};
use thiserror::Error;

#[cfg(test)]
mod tests;

/// What the command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// `-c`: the bootstrap file; `.json`, `.pb`, anything else is YAML.
    pub config_path: Option<String>,
    /// `--config-yaml`: merged over the file.
    pub config_yaml: Option<String>,
    /// What to do with the configuration.
    pub mode: Mode,
    /// Worker threads; `None`: one for each allowed CPU.
    pub concurrency: Option<u32>,
    /// CPUs to pin workers to, in order.
    pub cpu_list: Option<Vec<usize>>,
    /// How long a worker spins before it sleeps.
    pub busy_poll: Duration,
    /// Which I/O driver to use.
    pub io: IoChoice,
    /// Level of the program's own log.
    pub log_level: LogLevel,
    /// Levels of single components, in the order given.
    pub component_log_levels: Vec<(String, LogLevel)>,
    /// Format of a line of the program's own log; Envoy's where it is not given.
    pub log_format: Option<String>,
    /// File for the program's own log instead of standard error.
    pub log_path: Option<String>,
    /// File that gets the admin server's address once it listens.
    pub admin_address_path: Option<String>,
    /// File that keeps what control planes have sent.
    pub snapshot_path: Option<String>,
    /// How long shutting down and replaced listeners let requests run.
    pub drain_time: Duration,
    /// Whether draining spreads its closes over the drain time.
    pub drain_strategy: DrainStrategy,
    /// How often access-log buffers are written out.
    pub file_flush_interval: Duration,
    /// How many bytes of access log are gathered before they are written at once.
    pub file_flush_bytes_min: usize,
    /// Unknown fields in the bootstrap are warnings instead of errors.
    pub allow_unknown_static_fields: bool,
    /// Unknown fields in dynamic resources are errors.
    pub reject_unknown_dynamic_fields: bool,
    /// Unknown fields in dynamic resources are not even reported.
    pub ignore_unknown_dynamic_fields: bool,
    /// Deprecated fields are not reported.
    pub skip_deprecated_logs: bool,
    /// Overrides `node.cluster` where the bootstrap has none.
    pub service_cluster: Option<String>,
    /// Overrides `node.id` where the bootstrap has none.
    pub service_node: Option<String>,
    /// Overrides `node.locality.zone` where the bootstrap has none.
    pub service_zone: Option<String>,
    /// `--stats-tag name:value`, in the order given.
    pub stats_tags: Vec<(String, String)>,
    /// For `/server_info` and the hot-restart version; no hot restart takes place.
    pub restart_epoch: u32,
    /// For `/server_info`.
    pub base_id: u32,
    /// Family of the address that stands for this machine.
    pub local_address_ip_version: IpVersion,
    /// Print the table of fields and end.
    pub print_compatibility: bool,
}

/// What to do with the configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Check it and serve traffic.
    #[default]
    Serve,
    /// Check it and end.
    Validate,
    /// Start everything but serve no traffic.
    #[value(name = "init_only")]
    InitOnly,
}

/// Which I/O driver to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum IoChoice {
    /// io_uring where the system allows it, else epoll.
    #[default]
    Auto,
    /// io_uring or nothing.
    Uring,
    /// epoll.
    Epoll,
}

/// Levels of the program's own log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    Trace,
    Debug,
    #[default]
    Info,
    #[value(alias = "warn")]
    Warning,
    Error,
    Critical,
    Off,
}

/// Whether draining spreads its closes over the drain time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum DrainStrategy {
    /// The share of connections asked to close grows with time.
    #[default]
    Gradual,
    /// All are asked at once.
    Immediate,
}

/// An IP family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum IpVersion {
    #[default]
    V4,
    V6,
}

/// Why the program ends instead of running.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum UsageError {
    /// Help or version, to be printed to standard output; exit code 0.
    #[error("{0}")]
    Show(String),
    /// One line that says what is wrong with the command line; exit code 1.
    #[error("{0}")]
    Wrong(String),
}

impl UsageError {
    /// What the process ends with.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Show(_) => 0,
            Self::Wrong(_) => 1,
        }
    }
}

impl Options {
    /// Reads a command line, program name first.
    pub fn parse_from<I, T>(arguments: I) -> Result<Self, UsageError>
    where
        I: IntoIterator<Item = T>,
        T: Into<OsString> + Clone,
    {
        let matches = Flags::command().try_get_matches_from(arguments).map_err(|error| explain(&error))?;
        let flags = Flags::from_arg_matches(&matches).map_err(|error| explain(&error))?;
        flags.into_options()
    }
}

impl Flags {
    fn into_options(self) -> Result<Options, UsageError> {
        if self.hot_restart_version {
            return Err(UsageError::Show("disabled\n".to_owned()));
        }
        if self.config_path.is_none() && self.config_yaml.is_none() && !self.print_compatibility {
            let reason = "no configuration: give a bootstrap file with -c FILE, or its text with --config-yaml";
            return Err(UsageError::Wrong(reason.to_owned()));
        }
        let mut component_log_levels = Vec::new();
        for part in self.component_log_level.iter().flat_map(|list| list.split(',')).filter(|part| !part.is_empty()) {
            let level =
                part.split_once(':').and_then(|(name, level)| Some((name, LogLevel::from_str(level, true).ok()?)));
            let Some((name, level)) = level else {
                return Err(wrong("--component-log-level", part, "COMPONENT:LEVEL, for instance upstream:debug"));
            };
            component_log_levels.push((name.to_owned(), level));
        }
        let mut stats_tags: Vec<(String, String)> = Vec::new();
        for tag in self.stats_tag {
            let parts = tag.split_once(':').filter(|(name, value)| {
                !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric()) && !value.contains('.')
            });
            let Some((name, value)) = parts else {
                return Err(wrong(
                    "--stats-tag",
                    &tag,
                    "NAME:VALUE, the name of letters and digits, the value without dots",
                ));
            };
            if stats_tags.iter().any(|(known, _)| known == name) {
                return Err(wrong("--stats-tag", &tag, "a name that was not given before"));
            }
            stats_tags.push((name.to_owned(), value.to_owned()));
        }
        let cpu_list = match self.cpu_list {
            Some(text) => Some(
                cpus(&text).ok_or_else(|| wrong("--cpu-list", &text, "CPU numbers and ranges, for instance 0-3,6"))?,
            ),
            None => None,
        };
        Ok(Options {
            config_path: self.config_path,
            config_yaml: self.config_yaml,
            mode: self.mode,
            // Envoy runs one worker where it is told to run none.
            concurrency: self.concurrency.map(|count| count.max(1)),
            cpu_list,
            busy_poll: Duration::from_micros(self.busy_poll_us),
            io: self.io,
            log_level: self.log_level,
            component_log_levels,
            log_format: self.log_format,
            log_path: self.log_path,
            admin_address_path: self.admin_address_path,
            snapshot_path: self.snapshot_path,
            drain_time: Duration::from_secs(self.drain_time_s.into()),
            drain_strategy: self.drain_strategy,
            file_flush_interval: Duration::from_millis(self.file_flush_interval_msec.into()),
            file_flush_bytes_min: self.file_flush_min_size_kb as usize * 1024,
            allow_unknown_static_fields: self.allow_unknown_static_fields || self.allow_unknown_fields,
            reject_unknown_dynamic_fields: self.reject_unknown_dynamic_fields,
            ignore_unknown_dynamic_fields: self.ignore_unknown_dynamic_fields,
            skip_deprecated_logs: self.skip_deprecated_logs,
            service_cluster: self.service_cluster,
            service_node: self.service_node,
            service_zone: self.service_zone,
            stats_tags,
            restart_epoch: self.restart_epoch,
            base_id: self.base_id,
            local_address_ip_version: self.local_address_ip_version,
            print_compatibility: self.print_compatibility,
        })
    }
}

/// Envoy-compatible gateway and sidecar proxy.
#[derive(Parser)]
#[command(name = "torus-proxy", version, next_line_help = false, max_term_width = 120)]
struct Flags {
    /// Bootstrap file: .json, .pb (binary protobuf), anything else YAML
    #[arg(short = 'c', long, value_name = "FILE", allow_hyphen_values = false)]
    config_path: Option<String>,
    /// Bootstrap as YAML text, merged over --config-path
    #[arg(long, value_name = "YAML", allow_hyphen_values = true)]
    config_yaml: Option<String>,
    /// What to do with the configuration
    #[arg(long, value_enum, default_value_t)]
    mode: Mode,
    /// Worker threads [default: one for each allowed CPU]
    #[arg(long, value_name = "COUNT")]
    concurrency: Option<u32>,
    /// CPUs to pin workers to, for instance 0-3,6 [default: all allowed CPUs]
    #[arg(long, value_name = "CPUS")]
    cpu_list: Option<String>,
    /// Microseconds that a worker spins for new work before it sleeps; lowers latency, burns the CPU
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 0)]
    busy_poll_us: u64,
    /// I/O driver
    #[arg(long, value_enum, default_value_t, env = "TORUS_IO")]
    io: IoChoice,
    /// Level of the program's own log
    #[arg(short = 'l', long, value_enum, default_value_t)]
    log_level: LogLevel,
    /// Levels of single components: upstream:debug,config:trace; components that only Envoy has are accepted without effect
    #[arg(long, value_name = "LIST")]
    component_log_level: Option<String>,
    /// File for the program's own log instead of standard error
    #[arg(long, value_name = "FILE")]
    log_path: Option<String>,
    /// Format of a line of the program's own log, in spdlog's pattern flags
    #[arg(long, value_name = "FORMAT", allow_hyphen_values = true)]
    log_format: Option<String>,
    /// Accepted without effect: newlines in the log are escaped where the format says %_ or %j
    #[arg(long)]
    log_format_escaped: bool,
    /// Accepted without effect: the log has no stack traces
    #[arg(long)]
    log_stacktrace_single_entry: bool,
    /// Accepted without effect: levels are set by component
    #[arg(long)]
    enable_fine_grain_logging: bool,
    /// File that gets the admin server's address once it listens
    #[arg(long, value_name = "FILE")]
    admin_address_path: Option<String>,
    /// File that keeps what control planes have sent, without secrets: a restart serves it until they answer
    #[arg(long, value_name = "FILE")]
    snapshot_path: Option<String>,
    /// Seconds that shutting down lets requests run
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    drain_time_s: u32,
    /// Whether draining spreads its closes over the drain time
    #[arg(long, value_enum, default_value_t)]
    drain_strategy: DrainStrategy,
    /// Milliseconds after which access logs are written out
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 10_000)]
    file_flush_interval_msec: u32,
    /// KiB of access log that are written out at once
    #[arg(long, value_name = "KIB", default_value_t = 64)]
    file_flush_min_size_kb: u32,
    /// Unknown fields in the bootstrap are warnings instead of errors
    #[arg(long)]
    allow_unknown_static_fields: bool,
    /// Old name of --allow-unknown-static-fields
    #[arg(long)]
    allow_unknown_fields: bool,
    /// Unknown fields in dynamic resources are errors
    #[arg(long)]
    reject_unknown_dynamic_fields: bool,
    /// Unknown fields in dynamic resources are not reported
    #[arg(long)]
    ignore_unknown_dynamic_fields: bool,
    /// Deprecated fields are not reported
    #[arg(long)]
    skip_deprecated_logs: bool,
    /// node.cluster where the bootstrap has none
    #[arg(long, value_name = "NAME")]
    service_cluster: Option<String>,
    /// node.id where the bootstrap has none
    #[arg(long, value_name = "NAME")]
    service_node: Option<String>,
    /// node.locality.zone where the bootstrap has none
    #[arg(long, value_name = "NAME")]
    service_zone: Option<String>,
    /// Tag that every statistic carries, repeatable
    #[arg(long, value_name = "NAME:VALUE")]
    stats_tag: Vec<String>,
    /// Shown in /server_info; there is no hot restart
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    restart_epoch: u32,
    /// Shown in /server_info; there is no hot restart
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    base_id: u32,
    /// Accepted without effect: there is no hot restart
    #[arg(long, value_name = "FILE")]
    base_id_path: Option<String>,
    /// Accepted without effect: there is no hot restart
    #[arg(long)]
    use_dynamic_base_id: bool,
    /// Accepted without effect: there is no hot restart
    #[arg(long)]
    disable_hot_restart: bool,
    /// Accepted without effect: there is no hot restart
    #[arg(long)]
    skip_hot_restart_parent_stats: bool,
    /// Accepted without effect: there is no hot restart
    #[arg(long)]
    skip_hot_restart_on_no_parent: bool,
    /// Accepted without effect: there is no hot restart
    #[arg(long, value_name = "SECONDS")]
    parent_shutdown_time_s: Option<u32>,
    /// Accepted without effect: there is no hot restart
    #[arg(long, value_name = "FILE")]
    socket_path: Option<String>,
    /// Accepted without effect: there is no hot restart
    #[arg(long, value_name = "MODE")]
    socket_mode: Option<String>,
    /// Prints `disabled`: there is no hot restart
    #[arg(long)]
    hot_restart_version: bool,
    /// Family of the address that stands for this machine
    #[arg(long, value_enum, default_value_t)]
    local_address_ip_version: IpVersion,
    /// Accepted without effect: the operating system decides on core dumps
    #[arg(long)]
    enable_core_dump: bool,
    /// Accepted without effect: workers follow the CPUs that the process may use
    #[arg(long)]
    cpuset_threads: bool,
    /// Accepted without effect: workers share no locks
    #[arg(long)]
    enable_mutex_tracing: bool,
    /// Accepted without effect: extensions are part of the program
    #[arg(long, value_name = "LIST")]
    disable_extensions: Option<String>,
    /// Print which field of the API is honoured, without effect or refused, and end
    #[arg(long)]
    print_compatibility: bool,
}

/// CPU numbers from `0-3,6`, in the order given.
fn cpus(text: &str) -> Option<Vec<usize>> {
    let mut cpus = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if first > last || last >= CPU_COUNT_MAX {
            return None;
        }
        for cpu in first..=last {
            if !cpus.contains(&cpu) {
                cpus.push(cpu);
            }
        }
    }
    Some(cpus)
}

fn wrong(flag: &str, value: &str, wanted: &str) -> UsageError {
    UsageError::Wrong(format!("{flag}: `{value}` is not {wanted}"))
}

/// clap's finding in one line of ours.
fn explain(error: &clap::Error) -> UsageError {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(texts)) => Some(texts.join(", ")),
        _ => None,
    };
    let flag = context(ContextKind::InvalidArg).unwrap_or_default();
    let flag = flag.split(' ').next().unwrap_or_default();
    let value = context(ContextKind::InvalidValue);
    let line = match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => return UsageError::Show(error.to_string()),
        ErrorKind::UnknownArgument => {
            let name = flag.split('=').next().unwrap_or_default();
            let command = Flags::command();
            let known = command.get_arguments().filter_map(clap::Arg::get_long);
            match torus_xds::diagnostic::nearest(name.trim_start_matches('-'), known) {
                Some(near) if name.starts_with("--") => format!("unknown flag {name}; did you mean --{near}?"),
                _ if name.starts_with('-') => format!("unknown flag {name}; --help lists all flags"),
                _ => format!("`{name}` is not a flag; a bootstrap file is given with -c FILE"),
            }
        }
        ErrorKind::InvalidValue if value.as_ref().is_none_or(String::is_empty) => format!("{flag} needs a value"),
        ErrorKind::InvalidValue => {
            let known = context(ContextKind::ValidValue).unwrap_or_default();
            format!("{flag}: `{}` is none of {known}", value.unwrap_or_default())
        }
        ErrorKind::ValueValidation => format!("{flag}: `{}` is not a number in range", value.unwrap_or_default()),
        ErrorKind::ArgumentConflict => format!("{flag} is given twice"),
        _ => error.to_string().lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned(),
    };
    UsageError::Wrong(line)
}

/// More CPUs than any machine has; bounds what a range expands to.
const CPU_COUNT_MAX: usize = 8192;
