//! Counters and gauges: each core writes cells of its own, readers add them up.
//!
//! A cell has one writer, so an increment is a relaxed load and a relaxed store: no locked instruction, no shared cache line
//! (a core's cells start on a line of their own). A reader may see a value that is a few increments old, never a torn one.
//!
//! Shape: a group's cells on a core are made when that core first touches the group, so ten thousand idle clusters cost a few
//! words each. The top bit of a cell says that it was written at all (Envoy's `usedonly`); the other 63 hold the value, modulo 2^63.

use std::marker::PhantomData;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use super::histogram::{Distribution, HistogramCells};

/// Which core writes: the workers count from 0, the config thread has the last index.
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
    /// Shown only once it was recorded.
    pub late: bool,
}

/// One set of `upstream_rq_<code>` counters of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodeScope {
    /// Between the group's prefix and `upstream_rq_`, for instance `external.`.
    pub prefix: &'static str,
    /// Whether `upstream_rq_completed` shows only once there was a response.
    pub completed_late: bool,
}

/// Where an upstream response is counted besides the cluster as a whole. Source: Envoy, "Cluster manager, dynamic HTTP statistics".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseOrigin {
    /// Every response.
    All = 0,
    /// The request came from outside.
    External = 1,
    /// The request carried `x-envoy-internal: true`.
    Internal = 2,
    /// The endpoint is a canary.
    Canary = 3,
    /// The reply was not passed on: another attempt was made.
    Retry = 4,
}

/// A fixed set of stats under one prefix; implemented by `stat_group!` in `names.rs`.
pub trait StatGroup: Copy + Send + Sync + 'static {
    /// Every stat, by index; histograms last.
    const DEFINITIONS: &'static [StatDefinition];
    /// Sets of response code counters.
    const CODE_SCOPES: &'static [CodeScope] = &[];
    /// Stats that are shown for each worker too, as `worker_<n>.<name>`.
    const BY_WORKER: &'static [Self] = &[];
    /// The stat's place in [`Self::DEFINITIONS`].
    fn index(self) -> usize;
}

/// The cells of one group under one prefix, for all cores.
pub struct Stats<G> {
    prefix: Box<str>,
    cores: Box<[OnceLock<Box<CoreCells>>]>,
    /// What counters held when they were last reset; subtracted on reading.
    baseline: OnceLock<Box<[AtomicU64]>>,
    group: PhantomData<G>,
}

impl<G: StatGroup> Stats<G> {
    /// Cells for `core_count` cores (workers and the config thread), all zero.
    pub fn new(prefix: &str, core_count: usize) -> Self {
        Self {
            prefix: prefix.into(),
            cores: (0..core_count).map(|_| OnceLock::new()).collect(),
            baseline: OnceLock::new(),
            group: PhantomData,
        }
    }

