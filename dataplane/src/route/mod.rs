//! Which route a request takes and what that changes: virtual host, path, header and query match, rewrite, redirect.
//!
//! A [`RouteTable`] is parsed once and never changes. Per request, [`RouteTable::find`] gives a [`Match`]; its methods choose the
//! cluster and rewrite the heads in both directions. None of them allocates after warm-up: what must be built is built in
//! [`Scratch`], of which each worker has one.

pub mod action;
mod domain;
pub mod hash;
pub mod header_match;
pub mod local_reply;
pub mod mutation;
pub mod parameters;
mod path_match;
pub mod pattern;
pub mod rewrite;
pub mod scratch;
pub mod string_match;
pub mod table;
#[cfg(test)]
mod tests;
pub mod timeout;
mod uri_template;

pub use action::{Action, DirectResponse, Forward, Priority, Redirect};
pub use scratch::Scratch;
pub use table::{ClusterChoice, ClusterTarget, Found, Match, Route, RouteTable, VirtualHost, Weighted};
