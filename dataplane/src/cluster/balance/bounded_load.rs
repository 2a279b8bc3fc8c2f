//! Consistent hashing with bounded loads: a host that has too many requests passes further ones on.
//!
//! A host may work on `factor` percent of its fair share of the cluster's requests, at least one. Beyond that, hosts are
//! tried in a random order that the request's hash seeds, so that equal hashes go the same way; where all are beyond, the
//! least loaded of those tried takes the request.
//!
//! Source: Envoy's documentation of hash_balance_factor; arXiv 1608.01350 and 1908.08762.

use super::Choice;
use super::table::HashTable;
use crate::cluster::HostIndex;

/// Memory for one random order of hosts, kept between requests.
#[derive(Default)]
pub(super) struct Shuffle {
    order: Vec<u32>,
    generator: Option<Box<MersenneTwister>>,
}

impl Shuffle {
    /// `chosen`, or another host of `table` where it has too many requests already.
    pub(super) fn relieve(
        &mut self,
        table: &HashTable,
        chosen: HostIndex,
        hash: u64,
        factor_percent: u32,
        request: &Choice<'_>,
    ) -> HostIndex {
        let slots = (u64::from(request.active_total) + 1) * u64::from(factor_percent);
        let slots = slots.div_ceil(100) as f64;
        let load = |host: HostIndex, share: f64| f64::from((request.active)(host)) / (slots * share).ceil().max(1.0);
        let share = table.shares.iter().find(|entry| entry.host == chosen).map_or(1.0, |entry| entry.share);
        let mut least = (chosen, load(chosen, share));
        if least.1 <= 1.0 {
            return chosen;
        }

        let count = table.shares.len() as u32;
        self.order.clear();
        self.order.extend(0..count);
        let generator = self.generator.get_or_insert_with(Box::default);
        generator.seed(hash as u32);
        for place in 0..count {
            let other = place + generator.below(count - place);
            self.order.swap(place as usize, other as usize);
            let entry = self.order.get(place as usize).and_then(|index| table.shares.get(*index as usize));
            let Some(entry) = entry.filter(|entry| entry.host != chosen) else { continue };
            let load = load(entry.host, entry.share);
            if load <= 1.0 {
                return entry.host;
            }
            if load < least.1 {
                least = (entry.host, load);
            }
        }
        least.0
    }
}

/// MT19937 with 32-bit words (Matsumoto and Nishimura, 1998): C++'s `std::mt19937`, whose sequence Envoy's order follows.
struct MersenneTwister {
    words: [u32; WORD_COUNT],
    next: usize,
}

const WORD_COUNT: usize = 624;
const MIDDLE: usize = 397;

impl Default for MersenneTwister {
    fn default() -> Self {
        Self { words: [0; WORD_COUNT], next: WORD_COUNT }
    }
}

impl MersenneTwister {
    fn seed(&mut self, seed: u32) {
        let mut previous = seed;
        for (index, word) in (0_u32..).zip(&mut self.words) {
            if index > 0 {
                previous = (previous ^ (previous >> 30)).wrapping_mul(1_812_433_253).wrapping_add(index);
            }
            *word = previous;
        }
        self.next = WORD_COUNT;
    }

    /// Evenly distributed in `0..count`.
    fn below(&mut self, count: u32) -> u32 {
        let width = (1_u64 << 32) / u64::from(count.max(1));
        loop {
            let value = u64::from(self.next_word()) / width;
            if value < u64::from(count.max(1)) {
                return value as u32;
            }
        }
    }

    fn next_word(&mut self) -> u32 {
        if self.next >= WORD_COUNT {
            self.renew();
            self.next = 0;
        }
        let mut word = self.word(self.next);
        self.next += 1;
        word ^= word >> 11;
        word ^= (word << 7) & 0x9d2c_5680;
        word ^= (word << 15) & 0xefc6_0000;
        word ^ (word >> 18)
    }

    fn renew(&mut self) {
        for index in 0..WORD_COUNT {
            let joined = (self.word(index) & 0x8000_0000) | (self.word((index + 1) % WORD_COUNT) & 0x7fff_ffff);
            let mut word = self.word((index + MIDDLE) % WORD_COUNT) ^ (joined >> 1);
            if joined & 1 == 1 {
                word ^= 0x9908_b0df;
            }
            if let Some(place) = self.words.get_mut(index) {
                *place = word;
            }
        }
    }

    fn word(&self, index: usize) -> u32 {
        self.words.get(index).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The C++ standard fixes the 10,000th number of a default-seeded `std::mt19937` ([rand.predef]).
    #[test]
    fn the_generator_is_the_standard_one() {
        let mut generator = MersenneTwister::default();
        generator.seed(5489);
        let last = (0..10_000).map(|_| generator.next_word()).last();
        assert_eq!(last, Some(4_123_659_995));
    }
}
