//! `proxy-config`: what one proxy is told, from torusd or from a file that Envoy's `/config_dump` was saved to.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::{CtlError, Format, Server, Verdict, client, output};

#[derive(clap::Args)]
pub(super) struct Flags {
    /// What to show
    #[arg(value_enum)]
    kind: Kind,
    /// The proxy's id, or a part of it that only one has
    proxy: Option<String>,
    /// Read a saved /config_dump in place of asking torusd
    #[arg(short, long)]
    file: Option<PathBuf>,
    #[arg(short, long, value_enum, default_value = "short")]
    output: Format,
    /// Clusters and endpoints of this host only
    #[arg(long)]
    fqdn: Option<String>,
    /// Only of this name
    #[arg(long)]
    name: Option<String>,
    /// Listeners and clusters of this port only
    #[arg(long)]
    port: Option<u64>,
    #[command(flatten)]
    server: Server,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Kind {
    #[value(aliases = ["listeners", "l"])]
    Listener,
    #[value(aliases = ["routes", "r"])]
    Route,
    #[value(aliases = ["clusters", "c"])]
    Cluster,
    #[value(aliases = ["endpoints", "ep"])]
    Endpoint,
    #[value(aliases = ["secrets", "s"])]
    Secret,
    #[value(alias = "b")]
    Bootstrap,
    #[value(alias = "a")]
    All,
}

pub(super) fn run(flags: &Flags) -> Result<Verdict, CtlError> {
    let dump = dump(flags.file.as_deref(), flags.proxy.as_deref(), &flags.server.http_address)?;
    match (flags.kind, flags.output) {
        (Kind::All, Format::Short) => {
            for kind in [Kind::Cluster, Kind::Listener, Kind::Route, Kind::Endpoint, Kind::Secret] {
                output::print(&format!("{}\n", output::table(&rows(&entries(&dump, kind, flags), kind))))?;
            }
        }
        (Kind::All, format) => output::print_document(&dump, format)?,
        (Kind::Bootstrap, format) => {
            let bootstrap = config(&dump, "BootstrapConfigDump").and_then(|dump| dump.get("bootstrap"));
            let bootstrap = bootstrap.ok_or_else(|| {
                CtlError::Use(
                    "torusd does not know a proxy's bootstrap; save the proxy's own /config_dump and pass it by --file"
                        .to_owned(),
                )
            })?;
            let format = if format == Format::Short { Format::Yaml } else { format };
            output::print_document(bootstrap, format)?;
        }
        (kind, Format::Short) => output::print(&output::table(&rows(&entries(&dump, kind, flags), kind)))?,
        (kind, format) => output::print_document(&Value::Array(entries(&dump, kind, flags)), format)?,
    }
    Ok(Verdict::Well)
}

/// The configuration in `file`, or else that of the proxy called `proxy` from torusd.
pub(super) fn dump(file: Option<&Path>, proxy: Option<&str>, torusd: &str) -> Result<Value, CtlError> {
    let Some(path) = file else {
        let id = proxy_id(proxy.unwrap_or_default(), torusd)?;
        return Ok(client::get_json(torusd, &format!("/debug/config_dump?proxyID={}", client::escape(&id)))?);
    };
    let text =
        std::fs::read_to_string(path).map_err(|error| CtlError::Use(format!("--file {}: {error}", path.display())))?;
    serde_json::from_str(&text).map_err(|error| CtlError::Use(format!("--file {}: not JSON: {error}", path.display())))
}

/// The one connected proxy that is meant.
fn proxy_id(part: &str, torusd: &str) -> Result<String, CtlError> {
    let known = client::get_json(torusd, "/debug/syncz")?;
    let ids: Vec<&str> =
        known.as_array().into_iter().flatten().filter_map(|proxy| proxy.get("proxy")?.as_str()).collect();
    let found: Vec<&str> = match ids.iter().find(|id| **id == part) {
        Some(exact) => vec![exact],
        None => ids.iter().copied().filter(|id| id.contains(part)).collect(),
    };
    match found.as_slice() {
        [one] => Ok((*one).to_owned()),
        [] if ids.is_empty() => Err(CtlError::Use("no proxy is connected to torusd".to_owned())),
        [] => Err(CtlError::Use(format!("no proxy is called `{part}`; connected are: {}", ids.join(", ")))),
        several => Err(CtlError::Use(format!("say which proxy: {}", several.join(", ")))),
    }
}

fn config<'a>(dump: &'a Value, name: &str) -> Option<&'a Value> {
    let configs = dump.get("configs")?.as_array()?;
    configs.iter().find(|config| str_of(config, "@type").ends_with(name))
}

