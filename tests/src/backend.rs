//! A backend that records every byte it receives and answers as each request asks it to.
//!
//! A request says what it wants in its `x-backend` field, directives separated by `;`; several attempts of one request
//! (told apart by `x-case`) are separated by `|`, the last one standing for all that follow:
//!
//! | directive | effect |
//! |---|---|
//! | `status=503` | status of the reply |
//! | `body=text`, `size=N` | its body: the text, or N letters |
//! | `header=name:value` | one more field |
//! | `chunked`, `trailer=name:value` | framing of the body, and trailers |
//! | `until-close` | body without length, ended by closing |
//! | `interim=103` | an interim reply first |
//! | `delay=MS` | wait before the reply |
//! | `body-delay=MS` | wait between head and body |
//! | `close` | `connection: close` and close |
//! | `hang` | read the request and never answer |
//! | `reset=now`, `reset=head`, `reset=body` | TCP reset before the reply, after its head, in its body |
//! | `fin=now`, `fin=head`, `fin=body` | the same with an orderly close |
//! | `early` | answer before the request's body is read |
//! | `script=NAME` | send the bytes registered under that name, then close |

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::message::{self, Body, Framing, Head};

/// One request as a backend received it.
#[derive(Clone, Debug)]
pub struct Record {
    /// Label of the backend.
    pub backend: String,
    /// Number of the connection at that backend, from 1.
    pub connection: u32,
    /// Number of the request on its connection, from 1.
    pub request: u32,
    /// Start line and fields.
    pub head: Head,
    /// How the body was delimited.
    pub framing: Framing,
    /// Body and trailers, as far as they arrived.
    pub body: Body,
    /// Why the rest of the connection could not be read as HTTP/1.1, if so.
    pub malformed: Option<String>,
}

/// What all backends of a test have received.
#[derive(Default)]
pub struct Journal {
    records: Mutex<Vec<Record>>,
    connections: Mutex<Vec<Arc<Mutex<Vec<u8>>>>>,
    attempts: Mutex<HashMap<String, usize>>,
    scripts: Mutex<HashMap<String, Vec<u8>>>,
}

impl Journal {
    /// Takes the requests recorded since the last call, and forgets how often each case was attempted.
    ///
    /// # Panics
    /// Where a backend thread panicked.
    pub fn take(&self) -> Vec<Record> {
        self.attempts.lock().expect("no backend panicked").clear();
        std::mem::take(&mut *self.records.lock().expect("no backend panicked"))
    }

    /// Number of requests recorded since the last [`Journal::take`].
    ///
    /// # Panics
    /// Where a backend thread panicked.
    pub fn count(&self) -> usize {
        self.records.lock().expect("no backend panicked").len()
    }

    /// Takes the raw bytes received so far, one entry for each connection in order of arrival.
    ///
    /// # Panics
    /// Where a backend thread panicked.
    pub fn take_connections(&self) -> Vec<Vec<u8>> {
        let connections = std::mem::take(&mut *self.connections.lock().expect("no backend panicked"));
        connections.iter().map(|bytes| bytes.lock().expect("no backend panicked").clone()).collect()
    }

    /// Registers the bytes that `script=name` sends.
    ///
    /// # Panics
    /// Where a backend thread panicked.
    pub fn script(&self, name: &str, bytes: &[u8]) {
        self.scripts.lock().expect("no backend panicked").insert(name.to_owned(), bytes.to_vec());
    }
}

/// A listening backend; stops accepting when dropped.
pub struct Backend {
    /// `host:port`, or the path of its unix socket.
    pub address: String,
    /// Its TCP port; 0 for a unix socket.
    pub port: u16,
    stopped: Arc<AtomicBool>,
    wake: Box<dyn Fn() + Send + Sync>,
}

