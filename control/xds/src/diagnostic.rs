//! What is wrong with a configuration, where, and what may have been meant.

use std::fmt;
use std::sync::Arc;

/// Whether a finding stops the configuration from being used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The configuration is used all the same.
    Warning,
    /// The configuration is refused.
    Error,
}

/// A place in a document. Lines and columns count from 1; a column is a character.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// 1-based line.
    pub line: u32,
    /// 1-based column, in characters.
    pub column: u32,
    /// The whole line, without its end.
    pub source_line: Box<str>,
}

/// One finding: where it is, what is wrong, and what may have been meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    pub severity: Severity,
    /// The file, or the flag that carried the document.
    pub file: Arc<str>,
    /// Line and column, where the document is text and has the field.
    pub place: Option<Place>,
    /// The field: `static_resources.clusters[3].lb_policy`; empty for the document itself.
    pub path: String,
    /// What is wrong.
    pub reason: String,
    /// What may have been meant: a name, to be shown as "did you mean".
    pub suggestion: Option<String>,
}

impl Diagnostic {
    /// An error at `path` of `file`, whose place is not known.
    pub fn error(file: Arc<str>, path: impl Into<String>, reason: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            file,
            place: None,
            path: path.into(),
            reason: reason.into(),
            suggestion: None,
        }
    }

    /// The same finding as a warning.
    pub fn into_warning(self) -> Self {
        Self { severity: Severity::Warning, ..self }
    }

    /// The finding in one line, without the source.
    pub fn line(&self) -> impl fmt::Display + '_ {
        OneLine(self)
    }
}

struct OneLine<'a>(&'a Diagnostic);

impl fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let finding = self.0;
        f.write_str(&finding.file)?;
        if let Some(place) = &finding.place {
            write!(f, ":{}:{}", place.line, place.column)?;
        }
        f.write_str(": ")?;
        if finding.severity == Severity::Warning {
            f.write_str("warning: ")?;
        }
        if !finding.path.is_empty() {
            write!(f, "{}: ", finding.path)?;
        }
        f.write_str(&finding.reason)?;
        if let Some(suggestion) = &finding.suggestion {
            write!(f, "; did you mean `{suggestion}`?")?;
        }
        Ok(())
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        OneLine(self).fmt(f)?;
        let Some(place) = &self.place else { return Ok(()) };
        let (shown, caret) = window(&place.source_line, place.column as usize);
        let number = place.line.to_string();
        let margin = " ".repeat(number.len());
        write!(f, "\n {number} | {shown}\n {margin} | {}^", " ".repeat(caret))
    }
}

impl std::error::Error for Diagnostic {}

/// The known name that `name` is most likely a slip of, if one is near.
pub fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let allowed = (name.chars().count() / 3).clamp(1, 6);
    known
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, candidate)| (*distance, candidate.len()))
        .map(|(_, candidate)| candidate)
}

/// The part of a source line around `column` that fits a terminal, and how far its caret is indented.
fn window(line: &str, column: usize) -> (String, usize) {
    let before = column.saturating_sub(1);
    let start = before.saturating_sub(SHOWN_CHARS / 2);
    let start = if line.chars().count() <= SHOWN_CHARS { 0 } else { start };
    let printable = |letter: char| if letter.is_control() { ' ' } else { letter };
    let shown = line.chars().skip(start).take(SHOWN_CHARS).map(printable).collect();
    (shown, before - start)
}

/// Longest piece of a source line that is shown, in characters.
const SHOWN_CHARS: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_shows_place_reason_and_source() {
        let mut finding = Diagnostic::error("a.yaml".into(), "admin.address", "unknown field `prot_value`");
        finding.suggestion = Some("port_value".into());
        assert_eq!(
            finding.to_string(),
            "a.yaml: admin.address: unknown field `prot_value`; did you mean `port_value`?"
        );
        finding.place = Some(Place { line: 12, column: 5, source_line: "    prot_value: 1".into() });
        assert_eq!(
            finding.to_string(),
            "a.yaml:12:5: admin.address: unknown field `prot_value`; did you mean `port_value`?\n 12 |     prot_value: 1\n    |     ^"
        );
    }

    #[test]
    fn long_lines_are_cut_around_the_caret() {
        let line = format!("{}X{}", "a".repeat(500), "b".repeat(500));
        let (shown, caret) = window(&line, 501);
        assert_eq!(shown.chars().nth(caret), Some('X'));
        assert!(shown.chars().count() <= SHOWN_CHARS);
    }

    #[test]
    fn near_names_are_suggested_and_far_ones_are_not() {
        let known = ["port_value", "named_port", "address"];
        let check = |name, wanted| assert_eq!(nearest(name, known.into_iter()), wanted, "{name}");
        check("prot_value", Some("port_value"));
        check("adress", Some("address"));
        check("filter_chains", None);
    }
}
