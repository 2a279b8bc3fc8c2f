//! RE2 patterns, searched without a lock.
//!
//! Configuration speaks RE2 (envoy.type.matcher.v3.RegexMatcher). The engine here has the same guarantee (time linear in the
//! text) and nearly the same syntax; [`translate`] bridges what differs: RE2's `\d`, `\w`, `\s` and `\b` are ASCII, and it has
//! no nested sets or set operators inside brackets. Texts are bytes, as Envoy's are. The engine's own pool of search memory would be shared between workers, so
//! each worker brings its own [`RegexMemory`].

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};

use regex_automata::meta::{Cache, Regex};
use regex_automata::util::captures::Captures;
use regex_automata::util::iter::Searcher;
use regex_automata::util::syntax;
use regex_automata::{Anchored, Input};
use thiserror::Error;

/// A compiled pattern.
#[derive(Debug)]
pub struct Pattern {
    regex: Regex,
    id: u64,
}

/// Why a pattern was refused.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct PatternError(String);

/// Search memory of one worker, made for each pattern at its first use.
#[derive(Default)]
pub struct RegexMemory {
    by_pattern: HashMap<u64, Memory, BuildHasherDefault<IdHasher>>,
}

struct Memory {
    cache: Cache,
    captures: Captures,
}

/// A pattern with a replacement. Source: envoy.type.matcher.v3.RegexMatchAndSubstitute.
#[derive(Debug)]
pub struct Substitution {
    pattern: Pattern,
    parts: Box<[Part]>,
    group_max: usize,
}

/// A stretch of a replacement.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// As it stands.
    Text(Box<[u8]>),
    /// What a group matched.
    Group(usize),
}

impl Pattern {
    /// Compiles a pattern that must match the whole text, as `RegexMatcher` does.
    pub fn full(pattern: &str) -> Result<Self, PatternError> {
        Self::compile(&format!(r"\A(?:{})\z", translate(pattern)?))
    }

    /// Compiles a pattern that may match anywhere.
    pub fn anywhere(pattern: &str) -> Result<Self, PatternError> {
        Self::compile(&translate(pattern)?)
    }

    fn compile(pattern: &str) -> Result<Self, PatternError> {
        // Ids are never used twice, so memory made for a pattern that is gone cannot meet another.
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        let build = |unicode: bool| {
            Regex::builder()
                .syntax(syntax::Config::new().utf8(false).unicode(unicode))
                .configure(Regex::config().utf8_empty(false))
                .build(pattern)
        };
        // Envoy's engine reads bytes, so that `.` takes each byte of what is no UTF-8 (a rule that forbids would fail open);
        // only what names characters beyond ASCII in a set needs characters.
        let regex = build(false).or_else(|_| build(true)).map_err(|error| PatternError(describe(&error)))?;
        Ok(Self { regex, id: NEXT_ID.fetch_add(1, Ordering::Relaxed) })
    }

    /// Whether the pattern is in `text`; for a full pattern, whether it is `text`.
    pub fn matches(&self, text: &[u8], memory: &mut RegexMemory) -> bool {
        let input = Input::new(text).anchored(Anchored::No).earliest(true);
        self.regex.search_half_with(&mut memory.of(self).cache, &input).is_some()
    }
}

fn describe(error: &regex_automata::meta::BuildError) -> String {
    match (error.syntax_error(), error.size_limit()) {
        (Some(error), _) => error.to_string(),
        (None, Some(bytes)) => format!("needs more than {bytes} bytes of memory"),
        (None, None) => error.to_string(),
    }
}

impl Substitution {
    /// Compiles `pattern` and its replacement, in which `\1` is the first group and `\0` the whole match.
    pub fn new(pattern: &str, replacement: &str) -> Result<Self, PatternError> {
        let pattern = Pattern::anywhere(pattern)?;
        let parts = replacement_parts(replacement)?;
        let group_max = parts.iter().map(|part| if let Part::Group(group) = part { *group } else { 0 }).max();
        Ok(Self { pattern, parts: parts.into(), group_max: group_max.unwrap_or(0) })
    }

    /// A pattern that must match the whole text, and what the text becomes.
    pub(super) fn whole(pattern: &str, parts: Vec<Part>) -> Result<Self, PatternError> {
        Ok(Self { pattern: Pattern::full(pattern)?, parts: parts.into(), group_max: 0 })
    }

    /// How many groups the pattern has.
    pub fn group_count(&self) -> usize {
        self.pattern.regex.group_info().group_len(regex_automata::PatternID::ZERO).saturating_sub(1)
    }

