//! `torus-load run` with TLS, HTTP/2 and gRPC against servers that others wrote: nginx and nghttpd.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use serde_json::Value;

/// A program that is ended with the test, and what it serves.
struct Running(Child, Option<tempfile::TempDir>);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn start(command: &mut Command, port: u16) -> Running {
    let running = Running(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap(), None);
    let begun = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{command:?} does not listen on {port}");
        std::thread::sleep(Duration::from_millis(20));
    }
    running
}

/// The program's path, or `None` with a word about it.
fn installed(name: &str) -> Option<PathBuf> {
    let folders = ["/usr/sbin", "/usr/bin", "/usr/local/bin"].map(Path::new);
    let found = folders.iter().map(|folder| folder.join(name)).find(|path| path.exists());
    if found.is_none() {
        println!("skipped: {name} is missing; try: scripts/install-test-tools.sh");
    }
    found
}

/// An authority with a certificate of `localhost` and one of a client, as PEM files.
struct Certificates {
    folder: tempfile::TempDir,
}

impl Certificates {
    fn new() -> Certificates {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        write("ca.pem", &authority.self_signed(&key).unwrap().pem());
        let issuer = Issuer::new(authority, key);
        for (name, purpose) in
            [("server", ExtendedKeyUsagePurpose::ServerAuth), ("client", ExtendedKeyUsagePurpose::ClientAuth)]
        {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
            // Issuer and subject of one name would make it a certificate that signs itself.
            params.distinguished_name.push(DnType::CommonName, name);
            params.extended_key_usages = vec![purpose];
            write(&format!("{name}.pem"), &params.signed_by(&key, &issuer).unwrap().pem());
            write(&format!("{name}.key"), &key.serialize_pem());
        }
        Certificates { folder }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }
}

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
    std::fs::write(folder.path().join("shop.Cart/Add"), vec![b'x'; 100_000]).unwrap();
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

fn torus_load(target: &str, flags: &[&str]) -> std::process::Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_torus-load"));
    command.args(["run", target, "--json", "-", "-q", "-d", "1s", "--warmup", "100ms", "-c", "4"]);
    if !flags.contains(&"--closed") {
        command.args(["-r", "200"]);
    }
    command.args(flags).output().unwrap()
}

fn run(target: &str, flags: &[&str]) -> Value {
    let output = torus_load(target, flags);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)))
}

#[track_caller]
fn check_all_succeeded(report: &Value, protocol: &str) {
    assert_eq!(report["load"]["protocol"], protocol);
    assert_eq!(report["requests"]["failed"], 0, "{}", report["requests"]);
    assert!(report["requests"]["succeeded"].as_u64() >= Some(100), "{}", report["requests"]);
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
