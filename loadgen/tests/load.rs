//! What a load is made of: several targets, rows of data, connections opened anew.

mod peer;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Command;
use std::sync::{Arc, Mutex};

use serde_json::Value;

use peer::{check_all_succeeded, run, serve, torus_load};

/// A server that keeps every request as it came.
fn recorder() -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let all = Arc::clone(&heard);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, heard) = (stream.unwrap(), Arc::clone(&heard));
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                // Requests of this tool come one at a time and fit into one segment.
                while let Ok(length @ 1..) = stream.read(&mut buffer) {
                    heard.lock().unwrap().push(String::from_utf8_lossy(&buffer[..length]).into_owned());
                    if stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").is_err() {
                        return;
                    }
                }
            });
        }
    });
    (format!("http://{address}"), all)
}

/// A pacer that never sleeps must leave the thread to its connections.
#[test]
fn spinning_sends_all_the_same() {
    let (_serve, address) = serve(&[]);
    for flags in [&["--spin"][..], &["--spin", "--http", "2"], &["--spin-margin", "2s"]] {
        let report = run(&format!("http://{address}/"), flags);
        check_all_succeeded(&report, if flags.contains(&"2") { "HTTP/2" } else { "HTTP/1.1" });
    }
}

#[test]
fn rows_of_data_stand_in_path_field_and_body() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("users.csv");
    std::fs::write(&path, "user,item\nann,\"1,5\"\nbob,2\n").unwrap();
    let data = path.display().to_string();
    let (target, heard) = recorder();
    let flags = ["--data", &data, "-X", "POST", "-H", "x-user: {{user}}", "--body", r#"{"item": "{{item}}"}"#];
    let report = run(&format!("{target}/of/{{{{user}}}}"), &flags);
    check_all_succeeded(&report, "HTTP/1.1");
    let heard = heard.lock().unwrap();
    for (user, item) in [("ann", "1,5"), ("bob", "2")] {
        let body = format!("{{\"item\": \"{item}\"}}");
        let begin = format!("POST /of/{user} HTTP/1.1\r\n");
        let whole = |text: &&String| {
            text.starts_with(&begin) && text.contains(&format!("x-user: {user}\r\n")) && text.ends_with(&body)
        };
        let count = heard.iter().filter(whole).count();
        assert!(count.abs_diff(heard.len() / 2) <= 1, "{count} of {} have {begin}", heard.len());
    }
    std::fs::write(&path, "user\na b\n").unwrap();
    for (template, flags, expected) in [
        ("/{{user}}", vec![], "users.csv:2:1: ` ` cannot stand in the target; write it percent-encoded"),
        ("/{{name}}", vec![], "`{{name}}`: "),
        ("/", vec!["-H", "x: {{item}}"], "has no such column; it has: user"),
    ] {
        let flags = [&flags[..], &["--data", &data]].concat();
        let output = torus_load(&format!("{target}{template}"), &flags);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains(expected), "{template}: {error}");
        assert_eq!((output.status.code(), error.lines().count()), (Some(1), 1), "{template}: {error}");
    }
}

#[test]
fn targets_share_the_load_by_their_weights() {
    let (_serve, address) = serve(&[]);
    let (http, socket) = (format!("http://{address}/fixed"), format!("ws://{address}/"));
    let report = run(&http, &[&socket, "--weights", "3,1", "-t", "2"]);
    assert_eq!(report["requests"]["failed"], 0, "{}", report["requests"]);
    let of = |index: usize| report["targets"][index].clone();
    let sent = |index: usize| of(index)["sent"].as_u64().unwrap();
    assert_eq!((of(0)["protocol"].clone(), of(1)["protocol"].clone()), ("HTTP/1.1".into(), "WebSocket".into()));
    assert_eq!(sent(0) + sent(1), report["requests"]["sent"].as_u64().unwrap());
    assert!((0.65..0.85).contains(&(sent(0) as f64 / (sent(0) + sent(1)) as f64)), "{}", report["targets"]);
    assert_eq!((of(0)["connections"].clone(), of(1)["connections"].clone()), (3.into(), 2.into()));
    assert_eq!(report["rates"]["asked"], 200.0);
    for (flags, expected) in [
        (vec!["--weights", "1"], "--weights: 1 for 2 targets; as many are wanted"),
        (vec!["--weights", "1,0"], "`0` is no weight"),
    ] {
        let output = torus_load(&http, &[&[&*socket], &flags[..]].concat());
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains(expected), "{flags:?}: {error}");
    }
}

#[test]
fn connections_are_opened_anew_at_their_own_rate() {
    let (_serve, address) = serve(&[]);
    for (target, flags) in [
        (format!("http://{address}/fixed"), vec![]),
        (format!("http://{address}/fixed"), vec!["--http", "2", "--streams", "4"]),
        (format!("ws://{address}/"), vec![]),
    ] {
        let report = run(&target, &[&["--connect-rate", "50"], &flags[..]].concat());
        let requests: &Value = &report["requests"];
        assert_eq!((&requests["failed"], &requests["renewals_failed"]), (&0.into(), &0.into()), "{target}: {requests}");
        let renewed = requests["renewed"].as_u64().unwrap();
        assert!((45..=55).contains(&renewed), "{target}: {renewed}");
    }
    let target = format!("http://{address}/");
    let flags = ["-q", "-d", "1s", "--connect-rate", "10", "-r", "50", "-c", "4"];
    let output = Command::new(env!("CARGO_BIN_EXE_torus-load")).args(["run", &target]).args(flags).output().unwrap();
    // Whatever a busy machine does to the verdict.
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("connections/s opened anew, 0 could not be"), "{text}");
}
