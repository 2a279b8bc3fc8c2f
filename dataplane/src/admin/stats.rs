//! `/stats` and `/stats/prometheus`: every stat as text, JSON, a page or for Prometheus.

use std::fmt::Write;

use regex::Regex;
use serde_json::Number;

use super::Admin;
use super::index::escaped;
use super::request::{JSON, Reply, Request};
use crate::telemetry::histogram::Distribution;
use crate::telemetry::prometheus;
use crate::telemetry::stats_config::StatsConfig;
use crate::telemetry::view::{SelectedKind, Selection, Stat, StatValue};

/// How a histogram is shown. Source: Envoy, `/stats?histogram_buckets=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Buckets {
    /// Quantiles.
    Summary,
    /// Counts of values up to each bound.
    Cumulative,
    /// Counts of values between bounds.
    Disjoint,
    /// Every bucket.
    Detailed,
}

pub(super) fn show(admin: &Admin, request: &Request) -> Reply {
    let selection = match selection(request) {
        Ok(selection) => selection,
        Err(reply) => return reply,
    };
    let buckets = match request.parameter("histogram_buckets") {
        None | Some("summary" | "") => Buckets::Summary,
        Some("cumulative") => Buckets::Cumulative,
        Some("disjoint") => Buckets::Disjoint,
        Some("detailed") => Buckets::Detailed,
        Some(_) => {
            return Reply::error(400, "usage: /stats?histogram_buckets=(cumulative|disjoint|detailed|summary)\n");
        }
    };
    let format = request.parameter("format").unwrap_or("text");
    if format == "prometheus" {
        return prometheus_of(admin, &selection);
    }
    admin.refresh_stats();
    let view = admin.stats_view();
    let stats = view.collect(&admin.registry, &selection);
    let texts = texts(admin, &selection);
    let lines = || texts.iter().map(|(name, value)| format!("{name}: \"{value}\"\n")).collect::<String>();
    match format {
        "text" => Reply::text(lines() + &text(&stats, buckets, view.config())),
        "html" | "active-html" => {
            let text = lines() + &text(&stats, buckets, view.config());
            Reply::html(format!("<!DOCTYPE html>\n<html><body><pre>{}</pre></body></html>\n", escaped(&text)))
        }
        "json" => Reply { status: 200, content_type: JSON, body: json(&stats, buckets, view.config()) },
        _ => Reply::error(400, "usage: /stats?format=(html|active-html|json|prometheus|text)\n\n"),
    }
}

pub(super) fn show_prometheus(admin: &Admin, request: &Request) -> Reply {
    match selection(request) {
        Ok(selection) => prometheus_of(admin, &selection),
        Err(reply) => reply,
    }
}

pub(super) fn reset(admin: &Admin, _: &Request) -> Reply {
    admin.registry.reset_counters();
    Reply::ok()
}

pub(super) fn recent_lookups(_: &Admin, _: &Request) -> Reply {
    Reply::text("Lookup tracking is not enabled. Use /stats/recentlookups/enable to enable.\n\ntotal: 0\n")
}

fn prometheus_of(admin: &Admin, selection: &Selection) -> Reply {
    admin.refresh_stats();
    let view = admin.stats_view();
    let stats = view.collect(&admin.registry, selection);
    let mut body = String::new();
    let config = view.config();
    prometheus::write(&stats, &config.tags, &|name| config.buckets_of(name), &mut body);
    Reply::text(body)
}

fn selection(request: &Request) -> Result<Selection, Reply> {
    let filter = request.parameter("filter").filter(|filter| !filter.is_empty()).map(Regex::new).transpose();
    let kind = match request.parameter("type").unwrap_or("All") {
        "All" => SelectedKind::All,
        "Counters" => SelectedKind::Counters,
        "Gauges" => SelectedKind::Gauges,
        "Histograms" => SelectedKind::Histograms,
        "TextReadouts" => SelectedKind::TextReadouts,
        _ => {
            return Err(Reply::error(400, "usage: /stats?type=(All|Counters|Gauges|Histograms|TextReadouts)\n"));
        }
    };
    Ok(Selection {
        used_only: request.has("usedonly"),
        filter: filter.map_err(|error| Reply::error(400, format!("Invalid re2 regex: {error}\n")))?,
        invert: request.has("invert_filter"),
        kind,
    })
}

