//! The server's side of xDS as plain values: what a client asks for, what is due to it, what it accepted. No I/O, no clock.
//!
//! ```text
//!            on_request                     push                       on_request, nonce matches
//!  unknown ------------> due -------------------------> outstanding ------------------------------> at rest
//!                         ^                                  |          (accepted or refused)          |
//!                         +---- on_change, new names, a name asked for again; kept while outstanding --+
//! ```
//! A [`Subscription`] is one type on one stream, a [`Session`] all types of one stream in the order in which they are pushed.
//! Source: Envoy's documentation, "xDS REST and gRPC protocol".

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hasher;
use std::sync::Arc;

mod session;
#[cfg(test)]
mod tests;

pub use session::{PUSH_ORDER, Session, url};

/// Which of the two protocols a stream speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// State of the world: a request names all that is wanted.
    Sotw,
    /// Incremental: requests and answers carry differences.
    Delta,
}

/// One resource as it would be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    pub name: Box<str>,
    /// Equal contents have equal versions.
    pub version: u64,
    /// The message, encoded.
    pub body: Vec<u8>,
}

impl Resource {
    /// A resource whose version follows from its content.
    pub fn new(name: impl Into<Box<str>>, body: Vec<u8>) -> Self {
        // Fixed keys: replicas of one build give one content one version, so a client that moves is not sent what it has.
        let mut hasher = std::hash::DefaultHasher::new();
        hasher.write(&body);
        Self { name: name.into(), version: hasher.finish(), body }
    }
}

/// What a request says, apart from its type.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ask {
    /// SotW: all names wanted. Delta: `resource_names_subscribe`.
    pub names: Vec<Box<str>>,
    /// Delta: `resource_names_unsubscribe`.
    pub unsubscribed: Vec<Box<str>>,
    /// Delta: `initial_resource_versions`.
    pub held: Vec<(Box<str>, Box<str>)>,
    /// `response_nonce`
    pub nonce: Box<str>,
    /// The message of `error_detail`.
    pub refusal: Option<Box<str>>,
}

/// What a request turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A first request, or changed wishes.
    Subscribed,
    /// The outstanding push was accepted.
    Accepted,
    /// The outstanding push was refused.
    Refused,
    /// An answer to what was superseded; nothing follows from it.
    Stale,
}

/// What is to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Push {
    pub nonce: Box<str>,
    pub resources: Vec<Resource>,
    /// Delta: names that do not exist, or no longer.
    pub removed: Vec<Box<str>>,
}

/// Which resources of a type a client wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// All that concern it.
    All,
    Names(Arc<BTreeSet<Box<str>>>),
}

impl Wanted {
    /// Whether `name` is among them.
    pub fn contains(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Names(names) => names.contains(name),
        }
    }
}

/// What a client last refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub nonce: Box<str>,
    pub reason: Box<str>,
    names: Vec<Box<str>>,
}

/// Whether an absent resource is a deleted one (SotW): so it is for listeners and clusters, and only there may a client want all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Listeners and clusters.
    World,
    /// Everything that is asked for by name.
    Named,
}

/// One type on one stream.
#[derive(Debug)]
pub struct Subscription {
    variant: Variant,
    scope: Scope,
    wildcard: bool,
    /// Shared with whoever was told what is wanted, since there may be ten thousand.
    names: Arc<BTreeSet<Box<str>>>,
    /// Once names were given, an empty list means nothing instead of everything.
    was_named: bool,
    /// What the client was sent, or says it holds.
    sent: BTreeMap<Box<str>, u64>,
    /// Delta: names that are answered even where nothing changed.
    asked_again: BTreeSet<Box<str>>,
    /// SotW: the next request is answered though it repeats what is known, since the client warms something up.
    answer_next: bool,
    must_answer: bool,
    changed: bool,
    /// Names whose resources alone may be others now.
    changed_names: BTreeSet<Box<str>>,
    nonce_count: u64,
    outstanding: Option<Outstanding>,
    accepted: Option<Box<str>>,
    refused: Option<Refusal>,
}

#[derive(Debug)]
struct Outstanding {
    nonce: Box<str>,
    names: Vec<Box<str>>,
}

