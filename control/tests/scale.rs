//! A large mesh: one endpoint changed is one assignment to each proxy and nothing else; one virtual service changed is one route table to
//! each gateway; a thousand proxies that come back at once are served; and what one gateway's translation costs.
//!
//! Small by default; `TORUS_SCALE=full` is 10,000 services with 100,000 endpoints and 100 proxies, for figures:
//! `TORUS_SCALE=full cargo test --release -p torus-control --test scale -- --nocapture --test-threads 1`.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use envoy_types::pb::google::protobuf::{Struct, Value, value::Kind};
use tokio::sync::mpsc;
use torus_control::model::{Mesh, MeshOptions, Proxy};
use torus_control::source::{Object, read};
use torus_control::translate;
use torus_xds::serving::url;

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// How large the mesh is.
struct Size {
    services: usize,
    endpoints_each: usize,
    proxies: usize,
    changes: usize,
}

const IN_FILE: usize = 10;

/// Ten services with their endpoints; `last` is the last byte of the first endpoint's address.
fn file(number: usize, size: &Size, last: usize) -> String {
    let mut text = String::new();
    for index in number * IN_FILE..((number + 1) * IN_FILE).min(size.services) {
        let (name, namespace) = (format!("service-{index}"), format!("team-{}", index % 100));
        let (high, low) = (index / 250 % 250, index % 250);
        text += &format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{clusterIP: 10.{high}.{low}.1, ports: [{{name: http, port: 80}}]}}\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{kubernetes.io/service-name: {name}}}}}\naddressType: IPv4\nports: [{{name: http, port: 8080}}]\nendpoints:\n"
        );
        for endpoint in 0..size.endpoints_each {
            let byte = if endpoint == 0 && index % IN_FILE == 0 { last } else { endpoint + 10 };
            text += &format!("- addresses: [11.{high}.{low}.{byte}]\n");
        }
        text += "---\n";
    }
    text
}

fn torusd(folder: &Path) -> (Process, SocketAddr) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_torusd"))
        .args(["--xds-address", "127.0.0.1:0", "--http-address", "127.0.0.1:0", "--log", "info", "--config-folder"])
        .arg(folder)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let address = loop {
        let line = lines.next().expect("torusd says where it serves").unwrap();
        if let Some((_, addresses)) = line.split_once("xDS on ") {
            break addresses.split_once(", HTTP").unwrap().0.parse().unwrap();
        }
    };
    std::thread::spawn(move || lines.for_each(drop));
    (Process(child), address)
}

/// CPU time of a process so far and its resident memory.
fn spent(process: u32) -> (Duration, usize) {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    (Duration::from_millis(ticks * 10), line.split_whitespace().nth(1).unwrap().parse().unwrap())
}

/// What a proxy tells: how many assignments came in one push.
type Told = mpsc::UnboundedSender<usize>;

async fn proxy(number: usize, xds: SocketAddr, told: Told) {
    let mut client = AggregatedDiscoveryServiceClient::connect(format!("http://{xds}"))
        .await
        .unwrap()
        .max_decoding_message_size(256 << 20);
    let (sender, receiver) = mpsc::channel(8);
    let namespace = Value { kind: Some(Kind::StringValue(format!("team-{number}"))) };
    let node = Node {
        id: format!("sidecar~12.0.0.{number}~proxy-{number}.team-{number}~team-{number}.svc.cluster.local"),
        metadata: Some(Struct { fields: [("NAMESPACE".to_owned(), namespace)].into() }),
        ..Node::default()
    };
    let ask = |type_url: &str, names: Vec<String>, node: Option<Node>| DeltaDiscoveryRequest {
        node,
        type_url: type_url.to_owned(),
        resource_names_subscribe: names,
        ..DeltaDiscoveryRequest::default()
    };
    sender.send(ask(url::CLUSTER, Vec::new(), Some(node))).await.unwrap();
    let requests = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let mut answers = client.delta_aggregated_resources(requests).await.unwrap().into_inner();
    while let Ok(Some(answer)) = answers.message().await {
        let acknowledge = DeltaDiscoveryRequest {
            type_url: answer.type_url.clone(),
            response_nonce: answer.nonce,
            ..DeltaDiscoveryRequest::default()
        };
        sender.send(acknowledge).await.unwrap();
        if answer.type_url == url::CLUSTER {
            let names = answer.resources.iter().map(|resource| resource.name.clone());
            let names = names.filter(|name| name.starts_with("outbound|")).collect();
            sender.send(ask(url::ENDPOINTS, names, None)).await.unwrap();
        } else if told.send(answer.resources.len()).is_err() {
            return;
        }
    }
}

