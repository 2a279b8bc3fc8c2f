//! Endpoints that a file names: EDS with a `path_config_source`.
//!
//! The file is a DiscoveryResponse of ClusterLoadAssignments, in YAML, JSON or protobuf, and is replaced by renaming another over it.
//! It is looked at again and again, and read once it stands still: so a file that is written in place is not read half-way. What
//! cannot be read or used leaves the endpoints as they are. The first outcome, whatever it is, ends the cluster's warming, and so does
//! `initial_fetch_timeout`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::service::discovery::v3 as discovery;
use envoy_types::pb::google::protobuf::Any;
use prost::{Message as _, Name as _};
use torus_xds::subscription::{Protocol, Rejection, Resource, Response, Subscription};
use torus_xds::{MessageType, Source, UnknownFields, wire};

use super::{Cluster, ClusterIndex};
use crate::config::discovery::source::SourceIndex;
use crate::config::ledger;
use crate::config::parse::ParseContext;
use crate::config::parse::context::type_name;
use crate::config::watched_file::WatchedFile;
use crate::telemetry::counters::Core;
use crate::telemetry::names::ClusterStat;

/// Where a cluster's endpoints come from. Source: Cluster.EdsClusterConfig, ConfigSource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EdsPlan {
    /// Who says it.
    pub source: EdsSource,
    /// `service_name`, or else the cluster's name.
    pub name: Box<str>,
    /// How long the cluster warms at most; zero is for ever.
    pub fetch_timeout: Duration,
}

/// Who names the endpoints of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EdsSource {
    /// A server of discovery.
    Stream(SourceIndex),
    /// A file.
    File {
        /// Where it is.
        path: PathBuf,
        /// How often it is looked at.
        poll_interval: Duration,
    },
}

impl EdsPlan {
    /// The file, if there is one.
    pub fn path(&self) -> Option<&PathBuf> {
        match &self.source {
            EdsSource::Stream(_) => None,
            EdsSource::File { path, .. } => Some(path),
        }
    }
}

/// Follows the file at `path` for all `clusters` that name it. Each change is passed to `publish`; `warm` is called once for each
/// cluster. `core` is the config thread's. Never ends.
pub async fn run(
    path: PathBuf,
    clusters: Vec<(ClusterIndex, Arc<Cluster>)>,
    core: Core,
    core_count: usize,
    mut publish: impl FnMut(ClusterIndex, Cluster),
    mut warm: impl FnMut(),
) {
    let plans = clusters.iter().filter_map(|(_, cluster)| cluster.eds.as_ref());
    let intervals = plans.filter_map(|plan| match plan.source {
        EdsSource::File { poll_interval, .. } => Some(poll_interval),
        EdsSource::Stream(_) => None,
    });
    let interval = intervals.min().unwrap_or(POLL_INTERVAL);
    let mut file = WatchedFile::new(path.clone());
    let mut follower = Follower::new(path, clusters, core, core_count, Instant::now());
    loop {
        if file.has_changed() {
            let content = tokio::fs::read(&follower.path).await;
            let content = content.map_err(|error| format!("{}: cannot be read: {error}", follower.path.display()));
            for (index, cluster) in follower.on_content(content, Instant::now()) {
                publish(index, cluster);
            }
        }
        for _ in 0..follower.take_warmed(Instant::now()) {
            warm();
        }
        tokio::time::sleep(interval).await;
    }
}

/// The clusters that one file serves.
struct Follower {
    path: PathBuf,
    clusters: Vec<Followed>,
    core: Core,
    context: ParseContext,
}

