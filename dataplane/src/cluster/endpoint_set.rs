//! The hosts of a cluster and everything that is computed from them once, off the workers.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::balance::HashTable;
use super::priority_load::{self, PriorityHealth, PriorityShare};
use super::{Host, HostHealth, HostIndex, Locality, Policy};

/// The hosts of a cluster at one moment, shared read-only by all cores.
#[derive(Default)]
pub struct EndpointSet {
    /// Every host, in configuration order.
    pub hosts: Vec<Host>,
    /// From priority 0 up, without gaps.
    pub priorities: Box<[PriorityLevel]>,
    /// What requests are spread over; priorities point here.
    pub(super) lists: Box<[HostList]>,
    /// The list of every request, where there is no choice of priority or locality.
    pub(super) only_list: Option<ListIndex>,
}

/// The hosts of one priority.
pub struct PriorityLevel {
    /// What is counted of it.
    pub health: PriorityHealth,
    /// Its part of the load.
    pub share: PriorityShare,
    pub(super) all: ListIndex,
    pub(super) healthy: ListIndex,
    pub(super) degraded: ListIndex,
    /// Healthy hosts by locality, where the policy weighs localities.
    pub(super) healthy_localities: Box<[LocalityShare]>,
    /// Degraded hosts by locality, likewise.
    pub(super) degraded_localities: Box<[LocalityShare]>,
    /// Ring or table, where the policy hashes.
    pub(super) table: Option<HashTable>,
}

/// A place in [`EndpointSet::lists`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ListIndex(pub(super) u32);

/// Hosts that one choice is made among.
pub(super) struct HostList {
    pub(super) hosts: Box<[HostIndex]>,
    /// Weights differ, so that hosts take turns by weight.
    pub(super) weighted: bool,
}

/// One locality's hosts and weight, lowered by what is not available.
pub(super) struct LocalityShare {
    pub(super) list: ListIndex,
    pub(super) weight: f64,
}

/// What a ClusterLoadAssignment says beside its hosts.
#[derive(Clone, Debug, PartialEq)]
pub struct AssignmentOptions {
    /// `policy.overprovisioning_factor`, 140 unless configured.
    pub overprovisioning_percent: u32,
    /// `policy.weighted_priority_health`: a priority's health goes by weight instead of number.
    pub weighted_priority_health: bool,
    /// `load_balancing_weight` of each locality in each priority.
    pub locality_weights: BTreeMap<(u32, Arc<Locality>), u32>,
}

impl Default for AssignmentOptions {
    fn default() -> Self {
        Self { overprovisioning_percent: 140, weighted_priority_health: false, locality_weights: BTreeMap::new() }
    }
}

impl EndpointSet {
    /// `hosts` with priorities, localities and hash tables worked out for `policy`.
    pub fn new(hosts: Vec<Host>, options: &AssignmentOptions, policy: &Policy) -> Self {
        let mut lists = Lists::default();
        let priority_count = hosts.iter().map(|host| host.priority + 1).max().unwrap_or(1);
        let by_priority: Vec<Members> =
            (0..priority_count).map(|priority| Members::of(&hosts, |host| host.priority == priority)).collect();
        let health: Vec<PriorityHealth> =
            by_priority.iter().map(|members| members.health(&hosts, options.weighted_priority_health)).collect();
        let shares = priority_load::shares(&health, options.overprovisioning_percent, policy.panic_threshold_percent);

        let mut priorities = Vec::with_capacity(by_priority.len());
        for (priority, ((members, health), share)) in (0..).zip(by_priority.into_iter().zip(health).zip(shares)) {
            let localities = if policy.locality_weighted && !options.locality_weights.is_empty() {
                Localities::of(&hosts, priority, options)
            } else {
                Localities::default()
            };
            let table = HashTable::build(policy, &hosts, &localities.hashed(&members, share.panic));
            priorities.push(PriorityLevel {
                health,
                share,
                healthy_localities: localities.shares(options, |members| &members.healthy, &hosts, &mut lists),
                degraded_localities: localities.shares(options, |members| &members.degraded, &hosts, &mut lists),
                table,
                healthy: lists.add(&hosts, members.healthy),
                degraded: lists.add(&hosts, members.degraded),
                all: lists.add(&hosts, members.all),
            });
        }
        let only_list = match priorities.as_slice() {
            [first, ..] if first.share.panic => None,
            [first, ..] if first.share.healthy_percent == 100 && first.healthy_localities.is_empty() => {
                Some(first.healthy)
            }
            _ => None,
        };
        Self { hosts, priorities: priorities.into(), lists: lists.0.into(), only_list }
    }

    /// The host at `index`.
    pub fn host(&self, index: HostIndex) -> Option<&Host> {
        self.hosts.get(index.0 as usize)
    }

    /// How many hosts have `health`.
    pub fn count(&self, health: HostHealth) -> usize {
        self.hosts.iter().filter(|host| host.health == health).count()
    }

