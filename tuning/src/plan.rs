//! From observations to findings and writes. Pure: the same observations give the same plan.

use serde::Serialize;

use crate::facts::{Choices, Facts};
use crate::observe::{Now, Observation, shown};
use crate::setting::{ChangePolicy, EthtoolTable, Group, Pod, Refusal, Risk, Scope, Setting, Weight};
use crate::target::{Barrier, Target};
use crate::value;

/// What was found at one place.
#[derive(Debug, Clone)]
pub struct Finding<'a> {
    /// The setting.
    pub setting: &'a Setting,
    /// Of which several things this is one; empty where there is one only.
    pub label: String,
    /// What stands there, for people.
    pub now: Option<String>,
    /// What should stand there, for people.
    pub wanted: Option<String>,
    /// What follows.
    pub verdict: Verdict,
    /// The write, where the verdict is `Change`.
    pub change: Option<Change>,
}

/// What follows from a finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing: it is as wanted.
    Good,
    /// `apply` changes it.
    Change,
    /// A person should look; the tool does not change it.
    Advice,
    /// It should change and cannot be changed from here.
    Denied(Barrier),
    /// It means nothing here, for this reason.
    NotApplicable(String),
    /// It could not be read, for this reason.
    Unreadable(String),
}

impl Verdict {
    /// The word in reports.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Change => "change",
            Self::Advice => "advice",
            Self::Denied(_) => "denied",
            Self::NotApplicable(_) => "not-applicable",
            Self::Unreadable(_) => "unreadable",
        }
    }

    /// Why, where the verdict has a reason of its own.
    pub fn reason(&self) -> Option<String> {
        match self {
            Self::Denied(barrier) => Some(barrier.to_string()),
            Self::NotApplicable(reason) | Self::Unreadable(reason) => Some(reason.clone()),
            Self::Good | Self::Change | Self::Advice => None,
        }
    }
}

/// One write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The setting that asks for it.
    pub setting: String,
    /// Where.
    pub target: Target,
    /// What stands there, to the byte.
    pub before: String,
    /// What is written.
    pub after: String,
    /// What a refusal means.
    pub refusal: Refusal,
}

/// Which settings a run is about.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Names of settings; empty for all.
    pub only: Vec<String>,
    /// Names of settings to leave out.
    pub skip: Vec<String>,
    /// Scopes; empty for all.
    pub scopes: Vec<Scope>,
    /// Settings above this risk are left out.
    pub risk_max: Option<Risk>,
}

impl Selection {
    /// Whether `setting` belongs to the run.
    pub fn takes(&self, setting: &Setting) -> bool {
        let named = |names: &[String]| names.contains(&setting.name);
        (self.only.is_empty() || named(&self.only))
            && !named(&self.skip)
            && (self.scopes.is_empty() || self.scopes.contains(&setting.card.scope))
            && self.risk_max.is_none_or(|max| setting.card.risk <= max)
    }
}

/// Judges every observation.
pub fn plan<'a>(observations: Vec<Observation<'a>>, facts: &Facts, choices: &Choices) -> Vec<Finding<'a>> {
    observations.into_iter().map(|seen| finding(seen, facts, choices)).collect()
}

fn finding<'a>(seen: Observation<'a>, facts: &Facts, choices: &Choices) -> Finding<'a> {
    let setting = seen.setting;
    let empty = Finding {
        setting,
        label: seen.item.label.clone(),
        now: None,
        wanted: None,
        verdict: Verdict::Good,
        change: None,
    };
    let raw = match &seen.now {
        Now::NotApplicable(reason) => return Finding { verdict: Verdict::NotApplicable(reason.clone()), ..empty },
        Now::Unreadable(reason) => return Finding { verdict: Verdict::Unreadable(reason.clone()), ..empty },
        Now::Value(raw) => raw,
    };
    let Some(want) = setting.card.want.get(&choices.profile) else {
        let reason = format!("profile {} leaves it alone", choices.profile);
        return Finding { verdict: Verdict::NotApplicable(reason), ..empty };
    };
    let now = Some(shown(setting, raw));
    let judged = match &seen.target {
        // The ports stand in for the word in the setting's file.
        Some(Target::Notrack) => {
            let ports = port_list(&choices.ports);
            if raw.trim() == ports { value::Verdict::Good(ports) } else { value::Verdict::Change(ports.clone(), ports) }
        }
        _ => value::judge(setting, want, raw, &seen.item, &seen.offered, facts),
    };
    match judged {
        value::Verdict::NotApplicable(reason) => Finding { now, verdict: Verdict::NotApplicable(reason), ..empty },
        value::Verdict::Good(wanted) => Finding { now, wanted: Some(wanted), ..empty },
        value::Verdict::Change(wanted, after) => {
            let wanted = Some(wanted);
            match (seen.target, seen.barrier, setting.card.change) {
                (None, _, _) | (_, _, ChangePolicy::Advise) => {
                    Finding { now, wanted, verdict: Verdict::Advice, ..empty }
                }
                (Some(_), Some(barrier), _) => Finding { now, wanted, verdict: Verdict::Denied(barrier), ..empty },
                (Some(target), None, ChangePolicy::Write) => {
                    let change = Change {
                        setting: setting.name.clone(),
                        target,
                        before: raw.clone(),
                        after,
                        refusal: setting.card.refusal,
                    };
                    Finding { now, wanted, verdict: Verdict::Change, change: Some(change), ..empty }
                }
            }
        }
    }
}

