//! Configuration that a control plane sends: clusters, endpoints, listeners and route tables, live.
//!
//! Each answer is tried on a draft of the newest snapshot, resource by resource. What is refused leaves what was there before, and
//! is named in the refusal; the rest goes live. What needs something else waits for it: a cluster for its endpoints, a listener for
//! its route table.

pub mod ads;
mod clusters;
mod listeners;

use std::sync::Arc;
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::config::cluster::v3::Cluster as ClusterProto;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::config::listener::v3::Listener as ListenerProto;
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use prost::{Message, Name};
use tokio::sync::mpsc;
use torus_xds::MessageType;
use torus_xds::subscription::{Received, Rejection, Request, Response, Stream, Subscription};

use self::ads::{AdsPlan, Event};
use self::clusters::Clusters;
use self::listeners::Listeners;
use super::ledger;
use super::parse::ParseContext;
use super::parse::config_source::FETCH_TIMEOUT;
use super::reject::{Refused, Severity};
use super::snapshot::Snapshot;
use crate::cluster::{Cluster, ClusterIndex};
use crate::telemetry::counters::{Core, Stats};
use crate::telemetry::names::ControlPlaneStat;

/// What the bootstrap says of discovery.
pub struct Plan {
    /// Whom to ask.
    pub ads: AdsPlan,
    /// Which of the kinds that need no name are asked for, clusters and listeners, and how long the first answer may be missing.
    /// Source: `cds_config`, `lds_config`.
    pub wildcards: (Option<Duration>, Option<Duration>),
    /// How resources are read.
    pub context: ParseContext,
}

/// What discovery has brought so far, and what it waits for.
pub struct Discovery {
    context: ParseContext,
    stream: Stream,
    requests: Option<mpsc::UnboundedSender<Request>>,
    clusters: Clusters,
    listeners: Listeners,
    types: Types,
    /// Kinds of which nothing came yet: clusters, listeners.
    awaited: (bool, bool),
    core: Core,
    control_plane: Arc<Stats<ControlPlaneStat>>,
}

/// The clusters whose endpoints come by other means than the stream.
#[derive(Default)]
pub struct Followed {
    /// New or changed.
    pub started: Vec<(ClusterIndex, Arc<Cluster>)>,
    /// Gone or replaced.
    pub ended: Vec<ClusterIndex>,
}

struct Types {
    cluster: String,
    endpoints: String,
    listener: String,
    routes: String,
}

impl Discovery {
    /// Nothing asked for yet but what the bootstrap's own listeners and clusters need.
    pub fn new(plan: Plan, snapshot: &Snapshot, worker_count: usize, now: Instant) -> Self {
        let types = Types {
            cluster: url::<ClusterProto>(),
            endpoints: url::<ClusterLoadAssignment>(),
            listener: url::<ListenerProto>(),
            routes: url::<RouteConfiguration>(),
        };
        let subscription = |url: &str, absence_deletes, limit: Option<Duration>| {
            Subscription::new(url, plan.ads.protocol, absence_deletes, limit.unwrap_or(FETCH_TIMEOUT))
        };
        // In the order in which a gateway needs them.
        let mut all = vec![
            subscription(&types.cluster, true, plan.wildcards.0),
            subscription(&types.endpoints, false, None),
            subscription(&types.listener, true, plan.wildcards.1),
            subscription(&types.routes, false, None),
        ];
        let is_wanted = (plan.wildcards.0.is_some(), plan.wildcards.1.is_some());
        for (wanted, url) in [(is_wanted.0, &types.cluster), (is_wanted.1, &types.listener)] {
            if let Some(found) = all.iter_mut().find(|it| wanted && **it.type_url() == **url) {
                found.subscribe_all(now);
            }
        }
        let registry = plan.context.registry.clone();
        let control_plane = registry.group("control_plane.");
        control_plane.set(registry.config_core(), ControlPlaneStat::ConnectedState, 0);
        let mut discovery = Self {
            core: registry.config_core(),
            control_plane,
            context: plan.context,
            stream: Stream::new(all, plan.ads.node_once),
            requests: None,
            clusters: Clusters::new(snapshot),
            listeners: Listeners::new(snapshot, worker_count),
            types,
            awaited: is_wanted,
        };
        discovery.ask(now, snapshot);
        discovery
    }

    /// Whether everything came that serving waits for at start.
    pub fn is_warm(&self, draft: &Snapshot) -> bool {
        self.awaited == (false, false) && self.clusters.are_warm() && self.listeners.are_warm(draft)
    }

