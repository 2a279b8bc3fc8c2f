//! A document's nodes to protobuf wire bytes, by the schema: ProtoJSON's mapping, with every error collected.
//!
//! An `Any` is written from `@type` and the fields beside it; a TypedStruct becomes an `Any` of the message that its `type_url` names,
//! as Envoy's extensions see it. Fields that hold their default are not written, as any protobuf writer leaves them out.

use crate::diagnostic::{Diagnostic, Severity, nearest};
use crate::document::{Content, Document, Format, Node};
use crate::path::Path;
use crate::scalar;
use crate::schema::{EnumType, Field, Kind, MessageType};
use crate::wire::{self, WireType};

#[cfg(test)]
mod tests;
mod well_known;
pub(crate) use well_known::has_own_form;

/// What to do about fields that the schema does not have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnknownFields {
    /// An error for each.
    #[default]
    Refuse,
    /// A warning for each; the field is left out.
    Warn,
}

/// Writes `document` as `message`. Findings are added to `findings`; the bytes are of use only where none is an error.
pub(crate) fn encode(
    document: &Document,
    message: MessageType,
    unknown_fields: UnknownFields,
    findings: &mut Vec<Diagnostic>,
) -> Vec<u8> {
    let mut out = Vec::new();
    let mut encoder = Encoder { unknown_fields, path: Path::default(), findings, depth: 0 };
    encoder.message(document.root(), message, &mut out);
    out
}

/// As [`encode`], for a document that is a list of messages.
pub(crate) fn encode_list(
    document: &Document,
    message: MessageType,
    unknown_fields: UnknownFields,
    findings: &mut Vec<Diagnostic>,
) -> Vec<Vec<u8>> {
    let mut encoder = Encoder { unknown_fields, path: Path::default(), findings, depth: 0 };
    let root = document.root();
    if !matches!(root.content(), Content::Sequence | Content::Null) {
        encoder.error(root, format!("a list of {} is expected, not {}", message.full_name(), root.noun()));
    }
    let elements = root.elements().enumerate().map(|(index, node)| {
        let mut out = Vec::new();
        encoder.path.push_index(index);
        encoder.message(node, message, &mut out);
        encoder.path.pop();
        out
    });
    elements.collect()
}

struct Encoder<'a, 'f> {
    unknown_fields: UnknownFields,
    path: Path<'a>,
    findings: &'f mut Vec<Diagnostic>,
    depth: usize,
}

