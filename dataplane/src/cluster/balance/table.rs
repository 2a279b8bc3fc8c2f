//! What hash policies look a host up in, computed with the endpoints and shared by all cores.

use super::maglev::MaglevTable;
use super::ring_hash::Ring;
use crate::cluster::policy::{Algorithm, Policy};
use crate::cluster::{Host, HostIndex};

/// One priority's hosts by hash.
pub(in crate::cluster) struct HashTable {
    kind: Kind,
    /// Who is in the table, with its share; the shares add up to 1. Kept in the order that the policy was given.
    pub(super) shares: Box<[HostShare]>,
}

enum Kind {
    Ring(Ring),
    Maglev(MaglevTable),
}

/// A host's share of the whole.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct HostShare {
    pub(super) host: HostIndex,
    pub(super) share: f64,
}

impl HashTable {
    /// The table of `groups` (hosts with the group's share of the whole) that `policy` asks for; `None` for other policies.
    pub(in crate::cluster) fn build(policy: &Policy, hosts: &[Host], groups: &[(&[HostIndex], f64)]) -> Option<Self> {
        let hashing = policy.hashing()?;
        let shares = host_shares(hosts, groups);
        let keys: Vec<String> = shares
            .iter()
            .map(|entry| hosts.get(entry.host.0 as usize).map(|host| host.hash_key(hashing.use_hostname)))
            .map(Option::unwrap_or_default)
            .collect();
        let kind = match &policy.algorithm {
            Algorithm::RingHash(options) => Kind::Ring(Ring::build(options, &shares, &keys)),
            Algorithm::Maglev(options) => Kind::Maglev(MaglevTable::build(options.table_size, &shares, &keys)),
            Algorithm::RoundRobin | Algorithm::LeastRequest(_) | Algorithm::Random => return None,
        };
        // Only bounded load asks for the shares later.
        let shares = if hashing.balance_factor_percent.is_some() { shares.into() } else { Box::default() };
        Some(Self { kind, shares })
    }

    /// The host for `hash`; each further `attempt` leads elsewhere, usually to another host.
    #[inline]
    pub(super) fn host(&self, hash: u64, attempt: u32) -> Option<HostIndex> {
        match &self.kind {
            Kind::Ring(ring) => ring.host(hash, attempt),
            Kind::Maglev(table) => table.host(hash, attempt),
        }
    }

    /// The gauges under `ring_hash_lb.`: points in all, fewest and most of a host.
    pub(in crate::cluster) fn ring_counts(&self) -> Option<[u64; 3]> {
        match &self.kind {
            Kind::Ring(ring) => Some(ring.counts),
            Kind::Maglev(_) => None,
        }
    }

    /// The gauges under `maglev_lb.`: fewest and most slots of a host.
    pub(in crate::cluster) fn maglev_counts(&self) -> Option<[u64; 2]> {
        match &self.kind {
            Kind::Ring(_) => None,
            Kind::Maglev(table) => Some(table.counts),
        }
    }
}

/// Every host's share: its weight within its group times the group's share.
fn host_shares(hosts: &[Host], groups: &[(&[HostIndex], f64)]) -> Vec<HostShare> {
    let mut shares = Vec::with_capacity(groups.iter().map(|(members, _)| members.len()).sum());
    for (members, group_share) in groups {
        let weight = |index: &HostIndex| hosts.get(index.0 as usize).map_or(1, |host| host.weight);
        let sum: u64 = members.iter().map(|index| u64::from(weight(index))).sum();
        // In this order of operations the shares have the same bits as Envoy's, and so does what is built from them.
        let share = |index: &HostIndex| f64::from(weight(index)) * group_share / sum as f64;
        shares.extend(members.iter().map(|index| HostShare { host: *index, share: share(index) }));
    }
    shares
}
