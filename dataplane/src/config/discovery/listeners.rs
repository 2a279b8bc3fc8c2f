//! Discovered listeners and route tables: a listener goes live with its tables and secrets, the one before drains.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use envoy_types::pb::envoy::config::listener::v3 as proto;
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use torus_xds::subscription::Resource;

use super::kind::Kind;
use super::records::Waiting;
use super::{Change, read};
use crate::config::parse::{ParseContext, listener};
use crate::config::snapshot::{FilterChain, Listener, Listening, RouteIndex, Snapshot};
use crate::downstream::RouteSource;
use crate::listener::socket::{self, ListenSockets};
use crate::route::RouteTable;
use crate::telemetry::names::ListenerManagerStat;
use crate::tls::secret::NamesSecrets;

pub(super) struct Listeners {
    held: BTreeMap<Box<str>, Held>,
    statics: Vec<Arc<Listener>>,
    /// Replaced or removed, with connections that are still open.
    draining: Vec<Arc<Listener>>,
    /// Bytes of each table, to tell a change.
    tables: BTreeMap<Box<str>, Arc<[u8]>>,
    /// Tables that did not come in time.
    given_up: BTreeSet<RouteIndex>,
    worker_count: usize,
    /// The tables that are needed may be others.
    is_changed: bool,
}

struct Held {
    body: Arc<[u8]>,
    /// The newest.
    listener: Arc<Listener>,
    is_live: bool,
}

impl Listeners {
    /// The listeners of the bootstrap.
    pub(super) fn new(snapshot: &Snapshot, worker_count: usize) -> Self {
        Self {
            held: BTreeMap::new(),
            statics: snapshot.listeners.clone(),
            draining: Vec::new(),
            tables: BTreeMap::new(),
            given_up: BTreeSet::new(),
            worker_count,
            is_changed: true,
        }
    }

    /// Places of the tables that listeners need: those that wait, serve or drain.
    pub(super) fn tables(&self, draft: &Snapshot) -> BTreeSet<RouteIndex> {
        let newest = self.held.values().map(|held| &held.listener);
        let all = newest.chain(&self.statics).chain(&self.draining).chain(&draft.listeners);
        all.flat_map(|listener| tables_of(listener)).collect()
    }

