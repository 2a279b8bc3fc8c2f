//! A comparison for people and programs.

use std::fmt::Write as _;

use serde::Serialize;

use super::Comparison;
use super::difference::{Answer, Difference};

/// Version of the document; it changes when a field changes its meaning or goes away.
pub const SCHEMA: &str = "torus-tune.bench.v1";

#[derive(Serialize)]
struct Document<'a> {
    schema: &'static str,
    #[serde(flatten)]
    comparison: &'a Comparison,
}

/// One JSON document.
pub fn json(comparison: &Comparison) -> String {
    let document = Document { schema: SCHEMA, comparison };
    // Nothing in it can fail to be JSON.
    serde_json::to_string_pretty(&document).unwrap_or_default() + "\n"
}

/// What was changed, a line for each figure, and the answer.
pub fn text(comparison: &Comparison) -> String {
    let mut out = String::new();
    for written in &comparison.written {
        let _ = writeln!(
            out,
            "changed  {}: {} '{}' -> '{}'",
            written.setting, written.target, written.before, written.after
        );
    }
    let _ = write!(out, "{} rounds of without, with, with, without", comparison.rounds.len());
    if comparison.unfit_round_count > 0 {
        let _ = write!(
            out,
            "; {} left out, where the load generator was the bottleneck (a lower rate, or a quieter machine)",
            comparison.unfit_round_count
        );
    }
    let _ =
        writeln!(out, "\n\n{:<30}{:>12}{:>12}  {:<38}answer", "figure", "without", "with", "difference, 99% interval");
    for row in &comparison.differences {
        let name = format!("{}, {}", row.name, row.unit);
        let [low, high] = row.interval;
        let interval = if row.answer == Answer::CannotTell {
            "-".to_owned()
        } else {
            format!("{:+.1} ({low:+.1} to {high:+.1}){}", row.difference, share(row))
        };
        let _ =
            writeln!(out, "{name:<30}{:>12.1}{:>12.1}  {interval:<38}{}", row.without, row.with, row.answer.words());
    }
    let _ = writeln!(out, "\n{}", conclusion(&comparison.differences));
    out
}

fn share(row: &Difference) -> String {
    if row.without > 0.0 { format!(" {:+.1}%", row.difference / row.without * 100.0) } else { String::new() }
}

fn conclusion(differences: &[Difference]) -> String {
    let of = |wanted: Answer| {
        let names: Vec<&str> = differences.iter().filter(|row| row.answer == wanted).map(|row| row.name).collect();
        (!names.is_empty()).then(|| names.join(", "))
    };
    let told: Vec<String> = [("better", Answer::Better), ("worse", Answer::Worse)]
        .into_iter()
        .filter_map(|(word, answer)| Some(format!("{word}: {}", of(answer)?)))
        .collect();
    if !told.is_empty() {
        return told.join("; ");
    }
    if differences.iter().all(|row| row.answer == Answer::CannotTell) {
        return "cannot tell: too few rounds are worth their figures".to_owned();
    }
    "no effect shown: an effect smaller than the intervals may be there, a larger one is not likely".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::difference::compare;

    #[test]
    fn conclusions() {
        let better = || compare("p50", "us", &[(10.0, 5.0); 8]);
        let worse = || compare("p99", "us", &[(10.0, 15.0); 8]);
        let same = || compare("p99", "us", &[(10.0, 10.0); 8]);
        for (rows, said) in [
            (vec![better(), worse()], "better: p50; worse: p99"),
            (vec![better(), same()], "better: p50"),
            (vec![same()], "no effect shown: "),
            (vec![compare("p50", "us", &[(10.0, 5.0); 7])], "cannot tell: "),
        ] {
            assert!(conclusion(&rows).starts_with(said), "{said}: {}", conclusion(&rows));
        }
    }

    #[test]
    fn text_has_a_line_for_each_figure() {
        let comparison = Comparison {
            written: Vec::new(),
            rounds: Vec::new(),
            unfit_round_count: 2,
            differences: vec![compare("response time p50", "us", &[(10.0, 5.0); 8])],
        };
        let text = text(&comparison);
        assert!(
            text.contains("response time p50, us                 10.0         5.0  -5.0 (-5.0 to -5.0) -50.0%"),
            "{text}"
        );
        assert!(text.contains("; 2 left out, "), "{text}");
    }
}
