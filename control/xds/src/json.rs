//! Protobuf wire bytes to JSON, by the schema: ProtoJSON with the field names of the .proto files, as Envoy's admin answers.
//!
//! Fields come in the order of their numbers. What the schema does not know is kept visible: an unknown enum number as a number, the
//! content of an unknown `Any` as base64 under `value`; unknown fields have no name and are left out.

use std::collections::BTreeMap;

use serde_json::{Map, Number, Value as Json};

use crate::scalar;
use crate::schema::{Field, Kind, MessageType};
use crate::transcode::has_own_form;
use crate::wire::{self, Value, WireError};

/// `bytes` as JSON.
///
/// Errors: the first malformed field, at any depth.
pub fn to_json(message: MessageType, bytes: &[u8]) -> Result<Json, WireError> {
    nested(message, bytes, 0)
}

/// A message as JSON, if the schema has its type.
pub fn message_to_json<M: prost::Message + prost::Name>(message: &M) -> Option<Json> {
    to_json(MessageType::named(&M::full_name())?, &message.encode_to_vec()).ok()
}

fn nested(message: MessageType, bytes: &[u8], depth: usize) -> Result<Json, WireError> {
    if depth > DEPTH_MAX {
        return Err(WireError::Truncated);
    }
    match message.full_name().strip_prefix("google.protobuf.") {
        Some(name) => well_known(name, message, bytes, depth),
        None => Ok(Json::Object(fields(message, bytes, depth)?)),
    }
}

fn fields(message: MessageType, bytes: &[u8], depth: usize) -> Result<Map<String, Json>, WireError> {
    let mut values: BTreeMap<u32, Vec<Value<'_>>> = BTreeMap::new();
    for field in wire::fields(bytes) {
        let (number, value) = field?;
        values.entry(number).or_default().push(value);
    }
    let mut object = Map::new();
    for (number, values) in values {
        let Some(field) = message.field_numbered(number) else { continue };
        object.insert(field.name().to_owned(), field_value(field, &values, depth)?);
    }
    Ok(object)
}

