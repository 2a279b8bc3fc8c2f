//! A server that answers what it received as JSON, or misbehaves as the query asks; it speaks HTTP/1.1, HTTP/2 (by ALPN, or known to
//! the client), gRPC and WebSocket, whose messages it sends back, or with `--tcp` echoes raw bytes.
//!
//! One thread for each core, each with its own socket, connections and buffers. The query of a request shapes the reply:
//!
//! | parameter | effect |
//! |---|---|
//! | `delay_ms=N` | wait N ms before the reply |
//! | `delay=D` | wait as a distribution says: `5ms`, `uniform:1ms,9ms`, `exponential:5ms`, `bimodal:1ms,50ms,5%`, `lognormal:5ms,20ms` |
//! | `stall=200ms/1s` | answer nothing in the first 200 ms of every second since the server's start |
//! | `size=N` | N letters as the body instead of JSON |
//! | `status=N` | status of the reply |
//! | `chunked=1` | body in chunks (HTTP/2: without its length); `trailers=1` adds trailer fields |
//! | `close=1` | `connection: close`, and close (HTTP/1.1 alone) |
//! | `header=Name:Value` | one more field; may be repeated |
//! | `informational=103` | an interim reply first |
//! | `early=1` | answer before the request's body is read |
//! | `reset=head`, `reset=body` | reset the connection (HTTP/2: the stream) instead of the head, or in the middle of the body |
//! | `garbage=1` | bytes that are not HTTP (HTTP/2: a reset) |
//! | `hang=1` | read on and never answer |
//!
//! `/fixed` answers a constant body (1 KiB, or `/fixed?size=N`) as fast as it can, for measurements.

mod clock;
mod connection;
pub mod delay;
mod describe;
mod echo;
mod http2;
mod plan;
mod request;
mod stream;

use std::cell::RefCell;
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use monoio::io::IntoPollIo;
use rustls::ServerConfig;
use tokio_rustls::TlsAcceptor;

use self::clock::Clock;
use self::delay::{Delay, Stall};
use self::describe::{describe, letters};
use self::plan::Plan;
use self::stream::Stream;
use crate::plan::Random;
use crate::tls::{self, TlsError};

/// Flags of `torus-load serve`.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Where to listen: `HOST:PORT` (port 0 for a free one), or the path of a unix socket.
    #[arg(long, default_value = "127.0.0.1:8081", value_name = "ADDRESS")]
    pub listen: String,
    /// Threads, one for each allowed core by default.
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Name that every reply carries, to tell several servers apart.
    #[arg(long, default_value = "torus-load")]
    pub name: String,
    /// Largest request body that is read, in bytes; a longer one is answered with 413.
    #[arg(long, default_value_t = 64 << 20, value_name = "BYTES")]
    pub body_bytes_max: u64,
    /// Echo raw bytes instead of HTTP.
    #[arg(long)]
    pub tcp: bool,
    /// Certificate chain to show, as PEM: the server speaks TLS alone then.
    #[arg(long, value_name = "FILE", requires = "key")]
    pub cert: Option<PathBuf>,
    /// Private key of --cert, as PEM.
    #[arg(long, value_name = "FILE", requires = "cert")]
    pub key: Option<PathBuf>,
    /// Authority of the certificates that clients have to show, as PEM.
    #[arg(long, value_name = "FILE", requires = "cert")]
    pub client_ca: Option<PathBuf>,
    /// Delay of every reply whose query asks for none: 5ms, uniform:1ms,9ms, exponential:5ms, bimodal:1ms,50ms,5%, or
    /// lognormal:5ms,20ms (median and p99).
    #[arg(long, value_name = "DELAY")]
    pub delay: Option<Delay>,
    /// Times in which nothing is answered, as 200ms/1s: the first 200 ms of every second.
    #[arg(long, value_name = "LENGTH/PERIOD")]
    pub stall: Option<Stall>,
    /// Of the random delays.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seed: u64,
}

