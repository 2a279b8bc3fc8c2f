//! The client's side of xDS against a control plane that others wrote: `xds_protocol/cases.py` is the table of cases, in both
//! variants, against torus-proxy and against real Envoy.
//!
//! Cases marked short run by default; `TORUS_XDS_LONG=1` runs all of them, also against Envoy.

use std::path::PathBuf;
use std::process::Command;

use torus_tests::binaries;

/// Runs the table with `flags`; every case has to pass. Nothing where the control plane is not installed.
fn run(proxy: PathBuf, flags: &[&str]) {
    let python = binaries::cache_dir().map(|folder| folder.join("xds/bin/python")).filter(|path| path.is_file());
    let Some(python) = python else {
        assert!(std::env::var_os("CI").is_none(), "xds-protos is missing; try: scripts/install-test-tools.sh");
        println!("skipped: xds-protos is missing; try: scripts/install-test-tools.sh");
        return;
    };
    let mut command = Command::new(python);
    command.args(["-B", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/xds_protocol/run.py"), "--proxy"]);
    command.arg(proxy).args(flags);
    let output = command.output().expect("Python starts");
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "see above");
}

fn length() -> &'static [&'static str] {
    if std::env::var_os("TORUS_XDS_LONG").is_some() { &[] } else { &["--short"] }
}

#[test]
fn state_of_the_world() {
    run(binaries::torus_proxy(), &[&["--variant", "sotw"], length()].concat());
}

#[test]
fn delta() {
    run(binaries::torus_proxy(), &[&["--variant", "delta"], length()].concat());
}

#[test]
fn real_envoy_has_the_same_outcome() {
    if length().is_empty() {
        run(binaries::envoy().expect("Envoy is installed; try: scripts/install-test-tools.sh"), &["--envoy"]);
    } else {
        println!("skipped: TORUS_XDS_LONG=1 runs it");
    }
}
