//! Abuse of HTTP/2 by a client that writes its own frames (RFC 9113 §10.5): each ends its connections and costs little memory. And
//! what looks like abuse and is none: a gRPC channel that cancels much for long.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use torus_tests::ports::free_port;
use torus_tests::proxy::{Kind, Proxy};

const PATIENCE: Duration = Duration::from_secs(10);
/// Connections that do the same at once.
const ATTACKERS: usize = 16;
/// What one of them sends at most.
const BYTES_MAX: usize = 512 * 1024;
/// What the gateway's memory may grow by for each byte that is sent, and in all.
const GROWTH_PER_BYTE: u64 = 10;
const GROWTH_MAX: u64 = 64 * 1024 * 1024;
/// Pages that a first connection touches, whatever it does: code, stacks, buffers of the ring.
const FIRST_USE_BYTES: u64 = 3 * 1024 * 1024;
/// What an open stream may cost besides, and how many a connection may have open.
const STREAM_BYTES: u64 = 16 * 1024;
const STREAMS_MAX: u64 = 100;

/// A gateway to a backend that takes connections and says nothing.
struct Bed {
    proxy: Proxy,
    port: u16,
    _backend: TcpListener,
}

fn bed() -> Bed {
    let address = |port: u16| json!({ "socket_address": { "address": "127.0.0.1", "port_value": port } });
    let backend = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let backend_port = backend.local_addr().expect("a bound socket has an address").port();
    let port = free_port();
    let large = "0123456789abcdef".repeat(4096);
    let routes = json!([
        { "match": { "path": "/large" }, "direct_response": { "status": 200, "body": { "inline_string": large } } },
        { "match": { "prefix": "/hang" }, "route": { "cluster": "silent", "timeout": "0s" } },
        { "match": { "prefix": "/" }, "direct_response": { "status": 200, "body": { "inline_string": "direct" } } },
    ]);
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "h2",
        "request_headers_timeout": "1s",
        "stream_flush_timeout": "1s",
        "route_config": {
            "max_direct_response_body_size_bytes": 100_000,
            "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": routes }],
        },
        "http_filters": [{
            "name": "envoy.filters.http.router",
            "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" },
        }],
    });
    let filter = json!({ "name": "envoy.filters.network.http_connection_manager", "typed_config": manager });
    let endpoint = json!({ "endpoint": { "address": address(backend_port) } });
    let assignment = json!({ "cluster_name": "silent", "endpoints": [{ "lb_endpoints": [endpoint] }] });
    let bootstrap: Value = json!({ "static_resources": {
        "listeners": [{ "name": "l", "address": address(port), "filter_chains": [{ "filters": [filter] }] }],
        "clusters": [{ "name": "silent", "type": "STATIC", "load_assignment": assignment }],
    } });
    Bed { proxy: Proxy::start(Kind::Torus, &bootstrap, free_port(), &[]), port, _backend: backend }
}

impl Bed {
    /// A line of the gateway's `/proc/<pid>/status` in bytes.
    fn memory(&self, line: &str) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.proxy.program.id())).expect("it runs");
        let value = text.lines().find_map(|text| text.strip_prefix(line)).expect("the line is there");
        value.trim_matches([':', ' ', '\t', 'k', 'B']).parse::<u64>().expect("a number") * 1024
    }

    fn reset_peak(&self) {
        std::fs::write(format!("/proc/{}/clear_refs", self.proxy.program.id()), "5").expect("it is our own process");
    }

    fn connect(&self, settings: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("the gateway accepts");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
        let opening = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &frame(4, 0, 0, settings)[..]].concat();
        stream.write_all(&opening).expect("the gateway reads");
        stream
    }

    fn serves(&self) {
        let mut stream = self.connect(&[]);
        stream.write_all(&get(1, b"/", &[])).expect("the gateway reads");
        let mut reply = Vec::new();
        let mut buffer = [0; 4096];
        while !reply.windows(6).any(|window| window == b"direct") {
            let count = stream.read(&mut buffer).expect("a reply");
            assert!(count > 0, "the gateway serves on");
            reply.extend_from_slice(&buffer[..count]);
        }
    }
}

/// A frame as it is on the wire (RFC 9113 §4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a short payload").to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// A string of HPACK (RFC 7541 §5.2).
fn text(value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    if value.len() < 127 {
        bytes.push(value.len() as u8);
    } else {
        bytes.push(127);
        let mut left = value.len() - 127;
        while left >= 128 {
            bytes.push(128 | (left % 128) as u8);
            left /= 128;
        }
        bytes.push(left as u8);
    }
    bytes.extend_from_slice(value);
    bytes
}

