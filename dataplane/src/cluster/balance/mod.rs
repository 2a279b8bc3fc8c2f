//! Which host a request goes to.
//!
//! A choice is two steps: which list of hosts (by priority, health and locality: `pick_list`) and which host of the list (by
//! the policy). The lists and hash tables are computed with the [`EndpointSet`]; a core adds only its own turns.

mod bounded_load;
mod edf;
mod maglev;
mod ring_hash;
mod table;

use std::sync::Arc;

pub(super) use table::HashTable;

use self::bounded_load::Shuffle;
use self::edf::Edf;
use super::endpoint_set::{HostList, ListIndex, LocalityShare, PriorityLevel};
use super::policy::{Algorithm, LeastRequest};
use super::{Cluster, EndpointSet, Host, HostIndex};
use crate::telemetry::counters::Core;
use crate::telemetry::names::ClusterStat;
use crate::worker::random::Random;

/// What a choice depends on besides the cluster.
pub struct Choice<'a> {
    /// The core that chooses, for `lb_*` counters.
    pub core: Core,
    /// This core's randomness.
    pub random: &'a mut Random,
    /// The request's hash, if its route has a hash policy that gives one.
    pub hash: Option<u64>,
    /// Requests that a host is working on.
    pub active: &'a dyn Fn(HostIndex) -> u32,
    /// Requests that the cluster is working on; read only by hash policies with a balance factor.
    pub active_total: u32,
    /// Which hosts a retry avoids.
    pub retry: Option<RetryHosts<'a>>,
}

/// Which hosts a retry avoids. Source: RetryPolicy.retry_host_predicate and host_selection_retry_max_attempts.
pub struct RetryHosts<'a> {
    /// Whether the host should be avoided.
    pub avoid: &'a dyn Fn(HostIndex, &Host) -> bool,
    /// How often another host is drawn before an avoided one is taken after all.
    pub attempts_max: u32,
}

/// One core's turns in one cluster.
pub struct Balancer {
    endpoints: Arc<EndpointSet>,
    /// Where turns begin, so that cores do not move in step.
    seed: u32,
    /// By [`ListIndex`].
    turns: Box<[Turn]>,
    /// By priority: healthy and degraded localities, where the policy weighs them.
    localities: Box<[LocalityTurns]>,
    /// For hash policies with a balance factor.
    shuffle: Shuffle,
}

/// Whose turn it is in a list.
enum Turn {
    /// Everyone's equally; counts choices.
    Even(u32),
    /// By weight.
    Weighted(Edf),
}

#[derive(Default)]
struct LocalityTurns {
    healthy: Edf,
    degraded: Edf,
}

impl Balancer {
    /// Fresh turns for `cluster`, begun at a random place.
    pub fn new(cluster: &Cluster, random: &mut Random) -> Self {
        let mut balancer = Self {
            endpoints: Arc::default(),
            seed: (random.next_u64() >> 33) as u32,
            turns: Box::default(),
            localities: Box::default(),
            shuffle: Shuffle::default(),
        };
        balancer.on_endpoints_changed(cluster);
        balancer
    }

    /// Makes turns for the cluster's present endpoints. [`Balancer::choose`] notices a change by itself; this only does it
    /// earlier.
    pub fn on_endpoints_changed(&mut self, cluster: &Cluster) {
        self.endpoints = Arc::clone(&cluster.endpoints);
        let seed = self.seed;
        let algorithm = &cluster.policy.algorithm;
        let takes_turns = matches!(algorithm, Algorithm::RoundRobin | Algorithm::LeastRequest(_));
        let turn = |list: &HostList| match algorithm {
            Algorithm::RoundRobin | Algorithm::LeastRequest(_) if list.weighted => {
                let weight = |index: &HostIndex| cluster.host(*index).map_or(1.0, |host| f64::from(host.weight));
                Turn::Weighted(Edf::new(list.hosts.iter().map(weight), seed))
            }
            _ => Turn::Even(seed),
        };
        self.turns = if takes_turns { self.endpoints.lists.iter().map(turn).collect() } else { Box::default() };
        let locality = |shares: &[LocalityShare]| Edf::new(shares.iter().map(|share| share.weight), seed);
        let localities = |level: &PriorityLevel| LocalityTurns {
            healthy: locality(&level.healthy_localities),
            degraded: locality(&level.degraded_localities),
        };
        let levels = &self.endpoints.priorities;
        let weighs = levels.iter().any(|level| level.healthy_localities.len() + level.degraded_localities.len() > 0);
        self.localities = if weighs { levels.iter().map(localities).collect() } else { Box::default() };
    }

