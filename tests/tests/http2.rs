//! HTTP/2 on either side of a gateway, with clients and servers that are not ours: curl, nghttp, h2load and nghttpd.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use torus_tests::backend::{Backend, Journal};
use torus_tests::ports::free_port;
use torus_tests::program::Program;
use torus_tests::proxy::{Kind, Proxy};

const PATIENCE: Duration = Duration::from_secs(10);

/// A gateway in front of a recording HTTP/1.1 backend and, where nghttpd is there, an HTTP/2 backend that echoes.
struct Bed {
    proxy: Proxy,
    port: u16,
    journal: Arc<Journal>,
    _backend: Backend,
    nghttpd: Program,
    _folder: tempfile::TempDir,
}

fn is_there(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok()
}

/// The bed, or `None` where a tool is missing.
fn bed(codec: &str) -> Option<Bed> {
    if let Some(missing) = ["curl", "nghttp", "h2load", "nghttpd"].iter().find(|program| !is_there(program)) {
        println!("skipped: {missing} is missing; try: scripts/install-test-tools.sh");
        return None;
    }
    let journal = Arc::new(Journal::default());
    let backend = Backend::tcp("http1", "127.0.0.1", &journal);
    let folder = tempfile::tempdir().expect("a scratch folder");
    std::fs::write(folder.path().join("page"), "a page").expect("the scratch folder is writable");
    let http2_port = free_port();
    let mut command = Command::new("nghttpd");
    // Few streams, so that what is opened before its SETTINGS came would be refused.
    command.args(["--no-tls", "--echo-upload", "--max-concurrent-streams=8", "--trailer=x-end: reply", "-v", "-d"]);
    command.arg(folder.path()).arg(http2_port.to_string());
    let mut nghttpd = Program::start("nghttpd", command);
    nghttpd
        .wait_until("open port", PATIENCE, || TcpStream::connect(("127.0.0.1", http2_port)).ok())
        .unwrap_or_else(|error| panic!("{error}"));
    let port = free_port();
    let address = |port: u16| json!({ "socket_address": { "address": "127.0.0.1", "port_value": port } });
    let cluster = |name: &str, port: u16| -> Value {
        let endpoint = json!({ "endpoint": { "address": address(port) } });
        let assignment = json!({ "cluster_name": name, "endpoints": [{ "lb_endpoints": [endpoint] }] });
        json!({ "name": name, "type": "STATIC", "connect_timeout": "5s", "load_assignment": assignment })
    };
    let speaking = |config: Value, mut cluster: Value| -> Value {
        cluster["typed_extension_protocol_options"] = json!({
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": config,
            },
        });
        cluster
    };
    let http1 =
        speaking(json!({ "http_protocol_options": { "enable_trailers": true } }), cluster("http1", backend.port));
    let http2 = speaking(json!({ "http2_protocol_options": {} }), cluster("http2", http2_port));
    let routes = json!([
        { "match": { "path": "/direct" }, "direct_response": { "status": 200, "body": { "inline_string": "direct" } } },
        { "match": { "prefix": "/http2/" }, "route": { "cluster": "http2", "prefix_rewrite": "/", "timeout": "20s" } },
        { "match": { "prefix": "/" }, "route": { "cluster": "http1", "timeout": "20s" } },
    ]);
    let bootstrap = json!({ "static_resources": {
        "listeners": [{
            "name": "listener",
            "address": address(port),
            "filter_chains": [{ "filters": [{
                "name": "envoy.filters.network.http_connection_manager",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                    "stat_prefix": "h2",
                    "codec_type": codec,
                    "request_headers_timeout": "1s",
                    "route_config": { "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": routes }] },
                    "http_filters": [{
                        "name": "envoy.filters.http.router",
                        "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" },
                    }],
                },
            }] }],
        }],
        "clusters": [http1, http2],
    } });
    let proxy = Proxy::start(Kind::Torus, &bootstrap, free_port(), &[]);
    Some(Bed { proxy, port, journal, _backend: backend, nghttpd, _folder: folder })
}

impl Bed {
    fn curl(&self, version: &str, path: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new("curl");
        command.args(["-s", "--max-time", "30", version]).args(arguments);
        command.arg(format!("http://127.0.0.1:{}{path}", self.port));
        command.output().expect("curl runs")
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).expect("the gateway accepts connections");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time above zero");
        stream
    }
}

