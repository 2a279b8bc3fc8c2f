//! `*_headers_to_add` and `*_headers_to_remove`, compiled.
//!
//! In one list, removals come first; then every value is formatted before the first is set, so that a value never sees its
//! neighbours' changes; then fields that overwrite are set, then the others are added. Source: Envoy, "Custom request/response
//! headers".

use envoy_types::pb::envoy::config::core::v3 as core;
use torus_codec::headers::{HeaderMap, HeaderName};

use super::header_match::header_name;
use super::scratch::Scratch;
use crate::config::parse::ParseContext;
use crate::config::reject::Refused;
use crate::telemetry::format::{Format, FormatContext};
use crate::telemetry::stream_info::StreamInfo;

/// Changes to a head.
#[derive(Debug, Default)]
pub struct Mutations {
    remove: Box<[HeaderName]>,
    add: Box<[Addition]>,
}

#[derive(Debug)]
struct Addition {
    name: HeaderName,
    value: Format,
    action: Action,
    keep_empty: bool,
    joined: bool,
}

/// Source: envoy.config.core.v3.HeaderValueOption.HeaderAppendAction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Append,
    AddIfAbsent,
    OverwriteOrAdd,
    OverwriteIfExists,
}

/// Where the changes are made.
#[derive(Clone, Copy)]
pub enum Side<'a> {
    /// To the request itself.
    Request,
    /// To the reply to this request.
    Response(&'a HeaderMap),
}

impl Mutations {
    /// Compiles `{side}_headers_to_add` and `{side}_headers_to_remove`; `side` is `request` or `response`.
    pub fn parse(
        side: &str,
        add: &[core::HeaderValueOption],
        remove: &[String],
        context: &mut ParseContext,
    ) -> Result<Self, Refused> {
        let add = Self::parse_additions(&format!("{side}_headers_to_add"), add, context);
        let remove = context.each(&format!("{side}_headers_to_remove"), remove, |name, context| {
            modifiable("", name, "removed", context)
        });
        Ok(Self { add: add?.add, remove: remove?.into() })
    }

    /// Compiles a list of fields to add in `field`.
    pub fn parse_additions(
        field: &str,
        add: &[core::HeaderValueOption],
        context: &mut ParseContext,
    ) -> Result<Self, Refused> {
        let add = context.each(field, add, Addition::parse)?;
        Ok(Self { add: add.into(), remove: Box::default() })
    }

    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.add.is_empty()
    }

    /// Makes the changes to `headers`.
    #[inline]
    pub fn apply(&self, side: Side<'_>, info: &StreamInfo, headers: &mut HeaderMap, scratch: &mut Scratch) {
        if !self.is_empty() {
            self.apply_all(side, info, headers, scratch);
        }
    }

    fn apply_all(&self, side: Side<'_>, info: &StreamInfo, headers: &mut HeaderMap, scratch: &mut Scratch) {
        for name in &self.remove {
            headers.remove(name);
        }
        if self.add.is_empty() {
            return;
        }
        let Scratch { pending, pending_ends, value: joined_value, .. } = scratch;
        pending.clear();
        pending_ends.clear();
        for (index, addition) in self.add.iter().enumerate() {
            let exists = || headers.get(&addition.name).is_some();
            let wanted = match addition.action {
                Action::AddIfAbsent => !exists(),
                Action::OverwriteIfExists => exists(),
                Action::Append | Action::OverwriteOrAdd => true,
            };
            if !wanted {
                continue;
            }
            let context = match side {
                Side::Request => FormatContext::new(info, headers),
                Side::Response(request) => {
                    FormatContext { response: Some(&*headers), ..FormatContext::new(info, request) }
                }
            };
            let start = pending.len();
            addition.value.write(&context, pending);
            if pending.len() > start || addition.keep_empty {
                pending_ends.push((index, pending.len()));
            }
        }
        for overwrites in [true, false] {
            let mut start = 0;
            for (index, end) in pending_ends.iter() {
                let value = pending.get(start..*end).unwrap_or_default();
                start = *end;
                let Some(addition) = self.add.get(*index) else { continue };
                match addition.action {
                    Action::OverwriteOrAdd | Action::OverwriteIfExists if overwrites => {
                        headers.set(&addition.name, value);
                    }
                    Action::Append | Action::AddIfAbsent if !overwrites => {
                        addition.append(value, headers, joined_value)
                    }
                    _ => {}
                }
            }
        }
    }
}

