//! The run as it goes, on a terminal: rates, response times, lag and errors, drawn once a second.

use std::io::{Stderr, stderr};

use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::{Hide, Show};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{Clear, ClearType, EnterAlternateScreen, LeaveAlternateScreen, size};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::symbols::Marker;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Axis, Block, Chart, Dataset, Gauge, GraphType, Paragraph};
use ratatui::{Frame, Terminal, TerminalOptions, Viewport};

use super::execute::Point;
use crate::quantity::nanoseconds;
use crate::record::{Cause, Counts};

/// Where the load comes from and how far it has come.
#[derive(Clone, Debug, Default)]
pub(crate) struct Heading {
    /// Target and protocol.
    pub(crate) title: String,
    /// In nanoseconds.
    pub(crate) measured_from: u64,
    pub(crate) end: u64,
}

/// A terminal that is given back with this value.
///
/// It is written to and asked for its size alone: a question that it answers as if it were typed would stop a process in the background.
pub(crate) struct Live {
    terminal: Terminal<CrosstermBackend<Stderr>>,
    size: (u16, u16),
}

impl Live {
    /// None where there is no terminal to draw on.
    pub(crate) fn start() -> Option<Live> {
        let size = size().ok()?;
        let terminal = terminal(size)?;
        execute!(stderr(), EnterAlternateScreen, Hide, Clear(ClearType::All)).ok()?;
        Some(Live { terminal, size })
    }

    pub(crate) fn show(&mut self, heading: &Heading, points: &[Point]) {
        if let Ok(now) = size()
            && now != self.size
            && let Some(terminal) = terminal(now)
        {
            (self.terminal, self.size) = (terminal, now);
            let _ = execute!(stderr(), Clear(ClearType::All));
        }
        // A terminal that is gone shows nothing; the run goes on.
        let _ = self.terminal.draw(|frame| draw(frame, heading, points));
    }
}

fn terminal((width, height): (u16, u16)) -> Option<Terminal<CrosstermBackend<Stderr>>> {
    let viewport = Viewport::Fixed(Rect::new(0, 0, width, height));
    Terminal::with_options(CrosstermBackend::new(stderr()), TerminalOptions { viewport }).ok()
}

impl Drop for Live {
    fn drop(&mut self) {
        let _ = execute!(stderr(), Show, LeaveAlternateScreen);
    }
}

fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}

fn draw(frame: &mut Frame<'_>, heading: &Heading, points: &[Point]) {
    let [top, bar, charts, bottom] =
        Layout::vertical([Constraint::Length(1), Constraint::Length(1), Constraint::Min(8), Constraint::Length(9)])
            .areas(frame.area());
    let [left, right] = Layout::horizontal([Constraint::Percentage(50); 2]).areas(charts);
    let [times, errors] = Layout::horizontal([Constraint::Percentage(50); 2]).areas(bottom);
    let now = points.last().map_or(heading.measured_from, |point| point.to);
    frame.render_widget(Line::from(heading.title.as_str()).bold(), top);
    let share = now as f64 / heading.end.max(1) as f64;
    let label = format!("{:.0} of {:.0} s", seconds(now), seconds(heading.end));
    frame.render_widget(Gauge::default().gauge_style(Color::Blue).ratio(share.clamp(0.0, 1.0)).label(label), bar);
    rates(frame, left, points);
    percentiles(frame, right, points);
    figures(frame, times, points);
    causes(frame, errors, points);
}

type Series = Vec<(f64, f64)>;

/// A value of every point over its middle.
fn series(points: &[Point], value: impl Fn(&Point) -> f64) -> Series {
    points.iter().map(|point| (seconds(point.from / 2 + point.to / 2), value(point))).collect()
}

fn a_second(point: &Point, count: u64) -> f64 {
    count as f64 / seconds(point.to.saturating_sub(point.from)).max(1e-9)
}

/// Lines over time, from `lowest` up where it is given; `label` says what a height means.
fn chart(
    frame: &mut Frame<'_>,
    area: Rect,
    title: &str,
    lines: &[(&str, Color, Series)],
    lowest: Option<f64>,
    label: fn(f64) -> String,
) {
    let all = || lines.iter().flat_map(|(_, _, points)| points.iter());
    let (first, last) = all().fold((f64::MAX, 0.0_f64), |(low, high), (x, _)| (low.min(*x), high.max(*x)));
    let (low, high) = all().fold((f64::MAX, f64::MIN), |(low, high), (_, y)| (low.min(*y), high.max(*y)));
    let (first, last) = if first < last { (first, last) } else { (0.0, 1.0) };
    let low = lowest.map_or(low, |lowest| low.min(lowest));
    let (low, high) = if low < high { (low, high) } else { (low.clamp(0.0, 1e18) - 0.5, high.clamp(0.0, 1e18) + 0.5) };
    let datasets = lines.iter().map(|(_, color, points)| {
        let line = Dataset::default().marker(Marker::Braille).graph_type(GraphType::Line);
        line.style(Style::new().fg(*color)).data(points)
    });
    let x = Axis::default().bounds([first, last]).labels([format!("{first:.0} s"), format!("{last:.0} s")]);
    let y = Axis::default().bounds([low, high]).labels([label(low), label(f64::midpoint(low, high)), label(high)]);
    // The names stand in the frame: a legend would hide a part of the lines, or be left out.
    let names = lines.iter().map(|(name, color, _)| Span::styled(format!(" {name}"), Style::new().fg(*color)));
    let title: Line<'_> = std::iter::once(Span::raw(title.to_owned())).chain(names).collect();
    let chart = Chart::new(datasets.collect()).block(Block::bordered().title(title)).x_axis(x).y_axis(y);
    frame.render_widget(chart, area);
}

