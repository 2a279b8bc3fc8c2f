//! Istio's traffic simulation cases, judged on the configuration that translation emits.
//!
//! The corpus is read at `../shared/corpus` beside the repository or at `$TORUS_CORPUS`; without it the test says so and passes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::core::v3::{address::Address, socket_address::PortSpecifier};
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::config::route::v3::{RouteConfiguration, route::Action, route_action::ClusterSpecifier};
use envoy_types::pb::google::protobuf::value::Kind;
use serde_json::{Value, json};
use torus_control::evaluate::{Call, Security, Spoken, evaluate};
use torus_control::model::{Mesh, MeshOptions, Proxy, ProxyKind};
use torus_control::source::{Object, Place, ResourceName};
use torus_control::translate;

/// Calls and checks that came out as Istio's; raise it when more do.
const FLOOR: usize = 281;

fn corpus() -> Option<PathBuf> {
    let beside = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/corpus");
    let folder = std::env::var_os("TORUS_CORPUS").map_or_else(beside, PathBuf::from).join("istio-simulation");
    folder.is_dir().then_some(folder)
}

fn strings(value: Option<&Value>) -> BTreeMap<String, String> {
    let fields = value.and_then(Value::as_object).into_iter().flatten();
    fields.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect()
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn object(content: Value) -> Object {
    let api = text(&content, "apiVersion");
    let (group, version) = api.split_once('/').unwrap_or(("", api));
    let metadata = content.get("metadata").cloned().unwrap_or_default();
    let namespace = text(&metadata, "namespace");
    Object {
        resource: ResourceName {
            group: group.to_owned(),
            kind: text(&content, "kind").to_owned(),
            namespace: if namespace.is_empty() { "default" } else { namespace }.to_owned(),
            name: text(&metadata, "name").to_owned(),
        },
        version: version.to_owned(),
        labels: strings(metadata.get("labels")),
        annotations: strings(metadata.get("annotations")),
        content,
        place: Place { file: Arc::from("case.yaml"), line: 1, column: 1 },
        places: Arc::default(),
    }
}

fn objects(case: &Value) -> Vec<Object> {
    let documents = ["config", "kube_config"].into_iter().flat_map(|field| text(case, field).split("\n---"));
    let written =
        documents.map(|document| document.trim_start_matches("---")).filter(|document| !document.trim().is_empty());
    let mut list: Vec<Object> =
        written.map(|document| object(serde_saphyr::from_str(document).expect("the corpus is YAML"))).collect();
    list.extend(registry(case));
    list.extend(case["config_objects"].as_array().into_iter().flatten().cloned().map(object));
    list
}

/// Services and instances that a case puts straight into the registry, as Kubernetes' objects.
fn registry(case: &Value) -> Vec<Object> {
    let part = |hostname: &str, index: usize| hostname.split('.').nth(index).unwrap_or_default().to_owned();
    let services = case["registry"]["services"].as_array().into_iter().flatten().map(|service| {
        let hostname = text(service, "hostname");
        let ports: Vec<Value> = service["ports"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|port| json!({"name": port["name"], "port": port["port"], "appProtocol": port["protocol"]}))
            .collect();
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": part(hostname, 0), "namespace": part(hostname, 1)},
            "spec": {"clusterIP": service["default_address"], "ports": ports}})
    });
    let instances = case["registry"]["instances"].as_array().into_iter().flatten().enumerate();
    let instances = instances.map(|(index, instance)| {
        let hostname = text(instance, "service");
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": format!("slice-{index}"), "namespace": part(hostname, 1),
                "labels": {"kubernetes.io/service-name": part(hostname, 0)}},
            "endpoints": [{"addresses": instance["addresses"]}],
            "ports": [{"name": instance["service_port_name"], "port": instance["endpoint_port"]}]})
    });
    services.chain(instances).map(object).collect()
}

fn proxy(case: &Value) -> Proxy {
    let given = &case["proxy"];
    let addresses = given["ip_addresses"].as_array().into_iter().flatten();
    Proxy {
        kind: if text(given, "type") == "router" { ProxyKind::Gateway } else { ProxyKind::Sidecar },
        id: text(given, "id").to_owned(),
        namespace: text(given, "config_namespace").to_owned(),
        metadata_namespace: text(&given["metadata"], "NAMESPACE").to_owned(),
        labels: strings(given.get("labels")),
        ip_addresses: addresses.filter_map(Value::as_str).map(str::to_owned).collect(),
        locality: String::new(),
        metadata: strings(given.get("metadata")),
    }
}