    /// The host for one request; `None` where no host may take it.
    pub fn choose(&mut self, cluster: &Cluster, request: &mut Choice<'_>) -> Option<HostIndex> {
        if !Arc::ptr_eq(&self.endpoints, &cluster.endpoints) {
            self.on_endpoints_changed(cluster);
        }
        let attempts_max = request.retry.as_ref().map_or(0, |retry| retry.attempts_max);
        match cluster.policy.algorithm {
            Algorithm::RingHash(_) | Algorithm::Maglev(_) => self.choose_by_hash(cluster, request, attempts_max),
            _ => {
                let mut chosen = self.choose_once(cluster, request)?;
                for _ in 0..attempts_max {
                    if !avoided(cluster, request, chosen) {
                        break;
                    }
                    chosen = self.choose_once(cluster, request)?;
                }
                Some(chosen)
            }
        }
    }

    fn choose_once(&mut self, cluster: &Cluster, request: &mut Choice<'_>) -> Option<HostIndex> {
        let index = match cluster.endpoints.only_list {
            Some(list) => list,
            None => self.pick_list(cluster, request)?,
        };
        let list = cluster.endpoints.list(index)?;
        match (&cluster.policy.algorithm, self.turns.get_mut(index.0 as usize)) {
            (Algorithm::RoundRobin, Some(Turn::Even(turn))) => {
                let place = (*turn as usize).checked_rem(list.hosts.len())?;
                *turn = turn.wrapping_add(1);
                list.hosts.get(place).copied()
            }
            (Algorithm::RoundRobin, Some(Turn::Weighted(edf))) => {
                let weight = |place: usize| weight_at(cluster, list, place);
                list.hosts.get(edf.next(weight)?).copied()
            }
            (Algorithm::LeastRequest(options), Some(Turn::Weighted(edf))) => {
                let weight = |place: usize| {
                    let active = list.hosts.get(place).map_or(0, |host| (request.active)(*host));
                    options.weight(weight_at(cluster, list, place), active)
                };
                list.hosts.get(edf.next(weight)?).copied()
            }
            (Algorithm::LeastRequest(options), _) => least_request(list, options, request),
            _ => {
                let count = list.hosts.len() as u64;
                let place = request.random.next_u64().checked_rem(count)?;
                list.hosts.get(place as usize).copied()
            }
        }
    }

    /// The list of hosts that takes the request, by the priorities' shares, panic and locality weights.
    fn pick_list(&mut self, cluster: &Cluster, request: &mut Choice<'_>) -> Option<ListIndex> {
        let endpoints = &cluster.endpoints;
        let (place, degraded) = pick_priority(endpoints, request.random.next_u64());
        let level = endpoints.priorities.get(place)?;
        if level.share.panic {
            cluster.stats.increment(request.core, ClusterStat::LbHealthyPanic);
            return (!cluster.policy.fail_traffic_on_panic).then_some(level.all);
        }
        let (localities, list) = match degraded {
            false => (&level.healthy_localities, level.healthy),
            true => (&level.degraded_localities, level.degraded),
        };
        if localities.is_empty() {
            return Some(list);
        }
        let turns = self.localities.get_mut(place)?;
        let turns = if degraded { &mut turns.degraded } else { &mut turns.healthy };
        let weight = |place: usize| localities.get(place).map_or(1.0, |share| share.weight);
        localities.get(turns.next(weight)?).map(|share| share.list)
    }

