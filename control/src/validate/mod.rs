//! What an API server checks before it stores an object: the structural schema of its kind, and the CEL rules in it.

mod cel;
mod schema;

use std::collections::HashMap;
use std::sync::LazyLock;

use serde_json::Value;
use torus_xds::Diagnostic;

use crate::source::Object;

/// Everything that the schema of the object's kind has against it; nothing for kinds that have none here.
pub fn validate(object: &Object) -> Vec<Diagnostic> {
    let resource = &object.resource;
    let Some(versions) = SCHEMAS.get(&(resource.group.as_str(), resource.kind.as_str())) else { return Vec::new() };
    let Some((_, schema)) = versions.iter().find(|(names, _)| names.contains(&object.version)) else {
        let known: Vec<&str> = versions.iter().flat_map(|(names, _)| names.iter().map(String::as_str)).collect();
        let reason = format!("{} has no version {}; known: {}", resource.kind, object.version, known.join(", "));
        return vec![object.diagnose("apiVersion", reason)];
    };
    let mut content = object.content.clone();
    if let Value::Object(members) = &mut content {
        // Looked at by the reader; a status is whatever a controller wrote.
        for name in ["apiVersion", "kind", "metadata", "status"] {
            members.remove(name);
        }
    }
    schema::apply_defaults(&mut content, schema);
    let mut findings = Vec::new();
    schema::check(&content, schema, &mut String::new(), &mut findings);
    let mut told: Vec<Diagnostic> = Vec::new();
    for schema::Fault { path, reason, suggestion, .. } in findings {
        told.push(Diagnostic { suggestion, ..object.diagnose(&path, reason) });
    }
    told
}

/// Schemas by group and kind, each with the versions that share it.
type Schemas = HashMap<(&'static str, &'static str), Vec<(Vec<String>, Value)>>;

