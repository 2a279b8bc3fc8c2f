//! Findings of the parse functions, shown with the file, line and column that they are about.

use torus_xds::{Diagnostic, Encoded};

use super::reject::{Rejected, Severity};

/// `rejected` with its place in the documents that `encoded` was made from.
pub fn place(rejected: &Rejected, encoded: &Encoded) -> Diagnostic {
    let suggestion = rejected.suggestion.as_deref().map(str::to_owned);
    let finding = encoded.diagnose(&rejected.path, rejected.reason.to_string(), suggestion);
    match rejected.severity {
        Severity::Error => finding,
        Severity::Warning => finding.into_warning(),
    }
}
