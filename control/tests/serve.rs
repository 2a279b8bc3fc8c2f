//! A real Envoy, or a gRPC client, driven over ADS by views that a test publishes.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener as StdListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use envoy_types::pb::envoy::service::status::v3::ClientStatusRequest;
use envoy_types::pb::envoy::service::status::v3::client_status_discovery_service_client::ClientStatusDiscoveryServiceClient;
use tokio::net::TcpListener;
use tokio_stream::iter;
use torus_control::push::{Change, Hub, View};
use torus_control::serve::{Ports, serve};
use torus_xds::serving::{Resource, Wanted, url};
use torus_xds::{Document, Format, MessageType, Source, UnknownFields, encode};

/// Resources by type and name, from YAML.
#[derive(Default)]
struct Fixed(BTreeMap<&'static str, Vec<Resource>>);

impl Fixed {
    fn with(mut self, type_url: &'static str, name: &str, yaml: &str) -> Self {
        let message = MessageType::named(type_url.rsplit('/').next().unwrap()).unwrap();
        let document = Document::parse(name, yaml.to_owned(), Format::Yaml).unwrap();
        let bytes = encode(vec![Source::Text(document)], message, UnknownFields::Refuse).unwrap().bytes;
        self.0.entry(type_url).or_default().push(Resource::new(name, bytes));
        self
    }
}

impl View for Fixed {
    fn admit(&self, node: &Node) -> Result<(), String> {
        if node.id.is_empty() { Err("node id is empty".to_owned()) } else { Ok(()) }
    }

    fn resources(&self, _: &Node, type_url: &str, wanted: &Wanted) -> Vec<Resource> {
        let all = self.0.get(type_url).into_iter().flatten();
        all.filter(|resource| wanted.contains(&resource.name)).cloned().collect()
    }

    fn page(&self, _: &str) -> Option<serde_json::Value> {
        None
    }
}

/// A running control plane.
struct Plane {
    hub: Arc<Hub>,
    xds: SocketAddr,
    http: SocketAddr,
    _runtime: tokio::runtime::Runtime,
}

fn plane(view: Fixed) -> Plane {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let hub = Arc::new(Hub::new(Arc::new(view)));
    let (xds, http) = runtime.block_on(async {
        let xds = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let http = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addresses = (xds.local_addr().unwrap(), http.local_addr().unwrap());
        tokio::spawn(serve(hub.clone(), Ports { xds, xds_tls: None, operator: http }, None));
        addresses
    });
    Plane { hub, xds, http, _runtime: runtime }
}

fn get(address: SocketAddr, path: &str) -> Option<String> {
    let mut connection = TcpStream::connect(address).ok()?;
    connection.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    write!(connection, "GET {path} HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).ok()?;
    Some(answer)
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < end, "{what}: not within 20 s");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn cluster(name: &str) -> Fixed {
    Fixed::default().with(url::CLUSTER, name, &format!("{{name: {name}, connect_timeout: 1s}}"))
}

#[test]
fn both_variants_and_a_garbled_client() {
    let plane = plane(cluster("a"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // Garbage on the xDS port harms nobody else.
    TcpStream::connect(plane.xds).unwrap().write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    runtime.block_on(async {
        let mut client = AggregatedDiscoveryServiceClient::connect(format!("http://{}", plane.xds)).await.unwrap();
        let node = Some(Node { id: "sidecar~1".to_owned(), ..Node::default() });

        let (sender, receiver) = tokio::sync::mpsc::channel(4);
        let first = DiscoveryRequest { node: node.clone(), type_url: url::CLUSTER.to_owned(), ..Default::default() };
        sender.send(first).await.unwrap();
        let mut answers = client.stream_aggregated_resources(Receive(receiver)).await.unwrap().into_inner();
        let answer = answers.message().await.unwrap().unwrap();
        assert_eq!((answer.resources.len(), &*answer.nonce, &*answer.version_info), (1, "1", "1"));
        let refusal = DiscoveryRequest {
            type_url: url::CLUSTER.to_owned(),
            response_nonce: answer.nonce,
            error_detail: Some(envoy_types::pb::google::rpc::Status { message: "no".to_owned(), ..Default::default() }),
            ..Default::default()
        };
        sender.send(refusal).await.unwrap();
        plane.hub.publish(Arc::new(cluster("b")), Change::Anything);
        let answer = answers.message().await.unwrap().unwrap();
        assert_eq!((answer.resources.len(), &*answer.nonce, &*answer.version_info), (1, "2", "2"));
        assert!(get(plane.http, "/debug/syncz").unwrap().contains("\"cluster_error\": \"no\""));
        drop((sender, answers));

        let first = DeltaDiscoveryRequest { node, type_url: url::CLUSTER.to_owned(), ..Default::default() };
        let mut answers = client.delta_aggregated_resources(then_open(first)).await.unwrap().into_inner();
        let answer = answers.message().await.unwrap().unwrap();
        assert_eq!(answer.resources[0].name, "b");

        let nobody = DiscoveryRequest { type_url: url::CLUSTER.to_owned(), ..Default::default() };
        let mut answers = client.stream_aggregated_resources(iter([nobody])).await.unwrap().into_inner();
        assert!(answers.message().await.unwrap_err().message().contains("no node"));
    });
    assert!(get(plane.http, "/metrics").unwrap().contains("pilot_total_xds_rejects{type=\"cds\"} 1"));
    assert!(get(plane.http, "/ready").unwrap().starts_with("HTTP/1.1 200"));
    plane.hub.shut_down();
    until("clients leave", || plane.hub.client_count() == 0);
}

#[test]
fn private_keys_are_shown_to_no_operator() {
    let tls = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";
    let certificate = "{certificate_chain: {inline_string: CHAIN}, private_key: {inline_string: HUSH}}";
    let secret = format!("{{name: kubernetes://shop, tls_certificate: {certificate}}}");
    let listener = format!(
        "{{name: edge, filter_chains: [{{transport_socket: {{name: tls, typed_config: {{'@type': {tls}, common_tls_context: {{tls_certificates: [{certificate}]}}}}}}}}]}}"
    );
    let view = Fixed::default().with(url::SECRET, "kubernetes://shop", &secret).with(url::LISTENER, "edge", &listener);
    let plane = plane(view);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut ads = AggregatedDiscoveryServiceClient::connect(format!("http://{}", plane.xds)).await.unwrap();
        let (sender, receiver) = tokio::sync::mpsc::channel(4);
        let node = Some(Node { id: "router~1".to_owned(), ..Node::default() });
        let listeners = DiscoveryRequest { node, type_url: url::LISTENER.to_owned(), ..Default::default() };
        let names = vec!["kubernetes://shop".to_owned()];
        let secrets =
            DiscoveryRequest { type_url: url::SECRET.to_owned(), resource_names: names, ..Default::default() };
        sender.send(listeners).await.unwrap();
        sender.send(secrets).await.unwrap();
        let mut answers = ads.stream_aggregated_resources(Receive(receiver)).await.unwrap().into_inner();
        for _ in 0..2 {
            let answer = answers.message().await.unwrap().unwrap();
            assert!(answer.resources[0].value.windows(4).any(|text| text == b"HUSH"), "the proxy itself has its key");
        }
        let mut csds = ClientStatusDiscoveryServiceClient::connect(format!("http://{}", plane.xds)).await.unwrap();
        let report = csds.fetch_client_status(ClientStatusRequest::default()).await.unwrap().into_inner();
        let shown = &report.config[0].generic_xds_configs;
        assert_eq!(shown.len(), 2);
        for config in shown {
            let bytes = &config.xds_config.as_ref().unwrap().value;
            let holds = |text: &[u8]| bytes.windows(text.len()).any(|window| window == text);
            assert!(holds(b"CHAIN") && holds(b"[redacted]") && !holds(b"HUSH"), "{}", config.type_url);
        }
        let page = get(plane.http, "/debug/config_dump?proxyID=router~1").unwrap();
        assert_eq!((page.matches("[redacted]").count(), page.matches("HUSH").count()), (2, 0), "{page}");
    });
}

/// The receiving half of a channel as a stream.
struct Receive<T>(tokio::sync::mpsc::Receiver<T>);

impl<T> tokio_stream::Stream for Receive<T> {
    type Item = T;
    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<T>> {
        self.0.poll_recv(context)
    }
}

/// One request, and then an open stream.
fn then_open<T: Send + 'static>(first: T) -> impl tokio_stream::Stream<Item = T> {
    use tokio_stream::StreamExt;
    iter([first]).chain(tokio_stream::pending())
}

/// Envoy as the test machine has it, or nothing.
fn envoy() -> Option<PathBuf> {
    let named = std::env::var_os("TORUS_ENVOY").map(PathBuf::from);
    let cache = std::env::var_os("TORUS_CACHE").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/torus"));
    let path = named.or_else(|| Some(cache.or(home)?.join("bin/envoy")))?;
    path.exists().then_some(path)
}

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn shop(port: u16, version: &str) -> Fixed {
    let route = format!(
        "{{name: shop, virtual_hosts: [{{name: all, domains: ['*'], routes: [{{match: {{prefix: /}}, direct_response: {{status: 200, body: {{inline_string: {version}}}}}}}]}}]}}"
    );
    let listener = format!(
        "name: edge\naddress: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}\nfilter_chains:\n- filters:\n  - name: hcm\n    typed_config:\n      '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager\n      stat_prefix: edge\n      rds: {{route_config_name: shop, config_source: {{ads: {{}}, resource_api_version: V3}}}}\n      http_filters:\n      - name: router\n        typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}\n"
    );
    Fixed::default().with(url::LISTENER, "edge", &listener).with(url::ROUTES, "shop", &route)
}

#[test]
fn a_real_envoy_follows_what_is_published() {
    let Some(envoy) = envoy() else {
        eprintln!("skipped: no Envoy; scripts/install-test-tools.sh installs it");
        return;
    };
    for variant in ["GRPC", "DELTA_GRPC"] {
        let free = StdListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let plane = plane(shop(free.port(), "one"));
        let scratch = tempfile::tempdir().unwrap();
        let bootstrap = scratch.path().join("bootstrap.yaml");
        let text = format!(
            "node: {{id: router~127.0.0.1~edge.default~default.svc.cluster.local, cluster: edge}}\ndynamic_resources:\n  ads_config: {{api_type: {variant}, transport_api_version: V3, grpc_services: [{{envoy_grpc: {{cluster_name: torusd}}}}]}}\n  lds_config: {{ads: {{}}, resource_api_version: V3}}\n  cds_config: {{ads: {{}}, resource_api_version: V3}}\nstatic_resources:\n  clusters:\n  - name: torusd\n    type: STATIC\n    connect_timeout: 1s\n    typed_extension_protocol_options:\n      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:\n        '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions\n        explicit_http_config: {{http2_protocol_options: {{}}}}\n    load_assignment: {{cluster_name: torusd, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {}}}}}}}}}]}}]}}\n",
            plane.xds.port()
        );
        std::fs::write(&bootstrap, text).unwrap();
        let _process = Process(
            Command::new(&envoy)
                .args(["--concurrency", "1", "--use-dynamic-base-id", "--log-level", "error", "-c"])
                .arg(&bootstrap)
                .stdin(Stdio::null())
                .spawn()
                .unwrap(),
        );
        let answers = |body: &str| get(free, "/").is_some_and(|answer| answer.ends_with(body));
        until("the first configuration", || answers("one"));
        plane.hub.publish(Arc::new(shop(free.port(), "two")), Change::Anything);
        until("the second configuration", || answers("two"));
        // What Envoy refuses is remembered with its reason, and what it had stays.
        let broken = shop(free.port(), "three").with(url::CLUSTER, "bad", "{name: bad, connect_timeout: 0s}");
        plane.hub.publish(Arc::new(broken), Change::Anything);
        until("a refusal", || get(plane.http, "/debug/syncz").is_some_and(|page| page.contains("cluster_error")));
        until("the third configuration", || answers("three"));
        plane.hub.publish(Arc::new(shop(free.port(), "four")), Change::Anything);
        until("the fourth configuration", || answers("four"));
    }
}
