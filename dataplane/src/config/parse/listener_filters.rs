//! `envoy.config.listener.v3.ListenerFilter` becomes a [`ListenerFilter`].

use envoy_types::pb::envoy::config::listener::v3 as proto;
use envoy_types::pb::envoy::extensions::filters::listener::{
    http_inspector, original_dst, proxy_protocol, tls_inspector,
};

use super::ParseContext;
use super::context::type_name;
use crate::config::reject::Refused;
use crate::listener::filter::ListenerFilter;

/// Compiles one listener filter.
pub fn parse(config: &proto::ListenerFilter, context: &mut ParseContext) -> Result<ListenerFilter, Refused> {
    let _ = context.non_empty("name", &config.name);
    let packed = match &config.config_type {
        Some(proto::listener_filter::ConfigType::TypedConfig(packed)) => packed,
        Some(proto::listener_filter::ConfigType::ConfigDiscovery(_)) => {
            return Err(context.reject("config_discovery", "discovered filters are not there yet in this version"));
        }
        None => return Err(context.reject("typed_config", "is required")),
    };
    match type_name(&packed.type_url) {
        "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector" => {
            let config: tls_inspector::v3::TlsInspector = context.unpack("typed_config", packed)?;
            let bytes = config.max_client_hello_size.map_or(HELLO_BYTES_MAX, |size| size.value);
            if bytes == 0 || bytes > HELLO_BYTES_MAX {
                let reason = format!("must be from 1 to {HELLO_BYTES_MAX}, is {bytes}");
                return Err(context.reject("typed_config.max_client_hello_size", reason));
            }
            let stats = context.registry.group("tls_inspector.");
            Ok(ListenerFilter::TlsInspector { hello_bytes_max: bytes as usize, stats })
        }
        "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector" => {
            let _: http_inspector::v3::HttpInspector = context.unpack("typed_config", packed)?;
            Ok(ListenerFilter::HttpInspector { stats: context.registry.group("http_inspector.") })
        }
        "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol" => {
            let config: proxy_protocol::v3::ProxyProtocol = context.unpack("typed_config", packed)?;
            let filter = context.within("typed_config", |context| super::proxy_protocol::parse(&config, context))?;
            Ok(ListenerFilter::ProxyProtocol(Box::new(filter)))
        }
        "envoy.extensions.filters.listener.original_dst.v3.OriginalDst" => {
            let _: original_dst::v3::OriginalDst = context.unpack("typed_config", packed)?;
            Ok(ListenerFilter::OriginalDst)
        }
        other => {
            let reason = format!("listener filter `{other}` is not there yet in this version");
            Err(context.reject("typed_config", reason))
        }
    }
}

/// Source: TlsInspector.max_client_hello_size, 16 KiB.
const HELLO_BYTES_MAX: u32 = 16 * 1024;
