//! Plots as inline SVG.

use std::fmt::Write;

use crate::quantity::nanoseconds;
use crate::run::execute::Point;

pub(super) const BLUE: &str = "#1f5fa8";
pub(super) const GREEN: &str = "#1b7f4b";
pub(super) const ORANGE: &str = "#c2571a";
pub(super) const GREY: &str = "#8a939e";

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 15.0;
const TOP: f64 = 25.0;
const BOTTOM: f64 = 30.0;
/// Rows of the heat map for each factor of ten.
const ROWS_PER_DECADE: f64 = 12.0;

/// A named line of a plot.
pub(super) struct Line {
    pub(super) name: &'static str,
    pub(super) color: &'static str,
    pub(super) points: Vec<(f64, f64)>,
}

/// A frame with its axes: places a value inside it.
struct Frame {
    x: (f64, f64),
    y: (f64, f64),
    out: String,
}

impl Frame {
    fn new(x: (f64, f64), y: (f64, f64)) -> Frame {
        let out = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-size=\"12\" fill=\"#4a525c\" role=\"img\">");
        let wide = |(low, high): (f64, f64)| (low, if high > low { high } else { low + 1.0 });
        Frame { x: wide(x), y: wide(y), out }
    }

    fn place_x(&self, x: f64) -> f64 {
        LEFT + (x - self.x.0) / (self.x.1 - self.x.0) * (WIDTH - LEFT - RIGHT)
    }

    fn place_y(&self, y: f64) -> f64 {
        HEIGHT - BOTTOM - (y - self.y.0) / (self.y.1 - self.y.0) * (HEIGHT - TOP - BOTTOM)
    }

    fn mark_x(&mut self, x: f64, label: &str) {
        let (at, bottom, below) = (self.place_x(x), HEIGHT - BOTTOM, HEIGHT - BOTTOM + 17.0);
        let _ = write!(
            self.out,
            "<path d=\"M{at:.1} {TOP}V{bottom}\" stroke=\"#e3e7eb\"/><text x=\"{at:.1}\" y=\"{below}\" text-anchor=\"middle\">{label}</text>"
        );
    }

    fn mark_y(&mut self, y: f64, label: &str) {
        let (at, right, left, middle) = (self.place_y(y), WIDTH - RIGHT, LEFT - 8.0, self.place_y(y) + 4.0);
        let _ = write!(
            self.out,
            "<path d=\"M{LEFT} {at:.1}H{right}\" stroke=\"#e3e7eb\"/><text x=\"{left}\" y=\"{middle:.1}\" text-anchor=\"end\">{label}</text>"
        );
    }

    /// Marks for times on a logarithmic axis, `self.y` being exponents of ten.
    fn mark_times(&mut self) {
        for exponent in self.y.0.ceil() as i32..=self.y.1.floor() as i32 {
            self.mark_y(f64::from(exponent), &decade(exponent));
        }
    }

    /// Marks at round numbers.
    fn mark_round(&mut self, vertical: bool, unit: &str) {
        let (low, high) = if vertical { self.y } else { self.x };
        let rough = (high - low) / 6.0;
        let decade = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|factor| factor * decade).find(|step| *step >= rough);
        let step = step.unwrap_or(rough);
        let mut at = (low / step).ceil() * step;
        while at <= high + step * 1e-6 {
            let decimals = usize::from(step < 1.0) + usize::from(step < 0.1);
            if vertical {
                self.mark_y(at, &format!("{at:.decimals$}{unit}"));
            } else {
                self.mark_x(at, &format!("{at:.decimals$}{unit}"));
            }
            at += step;
        }
    }

    fn lines(&mut self, lines: &[Line]) {
        let mut name_at = LEFT;
        for line in lines {
            let mut path = String::new();
            for (x, y) in &line.points {
                let command = if path.is_empty() { 'M' } else { 'L' };
                let _ = write!(path, "{command}{:.1} {:.1}", self.place_x(*x), self.place_y(*y));
            }
            if let [(x, y)] = line.points.as_slice() {
                let (x, y) = (self.place_x(*x), self.place_y(*y));
                let _ = write!(self.out, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{}\"/>", line.color);
            }
            let _ = write!(
                self.out,
                "<path d=\"{path}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\"/><text x=\"{name_at}\" y=\"14\" fill=\"{}\" font-weight=\"600\">{}</text>",
                line.color, line.color, line.name
            );
            name_at += 90.0;
        }
    }

    fn end(mut self) -> String {
        self.out.push_str("</svg>");
        self.out
    }
}

