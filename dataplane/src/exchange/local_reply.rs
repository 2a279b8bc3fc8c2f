//! The proxy's own replies: refusals, failures, redirects and direct responses. Status, body, flag and details are Envoy's.

use torus_codec::{BodyLength, HeaderMap, Known, Malformed, RequestMethod};

use super::client_stream::ClientStream;
use super::{After, Exchange, Scope};
use crate::downstream::edge::{self, EdgeRefusal};
use crate::filter::FilterRefusal;
use crate::route::local_reply::LocalReply;
use crate::route::{Match, Weighted};
use crate::telemetry::format::LogType;
use crate::telemetry::names::HttpStat;
use crate::telemetry::stream_info::ResponseFlag;
use crate::wire::BodyData;

/// A request that gets no reply from an upstream.
#[derive(Clone, Copy, Debug)]
pub struct Refusal<'a> {
    /// Status of the reply.
    pub status: u16,
    /// Body of the reply, plain text.
    pub body: &'a str,
    /// Response flag.
    pub flag: Option<ResponseFlag>,
    /// `RESPONSE_CODE_DETAILS`.
    pub details: &'a str,
    /// The connection can't be used again.
    pub close: bool,
    /// Put `x-envoy-overloaded`.
    pub overloaded: bool,
    /// `grpc-status` of the reply to a gRPC request, where it is not the one that follows from `status`.
    pub grpc_status: Option<&'static str>,
}

impl<'a> Refusal<'a> {
    /// No virtual host or route takes the request.
    pub const NO_ROUTE: Refusal<'static> = Refusal::new(404, "", Some(ResponseFlag::NoRouteFound), "route_not_found");
    /// An upgrade that is not configured.
    pub const UPGRADE: Refusal<'static> = Refusal::new(403, "", None, "upgrade_failed").closing();
    /// No endpoint is left to try.
    pub const NO_HEALTHY_UPSTREAM: Refusal<'static> =
        Refusal::new(503, "no healthy upstream", Some(ResponseFlag::NoHealthyUpstream), "no_healthy_upstream");
    /// The head did not come in time.
    pub const HEAD_TIMEOUT: Refusal<'static> =
        Refusal::new(408, "request header timeout", None, "request_header_timeout").closing();
    /// The request did not come in time.
    pub const REQUEST_TIMEOUT: Refusal<'static> =
        Refusal::new(408, "request timeout", None, "request_overall_timeout").closing();
    /// The reply is longer than a filter may keep back.
    pub const REPLY_TOO_LONG: Refusal<'static> =
        Refusal::new(500, "Internal Server Error", None, "response_payload_too_large");
    /// No cluster has the name that the route gives.
    pub const NO_CLUSTER: Refusal<'static> =
        Refusal::new(503, "", Some(ResponseFlag::NoClusterFound), "cluster_not_found");

    /// A refusal after which the connection may live on.
    pub const fn new(status: u16, body: &'a str, flag: Option<ResponseFlag>, details: &'a str) -> Self {
        Self { status, body, flag, details, close: false, overloaded: false, grpc_status: None }
    }

    /// The same, and the connection closes.
    pub const fn closing(mut self) -> Self {
        self.close = true;
        self
    }

    /// Nothing happened for too long: 408 while the request is not all here, 504 while its reply is awaited.
    pub const fn stream_idle(request_is_complete: bool) -> Refusal<'static> {
        let flag = Some(ResponseFlag::StreamIdleTimeout);
        let status = if request_is_complete { 504 } else { 408 };
        Refusal::new(status, "stream timeout", flag, "stream_idle_timeout")
    }

    /// The request lasted too long.
    pub const fn too_long(request_is_complete: bool) -> Refusal<'static> {
        let status = if request_is_complete { 504 } else { 408 };
        let refusal = Refusal::new(status, "downstream duration timeout", None, "max_duration_timeout");
        Refusal { grpc_status: Some(GRPC_DEADLINE_EXCEEDED), ..refusal }
    }

    /// The refusal of a message that breaks HTTP/1.1; what follows on its connection means nothing.
    pub fn malformed(malformed: &Malformed) -> Refusal<'static> {
        let by_codec = is_codec_error(*malformed);
        let flag = by_codec.then_some(ResponseFlag::DownstreamProtocolError);
        let body = if by_codec { torus_codec::reason_phrase(malformed.status()) } else { "" };
        Refusal::new(malformed.status(), body, flag, malformed.details()).closing()
    }
}

impl From<FilterRefusal> for Refusal<'static> {
    fn from(refusal: FilterRefusal) -> Self {
        Refusal::new(refusal.status, refusal.body, None, refusal.details)
    }
}

impl From<EdgeRefusal> for Refusal<'static> {
    fn from(refusal: EdgeRefusal) -> Self {
        let base = Refusal::new(refusal.status(), refusal.body(), refusal.flag(), refusal.details());
        if refusal.closes() { base.closing() } else { base }
    }
}

