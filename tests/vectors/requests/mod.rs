//! Requests that are malformed, or well-formed and apt to be misread, written from the RFCs; each cites the rule it breaks.
//!
//! Used twice: the codec's tests feed them to the parser, the process tests send them to a running gateway and look at what reached the
//! backend.

/// One request as bytes on the wire, and what becomes of it.
pub(crate) struct Vector {
    /// Unique, for messages.
    pub(crate) name: &'static str,
    /// The rule that is broken or applied.
    pub(crate) rule: &'static str,
    /// What is sent.
    pub(crate) bytes: Vec<u8>,
    /// What becomes of it.
    pub(crate) expected: Expected,
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    /// The head is refused with this status, nothing of it is forwarded, and the connection closes.
    Refused(u16),
    /// The head is fine and its body is not: no complete request is forwarded, and the connection closes.
    BodyRefused(u16),
    /// It is forwarded once, in one meaning: the head has these lines and lacks those, all in lower-case names.
    Forwarded { has: &'static [&'static str], lacks: &'static [&'static str] },
}

mod fields;
mod framing;
mod start_lines;

/// Every vector.
pub(crate) fn requests() -> Vec<Vector> {
    let mut all = Vec::new();
    for group in [
        start_lines::lines(),
        start_lines::start_line(),
        start_lines::targets(),
        start_lines::authorities(),
        fields::names(),
        fields::values(),
        framing::lengths(),
        framing::codings(),
        framing::conflicts(),
        start_lines::versions(),
        fields::connection(),
        fields::limits(),
        framing::chunks(),
        framing::trailers(),
        fields::forwarded(),
    ] {
        all.extend(group);
    }
    all
}

fn vector(name: &'static str, rule: &'static str, expected: Expected, bytes: impl AsRef<[u8]>) -> Vector {
    Vector { name, rule, bytes: bytes.as_ref().to_vec(), expected }
}

/// A GET with these further header lines.
fn get(name: &'static str, rule: &'static str, expected: Expected, lines: impl AsRef<[u8]>) -> Vector {
    let bytes = [b"GET /vector HTTP/1.1\r\nHost: a.test\r\n", lines.as_ref(), b"\r\n\r\n"].concat();
    vector(name, rule, expected, bytes)
}

/// A POST with these further header lines and this body.
fn post(name: &'static str, rule: &'static str, expected: Expected, lines: impl AsRef<[u8]>, body: &str) -> Vector {
    let bytes = [b"POST /vector HTTP/1.1\r\nHost: a.test\r\n", lines.as_ref(), b"\r\n\r\n", body.as_bytes()].concat();
    vector(name, rule, expected, bytes)
}

/// A POST with this chunked body.
fn chunked(name: &'static str, rule: &'static str, expected: Expected, body: impl AsRef<[u8]>) -> Vector {
    let head: &[u8] = b"POST /vector HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n";
    vector(name, rule, expected, [head, body.as_ref()].concat())
}

/// A GET with this target.
fn target(name: &'static str, rule: &'static str, expected: Expected, target: impl AsRef<[u8]>) -> Vector {
    let bytes = [b"GET ", target.as_ref(), b" HTTP/1.1\r\nHost: a.test\r\n\r\n"].concat();
    vector(name, rule, expected, bytes)
}

/// A GET with this `host`.
fn host(name: &'static str, expected: Expected, host: impl AsRef<[u8]>) -> Vector {
    let bytes = [b"GET /vector HTTP/1.1\r\nHost: ", host.as_ref(), b"\r\n\r\n"].concat();
    vector(name, "RFC 9112 §3.2, RFC 9110 §7.2", expected, bytes)
}
