//! What a user is told who asks for something that cannot be: a line with what, where and the cure, and an exit code that no result has.

mod peer;

use std::io::Read;
use std::process::{Command, Stdio};

use peer::{serve, torus_load};

#[test]
fn wrong_flags_are_no_missed_objective() {
    let program = || Command::new(env!("CARGO_BIN_EXE_torus-load"));
    for (words, expected) in [
        ("run", "the following required arguments were not provided:"),
        ("run http://127.0.0.1:1/ --rat 5", "a similar argument exists: '--rate'"),
        ("run http://127.0.0.1:1/ -r much", "`much` is no rate; try: 500, 2.5k, 1M"),
        ("run http://127.0.0.1:1/ --slo p99<1parsec", "column 1: `1parsec` is no duration"),
        ("run http://127.0.0.1:1/ --message {}", "--grpc"),
    ] {
        let output = program().args(words.split_ascii_whitespace()).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains(expected), "{words}: {error}");
        assert_eq!(output.status.code(), Some(1), "{words}: {error}");
    }
    let output = program().args(["run", "--help"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn what_cannot_be_run_is_told_in_a_line() {
    let (_serve, address) = serve(&[]);
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let plan = path("plan");
    std::fs::write(&plan, "constant 100 1s\nconstant many 1s\n").unwrap();
    let (plain, secure) = (format!("http://{address}/"), format!("https://{address}/"));
    for (target, flags, expected) in [
        (&plain, ["--csv", &path("none/a.csv")], "none/a.csv: No such file or directory".to_owned()),
        (&plain, ["--html", &path("")], ": is a directory".to_owned()),
        (&secure, ["--http", "1.1"], format!("TLS with {address} fails: the peer does not speak TLS; see --cacert")),
        (&plain, ["--watch-pid", "4194305"], "4194305".to_owned()),
    ] {
        let output = torus_load(target, &flags);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains(&expected), "{flags:?}: {error}");
        assert_eq!((output.status.code(), error.lines().count()), (Some(1), 1), "{flags:?}: {error}");
    }
    // A plan takes the place of a rate.
    let output =
        Command::new(env!("CARGO_BIN_EXE_torus-load")).args(["run", &plain, "--plan", &plan]).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.starts_with(&format!("torus-load: {plan}:2:10: `many` is no rate")), "{error}");
}

#[test]
fn a_reader_that_leaves_early_is_no_fault() {
    let (_serve, address) = serve(&[]);
    let mut command = Command::new(env!("CARGO_BIN_EXE_torus-load"));
    command.args(["run", &format!("http://{address}/"), "-d", "200ms", "--warmup", "0s", "-q"]);
    let mut running = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(running.stdout.take());
    let mut error = String::new();
    running.stderr.take().unwrap().read_to_string(&mut error).unwrap();
    assert!(!error.contains("panicked"), "{error}");
    assert_ne!(running.wait().unwrap().code(), Some(101), "{error}");
}
