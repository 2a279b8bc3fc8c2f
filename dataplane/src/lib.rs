//! torus-proxy: the data plane. Modules depend downwards in the order of this list, with one exception that the map explains:
//! `config` and `telemetry` hold the types that every other room reads. See ARCHITECTURE.md.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unreachable)
)]

pub mod cluster;
pub mod config;
pub mod downstream;
pub mod exchange;
pub mod listener;
pub mod route;
pub mod telemetry;
pub mod worker;
