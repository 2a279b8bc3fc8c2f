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

/// Runs until what the closure looks at has come about.
async fn until(ring: &Ring, mut reached: impl FnMut(&RingStats) -> bool) {
    while !reached(&ring.stats()) {
        ring.sleep(Duration::from_millis(1)).await;
    }
}

fn pattern(count: usize) -> Vec<u8> {
    (0..count).map(|at| (at * 31 + at / 253) as u8).collect()
}

fn parts_of_all_kinds_leave_in_order(ring: &Ring) {
    run(ring, async {
        let (mut client, mut server) = pair(ring).await;
        let mut expected = Vec::new();
        for round in 0..20usize {
            let mut buffer = ring.buffer();
            buffer.extend_from_slice(&pattern(round * 100));
            expected.extend_from_slice(&buffer);
            client.write(buffer);
            client.write("static ");
            expected.extend_from_slice(b"static ");
            let shared: std::sync::Arc<[u8]> = pattern(3000).into();
            expected.extend_from_slice(&shared);
            client.write(shared);
            let chunk = ring.chunk(&pattern(round * 500));
            expected.extend_from_slice(&chunk);
            client.write(chunk);
        }
        assert_eq!(client.queued_bytes(), expected.len());
        assert!(receive_exactly(&mut server, expected.len()).await.unwrap() == expected);
        client.drained(0).await.unwrap();
        assert_eq!(client.bytes_sent(), expected.len() as u64);
        assert_eq!(server.bytes_received(), expected.len() as u64);
    });
}

fn a_long_stream_survives_a_slow_reader(ring: &Ring) {
    const TOTAL: usize = 8 << 20;
    run(ring, async {
        let (mut client, mut server) = pair(ring).await;
        let (done, sent) = (Rc::new(RefCell::new(false)), pattern(64 << 10));
        let (flag, block) = (Rc::clone(&done), sent.clone());
        let handle = ring.clone();
        ring.spawn(async move {
            for _ in 0..TOTAL / block.len() {
                let mut buffer = handle.buffer();
                buffer.extend_from_slice(&block);
                client.write(buffer);
                client.drained(128 << 10).await.unwrap();
            }
            client.shutdown_write();
            assert!(client.recv().await.unwrap().is_none());
            *flag.borrow_mut() = true;
        });
        // The reader sleeps until the ring has stopped receiving for it.
        assert!(!server.recv().await.unwrap().unwrap().is_empty());
        until(ring, |stats| stats.paused > 0).await;
        let queued = server.bytes_received();
        ring.sleep(Duration::from_millis(20)).await;
        // What was on its way when the limit was met may still come; nothing after it.
        assert!(server.bytes_received() <= queued + (1 << 20), "{queued} then {}", server.bytes_received());
        let mut at = 0;
        let mut held = Vec::new();
        let mut count = 0;
        while let Some(chunk) = server.recv().await.unwrap() {
            count += chunk.len();
            held.push(chunk);
            if held.len() > 5 {
                held.clear();
            }
            at += 1;
            if at % 50 == 0 {
                ring.sleep(Duration::from_micros(200)).await;
            }
        }
        assert!(count < TOTAL && count > TOTAL - (64 << 10) - 1);
        assert_eq!(server.bytes_received(), TOTAL as u64);
        drop(server);
        while !*done.borrow() {
            ring.sleep(Duration::from_millis(1)).await;
        }
    });
}

fn streams_in_both_directions_keep_their_bytes(ring: &Ring) {
    const TOTAL: usize = 3 << 20;
    run(ring, async {
        let (client, server) = pair(ring).await;
        let finished = Rc::new(RefCell::new(0));
        for mut socket in [client, server] {
            let (handle, finished) = (ring.clone(), Rc::clone(&finished));
            ring.spawn(async move {
                let expected = pattern(TOTAL);
                let (mut sent, mut received) = (0, Vec::with_capacity(TOTAL));
                while sent < TOTAL || received.len() < TOTAL {
                    poll_fn(|context| {
                        let mut progress = false;
                        if sent < TOTAL && socket.poll_drained(context, 32 << 10).is_ready() {
                            let end = (sent + 10_007).min(TOTAL);
                            let mut buffer = handle.buffer();
                            buffer.extend_from_slice(&expected[sent..end]);
                            socket.write(buffer);
                            sent = end;
                            progress = true;
                        }
                        if received.len() < TOTAL
                            && let Poll::Ready(chunk) = socket.poll_recv(context)
                        {
                            received.extend_from_slice(&chunk.unwrap().unwrap());
                            progress = true;
                        }
                        if progress { Poll::Ready(()) } else { Poll::Pending }
                    })
                    .await;
                }
                assert!(received == expected);
                socket.drained(0).await.unwrap();
                *finished.borrow_mut() += 1;
            });
        }
        while *finished.borrow() < 2 {
            ring.sleep(Duration::from_millis(1)).await;
            assert_eq!(ring.stats().task_panics, 0);
        }
    });
}

