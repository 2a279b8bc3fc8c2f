//! One cluster's questions, for as long as the cluster is configured.
//!
//! Every name has a timer of its own. A completed question that changes the set of addresses makes a new [`Cluster`], in
//! which hosts that stay keep their counters and connections. A failed question leaves the hosts as they are and is asked
//! again after the failure interval; an answer without addresses removes a strict cluster's hosts and counts as a failure
//! in a logical one. The first completed question, whatever its outcome, ends the cluster's warming.
//!
//! Source: Envoy's documentation of strict and logical DNS.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::resolvers::{Answer, Resolvers};
use super::{DnsPlan, FailureRefresh};
use crate::cluster::{Cluster, EndpointSet, Host};
use crate::config::address::Address;
use crate::telemetry::counters::Core;
use crate::telemetry::names::ClusterStat;
use crate::worker::random::Random;

/// Keeps `cluster`'s endpoints as its names resolve: each change is passed to `publish`, and `warm` is called once, after
/// the first completed question. `core` is the config thread's. Ends only for clusters without names.
pub async fn run(
    cluster: Arc<Cluster>,
    core: Core,
    core_count: usize,
    resolvers: Arc<Resolvers>,
    mut publish: impl FnMut(Cluster),
    warm: impl FnOnce(),
) {
    let Some(plan) = cluster.dns.clone() else {
        warm();
        return;
    };
    let mut warm = Some(warm);
    if (plan.names.is_empty() || !plan.wait_for_warm)
        && let Some(warm) = warm.take()
    {
        warm();
    }
    let mut names = Names::new(cluster, plan, core, core_count);
    let mut questions = JoinSet::new();
    while !names.targets.is_empty() {
        for (index, name) in names.take_due(Instant::now()) {
            let (plan, resolvers) = (Arc::clone(&names.plan), Arc::clone(&resolvers));
            questions.spawn(async move {
                let answer = resolvers.resolve(&plan.resolver, plan.family, &name).await;
                (index, name, answer)
            });
        }
        let next = names.next_due();
        tokio::select! {
            Some(done) = questions.join_next() => {
                // A question neither panics nor is cancelled.
                let Ok((index, name, answer)) = done else { continue };
                if let Err(error) = &answer {
                    tracing::debug!(cluster = &*names.cluster.name, name, %error, "DNS resolution failed");
                }
                if let Some(changed) = names.on_completed(index, answer.ok(), Instant::now()) {
                    publish(changed);
                }
                if let Some(warm) = warm.take() {
                    warm();
                }
            }
            () = sleep_until(next.unwrap_or_else(far_away)), if next.is_some() => {}
            else => return,
        }
    }
}

fn far_away() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}

/// What is known of each name.
struct Names {
    cluster: Arc<Cluster>,
    plan: Arc<DnsPlan>,
    core: Core,
    core_count: usize,
    targets: Vec<Target>,
    random: Random,
    failure: Backoff,
}

#[derive(Default)]
struct Target {
    hosts: Vec<Host>,
    /// When to ask; `None` while a question is under way.
    due: Option<Instant>,
}

impl Names {
    fn new(cluster: Arc<Cluster>, plan: Arc<DnsPlan>, core: Core, core_count: usize) -> Self {
        let now = Instant::now();
        let target = || Target { hosts: Vec::new(), due: Some(now) };
        let mut targets: Vec<Target> = plan.names.iter().map(|_| target()).collect();
        // Literal addresses have been hosts from the start.
        let mut hosts = cluster.endpoints.hosts.iter();
        for (target, name) in targets.iter_mut().zip(&plan.names) {
            if name.name.parse::<IpAddr>().is_ok() {
                target.hosts.extend(hosts.next().cloned());
            }
        }
        if !cluster.endpoints.hosts.is_empty() {
            cluster.stats.increment(core, ClusterStat::MembershipChange);
        }
        let failure = Backoff::new(plan.failure_refresh);
        Self { cluster, plan, core, core_count, targets, random: Random::from_entropy(), failure }
    }

    /// The names to ask for at `now`; each counts as an attempt.
    fn take_due(&mut self, now: Instant) -> Vec<(usize, Box<str>)> {
        let mut due = Vec::new();
        for (index, target) in self.targets.iter_mut().enumerate() {
            if target.due.is_some_and(|time| time <= now) {
                target.due = None;
                self.cluster.stats.increment(self.core, ClusterStat::UpdateAttempt);
                due.extend(self.plan.names.get(index).map(|name| (index, name.name.clone())));
            }
        }
        due
    }

