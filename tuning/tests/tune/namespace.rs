//! The real program on real interfaces of its own network namespace: applied, verified, and put back to the byte.

use crate::support::{Namespace, PROGRAM, installed, said};

const APPLY: [&str; 9] =
    ["apply", "--profile", "gateway-latency", "--scope", "netns", "--nic", "va", "--ports", "80,443"];

fn tools() -> bool {
    installed("ethtool") && installed("nft")
}

#[test]
fn every_setting_of_a_namespace_is_applied_verified_and_rolled_back_to_the_byte() {
    if !tools() {
        return;
    }
    for profile in ["gateway-throughput", "gateway-latency", "sidecar", "loadgen"] {
        let Some(namespace) = Namespace::new() else { return };
        let state = tempfile::tempdir().unwrap();
        let state = state.path().to_str().unwrap();
        let tune = |arguments: &[&str]| {
            let output = namespace.run(PROGRAM, &[arguments, &["--state-dir", state]].concat());
            (output.status.code(), said(&output))
        };
        let mut apply = APPLY;
        apply[2] = profile;
        // Looking once loads what a first look at connection tracking loads.
        tune(&["check", "--profile", profile, "--nic", "va", "--ports", "80"]);
        let before = namespace.fingerprint();
        let (code, text) = tune(&apply);
        assert!(matches!(code, Some(0 | 1)), "{profile}: {text}");
        assert!(text.contains("set      slow-start-after-idle"), "{profile}: {text}");
        assert_ne!(namespace.fingerprint(), before, "{profile}");
        let (code, text) = tune(&["verify"]);
        assert_eq!(code, Some(0), "{profile}: {text}");
        let (_, text) = tune(&apply);
        assert!(
            text.contains("\n0 changes") || text.starts_with("0 changes") || text.contains("refused"),
            "{profile}: {text}"
        );
        assert!(!text.contains("set      "), "{profile}: a second apply changes nothing: {text}");
        let (code, text) = tune(&["rollback"]);
        assert_eq!(code, Some(0), "{profile}: {text}");
        assert_eq!(namespace.fingerprint(), before, "{profile}");
    }
}

#[test]
fn a_value_that_something_else_changed_is_not_put_back_without_force() {
    let Some(namespace) = Namespace::new() else { return };
    let state = tempfile::tempdir().unwrap();
    let state = state.path().to_str().unwrap();
    let tune = |arguments: &[&str]| {
        let output = namespace.run(PROGRAM, &[arguments, &["--state-dir", state]].concat());
        (output.status.code(), said(&output))
    };
    let only = ["apply", "--only", "slow-start-after-idle,listen-backlog"];
    let read = || said(&namespace.run("sysctl", &["-n", "net.core.somaxconn", "net.ipv4.tcp_slow_start_after_idle"]));
    let before = read();
    assert_eq!(tune(&only).0, Some(0));
    namespace.run("sysctl", &["-qw", "net.core.somaxconn=777"]);
    let (code, text) = tune(&["watch", "--count", "1"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("we wrote '65535', it is '777', before us it was '4096'"), "{text}");
    let (code, text) = tune(&["rollback"]);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("nothing was put back"), "{text}");
    assert_eq!(read(), "777\n0\n");
    let (code, text) = tune(&["rollback", "--force"]);
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(read(), before);
}

#[test]
fn check_agrees_with_sysctl() {
    if !installed("sysctl") {
        return;
    }
    let Some(namespace) = Namespace::new() else { return };
    let output = namespace.run(PROGRAM, &["check", "--profile", "gateway-throughput", "--nic", "va", "-o", "json"]);
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let catalogue = torus_tune::catalogue::Catalogue::load().unwrap();
    let mut compared = 0;
    for row in document["findings"].as_array().unwrap() {
        let setting = catalogue.find(row["setting"].as_str().unwrap()).unwrap();
        let torus_tune::setting::Place::Sysctl(key) = &setting.card.at else { continue };
        let Some(now) = row["now"].as_str() else { continue };
        let theirs = said(&namespace.run("sysctl", &["-n", key]));
        assert_eq!(theirs.split_whitespace().collect::<Vec<_>>().join(" "), now, "{key}");
        compared += 1;
    }
    assert!(compared > 25, "{compared} sysctls were compared");
}

#[test]
fn sysctls_that_are_mounted_read_only_are_told_apart_and_nothing_is_written() {
    let Some(namespace) = Namespace::new() else { return };
    let state = tempfile::tempdir().unwrap();
    let state = state.path().to_str().unwrap();
    let before = namespace.fingerprint();
    let script = format!(
        "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && \
         exec {PROGRAM} apply --only fin-timeout,listen-backlog --state-dir {state}"
    );
    let output = namespace.run("sh", &["-c", &script]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let line = "denied   fin-timeout: mounted read-only here, as in a container: set it on the node or in the pod's securityContext";
    assert!(said(&output).contains(line), "{}", said(&output));
    assert!(said(&output).contains("0 changes, 2 denied"), "{}", said(&output));
    assert_eq!(namespace.fingerprint(), before);
    let back = namespace.run(PROGRAM, &["rollback", "--state-dir", state]);
    assert!(said(&back).contains("nothing to roll back"), "{}", said(&back));
}