/// The resources of a kind, those that the flags ask for.
fn entries(dump: &Value, kind: Kind, flags: &Flags) -> Vec<Value> {
    resources(dump, kind).filter(|resource| matches(resource, kind, flags)).cloned().collect()
}

/// All resources of a kind.
pub(super) fn resources(dump: &Value, kind: Kind) -> impl Iterator<Item = &Value> {
    let (section, lists, member): (&str, &[&str], &str) = match kind {
        Kind::Cluster => ("ClustersConfigDump", &["static_clusters", "dynamic_active_clusters"], "cluster"),
        Kind::Listener => ("ListenersConfigDump", &["static_listeners", "dynamic_listeners"], "listener"),
        Kind::Route => ("RoutesConfigDump", &["static_route_configs", "dynamic_route_configs"], "route_config"),
        Kind::Endpoint => {
            ("EndpointsConfigDump", &["static_endpoint_configs", "dynamic_endpoint_configs"], "endpoint_config")
        }
        Kind::Secret => ("SecretsConfigDump", &["static_secrets", "dynamic_active_secrets"], "secret"),
        Kind::Bootstrap | Kind::All => ("none", &[], ""),
    };
    let all = lists.iter().filter_map(move |list| config(dump, section)?.get(list)?.as_array()).flatten();
    all.filter_map(move |entry| entry.get(member).or_else(|| entry.get("active_state")?.get(member)))
}

fn matches(resource: &Value, kind: Kind, flags: &Flags) -> bool {
    let name = match kind {
        Kind::Endpoint => str_of(resource, "cluster_name"),
        _ => str_of(resource, "name"),
    };
    let named = flags.name.as_ref().is_none_or(|wanted| name == wanted);
    let of_host = flags.fqdn.as_ref().is_none_or(|host| name.rsplit('|').next() == Some(host.as_str()));
    let of_port = flags.port.is_none_or(|port| match kind {
        Kind::Listener => socket(resource).1 == port.to_string(),
        Kind::Cluster | Kind::Endpoint => name.split('|').nth(1) == Some(port.to_string().as_str()),
        _ => true,
    });
    named && of_host && of_port
}

fn rows(entries: &[Value], kind: Kind) -> Vec<Vec<String>> {
    let heading: &[&str] = match kind {
        Kind::Cluster => &["SERVICE FQDN", "PORT", "SUBSET", "DIRECTION", "TYPE"],
        Kind::Listener => &["NAME", "ADDRESS", "PORT", "FILTER CHAINS", "ROUTES"],
        Kind::Route => &["NAME", "VHOST NAME", "DOMAINS", "MATCH", "DESTINATION"],
        Kind::Endpoint => &["ENDPOINT", "STATUS", "WEIGHT", "CLUSTER"],
        Kind::Secret | Kind::Bootstrap | Kind::All => &["RESOURCE NAME", "TYPE"],
    };
    let mut rows = vec![heading.iter().map(|cell| (*cell).to_owned()).collect::<Vec<String>>()];
    for entry in entries {
        match kind {
            Kind::Cluster => rows.push(cluster(entry)),
            Kind::Listener => rows.push(listener(entry)),
            Kind::Route => routes(entry, &mut rows),
            Kind::Endpoint => endpoints(entry, &mut rows),
            Kind::Secret | Kind::Bootstrap | Kind::All => {
                let kinds = ["tls_certificate", "validation_context", "session_ticket_keys", "generic_secret"];
                let kind = kinds.into_iter().find(|kind| entry.get(kind).is_some()).unwrap_or_default();
                rows.push(vec![str_of(entry, "name").to_owned(), kind.to_owned()]);
            }
        }
    }
    rows
}

fn cluster(cluster: &Value) -> Vec<String> {
    let name = str_of(cluster, "name");
    let kind = cluster.get("type").and_then(Value::as_str).unwrap_or("STATIC");
    let parts: Vec<&str> = name.split('|').collect();
    let [direction, port, subset, host] = parts.as_slice() else {
        return vec![name.to_owned(), "-".into(), "-".into(), "-".into(), kind.to_owned()];
    };
    let dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    vec![(*host).to_owned(), dash(port), dash(subset), dash(direction), kind.to_owned()]
}

fn listener(listener: &Value) -> Vec<String> {
    let (address, port) = socket(listener);
    let chains = listener.get("filter_chains").and_then(Value::as_array).map_or(0, Vec::len);
    let mut routes = Vec::new();
    find_all(listener, "route_config_name", &mut routes);
    routes.dedup();
    vec![str_of(listener, "name").to_owned(), address, port, chains.to_string(), routes.join(",")]
}

