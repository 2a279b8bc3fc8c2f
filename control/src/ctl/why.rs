//! `why`: what one request meets in a proxy's configuration, and which file and line say so.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use envoy_types::pb::envoy::config::cluster::v3::{
    Cluster,
    cluster::{ClusterDiscoveryType, DiscoveryType},
};
use envoy_types::pb::envoy::config::core::v3::{address::Address, socket_address::PortSpecifier};
use envoy_types::pb::envoy::config::endpoint::v3::{ClusterLoadAssignment, LbEndpoint, lb_endpoint::HostIdentifier};
use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use serde_json::{Value, json};

use super::proxy_config::{Kind, dump, resources};
use super::{CtlError, Format, MeshFlags, Server, Verdict, output};
use crate::evaluate::{Call, Failure, Outcome, Security, Spoken, evaluate, origin};
use crate::model::{Mesh, MeshOptions, Proxy, ProxyKind};
use crate::source::folder::Folder;
use crate::translate;
use crate::validate::validate;

#[derive(clap::Args)]
pub(super) struct Flags {
    /// The proxy that the request arrives at (its id or a part of it; may be left out), the method, and the URL
    #[arg(value_name = "[PROXY] METHOD URL", required = true, num_args = 2..=3)]
    request: Vec<String>,
    /// A header of the request, as curl takes it
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    headers: Vec<String>,
    /// Port of the listener, where it is not the URL's
    #[arg(long, value_name = "PORT")]
    listener_port: Option<u16>,
    /// The proxy, as the first argument names it
    #[arg(long, conflicts_with_all = ["file", "config_folder"])]
    proxy: Option<String>,
    /// Read a saved /config_dump in place of asking torusd
    #[arg(short, long, conflicts_with = "config_folder")]
    file: Option<PathBuf>,
    /// Read the objects that torusd would read, in place of asking it
    #[arg(long, value_name = "PATH")]
    config_folder: Option<PathBuf>,
    /// With --config-folder: labels of the gateway
    #[arg(long, value_name = "NAME=VALUE,...", default_value = "istio=ingressgateway")]
    labels: String,
    /// With --config-folder: namespace of the gateway
    #[arg(short, long, default_value = "default")]
    namespace: String,
    #[command(flatten)]
    mesh: MeshFlags,
    #[arg(short, long, value_enum, default_value = "short")]
    output: Format,
    #[command(flatten)]
    server: Server,
}

pub(super) fn run(flags: &Flags) -> Result<Verdict, CtlError> {
    let (source, method, url) = match flags.request.as_slice() {
        [method, url] => (None, method, url),
        [source, method, url] => (Some(source.as_str()), method, url),
        _ => {
            return Err(CtlError::Use(
                "say METHOD and URL, for instance: torusctl why GET http://shop.example/".into(),
            ));
        }
    };
    let call = call(method, url, &flags.headers, flags.listener_port)?;
    let configuration = match &flags.config_folder {
        Some(folder) => Configuration::of_folder(folder, &flags.labels, &flags.namespace, &flags.mesh.options()?)?,
        None => {
            let proxy = flags.proxy.as_deref().or(source);
            Configuration::of_dump(&dump(flags.file.as_deref(), proxy, &flags.server.http_address)?)?
        }
    };
    let answer = configuration.answer(&call);
    match flags.output {
        Format::Short => output::print(&answer.text())?,
        format => output::print_document(&answer.document(), format)?,
    }
    Ok(if answer.failure.is_none() { Verdict::Well } else { Verdict::Findings })
}

