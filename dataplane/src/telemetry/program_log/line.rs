//! One line of the program's log. Source: spdlog's pattern flags, as `--log-format` uses them.

use std::fmt::Write;
use std::time::{Duration, SystemTime};

use super::Level;

/// A compiled pattern.
#[derive(Debug)]
pub(super) struct LineFormat {
    parts: Vec<Part>,
}

/// What a line tells.
pub(super) struct Record<'a> {
    pub(super) time: SystemTime,
    pub(super) level: Level,
    pub(super) logger: &'a str,
    pub(super) file: &'a str,
    pub(super) line: u32,
    pub(super) message: &'a str,
}

#[derive(Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Flag(char),
}

impl LineFormat {
    /// Compiles a pattern; an unknown flag stays as it is.
    pub(super) fn parse(pattern: &str) -> Self {
        let mut parts = Vec::new();
        let mut text = String::new();
        let mut characters = pattern.chars();
        while let Some(character) = characters.next() {
            match (character, characters.clone().next()) {
                ('%', Some('%')) => {
                    characters.next();
                    text.push('%');
                }
                ('%', Some(flag)) if FLAGS.contains(flag) => {
                    characters.next();
                    if !text.is_empty() {
                        parts.push(Part::Text(std::mem::take(&mut text)));
                    }
                    parts.push(Part::Flag(flag));
                }
                (other, _) => text.push(other),
            }
        }
        if !text.is_empty() {
            parts.push(Part::Text(text));
        }
        Self { parts }
    }

    /// The line, without its end.
    pub(super) fn line(&self, record: &Record<'_>) -> String {
        let since_epoch = record.time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let mut line = String::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => line.push_str(text),
                Part::Flag(flag) => write_flag(*flag, record, since_epoch, &mut line),
            }
        }
        line
    }
}

fn write_flag(flag: char, record: &Record<'_>, since_epoch: Duration, line: &mut String) {
    let (year, month, day) = civil_date(since_epoch.as_secs() / SECONDS_A_DAY);
    let second_of_day = since_epoch.as_secs() % SECONDS_A_DAY;
    let (hour, minute, second) = (second_of_day / 3600, second_of_day / 60 % 60, second_of_day % 60);
    // Writing to a String cannot fail.
    let _ = match flag {
        'Y' => write!(line, "{year:04}"),
        'm' => write!(line, "{month:02}"),
        'd' => write!(line, "{day:02}"),
        'H' => write!(line, "{hour:02}"),
        'M' => write!(line, "{minute:02}"),
        'S' => write!(line, "{second:02}"),
        'T' => write!(line, "{hour:02}:{minute:02}:{second:02}"),
        'F' => write!(line, "{:09}", since_epoch.subsec_nanos()),
        'e' => write!(line, "{:03}", since_epoch.subsec_millis()),
        'f' => write!(line, "{:06}", since_epoch.subsec_micros()),
        'E' => write!(line, "{}", since_epoch.as_secs()),
        'z' => write!(line, "+00:00"),
        't' => write!(line, "{}", std::thread::current().name().unwrap_or("?")),
        'P' => write!(line, "{}", std::process::id()),
        'l' => write!(line, "{}", record.level.name()),
        'L' => write!(line, "{}", record.level.name().chars().next().unwrap_or('?').to_ascii_uppercase()),
        'n' => write!(line, "{}", record.logger),
        'g' => write!(line, "{}", record.file),
        's' => write!(line, "{}", record.file.rsplit('/').next().unwrap_or_default()),
        '#' => write!(line, "{}", record.line),
        '@' => write!(line, "{}:{}", record.file, record.line),
        'v' => write!(line, "{}", record.message),
        // Source: Envoy, message with escaped newlines.
        '_' => write!(line, "{}", record.message.replace('\n', "\\n")),
        // Source: Envoy, message as the inside of a JSON string.
        'j' => {
            let quoted = serde_json::to_string(record.message).unwrap_or_default();
            write!(line, "{}", quoted.get(1..quoted.len().saturating_sub(1)).unwrap_or_default())
        }
        _ => Ok(()),
    };
}

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar.
pub(crate) fn civil_date(day: u64) -> (u64, u64, u64) {
    // Years that begin in March end with the leap day; 400 of them have 146,097 days. 1970-01-01 is day 719,468 since 0000-03-01.
    let day = day + 719_468;
    let (era, day_of_era) = (day / 146_097, day % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day_of_month)
}

const FLAGS: &str = "YmdHMSTFefEztPlLngs#@v_j";
const SECONDS_A_DAY: u64 = 86_400;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_follow_their_pattern() {
        let check = |pattern: &str, expected: &str| {
            let record = Record {
                time: SystemTime::UNIX_EPOCH + Duration::from_micros(1_709_210_096_007_089),
                level: Level::Warning,
                logger: "admin",
                file: "dataplane/src/admin.rs",
                line: 7,
                message: "two\n\"lines\"",
            };
            assert_eq!(LineFormat::parse(pattern).line(&record), expected, "{pattern}");
        };
        check(
            "[%Y-%m-%d %T.%e][%l][%n] [%g:%#]",
            "[2024-02-29 12:34:56.007][warning][admin] [dataplane/src/admin.rs:7]",
        );
        // Istio's pattern.
        check(
            "%Y-%m-%dT%T.%fZ\t%l\tenvoy %n %s:%#\t%_",
            "2024-02-29T12:34:56.007089Z\twarning\tenvoy admin admin.rs:7\ttwo\\n\"lines\"",
        );
        check("%L 100%% %q %", "W 100% %q %");
        check("{\"m\":\"%j\"}", "{\"m\":\"two\\n\\\"lines\\\"\"}");
        check("%H:%M:%S %E", "12:34:56 1709210096");
    }

    #[test]
    fn days_have_dates() {
        let check = |day: u64, date: (u64, u64, u64)| assert_eq!(civil_date(day), date);
        check(0, (1970, 1, 1));
        check(58, (1970, 2, 28));
        check(59, (1970, 3, 1));
        check(10_956, (1999, 12, 31));
        check(11_016, (2000, 2, 29));
        check(47_540, (2100, 2, 28));
        check(47_541, (2100, 3, 1));
    }
}
