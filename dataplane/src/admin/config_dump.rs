//! `/config_dump`: the configuration as it was read, in the messages of envoy.admin.v3.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use regex::Regex;
use serde_json::{Map, Value, json};
use torus_xds::MessageType;

use super::request::{Reply, Request};
use super::{Admin, timestamp};
use crate::cluster::{ClusterKind, HostHealth, Locality};
use crate::config::address::Address;
use crate::config::discovery::kind::Kind;
use crate::config::discovery::records::{Config, Failure, Record, Records, Waiting};

const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";
const LISTENER: &str = "envoy.config.listener.v3.Listener";
const SECRET: &str = "envoy.extensions.transport_sockets.tls.v3.Secret";
const ROUTES: &str = "envoy.config.route.v3.RouteConfiguration";

/// The bootstrap as it was read.
pub struct ConfigDump {
    /// envoy.config.bootstrap.v3.Bootstrap in wire format.
    bootstrap: Vec<u8>,
    loaded_at: SystemTime,
}

/// One layer of runtime values, flattened to dotted keys.
pub(super) struct RuntimeLayer {
    pub(super) name: String,
    pub(super) values: BTreeMap<String, String>,
}

impl Default for ConfigDump {
    fn default() -> Self {
        Self::new(Vec::new())
    }
}

impl ConfigDump {
    /// The dump of a bootstrap in wire format, read now.
    pub fn new(bootstrap: Vec<u8>) -> Self {
        Self { bootstrap, loaded_at: SystemTime::now() }
    }

    /// The bootstrap as a document.
    fn document(&self) -> Value {
        document("envoy.config.bootstrap.v3.Bootstrap", &self.bootstrap)
    }

    /// The layers of `layered_runtime`, lowest first.
    pub(super) fn runtime_layers(&self) -> Vec<RuntimeLayer> {
        let document = self.document();
        let layers = document.pointer("/layered_runtime/layers").and_then(Value::as_array);
        let layers = layers.into_iter().flatten().map(|layer| {
            let mut values = BTreeMap::new();
            if let Some(fields) = layer.get("static_layer") {
                flatten("", fields, &mut values);
            }
            RuntimeLayer { name: text_of(layer, "name").to_owned(), values }
        });
        layers.collect()
    }

    /// The dumps in Envoy's order. `endpoints` is that of EDS, where it is asked for.
    fn dumps(&self, records: &Records, endpoints: Option<Value>) -> Vec<Value> {
        let bootstrap = self.document();
        let updated = timestamp(self.loaded_at);
        let list = |path: &str| bootstrap.pointer(path).and_then(Value::as_array).cloned().unwrap_or_default();
        let (clusters, listeners) = (list("/static_resources/clusters"), list("/static_resources/listeners"));
        let mut routes: Vec<Value> = listeners.iter().flat_map(route_configs).cloned().collect();
        let discovered = records.of(Kind::Listener).values().filter_map(|record| record.active.as_ref());
        let discovered: Vec<Value> = discovered.map(|config| document(LISTENER, &config.body)).collect();
        routes.extend(discovered.iter().flat_map(route_configs).cloned());
        let entries = |field: &str, kind: &str, items: Vec<Value>| -> Vec<Value> {
            let entry = |item: Value| json!({ field: typed(kind, item), "last_updated": updated });
            items.into_iter().map(entry).collect()
        };
        let clusters = entries("cluster", CLUSTER, clusters);
        let listeners = entries("listener", LISTENER, listeners);
        let routes = entries("route_config", ROUTES, routes);
        let version = |kind: Kind| ("version_info", records.version(kind).map_or(json!([]), |version| json!(version)));
        let [active_clusters, warming_clusters] =
            [|record: &Record| record.active.clone(), |record: &Record| record.warming.clone()]
                .map(|choose| discovered_entries(records, Kind::Cluster, "cluster", CLUSTER, choose));
        let active_routes =
            discovered_entries(records, Kind::Routes, "route_config", ROUTES, |record: &Record| record.active.clone());
        let secrets = list("/static_resources/secrets").into_iter();
        let secrets =
            secrets.map(|secret| json!({ "name": text_of(&secret, "name"), "secret": typed(SECRET, secret) }));
        let secrets: Vec<Value> = secrets.collect();
        let secret_names = records.of(Kind::Secret).iter().filter(|(_, record)| record.active.is_some());
        let active_secrets = named(
            secret_names.map(|(name, _)| name),
            discovered_entries(records, Kind::Secret, "secret", SECRET, |record: &Record| record.active.clone()),
        );
        let mut dumps = vec![
            dump("BootstrapConfigDump", [("bootstrap", bootstrap.clone()), ("last_updated", updated.as_str().into())]),
            dump(
                "ClustersConfigDump",
                [
                    version(Kind::Cluster),
                    ("static_clusters", clusters.into()),
                    ("dynamic_active_clusters", active_clusters.into()),
                    ("dynamic_warming_clusters", warming_clusters.into()),
                ],
            ),
        ];
        dumps.extend(endpoints);
        dumps.extend([
            dump(
                "ListenersConfigDump",
                [
                    version(Kind::Listener),
                    ("static_listeners", listeners.into()),
                    ("dynamic_listeners", dynamic_listeners(records).into()),
                ],
            ),
            dump("ScopedRoutesConfigDump", []),
            dump(
                "RoutesConfigDump",
                [("static_route_configs", routes.into()), ("dynamic_route_configs", active_routes.into())],
            ),
            dump(
                "SecretsConfigDump",
                [
                    ("static_secrets", secrets.into()),
                    ("dynamic_active_secrets", active_secrets.into()),
                    ("dynamic_warming_secrets", warming_secrets(records).into()),
                ],
            ),
        ]);
        dumps
    }
}

