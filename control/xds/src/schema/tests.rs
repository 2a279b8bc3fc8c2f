//! The committed schema against envoy-types' descriptors, and its lookups.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use super::*;
use crate::wire::{self, Value};

#[test]
fn committed_schema_is_what_envoy_types_carries() {
    let generated = generate(&fs::read(descriptors()).expect("envoy-types carries src/generated/types.bin"));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("schema/envoy.txt");
    if env::var_os("TORUS_REGENERATE").is_some() {
        fs::write(&path, &generated).expect("the schema folder is writable");
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == generated,
        "schema/envoy.txt is stale; run: TORUS_REGENERATE=1 cargo test -p torus-xds schema::"
    );
}

#[test]
fn fields_are_found_by_both_names_and_by_number() {
    let check = |message: &str, name: &str, number: u32, kind: &str| {
        let message = MessageType::named(message).expect(message);
        let field = message.field(name).expect(name);
        assert_eq!(field.number(), number, "{name}");
        assert_eq!(message.field_numbered(number), Some(field));
        assert_eq!(format!("{:?}", field.kind()), kind);
    };
    check("envoy.config.core.v3.SocketAddress", "port_value", 3, "Uint32");
    check("envoy.config.core.v3.SocketAddress", "portValue", 3, "Uint32");
    check("envoy.config.cluster.v3.Cluster", "lb_policy", 6, "Enum(envoy.config.cluster.v3.Cluster.LbPolicy)");
    check(
        "envoy.config.cluster.v3.Cluster",
        "http2ProtocolOptions",
        14,
        "Message(envoy.config.core.v3.Http2ProtocolOptions)",
    );
    check("udpa.type.v1.TypedStruct", "typeUrl", 1, "String");
    assert_eq!(MessageType::named("envoy.config.cluster.v3.Cluster").unwrap().field("lbpolicy"), None);
    assert_eq!(MessageType::named("envoy.nothing"), None);
}

#[test]
fn names_are_cut_from_their_package() {
    let check = |full: &str, short: &str| assert_eq!(MessageType::named(full).unwrap().short_name(), short);
    check("envoy.config.core.v3.Node", "Node");
    check("envoy.config.route.v3.WeightedCluster.ClusterWeight", "WeightedCluster.ClusterWeight");
}

#[test]
fn flags_survive() {
    let cluster = MessageType::named("envoy.config.cluster.v3.Cluster").unwrap();
    assert!(cluster.field("http2_protocol_options").unwrap().is_deprecated());
    assert!(cluster.field("health_checks").unwrap().is_repeated());
    let type_oneof = cluster.field("type").unwrap().oneof();
    assert!(type_oneof.is_some() && type_oneof == cluster.field("cluster_type").unwrap().oneof());
    let map = cluster.field("typed_extension_protocol_options").unwrap();
    assert_eq!(map.map_key(), Some(Kind::String));
    assert!(!map.is_repeated() && !map.has_presence());
}

/// The FileDescriptorSet inside the source of the envoy-types that this workspace builds with.
fn descriptors() -> PathBuf {
    let output = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["metadata", "--format-version", "1", "--manifest-path"])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON");
    let packages = metadata["packages"].as_array().expect("a list of packages");
    let package = packages.iter().find(|package| package["name"] == "envoy-types").expect("a dependency");
    let manifest = Path::new(package["manifest_path"].as_str().expect("a path"));
    manifest.with_file_name("src").join("generated/types.bin")
}

/// What a message or enum looks like in the text form.
#[derive(Default)]
struct Generated {
    entries: BTreeMap<String, String>,
}

/// Field numbers below are those of google/protobuf/descriptor.proto.
fn generate(descriptor_set: &[u8]) -> String {
    let mut generated = Generated::default();
    for file in wire::length_values(descriptor_set, 1) {
        let package = text(file, 2);
        if EXCLUDED_PACKAGES.contains(&package.as_str()) || text(file, 1) == "google/protobuf/descriptor.proto" {
            continue;
        }
        for message in wire::length_values(file, 4) {
            generated.message(&package, message);
        }
        for descriptor in wire::length_values(file, 5) {
            generated.enumeration(&package, descriptor);
        }
    }
    let mut out = String::from(
        "# Envoy's v3 API, generated from the descriptors in envoy-types; do not edit.\n\
         # message NAME, then: NUMBER FIELD TYPE [repeated] [oneof NAME] [optional] [required] [deprecated]; enum NAME, then: NUMBER VALUE.\n",
    );
    for entry in generated.entries.values() {
        out.push_str(entry);
    }
    out
}

