use super::*;

fn parse(input: &str, options: &RequestOptions) -> Result<Option<RequestHead>, Malformed> {
    let mut head = RequestHead::default();
    let length = parse_request(input.as_bytes(), options, &mut head)?;
    Ok(length.map(|length| {
        assert_eq!(length, input.len());
        head
    }))
}

fn shown(head: &RequestHead) -> String {
    let line = |(name, value)| format!("{}={}", String::from_utf8_lossy(name), String::from_utf8_lossy(value));
    head.headers.iter().map(line).collect::<Vec<_>>().join(" ")
}

/// A request line with these lines, and its fields.
fn check(line: &str, lines: &str, expected: &str) {
    let head = parse(&format!("{line}\r\n{lines}\r\n"), &RequestOptions::default()).unwrap().unwrap();
    assert_eq!(shown(&head), expected, "{line} {lines:?}");
}

#[test]
fn the_start_line_becomes_pseudo_headers() {
    let host = "Host: a.test\r\n";
    check("GET /b?c HTTP/1.1", host, ":method=GET :authority=a.test :path=/b?c");
    check("GET / HTTP/1.1", "X: 1\r\nHost: a.test:80\r\nY: 2\r\n", ":method=GET :authority=a.test:80 :path=/ x=1 y=2");
    check("GET HTTP://b.test/c HTTP/1.1", host, ":method=GET :scheme=http :authority=b.test :path=/c");
    check("GET https://b.test:1 HTTP/1.1", host, ":method=GET :scheme=https :authority=b.test:1 :path=/");
    check("GET http://b.test?c HTTP/1.1", host, ":method=GET :scheme=http :authority=b.test :path=/?c");
    check("OPTIONS http://b.test HTTP/1.1", host, ":method=OPTIONS :scheme=http :authority=b.test :path=*");
    check("OPTIONS * HTTP/1.1", host, ":method=OPTIONS :authority=a.test :path=*");
    check("CONNECT b.test:443 HTTP/1.1", host, ":method=CONNECT :authority=b.test:443");
    check(
        "CONNECT [::1]:443 HTTP/1.1",
        "Host: [::1]:443\r\nContent-Length: 0\r\n",
        ":method=CONNECT :authority=[::1]:443",
    );
}

#[test]
fn fields_keep_their_order_in_lower_case() {
    check(
        "POST / HTTP/1.1",
        "B: 1\r\nHOST: a\r\nX-Own-Name-That-Is-Long: \t2 3\t \r\nEmpty:\r\nblank: \t \r\nB:4\r\ncontent-LENGTH: 007\r\n",
        ":method=POST :authority=a :path=/ b=1 x-own-name-that-is-long=2 3 empty= blank= b=4 content-length=7",
    );
    check("POST / HTTP/1.1", "Host: a\r\nTransfer-Encoding: chunked\r\n", ":method=POST :authority=a :path=/");
}

