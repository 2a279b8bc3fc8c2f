//! The bootstrap: from the command line's file and text to everything that the process starts with.
//!
//! Static resources are decoded one at a time, so that ten thousand clusters never exist as messages at once. Every problem of a
//! configuration is reported in one run, with its file, line and column.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::bootstrap::v3 as proto;
use envoy_types::pb::envoy::config::cluster::v3::Cluster as ClusterProto;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::listener::v3::Listener as ListenerProto;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::Secret as SecretProto;
use prost::Message;
use thiserror::Error;
use torus_xds::{Diagnostic, Encoded, MessageType, Source, UnknownFields, wire};

use super::discovery::Plan;
use super::discovery::kind::Kind;
use super::discovery::source::Asked;
use super::flags::{Mode, Options};
use super::parse::admin::{self, AdminConfig};
use super::parse::context::Node;
use super::parse::runtime::Runtime;
use super::parse::{ParseContext, dynamic_resources, listener, node, overload, runtime};
use super::reject::Refused;
use super::snapshot::Snapshot;
use super::{advice, diagnostic, ledger};
use crate::cluster::{Cluster, ClusterIndex};
use crate::telemetry::access_log::sink::{FlushOptions, LogSinks};
use crate::telemetry::registry::Registry;
use crate::telemetry::stats_config::StatsConfig;
use crate::tls::secret;

/// What the process starts with.
pub struct Loaded {
    /// What workers read.
    pub snapshot: Snapshot,
    /// The admin server, if there is to be one.
    pub admin: Option<AdminConfig>,
    /// Who this proxy is.
    pub node: Node,
    /// Runtime values, for `/runtime`.
    pub runtime: Runtime,
    /// How stats are tagged, filtered and bucketed. Source: Bootstrap.stats_config, `--stats-tag`.
    pub stats: StatsConfig,
    /// How often gauges and counters are flushed. Source: Bootstrap.stats_flush_interval.
    pub stats_flush_interval: Duration,
    /// Connections allowed at once on all listeners that do not ignore it.
    pub connection_count_max: Option<u64>,
    /// Every stat.
    pub registry: Arc<Registry>,
    /// Every access-log file.
    pub log_sinks: Arc<LogSinks>,
    /// The configuration as it came, for `/config_dump`.
    pub raw: RawBootstrap,
    /// What a control plane is asked for, if there is one.
    pub discovery: Option<Plan>,
    /// What works but should not stay so.
    pub warnings: Vec<Diagnostic>,
}

/// A bootstrap in wire format, all sources merged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RawBootstrap {
    bytes: Vec<u8>,
}

impl RawBootstrap {
    /// The whole message, given away.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// The whole message.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Each static listener's message.
    pub fn listeners(&self) -> impl Iterator<Item = &[u8]> {
        resources(&self.bytes, LISTENERS)
    }

    /// Each static cluster's message.
    pub fn clusters(&self) -> impl Iterator<Item = &[u8]> {
        resources(&self.bytes, CLUSTERS)
    }
}

/// Why the configuration cannot be used.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The file of `-c` cannot be read.
    #[error("cannot read configuration `{path}`: {error}; {}", cure(.error))]
    Read {
        /// As given.
        path: String,
        /// What the system said.
        error: io::Error,
    },
    /// It does not say what this version can do; warnings are among the findings.
    #[error("{}", lines(.0))]
    Refused(Vec<Diagnostic>),
}

/// Reads, checks and compiles what `options` name, for `worker_count` workers.
pub fn load(options: &Options, worker_count: usize) -> Result<Loaded, LoadError> {
    let encoded = encode(options)?;
    let registry = Registry::new(worker_count + 1);
    let flush = FlushOptions { interval: options.file_flush_interval, bytes_min: options.file_flush_bytes_min };
    let mut context = ParseContext::new(worker_count + 1);
    context.log_sinks = LogSinks::new(flush, &registry);
    context.registry = registry;
    context.local_ip = Some(node::local_ip(options.local_address_ip_version));
    let parsed = parse(&encoded, options, &mut context);
    let refusals = ledger::refusals(encoded.message, &encoded.bytes);
    let nothing_is_missing = refusals.is_empty();
    let mut findings = diagnostic::findings(refusals, &context.problems.take(), &encoded);
    if let (Ok(parsed), Mode::Validate) = (&parsed, options.mode) {
        findings.extend(advice::advise(&parsed.snapshot, parsed.connection_count_max, &encoded));
    }
    findings.extend(encoded.warnings);
    match parsed {
        Ok(parsed) if nothing_is_missing => Ok(Loaded {
            snapshot: parsed.snapshot,
            admin: parsed.admin,
            node: context.node.clone(),
            runtime: context.runtime.clone(),
            stats: parsed.stats,
            stats_flush_interval: parsed.stats_flush_interval,
            connection_count_max: parsed.connection_count_max,
            registry: context.registry.clone(),
            log_sinks: context.log_sinks.clone(),
            raw: RawBootstrap { bytes: encoded.bytes },
            discovery: (!context.sources.is_empty()).then(|| {
                let (node, wildcards) = parsed.discovery;
                Plan { node, wildcards, context }
            }),
            warnings: findings,
        }),
        _ => Err(LoadError::Refused(findings)),
    }
}

