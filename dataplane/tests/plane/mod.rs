//! A control plane of few words, a proxy that follows it, and clients that must not notice.

#![allow(dead_code, unreachable_pub, reason = "each test uses a part of it")]

pub mod tls;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::service::cluster::v3::cluster_discovery_service_server::{
    ClusterDiscoveryService, ClusterDiscoveryServiceServer,
};
use envoy_types::pb::envoy::service::discovery::v3 as discovery;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use envoy_types::pb::envoy::service::listener::v3::listener_discovery_service_server::{
    ListenerDiscoveryService, ListenerDiscoveryServiceServer,
};
use envoy_types::pb::envoy::service::secret::v3::secret_discovery_service_server::{
    SecretDiscoveryService, SecretDiscoveryServiceServer,
};
use envoy_types::pb::google::protobuf::Any;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};
use torus_xds::{MessageType, Source, UnknownFields};

pub const PATIENCE: Duration = Duration::from_secs(20);
pub const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";
pub const ENDPOINTS: &str = "envoy.config.endpoint.v3.ClusterLoadAssignment";
pub const LISTENER: &str = "envoy.config.listener.v3.Listener";
pub const ROUTES: &str = "envoy.config.route.v3.RouteConfiguration";
pub const SECRET: &str = "envoy.extensions.transport_sockets.tls.v3.Secret";

/// What the control plane has: by type, by name.
pub type World = BTreeMap<&'static str, BTreeMap<String, Vec<u8>>>;

/// The version sent, the version answered, and the reason of a refusal.
type Verdict = (u64, u64, Option<String>);

/// A control plane of few words.
#[derive(Clone)]
pub struct Plane {
    world: watch::Sender<(u64, World)>,
    pub refusals: Arc<Mutex<Vec<String>>>,
    /// State of the world: the version sent last of each kind, and the one answered last, with the reason of a refusal.
    verdicts: Arc<Mutex<BTreeMap<&'static str, Verdict>>>,
}

impl Plane {
    pub fn new() -> Self {
        Self { world: watch::channel((1, World::new())).0, refusals: Arc::default(), verdicts: Arc::default() }
    }

    /// Sets resources, given as YAML, and removes those without.
    pub fn put(&self, changes: &[(&'static str, &str, Option<&str>)]) {
        self.world.send_modify(|(version, world)| {
            *version += 1;
            for (kind, name, yaml) in changes {
                let names = world.entry(kind).or_default();
                match yaml {
                    None => drop(names.remove(*name)),
                    Some(yaml) => {
                        names.insert((*name).to_owned(), encoded(kind, yaml));
                    }
                }
            }
        });
    }

    /// All that there is, in wire format.
    pub fn all(&self) -> World {
        self.world.borrow().1.clone()
    }

    /// Makes this all that there is, in wire format.
    pub fn replace(&self, all: World) {
        self.world.send_modify(|(version, world)| {
            *version += 1;
            *world = all;
        });
    }

    /// What became of the newest version: for each kind that was asked for, the reason of its refusal; `None` until all are answered.
    pub fn verdict(&self) -> Option<BTreeMap<&'static str, Option<String>>> {
        let newest = self.world.borrow().0;
        let verdicts = self.verdicts.lock().unwrap();
        let settled = verdicts.values().all(|(sent, answered, _)| *sent == newest && *answered == newest);
        settled.then(|| verdicts.iter().map(|(kind, (_, _, refusal))| (*kind, refusal.clone())).collect())
    }

    pub fn serve(&self, address: SocketAddr) -> tokio::runtime::Runtime {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let plane = self.clone();
        runtime.spawn(async move {
            let server = tonic::transport::Server::builder()
                .add_service(AggregatedDiscoveryServiceServer::new(plane.clone()))
                .add_service(ClusterDiscoveryServiceServer::new(plane.clone()))
                .add_service(ListenerDiscoveryServiceServer::new(plane));
            server.serve(address).await.unwrap();
        });
        runtime
    }

    /// Serves on a unix socket at `path`.
    pub fn serve_unix(&self, path: &std::path::Path) -> tokio::runtime::Runtime {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (plane, path) = (self.clone(), path.to_owned());
        let (sender, accepted) = mpsc::channel(1);
        runtime.spawn(async move {
            let listener = tokio::net::UnixListener::bind(path).unwrap();
            while sender.send(listener.accept().await.map(|(stream, _)| stream)).await.is_ok() {}
        });
        runtime.spawn(async move {
            let service = AggregatedDiscoveryServiceServer::new(plane.clone());
            let server = tonic::transport::Server::builder().add_service(service);
            let server = server.add_service(SecretDiscoveryServiceServer::new(plane));
            server.serve_with_incoming(ReceiverStream::new(accepted)).await.unwrap();
        });
        runtime
    }
}

pub fn url(kind: &str) -> String {
    format!("type.googleapis.com/{kind}")
}

pub fn kind(type_url: &str) -> &'static str {
    [CLUSTER, ENDPOINTS, LISTENER, ROUTES, SECRET].into_iter().find(|kind| type_url.ends_with(kind)).unwrap()
}