    fn choose_by_hash(&mut self, cluster: &Cluster, request: &mut Choice<'_>, attempts_max: u32) -> Option<HostIndex> {
        // Without a hash the choice is random, as in Envoy.
        let hash = request.hash.unwrap_or_else(|| request.random.next_u64());
        let (place, _) = pick_priority(&cluster.endpoints, hash);
        let level = cluster.endpoints.priorities.get(place)?;
        if level.share.panic {
            cluster.stats.increment(request.core, ClusterStat::LbHealthyPanic);
        }
        let table = level.table.as_ref()?;
        let factor = cluster.policy.hashing().and_then(|hashing| hashing.balance_factor_percent);
        let mut attempt = 0;
        loop {
            let mut chosen = table.host(hash, attempt)?;
            if let Some(factor) = factor {
                chosen = self.shuffle.relieve(table, chosen, hash, factor, request);
            }
            if attempt >= attempts_max || !avoided(cluster, request, chosen) {
                return Some(chosen);
            }
            attempt += 1;
        }
    }
}

/// The priority that takes a request with the evenly distributed `random`, and whether its degraded hosts do.
fn pick_priority(endpoints: &EndpointSet, random: u64) -> (usize, bool) {
    let point = random % 100 + 1;
    let mut sum = 0;
    for (place, level) in endpoints.priorities.iter().enumerate() {
        sum += u64::from(level.share.healthy_percent);
        if point <= sum {
            return (place, false);
        }
    }
    for (place, level) in endpoints.priorities.iter().enumerate() {
        sum += u64::from(level.share.degraded_percent);
        if point <= sum {
            return (place, true);
        }
    }
    (0, false)
}

fn avoided(cluster: &Cluster, request: &Choice<'_>, chosen: HostIndex) -> bool {
    let Some(retry) = &request.retry else { return false };
    cluster.host(chosen).is_some_and(|host| (retry.avoid)(chosen, host))
}

fn weight_at(cluster: &Cluster, list: &HostList, place: usize) -> f64 {
    let host = list.hosts.get(place).and_then(|index| cluster.host(*index));
    host.map_or(1.0, |host| f64::from(host.weight))
}

/// The host with the fewest active requests among some drawn at random, or among all.
fn least_request(list: &HostList, options: &LeastRequest, request: &mut Choice<'_>) -> Option<HostIndex> {
    let count = list.hosts.len() as u64;
    if count <= 1 {
        return list.hosts.first().copied();
    }
    let mut best: Option<(HostIndex, u32)> = None;
    match options.choice_count {
        Some(choice_count) => {
            for _ in 0..choice_count {
                let host = *list.hosts.get((request.random.next_u64() % count) as usize)?;
                let active = (request.active)(host);
                if best.is_none_or(|(_, fewest)| active < fewest) {
                    best = Some((host, active));
                }
            }
        }
        None => {
            // Among equals each is as likely: the n-th of them replaces the one before with chance 1/n.
            let mut equal_count = 1;
            for host in &list.hosts {
                let active = (request.active)(*host);
                match best {
                    Some((_, fewest)) if active > fewest => {}
                    Some((_, fewest)) if active == fewest => {
                        equal_count += 1;
                        if request.random.next_u64().is_multiple_of(equal_count) {
                            best = Some((*host, active));
                        }
                    }
                    _ => {
                        equal_count = 1;
                        best = Some((*host, active));
                    }
                }
            }
        }
    }
    best.map(|(host, _)| host)
}

impl LeastRequest {
    /// A host's share while it works on `active` requests.
    fn weight(&self, weight: f64, active: u32) -> f64 {
        let active = f64::from(active) + 1.0;
        if self.active_request_bias == 1.0 {
            weight / active
        } else if self.active_request_bias == 0.0 {
            weight
        } else {
            weight / active.powf(self.active_request_bias)
        }
    }
}

#[cfg(test)]
mod tests;
