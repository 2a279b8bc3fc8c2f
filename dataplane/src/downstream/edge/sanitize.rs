//! Which fields a client outside may not set, and which ones are one value however often they come.
//! Source: Envoy's documentation, "HTTP header sanitizing".

use torus_codec::{HeaderMap, HeaderName, Known};

/// Removed from every request that is not internal.
const NOT_EXTERNAL: &[Known] = &[
    Known::XEnvoyRetriableStatusCodes,
    Known::XEnvoyRetriableHeaderNames,
    Known::XEnvoyRetryOn,
    Known::XEnvoyRetryGrpcOn,
    Known::XEnvoyMaxRetries,
    Known::XEnvoyUpstreamAltStatName,
    Known::XEnvoyUpstreamRqTimeoutMs,
    Known::XEnvoyUpstreamRqPerTryTimeoutMs,
    Known::XEnvoyUpstreamRqTimeoutAltResponse,
    Known::XEnvoyExpectedRqTimeoutMs,
    Known::XEnvoyHedgeOnPerTryTimeout,
    Known::XEnvoyUpstreamStreamDurationMs,
    Known::XEnvoyForceTrace,
    Known::XEnvoyIpTags,
];

/// Removed besides at the edge.
const NOT_FROM_OUTSIDE: &[Known] = &[
    Known::XEnvoyDecoratorOperation,
    Known::XEnvoyDownstreamServiceCluster,
    Known::XEnvoyDownstreamServiceNode,
    Known::XEnvoyOriginalPath,
    Known::XEnvoyOriginalHost,
];

/// Removes the fields that steer this proxy from a request that must not steer it.
pub(super) fn remove_untrusted(edge: bool, internal_only: &[HeaderName], headers: &mut HeaderMap) {
    headers.remove_all_known(|known| NOT_EXTERNAL.contains(&known) || edge && NOT_FROM_OUTSIDE.contains(&known));
    for name in internal_only {
        headers.remove(name);
    }
}

/// Whether Envoy makes one value of a request field that comes more than once.
pub(super) fn joins_on_request(known: Known) -> bool {
    joins_always(known)
        || matches!(
            known,
            Known::Accept
                | Known::AcceptEncoding
                | Known::Authorization
                | Known::CacheControl
                | Known::ContentType
                | Known::Expect
                | Known::GrpcTimeout
                | Known::Origin
                | Known::Referer
                | Known::UserAgent
                | Known::XClientTraceId
                | Known::XForwardedClientCert
                | Known::XForwardedFor
                | Known::XForwardedHost
                | Known::XForwardedPort
                | Known::XForwardedProto
        )
}

/// Whether Envoy makes one value of a reply field that comes more than once.
pub(super) fn joins_on_response(known: Known) -> bool {
    joins_always(known)
        || matches!(
            known,
            Known::Age
                | Known::CacheControl
                | Known::ContentEncoding
                | Known::ContentType
                | Known::Date
                | Known::Etag
                | Known::GrpcMessage
                | Known::GrpcStatus
                | Known::LastModified
                | Known::Location
                | Known::Server
                | Known::Vary
        )
}

fn joins_always(known: Known) -> bool {
    matches!(known, Known::Via | Known::XRequestId) || known.as_str().starts_with("x-envoy-")
}