    fn next_due(&self) -> Option<Instant> {
        self.targets.iter().filter_map(|target| target.due).min()
    }

    /// Takes the answer to question `index`, `None` for a failure; gives the cluster if its hosts changed.
    fn on_completed(&mut self, index: usize, answer: Option<Answer>, now: Instant) -> Option<Cluster> {
        let usable = answer.filter(|answer| !self.plan.logical || !answer.addresses.is_empty());
        let Some(answer) = usable else {
            self.count(ClusterStat::UpdateFailure);
            let wait = self.failure.next(&mut self.random).unwrap_or(self.plan.refresh);
            self.set_due(index, now + wait);
            return None;
        };
        self.count(ClusterStat::UpdateSuccess);
        self.failure.reset();
        let mut wait = match answer.ttl {
            Some(ttl) if self.plan.respect_ttl && !ttl.is_zero() => ttl.max(self.plan.ttl_min),
            _ => self.plan.refresh,
        };
        let jitter_ms = u64::try_from(self.plan.jitter.as_millis()).unwrap_or(u64::MAX);
        wait += Duration::from_millis(self.random.below(jitter_ms));
        self.set_due(index, now + wait);

        let changed =
            if self.plan.logical { self.replace_logical(index, &answer) } else { self.replace_strict(index, &answer) };
        if !changed {
            self.count(ClusterStat::UpdateNoRebuild);
            return None;
        }
        self.count(ClusterStat::MembershipChange);
        let hosts = self.targets.iter().flat_map(|target| target.hosts.iter().cloned()).collect();
        let endpoints = EndpointSet::new(hosts, &self.plan.assignment, &self.cluster.policy);
        self.cluster = Arc::new(self.cluster.with_endpoints(endpoints));
        Some(Cluster::clone(&self.cluster))
    }

    fn count(&self, stat: ClusterStat) {
        self.cluster.stats.increment(self.core, stat);
    }

    fn set_due(&mut self, index: usize, due: Instant) {
        if let Some(target) = self.targets.get_mut(index) {
            target.due = Some(due);
        }
    }

    /// Makes every address a host, keeping those that stay; `false` where the set is the same.
    fn replace_strict(&mut self, index: usize, answer: &Answer) -> bool {
        let (Some(name), Some(target)) = (self.plan.names.get(index), self.targets.get_mut(index)) else {
            return false;
        };
        let addresses: Vec<Address> = answer.addresses.iter().map(|ip| Address::Ip((*ip, name.port).into())).collect();
        let known = |address: &Address| target.hosts.iter().find(|host| host.address == *address);
        if addresses.len() == target.hosts.len() && addresses.iter().all(|address| known(address).is_some()) {
            return false;
        }
        let host = |address: &Address| match known(address) {
            Some(host) => host.clone(),
            None => name.host.host(address.clone(), self.cluster.host_connections_max, self.core_count),
        };
        let hosts = addresses.iter().map(host).collect();
        target.hosts = hosts;
        true
    }

    /// Moves the one host to the first address; `false` where it is there already.
    fn replace_logical(&mut self, index: usize, answer: &Answer) -> bool {
        let (Some(name), Some(target)) = (self.plan.names.get(index), self.targets.get_mut(index)) else {
            return false;
        };
        let Some(first) = answer.addresses.first() else { return false };
        let address = Address::Ip((*first, name.port).into());
        match target.hosts.first_mut() {
            Some(host) if host.address == address => false,
            Some(host) => {
                host.address = address;
                true
            }
            None => {
                target.hosts.push(name.host.host(address, self.cluster.host_connections_max, self.core_count));
                true
            }
        }
    }
}

/// Waits after failures: at random below an interval that doubles up to its maximum. Source: Cluster.RefreshRate.
struct Backoff {
    rate: Option<FailureRefresh>,
    interval: Duration,
}

impl Backoff {
    fn new(rate: Option<FailureRefresh>) -> Self {
        Self { rate, interval: rate.map_or(Duration::ZERO, |rate| rate.base) }
    }

    /// The next wait; `None` where no rate is configured.
    fn next(&mut self, random: &mut Random) -> Option<Duration> {
        let rate = self.rate?;
        let below_ms = u64::try_from(self.interval.as_millis()).unwrap_or(u64::MAX);
        self.interval = self.interval.saturating_mul(2).min(rate.max);
        Some(Duration::from_millis(random.below(below_ms)))
    }

    fn reset(&mut self) {
        *self = Self::new(self.rate);
    }
}

#[cfg(test)]
mod tests;