/// A message as a document, without what is nobody's to read.
fn document(kind: &str, body: &[u8]) -> Value {
    let document = MessageType::named(kind)
        .and_then(|message| torus_xds::to_json(message, &torus_xds::redacted(message, body)).ok());
    document.unwrap_or_else(|| json!({}))
}

/// One resource with its version and time. Source: envoy.admin.v3.ClustersConfigDump.DynamicCluster and its kin.
fn entry(field: &str, kind: &str, config: &Config) -> Map<String, Value> {
    let mut object = Map::new();
    object.insert("version_info".into(), (&*config.version).into());
    object.insert(field.into(), typed(kind, document(kind, &config.body)));
    object.insert("last_updated".into(), timestamp(config.updated).into());
    object
}

/// Source: envoy.admin.v3.UpdateFailureState.
fn failure(kind: &str, failure: &Failure) -> Value {
    json!({
        "failed_configuration": typed(kind, document(kind, &failure.config.body)),
        "last_update_attempt": timestamp(failure.config.updated),
        "details": failure.details,
        "version_info": &*failure.config.version,
    })
}

fn discovered_entries(
    records: &Records,
    kind: Kind,
    field: &str,
    message: &str,
    choose: impl Fn(&Record) -> Option<Config>,
) -> Vec<Value> {
    let entries = records.of(kind).values().filter_map(|record| {
        let mut entry = entry(field, message, &choose(record)?);
        if let Some(refused) = &record.failure {
            entry.insert("error_state".into(), failure(message, refused));
        }
        Some(Value::Object(entry))
    });
    entries.collect()
}

/// Each entry with the name of its resource.
fn named<'a>(names: impl Iterator<Item = &'a Box<str>>, entries: Vec<Value>) -> Vec<Value> {
    let entries = names.zip(entries).map(|(name, mut entry)| {
        if let Some(fields) = entry.as_object_mut() {
            fields.shift_insert(0, "name".into(), (&**name).into());
        }
        entry
    });
    entries.collect()
}

/// Secrets that did not come yet, as Envoy shows them.
fn warming_secrets(records: &Records) -> Vec<Value> {
    let entries = records.awaited_secrets.iter().map(|(name, since)| {
        json!({
            "name": &**name,
            "version_info": "uninitialized",
            "last_updated": timestamp(*since),
            "secret": typed(SECRET, json!({ "name": &**name })),
        })
    });
    entries.collect()
}

