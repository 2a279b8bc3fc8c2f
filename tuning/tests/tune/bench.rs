//! `bench` on loopback of a namespace of its own: an effect that is there is shown, one that is not there is not claimed.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{Namespace, PROGRAM, said};

/// `torus-load` beside the program under test.
fn torus_load() -> Option<PathBuf> {
    let path = Path::new(PROGRAM).with_file_name("torus-load");
    if !path.is_file() {
        eprintln!("skipped: torus-load is not built (cargo build -p torus-load)");
        return None;
    }
    Some(path)
}

fn namespace() -> Option<Namespace> {
    torus_load()?;
    let namespace = Namespace::new()?;
    namespace.run("ip", &["link", "set", "lo", "up"]);
    Some(namespace)
}

/// One connection that asks again when it was answered: short runs, and no schedule that a busy machine could miss.
const LOAD: [&str; 8] = ["--", "--closed", "--connections", "1", "--duration", "150ms", "--warmup", "30ms"];

fn bench(namespace: &Namespace, setting: &str, path: &str) -> Value {
    let state = tempfile::tempdir().unwrap();
    let state = state.path().to_str().unwrap();
    let arguments =
        ["bench", "--setting", setting, "--rounds", "12", "--path", path, "-o", "json", "--state-dir", state];
    let output = namespace.run(PROGRAM, &[&arguments[..], &LOAD].concat());
    assert!(matches!(output.status.code(), Some(0 | 1)), "{}", said(&output));
    assert!(!Path::new(state).join("bench/journal").exists(), "nothing is left to roll back");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn answers(document: &Value) -> Vec<&str> {
    let rows = document["differences"].as_array().unwrap();
    rows.iter().map(|row| row["answer"].as_str().unwrap()).collect()
}

#[test]
fn a_window_of_a_few_bytes_is_shown_to_cost_and_is_put_back() {
    let Some(namespace) = namespace() else { return };
    // The profile raises the third value, and with it the window that a large reply needs.
    let read = || said(&namespace.run("sysctl", &["-n", "net.ipv4.tcp_rmem"]));
    namespace.run("sysctl", &["-qw", "net.ipv4.tcp_rmem=4096 4096 4096"]);
    let before = read();
    let document = bench(&namespace, "tcp-receive-memory", "/fixed?size=65536");
    assert_eq!(read(), before);
    assert_eq!(document["written"][0]["before"], "4096\t4096\t4096");
    let answers = answers(&document);
    if answers[0] == "cannot-tell" {
        eprintln!("skipped: this machine is too busy to measure on");
        return;
    }
    assert_eq!(answers[0], "better", "{document:#}");
}

#[test]
fn a_setting_without_effect_is_not_said_to_have_one() {
    let Some(namespace) = namespace() else { return };
    // Of connections that end, of which there are none while it is measured. Chance may claim an effect, but hardly twice.
    let claims = |_: &i32| {
        let document = bench(&namespace, "keepalive-time", "/fixed");
        answers(&document).iter().any(|answer| matches!(*answer, "better" | "worse"))
    };
    assert!(!(0..2).all(|attempt| claims(&attempt)));
}

#[test]
fn a_signal_puts_back_what_was_applied() {
    let Some(namespace) = namespace() else { return };
    let state = tempfile::tempdir().unwrap();
    let journal = state.path().join("bench/journal");
    let read = || said(&namespace.run("sysctl", &["-n", "net.core.somaxconn"]));
    let before = read();
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &namespace.name, PROGRAM, "bench", "--setting", "listen-backlog", "--state-dir"]);
    command.arg(state.path()).args(["--", "--closed", "--connections", "1", "--duration", "2s", "--warmup", "0s"]);
    // `ip netns exec` becomes the program: its process is the program's.
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while !journal.is_file() || read() == before {
        assert!(Instant::now() < deadline, "the change was never applied");
        std::thread::sleep(Duration::from_millis(20));
    }
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("stopped; everything was put back"), "{}", said(&output));
    assert_eq!(read(), before);
    assert!(!journal.exists());
}

#[test]
fn what_cannot_be_measured_is_said() {
    let Some(namespace) = namespace() else { return };
    let state = tempfile::tempdir().unwrap();
    let state = state.path().to_str().unwrap();
    let run = |arguments: &[&str]| {
        let output = namespace.run(PROGRAM, &[&["bench", "--state-dir", state], arguments].concat());
        (output.status.code(), said(&output))
    };
    for (arguments, message) in [
        (&["--setting", "no-such"][..], "no-such"),
        (&["--rounds", "3"], "3 is not in 8..=1000"),
        (&["--setting", "listen-backlog", "--torus-load", "/nowhere/torus-load"], "cannot start /nowhere/torus-load: "),
        (&["--setting", "listen-backlog", "--target", "http://127.0.0.1:1/"], "the load could not be run: "),
        (&["--setting", "listen-backlog", "--", "--rate", "much"], "the load could not be run: "),
    ] {
        let (code, text) = run(arguments);
        assert_eq!(code, Some(2), "{arguments:?}: {text}");
        assert!(text.contains(message), "{arguments:?}: {text}");
    }
    namespace.run("sysctl", &["-qw", "net.core.somaxconn=65535"]);
    let (code, text) = run(&[&["--setting", "listen-backlog"], &LOAD[..]].concat());
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("nothing to measure: "), "{text}");
}
