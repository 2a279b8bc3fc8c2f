//! Which resources a client has, in which version and for how long.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

#[derive(Debug, Default)]
pub(super) struct Known {
    resources: BTreeMap<Box<str>, Held>,
    /// Those of `resources` that have an end: few among thousands, as a rule none.
    ending: BTreeSet<Box<str>>,
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

    /// Each name with its version; `None` for what has an end.
    pub(super) fn lasting(&self) -> impl Iterator<Item = (&str, Option<&str>)> {
        self.resources.iter().map(|(name, held)| (&**name, held.expiry.is_none().then_some(&*held.version)))
    }

    pub(super) fn insert(&mut self, name: Box<str>, version: Box<str>, expiry: Option<Instant>) {
        self.note_end(&name, expiry);
        self.resources.insert(name, Held { version, expiry });
    }

    /// Moves the end of a resource that is there; `None` lets it live.
    pub(super) fn extend(&mut self, name: &str, expiry: Option<Instant>) {
        if let Some(held) = self.resources.get_mut(name) {
            held.expiry = expiry;
            self.note_end(name, expiry);
        }
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.resources.remove(name);
        self.ending.remove(name);
    }

    /// Drops and returns what `keeps` does not keep.
    pub(super) fn forget(&mut self, keeps: impl Fn(&str) -> bool) -> Vec<Box<str>> {
        let gone: Vec<Box<str>> = self.resources.keys().filter(|name| !keeps(name)).cloned().collect();
        gone.iter().for_each(|name| self.remove(name));
        gone
    }

    pub(super) fn take_expired(&mut self, now: Instant) -> Vec<Box<str>> {
        let is_over = |name: &str| self.expiry(name).is_some_and(|at| at <= now);
        let gone: Vec<Box<str>> = self.ending.iter().filter(|name| is_over(name)).cloned().collect();
        gone.iter().for_each(|name| self.remove(name));
        gone
    }

    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.ending.iter().filter_map(|name| self.expiry(name)).min()
    }

    fn expiry(&self, name: &str) -> Option<Instant> {
        self.resources.get(name)?.expiry
    }

    fn note_end(&mut self, name: &str, expiry: Option<Instant>) {
        if expiry.is_none() {
            self.ending.remove(name);
        } else if !self.ending.contains(name) {
            self.ending.insert(name.into());
        }
    }
}
