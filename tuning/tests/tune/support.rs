//! What the tests share: the real program, network namespaces that clean up after themselves, and trees of /proc and /sys.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

/// The program under test.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_torus-tune");

/// A network namespace with a pair of interfaces of two queues each; it goes away with this value.
pub(crate) struct Namespace {
    pub(crate) name: String,
}

impl Namespace {
    /// `None`, said aloud, where this user may not make one.
    pub(crate) fn new() -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("tune-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        if !Command::new("ip").args(["netns", "add", &name]).output().is_ok_and(|output| output.status.success()) {
            eprintln!("skipped: no network namespace can be made here (ip netns add needs root)");
            return None;
        }
        let namespace = Self { name };
        let made = namespace.run(
            "sh",
            &["-c", "ip link add va numrxqueues 2 numtxqueues 2 type veth peer name vb numrxqueues 2 numtxqueues 2 && ip link set va up && ip link set vb up"],
        );
        assert!(made.status.success(), "{}", said(&made));
        Some(namespace)
    }

    /// Runs a program inside.
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]).args(arguments);
        command.output().expect("ip starts")
    }

    /// Everything that a setting of this namespace could change, to the byte.
    pub(crate) fn fingerprint(&self) -> String {
        let script = "cd /proc/sys/net && find core ipv4 -type f ! -name tcp_fastopen_key ! -name '*flush' ! -path '*/neigh/*' | sort | \
             while read f; do echo \"$f=$(cat $f 2>/dev/null)\"; done; \
             cd /sys/class/net && for n in va vb; do for f in $n/threaded $n/gro_flush_timeout $n/napi_defer_hard_irqs \
             $n/queues/*/*_cpus $n/queues/*/rps_flow_cnt; do echo \"$f=$(cat $f 2>/dev/null)\"; done; \
             ethtool -k $n; ethtool -l $n; done; nft list ruleset";
        let output = self.run("sh", &["-c", script]);
        assert!(output.status.success(), "{}", said(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}

/// Both streams of a program that ended.
pub(crate) fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Whether a program is installed.
pub(crate) fn installed(program: &str) -> bool {
    let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).output();
    let found = found.is_ok_and(|output| output.status.success());
    if !found {
        eprintln!("skipped: {program} is not installed (scripts/install-test-tools.sh)");
    }
    found
}

/// Writes a file of a tree, with its folders.
pub(crate) fn put(root: &Path, path: &str, text: &str) -> PathBuf {
    let path = root.join(path);
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("folders");
    std::fs::write(&path, text).expect("a file");
    path
}

/// Runs the program here.
pub(crate) fn tune(arguments: &[&str]) -> Output {
    Command::new(PROGRAM).args(arguments).output().expect("the program starts")
}

/// A machine as bare metal shows itself: 16 threads on 8 cores, two memory nodes, an interface with 8 queues.
pub(crate) fn bare_metal(root: &Path) {
    put(root, "proc/sys/kernel/osrelease", "6.8.0-45-generic\n");
    put(root, "proc/sys/kernel/random/boot_id", "11111111-2222-3333-4444-555555555555\n");
    put(root, "etc/machine-id", "0123456789abcdef0123456789abcdef\n");
    put(root, "proc/meminfo", "MemTotal:       131072000 kB\n");
    put(root, "sys/devices/system/cpu/online", "0-15\n");
    for cpu in 0..16 {
        let folder = format!("sys/devices/system/cpu/cpu{cpu}");
        put(root, &format!("{folder}/cpufreq/scaling_governor"), "powersave\n");
        put(root, &format!("{folder}/cpufreq/energy_performance_preference"), "balance_performance\n");
        put(root, &format!("{folder}/power/pm_qos_resume_latency_us"), "0\n");
    }
    put(root, "sys/devices/system/cpu/smt/active", "1\n");
    put(root, "sys/devices/system/cpu/isolated", "\n");
    put(root, "sys/devices/system/clocksource/clocksource0/current_clocksource", "hpet\n");
    put(root, "sys/devices/system/cpu/vulnerabilities/spectre_v2", "Mitigation: Enhanced IBRS\n");
    put(root, "sys/kernel/mm/transparent_hugepage/enabled", "[always] madvise never\n");
    put(root, "proc/sys/net/core/netdev_budget", "300\n");
    put(root, "proc/sys/net/core/somaxconn", "4096\n");
    put(root, "proc/sys/net/core/rps_sock_flow_entries", "0\n");
    put(root, "proc/sys/net/ipv4/tcp_rmem", "4096\t131072\t6291456\n");
    put(root, "proc/sys/net/ipv4/ip_local_port_range", "32768\t60999\n");
    put(root, "sys/class/net/ens1/device/local_cpulist", "0-7\n");
    put(root, "sys/class/net/ens1/device/uevent", "DRIVER=mlx5_core\n");
    let mut interrupts = String::new();
    for queue in 0..8 {
        put(root, &format!("sys/class/net/ens1/queues/rx-{queue}/rps_cpus"), "00ff\n");
        put(root, &format!("sys/class/net/ens1/queues/tx-{queue}/xps_cpus"), "0000\n");
        put(root, &format!("sys/class/net/ens1/device/msi_irqs/{}", 100 + queue), "msix\n");
        put(root, &format!("proc/irq/{}/smp_affinity_list", 100 + queue), "0-15\n");
        interrupts += &format!(" {}:  0  0  IR-PCI-MSI  mlx5_comp{queue}@pci:0000:3b:00.0\n", 100 + queue);
    }
    put(root, "proc/interrupts", &interrupts);
    put(
        root,
        "ethtool/ens1.rings",
        "Ring parameters for ens1:\nPre-set maximums:\nRX:\t\t8192\nTX:\t\t2048\nCurrent hardware settings:\nRX:\t\t512\nTX:\t\t2048\n",
    );
    put(root, "ethtool/ens1.coalesce", "Coalesce parameters for ens1:\nAdaptive RX: on  TX: on\nrx-usecs: 32\n");
}

/// What `check` finds in a tree.
pub(crate) fn findings(root: &Path, profile: &str) -> Vec<serde_json::Value> {
    let output = tune(&["check", "--root", root.to_str().unwrap(), "--profile", profile, "-o", "json"]);
    let document: serde_json::Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", said(&output)));
    assert_eq!(document["schema"], 1);
    document["findings"].as_array().unwrap().clone()
}

/// `verdict now wanted` of one item of one setting.
pub(crate) fn finding(findings: &[serde_json::Value], setting: &str, item: &str) -> String {
    let found = findings.iter().find(|row| row["setting"] == setting && row["item"].as_str().unwrap_or("") == item);
    let row = found.unwrap_or_else(|| panic!("{setting} [{item}] is not there"));
    let text = |key: &str| row[key].as_str().unwrap_or("-").to_owned();
    format!("{} {} -> {}", text("verdict"), text("now"), text("wanted"))
}
