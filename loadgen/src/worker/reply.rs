//! The replies of one HTTP/1.1 connection, from bytes: where each ends and what it was. No I/O, no clock.

use crate::record::Cause;

/// Longest head that is taken, in bytes.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// Fields that a head may have.
const FIELDS_MAX: usize = 128;
/// Longest line of a chunk's size, in bytes.
const CHUNK_LINE_MAX: usize = 4096;
/// Bytes of a body that are kept when it is to be checked.
pub(super) const KEPT_MAX: usize = 4 << 20;

/// What a reply must be to count as a success.
#[derive(Clone, Debug, Default)]
pub struct Checks {
    /// Expected statuses; empty for any below 400.
    pub statuses: Vec<u16>,
    /// Fields that must be there: name in lower case, and the value where wanted.
    pub fields: Vec<(String, Option<String>)>,
    /// Text that the body must hold.
    pub body: Option<Vec<u8>>,
}

impl Checks {
    pub(super) fn expects(&self, status: u16) -> bool {
        if self.statuses.is_empty() { status < 400 } else { self.statuses.contains(&status) }
    }

    /// Whether `body` holds the text that it must.
    pub(super) fn is_in(&self, body: &[u8]) -> bool {
        self.body.as_ref().is_none_or(|text| text.is_empty() || body.windows(text.len()).any(|window| window == text))
    }
}

/// How far a reply has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    More,
    Done(Outcome),
    /// The peer says that it ends the connection, and sends no reply.
    Closed,
}

/// A whole reply; where the protocol has no status it is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub status: u16,
    /// The connection may carry another request.
    pub reusable: bool,
    /// Why it is no success.
    pub failed: Option<Cause>,
}

/// The reply broke the rules of its protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Head,
    Length(u64),
    UntilClose,
    /// Before the size of a chunk.
    ChunkSize,
    ChunkData(u64),
    /// Behind the data of a chunk, before the end of its line.
    ChunkEnd,
    Trailers,
}

/// Reads one reply after the other.
#[derive(Debug)]
pub struct Reader {
    state: State,
    /// A part of a head or of a chunk's line that came without its end.
    pending: Vec<u8>,
    outcome: Outcome,
    kept: Vec<u8>,
    head_request: bool,
}

impl Reader {
    /// `head_request` where the requests are HEAD, whose replies have no body.
    pub fn new(head_request: bool) -> Reader {
        let outcome = Outcome { status: 0, reusable: true, failed: None };
        Reader { state: State::Head, pending: Vec::new(), outcome, kept: Vec::new(), head_request }
    }

    /// Takes `bytes`; what follows a whole reply makes the connection unfit for another, as nobody asked for it.
    pub fn feed(&mut self, mut bytes: &[u8], checks: &Checks) -> Result<Progress, Malformed> {
        loop {
            let (used, done) = match self.state {
                State::Head => match self.head(bytes, checks)? {
                    Some(step) => step,
                    None => return Ok(Progress::More),
                },
                State::Length(left) => {
                    let taken = self.take(bytes, left, checks);
                    self.state = State::Length(left - taken as u64);
                    (taken, left == taken as u64)
                }
                State::UntilClose => (self.take(bytes, u64::MAX, checks), false),
                State::ChunkData(left) => {
                    let taken = self.take(bytes, left, checks);
                    let left = left - taken as u64;
                    self.state = if left == 0 { State::ChunkEnd } else { State::ChunkData(left) };
                    (taken, false)
                }
                State::ChunkSize | State::ChunkEnd | State::Trailers => match self.line(bytes)? {
                    Some((used, done)) => (used, done),
                    None => return Ok(Progress::More),
                },
            };
            bytes = bytes.get(used..).unwrap_or_default();
            if done {
                self.outcome.reusable &= bytes.is_empty();
                return Ok(Progress::Done(self.end(checks)));
            }
            if bytes.is_empty() && self.state != State::Head {
                return Ok(Progress::More);
            }
            if bytes.is_empty() {
                return Ok(Progress::More);
            }
        }
    }

    /// The peer closed: the end of a reply that lasts until then; nothing otherwise.
    pub fn closed(&mut self, checks: &Checks) -> Option<Outcome> {
        (self.state == State::UntilClose).then(|| self.end(checks))
    }

