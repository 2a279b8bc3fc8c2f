//! Tuning of a node or a pod for Torus: what is set, what should be, the writes between, and the way back.
//!
//! ```text
//! settings/*.yaml -> Catalogue --+
//! /proc, /sys, ethtool -> Facts -+-> observe -> Observation -> plan (pure) -> Finding, Change -> apply -> Journal -> rollback
//! ```
//! Everything up to `plan` only reads. A write happens in `apply` and `rollback` alone, and only after the journal holds the
//! value that stood there before.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unreachable)
)]

pub mod apply;
pub mod bench;
pub mod catalogue;
pub mod cpu_set;
pub mod ethtool;
pub mod facts;
pub mod gates;
pub mod journal;
pub mod observe;
pub mod persist;
pub mod plan;
pub mod report;
pub mod rollback;
pub mod setting;
pub mod target;
pub mod value;
