//! torusd on a folder drives a real Envoy: requests go where the YAML says, follow an edit, and survive a broken one.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Envoy as the test machine has it, or nothing.
fn envoy() -> Option<PathBuf> {
    let named = std::env::var_os("TORUS_ENVOY").map(PathBuf::from);
    let cache = std::env::var_os("TORUS_CACHE").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/torus"));
    let path = named.or_else(|| Some(cache.or(home)?.join("bin/envoy")))?;
    path.exists().then_some(path)
}

/// A server that answers every request with `body`.
fn backend(body: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut reader = BufReader::new(&connection);
                let mut line = String::new();
                while reader.read_line(&mut line).is_ok_and(|count| count > 2) {
                    line.clear();
                }
                let answer =
                    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
                // A client that hung up is the test's business.
                let _ = (&connection).write_all(answer.as_bytes());
            });
        }
    });
    port
}

fn get(address: SocketAddr, path: &str) -> Option<String> {
    let mut connection = TcpStream::connect(address).ok()?;
    connection.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    write!(connection, "GET {path} HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).ok()?;
    Some(answer)
}

fn until(what: &str, log: &Mutex<String>, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < end, "{what}: not within 20 s\n{}", log.lock().unwrap());
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn mesh(port: u16, one: u16, two: u16) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: edge}}
spec:
  selector: {{istio: ingressgateway}}
  servers:
  - port: {{number: {port}, name: http, protocol: HTTP}}
    hosts: [shop.example]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: cart}}
spec:
  hosts: [cart.internal]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  endpoints:
  - {{address: 127.0.0.1, ports: {{http: {one}}}, labels: {{version: v1}}}}
  - {{address: 127.0.0.1, ports: {{http: {two}}}, labels: {{version: v2}}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: cart}}
spec:
  host: cart.internal
  subsets:
  - {{name: v1, labels: {{version: v1}}}}
  - {{name: v2, labels: {{version: v2}}}}
"
    )
}

fn split(first: u32, second: u32) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: shop}}
spec:
  hosts: [shop.example]
  gateways: [edge]
  http:
  - route:
    - destination: {{host: cart.internal, subset: v1}}
      weight: {first}
    - destination: {{host: cart.internal, subset: v2}}
      weight: {second}
"
    )
}

/// torusd on `folder`, its two addresses and what it logs.
fn torusd(folder: &Path) -> (Process, SocketAddr, SocketAddr, Arc<Mutex<String>>) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_torusd"))
        .args(["--xds-address", "127.0.0.1:0", "--http-address", "127.0.0.1:0", "--config-folder"])
        .arg(folder)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let log = Arc::new(Mutex::new(String::new()));
    let (xds, http) = loop {
        let line = lines.next().expect("torusd says where it serves").unwrap();
        if let Some((_, addresses)) = line.split_once("xDS on ") {
            let (xds, http) = addresses.split_once(", HTTP on http://").unwrap();
            break (xds.parse().unwrap(), http.trim_end_matches('/').parse().unwrap());
        }
        *log.lock().unwrap() += &(line + "\n");
    };
    let sink = log.clone();
    std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| *sink.lock().unwrap() += &(line + "\n")));
    (Process(child), xds, http, log)
}

fn torusctl(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_torusctl")).args(arguments).output().unwrap()
}

fn bootstrap(xds: u16) -> String {
    format!(
        "node:
  id: router~127.0.0.1~edge.default~default.svc.cluster.local
  cluster: edge
  metadata: {{NAMESPACE: default, LABELS: {{istio: ingressgateway, gateway.networking.k8s.io/gateway-name: edge}}}}
dynamic_resources:
  ads_config: {{api_type: DELTA_GRPC, transport_api_version: V3, grpc_services: [{{envoy_grpc: {{cluster_name: xds-grpc}}}}]}}
  lds_config: {{ads: {{}}, resource_api_version: V3}}
  cds_config: {{ads: {{}}, resource_api_version: V3}}
static_resources:
  clusters:
  - name: xds-grpc
    type: STATIC
    connect_timeout: 1s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http2_protocol_options: {{}}}}
    load_assignment:
      cluster_name: xds-grpc
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {xds}}}}}}}}}]}}]
"
    )
}

