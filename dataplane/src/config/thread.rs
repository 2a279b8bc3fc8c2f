//! The config thread: a tokio runtime beside the workers that serves the admin socket, resolves names, publishes snapshots, watches
//! the workers and ends the process in good order.
//!
//! ```text
//! SIGTERM, SIGINT   leave: listeners stop, idle connections close, replies carry Connection: close; ends when no connection is
//!                   left or the drain time is over; a second one ends at once
//! SIGUSR1           reopens access logs
//! SIGHUP            nothing
//! ```
//! Nothing here is waited for by a worker.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;
use thiserror::Error;
use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::LocalSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::discovery::connect::{Place, Target};
use super::discovery::disk::Keeper;
use super::discovery::grpc::{self, Event, GrpcPlan};
use super::discovery::source::{Server, Source, SourceIndex};
use super::discovery::{self, Discovery, Followed, file};
use super::lifecycle::Lifecycle;
use super::parse::ParseContext;
use super::publish::Publisher;
use super::snapshot::Snapshot;
use crate::admin::{Admin, AdminSocket, Command, Facts, server};
use crate::cluster::dns::{self, Resolvers};
use crate::cluster::eds;
use crate::cluster::{Cluster, ClusterIndex};
use crate::telemetry::access_log::sink::LogSinks;
use crate::telemetry::access_log::{AccessLog, LogBuffers};
use crate::telemetry::names::{ServerStat, TorusStat, WatchdogStat};
use crate::telemetry::program_log::LogControl;
use crate::telemetry::registry::Registry;
use crate::telemetry::server_stats::ServerStats;
use crate::telemetry::stats_config::StatsConfig;
use crate::telemetry::view::StatsView;
use crate::worker::watchdog::{self, TurnAge, Watchdog};

/// What the config thread is made of.
pub struct ConfigThread {
    /// Hands snapshots to workers.
    pub publisher: Publisher,
    /// What workers obey.
    pub lifecycle: Arc<Lifecycle>,
    /// Every stat.
    pub registry: Arc<Registry>,
    /// How stats are shown.
    pub stats: StatsConfig,
    /// How often the intervals of histograms end.
    pub stats_flush_interval: Duration,
    /// Every access-log file.
    pub log_sinks: Arc<LogSinks>,
    /// The program's own log.
    pub log: Option<LogControl>,
    /// The admin server's socket, bound before the workers started.
    pub admin: Option<AdminSocket>,
    /// File that gets the admin server's address. Source: Envoy, `--admin-address-path`.
    pub admin_address_path: Option<PathBuf>,
    /// File that keeps what control planes have sent.
    pub snapshot_path: Option<PathBuf>,
    /// Where requests to the admin server are logged.
    pub admin_access_logs: Vec<AccessLog>,
    /// What the admin server tells of the process.
    pub facts: Facts,
    /// What a control plane is asked for, if there is one.
    pub discovery: Option<discovery::Plan>,
    /// How long the turn lasts that each worker is in.
    pub turn_ages: Vec<TurnAge>,
}

