//! One connection of HTTP/1.1: requests in, replies out, in order. One of HTTP/2 or WebSocket is handed on.

use std::rc::Rc;
use std::time::Duration;

use super::plan::{Plan, ResetAt};
use super::request::{Body, Chunks, Framing, Head, Malformed, Step};
use super::stream::Stream;
use super::{Local, describe, http2, letters};

/// Bytes asked of the socket at once.
const READ_BYTES: usize = 16 << 10;
/// Replies that are gathered before they are written, in bytes.
const GATHER_BYTES: usize = 256 << 10;
/// What an HTTP/2 client that knows its server sends first, as far as no request of HTTP/1.1 begins (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\n";

/// Serves `stream` until either side ends it; `reset` makes its close abrupt.
pub(super) async fn serve(stream: Stream, id: u64, reset: Rc<dyn Fn()>, local: Rc<Local>) {
    let mut connection = Connection {
        stream,
        id,
        reset,
        abrupt: false,
        local,
        request_count: 0,
        pending: Vec::new(),
        start: 0,
        chunk: Some(Vec::with_capacity(READ_BYTES)),
        out: Vec::new(),
        fixed: (usize::MAX, Vec::new()),
    };
    while connection.unread().len() < PREFACE.len() && PREFACE.starts_with(connection.unread()) {
        if connection.receive().await.is_err() {
            break;
        }
    }
    if connection.unread().starts_with(PREFACE) {
        if let Ok(io) = connection.stream.polled(connection.pending) {
            http2::serve(io, id, connection.local).await;
        }
        return;
    }
    while connection.request().await.is_ok() {}
    let _ = connection.flush().await;
    if !connection.abrupt {
        connection.stream.shutdown().await;
    }
}

/// The connection is over.
pub(super) struct Ended;

pub(super) struct Connection {
    stream: Stream,
    id: u64,
    reset: Rc<dyn Fn()>,
    /// Closed by a reset, without saying so first.
    abrupt: bool,
    pub(super) local: Rc<Local>,
    request_count: u64,
    /// Received; what lies before `start` is used up.
    pending: Vec<u8>,
    pub(super) start: usize,
    chunk: Option<Vec<u8>>,
    pub(super) out: Vec<u8>,
    /// The reply of `/fixed` for a size.
    fixed: (usize, Vec<u8>),
}

impl Connection {
    async fn request(&mut self) -> Result<(), Ended> {
        let head = loop {
            if self.answer_fixed() {
                self.flush_if_long().await?;
                continue;
            }
            match Head::parse(self.unread()) {
                Ok(Some(head)) => break head,
                Ok(None) => self.receive().await?,
                Err(Malformed) => return self.refuse(400).await,
            }
        };
        self.start += head.length;
        self.request_count += 1;
        if let Some(key) = head.websocket_key() {
            return self.echo_messages(key, &Plan::parse(head.path_and_query().1)).await;
        }
        let Ok(framing) = head.framing() else { return self.refuse(400).await };
        let (_, query) = head.path_and_query();
        let plan = Plan::parse(query);
        let mut body = Body::new();
        if !plan.early {
            if head.has_token("expect", "100-continue") {
                self.out.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
                self.flush().await?;
            }
            self.read_body(framing, &mut body).await?;
        }
        self.answer(&head, &plan, &body).await?;
        if plan.early {
            self.flush().await?;
            self.read_body(framing, &mut body).await?;
        }
        if plan.close || !head.keeps_alive() { Err(Ended) } else { Ok(()) }
    }

    pub(super) fn unread(&self) -> &[u8] {
        self.pending.get(self.start..).unwrap_or_default()
    }

