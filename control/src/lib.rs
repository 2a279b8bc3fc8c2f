//! The control plane: what users write for Istio and Kubernetes comes in, Envoy's v3 API goes out.

pub mod analyze;
pub mod ctl;
pub mod daemon;
pub mod evaluate;
pub mod model;
pub mod push;
pub mod serve;
pub mod source;
pub mod translate;
pub mod validate;
