//! `envoy.config.bootstrap.v3.Admin`.

use envoy_types::pb::envoy::config::accesslog::v3 as accesslog;
use envoy_types::pb::envoy::config::accesslog::v3::access_log::ConfigType;
use envoy_types::pb::envoy::config::bootstrap::v3 as proto;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::access_loggers::file::v3::FileAccessLog;
use envoy_types::util::pack_any;

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
    let deprecated_log = deprecated_log(config, context);
    Ok(AdminConfig {
        address: parsed?,
        socket: ListenSocketOptions { raw: raw?, pipe_mode, ..Default::default() },
        access_logs: access_logs?.into_iter().chain(deprecated_log?).collect(),
    })
}

/// `access_log_path` is a file log in the default format.
#[allow(deprecated)]
fn deprecated_log(config: &proto::Admin, context: &mut ParseContext) -> Result<Option<AccessLog>, Refused> {
    if config.access_log_path.is_empty() {
        return Ok(None);
    }
    let file = FileAccessLog { path: config.access_log_path.clone(), ..Default::default() };
    let typed_config = ConfigType::TypedConfig(pack_any(file));
    let log = accesslog::AccessLog { config_type: Some(typed_config), ..Default::default() };
    context.within("access_log_path", |context| AccessLog::parse(&log, context).map(Some))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_socket_and_both_kinds_of_log_arrive() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.log");
        let text = format!(
            "{{address: {{pipe: {{path: '@admin', mode: 384}}}}, access_log_path: {}, profile_path: /p, \
             access_log: [{{name: a, typed_config: {{'@type': \
             type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog}}}}]}}",
            path.display()
        );
        let mut context = ParseContext::new(1);
        let parsed = parse(&torus_xds::from_yaml(&text).unwrap(), &mut context);
        let admin = parsed.unwrap_or_else(|_| panic!("{:?}", context.problems));
        assert_eq!(admin.address.unwrap().to_string(), "@admin");
        assert_eq!((admin.socket.pipe_mode, admin.access_logs.len()), (Some(0o600), 2));
        assert!(parse(&proto::Admin::default(), &mut context).unwrap().address.is_none());
    }
}
