//! Text of scalars to numbers, durations, times and bytes, as ProtoJSON and Envoy's YAML loader spell them.

/// Whether a plain YAML scalar is a bool for Envoy, whose YAML library still has the words of YAML 1.1.
pub(crate) fn yaml_bool(text: &str) -> Option<bool> {
    Some(match text {
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" | "y" | "Y" => true,
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" | "n" | "N" => false,
        _ => return None,
    })
}

/// A whole number: decimal, `0x` hexadecimal, octal with a leading `0` or `0o` (as `mode: 0644`), or a float without a fraction.
pub(crate) fn integer(text: &str) -> Option<i128> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (radix, digits) = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => (16, digits.get(2..)?),
        [b'0', b'o', ..] => (8, digits.get(2..)?),
        [b'0', _, ..] if digits.bytes().all(|digit| digit.is_ascii_digit()) => (8, digits.get(1..)?),
        _ => (10, digits),
    };
    if !digits.starts_with(|digit: char| digit.is_ascii_alphanumeric()) {
        return None;
    }
    if let Ok(value) = i128::from_str_radix(digits, radix) {
        return Some(if negative { -value } else { value });
    }
    let value = float(text).filter(|value| value.fract() == 0.0 && value.abs() < 1e19)?;
    (radix == 10).then_some(value as i128)
}

/// A number with a fraction, or one of ProtoJSON's words for what is none.
pub(crate) fn float(text: &str) -> Option<f64> {
    match text {
        "NaN" | ".nan" | ".NaN" | ".NAN" => Some(f64::NAN),
        "Infinity" | ".inf" | "+.inf" => Some(f64::INFINITY),
        "-Infinity" | "-.inf" => Some(f64::NEG_INFINITY),
        // Rust would also read words like `inf`.
        _ if text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'.' | b'+' | b'-' | b'e' | b'E')) => {
            text.parse().ok().filter(|value: &f64| value.is_finite())
        }
        _ => None,
    }
}

