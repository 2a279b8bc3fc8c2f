//! How long it takes from the start of the process until it serves.

use std::time::{Duration, Instant};

use torus_tests::ports::free_port;
use torus_tests::proxy::Kind;

use crate::plane::Plane;
use crate::resources::{cluster, endpoint, listener, routes};
use crate::subject::{Client, PATIENCE, Server, Subject, Table, is_long, median, ms, subjects};

#[test]
fn the_first_request_is_served_soon_after_the_start() {
    let (count, starts) = if is_long() { (1000, 15) } else { (100, 2) };
    let mut table = Table::new(format!("start to the first request served, {starts} starts"));
    let server = Server::start();
    for kind in subjects() {
        table.begin(kind);
        let (plane, plane_port, port) = (Plane::new(), free_port(), free_port());
        let name = |index: u32| format!("service-{index}");
        plane.put((0..count).flat_map(|index| [cluster(&name(index), 5), endpoint(&name(index), "127.0.0.1", 9)]));
        plane.put([cluster("a", 5), endpoint("a", "127.0.0.1", server.port), routes(1), listener(port, 1)]);
        let serving = plane.serve(plane_port);
        let took = (0..starts).map(|_| from_start(kind, plane_port, port, &[])).collect();
        let figure = format!("with {count} clusters from a control plane, median");
        table.add(&figure, "<= 100 ms", ms(median(took)));
        if kind == Kind::Torus {
            // A run that leaves a snapshot; then nobody answers.
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("snapshot").to_string_lossy().into_owned();
            let arguments = ["--snapshot-path", &path];
            let mut subject = Subject::start(kind, plane_port, &arguments);
            let mut client = Client::new(port);
            subject.wait_for("first reply", || client.is_served("/fixed", ""));
            subject.program.signal("TERM");
            assert!(subject.program.wait(PATIENCE).is_some(), "it ends");
            drop(serving);
            let took = (0..starts).map(|_| from_start(kind, plane_port, port, &arguments)).collect();
            let figure = format!("with {count} clusters from a snapshot, median");
            table.add(&figure, "<= 50 ms", ms(median(took)));
        }
    }
    table.print();
}

fn from_start(kind: Kind, plane: u16, port: u16, arguments: &[&str]) -> Duration {
    let start = Instant::now();
    let mut subject = Subject::start(kind, plane, arguments);
    let mut client = Client::new(port);
    while !client.is_served("/fixed", "") {
        let ended = (start.elapsed() > PATIENCE || !subject.program.is_running()).then(|| subject.program.output());
        assert_eq!(ended, None, "it does not serve");
        std::thread::sleep(Duration::from_micros(500));
    }
    start.elapsed()
}
