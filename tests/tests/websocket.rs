//! Upgraded connections through a gateway: WebSocket with two implementations that are not ours, and raw bytes for the rest.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use torus_tests::binaries;
use torus_tests::ports::free_port;
use torus_tests::program::Program;
use torus_tests::proxy::{Kind, Proxy};

const PATIENCE: Duration = Duration::from_secs(20);

/// The request of every raw case; `$` stands for more fields.
const REQUEST: &str = "GET /$ HTTP/1.1\r\nhost: a.test\r\nconnection: Upgrade\r\nupgrade: WebSocket\r\n\r\n";
const SWITCHED: &str = "HTTP/1.1 101 Switching\r\nupgrade: websocket\r\nconnection: Upgrade\r\n\r\n";

/// A gateway on `port` that lets everything but `/no` upgrade to WebSocket, in front of 127.0.0.1:`upstream_port`.
fn gateway(port: u16, upstream_port: u16, log: &Path) -> Proxy {
    let address = |port: u16| json!({ "socket_address": { "address": "127.0.0.1", "port_value": port } });
    let refused = json!([{ "upgrade_type": "websocket", "enabled": false }]);
    let routes = json!([
        { "match": { "path": "/no" }, "route": { "cluster": "a", "upgrade_configs": refused } },
        { "match": { "path": "/idle" }, "route": { "cluster": "a", "idle_timeout": "0.3s" } },
        // Ends requests, not conversations.
        { "match": { "path": "/short" }, "route": { "cluster": "a", "timeout": "0.3s" } },
        { "match": { "prefix": "/" }, "route": { "cluster": "a" } },
    ]);
    let format = "%RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %RESPONSE_CODE_DETAILS%\n";
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "test",
        "upgrade_configs": [{ "upgrade_type": "websocket" }],
        "route_config": { "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": routes }] },
        "access_log": [{ "name": "file", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": log,
            "log_format": { "text_format_source": { "inline_string": format } },
        } }],
        "http_filters": [{
            "name": "envoy.filters.http.router",
            "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" },
        }],
    });
    let filter = json!({ "name": "envoy.filters.network.http_connection_manager", "typed_config": manager });
    let endpoint = json!({ "endpoint": { "address": address(upstream_port) } });
    let assignment = json!({ "cluster_name": "a", "endpoints": [{ "lb_endpoints": [endpoint] }] });
    let bootstrap: Value = json!({ "static_resources": {
        "listeners": [{ "name": "l", "address": address(port), "filter_chains": [{ "filters": [filter] }] }],
        "clusters": [{ "name": "a", "type": "STATIC", "load_assignment": assignment }],
    } });
    Proxy::start(Kind::Torus, &bootstrap, free_port(), &[])
}

#[test]
fn two_implementations_talk_through_the_gateway() {
    let python = binaries::cache_dir().map(|folder| folder.join("websocket/bin/python")).filter(|path| path.is_file());
    let Some(python) = python else {
        assert!(std::env::var_os("CI").is_none(), "websockets is missing; try: scripts/install-test-tools.sh");
        println!("skipped: websockets is missing; try: scripts/install-test-tools.sh");
        return;
    };
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/websocket_peers.py");
    let start = |role: &str, implementation: &str, port: u16| {
        let mut command = Command::new(&python);
        command.args([script, role, implementation]).arg(port.to_string());
        Program::start(&format!("{role} {implementation}"), command)
    };
    let folder = tempfile::tempdir().expect("a scratch folder");
    for server in ["websockets", "wsproto"] {
        let (port, upstream_port) = (free_port(), free_port());
        let mut serving = start("serve", server, upstream_port);
        serving
            .wait_until("open port", PATIENCE, || TcpStream::connect(("127.0.0.1", upstream_port)).ok())
            .unwrap_or_else(|error| panic!("{error}"));
        let proxy = gateway(port, upstream_port, &folder.path().join(server));
        for client in ["websockets", "wsproto"] {
            let mut talking = start("talk", client, port);
            let status = talking.wait(PATIENCE);
            let printed = talking.output();
            assert!(status.is_some_and(|status| status.success()), "{client} with {server}: {status:?}\n{printed}");
        }
        wait_for(&proxy, "http.test.downstream_cx_upgrades_active", 0);
        assert_eq!(proxy.stats().get("http.test.downstream_cx_upgrades_total"), Some(&2));
    }
}

