//! What is generated from Istio's samples is what a real Envoy accepts, for a gateway and for a sidecar.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use envoy_types::pb::envoy::config::bootstrap::v3::{
    Bootstrap,
    bootstrap::{DynamicResources, StaticResources},
};
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::core::v3::{
    ApiConfigSource, ApiVersion, GrpcService, Node, TransportSocket, api_config_source::ApiType, grpc_service,
};
use envoy_types::pb::envoy::config::listener::v3::{FilterChain, Listener, filter::ConfigType};
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, http_connection_manager::RouteSpecifier,
};
use prost::Message;
use torus_control::model::{Mesh, MeshOptions, Proxy, ProxyKind};
use torus_control::source::{Object, read};
use torus_control::translate;

fn envoy() -> Option<PathBuf> {
    let named = std::env::var_os("TORUS_ENVOY").map(PathBuf::from);
    let cache = std::env::var_os("TORUS_CACHE").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/torus"));
    let path = named.or_else(|| Some(cache.or(home)?.join("bin/envoy")))?;
    path.exists().then_some(path)
}

fn corpus() -> Option<PathBuf> {
    let beside = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/corpus");
    let folder = std::env::var_os("TORUS_CORPUS").map_or_else(beside, PathBuf::from);
    folder.join("istio-samples").is_dir().then_some(folder)
}

/// All objects below `folder`; of those with one name the first, since samples are variants of each other.
fn objects(folder: &Path) -> Vec<Object> {
    let (mut folders, mut files) = (vec![folder.to_owned()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    let mut found: Vec<Object> = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        for object in read(&file.to_string_lossy(), &text).unwrap() {
            if !found.iter().any(|known| known.resource == object.resource) {
                found.push(object);
            }
        }
    }
    found
}

fn proxy(kind: ProxyKind) -> Proxy {
    Proxy {
        kind,
        id: "proxy.default".to_owned(),
        namespace: "default".to_owned(),
        metadata_namespace: "default".to_owned(),
        labels: BTreeMap::from([("istio".to_owned(), "ingressgateway".to_owned())]),
        ip_addresses: vec!["10.0.0.1".to_owned()],
        locality: String::new(),
        metadata: BTreeMap::new(),
    }
}

/// Puts the routes into the listeners, so that Envoy judges them too.
fn with_routes(listener: &mut Listener, routes: &[RouteConfiguration]) {
    let chains: Vec<&mut FilterChain> =
        listener.filter_chains.iter_mut().chain(listener.default_filter_chain.iter_mut()).collect();
    for filter in chains.into_iter().flat_map(|chain| &mut chain.filters) {
        let Some(ConfigType::TypedConfig(any)) = &mut filter.config_type else { continue };
        if !any.type_url.ends_with(".HttpConnectionManager") {
            continue;
        }
        let mut manager = HttpConnectionManager::decode(any.value.as_slice()).unwrap();
        if let Some(RouteSpecifier::Rds(rds)) = &manager.route_specifier {
            let found = routes.iter().find(|routes| routes.name == rds.route_config_name).unwrap();
            manager.route_specifier = Some(RouteSpecifier::RouteConfig(found.clone()));
            any.value = manager.encode_to_vec();
        }
    }
}

/// Certificates that samples name lie in no file here; Envoy would look for them.
fn without_files(socket: &mut Option<TransportSocket>) {
    let names_file = |socket: &TransportSocket| socket.encode_to_vec().windows(5).any(|bytes| bytes == b"/etc/");
    if socket.as_ref().is_some_and(names_file) {
        *socket = None;
    }
}

fn bootstrap(mesh: &Mesh, proxy: &Proxy) -> Bootstrap {
    let routes: Vec<RouteConfiguration> =
        translate::routes(mesh, proxy).into_iter().map(|(_, routes)| routes).collect();
    let mut listeners: Vec<Listener> =
        translate::listeners(mesh, proxy).into_iter().map(|(_, listener)| listener).collect();
    listeners.iter_mut().for_each(|listener| with_routes(listener, &routes));
    let chains = listeners.iter_mut().flat_map(|listener| &mut listener.filter_chains);
    chains.for_each(|chain| without_files(&mut chain.transport_socket));
    let mut clusters: Vec<Cluster> = translate::clusters(mesh, proxy).into_iter().map(|(_, cluster)| cluster).collect();
    clusters.iter_mut().for_each(|cluster| without_files(&mut cluster.transport_socket));
    // Where the proxy asks for the rest, and where its certificates come from.
    clusters.extend(["xds-grpc", "sds-grpc"].map(|name| Cluster { name: name.to_owned(), ..Cluster::default() }));
    let ads = ApiConfigSource {
        api_type: ApiType::Grpc.into(),
        transport_api_version: ApiVersion::V3.into(),
        grpc_services: vec![GrpcService {
            target_specifier: Some(grpc_service::TargetSpecifier::EnvoyGrpc(grpc_service::EnvoyGrpc {
                cluster_name: "xds-grpc".to_owned(),
                ..grpc_service::EnvoyGrpc::default()
            })),
            ..GrpcService::default()
        }],
        ..ApiConfigSource::default()
    };
    Bootstrap {
        node: Some(Node { id: "proxy".to_owned(), cluster: "proxy".to_owned(), ..Node::default() }),
        dynamic_resources: Some(DynamicResources { ads_config: Some(ads), ..DynamicResources::default() }),
        static_resources: Some(StaticResources { listeners, clusters, ..StaticResources::default() }),
        ..Bootstrap::default()
    }
}

#[test]
fn envoy_accepts_what_samples_become() {
    let (Some(corpus), Some(envoy)) = (corpus(), envoy()) else {
        eprintln!(
            "skipped: no corpus at ../shared/corpus or $TORUS_CORPUS, or no Envoy; scripts/install-test-tools.sh installs it"
        );
        return;
    };
    let scratch = tempfile::tempdir().unwrap();
    for folder in ["istio-samples", "istio-config-samples"] {
        let (mesh, _) = Mesh::build(&objects(&corpus.join(folder)), &MeshOptions::default());
        for kind in [ProxyKind::Gateway, ProxyKind::Sidecar] {
            let bootstrap = bootstrap(&mesh, &proxy(kind));
            let made = bootstrap.static_resources.as_ref().unwrap();
            let counts = format!("{} listeners, {} clusters", made.listeners.len(), made.clusters.len());
            assert!(made.listeners.len() > 1, "{folder} for a {kind:?}: {counts}");
            let file = scratch.path().join("bootstrap.pb");
            std::fs::write(&file, bootstrap.encode_to_vec()).unwrap();
            let output = Command::new(&envoy)
                .args(["--mode", "validate", "--use-dynamic-base-id", "--log-level", "error", "-c"])
                .arg(&file)
                .stdin(Stdio::null())
                .output()
                .unwrap();
            let told = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{folder} for a {kind:?}: {counts}: {told}");
            println!("{folder} for a {kind:?}: Envoy accepts {counts}");
        }
    }
}
