//! Discovered listeners and route tables: a listener goes live with its tables, the one before drains.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use envoy_types::pb::envoy::config::listener::v3 as proto;
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use torus_xds::subscription::Resource;

use super::read;
use crate::config::parse::{ParseContext, listener};
use crate::config::snapshot::{FilterChain, Listener, Listening, RouteIndex, Snapshot};
use crate::downstream::RouteSource;
use crate::listener::socket::{self, ListenSockets};
use crate::route::RouteTable;

pub(super) struct Listeners {
    held: BTreeMap<Box<str>, Held>,
    statics: Vec<Arc<Listener>>,
    /// Replaced or removed, with connections that are still open.
    draining: Vec<Arc<Listener>>,
    /// Bytes of each table, to tell a change.
    tables: BTreeMap<Box<str>, Vec<u8>>,
    /// Tables that did not come in time.
    given_up: BTreeSet<RouteIndex>,
    worker_count: usize,
}

struct Held {
    bytes: Vec<u8>,
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
        }
    }

    /// Places of the tables that listeners need: those that wait, serve or drain.
    pub(super) fn tables(&self, draft: &Snapshot) -> BTreeSet<RouteIndex> {
        let newest = self.held.values().map(|held| &held.listener);
        let all = newest.chain(&self.statics).chain(&self.draining).chain(&draft.listeners);
        all.flat_map(|listener| tables_of(listener)).collect()
    }

    /// Whether no listener waits for its table.
    pub(super) fn are_warm(&self, draft: &Snapshot) -> bool {
        self.held.values().all(|held| held.is_live)
            && self.statics.iter().all(|listener| self.is_ready(listener, draft))
    }

    /// Takes a new or changed listener.
    pub(super) fn put(
        &mut self,
        resource: &Resource,
        draft: &mut Snapshot,
        context: &mut ParseContext,
    ) -> Result<(), String> {
        let body = resource.body.as_deref().unwrap_or_default();
        let is_static = self.statics.iter().any(|listener| listener.name == resource.name);
        if is_static || self.held.get(&resource.name).is_some_and(|held| held.bytes == body) {
            return Ok(());
        }
        let others: Vec<Arc<Listener>> =
            draft.listeners.iter().filter(|listener| listener.name != resource.name).cloned().collect();
        // A TCP proxy may name a cluster that comes later.
        context.validate_clusters = false;
        let listener = read(body, context, |config: &proto::Listener, context| {
            let parsed = listener::parse(config, context)?;
            if parsed.name != resource.name {
                return Err(context.reject("name", format!("is `{}`, not `{}`", parsed.name, resource.name)));
            }
            let start = context.problems.checkpoint();
            listener::refuse_duplicates(&others, &parsed, context);
            context.problems.clean_since(start)?;
            Ok(parsed)
        });
        context.validate_clusters = true;
        let listener = listener?;
        draft.route_tables.resize_with(context.route_by_name.len(), || None);
        let listener = Arc::new(listener);
        let mut held = Held { bytes: body.to_vec(), listener: listener.clone(), is_live: false };
        if self.is_ready(&listener, draft) {
            self.go_live(&listener, draft)?;
            held.is_live = true;
        }
        self.held.insert(resource.name.clone(), held);
        Ok(())
    }

    /// Takes a listener away; its connections end as they would in a drain.
    pub(super) fn remove(&mut self, name: &str, draft: &mut Snapshot) {
        if self.held.remove(name).is_some() {
            self.retire(name, draft);
        }
    }

    /// Takes a route table.
    pub(super) fn put_table(
        &mut self,
        resource: &Resource,
        draft: &mut Snapshot,
        context: &mut ParseContext,
    ) -> Result<(), String> {
        let body = resource.body.as_deref().unwrap_or_default();
        if self.tables.get(&resource.name).is_some_and(|bytes| bytes == body) {
            return Ok(());
        }
        // Source: RouteConfiguration.validate_clusters, off for discovered tables.
        context.validate_clusters = false;
        let table = read(body, context, |_: &RouteConfiguration, context| RouteTable::parse_wire(&[body], context));
        context.validate_clusters = true;
        let index = context.route_index(&resource.name);
        draft.route_tables.resize_with(context.route_by_name.len(), || None);
        if let Some(slot) = draft.route_tables.get_mut(index.0 as usize) {
            *slot = Some(Arc::new(table?));
        }
        self.tables.insert(resource.name.clone(), body.to_vec());
        self.promote(draft);
        Ok(())
    }

    /// A table did not come in time: its listeners go live without it.
    pub(super) fn give_up_on(&mut self, table: RouteIndex, draft: &mut Snapshot) {
        self.given_up.insert(table);
        self.promote(draft);
    }

    /// Forgets listeners without connections, and tables that nobody needs. Whether the draft changed.
    pub(super) fn forget_unused(&mut self, draft: &mut Snapshot, context: &ParseContext) -> bool {
        // One is here; the config thread holds no other once old snapshots are gone.
        self.draining.retain(|listener| Arc::strong_count(listener) > 1);
        let needed = self.tables(draft);
        let mut changed = false;
        self.tables.retain(|name, _| {
            let index = context.route_by_name.get(name).copied();
            let stays = index.is_some_and(|index| needed.contains(&index));
            if !stays
                && let Some(index) = index
                && let Some(slot) = draft.route_tables.get_mut(index.0 as usize)
            {
                *slot = None;
                changed = true;
            }
            stays
        });
        changed
    }

    fn is_ready(&self, listener: &Listener, draft: &Snapshot) -> bool {
        tables_of(listener).all(|index| draft.route_table(index).is_some() || self.given_up.contains(&index))
    }

    /// Lets listeners go live that waited for a table.
    fn promote(&mut self, draft: &mut Snapshot) {
        let waiting = self.held.values().filter(|held| !held.is_live && self.is_ready(&held.listener, draft));
        let waiting: Vec<Arc<Listener>> = waiting.map(|held| held.listener.clone()).collect();
        for listener in waiting {
            if let Err(reason) = self.go_live(&listener, draft) {
                tracing::error!(target: "config", "{reason}");
            }
            if let Some(held) = self.held.get_mut(&listener.name) {
                held.is_live = true;
            }
        }
    }

    /// Opens what is not open yet and puts the listener in the place of its former self.
    fn go_live(&mut self, listener: &Arc<Listener>, draft: &mut Snapshot) -> Result<(), String> {
        let mut listening = Vec::new();
        for (address, options) in listener.sockets() {
            // A socket that is open as it is wanted goes on, with every connection in its queue.
            let same = |it: &&Listening| {
                let before = it.listener.sockets().any(|(known, used)| known == address && used == options);
                let reuse = it.listener.reuse_port == listener.reuse_port && it.listener.backlog == listener.backlog;
                it.listener.name == listener.name && it.sockets.configured == *address && before && reuse
            };
            let sockets: Arc<ListenSockets> = match draft.listening.iter().find(same) {
                Some(open) => open.sockets.clone(),
                None => {
                    let opened = socket::open_one(listener, address, options, self.worker_count);
                    Arc::new(opened.map_err(|error| error.to_string())?)
                }
            };
            listening.push(Listening { listener: listener.clone(), sockets });
        }
        self.retire(&listener.name, draft);
        draft.listeners.push(listener.clone());
        draft.listening.extend(listening);
        Ok(())
    }

    /// Takes the listener that is live out; its connections are asked to end.
    fn retire(&mut self, name: &str, draft: &mut Snapshot) {
        let draining = &mut self.draining;
        draft.listeners.retain(|listener| {
            let stays = *listener.name != *name;
            if !stays {
                listener.drain.begin();
                draining.push(listener.clone());
            }
            stays
        });
        draft.listening.retain(|it| *it.listener.name != *name);
    }
}

/// The tables that its filter chains route by; those of several chains are often one.
fn tables_of(listener: &Listener) -> impl Iterator<Item = RouteIndex> {
    listener.chains.iter().filter_map(FilterChain::http).filter_map(|manager| match manager.routes {
        RouteSource::Own(_) => None,
        RouteSource::Discovered(index) => Some(index),
    })
}