pub type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Plane {
    /// Answers the requests of a stream, state of the world.
    fn sotw(&self, mut requests: Streaming<discovery::DiscoveryRequest>) -> Answers<discovery::DiscoveryResponse> {
        let plane = self.clone();
        let (sender, receiver) = mpsc::channel(16);
        tokio::spawn(async move {
            let mut changes = plane.world.subscribe();
            let mut asked: BTreeMap<&str, Vec<String>> = BTreeMap::new();
            let mut sent: BTreeMap<&str, (u64, Vec<String>)> = BTreeMap::new();
            loop {
                let (version, world) = changes.borrow_and_update().clone();
                for (kind, names) in &asked {
                    let state = (version, names.clone());
                    if sent.get(kind) == Some(&state) {
                        continue;
                    }
                    sent.insert(kind, state);
                    plane.verdicts.lock().unwrap().entry(kind).or_default().0 = version;
                    let all = world.get(kind).cloned().unwrap_or_default();
                    let wanted = all.into_iter().filter(|(name, _)| names.is_empty() || names.contains(name));
                    let answer = discovery::DiscoveryResponse {
                        version_info: version.to_string(),
                        nonce: version.to_string(),
                        type_url: url(kind),
                        resources: wanted.map(|(_, value)| Any { type_url: url(kind), value }).collect(),
                        ..Default::default()
                    };
                    if sender.send(Ok(answer)).await.is_err() {
                        return;
                    }
                }
                tokio::select! {
                    changed = changes.changed() => if changed.is_err() { return },
                    request = requests.next() => {
                        let Some(Ok(request)) = request else { return };
                        if let Ok(answered) = request.response_nonce.parse() {
                            let refusal = request.error_detail.as_ref().map(|error| error.message.clone());
                            let mut verdicts = plane.verdicts.lock().unwrap();
                            let verdict = verdicts.entry(kind(&request.type_url)).or_default();
                            (verdict.1, verdict.2) = (answered, refusal);
                        }
                        if let Some(error) = request.error_detail {
                            plane.refusals.lock().unwrap().push(error.message);
                        }
                        asked.insert(kind(&request.type_url), request.resource_names);
                    }
                }
            }
        });
        Box::pin(ReceiverStream::new(receiver))
    }

    /// Answers the requests of a stream with what changed.
    fn delta(
        &self,
        mut requests: Streaming<discovery::DeltaDiscoveryRequest>,
    ) -> Answers<discovery::DeltaDiscoveryResponse> {
        let plane = self.clone();
        let (sender, receiver) = mpsc::channel(16);
        tokio::spawn(async move {
            let mut changes = plane.world.subscribe();
            let mut asked: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
            let mut sent: BTreeMap<&str, BTreeMap<String, Vec<u8>>> = BTreeMap::new();
            let mut answered: BTreeSet<&str> = BTreeSet::new();
            loop {
                let (version, world) = changes.borrow_and_update().clone();
                for (kind, names) in &asked {
                    let all = world.get(kind).cloned().unwrap_or_default();
                    let wanted = all.into_iter().filter(|(name, _)| names.is_empty() || names.contains(name));
                    let wanted: BTreeMap<String, Vec<u8>> = wanted.collect();
                    let is_first = answered.insert(*kind);
                    let before = sent.insert(kind, wanted.clone()).unwrap_or_default();
                    let removed: Vec<String> =
                        before.keys().filter(|name| !wanted.contains_key(*name)).cloned().collect();
                    let changed = wanted.into_iter().filter(|(name, value)| before.get(name) != Some(value));
                    let resource = |(name, value)| discovery::Resource {
                        name,
                        version: version.to_string(),
                        resource: Some(Any { type_url: url(kind), value }),
                        ..Default::default()
                    };
                    let resources: Vec<discovery::Resource> = changed.map(resource).collect();
                    if resources.is_empty() && removed.is_empty() && !is_first {
                        continue;
                    }
                    let answer = discovery::DeltaDiscoveryResponse {
                        system_version_info: version.to_string(),
                        nonce: format!("{version}"),
                        type_url: url(kind),
                        resources,
                        removed_resources: removed,
                        ..Default::default()
                    };
                    if sender.send(Ok(answer)).await.is_err() {
                        return;
                    }
                }
                tokio::select! {
                    changed = changes.changed() => if changed.is_err() { return },
                    request = requests.next() => {
                        let Some(Ok(request)) = request else { return };
                        if let Some(error) = request.error_detail {
                            plane.refusals.lock().unwrap().push(error.message);
                        }
                        // What the client has from before is sent anew, or taken away.
                        let has = request.initial_resource_versions.into_keys().map(|name| (name, Vec::new()));
                        sent.entry(kind(&request.type_url)).or_default().extend(has);
                        let names = asked.entry(kind(&request.type_url)).or_default();
                        names.extend(request.resource_names_subscribe);
                        names.retain(|name| !request.resource_names_unsubscribe.contains(name));
                    }
                }
            }
        });
        Box::pin(ReceiverStream::new(receiver))
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Plane {
    type StreamAggregatedResourcesStream = Answers<discovery::DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Answers<discovery::DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<discovery::DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Ok(Response::new(self.sotw(request.into_inner())))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<discovery::DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        Ok(Response::new(self.delta(request.into_inner())))
    }
}

#[tonic::async_trait]
impl ClusterDiscoveryService for Plane {
    type StreamClustersStream = Answers<discovery::DiscoveryResponse>;
    type DeltaClustersStream = Answers<discovery::DeltaDiscoveryResponse>;

    async fn stream_clusters(
        &self,
        request: Request<Streaming<discovery::DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamClustersStream>, Status> {
        Ok(Response::new(self.sotw(request.into_inner())))
    }

    async fn delta_clusters(
        &self,
        request: Request<Streaming<discovery::DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaClustersStream>, Status> {
        Ok(Response::new(self.delta(request.into_inner())))
    }

    async fn fetch_clusters(
        &self,
        _: Request<discovery::DiscoveryRequest>,
    ) -> Result<Response<discovery::DiscoveryResponse>, Status> {
        Err(Status::unimplemented("streams alone"))
    }
}

#[tonic::async_trait]
impl ListenerDiscoveryService for Plane {
    type StreamListenersStream = Answers<discovery::DiscoveryResponse>;
    type DeltaListenersStream = Answers<discovery::DeltaDiscoveryResponse>;

    async fn stream_listeners(
        &self,
        request: Request<Streaming<discovery::DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamListenersStream>, Status> {
        Ok(Response::new(self.sotw(request.into_inner())))
    }

    async fn delta_listeners(
        &self,
        request: Request<Streaming<discovery::DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaListenersStream>, Status> {
        Ok(Response::new(self.delta(request.into_inner())))
    }

    async fn fetch_listeners(
        &self,
        _: Request<discovery::DiscoveryRequest>,
    ) -> Result<Response<discovery::DiscoveryResponse>, Status> {
        Err(Status::unimplemented("streams alone"))
    }
}

/// A server of secrets alone says the same.
#[tonic::async_trait]
impl SecretDiscoveryService for Plane {
    type StreamSecretsStream = Answers<discovery::DiscoveryResponse>;
    type DeltaSecretsStream = Answers<discovery::DeltaDiscoveryResponse>;

    async fn stream_secrets(
        &self,
        request: Request<Streaming<discovery::DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        self.stream_aggregated_resources(request).await
    }

    async fn delta_secrets(
        &self,
        request: Request<Streaming<discovery::DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        self.delta_aggregated_resources(request).await
    }

    async fn fetch_secrets(
        &self,
        _: Request<discovery::DiscoveryRequest>,
    ) -> Result<Response<discovery::DiscoveryResponse>, Status> {
        Err(Status::unimplemented("streams alone"))
    }
}

pub struct Proxy(pub Child);

impl Proxy {
    pub fn start(api: &str, plane: u16) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_torus-proxy"))
            .args(["--concurrency", "2", "--drain-time-s", "2", "--config-yaml", &bootstrap(api, plane)])
            .stderr(Stdio::inherit())
            .spawn();
        Self(child.unwrap())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A server of keep-alive connections that answers with `body`.
pub fn backend(body: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let (mut stream, mut line) = (stream, String::new());
                while reader.read_line(&mut line).is_ok_and(|length| length > 0) {
                    if line == "\r\n" {
                        let length = body.len();
                        // One write: the second of two would wait for the acknowledgement of the first.
                        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}");
                        if stream.write_all(answer.as_bytes()).is_err() {
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

/// Status, body, and whether the connection goes on.
pub fn exchange(stream: &mut TcpStream) -> std::io::Result<(u16, String, bool)> {
    write!(stream, "GET / HTTP/1.1\r\nhost: a\r\n\r\n")?;
    let mut reader = BufReader::new(stream);
    let (mut status, mut length, mut goes_on) = (0, 0, true);
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
        } else if let Some(value) = line.strip_prefix("content-length: ") {
            length = value.parse().unwrap();
        } else if line == "connection: close" {
            goes_on = false;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok((status, String::from_utf8(body).unwrap(), goes_on))
}

pub fn get(port: u16) -> Option<(u16, String)> {
    get_from("127.0.0.1", port)
}

pub fn get_from(host: &str, port: u16) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect((host, port)).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    exchange(&mut stream).ok().map(|(status, body, _)| (status, body))
}

/// Clients that send one request after another, each of which has to be answered with 200.
pub struct Load {
    done: Arc<AtomicBool>,
    /// Answers by `a` and by `b`.
    served: Arc<[AtomicU64; 2]>,
    clients: Vec<std::thread::JoinHandle<()>>,
}

impl Load {
    pub fn start(host: &'static str, port: u16) -> Self {
        let done = Arc::new(AtomicBool::new(false));
        let served = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
        let client = |_| {
            let (done, served) = (done.clone(), served.clone());
            std::thread::spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    let mut stream = TcpStream::connect((host, port)).expect("it listens all the time");
                    stream.set_read_timeout(Some(PATIENCE)).unwrap();
                    let mut goes_on = true;
                    while goes_on && !done.load(Ordering::Relaxed) {
                        let (status, body, more) = exchange(&mut stream).expect("no connection is lost");
                        assert_eq!(status, 200, "{body}");
                        served[usize::from(body == "b")].fetch_add(1, Ordering::Relaxed);
                        goes_on = more;
                    }
                }
            })
        };
        Self { clients: (0..4).map(client).collect(), done, served }
    }

    pub fn goes_to(&self, place: usize) {
        // What was under way may still come.
        std::thread::sleep(Duration::from_millis(20));
        let count = || self.served[place].load(Ordering::Relaxed);
        let before = count();
        wait_for("requests go where they are sent", || count() > before + 8);
    }

    /// How many were answered.
    pub fn finish(self) -> u64 {
        self.done.store(true, Ordering::Relaxed);
        self.clients.into_iter().for_each(|client| client.join().unwrap());
        self.served.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }
}

pub fn bootstrap(api: &str, plane: u16) -> String {
    format!(
        "node: {{id: test, cluster: test}}
dynamic_resources:
  ads_config: {{api_type: {api}, transport_api_version: V3, grpc_services: [{{envoy_grpc: {{cluster_name: plane}}}}]}}
  cds_config: {{ads: {{}}, resource_api_version: V3}}
  lds_config: {{ads: {{}}, resource_api_version: V3}}
static_resources:
  clusters:
  - {{name: plane, load_assignment: {{cluster_name: plane, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {plane}}}}}}}}}]}}]}}}}