struct Followed {
    index: ClusterIndex,
    cluster: Arc<Cluster>,
    name: Box<str>,
    subscription: Subscription,
    /// The assignment in use.
    bytes: Option<Vec<u8>>,
    warmth: Warmth,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Warmth {
    Warming,
    Warmed,
    Told,
}

impl Follower {
    fn new(
        path: PathBuf,
        clusters: Vec<(ClusterIndex, Arc<Cluster>)>,
        core: Core,
        core_count: usize,
        now: Instant,
    ) -> Self {
        let followed = |(index, cluster): (ClusterIndex, Arc<Cluster>)| {
            let plan = cluster.eds.as_deref();
            let name: Box<str> = plan.map_or_else(|| (&*cluster.name).into(), |plan| plan.name.clone());
            let timeout = plan.map_or(Duration::ZERO, |plan| plan.fetch_timeout);
            let mut subscription = Subscription::new(&assignment_url(), Protocol::Sotw, false, timeout);
            subscription.set_names([&*name], now);
            Followed { index, cluster, name, subscription, bytes: None, warmth: Warmth::Warming }
        };
        let clusters = clusters.into_iter().map(followed).collect();
        Self { path, clusters, core, context: ParseContext::new(core_count) }
    }

    /// Takes what was read; gives the clusters whose endpoints changed.
    fn on_content(&mut self, content: Result<Vec<u8>, String>, now: Instant) -> Vec<(ClusterIndex, Cluster)> {
        let response = content.and_then(|content| read(&self.path, content));
        if let Err(reason) = &response {
            tracing::warn!(target: "config", "endpoints stay as they are: {reason}");
        }
        let core = self.core;
        let mut changed = Vec::new();
        for followed in &mut self.clusters {
            followed.cluster.stats.increment(core, ClusterStat::UpdateAttempt);
            let stat = match &response {
                Err(_) => ClusterStat::UpdateFailure,
                Ok(contents) => match followed.take(contents, &mut self.context, now) {
                    Ok(Outcome::Changed(cluster)) => {
                        followed.cluster.stats.increment(core, ClusterStat::MembershipChange);
                        followed.cluster = Arc::new(Cluster::clone(&cluster));
                        changed.push((followed.index, *cluster));
                        ClusterStat::UpdateSuccess
                    }
                    Ok(Outcome::Same) => {
                        followed.cluster.stats.increment(core, ClusterStat::UpdateNoRebuild);
                        ClusterStat::UpdateSuccess
                    }
                    Ok(Outcome::Absent) => {
                        followed.cluster.stats.increment(core, ClusterStat::UpdateEmpty);
                        ClusterStat::UpdateSuccess
                    }
                    Err(reason) => {
                        let (path, cluster) = (self.path.display(), &followed.cluster.name);
                        tracing::warn!(target: "config", "{path}: endpoints of cluster `{cluster}` stay as they are: {reason}");
                        ClusterStat::UpdateRejected
                    }
                },
            };
            followed.cluster.stats.increment(core, stat);
            followed.warm_up();
        }
        changed
    }

    /// How many clusters became warm since the last call.
    fn take_warmed(&mut self, now: Instant) -> usize {
        let mut count = 0;
        for followed in &mut self.clusters {
            if !followed.subscription.poll_missing(now).is_empty() {
                followed.warm_up();
            }
            if followed.warmth == Warmth::Warmed {
                followed.warmth = Warmth::Told;
                count += 1;
            }
        }
        count
    }
}

/// What a file means for a cluster.
enum Outcome {
    Changed(Box<Cluster>),
    Same,
    /// The file says nothing of it, which removes nothing.
    Absent,
}

impl Followed {
    fn warm_up(&mut self) {
        if self.warmth == Warmth::Warming {
            self.warmth = Warmth::Warmed;
        }
    }

    fn take(&mut self, contents: &Contents, context: &mut ParseContext, now: Instant) -> Result<Outcome, String> {
        let resources = contents.by_name.get(&self.name).cloned().unwrap_or_default();
        let response = Response { version: contents.version.clone(), resources, ..Response::default() };
        let received = self.subscription.on_response(response, now)?;
        let Some(bytes) = received.updated.into_iter().find_map(|resource| resource.body) else {
            self.subscription.conclude(&[]);
            return Ok(Outcome::Absent);
        };
        if self.bytes.as_ref() == Some(&bytes) {
            self.subscription.conclude(&[]);
            return Ok(Outcome::Same);
        }
        match self.parse(&bytes, context) {
            Ok(cluster) => {
                self.subscription.conclude(&[]);
                self.bytes = Some(bytes);
                Ok(Outcome::Changed(Box::new(cluster)))
            }
            Err(reason) => {
                self.subscription.conclude(&[Rejection { name: self.name.clone(), reason: reason.clone() }]);
                Err(reason)
            }
        }
    }