    /// The highest group that the replacement names.
    pub fn group_max(&self) -> usize {
        self.group_max
    }

    /// Adds `text` to `out` with every match replaced.
    pub fn replace_all(&self, text: &[u8], memory: &mut RegexMemory, out: &mut Vec<u8>) {
        let Memory { cache, captures } = memory.of(&self.pattern);
        let mut searcher = Searcher::new(Input::new(text));
        let mut copied = 0;
        while let Some(found) = searcher.advance(|input| {
            self.pattern.regex.search_captures_with(cache, input, captures);
            Ok(captures.get_match())
        }) {
            out.extend_from_slice(text.get(copied..found.start()).unwrap_or_default());
            for part in &self.parts {
                match part {
                    Part::Text(bytes) => out.extend_from_slice(bytes),
                    Part::Group(group) => {
                        let span = captures.get_group(*group);
                        out.extend_from_slice(span.and_then(|span| text.get(span.range())).unwrap_or_default());
                    }
                }
            }
            copied = found.end();
        }
        out.extend_from_slice(text.get(copied..).unwrap_or_default());
    }
}

fn replacement_parts(replacement: &str) -> Result<Vec<Part>, PatternError> {
    let mut parts = Vec::new();
    let mut text = Vec::new();
    let mut bytes = replacement.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'\\' {
            text.push(byte);
            continue;
        }
        match bytes.next() {
            Some(b'\\') => text.push(b'\\'),
            Some(digit @ b'0'..=b'9') => {
                if !text.is_empty() {
                    parts.push(Part::Text(std::mem::take(&mut text).into()));
                }
                parts.push(Part::Group(usize::from(digit - b'0')));
            }
            _ => return Err(PatternError(r"`\` must be followed by a digit or `\`".into())),
        }
    }
    if !text.is_empty() {
        parts.push(Part::Text(text.into()));
    }
    Ok(parts)
}

impl RegexMemory {
    fn of(&mut self, pattern: &Pattern) -> &mut Memory {
        // Memory of patterns that left with their configuration goes when there is too much of it.
        if self.by_pattern.len() >= MEMORY_COUNT_MAX && !self.by_pattern.contains_key(&pattern.id) {
            self.by_pattern.clear();
        }
        self.by_pattern.entry(pattern.id).or_insert_with(|| Memory {
            cache: pattern.regex.create_cache(),
            captures: pattern.regex.create_captures(),
        })
    }
}

/// Ids are counted, so they are their own hash.
#[derive(Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, id: u64) {
        // The table reads the upper bits too.
        self.0 = id.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// The pattern in the engine's syntax, with RE2's meaning.
///
/// Source: RE2, "Syntax" (github.com/google/re2/wiki/Syntax).
pub fn translate(pattern: &str) -> Result<String, PatternError> {
    let mut out = String::with_capacity(pattern.len() + 8);
    let mut rest = pattern;
    while let Some(next) = rest.chars().next() {
        rest = match next {
            '\\' => escape(rest, &mut out)?,
            '[' => class(rest, &mut out)?,
            '{' if !is_repetition(rest) => {
                out.push_str(r"\{");
                rest.get(1..).unwrap_or_default()
            }
            _ => {
                out.push(next);
                rest.get(next.len_utf8()..).unwrap_or_default()
            }
        };
    }
    Ok(out)
}

/// Translates one escape outside brackets and gives what follows it.
fn escape<'a>(rest: &'a str, out: &mut String) -> Result<&'a str, PatternError> {
    let Some(escaped) = rest.chars().nth(1) else { return Err(PatternError(r"trailing `\`".into())) };
    let after = rest.get(1 + escaped.len_utf8()..).unwrap_or_default();
    match escaped {
        'd' => out.push_str("[0-9]"),
        'D' => out.push_str("[^0-9]"),
        'w' => out.push_str("[0-9A-Za-z_]"),
        'W' => out.push_str("[^0-9A-Za-z_]"),
        's' => out.push_str(r"[\t\n\f\r ]"),
        'S' => out.push_str(r"[^\t\n\f\r ]"),
        'b' => out.push_str(r"(?-u:\b)"),
        'B' => out.push_str(r"(?-u:\B)"),
        'C' => out.push_str("(?s-u:.)"),
        'Q' => {
            let (quoted, after) = after.split_once(r"\E").unwrap_or((after, ""));
            quoted.chars().for_each(|literal| push_literal(literal, out));
            return Ok(after);
        }
        _ => return shared_escape(escaped, after, out),
    }
    Ok(after)
}