impl Backend {
    /// Starts a backend on a free port of `host` (`127.0.0.1`, `::1`, ...).
    ///
    /// # Panics
    /// Where the address cannot be bound.
    pub fn tcp(label: &str, host: &str, journal: &Arc<Journal>) -> Self {
        // Another test process may take a free port between the look and the bind.
        let mut tries = (0..50).map(|_| TcpListener::bind((host, crate::ports::free_port())));
        let listener = tries.find_map(Result::ok).expect("a free port");
        let local = listener.local_addr().expect("a bound socket has an address");
        let wake = Box::new(move || drop(TcpStream::connect(local)));
        let stopped = Arc::new(AtomicBool::new(false));
        let accept = move || listener.accept().ok().map(|(stream, _)| Stream::Tcp(stream));
        serve(label, accept, journal, &stopped);
        Self { address: local.to_string(), port: local.port(), stopped, wake }
    }

    /// Starts a backend on the unix socket `path`.
    ///
    /// # Panics
    /// Where the path cannot be bound.
    pub fn unix(label: &str, path: PathBuf, journal: &Arc<Journal>) -> Self {
        let listener = UnixListener::bind(&path).expect("a free path");
        let address = path.to_string_lossy().into_owned();
        let stopped = Arc::new(AtomicBool::new(false));
        let accept = move || listener.accept().ok().map(|(stream, _)| Stream::Unix(stream));
        serve(label, accept, journal, &stopped);
        Self { address, port: 0, stopped, wake: Box::new(move || drop(UnixStream::connect(&path))) }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Release);
        (self.wake)();
    }
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.write_all(bytes),
            Self::Unix(stream) => stream.write_all(bytes),
        }
    }

    /// Orderly close that loses nothing already written.
    fn finish(&mut self) {
        let _ = match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Self::Unix(stream) => stream.shutdown(Shutdown::Write),
        };
    }

    fn reset(&mut self) {
        if let Self::Tcp(stream) = self {
            let _ = socket2::SockRef::from(&*stream).set_linger(Some(Duration::ZERO));
        }
    }
}

fn serve(
    label: &str,
    mut accept: impl FnMut() -> Option<Stream> + Send + 'static,
    journal: &Arc<Journal>,
    stopped: &Arc<AtomicBool>,
) {
    let (label, journal, stopped) = (label.to_owned(), Arc::clone(journal), Arc::clone(stopped));
    std::thread::spawn(move || {
        let counter = AtomicU32::new(0);
        while let Some(stream) = accept() {
            if stopped.load(Ordering::Acquire) {
                return;
            }
            if let Stream::Tcp(stream) = &stream {
                let _ = stream.set_nodelay(true);
            }
            let raw = Arc::new(Mutex::new(Vec::new()));
            journal.connections.lock().expect("no backend panicked").push(Arc::clone(&raw));
            let connection = Connection {
                stream,
                raw,
                pending: Vec::new(),
                label: label.clone(),
                number: counter.fetch_add(1, Ordering::Relaxed) + 1,
                journal: Arc::clone(&journal),
            };
            std::thread::spawn(move || connection.run());
        }
    });
}

struct Connection {
    stream: Stream,
    raw: Arc<Mutex<Vec<u8>>>,
    pending: Vec<u8>,
    label: String,
    number: u32,
    journal: Arc<Journal>,
}

/// Whether a connection goes on after a reply.
#[derive(PartialEq, Eq)]
enum Next {
    Continue,
    Close,
}

impl Connection {
    fn run(mut self) {
        let mut request = 0;
        loop {
            request += 1;
            let head = loop {
                match message::parse_head(&self.pending) {
                    Ok(Some(head)) => break head,
                    Ok(None) => {
                        if !self.receive() {
                            if !self.pending.is_empty() {
                                self.record_garbage(request, "connection ended in a head");
                            }
                            return;
                        }
                    }
                    Err(malformed) => return self.refuse(request, &malformed.0),
                }
            };
            self.pending.drain(..head.length);
            let framing = match message::request_framing(&head) {
                Ok(framing) => framing,
                Err(malformed) => {
                    self.record(request, head, Framing::None, Body::default(), Some(malformed.0));
                    return;
                }
            };
            if self.answer(request, head, framing) == Next::Close {
                return;
            }
        }
    }

