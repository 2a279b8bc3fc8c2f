//! A bootstrap of any bytes: read as each format, written, decoded, judged, shown. Nothing of it may panic.

use envoy_types::pb::envoy::config::bootstrap::v3::Bootstrap;
use torus_proxy::config::{diagnostic, ledger};
use torus_xds::{MessageType, Source, UnknownFields, encode, to_json};

/// Takes `data` as YAML, JSON and protobuf.
pub fn bootstrap(data: &[u8]) {
    let message = MessageType::named("envoy.config.bootstrap.v3.Bootstrap").expect("in the schema");
    for name in ["a.yaml", "a.json", "a.pb"] {
        for unknown_fields in [UnknownFields::Refuse, UnknownFields::Warn] {
            let source = match Source::parse(name, data.to_vec()) {
                Ok(source) => source,
                Err(finding) => {
                    let _ = finding.to_string();
                    continue;
                }
            };
            match encode(vec![source], message, unknown_fields) {
                Ok(encoded) => {
                    let refusals = ledger::refusals(message, &encoded.bytes);
                    for finding in diagnostic::findings(refusals, &[], &encoded) {
                        let _ = finding.to_string();
                    }
                    let _ = encoded.decode::<Bootstrap>();
                    let _ = to_json(message, &encoded.bytes);
                }
                Err(findings) => findings.iter().for_each(|finding| drop(finding.to_string())),
            }
        }
    }
    // Bytes that no check has seen come from the network later.
    let _ = ledger::refusals(message, data);
    let _ = to_json(message, data);
}
