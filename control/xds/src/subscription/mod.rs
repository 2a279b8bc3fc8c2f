//! The client's side of xDS as plain values: what to ask for, what an answer means, what to acknowledge. No I/O, no clock.
//!
//! ```text
//!              open                     on_response                    conclude
//!  idle -----------------> asking ----------------------> judging ------------------> asking, with an ACK or NACK due
//!   ^                        |         bad envelope: NACK due, stays asking
//!   +------------------------+
//!         stream ended: names and accepted versions stay, the nonce goes
//! ```
//! A [`Subscription`] is one type on one stream; a [`Stream`] is the subscriptions that share one, for instance all of ADS.
//! Source: Envoy's documentation, "xDS REST and gRPC protocol".

mod back_off;
mod known;
mod message;
mod stream;
mod wanted;

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use back_off::BackOff;
pub use message::{Ask, Body, Nack, Request, Resource, Response};
pub use stream::Stream;

use known::Known;
use wanted::Wanted;

/// Which of the two protocols.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Each answer is the state of the world.
    Sotw,
    /// Each answer is what changed.
    Delta,
}

/// One type of resource on one stream, seen from the client.
#[derive(Debug)]
pub struct Subscription {
    type_url: Arc<str>,
    protocol: Protocol,
    /// A SotW answer names everything that there is, so that what it leaves out is deleted: listeners and clusters.
    absence_deletes: bool,
    /// How long a resource may be missing before it counts as not existing; zero waits for ever.
    fetch_timeout: Duration,
    /// The same for single names.
    fetch_timeouts: BTreeMap<Box<str>, Duration>,
    wanted: Wanted,
    known: Known,
    /// When a name that was asked for and never came counts as not existing.
    awaited: BTreeMap<Box<str>, Instant>,
    /// SotW: version of the newest answer that was accepted.
    version: Box<str>,
    /// SotW: nonce of the newest answer on this stream.
    nonce: Box<str>,
    /// Delta: acknowledgements that are due, in order.
    verdicts: VecDeque<Verdict>,
    /// SotW: the reason of the refusal that is to be sent.
    refusal: Option<Nack>,
    judged: Option<Judged>,
    is_open: bool,
    /// Nothing was sent on this stream yet.
    is_first: bool,
    /// SotW: a request is due.
    is_due: bool,
}

/// What an answer would change, for the reader of the resources to try.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// New or changed, in the order of the answer.
    pub updated: Vec<Resource>,
    /// No longer there.
    pub removed: Vec<Box<str>>,
}

/// A resource that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// Its name.
    pub name: Box<str>,
    /// Field and reason.
    pub reason: String,
}

#[derive(Debug)]
struct Verdict {
    nonce: Box<str>,
    refusal: Option<Nack>,
}

/// An answer between [`Subscription::on_response`] and [`Subscription::conclude`].
#[derive(Debug)]
struct Judged {
    version: Box<str>,
    nonce: Box<str>,
    versions: Vec<(Box<str>, Box<str>, Option<Instant>)>,
    removed: Vec<Box<str>>,
}

impl Subscription {
    /// Nothing asked for yet. `absence_deletes` holds for listeners and clusters.
    pub fn new(type_url: &str, protocol: Protocol, absence_deletes: bool, fetch_timeout: Duration) -> Self {
        Self {
            type_url: type_url.into(),
            protocol,
            absence_deletes,
            fetch_timeout,
            fetch_timeouts: BTreeMap::new(),
            wanted: Wanted::default(),
            known: Known::default(),
            awaited: BTreeMap::new(),
            version: "".into(),
            nonce: "".into(),
            verdicts: VecDeque::new(),
            refusal: None,
            judged: None,
            is_open: false,
            is_first: false,
            is_due: false,
        }
    }

    /// What it is about.
    pub fn type_url(&self) -> &Arc<str> {
        &self.type_url
    }

