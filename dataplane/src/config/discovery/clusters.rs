//! Discovered clusters and their endpoints: what is there, what is new and waits for its endpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3 as proto;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use torus_xds::subscription::Resource;

use super::read;
use crate::cluster::eds::EdsSource;
use crate::cluster::{Cluster, ClusterIndex};
use crate::config::parse::ParseContext;
use crate::config::snapshot::Snapshot;

#[derive(Default)]
pub(super) struct Clusters {
    held: BTreeMap<Box<str>, Held>,
    /// The newest assignment of each name that some cluster asks for.
    assignments: BTreeMap<Box<str>, (Vec<u8>, ClusterLoadAssignment)>,
}

struct Held {
    index: ClusterIndex,
    bytes: Vec<u8>,
    newest: Arc<Cluster>,
    /// The newest, or else what serves until the newest has its first endpoints.
    live: Option<Arc<Cluster>>,
    /// From the bootstrap, which discovery leaves as it is.
    is_static: bool,
}

impl Held {
    fn is_warm(&self) -> bool {
        self.live.as_ref().is_some_and(|live| Arc::ptr_eq(live, &self.newest))
    }

    /// The assignments that it needs, of the newest and of what serves.
    fn services(&self) -> impl Iterator<Item = (&str, Duration)> {
        std::iter::once(&self.newest).chain(&self.live).filter_map(|cluster| service(cluster))
    }

    /// The newest is live from now on.
    fn go_live(&mut self, draft: &mut Snapshot) {
        self.live = Some(self.newest.clone());
        show(draft, self.index, self.live.clone());
    }
}

/// The name of the assignment that comes on the stream, and how long it may be missing.
fn service(cluster: &Cluster) -> Option<(&str, Duration)> {
    let plan = cluster.eds.as_deref()?;
    (plan.source == EdsSource::Ads).then_some((&*plan.name, plan.fetch_timeout))
}

fn asks_for(cluster: &Cluster, name: &str) -> bool {
    service(cluster).is_some_and(|(service, _)| service == name)
}

impl Clusters {
    /// The clusters of the bootstrap.
    pub(super) fn new(snapshot: &Snapshot) -> Self {
        let mut clusters = Self::default();
        for (index, cluster) in snapshot.live_clusters() {
            let live = service(cluster).is_none().then(|| cluster.clone());
            let held = Held { index, bytes: Vec::new(), newest: cluster.clone(), live, is_static: true };
            clusters.held.insert((&*cluster.name).into(), held);
        }
        clusters
    }

    /// Names of the assignments that are needed, and how long each may be missing.
    pub(super) fn services(&self) -> BTreeMap<&str, Duration> {
        self.held.values().flat_map(Held::services).collect()
    }

    /// Whether every cluster has its first endpoints.
    pub(super) fn are_warm(&self) -> bool {
        self.held.values().all(Held::is_warm)
    }

    /// Takes a new or changed cluster. What it replaces stays until it is warm. Returns what has to be followed by other means than
    /// the stream: names to resolve, a file.
    pub(super) fn put(
        &mut self,
        resource: &Resource,
        draft: &mut Snapshot,
        context: &mut ParseContext,
    ) -> Result<Option<(ClusterIndex, Arc<Cluster>)>, String> {
        let body = resource.body.as_deref().unwrap_or_default();
        let known = self.held.get(&resource.name);
        // The bootstrap's stay as they are, as in Envoy.
        if known.is_some_and(|held| held.is_static || held.bytes == body) {
            return Ok(None);
        }
        let cluster = read(body, context, |config: &proto::Cluster, context| {
            if *config.name != *resource.name {
                return Err(context.reject("name", format!("is `{}`, not `{}`", config.name, resource.name)));
            }
            Cluster::parse(config, context)
        })?;
        let index = place(&resource.name, draft, context)?;
        let mut newest = Arc::new(cluster);
        let assignment = service(&newest).and_then(|(service, _)| self.assignments.get(service));
        if let Some((_, assignment)) = assignment {
            newest = Arc::new(assigned(&newest, assignment, context)?);
        }
        let plan = newest.eds.as_deref();
        let follows = plan.is_some_and(|plan| plan.path().is_some()) || newest.dns.is_some();
        let is_warm = !follows && (assignment.is_some() || service(&newest).is_none());
        let live = self.held.remove(&resource.name).and_then(|before| before.live);
        let mut held = Held { index, bytes: body.to_vec(), newest: newest.clone(), live, is_static: false };
        if is_warm {
            held.go_live(draft);
        }
        self.held.insert(resource.name.clone(), held);
        Ok(follows.then_some((index, newest)))
    }

