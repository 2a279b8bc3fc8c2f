//! Walks through the field blocks that a peer sends: what makes no HPACK, and pseudo-fields among trailers.
//!
//! Why: the codec ends a connection with PROTOCOL_ERROR where RFC 9113 §4.3 has an error code of its own, and drops pseudo-fields of
//! trailers where §8.1 calls the message malformed. Nothing is decoded here: strings are skipped, and the dynamic table is but
//! a count of what was put into it, so that names in it are taken on trust.

use super::Offence;

/// Where in a field block a peer is. Source: RFC 7541 §5, §6.
pub(super) struct FieldBlock {
    step: Step,
    integer: u32,
    /// Whether the name is in Huffman's code.
    is_coded: bool,
    /// By how much the next piece of an integer is shifted; `None` where none goes on.
    shift: Option<u32>,
    /// Bytes of a frame that precede its fields: length of the padding, priority.
    lead_bytes: u32,
    has_padding: bool,
    /// Bytes of the frame that are still to come, padding included, and those of them that are padding.
    left_bytes: u32,
    padding_bytes: u32,
    ends: bool,
    is_trailer: bool,
    /// Fields that were put into the dynamic table.
    inserted: u32,
}

/// What the next byte is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The first of a field.
    Field,
    /// More of an index that stands for a whole field.
    Indexed,
    /// More of the index of a name, whose value follows.
    NameIndex,
    /// More of a table size.
    TableSize,
    NameLength,
    /// The first of a name, which tells a pseudo-field.
    NameStart,
    Name,
    ValueLength,
    Value,
}

impl FieldBlock {
    pub(super) fn new() -> Self {
        Self {
            step: Step::Field,
            integer: 0,
            is_coded: false,
            shift: None,
            lead_bytes: 0,
            has_padding: false,
            left_bytes: 0,
            padding_bytes: 0,
            ends: false,
            is_trailer: false,
            inserted: 0,
        }
    }

    /// A frame begins whose payload of `length` bytes is all or a part of a block; `is_trailer` says so of a new block.
    pub(super) fn begin(&mut self, flags: u8, length: u32, is_trailer: Option<bool>) -> Result<(), Offence> {
        self.left_bytes = length;
        self.padding_bytes = 0;
        self.ends = flags & END_HEADERS != 0;
        (self.has_padding, self.lead_bytes) = (false, 0);
        if let Some(is_trailer) = is_trailer {
            self.is_trailer = is_trailer;
            (self.step, self.shift) = (Step::Field, None);
            self.has_padding = flags & PADDED != 0;
            self.lead_bytes = if flags & PRIORITY != 0 { PRIORITY_BYTES } else { 0 };
        }
        self.finish()
    }

    /// Bytes of the payload that are still to come.
    pub(super) fn left_bytes(&self) -> u32 {
        self.left_bytes
    }

    /// Follows bytes of the payload.
    pub(super) fn read(&mut self, mut bytes: &[u8]) -> Result<(), Offence> {
        while let Some((first, rest)) = bytes.split_first() {
            if self.left_bytes == 0 {
                return Ok(());
            }
            if self.left_bytes <= self.padding_bytes {
                bytes = self.skip(bytes, self.left_bytes);
            } else if self.has_padding {
                // More of it than there is payload is the codec's to refuse (RFC 9113 §6.2).
                (self.has_padding, self.padding_bytes) = (false, u32::from(*first));
                bytes = self.skip(bytes, 1);
            } else if self.lead_bytes > 0 {
                let before = self.left_bytes;
                bytes = self.skip(bytes, self.lead_bytes);
                self.lead_bytes -= before - self.left_bytes;
            } else if matches!(self.step, Step::Name | Step::Value) {
                let before = self.left_bytes;
                bytes = self.skip(bytes, self.integer.min(self.left_bytes - self.padding_bytes));
                self.integer -= before - self.left_bytes;
                if self.integer == 0 {
                    self.step = if self.step == Step::Name { Step::ValueLength } else { Step::Field };
                }
            } else {
                self.left_bytes -= 1;
                bytes = rest;
                self.on_byte(*first)?;
            }
        }
        self.finish()
    }

