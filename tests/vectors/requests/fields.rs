//! Field names and values, nominations, limits, and what is forwarded in one meaning.

use super::Expected::{Forwarded, Refused};
use super::{Vector, chunked, get, host, post, target, vector};

pub(super) fn names() -> Vec<Vector> {
    let rule = "RFC 9112 §5.1, RFC 9110 §5.6.2";
    vec![
        get("name-space-colon", rule, Refused(400), "X : y"),
        get("name-tab-colon", rule, Refused(400), "X\t: y"),
        get("name-empty", rule, Refused(400), ": y"),
        get("name-blank", rule, Refused(400), " : y"),
        get("name-no-colon", rule, Refused(400), "X"),
        get("name-no-colon-words", rule, Refused(400), "X y"),
        get("name-space-inside", rule, Refused(400), "X Y: z"),
        get("name-nul", rule, Refused(400), "X\0: y"),
        get("name-control", rule, Refused(400), "X\x01: y"),
        get("name-delete", rule, Refused(400), "X\x7f: y"),
        get("name-obs-text", rule, Refused(400), b"X\xe9: y"),
        get("name-utf8-bom", rule, Refused(400), "\u{feff}X: y"),
        get("name-parenthesis", rule, Refused(400), "X(Y): z"),
        get("name-slash", rule, Refused(400), "X/Y: z"),
        get("name-at", rule, Refused(400), "X@Y: z"),
        get("name-bracket", rule, Refused(400), "X[0]: z"),
        get("name-brace", rule, Refused(400), "{X}: z"),
        get("name-quote", rule, Refused(400), "\"X\": z"),
        get("name-comma", rule, Refused(400), "X,Y: z"),
        get("name-semicolon", rule, Refused(400), "X;Y: z"),
        get("name-equals", rule, Refused(400), "X=Y: z"),
        get("name-question", rule, Refused(400), "X?: z"),
        get("name-backslash", rule, Refused(400), "X\\Y: z"),
        get("name-pseudo-path", "RFC 9113 §8.3", Refused(400), ":path: /other"),
        get("name-pseudo-authority", "RFC 9113 §8.3", Refused(400), ":authority: b.test"),
        post("coding-space-colon", rule, Refused(400), "Transfer-Encoding : chunked", "0\r\n\r\n"),
        post("coding-tab-colon", rule, Refused(400), "Transfer-Encoding\t: chunked", "0\r\n\r\n"),
        post("coding-nul-name", rule, Refused(400), "Transfer-Encoding\0: chunked", "0\r\n\r\n"),
        post("coding-space-name", rule, Refused(400), "Transfer Encoding: chunked", "0\r\n\r\n"),
        post("coding-leading-space", rule, Refused(400), " Transfer-Encoding: chunked", "0\r\n\r\n"),
        post("coding-leading-tabulator", rule, Refused(400), "\x0bTransfer-Encoding: chunked", "0\r\n\r\n"),
        post("length-space-colon", rule, Refused(400), "Content-Length : 5", "hello"),
        post("length-leading-space", rule, Refused(400), " Content-Length: 5", "hello"),
        post("length-no-colon", rule, Refused(400), "Content-Length 5", "hello"),
    ]
}

pub(super) fn values() -> Vec<Vector> {
    let rule = "RFC 9110 §5.5";
    vec![
        get("value-nul", rule, Refused(400), "X: a\0b"),
        get("value-nul-only", rule, Refused(400), "X: \0"),
        get("value-control", rule, Refused(400), "X: a\x01b"),
        get("value-backspace", rule, Refused(400), "X: a\x08b"),
        get("value-line-tabulator", rule, Refused(400), "X: a\x0bb"),
        get("value-form-feed", rule, Refused(400), "X: a\x0cb"),
        get("value-escape", rule, Refused(400), "X: a\x1bb"),
        get("value-delete", rule, Refused(400), "X: a\x7fb"),
        get("expect-other", "RFC 9110 §10.1.1", Refused(417), "Expect: 200-ok"),
        get("expect-obfuscated", "RFC 9110 §10.1.1", Refused(417), "Expect: y 100-continue"),
        get("expect-list", "RFC 9110 §10.1.1", Refused(417), "Expect: 100-continue, 100-continue"),
        get("expect-empty", "RFC 9110 §10.1.1", Refused(417), "Expect:"),
    ]
}

