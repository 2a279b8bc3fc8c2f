//! HTTP/1.1 on the wire: heads, bodies, framing rules, limits and paths. No I/O, no clock, no randomness, no unsafe.
//!
//! What is refused is never repaired, and what is forwarded is written again from the parsed form.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unreachable)
)]

mod bytes;
pub mod chunked;
pub mod encode;
mod fields;
pub mod headers;
pub mod hop_by_hop;
mod known;
mod known_set;
pub mod malformed;
pub mod message;
pub mod path;
pub mod request;
pub mod response;
mod scan;
mod target;

pub use bytes::decimal;
pub use chunked::{ChunkedDecoder, ChunkedEvent, may_be_trailer};
pub use encode::{
    ConnectionToken, EncodeOptions, LAST_CHUNK, NameCase, Unencodable, encode_chunk_size, encode_request_head,
    encode_response_head, encode_trailers, reason_phrase,
};
pub use headers::{HeaderMap, HeaderName, Known};
pub use hop_by_hop::remove_hop_by_hop;
pub use known_set::KnownSet;
pub use malformed::Malformed;
pub use message::{BodyLength, Limits, RequestHead, RequestMethod, ResponseHead, Version};
pub use request::{RequestOptions, Underscores, is_known_method, parse_request, parse_request_from};
pub use response::{parse_response, parse_response_from};
pub use target::{is_authority, is_path};
