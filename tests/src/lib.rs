//! Starts real programs on free ports for the tests in `tests/`, and judges them by what a recording backend received.
//!
//! `client -> proxy -> backend`: [`client`] sends exact bytes, [`proxy`] runs torus-proxy or real Envoy from one
//! bootstrap, [`backend`] records every byte and answers as each request asks it to.

pub mod backend;
pub mod binaries;
pub mod client;
pub mod differential;
pub mod message;
pub mod ports;
pub mod program;
pub mod proxy;
pub mod tls;