/// The request that the arguments describe.
fn call(method: &str, url: &str, headers: &[String], port: Option<u16>) -> Result<Call, CtlError> {
    let bad =
        |reason: &str| CtlError::Use(format!("{url}: {reason}; for instance: http://shop.example:8080/cart?id=1"));
    let (scheme, rest) = url.split_once("://").ok_or_else(|| bad("not a URL"))?;
    let (security, default_port) = match scheme {
        "http" => (Security::Plaintext, 80),
        "https" => (Security::Tls, 443),
        _ => return Err(bad("neither http nor https")),
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let path = path.split('#').next().unwrap_or_default();
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let (name, url_port) = match authority.rsplit_once(':') {
        Some((name, digits)) if !digits.ends_with(']') => {
            (name, Some(digits.parse::<u16>().map_err(|_| bad("the port is not a number up to 65535"))?))
        }
        _ => (authority, None),
    };
    if name.is_empty() || authority.contains('@') {
        return Err(bad("no host, or a user name before it"));
    }
    let mut fields: BTreeMap<String, String> =
        BTreeMap::from([(":method".to_owned(), method.to_owned()), (":scheme".to_owned(), scheme.to_owned())]);
    let mut host = authority.to_owned();
    for header in headers {
        let (name, value) = header
            .split_once(':')
            .filter(|(name, _)| !name.is_empty())
            .ok_or_else(|| CtlError::Use(format!("-H {header}: not a header; for instance: -H 'x-canary: yes'")))?;
        let (name, value) = (name.trim().to_ascii_lowercase(), value.trim());
        if name == "host" {
            value.clone_into(&mut host);
            continue;
        }
        // Several fields of one name are one list (RFC 9110, section 5.3).
        let known = fields.entry(name).and_modify(|known| *known = format!("{known},{value}"));
        known.or_insert_with(|| value.to_owned());
    }
    let is_tls = security == Security::Tls;
    Ok(Call {
        address: name.trim_matches(['[', ']']).to_owned(),
        port: u32::from(port.or(url_port).unwrap_or(default_port)),
        spoken: Spoken::Http,
        security,
        host,
        path,
        headers: Some(fields),
        sni: if is_tls && name.parse::<std::net::IpAddr>().is_err() { name.to_owned() } else { String::new() },
        alpn: if is_tls { "http/1.1" } else { "" }.to_owned(),
        inbound: false,
        mesh_certificate: "default".to_owned(),
    })
}

/// What one proxy has.
struct Configuration {
    listeners: Vec<Listener>,
    routes: Vec<RouteConfiguration>,
    clusters: Vec<Cluster>,
    endpoints: Vec<ClusterLoadAssignment>,
}

impl Configuration {
    fn of_dump(dump: &Value) -> Result<Self, CtlError> {
        Ok(Self {
            listeners: decode(dump, Kind::Listener)?,
            routes: decode(dump, Kind::Route)?,
            clusters: decode(dump, Kind::Cluster)?,
            endpoints: decode(dump, Kind::Endpoint)?,
        })
    }

    fn of_folder(path: &Path, labels: &str, namespace: &str, options: &MeshOptions) -> Result<Self, CtlError> {
        let mut folder = Folder::new(path, |object| validate(object));
        folder.scan();
        if let (true, Some(finding)) = (folder.objects().is_empty(), folder.findings().next()) {
            return Err(CtlError::Use(format!("--config-folder: {}", finding.line())));
        }
        let labels = labels
            .split(',')
            .filter(|label| !label.is_empty())
            .map(|label| match label.split_once('=') {
                Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
                None => Err(CtlError::Use(format!("--labels {label}: not NAME=VALUE"))),
            })
            .collect::<Result<BTreeMap<_, _>, _>>()?;
        let proxy = Proxy {
            kind: ProxyKind::Gateway,
            id: format!("gateway.{namespace}"),
            namespace: namespace.to_owned(),
            metadata_namespace: namespace.to_owned(),
            labels,
            ip_addresses: vec!["127.0.0.1".to_owned()],
            locality: String::new(),
            metadata: BTreeMap::new(),
        };
        let (mesh, _) = Mesh::build(folder.objects(), options);
        Ok(Self {
            listeners: values(translate::listeners(&mesh, &proxy)),
            routes: values(translate::routes(&mesh, &proxy)),
            clusters: values(translate::clusters(&mesh, &proxy)),
            endpoints: values(translate::endpoints(&mesh, &proxy, None)),
        })
    }

    fn answer(&self, call: &Call) -> Answer {
        let outcome = evaluate(&self.listeners, &self.routes, call);
        let mut names: Vec<(&str, u32)> = outcome
            .split
            .iter()
            .filter(|(_, weight)| *weight > 0)
            .map(|(name, weight)| (name.as_str(), *weight))
            .collect();
        if names.is_empty() && !outcome.cluster.is_empty() {
            names.push((&outcome.cluster, 100));
        }
        let targets: Vec<Target> = names.into_iter().map(|(name, weight)| self.target(name, weight)).collect();
        let empty = targets.iter().find(|target| target.is_empty());
        let (status, failure) = match (outcome.failure, empty) {
            (Some(failure), _) => {
                let (status, reason) = explain(failure, call, &outcome);
                (status, reason)
            }
            (None, Some(target)) if targets.iter().all(Target::is_empty) => (Some(503), Some(target.complaint())),
            (None, Some(target)) => (None, Some(format!("a share of requests gets 503: {}", target.complaint()))),
            (None, None) => (outcome.answer, None),
        };
        Answer { outcome, targets, status, failure }
    }

    fn target(&self, name: &str, weight: u32) -> Target {
        let cluster = self.clusters.iter().find(|cluster| cluster.name == name);
        let service = cluster.and_then(|cluster| cluster.eds_cluster_config.as_ref());
        let service =
            service.map(|eds| eds.service_name.as_str()).filter(|service| !service.is_empty()).unwrap_or(name);
        let inline = cluster.and_then(|cluster| cluster.load_assignment.as_ref());
        let assignment = inline.or_else(|| self.endpoints.iter().find(|known| known.cluster_name == service));
        let localities = assignment.map(|assignment| assignment.endpoints.as_slice()).unwrap_or_default();
        Target {
            cluster: name.to_owned(),
            weight,
            is_known: cluster.is_some(),
            is_open: cluster.is_some_and(|cluster| {
                cluster.cluster_discovery_type == Some(ClusterDiscoveryType::Type(DiscoveryType::OriginalDst.into()))
            }),
            origin: cluster.and_then(|cluster| origin(cluster.metadata.as_ref())),
            endpoints: localities.iter().flat_map(|locality| &locality.lb_endpoints).filter_map(address).collect(),
        }
    }
}

fn values<M>(list: Vec<(String, M)>) -> Vec<M> {
    list.into_iter().map(|(_, message)| message).collect()
}

fn decode<M: prost::Message + prost::Name + Default>(dump: &Value, kind: Kind) -> Result<Vec<M>, CtlError> {
    let decode = |resource: &Value| {
        let mut resource = resource.clone();
        if let Value::Object(members) = &mut resource {
            members.remove("@type");
        }
        torus_xds::from_json(&resource.to_string()).map_err(|findings| {
            let first = findings.first().map(|finding| finding.line().to_string()).unwrap_or_default();
            CtlError::Use(format!("the configuration dump cannot be read: {}: {first}", M::full_name()))
        })
    };
    resources(dump, kind).map(decode).collect()
}

fn address(endpoint: &LbEndpoint) -> Option<String> {
    let Some(HostIdentifier::Endpoint(endpoint)) = &endpoint.host_identifier else { return None };
    Some(match endpoint.address.as_ref()?.address.as_ref()? {
        Address::SocketAddress(socket) => match socket.port_specifier.as_ref()? {
            PortSpecifier::PortValue(port) => format!("{}:{port}", socket.address),
            PortSpecifier::NamedPort(port) => format!("{}:{port}", socket.address),
        },
        Address::Pipe(pipe) => pipe.path.clone(),
        _ => return None,
    })
}

/// One cluster that a request may go to.
struct Target {
    cluster: String,
    weight: u32,
    is_known: bool,
    /// Goes to wherever the client went; there is no list of endpoints.
    is_open: bool,
    /// Object and place.
    origin: Option<(String, String)>,
    endpoints: Vec<String>,
}

impl Target {
    fn is_empty(&self) -> bool {
        self.endpoints.is_empty() && !self.is_open
    }

    fn complaint(&self) -> String {
        if self.cluster == "BlackHoleCluster" {
            "the route leads to a service, port or subset that does not exist".to_owned()
        } else if self.is_known {
            format!(
                "cluster {} has no endpoints; look at the labels of its subset and at its EndpointSlices",
                self.cluster
            )
        } else {
            format!("cluster {} does not exist; look at the host, port and subset of the destination", self.cluster)
        }
    }
}

/// The status that the proxy answers, and what is wrong; no status where the connection fails.
fn explain(failure: Failure, call: &Call, outcome: &Outcome) -> (Option<u32>, Option<String>) {
    let (status, reason) = match failure {
        Failure::TlsRedirect => return (Some(301), None),
        Failure::NoListener => (
            None,
            format!("nothing listens on port {}: no Gateway that selects this proxy has a server there", call.port),
        ),
        Failure::NoFilterChain if call.security == Security::Plaintext => {
            (None, format!("listener {} has no filter chain for plaintext; use https", outcome.listener))
        }
        Failure::NoFilterChain => {
            (None, format!("listener {} has no filter chain for server name `{}`", outcome.listener, call.sni))
        }
        Failure::MultipleFilterChains => {
            (None, format!("several filter chains of listener {} fit equally well", outcome.listener))
        }
        Failure::Tls => (None, format!("listener {} speaks TLS on this port; use https", outcome.listener)),
        Failure::MutualTls => (None, format!("listener {} wants the mesh's own certificates", outcome.listener)),
        Failure::Protocol => (None, format!("listener {} speaks plain HTTP on this port; use http", outcome.listener)),
        Failure::NoVirtualHost => (
            Some(404),
            format!(
                "no virtual host of {} is for `{}`: no Gateway server and VirtualService share this host",
                outcome.route_config, call.host
            ),
        ),
        Failure::NoRoute => {
            (Some(404), format!("no route of virtual host {} fits the path, headers and query", outcome.virtual_host))
        }
    };
    (status, Some(reason))
}

/// What is told.
struct Answer {
    outcome: Outcome,
    targets: Vec<Target>,
    /// What the proxy answers by itself.
    status: Option<u32>,
    failure: Option<String>,
}

impl Answer {
    fn text(&self) -> String {
        let outcome = &self.outcome;
        let mut rows: Vec<Vec<String>> = Vec::new();
        let mut row = |name: &str, value: &str| {
            if !value.is_empty() {
                rows.push(vec![name.to_owned(), value.to_owned()]);
            }
        };
        row("listener", &outcome.listener);
        row("filter chain", &outcome.filter_chain);
        row("route config", &outcome.route_config);
        row("virtual host", &outcome.virtual_host);
        row("route", &outcome.route);
        row("decided by", outcome.config.as_deref().unwrap_or_default());
        row("at", outcome.place.as_deref().unwrap_or_default());
        row("filters", &outcome.route_filters.join(", "));
        for target in &self.targets {
            let weight = if self.targets.len() > 1 { format!(" (weight {})", target.weight) } else { String::new() };
            row("cluster", &format!("{}{weight}", target.cluster));
            if let Some((config, place)) = &target.origin {
                row("  from", &format!("{config} at {place}"));
            }
            row("  endpoints", &target.endpoints.join(", "));
        }
        row("status", &self.status.map(|status| status.to_string()).unwrap_or_default());
        row("fails", self.failure.as_deref().unwrap_or_default());
        output::table(&rows)
    }

    fn document(&self) -> Value {
        let outcome = &self.outcome;
        let clusters: Vec<Value> = self
            .targets
            .iter()
            .map(|target| {
                let (config, place) = target.origin.clone().unzip();
                json!({
                    "name": target.cluster, "weight": target.weight, "endpoints": target.endpoints,
                    "config": config, "place": place,
                })
            })
            .collect();
        json!({
            "listener": outcome.listener, "filterChain": outcome.filter_chain, "routeConfig": outcome.route_config,
            "virtualHost": outcome.virtual_host, "route": outcome.route, "config": outcome.config,
            "place": outcome.place, "routeFilters": outcome.route_filters, "clusters": clusters, "status": self.status,
            "failure": outcome.failure.filter(|failure| *failure != Failure::TlsRedirect).map(Failure::name),
            "reason": self.failure,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_become_a_request() {
        let headers = ["X-A: 1".to_owned(), "x-a: 2".to_owned(), "Host: other".to_owned()];
        let made = call("GET", "https://shop.example:8443/cart?id=1#top", &headers, Some(9)).unwrap();
        assert_eq!((made.port, &*made.path, &*made.host, &*made.sni), (9, "/cart?id=1", "other", "shop.example"));
        assert_eq!(made.headers.unwrap()["x-a"], "1,2");
        let made = call("GET", "http://[::1]", &[], None).unwrap();
        assert_eq!((made.port, &*made.path, &*made.address), (80, "/", "::1"));
        for wrong in ["shop", "ftp://shop/", "http:///x", "http://shop:x/", "http://a@b/"] {
            assert!(call("GET", wrong, &[], None).is_err(), "{wrong}");
        }
        assert!(call("GET", "http://shop", &["oops".to_owned()], None).is_err());
    }
}
