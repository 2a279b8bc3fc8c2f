//! What a wish comes to on this machine: the arithmetic behind the settings, without I/O.

use crate::cpu_set::CpuSet;
use crate::facts::{Facts, Nic};
use crate::observe::{Item, shown};
use crate::setting::{Field, Format, Number, NumberFormula, Place, Setting, Text, TextFormula, Want};

/// What a wish says of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is as wanted; the text says what was wanted.
    Good(String),
    /// It should be this; the first text is for people, the second is what to write.
    Change(String, String),
    /// The wish makes no sense here.
    NotApplicable(String),
}

/// Judges the value `raw` of `setting`.
pub fn judge(setting: &Setting, want: &Want, raw: &str, item: &Item, offered: &[String], facts: &Facts) -> Verdict {
    let now = shown(setting, raw);
    let nic = item.nic.and_then(|place| facts.nics.get(place));
    match want {
        Want::Exactly(text) => match text_value(text, item, nic, facts) {
            Ok(wanted) => {
                let good = same(setting.card.format, &now, &wanted);
                if good { Verdict::Good(wanted) } else { Verdict::Change(wanted.clone(), wanted) }
            }
            Err(reason) => Verdict::NotApplicable(reason.to_owned()),
        },
        Want::AtLeast(number) => {
            let least = number_value(number, item, nic, facts);
            // What the hardware cannot have is not asked for.
            let least = item.max.map_or(least, |max| least.min(max));
            let good = now == "unlimited" || now.parse::<u64>().is_ok_and(|now| now >= least);
            bound(good, format!("at least {least}"), limit_text(setting, raw, least))
        }
        Want::AtMost(number) => {
            let most = number_value(number, item, nic, facts);
            let good = now.parse::<u64>().is_ok_and(|now| now <= most);
            bound(good, format!("at most {most}"), most.to_string())
        }
        Want::OneOf(values) => {
            let good = values.iter().any(|value| same(setting.card.format, &now, value));
            bound(good, values.join(" or "), values.first().cloned().unwrap_or_default())
        }
        Want::FirstOffered { of, .. } => {
            // The kernel loads what is not there yet only for some; what is not listed is not asked for.
            match of.iter().find(|name| offered.contains(name)) {
                Some(best) => bound(now == *best, best.clone(), best.clone()),
                None => Verdict::NotApplicable(format!("the kernel offers none of {}", of.join(", "))),
            }
        }
        Want::Fields(fields) => judge_fields(fields, &now, item, nic, facts),
        Want::Present(what) => bound(!now.is_empty(), what.clone(), String::new()),
    }
}

fn bound(good: bool, wanted: String, write: String) -> Verdict {
    if good { Verdict::Good(wanted) } else { Verdict::Change(wanted, write) }
}

/// A limit is written with its hard part, which is never lowered.
fn limit_text(setting: &Setting, raw: &str, least: u64) -> String {
    if !matches!(setting.card.at, Place::Limit(_)) {
        return least.to_string();
    }
    match raw.split_whitespace().nth(1) {
        Some("unlimited") => format!("{least} unlimited"),
        Some(hard) => format!("{least} {}", hard.parse().map_or(least, |hard: u64| hard.max(least))),
        None => least.to_string(),
    }
}

fn judge_fields(fields: &[Field], now: &str, item: &Item, nic: Option<&Nic>, facts: &Facts) -> Verdict {
    let words: Vec<&str> = now.split_whitespace().collect();
    if words.len() != fields.len() {
        return Verdict::NotApplicable(format!("has {} values where {} were expected", words.len(), fields.len()));
    }
    let mut good = true;
    let mut write = Vec::new();
    let mut wanted = Vec::new();
    for (field, word) in fields.iter().zip(words) {
        let number = word.parse::<u64>().ok();
        let (fits, text, value) = match field {
            Field::Keep => (true, "any".to_owned(), None),
            Field::AtLeast(least) => {
                let least = number_value(least, item, nic, facts);
                (number.is_some_and(|now| now >= least), format!(">={least}"), Some(least))
            }
            Field::AtMost(most) => {
                let most = number_value(most, item, nic, facts);
                (number.is_some_and(|now| now <= most), format!("<={most}"), Some(most))
            }
        };
        good &= fits;
        write.push(if fits {
            word.to_owned()
        } else {
            value.map_or_else(|| word.to_owned(), |value| value.to_string())
        });
        wanted.push(text);
    }
    bound(good, wanted.join(" "), write.join(" "))
}

