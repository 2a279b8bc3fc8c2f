//! `/clusters`: every cluster with its limits, every endpoint with its counters.

use std::fmt::Write;

use regex::Regex;
use serde_json::{Map, Value, json};

use super::Admin;
use super::request::{Reply, Request};
use crate::cluster::{Cluster, Host, HostHealth, Priority};
use crate::config::address::Address;
use crate::telemetry::names::HostStat;

/// The reply.
pub(super) fn show(admin: &Admin, request: &Request) -> Reply {
    let filter = match request.parameter("filter").map(Regex::new).transpose() {
        Ok(filter) => filter,
        Err(error) => return Reply::error(400, format!("Invalid re2 regex: {error}\n")),
    };
    let snapshot = admin.snapshot();
    let clusters = snapshot.live_clusters().map(|(_, cluster)| &**cluster);
    let clusters = clusters.filter(|cluster| filter.as_ref().is_none_or(|filter| filter.is_match(&cluster.name)));
    if request.parameter("format") == Some("json") {
        let statuses: Vec<Value> = clusters.map(status).collect();
        return Reply::json(&json!({ "cluster_statuses": statuses }));
    }
    let mut text = String::new();
    for cluster in clusters {
        write_text(cluster, &mut text);
    }
    Reply::text(text)
}

fn write_text(cluster: &Cluster, text: &mut String) {
    let name = &cluster.name;
    let _ = writeln!(text, "{name}::observability_name::{}", cluster.stat_name);
    for (priority, label) in PRIORITIES {
        let limits = cluster.breakers.thresholds(priority);
        for (limit, value) in [
            ("max_connections", limits.connections),
            ("max_pending_requests", limits.pending),
            ("max_requests", limits.requests),
            ("max_retries", limits.retries),
        ] {
            let _ = writeln!(text, "{name}::{label}_priority::{limit}::{value}");
        }
    }
    let _ = writeln!(text, "{name}::added_via_api::false");
    for host in &cluster.endpoints.hosts {
        write_host(name, host, text);
    }
}

fn write_host(cluster: &str, host: &Host, text: &mut String) {
    let address = &host.address;
    for (stat, _, name) in HOST_STATS_BY_NAME {
        let value = stat.map_or(0, |stat| host.stats.total(stat));
        let _ = writeln!(text, "{cluster}::{address}::{name}::{value}");
    }
    let health = match host.health {
        HostHealth::Healthy => "healthy",
        HostHealth::Degraded => "/degraded_eds_health",
        HostHealth::Unhealthy => "/failed_eds_health",
        HostHealth::Draining => "/eds_status_draining",
    };
    for (name, value) in [
        ("hostname", &*host.hostname),
        ("health_flags", health),
        ("weight", &host.weight.to_string()),
        ("region", &*host.locality.region),
        ("zone", &*host.locality.zone),
        ("sub_zone", &*host.locality.sub_zone),
        ("canary", if host.canary { "true" } else { "false" }),
        ("priority", &host.priority.to_string()),
        // Success rates are those of outlier detection; -1 means that there is none.
        ("success_rate", "-1"),
        ("local_origin_success_rate", "-1"),
    ] {
        let _ = writeln!(text, "{cluster}::{address}::{name}::{value}");
    }
}

/// envoy.admin.v3.ClusterStatus
fn status(cluster: &Cluster) -> Value {
    let thresholds = PRIORITIES.map(|(priority, _)| {
        let limits = cluster.breakers.thresholds(priority);
        let mut fields = Map::new();
        if priority == Priority::High {
            fields.insert("priority".into(), "HIGH".into());
        }
        fields.insert("max_connections".into(), limits.connections.into());
        fields.insert("max_pending_requests".into(), limits.pending.into());
        fields.insert("max_requests".into(), limits.requests.into());
        fields.insert("max_retries".into(), limits.retries.into());
        Value::Object(fields)
    });
    let mut fields = Map::new();
    fields.insert("name".into(), (&*cluster.name).into());
    let hosts: Vec<Value> = cluster.endpoints.hosts.iter().map(host_status).collect();
    if !hosts.is_empty() {
        fields.insert("host_statuses".into(), hosts.into());
    }
    fields.insert("circuit_breakers".into(), json!({ "thresholds": thresholds }));
    fields.insert("observability_name".into(), (&*cluster.stat_name).into());
    Value::Object(fields)
}