async fn hear(receiver: &mut mpsc::UnboundedReceiver<usize>, proxies: usize) -> Vec<usize> {
    let mut heard = Vec::new();
    while heard.len() < proxies {
        let next = tokio::time::timeout(Duration::from_secs(120), receiver.recv()).await;
        heard.push(next.expect("a push in time").unwrap());
    }
    heard
}

/// 10,000 services with 100,000 endpoints and 100 proxies, or a small mesh of the same shape.
fn size() -> Size {
    if std::env::var("TORUS_SCALE").is_ok_and(|scale| scale == "full") {
        Size { services: 10_000, endpoints_each: 10, proxies: 100, changes: 20 }
    } else {
        Size { services: 60, endpoints_each: 4, proxies: 4, changes: 3 }
    }
}

/// A gateway for every host, and for each `every`th service a virtual service that leads there.
fn routes(size: &Size, every: usize) -> Vec<String> {
    let gateway = "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: edge, namespace: edge}\nspec:\n  selector: {istio: ingressgateway}\n  servers: [{port: {number: 8080, name: http, protocol: HTTP}, hosts: ['*']}]\n";
    let services = (0..size.services).step_by(every).map(|index| virtual_service(index, 5));
    std::iter::once(gateway.to_owned()).chain(services).collect()
}

fn virtual_service(index: usize, timeout: usize) -> String {
    let namespace = index % 100;
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: route-{index}, namespace: team-{namespace}}}\nspec:\n  hosts: [service-{index}.example]\n  gateways: [edge/edge]\n  http: [{{timeout: {timeout}s, route: [{{destination: {{host: service-{index}.team-{namespace}.svc.cluster.local}}}}]}}]\n"
    )
}

fn gateway(number: usize) -> Node {
    let text = |text: &str| Value { kind: Some(Kind::StringValue(text.to_owned())) };
    let labels = Struct { fields: [("istio".to_owned(), text("ingressgateway"))].into() };
    let labels = Value { kind: Some(Kind::StructValue(labels)) };
    let fields = [("NAMESPACE".to_owned(), text("edge")), ("LABELS".to_owned(), labels)];
    Node {
        id: format!("router~12.1.{}.{}~edge-{number}.edge~edge.svc.cluster.local", number / 250, number % 250),
        metadata: Some(Struct { fields: fields.into() }),
        ..Node::default()
    }
}

