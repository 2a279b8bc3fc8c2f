//! All settings, compiled in from `settings/`: one file a setting, named after it.

use crate::setting::{ChangePolicy, Format, Place, Setting, Want};

/// All settings, in the order of writes.
#[derive(Debug, Clone)]
pub struct Catalogue {
    settings: Vec<Setting>,
}

/// Why a setting's file is not sound.
#[derive(Debug, thiserror::Error)]
pub enum SettingError {
    /// The text is no YAML of the right shape; the message has line and column.
    #[error("settings/{name}.yaml: {message}")]
    Shape {
        /// The setting.
        name: String,
        /// What the reader says.
        message: String,
    },
    /// The text has the right shape and makes no sense.
    #[error("settings/{name}.yaml: {reason}")]
    Sense {
        /// The setting.
        name: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// No setting has this name.
    #[error("no setting is called '{name}'{}; `torus-tune explain` lists them all", did_you_mean(.near.as_deref()))]
    Unknown {
        /// What was asked for.
        name: String,
        /// The name that is closest.
        near: Option<String>,
    },
}

fn did_you_mean(near: Option<&str>) -> String {
    near.map_or_else(String::new, |near| format!(", did you mean '{near}'?"))
}

impl Catalogue {
    /// All settings that are compiled in.
    ///
    /// Errors: none in a released program; a test reads every file.
    pub fn load() -> Result<Self, SettingError> {
        let mut settings =
            FILES.iter().map(|(name, text)| parse(name, text)).collect::<Result<Vec<Setting>, SettingError>>()?;
        settings.sort_by(|a, b| (a.card.group, &a.name).cmp(&(b.card.group, &b.name)));
        Ok(Self { settings })
    }

    /// Some settings by name, read alone: for a program that has a few milliseconds at start.
    pub fn load_only(names: &[&str]) -> Result<Self, SettingError> {
        let chosen = FILES.iter().filter(|(name, _)| names.contains(name));
        Ok(Self { settings: chosen.map(|(name, text)| parse(name, text)).collect::<Result<_, _>>()? })
    }

    /// The settings, in the order of writes.
    pub fn settings(&self) -> &[Setting] {
        &self.settings
    }

    /// The setting called `name`; a dotted sysctl name is understood as well.
    pub fn find(&self, name: &str) -> Result<&Setting, SettingError> {
        let by_place = |setting: &&Setting| matches!(&setting.card.at, Place::Sysctl(key) if key == name);
        self.settings
            .iter()
            .find(|setting| setting.name == name)
            .or_else(|| self.settings.iter().find(by_place))
            .ok_or_else(|| SettingError::Unknown { name: name.to_owned(), near: self.nearest(name) })
    }

    fn nearest(&self, name: &str) -> Option<String> {
        let closest = self.settings.iter().min_by_key(|setting| strsim::levenshtein(&setting.name, name))?;
        (strsim::levenshtein(&closest.name, name) <= 3).then(|| closest.name.clone())
    }
}

/// One file, read and checked.
pub fn parse(name: &str, text: &str) -> Result<Setting, SettingError> {
    let card = serde_saphyr::from_str(text)
        .map_err(|error| SettingError::Shape { name: name.to_owned(), message: error.to_string() })?;
    let setting = Setting { name: name.to_owned(), card };
    check(&setting).map_err(|reason| SettingError::Sense { name: name.to_owned(), reason })?;
    Ok(setting)
}

/// What the types alone do not exclude.
fn check(setting: &Setting) -> Result<(), &'static str> {
    let card = &setting.card;
    if card.want.is_empty() {
        return Err("no profile wants it");
    }
    if matches!(card.at, Place::Fact(_)) && card.change == ChangePolicy::Write {
        return Err("a fact has no place to write to; say `change: advise`");
    }
    if let Place::Files(files) = &card.at
        && (files.is_empty() || files.iter().any(|file| !file.starts_with("/proc/") && !file.starts_with("/sys/")))
    {
        return Err("files must be below /proc or /sys");
    }
    for want in card.want.values() {
        match (want, card.format) {
            (Want::AtLeast(_) | Want::AtMost(_), Format::Integer) => {}
            (Want::AtLeast(_) | Want::AtMost(_), _) => return Err("a bound needs `format: integer`"),
            (Want::Fields(fields), Format::Words) if !fields.is_empty() => {}
            (Want::Fields(_), _) => return Err("fields need `format: words` and one entry at least"),
            (Want::OneOf(values), _) | (Want::FirstOffered { of: values, .. }, _) if values.is_empty() => {
                return Err("a list of values is empty");
            }
            _ => {}
        }
    }
    let texts = [&card.title, &card.why, &card.effect, &card.cost, &card.source, &card.unit];
    if texts.iter().any(|text| text.trim().is_empty()) {
        return Err("title, unit, why, effect, cost and source must say something");
    }
    Ok(())
}

macro_rules! settings {
    ($($name:literal)*) => { &[$(($name, include_str!(concat!("../settings/", $name, ".yaml")))),*] };
}

