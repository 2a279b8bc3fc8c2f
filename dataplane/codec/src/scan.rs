//! The scan of a head: where its parts are, and no byte where none may be.
//!
//! Words of eight bytes are tested at once. Everything stops at the first fault; what is not there yet is no fault.

use crate::{HeaderMap, Malformed};

/// What a scan ends with before the end of the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// The head goes on behind the input.
    Partial,
    /// It can become no head.
    Malformed(Malformed),
}

impl From<Malformed> for Stop {
    fn from(fault: Malformed) -> Self {
        Self::Malformed(fault)
    }
}

/// Scans the field lines from `at` on and adds each to `headers`; where the head ends.
///
/// Names are not yet compared with the token alphabet: [`HeaderMap::settle`] does it, where most names are known ones.
pub(crate) fn fields(input: &[u8], mut at: usize, count_max: usize, headers: &mut HeaderMap) -> Result<usize, Stop> {
    let mut count = 0;
    loop {
        match input.get(at) {
            Some(b'\r') => return end_of_line(input, at).map(|()| at + 2),
            Some(b' ' | b'\t') => return Err(Malformed::FieldFolded.into()),
            Some(b'\n') => return Err(Malformed::LineEnd.into()),
            None => return Err(Stop::Partial),
            Some(_) => {}
        }
        let colon = name_end(input, at);
        match input.get(colon) {
            Some(b':') if colon > at => {}
            None => return Err(Stop::Partial),
            Some(_) => return Err(Malformed::FieldName.into()),
        }
        // Nearly always one space follows the colon.
        let start = match input.get(colon + 1..) {
            Some([b' ', b'!'..=b'~', ..]) => colon + 2,
            _ => value_start(input, colon + 1),
        };
        let end = line_end(input, start, Malformed::FieldValue)?;
        let mut value_end = end;
        while value_end > start && is_blank(input.get(value_end - 1)) {
            value_end -= 1;
        }
        if count == count_max {
            return Err(Malformed::TooManyFields.into());
        }
        count += 1;
        let as_written = start == colon + 2 && input.get(colon + 1) == Some(&b' ') && value_end == end && start < end;
        headers.push_scanned(at..colon, start..value_end, as_written);
        at = end + 2;
    }
}

/// Where the value starts whose field's colon is before `at`.
fn value_start(input: &[u8], mut at: usize) -> usize {
    while is_blank(input.get(at)) {
        at += 1;
    }
    at
}

/// Where the text that starts at `start` ends, which is before CR LF; it has no control byte but tab.
#[inline]
pub(crate) fn line_end(input: &[u8], start: usize, fault: Malformed) -> Result<usize, Stop> {
    let mut at = start;
    loop {
        at = value_end(input, at);
        match input.get(at) {
            Some(b'\r') => return end_of_line(input, at).map(|()| at),
            Some(b'\t' | b' '..=b'~' | 0x80..) => at += 1,
            Some(b'\n') => return Err(Malformed::LineEnd.into()),
            None => return Err(Stop::Partial),
            Some(_) => return Err(fault.into()),
        }
    }
}

/// Whether the CR at `at` ends a line.
fn end_of_line(input: &[u8], at: usize) -> Result<(), Stop> {
    match input.get(at + 1) {
        Some(b'\n') => Ok(()),
        None => Err(Stop::Partial),
        Some(_) => Err(Malformed::LineEnd.into()),
    }
}

/// Where the first byte from `at` on is that is a space, a control, not ASCII, or `#`.
pub(crate) fn target_end(input: &[u8], at: usize) -> usize {
    first(input, at, |word| equal(word, b'#') | less_than(word, 0x21) | not_visible(word))
}

/// Where the first byte from `at` on is that is a colon, a space, a control or not ASCII.
#[inline]
fn name_end(input: &[u8], at: usize) -> usize {
    first(input, at, |word| equal(word, b':') | less_than(word, 0x21) | not_visible(word))
}

/// Where the first control from `at` on is, or earlier a `~` after 0xff, which looks like one.
#[inline]
fn value_end(input: &[u8], at: usize) -> usize {
    first(input, at, |word| (word.wrapping_sub(ONES * 0x20) | word.wrapping_add(ONES)) & !word & HIGH)
}

