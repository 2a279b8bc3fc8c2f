//! Paths about the process: readiness, health, drain, end, memory, what it runs with.

use serde_json::{Map, Value, json};

use super::request::{Reply, Request};
use super::{Admin, Command, lock};
use crate::telemetry::server_stats::{ProcessMemory, version_number};

pub(super) fn ready(admin: &Admin, _: &Request) -> Reply {
    let state = admin.state();
    let status = if state == "LIVE" { 200 } else { 503 };
    Reply { status, ..Reply::text(format!("{state}\n")) }
}

pub(super) fn health_fail(admin: &Admin, _: &Request) -> Reply {
    admin.lifecycle.set_health(false);
    command(admin, Command::PhaseChanged)
}

pub(super) fn health_ok(admin: &Admin, _: &Request) -> Reply {
    admin.lifecycle.set_health(true);
    command(admin, Command::PhaseChanged)
}

pub(super) fn quit(admin: &Admin, _: &Request) -> Reply {
    command(admin, Command::Quit)
}

pub(super) fn drain_listeners(admin: &Admin, request: &Request) -> Reply {
    let drain = Command::DrainListeners {
        graceful: request.has("graceful"),
        inbound_only: request.has("inboundonly"),
        keep_listeners: request.has("skip_exit"),
    };
    command(admin, drain)
}

pub(super) fn reopen_logs(admin: &Admin, _: &Request) -> Reply {
    admin.log_sinks.reopen();
    Reply::ok()
}

fn command(admin: &Admin, command: Command) -> Reply {
    match admin.commands.try_send(command) {
        Ok(()) => Reply::ok(),
        Err(_) => Reply::error(503, "the server is busy or ends already; try again\n"),
    }
}

pub(super) fn certs(_: &Admin, _: &Request) -> Reply {
    Reply::json(&json!({ "certificates": [] }))
}

pub(super) fn contention(_: &Admin, _: &Request) -> Reply {
    Reply::text("Mutex contention tracing is not enabled: no request takes a lock.\n")
}

pub(super) fn hot_restart_version(_: &Admin, _: &Request) -> Reply {
    Reply::text("disabled\n")
}

/// envoy.admin.v3.Memory
pub(super) fn memory(_: &Admin, _: &Request) -> Reply {
    let memory = ProcessMemory::read();
    Reply::json(&json!({
        "allocated": memory.allocated_bytes.to_string(),
        "heap_size": memory.heap_bytes.to_string(),
        "pageheap_unmapped": "0",
        "pageheap_free": "0",
        "total_thread_cache": "0",
        "total_physical_bytes": memory.resident_bytes.to_string(),
    }))
}

/// Values by layer. Source: Envoy, `/runtime`.
pub(super) fn runtime(admin: &Admin, _: &Request) -> Reply {
    let layers = admin.facts.config.runtime_layers();
    let mut keys: Vec<&String> = layers.iter().flat_map(|layer| layer.values.keys()).collect();
    keys.sort_unstable();
    keys.dedup();
    let mut entries = Map::new();
    for key in keys {
        let values: Vec<&str> =
            layers.iter().map(|layer| layer.values.get(key).map(String::as_str).unwrap_or_default()).collect();
        let last = values.iter().rev().find(|value| !value.is_empty()).copied().unwrap_or_default();
        entries.insert(key.clone(), json!({ "final_value": last, "layer_values": values }));
    }
    let names: Vec<&str> = layers.iter().map(|layer| layer.name.as_str()).collect();
    Reply::json(&json!({ "entries": entries, "layers": names }))
}

pub(super) fn runtime_modify(_: &Admin, request: &Request) -> Reply {
    if request.parameters.is_empty() {
        return Reply::error(
            400,
            "usage: /runtime_modify?key1=value1&key2=value2&keyN=valueN\n       or send the parameters as form values\n\
             use an empty value to remove a previously added override",
        );
    }
    Reply::error(503, "runtime values are read with the configuration and cannot be changed afterwards\n")
}

/// envoy.admin.v3.ServerInfo, with `torus` for what Envoy has no field for.
pub(super) fn server_info(admin: &Admin, _: &Request) -> Reply {
    let facts = &admin.facts;
    let uptime = format!("{}s", admin.lifecycle.started().elapsed().as_secs());
    let (major, minor, patch) = version_number(&facts.version);
    let mut node = match &facts.node {
        Value::Object(fields) => fields.clone(),
        _ => Map::new(),
    };
    node.insert("user_agent_name".into(), "torus".into());
    node.insert(
        "user_agent_build_version".into(),
        json!({ "version": { "major_number": major, "minor_number": minor, "patch": patch } }),
    );
    let snapshot = lock(&admin.snapshot).version;
    Reply::json(&json!({
        "version": format!("torus/{}", facts.version),
        "state": admin.state(),
        "uptime_current_epoch": uptime,
        "uptime_all_epochs": uptime,
        "hot_restart_version": "disabled",
        "command_line_options": facts.command_line_options,
        "node": node,
        "torus": {
            "io_driver": facts.io_driver,
            "io_gate": facts.io_gate,
            "config_version": snapshot,
            "connections": admin.lifecycle.connections(),
        },
    }))
}