/// envoy.admin.v3.HostStatus; fields that hold their default are left out.
fn host_status(host: &Host) -> Value {
    let stats = HOST_STATS_BY_KIND.iter().map(|(stat, kind, name)| {
        let mut fields = Map::new();
        if *kind == Kind::Gauge {
            fields.insert("type".into(), "GAUGE".into());
        }
        let value = stat.map_or(0, |stat| host.stats.total(stat));
        if value > 0 {
            fields.insert("value".into(), value.to_string().into());
        }
        fields.insert("name".into(), (*name).into());
        Value::Object(fields)
    });
    let mut fields = Map::new();
    fields.insert("address".into(), address(&host.address));
    fields.insert("stats".into(), stats.collect());
    fields.insert("health_status".into(), json!({ "eds_health_status": host.health.name() }));
    fields.insert("weight".into(), host.weight.into());
    if !host.hostname.is_empty() {
        fields.insert("hostname".into(), (&*host.hostname).into());
    }
    if host.priority > 0 {
        fields.insert("priority".into(), host.priority.into());
    }
    let mut locality = Map::new();
    for (name, value) in
        [("region", &host.locality.region), ("zone", &host.locality.zone), ("sub_zone", &host.locality.sub_zone)]
    {
        if !value.is_empty() {
            locality.insert(name.into(), value.to_string().into());
        }
    }
    fields.insert("locality".into(), locality.into());
    Value::Object(fields)
}

/// envoy.config.core.v3.Address
pub(super) fn address(address: &Address) -> Value {
    match address {
        Address::Ip(address) => {
            json!({ "socket_address": { "address": address.ip().to_string(), "port_value": address.port() } })
        }
        Address::Pipe(path) => json!({ "pipe": { "path": path.to_string_lossy() } }),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
}

const PRIORITIES: [(Priority, &str); 2] = [(Priority::Default, "default"), (Priority::High, "high")];

type HostRow = (Option<HostStat>, Kind, &'static str);

/// `rq_pending_active` has no stat: requests wait for the cluster's pool and not for a host.
const HOST_STATS_BY_KIND: [HostRow; 9] = [
    (Some(HostStat::CxConnectFail), Kind::Counter, "cx_connect_fail"),
    (Some(HostStat::CxTotal), Kind::Counter, "cx_total"),
    (Some(HostStat::RqError), Kind::Counter, "rq_error"),
    (Some(HostStat::RqSuccess), Kind::Counter, "rq_success"),
    (Some(HostStat::RqTimeout), Kind::Counter, "rq_timeout"),
    (Some(HostStat::RqTotal), Kind::Counter, "rq_total"),
    (Some(HostStat::CxActive), Kind::Gauge, "cx_active"),
    (Some(HostStat::RqActive), Kind::Gauge, "rq_active"),
    (None, Kind::Gauge, "rq_pending_active"),
];

const HOST_STATS_BY_NAME: [HostRow; 9] = [
    (Some(HostStat::CxActive), Kind::Gauge, "cx_active"),
    (Some(HostStat::CxConnectFail), Kind::Counter, "cx_connect_fail"),
    (Some(HostStat::CxTotal), Kind::Counter, "cx_total"),
    (Some(HostStat::RqActive), Kind::Gauge, "rq_active"),
    (Some(HostStat::RqError), Kind::Counter, "rq_error"),
    (None, Kind::Gauge, "rq_pending_active"),
    (Some(HostStat::RqSuccess), Kind::Counter, "rq_success"),
    (Some(HostStat::RqTimeout), Kind::Counter, "rq_timeout"),
    (Some(HostStat::RqTotal), Kind::Counter, "rq_total"),
];
