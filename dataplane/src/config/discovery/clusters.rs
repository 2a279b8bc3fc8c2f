//! Discovered clusters and their endpoints: what is there, what is new and waits for its endpoints or for a secret.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3 as proto;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use torus_xds::subscription::Resource;

use super::kind::Kind;
use super::source::SourceIndex;
use super::{Change, read};
use crate::cluster::eds::EdsSource;
use crate::cluster::{Cluster, ClusterIndex};
use crate::config::snapshot::Snapshot;
use crate::telemetry::counters::Stats;
use crate::telemetry::names::{ClusterManagerStat, ClusterStat};
use crate::tls::secret::{NamesSecrets, SecretKey};

#[derive(Default)]
pub(super) struct Clusters {
    held: BTreeMap<Box<str>, Held>,
    /// The newest assignment of each name that some cluster asks for.
    assignments: HashMap<(SourceIndex, Box<str>), Arc<[u8]>>,
    /// Names of the clusters that ask for an assignment.
    users: HashMap<(SourceIndex, Box<str>), BTreeSet<Box<str>>>,
    /// The assignments that each cluster asks for, as [`Self::users`] has it.
    asked: HashMap<Box<str>, Vec<(SourceIndex, Box<str>)>>,
    /// Clusters that may ask for others by now.
    changed: BTreeSet<Box<str>>,
    /// Clusters that wait for their first endpoints or for a secret.
    cold: BTreeSet<Box<str>>,
    /// Others may be needed than those that [`Self::tls_contexts`] named before.
    secrets_changed: bool,
}

/// What is to be asked for from now on, and what no longer.
#[derive(Default)]
pub(super) struct Asks {
    /// With how long each may be missing.
    pub added: Vec<(SourceIndex, Box<str>, Duration)>,
    pub gone: Vec<(SourceIndex, Box<str>)>,
}

struct Held {
    index: ClusterIndex,
    body: Arc<[u8]>,
    newest: Arc<Cluster>,
    /// The newest, or else what serves until the newest has its first endpoints.
    live: Option<Arc<Cluster>>,
    /// The newest has its first endpoints, or needs none.
    has_endpoints: bool,
    /// From the bootstrap, which discovery leaves as it is.
    is_static: bool,
}

impl Held {
    fn is_warm(&self) -> bool {
        self.live.as_ref().is_some_and(|live| Arc::ptr_eq(live, &self.newest))
    }

    /// The assignments that it needs, of the newest and of what serves.
    fn services(&self) -> impl Iterator<Item = (SourceIndex, &str, Duration)> {
        std::iter::once(&self.newest).chain(&self.live).filter_map(|cluster| service(cluster))
    }
}

/// The assignment that comes by a stream: whence, its name, and how long it may be missing.
fn service(cluster: &Cluster) -> Option<(SourceIndex, &str, Duration)> {
    let plan = cluster.eds.as_deref()?;
    match plan.source {
        EdsSource::Stream(source) => Some((source, &*plan.name, plan.fetch_timeout)),
        EdsSource::File { .. } => None,
    }
}

/// Whether it names discovered secrets.
fn uses_secrets(cluster: &Cluster) -> bool {
    cluster.tls.as_ref().is_some_and(|tls| !tls.secrets().is_empty())
}

/// Whether a secret that it names is missing.
fn names_secrets(cluster: &Cluster) -> bool {
    cluster.tls.as_ref().is_some_and(|tls| !tls.is_ready())
}

fn asks_for(cluster: &Cluster, source: SourceIndex, name: &str) -> bool {
    service(cluster).is_some_and(|(asked, service, _)| asked == source && service == name)
}

impl Clusters {
    /// The clusters of the bootstrap.
    pub(super) fn new(snapshot: &Snapshot) -> Self {
        let mut clusters = Self::default();
        for (index, cluster) in snapshot.live_clusters() {
            let name: Box<str> = (&*cluster.name).into();
            let has_endpoints = service(cluster).is_none();
            let live = (has_endpoints && !names_secrets(cluster)).then(|| cluster.clone());
            if live.is_none() {
                clusters.cold.insert(name.clone());
            }
            clusters.changed.insert(name.clone());
            clusters.secrets_changed |= uses_secrets(cluster);
            let held = Held { index, body: [].into(), newest: cluster.clone(), live, has_endpoints, is_static: true };
            clusters.held.insert(name, held);
        }
        clusters
    }

