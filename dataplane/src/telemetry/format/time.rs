//! Times in access logs: `strftime` with Envoy's additions.
//!
//! Source: Envoy, "START_TIME"; C strftime(3); Abseil `FormatTime` for `%E`. UTC only.

use std::io::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

/// A compiled time format.
#[derive(Debug)]
pub(super) struct TimeFormat(Box<[Part]>);

#[derive(Debug)]
enum Part {
    Text(Box<str>),
    /// A letter of strftime.
    Field(char),
    /// Whole seconds since 1970.
    EpochSeconds,
    /// So many digits of the fraction of the second.
    Fraction(usize),
    /// Seconds and so many digits of their fraction; `None` is as many as there are.
    Seconds(Option<usize>),
    /// The fraction without its trailing zeros.
    ShortestFraction,
    /// `+00:00`
    Offset(&'static str),
}

/// `%START_TIME%` without a format.
pub(super) const DEFAULT: &str = "%Y-%m-%dT%H:%M:%E3SZ";

/// `%START_TIME_LOCAL%` without a format.
pub(super) const DEFAULT_LOCAL: &str = "%Y-%m-%dT%H:%M:%E3S%z";

impl TimeFormat {
    /// Compiles `format`; what is no conversion stands for itself.
    pub(super) fn new(format: &str) -> Self {
        let mut parts = Vec::new();
        let mut text = String::new();
        let mut rest = format;
        while let Some(at) = rest.find('%') {
            let (before, conversion) = rest.split_at(at);
            text.push_str(before);
            match conversion_at(conversion) {
                Some((part, len)) => {
                    if !text.is_empty() {
                        parts.push(Part::Text(std::mem::take(&mut text).into()));
                    }
                    parts.push(part);
                    rest = conversion.get(len..).unwrap_or_default();
                }
                None => {
                    text.push('%');
                    rest = conversion.get(1..).unwrap_or_default();
                }
            }
        }
        text.push_str(rest);
        if !text.is_empty() {
            parts.push(Part::Text(text.into()));
        }
        Self(parts.into())
    }

    /// Adds `time` to `out`.
    pub(super) fn write(&self, time: SystemTime, out: &mut Vec<u8>) {
        let civil = Civil::new(time);
        for part in &self.0 {
            match part {
                Part::Text(text) => out.extend_from_slice(text.as_bytes()),
                Part::Field(letter) => civil.write_field(*letter, out),
                Part::EpochSeconds => number(out, civil.epoch_seconds, 1),
                Part::Fraction(digits) => civil.write_fraction(*digits, out),
                Part::Seconds(digits) => {
                    number(out, civil.second, 2);
                    match digits {
                        Some(0) => {}
                        Some(digits) => {
                            out.push(b'.');
                            civil.write_fraction(*digits, out);
                        }
                        None if civil.nanosecond == 0 => {}
                        None => {
                            out.push(b'.');
                            civil.write_shortest_fraction(out);
                        }
                    }
                }
                Part::ShortestFraction => civil.write_shortest_fraction(out),
                Part::Offset(text) => out.extend_from_slice(text.as_bytes()),
            }
        }
    }
}

/// The conversion at the start of `text` and how long it is.
fn conversion_at(text: &str) -> Option<(Part, usize)> {
    let mut chars = text.chars().skip(1);
    let next = chars.next()?;
    if next == 'f' {
        return Some((Part::Fraction(9), 2));
    }
    if let Some(digits @ 1..=9) = next.to_digit(10) {
        return (chars.next() == Some('f')).then_some((Part::Fraction(digits as usize), 3));
    }
    match next {
        's' => Some((Part::EpochSeconds, 2)),
        'z' => Some((Part::Offset("+0000"), 2)),
        'Z' => Some((Part::Offset("UTC"), 2)),
        'E' => {
            let third = chars.next()?;
            let fourth = chars.next();
            match (third, fourth) {
                ('z', _) => Some((Part::Offset("+00:00"), 3)),
                ('T', _) => Some((Part::Text("T".into()), 3)),
                ('*', Some('z')) => Some((Part::Offset("+00:00:00"), 4)),
                ('*', Some('S')) => Some((Part::Seconds(None), 4)),
                ('*', Some('f')) => Some((Part::ShortestFraction, 4)),
                ('4', Some('Y')) => Some((Part::Field('Y'), 4)),
                (digit, Some('S')) => Some((Part::Seconds(Some(digit.to_digit(10)? as usize)), 4)),
                (digit, Some('f')) => Some((Part::Fraction(digit.to_digit(10)? as usize), 4)),
                _ => None,
            }
        }
        letter if FIELDS.contains(letter) => Some((Part::Field(letter), 1 + letter.len_utf8())),
        _ => None,
    }
}

/// Letters that [`Civil::write_field`] knows.
const FIELDS: &str = "%aAbBcCdDeFgGhHIjklmMnpPrRStTuUVwWxXyY";

/// A moment as people write it.
struct Civil {
    epoch_seconds: u64,
    nanosecond: u32,
    year: u64,
    month: u64,
    day: u64,
    /// From 1.
    year_day: u64,
    /// 0 is Sunday.
    weekday: u64,
    hour: u64,
    minute: u64,
    second: u64,
}

impl Civil {
    /// Times before 1970 count as 1970.
    fn new(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let epoch_seconds = since.as_secs();
        let days = epoch_seconds / 86_400;
        let second_of_day = epoch_seconds % 86_400;
        // Gregorian calendar in eras of 400 years that begin on 1 March 0000, so that a leap day ends its year.
        let shifted = days + 719_468;
        let era = shifted / 146_097;
        let era_day = shifted % 146_097;
        let era_year = (era_day - era_day / 1_460 + era_day / 36_524 - era_day / 146_096) / 365;
        let march_day = era_day - (365 * era_year + era_year / 4 - era_year / 100);
        let march_month = (5 * march_day + 2) / 153;
        let day = march_day - (153 * march_month + 2) / 5 + 1;
        let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
        let year = era * 400 + era_year + u64::from(month <= 2);
        let leap = is_leap(year);
        let days_before = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
        let before = usize::try_from(month - 1).ok().and_then(|index| days_before.get(index)).copied().unwrap_or(0);
        Self {
            epoch_seconds,
            nanosecond: since.subsec_nanos(),
            year,
            month,
            day,
            year_day: before + day + u64::from(leap && month > 2),
            weekday: (days + 4) % 7,
            hour: second_of_day / 3_600,
            minute: second_of_day / 60 % 60,
            second: second_of_day % 60,
        }
    }