fn start(envoy: &Path, scratch: &Path, xds: SocketAddr) -> Process {
    let file = scratch.join("bootstrap.yaml");
    std::fs::write(&file, bootstrap(xds.port())).unwrap();
    Process(
        Command::new(envoy)
            .args(["--concurrency", "1", "--use-dynamic-base-id", "--log-level", "error", "-c"])
            .arg(&file)
            .stdin(Stdio::null())
            .spawn()
            .unwrap(),
    )
}

#[test]
fn requests_go_where_the_folder_says() {
    let Some(envoy) = envoy() else {
        eprintln!("skipped: no Envoy; scripts/install-test-tools.sh installs it");
        return;
    };
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path().join("mesh");
    std::fs::create_dir(&folder).unwrap();
    let edge = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    std::fs::write(folder.join("mesh.yaml"), mesh(edge.port(), backend("first"), backend("second"))).unwrap();
    let routes = folder.join("shop.yaml");
    std::fs::write(&routes, split(100, 0)).unwrap();
    let (_torusd, xds, http, log) = torusd(&folder);
    let _envoy = start(&envoy, scratch.path(), xds);
    let answers = |body: &str| get(edge, "/").is_some_and(|answer| answer.ends_with(body));
    until("the first version", &log, || answers("first"));

    std::fs::write(&routes, split(0, 100)).unwrap();
    until("the edit", &log, || answers("second"));
    (0..20).for_each(|_| assert!(answers("second")));

    // A broken edit is told with its place, and changes nothing.
    std::fs::write(&routes, split(100, 0).replace("weight: 100", "weight: lots")).unwrap();
    until("a report", &log, || log.lock().unwrap().contains("shop.yaml:10:"));
    (0..20).for_each(|_| assert!(answers("second")));
    let found = torusctl(&["validate", folder.to_str().unwrap()]);
    assert_eq!(found.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&found.stdout).contains("spec.http[0].route[0].weight"), "{found:?}");

    std::fs::write(&routes, split(100, 0)).unwrap();
    until("the mended file", &log, || answers("first"));
    let server = http.to_string();
    let waited = torusctl(&["wait", "--http-address", &server]);
    assert!(waited.status.success(), "{waited:?}");
    let status = torusctl(&["ps", "--http-address", &server]);
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(status.contains("router~127.0.0.1~edge.default~default.svc.cluster.local   SYNCED   SYNCED"), "{status}");
    let clusters = torusctl(&["pc", "cluster", "edge", "--fqdn", "cart.internal", "--http-address", &server]);
    let clusters = String::from_utf8_lossy(&clusters.stdout).into_owned();
    assert!(clusters.contains("cart.internal") && clusters.contains("v2"), "{clusters}");
}

#[test]
fn the_log_is_changed_while_it_runs() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path().join("mesh");
    std::fs::create_dir(&folder).unwrap();
    let (_torusd, _, http, log) = torusd(&folder);
    let server = http.to_string();
    let told = |arguments: &[&str]| {
        let output = torusctl(&[&["admin", "log", "--http-address", &server], arguments].concat());
        (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    assert_eq!(told(&[]), (Some(0), "info\n".to_owned()));
    assert_eq!(told(&["--level", "warn"]), (Some(0), "warn\n".to_owned()));
    let (code, reason) = told(&["--level", "a=b=c"]);
    assert!(code == Some(3) && reason.contains("level a=b=c"), "{reason}");
    assert_eq!(told(&[]), (Some(0), "warn\n".to_owned()));
    assert_eq!(told(&["--level", "info"]).0, Some(0));
    std::fs::write(folder.join("mesh.yaml"), mesh(8080, 1, 2)).unwrap();
    until("information", &log, || log.lock().unwrap().contains("published version"));
    let script = torusctl(&["completion", "bash"]);
    let script = String::from_utf8_lossy(&script.stdout).into_owned();
    assert!(script.contains("torusctl") && script.contains("proxy-status"), "{script}");
}

/// A Gateway with listeners for HTTP and TCP, its routes, and two Services.
fn gateway_api(web: u16, bytes: u16, one: u16, two: u16) -> String {
    let service = |name: &str, port: u16| {
        format!(
            "---
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec: {{ports: [{{name: http, port: 80}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}, labels: {{kubernetes.io/service-name: {name}}}}}
addressType: IPv4
ports: [{{name: http, port: {port}}}]
endpoints: [{{addresses: [127.0.0.1]}}]
"
        )
    };
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: edge}}
spec:
  gatewayClassName: istio
  listeners:
  - {{name: web, port: {web}, protocol: HTTP, hostname: '*.example'}}
  - {{name: bytes, port: {bytes}, protocol: TCP}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: shop}}
