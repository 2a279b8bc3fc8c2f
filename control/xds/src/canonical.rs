//! Equal messages as equal bytes: the entries of maps in the order of their bytes.
//!
//! Encoders write a map in whatever order it iterates. Since only entries change places, no length changes, and the work is done in place.

use std::ops::Range;
use std::sync::LazyLock;

use crate::schema::{Field, MessageType};
use crate::wire;

/// Sorts the maps in `bytes`, an encoded `message`, at every depth and inside of Anys. What does not fit the schema stays as it is.
pub fn sort_maps(message: MessageType, bytes: &mut [u8]) {
    sort(message, bytes, 0);
}

fn sort(message: MessageType, bytes: &mut [u8], depth: usize) {
    if depth >= DEPTH_MAX || !may_hold_map(message) {
        return;
    }
    if message.full_name() == ANY {
        let type_url = wire::length_values(bytes, 1).last().and_then(|url| std::str::from_utf8(url).ok());
        let Some(inner) = type_url.and_then(MessageType::from_type_url) else { return };
        let mut position = 0;
        while let Some(piece) = Piece::read(bytes, position) {
            if piece.number == 2
                && let Some(content) = bytes.get_mut(piece.content)
            {
                sort(inner, content, depth + 1);
            }
            position = piece.end;
        }
        return;
    }
    let mut position = 0;
    // Entries of one map that follow each other.
    let mut run: Option<(u32, Vec<Range<usize>>)> = None;
    while let Some(piece) = Piece::read(bytes, position) {
        if run.as_ref().is_some_and(|(number, _)| *number != piece.number)
            && let Some((_, entries)) = run.take()
        {
            order(bytes, &entries);
        }
        let field = message.field_numbered(piece.number).filter(|_| piece.is_length);
        if let Some(field) = field {
            if field.map_key().is_some() {
                sort_entry(field, bytes.get_mut(piece.content.clone()).unwrap_or_default(), depth);
                run.get_or_insert_with(|| (piece.number, Vec::new())).1.push(position..piece.end);
            } else if let (Some(inner), Some(content)) = (field.message(), bytes.get_mut(piece.content)) {
                sort(inner, content, depth + 1);
            }
        }
        position = piece.end;
    }
    if let Some((_, entries)) = run {
        order(bytes, &entries);
    }
}

/// The value of a map's entry is its field 2.
fn sort_entry(field: Field, entry: &mut [u8], depth: usize) {
    let Some(inner) = field.message() else { return };
    let mut position = 0;
    while let Some(piece) = Piece::read(entry, position) {
        if let Some(content) = entry.get_mut(piece.content).filter(|_| piece.number == 2 && piece.is_length) {
            sort(inner, content, depth + 1);
        }
        position = piece.end;
    }
}

/// Writes neighbouring pieces back in order.
fn order(bytes: &mut [u8], entries: &[Range<usize>]) {
    let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return };
    let mut sorted: Vec<&[u8]> = entries.iter().filter_map(|entry| bytes.get(entry.clone())).collect();
    if sorted.is_sorted() {
        return;
    }
    sorted.sort_unstable();
    let sorted = sorted.concat();
    if let Some(place) = bytes.get_mut(first.start..last.end).filter(|place| place.len() == sorted.len()) {
        place.copy_from_slice(&sorted);
    }
}

/// One field and where it stands.
struct Piece {
    number: u32,
    is_length: bool,
    content: Range<usize>,
    end: usize,
}

impl Piece {
    /// The field that begins at `position`; nothing at the end, or where the bytes are no message.
    fn read(bytes: &[u8], position: usize) -> Option<Self> {
        let rest = bytes.get(position..).filter(|rest| !rest.is_empty())?;
        let mut fields = wire::fields(rest);
        let (number, value) = fields.next()?.ok()?;
        let end = bytes.len() - fields.rest().len();
        let (is_length, bytes) = match value {
            wire::Value::Length(content) => (true, content.len()),
            _ => (false, 0),
        };
        Some(Self { number, is_length, content: end - bytes..end, end })
    }
}

