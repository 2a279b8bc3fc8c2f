//! What of the stats is shown: collected from the registry, filtered, sorted; histograms with their last interval.

use std::collections::HashMap;

use regex::Regex;

use super::counters::Reading;
use super::histogram::Distribution;
use super::registry::Registry;
use super::stats_config::StatsConfig;

/// One stat with its value.
#[derive(Debug)]
pub struct Stat {
    /// The full name.
    pub name: String,
    /// What it reads.
    pub value: StatValue,
}

/// A stat's value.
#[derive(Debug)]
pub enum StatValue {
    /// A counter.
    Counter(u64),
    /// A gauge.
    Gauge(u64),
    /// A histogram: all that was recorded, and what was recorded in the last whole interval.
    Histogram { cumulative: Distribution, interval: Distribution },
}

/// Which stats are asked for.
#[derive(Debug, Default)]
pub struct Selection {
    /// Leaves out what was never written.
    pub used_only: bool,
    /// Leaves out names that this does not match; or those that it does, where `invert` is set.
    pub filter: Option<Regex>,
    /// Turns `filter` around.
    pub invert: bool,
    /// The kind asked for.
    pub kind: SelectedKind,
}

/// Which kind of stat is asked for. Source: Envoy, `/stats?type=`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SelectedKind {
    /// Every kind.
    #[default]
    All,
    /// Counters.
    Counters,
    /// Gauges.
    Gauges,
    /// Histograms.
    Histograms,
    /// Texts.
    TextReadouts,
}

/// The reader's memory: configuration, and what histograms held at the last flush.
#[derive(Debug, Default)]
pub struct StatsView {
    config: StatsConfig,
    flushed: HashMap<String, Flushed>,
}

#[derive(Debug, Default)]
struct Flushed {
    cumulative: Distribution,
    interval: Distribution,
}

impl StatsView {
    /// A view under `config`.
    pub fn new(config: StatsConfig) -> Self {
        Self { config, flushed: HashMap::new() }
    }

    /// How stats are tagged, filtered and bucketed.
    pub fn config(&self) -> &StatsConfig {
        &self.config
    }

    /// Ends an interval: what histograms gained since the last call is what is shown as theirs. Source: `stats_flush_interval`.
    pub fn flush(&mut self, registry: &Registry) {
        for flushed in self.flushed.values_mut() {
            flushed.interval = Distribution::default();
        }
        registry.visit_histograms(&mut |name, recorded| match self.flushed.get_mut(name) {
            Some(flushed) => {
                flushed.interval = recorded.since(&flushed.cumulative);
                flushed.cumulative.clone_from(recorded);
            }
            None => {
                let flushed = Flushed { cumulative: recorded.clone(), interval: recorded.clone() };
                self.flushed.insert(name.to_owned(), flushed);
            }
        });
    }

    /// The stats asked for, sorted by name.
    pub fn collect(&self, registry: &Registry, selection: &Selection) -> Vec<Stat> {
        let mut stats = Vec::new();
        let mut admission = self.config.admission();
        registry.visit(&mut |name, reading| {
            let (used, kind) = match reading {
                Reading::Counter { used, .. } => (used, SelectedKind::Counters),
                Reading::Gauge { used, .. } => (used, SelectedKind::Gauges),
                Reading::Histogram(recorded) => (!recorded.is_empty(), SelectedKind::Histograms),
            };
            if selection.kind != SelectedKind::All && selection.kind != kind || selection.used_only && !used {
                return;
            }
            if selection.filter.as_ref().is_some_and(|filter| filter.is_match(name) == selection.invert) {
                return;
            }
            if !admission.admits(name) {
                return;
            }
            let value = match reading {
                Reading::Counter { value, .. } => StatValue::Counter(value),
                Reading::Gauge { value, .. } => StatValue::Gauge(value),
                Reading::Histogram(recorded) => StatValue::Histogram {
                    cumulative: recorded.clone(),
                    interval: self.flushed.get(name).map(|flushed| flushed.interval.clone()).unwrap_or_default(),
                },
            };
            stats.push(Stat { name: name.to_owned(), value });
        });
        stats.sort_by(|a, b| a.name.cmp(&b.name));
        stats
    }
}

#[cfg(test)]
mod tests {
    use super::super::counters::Core;
    use super::super::names::HttpStat;
    use super::*;

    fn names(selection: Selection) -> Vec<String> {
        let registry = Registry::new(1);
        let stats = registry.group::<HttpStat>("http.in.");
        stats.increment(Core(0), HttpStat::DownstreamRqTotal);
        stats.increment(Core(0), HttpStat::DownstreamCxActive);
        stats.decrement(Core(0), HttpStat::DownstreamCxActive);
        stats.record(Core(0), HttpStat::DownstreamRqTime, 3);
        let view = StatsView::default();
        view.collect(&registry, &selection).into_iter().map(|stat| stat.name).collect()
    }

    #[test]
    fn selections_leave_out_what_was_not_asked_for() {
        let used = names(Selection { used_only: true, ..Selection::default() });
        assert_eq!(used, ["http.in.downstream_cx_active", "http.in.downstream_rq_time", "http.in.downstream_rq_total"]);
        let regex = Regex::new("rq_t.*l$").ok();
        let filtered = names(Selection { filter: regex.clone(), ..Selection::default() });
        assert_eq!(filtered, ["http.in.downstream_rq_total", "http.in.rq_total"]);
        let inverted = names(Selection { filter: regex, invert: true, used_only: true, ..Selection::default() });
        assert_eq!(inverted, ["http.in.downstream_cx_active", "http.in.downstream_rq_time"]);
        let histograms = names(Selection { kind: SelectedKind::Histograms, ..Selection::default() });
        assert_eq!(histograms, ["http.in.downstream_cx_length_ms", "http.in.downstream_rq_time"]);
        assert!(names(Selection { kind: SelectedKind::TextReadouts, ..Selection::default() }).is_empty());
    }

    #[test]
    fn an_interval_holds_what_came_since_the_flush_before() {
        let registry = Registry::new(1);
        let stats = registry.group::<HttpStat>("http.in.");
        let mut view = StatsView::default();
        let interval = |view: &StatsView| -> u64 {
            let stats = view.collect(&registry, &Selection::default());
            let of = |stat: &Stat| match &stat.value {
                StatValue::Histogram { interval, .. } => interval.count(),
                _ => 0,
            };
            stats.iter().map(of).sum()
        };
        stats.record(Core(0), HttpStat::DownstreamRqTime, 3);
        assert_eq!(interval(&view), 0);
        view.flush(&registry);
        stats.record(Core(0), HttpStat::DownstreamRqTime, 3);
        stats.record(Core(0), HttpStat::DownstreamRqTime, 400);
        assert_eq!(interval(&view), 1);
        view.flush(&registry);
        assert_eq!(interval(&view), 2);
        view.flush(&registry);
        assert_eq!(interval(&view), 0);
    }
}
