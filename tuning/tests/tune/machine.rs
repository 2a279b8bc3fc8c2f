//! The real program on this machine's own sysctls and on a process, each put back to the byte.

use std::fs::{self, File};
use std::process::{Child, Command};

use torus_tune::catalogue::Catalogue;
use torus_tune::setting::Place;

use crate::support::{PROGRAM, said, tune};

/// What settings of the node can change here, by path, as it was before the test.
struct Before(Vec<(String, String)>);

impl Before {
    fn new() -> Self {
        let catalogue = Catalogue::load().unwrap();
        let mut paths: Vec<String> = catalogue
            .settings()
            .iter()
            .filter_map(|setting| match &setting.card.at {
                Place::Sysctl(key) => Some(format!("/proc/sys/{}", key.replace('.', "/"))),
                _ => None,
            })
            .collect();
        for (folder, file) in [
            ("/proc/irq", "smp_affinity_list"),
            ("/sys/devices/system/cpu", "power/pm_qos_resume_latency_us"),
            ("/sys/kernel/mm/transparent_hugepage", "../transparent_hugepage/enabled"),
        ] {
            let entries = fs::read_dir(folder).into_iter().flatten().flatten();
            paths.extend(entries.map(|entry| format!("{}/{file}", entry.path().display())));
        }
        Self(paths.into_iter().filter_map(|path| fs::read_to_string(&path).ok().map(|before| (path, before))).collect())
    }

    /// The paths that differ now.
    fn changed(&self) -> Vec<&str> {
        let differs = |path: &str, before: &str| fs::read_to_string(path).is_ok_and(|now| now != before);
        self.0.iter().filter(|(path, before)| differs(path, before)).map(|(path, _)| path.as_str()).collect()
    }
}

/// Puts the values back whatever happens to the test.
impl Drop for Before {
    fn drop(&mut self) {
        for (path, before) in &self.0 {
            if fs::read_to_string(path).is_ok_and(|now| now != *before) {
                let _ = fs::write(path, before);
            }
        }
    }
}

#[test]
fn every_setting_of_the_node_is_applied_verified_and_rolled_back_to_the_byte() {
    // Another run of this test on the same machine waits.
    let lock = File::create(std::env::temp_dir().join("torus-tune-node-test.lock")).unwrap();
    lock.lock().unwrap();
    if fs::OpenOptions::new().write(true).open("/proc/sys/net/core/netdev_budget").is_err() {
        eprintln!("skipped: sysctls of the node cannot be written here");
        return;
    }
    for profile in ["gateway-throughput", "gateway-latency", "loadgen"] {
        let state = tempfile::tempdir().unwrap();
        let state = state.path().to_str().unwrap();
        let apply = ["apply", "--profile", profile, "--scope", "node", "--state-dir", state];
        // A first look loads what shows the state of connection tracking.
        tune(&["check", "--profile", profile, "--state-dir", state]);
        let before = Before::new();
        let applied = tune(&apply);
        let changed = before.changed().len();
        let verified = tune(&["verify", "--state-dir", state]);
        let again = tune(&apply);
        let back = tune(&["rollback", "--state-dir", state]);
        // 1: the kernel refused a value, which is said and passed over.
        let code = applied.status.code();
        assert!(code == Some(0) || code == Some(1) && said(&applied).contains("refused"), "{}", said(&applied));
        assert!(said(&applied).contains("set      packet-backlog"), "{}", said(&applied));
        assert!(changed >= 6, "{profile} changed {changed} files: {}", said(&applied));
        assert_eq!(verified.status.code(), Some(0), "{}", said(&verified));
        assert!(!said(&again).contains("set      "), "{profile}: {}", said(&again));
        assert_eq!(back.status.code(), Some(0), "{}", said(&back));
        assert_eq!(before.changed(), Vec::<&str>::new(), "{}", said(&back));
    }
}

struct Sleeper(Child);

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn limits_of_a_process_are_raised_and_put_back_and_a_process_that_ended_is_gone() {
    let script = "ulimit -Sl 64; exec sleep 600";
    let mut sleeper = Sleeper(Command::new("sh").args(["-c", script]).spawn().unwrap());
    let pid = sleeper.0.id();
    let limits = || {
        let text = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        text.lines().find(|line| line.starts_with("Max locked memory")).unwrap().to_owned()
    };
    while fs::read_to_string(format!("/proc/{pid}/comm")).unwrap().trim() != "sleep" {
        std::thread::yield_now();
    }
    let before = limits();
    assert!(before.contains(" 65536 "), "{before}");
    let state = tempfile::tempdir().unwrap();
    let state = state.path().to_str().unwrap();
    let pid_text = pid.to_string();
    let apply =
        ["apply", "--profile", "sidecar", "--only", "process-memlock", "--pid", &pid_text, "--state-dir", state];
    let applied = tune(&apply);
    if said(&applied).contains("denied") || said(&applied).contains("refused") {
        eprintln!("skipped: the limits of another process cannot be raised here: {}", said(&applied));
        return;
    }
    assert_eq!(applied.status.code(), Some(0), "{}", said(&applied));
    assert!(!limits().contains(" 65536 "), "{}", limits());
    let back = tune(&["rollback", "--state-dir", state]);
    assert_eq!(back.status.code(), Some(0), "{}", said(&back));
    assert_eq!(limits(), before);
    assert_eq!(tune(&apply).status.code(), Some(0));
    sleeper.0.kill().unwrap();
    sleeper.0.wait().unwrap();
    let back = tune(&["rollback", "--state-dir", state]);
    assert!(said(&back).contains("nothing left to put back"), "{}", said(&back));
}

#[test]
fn a_user_without_rights_is_told_and_nothing_is_changed() {
    let state = tempfile::tempdir().unwrap();
    fs::set_permissions(state.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    // The program may lie where only root can reach it.
    let copy = state.path().join("torus-tune");
    fs::copy(PROGRAM, &copy).unwrap();
    let output = Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
        .arg(&copy)
        .args(["apply", "--only", "packet-backlog", "--state-dir"])
        .arg(state.path().join("state"))
        .output();
    let Ok(output) = output else {
        eprintln!("skipped: setpriv is not installed");
        return;
    };
    if said(&output).contains("setpriv:") {
        eprintln!("skipped: this user cannot become another");
        return;
    }
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("denied   packet-backlog: not root\n0 changes, 1 denied"), "{}", said(&output));
}
