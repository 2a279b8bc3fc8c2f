//! Every group of stats that exists, by prefix, so that readers find them and equal prefixes share their cells.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::counters::{Core, StatGroup, Stats, StatsBlock, Visit};
use super::histogram::Distribution;

/// Knows every group; used while configuration is parsed and by the admin server, never by a worker.
pub struct Registry {
    core_count: usize,
    entries: Mutex<HashMap<Key, Entry>>,
}

/// A group's type and prefix.
type Key = (TypeId, Box<str>);

/// One group in both its forms; it lives as long as the configuration that holds it.
struct Entry {
    typed: Weak<dyn Any + Send + Sync>,
    block: Weak<dyn StatsBlock>,
}

impl Registry {
    /// A registry for `core_count` cores: workers and the config thread.
    pub fn new(core_count: usize) -> Arc<Self> {
        Arc::new(Self { core_count, entries: Mutex::default() })
    }

    /// Workers and the config thread.
    pub fn core_count(&self) -> usize {
        self.core_count
    }

    /// The core of the config thread.
    pub fn config_core(&self) -> Core {
        Core(self.core_count.saturating_sub(1) as u16)
    }

    /// The group under `prefix` (with its last dot), made where it is not there yet.
    pub fn group<G: StatGroup>(&self, prefix: &str) -> Arc<Stats<G>> {
        self.group_for::<G>(prefix, self.core_count)
    }

    /// As [`Self::group`], with cells for writers beyond the cores.
    pub(crate) fn group_for<G: StatGroup>(&self, prefix: &str, writer_count: usize) -> Arc<Stats<G>> {
        let key = (TypeId::of::<G>(), prefix.into());
        let mut entries = self.lock();
        if let Some(known) = entries.get(&key).and_then(|entry| entry.typed.upgrade())
            && let Ok(stats) = known.downcast::<Stats<G>>()
        {
            return stats;
        }
        let stats = Arc::new(Stats::<G>::new(prefix, writer_count));
        let any: Arc<dyn Any + Send + Sync> = stats.clone();
        let block: Arc<dyn StatsBlock> = stats.clone();
        entries.insert(key, Entry { typed: Arc::downgrade(&any), block: Arc::downgrade(&block) });
        stats
    }

    /// Calls `visit` for each stat of each group, in no order.
    pub fn visit(&self, visit: &mut Visit<'_>) {
        for block in self.blocks() {
            block.visit(visit);
        }
    }

    /// Calls `visit` for each histogram that is not empty.
    pub fn visit_histograms(&self, visit: &mut dyn FnMut(&str, &Distribution)) {
        for block in self.blocks() {
            block.visit_histograms(visit);
        }
    }

    /// Every counter reads 0 from here on.
    pub fn reset_counters(&self) {
        for block in self.blocks() {
            block.reset_counters();
        }
    }

    fn blocks(&self) -> Vec<Arc<dyn StatsBlock>> {
        let mut entries = self.lock();
        let mut blocks = Vec::with_capacity(entries.len());
        entries.retain(|_, entry| {
            let block = entry.block.upgrade();
            let alive = block.is_some();
            blocks.extend(block);
            alive
        });
        blocks
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Registry").field("core_count", &self.core_count).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::super::names::{HttpStat, ListenerHttpStat};
    use super::*;

    #[test]
    fn equal_prefixes_share_cells_while_one_lives() {
        let registry = Registry::new(2);
        let first = registry.group::<HttpStat>("http.in.");
        let second = registry.group::<HttpStat>("http.in.");
        first.increment(Core(0), HttpStat::DownstreamRqTotal);
        second.increment(Core(0), HttpStat::DownstreamRqTotal);
        assert_eq!(first.total(HttpStat::DownstreamRqTotal), 2);
        let other = registry.group::<ListenerHttpStat>("http.in.");
        assert_eq!(other.total(ListenerHttpStat::DownstreamRqCompleted), 0, "another group under the same prefix");
        drop((first, second, other));
        let mut names = 0;
        registry.visit(&mut |_, _| names += 1);
        assert_eq!(names, 0);
        assert_eq!(registry.group::<HttpStat>("http.in.").total(HttpStat::DownstreamRqTotal), 0);
    }
}
