//! Bytes: that all of them arrive, in order, and that a reader who is slow stops nobody else.

use super::*;

pub(super) fn echo(ring: &Ring) {
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

pub(super) fn parts_of_all_kinds_leave_in_order(ring: &Ring) {
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

pub(super) fn a_long_stream_survives_a_slow_reader(ring: &Ring) {
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

pub(super) fn streams_in_both_directions_keep_their_bytes(ring: &Ring) {
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

pub(super) fn half_close_ends_one_side_only(ring: &Ring) {
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

pub(super) fn a_reset_is_an_error_on_both_sides_of_the_socket(ring: &Ring) {
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

pub(super) fn what_is_put_back_comes_first(ring: &Ring) {
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

pub(super) fn received_chunks_travel_on_without_a_copy(ring: &Ring) {
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

pub(super) fn held_buffers_stop_nobody(ring: &Ring) {
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

pub(super) fn parked_sockets_wake_by_token(ring: &Ring) {
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
