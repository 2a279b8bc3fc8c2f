//! What is wrong with a configuration: every refused field of one run, by path and reason.
//!
//! Parsing goes on after a refusal so that one run reports everything. A parse function that cannot make its value returns
//! [`Refused`], which only [`Problems::reject`] gives out: so a refusal always comes with a reason that the user sees.

use std::fmt::{self, Write as _};

use thiserror::Error;

/// Proof that at least one problem was reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("refused")]
pub struct Refused(());

/// Whether a problem stops the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The configuration is refused.
    Error,
    /// The configuration works but is unsafe or has no effect.
    Warning,
}

/// One problem with one field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Where, for instance `static_resources.listeners[0].filter_chains[0].filters[0].typed_config.stat_prefix`.
    pub path: Box<str>,
    /// What is wrong, in words, without the path.
    pub reason: Box<str>,
    /// What was probably meant.
    pub suggestion: Option<Box<str>>,
    /// Error or warning.
    pub severity: Severity,
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.reason)?;
        match &self.suggestion {
            Some(suggestion) => write!(f, "; did you mean `{suggestion}`?"),
            None => Ok(()),
        }
    }
}

/// Every problem found so far, and the path of the field being parsed.
#[derive(Debug, Default)]
pub struct Problems {
    here: String,
    found: Vec<Rejected>,
    error_count: usize,
}

/// The path before [`Problems::enter`]; give it back to [`Problems::leave`].
#[derive(Debug)]
#[must_use = "the path stays longer until it is left"]
pub struct Outer(usize);

/// How many errors there were; compare with [`Problems::clean_since`].
#[derive(Clone, Copy, Debug)]
pub struct Checkpoint(usize);

impl Problems {
    /// Goes into `field` of the current message.
    pub fn enter(&mut self, field: &str) -> Outer {
        let outer = Outer(self.here.len());
        join(&mut self.here, field);
        outer
    }

    /// Goes into item `index` of the repeated `field`.
    pub fn enter_item(&mut self, field: &str, index: usize) -> Outer {
        let outer = self.enter(field);
        // Writing to a String cannot fail.
        let _ = write!(self.here, "[{index}]");
        outer
    }

    /// Goes into entry `key` of the map `field`.
    pub fn enter_key(&mut self, field: &str, key: &str) -> Outer {
        let outer = self.enter(field);
        let _ = write!(self.here, "[{key:?}]");
        outer
    }

    /// Comes back out.
    pub fn leave(&mut self, outer: Outer) {
        self.here.truncate(outer.0);
    }

    /// The path of the message being parsed.
    pub fn here(&self) -> &str {
        &self.here
    }

    /// Refuses `field` of the current message; the empty name means the message itself.
    pub fn reject(&mut self, field: &str, reason: impl Into<String>) -> Refused {
        self.report(field, reason.into(), None, Severity::Error);
        Refused(())
    }

    /// Refuses `field` and names what was probably meant.
    pub fn reject_with(&mut self, field: &str, reason: impl Into<String>, suggestion: Option<&str>) -> Refused {
        self.report(field, reason.into(), suggestion, Severity::Error);
        Refused(())
    }

    /// Reports `field` as unsafe or without effect.
    pub fn warn(&mut self, field: &str, reason: impl Into<String>) {
        self.report(field, reason.into(), None, Severity::Warning);
    }

    /// Where we are now, for [`Self::clean_since`].
    pub fn checkpoint(&self) -> Checkpoint {
        Checkpoint(self.error_count)
    }

    /// `Err` where an error was reported after `checkpoint`.
    pub fn clean_since(&self, checkpoint: Checkpoint) -> Result<(), Refused> {
        if self.error_count == checkpoint.0 { Ok(()) } else { Err(Refused(())) }
    }

    /// Whether any error was reported.
    pub fn has_errors(&self) -> bool {
        self.error_count != 0
    }

    /// Every problem in the order found.
    pub fn iter(&self) -> impl Iterator<Item = &Rejected> {
        self.found.iter()
    }

    /// Every problem in the order found; none remains.
    pub fn take(&mut self) -> Vec<Rejected> {
        self.error_count = 0;
        std::mem::take(&mut self.found)
    }

    /// The first error as one line; empty where there is none.
    pub fn first_error(&self) -> String {
        let first = self.found.iter().find(|problem| problem.severity == Severity::Error);
        first.map_or_else(String::new, ToString::to_string)
    }

    fn report(&mut self, field: &str, reason: String, suggestion: Option<&str>, severity: Severity) {
        let mut path = self.here.clone();
        if !field.is_empty() {
            join(&mut path, field);
        }
        if severity == Severity::Error {
            self.error_count += 1;
        }
        let suggestion = suggestion.map(Into::into);
        self.found.push(Rejected { path: path.into(), reason: reason.into(), suggestion, severity });
    }
}

fn join(path: &mut String, field: &str) {
    if !path.is_empty() && !field.starts_with('[') {
        path.push('.');
    }
    path.push_str(field);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_names_its_path() {
        let mut problems = Problems::default();
        let outer = problems.enter("static_resources");
        let listener = problems.enter_item("listeners", 2);
        let clean = problems.checkpoint();
        problems.warn("drain_type", "has no effect");
        assert!(problems.clean_since(clean).is_ok());
        let _ = problems.reject("address", "is required");
        let map = problems.enter_key("typed_per_filter_config", "a.b");
        let _ = problems.reject_with("", "is no known filter", Some("a.c"));
        problems.leave(map);
        problems.leave(listener);
        problems.leave(outer);
        assert!(problems.clean_since(clean).is_err());
        assert_eq!(problems.here(), "");
        let shown: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            shown,
            [
                "static_resources.listeners[2].drain_type: has no effect",
                "static_resources.listeners[2].address: is required",
                "static_resources.listeners[2].typed_per_filter_config[\"a.b\"]: is no known filter; did you mean `a.c`?",
            ]
        );
        assert_eq!(problems.take().len(), 3);
        assert!(!problems.has_errors());
    }
}