    fn end(&mut self, checks: &Checks) -> Outcome {
        if !checks.is_in(&self.kept) {
            self.outcome.failed.get_or_insert(Cause::Body);
        }
        self.kept.clear();
        self.state = State::Head;
        self.pending.clear();
        self.outcome
    }

    /// Bytes used and whether the reply ended with its head; nothing when the head is not all there.
    fn head(&mut self, bytes: &[u8], checks: &Checks) -> Result<Option<(usize, bool)>, Malformed> {
        let before = self.pending.len();
        let whole = if before == 0 {
            bytes
        } else {
            self.pending.extend_from_slice(bytes);
            self.pending.as_slice()
        };
        let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
        let mut response = httparse::Response::new(&mut fields);
        let length = match response.parse(whole) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) if whole.len() < HEAD_BYTES_MAX => {
                if before == 0 {
                    self.pending.extend_from_slice(bytes);
                }
                return Ok(None);
            }
            _ => return Err(Malformed),
        };
        let status = response.code.ok_or(Malformed)?;
        let mut length_field = None;
        let mut chunked = false;
        let mut reusable = response.version == Some(1);
        for field in response.headers.iter() {
            if field.name.eq_ignore_ascii_case("content-length") {
                let text = std::str::from_utf8(field.value).map_err(|_| Malformed)?.trim();
                let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
                length_field =
                    Some(if digits { text.parse::<u64>().map_err(|_| Malformed)? } else { return Err(Malformed) });
            } else if field.name.eq_ignore_ascii_case("transfer-encoding") {
                chunked = has_token(field.value, b"chunked");
            } else if field.name.eq_ignore_ascii_case("connection") {
                reusable = if response.version == Some(1) {
                    reusable && !has_token(field.value, b"close")
                } else {
                    has_token(field.value, b"keep-alive")
                };
            }
        }
        let expected = checks.expects(status);
        let missing = checks.fields.iter().any(|(name, value)| {
            !response.headers.iter().any(|field| {
                field.name.eq_ignore_ascii_case(name)
                    && value.as_ref().is_none_or(|value| field.value == value.as_bytes())
            })
        });
        let used = length.checked_sub(before).ok_or(Malformed)?;
        self.pending.clear();
        // Interim replies (RFC 9110 section 15.2) announce another one.
        if (100..200).contains(&status) && status != 101 {
            return Ok(Some((used, false)));
        }
        self.outcome = Outcome { status, reusable, failed: None };
        if !expected {
            self.outcome.failed = Some(Cause::Status);
        } else if missing {
            self.outcome.failed = Some(Cause::Header);
        }
        // RFC 9112 section 6.3, in its order.
        let bodiless = self.head_request || status == 204 || status == 304 || status == 101;
        self.state = match (bodiless, chunked, length_field) {
            (true, _, _) | (false, false, Some(0)) => return Ok(Some((used, true))),
            (false, true, _) => State::ChunkSize,
            (false, false, Some(length)) => State::Length(length),
            (false, false, None) => {
                self.outcome.reusable = false;
                State::UntilClose
            }
        };
        Ok(Some((used, false)))
    }

    /// Body bytes, at most `left` of them; they are kept only for a check.
    fn take(&mut self, bytes: &[u8], left: u64, checks: &Checks) -> usize {
        let taken = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        if checks.body.is_some() {
            let room = KEPT_MAX.saturating_sub(self.kept.len()).min(taken);
            self.kept.extend_from_slice(bytes.get(..room).unwrap_or_default());
        }
        taken
    }

    /// One line of the chunked coding (RFC 9112 section 7.1).
    fn line(&mut self, bytes: &[u8]) -> Result<Option<(usize, bool)>, Malformed> {
        let Some(end) = bytes.iter().position(|&byte| byte == b'\n') else {
            self.pending.extend_from_slice(bytes);
            return if self.pending.len() > CHUNK_LINE_MAX { Err(Malformed) } else { Ok(None) };
        };
        self.pending.extend_from_slice(bytes.get(..end).unwrap_or_default());
        let line = self.pending.trim_ascii_end();
        let done = match self.state {
            State::ChunkEnd if line.is_empty() => {
                self.state = State::ChunkSize;
                false
            }
            State::ChunkSize => {
                let digits = line.split(|&byte| byte == b';').next().unwrap_or_default().trim_ascii();
                let text = std::str::from_utf8(digits).map_err(|_| Malformed)?;
                let hex = !text.is_empty() && text.len() <= 15 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
                let size =
                    if hex { u64::from_str_radix(text, 16).map_err(|_| Malformed)? } else { return Err(Malformed) };
                self.state = if size == 0 { State::Trailers } else { State::ChunkData(size) };
                false
            }
            State::Trailers => line.is_empty(),
            _ => return Err(Malformed),
        };
        self.pending.clear();
        Ok(Some((end + 1, done)))
    }
}

