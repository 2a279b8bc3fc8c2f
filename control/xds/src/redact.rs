//! Encoded messages without what is nobody's to read: private keys, passwords, shared secrets; at every depth and inside of Anys.

use crate::schema::{Field, MessageType};
use crate::wire::{self, Value};

/// `bytes`, an encoded `message`, with each secret replaced by the text `[redacted]`.
///
/// What follows a malformed field, and what is nested too deep to be looked at, is left out.
pub fn redacted(message: MessageType, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    copy(message, bytes, &mut out, 0);
    out
}

fn copy(message: MessageType, bytes: &[u8], out: &mut Vec<u8>, depth: usize) {
    if depth > DEPTH_MAX {
        return;
    }
    let content_of_any = (message.full_name() == ANY)
        .then(|| wire::length_values(bytes, 1).last().and_then(|url| std::str::from_utf8(url).ok()))
        .flatten()
        .and_then(MessageType::from_type_url);
    for (number, value) in wire::fields(bytes).flatten() {
        let (Value::Length(content), Some(field)) = (value, message.field_numbered(number)) else {
            wire::write_value(out, number, value);
            continue;
        };
        if is_secret(message, field) {
            hide(field, out);
        } else if field.map_key().is_some() {
            wire::write_nested(out, number, |out| copy_entry(field, content, out, depth + 1));
        } else if let Some(inner) = field.message().or(content_of_any.filter(|_| number == 2)) {
            wire::write_nested(out, number, |out| copy(inner, content, out, depth + 1));
        } else {
            wire::write_length(out, number, content);
        }
    }
}

/// An entry of a map: field 1 is the key, field 2 the value.
fn copy_entry(field: Field, entry: &[u8], out: &mut Vec<u8>, depth: usize) {
    let key = wire::length_values(entry, 1).last().and_then(|key| std::str::from_utf8(key).ok());
    let is_hidden = key.is_some_and(|key| SECRETS.contains(&key));
    for (number, value) in wire::fields(entry).flatten() {
        match (number, value, field.message()) {
            // The value of a Struct: field 3 is text.
            (2, Value::Length(_), Some(inner)) if is_hidden && inner.full_name() == "google.protobuf.Value" => {
                wire::write_nested(out, 2, |out| wire::write_length(out, 3, HIDDEN));
            }
            (2, Value::Length(content), Some(inner)) => {
                wire::write_nested(out, 2, |out| copy(inner, content, out, depth));
            }
            _ => wire::write_value(out, number, value),
        }
    }
}

fn is_secret(message: MessageType, field: Field) -> bool {
    match message.full_name().rsplit('.').next() {
        Some("GenericSecret") => matches!(field.name(), "secret" | "secrets"),
        Some("TlsSessionTicketKeys") => field.name() == "keys",
        _ => SECRETS.contains(&field.name()),
    }
}

/// In place of a secret: text, or a source that gives the text. A secret of another form is left out.
fn hide(field: Field, out: &mut Vec<u8>) {
    match field.message() {
        _ if field.map_key().is_some() => {}
        None => wire::write_length(out, field.number(), HIDDEN),
        Some(source) if source.full_name() == "envoy.config.core.v3.DataSource" => {
            // Field 3 of a DataSource is `inline_string`.
            wire::write_nested(out, field.number(), |out| wire::write_length(out, 3, HIDDEN));
        }
        Some(_) => {}
    }
}

const ANY: &str = "google.protobuf.Any";
const HIDDEN: &[u8] = b"[redacted]";
/// Fields, and keys in a Struct, that hold a secret wherever they stand.
const SECRETS: [&str; 4] = ["private_key", "privateKey", "password", "pkcs12"];
/// As protobuf readers have it.
const DEPTH_MAX: usize = 100;

#[cfg(test)]
mod tests {
    use super::redacted;
    use crate::{Document, Format, MessageType, Source, UnknownFields, encode, to_json};

    /// What is shown of `yaml`, a message of the type called `name`.
    fn shown(name: &str, yaml: &str) -> String {
        let message = MessageType::named(name).unwrap();
        let document = Document::parse("a.yaml", yaml.to_owned(), Format::Yaml).unwrap();
        let bytes = encode(vec![Source::Text(document)], message, UnknownFields::Refuse).unwrap().bytes;
        to_json(message, &redacted(message, &bytes)).unwrap().to_string()
    }

    #[test]
    fn secrets_are_hidden_and_nothing_else() {
        let tls = "envoy.extensions.transport_sockets.tls.v3";
        let certificate = "{certificate_chain: {inline_string: PUBLIC}, private_key: {inline_string: HUSH}, password: {inline_string: HUSH}}";
        let listener = format!(
            "{{name: edge, filter_chains: [{{transport_socket: {{name: tls, typed_config: {{'@type': type.googleapis.com/{tls}.DownstreamTlsContext, common_tls_context: {{tls_certificates: [{certificate}]}}}}}}}}]}}"
        );
        let metadata = "{filter_metadata: {shop: {password: HUSH, name: PUBLIC}}}";
        for (name, yaml, public) in [
            (format!("{tls}.Secret"), format!("{{name: a, tls_certificate: {certificate}}}"), true),
            (
                format!("{tls}.Secret"),
                "{name: PUBLIC, generic_secret: {secret: {inline_string: HUSH}}}".to_owned(),
                true,
            ),
            (
                format!("{tls}.Secret"),
                "{name: a, session_ticket_keys: {keys: [{inline_string: HUSH}]}}".to_owned(),
                false,
            ),
            ("envoy.config.listener.v3.Listener".to_owned(), listener, true),
            ("envoy.config.core.v3.Metadata".to_owned(), metadata.to_owned(), true),
        ] {
            let shown = shown(&name, &yaml);
            assert!(shown.contains("[redacted]") && !shown.contains("HUSH"), "{shown}");
            assert_eq!(shown.contains("PUBLIC"), public, "{shown}");
        }
    }

    #[test]
    fn what_holds_no_secret_stays_as_it_is() {
        let message = MessageType::named("envoy.config.cluster.v3.Cluster").unwrap();
        let yaml = "{name: a, connect_timeout: 1s, metadata: {filter_metadata: {a: {b: [1, true, c]}}}}".to_owned();
        let document = Document::parse("a.yaml", yaml, Format::Yaml).unwrap();
        let bytes = encode(vec![Source::Text(document)], message, UnknownFields::Refuse).unwrap().bytes;
        assert_eq!(redacted(message, &bytes), bytes);
    }
}
