//! Endpoints from a file, in a running proxy: they change under load and no request fails.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A running proxy; killed when dropped.
struct Proxy(Child);

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const PATIENCE: Duration = Duration::from_secs(30);

fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A server that answers every request of every connection with `name`.
fn backend(name: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut reader = BufReader::new(&stream);
                let mut line = String::new();
                while reader.read_line(&mut line).is_ok_and(|length| length > 0) {
                    if line == "\r\n" {
                        let reply = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{name}", name.len());
                        if (&stream).write_all(reply.as_bytes()).is_err() {
                            return;
                        }
                    }
                    line.clear();
                }
            });
        }
    });
    port
}

/// Puts a file with `ports` in the place of the one at `path`, by a rename.
fn place(path: &Path, ports: &[u16]) {
    let endpoint = |port: &u16| {
        format!("{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}")
    };
    let endpoints: Vec<String> = ports.iter().map(endpoint).collect();
    let text = format!(
        "resources:\n- '@type': type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment\n  cluster_name: service\n  \
         endpoints: [{{lb_endpoints: [{}]}}]\n",
        endpoints.join(", ")
    );
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(new, path).unwrap();
}

fn start(folder: &Path, port: u16, admin: u16) -> Proxy {
    let text = format!(
        "admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {admin}}}}}}}
static_resources:
  clusters:
  - name: backend
    type: EDS
    connect_timeout: 1s
    eds_cluster_config:
      service_name: service
      eds_config: {{path_config_source: {{path: {}/eds.yaml, poll_interval: 0.005s}}}}
  listeners:
  - name: in
    address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: hcm
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: in
          route_config:
            virtual_hosts: [{{name: v, domains: ['*'], routes: [{{match: {{prefix: /}}, route: {{cluster: backend}}}}]}}]
          http_filters:
          - name: router
            typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
",
        folder.display()
    );
    let bootstrap = folder.join("bootstrap.yaml");
    fs::write(&bootstrap, text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_torus-proxy"));
    command.arg("-c").arg(bootstrap).args(["--concurrency", "2", "-l", "error"]).stdout(Stdio::null());
    Proxy(command.spawn().unwrap())
}

/// One exchange on `stream`: status and body.
fn exchange(stream: &mut TcpStream, path: &str) -> std::io::Result<(u16, String)> {
    write!(stream, "GET {path} HTTP/1.1\r\nhost: a\r\n\r\n")?;
    let mut reader = BufReader::new(stream);
    let (mut status, mut length) = (0, 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let line = line.trim_end().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(rest) = line.strip_prefix("http/1.1 ") {
            status = rest[..3].parse().unwrap();
        }
        if let Some(value) = line.strip_prefix("content-length: ") {
            length = value.parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok((status, String::from_utf8(body).unwrap()))
}

fn get(port: u16, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    exchange(&mut stream, path).ok()
}

fn stat(admin: u16, name: &str) -> u64 {
    let (_, text) = get(admin, &format!("/stats?filter=^{name}$")).expect("the admin server answers");
    text.trim().rsplit(' ').next().and_then(|value| value.parse().ok()).unwrap_or(0)
}

/// How often endpoints change under load. `TORUS_SWAPS` sets another number.
fn swap_count() -> u64 {
    std::env::var("TORUS_SWAPS").ok().and_then(|text| text.parse().ok()).unwrap_or(60)
}

#[test]
fn endpoints_change_under_load_and_no_request_fails() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("eds.yaml");
    let (a, b) = (backend("a"), backend("b"));
    place(&file, &[a]);
    let (port, admin) = (free_port(), free_port());
    let _proxy = start(folder.path(), port, admin);
    wait_for("the proxy serves", || get(port, "/").is_some_and(|reply| reply == (200, "a".to_owned())));

    let done = Arc::new(AtomicBool::new(false));
    let served = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (done, served) = (done.clone(), served.clone());
            std::thread::spawn(move || {
                let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                while !done.load(Ordering::Relaxed) {
                    let (status, body) = exchange(&mut stream, "/").expect("no connection is lost");
                    assert_eq!(status, 200, "{body}");
                    served[usize::from(body == "b")].fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for swap in 0..swap_count() {
        let (ports, goes_to): (&[u16], usize) = if swap % 2 == 0 { (&[b], 1) } else { (&[a], 0) };
        place(&file, ports);
        let before = served[goes_to].load(Ordering::Relaxed);
        wait_for("requests go where the file says", || served[goes_to].load(Ordering::Relaxed) > before + 8);
    }
    // What cannot be used changes nothing.
    fs::write(folder.path().join("bad"), "resources: [{'@type': x/no.such.Type}]").unwrap();
    fs::rename(folder.path().join("bad"), &file).unwrap();
    wait_for("the refusal is counted", || stat(admin, "cluster.backend.update_failure") == 1);
    done.store(true, Ordering::Relaxed);
    clients.into_iter().for_each(|client| client.join().unwrap());
    let total: u64 = served.iter().map(|count| count.load(Ordering::Relaxed)).sum();
    println!("{total} requests, {} changes of endpoints", swap_count());
    assert_eq!(stat(admin, "cluster.backend.membership_change"), 1 + swap_count());
    assert_eq!(stat(admin, "cluster.backend.membership_total"), 1);
    assert_eq!(stat(admin, "cluster.backend.upstream_rq_5xx"), 0);
    // An assignment without endpoints takes all away, and the cluster lives on.
    place(&file, &[]);
    wait_for("no endpoint is left", || get(port, "/").is_some_and(|(status, _)| status == 503));
    place(&file, &[b]);
    wait_for("endpoints are back", || get(port, "/").is_some_and(|reply| reply == (200, "b".to_owned())));
}
