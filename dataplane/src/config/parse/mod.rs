//! Envoy's messages become types that cannot be wrong.

pub mod address;
pub mod admin;
pub mod chain_match;
pub mod cidr;
pub mod config_source;
pub mod context;
pub mod dynamic_resources;
mod google_grpc;
pub mod http2_options;
pub mod http_connection_manager;
pub mod http_filters;
pub mod listener;
pub mod listener_filters;
pub mod network_filters;
pub mod node;
pub mod overload;
pub mod proxy_protocol;
pub mod runtime;
pub mod socket_option;
pub mod tcp_proxy;

pub use context::ParseContext;