#[test]
fn bodies_arrive_whole_in_each_pairing() {
    let Some(bed) = bed("AUTO") else { return };
    let folder = tempfile::tempdir().expect("a scratch folder");
    for size in [0, 1, 65_536, 16 * 1024 * 1024] {
        let body: Vec<u8> = (0..size).map(|at: usize| (at * 31 % 251) as u8).collect();
        let file = folder.path().join("body");
        std::fs::write(&file, &body).expect("the scratch folder is writable");
        let upload = format!("@{}", file.display());
        for version in ["--http1.1", "--http2-prior-knowledge"] {
            // With a length, and without: chunks or DATA frames alone.
            for framing in [&["-H", "expect:"][..], &["-H", "content-length:", "-H", "transfer-encoding: chunked"]] {
                if size == 0 && framing.len() > 2 || version != "--http1.1" && framing.len() > 2 {
                    continue;
                }
                let arguments = [&["-X", "POST", "--data-binary", &upload][..], framing].concat();
                let echo = bed.curl(version, "/http2/echo", &arguments);
                assert!(echo.stdout == body, "{version} to HTTP/2, {size} bytes: {} came back", echo.stdout.len());
                bed.journal.take();
                let reply = bed.curl(version, "/body", &[&arguments[..], &["-H", "x-backend: size=70000"]].concat());
                let records = bed.journal.take();
                assert_eq!((reply.stdout.len(), records.len()), (70_000, 1), "{version} to HTTP/1.1, {size} bytes");
                let received = &records[0].body;
                assert!(received.complete && received.bytes == body, "{version} to HTTP/1.1, {size} bytes");
            }
            for (path, backend) in [("/http2/page", ""), ("/page", "x-backend: size=6")] {
                let head = bed.curl(version, path, &["-I", "-H", backend]);
                let head = String::from_utf8_lossy(&head.stdout).into_owned();
                assert!(head.contains("200") && head.contains("content-length: 6"), "{version} {path}: {head}");
                let page = bed.curl(version, path, &["-H", backend]);
                assert_eq!(page.stdout.len(), 6, "{version} {path}");
            }
            bed.journal.take();
        }
    }
    let stats = bed.proxy.stats();
    assert_eq!(stats["http.h2.downstream_cx_protocol_error"], 0);
    assert_eq!(stats["cluster.http2.upstream_cx_http2_total"], 1, "one connection carries all");
    assert_eq!(stats["cluster.http2.upstream_rq_active"], 0);
    assert_eq!(stats["http.h2.downstream_rq_active"], 0);
}

