//! The timers of one exchange behind one ring timer: setting a deadline later is a store.

use std::task::{Context, Poll};
use std::time::Duration;

use torus_ring::{Nanos, Ring, Timer};

/// Which limit was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Deadline {
    /// The whole head must be here (`request_headers_timeout`).
    RequestHead,
    /// The whole request must be here (`request_timeout`).
    Request,
    /// No byte in either direction (`stream_idle_timeout`, route `idle_timeout`).
    StreamIdle,
    /// The reply must be complete (route `timeout`), counted from the end of the request.
    Route,
    /// The reply's head must be here for this attempt (`per_try_timeout`).
    PerTry,
    /// No byte from the upstream during this attempt (`per_try_idle_timeout`).
    PerTryIdle,
    /// The request lasted too long (`max_stream_duration`).
    StreamDuration,
    /// The attempt lasted too long (the cluster's `max_stream_duration`, `x-envoy-upstream-stream-duration-ms`).
    UpstreamStreamDuration,
    /// The next attempt begins (retry back-off).
    BackOff,
    /// The client takes none of the bytes that wait for it.
    WriteProgress,
}

const DEADLINES: [Deadline; 10] = [
    Deadline::RequestHead,
    Deadline::Request,
    Deadline::StreamIdle,
    Deadline::Route,
    Deadline::PerTry,
    Deadline::PerTryIdle,
    Deadline::StreamDuration,
    Deadline::UpstreamStreamDuration,
    Deadline::BackOff,
    Deadline::WriteProgress,
];

/// The deadlines of one exchange.
pub struct Deadlines {
    at: [Option<Nanos>; DEADLINES.len()],
    armed: Option<Nanos>,
    timer: Timer,
}

impl Deadlines {
    /// No deadline yet.
    pub fn new(ring: &Ring) -> Self {
        Self { at: [None; DEADLINES.len()], armed: None, timer: ring.timer() }
    }

    /// Sets `deadline` to `timeout` from `now`; `None` takes it away.
    pub fn set(&mut self, deadline: Deadline, now: Nanos, timeout: Option<Duration>) {
        let at = timeout.map(|timeout| now + timeout);
        if let Some(slot) = self.at.get_mut(deadline as usize) {
            *slot = at;
        }
        if let Some(at) = at
            && self.armed.is_none_or(|armed| at < armed)
        {
            self.armed = Some(at);
            self.timer.set(at);
        }
    }

    /// Takes `deadline` away.
    pub fn clear(&mut self, deadline: Deadline) {
        if let Some(slot) = self.at.get_mut(deadline as usize) {
            *slot = None;
        }
    }

    /// Takes every deadline away. The timer stays as it is; when it expires for nothing, it is not armed again.
    pub fn clear_all(&mut self) {
        self.at = [None; DEADLINES.len()];
    }

    /// The first deadline that passed.
    pub fn poll_expired(&mut self, now: Nanos, cx: &mut Context<'_>) -> Poll<Deadline> {
        while self.timer.poll_expired(cx).is_ready() {
            self.armed = None;
            let mut next: Option<Nanos> = None;
            for (deadline, at) in DEADLINES.iter().zip(&mut self.at) {
                match *at {
                    Some(passed) if passed <= now => {
                        *at = None;
                        // The others are still due: look again at the next poll.
                        self.armed = Some(now);
                        self.timer.set(now);
                        return Poll::Ready(*deadline);
                    }
                    Some(later) => next = Some(next.map_or(later, |next| next.min(later))),
                    None => {}
                }
            }
            match next {
                Some(next) => {
                    self.armed = Some(next);
                    self.timer.set(next);
                }
                None => {
                    self.timer.clear();
                    return Poll::Pending;
                }
            }
        }
        Poll::Pending
    }
}
