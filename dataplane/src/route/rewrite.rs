//! What a match changes: the request's path, host and fields, the reply's fields, and the `location` of a redirect.

use std::io::Write as _;

use torus_codec::headers::{HeaderMap, Known};

use super::action::{
    Action, ClusterSpecifier, Forward, HostRewrite, PathRewrite, Redirect, WeightedClusters, WeightedEntry,
};
use super::mutation::{Mutations, Side};
use super::parameters::without_query;
use super::scratch::Scratch;
use super::table::{ClusterChoice, ClusterTarget, Match, Weighted};
use crate::telemetry::format::FormatContext;
use crate::telemetry::stream_info::StreamInfo;

impl<'a> Match<'a> {
    /// The cluster for this request. `random` decides between weights, unless a field of the request does, or `hash` where
    /// [`Forward::weighs_by_hash`] says so. A route that does not forward names no cluster.
    pub fn choose_cluster<'h>(&self, request: &'h HeaderMap, random: u64, hash: Option<u64>) -> ClusterChoice<'a, 'h>
    where
        'a: 'h,
    {
        let Action::Forward(forward) = &self.route.action else {
            return ClusterChoice { target: ClusterTarget::Named(b""), weighted: Weighted::default() };
        };
        match &forward.cluster {
            ClusterSpecifier::Weighted(clusters) => {
                let entry = clusters.choose(request, random, hash);
                let target = entry.map_or(ClusterTarget::Named(b""), |entry| entry.cluster.target(request));
                ClusterChoice { target, weighted: Weighted(entry) }
            }
            single => ClusterChoice { target: single.target(request), weighted: Weighted::default() },
        }
    }

    /// Applies header changes of the weighted entry, route, virtual host and table, then host and path rewrites.
    /// `keep_original` puts `x-envoy-original-path` and `x-envoy-original-host` (off with `suppress_envoy_headers`).
    pub fn finalize_request(
        &self,
        weighted: Weighted<'a>,
        keep_original: bool,
        info: &StreamInfo,
        request: &mut HeaderMap,
        scratch: &mut Scratch,
    ) {
        if let Weighted(Some(entry)) = weighted {
            entry.request.apply(Side::Request, info, request, scratch);
            if let Some(host) = &entry.host {
                request.set_known(Known::Authority, host.as_bytes());
            }
        }
        for mutations in self.by_specificity(&self.route.request, &self.virtual_host.request, &self.table.request) {
            mutations.apply(Side::Request, info, request, scratch);
        }
        let Action::Forward(forward) = &self.route.action else { return };
        forward.rewrite_host(keep_original, info, request, scratch);
        self.rewrite_path(&forward.path_rewrite, keep_original, info, request, scratch);
    }

    /// `auto_host_rewrite`: the endpoint's host name becomes `:authority`. Nothing happens where it is not set.
    pub fn rewrite_host_for_endpoint(
        &self,
        hostname: &str,
        keep_original: bool,
        request: &mut HeaderMap,
        scratch: &mut Scratch,
    ) {
        let Action::Forward(forward) = &self.route.action else { return };
        if forward.auto_host_rewrite && !hostname.is_empty() {
            let Scratch { value, other, .. } = scratch;
            value.clear();
            value.extend_from_slice(hostname.as_bytes());
            set_authority(request, value, forward.append_forwarded_host, keep_original, other);
        }
    }

    /// Applies the header changes for replies, also for redirects, direct responses and the proxy's own replies after a match.
    pub fn finalize_response(
        &self,
        weighted: Weighted<'a>,
        info: &StreamInfo,
        request: &HeaderMap,
        response: &mut HeaderMap,
        scratch: &mut Scratch,
    ) {
        let side = Side::Response(request);
        if let Weighted(Some(entry)) = weighted {
            entry.response.apply(side, info, response, scratch);
        }
        for mutations in self.by_specificity(&self.route.response, &self.virtual_host.response, &self.table.response) {
            mutations.apply(side, info, response, scratch);
        }
    }

    /// For [`super::Action::Redirect`]: rewrites the request's path as Envoy does, writes the `location` value into `location`
    /// (cleared first) and gives the status.
    pub fn redirect(
        &self,
        keep_original: bool,
        info: &StreamInfo,
        request: &mut HeaderMap,
        location: &mut Vec<u8>,
        scratch: &mut Scratch,
    ) -> u16 {
        location.clear();
        let Action::Redirect(redirect) = &self.route.action else { return 503 };
        self.rewrite_path(&redirect.rewrite, keep_original, info, request, scratch);
        redirect.write_location(info, request, location, &mut scratch.value);
        redirect.status
    }

    /// For [`super::Action::DirectResponse`]: writes the body into `body` (cleared first) and the `location` into `location`
    /// (empty where none belongs), and gives the status and the content type to set after [`Self::finalize_response`], if any.
    pub fn direct_response(
        &self,
        context: &FormatContext<'_>,
        body: &mut Vec<u8>,
        location: &mut Vec<u8>,
    ) -> (u16, Option<&'a str>) {
        body.clear();
        location.clear();
        let Action::DirectResponse(direct) = &self.route.action else { return (503, None) };
        if direct.status == 201 || (300..400).contains(&direct.status) {
            write_location(context.request, &Target::default(), location);
        }
        match &direct.format {
            None => {
                body.extend_from_slice(&direct.body);
                (direct.status, None)
            }
            Some(format) => {
                format.write(&FormatContext { local_reply_body: &direct.body, ..*context }, body);
                (direct.status, format.own_content_type())
            }
        }
    }

    /// The later one wins.
    fn by_specificity(&self, route: &'a Mutations, host: &'a Mutations, table: &'a Mutations) -> [&'a Mutations; 3] {
        if self.table.most_specific_wins { [table, host, route] } else { [route, host, table] }
    }

    fn rewrite_path(
        &self,
        rewrite: &PathRewrite,
        keep_original: bool,
        info: &StreamInfo,
        request: &mut HeaderMap,
        scratch: &mut Scratch,
    ) {
        let Scratch { value, regex, .. } = scratch;
        value.clear();
        let Some(path) = request.get_known(Known::Path) else { return };
        let kept_from = match rewrite {
            PathRewrite::None => return,
            PathRewrite::Prefix(prefix) => {
                value.extend_from_slice(prefix.as_bytes());
                self.route.path.matched_len(path)
            }
            PathRewrite::Substitution(substitution) => {
                let just_path = without_query(path);
                substitution.replace_all(just_path, regex, value);
                just_path.len()
            }
            PathRewrite::Format(format) => {
                format.write(&FormatContext::new(info, request), value);
                if value.is_empty() {
                    return;
                }
                without_query(path).len()
            }
        };
        value.extend_from_slice(path.get(kept_from..).unwrap_or_default());
        if keep_original {
            scratch.other.clear();
            scratch.other.extend_from_slice(path);
            request.set_known(Known::XEnvoyOriginalPath, &scratch.other);
        }
        request.set_known(Known::Path, value);
    }
}