    /// When [`Self::on_time`] has something to do.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.stream.next_deadline()
    }

    /// Takes what happened on the stream.
    pub fn on_event(&mut self, event: Event, now: Instant, draft: &mut Snapshot) -> Followed {
        let mut followed = Followed::default();
        match event {
            Event::Opened(requests) => {
                tracing::info!(target: "config", "connected to the control plane");
                self.control_plane.set(self.core, ControlPlaneStat::ConnectedState, 1);
                self.stream.open(now);
                self.requests = Some(requests);
            }
            Event::Ended(reason) => {
                tracing::warn!(target: "config", "no control plane: {reason}; what it sent last stays");
                self.control_plane.set(self.core, ControlPlaneStat::ConnectedState, 0);
                self.stream.close();
                self.requests = None;
            }
            Event::Received(type_url, response) => self.on_response(&type_url, response, now, draft, &mut followed),
        }
        self.ask(now, draft);
        followed
    }

    /// Does what is due: names that never came, resources whose time is over.
    pub fn on_time(&mut self, now: Instant, draft: &mut Snapshot) -> Followed {
        let mut followed = Followed::default();
        let mut due = Vec::new();
        for subscription in self.stream.subscriptions_mut() {
            let (missing, expired) = (subscription.poll_missing(now), subscription.poll_expired(now));
            due.push((subscription.type_url().clone(), missing, expired));
        }
        for (type_url, missing, expired) in due {
            for name in missing {
                tracing::warn!(target: "config", "{type_url}: `{name}` did not come in time");
                match () {
                    () if *type_url == *self.types.cluster => self.awaited.0 = false,
                    () if *type_url == *self.types.listener => self.awaited.1 = false,
                    () if *type_url == *self.types.endpoints => self.clusters.give_up_on(&name, draft),
                    () => {
                        let index = self.context.route_index(&name);
                        self.listeners.give_up_on(index, draft);
                    }
                }
            }
            for name in expired {
                tracing::warn!(target: "config", "{type_url}: the time of `{name}` is over");
                match () {
                    () if *type_url == *self.types.cluster => followed.ended.extend(self.clusters.remove(&name, draft)),
                    () if *type_url == *self.types.listener => self.listeners.remove(&name, draft),
                    () => {}
                }
            }
        }
        self.ask(now, draft);
        followed
    }

    /// Takes endpoints that came from elsewhere, unless they are of a former configuration.
    pub fn on_endpoints(&mut self, index: ClusterIndex, cluster: Arc<Cluster>, draft: &mut Snapshot) {
        self.clusters.on_endpoints(index, cluster, false, draft);
    }

    /// The first attempt to find the endpoints of a cluster is over, whatever it brought.
    pub fn on_attempted(&mut self, index: ClusterIndex, cluster: Arc<Cluster>, draft: &mut Snapshot) {
        self.clusters.on_endpoints(index, cluster, true, draft);
    }

    /// Forgets what nobody needs; whether the draft changed.
    pub fn forget_unused(&mut self, draft: &mut Snapshot, now: Instant) -> bool {
        let changed = self.listeners.forget_unused(draft, &self.context);
        self.ask(now, draft);
        changed
    }

    fn on_response(
        &mut self,
        type_url: &str,
        response: Response,
        now: Instant,
        draft: &mut Snapshot,
        followed: &mut Followed,
    ) {
        let received = match self.stream.on_response(type_url, response, now) {
            None => return tracing::warn!(target: "config", "an answer of type `{type_url}`, which nobody asked for"),
            Some(Err(reason)) => return tracing::warn!(target: "config", "{type_url} is refused: {reason}"),
            Some(Ok(received)) => received,
        };
        let Received { updated, removed } = received;
        let mut rejections = Vec::new();
        for resource in &updated {
            let context = &mut self.context;
            let taken = match () {
                () if *type_url == *self.types.cluster => {
                    self.clusters.put(resource, draft, context).map(|started| followed.started.extend(started))
                }
                () if *type_url == *self.types.endpoints => self.clusters.assign(resource, draft, context),
                () if *type_url == *self.types.listener => self.listeners.put(resource, draft, context),
                () => self.listeners.put_table(resource, draft, context),
            };
            if let Err(reason) = taken {
                tracing::warn!(target: "config", "{type_url}: `{}` is refused: {reason}", resource.name);
                rejections.push(Rejection { name: resource.name.clone(), reason });
            }
        }
        for name in &removed {
            match () {
                () if *type_url == *self.types.cluster => followed.ended.extend(self.clusters.remove(name, draft)),
                () if *type_url == *self.types.listener => self.listeners.remove(name, draft),
                // Endpoints and routes stay while something asks for them, as in Envoy.
                () => {}
            }
        }
        if *type_url == *self.types.cluster {
            self.awaited.0 = false;
            self.clusters.forget_unused();
        } else if *type_url == *self.types.listener {
            self.awaited.1 = false;
        }
        self.stream.conclude(type_url, &rejections);
    }

    /// Asks for the names that are needed now, and sends every request that is due.
    fn ask(&mut self, now: Instant, draft: &Snapshot) {
        if let Some(subscription) = self.stream.subscription_mut(&self.types.endpoints) {
            let services = self.clusters.services();
            services.iter().for_each(|(name, limit)| subscription.set_fetch_timeout(name, *limit));
            subscription.set_names(services.into_keys(), now);
        }
        let needed = self.listeners.tables(draft);
        if let Some(subscription) = self.stream.subscription_mut(&self.types.routes) {
            let names = self.context.route_by_name.iter().filter(|(_, index)| needed.contains(index));
            let names: Vec<&str> = names.map(|(name, _)| &**name).collect();
            for name in &names {
                let limit = self.context.route_fetch_timeouts.get(*name).copied().unwrap_or(FETCH_TIMEOUT);
                subscription.set_fetch_timeout(name, limit);
            }
            subscription.set_names(names, now);
        }
        let Some(requests) = &self.requests else { return };
        while let Some(request) = self.stream.poll_request() {
            // Where the stream has ended, its end is on the way here.
            let _ = requests.send(request);
        }
    }
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

fn url<M: Name>() -> String {
    format!("type.googleapis.com/{}", M::full_name())
}
