//! Choices are checked against what they promise: shares, turns, avoided hosts; hash policies against Envoy (`vectors`).

mod vectors;

use std::sync::Arc;

use super::*;
use crate::cluster::{HostHealth, Priority};
use crate::config::parse::ParseContext;
use crate::telemetry::counters::Core;

/// The cluster in `yaml`.
fn cluster(yaml: &str) -> Cluster {
    let config = torus_xds::from_yaml(yaml).unwrap_or_else(|problems| panic!("{problems:?}\n{yaml}"));
    let mut context = ParseContext::new(2);
    let parsed = Cluster::parse(&config, &mut context);
    let problems: Vec<String> = context.problems.iter().map(ToString::to_string).collect();
    parsed.unwrap_or_else(|_| panic!("{problems:?}\n{yaml}"))
}

/// A cluster with `settings` and one host for each of `hosts`: weight, priority and health status.
fn cluster_of(settings: &str, hosts: &[(u32, u32, &str)]) -> Cluster {
    let endpoint = |(index, (weight, priority, health)): (usize, &(u32, u32, &str))| {
        format!(
            "  - priority: {priority}\n    lb_endpoints:\n    - health_status: {health}\n      load_balancing_weight: {weight}\n      \
             endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.{}, port_value: 9 }} }} }}\n",
            index + 1
        )
    };
    let endpoints: String = hosts.iter().enumerate().map(endpoint).collect();
    cluster(&format!("name: c\n{settings}\nload_assignment:\n  cluster_name: c\n  endpoints:\n{endpoints}"))
}

struct Chooser<'a> {
    cluster: &'a Cluster,
    balancer: Balancer,
    random: Random,
    active: Vec<u32>,
}

impl<'a> Chooser<'a> {
    fn new(cluster: &'a Cluster) -> Self {
        let mut random = Random::seeded(42);
        let balancer = Balancer::new(cluster, &mut random);
        Self { cluster, balancer, random, active: vec![0; cluster.endpoints.hosts.len()] }
    }

    fn choose(&mut self) -> Option<HostIndex> {
        self.choose_with(None, None)
    }

    fn choose_with(&mut self, hash: Option<u64>, retry: Option<RetryHosts<'_>>) -> Option<HostIndex> {
        let active = &self.active;
        let mut request = Choice {
            core: Core(0),
            random: &mut self.random,
            hash,
            active: &|host: HostIndex| active[host.0 as usize],
            active_total: active.iter().sum(),
            retry,
        };
        self.balancer.choose(self.cluster, &mut request)
    }

    /// How often each host was chosen in `count` choices.
    fn counts(&mut self, count: usize) -> Vec<u32> {
        let mut counts = vec![0; self.cluster.endpoints.hosts.len()];
        for _ in 0..count {
            if let Some(host) = self.choose() {
                counts[host.0 as usize] += 1;
            }
        }
        counts
    }
}

#[track_caller]
fn assert_shares(counts: &[u32], shares: &[f64], tolerance: f64) {
    let sum: u32 = counts.iter().sum();
    for (count, share) in counts.iter().zip(shares) {
        let got = f64::from(*count) / f64::from(sum);
        assert!((got - share).abs() <= tolerance, "{counts:?} are not {shares:?}");
    }
}

const HEALTHY: &str = "HEALTHY";

#[test]
fn round_robin_takes_turns() {
    let cluster = cluster_of("", &[(1, 0, HEALTHY), (1, 0, HEALTHY), (1, 0, HEALTHY)]);
    let mut chooser = Chooser::new(&cluster);
    let first: Vec<_> = (0..3).map(|_| chooser.choose().unwrap()).collect();
    let again: Vec<_> = (0..3).map(|_| chooser.choose().unwrap()).collect();
    assert_eq!(first, again);
    assert_eq!(chooser.counts(300), [100, 100, 100]);
}