/// Source: envoy.admin.v3.ListenersConfigDump.DynamicListener.
fn dynamic_listeners(records: &Records) -> Vec<Value> {
    let listeners = records.of(Kind::Listener).iter().map(|(name, record)| {
        let mut object = Map::new();
        object.insert("name".into(), (&**name).into());
        let states = [
            ("active_state", &record.active),
            ("warming_state", &record.warming),
            ("draining_state", &record.draining),
        ];
        for (state, config) in states {
            if let Some(config) = config {
                object.insert(state.into(), Value::Object(entry("listener", LISTENER, config)));
            }
        }
        if let Some(refused) = &record.failure {
            object.insert("error_state".into(), failure(LISTENER, refused));
        }
        Value::Object(object)
    });
    listeners.collect()
}

/// The endpoints that are in use, as assignments. Source: envoy.admin.v3.EndpointsConfigDump.
fn endpoints(admin: &Admin) -> Value {
    let snapshot = admin.snapshot();
    let (mut fixed, mut dynamic) = (Vec::new(), Vec::new());
    for (_, cluster) in snapshot.live_clusters() {
        let message = "envoy.config.endpoint.v3.ClusterLoadAssignment";
        let name = cluster.eds.as_ref().map_or(&*cluster.name, |plan| &*plan.name);
        let mut groups: Vec<(u32, &Arc<Locality>, Vec<Value>)> = Vec::new();
        for host in &cluster.endpoints.hosts {
            let mut endpoint = json!({ "address": address(&host.address), "health_check_config": {} });
            if let Some(object) = endpoint.as_object_mut().filter(|_| !host.hostname.is_empty()) {
                object.insert("hostname".into(), (&*host.hostname).into());
            }
            let health = match host.health {
                HostHealth::Healthy => "HEALTHY",
                HostHealth::Degraded => "DEGRADED",
                HostHealth::Unhealthy => "UNHEALTHY",
                HostHealth::Draining => "DRAINING",
            };
            let shown = json!({ "endpoint": endpoint, "health_status": health, "load_balancing_weight": host.weight });
            match groups.iter_mut().find(|(priority, place, _)| *priority == host.priority && **place == host.locality)
            {
                Some((_, _, hosts)) => hosts.push(shown),
                None => groups.push((host.priority, &host.locality, vec![shown])),
            }
        }
        let localities = groups.into_iter().map(|(priority, place, hosts)| {
            let mut object = json!({ "locality": locality(place), "lb_endpoints": hosts });
            if let Some(object) = object.as_object_mut().filter(|_| priority > 0) {
                object.insert("priority".into(), priority.into());
            }
            object
        });
        let localities: Vec<Value> = localities.collect();
        let config = json!({
            "@type": format!("type.googleapis.com/{message}"),
            "cluster_name": name,
            "endpoints": localities,
        });
        let list = if cluster.kind == ClusterKind::Eds { &mut dynamic } else { &mut fixed };
        list.push(json!({ "endpoint_config": config }));
    }
    let fields = [("static_endpoint_configs", fixed.into()), ("dynamic_endpoint_configs", dynamic.into())];
    dump("EndpointsConfigDump", fields)
}

fn locality(locality: &Locality) -> Value {
    let parts = [("region", &locality.region), ("zone", &locality.zone), ("sub_zone", &locality.sub_zone)];
    let parts = parts.into_iter().filter(|(_, text)| !text.is_empty());
    Value::Object(parts.map(|(field, text)| (field.to_owned(), Value::from(&**text))).collect())
}

fn address(address: &Address) -> Value {
    match address {
        Address::Ip(address) => json!({
            "socket_address": { "address": address.ip().to_string(), "port_value": address.port() }
        }),
        Address::Pipe(path) => json!({ "pipe": { "path": path.display().to_string() } }),
    }
}

/// `/init_dump`: which listeners wait, and for what. Source: envoy.admin.v3.UnreadyTargetsDumps.
pub(super) fn show_init(admin: &Admin, request: &Request) -> Reply {
    let listeners_are_asked = request.parameter("mask").is_none_or(|mask| mask.is_empty() || mask == "listener");
    let waiting = admin.with_records(|records| records.waiting.clone());
    let dumps = waiting.iter().filter(|_| listeners_are_asked).map(|Waiting { listener, for_resources }| {
        let targets = for_resources.iter().map(|(kind, name)| match kind {
            Kind::Secret => format!("shared target SdsApi {name}"),
            _ => format!("shared target RdsRouteConfigSubscription RDS init {name}"),
        });
        let targets: Vec<String> = targets.collect();
        json!({ "name": format!("init manager Listener-local-init-manager {listener}"), "target_names": targets })
    });
    let mut dumps: Vec<Value> = dumps.collect();
    if admin.lifecycle.phase().is_warming() && request.parameter("mask").is_none_or(str::is_empty) {
        let targets = ["first endpoints of clusters, first answers of control planes"];
        dumps.push(json!({ "name": "init manager Server", "target_names": targets }));
    }
    Reply::json(&if dumps.is_empty() { json!({}) } else { json!({ "unready_targets_dumps": dumps }) })
}