fn half_close_ends_one_side_only(ring: &Ring) {
    run(ring, async {
        let (mut client, mut server) = pair(ring).await;
        client.write("question");
        client.shutdown_write();
        client.write("too late");
        assert_eq!(receive_all(&mut server).await.unwrap(), b"question");
        assert!(server.recv().await.unwrap().is_none(), "the end stays the end");
        server.write("answer");
        assert_eq!(receive_exactly(&mut client, 6).await.unwrap(), b"answer");
        drop(server);
        assert!(client.recv().await.unwrap().is_none());
    });
}

fn failed_connects_say_why(ring: &Ring) {
    run(ring, async {
        let (fd, closed) = listener();
        drop(fd);
        let options = ConnectOptions::default();
        let refused = ring.connect(&closed, &options).await.err().unwrap();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        let missing = PeerAddr::Path(std::path::Path::new("/nonexistent/socket").into());
        assert_eq!(ring.connect(&missing, &options).await.err().unwrap().kind(), io::ErrorKind::NotFound);
        let bind = Some(PeerAddr::Ip("192.0.2.1:0".parse().unwrap()));
        let unavailable = ring.connect(&closed, &ConnectOptions { bind, ..options }).await.err().unwrap();
        assert_eq!(unavailable.kind(), io::ErrorKind::AddrNotAvailable);
        until(ring, |stats| stats.sockets_open == 0).await;
    });
}

fn connects_reach_every_kind_of_address(ring: &Ring) {
    use std::os::unix::net::UnixListener;
    run(ring, async {
        let path = std::env::temp_dir().join(format!("torus-ring-{}-{:p}", std::process::id(), &raw const *ring));
        let name = format!("torus-ring-{}-{:p}", std::process::id(), &raw const *ring);
        let abstract_name = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
        use std::os::linux::net::SocketAddrExt;
        let listeners: Vec<(OwnedFd, PeerAddr)> = vec![
            (UnixListener::bind(&path).unwrap().into(), PeerAddr::Path(path.as_path().into())),
            (
                UnixListener::bind_addr(&abstract_name).unwrap().into(),
                PeerAddr::Path(std::path::Path::new(&format!("@{name}")).into()),
            ),
        ];
        let v6 = TcpListener::bind("[::1]:0").map(|socket| {
            let address = PeerAddr::Ip(socket.local_addr().unwrap());
            (OwnedFd::from(socket), address)
        });
        for (fd, address) in listeners.into_iter().chain(v6) {
            let mut listener = ring.listen(fd);
            let mut client = ring.connect(&address, &ConnectOptions::default()).await.unwrap();
            let mut server = listener.accept().await.unwrap();
            assert_eq!(client.peer_addr().unwrap(), address);
            assert_eq!(server.local_addr().unwrap(), address);
            client.write("x");
            assert_eq!(&server.recv().await.unwrap().unwrap()[..], b"x");
        }
        std::fs::remove_file(&path).unwrap();
    });
}

fn options_reach_the_socket(ring: &Ring) {
    run(ring, async {
        let (fd, address) = listener();
        let _listener = ring.listen(fd);
        let options = ConnectOptions {
            bind: Some(PeerAddr::Ip("127.0.0.5:0".parse().unwrap())),
            keepalive: Some(Keepalive {
                probes: Some(3),
                idle: Some(Duration::from_secs(60)),
                interval: Some(Duration::from_secs(10)),
            }),
            nodelay: true,
            options: vec![SocketOption {
                level: libc::SOL_SOCKET,
                name: libc::SO_PRIORITY,
                value: 5i32.to_ne_bytes().to_vec(),
            }],
        };
        let client = ring.connect(&address, &options).await.unwrap();
        let PeerAddr::Ip(local) = client.local_addr().unwrap() else { panic!("an IP address") };
        assert_eq!(local.ip().to_string(), "127.0.0.5");
        client.set_nodelay(false).unwrap();
        client.set_keepalive(&Keepalive::default()).unwrap();
        let unknown = SocketOption { level: libc::SOL_SOCKET, name: 9999, value: vec![0; 4] };
        let options = ConnectOptions { options: vec![unknown], ..ConnectOptions::default() };
        assert!(ring.connect(&address, &options).await.is_err());
    });
}

