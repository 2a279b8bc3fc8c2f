//! Findings of the ledger and of the parse functions, shown with the file, line and column that they are about.

use torus_xds::{Diagnostic, Encoded};

use super::ledger::Refusal;
use super::reject::{Rejected, Severity};

/// `refusals` and `rejected` with their places in the documents of `encoded`, in the order of the file. What was rejected only because
/// it is missing from this version, or lies inside of what is, is said once. Beyond a hundred of a kind the rest is counted.
pub fn findings(refusals: Vec<Refusal>, rejected: &[Rejected], encoded: &Encoded) -> Vec<Diagnostic> {
    let said = |rejected: &&Rejected| !refusals.iter().any(|refusal| covers(&refusal.path, &rejected.path));
    let own: Vec<&Rejected> = rejected.iter().take(LOOKED_AT_MAX).filter(said).collect();
    let left_out = refusals.len().saturating_sub(FINDING_COUNT_MAX) + own.len().saturating_sub(FINDING_COUNT_MAX);
    let mut found: Vec<Diagnostic> =
        own.into_iter().take(FINDING_COUNT_MAX).map(|rejected| place(rejected, encoded)).collect();
    for refusal in refusals.into_iter().take(FINDING_COUNT_MAX) {
        found.push(encoded.diagnose(&refusal.path, refusal.reason, None));
    }
    // A user reads a file from top to bottom.
    found.sort_by_key(|finding| finding.place.as_ref().map_or((0, 0), |place| (place.line, place.column)));
    if left_out > 0 {
        found.push(encoded.diagnose("", format!("{left_out} more problems like these"), None));
    }
    found
}

/// `rejected` with its place in the documents that `encoded` was made from.
pub fn place(rejected: &Rejected, encoded: &Encoded) -> Diagnostic {
    let suggestion = rejected.suggestion.as_deref().map(str::to_owned);
    let finding = encoded.diagnose(&rejected.path, rejected.reason.to_string(), suggestion);
    match rejected.severity {
        Severity::Error => finding,
        Severity::Warning => finding.into_warning(),
    }
}

/// Whether one of the two paths is the other, or leads to it.
fn covers(refused: &str, rejected: &str) -> bool {
    let leads = |outer: &str, inner: &str| {
        !outer.is_empty()
            && inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    };
    leads(refused, rejected) || leads(rejected, refused)
}

/// Findings of each kind that are shown; finding a place means to go through the text.
const FINDING_COUNT_MAX: usize = 100;
/// Rejections that are compared with what is missing.
const LOOKED_AT_MAX: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_cover_what_they_lead_to() {
        let check =
            |refused, rejected, expected| assert_eq!(covers(refused, rejected), expected, "{refused} {rejected}");
        check("a.b", "a.b", true);
        check("a.b", "a.b[1].c", true);
        check("a.b.typed_config", "a.b", true);
        check("a.b", "a.bc", false);
        check("a.b", "a.c", false);
        check("", "a", false);
    }
}
