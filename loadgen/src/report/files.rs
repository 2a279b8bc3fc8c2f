//! The report as CSV, as HdrHistogram's percentile file and as its interval log.

use std::fmt::Write;
use std::time::{Duration, UNIX_EPOCH};

use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::IntervalLogWriterBuilder;

use super::Report;
use crate::record::Times;

/// Steps of the percentile curve for each halving of what is left.
const TICKS_PER_HALF: u32 = 10;

/// A line for each point of the series; times in microseconds, rates a second.
pub fn csv(report: &Report) -> String {
    let mut out =
        "from_s,to_s,asked,planned,sent,completed,errors,p50_us,p90_us,p99_us,p99.9_us,max_us,target_cpu\n".to_owned();
    for point in &report.series {
        let seconds = |nanoseconds: u64| nanoseconds as f64 / 1e9;
        let micros = |nanoseconds: u64| nanoseconds as f64 / 1e3;
        let _ = writeln!(
            out,
            "{:.3},{:.3},{:.1},{:.1},{:.1},{:.1},{},{:.1},{:.1},{:.1},{:.1},{:.1},{:.3}",
            seconds(point.from),
            seconds(point.to),
            point.asked,
            point.planned,
            point.sent,
            point.completed,
            point.errors,
            micros(point.p50),
            micros(point.p90),
            micros(point.p99),
            micros(point.p999),
            micros(point.max),
            point.target_cpu
        );
    }
    out
}

/// The response time in the percentile format of HdrHistogram, which its plotters read; in milliseconds.
pub fn hgrm(report: &Report) -> String {
    let times = &report.record.response;
    let millis = |nanoseconds: f64| nanoseconds / 1e6;
    let mut out = format!("{:>12} {:>14} {:>10} {:>14}\n\n", "Value", "Percentile", "TotalCount", "1/(1-Percentile)");
    for (value, percentile, total) in times.curve(TICKS_PER_HALF) {
        let quantile = percentile / 100.0;
        let value = millis(value as f64);
        let _ = if quantile < 1.0 {
            writeln!(out, "{value:>12.6} {quantile:>2.12} {total:>10} {:>14.2}", 1.0 / (1.0 - quantile))
        } else {
            writeln!(out, "{value:>12.6} {quantile:>2.12} {total:>10}")
        };
    }
    let (mean, deviation) = (millis(times.mean()), millis(times.deviation()));
    let (max, count) = (millis(times.max() as f64), times.count());
    let _ = writeln!(out, "#[Mean    = {mean:>12.6}, StdDeviation   = {deviation:>12.6}]");
    let _ = writeln!(out, "#[Max     = {max:>12.6}, Total count    = {count:>12}]");
    let _ = writeln!(out, "#[Buckets = {:>12}, SubBuckets     = {:>12}]", 30, 2048);
    out
}

/// The response time of each stretch as an interval log of HdrHistogram, version 2: values in nanoseconds, largest ones in milliseconds.
pub fn hlog(report: &Report) -> String {
    let mut out = Vec::new();
    let mut serializer = V2DeflateSerializer::new();
    let began = UNIX_EPOCH + Duration::from_secs_f64(report.began);
    let mut builder = IntervalLogWriterBuilder::new();
    builder.add_comment(&format!("[torus-load {}: response time of {}]", report.version, report.target));
    builder.with_start_time(began).with_base_time(began).with_max_value_divisor(1e6);
    let first = report.points.first().map_or(0, |point| point.from);
    if let Ok(mut log) = builder.begin_log_with(&mut out, &mut serializer) {
        for point in &report.points {
            let times = Times::of(&point.response);
            let from = Duration::from_nanos(point.from.saturating_sub(first));
            let length = Duration::from_nanos(point.to.saturating_sub(point.from));
            // Writing to a vector cannot fail, and the histogram's bounds are those of all others.
            let _ = log.write_histogram(times.histogram(), from, length, None);
        }
    }
    String::from_utf8(out).unwrap_or_default()
}
