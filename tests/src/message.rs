//! HTTP/1.1 messages as a test sees them: strict about framing, faithful about bytes.

use std::fmt;

/// Field lines in wire order, names as sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields(pub Vec<(String, String)>);

impl Fields {
    /// The first value called `name`, in any case.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// Every value called `name`, in wire order.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// Whether a comma-separated field `name` has `token`, in any case.
    pub fn has_token(&self, name: &str, token: &str) -> bool {
        self.all(name).any(|value| value.split(',').any(|part| part.trim().eq_ignore_ascii_case(token)))
    }
}

/// Start line and fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// Request line or status line, without its line end.
    pub start_line: String,
    /// Field lines.
    pub fields: Fields,
    /// Bytes up to and including the empty line.
    pub length: usize,
}

impl Head {
    /// The three parts of the start line; missing ones are empty.
    pub fn parts(&self) -> (&str, &str, &str) {
        let mut parts = self.start_line.splitn(3, ' ');
        (parts.next().unwrap_or(""), parts.next().unwrap_or(""), parts.next().unwrap_or(""))
    }
}

/// Why bytes are not a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed(pub String);

impl fmt::Display for Malformed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// The head at the start of `bytes`; `None` while its empty line has not arrived.
///
/// Errors: a bare LF or CR in the head, a field without colon, with an empty name, or with a space before the colon.
pub fn parse_head(bytes: &[u8]) -> Result<Option<Head>, Malformed> {
    let Some(end) = find(bytes, b"\r\n\r\n") else { return Ok(None) };
    let text = bytes.get(..end).unwrap_or_default();
    let mut lines = text.split(|&byte| byte == b'\n');
    let mut next_line = || -> Result<Option<String>, Malformed> {
        let Some(line) = lines.next() else { return Ok(None) };
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.contains(&b'\r') {
            return Err(Malformed("bare CR in head".into()));
        }
        Ok(Some(latin1(line)))
    };
    if text.iter().enumerate().any(|(at, &byte)| byte == b'\n' && (at == 0 || text.get(at - 1) != Some(&b'\r'))) {
        return Err(Malformed("bare LF in head".into()));
    }
    let start_line = next_line()?.unwrap_or_default();
    let mut fields = Vec::new();
    while let Some(line) = next_line()? {
        let Some((name, value)) = line.split_once(':') else {
            return Err(Malformed(format!("field without colon: {line:?}")));
        };
        if name.is_empty() || name.contains([' ', '\t']) {
            return Err(Malformed(format!("bad field name: {name:?}")));
        }
        fields.push((name.to_owned(), value.trim_matches([' ', '\t']).to_owned()));
    }
    Ok(Some(Head { start_line, fields: Fields(fields), length: end + 4 }))
}

/// How a body is delimited (RFC 9112 §6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// No body.
    None,
    /// `Content-Length`.
    Length(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
    /// Until the connection ends.
    UntilClose,
}

impl fmt::Display for Framing {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => formatter.write_str("none"),
            Self::Length(length) => write!(formatter, "length {length}"),
            Self::Chunked => formatter.write_str("chunked"),
            Self::UntilClose => formatter.write_str("until close"),
        }
    }
}

/// How the body of a request is delimited; errors where RFC 9112 §6.3 leaves it open to two readings.
pub fn request_framing(head: &Head) -> Result<Framing, Malformed> {
    let lengths: Vec<&str> = head.fields.all("content-length").collect();
    let codings: Vec<&str> = head.fields.all("transfer-encoding").collect();
    match (lengths.as_slice(), codings.as_slice()) {
        ([], []) => Ok(Framing::None),
        ([length], []) if !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit()) => {
            length.parse().map(Framing::Length).map_err(|_| Malformed(format!("content-length {length}")))
        }
        ([], [coding]) if coding.eq_ignore_ascii_case("chunked") => Ok(Framing::Chunked),
        _ => Err(Malformed(format!("ambiguous framing: content-length {lengths:?}, transfer-encoding {codings:?}"))),
    }
}

/// How the body of a reply to `method` is delimited.
pub fn response_framing(head: &Head, method: &str) -> Framing {
    let status: u16 = head.parts().1.parse().unwrap_or(0);
    if method == "HEAD" || status == 204 || status == 304 || (100..200).contains(&status) {
        return Framing::None;
    }
    if head.fields.has_token("transfer-encoding", "chunked") {
        return Framing::Chunked;
    }
    match head.fields.get("content-length").and_then(|length| length.parse().ok()) {
        Some(0) => Framing::None,
        Some(length) => Framing::Length(length),
        None => Framing::UntilClose,
    }
}

