//! torusd on a folder drives torus-proxy: traffic goes where the YAML says and follows every edit, and no request fails.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use torus_tests::binaries;
use torus_tests::client::{Connection, Target};
use torus_tests::ports::free_port;
use torus_tests::program::Program;

const PATIENCE: Duration = Duration::from_secs(20);
const CLIENT_COUNT: usize = 4;

/// A server of keep-alive connections that answers every request with `body`.
fn backend(body: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || -> std::io::Result<()> {
                let mut lines = BufReader::new(stream.try_clone()?).lines();
                while let Some(line) = lines.next().transpose()? {
                    if line.is_empty() {
                        // One write: the second of two would wait for the acknowledgement of the first.
                        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                        stream.write_all(answer.as_bytes())?;
                    }
                }
                Ok(())
            });
        }
    });
    port
}

/// A gateway on `port` for `shop.example`, whose cart has an endpoint of each version.
fn mesh(port: u16, first: u16, second: u16) -> String {
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
  - {{address: 127.0.0.1, ports: {{http: {first}}}, labels: {{version: v1}}}}
  - {{address: 127.0.0.1, ports: {{http: {second}}}, labels: {{version: v2}}}}
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

/// A gateway that knows nothing but its control plane.
fn bootstrap(xds: &str, api: &str) -> String {
    let (host, port) = xds.rsplit_once(':').unwrap();
    format!(
        "node:
  id: router~127.0.0.1~edge.default~default.svc.cluster.local
  cluster: edge
  metadata: {{NAMESPACE: default, LABELS: {{istio: ingressgateway}}}}
dynamic_resources:
  ads_config: {{api_type: {api}, transport_api_version: V3, grpc_services: [{{envoy_grpc: {{cluster_name: xds-grpc}}}}]}}
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
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: {host}, port_value: {port}}}}}}}}}]}}]
"
    )
}

/// Replaces a file as editors do: nobody sees a part of it.
fn edit(file: &Path, text: &str) {
    let draft = file.with_extension("draft");
    std::fs::write(&draft, text).unwrap();
    std::fs::rename(&draft, file).unwrap();
}

/// A folder in memory where that can be: on a busy disk it may take a minute to replace a file.
fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap()
}

/// torusd on `folder`, and its xDS address.
fn torusd(folder: &Path) -> (Program, String) {
    let mut command = Command::new(binaries::torusd());
    command.args(["--xds-address", "127.0.0.1:0", "--http-address", "127.0.0.1:0", "--config-folder"]).arg(folder);
    let program = Program::start("torusd", command);
    let line = program.wait_for_line("xDS on ", PATIENCE);
    let line = line.unwrap_or_else(|| panic!("torusd does not say where it serves:\n{}", program.output()));
    let (_, addresses) = line.split_once("xDS on ").unwrap();
    let xds = addresses.split_once(',').unwrap().0.to_owned();
    (program, xds)
}

/// Clients that send one request after another on connections that they keep.
struct Load {
    done: Arc<AtomicBool>,
    /// Answers of each version.
    served: Arc<[AtomicU64; 2]>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(port: u16) -> Self {
        let done = Arc::new(AtomicBool::new(false));
        let served: Arc<[AtomicU64; 2]> = Arc::default();
        let client = |_| {
            let (done, served) = (done.clone(), served.clone());
            std::thread::spawn(move || {
                let target = Target::Tcp(format!("127.0.0.1:{port}"));
                let mut kept: Option<Connection> = None;
                while !done.load(Ordering::Relaxed) {
                    let mut connection = kept.take().unwrap_or_else(|| {
                        Connection::open(&target, PATIENCE).expect("the gateway accepts all the time")
                    });
                    connection.send(b"GET / HTTP/1.1\r\nhost: shop.example\r\n\r\n").expect("the gateway reads");
                    let response = connection.response("GET");
                    assert_eq!(response.status, 200, "{response:?}");
                    let version = usize::from(response.body == b"second");
                    served[version].fetch_add(1, Ordering::Relaxed);
                    kept = (!response.headers.has_token("connection", "close")).then_some(connection);
                }
            })
        };
        Self { clients: (0..CLIENT_COUNT).map(client).collect(), done, served }
    }

    fn counts(&self) -> [u64; 2] {
        [0, 1].map(|version| self.served[version].load(Ordering::Relaxed))
    }

    /// Waits until each version gets requests, or gets none, as `wanted` says.
    fn goes_to(&self, wanted: [bool; 2], programs: [&Program; 2]) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let before = self.counts();
            while self.counts().iter().sum::<u64>() < before.iter().sum::<u64>() + 200 {
                let [control, proxy] = programs;
                let goes_on = Instant::now() < deadline && self.clients.iter().all(|client| !client.is_finished());
                assert!(goes_on, "{}\n{}", control.output(), proxy.output());
                std::thread::sleep(Duration::from_millis(2));
            }
            let after = self.counts();
            if [0, 1].map(|version| after[version] > before[version]) == wanted {
                return;
            }
            let [control, proxy] = programs.map(Program::output);
            assert!(Instant::now() < deadline, "{before:?} {after:?}\n{control}\n{proxy}");
        }
    }

    /// How many requests were answered.
    fn finish(self) -> u64 {
        self.done.store(true, Ordering::Relaxed);
        self.clients.into_iter().for_each(|client| client.join().expect("no request failed"));
        self.served.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }
}