/// Ports in the one spelling that is compared: in order, each once.
fn port_list(ports: &[u16]) -> String {
    let mut ports = ports.to_vec();
    ports.sort_unstable();
    ports.dedup();
    ports.iter().map(u16::to_string).collect::<Vec<_>>().join(",")
}

/// The writes of a plan, in order.
pub fn changes(findings: &[Finding]) -> Vec<Change> {
    findings.iter().filter_map(|finding| finding.change.clone()).collect()
}

/// Whether a write makes or removes queues, so that what hangs on queues must be looked at again after it.
pub fn reshapes(change: &Change) -> bool {
    matches!(change.target, Target::Ethtool { table: EthtoolTable::Channels, .. })
}

/// Findings counted by what follows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// As wanted.
    pub good: usize,
    /// To be changed.
    pub change: usize,
    /// For a person to look at.
    pub advice: usize,
    /// Not changeable from here.
    pub denied: usize,
    /// Without meaning here.
    pub not_applicable: usize,
    /// Not readable.
    pub unreadable: usize,
}

impl Tally {
    /// Counts `findings`.
    pub fn of(findings: &[Finding]) -> Self {
        let mut tally = Self::default();
        for finding in findings {
            *match finding.verdict {
                Verdict::Good => &mut tally.good,
                Verdict::Change => &mut tally.change,
                Verdict::Advice => &mut tally.advice,
                Verdict::Denied(_) => &mut tally.denied,
                Verdict::NotApplicable(_) => &mut tally.not_applicable,
                Verdict::Unreadable(_) => &mut tally.unreadable,
            } += 1;
        }
        tally
    }
}

/// Whether a check should fail: something of this weight or more should change and could be changed by root.
pub fn fails(findings: &[Finding], from: Weight) -> bool {
    findings.iter().any(|finding| {
        finding.setting.card.weight >= from
            && matches!(finding.verdict, Verdict::Change | Verdict::Denied(Barrier::NotRoot) | Verdict::Unreadable(_))
    })
}

/// One finding as JSON shows it.
#[derive(Debug, Serialize)]
pub struct Row<'a> {
    /// The setting's name.
    pub setting: &'a str,
    /// Of which several things this is one.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub item: &'a str,
    /// A line for people.
    pub title: &'a str,
    /// What it belongs to.
    pub group: Group,
    /// Whose it is.
    pub scope: Scope,
    /// Whether a pod may carry it.
    pub pod: Pod,
    /// What stands there.
    pub now: Option<&'a str>,
    /// What should stand there.
    pub wanted: Option<&'a str>,
    /// Its unit.
    pub unit: &'a str,
    /// What follows.
    pub verdict: &'static str,
    /// Why, where the verdict has a reason of its own.
    pub reason: Option<String>,
    /// How much it matters.
    pub weight: Weight,
    /// How likely it does harm.
    pub risk: Risk,
    /// Why the value helps.
    pub why: &'a str,
}

impl<'a> Finding<'a> {
    /// The finding as JSON shows it.
    pub fn row(&'a self) -> Row<'a> {
        let card = &self.setting.card;
        Row {
            setting: &self.setting.name,
            item: &self.label,
            title: &card.title,
            group: card.group,
            scope: card.scope,
            pod: card.pod,
            now: self.now.as_deref(),
            wanted: self.wanted.as_deref(),
            unit: &card.unit,
            verdict: self.verdict.name(),
            reason: self.verdict.reason(),
            weight: card.weight,
            risk: card.risk,
            why: &card.why,
        }
    }
}
