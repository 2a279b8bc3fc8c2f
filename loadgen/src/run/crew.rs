//! The workers of one run on this machine: threads, from their start to their records.

use std::fmt;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Barrier, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::execute::ExecuteError;
use super::setup::Setup;
use crate::worker::{self, Finished, Load, Share, Update};

/// From the last worker's being ready to the start.
const LEAD: Duration = Duration::from_millis(2);

/// Which of the threads of a run are here: the first one's number, and how many there are everywhere.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub first: usize,
    pub of: usize,
}

/// Says when the run begins; asked once, by the first worker that is ready with all others.
#[derive(Clone)]
pub struct Begin(Arc<dyn Fn() -> Instant + Send + Sync>);

impl Begin {
    pub fn new(begin: impl Fn() -> Instant + Send + Sync + 'static) -> Begin {
        Begin(Arc::new(begin))
    }

    /// At once.
    pub fn now() -> Begin {
        Begin::new(|| Instant::now() + LEAD)
    }

    pub fn ask(&self) -> Instant {
        (self.0)()
    }
}

impl fmt::Debug for Begin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Begin")
    }
}

pub struct Crew {
    pub updates: Receiver<Update>,
    pub start: Arc<OnceLock<Instant>>,
    /// Ends the run early.
    pub stop: Arc<AtomicBool>,
    handles: Vec<JoinHandle<std::io::Result<Finished>>>,
}

impl Crew {
    /// Starts the threads; they open their connections and wait for what `begin` says.
    pub fn start(setup: &Setup, load: &Load, place: Place, begin: Begin) -> Result<Crew, ExecuteError> {
        let (sender, updates) = channel();
        let barrier = Arc::new(Barrier::new(setup.threads));
        let start = Arc::new(OnceLock::new());
        // A run that a worker's failure stops is not one that the user stops.
        let stop = Arc::new(AtomicBool::new(false));
        let weights: Arc<[f64]> = setup.all().map(|target| target.weight).collect();
        let mut handles = Vec::new();
        for thread in 0..setup.threads {
            let index = place.first + thread;
            let config = |(number, target): (usize, &Setup)| worker::Config {
                index,
                workers: place.of,
                core: setup.cores.get(thread).copied(),
                load: load.clone(),
                addresses: Arc::clone(&target.target.addresses),
                tls: target.tls.clone(),
                request: target.request.clone(),
                head_request: setup.method == "HEAD",
                checks: Arc::clone(&target.checks),
                connections: target.connections / place.of + usize::from(index < target.connections % place.of),
                streams: target.streams,
                requests_per_connection: setup.requests_per_connection,
                connect_rate: target.connect_rate.map(|rate| rate / place.of as f64),
                share: Share { index: number, weights: Arc::clone(&weights) },
                timeout: setup.timeout.as_nanos() as u64,
                spin: setup.spin,
                spin_margin: setup.spin_margin,
                stop: Arc::clone(&stop),
                start: Arc::clone(&start),
                begin: begin.clone(),
                barrier: Arc::clone(&barrier),
                updates: sender.clone(),
            };
            let configs = setup.all().enumerate().map(config).collect();
            let builder = thread::Builder::new().name(format!("load-{index}"));
            handles.push(builder.spawn(move || worker::run(configs)).map_err(ExecuteError::Worker)?);
        }
        Ok(Crew { updates, start, stop, handles })
    }

    /// Whether all threads have ended; a task that a runtime never dropped may hold its end of `updates` for ever.
    pub fn has_ended(&self) -> bool {
        self.handles.iter().all(JoinHandle::is_finished)
    }

    /// The records of all threads, when they have ended.
    pub fn finish(self) -> Result<Vec<Finished>, ExecuteError> {
        let end = |handle: JoinHandle<std::io::Result<Finished>>| {
            handle.join().map_err(|_| ExecuteError::Lost)?.map_err(ExecuteError::Worker)
        };
        self.handles.into_iter().map(end).collect()
    }
}
