//! The ledger is complete, true to the schema, and says no where it must.

use std::path::Path;

use torus_xds::{Document, Format, Source, UnknownFields, encode};

use super::*;
use crate::config::diagnostic;

#[test]
fn every_line_is_understood() {
    assert!(ENTRIES.faults.is_empty(), "unknown or repeated names, or no verdict: {:#?}", ENTRIES.faults);
}

#[test]
fn every_field_is_classified() {
    let mut missing = Vec::new();
    for (message, entries) in ENTRIES.listed() {
        for field in message.fields() {
            match entries.get(field.number()) {
                None => missing.push(format!("{message:?}.{field:?}: not classified")),
                Some(entry) => {
                    let inner = field.message().filter(|_| entry.verdict == Verdict::Honoured);
                    let inner = inner.filter(|inner| !inner.full_name().starts_with("google.protobuf."));
                    if let Some(inner) = inner.filter(|inner| matches!(ENTRIES.message(*inner), MessageEntry::Unlisted))
                    {
                        missing.push(format!("{message:?}.{field:?} is honoured but {inner:?} is not listed"));
                    }
                    missing.extend(
                        unknown_values(field, entry).map(|value| format!("{message:?}.{field:?} has no value {value}")),
                    );
                }
            }
        }
    }
    missing.sort();
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

fn unknown_values(field: Field, entry: &Entry) -> impl Iterator<Item = &'static str> {
    let values = entry.values.iter().map(|(value, _)| *value);
    values.filter(move |value| match field.kind() {
        Kind::Enum(enumeration) => enumeration.number(value).is_none(),
        Kind::Bool => !matches!(*value, "true" | "false"),
        _ => false,
    })
}

#[test]
fn the_page_in_docs_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/envoy-compatibility.md");
    let page = compatibility_page();
    if std::env::var_os("TORUS_REGENERATE").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &page).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == page,
        "docs/envoy-compatibility.md is stale; run: TORUS_REGENERATE=1 cargo test -p torus-proxy ledger::"
    );
}

fn check(message: &str, yaml: &str, expected: &[&str]) {
    let message = MessageType::named(message).expect(message);
    let document = Document::parse("x", yaml.into(), Format::Yaml).expect(yaml);
    let encoded = encode(vec![Source::Text(document)], message, UnknownFields::Refuse)
        .unwrap_or_else(|errors| panic!("{yaml}: {}", errors[0]));
    let found = diagnostic::findings(refusals(encoded.message, &encoded.bytes), &[], &encoded);
    let found: Vec<String> = found.iter().map(|finding| finding.line().to_string()).collect();
    assert_eq!(found, expected, "{yaml}");
}

#[test]
fn what_is_missing_is_named() {
    let cluster = "envoy.config.cluster.v3.Cluster";
    check(cluster, "{name: a, type: STATIC}", &[]);
    check(
        cluster,
        "{name: a, type: ORIGINAL_DST, original_dst_lb_config: {metadata_key: {}}}",
        &["x:1:56: original_dst_lb_config.metadata_key: metadata of requests: not there yet in this version"],
    );
    check(
        cluster,
        "name: a\nhealth_checks: [{timeout: 1s}]\noutlier_detection: {}\ntransport_socket: {name: t, typed_config: {'@type': x/envoy.extensions.transport_sockets.quic.v3.QuicUpstreamTransport}}",
        &[
            "x:2:17: health_checks[0]: active health checks: not there yet in this version",
            "x:3:1: outlier_detection: outlier detection: not there yet in this version",
            "x:4:29: transport_socket.typed_config: HTTP/3 (envoy.extensions.transport_sockets.quic.v3.QuicUpstreamTransport): not there yet in this version",
        ],
    );
    let options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    check(options, "explicit_http_config: {http_protocol_options: {}}", &[]);
    check(
        options,
        "explicit_http_config: {http3_protocol_options: {}}",
        &["x:1:24: explicit_http_config.http3_protocol_options: HTTP/3: not there yet in this version"],
    );
}

#[test]
fn filters_are_named_and_optional_ones_are_left_out() {
    let manager = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    let cors = "type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors";
    let filter = |rest: &str| format!("http_filters:\n- name: cors\n  typed_config: {{'@type': {cors}}}\n{rest}");
    check(
        manager,
        &filter(""),
        &[
            "x:3:3: http_filters[0].typed_config: HTTP filter `cors` (envoy.extensions.filters.http.cors.v3.Cors): not there yet in this version",
        ],
    );
    check(manager, &filter("  is_optional: true"), &[]);
}

#[test]
fn foreign_types_are_named() {
    let extension = "envoy.config.core.v3.TypedExtensionConfig";
    check(
        extension,
        "{name: a, typed_config: {'@type': x/udpa.type.v1.TypedStruct, type_url: x/acme.Thing, value: {}}}",
        &["x:1:11: typed_config: `acme.Thing`: not there yet in this version"],
    );
}

#[test]
fn values_that_ask_for_nothing_pass() {
    let listener = "envoy.config.listener.v3.Listener";
    check(listener, "{enable_mptcp: false, bind_to_port: true}", &[]);
    check(
        listener,
        "{enable_mptcp: true, bind_to_port: false}",
        &["x:1:16: enable_mptcp: Multipath TCP (true): not there yet in this version"],
    );
}

/// A rough check, by name only: what the program never mentions it cannot honour.
#[test]
fn honoured_fields_are_mentioned_in_the_program() {
    let mut source = String::new();
    read_sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut source);
    let names: std::collections::HashSet<&str> =
        source.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_').collect();
    let mut unread = Vec::new();
    for (message, entries) in ENTRIES.listed() {
        for field in message.fields() {
            let honoured = entries.get(field.number()).is_some_and(|entry| {
                // Where only the default value is left, there is nothing to read.
                entry.verdict == Verdict::Honoured && entry.values.is_empty()
            });
            // prost names the members of a oneof in UpperCamelCase.
            let mut variant = String::new();
            field.write_json_name(&mut variant);
            if let Some(first) = variant.get_mut(..1) {
                first.make_ascii_uppercase();
            }
            let mentioned = names.contains(field.name()) || (field.oneof().is_some() && names.contains(&*variant));
            if honoured && !mentioned && !JUDGED_BY_TYPE.contains(&field.name()) {
                unread.push(format!("{message:?}.{field:?}"));
            }
        }
    }
    assert!(unread.is_empty(), "honoured, but named nowhere in src:\n{}", unread.join("\n"));
}

/// Extensions that are all accepted or refused by their own type, and do nothing where they are accepted.
const JUDGED_BY_TYPE: [&str; 2] = ["bootstrap_extensions", "default_regex_engine"];

fn read_sources(folder: &Path, source: &mut String) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_sources(&path, source);
        } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests.rs") {
            source.push_str(&std::fs::read_to_string(&path).unwrap());
        }
    }
}
