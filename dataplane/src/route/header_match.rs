//! Matching header fields. Source: envoy.config.route.v3.HeaderMatcher.

use envoy_types::pb::envoy::config::route::v3 as proto;
use torus_codec::headers::{HeaderMap, HeaderName};

use super::mutation::is_joined;
use super::pattern::{Pattern, RegexMemory};
use super::scratch::Scratch;
use super::string_match::{StringMatcher, parse_regex};
use crate::config::parse::ParseContext;
use crate::config::reject::Refused;

/// A compiled HeaderMatcher.
#[derive(Debug)]
pub struct HeaderMatcher {
    name: HeaderName,
    test: Test,
    invert: bool,
    missing_is_empty: bool,
    joined: bool,
}

#[derive(Debug)]
enum Test {
    Present(bool),
    Text(StringMatcher),
    /// From the first number to before the second.
    Range(i64, i64),
}

impl HeaderMatcher {
    /// Compiles `config`, deprecated forms included; `context` stands at the message.
    #[allow(deprecated, reason = "configurations of Istio's age still use the old forms")]
    pub fn parse(config: &proto::HeaderMatcher, context: &mut ParseContext) -> Result<Self, Refused> {
        use proto::header_matcher::HeaderMatchSpecifier as Specifier;
        let name = header_name("name", &config.name, context);
        let non_empty =
            |field: &str, text: &String, context: &mut ParseContext| context.non_empty(field, text).map(|_| ());
        let test = match &config.header_match_specifier {
            None => Test::Present(true),
            Some(Specifier::PresentMatch(present)) => Test::Present(*present),
            Some(Specifier::RangeMatch(range)) => Test::Range(range.start, range.end),
            Some(Specifier::ExactMatch(text)) => Test::Text(StringMatcher::exact(text)),
            Some(Specifier::PrefixMatch(text)) => {
                non_empty("prefix_match", text, context)?;
                Test::Text(StringMatcher::prefix(text))
            }
            Some(Specifier::SuffixMatch(text)) => {
                non_empty("suffix_match", text, context)?;
                Test::Text(StringMatcher::suffix(text))
            }
            Some(Specifier::ContainsMatch(text)) => {
                non_empty("contains_match", text, context)?;
                Test::Text(StringMatcher::contains(text))
            }
            Some(Specifier::SafeRegexMatch(regex)) => {
                let pattern: Pattern = context.within("safe_regex_match", |context| parse_regex(regex, context))?;
                Test::Text(StringMatcher::regex(pattern))
            }
            Some(Specifier::StringMatch(matcher)) => {
                Test::Text(context.within("string_match", |context| StringMatcher::parse(matcher, context))?)
            }
        };
        let name = name?;
        Ok(Self {
            joined: is_joined(&name),
            name,
            test,
            invert: config.invert_match,
            missing_is_empty: config.treat_missing_header_as_empty,
        })
    }

    /// Whether `headers` match.
    ///
    /// A field that is missing never matches a value, inverted or not, unless it counts as empty. Where a name occurs more than
    /// once, one matching value is enough; fields that Envoy keeps as one list are matched as that list.
    pub fn matches(&self, headers: &HeaderMap, scratch: &mut Scratch) -> bool {
        let mut values = headers.get_all(&self.name);
        let first = values.next();
        let outcome = match (&self.test, first) {
            (Test::Present(present), first) => (first.is_some() || self.missing_is_empty) == *present,
            (_, None) if !self.missing_is_empty => return false,
            (_, None) => self.value_matches(b"", &mut scratch.regex),
            (_, Some(first)) => match values.next() {
                None => self.value_matches(first, &mut scratch.regex),
                Some(second) if self.joined => {
                    scratch.value.clear();
                    scratch.value.extend_from_slice(first);
                    for value in std::iter::once(second).chain(values) {
                        scratch.value.push(b',');
                        scratch.value.extend_from_slice(value);
                    }
                    self.value_matches(&scratch.value, &mut scratch.regex)
                }
                Some(second) => {
                    [first, second].into_iter().chain(values).any(|value| self.value_matches(value, &mut scratch.regex))
                }
            },
        };
        outcome != self.invert
    }

    fn value_matches(&self, value: &[u8], memory: &mut RegexMemory) -> bool {
        match &self.test {
            Test::Present(present) => *present,
            Test::Text(matcher) => matcher.matches(value, memory),
            Test::Range(start, end) => {
                let number = std::str::from_utf8(value).ok().and_then(|text| text.trim_ascii().parse::<i64>().ok());
                number.is_some_and(|number| (*start..*end).contains(&number))
            }
        }
    }
}

