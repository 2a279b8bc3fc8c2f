//! torusd drives gRPC clients that have no proxy: calls to `xds:///host:port` go where the folder says, and follow it.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::admin::v3::ClientResourceStatus;
use envoy_types::pb::envoy::service::status::v3::ClientStatusRequest;
use envoy_types::pb::envoy::service::status::v3::client_status_discovery_service_client::ClientStatusDiscoveryServiceClient;
use serde_json::{Value, json};

/// A program that is asked in lines.
struct Program {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Program {
    fn start(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (input, output) = (child.stdin.take(), child.stdout.take().unwrap());
        Self { child, input, output: BufReader::new(output) }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    fn ask(&mut self, question: &str) -> Value {
        writeln!(self.input.as_mut().unwrap(), "{question}").unwrap();
        serde_json::from_str(&self.line()).expect("the client answers each line")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.input = None;
        // Gone already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What scripts/install-test-tools.sh installed at `path`.
fn installed(path: &str) -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = set("TORUS_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|cache| cache.join("torus")))
        .or_else(|| set("HOME").map(|home| home.join(".cache/torus")))?;
    Some(cache.join(path)).filter(|path| path.exists())
}

fn torusd(folder: &Path) -> (Program, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_torusd"));
    command.args(["--xds-address", "127.0.0.1:0", "--http-address", "127.0.0.1:0", "--config-folder"]).arg(folder);
    command.stderr(Stdio::piped());
    let mut program = Program::start(command);
    let mut lines = BufReader::new(program.child.stderr.take().unwrap()).lines();
    let addresses = loop {
        let line = lines.next().expect("torusd says where it serves").unwrap();
        if let Some((_, addresses)) = line.split_once("xDS on ") {
            break addresses.to_owned();
        }
    };
    std::thread::spawn(move || lines.for_each(drop));
    let (xds, http) = addresses.split_once(", HTTP on http://").unwrap();
    (program, xds.to_owned(), http.trim_end_matches('/').to_owned())
}

fn mesh(ports: &[String], routes: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: echo}}
spec:
  hosts: [echo.internal]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{{number: 7070, name: grpc, protocol: GRPC}}]
  endpoints:
  - {{address: 127.0.0.1, ports: {{grpc: {}}}, labels: {{version: v1}}}}
  - {{address: 127.0.0.1, ports: {{grpc: {}}}, labels: {{version: v2}}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: echo}}
spec:
  host: echo.internal
  subsets: [{{name: v1, labels: {{version: v1}}}}, {{name: v2, labels: {{version: v2}}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: echo}}
spec:
  hosts: [echo.internal]
  http:
{routes}",
        ports[0], ports[1]
    )
}

/// What CSDS says of each resource of the one client.
async fn client_status(xds: &str) -> Vec<ClientResourceStatus> {
    let mut client = ClientStatusDiscoveryServiceClient::connect(format!("http://{xds}")).await.unwrap();
    let answer = client.fetch_client_status(ClientStatusRequest::default()).await.unwrap().into_inner();
    answer.config[0].generic_xds_configs.iter().map(|config| config.client_status()).collect()
}

const TO_FIRST: &str =
    "  - {match: [{headers: {x-canary: {exact: 'yes'}}}], route: [{destination: {host: echo.internal, subset: v2}}]}
  - {route: [{destination: {host: echo.internal, subset: v1}}]}
";
const TO_SECOND: &str = "  - {route: [{destination: {host: echo.internal, subset: v2}}]}\n";

const TESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests");

#[test]
fn grpcio_goes_where_the_folder_says() {
    let Some(python) = installed("xds/bin/python") else {
        eprintln!("skipped: no Python with grpcio; scripts/install-test-tools.sh installs it");
        return;
    };
    let mut client = Command::new(&python);
    client.args([&format!("{TESTS}/grpc_clients.py"), "call", TARGET]);
    follow(&python, client);
}

#[test]
fn grpc_js_goes_where_the_folder_says() {
    let (Some(python), Some(modules)) = (installed("xds/bin/python"), installed("grpc-js/node_modules")) else {
        eprintln!("skipped: no Python with grpcio, or no grpc-js; scripts/install-test-tools.sh installs them");
        return;
    };
    let mut client = Command::new("node");
    client.args([&format!("{TESTS}/grpc_clients.js"), TARGET]).env("NODE_PATH", modules);
    follow(&python, client);
}

const TARGET: &str = "xds:///echo.internal:7070";

/// Runs servers, torusd and a client, whose calls must go where the folder says.
fn follow(python: &Path, mut client: Command) {
    let run = |arguments: &[&str]| {
        let mut command = Command::new(python);
        command.arg(format!("{TESTS}/grpc_clients.py")).args(arguments);
        command
    };
    let mut servers: Vec<Program> =
        ["first", "second"].into_iter().map(|name| Program::start(run(&["serve", name]))).collect();
    let ports: Vec<String> = servers.iter_mut().map(Program::line).collect();
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path().join("mesh");
    std::fs::create_dir(&folder).unwrap();
    let write = |routes: &str| {
        let draft = scratch.path().join("draft");
        std::fs::write(&draft, mesh(&ports, routes)).unwrap();
        std::fs::rename(&draft, folder.join("mesh.yaml")).unwrap();
    };
    write(TO_FIRST);
    let (_torusd, xds, http) = torusd(&folder);
    let bootstrap = json!({
        "xds_servers": [{"server_uri": xds, "channel_creds": [{"type": "insecure"}], "server_features": ["xds_v3"]}],
        "node": {
            "id": "sidecar~127.0.0.1~client.default~default.svc.cluster.local",
            "locality": {},
            "metadata": {"NAMESPACE": "default", "GENERATOR": "grpc"},
        },
    });
    client.env("GRPC_XDS_BOOTSTRAP_CONFIG", bootstrap.to_string());
    let mut client = Program::start(client);
    assert_eq!(client.ask("20"), json!({"first": 20}));
    assert_eq!(client.ask("20 x-canary=yes"), json!({"second": 20}));
    write(TO_SECOND);
    let end = Instant::now() + Duration::from_secs(20);
    while client.ask("5") != json!({"second": 5}) {
        assert!(Instant::now() < end, "the client does not follow the folder");
    }
    let acknowledged = tokio::runtime::Runtime::new().unwrap().block_on(client_status(&xds));
    assert!(
        !acknowledged.is_empty() && acknowledged.iter().all(|one| *one == ClientResourceStatus::Acked),
        "{acknowledged:?}"
    );
    let status = Command::new(env!("CARGO_BIN_EXE_torusctl"))
        .args(["proxy-status", "-o", "json", "--http-address", &http])
        .output()
        .unwrap();
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    for kind in ["cluster", "listener", "route", "endpoint"] {
        assert_eq!(status[0][format!("{kind}_status")], "SYNCED", "{status:#}");
    }
}
