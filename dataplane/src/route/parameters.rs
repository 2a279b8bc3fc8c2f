//! Matching query parameters and cookies. Source: QueryParameterMatcher and CookieMatcher.

use envoy_types::pb::envoy::config::route::v3 as proto;
use torus_codec::headers::{HeaderMap, HeaderName, Known};

use super::pattern::RegexMemory;
use super::string_match::StringMatcher;
use crate::config::parse::ParseContext;
use crate::config::reject::Refused;

/// A compiled QueryParameterMatcher.
#[derive(Debug)]
pub struct QueryMatcher {
    name: Box<str>,
    test: QueryTest,
}

#[derive(Debug)]
enum QueryTest {
    Present(bool),
    Text(StringMatcher),
}

impl QueryMatcher {
    /// Compiles `config`; `context` stands at the message.
    pub fn parse(config: &proto::QueryParameterMatcher, context: &mut ParseContext) -> Result<Self, Refused> {
        use proto::query_parameter_matcher::QueryParameterMatchSpecifier as Specifier;
        let name = context.non_empty("name", &config.name)?.into();
        let test = match &config.query_parameter_match_specifier {
            None => QueryTest::Present(true),
            Some(Specifier::PresentMatch(present)) => QueryTest::Present(*present),
            Some(Specifier::StringMatch(matcher)) => {
                QueryTest::Text(context.within("string_match", |context| StringMatcher::parse(matcher, context))?)
            }
        };
        Ok(Self { name, test })
    }

    /// Whether `path` (with its query) matches. Only the first value of a name counts.
    pub fn matches(&self, path: &[u8], memory: &mut RegexMemory) -> bool {
        let value = query_value(path, self.name.as_bytes());
        match (&self.test, value) {
            (QueryTest::Present(present), value) => value.is_some() == *present,
            (QueryTest::Text(matcher), Some(value)) => matcher.matches(value, memory),
            (QueryTest::Text(_), None) => false,
        }
    }
}

/// The first value of query parameter `name` in `path`, as it stands: nothing is decoded. `?name` has the empty value.
pub fn query_value<'a>(path: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let query = path.get(memchr::memchr(b'?', path)? + 1..)?;
    query.split(|byte| *byte == b'&').find_map(|parameter| {
        let (key, value) = split_at_byte(parameter, b'=').unwrap_or((parameter, b""));
        (key == name).then_some(value)
    })
}

/// A compiled CookieMatcher.
#[derive(Debug)]
pub struct CookieMatcher {
    name: Box<str>,
    matcher: StringMatcher,
    invert: bool,
}

impl CookieMatcher {
    /// Compiles `config`; `context` stands at the message.
    pub fn parse(config: &proto::CookieMatcher, context: &mut ParseContext) -> Result<Self, Refused> {
        let name = context.non_empty("name", &config.name)?.into();
        let matcher = context.required("string_match", &config.string_match)?;
        let matcher = context.within("string_match", |context| StringMatcher::parse(matcher, context))?;
        Ok(Self { name, matcher, invert: config.invert_match })
    }

    /// Whether the cookies of `request` match; one that is missing matches where inverted.
    pub fn matches(&self, request: &HeaderMap, memory: &mut RegexMemory) -> bool {
        let value = cookie_value(request, self.name.as_bytes());
        value.is_some_and(|value| self.matcher.matches(value, memory)) != self.invert
    }
}

/// The first value of cookie `name`, without the quotes around it.
///
/// Source: RFC 6265 §5.4 for the form; Envoy for what it leaves as it is: blanks are dropped before a name and nowhere else.
pub fn cookie_value<'a>(request: &'a HeaderMap, name: &[u8]) -> Option<&'a [u8]> {
    request.get_known(Known::Cookie)?;
    let cookies = request.iter().filter(|(field, _)| *field == Known::Cookie.as_str().as_bytes());
    cookies.flat_map(|(_, value)| value.split(|byte| *byte == b';')).find_map(|pair| {
        let (key, value) = split_at_byte(pair, b'=')?;
        if key.trim_ascii_start() != name {
            return None;
        }
        let unquoted = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
        Some(unquoted.unwrap_or(value))
    })
}