pub(super) fn connection() -> Vec<Vector> {
    let rule = "RFC 9110 §7.6.1";
    vec![
        get(
            "connection-forwarded-for",
            rule,
            Refused(400),
            "Connection: close, X-Forwarded-For\r\nX-Forwarded-For: 1.2.3.4",
        ),
        get("connection-forwarded-proto", rule, Refused(400), "Connection: x-forwarded-proto"),
        get("connection-forwarded-host", rule, Refused(400), "Connection: x-forwarded-host"),
        get("connection-host", rule, Refused(400), "Connection: Host"),
        post("connection-length", rule, Refused(400), "Connection: Content-Length\r\nContent-Length: 5", "hello"),
        get("connection-pseudo", rule, Refused(400), "Connection: :path"),
        get("connection-many", rule, Refused(400), "Connection: a, b, c, d, e, f, g, h, i, j"),
        get("connection-many-lines", rule, Refused(400), "Connection: a, b, c, d, e\r\nConnection: f, g, h, i, j"),
    ]
}

pub(super) fn limits() -> Vec<Vector> {
    let rule = "RFC 6585 §5";
    let many = (0..101).map(|index| format!("X-{index}: y")).collect::<Vec<_>>().join("\r\n");
    vec![
        get("fields-too-many", rule, Refused(431), many),
        get("value-too-long", rule, Refused(431), format!("X: {}", "y".repeat(62_000))),
        get("name-too-long", rule, Refused(431), format!("{}: y", "X".repeat(62_000))),
        get("fields-too-large", rule, Refused(431), vec![format!("X: {}", "y".repeat(1_000)); 64].join("\r\n")),
        target("target-too-long", "RFC 9110 §15.5.15", Refused(431), format!("/{}", "a".repeat(62_000))),
    ]
}

