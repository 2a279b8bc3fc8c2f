//! `/config_dump`: the configuration as it was read, in the messages of envoy.admin.v3.

use std::collections::BTreeMap;
use std::time::SystemTime;

use regex::Regex;
use serde_json::{Map, Value, json};
use torus_xds::MessageType;

use super::request::{Reply, Request};
use super::{Admin, timestamp};

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
        let message = MessageType::named("envoy.config.bootstrap.v3.Bootstrap");
        let document = message.and_then(|message| torus_xds::to_json(message, &self.bootstrap).ok());
        document.unwrap_or_else(|| json!({}))
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

    /// The dumps in Envoy's order.
    fn dumps(&self) -> Vec<Value> {
        let bootstrap = self.document();
        let updated = timestamp(self.loaded_at);
        let list = |path: &str| bootstrap.pointer(path).and_then(Value::as_array).cloned().unwrap_or_default();
        let (clusters, listeners) = (list("/static_resources/clusters"), list("/static_resources/listeners"));
        let routes: Vec<Value> = listeners.iter().flat_map(route_configs).cloned().collect();
        let entries = |field: &str, kind: &str, items: Vec<Value>| -> Vec<Value> {
            let entry = |item: Value| json!({ field: typed(kind, item), "last_updated": updated });
            items.into_iter().map(entry).collect()
        };
        let clusters = entries("cluster", "envoy.config.cluster.v3.Cluster", clusters);
        let listeners = entries("listener", "envoy.config.listener.v3.Listener", listeners);
        let routes = entries("route_config", "envoy.config.route.v3.RouteConfiguration", routes);
        vec![
            dump("BootstrapConfigDump", [("bootstrap", bootstrap.clone()), ("last_updated", updated.as_str().into())]),
            dump("ClustersConfigDump", [("static_clusters", clusters.into())]),
            dump("ListenersConfigDump", [("static_listeners", listeners.into())]),
            dump("ScopedRoutesConfigDump", []),
            dump("RoutesConfigDump", [("static_route_configs", routes.into())]),
            dump("SecretsConfigDump", []),
        ]
    }
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
    let mut dumps = admin.facts.config.dumps();
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
            let fields = entry.as_object().into_iter().flatten();
            let mut resources = fields.filter(|(_, value)| value.is_object()).map(|(_, value)| value);
            resources.any(|resource| names.is_match(text_of(resource, "name")))
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
