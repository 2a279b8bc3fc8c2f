//! The thread of one worker: pinned, with a ring of its own.

use std::io;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;

use thiserror::Error;
use torus_ring::{DriverReport, Heartbeat, RemoteWake, Ring, RingConfig, SetupError};

use super::Worker;
use super::connection_limit::ConnectionLimits;
use super::random::Random;
use crate::config::lifecycle::Lifecycle;
use crate::config::publish::Subscriber;
use crate::config::snapshot::Snapshot;
use crate::exchange::core_state::{CoreParts, CoreState};
use crate::telemetry::access_log::LogBuffers;
use crate::telemetry::access_log::sink::LogSinks;

/// What a worker's thread is given.
pub struct WorkerPlan {
    /// Where it runs; `None` leaves that to the kernel.
    pub cpu: Option<usize>,
    /// Its ring.
    pub ring: RingConfig,
    /// The configuration to start with.
    pub snapshot: Arc<Snapshot>,
    /// Later configurations; it also says which worker this is.
    pub subscriber: Subscriber,
    /// Shared with all workers.
    pub lifecycle: Arc<Lifecycle>,
    /// Shared with all workers.
    pub limits: Arc<ConnectionLimits>,
    /// Where access-log lines go.
    pub log_sinks: Arc<LogSinks>,
}

/// A running worker, seen from other threads.
pub struct WorkerThread {
    /// Ends when the worker has nothing left to do.
    pub thread: JoinHandle<()>,
    /// Interrupts its wait.
    pub wake: RemoteWake,
    /// Says whether it is stuck.
    pub heartbeat: Heartbeat,
    /// Which I/O driver it uses, and why not another.
    pub driver: DriverReport,
}

/// Why a worker could not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// No thread.
    #[error("cannot start worker {0}: {1}; raise the limit on processes (ulimit -u)")]
    Thread(u16, io::Error),
    /// No ring.
    #[error("worker {0}: {1}")]
    Ring(u16, SetupError),
    /// The thread ended before it said anything.
    #[error("worker {0} ended while it started")]
    Ended(u16),
}

/// Starts a worker; returns when it accepts.
pub fn start(plan: WorkerPlan) -> Result<WorkerThread, StartError> {
    let core = plan.subscriber.core();
    let (sender, receiver) = mpsc::sync_channel(1);
    let builder = std::thread::Builder::new().name(format!("worker_{}", core.0));
    let thread = builder.spawn(move || run(plan, &sender)).map_err(|error| StartError::Thread(core.0, error))?;
    let started = receiver.recv().map_err(|_| StartError::Ended(core.0))?;
    let (wake, heartbeat, driver) = started.map_err(|error| StartError::Ring(core.0, error))?;
    Ok(WorkerThread { thread, wake, heartbeat, driver })
}

type Started = Result<(RemoteWake, Heartbeat, DriverReport), SetupError>;

fn run(plan: WorkerPlan, started: &mpsc::SyncSender<Started>) {
    if let Some(cpu) = plan.cpu
        && !torus_ring::pin_to(cpu)
    {
        tracing::warn!(target: "main", "worker {} could not be pinned to CPU {cpu}", plan.subscriber.core().0);
    }
    let ring = match Ring::new(&plan.ring) {
        Ok(ring) => ring,
        Err(error) => {
            let _ = started.send(Err(error));
            return;
        }
    };
    let subscriber = plan.subscriber;
    let core = subscriber.core();
    let wake = ring.remote();
    subscriber.set_wake({
        let wake = wake.clone();
        move || wake.wake()
    });
    let stats = plan.log_sinks.torus_stats();
    ring.spawn(super::ring_stats::report(ring.clone(), Arc::clone(&stats), core));
    let state = CoreState::new(CoreParts {
        ring: ring.clone(),
        core,
        random: Random::from_entropy(),
        lifecycle: plan.lifecycle,
        limits: plan.limits,
        snapshot: plan.snapshot,
        log_buffers: LogBuffers::new(plan.log_sinks, core),
    });
    let worker = Worker::new(state);
    worker.start(Vec::new());
    if started.send(Ok((wake, ring.heartbeat(), ring.report().clone()))).is_ok() {
        worker.run(subscriber, &stats);
    }
}
