//! `envoy.filters.http.grpc_web`: browsers, which cannot read trailers, speak gRPC. Source: gRPC Web.
//!
//! A request of one of its four content types goes on as gRPC. The reply's trailers become the last frame of its body. Where the
//! client asks for text, both bodies are base64, in which padding may follow any message. A reply that is no gRPC, one of the proxy's
//! own for instance, is kept back, and its beginning becomes `grpc-message`.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use torus_codec::{BodyLength, HeaderMap, HeaderName, Known, RequestHead, ResponseHead};

use super::grpc::{GrpcMethod, GrpcStatsByName, MessageMeter, count_status};
use super::grpc_stats::is_grpc_reply;
use super::{FilterRefusal, Hold};
use crate::config::parse::ParseContext;
use crate::config::reject::Refused;
use crate::route::local_reply::write_grpc_message;
use crate::telemetry::counters::{Core, Stats};
use crate::telemetry::format::http_to_grpc;
use crate::telemetry::names::GrpcStat;
use crate::telemetry::registry::Registry;
use crate::telemetry::stream_info::StreamInfo;
use crate::wire::BodyData;

/// The filter, which has nothing to configure.
#[derive(Debug)]
pub struct GrpcWeb {
    accept_encoding: HeaderName,
}

/// One call.
pub struct GrpcWebRequest {
    core: Core,
    stats: Option<Arc<Stats<GrpcStat>>>,
    /// Base64 of the request that is no whole group of four yet.
    undecoded: Undecoded,
    is_text_request: bool,
    /// The reply's bytes that are no whole group of three yet.
    unencoded: Vec<u8>,
    is_text_reply: bool,
    messages: MessageMeter,
    /// The reply is no gRPC and is kept back.
    is_held: bool,
}

#[derive(Default)]
struct Undecoded {
    quad: [u8; 4],
    length: usize,
}

impl GrpcWeb {
    /// The filter; `context` stands at its message.
    pub fn new(context: &mut ParseContext) -> Result<Self, Refused> {
        let name = HeaderName::new("grpc-accept-encoding");
        Ok(Self { accept_encoding: name.ok_or_else(|| context.reject("", "is no field name"))? })
    }

    /// Begins a request, where it is gRPC Web: it goes on as gRPC.
    pub fn start(&self, core: Core, request: &mut RequestHead, info: &mut StreamInfo) -> Option<GrpcWebRequest> {
        let headers = &mut request.headers;
        headers.get_known(Known::Path)?;
        let is_text_request = is_text(headers.get_known(Known::ContentType)?)?;
        let is_text_reply = headers.get_known(Known::Accept).and_then(is_text) == Some(true);
        headers.remove_known(Known::ContentLength);
        headers.set_known(Known::ContentType, b"application/grpc");
        headers.set_known(Known::Te, b"trailers");
        if headers.get(&self.accept_encoding).is_none() {
            headers.append(&self.accept_encoding, b"identity");
        }
        if request.body != BodyLength::Empty {
            request.body = BodyLength::Chunked;
        }
        info.is_grpc_web = true;
        Some(GrpcWebRequest {
            core,
            stats: None,
            undecoded: Undecoded::default(),
            is_text_request,
            unencoded: Vec::new(),
            is_text_reply,
            messages: MessageMeter::default(),
            is_held: false,
        })
    }
}

impl GrpcWebRequest {
    pub(super) fn on_cluster(
        &mut self,
        stats: &mut GrpcStatsByName,
        registry: &Registry,
        cluster: &str,
        method: Option<GrpcMethod<'_>>,
    ) {
        self.stats = method.map(|method| stats.get(registry, cluster, "grpc-web", Some(method)));
    }

    pub(super) fn on_request_data(&mut self, data: BodyData) -> Result<BodyData, FilterRefusal> {
        if !self.is_text_request {
            return Ok(data);
        }
        let mut decoded = Vec::with_capacity(data.len() / 4 * 3 + 3);
        for byte in data.iter() {
            self.undecoded.push(*byte, &mut decoded).ok_or(BAD_DATA)?;
        }
        Ok(BodyData::Bytes(Bytes::from(decoded)))
    }

    pub(super) fn on_request_end(&mut self) -> Result<(), FilterRefusal> {
        if self.undecoded.length == 0 { Ok(()) } else { Err(BAD_LENGTH) }
    }