    fn answer(&mut self, request: u32, head: Head, framing: Framing) -> Next {
        let plan = self.plan(&head);
        if plan.early {
            let next = self.reply(&plan, &head);
            let body = self.body(framing);
            self.record(request, head, framing, body, None);
            return next;
        }
        if head.fields.has_token("expect", "100-continue") {
            let _ = self.stream.write(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        let body = self.body(framing);
        let complete = body.complete;
        self.record(request, head.clone(), framing, body, None);
        if !complete {
            return Next::Close;
        }
        self.reply(&plan, &head)
    }

    fn plan(&self, head: &Head) -> Plan {
        let text = head.fields.all("x-backend").collect::<Vec<_>>().join(";");
        let case = head.fields.get("x-case").unwrap_or_default().to_owned();
        let attempt = {
            let mut attempts = self.journal.attempts.lock().expect("no backend panicked");
            let attempt = attempts.entry(case).or_default();
            *attempt += 1;
            *attempt - 1
        };
        let attempts: Vec<&str> = text.split('|').collect();
        Plan::parse(attempts.get(attempt).or(attempts.last()).copied().unwrap_or_default(), &self.label)
    }

    fn reply(&mut self, plan: &Plan, head: &Head) -> Next {
        std::thread::sleep(plan.delay);
        if plan.hang {
            // Held until the proxy gives up, then closed with it.
            while self.receive() {}
            return Next::Close;
        }
        if let Some(name) = &plan.script {
            let bytes = self.journal.scripts.lock().expect("no backend panicked").get(name).cloned();
            let _ = self.stream.write(&bytes.unwrap_or_else(|| panic!("no script called {name}")));
            self.stream.finish();
            while self.receive() {}
            return Next::Close;
        }
        if plan.fail_at == Some(Stage::Now) {
            return self.fail(plan);
        }
        if let Some(status) = plan.interim {
            let _ = self.stream.write(format!("HTTP/1.1 {status} Interim\r\nx-interim: yes\r\n\r\n").as_bytes());
        }
        if self.stream.write(plan.head(head.parts().0).as_bytes()).is_err() {
            return Next::Close;
        }
        if plan.fail_at == Some(Stage::Head) {
            return self.fail(plan);
        }
        std::thread::sleep(plan.body_delay);
        if plan.has_body(head.parts().0) {
            let wire = plan.body_wire();
            let wire = if plan.fail_at == Some(Stage::Body) { &wire[..wire.len() / 2] } else { &wire[..] };
            if self.stream.write(wire).is_err() {
                return Next::Close;
            }
        }
        if plan.fail_at == Some(Stage::Body) {
            return self.fail(plan);
        }
        if plan.close || plan.until_close {
            self.stream.finish();
            while self.receive() {}
            return Next::Close;
        }
        Next::Continue
    }

    fn fail(&mut self, plan: &Plan) -> Next {
        // What was written before a reset must have been read, or the reset would overtake it.
        std::thread::sleep(Duration::from_millis(30));
        if plan.reset {
            self.stream.reset();
        } else {
            self.stream.finish();
            while self.receive() {}
        }
        Next::Close
    }

    fn body(&mut self, framing: Framing) -> Body {
        loop {
            match message::parse_body(&self.pending, framing) {
                Ok(body) if body.complete => {
                    self.pending.drain(..body.length);
                    return body;
                }
                Ok(body) => {
                    if !self.receive() {
                        return body;
                    }
                }
                Err(_) => return Body::default(),
            }
        }
    }

    fn receive(&mut self) -> bool {
        let mut chunk = [0; 65_536];
        match self.stream.read(&mut chunk) {
            Ok(length) if length > 0 => {
                let bytes = chunk.get(..length).unwrap_or_default();
                self.raw.lock().expect("no reader panicked").extend_from_slice(bytes);
                self.pending.extend_from_slice(bytes);
                true
            }
            _ => false,
        }
    }

    fn refuse(&mut self, request: u32, reason: &str) {
        self.record_garbage(request, reason);
        let _ = self.stream.write(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
    }

    fn record_garbage(&self, request: u32, reason: &str) {
        let head = Head { start_line: message::latin1(&self.pending), ..Head::default() };
        self.record(request, head, Framing::None, Body::default(), Some(reason.to_owned()));
    }

    fn record(&self, request: u32, head: Head, framing: Framing, body: Body, malformed: Option<String>) {
        let backend = self.label.clone();
        let record = Record { backend, connection: self.number, request, head, framing, body, malformed };
        self.journal.records.lock().expect("no backend panicked").push(record);
    }
}

/// Where in a reply the backend fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Now,
    Head,
    Body,
}

/// What a backend does with one request.
#[derive(Default)]
struct Plan {
    label: String,
    status: Option<u16>,
    body: Option<String>,
    headers: Vec<(String, String)>,
    trailers: Vec<(String, String)>,
    chunked: bool,
    until_close: bool,
    interim: Option<u16>,
    delay: Duration,
    body_delay: Duration,
    close: bool,
    hang: bool,
    early: bool,
    reset: bool,
    fail_at: Option<Stage>,
    script: Option<String>,
    http_10: bool,
}

impl Plan {
    fn parse(text: &str, label: &str) -> Self {
        let mut plan = Self { label: label.to_owned(), ..Self::default() };
        for directive in text.split(';').map(str::trim).filter(|directive| !directive.is_empty()) {
            let (name, value) = directive.split_once('=').unwrap_or((directive, ""));
            let pair = || {
                let (name, value) = value.split_once(':').unwrap_or((value, ""));
                (name.to_owned(), value.to_owned())
            };
            let number = || value.parse().unwrap_or_else(|_| panic!("x-backend: {directive}"));
            let stage = || match value {
                "now" => Some(Stage::Now),
                "head" => Some(Stage::Head),
                "body" => Some(Stage::Body),
                _ => panic!("x-backend: {directive}"),
            };
            match name {
                "status" => plan.status = value.parse().ok(),
                "body" => plan.body = Some(value.to_owned()),
                "size" => plan.body = Some("0123456789abcdef".repeat(number() / 16 + 1)[..number()].to_owned()),
                "header" => plan.headers.push(pair()),
                "trailer" => plan.trailers.push(pair()),
                "chunked" => plan.chunked = true,
                "until-close" => plan.until_close = true,
                "http10" => plan.http_10 = true,
                "interim" => plan.interim = value.parse().ok(),
                "delay" => plan.delay = Duration::from_millis(number() as u64),
                "body-delay" => plan.body_delay = Duration::from_millis(number() as u64),
                "close" => plan.close = true,
                "hang" => plan.hang = true,
                "early" => plan.early = true,
                "reset" => (plan.reset, plan.fail_at) = (true, stage()),
                "fin" => plan.fail_at = stage(),
                "script" => plan.script = Some(value.to_owned()),
                _ => panic!("x-backend: unknown directive {directive:?}"),
            }
        }
        plan
    }

    fn status(&self) -> u16 {
        self.status.unwrap_or(200)
    }

    fn text(&self) -> String {
        self.body.clone().unwrap_or_else(|| format!("from {}\n", self.label))
    }

    fn has_body(&self, method: &str) -> bool {
        method != "HEAD" && !matches!(self.status(), 204 | 304)
    }

    fn head(&self, method: &str) -> String {
        let version = if self.http_10 { "HTTP/1.0" } else { "HTTP/1.1" };
        let mut head = format!("{version} {} Status\r\nx-from: {}\r\n", self.status(), self.label);
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        if self.close {
            head += "connection: close\r\n";
        }
        let names_length = self.has_body(method) || method == "HEAD";
        if self.chunked {
            head += "transfer-encoding: chunked\r\n";
        } else if !self.until_close && names_length {
            head += &format!("content-length: {}\r\n", self.text().len());
        }
        head + "\r\n"
    }

    fn body_wire(&self) -> Vec<u8> {
        let text = self.text();
        if !self.chunked {
            return text.into_bytes();
        }
        let (first, second) = text.split_at(text.len() / 2);
        let mut wire = String::new();
        for part in [first, second].into_iter().filter(|part| !part.is_empty()) {
            wire += &format!("{:x}\r\n{part}\r\n", part.len());
        }
        wire += "0\r\n";
        for (name, value) in &self.trailers {
            wire += &format!("{name}: {value}\r\n");
        }
        (wire + "\r\n").into_bytes()
    }
}
