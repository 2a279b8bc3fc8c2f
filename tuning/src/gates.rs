//! The two or three findings that matter most to a program that starts: gates that cost it much, and how to open them.
//!
//! Cheap on purpose: seven settings, a dozen small files of /proc and /sys, no other program.

use std::path::Path;

use crate::catalogue::Catalogue;
use crate::facts::{Choices, Facts, IrqPlace};
use crate::observe::observe;
use crate::plan::{self, Finding, Verdict};
use crate::setting::Profile;
use crate::target::Machine;

/// Most lines that a start-up log should spend on this.
const FINDING_COUNT_MAX: usize = 3;

/// Settings whose wrong value costs a proxy or a load generator much, whatever else is set.
const GATES: [&str; 7] = [
    "cpu-quota",
    "io-uring-enabled",
    "io-uring-seccomp",
    "listen-backlog",
    "port-range",
    "process-files",
    "process-memlock",
];

/// What costs this process most on the machine below `root`: one sentence each, the heaviest first, three at most.
///
/// A file that cannot be read is passed over: a program must start where /proc is short of something.
pub fn findings(root: &Path, profile: Profile) -> Vec<String> {
    let choices = Choices { profile, nics: Vec::new(), ports: Vec::new(), irqs: IrqPlace::Onto, pid: None };
    let machine = Machine::new(root);
    let (Ok(catalogue), Ok(facts)) = (Catalogue::load_only(&GATES), Facts::basics(&machine, &choices)) else {
        return Vec::new();
    };
    let observations = observe(catalogue.settings(), &machine, &facts, &choices);
    let mut found = plan::plan(observations, &facts, &choices);
    found.retain(|finding| matches!(finding.verdict, Verdict::Change | Verdict::Advice | Verdict::Denied(_)));
    found.sort_by_key(|finding| std::cmp::Reverse(finding.setting.card.weight));
    found.iter().take(FINDING_COUNT_MAX).map(sentence).collect()
}

fn sentence(finding: &Finding) -> String {
    let card = &finding.setting.card;
    format!(
        "{}: {} where {} is wanted. {} (torus-tune explain {})",
        card.title,
        finding.now.as_deref().unwrap_or("nothing"),
        finding.wanted.as_deref().unwrap_or("something"),
        card.why,
        finding.setting.name,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_gate_is_a_setting() {
        assert_eq!(Catalogue::load_only(&GATES).unwrap().settings().len(), GATES.len());
    }

    #[test]
    fn a_small_backlog_and_a_shut_ring_are_said_and_no_more_than_three() {
        let tree = tempfile::tempdir().unwrap();
        for (path, text) in [
            ("proc/sys/kernel/osrelease", "6.8.0\n"),
            ("proc/sys/kernel/io_uring_disabled", "2\n"),
            ("proc/sys/net/core/somaxconn", "128\n"),
            ("proc/sys/net/ipv4/ip_local_port_range", "32768\t60999\n"),
            ("proc/self/status", "Seccomp:\t2\n"),
        ] {
            let path = tree.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let found = findings(tree.path(), Profile::GatewayThroughput);
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(
            found.iter().any(|line| line.starts_with("Accept queue of a listening socket: 128 where at least 65535")),
            "{found:?}"
        );
        assert!(found.iter().any(|line| line.contains("torus-tune explain io-uring-enabled")), "{found:?}");
    }

    #[test]
    fn an_empty_tree_says_nothing() {
        let tree = tempfile::tempdir().unwrap();
        assert!(findings(tree.path(), Profile::Sidecar).is_empty());
    }
}