/// Why the config thread cannot run.
#[derive(Debug, Error)]
pub enum ThreadError {
    /// The runtime cannot start.
    #[error("cannot start the config thread: {0}; raise the limit of open files (ulimit -n)")]
    Runtime(#[from] io::Error),
    /// The address file cannot be written.
    #[error("cannot write the admin address to `{}`: {source}; name a file that can be written with --admin-address-path", path.display())]
    AddressFile {
        /// As given.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// How the process came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Every connection ended.
    Drained,
    /// The drain time was over.
    DrainTimeOver,
    /// It was told to end at once.
    AtOnce,
}

impl ConfigThread {
    /// Runs until the process is to end. The workers have been told so when this returns; what they wrote to access logs is
    /// written out by [`LogSinks::shut_down`] after they were joined.
    pub fn run(self) -> Result<Ending, ThreadError> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        // What blocks, for instance reading a file, is rare here: one thread does.
        LocalSet::new().block_on(&runtime, self.serve())
    }

    async fn serve(self) -> Result<Ending, ThreadError> {
        let (commands, mut commanded) = mpsc::channel(COMMANDS_MAX);
        let mut signals = Signals::new()?;
        let version = self.facts.version.clone();
        let server_stats = ServerStats::new(&self.registry, &version);
        server_stats.loaded(self.publisher.current());
        if let (Some(path), Some(socket)) = (&self.admin_address_path, &self.admin) {
            let written = socket.write_address(path);
            written.map_err(|source| ThreadError::AddressFile { path: path.clone(), source })?;
        }
        let admin = Arc::new(Admin {
            registry: self.registry.clone(),
            stats: Mutex::new(StatsView::new(self.stats)),
            server_stats,
            snapshot: Mutex::new(self.publisher.current().clone()),
            records: Mutex::default(),
            lifecycle: self.lifecycle.clone(),
            log_buffers: Mutex::new(LogBuffers::new(self.log_sinks.clone(), self.registry.config_core())),
            log_sinks: self.log_sinks,
            log: self.log,
            commands,
            facts: self.facts,
            access_logs: self.admin_access_logs,
        });
        if let Some(socket) = self.admin {
            tracing::info!(target: "admin", "admin address: {}", socket.address());
            let admin = admin.clone();
            tokio::task::spawn_local(async move {
                if let Err(error) = server::serve(socket, admin).await {
                    tracing::error!(target: "admin", "admin server ended: {error}");
                }
            });
        }
        let (updates, mut updated) = mpsc::unbounded_channel();
        let warming = spawn_eds(self.publisher.current(), &self.registry, &updates)
            + spawn_dns(self.publisher.current(), &self.registry, updates.clone())
            + usize::from(self.discovery.is_some());
        let (events, mut happened) = mpsc::channel(EVENTS_MAX);
        let worker_count = self.registry.core_count().saturating_sub(1);
        let node = self.discovery.as_ref().map(|plan| plan.node.clone()).unwrap_or_default();
        let discovery = self
            .discovery
            .map(|plan| Discovery::new(plan, self.publisher.current(), worker_count, std::time::Instant::now()));
        if let Some(discovery) = &discovery {
            *admin.records.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = discovery.records();
        }
        let keeper = self.snapshot_path.filter(|_| discovery.is_some()).map(|path| Keeper::new(path, node.clone()));
        let mut turns = Turns {
            publisher: self.publisher,
            lifecycle: self.lifecycle,
            admin,
            is_discovery_cold: discovery.is_some(),
            discovery,
            keeper,
            node,
            events,
            updates,
            followers: BTreeMap::new(),
            resolvers: None,
            watchdog: Watchdog::new(&self.registry, self.turn_ages),
            warming,
            started: Instant::now(),
            drain_deadline: None,
            listeners_stop_at: None,
            last_check: Instant::now(),
        };
        turns.warm_up(0);
        turns.restore();
        turns.start_sources();
        let mut settle_tick = ticks(SETTLE_CHECK_INTERVAL);
        let mut stats_tick = ticks(self.stats_flush_interval);
        let mut log_tick = ticks(turns.admin.log_sinks.flush_interval());
        let mut watchdog_tick = ticks(watchdog::CHECK_INTERVAL);
        let mut files_tick = ticks(FILES_CHECK_INTERVAL);
        let mut keep_tick = ticks(KEEP_CHECK_INTERVAL);
        let mut drain_tick = ticks(DRAIN_CHECK_INTERVAL);
        loop {
            let stop_at = turns.listeners_stop_at.map(|(at, _)| at);
            let due = turns.discovery.as_ref().and_then(Discovery::next_deadline).map(Instant::from_std);
            tokio::select! {
                caught = signals.next() => match caught {
                    Caught::End(name) => {
                        if let Some(ending) = turns.on_end_signal(name) {
                            return Ok(turns.end(ending));
                        }
                    }
                    Caught::Reopen => {
                        tracing::info!(target: "main", "SIGUSR1: reopening access logs");
                        turns.admin.log_sinks.reopen();
                    }
                    Caught::Nothing => {}
                },
                Some(command) = commanded.recv() => match command {
                    Command::Quit => return Ok(turns.end(Ending::AtOnce)),
                    Command::PhaseChanged => turns.publisher.wake_all(),
                    Command::DrainListeners { graceful, inbound_only, keep_listeners } => {
                        turns.drain_listeners(graceful, inbound_only, keep_listeners);
                    }
                },
                Some(first) = updated.recv() => {
                    // Names that resolve together are published together.
                    tokio::time::sleep(UPDATES_GATHER).await;
                    let mut all = vec![first];
                    while let Ok(update) = updated.try_recv() {
                        all.push(update);
                    }
                    turns.apply(all);
                }
                Some(first) = happened.recv() => {
                    // What has come meanwhile is published together.
                    let mut all = vec![first];
                    while let Some(event) = happened.try_recv().ok().filter(|_| all.len() < EVENTS_AT_ONCE) {
                        all.push(event);
                    }
                    turns.on_discovered(all);
                }
                _ = settle_tick.tick(), if turns.publisher.is_unsettled() => turns.measure_settled(),
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => turns.on_discovery_due(),
                _ = stats_tick.tick() => turns.flush_stats(),
                _ = log_tick.tick() => turns.admin.flush_logs(),
                _ = watchdog_tick.tick() => turns.check_threads(),
                _ = files_tick.tick() => turns.follow_files(),
                _ = keep_tick.tick(), if turns.keeper.is_some() => turns.keep().await,
                _ = drain_tick.tick(), if turns.drain_deadline.is_some() => {
                    if let Some(ending) = turns.drain_state() {
                        return Ok(turns.end(ending));
                    }
                }
                () = sleep_until(stop_at.unwrap_or_else(Instant::now)), if stop_at.is_some() => turns.stop_drained_listeners(),
            }
        }
    }
}

/// What happens on the thread, one thing at a time.
struct Turns {
    publisher: Publisher,
    lifecycle: Arc<Lifecycle>,
    admin: Arc<Admin>,
    watchdog: Watchdog,
    /// Clusters whose first names are not resolved, or whose first endpoints have not come yet.
    warming: usize,
    started: Instant,
    /// When a process that leaves ends whatever is still open.
    drain_deadline: Option<Instant>,
    /// When listeners stop after a graceful drain, and whether only inbound ones do.
    listeners_stop_at: Option<(Instant, bool)>,
    last_check: Instant,
    discovery: Option<Discovery>,
    /// Keeps what discovery brings for the next start.
    keeper: Option<Keeper>,
    /// Discovery is counted among what warms.
    is_discovery_cold: bool,
    /// Who asks control planes.
    node: core::Node,
    /// To this thread, from its sources of configuration.
    events: mpsc::Sender<(SourceIndex, Event)>,
    updates: mpsc::UnboundedSender<Update>,
    /// Tasks that find the endpoints of discovered clusters.
    followers: BTreeMap<ClusterIndex, tokio::task::JoinHandle<()>>,
    resolvers: Option<Arc<Resolvers>>,
}

/// What a name's resolution or a file brings.
enum Update {
    Endpoints(ClusterIndex, Box<Cluster>),
    Warm,
    /// A discovered cluster has nothing to wait for any more.
    Attempted(ClusterIndex, Arc<Cluster>),
}

impl Turns {
    /// Counts clusters that became warm; with the last one, listeners may accept.
    fn warm_up(&mut self, warmed: usize) {
        self.warming = self.warming.saturating_sub(warmed);
        if self.warming > 0 {
            self.lifecycle.begin_warming();
        } else if self.lifecycle.phase().is_warming() || warmed == 0 {
            self.lifecycle.finish_warming();
            self.publisher.wake_all();
            let took = self.started.elapsed();
            let server = &self.admin.server_stats.server;
            server.record(self.admin.registry.config_core(), ServerStat::InitializationTimeMs, took.as_millis() as u64);
            tracing::info!(target: "main", "all clusters initialized; starting to serve");
        }
    }