#[test]
fn weights_set_shares() {
    let check = |policy: &str, shares: &[f64], tolerance: f64| {
        let cluster = cluster_of(policy, &[(1, 0, HEALTHY), (2, 0, HEALTHY), (7, 0, HEALTHY)]);
        assert_shares(&Chooser::new(&cluster).counts(10_000), shares, tolerance);
    };
    check("lb_policy: ROUND_ROBIN", &[0.1, 0.2, 0.7], 0.001);
    // Without active requests, a least-request schedule is a weighted one.
    check("lb_policy: LEAST_REQUEST", &[0.1, 0.2, 0.7], 0.001);
    // Envoy's random policy ignores weights.
    check("lb_policy: RANDOM", &[0.333, 0.333, 0.333], 0.02);
}

#[test]
fn least_request_avoids_busy_hosts() {
    let check = |policy: &str, weights: [u32; 2], active: [u32; 2], shares: &[f64]| {
        let cluster = cluster_of(policy, &weights.map(|weight| (weight, 0, HEALTHY)));
        let mut chooser = Chooser::new(&cluster);
        chooser.active = active.into();
        // The first turns were due before the hosts were busy.
        chooser.counts(100);
        assert_shares(&chooser.counts(10_000), shares, 0.02);
    };
    let typed = |fields: &str| {
        format!(
            "load_balancing_policy: {{ policies: [ {{ typed_extension_config: {{ name: x, typed_config: {{ \"@type\": \
             type.googleapis.com/envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest, {fields} }} }} }} ] }}"
        )
    };
    // Two drawn of two hosts: the busy one only where it was drawn twice.
    check("lb_policy: LEAST_REQUEST", [1, 1], [0, 5], &[0.75, 0.25]);
    check("lb_policy: LEAST_REQUEST", [1, 1], [5, 5], &[0.5, 0.5]);
    let bias = "lb_policy: LEAST_REQUEST\nleast_request_lb_config: { choice_count: 4 }";
    check(bias, [1, 1], [0, 5], &[0.9375, 0.0625]);
    check(&typed("selection_method: FULL_SCAN"), [1, 1], [0, 5], &[1.0, 0.0]);
    check(&typed("selection_method: FULL_SCAN"), [1, 1], [5, 5], &[0.5, 0.5]);
    // Unequal weights: weight / (active + 1) ^ bias.
    check("lb_policy: LEAST_REQUEST", [2, 1], [3, 0], &[1.0 / 3.0, 2.0 / 3.0]);
    let bias = |value: &str| {
        format!(
            "lb_policy: LEAST_REQUEST\nleast_request_lb_config: {{ active_request_bias: {{ default_value: {value}, \
             runtime_key: k }} }}"
        )
    };
    check(&bias("0.0"), [2, 1], [3, 0], &[2.0 / 3.0, 1.0 / 3.0]);
    check(&bias("2.0"), [2, 1], [3, 0], &[1.0 / 9.0, 8.0 / 9.0]);
}

#[test]
fn load_follows_priorities_and_health() {
    let check = |settings: &str, hosts: &[(u32, u32, &str)], shares: &[f64]| {
        for policy in ["ROUND_ROBIN", "RANDOM", "RING_HASH", "MAGLEV"] {
            let cluster = cluster_of(&format!("lb_policy: {policy}\n{settings}"), hosts);
            assert_shares(&Chooser::new(&cluster).counts(10_000), shares, 0.07);
        }
    };
    check("", &[(1, 0, "HEALTHY"), (1, 1, "HEALTHY")], &[1.0, 0.0]);
    check("", &[(1, 0, "UNHEALTHY"), (1, 1, "UNKNOWN")], &[0.0, 1.0]);
    // Half of priority 0 is healthy: 70 % of the load.
    check("", &[(1, 0, "HEALTHY"), (1, 0, "TIMEOUT"), (1, 1, "HEALTHY")], &[0.7, 0.0, 0.3]);
    // A draining host does not count.
    check("", &[(1, 0, "HEALTHY"), (1, 0, "DRAINING"), (1, 1, "HEALTHY")], &[1.0, 0.0, 0.0]);
    // One of three: below the panic threshold, everyone takes part.
    check("", &[(1, 0, "HEALTHY"), (1, 0, "UNHEALTHY"), (1, 0, "UNHEALTHY")], &[0.333, 0.333, 0.333]);
    let calm = "common_lb_config: { healthy_panic_threshold: { value: 0 } }";
    check(calm, &[(1, 0, "HEALTHY"), (1, 0, "UNHEALTHY"), (1, 0, "UNHEALTHY")], &[1.0, 0.0, 0.0]);
}

