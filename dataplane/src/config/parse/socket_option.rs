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

/// Keep-alive probes; a number of 0 is refused as the kernel would refuse it.
pub fn keepalive(config: &core::TcpKeepalive, context: &mut ParseContext) -> Result<TcpKeepalive, Refused> {
    let start = context.problems.checkpoint();
    let fields = [
        ("keepalive_probes", config.keepalive_probes),
        ("keepalive_time", config.keepalive_time),
        ("keepalive_interval", config.keepalive_interval),
    ];
    for (field, value) in fields {
        if value.is_some_and(|value| value.value == 0) {
            let _ = context.reject(field, "must be at least 1");
        }
    }
    context.problems.clean_since(start)?;
    let seconds = |value: u32| Duration::from_secs(value.into());
    Ok(TcpKeepalive {
        probe_count: config.keepalive_probes.map(|value| value.value),
        idle: config.keepalive_time.map(|value| seconds(value.value)),
        interval: config.keepalive_interval.map(|value| seconds(value.value)),
    })
}
