//! Access logs: a compiled format and a sink.

/// One configured access log.
pub struct AccessLog {}
