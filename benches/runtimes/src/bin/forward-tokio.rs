//! The minimal forwarding on tokio's current-thread runtime.

use std::cell::RefCell;
use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::LocalSet;
use torus_runtimes::{Stream, addresses, serve};

fn main() -> Result<(), Box<dyn Error>> {
    let (listen, upstream) = addresses()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    LocalSet::new().block_on(&runtime, async move {
        let listener = TcpListener::bind(listen).await?;
        let pool = Rc::new(RefCell::new(Vec::new()));
        loop {
            let (client, _) = listener.accept().await?;
            client.set_nodelay(true)?;
            let pool = Rc::clone(&pool);
            tokio::task::spawn_local(async move {
                // A connection that breaks ends; there is nobody to tell.
                let _ = serve(Socket(client), upstream, &pool).await;
            });
        }
    })
}

struct Socket(TcpStream);

impl Stream for Socket {
    async fn connect(address: SocketAddr) -> io::Result<Socket> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Socket(stream))
    }

    async fn read(&mut self, mut buffer: Vec<u8>) -> io::Result<(usize, Vec<u8>)> {
        let length = self.0.read(&mut buffer).await?;
        Ok((length, buffer))
    }

    async fn write(&mut self, buffer: Vec<u8>, length: usize) -> io::Result<Vec<u8>> {
        self.0.write_all(&buffer[..length]).await?;
        Ok(buffer)
    }
}
