//! The client's side of xDS against a control plane that others wrote: `xds_protocol/cases.py` is the table of cases, in both
//! variants, against torus-proxy and against real Envoy.
//!
//! Cases marked short run by default; `TORUS_XDS_LONG=1` runs all of them, also against Envoy.

use std::path::Path;
use std::process::Command;

use torus_tests::binaries;

/// Runs a script of `xds_protocol` with `flags`, which has to end well. Nothing where the control plane is not installed.
fn run(script: &str, flags: &[&str]) {
    let python = binaries::cache_dir().map(|folder| folder.join("xds/bin/python")).filter(|path| path.is_file());
    let Some(python) = python else {
        assert!(std::env::var_os("CI").is_none(), "xds-protos is missing; try: scripts/install-test-tools.sh");
        println!("skipped: xds-protos is missing; try: scripts/install-test-tools.sh");
        return;
    };
    let mut command = Command::new(python);
    command.arg("-B").arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/xds_protocol").join(script)).args(flags);
    let output = command.output().expect("Python starts");
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "see above");
}

fn torus() -> String {
    binaries::torus_proxy().to_string_lossy().into_owned()
}

fn envoy() -> String {
    let envoy = binaries::envoy().expect("Envoy is installed; try: scripts/install-test-tools.sh");
    envoy.to_string_lossy().into_owned()
}

fn length() -> &'static [&'static str] {
    if std::env::var_os("TORUS_XDS_LONG").is_some() { &[] } else { &["--short"] }
}

#[test]
fn state_of_the_world() {
    run("run.py", &[&["--proxy", &torus(), "--variant", "sotw"], length()].concat());
}

#[test]
fn delta() {
    run("run.py", &[&["--proxy", &torus(), "--variant", "delta"], length()].concat());
}

#[test]
fn real_envoy_has_the_same_outcome() {
    if length().is_empty() {
        run("run.py", &["--proxy", &envoy(), "--envoy"]);
    } else {
        println!("skipped: TORUS_XDS_LONG=1 runs it");
    }
}

#[test]
fn stats_and_dumps_are_those_of_real_envoy() {
    run("outside.py", &["--proxy", &torus(), "--envoy", &envoy()]);
}