fn rates(frame: &mut Frame<'_>, area: Rect, points: &[Point]) {
    let lines = [
        ("planned", Color::DarkGray, series(points, |point| a_second(point, point.counts.planned))),
        ("sent", Color::Yellow, series(points, |point| a_second(point, point.counts.sent))),
        ("done", Color::Blue, series(points, |point| a_second(point, point.counts.succeeded))),
    ];
    chart(frame, area, "rates, a second:", &lines, Some(0.0), |rate| format!("{rate:.0}"));
}

fn percentiles(frame: &mut Frame<'_>, area: Rect, points: &[Point]) {
    // Logarithmic: a stall and what is common are both to be seen.
    let height = |value: u64| (value.max(1) as f64).log10();
    let lines = [
        ("p50", Color::Green, series(points, |point| height(point.percentile(50.0)))),
        ("p99", Color::Blue, series(points, |point| height(point.percentile(99.0)))),
        ("max", Color::Red, series(points, |point| height(point.percentile(100.0)))),
    ];
    chart(frame, area, "response time:", &lines, None, |height| nanoseconds(10_f64.powf(height) as u64));
}

fn figures(frame: &mut Frame<'_>, area: Rect, points: &[Point]) {
    let last = points.last().cloned().unwrap_or_default();
    let worst = |value: &dyn Fn(&Point) -> u64| points.iter().map(value).max().unwrap_or_default();
    let row = |name: &str, value: &dyn Fn(&Point) -> u64| {
        Line::from(format!("{name:<8} {:>11} {:>11}", nanoseconds(value(&last)), nanoseconds(worst(value))))
    };
    let lines = vec![
        Line::from(format!("{:<8} {:>11} {:>11}", "", "last second", "worst")).dim(),
        row("p50", &|point| point.percentile(50.0)),
        row("p90", &|point| point.percentile(90.0)),
        row("p99", &|point| point.percentile(99.0)),
        row("p99.9", &|point| point.percentile(99.9)),
        row("max", &|point| point.percentile(100.0)),
        row("lag, max", &|point| point.lag_max),
    ];
    frame.render_widget(Paragraph::new(lines).block(Block::bordered().title("response time and lag")), area);
}

fn causes(frame: &mut Frame<'_>, area: Rect, points: &[Point]) {
    let mut counts = Counts::default();
    points.iter().for_each(|point| counts += &point.counts);
    let mut lines = vec![Line::from(format!("{:>9} succeeded", counts.succeeded)).green()];
    let blocked = [(counts.blocked, "found all connections busy"), (counts.unsent, "were never sent")];
    let causes = Cause::ALL.into_iter().map(|cause| (counts.of(cause), cause.words())).chain(blocked);
    lines.extend(
        causes.filter(|(count, _)| *count > 0).map(|(count, words)| Line::from(format!("{count:>9} {words}")).red()),
    );
    frame.render_widget(Paragraph::new(lines).block(Block::bordered().title("requests")), area);
}

#[cfg(test)]
mod tests {
    use ratatui::backend::TestBackend;

    use super::*;

    fn screen(width: u16, height: u16, points: &[Point]) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        let heading = Heading { title: "http://a/  HTTP/1.1".to_owned(), measured_from: 0, end: 10_000_000_000 };
        terminal.draw(|frame| draw(frame, &heading, points)).unwrap();
        let buffer = terminal.backend().buffer();
        let rows = buffer.content.chunks(usize::from(width));
        rows.map(|row| row.iter().map(ratatui::buffer::Cell::symbol).collect::<String>() + "\n").collect()
    }

    #[test]
    fn everything_is_on_the_screen() {
        let point = |second: u64| {
            let (from, to) = (second * 1_000_000_000, (second + 1) * 1_000_000_000);
            let mut counts = Counts { planned: 1000, sent: 990, succeeded: 980, ..Counts::default() };
            counts.fail(Cause::Timeout);
            let response = [(2_000_000, 900), (40_000_000, 80)].into();
            Point { from, to, counts, response, lag_max: 77_000, ..Point::default() }
        };
        let points: Vec<Point> = (0..4).map(point).collect();
        let text = screen(100, 30, &points);
        for part in [
            "http://a/",
            "4 of 10 s",
            "planned",
            "p99",
            "2.00 ms",
            "40.0 ms",
            "77.0 us",
            "3920 succeeded",
            "4 timed out",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }

    #[test]
    fn no_screen_is_too_small_and_no_run_too_short() {
        for (width, height) in [(1, 1), (20, 5), (80, 24), (300, 100)] {
            screen(width, height, &[]);
            screen(width, height, &[Point::default()]);
        }
    }
}
