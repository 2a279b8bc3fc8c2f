//! The TCP proxy between real clients and backends: bytes, half-closed connections, TLS, failures and limits.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
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
    /// To the backend; over TLS to the next one; TLS, to the backend; nobody listens behind it; a direct response; a short idle
    /// timeout; a short life.
    ports: [u16; 7],
}

impl Proxy {
    fn start(backend: u16) -> Self {
        let ports: [u16; 7] = std::array::from_fn(|_| free_port());
        let folder = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(["a.test".into()]).unwrap();
        std::fs::write(folder.path().join("a.pem"), made.cert.pem()).unwrap();
        std::fs::write(folder.path().join("a.key"), made.signing_key.serialize_pem()).unwrap();
        let config = folder.path().join("bootstrap.yaml");
        std::fs::write(&config, bootstrap(folder.path(), ports, backend)).unwrap();
        let address = folder.path().join("admin-address");
        let child = Command::new(env!("CARGO_BIN_EXE_torus-proxy"))
            .arg("-c")
            .arg(config)
            .args(["--concurrency", "1", "--admin-address-path"])
            .arg(&address)
            .spawn()
            .unwrap();
        let admin =
            wait_for("the admin address", || std::fs::read_to_string(&address).ok().filter(|text| !text.is_empty()));
        let proxy = Self { child, folder, admin, ports };
        wait_for("ready", || proxy.admin("/ready").ends_with("LIVE\n").then_some(()));
        proxy
    }

    fn connect(&self, place: usize) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.ports[place])).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
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
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn bootstrap(folder: &Path, ports: [u16; 7], backend: u16) -> String {
    let folder = folder.display();
    let listener = |name: &str, port: u16, filter: &str, more: &str| {
        format!(
            "  - {{name: {name}, stat_prefix: {name}, address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}, \
filter_chains: [{{filters: [{{name: a, typed_config: {{{filter}}}}}]{more}}}]}}\n"
        )
    };
    let tcp = |prefix: &str, more: &str| {
        format!(
            "'@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: {prefix}, {more}"
        )
    };
    let cluster = |name: &str, port: u16, more: &str| {
        format!(
            "  - {{name: {name}, connect_timeout: 5s, load_assignment: {{cluster_name: {name}, endpoints: [{{lb_endpoints: \
[{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}]}}]}}{more}}}\n"
        )
    };
    let type_url = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3";
    let server = format!(
        ", transport_socket: {{name: tls, typed_config: {{'@type': {type_url}.DownstreamTlsContext, common_tls_context: \
{{tls_certificates: [{{certificate_chain: {{filename: {folder}/a.pem}}, private_key: {{filename: {folder}/a.key}}}}]}}}}}}"
    );
    let client = format!(
        ", transport_socket: {{name: tls, typed_config: {{'@type': {type_url}.UpstreamTlsContext, sni: a.test, common_tls_context: \
{{validation_context: {{trusted_ca: {{filename: {folder}/a.pem}}}}}}}}}}"
    );
    let hello = "'@type': type.googleapis.com/envoy.extensions.filters.network.direct_response.v3.Config, response: {inline_string: hello}";
    [
        "admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}\nstatic_resources:\n  listeners:\n"
            .into(),
        listener("plain", ports[0], &tcp("plain", "cluster: backend"), ""),
        listener("out", ports[1], &tcp("out", "weighted_clusters: {clusters: [{name: secure, weight: 3}]}"), ""),
        listener("in", ports[2], &tcp("in", "cluster: backend, hash_policy: [{source_ip: {}}]"), &server),
        listener("nobody", ports[3], &tcp("nobody", "cluster: nobody, max_connect_attempts: 3"), ""),
        listener("hello", ports[4], hello, ""),
        listener("idle", ports[5], &tcp("idle", "cluster: backend, idle_timeout: 0.2s"), ""),
        listener("short", ports[6], &tcp("short", "cluster: backend, max_downstream_connection_duration: 0.2s"), ""),
        "  clusters:\n".into(),
        cluster("backend", backend, ""),
        cluster("secure", ports[2], &client),
        cluster("nobody", free_port(), ""),
    ]
    .concat()
}

/// Bytes that no mistake in order or number leaves equal.
fn bytes(count: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let step = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..count).map(step).collect()
}

