//! Every request vector through the parser, the chunk decoder and the encoder, whole and byte by byte.

#[path = "../../../tests/vectors/requests/mod.rs"]
mod requests;
#[path = "../../../tests/vectors/responses.rs"]
mod responses;

use requests::{Expected, Vector, requests};
use torus_codec::*;

/// What the codec makes of a request: its head as forwarded, and the fault of head or body.
enum Read {
    Head(Malformed),
    Body(Malformed),
    Whole { forwarded: String, rest: usize },
    Partial,
}

fn read(bytes: &[u8], step: usize) -> Read {
    let options = RequestOptions::default();
    let mut head = RequestHead::default();
    let mut seen = 0;
    let length = loop {
        let end = (seen + step).min(bytes.len());
        match parse_request_from(&bytes[..end], seen, &options, &mut head) {
            Err(fault) => return Read::Head(fault),
            Ok(Some(length)) => break length,
            Ok(None) if end == bytes.len() => return Read::Partial,
            Ok(None) => seen = end,
        }
    };
    remove_hop_by_hop(&mut head.headers, false);
    let mut forwarded = Vec::new();
    let encoded =
        encode_request_head(&head.headers, head.body, ConnectionToken::None, &EncodeOptions::default(), &mut forwarded);
    encoded.expect("what was parsed can be written");
    let mut rest = &bytes[length..];
    match head.body {
        BodyLength::Empty => {}
        BodyLength::Length(length) => rest = &rest[length as usize..],
        BodyLength::Chunked => {
            let mut decoder = ChunkedDecoder::new(&options.limits);
            let mut trailers = HeaderMap::default();
            loop {
                let part = &rest[..rest.len().min(step)];
                match decoder.decode(part, &mut trailers) {
                    Err(fault) => return Read::Body(fault),
                    Ok((used, event)) => {
                        rest = &rest[used..];
                        match event {
                            ChunkedEvent::End => break,
                            ChunkedEvent::NeedMore if rest.is_empty() => return Read::Partial,
                            _ => {}
                        }
                    }
                }
            }
            encode_trailers(&trailers, NameCase::Lower, &mut forwarded).expect("trailers can be written");
        }
        BodyLength::UntilClose => panic!("a request has an end"),
    }
    Read::Whole { forwarded: String::from_utf8_lossy(&forwarded).into_owned(), rest: rest.len() }
}

/// What is wrong with a vector, read so many bytes at a time.
fn check(vector: &Vector, step: usize) -> Option<String> {
    let Vector { name, rule, bytes, expected } = vector;
    let wrong = match (read(bytes, step), *expected) {
        (Read::Head(fault), Expected::Refused(status)) | (Read::Body(fault), Expected::BodyRefused(status)) => {
            (fault.status() != status).then(|| format!("answers {}, not {status}: {fault}", fault.status()))
        }
        (Read::Whole { forwarded, rest }, Expected::Forwarded { has, lacks }) => {
            let missing = has.iter().find(|line| !forwarded.contains(**line));
            let present = lacks.iter().find(|text| forwarded.contains(**text));
            let wrong = missing.is_some() || present.is_some() || rest > 0;
            wrong.then(|| format!("lacks {missing:?}, has {present:?}, leaves {rest} bytes: {forwarded:?}"))
        }
        (Read::Head(fault) | Read::Body(fault), expected) => Some(format!("refused, not {expected:?}: {fault}")),
        (Read::Whole { forwarded, .. }, expected) => Some(format!("forwarded, not {expected:?}: {forwarded:?}")),
        (Read::Partial, expected) => Some(format!("waits, not {expected:?}")),
    };
    wrong.map(|wrong| format!("{name} ({rule}), {step} bytes at a time: {wrong}"))
}

#[test]
fn each_request_is_refused_or_means_one_thing() {
    let steps = [usize::MAX / 2, 1, 2, 3, 7];
    let wrong =
        steps.into_iter().flat_map(|step| requests().into_iter().filter_map(move |vector| check(&vector, step)));
    let wrong = wrong.collect::<Vec<_>>();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn there_are_enough_and_each_has_its_own_name() {
    let vectors = requests();
    let names = vectors.iter().map(|vector| vector.name).collect::<std::collections::HashSet<_>>();
    assert_eq!(names.len(), vectors.len());
    assert!(vectors.len() >= 220, "{}", vectors.len());
    assert!(vectors.iter().all(|vector| vector.rule.contains("RFC")));
}

/// What is wrong with how the codec reads a response, so many bytes at a time.
fn check_response(vector: &responses::Vector, step: usize) -> Option<String> {
    let responses::Vector { name, rule, method, bytes, expected } = vector;
    // What needs to know the request or the count of heads is not the codec's to refuse.
    if ["interim-without-end", "switching-unasked"].contains(name) {
        return None;
    }
    let limits = Limits::default();
    let mut head = ResponseHead::default();
    let mut start = 0;
    let fault = loop {
        let mut seen = 0;
        let length = loop {
            let end = (start + seen + step).min(bytes.len());
            let method = RequestMethod::of(method.as_bytes());
            match parse_response_from(&bytes[start..end], seen, method, &limits, &mut head) {
                Err(fault) => break Err(fault),
                Ok(Some(length)) => break Ok(length),
                Ok(None) if end == bytes.len() => return Some(format!("{name} ({rule}), by {step}: waits")),
                Ok(None) => seen = end - start,
            }
        };
        match length {
            Err(fault) => break Some(fault),
            Ok(length) => start += length,
        }
        if !head.is_informational() {
            break None;
        }
    };
    let body = || -> Result<(Vec<u8>, usize), Malformed> {
        let rest = &bytes[start..];
        match head.body {
            BodyLength::Empty => Ok((Vec::new(), rest.len())),
            BodyLength::Length(length) => Ok((rest[..length as usize].to_vec(), rest.len() - length as usize)),
            BodyLength::UntilClose => Ok((rest.to_vec(), 0)),
            BodyLength::Chunked => {
                let mut decoder = ChunkedDecoder::new(&limits);
                let (mut body, mut at) = (Vec::new(), 0);
                while !decoder.is_done() {
                    let part = &rest[at..(at + step).min(rest.len())];
                    let (used, event) = decoder.decode(part, &mut HeaderMap::default())?;
                    at += used;
                    if let ChunkedEvent::Data(range) = event {
                        body.extend_from_slice(&part[range]);
                    }
                }
                Ok((body, rest.len() - at))
            }
        }
    };
    use responses::Expected::*;
    let right = match (*expected, fault) {
        (Refused, fault) => fault.is_some(),
        (_, Some(_)) => false,
        (BodyRefused(status), None) => head.status == status && body().is_err(),
        (Poisoned(status, text) | Reused(status, text), None) => {
            let read = body();
            let reusable = head.keep_alive && read.as_ref().is_ok_and(|(_, rest)| *rest == 0);
            let same = head.status == status && read.is_ok_and(|(body, _)| body == text.as_bytes());
            same && reusable == matches!(expected, Reused(..))
        }
    };
    (!right).then(|| format!("{name} ({rule}), by {step}: {fault:?} {head:?}, not {expected:?}"))
}

#[test]
fn each_response_is_refused_or_ends_where_it_should() {
    let steps = [usize::MAX / 2, 1, 3];
    let wrong = |step| responses::responses().into_iter().filter_map(move |vector| check_response(&vector, step));
    let wrong = steps.into_iter().flat_map(wrong).collect::<Vec<_>>();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
