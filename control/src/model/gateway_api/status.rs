//! What is said of an object in its `status`.

use serde_json::{Value, json};

use crate::source::ResourceName;

/// The name under which Istio's controller, whose configuration this is, signs.
pub const CONTROLLER: &str = "istio.io/gateway-controller";
pub(super) const MESH_CONTROLLER: &str = "istio.io/mesh-controller";

/// The status of one object. Times are not in it: who writes it down knows when it changed.
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    pub resource: ResourceName,
    pub version: String,
    pub status: Value,
}

/// Why something does not do what was written: the API's reason, and a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) reason: &'static str,
    pub(super) message: String,
}

impl Fault {
    pub(super) fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// A condition that holds, with `reason` and `message`, unless there is a fault.
pub(super) fn condition(kind: &str, reason: &str, message: &str, fault: Option<&Fault>) -> Value {
    match fault {
        Some(fault) => json!({"type": kind, "status": "False", "reason": fault.reason, "message": fault.message}),
        None => json!({"type": kind, "status": "True", "reason": reason, "message": message}),
    }
}
