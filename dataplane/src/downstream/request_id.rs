//! `x-request-id` values: UUID version 4, whose version digit also says why a request is traced.
//! Source: RFC 9562 §5.4; envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig.

use crate::worker::random::Random;

/// A UUID as text.
pub type RequestId = [u8; 36];

/// A new UUID version 4 in lower case.
pub fn generate(random: &mut Random) -> RequestId {
    let bits = u128::from(random.next_u64()) << 64 | u128::from(random.next_u64());
    // Version 4 and variant 10 (RFC 9562 §4.1, §4.2).
    let bits = bits & !(0xf << 76) & !(0x3 << 62) | 0x4 << 76 | 0x2 << 62;
    let mut text = [b'-'; 36];
    for (start, bytes) in [(0, 0..4), (9, 4..6), (14, 6..8), (19, 8..10), (24, 10..16)] {
        let pairs = text.get_mut(start..).unwrap_or_default().chunks_exact_mut(2);
        for (pair, byte) in pairs.zip(bits.to_be_bytes().get(bytes).unwrap_or_default()) {
            pair.copy_from_slice(HEX_PAIRS.get(usize::from(*byte)).unwrap_or(b"00"));
        }
    }
    text
}

/// The two digits of each byte.
#[allow(clippy::indexing_slicing, reason = "runs when the crate is compiled")]
static HEX_PAIRS: [[u8; 2]; 256] = {
    let digits = b"0123456789abcdef";
    let mut pairs = [[0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        pairs[byte] = [digits[byte >> 4], digits[byte & 0xf]];
        byte += 1;
    }
    pairs
};

/// The id without a reason to trace, or `None` where it has none to remove. Other texts than UUIDs carry no reason.
pub fn untraced(id: &[u8]) -> Option<RequestId> {
    let mut id: RequestId = id.try_into().ok()?;
    let reason = id.get_mut(TRACE_REASON_INDEX)?;
    (*reason != NOT_TRACED).then(|| *reason = NOT_TRACED)?;
    Some(id)
}

/// Where Envoy packs the trace reason: the version digit.
const TRACE_REASON_INDEX: usize = 14;
/// The version digit of an id that is not traced.
const NOT_TRACED: u8 = b'4';

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_uuids_of_version_4() {
        let mut random = Random::seeded(3);
        for _ in 0..1000 {
            let id = generate(&mut random);
            let text = std::str::from_utf8(&id).unwrap();
            let parts: Vec<usize> = text.split('-').map(str::len).collect();
            assert_eq!(parts, [8, 4, 4, 4, 12], "{text}");
            assert!(text.bytes().all(|byte| byte == b'-' || byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)));
            assert_eq!(id[14], b'4', "{text}");
            assert!(matches!(id[19], b'8' | b'9' | b'a' | b'b'), "{text}");
        }
        assert_ne!(generate(&mut random), generate(&mut random));
    }

    #[test]
    fn only_a_uuid_loses_its_trace_reason() {
        let check = |id: &str, expect: Option<&str>| {
            assert_eq!(untraced(id.as_bytes()).as_ref().map(|id| id.as_slice()), expect.map(str::as_bytes), "{id}");
        };
        check("a4f7b7ae-9e4f-aa1b-8a4b-1f0b9d7e6c11", Some("a4f7b7ae-9e4f-4a1b-8a4b-1f0b9d7e6c11"));
        check("a4f7b7ae-9e4f-9a1b-8a4b-1f0b9d7e6c11", Some("a4f7b7ae-9e4f-4a1b-8a4b-1f0b9d7e6c11"));
        check("a4f7b7ae-9e4f-4a1b-8a4b-1f0b9d7e6c11", None);
        check("a4f7b7ae-9e4f-aa1b-8a4b-1f0b9d7e6c1", None);
        check("junk", None);
    }
}
