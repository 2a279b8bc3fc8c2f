//! Asks a silent peer whether it is still there (RFC 9113 §6.7).

use std::task::{Context, Poll};
use std::time::Duration;

use h2::{Ping, PingPong};
use torus_ring::Nanos;

use super::KeepaliveOptions;

/// The PINGs of one connection.
pub struct Keepalive {
    options: KeepaliveOptions,
    ping: PingPong,
    /// When the next PING is due, or the answer to the last one.
    at: Nanos,
    is_awaiting: bool,
}

impl Keepalive {
    /// Begins to ask; `None` where that is off or the codec's PINGs are taken.
    pub fn new(options: Option<KeepaliveOptions>, ping: Option<PingPong>, now: Nanos, random: u64) -> Option<Self> {
        let (options, ping) = (options?, ping?);
        let at = now + interval(&options, random);
        Some(Self { options, ping, at, is_awaiting: false })
    }

    /// When [`Self::poll`] is due.
    pub fn deadline(&self) -> Nanos {
        self.at
    }

    /// Sends what is due; ready when the answer did not come in time.
    pub fn poll(&mut self, now: Nanos, random: u64, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_awaiting && self.ping.poll_pong(cx).is_ready() {
            self.is_awaiting = false;
            self.at = now + interval(&self.options, random);
        }
        if self.at > now {
            return Poll::Pending;
        }
        if self.is_awaiting {
            return Poll::Ready(());
        }
        if self.ping.send_ping(Ping::opaque()).is_ok() {
            self.is_awaiting = true;
            self.at = now + self.options.timeout;
            // Leaves its waker for the answer.
            let _ = self.ping.poll_pong(cx);
        } else {
            self.at = now + interval(&self.options, random);
        }
        Poll::Pending
    }
}

fn interval(options: &KeepaliveOptions, random: u64) -> Duration {
    let jitter_nanos = options.interval.as_nanos() * u128::from(options.jitter_percent) / 100;
    let added = (u128::from(random) * jitter_nanos) >> 64;
    options.interval + Duration::from_nanos(u64::try_from(added).unwrap_or(u64::MAX))
}
