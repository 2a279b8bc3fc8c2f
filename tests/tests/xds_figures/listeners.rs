//! Listeners that are replaced under load: no connection is lost.

use std::time::{Duration, Instant};

use torus_tests::ports::free_port;
use torus_tests::proxy::Kind;

use crate::plane::Plane;
use crate::resources::{cluster, endpoint, listener, routes};
use crate::subject::{Client, Load, PATIENCE, Server, Subject, Table, is_long, sleep_until, subjects};

const CHANGES_PER_SECOND: u32 = 10;

#[test]
fn two_hundred_changes_of_a_listener_lose_no_connection() {
    let changes = if is_long() { 200 } else { 20 };
    let mut table = Table::new(format!("{changes} changes of a listener at {CHANGES_PER_SECOND}/s under load"));
    let server = Server::start();
    for kind in subjects() {
        table.begin(kind);
        replace(kind, changes, server.port, &mut table);
    }
    table.print();
}

fn replace(kind: Kind, changes: u32, backend: u16, table: &mut Table) {
    let (plane, plane_port, port) = (Plane::new(), free_port(), free_port());
    plane.put([cluster("a", 5), endpoint("a", "127.0.0.1", backend), routes(1), listener(port, 1)]);
    let _serving = plane.serve(plane_port);
    let mut subject = Subject::start(kind, plane_port, &[]);
    let mut client = Client::new(port);
    subject.wait_for("first reply", || client.is_served("/fixed", ""));
    let time = Duration::from_secs(1) / CHANGES_PER_SECOND * changes;
    let (kept_rate, new_rate) = if is_long() { ("3000", "700") } else { ("200", "100") };
    let kept = Load::start(port, time, &["-r", kept_rate]);
    let opened = Load::start(port, time, &["-r", new_rate, "--requests-per-connection", "1"]);
    let start = Instant::now();
    for round in 0..changes {
        plane.put([listener(port, round + 2)]);
        sleep_until(start, Duration::from_secs(1) / CHANGES_PER_SECOND * (round + 1));
    }
    let (kept, opened) = (kept.report(time + PATIENCE), opened.report(time + PATIENCE));
    assert_eq!(plane.refusals(), Vec::<String>::new());
    let last = format!("revision-{}", changes + 1);
    subject.wait_for("the last listener", || {
        client.get("/fixed", "").is_ok_and(|reply| reply.headers.get("server") == Some(&last))
    });
    table.add("requests on connections that are kept", "", kept.succeeded.to_string());
    table.add("failed of these", "0", format!("{} {}", kept.failed, kept.errors));
    table.add("connections for one request each", "", opened.succeeded.to_string());
    table.add("failed of these connections", "0", format!("{} {}", opened.failed, opened.errors));
    if kind == Kind::Torus {
        assert_eq!((kept.failed, opened.failed), (0, 0), "{} {}", kept.errors, opened.errors);
    }
}
