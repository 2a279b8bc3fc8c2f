//! TLS on both sides of a real proxy, with curl and openssl as clients.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};

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

/// Writes an authority `NAME.pem` and leaves `LEAF.pem`, `LEAF.key` signed by it.
fn certificates(folder: &Path, name: &str, leaves: &[(&str, &str, &str)]) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    std::fs::write(folder.join(format!("{name}.pem")), params.self_signed(&key).unwrap().pem()).unwrap();
    let issuer = Issuer::new(params, key);
    for (file, dns, uri) in leaves {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, *file);
        params.subject_alt_names =
            vec![SanType::DnsName((*dns).try_into().unwrap()), SanType::URI((*uri).try_into().unwrap())];
        let pem = params.signed_by(&key, &issuer).unwrap().pem();
        std::fs::write(folder.join(format!("{file}.pem")), pem).unwrap();
        std::fs::write(folder.join(format!("{file}.key")), key.serialize_pem()).unwrap();
    }
}

struct Proxy {
    child: Child,
    folder: tempfile::TempDir,
    admin: String,
    /// TLS with two certificates; mutual TLS; plain, which goes to the mutual one over TLS; plain, whose TLS names another server;
    /// TLS with HTTP/2 by ALPN; plain, which goes there over HTTP/2 and TLS.
    ports: [u16; 6],
}

impl Proxy {
    fn start() -> Self {
        let ports: [u16; 6] = std::array::from_fn(|_| free_port());
        Self::start_with(ports, [ports[1], ports[4]])
    }

    /// With other endpoints in the clusters: one for HTTP/1.1, one for HTTP/2.
    fn start_with(ports: [u16; 6], endpoints: [u16; 2]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let leaves = [
            ("a", "a.example.com", "spiffe://mesh/a"),
            ("b", "*.b.example.com", "spiffe://mesh/b"),
            ("client", "client.example.com", "spiffe://mesh/client"),
            ("wrong", "wrong.example.com", "spiffe://mesh/wrong"),
        ];
        certificates(folder.path(), "root", &leaves);
        certificates(folder.path(), "stranger", &[("foreign", "client.example.com", "spiffe://mesh/client")]);
        let config = folder.path().join("bootstrap.yaml");
        std::fs::write(&config, bootstrap(folder.path(), ports, endpoints)).unwrap();
        let address = folder.path().join("admin-address");
        let child = Command::new(env!("CARGO_BIN_EXE_torus-proxy"))
            .arg("-c")
            .arg(config)
            .args(["--concurrency", "1", "--file-flush-interval-msec", "20"])
            .arg("--admin-address-path")
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

    fn stat(&self, name: &str) -> u64 {
        let stats = self.admin("/stats");
        let line = stats.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")).map(str::to_owned));
        line.and_then(|value| value.parse().ok()).unwrap_or(0)
    }

    /// curl to `https://NAME:port/path`, with the root trusted.
    fn curl(&self, place: usize, name: &str, path: &str, more: &[&str]) -> Output {
        let port = self.ports[place];
        Command::new("curl")
            .args(["-sS", "--noproxy", "*", "--max-time", "20", "--connect-to"])
            .arg(format!("::127.0.0.1:{port}"))
            .args(["--cacert", "root.pem"])
            .args(more)
            .arg(format!("https://{name}:{port}{path}"))
            .current_dir(self.folder.path())
            .output()
            .unwrap()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn bootstrap(
    folder: &Path,
    [tls, mutual, plain, mismatched, by_alpn, to_alpn]: [u16; 6],
    [http1_end, http2_end]: [u16; 2],
) -> String {
    let folder = folder.display();
    let chain = |name: &str, routes: &str, transport: &str, log: &str| {
        format!(
            "    filter_chains:
    - filters:
      - name: hcm
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: {name}
          forward_client_cert_details: SANITIZE_SET
          set_current_client_cert_details: {{cert: true, chain: true, uri: true, dns: true, subject: true}}
          access_log:
          - name: a
            typed_config:
              '@type': type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
              path: {folder}/{name}.log
              log_format: {{text_format_source: {{inline_string: \"{log}\\n\"}}}}
          route_config:
            virtual_hosts: [{{name: v, domains: ['*'], routes: [{routes}]}}]
          http_filters:
          - name: r
            typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
{transport}"
        )
    };
    let body = "x".repeat(4_000);
    let direct = format!("{{match: {{prefix: /}}, direct_response: {{status: 200, body: {{inline_string: {body}}}}}}}");
    let to_mutual = "{match: {prefix: /}, route: {cluster: mutual}}";
    let to_http2 = "{match: {prefix: /}, route: {cluster: http2}}";
    let to_mismatched = "{match: {prefix: /}, route: {cluster: mismatched}}";
    let key = |name: &str| {
        format!(
            "{{certificate_chain: {{filename: {folder}/{name}.pem}}, private_key: {{filename: {folder}/{name}.key}}}}"
        )
    };
    let downstream = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";
    let upstream = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
    let (a, b, client) = (key("a"), key("b"), key("client"));
    let tls_transport = format!(
        "      transport_socket: {{name: t, typed_config: {{'@type': {downstream}, common_tls_context: {{tls_certificates: [{a}, {b}]}}}}}}
      transport_socket_connect_timeout: 1s
"
    );
    let mutual_transport = format!(
        "      transport_socket: {{name: t, typed_config: {{'@type': {downstream}, require_client_certificate: true,
        common_tls_context: {{tls_certificates: [{a}], alpn_protocols: [http/1.1], validation_context: {{trusted_ca: {{filename: {folder}/root.pem}},
          match_typed_subject_alt_names: [{{san_type: URI, matcher: {{exact: 'spiffe://mesh/client'}}}}]}}}}}}}}
"
    );
    let alpn_transport = format!(
        "      transport_socket: {{name: t, typed_config: {{'@type': {downstream}, common_tls_context: {{tls_certificates: [{a}],
        alpn_protocols: [h2, http/1.1]}}}}}}
