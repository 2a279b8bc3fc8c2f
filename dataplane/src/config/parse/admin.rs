//! `envoy.config.bootstrap.v3.Admin`.

use envoy_types::pb::envoy::config::bootstrap::v3 as proto;
use envoy_types::pb::envoy::config::core::v3 as core;

use super::{ParseContext, address, socket_option};
use crate::config::address::Address;
use crate::config::reject::Refused;
use crate::config::snapshot::ListenSocketOptions;
use crate::telemetry::access_log::AccessLog;

/// Where the admin server listens and logs.
pub struct AdminConfig {
    /// Where it listens; without an address there is no admin server.
    pub address: Option<Address>,
    /// Options of its socket.
    pub socket: ListenSocketOptions,
    /// Where its requests are logged.
    pub access_logs: Vec<AccessLog>,
}

/// Compiles `config`.
pub fn parse(config: &proto::Admin, context: &mut ParseContext) -> Result<AdminConfig, Refused> {
    let parsed = match &config.address {
        Some(wanted) => context.within("address", |context| address::parse(wanted, context).map(Some)),
        None => Ok(None),
    };
    let pipe_mode = match config.address.as_ref().and_then(|wanted| wanted.address.as_ref()) {
        Some(core::address::Address::Pipe(pipe)) if pipe.mode != 0 => Some(pipe.mode),
        _ => None,
    };
    let raw = socket_option::parse_all("socket_options", &config.socket_options, context);
    let access_logs = context.each("access_log", &config.access_log, AccessLog::parse);
    Ok(AdminConfig {
        address: parsed?,
        socket: ListenSocketOptions { raw: raw?, pipe_mode, ..Default::default() },
        access_logs: access_logs?,
    })
}
