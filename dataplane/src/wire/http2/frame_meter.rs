//! Watches the frames that a peer sends, and says when it makes work without progress.
//!
//! Why: a frame costs its sender a few bytes and us a decode, an answer or an upstream request. Every count here is a rate or a
//! ratio to honest work, never a number for the connection's life: a channel that lives for days and cancels now and then is no
//! attack. Acts on the frame that exceeds a limit; the owner then sends GOAWAY with the reason and closes (RFC 9113 §10.5).
//! It also finds the faults for which the codec has another error code than RFC 9113: frames of a wrong length, a window that is
//! too large, pushes, and fields and DATA for a stream that its peer has ended.
//! Leaves alone what the codec bounds by itself: the size of frames and of header blocks, the number of CONTINUATION frames, the
//! number of streams, and flow control.

use std::fmt;
use std::time::Duration;

use h2::Reason;
use torus_ring::Nanos;

use super::field_block::FieldBlock;

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

/// What a peer did too often, or wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offence {
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
    /// A frame whose type does not come in its length.
    FrameSize,
    /// A window above 2^31-1.
    WindowSize,
    /// HEADERS or DATA after the peer ended its stream.
    StreamClosed,
    /// PUSH_PROMISE, which no client may send and no server that was told not to.
    Push,
    /// A field block that is no HPACK.
    Compression,
    /// A pseudo-field among a request's trailers.
    PseudoTrailer,
}

impl Offence {
    /// The error code of the GOAWAY that answers it. Source: RFC 9113 §4.2, §4.3, §5.1, §6.5.2, §8.1, §8.4, §10.5.
    pub fn reason(self) -> Reason {
        match self {
            Self::Resets | Self::Control | Self::Empty | Self::Priority | Self::WindowUpdates => {
                Reason::ENHANCE_YOUR_CALM
            }
            Self::FrameSize => Reason::FRAME_SIZE_ERROR,
            Self::WindowSize => Reason::FLOW_CONTROL_ERROR,
            Self::StreamClosed => Reason::STREAM_CLOSED,
            Self::Push | Self::PseudoTrailer => Reason::PROTOCOL_ERROR,
            Self::Compression => Reason::COMPRESSION_ERROR,
        }
    }
}

impl fmt::Display for Offence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Resets => "too many streams were reset (RFC 9113 §10.5)",
            Self::Control => "too many SETTINGS or PING frames (RFC 9113 §10.5)",
            Self::Empty => "too many frames without payload (RFC 9113 §10.5)",
            Self::Priority => "too many PRIORITY frames (RFC 9113 §10.5)",
            Self::WindowUpdates => "too many WINDOW_UPDATE frames (RFC 9113 §10.5)",
            Self::FrameSize => "a frame has a length that its type does not have (RFC 9113 §4.2)",
            Self::WindowSize => "a flow-control window is above 2^31-1 (RFC 9113 §6.5.2, §6.9.1)",
            Self::StreamClosed => "HEADERS or DATA came for a stream that had ended (RFC 9113 §5.1)",
            Self::Push => "PUSH_PROMISE came although nobody may push (RFC 9113 §8.4)",
            Self::Compression => "a field block is no HPACK (RFC 9113 §4.3)",
            Self::PseudoTrailer => "a pseudo-field is among trailers (RFC 9113 §8.1)",
        })
    }
}

