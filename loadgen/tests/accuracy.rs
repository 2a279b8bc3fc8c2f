//! `torus-load run` against servers whose delays are known: what it reports is what they did.

mod peer;

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hdrhistogram::serialization::Deserializer;
use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};
use serde_json::Value;

/// A server with a thread for each connection, which answers after what `delay` says for request number n at time t.
fn server(delay: impl Fn(u64, Duration) -> Duration + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let delay = Arc::new(delay);
    let count = Arc::new(AtomicU64::new(0));
    let start = Instant::now();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (delay, count) = (Arc::clone(&delay), Arc::clone(&count));
            thread::spawn(move || {
                let mut stream: TcpStream = stream.unwrap();
                stream.set_nodelay(true).unwrap();
                let mut buffer = [0; 4096];
                // Requests of this tool come one at a time and fit into one segment.
                while stream.read(&mut buffer).is_ok_and(|length| length > 0) {
                    thread::sleep(delay(count.fetch_add(1, Ordering::Relaxed), start.elapsed()));
                    if stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").is_err() {
                        break;
                    }
                }
            });
        }
    });
    format!("http://{address}/")
}

fn torus_load() -> Command {
    Command::new(env!("CARGO_BIN_EXE_torus-load"))
}

/// Measurements that are begun when the machine is too busy for them.
const ATTEMPTS_MAX: usize = 6;

/// Runs and gives the report with the exit code. A measurement that its own verdict calls spoiled by this machine is made anew.
fn run(target: &str, flags: &str) -> (Value, i32) {
    // The first measurements share the machine with those of other tests, repeated ones do not.
    let lock = File::create(Path::new(env!("CARGO_TARGET_TMPDIR")).join("measuring")).unwrap();
    lock.lock_shared().unwrap();
    let mut result = run_once(target, flags);
    for _ in 1..ATTEMPTS_MAX {
        let (report, _) = &result;
        let spoiled = report["verdict"]["kind"] == "generator-limited" || report["search"]["limit"] == "generator";
        if !spoiled || report["load"]["model"] == "closed" {
            break;
        }
        lock.unlock().unwrap();
        lock.lock().unwrap();
        eprintln!("measuring again: {}", report["verdict"]);
        result = run_once(target, flags);
    }
    result
}

fn run_once(target: &str, flags: &str) -> (Value, i32) {
    let flags = flags.split_ascii_whitespace();
    let output = torus_load().args(["run", target, "--json", "-", "-q"]).args(flags).output().unwrap();
    let report = serde_json::from_slice(&output.stdout);
    let report = report.unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    (report, output.status.code().unwrap())
}

/// In milliseconds.
fn percentile(report: &Value, distribution: &str, percentile: f64) -> f64 {
    let steps = report[distribution]["percentiles"].as_array().unwrap();
    let step = steps.iter().find(|step| step[0].as_f64() == Some(percentile)).unwrap();
    step[1].as_f64().unwrap() / 1e6
}

fn number(report: &Value, pointer: &str) -> f64 {
    report.pointer(pointer).and_then(Value::as_f64).unwrap_or_else(|| panic!("no {pointer} in {report}"))
}

/// `value` is at least `least` and not more than `above` higher, which is what a busy machine may add.
#[track_caller]
fn check_near(value: f64, least: f64, above: f64) {
    assert!((least..least + above).contains(&value), "{value} is not in {least} to {}", least + above);
}

#[test]
fn a_constant_delay_is_reported_as_it_is() {
    let target = server(|_, _| Duration::from_millis(20));
    let (report, _) = run(&target, "-r 100 -d 2s --warmup 200ms");
    assert_eq!(number(&report, "/requests/succeeded"), 200.0);
    check_near(percentile(&report, "response_time", 50.0), 20.0, 15.0);
    check_near(percentile(&report, "service_time", 50.0), 20.0, 15.0);
}

