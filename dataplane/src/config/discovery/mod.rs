//! Configuration that a control plane sends, or that files hold: clusters, endpoints, listeners, route tables and secrets, live.
//!
//! Each answer is tried on a draft of the newest snapshot, resource by resource. What is refused leaves what was there before, and
//! is named in the refusal; the rest goes live. What needs something else waits for it: a cluster for its endpoints, a listener for
//! its route table, both for their secrets.

pub mod connect;
pub mod disk;
pub mod file;
pub mod grpc;
pub mod kind;
pub mod records;
pub mod source;

mod clusters;
mod listeners;
mod restart;
mod secrets;
mod stats;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use envoy_types::pb::envoy::config::core::v3 as core;
use prost::{Message, Name};
use tokio::sync::mpsc;
use torus_xds::MessageType;
use torus_xds::subscription::{Received, Rejection, Request, Resource, Response, Stream, Subscription};

use self::clusters::Clusters;
use self::grpc::Event;
use self::kind::Kind;
use self::listeners::Listeners;
use self::records::{Config, Failure, Records};
use self::source::{Asked, Server, Source, SourceIndex};
use self::stats::DiscoveryStats;
use super::ledger;
use super::parse::ParseContext;
use super::parse::config_source::FETCH_TIMEOUT;
use super::reject::{Refused, Severity};
use super::snapshot::Snapshot;
use crate::cluster::{Cluster, ClusterIndex};
use crate::telemetry::names::{ClusterStat, ControlPlaneStat, UpdateStat};
use crate::tls::ClientTls;

/// What the bootstrap says of discovery.
pub struct Plan {
    /// Who asks.
    pub node: core::Node,
    /// Kinds of which everything is asked for: `cds_config`, `lds_config`.
    pub wildcards: Vec<(Kind, Asked)>,
    /// How resources are read; knows every source.
    pub context: ParseContext,
}

/// What discovery has brought so far, and what it waits for.
pub struct Discovery {
    context: ParseContext,
    /// By [`SourceIndex`].
    channels: Vec<Channel>,
    clusters: Clusters,
    listeners: Listeners,
    /// Kinds of which everything is asked for and nothing came yet.
    awaited: Vec<Kind>,
    stats: DiscoveryStats,
    records: Arc<Mutex<Records>>,
    /// What comes is from the disk: no server has sent it, and it does not count.
    is_restoring: bool,
    /// A peer that was believed may not be any more.
    ends_trust: bool,
}

/// The stream of one source.
struct Channel {
    stream: Stream,
    requests: Option<mpsc::UnboundedSender<Request>>,
    is_started: bool,
    is_grpc: bool,
    is_open: bool,
}

/// The clusters whose endpoints come by other means than a stream.
#[derive(Default)]
pub struct Followed {
    /// New or changed.
    pub started: Vec<(ClusterIndex, Arc<Cluster>)>,
    /// Gone or replaced.
    pub ended: Vec<ClusterIndex>,
}

/// What became of an answer.
struct Outcome<'a> {
    /// The resources that were looked at, and whether they brought something new.
    names: &'a [(&'a str, bool)],
    rejections: &'a [Rejection],
    /// Nothing was looked at.
    is_refused: bool,
    version: &'a str,
    took: Duration,
}

/// What an answer changes.
struct Change<'a> {
    draft: &'a mut Snapshot,
    context: &'a mut ParseContext,
    records: &'a mut Records,
    stats: &'a mut DiscoveryStats,
    /// A peer that was believed may not be any more.
    ends_trust: &'a mut bool,
    /// Of the answer.
    version: Box<str>,
}

impl Change<'_> {
    /// A resource as it is remembered.
    fn config(&self, resource: &Resource) -> Config {
        let version = if resource.version.is_empty() { &self.version } else { &resource.version };
        let body = resource.body.as_deref().unwrap_or_default();
        let body = match MessageType::from_type_url(Kind::Secret.type_url()) {
            // Nobody is shown more than that.
            Some(message) if *resource.type_url == *Kind::Secret.type_url() => {
                torus_xds::redacted(message, body).into()
            }
            _ => body.into(),
        };
        Config { version: version.clone(), body, updated: SystemTime::now() }
    }
}

