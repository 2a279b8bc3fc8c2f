//! From bytes to the immutable [`snapshot::Snapshot`] that workers read.

pub mod address;
pub mod advice;
pub mod bootstrap;
pub mod cidr;
pub mod diagnostic;
pub mod discovery;
pub mod flags;
pub mod ledger;
pub mod lifecycle;
pub mod parse;
pub mod publish;
pub mod reject;
pub mod snapshot;
pub mod thread;
pub mod watched_file;
