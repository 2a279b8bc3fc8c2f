//! Which resources a client has, in which version and for how long.

use std::collections::BTreeMap;
use std::time::Instant;

#[derive(Debug, Default)]
pub(super) struct Known {
    resources: BTreeMap<Box<str>, Held>,
}

#[derive(Debug)]
struct Held {
    version: Box<str>,
    expiry: Option<Instant>,
}

impl Known {
    pub(super) fn contains(&self, name: &str) -> bool {
        self.resources.contains_key(name)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &Box<str>> {
        self.resources.keys()
    }

    pub(super) fn versions(&self) -> Vec<(Box<str>, Box<str>)> {
        self.resources.iter().map(|(name, held)| (name.clone(), held.version.clone())).collect()
    }

    pub(super) fn insert(&mut self, name: Box<str>, version: Box<str>, expiry: Option<Instant>) {
        self.resources.insert(name, Held { version, expiry });
    }

    /// Moves the end of a resource that is there; `None` lets it live.
    pub(super) fn extend(&mut self, name: &str, expiry: Option<Instant>) {
        if let Some(held) = self.resources.get_mut(name) {
            held.expiry = expiry;
        }
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.resources.remove(name);
    }

    /// Drops and returns what `keeps` does not keep.
    pub(super) fn forget(&mut self, keeps: impl Fn(&str) -> bool) -> Vec<Box<str>> {
        let gone: Vec<Box<str>> = self.resources.keys().filter(|name| !keeps(name)).cloned().collect();
        gone.iter().for_each(|name| drop(self.resources.remove(name)));
        gone
    }

    pub(super) fn take_expired(&mut self, now: Instant) -> Vec<Box<str>> {
        let expired = |held: &Held| held.expiry.is_some_and(|at| at <= now);
        let gone: Vec<Box<str>> =
            self.resources.iter().filter(|(_, held)| expired(held)).map(|(name, _)| name.clone()).collect();
        gone.iter().for_each(|name| drop(self.resources.remove(name)));
        gone
    }

    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.resources.values().filter_map(|held| held.expiry).min()
    }
}