    fn apply(&mut self, updates: Vec<Update>) {
        let mut draft = None;
        let mut warmed = 0;
        for update in updates {
            match update {
                Update::Warm => warmed += 1,
                Update::Attempted(index, cluster) => {
                    let draft = draft.get_or_insert_with(|| (**self.publisher.current()).clone());
                    if let Some(discovery) = &mut self.discovery {
                        discovery.on_attempted(index, cluster, draft);
                    }
                }
                Update::Endpoints(index, cluster) => {
                    let draft: &mut Snapshot = draft.get_or_insert_with(|| (**self.publisher.current()).clone());
                    let cluster = Arc::new(*cluster);
                    match &mut self.discovery {
                        Some(discovery) => discovery.on_endpoints(index, cluster, draft),
                        None => {
                            if let Some(place) = draft.clusters.get_mut(index.0 as usize) {
                                *place = Some(cluster);
                            }
                        }
                    }
                }
            }
        }
        if let Some(draft) = draft {
            self.publish(draft, None);
        }
        if warmed > 0 {
            self.warm_up(warmed);
        }
    }

    /// Hands the draft to the workers, unless it is as what they have.
    fn publish(&mut self, draft: Snapshot, received: Option<std::time::Instant>) {
        if !draft.is_shared_with(self.publisher.current()) {
            for before in &self.publisher.current().listening {
                if !draft.listening.iter().any(|it| Arc::ptr_eq(&it.sockets, &before.sockets)) {
                    before.sockets.stop();
                }
            }
            match received {
                Some(received) => self.publisher.publish_received(draft, received),
                None => self.publisher.publish(draft),
            }
            let mut shown = self.admin.snapshot.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            *shown = self.publisher.current().clone();
        }
        let current = self.publisher.current();
        let is_warm = self.discovery.as_ref().is_none_or(|discovery| discovery.is_warm(current));
        if self.is_discovery_cold && is_warm {
            self.is_discovery_cold = false;
            self.warm_up(1);
        }
    }