"
    )
}

pub fn cluster(name: &str) -> String {
    format!("{{name: {name}, type: EDS, eds_cluster_config: {{eds_config: {{ads: {{}}, resource_api_version: V3}}}}}}")
}

pub fn endpoints(name: &str, port: u16) -> String {
    format!(
        "{{cluster_name: {name}, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}]}}]}}"
    )
}

pub fn listener(name: &str, port: u16, server: &str) -> String {
    let chain = chain("routes", server);
    format!(
        "name: {name}
address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
filter_chains:
- {chain}
"
    )
}

/// Chains for 127.0.0.1, 127.0.0.2 and 127.0.0.3: two of HTTP, each with the route table named, and one that passes bytes on.
pub fn chained_listener(name: &str, port: u16, tables: [&str; 2], server: &str) -> String {
    let [first, second] = tables.map(|table| chain(table, server));
    format!(
        "name: {name}
address: {{socket_address: {{address: 0.0.0.0, port_value: {port}}}}}
filter_chains:
- filter_chain_match: {{prefix_ranges: [{{address_prefix: 127.0.0.1, prefix_len: 32}}]}}
  {first}
- filter_chain_match: {{prefix_ranges: [{{address_prefix: 127.0.0.2, prefix_len: 32}}]}}
  {second}
- filter_chain_match: {{prefix_ranges: [{{address_prefix: 127.0.0.3, prefix_len: 32}}]}}
  filters:
  - name: tcp
    typed_config:
      '@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
      stat_prefix: late
      cluster: late
"
    )
}

