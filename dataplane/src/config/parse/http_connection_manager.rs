//! `envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager` becomes an [`HttpConnectionManager`].

use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as proto;
use envoy_types::pb::envoy::extensions::request_id::uuid::v3::UuidRequestIdConfig;
use prost::Message as _;
use torus_codec::{Limits, RequestOptions};
use torus_xds::wire;

use super::context::type_name;
use super::{ParseContext, cidr, config_source, http_filters, http2_options};
use crate::config::discovery::kind::Kind;
use crate::config::reject::Refused;
use crate::downstream::edge::{ClientCertDetails, ForwardClientCert};
use crate::downstream::{
    CodecType, EdgeOptions, EscapedSlashes, HeaderCase, Http1Options, HttpConnectionManager, HttpTimeouts, RouteSource,
    ServerHeader, StripPort, UnderscoreAction, UserAgent,
};
use crate::route::RouteTable;
use crate::route::local_reply::LocalReplyMapper;
use crate::telemetry::access_log::AccessLog;

/// Compiles the message in `bytes`; `listener_prefix` is the listener's stat prefix with its last dot.
///
/// The route table is the large part and never becomes a message as a whole.
pub fn parse(
    bytes: &[u8],
    listener_prefix: &str,
    context: &mut ParseContext,
) -> Result<HttpConnectionManager, Refused> {
    let start = context.problems.checkpoint();
    let rest = wire::without(bytes, &[ROUTE_CONFIG]);
    let config = proto::HttpConnectionManager::decode(rest.as_slice());
    let config = &config.map_err(|error| context.reject("", error.to_string()))?;
    let stat_prefix = stat_prefix(&config.stat_prefix, context);
    let codec = codec_type(config.codec_type(), context);
    let common = config.common_http_protocol_options.unwrap_or_default();
    let limits = context.within("common_http_protocol_options", |context| common_limits(&common, context));
    let timeouts = timeouts(config, &common, context);
    let header_bytes_max = header_bytes_max(config, context);
    let http1 = config.http_protocol_options.clone().unwrap_or_default();
    let http1 = context.within("http_protocol_options", |context| http1_options(&http1, context));
    let http2 = config.http2_protocol_options.as_ref();
    let http2 = context.within("http2_protocol_options", |context| http2_options::parse(http2, context));
    let routes = route_table(bytes, config, context);
    let filters = http_filters::parse("http_filters", &config.http_filters, context);
    let edge = edge_options(config, &common, context);
    let local_reply = match &config.local_reply_config {
        Some(config) => context.within("local_reply_config", |context| LocalReplyMapper::parse(config, context)),
        None => Ok(LocalReplyMapper::default()),
    };
    let access_logs = context.each("access_log", &config.access_log, AccessLog::parse);
    let (log_on_new_request, log_interval) = access_log_options(config, context);
    let upgrades = upgrades(&config.upgrade_configs, context);
    header_value("server_name", &config.server_name, context);
    let server_name = if config.server_name.is_empty() { "envoy" } else { &config.server_name };
    context.problems.clean_since(start)?;
    let (routes, edge, (filters, router)) = (routes?, edge?, filters?);
    let registry = &context.registry;
    let request_options = RequestOptions {
        limits: Limits {
            header_bytes_max: header_bytes_max as usize,
            header_count_max: limits.header_count_max as usize,
            ..Limits::default()
        },
        accept_http_10: http1.accept_http_10,
        default_host: http1.default_host.clone(),
        allow_absolute_url: http1.allow_absolute_url,
        refuse_https_target: false,
        allow_chunked_length: http1.allow_chunked_length,
        allow_custom_methods: http1.allow_custom_methods,
        underscores: edge.underscores,
    };
    Ok(HttpConnectionManager {
        request_options,
        stats: registry.group(&format!("http.{stat_prefix}.")),
        listener_stats: registry.group(&format!("{listener_prefix}http.{stat_prefix}.")),
        http1_stats: registry.group("http1."),
        http2_stats: registry.group("http2."),
        codec,
        stat_prefix: stat_prefix.into(),
        routes,
        timeouts: timeouts?,
        header_bytes_max,
        header_count_max: limits.header_count_max,
        requests_per_connection_max: limits.requests_per_connection_max,
        http1,
        http2,
        server_name: server_name.into(),
        server_header: server_header(config),
        edge,
        local_reply: local_reply?,
        access_logs: access_logs?,
        log_on_new_request,
        log_interval,
        upgrades: upgrades?,
        filters,
        router,
        proxy_100_continue: config.proxy_100_continue,
        stream_error_on_invalid_message: stream_error_on_invalid_message(config),
    })
}

