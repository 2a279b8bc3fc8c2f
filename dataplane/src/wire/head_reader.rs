//! Reads one message head: parsed in place when it came in one piece, which is nearly always, gathered otherwise.

use std::io;
use std::task::{Context, Poll, ready};

use torus_codec::Malformed;

use crate::transport::Transport;

/// Why no head came.
#[derive(Debug)]
pub enum HeadError {
    /// The peer closed; `partial` says whether a part of a head had come.
    Closed {
        /// Bytes of an unfinished head were received.
        partial: bool,
    },
    /// The socket failed.
    Io(io::Error),
    /// The bytes are no head that may be forwarded.
    Malformed(Malformed),
    /// The HTTP/2 stream was reset, or its connection ended.
    Stream(h2::Error),
}

/// Gathers the pieces of a head. One serves a connection for its whole life.
#[derive(Default)]
pub struct HeadReader {
    /// Pieces of an unfinished head.
    pending: Vec<u8>,
}

impl HeadReader {
    /// Whether a part of a head has come and the rest is awaited.
    pub fn is_partial(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Forgets a part of a head.
    pub fn clear(&mut self) {
        self.pending.clear();
    }

    /// The length in bytes of the head that `parse` accepted; what follows it stays in the socket.
    ///
    /// `parse` gets all bytes received so far and how many of them it has seen before, and returns the head's length, or `None` when
    /// it is unfinished.
    pub fn poll_head(
        &mut self,
        socket: &mut Transport,
        cx: &mut Context<'_>,
        mut parse: impl FnMut(&[u8], usize) -> Result<Option<usize>, Malformed>,
    ) -> Poll<Result<usize, HeadError>> {
        loop {
            let mut chunk = match ready!(socket.poll_recv(cx)) {
                Ok(Some(chunk)) => chunk,
                Ok(None) => return Poll::Ready(Err(HeadError::Closed { partial: self.is_partial() })),
                Err(error) => return Poll::Ready(Err(HeadError::Io(error))),
            };
            let before_bytes = self.pending.len();
            let parsed = if before_bytes == 0 {
                parse(&chunk, 0)
            } else {
                self.pending.extend_from_slice(&chunk);
                parse(&self.pending, before_bytes)
            };
            match parsed {
                Ok(Some(head_bytes)) => {
                    chunk.advance(head_bytes.saturating_sub(before_bytes).min(chunk.len()));
                    if !chunk.is_empty() {
                        socket.unread(chunk);
                    }
                    self.clear();
                    return Poll::Ready(Ok(head_bytes));
                }
                Ok(None) if before_bytes == 0 => self.pending.extend_from_slice(&chunk),
                Ok(None) => {}
                Err(malformed) => return Poll::Ready(Err(HeadError::Malformed(malformed))),
            }
        }
    }
}