    fn on_discovered(&mut self, events: Vec<(SourceIndex, Event)>) {
        let received = events.iter().find_map(|(_, event)| match event {
            Event::Received(_, _, received) => Some(*received),
            _ => None,
        });
        self.discover(received, |discovery, draft| {
            let now = std::time::Instant::now();
            events.into_iter().map(|(source, event)| discovery.on_event(source, event, now, draft)).collect()
        });
        if let Some(keeper) = self.keeper.as_mut().filter(|_| received.is_some()) {
            keeper.note_change();
        }
    }

    /// Takes up what the process before this one was told.
    fn restore(&mut self) {
        let kept = self.keeper.as_ref().map(Keeper::load).unwrap_or_default();
        if !kept.is_empty() {
            let count: usize = kept.iter().map(|part| part.resources.len()).sum();
            tracing::info!(target: "config", "{count} resources of the run before serve until the control plane answers");
            let now = std::time::Instant::now();
            self.discover(None, |discovery, draft| vec![discovery.restore(&kept, now, draft)]);
        }
    }

    /// Writes what discovery has brought to the disk, once nothing in it waits for something.
    async fn keep(&mut self) {
        let (Some(keeper), Some(discovery)) = (&mut self.keeper, &self.discovery) else { return };
        if keeper.is_due().await && discovery.is_warm(self.publisher.current()) {
            keeper.keep(discovery.kept());
        }
    }

    fn on_discovery_due(&mut self) {
        self.discover(None, |discovery, draft| vec![discovery.on_time(std::time::Instant::now(), draft)]);
    }

    fn discover(
        &mut self,
        received: Option<std::time::Instant>,
        change: impl FnOnce(&mut Discovery, &mut Snapshot) -> Vec<Followed>,
    ) {
        let Some(discovery) = &mut self.discovery else { return };
        let mut draft = (**self.publisher.current()).clone();
        for followed in change(discovery, &mut draft) {
            for index in followed.ended.iter().chain(followed.started.iter().map(|(index, _)| index)) {
                if let Some(follower) = self.followers.remove(index) {
                    follower.abort();
                }
            }
            for (index, cluster) in followed.started {
                self.follow(index, cluster);
            }
        }
        let ends_trust = self.discovery.as_mut().is_some_and(Discovery::take_ends_trust);
        self.start_sources();
        self.publish(draft, received);
        if ends_trust {
            // Connections look at themselves.
            self.publisher.wake_all();
        }
    }

    /// Begins to follow sources that something is asked of.
    fn start_sources(&mut self) {
        let Some(discovery) = &mut self.discovery else { return };
        for (index, source) in discovery.take_unstarted() {
            let events = self.events.clone();
            match &source {
                Source::Ads(target) | Source::Grpc(_, target) => {
                    let (protocol, node) = (target.protocol, self.node.clone());
                    let method = match &source {
                        Source::Grpc(kind, _) => kind.method(protocol),
                        _ => grpc::aggregated_method(protocol),
                    };
                    let (admin, servers) = (self.admin.clone(), target.servers.clone());
                    let targets = move || targets_of(&admin.snapshot(), &servers);
                    let plan = GrpcPlan { protocol, method, node };
                    tokio::task::spawn_local(grpc::run(plan, targets, index, events));
                }
                Source::File { kind, path, poll_interval } => {
                    tokio::task::spawn_local(file::run(*kind, path.clone(), *poll_interval, index, events));
                }
            }
        }
    }

