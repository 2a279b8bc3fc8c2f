//! Load generator and test server.
//!
//! `run` asks a target for what a [`plan`] says and reports what happened: [`worker`] sends, [`record`] counts, [`verdict`] says
//! whether the figures are worth anything, [`slo`] whether they are good enough, [`report`] prints them. [`compare`] runs several targets
//! in turn. `serve` is a target.

pub mod compare;
pub mod distributed;
pub mod environment;
pub mod plan;
pub mod quantity;
pub mod record;
pub mod report;
pub mod run;
mod runtime;
pub mod serve;
pub mod slo;
mod timer;
pub mod tls;
pub mod verdict;
pub mod websocket;
pub mod worker;
