//! What must hold for any bytes whatever; the fuzz targets and the replay of their seeds share it.
#![allow(dead_code, reason = "each fuzz target uses one of the checks")]

use torus_codec::path::{EscapedSlashes, Outcome, PathOptions, normalize};
use torus_codec::*;

/// A request head is refused, or waited for, or means one thing to us, to another parser and behind us.
pub(crate) fn request(data: &[u8]) {
    let lenient = RequestOptions {
        accept_http_10: true,
        default_host: Some("default.test".into()),
        allow_chunked_length: true,
        allow_custom_methods: true,
        underscores: Underscores::Drop,
        ..RequestOptions::default()
    };
    for options in [RequestOptions::default(), lenient] {
        let mut head = RequestHead::default();
        let Ok(Some(length)) = parse_request(data, &options, &mut head) else { continue };
        let input = &data[..length];
        assert!(input.ends_with(b"\r\n\r\n"));
        let mut again = RequestHead::default();
        for cut in [1, length / 3, length / 2, length - 1] {
            assert_eq!(parse_request(&input[..cut], &options, &mut again), Ok(None), "cut at {cut}");
            assert_eq!(parse_request_from(input, cut, &options, &mut again), Ok(Some(length)), "cut at {cut}");
            assert_eq!(format!("{again:?}"), format!("{head:?}"));
        }
        let mut slots = [httparse::EMPTY_HEADER; 128];
        let mut other = httparse::Request::new(&mut slots);
        assert_eq!(other.parse(input), Ok(httparse::Status::Complete(length)));
        assert_eq!(other.method.map(str::as_bytes), head.headers.get_known(Known::Method));

        remove_hop_by_hop(&mut head.headers, false);
        let mut out = Vec::new();
        let plain = EncodeOptions::default();
        encode_request_head(&head.headers, head.body, ConnectionToken::None, &plain, &mut out).expect("it was parsed");
        // `*` is a path for OPTIONS only; written on it is parsed again with the same method.
        assert_eq!(parse_request(&out, &options, &mut again), Ok(Some(out.len())), "{}", out.escape_ascii());
        assert_eq!(again.body, head.body);
        let mut out_again = Vec::new();
        encode_request_head(&again.headers, again.body, ConnectionToken::None, &plain, &mut out_again).expect("it was");
        assert_eq!(out_again, out);
    }
}

/// A response head is refused, or waited for, or means one thing.
pub(crate) fn response(data: &[u8]) {
    let limits = Limits::default();
    for method in [RequestMethod::Other, RequestMethod::Head, RequestMethod::Connect] {
        let mut head = ResponseHead::default();
        let Ok(Some(length)) = parse_response(data, method, &limits, &mut head) else { continue };
        let input = &data[..length];
        assert!(input.ends_with(b"\r\n\r\n"));
        let mut again = ResponseHead::default();
        for cut in [1, length / 3, length / 2, length - 1] {
            assert_eq!(parse_response(&input[..cut], method, &limits, &mut again), Ok(None), "cut at {cut}");
            assert_eq!(parse_response_from(input, cut, method, &limits, &mut again), Ok(Some(length)), "cut at {cut}");
            assert_eq!(format!("{again:?}"), format!("{head:?}"));
        }
        let mut slots = [httparse::EMPTY_HEADER; 128];
        let mut other = httparse::Response::new(&mut slots);
        assert_eq!(other.parse(input), Ok(httparse::Status::Complete(length)));
        assert_eq!(other.code, Some(head.status));

        remove_hop_by_hop(&mut head.headers, false);
        let mut out = Vec::new();
        let options = EncodeOptions { request_method: method, ..EncodeOptions::default() };
        let encoded =
            encode_response_head(Version::Http11, &head.headers, head.body, ConnectionToken::None, &options, &mut out);
        let on_wire = encoded.expect("it was parsed");
        assert_eq!(parse_response(&out, method, &limits, &mut again), Ok(Some(out.len())), "{}", out.escape_ascii());
        assert_eq!((again.status, again.body), (head.status, on_wire));
    }
}

/// A chunked body is the same wherever the input is cut.
pub(crate) fn chunked(data: &[u8]) {
    let limits =
        Limits { chunk_extension_bytes_max: 64, trailer_bytes_max: 256, trailer_count_max: 4, ..Limits::default() };
    let decode = |step: usize| -> Result<(Vec<u8>, String, usize, bool), Malformed> {
        let mut decoder = ChunkedDecoder::new(&limits);
        let (mut body, mut trailers, mut at) = (Vec::new(), HeaderMap::default(), 0_usize);
        loop {
            let part = &data[at..data.len().min(at.saturating_add(step))];
            let (used, event) = decoder.decode(part, &mut trailers)?;
            at += used;
            match event {
                ChunkedEvent::Data(range) => body.extend_from_slice(&part[range]),
                ChunkedEvent::End => break,
                ChunkedEvent::NeedMore => assert_eq!(used, part.len()),
            }
            if at == data.len() {
                break;
            }
        }
        Ok((body, format!("{trailers:?}"), at, decoder.is_done()))
    };
    let whole = decode(usize::MAX);
    for step in [1, 2, 5] {
        assert_eq!(decode(step), whole, "{step} bytes at a time");
    }
}

/// A canonical path has no dot segment and stays as it is.
pub(crate) fn path(data: &[u8]) {
    let mut out = Vec::new();
    for merge_slashes in [false, true] {
        for escaped_slashes in [EscapedSlashes::Keep, EscapedSlashes::Reject, EscapedSlashes::UnescapeAndForward] {
            let options = PathOptions { normalize: true, merge_slashes, escaped_slashes };
            let canonical = match normalize(data, options, &mut out) {
                Ok(Outcome::Unchanged) => data.to_vec(),
                Ok(_) => out.clone(),
                Err(_) => continue,
            };
            if !data.starts_with(b"/") {
                assert_eq!(canonical, data);
                continue;
            }
            let path = canonical.split(|byte| *byte == b'?').next().unwrap_or_default();
            assert!(path.starts_with(b"/"), "{}", path.escape_ascii());
            for segment in path.split(|byte| *byte == b'/') {
                assert!(segment != b"." && segment != b"..", "{}", path.escape_ascii());
                assert!(!segment.starts_with(b"..;") && !segment.starts_with(b".;"), "{}", path.escape_ascii());
            }
            assert!(!merge_slashes || !path.windows(2).any(|pair| pair == b"//"), "{}", path.escape_ascii());
            let keep = PathOptions { escaped_slashes: EscapedSlashes::Keep, ..options };
            assert_eq!(normalize(&canonical, keep, &mut out), Ok(Outcome::Unchanged), "{}", canonical.escape_ascii());
        }
    }
}
