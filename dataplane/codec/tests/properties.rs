//! What holds for every message: parsing undoes writing, cuts do not matter, and nothing panics.

use proptest::collection::vec;
use proptest::prelude::*;
use torus_codec::*;

fn method() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"]).prop_map(String::from)
}

fn fields() -> impl Strategy<Value = Vec<(String, Vec<u8>)>> {
    let value = vec(prop_oneof![0x21..=0x7e_u8, 0x80..=0xff_u8, Just(b' '), Just(b'\t')], 0..30);
    let trimmed = value.prop_map(|value| value.trim_ascii().to_vec());
    vec(("x-[a-z0-9!#$%&'*+.^_`|~-]{1,20}", trimmed), 0..20)
}

fn body() -> impl Strategy<Value = BodyLength> {
    prop_oneof![Just(BodyLength::Empty), Just(BodyLength::Chunked), (1..=u64::MAX).prop_map(BodyLength::Length)]
}

fn lines(headers: &HeaderMap) -> Vec<(Vec<u8>, Vec<u8>)> {
    let own = headers.iter().filter(|(name, _)| *name != b"content-length");
    own.map(|(name, value)| (name.to_vec(), value.to_vec())).collect()
}

/// Body, trailers and length of a chunked message.
type Decoded = (Vec<u8>, Vec<(Vec<u8>, Vec<u8>)>, usize);

/// What a chunked message is that is cut at these places, or its fault.
fn decode(input: &[u8], cuts: &[usize]) -> Result<Decoded, Malformed> {
    let mut decoder = ChunkedDecoder::new(&Limits::default());
    let (mut body, mut trailers, mut at) = (Vec::new(), HeaderMap::default(), 0);
    for end in cuts.iter().copied().chain([input.len()]) {
        while at < end {
            let (used, event) = decoder.decode(&input[at..end], &mut trailers)?;
            match event {
                ChunkedEvent::Data(range) => body.extend_from_slice(&input[at..end][range]),
                ChunkedEvent::End => return Ok((body, lines(&trailers), at + used)),
                ChunkedEvent::NeedMore => assert_eq!(at + used, end),
            }
            at += used;
        }
    }
    Ok((body, lines(&trailers), usize::MAX))
}

/// Another parser, which is laxer, finds the same head in what ours accepted.
fn agrees_with_httparse(input: &[u8], head: &RequestHead) -> Result<(), TestCaseError> {
    let mut slots = [httparse::EMPTY_HEADER; 128];
    let mut other = httparse::Request::new(&mut slots);
    prop_assert_eq!(other.parse(input), Ok(httparse::Status::Complete(input.len())));
    prop_assert_eq!(other.method.map(str::as_bytes), head.headers.get_known(Known::Method));
    prop_assert_eq!(other.version == Some(1), head.version == Version::Http11);
    let kept = |name: &str| !["host", "transfer-encoding", "content-length"].contains(&name);
    let theirs = other.headers.iter().map(|field| (field.name.to_ascii_lowercase(), field.value.to_vec()));
    let theirs = theirs.filter(|(name, _)| kept(name)).collect::<Vec<_>>();
    let ours = head.headers.iter().map(|(name, value)| (String::from_utf8_lossy(name).into_owned(), value.to_vec()));
    let ours = ours.filter(|(name, _)| !name.starts_with(':') && kept(name)).collect::<Vec<_>>();
    prop_assert_eq!(ours, theirs);
    Ok(())
}

