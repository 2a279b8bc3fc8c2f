//! What the model has to say about the objects it was built from.

use crate::source::{Place, ResourceName};

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The object, or a part of it, has no effect.
    Error,
    /// It has an effect, but perhaps not the one wanted.
    Warning,
    Info,
}

/// One remark on one object. `code` is Istio's analyzer code where there is one for it, for instance `IST0101`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub severity: Severity,
    pub code: &'static str,
    pub resource: ResourceName,
    pub place: Place,
    pub message: String,
}
