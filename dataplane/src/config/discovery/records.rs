//! What was sent and what became of it, for the admin server: versions, times, what waits, what was refused.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use super::kind::Kind;

/// Every discovered resource that the admin server shows.
#[derive(Debug, Default)]
pub struct Records {
    clusters: BTreeMap<Box<str>, Record>,
    listeners: BTreeMap<Box<str>, Record>,
    routes: BTreeMap<Box<str>, Record>,
    endpoints: BTreeMap<Box<str>, Record>,
    /// Without what is nobody's to read.
    secrets: BTreeMap<Box<str>, Record>,
    /// Secrets that did not come yet, and since when they are asked for.
    pub awaited_secrets: BTreeMap<Box<str>, SystemTime>,
    versions: BTreeMap<Kind, Box<str>>,
    /// Kinds of which some record has a failure.
    failing: BTreeSet<Kind>,
    /// Stats that are texts, by name.
    pub texts: BTreeMap<String, Box<str>>,
    /// Listeners that wait, each with what it waits for.
    pub waiting: Vec<Waiting>,
    /// What is not serving yet, or not any more.
    pub counts: Counts,
}

/// A listener that waits.
#[derive(Clone, Debug)]
pub struct Waiting {
    /// Its name.
    pub listener: Box<str>,
    /// What it waits for.
    pub for_resources: Vec<(Kind, Box<str>)>,
}

/// How much of what is configured does not serve.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Clusters without their first endpoints.
    pub clusters_warming: u64,
    /// Listeners without their first routes.
    pub listeners_warming: u64,
    /// Replaced or removed listeners with open connections.
    pub listeners_draining: u64,
}

/// One name.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// In use.
    pub active: Option<Config>,
    /// Waits for what it needs.
    pub warming: Option<Config>,
    /// Removed or replaced, with connections that are still open.
    pub draining: Option<Config>,
    /// The newest update was refused.
    pub failure: Option<Failure>,
}

/// A resource as it came.
#[derive(Clone, Debug)]
pub struct Config {
    /// Of the resource, or of the answer it came in.
    pub version: Box<str>,
    /// In wire format.
    pub body: Arc<[u8]>,
    /// When it was taken.
    pub updated: SystemTime,
}

/// An update that was refused.
#[derive(Clone, Debug)]
pub struct Failure {
    /// What was refused.
    pub config: Config,
    /// Why.
    pub details: String,
}

impl Record {
    fn is_over(&self) -> bool {
        self.active.is_none() && self.warming.is_none() && self.draining.is_none() && self.failure.is_none()
    }
}

impl Records {
    /// The records of a kind by name.
    pub fn of(&self, kind: Kind) -> &BTreeMap<Box<str>, Record> {
        match kind {
            Kind::Cluster => &self.clusters,
            Kind::Endpoints => &self.endpoints,
            Kind::Listener => &self.listeners,
            Kind::Routes => &self.routes,
            Kind::Secret => &self.secrets,
        }
    }

    /// Version of the newest answer that was accepted.
    pub fn version(&self, kind: Kind) -> Option<&str> {
        self.versions.get(&kind).map(|version| &**version)
    }

    pub(super) fn accepted(&mut self, kind: Kind, version: &str) {
        self.versions.insert(kind, version.into());
    }

    pub(super) fn activate(&mut self, kind: Kind, name: &str, config: Config) {
        let record = self.entry(kind, name);
        (record.active, record.warming) = (Some(config), None);
    }

    pub(super) fn warm(&mut self, kind: Kind, name: &str, config: Config) {
        self.entry(kind, name).warming = Some(config);
    }

    /// What waited is in use.
    pub(super) fn promote(&mut self, kind: Kind, name: &str) {
        if let Some(record) = self.all(kind).get_mut(name)
            && let Some(config) = record.warming.take()
        {
            record.active = Some(config);
        }
    }

    pub(super) fn fail(&mut self, kind: Kind, name: &str, failure: Failure) {
        self.failing.insert(kind);
        self.entry(kind, name).failure = Some(failure);
    }

    /// The next answer of the kind: what was refused in the one before is no news any more, as in Envoy.
    pub(super) fn forget_failures(&mut self, kind: Kind) {
        if self.failing.remove(&kind) {
            self.all(kind).values_mut().for_each(|record| record.failure = None);
            self.prune(kind);
        }
    }

    pub(super) fn remove(&mut self, kind: Kind, name: &str) {
        let records = self.all(kind);
        if let Some(record) = records.get_mut(name) {
            (record.active, record.warming) = (None, None);
            if record.is_over() {
                records.remove(name);
            }
        }
    }

    /// What was in use ends its connections.
    pub(super) fn drain(&mut self, kind: Kind, name: &str) {
        if let Some(record) = self.all(kind).get_mut(name) {
            record.draining = record.active.take();
        }
    }

    /// Forgets secrets that nobody asks for.
    pub(super) fn retain_secrets(&mut self, is_wanted: impl Fn(&str) -> bool) {
        self.secrets.retain(|name, _| is_wanted(name));
        self.awaited_secrets.retain(|name, _| is_wanted(name));
    }

    /// Whose connections are over.
    pub(super) fn drained(&mut self, kind: Kind, is_draining: impl Fn(&str) -> bool) {
        for (name, record) in self.all(kind).iter_mut().filter(|(_, record)| record.draining.is_some()) {
            if !is_draining(name) {
                record.draining = None;
            }
        }
        self.prune(kind);
    }

    fn entry(&mut self, kind: Kind, name: &str) -> &mut Record {
        self.all(kind).entry(name.into()).or_default()
    }

    fn prune(&mut self, kind: Kind) {
        self.all(kind).retain(|_, record| !record.is_over());
    }

    fn all(&mut self, kind: Kind) -> &mut BTreeMap<Box<str>, Record> {
        match kind {
            Kind::Cluster => &mut self.clusters,
            Kind::Endpoints => &mut self.endpoints,
            Kind::Listener => &mut self.listeners,
            Kind::Routes => &mut self.routes,
            Kind::Secret => &mut self.secrets,
        }
    }
}
