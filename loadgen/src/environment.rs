//! Where a run was made: what of the machine and of this program decides whether two results may be held against each other.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use aws_lc_rs::digest::{SHA256, digest};

/// Facts by name; a fact that the machine does not tell is left out.
pub type Environment = BTreeMap<String, String>;

/// Files with one fact each.
const FILES: [(&str, &str); 15] = [
    ("kernel", "proc/sys/kernel/osrelease"),
    ("clocksource", "sys/devices/system/clocksource/clocksource0/current_clocksource"),
    ("governor", "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
    ("boost", "sys/devices/system/cpu/cpufreq/boost"),
    ("no turbo", "sys/devices/system/cpu/intel_pstate/no_turbo"),
    ("idle driver", "sys/devices/system/cpu/cpuidle/current_driver"),
    ("hyper-threading", "sys/devices/system/cpu/smt/active"),
    ("cores online", "sys/devices/system/cpu/online"),
    ("huge pages", "sys/kernel/mm/transparent_hugepage/enabled"),
    ("net.core.somaxconn", "proc/sys/net/core/somaxconn"),
    ("net.core.busy_poll", "proc/sys/net/core/busy_poll"),
    ("net.ipv4.tcp_congestion_control", "proc/sys/net/ipv4/tcp_congestion_control"),
    ("net.ipv4.ip_local_port_range", "proc/sys/net/ipv4/ip_local_port_range"),
    ("kernel.io_uring_disabled", "proc/sys/kernel/io_uring_disabled"),
    ("kernel parameters", "proc/cmdline"),
];
const VULNERABILITIES: &str = "sys/devices/system/cpu/vulnerabilities";

/// The environment below `root`, which is `/` but in tests.
pub fn gather(root: &Path) -> Environment {
    let read = |path: &str| fs::read_to_string(root.join(path)).ok();
    let mut found = Environment::new();
    let mut add = |name: &str, value: Option<String>| {
        let value = value.map(|value| value.split_whitespace().collect::<Vec<_>>().join(" "));
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            found.insert(name.to_owned(), value);
        }
    };
    for (name, path) in FILES {
        add(name, read(path));
    }
    let processors = read("proc/cpuinfo").unwrap_or_default();
    let model =
        processors.lines().find_map(|line| Some(line.strip_prefix("model name")?.split_once(':')?.1.to_owned()));
    add("processor", model);
    // The machine's own number is nobody's business; whether it is the same one is.
    add("machine", read("etc/machine-id").map(|id| short_hash(id.trim().as_bytes())));
    for file in fs::read_dir(root.join(VULNERABILITIES)).into_iter().flatten().flatten() {
        let name = format!("vulnerability {}", file.file_name().to_string_lossy());
        add(&name, fs::read_to_string(file.path()).ok());
    }
    let program = std::env::current_exe().ok().and_then(|path| fs::read(path).ok());
    let hash = program.map(|bytes| short_hash(&bytes)).unwrap_or_default();
    add("torus-load", Some(format!("{} {hash}", env!("CARGO_PKG_VERSION"))));
    add("io", Some(if monoio::utils::detect_uring() { "io_uring" } else { "epoll" }.to_owned()));
    let allowed = core_affinity::get_core_ids().unwrap_or_default().into_iter().map(|core| core.id.to_string());
    add("cores allowed", Some(allowed.collect::<Vec<_>>().join(",")));
    found
}

/// What differs, in words, the names sorted.
pub fn differences(one: &Environment, other: &Environment) -> Vec<String> {
    let names = one.keys().chain(other.keys()).collect::<std::collections::BTreeSet<_>>();
    let value = |environment: &Environment, name: &str| environment.get(name).cloned().unwrap_or("unknown".to_owned());
    let differing = names.into_iter().filter(|name| one.get(*name) != other.get(*name));
    differing.map(|name| format!("{name} is `{}` and `{}`", value(one, name), value(other, name))).collect()
}

fn short_hash(bytes: &[u8]) -> String {
    digest(&SHA256, bytes).as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_described_and_differences_are_named() {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in [
            ("proc/sys/kernel/osrelease", "6.1.0\n"),
            ("proc/cpuinfo", "processor : 0\nmodel name\t: A  B\n"),
            ("etc/machine-id", "abc\n"),
            ("sys/devices/system/cpu/vulnerabilities/meltdown", "Not affected\n"),
        ] {
            fs::create_dir_all(root.path().join(path).parent().unwrap()).unwrap();
            fs::write(root.path().join(path), text).unwrap();
        }
        let one = gather(root.path());
        let get = |name: &str| one.get(name).map(String::as_str);
        assert_eq!((get("kernel"), get("processor")), (Some("6.1.0"), Some("A B")));
        assert_eq!(get("vulnerability meltdown"), Some("Not affected"));
        assert_eq!(get("machine").map(str::len), Some(16));
        assert_eq!(get("governor"), None);
        fs::write(root.path().join("proc/sys/kernel/osrelease"), "6.2.0").unwrap();
        fs::remove_file(root.path().join("etc/machine-id")).unwrap();
        let found = differences(&one, &gather(root.path()));
        assert_eq!(found[0], "kernel is `6.1.0` and `6.2.0`");
        assert!(found[1].starts_with("machine is `") && found[1].ends_with("and `unknown`"), "{found:?}");
        assert_eq!((found.len(), differences(&one, &one).len()), (2, 0));
    }
}
