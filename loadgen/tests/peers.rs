//! `torus-load run` with TLS, HTTP/2 and gRPC against servers that others wrote: nginx, nghttpd and grpcio.

mod peer;

use std::net::TcpListener;
use std::process::{Command, Stdio};

use serde_json::Value;

use peer::{Certificates, Running, check_all_succeeded, free_port, installed, python, run, start, torus_load};

/// nginx with TLS on the first port, and on the second for clients that show a certificate.
fn nginx(certificates: &Certificates) -> Option<(Running, u16, u16)> {
    let program = installed("nginx")?;
    let (open, closed) = (free_port(), free_port());
    let folder = certificates.folder.path().display();
    let server = |port: u16, more: &str| {
        format!(
            "server {{ listen 127.0.0.1:{port} ssl http2; ssl_certificate {folder}/server.pem; \
             ssl_certificate_key {folder}/server.key; {more} location / {{ return 200 \"hello\"; }} }}"
        )
    };
    let strict = format!("ssl_client_certificate {folder}/ca.pem; ssl_verify_client on;");
    let config = format!(
        "daemon off; error_log {folder}/log; pid {folder}/pid; events {{ worker_connections 512; }} \
         http {{ access_log off; keepalive_requests 50; client_body_temp_path {folder}; proxy_temp_path {folder}; \
         fastcgi_temp_path {folder}; uwsgi_temp_path {folder}; scgi_temp_path {folder}; {} {} }}",
        server(open, ""),
        server(closed, &strict)
    );
    let path = certificates.folder.path().join("nginx.conf");
    std::fs::write(&path, config).unwrap();
    let mut command = Command::new(program);
    command.arg("-c").arg(&path).arg("-p").arg(certificates.folder.path()).args(["-g", "master_process off;"]);
    Some((start(command.stderr(Stdio::null()), closed), open, closed))
}

fn nghttpd(certificates: Option<&Certificates>, trailer: &str) -> Option<(Running, u16)> {
    let program = installed("nghttpd")?;
    let port = free_port();
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(folder.path().join("shop.Cart")).unwrap();
    // One message of gRPC: its length, then its bytes.
    let message = [&[0, 0, 1, 0x86, 0xa0][..], &[b'x'; 100_000]].concat();
    std::fs::write(folder.path().join("shop.Cart/Add"), message).unwrap();
    std::fs::write(folder.path().join("shop.Cart/Cut"), b"\0\0\0\0\x05abc").unwrap();
    let mut command = Command::new(program);
    command.arg(format!("--trailer={trailer}")).args(["--address=127.0.0.1", "-d"]).arg(folder.path());
    match certificates {
        None => command.arg("--no-tls").arg(port.to_string()),
        Some(files) => command.arg(port.to_string()).arg(files.path("server.key")).arg(files.path("server.pem")),
    };
    let mut running = start(&mut command, port);
    running.1 = Some(folder);
    Some((running, port))
}

#[test]
fn tls_and_http2_with_nginx() {
    let files = Certificates::new();
    let Some((_nginx, port, strict)) = nginx(&files) else { return };
    let (ca, cert, key) = (files.path("ca.pem"), files.path("client.pem"), files.path("client.key"));
    let target = format!("https://localhost:{port}/");
    let body = ["--cacert", &ca, "--expect-body", "hello", "--expect-header", "content-length: 5"];
    // nginx ends a connection after 50 requests: with a GOAWAY where it speaks HTTP/2.
    let report = run(&target, &body);
    check_all_succeeded(&report, "HTTP/2");
    assert!(report["phases"]["tls"]["count"].as_u64() >= Some(4), "{}", report["phases"]["tls"]);
    check_all_succeeded(&run(&target, &[&body[..], &["--http", "1.1"]].concat()), "HTTP/1.1");
    check_all_succeeded(&run(&target, &["--insecure", "--http", "2", "--requests-per-connection", "7"]), "HTTP/2");
    let strict = format!("https://localhost:{strict}/");
    for version in ["1.1", "2"] {
        let flags = ["--cacert", &ca, "--cert", &cert, "--key", &key, "--http", version];
        check_all_succeeded(&run(&strict, &flags), if version == "2" { "HTTP/2" } else { "HTTP/1.1" });
        // Without a certificate nginx answers 400.
        let report = run(&strict, &["--cacert", &ca, "--http", version]);
        assert_eq!(report["requests"]["succeeded"], 0, "{}", report["requests"]);
    }
    for (target, flags, expected) in [
        (&target, vec!["--cacert", &*cert], "TLS with localhost"),
        (&target, vec!["--cacert", &ca, "--server-name", "other.test"], "TLS with localhost"),
        (&target, vec!["--cacert", "/no/such/file"], "/no/such/file: No such file or directory"),
        (&target, vec!["--cacert", &key], "holds no certificates; a PEM file with certificates is wanted"),
        (&target, vec!["--insecure", "--http", "2", "-H", "connection: close"], "--header `connection: close`: HTTP/2"),
    ] {
        let output = torus_load(target, &flags);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains(expected), "{flags:?}: {error}");
        assert_eq!((output.status.code(), error.lines().count()), (Some(1), 1), "{flags:?}: {error}");
    }
}

