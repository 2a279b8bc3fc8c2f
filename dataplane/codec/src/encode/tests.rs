use super::*;

fn map(fields: &[(&str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::default();
    for (name, value) in fields {
        map.append_wire(name.as_bytes(), value.as_bytes());
    }
    map
}

const GET: [(&str, &str); 4] = [(":method", "GET"), (":scheme", "http"), (":authority", "a.test"), (":path", "/b")];

fn request(fields: &[(&str, &str)], body: BodyLength, connection: ConnectionToken) -> Result<String, Unencodable> {
    let mut out = b"before ".to_vec();
    let options = EncodeOptions::default();
    let encoded = encode_request_head(&map(fields), body, connection, &options, &mut out);
    let text = String::from_utf8(out).unwrap();
    let head = text.strip_prefix("before ").expect("what was there stays").to_owned();
    assert!(encoded.is_ok() || head.is_empty(), "{head:?} is left behind");
    encoded.map(|()| head)
}

/// A request with these fields after `host`.
fn check(method: &str, fields: &[(&str, &str)], body: BodyLength, expected: &str) {
    let mut all = GET.to_vec();
    all[0].1 = method;
    all.extend_from_slice(fields);
    let expected = format!("{method} /b HTTP/1.1\r\nhost: a.test\r\n{expected}\r\n");
    assert_eq!(request(&all, body, ConnectionToken::None), Ok(expected));
}

#[test]
fn the_body_decides_the_framing_fields() {
    use BodyLength::*;
    check("GET", &[], Empty, "");
    check("DELETE", &[], Empty, "");
    check("POST", &[], Empty, "content-length: 0\r\n");
    check("PUT", &[("a", "b")], Empty, "a: b\r\ncontent-length: 0\r\n");
    check("GET", &[("content-length", "0"), ("a", "b")], Empty, "content-length: 0\r\na: b\r\n");
    check("GET", &[("content-length", "7")], Empty, "content-length: 0\r\n");
    check("POST", &[("content-length", "7"), ("a", "b")], Length(5), "content-length: 5\r\na: b\r\n");
    check("POST", &[("content-length", "5"), ("content-length", "5")], Length(5), "content-length: 5\r\n");
    check("POST", &[], Length(u64::MAX), "content-length: 18446744073709551615\r\n");
    check("POST", &[("content-length", "5"), ("a", "b")], Chunked, "a: b\r\ntransfer-encoding: chunked\r\n");
    check("GET", &[("transfer-encoding", "gzip")], Empty, "");
    assert_eq!(request(&GET, UntilClose, ConnectionToken::None), Err(Unencodable::BodyLength));
}

#[test]
fn fields_of_the_connection_are_never_written() {
    let fields = [
        ("connection", "x"),
        ("keep-alive", "5"),
        ("proxy-connection", "close"),
        ("upgrade", "websocket"),
        ("host", "b"),
        ("a", "b"),
    ];
    let all = [GET.as_slice(), &fields].concat();
    let check = |connection, expected: &str| {
        let expected = format!("GET /b HTTP/1.1\r\nhost: a.test\r\n{expected}\r\n");
        assert_eq!(request(&all, BodyLength::Empty, connection), Ok(expected));
    };
    check(ConnectionToken::None, "a: b\r\n");
    check(ConnectionToken::Close, "a: b\r\nconnection: close\r\n");
    check(ConnectionToken::KeepAlive, "a: b\r\nconnection: keep-alive\r\n");
    check(ConnectionToken::Upgrade, "upgrade: websocket\r\na: b\r\nconnection: upgrade\r\n");
}

#[test]
fn what_would_change_the_message_is_refused() {
    let refused = |fields: &[(&str, &str)], fault| {
        assert_eq!(request(fields, BodyLength::Empty, ConnectionToken::None), Err(fault), "{fields:?}");
    };
    let with = |index: usize, value: &'static str| {
        let mut all = GET;
        all[index].1 = value;
        all
    };
    for method in ["", "G T", "GET\r\n", "G:T"] {
        refused(&with(0, method), Unencodable::StartLine);
    }
    for authority in ["a b", "a\r\nb: c", "a/b", "a\0", "u@a", "a,b"] {
        refused(&with(2, authority), Unencodable::StartLine);
    }
    for path in ["", "/a b", "/a\r\nb: c", "/a\0", "/a#b", "/é"] {
        refused(&with(3, path), Unencodable::StartLine);
    }
    refused(&GET[..3], Unencodable::StartLine);
    for value in ["a\r\nb: c", "a\nb", "a\rb", "\0", "\x7f"] {
        refused(&[GET.as_slice(), &[("x", value)]].concat(), Unencodable::FieldValue);
        refused(&[GET.as_slice(), &[("via", value)]].concat(), Unencodable::FieldValue);
    }
    for name in ["a b", "a:b", "", "a\r\nb", ":other", "é"] {
        refused(&[GET.as_slice(), &[(name, "x")]].concat(), Unencodable::FieldName);
    }
}

#[test]
fn connect_has_its_authority_as_target() {
    let fields = [(":method", "CONNECT"), (":authority", "a.test:443")];
    let head = "CONNECT a.test:443 HTTP/1.1\r\nhost: a.test:443\r\n\r\n";
    assert_eq!(request(&fields, BodyLength::Empty, ConnectionToken::None).as_deref(), Ok(head));
}

#[test]
fn names_can_be_written_in_proper_case() {
    let options = EncodeOptions { case: NameCase::ProperCase, ..EncodeOptions::default() };
    let mut out = Vec::new();
    let headers = map(&[GET.as_slice(), &[("x-request-id", "a-b"), ("a_b1c", ""), ("content-length", "1")]].concat());
    encode_request_head(&headers, BodyLength::Length(1), ConnectionToken::Close, &options, &mut out).unwrap();
    let expected = "GET /b HTTP/1.1\r\nHost: a.test\r\nX-Request-Id: a-b\r\nA_B1c: \r\nContent-Length: 1\r\nConnection: close\r\n\r\n";
    assert_eq!(String::from_utf8(out).unwrap(), expected);
}

#[test]
fn parsed_lines_are_written_around_what_was_changed() {
    let input = b"GET /b HTTP/1.1\r\nHost: a.test\r\nX-One: 1\r\nX-Two:2\r\nVia: x\r\nX-Three: 3 \r\nX-Four: 4\r\nX-Five: 5\r\n\r\n";
    let mut head = crate::RequestHead::default();
    crate::parse_request(input, &crate::RequestOptions::default(), &mut head).unwrap().unwrap();
    head.headers.set_known(Known::Via, b"y");
    head.headers.remove(&crate::HeaderName::new("x-four").unwrap());
    head.headers.append_known(Known::XRequestId, b"z");
    let mut out = Vec::new();
    encode_request_head(&head.headers, head.body, ConnectionToken::None, &EncodeOptions::default(), &mut out).unwrap();
    let expected = "GET /b HTTP/1.1\r\nhost: a.test\r\nx-one: 1\r\nx-two: 2\r\nvia: y\r\nx-three: 3\r\nx-five: 5\r\nx-request-id: z\r\n\r\n";
    assert_eq!(String::from_utf8(out).unwrap(), expected);
}

/// A response with these fields; what is written after the status line, and how the body is framed.
fn check_response(
    version: Version,
    method: RequestMethod,
    status: &str,
    length: Option<&str>,
    body: BodyLength,
    expected: (&str, BodyLength),
) {
    let mut fields = vec![(":status", status)];
    fields.extend(length.map(|length| ("content-length", length)));
    let options = EncodeOptions { request_method: method, ..EncodeOptions::default() };
    let mut out = Vec::new();
    let on_wire = encode_response_head(version, &map(&fields), body, ConnectionToken::None, &options, &mut out);
    let text = String::from_utf8(out).unwrap();
    let (_, fields) = text.split_once("\r\n").unwrap();
    assert_eq!((fields, on_wire), (format!("{}\r\n", expected.0).as_str(), Ok(expected.1)), "{text:?}");
}

#[test]
fn responses_are_framed_for_their_client() {
    use BodyLength::*;
    use RequestMethod::{Connect, Head, Other};
    use Version::{Http10, Http11};
    check_response(Http11, Other, "200", None, Empty, ("content-length: 0\r\n", Empty));
    check_response(Http11, Other, "200", Some("9"), Length(5), ("content-length: 5\r\n", Length(5)));
    check_response(Http11, Other, "200", Some("9"), Chunked, ("transfer-encoding: chunked\r\n", Chunked));
    check_response(Http11, Other, "200", None, UntilClose, ("transfer-encoding: chunked\r\n", Chunked));
    check_response(Http10, Other, "200", None, Chunked, ("connection: close\r\n", UntilClose));
    check_response(Http10, Other, "200", None, Length(5), ("content-length: 5\r\n", Length(5)));
    check_response(Http11, Head, "200", Some("5"), Empty, ("content-length: 5\r\n", Empty));
    check_response(Http11, Head, "200", None, Empty, ("transfer-encoding: chunked\r\n", Empty));
    check_response(Http10, Head, "200", None, Empty, ("", Empty));
    check_response(Http11, Other, "304", Some("5"), Empty, ("content-length: 5\r\n", Empty));
    check_response(Http11, Other, "304", None, Empty, ("", Empty));
    check_response(Http11, Other, "204", Some("5"), Empty, ("", Empty));
    check_response(Http11, Other, "103", Some("5"), Empty, ("", Empty));
    check_response(Http11, Other, "101", None, Empty, ("", Empty));
    check_response(Http11, Connect, "200", Some("5"), Empty, ("", Empty));
    check_response(Http11, Connect, "403", None, Length(5), ("content-length: 5\r\n", Length(5)));
}

#[test]
fn status_lines_have_the_registered_reason() {
    let line = |version, status: &str| {
        let mut out = Vec::new();
        let headers = map(&[(":status", status)]);
        encode_response_head(
            version,
            &headers,
            BodyLength::Empty,
            ConnectionToken::None,
            &EncodeOptions::default(),
            &mut out,
        )?;
        Ok(String::from_utf8(out).unwrap().split("\r\n").next().unwrap().to_owned())
    };
    assert_eq!(line(Version::Http11, "200").as_deref(), Ok("HTTP/1.1 200 OK"));
    assert_eq!(line(Version::Http10, "503").as_deref(), Ok("HTTP/1.0 503 Service Unavailable"));
    assert_eq!(line(Version::Http11, "299").as_deref(), Ok("HTTP/1.1 299 Unknown"));
    for status in ["", "20", "2000", "099", "abc", "+20", "2 0"] {
        assert_eq!(line(Version::Http11, status), Err(Unencodable::StartLine), "{status}");
    }
}

#[test]
fn chunk_sizes_are_hexadecimal() {
    let size = |length| {
        let mut out = Vec::new();
        encode_chunk_size(length, &mut out);
        String::from_utf8(out).unwrap()
    };
    for length in [1, 9, 10, 15, 16, 255, 256, 4096, 65_535, 65_536, usize::MAX] {
        assert_eq!(size(length), format!("{length:x}\r\n"));
    }
}

#[test]
fn trailers_that_frame_or_route_are_left_out() {
    let mut out = Vec::new();
    let trailers = map(&[("grpc-status", "0"), ("content-length", "5"), (":path", "/"), ("host", "a"), ("x-sum", "1")]);
    assert_eq!(encode_trailers(&trailers, NameCase::Lower, &mut out), Ok(()));
    assert_eq!(String::from_utf8(out).unwrap(), "0\r\ngrpc-status: 0\r\nx-sum: 1\r\n\r\n");
    let mut out = b"kept".to_vec();
    assert_eq!(encode_trailers(&map(&[("x", "a\r\n\r\n")]), NameCase::Lower, &mut out), Err(Unencodable::FieldValue));
    assert_eq!(out, b"kept");
}
