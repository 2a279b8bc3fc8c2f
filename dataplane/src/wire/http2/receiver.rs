//! Reads the body of one stream; what is taken gives the peer its window back.

use std::task::{Context, Poll, ready};

use h2::RecvStream;
use torus_codec::{HeaderMap, Malformed};

use super::message;
use crate::wire::{BodyData, BodyError, BodyEvent};

/// The receiving half of a stream.
pub struct BodyReceiver {
    stream: RecvStream,
    trailer_count_max: usize,
    /// DATA is over; trailers may follow.
    data_ended: bool,
    done: bool,
}

impl BodyReceiver {
    /// Reads from `stream`, whose trailers may have so many fields.
    pub fn new(stream: RecvStream, trailer_count_max: usize) -> Self {
        let done = stream.is_end_stream();
        Self { stream, trailer_count_max, data_ended: done, done }
    }

    /// Whether the whole body was read.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// The next piece of the body.
    ///
    /// The window is given back as soon as a piece is taken: whoever takes it waits first until its own receiver has room.
    pub fn poll_next(&mut self, trailers: &mut HeaderMap, cx: &mut Context<'_>) -> Poll<Result<BodyEvent, BodyError>> {
        if self.done {
            return Poll::Ready(Ok(BodyEvent::End));
        }
        while !self.data_ended {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    // Only a stream that is over refuses; then the window is nobody's.
                    let _ = self.stream.flow_control().release_capacity(data.len());
                    if data.is_empty() {
                        continue;
                    }
                    return Poll::Ready(Ok(BodyEvent::Data(BodyData::Bytes(data))));
                }
                Some(Err(error)) => return Poll::Ready(Err(BodyError::Stream(error))),
                None => self.data_ended = true,
            }
        }
        match ready!(self.stream.poll_trailers(cx)) {
            Ok(None) => {}
            Ok(Some(fields)) => {
                if !message::read_trailers(&fields, self.trailer_count_max, trailers) {
                    return Poll::Ready(Err(BodyError::Malformed(Malformed::TooManyTrailers)));
                }
            }
            Err(error) => return Poll::Ready(Err(BodyError::Stream(error))),
        }
        self.done = true;
        Poll::Ready(Ok(BodyEvent::End))
    }
}