/// Translates an escape that means the same inside and outside brackets.
fn shared_escape<'a>(escaped: char, after: &'a str, out: &mut String) -> Result<&'a str, PatternError> {
    match escaped {
        '0'..='7' => {
            let more = after.bytes().take(2).take_while(|digit| (b'0'..=b'7').contains(digit)).count();
            if escaped != '0' && more == 0 {
                return Err(PatternError(format!(r"backreference `\{escaped}` is not supported")));
            }
            let digits = format!("{escaped}{}", after.get(..more).unwrap_or_default());
            let code = u32::from_str_radix(&digits, 8).unwrap_or_default();
            out.push_str(&format!(r"\x{{{code:x}}}"));
            return Ok(after.get(more..).unwrap_or_default());
        }
        'a' | 'f' | 't' | 'n' | 'r' | 'v' | 'x' | 'p' | 'P' | 'A' | 'z' => {
            out.push('\\');
            out.push(escaped);
            // A code point or a Unicode class may be named in braces.
            if let ('x' | 'p' | 'P', Some(end)) = (escaped, after.find('}').filter(|_| after.starts_with('{'))) {
                let (named, after) = after.split_at(end + 1);
                out.push_str(named);
                return Ok(after);
            }
        }
        literal if literal.is_ascii() && !literal.is_ascii_alphanumeric() => push_literal(literal, out),
        other => return Err(PatternError(format!(r"unknown escape `\{other}`"))),
    }
    Ok(after)
}

/// Translates a bracket expression and gives what follows it.
fn class<'a>(rest: &'a str, out: &mut String) -> Result<&'a str, PatternError> {
    out.push('[');
    let mut rest = rest.get(1..).unwrap_or_default();
    if let Some(after) = rest.strip_prefix('^') {
        out.push('^');
        rest = after;
    }
    let mut first = true;
    let mut after_hyphen = false;
    loop {
        let Some(next) = rest.chars().next() else { return Err(PatternError("missing `]`".into())) };
        let after = rest.get(next.len_utf8()..).unwrap_or_default();
        let was_after_hyphen = std::mem::replace(&mut after_hyphen, next == '-');
        rest = match next {
            ']' if !first => {
                out.push(']');
                return Ok(after);
            }
            '\\' => class_escape(after, out)?,
            '[' => match rest.get(1..).filter(|inner| inner.starts_with(':')).and_then(|inner| inner.find(":]")) {
                Some(end) => {
                    let end = 1 + end + 2;
                    out.push_str(rest.get(..end).unwrap_or_default());
                    rest.get(end..).unwrap_or_default()
                }
                None => {
                    out.push_str(r"\[");
                    after
                }
            },
            '-' if !was_after_hyphen => {
                out.push('-');
                after
            }
            ']' | '&' | '~' | '-' | '^' => {
                out.push('\\');
                out.push(next);
                after
            }
            _ => {
                out.push(next);
                after
            }
        };
        first = false;
    }
}

fn class_escape<'a>(after_backslash: &'a str, out: &mut String) -> Result<&'a str, PatternError> {
    let Some(escaped) = after_backslash.chars().next() else { return Err(PatternError("missing `]`".into())) };
    let after = after_backslash.get(escaped.len_utf8()..).unwrap_or_default();
    match escaped {
        'd' => out.push_str("0-9"),
        'D' => out.push_str("[^0-9]"),
        'w' => out.push_str("0-9A-Za-z_"),
        'W' => out.push_str("[^0-9A-Za-z_]"),
        's' => out.push_str(r"\t\n\f\r "),
        'S' => out.push_str(r"[^\t\n\f\r ]"),
        _ => return shared_escape(escaped, after, out),
    }
    Ok(after)
}

/// Whether `rest`, which starts with `{`, is `{n}`, `{n,}` or `{n,m}`; if not, RE2 takes the brace as it stands.
fn is_repetition(rest: &str) -> bool {
    let Some((inside, _)) = rest.get(1..).and_then(|inner| inner.split_once('}')) else { return false };
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match inside.split_once(',') {
        None => is_number(inside),
        Some((low, high)) => is_number(low) && (high.is_empty() || is_number(high)),
    }
}

fn push_literal(literal: char, out: &mut String) {
    // The engine gives `\<` and `\>` a meaning of their own.
    if literal.is_ascii_punctuation() && literal != '<' && literal != '>' {
        out.push('\\');
    }
    out.push(literal);
}

