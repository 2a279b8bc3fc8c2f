//! A comparison as a reader sees it.

use std::fmt::Write;

use torus_tune::bench::difference::{Answer, Difference};

use super::Comparison;

/// The whole comparison.
pub(super) fn render(comparison: &Comparison) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write(comparison, &mut out);
    out
}

fn write(comparison: &Comparison, out: &mut String) -> std::fmt::Result {
    let first = comparison.targets.first().map(String::as_str).unwrap_or_default();
    let fit_count = comparison.rounds.len() - comparison.unfit_round_count;
    if comparison.rounds.is_empty() && !comparison.interrupted {
        writeln!(
            out,
            "saved reports, second by second; the runs were not interleaved, so drift of the machine counts as difference"
        )?;
    } else {
        writeln!(out, "{fit_count} valid rounds, {} left out", comparison.unfit_round_count)?;
    }
    if comparison.interrupted {
        writeln!(out, "interrupted: fewer rounds than were asked for")?;
    }
    for against in &comparison.against {
        writeln!(out, "\n{} against {first}; times in us", against.target)?;
        writeln!(
            out,
            "{:<20} {:>10} {:>10} {:>11}  {:<24} answer",
            "figure", "first", "this", "difference", "99% interval"
        )?;
        for Difference { name, without, with, difference, interval: [low, high], answer, .. } in &against.differences {
            let interval = format!("{low:+.1} to {high:+.1}");
            let words = words(*answer);
            writeln!(out, "{name:<20} {without:>10.1} {with:>10.1} {difference:>+11.1}  {interval:<24} {words}")?;
        }
    }
    Ok(())
}

pub(super) fn words(answer: Answer) -> &'static str {
    match answer {
        Answer::Better => "lower",
        Answer::Worse => "higher",
        Answer::NoneShown => "no difference shown",
        Answer::CannotTell => "cannot tell: too few rounds were valid",
    }
}