impl Addition {
    #[allow(deprecated, reason = "append is how older configurations choose the action")]
    fn parse(option: &core::HeaderValueOption, context: &mut ParseContext) -> Result<Self, Refused> {
        use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
        let header = context.required("header", &option.header)?;
        let action = match (option.append_action(), &option.append) {
            (HeaderAppendAction::AppendIfExistsOrAdd, None) => Action::Append,
            (HeaderAppendAction::AppendIfExistsOrAdd, Some(append)) if append.value => Action::Append,
            (HeaderAppendAction::AppendIfExistsOrAdd, Some(_)) => Action::OverwriteOrAdd,
            (_, Some(_)) => return Err(context.reject("append", "both append and append_action are set")),
            (HeaderAppendAction::AddIfAbsent, None) => Action::AddIfAbsent,
            (HeaderAppendAction::OverwriteIfExistsOrAdd, None) => Action::OverwriteOrAdd,
            (HeaderAppendAction::OverwriteIfExists, None) => Action::OverwriteIfExists,
        };
        context.within("header", |context| {
            let name = modifiable("key", &header.key, "modified", context)?;
            let raw = std::str::from_utf8(&header.raw_value);
            let raw = raw.map_err(|_| context.reject("raw_value", "is not UTF-8"))?;
            if !header.value.is_empty() && !raw.is_empty() {
                return Err(context.reject("raw_value", "both value and raw_value are set"));
            }
            let (field, text) = if raw.is_empty() { ("value", header.value.as_str()) } else { ("raw_value", raw) };
            if text.bytes().any(|byte| matches!(byte, b'\r' | b'\n' | 0)) {
                return Err(context.reject(field, "must not contain line breaks or NUL"));
            }
            let value = Format::parse_text(field, &modern(text), true, context)?;
            let joined = is_joined(&name);
            Ok(Self { name, value, action, keep_empty: option.keep_empty_value, joined })
        })
    }

    fn append(&self, value: &[u8], headers: &mut HeaderMap, joined_value: &mut Vec<u8>) {
        match headers.get(&self.name) {
            Some(existing) if self.joined => {
                joined_value.clear();
                joined_value.extend_from_slice(existing);
                joined_value.push(b',');
                joined_value.extend_from_slice(value);
                headers.set(&self.name, joined_value);
            }
            _ => headers.append(&self.name, value),
        }
    }
}

/// The field name in `field`, unless it is one that routing itself owns.
fn modifiable(field: &str, name: &str, what: &str, context: &mut ParseContext) -> Result<HeaderName, Refused> {
    if name.starts_with(':') || name.eq_ignore_ascii_case("host") {
        return Err(context.reject(field, format!(":-prefixed or host headers may not be {what}")));
    }
    header_name(field, name, context)
}

/// Header values may still use two forms that the format has left behind: `%X(["a", "b"])%` is `%X(a:b)%`, and
/// `%PER_REQUEST_STATE(x)%` is `%FILTER_STATE(x:PLAIN)%`.
fn modern(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("([\"") {
        let Some(end) = rest.get(start..).and_then(|from| from.find("\"])")).map(|end| start + end) else { break };
        out.push_str(rest.get(..start).unwrap_or_default());
        out.push('(');
        let inside = rest.get(start + 3..end).unwrap_or_default();
        for (index, name) in inside.split('"').filter(|name| !name.trim_matches([',', ' ']).is_empty()).enumerate() {
            if index > 0 {
                out.push(':');
            }
            out.push_str(name);
        }
        out.push(')');
        rest = rest.get(end + 3..).unwrap_or_default();
    }
    out.push_str(rest);
    match out.strip_prefix("%PER_REQUEST_STATE(").and_then(|rest| rest.strip_suffix(")%")) {
        Some(key) => format!("%FILTER_STATE({key}:PLAIN)%"),
        None => out,
    }
}