/// Name and text of each file in `settings/`; a test compares this list with the folder.
const FILES: &[(&str, &str)] = settings![
    "adaptive-coalescing"
    "auto-corking"
    "auto-group"
    "boost"
    "busy-poll"
    "busy-read"
    "clock-source"
    "congestion-control"
    "conntrack-bypass"
    "conntrack-established"
    "conntrack-max"
    "conntrack-time-wait"
    "conntrack-use"
    "cpu-burst"
    "cpu-governor"
    "cpu-partition"
    "cpu-quota"
    "deferred-flush"
    "deferred-interrupts"
    "energy-preference"
    "fast-open"
    "file-descriptors"
    "file-handles"
    "fin-timeout"
    "flow-table"
    "flow-table-queue"
    "generic-segmentation"
    "huge-page-defrag"
    "huge-pages"
    "idle-latency"
    "interrupt-affinity"
    "io-uring-enabled"
    "io-uring-group"
    "io-uring-seccomp"
    "irqbalance"
    "isolated-cores"
    "keepalive-interval"
    "keepalive-probes"
    "keepalive-time"
    "large-receive-offload"
    "listen-backlog"
    "migrate-requests"
    "migration-cost"
    "mitigations"
    "mtu-probing"
    "nmi-watchdog"
    "not-sent-low-water"
    "numa-balancing"
    "orphaned-sockets"
    "packet-backlog"
    "packet-budget"
    "packet-budget-time"
    "pause-receive"
    "pause-transmit"
    "port-range"
    "process-files"
    "process-memlock"
    "queue-discipline"
    "queues-combined"
    "queues-receive"
    "queues-transmit"
    "receive-buffer-max"
    "receive-delay"
    "receive-hash-spread"
    "receive-offload"
    "receive-steering"
    "ring-receive"
    "ring-transmit"
    "segmentation-offload"
    "selective-acks"
    "send-buffer-max"
    "slow-start-after-idle"
    "smt"
    "stat-interval"
    "swappiness"
    "syn-backlog"
    "syn-cookies"
    "tcp-receive-memory"
    "tcp-send-memory"
    "tcp-timestamps"
    "threaded-polling"
    "time-wait-buckets"
    "time-wait-reuse"
    "timer-migration"
    "transmit-steering"
    "turbo"
    "window-scaling"
    "zone-reclaim"
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::setting::{Pod, Scope};

    #[test]
    fn every_file_is_sound_and_listed() {
        let catalogue = Catalogue::load().unwrap_or_else(|error| panic!("{error}"));
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/settings");
        let files: BTreeSet<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .map(|name| name.strip_suffix(".yaml").unwrap_or_else(|| panic!("{name} is no setting")).to_owned())
            .collect();
        let listed: BTreeSet<String> = catalogue.settings().iter().map(|setting| setting.name.clone()).collect();
        assert_eq!(files, listed);
        assert_eq!(catalogue.settings().len(), FILES.len());
    }

    #[test]
    fn no_two_settings_share_a_place() {
        let catalogue = Catalogue::load().unwrap();
        let mut places = BTreeSet::new();
        for setting in catalogue.settings() {
            assert!(places.insert(format!("{:?}", setting.card.at)), "{}", setting.name);
        }
    }

    #[test]
    fn the_pod_lists_hold() {
        for setting in Catalogue::load().unwrap().settings() {
            let Place::Sysctl(key) = &setting.card.at else { continue };
            let safe = KUBERNETES_SAFE.contains(&key.as_str());
            assert_eq!(setting.card.pod == Pod::Safe, safe, "{}", setting.name);
            assert_eq!(setting.card.pod == Pod::Never, setting.card.scope == Scope::Node, "{}", setting.name);
        }
    }

    /// Kubernetes' safe sysctls as of 1.29 and later, without those that no setting uses.
    const KUBERNETES_SAFE: [&str; 8] = [
        "net.ipv4.ip_local_port_range",
        "net.ipv4.tcp_syncookies",
        "net.ipv4.tcp_keepalive_time",
        "net.ipv4.tcp_keepalive_intvl",
        "net.ipv4.tcp_keepalive_probes",
        "net.ipv4.tcp_fin_timeout",
        "net.ipv4.tcp_rmem",
        "net.ipv4.tcp_wmem",
    ];

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        let good = include_str!("../settings/listen-backlog.yaml");
        for (from, to, expected) in [
            ("scope: netns", "scope: galaxy", "unknown variant `galaxy`"),
            ("format: integer", "format: words", "a bound needs `format: integer`"),
            ("unit: connections", "units: connections", "unknown field `units`"),
            ("weight: large", "weight: 7", "7"),
            ("at-least: 65535", "at-least: lots", "did not match"),
        ] {
            assert!(good.contains(from), "{from}");
            let error = parse("x", &good.replacen(from, to, 1)).unwrap_err().to_string();
            assert!(error.starts_with("settings/x.yaml: ") && error.contains(expected), "{error}");
        }
    }

    #[test]
    fn names_are_suggested() {
        let catalogue = Catalogue::load().unwrap();
        assert_eq!(catalogue.find("net.core.somaxconn").unwrap().name, "listen-backlog");
        let error = catalogue.find("listen-backlgo").unwrap_err().to_string();
        assert!(error.contains("did you mean 'listen-backlog'?"), "{error}");
    }
}
