//! Protobuf's wire format, read and written field by field without a type. Source: protobuf.dev, "Encoding".

use std::fmt;

/// How a field's value is laid out on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireType {
    /// Base-128 varint (0).
    Varint,
    /// Eight bytes, little endian (1).
    Fixed64,
    /// Length, then bytes (2).
    Length,
    /// Four bytes, little endian (5).
    Fixed32,
}

/// One field as found on the wire.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// int32, int64, uint32, uint64, sint32, sint64, bool, enum.
    Varint(u64),
    /// fixed64, sfixed64, double.
    Fixed64(u64),
    /// string, bytes, message, packed repeated.
    Length(&'a [u8]),
    /// fixed32, sfixed32, float.
    Fixed32(u32),
}

/// Bytes that are no protobuf message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The message ends inside a field.
    #[error("the message ends inside a field")]
    Truncated,
    /// A varint has more than ten bytes.
    #[error("a varint is longer than ten bytes")]
    VarintTooLong,
    /// Wire types 3 and 4 (groups), 6 and 7 do not occur in proto3.
    #[error("wire type {0} is not part of proto3")]
    WireType(u8),
    /// Field numbers are 1 to 2^29 - 1.
    #[error("field number {0} is out of range")]
    FieldNumber(u64),
}

/// Reads a message field by field; stops after the first error.
#[derive(Clone)]
pub struct Fields<'a> {
    rest: &'a [u8],
}

/// The fields of `message` in wire order.
pub fn fields(message: &[u8]) -> Fields<'_> {
    Fields { rest: message }
}

impl<'a> Fields<'a> {
    /// What was not read yet.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    fn field(&mut self) -> Result<(u32, Value<'a>), WireError> {
        let tag = read_varint(&mut self.rest)?;
        let number = tag >> 3;
        if number == 0 || number > FIELD_NUMBER_MAX {
            return Err(WireError::FieldNumber(number));
        }
        let value = match tag & 7 {
            0 => Value::Varint(read_varint(&mut self.rest)?),
            1 => Value::Fixed64(u64::from_le_bytes(self.array()?)),
            2 => {
                let length = read_varint(&mut self.rest)?;
                let length = usize::try_from(length).map_err(|_| WireError::Truncated)?;
                let (bytes, rest) = self.rest.split_at_checked(length).ok_or(WireError::Truncated)?;
                self.rest = rest;
                Value::Length(bytes)
            }
            5 => Value::Fixed32(u32::from_le_bytes(self.array()?)),
            other => return Err(WireError::WireType(other as u8)),
        };
        Ok((number as u32, value))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (bytes, rest) = self.rest.split_first_chunk::<N>().ok_or(WireError::Truncated)?;
        self.rest = rest;
        Ok(*bytes)
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Value<'a>), WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}

/// The length-delimited values of field `number` in `message`, in wire order; malformed rests are left out.
pub fn length_values(message: &[u8], number: u32) -> impl Iterator<Item = &[u8]> {
    fields(message).filter_map(move |field| match field {
        Ok((found, Value::Length(bytes))) if found == number => Some(bytes),
        _ => None,
    })
}

/// `message` without the fields called `numbers`, for instance a Bootstrap without its `static_resources`.
pub fn without(message: &[u8], numbers: &[u32]) -> Vec<u8> {
    let mut kept = Vec::new();
    for (number, value) in fields(message).flatten() {
        if numbers.contains(&number) {
            continue;
        }
        write_value(&mut kept, number, value);
    }
    kept
}

/// Appends a field as it was read.
pub fn write_value(out: &mut Vec<u8>, number: u32, value: Value<'_>) {
    match value {
        Value::Varint(value) => {
            write_tag(out, number, WireType::Varint);
            write_varint(out, value);
        }
        Value::Fixed64(value) => {
            write_tag(out, number, WireType::Fixed64);
            out.extend_from_slice(&value.to_le_bytes());
        }
        Value::Length(bytes) => write_length(out, number, bytes),
        Value::Fixed32(value) => {
            write_tag(out, number, WireType::Fixed32);
            out.extend_from_slice(&value.to_le_bytes());
        }
    }
}

/// Reads the varints of a packed repeated field.
pub fn packed_varints(mut bytes: &[u8]) -> impl Iterator<Item = Result<u64, WireError>> + '_ {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let value = read_varint(&mut bytes);
        if value.is_err() {
            bytes = &[];
        }
        Some(value)
    })
}

