//! Time of each piece on this machine: `cargo bench -p torus-benches --bench time`.

use divan::Bencher;
use torus_benches::balance::Endpoints;
use torus_benches::format::LogLine;
use torus_benches::head::{BROWSER_REQUEST, Encode, ReplyParse, RequestParse, SMALL_REQUEST};
use torus_benches::mutation::Mutation;
use torus_benches::publication::Publication;
use torus_benches::route::Lookup;

fn main() {
    divan::main();
}

#[divan::bench]
fn parse_small_request(bencher: Bencher<'_, '_>) {
    let mut bench = RequestParse::new(SMALL_REQUEST);
    bencher.bench_local(|| bench.run());
}

#[divan::bench]
fn parse_browser_request(bencher: Bencher<'_, '_>) {
    let mut bench = RequestParse::new(BROWSER_REQUEST);
    bencher.bench_local(|| bench.run());
}

#[divan::bench]
fn parse_reply(bencher: Bencher<'_, '_>) {
    let mut bench = ReplyParse::new();
    bencher.bench_local(|| bench.run());
}

#[divan::bench]
fn encode_request(bencher: Bencher<'_, '_>) {
    let mut bench = Encode::new();
    bencher.bench_local(|| bench.run_request());
}

#[divan::bench]
fn encode_reply(bencher: Bencher<'_, '_>) {
    let mut bench = Encode::new();
    bencher.bench_local(|| bench.run_reply());
}

#[divan::bench(args = [10, 1_000, 100_000])]
fn find_route_among_virtual_hosts(bencher: Bencher<'_, '_>, count: usize) {
    let mut bench = Lookup::among_virtual_hosts(count);
    bencher.bench_local(|| bench.run());
}

#[divan::bench(args = [1_000])]
fn find_route_among_routes(bencher: Bencher<'_, '_>, count: usize) {
    let mut bench = Lookup::among_routes(count);
    bencher.bench_local(|| bench.run());
}

#[divan::bench(args = ["ROUND_ROBIN", "LEAST_REQUEST", "RANDOM", "RING_HASH", "MAGLEV"])]
fn choose_endpoint(bencher: Bencher<'_, '_>, policy: &str) {
    let mut bench = Endpoints::new(policy).expect("the cluster is good");
    bencher.bench_local(|| bench.run());
}

/// Parsing the head that is changed is part of it: changes are made to a fresh head.
#[divan::bench]
fn parse_and_change_headers(bencher: Bencher<'_, '_>) {
    let mut bench = Mutation::new().expect("the changes are good");
    bencher.bench_local(|| {
        bench.prepare();
        bench.run()
    });
}

#[divan::bench]
fn write_log_line(bencher: Bencher<'_, '_>) {
    let mut bench = LogLine::new().expect("the format is good");
    bencher.bench_local(|| bench.run());
}

#[divan::bench]
fn publish_snapshot(bencher: Bencher<'_, '_>) {
    let mut bench = Publication::new();
    bencher.bench_local(|| {
        bench.prepare();
        bench.run()
    });
}
