//! Requests and answers without their protobuf form. Source: envoy.service.discovery.v3.

use std::sync::Arc;
use std::time::Duration;

/// A resource of an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resource {
    /// Unique in its type.
    pub name: Box<str>,
    /// Delta, and SotW where the resource is wrapped.
    pub version: Box<str>,
    /// Of the packed message.
    pub type_url: Box<str>,
    /// The packed message; `None` is a heartbeat, which only extends the time to live.
    pub body: Option<Vec<u8>>,
    /// How long the resource lives from now on.
    pub ttl: Option<Duration>,
}

/// An answer of either protocol.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Response {
    /// `version_info` or `system_version_info`.
    pub version: Box<str>,
    /// What an acknowledgement repeats.
    pub nonce: Box<str>,
    /// What there is (SotW) or what changed (delta).
    pub resources: Vec<Resource>,
    /// Delta: `removed_resources`.
    pub removed: Vec<Box<str>>,
}

/// A request with the type that it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// `type_url`
    pub type_url: Arc<str>,
    /// Whether the client says who it is.
    pub with_node: bool,
    /// The rest.
    pub ask: Ask,
}

/// What a subscription asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// What differs between the protocols.
    pub body: Body,
    /// `response_nonce`; empty where nothing is acknowledged.
    pub nonce: Box<str>,
    /// `error_detail`
    pub refusal: Option<Nack>,
}

/// What differs between the protocols.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// DiscoveryRequest.
    Sotw {
        /// `version_info`: the newest that was accepted.
        version: Box<str>,
        /// `resource_names`
        resource_names: Vec<Box<str>>,
    },
    /// DeltaDiscoveryRequest.
    Delta {
        /// `resource_names_subscribe`
        subscribe: Vec<Box<str>>,
        /// `resource_names_unsubscribe`
        unsubscribe: Vec<Box<str>>,
        /// `initial_resource_versions`: name and version.
        initial_versions: Vec<(Box<str>, Box<str>)>,
    },
}

/// Why an answer is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nack {
    /// A line for each resource: name, field, reason.
    pub message: String,
}

impl Nack {
    /// A refusal; what is longer than [`MESSAGE_BYTES_MAX`] is cut.
    pub(super) fn new(mut message: String) -> Self {
        if message.len() > MESSAGE_BYTES_MAX {
            let end = (0..=MESSAGE_BYTES_MAX).rev().find(|at| message.is_char_boundary(*at)).unwrap_or(0);
            message.truncate(end);
            message.push_str(" ...");
        }
        Self { message }
    }
}

/// Bytes of a refusal: what a server can log.
const MESSAGE_BYTES_MAX: usize = 4096;