    pub(super) fn on_response(&mut self, response: &mut ResponseHead) -> Option<Hold> {
        self.count(&response.headers);
        let is_empty = response.body == BodyLength::Empty;
        let is_readable = is_grpc_reply(response)
            || response.status == 200 && response.headers.get_known(Known::ContentType).is_some_and(is_binary_grpc_web);
        self.mark(&mut response.headers);
        if !is_empty {
            response.body = BodyLength::Chunked;
        }
        self.is_held = !is_readable && !is_empty;
        self.is_held.then_some(Hold::First(MESSAGE_BYTES_MAX))
    }

    pub(super) fn on_response_data(&mut self, data: BodyData) -> BodyData {
        if !self.is_text_reply || self.is_held {
            return data;
        }
        let mut encoded = Vec::with_capacity(data.len() / 3 * 4 + 8);
        let mut rest: &[u8] = &data;
        while !rest.is_empty() {
            let (taken, ends) = self.messages.take(rest);
            let (piece, behind) = rest.split_at_checked(taken).unwrap_or((rest, &[]));
            self.encode(piece, ends, &mut encoded);
            rest = behind;
        }
        BodyData::Bytes(Bytes::from(encoded))
    }

    /// Makes a frame of the trailers. Source: gRPC Web, "Message framing".
    pub(super) fn on_response_end(&mut self, trailers: &mut HeaderMap) -> Option<BodyData> {
        let mut end = Vec::new();
        self.count(trailers);
        if !trailers.is_empty() && !self.is_held {
            end.extend_from_slice(&[TRAILER_FLAG, 0, 0, 0, 0]);
            for (name, value) in trailers.iter() {
                end.extend_from_slice(name);
                end.push(b':');
                end.extend_from_slice(value);
                end.extend_from_slice(b"\r\n");
            }
            let length = u32::try_from(end.len().saturating_sub(5)).unwrap_or(u32::MAX);
            for (place, byte) in end.iter_mut().skip(1).zip(length.to_be_bytes()) {
                *place = byte;
            }
            trailers.clear();
        }
        if self.is_text_reply && !self.is_held {
            let mut encoded = Vec::with_capacity(end.len() / 3 * 4 + 8);
            // A message that broke off ends here too.
            self.encode(&[], true, &mut encoded);
            self.encode(&end, true, &mut encoded);
            end = encoded;
        }
        (!end.is_empty()).then(|| BodyData::Bytes(Bytes::from(end)))
    }

    /// Says as `grpc-message` what a reply that is no gRPC says in its body.
    pub(super) fn on_held(&mut self, status: u16, headers: &mut HeaderMap, body: &mut Vec<u8>) {
        if !self.is_held {
            return;
        }
        let mut message = Vec::with_capacity(body.len());
        write_grpc_message(body, &mut message);
        headers.set_known(Known::GrpcMessage, &message);
        headers.set_known(Known::GrpcStatus, http_to_grpc(status).to_string().as_bytes());
        body.clear();
    }

    pub(super) fn on_local_reply(&mut self, status: u16, headers: &mut HeaderMap, body: &mut Vec<u8>) {
        self.count(headers);
        self.mark(headers);
        self.is_held = !body.is_empty();
        self.on_held(status, headers, body);
    }

    fn count(&self, fields: &HeaderMap) {
        if let Some(stats) = &self.stats {
            count_status(self.core, stats, fields);
        }
    }

    fn mark(&self, headers: &mut HeaderMap) {
        headers.remove_known(Known::ContentLength);
        let content_type: &[u8] = match self.is_text_reply {
            true => b"application/grpc-web-text+proto",
            false => b"application/grpc-web+proto",
        };
        headers.set_known(Known::ContentType, content_type);
    }

    fn encode(&mut self, piece: &[u8], ends: bool, encoded: &mut Vec<u8>) {
        self.unencoded.extend_from_slice(piece);
        let whole = if ends { self.unencoded.len() } else { self.unencoded.len() / 3 * 3 };
        let (ready, rest) = self.unencoded.split_at_checked(whole).unwrap_or_default();
        encoded.extend_from_slice(STANDARD.encode(ready).as_bytes());
        let rest = rest.to_vec();
        self.unencoded = rest;
    }
}

impl Undecoded {
    /// Adds a letter; `None` where the group that it completes is no base64.
    fn push(&mut self, letter: u8, decoded: &mut Vec<u8>) -> Option<()> {
        *self.quad.get_mut(self.length)? = letter;
        self.length += 1;
        if self.length == self.quad.len() {
            self.length = 0;
            let mut bytes = [0; 3];
            let count = STANDARD.decode_slice(self.quad, &mut bytes).ok()?;
            decoded.extend_from_slice(bytes.get(..count)?);
        }
        Some(())
    }
}