/// A field block of a GET (RFC 7541 §6): GET, http, a literal `:path`, a literal `:authority`, and `more`.
fn block(path: &[u8], more: &[u8]) -> Vec<u8> {
    [&[0x82, 0x86, 0x04][..], &text(path), &[0x01], &text(b"a"), more].concat()
}

/// A whole GET.
fn get(stream: u32, path: &[u8], more: &[u8]) -> Vec<u8> {
    frame(1, END_HEADERS | END_STREAM, stream, &block(path, more))
}

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// What one attacker saw.
struct Seen {
    sent_bytes: usize,
    /// The gateway closed or reset the connection.
    ended: bool,
    /// RST_STREAM frames that came.
    resets: usize,
}

/// Sends `settings`, `first` and then what `next` gives, until the gateway ends the connection, `next` has no more or it is enough.
fn attack(bed: &Bed, settings: &[u8], first: &[u8], next: impl Fn(u32) -> Option<Vec<u8>>) -> Seen {
    let mut stream = bed.connect(settings);
    let mut reading = stream.try_clone().expect("a second handle");
    let reader = std::thread::spawn(move || {
        let (mut ended, mut bytes, mut buffer) = (false, Vec::new(), [0; 16 * 1024]);
        loop {
            match reading.read(&mut buffer) {
                Ok(0) => break ended = true,
                Ok(count) => bytes.extend_from_slice(&buffer[..count]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
                Err(_) => break ended = true,
            }
        }
        (ended, count_resets(&bytes))
    });
    let mut sent_bytes = 0;
    let mut alive = stream.write_all(first).is_ok();
    sent_bytes += first.len();
    for round in 0.. {
        let Some(bytes) = next(round).filter(|_| alive && sent_bytes < BYTES_MAX) else { break };
        alive = stream.write_all(&bytes).is_ok();
        sent_bytes += bytes.len();
    }
    let (ended, resets) = reader.join().expect("the reader ends");
    let _ = stream.shutdown(Shutdown::Both);
    Seen { sent_bytes, ended, resets }
}

fn count_resets(mut bytes: &[u8]) -> usize {
    let mut count = 0;
    while bytes.len() >= 9 {
        let length = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]) as usize;
        count += usize::from(bytes[3] == 3);
        bytes = bytes.get(9 + length..).unwrap_or_default();
    }
    count
}

/// Runs an attack from many connections at once against a gateway of its own: all of them are ended, and memory stays bounded.
fn check(name: &str, settings: &[u8], first: &[u8], next: impl Fn(u32) -> Option<Vec<u8>> + Sync) {
    let seen = measure(name, settings, first, &next);
    assert!(seen.iter().all(|seen| seen.ended), "{name}: a connection lives on");
}

fn measure(name: &str, settings: &[u8], first: &[u8], next: &(impl Fn(u32) -> Option<Vec<u8>> + Sync)) -> Vec<Seen> {
    let bed = bed();
    bed.serves();
    bed.reset_peak();
    let before = bed.memory("VmRSS");
    let seen: Vec<Seen> = std::thread::scope(|scope| {
        let attackers: Vec<_> = (0..ATTACKERS).map(|_| scope.spawn(|| attack(&bed, settings, first, next))).collect();
        attackers.into_iter().map(|attacker| attacker.join().expect("the attacker ends")).collect()
    });
    let growth = bed.memory("VmHWM").saturating_sub(before);
    let sent_bytes: usize = seen.iter().map(|seen| seen.sent_bytes).sum();
    println!("{name}: {sent_bytes} bytes sent, memory grew by {growth}");
    let streams = ATTACKERS as u64 * STREAMS_MAX * STREAM_BYTES;
    let allowed = GROWTH_MAX.min(FIRST_USE_BYTES + streams + GROWTH_PER_BYTE * sent_bytes as u64);
    assert!(growth <= allowed, "{name}: {sent_bytes} bytes made memory grow by {growth}, more than {allowed}");
    bed.serves();
    seen
}

/// Each round with a stream of its own: `make` gets its number.
fn streams(make: impl Fn(u32) -> Vec<u8> + Sync) -> impl Fn(u32) -> Option<Vec<u8>> + Sync {
    move |round| Some((0..20).flat_map(|at| make(1 + 2 * (round * 20 + at))).collect())
}

