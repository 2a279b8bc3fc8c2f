//! Turns schema/*.txt into two blobs that are read in place: see src/schema.rs for its layout.

use std::collections::BTreeMap;
use std::path::Path;
use std::{env, fs};

#[derive(Default)]
struct Message<'a> {
    fields: Vec<Field<'a>>,
    oneofs: Vec<&'a str>,
}

struct Field<'a> {
    number: u16,
    name: &'a str,
    kind: &'a str,
    map_key: Option<&'a str>,
    repeated: bool,
    optional: bool,
    deprecated: bool,
    required: bool,
    /// Position in `Message::oneofs` plus one.
    oneof: u8,
}

fn main() {
    let folder = Path::new(&env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo")).join("schema");
    println!("cargo:rerun-if-changed={}", folder.display());
    let mut texts = Vec::new();
    for file in ["envoy.txt", "supplement.txt"] {
        texts.push(fs::read_to_string(folder.join(file)).expect("a schema file"));
    }
    let mut messages: BTreeMap<&str, Message<'_>> = BTreeMap::new();
    let mut enums: BTreeMap<&str, Vec<(i32, &str)>> = BTreeMap::new();
    for text in &texts {
        parse(text, &mut messages, &mut enums);
    }
    let (records, names) = Blob::build(&messages, &enums);
    let out = env::var_os("OUT_DIR").expect("set by cargo");
    fs::write(Path::new(&out).join("schema.bin"), records).expect("OUT_DIR is writable");
    fs::write(Path::new(&out).join("names.txt"), names).expect("OUT_DIR is writable");
}

fn parse<'a>(
    text: &'a str,
    messages: &mut BTreeMap<&'a str, Message<'a>>,
    enums: &mut BTreeMap<&'a str, Vec<(i32, &'a str)>>,
) {
    enum Current<'a> {
        Nothing,
        Message(&'a str),
        Enum(&'a str),
    }
    let mut current = Current::Nothing;
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix("message ") {
            assert!(messages.insert(name, Message::default()).is_none(), "{name} twice");
            current = Current::Message(name);
        } else if let Some(name) = line.strip_prefix("enum ") {
            enums.insert(name, Vec::new());
            current = Current::Enum(name);
        } else {
            let mut words = line.split_whitespace();
            let number = words.next().expect("a number");
            let name = words.next().expect("a name");
            match current {
                Current::Nothing => panic!("{line}: outside of a message"),
                Current::Enum(owner) => {
                    let values = enums.get_mut(owner).expect("just inserted");
                    values.push((number.parse().expect("a number"), name));
                }
                Current::Message(owner) => {
                    let message = messages.get_mut(owner).expect("just inserted");
                    let field = parse_field(number, name, words, &mut message.oneofs);
                    message.fields.push(field);
                }
            }
        }
    }
}

fn parse_field<'a>(
    number: &str,
    name: &'a str,
    mut words: impl Iterator<Item = &'a str>,
    oneofs: &mut Vec<&'a str>,
) -> Field<'a> {
    let mut kind = words.next().expect("a type");
    let mut map_key = None;
    if let Some(inner) = kind.strip_prefix("map<").and_then(|inner| inner.strip_suffix('>')) {
        let (key, value) = inner.split_once(',').expect("key and value");
        map_key = Some(key);
        kind = value;
    }
    let number = number.parse().expect("a field number below 65536");
    let mut field = Field {
        number,
        name,
        kind,
        map_key,
        repeated: false,
        optional: false,
        deprecated: false,
        required: false,
        oneof: 0,
    };
    while let Some(word) = words.next() {
        match word {
            "repeated" => field.repeated = true,
            "optional" => field.optional = true,
            "deprecated" => field.deprecated = true,
            "required" => field.required = true,
            "oneof" => {
                let oneof = words.next().expect("a oneof's name");
                let position = oneofs.iter().position(|known| *known == oneof).unwrap_or_else(|| {
                    oneofs.push(oneof);
                    oneofs.len() - 1
                });
                field.oneof = u8::try_from(position + 1).expect("few oneofs");
            }
            other => panic!("{name}: unknown word {other}"),
        }
    }
    field
}