/// Whether a content type of gRPC Web is base64; `None` for any other.
fn is_text(content_type: &[u8]) -> Option<bool> {
    match content_type {
        b"application/grpc-web" | b"application/grpc-web+proto" => Some(false),
        b"application/grpc-web-text" | b"application/grpc-web-text+proto" => Some(true),
        _ => None,
    }
}

fn is_binary_grpc_web(content_type: &[u8]) -> bool {
    let end = content_type.iter().position(|byte| *byte == b';').unwrap_or(content_type.len());
    let name = content_type.get(..end).unwrap_or_default().trim_ascii_end();
    name.eq_ignore_ascii_case(b"application/grpc-web+proto") || name.eq_ignore_ascii_case(b"application/grpc-web")
}

/// Marks a frame of trailers. Source: gRPC Web, "Message framing".
const TRAILER_FLAG: u8 = 0x80;
/// How much of a reply becomes `grpc-message`, as in Envoy.
const MESSAGE_BYTES_MAX: usize = 16_384;
const BAD_TEXT: &str = "Bad gRPC-web request, invalid base64 data.";
const BAD_LENGTH: FilterRefusal =
    FilterRefusal { status: 400, body: BAD_TEXT, details: "grpc_base_64_decode_failed_bad_size" };
const BAD_DATA: FilterRefusal = FilterRefusal { status: 400, body: BAD_TEXT, details: "grpc_base_64_decode_failed" };

#[cfg(test)]
mod tests {
    use super::*;

    fn started(content_type: &str, accept: &str) -> GrpcWebRequest {
        let mut request = RequestHead::default();
        request.headers.append_known(Known::Path, b"/a.B/C");
        request.headers.append_known(Known::ContentType, content_type.as_bytes());
        request.headers.append_known(Known::Accept, accept.as_bytes());
        let filter = GrpcWeb::new(&mut ParseContext::new(1)).unwrap_or_else(|_| panic!("a field name"));
        filter.start(Core(0), &mut request, &mut StreamInfo::default()).unwrap()
    }

    #[test]
    fn base64_is_decoded_whatever_pieces_it_comes_in() {
        let check = |text: &str, expected: Result<&[u8], &str>| {
            for piece_bytes in [1, 3, 5, 100] {
                let mut running = started("application/grpc-web-text", "");
                let pieces = text.as_bytes().chunks(piece_bytes);
                let decoded: Result<Vec<Vec<u8>>, _> = pieces
                    .map(|piece| running.on_request_data(BodyData::Bytes(Bytes::copy_from_slice(piece))))
                    .map(|data| data.map(|data| data.to_vec()))
                    .collect();
                let decoded = decoded.map(|pieces| pieces.concat()).and_then(|data| {
                    running.on_request_end()?;
                    Ok(data)
                });
                assert_eq!(decoded.as_deref().map_err(|refusal| refusal.details), expected, "{text} by {piece_bytes}");
            }
        };
        check("AAAAAAMBAgM=", Ok(&[0, 0, 0, 0, 3, 1, 2, 3]));
        // Each message may be padded.
        check("AAAAAAA=AAAAAAEC", Ok(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2]));
        check("", Ok(&[]));
        check("AAAAA", Err("grpc_base_64_decode_failed_bad_size"));
        check("AAA*", Err("grpc_base_64_decode_failed"));
    }

    #[test]
    fn a_reply_in_text_has_whole_messages_and_its_trailers_last() {
        let message = [0, 0, 0, 0, 3, 1, 2, 3];
        for piece_bytes in [1, 3, 4, 8, 16] {
            let mut running = started("application/grpc-web", "application/grpc-web-text");
            let mut text = Vec::new();
            for piece in [message, message].concat().chunks(piece_bytes) {
                text.extend_from_slice(&running.on_response_data(BodyData::Bytes(Bytes::copy_from_slice(piece))));
            }
            assert_eq!(text, b"AAAAAAMBAgM=AAAAAAMBAgM=", "pieces of {piece_bytes}");
            let mut trailers = HeaderMap::default();
            trailers.append_known(Known::GrpcStatus, b"0");
            let end = running.on_response_end(&mut trailers).unwrap();
            assert_eq!(STANDARD.decode(&*end).unwrap(), b"\x80\0\0\0\x0fgrpc-status:0\r\n");
            assert!(trailers.is_empty());
        }
    }
}
