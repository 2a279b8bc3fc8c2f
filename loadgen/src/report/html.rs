//! The report as one page that needs nothing else: no script, no font, no network.

use std::fmt::Write;

use super::plot::{self, Line};
use super::{PERCENTILES, Report, text};
use crate::quantity::nanoseconds;
use crate::run::find::Tried;

/// Steps of the percentile curve for each halving of what is left.
const TICKS_PER_HALF: u32 = 8;

pub(crate) const STYLE: &str = "body{font:15px/1.45 system-ui,sans-serif;max-width:960px;margin:2em auto;padding:0 1em;color:#1a1f26;background:#fff}\
h1{font-size:1.4em;overflow-wrap:anywhere}h2{font-size:1.1em;margin:2em 0 .4em}table{border-collapse:collapse}\
td,th{padding:.15em 1em .15em 0;text-align:right;font-variant-numeric:tabular-nums}td:first-child,th:first-child{text-align:left}\
.verdict{display:inline-block;padding:.2em .7em;border-radius:.3em;color:#fff}.good{background:#1b7f4b}.bad{background:#b3261e}\
svg{width:100%;height:auto}pre{background:#f4f6f8;padding:1em;overflow:auto;font-size:13px}";

/// The page.
pub fn render(report: &Report) -> String {
    let mut out = String::new();
    let title = escape(&report.target);
    let kind = report.verdict.kind;
    let class = if kind == crate::verdict::Kind::Valid { "good" } else { "bad" };
    let _ = write!(
        out,
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>torus-load: {title}</title><style>{STYLE}</style><h1>{title}</h1>\
         <p><span class=\"verdict {class}\">{}</span> {} loop, {:.1} s, {} connections, {} threads</p>",
        kind.words(),
        report.load.model,
        report.load.measured as f64 / 1e9,
        report.load.connections,
        report.load.threads
    );
    for reason in &report.verdict.reasons {
        let _ = write!(out, "<p>{}</p>", escape(reason));
    }
    for judged in &report.objective {
        let (class, word) = if judged.met { ("good", "met") } else { ("bad", "missed") };
        let (limit, measured) = (escape(&judged.limit), escape(&judged.measured));
        let _ = write!(out, "<p><span class=\"verdict {class}\">{word}</span> {limit}, measured {measured}</p>");
    }
    if let Some(found) = &report.search {
        let _ = write!(out, "<h2>Response time by rate</h2><p>{}</p>", escape(&text::answer(found)));
        let mut tries: Vec<_> = found.tries.iter().filter(|tried| tried.counted && tried.p50 > 0).collect();
        tries.sort_by(|a, b| a.rate.total_cmp(&b.rate));
        let line = |name, color, value: fn(&Tried) -> u64| Line {
            name,
            color,
            points: tries.iter().map(|tried| (tried.rate, value(tried) as f64)).collect(),
        };
        out.push_str(&plot::times_by_rate(&[
            line("p50", plot::GREEN, |tried| tried.p50),
            line("p99", plot::BLUE, |tried| tried.p99),
            line("p99.9", plot::ORANGE, |tried| tried.p999),
        ]));
    }
    out.push_str("<h2>Time by percentile</h2>");
    let record = &report.record;
    let curve = |name, color, times: &crate::record::Times| {
        let points = times.curve(TICKS_PER_HALF).into_iter();
        // The last step is the maximum; it is drawn at the percentile that its count allows.
        let last = 100.0 * (1.0 - 0.5 / times.count().max(1) as f64);
        Line { name, color, points: points.map(|(value, at, _)| (at.min(last), value as f64)).collect() }
    };
    out.push_str(&plot::percentiles(&[
        curve("response", plot::BLUE, &record.response),
        curve("service", plot::GREEN, &record.service),
        curve("lag", plot::ORANGE, &record.lag),
    ]));
    table(report, &mut out);
    if !report.points.is_empty() {
        out.push_str("<h2>Response time over time</h2>");
        out.push_str(&plot::heat(&report.points));
        out.push_str("<h2>Rates over time, a second</h2>");
        let middle = |point: &super::SeriesPoint| (point.from + point.to) as f64 / 2e9;
        let line = |name, color, value: fn(&super::SeriesPoint) -> f64| Line {
            name,
            color,
            points: report.series.iter().map(|point| (middle(point), value(point))).collect(),
        };
        out.push_str(&plot::lines(&[
            line("asked", plot::GREY, |point| point.asked),
            line("sent", plot::ORANGE, |point| point.sent),
            line("done", plot::BLUE, |point| point.completed),
        ]));
        if report.target_usage.is_some() {
            out.push_str("<h2>Processor of the target over time, cores</h2>");
            out.push_str(&plot::lines(&[line("target", plot::GREEN, |point| point.target_cpu)]));
        }
    }
    let _ = writeln!(out, "<h2>All figures</h2><pre>{}</pre></html>", escape(&text::render(report)));
    out
}

fn table(report: &Report, out: &mut String) {
    out.push_str("<table><tr><th></th><th>response</th><th>service</th><th>lag</th></tr>");
    for percentile in PERCENTILES {
        let name = if percentile == 100.0 { "max".to_owned() } else { format!("p{percentile}") };
        let _ = write!(out, "<tr><td>{name}</td>");
        for column in [&report.response_time, &report.service_time, &report.schedule_lag] {
            let _ = write!(out, "<td>{}</td>", nanoseconds(column.at(percentile)));
        }
        out.push_str("</tr>");
    }
    out.push_str("</table>");
}

pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_cannot_become_markup() {
        assert_eq!(escape("<b a=\"&\">"), "&lt;b a=&quot;&amp;&quot;&gt;");
    }
}
