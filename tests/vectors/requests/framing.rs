//! Lengths, transfer codings, their conflicts, chunks and trailers.

use super::Expected::{BodyRefused, Refused};
use super::{Vector, chunked, post, vector};

pub(super) fn lengths() -> Vec<Vector> {
    let rule = "RFC 9110 §8.6, RFC 9112 §6.3";
    let length = |name, value: &str| post(name, rule, Refused(400), format!("Content-Length: {value}"), "hello");
    vec![
        length("length-empty", ""),
        length("length-blank", "   "),
        length("length-plus", "+5"),
        length("length-minus", "-5"),
        length("length-minus-zero", "-0"),
        length("length-plus-zero", "+0"),
        length("length-hex", "0x5"),
        length("length-hex-letter", "a"),
        length("length-octal", "0o5"),
        length("length-binary", "0b101"),
        length("length-underscore", "5_0"),
        length("length-comma-thousands", "1,000"),
        length("length-fraction", "5.0"),
        length("length-exponent", "5e0"),
        length("length-space-inside", "5 5"),
        length("length-tab-inside", "5\t5"),
        length("length-word", "five"),
        length("length-trailing-letter", "5a"),
        length("length-trailing-semicolon", "5;"),
        length("length-quoted", "\"5\""),
        length("length-list-same", "5, 5"),
        length("length-list-tight", "5,5"),
        length("length-list-different", "5, 6"),
        length("length-list-trailing-comma", "5,"),
        length("length-list-leading-comma", ",5"),
        length("length-overflow-64", "18446744073709551616"),
        length("length-overflow-wraps-to-5", "18446744073709551621"),
        length("length-overflow-32-digits", "99999999999999999999999999999999"),
        length("length-many-zeros", "000000000000000000000000000000005"),
        length("length-nul", "5\0"),
        length("length-form-feed", "\x0c5"),
        vector(
            "length-fullwidth",
            rule,
            Refused(400),
            "POST /vector HTTP/1.1\r\nHost: a.test\r\nContent-Length: ５\r\n\r\nhello",
        ),
        post("length-twice-same", rule, Refused(400), "Content-Length: 5\r\nContent-Length: 5", "hello"),
        post("length-twice-different", rule, Refused(400), "Content-Length: 5\r\nContent-Length: 6", "hello"),
        post("length-twice-zero-first", rule, Refused(400), "Content-Length: 0\r\nContent-Length: 5", "hello"),
        post("length-twice-zero-last", rule, Refused(400), "Content-Length: 5\r\nContent-Length: 0", "hello"),
        post("length-twice-other-case", rule, Refused(400), "Content-Length: 5\r\ncontent-length: 5", "hello"),
        post(
            "length-thrice",
            rule,
            Refused(400),
            "Content-Length: 5\r\nContent-Length: 5\r\nContent-Length: 5",
            "hello",
        ),
    ]
}

pub(super) fn codings() -> Vec<Vector> {
    let rule = "RFC 9112 §6.1, §7";
    let coding = |name, value: &str| post(name, rule, Refused(501), format!("Transfer-Encoding: {value}"), "0\r\n\r\n");
    let broken = |name, value: &str| post(name, rule, Refused(400), format!("Transfer-Encoding: {value}"), "0\r\n\r\n");
    vec![
        coding("coding-prefix", "xchunked"),
        coding("coding-suffix", "chunkedx"),
        coding("coding-space-inside", "chunk ed"),
        coding("coding-identity", "identity"),
        coding("coding-gzip", "gzip"),
        coding("coding-gzip-chunked", "gzip, chunked"),
        coding("coding-chunked-gzip", "chunked, gzip"),
        coding("coding-chunked-identity", "chunked, identity"),
        coding("coding-identity-chunked", "identity, chunked"),
        coding("coding-chunked-chunked", "chunked, chunked"),
        coding("coding-trailing-comma", "chunked,"),
        coding("coding-leading-comma", ", chunked"),
        coding("coding-comma-only", ","),
        coding("coding-parameter", "chunked;q=1"),
        coding("coding-parameter-empty", "chunked;"),
        coding("coding-double-quoted", "\"chunked\""),
        coding("coding-single-quoted", "'chunked'"),
        coding("coding-trailing-dot", "chunked."),
        coding("coding-empty", ""),
        coding("coding-blank", "  "),
        coding("coding-colon", ": chunked"),
        coding("coding-cow", "cow"),
        broken("coding-nul", "chunked\0"),
        broken("coding-nul-leading", "\0chunked"),
        broken("coding-line-tabulator", "\x0bchunked"),
        broken("coding-form-feed", "\x0cchunked"),
        broken("coding-control", "\x01chunked"),
        broken("coding-cr", "\rchunked"),
        broken("coding-cr-after", "chunked\r"),
        post("coding-obs-text", rule, Refused(501), b"Transfer-Encoding: \xa0chunked", "0\r\n\r\n"),
        post(
            "coding-twice",
            rule,
            Refused(501),
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "0\r\n\r\n",
        ),
        post(
            "coding-twice-identity-last",
            rule,
            Refused(501),
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
            "0\r\n\r\n",
        ),
        post(
            "coding-twice-identity-first",
            rule,
            Refused(501),
            "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
            "0\r\n\r\n",
        ),
        post(
            "coding-twice-cow",
            rule,
            Refused(501),
            "Transfer-Encoding: chunked\r\nTransfer-encoding: cow",
            "0\r\n\r\n",
        ),
    ]
}