#[test]
fn trailers_pass_in_both_directions() {
    let Some(bed) = bed("AUTO") else { return };
    let folder = tempfile::tempdir().expect("a scratch folder");
    let file = folder.path().join("body");
    std::fs::write(&file, "some text").expect("the scratch folder is writable");
    let nghttp = |path: &str, backend: &str| {
        let mut command = Command::new("nghttp");
        command.args(["-v", "--no-content-length", "--trailer", "x-end: request", "-H", backend, "-d"]).arg(&file);
        let output = command.arg(format!("http://127.0.0.1:{}{path}", bed.port)).output().expect("nghttp runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let from_http1 = nghttp("/plain", "x-backend: chunked;body=text;trailer=x-end:reply");
    assert!(from_http1.contains("x-end: reply"), "{from_http1}");
    let records = bed.journal.take();
    let arrived: Vec<_> = records.iter().map(|record| record.body.trailers.get("x-end")).collect();
    assert_eq!(arrived, [Some("request")], "{records:?}");
    let from_http2 = nghttp("/http2/page", "x-unused: 1");
    assert!(from_http2.contains("x-end: reply"), "{from_http2}");
    let arrived = bed.nghttpd.wait_for_line("x-end: request", PATIENCE);
    assert!(arrived.is_some(), "{}", bed.nghttpd.output());
}

#[test]
fn many_streams_at_once_all_succeed() {
    let Some(bed) = bed("AUTO") else { return };
    let load = |version: &[&str], path: &str, count: &str| {
        let mut command = Command::new("h2load");
        command.args(["-n", count, "-c", "4", "--connection-inactivity-timeout", "20"]).args(version);
        command.args(["-H", "x-backend: size=100000"]);
        let output = command.arg(format!("http://127.0.0.1:{}{path}", bed.port)).output().expect("h2load runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains(&format!("{count} succeeded, 0 failed")), "{version:?} {path}: {text}");
        bed.journal.take();
    };
    for (path, count) in [("/direct", "10000"), ("/http2/page", "10000"), ("/plain", "1000")] {
        load(&["-m", "32"], path, count);
    }
    let stats = bed.proxy.stats();
    assert_eq!(stats["http.h2.downstream_cx_http1_total"], 0);
    assert_eq!(stats["cluster.http2.upstream_rq_tx_reset"], 0);
    for (path, count) in [("/http2/page", "2000"), ("/plain", "1000")] {
        load(&["--h1"], path, count);
    }
}

#[test]
fn smuggled_and_malformed_requests_reach_no_backend() {
    let Some(bed) = bed("AUTO") else { return };
    // curl and nghttp refuse to send these; frames by hand. Literal fields without indexing (RFC 7541 §6.2.2).
    let check = |fields: &[(&str, &str)], ends: bool, data: &[u8]| {
        let mut block = vec![];
        for (name, value) in fields {
            block.push(0);
            for text in [name, value] {
                assert!(text.len() < 127, "one byte tells the length");
                block.push(text.len() as u8);
                block.extend_from_slice(text.as_bytes());
            }
        }
        let mut stream = bed.connect();
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        bytes.extend(frame(4, 0, 0, &[]));
        bytes.extend(frame(1, if ends { 5 } else { 4 }, 1, &block));
        if !ends {
            bytes.extend(frame(0, 1, 1, data));
        }
        stream.write_all(&bytes).expect("the gateway reads");
        let mut reply = Vec::new();
        let mut buffer = [0; 4096];
        // HEADERS, RST_STREAM or GOAWAY is an answer.
        let deadline = Instant::now() + PATIENCE;
        while !frames(&reply).iter().any(|(kind, _)| matches!(kind, 1 | 3 | 7)) && Instant::now() < deadline {
            match stream.read(&mut buffer) {
                Ok(0) | Err(_) => break,
                Ok(count) => reply.extend_from_slice(&buffer[..count]),
            }
        }
        let _ = stream.shutdown(Shutdown::Both);
        frames(&reply).iter().map(|(kind, _)| *kind).find(|kind| matches!(kind, 1 | 3 | 7))
    };
    let base = [(":method", "POST"), (":scheme", "http"), (":authority", "a"), (":path", "/x")];
    let with = |more: &[(&'static str, &'static str)]| [&base[..], more].concat();
    assert_eq!(check(&with(&[]), false, b"abc"), Some(1), "a good one is answered");
    assert_eq!(bed.journal.take().len(), 1, "and arrives");
    let vectors: &[(&str, &[(&str, &str)])] = &[
        ("transfer-encoding", &[("transfer-encoding", "chunked")]),
        ("connection", &[("connection", "close")]),
        ("upgrade", &[("upgrade", "h2c")]),
        ("content-length below DATA", &[("content-length", "1")]),
        ("content-length above DATA", &[("content-length", "9")]),
        ("two content-length", &[("content-length", "3"), ("content-length", "4")]),
        ("equal content-length twice", &[("content-length", "3"), ("content-length", "3")]),
        ("signed content-length", &[("content-length", "+3")]),
        ("upper case", &[("X-Upper", "1")]),
        ("line end in a value", &[("x", "1\r\ntransfer-encoding: chunked")]),
        ("line feed in a value", &[("x", "1\nhost: b")]),
        ("NUL in a value", &[("x", "1\0")]),
        ("line end in a name", &[("x: 1\r\ny", "1")]),
        ("colon in a name", &[("x:y", "1")]),
        ("space in a name", &[("transfer-encoding ", "chunked")]),
        ("empty name", &[("", "1")]),
        ("other host", &[("host", "b")]),
        ("two hosts", &[("host", "a"), ("host", "a")]),
        ("te", &[("te", "gzip")]),
        ("late pseudo-header", &[(":path", "/y")]),
        ("unknown pseudo-header", &[(":other", "1")]),
        ("protocol", &[(":protocol", "websocket")]),
    ];
    for (name, fields) in vectors {
        let answer = check(&with(fields), false, b"abc");
        assert!(answer.is_some(), "{name}: no answer");
        let whole = bed.journal.take().iter().filter(|record| record.body.complete).count();
        assert_eq!(whole, 0, "{name}: reached the backend");
    }
    let lines: &[(&str, [(&str, &str); 4])] = &[
        ("line end in the path", [base[0], base[1], base[2], (":path", "/x HTTP/1.1\r\nhost: b\r\n\r\n")]),
        ("space in the path", [base[0], base[1], base[2], (":path", "/x y")]),
        ("relative path", [base[0], base[1], base[2], (":path", "x")]),
        ("empty path", [base[0], base[1], base[2], (":path", "")]),
        ("line end in the method", [(":method", "GET / HTTP/1.1\r\nx"), base[1], base[2], base[3]]),
        ("space in the method", [(":method", "GET /"), base[1], base[2], base[3]]),
        ("user in the authority", [base[0], base[1], (":authority", "u@a"), base[3]]),
        ("list in the authority", [base[0], base[1], (":authority", "a,b"), base[3]]),
        ("line end in the authority", [base[0], base[1], (":authority", "a\r\nx: y"), base[3]]),
        ("odd scheme", [base[0], (":scheme", "ftp"), base[2], base[3]]),
        ("two methods", [base[0], base[0], base[2], base[3]]),
    ];
    for (name, fields) in lines {
        assert!(check(fields, true, b"").is_some(), "{name}: no answer");
        assert_eq!(bed.journal.take().len(), 0, "{name}: reached the backend");
    }
    assert_eq!(bed.curl("--http2-prior-knowledge", "/direct", &[]).stdout, b"direct", "the gateway serves on");
}

#[test]
fn floods_end_their_connection() {
    let Some(bed) = bed("AUTO") else { return };
    let check = |what: &str, stat: &str, opening: &[u8], flood: &[u8], rounds: usize| {
        let mut stream = bed.connect();
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        bytes.extend(frame(4, 0, 0, &[]));
        bytes.extend_from_slice(opening);
        let mut alive = stream.write_all(&bytes).is_ok();
        for _ in 0..rounds {
            alive = alive && stream.write_all(&flood.repeat(50)).is_ok();
        }
        let mut reply = Vec::new();
        let _ = stream.read_to_end(&mut reply);
        let counted = bed.proxy.stats().get(stat).copied().unwrap_or_default();
        assert!(counted > 0, "{what}: {stat} is not counted");
    };
    check("PING", "http2.outbound_control_flood", &[], &frame(6, 0, 0, &[0; 8]), 40);
    check("SETTINGS", "http2.outbound_control_flood", &[], &frame(4, 0, 0, &[]), 40);
    check("PRIORITY", "http2.inbound_priority_frames_flood", &[], &frame(2, 0, 1, &[0, 0, 0, 3, 1]), 40);
    check("WINDOW_UPDATE", "http2.inbound_window_update_frames_flood", &[], &frame(8, 0, 0, &[0, 0, 0, 1]), 40);
    let mut stream = bed.connect();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").expect("the gateway reads");
    // A header block that does not end: HEADERS without END_HEADERS.
    stream.write_all(&[frame(4, 0, 0, &[]), frame(1, 0, 1, &[0x82])].concat()).expect("the gateway reads");
    let started = Instant::now();
    let mut reply = Vec::new();
    let _ = stream.read_to_end(&mut reply);
    assert!(started.elapsed() < PATIENCE, "an unfinished header block ends the connection in time");
    // Streams opened and reset, in one go.
    let mut stream = bed.connect();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").expect("the gateway reads");
    stream.write_all(&frame(4, 0, 0, &[])).expect("the gateway reads");
    let block = [0x82, 0x86, 0x84, 0x41, 1, b'a'];
    let mut alive = true;
    for round in 0..200_u32 {
        let pairs = (0..50).flat_map(|at| {
            let id = 1 + 2 * (round * 50 + at);
            [frame(1, 5, id, &block), frame(3, 0, id, &8_u32.to_be_bytes())].concat()
        });
        alive = alive && stream.write_all(&pairs.collect::<Vec<u8>>()).is_ok();
    }
    let mut reply = Vec::new();
    let _ = stream.read_to_end(&mut reply);
    let ended = !alive || frames(&reply).iter().any(|(kind, _)| *kind == 7);
    assert!(ended, "rapid reset ends the connection");
    assert_eq!(bed.curl("--http2-prior-knowledge", "/direct", &[]).stdout, b"direct", "the gateway serves on");
}

#[test]
fn a_drain_says_goaway_and_finishes_what_runs() {
    let Some(mut bed) = bed("AUTO") else { return };
    let address = format!("http://127.0.0.1:{}/slow", bed.port);
    let slow = std::thread::spawn(move || {
        let mut command = Command::new("nghttp");
        command.args(["-v", "-H", "x-backend: delay=1500;body=done", &address]);
        command.output().expect("nghttp runs")
    });
    let deadline = Instant::now() + PATIENCE;
    while bed.proxy.stats()["http.h2.downstream_rq_active"] == 0 {
        assert!(Instant::now() < deadline, "the request arrives");
        std::thread::sleep(Duration::from_millis(10));
    }
    bed.proxy.program.signal("TERM");
    let output = slow.join().expect("nghttp ends");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("recv GOAWAY"), "{text}");
    assert!(text.contains("done"), "{text}");
    assert!(bed.proxy.program.wait(PATIENCE).is_some(), "the gateway ends once its streams did");
}

/// A frame as it is on the wire (RFC 9113 §4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a short payload").to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// Type and payload of each whole frame.
fn frames(mut bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut frames = Vec::new();
    while bytes.len() >= 9 {
        let length = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]) as usize;
        let Some(payload) = bytes.get(9..9 + length) else { break };
        frames.push((bytes[3], payload.to_vec()));
        bytes = &bytes[9 + length..];
    }
    frames
}