/// Takes one varint off the front of `bytes`.
pub fn read_varint(bytes: &mut &[u8]) -> Result<u64, WireError> {
    let mut value = 0u64;
    for (count, byte) in bytes.iter().enumerate().take(VARINT_BYTES_MAX) {
        value |= u64::from(byte & 0x7f) << (7 * count);
        if byte & 0x80 == 0 {
            *bytes = bytes.get(count + 1..).unwrap_or_default();
            return Ok(value);
        }
    }
    Err(if bytes.len() >= VARINT_BYTES_MAX { WireError::VarintTooLong } else { WireError::Truncated })
}

/// Appends `value` as a varint.
pub fn write_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a field's tag.
pub fn write_tag(out: &mut Vec<u8>, number: u32, wire_type: WireType) {
    let code = match wire_type {
        WireType::Varint => 0,
        WireType::Fixed64 => 1,
        WireType::Length => 2,
        WireType::Fixed32 => 5,
    };
    write_varint(out, u64::from(number) << 3 | code);
}

/// Appends a length-delimited field.
pub fn write_length(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    write_tag(out, number, WireType::Length);
    write_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Appends a length-delimited field whose content `write` appends; the length is put in front afterwards.
pub fn write_nested<R>(out: &mut Vec<u8>, number: u32, write: impl FnOnce(&mut Vec<u8>) -> R) -> R {
    write_tag(out, number, WireType::Length);
    // One byte holds the length of most messages; the content moves up where it does not.
    let length_at = out.len();
    out.push(0);
    let result = write(out);
    let length = out.len().saturating_sub(length_at + 1);
    let mut prefix = [0u8; VARINT_BYTES_MAX];
    let mut prefix_length = 0;
    let mut rest = length as u64;
    for slot in &mut prefix {
        prefix_length += 1;
        *slot = rest as u8 & 0x7f;
        rest >>= 7;
        if rest == 0 {
            break;
        }
        *slot |= 0x80;
    }
    out.splice(length_at..length_at + 1, prefix.into_iter().take(prefix_length));
    result
}

impl fmt::Display for WireType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Varint => "varint",
            Self::Fixed64 => "fixed64",
            Self::Length => "length-delimited",
            Self::Fixed32 => "fixed32",
        })
    }
}

/// Largest field number.
const FIELD_NUMBER_MAX: u64 = (1 << 29) - 1;
/// A 64-bit number takes at most ten groups of seven bits.
const VARINT_BYTES_MAX: usize = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_round_trip() {
        for value in [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX] {
            let mut bytes = Vec::new();
            write_varint(&mut bytes, value);
            assert_eq!(read_varint(&mut bytes.as_slice()), Ok(value));
        }
    }

    #[test]
    fn malformed_bytes_are_named() {
        let check = |bytes: &[u8], error: WireError| assert_eq!(fields(bytes).last(), Some(Err(error)), "{bytes:x?}");
        check(&[0x08], WireError::Truncated);
        check(&[0x0a, 0x05, 0x01], WireError::Truncated);
        check(&[0x0b], WireError::WireType(3));
        check(&[0x00], WireError::FieldNumber(0));
        check(&[0x08, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1], WireError::VarintTooLong);
    }

    #[test]
    fn nested_lengths_grow() {
        for length in [0usize, 1, 127, 128, 20_000, 3_000_000] {
            let mut out = vec![9];
            write_nested(&mut out, 3, |out| out.resize(out.len() + length, 7));
            let mut expected = vec![9];
            write_length(&mut expected, 3, &vec![7; length]);
            assert!(out == expected, "{length}");
        }
    }
}
