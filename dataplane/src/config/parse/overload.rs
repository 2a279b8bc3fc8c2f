//! `envoy.config.overload.v3.OverloadManager`: the limit on connections of all listeners together.

use envoy_types::pb::envoy::config::overload::v3 as proto;
use envoy_types::pb::envoy::extensions::resource_monitors::downstream_connections::v3::DownstreamConnectionsConfig;

use super::ParseContext;
use super::context::type_name;
use crate::config::reject::Refused;

/// Connections allowed at once, if limited.
pub fn parse(config: &proto::OverloadManager, context: &mut ParseContext) -> Result<Option<u64>, Refused> {
    let limits = context.each("resource_monitors", &config.resource_monitors, monitor)?;
    if limits.len() > 1 {
        return Err(context.reject("resource_monitors", "the same resource monitor is there twice"));
    }
    Ok(limits.first().copied())
}

fn monitor(config: &proto::ResourceMonitor, context: &mut ParseContext) -> Result<u64, Refused> {
    let _ = context.non_empty("name", &config.name);
    let Some(proto::resource_monitor::ConfigType::TypedConfig(packed)) = &config.config_type else {
        return Err(context.reject("typed_config", "is required"));
    };
    let name = type_name(&packed.type_url);
    if name != <DownstreamConnectionsConfig as prost::Name>::full_name() {
        return Err(
            context.reject("typed_config", format!("resource monitor `{name}` is not there yet in this version"))
        );
    }
    let config: DownstreamConnectionsConfig = context.unpack("typed_config", packed)?;
    match u64::try_from(config.max_active_downstream_connections) {
        Ok(limit) if limit > 0 => Ok(limit),
        _ => Err(context.reject("typed_config.max_active_downstream_connections", "must be at least 1")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_of_all_listeners_are_limited() {
        let check = |text: &str, expect: Result<Option<u64>, &str>| {
            let config = torus_xds::from_yaml(text).unwrap();
            let mut context = ParseContext::new(1);
            let parsed = parse(&config, &mut context);
            let problems: Vec<String> = context.problems.iter().map(ToString::to_string).collect();
            assert_eq!(parsed.map_err(|_| problems.join("\n")), expect.map_err(str::to_owned), "{text}");
        };
        let monitor = |fields: &str| {
            format!(
                "resource_monitors: [{{name: a, typed_config: {{'@type': type.googleapis.com/envoy.extensions\
                 .resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig, {fields}}}}}]"
            )
        };
        check("{}", Ok(None));
        check(&monitor("max_active_downstream_connections: 5000"), Ok(Some(5000)));
        check(
            &monitor("max_active_downstream_connections: 0"),
            Err("resource_monitors[0].typed_config.max_active_downstream_connections: must be at least 1"),
        );
    }
}