pub(super) fn conflicts() -> Vec<Vector> {
    let rule = "RFC 9112 §6.1, §6.3";
    let both = |name, lines: &str| post(name, rule, Refused(400), lines, "0\r\n\r\n");
    vec![
        both("length-then-coding", "Content-Length: 5\r\nTransfer-Encoding: chunked"),
        both("coding-then-length", "Transfer-Encoding: chunked\r\nContent-Length: 5"),
        both("length-zero-and-coding", "Content-Length: 0\r\nTransfer-Encoding: chunked"),
        both("coding-and-length-zero", "Transfer-Encoding: chunked\r\nContent-Length: 0"),
        both("length-and-identity", "Content-Length: 5\r\nTransfer-Encoding: identity"),
        both("length-and-gzip", "Content-Length: 5\r\nTransfer-Encoding: gzip"),
        both("length-and-obfuscated-coding", "Content-Length: 5\r\nTransfer-Encoding: xchunked"),
        both("length-and-upper-coding", "Content-Length: 5\r\nTransfer-Encoding: CHUNKED"),
        both("length-bad-and-coding", "Content-Length: x\r\nTransfer-Encoding: chunked"),
        both(
            "length-and-two-codings",
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        ),
        vector(
            "clte-classic",
            rule,
            Refused(400),
            "POST /vector HTTP/1.1\r\nHost: a.test\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG",
        ),
        vector(
            "tecl-classic",
            rule,
            Refused(400),
            "POST /vector HTTP/1.1\r\nHost: a.test\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n12\r\nGET /x HTTP/1.1\r\n\r\n\r\n0\r\n\r\n",
        ),
        vector(
            "coding-in-http10",
            "RFC 9112 §6.1",
            Refused(426),
            "POST /vector HTTP/1.0\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        vector(
            "both-in-http10",
            "RFC 9112 §6.1",
            Refused(400),
            "POST /vector HTTP/1.0\r\nHost: a.test\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        vector(
            "get-with-both",
            rule,
            Refused(400),
            "GET /vector HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        vector(
            "options-folded-length",
            "RFC 9112 §5.2, RFC 9110 §10.1.1",
            Refused(400),
            "OPTIONS /vector HTTP/1.1\r\nHost: a.test\r\nExpect: 100-continue\r\nContent-Length:\r\n 5\r\n\r\nhello",
        ),
    ]
}