fn a_dropped_connect_closes_its_descriptor(ring: &Ring) {
    run(ring, async {
        // A queue of one that is full: further connects hang.
        let (fd, address) = listener();
        assert_eq!(unsafe_free_listen(&fd, 0), 0);
        let mut waiting = Vec::new();
        let PeerAddr::Ip(ip) = address.clone() else { panic!("an IP address") };
        for _ in 0..8 {
            match TcpStream::connect_timeout(&ip, Duration::from_millis(50)) {
                Ok(stream) => waiting.push(stream),
                Err(_) => break,
            }
        }
        for _ in 0..3 {
            let options = ConnectOptions::default();
            let mut attempt = Box::pin(ring.connect(&address, &options));
            let mut sleep = ring.sleep(Duration::from_millis(10));
            let done = poll_fn(|context| {
                if attempt.as_mut().poll(context).is_ready() {
                    return Poll::Ready(true);
                }
                std::pin::Pin::new(&mut sleep).poll(context).map(|()| false)
            })
            .await;
            assert!(!done, "the queue is full: nothing answers");
            assert_eq!(ring.stats().sockets_open, 1);
            drop(attempt);
            until(ring, |stats| stats.sockets_open == 0).await;
        }
    });
}

/// listen(2) again, with another backlog.
fn unsafe_free_listen(fd: &OwnedFd, backlog: i32) -> i32 {
    use std::os::fd::AsRawFd;
    // SAFETY: no memory is passed.
    unsafe { libc::listen(fd.as_raw_fd(), backlog) }
}

fn a_reset_is_an_error_on_both_sides_of_the_socket(ring: &Ring) {
    run(ring, async {
        let (mut client, server) = pair(ring).await;
        server.abort();
        let error = client.recv().await.err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert!(client.has_received());
        assert!(client.recv().await.is_err(), "the error stays");
        client.write("into the void");
        assert!(client.drained(0).await.is_err());
        assert_eq!(client.queued_bytes(), 0);
        drop(client);
        until(ring, |stats| stats.sockets_open == 0).await;
    });
}

fn a_graceful_close_delivers_everything(ring: &Ring) {
    run(ring, async {
        let (mut client, mut server) = pair(ring).await;
        // What the server never reads would turn a plain close into a reset.
        client.write("ignored ");
        ring.sleep(Duration::from_millis(5)).await;
        let large: std::sync::Arc<[u8]> = pattern(1 << 20).into();
        server.write(std::sync::Arc::clone(&large));
        server.close_gracefully(Duration::from_secs(10));
        client.write("ignored too");
        assert!(receive_all(&mut client).await.unwrap() == *large);
        assert_eq!(ring.stats().sockets_open, 2, "the peer is heard out");
        drop(client);
        until(ring, |stats| stats.sockets_open == 0).await;
    });
}

fn a_graceful_close_ends_with_its_linger(ring: &Ring) {
    run(ring, async {
        let (mut client, server) = pair(ring).await;
        server.close_gracefully(Duration::from_millis(30));
        assert!(client.recv().await.unwrap().is_none());
        until(ring, |stats| stats.sockets_open == 1).await;

        // A peer that takes nothing.
        let (client, mut server) = pair(ring).await;
        for _ in 0..200 {
            let block: std::sync::Arc<[u8]> = vec![0; 64 << 10].into();
            server.write(block);
        }
        ring.sleep(Duration::from_millis(5)).await;
        assert!(server.queued_bytes() > 0);
        server.close_gracefully(Duration::from_millis(30));
        until(ring, |stats| stats.sockets_open == 2).await;
        drop(client);

        // A connection that is over already, and one without linger.
        let (client, mut server) = pair(ring).await;
        drop(client);
        assert!(server.recv().await.unwrap().is_none());
        server.close_gracefully(Duration::from_secs(100));
        let (client, server) = pair(ring).await;
        server.close_gracefully(Duration::ZERO);
        drop(client);
    });
    run(ring, until(ring, |stats| stats.sockets_open == 0));
}

