//! Where the programs under test are.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// Path of the `torus-proxy` under test: `TORUS_PROXY_BIN`, or the one that cargo built beside the running test.
///
/// # Panics
/// Where it can neither be found nor built.
pub fn torus_proxy() -> PathBuf {
    built("TORUS_PROXY_BIN", "torus-proxy", "torus-proxy")
}

/// Path of `torus-load`: `TORUS_LOAD_BIN`, or the one that cargo built beside the running test.
///
/// # Panics
/// Where it can neither be found nor built.
pub fn torus_load() -> PathBuf {
    built("TORUS_LOAD_BIN", "torus-load", "torus-load")
}

/// Path of `torusd`: `TORUSD_BIN`, or the one that cargo built beside the running test.
///
/// # Panics
/// Where it can neither be found nor built.
pub fn torusd() -> PathBuf {
    built("TORUSD_BIN", "torus-control", "torusd")
}

/// Path of real Envoy, if this machine has it: `TORUS_ENVOY_BIN`, or where `scripts/install-test-tools.sh` puts it.
pub fn envoy() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("TORUS_ENVOY_BIN") {
        return Some(PathBuf::from(path));
    }
    let path = cache_dir()?.join("bin/envoy");
    path.exists().then_some(path)
}

/// The folder that holds downloaded tools: `TORUS_CACHE`, or `torus` in the user's cache folder.
pub fn cache_dir() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("TORUS_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|cache| cache.join("torus")))
        .or_else(|| set("HOME").map(|home| home.join(".cache/torus")))
}

fn built(variable: &str, package: &str, binary: &str) -> PathBuf {
    static BUILT: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    if let Some(path) = std::env::var_os(variable) {
        return PathBuf::from(path);
    }
    let profile_dir = profile_dir();
    let path = profile_dir.join(binary);
    // A test run of this crate alone does not build the binaries of other crates; cargo knows whether they are current.
    let mut packages = BUILT.lock().expect("no build panicked");
    if packages.insert(package.to_owned()) {
        build(&profile_dir, package);
    }
    drop(packages);
    assert!(path.exists(), "{} is missing; try: cargo build -p {package}", path.display());
    path
}

fn build(profile_dir: &Path, package: &str) {
    if std::env::var_os("TORUS_SKIP_BUILD").is_some() {
        return;
    }
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "-p", package]);
    cargo.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    if profile_dir.file_name().is_some_and(|name| name == "release") {
        cargo.arg("--release");
    }
    if let Some(target_dir) = profile_dir.parent() {
        cargo.env("CARGO_TARGET_DIR", target_dir);
    }
    let status = cargo.status().expect("cargo starts");
    assert!(status.success(), "cargo could not build the programs under test");
}

/// `target/debug` or `target/release`, found from the running test executable in its `deps` folder.
fn profile_dir() -> PathBuf {
    let test = std::env::current_exe().expect("the test executable has a path");
    let deps = test.parent().expect("the test executable lies in a folder");
    let profile = if deps.ends_with("deps") { deps.parent().expect("deps lies in a folder") } else { deps };
    profile.to_path_buf()
}
