//! A client, a forwarder and a backend under the worst conditions a ring can be given: queues of a few entries, two
//! receive buffers, submissions that fail, connections dropped at any moment. Every byte is compared, and at the end
//! descriptors, buffers, slots and tasks are back where they began.
//!
//! `TORUS_STRESS_BYTES` says how many bytes the clients of each driver receive back.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::net::TcpListener;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use torus_ring::*;

const BYTES_DEFAULT: u64 = 128 << 20;
const CONNECTIONS_AT_ONCE: usize = 12;

/// What is sent: a block without period, repeated; each connection starts elsewhere in it.
struct Pattern(Vec<u8>);

impl Pattern {
    fn new() -> Pattern {
        let mut dice = Dice(1);
        Pattern((0..1 << 17).flat_map(|_| dice.next().to_le_bytes()).collect())
    }

    fn at(&self, offset: u64, length: usize) -> &[u8] {
        let start = offset as usize % self.0.len();
        &self.0[start..self.0.len().min(start + length)]
    }

    fn check(&self, mut offset: u64, mut received: &[u8]) {
        while !received.is_empty() {
            let expected = self.at(offset, received.len());
            let (now, later) = received.split_at(expected.len());
            assert!(now == expected, "wrong bytes at {offset}");
            offset += now.len() as u64;
            received = later;
        }
    }
}

struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed ^ (mixed >> 27)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// What one connection's client does.
struct Plan {
    start: u64,
    total: u64,
    /// Bytes received after which the client drops everything.
    dropped_after: Option<u64>,
}

struct World {
    ring: Ring,
    pattern: Pattern,
    dice: RefCell<Dice>,
    wanted: u64,
    received: Cell<u64>,
    running: Cell<usize>,
    finished: Cell<u64>,
    dropped: Cell<u64>,
}

impl World {
    fn roll(&self, bound: u64) -> u64 {
        self.dice.borrow_mut().below(bound)
    }

    fn plan(&self) -> Plan {
        let total = match self.roll(4) {
            0 => 1 + self.roll(100),
            1 => 1 + self.roll(10_000),
            2 => 1 + self.roll(1 << 20),
            _ => 1 + self.roll(8 << 20),
        };
        let dropped_after = (self.roll(4) == 0).then(|| self.roll(total));
        Plan { start: self.roll(1 << 30), total, dropped_after }
    }
}

async fn client(world: &World, front: &PeerAddr) -> io::Result<()> {
    let plan = world.plan();
    let options = ConnectOptions::default();
    let connect = world.ring.connect(front, &options);
    let mut socket = if world.roll(20) == 0 {
        // Given up at once: whatever the kernel has begun is undone.
        let mut connect = pin!(connect);
        match poll_fn(|context| Poll::Ready(connect.as_mut().poll(context))).await {
            Poll::Ready(socket) => socket?,
            Poll::Pending => {
                world.dropped.set(world.dropped.get() + 1);
                return Ok(());
            }
        }
    } else {
        connect.await?
    };
    let (mut sent, mut received) = (0, 0);
    while received < plan.total {
        poll_fn(|context| {
            let wrote = poll_write(world, &plan, &mut socket, &mut sent, context)?;
            let read = poll_read(world, &plan, &mut socket, &mut received, context)?;
            if wrote || read { Poll::Ready(io::Result::Ok(())) } else { Poll::Pending }
        })
        .await?;
        if plan.dropped_after.is_some_and(|limit| received >= limit) {
            world.dropped.set(world.dropped.get() + 1);
            if world.roll(2) == 0 {
                socket.abort();
            }
            return Ok(());
        }
        if world.roll(200) == 0 {
            world.ring.sleep(Duration::from_micros(world.roll(500))).await;
        }
    }
    world.finished.set(world.finished.get() + 1);
    match world.roll(3) {
        0 => socket.close_gracefully(Duration::from_secs(5)),
        1 => {
            socket.shutdown_write();
            while let Ok(Some(_)) = socket.recv().await {}
        }
        _ => {}
    }
    Ok(())
}

fn poll_write(
    world: &World,
    plan: &Plan,
    socket: &mut Socket,
    sent: &mut u64,
    context: &mut Context<'_>,
) -> io::Result<bool> {
    let mut wrote = false;
    while *sent < plan.total {
        match socket.poll_drained(context, 48 << 10) {
            Poll::Pending => break,
            Poll::Ready(result) => result?,
        }
        let length = (1 + world.roll(20_000)).min(plan.total - *sent);
        let bytes = world.pattern.at(plan.start + *sent, length as usize);
        *sent += bytes.len() as u64;
        if world.roll(8) == 0 {
            socket.write(world.ring.chunk(bytes));
        } else {
            let mut buffer = world.ring.buffer();
            buffer.extend_from_slice(bytes);
            socket.write(buffer);
        }
        wrote = true;
    }
    Ok(wrote)
}

fn poll_read(
    world: &World,
    plan: &Plan,
    socket: &mut Socket,
    received: &mut u64,
    context: &mut Context<'_>,
) -> io::Result<bool> {
    match socket.poll_recv(context) {
        Poll::Pending => Ok(false),
        Poll::Ready(chunk) => {
            let Some(mut chunk) = chunk? else { return Err(io::ErrorKind::UnexpectedEof.into()) };
            if world.roll(50) == 0 {
                let rest = chunk.split_to(chunk.len() / 2);
                socket.unread(chunk);
                chunk = rest;
            }
            world.pattern.check(plan.start + *received, &chunk);
            *received += chunk.len() as u64;
            world.received.set(world.received.get() + chunk.len() as u64);
            assert!(*received <= plan.total);
            Ok(true)
        }
    }
}

