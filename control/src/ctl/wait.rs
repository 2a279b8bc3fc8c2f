//! `wait`: until what torusd published is accepted everywhere.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::{CtlError, Server, Verdict, client, output};

#[derive(clap::Args)]
pub(super) struct Flags {
    /// Give up after this many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    timeout: u64,
    #[command(flatten)]
    server: Server,
}

pub(super) fn run(flags: &Flags) -> Result<Verdict, CtlError> {
    let end = Instant::now() + Duration::from_secs(flags.timeout);
    // An edit made just now must have been seen by torusd before its answers mean anything.
    std::thread::sleep(NOTICED_AFTER);
    loop {
        let proxies = client::get_json(&flags.server.http_address, "/debug/syncz")?;
        let behind = behind(&proxies);
        if behind.is_empty() {
            output::print("live everywhere\n")?;
            return Ok(Verdict::Well);
        }
        if Instant::now() >= end {
            for line in behind {
                output::print(&format!("{line}\n"))?;
            }
            return Ok(Verdict::Findings);
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// What is not accepted yet, a line each.
fn behind(proxies: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    for proxy in proxies.as_array().into_iter().flatten() {
        let Some(fields) = proxy.as_object() else { continue };
        for (name, word) in fields {
            let Some(kind) = name.strip_suffix("_status") else { continue };
            // Not sent is settled: there is nothing of this type for the proxy.
            if matches!(word.as_str(), Some("STALE" | "ERROR")) {
                let id = proxy.get("proxy").and_then(Value::as_str).unwrap_or_default();
                let reason = fields.get(&format!("{kind}_error")).and_then(Value::as_str).unwrap_or("not answered yet");
                lines.push(format!("{id}: {kind}: {reason}"));
            }
        }
    }
    lines
}

/// Twice as long as torusd by default lets a series of changes last until it takes them up.
const NOTICED_AFTER: Duration = Duration::from_millis(200);
const LOOK_EVERY: Duration = Duration::from_millis(50);
