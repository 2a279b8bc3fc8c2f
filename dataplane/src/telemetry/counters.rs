//! Counters and gauges: each worker writes cells of its own, readers add them up.
//!
//! A cell has one writer, so an increment is a relaxed load and a relaxed store: no locked instruction, no shared cache line
//! (a core's cells start on a line of their own). A reader may see a value that is a few increments old, never a torn one.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};

/// Which worker writes; the config thread has the last index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Core(pub u16);

/// How a stat behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatKind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// A distribution.
    Histogram,
}

/// One stat of a group: the name after the group's prefix, and how it behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatDefinition {
    /// Envoy's name, without the prefix.
    pub name: &'static str,
    /// Counter, gauge or histogram.
    pub kind: StatKind,
}

/// A fixed set of stats under one prefix; implemented by `stat_group!` in `names.rs`.
pub trait StatGroup: Copy + Send + Sync + 'static {
    /// Every stat, by index.
    const DEFINITIONS: &'static [StatDefinition];
    /// The stat's place in [`Self::DEFINITIONS`].
    fn index(self) -> usize;
}

/// The cells of one group under one prefix, for all cores.
pub struct Stats<G> {
    prefix: Box<str>,
    cells: Box<[AtomicU64]>,
    stride: usize,
    group: PhantomData<G>,
}

impl<G: StatGroup> Stats<G> {
    /// Cells for `core_count` cores (workers and the config thread), all zero.
    pub fn new(prefix: &str, core_count: usize) -> Self {
        // 8 cells fill a cache line.
        let stride = G::DEFINITIONS.len().next_multiple_of(8);
        let cells = (0..stride * core_count).map(|_| AtomicU64::new(0)).collect();
        Self { prefix: prefix.into(), cells, stride, group: PhantomData }
    }

    /// The prefix, with its last dot.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Adds `amount`.
    #[inline]
    pub fn add(&self, core: Core, stat: G, amount: u64) {
        if let Some(cell) = self.cells.get(usize::from(core.0) * self.stride + stat.index()) {
            cell.store(cell.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
        }
    }

    /// Adds one.
    #[inline]
    pub fn increment(&self, core: Core, stat: G) {
        self.add(core, stat, 1);
    }

    /// Subtracts one from a gauge.
    #[inline]
    pub fn decrement(&self, core: Core, stat: G) {
        self.add(core, stat, u64::MAX);
    }

    /// The sum over all cores.
    pub fn total(&self, stat: G) -> u64 {
        let cells = self.cells.iter().skip(stat.index()).step_by(self.stride.max(1));
        cells.fold(0, |sum, cell| sum.wrapping_add(cell.load(Ordering::Relaxed)))
    }
}
