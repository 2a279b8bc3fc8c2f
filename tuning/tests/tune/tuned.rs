//! `torus-tune check` beside `tuned-adm verify`: a real TuneD daemon applies what our profile wants, then both judge.

use std::fs;
use std::path::Path;

use torus_tune::catalogue::Catalogue;
use torus_tune::setting::Place;

use crate::support::{Namespace, PROGRAM, installed, said};

const SCRIPT: &str = include_str!("tuned.sh");
/// Changed behind the back of both; the value is one that no profile of ours wants.
const CHANGED: (&str, &str) = ("net.ipv4.tcp_fin_timeout", "77");

#[test]
fn check_agrees_with_tuned() {
    if !["tuned", "tuned-adm", "dbus-daemon", "sysctl"].into_iter().all(installed) {
        return;
    }
    let Some(namespace) = Namespace::new() else { return };
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name).to_str().unwrap().to_owned();
    let (settings, profile) = overlap(&namespace);
    assert!(settings.len() >= 8, "{settings:?}");
    fs::write(path("tuned.conf"), profile).unwrap();
    fs::write(path("tuned.sh"), SCRIPT).unwrap();
    let only = settings.join(",");
    let (key, value) = CHANGED;
    let output =
        namespace.run("bash", &[&path("tuned.sh"), &path(""), &path("tuned.conf"), PROGRAM, &only, key, value]);
    assert!(output.status.success(), "{}", said(&output));

    let code = |name: &str| read(scratch.path(), name).trim().to_owned();
    assert_eq!(code("as-wanted.tuned.code"), "0", "{}", read(scratch.path(), "tuned.log"));
    assert_eq!(code("as-wanted.torus.code"), "0", "{}", read(scratch.path(), "as-wanted.torus"));
    assert_eq!(code("one-changed.tuned.code"), "1", "{}", read(scratch.path(), "tuned.log"));
    assert_eq!(code("one-changed.torus.code"), "1", "{}", read(scratch.path(), "one-changed.torus"));
    // Both blame the same one.
    let log = read(scratch.path(), "tuned.log");
    let failed: Vec<_> = log.lines().filter(|line| line.contains("verify: failed")).collect();
    assert!(matches!(failed[..], [line] if line.contains(key) && line.contains(value)), "{failed:?}");
    let document: serde_json::Value = serde_json::from_str(&read(scratch.path(), "one-changed.torus")).unwrap();
    let blamed: Vec<_> =
        document["findings"].as_array().unwrap().iter().filter(|row| row["verdict"] == "change").collect();
    assert!(matches!(blamed[..], [row] if row["setting"] == "fin-timeout" && row["now"] == value), "{blamed:?}");
}

/// The sysctls of a network namespace that our profile would change there, and the TuneD profile that says the same.
fn overlap(namespace: &Namespace) -> (Vec<String>, String) {
    let catalogue = Catalogue::load().unwrap();
    let check = namespace.run(PROGRAM, &["check", "--scope", "netns", "-o", "json"]);
    let document: serde_json::Value = serde_json::from_slice(&check.stdout).unwrap();
    let form = said(&namespace.run(PROGRAM, &["persist", "--scope", "netns", "--form", "sysctl-d"]));
    let mut settings = Vec::new();
    let mut profile = "[main]\nsummary=what torus-tune wants of a network namespace\n[sysctl]\n".to_owned();
    for row in document["findings"].as_array().unwrap() {
        let name = row["setting"].as_str().unwrap();
        let Place::Sysctl(key) = &catalogue.find(name).unwrap().card.at else { continue };
        let line = form.lines().find(|line| line.split('=').next().unwrap().trim() == key);
        if let Some(line) = line {
            settings.push(name.to_owned());
            profile += &format!("{line}\n");
        }
    }
    (settings, profile)
}

fn read(folder: &Path, name: &str) -> String {
    fs::read_to_string(folder.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}
