//! The hash that ring-hash and Maglev clusters choose an endpoint by, exactly as Envoy combines it from `hash_policy`.
//!
//! Each policy that finds something gives an xxHash64 (seed 0) of it; hashes are combined by rotating what there is one bit to
//! the left and adding the next without carry, so that order matters and equal parts do not cancel out.

use std::io::Write as _;

use envoy_types::pb::envoy::config::route::v3::route_action as proto;
use torus_codec::headers::{HeaderMap, HeaderName, Known};
use xxhash_rust::xxh64::{Xxh64, xxh64};

use super::action::{Action, substitution};
use super::header_match::header_name;
use super::parameters::{cookie_value, query_value};
use super::pattern::Substitution;
use super::scratch::Scratch;
use super::table::Match;
use crate::config::address::Address;
use crate::config::parse::ParseContext;
use crate::config::reject::Refused;

/// `hash_policy`, compiled.
#[derive(Debug, Default)]
pub(super) struct HashPolicy(Box<[Entry]>);

#[derive(Debug)]
struct Entry {
    source: Source,
    terminal: bool,
}

#[derive(Debug)]
enum Source {
    Header(HeaderName, Option<Box<Substitution>>),
    Cookie(Box<Cookie>),
    ClientAddress,
    QueryParameter(Box<str>),
    /// Needs filters that set it; finds nothing.
    FilterState,
}

#[derive(Debug)]
struct Cookie {
    name: Box<str>,
    /// Makes the cookie where the request has none.
    make: Option<Box<CookieMaking>>,
}

#[derive(Debug)]
struct CookieMaking {
    /// After `name="value"`.
    attributes: Box<str>,
}

/// The connection that a made cookie stands for, and whose client's address is hashed.
#[derive(Clone, Copy, Debug, Default)]
pub struct HashedConnection<'a> {
    /// The client, after `x-forwarded-for` was judged.
    pub remote: Option<&'a Address>,
    /// The other end of the socket.
    pub direct_remote: Option<&'a Address>,
    /// Our end of the socket.
    pub local: Option<&'a Address>,
}

impl HashPolicy {
    pub(super) fn parse(configs: &[proto::HashPolicy], context: &mut ParseContext) -> Result<Self, Refused> {
        use proto::hash_policy::PolicySpecifier;
        let parsed = context.each("hash_policy", configs, |config, context| {
            let source = match &config.policy_specifier {
                None => {
                    return Err(
                        context.reject("", "needs one of header, cookie, connection_properties or query_parameter")
                    );
                }
                Some(PolicySpecifier::Header(header)) => context.within("header", |context| {
                    let name = header_name("header_name", &header.header_name, context)?;
                    let rewrite = match &header.regex_rewrite {
                        None => None,
                        Some(rewrite) => Some(Box::new(substitution("regex_rewrite", rewrite, context)?)),
                    };
                    Ok(Some(Source::Header(name, rewrite)))
                })?,
                Some(PolicySpecifier::Cookie(cookie)) => {
                    Some(Source::Cookie(Box::new(context.within("cookie", |context| Cookie::parse(cookie, context))?)))
                }
                Some(PolicySpecifier::ConnectionProperties(properties)) => {
                    properties.source_ip.then_some(Source::ClientAddress)
                }
                Some(PolicySpecifier::QueryParameter(parameter)) => context.within("query_parameter", |context| {
                    Ok(Some(Source::QueryParameter(context.non_empty("name", &parameter.name)?.into())))
                })?,
                Some(PolicySpecifier::FilterState(_)) => Some(Source::FilterState),
            };
            Ok(source.map(|source| Entry { source, terminal: config.terminal }))
        })?;
        Ok(Self(parsed.into_iter().flatten().collect()))
    }
}

impl Cookie {
    fn parse(config: &proto::hash_policy::Cookie, context: &mut ParseContext) -> Result<Self, Refused> {
        let name = context.non_empty("name", &config.name)?;
        let ttl = context.duration("ttl", &config.ttl)?;
        let mut attributes = String::new();
        if let Some(ttl) = ttl.filter(|ttl| ttl.as_secs() > 0) {
            attributes.push_str(&format!("; Max-Age={}", ttl.as_secs()));
        }
        if !config.path.is_empty() {
            attributes.push_str(&format!("; Path={}", config.path));
        }
        for attribute in &config.attributes {
            match attribute.value.as_str() {
                "" => attributes.push_str(&format!("; {}", attribute.name)),
                value => attributes.push_str(&format!("; {}={value}", attribute.name)),
            }
        }
        attributes.push_str("; HttpOnly");
        if [name, &attributes].iter().any(|text| text.bytes().any(|byte| byte.is_ascii_control())) {
            return Err(context.reject("", "must not contain control characters"));
        }
        let make = ttl.map(|_| Box::new(CookieMaking { attributes: attributes.into() }));
        Ok(Self { name: name.into(), make })
    }

