//! One question to torusd's HTTP port.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

/// Why torusd gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("torusd at {address} cannot be reached: {error}; start it, or say where it is with --http-address")]
    Unreachable { address: String, error: std::io::Error },
    #[error("{address} does not answer as torusd does: {reason}; is --http-address its HTTP port?")]
    Strange { address: String, reason: String },
    #[error("torusd at {address}: {status}: {reason}")]
    Refused { address: String, status: String, reason: String },
}

/// The body of `path` at `address`.
pub(super) fn get(address: &str, path: &str) -> Result<String, ClientError> {
    ask("GET", address, path)
}

/// What is answered to a change at `path`.
pub(super) fn put(address: &str, path: &str) -> Result<String, ClientError> {
    ask("PUT", address, path)
}

fn ask(method: &str, address: &str, path: &str) -> Result<String, ClientError> {
    let unreachable = |error| ClientError::Unreachable { address: address.to_owned(), error };
    let strange = |reason: &str| ClientError::Strange { address: address.to_owned(), reason: reason.to_owned() };
    let mut resolved = address.to_socket_addrs().map_err(unreachable)?;
    let target = resolved.next().ok_or_else(|| strange("the name has no address"))?;
    let mut connection = TcpStream::connect_timeout(&target, TIMEOUT).map_err(unreachable)?;
    connection.set_read_timeout(Some(TIMEOUT)).map_err(unreachable)?;
    // HTTP/1.0 (RFC 1945): the answer ends with the connection and is never chunked.
    let request = format!("{method} {path} HTTP/1.0\r\nHost: {address}\r\nContent-Length: 0\r\n\r\n");
    connection.write_all(request.as_bytes()).map_err(unreachable)?;
    let mut answer = Vec::new();
    connection.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).map_err(unreachable)?;
    let answer = String::from_utf8(answer).map_err(|_| strange("not text"))?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| strange("not HTTP"))?;
    let status = head.lines().next().and_then(|line| line.strip_prefix("HTTP/1."));
    let status = status.and_then(|line| line.get(2..)).ok_or_else(|| strange("not HTTP"))?;
    if status.starts_with("200") {
        return Ok(body.to_owned());
    }
    Err(ClientError::Refused { address: address.to_owned(), status: status.to_owned(), reason: body.trim().to_owned() })
}

/// The JSON at `path`.
pub(super) fn get_json(address: &str, path: &str) -> Result<serde_json::Value, ClientError> {
    serde_json::from_str(&get(address, path)?)
        .map_err(|error| ClientError::Strange { address: address.to_owned(), reason: format!("not JSON: {error}") })
}

/// `text` as part of a query (RFC 3986, section 2.1).
pub(super) fn escape(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

const TIMEOUT: Duration = Duration::from_secs(10);
/// A dump of 100,000 endpoints is about 50 MB.
const ANSWER_BYTES_MAX: u64 = 1 << 30;
