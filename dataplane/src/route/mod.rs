//! Which route a request takes and what that changes: virtual host, path, header and query match, rewrite, redirect.

pub mod local_reply;
pub mod table;

pub use table::RouteTable;