#[test]
fn each_side_ends_alone_with_and_without_tls() {
    let backend = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = Proxy::start(backend.local_addr().unwrap().port());
    const SIZE: usize = 3 * 1024 * 1024;
    for place in [0, 1] {
        // The client ends first; the backend answers after it has seen the end.
        let mut client = proxy.connect(place);
        let served = std::thread::scope(|scope| {
            let served = scope.spawn(|| {
                let (mut stream, _) = backend.accept().unwrap();
                let mut request = Vec::new();
                stream.read_to_end(&mut request).unwrap();
                stream.write_all(&bytes(SIZE, 2)).unwrap();
                request
            });
            client.write_all(&bytes(SIZE, 1)).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            let mut reply = Vec::new();
            client.read_to_end(&mut reply).unwrap();
            assert!(reply == bytes(SIZE, 2), "{} bytes of a reply at {place}", reply.len());
            served.join().unwrap()
        });
        assert!(served == bytes(SIZE, 1), "{} bytes of a request at {place}", served.len());
        // The backend speaks and ends first; what the client says then still arrives.
        let mut client = proxy.connect(place);
        let (mut stream, _) = backend.accept().unwrap();
        stream.write_all(b"welcome").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut reply = String::new();
        client.read_to_string(&mut reply).unwrap();
        assert_eq!(reply, "welcome");
        client.write_all(b"late").unwrap();
        drop(client);
        let mut request = String::new();
        stream.read_to_string(&mut request).unwrap();
        assert_eq!(request, "late");
    }
    for name in ["plain", "out", "in"] {
        proxy.wait_for_stat(&format!("tcp.{name}.downstream_cx_total"), 2);
        proxy.wait_for_stat(&format!("listener.{name}.downstream_cx_active"), 0);
    }
    proxy.wait_for_stat("tcp.plain.downstream_cx_rx_bytes_total", SIZE as u64 + 4);
    proxy.wait_for_stat("tcp.plain.downstream_cx_tx_bytes_total", SIZE as u64 + 7);
    proxy.wait_for_stat("cluster.secure.ssl.handshake", 2);
    proxy.wait_for_stat("cluster.backend.upstream_cx_active", 0);
}

#[test]
fn openssl_speaks_to_a_plain_backend() {
    let backend = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = Proxy::start(backend.local_addr().unwrap().port());
    let mut client = Command::new("openssl")
        .args(["s_client", "-quiet", "-verify_return_error", "-CAfile", "a.pem", "-servername", "a.test", "-connect"])
        .arg(format!("127.0.0.1:{}", proxy.ports[2]))
        .current_dir(proxy.folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut input = client.stdin.take().unwrap();
    input.write_all(b"ping\n").unwrap();
    let (mut stream, _) = backend.accept().unwrap();
    let mut request = [0; 5];
    stream.read_exact(&mut request).unwrap();
    assert_eq!(&request, b"ping\n");
    stream.write_all(b"pong\n").unwrap();
    drop(stream);
    let mut reply = [0; 5];
    client.stdout.take().unwrap().read_exact(&mut reply).unwrap();
    assert_eq!(&reply, b"pong\n");
    drop(input);
    let _ = client.kill();
    let _ = client.wait();
}

#[test]
fn connections_that_cannot_be_served_end() {
    let backend = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = Proxy::start(backend.local_addr().unwrap().port());
    // Nobody listens: three attempts, then the end.
    assert_eq!(proxy.connect(3).read_to_end(&mut Vec::new()).unwrap_or(0), 0);
    proxy.wait_for_stat("cluster.nobody.upstream_cx_connect_fail", 3);
    proxy.wait_for_stat("cluster.nobody.upstream_cx_connect_attempts_exceeded", 1);
    proxy.wait_for_stat("cluster.nobody.upstream_cx_active", 0);
    let mut reply = String::new();
    proxy.connect(4).read_to_string(&mut reply).unwrap();
    assert_eq!(reply, "hello");
    // Silence, and age in spite of bytes.
    assert_eq!(proxy.connect(5).read_to_end(&mut Vec::new()).unwrap_or(0), 0);
    proxy.wait_for_stat("tcp.idle.idle_timeout", 1);
    let _ = backend.accept().unwrap();
    assert_eq!(proxy.connect(6).read_to_end(&mut Vec::new()).unwrap_or(0), 0);
    proxy.wait_for_stat("tcp.short.max_downstream_connection_duration", 1);
    let _ = backend.accept().unwrap();
    // A reset is passed on as one.
    let mut client = proxy.connect(0);
    client.write_all(b"x").unwrap();
    let (mut stream, _) = backend.accept().unwrap();
    stream.read_exact(&mut [0]).unwrap();
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
    let error = client.read_to_end(&mut Vec::new()).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    proxy.wait_for_stat("listener.plain.downstream_cx_active", 0);
}
