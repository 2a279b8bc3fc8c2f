//! `analyze` and `validate`: what is wrong in files, before torusd reads them.

use std::path::Path;

use super::{CtlError, Files, Verdict, output};
use crate::model::{Mesh, MeshOptions, Severity};
use crate::push::finding_line;
use crate::source::folder::Folder;
use crate::validate::validate;

#[derive(clap::Args)]
pub(super) struct Flags {
    #[command(flatten)]
    files: Files,
}

/// How far a check goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Depth {
    /// Files are objects, and no two have one name.
    Form,
    /// And what they say makes sense together.
    Meaning,
}

pub(super) fn run(flags: &Flags, depth: Depth) -> Result<Verdict, CtlError> {
    let paths: Vec<&Path> = flags.files.paths.iter().chain(&flags.files.filename).map(|path| path.as_path()).collect();
    if paths.is_empty() {
        return Err(CtlError::Use(
            "no files: name a folder or a file, for instance: torusctl analyze mesh/".to_owned(),
        ));
    }
    let mut objects = Vec::new();
    let mut lines = Vec::new();
    for path in paths {
        let mut folder = Folder::new(path, |object| validate(object));
        folder.scan();
        lines.extend(folder.findings().map(|finding| (Severity::Error, finding.line().to_string())));
        objects.extend_from_slice(folder.objects());
    }
    if depth == Depth::Meaning {
        let (_, findings) = Mesh::build(&objects, &MeshOptions::default());
        lines.extend(findings.iter().map(|finding| (finding.severity, finding_line(finding))));
    }
    for (_, line) in &lines {
        output::print(&format!("{line}\n"))?;
    }
    let is_bad = lines.iter().any(|(severity, _)| *severity == Severity::Error);
    if lines.is_empty() {
        output::print(&format!("{} objects, nothing found\n", objects.len()))?;
    }
    Ok(if is_bad { Verdict::Findings } else { Verdict::Well })
}
