//! Ring hash and Maglev choose the host that Envoy chooses.
//!
//! `envoy_choices.txt` holds, for each case, the host that Envoy 1.40 chose for the keys `key-0`, `key-1`, ... To record it
//! again: `ENVOY=/path/to/envoy cargo test -p torus-proxy record_choices -- --ignored`. The recorder needs no backends: every
//! connection is refused, and Envoy's own reply names in a field which host the request was meant for.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use xxhash_rust::xxh64::xxh64;

use super::{Chooser, cluster};

const KEY_COUNT: usize = 256;
const RECORDED: &str = include_str!("envoy_choices.txt");

/// A name and a cluster for each thing that the tables depend on.
fn cases() -> Vec<(&'static str, String)> {
    let plain = |count: usize| hosts(&vec![""; count]);
    let ring = |fields: &str, endpoints: &str| {
        format!(
            "{{ name: c, lb_policy: RING_HASH, {fields} load_assignment: {{ cluster_name: c, endpoints: [ {endpoints} ] }} }}"
        )
    };
    let maglev = |fields: &str, endpoints: &str| {
        format!(
            "{{ name: c, lb_policy: MAGLEV, {fields} load_assignment: {{ cluster_name: c, endpoints: [ {endpoints} ] }} }}"
        )
    };
    let typed = |policy: &str, fields: &str, endpoints: &str| {
        format!(
            "{{ name: c, load_balancing_policy: {{ policies: [ {{ typed_extension_config: {{ name: x, typed_config: {{ \
             \"@type\": type.googleapis.com/envoy.extensions.load_balancing_policies.{policy}, {fields} }} }} }} ] }}, \
             load_assignment: {{ cluster_name: c, endpoints: [ {endpoints} ] }} }}"
        )
    };
    let weighted = hosts(&["load_balancing_weight: 1", "load_balancing_weight: 2", "load_balancing_weight: 5"]);
    let named = hosts(&["", "", ""]).replace("endpoint: {", "endpoint: { hostname: NAME,");
    let named = ["a.example", "b.example", "c.example"].iter().fold(named, |text, name| text.replacen("NAME", name, 1));
    let keyed = |key: &str| format!("metadata: {{ filter_metadata: {{ envoy.lb: {{ hash_key: {key} }} }} }}");
    let keyed = hosts(&[&keyed("one"), &keyed("two"), ""]);
    // Envoy takes hostnames for hashing from STRICT_DNS clusters only.
    let hostname =
        "type: STRICT_DNS, common_lb_config: { consistent_hashing_lb_config: { use_hostname_for_hashing: true } },";
    let localities = format!(
        "{}, {}, {}",
        group(1, "locality: { zone: b }, load_balancing_weight: 3,", &["", "load_balancing_weight: 3"]),
        group(3, "locality: { zone: a }, load_balancing_weight: 1,", &["", "", ""]),
        group(6, "locality: { zone: c },", &[""]),
    );
    let by_locality = "common_lb_config: { locality_weighted_lb_config: {} },";
    let priorities = format!(
        "{}, {}",
        group(1, "", &["", "health_status: UNHEALTHY", "health_status: DRAINING"]),
        group(4, "priority: 1,", &["", ""]),
    );
    let failing = hosts(&["health_status: UNHEALTHY", "health_status: UNHEALTHY", ""]);
    let degraded = hosts(&["", "health_status: DEGRADED", "health_status: DEGRADED"]);
    vec![
        ("ring", ring("", &plain(5))),
        ("ring of one", ring("", &plain(1))),
        ("ring of many", ring("", &plain(60))),
        ("ring by weight", ring("ring_hash_lb_config: { minimum_ring_size: 50, maximum_ring_size: 100 },", &weighted)),
        ("ring too small", ring("ring_hash_lb_config: { minimum_ring_size: 1, maximum_ring_size: 6 },", &plain(4))),
        ("ring of odd size", ring("ring_hash_lb_config: { minimum_ring_size: 1000 },", &plain(7))),
        ("ring by murmur", ring("ring_hash_lb_config: { hash_function: MURMUR_HASH_2 },", &plain(5))),
        ("ring by hostname", ring(hostname, &named)),
        ("ring by hash_key", ring("", &keyed)),
        ("ring by locality", ring(by_locality, &localities)),
        ("ring by priority", ring("", &priorities)),
        ("ring in panic", ring("", &failing)),
        ("ring degraded", ring("", &degraded)),
        (
            "ring typed",
            typed("ring_hash.v3.RingHash", "minimum_ring_size: 128, hash_function: MURMUR_HASH_2", &weighted),
        ),
        ("ring typed by locality", typed("ring_hash.v3.RingHash", "locality_weighted_lb_config: {}", &localities)),
        ("maglev", maglev("", &plain(5))),
        ("maglev of one", maglev("", &plain(1))),
        ("maglev of two", maglev("", &plain(2))),
        ("maglev of many", maglev("maglev_lb_config: { table_size: 5003 },", &plain(300))),
        ("maglev by weight", maglev("", &weighted)),
        ("maglev small", maglev("maglev_lb_config: { table_size: 13 },", &plain(4))),
        ("maglev by hostname", maglev(hostname, &named)),
        ("maglev by hash_key", maglev("", &keyed)),
        ("maglev by locality", maglev(by_locality, &localities)),
        ("maglev by priority", maglev("", &priorities)),
        ("maglev in panic", maglev("", &failing)),
        ("maglev typed", typed("maglev.v3.Maglev", "table_size: 65537", &weighted)),
    ]
}

