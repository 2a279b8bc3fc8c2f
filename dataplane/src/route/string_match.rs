//! Matching one text. Source: envoy.type.matcher.v3.StringMatcher.

use envoy_types::pb::envoy::r#type::matcher::v3 as proto;

use super::pattern::{Pattern, RegexMemory};
use crate::config::parse::ParseContext;
use crate::config::reject::Refused;

/// A compiled StringMatcher.
#[derive(Debug)]
pub struct StringMatcher {
    test: Test,
    ignore_case: bool,
}

#[derive(Debug)]
enum Test {
    Exact(Box<[u8]>),
    Prefix(Box<[u8]>),
    Suffix(Box<[u8]>),
    Contains(Box<[u8]>),
    Regex(Box<Pattern>),
}

impl StringMatcher {
    /// Compiles `config`; `context` stands at the message.
    pub fn parse(config: &proto::StringMatcher, context: &mut ParseContext) -> Result<Self, Refused> {
        use proto::string_matcher::MatchPattern;
        let Some(pattern) = &config.match_pattern else {
            return Err(context.reject("", "needs one of exact, prefix, suffix, contains or safe_regex"));
        };
        let test = match pattern {
            MatchPattern::Exact(text) => Test::Exact(text.as_bytes().into()),
            MatchPattern::Prefix(text) => Test::Prefix(context.non_empty("prefix", text)?.as_bytes().into()),
            MatchPattern::Suffix(text) => Test::Suffix(context.non_empty("suffix", text)?.as_bytes().into()),
            MatchPattern::Contains(text) => Test::Contains(context.non_empty("contains", text)?.as_bytes().into()),
            MatchPattern::SafeRegex(regex) => {
                Test::Regex(Box::new(context.within("safe_regex", |context| parse_regex(regex, context))?))
            }
            MatchPattern::Custom(_) => {
                return Err(context.reject("custom", "custom string matchers are not there yet in this version"));
            }
        };
        // Envoy, StringMatcher.ignore_case: "has no effect for the safe_regex match".
        let ignore_case = config.ignore_case && !matches!(test, Test::Regex(_));
        Ok(Self { test, ignore_case })
    }

    /// Matches exactly `text`.
    pub fn exact(text: &str) -> Self {
        Self { test: Test::Exact(text.as_bytes().into()), ignore_case: false }
    }

    /// Matches what begins with `text`.
    pub fn prefix(text: &str) -> Self {
        Self { test: Test::Prefix(text.as_bytes().into()), ignore_case: false }
    }

    /// Matches what ends with `text`.
    pub fn suffix(text: &str) -> Self {
        Self { test: Test::Suffix(text.as_bytes().into()), ignore_case: false }
    }

    /// Matches what has `text` in it.
    pub fn contains(text: &str) -> Self {
        Self { test: Test::Contains(text.as_bytes().into()), ignore_case: false }
    }

    /// Matches what the whole of `pattern` matches.
    pub fn regex(pattern: Pattern) -> Self {
        Self { test: Test::Regex(Box::new(pattern)), ignore_case: false }
    }

    /// Whether `text` matches.
    pub fn matches(&self, text: &[u8], memory: &mut RegexMemory) -> bool {
        if self.ignore_case {
            return self.matches_any_case(text);
        }
        match &self.test {
            Test::Exact(expected) => text == &**expected,
            Test::Prefix(prefix) => text.starts_with(prefix),
            Test::Suffix(suffix) => text.ends_with(suffix),
            Test::Contains(part) => memchr::memmem::find(text, part).is_some(),
            Test::Regex(pattern) => pattern.matches(text, memory),
        }
    }

    fn matches_any_case(&self, text: &[u8]) -> bool {
        match &self.test {
            Test::Exact(expected) => text.eq_ignore_ascii_case(expected),
            Test::Prefix(prefix) => starts_with_any_case(text, prefix),
            Test::Suffix(suffix) => text
                .len()
                .checked_sub(suffix.len())
                .and_then(|start| text.get(start..))
                .is_some_and(|end| end.eq_ignore_ascii_case(suffix)),
            Test::Contains(part) => text.windows(part.len()).any(|window| window.eq_ignore_ascii_case(part)),
            Test::Regex(_) => false,
        }
    }
}

/// Whether `text` begins with `prefix`, whatever the case of ASCII letters.
pub fn starts_with_any_case(text: &[u8], prefix: &[u8]) -> bool {
    text.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

/// Compiles a RegexMatcher; `context` stands at the message.
pub fn parse_regex(config: &proto::RegexMatcher, context: &mut ParseContext) -> Result<Pattern, Refused> {
    let pattern = context.non_empty("regex", &config.regex)?;
    Pattern::full(pattern).map_err(|error| context.reject("regex", format!("is no valid pattern: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_match_as_in_envoy() {
        use proto::string_matcher::MatchPattern::{Contains, Exact, Prefix, SafeRegex, Suffix};
        let check = |pattern: proto::string_matcher::MatchPattern, ignore_case: bool, text: &str, expect: bool| {
            let config = proto::StringMatcher { ignore_case, match_pattern: Some(pattern.clone()) };
            let matcher = StringMatcher::parse(&config, &mut ParseContext::new(1)).unwrap();
            let matched = matcher.matches(text.as_bytes(), &mut RegexMemory::default());
            assert_eq!(matched, expect, "{pattern:?} {ignore_case} {text}");
        };
        check(Exact("".into()), false, "", true);
        check(Exact("aB".into()), false, "ab", false);
        check(Exact("aB".into()), true, "AB", true);
        check(Prefix("aB".into()), true, "abc", true);
        check(Prefix("abc".into()), true, "ab", false);
        check(Suffix("bC".into()), true, "aBc", true);
        check(Suffix("abc".into()), true, "bc", false);
        check(Suffix("bc".into()), false, "abc", true);
        check(Contains("bC".into()), true, "aBcd", true);
        check(Contains("bcde".into()), true, "abc", false);
        check(Contains("bc".into()), false, "abcd", true);
        let regex = |text: &str| SafeRegex(proto::RegexMatcher { regex: text.into(), ..Default::default() });
        check(regex("b+"), false, "bb", true);
        check(regex("b+"), false, "abb", false);
    }

    #[test]
    fn matchers_that_cannot_work_are_refused() {
        use proto::string_matcher::MatchPattern::{Prefix, SafeRegex};
        let check = |config: proto::StringMatcher, expect: &str| {
            let mut context = ParseContext::new(1);
            assert!(StringMatcher::parse(&config, &mut context).is_err());
            let shown: Vec<String> = context.problems.iter().map(ToString::to_string).collect();
            assert!(shown.concat().contains(expect), "{shown:?}");
        };
        check(proto::StringMatcher::default(), "needs one of");
        let prefix = Some(Prefix(String::new()));
        check(proto::StringMatcher { match_pattern: prefix, ignore_case: false }, "prefix: must not be empty");
        let regex = Some(SafeRegex(proto::RegexMatcher { regex: "(".into(), ..Default::default() }));
        check(
            proto::StringMatcher { match_pattern: regex, ignore_case: false },
            "safe_regex.regex: is no valid pattern",
        );
    }
}
