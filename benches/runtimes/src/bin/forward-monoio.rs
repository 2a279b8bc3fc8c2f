//! The minimal forwarding on monoio, with the flags of the ring that the proxy's own runtime sets; `--default-flags` behind the
//! addresses leaves them out.

use std::cell::RefCell;
use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

use monoio::buf::IoBuf;
use monoio::io::{AsyncReadRent, AsyncWriteRentExt};
use monoio::net::{TcpListener, TcpStream};
use monoio::{IoUringDriver, RuntimeBuilder};
use torus_runtimes::{Stream, addresses, serve};

fn main() -> Result<(), Box<dyn Error>> {
    let (listen, upstream) = addresses()?;
    let mut builder = RuntimeBuilder::<IoUringDriver>::new();
    if !std::env::args().any(|argument| argument == "--default-flags") {
        let mut ring = io_uring::IoUring::builder();
        ring.setup_single_issuer().setup_defer_taskrun();
        builder = builder.uring_builder(ring);
    }
    builder.build()?.block_on(async move {
        let listener = TcpListener::bind(listen)?;
        let pool = Rc::new(RefCell::new(Vec::new()));
        loop {
            let (client, _) = listener.accept().await?;
            client.set_nodelay(true)?;
            let pool = Rc::clone(&pool);
            monoio::spawn(async move {
                // A connection that breaks ends; there is nobody to tell.
                let _ = serve(Socket(client), upstream, &pool).await;
            });
        }
    })
}

struct Socket(TcpStream);

impl Stream for Socket {
    async fn connect(address: SocketAddr) -> io::Result<Socket> {
        let stream = TcpStream::connect_addr(address).await?;
        stream.set_nodelay(true)?;
        Ok(Socket(stream))
    }

    async fn read(&mut self, buffer: Vec<u8>) -> io::Result<(usize, Vec<u8>)> {
        let (length, buffer) = self.0.read(buffer).await;
        Ok((length?, buffer))
    }

    async fn write(&mut self, buffer: Vec<u8>, length: usize) -> io::Result<Vec<u8>> {
        let (written, slice) = self.0.write_all(buffer.slice(..length)).await;
        written?;
        Ok(slice.into_inner())
    }
}