impl Subscription {
    /// A subscription that wants nothing yet.
    pub fn new(variant: Variant, scope: Scope) -> Self {
        Self {
            variant,
            scope,
            wildcard: false,
            names: Arc::default(),
            was_named: false,
            sent: BTreeMap::new(),
            asked_again: BTreeSet::new(),
            answer_next: false,
            must_answer: false,
            changed: false,
            changed_names: BTreeSet::new(),
            nonce_count: 0,
            outstanding: None,
            accepted: None,
            refused: None,
        }
    }

    /// Takes up a request.
    pub fn on_request(&mut self, ask: Ask) -> Outcome {
        let settled = self.settle(&ask);
        let outcome = match self.variant {
            Variant::Sotw => self.on_state(ask, settled),
            Variant::Delta => self.on_difference(ask, settled),
        };
        debug_assert!(self.is_consistent());
        outcome
    }

    /// The resources of this type may be others now.
    pub fn on_change(&mut self) {
        self.changed = true;
    }

    /// The resources called `names`, and no others, may be others now.
    pub fn on_some_changed(&mut self, names: &[Box<str>]) {
        let must_be_whole = self.variant == Variant::Sotw && self.scope == Scope::World;
        if must_be_whole || self.refused.is_some() {
            // What was refused may be mended by any of them.
            self.changed = true;
            return;
        }
        let concerning = names.iter().filter(|name| self.wildcard || self.names.contains(*name));
        self.changed_names.extend(concerning.cloned());
    }

    /// What contains this type was sent: the client will ask again and wait for an answer, changed or not.
    pub fn on_parent_pushed(&mut self) {
        self.answer_next = self.variant == Variant::Sotw;
    }

    /// Whether something may have to be sent and the client can take it.
    pub fn is_due(&self) -> bool {
        self.outstanding.is_none()
            && (self.must_answer || self.changed || !self.asked_again.is_empty() || !self.changed_names.is_empty())
            && (self.wildcard || !self.names.is_empty() || self.must_answer || !self.asked_again.is_empty())
    }

    /// What the client wants.
    pub fn wanted(&self) -> Wanted {
        if self.wildcard { Wanted::All } else { Wanted::Names(self.names.clone()) }
    }

    /// What must be known for the next push: all that is wanted, or the part of it that may have changed.
    pub fn wanted_now(&self) -> Wanted {
        if self.is_partial() { Wanted::Names(Arc::new(self.changed_names.clone())) } else { self.wanted() }
    }

    fn is_partial(&self) -> bool {
        !self.changed && !self.must_answer && self.asked_again.is_empty() && !self.changed_names.is_empty()
    }

    /// What is to be sent, if anything: `resources` are all that exist of [`Self::wanted_now`], each name once.
    pub fn push(&mut self, resources: Vec<Resource>) -> Option<Push> {
        if self.outstanding.is_some() {
            return None;
        }
        let wanted = self.wanted();
        let resources: BTreeMap<Box<str>, Resource> = resources
            .into_iter()
            .filter(|resource| wanted.contains(&resource.name))
            .map(|resource| (resource.name.clone(), resource))
            .collect();
        let partial = self.is_partial();
        self.changed = false;
        let changed_names = std::mem::take(&mut self.changed_names);
        if partial {
            let push = self.push_some(resources, &changed_names);
            debug_assert!(self.is_consistent());
            return push;
        }
        let push = match self.variant {
            Variant::Sotw => self.push_state(resources),
            Variant::Delta => self.push_difference(resources),
        };
        self.must_answer = false;
        self.asked_again.clear();
        debug_assert!(self.is_consistent());
        push
    }

    /// The nonce of the newest push that was accepted.
    pub fn accepted(&self) -> Option<&str> {
        self.accepted.as_deref()
    }

    /// The nonce of the newest push, empty before the first.
    pub fn sent_nonce(&self) -> String {
        if self.nonce_count == 0 { String::new() } else { self.nonce_count.to_string() }
    }

    /// The nonce that waits for an answer.
    pub fn outstanding(&self) -> Option<&str> {
        self.outstanding.as_ref().map(|outstanding| &*outstanding.nonce)
    }

    /// What was refused, until a later push is accepted.
    pub fn refused(&self) -> Option<&Refusal> {
        self.refused.as_ref()
    }

