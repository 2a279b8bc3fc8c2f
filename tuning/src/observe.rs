//! What stands at each place of each setting now: one observation for each interface, queue, core or interrupt.

use crate::facts::{Choices, Facts, Nic};
use crate::setting::{EthtoolTable, Fact, Format, Place, Setting};
use crate::target::{Barrier, Machine, ReadFault, Target};

/// What stands at one place.
#[derive(Debug, Clone)]
pub struct Observation<'a> {
    /// The setting.
    pub setting: &'a Setting,
    /// Of which several things this is one.
    pub item: Item,
    /// Where it would be written; `None` for what is no place or is not there.
    pub target: Option<Target>,
    /// What stands there.
    pub now: Now,
    /// What keeps it from being written.
    pub barrier: Option<Barrier>,
    /// Names that the kernel offers, for a setting that chooses among them.
    pub offered: Vec<String>,
}

/// Which of several things.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Item {
    /// For people: `eth0 rx-0`, `cpu3`; empty where there is one thing only.
    pub label: String,
    /// The place of its interface in the facts.
    pub nic: Option<usize>,
    /// The place of its queue.
    pub queue: usize,
    /// The most that there can be.
    pub max: Option<u64>,
}

/// What stands somewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Now {
    /// This text, to the byte.
    Value(String),
    /// Nothing, for this reason: the setting does not apply here.
    NotApplicable(String),
    /// Something that could not be read.
    Unreadable(String),
}

/// What stands at each place of each setting that `choices.profile` wants.
pub fn observe<'a>(
    settings: &'a [Setting],
    machine: &Machine,
    facts: &Facts,
    choices: &Choices,
) -> Vec<Observation<'a>> {
    settings
        .iter()
        .filter(|setting| setting.card.want.contains_key(&choices.profile))
        .flat_map(|setting| Look { setting, machine, facts, choices }.all())
        .collect()
}

/// One setting under the eye.
struct Look<'a, 'b> {
    setting: &'a Setting,
    machine: &'b Machine,
    facts: &'b Facts,
    choices: &'b Choices,
}