    /// Takes a cluster away.
    pub(super) fn remove(&mut self, name: &str, draft: &mut Snapshot) -> Option<ClusterIndex> {
        if self.held.get(name).is_none_or(|held| held.is_static) {
            return None;
        }
        let held = self.held.remove(name)?;
        show(draft, held.index, None);
        Some(held.index)
    }

    /// Forgets assignments that no cluster asks for.
    pub(super) fn forget_unused(&mut self) {
        let services: BTreeSet<Box<str>> = self.services().into_keys().map(Into::into).collect();
        self.assignments.retain(|name, _| services.contains(name));
    }

    /// Takes the endpoints of every cluster that asks for them.
    pub(super) fn assign(
        &mut self,
        resource: &Resource,
        draft: &mut Snapshot,
        context: &mut ParseContext,
    ) -> Result<(), String> {
        let (name, body) = (&resource.name, resource.body.as_deref().unwrap_or_default());
        if self.assignments.get(name).is_some_and(|(bytes, _)| bytes == body) {
            return Ok(());
        }
        let assignment = read(body, context, |config: &ClusterLoadAssignment, _| Ok(config.clone()))?;
        let mut newest = BTreeMap::new();
        let mut serving = BTreeMap::new();
        for held in self.held.values() {
            if asks_for(&held.newest, name) {
                newest.insert(held.index, Arc::new(assigned(&held.newest, &assignment, context)?));
            } else if let Some(live) = held.live.as_ref().filter(|live| asks_for(live, name)) {
                serving.insert(held.index, Arc::new(assigned(live, &assignment, context)?));
            }
        }
        for held in self.held.values_mut() {
            if let Some(cluster) = newest.remove(&held.index) {
                held.newest = cluster;
                held.go_live(draft);
            } else if let Some(cluster) = serving.remove(&held.index) {
                show(draft, held.index, Some(cluster.clone()));
                held.live = Some(cluster);
            }
        }
        self.assignments.insert(name.clone(), (body.to_vec(), assignment));
        Ok(())
    }

    /// No endpoints came in time: the clusters go without.
    pub(super) fn give_up_on(&mut self, service: &str, draft: &mut Snapshot) {
        for held in self.held.values_mut().filter(|held| !held.is_warm() && asks_for(&held.newest, service)) {
            held.go_live(draft);
        }
    }

    /// Endpoints from elsewhere, unless they are of a former configuration; or only the word that there is nothing to wait for.
    pub(super) fn on_endpoints(
        &mut self,
        index: ClusterIndex,
        cluster: Arc<Cluster>,
        only_if_cold: bool,
        draft: &mut Snapshot,
    ) {
        let Some(held) = self.held.values_mut().find(|held| held.index == index) else { return };
        if !held.newest.is_same_configuration(&cluster) || only_if_cold && held.is_warm() {
            return;
        }
        held.newest = cluster;
        held.go_live(draft);
    }
}

fn assigned(
    cluster: &Cluster,
    assignment: &ClusterLoadAssignment,
    context: &mut ParseContext,
) -> Result<Cluster, String> {
    let made = cluster.with_assignment(assignment, context);
    let problems = context.problems.take();
    made.map_err(|_| problems.first().map_or_else(String::new, ToString::to_string))
}

/// The place of a name, which it keeps.
fn place(name: &str, draft: &mut Snapshot, context: &mut ParseContext) -> Result<ClusterIndex, String> {
    if let Some(index) = context.cluster_by_name.get(name) {
        return Ok(*index);
    }
    let count = draft.clusters.len();
    let index = u32::try_from(count).ok().filter(|_| count < CLUSTER_NAMES_MAX);
    let index =
        ClusterIndex(index.ok_or_else(|| format!("more than {CLUSTER_NAMES_MAX} names of clusters were used"))?);
    context.cluster_by_name.insert(name.into(), index);
    Arc::make_mut(&mut draft.cluster_by_name).insert(name.into(), index);
    draft.clusters.push(None);
    Ok(index)
}

fn show(draft: &mut Snapshot, index: ClusterIndex, cluster: Option<Arc<Cluster>>) {
    if let Some(slot) = draft.clusters.get_mut(index.0 as usize) {
        *slot = cluster;
    }
}

/// Names of clusters in the life of a process; each takes a few bytes for ever.
const CLUSTER_NAMES_MAX: usize = 1 << 20;