#[test]
fn http2_and_grpc_with_nghttpd() {
    let Some((_plain, port)) = nghttpd(None, "grpc-status:0") else { return };
    let target = format!("http://127.0.0.1:{port}/shop.Cart/Add");
    let report = run(&target, &["--http", "2", "--streams", "8"]);
    check_all_succeeded(&report, "HTTP/2");
    assert!(report["rates"]["bytes_received"].as_f64() > Some(100.0 * 100_000.0), "{}", report["rates"]);
    check_all_succeeded(&run(&target, &["--http", "2", "--closed"]), "HTTP/2");
    check_all_succeeded(&run(&target, &["--grpc", "--body", "abc"]), "gRPC");
    let report = run(&format!("http://127.0.0.1:{port}/shop.Cart/Cut"), &["--grpc"]);
    assert_eq!(report["requests"]["succeeded"], 0, "{}", report["requests"]);
    assert!(report["requests"]["errors"].to_string().contains("malformed"), "{}", report["requests"]);
    let report = run(&format!("http://127.0.0.1:{port}/none"), &["--http", "2"]);
    assert_eq!(report["requests"]["succeeded"], 0, "{}", report["requests"]);
    let Some((_refusing, port)) = nghttpd(None, "grpc-status:7") else { return };
    let report = run(&format!("http://127.0.0.1:{port}/shop.Cart/Add"), &["--grpc"]);
    assert_eq!(report["requests"]["succeeded"], 0, "{}", report["requests"]);
    assert!(report["requests"]["errors"].to_string().contains("grpc_status"), "{}", report["requests"]);
    let files = Certificates::new();
    let Some((_secure, port)) = nghttpd(Some(&files), "grpc-status:0") else { return };
    let target = format!("https://localhost:{port}/shop.Cart/Add");
    check_all_succeeded(&run(&target, &["--cacert", &files.path("ca.pem"), "--grpc"]), "gRPC");
}

#[test]
fn grpc_with_grpcio() {
    let port = free_port();
    let Some(mut command) = python("xds", &["grpc-serve", &port.to_string()]) else { return };
    let _server = start(&mut command, port);
    let target = |method: &str| format!("http://127.0.0.1:{port}/shop.Cart/{method}");
    check_all_succeeded(&run(&target("Add"), &["--grpc", "--body", "abc", "--expect-body", "abc"]), "gRPC");
    check_all_succeeded(&run(&target("Stream"), &["--grpc", "--closed", "--body", "abc", "--streams", "2"]), "gRPC");
    for method in ["Fail", "None"] {
        let report = run(&target(method), &["--grpc"]);
        assert_eq!(report["requests"]["succeeded"], 0, "{}", report["requests"]);
        assert!(report["requests"]["errors"].to_string().contains("grpc_status"), "{}", report["requests"]);
    }
}

