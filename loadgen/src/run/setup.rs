//! The flags of `run`, and what they mean once they have been checked.

use std::fs;
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::data::{BadTable, Table};
use super::execute::Point;
use super::grpc::{self, GrpcError, Method};
use super::request::{self, Call, Protocol};
use super::target::{Kind, Target, TargetError};
use super::watch::{Watch, WatchError};
use crate::plan::parse::{self, BadPlan};
use crate::plan::{Phase, Plan, Shape};
use crate::quantity;
use crate::slo::Objective;
use crate::tls::{Tls, TlsError, TlsOptions};
use crate::worker::reply::Checks;
use crate::worker::{Load, Request};

/// Descriptors beside the connections: timers, rings, files of the report.
const SPARE_DESCRIPTORS: u64 = 64;

/// Flags of `torus-load run`.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Where to send: `http://HOST[:PORT][/PATH]`, or https; `ws`, `wss`, `tcp` or `tls` where messages are echoed. Several share
    /// rate and connections.
    #[arg(required = true, value_name = "TARGET")]
    pub targets: Vec<String>,
    /// Shares of the targets, as 3,1; equal ones by default.
    #[arg(long, value_name = "WEIGHTS", value_delimiter = ',', value_parser = quantity::weight)]
    pub weights: Vec<f64>,
    /// Requests a second, all workers together: 500, 2.5k, 1M.
    #[arg(short, long, value_parser = quantity::rate, default_value = "1000", value_name = "RATE",
          conflicts_with_all = ["ramp", "steps", "plan", "closed"])]
    pub rate: f64,
    /// How long to measure; with --ramp the whole ramp, with --steps each step.
    #[arg(short, long, value_parser = quantity::duration, default_value = "10s", value_name = "TIME")]
    pub duration: Duration,
    /// Evenly spaced requests, or independent ones.
    #[arg(long, value_enum, default_value_t = Arrivals::Constant)]
    pub arrivals: Arrivals,
    /// A rate that rises or falls steadily, as 100:5k.
    #[arg(long, value_name = "FROM:TO", conflicts_with_all = ["steps", "plan", "closed"])]
    pub ramp: Option<String>,
    /// Rates one after the other, as 1k,2k,4k.
    #[arg(long, value_name = "RATES", value_delimiter = ',', value_parser = quantity::rate, conflicts_with_all = ["plan", "closed"])]
    pub steps: Vec<f64>,
    /// A file with one phase a line: constant, poisson, ramp, pause, at.
    #[arg(long, value_name = "FILE", conflicts_with = "closed")]
    pub plan: Option<PathBuf>,
    /// Of the random arrivals.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seed: u64,
    /// Fixed concurrency instead of a schedule: each connection sends when its last reply came. Hides stalls of the target.
    #[arg(long)]
    pub closed: bool,
    /// Run before measuring, at the first rate.
    #[arg(long, value_parser = quantity::duration, default_value = "1s", value_name = "TIME")]
    pub warmup: Duration,
    /// Connections, all workers together; a request that finds them all busy waits, and the wait counts.
    #[arg(short, long, default_value_t = 64, value_name = "N")]
    pub connections: usize,
    /// Version of HTTP: what a TLS server chooses of both, and 1.1 without TLS, unless told.
    #[arg(long, value_enum, default_value_t = Version::Auto, value_name = "VERSION")]
    pub http: Version,
    /// Requests that an HTTP/2 connection may have in flight; what the server allows less waits in the connection.
    #[arg(long, default_value_t = 32, value_name = "N")]
    pub streams: usize,
    /// Call a gRPC method: the path is /PACKAGE.SERVICE/METHOD, the body one message, and success what the reply's status says.
    #[arg(long)]
    pub grpc: bool,
    /// Message of a gRPC call as JSON; several values, one behind the other, for methods that take a stream. Types come from
    /// --descriptor-set, or from the server's reflection.
    #[arg(long, value_name = "JSON", requires = "grpc", group = "json_messages", conflicts_with_all = ["body", "body_file"])]
    pub message: Option<String>,
    /// File that holds the messages.
    #[arg(long, value_name = "FILE", requires = "grpc", group = "json_messages", conflicts_with_all = ["body", "body_file"])]
    pub message_file: Option<PathBuf>,
    /// The messages of each call, this many times over.
    #[arg(long, value_name = "N", default_value_t = 1, requires = "json_messages")]
    pub message_repeat: usize,
    /// Types of the messages, as protoc --include_imports --descriptor_set_out=FILE writes them.
    #[arg(long, value_name = "FILE", requires = "json_messages")]
    pub descriptor_set: Option<PathBuf>,
    #[command(flatten)]
    pub tls: TlsOptions,
    /// Requests that a connection carries before it is closed; 1 opens one for each request.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub requests_per_connection: Option<u64>,
    /// Connections that are closed and opened anew, a second, while requests go on; all workers together.
    #[arg(long, value_parser = quantity::rate, value_name = "RATE")]
    pub connect_rate: Option<f64>,
    /// Send from other machines, where `torus-load worker` runs, instead of from here: their addresses, as 10.0.0.2:7080,10.0.0.3:7080.
    #[arg(long, value_name = "ADDRESSES", value_delimiter = ',')]
    pub workers: Vec<String>,
    /// Worker threads, each on a core of its own; on every machine with --workers.
    #[arg(short, long, default_value_t = 1, value_name = "N")]
    pub threads: usize,
    /// How long a reply may take after the request was written.
    #[arg(long, value_parser = quantity::duration, default_value = "5s", value_name = "TIME")]
    pub timeout: Duration,
    /// Never sleep between requests: the most exact moments, a whole core for each thread.
    #[arg(long)]
    pub spin: bool,
    /// How long before a send the worker stops sleeping.
    #[arg(long, value_parser = quantity::duration, default_value = "80us", value_name = "TIME")]
    pub spin_margin: Duration,
    /// Method of the requests.
    #[arg(short = 'X', long, default_value = "GET")]
    pub method: String,
    /// One more field, as `Name: value`; may be repeated.
    #[arg(short = 'H', long, value_name = "FIELD")]
    pub header: Vec<String>,
    /// Body of the requests; the message that WebSocket and TCP send and expect back.
    #[arg(long, value_name = "TEXT", conflicts_with = "body_file")]
    pub body: Option<String>,
    /// File that holds the body of the requests.
    #[arg(long, value_name = "FILE")]
    pub body_file: Option<PathBuf>,
    /// Rows of a CSV file: each request takes the next one, and its values stand for `{{column}}` in path, fields and body.
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,
    /// Statuses that are successes, as 200,204; any below 400 by default.
    #[arg(long, value_delimiter = ',', value_name = "STATUSES")]
    pub expect_status: Vec<u16>,
    /// Field that a success has, as `Name` or `Name: value`; may be repeated.
    #[arg(long, value_name = "FIELD")]
    pub expect_header: Vec<String>,
    /// Text that the body of a success holds; with WebSocket the message, which need not be the echo then.
    #[arg(long, value_name = "TEXT")]
    pub expect_body: Option<String>,
    /// Objective of the response times, as p99<1ms,p99.9<5ms,errors<0.01%; exit code 2 when it is missed.
    #[arg(long, value_name = "OBJECTIVE")]
    pub slo: Option<Objective>,
    /// Search the highest rate that meets --slo, beginning at --rate; each try lasts --warmup and --duration.
    #[arg(long, requires = "slo", conflicts_with_all = ["ramp", "steps", "plan", "closed"])]
    pub find_max: bool,
    /// Process whose processor time and memory are reported.
    #[arg(long, value_name = "PID", conflicts_with = "watch_cgroup")]
    pub watch_pid: Option<u32>,
    /// Control group (its folder) whose processor time and memory are reported.
    #[arg(long, value_name = "FOLDER")]
    pub watch_cgroup: Option<PathBuf>,
    /// Write the report as JSON to this file; `-` for standard output, instead of the text.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write a time series as CSV.
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,
    /// Write the percentiles of the response time as HdrHistogram's plotter reads them.
    #[arg(long, value_name = "FILE")]
    pub hgrm: Option<PathBuf>,
    /// Write the response times of each second as an interval log of HdrHistogram (version 2).
    #[arg(long, value_name = "FILE")]
    pub hlog: Option<PathBuf>,
    /// Write a page with plots that opens without a network.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// While the run lasts, print a line a second, as for a log, and do not draw on the terminal.
    #[arg(long)]
    pub plain: bool,
    /// Print nothing while the run lasts.
    #[arg(short, long)]
    pub quiet: bool,
}

