//! What a match changes: the request's path, host and fields, the reply's fields, and the `location` of a redirect.

use torus_codec::headers::{HeaderMap, Known};

use super::scratch::Scratch;
use super::table::{ClusterChoice, Match, Weighted};
use crate::config::address::Address;
use crate::telemetry::format::FormatContext;
use crate::telemetry::stream_info::StreamInfo;

impl<'a> Match<'a> {
    /// The cluster for this request; call only where the action is [`super::Action::Forward`]. `random` decides between weights.
    pub fn choose_cluster<'h>(&self, request: &'h HeaderMap, random: u64) -> ClusterChoice<'a, 'h>
    where
        'a: 'h,
    {
        let _ = (request, random);
        ClusterChoice { target: super::ClusterTarget::Named(b""), weighted: Weighted::default() }
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
        let _ = (weighted, keep_original, info, request, scratch);
    }

    /// `auto_host_rewrite`: the endpoint's host name becomes `:authority`. Nothing happens where it is not set.
    pub fn rewrite_host_for_endpoint(
        &self,
        hostname: &str,
        keep_original: bool,
        request: &mut HeaderMap,
        scratch: &mut Scratch,
    ) {
        let _ = (hostname, keep_original, request, scratch);
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
        let _ = (weighted, info, request, response, scratch);
    }

    /// The hash of `hash_policy`; call it only for ring-hash and Maglev clusters. Cookies that the policy makes are added to
    /// `cookies` as whole `set-cookie` values, each ended by a NUL byte; add them to the reply.
    pub fn hash(
        &self,
        request: &HeaderMap,
        remote: Option<&Address>,
        local: Option<&Address>,
        direct_remote: Option<&Address>,
        cookies: &mut Vec<u8>,
        scratch: &mut Scratch,
    ) -> Option<u64> {
        let _ = (request, remote, local, direct_remote, cookies, scratch);
        None
    }

    /// For [`super::Action::Redirect`]: rewrites the request's path as Envoy does, writes the `location` value into `location`
    /// (cleared first) and gives the status.
    pub fn redirect(
        &self,
        keep_original: bool,
        request: &mut HeaderMap,
        location: &mut Vec<u8>,
        scratch: &mut Scratch,
    ) -> u16 {
        let _ = (keep_original, request, location, scratch);
        301
    }

    /// For [`super::Action::DirectResponse`]: writes the body into `body` (cleared first) and the `location` into `location`
    /// (empty where none belongs), and gives status and content type (`None`: `text/plain` where there is a body).
    pub fn direct_response(
        &self,
        context: &FormatContext<'_>,
        body: &mut Vec<u8>,
        location: &mut Vec<u8>,
    ) -> (u16, Option<&'a str>) {
        let _ = (context, body, location);
        (200, None)
    }
}

/// Writes where a request that must use https is sent, into `location` (cleared first).
pub fn tls_location(request: &HeaderMap, location: &mut Vec<u8>) {
    location.clear();
    location.extend_from_slice(b"https://");
    location.extend_from_slice(request.get_known(Known::Authority).unwrap_or_default());
    location.extend_from_slice(request.get_known(Known::Path).unwrap_or_default());
}