/// Passes chunks on, as they are, in both directions.
async fn forward(mut one: Socket, mut two: Socket) {
    let mut ended = [false; 2];
    let _ = poll_fn(|context| {
        for _ in 0..2 {
            while !ended[0] {
                match two.poll_drained(context, 32 << 10) {
                    Poll::Pending => break,
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Ready(Ok(())) => {}
                }
                match one.poll_recv(context) {
                    Poll::Pending => break,
                    Poll::Ready(Ok(Some(chunk))) => two.write(chunk),
                    Poll::Ready(Ok(None)) => {
                        ended[0] = true;
                        two.shutdown_write();
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
    one.close_gracefully(Duration::from_millis(200));
    two.close_gracefully(Duration::from_millis(200));
}

fn listen(ring: &Ring) -> (Listener, PeerAddr) {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = PeerAddr::Ip(socket.local_addr().unwrap());
    (ring.listen(socket.into()), address)
}

async fn run(world: Rc<World>) {
    let ring = &world.ring;
    let (mut backend, back) = listen(ring);
    let (mut proxy, front) = listen(ring);
    let handle = ring.clone();
    let backend_task = async move {
        while let Ok(mut socket) = backend.accept().await {
            handle.spawn(async move {
                while let Ok(Some(chunk)) = socket.recv().await {
                    socket.write(chunk);
                    if socket.drained(64 << 10).await.is_err() {
                        return;
                    }
                }
                socket.close_gracefully(Duration::from_millis(200));
            });
        }
    };
    let handle = ring.clone();
    let proxy_task = async move {
        while let Ok(socket) = proxy.accept().await {
            let (ring, back) = (handle.clone(), back.clone());
            handle.spawn(async move {
                if let Ok(upstream) = ring.connect(&back, &ConnectOptions::default()).await {
                    forward(socket, upstream).await;
                }
            });
        }
    };
    let clients = async {
        let began = Instant::now();
        while world.received.get() < world.wanted || world.running.get() > 0 {
            if world.received.get() < world.wanted && world.running.get() < CONNECTIONS_AT_ONCE {
                world.running.set(world.running.get() + 1);
                let (world, front) = (Rc::clone(&world), front.clone());
                world.ring.clone().spawn(async move {
                    if let Err(error) = client(&world, &front).await {
                        panic!("a client that dropped nothing failed: {error}");
                    }
                    world.running.set(world.running.get() - 1);
                });
            } else {
                ring.sleep(Duration::from_millis(1)).await;
            }
            let stats = ring.stats();
            assert_eq!(stats.task_panics, 0);
            assert!(began.elapsed() < Duration::from_secs(1200), "no end: {stats:?}");
        }
    };
    let (mut backend_task, mut proxy_task, mut clients) = (Box::pin(backend_task), Box::pin(proxy_task), pin!(clients));
    poll_fn(|context| {
        let _ = backend_task.as_mut().poll(context);
        let _ = proxy_task.as_mut().poll(context);
        clients.as_mut().poll(context)
    })
    .await;
    drop((backend_task, proxy_task));
    let began = Instant::now();
    loop {
        let stats = ring.stats();
        // The watch on the bell is the one operation that stays.
        if stats.sockets_open == 0 && stats.listeners_open == 0 && stats.tasks == 0 && stats.operations_in_flight <= 1 {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "not given back: {stats:?}");
        ring.sleep(Duration::from_millis(5)).await;
    }
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn stress(config: RingConfig, wanted: u64, seed: u64) {
    let before = descriptors();
    let began = Instant::now();
    let ring = Ring::new(&config).unwrap();
    let world = Rc::new(World {
        ring: ring.clone(),
        pattern: Pattern::new(),
        dice: RefCell::new(Dice(seed)),
        wanted,
        received: Cell::new(0),
        running: Cell::new(0),
        finished: Cell::new(0),
        dropped: Cell::new(0),
    });
    ring.block_on(run(Rc::clone(&world)));
    let stats = ring.stats();
    eprintln!(
        "{}, {} submissions, {} buffers of {}: {} bytes back in {:.1?}, {} connections whole, {} dropped\n{stats:?}",
        ring.report().kind,
        config.submission_entries,
        config.buffer_count,
        config.buffer_bytes,
        world.received.get(),
        began.elapsed(),
        world.finished.get(),
        world.dropped.get(),
    );
    assert_eq!((stats.buffers_leased, stats.chunks_copied, stats.sockets_parked), (0, 0, 0));
    assert!(world.finished.get() > 0 && world.dropped.get() > 0);
    drop((world, ring));
    assert_eq!(descriptors(), before);
}

/// One test: descriptors are counted for the whole process.
#[test]
fn everything_survives_the_worst_ring() {
    let wanted = std::env::var("TORUS_STRESS_BYTES").ok().and_then(|text| text.parse().ok()).unwrap_or(BYTES_DEFAULT);
    for driver in [DriverChoice::Uring, DriverChoice::Epoll] {
        let worst = RingConfig {
            driver,
            submission_entries: 4,
            completion_entries: Some(8),
            buffer_count: 2,
            buffer_bytes: 8192,
            receive_queue_bytes_max: 32 << 10,
            submit_faults: Some(SubmitFaults { seed: 11, one_in: 100 }),
            ..RingConfig::default()
        };
        stress(worst.clone(), wanted / 2, 5);
        stress(RingConfig { submit_faults: worst.submit_faults, driver, ..RingConfig::default() }, wanted / 2, 6);
    }
}
