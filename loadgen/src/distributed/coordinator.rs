//! The coordinator of a run on several workers.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Endpoint;
use tonic::{Code, Request};
use tonic_prost::ProstCodec;

use super::message::{Order, Pong, Run, Word};
use super::{MESSAGE_BYTES_MAX, PATH};
use crate::run::Options;
use crate::run::crew::Place;
use crate::run::execute::{ExecuteError, Gather, Outcome};
use crate::run::request::Protocol;
use crate::run::setup::Setup;
use crate::worker::{Finished, Load};

const CONNECT: Duration = Duration::from_secs(5);
/// A worker that is gone is noticed after the sum of both.
const KEEPALIVE: Duration = Duration::from_secs(1);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a worker may be busy with a run before.
const BUSY_WITHIN: Duration = Duration::from_secs(1);
/// How long workers may take to open their connections.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// Exchanges that tell how far a worker's clock is from ours; the quickest one counts.
const PINGS: usize = 16;
/// From the order to start until the start.
const LEAD: Duration = Duration::from_millis(300);
const STEP: Duration = Duration::from_millis(20);
/// How long the records of the workers may take after the run's end, or after it was stopped.
const FINISH_WITHIN: Duration = Duration::from_secs(30);

/// A worker elsewhere.
#[derive(Clone, Debug, Serialize)]
pub struct Remote {
    pub address: String,
    /// How long the quickest exchange with it took, in nanoseconds: its moments are known to half of this.
    pub round_trip: u64,
}