proptest! {
    #[test]
    fn requests_come_back(method in method(), path in "/[!-\"$-~]{0,40}", host in "[a-z0-9.-]{1,20}(:[0-9]{1,4})?", fields in fields(), body in body()) {
        let mut headers = HeaderMap::default();
        headers.append_known(Known::Method, method.as_bytes());
        headers.append_known(Known::Authority, host.as_bytes());
        headers.append_known(Known::Path, path.as_bytes());
        for (name, value) in &fields {
            headers.append_wire(name.as_bytes(), value);
        }
        for case in [NameCase::Lower, NameCase::ProperCase] {
            let mut out = Vec::new();
            let options = EncodeOptions { case, ..EncodeOptions::default() };
            encode_request_head(&headers, body, ConnectionToken::None, &options, &mut out).unwrap();
            let mut head = RequestHead::default();
            prop_assert_eq!(parse_request(&out, &RequestOptions::default(), &mut head), Ok(Some(out.len())));
            prop_assert_eq!(head.body, body);
            prop_assert_eq!(lines(&head.headers), lines(&headers));
            prop_assert!(head.keep_alive);
        }
    }

    #[test]
    fn responses_come_back(status in 200..=599_u16, fields in fields(), body in body()) {
        prop_assume!(status != 204 && status != 304);
        let mut headers = HeaderMap::default();
        headers.append_known(Known::Status, status.to_string().as_bytes());
        for (name, value) in &fields {
            headers.append_wire(name.as_bytes(), value);
        }
        let mut out = Vec::new();
        let on_wire = encode_response_head(Version::Http11, &headers, body, ConnectionToken::Close, &EncodeOptions::default(), &mut out);
        prop_assert_eq!(on_wire, Ok(body));
        headers.append_known(Known::Connection, b"close");
        let mut head = ResponseHead::default();
        prop_assert_eq!(parse_response(&out, RequestMethod::Other, &Limits::default(), &mut head), Ok(Some(out.len())));
        prop_assert_eq!((head.status, head.body, head.keep_alive), (status, body, false));
        prop_assert_eq!(lines(&head.headers), lines(&headers));
    }

    #[test]
    fn chunks_come_back_however_they_are_cut(
        chunks in vec(vec(any::<u8>(), 1..200), 0..8), trailers in fields(), cuts in vec(0..2_000_usize, 0..20),
    ) {
        let mut map = HeaderMap::default();
        for (name, value) in &trailers {
            map.append_wire(name.as_bytes(), value);
        }
        let mut out = Vec::new();
        for chunk in &chunks {
            encode_chunk_size(chunk.len(), &mut out);
            out.extend_from_slice(chunk);
            out.extend_from_slice(b"\r\n");
        }
        encode_trailers(&map, NameCase::Lower, &mut out).unwrap();
        let mut cuts = cuts.into_iter().map(|cut| cut.min(out.len())).collect::<Vec<_>>();
        cuts.sort_unstable();
        prop_assert_eq!(decode(&out, &cuts), Ok((chunks.concat(), lines(&map), out.len())));
    }

    #[test]
    fn cuts_do_not_change_what_chunks_mean(input in "[0-9a-f;=\"xX: \r\n]{0,60}", cuts in vec(0..60_usize, 0..6)) {
        let mut cuts = cuts.into_iter().map(|cut| cut.min(input.len())).collect::<Vec<_>>();
        cuts.sort_unstable();
        prop_assert_eq!(decode(input.as_bytes(), &cuts), decode(input.as_bytes(), &[]));
    }

    /// What is accepted can be written, and what was written is accepted and the same: there is one meaning, for us and behind us.
    #[test]
    fn accepted_requests_mean_the_same_twice(
        line in "(GET|POST|OPTIONS|CONNECT|get)( |  )(/[a-z%./?#]{0,8}|\\*|http://[a-z@:/]{0,8}|a:80)( |\t)HTTP/1\\.[01]",
        fields in vec("(Host|Content-Length|Transfer-Encoding|Connection|Upgrade|Expect|TE|X-Y) ?:[ a-z0-9,\t-]{0,12}(chunked|5|100-continue)?", 0..6),
        end in "(\r\n|\n)",
    ) {
        let input = [line.as_str(), &fields.join("\r\n"), "", ""].join(&end);
        let options = RequestOptions { accept_http_10: true, default_host: Some("d".into()), ..RequestOptions::default() };
        let mut head = RequestHead::default();
        let Ok(Some(length)) = parse_request(input.as_bytes(), &options, &mut head) else { return Ok(()) };
        prop_assert!(input[..length].ends_with("\r\n\r\n"));
        agrees_with_httparse(&input.as_bytes()[..length], &head)?;
        remove_hop_by_hop(&mut head.headers, false);
        let mut out = Vec::new();
        encode_request_head(&head.headers, head.body, ConnectionToken::None, &EncodeOptions::default(), &mut out).unwrap();
        let mut again = RequestHead::default();
        prop_assert_eq!(parse_request(&out, &options, &mut again), Ok(Some(out.len())));
        prop_assert_eq!(again.body, head.body);
        let mut out_again = Vec::new();
        encode_request_head(&again.headers, again.body, ConnectionToken::None, &EncodeOptions::default(), &mut out_again).unwrap();
        prop_assert_eq!(out_again, out);
    }

    /// Long and odd names and values, where the scan works in words of eight bytes.
    #[test]
    fn heads_are_as_another_parser_finds_them(
        target in "/[!-\"$-~]{0,70}",
        fields in vec(("[A-Za-z0-9!#$%&'*+.^_`|~-]{1,40}", "[ \t]{0,3}", vec(prop_oneof![0x20..=0x7e_u8, 0x80..=0xff_u8, Just(b'\t')], 0..80)), 0..12),
        cut in 0..4_000_usize,
    ) {
        let mut input = format!("GET {target} HTTP/1.1\r\nHost: a\r\n").into_bytes();
        for (name, blanks, value) in &fields {
            input.extend_from_slice(name.as_bytes());
            input.push(b':');
            input.extend_from_slice(blanks.as_bytes());
            input.extend_from_slice(value);
            input.extend_from_slice(b"\r\n");
        }
        input.extend_from_slice(b"\r\n");
        let mut head = RequestHead::default();
        let cut = cut.min(input.len() - 1);
        prop_assert_eq!(parse_request(&input[..cut], &RequestOptions::default(), &mut head), Ok(None));
        if let Ok(Some(length)) = parse_request_from(&input, cut, &RequestOptions::default(), &mut head) {
            prop_assert_eq!(length, input.len());
            agrees_with_httparse(&input, &head)?;
        } else {
            let known = |name: &str| ["host", "te", "expect"].contains(&name.to_ascii_lowercase().as_str());
            prop_assert!(fields.iter().any(|(name, ..)| known(name)), "refused: {:?}", input.escape_ascii().to_string());
        }
    }

    #[test]
    fn canonical_paths_stay_canonical(path in "/[a/.%2eEfF5cC\\\\;0]{0,24}(\\?[a/.%]{0,5})?", merge_slashes: bool) {
        for escaped_slashes in [path::EscapedSlashes::Keep, path::EscapedSlashes::UnescapeAndForward] {
            let options = path::PathOptions { normalize: true, merge_slashes, escaped_slashes: path::EscapedSlashes::Keep };
            let mut first = Vec::new();
            let with = path::PathOptions { escaped_slashes, ..options };
            let Ok(outcome) = path::normalize(path.as_bytes(), with, &mut first) else { continue };
            if outcome == path::Outcome::Unchanged {
                first = path.clone().into_bytes();
            }
            let only_path = first.split(|byte| *byte == b'?').next().unwrap();
            prop_assert!(first.starts_with(b"/"));
            prop_assert!(!only_path.split(|byte| *byte == b'/').any(|segment| segment == b".." || segment == b"."), "{:?}", first.escape_ascii().to_string());
            let mut second = Vec::new();
            prop_assert_eq!(path::normalize(&first, options, &mut second), Ok(path::Outcome::Unchanged), "{:?} {:?}", first.escape_ascii().to_string(), second.escape_ascii().to_string());
        }
    }
}