impl Forward {
    /// Whether [`Match::choose_cluster`] wants the hash of `hash_policy` (`weighted_clusters.use_hash_policy`).
    pub fn weighs_by_hash(&self) -> bool {
        matches!(&self.cluster, ClusterSpecifier::Weighted(clusters) if clusters.use_hash_policy)
    }

    fn rewrite_host(&self, keep_original: bool, info: &StreamInfo, request: &mut HeaderMap, scratch: &mut Scratch) {
        let Scratch { value, other, regex, .. } = scratch;
        value.clear();
        match &self.host_rewrite {
            HostRewrite::None => return,
            HostRewrite::Literal(host) => value.extend_from_slice(host.as_bytes()),
            HostRewrite::Header(name) => value.extend_from_slice(request.get(name).unwrap_or_default()),
            HostRewrite::PathRegex(substitution) => {
                let path = request.get_known(Known::Path).unwrap_or_default();
                substitution.replace_all(without_query(path), regex, value);
            }
            HostRewrite::Format(format) => format.write(&FormatContext::new(info, request), value),
        }
        if !value.is_empty() {
            set_authority(request, value, self.append_forwarded_host, keep_original, other);
        }
    }
}

/// Makes `host` the `:authority` and keeps the old one where wished.
fn set_authority(
    request: &mut HeaderMap,
    host: &[u8],
    append_forwarded: bool,
    keep_original: bool,
    other: &mut Vec<u8>,
) {
    let old = request.get_known(Known::Authority).unwrap_or_default();
    if append_forwarded && !old.is_empty() {
        let forwarded = request.get_known(Known::XForwardedHost).unwrap_or_default();
        let last = forwarded.rsplit(|byte| *byte == b',').find(|token| !token.is_empty());
        if last != Some(old) {
            other.clear();
            other.extend_from_slice(forwarded);
            if !forwarded.is_empty() {
                other.push(b',');
            }
            other.extend_from_slice(old);
            request.set_known(Known::XForwardedHost, other);
        }
    }
    if keep_original {
        other.clear();
        other.extend_from_slice(request.get_known(Known::Authority).unwrap_or_default());
        request.set_known(Known::XEnvoyOriginalHost, other);
    }
    request.set_known(Known::Authority, host);
}

