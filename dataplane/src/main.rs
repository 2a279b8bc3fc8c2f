//! The proxy's program: flags, bootstrap, listening sockets, workers, config thread.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use torus_proxy::admin::{AdminSocket, Facts};
use torus_proxy::config::bootstrap::{self, Loaded};
use torus_proxy::config::flags::{DrainStrategy, IoChoice, Mode, Options};
use torus_proxy::config::ledger;
use torus_proxy::config::lifecycle::{self, Lifecycle};
use torus_proxy::config::publish;
use torus_proxy::config::snapshot::Listening;
use torus_proxy::config::thread::ConfigThread;
use torus_proxy::listener::socket;
use torus_proxy::telemetry::program_log::{self, LogOptions};
use torus_proxy::worker::connection_limit::ConnectionLimits;
use torus_proxy::worker::thread::{self, WorkerPlan};
use torus_proxy::worker::watchdog::TurnAge;
use torus_ring::{DriverChoice, Heartbeat, RingConfig};
use torus_tune::setting::Profile;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let options = match Options::parse_from(std::env::args_os()) {
        Ok(options) => options,
        Err(usage) => {
            if usage.exit_code() == 0 {
                println!("{usage}");
            } else {
                eprintln!("{usage}");
            }
            return ExitCode::from(usage.exit_code());
        }
    };
    if options.print_compatibility {
        print!("{}", ledger::compatibility_page());
        return ExitCode::SUCCESS;
    }
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), Box<dyn std::error::Error>> {
    let cpus = options.cpu_list.clone().unwrap_or_else(torus_ring::allowed_cpus);
    let worker_count = options.concurrency.map_or(cpus.len(), |count| count as usize).max(1);
    let loaded = bootstrap::load(options, worker_count)?;
    for warning in &loaded.warnings {
        eprintln!("{warning}");
    }
    if options.mode == Mode::Validate {
        let name = options.config_path.as_deref().unwrap_or("--config-yaml");
        println!("configuration '{name}' OK");
        return Ok(());
    }
    serve(options, loaded, &cpus, worker_count)
}

fn serve(
    options: &Options,
    loaded: Loaded,
    cpus: &[usize],
    worker_count: usize,
) -> Result<(), Box<dyn std::error::Error>> {
    let log = program_log::install(&LogOptions::from(options))?;
    let (admin, admin_access_logs) = match loaded.admin {
        Some(admin) => (admin.address.as_ref().map(AdminSocket::bind).transpose()?, admin.access_logs),
        None => (None, Vec::new()),
    };
    let strategy = match options.drain_strategy {
        DrainStrategy::Gradual => lifecycle::DrainStrategy::Gradual,
        DrainStrategy::Immediate => lifecycle::DrainStrategy::Immediate,
    };
    let lifecycle = Lifecycle::new(worker_count, options.drain_time, strategy);
    // The config thread says when clusters are ready to be served from.
    lifecycle.begin_warming();
    let mut snapshot = loaded.snapshot;
    for listener in &snapshot.listeners {
        for sockets in socket::open(listener, worker_count)? {
            snapshot.listening.push(Listening { listener: Arc::clone(listener), sockets: Arc::new(sockets) });
        }
    }
    let snapshot = Arc::new(snapshot);
    let limits = ConnectionLimits::new(loaded.connection_count_max);
    let (publisher, subscribers) = publish::channel(Arc::clone(&snapshot), worker_count);
    let mut workers = Vec::new();
    for (subscriber, place) in subscribers.into_iter().zip(0usize..) {
        workers.push(thread::start(WorkerPlan {
            cpu: cpus.get(place % cpus.len().max(1)).copied(),
            ring: ring_config(options),
            snapshot: Arc::clone(&snapshot),
            subscriber,
            lifecycle: Arc::clone(&lifecycle),
            limits: Arc::clone(&limits),
            log_sinks: Arc::clone(&loaded.log_sinks),
        })?);
    }
    // A snapshot that is replaced is given back by the config thread.
    drop(snapshot);
    let driver = workers.first().map(|worker| &worker.driver);
    if let Some(driver) = driver {
        tracing::info!(target: "main", "{worker_count} workers, I/O by {driver}");
    }
    for finding in torus_tune::gates::findings(Path::new("/"), tuning_profile(options)) {
        tracing::warn!(target: "main", "{finding}");
    }
    let ended = ConfigThread {
        publisher,
        lifecycle: Arc::clone(&lifecycle),
        registry: loaded.registry,
        stats: loaded.stats,
        stats_flush_interval: loaded.stats_flush_interval,
        log_sinks: Arc::clone(&loaded.log_sinks),
        log: Some(log),
        admin,
        admin_address_path: options.admin_address_path.clone().map(PathBuf::from),
        snapshot_path: options.snapshot_path.clone().map(PathBuf::from),
        admin_access_logs,
        facts: Facts::new(options, worker_count, &loaded.node, driver, loaded.raw.into_bytes()),
        discovery: loaded.discovery,
        turn_ages: workers.iter().map(|worker| turn_age(worker.heartbeat.clone())).collect(),
    }
    .run();
    // An error has told nobody yet.
    lifecycle.end();
    for worker in &workers {
        worker.wake.wake();
    }
    let deadline = Instant::now() + WORKERS_END_WAIT;
    while workers.iter().any(|worker| !worker.thread.is_finished()) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    if !loaded.log_sinks.shut_down(WORKERS_END_WAIT) {
        tracing::warn!(target: "main", "access logs could not be written to their end");
    }
    ended?;
    Ok(())
}

/// Istio's agents name the node after what it is: `sidecar~...` or `router~...`.
fn tuning_profile(options: &Options) -> Profile {
    match &options.service_node {
        Some(node) if node.starts_with("sidecar~") => Profile::Sidecar,
        _ => Profile::GatewayThroughput,
    }
}

fn turn_age(heartbeat: Heartbeat) -> TurnAge {
    Box::new(move || heartbeat.busy_for())
}

fn ring_config(options: &Options) -> RingConfig {
    let driver = match options.io {
        IoChoice::Auto => DriverChoice::Auto,
        IoChoice::Uring => DriverChoice::Uring,
        IoChoice::Epoll => DriverChoice::Epoll,
    };
    let busy_poll = (!options.busy_poll.is_zero()).then_some(options.busy_poll);
    RingConfig { driver, busy_poll, ..RingConfig::default() }
}

/// How long workers get to close what is open, and the writer of access logs to write what it has.
const WORKERS_END_WAIT: Duration = Duration::from_secs(5);