    /// Names and versions that the client was sent.
    pub fn sent(&self) -> impl Iterator<Item = (&str, u64)> {
        self.sent.iter().map(|(name, version)| (&**name, *version))
    }

    /// Books the answer that a request carries.
    fn settle(&mut self, ask: &Ask) -> Option<Outcome> {
        let outstanding = self.outstanding.take_if(|outstanding| outstanding.nonce == ask.nonce)?;
        match &ask.refusal {
            Some(reason) => {
                self.refused =
                    Some(Refusal { nonce: outstanding.nonce, reason: reason.clone(), names: outstanding.names });
                Some(Outcome::Refused)
            }
            None => {
                self.accepted = Some(outstanding.nonce);
                self.refused = None;
                Some(Outcome::Accepted)
            }
        }
    }

    fn on_state(&mut self, ask: Ask, settled: Option<Outcome>) -> Outcome {
        let is_first = self.nonce_count == 0;
        // A nonce of an earlier stream, or none, is a first request; on this stream, only the newest counts.
        if !is_first && settled.is_none() && *ask.nonce != *self.sent_nonce() {
            return Outcome::Stale;
        }
        let mut names: BTreeSet<Box<str>> = ask.names.into_iter().collect();
        let star = names.remove("*");
        self.was_named |= !names.is_empty() || star;
        let wildcard = star || (self.scope == Scope::World && names.is_empty() && !self.was_named);
        let is_same = wildcard == self.wildcard && names == *self.names;
        let has_more = (wildcard && !self.wildcard) || names.iter().any(|name| !self.names.contains(name));
        self.wildcard = wildcard;
        if !is_same {
            self.names = Arc::new(names);
        }
        if !wildcard {
            self.sent.retain(|name, _| self.names.contains(name));
        }
        let asks_again = is_same && self.answer_next;
        self.answer_next &= !asks_again;
        // Fewer names need no answer; a refusal is no question.
        self.must_answer |= is_first || has_more || (asks_again && settled != Some(Outcome::Refused));
        settled.unwrap_or(if is_same && !is_first { Outcome::Stale } else { Outcome::Subscribed })
    }

    fn on_difference(&mut self, ask: Ask, settled: Option<Outcome>) -> Outcome {
        let is_first = self.nonce_count == 0 && !self.wildcard && !self.was_named;
        let has_wishes = is_first || !ask.names.is_empty() || !ask.unsubscribed.is_empty();
        if is_first {
            self.wildcard = self.scope == Scope::World && ask.names.is_empty();
            self.must_answer = true;
            self.sent = ask.held.into_iter().map(|(name, version)| (name, parse_version(&version))).collect();
        }
        let held_first = if is_first { self.sent.clone() } else { BTreeMap::new() };
        for name in ask.names {
            self.was_named = true;
            if &*name == "*" {
                self.must_answer |= !self.wildcard;
                self.wildcard = true;
                continue;
            }
            // What a client says it holds in its first request it need not be sent again.
            if !held_first.contains_key(&name) {
                self.asked_again.insert(name.clone());
            }
            Arc::make_mut(&mut self.names).insert(name);
        }
        for name in ask.unsubscribed {
            if &*name == "*" {
                self.wildcard = false;
                self.sent.retain(|name, _| self.names.contains(name));
            } else if self.names.contains(&name) {
                Arc::make_mut(&mut self.names).remove(&name);
                self.asked_again.remove(&name);
                if self.wildcard {
                    // Still covered: the client must hear whether it keeps the resource.
                    self.asked_again.insert(name);
                } else {
                    self.sent.remove(&name);
                }
            }
        }
        match settled {
            Some(outcome) => outcome,
            None if has_wishes => Outcome::Subscribed,
            None => Outcome::Stale,
        }
    }