impl Discovery {
    /// Nothing asked for yet but what the bootstrap names.
    pub fn new(plan: Plan, snapshot: &Snapshot, worker_count: usize, now: Instant) -> Self {
        let mut stats = DiscoveryStats::new(&plan.context.registry);
        stats.control_plane.set(stats.core, ControlPlaneStat::ConnectedState, 0);
        for (kind, _) in &plan.wildcards {
            match kind {
                Kind::Cluster => stats.follow_clusters(),
                _ => stats.follow_listeners(),
            }
        }
        let records: Arc<Mutex<Records>> = Arc::default();
        let named =
            ["control_plane.identifier", "cluster_manager.cds.version_text", "listener_manager.lds.version_text"];
        lock(&records).texts.extend(named.map(|name| (name.to_owned(), "".into())));
        let mut discovery = Self {
            context: plan.context,
            channels: Vec::new(),
            clusters: Clusters::new(snapshot),
            listeners: Listeners::new(snapshot, worker_count),
            awaited: plan.wildcards.iter().map(|(kind, _)| *kind).collect(),
            stats,
            records,
            is_restoring: false,
            ends_trust: false,
        };
        discovery.open_channels(&plan.wildcards);
        for (kind, asked) in &plan.wildcards {
            let channel = discovery.channels.get_mut(usize::from(asked.source.0));
            let subscription = channel.and_then(|channel| channel.stream.subscription_mut(kind.type_url()));
            subscription.into_iter().for_each(|subscription| subscription.subscribe_all(now));
        }
        // Nothing is changed by asking; a copy of a snapshot is a few lists of shared parts.
        discovery.ask(now, &mut snapshot.clone());
        discovery
    }

    /// What the admin server shows.
    pub fn records(&self) -> Arc<Mutex<Records>> {
        self.records.clone()
    }

    /// Sources that something is asked of and that nobody follows yet; they count as followed from now on.
    pub fn take_unstarted(&mut self) -> Vec<(SourceIndex, Source)> {
        let mut started = Vec::new();
        for (index, source) in self.context.sources.iter() {
            let Some(channel) = self.channels.get_mut(usize::from(index.0)) else { continue };
            let is_wanted =
                matches!(source, Source::Ads(_)) || channel.stream.subscriptions_mut().any(|it| !it.is_idle());
            if is_wanted && !channel.is_started {
                channel.is_started = true;
                started.push((index, source.clone()));
            }
        }
        started
    }

    /// What the servers that are no cluster's are spoken to with.
    pub fn server_tls(&self) -> impl Iterator<Item = (&connect::Place, &ClientTls)> {
        let targets = self.context.sources.iter().filter_map(|(_, source)| source.target());
        targets.flat_map(|target| &target.servers).filter_map(|server| match server {
            Server::Google(server) => Some((&server.place, server.tls.as_deref()?)),
            Server::Cluster(_) => None,
        })
    }

    /// Whether everything came that serving waits for at start.
    pub fn is_warm(&self, draft: &Snapshot) -> bool {
        self.awaited.is_empty() && self.clusters.warming_count() == 0 && self.listeners.are_warm(draft, &self.context)
    }

    /// Whether a listener that was replaced or removed still has connections, as far as is known.
    pub fn is_draining(&self) -> bool {
        self.listeners.counts().1 > 0
    }

    /// Whether, since the last call, a peer that was believed may not be any more.
    pub fn take_ends_trust(&mut self) -> bool {
        std::mem::take(&mut self.ends_trust)
    }