/// A gateway that takes all there is for it, acknowledges it, and tells the type of each push after its acknowledgement.
async fn edge(number: usize, xds: SocketAddr, told: mpsc::UnboundedSender<&'static str>) {
    let mut client = AggregatedDiscoveryServiceClient::connect(format!("http://{xds}"))
        .await
        .unwrap()
        .max_decoding_message_size(256 << 20);
    let (sender, receiver) = mpsc::channel(16);
    let ask = |type_url: &str, names: Vec<String>| DeltaDiscoveryRequest {
        type_url: type_url.to_owned(),
        resource_names_subscribe: names,
        ..DeltaDiscoveryRequest::default()
    };
    let first = DeltaDiscoveryRequest { node: Some(gateway(number)), ..ask(url::CLUSTER, Vec::new()) };
    sender.send(first).await.unwrap();
    sender.send(ask(url::LISTENER, Vec::new())).await.unwrap();
    sender.send(ask(url::ROUTES, vec!["http.8080".to_owned()])).await.unwrap();
    let requests = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let mut answers = client.delta_aggregated_resources(requests).await.unwrap().into_inner();
    while let Ok(Some(answer)) = answers.message().await {
        let acknowledge = DeltaDiscoveryRequest { response_nonce: answer.nonce, ..ask(&answer.type_url, Vec::new()) };
        sender.send(acknowledge).await.unwrap();
        let kinds = [url::CLUSTER, url::ENDPOINTS, url::LISTENER, url::ROUTES];
        let kind = kinds.into_iter().find(|kind| *kind == answer.type_url).unwrap();
        if kind == url::CLUSTER {
            let names = answer.resources.iter().map(|resource| resource.name.clone());
            let names = names.filter(|name| name.starts_with("outbound|")).collect();
            sender.send(ask(url::ENDPOINTS, names)).await.unwrap();
        }
        if told.send(kind).is_err() {
            return;
        }
    }
}

/// Waits until `count` pushes of a type were acknowledged; how many of other types came meanwhile.
async fn until(receiver: &mut mpsc::UnboundedReceiver<&'static str>, kind: &str, count: usize) -> usize {
    let (mut found, mut others) = (0, 0);
    while found < count {
        let next = tokio::time::timeout(Duration::from_secs(120), receiver.recv()).await;
        if next.expect("a push in time").unwrap() == kind { found += 1 } else { others += 1 }
    }
    others
}

/// A folder of the mesh in memory where that can be.
fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap()
}

#[test]
fn one_virtual_service_is_one_route_table() {
    let size = size();
    let returning = if size.services > 1000 { 1000 } else { 20 };
    let every = IN_FILE;
    let scratch = scratch();
    let folder = scratch.path().join("mesh");
    std::fs::create_dir(&folder).unwrap();
    for number in 0..size.services.div_ceil(IN_FILE) {
        std::fs::write(folder.join(format!("{number:04}.yaml")), file(number, &size, 10)).unwrap();
    }
    for (index, text) in routes(&size, every).into_iter().enumerate() {
        std::fs::write(folder.join(format!("route-{index:04}.yaml")), text).unwrap();
    }
    let (process, xds) = torusd(&folder);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let (sender, mut receiver) = mpsc::unbounded_channel();
        for number in 0..size.proxies {
            tokio::spawn(edge(number, xds, sender.clone()));
        }
        until(&mut receiver, url::ROUTES, size.proxies).await;
        while tokio::time::timeout(Duration::from_secs(1), receiver.recv()).await.is_ok() {}
        let (before, resident) = spent(process.0.id());
        let mut times = Vec::new();
        for change in 0..size.changes {
            let index = change * 7 % size.services.div_ceil(every);
            let new = scratch.path().join("new.yaml");
            std::fs::write(&new, virtual_service(index * every, 6 + change)).unwrap();
            let written = Instant::now();
            std::fs::rename(&new, folder.join(format!("route-{:04}.yaml", index + 1))).unwrap();
            let others = until(&mut receiver, url::ROUTES, size.proxies).await;
            times.push(written.elapsed());
            assert_eq!(others, 0, "nothing but the route table");
        }
        let cpu = spent(process.0.id()).0.saturating_sub(before) / u32::try_from(size.changes).unwrap();
        times.sort();
        println!(
            "{} services, {} endpoints, {} virtual services, {} gateways: one virtual service: file to last ACK median {:?}, worst {:?}; {cpu:?} CPU of torusd",
            size.services,
            size.services * size.endpoints_each,
            size.services.div_ceil(every),
            size.proxies,
            times[times.len() / 2],
            times[times.len() - 1],
        );
        drop(receiver);
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let connecting = Instant::now();
        for number in 0..returning {
            tokio::spawn(edge(1000 + number, xds, sender.clone()));
        }
        until(&mut receiver, url::ROUTES, returning).await;
        let served = connecting.elapsed();
        let (_, after) = spent(process.0.id());
        println!("{returning} gateways connect at once: all served after {served:?}; resident {resident} KB before, {after} KB then");
    });
}