fn parked_sockets_wake_by_token(ring: &Ring) {
    run(ring, async {
        let mut clients = Vec::new();
        let mut servers = Vec::new();
        for token in 0..5u64 {
            let (client, mut server) = pair(ring).await;
            server.park(token);
            clients.push(client);
            servers.push(server);
        }
        until(ring, |stats| stats.sockets_parked == 5).await;
        clients[3].write("three");
        assert_eq!(ring.next_parked().await, 3);
        assert!(servers[3].has_received());
        assert_eq!(&servers[3].recv().await.unwrap().unwrap()[..], b"three");
        drop(clients.remove(1));
        assert_eq!(ring.next_parked().await, 1);
        assert!(servers[1].recv().await.unwrap().is_none());
        servers[0].unpark();
        clients[0].write("zero");
        assert_eq!(&servers[0].recv().await.unwrap().unwrap()[..], b"zero");
        // Input that came before the socket was parked.
        clients[0].write("again");
        ring.sleep(Duration::from_millis(5)).await;
        servers[0].park(77);
        assert_eq!(ring.next_parked().await, 77);
        assert_eq!(ring.stats().sockets_parked, 2);
        servers.clear();
        assert_eq!(ring.stats().sockets_parked, 0);
    });
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

fn dropping_a_listener_leaves_the_socket_listening(ring: &Ring) {
    run(ring, async {
        let (fd, address) = listener();
        let options = ConnectOptions::default();
        for _ in 0..3 {
            let mut listener = ring.listen(fd.try_clone().unwrap());
            let _client = ring.connect(&address, &options).await.unwrap();
            listener.accept().await.unwrap();
            drop(listener);
            until(ring, |stats| stats.listeners_open == 0).await;
        }
        // Connections that were accepted before the stop are served.
        let mut listener = ring.listen(fd.try_clone().unwrap());
        let mut client = ring.connect(&address, &options).await.unwrap();
        ring.sleep(Duration::from_millis(10)).await;
        listener.stop();
        let mut server = listener.accept().await.unwrap();
        assert_eq!(listener.accept().await.err().unwrap().kind(), io::ErrorKind::NotConnected);
        server.write("served");
        assert_eq!(receive_exactly(&mut client, 6).await.unwrap(), b"served");
        drop(listener);
        // Nobody accepts, yet the socket listens.
        let PeerAddr::Ip(ip) = address else { panic!("an IP address") };
        TcpStream::connect_timeout(&ip, Duration::from_secs(1)).unwrap();
    });
}

fn everything_is_returned(ring: &Ring) {
    run(ring, async {
        for round in 0..20 {
            let (mut client, mut server) = pair(ring).await;
            client.write(ring.chunk(&pattern(100_000)));
            if round % 3 == 0 {
                assert!(!server.recv().await.unwrap().unwrap().is_empty());
            }
            if round % 2 == 0 {
                let chunk = server.recv().await.unwrap().unwrap();
                server.write(chunk);
                ring.sleep(Duration::from_micros(50)).await;
            }
            drop((client, server));
        }
        until(ring, |stats| stats.sockets_open == 0 && stats.listeners_open == 0).await;
        let stats = ring.stats();
        assert_eq!((stats.buffers_leased, stats.chunks_copied), (0, 0));
        // The watch on the bell is what io_uring keeps.
        assert!(stats.operations_in_flight <= 1, "{stats:?}");
    });
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

fn what_is_put_back_comes_first(ring: &Ring) {
    run(ring, async {
        let (mut client, mut server) = pair(ring).await;
        client.write("hello world");
        let mut chunk = server.recv().await.unwrap().unwrap();
        assert!(!server.has_received());
        let head = chunk.split_to(6);
        server.unread(chunk);
        assert!(server.has_received());
        server.unread(head);
        server.unread(ring.chunk(b""));
        client.write("!");
        assert_eq!(receive_exactly(&mut server, 12).await.unwrap(), b"hello world!");
    });
}

fn received_chunks_travel_on_without_a_copy(ring: &Ring) {
    run(ring, async {
        let (mut client, mut middle_in) = pair(ring).await;
        let (mut middle_out, mut server) = pair(ring).await;
        ring.spawn(async move {
            while let Ok(Some(chunk)) = middle_in.recv().await {
                middle_out.write(chunk);
                if middle_out.drained(64 << 10).await.is_err() {
                    return;
                }
            }
            middle_out.close_gracefully(Duration::from_secs(1));
        });
        let expected = pattern(2 << 20);
        let source = expected.clone();
        ring.spawn(async move {
            for part in source.chunks(50_000) {
                let part: std::sync::Arc<[u8]> = part.into();
                client.write(part);
                client.drained(200_000).await.unwrap();
            }
            client.close_gracefully(Duration::from_secs(1));
        });
        assert!(receive_all(&mut server).await.unwrap() == expected);
    });
}

fn many_connections_at_once(ring: &Ring) {
    run(ring, async {
        let (fd, address) = listener();
        let mut listener = ring.listen(fd);
        ring.spawn({
            let ring = ring.clone();
            async move {
                while let Ok(mut socket) = listener.accept().await {
                    ring.spawn(async move {
                        while let Ok(Some(chunk)) = socket.recv().await {
                            socket.write(chunk);
                        }
                    });
                }
            }
        });
        let left = Rc::new(RefCell::new(200));
        for number in 0..200usize {
            let (ring2, address, left) = (ring.clone(), address.clone(), Rc::clone(&left));
            ring.spawn(async move {
                let mut socket = ring2.connect(&address, &ConnectOptions::default()).await.unwrap();
                for round in 0..5 {
                    let bytes = pattern(1 + number * round * 7);
                    socket.write(ring2.chunk(&bytes));
                    assert!(receive_exactly(&mut socket, bytes.len()).await.unwrap() == bytes);
                }
                *left.borrow_mut() -= 1;
            });
        }
        while *left.borrow() > 0 {
            assert_eq!(ring.stats().task_panics, 0);
            ring.sleep(Duration::from_millis(1)).await;
        }
        until(ring, |stats| stats.sockets_open == 0).await;
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

fn adopted_descriptors_work_and_are_closed(ring: &Ring) {
    use std::io::{Read, Write};
    run(ring, async {
        let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let duplicate = ours.try_clone().unwrap();
        let mut socket = ring.adopt(ours.into());
        theirs.write_all(b"in").unwrap();
        assert_eq!(&socket.recv().await.unwrap().unwrap()[..], b"in");
        socket.write("out");
        socket.drained(0).await.unwrap();
        let mut got = [0; 3];
        theirs.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"out");
        drop(socket);
        // The duplicate keeps the connection open; the ring must not hear of it any more.
        theirs.write_all(b"late").unwrap();
        let turns = ring.stats().turns;
        ring.sleep(Duration::from_millis(20)).await;
        assert!(ring.stats().turns - turns < 10);
        drop(duplicate);
    });
}

fn a_closed_ring_gives_back_its_descriptors(ring: &Ring) {
    let count = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    // Other tests open descriptors of their own: the count of sockets is what is compared, by the ring itself.
    let (client, server) = run(ring, pair(ring));
    assert!(count() > 0);
    let config = RingConfig { driver: DriverChoice::Auto, ..RingConfig::default() };
    let inner = Ring::new(&config).unwrap();
    let leaked = run(&inner, async {
        let (mut one, two) = pair(&inner).await;
        one.write("x");
        inner.spawn(async move {
            let mut two = two;
            let _ = two.recv().await;
            let _ = two.recv().await;
        });
        inner.sleep(Duration::from_millis(1)).await;
        one
    });
    drop(inner);
    // A handle that outlives its ring is harmless.
    assert_eq!(leaked.queued_bytes(), 0);
    drop(leaked);
    drop((client, server));
}

fn held_buffers_stop_nobody(ring: &Ring) {
    // A ring of its own: two buffers.
    let driver = match ring.report().kind {
        DriverKind::Uring => DriverChoice::Uring,
        _ => DriverChoice::Epoll,
    };
    let config = RingConfig { driver, buffer_count: 2, buffer_bytes: 1024, ..RingConfig::default() };
    let ring = &Ring::new(&config).unwrap();
    run(ring, async {
        let (mut client, mut server) = pair(ring).await;
        let (mut client2, mut server2) = pair(ring).await;
        client.write(ring.chunk(&pattern(10_000)));
        let mut held = Vec::new();
        while held.iter().map(Chunk::len).sum::<usize>() < 10_000 {
            held.push(server.recv().await.unwrap().unwrap());
        }
        // Everything is held, and somebody else receives all the same.
        for _ in 0..10 {
            client2.write("hello");
            assert_eq!(receive_exactly(&mut server2, 5).await.unwrap(), b"hello");
        }
        assert!(held.iter().flat_map(|chunk| chunk.iter().copied()).eq(pattern(10_000)));
        assert!(ring.stats().buffers_leased <= 2);
        let turns = ring.stats().turns;
        ring.sleep(Duration::from_millis(20)).await;
        assert!(ring.stats().turns - turns < 20, "nothing spins");
        drop(held);
        assert_eq!((ring.stats().buffers_leased, ring.stats().chunks_copied), (0, 0));
    });
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