/// Envoy's characters that would break a stat name become `_`.
fn stat_prefix(text: &str, context: &mut ParseContext) -> String {
    let _ = context.non_empty("stat_prefix", text);
    text.replace(':', "_")
}

fn codec_type(codec: proto::http_connection_manager::CodecType, context: &mut ParseContext) -> CodecType {
    use proto::http_connection_manager::CodecType as Configured;
    match codec {
        Configured::Auto => CodecType::Auto,
        Configured::Http1 => CodecType::Http1,
        Configured::Http2 => CodecType::Http2,
        Configured::Http3 => {
            let _ = context.reject("codec_type", "HTTP/3 is not there yet in this version");
            CodecType::Auto
        }
    }
}

struct CommonLimits {
    header_count_max: u32,
    requests_per_connection_max: Option<u32>,
}

fn common_limits(config: &core::HttpProtocolOptions, context: &mut ParseContext) -> CommonLimits {
    let header_count_max = config.max_headers_count.map_or(HEADER_COUNT_MAX, |count| count.value);
    if header_count_max == 0 {
        let _ = context.reject("max_headers_count", "must be at least 1");
    }
    // 0 means no limit, as in Envoy.
    let requests = config.max_requests_per_connection.map(|count| count.value).filter(|count| *count > 0);
    CommonLimits { header_count_max, requests_per_connection_max: requests }
}

fn header_bytes_max(config: &proto::HttpConnectionManager, context: &mut ParseContext) -> u32 {
    let kibibytes = config.max_request_headers_kb.map_or(HEADER_KIBIBYTES_MAX, |limit| limit.value);
    if kibibytes == 0 || kibibytes > 8192 {
        let _ = context.reject("max_request_headers_kb", format!("must be from 1 to 8192, is {kibibytes}"));
    }
    kibibytes.saturating_mul(1024)
}

fn timeouts(
    config: &proto::HttpConnectionManager,
    common: &core::HttpProtocolOptions,
    context: &mut ParseContext,
) -> Result<HttpTimeouts, Refused> {
    let (idle, connection_duration_max, stream_duration_max) =
        context.within("common_http_protocol_options", |context| {
            (
                context.timeout("idle_timeout", &common.idle_timeout, Some(IDLE_TIMEOUT)),
                context.timeout("max_connection_duration", &common.max_connection_duration, None),
                context.timeout("max_stream_duration", &common.max_stream_duration, None),
            )
        });
    let headers = &config.request_headers_timeout;
    let request_headers = context.timeout("request_headers_timeout", headers, Some(REQUEST_HEADERS_TIMEOUT));
    let request = context.timeout("request_timeout", &config.request_timeout, None);
    let stream_idle = context.timeout("stream_idle_timeout", &config.stream_idle_timeout, Some(STREAM_IDLE_TIMEOUT));
    let write_progress =
        context.timeout("stream_flush_timeout", &config.stream_flush_timeout, Some(WRITE_PROGRESS_TIMEOUT));
    let drain = context.duration("drain_timeout", &config.drain_timeout);
    let delayed_close = context.duration("delayed_close_timeout", &config.delayed_close_timeout);
    Ok(HttpTimeouts {
        request_headers: request_headers?,
        request: request?,
        stream_idle: stream_idle?,
        idle: idle?,
        connection_duration_max: connection_duration_max?,
        connection_duration_waits: config.http1_safe_max_connection_duration,
        stream_duration_max: stream_duration_max?,
        drain: drain?.unwrap_or(DRAIN_TIMEOUT),
        delayed_close: delayed_close?.unwrap_or(DELAYED_CLOSE_TIMEOUT),
        write_progress: write_progress?,
    })
}

