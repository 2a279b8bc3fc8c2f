//! Envoy's v3 API for programs: YAML or JSON with `@type` to protobuf and back, with file, line and column.
//!
//! ```
//! use envoy_types::pb::envoy::config::core::v3::SocketAddress;
//!
//! let address: SocketAddress = torus_xds::from_yaml("{address: 127.0.0.1, port_value: 80}").unwrap();
//! assert_eq!(address.address, "127.0.0.1");
//!
//! let errors = torus_xds::from_yaml::<SocketAddress>("address: 127.0.0.1\nprot_value: 80").unwrap_err();
//! assert!(errors[0].to_string().contains("yaml:2:1: unknown field `prot_value`"));
//! assert_eq!(errors[0].suggestion.as_deref(), Some("port_value"));
//! ```

mod binary;
pub mod canonical;
pub mod diagnostic;
pub mod document;
pub mod json;
mod load;
pub mod path;
mod redact;
mod scalar;
pub mod schema;
pub mod serving;
pub mod subscription;
mod transcode;
pub mod wire;

pub use diagnostic::{Diagnostic, Severity};
pub use document::{Document, Format};
pub use json::{message_to_json, to_json};
pub use load::{Encoded, Source, encode, encode_list, from_json, from_yaml};
pub use redact::redacted;
pub use schema::MessageType;
pub use transcode::UnknownFields;
