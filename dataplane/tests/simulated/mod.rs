//! One seeded run: clients that send requests of every kind, a proxy with retries, backends of every temper.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use torus_proxy::config::bootstrap;
use torus_proxy::config::flags::Options;
use torus_proxy::config::lifecycle::{DrainStrategy, Lifecycle};
use torus_proxy::config::snapshot::Snapshot;
use torus_proxy::exchange::core_state::{CoreParts, CoreState};
use torus_proxy::telemetry::access_log::LogBuffers;
use torus_proxy::telemetry::access_log::sink::LogSinks;
use torus_proxy::telemetry::counters::Core;
use torus_proxy::worker::connection_limit::ConnectionLimits;
use torus_proxy::worker::random::Random;
use torus_proxy::worker::{Worker, WorkerListener};
use torus_ring::PeerAddr;
use torus_ring::sim::{self, SimConfig};

mod backend;
mod client;

/// Requests that each client sends.
const REQUEST_COUNT: u32 = 6;
const CLIENT_COUNT: u32 = 4;

/// How the requests of a run ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// With the backend's whole reply.
    pub(crate) answered: u64,
    /// With a reply of the proxy's own.
    pub(crate) refused: u64,
    /// With the end of the connection.
    pub(crate) broken: u64,
    /// Requests that a backend saw.
    pub(crate) received: u64,
}

impl Outcome {
    /// Adds another run's.
    pub(crate) fn add(&mut self, other: &Self) {
        self.answered += other.answered;
        self.refused += other.refused;
        self.broken += other.broken;
        self.received += other.received;
    }
}

/// What the parts of a run share.
pub(crate) struct Shared {
    pub(crate) outcome: RefCell<Outcome>,
    /// How often each request reached a backend.
    pub(crate) seen: RefCell<HashMap<u64, u32>>,
}

/// Runs `seed` and checks it.
pub(crate) fn run(seed: u64) -> Outcome {
    let (snapshot, log_sinks) = configuration();
    let mut random = Random::seeded(seed);
    let ring = sim::ring(&SimConfig {
        seed,
        reset_per_mille: if seed.is_multiple_of(3) { 8 } else { 0 },
        refuse_per_mille: if seed.is_multiple_of(4) { 100 } else { 0 },
        split_per_mille: (random.below(600)) as u16,
        window_bytes: 1 << (10 + random.below(7)),
        buffer_count: 1 << (3 + random.below(5)),
        buffer_bytes: 1 << (9 + random.below(4)),
        receive_queue_bytes_max: 8 * 1024,
        ..SimConfig::default()
    });
    let core = CoreState::new(CoreParts {
        ring: ring.clone(),
        core: Core(0),
        random: Random::seeded(random.next_u64()),
        lifecycle: Lifecycle::new(1, Duration::from_secs(5), DrainStrategy::Immediate),
        limits: ConnectionLimits::new(None),
        snapshot,
        log_buffers: LogBuffers::new(log_sinks, Core(0)),
    });
    let worker = Worker::new(core);
    worker.start(vec![WorkerListener { listener: 0, accepting: ring.listen_sim(&address("10.0.0.1:80")) }]);
    let shared = Rc::new(Shared { outcome: RefCell::default(), seen: RefCell::default() });
    for port in [8081, 8082] {
        let listener = ring.listen_sim(&address(&format!("10.0.0.2:{port}")));
        ring.spawn(backend::serve(ring.clone(), listener, Random::seeded(random.next_u64()), Rc::clone(&shared)));
    }
    let clients = (0..CLIENT_COUNT).map(|number| {
        let random = Random::seeded(random.next_u64());
        client::start(&ring, number, REQUEST_COUNT, random, Rc::clone(&shared))
    });
    let clients: Vec<_> = clients.collect();
    let finished = ring.try_block_on(async {
        for client in clients {
            client.finished().await;
        }
        // Lingering closes, idle timeouts and abandoned attempts come to their end.
        ring.sleep(Duration::from_secs(3_700)).await;
    });
    if let Err(deadlock) = finished {
        panic!("seed {seed}: {deadlock}");
    }
    assert_eq!(ring.stats().task_panics, 0, "seed {seed}: a task panicked, see above");
    let outcome = shared.outcome.borrow().clone();
    let ended = outcome.answered + outcome.refused + outcome.broken;
    assert_eq!(ended, u64::from(CLIENT_COUNT * REQUEST_COUNT), "seed {seed}: each request ends once: {outcome:?}");
    for (id, count) in shared.seen.borrow().iter() {
        // One attempt and two retries; the proxy never repeats a request beyond its policy.
        assert!(*count <= 3, "seed {seed}: request {id} reached a backend {count} times");
    }
    let stats = ring.stats();
    assert_eq!(stats.buffers_leased, 0, "seed {seed}: every receive buffer came back");
    assert_eq!(stats.sockets_open, 0, "seed {seed}: every socket is closed after the idle timeouts");
    outcome
}

fn configuration() -> (Arc<Snapshot>, Arc<LogSinks>) {
    thread_local! {
        static LOADED: (Arc<Snapshot>, Arc<LogSinks>) = load();
    }
    LOADED.with(Clone::clone)
}

fn load() -> (Arc<Snapshot>, Arc<LogSinks>) {
    let options = Options::parse_from(["torus-proxy", "--config-yaml", BOOTSTRAP]).expect("flags");
    let loaded = bootstrap::load(&options, 1).unwrap_or_else(|error| panic!("{error}"));
    (Arc::new(loaded.snapshot), loaded.log_sinks)
}

pub(crate) fn address(text: &str) -> PeerAddr {
    PeerAddr::Ip(text.parse().expect("address"))
}

const BOOTSTRAP: &str = r#"
static_resources:
  listeners:
  - name: http
    address: { socket_address: { address: 10.0.0.1, port_value: 80 } }
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: simulated
          http_protocol_options: { enable_trailers: true }
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: { prefix: "/" }
                route:
                  cluster: backend
                  timeout: 20s
                  retry_policy: { retry_on: "5xx,reset,connect-failure", num_retries: 2, per_try_timeout: 5s }
          http_filters:
          - name: envoy.filters.http.router
            typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }
  clusters:
  - name: backend
    connect_timeout: 1s
    circuit_breakers: { thresholds: [{ max_connections: 3, max_retries: 8 }] }
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: { http_protocol_options: { enable_trailers: true } }
    load_assignment:
      cluster_name: backend
      endpoints:
      - lb_endpoints:
        - endpoint: { address: { socket_address: { address: 10.0.0.2, port_value: 8081 } } }
        - endpoint: { address: { socket_address: { address: 10.0.0.2, port_value: 8082 } } }
"#;
