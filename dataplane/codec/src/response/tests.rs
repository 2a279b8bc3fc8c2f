use super::*;

fn parse(input: &str, method: RequestMethod) -> Result<Option<(usize, ResponseHead)>, Malformed> {
    let mut head = ResponseHead::default();
    let length = parse_response(input.as_bytes(), method, &Limits::default(), &mut head)?;
    Ok(length.map(|length| (length, head)))
}

/// A response with these lines after the status line, to a request with this method.
fn check(method: RequestMethod, status: &str, lines: &str, expected: Result<(BodyLength, bool), Malformed>) {
    let input = format!("HTTP/1.1 {status}\r\n{lines}{}\r\n", if lines.is_empty() { "" } else { "\r\n" });
    let parsed = parse(&input, method).map(|head| head.map(|(length, head)| (length, head.body, head.keep_alive)));
    assert_eq!(parsed, expected.map(|(body, keep_alive)| Some((input.len(), body, keep_alive))), "{input:?}");
    for end in 0..input.len() {
        assert!(matches!(parse(&input[..end], method), Ok(None)) || expected.is_err(), "{:?}", &input[..end]);
    }
}

use BodyLength::{Chunked, Empty, Length, UntilClose};
use RequestMethod::{Connect, Head, Other};

#[test]
fn the_body_ends_as_rfc_9112_says() {
    check(Other, "200 OK", "Content-Length: 5", Ok((Length(5), true)));
    check(Other, "200 OK", "Content-Length: 0", Ok((Empty, true)));
    check(Other, "200 OK", "Transfer-Encoding: chunked", Ok((Chunked, true)));
    check(Other, "200 OK", "", Ok((UntilClose, false)));
    check(Other, "200", "Content-Length: 5", Ok((Length(5), true)));
    check(Other, "200 OK", "Content-Length: 5\r\nConnection: close", Ok((Length(5), false)));
    check(Other, "599 Odd", "Content-Length: 5\r\nConnection: x, Close", Ok((Length(5), false)));
    check(Head, "200 OK", "Content-Length: 5", Ok((Empty, true)));
    check(Head, "200 OK", "Transfer-Encoding: chunked", Ok((Empty, true)));
    check(Head, "200 OK", "", Ok((Empty, true)));
    check(Other, "304 Not Modified", "Content-Length: 5", Ok((Empty, true)));
    check(Other, "204 No Content", "", Ok((Empty, true)));
    check(Other, "204 No Content", "Content-Length: 0", Ok((Empty, true)));
    check(Other, "100 Continue", "", Ok((Empty, true)));
    check(Other, "103 Early Hints", "Link: x", Ok((Empty, true)));
    check(Other, "101 Switching Protocols", "Upgrade: websocket\r\nConnection: upgrade", Ok((Empty, true)));
    check(Connect, "200 OK", "Content-Length: 5", Ok((Empty, true)));
    check(Connect, "200 OK", "Transfer-Encoding: chunked", Ok((Empty, true)));
    check(Connect, "403 Forbidden", "Content-Length: 5", Ok((Length(5), true)));
}

#[test]
fn framing_faults_are_refused() {
    use Malformed::*;
    check(Other, "200 OK", "Content-Length: 5\r\nTransfer-Encoding: chunked", Err(LengthConflict));
    check(Head, "200 OK", "Content-Length: 5\r\nTransfer-Encoding: chunked", Err(LengthConflict));
    check(Other, "200 OK", "Content-Length: 5\r\nContent-Length: 5", Err(ContentLengthRepeated));
    check(Other, "200 OK", "Content-Length: 5, 5", Err(ContentLength));
    check(Other, "200 OK", "Content-Length: -1", Err(ContentLength));
    check(Other, "304 Not Modified", "Content-Length: x", Err(ContentLength));
    check(Other, "200 OK", "Transfer-Encoding: gzip, chunked", Err(TransferEncoding));
    check(Other, "200 OK", "Transfer-Encoding: identity", Err(TransferEncoding));
    check(Other, "204 No Content", "Transfer-Encoding: chunked", Err(TransferEncodingNotAllowed));
    check(Other, "100 Continue", "Transfer-Encoding: chunked", Err(TransferEncodingNotAllowed));
    check(Other, "204 No Content", "Content-Length: 5", Err(ContentLengthNotAllowed));
    check(Other, "100 Continue", "Content-Length: 5", Err(ContentLengthNotAllowed));
    check(Other, "099 Low", "", Err(Status));
    check(Other, "20 Short", "", Err(Status));
    check(Other, "2000 Long", "", Err(Status));
    check(Other, "200 OK", "X : y", Err(FieldName));
    check(Other, "200 OK", "X: y\r\n z", Err(FieldFolded));
    check(Other, "200 OK", "X: \0", Err(FieldValue));
    check(Other, "200 OK", "X: y\nZ: a", Err(LineEnd));
    check(Other, "200 OK\r\nX: y\n", "", Err(LineEnd));
}

#[test]
fn old_versions_close() {
    let check = |lines: &str, expected: Result<(BodyLength, bool), Malformed>| {
        let parsed = parse(&format!("HTTP/1.0 200 OK\r\n{lines}\r\n\r\n"), Other);
        assert_eq!(
            parsed.map(|head| head.map(|(_, head)| (head.body, head.keep_alive))),
            expected.map(Some),
            "{lines}"
        );
    };
    check("Content-Length: 5", Ok((Length(5), false)));
    check("Content-Length: 5\r\nConnection: Keep-Alive", Ok((Length(5), true)));
    check("Connection: Keep-Alive", Ok((UntilClose, false)));
    check("Transfer-Encoding: chunked", Err(Malformed::TransferEncodingInHttp10));
}

#[test]
fn what_is_no_response_is_refused_at_once() {
    for input in [
        "GET / HTTP/1.1\r\n",
        "\x16\x03\x01",
        "HTTP/2.0 200 OK\r\n",
        "http/1.1 200 OK\r\n",
        "ICY 200 OK\r\n",
        "HTTP/1.1  200 OK\r\n",
    ] {
        assert!(parse(input, Other).is_err(), "{input:?}");
    }
    assert_eq!(parse("\r\nHTTP/1.1 200 OK\r\n\r\n", Other).err(), Some(Malformed::LineEnd));
    assert_eq!(parse("\r\n\r\n", Other).err(), Some(Malformed::LineEnd));
}

#[test]
fn limits_hold() {
    let limits = Limits { header_bytes_max: 64, header_count_max: 2, ..Limits::default() };
    let check = |input: &str, expected| {
        let mut head = ResponseHead::default();
        assert_eq!(parse_response(input.as_bytes(), Other, &limits, &mut head), expected, "{input:?}");
    };
    check("HTTP/1.1 200 OK\r\na: b\r\nc: d\r\ne: f\r\n\r\n", Err(Malformed::TooManyFields));
    check(&format!("HTTP/1.1 200 OK\r\na: {}\r\n\r\n", "b".repeat(64)), Err(Malformed::HeadTooLarge));
    check(&format!("HTTP/1.1 200 OK\r\na: {}", "b".repeat(64)), Err(Malformed::HeadTooLarge));
    let many = Limits { header_count_max: 1024, ..Limits::default() };
    let input = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(1024));
    assert_eq!(parse_response(input.as_bytes(), Other, &many, &mut ResponseHead::default()), Ok(Some(input.len())));
}