/// Which version of HTTP.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    Auto,
    #[value(name = "1.1")]
    Http1,
    #[value(name = "2")]
    Http2,
}

/// How arrivals are spaced.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrivals {
    Constant,
    Poisson,
}

/// Flags that have been checked.
#[derive(Clone, Debug)]
pub struct Setup {
    pub target: Target,
    pub method: String,
    pub protocol: Protocol,
    pub tls: Option<Tls>,
    pub request: Request,
    pub checks: Arc<Checks>,
    pub connections: usize,
    /// Requests that each connection may have in flight.
    pub streams: usize,
    /// The same, if it were HTTP/2.
    streams_asked: usize,
    pub requests_per_connection: Option<u64>,
    /// Connections opened anew, a second, all workers together.
    pub connect_rate: Option<f64>,
    pub threads: usize,
    /// Cores that the workers are pinned to; none when there are fewer than workers.
    pub cores: Vec<usize>,
    pub timeout: Duration,
    pub spin: bool,
    pub spin_margin: Duration,
    pub watch: Option<Watch>,
    pub quiet: bool,
    /// Draws on the terminal while it lasts.
    pub is_live: bool,
    /// Of this target among all.
    pub weight: f64,
    /// Further targets, which share the threads.
    pub others: Vec<Setup>,
}