fn same(bytes: Vec<u8>) -> impl Fn(u32) -> Option<Vec<u8>> + Sync {
    move |_| Some(bytes.repeat(20))
}

fn reset(stream: u32) -> Vec<u8> {
    frame(3, 0, stream, &8_u32.to_be_bytes())
}

#[test]
fn rapid_reset() {
    check("of a direct response", &[], &[], streams(|id| [get(id, b"/", &[]), reset(id)].concat()));
    check("of an upstream's request", &[], &[], streams(|id| [get(id, b"/hang", &[]), reset(id)].concat()));
}

#[test]
fn made_you_reset() {
    let after = |kind: u8, flags: u8, payload: &'static [u8]| {
        streams(move |id| [get(id, b"/hang", &[]), frame(kind, flags, id, payload)].concat())
    };
    check("WINDOW_UPDATE of 0", &[], &[], after(8, 0, &[0; 4]));
    check("WINDOW_UPDATE that overflows", &[], &[], after(8, 0, &[0x7f, 0xff, 0xff, 0xff]));
    check("PRIORITY of a wrong length", &[], &[], after(2, 0, &[0; 4]));
    check(
        "a stream that depends on itself",
        &[],
        &[],
        streams(|id| [get(id, b"/hang", &[]), frame(2, 0, id, &[&id.to_be_bytes()[..], &[1]].concat())].concat()),
    );
    check("DATA after the end", &[], &[], after(0, 0, b"x"));
    check("HEADERS after the end", &[], &[], streams(|id| get(id, b"/hang", &[]).repeat(2)));
    check(
        "malformed requests",
        &[],
        &[],
        streams(|id| get(id, b"/hang", &[&[0][..], &text(b"X"), &text(b"y")].concat())),
    );
}

#[test]
fn floods_of_control_frames() {
    check("SETTINGS", &[], &[], same(frame(4, 0, 0, &[])));
    check("SETTINGS with values", &[], &[], same(frame(4, 0, 0, &[0, 4, 0, 1, 0, 0].repeat(50))));
    check("PING", &[], &[], same(frame(6, 0, 0, &[0; 8])));
    check("PRIORITY", &[], &[], same(frame(2, 0, 1, &[0, 0, 0, 3, 1])));
    check("WINDOW_UPDATE", &[], &[], same(frame(8, 0, 0, &[0, 0, 0, 1])));
    let post = frame(1, END_HEADERS, 1, &block(b"/hang", &[]));
    check("RST_STREAM of one stream", &[], &post, same(reset(1)));
    check("empty DATA", &[], &post, same(frame(0, 0, 1, &[])));
    check("empty DATA with padding", &[], &post, same(frame(0, 8, 1, &[0])));
}

#[test]
fn field_blocks_that_do_not_end() {
    let open = frame(1, 0, 1, &block(b"/", &[]));
    check("empty CONTINUATION", &[], &open, same(frame(9, 0, 1, &[])));
    check("CONTINUATION of one field", &[], &open, same(frame(9, 0, 1, &[0x00, 1, b'a', 1, b'b'])));
    check("large CONTINUATION", &[], &open, |_| {
        Some(frame(9, 0, 1, &[&[0x00][..], &text(b"a"), &text(&[b'x'; 16_000])].concat()))
    });
    // Time ends it.
    check("nothing at all", &[], &open, |_| None);
}

/// Streams of which each is within its limits, or is refused: the connection may live, memory must not grow.
#[test]
fn fields_that_are_larger_than_their_bytes() {
    // One field of 3,000 bytes goes into the table; each further byte stands for it again (RFC 7541 §7.3).
    let entry = [&[0x40][..], &text(b"x-bomb"), &text(&[b'x'; 3_000])].concat();
    let first = frame(1, END_HEADERS | END_STREAM, 1, &block(b"/hang", &entry));
    let bomb = |count: usize| move |id: u32| get(id + 2, b"/hang", &vec![0xbe; count]);
    measure("one large entry, many references", &[], &first, &streams(bomb(4_000)));
    measure("as many as fit", &[], &first, &streams(bomb(19)));
    let gone = |id: u32| [get(id + 2, b"/hang", &[0xbe; 19]), reset(id + 2)].concat();
    measure("as many as fit, reset", &[], &first, &streams(gone));
    let crumb = [&[0x40][..], &text(b"cookie"), &text(b"a")].concat();
    let first = frame(1, END_HEADERS | END_STREAM, 1, &block(b"/hang", &crumb));
    // With a window of 0 no reply goes out and every stream stays.
    let stalled = [0, 4, 0, 0, 0, 0];
    measure("cookie crumbs", &stalled, &first, &streams(bomb(4_000)));
    measure("as many crumbs as fit", &stalled, &first, &streams(bomb(90)));
    measure("more crumbs than are taken", &stalled, &first, &streams(bomb(1_500)));
    let host = [&[0x00][..], &text(b"host"), &text(b"a")].concat().repeat(500);
    measure("many hosts", &stalled, &[], &streams(move |id| get(id, b"/hang", &host)));
}