impl Exchange {
    /// Answers with `refusal`.
    pub(super) fn refuse(
        &mut self,
        scope: &Scope<'_>,
        client: &mut ClientStream<'_>,
        matched: Option<(&Match<'_>, Weighted<'_>)>,
        refusal: &Refusal<'_>,
    ) -> After {
        self.note(refusal.flag, refusal.details);
        self.body.clear();
        self.body.extend_from_slice(refusal.body.as_bytes());
        self.send_local_reply(scope, client, matched, refusal)
    }

    /// Counts what the header rules refused; a path that was made canonical is answered with its redirect.
    pub(super) fn refuse_at_edge(
        &mut self,
        scope: &Scope<'_>,
        client: &mut ClientStream<'_>,
        refusal: EdgeRefusal,
    ) -> Result<After, Refusal<'static>> {
        let stat = match refusal {
            EdgeRefusal::HttpsOnPlaintext => HttpStat::DownstreamCxProtocolError,
            EdgeRefusal::PathNotAbsolute => HttpStat::DownstreamRqNonRelativePath,
            EdgeRefusal::PathNormalizationFailed => HttpStat::DownstreamRqFailedPathNormalization,
            EdgeRefusal::RedirectToNormalizedPath => HttpStat::DownstreamRqRedirectedWithNormalizedPath,
        };
        scope.manager.stats.increment(scope.core.core, stat);
        if refusal != EdgeRefusal::RedirectToNormalizedPath {
            return Err(Refusal::from(refusal));
        }
        self.text.clear();
        self.text.extend_from_slice(self.request.headers.get_known(Known::Path).unwrap_or_default());
        let after = self.send_redirect(scope, client, None, refusal.status());
        self.note(refusal.flag(), refusal.details());
        Ok(after)
    }

    /// Answers with the text in `self.body`, after `local_reply_config` had its say.
    pub(super) fn send_local_reply(
        &mut self,
        scope: &Scope<'_>,
        client: &mut ClientStream<'_>,
        matched: Option<(&Match<'_>, Weighted<'_>)>,
        refusal: &Refusal<'_>,
    ) -> After {
        let Refusal { status, overloaded, close, .. } = *refusal;
        let response = &mut self.response.headers;
        response.clear();
        response.append_known(Known::Status, Decimal::new(u64::from(status)).as_bytes());
        if overloaded && !scope.manager.router.suppress_envoy_headers {
            response.append_known(Known::XEnvoyOverloaded, b"true");
        }
        if let Some((matched, weighted)) = matched {
            if matched.virtual_host.include_attempt_count_in_response && self.info.attempt_count > 0 {
                let count = Decimal::new(u64::from(self.info.attempt_count));
                response.set_known(Known::XEnvoyAttemptCount, count.as_bytes());
            }
            let (request, scratch) = (&self.request.headers, &mut self.route_scratch);
            matched.finalize_response(weighted, &self.info, request, response, scratch);
        }
        self.send_mapped_reply(scope, client, status, close, refusal.grpc_status)
    }

    pub(super) fn send_redirect(
        &mut self,
        scope: &Scope<'_>,
        client: &mut ClientStream<'_>,
        matched: Option<&Match<'_>>,
        status: u16,
    ) -> After {
        self.note(None, "direct_response");
        self.body.clear();
        let response = &mut self.response.headers;
        response.clear();
        response.append_known(Known::Status, Decimal::new(u64::from(status)).as_bytes());
        response.append_known(Known::Location, &self.text);
        if let Some(matched) = matched {
            let (request, scratch) = (&self.request.headers, &mut self.route_scratch);
            matched.finalize_response(Weighted::default(), &self.info, request, response, scratch);
        }
        self.send_mapped_reply(scope, client, status, false, None)
    }

    pub(super) fn send_direct_response(
        &mut self,
        scope: &Scope<'_>,
        client: &mut ClientStream<'_>,
        matched: &Match<'_>,
    ) -> After {
        self.note(None, "direct_response");
        let mut body = std::mem::take(&mut self.body);
        let mut location = std::mem::take(&mut self.text);
        self.response.headers.clear();
        let context = self.format_context(LogType::DownstreamEnd, scope.core);
        let (status, content_type) = matched.direct_response(&context, &mut body, &mut location);
        self.body = body;
        let response = &mut self.response.headers;
        response.append_known(Known::Status, Decimal::new(u64::from(status)).as_bytes());
        if !location.is_empty() {
            response.append_known(Known::Location, &location);
        }
        self.text = location;
        let (request, scratch) = (&self.request.headers, &mut self.route_scratch);
        matched.finalize_response(Weighted::default(), &self.info, request, response, scratch);
        if let Some(content_type) = content_type {
            response.set_known(Known::ContentType, content_type.as_bytes());
        }
        self.send_mapped_reply(scope, client, status, false, None)
    }

    /// Lets `local_reply_config` rewrite the reply, then sends it.
    fn send_mapped_reply(
        &mut self,
        scope: &Scope<'_>,
        client: &mut ClientStream<'_>,
        status: u16,
        close: bool,
        grpc_status: Option<&str>,
    ) -> After {
        let random = scope.core.random.borrow_mut().next_u64();
        let (request, scratch) = (&self.request.headers, &mut self.route_scratch);
        let mut reply = LocalReply { status, headers: &mut self.response.headers, body: &mut self.body };
        scope.manager.local_reply.map(&mut reply, &mut self.info, request, random, scratch);
        let status = reply.status;
        if let Some(grpc_status) = grpc_status
            && self.response.headers.get_known(Known::GrpcStatus).is_some()
        {
            self.response.headers.set_known(Known::GrpcStatus, grpc_status.as_bytes());
        }
        self.send_own_reply(scope, client, status, close)
    }

    /// Answers where a header change made a reply that is no HTTP.
    pub(super) fn send_bare_error(&mut self, scope: &Scope<'_>, client: &mut ClientStream<'_>) -> After {
        let wire_bytes = client.send_bare_error();
        self.note(None, "reply_not_encodable");
        self.info.response_code = 500;
        self.info.downstream_wire_bytes_sent += wire_bytes as u64;
        self.info.downstream_last_sent = Some(self.elapsed(scope.core));
        After::Close
    }

    /// Sends `self.response.headers` with `self.body`, which is complete.
    fn send_own_reply(&mut self, scope: &Scope<'_>, client: &mut ClientStream<'_>, status: u16, close: bool) -> After {
        let response = &mut self.response.headers;
        if !self.filters.is_empty() {
            self.filters.on_local_reply(status, response, &mut self.body);
        }
        let body_bytes = self.body.len() as u64;
        if body_bytes > 0 && status != 204 {
            response.set_known(Known::ContentLength, Decimal::new(body_bytes).as_bytes());
        } else {
            response.remove_known(Known::ContentLength);
        }
        self.info.local_reply = true;
        self.info.response_code = status;
        let date = scope.core.date();
        edge::prepare_response(scope.manager, &self.request.headers, &date, response, &mut self.edge_scratch);
        // What follows a refused CONNECT or upgrade may be meant for the tunnel.
        let close = close || self.method() == RequestMethod::Connect || self.asks_upgrade;
        let close = close || self.closes_after_reply(scope) || !self.request.keep_alive || !self.upload.is_received();
        self.count_early(scope);
        let (version, options, token) =
            (self.request.version, self.encode_options(scope), self.connection_token(close));
        let (response, body) = (&self.response.headers, &self.body);
        let length = if body.is_empty() { BodyLength::Empty } else { BodyLength::Length(body_bytes) };
        let sent = client.send_head(&scope.core.ring, version, response, length, token, &options);
        let Ok((head_bytes, length)) = sent else { return self.send_bare_error(scope, client) };
        self.info.header_bytes_sent = response.byte_count() as u64;
        let mut wire_bytes = head_bytes;
        if length != BodyLength::Empty {
            wire_bytes += match client {
                ClientStream::Http1(_) => client.send_slice(&scope.core.ring, body),
                ClientStream::Http2(_) => {
                    client.send_body(&scope.core.ring, BodyData::Bytes(scope.core.shared_body(body)))
                }
            };
            client.finish_body(&scope.core.ring, &HeaderMap::default(), options.case);
            self.info.body_bytes_sent = body_bytes;
        }
        self.info.downstream_wire_bytes_sent += wire_bytes as u64;
        let elapsed = self.elapsed(scope.core);
        self.info.downstream_first_sent = Some(elapsed);
        self.info.downstream_last_sent = Some(elapsed);
        if close { After::Close } else { After::KeepAlive }
    }
}

/// Whether Envoy's codec finds the fault; the others are found by its connection manager, which answers without a body.
pub fn is_codec_error(malformed: Malformed) -> bool {
    !matches!(malformed, Malformed::HostMissing | Malformed::TargetFragment)
}

/// DEADLINE_EXCEEDED. Source: gRPC, status codes.
const GRPC_DEADLINE_EXCEEDED: &str = "4";

/// A number as decimal text, on the stack.
pub struct Decimal {
    digits: [u8; 20],
    start: usize,
}

impl Decimal {
    /// The text of `value`.
    pub fn new(mut value: u64) -> Self {
        let mut digits = [b'0'; 20];
        let mut start = digits.len();
        loop {
            start -= 1;
            if let Some(slot) = digits.get_mut(start) {
                *slot = b'0' + (value % 10) as u8;
            }
            value /= 10;
            if value == 0 {
                return Self { digits, start };
            }
        }
    }

    /// The digits.
    pub fn as_bytes(&self) -> &[u8] {
        self.digits.get(self.start..).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_decimal_text() {
        for value in [0, 7, 10, 404, 65_535, u64::MAX] {
            assert_eq!(Decimal::new(value).as_bytes(), value.to_string().as_bytes());
        }
    }
}