/// Why the flags cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error(transparent)]
    Target(#[from] TargetError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Watch(#[from] WatchError),
    #[error(transparent)]
    Grpc(#[from] GrpcError),
    #[error("{path}: {source}")]
    File { path: String, source: io::Error },
    #[error("{path}:{error}")]
    Plan { path: String, error: BadPlan },
    #[error("{path}:{error}")]
    Data { path: String, error: BadTable },
    #[error("`{{{{{name}}}}}`: {path} has no such column; it has: {columns}")]
    Column { name: String, path: String, columns: String },
    #[error("--weights: {weights} for {targets} targets; as many are wanted")]
    Weights { weights: usize, targets: usize },
    #[error("--ramp {0}: two rates are wanted; try: --ramp 100:5k")]
    Ramp(String),
    #[error("--{flag} `{text}` is no field; try: --{flag} 'X-Name: value'")]
    Field { flag: &'static str, text: String },
    #[error("--method `{0}` is no method; try: GET, POST")]
    Method(String),
    #[error("--header `{0}`: HTTP/2 has no such field (RFC 9113 section 8.2.2); leave it out")]
    ConnectionField(String),
    #[error("the target `{0}` cannot be asked with HTTP/2")]
    Uri(String),
    #[error("--grpc needs HTTP/2; leave out --http 1.1")]
    GrpcVersion,
    #[error("{0} does not speak HTTP/2: it did not choose it when it was offered; try: --http 1.1")]
    NoHttp2(String),
    #[error("--{flag} has no meaning for {scheme}:// targets; leave it out")]
    Meaningless { flag: &'static str, scheme: String },
    #[error("{0}: an echo of no bytes cannot be waited for; give a --body")]
    NoEcho(String),
    #[error("--{0} is there for https://, wss:// and tls:// targets alone")]
    NoTls(&'static str),
    #[error("--{0} must be at least 1")]
    Zero(&'static str),
    #[error("--{0} must be longer than nothing")]
    NoTime(&'static str),
    #[error(
        "{wanted} connections need {needed} file descriptors, {allowed} are allowed; try: ulimit -n {needed}, or --connections {fewer}"
    )]
    Descriptors { wanted: usize, needed: u64, allowed: u64, fewer: u64 },
}

impl Setup {
    /// Checks `options`, resolves the targets and tries a connection to each.
    pub fn new(options: &Options) -> Result<Setup, SetupError> {
        let count = options.targets.len();
        let weights = if options.weights.is_empty() { vec![1.0; count] } else { options.weights.clone() };
        if weights.len() != count {
            return Err(SetupError::Weights { weights: weights.len(), targets: count });
        }
        let total: f64 = weights.iter().sum();
        let mut all = Vec::new();
        for (target, weight) in options.targets.iter().zip(&weights) {
            // Every thread needs a connection to every target.
            let share = (options.connections as f64 * weight / total).round() as usize;
            let connections = if count == 1 {
                options.connections
            } else {
                share.max(options.threads * options.workers.len().max(1))
            };
            let setup = Setup::of_target(options, target, *weight, connections)?;
            // A share of the renewals as of all else.
            let connect_rate = setup.connect_rate.map(|rate| rate * weight / total);
            all.push(Setup { connect_rate, ..setup });
        }
        if options.workers.is_empty() {
            descriptors(all.iter().map(|setup| setup.connections).sum())?;
        }
        let mut all = all.into_iter();
        let first = all.next().ok_or_else(|| TargetError::NoUrl(String::new()))?;
        Ok(Setup { others: all.collect(), ..first })
    }

    /// Another machine chose `protocol` with this target.
    pub(crate) fn chose(&mut self, protocol: Option<Protocol>) {
        self.protocol = protocol.unwrap_or(self.protocol);
        let is_http2 = matches!(self.protocol, Protocol::Http2 | Protocol::Grpc);
        self.streams = if is_http2 { self.streams_asked } else { 1 };
    }

    /// Every target with what it is asked.
    pub fn all(&self) -> impl Iterator<Item = &Setup> {
        std::iter::once(self).chain(&self.others)
    }

    fn of_target(options: &Options, url: &str, weight: f64, connections: usize) -> Result<Setup, SetupError> {
        for (flag, value) in
            [("connections", options.connections), ("threads", options.threads), ("streams", options.streams)]
        {
            if value == 0 {
                return Err(SetupError::Zero(flag));
            }
        }
        for (flag, value) in [("duration", options.duration), ("timeout", options.timeout)] {
            if value.is_zero() {
                return Err(SetupError::NoTime(flag));
            }
        }
        let watch = match (options.watch_pid, &options.watch_cgroup) {
            (Some(id), _) => Some(Watch::Process(id)),
            (None, Some(path)) => Some(Watch::Group(path.clone())),
            (None, None) => None,
        };
        if let Some(watch) = &watch {
            watch.usage()?;
        }
        let target = Target::parse(url)?;
        fits(options, &target)?;
        let offered = offered(options, &target)?;
        let parts = request::Parts::new(options, &target)?;
        let rows = match &options.data {
            Some(path) => parts.filled(&Table::read(path)?)?,
            None => vec![parts.clone()],
        };
        if !target.is_tls {
            let flags = [("cacert", options.tls.cacert.is_some()), ("cert", options.tls.cert.is_some())];
            if let Some((flag, _)) = flags.iter().find(|(_, is_given)| *is_given) {
                return Err(SetupError::NoTls(flag));
            }
        }
        let tls = if target.is_tls { Some(Tls::new(&options.tls, &target.host, offered)?) } else { None };
        let fields = options.expect_header.iter().map(|text| {
            let (name, value) = text.split_once(':').map_or((text.as_str(), None), |(name, value)| (name, Some(value)));
            (name.trim().to_ascii_lowercase(), value.map(|value| value.trim().to_owned()))
        });
        let checks = Checks {
            statuses: options.expect_status.clone(),
            fields: fields.collect(),
            body: options.expect_body.as_ref().map(|text| text.clone().into_bytes()),
        };
        // Other machines connect, and what they can reach this one need not.
        let is_here = options.workers.is_empty();
        let mut chosen = None;
        let mut target = target;
        if is_here {
            descriptors(connections)?;
            target = target.probe(options.timeout)?;
            chosen = tls.as_ref().map(|tls| target.shake_hands(tls, options.timeout)).transpose()?.flatten();
        }
        let is_http2 = match (options.grpc, options.http) {
            _ if target.kind != Kind::Http => false,
            (true, _) | (_, Version::Http2) => true,
            (_, Version::Http1) => false,
            (_, Version::Auto) => chosen.as_deref() == Some(b"h2"),
        };
        if is_here && is_http2 && tls.is_some() && chosen.as_deref() != Some(b"h2") {
            return Err(SetupError::NoHttp2(target.authority));
        }
        let protocol = match (target.kind, options.grpc, is_http2) {
            (Kind::WebSocket, ..) => Protocol::WebSocket,
            (Kind::Tcp, ..) => Protocol::Tcp,
            (_, true, _) => Protocol::Grpc,
            (_, _, true) => Protocol::Http2,
            _ => Protocol::Http1,
        };
        let tls = tls.map(|tls| match protocol {
            Protocol::Tcp => tls,
            _ => tls.offering(if is_http2 { b"h2" } else { b"http/1.1" }),
        });
        let request = match protocol {
            Protocol::Http2 | Protocol::Grpc => {
                let call = call(options, &target, tls.as_ref())?;
                Request::Http2(rows.iter().map(|row| row.http2(call.as_ref())).collect::<Result<_, _>>()?)
            }
            Protocol::Http1 => Request::Http1(rows.iter().map(|row| Arc::new(row.http1())).collect()),
            Protocol::Tcp => Request::Tcp(rows.iter().map(|row| Arc::new(row.echo())).collect()),
            Protocol::WebSocket => Request::WebSocket {
                upgrade: Arc::new(rows.first().unwrap_or(&parts).upgrade()),
                messages: rows.iter().map(|row| Arc::new(row.echo())).collect(),
            },
        };
        if target.kind == Kind::Tcp && rows.iter().any(|row| row.echo().is_empty()) {
            return Err(SetupError::NoEcho(target.url));
        }
        let threads = options.threads.min(connections);
        let allowed = core_affinity::get_core_ids().unwrap_or_default();
        let cores =
            if threads <= allowed.len() { allowed.iter().take(threads).map(|core| core.id).collect() } else { vec![] };
        Ok(Setup {
            target,
            method: options.method.clone(),
            protocol,
            tls,
            request,
            checks: Arc::new(checks),
            connections,
            streams: if is_http2 { options.streams } else { 1 },
            streams_asked: options.streams,
            requests_per_connection: options.requests_per_connection,
            connect_rate: options.connect_rate,
            threads,
            cores,
            timeout: options.timeout,
            spin: options.spin,
            spin_margin: options.spin_margin,
            watch,
            quiet: options.quiet,
            // A search would draw every try anew.
            is_live: !options.quiet && !options.plain && !options.find_max && std::io::stderr().is_terminal(),
            weight,
            others: Vec::new(),
        })
    }

    /// What is asked, in a line.
    pub(super) fn title(&self) -> String {
        let all = self.all().map(|setup| format!("{}  {}", setup.target.url, setup.protocol.words()));
        let connections: usize = self.all().map(|setup| setup.connections).sum();
        format!("{}  {connections} connections", all.collect::<Vec<_>>().join("  "))
    }

    /// One line about `point`, unless the user wants none.
    pub(super) fn progress(&self, point: &Point) {
        if self.quiet {
            return;
        }
        let seconds = (point.to.saturating_sub(point.from) as f64 / 1e9).max(1e-9);
        let counts = &point.counts;
        eprintln!(
            "{:6.1} s  planned {:.0}/s  sent {:.0}/s  done {:.0}/s  errors {}  p50 {}  p99 {}  max {}",
            point.to as f64 / 1e9,
            counts.planned as f64 / seconds,
            counts.sent as f64 / seconds,
            counts.succeeded as f64 / seconds,
            counts.failed(),
            quantity::nanoseconds(point.percentile(50.0)),
            quantity::nanoseconds(point.percentile(99.0)),
            quantity::nanoseconds(point.percentile(100.0)),
        );
    }
}

/// Sees that no flag asks for what the target's protocol does not have.
fn fits(options: &Options, target: &Target) -> Result<(), SetupError> {
    let http = [
        ("grpc", options.grpc),
        ("http", options.http != Version::Auto),
        ("method", options.method != "GET"),
        ("expect-status", !options.expect_status.is_empty()),
        ("expect-header", !options.expect_header.is_empty()),
    ];
    let heads = [("header", !options.header.is_empty()), ("expect-body", options.expect_body.is_some())];
    let (http, heads) = match target.kind {
        Kind::Http => (&[][..], &[][..]),
        Kind::WebSocket => (&http[..], &[][..]),
        Kind::Tcp => (&http[..], &heads[..]),
    };
    match http.iter().chain(heads).find(|(_, is_given)| *is_given) {
        None => Ok(()),
        Some((flag, _)) => {
            let scheme = target.url.split(':').next().unwrap_or_default().to_owned();
            Err(SetupError::Meaningless { flag, scheme })
        }
    }
}

/// What a gRPC call sends; nothing where none is to be made.
///
/// Errors: descriptors that cannot be had, or that do not have the method.
fn call(options: &Options, target: &Target, tls: Option<&Tls>) -> Result<Option<Call>, SetupError> {
    if !options.grpc {
        return Ok(None);
    }
    let place = match &options.message_file {
        Some(path) => path.display().to_string(),
        None if options.message.is_some() => "--message".to_owned(),
        None => return Ok(Some(Call::Encoded)),
    };
    let method = match &options.descriptor_set {
        Some(set) => Method::in_file(&target.path, set)?,
        // Other machines ask the server, and send what it says.
        None if !options.workers.is_empty() => return Ok(Some(Call::Encoded)),
        None => grpc::ask(target, tls, options.timeout)?,
    };
    Ok(Some(Call::Json { method, times: options.message_repeat, place }))
}

/// What a TLS server may choose of.
fn offered(options: &Options, target: &Target) -> Result<&'static [&'static [u8]], SetupError> {
    match (options.grpc, options.http) {
        _ if target.kind == Kind::WebSocket => Ok(&[b"http/1.1"]),
        _ if target.kind == Kind::Tcp => Ok(&[]),
        (true, Version::Http1) => Err(SetupError::GrpcVersion),
        (true, _) | (_, Version::Http2) => Ok(&[b"h2"]),
        (_, Version::Http1) => Ok(&[b"http/1.1"]),
        (_, Version::Auto) => Ok(&[b"h2", b"http/1.1"]),
    }
}

/// What `options` ask for, as a load.
///
/// Errors: a plan file that cannot be read or understood, or a ramp that is none.
pub fn load(options: &Options) -> Result<Load, SetupError> {
    let length = options.duration.as_nanos() as u64;
    let warm_up = options.warmup.as_nanos() as u64;
    if options.closed {
        return Ok(Load::Closed { warm_up, length });
    }
    let phase = |shape| Phase { shape, length, measured: true };
    let flat = |rate| match options.arrivals {
        Arrivals::Constant => Shape::Constant(rate),
        Arrivals::Poisson => Shape::Poisson(rate),
    };
    let plan = if let Some(path) = &options.plan {
        let name = path.display().to_string();
        let text = fs::read_to_string(path).map_err(|source| SetupError::File { path: name.clone(), source })?;
        parse::parse(&text, options.seed).map_err(|error| SetupError::Plan { path: name, error })?
    } else {
        let phases = if let Some(ramp) = &options.ramp {
            let bad = || SetupError::Ramp(ramp.clone());
            let (from, to) = ramp.split_once(':').ok_or_else(bad)?;
            let rate = |text: &str| quantity::rate(text.trim()).map_err(|_| bad());
            vec![phase(Shape::Ramp { from: rate(from)?, to: rate(to)? })]
        } else if options.steps.is_empty() {
            vec![phase(flat(options.rate))]
        } else {
            options.steps.iter().map(|rate| phase(flat(*rate))).collect()
        };
        Plan { phases, seed: options.seed }
    };
    Ok(Load::Open(Arc::new(plan.with_warm_up(warm_up))))
}

/// Sees that so many connections may be open, and raises the soft limit where it must.
fn descriptors(connections: usize) -> Result<(), SetupError> {
    let needed = connections as u64 + SPARE_DESCRIPTORS;
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= needed) {
        return Ok(());
    }
    let raised = limit.maximum.is_none_or(|maximum| maximum >= needed)
        && setrlimit(Resource::Nofile, Rlimit { current: Some(needed), maximum: limit.maximum }).is_ok();
    let allowed = limit.maximum.unwrap_or_default();
    let fewer = allowed.saturating_sub(SPARE_DESCRIPTORS);
    if raised { Ok(()) } else { Err(SetupError::Descriptors { wanted: connections, needed, allowed, fewer }) }
}
