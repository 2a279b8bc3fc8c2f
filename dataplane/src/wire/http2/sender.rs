//! Writes the body of one stream within the peer's window: what does not fit waits here, one piece at most, and nothing more is taken.

use std::task::{Context, Poll};

use h2::{Reason, SendStream};
use torus_codec::HeaderMap;
use torus_ring::Nanos;

use super::message;
use crate::wire::BodyData;

/// The sending half of a stream.
pub struct BodySender {
    stream: SendStream<BodyData>,
    /// The rest of the last piece, for which the window has no room yet.
    pending: Option<BodyData>,
    /// What follows `pending`.
    end: End,
    /// The stream was reset or its peer takes no more.
    is_given_up: bool,
    progress_at: Nanos,
}

/// How far the end of a body is.
enum End {
    /// More may come.
    Open,
    /// The body is complete once `pending` is sent.
    Due(Option<http::HeaderMap>),
    /// END_STREAM is sent or the stream is over.
    Done,
}

/// The peer takes no more of the stream.
#[derive(Debug)]
pub struct StreamClosed;

impl BodySender {
    /// Sends on `stream`; where its head ended it, nothing follows.
    pub fn new(stream: SendStream<BodyData>, is_ended: bool, now: Nanos) -> Self {
        let end = if is_ended { End::Done } else { End::Open };
        Self { stream, pending: None, end, is_given_up: false, progress_at: now }
    }

    /// Ready when the next piece may be given; after [`Self::finish`], when the codec has everything and the window has room for it.
    pub fn poll_ready(&mut self, now: Nanos, cx: &mut Context<'_>) -> Poll<Result<(), StreamClosed>> {
        while let Some(mut data) = self.pending.take() {
            self.stream.reserve_capacity(data.len());
            let capacity = match self.stream.poll_capacity(cx) {
                Poll::Ready(Some(Ok(capacity))) => capacity,
                Poll::Ready(Some(Err(_)) | None) => {
                    self.give_up();
                    return Poll::Ready(Err(StreamClosed));
                }
                Poll::Pending => {
                    // There may be room although nothing changed since it was last asked for.
                    let capacity = self.stream.capacity();
                    if capacity == 0 {
                        self.pending = Some(data);
                        return Poll::Pending;
                    }
                    capacity
                }
            };
            let piece = data.split_to(capacity);
            if !data.is_empty() {
                self.pending = Some(data);
            }
            if piece.is_empty() {
                continue;
            }
            self.progress_at = now;
            let is_last = self.pending.is_none() && matches!(self.end, End::Due(None));
            if self.stream.send_data(piece, is_last).is_err() {
                self.give_up();
                return Poll::Ready(Err(StreamClosed));
            }
            if is_last {
                self.end = End::Done;
            }
        }
        self.end_if_due();
        Poll::Ready(Ok(()))
    }

    /// Gives a piece after [`Self::poll_ready`] was ready.
    pub fn send(&mut self, data: BodyData, now: Nanos) {
        if data.is_empty() || !matches!(self.end, End::Open) {
            return;
        }
        self.stream.reserve_capacity(data.len());
        if self.pending.is_none() && self.stream.capacity() >= data.len() {
            self.progress_at = now;
            if self.stream.send_data(data, false).is_err() {
                self.give_up();
            }
        } else {
            self.pending = Some(data);
            self.progress_at = now;
        }
    }

    /// Ends the body, with trailers where there are any.
    pub fn finish(&mut self, trailers: &HeaderMap) {
        if !matches!(self.end, End::Open) {
            return;
        }
        self.end = End::Due((!trailers.is_empty()).then(|| message::write_trailers(trailers)));
        if self.pending.is_none() {
            self.end_if_due();
        }
    }

    /// Whether the body was ended.
    pub fn is_finished(&self) -> bool {
        matches!(self.end, End::Done)
    }

    /// Whether the body reached its end, and the stream was not given up.
    pub fn is_complete(&self) -> bool {
        matches!(self.end, End::Done) && !self.is_given_up
    }

    /// Whether a piece waits for the peer's window.
    pub fn is_blocked(&self) -> bool {
        self.pending.is_some()
    }

    /// When bytes last went to the codec, or when one last began to wait.
    pub fn last_progress(&self) -> Nanos {
        self.progress_at
    }

    /// Ready when the peer has reset the stream or the connection is gone.
    pub fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<Result<Reason, h2::Error>> {
        self.stream.poll_reset(cx)
    }

    /// Ends the stream at once.
    pub fn reset(&mut self, reason: Reason) {
        self.give_up();
        self.pending = None;
        self.stream.send_reset(reason);
    }

    fn give_up(&mut self) {
        self.end = End::Done;
        self.is_given_up = true;
    }

    fn end_if_due(&mut self) {
        let End::Due(trailers) = &mut self.end else { return };
        let sent = match trailers.take() {
            Some(trailers) => self.stream.send_trailers(trailers),
            None => self.stream.send_data(BodyData::Bytes(bytes::Bytes::new()), true),
        };
        // Where it fails the stream is over already.
        drop(sent);
        self.end = End::Done;
    }
}