/// Where the first byte from `at` on is that `stops` marks, or the end. The lowest byte that `stops` marks has to be a true one.
#[inline(always)]
fn first(input: &[u8], mut at: usize, stops: impl Fn(u64) -> u64) -> usize {
    for word in input.get(at..).unwrap_or_default().as_chunks::<8>().0 {
        let marks = stops(u64::from_le_bytes(*word));
        if marks != 0 {
            return at + marks.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    // The last bytes, after which only bytes that stop nothing are made up.
    let mut word = [b'a'; 8];
    for (place, byte) in word.iter_mut().zip(input.get(at..).unwrap_or_default()) {
        *place = *byte;
    }
    match stops(u64::from_le_bytes(word)) {
        0 => input.len(),
        marks => at + marks.trailing_zeros() as usize / 8,
    }
}

/// Marks the high bit of the bytes below `limit`, true up to the first; `limit` is at most 0x80.
#[inline(always)]
fn less_than(word: u64, limit: u8) -> u64 {
    word.wrapping_sub(ONES * u64::from(limit)) & !word & HIGH
}

/// Marks the high bit of the bytes equal to `byte`, true up to the first.
#[inline(always)]
fn equal(word: u64, byte: u8) -> u64 {
    less_than(word ^ (ONES * u64::from(byte)), 1)
}

/// Marks the high bit of the bytes from 0x7f on, true up to the first.
#[inline(always)]
fn not_visible(word: u64) -> u64 {
    (word | word.wrapping_add(ONES)) & HIGH
}

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGH: u64 = 0x8080_8080_8080_8080;

#[inline(always)]
fn is_blank(byte: Option<&u8>) -> bool {
    matches!(byte, Some(b' ' | b'\t'))
}

/// Whether the end of a head is in `input`, looking only at line ends from `scan_from` on.
///
/// A head that comes byte by byte is scanned once, when it is whole: until then each byte is looked at once.
/// Errors: a CR or LF on its own, or more bytes than a head may have.
pub(crate) fn is_whole(input: &[u8], scan_from: usize, bytes_max: usize) -> Result<bool, Malformed> {
    // A CR at the end of what was seen is judged with the byte that follows.
    let start = scan_from.saturating_sub(1);
    for offset in memchr::memchr2_iter(b'\r', b'\n', input.get(start..).unwrap_or_default()) {
        let (before, rest) = input.split_at_checked(start + offset).unwrap_or_default();
        match rest {
            [b'\r', next, ..] if *next != b'\n' => return Err(Malformed::LineEnd),
            [b'\r', ..] => {}
            _ if !before.ends_with(b"\r") => return Err(Malformed::LineEnd),
            _ if before.ends_with(b"\r\n\r") => return Ok(true),
            _ => {}
        }
    }
    if input.len() > bytes_max { Err(Malformed::HeadTooLarge) } else { Ok(false) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every byte at every place of a word stops, or does not, as its definition says.
    fn check(end: fn(&[u8], usize) -> usize, stops: fn(u8) -> bool) {
        for size in 0..=17 {
            for place in 0..size {
                for byte in 0..=u8::MAX {
                    for filler in [b'a', b'~', b'!', b'Z'] {
                        let mut text = vec![filler; size];
                        text[place] = byte;
                        let expected = if stops(byte) { place } else { size };
                        assert_eq!(end(&text, 0), expected, "{byte} at {place} of {size}");
                        // What follows a stop does not matter.
                        text.extend_from_slice(b"\0\x01\x7f\x80:#");
                        assert_eq!(end(&text, 0), expected, "{byte} at {place} of {size}");
                    }
                }
            }
        }
    }

    #[test]
    fn words_stop_where_bytes_do() {
        check(name_end, |byte| byte == b':' || byte <= 0x20 || byte >= 0x7f);
        check(target_end, |byte| byte == b'#' || byte <= 0x20 || byte >= 0x7f);
        let stops = |byte| byte < 0x20 && byte != b'\t' || byte == 0x7f;
        check(
            |input, at| match line_end(input, at, Malformed::FieldValue) {
                Err(Stop::Partial) => input.len() - usize::from(input.ends_with(b"\r")),
                Err(Stop::Malformed(_)) => {
                    input.iter().position(|byte| *byte < 0x20 && *byte != b'\t' || *byte == 0x7f).unwrap()
                }
                Ok(_) => unreachable!("there is no CR LF"),
            },
            stops,
        );
    }

    #[test]
    fn lines_end_at_cr_lf_only() {
        for size in 0..40 {
            for filler in [&b"a"[..], b"\t", b"~", b"\xff", b"\xff~", b"\x80\t "] {
                let text = filler.repeat(size);
                let line = [&text, b"\r\n".as_slice()].concat();
                assert_eq!(line_end(&line, 0, Malformed::FieldValue), Ok(text.len()));
                for cut in 0..line.len() {
                    assert_eq!(line_end(&line[..cut], 0, Malformed::FieldValue), Err(Stop::Partial));
                }
                for fault in [b'\0', 1, 0x0b, 0x1f, 0x7f] {
                    let line = [&text, [fault].as_slice(), b"aaaaaaaa\r\n"].concat();
                    assert_eq!(line_end(&line, 0, Malformed::FieldValue), Err(Malformed::FieldValue.into()));
                }
                for end in [&b"\n"[..], b"\r\r\n", b"\ra"] {
                    let line = [&text, end].concat();
                    assert_eq!(line_end(&line, 0, Malformed::FieldValue), Err(Malformed::LineEnd.into()));
                }
            }
        }
    }
}
