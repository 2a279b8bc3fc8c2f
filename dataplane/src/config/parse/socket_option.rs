//! `envoy.config.core.v3.SocketOption` and `TcpKeepalive`.

use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;

use super::ParseContext;
use crate::config::reject::Refused;
use crate::config::snapshot::{RawSocketOption, SocketState, TcpKeepalive};

/// Every option in `field`, in order.
pub fn parse_all(
    field: &str,
    options: &[core::SocketOption],
    context: &mut ParseContext,
) -> Result<Vec<RawSocketOption>, Refused> {
    context.each(field, options, parse)
}

fn parse(option: &core::SocketOption, context: &mut ParseContext) -> Result<RawSocketOption, Refused> {
    use core::socket_option::{SocketState as State, Value};
    let level = i32::try_from(option.level).map_err(|_| context.reject("level", "is no socket option level"));
    let name = i32::try_from(option.name).map_err(|_| context.reject("name", "is no socket option name"));
    let value: Result<Box<[u8]>, Refused> = match &option.value {
        // The kernel reads an int; Envoy narrows the number in the same way.
        Some(Value::IntValue(number)) => Ok((*number as i32).to_ne_bytes().into()),
        Some(Value::BufValue(bytes)) => Ok(bytes.as_slice().into()),
        None => Err(context.reject("int_value", "one of `int_value` and `buf_value` is required")),
    };
    let state = match State::try_from(option.state) {
        Ok(State::StatePrebind) => SocketState::Prebind,
        Ok(State::StateBound) => SocketState::Bound,
        Ok(State::StateListening) => SocketState::Listening,
        Err(_) => return Err(context.reject("state", "is no known socket state")),
    };
    Ok(RawSocketOption { state, level: level?, name: name?, value: value? })
}

/// Keep-alive probes, or none where a number is 0. Source: envoy.config.core.v3.TcpKeepalive.
pub fn keepalive(config: &core::TcpKeepalive) -> Option<TcpKeepalive> {
    let values = [config.keepalive_probes, config.keepalive_time, config.keepalive_interval];
    if values.iter().any(|value| value.is_some_and(|value| value.value == 0)) {
        return None;
    }
    let [probe_count, idle, interval] = values.map(|value| value.map(|value| value.value));
    let seconds = |value: u32| Duration::from_secs(value.into());
    Some(TcpKeepalive { probe_count, idle: idle.map(seconds), interval: interval.map(seconds) })
}