    /// Records how long publications took that every worker has by now.
    fn measure_settled(&mut self) {
        let core = self.admin.registry.config_core();
        for took in self.publisher.take_settled() {
            self.admin.server_stats.torus.record(core, TorusStat::ConfigReceiptToLiveUs, took.as_micros() as u64);
        }
    }

    /// Begins to find the endpoints of a discovered cluster: by its names, or in its file.
    fn follow(&mut self, index: ClusterIndex, cluster: Arc<Cluster>) {
        let (core, core_count) = (self.admin.registry.config_core(), self.admin.registry.core_count());
        let (endpoints, warm) = (self.updates.clone(), self.updates.clone());
        // The first outcome ends the warming, whatever it is. The receiver lives as long as the thread.
        let unchanged = cluster.clone();
        let warm = move || drop(warm.send(Update::Attempted(index, unchanged.clone())));
        let task: Pin<Box<dyn Future<Output = ()>>> = match cluster.eds.as_ref().and_then(|plan| plan.path()) {
            Some(path) => Box::pin(eds::run(
                path.clone(),
                vec![(index, cluster.clone())],
                core,
                core_count,
                move |index, cluster| drop(endpoints.send(Update::Endpoints(index, Box::new(cluster)))),
                warm,
            )),
            None => {
                let resolvers = self.resolvers.get_or_insert_with(Arc::default).clone();
                let publish = move |cluster| drop(endpoints.send(Update::Endpoints(index, Box::new(cluster))));
                Box::pin(dns::run(cluster, core, core_count, resolvers, publish, warm))
            }
        };
        self.followers.insert(index, tokio::task::spawn_local(task));
    }

    fn flush_stats(&mut self) {
        self.forget_unused();
        let mut view = self.admin.stats.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        view.flush(&self.admin.registry);
        drop(view);
        self.publisher.collect();
        if let Some(convergence) = self.publisher.convergence() {
            let core = self.admin.registry.config_core();
            let micros = convergence.as_micros() as u64;
            self.admin.server_stats.torus.set(core, TorusStat::ConfigConvergenceUs, micros);
        }
    }

    /// Lets go of what was discovered and that nobody needs any more.
    fn forget_unused(&mut self) {
        self.publisher.collect();
        if let Some(discovery) = &mut self.discovery {
            let mut draft = (**self.publisher.current()).clone();
            discovery.forget_unused(&mut draft, std::time::Instant::now());
            self.publish(draft, None);
        }
    }

    /// Has certificates read again whose files have changed.
    fn follow_files(&mut self) {
        let registry = self.admin.registry.clone();
        let core_count = registry.core_count();
        let context = || ParseContext { registry: registry.clone(), ..ParseContext::new(core_count) };
        // Whether a peer that was believed may not be any more.
        let tell = |whose: &str, name: &str, followed: Option<Result<bool, String>>| match followed {
            None => false,
            Some(Ok(ends_trust)) => {
                tracing::info!(target: "config", "{whose} `{name}`: certificates were read again");
                ends_trust
            }
            Some(Err(fault)) => {
                tracing::error!(target: "config", "{whose} `{name}`: certificates stay as they were: {fault}");
                false
            }
        };
        let snapshot = self.publisher.current().clone();
        let mut ends_trust = false;
        for listener in &snapshot.listeners {
            for tls in listener.chains.iter().filter_map(|chain| chain.tls.as_ref()) {
                ends_trust |= tell("listener", &listener.name, tls.follow_files(context));
            }
        }
        let mut distrusted = Vec::new();
        for (index, cluster) in snapshot.live_clusters() {
            let followed = cluster.tls.as_ref().and_then(|tls| tls.follow_files(context));
            if tell("cluster", &cluster.name, followed) {
                distrusted.push((index, cluster));
            }
        }
        if let Some(discovery) = &self.discovery {
            for (place, tls) in discovery.server_tls() {
                tell("server", &place.to_string(), tls.follow_files(context));
            }
        }
        if !distrusted.is_empty() {
            let mut draft = (*snapshot).clone();
            for (index, cluster) in distrusted {
                // Workers look at a cluster that is another one.
                if let Some(slot) = draft.clusters.get_mut(index.0 as usize) {
                    *slot = Some(Arc::new((**cluster).clone()));
                }
            }
            self.publish(draft, None);
        }
        if ends_trust {
            // Connections look at themselves.
            self.publisher.wake_all();
        }
    }