/// Patterns whose memory one worker keeps.
const MEMORY_COUNT_MAX: usize = 16_384;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_mean_what_re2_means() {
        let check = |pattern: &str, text: &str, expect: bool| {
            let compiled = Pattern::full(pattern).unwrap_or_else(|error| panic!("{pattern}: {error}"));
            let mut memory = RegexMemory::default();
            assert_eq!(compiled.matches(text.as_bytes(), &mut memory), expect, "{pattern} {text}");
            assert_eq!(compiled.matches(text.as_bytes(), &mut memory), expect, "{pattern} {text} again");
        };
        check("a|b", "a", true);
        check("a|b", "ab", false);
        check("a|ab", "ab", true);
        check(r"/b[io]t", "/bit", true);
        check(r"/b[io]t", "/bite", false);
        check(r"\d{3}", "123", true);
        check(r"\d{3}", "1234", false);
        check(r"\d+", "\u{0663}", false);
        check(r"\w+", "\u{e9}", false);
        check(r"[\w-]+", "a-b_9", true);
        check(r"[^\W]+", "ab", true);
        check(r"[\S]+", "a b", false);
        check(r"[a[b]", "[", true);
        check(r"[a&&b]+", "a&b", true);
        check(r"[]a]+", "]a", true);
        check(r"[[:alpha:]]+", "abc", true);
        check(r"[+--]", ",", true);
        check(r"a{,2}", "a{,2}", true);
        check(r"a{2,3}", "aaa", true);
        check(r"\Qa.b\E.", "a.bx", true);
        check(r"\Qa.b\E.", "aXbx", false);
        check(r"\<a\>", "<a>", true);
        check(r"\/a\-b\_", "/a-b_", true);
        check(r"\101", "A", true);
        check(r".", "\n", false);
        check(r"(?s).", "\n", true);
        check(r"(?i)AbC", "aBc", true);
        check(r"(?P<name>x)y", "xy", true);
        check(r"^a$", "a", true);
        check(r".*", "", true);
        check(r".", "\u{1f600}", false);
        check(r"....", "\u{1f600}", true);
        check("caf\u{e9}", "caf\u{e9}", true);
        check("[\u{e9}\u{e8}]", "\u{e8}", true);
        check(r"\p{L}", "\u{e9}", true);
        check(r"\x{41}", "A", true);
        check(r"[\x{41}]", "A", true);
    }

    #[test]
    fn bad_patterns_are_refused() {
        for pattern in [r"(", r"[a", r"a\", r"\1", r"\h", r"(?=a)", r"a**b(", r"\Z"] {
            assert!(Pattern::full(pattern).is_err(), "{pattern}");
        }
    }

    #[test]
    fn a_dot_takes_any_byte() {
        let mut memory = RegexMemory::default();
        assert!(Pattern::full("o.e").unwrap().matches(b"o\xffe", &mut memory));
        assert!(Pattern::full(".*").unwrap().matches(b"\xc3", &mut memory));
        assert!(Pattern::full(r"[^/]\xff").unwrap().matches(b"\xe9\xff", &mut memory));
        assert!(Pattern::full(r"\C").unwrap().matches(b"\xff", &mut memory));
    }

    #[test]
    fn replacing_follows_re2() {
        let check = |pattern: &str, replacement: &str, text: &str, expect: &str| {
            let substitution = Substitution::new(pattern, replacement).unwrap();
            let mut out = Vec::new();
            substitution.replace_all(text.as_bytes(), &mut RegexMemory::default(), &mut out);
            assert_eq!(String::from_utf8_lossy(&out), expect, "{pattern} {replacement} {text}");
        };
        check("^/service/([^/]+)(/.*)$", r"\2/instance/\1", "/service/foo/v1/api", "/v1/api/instance/foo");
        check("one", "two", "/xxx/one/yyy/one/zzz", "/xxx/two/yyy/two/zzz");
        check("^(.*?)one(.*)$", r"\1two\2", "/xxx/one/yyy/one/zzz", "/xxx/two/yyy/one/zzz");
        check("(?i)/xXx/", "/yyy/", "/aaa/XxX/bbb", "/aaa/yyy/bbb");
        check("b*", "-", "abc", "-a-c-");
        check("a", r"\\\0", "cat", r"c\at");
        assert!(Substitution::new("a", r"\x").is_err());
        assert!(Substitution::new("a", "\\").is_err());
        assert_eq!(Substitution::new("(a)(b)", r"\3").unwrap().group_count(), 2);
    }
}
