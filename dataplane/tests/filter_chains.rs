//! Filter chains chosen by what a connection is and says first, at a real proxy with curl and raw sockets as clients.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

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

struct Proxy {
    child: Child,
    folder: tempfile::TempDir,
    admin: String,
    /// Chains by name and protocol; a short timeout that closes; a short one that goes on.
    ports: [u16; 3],
}

impl Proxy {
    fn start() -> Self {
        let ports = std::array::from_fn(|_| free_port());
        let folder = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(["a.test".into(), "b.test".into(), "c.test".into()]).unwrap();
        std::fs::write(folder.path().join("a.pem"), made.cert.pem()).unwrap();
        std::fs::write(folder.path().join("a.key"), made.signing_key.serialize_pem()).unwrap();
        let config = folder.path().join("bootstrap.yaml");
        std::fs::write(&config, bootstrap(folder.path(), ports)).unwrap();
        let address = folder.path().join("admin-address");
        let child = Command::new(env!("CARGO_BIN_EXE_torus-proxy"))
            .arg("-c")
            .arg(config)
            .args(["--concurrency", "1", "--file-flush-interval-msec", "20", "--admin-address-path"])
            .arg(&address)
            .spawn()
            .unwrap();
        let admin =
            wait_for("the admin address", || std::fs::read_to_string(&address).ok().filter(|text| !text.is_empty()));
        let proxy = Self { child, folder, admin, ports };
        wait_for("ready", || proxy.admin("/ready").ends_with("LIVE\n").then_some(()));
        proxy
    }

    fn admin(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(&self.admin).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        reply
    }

    fn wait_for_stat(&self, name: &str, value: u64) {
        let line = format!("{name}: {value}");
        wait_for(&line, || self.admin("/stats").lines().any(|found| found == line).then_some(()));
    }

    /// What curl gets from the first listener.
    fn curl(&self, scheme: &str, name: &str, more: &[&str]) -> Option<String> {
        let port = self.ports[0];
        let output = Command::new("curl")
            .args(["-sS", "--noproxy", "*", "--max-time", "20", "--connect-to"])
            .arg(format!("::127.0.0.1:{port}"))
            .args(["--cacert", "a.pem"])
            .args(more)
            .arg(format!("{scheme}://{name}:{port}/"))
            .current_dir(self.folder.path())
            .output()
            .unwrap();
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn bootstrap(folder: &Path, [by_name, closes, goes_on]: [u16; 3]) -> String {
    let folder = folder.display();
    let filters = |name: &str| {
        format!(
            "name: {name}, filters: [{{name: hcm, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.network.\
http_connection_manager.v3.HttpConnectionManager, stat_prefix: {name}, route_config: {{virtual_hosts: [{{name: a, domains: ['*'], \
routes: [{{match: {{prefix: /}}, direct_response: {{status: 200, body: {{inline_string: {name}}}}}}}]}}]}}, http_filters: [{{name: r, \
typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]}}}}]"
        )
    };
    let tls = |alpn: &str| {
        format!(
            "transport_socket: {{name: tls, typed_config: {{'@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.\
DownstreamTlsContext, common_tls_context: {{alpn_protocols: [{alpn}], tls_certificates: [{{certificate_chain: {{filename: {folder}/a.pem}}, \
private_key: {{filename: {folder}/a.key}}}}]}}}}}}"
        )
    };
    let inspector = |name: &str| {
        format!(
            "{{name: {name}, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.listener.{name}}}}}"
        )
    };
    let inspectors =
        [inspector("tls_inspector.v3.TlsInspector"), inspector("http_inspector.v3.HttpInspector")].join(", ");
    format!(
        "
admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}}}
static_resources:
  listeners:
  - name: by_name
    stat_prefix: by_name
    address: {{socket_address: {{address: 127.0.0.1, port_value: {by_name}}}}}
    listener_filters: [{inspectors}]
    filter_chains:
    - {{filter_chain_match: {{server_names: [a.test]}}, {}, {}}}
    - {{filter_chain_match: {{server_names: ['*.test'], application_protocols: [h2]}}, {}, {}}}
    - {{filter_chain_match: {{transport_protocol: raw_buffer, application_protocols: [http/1.1]}}, {}}}
    - {{filter_chain_match: {{transport_protocol: raw_buffer, application_protocols: [h2c]}}, {}}}
  - name: closes
    stat_prefix: closes
    address: {{socket_address: {{address: 127.0.0.1, port_value: {closes}}}}}
    listener_filters: [{inspectors}]
    listener_filters_timeout: 0.05s
    filter_chains: [{{{}}}]
  - name: goes_on
    stat_prefix: goes_on
    address: {{socket_address: {{address: 127.0.0.1, port_value: {goes_on}}}}}
    listener_filters: [{inspectors}]
    listener_filters_timeout: 0.05s
    continue_on_listener_filters_timeout: true
    filter_chains: [{{{}}}]
",
        filters("exact"),
        tls("http/1.1"),
        filters("wildcard"),
        tls("h2"),
        filters("plain"),
        filters("prior-knowledge"),
        filters("closing"),
        filters("going"),
    )
}