fn encode(options: &Options) -> Result<Encoded, LoadError> {
    let refused = |finding| LoadError::Refused(vec![finding]);
    let mut sources = Vec::new();
    if let Some(path) = &options.config_path {
        let content = std::fs::read(path).map_err(|error| LoadError::Read { path: path.clone(), error })?;
        sources.push(Source::parse(path, content).map_err(refused)?);
    }
    if let Some(text) = &options.config_yaml {
        sources.push(Source::parse("--config-yaml", text.clone().into_bytes()).map_err(refused)?);
    }
    let name = <proto::Bootstrap as prost::Name>::full_name();
    let message = MessageType::named(&name)
        .ok_or_else(|| refused(Diagnostic::error("".into(), "", format!("{name} is not part of the schema"))))?;
    let unknown = if options.allow_unknown_static_fields { UnknownFields::Warn } else { UnknownFields::Refuse };
    torus_xds::encode(sources, message, unknown).map_err(LoadError::Refused)
}

struct Parsed {
    snapshot: Snapshot,
    admin: Option<AdminConfig>,
    stats: StatsConfig,
    stats_flush_interval: Duration,
    connection_count_max: Option<u64>,
    discovery: (core::Node, Vec<(Kind, Asked)>),
}

fn parse(encoded: &Encoded, options: &Options, context: &mut ParseContext) -> Result<Parsed, Refused> {
    let start = context.problems.checkpoint();
    let rest = wire::without(&encoded.bytes, &[STATIC_RESOURCES]);
    let bootstrap = proto::Bootstrap::decode(rest.as_slice()).map_err(|error| context.reject("", error.to_string()))?;
    context.node = node::parse(bootstrap.node.as_ref(), options);
    if let Some(layers) = &bootstrap.layered_runtime {
        context.within("layered_runtime", |context| runtime::parse(layers, context));
    }
    let admin = match &bootstrap.admin {
        Some(admin) => context.within("admin", |context| admin::parse(admin, context).map(Some)),
        None => Ok(None),
    };
    let connection_count_max = match &bootstrap.overload_manager {
        Some(manager) => context.within("overload_manager", |context| overload::parse(manager, context)),
        None => Ok(None),
    };
    let connection_count_max = connection_count_max.map(|limit| limit.or_else(|| runtime_limit(&context.runtime)));
    let stats = match &bootstrap.stats_config {
        Some(stats) => context.within("stats_config", |context| StatsConfig::parse(stats, context)),
        None => Ok(StatsConfig::default()),
    };
    let stats_flush_interval = stats_flush_interval(&bootstrap, context);
    let wildcards = match &bootstrap.dynamic_resources {
        Some(dynamic) => context.within("dynamic_resources", |context| dynamic_resources::parse(dynamic, context)),
        None => Ok(Vec::new()),
    };
    // A TCP proxy may name a cluster that is discovered later.
    let discovers_clusters = |wildcards: &Vec<(Kind, Asked)>| wildcards.iter().any(|(kind, _)| *kind == Kind::Cluster);
    context.validate_clusters = !wildcards.as_ref().is_ok_and(discovers_clusters);
    let snapshot = context.within("static_resources", |context| static_resources(&encoded.bytes, context));
    context.validate_clusters = true;
    context.problems.clean_since(start)?;
    let mut stats = stats?;
    for (name, value) in &options.stats_tags {
        stats.tags.add_fixed(name, value);
    }
    let mut snapshot = snapshot?;
    let discovery = (dynamic_resources::node(bootstrap.node.as_ref(), context), wildcards?);
    dynamic_resources::check_clusters(&snapshot, context)?;
    snapshot.cluster_by_name = Arc::new(context.cluster_by_name.clone());
    snapshot.route_tables.resize_with(context.route_by_name.len(), || None);
    Ok(Parsed {
        snapshot,
        admin: admin?,
        stats,
        stats_flush_interval: stats_flush_interval?,
        connection_count_max: connection_count_max?,
        discovery,
    })
}

