//! From a theme to a whole bootstrap.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::theme::{BackendKind, Listen, Theme};

/// Ports and paths that stand for the `$names` of a theme.
pub(super) struct Places {
    /// Port of each listening address; 0 for a unix socket.
    pub(super) listen: Vec<u16>,
    /// Port of each backend; 0 for a unix socket.
    pub(super) backends: BTreeMap<String, u16>,
    /// The folder of logs and unix sockets.
    pub(super) folder: String,
}

const ROUTER: &str = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
const MANAGER: &str =
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const FILE_LOG: &str = "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog";

/// The logged field that tells when a request began, in seconds; not compared.
pub(super) const START: &str = "start_seconds";

/// What every theme logs of each request, by field.
const LOG: &[(&str, &str)] = &[
    ("case", "%REQ(X-CASE)%"),
    (START, "%START_TIME(%s.%6f)%"),
    ("method", "%REQ(:METHOD)%"),
    ("path", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"),
    ("authority", "%REQ(:AUTHORITY)%"),
    ("protocol", "%PROTOCOL%"),
    ("status", "%RESPONSE_CODE%"),
    ("details", "%RESPONSE_CODE_DETAILS%"),
    ("termination", "%CONNECTION_TERMINATION_DETAILS%"),
    ("flags", "%RESPONSE_FLAGS%"),
    ("flags_long", "%RESPONSE_FLAGS_LONG%"),
    ("bytes_received", "%BYTES_RECEIVED%"),
    ("bytes_sent", "%BYTES_SENT%"),
    ("attempts", "%UPSTREAM_REQUEST_ATTEMPT_COUNT%"),
    ("upstream_host", "%UPSTREAM_HOST%"),
    ("upstream_cluster", "%UPSTREAM_CLUSTER%"),
    ("upstream_protocol", "%UPSTREAM_PROTOCOL%"),
    ("upstream_failure", "%UPSTREAM_TRANSPORT_FAILURE_REASON%"),
    ("route_name", "%ROUTE_NAME%"),
    ("forwarded_for", "%REQ(X-FORWARDED-FOR)%"),
    ("remote", "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"),
    ("direct_remote", "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%"),
    ("local", "%DOWNSTREAM_LOCAL_ADDRESS%"),
];

/// The bootstrap of `theme`; both proxies get the same bytes.
pub(super) fn assemble(theme: &Theme, places: &Places) -> Value {
    let mut hcm = json!({
        "@type": MANAGER,
        "stat_prefix": "test",
        // Envoy waits this long for the client to close first; its default of 1 s would be most of the suite's time.
        "delayed_close_timeout": "0.06s",
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {"@type": ROUTER}}],
        "access_log": access_logs(theme),
        "route_config": route_config(theme),
    });
    merge(&mut hcm, &theme.hcm);
    let mut addresses = theme.listen.iter().enumerate().map(|(index, listen)| address(*listen, index, places));
    let mut chain = json!({"filters": [{"name": "hcm", "typed_config": hcm}]});
    merge(&mut chain, &theme.chain);
    let mut listener = json!({"name": "main", "address": addresses.next(), "filter_chains": [chain]});
    let additional: Vec<Value> = addresses.map(|address| json!({"address": address})).collect();
    if !additional.is_empty() {
        listener["additional_addresses"] = additional.into();
    }
    merge(&mut listener, &theme.listener);
    let mut bootstrap = json!({
        "node": {"id": "test-node", "cluster": "test-cluster"},
        "static_resources": {"listeners": listeners(theme, listener), "clusters": clusters(theme)},
    });
    merge(&mut bootstrap, &theme.bootstrap);
    fill(&mut bootstrap, places);
    bootstrap
}

fn listeners(theme: &Theme, main: Value) -> Vec<Value> {
    std::iter::once(main).chain(theme.more_listeners.iter().cloned()).collect()
}

fn access_logs(theme: &Theme) -> Value {
    let mut format: Map<String, Value> = LOG.iter().map(|(key, value)| ((*key).to_owned(), (*value).into())).collect();
    format.extend(theme.log.iter().map(|(key, value)| (key.clone(), value.as_str().into())));
    let mut logs = vec![json!({
        "name": "json",
        "typed_config": {"@type": FILE_LOG, "path": "${folder}/json.log", "log_format": {"json_format": format}},
    })];
    if let Some(format) = &theme.text_log {
        let mut config = json!({"@type": FILE_LOG, "path": "${folder}/text.log"});
        if !format.is_empty() {
            config["log_format"] = json!({"text_format_source": {"inline_string": format}});
        }
        logs.push(json!({"name": "text", "typed_config": config}));
    }
    logs.into()
}

fn route_config(theme: &Theme) -> Value {
    let mut config = json!({"name": "local"});
    let everything = json!({
        "name": "all",
        "domains": ["*"],
        "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "a"}}],
    });
    let hosts = if theme.virtual_hosts.is_empty() { vec![everything] } else { theme.virtual_hosts.clone() };
    config["virtual_hosts"] = hosts.into();
    merge(&mut config, &theme.route_config);
    config
}

