//! Writes one message body in the framing that its head announced.

use torus_codec::{BodyLength, HeaderMap, LAST_CHUNK, NameCase, encode_chunk_size, encode_trailers};
use torus_ring::Ring;

use super::BodyData;
use crate::transport::Transport;

/// The framing of a body being written. Source: RFC 9112 §6.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BodyWriter {
    /// No body: nothing may be written.
    #[default]
    Empty,
    /// Bytes as they are, for `Content-Length` and for bodies that end with the connection.
    Plain,
    /// Chunked transfer coding.
    Chunked,
}

impl BodyWriter {
    /// The writer for a body of `length`.
    pub fn new(length: BodyLength) -> Self {
        match length {
            BodyLength::Empty => Self::Empty,
            BodyLength::Length(_) | BodyLength::UntilClose => Self::Plain,
            BodyLength::Chunked => Self::Chunked,
        }
    }

    /// Queues body bytes; the received buffer itself goes out. How many bytes went onto the wire.
    pub fn write(self, ring: &Ring, socket: &mut Transport, data: BodyData) -> usize {
        let data_bytes = data.len();
        match self {
            Self::Empty => 0,
            Self::Plain => {
                data.write_to(ring, socket);
                data_bytes
            }
            Self::Chunked => {
                let mut size = ring.buffer();
                encode_chunk_size(data_bytes, &mut size);
                let framing_bytes = size.len() + 2;
                socket.write(size);
                data.write_to(ring, socket);
                socket.write(&b"\r\n"[..]);
                data_bytes + framing_bytes
            }
        }
    }

    /// Queues a copy of `data`. How many bytes went onto the wire.
    pub fn write_slice(self, ring: &Ring, socket: &mut Transport, data: &[u8]) -> usize {
        let mut copy = ring.buffer();
        match self {
            Self::Empty => return 0,
            Self::Plain => copy.extend_from_slice(data),
            Self::Chunked => {
                encode_chunk_size(data.len(), &mut copy);
                copy.extend_from_slice(data);
                copy.extend_from_slice(b"\r\n");
            }
        }
        let wire_bytes = copy.len();
        socket.write(copy);
        wire_bytes
    }

    /// Queues the end of the body. How many bytes went onto the wire.
    pub fn finish(self, ring: &Ring, socket: &mut Transport, trailers: &HeaderMap, case: NameCase) -> usize {
        match self {
            Self::Empty | Self::Plain => 0,
            Self::Chunked if trailers.is_empty() => {
                socket.write(LAST_CHUNK);
                LAST_CHUNK.len()
            }
            Self::Chunked => {
                let mut end = ring.buffer();
                // Trailers that can't be written are left out: the body itself is complete.
                if encode_trailers(trailers, case, &mut end).is_err() {
                    end.extend_from_slice(LAST_CHUNK);
                }
                let end_bytes = end.len();
                socket.write(end);
                end_bytes
            }
        }
    }
}