#[derive(Default)]
struct Blob {
    names: String,
    known: BTreeMap<String, u32>,
}

impl Blob {
    fn build(messages: &BTreeMap<&str, Message<'_>>, enums: &BTreeMap<&str, Vec<(i32, &str)>>) -> (Vec<u8>, String) {
        let mut blob = Self::default();
        let message_index: BTreeMap<&str, u16> = messages.keys().copied().zip(0..).collect();
        let enum_index: BTreeMap<&str, u16> = enums.keys().copied().zip(0..).collect();
        let (mut message_records, mut field_records) = (Vec::new(), Vec::new());
        let (mut enum_records, mut value_records) = (Vec::new(), Vec::new());
        let mut field_count = 0u32;
        for (name, message) in messages {
            blob.push_name(&mut message_records, name);
            message_records.extend(u16::try_from(message.fields.len()).expect("few fields").to_le_bytes());
            message_records.extend(field_count.to_le_bytes());
            field_count += message.fields.len() as u32;
            let mut fields: Vec<_> = message.fields.iter().collect();
            fields.sort_by_key(|field| field.name);
            for field in fields {
                blob.push_field(&mut field_records, field, &message_index, &enum_index);
            }
        }
        let mut value_count = 0u32;
        for (name, values) in enums {
            blob.push_name(&mut enum_records, name);
            enum_records.extend(u16::try_from(values.len()).expect("few values").to_le_bytes());
            enum_records.extend(value_count.to_le_bytes());
            value_count += values.len() as u32;
            for (number, value) in values {
                blob.push_name(&mut value_records, value);
                value_records.extend([0, 0]);
                value_records.extend(number.to_le_bytes());
            }
        }
        let mut out = Vec::new();
        for count in [messages.len(), field_count as usize, enums.len(), value_count as usize] {
            out.extend((count as u32).to_le_bytes());
        }
        for section in [message_records, field_records, enum_records, value_records] {
            out.extend(section);
        }
        (out, blob.names)
    }

    fn push_name(&mut self, records: &mut Vec<u8>, name: &str) {
        let offset = match self.known.get(name) {
            Some(offset) => *offset,
            None => {
                let offset = self.names.len() as u32;
                self.names.push_str(name);
                self.known.insert(name.to_owned(), offset);
                offset
            }
        };
        records.extend(offset.to_le_bytes());
        records.extend(u16::try_from(name.len()).expect("a short name").to_le_bytes());
    }

    fn push_field(
        &mut self,
        records: &mut Vec<u8>,
        field: &Field<'_>,
        messages: &BTreeMap<&str, u16>,
        enums: &BTreeMap<&str, u16>,
    ) {
        let (kind, type_index) = match kind_code(field.kind) {
            Some(code) => (code, 0),
            None => match (messages.get(field.kind), enums.get(field.kind)) {
                (Some(index), _) => (MESSAGE, *index),
                (None, Some(index)) => (ENUM, *index),
                (None, None) => panic!("{}: unknown type {}", field.name, field.kind),
            },
        };
        let key = field.map_key.map_or(0, |key| kind_code(key).expect("a scalar key"));
        let flags = u8::from(field.repeated)
            | u8::from(field.optional) << 1
            | u8::from(field.deprecated) << 2
            | u8::from(field.required) << 3;
        self.push_name(records, field.name);
        records.extend(field.number.to_le_bytes());
        records.extend(type_index.to_le_bytes());
        records.extend([kind, key, flags, field.oneof]);
    }
}

/// Codes follow FieldDescriptorProto.Type.
fn kind_code(kind: &str) -> Option<u8> {
    Some(match kind {
        "double" => 1,
        "float" => 2,
        "int64" => 3,
        "uint64" => 4,
        "int32" => 5,
        "fixed64" => 6,
        "fixed32" => 7,
        "bool" => 8,
        "string" => 9,
        "bytes" => 12,
        "uint32" => 13,
        "sfixed32" => 15,
        "sfixed64" => 16,
        "sint32" => 17,
        "sint64" => 18,
        _ => return None,
    })
}

const MESSAGE: u8 = 11;
const ENUM: u8 = 14;
