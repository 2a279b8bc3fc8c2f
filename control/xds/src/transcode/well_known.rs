//! The messages that ProtoJSON writes in a form of their own. Source: protobuf.dev "ProtoJSON Format".

use super::Encoder;
use crate::diagnostic::Severity;
use crate::diagnostic::nearest;
use crate::document::{Content, Format, Node};
use crate::scalar;
use crate::schema::{Kind, MessageType};
use crate::wire::{self, WireType};

impl<'a> Encoder<'a, '_> {
    /// Appends `message` if it is one with a form of its own; `false` leaves it to the ordinary rules.
    pub(super) fn well_known(&mut self, node: Node<'a>, message: MessageType, out: &mut Vec<u8>) -> bool {
        let Some(name) = message.full_name().strip_prefix("google.protobuf.") else { return false };
        match name {
            "Any" => self.any(node, out),
            "Duration" => {
                let parsed = node.text().and_then(scalar::duration);
                self.seconds(node, parsed, "a duration in seconds, for instance \"0.25s\", is expected", out);
            }
            "Timestamp" => {
                let parsed = node.text().and_then(scalar::timestamp);
                self.seconds(node, parsed, "a time, for instance \"2026-11-23T18:00:00Z\", is expected", out);
            }
            "Struct" => self.structure(node, out),
            "Value" => self.dynamic(node, out),
            "ListValue" => self.list(node, out),
            "FieldMask" => self.field_mask(node, out),
            _ => {
                let Some(kind) = wrapped(name) else { return false };
                self.scalar(node, kind, 1, false, out);
            }
        }
        true
    }

    fn seconds(&mut self, node: Node<'a>, parsed: Option<(i64, i32)>, wanted: &str, out: &mut Vec<u8>) {
        let Some((seconds, nanos)) = parsed else {
            let found = node.text().map_or_else(|| node.noun().to_owned(), |text| format!("`{}`", super::shown(text)));
            return self.error(node, format!("{wanted}, not {found}"));
        };
        for (number, value) in [(1, seconds), (2, i64::from(nanos))] {
            if value != 0 {
                wire::write_tag(out, number, WireType::Varint);
                wire::write_varint(out, value as u64);
            }
        }
    }

    fn field_mask(&mut self, node: Node<'a>, out: &mut Vec<u8>) {
        let Some(text) = node.text() else {
            return self.error(node, "field paths with commas between them are expected".to_owned());
        };
        for path in text.split(',').filter(|path| !path.is_empty()) {
            let mut snake = String::new();
            for letter in path.trim().chars() {
                if letter.is_ascii_uppercase() {
                    snake.push('_');
                }
                snake.push(letter.to_ascii_lowercase());
            }
            wire::write_length(out, 1, snake.as_bytes());
        }
    }

    fn structure(&mut self, node: Node<'a>, out: &mut Vec<u8>) {
        if node.content() != Content::Mapping {
            return self.error(node, format!("a mapping is expected, not {}", node.noun()));
        }
        for (name, _, value) in node.pairs() {
            self.path.push_key(name);
            wire::write_nested(out, 1, |out| {
                wire::write_length(out, 1, name.as_bytes());
                wire::write_nested(out, 2, |out| self.dynamic(value, out));
            });
            self.path.pop();
        }
    }

    fn list(&mut self, node: Node<'a>, out: &mut Vec<u8>) {
        if node.content() != Content::Sequence {
            return self.error(node, format!("a list is expected, not {}", node.noun()));
        }
        for (index, element) in node.elements().enumerate() {
            self.path.push_index(index);
            wire::write_nested(out, 1, |out| self.dynamic(element, out));
            self.path.pop();
        }
    }

    /// Appends a google.protobuf.Value, with the type that Envoy would see.
    fn dynamic(&mut self, node: Node<'a>, out: &mut Vec<u8>) {
        let format = node.document().format();
        match node.content() {
            Content::Null => {
                wire::write_tag(out, 1, WireType::Varint);
                wire::write_varint(out, 0);
            }
            Content::Mapping => wire::write_nested(out, 5, |out| self.structure(node, out)),
            Content::Sequence => wire::write_nested(out, 6, |out| self.list(node, out)),
            Content::Quoted(text) => wire::write_length(out, 3, text.as_bytes()),
            Content::Plain(text) => match plain_value(text, format) {
                PlainValue::Bool(value) => {
                    wire::write_tag(out, 4, WireType::Varint);
                    wire::write_varint(out, u64::from(value));
                }
                PlainValue::Number(value) => {
                    wire::write_tag(out, 2, WireType::Fixed64);
                    out.extend_from_slice(&value.to_le_bytes());
                }
                PlainValue::Whole(value) => wire::write_length(out, 3, value.to_string().as_bytes()),
                PlainValue::Text => wire::write_length(out, 3, text.as_bytes()),
            },
        }
    }

    fn any(&mut self, node: Node<'a>, out: &mut Vec<u8>) {
        if node.content() != Content::Mapping {
            return self.error(node, format!("a mapping with `@type` is expected, not {}", node.noun()));
        }
        let Some(type_node) = node.get("@type") else {
            if node.length() > 0 {
                self.error(node, "`@type` is missing, which says what these fields are".to_owned());
            }
            return;
        };
        let type_url = type_node.text().unwrap_or_default();
        let Some(message) = MessageType::from_type_url(type_url) else {
            return self.unknown_type(type_node, type_url);
        };
        if TYPED_STRUCTS.contains(&message.full_name()) && self.typed_struct(node, out) {
            return;
        }
        wire::write_length(out, 1, type_url.as_bytes());
        wire::write_nested(out, 2, |out| {
            if !has_own_form(message) {
                return self.fields(node, message, |name| name == "@type", out);
            }
            match node.get("value") {
                Some(value) => self.message(value, message, out),
                None => self.error(node, format!("`value` is missing, which holds the {}", message.short_name())),
            }
            for (name, key, _) in node.pairs().filter(|(name, ..)| !matches!(*name, "@type" | "value")) {
                self.unknown_field(name, key, message);
            }
        });
    }

    /// Appends what a TypedStruct stands for; `false` where its type is not known and it stays what it is.
    fn typed_struct(&mut self, node: Node<'a>, out: &mut Vec<u8>) -> bool {
        let Some(type_url) = node.get("type_url").or_else(|| node.get("typeUrl")).and_then(Node::text) else {
            return false;
        };
        let Some(message) = MessageType::from_type_url(type_url) else { return false };
        wire::write_length(out, 1, type_url.as_bytes());
        if let Some(value) = node.get("value").filter(|value| value.content() != Content::Null) {
            wire::write_nested(out, 2, |out| self.message(value, message, out));
        }
        for (name, key, _) in
            node.pairs().filter(|(name, ..)| !matches!(*name, "@type" | "type_url" | "typeUrl" | "value"))
        {
            self.unknown_field(name, key, message);
        }
        true
    }

    fn unknown_type(&mut self, node: Node<'a>, type_url: &str) {
        let name = type_url.rsplit('/').next().unwrap_or(type_url);
        let short = name.rsplit('.').next().unwrap_or(name);
        let known = || MessageType::all().map(MessageType::full_name);
        let suggestion = nearest(name, known())
            .or_else(|| known().find(|known| known.rsplit('.').next() == Some(short)))
            .map(|name| format!("type.googleapis.com/{name}"));
        self.path.push_key("@type");
        self.finding(node, Severity::Error, format!("unknown message type `{}`", super::shown(name)), suggestion);
        self.path.pop();
    }
}