fn clusters(theme: &Theme) -> Value {
    let mut clusters = Vec::new();
    let own = |label: &str| theme.clusters.iter().any(|cluster| cluster.get("name") == Some(&label.into()));
    for label in theme.backends.keys().filter(|label| !own(label)) {
        clusters.push(cluster(theme, &Map::from_iter([("name".to_owned(), label.as_str().into())])));
    }
    clusters.extend(theme.clusters.iter().map(|config| cluster(theme, config)));
    clusters.into()
}

/// A cluster with its defaults; `endpoints` lists backends by label, or `{to: label, ...}` with more of the endpoint.
fn cluster(theme: &Theme, config: &Map<String, Value>) -> Value {
    let mut config = config.clone();
    let name = config.get("name").cloned().unwrap_or_default();
    let own = if config.contains_key("load_assignment") { json!([]) } else { json!([name]) };
    let endpoints = config.remove("endpoints").unwrap_or(own);
    let mut localities: BTreeMap<u64, Vec<Value>> = BTreeMap::new();
    for endpoint in endpoints.as_array().into_iter().flatten() {
        let mut more = endpoint.as_object().cloned().unwrap_or_default();
        let label = more.remove("to").unwrap_or_else(|| endpoint.clone());
        let priority = more.remove("priority").and_then(|priority| priority.as_u64()).unwrap_or(0);
        let label = label.as_str().expect("an endpoint names a backend");
        let hostname = more.remove("hostname");
        let mut value = json!({"endpoint": {"address": endpoint_address(theme, label)}});
        if let Some(hostname) = hostname {
            value["endpoint"]["hostname"] = hostname;
        }
        merge(&mut value, &more);
        localities.entry(priority).or_default().push(value);
    }
    let locality = |(priority, endpoints)| json!({"priority": priority, "lb_endpoints": Value::Array(endpoints)});
    let localities: Vec<Value> = localities.into_iter().map(locality).collect();
    let mut cluster = json!({"type": "STATIC", "connect_timeout": "1s"});
    if !config.contains_key("load_assignment") {
        cluster["load_assignment"] = json!({"cluster_name": name, "endpoints": localities});
    }
    merge(&mut cluster, &config);
    cluster
}

fn endpoint_address(theme: &Theme, label: &str) -> Value {
    let kind = theme.backends.get(label).unwrap_or_else(|| panic!("{}: no backend {label}", theme.name));
    match kind {
        BackendKind::Tcp | BackendKind::Closed => socket("127.0.0.1", &format!("${label}")),
        BackendKind::Tcp6 => socket("::1", &format!("${label}")),
        BackendKind::Unix => json!({"pipe": {"path": format!("${{folder}}/{label}.backend")}}),
    }
}

fn address(listen: Listen, index: usize, places: &Places) -> Value {
    let port = places.listen.get(index).copied().unwrap_or_default();
    match listen {
        Listen::Tcp => json!({"socket_address": {"address": "127.0.0.1", "port_value": port}}),
        Listen::Tcp6 => json!({"socket_address": {"address": "::1", "port_value": port}}),
        Listen::Unix => json!({"pipe": {"path": format!("${{folder}}/{index}.listen")}}),
    }
}

fn socket(address: &str, port: &str) -> Value {
    json!({"socket_address": {"address": address, "port_value": port}})
}

/// Replaces `$label` by a port number where it is the whole text, and `${folder}`, `${label}`, `${listen}` inside it.
fn fill(value: &mut Value, places: &Places) {
    match value {
        Value::Array(values) => values.iter_mut().for_each(|value| fill(value, places)),
        Value::Object(map) => map.values_mut().for_each(|value| fill(value, places)),
        Value::String(text) => {
            let port = |name: &str| match name {
                "listen" => places.listen.first().copied(),
                label => places.backends.get(label).copied(),
            };
            if let Some(port) = text.strip_prefix('$').and_then(port) {
                *value = port.into();
                return;
            }
            *text = text.replace("${folder}", &places.folder);
            if text.contains("${") {
                for (label, port) in &places.backends {
                    *text = text.replace(&format!("${{{label}}}"), &port.to_string());
                }
            }
        }
        _ => {}
    }
}

/// Objects merge by key, everything else is replaced.
fn merge(into: &mut Value, more: &Map<String, Value>) {
    let Value::Object(target) = into else { return };
    for (key, value) in more {
        match (target.get_mut(key), value) {
            (Some(old @ Value::Object(_)), Value::Object(inner)) => merge(old, inner),
            _ => {
                target.insert(key.clone(), value.clone());
            }
        }
    }
}

/// The folder as text.
pub(super) fn folder_text(folder: &Path) -> String {
    folder.to_string_lossy().into_owned()
}