/// Whether all of `matchers` match.
pub fn all_match(matchers: &[HeaderMatcher], headers: &HeaderMap, scratch: &mut Scratch) -> bool {
    matchers.iter().all(|matcher| matcher.matches(headers, scratch))
}

/// The field name in `field`, which must be one.
pub fn header_name(field: &str, text: &str, context: &mut ParseContext) -> Result<HeaderName, Refused> {
    context.non_empty(field, text)?;
    HeaderName::new(text).ok_or_else(|| context.reject(field, format!("`{text}` is no header name")))
}

#[cfg(test)]
mod tests {
    #![allow(deprecated, reason = "configurations of Istio's age still use the old forms")]
    use super::*;
    use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;
    use envoy_types::pb::envoy::r#type::v3::Int64Range;
    use proto::header_matcher::HeaderMatchSpecifier::{self, ExactMatch, PresentMatch, RangeMatch, StringMatch};

    fn exact(text: &str) -> HeaderMatchSpecifier {
        StringMatch(matcher::StringMatcher {
            ignore_case: false,
            match_pattern: Some(matcher::string_matcher::MatchPattern::Exact(text.into())),
        })
    }

    fn suffix(text: &str) -> HeaderMatchSpecifier {
        HeaderMatchSpecifier::SuffixMatch(text.into())
    }

    /// Each row was checked against Envoy 1.40.
    #[test]
    fn header_matchers_agree_with_envoy() {
        let check = |name: &str,
                     specifier: Option<HeaderMatchSpecifier>,
                     flags: (bool, bool),
                     values: &[&str],
                     expect: bool| {
            let config = proto::HeaderMatcher {
                name: name.into(),
                invert_match: flags.0,
                treat_missing_header_as_empty: flags.1,
                header_match_specifier: specifier.clone(),
            };
            let compiled = HeaderMatcher::parse(&config, &mut ParseContext::new(1)).unwrap();
            let mut headers = HeaderMap::default();
            for value in values {
                headers.append_wire(name.as_bytes(), value.as_bytes());
            }
            let matched = compiled.matches(&headers, &mut Scratch::default());
            assert_eq!(matched, expect, "{name} {specifier:?} {flags:?} {values:?}");
        };
        let plain = (false, false);
        let inverted = (true, false);
        let inverted_empty = (true, true);
        let empty = (false, true);
        let range = |start, end| Some(RangeMatch(Int64Range { start, end }));
        check("x", range(0, 10), inverted, &[], false);
        check("x", range(0, 10), inverted, &["5"], false);
        check("x", range(0, 10), inverted, &["50"], true);
        check("x", range(0, 10), inverted, &["ab"], true);
        check("x", range(0, 10), inverted, &[""], true);
        check("x", range(0, 10), inverted_empty, &[], true);
        check("x", range(0, 10), inverted_empty, &["5"], false);
        check("x", range(-5, 10), plain, &["-5"], true);
        check("x", range(-5, 10), plain, &["10"], false);
        check("x", range(-5, 10), plain, &["1.5"], false);
        check("x", range(-5, 10), plain, &["+5"], true);
        check("x", range(0, 10), plain, &["50", "5"], true);
        check("x", Some(PresentMatch(true)), inverted, &[], true);
        check("x", Some(PresentMatch(true)), inverted, &["5"], false);
        check("x", Some(PresentMatch(false)), plain, &[], true);
        check("x", Some(PresentMatch(false)), plain, &["5"], false);
        check("x", Some(PresentMatch(false)), inverted, &[], false);
        check("x", Some(PresentMatch(false)), inverted, &["5"], true);
        check("x", Some(PresentMatch(true)), empty, &[], true);
        check("x", None, plain, &[], false);
        check("x", None, plain, &[""], true);
        check("x", Some(exact("")), plain, &[], false);
        check("x", Some(exact("")), plain, &[""], true);
        check("x", Some(exact("")), empty, &[], true);
        check("x", Some(suffix("c")), inverted, &[], false);
        check("x", Some(suffix("c")), inverted, &["q"], true);
        check("x", Some(suffix("c")), inverted_empty, &[], true);
        check("x", Some(ExactMatch("a".into())), plain, &["a"], true);
        check("x", Some(exact("a")), plain, &["a", "b"], true);
        check("x", Some(exact("a")), plain, &["b", "a"], true);
        check("x", Some(exact("a,b")), plain, &["a", "b"], false);
        check("x", Some(exact("a")), inverted, &["a", "b"], false);
        check("x", Some(exact("a")), inverted, &["b", "c"], true);
        check("accept", Some(exact("a,b")), plain, &["a", "b"], true);
        check("accept", Some(exact("a")), plain, &["a", "b"], false);
        check("accept-language", Some(exact("a,b")), plain, &["a", "b"], false);
    }
}