    /// A push of what differs among `names`, of which `resources` exist.
    fn push_some(&mut self, resources: BTreeMap<Box<str>, Resource>, names: &BTreeSet<Box<str>>) -> Option<Push> {
        let lost = |name: &str| self.sent.contains_key(name) && !resources.contains_key(name);
        let removed: Vec<Box<str>> = match self.variant {
            Variant::Delta => names.iter().filter(|name| lost(name)).cloned().collect(),
            // Absence says nothing of what is asked for by name.
            Variant::Sotw => Vec::new(),
        };
        let differs = |resource: &Resource| {
            names.contains(&resource.name) && self.sent.get(&resource.name) != Some(&resource.version)
        };
        let chosen: Vec<Resource> = resources.into_values().filter(differs).collect();
        if chosen.is_empty() && removed.is_empty() {
            return None;
        }
        for name in &removed {
            self.sent.remove(name);
        }
        self.sent.extend(chosen.iter().map(|resource| (resource.name.clone(), resource.version)));
        Some(self.number(chosen, removed))
    }

    fn push_state(&mut self, resources: BTreeMap<Box<str>, Resource>) -> Option<Push> {
        let differs = |resource: &Resource| self.sent.get(&resource.name) != Some(&resource.version);
        let lost = self.scope == Scope::World && self.sent.keys().any(|name| !resources.contains_key(name));
        let any_differs = resources.values().any(differs);
        if !self.must_answer && !lost && !any_differs {
            return None;
        }
        // Where nothing exists by the names, an answer would only be empty: the client waits, and hears when it does.
        if self.scope == Scope::Named && resources.is_empty() {
            return None;
        }
        let whole = self.must_answer || self.scope == Scope::World || self.is_mended(&resources);
        let chosen: Vec<Resource> = resources.into_values().filter(|resource| whole || differs(resource)).collect();
        if self.scope == Scope::World {
            self.sent.clear();
        }
        self.sent.extend(chosen.iter().map(|resource| (resource.name.clone(), resource.version)));
        Some(self.number(chosen, Vec::new()))
    }

    fn push_difference(&mut self, mut resources: BTreeMap<Box<str>, Resource>) -> Option<Push> {
        let mut removed: Vec<Box<str>> =
            self.sent.keys().filter(|name| !resources.contains_key(*name)).cloned().collect();
        let mut chosen = Vec::new();
        let mended = self.is_mended(&resources);
        for name in &self.asked_again {
            if !resources.contains_key(name) && !self.sent.contains_key(name) {
                removed.push(name.clone());
            }
        }
        resources.retain(|name, resource| {
            let refused = mended && self.refused.as_ref().is_some_and(|refusal| refusal.names.contains(name));
            refused || self.asked_again.contains(name) || self.sent.get(name) != Some(&resource.version)
        });
        chosen.extend(resources.into_values());
        if chosen.is_empty() && removed.is_empty() && !(self.must_answer && self.wildcard) {
            return None;
        }
        for name in &removed {
            self.sent.remove(name);
        }
        self.sent.extend(chosen.iter().map(|resource| (resource.name.clone(), resource.version)));
        Some(self.number(chosen, removed))
    }

    /// Whether something of what was refused is now different, so that the rest of it is worth sending again.
    fn is_mended(&self, resources: &BTreeMap<Box<str>, Resource>) -> bool {
        let differs = |name: &str| resources.get(name).map(|resource| resource.version) != self.sent.get(name).copied();
        self.refused.as_ref().is_some_and(|refusal| refusal.names.iter().any(|name| differs(name)))
    }

    fn number(&mut self, resources: Vec<Resource>, removed: Vec<Box<str>>) -> Push {
        self.nonce_count += 1;
        let nonce: Box<str> = self.nonce_count.to_string().into();
        let names = resources.iter().map(|resource| resource.name.clone()).collect();
        self.outstanding = Some(Outstanding { nonce: nonce.clone(), names });
        Push { nonce, resources, removed }
    }

    fn is_consistent(&self) -> bool {
        let newest = self.nonce_count.to_string();
        let outstanding = self.outstanding.as_ref().is_none_or(|outstanding| *outstanding.nonce == *newest);
        outstanding && !self.names.contains("*") && (self.variant == Variant::Delta || self.asked_again.is_empty())
    }
}

/// A version as it is on the wire.
pub fn format_version(version: u64) -> String {
    format!("{version:016x}")
}

/// The version that a client repeats; one of another server's making is no version of ours.
fn parse_version(text: &str) -> u64 {
    u64::from_str_radix(text, 16).unwrap_or(0)
}

/// A type's URL, shared by all that speak of it.
pub type TypeUrl = Arc<str>;
