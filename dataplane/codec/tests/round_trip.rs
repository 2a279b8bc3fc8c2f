//! What was parsed is written so that it parses to the same.
use torus_codec::*;

#[test]
fn a_request_is_forwarded_from_its_parsed_form() {
    let input = b"POST /a?b=c HTTP/1.1\r\nHost: example.com:80\r\nUser-Agent:   curl/8\t\r\nX-Empty:\r\nContent-Length: 003\r\n\
        Connection: keep-alive, X-Gone\r\nX-Gone: 1\r\nTE: trailers, deflate\r\nCookie: a=b\r\n\r\nabc";
    let mut head = RequestHead::default();
    let length = parse_request(input, &RequestOptions::default(), &mut head).unwrap().unwrap();
    assert_eq!(&input[length..], b"abc");
    assert_eq!(head.body, BodyLength::Length(3));
    assert!(head.keep_alive);
    remove_hop_by_hop(&mut head.headers, false);
    let mut out = Vec::new();
    let options = EncodeOptions::default();
    encode_request_head(&head.headers, head.body, ConnectionToken::None, &options, &mut out).unwrap();
    let expected = "POST /a?b=c HTTP/1.1\r\nhost: example.com:80\r\nuser-agent: curl/8\r\nx-empty: \r\ncontent-length: 3\r\n\
        te: trailers\r\ncookie: a=b\r\n\r\n";
    assert_eq!(String::from_utf8(out).unwrap(), expected);
}

#[test]
fn a_response_without_length_becomes_chunked() {
    let input = b"HTTP/1.1 200 Fine\r\nServer: x\r\n\r\nabc";
    let mut head = ResponseHead::default();
    let length = parse_response(input, RequestMethod::Other, &Limits::default(), &mut head).unwrap().unwrap();
    assert_eq!(&input[length..], b"abc");
    assert_eq!(head.body, BodyLength::UntilClose);
    assert!(!head.keep_alive);
    let mut out = Vec::new();
    let options = EncodeOptions::default();
    let on_wire =
        encode_response_head(Version::Http11, &head.headers, head.body, ConnectionToken::None, &options, &mut out);
    assert_eq!(on_wire, Ok(BodyLength::Chunked));
    assert_eq!(String::from_utf8(out).unwrap(), "HTTP/1.1 200 OK\r\nserver: x\r\ntransfer-encoding: chunked\r\n\r\n");
}
