//! Load generator and test server.

pub mod serve;
