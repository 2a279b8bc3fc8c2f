//! `torus-load worker`: waits for a coordinator and does its part of each run.

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use clap::Parser;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::{Grpc, NamedService, StreamingService};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use super::message::{FinishedWord, Order, Pong, Ready, Run, UpdateWord, Word};
use super::{MESSAGE_BYTES_MAX, PATH, SERVICE};
use crate::run::crew::{Begin, Crew, Place};
use crate::run::setup::{self, Setup};
use crate::run::{Options as RunOptions, RunError};

/// Words that wait for the coordinator.
const WORDS_MAX: usize = 256;
/// How long a coordinator may take from the last worker's word that it is ready to the start.
const START_WITHIN: Duration = Duration::from_secs(120);
const STEP: Duration = Duration::from_millis(20);
/// A coordinator that is gone is noticed after the sum of both.
const KEEPALIVE: Duration = Duration::from_secs(2);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(4);

/// Flags of `torus-load worker`.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Where coordinators connect: `HOST:PORT`, port 0 for a free one. Who can reach it can have this machine send requests.
    #[arg(long, default_value = "127.0.0.1:7080", value_name = "ADDRESS")]
    pub listen: String,
}

/// Why the worker cannot wait.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    #[error("--listen {address}: {source}; try: 127.0.0.1:7080, or a free port")]
    Listen { address: String, source: io::Error },
    #[error("cannot serve: {0}")]
    Serve(#[from] tonic::transport::Error),
    #[error("cannot start: {0}")]
    Runtime(io::Error),
}

/// Serves until the process is ended.
///
/// Errors: the address cannot be understood or bound.
pub fn run(options: &Options) -> Result<(), WorkerError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(WorkerError::Runtime)?;
    let fail = |source| WorkerError::Listen { address: options.listen.clone(), source };
    let none = || io::Error::from(io::ErrorKind::AddrNotAvailable);
    let address: SocketAddr = options.listen.to_socket_addrs().map_err(fail)?.next().ok_or_else(none).map_err(fail)?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(address).await.map_err(fail)?;
        println!("listening on {}", listener.local_addr().map_err(fail)?);
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let server = Server::builder().http2_keepalive_interval(Some(KEEPALIVE));
        let mut server = server.http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT));
        Ok(server.add_service(Worker::default()).serve_with_incoming(incoming).await?)
    })
}

/// The flags of one run, as its own command line has them.
#[derive(Parser)]
struct Single {
    #[command(flatten)]
    options: RunOptions,
}

#[derive(Clone, Default)]
struct Worker {
    is_busy: Arc<AtomicBool>,
}

impl NamedService for Worker {
    const NAME: &'static str = SERVICE;
}

impl Service<http::Request<Body>> for Worker {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let worker = self.clone();
        Box::pin(async move {
            if request.uri().path() != PATH {
                return Ok(Status::unimplemented("no such method").into_http());
            }
            let grpc = Grpc::new(ProstCodec::<Word, Order>::default());
            let mut grpc =
                grpc.max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX);
            Ok(grpc.streaming(worker, request).await)
        })
    }
}

impl StreamingService<Order> for Worker {
    type Response = Word;
    type ResponseStream = ReceiverStream<Result<Word, Status>>;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Response<Self::ResponseStream>, Status>> + Send>>;

    fn call(&mut self, request: Request<Streaming<Order>>) -> Self::Future {
        let is_busy = Arc::clone(&self.is_busy);
        Box::pin(async move {
            if is_busy.swap(true, Ordering::Relaxed) {
                return Err(Status::resource_exhausted("this worker has a run already"));
            }
            let (words, stream) = mpsc::channel(WORDS_MAX);
            tokio::spawn(async move {
                session(request.into_inner(), &words).await;
                is_busy.store(false, Ordering::Relaxed);
            });
            Ok(Response::new(ReceiverStream::new(stream)))
        })
    }
}

