//! Every message and enum of Envoy's v3 API, looked up in a read-only blob without a start-up cost.
//!
//! `schema/envoy.txt` is generated from envoy-types' own descriptors (`schema/tests.rs` fails when it is stale and rewrites it with
//! `TORUS_REGENERATE=1`); `schema/supplement.txt` adds the few types that the crate lacks. The build script packs both:
//! four u32 counts (messages, fields, enums, values), then the records of each; and all names in one text.
//! Records are little endian: message and enum `name_offset u32, name_length u16, count u16, first u32`;
//! value `name_offset u32, name_length u16, zero u16, number i32`; field `name_offset u32, name_length u16, number u16, type u16,
//! kind u8, map_key u8, flags u8, oneof u8`. Messages, enums and a message's fields are sorted by name.

use std::fmt;

#[cfg(test)]
mod tests;

static BLOB: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/schema.bin"));
static NAMES: &str = include_str!(concat!(env!("OUT_DIR"), "/names.txt"));

/// A message type.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageType(u16);

/// An enum type.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EnumType(u16);

/// A field of a message.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Field(u32);

/// What one value of a field is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Double,
    Float,
    Int64,
    Uint64,
    Int32,
    Fixed64,
    Fixed32,
    Bool,
    String,
    Bytes,
    Uint32,
    Sfixed32,
    Sfixed64,
    Sint32,
    Sint64,
    Message(MessageType),
    Enum(EnumType),
}

impl MessageType {
    /// The message called `full_name`, for instance `envoy.config.core.v3.Node`.
    pub fn named(full_name: &str) -> Option<Self> {
        let index = search(message_count(), full_name, |index| Self(index as u16).full_name())?;
        Some(Self(index as u16))
    }

    /// The message that an Any's `type_url` names: what follows the last slash.
    pub fn from_type_url(type_url: &str) -> Option<Self> {
        Self::named(type_url.rsplit('/').next().unwrap_or(type_url))
    }

    /// The place in [`Self::all`], for tables with an entry for each message.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }

    /// Every message, sorted by name.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..message_count()).map(|index| Self(index as u16))
    }

    /// Package and name.
    pub fn full_name(self) -> &'static str {
        name_at(self.record())
    }

    /// The name without its package, with the messages that it is nested in: `RouteMatch.PathSpecifier`.
    pub fn short_name(self) -> &'static str {
        let full = self.full_name();
        let start = full.split('.').take_while(|part| !part.starts_with(|c: char| c.is_ascii_uppercase()));
        full.get(start.map(|part| part.len() + 1).sum()..).unwrap_or(full)
    }

    /// The fields, sorted by name.
    pub fn fields(self) -> impl ExactSizeIterator<Item = Field> + Clone {
        let (first, count) = self.field_range();
        (first..first + count).map(Field)
    }

    /// The field that a document calls `name`: its proto name or its JSON name in lowerCamelCase.
    pub fn field(self, name: &str) -> Option<Field> {
        let (first, count) = self.field_range();
        if let Some(index) = search(count as usize, name, |index| Field(first + index as u32).name()) {
            return Some(Field(first + index as u32));
        }
        if name.contains('_') {
            return None;
        }
        self.fields().find(|field| is_json_name(name, field.name()))
    }

    /// The field with wire number `number`.
    pub fn field_numbered(self, number: u32) -> Option<Field> {
        self.fields().find(|field| field.number() == number)
    }

    fn field_range(self) -> (u32, u32) {
        let record = self.record();
        (u32_at(record + 8), u32::from(u16_at(record + 6)))
    }

    fn record(self) -> usize {
        HEADER_BYTES + usize::from(self.0) * NAMED_BYTES
    }
}

impl EnumType {
    /// Package and name.
    pub fn full_name(self) -> &'static str {
        name_at(self.record())
    }

    /// Names with their numbers, in the order of the .proto file.
    pub fn values(self) -> impl ExactSizeIterator<Item = (&'static str, i32)> + Clone {
        let first = u32_at(self.record() + 8) as usize;
        let count = usize::from(u16_at(self.record() + 6));
        let start = enum_section() + enum_count() * NAMED_BYTES;
        (first..first + count).map(move |index| {
            let record = start + index * NAMED_BYTES;
            (name_at(record), u32_at(record + 8) as i32)
        })
    }

    /// The number of the value called `name`.
    pub fn number(self, name: &str) -> Option<i32> {
        self.values().find(|(known, _)| *known == name).map(|(_, number)| number)
    }

    /// The first name of `number`.
    pub fn name(self, number: i32) -> Option<&'static str> {
        self.values().find(|(_, known)| *known == number).map(|(name, _)| name)
    }

    fn record(self) -> usize {
        enum_section() + usize::from(self.0) * NAMED_BYTES
    }
}

