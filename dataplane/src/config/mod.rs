//! From bytes to the immutable [`snapshot::Snapshot`] that workers read.

pub mod address;
pub mod cidr;
pub mod parse;
pub mod reject;
pub mod snapshot;
