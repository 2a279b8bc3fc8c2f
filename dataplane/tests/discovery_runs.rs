//! A control plane that never rests, or sends rubbish, or goes away: no request fails meanwhile.
//!
//! `TORUS_XDS_LONG=1` makes the runs as long as the figures that are claimed of them; by default they take a few seconds.

mod plane;

use std::collections::btree_map::Entry;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use plane::*;

fn is_long() -> bool {
    std::env::var_os("TORUS_XDS_LONG").is_some()
}

/// A proxy that serves `a` on a port, its control plane, and where that listens.
fn serving(api: &str) -> (Plane, SocketAddr, tokio::runtime::Runtime, Proxy, u16, [u16; 2]) {
    let backends = [backend("a"), backend("b")];
    let (port, plane_port) = (free_port(), free_port());
    let plane = Plane::new();
    let address = SocketAddr::from(([127, 0, 0, 1], plane_port));
    let server = plane.serve(address);
    plane.put(&[
        (CLUSTER, "a", Some(&cluster("a"))),
        (CLUSTER, "b", Some(&cluster("b"))),
        (ENDPOINTS, "a", Some(&endpoints("a", backends[0]))),
        (ENDPOINTS, "b", Some(&endpoints("b", backends[1]))),
        (LISTENER, "in", Some(&listener("in", port, "one"))),
        (ROUTES, "routes", Some(&routes("a"))),
    ]);
    let proxy = Proxy::start(api, plane_port);
    wait_for("it serves", || get(port).is_some_and(|reply| reply == (200, "a".to_owned())));
    (plane, address, server, proxy, port, backends)
}

/// Resident memory in KiB and CPU time in hundredths of a second. Source: proc(5).
fn usage(proxy: &Proxy) -> (u64, u64) {
    let id = proxy.0.id();
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let resident = resident.trim().trim_end_matches(" kB").parse().unwrap();
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    (resident, fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap())
}

#[test]
fn ten_swaps_a_second_fail_no_request() {
    let swaps = if is_long() { 1000 } else { 40 };
    for api in ["GRPC", "DELTA_GRPC"] {
        let (plane, _, _server, proxy, port, [a, b]) = serving(api);
        let load = Load::start("127.0.0.1", port);
        // After the first swaps nothing more is allocated for good.
        let mut before = 0;
        let start = Instant::now();
        for round in 0..swaps {
            if round == swaps / 4 {
                before = usage(&proxy).0;
            }
            let to = if round / 4 % 2 == 0 { "b" } else { "a" };
            match round % 4 {
                0 => plane.put(&[(ROUTES, "routes", Some(&routes(to)))]),
                1 => plane.put(&[(ENDPOINTS, "b", Some(&endpoints("b", if to == "b" { a } else { b })))]),
                2 => {
                    let timeout = format!("type: EDS, connect_timeout: {}s", round + 1);
                    plane.put(&[(CLUSTER, "b", Some(&cluster("b").replace("type: EDS", &timeout)))]);
                }
                _ => plane.put(&[(LISTENER, "in", Some(&listener("in", port, &format!("round{round}"))))]),
            }
            let next = Duration::from_millis(100) * (round + 1);
            std::thread::sleep(next.saturating_sub(start.elapsed()));
        }
        let (after, _) = usage(&proxy);
        println!(
            "{api}: {swaps} swaps, {} requests, none failed; resident {before} KiB, then {after} KiB",
            load.finish()
        );
    }
}

/// Numbers that look random and are the same in each run. Source: Marsaglia, "Xorshift RNGs".
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit.max(1) as u64) as usize
    }
}

/// `bytes` with a few of them changed, cut out, repeated or added.
fn mutated(bytes: &[u8], numbers: &mut Numbers) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..=numbers.below(3) {
        let at = numbers.below(bytes.len());
        match numbers.below(5) {
            0 => bytes[at] ^= 1 << numbers.below(8),
            1 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][numbers.below(5)],
            2 => bytes.truncate(at.max(8)),
            3 => {
                let part = bytes[at..(at + numbers.below(40)).min(bytes.len())].to_vec();
                bytes.splice(at..at, part);
            }
            _ => bytes.insert(at, numbers.below(256) as u8),
        }
    }
    bytes
}

