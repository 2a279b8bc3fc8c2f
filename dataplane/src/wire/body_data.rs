//! A piece of a message body, in the memory that it was received in.

use std::ops::Deref;

use bytes::{Buf, Bytes};
use torus_ring::{Chunk, Ring};

use crate::transport::Transport;

/// Body bytes: a leased buffer of the ring, or what the HTTP/2 codec cut out of a frame.
pub enum BodyData {
    /// Received by the ring.
    Chunk(Chunk),
    /// Payload of a DATA frame, or a copy.
    Bytes(Bytes),
}

impl BodyData {
    /// Splits the first `count` bytes off; all of them when there are fewer.
    #[must_use]
    pub fn split_to(&mut self, count: usize) -> Self {
        match self {
            Self::Chunk(chunk) => Self::Chunk(chunk.split_to(count)),
            Self::Bytes(bytes) => Self::Bytes(bytes.split_to(count.min(bytes.len()))),
        }
    }

    /// Queues the bytes on a socket. A leased buffer goes out as it is.
    pub fn write_to(self, ring: &Ring, socket: &mut Transport) {
        match self {
            Self::Chunk(chunk) => socket.write(chunk),
            Self::Bytes(bytes) => {
                let mut copy = ring.buffer();
                copy.extend_from_slice(&bytes);
                socket.write(copy);
            }
        }
    }
}

impl From<Chunk> for BodyData {
    fn from(chunk: Chunk) -> Self {
        Self::Chunk(chunk)
    }
}

impl Deref for BodyData {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Chunk(chunk) => chunk,
            Self::Bytes(bytes) => bytes,
        }
    }
}

impl Buf for BodyData {
    fn remaining(&self) -> usize {
        self.len()
    }

    fn chunk(&self) -> &[u8] {
        self
    }

    fn advance(&mut self, count: usize) {
        match self {
            Self::Chunk(chunk) => chunk.advance(count),
            Self::Bytes(bytes) => bytes.advance(count.min(bytes.len())),
        }
    }
}
