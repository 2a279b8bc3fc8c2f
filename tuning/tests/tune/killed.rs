//! kill -9 at every system call with which `apply` changes anything leaves a state that `rollback` restores.
//!
//! strace delivers the signal as the call is entered, so the states between any two such calls are all seen.

use crate::support::{Namespace, PROGRAM, installed, said};

const ONLY: &str =
    "listen-backlog,port-range,tcp-receive-memory,receive-steering,transmit-steering,receive-offload,conntrack-bypass";

/// What these settings could change, to the byte.
fn state_of(namespace: &Namespace) -> String {
    let script = "cd /proc/sys/net && cat core/somaxconn ipv4/ip_local_port_range ipv4/tcp_rmem /sys/class/net/va/queues/*/*_cpus; \
         ethtool -k va; nft list ruleset";
    said(&namespace.run("sh", &["-c", script]))
}

#[test]
fn a_killed_apply_is_rolled_back_at_every_step() {
    if !["strace", "ethtool", "nft"].into_iter().all(installed) {
        return;
    }
    let Some(namespace) = Namespace::new() else { return };
    let before = state_of(&namespace);
    let mut kills = 0;
    for call in ["write", "fdatasync", "ftruncate"] {
        for step in 1.. {
            assert!(step < 200, "{call}: apply does not end");
            let state = tempfile::tempdir().unwrap();
            let state = state.path().to_str().unwrap();
            let apply = [PROGRAM, "apply", "--nic", "va", "--ports", "80", "--only", ONLY, "--state-dir", state];
            let trace = format!("trace={call}");
            let inject = format!("inject={call}:signal=KILL:when={step}");
            let output = namespace
                .run("strace", &[&["-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject][..], &apply].concat());
            if said(&output).contains("PTRACE") {
                eprintln!("skipped: strace may not trace here: {}", said(&output));
                return;
            }
            let ended = output.status.success();
            if ended {
                assert_ne!(state_of(&namespace), before);
            } else {
                kills += 1;
                assert!(!said(&output).contains("changes"), "{call} {step} was not killed: {}", said(&output));
            }
            let back = namespace.run(PROGRAM, &["rollback", "--state-dir", state]);
            let nothing = said(&back).contains("nothing to roll back");
            assert!(back.status.success() || nothing, "{call} {step}: {}", said(&back));
            assert_eq!(state_of(&namespace), before, "{call} {step}");
            if ended {
                break;
            }
        }
    }
    assert!(kills > 30, "{kills} kills");
}