#[test]
fn mutated_resources_fail_no_request() {
    let wanted = if is_long() { 100_000 } else { 10_000 };
    let (plane, _, _server, mut proxy, port, [a, _]) = serving("GRPC");
    let good = plane.all();
    let load = Load::start("127.0.0.1", port);
    let other = free_port();
    let yaml = |kind, text: String| (kind, encoded(kind, &text));
    let seeds = [
        yaml(CLUSTER, cluster("mutated-cluster")),
        yaml(CLUSTER, "{name: mutated-static, type: STATIC, load_assignment: ".to_owned() + &endpoints("x", a) + "}"),
        yaml(ENDPOINTS, endpoints("a-mutated", a)),
        yaml(LISTENER, listener("mutated-listener", other, "mutated")),
        yaml(LISTENER, chained_listener("mutated-chains", other, ["routes", "more"], "mutated")),
        yaml(ROUTES, table("routes-mutated", "a")),
    ];
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    let (mut sent, mut refused, mut pushes) = (0, 0, 0);
    while sent < wanted {
        let mut world = good.clone();
        for round in 0..120 {
            let (kind, bytes) = &seeds[round % seeds.len()];
            let bytes = mutated(bytes, &mut numbers);
            let name = name_of(&bytes);
            let names = world.entry(kind).or_default();
            if let Entry::Vacant(free) = names.entry(name) {
                free.insert(bytes);
                sent += 1;
            }
        }
        plane.replace(world);
        wait_for("answers to every kind", || plane.verdict().is_some());
        refused += plane.verdict().unwrap_or_default().into_values().flatten().count();
        pushes += 1;
    }
    assert!(proxy.0.try_wait().unwrap().is_none(), "it still runs");
    plane.replace(good);
    plane.put(&[(ROUTES, "routes", Some(&routes("b")))]);
    load.goes_to(1);
    println!(
        "{sent} mutated resources in {pushes} pushes, {refused} answers refused; {} requests, none failed",
        load.finish()
    );
}

#[test]
fn a_control_plane_that_is_gone_or_talks_rubbish_fails_no_request() {
    let pause = Duration::from_secs(if is_long() { 120 } else { 2 });
    let (plane, address, server, proxy, port, _) = serving("DELTA_GRPC");
    let load = Load::start("127.0.0.1", port);
    let mut next = "b";
    let mut server = Some(server);
    for fault in ["killed", "hung", "garbage"] {
        drop(server.take());
        let (_, cpu_before) = usage(&proxy);
        let done = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let rubbish = (fault != "killed").then(|| {
            let listener = std::net::TcpListener::bind(address).unwrap();
            listener.set_nonblocking(true).unwrap();
            let done = done.clone();
            std::thread::spawn(move || {
                let mut held = Vec::new();
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    if let Ok((mut stream, _)) = listener.accept() {
                        if fault == "garbage" {
                            let _ = std::io::Write::write_all(&mut stream, &[0xa5; 4096]);
                        }
                        held.push(stream);
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
                held.len()
            })
        });
        std::thread::sleep(pause);
        let (_, cpu_after) = usage(&proxy);
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        let connections = rubbish.map_or(0, |thread| thread.join().unwrap());
        server = Some(plane.serve(address));
        let back = Instant::now();
        plane.put(&[(ROUTES, "routes", Some(&routes(next)))]);
        load.goes_to(usize::from(next == "b"));
        let took = back.elapsed();
        println!(
            "{fault} for {pause:?}: {} ticks of CPU with the load, {connections} connections, followed again after {took:?}",
            cpu_after - cpu_before
        );
        assert!(took < Duration::from_secs(8), "{fault}: followed again after {took:?}");
        next = if next == "b" { "a" } else { "b" };
    }
    println!("{} requests, none failed", load.finish());
}
