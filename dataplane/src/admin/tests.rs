use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use envoy_types::pb::envoy::config::bootstrap::v3::Bootstrap;
use prost::Message;

use super::request::{Reply, Request};
use super::*;
use crate::config::lifecycle::DrainStrategy;
use crate::telemetry::access_log::sink::FlushOptions;
use crate::telemetry::counters::Core;
use crate::telemetry::names::HttpStat;

const BOOTSTRAP: &str = "
node: {id: n}
layered_runtime:
  layers:
  - {name: base, static_layer: {a: {b: 5}, c: one}}
  - {name: over, static_layer: {a.b: 7}}
static_resources:
  clusters:
  - name: backend
    connect_timeout: 1s
  - name: other
    connect_timeout: 2s
  listeners:
  - name: in
    filter_chains:
    - filters:
      - name: hcm
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: in
          route_config: {name: routes, virtual_hosts: [{name: v, domains: ['*']}]}
";

struct Fixture {
    admin: Arc<Admin>,
    commanded: mpsc::Receiver<Command>,
}

fn fixture() -> Fixture {
    let registry = Registry::new(2);
    let (commands, commanded) = mpsc::channel(4);
    let bootstrap: Bootstrap = torus_xds::from_yaml(BOOTSTRAP).unwrap_or_else(|errors| panic!("{errors:?}"));
    let facts = Facts {
        version: "1.2.3".into(),
        config: ConfigDump::new(bootstrap.encode_to_vec()),
        io_driver: "epoll".into(),
        io_gate: Some("seccomp".into()),
        ..Facts::default()
    };
    let log_sinks = LogSinks::new(FlushOptions::default(), &registry);
    let log_buffers = Mutex::new(LogBuffers::new(log_sinks.clone(), registry.config_core()));
    let admin = Admin {
        records: Mutex::default(),
        stats: Mutex::default(),
        server_stats: ServerStats::new(&registry, "1.2.3"),
        snapshot: Mutex::default(),
        lifecycle: Lifecycle::new(1, Duration::from_secs(600), DrainStrategy::Gradual),
        log_sinks,
        log: None,
        commands,
        facts,
        access_logs: Vec::new(),
        log_buffers,
        registry,
    };
    Fixture { admin: Arc::new(admin), commanded }
}

fn ask(admin: &Admin, method: &str, target: &str) -> Reply {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    endpoints::answer(admin, &Request::new(method, path, query))
}

fn json_of(admin: &Admin, target: &str) -> serde_json::Value {
    let reply = ask(admin, "GET", target);
    assert_eq!((reply.status, reply.content_type), (200, request::JSON), "{target}: {}", reply.body);
    serde_json::from_str(&reply.body).unwrap()
}

/// Status and text as recorded from Envoy 1.40, for the bodies that do not name Envoy itself.
#[test]
fn paths_answer_as_in_envoy() {
    let Fixture { admin, .. } = fixture();
    let check = |method: &str, target: &str, status: u16, body: &str| {
        let reply = ask(&admin, method, target);
        assert_eq!(reply.status, status, "{method} {target}: {}", reply.body);
        assert!(reply.body.starts_with(body), "{method} {target}: {}", reply.body);
    };
    check("GET", "/ready", 200, "LIVE\n");
    check("POST", "/ready", 200, "LIVE\n");
    check("GET", "/help", 200, "admin commands are:\n  /: Admin home page\n");
    check("GET", "/", 200, "<!DOCTYPE html>");
    check("GET", "/nope", 404, "invalid path. admin commands are:\n  /: Admin home page\n");
    check("POST", "/nope", 404, "invalid path. admin commands are:\n");
    check("GET", "/healthcheck/fail", 405, "Method GET not allowed, POST required.");
    check("PUT", "/quitquitquit", 405, "Method PUT not allowed, POST required.");
    check("GET", "/logging", 405, "Method GET not allowed, POST required.");
    check("GET", "/certs", 200, "{\n \"certificates\": []\n}\n");
    check("GET", "/init_dump", 200, "{}");
    check("GET", "/listeners", 200, "");
    check("GET", "/listeners?format=json", 200, "{\n \"listener_statuses\": []\n}\n");
    check("GET", "/clusters?format=json", 200, "{\n \"cluster_statuses\": []\n}\n");
    check("GET", "/clusters?filter=%5B", 400, "Invalid re2 regex: ");
    check("GET", "/stats?format=zzz", 400, "usage: /stats?format=(html|active-html|json|prometheus|text)\n\n");
    check(
        "GET",
        "/stats?histogram_buckets=bad",
        400,
        "usage: /stats?histogram_buckets=(cumulative|disjoint|detailed|summary",
    );
    check("GET", "/stats?filter=%5B", 400, "Invalid re2 regex: ");
    check("GET", "/stats?type=bad", 400, "usage: /stats?type=");
    check("GET", "/stats?filter=^server.live$", 200, "server.live: 1\n");
    check("GET", "/stats?format=html&filter=^server.live$", 200, "<!DOCTYPE html>");
    check(
        "GET",
        "/stats?format=prometheus&filter=^server.live$",
        200,
        "# TYPE envoy_server_live gauge\nenvoy_server_live{} 1\n",
    );
    check(
        "GET",
        "/stats/prometheus?filter=^server.live$",
        200,
        "# TYPE envoy_server_live gauge\nenvoy_server_live{} 1\n",
    );
    check("GET", "/stats/recentlookups", 200, "Lookup tracking is not enabled.");
    check("POST", "/stats/recentlookups/enable", 200, "OK\n");
    check("POST", "/reopen_logs", 200, "OK\n");
    check("POST", "/runtime_modify", 400, "usage: /runtime_modify?key1=value1");
    check("POST", "/runtime_modify?a=b", 503, "runtime values are read with the configuration");
    check("GET", "/contention", 200, "Mutex contention tracing is not enabled");
    check("GET", "/hot_restart_version", 200, "disabled");
    check("POST", "/logging", 503, "");
}

