//! A comparison as one page that needs nothing else: each difference with its interval as a bar beside zero.

use std::fmt::Write;

use torus_tune::bench::difference::{Answer, Difference};

use super::{Comparison, text};
use crate::report::html::{STYLE, escape};

const WIDTH: f64 = 360.0;
const HEIGHT: f64 = 22.0;

/// The page.
pub(super) fn render(comparison: &Comparison) -> String {
    let mut out = String::new();
    let first = escape(comparison.targets.first().map(String::as_str).unwrap_or_default());
    let _ = write!(
        out,
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>torus-load compare</title><style>{STYLE}svg.bar{{width:{WIDTH}px}}</style><h1>Against {first}</h1>"
    );
    for against in &comparison.against {
        let _ = write!(out, "<h2>{}</h2>", escape(&against.target));
        let ends = against.differences.iter().flat_map(|found| found.interval).filter(|end| end.is_finite());
        let reach = ends.map(f64::abs).fold(1e-9, f64::max);
        out.push_str(
            "<table><tr><th>figure, us</th><th>first</th><th>this</th><th>difference</th><th>99% interval</th><th></th>\
             <th>answer</th></tr>",
        );
        for found in &against.differences {
            row(found, reach, &mut out);
        }
        out.push_str("</table>");
    }
    let _ = writeln!(out, "<h2>All figures</h2><pre>{}</pre></html>", escape(&text::render(comparison)));
    out
}

fn row(found: &Difference, reach: f64, out: &mut String) {
    let Difference { name, without, with, difference, interval: [low, high], answer, .. } = found;
    let color = match answer {
        Answer::Better => "#1b7f4b",
        Answer::Worse => "#b3261e",
        Answer::NoneShown | Answer::CannotTell => "#8a939e",
    };
    let place = |value: f64| WIDTH / 2.0 + (value / reach).clamp(-1.0, 1.0) * (WIDTH / 2.0 - 6.0);
    let (left, right, at) = (place(*low), place(*high), place(*difference));
    let (middle, half) = (WIDTH / 2.0, HEIGHT / 2.0);
    let width = (right - left).max(2.0);
    let bar = if low.is_finite() && high.is_finite() {
        format!(
            "<rect x=\"{left:.1}\" y=\"7\" width=\"{width:.1}\" height=\"8\" fill=\"{color}\" fill-opacity=\".45\"/>"
        )
    } else {
        String::new()
    };
    let _ = write!(
        out,
        "<tr><td>{name}</td><td>{without:.1}</td><td>{with:.1}</td><td>{difference:+.1}</td><td>{low:+.1} to {high:+.1}</td>\
         <td><svg class=\"bar\" viewBox=\"0 0 {WIDTH} {HEIGHT}\"><path d=\"M{middle} 0V{HEIGHT}\" stroke=\"#8a939e\"/>{bar}\
         <circle cx=\"{at:.1}\" cy=\"{half}\" r=\"4\" fill=\"{color}\"/></svg></td><td>{}</td></tr>",
        text::words(*answer)
    );
}
