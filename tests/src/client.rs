//! A blocking HTTP/1.1 client that sends exact bytes and reports exactly what came back.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::message::{self, Body, Fields, Framing, Head};
use crate::tls::{Seen, TlsClient, TlsStream};

/// Where a connection goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `host:port`.
    Tcp(String),
    /// Path of a unix socket.
    Unix(PathBuf),
}

/// How a reply ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// All of it arrived.
    Complete,
    /// The connection was closed before its end.
    Closed,
    /// The connection was reset before its end.
    Reset,
    /// Nothing more arrived within the client's patience.
    Timeout,
    /// Not HTTP/1.1.
    Malformed(String),
}

/// One reply, complete or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// `HTTP/1.1` or `HTTP/1.0`; empty where no head arrived.
    pub version: String,
    /// Status code; 0 where no head arrived.
    pub status: u16,
    /// Reason phrase.
    pub reason: String,
    /// Field lines in wire order.
    pub headers: Fields,
    /// Content without framing.
    pub body: Vec<u8>,
    /// How the body was delimited.
    pub framing: Framing,
    /// Trailer fields.
    pub trailers: Fields,
    /// Interim (1xx) heads that came before it.
    pub interim: Vec<Head>,
    /// How it ended.
    pub end: End,
}

impl Response {
    fn none(interim: Vec<Head>, end: End) -> Self {
        Self {
            version: String::new(),
            status: 0,
            reason: String::new(),
            headers: Fields::default(),
            body: Vec::new(),
            framing: Framing::None,
            trailers: Fields::default(),
            interim,
            end,
        }
    }

    /// The body as text, each byte one character.
    pub fn text(&self) -> String {
        message::latin1(&self.body)
    }
}

/// A client connection.
pub struct Connection {
    stream: Stream,
    buffer: Vec<u8>,
    patience: Duration,
    ended: Option<End>,
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<TlsStream>),
}

