//! One canonical path, made once: routing, filters and the upstream all see the same.
//!
//! The query is never touched. The steps are Envoy's, in its order: escaped slashes, then dot segments and percent-encoding
//! (`normalize_path`), then repeated slashes (`merge_slashes`).

use crate::bytes;

/// Which steps are taken; all are off by default, as in Envoy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PathOptions {
    /// Resolve dot segments, decode what needs no encoding, encode what does, turn `\` into `/` (`normalize_path`).
    pub normalize: bool,
    /// Make one slash of several (`merge_slashes`).
    pub merge_slashes: bool,
    /// What happens to `%2F` and `%5C` (`path_with_escaped_slashes_action`).
    pub escaped_slashes: EscapedSlashes,
}

/// What happens to `%2F`, `%2f`, `%5C` and `%5c` in a path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EscapedSlashes {
    /// They stay.
    #[default]
    Keep,
    /// The request is refused.
    Reject,
    /// They are decoded, and the client is sent to the decoded path.
    UnescapeAndRedirect,
    /// They are decoded.
    UnescapeAndForward,
}

/// What [`normalize`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The path is canonical; nothing was written.
    Unchanged,
    /// The canonical path and the query are in the output.
    Changed,
    /// As `Changed`, and the client is to be redirected there (307).
    Redirect,
}

/// Why a path has no canonical form; the request answers 400 with `path_normalization_failed`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathError {
    /// `%2F` or `%5C`, which the configuration refuses.
    EscapedSlash,
    /// `%00`
    Nul,
}

impl std::fmt::Display for PathError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::EscapedSlash => "the path has an escaped slash, which path_with_escaped_slashes_action refuses",
            Self::Nul => "the path has a NUL, which no path can have (RFC 3986 §7.3)",
        })
    }
}

impl std::error::Error for PathError {}

/// Writes the canonical form of `path`, the value of `:path` with its query, to `out`, which is cleared.
///
/// Source: RFC 3986 §5.2.4 and §6.2.2, as Envoy 1.40 applies them. A dot segment with a parameter (`..;x`) is a dot segment, since servlet
///         containers take it for one; so it is where the dots are encoded, which Envoy leaves.
/// Shape:  what does not begin with `/` is `Unchanged`.
pub fn normalize(path: &[u8], options: PathOptions, out: &mut Vec<u8>) -> Result<Outcome, PathError> {
    out.clear();
    let query_start = memchr::memchr(b'?', path).unwrap_or(path.len());
    let (only_path, query) = path.split_at_checked(query_start).unwrap_or((path, &[]));
    if !only_path.starts_with(b"/") || is_canonical(only_path, options) {
        return Ok(Outcome::Unchanged);
    }
    // Each step appends its result to `out` and then takes away what it read.
    out.extend_from_slice(only_path);
    let mut unescaped = false;
    if options.escaped_slashes != EscapedSlashes::Keep {
        unescaped = unescape_slashes(out);
        if unescaped && options.escaped_slashes == EscapedSlashes::Reject {
            return Err(PathError::EscapedSlash);
        }
    }
    if options.normalize {
        canonicalize(out)?;
    }
    if options.merge_slashes {
        out.dedup_by(|next, previous| *next == b'/' && *previous == b'/');
    }
    if out == only_path {
        return Ok(Outcome::Unchanged);
    }
    out.extend_from_slice(query);
    let redirect = unescaped && options.escaped_slashes == EscapedSlashes::UnescapeAndRedirect;
    Ok(if redirect { Outcome::Redirect } else { Outcome::Changed })
}

/// Whether no step can change this path; a cheap test that most paths pass.
fn is_canonical(path: &[u8], options: PathOptions) -> bool {
    let mut previous = 0;
    path.iter().all(|byte| {
        let plain = match byte {
            b'%' => !options.normalize && options.escaped_slashes == EscapedSlashes::Keep,
            b'.' => !options.normalize || previous != b'/',
            b'/' => !options.merge_slashes || previous != b'/',
            _ => !options.normalize || !must_escape(*byte) && *byte != b'\\',
        };
        previous = *byte;
        plain
    })
}

/// Decodes `%2F` and `%5C` in place; whether there was one.
fn unescape_slashes(path: &mut Vec<u8>) -> bool {
    let mut read = 0;
    let mut write = 0;
    while let Some(&byte) = path.get(read) {
        let (decoded, length) = match path.get(read..read + 3) {
            Some(b"%2F" | b"%2f") => (b'/', 3),
            Some(b"%5C" | b"%5c") => (b'\\', 3),
            _ => (byte, 1),
        };
        if let Some(place) = path.get_mut(write) {
            *place = decoded;
        }
        read += length;
        write += 1;
    }
    path.truncate(write);
    read != write
}