/// Why the server cannot run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The text is no address.
    #[error("--listen {address}: {source}; try: 127.0.0.1:8081, [::1]:8081, or a path with a slash")]
    Address { address: String, source: io::Error },
    /// Somebody else has the address, or it may not be taken.
    #[error("cannot listen on {address}: {source}; try: ss -ltnp, to see who does, or another port")]
    Listen { address: String, source: io::Error },
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("--cert: a unix socket has no TLS; give --listen HOST:PORT, or leave it out")]
    UnixTls,
    /// No runtime, or no thread.
    #[error("cannot start a worker: {0}")]
    Worker(io::Error),
}

/// What all threads share: set once at start, but for the counter of connections.
struct Shared {
    name: String,
    body_bytes_max: u64,
    connection_count: AtomicU64,
    is_tcp: bool,
    tls: Option<Arc<ServerConfig>>,
    delay: Option<Delay>,
    stall: Option<Stall>,
    seed: u64,
    start: Instant,
}

impl Shared {
    fn next_connection(&self) -> u64 {
        self.connection_count.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// What the connections of one thread share.
struct Local {
    shared: Arc<Shared>,
    clock: Clock,
    random: RefCell<Random>,
}

impl Local {
    /// In a runtime of monoio; `index` is that of the thread.
    fn new(shared: &Arc<Shared>, index: u64) -> io::Result<Rc<Local>> {
        let random = RefCell::new(Random(shared.seed ^ index << 32));
        Ok(Rc::new(Local { shared: Arc::clone(shared), clock: Clock::start()?, random }))
    }

    /// Whether a reply as `plan` asks for may have to wait.
    fn delays(&self, plan: &Plan) -> bool {
        let own = || self.shared.delay.is_some() || self.shared.stall.is_some();
        plan.delay.is_some() || plan.stall.is_some() || own()
    }

    /// Waits as long as `plan` asks for, or the server's own flags where it asks for nothing.
    async fn pause(&self, plan: &Plan) {
        if !self.delays(plan) {
            return;
        }
        let mut at = Instant::now();
        if let Some(delay) = plan.delay.as_ref().or(self.shared.delay.as_ref()) {
            at += delay.draw(&mut self.random.borrow_mut());
        }
        if let Some(stall) = plan.stall.or(self.shared.stall) {
            at += stall.left(at.duration_since(self.shared.start));
        }
        self.clock.sleep_until(at).await;
    }
}

/// Serves until the process is ended.
///
/// Errors: the address cannot be understood or bound, or a thread cannot be started.
pub fn run(options: &Options) -> Result<(), ServeError> {
    let tls = match (&options.cert, &options.key) {
        (Some(cert), Some(key)) => {
            let alpn: &[&[u8]] = if options.tcp { &[] } else { &[b"h2", b"http/1.1"] };
            Some(tls::server(cert, key, options.client_ca.as_deref(), alpn)?)
        }
        _ => None,
    };
    let shared = Arc::new(Shared {
        name: options.name.clone(),
        body_bytes_max: options.body_bytes_max,
        connection_count: AtomicU64::new(0),
        is_tcp: options.tcp,
        tls,
        delay: options.delay.clone(),
        stall: options.stall,
        seed: options.seed,
        start: Instant::now(),
    });
    if options.listen.contains('/') {
        return if shared.tls.is_some() {
            Err(ServeError::UnixTls)
        } else {
            serve_unix(PathBuf::from(&options.listen), &shared)
        };
    }
    let fail = |source| ServeError::Address { address: options.listen.clone(), source };
    let mut addresses = options.listen.to_socket_addrs().map_err(fail)?;
    let address = addresses.next().ok_or_else(|| fail(io::Error::from(io::ErrorKind::AddrNotAvailable)))?;
    let first = listen(address)?;
    let bound = first.local_addr().map_err(fail)?;
    println!("listening on {bound}");
    let thread_count = options.threads.unwrap_or_else(core_count).max(1);
    let mut listeners = vec![first];
    for _ in 1..thread_count {
        listeners.push(listen(bound)?);
    }
    let start = |(index, listener): (usize, TcpListener)| {
        let shared = Arc::clone(&shared);
        let run = move || run_worker(listener, index as u64, &shared);
        std::thread::Builder::new().name(format!("serve-{index}")).spawn(run).map_err(ServeError::Worker)
    };
    let workers = listeners.into_iter().enumerate().map(start).collect::<Result<Vec<_>, _>>()?;
    for worker in workers {
        worker.join().map_err(|_| ServeError::Worker(io::Error::other("a worker panicked")))??;
    }
    Ok(())
}

fn core_count() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// A listening socket of its own for each thread, so that the kernel spreads connections.
fn listen(address: SocketAddr) -> Result<TcpListener, ServeError> {
    let bind = || -> io::Result<TcpListener> {
        let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.bind(&address.into())?;
        socket.listen(4_096)?;
        socket.set_nonblocking(true)?;
        Ok(socket.into())
    };
    bind().map_err(|source| ServeError::Listen { address: address.to_string(), source })
}

fn run_worker(listener: TcpListener, index: u64, shared: &Arc<Shared>) -> Result<(), ServeError> {
    let mut runtime = crate::runtime::start().map_err(ServeError::Worker)?;
    runtime.block_on(async move {
        let local = Local::new(shared, index).map_err(ServeError::Worker)?;
        let watched = listener.try_clone().and_then(monoio::net::TcpListener::from_std).map_err(ServeError::Worker)?;
        loop {
            // Accepted by hand, because a connection that may have to be reset needs a standard socket beside
            // monoio's, whose options cannot be set.
            match listener.accept() {
                Ok((stream, _)) => accept(stream, &local),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let _ = watched.readable(false).await;
                }
                // Too few descriptors: those that finish give some back.
                Err(_) => monoio::time::sleep(std::time::Duration::from_millis(10)).await,
            }
        }
    })
}

fn accept(stream: std::net::TcpStream, local: &Rc<Local>) {
    let _ = stream.set_nodelay(true);
    let Ok(clone) = stream.try_clone() else { return };
    let Ok(inner) = monoio::net::TcpStream::from_std(clone) else { return };
    let id = local.shared.next_connection();
    let reset: Rc<dyn Fn()> = Rc::new(move || {
        let _ = socket2::SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO));
    });
    let local = Rc::clone(local);
    monoio::spawn(async move {
        let stream = match &local.shared.tls {
            None => Stream::Tcp(inner),
            Some(config) => {
                let Ok(polled) = inner.into_poll_io() else { return };
                // A client that does not believe the certificate says so and leaves.
                let Ok(stream) = TlsAcceptor::from(Arc::clone(config)).accept(polled).await else { return };
                Stream::Tls(Box::new(stream))
            }
        };
        serve(stream, id, reset, local).await;
    });
}