    fn skip<'a>(&mut self, bytes: &'a [u8], count: u32) -> &'a [u8] {
        let count = usize::try_from(count).unwrap_or(usize::MAX).min(bytes.len());
        self.left_bytes = self.left_bytes.saturating_sub(u32::try_from(count).unwrap_or(u32::MAX));
        bytes.get(count..).unwrap_or_default()
    }

    /// A frame is over; so is the block, if it is its last frame.
    fn finish(&self) -> Result<(), Offence> {
        let is_cut = self.left_bytes == 0 && self.ends && self.step != Step::Field;
        refuse(is_cut, Offence::Compression)
    }

    fn on_byte(&mut self, byte: u8) -> Result<(), Offence> {
        if let Some(shift) = self.shift {
            // Five bytes hold more than any index or length that is taken (RFC 7541 §5.1).
            refuse(shift > INTEGER_SHIFT_MAX, Offence::Compression)?;
            let piece = u32::from(byte & 0x7f).checked_mul(1 << shift);
            let sum = piece.and_then(|piece| self.integer.checked_add(piece));
            self.integer = sum.ok_or(Offence::Compression)?;
            self.shift = (byte & 0x80 != 0).then_some(shift + 7);
            return if self.shift.is_none() { self.on_integer() } else { Ok(()) };
        }
        match self.step {
            Step::Field => {
                // Source: RFC 7541 §6.1 to §6.3.
                let (step, prefix) = match byte {
                    0x80.. => (Step::Indexed, 0x7f),
                    0x40.. => {
                        self.inserted = self.inserted.saturating_add(1);
                        (Step::NameIndex, 0x3f)
                    }
                    0x20.. => (Step::TableSize, 0x1f),
                    _ => (Step::NameIndex, 0x0f),
                };
                self.step = step;
                self.on_prefix(byte, prefix)
            }
            Step::NameLength => {
                self.is_coded = byte & 0x80 != 0;
                self.on_prefix(byte, 0x7f)
            }
            Step::NameStart => {
                let is_pseudo = if self.is_coded { byte >> 1 == COLON_CODE } else { byte == b':' };
                refuse(is_pseudo && self.is_trailer, Offence::PseudoTrailer)?;
                self.integer -= 1;
                self.step = if self.integer == 0 { Step::ValueLength } else { Step::Name };
                Ok(())
            }
            _ => self.on_prefix(byte, 0x7f),
        }
    }

    fn on_prefix(&mut self, byte: u8, prefix: u8) -> Result<(), Offence> {
        self.integer = u32::from(byte & prefix);
        if byte & prefix == prefix {
            self.shift = Some(0);
            return Ok(());
        }
        self.on_integer()
    }

    fn on_integer(&mut self) -> Result<(), Offence> {
        let value = self.integer;
        self.step = match self.step {
            Step::Indexed => {
                refuse(value == 0, Offence::Compression)?;
                self.check_index(value)?;
                Step::Field
            }
            Step::NameIndex if value == 0 => Step::NameLength,
            Step::NameIndex => {
                self.check_index(value)?;
                Step::ValueLength
            }
            Step::NameLength if value == 0 => Step::ValueLength,
            Step::NameLength => Step::NameStart,
            Step::ValueLength if value > 0 => Step::Value,
            _ => Step::Field,
        };
        Ok(())
    }

    fn check_index(&self, index: u32) -> Result<(), Offence> {
        refuse(index > STATIC_COUNT.saturating_add(self.inserted), Offence::Compression)?;
        refuse(self.is_trailer && index <= STATIC_PSEUDO_COUNT, Offence::PseudoTrailer)
    }
}

fn refuse(is_wrong: bool, offence: Offence) -> Result<(), Offence> {
    if is_wrong { Err(offence) } else { Ok(()) }
}

