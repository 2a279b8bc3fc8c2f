//! xDS under TLS: who is let in, as whom it is shown, what is told of those turned away, and a certificate that is replaced.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;
use tokio_stream::StreamExt;
use tonic::codegen::http::Uri;
use tonic::codegen::{BoxFuture, Service};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use torus_xds::serving::url;

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An authority, and what it has signed, as PEM files.
struct Certificates {
    folder: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Certificates {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, "authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        std::fs::write(folder.path().join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        Self { folder, issuer: Issuer::new(params, key) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn sign(&self, name: &str, san: SanType) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.subject_alt_names = vec![san];
        let pem = params.signed_by(&key, &self.issuer).unwrap().pem();
        std::fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
        std::fs::write(self.path(&format!("{name}.pem")), pem).unwrap();
    }

    fn client(&self, name: &str, namespace: &str) {
        self.sign(name, SanType::URI(format!("spiffe://cluster.local/ns/{namespace}/sa/web").try_into().unwrap()));
    }

    fn server(&self, name: &str) {
        self.sign(name, SanType::DnsName("torusd.test".try_into().unwrap()));
    }

    /// TLS of a client that shows the certificate called `name`.
    fn connector(&self, name: Option<&str>) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        for authority in CertificateDer::pem_file_iter(self.path("ca.pem")).unwrap() {
            roots.add(authority.unwrap()).unwrap();
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let builder = builder.with_root_certificates(roots);
        let mut config = match name {
            Some(name) => {
                let chain = CertificateDer::pem_file_iter(self.path(&format!("{name}.pem"))).unwrap();
                let key = PrivateKeyDer::from_pem_file(self.path(&format!("{name}.key"))).unwrap();
                builder.with_client_auth_cert(chain.map(Result::unwrap).collect(), key).unwrap()
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        TlsConnector::from(Arc::new(config))
    }
}

/// Opens connections for a gRPC channel.
struct Connect(SocketAddr, TlsConnector);

impl Service<Uri> for Connect {
    type Response = TokioIo<tokio_rustls::client::TlsStream<tokio::net::TcpStream>>;
    type Error = std::io::Error;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let (address, tls) = (self.0, self.1.clone());
        Box::pin(async move {
            let stream = tokio::net::TcpStream::connect(address).await?;
            Ok(TokioIo::new(tls.connect(ServerName::try_from("torusd.test").unwrap(), stream).await?))
        })
    }
}

/// What a client that shows `certificate` is answered to its first request.
async fn ask(address: SocketAddr, tls: TlsConnector, node: &str) -> Result<(usize, impl Sized), Status> {
    let channel = Endpoint::from_static("http://torusd.test").connect_with_connector(Connect(address, tls)).await;
    let channel: Channel = channel.map_err(|error| Status::unavailable(error.to_string()))?;
    let node = Node { id: node.to_owned(), ..Node::default() };
    let first = DeltaDiscoveryRequest { node: Some(node), type_url: url::CLUSTER.to_owned(), ..Default::default() };
    let requests = tokio_stream::iter([first]).chain(tokio_stream::pending());
    let mut answers =
        AggregatedDiscoveryServiceClient::new(channel).delta_aggregated_resources(requests).await?.into_inner();
    let answer = answers.message().await?.ok_or_else(|| Status::unavailable("ended"))?;
    Ok((answer.resources.len(), answers))
}

/// torusd with both xDS ports.
struct Torusd {
    _process: Process,
    plain: SocketAddr,
    tls: SocketAddr,
    http: SocketAddr,
    log: Arc<Mutex<String>>,
}

fn torusd(certificates: &Certificates, folder: &Path, how: &[&str]) -> Torusd {
    let mut child = Command::new(env!("CARGO_BIN_EXE_torusd"))
        .args(["--xds-address", "127.0.0.1:0", "--http-address", "127.0.0.1:0", "--xds-tls-address", "127.0.0.1:0"])
        .arg("--config-folder")
        .arg(folder)
        .arg("--tls-cert")
        .arg(certificates.path("server.pem"))
        .arg("--tls-key")
        .arg(certificates.path("server.key"))
        .arg("--tls-client-ca")
        .arg(certificates.path("ca.pem"))
        .args(how)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let process = Process(child);
    let mut tls = None;
    let (plain, http) = loop {
        let line = lines.next().expect("torusd says where it serves").unwrap();
        if let Some((_, address)) = line.split_once("xDS under TLS on ") {
            tls = address.parse().ok();
        } else if let Some((_, addresses)) = line.split_once("xDS on ") {
            let (xds, http) = addresses.split_once(", HTTP on http://").unwrap();
            break (xds.parse().unwrap(), http.trim_end_matches('/').parse().unwrap());
        }
    };
    let log = Arc::new(Mutex::new(String::new()));
    let sink = log.clone();
    std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| *sink.lock().unwrap() += &(line + "\n")));
    Torusd { _process: process, plain, tls: tls.unwrap(), http, log }
}

