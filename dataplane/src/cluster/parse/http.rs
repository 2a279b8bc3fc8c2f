//! `HttpProtocolOptions` and the older HTTP fields of a cluster become [`UpstreamHttp`].

use envoy_types::pb::envoy::config::cluster::v3 as proto;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::upstreams::http::v3 as upstreams;

use crate::cluster::UpstreamHttp;
use crate::cluster::options::{UpstreamHttp1, UpstreamProtocol};
use crate::config::parse::{ParseContext, http2_options};
use crate::config::reject::Refused;
use crate::downstream::HeaderCase;

/// Where Envoy looks for them in `typed_extension_protocol_options`.
const EXTENSION: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

#[expect(deprecated, reason = "Envoy still honours the older fields where the extension is absent")]
pub(super) fn parse(config: &proto::Cluster, context: &mut ParseContext) -> Result<UpstreamHttp, Refused> {
    let start = context.problems.checkpoint();
    let mut http = UpstreamHttp::default();
    if let Some(packed) = config.typed_extension_protocol_options.get(EXTENSION) {
        let outer = context.problems.enter_key("typed_extension_protocol_options", EXTENSION);
        if let Ok(options) = context.unpack::<upstreams::HttpProtocolOptions>("", packed) {
            extension(&options, &mut http, context);
        }
        context.problems.leave(outer);
    } else {
        if let Some(options) = &config.http2_protocol_options {
            http.protocol = UpstreamProtocol::Http2;
            http.http2 = context
                .within("http2_protocol_options", |context| http2_options::parse_upstream(Some(options), context));
        }
        if let Some(options) = &config.common_http_protocol_options {
            context.within("common_http_protocol_options", |context| common(options, &mut http, context));
        }
        if let Some(options) = &config.http_protocol_options {
            context.within("http_protocol_options", |context| http1(options, &mut http.http1, context));
        }
        if let Some(count) = config.max_requests_per_connection {
            http.requests_per_connection_max = limit(count.value);
        }
    }
    context.problems.clean_since(start).map(|()| http)
}

fn extension(options: &upstreams::HttpProtocolOptions, http: &mut UpstreamHttp, context: &mut ParseContext) {
    use upstreams::http_protocol_options::UpstreamProtocolOptions;
    use upstreams::http_protocol_options::explicit_http_config::ProtocolConfig;
    if let Some(options) = &options.common_http_protocol_options {
        context.within("common_http_protocol_options", |context| common(options, http, context));
    }
    match &options.upstream_protocol_options {
        Some(UpstreamProtocolOptions::ExplicitHttpConfig(explicit)) => {
            context.within("explicit_http_config", |context| match &explicit.protocol_config {
                Some(ProtocolConfig::HttpProtocolOptions(options)) => {
                    context.within("http_protocol_options", |context| http1(options, &mut http.http1, context));
                }
                Some(ProtocolConfig::Http2ProtocolOptions(options)) => {
                    http.protocol = UpstreamProtocol::Http2;
                    http.http2 = context.within("http2_protocol_options", |context| {
                        http2_options::parse_upstream(Some(options), context)
                    });
                }
                Some(ProtocolConfig::Http3ProtocolOptions(_)) => {
                    let _ = context.reject("http3_protocol_options", "HTTP/3 to the upstream is not supported");
                }
                None => {
                    let _ = context.reject("http_protocol_options", "is required, or another protocol");
                }
            });
        }
        Some(UpstreamProtocolOptions::UseDownstreamProtocolConfig(same)) => {
            http.protocol = UpstreamProtocol::SameAsDownstream;
            context.within("use_downstream_protocol_config", |context| {
                if let Some(options) = &same.http_protocol_options {
                    context.within("http_protocol_options", |context| http1(options, &mut http.http1, context));
                }
                let options = same.http2_protocol_options.as_ref();
                http.http2 =
                    context.within("http2_protocol_options", |context| http2_options::parse_upstream(options, context));
            });
        }
        Some(UpstreamProtocolOptions::AutoConfig(either)) => {
            http.protocol = UpstreamProtocol::ByAlpn;
            context.within("auto_config", |context| {
                if let Some(options) = &either.http_protocol_options {
                    context.within("http_protocol_options", |context| http1(options, &mut http.http1, context));
                }
                let options = either.http2_protocol_options.as_ref();
                http.http2 =
                    context.within("http2_protocol_options", |context| http2_options::parse_upstream(options, context));
            });
        }
        None => {
            let _ = context.reject("explicit_http_config", "is required, or another way to choose the protocol");
        }
    }
}

fn common(options: &core::HttpProtocolOptions, http: &mut UpstreamHttp, context: &mut ParseContext) {
    let idle = context.timeout("idle_timeout", &options.idle_timeout, http.idle_timeout);
    http.idle_timeout = idle.unwrap_or_default();
    let age = context.timeout("max_connection_duration", &options.max_connection_duration, None);
    http.max_connection_duration = age.unwrap_or_default();
    let stream = context.timeout("max_stream_duration", &options.max_stream_duration, None);
    http.max_stream_duration = stream.unwrap_or_default();
    match options.max_headers_count {
        Some(count) if count.value == 0 => {
            let _ = context.reject("max_headers_count", "must be at least 1");
        }
        Some(count) => http.header_count_max = count.value,
        None => {}
    }
    match options.max_response_headers_kb {
        Some(size) if !(1..=8192).contains(&size.value) => {
            let _ = context.reject("max_response_headers_kb", "must be from 1 to 8192");
        }
        Some(size) => http.header_bytes_max = size.value * 1024,
        None => {}
    }
    if let Some(count) = options.max_requests_per_connection {
        http.requests_per_connection_max = limit(count.value);
    }
}

fn http1(options: &core::Http1ProtocolOptions, http1: &mut UpstreamHttp1, context: &mut ParseContext) {
    use core::http1_protocol_options::header_key_format::HeaderFormat;
    let format = options.header_key_format.as_ref().map(|format| &format.header_format);
    match format {
        None => {}
        Some(Some(HeaderFormat::ProperCaseWords(_))) => http1.header_case = HeaderCase::ProperCase,
        Some(Some(HeaderFormat::StatefulFormatter(_))) => {
            let _ = context.reject("header_key_format.stateful_formatter", "is not there yet in this version");
        }
        Some(None) => {
            let _ = context.reject("header_key_format.proper_case_words", "is required");
        }
    }
    http1.enable_trailers = options.enable_trailers;
    http1.allow_chunked_length = options.allow_chunked_length;
    http1.send_fully_qualified_url = options.send_fully_qualified_url;
}

/// 0 is no limit.
fn limit(count: u32) -> Option<u32> {
    (count > 0).then_some(count)
}
