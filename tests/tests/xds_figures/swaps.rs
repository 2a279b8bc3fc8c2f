//! A configuration that changes ten times a second under load: no request fails, none sees two versions.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use torus_tests::ports::free_port;
use torus_tests::proxy::Kind;

use crate::plane::{Plane, Put};
use crate::resources::{cluster, endpoint, listener, routes};
use crate::subject::{Client, Load, PATIENCE, Server, Subject, Table, is_long, ms, sleep_until, subjects};

const SWAPS_PER_SECOND: u32 = 10;
/// Clients that look at versions.
const CHECKERS: usize = 4;
/// How long the server behind them takes: long enough that many a request is under way while the configuration changes.
const CHECKED_DELAY: Duration = Duration::from_millis(15);

#[test]
fn a_thousand_swaps_fail_no_request_and_none_sees_two_versions() {
    let mut table = Table::new(format!("swaps at {SWAPS_PER_SECOND}/s: routes, endpoints and clusters in turn"));
    let (server, checked) = (Server::start(), version_echo());
    for kind in subjects() {
        table.begin(kind);
        swap(kind, server.port, checked, &mut table);
    }
    table.print();
}

/// A server that answers with the version that the request carries.
fn version_echo() -> u16 {
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || -> std::io::Result<()> {
                stream.set_nodelay(true)?;
                let mut lines = BufReader::new(stream.try_clone()?).lines();
                let mut version = String::new();
                while let Some(line) = lines.next().transpose()? {
                    if let Some(value) = line.strip_prefix("x-version: ") {
                        version = value.to_owned();
                    }
                    if line.is_empty() {
                        std::thread::sleep(CHECKED_DELAY);
                        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{version}", version.len());
                        stream.write_all(answer.as_bytes())?;
                    }
                }
                Ok(())
            });
        }
    });
    port
}

/// The change of this round.
fn change(round: u32, backend: u16, checked: u16) -> Vec<Put> {
    // 127.0.0.1 and 127.0.0.2 are the same server: a move of all connections.
    let host = if (round / 3).is_multiple_of(2) { "127.0.0.2" } else { "127.0.0.1" };
    match round % 3 {
        0 => vec![routes(round + 2)],
        1 => vec![endpoint("a", host, backend), endpoint("checked", host, checked)],
        _ => vec![cluster("a", round % 90 + 5), cluster("checked", round % 90 + 5)],
    }
}

fn swap(kind: Kind, backend: u16, checked: u16, table: &mut Table) {
    let (plane, plane_port, port) = (Plane::new(), free_port(), free_port());
    plane.put([cluster("a", 5), endpoint("a", "127.0.0.1", backend)]);
    plane.put([cluster("checked", 5), endpoint("checked", "127.0.0.1", checked), routes(1), listener(port, 1)]);
    let _serving = plane.serve(plane_port);
    let mut subject = Subject::start(kind, plane_port, &[]);
    let mut client = Client::new(port);
    subject.wait_for("first reply", || client.is_served("/fixed", "") && client.is_served("/checked", ""));

    let (quiet_time, rate) = if is_long() {
        let most = Load::start(port, Duration::from_secs(6), &["--closed"]).report(PATIENCE);
        table.add("most that it serves, requests/s", "", format!("{:.0}", most.rate));
        (Duration::from_secs(20), most.rate * 0.7)
    } else {
        (Duration::from_millis(1500), 300.0)
    };
    let rate_text = format!("{rate:.0}");
    let quiet = Load::start(port, quiet_time, &["-r", &rate_text]).report(quiet_time + PATIENCE);
    assert_eq!(quiet.failed, 0, "without swaps: {}", quiet.errors);
    let before = subject.usage();

    // A thousand swaps, and at least a million requests.
    let swaps = if is_long() { (10_300_000.0 / rate) as u32 } else { 30 }.max(if is_long() { 1000 } else { 30 });
    let time = Duration::from_secs(1) / SWAPS_PER_SECOND * swaps;
    let done = Arc::new(AtomicBool::new(false));
    let checkers = (0..CHECKERS).map(|_| {
        let done = done.clone();
        std::thread::spawn(move || {
            let (mut client, mut looked_at, mut mixed) = (Client::new(port), 0u64, 0u64);
            while !done.load(Ordering::Relaxed) {
                let reply = client.get("/checked", "").expect("no connection is lost");
                assert_eq!(reply.status, 200, "{}", reply.text());
                looked_at += 1;
                mixed += u64::from(reply.headers.get("x-reply-version") != Some(&*reply.text()));
            }
            (looked_at, mixed)
        })
    });
    let checkers: Vec<_> = checkers.collect();
    let load = Load::start(port, time, &["-r", &rate_text]);
    let start = Instant::now();
    for round in 0..swaps {
        plane.put(change(round, backend, checked));
        sleep_until(start, Duration::from_secs(1) / SWAPS_PER_SECOND * (round + 1));
    }
    let report = load.report(time + PATIENCE);
    done.store(true, Ordering::Relaxed);
    let looked_at: Vec<(u64, u64)> = checkers.into_iter().map(|checker| checker.join().unwrap()).collect();
    let (looked_at, mixed) = looked_at.iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    assert_eq!(plane.refusals(), Vec::<String>::new());
    std::thread::sleep(Duration::from_secs(if is_long() { 6 } else { 0 }));
    let after = subject.usage();

    table.add("swaps", "1,000", swaps.to_string());
    table.add("rate, requests/s", "70 % of the most", rate_text);
    table.add("requests", ">= 1,000,000", (report.succeeded + report.failed + looked_at).to_string());
    table.add("failed", "0", report.failed.to_string());
    table.add("in the schedule, but not sent", "", report.unsent.to_string());
    table.add("of them with their versions compared", "", looked_at.to_string());
    table.add("saw two versions", "0", mixed.to_string());
    table.add("p99 without swaps", "", ms(quiet.p99));
    let times = report.p99.as_secs_f64() / quiet.p99.as_secs_f64();
    table.add("p99 with swaps", "<= 1.5 x", format!("{} ({times:.2} x)", ms(report.p99)));
    let grown = (after.resident_kib as f64 / before.resident_kib as f64 - 1.0) * 100.0;
    table.add("resident, before and after", "within 2 %", format!("{} KiB, {grown:+.1} %", after.resident_kib));
    if kind == Kind::Torus {
        assert_eq!(report.failed, 0, "{}", report.errors);
        assert_eq!(mixed, 0, "no request sees two versions");
    }
}