#[test]
fn degraded_hosts_take_what_is_left() {
    let hosts = [(1, 0, "HEALTHY"), (1, 0, "DEGRADED"), (1, 0, "DEGRADED"), (1, 0, "DEGRADED")];
    let cluster = cluster_of("", &hosts);
    assert_shares(&Chooser::new(&cluster).counts(10_000), &[0.35, 0.217, 0.217, 0.217], 0.02);
}

#[test]
fn panic_is_counted_and_may_fail_traffic() {
    let check = |settings: &str, chosen: bool| {
        let cluster = cluster_of(settings, &[(1, 0, "UNHEALTHY")]);
        assert_eq!(Chooser::new(&cluster).choose().is_some(), chosen, "{settings}");
        assert_eq!(cluster.stats.total(ClusterStat::LbHealthyPanic), 1, "{settings}");
    };
    check("", true);
    check("lb_policy: RING_HASH", true);
    check("common_lb_config: { zone_aware_lb_config: { fail_traffic_on_panic: true } }", false);
}

#[test]
fn without_hosts_there_is_no_choice() {
    for policy in ["ROUND_ROBIN", "LEAST_REQUEST", "RANDOM", "RING_HASH", "MAGLEV"] {
        for hosts in [vec![], vec![(1, 0, "UNHEALTHY")]] {
            let calm = "common_lb_config: { healthy_panic_threshold: { value: 0 } }";
            let cluster = cluster_of(&format!("lb_policy: {policy}\n{calm}"), &hosts);
            assert_eq!(Chooser::new(&cluster).choose(), None, "{policy} {hosts:?}");
        }
    }
}

#[test]
fn localities_share_by_weight_and_health() {
    let locality = |zone: &str, weight: u32, address: u8, health: &str| {
        format!(
            "  - locality: {{ zone: {zone} }}\n    load_balancing_weight: {weight}\n    lb_endpoints:\n    - health_status: {health}\n      \
             endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.{address}, port_value: 9 }} }} }}\n    - endpoint: \
             {{ address: {{ socket_address: {{ address: 127.0.1.{address}, port_value: 9 }} }} }}\n"
        )
    };
    let check = |health: &str, shares: &[f64]| {
        let endpoints = locality("b", 3, 1, HEALTHY) + &locality("a", 1, 2, health);
        let cluster = cluster(&format!(
            "name: c\ncommon_lb_config: {{ locality_weighted_lb_config: {{}} }}\nload_assignment:\n  cluster_name: c\n  \
             endpoints:\n{endpoints}"
        ));
        assert_shares(&Chooser::new(&cluster).counts(10_000), shares, 0.01);
    };
    check(HEALTHY, &[0.375, 0.375, 0.125, 0.125]);
    // Half of locality a: its weight is 0.7 of 1.
    check("UNHEALTHY", &[1.5 / 3.7, 1.5 / 3.7, 0.0, 0.7 / 3.7]);
}