fn has_token(value: &[u8], token: &[u8]) -> bool {
    value.split(|&byte| byte == b',').any(|part| part.trim_ascii().eq_ignore_ascii_case(token))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `wire` cut at every place; all cuts must give the same.
    fn check(wire: &str, checks: &Checks, expected: Result<Option<(u16, bool, Option<Cause>)>, Malformed>) {
        let wire = wire.as_bytes();
        for cut in 0..=wire.len() {
            let mut reader = Reader::new(false);
            let mut result = Ok(None);
            for part in [&wire[..cut], &wire[cut..]] {
                if part.is_empty() || result != Ok(None) {
                    continue;
                }
                result = match reader.feed(part, checks) {
                    Ok(Progress::More | Progress::Closed) => Ok(None),
                    Ok(Progress::Done(outcome)) => Ok(Some((outcome.status, outcome.reusable, outcome.failed))),
                    Err(Malformed) => Err(Malformed),
                };
            }
            assert_eq!(result, expected, "cut at {cut} of {}", wire.escape_ascii());
        }
    }

    #[test]
    fn bodies_end_where_the_rfc_says() {
        let none = Checks::default();
        for (wire, expected) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc", Ok(Some((200, true, None)))),
            ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: Close\r\n\r\n", Ok(Some((200, false, None)))),
            ("HTTP/1.1 204 No Content\r\n\r\n", Ok(Some((204, true, None)))),
            ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\na", Ok(Some((200, true, None)))),
            (
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\nT: v\r\n\r\n",
                Ok(Some((200, true, None))),
            ),
            ("HTTP/1.0 200 OK\r\ncontent-length: 1\r\n\r\na", Ok(Some((200, false, None)))),
            ("HTTP/1.1 503 No\r\ncontent-length: 1\r\n\r\na", Ok(Some((503, true, Some(Cause::Status))))),
            ("HTTP/1.1 200 OK\r\ncontent-length: +3\r\n\r\nabc", Err(Malformed)),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nx\r\n", Err(Malformed)),
            ("\0\x01garbage, not HTTP\r\n\r\n", Err(Malformed)),
            ("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nabc", Ok(None)),
        ] {
            check(wire, &none, expected);
        }
    }

    #[test]
    fn unasked_bytes_spoil_the_connection() {
        let mut reader = Reader::new(false);
        let wire = b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nab";
        let outcome = Outcome { status: 200, reusable: false, failed: None };
        assert_eq!(reader.feed(wire, &Checks::default()), Ok(Progress::Done(outcome)));
    }

    #[test]
    fn a_reply_may_last_until_the_close() {
        let mut reader = Reader::new(false);
        assert_eq!(reader.feed(b"HTTP/1.1 200 OK\r\n\r\nabc", &Checks::default()), Ok(Progress::More));
        let outcome = Outcome { status: 200, reusable: false, failed: None };
        assert_eq!(reader.closed(&Checks::default()), Some(outcome));
        assert_eq!(reader.closed(&Checks::default()), None);
    }

    #[test]
    fn expectations_are_checked() {
        let wire = "HTTP/1.1 201 Created\r\nX-Who: me\r\ncontent-length: 5\r\n\r\nhello";
        let checks = |statuses: &[u16], field: Option<(&str, Option<&str>)>, body: Option<&str>| Checks {
            statuses: statuses.to_vec(),
            fields: field.into_iter().map(|(name, value)| (name.to_owned(), value.map(str::to_owned))).collect(),
            body: body.map(|text| text.as_bytes().to_vec()),
        };
        for (checks, failed) in [
            (checks(&[201], Some(("x-who", Some("me"))), Some("ell")), None),
            (checks(&[200], None, None), Some(Cause::Status)),
            (checks(&[], Some(("x-who", Some("you"))), None), Some(Cause::Header)),
            (checks(&[], Some(("x-other", None)), None), Some(Cause::Header)),
            (checks(&[], None, Some("bye")), Some(Cause::Body)),
        ] {
            check(wire, &checks, Ok(Some((201, true, failed))));
        }
    }
}
