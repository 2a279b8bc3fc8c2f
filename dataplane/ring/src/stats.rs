//! What a ring counts about itself.

use std::time::Duration;

/// Counters and gauges of one ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingStats {
    /// Turns of the loop.
    pub turns: u64,
    /// System calls that submitted or waited.
    pub enters: u64,
    /// Completions or events handled.
    pub events: u64,
    /// Connections accepted.
    pub accepted: u64,
    /// Bytes received.
    pub bytes_received: u64,
    /// Bytes sent.
    pub bytes_sent: u64,
    /// Times that a socket's receiving was paused because its queue was full.
    pub paused: u64,
    /// Operations cancelled.
    pub cancelled: u64,
    /// Times that a receive found no free buffer.
    pub buffers_exhausted: u64,
    /// Times that the completion queue was seen to overflow; nothing is lost, but the kernel takes a slow path.
    pub completions_overflowed: u64,
    /// Submissions that the kernel refused for the moment and that were made again.
    pub submits_retried: u64,
    /// Tasks that panicked and were dropped.
    pub task_panics: u64,
    /// Longest time between the kernel's answer and the next wait: how late an event could be served.
    pub loop_lag_max: Duration,
    /// Operations that the kernel has and has not completed (io_uring).
    pub operations_in_flight: u64,
    /// Receive buffers that chunks refer to.
    pub buffers_leased: u64,
    /// Copies of received bytes outside the receive buffers.
    pub chunks_copied: u64,
    /// Sockets open, those that are closing included.
    pub sockets_open: u64,
    /// Sockets parked.
    pub sockets_parked: u64,
    /// Listeners open.
    pub listeners_open: u64,
    /// Tasks alive.
    pub tasks: u64,
}
