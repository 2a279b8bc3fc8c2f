//! `/listeners`: every listener with its addresses.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use super::Admin;
use super::clusters::address;
use super::request::{Reply, Request};
use crate::config::snapshot::Listener;

/// The reply.
pub(super) fn show(admin: &Admin, request: &Request) -> Reply {
    let snapshot = admin.snapshot();
    if request.parameter("format") == Some("json") {
        let statuses: Vec<Value> = snapshot.listeners.iter().map(|listener| status(listener)).collect();
        return Reply::json(&json!({ "listener_statuses": statuses }));
    }
    let mut text = String::new();
    for listener in &snapshot.listeners {
        for address in &listener.addresses {
            let _ = writeln!(text, "{}::{address}", listener.name);
        }
    }
    Reply::text(text)
}

/// envoy.admin.v3.ListenerStatus
fn status(listener: &Listener) -> Value {
    let mut fields = Map::new();
    fields.insert("name".into(), (&*listener.name).into());
    let mut addresses = listener.addresses.iter().map(address);
    if let Some(first) = addresses.next() {
        fields.insert("local_address".into(), first);
    }
    let rest: Vec<Value> = addresses.collect();
    if !rest.is_empty() {
        fields.insert("additional_local_addresses".into(), rest.into());
    }
    Value::Object(fields)
}
