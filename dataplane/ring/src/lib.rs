//! torus-ring: the per-core asynchronous runtime of the proxy, and the one home of `unsafe`.
//!
//! One [`Ring`] runs on one thread and owns everything there: tasks, sockets, timers and buffers. Bytes arrive as
//! [`Chunk`]s, leased from a pool of receive buffers and returned when dropped; they leave as [`Part`]s, gathered into one
//! send per socket and turn. A turn of the loop is: run the ready tasks, send what they wrote, wait once, take in what
//! happened.
//!
//! Drivers stand behind the same calls: io_uring, epoll where io_uring is refused, and a simulated network with a
//! virtual clock (see [`sim`]).
//!
//! What the kernel refers to (buffers, vectors, addresses, descriptors) belongs to the ring and never to a future: dropping
//! a future or a handle cancels the operation, and its slot, buffer and descriptor are reused only after the last
//! completion was taken in.

mod address;
mod buffer;
mod clock;
mod config;
mod connect;
mod core;
mod driver;
mod executor;
mod lanes;
mod listener;
mod listener_slot;
mod part;
mod placement;
mod remote;
mod ring;
pub mod sim;
mod slab;
mod socket;
mod stats;
mod sys;
mod timer;
mod timer_heap;

pub use address::PeerAddr;
pub use buffer::Chunk;
pub use clock::Nanos;
pub use config::{
    DriverChoice, DriverKind, DriverReport, Features, Gate, RingConfig, SetupError, SubmitFaults, UnknownDriver,
};
pub use connect::{ConnectOptions, Keepalive, SocketOption};
pub use listener::Listener;
pub use part::{Part, WriteBuffer};
pub use placement::{CPU_MAX, CpuListError, allowed_cpus, parse_cpu_list, pin_to};
pub use remote::{Heartbeat, RemoteWake};
pub use ring::{Deadlock, Ring};
pub use socket::Socket;
pub use stats::RingStats;
pub use timer::{Sleep, Timer};
