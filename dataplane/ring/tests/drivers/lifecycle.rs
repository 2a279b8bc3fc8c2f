//! Connections and listeners: how they begin and end, and that nothing of them stays behind.

use super::*;

pub(super) fn failed_connects_say_why(ring: &Ring) {
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

pub(super) fn connects_reach_every_kind_of_address(ring: &Ring) {
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

pub(super) fn options_reach_the_socket(ring: &Ring) {
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

pub(super) fn a_dropped_connect_closes_its_descriptor(ring: &Ring) {
    run(ring, async {
        // A queue of one that is full: further connects hang.
        let (fd, address) = listener();
        assert_eq!(listen_again(&fd, 0), 0);
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
fn listen_again(fd: &OwnedFd, backlog: i32) -> i32 {
    use std::os::fd::AsRawFd;
    // SAFETY: no memory is passed.
    unsafe { libc::listen(fd.as_raw_fd(), backlog) }
}

pub(super) fn a_graceful_close_delivers_everything(ring: &Ring) {
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

pub(super) fn a_graceful_close_ends_with_its_linger(ring: &Ring) {
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

pub(super) fn dropping_a_listener_leaves_the_socket_listening(ring: &Ring) {
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

pub(super) fn everything_is_returned(ring: &Ring) {
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

pub(super) fn adopted_descriptors_work_and_are_closed(ring: &Ring) {
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

pub(super) fn a_closed_ring_gives_back_its_descriptors(ring: &Ring) {
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

pub(super) fn many_connections_at_once(ring: &Ring) {
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