impl ClusterSpecifier {
    fn target<'h>(&'h self, request: &'h HeaderMap) -> ClusterTarget<'h> {
        match self {
            Self::Index(index) => ClusterTarget::Index(*index),
            Self::Named(name) => ClusterTarget::Named(name.as_bytes()),
            Self::Header(name) => ClusterTarget::Named(request.get(name).unwrap_or_default()),
            Self::Weighted(_) => ClusterTarget::Named(b""),
        }
    }
}

impl WeightedClusters {
    fn choose(&self, request: &HeaderMap, random: u64, hash: Option<u64>) -> Option<&WeightedEntry> {
        let from_header = || {
            let text = request.get(self.random_header.as_ref()?)?;
            std::str::from_utf8(text).ok()?.trim_ascii().parse::<u64>().ok()
        };
        let from_hash = if self.use_hash_policy { hash } else { None };
        let mut at = from_hash.or_else(from_header).unwrap_or(random) % self.weight_total.max(1);
        self.entries.iter().find(|entry| {
            let here = at < entry.weight;
            at = at.saturating_sub(entry.weight);
            here
        })
    }
}

/// What of a URI a redirect sets; the rest is the request's.
#[derive(Default)]
struct Target<'a> {
    scheme: Option<&'a str>,
    host: Option<&'a str>,
    port: Option<&'a str>,
    path: Option<&'a [u8]>,
    strip_query: bool,
}

impl Redirect {
    fn write_location(&self, info: &StreamInfo, request: &HeaderMap, location: &mut Vec<u8>, path: &mut Vec<u8>) {
        path.clear();
        if let Some(format) = &self.path_format {
            format.write(&FormatContext::new(info, request), path);
        }
        let made = (!path.is_empty()).then_some(path.as_slice());
        let target = Target {
            scheme: self.scheme.as_deref(),
            host: self.host.as_deref(),
            port: self.port.as_deref(),
            path: self.path.as_deref().map(str::as_bytes).or(made),
            strip_query: self.strip_query,
        };
        write_location(request, &target, location);
    }
}

fn write_location(request: &HeaderMap, target: &Target<'_>, location: &mut Vec<u8>) {
    let scheme = match target.scheme {
        Some(scheme) => scheme.as_bytes(),
        None => {
            request.get_known(Known::Scheme).or_else(|| request.get_known(Known::XForwardedProto)).unwrap_or(b"http")
        }
    };
    let host = match target.host {
        Some(host) => host.as_bytes(),
        None => request_host(request, scheme, target.port.is_some()),
    };
    location.extend_from_slice(scheme);
    location.extend_from_slice(b"://");
    location.extend_from_slice(host);
    location.extend_from_slice(target.port.unwrap_or_default().as_bytes());
    let path = request.get_known(Known::Path).unwrap_or_default();
    let (path, query) = path.split_at_checked(memchr::memchr(b'?', path).unwrap_or(path.len())).unwrap_or_default();
    location.extend_from_slice(target.path.unwrap_or(path));
    // A query that the redirect itself brings takes the place of the request's.
    if !target.strip_query && !target.path.is_some_and(|path| path.contains(&b'?')) {
        location.extend_from_slice(query);
    }
}

/// The request's host. Its port goes where another takes its place, or where it is the default of a scheme that is left.
fn request_host<'h>(request: &'h HeaderMap, new_scheme: &[u8], has_new_port: bool) -> &'h [u8] {
    let host = request.get_known(Known::Authority).unwrap_or_default();
    let colon = if host.starts_with(b"[") {
        memchr::memmem::rfind(host, b"]:").map(|bracket| bracket + 1)
    } else {
        memchr::memrchr(b':', host)
    };
    let Some((name, port)) = colon.and_then(|colon| host.split_at_checked(colon)) else { return host };
    let old_scheme = request.get_known(Known::XForwardedProto).unwrap_or_default();
    let default_left = new_scheme != old_scheme
        && ((old_scheme == b"https" && port == b":443") || (old_scheme == b"http" && port == b":80"));
    if has_new_port || default_left { name } else { host }
}

/// Writes where a request that must use https is sent, into `location` (cleared first).
pub fn tls_location(request: &HeaderMap, location: &mut Vec<u8>) {
    location.clear();
    location.extend_from_slice(b"https://");
    location.extend_from_slice(request.get_known(Known::Authority).unwrap_or_default());
    location.extend_from_slice(request.get_known(Known::Path).unwrap_or_default());
}

/// Writes `x-envoy-upstream-service-time` and the like: a number as a field's value.
pub fn set_number(headers: &mut HeaderMap, name: Known, number: u64, scratch: &mut Scratch) {
    scratch.value.clear();
    // Writing to a Vec cannot fail.
    let _ = write!(scratch.value, "{number}");
    headers.set_known(name, &scratch.value);
}