/// The reply.
pub(super) fn show(admin: &Admin, request: &Request) -> Reply {
    let names = match request.parameter("name_regex").filter(|pattern| !pattern.is_empty()).map(whole_match).transpose()
    {
        Ok(names) => names,
        Err(error) => {
            let pattern = request.parameter("name_regex").unwrap_or_default();
            return Reply::error(400, format!("Error while parsing name_regex from {pattern}: {error}\n"));
        }
    };
    let mask: Option<Vec<&str>> = request.parameter("mask").map(|mask| mask.split(',').map(str::trim).collect());
    let endpoints = request.has("include_eds").then(|| endpoints(admin));
    let mut dumps = admin.with_records(|records| admin.facts.config.dumps(records, endpoints));
    for dump in &mut dumps {
        retain_named(dump, names.as_ref());
    }
    let configs = match request.parameter("resource") {
        Some(resource) => match resources(&dumps, resource) {
            Some(found) => found,
            None => return Reply::error(404, format!("{resource} not found in config dump")),
        },
        None => dumps,
    };
    let configs = match mask {
        Some(paths) => configs.iter().filter_map(|config| masked(config, &paths)).collect(),
        None => configs,
    };
    Reply::json(&json!({ "configs": configs }))
}

/// A pattern that has to match a whole name.
fn whole_match(pattern: &str) -> Result<Regex, regex::Error> {
    Regex::new(&format!("^(?:{pattern})$"))
}

fn dump<const N: usize>(kind: &str, fields: [(&str, Value); N]) -> Value {
    let mut object = Map::new();
    object.insert("@type".into(), format!("type.googleapis.com/envoy.admin.v3.{kind}").into());
    let is_empty = |value: &Value| value.as_array().is_some_and(Vec::is_empty);
    object.extend(fields.into_iter().filter(|(_, value)| !is_empty(value)).map(|(name, value)| (name.into(), value)));
    Value::Object(object)
}

/// `item` as the content of a google.protobuf.Any.
fn typed(kind: &str, item: Value) -> Value {
    let mut object = Map::new();
    object.insert("@type".into(), format!("type.googleapis.com/{kind}").into());
    if let Value::Object(fields) = item {
        object.extend(fields);
    }
    Value::Object(object)
}

/// The static route tables of a listener's connection managers.
fn route_configs(listener: &Value) -> impl Iterator<Item = &Value> {
    let chains = listener.get("filter_chains").and_then(Value::as_array).into_iter().flatten();
    let chains = chains.chain(listener.get("default_filter_chain"));
    let filters = chains.flat_map(|chain| chain.get("filters").and_then(Value::as_array).into_iter().flatten());
    filters.filter_map(|filter| filter.pointer("/typed_config/route_config"))
}

/// Leaves out entries whose resource has a name that does not match.
fn retain_named(dump: &mut Value, names: Option<&Regex>) {
    let Some(names) = names else { return };
    for entries in dump.as_object_mut().into_iter().flatten().filter_map(|(_, value)| value.as_array_mut()) {
        entries.retain(|entry| {
            if names.is_match(text_of(entry, "name")) {
                return true;
            }
            let fields = entry.as_object().into_iter().flatten();
            let mut resources = fields.filter(|(_, value)| value.is_object()).map(|(_, value)| value);
            resources.any(|resource| {
                names.is_match(text_of(resource, "name")) || names.is_match(text_of(resource, "cluster_name"))
            })
        });
    }
}