static SCHEMAS: LazyLock<Schemas> = LazyLock::new(|| {
    let mut schemas = Schemas::new();
    for line in include_str!("../../schema/crds.jsonl").lines() {
        // The file is part of the program; a test reads every line.
        let Ok(mut entry) = serde_json::from_str::<Value>(line) else { continue };
        let schema = entry.get_mut("schema").map(Value::take).unwrap_or_default();
        let versions = entry.get("versions").and_then(Value::as_array).into_iter().flatten();
        let versions = versions.filter_map(|version| version.as_str().map(str::to_owned)).collect();
        let name = |field: &str| -> &'static str {
            let key = format!("\"{field}\":\"");
            let rest = line.split_once(key.as_str()).map_or("", |(_, rest)| rest);
            rest.split_once('"').map_or("", |(name, _)| name)
        };
        schemas.entry((name("group"), name("kind"))).or_default().push((versions, schema));
    }
    schemas
});

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::read;

    fn told(text: &str) -> Vec<String> {
        let objects = read("a.yaml", text).unwrap();
        objects.iter().flat_map(validate).map(|finding| finding.line().to_string()).collect()
    }

    #[test]
    fn every_schema_is_read() {
        let lines = include_str!("../../schema/crds.jsonl").lines();
        lines.for_each(|line| drop(serde_json::from_str::<Value>(line).unwrap()));
        assert!(SCHEMAS.contains_key(&("networking.istio.io", "VirtualService")));
    }

    #[test]
    fn faults_are_told_where_they_stand() {
        let gateway = "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: edge}\nspec:\n  servers:\n  - port: {number: 80, name: http, protocol: HTTP}\n    hostz: ['*']\n";
        let found = told(gateway);
        assert!(
            found.iter().any(|line| line.starts_with("a.yaml:7:5: spec.servers[0].hostz: unknown field")
                && line.ends_with("did you mean `hosts`?")),
            "{found:?}"
        );
        assert!(told(&gateway.replace("hostz", "hosts")).is_empty());
        assert!(
            told(&gateway.replace("hostz", "hosts").replace("number: 80", "number: x"))[0]
                .contains("must be of type integer")
        );
    }

    #[test]
    fn rules_see_defaults() {
        let route = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: reviews}\nspec:\n  parentRefs: [{group: '', kind: Service, name: reviews, port: 9080}]\n  rules:\n  - backendRefs: [{name: reviews-v1, port: 9080}]\n";
        assert_eq!(told(route), Vec::<String>::new());
        let portless = told(&route.replace("reviews-v1, port: 9080", "reviews-v1"));
        assert!(portless.iter().any(|line| line.contains("Must have port for Service reference")), "{portless:?}");
    }

    /// The samples that Istio's tutorials apply first, and its realistic sets of configuration.
    #[test]
    fn istios_samples_are_accepted() {
        let root = std::env::var_os("TORUS_CORPUS").map_or_else(
            || std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/corpus"),
            std::path::PathBuf::from,
        );
        let mut folders = vec![root.join("istio-samples"), root.join("istio-config-samples")];
        if !folders.iter().all(|folder| folder.is_dir()) {
            eprintln!("skipped: no corpus at ../shared/corpus, and TORUS_CORPUS is not set");
            return;
        }
        let (mut files, mut refused) = (0, Vec::new());
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|extension| extension == "yaml") {
                    files += 1;
                    let text = std::fs::read_to_string(&path).unwrap();
                    let objects = read(&path.to_string_lossy(), &text).unwrap();
                    let found = objects.iter().flat_map(validate);
                    refused.extend(found.map(|finding| finding.line().to_string()));
                }
            }
        }
        println!("{files} files of samples, {} findings", refused.len());
        assert!(files > 0 && refused.is_empty(), "{}", refused.join("\n"));
    }

    /// The documents of Istio's own validation tests: how many are judged as expected.
    #[test]
    fn istios_own_documents() {
        let root = std::env::var_os("TORUS_CORPUS").map_or_else(
            || std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/corpus"),
            std::path::PathBuf::from,
        );
        let Ok(files) = std::fs::read_dir(root.join("istio-crd-validation")) else {
            eprintln!("skipped: no corpus at {}", root.display());
            return;
        };
        let (mut right, mut all, mut accepted, mut wrong) = (0, 0, 0, Vec::new());
        for file in files.flatten() {
            let text = std::fs::read_to_string(file.path()).unwrap();
            let name = file.file_name().to_string_lossy().into_owned();
            // The expected error is a field of the document that the test removes.
            for document in text.split("\n---") {
                let is_error = |line: &&str| line.starts_with("_err:");
                let expected = document.lines().find(is_error).map(|line| line.trim_start_matches("_err:").trim());
                let expected =
                    expected.map(|text| text.trim_matches(['\'', '"']).replace("''", "'").replace("\\\"", "\""));
                let body: Vec<&str> = document.lines().filter(|line| !is_error(line)).collect();
                let Ok(objects) = read(&name, &body.join("\n")) else {
                    all += 1;
                    wrong.push(format!("{name}: not read"));
                    continue;
                };
                for object in &objects {
                    all += 1;
                    let found: Vec<String> = validate(object)
                        .iter()
                        .map(|finding| format!("{}: {}", finding.path, finding.reason))
                        .collect();
                    let is_right = match &expected {
                        Some(expected) => found.iter().any(|line| line.contains(expected.as_str())),
                        None => found.is_empty(),
                    };
                    let reason = ACCEPTED.iter().find(|(place, _)| name == *place && expected.is_none());
                    if is_right {
                        right += 1;
                    } else if let (Some((_, reason)), [_]) = (reason, found.as_slice()) {
                        accepted += 1;
                        println!("accepted: {name}: {}: {reason}", object.resource);
                    } else {
                        wrong.push(format!("{name}: {}: expected {expected:?}, found {found:?}", object.resource));
                    }
                }
            }
        }
        println!("istio-crd-validation: {right} of {all} documents, {accepted} accepted differences");
        assert!(wrong.is_empty(), "{right} of {all}:\n{}", wrong.join("\n"));
    }

    /// Files with one document that is refused here and accepted there, and why.
    const ACCEPTED: [(&str, &str); 2] = [
        ("reqauth-valid.yaml", "an unknown field is an error here as in kubectl; an API server drops it"),
        (
            "serviceentry-valid.yaml",
            "`[001:db8::]` without quotes is a mapping in YAML 1.2; Go's reader takes it for text",
        ),
    ];
}
