//! Watches the frames that a peer sends, and says when it makes work without progress.
//!
//! Why: a frame costs its sender a few bytes and us a decode, an answer or an upstream request. Every count here is a rate or a
//! ratio to honest work, never a number for the connection's life: a channel that lives for days and cancels now and then is no
//! attack. Acts on the frame that exceeds a limit; the owner then sends GOAWAY with ENHANCE_YOUR_CALM and closes (RFC 9113 §10.5).
//! Leaves alone what the codec bounds by itself: the size of frames and of header blocks, the number of CONTINUATION frames, the
//! number of streams, and flow control.

use std::fmt;
use std::time::Duration;

use torus_ring::Nanos;

/// What a peer may send. Source: envoy.config.core.v3.Http2ProtocolOptions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameLimits {
    /// HEADERS, CONTINUATION and DATA frames in a row with no payload and no end of the stream.
    pub consecutive_empty_max: u32,
    /// PRIORITY frames for each stream that was opened.
    pub priority_per_stream_max: u32,
    /// WINDOW_UPDATE frames for each DATA frame that was sent.
    pub window_updates_per_data_max: u32,
    /// SETTINGS and PING frames, each of which wants an answer, at once; a tenth of it a second is allowed for ever.
    pub control_burst: u32,
}

impl Default for FrameLimits {
    fn default() -> Self {
        Self {
            consecutive_empty_max: 1,
            priority_per_stream_max: 100,
            window_updates_per_data_max: 10,
            control_burst: 1_000,
        }
    }
}

/// What a peer did too often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Excess {
    /// Streams were reset about as soon as they were opened (CVE-2023-44487).
    Resets,
    /// SETTINGS or PING (CVE-2019-9512, CVE-2019-9515).
    Control,
    /// Frames without payload (CVE-2019-9518).
    Empty,
    /// PRIORITY (CVE-2019-9513).
    Priority,
    /// WINDOW_UPDATE (CVE-2019-9511).
    WindowUpdates,
}

impl fmt::Display for Excess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Resets => "too many streams were reset (RFC 9113 §10.5)",
            Self::Control => "too many SETTINGS or PING frames (RFC 9113 §10.5)",
            Self::Empty => "too many frames without payload (RFC 9113 §10.5)",
            Self::Priority => "too many PRIORITY frames (RFC 9113 §10.5)",
            Self::WindowUpdates => "too many WINDOW_UPDATE frames (RFC 9113 §10.5)",
        })
    }
}

/// Follows the frames of a connection. Source: RFC 9113 §4.1.
pub struct FrameMeter {
    limits: FrameLimits,
    received: Walker,
    sent: Walker,
    header_block_since: Option<Nanos>,
    consecutive_empty: u32,
    streams: u64,
    priorities: u64,
    window_updates: u64,
    data_sent: u64,
    resets: Allowance,
    control: Allowance,
}

impl FrameMeter {
    /// A meter that has seen nothing; a client's bytes begin with the preface (RFC 9113 §3.4).
    pub fn new(limits: FrameLimits, has_preface: bool) -> Self {
        Self {
            limits,
            received: Walker::new(if has_preface { PREFACE_BYTES } else { 0 }),
            sent: Walker::new(if has_preface { 0 } else { PREFACE_BYTES }),
            header_block_since: None,
            consecutive_empty: 0,
            streams: 0,
            priorities: 0,
            window_updates: 0,
            data_sent: 0,
            resets: Allowance::full(RESET_BURST),
            control: Allowance::full(limits.control_burst),
        }
    }

    /// Since when a HEADERS frame waits for its last CONTINUATION.
    pub fn header_block_since(&self) -> Option<Nanos> {
        self.header_block_since
    }

