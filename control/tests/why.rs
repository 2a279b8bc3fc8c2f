//! `torusctl why` says what a real Envoy then does, for the requests of a table: a third of them, or all with `TORUS_EXHAUSTIVE` set.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

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

/// torusd on `folder`, and its two addresses.
fn torusd(folder: &Path) -> (Process, SocketAddr, SocketAddr) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_torusd"))
        .args(["--xds-address", "127.0.0.1:0", "--http-address", "127.0.0.1:0", "--config-folder"])
        .arg(folder)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let (xds, http) = loop {
        let line = lines.next().expect("torusd says where it serves").unwrap();
        if let Some((_, addresses)) = line.split_once("xDS on ") {
            let (xds, http) = addresses.split_once(", HTTP on http://").unwrap();
            break (xds.parse().unwrap(), http.trim_end_matches('/').parse().unwrap());
        }
    };
    // Read on, so that torusd never waits for its reader.
    std::thread::spawn(move || lines.map_while(Result::ok).count());
    (Process(child), xds, http)
}

fn torusctl(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_torusctl")).args(arguments).output().unwrap()
}

fn bootstrap(xds: u16) -> String {
    format!(
        "node:
  id: router~127.0.0.1~edge.default~default.svc.cluster.local
  cluster: edge
  metadata: {{NAMESPACE: default, LABELS: {{istio: ingressgateway}}}}
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

fn mesh(port: u16, redirecting: u16, versions: [u16; 3]) -> String {
    let [one, two, three] = versions;
    format!(
        "apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: edge}}
spec:
  selector: {{istio: ingressgateway}}
  servers:
  - port: {{number: {port}, name: http, protocol: HTTP}}
    hosts: [shop.example, '*.wild.example']
  - port: {{number: {redirecting}, name: redirecting, protocol: HTTP}}
    hosts: [shop.example]
    tls: {{httpsRedirect: true}}
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
  - {{address: 127.0.0.1, ports: {{http: {three}}}, labels: {{version: v3}}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: cart}}
spec:
  host: cart.internal
  subsets:
  - {{name: v1, labels: {{version: v1}}}}
  - {{name: v2, labels: {{version: v2}}}}
  - {{name: v3, labels: {{version: v3}}}}
  - {{name: nobody, labels: {{version: v9}}}}
{ROUTES}"
    )
}

const ROUTES: &str = "---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop}
spec:
  hosts: [shop.example]
  gateways: [edge]
  http:
  - match: [{headers: {x-canary: {exact: 'yes'}}, uri: {prefix: /cart}}]
    route: [{destination: {host: cart.internal, subset: v2}}]
  - match: [{uri: {exact: /exact}, withoutHeaders: {x-plain: {exact: 'no'}}}]
    route: [{destination: {host: cart.internal, subset: v3}}]
  - match: [{uri: {regex: '/item/[0-9]+'}}]
    route: [{destination: {host: cart.internal, subset: v2}}]
  - match: [{uri: {prefix: /find}, queryParams: {user: {exact: '7'}}}]
    route: [{destination: {host: cart.internal, subset: v3}}]
  - match: [{uri: {prefix: /find}, queryParams: {user: {regex: '[a-z]+'}}}]
    route: [{destination: {host: cart.internal, subset: v2}}]
  - match: [{uri: {prefix: /old}}]
    redirect: {uri: /new, redirectCode: 308}
  - match: [{uri: {prefix: /closed}}]
    directResponse: {status: 418}
  - match: [{uri: {prefix: /nobody}}]
    route: [{destination: {host: cart.internal, subset: nobody}}]
  - match: [{uri: {prefix: /split}}]
    route:
    - {destination: {host: cart.internal, subset: v1}, weight: 50}
    - {destination: {host: cart.internal, subset: v2}, weight: 50}
  - match: [{uri: {prefix: /cart}}, {uri: {prefix: /FOLD}, ignoreUriCase: true}]
    route: [{destination: {host: cart.internal, subset: v1}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: wild}
spec:
  hosts: ['*.wild.example']
  gateways: [edge]
  http:
  - match: [{authority: {prefix: a.}, method: {exact: GET}}]
    route: [{destination: {host: cart.internal, subset: v2}}]
  - match: [{headers: {x-canary: {}}}]
    route: [{destination: {host: cart.internal, subset: v3}}]
  - route: [{destination: {host: cart.internal, subset: v1}}]
";

/// One request, and what `why` must be told of it.
struct Request {
    port: u16,
    host: &'static str,
    path: &'static str,
    header: Option<&'static str>,
}

fn table(port: u16, redirecting: u16) -> Vec<Request> {
    let hosts = ["shop.example", "SHOP.example:1234", "a.wild.example", "b.wild.example", "none.example"];
    let paths = [
        "/",
        "/cart",
        "/cart/1?x=y",
        "/exact",
        "/exact/1",
        "/item/12",
        "/item/12/x",
        "/item/x",
        "/find?user=7",
        "/find?a=b&user=me",
        "/find?user=me&user=7",
        "/find",
        "/old/a",
        "/closed",
        "/nobody",
        "/split",
        "/fold/x",
        "/Cart",
    ];
    let headers = [None, Some("x-canary: yes"), Some("X-Canary: no"), Some("x-plain: no")];
    let mut requests = Vec::new();
    for host in hosts {
        for path in paths {
            requests.extend(headers.map(|header| Request { port, host, path, header }));
        }
    }
    requests.extend(hosts.map(|host| Request { port: redirecting, host, path: "/cart", header: None }));
    requests
}

/// Status and body of what Envoy answers.
fn ask(request: &Request) -> Option<(u64, String)> {
    let mut connection = TcpStream::connect(("127.0.0.1", request.port)).ok()?;
    connection.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    let header = request.header.map(|header| format!("{header}\r\n")).unwrap_or_default();
    let (path, host) = (request.path, request.host);
    write!(connection, "GET {path} HTTP/1.1\r\nHost: {host}\r\n{header}Connection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

fn why(torusd: &str, request: &Request) -> Value {
    let url = format!("http://{}{}", request.host, request.path);
    let port = request.port.to_string();
    let mut arguments =
        vec!["why", "edge", "GET", &url, "--listener-port", &port, "-o", "json", "--http-address", torusd];
    arguments.extend(request.header.into_iter().flat_map(|header| ["-H", header]));
    let output = torusctl(&arguments);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{url}: {error}: {output:?}"))
}

#[test]
fn why_says_what_envoy_does() {
    let Some(envoy) = envoy() else {
        eprintln!("skipped: no Envoy; scripts/install-test-tools.sh installs it");
        return;
    };
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path().join("mesh");
    std::fs::create_dir(&folder).unwrap();
    let free = || TcpListener::bind("127.0.0.1:0").unwrap();
    let (edge, other) = (free(), free());
    let (port, redirecting) = (edge.local_addr().unwrap().port(), other.local_addr().unwrap().port());
    drop((edge, other));
    let bodies = ["v1", "v2", "v3"];
    let versions = bodies.map(backend);
    let named: BTreeMap<String, &str> =
        versions.iter().zip(bodies).map(|(port, body)| (format!("127.0.0.1:{port}"), body)).collect();
    std::fs::write(folder.join("mesh.yaml"), mesh(port, redirecting, versions)).unwrap();
    let (_torusd, xds, http) = torusd(&folder);
    let file = scratch.path().join("bootstrap.yaml");
    std::fs::write(&file, bootstrap(xds.port())).unwrap();
    let _envoy = Process(
        Command::new(envoy)
            .args(["--concurrency", "1", "--use-dynamic-base-id", "--log-level", "error", "-c"])
            .arg(&file)
            .stdin(Stdio::null())
            .spawn()
            .unwrap(),
    );
    // Each costs a process; a third has every host, path and header, though not in all combinations.
    let step = if std::env::var_os("TORUS_EXHAUSTIVE").is_some() { 1 } else { 3 };
    let requests: Vec<Request> = table(port, redirecting).into_iter().step_by(step).collect();
    assert!(requests.len() > 100);
    let ready = Request { port, host: "shop.example", path: "/cart", header: None };
    let end = Instant::now() + Duration::from_secs(20);
    while ask(&ready).is_none_or(|(status, _)| status != 200) {
        assert!(Instant::now() < end, "Envoy is not configured within 20 s");
        std::thread::sleep(Duration::from_millis(10));
    }
    let server = http.to_string();
    let mut disagreements = Vec::new();
    let mut seen = BTreeSet::new();
    for request in &requests {
        let said = why(&server, request);
        let did = ask(request);
        let endpoints =
            said["clusters"].as_array().unwrap().iter().flat_map(|one| one["endpoints"].as_array().unwrap());
        let possible: Vec<&str> = endpoints.map(|address| named[address.as_str().unwrap()]).collect();
        let agrees = did.as_ref().is_some_and(|(status, body)| match said["status"].as_u64() {
            Some(own) => *status == own,
            None => *status == 200 && possible.contains(&body.as_str()),
        });
        // Whatever an object decided is told with its place.
        let is_placed = said["place"].as_str().is_some_and(|place| place.contains("mesh.yaml:"));
        if !agrees || !is_placed {
            let (host, path, header) = (request.host, request.path, request.header);
            disagreements.push(format!("{host} {path} {header:?}: Envoy {did:?}, why {said}"));
        }
        seen.insert(did.map(|(status, body)| if status == 200 { body } else { status.to_string() }));
    }
    println!("{} of {} requests as said", requests.len() - disagreements.len(), requests.len());
    assert!(disagreements.is_empty(), "{}", disagreements.join("\n"));
    let outcomes = ["v1", "v2", "v3", "301", "308", "404", "418", "503"].map(|outcome| Some(outcome.to_owned()));
    assert_eq!(seen, BTreeSet::from(outcomes), "the table meets every outcome");
}

#[test]
fn the_example_is_clean_and_explained() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/shop");
    for command in ["validate", "analyze"] {
        let output = torusctl(&[command, folder]);
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && told.contains("nothing found"), "{command}: {told}");
    }
    let check = |arguments: &[&str], code: i32, wanted: &[&str]| {
        let output = torusctl(&[&["why", "--config-folder", folder], arguments].concat());
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {output:?}");
        for wanted in wanted {
            assert!(told.contains(wanted), "{arguments:?}: no `{wanted}` in\n{told}");
        }
    };
    let (v1, v2) = ("outbound|80|v1|cart.internal (weight 90)", "outbound|80|v2|cart.internal (weight 10)");
    check(&["GET", "https://shop.example:8443/"], 0, &[v1, v2, "routes.yaml:16:", "127.0.0.1:9001"]);
    check(&["GET", "https://shop.example:8443/", "-H", "x-canary: yes"], 0, &["canary", "127.0.0.1:9002"]);
    check(&["GET", "http://shop.example:8080/"], 0, &["301", "gateway.yaml:10:"]);
    check(&["GET", "http://shop.example:8443/"], 1, &["use https"]);
    check(&["GET", "https://other.example:8443/"], 1, &["no filter chain for server name `other.example`"]);
    check(&["GET", "http://shop.example/"], 1, &["nothing listens on port 80"]);
}
