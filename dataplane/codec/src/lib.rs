//! HTTP/1.1 on the wire: heads, bodies, framing rules, limits and paths. No I/O, no clock, no randomness, no unsafe.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unreachable)
)]

pub mod headers;

pub use headers::{HeaderMap, HeaderName, Known};
