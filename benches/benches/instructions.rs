//! Instructions of each piece, counted by valgrind: the same number in every run, so that a change of a few percent shows.
//!
//! `benches/instructions.py` runs this and compares the counts with `benches/baseline.json`.

use std::hint::black_box;

use gungraun::prelude::*;
use torus_benches::balance::Endpoints;
use torus_benches::format::LogLine;
use torus_benches::head::{BROWSER_REQUEST, Encode, ReplyParse, RequestParse, SMALL_REQUEST};
use torus_benches::mutation::Mutation;
use torus_benches::publication::Publication;
use torus_benches::route::Lookup;

/// What is measured comes in a box and goes back in it, so that neither a move nor its end is counted.
type Boxed<T> = Box<T>;

#[library_benchmark]
#[bench::small(Box::new(RequestParse::new(SMALL_REQUEST)))]
#[bench::browser(Box::new(RequestParse::new(BROWSER_REQUEST)))]
fn parse_request(mut bench: Boxed<RequestParse>) -> Boxed<RequestParse> {
    black_box(bench.run());
    bench
}

#[library_benchmark]
#[bench::server(Box::default())]
fn parse_reply(mut bench: Boxed<ReplyParse>) -> Boxed<ReplyParse> {
    black_box(bench.run());
    bench
}

#[library_benchmark]
#[bench::browser(Box::default())]
fn encode_request(mut bench: Boxed<Encode>) -> Boxed<Encode> {
    black_box(bench.run_request());
    bench
}

#[library_benchmark]
#[bench::server(Box::default())]
fn encode_reply(mut bench: Boxed<Encode>) -> Boxed<Encode> {
    black_box(bench.run_reply());
    bench
}

#[library_benchmark]
#[bench::of_10_virtual_hosts(Box::new(Lookup::among_virtual_hosts(10)))]
#[bench::of_1000_virtual_hosts(Box::new(Lookup::among_virtual_hosts(1_000)))]
#[bench::of_100000_virtual_hosts(Box::new(Lookup::among_virtual_hosts(100_000)))]
#[bench::of_1000_routes(Box::new(Lookup::among_routes(1_000)))]
fn find_route(mut bench: Boxed<Lookup>) -> Boxed<Lookup> {
    black_box(bench.run());
    bench
}

#[library_benchmark]
#[bench::round_robin(Endpoints::new("ROUND_ROBIN").map(Box::new))]
#[bench::least_request(Endpoints::new("LEAST_REQUEST").map(Box::new))]
#[bench::random(Endpoints::new("RANDOM").map(Box::new))]
#[bench::ring_hash(Endpoints::new("RING_HASH").map(Box::new))]
#[bench::maglev(Endpoints::new("MAGLEV").map(Box::new))]
fn choose_endpoint(bench: Option<Boxed<Endpoints>>) -> Boxed<Endpoints> {
    let mut bench = bench.expect("the cluster is good");
    black_box(bench.run());
    bench
}

#[library_benchmark]
#[bench::of_six_fields(Mutation::new().map(Box::new))]
fn change_headers(bench: Option<Boxed<Mutation>>) -> Boxed<Mutation> {
    let mut bench = bench.expect("the changes are good");
    black_box(bench.run());
    bench
}

#[library_benchmark]
#[bench::in_envoys_format(LogLine::new().map(Box::new))]
fn write_log_line(bench: Option<Boxed<LogLine>>) -> Boxed<LogLine> {
    let mut bench = bench.expect("the format is good");
    black_box(bench.run());
    bench
}

#[library_benchmark]
#[bench::to_four_workers(Box::default())]
fn publish_snapshot(mut bench: Boxed<Publication>) -> Boxed<Publication> {
    black_box(bench.run());
    bench
}

library_benchmark_group!(
    name = pieces,
    benchmarks = [
        parse_request,
        parse_reply,
        encode_request,
        encode_reply,
        find_route,
        choose_endpoint,
        change_headers,
        write_log_line,
        publish_snapshot
    ]
);

main!(library_benchmark_groups = pieces);
