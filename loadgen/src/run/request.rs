//! What is asked, from the flags: the same request for each protocol.

use std::fs;

use bytes::Bytes;

use super::data::Table;
use super::grpc::{self, Method};
use super::setup::{Options, SetupError};
use super::target::{Kind, Target};
use crate::worker::http2::Message;

/// What is to come back where nothing else is said, 64 bytes.
const ECHO: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-\n";

/// Requests of all rows of `--data` together, in bytes.
const ROWS_BYTES_MAX: usize = 256 << 20;

/// What connections speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Http1,
    Http2,
    Grpc,
    WebSocket,
    Tcp,
}

impl Protocol {
    const ALL: [Protocol; 5] = [Protocol::Http1, Protocol::Http2, Protocol::Grpc, Protocol::WebSocket, Protocol::Tcp];

    /// The protocol that is called `words` in reports.
    pub fn of_words(words: &str) -> Option<Protocol> {
        Protocol::ALL.into_iter().find(|protocol| protocol.words() == words)
    }

    pub fn words(self) -> &'static str {
        match self {
            Protocol::Http1 => "HTTP/1.1",
            Protocol::Http2 => "HTTP/2",
            Protocol::Grpc => "gRPC",
            Protocol::WebSocket => "WebSocket",
            Protocol::Tcp => "TCP",
        }
    }
}

/// What the body of a gRPC call is.
pub enum Call {
    /// One message as it goes on the wire.
    Encoded,
    /// The method's messages, all of them several times over; `place` is where they were written.
    Json { method: Method, times: usize, place: String },
}

/// A request whose parts have been checked.
#[derive(Clone)]
pub struct Parts {
    method: String,
    scheme: &'static str,
    authority: String,
    path: String,
    /// Without Host, which is the authority.
    fields: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Parts {
    /// The request that `options` ask for.
    ///
    /// Errors: no method, no field, or a file that cannot be read.
    pub fn new(options: &Options, target: &Target) -> Result<Parts, SetupError> {
        if !is_token(&options.method) {
            return Err(SetupError::Method(options.method.clone()));
        }
        let text = options.body.as_ref().or(options.message.as_ref());
        let body = match (text, options.body_file.as_ref().or(options.message_file.as_ref())) {
            (Some(text), _) => text.clone().into_bytes(),
            (None, Some(path)) => {
                fs::read(path).map_err(|source| SetupError::File { path: path.display().to_string(), source })?
            }
            (None, None) if target.kind == Kind::Http => Vec::new(),
            (None, None) => ECHO.to_vec(),
        };
        let mut authority = target.authority.clone();
        let mut fields = Vec::new();
        for text in &options.header {
            let bad = || SetupError::Field { flag: "header", text: text.clone() };
            let (name, value) = text.split_once(':').ok_or_else(bad)?;
            if !is_token(name) || !is_value(value) {
                return Err(bad());
            }
            let value = value.trim().to_owned();
            if name.eq_ignore_ascii_case("host") {
                authority = value;
            } else {
                fields.push((name.to_owned(), value));
            }
        }
        let (method, path) = (options.method.clone(), target.path.clone());
        let scheme = if target.is_tls { "https" } else { "http" };
        Ok(Parts { method, scheme, authority, path, fields, body })
    }

    /// The same with the values of each row of `table` where it names columns.
    ///
    /// Errors: a column that does not exist, or a value that cannot stand where it is wanted.
    pub fn filled(&self, table: &Table) -> Result<Vec<Parts>, SetupError> {
        let mut all = Vec::with_capacity(table.rows.len());
        let mut bytes = 0;
        // A body that is no text has no columns.
        let body = std::str::from_utf8(&self.body).ok();
        for (line, row) in &table.rows {
            let path = table.fill(&self.path, row)?;
            if let Some(bad) = path.bytes().find(|byte| !byte.is_ascii_graphic() || *byte == b'#') {
                let what = format!("`{}` cannot stand in the target; write it percent-encoded", bad.escape_ascii());
                return Err(table.bad(*line, what));
            }
            let mut fields = Vec::with_capacity(self.fields.len());
            for (name, template) in &self.fields {
                let value = table.fill(template, row)?;
                if !is_value(&value) {
                    return Err(table.bad(*line, format!("a control character cannot stand in the field {name}")));
                }
                fields.push((name.clone(), value));
            }
            let body = match body {
                Some(template) => table.fill(template, row)?.into_bytes(),
                None => self.body.clone(),
            };
            bytes +=
                path.len() + body.len() + fields.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
            if bytes > ROWS_BYTES_MAX {
                return Err(table.bad(*line, format!("the requests take more than {} MiB", ROWS_BYTES_MAX >> 20)));
            }
            all.push(Parts { path, fields, body, ..self.clone() });
        }
        Ok(all)
    }

    fn has_length(&self) -> bool {
        !self.body.is_empty() || !matches!(&*self.method, "GET" | "HEAD" | "OPTIONS" | "DELETE")
    }

    /// As HTTP/1.1 goes on the wire.
    pub fn http1(&self) -> Vec<u8> {
        let mut head = format!("{} {} HTTP/1.1\r\nhost: {}\r\n", self.method, self.path, self.authority);
        for (name, value) in &self.fields {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if self.has_length() {
            head.push_str(&format!("content-length: {}\r\n", self.body.len()));
        }
        head.push_str("\r\n");
        let mut request = head.into_bytes();
        request.extend_from_slice(&self.body);
        request
    }

    /// The head of an upgrade to WebSocket, without its key and its empty line (RFC 6455 section 4.1).
    pub fn upgrade(&self) -> Vec<u8> {
        let mut head = format!(
            "GET {} HTTP/1.1\r\nhost: {}\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n",
            self.path, self.authority
        );
        for (name, value) in &self.fields {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.into_bytes()
    }

    /// What has to come back.
    pub fn echo(&self) -> Vec<u8> {
        self.body.clone()
    }

    /// As the HTTP/2 codec takes it, with the messages of a gRPC call where it is one.
    ///
    /// Errors: a field that HTTP/2 forbids, a host that is none, or JSON that is no message of the method.
    pub fn http2(&self, call: Option<&Call>) -> Result<Message, SetupError> {
        let is_grpc = call.is_some();
        const FORBIDDEN: [&str; 5] = ["connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"];
        let uri = format!("{}://{}{}", self.scheme, self.authority, self.path);
        let method = if is_grpc { "POST" } else { &*self.method };
        let mut head = http::Request::builder().version(http::Version::HTTP_2).method(method).uri(&uri);
        for (name, value) in &self.fields {
            let lower = name.to_ascii_lowercase();
            if FORBIDDEN.contains(&&*lower) {
                return Err(SetupError::ConnectionField(format!("{name}: {value}")));
            }
            head = head.header(lower, value);
        }
        let body = if let Some(call) = call {
            head = head.header("content-type", "application/grpc").header("te", "trailers");
            match call {
                Call::Encoded => grpc::framed(&self.body),
                Call::Json { method, times, place } => {
                    method.encode(&String::from_utf8_lossy(&self.body), *times, place)?
                }
            }
        } else {
            if self.has_length() {
                head = head.header("content-length", self.body.len());
            }
            Bytes::from(self.body.clone())
        };
        let head = head.body(()).map_err(|_| SetupError::Uri(uri))?;
        Ok(Message { head, body, grpc: is_grpc })
    }
}

fn is_value(text: &str) -> bool {
    !text.bytes().any(|byte| byte < b' ' && byte != b'\t' || byte == 0x7f)
}

fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}
