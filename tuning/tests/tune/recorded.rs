//! Real machines, as others recorded them: servers, a laptop, another architecture. They have what no virtual machine has.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{finding, findings, said, tune};

/// The folder of a recorded machine; `None`, said aloud, where it is not installed.
fn recorded(machine: &str) -> Option<PathBuf> {
    let cache = std::env::var_os("TORUS_CACHE").map(PathBuf::from).unwrap_or_else(|| {
        let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
        std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).unwrap_or_else(|| home.join(".cache")).join("torus")
    });
    let folder = cache.join("recorded-trees").join(machine);
    if !folder.is_dir() {
        eprintln!("skipped: {} is not there (scripts/install-test-tools.sh)", folder.display());
        return None;
    }
    Some(folder)
}

/// A copy that a test may change.
fn copy(machine: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    let output = Command::new("cp").arg("-a").arg(machine.join(".")).arg(copy.path()).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    copy
}

/// Every file below `root` and what it holds; links are not followed.
fn contents(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let entry = entry.unwrap();
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                all.insert(entry.path(), std::fs::read(entry.path()).unwrap());
            }
        }
    }
    all
}

#[test]
fn servers_are_judged_by_their_own_files() {
    for (machine, profile, expected) in [
        // Two sockets of 24 cores; the governor is right, idle states are free to go deep.
        (
            "x86_64-epyc_7451",
            "gateway-latency",
            &[
                ("cpu-governor", "cpu95", "good performance -> performance"),
                ("idle-latency", "cpu0", "change 0 -> 2"),
                ("smt", "", "advice 1 -> 0"),
                ("isolated-cores", "", "advice  -> the data cores"),
                ("mitigations", "", "advice spec_store_bypass spectre_v1 spectre_v2 -> none"),
            ][..],
        ),
        ("vmware_fpe", "gateway-throughput", &[("cpu-governor", "cpu3", "change ondemand -> performance")][..]),
        // A server with an igb interface of eight queues at the first of two memory nodes, and InfiniBand.
        (
            "32em64t-2n8c+1mic",
            "gateway-throughput",
            &[("transmit-steering", "eth0 tx-3", "change 00000000,00000000,00000000,00000000 -> 808")][..],
        ),
    ] {
        let Some(folder) = recorded(machine) else { return };
        let findings = findings(&folder, profile);
        for (setting, item, verdict) in expected {
            assert_eq!(finding(&findings, setting, item), *verdict, "{machine}: {setting} {item}");
        }
    }
}

#[test]
fn every_recorded_machine_is_tuned_and_put_back_to_the_byte() {
    for machine in
        ["x86_64-epyc_7451", "x86_64-dell_e4310", "vmware_fpe", "ppc64-POWER7", "32em64t-2n8c+1mic", "2arm-2c"]
    {
        let Some(folder) = recorded(machine) else { return };
        let tree = copy(&folder);
        let before = contents(tree.path());
        let root = tree.path().to_str().unwrap();
        let state = tempfile::tempdir().unwrap();
        let place = ["--root", root, "--state-dir", state.path().to_str().unwrap()];
        for profile in ["gateway-latency", "gateway-throughput", "sidecar", "loadgen"] {
            let applied = tune(&[&["apply", "--profile", profile][..], &place].concat());
            assert!(matches!(applied.status.code(), Some(0 | 1)), "{machine} {profile}: {}", said(&applied));
            let changed = contents(tree.path());
            let writes = changed.iter().filter(|(path, bytes)| before.get(*path) != Some(*bytes)).count();
            assert_eq!(changed.len(), before.len(), "{machine} {profile}: no file was made");
            println!("{machine} {profile}: {writes} files written");
            let verified = tune(&[&["verify"][..], &place].concat());
            if writes > 0 {
                assert_eq!(verified.status.code(), Some(0), "{machine} {profile}: {}", said(&verified));
                let rolled_back = tune(&[&["rollback"][..], &place].concat());
                assert_eq!(rolled_back.status.code(), Some(0), "{machine} {profile}: {}", said(&rolled_back));
            }
            assert!(contents(tree.path()) == before, "{machine} {profile}: something is not as it was");
        }
    }
}
