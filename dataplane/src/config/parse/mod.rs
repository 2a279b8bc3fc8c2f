//! Envoy's messages become types that cannot be wrong.

pub mod address;
pub mod context;
pub mod runtime;

pub use context::ParseContext;
