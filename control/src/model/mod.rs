//! The mesh in our own words: what objects mean, validated once, read by translation.

pub mod api;
mod check;
pub mod config;
pub(crate) mod destination;
mod finding;
pub mod gateway_api;
pub mod host;
mod mesh;
pub(crate) mod peer_authentication;
pub mod protocol;
mod proxy;
mod registry;
pub mod secret;
mod service;
pub(crate) mod sidecar;
mod virtual_service;

pub use config::{Config, Origin, Visibility};
pub use finding::{Finding, Severity};
pub use mesh::{Mesh, MeshOptions};
pub use proxy::{NodeError, Proxy, ProxyKind};
pub use service::{Endpoint, Resolution, Service, ServicePort};
pub use virtual_service::MESH;