#[test]
fn both_modes_of_a_bimodal_delay_are_seen() {
    let target = server(|n, _| Duration::from_millis(if n % 10 == 0 { 100 } else { 10 }));
    let (report, _) = run(&target, "-r 100 -d 2s --warmup 0s");
    check_near(percentile(&report, "service_time", 50.0), 10.0, 15.0);
    check_near(percentile(&report, "service_time", 95.0), 100.0, 30.0);
}

/// What the server did to each request is what is reported: at every quantile not less, and not more than the way there and back
/// takes and one step of the histogram.
#[test]
fn the_distribution_is_the_servers_own() {
    type Pattern = (&'static str, fn(u64) -> u64);
    let patterns: [Pattern; 3] = [
        ("constant", |_| 60),
        ("bimodal", |n| if n % 3 == 0 { 120 } else { 40 }),
        ("stalls", |n| if n % 50 < 10 { 150 } else { 30 }),
    ];
    // Three digits are kept of every time.
    let step = |milliseconds: f64| milliseconds / 1e3;
    for (name, pattern) in patterns {
        let mut last = String::new();
        let is_met = (0..ATTEMPTS_MAX).any(|_| {
            let made = Arc::new(Mutex::new(Vec::new()));
            let all = Arc::clone(&made);
            // The delays as they were, which are a little longer than those that were asked for.
            let slept = move |n: u64, _: Duration| {
                let begun = Instant::now();
                thread::sleep(Duration::from_millis(pattern(n)));
                all.lock().unwrap().push(begun.elapsed().as_secs_f64() * 1e3);
                Duration::ZERO
            };
            let (way, _) = run(&server(|_, _| Duration::ZERO), "-r 200 -d 500ms --warmup 100ms");
            let way = percentile(&way, "service_time", 99.0);
            let (report, _) = run_once(&server(slept), "-r 200 -d 1s --warmup 0s -c 64");
            let mut made = made.lock().unwrap().clone();
            made.sort_by(f64::total_cmp);
            assert_eq!(report["service_time"]["count"].as_u64(), Some(made.len() as u64), "{name}");
            [50.0, 75.0, 90.0, 95.0].iter().all(|&quantile| {
                let server = made[((quantile / 100.0 * made.len() as f64).ceil() as usize).saturating_sub(1)];
                let found = percentile(&report, "service_time", quantile);
                assert!(found >= server - step(server), "{name} at {quantile}: {found} is less than {server}");
                last = format!("{name} at {quantile}: {found} ms, the server took {server}, the way {way}");
                found <= server + way + step(server)
            })
        });
        assert!(is_met, "{last}");
    }
}

/// Tools of others on the same target: where every reply takes as long, all have to say the same.
#[test]
fn other_tools_agree_on_the_same_target() {
    let mut serve = Serve::start();
    let target = serve.url("/?delay=40ms");
    let tool = |program: &str, flags: &str| {
        let output = Command::new(program).args(flags.split_ascii_whitespace()).arg(&target).output();
        let Ok(output) = output else {
            peer::missing(program);
            return None;
        };
        Some(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    // `41.23ms` behind `label`.
    let milliseconds = |text: &str, label: &str, column: usize| {
        let line = text.lines().find(|line| line.trim_start().starts_with(label)).unwrap_or_else(|| panic!("{text}"));
        let word = line.trim_start().trim_start_matches(label).split_ascii_whitespace().nth(column).unwrap();
        word.trim_end_matches("ms").parse::<f64>().unwrap_or_else(|_| panic!("{text}"))
    };
    let (report, _) = run(&target, "--closed -c 8 -d 2s --warmup 0s");
    let ours = percentile(&report, "service_time", 50.0);
    check_near(ours, 40.0, 8.0);
    if let Some(text) = tool("wrk", "-t1 -c8 -d2s --latency") {
        check_near(milliseconds(&text, "50%", 0), 40.0, 8.0);
    }
    let (report, _) = run(&target, "--closed --http 2 --streams 4 -c 2 -d 2s --warmup 0s");
    check_near(percentile(&report, "service_time", 50.0), 40.0, 8.0);
    if let Some(text) = tool("h2load", "-c2 -m4 -n400") {
        // Least, largest, mean, deviation.
        check_near(milliseconds(&text, "time for request:", 2), 40.0, 8.0);
    }
    serve.stop();
}

/// The point of an open loop: two connections hide a stall from the service time, the schedule does not.
#[test]
fn a_stall_shows_in_the_response_time_only() {
    let stall = |_, now: Duration| {
        let phase = now.as_millis() as u64 % 1000;
        Duration::from_millis(200_u64.saturating_sub(phase))
    };
    let target = server(stall);
    let (report, _) = run(&target, "-r 500 -d 3s -c 2 --warmup 0s");
    check_near(percentile(&report, "response_time", 99.0), 150.0, 450.0);
    assert!(percentile(&report, "service_time", 99.0) < 50.0, "{}", report["service_time"]);
    let (closed, _) = run(&target, "--closed -d 3s -c 2 --warmup 0s");
    assert!(percentile(&closed, "response_time", 99.0) < 50.0, "{}", closed["response_time"]);
}

/// A queue with one clerk who takes 2 ms for each: 500 a second, whatever the number of connections. The way there takes 50 ms, beside
/// which a generator that is late by a few does not count.
#[test]
fn the_highest_rate_of_a_known_capacity_is_found() {
    const CAPACITY: f64 = 500.0;
    let free_at = Mutex::new(Duration::ZERO);
    let target = server(move |_, now| {
        let mut free_at = free_at.lock().unwrap();
        *free_at = (*free_at).max(now) + Duration::from_secs_f64(1.0 / CAPACITY);
        free_at.saturating_sub(now) + Duration::from_millis(50)
    });
    let folder = tempfile::tempdir().unwrap();
    let html = folder.path().join("a.html").display().to_string();
    let flags = format!("--find-max -r 150 -c 128 -d 1s --warmup 300ms --slo p90<90ms,errors<1% --html {html}");
    let (report, code) = run(&target, &flags);
    let search = &report["search"];
    let found = search["rate"].as_f64().unwrap_or_else(|| panic!("{search}"));
    assert!((found / CAPACITY - 1.0).abs() < 0.1, "{found}: {search}");
    assert_eq!((code, &report["verdict"]["kind"]), (0, &Value::from("valid")), "{search}");
    let tries = search["tries"].as_array().unwrap();
    assert!(tries.iter().any(|tried| tried["met"] == false && tried["rate"].as_f64() > Some(found)), "{search}");
    assert!(std::fs::read_to_string(&html).unwrap().contains("Response time by rate"));
}

#[test]
fn a_search_without_an_answer_says_so() {
    let mut serve = Serve::start();
    let (report, code) = run(&serve.url("/?delay_ms=30"), "--find-max -r 2 -d 500ms --warmup 0s --slo p50<10ms");
    assert_eq!((&report["search"]["rate"], code), (&Value::Null, 2), "{}", report["search"]);
    assert_eq!(report["search"]["limit"], "target");
    serve.stop();
    let output = torus_load().args(["run", "http://127.0.0.1:1/", "--find-max"]).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("--slo"), "{error}");
}

#[test]
fn timeouts_count_as_at_least_the_timeout() {
    let target = server(|n, _| Duration::from_millis(if n % 2 == 0 { 2000 } else { 30 }));
    let (report, _) = run(&target, "-r 20 -d 1s --timeout 300ms --warmup 0s");
    assert!(number(&report, "/requests/timed_out") >= 5.0, "{}", report["requests"]);
    check_near(percentile(&report, "response_time", 99.0), 300.0, 100.0);
}

#[test]
fn a_target_out_of_capacity_is_told_and_its_queue_is_counted() {
    // Two connections of 20 ms each carry 100 a second.
    let target = server(|_, _| Duration::from_millis(20));
    let (report, code) = run(&target, "-r 400 -d 2s -c 2 --warmup 0s");
    assert_eq!((report["verdict"]["kind"].as_str(), code), (Some("connection-limited"), 3), "{}", report["verdict"]);
    assert_eq!(number(&report, "/requests/planned"), 800.0);
    assert!(number(&report, "/requests/unsent") > 400.0);
    assert!(percentile(&report, "response_time", 99.0) > 1000.0);
}

#[test]
fn fast_errors_are_no_throughput_and_the_objective_decides_the_exit_code() {
    let mut serve = Serve::start();
    let (report, code) = run(&serve.url("/?status=503"), "-r 100 -d 1s --warmup 0s");
    assert_eq!((number(&report, "/requests/succeeded"), number(&report, "/requests/failed"), code), (0.0, 100.0, 3));
    assert_eq!(number(&report, "/response_time/count"), 0.0);
    let (report, code) = run(&serve.url("/?delay_ms=30"), "-r 50 -d 1s --warmup 0s --slo p50<10ms,errors<1%");
    assert_eq!(report["verdict"]["kind"], "valid", "{}", report["verdict"]);
    assert_eq!(code, 2, "{}", report["objective"]);
    serve.stop();
}

#[test]
fn connections_are_renewed_as_asked_and_when_the_target_closes_them() {
    let mut serve = Serve::start();
    for (path, flags) in [("/fixed", "--requests-per-connection 1"), ("/?close=1", "")] {
        let (report, _) = run(&serve.url(path), &format!("-r 100 -d 1s --warmup 0s {flags}"));
        assert_eq!(number(&report, "/requests/succeeded"), 100.0, "{path}: {}", report["requests"]);
        assert!(number(&report, "/requests/connections_opened") >= 100.0, "{path}: {}", report["requests"]);
    }
    serve.stop();
}

#[test]
fn an_interruption_ends_with_a_full_report() {
    let target = server(|_, _| Duration::ZERO);
    let child = torus_load().args(["run", &target, "-q", "-d", "60s", "--json", "-"]).stdout(Stdio::piped()).spawn();
    let child = child.unwrap();
    thread::sleep(Duration::from_millis(2500));
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    let output = child.wait_with_output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(number(&report, "/requests/succeeded") > 100.0);
    assert!(report["verdict"]["reasons"].to_string().contains("interrupted"), "{}", report["verdict"]);
}

#[test]
fn a_slower_target_is_shown_to_be_slower() {
    let (fast, slow) = (server(|_, _| Duration::from_millis(5)), server(|_, _| Duration::from_millis(40)));
    let compare = |targets: [&str; 2], flags: &str| {
        let flags = flags.split_ascii_whitespace();
        torus_load().arg("compare").args(targets).args(["-q", "--json", "-"]).args(flags).output().unwrap()
    };
    let lock = File::create(Path::new(env!("CARGO_TARGET_TMPDIR")).join("measuring")).unwrap();
    lock.lock().unwrap();
    let output = compare([&fast, &slow], "-- -r 50 -d 300ms --warmup 0s -c 16");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let median = &report["against"][0]["differences"][0];
    if output.status.code() == Some(3) {
        println!("skipped: this machine is too busy to measure on: {} rounds left out", report["unfit_round_count"]);
    } else {
        assert_eq!(median["answer"], "worse", "{median}");
        assert!(number(median, "/difference") > 20_000.0, "{median}");
    }
    for (targets, flags, expected) in [
        ([&*fast, &slow], "--rounds 3", "--rounds 3: fewer than 8"),
        ([&fast, &slow], "-- --find-max --slo p50<1ms", "flags after `--`: --find-max belongs to a single run"),
        ([&fast, &slow], "-- --rat 5", "flags after `--`: unexpected argument '--rat' found"),
        ([&fast, "http://127.0.0.1:1/"], "", "http://127.0.0.1:1/: cannot connect to 127.0.0.1:1"),
    ] {
        let output = compare(targets, flags);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.starts_with(&format!("torus-load: {expected}")), "{flags}: {error}");
        assert_eq!((output.status.code(), error.lines().count()), (Some(1), 1), "{flags}: {error}");
    }
}

#[test]
fn every_form_of_the_report_is_written() {
    let target = server(|_, _| Duration::from_millis(1));
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let files = ["a.csv", "a.hgrm", "a.html", "a.hlog"].map(path);
    let [csv, hgrm, html, hlog] = &files;
    let flags = format!("-r 200 -d 2s --warmup 0s --csv {csv} --hgrm {hgrm} --html {html} --hlog {hlog}");
    let (report, _) = run(&target, &flags);
    let [csv, hgrm, html, hlog] = files.map(|file| std::fs::read_to_string(file).unwrap());
    assert!(csv.starts_with("from_s,to_s,asked") && csv.lines().count() >= 2, "{csv}");
    assert!(hgrm.contains("Percentile") && hgrm.contains("#[Max"), "{hgrm}");
    assert!(html.starts_with("<!doctype html>") && html.matches("<svg").count() >= 3);
    let outside = html.contains("http-equiv") || html.contains("src=") || html.contains("href=");
    assert!(!outside, "the page asks for something outside of it");
    // Read back by the library's own reader, the intervals are the whole.
    assert!(hlog.contains("[Histogram log format version 1.3]") || hlog.contains("#[StartTime:"), "{hlog}");
    let mut whole = hdrhistogram::Histogram::<u64>::new(3).unwrap();
    for entry in IntervalLogIterator::new(hlog.as_bytes()) {
        let LogEntry::Interval(interval) = entry.unwrap() else { continue };
        let bytes = BASE64_STANDARD.decode(interval.encoded_histogram()).unwrap();
        let histogram: hdrhistogram::Histogram<u64> = Deserializer::new().deserialize(&mut &bytes[..]).unwrap();
        assert!((interval.max() - histogram.max() as f64 / 1e6).abs() < 1e-3);
        whole.add(&histogram).unwrap();
    }
    assert_eq!(Some(whole.len()), report["response_time"]["count"].as_u64());
    let median = percentile(&report, "response_time", 50.0) * 1e6;
    assert!((whole.value_at_quantile(0.5) as f64 / median - 1.0).abs() < 2e-3, "{median}");
    assert!(report["environment"]["kernel"].is_string(), "{}", report["environment"]);
}

#[test]
fn bad_input_is_told_in_a_line() {
    let plan = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(plan.path(), "constant 1k 1s\nramp 5 1s\n").unwrap();
    let name = plan.path().display().to_string();
    let unwritable = format!("{name}:2:8: `1s` is no rate; try: 500, 2.5k, 1M (a second)");
    for (flags, expected) in [
        (vec!["http://127.0.0.1:1/"], "cannot connect to 127.0.0.1:1: Connection refused"),
        (vec!["http://127.0.0.1:1/", "--plan", &name], &*unwritable),
        (vec!["http://no-such-host.invalid/"], "cannot resolve `no-such-host.invalid`"),
        (vec!["gopher://127.0.0.1/"], "`gopher://127.0.0.1/`: the scheme is none of: http"),
        (vec!["http://127.0.0.1:1/", "-c", "0"], "--connections must be at least 1"),
        (vec!["http://127.0.0.1:1/", "-c", "100000000"], "100000000 connections need"),
        (vec!["http://127.0.0.1:1/", "-H", "bad"], "--header `bad` is no field"),
        (vec!["http://127.0.0.1:1/", "--watch-pid", "4294967295"], "cannot watch /proc/4294967295/stat"),
    ] {
        let output = torus_load().arg("run").args(&flags).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.starts_with(&format!("torus-load: {expected}")), "{flags:?}: {error}");
        assert_eq!((output.status.code(), error.lines().count()), (Some(1), 1), "{flags:?}");
    }
}

/// `torus-load serve` on a free port.
struct Serve {
    child: Child,
    address: String,
}

impl Serve {
    fn start() -> Serve {
        let arguments = ["serve", "--listen", "127.0.0.1:0", "--threads", "1"];
        let mut child = torus_load().args(arguments).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().rsplit(' ').next().unwrap().to_owned();
        Serve { child, address }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        self.stop();
    }
}
