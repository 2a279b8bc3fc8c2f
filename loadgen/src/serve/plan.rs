//! What the query of a request asks of the reply.

use std::time::Duration;

use super::delay::{Delay, Stall};

/// Body bytes that a reply may have.
const SIZE_MAX: usize = 256 << 20;

/// Where a connection is reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ResetAt {
    Head,
    Body,
}

/// The reply that is asked for.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Plan {
    /// Instead of the server's own.
    pub(super) delay: Option<Delay>,
    pub(super) stall: Option<Stall>,
    pub(super) size: Option<usize>,
    pub(super) status: Option<u16>,
    pub(super) chunked: bool,
    pub(super) trailers: bool,
    pub(super) close: bool,
    pub(super) reset: Option<ResetAt>,
    pub(super) garbage: bool,
    pub(super) hang: bool,
    pub(super) early: bool,
    pub(super) informational: Option<u16>,
    pub(super) headers: Vec<(String, String)>,
}

impl Plan {
    /// Reads `query`; what it does not know or cannot understand is left for the client's own use.
    pub(super) fn parse(query: &str) -> Self {
        let mut plan = Self::default();
        for pair in query.split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, "1"));
            let on = value == "1" || value == "true";
            match name {
                "delay_ms" => plan.delay = value.parse().ok().map(|time| Delay::Constant(Duration::from_millis(time))),
                "delay" => plan.delay = decode(value).parse().ok(),
                "stall" => plan.stall = decode(value).parse().ok(),
                "size" => plan.size = value.parse().ok().map(|size: usize| size.min(SIZE_MAX)),
                "status" => plan.status = value.parse().ok().filter(|status| (200..1000).contains(status)),
                "chunked" => plan.chunked = on,
                "trailers" => (plan.chunked, plan.trailers) = (plan.chunked || on, on),
                "close" => plan.close = on,
                "reset" if value == "head" => plan.reset = Some(ResetAt::Head),
                "reset" if value == "body" => plan.reset = Some(ResetAt::Body),
                "garbage" => plan.garbage = on,
                "hang" => plan.hang = on,
                "early" => plan.early = on,
                "informational" => plan.informational = value.parse().ok().filter(|code| (102..200).contains(code)),
                "header" => plan.headers.extend(header(&decode(value))),
                _ => {}
            }
        }
        plan
    }

    pub(super) fn status(&self) -> u16 {
        self.status.unwrap_or(200)
    }

    /// The head of the reply, for a body of `length` bytes.
    pub(super) fn write_head(&self, out: &mut Vec<u8>, server: &str, content_type: &str, length: usize, close: bool) {
        let status = self.status();
        out.extend_from_slice(format!("HTTP/1.1 {status} {}\r\nserver: {server}\r\n", reason(status)).as_bytes());
        let bodiless = matches!(status, 204 | 304);
        if self.chunked && !bodiless {
            out.extend_from_slice(b"transfer-encoding: chunked\r\n");
        } else if !bodiless {
            out.extend_from_slice(format!("content-length: {length}\r\n").as_bytes());
        }
        if length > 0 && !bodiless {
            out.extend_from_slice(format!("content-type: {content_type}\r\n").as_bytes());
        }
        if self.trailers {
            out.extend_from_slice(b"trailer: x-torus-trailer\r\n");
        }
        for (name, value) in &self.headers {
            out.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        }
        if close {
            out.extend_from_slice(b"connection: close\r\n");
        }
        out.extend_from_slice(b"\r\n");
    }

    /// `body` as it goes on the wire.
    pub(super) fn write_body(&self, out: &mut Vec<u8>, body: &[u8]) {
        if matches!(self.status(), 204 | 304) {
            return;
        }
        if !self.chunked {
            out.extend_from_slice(body);
            return;
        }
        for chunk in body.chunks(16 << 10) {
            out.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            out.extend_from_slice(chunk);
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(b"0\r\n");
        if self.trailers {
            out.extend_from_slice(b"x-torus-trailer: after the body\r\n");
        }
        out.extend_from_slice(b"\r\n");
    }
}

/// A field from `Name:Value`; one that could break the framing of the reply is dropped.
fn header(text: &str) -> Option<(String, String)> {
    let (name, value) = text.split_once(':')?;
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let clean = !name.is_empty() && name.bytes().all(token) && !value.contains(['\r', '\n', '\0']);
    clean.then(|| (name.to_owned(), value.trim().to_owned()))
}

/// Percent-encoded bytes and `+` as a query carries them.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let hex = |digits: &str| u8::from_str_radix(digits.get(..2)?, 16).ok();
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => {
                let tail: String = rest.clone().take(2).map(char::from).collect();
                match hex(&tail) {
                    Some(value) => {
                        bytes.push(value);
                        rest.nth(1);
                    }
                    None => bytes.push(b'%'),
                }
            }
            _ => bytes.push(byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Reason phrases of common codes (RFC 9110 §15).
fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        204 => "No Content",
        301 => "Moved Permanently",
        302 => "Found",
        304 => "Not Modified",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        409 => "Conflict",
        413 => "Content Too Large",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "Status",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_ask_for_replies() {
        let plan =
            Plan::parse("delay_ms=5&size=10&status=503&trailers=1&header=X-A:b%20c&header=bad%0d%0a:x&reset=body");
        assert_eq!(plan.delay, Some(Delay::Constant(Duration::from_millis(5))));
        assert_eq!((plan.size, plan.status(), plan.chunked, plan.trailers), (Some(10), 503, true, true));
        assert_eq!(plan.headers, [("X-A".to_owned(), "b c".to_owned())]);
        assert_eq!(plan.reset, Some(ResetAt::Body));
        assert_eq!(Plan::parse("a=b&status=42&delay=x&stall=1"), Plan::default());
        let plan = Plan::parse("delay=exponential:5ms&stall=200ms%2F1s");
        assert_eq!((plan.delay, plan.stall), ("exponential:5ms".parse().ok(), "200ms/1s".parse().ok()));
    }

    #[test]
    fn values_cannot_break_the_framing() {
        for query in ["header=a:b%0d%0ac", "header=:v", "header=a%20b:c", "header=nocolon"] {
            assert_eq!(Plan::parse(query).headers, [], "{query}");
        }
        assert_eq!(decode("a%2Bb+c%zz%"), "a+b c%zz%");
    }
}