/// Messages from JSON for each kind of method, whose types a server of grpcio tells, or protoc wrote down.
#[test]
fn grpc_messages_from_json() {
    let files = Certificates::new();
    let set = files.path("shop.pb");
    let (plain, secure) = (free_port(), free_port());
    let serve = |port: u16, version: &str, more: &[&str]| {
        python("xds", &[&["shop-serve", &*port.to_string(), &set, version], more].concat())
    };
    let Some(mut command) = serve(plain, "v1", &[]) else { return };
    let _plain = start(&mut command, plain);
    let Some(mut command) = serve(secure, "v1alpha", &[&files.path("server.key"), &files.path("server.pem")]) else {
        return;
    };
    let _secure = start(&mut command, secure);
    let ca = files.path("ca.pem");
    let data = files.path("items.csv");
    std::fs::write(&data, "item,count\npears,2\nplums,3\n").unwrap();
    let several = files.path("items.json");
    std::fs::write(&several, "{\"name\": \"pears\", \"count\": 2}\n{\"name\": \"plums\"}\n").unwrap();
    let pears = r#"{"name": "pears", "count": 2, "until": "2030-01-01T00:00:00Z"}"#;
    for (from, flags) in [
        (format!("http://127.0.0.1:{plain}"), &[][..]),
        (format!("https://localhost:{secure}"), &["--cacert", &*ca][..]),
        (format!("http://127.0.0.1:{plain}"), &["--descriptor-set", &*set]),
    ] {
        for (method, messages, expected, each) in [
            ("Add", &["--message", pears][..], "pears", 1.0),
            ("Add", &["--message", r#"{"name": "{{item}}", "count": {{count}}}"#, "--data", &*data], "p", 1.0),
            ("Fill", &["--message-file", &*several], "2 pears, 0 plums", 1.0),
            ("Fill", &["--message", pears, "--message-repeat", "3"], "2 pears, 2 pears, 2 pears", 1.0),
            ("List", &["--message", pears], "pears", 2.0),
            ("Talk", &["--message-file", &*several, "--message-repeat", "50"], "plums", 100.0),
        ] {
            let flags = [flags, messages, &["--grpc", "--expect-body", expected]].concat();
            let report = run(&format!("{from}/shop.Shop/{method}"), &flags);
            check_all_succeeded(&report, "gRPC");
            let rates = &report["rates"];
            let ratio = rates["messages_received"].as_f64().unwrap() / rates["completed"].as_f64().unwrap();
            assert!((ratio / each - 1.0).abs() < 0.02, "{method}: {ratio} messages a reply");
        }
    }
    let report = run(&format!("http://127.0.0.1:{plain}/shop.Shop/Add"), &["--grpc", "--message", "{}"]);
    assert!(report["requests"]["errors"].to_string().contains("grpc_status"), "{}", report["requests"]);
    let plain = format!("http://127.0.0.1:{plain}");
    for (target, flags, expected) in [
        (
            format!("{plain}/shop.Shop/Pay"),
            &["--message", "{}"][..],
            "no method `Pay` in shop.Shop; there are: Add, Fill, List, Talk",
        ),
        (format!("{plain}/shop.Shed/Add"), &["--message", "{}"], "no service `shop.Shed` in 127.0.0.1:"),
        (
            format!("{plain}/shop.Shop/Add"),
            &["--message", "{\"nam\": 1}"],
            "--message:1:6: no shop.Item: unrecognized field name 'nam'",
        ),
        (format!("{plain}/shop.Shop/Add"), &["--message-file", &*data], "items.csv:1:1: no shop.Item: "),
        (
            format!("{plain}/shop.Shop/Add"),
            &["--message-file", &*several],
            "items.json: shop.Shop.Add takes one message, here are 2",
        ),
        (
            format!("{plain}/shop.Shop/Add"),
            &["--message", "{}", "--descriptor-set", &*data],
            "items.csv: no descriptor set: ",
        ),
        (format!("{plain}/"), &["--message", "{}"], "`/` is no method"),
    ] {
        let output = torus_load(&target, &[flags, &["--grpc"]].concat());
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains(expected), "{flags:?}: {error}");
        assert_eq!((output.status.code(), error.lines().count()), (Some(1), 1), "{flags:?}: {error}");
    }
    // A server without reflection.
    let Some((_nghttpd, port)) = nghttpd(None, "grpc-status:12") else { return };
    let output = torus_load(&format!("http://127.0.0.1:{port}/shop.Shop/Add"), &["--grpc", "--message", "{}"]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("does not tell of its services by reflection"), "{error}");
}

/// A server that speaks something else is told of in the report, with the cause.
#[test]
fn http2_to_a_server_without_it_fails_with_a_cause() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = format!("http://{}/", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            use std::io::{Read, Write};
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        }
    });
    let output = torus_load(&target, &["--http", "2"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["requests"]["succeeded"], output.status.code()), (&Value::from(0), Some(3)), "{report}");
}
