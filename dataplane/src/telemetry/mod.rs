//! What an operator sees: counters, histograms, access logs.

pub mod access_log;
pub mod counters;
pub mod format;
pub mod histogram;
pub mod log_filter;
pub mod names;
pub mod program_log;
pub mod prometheus;
pub mod registry;
pub mod server_stats;
pub mod stats_config;
pub mod stream_info;
pub mod tags;
pub mod view;