    fn write_fraction(&self, digits: usize, out: &mut Vec<u8>) {
        let start = out.len();
        number(out, u64::from(self.nanosecond), 9);
        out.truncate(start + digits.min(9));
    }

    fn write_shortest_fraction(&self, out: &mut Vec<u8>) {
        let start = out.len();
        self.write_fraction(9, out);
        while out.len() > start + 1 && out.last() == Some(&b'0') {
            out.pop();
        }
    }

    fn write_field(&self, letter: char, out: &mut Vec<u8>) {
        let name = |names: &[&'static str], index: u64| -> &'static str {
            usize::try_from(index).ok().and_then(|index| names.get(index).copied()).unwrap_or("")
        };
        let text = |out: &mut Vec<u8>, text: &str| out.extend_from_slice(text.as_bytes());
        let each = |out: &mut Vec<u8>, letters: &str, separators: &str| {
            let mut separators = separators.chars();
            for letter in letters.chars() {
                self.write_field(letter, out);
                if let Some(separator) = separators.next() {
                    out.push(separator as u8);
                }
            }
        };
        let hour_12 = (self.hour + 11) % 12 + 1;
        let (iso_year, iso_week) = self.iso_week();
        match letter {
            '%' => out.push(b'%'),
            'a' => text(out, name(&WEEKDAYS, self.weekday).get(..3).unwrap_or_default()),
            'A' => text(out, name(&WEEKDAYS, self.weekday)),
            'b' | 'h' => text(out, name(&MONTHS, self.month - 1).get(..3).unwrap_or_default()),
            'B' => text(out, name(&MONTHS, self.month - 1)),
            'c' => each(out, "abeTY", "    "),
            'C' => number(out, self.year / 100, 2),
            'd' => number(out, self.day, 2),
            'D' | 'x' => each(out, "mdy", "//"),
            'e' => padded(out, self.day),
            'F' => each(out, "Ymd", "--"),
            'g' => number(out, iso_year % 100, 2),
            'G' => number(out, iso_year, 1),
            'H' => number(out, self.hour, 2),
            'I' => number(out, hour_12, 2),
            'j' => number(out, self.year_day, 3),
            'k' => padded(out, self.hour),
            'l' => padded(out, hour_12),
            'm' => number(out, self.month, 2),
            'M' => number(out, self.minute, 2),
            'n' => out.push(b'\n'),
            'p' => text(out, if self.hour < 12 { "AM" } else { "PM" }),
            'P' => text(out, if self.hour < 12 { "am" } else { "pm" }),
            'r' => each(out, "IMSp", ":: "),
            'R' => each(out, "HM", ":"),
            'S' => number(out, self.second, 2),
            't' => out.push(b'\t'),
            'T' | 'X' => each(out, "HMS", "::"),
            'u' => number(out, if self.weekday == 0 { 7 } else { self.weekday }, 1),
            'U' => number(out, (self.year_day + 6 - self.weekday) / 7, 2),
            'V' => number(out, iso_week, 2),
            'w' => number(out, self.weekday, 1),
            'W' => number(out, (self.year_day + 6 - (self.weekday + 6) % 7) / 7, 2),
            'y' => number(out, self.year % 100, 2),
            'Y' => number(out, self.year, 1),
            _ => {}
        }
    }

    /// The ISO 8601 year and week: the year that the week's Thursday lies in.
    fn iso_week(&self) -> (u64, u64) {
        let days_in = |year: u64| if is_leap(year) { 366 } else { 365 };
        // Monday is 0; the year day of this week's Thursday, from 1 unless it lies in the year before.
        let monday_based = (self.weekday + 6) % 7;
        let thursday = (self.year_day + 3).checked_sub(monday_based).filter(|day| *day > 0);
        match thursday {
            None => (self.year - 1, (self.year_day + 3 + days_in(self.year - 1) - monday_based - 1) / 7 + 1),
            Some(day) if day > days_in(self.year) => (self.year + 1, 1),
            Some(day) => (self.year, (day - 1) / 7 + 1),
        }
    }
}

fn is_leap(year: u64) -> bool {
    (year.is_multiple_of(4) && !year.is_multiple_of(100)) || year.is_multiple_of(400)
}

fn number(out: &mut Vec<u8>, value: u64, digits: usize) {
    // Writing to a Vec cannot fail.
    let _ = write!(out, "{value:0digits$}");
}

fn padded(out: &mut Vec<u8>, value: u64) {
    let _ = write!(out, "{value:2}");
}

const WEEKDAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn shown(format: &str, since_epoch: Duration) -> String {
        let mut out = Vec::new();
        TimeFormat::new(format).write(UNIX_EPOCH + since_epoch, &mut out);
        String::from_utf8(out).unwrap()
    }

