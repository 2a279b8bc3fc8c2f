//! What a run found, in the form that files and the screen are made of.

pub mod files;
pub mod html;
mod plot;
pub mod text;

use std::path::Path;
use std::time::UNIX_EPOCH;

use serde::Serialize;

use crate::distributed::Remote;
use crate::environment::{self, Environment};
use crate::record::{Cause, Record, Times};
use crate::run::execute::{Outcome, Point};
use crate::run::find::Found;
use crate::run::setup::{Options, Setup};
use crate::slo::{Judged, Measure};
use crate::verdict::{self, Evidence, Verdict};
use crate::worker::Load;

/// Name and version of the JSON form; a field that changes its meaning changes the version.
const SCHEMA: &str = "torus-load.run.v1";
/// Percentiles that are always reported.
pub const PERCENTILES: [f64; 8] = [50.0, 75.0, 90.0, 95.0, 99.0, 99.9, 99.99, 100.0];

/// The whole report.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub schema: &'static str,
    pub version: &'static str,
    pub target: String,
    /// Where there are several, each for itself.
    pub targets: Vec<TargetSection>,
    pub load: LoadSection,
    pub verdict: Verdict,
    pub objective: Vec<Judged>,
    pub rates: Rates,
    pub requests: Requests,
    /// From the intended send to the last byte; in nanoseconds, as are all times.
    pub response_time: Distribution,
    /// From the write to the last byte.
    pub service_time: Distribution,
    /// From the intended send to the write.
    pub schedule_lag: Distribution,
    /// The lag of requests that found a connection free.
    pub release_error: Distribution,
    pub phases: Phases,
    /// Response times by class of the status.
    pub classes: Vec<Class>,
    pub little: Little,
    pub workers: Vec<WorkerUsage>,
    pub target_usage: Option<TargetUsage>,
    pub series: Vec<SeriesPoint>,
    /// With `--find-max`; all else is then of the last try.
    pub search: Option<Found>,
    /// Machines that sent, where it was not this one.
    pub remote_workers: Vec<Remote>,
    /// Where the run was made, or coordinated.
    pub environment: Environment,
    /// When measuring began, in seconds since 1970.
    pub began: f64,
    #[serde(skip)]
    pub record: Record,
    #[serde(skip)]
    pub points: Vec<Point>,
}

/// One of several targets.
#[derive(Clone, Debug, Serialize)]
pub struct TargetSection {
    pub target: String,
    pub protocol: &'static str,
    pub weight: f64,
    pub connections: usize,
    pub sent: u64,
    pub succeeded: u64,
    pub failed: u64,
    pub response_time: Distribution,
    pub service_time: Distribution,
}

#[derive(Clone, Debug, Serialize)]
pub struct LoadSection {
    /// `open` or `closed`.
    pub model: &'static str,
    /// `HTTP/1.1`, `HTTP/2`, `gRPC`, `WebSocket` or `TCP`.
    pub protocol: &'static str,
    pub tls: bool,
    pub connections: usize,
    /// Requests that a connection may have in flight.
    pub streams: usize,
    pub requests_per_connection: Option<u64>,
    /// Connections that are opened anew, a second.
    pub connect_rate: Option<f64>,
    pub threads: usize,
    pub pinned_cores: Vec<usize>,
    pub spin: bool,
    pub timeout: u64,
    pub warm_up: u64,
    pub measured: u64,
    pub seed: u64,
}

/// A second.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Rates {
    /// What the schedule asks for in the mean of the measured time; none in closed loop.
    pub asked: Option<f64>,
    pub planned: f64,
    pub sent: f64,
    pub completed: f64,
    pub bytes_received: f64,
    /// Messages of gRPC replies.
    pub messages_received: f64,
}

#[derive(Clone, Debug, Serialize)]
pub struct Requests {
    pub planned: u64,
    pub sent: u64,
    pub succeeded: u64,
    pub failed: u64,
    pub unsent: u64,
    pub blocked: u64,
    pub timed_out: u64,
    pub error_share: f64,
    pub errors: Vec<ErrorCount>,
    pub connections_opened: u64,
    /// Opened anew because the load asks for it, and those that could not be.
    pub renewed: u64,
    pub renewals_failed: u64,
    pub rewritten: u64,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct ErrorCount {
    pub cause: Cause,
    pub count: u64,
}

/// A distribution in short, in nanoseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Distribution {
    pub count: u64,
    pub min: u64,
    pub mean: f64,
    pub deviation: f64,
    pub max: u64,
    pub percentiles: Vec<(f64, u64)>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Phases {
    pub connect: Distribution,
    pub tls: Distribution,
    pub upgrade: Distribution,
    pub first_byte: Distribution,
    pub body: Distribution,
}

#[derive(Clone, Debug, Serialize)]
pub struct Class {
    /// 1 for 1xx, and so on.
    pub class: usize,
    pub response_time: Distribution,
}

/// Little's law: requests in flight are rate times time in the system.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Little {
    pub in_flight: f64,
    pub rate_times_service: f64,
}