    /// Follows sent bytes: DATA earns the peer its window updates, and a stream that the peer made us reset counts as one that it
    /// reset itself (CVE-2025-8671).
    pub fn on_sent(&mut self, mut bytes: &[u8], now: Nanos) -> Result<(), Excess> {
        while let Some(frame) = self.sent.next_frame(&mut bytes) {
            match frame.kind {
                DATA => self.data_sent += 1,
                RST_STREAM if !OWN_RESET_CODES.contains(&frame.code) => self.on_reset(now)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Follows received bytes.
    pub fn on_received(&mut self, mut bytes: &[u8], now: Nanos) -> Result<(), Excess> {
        while let Some(frame) = self.received.next_frame(&mut bytes) {
            self.on_frame(frame, now)?;
        }
        Ok(())
    }

    fn on_reset(&mut self, now: Nanos) -> Result<(), Excess> {
        let allowed = self.resets.spend(RESET_COST, RESET_BURST, RESET_REFILL, now);
        within(allowed, Excess::Resets)
    }

    fn on_frame(&mut self, frame: FrameStart, now: Nanos) -> Result<(), Excess> {
        let FrameStart { kind, flags, length, .. } = frame;
        match kind {
            DATA | HEADERS | CONTINUATION => {
                let ends = flags & END_STREAM != 0 && kind != CONTINUATION;
                self.consecutive_empty = if length == 0 && !ends { self.consecutive_empty + 1 } else { 0 };
                if kind == HEADERS {
                    self.streams += 1;
                    self.resets.earn(1, RESET_BURST);
                }
                if kind != DATA {
                    let open = flags & END_HEADERS == 0;
                    self.header_block_since = open.then(|| self.header_block_since.unwrap_or(now));
                }
                within(self.consecutive_empty <= self.limits.consecutive_empty_max, Excess::Empty)
            }
            PRIORITY => {
                self.priorities += 1;
                let max = u64::from(self.limits.priority_per_stream_max) * (1 + self.streams);
                within(self.priorities <= max, Excess::Priority)
            }
            WINDOW_UPDATE => {
                self.window_updates += 1;
                let per_data = u64::from(self.limits.window_updates_per_data_max);
                let max = 5 + 2 * (self.streams + per_data * self.data_sent);
                within(self.window_updates <= max, Excess::WindowUpdates)
            }
            RST_STREAM => self.on_reset(now),
            SETTINGS | PING if flags & ACK == 0 => {
                let burst = self.limits.control_burst;
                within(self.control.spend(1, burst, (burst / 10).max(1), now), Excess::Control)
            }
            _ => Ok(()),
        }
    }
}

/// Finds where frames begin, whatever pieces they come in.
struct Walker {
    /// Bytes until the next frame header: the preface or a payload.
    skip_bytes: u64,
    /// A frame header, and the error code of RST_STREAM.
    start: [u8; 13],
    start_bytes: usize,
}

/// The fixed part of a frame.
#[derive(Clone, Copy)]
struct FrameStart {
    kind: u8,
    flags: u8,
    length: u32,
    /// Of RST_STREAM.
    code: u8,
}

impl Walker {
    fn new(skip_bytes: u64) -> Self {
        Self { skip_bytes, start: [0; 13], start_bytes: 0 }
    }

    /// The next frame that begins in `bytes`, which is then what follows its fixed part.
    fn next_frame(&mut self, bytes: &mut &[u8]) -> Option<FrameStart> {
        loop {
            if self.skip_bytes > 0 {
                let skipped = usize::try_from(self.skip_bytes).unwrap_or(usize::MAX).min(bytes.len());
                self.skip_bytes -= skipped as u64;
                *bytes = bytes.get(skipped..).unwrap_or_default();
            }
            let (first, rest) = bytes.split_first()?;
            *bytes = rest;
            if let Some(place) = self.start.get_mut(self.start_bytes) {
                *place = *first;
            }
            self.start_bytes += 1;
            let [high, middle, low, kind, flags, _, _, _, _, .., code] = self.start;
            let length = u32::from_be_bytes([0, high, middle, low]);
            let code_bytes = if kind == RST_STREAM && length >= 4 { 4 } else { 0 };
            if self.start_bytes >= 9 && self.start_bytes == 9 + code_bytes {
                self.start_bytes = 0;
                self.skip_bytes = u64::from(length) - code_bytes as u64;
                return Some(FrameStart { kind, flags, length, code });
            }
        }
    }
}

/// A token bucket.
struct Allowance {
    tokens: u32,
    filled_at: Nanos,
}

impl Allowance {
    fn full(burst: u32) -> Self {
        Self { tokens: burst, filled_at: Nanos::ZERO }
    }

    fn earn(&mut self, count: u32, burst: u32) {
        self.tokens = self.tokens.saturating_add(count).min(burst);
    }

    /// Whether `cost` tokens were there; `refill` of them come back each second.
    fn spend(&mut self, cost: u32, burst: u32, refill: u32, now: Nanos) -> bool {
        let since = now.since(self.filled_at);
        let back = since.as_millis().saturating_mul(u128::from(refill)) / 1_000;
        if back > 0 {
            self.earn(u32::try_from(back).unwrap_or(u32::MAX), burst);
            // What did not make a whole token counts next time.
            self.filled_at = self.filled_at + Duration::from_millis((back * 1_000 / u128::from(refill)) as u64);
        }
        match self.tokens.checked_sub(cost) {
            Some(left) => {
                self.tokens = left;
                true
            }
            None => false,
        }
    }
}

fn within(allowed: bool, excess: Excess) -> Result<(), Excess> {
    if allowed { Ok(()) } else { Err(excess) }
}

const PREFACE_BYTES: u64 = 24;
/// A reset costs two streams' worth: who resets less than half of what it opens never runs out.
const RESET_COST: u32 = 2;
const RESET_BURST: u32 = 2_000;
const RESET_REFILL: u32 = 200;
/// With which the proxy resets streams of its own accord: NO_ERROR, INTERNAL_ERROR, CANCEL (RFC 9113 §7).
const OWN_RESET_CODES: &[u8] = &[0x0, 0x2, 0x8];

// Frame types and flags (RFC 9113 §6).
const DATA: u8 = 0x0;
const HEADERS: u8 = 0x1;
const PRIORITY: u8 = 0x2;
const RST_STREAM: u8 = 0x3;
const SETTINGS: u8 = 0x4;
const PING: u8 = 0x6;
const WINDOW_UPDATE: u8 = 0x8;
const CONTINUATION: u8 = 0x9;
const END_STREAM: u8 = 0x1;
const ACK: u8 = 0x1;
const END_HEADERS: u8 = 0x4;

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, length: u8) -> Vec<u8> {
        let mut bytes = vec![0, 0, length, kind, flags, 0, 0, 0, 1];
        bytes.resize(9 + usize::from(length), 0);
        bytes
    }

    /// The number of rounds of `frames` that are taken, up to `rounds`, `gap` apart.
    fn taken(frames: &[Vec<u8>], rounds: u32, gap: Duration) -> (u32, Option<Excess>) {
        let mut meter = FrameMeter::new(FrameLimits::default(), false);
        let mut now = Nanos::from_nanos(1_000_000_000);
        for round in 0..rounds {
            for bytes in frames {
                // One byte at a time: a frame header may come in pieces.
                for byte in bytes {
                    if let Err(excess) = meter.on_received(std::slice::from_ref(byte), now) {
                        return (round, Some(excess));
                    }
                }
            }
            now = now + gap;
        }
        (rounds, None)
    }

    #[test]
    fn a_flood_is_told_from_honest_use() {
        let open = frame(HEADERS, END_HEADERS, 3);
        let reset = frame(RST_STREAM, 0, 4);
        let at_once = Duration::ZERO;
        // Rapid reset: each round opens a stream and resets it.
        assert_eq!(taken(&[open.clone(), reset.clone()], 100_000, at_once), (1_999, Some(Excess::Resets)));
        // 100,000 cancelled streams of a long channel, and a busy one that cancels every third.
        assert_eq!(taken(&[open.clone(), reset.clone()], 100_000, Duration::from_millis(6)), (100_000, None));
        let busy = [open.clone(), open.clone(), open.clone(), reset];
        assert_eq!(taken(&busy, 100_000, Duration::from_micros(10)), (100_000, None));
        assert_eq!(taken(&[frame(PING, 0, 8)], 5_000, at_once), (1_000, Some(Excess::Control)));
        assert_eq!(taken(&[frame(PING, ACK, 8)], 5_000, at_once), (5_000, None));
        assert_eq!(taken(&[frame(SETTINGS, 0, 0)], 5_000, at_once), (1_000, Some(Excess::Control)));
        assert_eq!(taken(&[frame(PING, 0, 8)], 5_000, Duration::from_millis(20)), (5_000, None));
        assert_eq!(taken(&[frame(PRIORITY, 0, 5)], 5_000, at_once), (100, Some(Excess::Priority)));
        assert_eq!(taken(&[frame(DATA, 0, 0)], 5_000, at_once), (1, Some(Excess::Empty)));
        assert_eq!(taken(&[frame(DATA, END_STREAM, 0)], 5_000, at_once), (5_000, None));
        assert_eq!(taken(&[frame(WINDOW_UPDATE, 0, 4)], 5_000, at_once), (5, Some(Excess::WindowUpdates)));
        assert_eq!(taken(&[open, frame(WINDOW_UPDATE, 0, 4)], 5_000, at_once), (5_000, None));
    }

    #[test]
    fn streams_that_the_peer_made_us_reset_count_as_its_own() {
        let reset = |code| [&frame(RST_STREAM, 0, 4)[..12], &[code]].concat();
        let check = |code, expected| {
            let mut meter = FrameMeter::new(FrameLimits::default(), true);
            let now = Nanos::from_nanos(1_000_000_000);
            let taken = (0..5_000).take_while(|_| meter.on_sent(&reset(code), now).is_ok()).count();
            assert_eq!(taken, expected, "code {code}");
        };
        check(1, 1_000); // PROTOCOL_ERROR
        check(5, 1_000); // STREAM_CLOSED
        check(8, 5_000); // CANCEL
    }

    #[test]
    fn an_unfinished_header_block_is_timed_from_its_first_frame() {
        let mut meter = FrameMeter::new(FrameLimits::default(), true);
        let at = Nanos::from_nanos;
        meter.on_received(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", at(1)).unwrap();
        assert_eq!(meter.header_block_since(), None);
        meter.on_received(&frame(HEADERS, 0, 3), at(5)).unwrap();
        meter.on_received(&frame(CONTINUATION, 0, 3), at(9)).unwrap();
        assert_eq!(meter.header_block_since(), Some(at(5)));
        meter.on_received(&frame(CONTINUATION, END_HEADERS, 3), at(9)).unwrap();
        assert_eq!(meter.header_block_since(), None);
    }
}