fn http1_options(config: &core::Http1ProtocolOptions, context: &mut ParseContext) -> Http1Options {
    use core::http1_protocol_options::header_key_format::HeaderFormat;
    let header_case = match config.header_key_format.as_ref().map(|format| format.header_format.as_ref()) {
        None => HeaderCase::Lower,
        Some(Some(HeaderFormat::ProperCaseWords(_))) => HeaderCase::ProperCase,
        Some(Some(HeaderFormat::StatefulFormatter(_))) => {
            let _ = context.reject(
                "header_key_format.stateful_formatter",
                "keeping the case of field names is not there yet in this version",
            );
            HeaderCase::Lower
        }
        Some(None) => {
            let _ = context.reject("header_key_format.header_format", "is required");
            HeaderCase::Lower
        }
    };
    header_value("default_host_for_http_10", &config.default_host_for_http_10, context);
    let default_host = &config.default_host_for_http_10;
    Http1Options {
        accept_http_10: config.accept_http_10,
        default_host: (!default_host.is_empty()).then(|| default_host.as_str().into()),
        header_case,
        enable_trailers: config.enable_trailers,
        allow_chunked_length: config.allow_chunked_length,
        allow_absolute_url: config.allow_absolute_url.is_none_or(|allow| allow.value),
        allow_custom_methods: config.allow_custom_methods,
    }
}

/// Source: `override_stream_error_on_invalid_http_message`, then `stream_error_on_invalid_http_message`.
fn stream_error_on_invalid_message(config: &proto::HttpConnectionManager) -> bool {
    let http1 = config.http_protocol_options.as_ref();
    let own = http1.and_then(|options| options.override_stream_error_on_invalid_http_message);
    own.or(config.stream_error_on_invalid_http_message).is_some_and(|on| on.value)
}

fn route_table(
    bytes: &[u8],
    config: &proto::HttpConnectionManager,
    context: &mut ParseContext,
) -> Result<RouteSource, Refused> {
    use proto::http_connection_manager::RouteSpecifier;
    match &config.route_specifier {
        Some(RouteSpecifier::Rds(rds)) => {
            context.within("rds", |context| discovered(rds, &config.stat_prefix, context))
        }
        Some(RouteSpecifier::ScopedRoutes(_)) => {
            Err(context.reject("scoped_routes", "scoped routes are not there yet in this version"))
        }
        Some(RouteSpecifier::RouteConfig(_)) | None => {
            let parts: Vec<&[u8]> = wire::length_values(bytes, ROUTE_CONFIG).collect();
            if parts.is_empty() {
                return Err(context.reject("route_config", "is required"));
            }
            context.within("route_config", |context| {
                // A table that comes with its clusters is checked against them unless it says otherwise.
                let before = std::mem::replace(&mut context.validate_clusters, true);
                let table = RouteTable::parse_wire(&parts, context);
                context.validate_clusters = before;
                table.map(|table| RouteSource::Own(Box::new(table)))
            })
        }
    }
}

/// A table that comes from elsewhere.
fn discovered(rds: &proto::Rds, stat_prefix: &str, context: &mut ParseContext) -> Result<RouteSource, Refused> {
    let source = context.required("config_source", &rds.config_source)?;
    let asked = context.within("config_source", |context| config_source::parse(source, Kind::Routes, context))?;
    let name = context.non_empty("route_config_name", &rds.route_config_name)?;
    match context.route_asks.get_mut(name) {
        None => drop(context.route_asks.insert(name.into(), (asked, stat_prefix.into()))),
        Some((known, _)) if known.source == asked.source => *known = asked,
        Some(_) => {
            let reason = format!("`{name}` is asked from another source already; give one of the two another name");
            return Err(context.reject("route_config_name", reason));
        }
    }
    Ok(RouteSource::Discovered(context.route_index(name)))
}

fn server_header(config: &proto::HttpConnectionManager) -> ServerHeader {
    use proto::http_connection_manager::ServerHeaderTransformation;
    match config.server_header_transformation() {
        ServerHeaderTransformation::Overwrite => ServerHeader::Overwrite,
        ServerHeaderTransformation::AppendIfAbsent => ServerHeader::AppendIfAbsent,
        ServerHeaderTransformation::PassThrough => ServerHeader::PassThrough,
    }
}