    /// How the assignments that are needed differ from those at the last call. What nobody needs is forgotten.
    pub(super) fn take_asks(&mut self) -> Asks {
        let mut asks = Asks::default();
        let mut released = Vec::new();
        for name in std::mem::take(&mut self.changed) {
            let before = self.asked.remove(&name).unwrap_or_default();
            let mut now: Vec<(SourceIndex, Box<str>)> = Vec::new();
            for (source, service, limit) in self.held.get(&name).into_iter().flat_map(Held::services) {
                let key = (source, Box::from(service));
                if now.contains(&key) {
                    continue;
                }
                let users = self.users.entry(key.clone()).or_default();
                if users.is_empty() {
                    asks.added.push((source, service.into(), limit));
                }
                users.insert(name.clone());
                now.push(key);
            }
            let left = before.into_iter().filter(|key| !now.contains(key));
            released.extend(left.map(|key| (key, name.clone())));
            if !now.is_empty() {
                self.asked.insert(name, now);
            }
        }
        // At last, so that what passes from one cluster to another is asked for all the time.
        for (key, name) in released {
            let Some(users) = self.users.get_mut(&key) else { continue };
            users.remove(&name);
            if users.is_empty() {
                self.users.remove(&key);
                self.assignments.remove(&key);
                asks.gone.push(key);
            }
        }
        asks
    }

    /// Whether other secrets may be needed than at the last call.
    pub(super) fn take_secrets_changed(&mut self) -> bool {
        std::mem::take(&mut self.secrets_changed)
    }

    /// How many wait for their first endpoints, or for a secret.
    pub(super) fn warming_count(&self) -> usize {
        self.cold.len()
    }

    /// The stats of the clusters that ask for the assignment `name`.
    pub(super) fn stats_of(&self, source: SourceIndex, name: &str) -> impl Iterator<Item = &Arc<Stats<ClusterStat>>> {
        let users = self.users.get(&(source, name.into())).into_iter().flatten();
        users.filter_map(|user| Some(&self.held.get(user)?.newest.stats))
    }

    /// The newest assignment called `name`, in wire format.
    pub(super) fn assignment(&self, source: SourceIndex, name: &str) -> Option<Arc<[u8]>> {
        self.assignments.get(&(source, name.into())).cloned()
    }

    /// Whether this is what there is already, or something that discovery leaves as it is.
    pub(super) fn has(&self, resource: &Resource) -> bool {
        let body = resource.body.as_deref().unwrap_or_default();
        // The bootstrap's stay as they are, as in Envoy.
        self.held.get(&resource.name).is_some_and(|held| held.is_static || *held.body == *body)
    }

    /// Takes a new or changed cluster. What it replaces stays until it is warm. Returns what has to be followed by other means than
    /// the stream: names to resolve, a file.
    pub(super) fn put(
        &mut self,
        resource: &Resource,
        change: &mut Change<'_>,
    ) -> Result<Option<(ClusterIndex, Arc<Cluster>)>, String> {
        let body = resource.body.as_deref().unwrap_or_default();
        if self.has(resource) {
            return Ok(None);
        }
        let known = self.held.get(&resource.name);
        let stat = if known.is_some() { ClusterManagerStat::ClusterModified } else { ClusterManagerStat::ClusterAdded };
        let cluster = read(body, change.context, |config: &proto::Cluster, context| {
            if *config.name != *resource.name {
                return Err(context.reject("name", format!("is `{}`, not `{}`", config.name, resource.name)));
            }
            Cluster::parse(config, context)
        })?;
        let index = place(&resource.name, change)?;
        let mut newest = Arc::new(cluster);
        let asked = service(&newest).map(|(source, service, _)| (source, Box::from(service)));
        let assignment = asked.as_ref().and_then(|asked| self.assignments.get(asked)).cloned();
        if let Some(assignment) = &assignment {
            newest = Arc::new(assigned(&newest, &read_assignment(assignment, change)?, change)?);
        }
        if asked.is_some() {
            newest.stats.increment(change.stats.core, ClusterStat::UpdateAttempt);
            newest.stats.add(change.stats.core, ClusterStat::UpdateRejected, 0);
            newest.stats.add(change.stats.core, ClusterStat::InitFetchTimeout, 0);
        }
        newest.stats.set(change.stats.core, ClusterStat::WarmingState, 1);
        let plan = newest.eds.as_deref();
        let follows = plan.is_some_and(|plan| plan.path().is_some()) || newest.dns.is_some();
        let has_endpoints = !follows && (assignment.is_some() || asked.is_none());
        let live = self.held.remove(&resource.name).and_then(|before| before.live);
        let config = change.config(resource);
        let held =
            Held { index, body: config.body.clone(), newest: newest.clone(), live, has_endpoints, is_static: false };
        change.stats.cluster_manager.increment(change.stats.core, stat);
        change.records.warm(Kind::Cluster, &resource.name, config);
        self.held.insert(resource.name.clone(), held);
        self.secrets_changed |= uses_secrets(&newest);
        self.changed.insert(resource.name.clone());
        self.cold.insert(resource.name.clone());
        self.settle(&resource.name, change);
        Ok(follows.then_some((index, newest)))
    }