    /// Looks at the workers, and at how late this thread itself is.
    fn check_threads(&mut self) {
        if self.discovery.as_ref().is_some_and(Discovery::is_draining) {
            self.forget_unused();
        }
        self.watchdog.check();
        let late = self.last_check.elapsed().saturating_sub(watchdog::CHECK_INTERVAL);
        self.last_check = Instant::now();
        let core = self.admin.registry.config_core();
        for (limit, stat) in
            [(watchdog::MISS, WatchdogStat::WatchdogMiss), (watchdog::MEGA_MISS, WatchdogStat::WatchdogMegaMiss)]
        {
            if late >= limit {
                self.admin.server_stats.main_thread.iter().for_each(|stats| stats.increment(core, stat));
            }
        }
    }

    /// The first signal begins to leave, the second ends.
    fn on_end_signal(&mut self, name: &str) -> Option<Ending> {
        if self.drain_deadline.is_some() {
            tracing::warn!(target: "main", "second signal ({name}): ending at once");
            return Some(Ending::AtOnce);
        }
        let drain_time = self.lifecycle.drain_time();
        self.lifecycle.leave();
        self.publisher.wake_all();
        self.close_stopped();
        self.drain_deadline = Some(Instant::now() + drain_time);
        tracing::warn!(
            target: "main",
            "caught {name}: draining {} connections for up to {} s; a second signal ends at once",
            self.lifecycle.connections(),
            drain_time.as_secs()
        );
        None
    }

    fn drain_state(&self) -> Option<Ending> {
        if self.lifecycle.is_drained() {
            return Some(Ending::Drained);
        }
        self.drain_deadline.filter(|deadline| Instant::now() >= *deadline).map(|_| Ending::DrainTimeOver)
    }

    fn end(&mut self, ending: Ending) -> Ending {
        if let (Some(keeper), Some(discovery)) = (&mut self.keeper, &self.discovery)
            && discovery.is_warm(self.publisher.current())
        {
            keeper.finish(|| discovery.kept());
        }
        let left = self.lifecycle.connections();
        self.admin.flush_logs();
        self.lifecycle.end();
        self.publisher.wake_all();
        match ending {
            Ending::Drained => tracing::info!(target: "main", "drained; exiting"),
            Ending::DrainTimeOver => tracing::warn!(target: "main", "drain time over; closing {left} connections"),
            Ending::AtOnce => tracing::warn!(target: "main", "exiting; closing {left} connections"),
        }
        ending
    }

    /// Source: Envoy, `/drain_listeners`.
    fn drain_listeners(&mut self, graceful: bool, inbound_only: bool, keep_listeners: bool) {
        match (graceful, keep_listeners) {
            (_, true) => self.lifecycle.begin_drain(inbound_only),
            (true, false) => {
                self.lifecycle.begin_drain(inbound_only);
                self.listeners_stop_at = Some((Instant::now() + self.lifecycle.drain_time(), inbound_only));
            }
            (false, false) => self.lifecycle.stop_listeners(inbound_only),
        }
        self.publisher.wake_all();
        self.close_stopped();
    }

    fn stop_drained_listeners(&mut self) {
        if let Some((_, inbound_only)) = self.listeners_stop_at.take() {
            self.lifecycle.stop_listeners(inbound_only);
            self.publisher.wake_all();
            self.close_stopped();
        }
    }

