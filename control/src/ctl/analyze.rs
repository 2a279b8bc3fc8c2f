//! `analyze` and `validate`: what is wrong in files, before torusd reads them.

use std::path::Path;

use serde_json::{Value, json};

use super::{CtlError, Files, Format, MeshFlags, Verdict, output};
use crate::analyze::analyze;
use crate::model::{Finding, Mesh, Severity};
use crate::push::finding_line;
use crate::source::Object;
use crate::source::folder::Folder;
use crate::validate::validate;

#[derive(clap::Args)]
pub(super) struct Flags {
    #[command(flatten)]
    files: Files,
    #[command(flatten)]
    mesh: MeshFlags,
    /// Lines, or one document
    #[arg(short, long, value_enum, default_value = "log")]
    output: Shape,
    /// Leave out messages: CODE=KIND NAMESPACE/NAME, where `*` stands for anything; the annotation
    /// `galley.istio.io/analyze-suppress: CODE,CODE` of an object does the same
    #[arg(short = 'S', long, value_name = "CODE=RESOURCE")]
    suppress: Vec<String>,
    /// Show messages of this level and worse
    #[arg(long, value_enum, default_value = "info", ignore_case = true)]
    output_threshold: Level,
    /// Exit with 1 at messages of this level and worse
    #[arg(long, value_enum, default_value = "error", ignore_case = true)]
    failure_threshold: Level,
    /// Objects of this namespace alone
    #[arg(short, long)]
    namespace: Option<String>,
    /// Objects of all namespaces, which is so unless --namespace says otherwise
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
    /// Folders are always read with all that is below them
    #[arg(short = 'R', long, hide = true)]
    recursive: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Shape {
    Log,
    Json,
    Yaml,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Level {
    Info,
    #[value(alias = "warn")]
    Warning,
    Error,
}

impl Level {
    fn includes(self, severity: Severity) -> bool {
        match self {
            Self::Info => true,
            Self::Warning => severity != Severity::Info,
            Self::Error => severity == Severity::Error,
        }
    }
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
    let options = flags.mesh.options()?;
    let mut objects = Vec::new();
    let mut told: Vec<(Severity, String, Value)> = Vec::new();
    for path in paths {
        let mut folder = Folder::new(path, |object| validate(object));
        folder.scan();
        told.extend(folder.findings().map(|finding| {
            let line = finding.line().to_string();
            let shown = json!({"code": "IST0106", "level": "Error", "message": finding.reason, "reference": line});
            (Severity::Error, line, shown)
        }));
        objects.extend_from_slice(folder.objects());
    }
    if depth == Depth::Meaning {
        let (_, mut findings) = Mesh::build(&objects, &options);
        let config = mesh_config(&objects, &options.root_namespace).unwrap_or_else(|| options.mesh_config.clone());
        findings.extend(analyze(&objects, &options, &config));
        findings.retain(|finding| flags.wants(finding, &objects));
        findings.sort_by(|one, other| (&one.place, one.code).cmp(&(&other.place, other.code)));
        told.extend(findings.iter().map(|finding| (finding.severity, finding_line(finding), document(finding))));
    }
    told.retain(|(severity, ..)| flags.output_threshold.includes(*severity));
    match flags.output {
        Shape::Log if told.is_empty() => {
            output::print(&format!("{} objects, nothing found\n", objects.len()))?;
        }
        Shape::Log => {
            for (_, line, _) in &told {
                output::print(&format!("{line}\n"))?;
            }
        }
        shape => {
            let all = told.iter().map(|(_, _, shown)| shown.clone()).collect();
            output::print_document(&all, if shape == Shape::Yaml { Format::Yaml } else { Format::Json })?;
        }
    }
    let is_bad = told.iter().any(|(severity, ..)| flags.failure_threshold.includes(*severity));
    Ok(if is_bad { Verdict::Findings } else { Verdict::Well })
}

impl Flags {
    fn wants(&self, finding: &Finding, objects: &[Object]) -> bool {
        if self.namespace.as_ref().is_some_and(|namespace| *namespace != finding.resource.namespace) {
            return false;
        }
        let of_object = objects.iter().filter(|object| object.resource == finding.resource);
        let mut annotated = of_object.filter_map(|object| object.annotations.get(SUPPRESS));
        let by_annotation =
            annotated.any(|codes| codes.split(',').map(str::trim).any(|code| code == "*" || code == finding.code));
        let resource = finding.resource.to_string();
        let by_flag = self.suppress.iter().any(|rule| match rule.split_once('=') {
            Some((code, pattern)) => (code == "*" || code == finding.code) && is_like(&resource, pattern),
            None => rule == finding.code,
        });
        !by_annotation && !by_flag
    }
}

/// True if `pattern`, in which `*` stands for any text, describes `text`.
fn is_like(text: &str, pattern: &str) -> bool {
    let Some((start, mut rest)) = pattern.split_once('*') else { return text == pattern };
    let Some(mut text) = text.strip_prefix(start) else { return false };
    while let Some((part, after)) = rest.split_once('*') {
        let Some((_, left)) = text.split_once(part) else { return false };
        (text, rest) = (left, after);
    }
    text.ends_with(rest)
}

/// A finding as istioctl writes it.
fn document(finding: &Finding) -> Value {
    let place = &finding.place;
    let level = match finding.severity {
        Severity::Error => "Error",
        Severity::Warning => "Warning",
        Severity::Info => "Info",
    };
    json!({
        "code": finding.code,
        "level": level,
        "message": finding.message,
        "origin": finding.resource.to_string(),
        "reference": format!("{}:{}:{}", place.file, place.line, place.column),
    })
}

/// The mesh configuration among the objects.
fn mesh_config(objects: &[Object], root_namespace: &str) -> Option<Value> {
    let map = objects.iter().find(|object| {
        object.resource.kind == "ConfigMap"
            && object.resource.name == "istio"
            && object.resource.namespace == root_namespace
    })?;
    serde_saphyr::from_str(map.content.get("data")?.get("mesh")?.as_str()?).ok()
}

const SUPPRESS: &str = "galley.istio.io/analyze-suppress";

#[cfg(test)]
mod tests {
    #[test]
    fn a_star_stands_for_any_text() {
        for (pattern, wanted) in [
            ("Gateway shop/edge", true),
            ("Gateway shop/*", true),
            ("*/edge", true),
            ("*", true),
            ("Gateway *e", true),
            ("Gateway other/*", false),
            ("*/other", false),
            ("Gateway shop/edg", false),
        ] {
            assert_eq!(super::is_like("Gateway shop/edge", pattern), wanted, "{pattern}");
        }
    }
}
