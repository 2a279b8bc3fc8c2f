//! `torus-load run` with WebSocket and raw TCP against servers that others wrote: two of Python's, nginx between, and Envoy.

mod peer;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use peer::{Certificates, Running, cache, check_all_succeeded, free_port, installed, missing, run, start, torus_load};

/// A WebSocket server of `implementation`, which echoes every message.
fn websocket_server(implementation: &str) -> Option<(Running, u16)> {
    let python = cache().join("websocket/bin/python");
    if !python.exists() {
        missing("Python's websockets");
        return None;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/tests/websocket_peers.py");
    let port = free_port();
    let mut command = Command::new(python);
    command.arg(script).args(["serve", implementation, &port.to_string()]).stderr(Stdio::null());
    Some((start(&mut command, port), port))
}

/// Envoy that echoes bytes: in the clear on the first port, under TLS on the second.
fn envoy_echo(certificates: &Certificates) -> Option<(Running, u16, u16)> {
    let program = installed("envoy")?;
    let (plain, secure) = (free_port(), free_port());
    let listener = |port: u16, transport: Option<Value>| {
        let name = "type.googleapis.com/envoy.extensions.filters.network.echo.v3.Echo";
        let mut chain = json!({"filters": [{"name": "echo", "typed_config": {"@type": name}}]});
        if let Some(transport) = transport {
            chain["transport_socket"] = transport;
        }
        let address = json!({"socket_address": {"address": "127.0.0.1", "port_value": port}});
        json!({"name": format!("echo-{port}"), "address": address, "filter_chains": [chain]})
    };
    let file = |name: &str| json!({"filename": certificates.path(name)});
    let pair = json!([{"certificate_chain": file("server.pem"), "private_key": file("server.key")}]);
    let tls = json!({"name": "tls", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "common_tls_context": {"tls_certificates": pair},
    }});
    let bootstrap = json!({"static_resources": {"listeners": [listener(plain, None), listener(secure, Some(tls))]}});
    let path = certificates.folder.path().join("envoy.json");
    std::fs::write(&path, bootstrap.to_string()).unwrap();
    let mut command = Command::new(program);
    command.arg("-c").arg(path).args(["--concurrency", "1", "--use-dynamic-base-id", "-l", "off"]);
    Some((start(command.stderr(Stdio::null()), secure), plain, secure))
}

/// nginx that takes WebSocket under TLS and passes it to `backend`.
fn nginx_upgrading(certificates: &Certificates, backend: u16) -> Option<(Running, u16)> {
    let program = installed("nginx")?;
    let port = free_port();
    let folder = certificates.folder.path().display();
    let config = format!(
        "daemon off; error_log {folder}/log; pid {folder}/pid; events {{ worker_connections 512; }} \
         http {{ access_log off; client_body_temp_path {folder}; proxy_temp_path {folder}; \
         fastcgi_temp_path {folder}; uwsgi_temp_path {folder}; scgi_temp_path {folder}; \
         server {{ listen 127.0.0.1:{port} ssl; ssl_certificate {folder}/server.pem; ssl_certificate_key {folder}/server.key; \
         location / {{ proxy_pass http://127.0.0.1:{backend}; proxy_http_version 1.1; \
         proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade; }} \
         location /none {{ return 404; }} }} }}"
    );
    let path = certificates.folder.path().join("nginx.conf");
    std::fs::write(&path, config).unwrap();
    let mut command = Command::new(program);
    command.arg("-c").arg(&path).arg("-p").arg(certificates.folder.path()).args(["-g", "master_process off;"]);
    Some((start(command.stderr(Stdio::null()), port), port))
}