    /// Takes a cluster away.
    pub(super) fn remove(&mut self, name: &str, change: &mut Change<'_>) -> Option<ClusterIndex> {
        if self.held.get(name).is_none_or(|held| held.is_static) {
            return None;
        }
        let held = self.held.remove(name)?;
        show(change.draft, held.index, None);
        change.records.remove(Kind::Cluster, name);
        change.stats.cluster_manager.increment(change.stats.core, ClusterManagerStat::ClusterRemoved);
        self.secrets_changed |= uses_secrets(&held.newest) || held.live.as_deref().is_some_and(uses_secrets);
        self.changed.insert(name.into());
        self.cold.remove(name);
        Some(held.index)
    }

    /// Takes the endpoints of every cluster that asks for them. Whether they are others than before.
    pub(super) fn assign(
        &mut self,
        source: SourceIndex,
        resource: &Resource,
        change: &mut Change<'_>,
    ) -> Result<bool, String> {
        let (name, body) = (&resource.name, resource.body.as_deref().unwrap_or_default());
        let key = (source, name.clone());
        if self.assignments.get(&key).is_some_and(|known| **known == *body) {
            return Ok(false);
        }
        let assignment = read_assignment(body, change)?;
        let users = self.users.get(&key).cloned().unwrap_or_default();
        let mut made = Vec::with_capacity(users.len());
        for user in &users {
            let Some(held) = self.held.get(user) else { continue };
            // What serves until the newest has all its secrets gets the same endpoints.
            let is_followed = |live: &&Arc<Cluster>| !Arc::ptr_eq(live, &held.newest) && asks_for(live, source, name);
            if let Some(live) = held.live.as_ref().filter(is_followed) {
                made.push((user, false, Arc::new(assigned(live, &assignment, change)?)));
            }
            if asks_for(&held.newest, source, name) {
                made.push((user, true, Arc::new(assigned(&held.newest, &assignment, change)?)));
            }
        }
        for (user, is_newest, cluster) in made {
            let Some(held) = self.held.get_mut(user) else { continue };
            if is_newest {
                (held.newest, held.has_endpoints) = (cluster, true);
                self.settle(user, change);
            } else {
                show(change.draft, held.index, Some(cluster.clone()));
                held.live = Some(cluster);
            }
        }
        self.assignments.insert(key, body.into());
        Ok(true)
    }

    /// No endpoints came in time: the clusters go without.
    pub(super) fn give_up_on(&mut self, source: SourceIndex, service: &str, change: &mut Change<'_>) {
        for user in self.users.get(&(source, service.into())).cloned().unwrap_or_default() {
            let waits =
                self.held.get(&user).is_some_and(|held| !held.is_warm() && asks_for(&held.newest, source, service));
            if waits {
                if let Some(held) = self.held.get_mut(&user) {
                    held.has_endpoints = true;
                    held.newest.stats.increment(change.stats.core, ClusterStat::InitFetchTimeout);
                }
                self.settle(&user, change);
            }
        }
    }

    /// Endpoints from elsewhere, unless they are of a former configuration; or only the word that there is nothing to wait for.
    pub(super) fn on_endpoints(
        &mut self,
        index: ClusterIndex,
        cluster: Arc<Cluster>,
        only_if_cold: bool,
        change: &mut Change<'_>,
    ) {
        let name: Box<str> = (&*cluster.name).into();
        let Some(held) = self.held.get_mut(&name).filter(|held| held.index == index) else { return };
        if !held.newest.is_same_configuration(&cluster) || only_if_cold && held.is_warm() {
            return;
        }
        (held.newest, held.has_endpoints) = (cluster, true);
        self.settle(&name, change);
    }