/// Well-formed, and read differently by some recipients: forwarded, in one meaning.
pub(super) fn forwarded() -> Vec<Vector> {
    vec![
        vector(
            "absolute-replaces-host",
            "RFC 9112 §3.2.2",
            Forwarded { has: &["host: a.test"], lacks: &["b.test"] },
            "GET http://a.test/vector HTTP/1.1\r\nHost: b.test\r\n\r\n",
        ),
        vector(
            "absolute-with-port",
            "RFC 9112 §3.2.2",
            Forwarded { has: &["host: a.test:81"], lacks: &["b.test"] },
            "GET http://a.test:81/vector HTTP/1.1\r\nHost: b.test\r\n\r\n",
        ),
        vector(
            "absolute-upper-scheme",
            "RFC 9110 §4.2.3",
            Forwarded { has: &["host: a.test"], lacks: &["HTTP://"] },
            "GET HTTP://a.test/vector HTTP/1.1\r\nHost: a.test\r\n\r\n",
        ),
        vector(
            "absolute-no-path",
            "RFC 9112 §3.2.1",
            Forwarded { has: &["GET / HTTP/1.1", "host: a.test"], lacks: &[] },
            "GET http://a.test HTTP/1.1\r\nHost: a.test\r\n\r\n",
        ),
        vector(
            "absolute-query-only",
            "RFC 9112 §3.2.1",
            Forwarded { has: &["GET /?vector HTTP/1.1", "host: a.test"], lacks: &[] },
            "GET http://a.test?vector HTTP/1.1\r\nHost: a.test\r\n\r\n",
        ),
        vector(
            "target-two-slashes",
            "RFC 9112 §3.2.1",
            Forwarded { has: &["GET //b.test/vector HTTP/1.1", "host: a.test"], lacks: &[] },
            "GET //b.test/vector HTTP/1.1\r\nHost: a.test\r\n\r\n",
        ),
        vector(
            "target-url-in-path",
            "RFC 9112 §3.2.1",
            Forwarded { has: &["GET /http://b.test/ HTTP/1.1", "host: a.test"], lacks: &[] },
            "GET /http://b.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n",
        ),
        host("host-with-port", Forwarded { has: &["host: a.test:8080"], lacks: &[] }, "a.test:8080"),
        host("host-empty-port", Forwarded { has: &["host: a.test:"], lacks: &[] }, "a.test:"),
        host("host-ipv6", Forwarded { has: &["host: [::1]:80"], lacks: &[] }, "[::1]:80"),
        host("host-surrounded-by-blanks", Forwarded { has: &["host: a.test"], lacks: &["\t"] }, " \t a.test \t"),
        post(
            "length-leading-zeros",
            "RFC 9110 §8.6",
            Forwarded { has: &["content-length: 5"], lacks: &["0005"] },
            "Content-Length: 0005",
            "hello",
        ),
        post(
            "length-surrounded-by-blanks",
            "RFC 9110 §5.5",
            Forwarded { has: &["content-length: 5"], lacks: &["\t"] },
            "Content-Length: \t5 \t",
            "hello",
        ),
        post(
            "coding-upper-case",
            "RFC 9112 §7",
            Forwarded { has: &["transfer-encoding: chunked"], lacks: &["CHUNKED"] },
            "Transfer-Encoding: CHUNKED",
            "5\r\nhello\r\n0\r\n\r\n",
        ),
        post(
            "coding-surrounded-by-blanks",
            "RFC 9110 §5.5",
            Forwarded { has: &["transfer-encoding: chunked"], lacks: &["\t"] },
            "Transfer-Encoding: \tchunked\t ",
            "5\r\nhello\r\n0\r\n\r\n",
        ),
        post(
            "coding-name-mixed-case",
            "RFC 9110 §5.1",
            Forwarded { has: &["transfer-encoding: chunked"], lacks: &["tRANSFER"] },
            "tRANSFER-eNCODING: chunked",
            "5\r\nhello\r\n0\r\n\r\n",
        ),
        get(
            "coding-underscore-is-another-field",
            "RFC 9110 §5.1",
            Forwarded { has: &["transfer_encoding: chunked"], lacks: &["transfer-encoding"] },
            "Transfer_Encoding: chunked",
        ),
        get(
            "length-underscore-is-another-field",
            "RFC 9110 §5.1",
            Forwarded { has: &["content_length: 5"], lacks: &["content-length"] },
            "Content_Length: 5",
        ),
        get("value-obs-text", "RFC 9110 §5.5", Forwarded { has: &["x: "], lacks: &[] }, b"X: \xff\xfe"),
        get("value-tab", "RFC 9110 §5.5", Forwarded { has: &["x: a\tb"], lacks: &[] }, "X: a\tb"),
        get("value-empty", "RFC 9110 §5.5", Forwarded { has: &["x:"], lacks: &[] }, "X:"),
        get(
            "connection-removes-nominated",
            "RFC 9110 §7.6.1",
            Forwarded { has: &["y: z"], lacks: &["x-gone"] },
            "Connection: X-Gone, keep-alive\r\nX-Gone: 1\r\nY: z",
        ),
        get(
            "keep-alive-is-removed",
            "RFC 9110 §7.6.1",
            Forwarded { has: &["y: z"], lacks: &["keep-alive"] },
            "Keep-Alive: timeout=5\r\nY: z",
        ),
        get(
            "proxy-connection-is-removed",
            "RFC 9112 §C.2.2",
            Forwarded { has: &["y: z"], lacks: &["proxy-connection"] },
            "Proxy-Connection: keep-alive\r\nY: z",
        ),
        get(
            "te-is-trailers",
            "RFC 9110 §10.1.4",
            Forwarded { has: &["te: trailers"], lacks: &["deflate"] },
            "TE: trailers, deflate;q=0.5",
        ),
        get(
            "te-other-is-removed",
            "RFC 9110 §10.1.4",
            Forwarded { has: &["y: z"], lacks: &["deflate"] },
            "TE: deflate\r\nY: z",
        ),
        get(
            "h2c-upgrade-is-removed",
            "RFC 9110 §7.8, RFC 9113 §3.1",
            Forwarded { has: &["y: z"], lacks: &["h2c", "http2-settings", "upgrade"] },
            "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\nY: z",
        ),
        chunked(
            "chunk-extensions-are-dropped",
            "RFC 9112 §7.1.1",
            Forwarded { has: &["transfer-encoding: chunked"], lacks: &["secret"] },
            "5;secret=1;b=\"secret\\\"\" ; c\r\nhello\r\n0;secret\r\n\r\n",
        ),
        chunked(
            "chunk-size-leading-zeros",
            "RFC 9112 §7.1",
            Forwarded { has: &["transfer-encoding: chunked"], lacks: &["0005"] },
            "0005\r\nhello\r\n000\r\n\r\n",
        ),
        chunked(
            "chunk-size-upper-case",
            "RFC 9112 §7.1",
            Forwarded { has: &["transfer-encoding: chunked"], lacks: &[] },
            "A\r\nhellohello\r\n0\r\n\r\n",
        ),
        chunked(
            "trailer-length-is-dropped",
            "RFC 9110 §6.5.1",
            Forwarded { has: &["transfer-encoding: chunked"], lacks: &["content-length", "b.test", "secret"] },
            "5\r\nhello\r\n0\r\nContent-Length: 99\r\nHost: b.test\r\nAuthorization: secret\r\nTransfer-Encoding: gzip\r\n\r\n",
        ),
        vector(
            "get-with-length",
            "RFC 9110 §9.3.1",
            Forwarded { has: &["content-length: 5"], lacks: &[] },
            "GET /vector HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\n\r\nhello",
        ),
        vector(
            "empty-line-before",
            "RFC 9112 §2.2",
            Forwarded { has: &["GET /vector HTTP/1.1", "host: a.test"], lacks: &[] },
            "\r\nGET /vector HTTP/1.1\r\nHost: a.test\r\n\r\n",
        ),
        vector(
            "post-without-length",
            "RFC 9112 §6.3",
            Forwarded { has: &["content-length: 0"], lacks: &[] },
            "POST /vector HTTP/1.1\r\nHost: a.test\r\n\r\n",
        ),
    ]
}
