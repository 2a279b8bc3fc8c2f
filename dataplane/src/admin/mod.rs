//! The admin server: what an operator asks of a running proxy, on the config thread, in Envoy's words.
//!
//! Source: Envoy, "Administration interface"; bodies and status codes checked against Envoy 1.40. Paths that change something take
//! POST alone (405 otherwise), the others any method.

pub mod server;
pub mod socket;

mod access;
mod clusters;
mod config_dump;
mod endpoints;
mod facts;
mod index;
mod listeners;
mod logging;
mod process;
mod request;
mod stats;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tokio::sync::mpsc;

pub use config_dump::ConfigDump;
pub use facts::Facts;
pub use socket::{AdminSocket, BindError};

use crate::config::discovery::records::Records;
use crate::config::lifecycle::Lifecycle;
use crate::config::snapshot::Snapshot;
use crate::telemetry::access_log::sink::LogSinks;
use crate::telemetry::access_log::{AccessLog, LogBuffers};
use crate::telemetry::program_log::LogControl;
use crate::telemetry::registry::Registry;
use crate::telemetry::server_stats::ServerStats;
use crate::telemetry::view::StatsView;

/// What the config thread is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// `/quitquitquit`
    Quit,
    /// `/drain_listeners`
    DrainListeners {
        /// Give connections the drain time before listeners stop.
        graceful: bool,
        /// Only those with inbound traffic.
        inbound_only: bool,
        /// Never stop the listeners.
        keep_listeners: bool,
    },
    /// The phase changed; workers have to look.
    PhaseChanged,
}

/// Everything that requests to the admin server read and change.
pub struct Admin {
    /// All stats.
    pub registry: Arc<Registry>,
    /// How stats are shown.
    pub stats: Mutex<StatsView>,
    /// Stats that are measured when they are read.
    pub server_stats: ServerStats,
    /// The snapshot published last.
    pub snapshot: Mutex<Arc<Snapshot>>,
    /// What was discovered.
    pub records: Mutex<Arc<Mutex<Records>>>,
    /// Where the process is in its life.
    pub lifecycle: Arc<Lifecycle>,
    /// Access-log files.
    pub log_sinks: Arc<LogSinks>,
    /// The program's own log; absent in tests.
    pub log: Option<LogControl>,
    /// To the config thread.
    pub commands: mpsc::Sender<Command>,
    /// What does not change.
    pub facts: Facts,
    /// Where requests to this server are logged.
    pub access_logs: Vec<AccessLog>,
    /// Their lines on the way to the writer.
    pub log_buffers: Mutex<LogBuffers>,
}

impl Admin {
    /// The snapshot published last.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        lock(&self.snapshot).clone()
    }

    /// `LIVE`, `DRAINING`, `PRE_INITIALIZING` or `INITIALIZING`. Source: envoy.admin.v3.ServerInfo.State.
    pub fn state(&self) -> &'static str {
        let phase = self.lifecycle.phase();
        match () {
            () if phase.is_warming() => "PRE_INITIALIZING",
            () if phase.health_failed() || phase.is_leaving() => "DRAINING",
            () => "LIVE",
        }
    }

    fn stats_view(&self) -> MutexGuard<'_, StatsView> {
        lock(&self.stats)
    }

    /// Hands lines of the server's own access log to the writer.
    pub fn flush_logs(&self) {
        lock(&self.log_buffers).flush();
    }

    /// Brings stats up to date that are measured when they are read.
    pub fn refresh_stats(&self) {
        let counts = self.with_records(|records| records.counts);
        self.server_stats.refresh(&self.lifecycle, &self.snapshot(), counts);
    }

    /// Shows `read` what was discovered.
    fn with_records<T>(&self, read: impl FnOnce(&Records) -> T) -> T {
        let records = lock(&self.records).clone();
        let records = lock(&records);
        read(&records)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `2026-11-23T18:00:47.488Z`, as protobuf's JSON writes a Timestamp with milliseconds.
fn timestamp(time: SystemTime) -> String {
    let since_epoch = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (year, month, day) = crate::telemetry::program_log::civil_date(since_epoch.as_secs() / 86_400);
    let second = since_epoch.as_secs() % 86_400;
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
        second / 3600,
        second / 60 % 60,
        second % 60,
        since_epoch.subsec_millis()
    )
}

#[cfg(test)]
mod tests;
