//! The backend's side: connections that are leased to one request at a time and returned, or shared by the streams of several, all
//! owned by one core.

mod by_alpn;
pub mod connection;
pub mod http2;
pub mod pool;
pub mod stream;

pub use connection::Upstream;
pub use http2::SendHeadError;
pub use pool::{AcquireError, Chosen, Lease, Pools};
pub use stream::UpstreamStream;