impl Generated {
    fn message(&mut self, scope: &str, descriptor: &[u8]) {
        let full_name = format!("{scope}.{}", text(descriptor, 1));
        let oneofs: Vec<String> = wire::length_values(descriptor, 8).map(|oneof| text(oneof, 1)).collect();
        let nested: Vec<&[u8]> = wire::length_values(descriptor, 3).collect();
        let mut lines = BTreeMap::new();
        for field in wire::length_values(descriptor, 2) {
            lines.insert(number(field, 3), self.field(field, &full_name, &oneofs, &nested));
        }
        let mut entry = format!("message {full_name}\n");
        lines.values().for_each(|line| entry.push_str(line));
        self.entries.insert(format!("message {full_name}"), entry);
        for message in nested.iter().filter(|message| !is_map_entry(message)) {
            self.message(&full_name, message);
        }
        for enumeration in wire::length_values(descriptor, 4) {
            self.enumeration(&full_name, enumeration);
        }
    }

    fn field(&self, field: &[u8], owner: &str, oneofs: &[String], nested: &[&[u8]]) -> String {
        let name = text(field, 1);
        assert!(is_same_json_name(&text(field, 10), &name), "{owner}.{name} has a json name of its own");
        let type_name = text(field, 6);
        let entry = nested
            .iter()
            .find(|message| is_map_entry(message) && type_name == format!(".{owner}.{}", text(message, 1)));
        let mut line = format!("  {} {name} ", number(field, 3));
        match entry {
            Some(entry) => {
                let part = |wanted| {
                    wire::length_values(entry, 2).find(|field| number(field, 3) == wanted).expect("key and value")
                };
                write!(line, "map<{},{}>", type_of(part(1)), type_of(part(2))).expect("text");
            }
            None => {
                line.push_str(&type_of(field));
                if number(field, 4) == 3 {
                    line.push_str(" repeated");
                }
            }
        }
        if number(field, 17) == 1 {
            line.push_str(" optional");
        } else if let Some(index) = varint(field, 9) {
            write!(line, " oneof {}", oneofs[index as usize]).expect("text");
        }
        for options in wire::length_values(field, 8) {
            if number(options, 3) == 1 {
                line.push_str(" deprecated");
            }
        }
        line.push('\n');
        line
    }

    fn enumeration(&mut self, scope: &str, descriptor: &[u8]) {
        let full_name = format!("{scope}.{}", text(descriptor, 1));
        let mut entry = format!("enum {full_name}\n");
        for value in wire::length_values(descriptor, 2) {
            writeln!(entry, "  {} {}", number(value, 2) as i32, text(value, 1)).expect("text");
        }
        self.entries.insert(format!("enum {full_name}"), entry);
    }
}

fn type_of(field: &[u8]) -> String {
    let code = number(field, 5);
    match code {
        11 | 14 => text(field, 6).trim_start_matches('.').to_owned(),
        1 => "double".into(),
        2 => "float".into(),
        3 => "int64".into(),
        4 => "uint64".into(),
        5 => "int32".into(),
        6 => "fixed64".into(),
        7 => "fixed32".into(),
        8 => "bool".into(),
        9 => "string".into(),
        12 => "bytes".into(),
        13 => "uint32".into(),
        15 => "sfixed32".into(),
        16 => "sfixed64".into(),
        17 => "sint32".into(),
        18 => "sint64".into(),
        other => panic!("type {other} is not part of proto3"),
    }
}

fn is_same_json_name(json: &str, name: &str) -> bool {
    json.is_empty() || json == name || is_json_name(json, name)
}

fn is_map_entry(message: &[u8]) -> bool {
    wire::length_values(message, 7).any(|options| number(options, 7) == 1)
}

fn text(message: &[u8], number: u32) -> String {
    let bytes = wire::length_values(message, number).last().unwrap_or_default();
    String::from_utf8(bytes.to_vec()).expect("names are UTF-8")
}

fn number(message: &[u8], number: u32) -> u64 {
    varint(message, number).unwrap_or_default()
}

fn varint(message: &[u8], number: u32) -> Option<u64> {
    wire::fields(message).flatten().find_map(|(found, value)| match value {
        Value::Varint(value) if found == number => Some(value),
        _ => None,
    })
}

/// Packages that describe the API itself.
const EXCLUDED_PACKAGES: [&str; 5] =
    ["envoy.annotations", "udpa.annotations", "xds.annotations.v3", "validate", "google.api"];
