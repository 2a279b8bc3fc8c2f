//! HTTP/2 connections of the pool: each carries several requests at once, and each of its streams stands where an HTTP/1.1
//! connection stands.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};

use bytes::Bytes;
use h2::client::{Builder, ResponseFuture, SendRequest};
use h2::{Reason, RecvStream};
use http::{HeaderMap, Request};
use monoio::io::IntoPollIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::core::{Core, Job, Slot, Work};
use super::grpc::Messages;
use super::reply::{Checks, KEPT_MAX};
use super::stream::Stream;
use crate::record::Cause;

/// What a server may send of one reply before it is read, in bytes; the codec's default of 64 KiB would be the limit of large replies.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// A request as the codec takes it.
#[derive(Clone, Debug)]
pub struct Message {
    pub head: Request<()>,
    pub body: Bytes,
    /// The reply is one of gRPC: its trailers say whether it is a success.
    pub grpc: bool,
}

/// One connection, shared by its streams.
pub(super) struct Shared {
    /// Number of the connection.
    index: usize,
    sender: RefCell<Option<SendRequest<Bytes>>>,
    /// Counts the connections that stood here one after the other.
    generation: Cell<u64>,
    /// Requests that the present one has carried.
    used: Cell<u64>,
    is_opening: Cell<bool>,
    waiting: RefCell<Vec<Waker>>,
}

impl Shared {
    pub(super) fn new(index: usize) -> Shared {
        Shared {
            index,
            sender: RefCell::default(),
            generation: Cell::new(0),
            used: Cell::new(0),
            is_opening: Cell::new(false),
            waiting: RefCell::default(),
        }
    }

    /// Forgets the connection, which goes on for the requests that it carries.
    fn leave(&self, generation: u64) {
        if self.generation.get() == generation {
            self.sender.take();
        }
    }

    /// The connection, opened where there is none, with its generation.
    async fn sender(self: &Rc<Self>, core: &Core, slot: &Slot) -> Result<(SendRequest<Bytes>, u64), Cause> {
        loop {
            if let Some(sender) = self.sender.borrow().as_ref() {
                return Ok((sender.clone(), self.generation.get()));
            }
            if !self.is_opening.replace(true) {
                let opened = self.open(core, slot).await;
                self.is_opening.set(false);
                self.waiting.take().into_iter().for_each(Waker::wake);
                opened?;
                continue;
            }
            // Another stream opens it.
            let mut waited = false;
            let opened = poll_fn(|context| {
                if std::mem::replace(&mut waited, true) && !self.is_opening.get() {
                    return Poll::Ready(());
                }
                self.waiting.borrow_mut().push(context.waker().clone());
                Poll::Pending
            });
            // Others may have used the new connection up by the time this one wakes: it opens the next one then.
            slot.in_time(opened).await.ok_or(Cause::Timeout)?;
        }
    }

    async fn open(self: &Rc<Self>, core: &Core, slot: &Slot) -> Result<(), Cause> {
        match Stream::open(core, slot, self.index).await? {
            Stream::Plain(stream) => self.start(slot, stream.into_poll_io().map_err(|_| Cause::Connect)?).await,
            Stream::Tls(stream) => self.start(slot, *stream).await,
        }
    }

    async fn start(
        self: &Rc<Self>,
        slot: &Slot,
        io: impl AsyncRead + AsyncWrite + Unpin + 'static,
    ) -> Result<(), Cause> {
        let mut builder = Builder::new();
        builder.initial_window_size(STREAM_WINDOW_BYTES).initial_connection_window_size(CONNECTION_WINDOW_BYTES);
        builder.enable_push(false);
        let begun = slot.in_time(builder.handshake::<_, Bytes>(io)).await.ok_or(Cause::Timeout)?;
        let (sender, connection) = begun.map_err(|_| Cause::Malformed)?;
        let generation = self.generation.get() + 1;
        self.generation.set(generation);
        self.used.set(0);
        *self.sender.borrow_mut() = Some(sender);
        let shared = Rc::clone(self);
        monoio::spawn(async move {
            let _ = connection.await;
            shared.leave(generation);
        });
        Ok(())
    }
}

