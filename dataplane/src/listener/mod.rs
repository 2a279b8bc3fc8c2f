//! Listening sockets, and what comes before a connection is served: listener filters and the choice of a filter chain.
//!
//! Sockets belong to the process and live as long as their address is configured; workers borrow them.

pub mod chain_match;
pub mod client_hello;
pub mod filter;
pub mod proxy_protocol;
pub mod socket;