/// A gateway with a backend whose one connection `serve` serves.
struct Bed {
    proxy: Proxy,
    client: TcpStream,
    backend: JoinHandle<()>,
    folder: tempfile::TempDir,
}

fn bed(serve: impl FnOnce(TcpStream) + Send + 'static) -> Bed {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let upstream_port = listener.local_addr().expect("a bound socket has an address").port();
    let backend = std::thread::spawn(move || {
        let (stream, _) = listener.accept().expect("the gateway connects");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        serve(stream);
    });
    let folder = tempfile::tempdir().expect("a scratch folder");
    let port = free_port();
    let proxy = gateway(port, upstream_port, &folder.path().join("log"));
    let client = TcpStream::connect(("127.0.0.1", port)).expect("the gateway accepts");
    client.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    Bed { proxy, client, backend, folder }
}

impl Bed {
    /// The gateway's log once it has a line.
    fn log(&self) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let text = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            if text.ends_with('\n') || Instant::now() > deadline {
                return text;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn wait_for(proxy: &Proxy, stat: &str, expected: u64) {
    let deadline = Instant::now() + PATIENCE;
    while proxy.stats().get(stat) != Some(&expected) {
        assert!(Instant::now() < deadline, "{stat} is {:?}", proxy.stats().get(stat));
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A head, with its empty line.
fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).expect("a head comes") > 0 {
        head.push(byte[0]);
    }
    String::from_utf8(head).expect("heads are text")
}

fn read_exactly(stream: &mut TcpStream, expected: &str) {
    let mut bytes = vec![0; expected.len()];
    stream.read_exact(&mut bytes).expect("bytes come");
    assert_eq!(String::from_utf8_lossy(&bytes), expected);
}

fn read_all(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    // A reset ends it as well.
    let _ = stream.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

fn ask(client: &mut TcpStream, path: &str, behind: &str) {
    let request = REQUEST.replace('$', path);
    client.write_all((request + behind).as_bytes()).expect("the gateway reads");
}

#[test]
fn nothing_goes_upstream_before_the_switch_and_each_end_is_passed_on_alone() {
    let mut bed = bed(|mut stream| {
        let head = read_head(&mut stream);
        assert!(head.contains("\r\nupgrade: WebSocket\r\n") && head.contains("\r\nconnection: upgrade\r\n"), "{head}");
        stream.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout");
        assert!(stream.read(&mut [0; 16]).is_err(), "what the client sent early waits");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.write_all(format!("{SWITCHED}first").as_bytes()).expect("the gateway reads");
        read_exactly(&mut stream, "early");
        read_exactly(&mut stream, "later");
        // The client's end alone.
        assert_eq!(stream.read(&mut [0; 16]).expect("the end comes"), 0);
        stream.write_all(b"after the end").expect("the gateway reads");
    });
    ask(&mut bed.client, "short", "early");
    let head = read_head(&mut bed.client);
    assert!(head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{head}");
    assert!(head.contains("\r\nupgrade: websocket\r\n") && head.contains("\r\nconnection: upgrade\r\n"), "{head}");
    assert!(!head.contains("transfer-encoding") && !head.contains("content-length"), "{head}");
    read_exactly(&mut bed.client, "first");
    wait_for(&bed.proxy, "http.test.downstream_cx_upgrades_active", 1);
    // Longer than the route's timeout.
    std::thread::sleep(Duration::from_millis(500));
    bed.client.write_all(b"later").expect("the gateway reads");
    bed.client.shutdown(Shutdown::Write).expect("an open connection");
    assert_eq!(read_all(&mut bed.client), "after the end");
    assert_eq!(bed.log(), "101 - 10 18 via_upstream\n");
    wait_for(&bed.proxy, "http.test.downstream_cx_upgrades_active", 0);
    wait_for(&bed.proxy, "cluster.a.upstream_cx_active", 0);
    bed.backend.join().expect("the backend saw what it should");
}

#[test]
fn a_conversation_in_which_nobody_speaks_ends() {
    let mut bed = bed(|mut stream| {
        read_head(&mut stream);
        stream.write_all(SWITCHED.as_bytes()).expect("the gateway reads");
        assert_eq!(read_all(&mut stream), "");
    });
    ask(&mut bed.client, "idle", "");
    assert!(read_head(&mut bed.client).starts_with("HTTP/1.1 101 "));
    assert_eq!(read_all(&mut bed.client), "");
    assert_eq!(bed.log(), "101 SI 0 0 stream_idle_timeout\n");
    bed.backend.join().expect("the backend saw what it should");
}

#[test]
fn an_upgrade_that_is_not_granted_ends_the_connection() {
    let check = |path: &'static str, fields: &str, reply: &'static str, status: &str, log: &str| {
        let mut bed = bed(move |mut stream| {
            // The gateway asks nobody where it refuses by itself.
            if !reply.is_empty() {
                read_head(&mut stream);
                stream.write_all(reply.as_bytes()).expect("the gateway reads");
                assert_eq!(read_all(&mut stream), "", "nothing but the request goes upstream");
            }
        });
        let request =
            format!("GET /{path} HTTP/1.1\r\nhost: a.test\r\n{fields}\r\nGET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n");
        bed.client.write_all(request.as_bytes()).expect("the gateway reads");
        let replies = read_all(&mut bed.client);
        assert!(replies.starts_with(&format!("HTTP/1.1 {status} ")), "{path} {fields}: {replies}");
        assert_eq!(replies.matches("HTTP/1.1").count(), 1, "{path} {fields}: {replies}");
        assert_eq!(bed.log(), format!("{log}\n"), "{path} {fields}");
        if reply.is_empty() {
            wait_for(&bed.proxy, "http.test.downstream_rq_ws_on_non_ws_route", 1);
        } else {
            bed.backend.join().expect("the backend saw what it should");
        }
    };
    let asks = "connection: upgrade\r\nupgrade: websocket\r\n";
    let protocol_error = "502 UPE 0 87 upstream_reset_before_response_started{protocol_error}";
    // By the route, and because nobody allows the protocol.
    check("no", asks, "", "403", "403 - 0 0 upgrade_failed");
    check("", "connection: upgrade\r\nupgrade: other\r\n", "", "403", "403 - 0 0 upgrade_failed");
    // By the backend.
    let ok = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nno";
    check("", asks, ok, "200", "200 - 0 2 via_upstream");
    // To something else than what was asked for.
    let other = "HTTP/1.1 101 X\r\nupgrade: other\r\nconnection: upgrade\r\n\r\n";
    check("", asks, other, "502", protocol_error);
    check("", asks, "HTTP/1.1 101 X\r\n\r\n", "502", protocol_error);
}

#[test]
fn a_switch_that_nobody_asked_for_is_no_reply() {
    let mut bed = bed(|mut stream| {
        let head = read_head(&mut stream);
        assert!(!head.contains("upgrade"), "{head}");
        stream.write_all(format!("{SWITCHED}HTTP/1.1 200 OK\r\n\r\n").as_bytes()).expect("the gateway reads");
        assert_eq!(read_all(&mut stream), "");
    });
    bed.client.write_all(b"GET / HTTP/1.1\r\nhost: a.test\r\n\r\n").expect("the gateway reads");
    assert!(read_head(&mut bed.client).starts_with("HTTP/1.1 502 "));
    bed.backend.join().expect("the backend saw what it should");
}