#[test]
fn websocket_with_two_servers() {
    let folder = tempfile::tempdir().unwrap();
    let binary = folder.path().join("binary");
    std::fs::write(&binary, [0xff; 70_000]).unwrap();
    for implementation in ["websockets", "wsproto"] {
        let Some((_server, port)) = websocket_server(implementation) else { return };
        let target = format!("ws://127.0.0.1:{port}/");
        let report = run(&target, &[]);
        check_all_succeeded(&report, "WebSocket");
        assert_eq!(report["phases"]["upgrade"]["count"], 4, "{}", report["phases"]);
        check_all_succeeded(&run(&target, &["--closed", "--body", "hello", "--expect-body", "ell"]), "WebSocket");
        check_all_succeeded(&run(&target, &["--body-file", &binary.display().to_string()]), "WebSocket");
        check_all_succeeded(&run(&target, &["--requests-per-connection", "9"]), "WebSocket");
        // Told to close, the server says goodbye instead of the echo, and ends the connection.
        let report = run(&target, &["--body", "close"]);
        assert_eq!(report["requests"]["succeeded"], 0, "{}", report["requests"]);
        assert!(errors(&report, "echo") > 0, "{}", report["requests"]);
    }
}

fn errors(report: &Value, cause: &str) -> u64 {
    let all = report["requests"]["errors"].as_array().unwrap();
    all.iter().find(|error| error["cause"] == cause).unwrap()["count"].as_u64().unwrap()
}

#[test]
fn websocket_under_tls_through_nginx() {
    let files = Certificates::new();
    let Some((_server, backend)) = websocket_server("websockets") else { return };
    let Some((_nginx, port)) = nginx_upgrading(&files, backend) else { return };
    let ca = files.path("ca.pem");
    let target = format!("wss://localhost:{port}/chat");
    check_all_succeeded(&run(&target, &["--cacert", &ca]), "WebSocket");
    let report = run(&format!("wss://localhost:{port}/none"), &["--cacert", &ca]);
    assert_eq!(report["requests"]["succeeded"], 0, "{}", report["requests"]);
    assert!(errors(&report, "upgrade") > 0, "{}", report["requests"]);
}

#[test]
fn bytes_with_envoy() {
    let files = Certificates::new();
    let Some((_envoy, plain, secure)) = envoy_echo(&files) else { return };
    let target = format!("tcp://127.0.0.1:{plain}");
    check_all_succeeded(&run(&target, &[]), "TCP");
    let large = files.folder.path().join("large");
    std::fs::write(&large, "torus".repeat(100_000)).unwrap();
    let report = run(&target, &["--body-file", &large.display().to_string()]);
    check_all_succeeded(&report, "TCP");
    assert!(report["rates"]["bytes_received"].as_f64() > Some(100.0 * 500_000.0), "{}", report["rates"]);
    let ca = files.path("ca.pem");
    check_all_succeeded(&run(&format!("tls://localhost:{secure}"), &["--cacert", &ca, "--closed"]), "TCP");
}

#[test]
fn what_is_no_echo_is_told() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            std::thread::spawn(move || {
                let mut stream = stream.unwrap();
                while stream.read(&mut [0; 1024]).is_ok_and(|length| length > 0) && stream.write_all(b"what?").is_ok() {
                }
            });
        }
    });
    let target = format!("tcp://127.0.0.1:{port}");
    let report = run(&target, &[]);
    assert_eq!(report["requests"]["succeeded"], 0, "{}", report["requests"]);
    assert!(errors(&report, "echo") > 0, "{}", report["requests"]);
    for (target, flags, expected) in [
        (&*target, vec!["--body", ""], "an echo of no bytes cannot be waited for; give a --body"),
        (&target, vec!["--expect-status", "200"], "--expect-status has no meaning for tcp:// targets; leave it out"),
        ("ws://127.0.0.1:1/", vec!["--grpc"], "--grpc has no meaning for ws:// targets; leave it out"),
        ("tcp://127.0.0.1", vec![], "`tcp://127.0.0.1`: a port is wanted, and nothing behind it"),
    ] {
        let output = torus_load(target, &flags);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains(expected), "{flags:?}: {error}");
        assert_eq!((output.status.code(), error.lines().count()), (Some(1), 1), "{flags:?}: {error}");
    }
}