pub(super) fn chunks() -> Vec<Vector> {
    let size = "RFC 9112 §7.1";
    let extension = "RFC 9112 §7.1.1";
    let chunk = |name, body: &str| chunked(name, size, BodyRefused(400), body);
    let ext = |name, ext: &str| chunked(name, extension, BodyRefused(400), format!("5{ext}\r\nhello\r\n0\r\n\r\n"));
    vec![
        chunk("chunk-size-empty", "\r\nhello\r\n0\r\n\r\n"),
        chunk("chunk-size-prefix", "0x5\r\nhello\r\n0\r\n\r\n"),
        chunk("chunk-size-prefix-upper", "0X5\r\nhello\r\n0\r\n\r\n"),
        chunk("chunk-size-plus", "+5\r\nhello\r\n0\r\n\r\n"),
        chunk("chunk-size-minus", "-5\r\nhello\r\n0\r\n\r\n"),
        chunk("chunk-size-minus-zero", "-0\r\n\r\n"),
        chunk("chunk-size-underscore", "0_5\r\nhello\r\n0\r\n\r\n"),
        chunk("chunk-size-not-hex", "g\r\nhello\r\n0\r\n\r\n"),
        chunk("chunk-size-hex-suffix", "5h\r\nhello\r\n0\r\n\r\n"),
        chunk("chunk-size-fraction", "5.0\r\nhello\r\n0\r\n\r\n"),
        chunk("chunk-size-comma", "5,5\r\nhello\r\n0\r\n\r\n"),
        chunk("chunk-size-space-before", " 5\r\nhello\r\n0\r\n\r\n"),
        chunk("chunk-size-tab-before", "\t5\r\nhello\r\n0\r\n\r\n"),
        chunk("chunk-size-space-after", "5 \r\nhello\r\n0\r\n\r\n"),
        chunk("chunk-size-tab-after", "5\t\r\nhello\r\n0\r\n\r\n"),
        chunk("chunk-size-space-inside", "0 5\r\nhello\r\n0\r\n\r\n"),
        chunk("chunk-size-nul", "5\0\r\nhello\r\n0\r\n\r\n"),
        chunk("chunk-size-17-digits", "00000000000000005\r\nhello\r\n0\r\n\r\n"),
        chunk("chunk-size-overflow-64", "10000000000000005\r\nhello\r\n0\r\n\r\n"),
        chunk("chunk-size-overflow-32-digits", "ffffffffffffffffffffffffffffffff\r\nhello\r\n0\r\n\r\n"),
        chunk("chunk-size-quoted", "\"5\"\r\nhello\r\n0\r\n\r\n"),
        chunk("chunk-line-lf", "5\nhello\r\n0\r\n\r\n"),
        chunk("chunk-line-cr", "5\rhello\r\n0\r\n\r\n"),
        chunk("chunk-line-cr-cr-lf", "5\r\r\nhello\r\n0\r\n\r\n"),
        chunk("chunk-data-lf", "5\r\nhello\n0\r\n\r\n"),
        chunk("chunk-data-cr", "5\r\nhello\r0\r\n\r\n"),
        chunk("chunk-data-no-end", "5\r\nhello0\r\n\r\n"),
        chunk("chunk-data-too-long", "5\r\nhello!\r\n0\r\n\r\n"),
        chunk("chunk-data-too-short", "6\r\nhello\r\n0\r\n\r\n"),
        chunk("chunk-data-spill", "5\r\nhelloXX\r\n0\r\n\r\n"),
        chunk("chunk-data-two-bytes-for-end", "5\r\nhelloab0\r\n\r\n"),
        chunk("last-chunk-line-lf", "5\r\nhello\r\n0\n\r\n"),
        chunk("last-chunk-end-lf", "5\r\nhello\r\n0\r\n\n"),
        chunk("last-chunk-all-lf", "5\r\nhello\r\n0\n\n"),
        chunk("last-chunk-cr", "5\r\nhello\r\n0\r\r\n"),
        chunk("last-chunk-space", "5\r\nhello\r\n0 \r\n\r\n"),
        ext("extension-lf", ";a\nb"),
        ext("extension-cr", ";a\rb"),
        ext("extension-cr-value", ";a=b\rc"),
        ext("extension-lf-only", ";\n"),
        ext("extension-empty", ";"),
        ext("extension-two-empty", ";;"),
        ext("extension-no-name", ";=b"),
        ext("extension-no-value", ";a="),
        ext("extension-space-in-name", ";a b"),
        ext("extension-space-in-value", ";a=b c"),
        ext("extension-open-quote", ";a=\"b"),
        ext("extension-after-quote", ";a=\"b\"c"),
        ext("extension-lf-in-quote", ";a=\"b\nc\""),
        ext("extension-cr-lf-in-quote", ";a=\"b\r\nc\""),
        ext("extension-control", ";a\x01"),
        ext("extension-nul", ";a=\0"),
        ext("extension-separator", ";a/b"),
        ext("extension-no-semicolon", " a"),
        chunked(
            "extension-too-long",
            extension,
            BodyRefused(413),
            format!("5;{}\r\nhello\r\n0\r\n\r\n", "a".repeat(5_000)),
        ),
        chunked(
            "extensions-too-long-together",
            extension,
            BodyRefused(413),
            format!("{}0\r\n\r\n", format!("1;{}\r\nx\r\n", "a".repeat(100)).repeat(50)),
        ),
    ]
}

pub(super) fn trailers() -> Vec<Vector> {
    let rule = "RFC 9112 §7.1.2, RFC 9110 §6.5";
    let trailer =
        |name, lines: &str| chunked(name, rule, BodyRefused(400), format!("5\r\nhello\r\n0\r\n{lines}\r\n\r\n"));
    vec![
        trailer("trailer-lf", "X: y\nZ: a"),
        trailer("trailer-cr", "X: y\rZ: a"),
        trailer("trailer-no-colon", "X"),
        trailer("trailer-empty-name", ": y"),
        trailer("trailer-space-colon", "X : y"),
        trailer("trailer-fold", "X: y\r\n z"),
        trailer("trailer-leading-space", " X: y"),
        trailer("trailer-nul", "X: y\0"),
        trailer("trailer-control", "X: \x01"),
        trailer("trailer-request", "GET /other HTTP/1.1"),
        chunked(
            "trailers-too-large",
            "RFC 6585 §5",
            BodyRefused(431),
            format!("0\r\nX: {}\r\n\r\n", "y".repeat(62_000)),
        ),
        chunked("trailers-too-many", "RFC 6585 §5", BodyRefused(431), format!("0\r\n{}\r\n", "X: y\r\n".repeat(101))),
    ]
}