    fn parse(&self, bytes: &[u8], context: &mut ParseContext) -> Result<Cluster, String> {
        let message = MessageType::named(&ClusterLoadAssignment::full_name());
        let refusals = message.map(|message| ledger::refusals(message, bytes)).unwrap_or_default();
        if let Some(first) = refusals.first() {
            return Err(format!("{}: {}", first.path, first.reason));
        }
        let config = ClusterLoadAssignment::decode(bytes).map_err(|error| error.to_string())?;
        let parsed = self.cluster.with_assignment(&config, context);
        let problems = context.problems.take();
        parsed.map_err(|_| problems.first().map_or_else(String::new, ToString::to_string))
    }
}

/// A file's resources.
struct Contents {
    version: Box<str>,
    by_name: BTreeMap<Box<str>, Vec<Resource>>,
}

/// The DiscoveryResponse in `content`; the error is a line with its place.
fn read(path: &std::path::Path, content: Vec<u8>) -> Result<Contents, String> {
    if content.len() > FILE_BYTES_MAX {
        return Err(format!("{}: is larger than {FILE_BYTES_MAX} bytes", path.display()));
    }
    let name = path.to_string_lossy();
    let line = |finding: torus_xds::Diagnostic| finding.line().to_string();
    let source = Source::parse(&name, content).map_err(line)?;
    let full_name = discovery::DiscoveryResponse::full_name();
    let message = MessageType::named(&full_name).ok_or_else(|| format!("{full_name} is not part of the schema"))?;
    let first = |findings: Vec<torus_xds::Diagnostic>| findings.into_iter().next().map(line).unwrap_or_default();
    let encoded = torus_xds::encode(vec![source], message, UnknownFields::Refuse).map_err(first)?;
    let response: discovery::DiscoveryResponse = encoded.decode().map_err(first)?;
    let mut by_name: BTreeMap<Box<str>, Vec<Resource>> = BTreeMap::new();
    for (index, packed) in response.resources.into_iter().enumerate() {
        let packed = unwrapped(packed).map_err(|reason| format!("{name}: resources[{index}]: {reason}"))?;
        if type_name(&packed.type_url) != ClusterLoadAssignment::full_name() {
            let found = type_name(&packed.type_url);
            let wanted = ClusterLoadAssignment::full_name();
            return Err(format!("{name}: resources[{index}]: has type `{found}` where `{wanted}` is needed"));
        }
        // Later values of a field win (protobuf.dev, "Encoding").
        let cluster = wire::length_values(&packed.value, CLUSTER_NAME).last().unwrap_or_default();
        let cluster: Box<str> = String::from_utf8_lossy(cluster).into();
        by_name.entry(cluster.clone()).or_default().push(Resource {
            name: cluster,
            type_url: assignment_url().into(),
            body: Some(packed.value),
            ..Resource::default()
        });
    }
    Ok(Contents { version: response.version_info.into(), by_name })
}

/// A resource may come in a wrapper that names it.
fn unwrapped(packed: Any) -> Result<Any, String> {
    if type_name(&packed.type_url) != discovery::Resource::full_name() {
        return Ok(packed);
    }
    let wrapper = discovery::Resource::decode(packed.value.as_slice()).map_err(|error| error.to_string())?;
    wrapper.resource.ok_or_else(|| "resource: is required".to_owned())
}

fn assignment_url() -> String {
    format!("type.googleapis.com/{}", ClusterLoadAssignment::full_name())
}

/// How often a file is looked at unless `poll_interval` says otherwise.
pub const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Bytes of a file of endpoints.
const FILE_BYTES_MAX: usize = 256 << 20;
/// Field number of ClusterLoadAssignment.cluster_name.
const CLUSTER_NAME: u32 = 1;

#[cfg(test)]
mod tests;