impl<'a> Encoder<'a, '_> {
    /// Appends the content of `message` as `node` gives it.
    fn message(&mut self, node: Node<'a>, message: MessageType, out: &mut Vec<u8>) {
        if self.depth >= DEPTH_MAX {
            return self.error(node, format!("messages are nested deeper than {DEPTH_MAX} levels"));
        }
        self.depth += 1;
        if !self.well_known(node, message, out) {
            match node.content() {
                Content::Mapping => self.fields(node, message, |_| false, out),
                // An empty file, or an element left empty by mistake: only the former asks for all defaults.
                Content::Null if self.depth == 1 => {}
                _ => self.error(node, format!("{} is a mapping of fields, not {}", message.short_name(), node.noun())),
            }
        }
        self.depth -= 1;
    }

    /// Appends the fields of `message` from a mapping, but for the names that `skipped` picks.
    fn fields(&mut self, node: Node<'a>, message: MessageType, skipped: impl Fn(&str) -> bool, out: &mut Vec<u8>) {
        let mut seen = Seen::default();
        for (name, key, value) in node.pairs().filter(|(name, ..)| !skipped(name)) {
            let Some(field) = message.field(name) else {
                self.unknown_field(name, key, message);
                continue;
            };
            self.path.push_field(field.name());
            if value.content() != Content::Null || takes_null(field) {
                if let Some(reason) = seen.conflict(field, message) {
                    self.error(key, reason);
                }
                self.field(value, field, out);
            }
            self.path.pop();
        }
    }

    fn field(&mut self, node: Node<'a>, field: Field, out: &mut Vec<u8>) {
        if let Some(key_kind) = field.map_key() {
            return self.map(node, field, key_kind, out);
        }
        if !field.is_repeated() {
            return self.value(node, field, field.number(), field.has_presence(), out);
        }
        // Envoy takes one value for a list of one.
        if node.content() != Content::Sequence {
            return self.value(node, field, field.number(), true, out);
        }
        for (index, element) in node.elements().enumerate() {
            self.path.push_index(index);
            if element.content() == Content::Null && !takes_null(field) {
                self.error(element, "an element of a list must not be null".to_owned());
            } else {
                self.value(element, field, field.number(), true, out);
            }
            self.path.pop();
        }
    }

    fn map(&mut self, node: Node<'a>, field: Field, key_kind: Kind, out: &mut Vec<u8>) {
        if node.content() != Content::Mapping {
            return self.error(node, format!("a mapping is expected, not {}", node.noun()));
        }
        for (name, key, value) in node.pairs() {
            self.path.push_key(name);
            if value.content() == Content::Null && !takes_null(field) {
                self.error(value, "a value of a map must not be null".to_owned());
            } else {
                // A map is a list of entries with key = 1 and value = 2.
                wire::write_nested(out, field.number(), |out| {
                    self.scalar(key, key_kind, 1, true, out);
                    self.value(value, field, 2, true, out);
                });
            }
            self.path.pop();
        }
    }

    /// Appends one value of `field` under `number`.
    fn value(&mut self, node: Node<'a>, field: Field, number: u32, keep_default: bool, out: &mut Vec<u8>) {
        match field.kind() {
            Kind::Message(message) => wire::write_nested(out, number, |out| self.message(node, message, out)),
            kind => self.scalar(node, kind, number, keep_default, out),
        }
    }

    fn scalar(&mut self, node: Node<'a>, kind: Kind, number: u32, keep_default: bool, out: &mut Vec<u8>) {
        let Some(text) = node.text() else {
            return self.error(node, format!("{} is expected, not {}", kind_noun(kind), node.noun()));
        };
        let plain = matches!(node.content(), Content::Plain(_));
        let signed = |low: i64, high: i64| {
            let value = scalar::integer(text)?;
            (i128::from(low) <= value && value <= i128::from(high)).then_some(value as i64)
        };
        let unsigned = |high: u64| {
            let value = scalar::integer(text)?;
            (0 <= value && value <= i128::from(high)).then_some(value as u64)
        };
        let varint = match kind {
            Kind::String | Kind::Bytes => {
                let decoded;
                let bytes = if kind == Kind::String {
                    text.as_bytes()
                } else {
                    decoded = scalar::base64(text);
                    match &decoded {
                        Some(bytes) => bytes,
                        None => return self.error(node, "base64 is expected".to_owned()),
                    }
                };
                if keep_default || !bytes.is_empty() {
                    wire::write_length(out, number, bytes);
                }
                return;
            }
            Kind::Double | Kind::Float => {
                let Some(value) = scalar::float(text) else { return self.wrong_number(node, text, kind) };
                if !keep_default && value == 0.0 {
                    return;
                }
                if kind == Kind::Double {
                    wire::write_tag(out, number, WireType::Fixed64);
                    out.extend_from_slice(&value.to_le_bytes());
                } else {
                    wire::write_tag(out, number, WireType::Fixed32);
                    out.extend_from_slice(&(value as f32).to_le_bytes());
                }
                return;
            }
            Kind::Fixed64 | Kind::Sfixed64 | Kind::Fixed32 | Kind::Sfixed32 => {
                return self.fixed(node, text, kind, number, keep_default, out);
            }
            Kind::Bool => {
                // Envoy takes the two words of JSON with quotes, and those of YAML 1.1 without.
                let value = match node.document().format() {
                    Format::Yaml if plain => scalar::yaml_bool(text),
                    _ => text.parse().ok(),
                };
                match value {
                    Some(value) => Some(u64::from(value)),
                    None => return self.error(node, format!("`{}` is neither true nor false", shown(text))),
                }
            }
            Kind::Enum(enumeration) => match self.enum_number(node, text, enumeration) {
                Some(value) => Some(i64::from(value) as u64),
                None => return,
            },
            Kind::Int32 => signed(i32::MIN.into(), i32::MAX.into()).map(|value| value as u64),
            Kind::Int64 => signed(i64::MIN, i64::MAX).map(|value| value as u64),
            Kind::Sint32 => signed(i32::MIN.into(), i32::MAX.into()).map(|value| ((value << 1) ^ (value >> 63)) as u64),
            Kind::Sint64 => signed(i64::MIN, i64::MAX).map(|value| ((value << 1) ^ (value >> 63)) as u64),
            Kind::Uint32 => unsigned(u32::MAX.into()),
            Kind::Uint64 => unsigned(u64::MAX),
            Kind::Message(_) => None,
        };
        let Some(value) = varint else { return self.wrong_number(node, text, kind) };
        if keep_default || value != 0 {
            wire::write_tag(out, number, WireType::Varint);
            wire::write_varint(out, value);
        }
    }

    fn fixed(&mut self, node: Node<'a>, text: &str, kind: Kind, number: u32, keep_default: bool, out: &mut Vec<u8>) {
        let (low, high) = match kind {
            Kind::Fixed64 => (0, u64::MAX.into()),
            Kind::Sfixed64 => (i64::MIN.into(), i64::MAX.into()),
            Kind::Fixed32 => (0, u32::MAX.into()),
            _ => (i32::MIN.into(), i32::MAX.into()),
        };
        let Some(value) = scalar::integer(text).filter(|value| (low..=high).contains(value)) else {
            return self.wrong_number(node, text, kind);
        };
        if !keep_default && value == 0 {
            return;
        }
        if matches!(kind, Kind::Fixed64 | Kind::Sfixed64) {
            wire::write_tag(out, number, WireType::Fixed64);
            out.extend_from_slice(&(value as u64).to_le_bytes());
        } else {
            wire::write_tag(out, number, WireType::Fixed32);
            out.extend_from_slice(&(value as u32).to_le_bytes());
        }
    }

    fn enum_number(&mut self, node: Node<'a>, text: &str, enumeration: EnumType) -> Option<i32> {
        let exact = enumeration.number(text);
        let any_case =
            || enumeration.values().find(|(name, _)| name.eq_ignore_ascii_case(text)).map(|(_, number)| number);
        if let Some(number) = exact.or_else(any_case) {
            return Some(number);
        }
        let number = scalar::integer(text).and_then(|number| i32::try_from(number).ok());
        if let Some(number) = number.filter(|number| enumeration.name(*number).is_some()) {
            return Some(number);
        }
        let names = enumeration.values().map(|(name, _)| name);
        let upper = text.to_ascii_uppercase();
        let suggestion = nearest(&upper, names.clone()).map(str::to_owned);
        let reason = match &suggestion {
            Some(_) => format!("`{}` is not a value of {}", shown(text), enumeration.full_name()),
            None => {
                let known: Vec<&str> = names.take(ENUM_NAMES_SHOWN).collect();
                format!("`{}` is none of {}", shown(text), known.join(", "))
            }
        };
        self.finding(node, Severity::Error, reason, suggestion);
        None
    }

    fn unknown_field(&mut self, name: &str, key: Node<'a>, message: MessageType) {
        let suggestion = nearest(name, message.fields().map(Field::name)).map(str::to_owned).or_else(|| {
            let mut known = message.fields().map(|field| {
                let mut json = String::new();
                field.write_json_name(&mut json);
                (strsim::damerau_levenshtein(name, &json) <= 2).then_some(json)
            });
            known.find_map(|found| found)
        });
        let severity = match self.unknown_fields {
            UnknownFields::Refuse => Severity::Error,
            UnknownFields::Warn => Severity::Warning,
        };
        let mut reason = format!("unknown field `{}` of {}", shown(name), message.full_name());
        if name == "<<" {
            reason.push_str(" (YAML merge keys are not read)");
        }
        self.finding(key, severity, reason, suggestion);
    }

    fn wrong_number(&mut self, node: Node<'a>, text: &str, kind: Kind) {
        self.error(node, format!("`{}` is not {}", shown(text), kind_noun(kind)));
    }

    fn error(&mut self, node: Node<'a>, reason: String) {
        self.finding(node, Severity::Error, reason, None);
    }

    fn finding(&mut self, node: Node<'a>, severity: Severity, reason: String, suggestion: Option<String>) {
        if self.findings.len() < FINDING_COUNT_MAX {
            let file = node.document().name().clone();
            let path = self.path.to_string();
            self.findings.push(Diagnostic { severity, file, place: Some(node.place()), path, reason, suggestion });
        }
    }
}

