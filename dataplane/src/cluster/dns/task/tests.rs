//! Clusters whose names are answered by a name server of the test's own.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use hickory_resolver::proto::op::{Message, OpCode, ResponseCode};
use hickory_resolver::proto::rr::{RData, Record, RecordType};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;

use super::*;
use crate::cluster::dns::LookupFamily;
use crate::config::parse::ParseContext;

/// What the server knows; names that it does not know do not exist.
#[derive(Clone, Default)]
struct Zone {
    v4: Vec<Ipv4Addr>,
    v6: Vec<Ipv6Addr>,
    ttl_seconds: u32,
    /// Answers with SERVFAIL.
    fails: bool,
}

struct Server {
    address: SocketAddr,
    zone: Arc<Mutex<Zone>>,
    questions: Arc<Mutex<Vec<String>>>,
}

impl Server {
    async fn start(zone: Zone) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let (zone, questions) = (Arc::new(Mutex::new(zone)), Arc::new(Mutex::new(Vec::new())));
        let (served, asked) = (zone.clone(), questions.clone());
        tokio::spawn(async move {
            let mut packet = [0; 1500];
            while let Ok((length, peer)) = socket.recv_from(&mut packet).await {
                let reply = answer(&packet[..length], &served.lock().unwrap(), &mut asked.lock().unwrap());
                socket.send_to(&reply, peer).await.unwrap();
            }
        });
        Self { address, zone, questions }
    }
}

fn answer(packet: &[u8], zone: &Zone, asked: &mut Vec<String>) -> Vec<u8> {
    let request = Message::from_vec(packet).unwrap();
    let query = request.queries[0].clone();
    asked.push(format!("{} {}", query.name(), query.query_type()));
    let mut reply = Message::response(request.metadata.id, OpCode::Query);
    reply.metadata.recursion_available = true;
    let record = |data: RData| Record::from_rdata(query.name().clone(), zone.ttl_seconds, data);
    if zone.fails {
        reply.metadata.response_code = ResponseCode::ServFail;
    } else if query.name().to_ascii() != "backend.test." {
        reply.metadata.response_code = ResponseCode::NXDomain;
    } else if query.query_type() == RecordType::A {
        reply.add_answers(zone.v4.iter().map(|address| record(RData::A((*address).into()))));
    } else if query.query_type() == RecordType::AAAA {
        reply.add_answers(zone.v6.iter().map(|address| record(RData::AAAA((*address).into()))));
    }
    reply.add_query(query.clone());
    reply.to_vec().unwrap()
}

fn cluster(server: &Server, fields: &str, name: &str) -> Arc<Cluster> {
    let yaml = format!(
        "{{ name: c, load_assignment: {{ cluster_name: c, endpoints: [ {{ lb_endpoints: [ {{ endpoint: {{ address: {{ \
         socket_address: {{ address: {name}, port_value: 80 }} }} }} }} ] }} ] }}, typed_dns_resolver_config: {{ name: x, \
         typed_config: {{ \"@type\": type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig, \
         resolvers: [ {{ socket_address: {{ address: 127.0.0.1, port_value: {} }} }} ], dns_resolver_options: {{ \
         no_default_search_domain: true }}, query_timeout_seconds: 2, query_tries: 1 }} }}, {fields} }}",
        server.address.port()
    );
    let config = torus_xds::from_yaml(&yaml).unwrap_or_else(|problems| panic!("{problems:?}"));
    let mut context = ParseContext::new(2);
    let parsed = Cluster::parse(&config, &mut context);
    Arc::new(parsed.unwrap_or_else(|_| panic!("{:?}", context.problems)))
}