    /// SotW: version of the newest accepted answer; empty in delta.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// What was accepted and is there: each name with its version, `None` for what has a time to live.
    pub fn accepted(&self) -> impl Iterator<Item = (&str, Option<&str>)> {
        self.known.lasting()
    }

    /// Whether nothing is asked for.
    pub fn is_idle(&self) -> bool {
        self.wanted.is_nothing()
    }

    /// Names asked for one by one.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.wanted.names.iter().map(|name| &**name)
    }

    /// Asks for everything that the server has for this client.
    pub fn subscribe_all(&mut self, now: Instant) {
        if self.wanted.add_wildcard() {
            self.await_name(WILDCARD, now);
            self.is_due = true;
        }
    }

    /// Asks for everything no longer; what was not asked for by name is forgotten and returned.
    pub fn unsubscribe_all(&mut self) -> Vec<Box<str>> {
        if !self.wanted.remove_wildcard() {
            return Vec::new();
        }
        self.awaited.remove(WILDCARD);
        self.is_due = true;
        let wanted = &self.wanted;
        self.known.forget(|name| wanted.covers(name))
    }

    /// How long `name` may be missing, once it is asked for by [`Self::set_names`]; zero is for ever.
    pub fn set_fetch_timeout(&mut self, name: &str, limit: Duration) {
        if limit == self.fetch_timeout {
            self.fetch_timeouts.remove(name);
        } else if self.fetch_timeouts.get(name) != Some(&limit) {
            self.fetch_timeouts.insert(name.into(), limit);
        }
    }

    /// Makes `names` the names that are asked for one by one.
    pub fn set_names<'a>(&mut self, names: impl IntoIterator<Item = &'a str>, now: Instant) {
        let names: BTreeSet<Box<str>> = names.into_iter().map(Into::into).collect();
        let gone: Vec<Box<str>> = self.wanted.names.difference(&names).cloned().collect();
        let added: Vec<Box<str>> = names.difference(&self.wanted.names).cloned().collect();
        gone.iter().for_each(|name| self.remove_name(name));
        added.iter().for_each(|name| self.add_name(name, now));
        debug_assert!(self.is_consistent());
    }

    /// Asks for one more name, which among thousands costs less than [`Self::set_names`].
    pub fn add_name(&mut self, name: &str, now: Instant) {
        if self.wanted.names.contains(name) {
            return;
        }
        self.wanted.add(name);
        if !self.known.contains(name) {
            self.await_name(name, now);
        }
        self.is_due = true;
    }

    /// Asks for a name no longer.
    pub fn remove_name(&mut self, name: &str) {
        if !self.wanted.names.contains(name) {
            return;
        }
        self.wanted.remove(name);
        self.awaited.remove(name);
        self.fetch_timeouts.remove(name);
        if !self.wanted.covers(name) {
            self.known.remove(name);
        }
        self.is_due = true;
    }

    /// Asks again for `name`, of which the server may think that the client has it (delta; "forget and ask again").
    pub fn ask_again(&mut self, name: &str, now: Instant) {
        if self.wanted.names.contains(name) {
            self.known.remove(name);
            self.wanted.ask_again(name);
            self.await_name(name, now);
            self.is_due = true;
        }
    }

    /// A stream is there: everything is asked for anew, with the versions that were accepted.
    pub fn open(&mut self, now: Instant) {
        self.is_open = true;
        self.is_first = true;
        self.is_due = true;
        self.nonce = "".into();
        self.refusal = None;
        self.judged = None;
        self.verdicts.clear();
        self.wanted.on_stream_opened();
        let missing: Vec<Box<str>> = self.awaited.keys().cloned().collect();
        for name in missing {
            self.await_name(&name, now);
        }
    }

    /// The stream is gone; what was accepted stays.
    pub fn close(&mut self) {
        self.is_open = false;
        self.judged = None;
        self.verdicts.clear();
        self.refusal = None;
    }

    /// What `response` would change. `Err` is an answer that is refused as a whole; the refusal is due already.
    pub fn on_response(&mut self, response: Response, now: Instant) -> Result<Received, String> {
        self.nonce = response.nonce.clone();
        if let Err(reason) = self.check(&response) {
            self.refuse(response.nonce, reason.clone());
            return Err(reason);
        }
        let mut received = Received::default();
        let mut versions = Vec::new();
        let mut named = HashSet::new();
        for resource in response.resources {
            named.insert(resource.name.clone());
            if !self.wanted.covers(&resource.name) {
                continue;
            }
            let expiry = resource.ttl.and_then(|ttl| now.checked_add(ttl));
            if resource.body.is_none() {
                // A heartbeat: the resource as it is gets more time.
                self.known.extend(&resource.name, expiry);
                continue;
            }
            self.awaited.remove(&resource.name);
            versions.push((resource.name.clone(), resource.version.clone(), expiry));
            received.updated.push(resource);
        }
        self.awaited.remove(WILDCARD);
        received.removed = match self.protocol {
            Protocol::Delta => {
                self.no_longer_awaited(&response.removed);
                response.removed.into_iter().filter(|name| !named.contains(name)).collect()
            }
            Protocol::Sotw if self.absence_deletes => {
                let missing: Vec<Box<str>> = self.awaited.keys().filter(|it| !named.contains(*it)).cloned().collect();
                self.no_longer_awaited(&missing);
                self.known.names().filter(|name| !named.contains(*name)).cloned().chain(missing).collect()
            }
            Protocol::Sotw => Vec::new(),
        };
        let removed = received.removed.clone();
        self.judged = Some(Judged { version: response.version, nonce: response.nonce, versions, removed });
        debug_assert!(self.is_consistent());
        Ok(received)
    }

    /// Ends what [`Self::on_response`] began: an ACK is due, or a NACK where `rejections` has something. What was rejected keeps its
    /// former version; the other resources of the answer count as taken.
    pub fn conclude(&mut self, rejections: &[Rejection]) {
        let Some(judged) = self.judged.take() else { return };
        let rejected: HashSet<&str> = rejections.iter().map(|rejection| &*rejection.name).collect();
        for (name, version, expiry) in judged.versions {
            // Names may have changed while the answer was judged.
            if !rejected.contains(&*name) && self.wanted.covers(&name) {
                self.known.insert(name, version, expiry);
            }
        }
        for name in &judged.removed {
            if !rejected.contains(&**name) {
                self.known.remove(name);
            }
        }
        if rejections.is_empty() {
            self.accept(judged.version, judged.nonce);
        } else {
            let lines: Vec<String> =
                rejections.iter().map(|rejection| format!("{}: {}", rejection.name, rejection.reason)).collect();
            self.refuse(judged.nonce, lines.join("\n"));
        }
        debug_assert!(self.is_consistent());
    }

    /// The next request, if one is due; call until there is none.
    pub fn poll_request(&mut self) -> Option<Ask> {
        if !self.is_open || self.judged.is_some() {
            return None;
        }
        match self.protocol {
            Protocol::Sotw => self.poll_sotw(),
            Protocol::Delta => self.poll_delta(),
        }
    }

    /// Names that count as not existing from now on: asked for longer ago than the fetch timeout. `*` is the wildcard.
    pub fn poll_missing(&mut self, now: Instant) -> Vec<Box<str>> {
        take_due(&mut self.awaited, now)
    }

    /// Resources whose time to live is over; they are gone as if the server had removed them.
    pub fn poll_expired(&mut self, now: Instant) -> Vec<Box<str>> {
        self.known.take_expired(now)
    }

    /// When to ask [`Self::poll_missing`] and [`Self::poll_expired`] next.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.awaited.values().copied().chain(self.known.next_expiry()).min()
    }

    fn poll_sotw(&mut self) -> Option<Ask> {
        if !std::mem::take(&mut self.is_due) {
            return None;
        }
        let resource_names = match self.wanted.sotw_names() {
            Some(names) => names,
            // Nothing was ever asked for: an empty list would ask for everything.
            None if self.is_first => return None,
            None => Vec::new(),
        };
        self.is_first = false;
        Some(Ask {
            body: Body::Sotw { version: self.version.clone(), resource_names },
            nonce: self.nonce.clone(),
            refusal: self.refusal.take(),
        })
    }

    fn poll_delta(&mut self) -> Option<Ask> {
        if self.is_first {
            if self.wanted.is_nothing() {
                return None;
            }
            self.is_first = false;
            self.is_due = false;
            let subscribe = self.wanted.take_first();
            let initial_versions = self.known.versions();
            return Some(Ask {
                body: Body::Delta { subscribe, unsubscribe: Vec::new(), initial_versions },
                nonce: "".into(),
                refusal: None,
            });
        }
        let verdict = self.verdicts.pop_front();
        let (subscribe, unsubscribe) = self.wanted.take_changes();
        self.is_due = false;
        if verdict.is_none() && subscribe.is_empty() && unsubscribe.is_empty() {
            return None;
        }
        let (nonce, refusal) = verdict.map_or_else(|| ("".into(), None), |it| (it.nonce, it.refusal));
        Some(Ask { body: Body::Delta { subscribe, unsubscribe, initial_versions: Vec::new() }, nonce, refusal })
    }

    /// What makes an answer unusable before any resource is looked into.
    fn check(&self, response: &Response) -> Result<(), String> {
        let mut seen = HashSet::new();
        for resource in &response.resources {
            if resource.body.is_some() && *resource.type_url != *self.type_url {
                let (name, found) = (&resource.name, &resource.type_url);
                return Err(format!("{name}: has type `{found}` in an answer of type `{}`", self.type_url));
            }
            if !seen.insert(&*resource.name) {
                return Err(format!("{}: is there twice", resource.name));
            }
        }
        for name in &response.removed {
            if seen.contains(&**name) {
                return Err(format!("{name}: is both there and removed"));
            }
        }
        Ok(())
    }

    fn accept(&mut self, version: Box<str>, nonce: Box<str>) {
        match self.protocol {
            Protocol::Sotw => {
                self.version = version;
                self.refusal = None;
                self.is_due = true;
            }
            Protocol::Delta => self.verdicts.push_back(Verdict { nonce, refusal: None }),
        }
    }

    fn refuse(&mut self, nonce: Box<str>, reason: String) {
        let refusal = Some(Nack::new(reason));
        match self.protocol {
            Protocol::Sotw => {
                self.refusal = refusal;
                self.is_due = true;
            }
            Protocol::Delta => self.verdicts.push_back(Verdict { nonce, refusal }),
        }
    }

    fn await_name(&mut self, name: &str, now: Instant) {
        // Without a limit the name is still noted, so that a new stream knows what is missing.
        let limit = self.fetch_timeouts.get(name).copied().unwrap_or(self.fetch_timeout);
        let limit = if limit.is_zero() { FOR_EVER } else { limit };
        self.awaited.insert(name.into(), now + limit);
    }

    fn no_longer_awaited(&mut self, names: &[Box<str>]) {
        for name in names {
            self.awaited.remove(name);
        }
    }

    fn is_consistent(&self) -> bool {
        let asked = |name: &str| name == WILDCARD || self.wanted.covers(name);
        self.awaited.keys().all(|name| asked(name))
            && (self.protocol == Protocol::Delta || self.verdicts.is_empty())
            && self.known.names().all(|name| self.wanted.covers(name))
    }
}

fn take_due(deadlines: &mut BTreeMap<Box<str>, Instant>, now: Instant) -> Vec<Box<str>> {
    let due: Vec<Box<str>> = deadlines.iter().filter(|(_, at)| **at <= now).map(|(name, _)| name.clone()).collect();
    deadlines.retain(|_, at| *at > now);
    due
}

/// The name that stands for every resource.
pub const WILDCARD: &str = "*";
/// Thirty years, for instants that never come.
const FOR_EVER: Duration = Duration::from_secs(30 * 365 * 86_400);

#[cfg(test)]
mod tests;
