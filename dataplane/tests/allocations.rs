//! After warm-up a request allocates nothing (invariant 3): a counting allocator watches client, proxy and backend on one ring.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use torus_proxy::config::bootstrap;
use torus_proxy::config::flags::Options;
use torus_proxy::config::lifecycle::{DrainStrategy, Lifecycle};
use torus_proxy::exchange::core_state::{CoreParts, CoreState};
use torus_proxy::telemetry::access_log::LogBuffers;
use torus_proxy::telemetry::counters::Core;
use torus_proxy::worker::connection_limit::ConnectionLimits;
use torus_proxy::worker::random::Random;
use torus_proxy::worker::{Worker, WorkerListener};
use torus_ring::{ConnectOptions, DriverChoice, PeerAddr, Ring, RingConfig, Socket};

const WARM_UP_COUNT: u32 = 2_000;
const MEASURED_COUNT: u32 = 1_000;
const ROUND_COUNT: usize = 5;

const GET: &[u8] =
    b"GET /path?query=1 HTTP/1.1\r\nhost: example.com\r\nuser-agent: test\r\naccept: */*\r\nx-own: value\r\n\r\n";
const POST: &[u8] = b"POST /form HTTP/1.1\r\nhost: example.com\r\ncontent-length: 5\r\n\r\nhello";
const CHUNKED: &[u8] =
    b"PUT /chunks HTTP/1.1\r\nhost: example.com\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n";
const REPLY: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\nx-own: value\r\ncontent-length: 10\r\n\r\n0123456789";
const CHUNKED_REPLY: &[u8] = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\na\r\n0123456789\r\n0\r\n\r\n";

#[test]
fn a_request_allocates_nothing_on_epoll() {
    check(DriverChoice::Epoll);
}

#[test]
fn a_request_allocates_nothing_on_io_uring() {
    check(DriverChoice::Uring);
}

fn check(driver: DriverChoice) {
    let ring = match Ring::new(&RingConfig { driver, ..RingConfig::default() }) {
        Ok(ring) => ring,
        Err(error) => {
            println!("skipped: {error}");
            return;
        }
    };
    let backend = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let proxy = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let backend_port = backend.local_addr().expect("address").port();
    let proxy_address = PeerAddr::Ip(proxy.local_addr().expect("address"));
    for listener in [&backend, &proxy] {
        listener.set_nonblocking(true).expect("non-blocking");
    }
    let log = tempfile::NamedTempFile::new().expect("log file");
    let text = BOOTSTRAP.replace("BACKEND_PORT", &backend_port.to_string());
    let text = text.replace("LOG_PATH", &log.path().display().to_string());
    let options = Options::parse_from(["torus-proxy", "--config-yaml", &text]).expect("flags");
    let loaded = bootstrap::load(&options, 1).unwrap_or_else(|error| panic!("{error}"));
    let core = CoreState::new(CoreParts {
        ring: ring.clone(),
        core: Core(0),
        random: Random::seeded(1),
        lifecycle: Lifecycle::new(1, Duration::from_secs(5), DrainStrategy::Immediate),
        limits: ConnectionLimits::new(None),
        snapshot: Arc::new(loaded.snapshot),
        log_buffers: LogBuffers::new(loaded.log_sinks, Core(0)),
    });
    Worker::new(core).start(vec![WorkerListener { listener: 0, accepting: ring.listen(proxy.into()) }]);
    ring.spawn(serve(ring.clone(), ring.listen(backend.into())));
    let mut client = ring.block_on(ring.connect(&proxy_address, &ConnectOptions::default())).expect("connected");
    ring.block_on(send(&mut client, WARM_UP_COUNT));
    // Once a second the worker looks after idle connections, and now and then the log's writer is behind and another buffer is
    // taken: that is no request's work, so it may fall into some of the rounds, never into all.
    let rounds = [(); ROUND_COUNT]
        .map(|()| allocation_counter::measure(|| ring.block_on(send(&mut client, MEASURED_COUNT))).count_total);
    println!("{driver:?}: allocations in rounds of {MEASURED_COUNT} requests: {rounds:?}");
    assert_eq!(rounds.iter().min(), Some(&0), "{driver:?}: a request allocates: {rounds:?}");
    assert!(rounds.iter().sum::<u64>() < 10, "{driver:?}: something allocates again and again: {rounds:?}");
}

/// Sends requests of every kind one after another and reads each reply to its end.
async fn send(client: &mut Socket, request_count: u32) {
    for request in 0..request_count {
        let text = [GET, POST, CHUNKED][request as usize % 3];
        client.write(text);
        let ending: &[u8] = if text == CHUNKED { b"0\r\n\r\n" } else { b"0123456789" };
        loop {
            let chunk = client.recv().await.expect("a reply").expect("no end");
            if chunk.ends_with(ending) {
                break;
            }
        }
    }
}

/// Answers requests; each arrives in one piece.
async fn serve(ring: Ring, mut listener: torus_ring::Listener) {
    while let Ok(mut socket) = listener.accept().await {
        ring.spawn(async move {
            let mut is_chunked = false;
            while let Ok(Some(chunk)) = socket.recv().await {
                is_chunked |= chunk.starts_with(b"PUT");
                let is_complete = if is_chunked {
                    chunk.ends_with(b"0\r\n\r\n")
                } else {
                    chunk.ends_with(b"\r\n\r\n") && chunk.starts_with(b"GET") || chunk.ends_with(b"hello")
                };
                if is_complete {
                    socket.write(if is_chunked { CHUNKED_REPLY } else { REPLY });
                    is_chunked = false;
                }
            }
        });
    }
}

const BOOTSTRAP: &str = r#"
static_resources:
  listeners:
  - name: http
    address: { socket_address: { address: 127.0.0.1, port_value: 0 } }
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: measured
          use_remote_address: true
          normalize_path: true
          via: torus
          access_log:
          - name: envoy.access_loggers.file
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
              path: "LOG_PATH"
          route_config:
            virtual_hosts:
            - name: example
              domains: ["example.com"]
              routes:
              - match: { prefix: "/", headers: [{ name: x-absent, present_match: true }] }
                direct_response: { status: 404 }
              - match: { safe_regex: { regex: "/[a-z]+(\\?.*)?" } }
                route:
                  cluster: backend
                  regex_rewrite: { pattern: { regex: "^/" }, substitution: "/new/" }
                  retry_policy: { retry_on: "5xx", num_retries: 2 }
                request_headers_to_add:
                - header: { key: x-client, value: "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%" }
                response_headers_to_add:
                - header: { key: x-code, value: "%RESPONSE_CODE%" }
          http_filters:
          - name: envoy.filters.http.router
            typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }
  clusters:
  - name: backend
    lb_policy: LEAST_REQUEST
    load_assignment:
      cluster_name: backend
      endpoints:
      - lb_endpoints:
        - endpoint: { address: { socket_address: { address: 127.0.0.1, port_value: BACKEND_PORT } } }
"#;
