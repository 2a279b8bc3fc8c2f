//! Protobuf bytes from outside against the schema: every field must be one that the schema has, in the form that it has.

use std::sync::Arc;

use crate::diagnostic::{Diagnostic, Severity};
use crate::path::Path;
use crate::schema::{Field, Kind, MessageType};
use crate::transcode::UnknownFields;
use crate::wire::{self, Value};

/// Adds a finding for each field of `bytes` that is unknown or malformed.
pub(crate) fn check(
    file: &Arc<str>,
    message: MessageType,
    bytes: &[u8],
    unknown_fields: UnknownFields,
    findings: &mut Vec<Diagnostic>,
) {
    Checker { file, unknown_fields, path: Path::default(), findings, depth: 0 }.message(message, bytes);
}

struct Checker<'a, 'f> {
    file: &'f Arc<str>,
    unknown_fields: UnknownFields,
    path: Path<'a>,
    findings: &'f mut Vec<Diagnostic>,
    depth: usize,
}

impl<'a> Checker<'a, '_> {
    fn message(&mut self, message: MessageType, bytes: &'a [u8]) {
        if self.depth >= DEPTH_MAX {
            return self.finding(Severity::Error, format!("messages are nested deeper than {DEPTH_MAX} levels"));
        }
        self.depth += 1;
        if message.full_name() == "google.protobuf.Any" {
            self.any(bytes);
        } else {
            self.fields(message, bytes);
        }
        self.depth -= 1;
    }

    fn fields(&mut self, message: MessageType, bytes: &'a [u8]) {
        let mut counts: Vec<(u32, usize)> = Vec::new();
        for field in wire::fields(bytes) {
            let (number, value) = match field {
                Ok(field) => field,
                Err(error) => {
                    return self.finding(Severity::Error, format!("not a {}: {error}", message.short_name()));
                }
            };
            let Some(field) = message.field_numbered(number) else {
                let severity = match self.unknown_fields {
                    UnknownFields::Refuse => Severity::Error,
                    UnknownFields::Warn => Severity::Warning,
                };
                self.finding(severity, format!("unknown field number {number} of {}", message.full_name()));
                continue;
            };
            self.path.push_field(field.name());
            if field.is_repeated() {
                let count = match counts.iter_mut().find(|(known, _)| *known == number) {
                    Some((_, count)) => {
                        *count += 1;
                        *count
                    }
                    None => {
                        counts.push((number, 0));
                        0
                    }
                };
                self.path.push_index(count);
            }
            self.value(field, value);
            if field.is_repeated() {
                self.path.pop();
            }
            self.path.pop();
        }
    }

    fn value(&mut self, field: Field, value: Value<'a>) {
        if field.map_key().is_none() {
            return self.single(field.kind(), field.is_repeated(), value);
        }
        let Value::Length(entry) = value else { return self.wrong_form() };
        let key = wire::length_values(entry, 1).last().unwrap_or_default();
        self.path.push_key(std::str::from_utf8(key).unwrap_or("?"));
        for content in wire::length_values(entry, 2) {
            self.single(field.kind(), false, Value::Length(content));
        }
        self.path.pop();
    }

    fn single(&mut self, kind: Kind, repeated: bool, value: Value<'a>) {
        let fits = match (kind, value) {
            (Kind::Message(message), Value::Length(bytes)) => return self.message(message, bytes),
            (Kind::String, Value::Length(bytes)) => {
                if std::str::from_utf8(bytes).is_err() {
                    self.finding(Severity::Error, "not UTF-8 text".to_owned());
                }
                true
            }
            (Kind::Bytes, Value::Length(_)) => true,
            (Kind::Message(_) | Kind::String | Kind::Bytes, _) => false,
            // A list of scalars may be packed.
            (_, Value::Length(_)) => repeated,
            (Kind::Double | Kind::Fixed64 | Kind::Sfixed64, Value::Fixed64(_)) => true,
            (Kind::Float | Kind::Fixed32 | Kind::Sfixed32, Value::Fixed32(_)) => true,
            (Kind::Double | Kind::Fixed64 | Kind::Sfixed64 | Kind::Float | Kind::Fixed32 | Kind::Sfixed32, _) => false,
            (_, value) => matches!(value, Value::Varint(_)),
        };
        if !fits {
            self.wrong_form();
        }
    }

    fn any(&mut self, bytes: &'a [u8]) {
        let type_url = wire::length_values(bytes, 1).last().unwrap_or_default();
        let type_url = std::str::from_utf8(type_url).unwrap_or_default();
        match MessageType::from_type_url(type_url) {
            Some(message) => {
                for content in wire::length_values(bytes, 2) {
                    self.message(message, content);
                }
            }
            None if type_url.is_empty() => {}
            None => self.finding(Severity::Error, format!("unknown message type `{type_url}`")),
        }
    }

    fn wrong_form(&mut self) {
        self.finding(Severity::Error, "the value's wire type is not that of the field".to_owned());
    }

    fn finding(&mut self, severity: Severity, reason: String) {
        if self.findings.len() < FINDING_COUNT_MAX {
            let finding = Diagnostic::error(Arc::clone(self.file), self.path.to_string(), reason);
            self.findings.push(Diagnostic { severity, ..finding });
        }
    }
}

/// As protobuf readers have it.
const DEPTH_MAX: usize = 100;
/// Findings kept in one run.
const FINDING_COUNT_MAX: usize = 200;

#[cfg(test)]
mod tests {
    use crate::{MessageType, Source, UnknownFields, encode};

    #[test]
    fn bytes_must_fit_the_schema() {
        let check = |bytes: &[u8], expected: &[&str]| {
            let message = MessageType::named("envoy.config.core.v3.Node").unwrap();
            let source = Source::parse("a.pb", bytes.to_vec()).unwrap();
            let found: Vec<String> = match encode(vec![source], message, UnknownFields::Refuse) {
                Ok(_) => Vec::new(),
                Err(errors) => errors.iter().map(ToString::to_string).collect(),
            };
            assert_eq!(found, expected, "{bytes:x?}");
        };
        check(b"\x0a\x01a\x12\x01b", &[]);
        check(b"\x0a\x01\xff", &["a.pb: id: not UTF-8 text"]);
        check(b"\x08\x01", &["a.pb: id: the value's wire type is not that of the field"]);
        check(b"\x0a\x05a", &["a.pb: not a Node: the message ends inside a field"]);
        check(b"\xf8\x07\x01", &["a.pb: unknown field number 127 of envoy.config.core.v3.Node"]);
        check(
            b"\x22\x03\x08\x01\x0a",
            &[
                "a.pb: locality.region: the value's wire type is not that of the field",
                "a.pb: locality: not a Locality: the message ends inside a field",
            ],
        );
    }
}
