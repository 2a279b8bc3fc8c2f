//! Every path of the admin server, with its help.

use std::fmt::Write;

use super::request::{Reply, Request};
use super::{Admin, clusters, config_dump, index, listeners, logging, process, stats};

/// One path.
pub(super) struct Endpoint {
    pub(super) path: &'static str,
    pub(super) help: &'static str,
    /// Changes something, so it takes POST alone.
    pub(super) mutates: bool,
    pub(super) parameters: &'static [(&'static str, &'static str)],
    handle: fn(&Admin, &Request) -> Reply,
}

/// Answers a request.
pub(super) fn answer(admin: &Admin, request: &Request) -> Reply {
    let Some(endpoint) = ENDPOINTS.iter().find(|endpoint| endpoint.path == request.path) else {
        return Reply::error(404, format!("invalid path. {}", help()));
    };
    if endpoint.mutates && !request.is_post {
        return Reply::error(405, format!("Method {} not allowed, POST required.", request.method));
    }
    (endpoint.handle)(admin, request)
}

/// The list of paths.
pub(super) fn help() -> String {
    let mut text = String::from("admin commands are:\n");
    for endpoint in ENDPOINTS {
        let post = if endpoint.mutates { " (POST)" } else { "" };
        let _ = writeln!(text, "  {}{post}: {}", endpoint.path, endpoint.help);
        for (name, help) in endpoint.parameters {
            let _ = writeln!(text, "      {name}: {help}");
        }
    }
    text
}

const fn reads(path: &'static str, help: &'static str, handle: fn(&Admin, &Request) -> Reply) -> Endpoint {
    Endpoint { path, help, mutates: false, parameters: &[], handle }
}

const fn changes(path: &'static str, help: &'static str, handle: fn(&Admin, &Request) -> Reply) -> Endpoint {
    Endpoint { path, help, mutates: true, parameters: &[], handle }
}

impl Endpoint {
    const fn with(self, parameters: &'static [(&'static str, &'static str)]) -> Self {
        Self { parameters, ..self }
    }
}

/// By path, as the list shows them.
pub(super) const ENDPOINTS: &[Endpoint] = &[
    reads("/", "Admin home page", |_, _| Reply::html(index::page())),
    reads("/certs", "print certs on machine", process::certs),
    reads("/clusters", "upstream cluster status", clusters::show).with(&[
        ("filter", "Regular expression for filtering clusters by name"),
        ("format", "File format to use; One of (text, json)"),
    ]),
    reads("/config_dump", "dump current configuration", config_dump::show).with(&[
        ("resource", "The resource to dump, for instance static_clusters"),
        ("mask", "The fields to show, for instance cluster.name. With resource, applied to each element"),
        ("name_regex", "Dump only what has a name that matches"),
        ("include_eds", "Dump the endpoints in use as well"),
    ]),
    reads("/contention", "dump mutex contention stats (there are none: no request takes a lock)", process::contention),
    changes("/drain_listeners", "drain listeners", process::drain_listeners).with(&[
        ("graceful", "Ask connections to end for the drain time (--drain-time-s), then stop the listeners"),
        ("skip_exit", "Ask connections to end but never stop the listeners"),
        ("inboundonly", "Only listeners with traffic_direction INBOUND"),
    ]),
    changes("/healthcheck/fail", "cause the server to fail health checks", process::health_fail),
    changes("/healthcheck/ok", "cause the server to pass health checks", process::health_ok),
    reads("/help", "print out list of admin commands", |_, _| Reply::text(help())),
    reads("/hot_restart_version", "print the hot restart compatibility version", process::hot_restart_version),
    reads("/init_dump", "dump what the server still waits for before it serves", config_dump::show_init)
        .with(&[("mask", "listener")]),
    reads("/listeners", "print listener info", listeners::show)
        .with(&[("format", "File format to use; One of (text, json)")]),
    changes("/logging", "query/change logging levels", logging::change).with(&[
        ("paths", "Change several levels: <name1>:<level1>,<name2>:<level2>"),
        ("level", "Change all levels; One of (trace, debug, info, warning, error, critical, off)"),
        ("<name>", "Change the level of one component"),
    ]),
    reads("/memory", "print current allocation/heap usage", process::memory),
    changes("/quitquitquit", "exit the server", process::quit),
    reads("/ready", "print server state, return 200 if LIVE, otherwise return 503", process::ready),
    changes("/reopen_logs", "reopen access logs", process::reopen_logs),
    changes("/reset_counters", "reset all counters to zero", stats::reset),
    reads("/runtime", "print runtime values", process::runtime),
    changes("/runtime_modify", "refused: runtime values are read with the configuration", process::runtime_modify),
    reads("/server_info", "print server version/status information", process::server_info),
    reads("/stats", "print server stats", stats::show).with(&[
        ("usedonly", "Only include stats that have been written since start"),
        ("filter", "Regular expression for filtering stats"),
        ("invert_filter", "Invert the filter"),
        ("format", "Format to use; One of (html, text, json, prometheus)"),
        ("type", "Stat types to include; One of (All, Counters, Gauges, Histograms, TextReadouts)"),
        ("histogram_buckets", "Histogram display mode; One of (cumulative, disjoint, detailed, summary)"),
    ]),
    reads("/stats/prometheus", "print server stats in prometheus format", stats::show_prometheus).with(&[
        ("usedonly", "Only include stats that have been written since start"),
        ("filter", "Regular expression for filtering stats"),
        ("invert_filter", "Invert the filter"),
    ]),
    reads("/stats/recentlookups", "Show recent stat-name lookups (there are none)", stats::recent_lookups),
    changes("/stats/recentlookups/clear", "clear list of stat-name lookups and counter", |_, _| Reply::ok()),
    changes("/stats/recentlookups/disable", "disable recording of stat-name lookups", |_, _| Reply::ok()),
    changes("/stats/recentlookups/enable", "enable recording of stat-name lookups", |_, _| Reply::ok()),
];
