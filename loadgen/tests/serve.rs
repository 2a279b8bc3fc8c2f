//! `torus-load serve` with clients that others wrote: curl, h2load, Python's websockets and grpcio; and with `torus-load run`.

mod peer;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;

use peer::{Certificates, check_all_succeeded, installed, output, python, run, serve};

#[test]
fn http_of_every_kind_with_curl() {
    let Some(curl) = installed("curl") else { return };
    let ask = |flags: &[&str]| output(Command::new(&curl).args(["-sS", "--max-time", "20"]).args(flags));
    let files = Certificates::new();
    let file = |name: &str| files.path(name);
    let (_plain, plain) = serve(&[]);
    let (_secure, secure) = serve(&["--cert", &file("server.pem"), "--key", &file("server.key")]);
    let both = ["--cert", &file("server.pem"), "--key", &file("server.key"), "--client-ca", &file("ca.pem")];
    let (_strict, strict) = serve(&both);
    let local = |address: &str| format!("https://localhost:{}/p?a=b", address.rsplit(':').next().unwrap());
    let (ca, cert, key) = (file("ca.pem"), file("client.pem"), file("client.key"));
    let plain = format!("http://{plain}/p?a=b");
    for (version, flags) in [
        ("HTTP/1.1", vec!["-d", "hello", &*plain]),
        ("HTTP/2", vec!["--http2-prior-knowledge", "-d", "hello", &plain]),
        ("HTTP/2", vec!["--cacert", &ca, "-d", "hello", &local(&secure)]),
        ("HTTP/1.1", vec!["--cacert", &ca, "--http1.1", "-d", "hello", &local(&secure)]),
        ("HTTP/2", vec!["--cacert", &ca, "--cert", &cert, "--key", &key, "-d", "hello", &local(&strict)]),
    ] {
        let reply: serde_json::Value = serde_json::from_str(&ask(&flags)).unwrap();
        assert_eq!((&reply["version"], &reply["method"]), (&version.into(), &"POST".into()), "{reply}");
        assert_eq!((&reply["query"], &reply["body"]["text"]), (&"a=b".into(), &"hello".into()), "{reply}");
    }
    let refused = Command::new(&curl).args(["-sS", "--cacert", &ca, &local(&strict)]).output().unwrap();
    assert!(!refused.status.success(), "{refused:?}");
    let with = |query: &str| plain.replace("a=b", query);
    for prior in ["--http1.1", "--http2-prior-knowledge"] {
        let text = ask(&[prior, "-i", &with("size=3&status=503&header=X-A:b&trailers=1&informational=103")]);
        for part in ["103", "503", "x-a: b", "012", "x-torus-trailer: after the body"] {
            assert!(text.to_lowercase().contains(part), "{part} is missing in {text}");
        }
        assert_eq!(ask(&[prior, &plain.replace("/p?a=b", "/fixed")]).len(), 1024);
        let begun = std::time::Instant::now();
        ask(&[prior, &with("delay=constant:150ms")]);
        assert!(begun.elapsed() >= std::time::Duration::from_millis(150));
        for query in ["reset=head", "reset=body&size=100000"] {
            let broken = Command::new(&curl).args([prior, "-sS", "--max-time", "20", &with(query)]).output().unwrap();
            assert!(!broken.status.success(), "{query}: {broken:?}");
        }
    }
}

#[test]
fn http2_with_h2load() {
    let Some(h2load) = installed("h2load") else { return };
    let (_serve, address) = serve(&[]);
    for path in ["/fixed", "/fixed?size=100000", "/p"] {
        let target = format!("http://{address}{path}");
        let text = output(Command::new(&h2load).args(["-n", "500", "-c", "5", "-m", "10", &target]));
        assert!(text.contains("500 total, 500 started, 500 done, 500 succeeded, 0 failed"), "{text}");
    }
}

#[test]
fn grpc_with_grpcio() {
    let (_serve, address) = serve(&[]);
    let port = address.rsplit(':').next().unwrap();
    let Some(mut talk) = python("xds", &["grpc-talk", port]) else { return };
    output(&mut talk);
    let report = run(&format!("http://{address}/shop.Cart/Add"), &["--grpc", "--body", "abc", "--expect-body", "abc"]);
    check_all_succeeded(&report, "gRPC");
}

#[test]
fn websocket_with_python() {
    let files = Certificates::new();
    let (_plain, plain) = serve(&[]);
    let (_secure, secure) = serve(&["--cert", &files.path("server.pem"), "--key", &files.path("server.key")]);
    let port = secure.rsplit(':').next().unwrap();
    let ca = files.path("ca.pem");
    let (plain, secure) = (format!("ws://{plain}/chat"), format!("wss://localhost:{port}/chat"));
    check_all_succeeded(&run(&plain, &[]), "WebSocket");
    check_all_succeeded(&run(&secure, &["--cacert", &ca]), "WebSocket");
    let Some(mut talk) = python("websocket", &["websocket-talk", &plain, ""]) else { return };
    output(&mut talk);
    output(&mut python("websocket", &["websocket-talk", &secure, &ca]).unwrap());
    // A frame without a mask is a mistake of the client (RFC 6455 section 5.1).
    let mut stream = TcpStream::connect(plain.trim_start_matches("ws://").trim_end_matches("/chat")).unwrap();
    let request =
        "GET / HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-key: a\r\n\r\n";
    stream.write_all(&[request.as_bytes(), b"\x81\x01a"].concat()).unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    assert!(all.ends_with(b"\x88\x02\x03\xea"), "{}", all.escape_ascii());
}

#[test]
fn bytes_are_echoed_in_the_clear_and_under_tls() {
    let files = Certificates::new();
    let (_plain, plain) = serve(&["--tcp"]);
    let tls = ["--tcp", "--cert", &files.path("server.pem"), "--key", &files.path("server.key")];
    let (_secure, secure) = serve(&tls);
    check_all_succeeded(&run(&format!("tcp://{plain}"), &[]), "TCP");
    let port = secure.rsplit(':').next().unwrap();
    check_all_succeeded(&run(&format!("tls://localhost:{port}"), &["--cacert", &files.path("ca.pem")]), "TCP");
    let mut stream = TcpStream::connect(plain).unwrap();
    for text in ["hello", "", "x"] {
        stream.write_all(text.as_bytes()).unwrap();
        let mut back = vec![0; text.len()];
        stream.read_exact(&mut back).unwrap();
        assert_eq!(back, text.as_bytes());
    }
}

#[test]
fn bad_flags_are_told_in_a_line() {
    let files = Certificates::new();
    let (cert, key) = (files.path("server.pem"), files.path("server.key"));
    for (flags, expected) in [
        (vec!["--cert", &cert, "--key", "/none"], "/none: No such file or directory"),
        (vec!["--cert", &key, "--key", &key], "holds no certificates"),
        (vec!["--cert", &files.path("client.pem"), "--key", &key], "do not belong together"),
        (vec!["--cert", &cert, "--key", &key, "--listen", "/tmp/none/socket"], "a unix socket has no TLS"),
        (vec!["--cert", &cert], "--key"),
        (vec!["--delay", "5"], "`5` is no duration"),
        (vec!["--stall", "1s"], "try: 200ms/1s"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_torus-load")).arg("serve").args(&flags).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains(expected), "{flags:?}: {error}");
        assert_eq!(output.status.code(), Some(1), "{flags:?}: {error}");
    }
}
