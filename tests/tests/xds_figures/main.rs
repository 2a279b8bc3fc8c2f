//! What it costs to follow a control plane that never rests, and what clients notice of it.
//!
//! By default each run takes a few seconds and checks that nothing fails. `TORUS_XDS_LONG=1` makes the runs as long as what is claimed of
//! them, sends real Envoy through the same script, and prints the figures of both; it wants optimised programs and a quiet machine:
//! `TORUS_XDS_LONG=1 cargo test --release -p torus-tests --test xds_figures -- --test-threads 1 --nocapture`.

#![allow(unreachable_pub, reason = "modules of one test program")]

mod churn;
mod listeners;
mod plane;
mod resources;
mod start;
mod subject;
mod swaps;
