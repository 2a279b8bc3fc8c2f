//! Which paths a route takes. Source: RouteMatch.path_specifier.

use envoy_types::pb::envoy::config::route::v3 as proto;
use envoy_types::pb::envoy::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig;

use super::parameters::without_query;
use super::pattern::{Pattern, RegexMemory};
use super::string_match::{parse_regex, starts_with_any_case};
use super::uri_template::UriTemplate;
use crate::config::parse::ParseContext;
use crate::config::reject::Refused;

/// A compiled path specifier.
#[derive(Debug)]
pub(super) struct PathMatch {
    test: Test,
    any_case: bool,
}

#[derive(Debug)]
enum Test {
    Prefix(Box<[u8]>),
    Exact(Box<[u8]>),
    SeparatedPrefix(Box<[u8]>),
    Regex(Box<Pattern>),
    Template(Box<UriTemplate>),
    Connect,
}

impl PathMatch {
    /// Compiles the path part of `config`; `context` stands at the message.
    pub(super) fn parse(config: &proto::RouteMatch, context: &mut ParseContext) -> Result<Self, Refused> {
        use proto::route_match::PathSpecifier;
        let Some(specifier) = &config.path_specifier else {
            let kinds = "prefix, path, safe_regex, path_separated_prefix, path_match_policy or connect_matcher";
            return Err(context.reject("", format!("needs one of {kinds}")));
        };
        let test = match specifier {
            PathSpecifier::Prefix(prefix) => Test::Prefix(prefix.as_bytes().into()),
            PathSpecifier::Path(path) => Test::Exact(path.as_bytes().into()),
            PathSpecifier::PathSeparatedPrefix(prefix) => {
                let valid = prefix.starts_with('/') && !prefix.ends_with('/') && !prefix.contains(['?', '#']);
                if !valid {
                    let reason = format!("`{prefix}` must begin with /, must not end with /, and has no ? or #");
                    return Err(context.reject("path_separated_prefix", reason));
                }
                Test::SeparatedPrefix(prefix.as_bytes().into())
            }
            PathSpecifier::SafeRegex(regex) => {
                Test::Regex(Box::new(context.within("safe_regex", |context| parse_regex(regex, context))?))
            }
            PathSpecifier::PathMatchPolicy(policy) => context.within("path_match_policy", |context| {
                let packed = context.required("typed_config", &policy.typed_config)?;
                let config: UriTemplateMatchConfig = context.unpack("typed_config", packed)?;
                let template = UriTemplate::new(&config.path_template);
                let template = template.map_err(|reason| context.reject("typed_config.path_template", reason))?;
                Ok(Test::Template(Box::new(template)))
            })?,
            PathSpecifier::ConnectMatcher(_) => Test::Connect,
        };
        let any_case = config.case_sensitive.is_some_and(|sensitive| !sensitive.value);
        Ok(Self { test, any_case })
    }

    /// Whether only a CONNECT request, which may have no path, is taken.
    pub(super) fn takes_connect(&self) -> bool {
        matches!(self.test, Test::Connect)
    }

    /// The template, if it is one.
    pub(super) fn template(&self) -> Option<&UriTemplate> {
        match &self.test {
            Test::Template(template) => Some(template),
            _ => None,
        }
    }

    /// Whether `path`, without query and fragment, is taken; never for CONNECT, which has no path to match.
    pub(super) fn matches(&self, path: &[u8], memory: &mut RegexMemory) -> bool {
        match &self.test {
            Test::Prefix(prefix) => self.starts_with(path, prefix),
            Test::Exact(exact) if self.any_case => path.eq_ignore_ascii_case(exact),
            Test::Exact(exact) => path == &**exact,
            Test::SeparatedPrefix(prefix) => {
                self.starts_with(path, prefix) && matches!(path.get(prefix.len()), None | Some(b'/'))
            }
            Test::Regex(pattern) => pattern.matches(path, memory),
            Test::Template(template) => template.matches(path, memory),
            Test::Connect => false,
        }
    }

    /// How much of `path` a prefix rewrite replaces.
    pub(super) fn matched_len(&self, path: &[u8]) -> usize {
        match &self.test {
            Test::Prefix(text) | Test::Exact(text) | Test::SeparatedPrefix(text) => text.len().min(path.len()),
            Test::Regex(_) | Test::Template(_) | Test::Connect => without_query(path).len(),
        }
    }

    fn starts_with(&self, path: &[u8], prefix: &[u8]) -> bool {
        if self.any_case { starts_with_any_case(path, prefix) } else { path.starts_with(prefix) }
    }
}