/// Resolves dot segments and settles the encoding of each byte, in one pass.
fn canonicalize(path: &mut Vec<u8>) -> Result<(), PathError> {
    let end = path.len();
    // The result grows behind the input, in the same memory.
    let start = end;
    let mut at = 0;
    // Where the result has a `%` that began no escape in the input: what is decoded after it must not make it one.
    let mut stray_percent = None;
    while let Some(&byte) = path.get(at).filter(|_| at < end) {
        if let Some(length) = dot_length(path, at, end) {
            if path.len() > start && path.last() == Some(&b'/') {
                if let Some(next) = segment_end(path, at + length, end) {
                    at = next;
                    continue;
                }
                let second = dot_length(path, at + length, end);
                if let Some(next) = second.and_then(|second| segment_end(path, at + length + second, end)) {
                    remove_last_segment(path, start);
                    at = next;
                    continue;
                }
            }
            path.push(b'.');
            at += length;
        } else if byte == 0 {
            return Err(PathError::Nul);
        } else if byte == b'\\' {
            path.push(b'/');
            at += 1;
        } else if byte == b'%' {
            match escaped(path, at, end) {
                Some(0) => return Err(PathError::Nul),
                Some(decoded) if is_unreserved(decoded) => {
                    path.push(decoded);
                    at += 3;
                    disarm(path, stray_percent, at, end);
                }
                Some(_) => {
                    path.extend_from_within(at..at + 3);
                    at += 3;
                }
                None => {
                    stray_percent = Some(path.len());
                    path.push(b'%');
                    at += 1;
                }
            }
        } else {
            push_encoded(byte, path);
            at += 1;
        }
    }
    path.drain(..start);
    Ok(())
}

/// The length of `.` or `%2E` at `at`.
fn dot_length(path: &[u8], at: usize, end: usize) -> Option<usize> {
    match path.get(at..end)? {
        [b'.', ..] => Some(1),
        [b'%', b'2', b'e' | b'E', ..] => Some(3),
        _ => None,
    }
}

/// Where the next segment starts, if this one ends at `at`, perhaps with parameters.
fn segment_end(path: &[u8], at: usize, end: usize) -> Option<usize> {
    match path.get(at..end)? {
        [] => Some(end),
        [b'/' | b'\\', ..] => Some(at + 1),
        parameters @ [b';', ..] => Some(memchr::memchr(b'/', parameters).map_or(end, |slash| at + slash + 1)),
        _ => None,
    }
}

/// Takes the last segment off the result, which ends with a slash; the first slash stays.
fn remove_last_segment(path: &mut Vec<u8>, start: usize) {
    let kept = path.get(start..path.len() - 1).and_then(|result| memchr::memrchr(b'/', result));
    path.truncate(start + kept.unwrap_or(0) + 1);
}

/// The byte that `%XX` at `at` stands for.
fn escaped(path: &[u8], at: usize, end: usize) -> Option<u8> {
    match path.get(at..end)? {
        [b'%', high, low, ..] => {
            let digit = |byte: &u8| char::from(*byte).to_digit(16).map(|digit| digit as u8);
            Some(digit(high)? << 4 | digit(low)?)
        }
        _ => None,
    }
}

/// Encodes a stray `%` if the byte just decoded, with what follows, would make an escape of it.
fn disarm(path: &mut Vec<u8>, stray_percent: Option<usize>, next: usize, end: usize) {
    let Some(percent) = stray_percent else { return };
    let arms = match path.get(percent + 1..) {
        Some([first, second]) => first.is_ascii_hexdigit() && second.is_ascii_hexdigit(),
        Some([first]) => first.is_ascii_hexdigit() && next < end && path.get(next).is_some_and(u8::is_ascii_hexdigit),
        _ => false,
    };
    if arms {
        path.insert(percent + 1, b'2');
        path.insert(percent + 2, b'5');
    }
}

fn push_encoded(byte: u8, path: &mut Vec<u8>) {
    if must_escape(byte) {
        path.push(b'%');
        for digit in [byte >> 4, byte & 0xf] {
            path.push(if digit < 10 { b'0' + digit } else { b'A' + digit - 10 });
        }
    } else {
        path.push(byte);
    }
}

/// Whether a byte of a path is written percent-encoded.
fn must_escape(byte: u8) -> bool {
    !bytes::is_target_text(&[byte]) || b"\"<>^`{|}?".contains(&byte)
}

