//! The simulated driver: a client, a forwarder and a backend in one ring, over many seeds.

use std::cell::{Cell, RefCell};
use std::future::{pending, poll_fn};
use std::io;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use torus_ring::sim::{self, SimConfig};
use torus_ring::*;

fn address(port: u16) -> PeerAddr {
    PeerAddr::Ip(format!("10.0.0.1:{port}").parse().unwrap())
}

fn pattern(count: usize, start: usize) -> Vec<u8> {
    (start..start + count).map(|at| (at * 31 + at / 253) as u8).collect()
}

async fn receive_exactly(socket: &mut Socket, count: usize) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    while all.len() < count {
        let Some(mut chunk) = socket.recv().await? else { return Err(io::ErrorKind::UnexpectedEof.into()) };
        all.extend_from_slice(&chunk.split_to(count - all.len()));
        socket.unread(chunk);
    }
    Ok(all)
}

/// Passes bytes and ends on in both directions.
async fn pump(mut one: Socket, mut two: Socket) {
    let mut ended = [false; 2];
    let _ = poll_fn(|context| {
        for _ in 0..2 {
            let (from, to, has_ended) = (&mut one, &mut two, &mut ended[0]);
            while !*has_ended {
                match to.poll_drained(context, 16 << 10) {
                    Poll::Pending => break,
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Ready(Ok(())) => {}
                }
                match from.poll_recv(context) {
                    Poll::Pending => break,
                    Poll::Ready(Ok(Some(chunk))) => to.write(chunk),
                    Poll::Ready(Ok(None)) => {
                        *has_ended = true;
                        to.shutdown_write();
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                }
            }
            std::mem::swap(&mut one, &mut two);
            ended.swap(0, 1);
        }
        if ended == [true; 2] { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
    .await;
    one.close_gracefully(Duration::from_secs(5));
    two.close_gracefully(Duration::from_secs(5));
}

/// What became of the exchanges of one run, and a trace of when.
#[derive(PartialEq, Debug, Default)]
struct Outcome {
    answered: usize,
    failed: usize,
    trace: Vec<(u64, usize)>,
}

const CLIENTS: usize = 6;
const ROUNDS: usize = 4;

fn run(config: &SimConfig) -> Outcome {
    let ring = sim::ring(config);
    let outcome = Rc::new(RefCell::new(Outcome::default()));
    let backend = ring.clone();
    let mut listener = ring.listen_sim(&address(80));
    ring.spawn(async move {
        while let Ok(mut socket) = listener.accept().await {
            let ring = backend.clone();
            backend.spawn(async move {
                while let Ok(head) = receive_exactly(&mut socket, 8).await {
                    let count = usize::from_le_bytes(head.try_into().unwrap());
                    let Ok(body) = receive_exactly(&mut socket, count).await else { return };
                    assert!(body == pattern(count, count));
                    ring.sleep(Duration::from_millis(count as u64 % 7)).await;
                    socket.write(ring.chunk(&body));
                    if socket.drained(0).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    let mut front = ring.listen_sim(&address(8080));
    let forwarder = ring.clone();
    ring.spawn(async move {
        while let Ok(socket) = front.accept().await {
            let ring = forwarder.clone();
            forwarder.spawn(async move {
                if let Ok(upstream) = ring.connect(&address(80), &ConnectOptions::default()).await {
                    pump(socket, upstream).await;
                }
            });
        }
    });
    let left = Rc::new(Cell::new(CLIENTS));
    for client in 0..CLIENTS {
        let (handle, outcome, left) = (ring.clone(), Rc::clone(&outcome), Rc::clone(&left));
        ring.spawn(async move {
            for round in 0..ROUNDS {
                let count = 1 + client * 3001 + round * 20_011;
                let exchange = async {
                    let mut socket = handle.connect(&address(8080), &ConnectOptions::default()).await?;
                    socket.write(handle.chunk(&count.to_le_bytes()));
                    socket.write(handle.chunk(&pattern(count, count)));
                    assert!(receive_exactly(&mut socket, count).await? == pattern(count, count));
                    Ok::<(), io::Error>(())
                };
                let answered = exchange.await.is_ok();
                let mut outcome = outcome.borrow_mut();
                outcome.answered += usize::from(answered);
                outcome.failed += usize::from(!answered);
                outcome.trace.push((handle.now().as_nanos(), client));
            }
            left.set(left.get() - 1);
        });
    }
    let (handle, seed) = (ring.clone(), config.seed);
    ring.block_on(async move {
        // An hour: the clock is virtual, and a run that is not over by then never is.
        let mut patience = 3600;
        while left.get() > 0 || handle.stats().sockets_open > 0 {
            handle.sleep(Duration::from_secs(1)).await;
            patience -= 1;
            assert!(patience > 0, "seed {seed}: {} clients, {:?}", left.get(), handle.stats());
        }
    });
    let stats = ring.stats();
    assert_eq!((stats.task_panics, stats.buffers_leased, stats.chunks_copied), (0, 0, 0), "seed {}", config.seed);
    drop(ring);
    Rc::into_inner(outcome).unwrap().into_inner()
}

#[test]
fn a_kind_network_answers_everything() {
    for seed in 0..60 {
        let outcome = run(&SimConfig { seed, ..SimConfig::default() });
        assert_eq!((outcome.answered, outcome.failed), (CLIENTS * ROUNDS, 0), "seed {seed}");
    }
}

#[test]
fn a_hostile_network_ends_every_exchange_once() {
    let mut failed = 0;
    for seed in 0..60 {
        let config =
            SimConfig { seed, reset_per_mille: 5, refuse_per_mille: 50, split_per_mille: 600, ..SimConfig::default() };
        let outcome = run(&config);
        assert_eq!(outcome.answered + outcome.failed, CLIENTS * ROUNDS, "seed {seed}");
        failed += outcome.failed;
    }
    assert!(failed > 0, "the network was hostile");
}

#[test]
fn few_buffers_and_narrow_windows_only_delay() {
    for seed in 0..20 {
        let config = SimConfig {
            seed,
            window_bytes: 100,
            buffer_count: 4,
            buffer_bytes: 256,
            receive_queue_bytes_max: 512,
            ..SimConfig::default()
        };
        let outcome = run(&config);
        assert_eq!((outcome.answered, outcome.failed), (CLIENTS * ROUNDS, 0), "seed {seed}");
    }
}

#[test]
fn a_seed_repeats_its_run() {
    let config = SimConfig { seed: 42, reset_per_mille: 5, ..SimConfig::default() };
    let first = run(&config);
    assert_eq!(first, run(&config));
    assert_ne!(first.trace, run(&SimConfig { seed: 43, ..config }).trace);
}

#[test]
fn a_world_that_stops_names_its_seed() {
    let ring = sim::ring(&SimConfig { seed: 7, ..SimConfig::default() });
    let mut listener = ring.listen_sim(&address(1));
    let stopped = ring.try_block_on(listener.accept()).err().unwrap();
    assert_eq!(stopped.seed, 7);
    assert!(stopped.to_string().contains("seed 7"));
    assert!(ring.try_block_on(pending::<()>()).is_err());
    // The ring itself is still good.
    ring.block_on(ring.sleep(Duration::from_secs(86_400)));
    assert_eq!(ring.now().as_nanos() / 1_000_000_000, 86_400);
}

#[test]
fn ends_and_addresses_are_those_of_tcp() {
    let ring = sim::ring(&SimConfig { delay_per_mille: 0, split_per_mille: 0, ..SimConfig::default() });
    ring.block_on(async {
        let options = ConnectOptions::default();
        let refused = ring.connect(&address(9), &options).await.err().unwrap();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        let mut listener = ring.listen_sim(&address(9));
        let mut pair = async || {
            let client = ring.connect(&address(9), &options).await.unwrap();
            (client, listener.accept().await.unwrap())
        };
        let (mut client, mut server) = pair().await;
        assert_eq!(client.peer_addr().unwrap(), address(9));
        assert_eq!(client.local_addr().unwrap(), server.peer_addr().unwrap());
        client.write("question");
        client.shutdown_write();
        assert_eq!(receive_exactly(&mut server, 8).await.unwrap(), b"question");
        assert!(server.recv().await.unwrap().is_none());
        server.write("answer");
        server.close_gracefully(Duration::from_secs(1));
        assert_eq!(receive_exactly(&mut client, 6).await.unwrap(), b"answer");
        assert!(client.recv().await.unwrap().is_none());

        let (mut client, server) = pair().await;
        server.abort();
        assert_eq!(client.recv().await.err().unwrap().kind(), io::ErrorKind::ConnectionReset);

        // Bytes that nobody read make a close a reset.
        let (mut client, server) = pair().await;
        client.write("unread");
        ring.sleep(Duration::from_secs(1)).await;
        drop(server);
        assert_eq!(client.recv().await.err().unwrap().kind(), io::ErrorKind::ConnectionReset);

        let (client, mut server) = pair().await;
        server.park(5);
        drop(client);
        assert_eq!(ring.next_parked().await, 5);
        assert!(server.recv().await.unwrap().is_none());

        // A listener that goes takes untaken connections along.
        let mut client = ring.connect(&address(9), &options).await.unwrap();
        drop(listener);
        assert!(client.recv().await.unwrap().is_none());
    });
}
