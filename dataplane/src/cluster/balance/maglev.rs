//! Maglev consistent hashing: hosts take turns in claiming slots of a table, each in an order of its own.
//!
//! Slots are filled as Envoy fills them, so that a fleet that mixes both proxies keeps its affinity.
//! Source: the Maglev paper (Eisenbud et al., NSDI 2016), section 3.4, with turns by weight; offset and skip are XXH64 of the
//! host's key with seeds 0 and 1.

use xxhash_rust::xxh64::xxh64;

use super::table::HostShare;
use crate::cluster::HostIndex;

/// The table of one priority.
pub(super) struct MaglevTable {
    slots: Slots,
    /// Hosts by what the slots hold.
    owners: Box<[HostIndex]>,
    /// Fewest and most slots of a host.
    pub(super) counts: [u64; 2],
}

/// Places in the list of owners, as narrow as their number allows.
enum Slots {
    Narrow(Box<[u8]>),
    Wide(Box<[u32]>),
}

struct Claimant {
    offset: u64,
    skip: u64,
    /// Slots of its own order that it has tried.
    tried: u64,
    share: f64,
    /// It claims again when `round x share` reaches this.
    due: f64,
    slot_count: u64,
}

impl Claimant {
    fn slot(&self, table_size: u64) -> u64 {
        // The table size is below 2^23, so nothing overflows.
        (self.offset + self.skip * self.tried) % table_size
    }
}

const FREE: u32 = u32::MAX;

impl MaglevTable {
    /// A table of `table_size` slots, which is prime, for `shares`, whose hosts are called `keys`.
    pub(super) fn build(table_size: u32, shares: &[HostShare], keys: &[String]) -> Self {
        let size = u64::from(table_size);
        let biggest = shares.iter().map(|entry| entry.share).fold(0.0, f64::max);
        let mut sorted: Vec<(&str, HostShare)> = keys.iter().map(String::as_str).zip(shares.iter().copied()).collect();
        sorted.sort_by_key(|(key, _)| *key);
        let mut claimants: Vec<Claimant> = sorted
            .iter()
            .map(|(key, entry)| Claimant {
                offset: xxh64(key.as_bytes(), 0) % size,
                skip: xxh64(key.as_bytes(), 1) % (size - 1) + 1,
                tried: 0,
                share: entry.share,
                due: 0.0,
                slot_count: 0,
            })
            .collect();

        let mut slots = vec![FREE; if shares.is_empty() { 0 } else { table_size as usize }];
        let mut free_count = slots.len();
        let mut round = 0.0;
        while free_count > 0 {
            round += 1.0;
            for (owner, claimant) in (0..).zip(&mut claimants) {
                if free_count == 0 {
                    break;
                }
                if round * claimant.share < claimant.due {
                    continue;
                }
                claimant.due += biggest;
                while let Some(slot) = slots.get_mut(claimant.slot(size) as usize) {
                    claimant.tried += 1;
                    if *slot == FREE {
                        *slot = owner;
                        claimant.slot_count += 1;
                        free_count -= 1;
                        break;
                    }
                }
            }
        }

        let counts = claimants.iter().map(|claimant| claimant.slot_count);
        let counts = [counts.clone().min().unwrap_or(0), counts.max().unwrap_or(0)];
        let slots = if claimants.len() <= 256 {
            Slots::Narrow(slots.iter().map(|owner| *owner as u8).collect())
        } else {
            Slots::Wide(slots.into())
        };
        Self { slots, owners: sorted.iter().map(|(_, entry)| entry.host).collect(), counts }
    }

    /// The owner of the slot of `hash`, which each further `attempt` changes.
    pub(super) fn host(&self, hash: u64, attempt: u32) -> Option<HostIndex> {
        let hash = if attempt > 0 { hash ^ (u64::MAX - u64::from(attempt) + 1) } else { hash };
        let owner = match &self.slots {
            Slots::Narrow(slots) => u32::from(*slots.get(hash.checked_rem(slots.len() as u64)? as usize)?),
            Slots::Wide(slots) => *slots.get(hash.checked_rem(slots.len() as u64)? as usize)?,
        };
        self.owners.get(owner as usize).copied()
    }
}