"
    );
    let http2_cluster = format!(
        "  - name: http2
    connect_timeout: 5s
    http2_protocol_options: {{}}
    load_assignment:
      cluster_name: http2
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {http2_end}}}}}}}}}]}}]
    transport_socket: {{name: t, typed_config: {{'@type': {upstream}, sni: a.example.com, auto_sni_san_validation: true,
      common_tls_context: {{validation_context: {{trusted_ca: {{filename: {folder}/root.pem}}}}}}}}}}
"
    );
    let cluster = |name: &str, sni: &str| {
        format!(
            "  - name: {name}
    connect_timeout: 5s
    load_assignment:
      cluster_name: {name}
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {http1_end}}}}}}}}}]}}]
    transport_socket: {{name: t, typed_config: {{'@type': {upstream}, sni: {sni}, auto_sni_san_validation: true,
      common_tls_context: {{tls_certificates: [{client}], alpn_protocols: [http/1.1], validation_context: {{trusted_ca: {{filename: {folder}/root.pem}}}}}}}}}}
"
        )
    };
    let listener = |name: &str, port: u16, chain: String| {
        format!(
            "  - name: {name}\n    stat_prefix: {name}\n    address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}\n{chain}"
        )
    };
    format!(
        "admin:\n  address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}\nstatic_resources:\n  clusters:\n{}{}{http2_cluster}  listeners:\n{}{}{}{}{}{}",
        cluster("mutual", "a.example.com"),
        cluster("mismatched", "c.example.com"),
        listener(
            "tls",
            tls,
            chain(
                "tls",
                &direct,
                &tls_transport,
                "%REQUESTED_SERVER_NAME% %DOWNSTREAM_TLS_VERSION% %DOWNSTREAM_LOCAL_URI_SAN%"
            )
        ),
        listener(
            "mutual",
            mutual,
            chain(
                "mutual",
                &direct,
                &mutual_transport,
                "%DOWNSTREAM_PEER_URI_SAN% %DOWNSTREAM_PEER_SUBJECT% %REQ(X-FORWARDED-CLIENT-CERT)%"
            )
        ),
        listener(
            "plain",
            plain,
            chain("plain", to_mutual, "", "%RESPONSE_CODE% %UPSTREAM_TLS_VERSION% %UPSTREAM_PEER_URI_SAN%")
        ),
        listener(
            "mismatched",
            mismatched,
            chain(
                "mismatched",
                to_mismatched,
                "",
                "%RESPONSE_CODE% %RESPONSE_FLAGS% %UPSTREAM_TRANSPORT_FAILURE_REASON%"
            )
        ),
        listener("by_alpn", by_alpn, chain("by_alpn", &direct, &alpn_transport, "%PROTOCOL% %DOWNSTREAM_TLS_VERSION%")),
        listener(
            "to_alpn",
            to_alpn,
            chain("to_alpn", to_http2, "", "%RESPONSE_CODE% %UPSTREAM_PROTOCOL% %UPSTREAM_PEER_URI_SAN%")
        ),
    )
}