enum PlainValue {
    Bool(bool),
    Number(f64),
    /// Outside of what Envoy's loader turns into a number.
    Whole(i64),
    Text,
}

/// What a scalar without quotes becomes where no schema says what it is. JSON's numbers are doubles; Envoy's YAML loader makes numbers
/// of whole numbers of 32 bits only, text of longer ones, and leaves fractions as text.
fn plain_value(text: &str, format: Format) -> PlainValue {
    if format == Format::Json {
        return match text {
            "true" => PlainValue::Bool(true),
            "false" => PlainValue::Bool(false),
            _ => scalar::float(text).map_or(PlainValue::Text, PlainValue::Number),
        };
    }
    if let Some(value) = scalar::yaml_bool(text) {
        return PlainValue::Bool(value);
    }
    let is_whole = !text.contains(['.', 'e', 'E']) || text.starts_with("0x");
    match scalar::integer(text).filter(|_| is_whole).and_then(|value| i64::try_from(value).ok()) {
        Some(value) => i32::try_from(value).map_or(PlainValue::Whole(value), |value| PlainValue::Number(value.into())),
        None => PlainValue::Text,
    }
}

/// Whether ProtoJSON writes the message other than as a mapping of its fields, so that an Any holds it under `value`.
pub(crate) fn has_own_form(message: MessageType) -> bool {
    message.full_name().strip_prefix("google.protobuf.").is_some_and(|name| {
        wrapped(name).is_some()
            || matches!(name, "Any" | "Duration" | "Timestamp" | "Struct" | "Value" | "ListValue" | "FieldMask")
    })
}

/// The scalar inside a wrapper message of google.protobuf.
pub(crate) fn wrapped(name: &str) -> Option<Kind> {
    Some(match name {
        "DoubleValue" => Kind::Double,
        "FloatValue" => Kind::Float,
        "Int64Value" => Kind::Int64,
        "UInt64Value" => Kind::Uint64,
        "Int32Value" => Kind::Int32,
        "UInt32Value" => Kind::Uint32,
        "BoolValue" => Kind::Bool,
        "StringValue" => Kind::String,
        "BytesValue" => Kind::Bytes,
        _ => return None,
    })
}

/// Both names of the message that carries another one as a Struct.
pub(crate) const TYPED_STRUCTS: [&str; 2] = ["udpa.type.v1.TypedStruct", "xds.type.v3.TypedStruct"];