/// Why several workers gave no report.
#[derive(Debug, thiserror::Error)]
pub enum CoordinatorError {
    #[error("worker {address}: {reason}; is `torus-load worker` running there?")]
    Unreachable { address: String, reason: String },
    #[error("worker {address}: {reason}")]
    Failed { address: String, reason: String },
    #[error("--connections {connections}: fewer than the {threads} threads of all workers")]
    Connections { connections: usize, threads: usize },
    #[error("cannot start: {0}")]
    Runtime(io::Error),
    #[error(transparent)]
    Execute(#[from] ExecuteError),
}

/// What is heard of worker number n.
enum Event {
    Word(usize, Box<Word>),
    Lost(usize, String),
}

struct Worker {
    address: String,
    orders: mpsc::Sender<Order>,
    protocols: Option<Vec<String>>,
    pongs: Vec<(u64, u64, u64)>,
    finished: Option<Vec<Finished>>,
}

/// Runs `load`, which is what `options` ask for, on their workers; what the workers say of the protocols goes into `setup`.
///
/// Errors: a worker cannot be reached or cannot make its part ready. One that is lost later makes the outcome invalid instead.
pub fn execute(
    setup: &mut Setup,
    options: &Options,
    load: &Load,
    stop: &Arc<AtomicBool>,
) -> Result<Outcome, CoordinatorError> {
    let addresses = &options.workers;
    let place = Place { first: 0, of: setup.threads * addresses.len() };
    if let Some(few) = setup.all().find(|target| target.connections < place.of) {
        return Err(CoordinatorError::Connections { connections: few.connections, threads: place.of });
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(CoordinatorError::Runtime)?.block_on(coordinate(setup, options, load, stop))
}

/// The flags of this program's own command line, without those that are for the coordinator alone.
fn arguments() -> Vec<String> {
    let mut words = std::env::args().skip_while(|word| word != "run").skip(1);
    let mut kept = Vec::new();
    while let Some(word) = words.next() {
        if word == "--workers" {
            words.next();
        } else if !word.starts_with("--workers=") {
            kept.push(word);
        }
    }
    kept
}

async fn coordinate(
    setup: &mut Setup,
    options: &Options,
    load: &Load,
    stop: &Arc<AtomicBool>,
) -> Result<Outcome, CoordinatorError> {
    let addresses = &options.workers;
    let (sender, mut events) = mpsc::channel(1024);
    let mut workers = Vec::new();
    for (number, address) in addresses.iter().enumerate() {
        workers.push(connect(number, address, &sender).await?);
    }
    for (number, worker) in workers.iter().enumerate() {
        let (arguments, count, rate) = (arguments(), addresses.len() as u32, Some(options.rate));
        let run = Run { arguments, number: number as u32, count, rate };
        let _ = worker.orders.send(Order { run: Some(run), ..Order::default() }).await;
    }
    let clock = Instant::now();
    let begun = Instant::now();
    while workers.iter().any(|worker| worker.protocols.is_none()) {
        let late = || workers.iter().find(|worker| worker.protocols.is_none()).map(|worker| worker.address.clone());
        if stop.load(Ordering::Relaxed) || begun.elapsed() > READY_WITHIN {
            let reason = "its connections are not open yet".to_owned();
            return Err(CoordinatorError::Failed { address: late().unwrap_or_default(), reason });
        }
        let Ok(Some(event)) = timeout(STEP, events.recv()).await else { continue };
        early(&mut workers, event, clock)?;
    }
    let mut remotes = Vec::new();
    let mut offsets = Vec::new();
    for number in 0..workers.len() {
        for _ in 0..PINGS {
            let Some(worker) = workers.get(number) else { break };
            let heard = worker.pongs.len();
            let ping = clock.elapsed().as_nanos() as u64;
            let _ = worker.orders.send(Order { ping: Some(ping), ..Order::default() }).await;
            let begun = Instant::now();
            while workers.get(number).is_some_and(|worker| worker.pongs.len() == heard) && begun.elapsed() < CONNECT {
                let Ok(Some(event)) = timeout(CONNECT, events.recv()).await else { break };
                early(&mut workers, event, clock)?;
            }
        }
        let Some(worker) = workers.get(number) else { continue };
        let quickest = worker.pongs.iter().min_by_key(|(sent, back, _)| back.saturating_sub(*sent));
        let Some((sent, back, theirs)) = quickest else {
            let reason = "it does not answer".to_owned();
            return Err(CoordinatorError::Failed { address: worker.address.clone(), reason });
        };
        // Their clock minus ours, in the middle of the exchange.
        offsets.push(i128::from(*theirs) - i128::from(sent / 2 + back / 2));
        remotes.push(Remote { address: worker.address.clone(), round_trip: back.saturating_sub(*sent) });
    }
    describe(setup, &workers);
    let at = clock.elapsed() + LEAD;
    for (worker, offset) in workers.iter().zip(&offsets) {
        let theirs = u64::try_from(at.as_nanos() as i128 + offset).unwrap_or_default();
        let _ = worker.orders.send(Order { start_at: Some(theirs), ..Order::default() }).await;
    }
    let end = at + Duration::from_nanos(load.end());
    let mut gather = Gather::new(setup, setup.threads * addresses.len(), load);
    gather.begin(clock + at);
    let mut lost = Vec::new();
    let mut stopped_at = None;
    while workers.iter().any(|worker| worker.finished.is_none()) {
        if (stop.load(Ordering::Relaxed) || !lost.is_empty()) && stopped_at.is_none() {
            stopped_at = Some(clock.elapsed());
            for worker in &workers {
                // One that is gone cannot be told, and one that does not listen is not waited for.
                let _ = worker.orders.try_send(Order { stop: true, ..Order::default() });
            }
        }
        let last = stopped_at.unwrap_or(end + setup.timeout) + FINISH_WITHIN;
        if clock.elapsed() > last {
            let silent = workers.iter().filter(|worker| worker.finished.is_none());
            lost.extend(silent.map(|worker| format!("worker {} did not give its records", worker.address)));
            break;
        }
        gather.tick()?;
        let Ok(Some(event)) = timeout(STEP, events.recv()).await else { continue };
        let number = match &event {
            Event::Word(number, _) | Event::Lost(number, _) => *number,
        };
        let Some(worker) = workers.get_mut(number).filter(|worker| worker.finished.is_none()) else { continue };
        let failure = match event {
            Event::Lost(_, reason) => Some(reason),
            Event::Word(_, word) => match (word.update, word.failed) {
                (_, Some(failed)) => Some(failed),
                (Some(update), _) => match update.read() {
                    Ok(update) => {
                        gather.update(update)?;
                        None
                    }
                    Err(_) => Some("it sent what is no update".to_owned()),
                },
                (None, None) if !word.finished.is_empty() => {
                    let read = word.finished.into_iter().map(super::message::FinishedWord::read);
                    match read.collect::<Result<Vec<_>, _>>() {
                        Ok(finished) => {
                            worker.finished = Some(finished);
                            None
                        }
                        Err(_) => Some("it sent what is no record".to_owned()),
                    }
                }
                (None, None) => None,
            },
        };
        if let Some(reason) = failure {
            let after = clock.elapsed().saturating_sub(at).as_secs_f64();
            lost.push(format!("worker {} was lost {after:.1} s after the start: {reason}", worker.address));
            worker.finished = Some(Vec::new());
        }
    }
    let finished = workers.into_iter().flat_map(|worker| worker.finished.unwrap_or_default()).collect();
    let mut outcome = gather.outcome(finished, stop.load(Ordering::Relaxed))?;
    (outcome.remotes, outcome.lost) = (remotes, lost);
    Ok(outcome)
}

/// Before the start, whoever fails ends it all.
fn early(workers: &mut [Worker], event: Event, clock: Instant) -> Result<(), CoordinatorError> {
    let (number, reason) = match event {
        Event::Lost(number, reason) => (number, Some(reason)),
        Event::Word(number, word) => {
            let Some(worker) = workers.get_mut(number) else { return Ok(()) };
            if let Some(ready) = word.ready {
                worker.protocols = Some(ready.protocols);
            }
            if let Some(Pong { ping, at }) = word.pong {
                worker.pongs.push((ping, clock.elapsed().as_nanos() as u64, at));
            }
            (number, word.failed)
        }
    };
    match (reason, workers.get(number)) {
        (Some(reason), Some(worker)) => {
            let reason = reason.trim().lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
            Err(CoordinatorError::Failed { address: worker.address.clone(), reason })
        }
        _ => Ok(()),
    }
}

/// What the first worker chose with each target.
fn describe(setup: &mut Setup, workers: &[Worker]) {
    let protocols = workers.first().and_then(|worker| worker.protocols.as_ref());
    let mut protocols = protocols.into_iter().flatten().filter_map(|words| Protocol::of_words(words));
    setup.chose(protocols.next());
    for other in &mut setup.others {
        other.chose(protocols.next());
    }
}

async fn connect(number: usize, address: &str, events: &mpsc::Sender<Event>) -> Result<Worker, CoordinatorError> {
    let fail = |reason: String| CoordinatorError::Unreachable { address: address.to_owned(), reason };
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| fail(error.to_string()))?;
    let endpoint = endpoint.connect_timeout(CONNECT).tcp_nodelay(true).http2_keep_alive_interval(KEEPALIVE);
    let endpoint = endpoint.keep_alive_timeout(KEEPALIVE_TIMEOUT).keep_alive_while_idle(true);
    let channel = endpoint.connect().await.map_err(|error| fail(innermost(&error)))?;
    let grpc = Grpc::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let mut grpc = grpc.max_encoding_message_size(MESSAGE_BYTES_MAX);
    grpc.ready().await.map_err(|error| fail(innermost(&error)))?;
    let begun = Instant::now();
    let (orders, response) = loop {
        let (orders, stream) = mpsc::channel(64);
        let request = Request::new(ReceiverStream::new(stream));
        let codec = ProstCodec::<Order, Word>::default();
        match grpc.streaming(request, PathAndQuery::from_static(PATH), codec).await {
            // The run before this one may be about to end.
            Err(status) if status.code() == Code::ResourceExhausted && begun.elapsed() < BUSY_WITHIN => {
                tokio::time::sleep(STEP).await;
                grpc.ready().await.map_err(|error| fail(innermost(&error)))?;
            }
            response => break (orders, response),
        }
    };
    let mut words = response.map_err(|status| fail(status.message().to_owned()))?.into_inner();
    let events = events.clone();
    tokio::spawn(async move {
        let reason = loop {
            match words.message().await {
                Ok(Some(word)) => {
                    if events.send(Event::Word(number, Box::new(word))).await.is_err() {
                        return;
                    }
                }
                Ok(None) => break "it ended the connection".to_owned(),
                Err(status) => break status.message().to_owned(),
            }
        };
        let _ = events.send(Event::Lost(number, reason)).await;
    });
    Ok(Worker { address: address.to_owned(), orders, protocols: None, pongs: Vec::new(), finished: None })
}

/// The cause at the end of a chain of errors, which says what happened.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
