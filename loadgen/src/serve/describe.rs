//! A request in JSON, as its reply tells it.

use serde::Serialize;
use serde_json::json;

use super::Local;
use super::request::Body;

/// What was received; `numbers` are those of the connection and of the request on it.
pub(super) fn describe(
    local: &Local,
    method: &str,
    target: &str,
    version: &str,
    fields: &[impl Serialize],
    body: &Body,
    numbers: (u64, u64),
) -> String {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let value = json!({
        "server": local.shared.name,
        "method": method,
        "target": target,
        "path": path,
        "query": query,
        "version": version,
        "headers": fields,
        "body": body.to_json(),
        "trailers": body.trailers,
        "connection": numbers.0,
        "request": numbers.1,
    });
    lines(&value)
}

/// The object with each member on a line of its own, and each field of a list of fields too.
fn lines(object: &serde_json::Value) -> String {
    let mut members = Vec::new();
    for (name, value) in object.as_object().into_iter().flatten() {
        let text = match value.as_array() {
            Some(fields) if !fields.is_empty() => {
                let fields: Vec<_> = fields.iter().map(|field| format!("    {field}")).collect();
                format!("[\n{}\n  ]", fields.join(",\n"))
            }
            _ => value.to_string(),
        };
        members.push(format!("  \"{name}\": {text}"));
    }
    format!("{{\n{}\n}}\n", members.join(",\n"))
}

/// `size` letters.
pub(super) fn letters(size: usize) -> impl Iterator<Item = char> {
    "0123456789abcdefghijklmnopqrstuvwxyz\n".chars().cycle().take(size)
}
