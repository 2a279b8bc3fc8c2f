//! Which differences there are, and which of them are explained.

use std::fmt;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::run::Run;

/// Something that one proxy did and the other did not.
#[derive(Clone, Debug, Serialize)]
pub struct Difference {
    /// `theme/case`.
    pub case: String,
    /// What differs.
    pub field: String,
    /// What torus-proxy did; `None` where the field is absent.
    pub ours: Option<String>,
    /// What Envoy did.
    pub envoy: Option<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |value: &Option<String>| value.as_ref().map_or("(absent)".into(), |text| format!("{text:?}"));
        write!(formatter, "{}: {}\n    envoy {}\n    ours  ", self.case, self.field, show(&self.envoy))?;
        formatter.write_str(&show(&self.ours))
    }
}

/// A known difference. In each pattern `*` stands for any text, and `|` parts alternatives.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// Pattern for `theme/case`.
    pub case: String,
    /// Pattern for the field.
    pub field: String,
    /// Pattern for what torus-proxy does; `(absent)` for nothing.
    #[serde(default = "any")]
    pub ours: String,
    /// Pattern for what Envoy does.
    #[serde(default = "any")]
    pub envoy: String,
    /// Why it stays.
    pub reason: String,
    /// It depends on which of two events comes first, so that not every run shows it.
    #[serde(default)]
    pub timing: bool,
}

impl Row {
    fn explains(&self, difference: &Difference) -> bool {
        let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "(absent)".into());
        let any = |pattern: &str, text: &str| pattern.split('|').any(|pattern| matches(pattern, text));
        any(&self.case, &difference.case)
            && any(&self.field, &difference.field)
            && any(&self.ours, &text(&difference.ours))
            && any(&self.envoy, &text(&difference.envoy))
    }
}

fn any() -> String {
    "*".into()
}

/// The table of known differences.
///
/// # Panics
/// Where the file is not such a table, or a row has no reason.
pub fn rows(path: &Path) -> Vec<Row> {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let rows: Vec<Row> = serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert!(rows.iter().all(|row| row.reason.len() > 10), "each row of {} gives its reason", path.display());
    rows
}

/// What a comparison found.
#[derive(Default)]
pub struct Verdict {
    /// Fields compared.
    pub compared: usize,
    /// Differences with a row.
    pub explained: Vec<Difference>,
    /// Differences without one.
    pub unexplained: Vec<Difference>,
    /// How often each row explained something.
    pub used: Vec<usize>,
}

impl Verdict {
    /// The verdict where torus-proxy did not become ready, for the reason `error`.
    pub fn not_started(theme: &str, error: String) -> Self {
        let case = format!("{theme}/(theme)");
        let difference =
            Difference { case, field: "start".into(), ours: Some(error), envoy: Some("becomes ready".into()) };
        Self { unexplained: vec![difference], ..Self::default() }
    }
}

/// Compares what `theme` showed in both proxies.
pub fn judge(theme: &str, envoy: &Run, ours: &Run, rows: &[Row]) -> Verdict {
    let mut verdict = Verdict { used: vec![0; rows.len()], ..Verdict::default() };
    let empty = Default::default();
    for (case, theirs) in envoy {
        let mine = ours.get(case).unwrap_or(&empty);
        let names: std::collections::BTreeSet<&String> = theirs.keys().chain(mine.keys()).collect();
        for name in names {
            let (envoy, ours) = (theirs.get(name).cloned(), mine.get(name).cloned());
            verdict.compared += 1;
            if envoy == ours {
                continue;
            }
            let difference = Difference { case: format!("{theme}/{case}"), field: name.clone(), ours, envoy };
            match rows.iter().position(|row| row.explains(&difference)) {
                Some(row) => {
                    if let Some(count) = verdict.used.get_mut(row) {
                        *count += 1;
                    }
                    verdict.explained.push(difference);
                }
                None => verdict.unexplained.push(difference),
            }
        }
    }
    verdict
}

/// Whether `pattern`, where `*` stands for any text, fits the whole of `text`.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((start, rest)) => {
            let Some(tail) = text.strip_prefix(start) else { return false };
            (0..=tail.len()).filter(|&at| tail.is_char_boundary(at)).any(|at| matches(rest, tail.split_at(at).1))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn a_star_stands_for_any_text() {
        for (pattern, text, expected) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("a*", "ab", true),
            ("*b", "ab", true),
            ("a*c*e", "abcde", true),
            ("a*c*e", "abcd", false),
            ("*", "", true),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }
}