impl Torusd {
    fn until_told(&self, what: &str) {
        let end = Instant::now() + Duration::from_secs(20);
        while !self.log.lock().unwrap().contains(what) {
            assert!(Instant::now() < end, "`{what}` is not told:\n{}", self.log.lock().unwrap());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn get(&self, path: &str) -> String {
        let mut connection = TcpStream::connect(self.http).unwrap();
        connection.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        write!(connection, "GET {path} HTTP/1.1\r\nHost: torusd\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        answer
    }
}

const NODE: &str = "router~127.0.0.1~edge.shop~shop.svc.cluster.local";

#[test]
fn who_may_connect_and_as_whom() {
    let certificates = Certificates::new();
    certificates.server("server");
    certificates.client("web", "shop");
    certificates.client("thief", "bank");
    let scratch = tempfile::tempdir().unwrap();
    let torusd = torusd(&certificates, scratch.path(), &[]);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let (count, _open) = ask(torusd.tls, certificates.connector(Some("web")), NODE).await.unwrap();
        assert_eq!(count, 1, "the black hole");
        let page = torusd.get("/debug/syncz");
        assert!(page.contains("spiffe://cluster.local/ns/shop/sa/web"), "{page}");
        let ps = Command::new(env!("CARGO_BIN_EXE_torusctl"))
            .args(["ps", "--http-address", &torusd.http.to_string()])
            .output()
            .unwrap();
        let shown = String::from_utf8_lossy(&ps.stdout).into_owned();
        assert!(shown.contains("IDENTITY") && shown.contains("spiffe://cluster.local/ns/shop/sa/web"), "{shown}");

        let refused = ask(torusd.tls, certificates.connector(Some("thief")), NODE).await.err().unwrap();
        assert_eq!(refused.code(), Code::PermissionDenied);
        torusd.until_told("is for spiffe://cluster.local/ns/bank/sa/web, but its node is of namespace `shop`");

        assert!(ask(torusd.tls, certificates.connector(None), NODE).await.is_err(), "a certificate is required");
        torusd.until_told("TLS handshake failed: peer sent no certificates");
    });
    // A certificate that cannot be used is told; the one before stays. A good one is taken up.
    let good = std::fs::read(certificates.path("server.key")).unwrap();
    std::fs::write(certificates.path("server.key"), "nothing").unwrap();
    torusd.until_told("what was read before stays in force");
    let answered = |name| {
        let asked = ask(torusd.tls, certificates.connector(Some(name)), NODE);
        runtime.block_on(async { asked.await.is_ok() })
    };
    assert!(answered("web"));
    assert_ne!(good, b"nothing");
    certificates.server("server");
    torusd.until_told("server.pem: the new certificate is in force");
    assert!(answered("web"));
}

#[test]
fn what_is_no_xds_is_told() {
    let certificates = Certificates::new();
    certificates.server("server");
    let scratch = tempfile::tempdir().unwrap();
    let torusd = torusd(&certificates, scratch.path(), &["--tls-client-cert", "optional"]);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    // What says no name has none to tell.
    let (_, open) = runtime.block_on(ask(torusd.tls, certificates.connector(None), NODE)).unwrap();
    let ps = torusd.get("/debug/syncz");
    assert!(ps.contains(NODE) && !ps.contains("identities"), "{ps}");
    let cases: [(SocketAddr, &[u8], &str); 4] = [
        (torusd.plain, b"GET / HTTP/1.1\r\n\r\n", "begins with `GET / HTTP/1.1"),
        (torusd.plain, b"\x16\x03\x01\x02\x00", "speaks TLS, and this port is for plaintext"),
        (torusd.tls, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "speaks without TLS, and this port is for TLS"),
        (torusd.tls, b"\x16\x03\x01\x00\x05\xff\xff\xff\xff\xff", "TLS handshake failed"),
    ];
    for (address, bytes, told) in cases {
        let mut connection = TcpStream::connect(address).unwrap();
        connection.write_all(bytes).unwrap();
        torusd.until_told(told);
        // More than one a second is not told.
        std::thread::sleep(Duration::from_millis(1100));
    }
    drop(open);
    let refused = |arguments: &[&str]| {
        let output =
            Command::new(env!("CARGO_BIN_EXE_torusd")).args(["--config-folder", "."]).args(arguments).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(refused(&["--xds-tls-address", "127.0.0.1:0"]).contains("--tls-cert"));
    let key = certificates.path("server.key");
    let key = key.to_str().unwrap();
    let told = refused(&["--xds-tls-address", "127.0.0.1:0", "--tls-cert", key, "--tls-key", key]);
    assert!(told.contains("--tls-cert") && told.contains("a PEM file with certificates is wanted"), "{told}");
}

#[test]
fn a_real_envoy_is_driven_under_mutual_tls() {
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/torus"));
    let cache = std::env::var_os("TORUS_CACHE").map(PathBuf::from).or(home);
    let named = std::env::var_os("TORUS_ENVOY").map(PathBuf::from);
    let Some(envoy) = named.or_else(|| Some(cache?.join("bin/envoy"))).filter(|path| path.exists()) else {
        eprintln!("skipped: no Envoy; scripts/install-test-tools.sh installs it");
        return;
    };
    let certificates = Certificates::new();
    certificates.server("server");
    certificates.client("web", "shop");
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path().join("mesh");
    std::fs::create_dir(&folder).unwrap();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mesh = format!(
        "apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: edge, namespace: shop}}
spec:
  selector: {{istio: ingressgateway}}
  servers: [{{port: {{number: {free}, name: http, protocol: HTTP}}, hosts: ['*']}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: edge, namespace: shop}}
spec:
  hosts: ['*']
  gateways: [edge]
  http: [{{directResponse: {{status: 200, body: {{string: hello}}}}}}]
"
    );
    std::fs::write(folder.join("mesh.yaml"), mesh).unwrap();
    let torusd = torusd(&certificates, &folder, &[]);
    let path = |name: &str| certificates.path(name).display().to_string();
    let bootstrap = scratch.path().join("bootstrap.yaml");
    let text = format!(
        "node: {{id: {NODE}, cluster: edge, metadata: {{NAMESPACE: shop, LABELS: {{istio: ingressgateway}}}}}}
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
    transport_socket:
      name: tls
      typed_config:
        '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        sni: torusd.test
        common_tls_context:
          tls_certificates: [{{certificate_chain: {{filename: {}}}, private_key: {{filename: {}}}}}]
          validation_context: {{trusted_ca: {{filename: {}}}}}
    load_assignment:
      cluster_name: xds-grpc
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {}}}}}}}}}]}}]
",
        path("web.pem"),
        path("web.key"),
        path("ca.pem"),
        torusd.tls.port()
    );
    std::fs::write(&bootstrap, text).unwrap();
    let _envoy = Process(
        Command::new(&envoy)
            .args(["--concurrency", "1", "--use-dynamic-base-id", "--log-level", "error", "-c"])
            .arg(&bootstrap)
            .stdin(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let page = torusd.get("/debug/syncz");
        if page.contains("\"listener_status\": \"SYNCED\"") && page.contains("\"route_status\": \"SYNCED\"") {
            assert!(page.contains("spiffe://cluster.local/ns/shop/sa/web"), "{page}");
            break;
        }
        assert!(Instant::now() < end, "Envoy is not served:\n{page}\n{}", torusd.log.lock().unwrap());
        std::thread::sleep(Duration::from_millis(20));
    }
}