impl<'a> Look<'a, '_> {
    fn all(&self) -> Vec<Observation<'a>> {
        match &self.setting.card.at {
            Place::Sysctl(key) => {
                let path = format!("/proc/sys/{}", key.replace('.', "/"));
                vec![self.file(Item::default(), &path)]
            }
            Place::Files(patterns) => self.files(patterns),
            Place::Ethtool { table, key } => self.of_each_nic(|place, nic| vec![self.ethtool(place, nic, *table, key)]),
            Place::Limit(resource) => {
                let (pid, started) = self.facts.process;
                let target = Target::Limit { pid, started, resource: (*resource).into() };
                let label = self.choices.pid.map_or_else(String::new, |pid| format!("process {pid}"));
                let mut seen = self.target(Item { label, ..Item::default() }, target);
                if self.choices.pid.is_none() && seen.target.is_some() {
                    // A limit of our own ends with us: there is nothing that a write would help.
                    seen.target = None;
                }
                vec![seen]
            }
            Place::Notrack => vec![self.notrack()],
            Place::Fact(Fact::RssSpread) => self.of_each_nic(|place, nic| vec![self.rss_spread(place, nic)]),
            Place::Fact(fact) => vec![self.bare(Item::default(), self.fact(*fact))],
        }
    }

    fn files(&self, patterns: &[String]) -> Vec<Observation<'a>> {
        let Some(first) = patterns.first() else { return Vec::new() };
        if first.contains("{nic}") || first.contains("{irq}") {
            return self.of_each_nic(|place, nic| self.files_of_nic(patterns, place, nic));
        }
        if first.contains("{cpu}") {
            let each = |cpu: usize| {
                let name = format!("cpu{cpu}");
                let item = Item { label: name.clone(), ..Item::default() };
                self.first_file(item, patterns, &[("{cpu}", &name)])
            };
            return self.fold_equal(self.facts.cpus.iter().map(each).collect());
        }
        let cgroup = match (&self.facts.cgroup, first.contains("{cgroup}")) {
            (Some(path), _) => path.as_str(),
            (None, true) => return vec![self.bare(Item::default(), self.not_there())],
            (None, false) => "",
        };
        vec![self.first_file(Item::default(), patterns, &[("{cgroup}", cgroup)])]
    }

    fn files_of_nic(&self, patterns: &[String], place: usize, nic: &Nic) -> Vec<Observation<'a>> {
        let item = |label: String, queue: usize| Item { label, nic: Some(place), queue, max: None };
        let pattern = patterns.first().map_or("", String::as_str);
        for (hole, queues) in [("{rx}", &nic.rx), ("{tx}", &nic.tx)] {
            if !pattern.contains(hole) {
                continue;
            }
            if queues.is_empty() {
                return vec![
                    self.bare(item(nic.name.clone(), 0), Now::NotApplicable("the interface shows no queues".into())),
                ];
            }
            let each = |(queue, name): (usize, &String)| {
                self.first_file(
                    item(format!("{} {name}", nic.name), queue),
                    patterns,
                    &[("{nic}", &nic.name), (hole, name)],
                )
            };
            return queues.iter().enumerate().map(each).collect();
        }
        if pattern.contains("{irq}") {
            if nic.irqs.is_empty() {
                let reason = "the interface has no interrupts of its own: it is virtual, or its driver hides them";
                return vec![self.bare(item(nic.name.clone(), 0), Now::NotApplicable(reason.into()))];
            }
            let each = |irq: &crate::facts::Irq| {
                let number = irq.number.to_string();
                self.first_file(item(format!("{} irq {number}", nic.name), irq.queue), patterns, &[("{irq}", &number)])
            };
            return nic.irqs.iter().map(each).collect();
        }
        vec![self.first_file(item(nic.name.clone(), 0), patterns, &[("{nic}", &nic.name)])]
    }

    /// The first of several files that exists.
    fn first_file(&self, item: Item, patterns: &[String], holes: &[(&str, &str)]) -> Observation<'a> {
        let fill =
            |pattern: &String| holes.iter().fold(pattern.clone(), |path, (hole, value)| path.replace(hole, value));
        let paths: Vec<String> = patterns.iter().map(fill).collect();
        let path = paths.iter().find(|path| self.machine.exists(path)).or(paths.first());
        self.file(item, path.map_or("", String::as_str))
    }

    fn file(&self, item: Item, path: &str) -> Observation<'a> {
        self.target(item, Target::File(path.to_owned()))
    }

    fn target(&self, item: Item, target: Target) -> Observation<'a> {
        match self.machine.read_target(&target) {
            Ok(text) => Observation {
                barrier: self.machine.barrier(&target),
                offered: self.offered(),
                target: Some(target),
                ..self.bare(item, Now::Value(text))
            },
            Err(ReadFault::Missing) => self.bare(item, self.not_there()),
            Err(fault) => self.bare(item, Now::Unreadable(fault.to_string())),
        }
    }

    fn bare(&self, item: Item, now: Now) -> Observation<'a> {
        Observation { setting: self.setting, item, target: None, now, barrier: None, offered: Vec::new() }
    }

    /// Why a file is not there, as well as one can say.
    fn not_there(&self) -> Now {
        let card = &self.setting.card;
        let of_network = matches!(&card.at, Place::Sysctl(key) if key.starts_with("net."));
        let reason = match &card.missing {
            _ if of_network && !self.facts.host_netns && card.scope == crate::setting::Scope::Node => {
                "this network namespace does not have it: it is the node's".to_owned()
            }
            Some(missing) => missing.clone(),
            None => format!("kernel {} has no such knob", self.facts.kernel),
        };
        Now::NotApplicable(reason)
    }

    fn offered(&self) -> Vec<String> {
        let Some(crate::setting::Want::FirstOffered { by, .. }) = self.setting.card.want.get(&self.choices.profile)
        else {
            return Vec::new();
        };
        let text = self.machine.read(&format!("/proc/sys/{}", by.replace('.', "/"))).unwrap_or_default();
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn of_each_nic(&self, look: impl Fn(usize, &Nic) -> Vec<Observation<'a>>) -> Vec<Observation<'a>> {
        if self.facts.nics.is_empty() {
            let reason = "no interface here carries traffic; name one with --nic";
            return vec![self.bare(Item::default(), Now::NotApplicable(reason.into()))];
        }
        self.facts.nics.iter().enumerate().flat_map(|(place, nic)| look(place, nic)).collect()
    }

    fn ethtool(&self, place: usize, nic: &Nic, table: EthtoolTable, key: &str) -> Observation<'a> {
        let mut item = Item { label: nic.name.clone(), nic: Some(place), ..Item::default() };
        let not = |reason: String| Now::NotApplicable(reason);
        let answer = match nic.tables.get(&table) {
            Some(Ok(answer)) => answer,
            Some(Err(error)) => return self.bare(item, not(format!("the driver does not tell: {error}"))),
            None => return self.bare(item, not("not asked".to_owned())),
        };
        let Some(now) = answer.now(key) else {
            return self
                .bare(item, not(format!("{} has no such thing", nic.driver.as_deref().unwrap_or("this interface"))));
        };
        if answer.fixed(key) {
            return self.bare(item, not(format!("the driver keeps it fixed: {now}")));
        }
        item.max = answer.max(key);
        let target = Target::Ethtool { nic: nic.name.clone(), table, key: key.to_owned() };
        Observation {
            barrier: self.machine.barrier(&target),
            target: Some(target),
            ..self.bare(item, Now::Value(now.to_owned()))
        }
    }

    fn notrack(&self) -> Observation<'a> {
        let tracked = ["/proc/sys/net/netfilter/nf_conntrack_max", "/proc/sys/net/nf_conntrack_max"];
        if self.choices.ports.is_empty() {
            let reason = "no ports were named: --ports 80,443 takes them out of connection tracking";
            return self.bare(Item::default(), Now::NotApplicable(reason.into()));
        }
        if !tracked.iter().any(|path| self.machine.exists(path)) {
            return self.bare(Item::default(), Now::NotApplicable("connection tracking is not loaded".into()));
        }
        if !self.machine.is_live() {
            return self.bare(Item::default(), Now::NotApplicable(Barrier::Recorded.to_string()));
        }
        self.target(Item::default(), Target::Notrack)
    }

    /// One line for all cores where all show the same.
    fn fold_equal(&self, seen: Vec<Observation<'a>>) -> Vec<Observation<'a>> {
        let absent = |one: &Observation| matches!(one.now, Now::NotApplicable(_));
        if !seen.is_empty() && seen.iter().all(absent) {
            seen.into_iter().take(1).map(|one| Observation { item: Item::default(), ..one }).collect()
        } else {
            seen
        }
    }

    fn rss_spread(&self, place: usize, nic: &Nic) -> Observation<'a> {
        let item = Item { label: nic.name.clone(), nic: Some(place), ..Item::default() };
        if nic.rx.len() < 2 {
            return self.bare(item, Now::NotApplicable("one receive queue: nothing to spread".into()));
        }
        let text = if self.machine.is_live() {
            std::process::Command::new("ethtool")
                .args(["-x", &nic.name])
                .output()
                .ok()
                .filter(|output| output.status.success())
                .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        } else {
            self.machine.read(&format!("/ethtool/{}.rss", nic.name)).ok()
        };
        let now = match text.and_then(|text| spread(&text)) {
            Some(word) => Now::Value(word),
            None => Now::NotApplicable("the driver shows no indirection table".into()),
        };
        self.bare(item, now)
    }

    fn fact(&self, fact: Fact) -> Now {
        let machine = self.machine;
        match fact {
            Fact::Seccomp => {
                let process = self.choices.pid.map_or_else(|| "self".to_owned(), |pid| pid.to_string());
                let status = machine.read(&format!("/proc/{process}/status")).unwrap_or_default();
                match status.lines().find_map(|line| line.strip_prefix("Seccomp:")).map(str::trim) {
                    Some("0") => Now::Value("none".into()),
                    Some(_) => Now::Value("filter".into()),
                    None => Now::Unreadable("/proc/self/status has no line 'Seccomp'".into()),
                }
            }
            Fact::Irqbalance => {
                let runs = machine
                    .names("/proc")
                    .iter()
                    .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
                    .any(|pid| machine.word(&format!("/proc/{pid}/comm")).as_deref() == Some("irqbalance"));
                Now::Value(if runs { "running" } else { "absent" }.into())
            }
            Fact::CpuQuota => self.cpu_quota(),
            Fact::ConntrackUse => {
                let number = |name: &str| machine.word(&format!("/proc/sys/net/netfilter/{name}"))?.parse::<u64>().ok();
                match (number("nf_conntrack_count"), number("nf_conntrack_max")) {
                    (Some(count), Some(max)) if max > 0 => Now::Value((count.saturating_mul(100) / max).to_string()),
                    _ => Now::NotApplicable("connection tracking is not loaded".into()),
                }
            }
            Fact::Mitigations => {
                let folder = "/sys/devices/system/cpu/vulnerabilities";
                let active: Vec<String> = machine
                    .names(folder)
                    .into_iter()
                    .filter(|name| {
                        machine.word(&format!("{folder}/{name}")).is_some_and(|text| text.starts_with("Mitigation"))
                    })
                    .collect();
                Now::Value(if active.is_empty() { "none".into() } else { active.join(" ") })
            }
            Fact::RssSpread => Now::NotApplicable("no interface".into()),
        }
    }

    fn cpu_quota(&self) -> Now {
        let group = self.facts.cgroup.as_deref().unwrap_or("");
        // Inside a container the group is the root of what is mounted.
        let paths = [format!("/sys/fs/cgroup{group}/cpu.max"), "/sys/fs/cgroup/cpu.max".to_owned()];
        match paths.iter().find_map(|path| self.machine.word(path)) {
            Some(text) if text.starts_with("max") => Now::Value("unlimited".into()),
            Some(text) => Now::Value(text),
            None => match self.machine.word("/sys/fs/cgroup/cpu/cpu.cfs_quota_us") {
                Some(text) if text.starts_with('-') => Now::Value("unlimited".into()),
                Some(text) => Now::Value(text),
                None => Now::NotApplicable("no control group with a cpu controller here".into()),
            },
        }
    }
}