    /// The prefix, with its last dot.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Adds `amount`.
    #[inline]
    pub fn add(&self, core: Core, stat: G, amount: u64) {
        if let Some(cell) = self.writable(core).and_then(|cells| cells.scalar(stat.index())) {
            cell.store(cell.load(Ordering::Relaxed).wrapping_add(amount) | WRITTEN, Ordering::Relaxed);
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
        self.subtract(core, stat, 1);
    }

    /// Subtracts `amount` from a gauge.
    #[inline]
    pub fn subtract(&self, core: Core, stat: G, amount: u64) {
        self.add(core, stat, amount.wrapping_neg());
    }

    /// Sets this core's part of a gauge.
    #[inline]
    pub fn set(&self, core: Core, stat: G, value: u64) {
        if let Some(cell) = self.writable(core).and_then(|cells| cells.scalar(stat.index())) {
            cell.store(value | WRITTEN, Ordering::Relaxed);
        }
    }

    /// Records one value of a histogram, in the unit of its name (milliseconds for `_ms` and `_time`).
    #[inline]
    pub fn record(&self, core: Core, stat: G, value: u64) {
        if let Some(cells) =
            self.writable(core).and_then(|cells| cells.histogram(stat.index(), const { first_histogram::<G>() }))
        {
            cells.record(value);
        }
    }

    /// Counts a response: `upstream_rq_<code>`, `upstream_rq_<n>xx` and `upstream_rq_completed`.
    #[inline]
    pub fn response_code(&self, core: Core, status: u16) {
        self.response_code_from(core, ResponseOrigin::All, status);
    }

    /// Counts a response under its origin's names, for instance `external.upstream_rq_503`.
    #[inline]
    pub fn response_code_from(&self, core: Core, origin: ResponseOrigin, status: u16) {
        if let Some(cell) = self.writable(core).and_then(|cells| cells.code(origin as usize, status)) {
            cell.store(cell.load(Ordering::Relaxed).wrapping_add(1) | WRITTEN, Ordering::Relaxed);
        }
    }

    /// The sum over all cores since the last reset. A gauge that reads below zero for a moment is 0.
    pub fn total(&self, stat: G) -> u64 {
        self.sum(stat.index()).value
    }

    /// One core's part.
    pub fn part(&self, core: Core, stat: G) -> u64 {
        let cells = self.cores.get(usize::from(core.0)).and_then(OnceLock::get);
        cells
            .and_then(|cells| cells.scalar(stat.index()))
            .map_or(0, |cell| signed(cell.load(Ordering::Relaxed)).max(0) as u64)
    }

    /// The distribution recorded so far by all cores.
    pub fn distribution(&self, stat: G) -> Distribution {
        self.merged(stat.index())
    }

    /// Responses with exactly `status`.
    pub fn response_code_total(&self, origin: ResponseOrigin, status: u16) -> u64 {
        self.code_sum(origin as usize, status).value
    }

    #[inline]
    fn writable(&self, core: Core) -> Option<&CoreCells> {
        Some(self.cores.get(usize::from(core.0))?.get_or_init(|| Box::new(CoreCells::new::<G>())))
    }

    fn touched(&self) -> impl Iterator<Item = &CoreCells> {
        self.cores.iter().filter_map(|core| core.get().map(Box::as_ref))
    }

    fn merged(&self, index: usize) -> Distribution {
        let mut merged = Distribution::default();
        for cells in self.touched() {
            if let Some(cells) = cells.histogram_if_made(index, const { first_histogram::<G>() }) {
                cells.merge_into(&mut merged);
            }
        }
        merged
    }

    fn sum(&self, index: usize) -> Sum {
        let cells = self.touched().filter_map(|cells| cells.scalar(index));
        Sum::of(cells).since(self.baseline_cell(index))
    }

    fn code_sum(&self, scope: usize, status: u16) -> Sum {
        let cells = self.touched().filter_map(|cells| cells.code_if_made(scope, status));
        Sum::of(cells).since(self.baseline_cell(code_baseline_index::<G>(scope, status)))
    }

    fn baseline_cell(&self, index: usize) -> u64 {
        let cell = self.baseline.get().and_then(|cells| cells.get(index));
        cell.map_or(0, |cell| cell.load(Ordering::Relaxed))
    }
}

/// What readers want of a group, whatever the group is.
pub trait StatsBlock: Send + Sync {
    /// Calls `visit` for each stat that shows.
    fn visit(&self, visit: &mut Visit<'_>);
    /// Calls `visit` for each histogram that is not empty.
    fn visit_histograms(&self, visit: &mut dyn FnMut(&str, &Distribution));
    /// Counters read 0 from here on.
    fn reset_counters(&self);
}

/// Takes a stat's full name and value.
pub type Visit<'a> = dyn FnMut(&str, Reading<'_>) + 'a;

/// A stat's value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reading<'a> {
    /// A counter's value, and whether it was ever incremented.
    Counter { value: u64, used: bool },
    /// A gauge's value, and whether it was ever set.
    Gauge { value: u64, used: bool },
    /// A histogram; empty where nothing was recorded.
    Histogram(&'a Distribution),
}

impl<G: StatGroup> StatsBlock for Stats<G> {
    fn visit(&self, visit: &mut Visit<'_>) {
        let mut name = String::from(&*self.prefix);
        let prefix_bytes = name.len();
        for (index, definition) in G::DEFINITIONS.iter().enumerate() {
            name.truncate(prefix_bytes);
            name.push_str(definition.name);
            let reading = match definition.kind {
                StatKind::Counter | StatKind::Gauge => {
                    let Sum { value, used } = self.sum(index);
                    if definition.late && !used {
                        continue;
                    }
                    match definition.kind {
                        StatKind::Gauge => Reading::Gauge { value, used },
                        _ => Reading::Counter { value, used },
                    }
                }
                StatKind::Histogram => {
                    let merged = self.merged(index);
                    if !(definition.late && merged.is_empty()) {
                        visit(&name, Reading::Histogram(&merged));
                    }
                    continue;
                }
            };
            visit(&name, reading);
        }
        for (index, scope) in G::CODE_SCOPES.iter().enumerate() {
            name.truncate(prefix_bytes);
            name.push_str(scope.prefix);
            self.visit_codes(index, scope, &mut name, visit);
        }
        self.visit_workers(&mut name, prefix_bytes, visit);
    }

