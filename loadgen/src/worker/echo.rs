//! Replies that must be what was sent: raw TCP, and messages of WebSocket (RFC 6455). No I/O, no clock.

use std::mem;

use super::Payload;
use super::reply::{Checks, KEPT_MAX, Malformed, Outcome, Progress};
use crate::plan::Random;
use crate::record::Cause;
use crate::websocket::{self, Head};

/// A reply that is there, good or bad.
fn done(failed: Option<Cause>, reusable: bool) -> Progress {
    Progress::Done(Outcome { status: 0, reusable, failed })
}

/// The bytes that were sent, as they come back.
#[derive(Debug)]
pub(super) struct Tcp {
    sent: Payload,
    /// Bytes of it that are back.
    at: usize,
}

impl Tcp {
    pub(super) fn new(sent: Payload) -> Tcp {
        Tcp { sent, at: 0 }
    }

    pub(super) fn feed(&mut self, bytes: &[u8]) -> Progress {
        let rest = self.sent.get(self.at..).unwrap_or_default();
        let common = rest.len().min(bytes.len());
        if rest.get(..common) != bytes.get(..common) {
            return done(Some(Cause::Echo), false);
        }
        self.at += common;
        // More than was sent is nothing that was asked for: the connection is unfit for another request.
        if self.at == self.sent.len() { done(None, bytes.len() == common) } else { Progress::More }
    }
}

/// One WebSocket connection: a message goes, its echo comes; pings in between are answered.
#[derive(Debug)]
pub(super) struct WebSocket {
    random: Random,
    sent: Payload,
    /// Bytes of the reply that have come, and whether they are those that were sent.
    at: usize,
    is_echo: bool,
    /// The begin of the reply, where it is to be checked.
    kept: Vec<u8>,
    /// Received and not yet understood.
    pending: Vec<u8>,
    /// Bytes that are left of the data frame, which is the last of its message or not.
    frame: Option<(u64, bool)>,
    in_message: bool,
    /// Frames to be written: pongs.
    answers: Vec<u8>,
}

impl WebSocket {
    pub(super) fn new(seed: u64, sent: Payload) -> WebSocket {
        WebSocket {
            random: Random(seed),
            sent,
            at: 0,
            is_echo: true,
            kept: Vec::new(),
            pending: Vec::new(),
            frame: None,
            in_message: false,
            answers: Vec::new(),
        }
    }

    /// Bytes that came with the reply to the upgrade, behind it.
    pub(super) fn begin(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
    }

    /// A key for the upgrade.
    pub(super) fn key(&mut self) -> String {
        let halves = [self.random.next().to_ne_bytes(), self.random.next().to_ne_bytes()];
        let mut bytes = [0; 16];
        bytes.iter_mut().zip(halves.as_flattened()).for_each(|(byte, random)| *byte = *random);
        websocket::key(bytes)
    }

    /// `payload` as a frame: text where it is text.
    pub(super) fn frame(&mut self, payload: &Payload) -> Vec<u8> {
        let opcode = if std::str::from_utf8(payload).is_ok() { websocket::TEXT } else { websocket::BINARY };
        let mut out = Vec::with_capacity(payload.len() + 14);
        let mask = self.mask();
        websocket::write(&mut out, opcode, payload, Some(mask));
        (self.sent, self.at, self.is_echo) = (payload.clone(), 0, true);
        self.kept.clear();
        out
    }

    fn mask(&mut self) -> [u8; 4] {
        (self.random.next() as u32).to_ne_bytes()
    }

    /// What has to be written before the rest of the reply is waited for.
    pub(super) fn answers(&mut self) -> Option<Vec<u8>> {
        (!self.answers.is_empty()).then(|| mem::take(&mut self.answers))
    }

    pub(super) fn feed(&mut self, bytes: &[u8], checks: &Checks) -> Result<Progress, Malformed> {
        let mut pending = mem::take(&mut self.pending);
        pending.extend_from_slice(bytes);
        let mut start = 0;
        let result = loop {
            let rest = pending.get(start..).unwrap_or_default();
            if let Some((left, is_last)) = self.frame {
                let taken = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
                self.take(rest.get(..taken).unwrap_or_default(), checks);
                start += taken;
                let left = left - taken as u64;
                if left > 0 {
                    self.frame = Some((left, is_last));
                    break Ok(Progress::More);
                }
                self.frame = None;
                self.in_message = !is_last;
                if is_last {
                    let behind = pending.get(start).map(|first| first & 0x0f);
                    // A goodbye, or a message that nobody asked for, leaves the connection unfit for another request.
                    let reusable = behind.is_none_or(|opcode| matches!(opcode, websocket::PING | websocket::PONG));
                    break Ok(self.judge(checks, reusable));
                }
                continue;
            }
            let head = match Head::parse(rest) {
                Ok(Some(head)) => head,
                Ok(None) => break Ok(Progress::More),
                Err(websocket::Malformed) => break Err(Malformed),
            };
            // A server does not mask (section 5.1); a message goes on with continuations alone (section 5.4).
            let starts = matches!(head.opcode, websocket::TEXT | websocket::BINARY);
            if head.mask.is_some() || head.opcode < websocket::CLOSE && starts == self.in_message {
                break Err(Malformed);
            }
            if head.opcode < websocket::CLOSE {
                self.frame = Some((head.length, head.is_final));
                start += head.head_length;
                continue;
            }
            let end = head.head_length + usize::try_from(head.length).unwrap_or(usize::MAX);
            let Some(payload) = rest.get(head.head_length..end) else { break Ok(Progress::More) };
            match head.opcode {
                websocket::CLOSE => break Ok(Progress::Closed),
                websocket::PING => {
                    let mask = self.mask();
                    websocket::write(&mut self.answers, websocket::PONG, payload, Some(mask));
                }
                _ => {}
            }
            start += end;
        };
        pending.drain(..start);
        self.pending = pending;
        result
    }