#[test]
fn one_gateway_is_translated() {
    let size = size();
    let mut objects: Vec<Object> = Vec::new();
    for number in 0..size.services.div_ceil(IN_FILE) {
        objects.extend(read(&format!("{number}.yaml"), &file(number, &size, 10)).unwrap());
    }
    objects.extend(routes(&size, 1).iter().flat_map(|text| read("routes.yaml", text).unwrap()));
    let started = Instant::now();
    let (mesh, _) = Mesh::build(&objects, &MeshOptions::default());
    let built = started.elapsed();
    let proxy = Proxy::from_node(&gateway(1)).unwrap();
    let started = Instant::now();
    let clusters = translate::clusters(&mesh, &proxy);
    // A proxy asks for those of the clusters that it was sent.
    let names = clusters.iter().map(|(name, _)| name.clone()).collect();
    let endpoints = translate::endpoints(&mesh, &proxy, Some(&names));
    let listeners = translate::listeners(&mesh, &proxy);
    let routes = translate::routes(&mesh, &proxy);
    let translated = started.elapsed();
    println!(
        "{} services, {} endpoints, {} virtual services: mesh built in {built:?}; one gateway translated in {translated:?}: {} clusters, {} assignments",
        size.services,
        size.services * size.endpoints_each,
        size.services,
        clusters.len(),
        endpoints.len()
    );
    // The black hole, and each service.
    assert_eq!((clusters.len(), endpoints.len()), (size.services + 1, size.services));
    assert_eq!((listeners.len(), routes[0].1.virtual_hosts.len()), (1, size.services));
}

#[test]
fn one_endpoint_is_one_assignment() {
    let size = size();
    let scratch = scratch();
    let folder = scratch.path().join("mesh");
    std::fs::create_dir(&folder).unwrap();
    let write = |number: usize, last: usize| {
        let new = scratch.path().join("new.yaml");
        std::fs::write(&new, file(number, &size, last)).unwrap();
        std::fs::rename(&new, folder.join(format!("{number:04}.yaml"))).unwrap();
    };
    let files = size.services.div_ceil(IN_FILE);
    (0..files).for_each(|number| write(number, 10));
    let started = Instant::now();
    let (process, xds) = torusd(&folder);
    let ready = started.elapsed();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let (sender, mut receiver) = mpsc::unbounded_channel();
        for number in 0..size.proxies {
            tokio::spawn(proxy(number, xds, sender.clone()));
        }
        let connecting = Instant::now();
        let all = hear(&mut receiver, size.proxies).await;
        assert!(all.iter().all(|count| *count == size.services), "{all:?}");
        let connected = connecting.elapsed();
        let (before, resident) = spent(process.0.id());
        let mut times = Vec::new();
        for change in 0..size.changes {
            let written = Instant::now();
            write(change * 7 % files, 200 + change);
            let heard = hear(&mut receiver, size.proxies).await;
            times.push(written.elapsed());
            assert_eq!(heard, vec![1; size.proxies], "the changed assignment and no other");
        }
        let cpu = spent(process.0.id()).0.saturating_sub(before) / u32::try_from(size.changes).unwrap();
        times.sort();
        println!(
            "{} services, {} endpoints, {} proxies: ready after {ready:?}, all connected after {connected:?}, resident {resident} KB;\n\
             one endpoint: file to last ACK median {:?}, worst {:?}; {cpu:?} CPU of torusd",
            size.services,
            size.services * size.endpoints_each,
            size.proxies,
            times[times.len() / 2],
            times[times.len() - 1],
        );
    });
}
