//! One request to the admin server and its reply.

use std::borrow::Cow;

use serde::Serialize;
use serde_json::Value;
use serde_json::ser::{PrettyFormatter, Serializer};

/// A request: path without query, and parameters from the query and, where it has one, a form.
pub(super) struct Request {
    pub(super) path: String,
    pub(super) is_post: bool,
    pub(super) method: String,
    pub(super) parameters: Vec<(String, String)>,
}

impl Request {
    /// The request with this method, path and query.
    pub(super) fn new(method: &str, path: &str, query: &str) -> Self {
        Self {
            path: path.to_owned(),
            is_post: method == "POST",
            method: method.to_owned(),
            parameters: parameters(query),
        }
    }

    /// The first value of `name`.
    pub(super) fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Whether `name` is there, with or without a value.
    pub(super) fn has(&self, name: &str) -> bool {
        self.parameter(name).is_some()
    }
}

/// What is answered.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) content_type: &'static str,
    pub(super) body: String,
}

impl Reply {
    /// 200 with text.
    pub(super) fn text(body: impl Into<String>) -> Self {
        Self { status: 200, content_type: TEXT, body: body.into() }
    }

    /// 200 with `OK`.
    pub(super) fn ok() -> Self {
        Self::text("OK\n")
    }

    /// An error with text.
    pub(super) fn error(status: u16, body: impl Into<String>) -> Self {
        Self { status, content_type: TEXT, body: body.into() }
    }

    /// 200 with a document, indented by one space as Envoy does.
    pub(super) fn json(value: &Value) -> Self {
        let mut bytes = Vec::new();
        let mut serializer = Serializer::with_formatter(&mut bytes, PrettyFormatter::with_indent(b" "));
        // A Value has text keys only, so it can be written.
        let _ = value.serialize(&mut serializer);
        bytes.push(b'\n');
        Self { status: 200, content_type: JSON, body: String::from_utf8(bytes).unwrap_or_default() }
    }

    /// 200 with a page.
    pub(super) fn html(body: String) -> Self {
        Self { status: 200, content_type: "text/html; charset=UTF-8", body }
    }
}

/// Parameters of a query or form.
pub(super) fn parameters(text: &str) -> Vec<(String, String)> {
    let items = text.split('&').filter(|item| !item.is_empty());
    items
        .map(|item| {
            let (name, value) = item.split_once('=').unwrap_or((item, ""));
            (percent_decoded(name), percent_decoded(value))
        })
        .collect()
}

/// Text with `%XX` decoded; what is no valid escape stays.
fn percent_decoded(text: &str) -> String {
    if !text.contains('%') {
        return text.to_owned();
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let digit = |place: usize| after.get(place).and_then(|byte| (*byte as char).to_digit(16));
        match (first, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => {
                bytes.push((high * 16 + low) as u8);
                rest = after.get(2..).unwrap_or_default();
            }
            _ => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    match String::from_utf8_lossy(&bytes) {
        Cow::Borrowed(valid) => valid.to_owned(),
        Cow::Owned(mended) => mended,
    }
}

pub(super) const TEXT: &str = "text/plain; charset=UTF-8";
pub(super) const JSON: &str = "application/json";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded() {
        let request = Request::new("GET", "/stats", "usedonly&filter=a%2Eb%zz%&filter=c&=x&empty=");
        assert!(request.has("usedonly") && !request.has("used"));
        assert_eq!(request.parameter("filter"), Some("a.b%zz%"));
        assert_eq!(request.parameter("empty"), Some(""));
        assert_eq!(percent_decoded("%C3%A4%ff"), "ä\u{fffd}");
    }
}