/// Whether two spellings mean the same.
pub fn same(format: Format, left: &str, right: &str) -> bool {
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    match format {
        Format::Mask => match (CpuSet::from_mask(left), CpuSet::from_mask(right)) {
            (Some(left), Some(right)) => left == right,
            _ => left.trim() == right.trim(),
        },
        Format::List => match (CpuSet::from_list(left), CpuSet::from_list(right)) {
            (Some(left), Some(right)) => left == right,
            _ => left.trim() == right.trim(),
        },
        Format::Integer | Format::Words | Format::Choice => words(left) == words(right),
    }
}

/// What a number comes to.
fn number_value(number: &Number, item: &Item, nic: Option<&Nic>, facts: &Facts) -> u64 {
    let formula = match number {
        Number::Literal(value) => return *value,
        Number::Formula(formula) => *formula,
    };
    let memory = facts.memory_bytes;
    let cores = facts.cpus.len() as u64;
    match formula {
        // A thousandth of the memory, between 8 and 64 MiB, in whole MiB.
        NumberFormula::SocketBufferMax => (memory / 1000).clamp(8 * MIB, 64 * MIB) / MIB * MIB,
        NumberFormula::RfsEntries => RFS_ENTRIES,
        NumberFormula::RfsEntriesPerQueue => {
            let queues = nic.map_or(1, |nic| nic.rx.len().max(1)) as u64;
            (RFS_ENTRIES / queues).next_power_of_two().min(RFS_ENTRIES)
        }
        // One entry for each 16 KiB of memory, between a quarter and two millions: 300 bytes each are under 2 % of it.
        NumberFormula::ConntrackMax => (memory / (16 * 1024)).clamp(262_144, 2_097_152),
        NumberFormula::TimeWaitMax => (memory / (16 * 1024)).clamp(262_144, 2_097_152),
        NumberFormula::FileMax => (memory / (8 * 1024)).clamp(1_048_576, 16_777_216),
        // 32 MiB of registered buffers a core and what other programs of the unit lock.
        NumberFormula::Memlock => (32 * MIB).saturating_mul(cores) + 8 * MIB,
        NumberFormula::NicQueues => facts.data_cpus.len().max(1) as u64,
        NumberFormula::RingThroughput => item.max.unwrap_or(4_096).min(4_096),
        NumberFormula::RingLatency => item.max.unwrap_or(1_024).min(1_024),
    }
}

const MIB: u64 = 1024 * 1024;

/// Flows that are steered to the core of their reader; scaling.rst names this number for a loaded server.
const RFS_ENTRIES: u64 = 32_768;

/// What a text comes to, or why it makes no sense here.
fn text_value(text: &Text, item: &Item, nic: Option<&Nic>, facts: &Facts) -> Result<String, &'static str> {
    let formula = match text {
        Text::Literal(text) => return Ok(text.clone()),
        Text::Number(number) => return Ok(number.to_string()),
        Text::Formula(formula) => *formula,
    };
    let nic = nic.ok_or("no interface")?;
    let near = near_cpus(nic, &facts.data_cpus);
    match formula {
        // With a queue for each core the hardware has spread the packets already.
        TextFormula::RpsMask if nic.rx.len() >= near.len() => Ok("0".to_owned()),
        TextFormula::RpsMask => Ok(near.to_mask()),
        TextFormula::XpsMask if nic.tx.len() < 2 => Err("one transmit queue: nothing to choose"),
        TextFormula::XpsMask => {
            let queues = nic.tx.len();
            let mine = facts.cpus.iter().enumerate().filter(|(place, _)| place % queues == item.queue);
            let mine: CpuSet = mine.map(|(_, cpu)| cpu).collect();
            // More queues than cores: the rest share in turn.
            let shared = || facts.cpus.nth_around(item.queue).into_iter().collect::<CpuSet>();
            Ok(if mine.is_empty() { shared() } else { mine }.to_mask())
        }
        TextFormula::IrqCpu => {
            let cores = if facts.irq_cpus.is_empty() { near } else { near_cpus(nic, &facts.irq_cpus) };
            cores.nth_around(item.queue).map(|cpu| cpu.to_string()).ok_or("no core to choose")
        }
    }
}

/// The cores of `from` on the interface's memory node; all of `from` where none is.
fn near_cpus(nic: &Nic, from: &CpuSet) -> CpuSet {
    let near = from.intersection(&nic.local_cpus);
    if near.is_empty() { from.clone() } else { near }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_are_compared_by_their_meaning() {
        for (format, left, right, expected) in [
            (Format::Words, "1024\t65535\n", "1024 65535", true),
            (Format::Words, "1024 65535", "1024 60999", false),
            (Format::Mask, "00000003\n", "3", true),
            (Format::Mask, "3", "1", false),
            (Format::List, "0,1,2", "0-2\n", true),
            (Format::Integer, "0\n", "0", true),
        ] {
            assert_eq!(same(format, left, right), expected, "{left} {right}");
        }
    }
}
