//! The backend's side: connections that are leased to one request at a time and returned, all owned by one core.

pub mod connection;
pub mod pool;

pub use connection::Upstream;
pub use pool::{AcquireError, Chosen, Lease, Pools};