/// The elements of the field called `resource`; `None` where no dump has such a field.
fn resources(dumps: &[Value], resource: &str) -> Option<Vec<Value>> {
    for dump in dumps {
        match dump.get(resource) {
            Some(Value::Array(entries)) => {
                let kind = element_type(resource)?;
                return Some(entries.iter().map(|entry| typed(kind, entry.clone())).collect());
            }
            Some(single) if single.is_object() => {
                return Some(vec![typed("envoy.config.bootstrap.v3.Bootstrap", single.clone())]);
            }
            _ => {}
        }
    }
    // A field that is known and empty.
    element_type(resource).map(|_| Vec::new())
}

fn element_type(resource: &str) -> Option<&'static str> {
    Some(match resource {
        "static_clusters" => "envoy.admin.v3.ClustersConfigDump.StaticCluster",
        "dynamic_active_clusters" | "dynamic_warming_clusters" => "envoy.admin.v3.ClustersConfigDump.DynamicCluster",
        "static_listeners" => "envoy.admin.v3.ListenersConfigDump.StaticListener",
        "dynamic_listeners" => "envoy.admin.v3.ListenersConfigDump.DynamicListener",
        "static_route_configs" => "envoy.admin.v3.RoutesConfigDump.StaticRouteConfig",
        "dynamic_route_configs" => "envoy.admin.v3.RoutesConfigDump.DynamicRouteConfig",
        "inline_scoped_route_configs" => "envoy.admin.v3.ScopedRoutesConfigDump.InlineScopedRouteConfigs",
        "dynamic_scoped_route_configs" => "envoy.admin.v3.ScopedRoutesConfigDump.DynamicScopedRouteConfigs",
        "static_endpoint_configs" => "envoy.admin.v3.EndpointsConfigDump.StaticEndpointConfig",
        "dynamic_endpoint_configs" => "envoy.admin.v3.EndpointsConfigDump.DynamicEndpointConfig",
        "static_secrets" => "envoy.admin.v3.SecretsConfigDump.StaticSecret",
        "dynamic_active_secrets" | "dynamic_warming_secrets" => "envoy.admin.v3.SecretsConfigDump.DynamicSecret",
        _ => return None,
    })
}

/// The part of `value` that the paths of a field mask name; `None` where it has none of them.
fn masked(value: &Value, paths: &[&str]) -> Option<Value> {
    let begins_here = |path: &&&str| path.split('.').next().is_some_and(|first| value.get(first).is_some());
    let mut kept = Value::Null;
    for path in paths.iter().filter(begins_here) {
        copy_path(value, path.split('.'), &mut kept);
    }
    let Value::Object(mut fields) = kept else { return None };
    if let Some(kind) = value.get("@type") {
        fields.shift_insert(0, "@type".into(), kind.clone());
    }
    Some(Value::Object(fields))
}

/// Copies what `path` names from `from` to `to`; items of a list are walked through.
fn copy_path<'a>(from: &Value, mut path: impl Iterator<Item = &'a str> + Clone, to: &mut Value) {
    if let Value::Array(items) = from {
        let filled = |place: usize, kept: &Value| kept.get(place).cloned().unwrap_or(Value::Null);
        let copied = items.iter().enumerate().map(|(place, item)| {
            let mut kept = filled(place, to);
            copy_path(item, path.clone(), &mut kept);
            if kept.is_null() { json!({}) } else { kept }
        });
        let copied: Vec<Value> = copied.collect();
        *to = Value::Array(copied);
        return;
    }
    let Some(field) = path.next() else {
        *to = from.clone();
        return;
    };
    let Some(inner) = from.get(field) else {
        // The parent is there although the field is not.
        if to.is_null() && from.is_object() {
            *to = json!({});
        }
        return;
    };
    if !to.is_object() {
        *to = json!({});
    }
    if let Value::Object(fields) = to {
        copy_path(inner, path, fields.entry(field.to_owned()).or_insert(Value::Null));
    }
}

/// `{a: {b: 1}}` as `a.b`.
fn flatten(prefix: &str, value: &Value, values: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(fields) => {
            for (name, inner) in fields {
                let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                flatten(&key, inner, values);
            }
        }
        Value::String(text) => {
            values.insert(prefix.to_owned(), text.clone());
        }
        other => {
            values.insert(prefix.to_owned(), other.to_string());
        }
    }
}

fn text_of<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}
