//! Redirected connections in a network namespace with iptables: where they were going is found out, and decides who serves them.
//!
//! Needs root, `ip` and `iptables`; skipped, saying so, where one of them is missing.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(30);

fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A network namespace of its own; gone when dropped.
struct Namespace(String);

impl Namespace {
    fn new() -> Option<Self> {
        let name = format!("torus-test-{}", std::process::id());
        let made = Command::new("ip").args(["netns", "add", &name]).stderr(Stdio::null()).status().ok()?;
        made.success().then_some(Self(name))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.0, program]);
        command
    }

    fn run(&self, line: &str) -> bool {
        let mut words = line.split(' ');
        let mut command = self.command(words.next().unwrap_or_default());
        command.args(words).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    }

    fn curl(&self, address: &str) -> String {
        let mut command = self.command("curl");
        command.args(["-sS", "--noproxy", "*", "--max-time", "10", &format!("http://{address}")]);
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.0]).status();
    }
}

struct Proxy(Child);

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The proxy under test, and another one that is its endpoints.
fn bootstraps(front: &Path, ends: &Path) {
    let text = |answer: &str| {
        format!(
            "{{'@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, \
stat_prefix: {answer}, http_filters: [{{name: r, typed_config: {{'@type': \
type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}], route_config: {{virtual_hosts: [{{name: a, domains: ['*'], \
routes: [{{match: {{prefix: /}}, direct_response: {{status: 200, body: {{inline_string: '{answer} \
%DOWNSTREAM_LOCAL_ADDRESS%'}}, body_format: {{text_format_source: {{inline_string: '{answer} %DOWNSTREAM_LOCAL_ADDRESS%'}}}}}}}}]}}]}}}}"
        )
    };
    let listener = |name: &str, address: &str, port: u16, more: &str, filter: &str| {
        format!(
            "  - {{name: {name}, stat_prefix: {name}, address: {{socket_address: {{address: {address}, port_value: {port}}}}}{more}, \
filter_chains: [{{filters: [{{name: f, typed_config: {filter}}}]}}]}}\n"
        )
    };
    let inspector = |name: &str, kind: &str| {
        format!(
            "{{name: {name}, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.listener.{kind}}}}}"
        )
    };
    let original = inspector("original_dst", "original_dst.v3.OriginalDst");
    let http = inspector("http_inspector", "http_inspector.v3.HttpInspector");
    let outbound = format!(", use_original_dst: true, listener_filters: [{original}]");
    let tcp = "{'@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: out, cluster: original}";
    let config = [
        "admin: {address: {socket_address: {address: 127.0.0.1, port_value: 15000}}}\nstatic_resources:\n  listeners:\n".into(),
        listener("outbound", "0.0.0.0", 15001, &outbound, tcp),
        listener("any", "0.0.0.0", 8082, ", bind_to_port: false", &text("any")),
        listener("exact", "10.99.0.1", 8083, &format!(", bind_to_port: false, listener_filters: [{http}]"), &text("exact")),
        listener("other", "0.0.0.0", 8083, ", bind_to_port: false", &text("other")),
        "  clusters:\n  - {name: original, type: ORIGINAL_DST, lb_policy: CLUSTER_PROVIDED, cleanup_interval: 1s, upstream_bind_config: \
{source_address: {address: 127.0.0.6, port_value: 0}}}\n"
            .into(),
    ];
    std::fs::write(front, config.concat()).unwrap();
    let config = [
        "admin: {address: {socket_address: {address: 127.0.0.1, port_value: 15010}}}\nstatic_resources:\n  listeners:\n".into(),
        listener("one", "10.99.0.1", 8081, "", &text("one")),
        listener("two", "10.99.0.2", 8081, "", &text("two")),
    ];
    std::fs::write(ends, config.concat()).unwrap();
}

#[test]
fn redirected_connections_go_where_they_were_going() {
    let Some(namespace) = Namespace::new() else {
        println!("skipped: no network namespace can be made here; root and `ip` are needed");
        return;
    };
    for line in ["ip link set lo up", "ip route add local 10.99.0.0/16 dev lo"] {
        assert!(namespace.run(line), "{line}");
    }
    // What the proxy itself sends is left alone.
    for line in [
        "iptables -t nat -A OUTPUT -s 127.0.0.6/32 -j RETURN",
        "iptables -t nat -A OUTPUT -p tcp -d 10.99.0.0/16 -j REDIRECT --to-ports 15001",
    ] {
        if !namespace.run(line) {
            println!("skipped: iptables cannot redirect here");
            return;
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let configs = [folder.path().join("front.yaml"), folder.path().join("ends.yaml")];
    bootstraps(&configs[0], &configs[1]);
    let _proxies = configs.map(|config| {
        let mut command = namespace.command(env!("CARGO_BIN_EXE_torus-proxy"));
        Proxy(command.arg("-c").arg(config).args(["--concurrency", "1"]).spawn().unwrap())
    });
    for port in [15000, 15010] {
        wait_for("ready", || namespace.curl(&format!("127.0.0.1:{port}/ready")).ends_with("LIVE\n").then_some(()));
    }

    for (address, expect) in [
        ("10.99.0.1:8081/", "one 10.99.0.1:8081"),
        ("10.99.0.2:8081/", "two 10.99.0.2:8081"),
        ("10.99.0.2:8081/", "two 10.99.0.2:8081"),
        ("10.99.0.1:8082/", "any 10.99.0.1:8082"),
        ("10.99.0.77:8082/", "any 10.99.0.77:8082"),
        ("10.99.0.1:8083/", "exact 10.99.0.1:8083"),
        ("10.99.0.2:8083/", "other 10.99.0.2:8083"),
        // Nobody is there.
        ("10.99.0.1:8084/", ""),
    ] {
        assert_eq!(namespace.curl(address), expect, "{address}");
    }
    let stats = namespace.curl("127.0.0.1:15000/stats");
    for line in [
        "listener.any.downstream_cx_total: 2",
        "listener.exact.downstream_cx_total: 1",
        "listener.other.downstream_cx_total: 1",
        "listener.outbound.downstream_cx_total: 4",
        "listener.outbound.downstream_pre_cx_active: 0",
        "cluster.original.upstream_cx_total: 4",
        "cluster.original.upstream_cx_connect_fail: 1",
    ] {
        assert!(stats.lines().any(|found| found == line), "{line} in\n{stats}");
    }
    // Endpoints without a connection are forgotten, and found again.
    std::thread::sleep(Duration::from_millis(2_500));
    assert_eq!(namespace.curl("10.99.0.1:8081/"), "one 10.99.0.1:8081");
    // A connection that was not redirected was going to the listener itself: there is no endpoint.
    assert_eq!(namespace.curl("127.0.0.1:15001/"), "");
}