/// A decoded body.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Body {
    /// Content without chunk framing.
    pub bytes: Vec<u8>,
    /// Trailer fields.
    pub trailers: Fields,
    /// Bytes of the wire that it took.
    pub length: usize,
    /// Whether its end arrived.
    pub complete: bool,
}

/// As much of a body as `bytes` holds.
pub fn parse_body(bytes: &[u8], framing: Framing) -> Result<Body, Malformed> {
    match framing {
        Framing::None => Ok(Body { complete: true, ..Body::default() }),
        Framing::Length(length) => {
            let wanted = usize::try_from(length).map_err(|_| Malformed("body too long".into()))?;
            let taken = wanted.min(bytes.len());
            let content = bytes.get(..taken).unwrap_or_default().to_vec();
            Ok(Body { bytes: content, length: taken, complete: taken == wanted, ..Body::default() })
        }
        Framing::UntilClose => {
            Ok(Body { bytes: bytes.to_vec(), length: bytes.len(), complete: false, ..Body::default() })
        }
        Framing::Chunked => parse_chunked(bytes),
    }
}

/// RFC 9112 §7.1, CRLF only; chunk extensions are skipped.
fn parse_chunked(bytes: &[u8]) -> Result<Body, Malformed> {
    let mut body = Body::default();
    let mut at = 0;
    loop {
        let rest = bytes.get(at..).unwrap_or_default();
        let Some(end) = find(rest, b"\r\n") else { break };
        let line = latin1(rest.get(..end).unwrap_or_default());
        let size = line.split(';').next().unwrap_or("").trim_end();
        if size.is_empty() || size.len() > 15 || !size.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(Malformed(format!("chunk size {line:?}")));
        }
        let size = usize::from_str_radix(size, 16).map_err(|_| Malformed(format!("chunk size {line:?}")))?;
        let content = at + end + 2;
        if size == 0 {
            let trailer = bytes.get(content..).unwrap_or_default();
            if trailer.starts_with(b"\r\n") {
                body.complete = true;
                at = content + 2;
            } else if let Some(head) = parse_head(&[b"\r\n".as_slice(), trailer].concat())? {
                body.trailers = head.fields;
                body.complete = true;
                at = content + head.length - 2;
            }
            break;
        }
        let Some(data) = bytes.get(content..content + size) else {
            body.bytes.extend_from_slice(bytes.get(content..).unwrap_or_default());
            at = bytes.len();
            break;
        };
        match bytes.get(content + size..content + size + 2) {
            Some(b"\r\n") => {}
            Some(other) => return Err(Malformed(format!("chunk ends with {other:?}"))),
            None => break,
        }
        body.bytes.extend_from_slice(data);
        at = content + size + 2;
    }
    body.length = at;
    Ok(body)
}

/// Where `needle` first stands in `haystack`.
pub fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

/// Each byte as the character of that number, so that no byte is lost.
pub fn latin1(bytes: &[u8]) -> String {
    bytes.iter().map(|&byte| char::from(byte)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_read_strictly() {
        let head = parse_head(b"GET / HTTP/1.1\r\nA: b \r\nA:c\r\n\r\nrest").unwrap().unwrap();
        assert_eq!(head.parts(), ("GET", "/", "HTTP/1.1"));
        assert_eq!(head.fields.all("a").collect::<Vec<_>>(), ["b", "c"]);
        assert_eq!(head.length, 30);
        assert_eq!(parse_head(b"GET / HTTP/1.1\r\nA: b\r\n"), Ok(None));
        for bad in ["GET /\nA: b\r\n\r\n", "GET /\r\nA : b\r\n\r\n", "GET /\r\n: b\r\n\r\n", "GET /\r\nx\r\n\r\n"] {
            assert!(parse_head(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn chunked_bodies_keep_content_and_trailers() {
        let body = parse_chunked(b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nT: v\r\n\r\nnext").unwrap();
        assert_eq!(body.bytes, b"abcde");
        assert_eq!(body.trailers.get("t"), Some("v"));
        assert_eq!((body.complete, body.length), (true, 30));
        assert!(!parse_chunked(b"3\r\nab").unwrap().complete);
        assert!(parse_chunked(b"+3\r\nabc\r\n").is_err());
        assert!(parse_chunked(b"3\r\nabcX\r\n").is_err());
    }
}