fn routes(config: &Value, rows: &mut Vec<Vec<String>>) {
    for host in list(config, "virtual_hosts") {
        let domains: Vec<&str> = list(host, "domains").filter_map(Value::as_str).collect();
        for route in list(host, "routes") {
            rows.push(vec![
                str_of(config, "name").to_owned(),
                str_of(host, "name").to_owned(),
                domains.join(","),
                route_match(route),
                destination(route),
            ]);
        }
    }
}

fn route_match(route: &Value) -> String {
    let none = Map::new();
    let condition = route.get("match").and_then(Value::as_object).unwrap_or(&none);
    let mut parts = Vec::new();
    for (name, value) in condition {
        match (name.as_str(), value) {
            ("prefix", Value::String(path)) => parts.push(format!("{path}*")),
            ("path", Value::String(path)) => parts.push(path.clone()),
            ("path_separated_prefix", Value::String(path)) => parts.push(format!("{path}/*")),
            ("safe_regex", value) => parts.push(format!("regex {}", str_of(value, "regex"))),
            ("headers", Value::Array(headers)) => {
                let names: Vec<&str> = headers.iter().map(|header| str_of(header, "name")).collect();
                parts.push(format!("headers {}", names.join(",")));
            }
            _ => {}
        }
    }
    parts.join(" ")
}

fn destination(route: &Value) -> String {
    if let Some(action) = route.get("route") {
        if let Some(weighted) = action.get("weighted_clusters") {
            let parts = list(weighted, "clusters").map(|cluster| {
                format!("{} {}", str_of(cluster, "name"), cluster.get("weight").unwrap_or(&Value::from(0)))
            });
            return parts.collect::<Vec<_>>().join(", ");
        }
        return str_of(action, "cluster").to_owned();
    }
    let kinds = [("redirect", "redirect"), ("direct_response", "direct response")];
    kinds.into_iter().find(|(name, _)| route.get(name).is_some()).map_or("", |(_, shown)| shown).to_owned()
}

fn endpoints(assignment: &Value, rows: &mut Vec<Vec<String>>) {
    for locality in list(assignment, "endpoints") {
        for endpoint in list(locality, "lb_endpoints") {
            let (address, port) = endpoint.get("endpoint").map(socket).unwrap_or_default();
            let status = endpoint.get("health_status").and_then(Value::as_str).unwrap_or("HEALTHY");
            let weight = endpoint.get("load_balancing_weight").map(Value::to_string).unwrap_or_default();
            rows.push(vec![
                format!("{address}:{port}"),
                status.to_owned(),
                weight,
                str_of(assignment, "cluster_name").to_owned(),
            ]);
        }
    }
}

/// Address and port of something that has an `address`.
fn socket(value: &Value) -> (String, String) {
    let address = value.get("address");
    if let Some(path) = address.and_then(|address| address.get("pipe")) {
        return (str_of(path, "path").to_owned(), String::new());
    }
    let socket = address.and_then(|address| address.get("socket_address"));
    let port = socket.and_then(|socket| socket.get("port_value")).map(Value::to_string).unwrap_or_default();
    (socket.map(|socket| str_of(socket, "address")).unwrap_or_default().to_owned(), port)
}

fn find_all(value: &Value, name: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            for (member, value) in members {
                match value {
                    Value::String(text) if member == name => found.push(text.clone()),
                    value => find_all(value, name, found),
                }
            }
        }
        Value::Array(elements) => elements.iter().for_each(|element| find_all(element, name, found)),
        _ => {}
    }
}

fn list<'a>(value: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
    value.get(name).and_then(Value::as_array).into_iter().flatten()
}

fn str_of<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rows_tell_what_matters() {
        let split = json!({"name": "http.8080", "virtual_hosts": [{"name": "shop:80", "domains": ["shop"], "routes": [
            {"match": {"prefix": "/"}, "route": {"weighted_clusters": {"clusters": [{"name": "a", "weight": 90}, {"name": "b", "weight": 10}]}}},
        ]}]});
        let check = |entry: Value, kind: Kind, wanted: &[&str]| assert_eq!(rows(&[entry], kind)[1], wanted);
        check(split, Kind::Route, &["http.8080", "shop:80", "shop", "/*", "a 90, b 10"]);
        let name = "outbound|80|v1|cart.shop.svc.cluster.local";
        check(
            json!({"name": name, "type": "EDS"}),
            Kind::Cluster,
            &["cart.shop.svc.cluster.local", "80", "v1", "outbound", "EDS"],
        );
        check(json!({"name": "BlackHoleCluster"}), Kind::Cluster, &["BlackHoleCluster", "-", "-", "-", "STATIC"]);
        let endpoint = json!({"endpoint": {"address": {"socket_address": {"address": "10.0.0.1", "port_value": 80}}}});
        check(
            json!({"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]}),
            Kind::Endpoint,
            &["10.0.0.1:80", "HEALTHY", "", name],
        );
    }
}