    /// Each context that may name secrets, of what serves and of what waits.
    pub(super) fn tls_contexts(&self) -> impl Iterator<Item = &dyn NamesSecrets> {
        self.held.values().flat_map(|held| {
            let newest = held.newest.tls.as_ref();
            let live = held.live.as_ref().and_then(|live| live.tls.as_ref());
            let live = live.filter(|live| newest.is_none_or(|newest| !Arc::ptr_eq(live, newest)));
            newest.into_iter().chain(live).map(|tls| &**tls as &dyn NamesSecrets)
        })
    }

    /// Has workers look again at the clusters of a context that a server may not be believed by any more.
    pub(super) fn distrust(&mut self, key: &SecretKey, change: &mut Change<'_>) {
        for held in self.held.values_mut() {
            let Some(live) = held.live.as_mut() else { continue };
            if live.tls.as_ref().is_some_and(|tls| tls.secrets().contains(key)) {
                let is_newest = Arc::ptr_eq(live, &held.newest);
                *live = Arc::new((**live).clone());
                if is_newest {
                    held.newest = Arc::clone(live);
                }
                show(change.draft, held.index, Some(Arc::clone(live)));
            }
        }
    }

    /// Lets every cluster go live that waits for nothing any more.
    pub(super) fn settle_all(&mut self, change: &mut Change<'_>) {
        for name in self.cold.clone() {
            self.settle(&name, change);
        }
    }

    /// The newest of a name serves from now on, unless it waits for endpoints or a secret.
    fn settle(&mut self, name: &str, change: &mut Change<'_>) {
        let waits = |held: &Held| {
            let tls = held.newest.tls.as_ref().filter(|tls| !tls.is_ready());
            !held.has_endpoints || tls.is_some_and(|tls| change.context.secrets.awaits(tls.secrets().iter()))
        };
        if self.held.get(name).is_some_and(|held| !waits(held)) {
            self.go_live(name, change);
        }
    }

    /// The newest of a name serves from now on.
    fn go_live(&mut self, name: &str, change: &mut Change<'_>) {
        let Some(held) = self.held.get_mut(name) else { return };
        // What served may have asked for other endpoints.
        if held.live.as_ref().is_some_and(|live| service(live).is_some() && !live.is_same_configuration(&held.newest)) {
            self.changed.insert(name.into());
        }
        self.secrets_changed |=
            held.live.as_ref().is_some_and(|live| uses_secrets(live) && !live.is_same_configuration(&held.newest));
        self.cold.remove(name);
        held.live = Some(held.newest.clone());
        held.newest.stats.set(change.stats.core, ClusterStat::WarmingState, 0);
        show(change.draft, held.index, held.live.clone());
        if !held.is_static {
            change.records.promote(Kind::Cluster, name);
        }
    }
}

fn read_assignment(bytes: &[u8], change: &mut Change<'_>) -> Result<ClusterLoadAssignment, String> {
    read(bytes, change.context, |config: &ClusterLoadAssignment, _| Ok(config.clone()))
}

fn assigned(cluster: &Cluster, assignment: &ClusterLoadAssignment, change: &mut Change<'_>) -> Result<Cluster, String> {
    let made = cluster.with_assignment(assignment, change.context);
    let problems = change.context.problems.take();
    made.map_err(|_| problems.first().map_or_else(String::new, ToString::to_string))
}

/// The place of a name, which it keeps.
fn place(name: &str, change: &mut Change<'_>) -> Result<ClusterIndex, String> {
    if let Some(index) = change.context.cluster_by_name.get(name) {
        return Ok(*index);
    }
    let count = change.draft.clusters.len();
    let index = u32::try_from(count).ok().filter(|_| count < CLUSTER_NAMES_MAX);
    let index =
        ClusterIndex(index.ok_or_else(|| format!("more than {CLUSTER_NAMES_MAX} names of clusters were used"))?);
    change.context.cluster_by_name.insert(name.into(), index);
    Arc::make_mut(&mut change.draft.cluster_by_name).insert(name.into(), index);
    change.draft.clusters.push(None);
    Ok(index)
}

fn show(draft: &mut Snapshot, index: ClusterIndex, cluster: Option<Arc<Cluster>>) {
    if let Some(slot) = draft.clusters.get_mut(index.0 as usize) {
        *slot = cluster;
    }
}

/// Names of clusters in the life of a process; each takes a few bytes for ever.
const CLUSTER_NAMES_MAX: usize = 1 << 20;