    fn take(&mut self, bytes: &[u8], checks: &Checks) {
        let expected = self.sent.get(self.at..).unwrap_or_default();
        self.is_echo &= expected.get(..bytes.len()) == Some(bytes);
        self.at += bytes.len();
        if checks.body.is_some() {
            let room = KEPT_MAX.saturating_sub(self.kept.len()).min(bytes.len());
            self.kept.extend_from_slice(bytes.get(..room).unwrap_or_default());
        }
    }

    /// A whole message: with `--expect-body` it need not be the echo.
    fn judge(&self, checks: &Checks, reusable: bool) -> Progress {
        let failed = match &checks.body {
            Some(_) if checks.is_in(&self.kept) => None,
            Some(_) => Some(Cause::Body),
            None if self.is_echo && self.at == self.sent.len() => None,
            None => Some(Cause::Echo),
        };
        done(failed, reusable)
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;
    use std::sync::Arc;

    use super::*;

    fn payload(text: &str) -> Payload {
        Rc::new(Arc::new(text.as_bytes().to_vec()))
    }

    #[test]
    fn tcp_is_echoed_or_not() {
        for (bytes, expected) in [
            ("hello", done(None, true)),
            ("hel", Progress::More),
            ("help!", done(Some(Cause::Echo), false)),
            ("hello you", done(None, false)),
        ] {
            assert_eq!(Tcp::new(payload("hello")).feed(bytes.as_bytes()), expected, "{bytes}");
        }
        let mut tcp = Tcp::new(payload("hello"));
        assert_eq!((tcp.feed(b"hel"), tcp.feed(b"lo")), (Progress::More, done(None, true)));
    }

    /// Feeds `wire` cut at every place; all cuts must give the same.
    fn check(wire: &[u8], body: Option<&str>, expected: Result<Progress, Malformed>, pong: bool) {
        let checks = Checks { body: body.map(|text| text.as_bytes().to_vec()), ..Checks::default() };
        for cut in 0..=wire.len() {
            let mut socket = WebSocket::new(1, payload(""));
            socket.frame(&payload("hello"));
            let mut result = Ok(Progress::More);
            for part in [&wire[..cut], &wire[cut..]] {
                if result == Ok(Progress::More) {
                    result = socket.feed(part, &checks);
                }
            }
            assert_eq!(result, expected, "cut at {cut} of {}", wire.escape_ascii());
            assert_eq!(socket.answers().is_some(), pong, "{}", wire.escape_ascii());
        }
    }

    #[test]
    fn a_goodbye_behind_a_message_ends_the_connection() {
        for (wire, reusable) in [(&b"\x81\x05hello\x88\x00"[..], false), (b"\x81\x05hello\x89\x00", true)] {
            let mut socket = WebSocket::new(1, payload(""));
            socket.frame(&payload("hello"));
            assert_eq!(socket.feed(wire, &Checks::default()), Ok(done(None, reusable)), "{}", wire.escape_ascii());
        }
    }

    #[test]
    fn messages_of_any_form_are_understood() {
        for (wire, body, expected, pong) in [
            (&b"\x81\x05hello"[..], None, Ok(done(None, true)), false),
            (b"\x81\x05help!", None, Ok(done(Some(Cause::Echo), true)), false),
            (b"\x81\x04hell", None, Ok(done(Some(Cause::Echo), true)), false),
            (b"\x01\x02he\x89\x01p\x80\x03llo", None, Ok(done(None, true)), true),
            (b"\x8a\x00\x82\x05hello", None, Ok(done(None, true)), false),
            (b"\x81\x07goodbye", Some("bye"), Ok(done(None, true)), false),
            (b"\x81\x05hello", Some("bye"), Ok(done(Some(Cause::Body), true)), false),
            (b"\x88\x02\x03\xe8", None, Ok(Progress::Closed), false),
            (b"\x01\x02he\x81\x03llo", None, Err(Malformed), false),
            (b"\x80\x05hello", None, Err(Malformed), false),
            (b"\x81\x85\x00\x00\x00\x00hello", None, Err(Malformed), false),
            (b"\x81\x7e\x01\x00hello", None, Ok(Progress::More), false),
        ] {
            check(wire, body, expected, pong);
        }
    }
}