/// The filters of a chain that takes its routes from `table`.
pub fn chain(table: &str, server: &str) -> String {
    format!(
        "filters:
  - name: hcm
    typed_config:
      '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
      stat_prefix: in
      server_name: {server}
      rds: {{route_config_name: {table}, config_source: {{ads: {{}}, resource_api_version: V3}}}}
      http_filters:
      - name: envoy.filters.http.router
        typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}"
    )
}

pub fn routes(to: &str) -> String {
    table("routes", to)
}

pub fn table(name: &str, to: &str) -> String {
    format!(
        "{{name: {name}, virtual_hosts: [{{name: all, domains: ['*'], routes: [{{match: {{prefix: /}}, route: {{cluster: {to}}}}}]}}]}}"
    )
}

/// The first field of a resource, which is its name.
pub fn name_of(bytes: &[u8]) -> String {
    let name = torus_xds::wire::length_values(bytes, 1).last().unwrap_or_default();
    String::from_utf8_lossy(name).into_owned()
}

/// A resource from YAML, in wire format.
pub fn encoded(kind: &str, yaml: &str) -> Vec<u8> {
    let source = Source::parse("test", yaml.as_bytes().to_vec()).unwrap();
    let encoded = torus_xds::encode(vec![source], MessageType::named(kind).unwrap(), UnknownFields::Refuse);
    encoded.unwrap_or_else(|error| panic!("{yaml}: {error:?}")).bytes
}
