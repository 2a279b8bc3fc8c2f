//! Which field of Envoy's API this version honours, which has no effect by design, and which it refuses.
//!
//! `ledger/fields.txt` says it for each field of each message that is accepted; a message that is not listed is refused as a whole.
//! [`refusals`] walks a configuration's wire bytes, whatever format it came in, and finds everything that asks for what is not there.

use std::sync::LazyLock;

use torus_xds::path::Path;
use torus_xds::schema::{EnumType, Field, Kind, MessageType};
use torus_xds::wire::{self, Value};

mod entries;
mod page;
#[cfg(test)]
mod tests;

use entries::{Entries, Entry, Fields, MessageEntry, Verdict};
pub use page::compatibility_page;

/// A field, value or message in a configuration that asks for something that this version does not do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The field: `static_resources.clusters[3].transport_socket`.
    pub path: String,
    /// What is asked for, for instance `TLS`.
    pub feature: String,
    /// The feature with what asks for it, as a sentence.
    pub reason: String,
}

/// Everything in `bytes`, a `message`, that asks for what is not there, in wire order.
pub fn refusals(message: MessageType, bytes: &[u8]) -> Vec<Refusal> {
    let mut walker = Walker { entries: &ENTRIES, path: Path::default(), found: Vec::new(), depth: 0 };
    walker.message(message, bytes, false);
    walker.found
}

static ENTRIES: LazyLock<Entries> = LazyLock::new(|| Entries::parse(include_str!("ledger/fields.txt")));

struct Walker<'a> {
    entries: &'static Entries,
    path: Path<'a>,
    found: Vec<Refusal>,
    depth: usize,
}

impl<'a> Walker<'a> {
    /// Looks through a message. An optional one that is not listed is left to its reader, which goes without it.
    fn message(&mut self, message: MessageType, bytes: &'a [u8], optional: bool) {
        // Deeper bytes are no configuration; prost refuses them.
        if self.depth >= DEPTH_MAX {
            return;
        }
        self.depth += 1;
        match (message.full_name().strip_prefix("google.protobuf."), self.entries.message(message)) {
            (Some("Any"), _) => self.any(bytes, optional),
            (Some(_), _) => {}
            (None, MessageEntry::Fields(fields)) => self.fields(message, fields, bytes, optional),
            (None, MessageEntry::Whole(Verdict::Refused(feature))) => self.refuse_message(message, feature, optional),
            (None, MessageEntry::Whole(_)) => {}
            (None, MessageEntry::Unlisted) => {
                let feature = self.entries.family(message.full_name());
                self.refuse_message(message, &feature, optional);
            }
        }
        self.depth -= 1;
    }

    fn fields(&mut self, message: MessageType, entries: &'static Fields, bytes: &'a [u8], inherited: bool) {
        // Of a list of policies the first that is known counts: LoadBalancingPolicy.policies.
        let optional = message.full_name() == "envoy.config.cluster.v3.LoadBalancingPolicy.Policy"
            || entries.is_optional.is_some_and(|field| is_set(bytes, field));
        let mut counts: Vec<(u32, usize)> = Vec::new();
        for (number, value) in wire::fields(bytes).flatten() {
            // Fields that the schema lacks were reported when the document was read; readers of wire bytes skip them.
            let Some(entry) = entries.get(number) else { continue };
            let field = entry.field;
            self.path.push_field(field.name());
            if field.is_repeated() {
                let index = match counts.iter_mut().find(|(known, _)| *known == number) {
                    Some((_, count)) => {
                        *count += 1;
                        *count
                    }
                    None => {
                        counts.push((number, 0));
                        0
                    }
                };
                self.path.push_index(index);
            }
            match &entry.verdict {
                Verdict::Refused(feature) => self.refuse(feature, None),
                Verdict::NoEffect(_) => {}
                Verdict::Honoured => self.honoured(field, entry, value, optional || inherited),
            }
            if field.is_repeated() {
                self.path.pop();
            }
            self.path.pop();
        }
    }

