//! One suite, run on every driver that moves real bytes: io_uring, epoll, and what `Auto` picks in a thread where a
//! seccomp filter refuses io_uring, as the default profiles of container runtimes do.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use torus_ring::*;

mod lifecycle;
mod streams;

use lifecycle::*;
use streams::*;

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

/// Runs until what the closure looks at has come about.
async fn until(ring: &Ring, mut reached: impl FnMut(&RingStats) -> bool) {
    while !reached(&ring.stats()) {
        ring.sleep(Duration::from_millis(1)).await;
    }
}

fn pattern(count: usize) -> Vec<u8> {
    (0..count).map(|at| (at * 31 + at / 253) as u8).collect()
}

fn timers_are_punctual(ring: &Ring) {
    run(ring, async {
        let began = ring.now();
        let order = Rc::new(RefCell::new(Vec::new()));
        for millis in [30u64, 10, 20] {
            let (handle, order) = (ring.clone(), Rc::clone(&order));
            ring.spawn(async move {
                handle.sleep(Duration::from_millis(millis)).await;
                order.borrow_mut().push(millis);
            });
        }
        ring.sleep(Duration::from_millis(40)).await;
        assert_eq!(*order.borrow(), [10, 20, 30]);
        let waited = ring.now() - began;
        assert!(waited >= Duration::from_millis(40), "{waited:?}");

        let mut timer = ring.timer();
        timer.set(ring.now() + Duration::from_millis(5));
        for _ in 0..5 {
            ring.sleep(Duration::from_millis(3)).await;
            timer.set(ring.now() + Duration::from_millis(5));
            assert!(poll_fn(|context| Poll::Ready(timer.poll_expired(context))).await.is_pending());
        }
        let set = timer.deadline().unwrap();
        timer.expired().await;
        assert!(ring.now() >= set);
        timer.clear();
        assert_eq!(timer.deadline(), None);

        let short = ring.now();
        ring.sleep(Duration::from_micros(100)).await;
        assert!(ring.now() - short >= Duration::from_micros(100));
    });
}

fn other_threads_wake_the_ring(ring: &Ring) {
    let remote = ring.remote();
    let thread = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        remote.wake();
    });
    run(ring, ring.remote_woken());
    thread.join().unwrap();
    // A wake that came while nobody waited is not lost, and several are one.
    ring.remote().wake();
    ring.remote().wake();
    run(ring, async {
        ring.remote_woken().await;
        assert!(poll_fn(|context| Poll::Ready(std::pin::pin!(ring.remote_woken()).poll(context))).await.is_pending());
    });
    // A plain waker, from another thread.
    let (sender, receiver) = std::sync::mpsc::channel::<std::task::Waker>();
    let fired = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let flag = std::sync::Arc::clone(&fired);
    let thread = std::thread::spawn(move || {
        let waker = receiver.recv().unwrap();
        std::thread::sleep(Duration::from_millis(10));
        flag.store(true, std::sync::atomic::Ordering::SeqCst);
        waker.wake();
    });
    run(
        ring,
        poll_fn(|context| {
            if fired.load(std::sync::atomic::Ordering::SeqCst) {
                return Poll::Ready(());
            }
            let _ = sender.send(context.waker().clone());
            Poll::Pending
        }),
    );
    thread.join().unwrap();
}

fn a_panic_ends_one_task(ring: &Ring) {
    run(ring, async {
        let (mut client, server) = pair(ring).await;
        ring.spawn(async move {
            let _server = server;
            panic!("this panic is part of a test");
        });
        assert!(client.recv().await.unwrap().is_none(), "what the task held was dropped");
        assert_eq!(ring.stats().task_panics, 1);
    });
}

fn a_busy_task_does_not_starve_the_others(ring: &Ring) {
    run(ring, async {
        let stop = Rc::new(RefCell::new(false));
        let flag = Rc::clone(&stop);
        ring.spawn(poll_fn(move |context| {
            if *flag.borrow() {
                return Poll::Ready(());
            }
            context.waker().wake_by_ref();
            Poll::Pending
        }));
        let (mut client, mut server) = pair(ring).await;
        for _ in 0..20 {
            client.write("ping");
            assert_eq!(receive_exactly(&mut server, 4).await.unwrap(), b"ping");
            ring.sleep(Duration::from_micros(10)).await;
        }
        *stop.borrow_mut() = true;
    });
}

fn the_heartbeat_tells_work_from_waiting(ring: &Ring) {
    let heartbeat = ring.heartbeat();
    assert_eq!(heartbeat.busy_for(), None);
    run(ring, async {
        assert!(heartbeat.busy_for().is_some());
        let watcher = heartbeat.clone();
        let thread = std::thread::spawn(move || {
            let mut waits = 0;
            for _ in 0..50 {
                std::thread::sleep(Duration::from_millis(1));
                waits += usize::from(watcher.busy_for().is_none());
            }
            waits
        });
        ring.sleep(Duration::from_millis(60)).await;
        assert!(thread.join().unwrap() > 0);
    });
    assert_eq!(heartbeat.busy_for(), None);
    assert!(ring.stats().turns > 0 && ring.stats().enters > 0);
    let skew = ring.wall().elapsed().unwrap_or_default();
    assert!(skew < PATIENCE);
}