    /// The hash of the request's cookie, or of one that is made and added to `cookies`.
    fn hash(
        &self,
        request: &HeaderMap,
        connection: HashedConnection<'_>,
        cookies: Option<&mut Vec<u8>>,
    ) -> Option<u64> {
        let value = cookie_value(request, self.name.as_bytes()).filter(|value| !value.is_empty());
        if let Some(value) = value {
            return Some(xxh64(value, 0));
        }
        let attributes = &self.make.as_ref()?.attributes;
        let cookies = cookies?;
        // The value stands for the connection, so that requests racing on it agree.
        let start = cookies.len();
        for address in [connection.direct_remote, connection.local].into_iter().flatten() {
            // Writing to a Vec cannot fail.
            let _ = write!(cookies, "{address}");
        }
        let connection_hash = xxh64(cookies.get(start..).unwrap_or_default(), 0);
        cookies.truncate(start);
        let _ = write!(cookies, "{}=\"{connection_hash:016x}\"{attributes}", self.name);
        cookies.push(0);
        let value_start = start + self.name.len() + 2;
        Some(xxh64(cookies.get(value_start..value_start + 16).unwrap_or_default(), 0))
    }
}

impl Match<'_> {
    /// The hash of `hash_policy`. For ring-hash and Maglev clusters, cookies that the policy makes are added to `cookies` as
    /// whole `set-cookie` values, each ended by a NUL byte; add them to the reply. With `None` no cookie is made.
    pub fn hash(
        &self,
        request: &HeaderMap,
        connection: HashedConnection<'_>,
        mut cookies: Option<&mut Vec<u8>>,
        scratch: &mut Scratch,
    ) -> Option<u64> {
        let Action::Forward(forward) = &self.route.action else { return None };
        let mut hash: Option<u64> = None;
        for entry in &forward.hash.0 {
            if let Some(new) = entry.source.hash(request, connection, cookies.as_deref_mut(), scratch) {
                hash = Some(hash.unwrap_or(0).rotate_left(1) ^ new);
            }
            if entry.terminal && hash.is_some() {
                break;
            }
        }
        hash
    }
}

impl Source {
    fn hash(
        &self,
        request: &HeaderMap,
        connection: HashedConnection<'_>,
        cookies: Option<&mut Vec<u8>>,
        scratch: &mut Scratch,
    ) -> Option<u64> {
        match self {
            Self::Header(name, rewrite) => header_hash(name, rewrite.as_deref(), request, scratch),
            Self::Cookie(cookie) => cookie.hash(request, connection, cookies),
            Self::ClientAddress => {
                let ip = connection.remote?.ip()?.ip();
                scratch.value.clear();
                let _ = write!(scratch.value, "{ip}");
                Some(xxh64(&scratch.value, 0))
            }
            Self::QueryParameter(name) => {
                query_value(request.get_known(Known::Path)?, name.as_bytes()).map(|value| xxh64(value, 0))
            }
            Self::FilterState => None,
        }
    }
}

/// Values are sorted before they are hashed one after the other, so that their order plays no part.
fn header_hash(
    name: &HeaderName,
    rewrite: Option<&Substitution>,
    request: &HeaderMap,
    scratch: &mut Scratch,
) -> Option<u64> {
    request.get(name)?;
    let Scratch { value, ranges, regex, .. } = scratch;
    value.clear();
    ranges.clear();
    for field in request.get_all(name) {
        let start = value.len();
        match rewrite {
            None => value.extend_from_slice(field),
            Some(rewrite) => rewrite.replace_all(field, regex, value),
        }
        ranges.push((start, value.len()));
    }
    ranges.sort_unstable_by(|a, b| value.get(a.0..a.1).cmp(&value.get(b.0..b.1)));
    // The hash of one value is the seed of the next.
    let chain = ranges.iter().fold(0, |seed, (start, end)| {
        let mut hasher = Xxh64::new(seed);
        hasher.update(value.get(*start..*end).unwrap_or_default());
        hasher.digest()
    });
    Some(chain)
}