/// Times (nanoseconds, logarithmic) over percentiles, drawn so that each further nine takes as much room.
pub(super) fn percentiles(lines: &[Line]) -> String {
    let nines = |percentile: f64| -(1.0 - percentile / 100.0).max(1e-9).log10();
    let log = |value: f64| value.max(1.0).log10();
    let all = || lines.iter().flat_map(|line| &line.points);
    let x_max = all().map(|(percentile, _)| nines(*percentile)).fold(1.0, f64::max);
    let low = all().map(|(_, value)| log(*value)).fold(f64::MAX, f64::min).min(9.0).floor();
    let high = all().map(|(_, value)| log(*value)).fold(low + 1.0, f64::max);
    let mut frame = Frame::new((0.0, x_max), (low, high.ceil()));
    let labels = ["0", "p90", "p99", "p99.9", "p99.99", "p99.999", "p99.9999"];
    for (index, label) in labels.iter().enumerate().take_while(|(index, _)| *index as f64 <= x_max + 0.01) {
        frame.mark_x(index as f64, label);
    }
    frame.mark_x(nines(50.0), "p50");
    frame.mark_times();
    let scaled = lines.iter().map(|line| Line {
        name: line.name,
        color: line.color,
        points: line.points.iter().map(|(x, y)| (nines(*x), log(*y))).collect(),
    });
    let scaled: Vec<Line> = scaled.collect();
    frame.lines(&scaled);
    frame.end()
}

/// Times (nanoseconds, logarithmic) over rates a second.
pub(super) fn times_by_rate(lines: &[Line]) -> String {
    let log = |value: f64| value.max(1.0).log10();
    let all = || lines.iter().flat_map(|line| &line.points);
    let x_max = all().map(|(rate, _)| *rate).fold(1.0, f64::max);
    let low = all().map(|(_, value)| log(*value)).fold(f64::MAX, f64::min).min(9.0).floor();
    let high = all().map(|(_, value)| log(*value)).fold(low + 1.0, f64::max);
    let mut frame = Frame::new((0.0, x_max), (low, high.ceil()));
    frame.mark_round(false, "/s");
    frame.mark_times();
    let scaled = lines.iter().map(|line| Line {
        name: line.name,
        color: line.color,
        points: line.points.iter().map(|(x, y)| (*x, log(*y))).collect(),
    });
    let scaled: Vec<Line> = scaled.collect();
    frame.lines(&scaled);
    frame.end()
}

/// Values over seconds.
pub(super) fn lines(lines: &[Line]) -> String {
    let all = || lines.iter().flat_map(|line| &line.points);
    let first = all().map(|(x, _)| *x).fold(f64::MAX, f64::min);
    let last = all().map(|(x, _)| *x).fold(0.0, f64::max);
    let high = all().map(|(_, y)| *y).fold(0.0, f64::max);
    let mut frame = Frame::new((first.min(last), last), (0.0, high * 1.05));
    frame.mark_round(false, " s");
    frame.mark_round(true, "");
    frame.lines(lines);
    frame.end()
}

/// How many responses took how long, over time: the darker the more.
pub(super) fn heat(points: &[Point]) -> String {
    let row = |value: u64| (value.max(1) as f64).log10() * ROWS_PER_DECADE;
    let values = || points.iter().flat_map(|point| point.response.keys().copied());
    let low = (row(values().min().unwrap_or(1)) / ROWS_PER_DECADE).floor();
    let high = (row(values().max().unwrap_or(1)) / ROWS_PER_DECADE).ceil();
    let from = points.first().map_or(0, |point| point.from) as f64 / 1e9;
    let to = points.last().map_or(1, |point| point.to) as f64 / 1e9;
    let mut frame = Frame::new((from, to), (low, high));
    frame.mark_round(false, " s");
    frame.mark_times();
    for point in points {
        let mut rows = std::collections::BTreeMap::<i64, u64>::new();
        for (value, count) in &point.response {
            *rows.entry(row(*value).floor() as i64).or_default() += count;
        }
        let total: u64 = rows.values().sum();
        let left = frame.place_x(point.from as f64 / 1e9);
        let width = frame.place_x(point.to as f64 / 1e9) - left;
        for (row, count) in rows {
            let bottom = frame.place_y(row as f64 / ROWS_PER_DECADE);
            let top = frame.place_y((row + 1) as f64 / ROWS_PER_DECADE);
            // Logarithmic, so that one in a thousand is still seen.
            let share = count as f64 / total.max(1) as f64;
            let shade = (1.0 + share.log10() / 5.0).clamp(0.08, 1.0);
            let _ = write!(
                frame.out,
                "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{BLUE}\" fill-opacity=\"{shade:.2}\"/>",
                width.max(1.0),
                bottom - top
            );
        }
    }
    frame.end()
}

/// Ten to the power of `exponent` nanoseconds, in words.
fn decade(exponent: i32) -> String {
    let value = 10_u64.saturating_pow(u32::try_from(exponent).unwrap_or_default());
    nanoseconds(value).replace(".00", "").replace(".0", "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decades_are_named() {
        let names: Vec<_> = (2..10).map(decade).collect();
        assert_eq!(names, ["100 ns", "1 us", "10 us", "100 us", "1 ms", "10 ms", "100 ms", "1 s"]);
    }

    #[test]
    fn empty_plots_are_drawn() {
        assert!(percentiles(&[]).ends_with("</svg>"));
        assert!(times_by_rate(&[]).ends_with("</svg>"));
        assert!(lines(&[]).ends_with("</svg>"));
        assert!(heat(&[Point::default()]).ends_with("</svg>"));
    }
}