fn call(given: &Value) -> Call {
    let or = |field: &str, default: &str| {
        if text(given, field).is_empty() { default } else { text(given, field) }.to_owned()
    };
    let spoken = match text(given, "protocol") {
        "http" => Spoken::Http,
        "http2" => Spoken::Http2,
        _ => Spoken::Tcp,
    };
    let security = match text(given, "tls") {
        "tls" => Security::Tls,
        "mtls" => Security::MutualTls,
        _ => Security::Plaintext,
    };
    let host = text(given, "host_header").to_owned();
    let alpn = match (security, spoken) {
        (Security::MutualTls, Spoken::Http) => "istio-http/1.1",
        (Security::MutualTls, Spoken::Http2) => "istio-h2",
        (Security::MutualTls, Spoken::Tcp) => "istio",
        (Security::Tls, Spoken::Http) => "http/1.1",
        (Security::Tls, Spoken::Http2) => "h2",
        _ => "",
    };
    Call {
        address: or("address", "1.3.3.7"),
        port: u32::try_from(given["port"].as_u64().unwrap_or_default()).unwrap_or_default(),
        spoken,
        security,
        sni: or("sni", if security == Security::Tls { &host } else { "" }),
        host,
        path: or("path", "/"),
        headers: None,
        alpn: or("alpn", alpn),
        inbound: text(given, "call_mode") == "inbound",
        mesh_certificate: or("mtls_secret_config_name", "default"),
    }
}

/// How the outcome of one call differs from Istio's.
fn differences(one: &Value, generated: &Generated) -> Vec<String> {
    let outcome = evaluate(&generated.listeners, &generated.routes, &call(&one["call"]));
    let expect = &one["expect"];
    let strict = expect["strict"].as_bool().unwrap_or_default();
    let error = outcome.failure.map(|failure| failure.name()).unwrap_or_default().to_owned();
    let names = [
        ("listener_matched", &outcome.listener),
        ("filter_chain_matched", &outcome.filter_chain),
        ("route_config_matched", &outcome.route_config),
        ("virtual_host_matched", &outcome.virtual_host),
        ("route_matched", &outcome.route),
        ("cluster_matched", &outcome.cluster),
    ];
    let compared = names.into_iter().filter(|(field, _)| strict || !text(expect, field).is_empty());
    std::iter::once(("error", &error))
        .chain(compared)
        .filter(|(field, got)| text(expect, field) != got.as_str())
        .map(|(field, got)| format!("{}: {field} is `{got}`, Istio's `{}`", text(one, "name"), text(expect, field)))
        .collect()
}

struct Generated {
    listeners: Vec<Listener>,
    routes: Vec<RouteConfiguration>,
    clusters: Vec<Cluster>,
}

impl Generated {
    fn of(case: &Value) -> Self {
        let options = MeshOptions {
            short_name_suffix: String::new(),
            mesh_config: case.get("mesh_config").cloned().unwrap_or_default(),
            ..MeshOptions::default()
        };
        let (mesh, _) = Mesh::build(&objects(case), &options);
        let proxy = proxy(case);
        Self {
            listeners: translate::listeners(&mesh, &proxy).into_iter().map(|(_, listener)| listener).collect(),
            routes: translate::routes(&mesh, &proxy).into_iter().map(|(_, routes)| routes).collect(),
            clusters: translate::clusters(&mesh, &proxy).into_iter().map(|(_, cluster)| cluster).collect(),
        }
    }
}

/// What `expect_inbound_clusters` says against what was made.
fn inbound_clusters(case: &Value, generated: &Generated) -> Vec<String> {
    let mut wanted = BTreeMap::new();
    for (name, expect) in case["expect_inbound_clusters"].as_object().into_iter().flatten() {
        wanted.insert(name.clone(), (list(&expect["endpoints"]), list(&expect["telemetry_services"])));
    }
    let made = generated.clusters.iter().filter(|cluster| cluster.name.starts_with("inbound"));
    let made: BTreeMap<String, (Vec<String>, Vec<String>)> =
        made.map(|cluster| (cluster.name.clone(), (endpoints(cluster), services(cluster)))).collect();
    if made == wanted { Vec::new() } else { vec![format!("inbound clusters are {made:?}, Istio's {wanted:?}")] }
}