fn busy_polling_finds_what_comes(ring: &Ring) {
    let driver = match ring.report().kind {
        DriverKind::Uring => DriverChoice::Uring,
        _ => DriverChoice::Epoll,
    };
    let config = RingConfig { driver, busy_poll: Some(Duration::from_micros(200)), ..RingConfig::default() };
    let ring = &Ring::new(&config).unwrap();
    echo(ring);
    timers_are_punctual(ring);
    other_threads_wake_the_ring(ring);
}

fn config(driver: DriverChoice) -> RingConfig {
    RingConfig { driver, ..RingConfig::default() }
}

/// Runs a test in a thread in which a seccomp filter answers io_uring's three calls as container runtimes do.
fn refused(test: fn(&Ring)) {
    let thread = std::thread::spawn(move || {
        refuse_io_uring(libc::EPERM);
        let ring = Ring::new(&config(DriverChoice::Auto)).unwrap();
        assert_eq!(ring.report().kind, DriverKind::Epoll);
        assert_eq!(ring.report().gate, Some(Gate::Seccomp));
        test(&ring);
    });
    if let Err(cause) = thread.join() {
        std::panic::resume_unwind(cause);
    }
}

fn refuse_io_uring(errno: i32) {
    use seccompiler::{SeccompAction, SeccompFilter};
    let calls = [libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register];
    let filter = SeccompFilter::new(
        calls.into_iter().map(|call| (call, Vec::new())).collect(),
        SeccompAction::Allow,
        SeccompAction::Errno(errno as u32),
        std::env::consts::ARCH.try_into().unwrap(),
    )
    .unwrap();
    let program: seccompiler::BpfProgram = filter.try_into().unwrap();
    seccompiler::apply_filter(&program).unwrap();
}

#[test]
fn a_shut_gate_is_named_with_its_cure() {
    for errno in [libc::EPERM, libc::ENOSYS] {
        std::thread::spawn(move || {
            refuse_io_uring(errno);
            let Err(SetupError::Uring(gate)) = Ring::new(&config(DriverChoice::Uring)) else {
                panic!("io_uring was refused");
            };
            assert_eq!(gate, Gate::Seccomp);
            assert!(gate.to_string().contains("seccomp profile"), "{gate}");
            let report = Ring::new(&config(DriverChoice::Auto)).unwrap().report().to_string();
            assert!(report.starts_with("epoll; gate seccomp: "), "{report}");
        })
        .join()
        .unwrap();
    }
}

#[test]
fn wrong_numbers_are_refused_by_name() {
    let check = |config: RingConfig, expected: &str| {
        let Err(error) = Ring::new(&config) else { panic!("accepted: {config:?}") };
        assert!(error.to_string().contains(expected), "{error}");
    };
    check(RingConfig { buffer_count: 3, ..RingConfig::default() }, "buffer_count is 3");
    check(RingConfig { buffer_count: 0, ..RingConfig::default() }, "buffer_count is 0");
    check(RingConfig { buffer_bytes: 1, ..RingConfig::default() }, "buffer_bytes is 1");
    check(RingConfig { submission_entries: 5000, ..RingConfig::default() }, "submission_entries is 5000");
    assert!("io-uring".parse::<DriverChoice>().is_err());
    assert_eq!("uring".parse(), Ok(DriverChoice::Uring));
}

macro_rules! on_every_driver {
    ($($test:ident),* $(,)?) => {
        mod epoll {
            $(#[test] fn $test() {
                super::$test(&torus_ring::Ring::new(&super::config(torus_ring::DriverChoice::Epoll)).unwrap());
            })*
        }
        mod uring {
            $(#[test] fn $test() {
                super::$test(&torus_ring::Ring::new(&super::config(torus_ring::DriverChoice::Uring)).unwrap());
            })*
        }
        mod seccomp {
            $(#[test] fn $test() {
                super::refused(super::$test);
            })*
        }
    };
}

on_every_driver!(
    echo,
    parts_of_all_kinds_leave_in_order,
    a_long_stream_survives_a_slow_reader,
    streams_in_both_directions_keep_their_bytes,
    half_close_ends_one_side_only,
    failed_connects_say_why,
    connects_reach_every_kind_of_address,
    options_reach_the_socket,
    a_dropped_connect_closes_its_descriptor,
    a_reset_is_an_error_on_both_sides_of_the_socket,
    a_graceful_close_delivers_everything,
    a_graceful_close_ends_with_its_linger,
    parked_sockets_wake_by_token,
    timers_are_punctual,
    other_threads_wake_the_ring,
    dropping_a_listener_leaves_the_socket_listening,
    everything_is_returned,
    a_panic_ends_one_task,
    a_busy_task_does_not_starve_the_others,
    what_is_put_back_comes_first,
    received_chunks_travel_on_without_a_copy,
    many_connections_at_once,
    the_heartbeat_tells_work_from_waiting,
    adopted_descriptors_work_and_are_closed,
    a_closed_ring_gives_back_its_descriptors,
    held_buffers_stop_nobody,
    busy_polling_finds_what_comes,
);
