//! Stats in Prometheus' text format, with Envoy's metric names and labels.
//!
//! Source: Prometheus, "Text-based format", 0.0.4. Shape: counters, then gauges, then histograms, each sorted by name without tags;
//! a `# TYPE` line before the first stat of a name.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::histogram::Distribution;
use super::tags::TagExtractor;
use super::view::{Stat, StatValue};

/// Writes `stats`, which are sorted by name, to `out`. `buckets_of` gives the bucket bounds of a histogram.
pub fn write(stats: &[Stat], tags: &TagExtractor, buckets_of: &dyn Fn(&str) -> Vec<f64>, out: &mut String) {
    let mut families: [BTreeMap<String, Vec<Sample<'_>>>; 3] = Default::default();
    for stat in stats {
        let tagged = tags.extract(&stat.name);
        let labels = labels(&tagged.tags);
        let [counters, gauges, histograms] = &mut families;
        let family = match &stat.value {
            StatValue::Counter(_) => counters,
            StatValue::Gauge(_) => gauges,
            StatValue::Histogram { .. } => histograms,
        };
        family.entry(tagged.name).or_default().push(Sample { stat, labels });
    }
    for (family, kind) in families.iter().zip(["counter", "gauge", "histogram"]) {
        for (name, samples) in family {
            let name = metric_name(name);
            let _ = writeln!(out, "# TYPE {name} {kind}");
            for sample in samples {
                match &sample.stat.value {
                    StatValue::Counter(value) | StatValue::Gauge(value) => {
                        let _ = writeln!(out, "{name}{{{}}} {value}", sample.labels);
                    }
                    StatValue::Histogram { cumulative, .. } => {
                        write_histogram(&name, &sample.labels, cumulative, &buckets_of(&sample.stat.name), out);
                    }
                }
            }
        }
    }
}

struct Sample<'a> {
    stat: &'a Stat,
    labels: String,
}

fn write_histogram(name: &str, labels: &str, recorded: &Distribution, bounds: &[f64], out: &mut String) {
    let comma = if labels.is_empty() { "" } else { "," };
    let count = recorded.count();
    for bound in bounds {
        let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {}", recorded.count_up_to(*bound));
    }
    let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {count}");
    let _ = writeln!(out, "{name}_sum{{{labels}}} {}", recorded.sum());
    let _ = writeln!(out, "{name}_count{{{labels}}} {count}");
}

/// `envoy_` and the name with every character that Prometheus does not allow as `_`.
fn metric_name(name: &str) -> String {
    let mut metric = String::from("envoy_");
    metric.extend(name.chars().map(name_character));
    metric
}

fn name_character(character: char) -> char {
    if character.is_ascii_alphanumeric() { character } else { '_' }
}

fn labels(tags: &[(String, String)]) -> String {
    let mut labels = String::new();
    for (tag, value) in tags {
        if !labels.is_empty() {
            labels.push(',');
        }
        labels.extend(tag.chars().map(name_character));
        labels.push_str("=\"");
        for character in value.chars() {
            match character {
                '\\' => labels.push_str("\\\\"),
                '"' => labels.push_str("\\\""),
                '\n' => labels.push_str("\\n"),
                other => labels.push(other),
            }
        }
        labels.push('"');
    }
    labels
}

#[cfg(test)]
mod tests {
    use super::super::counters::{Core, Stats};
    use super::super::names::ClusterStat;
    use super::super::registry::Registry;
    use super::super::view::{Selection, StatsView};
    use super::*;

    fn rendered(registry: &Registry) -> String {
        let view = StatsView::default();
        let mut out = String::new();
        let stats = view.collect(registry, &Selection::default());
        write(&stats, &TagExtractor::with_defaults(), &|_| vec![0.5, 1.0, 3_600_000.0], &mut out);
        out
    }

    #[test]
    fn a_group_reads_as_in_envoy() {
        let registry = Registry::new(1);
        let stats: std::sync::Arc<Stats<ClusterStat>> = registry.group("cluster.a.");
        let other = registry.group::<ClusterStat>("cluster.quote\".");
        stats.response_code(Core(0), 200);
        stats.response_code(Core(0), 503);
        stats.record(Core(0), ClusterStat::UpstreamRqTime, 1);
        stats.record(Core(0), ClusterStat::UpstreamRqTime, 7);
        let text = rendered(&registry);
        drop(other);
        for line in [
            "# TYPE envoy_cluster_upstream_rq counter",
            "envoy_cluster_upstream_rq{envoy_response_code=\"503\",envoy_cluster_name=\"a\"} 1",
            "envoy_cluster_upstream_rq_xx{envoy_response_code_class=\"2\",envoy_cluster_name=\"a\"} 1",
            "# TYPE envoy_cluster_upstream_cx_active gauge",
            "envoy_cluster_upstream_cx_active{envoy_cluster_name=\"quote\\\"\"} 0",
            "envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name=\"a\",le=\"0.5\"} 0",
            "envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name=\"a\",le=\"1\"} 1",
            "envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name=\"a\",le=\"3600000\"} 2",
            "envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name=\"a\",le=\"+Inf\"} 2",
            "envoy_cluster_upstream_rq_time_sum{envoy_cluster_name=\"a\"} 8",
            "envoy_cluster_upstream_rq_time_count{envoy_cluster_name=\"a\"} 2",
        ] {
            assert!(text.lines().any(|known| known == line), "{line}\n{text}");
        }
        let types: Vec<_> = text.lines().filter(|line| line.starts_with("# TYPE")).collect();
        let mut once = types.clone();
        once.dedup();
        assert_eq!(types, once, "one TYPE line for a name");
    }

    #[test]
    fn no_metric_has_two_types() {
        let registry = Registry::new(1);
        let stats = registry.group::<ClusterStat>("cluster.a.");
        stats.record(Core(0), ClusterStat::UpstreamRqTime, 1);
        let text = rendered(&registry);
        let mut names: Vec<_> =
            text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