/// A running task and what it publishes.
struct Watched {
    cluster: Arc<Cluster>,
    updates: mpsc::UnboundedReceiver<Cluster>,
    warm: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watched {
    fn start(cluster: Arc<Cluster>) -> Self {
        let (send, updates) = mpsc::unbounded_channel();
        let warm = Arc::new(AtomicBool::new(false));
        let is_warm = warm.clone();
        let publish = move |cluster| drop(send.send(cluster));
        let is_ready = move || is_warm.store(true, Ordering::Relaxed);
        let task = tokio::spawn(run(cluster.clone(), Core(1), 2, Arc::default(), publish, is_ready));
        Self { cluster, updates, warm, task }
    }

    async fn update(&mut self) -> Cluster {
        tokio::time::timeout(Duration::from_secs(20), self.updates.recv()).await.expect("an update").unwrap()
    }

    /// Waits until `stat` has counted `value`.
    async fn until(&self, stat: ClusterStat, value: u64) {
        let counted = async {
            while self.cluster.stats.total(stat) < value {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let counted = tokio::time::timeout(Duration::from_secs(20), counted).await;
        counted.unwrap_or_else(|_| panic!("{stat:?} is {}", self.cluster.stats.total(stat)));
    }
}

fn addresses(cluster: &Cluster) -> Vec<String> {
    let mut addresses: Vec<String> = cluster.endpoints.hosts.iter().map(|host| host.address.to_string()).collect();
    addresses.sort();
    addresses
}

const A: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const B: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const C: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 3);
const SIX: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 6);

#[tokio::test]
async fn strict_hosts_follow_the_answers_and_keep_their_counters() {
    let server = Server::start(Zone { v4: vec![A, B], ..Zone::default() }).await;
    let cluster =
        cluster(&server, "type: STRICT_DNS, dns_lookup_family: V4_ONLY, dns_refresh_rate: 0.01s", "backend.test");
    let mut watched = Watched::start(cluster);
    let first = watched.update().await;
    assert_eq!(addresses(&first), ["10.0.0.1:80", "10.0.0.2:80"]);
    assert_eq!(&*first.endpoints.hosts[0].hostname, "backend.test");
    assert!(watched.warm.load(Ordering::Relaxed));
    watched.until(ClusterStat::UpdateNoRebuild, 2).await;

    server.zone.lock().unwrap().v4 = vec![C, B];
    let second = watched.update().await;
    assert_eq!(addresses(&second), ["10.0.0.2:80", "10.0.0.3:80"]);
    let host = |cluster: &Cluster, ip: Ipv4Addr| {
        let address = Address::Ip((ip, 80).into());
        cluster.endpoints.hosts.iter().find(|host| host.address == address).unwrap().clone()
    };
    assert!(host(&first, B).is_same(&host(&second, B)));
    assert!(Arc::ptr_eq(&first.stats, &second.stats) && Arc::ptr_eq(&first.breakers, &second.breakers));

    // A failure changes nothing; a name that is gone takes its hosts along.
    server.zone.lock().unwrap().fails = true;
    watched.until(ClusterStat::UpdateFailure, 1).await;
    *server.zone.lock().unwrap() = Zone::default();
    assert!(watched.update().await.endpoints.hosts.is_empty());
    let count = |stat| watched.cluster.stats.total(stat);
    assert_eq!(count(ClusterStat::MembershipChange), 3);
    assert!(count(ClusterStat::UpdateAttempt) >= count(ClusterStat::UpdateSuccess) + count(ClusterStat::UpdateFailure));
}

#[tokio::test]
async fn a_logical_host_moves_and_stays_when_the_name_is_gone() {
    let server = Server::start(Zone { v4: vec![A, B], ..Zone::default() }).await;
    let cluster =
        cluster(&server, "type: LOGICAL_DNS, dns_lookup_family: V4_ONLY, dns_refresh_rate: 0.01s", "backend.test");
    let mut watched = Watched::start(cluster);
    let first = watched.update().await;
    assert_eq!(addresses(&first), ["10.0.0.1:80"]);
    server.zone.lock().unwrap().v4 = vec![C];
    let second = watched.update().await;
    assert_eq!(addresses(&second), ["10.0.0.3:80"]);
    assert!(first.endpoints.hosts[0].is_same(&second.endpoints.hosts[0]));
    server.zone.lock().unwrap().v4 = vec![];
    watched.until(ClusterStat::UpdateFailure, 2).await;
    assert!(watched.updates.try_recv().is_err(), "the last address stays");
}

#[tokio::test]
async fn families_choose_the_addresses() {
    let server = Server::start(Zone { v4: vec![A], v6: vec![SIX], ..Zone::default() }).await;
    let (four, six) = ("10.0.0.1:80", "[fd00::6]:80");
    let check = async |family: &str, expect: &[&str]| {
        let cluster = cluster(&server, &format!("type: STRICT_DNS, dns_lookup_family: {family}"), "backend.test");
        assert_eq!(addresses(&Watched::start(cluster).update().await), expect, "{family}");
    };
    check("V4_ONLY", &[four]).await;
    check("V6_ONLY", &[six]).await;
    check("AUTO", &[six]).await;
    check("V4_PREFERRED", &[four]).await;
    check("ALL", &[four, six]).await;
    server.zone.lock().unwrap().v6.clear();
    check("AUTO", &[four]).await;
    check("ALL", &[four]).await;
    *server.zone.lock().unwrap() = Zone { v6: vec![SIX], ..Zone::default() };
    check("V4_PREFERRED", &[six]).await;
}

#[tokio::test]
async fn the_time_to_live_sets_the_next_question() {
    let server = Server::start(Zone { v4: vec![A], ttl_seconds: 1, ..Zone::default() }).await;
    let fields = "type: STRICT_DNS, dns_lookup_family: V4_ONLY, dns_refresh_rate: 3600s, respect_dns_ttl: true";
    let mut watched = Watched::start(cluster(&server, fields, "backend.test"));
    watched.update().await;
    let start = Instant::now();
    watched.until(ClusterStat::UpdateAttempt, 2).await;
    assert!(start.elapsed() >= Duration::from_millis(900), "{:?}", start.elapsed());
    assert_eq!(server.questions.lock().unwrap()[0], "backend.test. A");
}

#[tokio::test]
async fn the_first_failure_ends_warming() {
    let server = Server::start(Zone { fails: true, ..Zone::default() }).await;
    for kind in ["STRICT_DNS", "LOGICAL_DNS"] {
        let fields =
            format!("type: {kind}, dns_failure_refresh_rate: {{ base_interval: 0.002s, max_interval: 0.01s }}");
        let mut watched = Watched::start(cluster(&server, &fields, "backend.test"));
        watched.until(ClusterStat::UpdateFailure, 3).await;
        assert!(watched.warm.load(Ordering::Relaxed));
        assert!(watched.updates.try_recv().is_err());
    }
}

#[tokio::test]
async fn literals_and_localhost_need_no_server() {
    let server = Server::start(Zone { fails: true, ..Zone::default() }).await;
    let literal = cluster(&server, "type: STRICT_DNS, dns_refresh_rate: 0.01s", "127.0.0.9");
    assert_eq!(addresses(&literal), ["127.0.0.9:80"], "there from the start");
    let mut watched = Watched::start(literal);
    watched.until(ClusterStat::UpdateNoRebuild, 2).await;
    assert!(watched.updates.try_recv().is_err());
    let local = cluster(&server, "type: LOGICAL_DNS, dns_lookup_family: V4_ONLY", "localhost");
    assert_eq!(addresses(&Watched::start(local).update().await), ["127.0.0.1:80"]);
    assert!(server.questions.lock().unwrap().is_empty());
}

#[test]
fn failure_waits_grow_up_to_their_maximum() {
    let rate = FailureRefresh { base: Duration::from_millis(100), max: Duration::from_millis(250) };
    let mut backoff = Backoff::new(Some(rate));
    let mut random = Random::seeded(3);
    for limit_ms in [100, 200, 250, 250] {
        assert_eq!(backoff.interval, Duration::from_millis(limit_ms));
        assert!(backoff.next(&mut random).unwrap() < Duration::from_millis(limit_ms));
    }
    backoff.reset();
    assert_eq!(backoff.interval, rate.base);
    assert_eq!(Backoff::new(None).next(&mut random), None);
    assert_eq!(LookupFamily::default(), LookupFamily::Auto);
}