/// The stats that are texts, of those asked for.
fn texts(admin: &Admin, selection: &Selection) -> Vec<(String, Box<str>)> {
    if !matches!(selection.kind, SelectedKind::All | SelectedKind::TextReadouts) {
        return Vec::new();
    }
    let mut texts: Vec<(String, Box<str>)> =
        admin.with_records(|records| records.texts.iter().map(|(name, value)| (name.clone(), value.clone())).collect());
    texts.retain(|(name, _)| selection.filter.as_ref().is_none_or(|filter| filter.is_match(name) != selection.invert));
    texts
}

/// Counters and gauges, then histograms.
fn text(stats: &[Stat], buckets: Buckets, config: &StatsConfig) -> String {
    let mut text = String::new();
    for stat in stats {
        if let StatValue::Counter(value) | StatValue::Gauge(value) = stat.value {
            let _ = writeln!(text, "{}: {value}", stat.name);
        }
    }
    for stat in stats {
        let StatValue::Histogram { cumulative, interval } = &stat.value else { continue };
        let name = &stat.name;
        match buckets {
            Buckets::Detailed => {
                let _ = writeln!(text, "{name}:\n  totals={}", every_bucket(cumulative));
                let _ = writeln!(text, "  intervals={}", every_bucket(interval));
                let _ = writeln!(text, "  summary={}", summary(cumulative, interval));
            }
            Buckets::Summary => {
                let _ = writeln!(text, "{name}: {}", summary(cumulative, interval));
            }
            Buckets::Cumulative | Buckets::Disjoint if cumulative.is_empty() => {
                let _ = writeln!(text, "{name}: {NO_VALUES}");
            }
            Buckets::Cumulative | Buckets::Disjoint => {
                let bounds = config.buckets_of(name);
                let counts = bounded(&bounds, interval, cumulative, buckets);
                let counts: Vec<String> = counts
                    .map(|(bound, interval, cumulative)| format!("B{}({interval},{cumulative})", short_number(bound)))
                    .collect();
                let _ = writeln!(text, "{name}: {}", counts.join(" "));
            }
        }
    }
    text
}

fn every_bucket(recorded: &Distribution) -> String {
    let buckets = recorded.buckets().iter();
    let buckets: Vec<String> =
        buckets.map(|(bucket, count)| format!("{},{}:{count}", bucket.lower(), bucket.width())).collect();
    buckets.join(", ")
}

fn summary(cumulative: &Distribution, interval: &Distribution) -> String {
    if cumulative.is_empty() {
        return NO_VALUES.to_owned();
    }
    let shown = |value: f64| if value.is_nan() { "nan".to_owned() } else { value.to_string() };
    let quantiles: Vec<String> = QUANTILES
        .iter()
        .map(|quantile| {
            let fraction = quantile / 100.0;
            let (recent, all) = (interval.quantile(fraction), cumulative.quantile(fraction));
            format!("P{quantile}({},{})", shown(recent), shown(all))
        })
        .collect();
    quantiles.join(" ")
}

/// Each bound with the counts of the interval and of all.
fn bounded<'a>(
    bounds: &'a [f64],
    interval: &'a Distribution,
    cumulative: &'a Distribution,
    buckets: Buckets,
) -> impl Iterator<Item = (f64, u64, u64)> + 'a {
    let mut below = (0, 0);
    bounds.iter().map(move |bound| {
        let up_to = (interval.count_up_to(*bound), cumulative.count_up_to(*bound));
        let before = if buckets == Buckets::Disjoint { std::mem::replace(&mut below, up_to) } else { (0, 0) };
        (*bound, up_to.0 - before.0, up_to.1 - before.1)
    })
}

/// A bound with six significant digits, as C's `%g` writes it.
fn short_number(value: f64) -> String {
    if value.abs() < 1e6 {
        return value.to_string();
    }
    let exponent = value.abs().log10().floor() as i32;
    let mantissa = value / 10f64.powi(exponent);
    let mantissa = format!("{mantissa:.5}");
    format!("{}e+{exponent:02}", mantissa.trim_end_matches('0').trim_end_matches('.'))
}

/// `{"stats":[{name, value}.., {"histograms": ..}]}`
fn json(stats: &[Stat], buckets: Buckets, config: &StatsConfig) -> String {
    let mut out = String::from("{\"stats\":[");
    let mut separator = "";
    for stat in stats {
        if let StatValue::Counter(value) | StatValue::Gauge(value) = stat.value {
            let _ = write!(out, "{separator}{{\"name\":{},\"value\":{value}}}", quoted(&stat.name));
            separator = ",";
        }
    }
    let histograms: Vec<_> = stats
        .iter()
        .filter_map(|stat| match &stat.value {
            StatValue::Histogram { cumulative, interval } => Some((&*stat.name, cumulative, interval)),
            _ => None,
        })
        .collect();
    if !histograms.is_empty() {
        out.push_str(separator);
        match buckets {
            Buckets::Summary => write_quantiles(&histograms, &mut out),
            Buckets::Cumulative | Buckets::Disjoint => write_buckets(&histograms, buckets, config, &mut out),
            Buckets::Detailed => write_details(&histograms, &mut out),
        }
    }
    out.push_str("]}");
    out
}