#[test]
fn a_retry_avoids_hosts_while_it_may() {
    let hosts = [(1, 0, HEALTHY), (1, 0, HEALTHY)];
    for policy in ["ROUND_ROBIN", "LEAST_REQUEST", "RANDOM", "RING_HASH", "MAGLEV"] {
        let cluster = cluster_of(&format!("lb_policy: {policy}"), &hosts);
        let mut chooser = Chooser::new(&cluster);
        for hash in 0..20 {
            let avoid = |host: HostIndex, _: &Host| host == HostIndex(0);
            let retry = RetryHosts { avoid: &avoid, attempts_max: 200 };
            assert_eq!(chooser.choose_with(Some(hash << 50), Some(retry)), Some(HostIndex(1)), "{policy}");
            let everyone = |_: HostIndex, _: &Host| true;
            let retry = RetryHosts { avoid: &everyone, attempts_max: 3 };
            assert!(chooser.choose_with(Some(hash << 50), Some(retry)).is_some(), "{policy}");
        }
    }
}

#[test]
fn a_busy_host_passes_requests_on() {
    let factor = "common_lb_config: { consistent_hashing_lb_config: { hash_balance_factor: 150 } }";
    for policy in ["RING_HASH", "MAGLEV"] {
        let cluster = cluster_of(&format!("lb_policy: {policy}\n{factor}"), &[(1, 0, HEALTHY); 4]);
        let mut chooser = Chooser::new(&cluster);
        let home = chooser.choose_with(Some(12345), None).unwrap();
        // 4 of 4 active requests: the host's part of 5 x 1.5 is 2.
        chooser.active[home.0 as usize] = 4;
        let other = chooser.choose_with(Some(12345), None).unwrap();
        assert_ne!(home, other);
        assert_eq!(chooser.choose_with(Some(12345), None), Some(other), "equal hashes go the same way");
        chooser.active = vec![9; 4];
        chooser.active[home.0 as usize] = 1;
        assert_eq!(chooser.choose_with(Some(12345), None), Some(home));
    }
}

#[test]
fn new_endpoints_are_noticed() {
    let before = cluster_of("", &[(1, 0, HEALTHY), (1, 0, HEALTHY)]);
    let mut random = Random::seeded(1);
    let mut balancer = Balancer::new(&before, &mut random);
    let hosts = before.endpoints.hosts.iter().skip(1).cloned().collect();
    let after = before.with_endpoints(EndpointSet::new(hosts, &Default::default(), &before.policy));
    assert!(Arc::ptr_eq(&before.stats, &after.stats));
    for _ in 0..4 {
        let active = |_: HostIndex| 0;
        let mut request =
            Choice { core: Core(0), random: &mut random, hash: None, active: &active, active_total: 0, retry: None };
        assert_eq!(balancer.choose(&after, &mut request), Some(HostIndex(0)));
    }
    assert!(after.host(HostIndex(0)).unwrap().is_same(before.host(HostIndex(1)).unwrap()));
}

#[test]
fn gauges_say_what_is_there() {
    let hosts = [(1, 0, "HEALTHY"), (1, 0, "DEGRADED"), (1, 0, "DRAINING"), (1, 0, "UNHEALTHY")];
    let settings =
        "lb_policy: RING_HASH\ncircuit_breakers: { thresholds: [ { max_requests: 0, track_remaining: true } ] }";
    let cluster = cluster_of(settings, &hosts);
    let core = Core(1);
    cluster.refresh_gauges(core);
    cluster.refresh_gauges(core);
    let check = |stat, value| assert_eq!(cluster.stats.total(stat), value, "{stat:?}");
    check(ClusterStat::MembershipChange, 1);
    check(ClusterStat::MembershipTotal, 4);
    check(ClusterStat::MembershipHealthy, 1);
    check(ClusterStat::MembershipDegraded, 1);
    check(ClusterStat::MembershipExcluded, 1);
    check(ClusterStat::CircuitBreakersDefaultRqOpen, 1);
    check(ClusterStat::CircuitBreakersDefaultCxOpen, 0);
    check(ClusterStat::CircuitBreakersDefaultRemainingCx, 1024);
    check(ClusterStat::RingHashLbSize, 1024);
    assert_eq!(cluster.endpoints.count(HostHealth::Unhealthy), 1);
    assert!(cluster.breakers.is_open(Priority::Default, crate::cluster::Resource::Requests));
}