    fn visit_histograms(&self, visit: &mut dyn FnMut(&str, &Distribution)) {
        let first = const { first_histogram::<G>() };
        if self.touched().next().is_none() {
            return;
        }
        for (index, definition) in G::DEFINITIONS.iter().enumerate().skip(first) {
            let merged = self.merged(index);
            if !merged.is_empty() {
                visit(&format!("{}{}", self.prefix, definition.name), &merged);
            }
        }
    }

    fn reset_counters(&self) {
        let slots = G::DEFINITIONS.len() + G::CODE_SCOPES.len() * CODES;
        let zeroes = || (0..slots).map(|_| AtomicU64::new(0)).collect();
        let add = |index: usize, amount: u64| {
            if amount > 0
                && let Some(cell) = self.baseline.get_or_init(zeroes).get(index)
            {
                cell.store(cell.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
            }
        };
        for (index, definition) in G::DEFINITIONS.iter().enumerate() {
            if definition.kind == StatKind::Counter {
                add(index, self.sum(index).value);
            }
        }
        for scope in 0..G::CODE_SCOPES.len() {
            for status in CODE_MIN..=CODE_MAX {
                add(code_baseline_index::<G>(scope, status), self.code_sum(scope, status).value);
            }
        }
    }
}

impl<G: StatGroup> Stats<G> {
    fn visit_codes(&self, index: usize, scope: &CodeScope, name: &mut String, visit: &mut Visit<'_>) {
        use std::fmt::Write;
        name.push_str("upstream_rq_");
        let stem_bytes = name.len();
        let mut completed = Sum { value: 0, used: false };
        for class in CODE_MIN / 100..=CODE_MAX / 100 {
            let mut in_class = Sum { value: 0, used: false };
            if self.touched().all(|cells| cells.code_page(index, class).is_none()) {
                continue;
            }
            for status in class * 100..class * 100 + 100 {
                let sum = self.code_sum(index, status);
                if sum.used {
                    name.truncate(stem_bytes);
                    let _ = write!(name, "{status}");
                    visit(name, Reading::Counter { value: sum.value, used: true });
                    in_class = Sum { value: in_class.value + sum.value, used: true };
                }
            }
            name.truncate(stem_bytes);
            let _ = write!(name, "{class}xx");
            visit(name, Reading::Counter { value: in_class.value, used: in_class.used });
            completed = Sum { value: completed.value + in_class.value, used: true };
        }
        if completed.used || !scope.completed_late {
            name.truncate(stem_bytes);
            name.push_str("completed");
            visit(name, Reading::Counter { value: completed.value, used: completed.used });
        }
    }

    fn visit_workers(&self, name: &mut String, prefix_bytes: usize, visit: &mut Visit<'_>) {
        use std::fmt::Write;
        // The last core is the config thread.
        let workers = self.cores.iter().take(self.cores.len().saturating_sub(1)).enumerate();
        for (worker, cells) in workers.filter(|_| !G::BY_WORKER.is_empty()) {
            for stat in G::BY_WORKER {
                let Some(definition) = G::DEFINITIONS.get(stat.index()) else { continue };
                let cell = cells.get().and_then(|cells| cells.scalar(stat.index()));
                let Sum { value, used } = Sum::of(cell.into_iter());
                name.truncate(prefix_bytes);
                let _ = write!(name, "worker_{worker}.{}", definition.name);
                match definition.kind {
                    StatKind::Gauge => visit(name, Reading::Gauge { value, used }),
                    _ => visit(name, Reading::Counter { value, used }),
                }
            }
        }
    }
}

/// Cells added up.
struct Sum {
    value: u64,
    used: bool,
}

impl Sum {
    fn of<'a>(cells: impl Iterator<Item = &'a AtomicU64>) -> Self {
        let (mut value, mut used) = (0i64, false);
        for cell in cells {
            let raw = cell.load(Ordering::Relaxed);
            used |= raw & WRITTEN != 0;
            value = value.wrapping_add(signed(raw));
        }
        Self { value: value.max(0) as u64, used }
    }