type Histogram<'a> = (&'a str, &'a Distribution, &'a Distribution);

fn write_quantiles(histograms: &[Histogram<'_>], out: &mut String) {
    let supported: Vec<String> = QUANTILES.iter().map(f64::to_string).collect();
    let _ =
        write!(out, "{{\"histograms\":{{\"supported_quantiles\":[{}],\"computed_quantiles\":[", supported.join(","));
    for (place, (name, cumulative, interval)) in histograms.iter().enumerate() {
        let values: Vec<String> = QUANTILES
            .iter()
            .map(|quantile| {
                let fraction = quantile / 100.0;
                let (all, recent) = (number(cumulative.quantile(fraction)), number(interval.quantile(fraction)));
                format!("{{\"cumulative\":{all},\"interval\":{recent}}}")
            })
            .collect();
        let comma = if place == 0 { "" } else { "," };
        let _ = write!(out, "{comma}{{\"name\":{},\"values\":[{}]}}", quoted(name), values.join(","));
    }
    out.push_str("]}}");
}

fn write_buckets(histograms: &[Histogram<'_>], buckets: Buckets, config: &StatsConfig, out: &mut String) {
    out.push_str("{\"histograms\":[");
    for (place, (name, cumulative, interval)) in histograms.iter().enumerate() {
        let bounds = config.buckets_of(name);
        let values: Vec<String> = bounded(&bounds, interval, cumulative, buckets)
            .map(|(bound, interval, cumulative)| {
                format!("{{\"upper_bound\":{},\"interval\":{interval},\"cumulative\":{cumulative}}}", number(bound))
            })
            .collect();
        let comma = if place == 0 { "" } else { "," };
        let _ = write!(out, "{comma}{{\"name\":{},\"buckets\":[{}]}}", quoted(name), values.join(","));
    }
    out.push_str("]}");
}

fn write_details(histograms: &[Histogram<'_>], out: &mut String) {
    let supported: Vec<String> = QUANTILES.iter().map(f64::to_string).collect();
    let _ = write!(out, "{{\"histograms\":{{\"supported_percentiles\":[{}],\"details\":[", supported.join(","));
    for (place, (name, cumulative, interval)) in histograms.iter().enumerate() {
        let list = |recorded: &Distribution| -> String {
            let buckets = recorded.buckets().iter();
            let buckets: Vec<String> = buckets
                .map(|(bucket, count)| {
                    format!(
                        "{{\"lower_bound\":{},\"width\":{},\"count\":{count}}}",
                        number(bucket.lower()),
                        number(bucket.width())
                    )
                })
                .collect();
            buckets.join(",")
        };
        let percentiles: Vec<String> = QUANTILES
            .iter()
            .map(|quantile| {
                let fraction = quantile / 100.0;
                let (all, recent) = (number(cumulative.quantile(fraction)), number(interval.quantile(fraction)));
                format!("{{\"cumulative\":{all},\"interval\":{recent}}}")
            })
            .collect();
        let comma = if place == 0 { "" } else { "," };
        let _ = write!(
            out,
            "{comma}{{\"name\":{},\"percentiles\":[{}],\"totals\":[{}],\"intervals\":[{}]}}",
            quoted(name),
            percentiles.join(","),
            list(cumulative),
            list(interval)
        );
    }
    out.push_str("]}}");
}

fn quoted(text: &str) -> String {
    serde_json::to_string(text).unwrap_or_default()
}

/// A JSON number: whole ones without a fraction, not-a-number as null.
fn number(value: f64) -> String {
    if value.fract() == 0.0 && value.abs() < 1e15 {
        return format!("{}", value as i64);
    }
    Number::from_f64(value).map_or_else(|| "null".to_owned(), |number| number.to_string())
}

/// In percent. Source: Envoy, supported quantiles.
const QUANTILES: [f64; 10] = [0.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 100.0];
const NO_VALUES: &str = "No recorded values";

#[cfg(test)]
mod tests;