async fn serve(stream: Stream, id: u64, reset: Rc<dyn Fn()>, local: Rc<Local>) {
    if local.shared.is_tcp {
        echo::bytes(stream, local).await;
    } else {
        connection::serve(stream, id, reset, local).await;
    }
}

fn serve_unix(path: PathBuf, shared: &Arc<Shared>) -> Result<(), ServeError> {
    let fail = |source| ServeError::Listen { address: path.display().to_string(), source };
    // A socket file that nobody listens on is left over from a run before.
    if path.exists() && std::os::unix::net::UnixStream::connect(&path).is_err() {
        std::fs::remove_file(&path).map_err(fail)?;
    }
    let mut runtime = crate::runtime::start().map_err(ServeError::Worker)?;
    runtime.block_on(async {
        // Unix sockets refuse SO_REUSEPORT, which monoio sets by default.
        let options = monoio::net::ListenerOpts::new().reuse_port(false).reuse_addr(false);
        let local = Local::new(shared, 0).map_err(ServeError::Worker)?;
        let listener = monoio::net::UnixListener::bind_with_config(&path, &options).map_err(fail)?;
        println!("listening on {}", path.display());
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            let id = shared.next_connection();
            // A unix socket has no reset; closing it is as abrupt as it gets.
            monoio::spawn(serve(Stream::Unix(stream), id, Rc::new(|| {}), Rc::clone(&local)));
        }
    })
}