#[test]
fn failing_health_checks_is_draining() {
    let Fixture { admin, mut commanded } = fixture();
    assert_eq!(ask(&admin, "POST", "/healthcheck/fail"), Reply::ok());
    assert_eq!(ask(&admin, "GET", "/ready"), Reply::error(503, "DRAINING\n"));
    assert_eq!(json_of(&admin, "/server_info")["state"], "DRAINING");
    assert_eq!(ask(&admin, "GET", "/stats?filter=^server.state$").body, "server.state: 1\n");
    assert_eq!(ask(&admin, "POST", "/healthcheck/ok"), Reply::ok());
    assert_eq!(ask(&admin, "GET", "/ready").body, "LIVE\n");
    assert_eq!(commanded.try_recv(), Ok(Command::PhaseChanged), "workers are told");
    admin.lifecycle.begin_warming();
    assert_eq!(ask(&admin, "GET", "/ready").body, "PRE_INITIALIZING\n");
    assert_eq!(ask(&admin, "GET", "/stats?filter=^server.(state|live)$").body, "server.live: 0\nserver.state: 2\n");
}

#[test]
fn commands_reach_the_config_thread_or_are_refused() {
    let Fixture { admin, mut commanded } = fixture();
    let mut check = |target: &str, command: Command| {
        assert_eq!(ask(&admin, "POST", target), Reply::ok());
        assert_eq!(commanded.try_recv(), Ok(command), "{target}");
    };
    let drain =
        |graceful, inbound_only, keep_listeners| Command::DrainListeners { graceful, inbound_only, keep_listeners };
    check("/quitquitquit", Command::Quit);
    check("/drain_listeners", drain(false, false, false));
    check("/drain_listeners?graceful", drain(true, false, false));
    check("/drain_listeners?graceful&skip_exit&inboundonly", drain(true, true, true));
    for _ in 0..4 {
        ask(&admin, "POST", "/drain_listeners");
    }
    assert_eq!(ask(&admin, "POST", "/drain_listeners").status, 503, "the queue has a bound");
}

#[test]
fn server_info_says_what_runs() {
    let Fixture { admin, .. } = fixture();
    let info = json_of(&admin, "/server_info");
    assert_eq!(info["version"], "torus/1.2.3");
    assert_eq!(info["state"], "LIVE");
    assert_eq!(info["node"]["user_agent_build_version"]["version"]["minor_number"], 2);
    assert_eq!((&info["torus"]["io_driver"], &info["torus"]["io_gate"]), (&"epoll".into(), &"seccomp".into()));
    let memory = json_of(&admin, "/memory");
    assert_ne!(memory["total_physical_bytes"], "0");
}

#[test]
fn runtime_shows_every_layer() {
    let Fixture { admin, .. } = fixture();
    let expected = serde_json::json!({
        "entries": {
            "a.b": { "final_value": "7", "layer_values": ["5", "7"] },
            "c": { "final_value": "one", "layer_values": ["one", ""] },
        },
        "layers": ["base", "over"],
    });
    assert_eq!(json_of(&admin, "/runtime"), expected);
}