/// What stands before and after the first `byte`.
fn split_at_byte(text: &[u8], byte: u8) -> Option<(&[u8], &[u8])> {
    let at = memchr::memchr(byte, text)?;
    Some((text.get(..at)?, text.get(at + 1..)?))
}

/// `path` without query and fragment.
pub fn without_query(path: &[u8]) -> &[u8] {
    let end = memchr::memchr2(b'?', b'#', path).unwrap_or(path.len());
    path.get(..end).unwrap_or(path)
}

/// Whether the request is gRPC: its content type is `application/grpc` or starts with `application/grpc+`.
pub fn is_grpc(request: &HeaderMap) -> bool {
    request.get_known(Known::ContentType).is_some_and(|content_type| {
        content_type
            .strip_prefix(b"application/grpc")
            .is_some_and(|rest| rest.is_empty() || rest.first() == Some(&b'+'))
    })
}

/// Compiles each of `names` into a field name.
pub fn header_names(field: &str, names: &[String], context: &mut ParseContext) -> Result<Vec<HeaderName>, Refused> {
    context.each(field, names, |name, context| super::header_match::header_name("", name, context))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each row was checked against Envoy 1.40.
    #[test]
    fn query_values_are_the_first_of_their_name_and_not_decoded() {
        let check = |path: &str, expect: Option<&str>| {
            let value = query_value(path.as_bytes(), b"k");
            assert_eq!(value.map(|value| String::from_utf8_lossy(value).into_owned()).as_deref(), expect, "{path}");
        };
        check("/?k=v", Some("v"));
        check("/?k=v&k=w", Some("v"));
        check("/?k=w&k=v", Some("w"));
        check("/?k=%76", Some("%76"));
        check("/?K=v", None);
        check("/?k=v;x=y", Some("v;x=y"));
        check("/?a?k=v", None);
        check("/?a&&k=v", Some("v"));
        check("/?", None);
        check("/", None);
        check("/?k", Some(""));
        check("/?k=", Some(""));
        check("/?a=k", None);
        check("/?x&k=1", Some("1"));
    }

    /// Each row was checked against Envoy 1.40.
    #[test]
    fn cookies_are_read_as_envoy_does() {
        let check = |cookies: &[&str], expect: Option<&str>| {
            let mut request = HeaderMap::default();
            cookies.iter().for_each(|cookie| request.append_known(Known::Cookie, cookie.as_bytes()));
            let value = cookie_value(&request, b"c");
            assert_eq!(
                value.map(|value| String::from_utf8_lossy(value).into_owned()).as_deref(),
                expect,
                "{cookies:?}"
            );
        };
        check(&["c=v"], Some("v"));
        check(&["a=b; c=v"], Some("v"));
        check(&["a=b", "c=v"], Some("v"));
        check(&["c=\"v\""], Some("v"));
        check(&["c=w; c=v"], Some("w"));
        check(&["C=v"], None);
        check(&["a=b;c=v"], Some("v"));
        check(&["c = v"], None);
        check(&["a; c=v"], Some("v"));
        check(&["a;   c=v  ; d=e"], Some("v  "));
        check(&["c= v"], Some(" v"));
        check(&["c=\"v"], Some("\"v"));
        check(&["c=a=b"], Some("a=b"));
        check(&["c=\"\""], Some(""));
        check(&["c=\""], Some("\""));
        check(&["c"], None);
        check(&["c="], Some(""));
    }

    #[test]
    fn paths_lose_query_and_fragment() {
        assert_eq!(without_query(b"/a?b#c"), b"/a");
        assert_eq!(without_query(b"/a#c?b"), b"/a");
        assert_eq!(without_query(b"/a"), b"/a");
    }
}
