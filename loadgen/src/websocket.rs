//! Frames and keys of WebSocket (RFC 6455), for both ends. No I/O, no clock.

use aws_lc_rs::digest;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;

/// Appended to a client's key (section 1.3).
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// Longest payload of a control frame, in bytes (section 5.5).
const CONTROL_BYTES_MAX: u64 = 125;

/// Opcodes (section 5.2).
pub const CONTINUATION: u8 = 0;
pub const TEXT: u8 = 1;
pub const BINARY: u8 = 2;
pub const CLOSE: u8 = 8;
pub const PING: u8 = 9;
pub const PONG: u8 = 10;

/// The bytes are no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// What stands before a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    pub is_final: bool,
    pub opcode: u8,
    pub mask: Option<[u8; 4]>,
    /// Of the payload, in bytes.
    pub length: u64,
    /// Of this head, in bytes.
    pub head_length: usize,
}

impl Head {
    /// The head at the start of `bytes`; nothing while it is incomplete.
    ///
    /// Source: RFC 6455 sections 5.2 and 5.5; no extension is ever agreed on, so the reserved bits are zero.
    pub fn parse(bytes: &[u8]) -> Result<Option<Head>, Malformed> {
        let [first, second, rest @ ..] = bytes else { return Ok(None) };
        let (is_final, opcode, short) = (first & 0x80 != 0, first & 0x0f, u64::from(second & 0x7f));
        if first & 0x70 != 0 || !matches!(opcode, CONTINUATION..=BINARY | CLOSE..=PONG) {
            return Err(Malformed);
        }
        let (length, rest, extra) = match (short, rest) {
            (126, [a, b, rest @ ..]) => (u64::from(u16::from_be_bytes([*a, *b])), rest, 2),
            (127, rest) => match rest.split_first_chunk::<8>() {
                Some((length, rest)) => (u64::from_be_bytes(*length), rest, 8),
                None => return Ok(None),
            },
            (126, _) => return Ok(None),
            (short, rest) => (short, rest, 0),
        };
        let minimal = match extra {
            2 => length > 125,
            8 => length > u64::from(u16::MAX) && length <= i64::MAX as u64,
            _ => true,
        };
        if !minimal || opcode >= CLOSE && (!is_final || length > CONTROL_BYTES_MAX) {
            return Err(Malformed);
        }
        let (mask, masked) = match (second & 0x80 != 0, rest.first_chunk::<4>()) {
            (false, _) => (None, 0),
            (true, Some(mask)) => (Some(*mask), 4),
            (true, None) => return Ok(None),
        };
        Ok(Some(Head { is_final, opcode, mask, length, head_length: 2 + extra + masked }))
    }
}

/// Appends a whole frame to `out`; a client masks it, a server does not (section 5.1).
pub fn write(out: &mut Vec<u8>, opcode: u8, payload: &[u8], mask: Option<[u8; 4]>) {
    write_piece(out, true, opcode, payload, mask);
}

/// Appends a frame that is the last of its message, or not.
pub fn write_piece(out: &mut Vec<u8>, is_final: bool, opcode: u8, payload: &[u8], mask: Option<[u8; 4]>) {
    let flag = if mask.is_some() { 0x80 } else { 0 };
    out.push(if is_final { 0x80 } else { 0 } | opcode);
    match payload.len() {
        length @ 0..=125 => out.push(flag | length as u8),
        length @ 126..=0xffff => {
            out.push(flag | 126);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            out.push(flag | 127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(mask.as_ref().map_or(&[][..], |mask| mask));
    let start = out.len();
    out.extend_from_slice(payload);
    if let (Some(mask), Some(payload)) = (mask, out.get_mut(start..)) {
        apply(payload, mask, 0);
    }
}

/// Masks or unmasks `bytes`, which begin at `offset` of their frame (section 5.3).
pub fn apply(bytes: &mut [u8], mask: [u8; 4], offset: u64) {
    let turned = u32::from_ne_bytes(mask);
    let turned = if cfg!(target_endian = "little") {
        turned.rotate_right(8 * (offset % 4) as u32)
    } else {
        turned.rotate_left(8 * (offset % 4) as u32)
    };
    let mask = turned.to_ne_bytes();
    for group in bytes.chunks_mut(4) {
        for (byte, mask) in group.iter_mut().zip(mask) {
            *byte ^= mask;
        }
    }
}

/// What a server answers to a client's `key` (section 4.2.2).
pub fn accept(key: &str) -> String {
    let hash = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, format!("{key}{GUID}").as_bytes());
    BASE64_STANDARD.encode(hash)
}

/// A client's key from 16 bytes (section 4.1).
pub fn key(bytes: [u8; 16]) -> String {
    BASE64_STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_answered_as_in_the_rfc() {
        assert_eq!(accept("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(key(*b"the sample nonce"), "dGhlIHNhbXBsZSBub25jZQ==");
    }

    /// The examples of section 5.7.
    #[test]
    fn frames_are_as_in_the_rfc() {
        let mut out = Vec::new();
        write(&mut out, TEXT, b"Hello", None);
        assert_eq!(out, b"\x81\x05Hello");
        out.clear();
        write(&mut out, TEXT, b"Hello", Some([0x37, 0xfa, 0x21, 0x3d]));
        assert_eq!(out, b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58");
        let head =
            Head { is_final: true, opcode: TEXT, mask: Some([0x37, 0xfa, 0x21, 0x3d]), length: 5, head_length: 6 };
        assert_eq!(Head::parse(&out), Ok(Some(head)));
        for cut in 0..6 {
            assert_eq!(Head::parse(&out[..cut]), Ok(None), "{cut}");
        }
        for (length, head_length) in [(0, 2), (125, 2), (126, 4), (65_535, 4), (65_536, 10)] {
            out.clear();
            write(&mut out, BINARY, &vec![7; length], None);
            let head = Head { is_final: true, opcode: BINARY, mask: None, length: length as u64, head_length };
            assert_eq!(Head::parse(&out), Ok(Some(head)));
        }
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        for bytes in [
            &b"\xc1\x00"[..],    // a reserved bit
            b"\x83\x00",         // an opcode that does not exist
            b"\x09\x00",         // a ping in pieces
            b"\x89\x7e\x00\x7e", // a ping that is too long
            b"\x82\x7e\x00\x05", // a length in more bytes than it needs
            b"\x82\x7f\x00\x00\x00\x00\x00\x00\xff\xff",
            b"\x82\x7f\xff\xff\xff\xff\xff\xff\xff\xff",
        ] {
            assert_eq!(Head::parse(bytes), Err(Malformed), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn masks_go_on_where_the_piece_before_ended() {
        let plain: Vec<u8> = (0..100).collect();
        let mask = [1, 2, 4, 8];
        let mut whole = plain.clone();
        apply(&mut whole, mask, 0);
        for cut in 0..plain.len() {
            let mut pieces = plain.clone();
            let (first, second) = pieces.split_at_mut(cut);
            apply(first, mask, 0);
            apply(second, mask, cut as u64);
            assert_eq!(pieces, whole, "{cut}");
        }
    }
}
