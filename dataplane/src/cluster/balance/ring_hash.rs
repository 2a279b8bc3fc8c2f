//! Ketama consistent hashing: hosts have points on a ring, a request goes to the first point at or after its hash.
//!
//! Points, their order and their number are Envoy's, so that a fleet that mixes both proxies keeps its affinity.
//! Source: Envoy's documentation of the ring hash load balancer; names of points are `<key>_<number>`.

use std::fmt::Write as _;

use xxhash_rust::xxh64::xxh64;

use super::table::HostShare;
use crate::cluster::HostIndex;
use crate::cluster::policy::{HashFunction, RingHash};

/// The ring of one priority.
pub(super) struct Ring {
    /// Ascending.
    points: Box<[u64]>,
    /// Whose point it is.
    owners: Box<[HostIndex]>,
    /// Points in all, fewest and most of a host.
    pub(super) counts: [u64; 3],
}

/// The seed of libstdc++'s `std::hash`, which Envoy uses.
const MURMUR_SEED: u64 = 0xc70f_6907;

impl Ring {
    /// The ring of `shares`, whose hosts are called `keys`.
    pub(super) fn build(options: &RingHash, shares: &[HostShare], keys: &[String]) -> Self {
        let smallest = shares.iter().map(|entry| entry.share).fold(1.0, f64::min);
        // As many points as give the host with the smallest share a whole number of them, within the limits.
        let scale = ((smallest * options.point_count_min as f64).ceil() / smallest).min(options.point_count_max as f64);
        let size = scale.ceil() as u64;
        let mut points = Vec::with_capacity(if shares.is_empty() { 0 } else { size as usize });
        let (mut made, mut wanted) = (0.0, 0.0);
        let (mut fewest, mut most) = (size, 0);
        let mut name = String::new();
        for (entry, key) in shares.iter().zip(keys) {
            // Shares of points need not be whole: sums over all hosts so far round evenly.
            wanted += scale * entry.share;
            let mut number: u64 = 0;
            while made < wanted {
                name.clear();
                // Writing to a String cannot fail.
                let _ = write!(name, "{key}_{number}");
                let hash = match options.function {
                    HashFunction::XxHash => xxh64(name.as_bytes(), 0),
                    HashFunction::MurmurHash2 => murmur2::murmur64a(name.as_bytes(), MURMUR_SEED),
                };
                points.push((hash, entry.host));
                number += 1;
                made += 1.0;
            }
            fewest = fewest.min(number);
            most = most.max(number);
        }
        points.sort_unstable_by_key(|(hash, _)| *hash);
        let counts = if shares.is_empty() { [0; 3] } else { [size, fewest, most] };
        Self {
            points: points.iter().map(|(hash, _)| *hash).collect(),
            owners: points.iter().map(|(_, owner)| *owner).collect(),
            counts,
        }
    }

    /// The owner of the first point at or after `hash`, or of the `attempt`-th after it.
    pub(super) fn host(&self, hash: u64, attempt: u32) -> Option<HostIndex> {
        let place = self.points.partition_point(|point| *point < hash);
        let place = (place % self.points.len().max(1) + attempt as usize).checked_rem(self.points.len())?;
        self.owners.get(place).copied()
    }
}