/// Follows the orders of one coordinator; its end is the end of the run.
async fn session(mut orders: Streaming<Order>, words: &mpsc::Sender<Result<Word, Status>>) {
    let clock = Instant::now();
    let stop = Arc::new(AtomicBool::new(false));
    let (start, started) = channel();
    let mut started = Some(started);
    let mut part = None;
    while let Ok(Some(order)) = orders.message().await {
        if let Some(ping) = order.ping {
            let pong = Pong { ping, at: clock.elapsed().as_nanos() as u64 };
            if words.send(Ok(Word { pong: Some(pong), ..Word::default() })).await.is_err() {
                break;
            }
        }
        if let Some(at) = order.start_at {
            let _ = start.send(clock + Duration::from_nanos(at));
        }
        if order.stop {
            stop.store(true, Ordering::Relaxed);
        }
        if let (Some(run), Some(started)) = (order.run, started.take()) {
            let (words, stop) = (words.clone(), Arc::clone(&stop));
            part = Some(tokio::task::spawn_blocking(move || {
                let word = match take_part(run, &words, started, &stop) {
                    Ok(finished) => Word { finished, ..Word::default() },
                    Err(failed) => Word { failed: Some(failed), ..Word::default() },
                };
                // A coordinator that is gone does not want it.
                let _ = words.blocking_send(Ok(word));
            }));
        }
    }
    stop.store(true, Ordering::Relaxed);
    if let Some(part) = part {
        let _ = part.await;
    }
}

/// One run: gives the records of every thread, or why there are none.
fn take_part(
    run: Run,
    words: &mpsc::Sender<Result<Word, Status>>,
    started: Receiver<Instant>,
    stop: &Arc<AtomicBool>,
) -> Result<Vec<FinishedWord>, String> {
    let arguments = std::iter::once("run".to_owned()).chain(run.arguments);
    let options = Single::try_parse_from(arguments).map_err(|error| error.to_string())?.options;
    let rate = run.rate.unwrap_or(options.rate);
    // What is watched is on the coordinator's machine, and what is shown too.
    let options = RunOptions { rate, workers: Vec::new(), watch_pid: None, watch_cgroup: None, quiet: true, ..options };
    let load = setup::load(&options).map_err(|error| error.to_string())?;
    let setup = Setup::new(&options).map_err(|error| error.to_string())?;
    let protocols = setup.all().map(|target| target.protocol.words().to_owned()).collect();
    let ready = Word { ready: Some(Ready { protocols }), ..Word::default() };
    let threads = setup.threads;
    let place = Place { first: run.number as usize * threads, of: run.count as usize * threads };
    let begin = {
        let (words, stop) = (words.clone(), Arc::clone(stop));
        let started = Mutex::new(started);
        Begin::new(move || {
            let _ = words.blocking_send(Ok(ready.clone()));
            wait(&started, &stop)
        })
    };
    let crew = Crew::start(&setup, &load, place, begin).map_err(|error| error.to_string())?;
    loop {
        if stop.load(Ordering::Relaxed) {
            crew.stop.store(true, Ordering::Relaxed);
        }
        let has_ended = crew.has_ended();
        match crew.updates.recv_timeout(STEP) {
            Ok(update) => {
                let update = Word { update: Some(UpdateWord::new(&update)), ..Word::default() };
                let _ = words.blocking_send(Ok(update));
            }
            Err(RecvTimeoutError::Timeout) if has_ended => break,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let finished = crew.finish().map_err(|error| RunError::from(error).to_string())?;
    Ok(finished.iter().map(FinishedWord::new).collect())
}

/// When the coordinator says that the run begins; now, when it says no more.
fn wait(started: &Mutex<Receiver<Instant>>, stop: &AtomicBool) -> Instant {
    let begun = Instant::now();
    while !stop.load(Ordering::Relaxed) && begun.elapsed() < START_WITHIN {
        let Ok(started) = started.lock() else { break };
        match started.recv_timeout(STEP) {
            Ok(at) => return at,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    stop.store(true, Ordering::Relaxed);
    Instant::now()
}
