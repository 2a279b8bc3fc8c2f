//! TLS on the ring's buffers: what a filter chain offers, what a cluster asks for, and who the peer is.

pub mod client;
pub mod identity;
pub mod names;
mod parse;
mod reload;
pub mod secret;
pub mod server;
pub mod session;
#[cfg(test)]
mod tests;
pub mod validate;

pub use client::{ClientTls, Offer};
pub use identity::Identity;
pub use parse::{parse_client, parse_server};
pub use server::ServerTls;
pub use session::{TlsError, TlsSession};