#[test]
fn data_in_single_bytes_to_a_backend_that_does_not_read() {
    let post = frame(1, END_HEADERS, 1, &block(b"/hang", &[]));
    measure("single bytes", &[], &post, &same(frame(0, 0, 1, b"x")));
    let padded = frame(0, 8, 1, &[&[200][..], b"x", &[0; 200]].concat());
    measure("single bytes with padding", &[], &post, &same(padded));
}

#[test]
fn replies_that_nobody_takes() {
    let zero = [0, 4, 0, 0, 0, 0];
    let many: Vec<u8> = (0..100).flat_map(|at| get(1 + 2 * at, b"/large", &[])).collect();
    let seen = measure("windows of 0", &zero, &many, &|_| None);
    assert!(seen.iter().all(|seen| seen.resets >= 100), "each stream is reset in time");
    // A byte now and then is progress for a stream, but not for ever more streams.
    let seen = measure("windows of 1", &[0, 4, 0, 0, 0, 1], &many, &|_| None);
    assert!(seen.iter().all(|seen| seen.resets >= 100), "each stream is reset in time");
    // The socket itself.
    let bed = bed();
    bed.serves();
    let before = bed.memory("VmRSS");
    let mut stream = bed.connect(&[0, 4, 0x7f, 0xff, 0xff, 0xff]);
    let wide = frame(8, 0, 0, &0x7fff_0000_u32.to_be_bytes());
    stream.write_all(&[wide, many].concat()).expect("the gateway reads");
    std::thread::sleep(Duration::from_secs(3));
    let growth = bed.memory("VmHWM").saturating_sub(before);
    assert!(growth < GROWTH_MAX, "memory grew by {growth}");
    bed.serves();
}

/// How many streams the honest channel cancels; `TORUS_CANCELLED_STREAMS=100000` for the long form of ten minutes.
fn cancelled_streams() -> u32 {
    std::env::var("TORUS_CANCELLED_STREAMS").ok().and_then(|count| count.parse().ok()).unwrap_or(1_000)
}

#[test]
fn a_channel_that_cancels_for_long_lives() {
    let bed = bed();
    let mut stream = bed.connect(&[]);
    let mut reading = stream.try_clone().expect("a second handle");
    std::thread::spawn(move || while matches!(reading.read(&mut [0; 16 * 1024]), Ok(1..)) {});
    let count = cancelled_streams();
    let started = Instant::now();
    for at in 0..count {
        let id = 1 + 2 * at;
        stream.write_all(&[get(id, b"/hang", &[]), reset(id)].concat()).expect("the channel lives");
        // A hundred at once, 166 a second from then on.
        let due = Duration::from_millis(u64::from(at.saturating_sub(100)) * 6);
        if let Some(early) = due.checked_sub(started.elapsed()) {
            std::thread::sleep(early);
        }
    }
    let deadline = Instant::now() + PATIENCE;
    while bed.proxy.stats().get("http.h2.downstream_rq_http2_total") < Some(&(u64::from(count) * 9 / 10)) {
        assert!(Instant::now() < deadline, "{:?}", bed.proxy.stats().get("http.h2.downstream_rq_http2_total"));
        std::thread::sleep(Duration::from_millis(50));
    }
    stream.write_all(&frame(6, 0, 0, &[7; 8])).expect("the channel lives");
    std::thread::sleep(Duration::from_millis(200));
    let stats = bed.proxy.stats();
    assert_eq!(stats.get("http2.inbound_reset_flood").copied().unwrap_or_default(), 0, "it is no attack");
    assert_eq!(stats.get("http.h2.downstream_cx_active"), Some(&1), "the connection is still there");
    assert_eq!(stats.get("http.h2.downstream_rq_active"), Some(&0), "no stream stays behind");
}