    /// Answers a GET of `/fixed` that has arrived whole, without copying its head anywhere.
    fn answer_fixed(&mut self) -> bool {
        let bytes = self.unread();
        if !bytes.starts_with(b"GET /fixed") || self.local.delays(&Plan::default()) {
            return false;
        }
        let mut fields = [httparse::EMPTY_HEADER; 64];
        let mut request = httparse::Request::new(&mut fields);
        let Ok(httparse::Status::Complete(length)) = request.parse(bytes) else { return false };
        let path = request.path.unwrap_or_default();
        let size = match path.strip_prefix("/fixed") {
            Some("") => 1 << 10,
            Some(query) => match query.strip_prefix("?size=").and_then(|size| size.parse().ok()) {
                Some(size) if size <= 64 << 20 => size,
                _ => return false,
            },
            None => return false,
        };
        let closing = |field: &httparse::Header<'_>| {
            field.name.eq_ignore_ascii_case("connection") && !field.value.eq_ignore_ascii_case(b"keep-alive")
                || field.name.eq_ignore_ascii_case("content-length")
                || field.name.eq_ignore_ascii_case("transfer-encoding")
        };
        if request.version != Some(1) || request.headers.iter().any(closing) {
            return false;
        }
        if self.fixed.0 != size {
            let mut reply = format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {size}\r\n\r\n");
            reply.extend(letters(size));
            self.fixed = (size, reply.into_bytes());
        }
        self.start += length;
        self.request_count += 1;
        self.out.extend_from_slice(&self.fixed.1);
        true
    }

    async fn answer(&mut self, head: &Head, plan: &Plan, body: &Body) -> Result<(), Ended> {
        if self.local.delays(plan) {
            self.flush().await?;
            self.local.pause(plan).await;
        }
        if plan.hang {
            self.flush().await?;
            while self.receive().await.is_ok() {
                self.start = self.pending.len();
            }
            return Err(Ended);
        }
        if plan.garbage {
            self.out.extend_from_slice(b"\x00\x01garbage, not HTTP\r\n\r\n");
            return Err(Ended);
        }
        if plan.reset == Some(ResetAt::Head) {
            self.flush().await?;
            return self.reset();
        }
        if let Some(status) = plan.informational {
            self.out
                .extend_from_slice(format!("HTTP/1.1 {status} Informational\r\nx-torus: interim\r\n\r\n").as_bytes());
        }
        let size = if head.path_and_query().0 == "/fixed" { plan.size.or(Some(1 << 10)) } else { plan.size };
        let (content_type, content) = match size {
            Some(size) => ("text/plain", letters(size).collect::<String>()),
            None => ("application/json", self.describe(head, body)),
        };
        let close = plan.close || !head.keeps_alive();
        plan.write_head(&mut self.out, &self.local.shared.name, content_type, content.len(), close);
        if head.method != "HEAD" {
            if plan.reset == Some(ResetAt::Body) {
                let half = content.as_bytes().get(..content.len() / 2).unwrap_or_default();
                self.out.extend_from_slice(half);
                self.flush().await?;
                // What was sent must have been read, or the reset would overtake it.
                monoio::time::sleep(Duration::from_millis(20)).await;
                return self.reset();
            }
            plan.write_body(&mut self.out, content.as_bytes());
        }
        self.flush_if_long().await
    }

    fn describe(&self, head: &Head, body: &Body) -> String {
        let version = format!("HTTP/1.{}", head.version);
        describe(&self.local, &head.method, &head.target, &version, &head.fields, body, (self.id, self.request_count))
    }

    async fn read_body(&mut self, framing: Framing, body: &mut Body) -> Result<(), Ended> {
        let mut chunks = Chunks::default();
        let mut left = match framing {
            Framing::Length(length) => length,
            Framing::Chunked => u64::MAX,
        };
        if framing != Framing::Chunked && left > self.local.shared.body_bytes_max {
            return self.refuse(413).await;
        }
        loop {
            if body.length > self.local.shared.body_bytes_max {
                return self.refuse(413).await;
            }
            let step = match framing {
                Framing::Length(_) => {
                    let taken = usize::try_from(left).unwrap_or(usize::MAX).min(self.unread().len());
                    body.add(self.pending.get(self.start..self.start + taken).unwrap_or_default());
                    left -= taken as u64;
                    match (left, taken) {
                        (0, taken) => Ok(Step::End(taken)),
                        (_, 0) => Ok(Step::More),
                        (_, taken) => Ok(Step::Used(taken)),
                    }
                }
                Framing::Chunked => chunks.step(self.pending.get(self.start..).unwrap_or_default(), body),
            };
            match step {
                Ok(Step::More) => self.receive().await?,
                Ok(Step::Used(length)) => self.start += length,
                Ok(Step::End(length)) => {
                    self.start += length;
                    return Ok(());
                }
                Err(Malformed) => return self.refuse(400).await,
            }
        }
    }

    fn reset<T>(&mut self) -> Result<T, Ended> {
        (self.reset)();
        self.abrupt = true;
        Err(Ended)
    }

    async fn refuse<T>(&mut self, status: u16) -> Result<T, Ended> {
        let plan = Plan { status: Some(status), ..Plan::default() };
        plan.write_head(&mut self.out, &self.local.shared.name, "text/plain", 0, true);
        Err(Ended)
    }

    /// Waits for more bytes; what is ready to go out goes first.
    pub(super) async fn receive(&mut self) -> Result<(), Ended> {
        self.flush().await?;
        self.pending.drain(..self.start);
        self.start = 0;
        let mut chunk = self.chunk.take().unwrap_or_default();
        chunk.clear();
        let (read, chunk) = self.stream.read(chunk).await;
        let received = read.as_ref().is_ok_and(|&length| length > 0);
        self.pending.extend_from_slice(&chunk);
        self.chunk = Some(chunk);
        if received { Ok(()) } else { Err(Ended) }
    }

    pub(super) async fn flush_if_long(&mut self) -> Result<(), Ended> {
        if self.out.len() >= GATHER_BYTES { self.flush().await } else { Ok(()) }
    }

    pub(super) async fn flush(&mut self) -> Result<(), Ended> {
        if self.out.is_empty() {
            return Ok(());
        }
        let (written, mut out) = self.stream.write_all(std::mem::take(&mut self.out)).await;
        out.clear();
        self.out = out;
        written.map_err(|_| Ended)
    }
}
