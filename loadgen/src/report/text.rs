//! The report for the screen.

use std::fmt::Write;

use super::{Distribution, PERCENTILES, Phases, Report};
use crate::quantity::nanoseconds;
use crate::run::find::Found;

/// The report as text.
pub fn render(report: &Report) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write(report, &mut out);
    out
}

/// The answer of a search in a line.
pub(super) fn answer(found: &Found) -> String {
    let limit = found.limit.map(|limit| format!("; above it {}", limit.words())).unwrap_or_default();
    match (found.rate, found.limit) {
        _ if found.interrupted => "interrupted before there was an answer".to_owned(),
        (Some(rate), _) => {
            format!("{rate:.1}/s is the highest rate that meets the objective, and was confirmed{limit}")
        }
        (None, Some(limit)) => {
            format!("no rate was found that meets the objective again when confirmed: {}", limit.words())
        }
        (None, None) => "no end was found: every rate meets the objective".to_owned(),
    }
}

/// Every rate that was tried, from the lowest on.
fn search(found: &Found, out: &mut String) -> std::fmt::Result {
    writeln!(out, "search     {}", answer(found))?;
    let cells = ["rate", "succeeded", "p50", "p99", "p99.9", "errors"];
    let [rate, done, p50, p99, p999, errors] = cells;
    writeln!(out, "{rate:>12} {done:>12} {p50:>11} {p99:>11} {p999:>11} {errors:>9}  objective")?;
    let mut tries: Vec<_> = found.tries.iter().collect();
    tries.sort_by(|a, b| a.rate.total_cmp(&b.rate));
    for tried in tries {
        let word = match (tried.counted, tried.met) {
            (false, _) => "not judged",
            (true, true) => "met",
            (true, false) => "missed",
        };
        writeln!(
            out,
            "{:>12.1} {:>12.1} {:>11} {:>11} {:>11} {:>8.3}%  {word} ({})",
            tried.rate,
            tried.completed,
            nanoseconds(tried.p50),
            nanoseconds(tried.p99),
            nanoseconds(tried.p999),
            tried.error_share * 100.0,
            tried.verdict.words()
        )?;
    }
    writeln!(out, "\nthe last try:")
}