/// The fields that a mapping has named so far.
#[derive(Default)]
struct Seen {
    fields: Vec<Field>,
}

impl Seen {
    /// Why `field` may not be given beside the fields before it.
    fn conflict(&mut self, field: Field, message: MessageType) -> Option<String> {
        let earlier = self
            .fields
            .iter()
            .find(|earlier| **earlier == field || (field.oneof().is_some() && field.oneof() == earlier.oneof()));
        let reason = earlier.map(|earlier| {
            if *earlier == field {
                format!("`{}` is given twice, once in each spelling", field.name())
            } else {
                format!(
                    "only one of `{}` and `{}` can be set in {}",
                    earlier.name(),
                    field.name(),
                    message.short_name()
                )
            }
        });
        self.fields.push(field);
        reason
    }
}

/// Whether null is a value of the field, and not its absence.
fn takes_null(field: Field) -> bool {
    match field.kind() {
        Kind::Message(message) => message.full_name() == "google.protobuf.Value",
        Kind::Enum(enumeration) => enumeration.full_name() == "google.protobuf.NullValue",
        _ => false,
    }
}

fn kind_noun(kind: Kind) -> &'static str {
    match kind {
        Kind::Double | Kind::Float => "a number",
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => "a whole number of 32 bits",
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => "a whole number of 64 bits",
        Kind::Uint32 | Kind::Fixed32 => "a whole number from 0 to 4294967295",
        Kind::Uint64 | Kind::Fixed64 => "a whole number from 0 to 18446744073709551615",
        Kind::Bool => "true or false",
        Kind::String => "a text",
        Kind::Bytes => "base64",
        Kind::Enum(_) => "a name",
        Kind::Message(_) => "a mapping",
    }
}

/// A piece of the document that is short enough for a message.
fn shown(text: &str) -> &str {
    text.char_indices().nth(SHOWN_CHARS).and_then(|(at, _)| text.get(..at)).unwrap_or(text)
}

/// Protobuf readers stop at 100 nested messages.
const DEPTH_MAX: usize = 100;
/// Findings kept in one run; more would be consequences or noise.
const FINDING_COUNT_MAX: usize = 200;
const ENUM_NAMES_SHOWN: usize = 12;
const SHOWN_CHARS: usize = 80;
