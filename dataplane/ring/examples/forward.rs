//! The least that can forward HTTP/1.1: what a request costs when only the ring works for it.
//!
//! It passes requests and responses on unread but for where they end (an empty line, Content-Length), over pooled upstream
//! connections. `forward LISTEN UPSTREAM [uring|epoll] [CPU] [BUSY_POLL_US]`

use std::cell::RefCell;
use std::error::Error;
use std::future::poll_fn;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use torus_ring::{Chunk, ConnectOptions, PeerAddr, Ring, RingConfig, Socket, pin_to};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let argument = |at: usize| arguments.get(at).map(String::as_str);
    let (Some(listen), Some(upstream)) = (argument(0), argument(1)) else {
        return Err("usage: forward LISTEN UPSTREAM [uring|epoll] [CPU] [BUSY_POLL_US]".into());
    };
    if let Some(cpu) = argument(3) {
        pin_to(cpu.parse()?);
    }
    let mut config = RingConfig { driver: argument(2).unwrap_or("auto").parse()?, ..RingConfig::default() };
    if let Some(micros) = argument(4) {
        config.busy_poll = Some(Duration::from_micros(micros.parse()?));
    }
    let ring = Ring::new(&config)?;
    eprintln!("{}", ring.report());
    let upstream = PeerAddr::Ip(upstream.parse::<SocketAddr>()?);
    let mut listener = ring.listen(TcpListener::bind(listen)?.into());
    let pool = Rc::new(RefCell::new(Vec::new()));
    let handle = ring.clone();
    ring.block_on(async move {
        loop {
            match listener.accept().await {
                Ok(client) => {
                    let (ring, upstream, pool) = (handle.clone(), upstream.clone(), Rc::clone(&pool));
                    handle.spawn(async move {
                        // A connection that breaks ends; the example has nobody to tell.
                        let _ = serve(&ring, client, &upstream, &pool).await;
                    });
                }
                Err(error) => eprintln!("accept: {error}"),
            }
        }
    })
}

async fn serve(ring: &Ring, mut client: Socket, upstream: &PeerAddr, pool: &RefCell<Vec<Socket>>) -> io::Result<()> {
    while let Some(request) = client.recv().await? {
        let pooled = pool.borrow_mut().pop();
        let mut server = match pooled {
            Some(server) => server,
            None => ring.connect(upstream, &ConnectOptions::default()).await?,
        };
        let mut ends = request.ends_with(b"\r\n\r\n");
        server.write(request);
        while !ends {
            let Some(more) = client.recv().await? else { return Ok(()) };
            ends = more.ends_with(b"\r\n\r\n");
            server.write(more);
        }
        let Some(first) = server.recv().await? else { return Ok(()) };
        let Some(total) = response_bytes(&first) else { return Ok(()) };
        let mut left = total.saturating_sub(first.len());
        client.write(first);
        while left > 0 {
            let chunk: Option<Chunk> = poll_fn(|context| match client.poll_drained(context, 128 << 10) {
                Poll::Ready(result) => {
                    result?;
                    server.poll_recv(context)
                }
                Poll::Pending => Poll::Pending,
            })
            .await?;
            let Some(chunk) = chunk else { return Ok(()) };
            left = left.saturating_sub(chunk.len());
            client.write(chunk);
        }
        pool.borrow_mut().push(server);
    }
    Ok(())
}

/// Bytes of a response, by its head and Content-Length.
fn response_bytes(start: &[u8]) -> Option<usize> {
    let mut head = 0;
    let mut length = 0;
    for line in start.split_inclusive(|byte| *byte == b'\n') {
        head += line.len();
        if line == b"\r\n" {
            return Some(head + length);
        }
        const NAME: &[u8] = b"content-length: ";
        if line.len() > NAME.len() && line[..NAME.len()].eq_ignore_ascii_case(NAME) {
            let digits = line[NAME.len()..].iter().take_while(|byte| byte.is_ascii_digit());
            length = digits.fold(0, |length, digit| length * 10 + usize::from(digit - b'0'));
        }
    }
    None
}