/// Fields of the static table, and how many of them are pseudo-fields: they come first (RFC 7541 appendix A).
const STATIC_COUNT: u32 = 61;
const STATIC_PSEUDO_COUNT: u32 = 14;
/// The code of a colon, 7 bits (RFC 7541 appendix B).
const COLON_CODE: u8 = 0x5c;
const INTEGER_SHIFT_MAX: u32 = 28;
/// Stream dependency and weight (RFC 9113 §6.2).
const PRIORITY_BYTES: u32 = 5;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

#[cfg(test)]
mod tests {
    use super::*;

    /// The offence that `block` is, whole and one byte at a time, plain and padded with priority.
    fn check(is_trailer: bool, block: &[u8], expected: Option<Offence>) {
        let length = u32::try_from(block.len()).unwrap();
        let read = |flags: u8, payload: &[u8], piece: usize| {
            let mut fields = FieldBlock::new();
            let length = u32::try_from(payload.len()).unwrap();
            let begun = fields.begin(flags, length, Some(is_trailer));
            begun.and_then(|()| payload.chunks(piece).try_for_each(|piece| fields.read(piece))).err()
        };
        let padded = [&[3, 0, 0, 0, 0, 1], block, &[0xff; 3]].concat();
        for piece in [1, 2, 1000] {
            assert_eq!(read(END_HEADERS, block, piece), expected, "{block:x?}");
            assert_eq!(read(END_HEADERS | PADDED | PRIORITY, &padded, piece), expected, "padded {block:x?}");
        }
        // In two frames.
        let (first, second) = block.split_at(block.len() / 2);
        let mut fields = FieldBlock::new();
        let halves = fields
            .begin(0, length - u32::try_from(second.len()).unwrap(), Some(is_trailer))
            .and_then(|()| fields.read(first))
            .and_then(|()| fields.begin(END_HEADERS, u32::try_from(second.len()).unwrap(), None))
            .and_then(|()| fields.read(second));
        assert_eq!(halves.err(), expected, "in two frames {block:x?}");
    }

    #[test]
    fn what_makes_no_hpack_is_found() {
        check(false, b"", None);
        // RFC 7541 C.3.1 and C.4.1: the first request, plain and in Huffman's code.
        check(false, b"\x82\x86\x84\x41\x0fwww.example.com", None);
        check(false, b"\x82\x86\x84\x41\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff", None);
        // C.2.1 to C.2.3: new names, indexed, not indexed, never indexed.
        check(false, b"\x40\x0acustom-key\x0dcustom-header", None);
        check(false, b"\x04\x0c/sample/path", None);
        check(false, b"\x10\x08password\x06secret", None);
        check(false, b"\x3f\xe1\x1f\x82", None); // a table size of 4096
        check(false, b"\x00\x01a\x00", None); // an empty value
        check(false, b"\x00\x01a\x7f\x01", Some(Offence::Compression)); // a value of 128 bytes that is not there
        check(false, b"\x40", Some(Offence::Compression));
        check(false, b"\x40\x0acustom", Some(Offence::Compression));
        check(false, b"\x80", Some(Offence::Compression)); // index 0
        check(false, b"\xbe", Some(Offence::Compression)); // 62 of an empty table
        check(false, b"\x40\x01a\x01b\xbe", None);
        check(false, b"\x7e\x01b", None); // the name is in the table by the count of this very field
        check(false, b"\xff\xff\xff\xff\xff\x7f", Some(Offence::Compression)); // an index above 2^32
        check(false, b"\xff\x80\x80\x80\x80\x80\x01", Some(Offence::Compression)); // six bytes
    }

    #[test]
    fn pseudo_fields_are_no_trailers() {
        check(true, b"\x40\x0bgrpc-status\x010", None);
        check(true, b"\x83", Some(Offence::PseudoTrailer)); // :method: POST
        check(true, b"\x41\x01a", Some(Offence::PseudoTrailer)); // :authority
        check(true, b"\x00\x07:method\x04POST", Some(Offence::PseudoTrailer));
        check(true, b"\x00\x85\xb9\x49\x53\x39\xe4\x04POST", Some(Offence::PseudoTrailer)); // :method in Huffman's code
        check(true, b"\x8f", None); // accept-charset, the first that is none
        check(false, b"\x83", None);
    }
}