/// Whether a byte means the same encoded or not (RFC 3986 §2.3).
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(options: PathOptions, cases: &[(&str, Result<&str, PathError>)]) {
        let mut out = Vec::new();
        for (path, expected) in cases {
            let result = normalize(path.as_bytes(), options, &mut out).map(|outcome| match outcome {
                Outcome::Unchanged => path.to_string(),
                _ => String::from_utf8(out.clone()).unwrap(),
            });
            assert_eq!(result, expected.map(str::to_string), "{path}");
        }
    }

    const NORMALIZE: PathOptions =
        PathOptions { normalize: true, merge_slashes: false, escaped_slashes: EscapedSlashes::Keep };

    /// The right sides are what Envoy 1.40 sent upstream with `normalize_path`, but for those marked.
    #[test]
    fn dot_segments_and_encoding_are_envoys() {
        check(
            NORMALIZE,
            &[
                ("/", Ok("/")),
                ("/a/../b", Ok("/b")),
                ("/a/./b", Ok("/a/b")),
                ("/a/%2e%2e/b", Ok("/b")),
                ("/a/%2E./b", Ok("/b")),
                ("/.%2e/x", Ok("/x")),
                ("/..", Ok("/")),
                ("/../../x", Ok("/x")),
                ("/a//../b", Ok("/a/b")),
                ("/a/..", Ok("/")),
                ("/a/.", Ok("/a/")),
                ("/a/...", Ok("/a/...")),
                ("/a/.b", Ok("/a/.b")),
                ("/..a", Ok("/..a")),
                ("/a/..b/c", Ok("/a/..b/c")),
                ("/a\\..\\b", Ok("/b")),
                ("/a\\b", Ok("/a/b")),
                ("/%5c../x", Ok("/%5c../x")),
                ("/a/%2f../b", Ok("/a/%2f../b")),
                ("/a%zz", Ok("/a%zz")),
                ("/a%", Ok("/a%")),
                ("/a%2", Ok("/a%2")),
                ("/%%300", Ok("/%2500")),
                ("/%%30%30", Ok("/%2500")),
                ("/%2%35", Ok("/%2525")),
                ("/%%32%65/x", Ok("/%252e/x")),
                ("/a;b/..;/c", Ok("/c")),
                ("/a/..;x=y/c", Ok("/c")),
                ("/a/.;/c", Ok("/a/c")),
                ("/a/..%3b/c", Ok("/a/..%3b/c")),
                ("/a;/../b", Ok("/b")),
                ("/;/a", Ok("/;/a")),
                ("/..;", Ok("/")),
                ("/.;x", Ok("/")),
                ("/a..;/b", Ok("/a..;/b")),
                ("/a/..;?b", Ok("/?b")),
                ("/a?../b", Ok("/a?../b")),
                ("/a/../?x=/../y", Ok("/?x=/../y")),
                ("/a/b/..?q", Ok("/a/?q")),
                ("/%00", Err(PathError::Nul)),
                ("/x%00?y", Err(PathError::Nul)),
                ("/\0%300", Err(PathError::Nul)),
                ("/x?%00", Ok("/x?%00")),
                ("//a//b", Ok("//a//b")),
                ("/%41%7a%30%2d%5F%7E", Ok("/Az0-_~")),
                ("/%2B%25%3f%80", Ok("/%2B%25%3f%80")),
                ("/\"<>^`{|}", Ok("/%22%3C%3E%5E%60%7B%7C%7D")),
                ("*", Ok("*")),
                // Envoy leaves `/a/..;/c` here, which a servlet container takes for `/c`.
                ("/a/%2e%2e;/c", Ok("/c")),
            ],
        );
    }

    #[test]
    fn slashes_merge_in_the_path_only() {
        let merge = PathOptions { merge_slashes: true, ..PathOptions::default() };
        check(
            merge,
            &[
                ("/", Ok("/")),
                ("//", Ok("/")),
                ("///a//b///", Ok("/a/b/")),
                ("/a//b?c//d", Ok("/a/b?c//d")),
                ("/a/%2F/b", Ok("/a/%2F/b")),
                ("/a/../b", Ok("/a/../b")),
            ],
        );
        check(PathOptions { merge_slashes: true, ..NORMALIZE }, &[("/a//../b", Ok("/a/b")), ("/a/..//b", Ok("/b"))]);
    }

    #[test]
    fn escaped_slashes_follow_the_action() {
        let with = |escaped_slashes| PathOptions { escaped_slashes, ..NORMALIZE };
        let decoded =
            [("/a%2fb", Ok("/a/b")), ("/a%5C..%2Fb?%2F", Ok("/b?%2F")), ("/a", Ok("/a")), ("/a?%2f", Ok("/a?%2f"))];
        check(with(EscapedSlashes::UnescapeAndForward), &decoded);
        check(with(EscapedSlashes::UnescapeAndRedirect), &decoded);
        check(with(EscapedSlashes::Keep), &[("/a%2fb%5C", Ok("/a%2fb%5C"))]);
        let refused = Err(PathError::EscapedSlash);
        check(with(EscapedSlashes::Reject), &[("/a%2Fb", refused), ("/a%5cb", refused), ("/a?%2F", Ok("/a?%2F"))]);

        let mut out = Vec::new();
        let redirect = with(EscapedSlashes::UnescapeAndRedirect);
        assert_eq!(normalize(b"/a%2fb", redirect, &mut out), Ok(Outcome::Redirect));
        assert_eq!(normalize(b"/a/../b", redirect, &mut out), Ok(Outcome::Changed), "only slashes redirect");
    }

    #[test]
    fn nothing_happens_without_options() {
        let path = "/a/..//%2f%00\\|?#";
        check(PathOptions::default(), &[(path, Ok(path))]);
    }
}
