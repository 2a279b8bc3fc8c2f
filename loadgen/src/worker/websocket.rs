//! The upgrade of an HTTP/1.1 connection to WebSocket, from the client's side (RFC 6455 section 4.1).

use std::rc::Rc;

use super::Payload;
use super::stream::Stream;
use crate::record::Cause;
use crate::websocket::accept;

/// Longest head of a reply that is taken, in bytes.
const HEAD_BYTES_MAX: usize = 64 << 10;
const FIELDS_MAX: usize = 128;

/// Asks for the upgrade on a new connection: what came behind the reply's head.
///
/// Errors: the peer refuses, or answers something else; the connection ends.
pub(super) async fn upgrade(stream: &mut Stream, head: &[u8], key: &str) -> Result<Vec<u8>, Cause> {
    let mut request = head.to_vec();
    request.extend_from_slice(format!("sec-websocket-key: {key}\r\n\r\n").as_bytes());
    let request: Payload = Rc::new(request.into());
    stream.write_all(request).await.map_err(|_| Cause::Write)?;
    let mut received = Vec::new();
    let mut buffer = Vec::with_capacity(4096);
    loop {
        let (read, filled) = stream.read(buffer).await;
        buffer = filled;
        match read {
            Ok(0) | Err(_) => return Err(Cause::Closed),
            Ok(_) => received.append(&mut buffer),
        }
        if let Some(length) = head_length(&received, &accept(key))? {
            received.drain(..length);
            return Ok(received);
        }
        if received.len() > HEAD_BYTES_MAX {
            return Err(Cause::Malformed);
        }
    }
}

/// Bytes of the head that agrees to the upgrade; nothing while it is incomplete.
fn head_length(received: &[u8], accept: &str) -> Result<Option<usize>, Cause> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut response = httparse::Response::new(&mut fields);
    let length = match response.parse(received) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err(Cause::Malformed),
    };
    let says = |name: &str, value: &str, exactly: bool| {
        response.headers.iter().filter(|field| field.name.eq_ignore_ascii_case(name)).any(|field| {
            let field = field.value.trim_ascii();
            if exactly { field == value.as_bytes() } else { field.eq_ignore_ascii_case(value.as_bytes()) }
        })
    };
    let agreed = response.code == Some(101)
        && says("upgrade", "websocket", false)
        && says("sec-websocket-accept", accept, true)
        && !response.headers.iter().any(|field| field.name.eq_ignore_ascii_case("sec-websocket-extensions"));
    if agreed { Ok(Some(length)) } else { Err(Cause::Upgrade) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_agreement_is_one() {
        let good = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: WebSocket\r\nConnection: Upgrade\r\n\
                    Sec-WebSocket-Accept: abc=\r\n\r\n";
        assert_eq!(head_length(format!("{good}\x01").as_bytes(), "abc="), Ok(Some(good.len())));
        assert_eq!(head_length(&good.as_bytes()[..30], "abc="), Ok(None));
        for (from, to, expected) in [
            ("101", "200", Cause::Upgrade),
            ("abc=", "ABC=", Cause::Upgrade),
            ("Upgrade: WebSocket\r\n", "", Cause::Upgrade),
            ("Connection: Upgrade", "Sec-WebSocket-Extensions: x", Cause::Upgrade),
            ("HTTP/1.1", "SSH", Cause::Malformed),
        ] {
            assert_eq!(head_length(good.replace(from, to).as_bytes(), "abc="), Err(expected), "{to}");
        }
    }
}