spec:
  parentRefs: [{{name: edge, sectionName: web}}]
  hostnames: [shop.example]
  rules:
  - backendRefs: [{{name: one, port: 80}}]
  - matches: [{{path: {{type: PathPrefix, value: /two}}}}]
    backendRefs: [{{name: two, port: 80}}]
  - matches: [{{path: {{type: PathPrefix, value: /lost}}}}]
    backendRefs: [{{name: three, port: 80}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: {{name: bytes}}
spec:
  parentRefs: [{{name: edge, sectionName: bytes}}]
  rules: [{{backendRefs: [{{name: two, port: 80}}]}}]
{}{}",
        service("one", one),
        service("two", two)
    )
}

#[test]
fn the_gateway_api_drives_a_gateway() {
    let Some(envoy) = envoy() else {
        eprintln!("skipped: no Envoy; scripts/install-test-tools.sh installs it");
        return;
    };
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path().join("mesh");
    std::fs::create_dir(&folder).unwrap();
    let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (web, bytes) = (free(), free());
    let text = gateway_api(web.port(), bytes.port(), backend("first"), backend("second"));
    std::fs::write(folder.join("mesh.yaml"), &text).unwrap();
    let (_torusd, xds, _, log) = torusd(&folder);
    let _envoy = start(&envoy, scratch.path(), xds);
    let answers = |at: SocketAddr, path: &str, end: &str| get(at, path).is_some_and(|answer| answer.ends_with(end));
    until("the first service", &log, || answers(web, "/", "first"));
    until("the TCP route", &log, || answers(bytes, "/", "second"));
    assert!(answers(web, "/two/a", "second"));
    assert!(answers(web, "/twofold", "first"), "a prefix ends where a segment ends");
    assert!(get(web, "/lost").unwrap().starts_with("HTTP/1.1 500 "));

    let told = log.lock().unwrap().clone();
    assert!(
        told.contains("mesh.yaml:21:") && told.contains("backend(three.default.svc.cluster.local) not found"),
        "{told}"
    );
    let file = scratch.path().join("mesh.status.yaml");
    let status = || std::fs::read_to_string(&file).unwrap_or_default();
    assert!(status().contains("attachedRoutes: 1") && status().contains("BackendNotFound"), "{}", status());
    std::fs::write(folder.join("mesh.yaml"), text.replace("name: three", "name: two")).unwrap();
    until("the mended route", &log, || answers(web, "/lost", "second"));
    until("the status", &log, || !status().contains("BackendNotFound"));
}

#[test]
fn starting_wrongly_ends_with_a_cure() {
    let check = |arguments: &[&str], wanted: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_torusd")).args(arguments).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && told.contains(wanted), "{arguments:?}: {told}");
    };
    check(&["--config-folder", "no-such-folder"], "create it, or name another");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path().to_str().unwrap();
    check(&["--config-folder", folder, "--xds-address", &address], "choose another with --xds-address");
    let output = torusctl(&["ps", "--http-address", "127.0.0.1:1"]);
    assert_eq!(output.status.code(), Some(3));
}
