//! Durations and rates as a user writes them: `1.5ms`, `10s`, `2.5k`.

use std::time::Duration;

/// Longest duration that is taken, 30 days.
pub const DURATION_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// Highest rate that is taken, a second.
const RATE_MAX: f64 = 1e8;

/// Why a text is no quantity; it ends with an example.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadQuantity {
    #[error("`{0}` is no duration; try: 250us, 1.5ms, 10s, 2m")]
    Duration(String),
    #[error("`{0}` is longer than 30 days")]
    TooLong(String),
    #[error("`{0}` is no rate; try: 500, 2.5k, 1M (a second)")]
    Rate(String),
    #[error("`{0}` is no weight; try: 1, 2.5")]
    Weight(String),
    #[error("`{0}` is no rate between 0.001 and 100M a second")]
    RateOutOfRange(String),
}

/// The duration that `text` says: a number and one of ns, us, ms, s, m, h.
pub fn duration(text: &str) -> Result<Duration, BadQuantity> {
    let bad = || BadQuantity::Duration(text.to_owned());
    let unit_at = text.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(bad)?;
    let (number, unit) = text.split_at(unit_at);
    let scale = match unit {
        "ns" => 1e-9,
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(bad()),
    };
    let seconds = plain_number(number).ok_or_else(bad)? * scale;
    if seconds > DURATION_MAX.as_secs_f64() {
        return Err(BadQuantity::TooLong(text.to_owned()));
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| bad())
}

/// The rate a second that `text` says: a number, and `k` or `M` where wanted; `/s` may follow.
pub fn rate(text: &str) -> Result<f64, BadQuantity> {
    let bad = || BadQuantity::Rate(text.to_owned());
    let number = text.strip_suffix("/s").unwrap_or(text);
    let (number, scale) = match (number.strip_suffix('k'), number.strip_suffix('M')) {
        (Some(number), _) => (number, 1e3),
        (_, Some(number)) => (number, 1e6),
        _ => (number, 1.0),
    };
    let rate = plain_number(number).ok_or_else(bad)? * scale;
    if (1e-3..=RATE_MAX).contains(&rate) { Ok(rate) } else { Err(BadQuantity::RateOutOfRange(text.to_owned())) }
}

/// Digits with at most one point; no sign, no exponent, no `inf`.
fn plain_number(text: &str) -> Option<f64> {
    let plain = text.len() <= 20 && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    if plain { text.parse().ok() } else { None }
}

/// The share that `text` says: a number above zero.
pub fn weight(text: &str) -> Result<f64, BadQuantity> {
    let number = plain_number(text).filter(|number| (1e-6..=1e6).contains(number));
    number.ok_or_else(|| BadQuantity::Weight(text.to_owned()))
}

/// `nanoseconds` in the unit that reads best, with three digits.
pub fn nanoseconds(nanoseconds: u64) -> String {
    let value = nanoseconds as f64;
    let (value, unit) = match nanoseconds {
        0..1_000 => return format!("{nanoseconds} ns"),
        1_000..1_000_000 => (value / 1e3, "us"),
        1_000_000..1_000_000_000 => (value / 1e6, "ms"),
        _ => (value / 1e9, "s"),
    };
    let decimals = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.decimals$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, nanos) in [
            ("250us", Some(250_000)),
            ("1.5ms", Some(1_500_000)),
            ("10s", Some(10_000_000_000)),
            ("2m", Some(120_000_000_000)),
            ("10", None),
            ("-1s", None),
            ("1e3s", None),
            ("s", None),
            ("31000h", None),
        ] {
            assert_eq!(duration(text).ok().map(|d| d.as_nanos()), nanos, "{text}");
        }
    }

    #[test]
    fn rates() {
        for (text, expected) in [
            ("500", Some(500.0)),
            ("2.5k", Some(2500.0)),
            ("1M/s", Some(1e6)),
            ("0", None),
            ("inf", None),
            ("-1", None),
            ("1e9", None),
            ("200M", None),
        ] {
            assert_eq!(rate(text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn readable() {
        assert_eq!(nanoseconds(999), "999 ns");
        assert_eq!(nanoseconds(1_234), "1.23 us");
        assert_eq!(nanoseconds(45_600_000), "45.6 ms");
        assert_eq!(nanoseconds(200_000_000), "200 ms");
    }
}
