//! `torus-load compare` of saved reports, and of servers that run only while they are measured.

mod peer;

use std::process::{Command, Output};

use serde_json::{Value, json};

use peer::{free_port, run, serve};

fn compare(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_torus-load")).arg("compare").args(arguments).output().unwrap()
}

#[test]
fn saved_reports_are_compared_where_their_environments_are_the_same() {
    let (_serve, address) = serve(&[]);
    let mut report = run(&format!("http://{address}/fixed"), &[]);
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let point = report["series"][0].clone();
    let mut write = |name: &str, slower: u64, change: &dyn Fn(&mut Value)| {
        let series = (0..12).map(|second| {
            let mut point = point.clone();
            for (at, figure) in ["p50", "p90", "p99", "p999"].iter().enumerate() {
                point[figure] = json!(1_000_000 + slower + second * 7919 % 5 * 10_000 + at as u64);
            }
            point
        });
        report["series"] = series.collect();
        report["verdict"]["kind"] = json!("valid");
        let mut report = report.clone();
        change(&mut report);
        std::fs::write(path(name), report.to_string()).unwrap();
        path(name)
    };
    let (a, b) = (write("a.json", 0, &|_| {}), write("b.json", 500_000, &|_| {}));
    let page = path("page.html");
    let output = compare(&[&a, &b, "--html", &page]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("not interleaved"), "{output:?}");
    assert!(text.lines().any(|line| line.starts_with("response time p50") && line.ends_with("higher")), "{text}");
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.starts_with("<!doctype html>") && page.matches("<svg").count() == 4, "{page}");
    let other = write("other.json", 0, &|report| report["environment"]["kernel"] = json!("1.0"));
    let late = write("late.json", 0, &|report| report["verdict"]["kind"] = json!("generator-limited"));
    let new = write("new.json", 0, &|report| report["schema"] = json!("torus-load.run.v9"));
    for (arguments, expected) in [
        (vec![&*a, &*other], "were made in different environments: kernel is `"),
        (vec![&a, &late], "late.json: the run was generator-limited: its figures say nothing"),
        (vec![&a, &new], "new.json: its form is torus-load.run.v9, torus-load.run.v1 is understood"),
        (vec![&a, "http://127.0.0.1:1/"], "a.json is a file and the others are not"),
        (vec![&a, env!("CARGO_BIN_EXE_torus-load")], "torus-load: stream did not contain valid UTF-8"),
    ] {
        let output = compare(&arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains(expected), "{arguments:?}: {error}");
        assert_eq!((output.status.code(), error.lines().count()), (Some(1), 1), "{error}");
    }
    assert!(compare(&[&a, &other, "--different-environments"]).status.success());
}

#[test]
fn servers_run_only_while_they_are_measured() {
    let port = free_port();
    let target = format!("http://127.0.0.1:{port}/");
    let program = env!("CARGO_BIN_EXE_torus-load");
    // Both at one address: they would be in each other's way.
    let start = |delay: &str| format!("{program} serve --listen 127.0.0.1:{port} --threads 1 --delay {delay}");
    let (fast, slow) = (start("2ms"), start("30ms"));
    let flags = ["-q", "--json", "-", "--", "-r", "50", "-d", "200ms", "--warmup", "0s", "-c", "8"];
    let output = compare(&[&[&*target, &target, "--start", &fast, "--start", &slow], &flags[..]].concat());
    let error = String::from_utf8_lossy(&output.stderr);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{error}"));
    if output.status.code() == Some(3) {
        println!("skipped: this machine is too busy to measure on: {} rounds left out", report["unfit_round_count"]);
    } else {
        assert_eq!(report["against"][0]["differences"][0]["answer"], "worse", "{report}");
    }
    for (starts, expected) in [
        (vec!["--start", &*fast], "--start: 1 commands for 2 targets; as many are wanted"),
        (vec!["--start", "false", "--start", "false"], "--start `false`: it ended before it listened: exit status: 1"),
    ] {
        let output = compare(&[&[&*target, &target], &starts[..]].concat());
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains(expected), "{starts:?}: {error}");
    }
}
