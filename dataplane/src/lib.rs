//! torus-proxy: the data plane. Modules depend downwards in the order of this list, with one exception that the map explains:
//! `config` and `telemetry` hold the types that every other room reads. See ARCHITECTURE.md.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unreachable)
)]

pub mod admin;
pub mod worker;

pub mod listener;

pub mod downstream;

pub mod exchange;

pub mod filter;

pub mod route;

pub mod cluster;

pub mod upstream;

pub mod wire;

pub mod transport;

pub mod tls;

pub mod config;
pub mod slab;
pub mod telemetry;
