//! Findings as a table for a terminal.

use std::fmt::Write as _;

use crate::facts::{Choices, Facts};
use crate::plan::{Finding, Tally, Verdict};
use crate::setting::Setting;

/// The findings as a table: what needs something first in each group, what is not applicable only with `all`.
pub fn render(findings: &[Finding], facts: &Facts, choices: &Choices, all: bool) -> String {
    let mut text = format!(
        "Profile {}  kernel {}  {} cores (workers {}{})  {} MiB{}{}\n",
        choices.profile,
        facts.kernel,
        facts.cpus.len(),
        facts.data_cpus.to_list(),
        if facts.irq_cpus.is_empty() { String::new() } else { format!(", interrupts {}", facts.irq_cpus.to_list()) },
        facts.memory_bytes / (1024 * 1024),
        if facts.container { "  in a container" } else { "" },
        if facts.host_netns { "" } else { "  not the host's network namespace" },
    );
    for nic in &facts.nics {
        let _ = writeln!(
            text,
            "Interface {} ({}): {} receive and {} transmit queues, {} interrupts",
            nic.name,
            nic.driver.as_deref().unwrap_or("virtual"),
            nic.rx.len(),
            nic.tx.len(),
            nic.irqs.len()
        );
    }
    let shown: Vec<&Finding> =
        findings.iter().filter(|finding| all || !matches!(finding.verdict, Verdict::NotApplicable(_))).collect();
    let mut group = None;
    let width = shown.iter().map(|finding| name(finding).chars().count()).max().unwrap_or(0);
    for finding in shown {
        let card = &finding.setting.card;
        if group != Some(card.group) {
            group = Some(card.group);
            let _ = writeln!(text, "\n{}", card.group.title());
        }
        let _ = writeln!(text, "  {} {:<width$}  {}", mark(&finding.verdict), name(finding), line(finding));
    }
    let _ = writeln!(text, "\n{}", tally_line(findings, all));
    text
}

fn name(finding: &Finding) -> String {
    if finding.label.is_empty() {
        finding.setting.name.clone()
    } else {
        format!("{} [{}]", finding.setting.name, finding.label)
    }
}

fn mark(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Good => "ok    ",
        Verdict::Change => "CHANGE",
        Verdict::Advice => "advice",
        Verdict::Denied(_) => "DENIED",
        Verdict::NotApplicable(_) => "n/a   ",
        Verdict::Unreadable(_) => "ERROR ",
    }
}

fn line(finding: &Finding) -> String {
    let card = &finding.setting.card;
    let now = finding.now.as_deref().filter(|now| !now.is_empty()).unwrap_or("(empty)");
    let wanted = finding.wanted.as_deref().unwrap_or("");
    match &finding.verdict {
        Verdict::Good => now.to_owned(),
        Verdict::Change | Verdict::Advice => {
            format!("{now}, wanted {wanted} ({}). {}: {}", card.unit, matters(finding), card.why)
        }
        Verdict::Denied(barrier) => format!("{now}, wanted {wanted} ({}); {barrier}", card.unit),
        Verdict::NotApplicable(reason) | Verdict::Unreadable(reason) => reason.clone(),
    }
}

fn matters(finding: &Finding) -> &'static str {
    match finding.setting.card.weight {
        crate::setting::Weight::Small => "Matters little",
        crate::setting::Weight::Medium => "Matters under load",
        crate::setting::Weight::Large => "Matters much",
    }
}

fn tally_line(findings: &[Finding], all: bool) -> String {
    let tally = Tally::of(findings);
    let mut parts = vec![format!("{} good", tally.good), format!("{} to change", tally.change)];
    for (count, what) in [
        (tally.advice, "for you to look at"),
        (tally.denied, "not changeable from here"),
        (tally.unreadable, "not readable"),
        (tally.not_applicable, if all { "not applicable" } else { "not applicable (--all shows them)" }),
    ] {
        if count > 0 {
            parts.push(format!("{count} {what}"));
        }
    }
    parts.join(", ")
}