/// Whether Envoy keeps all values of the field as one list: a second value is joined to the first with a comma.
pub fn is_joined(name: &HeaderName) -> bool {
    JOINED.binary_search(&name.as_str()).is_ok()
}

/// Sorted. Observed of Envoy 1.40: fields with a place of their own in its header map.
const JOINED: &[&str] = &[
    "accept",
    "accept-encoding",
    "access-control-allow-credentials",
    "access-control-allow-headers",
    "access-control-allow-methods",
    "access-control-allow-origin",
    "access-control-allow-private-network",
    "access-control-expose-headers",
    "access-control-max-age",
    "access-control-request-headers",
    "access-control-request-method",
    "access-control-request-private-network",
    "age",
    "authorization",
    "cache-control",
    "cdn-loop",
    "content-encoding",
    "content-type",
    "date",
    "etag",
    "expires",
    "grpc-accept-encoding",
    "grpc-message",
    "grpc-status",
    "grpc-timeout",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "last-modified",
    "location",
    "origin",
    "pragma",
    "proxy-status",
    "referer",
    "server",
    "user-agent",
    "vary",
    "via",
    "x-client-trace-id",
    "x-envoy-attempt-count",
    "x-envoy-decorator-operation",
    "x-envoy-degraded",
    "x-envoy-downstream-service-cluster",
    "x-envoy-downstream-service-node",
    "x-envoy-expected-rq-timeout-ms",
    "x-envoy-external-address",
    "x-envoy-force-trace",
    "x-envoy-hedge-on-per-try-timeout",
    "x-envoy-immediate-health-check-fail",
    "x-envoy-internal",
    "x-envoy-is-timeout-retry",
    "x-envoy-max-retries",
    "x-envoy-original-path",
    "x-envoy-ratelimited",
    "x-envoy-retriable-header-names",
    "x-envoy-retriable-status-codes",
    "x-envoy-retry-grpc-on",
    "x-envoy-retry-on",
    "x-envoy-upstream-canary",
    "x-envoy-upstream-rq-per-try-timeout-ms",
    "x-envoy-upstream-rq-timeout-alt-response",
    "x-envoy-upstream-rq-timeout-ms",
    "x-envoy-upstream-service-time",
    "x-envoy-upstream-stream-duration-ms",
    "x-forwarded-client-cert",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-proto",
    "x-request-id",
];

#[cfg(test)]
mod tests {
    use super::{core, *};
    use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;

    fn option(key: &str, value: &str, action: HeaderAppendAction) -> core::HeaderValueOption {
        let header = core::HeaderValue { key: key.into(), value: value.into(), ..Default::default() };
        core::HeaderValueOption { header: Some(header), append_action: action.into(), ..Default::default() }
    }

    fn applied(add: &[core::HeaderValueOption], remove: &[&str], before: &[(&str, &str)]) -> Vec<String> {
        let mut context = ParseContext::new(1);
        let remove: Vec<String> = remove.iter().map(|name| (*name).to_owned()).collect();
        let mutations = Mutations::parse("request", add, &remove, &mut context)
            .unwrap_or_else(|_| panic!("{:?}", context.problems.take()));
        let mut headers = HeaderMap::default();
        for (name, value) in before {
            headers.append_wire(name.as_bytes(), value.as_bytes());
        }
        mutations.apply(Side::Request, &StreamInfo::default(), &mut headers, &mut Scratch::default());
        let shown = headers.iter();
        shown.map(|(n, v)| format!("{}: {}", String::from_utf8_lossy(n), String::from_utf8_lossy(v))).collect()
    }

