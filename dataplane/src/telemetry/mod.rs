//! What an operator sees: counters, histograms, access logs.

pub mod access_log;
pub mod counters;
pub mod format;
pub mod histogram;
pub mod log_filter;
pub mod names;
pub mod registry;
pub mod stream_info;
