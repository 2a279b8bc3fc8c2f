//! Which fields a client outside may not set, and which ones are one value however often they come.
//! Source: Envoy's documentation, "HTTP header sanitizing".

use torus_codec::{HeaderMap, HeaderName, Known, KnownSet};

/// Removed from every request that is not internal.
const NOT_EXTERNAL: KnownSet = KnownSet::of(&[
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
    Known::XEnvoyOriginalUrl,
]);

/// Removed besides at the edge.
const NOT_FROM_OUTSIDE: KnownSet = KnownSet::of(&[
    Known::XEnvoyDecoratorOperation,
    Known::XEnvoyDownstreamServiceCluster,
    Known::XEnvoyDownstreamServiceNode,
    Known::XEnvoyOriginalPath,
    Known::XEnvoyOriginalHost,
]);

/// Removes the fields that steer this proxy from a request that must not steer it.
pub(super) fn remove_untrusted(edge: bool, internal_only: &[HeaderName], headers: &mut HeaderMap) {
    headers.remove_all(if edge { NOT_EXTERNAL.and(NOT_FROM_OUTSIDE) } else { NOT_EXTERNAL });
    for name in internal_only {
        headers.remove(name);
    }
}

/// What Envoy makes one value of in a request.
pub(super) const JOINED_ON_REQUEST: KnownSet = JOINED_ALWAYS.and(KnownSet::of(&[
    Known::Accept,
    Known::AcceptEncoding,
    Known::Authorization,
    Known::CacheControl,
    Known::ContentType,
    Known::Expect,
    Known::GrpcTimeout,
    Known::Origin,
    Known::Referer,
    Known::UserAgent,
    Known::XClientTraceId,
    Known::XForwardedClientCert,
    Known::XForwardedFor,
    Known::XForwardedHost,
    Known::XForwardedPort,
    Known::XForwardedProto,
]));

/// What Envoy makes one value of in a reply.
pub(super) const JOINED_ON_RESPONSE: KnownSet = JOINED_ALWAYS.and(KnownSet::of(&[
    Known::Age,
    Known::CacheControl,
    Known::ContentEncoding,
    Known::ContentType,
    Known::Date,
    Known::Etag,
    Known::GrpcMessage,
    Known::GrpcStatus,
    Known::LastModified,
    Known::Location,
    Known::Server,
    Known::Vary,
]));

/// What Envoy makes one value of in both.
const JOINED_ALWAYS: KnownSet = KnownSet::of(&[
    Known::Via,
    Known::XRequestId,
    Known::XEnvoyInternal,
    Known::XEnvoyExternalAddress,
    Known::XEnvoyForceTrace,
    Known::XEnvoyDownstreamServiceCluster,
    Known::XEnvoyDownstreamServiceNode,
    Known::XEnvoyMaxRetries,
    Known::XEnvoyRetryOn,
    Known::XEnvoyRetryGrpcOn,
    Known::XEnvoyRetriableHeaderNames,
    Known::XEnvoyRetriableStatusCodes,
    Known::XEnvoyUpstreamAltStatName,
    Known::XEnvoyUpstreamRqTimeoutMs,
    Known::XEnvoyUpstreamRqPerTryTimeoutMs,
    Known::XEnvoyUpstreamRqTimeoutAltResponse,
    Known::XEnvoyHedgeOnPerTryTimeout,
    Known::XEnvoyUpstreamStreamDurationMs,
    Known::XEnvoyExpectedRqTimeoutMs,
    Known::XEnvoyOriginalPath,
    Known::XEnvoyOriginalHost,
    Known::XEnvoyAttemptCount,
    Known::XEnvoyIsTimeoutRetry,
    Known::XEnvoyUpstreamServiceTime,
    Known::XEnvoyOverloaded,
    Known::XEnvoyRateLimited,
    Known::XEnvoyDecoratorOperation,
    Known::XEnvoyImmediateHealthCheckFail,
    Known::XEnvoyUpstreamCanary,
    Known::XEnvoyDegraded,
    Known::XEnvoyIpTags,
]);
