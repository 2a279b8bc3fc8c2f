//! What an operator does to a running proxy: reads it, rotates its logs, drains it, ends it.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// A running proxy; killed when dropped.
struct Proxy {
    child: Child,
    folder: tempfile::TempDir,
    admin: String,
    port: u16,
}

const PATIENCE: Duration = Duration::from_secs(30);

fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn bootstrap(folder: &Path, port: u16, backend: u16, admin: u16) -> PathBuf {
    let folder = folder.display();
    let text = format!(
        "admin:
  address: {{socket_address: {{address: 127.0.0.1, port_value: {admin}}}}}
  access_log:
  - name: a
    typed_config: {{'@type': type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: {folder}/admin.log}}
static_resources:
  clusters:
  - name: backend
    connect_timeout: 1s
    load_assignment:
      cluster_name: backend
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {backend}}}}}}}}}]}}]
  listeners:
  - name: in
    address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: hcm
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: in
          access_log:
          - name: a
            typed_config:
              '@type': type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
              path: {folder}/access.log
              log_format: {{text_format_source: {{inline_string: \"%REQ(:PATH)% %RESPONSE_CODE%\\n\"}}}}
          route_config:
            virtual_hosts:
            - name: v
              domains: ['*']
              routes:
              - {{match: {{path: /direct}}, direct_response: {{status: 200, body: {{inline_string: direct}}}}}}
              - {{match: {{prefix: /}}, route: {{cluster: backend}}}}
          http_filters:
          - name: r
            typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
"
    );
    let path = Path::new(&folder.to_string()).join("bootstrap.yaml");
    std::fs::write(&path, text).unwrap();
    path
}

impl Proxy {
    fn start(backend: u16, flush_ms: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = free_port();
        let config = bootstrap(folder.path(), port, backend, 0);
        let address = folder.path().join("admin-address");
        let child = Command::new(env!("CARGO_BIN_EXE_torus-proxy"))
            .arg("-c")
            .arg(config)
            .args(["--concurrency", "1", "--file-flush-interval-msec", flush_ms, "--drain-time-s", "30"])
            .arg("--admin-address-path")
            .arg(&address)
            .arg("--log-path")
            .arg(folder.path().join("program.log"))
            .spawn()
            .unwrap();
        let admin =
            wait_for("the admin address", || std::fs::read_to_string(&address).ok().filter(|text| !text.is_empty()));
        let proxy = Self { child, folder, admin, port };
        wait_for("ready", || (proxy.admin("GET", "/ready").ends_with("LIVE\n")).then_some(()));
        proxy
    }

    fn admin(&self, method: &str, path: &str) -> String {
        let mut stream = TcpStream::connect(&self.admin).unwrap();
        write!(stream, "{method} {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        reply
    }

    fn connect(&self) -> TcpStream {
        let stream = wait_for("listening", || TcpStream::connect(("127.0.0.1", self.port)).ok());
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    fn get(&self, stream: &mut TcpStream, path: &str, until: &str) -> String {
        write!(stream, "GET {path} HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
        read_until(stream, until)
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.folder.path().join(name)).unwrap_or_default()
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status();
        assert!(sent.unwrap().success());
    }

    fn ended(&mut self) -> ExitStatus {
        wait_for("the process ends", || self.child.try_wait().unwrap())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut text = String::new();
    let mut block = [0; 4096];
    while !text.ends_with(end) {
        let count = stream.read(&mut block).unwrap();
        assert!(count > 0, "closed after {text:?}");
        text.push_str(&String::from_utf8_lossy(&block[..count]));
    }
    text
}

#[test]
fn counters_and_logs_tell_what_happened_and_logs_rotate() {
    let proxy = Proxy::start(free_port(), "20");
    let mut client = proxy.connect();
    proxy.get(&mut client, "/direct", "direct");
    assert!(proxy.get(&mut client, "/refused", "reset reason: remote connection failure").starts_with("HTTP/1.1 503"));
    let stats = proxy.admin("GET", "/stats?filter=^http.in.downstream_rq_(total|2xx|5xx)$");
    assert!(
        stats.ends_with("http.in.downstream_rq_2xx: 1\nhttp.in.downstream_rq_5xx: 1\nhttp.in.downstream_rq_total: 2\n"),
        "{stats}"
    );
    let cluster = proxy.admin("GET", "/stats?filter=cluster.backend.upstream_(cx_connect_fail|rq_503)$");
    assert!(
        cluster.ends_with("cluster.backend.upstream_cx_connect_fail: 1\ncluster.backend.upstream_rq_503: 1\n"),
        "{cluster}"
    );
    wait_for("the access log", || (proxy.read("access.log") == "/direct 200\n/refused 503\n").then_some(()));
    wait_for("the admin access log", || proxy.read("admin.log").contains("\"GET /ready HTTP/1.1\" 200").then_some(()));

    let path = proxy.folder.path().join("access.log");
    std::fs::rename(&path, proxy.folder.path().join("access.log.1")).unwrap();
    proxy.signal("USR1");
    wait_for("a new access log", || path.exists().then_some(()));
    proxy.get(&mut client, "/direct", "direct");
    wait_for("the line is in the new one", || (proxy.read("access.log") == "/direct 200\n").then_some(()));
    assert_eq!(proxy.read("access.log.1"), "/direct 200\n/refused 503\n");
    proxy.signal("HUP");
    assert!(proxy.admin("GET", "/ready").ends_with("LIVE\n"), "SIGHUP changes nothing");
    assert!(proxy.admin("POST", "/logging?admin=debug").contains("\n  admin: debug\n"));
    proxy.admin("GET", "/help");
    wait_for("the debug line", || proxy.read("program.log").contains("GET /help").then_some(()));
}

#[test]
fn an_idle_connection_does_not_hold_the_process_and_no_line_is_lost() {
    let mut proxy = Proxy::start(free_port(), "60000");
    let mut idle = proxy.connect();
    proxy.get(&mut idle, "/direct", "direct");
    proxy.signal("TERM");
    assert!(proxy.ended().success());
    assert_eq!(idle.read(&mut [0; 1]).unwrap(), 0, "closed in good order");
    assert_eq!(proxy.read("access.log"), "/direct 200\n");
    assert!(proxy.read("program.log").contains("drained; exiting"), "{}", proxy.read("program.log"));
}

#[test]
fn a_running_request_is_finished_and_then_the_process_ends() {
    let backend = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut proxy = Proxy::start(backend.local_addr().unwrap().port(), "20");
    let mut client = proxy.connect();
    write!(client, "GET /slow HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    let (mut upstream, _) = backend.accept().unwrap();
    read_until(&mut upstream, "\r\n\r\n");
    proxy.signal("TERM");
    wait_for("draining", || proxy.admin("GET", "/ready").ends_with("DRAINING\n").then_some(()));
    wait_for("no new connections", || match TcpStream::connect(("127.0.0.1", proxy.port)) {
        Ok(_) => None,
        Err(error) => (error.kind() == ErrorKind::ConnectionRefused).then_some(()),
    });
    upstream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nslow").unwrap();
    let reply = read_until(&mut client, "slow");
    assert!(reply.contains("connection: close\r\n"), "{reply}");
    assert!(proxy.ended().success());
}

#[test]
fn a_second_signal_does_not_wait() {
    let backend = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut proxy = Proxy::start(backend.local_addr().unwrap().port(), "20");
    let mut client = proxy.connect();
    write!(client, "GET /never HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    let (mut upstream, _) = backend.accept().unwrap();
    read_until(&mut upstream, "\r\n\r\n");
    proxy.signal("INT");
    wait_for("draining", || proxy.admin("GET", "/ready").ends_with("DRAINING\n").then_some(()));
    assert!(proxy.child.try_wait().unwrap().is_none());
    proxy.signal("INT");
    assert!(proxy.ended().success());
}

#[test]
fn an_admin_port_in_use_is_one_line_with_the_cure() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let config = bootstrap(folder.path(), free_port(), 1, taken.local_addr().unwrap().port());
    let child = Command::new(env!("CARGO_BIN_EXE_torus-proxy")).arg("-c").arg(config).stderr(Stdio::piped()).spawn();
    let output = child.unwrap().wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.starts_with("admin server cannot listen on 127.0.0.1:") && text.contains("ss -ltnp"), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
}