fn edge_options(
    config: &proto::HttpConnectionManager,
    common: &core::HttpProtocolOptions,
    context: &mut ParseContext,
) -> Result<EdgeOptions, Refused> {
    use proto::http_connection_manager::{ForwardClientCertDetails, PathWithEscapedSlashesAction};
    let escaped_slashes = match config.path_with_escaped_slashes_action() {
        PathWithEscapedSlashesAction::ImplementationSpecificDefault | PathWithEscapedSlashesAction::KeepUnchanged => {
            EscapedSlashes::Keep
        }
        PathWithEscapedSlashesAction::RejectRequest => EscapedSlashes::Reject,
        PathWithEscapedSlashesAction::UnescapeAndRedirect => EscapedSlashes::UnescapeAndRedirect,
        PathWithEscapedSlashesAction::UnescapeAndForward => EscapedSlashes::UnescapeAndForward,
    };
    let underscores = match common.headers_with_underscores_action() {
        core::http_protocol_options::HeadersWithUnderscoresAction::Allow => UnderscoreAction::Allow,
        core::http_protocol_options::HeadersWithUnderscoresAction::RejectRequest => UnderscoreAction::Reject,
        core::http_protocol_options::HeadersWithUnderscoresAction::DropHeader => UnderscoreAction::Drop,
    };
    header_value("via", &config.via, context);
    let internal = config.internal_address_config.clone().unwrap_or_default();
    let internal_ranges = context
        .within("internal_address_config", |context| context.each("cidr_ranges", &internal.cidr_ranges, cidr::parse));
    let reset_trace_reason = reset_trace_reason(config, context);
    let scheme = scheme(config, context);
    let strip_port = strip_port(config, context);
    let normalize_by_default = context.runtime.boolean("http_connection_manager.normalize_path", false);
    let user_agent = config.add_user_agent.is_some_and(|add| add.value);
    Ok(EdgeOptions {
        use_remote_address: config.use_remote_address.is_some_and(|on| on.value),
        trusted_hop_count: config.xff_num_trusted_hops,
        skip_forwarded_for_append: config.skip_xff_append,
        append_forwarded_port: config.append_x_forwarded_port,
        via: config.via.as_str().into(),
        generate_request_id: config.generate_request_id.is_none_or(|generate| generate.value),
        preserve_external_request_id: config.preserve_external_request_id,
        reset_trace_reason: reset_trace_reason?,
        request_id_in_response: config.always_set_request_id_in_response,
        internal_ranges: internal_ranges?,
        unix_sockets_internal: internal.unix_sockets,
        normalize_path: config.normalize_path.map_or(normalize_by_default, |normalize| normalize.value),
        merge_slashes: config.merge_slashes,
        escaped_slashes,
        strip_port: strip_port?,
        strip_trailing_dot: config.strip_trailing_host_dot,
        scheme_match_upstream: scheme.match_upstream,
        scheme_overwrite: scheme.overwrite,
        underscores,
        local_ip: context.local_ip,
        user_agent: user_agent
            .then(|| UserAgent { cluster: context.node.cluster.clone(), node: context.node.id.clone() }),
        forward_client_cert: match config.forward_client_cert_details() {
            ForwardClientCertDetails::Sanitize => ForwardClientCert::Sanitize,
            ForwardClientCertDetails::ForwardOnly => ForwardClientCert::ForwardOnly,
            ForwardClientCertDetails::AppendForward => ForwardClientCert::AppendForward,
            ForwardClientCertDetails::SanitizeSet => ForwardClientCert::SanitizeSet,
            ForwardClientCertDetails::AlwaysForwardOnly => ForwardClientCert::AlwaysForwardOnly,
        },
        client_cert_details: config.set_current_client_cert_details.as_ref().map_or_else(
            ClientCertDetails::default,
            |details| ClientCertDetails {
                cert: details.cert,
                chain: details.chain,
                subject: details.subject.is_some_and(|on| on.value),
                uri: details.uri,
                dns: details.dns,
            },
        ),
    })
}

struct Scheme {
    match_upstream: bool,
    overwrite: Option<Box<str>>,
}

fn scheme(config: &proto::HttpConnectionManager, context: &mut ParseContext) -> Scheme {
    use core::scheme_header_transformation::Transformation;
    let Some(config) = &config.scheme_header_transformation else {
        return Scheme { match_upstream: false, overwrite: None };
    };
    let overwrite = config.transformation.as_ref().map(|Transformation::SchemeToOverwrite(scheme)| scheme.as_str());
    if overwrite.is_some_and(|scheme| !matches!(scheme, "http" | "https")) {
        let _ = context.reject("scheme_header_transformation.scheme_to_overwrite", "must be `http` or `https`");
    }
    // Envoy lets the overwritten scheme win.
    Scheme { match_upstream: config.match_upstream && overwrite.is_none(), overwrite: overwrite.map(Into::into) }
}

fn strip_port(config: &proto::HttpConnectionManager, context: &mut ParseContext) -> Result<StripPort, Refused> {
    use proto::http_connection_manager::StripPortMode;
    let any = matches!(config.strip_port_mode, Some(StripPortMode::StripAnyHostPort(true)));
    match (any, config.strip_matching_host_port) {
        (true, true) => Err(context.reject(
            "strip_any_host_port",
            "only one of `strip_matching_host_port` and `strip_any_host_port` can be set",
        )),
        (true, false) => Ok(StripPort::Any),
        (false, true) => Ok(StripPort::Matching),
        (false, false) => Ok(StripPort::Keep),
    }
}

