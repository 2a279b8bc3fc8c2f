//! What the admin server tells of the process that does not change while it runs.

use serde_json::{Map, Value, json};
use torus_ring::DriverReport;

use super::ConfigDump;
use crate::config::flags::{DrainStrategy, IpVersion, Mode, Options};
use crate::config::parse::context::Node;
use crate::telemetry::program_log::Level;

/// What does not change while the process runs.
#[derive(Default)]
pub struct Facts {
    /// Of this program, for instance `0.1.0`.
    pub version: String,
    /// The command line, with Envoy's names.
    pub command_line_options: Value,
    /// Who this proxy is.
    pub node: Value,
    /// What moves bytes, for instance `io_uring`.
    pub io_driver: String,
    /// Why io_uring does not, if it does not, and the cure.
    pub io_gate: Option<String>,
    /// The configuration as it was read.
    pub config: ConfigDump,
}

impl Facts {
    /// The facts of a process with these options, whose workers number `worker_count`.
    pub fn new(
        options: &Options,
        worker_count: usize,
        node: &Node,
        driver: Option<&DriverReport>,
        bootstrap: Vec<u8>,
    ) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            command_line_options: command_line(options, worker_count),
            node: node_fields(node),
            io_driver: driver.map(|report| report.kind.to_string()).unwrap_or_default(),
            io_gate: driver.and_then(|report| report.gate.as_ref()).map(ToString::to_string),
            config: ConfigDump::new(bootstrap),
        }
    }
}

/// envoy.admin.v3.CommandLineOptions
fn command_line(options: &Options, worker_count: usize) -> Value {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let components = options.component_log_levels.iter();
    let components: Vec<String> =
        components.map(|(name, level)| format!("{name}:{}", Level::from(*level).name())).collect();
    let tags: Vec<String> = options.stats_tags.iter().map(|(name, value)| format!("{name}:{value}")).collect();
    json!({
        "base_id": options.base_id.to_string(),
        "concurrency": worker_count,
        "config_path": text(&options.config_path),
        "config_yaml": text(&options.config_yaml),
        "allow_unknown_static_fields": options.allow_unknown_static_fields,
        "admin_address_path": text(&options.admin_address_path),
        "local_address_ip_version": match options.local_address_ip_version {
            IpVersion::V4 => "v4",
            IpVersion::V6 => "v6",
        },
        "log_level": Level::from(options.log_level).name(),
        "component_log_level": components.join(","),
        "log_format": options.log_format.as_deref().unwrap_or(crate::telemetry::program_log::DEFAULT_FORMAT),
        "log_path": text(&options.log_path),
        "service_cluster": text(&options.service_cluster),
        "service_node": text(&options.service_node),
        "service_zone": text(&options.service_zone),
        "file_flush_interval": duration(options.file_flush_interval),
        "drain_time": duration(options.drain_time),
        "mode": match options.mode {
            Mode::Serve => "Serve",
            Mode::Validate => "Validate",
            Mode::InitOnly => "InitOnly",
        },
        "disable_hot_restart": true,
        "restart_epoch": options.restart_epoch,
        "reject_unknown_dynamic_fields": options.reject_unknown_dynamic_fields,
        "ignore_unknown_dynamic_fields": options.ignore_unknown_dynamic_fields,
        "drain_strategy": match options.drain_strategy {
            DrainStrategy::Gradual => "Gradual",
            DrainStrategy::Immediate => "Immediate",
        },
        "stats_tag": tags,
        "skip_deprecated_logs": options.skip_deprecated_logs,
        "file_flush_min_size": options.file_flush_bytes_min >> 10,
    })
}

/// envoy.config.core.v3.Node
fn node_fields(node: &Node) -> Value {
    let mut fields = Map::new();
    fields.insert("id".into(), (&*node.id).into());
    fields.insert("cluster".into(), (&*node.cluster).into());
    let mut locality = Map::new();
    for (name, value) in [("region", &node.region), ("zone", &node.zone), ("sub_zone", &node.sub_zone)] {
        if !value.is_empty() {
            locality.insert(name.into(), (&**value).into());
        }
    }
    if !locality.is_empty() {
        fields.insert("locality".into(), locality.into());
    }
    fields.into()
}

/// A duration as protobuf's JSON writes it.
fn duration(duration: std::time::Duration) -> String {
    match duration.subsec_millis() {
        0 => format!("{}s", duration.as_secs()),
        millis => format!("{}.{millis:03}s", duration.as_secs()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_has_the_names_of_envoy() {
        let arguments = ["torus-proxy", "-c", "a.yaml", "-l", "debug", "--component-log-level", "http:trace"];
        let more = ["--file-flush-interval-msec", "1500", "--drain-strategy", "immediate", "--stats-tag", "a:b"];
        let options = Options::parse_from(arguments.iter().chain(&more)).unwrap();
        let node = Node { id: "n".into(), zone: "z".into(), ..Node::default() };
        let facts = Facts::new(&options, 2, &node, None, Vec::new());
        let check = |name: &str, expected: Value| assert_eq!(facts.command_line_options[name], expected, "{name}");
        check("concurrency", 2.into());
        check("config_path", "a.yaml".into());
        check("log_level", "debug".into());
        check("component_log_level", "http:trace".into());
        check("file_flush_interval", "1.500s".into());
        check("drain_time", "600s".into());
        check("drain_strategy", "Immediate".into());
        check("stats_tag", json!(["a:b"]));
        check("mode", "Serve".into());
        assert_eq!(facts.node, json!({ "id": "n", "cluster": "", "locality": { "zone": "z" } }));
    }
}
