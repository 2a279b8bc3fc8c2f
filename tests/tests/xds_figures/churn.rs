//! Thousands of clusters whose endpoints never rest, and a new cluster among them now and then.

use std::time::{Duration, Instant};

use torus_tests::ports::free_port;
use torus_tests::proxy::Kind;

use crate::plane::Plane;
use crate::resources::{cluster, endpoint, listener, routes};
use crate::subject::{Client, PATIENCE, Server, Subject, Table, is_long, median, ms, sleep_until, subjects};

/// Changes of endpoints go out this often.
const PUSHES_PER_SECOND: u32 = 10;
/// A new cluster comes this often.
const NEW_CLUSTER_EVERY: Duration = Duration::from_millis(700);

#[test]
fn a_new_cluster_is_used_while_the_endpoints_of_all_others_churn() {
    let (count, time) = if is_long() { (10_000, Duration::from_secs(45)) } else { (500, Duration::from_secs(3)) };
    let mut table =
        Table::new(format!("{count} EDS clusters, 1 % of their endpoints others each second, for {time:?}"));
    let server = Server::start();
    for kind in subjects() {
        table.begin(kind);
        churn(kind, count, time, server.port, &mut table);
    }
    table.print();
}

fn name(index: u32) -> String {
    format!("outbound|8080||service-{index}.namespace.svc.cluster.local")
}

fn churn(kind: Kind, count: u32, time: Duration, backend: u16, table: &mut Table) {
    let (plane, plane_port, port) = (Plane::new(), free_port(), free_port());
    let other =
        |index: u32, round: u32| endpoint(&name(index), "127.0.0.1", (20_000 + (index + round) % 40_000) as u16);
    plane.put((0..count).flat_map(|index| [cluster(&name(index), 5), other(index, 0)]));
    plane.put([cluster("a", 5), endpoint("a", "127.0.0.1", backend), routes(1), listener(port, 1)]);
    let _serving = plane.serve(plane_port);
    let mut subject = Subject::start(kind, plane_port, &[]);
    let mut client = Client::new(port);
    subject.wait_for("first reply", || client.is_served("/fixed", ""));

    // What the start cost is no part of it.
    std::thread::sleep(Duration::from_secs(if is_long() { 6 } else { 1 }));
    let (before, start) = (subject.usage(), Instant::now());
    let per_push = (count / 100 / PUSHES_PER_SECOND).max(1);
    let (mut at, mut round, mut added) = (0, 0, Vec::new());
    while start.elapsed() < time {
        round += 1;
        plane.put((at..at + per_push).map(|index| other(index % count, round)));
        at = (at + per_push) % count;
        if start.elapsed() > NEW_CLUSTER_EVERY * (added.len() as u32 + 1) {
            let new = format!("new-{}", added.len());
            let pushed = Instant::now();
            plane.put([cluster(&new, 5), endpoint(&new, "127.0.0.1", backend)]);
            let field = format!("x-cluster: {new}\r\n");
            while !client.is_served("/fixed", &field) {
                assert!(pushed.elapsed() < PATIENCE, "{new} is not used in time");
                std::thread::sleep(Duration::from_millis(1));
            }
            added.push(pushed.elapsed());
        }
        sleep_until(start, Duration::from_secs(1) / PUSHES_PER_SECOND * round);
    }
    let (took, after) = (start.elapsed(), subject.usage());
    assert_eq!(plane.refusals(), Vec::<String>::new());
    let share = (after.cpu - before.cpu).as_secs_f64() / took.as_secs_f64();
    table.add("CPU, share of a core", "<= 5 %", format!("{:.1} %", share * 100.0));
    table.add("resident", "<= 100 MB", format!("{} MB", after.resident_kib / 1024));
    let slowest = added.iter().max().copied().unwrap_or_default();
    table.add("new cluster used after its push, median", "<= 50 ms", ms(median(added)));
    table.add("new cluster used after its push, slowest", "<= 50 ms", ms(slowest));
    let (pause, turn) = match kind {
        Kind::Torus => {
            let turn = subject.stat("torus.ring.loop_lag_max_us") as f64;
            (subject.highest("torus.config.swap_us"), Some(turn))
        }
        Kind::Envoy => (None, subject.highest("listener_manager.worker_0.dispatcher.loop_duration_us")),
    };
    let us = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{:.2} ms", value / 1e3));
    table.add("worker, longest swap of the configuration", "<= 1 ms", us(pause));
    table.add("worker, longest turn of its loop since the start", "", us(turn));
    if kind == Kind::Torus {
        let live = subject.highest("torus.config.receipt_to_live_us");
        table.add("receipt to live, longest", "", us(live));
    }
    assert!(client.is_served("/fixed", ""));
}