/// Serves requests on stream number `index` of this worker until the run is over.
pub(super) async fn run(core: Rc<Core>, index: usize, shared: Rc<Shared>, messages: Arc<[Message]>) {
    let Some(slot) = core.slots.get(index) else { return };
    let stream = StreamOf { core: &core, slot, shared };
    if core.config.requests_per_connection != Some(1) {
        slot.deadline.set(core.config.timeout.max(1));
        let _ = stream.shared.sender(&core, slot).await;
        slot.deadline.set(0);
    }
    core.tried.set(core.tried.get() + 1);
    core.free(index);
    while let Some(work) = slot.work(&core).await {
        let mut job = match work {
            Work::Request(job) => Some(job),
            Work::Renew => {
                slot.timed_out.set(false);
                slot.deadline.set(core.now() + core.config.timeout);
                // The old connection goes on for the requests that it carries.
                stream.shared.leave(stream.shared.generation.get());
                core.renewed(stream.shared.sender(&core, slot).await.map(drop));
                slot.deadline.set(0);
                None
            }
        };
        while let Some(now) = job.take() {
            let Some(message) = messages.get(core.next_request()) else { return };
            stream.exchange(now, message).await;
            slot.deadline.set(0);
            job = core.next_closed();
        }
        core.free(index);
    }
}

struct StreamOf<'c> {
    core: &'c Core,
    slot: &'c Slot,
    shared: Rc<Shared>,
}

/// A request that has been handed to the codec.
struct Sent {
    response: ResponseFuture,
    generation: u64,
}