    /// Whether [`Self::tables`] may be others since the last call.
    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.is_changed)
    }

    /// Whether no listener waits for a table or a secret.
    pub(super) fn are_warm(&self, draft: &Snapshot, context: &ParseContext) -> bool {
        self.held.values().all(|held| held.is_live)
            && self.statics.iter().all(|listener| self.is_ready(listener, draft, context))
    }

    /// How many wait, and how many drain.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.held.values().filter(|held| !held.is_live).count(), self.draining.len())
    }

    /// Each listener that waits, with what it waits for.
    pub(super) fn waiting(&self, draft: &Snapshot, context: &ParseContext) -> Vec<Waiting> {
        let cold = self.held.values().filter(|held| !held.is_live).map(|held| &held.listener).chain(&self.statics);
        let waiting = cold.map(|listener| {
            let missing = tables_of(listener).filter(|index| draft.route_table(*index).is_none());
            let missing: BTreeSet<RouteIndex> = missing.filter(|index| !self.given_up.contains(index)).collect();
            let tables = context.route_by_name.iter().filter(|(_, index)| missing.contains(index));
            let secrets = contexts_of(listener).flat_map(NamesSecrets::secrets);
            let secrets: BTreeSet<&Box<str>> =
                secrets.filter(|key| context.secrets.awaits(std::iter::once(*key))).map(|(_, name)| name).collect();
            let mut all: Vec<(Kind, Box<str>)> = tables.map(|(name, _)| (Kind::Routes, name.clone())).collect();
            all.extend(secrets.into_iter().map(|name| (Kind::Secret, name.clone())));
            Waiting { listener: listener.name.clone(), for_resources: all }
        });
        waiting.filter(|waiting| !waiting.for_resources.is_empty()).collect()
    }

    /// Each context that may name secrets, of what serves and of what waits.
    pub(super) fn tls_contexts<'a>(&'a self, draft: &'a Snapshot) -> impl Iterator<Item = &'a dyn NamesSecrets> {
        let cold = self.held.values().filter(|held| !held.is_live).map(|held| &held.listener);
        draft.listeners.iter().chain(cold).flat_map(|listener| contexts_of(listener))
    }

    /// Takes a new or changed listener.
    pub(super) fn put(&mut self, resource: &Resource, change: &mut Change<'_>) -> Result<(), String> {
        let body = resource.body.as_deref().unwrap_or_default();
        let is_static = self.statics.iter().any(|listener| listener.name == resource.name);
        let known = self.held.get(&resource.name);
        if is_static || known.is_some_and(|held| *held.body == *body) {
            return Ok(());
        }
        let stat =
            if known.is_some() { ListenerManagerStat::ListenerModified } else { ListenerManagerStat::ListenerAdded };
        let others: Vec<Arc<Listener>> =
            change.draft.listeners.iter().filter(|listener| listener.name != resource.name).cloned().collect();
        // A TCP proxy may name a cluster that comes later.
        change.context.validate_clusters = false;
        let listener = read(body, change.context, |config: &proto::Listener, context| {
            let parsed = listener::parse(config, context)?;
            if parsed.name != resource.name {
                return Err(context.reject("name", format!("is `{}`, not `{}`", parsed.name, resource.name)));
            }
            let start = context.problems.checkpoint();
            listener::refuse_duplicates(&others, &parsed, context);
            context.problems.clean_since(start)?;
            Ok(parsed)
        });
        change.context.validate_clusters = true;
        let listener = listener?;
        change.draft.route_tables.resize_with(change.context.route_by_name.len(), || None);
        let listener = Arc::new(listener);
        let config = change.config(resource);
        let held = Held { body: config.body.clone(), listener: listener.clone(), is_live: false };
        change.records.warm(Kind::Listener, &resource.name, config);
        self.is_changed = true;
        if self.is_ready(&listener, change.draft, change.context) {
            self.go_live(&listener, change)?;
            self.held.insert(resource.name.clone(), Held { is_live: true, ..held });
        } else {
            self.held.insert(resource.name.clone(), held);
        }
        change.stats.listener_manager.increment(change.stats.core, stat);
        Ok(())
    }

    /// Takes a listener away; its connections end as they would in a drain.
    pub(super) fn remove(&mut self, name: &str, change: &mut Change<'_>) {
        if self.held.remove(name).is_some() {
            self.retire(name, change);
            change.records.remove(Kind::Listener, name);
            change.stats.listener_manager.increment(change.stats.core, ListenerManagerStat::ListenerRemoved);
        }
    }

    /// Takes a route table. Whether it is another than before.
    pub(super) fn put_table(&mut self, resource: &Resource, change: &mut Change<'_>) -> Result<bool, String> {
        let body = resource.body.as_deref().unwrap_or_default();
        if self.tables.get(&resource.name).is_some_and(|known| **known == *body) {
            return Ok(false);
        }
        // Source: RouteConfiguration.validate_clusters, off for discovered tables.
        change.context.validate_clusters = false;
        let table =
            read(body, change.context, |_: &RouteConfiguration, context| RouteTable::parse_wire(&[body], context));
        change.context.validate_clusters = true;
        let index = change.context.route_index(&resource.name);
        change.draft.route_tables.resize_with(change.context.route_by_name.len(), || None);
        let table = Arc::new(table?);
        if let Some(slot) = change.draft.route_tables.get_mut(index.0 as usize) {
            *slot = Some(table);
        }
        let config = change.config(resource);
        self.tables.insert(resource.name.clone(), config.body.clone());
        change.records.activate(Kind::Routes, &resource.name, config);
        self.promote(change);
        Ok(true)
    }

    /// A table did not come in time: its listeners go live without it.
    pub(super) fn give_up_on(&mut self, table: RouteIndex, change: &mut Change<'_>) {
        self.given_up.insert(table);
        self.promote(change);
    }

    /// Forgets listeners without connections, and tables that nobody needs.
    pub(super) fn forget_unused(&mut self, change: &mut Change<'_>) {
        let before = self.draining.len();
        // One is here; the config thread holds no other once old snapshots are gone.
        self.draining.retain(|listener| Arc::strong_count(listener) > 1);
        self.is_changed |= self.draining.len() != before;
        change.records.drained(Kind::Listener, |name| self.draining.iter().any(|listener| *listener.name == *name));
        let needed = self.tables(change.draft);
        self.tables.retain(|name, _| {
            let index = change.context.route_by_name.get(name).copied();
            let stays = index.is_some_and(|index| needed.contains(&index));
            if !stays && let Some(index) = index {
                if let Some(slot) = change.draft.route_tables.get_mut(index.0 as usize) {
                    *slot = None;
                }
                change.records.remove(Kind::Routes, name);
                if let Some(stats) = change.stats.routes.remove(name) {
                    change.records.texts.remove(&format!("{}version_text", stats.prefix()));
                }
            }
            stays
        });
    }

    fn is_ready(&self, listener: &Listener, draft: &Snapshot, context: &ParseContext) -> bool {
        tables_of(listener).all(|index| draft.route_table(index).is_some() || self.given_up.contains(&index))
            && contexts_of(listener).all(|tls| tls.is_ready() || !context.secrets.awaits(tls.secrets().iter()))
    }

    /// Lets listeners go live that wait for nothing any more.
    pub(super) fn promote(&mut self, change: &mut Change<'_>) {
        let waiting = self
            .held
            .values()
            .filter(|held| !held.is_live && self.is_ready(&held.listener, change.draft, change.context));
        let waiting: Vec<Arc<Listener>> = waiting.map(|held| held.listener.clone()).collect();
        for listener in waiting {
            if let Err(reason) = self.go_live(&listener, change) {
                tracing::error!(target: "config", "{reason}");
            }
            if let Some(held) = self.held.get_mut(&listener.name) {
                held.is_live = true;
            }
        }
    }

    /// Opens what is not open yet and puts the listener in the place of its former self.
    fn go_live(&mut self, listener: &Arc<Listener>, change: &mut Change<'_>) -> Result<(), String> {
        let mut listening = Vec::new();
        for (address, options) in listener.sockets() {
            // A socket that is open as it is wanted goes on, with every connection in its queue.
            let same = |it: &&Listening| {
                let before = it.listener.sockets().any(|(known, used)| known == address && used == options);
                let reuse = it.listener.reuse_port == listener.reuse_port && it.listener.backlog == listener.backlog;
                it.listener.name == listener.name && it.sockets.configured == *address && before && reuse
            };
            let sockets: Arc<ListenSockets> = match change.draft.listening.iter().find(same) {
                Some(open) => open.sockets.clone(),
                None => match socket::open_one(listener, address, options, self.worker_count) {
                    Ok(opened) => Arc::new(opened),
                    Err(error) => {
                        let stats = &change.stats;
                        stats.listener_manager.increment(stats.core, ListenerManagerStat::ListenerCreateFailure);
                        return Err(error.to_string());
                    }
                },
            };
            listening.push(Listening { listener: listener.clone(), sockets });
        }
        let is_new = self.retire(&listener.name, change);
        change.draft.listeners.push(listener.clone());
        change.draft.listening.extend(listening);
        change.records.promote(Kind::Listener, &listener.name);
        if is_new {
            let workers = self.worker_count as u64;
            let stat = ListenerManagerStat::ListenerCreateSuccess;
            change.stats.listener_manager.add(change.stats.core, stat, workers);
        }
        Ok(())
    }

    /// Takes the listener that is live out; its connections are asked to end. Whether there was none.
    fn retire(&mut self, name: &str, change: &mut Change<'_>) -> bool {
        let draining = &mut self.draining;
        let before = draining.len();
        change.draft.listeners.retain(|listener| {
            let stays = *listener.name != *name;
            if !stays {
                listener.drain.begin();
                draining.push(listener.clone());
            }
            stays
        });
        change.draft.listening.retain(|it| *it.listener.name != *name);
        change.records.drain(Kind::Listener, name);
        self.is_changed = true;
        self.draining.len() == before
    }
}

fn contexts_of(listener: &Listener) -> impl Iterator<Item = &dyn NamesSecrets> {
    listener.chains.iter().filter_map(|chain| chain.tls.as_ref()).map(|tls| tls as &dyn NamesSecrets)
}

/// The tables that its filter chains route by; those of several chains are often one.
fn tables_of(listener: &Listener) -> impl Iterator<Item = RouteIndex> {
    listener.chains.iter().filter_map(FilterChain::http).filter_map(|manager| match manager.routes {
        RouteSource::Own(_) => None,
        RouteSource::Discovered(index) => Some(index),
    })
}