    /// Refuses connections to listeners that take none any more.
    fn close_stopped(&self) {
        let phase = self.lifecycle.phase();
        let listening = &self.publisher.current().listening;
        listening.iter().filter(|it| phase.listeners_stopped(it.listener.direction)).for_each(|it| it.sockets.stop());
    }
}

/// Every endpoint of the servers of a control plane, in their order.
fn targets_of(snapshot: &Snapshot, servers: &[Server]) -> Vec<Target> {
    let mut targets = Vec::new();
    for server in servers {
        match server {
            Server::Cluster(name) => {
                let Some((_, cluster)) = snapshot.cluster_named(name) else { continue };
                targets.extend(cluster.endpoints.hosts.iter().map(|host| Target {
                    place: Place::Address(host.address.clone()),
                    tls: cluster.tls.clone().map(|tls| (tls, host.hostname.clone())),
                }));
            }
            Server::Google(server) => {
                let tls = server.tls.clone().map(|tls| (tls, "".into()));
                targets.push(Target { place: server.place.clone(), tls });
            }
        }
    }
    targets
}

/// Starts to resolve the names of every cluster that has some; returns how many clusters have to become warm.
fn spawn_dns(snapshot: &Snapshot, registry: &Registry, updates: mpsc::UnboundedSender<Update>) -> usize {
    let named = snapshot.live_clusters().filter(|(_, cluster)| cluster.dns.is_some());
    let mut resolvers = None;
    let mut count = 0;
    for (index, cluster) in named {
        let resolvers = resolvers.get_or_insert_with(|| Arc::new(Resolvers::default())).clone();
        let (endpoints, warm) = (updates.clone(), updates.clone());
        // The receiver lives as long as the thread.
        let publish = move |cluster| drop(endpoints.send(Update::Endpoints(index, Box::new(cluster))));
        let task: Pin<Box<dyn Future<Output = ()>>> = Box::pin(dns::run(
            cluster.clone(),
            registry.config_core(),
            registry.core_count(),
            resolvers,
            publish,
            move || drop(warm.send(Update::Warm)),
        ));
        tokio::task::spawn_local(task);
        count += 1;
    }
    count
}

/// Starts to follow every file that clusters get their endpoints from; returns how many clusters have to become warm.
fn spawn_eds(snapshot: &Snapshot, registry: &Registry, updates: &mpsc::UnboundedSender<Update>) -> usize {
    let mut files: BTreeMap<PathBuf, Vec<(ClusterIndex, Arc<Cluster>)>> = BTreeMap::new();
    for (index, cluster) in snapshot.live_clusters() {
        if let Some(path) = cluster.eds.as_ref().and_then(|plan| plan.path()) {
            files.entry(path.clone()).or_default().push((index, cluster.clone()));
        }
    }
    let mut count = 0;
    for (path, clusters) in files {
        count += clusters.len();
        let (endpoints, warm) = (updates.clone(), updates.clone());
        tokio::task::spawn_local(eds::run(
            path,
            clusters,
            registry.config_core(),
            registry.core_count(),
            // The receiver lives as long as the thread.
            move |index, cluster| drop(endpoints.send(Update::Endpoints(index, Box::new(cluster)))),
            move || drop(warm.send(Update::Warm)),
        ));
    }
    count
}

fn ticks(period: Duration) -> tokio::time::Interval {
    let mut ticks = interval(period.max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first tick of an interval comes at once.
    ticks.reset();
    ticks
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    reopen: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            reopen: signal(SignalKind::user_defined1())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Caught {
        tokio::select! {
            _ = self.terminate.recv() => Caught::End("SIGTERM"),
            _ = self.interrupt.recv() => Caught::End("SIGINT"),
            _ = self.reopen.recv() => Caught::Reopen,
            _ = self.hangup.recv() => Caught::Nothing,
        }
    }
}

/// What a signal asks for.
enum Caught {
    /// To end the process; the signal's name.
    End(&'static str),
    /// To reopen access logs.
    Reopen,
    /// Nothing, as SIGHUP does.
    Nothing,
}

/// Commands from the admin server that wait.
const COMMANDS_MAX: usize = 16;
/// What happened on the stream to the control plane and waits.
const EVENTS_MAX: usize = 64;
/// How many of these are taken into one publication.
const EVENTS_AT_ONCE: usize = 64;
/// How often a publication is asked for, while some worker does not have it.
const SETTLE_CHECK_INTERVAL: Duration = Duration::from_millis(1);
/// How long changes of endpoints are gathered before they are published together.
const UPDATES_GATHER: Duration = Duration::from_millis(2);
/// How often files of certificates are looked at.
const FILES_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// How often it is looked whether there is something to keep.
const KEEP_CHECK_INTERVAL: Duration = Duration::from_millis(250);
/// How often a process that leaves looks whether it is drained.
const DRAIN_CHECK_INTERVAL: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests;