/// One group of endpoints with `fields` for each.
fn hosts(fields: &[&str]) -> String {
    group(1, "", fields)
}

/// A group of endpoints whose addresses begin with number `first`.
fn group(first: usize, options: &str, fields: &[&str]) -> String {
    let mut text = format!("{{ {options} lb_endpoints: [ ");
    for (number, fields) in (first..).zip(fields) {
        let address = format!("127.1.{}.{}", number / 200, number % 200);
        let address = format!("address: {{ socket_address: {{ address: {address}, port_value: 9 }} }}");
        let separator = if fields.is_empty() { "" } else { ", " };
        let _ = write!(text, "{{ endpoint: {{ {address} }}{separator}{fields} }}, ");
    }
    text + "] }"
}

/// The place of the chosen host among the endpoints, for each key.
fn choices(yaml: &str) -> Vec<usize> {
    let cluster = cluster(yaml);
    let mut chooser = Chooser::new(&cluster);
    let hash = |key: usize| xxh64(format!("key-{key}").as_bytes(), 0);
    (0..KEY_COUNT).map(|key| chooser.choose_with(Some(hash(key)), None).unwrap().0 as usize).collect()
}

#[test]
fn hashes_choose_as_envoy_does() {
    let recorded: Vec<(&str, Vec<usize>)> = RECORDED
        .lines()
        .filter_map(|line| line.split_once(": "))
        .map(|(name, places)| (name, places.split(' ').map(|place| place.parse().unwrap()).collect()))
        .collect();
    let cases = cases();
    assert_eq!(recorded.len(), cases.len(), "record again: the cases have changed");
    for ((name, yaml), (recorded_name, expect)) in cases.iter().zip(&recorded) {
        assert_eq!(name, recorded_name);
        let got = choices(yaml);
        let same = got.iter().zip(expect).filter(|(got, expect)| got == expect).count();
        assert_eq!(&got, expect, "{name}: {same} of {KEY_COUNT} agree");
    }
}

#[test]
#[ignore = "records the vectors from a real Envoy, named by ENVOY"]
fn record_choices() {
    let envoy = std::env::var("ENVOY").expect("ENVOY names the binary");
    let mut text = String::new();
    for (name, yaml) in cases() {
        let places: Vec<String> = ask_envoy(&envoy, &yaml).iter().map(ToString::to_string).collect();
        let _ = writeln!(text, "{name}: {}", places.join(" "));
    }
    std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/src/cluster/balance/tests/envoy_choices.txt"), text).unwrap();
}

/// Which host Envoy chooses for each key.
fn ask_envoy(envoy: &str, yaml: &str) -> Vec<usize> {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let folder = tempfile::tempdir().unwrap();
    let config = format!(
        r#"static_resources:
  listeners:
  - address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}
    filter_chains:
    - filters:
      - name: hcm
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: s
          route_config:
            response_headers_to_add: [ {{ header: {{ key: x-host, value: "%UPSTREAM_HOST%" }} }} ]
            virtual_hosts:
            - name: v
              domains: ["*"]
              routes:
              - match: {{ prefix: / }}
                route: {{ cluster: c, hash_policy: [ {{ header: {{ header_name: x-key }} }} ] }}
          http_filters:
          - name: router
            typed_config: {{ "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }}
  clusters:
  - {yaml}
"#
    );
    let path = folder.path().join("envoy.yaml");
    std::fs::write(&path, config).unwrap();
    let mut command = Command::new(envoy);
    command.args(["--use-dynamic-base-id", "--concurrency", "1", "-c"]).arg(&path).stderr(Stdio::null());
    let _process = Running(command.spawn().unwrap());
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut connection = loop {
        match TcpStream::connect(("127.0.0.1", port)) {
            Ok(connection) => break connection,
            Err(error) => assert!(Instant::now() < deadline, "{error}: {yaml}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let hosts: Vec<String> = cluster(yaml).endpoints.hosts.iter().map(|host| host.address.to_string()).collect();
    let mut ask = |key: usize| {
        let request = format!("GET / HTTP/1.1\r\nhost: h\r\nx-key: key-{key}\r\n\r\n");
        connection.write_all(request.as_bytes()).unwrap();
        let chosen = reply_host(&mut connection);
        hosts.iter().position(|host| *host == chosen).expect(&chosen)
    };
    (0..KEY_COUNT).map(&mut ask).collect()
}

/// Ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Reads one reply and gives its `x-host`.
fn reply_host(connection: &mut TcpStream) -> String {
    let mut reply = Vec::new();
    let mut byte = [0];
    while !reply.ends_with(b"\r\n\r\n") {
        connection.read_exact(&mut byte).unwrap();
        reply.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&reply).to_ascii_lowercase();
    let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).expect(name).trim().to_owned();
    let mut body = vec![0; field("content-length:").parse().unwrap()];
    connection.read_exact(&mut body).unwrap();
    field("x-host:")
}