    /// When [`Self::on_time`] has something to do.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.channels.iter().filter_map(|channel| channel.stream.next_deadline()).min()
    }

    /// Takes what happened on the stream of `source`.
    pub fn on_event(&mut self, source: SourceIndex, event: Event, now: Instant, draft: &mut Snapshot) -> Followed {
        let mut followed = Followed::default();
        let Some(channel) = self.channels.get_mut(usize::from(source.0)) else { return followed };
        match event {
            Event::Opened(requests) => {
                if channel.is_grpc {
                    tracing::info!(target: "config", "connected to the control plane");
                }
                channel.is_open = true;
                channel.stream.open(now);
                channel.requests = Some(requests);
                self.count_connections();
            }
            Event::Ended(reason) => {
                tracing::warn!(target: "config", "no control plane: {reason}; what it sent last stays");
                channel.is_open = false;
                channel.stream.close();
                channel.requests = None;
                self.count_connections();
                self.count_failures(source);
            }
            Event::Unreadable(reason) => {
                tracing::warn!(target: "config", "the configuration stays as it is: {reason}");
                self.count_failures(source);
            }
            Event::Received(type_url, response, _) => {
                self.on_response(source, &type_url, response, now, draft, &mut followed);
            }
        }
        self.ask(now, draft);
        followed
    }

    /// Does what is due: names that never came, resources whose time is over.
    pub fn on_time(&mut self, now: Instant, draft: &mut Snapshot) -> Followed {
        let mut followed = Followed::default();
        let mut due = Vec::new();
        for (index, channel) in (0u16..).map(SourceIndex).zip(&mut self.channels) {
            for subscription in channel.stream.subscriptions_mut() {
                let (missing, expired) = (subscription.poll_missing(now), subscription.poll_expired(now));
                due.extend(Kind::of(subscription.type_url()).map(|kind| (index, kind, missing, expired)));
            }
        }
        for (source, kind, missing, expired) in due {
            for name in missing {
                self.give_up_on(source, kind, &name, draft);
            }
            for name in expired {
                tracing::warn!(target: "config", "the time of {kind} `{name}` is over");
                self.remove(kind, &name, draft, &mut followed);
            }
        }
        self.ask(now, draft);
        followed
    }

    /// Takes endpoints that came from elsewhere, unless they are of a former configuration.
    pub fn on_endpoints(&mut self, index: ClusterIndex, cluster: Arc<Cluster>, draft: &mut Snapshot) {
        self.change("", draft, |it, change| it.0.on_endpoints(index, cluster, false, change));
    }

    /// The first attempt to find the endpoints of a cluster is over, whatever it brought.
    pub fn on_attempted(&mut self, index: ClusterIndex, cluster: Arc<Cluster>, draft: &mut Snapshot) {
        self.change("", draft, |it, change| it.0.on_endpoints(index, cluster, true, change));
    }

    /// Forgets what nobody needs.
    pub fn forget_unused(&mut self, draft: &mut Snapshot, now: Instant) {
        self.change("", draft, |it, change| it.1.forget_unused(change));
        self.ask(now, draft);
    }

    /// Runs `act` on clusters and listeners with everything that a change needs.
    fn change<T>(
        &mut self,
        version: &str,
        draft: &mut Snapshot,
        act: impl FnOnce((&mut Clusters, &mut Listeners), &mut Change<'_>) -> T,
    ) -> T {
        let records = self.records.clone();
        let mut records = lock(&records);
        let (context, stats) = (&mut self.context, &mut self.stats);
        let ends_trust = &mut self.ends_trust;
        let mut change = Change { draft, context, records: &mut records, stats, ends_trust, version: version.into() };
        act((&mut self.clusters, &mut self.listeners), &mut change)
    }

    fn give_up_on(&mut self, source: SourceIndex, kind: Kind, name: &str, draft: &mut Snapshot) {
        tracing::warn!(target: "config", "{kind} `{name}` did not come in time");
        let core = self.stats.core;
        self.awaited.retain(|awaited| *awaited != kind);
        match kind {
            Kind::Cluster | Kind::Listener => {
                let stats = if kind == Kind::Cluster { &self.stats.clusters } else { &self.stats.listeners };
                stats.iter().for_each(|stats| stats.increment(core, UpdateStat::InitFetchTimeout));
            }
            Kind::Endpoints => self.change("", draft, |it, change| it.0.give_up_on(source, name, change)),
            Kind::Routes => {
                let stats = self.stats.routes.get(name);
                stats.iter().for_each(|stats| stats.increment(core, UpdateStat::InitFetchTimeout));
                let index = self.context.route_index(name);
                self.change("", draft, |it, change| it.1.give_up_on(index, change));
            }
            Kind::Secret => {
                let stats = self.stats.secrets.get(name);
                stats.iter().for_each(|stats| stats.increment(core, UpdateStat::InitFetchTimeout));
                self.change("", draft, |it, change| secrets::give_up_on(source, name, it.0, it.1, change));
            }
        }
    }

    fn remove(&mut self, kind: Kind, name: &str, draft: &mut Snapshot, followed: &mut Followed) {
        self.change("", draft, |it, change| match kind {
            Kind::Cluster => followed.ended.extend(it.0.remove(name, change)),
            Kind::Listener => it.1.remove(name, change),
            // These stay while something asks for them, as in Envoy.
            Kind::Endpoints | Kind::Routes | Kind::Secret => {}
        });
    }

    fn on_response(
        &mut self,
        source: SourceIndex,
        type_url: &str,
        response: Response,
        now: Instant,
        draft: &mut Snapshot,
        followed: &mut Followed,
    ) {
        let Some(channel) = self.channels.get_mut(usize::from(source.0)) else { return };
        let (version, began) = (response.version.clone(), Instant::now());
        let (Some(kind), Some(received)) = (Kind::of(type_url), channel.stream.on_response(type_url, response, now))
        else {
            return tracing::warn!(target: "config", "an answer of type `{type_url}`, which nobody asked for");
        };
        let Received { updated, removed } = match received {
            Ok(received) => received,
            Err(reason) => {
                tracing::warn!(target: "config", "an answer of type `{type_url}` is refused: {reason}");
                let took = began.elapsed();
                let outcome = Outcome { names: &[], rejections: &[], is_refused: true, version: &version, took };
                return self.count(source, kind, &outcome);
            }
        };
        let origin = self.origin(source);
        let mut rejections = Vec::new();
        let mut changed = Vec::new();
        self.change(&version, draft, |(clusters, listeners), change| {
            change.records.forget_failures(kind);
            for resource in &updated {
                let taken = match kind {
                    Kind::Cluster => {
                        let is_new = !clusters.has(resource);
                        clusters.put(resource, change).map(|started| {
                            followed.started.extend(started);
                            is_new
                        })
                    }
                    Kind::Endpoints => clusters.assign(source, resource, change),
                    Kind::Listener => listeners.put(resource, change).map(|()| true),
                    Kind::Routes => listeners.put_table(resource, change),
                    Kind::Secret => secrets::put(source, resource, clusters, listeners, change),
                };
                changed.push(taken.as_ref().is_ok_and(|changed| *changed));
                if let Err(reason) = taken {
                    tracing::warn!(target: "config", "{origin}{kind} `{}` is refused: {reason}", resource.name);
                    let failure = Failure { config: change.config(resource), details: reason.clone() };
                    change.records.fail(kind, &resource.name, failure);
                    rejections.push(Rejection { name: resource.name.clone(), reason });
                }
            }
        });
        for name in &removed {
            self.remove(kind, name, draft, followed);
        }
        self.awaited.retain(|awaited| *awaited != kind);
        let names: Vec<(&str, bool)> = updated.iter().map(|it| &*it.name).zip(changed).collect();
        let (took, rejected) = (began.elapsed(), rejections.as_slice());
        let outcome = Outcome { names: &names, rejections: rejected, is_refused: false, version: &version, took };
        self.count(source, kind, &outcome);
        if let Some(channel) = self.channels.get_mut(usize::from(source.0)) {
            channel.stream.conclude(type_url, &rejections);
        }
    }

    /// What a line of the log begins with where it is about a resource of `source`: the file, if it is one.
    fn origin(&self, source: SourceIndex) -> String {
        match self.context.sources.iter().nth(usize::from(source.0)) {
            Some((_, Source::File { path, .. })) => format!("{}: ", path.display()),
            _ => String::new(),
        }
    }

    /// Counts an answer that was looked through.
    fn count(&mut self, source: SourceIndex, kind: Kind, outcome: &Outcome<'_>) {
        if self.is_restoring {
            return;
        }
        let Outcome { names, rejections, is_refused, version, took } = *outcome;
        let stats = &self.stats;
        let mut records = lock(&self.records);
        let is_bad = |name: &str| rejections.iter().any(|rejection| *rejection.name == *name);
        match kind {
            Kind::Cluster | Kind::Listener => {
                let group = if kind == Kind::Cluster { &stats.clusters } else { &stats.listeners };
                let Some(group) = group else { return };
                if is_refused || !rejections.is_empty() {
                    return stats.failed(group, UpdateStat::UpdateRejected);
                }
                let reloads = kind == Kind::Cluster && names.iter().any(|(_, changed)| *changed);
                stats.succeeded(group, version, took, reloads);
                records.accepted(kind, version);
                let text = if kind == Kind::Cluster { "cluster_manager.cds" } else { "listener_manager.lds" };
                records.texts.insert(format!("{text}.version_text"), version.into());
            }
            Kind::Endpoints => {
                for (name, changed) in names {
                    for stats_of in self.clusters.stats_of(source, name) {
                        stats_of.increment(stats.core, ClusterStat::UpdateAttempt);
                        let stat = if is_bad(name) { ClusterStat::UpdateRejected } else { ClusterStat::UpdateSuccess };
                        stats_of.increment(stats.core, stat);
                        if !changed && !is_bad(name) {
                            stats_of.increment(stats.core, ClusterStat::UpdateNoRebuild);
                        }
                    }
                }
            }
            Kind::Routes | Kind::Secret => {
                let groups = if kind == Kind::Routes { &stats.routes } else { &stats.secrets };
                for (name, changed) in names {
                    let Some(group) = groups.get(*name) else { continue };
                    if is_bad(name) {
                        stats.failed(group, UpdateStat::UpdateRejected);
                    } else {
                        stats.succeeded(group, version, took, *changed && kind == Kind::Routes);
                        records.texts.insert(format!("{}version_text", group.prefix()), version.into());
                    }
                }
            }
        }
    }

    fn count_connections(&self) {
        let open = self.channels.iter().filter(|channel| channel.is_grpc && channel.is_open).count();
        self.stats.control_plane.set(self.stats.core, ControlPlaneStat::ConnectedState, open as u64);
    }

    /// The stream of `source` ended: everything that is asked of it has failed once.
    fn count_failures(&self, source: SourceIndex) {
        let Some(channel) = self.channels.get(usize::from(source.0)) else { return };
        for (kind, stats) in [(Kind::Cluster, &self.stats.clusters), (Kind::Listener, &self.stats.listeners)] {
            let is_asked = channel.stream.subscription(kind.type_url()).is_some_and(|it| !it.is_idle());
            if let Some(stats) = stats.as_ref().filter(|_| is_asked) {
                self.stats.failed(stats, UpdateStat::UpdateFailure);
            }
        }
        for (kind, groups) in [(Kind::Routes, &self.stats.routes), (Kind::Secret, &self.stats.secrets)] {
            for name in channel.stream.subscription(kind.type_url()).into_iter().flat_map(Subscription::names) {
                if let Some(stats) = groups.get(name) {
                    self.stats.failed(stats, UpdateStat::UpdateFailure);
                }
            }
        }
        for name in channel.stream.subscription(Kind::Endpoints.type_url()).into_iter().flat_map(Subscription::names) {
            for stats in self.clusters.stats_of(source, name) {
                stats.increment(self.stats.core, ClusterStat::UpdateFailure);
                stats.increment(self.stats.core, ClusterStat::UpdateAttempt);
            }
        }
    }

    /// Makes a channel for each source that has none yet.
    fn open_channels(&mut self, wildcards: &[(Kind, Asked)]) {
        for (index, source) in self.context.sources.iter().skip(self.channels.len()) {
            let subscription = |kind: &Kind| {
                let wildcard = wildcards.iter().find(|(it, asked)| it == kind && asked.source == index);
                let limit = wildcard.map_or(FETCH_TIMEOUT, |(_, asked)| asked.limit);
                Subscription::new(kind.type_url(), source.protocol(), kind.absence_deletes(), limit)
            };
            let subscriptions = source.kinds().iter().map(subscription).collect();
            let node_once = source.target().is_some_and(|target| target.node_once);
            let is_grpc = source.target().is_some();
            let stream = Stream::new(subscriptions, node_once);
            self.channels.push(Channel { stream, requests: None, is_started: false, is_grpc, is_open: false });
        }
    }

    /// Asks for the names that are needed now, and sends every request that is due.
    fn ask(&mut self, now: Instant, draft: &mut Snapshot) {
        self.open_channels(&[]);
        let listeners_changed = self.listeners.take_changed();
        if self.clusters.take_secrets_changed() || listeners_changed {
            let wanted = self.change("", draft, |it, change| secrets::wanted(it.0, it.1, change));
            self.want(Kind::Secret, wanted, now);
        }
        self.ask_for_endpoints(now);
        if listeners_changed {
            let needed = self.listeners.tables(draft);
            let mut tables: BTreeMap<SourceIndex, BTreeMap<Box<str>, Duration>> = BTreeMap::new();
            for (name, _) in self.context.route_by_name.iter().filter(|(_, index)| needed.contains(index)) {
                if let Some((asked, stat_prefix)) = self.context.route_asks.get(name) {
                    if let Some(text) = self.stats.follow_table(name, stat_prefix) {
                        lock(&self.records).texts.insert(text, "".into());
                    }
                    tables.entry(asked.source).or_default().insert(name.clone(), asked.limit);
                }
            }
            self.want(Kind::Routes, tables, now);
        }
        let (listeners_warming, listeners_draining) = self.listeners.counts();
        let waiting = if self.listeners.are_warm(draft, &self.context) {
            Vec::new()
        } else {
            self.listeners.waiting(draft, &self.context)
        };
        lock(&self.records).waiting = waiting;
        lock(&self.records).counts = records::Counts {
            clusters_warming: self.clusters.warming_count() as u64,
            listeners_warming: listeners_warming as u64,
            listeners_draining: listeners_draining as u64,
        };
        for channel in &mut self.channels {
            let Some(requests) = &channel.requests else { continue };
            while let Some(request) = channel.stream.poll_request() {
                // Where the stream has ended, its end is on the way here.
                let _ = requests.send(request);
            }
        }
    }

    /// Asks for the assignments that clusters need now. One cluster more among thousands is one name more.
    fn ask_for_endpoints(&mut self, now: Instant) {
        let asks = self.clusters.take_asks();
        for (source, name, limit) in &asks.added {
            if let Some(subscription) = self.endpoints_of(*source) {
                subscription.set_fetch_timeout(name, *limit);
                subscription.add_name(name, now);
            }
        }
        for (source, name) in &asks.gone {
            if let Some(subscription) = self.endpoints_of(*source) {
                subscription.remove_name(name);
            }
        }
    }

    fn endpoints_of(&mut self, source: SourceIndex) -> Option<&mut Subscription> {
        self.channels.get_mut(usize::from(source.0))?.stream.subscription_mut(Kind::Endpoints.type_url())
    }

    /// Makes `wanted` what is asked for of `kind`, by source.
    fn want(&mut self, kind: Kind, mut wanted: BTreeMap<SourceIndex, BTreeMap<Box<str>, Duration>>, now: Instant) {
        for (index, channel) in (0u16..).map(SourceIndex).zip(&mut self.channels) {
            let Some(subscription) = channel.stream.subscription_mut(kind.type_url()) else { continue };
            let names = wanted.remove(&index).unwrap_or_default();
            names.iter().for_each(|(name, limit)| subscription.set_fetch_timeout(name, *limit));
            subscription.set_names(names.keys().map(|name| &**name), now);
        }
    }
}

fn lock(records: &Mutex<Records>) -> MutexGuard<'_, Records> {
    records.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads one resource; the error names field and reason.
fn read<M: Message + Name + Default, T>(
    bytes: &[u8],
    context: &mut ParseContext,
    parse: impl FnOnce(&M, &mut ParseContext) -> Result<T, Refused>,
) -> Result<T, String> {
    let message = MessageType::named(&M::full_name());
    let refusals = message.map(|message| ledger::refusals(message, bytes)).unwrap_or_default();
    if let Some(first) = refusals.first() {
        return Err(format!("{}: {}", first.path, first.reason));
    }
    let config = M::decode(bytes).map_err(|error| error.to_string())?;
    let parsed = parse(&config, context);
    let problems = context.problems.take();
    let first = problems.iter().find(|problem| problem.severity == Severity::Error);
    parsed.map_err(|_| first.map_or_else(String::new, ToString::to_string))
}
