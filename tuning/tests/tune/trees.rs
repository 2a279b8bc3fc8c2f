//! What cannot be had everywhere, on trees as such machines show them; and everything that may be wrong with the input.

use crate::support::{bare_metal, finding, findings, put, said, tune};

#[test]
fn a_bare_metal_node_is_judged() {
    let tree = tempfile::tempdir().unwrap();
    bare_metal(tree.path());
    let latency = findings(tree.path(), "gateway-latency");
    for (setting, item, expected) in [
        ("cpu-governor", "cpu15", "change powersave -> performance"),
        ("idle-latency", "cpu0", "change 0 -> 2"),
        ("smt", "", "advice 1 -> 0"),
        ("isolated-cores", "", "advice  -> the data cores"),
        ("clock-source", "", "advice hpet -> tsc or kvm-clock or arch_sys_counter or hyperv_clocksource_tsc_page"),
        ("mitigations", "", "advice spectre_v2 -> none"),
        ("huge-pages", "", "change always -> madvise or never"),
        ("ring-receive", "ens1", "denied 512 -> at least 1024"),
        ("adaptive-coalescing", "ens1", "denied on -> off"),
        ("receive-delay", "ens1", "denied 32 -> at most 8"),
        // Two of sixteen cores are kept for interrupts; both are near the interface.
        ("interrupt-affinity", "ens1 irq 103", "change 0-15 -> 1"),
        ("receive-steering", "ens1 rx-0", "change 00ff -> 0"),
        ("transmit-steering", "ens1 tx-3", "change 0000 -> 808"),
        ("numa-balancing", "", "not-applicable - -> -"),
        ("pause-receive", "ens1", "not-applicable - -> -"),
    ] {
        assert_eq!(finding(&latency, setting, item), expected, "{setting} {item}");
    }
    let throughput = findings(tree.path(), "gateway-throughput");
    for (setting, item, expected) in [
        ("ring-receive", "ens1", "denied 512 -> at least 4096"),
        ("ring-transmit", "ens1", "good 2048 -> at least 2048"),
        ("interrupt-affinity", "ens1 irq 103", "change 0-15 -> 3"),
        ("flow-table", "", "change 0 -> at least 32768"),
        ("tcp-receive-memory", "", "change 4096 131072 6291456 -> any any >=67108864"),
    ] {
        assert_eq!(finding(&throughput, setting, item), expected, "{setting} {item}");
    }
}

#[test]
fn a_node_is_applied_and_rolled_back_to_the_byte_also_after_a_reboot() {
    let tree = tempfile::tempdir().unwrap();
    bare_metal(tree.path());
    let root = tree.path().to_str().unwrap();
    let state = tempfile::tempdir().unwrap();
    let state = state.path().to_str().unwrap();
    let governor = tree.path().join("sys/devices/system/cpu/cpu3/cpufreq/scaling_governor");
    let affinity = tree.path().join("proc/irq/105/smp_affinity_list");
    let place = ["--root", root, "--state-dir", state];
    let apply = [&["apply", "--profile", "gateway-latency", "--persist"][..], &place].concat();
    let output = tune(&apply);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("denied   ring-receive ens1: recorded, not live"), "{}", said(&output));
    assert_eq!(std::fs::read_to_string(&governor).unwrap(), "performance\n");
    let unit = tree.path().join("etc/systemd/system/torus-tune.service");
    assert!(std::fs::read_to_string(&unit).unwrap().contains("apply --profile gateway-latency"));
    // The machine starts again: one value is at its default, the others were applied by the unit.
    put(tree.path(), "proc/sys/kernel/random/boot_id", "99999999-2222-3333-4444-555555555555\n");
    std::fs::write(&affinity, "0-15\n").unwrap();
    let output = tune(&[&["rollback"][..], &place].concat());
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(said(&output).contains("as before already"), "{}", said(&output));
    assert_eq!(std::fs::read_to_string(&governor).unwrap(), "powersave\n");
    assert!(!unit.exists());
}

#[test]
fn what_is_wrong_is_said_in_a_line_and_nothing_is_changed() {
    let tree = tempfile::tempdir().unwrap();
    bare_metal(tree.path());
    let root = tree.path().to_str().unwrap();
    let state = tempfile::tempdir().unwrap();
    let state_dir = state.path().to_str().unwrap();
    let empty = tempfile::tempdir().unwrap();
    let place = ["--root", root, "--state-dir", state_dir];
    let check = |arguments: &[&str], expected: &str| {
        let output = tune(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", said(&output));
        assert!(said(&output).contains(expected), "{arguments:?}: {}", said(&output));
        assert_eq!(said(&output).trim_end().lines().count(), 1, "{}", said(&output));
    };
    let with = |arguments: &[&'static str]| [arguments, &place].concat();
    check(&with(&["apply", "--nic", "eth9"]), "no interface is called 'eth9'; there are: ens1");
    check(&with(&["check", "--pid", "4000000"]), "no process has the number 4000000");
    check(&with(&["check", "--only", "listen-backlgo"]), "did you mean 'listen-backlog'?");
    check(&with(&["rollback"]), "nothing to roll back");
    check(&with(&["verify"]), "nothing was applied here");
    check(&["explain", "nonsense"], "no setting is called 'nonsense'");
    check(&["check", "--root", empty.path().to_str().unwrap()], "--root must name a folder with proc and sys in it");
    std::fs::write(state.path().join("journal"), "what is this\n").unwrap();
    check(&with(&["apply"]), "journal:1: ");
    std::fs::remove_file(state.path().join("journal")).unwrap();

    assert_eq!(tune(&with(&["apply", "--only", "listen-backlog"])).status.code(), Some(0));
    put(tree.path(), "etc/machine-id", "ffffffffffffffffffffffffffffffff\n");
    check(&with(&["rollback"]), "the journal is of machine 0123456789abcdef0123456789abcdef");
    assert_eq!(std::fs::read_to_string(tree.path().join("proc/sys/net/core/somaxconn")).unwrap(), "65535\n");
}

#[test]
fn every_form_says_what_it_should() {
    let tree = tempfile::tempdir().unwrap();
    bare_metal(tree.path());
    let root = tree.path().to_str().unwrap();
    for (form, expected) in [
        ("sysctl-d", "net.core.somaxconn = 65535\n"),
        (
            "systemd",
            "ExecStart=/usr/local/bin/torus-tune apply --profile gateway-throughput --scope node --scope netns\n",
        ),
        ("udev", "KERNEL==\"ens1\""),
        ("daemonset", "kind: DaemonSet\n"),
        ("init-container", "securityContext: { privileged: true }\n"),
        ("pod-sysctls", "- { name: net.ipv4.ip_local_port_range, value: \"10240 65535\" }\n"),
    ] {
        let output = tune(&["persist", "--form", form, "--root", root]);
        assert!(said(&output).contains(expected), "{form}: {}", said(&output));
        if matches!(form, "daemonset" | "init-container" | "pod-sysctls") {
            let parsed: Result<serde_json::Value, _> = serde_saphyr::from_str(&said(&output));
            assert!(parsed.is_ok(), "{form}: {parsed:?}");
        }
    }
}
