//! One connection of the pool that carries a request at a time: takes it, writes it, reads the reply to its last byte.

use std::rc::Rc;
use std::time::Instant;

use super::core::{Core, Job, Work};
use super::reply::{Outcome, Progress};
use super::stream::Stream;
use super::wire::Wire;
use super::{Payload, Request, websocket};
use crate::record::Cause;

/// Bytes asked of the socket at once.
const READ_BYTES: usize = 16 << 10;

/// Serves requests on connection `index` until the run is over.
pub(super) async fn run(core: Rc<Core>, index: usize, payloads: Rc<[Payload]>) {
    let Some(slot) = core.slots.get(index) else { return };
    let mut connection = Connection {
        core: &core,
        index,
        stream: None,
        used: 0,
        wire: Wire::new(&core.config.request, core.config.head_request, 0),
        buffer: Vec::with_capacity(READ_BYTES),
    };
    if core.config.requests_per_connection != Some(1) {
        slot.deadline.set(core.config.timeout.max(1));
        let _ = connection.open().await;
        slot.deadline.set(0);
    }
    core.tried.set(core.tried.get() + 1);
    core.free(index);
    while let Some(work) = slot.work(&core).await {
        let mut job = match work {
            Work::Request(job) => Some(job),
            Work::Renew => {
                slot.deadline.set(core.now() + core.config.timeout);
                connection.stream = None;
                core.renewed(connection.open().await);
                slot.deadline.set(0);
                None
            }
        };
        while let Some(now) = job.take() {
            let Some(payload) = payloads.get(core.next_request()) else { return };
            connection.exchange(now, payload).await;
            slot.deadline.set(0);
            job = core.next_closed();
        }
        core.free(index);
    }
}

struct Connection<'c> {
    core: &'c Core,
    index: usize,
    stream: Option<Stream>,
    /// Requests that the connection has carried.
    used: u64,
    wire: Wire,
    buffer: Vec<u8>,
}

impl Connection<'_> {
    /// Opens the connection.
    async fn open(&mut self) -> Result<(), Cause> {
        let core = self.core;
        let slot = core.slots.get(self.index).ok_or(Cause::Connect)?;
        let mut stream = Stream::open(core, slot, self.index).await?;
        let seed = core.now() ^ (self.index as u64) << 48 ^ (core.config.index as u64) << 32;
        self.wire = Wire::new(&core.config.request, core.config.head_request, seed);
        if let (Request::WebSocket { upgrade, .. }, Wire::WebSocket(socket)) = (&core.config.request, &mut self.wire) {
            let before = Instant::now();
            let upgraded = slot.in_time(websocket::upgrade(&mut stream, upgrade, &socket.key())).await;
            socket.begin(&upgraded.ok_or(Cause::Timeout)??);
            core.record.borrow_mut().upgrade.record(before.elapsed().as_nanos() as u64);
        }
        self.stream = Some(stream);
        self.used = 0;
        Ok(())
    }

    async fn exchange(&mut self, job: Job, payload: &Payload) {
        let core = self.core;
        let Some(slot) = core.slots.get(self.index) else { return };
        let connected = self.stream.is_some();
        if !connected {
            slot.deadline.set(core.now() + core.config.timeout);
            if let Err(cause) = self.open().await {
                return core.not_sent(&job, cause, core.now());
            }
        }
        slot.timed_out.set(false);
        let written = core.now();
        slot.deadline.set(written + core.config.timeout);
        core.sent(&job, written, connected);
        let mut result = self.attempt(&job, written, payload).await;
        if let Err(Failure::Stale) = result {
            // The peer closed the idle connection at the moment of the write: it has not seen the request.
            self.stream = None;
            if job.measured {
                core.record.borrow_mut().counts.rewritten += 1;
            }
            result = match self.open().await {
                Ok(()) => self.attempt(&job, written, payload).await,
                Err(cause) => Err(Failure::Cause(cause)),
            };
        }
        let now = core.now();
        match result {
            Ok(outcome) => {
                self.used += 1;
                if !outcome.reusable || core.config.requests_per_connection.is_some_and(|most| self.used >= most) {
                    self.stream = None;
                }
                core.ended(&job, written, now, outcome.failed.map_or(Ok(()), Err), Some(outcome.status));
            }
            Err(failure) => {
                self.stream = None;
                let cause = match failure {
                    Failure::Cause(cause) => cause,
                    Failure::Stale => Cause::Closed,
                };
                core.ended(&job, written, now, Err(cause), None);
            }
        }
    }

    async fn attempt(&mut self, job: &Job, written: u64, payload: &Payload) -> Result<Outcome, Failure> {
        let core = self.core;
        let slot = core.slots.get(self.index).ok_or(Failure::Cause(Cause::Connect))?;
        let timed_out = Failure::Cause(Cause::Timeout);
        let stale_or = |cause, used: u64| if used > 0 { Failure::Stale } else { Failure::Cause(cause) };
        let stream = self.stream.as_mut().ok_or(Failure::Cause(Cause::Connect))?;
        let sent = slot.in_time(stream.write_all(self.wire.request(payload))).await.ok_or(timed_out)?;
        if sent.is_err() {
            return Err(stale_or(Cause::Write, self.used));
        }
        let mut first_byte = None;
        loop {
            let buffer = std::mem::take(&mut self.buffer);
            let Some((read, buffer)) = slot.in_time(stream.read(buffer)).await else {
                // The kernel may still write into the buffer that went with the read.
                self.buffer = Vec::with_capacity(READ_BYTES);
                return Err(timed_out);
            };
            self.buffer = buffer;
            let read = match read {
                Ok(length) if length > 0 => length,
                Ok(_) if first_byte.is_some() => match self.wire.closed(&core.config.checks) {
                    Some(outcome) => return Ok(outcome),
                    None => return Err(Failure::Cause(Cause::Closed)),
                },
                _ if first_byte.is_some() => return Err(Failure::Cause(Cause::Closed)),
                _ => return Err(stale_or(Cause::Closed, self.used)),
            };
            let now = core.now();
            let first = *first_byte.get_or_insert(now);
            let bytes = self.buffer.get(..read).unwrap_or_default();
            let progress = self.wire.feed(bytes, &core.config.checks);
            self.buffer.clear();
            if job.measured {
                core.record.borrow_mut().counts.bytes_received += read as u64;
            }
            match progress {
                Ok(Progress::More) => {
                    if let Some(answers) = self.wire.answers() {
                        let sent = slot.in_time(stream.write_all(answers)).await.ok_or(timed_out)?;
                        sent.map_err(|_| Failure::Cause(Cause::Write))?;
                    }
                }
                Ok(Progress::Closed) => return Err(stale_or(Cause::Closed, self.used)),
                Ok(Progress::Done(outcome)) => {
                    if job.measured {
                        let mut record = core.record.borrow_mut();
                        record.first_byte.record(first.saturating_sub(written));
                        record.body.record(now.saturating_sub(first));
                    }
                    return Ok(outcome);
                }
                Err(_) => return Err(Failure::Cause(Cause::Malformed)),
            }
        }
    }
}

#[derive(Clone, Copy)]
enum Failure {
    Cause(Cause),
    /// A connection that had served before ended before a byte of the reply came.
    Stale,
}