/// The limit in its older form, which the resource monitor replaces.
fn runtime_limit(runtime: &Runtime) -> Option<u64> {
    runtime.get(CONNECTION_LIMIT_KEY).map(|_| runtime.integer(CONNECTION_LIMIT_KEY, u64::MAX))
}

fn static_resources(bootstrap: &[u8], context: &mut ParseContext) -> Result<Snapshot, Refused> {
    let start = context.problems.checkpoint();
    name_clusters(bootstrap, context);
    for (index, bytes) in resources(bootstrap, SECRETS).enumerate() {
        let _ = context.within_item("secrets", index, |context| {
            let secret = decode::<SecretProto>(bytes, context)?;
            secret::parse_fixed(secret, context)
        });
    }
    let mut snapshot = Snapshot { version: 1, ..Snapshot::default() };
    snapshot.clusters.reserve_exact(context.cluster_by_name.len());
    for (index, bytes) in resources(bootstrap, CLUSTERS).enumerate() {
        let cluster = context.within_item("clusters", index, |context| {
            let config = decode::<ClusterProto>(bytes, context)?;
            Cluster::parse(&config, context)
        });
        snapshot.clusters.extend(cluster.map(|cluster| Some(Arc::new(cluster))));
    }
    for (index, bytes) in resources(bootstrap, LISTENERS).enumerate() {
        context.within_item("listeners", index, |context| {
            let Ok(config) = decode::<ListenerProto>(bytes, context) else { return };
            let Ok(parsed) = listener::parse(&config, context) else { return };
            listener::refuse_duplicates(&snapshot.listeners, &parsed, context);
            snapshot.listeners.push(Arc::new(parsed));
        });
    }
    context.problems.clean_since(start)?;
    Ok(snapshot)
}

/// Gives every cluster its index before anything refers to it.
fn name_clusters(bootstrap: &[u8], context: &mut ParseContext) {
    for (index, cluster) in resources(bootstrap, CLUSTERS).enumerate() {
        // Later values of a field win (protobuf.dev, "Encoding").
        let name = wire::length_values(cluster, CLUSTER_NAME).last().unwrap_or_default();
        let name = String::from_utf8_lossy(name);
        let place = ClusterIndex(u32::try_from(index).unwrap_or(u32::MAX));
        if name.is_empty() {
            continue;
        }
        if context.cluster_by_name.insert(name.as_ref().into(), place).is_some() {
            context.within_item("clusters", index, |context| {
                let _ = context.reject("name", format!("another cluster is called `{name}`"));
            });
        }
    }
}

fn stats_flush_interval(bootstrap: &proto::Bootstrap, context: &mut ParseContext) -> Result<Duration, Refused> {
    let interval =
        context.duration("stats_flush_interval", &bootstrap.stats_flush_interval)?.unwrap_or(STATS_FLUSH_INTERVAL);
    // Source: Bootstrap.stats_flush_interval.
    if interval < Duration::from_millis(1) || interval >= Duration::from_secs(300) {
        return Err(context.reject("stats_flush_interval", "must be at least 1ms and less than 300s"));
    }
    Ok(interval)
}

fn decode<M: Message + Default>(bytes: &[u8], context: &mut ParseContext) -> Result<M, Refused> {
    M::decode(bytes).map_err(|error| context.reject("", error.to_string()))
}

/// Each message in field `number` of `static_resources`, which may come several times where sources were merged.
fn resources(bootstrap: &[u8], number: u32) -> impl Iterator<Item = &[u8]> {
    wire::length_values(bootstrap, STATIC_RESOURCES).flat_map(move |resources| wire::length_values(resources, number))
}

fn lines(findings: &[Diagnostic]) -> String {
    findings.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

fn cure(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "check the path after -c",
        io::ErrorKind::PermissionDenied => "give the proxy's user the right to read it",
        io::ErrorKind::IsADirectory => "name a file in that folder",
        _ => "name a file that can be read",
    }
}

/// Field number of Bootstrap.static_resources.
const STATIC_RESOURCES: u32 = 2;
/// Field number of StaticResources.listeners.
const LISTENERS: u32 = 1;
/// Field number of StaticResources.clusters.
const CLUSTERS: u32 = 2;
/// Field number of StaticResources.secrets.
const SECRETS: u32 = 3;
/// Field number of Cluster.name.
const CLUSTER_NAME: u32 = 1;
/// Source: Envoy's documentation, "Limiting active connections".
const CONNECTION_LIMIT_KEY: &str = "overload.global_downstream_max_connections";
/// Source: Bootstrap.stats_flush_interval.
const STATS_FLUSH_INTERVAL: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests;