    #[test]
    fn each_append_action_does_what_its_name_says() {
        use HeaderAppendAction::{AddIfAbsent, AppendIfExistsOrAdd, OverwriteIfExists, OverwriteIfExistsOrAdd};
        let check = |action, before: &[(&str, &str)], expect: &[&str]| {
            assert_eq!(applied(&[option("x-a", "new", action)], &[], before), expect, "{action:?} {before:?}");
        };
        check(AppendIfExistsOrAdd, &[], &["x-a: new"]);
        check(AppendIfExistsOrAdd, &[("x-a", "old")], &["x-a: old", "x-a: new"]);
        check(AddIfAbsent, &[], &["x-a: new"]);
        check(AddIfAbsent, &[("x-a", "old")], &["x-a: old"]);
        check(OverwriteIfExistsOrAdd, &[], &["x-a: new"]);
        check(OverwriteIfExistsOrAdd, &[("x-a", "old"), ("x-a", "older")], &["x-a: new"]);
        check(OverwriteIfExists, &[], &[]);
        check(OverwriteIfExists, &[("x-a", "old")], &["x-a: new"]);
    }

    #[test]
    fn values_are_formatted_before_any_is_set() {
        use HeaderAppendAction::{AppendIfExistsOrAdd, OverwriteIfExistsOrAdd};
        let add = [
            option("x-a", "%REQ(x-b)%", OverwriteIfExistsOrAdd),
            option("x-b", "%REQ(x-a)%", OverwriteIfExistsOrAdd),
            option("x-c", "<%REQ(x-none)%>", AppendIfExistsOrAdd),
            option("x-d", "%REQ(x-none)%", AppendIfExistsOrAdd),
            option("x-e", "%REQ(x-gone)%", AppendIfExistsOrAdd),
            option("x-f", "100%%", AppendIfExistsOrAdd),
            option("accept", "b", AppendIfExistsOrAdd),
        ];
        let before = [("x-a", "1"), ("x-b", "2"), ("x-gone", "3"), ("accept", "a")];
        let after = ["x-a: 2", "x-b: 1", "accept: a,b", "x-c: <>", "x-f: 100%"];
        assert_eq!(applied(&add, &["x-gone"], &before), after);
    }

    #[test]
    fn an_empty_value_is_kept_where_wished() {
        let mut add = option("x-a", "", HeaderAppendAction::AppendIfExistsOrAdd);
        assert_eq!(applied(std::slice::from_ref(&add), &[], &[]), [""; 0]);
        add.keep_empty_value = true;
        assert_eq!(applied(&[add], &[], &[]), ["x-a: "]);
    }

    #[test]
    fn bad_changes_are_refused() {
        let check = |key: &str, value: &str, expect: &str| {
            let mut context = ParseContext::new(1);
            let add = [option(key, value, HeaderAppendAction::AddIfAbsent)];
            assert!(Mutations::parse("response", &add, &[], &mut context).is_err(), "{key} {value}");
            let shown: Vec<String> = context.problems.iter().map(ToString::to_string).collect();
            assert!(shown.concat().contains(expect), "{shown:?}");
        };
        check(":path", "/", "response_headers_to_add[0].header.key: :-prefixed or host headers may not be modified");
        check("Host", "a", "may not be modified");
        check("", "a", "must not be empty");
        check("a b", "a", "is no header name");
        check("x", "a\nb", "line breaks");
        check("x", "%NOPE%", "unknown operator");
        let mut context = ParseContext::new(1);
        assert!(Mutations::parse("request", &[], &["HOST".into()], &mut context).is_err());
    }

    #[test]
    fn old_forms_become_new_ones() {
        assert_eq!(modern(r#"a%UPSTREAM_METADATA(["ns", "key"])%b"#), "a%UPSTREAM_METADATA(ns:key)%b");
        assert_eq!(modern("%PER_REQUEST_STATE(x)%"), "%FILTER_STATE(x:PLAIN)%");
        assert_eq!(modern("%REQ(a)%"), "%REQ(a)%");
    }

    #[test]
    fn the_list_is_sorted() {
        assert!(JOINED.is_sorted());
    }
}