    fn since(self, baseline: u64) -> Self {
        Self { value: self.value.saturating_sub(baseline), used: self.used }
    }
}

/// The cells of one group on one core.
struct CoreCells {
    scalars: Box<[Line]>,
    histograms: Box<[OnceLock<Box<HistogramCells>>]>,
    /// Five pages for each scope: 1xx to 5xx.
    codes: Box<[OnceLock<Box<CodePage>>]>,
}

/// Cells that fill one cache line, so that no two cores write to one.
#[derive(Default)]
#[repr(align(64))]
struct Line([AtomicU64; LINE_CELLS]);

type CodePage = [Line; 100usize.div_ceil(LINE_CELLS)];

impl CoreCells {
    fn new<G: StatGroup>() -> Self {
        let scalars = const { first_histogram::<G>() };
        Self {
            scalars: (0..scalars.div_ceil(LINE_CELLS)).map(|_| Line::default()).collect(),
            histograms: (scalars..G::DEFINITIONS.len()).map(|_| OnceLock::new()).collect(),
            codes: (0..G::CODE_SCOPES.len() * CODE_CLASSES).map(|_| OnceLock::new()).collect(),
        }
    }

    #[inline]
    fn scalar(&self, index: usize) -> Option<&AtomicU64> {
        self.scalars.get(index / LINE_CELLS)?.0.get(index % LINE_CELLS)
    }

    #[inline]
    fn histogram(&self, index: usize, first: usize) -> Option<&HistogramCells> {
        Some(self.histograms.get(index.checked_sub(first)?)?.get_or_init(Box::default))
    }

    fn histogram_if_made(&self, index: usize, first: usize) -> Option<&HistogramCells> {
        self.histograms.get(index.checked_sub(first)?)?.get().map(Box::as_ref)
    }

    #[inline]
    fn code(&self, scope: usize, status: u16) -> Option<&AtomicU64> {
        let page = self.codes.get(code_page_index(scope, status / 100)?)?.get_or_init(Box::default);
        let cell = usize::from(status % 100);
        page.get(cell / LINE_CELLS)?.0.get(cell % LINE_CELLS)
    }

    fn code_page(&self, scope: usize, class: u16) -> Option<&CodePage> {
        self.codes.get(code_page_index(scope, class)?)?.get().map(Box::as_ref)
    }

    fn code_if_made(&self, scope: usize, status: u16) -> Option<&AtomicU64> {
        let cell = usize::from(status % 100);
        self.code_page(scope, status / 100)?.get(cell / LINE_CELLS)?.0.get(cell % LINE_CELLS)
    }
}

#[inline]
fn code_page_index(scope: usize, class: u16) -> Option<usize> {
    (1..=CODE_CLASSES as u16).contains(&class).then(|| scope * CODE_CLASSES + usize::from(class) - 1)
}

fn code_baseline_index<G: StatGroup>(scope: usize, status: u16) -> usize {
    G::DEFINITIONS.len() + scope * CODES + usize::from(status.saturating_sub(CODE_MIN))
}

/// Index of the first histogram, which is the number of counters and gauges.
const fn first_histogram<G: StatGroup>() -> usize {
    let mut index = 0;
    let definitions = G::DEFINITIONS;
    while let Some((definition, _)) = definitions.split_at(index).1.split_first() {
        if matches!(definition.kind, StatKind::Histogram) {
            break;
        }
        index += 1;
    }
    index
}

/// The value of a cell: its lower 63 bits, signed.
fn signed(raw: u64) -> i64 {
    (raw << 1) as i64 >> 1
}

const WRITTEN: u64 = 1 << 63;
const LINE_CELLS: usize = 8;
/// Status codes of RFC 9110 §15.
const CODE_MIN: u16 = 100;
const CODE_MAX: u16 = 599;
const CODES: usize = 500;
const CODE_CLASSES: usize = 5;

#[cfg(test)]
mod tests;