#[test]
fn a_connection_goes_to_the_chain_of_its_name_and_protocol() {
    let proxy = Proxy::start();
    assert_eq!(proxy.curl("https", "a.test", &[]).as_deref(), Some("exact"));
    assert_eq!(proxy.curl("https", "A.test", &["-k"]).as_deref(), Some("exact"));
    assert_eq!(proxy.curl("https", "b.test", &[]).as_deref(), Some("wildcard"));
    assert_eq!(proxy.curl("http", "b.test", &[]).as_deref(), Some("plain"));
    assert_eq!(proxy.curl("http", "b.test", &["--http2-prior-knowledge"]).as_deref(), Some("prior-knowledge"));
    // The wildcard wants h2, and no other chain is asked after that.
    assert_eq!(proxy.curl("https", "b.test", &["--http1.1"]), None);
    assert_eq!(proxy.curl("https", "other.example", &["-k"]), None);
    assert_eq!(proxy.curl("http", "b.test", &["--http1.0"]), None);
    proxy.wait_for_stat("listener.by_name.no_filter_chain_match", 3);
    proxy.wait_for_stat("listener.by_name.downstream_pre_cx_active", 0);
    proxy.wait_for_stat("listener.by_name.downstream_cx_total", 5);
    proxy.wait_for_stat("listener.by_name.downstream_cx_active", 0);
    proxy.wait_for_stat("tls_inspector.tls_found", 5);
    proxy.wait_for_stat("tls_inspector.sni_found", 5);
    proxy.wait_for_stat("tls_inspector.tls_not_found", 3);
    proxy.wait_for_stat("http_inspector.http2_found", 1);
    proxy.wait_for_stat("http_inspector.http11_found", 1);
}

#[test]
fn first_bytes_may_come_one_by_one_and_are_all_served() {
    let proxy = Proxy::start();
    let mut stream = TcpStream::connect(("127.0.0.1", proxy.ports[0])).unwrap();
    stream.set_nodelay(true).unwrap();
    for byte in b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n" {
        stream.write_all(&[*byte]).unwrap();
        std::thread::sleep(Duration::from_millis(1));
    }
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    assert!(reply.ends_with("plain"), "{reply}");
    // A ClientHello that says to be too long is refused by its header.
    let mut stream = TcpStream::connect(("127.0.0.1", proxy.ports[0])).unwrap();
    stream.write_all(b"\x16\x03\x01\x40\x00\x01\x00\xff\xff").unwrap();
    assert_eq!(stream.read_to_end(&mut Vec::new()).unwrap_or(0), 0);
    proxy.wait_for_stat("tls_inspector.client_hello_too_big", 1);
    proxy.wait_for_stat("listener.by_name.downstream_listener_filter_error", 1);
    // One who leaves in the middle of it is counted too.
    TcpStream::connect(("127.0.0.1", proxy.ports[0])).unwrap().write_all(b"\x16\x03\x01").unwrap();
    proxy.wait_for_stat("listener.by_name.downstream_listener_filter_remote_close", 1);
    proxy.wait_for_stat("listener.by_name.downstream_pre_cx_active", 0);
}

#[test]
fn filters_that_wait_for_too_long_close_or_go_on() {
    let proxy = Proxy::start();
    let mut silent = TcpStream::connect(("127.0.0.1", proxy.ports[1])).unwrap();
    assert_eq!(silent.read_to_end(&mut Vec::new()).unwrap_or(0), 0);
    let mut slow = TcpStream::connect(("127.0.0.1", proxy.ports[1])).unwrap();
    slow.write_all(b"GE").unwrap();
    assert_eq!(slow.read_to_end(&mut Vec::new()).unwrap_or(0), 0);
    proxy.wait_for_stat("listener.closes.downstream_pre_cx_timeout", 2);
    proxy.wait_for_stat("listener.closes.downstream_pre_cx_active", 0);

    let mut patient = TcpStream::connect(("127.0.0.1", proxy.ports[2])).unwrap();
    proxy.wait_for_stat("listener.goes_on.downstream_pre_cx_timeout", 1);
    proxy.wait_for_stat("listener.goes_on.downstream_cx_active", 1);
    patient.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").unwrap();
    let mut reply = String::new();
    patient.read_to_string(&mut reply).unwrap();
    assert!(reply.ends_with("going"), "{reply}");
}
