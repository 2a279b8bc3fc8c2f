//! Istio's traffic simulation cases for gateways, judged on the configuration that translation emits.
//!
//! The corpus is read at `../shared/corpus` beside the repository or at `$TORUS_CORPUS`; without it the test says so and passes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;
use torus_control::evaluate::{Call, Security, Spoken, evaluate};
use torus_control::model::{Mesh, MeshOptions, Proxy};
use torus_control::source::{Object, Place, ResourceName};
use torus_control::translate;

/// Calls of gateway cases that came out as Istio's; raise it when more do.
const FLOOR: usize = 24;

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
    list.extend(case["config_objects"].as_array().into_iter().flatten().cloned().map(object));
    list
}

fn proxy(case: &Value) -> Proxy {
    let given = &case["proxy"];
    let addresses = given["ip_addresses"].as_array().into_iter().flatten();
    Proxy {
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
fn differences(case: &Value, one: &Value, generated: &Generated) -> Vec<String> {
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
        .map(|(field, got)| {
            format!(
                "{}: {}: {field} is `{got}`, Istio's `{}`",
                text(case, "name"),
                text(one, "name"),
                text(expect, field)
            )
        })
        .collect()
}

struct Generated {
    listeners: Vec<envoy_types::pb::envoy::config::listener::v3::Listener>,
    routes: Vec<envoy_types::pb::envoy::config::route::v3::RouteConfiguration>,
}

#[test]
fn gateways_decide_as_istio_does() {
    let Some(folder) = corpus() else {
        eprintln!("skipped: no corpus at ../shared/corpus, and TORUS_CORPUS is not set");
        return;
    };
    let entries =
        std::fs::read_dir(folder).expect("the corpus is readable").map(|entry| entry.expect("an entry").path());
    let mut files: Vec<PathBuf> = entries.filter(|path| path.to_string_lossy().contains("__")).collect();
    files.sort();
    let (mut passed, mut total, mut others) = (0, 0, 0);
    let mut failures = Vec::new();
    for file in files {
        let case: Value =
            serde_json::from_slice(&std::fs::read(&file).expect("the corpus is readable")).expect("the corpus is JSON");
        let calls = case["calls"].as_array().map_or(&[][..], Vec::as_slice);
        if text(&case["proxy"], "type") != "router" || text(&case, "kind") != "calls" {
            others += calls.len().max(1);
            continue;
        }
        let options = MeshOptions { short_name_suffix: String::new(), ..MeshOptions::default() };
        let (mesh, _) = Mesh::build(&objects(&case), &options);
        let proxy = proxy(&case);
        let generated = Generated {
            listeners: translate::listeners(&mesh, &proxy).into_iter().map(|(_, listener)| listener).collect(),
            routes: translate::routes(&mesh, &proxy).into_iter().map(|(_, routes)| routes).collect(),
        };
        for one in calls {
            total += 1;
            let found = differences(&case, one, &generated);
            passed += usize::from(found.is_empty());
            failures.extend(found);
        }
    }
    println!("{passed} of {total} calls to gateways as Istio's; {others} other calls and checks need sidecars");
    for failure in &failures {
        println!("  {failure}");
    }
    assert!(passed >= FLOOR, "{passed} of {total} calls, floor {FLOOR}:\n{}", failures.join("\n"));
}