fn field_value(field: Field, values: &[Value<'_>], depth: usize) -> Result<Json, WireError> {
    if field.map_key().is_some() {
        return map(field, values, depth);
    }
    if field.is_repeated() {
        let mut list = Vec::new();
        for value in values {
            match (value, field.kind()) {
                (Value::Length(bytes), kind) if is_packable(kind) => unpack(kind, bytes, &mut list)?,
                (value, kind) => list.push(single(kind, *value, depth)?),
            }
        }
        return Ok(Json::Array(list));
    }
    // Of a scalar the last value counts; the pieces of a message are merged, which on the wire is to be joined.
    match (field.kind(), values) {
        (Kind::Message(message), [_, _, ..]) => {
            let mut joined = Vec::new();
            for value in values {
                if let Value::Length(bytes) = value {
                    joined.extend_from_slice(bytes);
                }
            }
            nested(message, &joined, depth + 1)
        }
        (kind, [.., last]) => single(kind, *last, depth),
        (_, []) => Ok(Json::Null),
    }
}

fn map(field: Field, values: &[Value<'_>], depth: usize) -> Result<Json, WireError> {
    let mut object = Map::new();
    for value in values {
        let Value::Length(entry) = value else { continue };
        let (mut key, mut content) = (String::new(), None);
        for part in wire::fields(entry) {
            match part? {
                (1, value) => key = key_text(single(field.map_key().unwrap_or(Kind::String), value, depth)?),
                (2, value) => content = Some(single(field.kind(), value, depth)?),
                _ => {}
            }
        }
        let content = match content {
            Some(content) => content,
            None => default(field.kind(), depth)?,
        };
        object.insert(key, content);
    }
    Ok(Json::Object(object))
}

fn key_text(key: Json) -> String {
    match key {
        Json::String(text) => text,
        other => other.to_string(),
    }
}

fn default(kind: Kind, depth: usize) -> Result<Json, WireError> {
    match kind {
        Kind::Message(message) => nested(message, &[], depth + 1),
        Kind::String | Kind::Bytes => Ok(Json::String(String::new())),
        kind => single(kind, Value::Varint(0), depth),
    }
}

fn single(kind: Kind, value: Value<'_>, depth: usize) -> Result<Json, WireError> {
    Ok(match (kind, value) {
        (Kind::Message(message), Value::Length(bytes)) => nested(message, bytes, depth + 1)?,
        (Kind::String, Value::Length(bytes)) => Json::String(String::from_utf8_lossy(bytes).into_owned()),
        (Kind::Bytes, Value::Length(bytes)) => {
            let mut text = String::new();
            scalar::write_base64(&mut text, bytes);
            Json::String(text)
        }
        (_, Value::Varint(number)) => varint(kind, number),
        (Kind::Double, Value::Fixed64(bits)) => double(f64::from_bits(bits)),
        (Kind::Float, Value::Fixed32(bits)) => float(f32::from_bits(bits)),
        (Kind::Sfixed64, Value::Fixed64(bits)) => Json::String((bits as i64).to_string()),
        (_, Value::Fixed64(bits)) => Json::String(bits.to_string()),
        (Kind::Sfixed32, Value::Fixed32(bits)) => Json::from(bits as i32),
        (_, Value::Fixed32(bits)) => Json::from(bits),
        (_, Value::Length(_)) => return Err(WireError::Truncated),
    })
}

fn varint(kind: Kind, number: u64) -> Json {
    match kind {
        Kind::Bool => Json::Bool(number != 0),
        Kind::Int32 => Json::from(number as i32),
        Kind::Uint32 => Json::from(number as u32),
        Kind::Sint32 => Json::from(zigzag(number) as i32),
        Kind::Sint64 => Json::String(zigzag(number).to_string()),
        Kind::Int64 => Json::String((number as i64).to_string()),
        Kind::Enum(enumeration) => match enumeration.name(number as i32) {
            Some("NULL_VALUE") => Json::Null,
            Some(name) => Json::String(name.to_owned()),
            None => Json::from(number as i32),
        },
        _ => Json::String(number.to_string()),
    }
}

fn zigzag(number: u64) -> i64 {
    (number >> 1) as i64 ^ -((number & 1) as i64)
}

fn double(value: f64) -> Json {
    if value.fract() == 0.0 && value.abs() < WHOLE_DOUBLE_MAX {
        return Json::from(value as i64);
    }
    Number::from_f64(value).map_or_else(|| Json::String(unreal(value).to_owned()), Json::Number)
}

/// The shortest decimal that reads back as the same float, not as the same double.
fn float(value: f32) -> Json {
    match value.to_string().parse() {
        Ok(value) => double(value),
        Err(_) => double(value.into()),
    }
}

fn unreal(value: f64) -> &'static str {
    if value.is_nan() {
        "NaN"
    } else if value > 0.0 {
        "Infinity"
    } else {
        "-Infinity"
    }
}

fn is_packable(kind: Kind) -> bool {
    !matches!(kind, Kind::String | Kind::Bytes | Kind::Message(_))
}

fn unpack(kind: Kind, mut bytes: &[u8], list: &mut Vec<Json>) -> Result<(), WireError> {
    while !bytes.is_empty() {
        let value = match kind {
            Kind::Double | Kind::Fixed64 | Kind::Sfixed64 => {
                let (value, rest) = bytes.split_first_chunk::<8>().ok_or(WireError::Truncated)?;
                bytes = rest;
                Value::Fixed64(u64::from_le_bytes(*value))
            }
            Kind::Float | Kind::Fixed32 | Kind::Sfixed32 => {
                let (value, rest) = bytes.split_first_chunk::<4>().ok_or(WireError::Truncated)?;
                bytes = rest;
                Value::Fixed32(u32::from_le_bytes(*value))
            }
            _ => Value::Varint(wire::read_varint(&mut bytes)?),
        };
        list.push(single(kind, value, 0)?);
    }
    Ok(())
}

fn well_known(name: &str, message: MessageType, bytes: &[u8], depth: usize) -> Result<Json, WireError> {
    match name {
        "Any" => any(bytes, depth),
        "Duration" => Ok(Json::String(duration(bytes)?)),
        "Timestamp" => Ok(Json::String(timestamp(bytes)?)),
        "FieldMask" => {
            let paths: Vec<String> =
                wire::length_values(bytes, 1).map(|path| String::from_utf8_lossy(path).into_owned()).collect();
            Ok(Json::String(paths.join(",")))
        }
        "Struct" => Ok(fields(message, bytes, depth)?.remove("fields").unwrap_or_else(|| Json::Object(Map::new()))),
        "ListValue" => Ok(fields(message, bytes, depth)?.remove("values").unwrap_or_else(|| Json::Array(Vec::new()))),
        "Value" => Ok(fields(message, bytes, depth)?.into_iter().next_back().map_or(Json::Null, |(_, value)| value)),
        _ if has_own_form(message) => {
            let field = message.field_numbered(1).map(Field::kind);
            match (wire::fields(bytes).last(), field) {
                (Some(value), Some(kind)) => single(kind, value?.1, depth),
                (None, Some(kind)) => default(kind, depth),
                (_, None) => Ok(Json::Null),
            }
        }
        _ => Ok(Json::Object(fields(message, bytes, depth)?)),
    }
}

fn any(bytes: &[u8], depth: usize) -> Result<Json, WireError> {
    let (mut type_url, mut content) = (String::new(), &[][..]);
    for field in wire::fields(bytes) {
        match field? {
            (1, Value::Length(text)) => type_url = String::from_utf8_lossy(text).into_owned(),
            (2, Value::Length(message)) => content = message,
            _ => {}
        }
    }
    let mut object = Map::new();
    if type_url.is_empty() {
        return Ok(Json::Object(object));
    }
    let message = MessageType::from_type_url(&type_url);
    object.insert("@type".to_owned(), Json::String(type_url));
    match message {
        Some(message) if !has_own_form(message) => match nested(message, content, depth + 1)? {
            Json::Object(inner) => object.extend(inner),
            other => drop(object.insert("value".to_owned(), other)),
        },
        Some(message) => drop(object.insert("value".to_owned(), nested(message, content, depth + 1)?)),
        None => {
            let mut text = String::new();
            scalar::write_base64(&mut text, content);
            object.insert("value".to_owned(), Json::String(text));
        }
    }
    Ok(Json::Object(object))
}

fn duration(bytes: &[u8]) -> Result<String, WireError> {
    let (seconds, nanos) = seconds(bytes)?;
    let sign = if seconds < 0 || nanos < 0 { "-" } else { "" };
    Ok(format!("{sign}{}{}s", seconds.unsigned_abs(), fraction(nanos.unsigned_abs())))
}

fn timestamp(bytes: &[u8]) -> Result<String, WireError> {
    let (seconds, nanos) = seconds(bytes)?;
    Ok(rfc3339(seconds, nanos.unsigned_abs()))
}

/// A time of the Unix epoch in UTC as RFC 3339 has it.
pub fn rfc3339(seconds: i64, nanos: u32) -> String {
    let (year, month, day) = scalar::date(seconds.div_euclid(86_400));
    let clock = seconds.rem_euclid(86_400);
    let (hour, minute, second) = (clock / 3600, clock / 60 % 60, clock % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{}Z", fraction(nanos))
}

/// Seconds (1) and nanoseconds (2) of a Duration or Timestamp, brought into the range that can be shown.
fn seconds(bytes: &[u8]) -> Result<(i64, i32), WireError> {
    let (mut seconds, mut nanos) = (0, 0);
    for field in wire::fields(bytes) {
        match field? {
            (1, Value::Varint(value)) => seconds = (value as i64).clamp(-SECONDS_MAX, SECONDS_MAX),
            (2, Value::Varint(value)) => nanos = (value as i32).clamp(-999_999_999, 999_999_999),
            _ => {}
        }
    }
    Ok((seconds, nanos))
}

/// Nanoseconds with 0, 3, 6 or 9 digits, as ProtoJSON has it.
fn fraction(nanos: u32) -> String {
    match nanos {
        0 => String::new(),
        _ if nanos.is_multiple_of(1_000_000) => format!(".{:03}", nanos / 1_000_000),
        _ if nanos.is_multiple_of(1000) => format!(".{:06}", nanos / 1000),
        _ => format!(".{nanos:09}"),
    }
}

/// As protobuf readers have it.
const DEPTH_MAX: usize = 100;
/// Doubles below it hold every whole number.
const WHOLE_DOUBLE_MAX: f64 = 9_007_199_254_740_992.0;
/// google/protobuf/duration.proto.
const SECONDS_MAX: i64 = 315_576_000_000;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::document::{Document, Format};
    use crate::load::{Source, encode};
    use crate::transcode::UnknownFields;

    /// `text`, read as `message` and shown again.
    fn check(message: &str, text: &str, expected: Json) {
        let message = MessageType::named(message).expect(message);
        let document = Document::parse("x", text.into(), Format::Yaml).expect(text);
        let encoded = encode(vec![Source::Text(document)], message, UnknownFields::Refuse).expect(text);
        assert_eq!(to_json(message, &encoded.bytes), Ok(expected), "{text}");
    }

    #[test]
    fn messages_come_back() {
        check(
            "envoy.config.cluster.v3.Cluster",
            "{lb_policy: MAGLEV, name: a, connect_timeout: 0.25s, maglev_lb_config: {table_size: 7}, metadata: {filter_metadata: {x: {y: [1, z, ~, {a: no}]}}}, \
             common_lb_config: {healthy_panic_threshold: {value: 0.1}}, preconnect_policy: {per_upstream_preconnect_ratio: 1.5}}",
            json!({
                "name": "a", "connect_timeout": "0.250s", "lb_policy": "MAGLEV",
                "metadata": {"filter_metadata": {"x": {"y": [1, "z", null, {"a": false}]}}},
                "common_lb_config": {"healthy_panic_threshold": {"value": 0.1}},
                "preconnect_policy": {"per_upstream_preconnect_ratio": 1.5},
                "maglev_lb_config": {"table_size": "7"},
            }),
        );
        check(
            "google.protobuf.Any",
            "{'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router, dynamic_stats: false}",
            json!({"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router", "dynamic_stats": false}),
        );
        check(
            "google.protobuf.Any",
            "{'@type': type.googleapis.com/google.protobuf.Duration, value: -1.000001s}",
            json!({"@type": "type.googleapis.com/google.protobuf.Duration", "value": "-1.000001s"}),
        );
        check("google.protobuf.Timestamp", "'2026-11-23T18:00:00Z'", json!("2026-11-23T18:00:00Z"));
        check("envoy.config.core.v3.DataSource", "inline_bytes: aGk=", json!({"inline_bytes": "aGk="}));
        check("envoy.type.v3.Int64Range", "{start: -5, end: 5}", json!({"start": "-5", "end": "5"}));
        check(
            "envoy.type.v3.FractionalPercent",
            "{numerator: 5, denominator: MILLION}",
            json!({"numerator": 5, "denominator": "MILLION"}),
        );
    }

    #[test]
    fn packed_and_merged_fields_are_read() {
        let message = MessageType::named("envoy.config.route.v3.RetryPolicy").unwrap();
        // retriable_status_codes = 7, packed; retry_back_off = 8 in two pieces.
        let bytes = [0x3a, 3, 1, 0xf4, 3, 0x42, 2, 0x0a, 0, 0x42, 2, 0x12, 0];
        assert_eq!(
            to_json(message, &bytes),
            Ok(
                json!({"retriable_status_codes": [1, 500], "retry_back_off": {"base_interval": "0s", "max_interval": "0s"}})
            )
        );
        assert_eq!(to_json(message, &[0x3a, 9]), Err(WireError::Truncated));
    }
}
