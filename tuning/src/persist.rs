//! The plan in forms that outlive a reboot: sysctl.d, systemd, udev, and what Kubernetes takes.

use std::fmt::Write as _;

use crate::facts::{Choices, Facts, IrqPlace};
use crate::plan::{Finding, Verdict};
use crate::setting::{Place, Pod};

/// A form that outlives a reboot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Form {
    /// /etc/sysctl.d/90-torus-tune.conf
    SysctlD,
    /// A systemd unit that applies the profile at boot.
    Systemd,
    /// A drop-in with the limits for the unit of the proxy.
    SystemdLimits,
    /// A udev rule that starts the unit when an interface appears.
    Udev,
    /// A Kubernetes DaemonSet that tunes each node it runs on.
    Daemonset,
    /// A privileged init container for one pod.
    InitContainer,
    /// The part of a pod's securityContext that Kubernetes allows.
    PodSysctls,
}

/// Where `apply --persist` puts each form.
pub const SYSCTL_FILE: &str = "/etc/sysctl.d/90-torus-tune.conf";
/// The unit that applies the profile at boot.
pub const UNIT_FILE: &str = "/etc/systemd/system/torus-tune.service";
/// What has it started.
pub const WANTS_FILE: &str = "/etc/systemd/system/multi-user.target.d/90-torus-tune.conf";
/// The rule that starts it when an interface appears.
pub const UDEV_FILE: &str = "/etc/udev/rules.d/90-torus-tune.rules";

const MARK: &str = "# Written by torus-tune; `torus-tune rollback` removes it.\n";

/// What goes into a form.
#[derive(Debug)]
pub struct Source<'a> {
    /// The findings of the profile.
    pub findings: &'a [Finding<'a>],
    /// The machine.
    pub facts: &'a Facts,
    /// What the user chose.
    pub choices: &'a Choices,
    /// Where the program is on the node.
    pub program: &'a str,
    /// The image that carries it.
    pub image: &'a str,
}

