//! Which bytes may stand where: one table for all grammars of a head.

/// Whether `byte` may stand in a token (RFC 9110 §5.6.2).
pub(crate) fn is_token(byte: u8) -> bool {
    class(byte) & TOKEN != 0
}

/// Whether every byte may stand in a token, and there is one.
pub(crate) fn is_token_text(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|byte| is_token(*byte))
}

/// Whether every byte may stand in a request target: visible ASCII but `#`, which starts a fragment (RFC 9112 §3.2).
///
/// RFC 3986 leaves `"<>\^`{|}` out too; clients do send them and Envoy forwards them, and none of them is a delimiter here.
pub(crate) fn is_target_text(text: &[u8]) -> bool {
    text.iter().fold(TARGET, |all, byte| all & class(*byte)) != 0
}

/// Whether every byte may stand in a host with port (RFC 3986 §3.2.2, §3.2.3), leaving out `,`, which some recipients take for a list.
pub(crate) fn is_authority_text(text: &[u8]) -> bool {
    text.iter().fold(AUTHORITY, |all, byte| all & class(*byte)) != 0
}

/// Whether every byte may stand in a field value: anything but controls, with tab allowed (RFC 9110 §5.5).
pub(crate) fn is_value_text(text: &[u8]) -> bool {
    let is_value = |bytes: &[u8]| bytes.iter().fold(VALUE, |all, byte| all & class(*byte)) != 0;
    let (words, rest) = text.as_chunks::<8>();
    words.iter().all(|word| !may_have_control(u64::from_le_bytes(*word)) || is_value(word)) && is_value(rest)
}

/// Whether one of eight bytes is a control, which tab is too; a few words without one are suspected as well.
#[inline]
fn may_have_control(word: u64) -> bool {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;
    // Below 0x20 the subtraction borrows into the high bit, and 0x7f carries into it.
    (word.wrapping_sub(ONES * 0x20) | word.wrapping_add(ONES)) & !word & HIGH != 0
}

/// `text` without the white space at its ends (RFC 9110 §5.6.3).
pub(crate) fn trim(mut text: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = text {
        text = rest;
    }
    text
}

/// The members of a comma-separated list, without white space; empty members are left out (RFC 9110 §5.6.1.2).
pub(crate) fn list(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| *byte == b',').map(trim).filter(|member| !member.is_empty())
}

/// The number that the digits say; `None` if there is another byte, no byte, or more than fits.
pub fn decimal(text: &[u8]) -> Option<u64> {
    // No more digits than u64::MAX has: a longer row of zeros is no length that anybody means.
    if text.is_empty() || text.len() > 20 {
        return None;
    }
    text.iter().try_fold(0_u64, |number, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    })
}

/// Writes `number` in decimal.
pub(crate) fn push_decimal(mut number: u64, out: &mut Vec<u8>) {
    let mut digits = [0_u8; 20];
    let mut written = 0;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
        written += 1;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(digits.get(digits.len() - written..).unwrap_or_default());
}

fn class(byte: u8) -> u8 {
    CLASS.get(usize::from(byte)).copied().unwrap_or_default()
}

const TOKEN: u8 = 1;
const TARGET: u8 = 2;
const AUTHORITY: u8 = 4;
const VALUE: u8 = 8;

#[allow(clippy::indexing_slicing, reason = "runs when the crate is compiled")]
const CLASS: [u8; 256] = {
    let mut classes = [0; 256];
    mark(&mut classes, b"!#$%&'*+-.^_`|~0123456789", TOKEN);
    mark(&mut classes, LETTERS, TOKEN | AUTHORITY);
    mark(&mut classes, b"0123456789-._~%!$&'()*+;=:[]", AUTHORITY);
    let mut byte = 0;
    while byte < 256 {
        if byte > 0x20 && byte < 0x7f && byte != b'#' as usize {
            classes[byte] |= TARGET;
        }
        if byte >= 0x20 && byte != 0x7f || byte == b'\t' as usize {
            classes[byte] |= VALUE;
        }
        byte += 1;
    }
    classes
};

const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";

#[allow(clippy::indexing_slicing, reason = "runs when the crate is compiled")]
const fn mark(classes: &mut [u8; 256], bytes: &[u8], class: u8) {
    let mut index = 0;
    while index < bytes.len() {
        classes[bytes[index] as usize] |= class;
        index += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_no_control_but_tab() {
        for length in 0..20 {
            for place in 0..length {
                for filler in [b'a', b'~', 0xff, b'\t'] {
                    for byte in 0..=u8::MAX {
                        let mut text = vec![filler; length];
                        text[place] = byte;
                        let expected = byte == b'\t' || byte >= 0x20 && byte != 0x7f;
                        assert_eq!(is_value_text(&text), expected, "{byte} at {place} of {length}");
                    }
                }
            }
        }
    }
}
