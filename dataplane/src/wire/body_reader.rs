//! Reads one message body: its data as leased chunks, without framing, and its trailers.

use std::io;
use std::task::{Context, Poll, ready};

use super::BodyData;
use crate::transport::Transport;
use torus_codec::{BodyLength, ChunkedDecoder, ChunkedEvent, HeaderMap, Malformed};

/// Why a body ended before its end.
#[derive(Debug)]
pub enum BodyError {
    /// The peer closed before the last byte.
    Truncated,
    /// The socket failed.
    Io(io::Error),
    /// Chunk framing or trailers are wrong.
    Malformed(Malformed),
    /// The HTTP/2 stream was reset, or its connection ended.
    Stream(h2::Error),
}

/// What came next.
pub enum BodyEvent {
    /// Body bytes, never empty.
    Data(BodyData),
    /// The body is complete; trailers are in the map given to [`BodyReader::poll_next`].
    End,
}

/// One body. Source: RFC 9112 §6.3.
#[derive(Default)]
pub enum BodyReader {
    /// Nothing (more) to read.
    #[default]
    Done,
    /// This many bytes are left.
    Length(u64),
    /// Chunked transfer coding (RFC 9112 §7.1).
    Chunked(ChunkedDecoder),
    /// The body ends with the connection; responses only.
    UntilClose,
}

impl BodyReader {
    /// A reader for a body of `length`.
    pub fn new(length: BodyLength, decoder: ChunkedDecoder) -> Self {
        match length {
            BodyLength::Empty | BodyLength::Length(0) => Self::Done,
            BodyLength::Length(bytes) => Self::Length(bytes),
            BodyLength::Chunked => Self::Chunked(decoder),
            BodyLength::UntilClose => Self::UntilClose,
        }
    }

    /// Whether the whole body was read.
    pub fn is_done(&self) -> bool {
        matches!(self, Self::Done)
    }

    /// The next piece of the body. After [`BodyEvent::End`] the reader is done and stays so.
    pub fn poll_next(
        &mut self,
        socket: &mut Transport,
        trailers: &mut HeaderMap,
        cx: &mut Context<'_>,
    ) -> Poll<Result<BodyEvent, BodyError>> {
        loop {
            if self.is_done() {
                return Poll::Ready(Ok(BodyEvent::End));
            }
            let mut chunk = match ready!(socket.poll_recv(cx)) {
                Ok(Some(chunk)) => chunk,
                Ok(None) if matches!(self, Self::UntilClose) => {
                    *self = Self::Done;
                    return Poll::Ready(Ok(BodyEvent::End));
                }
                Ok(None) => return Poll::Ready(Err(BodyError::Truncated)),
                Err(error) => return Poll::Ready(Err(BodyError::Io(error))),
            };
            if chunk.is_empty() {
                continue;
            }
            match self {
                Self::Done => return Poll::Ready(Ok(BodyEvent::End)),
                Self::UntilClose => return Poll::Ready(Ok(BodyEvent::Data(chunk.into()))),
                Self::Length(left_bytes) => {
                    let take_bytes = usize::try_from(*left_bytes).unwrap_or(usize::MAX).min(chunk.len());
                    *left_bytes -= take_bytes as u64;
                    let finished = *left_bytes == 0;
                    let data = if take_bytes < chunk.len() {
                        let data = chunk.split_to(take_bytes);
                        socket.unread(chunk);
                        data
                    } else {
                        chunk
                    };
                    if finished {
                        *self = Self::Done;
                    }
                    return Poll::Ready(Ok(BodyEvent::Data(data.into())));
                }
                Self::Chunked(decoder) => {
                    let (consumed_bytes, event) = match decoder.decode(&chunk, trailers) {
                        Ok(step) => step,
                        Err(malformed) => return Poll::Ready(Err(BodyError::Malformed(malformed))),
                    };
                    match event {
                        ChunkedEvent::NeedMore => continue,
                        ChunkedEvent::Data(range) => {
                            let mut data = chunk.clone();
                            data.truncate(range.end);
                            data.advance(range.start);
                            chunk.advance(consumed_bytes);
                            if !chunk.is_empty() {
                                socket.unread(chunk);
                            }
                            return Poll::Ready(Ok(BodyEvent::Data(data.into())));
                        }
                        ChunkedEvent::End => {
                            chunk.advance(consumed_bytes);
                            if !chunk.is_empty() {
                                socket.unread(chunk);
                            }
                            *self = Self::Done;
                            return Poll::Ready(Ok(BodyEvent::End));
                        }
                    }
                }
            }
        }
    }
}