#[test]
fn what_the_head_says_of_the_connection() {
    let flags = |lines: &str| {
        let head =
            parse(&format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n"), &RequestOptions::default()).unwrap().unwrap();
        (head.keep_alive, head.upgrade, head.expect_continue, head.body)
    };
    use BodyLength::{Chunked, Empty, Length};
    assert_eq!(flags(""), (true, false, false, Empty));
    assert_eq!(flags("Connection: Close\r\n"), (false, false, false, Empty));
    assert_eq!(flags("Connection: keep-alive\r\nConnection: close\r\n"), (false, false, false, Empty));
    assert_eq!(flags("Connection: Upgrade\r\nUpgrade: websocket\r\n"), (true, true, false, Empty));
    assert_eq!(flags("Connection: Upgrade\r\nUpgrade: H2C\r\n"), (true, false, false, Empty));
    assert_eq!(flags("Upgrade: websocket\r\n"), (true, false, false, Empty));
    assert_eq!(flags("Connection: upgrade\r\n"), (true, false, false, Empty));
    assert_eq!(flags("Expect: 100-Continue\r\nContent-Length: 5\r\n"), (true, false, true, Length(5)));
    assert_eq!(flags("Transfer-Encoding: Chunked\r\n"), (true, false, false, Chunked));
    assert_eq!(flags("Content-Length: 0\r\n"), (true, false, false, Empty));
}

#[test]
fn http_10_is_served_when_configured() {
    let options = RequestOptions { accept_http_10: true, ..RequestOptions::default() };
    let named = RequestOptions { default_host: Some("d.test".into()), ..options.clone() };
    let input = |lines: &str| format!("GET / HTTP/1.0\r\n{lines}\r\n");
    assert_eq!(parse(&input("Host: a\r\n"), &RequestOptions::default()).err(), Some(Malformed::VersionTooLow));
    assert_eq!(parse(&input(""), &options).err(), Some(Malformed::HostMissing));
    assert_eq!(shown(&parse(&input(""), &named).unwrap().unwrap()), ":method=GET :authority=d.test :path=/");
    assert_eq!(shown(&parse(&input("Host: a\r\n"), &named).unwrap().unwrap()), ":method=GET :authority=a :path=/");
    let keep_alive = |lines| parse(&input(lines), &named).unwrap().unwrap().keep_alive;
    assert!(!keep_alive(""));
    assert!(keep_alive("Connection: keep-alive\r\n"));
    assert!(!keep_alive("Connection: keep-alive, close\r\n"));
    let expect =
        parse(&input("Expect: 100-continue\r\nUpgrade: a\r\nConnection: upgrade\r\n"), &named).unwrap().unwrap();
    assert!(!expect.expect_continue && !expect.upgrade, "RFC 9110 §10.1.1, §7.8");
    assert_eq!(
        parse(&input("Transfer-Encoding: chunked\r\n"), &named).err(),
        Some(Malformed::TransferEncodingInHttp10)
    );
    assert_eq!(parse("GET / HTTP/2.0\r\n\r\n", &named).err(), Some(Malformed::Version));
    assert_eq!(parse("GET /\r\n\r\n", &named).err(), Some(Malformed::Version));
}

#[test]
fn options_change_what_is_refused() {
    let default = RequestOptions::default;
    let check = |input: &str, options: RequestOptions, expected: Result<(), Malformed>| {
        assert_eq!(parse(input, &options).map(|head| assert!(head.is_some())), expected, "{input:?}");
    };
    let absolute = "GET https://a/ HTTP/1.1\r\nHost: a\r\n\r\n";
    check(absolute, default(), Ok(()));
    check(absolute, RequestOptions { allow_absolute_url: false, ..default() }, Err(Malformed::TargetForm));
    check(absolute, RequestOptions { refuse_https_target: true, ..default() }, Err(Malformed::SchemeOnPlaintext));
    let brew = "BREW / HTTP/1.1\r\nHost: a\r\n\r\n";
    check(brew, default(), Err(Malformed::Method));
    check(brew, RequestOptions { allow_custom_methods: true, ..default() }, Ok(()));
    let underscore = "GET / HTTP/1.1\r\nHost: a\r\nX_Y: z\r\n\r\n";
    check(underscore, default(), Ok(()));
    check(underscore, RequestOptions { underscores: Underscores::Reject, ..default() }, Err(Malformed::Underscore));
    let head = parse(underscore, &RequestOptions { underscores: Underscores::Drop, ..default() }).unwrap().unwrap();
    assert_eq!((shown(&head).as_str(), head.dropped_underscore_count), (":method=GET :authority=a :path=/", 1));
    let both = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n";
    check(both, default(), Err(Malformed::LengthConflict));
    let head = parse(both, &RequestOptions { allow_chunked_length: true, ..default() }).unwrap().unwrap();
    assert_eq!((shown(&head).as_str(), head.body), (":method=POST :authority=a :path=/", BodyLength::Chunked));
    assert!(!head.keep_alive, "RFC 9112 §6.1");
}

#[test]
fn limits_are_exact() {
    let head = |target: usize, count: usize| {
        format!("GET /{} HTTP/1.1\r\nHost: a\r\n{}\r\n", "t".repeat(target - 1), "x: y\r\n".repeat(count - 1))
    };
    let limits = Limits { header_bytes_max: 200, header_count_max: 4, target_bytes_max: 20, ..Limits::default() };
    let options = RequestOptions { limits, ..RequestOptions::default() };
    assert!(parse(&head(20, 4), &options).unwrap().is_some());
    assert_eq!(parse(&head(21, 4), &options).err(), Some(Malformed::TargetTooLong));
    assert_eq!(parse(&head(20, 5), &options).err(), Some(Malformed::TooManyFields));
    let padded = |value: usize| format!("GET / HTTP/1.1\r\nHost: a\r\nx: {}\r\n\r\n", "y".repeat(value));
    let most = 200 - padded(0).len();
    assert!(parse(&padded(most), &options).unwrap().is_some());
    assert_eq!(parse(&padded(most + 1), &options).err(), Some(Malformed::HeadTooLarge));
    let cut = |input: &str, end: usize| parse_request(&input.as_bytes()[..end], &options, &mut RequestHead::default());
    assert_eq!(cut(&padded(500), 200), Ok(None));
    assert_eq!(cut(&padded(500), 201), Err(Malformed::HeadTooLarge));
}

#[test]
fn nothing_of_an_earlier_head_is_left() {
    let options = RequestOptions::default();
    let mut head = RequestHead::default();
    let first = "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\nConnection: upgrade, close\r\nUpgrade: b\r\n\r\n";
    parse_request(first.as_bytes(), &options, &mut head).unwrap().unwrap();
    parse_request(b"GET /c HTTP/1.1\r\nHost: d\r\n\r\n", &options, &mut head).unwrap().unwrap();
    assert_eq!(shown(&head), ":method=GET :authority=d :path=/c");
    assert_eq!(
        (head.keep_alive, head.upgrade, head.expect_continue, head.body),
        (true, false, false, BodyLength::Empty)
    );
    assert_eq!(head.headers.get_known(Known::Upgrade), None);
}

#[test]
fn every_reason_has_a_status_and_cites_its_rule() {
    for fault in Malformed::ALL {
        assert!([400, 403, 413, 414, 417, 426, 431, 501, 502, 505].contains(&fault.status()), "{fault:?}");
        assert!(!fault.details().is_empty());
        assert!(fault.to_string().contains("RFC") || *fault == Malformed::Underscore, "{fault:?}: {fault}");
    }
}