    /// Recorded from Envoy 1.40.
    #[test]
    fn times_read_as_in_envoy() {
        let check = |format: &str, expect: &str| {
            assert_eq!(shown(format, Duration::from_nanos(1_795_458_184_427_122_000)), expect, "{format}")
        };
        check(DEFAULT, "2026-11-23T18:23:04.427Z");
        check(DEFAULT_LOCAL, "2026-11-23T18:23:04.427+0000");
        check("%Y %m %d %H %M %S %E3S %E*S %E2f", "2026 11 23 18 23 04 04.427 04.427122 42");
        check("%j %e %y %a %A %b %B %p %I %Z %z %Ez", "327 23 26 Mon Monday Nov November PM 06 UTC +0000 +00:00");
        check("%s %3f %6f %9f %1f %f", "1795458184 427 427122 427122000 4 427122000");
        check("%t|%%|%D|%F|%T|%R", "\t|%|11/23/26|2026-11-23|18:23:04|18:23");
        check("%c|%x|%X", "Mon Nov 23 18:23:04 2026|11/23/26|18:23:04");
        check("%u %w %U %W %V %G %g %C %h", "1 1 47 47 48 2026 26 20 Nov");
        check("%k|%l|%r|%P|%E4Y|%ET", "18| 6|06:23:04 PM|pm|2026|T");
        check("%0f|%2f|%E4|%q", "%0f|42|%E4|%q");
        check("100%", "100%");
    }

    #[test]
    fn the_calendar_is_right_at_its_edges() {
        let check = |seconds: u64, expect: &str| {
            assert_eq!(shown("%F %j %a %G-W%V", Duration::from_secs(seconds)), expect, "{seconds}");
        };
        check(0, "1970-01-01 001 Thu 1970-W01");
        check(951_782_400, "2000-02-29 060 Tue 2000-W09");
        check(978_220_800, "2000-12-31 366 Sun 2000-W52");
        check(1_104_537_600, "2005-01-01 001 Sat 2004-W53");
        check(1_230_681_600, "2008-12-31 366 Wed 2009-W01");
        check(4_107_542_400, "2100-03-01 060 Mon 2100-W09");
        check(253_402_214_400, "9999-12-31 365 Fri 9999-W52");
    }
}