/// Seconds and nanoseconds of `1.5s`. Source: google/protobuf/duration.proto.
pub(crate) fn duration(text: &str) -> Option<(i64, i32)> {
    let number = text.strip_suffix('s')?;
    let (negative, number) = match number.strip_prefix('-') {
        Some(number) => (true, number),
        None => (false, number),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let seconds: i64 = digits(whole)?.try_into().ok().filter(|seconds| *seconds <= DURATION_SECONDS_MAX)?;
    let nanos = nanoseconds(fraction)?;
    Some(if negative { (-seconds, -nanos) } else { (seconds, nanos) })
}

/// Seconds since 1970 and nanoseconds of an RFC 3339 time, for instance `2026-11-23T18:00:00Z`.
pub(crate) fn timestamp(text: &str) -> Option<(i64, i32)> {
    let (date, rest) = text.split_once(['T', 't'])?;
    let zone_at = rest.find(['Z', 'z', '+', '-'])?;
    let (clock, zone) = (rest.get(..zone_at)?, rest.get(zone_at..)?);
    let mut date = date.splitn(3, '-').map(digits);
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    let mut clock = clock.splitn(3, ':').map(digits);
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    let valid = (1..=9999).contains(&year)
        && (1..=12).contains(&month)
        && (1..=days_in_month(year, month)).contains(&day)
        && hour < 24
        && minute < 60
        && second < 60;
    let offset = match zone {
        "Z" | "z" => 0,
        _ => {
            let (hours, minutes) = zone.get(1..)?.split_once(':')?;
            let minutes = (digits(hours)? * 60 + digits(minutes)?) as i64;
            if zone.starts_with('-') { -minutes } else { minutes }
        }
    };
    if !valid {
        return None;
    }
    let days = days_since_epoch(year as i64, month as i64, day as i64);
    let seconds = days * 86_400 + (hour * 3600 + minute * 60 + second) as i64 - offset * 60;
    Some((seconds, nanoseconds(fraction)?))
}

/// Base64 with either alphabet, with or without padding (ProtoJSON).
pub(crate) fn base64(text: &str) -> Option<Vec<u8>> {
    let text = text.trim_end_matches('=');
    let mut bytes = Vec::with_capacity(text.len() * 3 / 4);
    let (mut bits, mut count) = (0u32, 0);
    for letter in text.bytes() {
        let value = match letter {
            b'A'..=b'Z' => letter - b'A',
            b'a'..=b'z' => letter - b'a' + 26,
            b'0'..=b'9' => letter - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    (count < 6).then_some(bytes)
}

/// Appends base64 with padding (RFC 4648 §4).
pub(crate) fn write_base64(out: &mut String, bytes: &[u8]) {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for piece in bytes.chunks(3) {
        let byte = |at: usize| u32::from(piece.get(at).copied().unwrap_or_default());
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for position in 0..4 {
            let letter = ALPHABET.get((bits >> (18 - 6 * position) & 63) as usize).copied().unwrap_or(b'=');
            out.push(if position <= piece.len() { char::from(letter) } else { '=' });
        }
    }
}

/// Days from 1970-01-01 to a date of the Gregorian calendar, counted in eras of 400 years that start in March.
pub(crate) fn days_since_epoch(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// Year, month and day, the inverse of [`days_since_epoch`].
pub(crate) fn date(days_since_epoch: i64) -> (i64, i64, i64) {
    let days = days_since_epoch + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

fn days_in_month(year: u64, month: u64) -> u64 {
    match month {
        2 if year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

fn digits(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

fn nanoseconds(fraction: &str) -> Option<i32> {
    let value = digits(fraction)?;
    let missing = 9usize.checked_sub(fraction.len())?;
    i32::try_from(value * 10u64.pow(missing as u32)).ok()
}

/// 10,000 years; google/protobuf/duration.proto.
const DURATION_SECONDS_MAX: i64 = 315_576_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_envoy_reads_them() {
        let check = |text, expected| assert_eq!(integer(text), expected, "{text}");
        check("0", Some(0));
        check("-17", Some(-17));
        check("0644", Some(0o644));
        check("0o644", Some(0o644));
        check("0x1F", Some(31));
        check("1e3", Some(1000));
        check("1.0", Some(1));
        check("18446744073709551615", Some(u64::MAX.into()));
        check("1.5", None);
        check("089", None);
        check("", None);
        check("-", None);
        check("--1", None);
        check("+-1", None);
        check("0x-1", None);
        check("ten", None);
    }

    #[test]
    fn durations_have_a_unit() {
        let check = |text, expected| assert_eq!(duration(text), expected, "{text}");
        check("0.25s", Some((0, 250_000_000)));
        check("5s", Some((5, 0)));
        check("-1.5s", Some((-1, -500_000_000)));
        check("0.000000001s", Some((0, 1)));
        check("1.0000000001s", None);
        check("5", None);
        check("5ms", None);
        check("s", None);
        check(".5s", None);
        check("315576000001s", None);
    }

    #[test]
    fn times_follow_rfc_3339() {
        let check = |text, expected| assert_eq!(timestamp(text), expected, "{text}");
        check("1970-01-01T00:00:00Z", Some((0, 0)));
        check("2026-11-23T18:00:00.5+01:00", Some((1_795_453_200, 500_000_000)));
        check("2000-02-29T00:00:00Z", Some((951_782_400, 0)));
        check("1900-02-29T00:00:00Z", None);
        check("2026-11-23", None);
        for days in [-719_162, -1, 0, 59, 11_016, 20_780] {
            let (year, month, day) = date(days);
            assert_eq!(days_since_epoch(year, month, day), days);
        }
    }

    #[test]
    fn base64_round_trips() {
        for bytes in [&b""[..], b"a", b"ab", b"abc", b"\xff\xfe\xfd\xfc"] {
            let mut text = String::new();
            write_base64(&mut text, bytes);
            assert_eq!(base64(&text).as_deref(), Some(bytes), "{text}");
            assert_eq!(base64(text.trim_end_matches('=')).as_deref(), Some(bytes), "{text}");
        }
        assert_eq!(base64("_-8"), Some(vec![0xff, 0xef]));
        assert_eq!(base64("a"), None);
        assert_eq!(base64("a b"), None);
    }
}