/// `even` where every queue of an indirection table has its share (one entry more or less), else `uneven`.
fn spread(text: &str) -> Option<String> {
    let mut shares = std::collections::BTreeMap::<&str, usize>::new();
    let rows = text.lines().skip_while(|line| !line.contains("indirection table")).skip(1);
    for row in rows.take_while(|line| line.starts_with(|letter: char| letter == ' ' || letter.is_ascii_digit())) {
        let (_, queues) = row.split_once(':')?;
        for queue in queues.split_whitespace() {
            *shares.entry(queue).or_default() += 1;
        }
    }
    let (least, most) = (shares.values().min()?, shares.values().max()?);
    Some(if most - least <= 1 { "even" } else { "uneven" }.to_owned())
}

/// What of a value is compared and shown: the soft limit of two, the word in brackets of several.
pub fn shown(setting: &Setting, raw: &str) -> String {
    let text = raw.trim();
    match (&setting.card.at, setting.card.format) {
        (Place::Limit(_), _) => text.split_whitespace().next().unwrap_or("").to_owned(),
        (_, Format::Choice) => {
            let chosen = text.split_whitespace().find_map(|word| word.strip_prefix('[')?.strip_suffix(']'));
            chosen.unwrap_or(text).to_owned()
        }
        (_, Format::Words) => text.split_whitespace().collect::<Vec<_>>().join(" "),
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spreads_are_judged() {
        let even = "RX flow hash indirection table for eth0 with 4 RX ring(s):\n    0:      0     1     2     3\n    4:      0     1     2     3\nRSS hash key:\n00:11\n";
        assert_eq!(spread(even).as_deref(), Some("even"));
        assert_eq!(
            spread(&even.replace("    4:      0     1     2     3", "    4:      0     0     0     0")).as_deref(),
            Some("uneven")
        );
        assert_eq!(spread("nothing of the kind"), None);
    }
}
