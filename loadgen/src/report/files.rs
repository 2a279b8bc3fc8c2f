//! The report as CSV and as HdrHistogram's percentile file.

use std::fmt::Write;

use super::Report;

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