impl StreamOf<'_> {
    async fn exchange(&self, job: Job, message: &Message) {
        let core = self.core;
        let connected = self.shared.sender.borrow().is_some();
        self.slot.timed_out.set(false);
        self.slot.deadline.set(core.now() + core.config.timeout);
        let first = match self.send(message).await {
            Ok(sent) => sent,
            Err(cause) => return core.not_sent(&job, cause, core.now()),
        };
        let written = core.now();
        self.slot.deadline.set(written + core.config.timeout);
        core.sent(&job, written, connected);
        let mut result = self.receive(&job, written, first, message).await;
        if let Err(Failure::Untouched) = result {
            // The server has not acted on it (RFC 9113 section 8.7).
            if job.measured {
                core.record.borrow_mut().counts.rewritten += 1;
            }
            result = match self.send(message).await {
                Ok(again) => self.receive(&job, written, again, message).await,
                Err(cause) => Err(Failure::Cause(cause)),
            };
        }
        let now = core.now();
        match result {
            Ok((status, outcome)) => core.ended(&job, written, now, outcome, Some(status)),
            Err(Failure::Cause(cause)) => core.ended(&job, written, now, Err(cause), None),
            Err(Failure::Untouched) => core.ended(&job, written, now, Err(Cause::Reset), None),
        }
    }

    async fn send(&self, message: &Message) -> Result<Sent, Cause> {
        // A connection that ended while it was idle is found out by the codec: one more is opened then.
        for is_last in [false, true] {
            let (mut sender, generation) = self.shared.sender(self.core, self.slot).await?;
            let ready = self.slot.in_time(poll_fn(|context| sender.poll_ready(context))).await;
            let ready = ready.ok_or(Cause::Timeout)?;
            let has_body = !message.body.is_empty();
            let sent = ready.and_then(|()| sender.send_request(message.head.clone(), !has_body));
            match sent {
                Ok((response, mut body)) => {
                    let used = self.shared.used.get() + 1;
                    self.shared.used.set(used);
                    if self.core.config.requests_per_connection.is_some_and(|most| used >= most) {
                        self.shared.leave(generation);
                    }
                    if has_body {
                        body.send_data(message.body.clone(), true).map_err(|_| Cause::Write)?;
                    }
                    return Ok(Sent { response, generation });
                }
                Err(_) if is_last => break,
                Err(_) => self.shared.leave(generation),
            }
        }
        Err(Cause::Closed)
    }

    /// Status and outcome of the reply, once its last byte is there.
    async fn receive(
        &self,
        job: &Job,
        written: u64,
        sent: Sent,
        message: &Message,
    ) -> Result<(u16, Result<(), Cause>), Failure> {
        let core = self.core;
        let fail = |error: h2::Error| self.failure(&error, sent.generation);
        let response = self.slot.in_time(sent.response).await.ok_or(Failure::Cause(Cause::Timeout))?;
        let (head, mut body) = response.map_err(fail)?.into_parts();
        let first = core.now();
        let mut kept = Vec::new();
        let mut messages = message.grpc.then(Messages::default);
        let received = self.slot.in_time(self.body(&mut body, &mut kept, &mut messages)).await;
        let (length, trailers) = received.ok_or(Failure::Cause(Cause::Timeout))?.map_err(fail)?;
        if job.measured {
            let mut record = core.record.borrow_mut();
            record.counts.bytes_received += length;
            let whole = messages.as_ref().and_then(Messages::whole);
            record.counts.messages_received += whole.unwrap_or_default();
            record.first_byte.record(first.saturating_sub(written));
            record.body.record(core.now().saturating_sub(first));
        }
        let status = head.status.as_u16();
        let mut outcome = judge(&core.config.checks, status, &head.headers, &kept);
        if message.grpc && outcome.is_ok() {
            // A reply without messages has its status in the head.
            let found = trailers.as_ref().and_then(|fields| fields.get("grpc-status"));
            let found = found.or_else(|| head.headers.get("grpc-status"));
            if found.is_none_or(|value| value != "0") {
                outcome = Err(Cause::GrpcStatus);
            }
            if outcome.is_ok() && messages.is_some_and(|messages| messages.whole().is_none()) {
                outcome = Err(Cause::Malformed);
            }
        }
        Ok((status, outcome))
    }

    /// Bytes of the body and trailers; the begin of it is kept where it is to be checked.
    async fn body(
        &self,
        body: &mut RecvStream,
        kept: &mut Vec<u8>,
        messages: &mut Option<Messages>,
    ) -> Result<(u64, Option<HeaderMap>), h2::Error> {
        let mut length = 0;
        while let Some(chunk) = body.data().await {
            let chunk = chunk?;
            length += chunk.len() as u64;
            if let Some(messages) = messages {
                messages.take(&chunk);
            }
            if self.core.config.checks.body.is_some() {
                let room = KEPT_MAX.saturating_sub(kept.len()).min(chunk.len());
                kept.extend_from_slice(chunk.get(..room).unwrap_or_default());
            }
            body.flow_control().release_capacity(chunk.len())?;
        }
        Ok((length, body.trailers().await?))
    }

    fn failure(&self, error: &h2::Error, generation: u64) -> Failure {
        if error.is_reset() && error.is_remote() {
            return match error.reason() {
                Some(Reason::REFUSED_STREAM) => Failure::Untouched,
                _ => Failure::Cause(Cause::Reset),
            };
        }
        // The connection is over; streams beyond the last one that GOAWAY names were not touched (RFC 9113 section 6.8).
        self.shared.leave(generation);
        let is_untouched = error.is_go_away() && error.is_remote() && error.reason() == Some(Reason::NO_ERROR);
        match error.is_io() || error.is_go_away() {
            true if is_untouched => Failure::Untouched,
            true => Failure::Cause(Cause::Closed),
            false => Failure::Cause(Cause::Malformed),
        }
    }
}

enum Failure {
    Cause(Cause),
    /// The server says that it has not acted on the request.
    Untouched,
}

fn judge(checks: &Checks, status: u16, fields: &HeaderMap, body: &[u8]) -> Result<(), Cause> {
    if !checks.expects(status) {
        return Err(Cause::Status);
    }
    let is_missing = |(name, value): &(String, Option<String>)| {
        let mut values = fields.get_all(name.as_str()).iter();
        !values.any(|found| value.as_ref().is_none_or(|value| found.as_bytes() == value.as_bytes()))
    };
    if checks.fields.iter().any(is_missing) {
        return Err(Cause::Header);
    }
    if checks.is_in(body) { Ok(()) } else { Err(Cause::Body) }
}