impl Connection {
    /// Connects; `patience` bounds each wait for bytes.
    pub fn open(target: &Target, patience: Duration) -> std::io::Result<Self> {
        let stream = match target {
            Target::Tcp(address) => {
                let stream = TcpStream::connect(address.as_str())?;
                stream.set_nodelay(true)?;
                stream.set_write_timeout(Some(patience))?;
                Stream::Tcp(stream)
            }
            Target::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_write_timeout(Some(patience))?;
                Stream::Unix(stream)
            }
        };
        Ok(Self { stream, buffer: Vec::new(), patience, ended: None })
    }

    /// Whether no TLS was begun on it.
    pub fn is_plain(&self) -> bool {
        !matches!(self.stream, Stream::Tls(_))
    }

    /// Completes a TLS handshake on a TCP connection; what the client saw of it, and how it failed where it did.
    pub fn start_tls(self, client: &TlsClient) -> (Seen, Option<Self>) {
        let Self { stream, patience, .. } = self;
        let Stream::Tcp(socket) = stream else { return (Seen::default(), None) };
        let (seen, stream) = client.handshake(socket, patience);
        let stream = stream.map(|stream| Stream::Tls(Box::new(stream)));
        (seen, stream.map(|stream| Self { stream, buffer: Vec::new(), patience, ended: None }))
    }

    /// Sends `bytes`; an error means that the peer has closed.
    pub fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        match &mut self.stream {
            Stream::Tcp(stream) => stream.write_all(bytes),
            Stream::Unix(stream) => stream.write_all(bytes),
            Stream::Tls(stream) => stream.0.write_all(bytes).and_then(|()| stream.0.flush()),
        }
    }

    /// Says that nothing more will be sent.
    pub fn finish(&mut self) {
        let _ = match &mut self.stream {
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Stream::Unix(stream) => stream.shutdown(Shutdown::Write),
            Stream::Tls(stream) => {
                stream.0.conn.send_close_notify();
                let _ = stream.0.flush();
                stream.0.sock.shutdown(Shutdown::Write)
            }
        };
    }

    /// Ends the connection with a reset instead of an orderly close.
    pub fn reset(self) {
        let _ = match &self.stream {
            Stream::Tcp(stream) => socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)),
            Stream::Tls(stream) => socket2::SockRef::from(&stream.0.sock).set_linger(Some(Duration::ZERO)),
            Stream::Unix(_) => Ok(()),
        };
    }

    /// Reads the reply to a request whose method was `method`, with the interim replies before it.
    pub fn response(&mut self, method: &str) -> Response {
        let mut interim = Vec::new();
        let head = loop {
            match self.head() {
                Ok(head) if head.parts().1.starts_with('1') && head.parts().1 != "101" => interim.push(head),
                Ok(head) => break head,
                Err(end) => return Response::none(interim, end),
            }
        };
        let framing = message::response_framing(&head, method);
        let (body, end) = self.body(framing);
        let (version, status, reason) = head.parts();
        Response {
            version: version.to_owned(),
            status: status.parse().unwrap_or(0),
            reason: reason.to_owned(),
            body: body.bytes,
            framing,
            trailers: body.trailers,
            interim,
            end,
            headers: head.fields,
        }
    }

    /// Waits for one interim (1xx) head and returns it, or the final head that came instead, without its body.
    pub fn head(&mut self) -> Result<Head, End> {
        loop {
            match message::parse_head(&self.buffer) {
                Err(malformed) => return Err(End::Malformed(malformed.0)),
                Ok(Some(head)) => {
                    if !head.start_line.starts_with("HTTP/1.") {
                        return Err(End::Malformed(head.start_line));
                    }
                    self.buffer.drain(..head.length);
                    return Ok(head);
                }
                Ok(None) => self.receive(self.patience)?,
            }
        }
    }

    fn body(&mut self, framing: Framing) -> (Body, End) {
        loop {
            let body = match message::parse_body(&self.buffer, framing) {
                Ok(body) => body,
                Err(malformed) => return (Body::default(), End::Malformed(malformed.0)),
            };
            if body.complete {
                self.buffer.drain(..body.length);
                return (body, End::Complete);
            }
            if let Err(end) = self.receive(self.patience) {
                self.buffer.clear();
                let end = if framing == Framing::UntilClose && end == End::Closed { End::Complete } else { end };
                return (body, end);
            }
        }
    }

    /// Whether the peer ends the connection within `patience`; bytes that come before are kept.
    pub fn closes_within(&mut self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        loop {
            // Socket timeouts count in ticks of up to 10 ms; a sleep and a look are finer.
            if matches!(self.ended, Some(End::Closed | End::Reset)) {
                return true;
            }
            let _ = self.look();
            if Instant::now() >= deadline {
                return matches!(self.ended, Some(End::Closed | End::Reset));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Takes what has arrived, without waiting.
    fn look(&mut self) -> Result<(), End> {
        let set = |stream: &Stream, nonblocking| match stream {
            Stream::Tcp(stream) => stream.set_nonblocking(nonblocking),
            Stream::Unix(stream) => stream.set_nonblocking(nonblocking),
            Stream::Tls(stream) => stream.0.sock.set_nonblocking(nonblocking),
        };
        let _ = set(&self.stream, true);
        let looked = self.receive(self.patience);
        let _ = set(&self.stream, false);
        looked
    }

    /// Every byte until the peer ends the connection or says nothing for as long as the client is patient, and how that ended.
    pub fn rest(&mut self) -> (Vec<u8>, End) {
        loop {
            if let Err(end) = self.receive(self.patience) {
                return (std::mem::take(&mut self.buffer), end);
            }
        }
    }

    /// Bytes that arrived and belong to no reply yet.
    pub fn leftover(&self) -> &[u8] {
        &self.buffer
    }

    fn receive(&mut self, patience: Duration) -> Result<(), End> {
        if let Some(end @ (End::Closed | End::Reset)) = &self.ended {
            return Err(end.clone());
        }
        let mut chunk = [0; 65_536];
        let patience = Some(patience.max(Duration::from_millis(1)));
        let read = match &mut self.stream {
            Stream::Tcp(stream) => stream.set_read_timeout(patience).and_then(|()| stream.read(&mut chunk)),
            Stream::Unix(stream) => stream.set_read_timeout(patience).and_then(|()| stream.read(&mut chunk)),
            Stream::Tls(stream) => stream.0.sock.set_read_timeout(patience).and_then(|()| stream.0.read(&mut chunk)),
        };
        let end = match read {
            Ok(0) => End::Closed,
            Ok(length) => {
                self.buffer.extend_from_slice(chunk.get(..length).unwrap_or_default());
                return Ok(());
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => End::Timeout,
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            Err(_) => End::Reset,
        };
        self.ended = Some(end.clone());
        Err(end)
    }
}

/// One GET on a connection of its own, as admin pages are read.
pub fn get(target: &Target, path: &str, patience: Duration) -> std::io::Result<Response> {
    let mut connection = Connection::open(target, patience)?;
    connection.send(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").as_bytes())?;
    Ok(connection.response("GET"))
}
