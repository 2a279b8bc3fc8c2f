//! `torus-load run --workers`: one schedule sent from several workers, in network namespaces of their own where this is allowed.

mod peer;

use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

use peer::{Running, listening, serve};

fn worker(prefix: &[&str], address: &str) -> (Running, String) {
    let program = env!("CARGO_BIN_EXE_torus-load");
    let words = [prefix, &[program, "worker", "--listen", address]].concat();
    listening(Command::new(words[0]).args(&words[1..]))
}

fn coordinate(target: &str, workers: &str, flags: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_torus-load"));
    command.args(["run", target, "--workers", workers, "--json", "-", "-q"]).args(flags.split_ascii_whitespace());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[track_caller]
fn report(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)))
}

/// Two workers in namespaces of their own on one bridge, whose address on this side is `address`.
struct Namespaces {
    names: [String; 2],
    bridge: String,
    subnet: String,
}

impl Namespaces {
    /// None, with a word about it, where this user may not make them.
    fn new() -> Option<Namespaces> {
        let number = std::process::id() % 100_000;
        let subnet = format!("10.213.{}", number % 250);
        let names = [format!("tla{number}"), format!("tlb{number}")];
        let all = Namespaces { names, bridge: format!("tlbr{number}"), subnet };
        let made = all.make();
        if !made {
            println!("skipped: network namespaces cannot be made by this user");
        }
        made.then_some(all)
    }

    fn make(&self) -> bool {
        let Namespaces { names, bridge, subnet } = self;
        let mut commands = vec![
            format!("link add {bridge} type bridge"),
            format!("addr add {subnet}.1/24 dev {bridge}"),
            format!("link set {bridge} up"),
        ];
        for (at, name) in names.iter().enumerate() {
            commands.extend([
                format!("netns add {name}"),
                format!("link add {name} type veth peer name eth0 netns {name}"),
                format!("link set {name} master {bridge} up"),
                format!("-n {name} addr add {subnet}.{}/24 dev eth0", at + 2),
                format!("-n {name} link set eth0 up"),
                format!("-n {name} link set lo up"),
            ]);
        }
        commands.iter().all(|words| ip(words))
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in &self.names {
            ip(&format!("netns del {name}"));
        }
        ip(&format!("link del {}", self.bridge));
    }
}

fn ip(words: &str) -> bool {
    let status = Command::new("ip").args(words.split_ascii_whitespace()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// What two workers do together, and what is said when one of them is killed.
fn check(target: &str, mut workers: [(Running, String); 2]) {
    let addresses = format!("{},{}", workers[0].1, workers[1].1);
    for flags in ["-r 400 -d 2s -c 8 --warmup 200ms", "-r 400 -d 2s -c 8 --warmup 200ms --http 2 --arrivals poisson"] {
        let output = coordinate(target, &addresses, flags).output().unwrap();
        let report = report(&output);
        let requests = &report["requests"];
        assert_eq!(requests["failed"], 0, "{requests}");
        // A busy machine may wake a worker for its last request when the time is over.
        assert!(requests["unsent"].as_u64() <= Some(8), "{requests}");
        let planned = requests["planned"].as_u64().unwrap();
        assert!(if flags.contains("poisson") { (650..950).contains(&planned) } else { planned == 800 }, "{planned}");
        assert_eq!(report["response_time"]["count"], planned, "{requests}");
        assert_eq!(report["remote_workers"].as_array().map(Vec::len), Some(2), "{report}");
        assert_eq!(report["load"]["protocol"], if flags.contains("http") { "HTTP/2" } else { "HTTP/1.1" });
        let planned: f64 =
            report["series"].as_array().unwrap().iter().map(|point| point["planned"].as_f64().unwrap()).sum();
        assert!(planned > 300.0, "{}", report["series"]);
    }
    let running = coordinate(target, &addresses, "-r 200 -d 60s -c 8 --warmup 0s").spawn().unwrap();
    std::thread::sleep(Duration::from_secs(3));
    workers[1].0.0.kill().unwrap();
    let output = running.wait_with_output().unwrap();
    let report = report(&output);
    assert_eq!(
        (&report["verdict"]["kind"], output.status.code()),
        (&"invalid".into(), Some(3)),
        "{}",
        report["verdict"]
    );
    let reason = report["verdict"]["reasons"][0].as_str().unwrap();
    assert!(reason.starts_with(&format!("worker {} was lost", workers[1].1)), "{reason}");
    assert!(report["requests"]["succeeded"].as_u64() > Some(50), "{}", report["requests"]);
    // The one that is left takes another run.
    let output = coordinate(target, &workers[0].1, "-r 100 -d 500ms -c 2 --warmup 0s").output().unwrap();
    assert_eq!(self::report(&output)["requests"]["planned"], 50);
}

#[test]
fn workers_of_one_machine() {
    let (_serve, address) = serve(&[]);
    check(&format!("http://{address}/fixed"), [worker(&[], "127.0.0.1:0"), worker(&[], "127.0.0.1:0")]);
}

#[test]
fn a_search_runs_on_every_worker() {
    // Four connections of 20 ms carry 200 requests a second at most.
    let (_serve, address) = serve(&["--delay", "20ms"]);
    let [one, two] = [worker(&[], "127.0.0.1:0"), worker(&[], "127.0.0.1:0")];
    let flags = "--find-max --slo p90<200ms -r 60 -c 4 -d 700ms --warmup 200ms";
    let output =
        coordinate(&format!("http://{address}/fixed"), &format!("{},{}", one.1, two.1), flags).output().unwrap();
    let report = report(&output);
    let search = &report["search"];
    assert!(search["rate"].as_f64().is_some_and(|rate| (100.0..=210.0).contains(&rate)), "{search}");
    assert!(search["tries"].as_array().is_some_and(|tries| tries.len() >= 4), "{search}");
    assert_eq!(report["remote_workers"].as_array().map(Vec::len), Some(2), "{report}");
}

#[test]
fn workers_in_namespaces_of_their_own() {
    let Some(namespaces) = Namespaces::new() else { return };
    let subnet = &namespaces.subnet;
    let (_serve, address) = serve(&["--listen", &format!("{subnet}.1:0")]);
    let start = |at: usize| worker(&["ip", "netns", "exec", &namespaces.names[at]], &format!("{subnet}.{}:0", at + 2));
    check(&format!("http://{address}/fixed"), [start(0), start(1)]);
}

#[test]
fn what_cannot_be_coordinated_is_told_in_a_line() {
    let (_serve, address) = serve(&[]);
    let (_worker, worker) = worker(&[], "127.0.0.1:0");
    let target = format!("http://{address}/");
    for (target, workers, flags, expected) in [
        (&*target, "127.0.0.1:1", "", "worker 127.0.0.1:1: "),
        ("http://127.0.0.1:1/", &*worker, "", "cannot connect to 127.0.0.1:1: Connection refused"),
        (&target, &worker, "-c 1 -t 1 --data /none.csv", "/none.csv: No such file or directory"),
        (&target, &format!("{worker},{worker}"), "-c 1", "--connections 1: fewer than the 2 threads of all workers"),
        (&target, &format!("{worker},{worker}"), "", "this worker has a run already"),
    ] {
        let output = coordinate(target, workers, flags).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains(expected), "{workers} {flags}: {error}");
        assert_eq!((output.status.code(), error.lines().count()), (Some(1), 1), "{workers} {flags}: {error}");
    }
    let output = Command::new(env!("CARGO_BIN_EXE_torus-load")).args(["worker", "--listen", "x"]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("torus-load: --listen x: "), "{output:?}");
}
