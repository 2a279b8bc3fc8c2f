//! What the ring costs in memory: no allocation for a message after warm-up, and few bytes for an idle connection.
//! And what it does when descriptors run out: this test binary may lower the limit, for it runs one test.

use std::alloc::{GlobalAlloc, Layout, System};
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use torus_ring::*;

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);
static BYTES: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        BYTES.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        BYTES.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const IDLE_CONNECTIONS: usize = 1000;
/// Bytes of user memory that one idle, parked connection may cost the ring.
const IDLE_BYTES_MAX: usize = 400;

fn listen(ring: &Ring) -> (Listener, PeerAddr) {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = PeerAddr::Ip(socket.local_addr().unwrap());
    (ring.listen(socket.into()), address)
}

/// One message there and one back, through a timer that is renewed.
async fn exchange(ring: &Ring, client: &mut Socket, server: &mut Socket, timer: &mut Timer) {
    let mut request = ring.buffer();
    request.extend_from_slice(b"GET / HTTP/1.1\r\n\r\n");
    client.write(request);
    timer.set(ring.now() + Duration::from_secs(15));
    let chunk = server.recv().await.unwrap().unwrap();
    let mut head = ring.buffer();
    head.extend_from_slice(b"HTTP/1.1 200 OK\r\n\r\n");
    server.write(head);
    server.write(chunk);
    server.write(&[b'x'; 3000]);
    let mut left = 19 + 18 + 3000;
    while left > 0 {
        left -= client.recv().await.unwrap().unwrap().len();
    }
    timer.set(ring.now() + Duration::from_secs(3600));
}

fn messages_allocate_nothing(driver: DriverChoice) {
    let ring = Ring::new(&RingConfig { driver, ..RingConfig::default() }).unwrap();
    ring.block_on(async {
        let (mut listener, address) = listen(&ring);
        let mut client = ring.connect(&address, &ConnectOptions::default()).await.unwrap();
        let mut server = listener.accept().await.unwrap();
        let mut timer = ring.timer();
        for _ in 0..200 {
            exchange(&ring, &mut client, &mut server, &mut timer).await;
        }
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        for _ in 0..2000 {
            exchange(&ring, &mut client, &mut server, &mut timer).await;
        }
        assert_eq!(ALLOCATIONS.load(Ordering::Relaxed) - before, 0, "{driver:?}");
    });
}

fn idle_connections_are_small(driver: DriverChoice) {
    let ring = Ring::new(&RingConfig { driver, ..RingConfig::default() }).unwrap();
    ring.block_on(async {
        let (mut listener, address) = listen(&ring);
        let PeerAddr::Ip(ip) = address else { panic!("an IP address") };
        let mut clients = Vec::with_capacity(IDLE_CONNECTIONS);
        let mut servers = Vec::with_capacity(IDLE_CONNECTIONS);
        let before = BYTES.load(Ordering::Relaxed);
        for token in 0..IDLE_CONNECTIONS as u64 {
            clients.push(std::net::TcpStream::connect(ip).unwrap());
            let mut server = listener.accept().await.unwrap();
            std::io::Write::write_all(clients.last_mut().unwrap(), b"hello").unwrap();
            assert_eq!(server.recv().await.unwrap().unwrap().len(), 5);
            server.write("hello");
            server.park(token);
            servers.push(server);
        }
        ring.sleep(Duration::from_millis(10)).await;
        let each = BYTES.load(Ordering::Relaxed).saturating_sub(before) / IDLE_CONNECTIONS;
        eprintln!("{driver:?}: {each} bytes for each idle connection");
        assert!(each <= IDLE_BYTES_MAX, "{driver:?}: {each}");
        assert_eq!(ring.stats().sockets_parked as usize, IDLE_CONNECTIONS);
        assert_eq!(ring.stats().buffers_leased, 0);
    });
}

fn running_out_of_descriptors_is_an_error_and_not_a_spin(driver: DriverChoice) {
    let ring = Ring::new(&RingConfig { driver, ..RingConfig::default() }).unwrap();
    ring.block_on(async {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let client = std::net::TcpStream::connect(address).unwrap();
        // The kernel hands out the lowest free number: below this one there is none.
        let lowest_free = client.try_clone().unwrap().as_raw_fd() as u64;
        let before = set_descriptor_limit(lowest_free);
        let mut listener = ring.listen(socket.into());
        let error = listener.accept().await.err().unwrap();
        assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
        let refused = ring.connect(&PeerAddr::Ip(address), &ConnectOptions::default()).await.err().unwrap();
        assert_eq!(refused.raw_os_error(), Some(libc::EMFILE));
        let turns = ring.stats().turns;
        ring.sleep(Duration::from_millis(50)).await;
        assert!(ring.stats().turns - turns < 20, "{driver:?} spins");
        set_descriptor_limit(before);
        // The listener tries again by itself, and nothing was lost.
        while let Err(error) = listener.accept().await {
            assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
        }
        drop(client);
    });
}

fn set_descriptor_limit(limit: u64) -> u64 {
    let mut limits = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structure is valid for the write.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limits) }, 0);
    let before = limits.rlim_cur;
    limits.rlim_cur = limit;
    // SAFETY: the structure is valid for the read.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limits) }, 0);
    before
}

#[test]
fn the_ring_is_frugal() {
    for driver in [DriverChoice::Uring, DriverChoice::Epoll] {
        messages_allocate_nothing(driver);
        idle_connections_are_small(driver);
        running_out_of_descriptors_is_an_error_and_not_a_spin(driver);
    }
}