fn shown(output: &Output) -> String {
    format!("{} {}{}", output.status, String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn both_sides() {
    let proxy = Proxy::start();
    let is_body = |output: &Output| output.status.success() && output.stdout == "x".repeat(4_000).as_bytes();
    // Versions, and certificates by name: curl checks the name that it asked for.
    for (name, version, expect) in [
        ("a.example.com", "--tlsv1.3", true),
        ("a.example.com", "--tls-max=1.2", true),
        ("x.b.example.com", "--tlsv1.3", true),
        ("x.b.example.com", "--tls-max=1.2", true),
        ("c.example.com", "--tlsv1.3", false),
    ] {
        let version: Vec<&str> = version.split('=').collect();
        let output = proxy.curl(0, name, "/", &version);
        assert_eq!(is_body(&output), expect, "{name} {version:?}: {}", shown(&output));
    }
    assert!(proxy.stat("listener.tls.ssl.handshake") >= 4);
    assert!(proxy.stat("listener.tls.ssl.versions.TLSv1.2") >= 2);
    let log = proxy.folder.path().join("tls.log");
    wait_for("the log", || {
        let text = std::fs::read_to_string(&log).ok()?;
        text.contains("x.b.example.com TLSv1.2 spiffe://mesh/b").then_some(())
    });

    // Client certificates.
    let with = |name: &str| [format!("--cert={name}.pem"), format!("--key={name}.key")];
    for (name, expect) in [("client", true), ("wrong", false), ("foreign", false)] {
        let [certificate, key] = with(name);
        let (certificate, key) = (certificate.split_once('=').unwrap(), key.split_once('=').unwrap());
        let output = proxy.curl(1, "a.example.com", "/", &[certificate.0, certificate.1, key.0, key.1]);
        assert_eq!(is_body(&output), expect, "{name}: {}", shown(&output));
    }
    assert!(!is_body(&proxy.curl(1, "a.example.com", "/", &[])));
    let stat = |name: &str| proxy.stat(&format!("listener.mutual.ssl.{name}"));
    wait_for("counters of refused certificates", || {
        (stat("fail_verify_no_cert") == 1 && stat("fail_verify_san") == 1 && stat("fail_verify_error") == 1)
            .then_some(())
    });
    let log = proxy.folder.path().join("mutual.log");
    wait_for("the log", || {
        let text = std::fs::read_to_string(&log).ok()?;
        let names = text.starts_with("spiffe://mesh/client CN=client By=spiffe://mesh/a;Hash=");
        let begins = ["Cert", "Chain"].map(|key| format!(";{key}=\"-----BEGIN%20CERTIFICATE-----%0AMII"));
        (names && begins.iter().all(|begin| text.contains(begin))).then_some(())
    });

    // Plain clients on a TLS port, and a client that says nothing: the connection ends, and the rest goes on.
    let mut stream = TcpStream::connect(("127.0.0.1", proxy.ports[0])).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    let mut reply = Vec::new();
    let _ = stream.read_to_end(&mut reply);
    assert!(!reply.starts_with(b"HTTP"), "{reply:?}");
    wait_for("the counter of errors", || (proxy.stat("listener.tls.ssl.connection_error") >= 1).then_some(()));
    let mut silent = TcpStream::connect(("127.0.0.1", proxy.ports[0])).unwrap();
    silent.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(!matches!(silent.read(&mut [0]), Ok(1)));
    let mut slow = TcpStream::connect(("127.0.0.1", proxy.ports[0])).unwrap();
    slow.set_read_timeout(Some(PATIENCE)).unwrap();
    slow.write_all(&[0x16, 0x03, 0x01]).unwrap();
    assert!(!matches!(slow.read(&mut [0]), Ok(1)));
    wait_for("the counter of late handshakes", || {
        (proxy.stat("listener.tls.downstream_cx_transport_socket_connect_timeout") == 2).then_some(())
    });

    // TLS to the upstream; the second request takes the pooled connection, behind which session tickets came.
    for _ in 0..3 {
        let mut stream = TcpStream::connect(("127.0.0.1", proxy.ports[2])).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        assert!(reply.starts_with("HTTP/1.1 200") && reply.ends_with(&"x".repeat(4_000)), "{reply}");
    }
    assert_eq!(proxy.stat("cluster.mutual.ssl.handshake"), 1);
    assert_eq!(proxy.stat("cluster.mutual.upstream_cx_total"), 1);
    let log = proxy.folder.path().join("plain.log");
    wait_for("the log", || {
        let text = std::fs::read_to_string(&log).ok()?;
        text.starts_with("200 TLSv1.3 spiffe://mesh/a\n").then_some(())
    });
    // The upstream's certificate lacks the name that was asked for.
    let mut stream = TcpStream::connect(("127.0.0.1", proxy.ports[3])).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    assert!(reply.starts_with("HTTP/1.1 503"), "{reply}");
    assert_eq!(proxy.stat("cluster.mismatched.ssl.fail_verify_san"), 1);
    let log = proxy.folder.path().join("mismatched.log");
    wait_for("the log", || std::fs::read_to_string(&log).ok()?.starts_with("503 UF ").then_some(()));
}

#[test]
fn http2_by_alpn() {
    let proxy = Proxy::start();
    let log_has = |name: &str, text: &str| {
        let log = proxy.folder.path().join(format!("{name}.log"));
        wait_for(text, || std::fs::read_to_string(&log).ok()?.contains(text).then_some(()));
    };
    let write_out = ["--write-out", "\n%{http_version}"];
    for (version, more, expect) in [("2", "--http2", "HTTP/2 TLSv1.3"), ("1.1", "--http1.1", "HTTP/1.1 TLSv1.3")] {
        let output = proxy.curl(4, "a.example.com", "/", &[more, write_out[0], write_out[1]]);
        let body = format!("{}\n{version}", "x".repeat(4_000));
        assert!(output.status.success() && output.stdout == body.as_bytes(), "{more}: {}", shown(&output));
        log_has("by_alpn", expect);
    }
    // Requests share one connection to the upstream, which agreed to HTTP/2 although no ALPN is configured for it.
    for _ in 0..3 {
        let mut stream = TcpStream::connect(("127.0.0.1", proxy.ports[5])).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        assert!(reply.starts_with("HTTP/1.1 200") && reply.ends_with(&"x".repeat(4_000)), "{reply}");
    }
    assert_eq!(proxy.stat("cluster.http2.ssl.handshake"), 1);
    assert_eq!(proxy.stat("cluster.http2.upstream_cx_http2_total"), 1);
    log_has("to_alpn", "200 HTTP/2 spiffe://mesh/a");
}

#[test]
fn nothing_leaves_in_the_clear() {
    // In the upstreams' places: whatever is sent, it must be a TLS record.
    let spies = [TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap()];
    let ports = std::array::from_fn(|_| free_port());
    let proxy = Proxy::start_with(ports, spies.each_ref().map(|spy| spy.local_addr().unwrap().port()));
    for (spy, place) in spies.iter().zip([2, 5]) {
        let mut stream = TcpStream::connect(("127.0.0.1", proxy.ports[place])).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").unwrap();
        let mut received = spy.accept().unwrap().0;
        let mut start = [0; 2];
        received.read_exact(&mut start).unwrap();
        assert_eq!(start, [0x16, 0x03], "a handshake record");
        // The other side speaks no TLS: the request fails.
        received.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        assert!(reply.starts_with("HTTP/1.1 503"), "{reply}");
    }
}

#[test]
fn openssl_agrees() {
    let proxy = Proxy::start();
    // A session is resumed by its ticket, and only on the port that gave it.
    let session = proxy.folder.path().join("session");
    let connect = |place: usize, more: &[&str]| {
        let mut child = Command::new("openssl")
            .args([
                "s_client",
                "-connect",
                &format!("127.0.0.1:{}", proxy.ports[place]),
                "-servername",
                "a.example.com",
            ])
            .args(["-CAfile", "root.pem", "-tls1_2"])
            .args(more)
            .current_dir(proxy.folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").unwrap();
        String::from_utf8_lossy(&child.wait_with_output().unwrap().stdout).into_owned()
    };
    let path = session.to_str().unwrap();
    let first = connect(0, &["-sess_out", path]);
    assert!(first.contains("Verify return code: 0 (ok)") && first.contains("New, TLSv1.2"), "{first}");
    let second = connect(0, &["-sess_in", path]);
    assert!(second.contains("Reused, TLSv1.2"), "{second}");
    let elsewhere = connect(1, &["-sess_in", path, "-cert", "client.pem", "-key", "client.key"]);
    assert!(!elsewhere.contains("Reused"), "{elsewhere}");
    wait_for("the counter", || (proxy.stat("listener.tls.ssl.session_reused") == 1).then_some(()));
    assert_eq!(proxy.stat("listener.mutual.ssl.session_reused"), 0);
}

#[test]
fn certificates_follow_their_files() {
    let proxy = Proxy::start();
    let folder = proxy.folder.path().to_owned();
    let reaches = |root: &str| {
        let output = proxy.curl(0, "a.example.com", "/", &["--cacert", root]);
        output.status.success() && output.stdout == "x".repeat(4_000).as_bytes()
    };
    assert!(reaches("root.pem"));
    // The new one comes by rename, as from a mounted secret.
    let next = tempfile::tempdir().unwrap();
    certificates(next.path(), "newer", &[("a", "a.example.com", "spiffe://mesh/newer")]);
    std::fs::copy(next.path().join("newer.pem"), folder.join("newer.pem")).unwrap();
    for file in ["a.key", "a.pem"] {
        std::fs::copy(next.path().join(file), folder.join("moving")).unwrap();
        std::fs::rename(folder.join("moving"), folder.join(file)).unwrap();
    }
    wait_for("the new certificate", || reaches("newer.pem").then_some(()));
    assert!(!reaches("root.pem"));
    assert!(proxy.stat("listener.tls.ssl.certificates_reloaded") >= 1);
    // One that cannot be used changes nothing.
    let failed = || proxy.stat("listener.tls.ssl.certificates_reload_failed");
    let before = failed();
    std::fs::write(folder.join("a.pem"), "no certificate").unwrap();
    wait_for("the refusal", || (failed() > before).then_some(()));
    assert!(reaches("newer.pem"));
    // And it serves again once it is whole.
    std::fs::copy(next.path().join("a.pem"), folder.join("a.pem")).unwrap();
    wait_for("the certificate again", || reaches("newer.pem").then_some(()));
}

#[test]
fn bad_first_bytes_are_answered_and_counted() {
    let proxy = Proxy::start();
    let errors = |listener: &str| proxy.stat(&format!("listener.{listener}.ssl.connection_error"));
    let reply = |place: usize, bytes: &[u8]| {
        let mut stream = TcpStream::connect(("127.0.0.1", proxy.ports[place])).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(bytes).unwrap();
        let mut reply = Vec::new();
        let _ = stream.read_to_end(&mut reply);
        reply
    };
    // A fatal alert in a record of its own: decode_error (RFC 8446 §6.2).
    let decode_error = [0x15, 3, 3, 0, 2, 2, 50];
    let before = errors("tls");
    for (count, bytes) in
        [&b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"[..], b"SSH-2.0-x\r\n", b"\0\0\0\0\0\0"].iter().enumerate()
    {
        assert_eq!(reply(0, bytes), decode_error, "{}", bytes.escape_ascii());
        wait_for("the counter", || (errors("tls") == before + count as u64 + 1).then_some(()));
    }
    // One that goes in the middle of its hello is no error.
    let mut gone = TcpStream::connect(("127.0.0.1", proxy.ports[0])).unwrap();
    gone.write_all(&[0x16, 3, 1, 2, 0, 1, 0]).unwrap();
    drop(gone);
    wait_for("the end", || (proxy.stat("listener.tls.downstream_cx_active") == 0).then_some(()));
    assert_eq!(errors("tls"), before + 3);
    // TLS on a plain port.
    let hello = reply(2, &[0x16, 3, 1, 0, 5, 1, 0, 0, 1, 0]);
    assert!(hello.starts_with(b"HTTP/1.1 400"), "{}", hello.escape_ascii());
    // No application protocol in common (RFC 7301 §3.2).
    let output = Command::new("openssl")
        .args(["s_client", "-alpn", "foo", "-connect", &format!("127.0.0.1:{}", proxy.ports[4])])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = shown(&output);
    assert!(said.contains("no application protocol"), "{said}");
}
