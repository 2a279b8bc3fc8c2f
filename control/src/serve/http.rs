//! The operator's HTTP port: readiness, metrics, and istiod's debug pages.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::{Map, Value, json};
use torus_xds::serving::url;

use super::csds;
use crate::push::{Client, ClientStatus, Hub};

/// The pages of `hub`.
pub fn router(hub: Arc<Hub>) -> Router {
    Router::new()
        .route("/ready", get(|| async { "ready\n" }))
        .route("/version", get(|| async { concat!(env!("CARGO_PKG_VERSION"), "\n") }))
        .route("/metrics", get(metrics))
        .route("/debug/log", get(log).put(log))
        .route("/debug/{page}", get(debug))
        .with_state(hub)
}

async fn metrics(State(hub): State<Arc<Hub>>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], hub.metrics.page(hub.client_count())).into_response()
}

/// What is logged, and the change of it by `PUT /debug/log?level=FILTER`.
async fn log(State(hub): State<Arc<Hub>>, method: Method, Query(query): Query<HashMap<String, String>>) -> Response {
    let filter = query.get("level").map(String::as_str);
    if (method == Method::PUT) != filter.is_some() {
        return (StatusCode::BAD_REQUEST, "GET /debug/log, or PUT /debug/log?level=FILTER\n").into_response();
    }
    match hub.log(filter) {
        Some(Ok(filter)) => format!("{filter}\n").into_response(),
        Some(Err(reason)) => (StatusCode::BAD_REQUEST, format!("{reason}\n")).into_response(),
        None => (StatusCode::NOT_FOUND, "what is logged cannot be changed here\n").into_response(),
    }
}

async fn debug(
    State(hub): State<Arc<Hub>>,
    Path(page): Path<String>,
    Query(query): Query<HashMap<String, String>>,
) -> Response {
    let proxy = query.get("proxyID").map(String::as_str);
    let found = match page.as_str() {
        "syncz" => Some(hub.clients().iter().map(|(client, status)| sync_status(client, status)).collect()),
        "push_status" => Some(push_status(&hub)),
        "config_dump" => match proxy.filter(|proxy| !proxy.is_empty()) {
            Some(proxy) => config_dump(&hub, proxy),
            None => {
                return (StatusCode::BAD_REQUEST, "say which proxy: ?proxyID=ID; /debug/syncz lists them\n")
                    .into_response();
            }
        },
        other => hub.current().view.page(other),
    };
    match found {
        Some(value) => ([(header::CONTENT_TYPE, "application/json")], format!("{value:#}\n")).into_response(),
        None => (StatusCode::NOT_FOUND, format!("no such page or proxy: {page}\n")).into_response(),
    }
}

/// One entry of `/debug/syncz`.
fn sync_status(client: &Client, status: &ClientStatus) -> Value {
    let metadata = |name: &str| {
        let fields = client.node.metadata.as_ref().map(|metadata| &metadata.fields);
        let value = fields.and_then(|fields| fields.get(name)).and_then(|value| value.kind.as_ref());
        match value {
            Some(envoy_types::pb::google::protobuf::value::Kind::StringValue(text)) => text.clone(),
            _ => String::new(),
        }
    };
    let mut entry = Map::new();
    entry.insert("cluster_id".into(), metadata("CLUSTER_ID").into());
    entry.insert("proxy".into(), client.node.id.clone().into());
    entry.insert("proxy_type".into(), client.node.id.split('~').next().unwrap_or_default().into());
    entry.insert("istio_version".into(), metadata("ISTIO_VERSION").into());
    if !client.peer.names.is_empty() {
        entry.insert("identities".into(), client.peer.names.to_vec().into());
    }
    for (type_url, name) in TYPES {
        if let Some(state) = status.types.get(type_url) {
            entry.insert(format!("{name}_sent"), state.sent_nonce.clone().into());
            entry.insert(format!("{name}_acked"), state.acked_nonce.clone().into());
            entry.insert(format!("{name}_version"), state.acked_version.clone().into());
            entry.insert(format!("{name}_status"), state.word().into());
            if let Some(reason) = &state.refusal {
                entry.insert(format!("{name}_error"), reason.clone().into());
            }
        }
    }
    Value::Object(entry)
}

fn push_status(hub: &Hub) -> Value {
    let generation = hub.current();
    let refused = |(client, status): &(Arc<Client>, ClientStatus)| -> Vec<Value> {
        let refused = status.types.iter().filter_map(|(type_url, state)| Some((type_url, state.refusal.as_ref()?)));
        refused
            .map(|(type_url, reason)| json!({"proxy": client.node.id, "type": type_url, "message": reason}))
            .collect()
    };
    let refusals: Vec<Value> = hub.clients().iter().flat_map(refused).collect();
    json!({"version": generation.version(), "connected": hub.client_count(), "proxies_refusing": refusals})
}

/// What a proxy is sent, in the shape of Envoy's own `/config_dump`.
fn config_dump(hub: &Hub, proxy: &str) -> Option<Value> {
    let report = csds::report(hub, Some(proxy), true);
    let client = report.config.into_iter().next()?;
    let mut of_type: HashMap<String, Vec<Value>> = HashMap::new();
    for config in client.generic_xds_configs {
        let Some(resource) = config.xds_config else { continue };
        let name = config.type_url.rsplit('/').next().unwrap_or_default();
        let mut shown = torus_xds::MessageType::named(name)
            .map(|message| torus_xds::to_json(message, &resource.value))
            .and_then(Result::ok)
            .unwrap_or_default();
        if let Value::Object(members) = &mut shown {
            members.shift_insert(0, "@type".into(), config.type_url.clone().into());
        }
        of_type.entry(config.type_url).or_default().push(json!({
            "name": config.name, "version_info": config.version_info, "resource": shown
        }));
    }
    let mut take = |type_url: &str, member: &str| -> Vec<Value> {
        let list = of_type.remove(type_url).unwrap_or_default();
        list.into_iter()
            .map(|mut entry| {
                let resource = entry.get_mut("resource").map(Value::take).unwrap_or_default();
                json!({"version_info": entry.get("version_info"), member: resource})
            })
            .collect()
    };
    let clusters = take(url::CLUSTER, "cluster");
    let listeners: Vec<Value> = take(url::LISTENER, "listener")
        .into_iter()
        .map(|state| json!({"name": state["listener"]["name"], "active_state": state}))
        .collect();
    let routes = take(url::ROUTES, "route_config");
    let endpoints = take(url::ENDPOINTS, "endpoint_config");
    let secrets: Vec<Value> = take(url::SECRET, "secret")
        .into_iter()
        .map(|state| json!({"name": state["secret"]["name"], "version_info": state["version_info"], "secret": state["secret"]}))
        .collect();
    let kind = |name: &str| format!("type.googleapis.com/envoy.admin.v3.{name}");
    Some(json!({"configs": [
        {"@type": kind("ClustersConfigDump"), "dynamic_active_clusters": clusters},
        {"@type": kind("ListenersConfigDump"), "dynamic_listeners": listeners},
        {"@type": kind("RoutesConfigDump"), "dynamic_route_configs": routes},
        {"@type": kind("EndpointsConfigDump"), "dynamic_endpoint_configs": endpoints},
        {"@type": kind("SecretsConfigDump"), "dynamic_active_secrets": secrets},
    ]}))
}

const TYPES: [(&str, &str); 5] = [
    (url::CLUSTER, "cluster"),
    (url::LISTENER, "listener"),
    (url::ROUTES, "route"),
    (url::ENDPOINTS, "endpoint"),
    (url::SECRET, "secret"),
];