fn drive(api: &str) {
    let scratch = scratch();
    let folder = scratch.path().join("mesh");
    std::fs::create_dir(&folder).unwrap();
    let edge = free_port();
    std::fs::write(folder.join("mesh.yaml"), mesh(edge, backend("first"), backend("second"))).unwrap();
    let routes = folder.join("shop.yaml");
    edit(&routes, &split(100, 0));
    let (torusd, xds) = torusd(&folder);
    let mut command = Command::new(binaries::torus_proxy());
    command.args(["--concurrency", "2", "--config-yaml", &bootstrap(&xds, api)]);
    let mut proxy = Program::start("torus-proxy", command);
    let listens = proxy.wait_until("gateway", PATIENCE, || TcpStream::connect(("127.0.0.1", edge)).ok());
    listens.unwrap_or_else(|error| panic!("{error}\n{}", torusd.output()));

    let load = Load::start(edge);
    let programs = [&torusd, &proxy];
    load.goes_to([true, false], programs);
    for _ in 0..3 {
        for (first, second) in [(50, 50), (0, 100), (100, 0)] {
            edit(&routes, &split(first, second));
            load.goes_to([first > 0, second > 0], programs);
        }
    }
    // A broken edit is told, and changes nothing.
    edit(&routes, &split(0, 100).replace("weight: 100", "weight: lots"));
    assert!(torusd.wait_for_line("shop.yaml:", PATIENCE).is_some(), "{}", torusd.output());
    load.goes_to([true, false], programs);
    edit(&routes, &split(0, 100));
    load.goes_to([false, true], programs);
    println!("{api}: {} requests through 10 edits, none failed", load.finish());
}

#[test]
fn traffic_follows_the_folder_delta() {
    drive("DELTA_GRPC");
}

#[test]
fn traffic_follows_the_folder_state_of_the_world() {
    drive("GRPC");
}

/// What curl tells of `arguments`, or why it could not.
fn curl(arguments: &[&str]) -> Result<String, String> {
    let command = Command::new("curl").args(["--silent", "--show-error", "--max-time", "10"]).args(arguments).output();
    let output = command.expect("scripts/install-test-tools.sh installs curl");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// What the README's first command shows, on free ports: HTTPS with a Secret, redirect, canary and split.
#[test]
fn the_example_shop() {
    let example = |name: &str| {
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/").to_owned() + name).unwrap()
    };
    let scratch = scratch();
    let folder = scratch.path().join("shop");
    std::fs::create_dir(&folder).unwrap();
    let (http, https) = (free_port(), free_port());
    let ports = [("8080", http), ("8443", https), ("9001", backend("first")), ("9002", backend("second"))];
    for name in ["cart.yaml", "certificate.yaml", "gateway.yaml", "routes.yaml"] {
        let mut text = example(&format!("shop/{name}"));
        for (written, free) in ports.iter().filter(|_| name != "certificate.yaml") {
            text = text.replace(written, &free.to_string());
        }
        std::fs::write(folder.join(name), text).unwrap();
    }
    let secret = example("shop/certificate.yaml");
    let (begin, end) = (secret.find("-----BEGIN CERT").unwrap(), secret.find("  tls.key").unwrap());
    let certificate = scratch.path().join("shop.pem");
    let lines: Vec<&str> = secret[begin..end].lines().map(str::trim).collect();
    std::fs::write(&certificate, lines.join("\n")).unwrap();

    let (torusd, xds) = torusd(&folder);
    let port = |address: &str| address.rsplit(':').next().unwrap().to_owned();
    let bootstrap = example("shop-gateway.yaml").replace("15010", &port(&xds)).replace("9901", "0");
    let mut command = Command::new(binaries::torus_proxy());
    command.args(["--concurrency", "1", "--config-yaml", &bootstrap]);
    let mut proxy = Program::start("torus-proxy", command);
    let lead = format!("shop.example:443:127.0.0.1:{https}");
    let shop = |more: &[&str]| {
        let verified = ["--cacert", certificate.to_str().unwrap(), "--connect-to", &lead];
        curl(&[&verified, more].concat())
    };
    let served = proxy.wait_until("shop", PATIENCE, || shop(&["https://shop.example/"]).ok());
    served.unwrap_or_else(|error| {
        panic!("{error}\n{}\n{}", torusd.output(), shop(&["https://shop.example/"]).unwrap_err())
    });

    let plaintext = format!("http://127.0.0.1:{http}/cart");
    let redirect = curl(&["--include", "--header", "host: shop.example", &plaintext]).unwrap();
    assert!(redirect.contains(" 301 ") && redirect.contains("location: https://shop.example/cart\r\n"), "{redirect}");
    let testers = shop(&["--header", "x-canary: yes", "https://shop.example/[1-20]"]).unwrap();
    assert_eq!(testers, "second".repeat(20));
    let everyone = shop(&["https://shop.example/[1-400]"]).unwrap();
    // One in ten of 400: fewer than 12 or more than 80 happen once in a million runs.
    let second = everyone.matches("second").count();
    assert!((12..=80).contains(&second) && everyone.matches("first").count() + second == 400, "{everyone}");
    let other = curl(&[
        "--insecure",
        "--connect-to",
        &format!("other.example:443:127.0.0.1:{https}"),
        "https://other.example/",
    ]);
    assert!(other.is_err(), "a name that no server has is refused: {other:?}");
}