/// Follows the frames of a connection. Source: RFC 9113 §4.1.
pub struct FrameMeter {
    limits: FrameLimits,
    /// Replies may have several heads, so that only requests tell which block is one of trailers.
    peer_is_client: bool,
    received: Walker,
    sent: Walker,
    header_block_since: Option<Nanos>,
    consecutive_empty: u32,
    streams: u64,
    /// The highest stream for which HEADERS came.
    stream_last: u32,
    /// The streams that the peer ended last, in a ring.
    ended: [u32; ENDED_COUNT],
    ended_next: usize,
    /// The stream whose window grew last, and by how much since DATA was sent.
    grown: (u32, u32),
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
            peer_is_client: has_preface,
            received: Walker::new(if has_preface { PREFACE_BYTES } else { 0 }),
            sent: Walker::new(if has_preface { 0 } else { PREFACE_BYTES }),
            header_block_since: None,
            consecutive_empty: 0,
            streams: 0,
            stream_last: 0,
            ended: [NO_STREAM; ENDED_COUNT],
            ended_next: 0,
            grown: (NO_STREAM, 0),
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
    pub fn on_sent(&mut self, mut bytes: &[u8], now: Nanos) -> Result<(), Offence> {
        while let Some(frame) = self.sent.next_frame(&mut bytes) {
            match frame.kind {
                DATA => {
                    self.data_sent += 1;
                    self.grown = (NO_STREAM, 0);
                }
                RST_STREAM if !OWN_RESET_CODES.contains(&frame.value) => self.on_reset(now)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Follows received bytes.
    pub fn on_received(&mut self, mut bytes: &[u8], now: Nanos) -> Result<(), Offence> {
        while let Some(frame) = self.received.next_frame(&mut bytes) {
            self.received.fault.map_or(Ok(()), Err)?;
            self.on_frame(frame, now)?;
        }
        self.received.fault.map_or(Ok(()), Err)?;
        within(!self.received.settings.window_is_too_large, Offence::WindowSize)
    }

    fn on_reset(&mut self, now: Nanos) -> Result<(), Offence> {
        let allowed = self.resets.spend(RESET_COST, RESET_BURST, RESET_REFILL, now);
        within(allowed, Offence::Resets)
    }

    fn note_ended(&mut self, stream: u32) {
        if let Some(place) = self.ended.get_mut(self.ended_next) {
            *place = stream;
        }
        self.ended_next = (self.ended_next + 1) % ENDED_COUNT;
    }

    fn on_frame(&mut self, frame: FrameStart, now: Nanos) -> Result<(), Offence> {
        let FrameStart { kind, flags, length, stream, .. } = frame;
        within(has_its_length(kind, flags, length), Offence::FrameSize)?;
        match kind {
            DATA | HEADERS | CONTINUATION => {
                let ends = flags & END_STREAM != 0 && kind != CONTINUATION;
                self.consecutive_empty = if length == 0 && !ends { self.consecutive_empty + 1 } else { 0 };
                // Trailers and DATA are for a stream that goes on. Within a header block they are the codec's to refuse (§6.10).
                if kind != CONTINUATION && self.header_block_since.is_none() {
                    within(stream > self.stream_last || !self.ended.contains(&stream), Offence::StreamClosed)?;
                }
                if kind != DATA {
                    let is_trailer = self.peer_is_client && stream <= self.stream_last;
                    let is_first = kind == HEADERS && self.header_block_since.is_none();
                    self.received.fields.begin(flags, length, is_first.then_some(is_trailer))?;
                }
                if kind == HEADERS {
                    self.stream_last = self.stream_last.max(stream);
                    self.streams += 1;
                    self.resets.earn(1, RESET_BURST);
                }
                if ends {
                    self.note_ended(stream);
                }
                if kind != DATA {
                    let open = flags & END_HEADERS == 0;
                    self.header_block_since = open.then(|| self.header_block_since.unwrap_or(now));
                }
                within(self.consecutive_empty <= self.limits.consecutive_empty_max, Offence::Empty)
            }
            PRIORITY => {
                self.priorities += 1;
                let max = u64::from(self.limits.priority_per_stream_max) * (1 + self.streams);
                within(self.priorities <= max, Offence::Priority)
            }
            WINDOW_UPDATE => {
                self.window_updates += 1;
                let per_data = u64::from(self.limits.window_updates_per_data_max);
                let max = 5 + 2 * (self.streams + per_data * self.data_sent);
                within(self.window_updates <= max, Offence::WindowUpdates)?;
                let since_data = if self.grown.0 == stream { self.grown.1 } else { 0 };
                self.grown = (stream, since_data.saturating_add(frame.value & STREAM_MASK));
                within(self.grown.1 <= WINDOW_BYTES_MAX, Offence::WindowSize)
            }
            RST_STREAM => {
                self.note_ended(stream);
                self.on_reset(now)
            }
            PUSH_PROMISE => Err(Offence::Push),
            SETTINGS | PING if flags & ACK == 0 => {
                let burst = self.limits.control_burst;
                within(self.control.spend(1, burst, (burst / 10).max(1), now), Offence::Control)
            }
            _ => Ok(()),
        }
    }
}

/// Finds where frames begin, whatever pieces they come in.
struct Walker {
    /// Bytes until the next frame header: the preface or a payload.
    skip_bytes: u64,
    /// A frame header, and the value of RST_STREAM and WINDOW_UPDATE.
    start: [u8; 13],
    start_bytes: usize,
    settings: Settings,
    fields: FieldBlock,
    /// What is wrong with the fields that went by.
    fault: Option<Offence>,
}

/// Reads the values of a SETTINGS frame (RFC 9113 §6.5.1).
#[derive(Default)]
struct Settings {
    /// Bytes of the frame's payload that are still to come.
    left_bytes: u64,
    entry: [u8; 6],
    entry_bytes: usize,
    window_is_too_large: bool,
}

impl Settings {
    fn read(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if let Some(place) = self.entry.get_mut(self.entry_bytes) {
                *place = *byte;
            }
            self.entry_bytes += 1;
            if self.entry_bytes == self.entry.len() {
                self.entry_bytes = 0;
                let [high, low, value @ ..] = self.entry;
                let name = u16::from_be_bytes([high, low]);
                self.window_is_too_large |= name == INITIAL_WINDOW_SIZE && u32::from_be_bytes(value) > WINDOW_BYTES_MAX;
            }
        }
    }
}

/// The fixed part of a frame.
#[derive(Clone, Copy)]
struct FrameStart {
    kind: u8,
    flags: u8,
    length: u32,
    stream: u32,
    /// The error code of RST_STREAM, the increment of WINDOW_UPDATE.
    value: u32,
}

impl Walker {
    fn new(skip_bytes: u64) -> Self {
        Self {
            skip_bytes,
            start: [0; 13],
            start_bytes: 0,
            settings: Settings::default(),
            fields: FieldBlock::new(),
            fault: None,
        }
    }

    /// The next frame that begins in `bytes`, which is then what follows its fixed part.
    fn next_frame(&mut self, bytes: &mut &[u8]) -> Option<FrameStart> {
        loop {
            if self.skip_bytes > 0 {
                let skipped = usize::try_from(self.skip_bytes).unwrap_or(usize::MAX).min(bytes.len());
                self.skip_bytes -= skipped as u64;
                if self.settings.left_bytes > 0 {
                    self.settings.read(bytes.get(..skipped).unwrap_or_default());
                    self.settings.left_bytes -= skipped as u64;
                }
                if self.fields.left_bytes() > 0 && self.fault.is_none() {
                    self.fault = self.fields.read(bytes.get(..skipped).unwrap_or_default()).err();
                }
                *bytes = bytes.get(skipped..).unwrap_or_default();
            }
            let (first, rest) = bytes.split_first()?;
            *bytes = rest;
            if let Some(place) = self.start.get_mut(self.start_bytes) {
                *place = *first;
            }
            self.start_bytes += 1;
            let [high, middle, low, kind, flags, id @ .., value_0, value_1, value_2, value_3] = self.start;
            let length = u32::from_be_bytes([0, high, middle, low]);
            let value_bytes = if matches!(kind, RST_STREAM | WINDOW_UPDATE) && length >= 4 { 4 } else { 0 };
            if self.start_bytes >= 9 && self.start_bytes == 9 + value_bytes {
                self.start_bytes = 0;
                self.skip_bytes = u64::from(length) - value_bytes as u64;
                if kind == SETTINGS {
                    self.settings.left_bytes = self.skip_bytes;
                    self.settings.entry_bytes = 0;
                }
                let stream = u32::from_be_bytes(id) & STREAM_MASK;
                let value = u32::from_be_bytes([value_0, value_1, value_2, value_3]);
                return Some(FrameStart { kind, flags, length, stream, value });
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

/// Whether a frame has a length that its type allows (RFC 9113 §6.3 to §6.9).
fn has_its_length(kind: u8, flags: u8, length: u32) -> bool {
    match kind {
        PRIORITY => length == 5,
        RST_STREAM | WINDOW_UPDATE => length == 4,
        SETTINGS if flags & ACK != 0 => length == 0,
        SETTINGS => length.is_multiple_of(6),
        PING => length == 8,
        _ => true,
    }
}

fn within(allowed: bool, offence: Offence) -> Result<(), Offence> {
    if allowed { Ok(()) } else { Err(offence) }
}

const PREFACE_BYTES: u64 = 24;
/// A reset costs two streams' worth: who resets less than half of what it opens never runs out.
const RESET_COST: u32 = 2;
const RESET_BURST: u32 = 2_000;
const RESET_REFILL: u32 = 200;
/// With which the proxy resets streams of its own accord: NO_ERROR, INTERNAL_ERROR, CANCEL (RFC 9113 §7).
const OWN_RESET_CODES: &[u32] = &[0x0, 0x2, 0x8];

/// How many ended streams are remembered: a frame for an older one is the codec's to refuse.
const ENDED_COUNT: usize = 32;
/// The bit above a stream's number says nothing (RFC 9113 §4.1).
const STREAM_MASK: u32 = 0x7fff_ffff;
/// What no frame can name.
const NO_STREAM: u32 = u32::MAX;
const INITIAL_WINDOW_SIZE: u16 = 0x4;
const WINDOW_BYTES_MAX: u32 = 0x7fff_ffff;

// Frame types and flags (RFC 9113 §6).
const DATA: u8 = 0x0;
const HEADERS: u8 = 0x1;
const PRIORITY: u8 = 0x2;
const RST_STREAM: u8 = 0x3;
const SETTINGS: u8 = 0x4;
const PUSH_PROMISE: u8 = 0x5;
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
    fn taken(frames: &[Vec<u8>], rounds: u32, gap: Duration) -> (u32, Option<Offence>) {
        let mut meter = FrameMeter::new(FrameLimits::default(), false);
        let mut now = Nanos::from_nanos(1_000_000_000);
        for round in 0..rounds {
            for bytes in frames {
                let mut bytes = bytes.clone();
                // Each round has a stream of its own.
                bytes[5..9].copy_from_slice(&(1 + 2 * round).to_be_bytes());
                // One byte at a time: a frame header may come in pieces.
                for byte in bytes {
                    if let Err(offence) = meter.on_received(&[byte], now) {
                        return (round, Some(offence));
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
        assert_eq!(taken(&[open.clone(), reset.clone()], 100_000, at_once), (1_999, Some(Offence::Resets)));
        // 100,000 cancelled streams of a long channel, and a busy one that cancels every third.
        assert_eq!(taken(&[open.clone(), reset.clone()], 100_000, Duration::from_millis(6)), (100_000, None));
        let busy = [open.clone(), open.clone(), open.clone(), reset];
        assert_eq!(taken(&busy, 100_000, Duration::from_micros(10)), (100_000, None));
        assert_eq!(taken(&[frame(PING, 0, 8)], 5_000, at_once), (1_000, Some(Offence::Control)));
        assert_eq!(taken(&[frame(PING, ACK, 8)], 5_000, at_once), (5_000, None));
        assert_eq!(taken(&[frame(SETTINGS, 0, 0)], 5_000, at_once), (1_000, Some(Offence::Control)));
        assert_eq!(taken(&[frame(PING, 0, 8)], 5_000, Duration::from_millis(20)), (5_000, None));
        assert_eq!(taken(&[frame(PRIORITY, 0, 5)], 5_000, at_once), (100, Some(Offence::Priority)));
        assert_eq!(taken(&[frame(DATA, 0, 0)], 5_000, at_once), (1, Some(Offence::Empty)));
        assert_eq!(taken(&[frame(DATA, END_STREAM, 0)], 5_000, at_once), (5_000, None));
        assert_eq!(taken(&[frame(WINDOW_UPDATE, 0, 4)], 5_000, at_once), (5, Some(Offence::WindowUpdates)));
        assert_eq!(taken(&[open, frame(WINDOW_UPDATE, 0, 4)], 5_000, at_once), (5_000, None));
    }

    #[test]
    fn faults_of_frames_have_their_own_error_codes() {
        let check = |frames: &[&[u8]], expected: Option<Offence>| {
            let mut meter = FrameMeter::new(FrameLimits::default(), false);
            let now = Nanos::from_nanos(1_000_000_000);
            let found = frames.concat().iter().find_map(|byte| meter.on_received(&[*byte], now).err());
            assert_eq!(found, expected, "{frames:x?}");
        };
        check(&[&frame(PING, 0, 7)], Some(Offence::FrameSize));
        check(&[&frame(PRIORITY, 0, 4)], Some(Offence::FrameSize));
        check(&[&frame(RST_STREAM, 0, 3)], Some(Offence::FrameSize));
        check(&[&frame(RST_STREAM, 0, 5)], Some(Offence::FrameSize));
        check(&[&frame(WINDOW_UPDATE, 0, 3)], Some(Offence::FrameSize));
        check(&[&frame(SETTINGS, 0, 5)], Some(Offence::FrameSize));
        check(&[&frame(SETTINGS, ACK, 6)], Some(Offence::FrameSize));
        check(&[&frame(SETTINGS, 0, 12)], None);
        check(&[&frame(PUSH_PROMISE, 0, 8)], Some(Offence::Push)); // the codec waits for the rest of its fields
        let window = |value: u32| [&frame(SETTINGS, 0, 12)[..15], &[0, 4], &value.to_be_bytes()].concat();
        check(&[&window(0x7fff_ffff)], None);
        check(&[&window(0x8000_0000)], Some(Offence::WindowSize));
        let grow = |value: u32| [&frame(WINDOW_UPDATE, 0, 4)[..9], &value.to_be_bytes()].concat();
        check(&[&grow(0x7fff_ffff)], None);
        check(&[&grow(0x7fff_ffff), &grow(1)], Some(Offence::WindowSize));
        let open = |flags| frame(HEADERS, END_HEADERS | flags, 3);
        check(&[&open(0), &frame(DATA, 0, 3), &open(END_STREAM)], None); // trailers
        check(&[&open(END_STREAM), &open(END_STREAM)], Some(Offence::StreamClosed));
        check(&[&open(END_STREAM), &frame(DATA, 0, 3)], Some(Offence::StreamClosed));
        check(&[&frame(HEADERS, END_STREAM, 3), &frame(DATA, 0, 3)], None); // the codec's PROTOCOL_ERROR
        check(&[&open(0), &frame(DATA, END_STREAM, 3), &frame(DATA, END_STREAM, 0)], Some(Offence::StreamClosed));
        check(&[&open(0), &frame(RST_STREAM, 0, 4), &frame(DATA, 0, 3)], Some(Offence::StreamClosed));
        check(&[&open(0), &frame(DATA, END_STREAM, 3), &open(END_STREAM)], Some(Offence::StreamClosed));
        check(&[&open(0), &frame(RST_STREAM, 0, 4), &open(0)], Some(Offence::StreamClosed));
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
