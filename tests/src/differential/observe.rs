//! What can be seen of a request, as `field -> text`, with what depends on the clock and on chance made equal.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::backend::Record;
use crate::client::{End, Response};
use crate::message::{self, Fields};

/// Fields in order of name.
pub(super) type Observed = BTreeMap<String, String>;

/// Adds what the client saw of a reply.
pub(super) fn response(observed: &mut Observed, prefix: &str, response: &Response) {
    let mut put = |field: &str, text: String| {
        observed.insert(format!("{prefix}.{field}"), text);
    };
    for (index, head) in response.interim.iter().enumerate() {
        put(&format!("interim[{index}]"), head.start_line.clone());
    }
    put("status", format!("{} {} {}", response.version, response.status, response.reason));
    put("body", clip(&response.body));
    put(
        "end",
        match &response.end {
            // A reset and a close are told apart by what was still unread, which is chance.
            End::Closed | End::Reset => "ended early".into(),
            end => format!("{end:?}"),
        },
    );
    put("framing", response.framing.to_string());
    fields(observed, &format!("{prefix}.header"), &response.headers);
    fields(observed, &format!("{prefix}.trailer"), &response.trailers);
    for (index, head) in response.interim.iter().enumerate() {
        fields(observed, &format!("{prefix}.interim[{index}].header"), &head.fields);
    }
}

/// Adds what a backend received.
pub(super) fn record(observed: &mut Observed, index: usize, record: &Record) {
    let prefix = &format!("backend[{index}]");
    let mut put = |field: &str, text: String| {
        observed.insert(format!("{prefix}.{field}"), text);
    };
    put("at", record.backend.clone());
    put("request_line", record.head.start_line.clone());
    put("framing", record.framing.to_string());
    put("body", clip(&record.body.bytes));
    put("complete", record.body.complete.to_string());
    if let Some(malformed) = &record.malformed {
        put("malformed", malformed.clone());
    }
    fields(observed, &format!("{prefix}.header"), &record.head.fields);
    fields(observed, &format!("{prefix}.trailer"), &record.body.trailers);
    // A later attempt is told the time that is left.
    if let Some(left) = observed.get_mut(&format!("{prefix}.header.x-envoy-expected-rq-timeout-ms"))
        && index > 0
        && left.bytes().all(|byte| byte.is_ascii_digit())
    {
        *left = "<ms left>".into();
    }
}

/// Adds one line of a JSON access log.
pub(super) fn log_line(observed: &mut Observed, prefix: &str, line: &Value) {
    for (key, value) in line.as_object().into_iter().flatten() {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        observed.insert(format!("{prefix}.{key}"), normal(key, &text));
    }
}

/// A line of a text log, with times and durations made equal; `default_format` says that it is Envoy's own.
pub(super) fn text_line(line: &str, default_format: bool) -> String {
    let word = |(index, word)| {
        // The ninth and tenth words are %DURATION% and the upstream's service time.
        let name = if default_format && (index == 8 || index == 9) { "duration" } else { "" };
        normal(name, word)
    };
    line.split(' ').enumerate().map(word).collect::<Vec<_>>().join(" ")
}

/// Values of one name are kept in order; names are compared as a set, since their order is free (RFC 9110 §5.3).
fn fields(observed: &mut Observed, prefix: &str, fields: &Fields) {
    let mut by_name: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in &fields.0 {
        by_name.entry(name.to_ascii_lowercase()).or_default().push(normal(&name.to_ascii_lowercase(), value));
    }
    for (name, values) in by_name {
        observed.insert(format!("{prefix}.{name}"), values.join(" | "));
    }
}

/// `text`, or what stands for it where it depends on the clock or on chance.
fn normal(name: &str, text: &str) -> String {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match name {
        "date" if text.len() == 29 && text.ends_with(" GMT") => return "<date>".into(),
        "x-envoy-upstream-service-time" if digits => return "<ms>".into(),
        "duration" | "request_duration" | "response_duration" | "response_tx_duration" if digits => {
            return "<ms>".into();
        }
        "set-cookie" => return without_hash(text),
        "connection_id" | "upstream_connection_id" | "stream_id" if digits => return "<number>".into(),
        _ => {}
    }
    let bare = text.trim_matches(['"', '[', ']']);
    if let Some(version) = uuid_version(bare) {
        return text.replace(bare, &format!("<uuid {version}>"));
    }
    if is_timestamp(bare) {
        return text.replace(bare, "<time>");
    }
    // A client's own port is chance; ours are equal in both runs and below the ephemeral range.
    if let Some((host, port)) = bare.rsplit_once(':')
        && host.starts_with(['1', '[', ':'])
        && port.parse::<u32>().is_ok_and(|port| port >= 32_768)
    {
        return text.replace(bare, &format!("{host}:<port>"));
    }
    text.to_owned()
}

/// A cookie that the proxy made for a hash policy has a random value of 16 hexadecimal digits in quotes.
fn without_hash(cookie: &str) -> String {
    let mut parts: Vec<&str> = cookie.splitn(3, '"').collect();
    if let [_, value, _] = parts.as_mut_slice()
        && value.len() == 16
        && value.bytes().all(|byte| byte.is_ascii_hexdigit())
    {
        *value = "<hash>";
    }
    parts.join("\"")
}

/// The version digit of a random UUID: Envoy makes version 4, and 9, a or b where it marks a trace decision there. Ids
/// that a test sets are of version 1, so that they are compared to the letter.
fn uuid_version(text: &str) -> Option<char> {
    let groups: Vec<&str> = text.split('-').collect();
    let lengths: Vec<usize> = groups.iter().map(|group| group.len()).collect();
    let hexadecimal = text.bytes().all(|byte| byte == b'-' || byte.is_ascii_hexdigit());
    let version = groups.get(2)?.chars().next()?;
    (lengths == [8, 4, 4, 4, 12] && hexadecimal && matches!(version, '4' | '9' | 'a' | 'b')).then_some(version)
}

fn is_timestamp(text: &str) -> bool {
    text.len() >= 20 && text.starts_with("20") && text.as_bytes().get(10) == Some(&b'T') && text.ends_with('Z')
}

/// `bytes` as text; long ones by length and hash.
pub(super) fn clip(bytes: &[u8]) -> String {
    if bytes.len() <= 512 {
        return message::latin1(bytes);
    }
    // FNV-1a: long bodies are compared by length and hash, and printed short.
    let hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{} bytes, hash {hash:016x}", bytes.len())
}
