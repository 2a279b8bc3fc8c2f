//! Which names a client asks for, and what of that the server was not told yet.
//!
//! An empty list of names in a stream's first request asks for everything ("legacy" wildcard); once a name was sent, an empty list
//! asks for nothing and `*` for everything.

use std::collections::BTreeSet;

use super::WILDCARD;

#[derive(Debug, Default)]
pub(super) struct Wanted {
    pub(super) names: BTreeSet<Box<str>>,
    wildcard: bool,
    /// A name was sent on this stream, so that `*` has to be written out.
    named: bool,
    /// Delta: not told yet.
    to_add: BTreeSet<Box<str>>,
    to_remove: BTreeSet<Box<str>>,
    /// Something was asked for on this stream.
    asked: bool,
}

impl Wanted {
    pub(super) fn covers(&self, name: &str) -> bool {
        self.wildcard || self.names.contains(name)
    }

    pub(super) fn is_nothing(&self) -> bool {
        !self.wildcard && self.names.is_empty()
    }

    pub(super) fn add_wildcard(&mut self) -> bool {
        let added = !std::mem::replace(&mut self.wildcard, true);
        if added {
            self.note_added(WILDCARD);
        }
        added
    }

    pub(super) fn remove_wildcard(&mut self) -> bool {
        let removed = std::mem::replace(&mut self.wildcard, false);
        if removed {
            self.note_removed(WILDCARD);
        }
        removed
    }

    pub(super) fn add(&mut self, name: &str) {
        if self.names.insert(name.into()) {
            self.note_added(name);
        }
    }

    pub(super) fn remove(&mut self, name: &str) {
        if self.names.remove(name) {
            self.note_removed(name);
        }
    }

    pub(super) fn ask_again(&mut self, name: &str) {
        self.to_add.insert(name.into());
    }

    pub(super) fn on_stream_opened(&mut self) {
        self.named = false;
        self.asked = false;
        self.to_add.clear();
        self.to_remove.clear();
    }

    /// SotW: the whole list; `None` where nothing is asked for.
    pub(super) fn sotw_names(&mut self) -> Option<Vec<Box<str>>> {
        if self.is_nothing() {
            return None;
        }
        if self.wildcard && self.names.is_empty() && !self.named {
            return Some(Vec::new());
        }
        self.named = true;
        let star = self.wildcard.then(|| WILDCARD.into());
        Some(star.into_iter().chain(self.names.iter().cloned()).collect())
    }

    /// Delta: the names of a stream's first request.
    pub(super) fn take_first(&mut self) -> Vec<Box<str>> {
        self.asked = true;
        self.to_add.clear();
        self.to_remove.clear();
        if self.wildcard && self.names.is_empty() {
            return Vec::new();
        }
        let star = self.wildcard.then(|| WILDCARD.into());
        star.into_iter().chain(self.names.iter().cloned()).collect()
    }

    /// Delta: what to add and what to remove.
    pub(super) fn take_changes(&mut self) -> (Vec<Box<str>>, Vec<Box<str>>) {
        let added = std::mem::take(&mut self.to_add);
        let removed = std::mem::take(&mut self.to_remove);
        (added.into_iter().collect(), removed.into_iter().collect())
    }

    fn note_added(&mut self, name: &str) {
        // Removed and added again is asked for again: the server may have forgotten it in between.
        self.to_remove.remove(name);
        self.to_add.insert(name.into());
    }

    fn note_removed(&mut self, name: &str) {
        self.to_add.remove(name);
        if self.asked {
            self.to_remove.insert(name.into());
        }
    }
}
