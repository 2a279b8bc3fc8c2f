//! Per-core asynchronous runtime.
