//! `validate`: what is wrong in files, before torusd reads them.

use std::path::Path;

use super::{CtlError, Files, Verdict, output};
use crate::source::folder::Folder;
use crate::validate::validate;

#[derive(clap::Args)]
pub(super) struct Flags {
    #[command(flatten)]
    files: Files,
}

pub(super) fn run(flags: &Flags) -> Result<Verdict, CtlError> {
    let paths: Vec<&Path> = flags.files.paths.iter().chain(&flags.files.filename).map(|path| path.as_path()).collect();
    if paths.is_empty() {
        return Err(CtlError::Use(
            "no files: name a folder or a file, for instance: torusctl validate mesh/".to_owned(),
        ));
    }
    let mut objects = Vec::new();
    let mut lines = Vec::new();
    for path in paths {
        let mut folder = Folder::new(path, |object| validate(object));
        folder.scan();
        lines.extend(folder.findings().map(|finding| finding.line().to_string()));
        objects.extend_from_slice(folder.objects());
    }
    for line in &lines {
        output::print(&format!("{line}\n"))?;
    }
    let is_bad = !lines.is_empty();
    if lines.is_empty() {
        output::print(&format!("{} objects, nothing found\n", objects.len()))?;
    }
    Ok(if is_bad { Verdict::Findings } else { Verdict::Well })
}