    fn honoured(&mut self, field: Field, entry: &'static Entry, value: Value<'a>, optional: bool) {
        if !entry.values.is_empty() {
            let shown = shown(field, value);
            let refused = shown.as_ref().and_then(|shown| entry.values.iter().find(|(name, _)| name == shown));
            if let Some((name, feature)) = refused {
                self.refuse(feature, Some(name));
            }
        }
        let (Kind::Message(message), Value::Length(bytes)) = (field.kind(), value) else { return };
        if field.map_key().is_none() {
            return self.message(message, bytes, optional);
        }
        // A map is a list of entries with key = 1 and value = 2.
        let key = wire::length_values(bytes, 1).last().unwrap_or_default();
        self.path.push_key(std::str::from_utf8(key).unwrap_or("?"));
        for value in wire::length_values(bytes, 2) {
            self.message(message, value, optional);
        }
        self.path.pop();
    }

    fn any(&mut self, bytes: &'a [u8], optional: bool) {
        let type_url = wire::length_values(bytes, 1).last().unwrap_or_default();
        let type_url = std::str::from_utf8(type_url).unwrap_or_default();
        let content = wire::length_values(bytes, 2).last().unwrap_or_default();
        match MessageType::from_type_url(type_url) {
            Some(message) if message.full_name().ends_with(".TypedStruct") => self.foreign(content, optional),
            Some(message) => self.message(message, content, optional),
            None if type_url.is_empty() || optional => {}
            None => self.foreign_type(type_url),
        }
    }

    /// A TypedStruct that is still one holds a message that Envoy's own API does not have, or came as wire bytes.
    fn foreign(&mut self, content: &'a [u8], optional: bool) {
        let type_url = wire::length_values(content, 1).last().unwrap_or_default();
        if !optional {
            self.foreign_type(std::str::from_utf8(type_url).unwrap_or_default());
        }
    }

    fn foreign_type(&mut self, type_url: &'a str) {
        let name = type_url.rsplit('/').next().unwrap_or(type_url);
        match self.entries.foreign(name) {
            Some(Verdict::Refused(feature)) => self.refuse(feature, Some(name)),
            Some(_) => {}
            None => {
                let feature = self.entries.family(name);
                self.refuse(&feature, Some(name));
            }
        }
    }

    fn refuse_message(&mut self, message: MessageType, feature: &str, optional: bool) {
        if !optional {
            self.refuse(feature, Some(message.full_name()));
        }
    }

    fn refuse(&mut self, feature: &str, what: Option<&str>) {
        let (name, why) = feature.split_once("; ").unwrap_or((feature, "not there yet in this version"));
        let reason = match what {
            Some(what) if !name.contains(what) => format!("{name} ({what}): {why}"),
            _ => format!("{name}: {why}"),
        };
        self.found.push(Refusal { path: self.path.to_string(), feature: name.to_owned(), reason });
    }
}

/// How a document writes a bool, an enum or a number, for the values that the ledger refuses one by one.
fn shown(field: Field, value: Value<'_>) -> Option<String> {
    let wrapped = |bytes| wire::fields(bytes).flatten().last().map(|(_, value)| value);
    let number = match (field.kind(), value) {
        (Kind::Message(message), Value::Length(bytes)) if message.full_name().starts_with("google.protobuf.") => {
            if message.full_name() == "google.protobuf.BoolValue" {
                return Some(matches!(wrapped(bytes), Some(Value::Varint(1..))).to_string());
            }
            match wrapped(bytes) {
                Some(Value::Varint(number)) => number,
                _ => 0,
            }
        }
        (Kind::String, Value::Length(bytes)) => return Some(String::from_utf8_lossy(bytes).into_owned()),
        (_, Value::Varint(number)) => number,
        _ => return None,
    };
    Some(match field.kind() {
        Kind::Bool => (number != 0).to_string(),
        Kind::Enum(enumeration) => enum_name(enumeration, number),
        _ => number.to_string(),
    })
}

fn enum_name(enumeration: EnumType, number: u64) -> String {
    enumeration.name(number as i32).map_or_else(|| number.to_string(), str::to_owned)
}

fn is_set(bytes: &[u8], field: Field) -> bool {
    let wanted = field.number();
    wire::fields(bytes).flatten().any(|(number, value)| number == wanted && matches!(value, Value::Varint(1..)))
}

/// As protobuf readers have it.
const DEPTH_MAX: usize = 100;
