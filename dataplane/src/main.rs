//! The proxy's program: flags, bootstrap, listening sockets, workers, config thread.

use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use torus_proxy::config::bootstrap::{self, Loaded};
use torus_proxy::config::flags::{DrainStrategy, IoChoice, Mode, Options};
use torus_proxy::config::ledger;
use torus_proxy::config::lifecycle::{self, Lifecycle};
use torus_proxy::config::publish;
use torus_proxy::listener::socket;
use torus_proxy::worker::connection_limit::ConnectionLimits;
use torus_proxy::worker::thread::{self, WorkerPlan};
use torus_ring::{DriverChoice, RingConfig};

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
    let strategy = match options.drain_strategy {
        DrainStrategy::Gradual => lifecycle::DrainStrategy::Gradual,
        DrainStrategy::Immediate => lifecycle::DrainStrategy::Immediate,
    };
    let lifecycle = Lifecycle::new(worker_count, options.drain_time, strategy);
    let snapshot = Arc::new(loaded.snapshot);
    let limits = ConnectionLimits::new(
        loaded.connection_count_max,
        snapshot.listeners.iter().map(|listener| listener.connection_count_max),
    );
    let mut sockets: Vec<Vec<(u32, OwnedFd)>> = (0..worker_count).map(|_| Vec::new()).collect();
    for (index, listener) in snapshot.listeners.iter().enumerate() {
        for opened in socket::open(listener, worker_count)? {
            for (worker, sockets) in sockets.iter_mut().enumerate() {
                let shared = opened.sockets.get(worker).or(opened.sockets.first());
                if let Some(socket) = shared {
                    sockets.push((index as u32, socket.try_clone()?));
                }
            }
        }
    }
    let (publisher, subscribers) = publish::channel(Arc::clone(&snapshot), worker_count);
    let mut workers = Vec::new();
    for ((subscriber, sockets), place) in subscribers.into_iter().zip(sockets).zip(0usize..) {
        workers.push(thread::start(WorkerPlan {
            cpu: cpus.get(place % cpus.len().max(1)).copied(),
            ring: ring_config(options),
            sockets,
            snapshot: Arc::clone(&snapshot),
            subscriber,
            lifecycle: Arc::clone(&lifecycle),
            limits: Arc::clone(&limits),
            log_sinks: Arc::clone(&loaded.log_sinks),
        })?);
    }
    let _ = publisher;
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
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
