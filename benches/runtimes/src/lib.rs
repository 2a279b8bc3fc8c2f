//! What the forwarders have in common: they pass requests and responses on unread but for where these end (an empty line,
//! Content-Length), over pooled connections to one upstream. The proxy's own runtime does the same in
//! `dataplane/ring/examples/forward.rs`.

use std::cell::RefCell;
use std::error::Error;
use std::io;
use std::net::SocketAddr;

/// Bytes that one read takes at most.
const BUFFER_BYTES: usize = 16 * 1024;

/// A connection of a runtime. Buffers go with the calls and come back, for some runtimes lend them to the kernel.
#[allow(async_fn_in_trait, reason = "the runtimes have one thread each")]
pub trait Stream: Sized {
    async fn connect(address: SocketAddr) -> io::Result<Self>;

    /// Bytes that were read to the start of `buffer`; 0 at the end.
    async fn read(&mut self, buffer: Vec<u8>) -> io::Result<(usize, Vec<u8>)>;

    /// Writes the first `length` bytes.
    async fn write(&mut self, buffer: Vec<u8>, length: usize) -> io::Result<Vec<u8>>;
}

/// Serves one client to its end.
pub async fn serve<S: Stream>(mut client: S, upstream: SocketAddr, pool: &RefCell<Vec<S>>) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let mut length;
        (length, buffer) = client.read(buffer).await?;
        if length == 0 {
            return Ok(());
        }
        let pooled = pool.borrow_mut().pop();
        let mut server = match pooled {
            Some(server) => server,
            None => S::connect(upstream).await?,
        };
        buffer = server.write(buffer, length).await?;
        while !buffer[..length].ends_with(b"\r\n\r\n") {
            (length, buffer) = client.read(buffer).await?;
            if length == 0 {
                return Ok(());
            }
            buffer = server.write(buffer, length).await?;
        }
        let mut left = None;
        while left != Some(0) {
            (length, buffer) = server.read(buffer).await?;
            let Some(total) = left.or_else(|| response_bytes(&buffer[..length])) else { return Ok(()) };
            if length == 0 {
                return Ok(());
            }
            left = Some(total.saturating_sub(length));
            buffer = client.write(buffer, length).await?;
        }
        pool.borrow_mut().push(server);
    }
}

/// Where to listen and where to send.
pub fn addresses() -> Result<(SocketAddr, SocketAddr), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(listen), Some(upstream)) = (arguments.next(), arguments.next()) else {
        return Err("usage: LISTEN UPSTREAM".into());
    };
    Ok((listen.parse()?, upstream.parse()?))
}

/// Bytes of a response, by its head and Content-Length.
fn response_bytes(start: &[u8]) -> Option<usize> {
    const NAME: &[u8] = b"content-length: ";
    let mut head = 0;
    let mut length = 0;
    for line in start.split_inclusive(|byte| *byte == b'\n') {
        head += line.len();
        if line == b"\r\n" {
            return Some(head + length);
        }
        if let Some((name, digits)) = line.split_at_checked(NAME.len())
            && name.eq_ignore_ascii_case(NAME)
        {
            let digits = digits.iter().take_while(|byte| byte.is_ascii_digit());
            length = digits.fold(0, |length, digit| length * 10 + usize::from(digit - b'0'));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn responses_end_where_their_length_says() {
        assert_eq!(response_bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\nabc"), Some(51));
        assert_eq!(response_bytes(b"HTTP/1.1 204 No Content\r\n\r\n"), Some(27));
        assert_eq!(response_bytes(b"HTTP/1.1 200 OK\r\nContent-Le"), None);
    }
}