impl Source<'_> {
    /// The text of `form`.
    pub fn text(&self, form: Form) -> String {
        match form {
            Form::SysctlD => self.sysctl_d(),
            Form::Systemd => self.systemd(),
            Form::SystemdLimits => self.systemd_limits(),
            Form::Udev => self.udev(),
            Form::Daemonset => self.daemonset(),
            Form::InitContainer => self.init_container(),
            Form::PodSysctls => self.pod_sysctls(),
        }
    }

    /// The files of `apply --persist`: path and text.
    pub fn documents(&self) -> Vec<(String, String)> {
        let of = |path: &str, text: String| (path.to_owned(), text);
        vec![
            of(SYSCTL_FILE, self.sysctl_d()),
            of(UNIT_FILE, self.systemd()),
            of(WANTS_FILE, format!("{MARK}[Unit]\nWants=torus-tune.service\n")),
            of(UDEV_FILE, self.udev()),
        ]
    }

    /// Key and value of each sysctl that the profile wants, set already or not.
    fn sysctls(&self) -> Vec<(String, String, &Finding<'_>)> {
        let key = |finding: &Finding| match &finding.setting.card.at {
            Place::Sysctl(key) => Some(key.clone()),
            Place::Files(paths) => {
                paths.iter().find_map(|path| path.strip_prefix("/proc/sys/")).map(|path| path.replace('/', "."))
            }
            _ => None,
        };
        let value = |finding: &Finding| match &finding.verdict {
            Verdict::Change => finding.change.as_ref().map(|change| change.after.clone()),
            Verdict::Good => finding.now.clone(),
            _ => None,
        };
        self.findings.iter().filter_map(|finding| Some((key(finding)?, value(finding)?, finding))).collect()
    }

    fn sysctl_d(&self) -> String {
        let mut text = format!("{MARK}# Profile {}, computed for this machine.\n", self.choices.profile);
        for (key, value, finding) in self.sysctls() {
            let _ = write!(text, "# {}\n{key} = {value}\n", finding.setting.card.title);
        }
        text
    }

    fn arguments(&self) -> String {
        let mut text = format!("--profile {}", self.choices.profile);
        for nic in &self.choices.nics {
            let _ = write!(text, " --nic {nic}");
        }
        if !self.choices.ports.is_empty() {
            let ports: Vec<String> = self.choices.ports.iter().map(u16::to_string).collect();
            let _ = write!(text, " --ports {}", ports.join(","));
        }
        if self.choices.irqs == IrqPlace::Away {
            text.push_str(" --irqs away");
        }
        text
    }

    fn systemd(&self) -> String {
        format!(
            "{MARK}[Unit]\nDescription=Kernel settings for Torus ({profile})\nWants=network-online.target\n\
             After=network-online.target systemd-sysctl.service irqbalance.service\n\n[Service]\nType=oneshot\n\
             RemainAfterExit=yes\nExecStart={program} apply {arguments} --scope node --scope netns\n\n\
             [Install]\nWantedBy=multi-user.target\n",
            profile = self.choices.profile,
            program = self.program,
            arguments = self.arguments(),
        )
    }

    fn systemd_limits(&self) -> String {
        let mut text = format!("{MARK}[Service]\n");
        for finding in self.findings {
            let line = match &finding.setting.card.at {
                Place::Limit(crate::setting::Resource::Nofile) => "LimitNOFILE",
                Place::Limit(crate::setting::Resource::Memlock) => "LimitMEMLOCK",
                _ => continue,
            };
            if let Some(value) = finding.wanted.as_deref().and_then(|wanted| wanted.split_whitespace().last()) {
                let _ = writeln!(text, "{line}={value}");
            }
        }
        text
    }

    fn udev(&self) -> String {
        let mut text = MARK.to_owned();
        for nic in &self.facts.nics {
            let _ = writeln!(
                text,
                "ACTION==\"add\", SUBSYSTEM==\"net\", KERNEL==\"{}\", TAG+=\"systemd\", ENV{{SYSTEMD_WANTS}}+=\"torus-tune.service\"",
                nic.name
            );
        }
        text
    }

    fn daemonset(&self) -> String {
        format!(
            "# Tunes each node labelled torus.io/tune={profile}; deleting it leaves the settings: run `torus-tune rollback` on the\n\
             # node, or restart it.\n\
             apiVersion: apps/v1\nkind: DaemonSet\nmetadata:\n  name: torus-tune-{profile}\n  namespace: kube-system\nspec:\n  \
             selector:\n    matchLabels: {{ app: torus-tune-{profile} }}\n  template:\n    metadata:\n      labels: {{ app: \
             torus-tune-{profile} }}\n    spec:\n      nodeSelector: {{ torus.io/tune: {profile} }}\n      hostNetwork: true\n      \
             hostPID: true\n      initContainers:\n        - name: apply\n          image: {image}\n          command: [{command}]\n          \
             securityContext: {{ privileged: true }}\n          volumeMounts:\n            - {{ name: journal, mountPath: \
             /var/lib/torus-tune }}\n            - {{ name: machine-id, mountPath: /etc/machine-id, readOnly: true }}\n      \
             containers:\n        - name: watch\n          image: {image}\n          command: [torus-tune, watch]\n          \
             securityContext: {{ readOnlyRootFilesystem: true }}\n          volumeMounts:\n            - {{ name: journal, \
             mountPath: /var/lib/torus-tune, readOnly: true }}\n      volumes:\n        - name: journal\n          hostPath: {{ path: \
             /var/lib/torus-tune, type: DirectoryOrCreate }}\n        - name: machine-id\n          hostPath: {{ path: \
             /etc/machine-id, type: File }}\n",
            profile = self.choices.profile,
            image = self.image,
            command = self.command(&["--scope node", "--scope netns"]),
        )
    }

    fn init_container(&self) -> String {
        format!(
            "# For `spec.initContainers` of a pod whose namespace may hold privileged containers. It ends before the pod's own\n\
             # containers start; the settings live as long as the pod.\n- name: torus-tune\n  image: {image}\n  \
             command: [{command}]\n  securityContext: {{ privileged: true }}\n",
            image = self.image,
            command = self.command(&["--scope netns", "--state-dir /tmp/torus-tune"]),
        )
    }

    fn command(&self, more: &[&str]) -> String {
        let line = format!("torus-tune apply {} {}", self.arguments(), more.join(" "));
        let words: Vec<String> = line.split_whitespace().map(|word| format!("\"{word}\"")).collect();
        words.join(", ")
    }

    fn pod_sysctls(&self) -> String {
        let of = |pod: Pod| self.sysctls().into_iter().filter(move |(_, _, finding)| finding.setting.card.pod == pod);
        let mut text =
            "# Safe: every kubelet of Kubernetes 1.29 or later takes these.\nsecurityContext:\n  sysctls:\n".to_owned();
        for (key, value, _) in of(Pod::Safe) {
            let _ = writeln!(text, "    - {{ name: {key}, value: \"{value}\" }}");
        }
        let unsafe_keys: Vec<String> = of(Pod::Unsafe).map(|(key, _, _)| key).collect();
        if !unsafe_keys.is_empty() {
            let _ = writeln!(
                text,
                "    # Only where the kubelet runs with --allowed-unsafe-sysctls={}",
                unsafe_keys.join(",")
            );
            for (key, value, _) in of(Pod::Unsafe) {
                let _ = writeln!(text, "    # - {{ name: {key}, value: \"{value}\" }}");
            }
        }
        text
    }
}