fn list(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn endpoints(cluster: &Cluster) -> Vec<String> {
    let groups = cluster.load_assignment.iter().flat_map(|assignment| &assignment.endpoints);
    let addresses = groups.flat_map(|group| &group.lb_endpoints).filter_map(|endpoint| {
        let Some(HostIdentifier::Endpoint(endpoint)) = &endpoint.host_identifier else { return None };
        Some(match endpoint.address.as_ref()?.address.as_ref()? {
            Address::SocketAddress(socket) => match socket.port_specifier.as_ref()? {
                PortSpecifier::PortValue(port) => format!("{}:{port}", socket.address),
                PortSpecifier::NamedPort(name) => format!("{}:{name}", socket.address),
            },
            Address::Pipe(pipe) => pipe.path.clone(),
            _ => return None,
        })
    });
    addresses.collect()
}

fn services(cluster: &Cluster) -> Vec<String> {
    let fields = cluster.metadata.as_ref().and_then(|metadata| metadata.filter_metadata.get("istio"));
    let Some(Kind::ListValue(list)) = fields.and_then(|fields| fields.fields.get("services")?.kind.as_ref()) else {
        return Vec::new();
    };
    let hosts = list.values.iter().filter_map(|value| match value.kind.as_ref()? {
        Kind::StructValue(service) => match service.fields.get("host")?.kind.as_ref()? {
            Kind::StringValue(host) => Some(host.clone()),
            _ => None,
        },
        _ => None,
    });
    hosts.collect()
}

/// What `expect_route_config` says against what was made.
fn route_config(case: &Value, generated: &Generated) -> Vec<String> {
    let expect = &case["expect_route_config"];
    let made = generated.routes.iter().find(|routes| routes.name == text(expect, "name"));
    let domains = expect["domains"].as_object().into_iter().flatten();
    domains
        .filter_map(|(domain, wanted)| {
            let host = made.and_then(|made| made.virtual_hosts.iter().find(|host| host.domains.contains(domain)));
            let mut clusters: Vec<String> = host
                .into_iter()
                .flat_map(|host| &host.routes)
                .filter_map(|route| match &route.action {
                    Some(Action::Route(action)) => match &action.cluster_specifier {
                        Some(ClusterSpecifier::Cluster(cluster)) => Some(cluster.clone()),
                        _ => None,
                    },
                    _ => None,
                })
                .collect();
            clusters.sort();
            let wanted = list(wanted);
            (clusters != wanted).then(|| format!("`{domain}` leads to {clusters:?}, Istio's to {wanted:?}"))
        })
        .collect()
}

/// The part of `expect_structure` that counts listeners of a port and the endpoints of a cluster.
fn structure(case: &Value, generated: &Generated) -> Vec<String> {
    let expect = &case["expect_structure"];
    let mut found = Vec::new();
    if let Some(on_port) = expect.get("listeners_on_port") {
        let suffix = format!("_{}", on_port["port"]);
        let count = generated.listeners.iter().filter(|listener| listener.name.ends_with(&suffix)).count() as u64;
        let fits = on_port["exactly"].as_u64().is_none_or(|wanted| count == wanted)
            && on_port["at_least"].as_u64().is_none_or(|wanted| count >= wanted);
        if !fits {
            found.push(format!("{count} listeners on the port, Istio has {on_port}"));
        }
    }
    if let Some(wanted) = expect.get("cluster") {
        let cluster = generated.clusters.iter().find(|cluster| cluster.name == text(wanted, "name"));
        let count = cluster.map_or(0, |cluster| endpoints(cluster).len()) as u64;
        if wanted["endpoints_in_first_group"].as_u64() != Some(count) {
            found.push(format!("the cluster has {count} endpoints, Istio's as {wanted} says"));
        }
    }
    found
}

#[test]
fn proxies_decide_as_istios_do() {
    let Some(folder) = corpus() else {
        eprintln!("skipped: no corpus at ../shared/corpus, and TORUS_CORPUS is not set");
        return;
    };
    let entries =
        std::fs::read_dir(folder).expect("the corpus is readable").map(|entry| entry.expect("an entry").path());
    let mut files: Vec<PathBuf> = entries.filter(|path| path.to_string_lossy().contains("__")).collect();
    files.sort();
    let (mut passed, mut total) = (0, 0);
    let mut failures = Vec::new();
    let mut judge = |name: &str, found: Vec<String>| {
        total += 1;
        passed += usize::from(found.is_empty());
        failures.extend(found.into_iter().map(|found| format!("{name}: {found}")));
    };
    for file in files {
        let case: Value =
            serde_json::from_slice(&std::fs::read(&file).expect("the corpus is readable")).expect("the corpus is JSON");
        let generated = Generated::of(&case);
        let name = text(&case, "name");
        for one in case["calls"].as_array().into_iter().flatten() {
            judge(name, differences(one, &generated));
        }
        match text(&case, "kind") {
            "inbound_clusters" => judge(name, inbound_clusters(&case, &generated)),
            "route_config" => judge(name, route_config(&case, &generated)),
            "structural" => judge(name, structure(&case, &generated)),
            _ => {}
        }
    }
    println!("{passed} of {total} calls and checks as Istio's");
    for failure in &failures {
        println!("  {failure}");
    }
    assert!(passed >= FLOOR, "{passed} of {total} calls and checks, floor {FLOOR}:\n{}", failures.join("\n"));
}