fn may_hold_map(message: MessageType) -> bool {
    HOLDERS.get(message.index()).copied().unwrap_or(false)
}

/// For each message, whether a map or an Any is somewhere in it: most of what is sent holds none and is not looked at.
static HOLDERS: LazyLock<Vec<bool>> = LazyLock::new(|| {
    let mut holders: Vec<bool> = MessageType::all()
        .map(|message| message.full_name() == ANY || message.fields().any(|field| field.map_key().is_some()))
        .collect();
    loop {
        let mut grown = false;
        for message in MessageType::all() {
            let inside = |holders: &[bool], field: Field| {
                field.message().is_some_and(|inner| holders.get(inner.index()).copied().unwrap_or(false))
            };
            let holds = message.fields().any(|field| inside(&holders, field));
            if let Some(known) = holders.get_mut(message.index()).filter(|known| holds && !**known) {
                *known = true;
                grown = true;
            }
        }
        if !grown {
            return holders;
        }
    }
});

const ANY: &str = "google.protobuf.Any";
/// As protobuf readers have it.
const DEPTH_MAX: usize = 100;

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use envoy_types::pb::envoy::config::cluster::v3::Cluster;
    use envoy_types::pb::envoy::config::core::v3::{Metadata, TransportSocket, transport_socket::ConfigType};
    use envoy_types::pb::google::protobuf::{Any, Struct, Value, value::Kind};
    use prost::Message;

    use super::sort_maps;
    use crate::MessageType;

    fn fields(names: &[&str]) -> Struct {
        let value = |name: &str| Value { kind: Some(Kind::StringValue(name.repeat(name.len()))) };
        Struct { fields: names.iter().map(|name| ((*name).to_owned(), value(name))).collect() }
    }

    /// A cluster with maps in maps, and one within an Any. Every map of every call iterates as it likes.
    fn cluster() -> Cluster {
        let names: Vec<String> = (0..20).map(|index| format!("name{index}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let filters = names.iter().map(|name| ((*name).to_owned(), fields(&names))).collect::<HashMap<_, _>>();
        let metadata = Metadata { filter_metadata: filters, ..Metadata::default() };
        let any = Any {
            type_url: "type.googleapis.com/envoy.config.core.v3.Metadata".to_owned(),
            value: metadata.encode_to_vec(),
        };
        Cluster {
            name: "a".to_owned(),
            metadata: Some(metadata),
            transport_socket: Some(TransportSocket {
                name: "b".to_owned(),
                config_type: Some(ConfigType::TypedConfig(any)),
            }),
            ..Cluster::default()
        }
    }

    #[test]
    fn one_meaning_has_one_encoding() {
        let message = MessageType::named("envoy.config.cluster.v3.Cluster").unwrap();
        let sorted = || {
            let raw = cluster().encode_to_vec();
            let mut bytes = raw.clone();
            sort_maps(message, &mut bytes);
            (raw, bytes)
        };
        let (raw, first) = sorted();
        assert_eq!(Cluster::decode(&first[..]).unwrap().metadata, cluster().metadata, "nothing is lost");
        let mut differing = 0;
        for _ in 0..10 {
            let (other_raw, other) = sorted();
            differing += usize::from(raw != other_raw);
            assert_eq!(first, other);
        }
        assert!(differing > 0, "maps iterate in one order: the test shows nothing");
    }

    #[test]
    fn what_is_no_message_stays() {
        let message = MessageType::named("envoy.config.cluster.v3.Cluster").unwrap();
        for text in [&b"\x0a\x05a"[..], b"\xff\xff\xff", b"", b"\xca\x01\x04\x0a\x7f\x0a\x7f"] {
            let mut bytes = text.to_vec();
            sort_maps(message, &mut bytes);
            assert_eq!(bytes, text);
        }
    }
}