    /// The hosts of `list`.
    pub(super) fn list(&self, list: ListIndex) -> Option<&HostList> {
        self.lists.get(list.0 as usize)
    }
}

#[derive(Default)]
struct Lists(Vec<HostList>);

impl Lists {
    /// The place of `members`, which takes an equal list that is already there: usually all hosts are healthy.
    fn add(&mut self, hosts: &[Host], members: Vec<HostIndex>) -> ListIndex {
        if let Some(place) = self.0.iter().position(|list| *list.hosts == *members) {
            return ListIndex(place as u32);
        }
        let mut weights = members.iter().filter_map(|index| hosts.get(index.0 as usize)).map(|host| host.weight);
        let first = weights.next();
        let weighted = weights.any(|weight| Some(weight) != first);
        self.0.push(HostList { hosts: members.into(), weighted });
        ListIndex((self.0.len() - 1) as u32)
    }
}

/// Hosts of a priority or locality by health.
#[derive(Default)]
pub(super) struct Members {
    pub(super) all: Vec<HostIndex>,
    pub(super) healthy: Vec<HostIndex>,
    degraded: Vec<HostIndex>,
    excluded: Vec<HostIndex>,
}

impl Members {
    fn of(hosts: &[Host], belongs: impl Fn(&Host) -> bool) -> Self {
        let mut members = Self::default();
        for (place, host) in hosts.iter().enumerate().filter(|(_, host)| belongs(host)) {
            let index = HostIndex(place as u32);
            members.all.push(index);
            match host.health {
                HostHealth::Healthy => members.healthy.push(index),
                HostHealth::Degraded => members.degraded.push(index),
                HostHealth::Draining => members.excluded.push(index),
                HostHealth::Unhealthy => {}
            }
        }
        members
    }

    fn health(&self, hosts: &[Host], weighted: bool) -> PriorityHealth {
        let weight = |members: &[HostIndex]| -> u64 {
            let weight = |host: &Host| if weighted { u64::from(host.weight) } else { 1 };
            members.iter().filter_map(|index| hosts.get(index.0 as usize)).map(weight).sum()
        };
        PriorityHealth {
            host_count: self.all.len() as u32,
            excluded_count: self.excluded.len() as u32,
            healthy_count: self.healthy.len() as u32,
            degraded_count: self.degraded.len() as u32,
            available_weight_max: weight(&self.all) - weight(&self.excluded),
            healthy_weight: weight(&self.healthy),
            degraded_weight: weight(&self.degraded),
        }
    }
}

/// The localities of one priority in Envoy's order, with their configured weights.
#[derive(Default)]
struct Localities(Vec<(Members, u32)>);

impl Localities {
    fn of(hosts: &[Host], priority: u32, options: &AssignmentOptions) -> Self {
        let mut names: Vec<&Arc<Locality>> =
            hosts.iter().filter(|host| host.priority == priority).map(|host| &host.locality).collect();
        names.sort();
        names.dedup();
        let locality = |name: &Arc<Locality>| {
            let members = Members::of(hosts, |host| host.priority == priority && host.locality == *name);
            // A locality without a weight gets no load.
            let weight = options.locality_weights.get(&(priority, Arc::clone(name))).copied().unwrap_or(0);
            (members, weight)
        };
        Self(names.into_iter().map(locality).collect())
    }

    /// The lists of one kind of health with the weights that remain.
    fn shares(
        &self,
        options: &AssignmentOptions,
        kind: impl Fn(&Members) -> &Vec<HostIndex>,
        hosts: &[Host],
        lists: &mut Lists,
    ) -> Box<[LocalityShare]> {
        let mut shares = Vec::new();
        for (members, weight) in &self.0 {
            let counted = members.all.len() - members.excluded.len();
            if counted == 0 {
                continue;
            }
            let available = kind(members).len() as f64 / counted as f64;
            let weight =
                f64::from(*weight) * (f64::from(options.overprovisioning_percent) / 100.0 * available).min(1.0);
            if weight > 0.0 {
                shares.push(LocalityShare { list: lists.add(hosts, kind(members).clone()), weight });
            }
        }
        shares.into()
    }

    /// The groups of hosts that a hash table is made of, each with its share of the whole.
    fn hashed<'a>(&'a self, priority: &'a Members, panic: bool) -> Vec<(&'a [HostIndex], f64)> {
        fn kind(members: &Members, panic: bool) -> &[HostIndex] {
            if panic { &members.all } else { &members.healthy }
        }
        if self.0.is_empty() {
            return vec![(kind(priority, panic), 1.0)];
        }
        let sum: u64 = self.0.iter().map(|(_, weight)| u64::from(*weight)).sum();
        let weighted = self.0.iter().filter(|(_, weight)| *weight > 0);
        weighted.map(|(members, weight)| (kind(members, panic), f64::from(*weight) / sum as f64)).collect()
    }
}
