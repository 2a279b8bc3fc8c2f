//! Responses that are malformed, or well-formed and apt to poison a connection, written from the RFCs; each cites its rule.
//!
//! Used twice, as the requests are: by the codec's tests and against a running gateway.

/// What a backend answers to one request, and what becomes of it.
pub(crate) struct Vector {
    /// Unique, for messages.
    pub(crate) name: &'static str,
    /// The rule that is broken or applied.
    pub(crate) rule: &'static str,
    /// The request's method.
    pub(crate) method: &'static str,
    /// What the backend sends; it leaves the connection open.
    pub(crate) bytes: Vec<u8>,
    /// What becomes of it.
    pub(crate) expected: Expected,
}

/// What becomes of a response. After each but `Reused` the connection that brought it carries no other request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    /// The head is refused: the client gets 502.
    Refused,
    /// The head is fine and its body is not: the client gets the status and no end.
    BodyRefused(u16),
    /// The client gets this status and body, and what the backend sent beyond it goes nowhere.
    Poisoned(u16, &'static str),
    /// The client gets this status and body.
    Reused(u16, &'static str),
}

use Expected::{BodyRefused, Poisoned, Refused, Reused};

/// Every vector.
pub(crate) fn responses() -> Vec<Vector> {
    [heads(), framing(), bodies(), poison(), fine()].into_iter().flatten().collect()
}

fn vector(name: &'static str, rule: &'static str, expected: Expected, bytes: impl AsRef<[u8]>) -> Vector {
    Vector { name, rule, method: "GET", bytes: bytes.as_ref().to_vec(), expected }
}

/// A 200 with these lines and this body.
fn ok(name: &'static str, rule: &'static str, expected: Expected, lines: &str, body: &str) -> Vector {
    vector(name, rule, expected, format!("HTTP/1.1 200 OK\r\n{lines}\r\n\r\n{body}"))
}

fn heads() -> Vec<Vector> {
    let line =
        |name, line: &str| vector(name, "RFC 9112 §4", Refused, format!("{line}\r\nContent-Length: 5\r\n\r\nhello"));
    let field = |name, rule, field: &str| {
        vector(name, rule, Refused, format!("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n{field}\r\n\r\nhello"))
    };
    let many = (0..101).map(|index| format!("X-{index}: y")).collect::<Vec<_>>().join("\r\n");
    let long = format!("X: {}", "y".repeat(200_000));
    vec![
        line("status-line-lower-case", "http/1.1 200 OK"),
        line("status-line-http2", "HTTP/2.0 200 OK"),
        line("status-line-http12", "HTTP/1.2 200 OK"),
        line("status-line-no-minor", "HTTP/1 200 OK"),
        line("status-line-two-spaces", "HTTP/1.1  200 OK"),
        line("status-line-tab", "HTTP/1.1\t200 OK"),
        line("status-line-leading-space", " HTTP/1.1 200 OK"),
        line("status-line-other-protocol", "ICY 200 OK"),
        line("status-line-request", "GET / HTTP/1.1"),
        line("status-two-digits", "HTTP/1.1 20 OK"),
        line("status-four-digits", "HTTP/1.1 2000 OK"),
        line("status-below-100", "HTTP/1.1 099 OK"),
        line("status-zero", "HTTP/1.1 000 OK"),
        line("status-word", "HTTP/1.1 abc OK"),
        line("status-negative", "HTTP/1.1 -20 OK"),
        line("status-hex", "HTTP/1.1 0x1 OK"),
        line("reason-nul", "HTTP/1.1 200 O\0K"),
        line("reason-control", "HTTP/1.1 200 O\x01K"),
        line("reason-cr", "HTTP/1.1 200 O\rK"),
        line("empty-line-before-status", "\r\nHTTP/1.1 200 OK"),
        vector("no-head", "RFC 9112 §4", Refused, "hello\r\n\r\n"),
        vector("binary", "RFC 9112 §4", Refused, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n"),
        vector("http2-settings", "RFC 9112 §4", Refused, b"\0\0\x12\x04\0\0\0\0\0\0\x03\0\0\0\x64\r\n\r\n"),
        vector("lf-line-ends", "RFC 9112 §2.2", Refused, "HTTP/1.1 200 OK\nContent-Length: 5\n\nhello"),
        vector("lf-after-status", "RFC 9112 §2.2", Refused, "HTTP/1.1 200 OK\nContent-Length: 5\r\n\r\nhello"),
        vector("lf-ends-head", "RFC 9112 §2.2", Refused, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\nhello"),
        field("lf-between-fields", "RFC 9112 §2.2", "X: y\nZ: a"),
        field("cr-in-value", "RFC 9112 §2.2", "X: a\rb"),
        field("fold", "RFC 9112 §5.2", "X: a\r\n b"),
        field("fold-tab", "RFC 9112 §5.2", "X: a\r\n\tb"),
        field("space-before-colon", "RFC 9112 §5.1", "X : y"),
        field("empty-name", "RFC 9112 §5.1", ": y"),
        field("no-colon", "RFC 9112 §5.1", "X"),
        field("name-not-token", "RFC 9110 §5.6.2", "X(: y"),
        field("value-nul", "RFC 9110 §5.5", "X: a\0b"),
        field("value-control", "RFC 9110 §5.5", "X: a\x0bb"),
        field("too-many-fields", "RFC 9110 §5.4", &many),
        field("too-large", "RFC 9110 §5.4", &long),
    ]
}

fn framing() -> Vec<Vector> {
    let rule = "RFC 9112 §6.1, §6.3";
    let bad = |name, lines: &str| ok(name, rule, Refused, lines, "5\r\nhello\r\n0\r\n\r\n");
    vec![
        bad("length-and-coding", "Content-Length: 5\r\nTransfer-Encoding: chunked"),
        bad("coding-and-length", "Transfer-Encoding: chunked\r\nContent-Length: 5"),
        bad("length-twice-different", "Content-Length: 5\r\nContent-Length: 6"),
        bad("length-twice-same", "Content-Length: 5\r\nContent-Length: 5"),
        bad("length-list", "Content-Length: 5, 5"),
        bad("length-negative", "Content-Length: -1"),
        bad("length-plus", "Content-Length: +5"),
        bad("length-hex", "Content-Length: 0x5"),
        bad("length-empty", "Content-Length:"),
        bad("length-overflow", "Content-Length: 18446744073709551616"),
        bad("coding-gzip", "Transfer-Encoding: gzip"),
        bad("coding-gzip-chunked", "Transfer-Encoding: gzip, chunked"),
        bad("coding-chunked-chunked", "Transfer-Encoding: chunked, chunked"),
        bad("coding-twice", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"),
        bad("coding-identity", "Transfer-Encoding: identity"),
        bad("coding-obfuscated", "Transfer-Encoding: xchunked"),
        bad("coding-empty", "Transfer-Encoding:"),
        vector(
            "coding-in-http10",
            "RFC 9112 §6.1",
            Refused,
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        ),
        vector(
            "no-content-with-coding",
            "RFC 9112 §6.1",
            Refused,
            "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        vector(
            "no-content-with-length",
            "RFC 9110 §8.6",
            Refused,
            "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello",
        ),
        vector(
            "interim-with-length",
            "RFC 9110 §8.6",
            Refused,
            "HTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\n\r\nhello",
        ),
        vector(
            "interim-with-coding",
            "RFC 9112 §6.1",
            Refused,
            "HTTP/1.1 103 Early Hints\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        vector("interim-without-end", "RFC 9110 §15.2", Refused, "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(100)),
        vector(
            "switching-unasked",
            "RFC 9110 §15.2.2",
            Refused,
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
        ),
    ]
}

fn bodies() -> Vec<Vector> {
    let chunked = |name, body: &str| ok(name, "RFC 9112 §7.1", BodyRefused(200), "Transfer-Encoding: chunked", body);
    vec![
        chunked("chunk-size-not-hex", "5\r\nhello\r\nxyz\r\n"),
        chunked("chunk-size-prefix", "5\r\nhello\r\n0x5\r\nhello\r\n0\r\n\r\n"),
        chunked("chunk-size-overflow", "5\r\nhello\r\nfffffffffffffffff\r\n"),
        chunked("chunk-size-lf", "5\r\nhello\r\n5\nhello\r\n0\r\n\r\n"),
        chunked("chunk-data-too-long", "5\r\nhello\r\n5\r\nhello!\r\n0\r\n\r\n"),
        chunked("chunk-extension-lf", "5\r\nhello\r\n5;a\nb\r\nhello\r\n0\r\n\r\n"),
        chunked("trailer-malformed", "5\r\nhello\r\n0\r\nX : y\r\n\r\n"),
        chunked("trailer-lf", "5\r\nhello\r\n0\r\nX: y\n\r\n"),
    ]
}

fn poison() -> Vec<Vector> {
    let rule = "RFC 9112 §6.3, §9.2";
    let second = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison";
    let twice =
        |name, first: &str, status, body| vector(name, rule, Poisoned(status, body), format!("{first}{second}"));
    let head = |name, first: &str| Vector { method: "HEAD", ..twice(name, first, 200, "") };
    vec![
        twice("second-response-after-length", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", 200, "hello"),
        twice(
            "second-response-after-chunks",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            200,
            "hello",
        ),
        twice("second-response-after-empty", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200, ""),
        twice("second-response-after-204", "HTTP/1.1 204 No Content\r\n\r\n", 204, ""),
        twice("second-response-after-304", "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", 304, ""),
        head("second-response-after-head", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
        vector(
            "bytes-after-length",
            rule,
            Poisoned(200, "hello"),
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello\r\n",
        ),
        vector(
            "bytes-after-chunks",
            rule,
            Poisoned(200, "hello"),
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n\0",
        ),
        vector("body-of-204", rule, Poisoned(204, ""), "HTTP/1.1 204 No Content\r\n\r\nhello"),
        vector("body-of-304", rule, Poisoned(304, ""), "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\nhello"),
        Vector {
            method: "HEAD",
            ..vector("body-of-head", rule, Poisoned(200, ""), "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
        },
        ok("closes", "RFC 9112 §9.6", Poisoned(200, "hello"), "Content-Length: 5\r\nConnection: close", "hello"),
        ok(
            "closes-in-list",
            "RFC 9112 §9.6",
            Poisoned(200, "hello"),
            "Content-Length: 5\r\nConnection: x, Close",
            "hello",
        ),
        vector(
            "http10-closes",
            "RFC 9112 §9.3",
            Poisoned(200, "hello"),
            "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        ),
    ]
}

fn fine() -> Vec<Vector> {
    vec![
        ok("length", "RFC 9112 §6.3", Reused(200, "hello"), "Content-Length: 5", "hello"),
        ok("length-leading-zeros", "RFC 9110 §8.6", Reused(200, "hello"), "Content-Length: 0005", "hello"),
        ok(
            "chunks",
            "RFC 9112 §7.1",
            Reused(200, "hello"),
            "Transfer-Encoding: Chunked",
            "2;a=b\r\nhe\r\n3\r\nllo\r\n0\r\nX: y\r\n\r\n",
        ),
        vector("no-reason", "RFC 9112 §4", Reused(200, "hello"), "HTTP/1.1 200 \r\nContent-Length: 5\r\n\r\nhello"),
        vector(
            "no-content-length-zero",
            "RFC 9110 §8.6",
            Reused(204, ""),
            "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n",
        ),
        vector(
            "interim-first",
            "RFC 9110 §15.2",
            Reused(200, "hello"),
            "HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        ),
        Vector { method: "HEAD", ..ok("head-with-length", "RFC 9112 §6.3", Reused(200, ""), "Content-Length: 5", "") },
        vector(
            "http10-keep-alive",
            "RFC 9112 §9.3",
            Reused(200, "hello"),
            "HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\nhello",
        ),
    ]
}
