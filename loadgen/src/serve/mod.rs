//! An HTTP/1.1 server that answers what it received as JSON, or misbehaves as the query asks.
//!
//! One thread for each core, each with its own socket, connections and buffers. The query of a request shapes the reply:
//!
//! | parameter | effect |
//! |---|---|
//! | `delay_ms=N` | wait N ms before the reply |
//! | `size=N` | N letters as the body instead of JSON |
//! | `status=N` | status of the reply |
//! | `chunked=1` | body in chunks; `trailers=1` adds trailer fields |
//! | `close=1` | `connection: close`, and close |
//! | `header=Name:Value` | one more field; may be repeated |
//! | `informational=103` | an interim reply first |
//! | `early=1` | answer before the request's body is read |
//! | `reset=head`, `reset=body` | reset the connection instead of the head, or in the middle of the body |
//! | `garbage=1` | bytes that are not HTTP |
//! | `hang=1` | read on and never answer |
//!
//! `/fixed` answers a constant body (1 KiB, or `/fixed?size=N`) as fast as it can, for measurements.

mod connection;
mod plan;
mod request;

use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use monoio::{FusionDriver, RuntimeBuilder};

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
    /// No runtime, or no thread.
    #[error("cannot start a worker: {0}")]
    Worker(io::Error),
}

/// What all threads share: set once at start, but for the counter of connections.
struct Shared {
    name: String,
    body_bytes_max: u64,
    connection_count: AtomicU64,
}

/// Serves until the process is ended.
///
/// Errors: the address cannot be understood or bound, or a thread cannot be started.
pub fn run(options: &Options) -> Result<(), ServeError> {
    let shared = Arc::new(Shared {
        name: options.name.clone(),
        body_bytes_max: options.body_bytes_max,
        connection_count: AtomicU64::new(0),
    });
    if options.listen.contains('/') {
        return serve_unix(PathBuf::from(&options.listen), &shared);
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
    let start = |(index, listener)| {
        let shared = Arc::clone(&shared);
        let run = move || run_worker(listener, shared);
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

fn run_worker(listener: TcpListener, shared: Arc<Shared>) -> Result<(), ServeError> {
    let mut runtime = RuntimeBuilder::<FusionDriver>::new().enable_timer().build().map_err(ServeError::Worker)?;
    runtime.block_on(async move {
        let watched = listener.try_clone().and_then(monoio::net::TcpListener::from_std).map_err(ServeError::Worker)?;
        loop {
            // Accepted by hand, because a connection that may have to be reset needs a standard socket beside
            // monoio's, whose options cannot be set.
            match listener.accept() {
                Ok((stream, _)) => accept(stream, &shared),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let _ = watched.readable(false).await;
                }
                // Too few descriptors: those that finish give some back.
                Err(_) => monoio::time::sleep(std::time::Duration::from_millis(10)).await,
            }
        }
    })
}

fn accept(stream: std::net::TcpStream, shared: &Arc<Shared>) {
    let _ = stream.set_nodelay(true);
    let Ok(clone) = stream.try_clone() else { return };
    let Ok(inner) = monoio::net::TcpStream::from_std(clone) else { return };
    let id = shared.connection_count.fetch_add(1, Ordering::Relaxed) + 1;
    let reset: Rc<dyn Fn()> = Rc::new(move || {
        let _ = socket2::SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO));
    });
    monoio::spawn(connection::serve(inner, id, reset, Arc::clone(shared)));
}

fn serve_unix(path: PathBuf, shared: &Arc<Shared>) -> Result<(), ServeError> {
    let fail = |source| ServeError::Listen { address: path.display().to_string(), source };
    // A socket file that nobody listens on is left over from a run before.
    if path.exists() && std::os::unix::net::UnixStream::connect(&path).is_err() {
        std::fs::remove_file(&path).map_err(fail)?;
    }
    let mut runtime = RuntimeBuilder::<FusionDriver>::new().enable_timer().build().map_err(ServeError::Worker)?;
    runtime.block_on(async {
        // Unix sockets refuse SO_REUSEPORT, which monoio sets by default.
        let options = monoio::net::ListenerOpts::new().reuse_port(false).reuse_addr(false);
        let listener = monoio::net::UnixListener::bind_with_config(&path, &options).map_err(fail)?;
        println!("listening on {}", path.display());
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            let id = shared.connection_count.fetch_add(1, Ordering::Relaxed) + 1;
            // A unix socket has no reset; closing it is as abrupt as it gets.
            monoio::spawn(connection::serve(stream, id, Rc::new(|| {}), Arc::clone(shared)));
        }
    })
}
