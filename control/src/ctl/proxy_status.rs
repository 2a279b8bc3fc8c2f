//! `proxy-status`: what each proxy was sent and what it answered.

use serde_json::Value;

use super::{CtlError, Format, Server, Verdict, client, output};

#[derive(clap::Args)]
pub(super) struct Flags {
    /// Only proxies whose id contains this
    proxy: Option<String>,
    #[arg(short, long, value_enum, default_value = "short")]
    output: Format,
    #[command(flatten)]
    server: Server,
}

pub(super) fn run(flags: &Flags) -> Result<Verdict, CtlError> {
    let answer = client::get_json(&flags.server.http_address, "/debug/syncz")?;
    let proxies: Vec<Value> = answer
        .as_array()
        .into_iter()
        .flatten()
        .filter(|proxy| flags.proxy.as_ref().is_none_or(|part| text(proxy, "proxy").contains(part.as_str())))
        .cloned()
        .collect();
    let refusals = refusals(&proxies);
    match flags.output {
        Format::Short => {
            output::print(&output::table(&rows(&proxies)))?;
            for refusal in &refusals {
                output::print(&format!("{refusal}\n"))?;
            }
        }
        format => output::print_document(&Value::Array(proxies), format)?,
    }
    Ok(if refusals.is_empty() { Verdict::Well } else { Verdict::Findings })
}

fn rows(proxies: &[Value]) -> Vec<Vec<String>> {
    // Who a client is by its certificate; plaintext has none.
    let with_identity = proxies.iter().any(|proxy| proxy.get("identities").is_some());
    let mut head = ["NAME", "CDS", "LDS", "EDS", "RDS", "SDS", "VERSION"].map(str::to_owned).to_vec();
    head.extend(with_identity.then(|| "IDENTITY".to_owned()));
    let mut rows = vec![head];
    for proxy in proxies {
        let mut row = vec![text(proxy, "proxy").to_owned()];
        for (name, _) in KINDS {
            let word = text(proxy, &format!("{name}_status"));
            row.push(if word.is_empty() { "IGNORED".to_owned() } else { word.to_owned() });
        }
        row.push(text(proxy, "istio_version").to_owned());
        if with_identity {
            let names = proxy.get("identities").and_then(Value::as_array).into_iter().flatten();
            row.push(names.filter_map(Value::as_str).collect::<Vec<_>>().join(","));
        }
        rows.push(row);
    }
    rows
}

fn refusals(proxies: &[Value]) -> Vec<String> {
    let mut lines = Vec::new();
    for proxy in proxies {
        for (name, kind) in KINDS {
            let reason = text(proxy, &format!("{name}_error"));
            if !reason.is_empty() {
                lines.push(format!("{} refused {kind}: {reason}", text(proxy, "proxy")));
            }
        }
    }
    lines
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

const KINDS: [(&str, &str); 5] =
    [("cluster", "CDS"), ("listener", "LDS"), ("endpoint", "EDS"), ("route", "RDS"), ("secret", "SDS")];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_with_its_reason() {
        let proxies =
            [serde_json::json!({"proxy": "router~1", "cluster_status": "ERROR", "cluster_error": "no such field"})];
        assert_eq!(rows(&proxies)[1][..3], ["router~1", "ERROR", "IGNORED"]);
        assert_eq!(rows(&proxies)[0].len(), 7);
        let known = [serde_json::json!({"proxy": "router~1", "identities": ["spiffe://mesh/ns/a/sa/b", "b.a"]})];
        assert_eq!(rows(&known)[1].last().map(String::as_str), Some("spiffe://mesh/ns/a/sa/b,b.a"));
        assert_eq!(refusals(&proxies), ["router~1 refused CDS: no such field"]);
    }
}
