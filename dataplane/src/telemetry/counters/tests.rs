use super::super::names::{ClusterStat, HttpStat, ListenerStat};
use super::*;

fn shown<G: StatGroup>(stats: &Stats<G>) -> Vec<(String, u64, bool)> {
    let mut shown = Vec::new();
    stats.visit(&mut |name, reading| match reading {
        Reading::Counter { value, used } | Reading::Gauge { value, used } => shown.push((name.to_owned(), value, used)),
        Reading::Histogram(distribution) => {
            shown.push((name.to_owned(), distribution.count(), !distribution.is_empty()))
        }
    });
    shown
}

fn value<G: StatGroup>(stats: &Stats<G>, name: &str) -> Option<(u64, bool)> {
    shown(stats).into_iter().find(|(shown, ..)| shown == name).map(|(_, value, used)| (value, used))
}

#[test]
fn cores_add_up_and_gauges_go_down() {
    let stats = Stats::<HttpStat>::new("http.in.", 3);
    stats.increment(Core(0), HttpStat::DownstreamCxActive);
    stats.increment(Core(0), HttpStat::DownstreamCxActive);
    stats.decrement(Core(1), HttpStat::DownstreamCxActive);
    assert_eq!(stats.total(HttpStat::DownstreamCxActive), 1);
    stats.decrement(Core(0), HttpStat::DownstreamCxActive);
    assert_eq!(value(&stats, "http.in.downstream_cx_active"), Some((0, true)), "used although 0");
    stats.decrement(Core(0), HttpStat::DownstreamCxActive);
    assert_eq!(stats.total(HttpStat::DownstreamCxActive), 0, "never below zero");
    assert_eq!(value(&stats, "http.in.downstream_cx_total"), Some((0, false)));
    stats.set(Core(2), HttpStat::DownstreamCxActive, 10);
    assert_eq!(stats.total(HttpStat::DownstreamCxActive), 9);
}

#[test]
fn a_core_out_of_range_changes_nothing() {
    let stats = Stats::<HttpStat>::new("http.in.", 1);
    stats.increment(Core(1), HttpStat::DownstreamCxTotal);
    stats.response_code(Core(0), 200);
    assert_eq!(stats.total(HttpStat::DownstreamCxTotal), 0);
}

#[test]
fn codes_show_once_they_were_seen() {
    let stats = Stats::<ClusterStat>::new("cluster.c.", 2);
    assert_eq!(value(&stats, "cluster.c.upstream_rq_completed"), Some((0, false)));
    assert_eq!(value(&stats, "cluster.c.external.upstream_rq_completed"), None);
    for (core, status) in [(0, 200), (1, 200), (1, 503), (0, 599), (0, 600), (0, 99), (0, 0)] {
        stats.response_code(Core(core), status);
    }
    stats.response_code_from(Core(0), ResponseOrigin::External, 404);
    let check = |name: &str, expected| assert_eq!(value(&stats, name), expected, "{name}");
    check("cluster.c.upstream_rq_200", Some((2, true)));
    check("cluster.c.upstream_rq_2xx", Some((2, true)));
    check("cluster.c.upstream_rq_503", Some((1, true)));
    check("cluster.c.upstream_rq_5xx", Some((2, true)));
    check("cluster.c.upstream_rq_404", None);
    check("cluster.c.upstream_rq_completed", Some((4, true)));
    check("cluster.c.external.upstream_rq_404", Some((1, true)));
    check("cluster.c.external.upstream_rq_completed", Some((1, true)));
    check("cluster.c.internal.upstream_rq_completed", None);
}

#[test]
fn a_reset_hides_the_past_of_counters_only() {
    let stats = Stats::<ClusterStat>::new("cluster.c.", 2);
    stats.add(Core(0), ClusterStat::UpstreamRqTotal, 5);
    stats.increment(Core(0), ClusterStat::UpstreamCxActive);
    stats.response_code(Core(0), 200);
    stats.reset_counters();
    stats.reset_counters();
    assert_eq!(stats.total(ClusterStat::UpstreamRqTotal), 0);
    assert_eq!(stats.total(ClusterStat::UpstreamCxActive), 1);
    assert_eq!(value(&stats, "cluster.c.upstream_rq_200"), Some((0, true)));
    stats.add(Core(1), ClusterStat::UpstreamRqTotal, 2);
    stats.response_code(Core(1), 200);
    assert_eq!(stats.total(ClusterStat::UpstreamRqTotal), 2);
    assert_eq!(value(&stats, "cluster.c.upstream_rq_200"), Some((1, true)));
}

#[test]
fn workers_show_apart() {
    let stats = Stats::<ListenerStat>::new("listener.a.", 3);
    stats.increment(Core(1), ListenerStat::DownstreamCxTotal);
    assert_eq!(value(&stats, "listener.a.worker_0.downstream_cx_total"), Some((0, false)));
    assert_eq!(value(&stats, "listener.a.worker_1.downstream_cx_total"), Some((1, true)));
    assert_eq!(value(&stats, "listener.a.worker_2.downstream_cx_total"), None, "the config thread is no worker");
}

#[test]
fn histograms_merge_over_cores() {
    let stats = Stats::<ClusterStat>::new("cluster.c.", 2);
    assert_eq!(value(&stats, "cluster.c.upstream_rq_time"), None);
    assert_eq!(value(&stats, "cluster.c.upstream_cx_connect_ms"), Some((0, false)));
    stats.record(Core(0), ClusterStat::UpstreamRqTime, 3);
    stats.record(Core(1), ClusterStat::UpstreamRqTime, 300);
    let merged = stats.distribution(ClusterStat::UpstreamRqTime);
    assert_eq!((merged.count(), merged.sum()), (2, 303));
    stats.record(Core(0), ClusterStat::UpstreamRqTotal, 3);
    assert_eq!(stats.total(ClusterStat::UpstreamRqTotal), 0, "recording into a counter does nothing");
}

#[test]
fn an_untouched_group_is_small() {
    assert!(size_of::<Stats<ClusterStat>>() <= 56);
    assert!(size_of::<OnceLock<Box<CoreCells>>>() <= 16);
}