/// The writes of a plan with the undo of each, in order.
pub fn render_plan(findings: &[Finding]) -> String {
    let mut text = String::new();
    let changes = findings.iter().filter_map(|finding| Some((finding, finding.change.as_ref()?)));
    let mut count = 0;
    for (finding, change) in changes {
        count += 1;
        let _ = writeln!(
            text,
            "{count:>3}. {}  ({}, risk {})",
            name(finding),
            finding.setting.card.title,
            finding.setting.card.risk.name()
        );
        let _ = writeln!(text, "     do    {}", change.target.command_line(&change.after));
        let _ = writeln!(text, "     undo  {}", change.target.command_line(&change.target.undo_value(&change.before)));
        if crate::plan::reshapes(change) {
            let _ = writeln!(text, "     then  what hangs on queues is planned again for the new number of them");
        }
    }
    let _ = writeln!(text, "{count} changes");
    for finding in findings {
        if let Verdict::Denied(barrier) = &finding.verdict {
            let _ = writeln!(text, "left out: {}: {barrier}", name(finding));
        }
    }
    text
}

/// One setting, told whole.
pub fn explain(setting: &Setting) -> String {
    let card = &setting.card;
    let mut text = format!("{} - {}\n\n", setting.name, card.title);
    for (what, value) in [
        ("where", format!("{}", Shown(&card.at))),
        ("unit", card.unit.clone()),
        ("scope", format!("{}, {}", card.scope.name(), card.pod.name())),
        ("matters", card.weight.name().to_owned()),
        ("risk", card.risk.name().to_owned()),
    ] {
        let _ = writeln!(text, "  {what:<8} {value}");
    }
    for (profile, want) in &card.want {
        let _ = writeln!(text, "  wanted   {:<18} {}", profile.name(), ShownWant(want));
    }
    let written = match card.change {
        crate::setting::ChangePolicy::Advise => "Reported only; torus-tune never changes it.",
        crate::setting::ChangePolicy::Write => "Written by apply, put back by rollback.",
    };
    let _ = writeln!(
        text,
        "\nWhy     {}\nEffect  {}\nCost    {}\nUndo    {written}\nSource  {}",
        card.why, card.effect, card.cost, card.source
    );
    if let Some(missing) = &card.missing {
        let _ = writeln!(text, "Absent  {missing}");
    }
    text
}

struct Shown<'a>(&'a crate::setting::Place);

impl std::fmt::Display for Shown<'_> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        use crate::setting::Place;
        match self.0 {
            Place::Sysctl(key) => write!(out, "sysctl {key}"),
            Place::Files(paths) => out.write_str(&paths.join(" or ")),
            Place::Ethtool { table, key } => {
                write!(out, "ethtool, table {}, line '{key}'", format!("{table:?}").to_lowercase())
            }
            Place::Limit(resource) => {
                write!(out, "limit {} of the process (--pid)", format!("{resource:?}").to_lowercase())
            }
            Place::Notrack => out.write_str("nftables, table inet torus_tune"),
            Place::Fact(_) => out.write_str("worked out from several files"),
        }
    }
}

struct ShownWant<'a>(&'a crate::setting::Want);

impl std::fmt::Display for ShownWant<'_> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        use crate::setting::{Field, Number, Text, Want};
        let number = |number: &Number| match number {
            Number::Literal(value) => value.to_string(),
            Number::Formula(formula) => format!("computed ({formula:?})"),
        };
        match self.0 {
            Want::Exactly(Text::Literal(text)) => out.write_str(text),
            Want::Exactly(Text::Number(value)) => write!(out, "{value}"),
            Want::Exactly(Text::Formula(formula)) => write!(out, "computed ({formula:?})"),
            Want::AtLeast(least) => write!(out, "at least {}", number(least)),
            Want::AtMost(most) => write!(out, "at most {}", number(most)),
            Want::OneOf(values) => out.write_str(&values.join(" or ")),
            Want::FirstOffered { of, .. } => write!(out, "the first that the kernel offers of {}", of.join(", ")),
            Want::Present(what) => out.write_str(what),
            Want::Fields(fields) => {
                let each = fields.iter().map(|field| match field {
                    Field::Keep => "as it is".to_owned(),
                    Field::AtLeast(least) => format!("at least {}", number(least)),
                    Field::AtMost(most) => format!("at most {}", number(most)),
                });
                out.write_str(&each.collect::<Vec<_>>().join("; "))
            }
        }
    }
}