/// Shares of a core.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct WorkerUsage {
    pub cpu: f64,
    /// What of it was waiting for the moment of a send.
    pub spun: f64,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct TargetUsage {
    /// In microseconds.
    pub user: u64,
    pub system: u64,
    pub cpu_us_per_request: f64,
    pub user_us_per_request: f64,
    pub cores: f64,
    pub memory_peak: u64,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct SeriesPoint {
    /// In nanoseconds since the start.
    pub from: u64,
    pub to: u64,
    pub asked: f64,
    pub planned: f64,
    pub sent: f64,
    pub completed: f64,
    pub errors: u64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p999: u64,
    pub max: u64,
    /// Share of a core that the target used.
    pub target_cpu: f64,
}

impl Distribution {
    pub fn of(times: &Times) -> Distribution {
        Distribution {
            count: times.count(),
            min: times.min(),
            mean: times.mean(),
            deviation: times.deviation(),
            max: times.max(),
            percentiles: PERCENTILES.iter().map(|&percentile| (percentile, times.percentile(percentile))).collect(),
        }
    }

    /// The time at `percentile`, which is one of [`PERCENTILES`].
    pub fn at(&self, percentile: f64) -> u64 {
        let found = self.percentiles.iter().find(|(at, _)| *at == percentile);
        found.map(|(_, value)| *value).unwrap_or_default()
    }
}

impl Report {
    /// The report on `outcome`.
    pub fn new(setup: &Setup, options: &Options, load: &Load, outcome: &Outcome) -> Report {
        let record = &outcome.record;
        let counts = record.counts;
        // The schedule's own length: replies to its last requests come a little later and must not lower the rate.
        let scheduled = load.end() - load.measured_from();
        let measured = if outcome.interrupted { outcome.wall.min(scheduled) } else { scheduled };
        let seconds = (measured as f64 / 1e9).max(1e-9);
        let a_second = |count: u64| count as f64 / seconds;
        let little = Little {
            in_flight: record.in_flight_area as f64 / measured.max(1) as f64,
            rate_times_service: record.service_sum as f64 / measured.max(1) as f64,
        };
        let workers = outcome.workers.iter().map(|used| {
            let share = |part: u64| part as f64 / used.wall.max(1) as f64;
            WorkerUsage { cpu: share(used.cpu), spun: share(used.spun.min(used.cpu)) }
        });
        let workers: Vec<WorkerUsage> = workers.collect();
        let verdict = verdict::judge(&Evidence {
            closed: matches!(load, Load::Closed { .. }),
            interrupted: outcome.interrupted,
            lost: outcome.lost.clone(),
            planned: counts.planned,
            sent: counts.sent,
            done: counts.done(),
            succeeded: counts.succeeded,
            blocked: counts.blocked,
            release_p99: record.release.percentile(99.0),
            service_p50: record.service.percentile(50.0),
            service_mean: record.service.mean(),
            service_min: record.service.min(),
            worker_shares: workers.iter().map(|worker| worker.cpu - worker.spun).collect(),
            connections: setup.all().map(|setup| setup.connections.saturating_mul(setup.streams) as u64).sum(),
            in_flight: little.in_flight,
            in_flight_by_little: little.rate_times_service,
        });
        let objective = options.slo.clone().unwrap_or_default().judge(|measure| match measure {
            Measure::Percentile(percentile) => record.response.percentile(percentile) as f64,
            Measure::Mean => record.response.mean(),
            Measure::Max => record.response.max() as f64,
            Measure::Errors => record.error_share(),
        });
        let asked = match load {
            Load::Open(plan) => {
                let area: f64 =
                    plan.phases.iter().filter(|phase| phase.measured).map(crate::plan::Phase::expected).sum();
                Some(area / (scheduled as f64 / 1e9).max(1e-9))
            }
            Load::Closed { .. } => None,
        };
        let class =
            |(index, times): (usize, &Times)| Class { class: index + 1, response_time: Distribution::of(times) };
        Report {
            schema: SCHEMA,
            version: env!("CARGO_PKG_VERSION"),
            target: setup.all().map(|setup| &*setup.target.url).collect::<Vec<_>>().join(" "),
            targets: if setup.others.is_empty() { Vec::new() } else { target_sections(setup, outcome) },
            load: LoadSection {
                model: if asked.is_some() { "open" } else { "closed" },
                protocol: setup.protocol.words(),
                tls: setup.tls.is_some(),
                connections: setup.all().map(|setup| setup.connections).sum(),
                streams: setup.streams,
                requests_per_connection: setup.requests_per_connection,
                connect_rate: options.connect_rate,
                threads: setup.threads * outcome.remotes.len().max(1),
                pinned_cores: setup.cores.clone(),
                spin: setup.spin,
                timeout: setup.timeout.as_nanos() as u64,
                warm_up: load.measured_from(),
                measured,
                seed: options.seed,
            },
            verdict,
            objective,
            rates: Rates {
                asked,
                planned: a_second(counts.planned),
                sent: a_second(counts.sent),
                completed: a_second(counts.succeeded),
                bytes_received: a_second(counts.bytes_received),
                messages_received: a_second(counts.messages_received),
            },
            requests: Requests {
                planned: counts.planned,
                sent: counts.sent,
                succeeded: counts.succeeded,
                failed: counts.failed(),
                unsent: counts.unsent,
                blocked: counts.blocked,
                timed_out: counts.of(Cause::Timeout),
                error_share: record.error_share(),
                errors: Cause::ALL.iter().map(|&cause| ErrorCount { cause, count: counts.of(cause) }).collect(),
                connections_opened: counts.connections,
                renewed: counts.renewed,
                renewals_failed: counts.renewals_failed,
                rewritten: counts.rewritten,
            },
            response_time: Distribution::of(&record.response),
            service_time: Distribution::of(&record.service),
            schedule_lag: Distribution::of(&record.lag),
            release_error: Distribution::of(&record.release),
            phases: Phases {
                connect: Distribution::of(&record.connect),
                tls: Distribution::of(&record.tls),
                upgrade: Distribution::of(&record.upgrade),
                first_byte: Distribution::of(&record.first_byte),
                body: Distribution::of(&record.body),
            },
            classes: record
                .classes
                .iter()
                .enumerate()
                .map(class)
                .filter(|class| class.response_time.count > 0)
                .collect(),
            little,
            workers,
            target_usage: outcome.target.map(|usage| {
                let done = counts.done().max(1) as f64;
                TargetUsage {
                    user: usage.user,
                    system: usage.system,
                    cpu_us_per_request: (usage.user + usage.system) as f64 / done,
                    user_us_per_request: usage.user as f64 / done,
                    cores: (usage.user + usage.system) as f64 / 1e6 / seconds,
                    memory_peak: usage.memory,
                }
            }),
            series: outcome.series.iter().map(|point| series_point(point, load)).collect(),
            search: None,
            remote_workers: outcome.remotes.clone(),
            environment: environment::gather(Path::new("/")),
            began: outcome.began.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64(),
            record: record.clone(),
            points: outcome.series.clone(),
        }
    }

    pub fn json(&self) -> String {
        // Plain structs of numbers and strings always have a JSON form.
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }
}

fn target_sections(setup: &Setup, outcome: &Outcome) -> Vec<TargetSection> {
    let section = |(setup, record): (&Setup, &Record)| TargetSection {
        target: setup.target.url.clone(),
        protocol: setup.protocol.words(),
        weight: setup.weight,
        connections: setup.connections,
        sent: record.counts.sent,
        succeeded: record.counts.succeeded,
        failed: record.counts.failed(),
        response_time: Distribution::of(&record.response),
        service_time: Distribution::of(&record.service),
    };
    setup.all().zip(&outcome.by_target).map(section).collect()
}

fn series_point(point: &Point, load: &Load) -> SeriesPoint {
    let length = point.to.saturating_sub(point.from).max(1);
    let seconds = length as f64 / 1e9;
    let a_second = |count: u64| count as f64 / seconds;
    SeriesPoint {
        from: point.from,
        to: point.to,
        asked: match load {
            Load::Open(plan) => plan.rate_at(point.from + length / 2),
            Load::Closed { .. } => 0.0,
        },
        planned: a_second(point.counts.planned),
        sent: a_second(point.counts.sent),
        completed: a_second(point.counts.succeeded),
        errors: point.counts.failed(),
        p50: point.percentile(50.0),
        p90: point.percentile(90.0),
        p99: point.percentile(99.0),
        p999: point.percentile(99.9),
        max: point.percentile(100.0),
        target_cpu: point.target_cpu as f64 / 1e6 / seconds,
    }
}