impl Field {
    /// The name in the .proto file, in snake_case.
    pub fn name(self) -> &'static str {
        name_at(self.record())
    }

    /// The number on the wire.
    pub fn number(self) -> u32 {
        u32::from(u16_at(self.record() + 6))
    }

    /// What a value is: of a map, its values.
    pub fn kind(self) -> Kind {
        let index = u16_at(self.record() + 8);
        kind_of(u8_at(self.record() + 10), index)
    }

    /// What the keys are, if the field is a map.
    pub fn map_key(self) -> Option<Kind> {
        match u8_at(self.record() + 11) {
            0 => None,
            code => Some(kind_of(code, 0)),
        }
    }

    /// Whether the field is a list. A map is none.
    pub fn is_repeated(self) -> bool {
        self.flags() & 1 != 0
    }

    /// Whether a default value that was written differs from an absent one: messages, oneof members, proto3 `optional`.
    pub fn has_presence(self) -> bool {
        !self.is_repeated()
            && self.map_key().is_none()
            && (self.flags() & 2 != 0 || self.oneof().is_some() || matches!(self.kind(), Kind::Message(_)))
    }

    /// Whether the API's authors deprecated the field.
    pub fn is_deprecated(self) -> bool {
        self.flags() & 4 != 0
    }

    /// Which of its message's oneofs the field is part of.
    pub fn oneof(self) -> Option<u8> {
        u8_at(self.record() + 13).checked_sub(1)
    }

    /// The message type of a value, if it is a message.
    pub fn message(self) -> Option<MessageType> {
        match self.kind() {
            Kind::Message(message) => Some(message),
            _ => None,
        }
    }

    /// Appends the canonical JSON name.
    pub fn write_json_name(self, out: &mut String) {
        out.extend(camel(self.name()));
    }

    fn flags(self) -> u8 {
        u8_at(self.record() + 12)
    }

    fn record(self) -> usize {
        field_section() + self.0 as usize * FIELD_BYTES
    }
}

impl fmt::Debug for MessageType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.full_name())
    }
}

impl fmt::Debug for EnumType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.full_name())
    }
}

impl fmt::Debug for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whether `json` is `name` in lowerCamelCase.
pub fn is_json_name(json: &str, name: &str) -> bool {
    json.len() < name.len() && json.chars().eq(camel(name))
}

/// Source: protobuf.dev "ProtoJSON": an underscore falls and what follows it becomes upper case.
fn camel(name: &str) -> impl Iterator<Item = char> + '_ {
    let mut raise = false;
    name.chars().filter_map(move |letter| {
        if letter == '_' {
            raise = true;
            return None;
        }
        let letter = if raise { letter.to_ascii_uppercase() } else { letter };
        raise = false;
        Some(letter)
    })
}

fn kind_of(code: u8, index: u16) -> Kind {
    match code {
        1 => Kind::Double,
        2 => Kind::Float,
        3 => Kind::Int64,
        4 => Kind::Uint64,
        5 => Kind::Int32,
        6 => Kind::Fixed64,
        7 => Kind::Fixed32,
        8 => Kind::Bool,
        9 => Kind::String,
        11 => Kind::Message(MessageType(index)),
        13 => Kind::Uint32,
        14 => Kind::Enum(EnumType(index)),
        15 => Kind::Sfixed32,
        16 => Kind::Sfixed64,
        17 => Kind::Sint32,
        18 => Kind::Sint64,
        _ => Kind::Bytes,
    }
}

fn search(count: usize, name: &str, name_at: impl Fn(usize) -> &'static str) -> Option<usize> {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = usize::midpoint(low, high);
        match name_at(middle).cmp(name) {
            std::cmp::Ordering::Equal => return Some(middle),
            std::cmp::Ordering::Less => low = middle + 1,
            std::cmp::Ordering::Greater => high = middle,
        }
    }
    None
}

fn message_count() -> usize {
    u32_at(0) as usize
}

fn field_section() -> usize {
    HEADER_BYTES + message_count() * NAMED_BYTES
}

fn enum_section() -> usize {
    field_section() + u32_at(4) as usize * FIELD_BYTES
}

fn enum_count() -> usize {
    u32_at(8) as usize
}

fn name_at(record: usize) -> &'static str {
    let start = u32_at(record) as usize;
    NAMES.get(start..start + usize::from(u16_at(record + 4))).unwrap_or_default()
}

fn u8_at(offset: usize) -> u8 {
    BLOB.get(offset).copied().unwrap_or_default()
}

fn u16_at(offset: usize) -> u16 {
    BLOB.get(offset..).and_then(|bytes| bytes.first_chunk()).map_or(0, |bytes| u16::from_le_bytes(*bytes))
}

fn u32_at(offset: usize) -> u32 {
    BLOB.get(offset..).and_then(|bytes| bytes.first_chunk()).map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

const HEADER_BYTES: usize = 16;
/// A message's, an enum's or an enum value's record.
const NAMED_BYTES: usize = 12;
const FIELD_BYTES: usize = 14;