fn reset_trace_reason(config: &proto::HttpConnectionManager, context: &mut ParseContext) -> Result<bool, Refused> {
    let Some(packed) = config.request_id_extension.as_ref().and_then(|extension| extension.typed_config.as_ref())
    else {
        return Ok(true);
    };
    context.within("request_id_extension", |context| {
        let config: UuidRequestIdConfig = context.unpack("typed_config", packed)?;
        Ok(config.pack_trace_reason.is_none_or(|pack| pack.value))
    })
}

#[allow(deprecated)]
fn access_log_options(config: &proto::HttpConnectionManager, context: &mut ParseContext) -> (bool, Option<Duration>) {
    let Some(options) = &config.access_log_options else {
        let interval = log_interval(&config.access_log_flush_interval, context);
        return (config.flush_access_log_on_new_request, interval);
    };
    if config.flush_access_log_on_new_request || config.access_log_flush_interval.is_some() {
        let _ = context.reject(
            "access_log_options",
            "cannot be set beside the deprecated `flush_access_log_on_new_request` and `access_log_flush_interval`",
        );
    }
    let interval =
        context.within("access_log_options", |context| log_interval(&options.access_log_flush_interval, context));
    (options.flush_access_log_on_new_request, interval)
}

fn log_interval(
    value: &Option<envoy_types::pb::google::protobuf::Duration>,
    context: &mut ParseContext,
) -> Option<Duration> {
    let interval = context.duration("access_log_flush_interval", value).ok().flatten()?;
    if interval < Duration::from_millis(1) {
        let _ = context.reject("access_log_flush_interval", "must be at least 1ms");
    }
    Some(interval)
}

fn upgrades(
    configs: &[proto::http_connection_manager::UpgradeConfig],
    context: &mut ParseContext,
) -> Result<Vec<Box<str>>, Refused> {
    let mut seen: Vec<String> = Vec::new();
    let parsed = context.each("upgrade_configs", configs, |config, context| {
        let upgrade = context.non_empty("upgrade_type", &config.upgrade_type)?.to_ascii_lowercase();
        if upgrade == "connect-udp" {
            return Err(context.reject("upgrade_type", format!("`{upgrade}` is not there yet in this version")));
        }
        if seen.contains(&upgrade) {
            return Err(context.reject("upgrade_type", format!("`{upgrade}` is there twice")));
        }
        seen.push(upgrade.clone());
        if !config.filters.is_empty() {
            http_filters::parse("filters", &config.filters, context)?;
        }
        Ok(config.enabled.is_none_or(|enabled| enabled.value).then(|| upgrade.into()))
    })?;
    Ok(parsed.into_iter().flatten().collect())
}

/// Refuses text that cannot be a field value (RFC 9110 §5.5).
fn header_value(field: &str, text: &str, context: &mut ParseContext) {
    if text.bytes().any(|byte| byte < b' ' && byte != b'\t' || byte == 0x7f) {
        let _ = context.reject(field, "must not contain control characters");
    }
}

/// The full name of the connection manager's message.
pub fn is_http_connection_manager(type_url: &str) -> bool {
    type_name(type_url) == "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
}

/// Field number of HttpConnectionManager.route_config.
const ROUTE_CONFIG: u32 = 4;
/// Source: HttpConnectionManager.max_request_headers_kb.
const HEADER_KIBIBYTES_MAX: u32 = 60;
/// Source: HttpProtocolOptions.max_headers_count.
const HEADER_COUNT_MAX: u32 = 100;
/// Source: HttpProtocolOptions.idle_timeout.
const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
/// Envoy has none; a head that never ends holds memory.
const REQUEST_HEADERS_TIMEOUT: Duration = Duration::from_secs(10);
/// Source: HttpConnectionManager.stream_idle_timeout.
const STREAM_IDLE_TIMEOUT: Duration = Duration::from_secs(300);
/// Envoy waits for the stream idle timeout; a reader that stopped holds the upstream too.
const WRITE_PROGRESS_TIMEOUT: Duration = Duration::from_secs(30);
/// Source: HttpConnectionManager.drain_timeout.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Source: HttpConnectionManager.delayed_close_timeout.
const DELAYED_CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;