fn write(report: &Report, out: &mut String) -> std::fmt::Result {
    if let Some(found) = &report.search {
        search(found, out)?;
    }
    let load = &report.load;
    let seconds = load.measured as f64 / 1e9;
    writeln!(
        out,
        "{}  {}{}, {} loop, {seconds:.1} s, {} connections{}, {} threads{}",
        report.target,
        load.protocol,
        if load.tls { " over TLS" } else { "" },
        load.model,
        load.connections,
        if load.streams > 1 { format!(" of {} streams", load.streams) } else { String::new() },
        load.threads,
        if load.spin { ", spinning" } else { "" }
    )?;
    writeln!(out, "verdict    {}", report.verdict.kind.words())?;
    for reason in &report.verdict.reasons {
        writeln!(out, "           - {reason}")?;
    }
    for judged in &report.objective {
        let word = if judged.met { "met   " } else { "MISSED" };
        writeln!(out, "objective  {word} {} (measured {})", judged.limit, judged.measured)?;
    }
    let rates = &report.rates;
    match rates.asked {
        Some(asked) => writeln!(
            out,
            "rate       asked {asked:.1}/s  planned {:.1}/s  sent {:.1}/s  succeeded {:.1}/s",
            rates.planned, rates.sent, rates.completed
        )?,
        None => writeln!(
            out,
            "rate       succeeded {:.1}/s: the target sets the pace, so a stall hides the requests that it kept from being sent",
            rates.completed
        )?,
    }
    let requests = &report.requests;
    writeln!(
        out,
        "requests   {} planned, {} sent, {} succeeded, {} failed, {} never sent ({:.3}% errors)",
        requests.planned,
        requests.sent,
        requests.succeeded,
        requests.failed,
        requests.unsent,
        requests.error_share * 100.0
    )?;
    for error in requests.errors.iter().filter(|error| error.count > 0) {
        writeln!(out, "           {} {}", error.count, error.cause.words())?;
    }
    if requests.blocked > 0 {
        writeln!(out, "           {} found all connections busy", requests.blocked)?;
    }
    if load.connect_rate.is_some() {
        let renewed = requests.renewed as f64 / seconds.max(1e-9);
        writeln!(out, "           {renewed:.1} connections/s opened anew, {} could not be", requests.renewals_failed)?;
    }
    for remote in &report.remote_workers {
        writeln!(
            out,
            "           sent by {}, its clock known to {}",
            remote.address,
            nanoseconds(remote.round_trip / 2)
        )?;
    }
    for target in &report.targets {
        let times = &target.response_time;
        writeln!(
            out,
            "           {}: {} sent, {} succeeded, {} failed, p50 {}  p99 {}",
            target.target,
            target.sent,
            target.succeeded,
            target.failed,
            nanoseconds(times.at(50.0)),
            nanoseconds(times.at(99.0))
        )?;
    }
    writeln!(out, "\n{:<10} {:>11} {:>11} {:>11}", "", "response", "service", "lag")?;
    let columns = [&report.response_time, &report.service_time, &report.schedule_lag];
    let mut row = |name: &str, value: &dyn Fn(&Distribution) -> u64| {
        let cells = columns.map(|column| nanoseconds(value(column)));
        writeln!(out, "{name:<10} {:>11} {:>11} {:>11}", cells[0], cells[1], cells[2])
    };
    row("mean", &|column| column.mean as u64)?;
    for percentile in PERCENTILES {
        let name = if percentile == 100.0 { "max".to_owned() } else { format!("p{percentile}") };
        row(&name, &|column| column.at(percentile))?;
    }
    writeln!(
        out,
        "response: from the intended send; service: from the write; lag: how late the write was. {}",
        if rates.asked.is_some() {
            "Timeouts count as at least the timeout."
        } else {
            "In closed loop response is service."
        }
    )?;
    writeln!(out)?;
    let Phases { connect, tls, upgrade, first_byte, body } = &report.phases;
    for (name, phase) in
        [("connect", connect), ("TLS", tls), ("upgrade", upgrade), ("first byte", first_byte), ("body", body)]
    {
        if phase.count > 0 {
            writeln!(
                out,
                "{name:<10} p50 {}  p99 {}  max {}",
                nanoseconds(phase.at(50.0)),
                nanoseconds(phase.at(99.0)),
                nanoseconds(phase.max)
            )?;
        }
    }
    for class in &report.classes {
        let times = &class.response_time;
        writeln!(
            out,
            "{:<10} {} replies, p50 {}  p99 {}",
            format!("{}xx", class.class),
            times.count,
            nanoseconds(times.at(50.0)),
            nanoseconds(times.at(99.0))
        )?;
    }
    if rates.asked.is_some() {
        let release = &report.release_error;
        writeln!(
            out,
            "release    p50 {}  p99 {} late, where a connection was free",
            nanoseconds(release.at(50.0)),
            nanoseconds(release.at(99.0))
        )?;
    }
    writeln!(
        out,
        "Little     {:.2} in flight, rate x service time {:.2}",
        report.little.in_flight, report.little.rate_times_service
    )?;
    for (index, worker) in report.workers.iter().enumerate() {
        writeln!(
            out,
            "worker {index}   {:.0}% of a core, {:.0}% of it waiting for the moment of a send",
            worker.cpu * 100.0,
            worker.spun / worker.cpu.max(1e-9) * 100.0
        )?;
    }
    if let Some(usage) = &report.target_usage {
        writeln!(
            out,
            "target     {:.1} us a request ({:.1} of it user), {:.2} cores, {:.1} MB",
            usage.cpu_us_per_request,
            usage.user_us_per_request,
            usage.cores,
            usage.memory_peak as f64 / 1e6
        )?;
    }
    Ok(())
}