#[test]
fn config_dump_has_envoys_messages() {
    let Fixture { admin, .. } = fixture();
    let types = |value: &serde_json::Value| -> Vec<String> {
        let configs = value["configs"].as_array().unwrap().iter();
        configs
            .map(|config| config["@type"].as_str().unwrap().replace("type.googleapis.com/envoy.admin.v3.", ""))
            .collect()
    };
    let names = |value: &serde_json::Value, pointer: &str| -> Vec<String> {
        let entries = value.as_array().unwrap().iter();
        entries.map(|entry| entry.pointer(pointer).unwrap().as_str().unwrap().to_owned()).collect()
    };
    let all = json_of(&admin, "/config_dump");
    let expected = ["Bootstrap", "Clusters", "Listeners", "ScopedRoutes", "Routes", "Secrets"];
    assert_eq!(types(&all), expected.map(|name| format!("{name}ConfigDump")));
    assert_eq!(all["configs"][0]["bootstrap"]["node"]["id"], "n");
    assert_eq!(names(&all["configs"][1]["static_clusters"], "/cluster/name"), ["backend", "other"]);
    assert_eq!(
        all["configs"][1]["static_clusters"][0]["cluster"]["@type"],
        "type.googleapis.com/envoy.config.cluster.v3.Cluster"
    );
    assert_eq!(names(&all["configs"][2]["static_listeners"], "/listener/name"), ["in"]);
    assert_eq!(names(&all["configs"][4]["static_route_configs"], "/route_config/name"), ["routes"]);
    assert!(all["configs"][4]["static_route_configs"][0]["last_updated"].as_str().unwrap().ends_with('Z'));

    let one = json_of(&admin, "/config_dump?resource=static_clusters&name_regex=b.*");
    assert_eq!(types(&one), ["ClustersConfigDump.StaticCluster"]);
    assert_eq!(names(&one["configs"], "/cluster/name"), ["backend"]);
    let masked = json_of(&admin, "/config_dump?resource=static_clusters&mask=cluster.name");
    assert_eq!(masked["configs"][1]["cluster"], serde_json::json!({ "name": "other" }));
    let node = json_of(&admin, "/config_dump?mask=bootstrap.node.id");
    assert_eq!(types(&node), ["BootstrapConfigDump"]);
    assert_eq!(node["configs"][0]["bootstrap"], serde_json::json!({ "node": { "id": "n" } }));
    assert_eq!(json_of(&admin, "/config_dump?resource=dynamic_listeners"), serde_json::json!({ "configs": [] }));
    let unknown = ask(&admin, "GET", "/config_dump?resource=nope");
    assert_eq!((unknown.status, unknown.body.as_str()), (404, "nope not found in config dump"));
    assert_eq!(ask(&admin, "GET", "/config_dump?name_regex=%5B").status, 400);
}

#[test]
fn counters_are_reset() {
    let Fixture { admin, .. } = fixture();
    let stats = admin.registry.group::<HttpStat>("http.in.");
    stats.increment(Core(0), HttpStat::DownstreamRqTotal);
    let shown = || ask(&admin, "GET", "/stats?filter=http.in.downstream_rq_total").body;
    assert_eq!(shown(), "http.in.downstream_rq_total: 1\n");
    assert_eq!(ask(&admin, "POST", "/reset_counters"), Reply::ok());
    assert_eq!(shown(), "http.in.downstream_rq_total: 0\n");
}

#[test]
fn the_server_answers_over_tcp_and_bounds_bodies() {
    let Fixture { admin, .. } = fixture();
    let socket = AdminSocket::bind(&crate::config::address::Address::Ip("127.0.0.1:0".parse().unwrap())).unwrap();
    let address = socket.address().ip().unwrap();
    let served = admin.clone();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(server::serve(socket, served))
    });
    let exchange = |request: &str| {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        reply
    };
    let reply = exchange("GET /ready HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    assert!(reply.starts_with("HTTP/1.1 200 OK\r\n") && reply.ends_with("\r\n\r\nLIVE\n"), "{reply}");
    for header in [
        "content-type: text/plain; charset=UTF-8",
        "cache-control: no-cache, max-age=0",
        "x-content-type-options: nosniff",
    ] {
        assert!(reply.contains(header), "{reply}");
    }
    let form = "POST /runtime_modify HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\
                content-type: application/x-www-form-urlencoded\r\ncontent-length: 3\r\n\r\na=b";
    assert!(exchange(form).starts_with("HTTP/1.1 503"), "the form's parameters count");
    let large = format!(
        "POST /reset_counters HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 70000\r\n\r\n{}",
        "x".repeat(70_000)
    );
    assert!(exchange(&large).starts_with("HTTP/1.1 413"));
    let total = admin.registry.group::<HttpStat>("http.admin.").total(HttpStat::DownstreamRqTotal);
    assert_eq!(total, 3);
}
