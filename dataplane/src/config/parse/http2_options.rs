//! `envoy.config.core.v3.Http2ProtocolOptions` becomes [`Http2Options`]; the same for both sides.

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::google::protobuf::UInt32Value;

use super::ParseContext;
use crate::wire::http2::{FrameLimits, Http2Options, KeepaliveOptions};

/// Compiles the message; what is not set is the default.
pub fn parse(config: Option<&core::Http2ProtocolOptions>, context: &mut ParseContext) -> Http2Options {
    let defaults = Http2Options::default();
    let Some(config) = config else { return defaults };
    let frames = FrameLimits {
        consecutive_empty_max: config
            .max_consecutive_inbound_frames_with_empty_payload
            .map_or(defaults.frames.consecutive_empty_max, |count| count.value),
        priority_per_stream_max: config
            .max_inbound_priority_frames_per_stream
            .map_or(defaults.frames.priority_per_stream_max, |count| count.value),
        window_updates_per_data_max: number(
            "max_inbound_window_update_frames_per_data_frame_sent",
            config.max_inbound_window_update_frames_per_data_frame_sent,
            1..=u32::MAX,
            defaults.frames.window_updates_per_data_max,
            context,
        ),
        ..defaults.frames
    };
    let windows = WINDOW_BYTES_MIN..=WINDOW_BYTES_MAX;
    let stream = config.initial_stream_window_size;
    let connection = config.initial_connection_window_size;
    Http2Options {
        header_table_bytes: config.hpack_table_size.map_or(defaults.header_table_bytes, |size| size.value),
        streams_max: number(
            "max_concurrent_streams",
            config.max_concurrent_streams,
            1..=STREAMS_MAX,
            defaults.streams_max,
            context,
        ),
        stream_window_bytes: number(
            "initial_stream_window_size",
            stream,
            windows.clone(),
            defaults.stream_window_bytes,
            context,
        ),
        connection_window_bytes: number(
            "initial_connection_window_size",
            connection,
            windows,
            defaults.connection_window_bytes,
            context,
        ),
        frames,
        takes_protocols: config.allow_connect,
        keepalive: config
            .connection_keepalive
            .as_ref()
            .and_then(|settings| context.within("connection_keepalive", |context| keepalive(settings, context))),
    }
}

/// As [`parse`], for connections that the proxy opens: there the number of streams is the peer's to limit, unless it is set.
pub fn parse_upstream(config: Option<&core::Http2ProtocolOptions>, context: &mut ParseContext) -> Http2Options {
    let options = parse(config, context);
    let is_set = config.is_some_and(|config| config.max_concurrent_streams.is_some());
    Http2Options { streams_max: if is_set { options.streams_max } else { STREAMS_MAX }, ..options }
}

fn keepalive(settings: &core::KeepaliveSettings, context: &mut ParseContext) -> Option<KeepaliveOptions> {
    let interval = context.duration("interval", &settings.interval).ok()?;
    let timeout = context.duration("timeout", &settings.timeout).ok()?;
    let Some(timeout) = timeout else {
        let _ = context.reject("timeout", "is required");
        return None;
    };
    for (field, value) in [("interval", interval), ("timeout", Some(timeout))] {
        if value.is_some_and(|value| value.as_millis() < 1) {
            let _ = context.reject(field, "must be at least 1ms");
        }
    }
    let jitter = settings.interval_jitter.as_ref().map_or(JITTER_PERCENT, |percent| percent.value);
    if !(0.0..=100.0).contains(&jitter) {
        let _ = context.reject("interval_jitter", "must be from 0 to 100");
    }
    // Without an interval nothing is asked, as in Envoy.
    Some(KeepaliveOptions { interval: interval?, timeout, jitter_percent: jitter as u32 })
}

fn number(
    field: &str,
    value: Option<UInt32Value>,
    range: std::ops::RangeInclusive<u32>,
    default: u32,
    context: &mut ParseContext,
) -> u32 {
    let Some(value) = value.map(|value| value.value) else { return default };
    if !range.contains(&value) {
        let _ = context.reject(field, format!("must be from {} to {}, is {value}", range.start(), range.end()));
    }
    value
}

/// RFC 9113 §6.5.2; Envoy allows no less.
const WINDOW_BYTES_MIN: u32 = 65_535;
/// RFC 9113 §6.9.1.
const WINDOW_BYTES_MAX: u32 = 0x7fff_ffff;
/// Source: Http2ProtocolOptions.max_concurrent_streams.
const STREAMS_MAX: u32 = 0x7fff_ffff;
/// Source: KeepaliveSettings.interval_jitter.
const JITTER_PERCENT: f64 = 15.0;
