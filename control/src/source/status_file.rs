//! What is said of objects, written beside the folder that they came from.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use super::ResourceName;

/// A file with the status of objects: one document an object, as `kubectl get -o yaml` would show it without its spec.
///
/// It is beside the folder, not in it, so that writing it is no change of intent; and replaced as a whole.
pub struct StatusFile {
    path: PathBuf,
    written: String,
    /// When each condition last changed between true and false: object, place in its status, word and time.
    since: HashMap<(ResourceName, String), (String, String)>,
}

impl StatusFile {
    /// The file for `folder`: `mesh/` has `mesh.status.yaml`.
    pub fn beside(folder: &Path) -> Self {
        let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
        let mut name = folder.file_name().unwrap_or_default().to_owned();
        name.push(".status.yaml");
        Self::at(folder.with_file_name(name))
    }

    /// The file at `path`.
    pub fn at(path: PathBuf) -> Self {
        Self { path, written: String::new(), since: HashMap::new() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes all statuses (object, API version, status), unless nothing changed. Where there is none, no file is made.
    pub fn write<'a>(
        &mut self,
        statuses: impl Iterator<Item = (&'a ResourceName, &'a str, &'a Value)>,
        now: SystemTime,
    ) -> io::Result<()> {
        let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let now = torus_xds::json::rfc3339(i64::try_from(seconds).unwrap_or(i64::MAX), 0);
        let mut since = HashMap::new();
        let mut text = String::new();
        for (resource, version, status) in statuses {
            let mut status = status.clone();
            self.stamp(resource, "", &mut status, &now, &mut since);
            let api =
                if resource.group.is_empty() { version.to_owned() } else { format!("{}/{version}", resource.group) };
            let mut metadata = Map::new();
            metadata.insert("name".to_owned(), resource.name.as_str().into());
            if !resource.namespace.is_empty() {
                metadata.insert("namespace".to_owned(), resource.namespace.as_str().into());
            }
            let document = json!({"apiVersion": api, "kind": resource.kind, "metadata": metadata, "status": status});
            let document = serde_saphyr::to_string(&document).map_err(io::Error::other)?;
            // Writing to a string cannot fail.
            let _ = write!(text, "---\n{document}");
        }
        self.since = since;
        if text == self.written {
            return Ok(());
        }
        let mut scratch = self.path.clone().into_os_string();
        scratch.push(".new");
        std::fs::write(&scratch, &text)?;
        std::fs::rename(&scratch, &self.path)?;
        self.written = text;
        Ok(())
    }

    /// Adds `lastTransitionTime` to every condition in `value`.
    fn stamp(
        &self,
        resource: &ResourceName,
        path: &str,
        value: &mut Value,
        now: &str,
        since: &mut HashMap<(ResourceName, String), (String, String)>,
    ) {
        match value {
            Value::Array(items) => {
                for (index, item) in items.iter_mut().enumerate() {
                    self.stamp(resource, &format!("{path}[{index}]"), item, now, since);
                }
            }
            Value::Object(fields) => {
                let text = |name: &str| fields.get(name).and_then(Value::as_str).map(str::to_owned);
                if let (Some(kind), Some(word), false) =
                    (text("type"), text("status"), fields.contains_key("lastTransitionTime"))
                {
                    let key = (resource.clone(), format!("{path}/{kind}"));
                    let known = self.since.get(&key).filter(|(known, _)| *known == word);
                    let time = known.map_or(now, |(_, time)| time).to_owned();
                    fields.insert("lastTransitionTime".to_owned(), time.as_str().into());
                    since.insert(key, (word, time));
                }
                for (name, value) in fields.iter_mut() {
                    self.stamp(resource, &format!("{path}.{name}"), value, now, since);
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_change_with_the_word_only() {
        let scratch = tempfile::tempdir().unwrap();
        let mut file = StatusFile::beside(&scratch.path().join("mesh"));
        let name = ResourceName {
            group: "gateway.networking.k8s.io".to_owned(),
            kind: "Gateway".to_owned(),
            namespace: "shop".to_owned(),
            name: "edge".to_owned(),
        };
        let mut at = |seconds: u64, word: &str, reason: &str| {
            let status = json!({"conditions": [{"type": "Accepted", "status": word, "reason": reason}]});
            let now = UNIX_EPOCH + Duration::from_secs(seconds);
            file.write(std::iter::once((&name, "v1", &status)), now).unwrap();
            std::fs::read_to_string(file.path()).unwrap()
        };
        let first = at(0, "True", "Accepted");
        assert!(first.contains("apiVersion: gateway.networking.k8s.io/v1\n"), "{first}");
        assert!(first.contains("1970-01-01T00:00:00Z"), "{first}");
        assert!(at(60, "True", "Other").contains("1970-01-01T00:00:00Z"));
        assert!(at(120, "False", "Other").contains("1970-01-01T00:02:00Z"));
        assert!(scratch.path().join("mesh.status.yaml").exists());
    }

    #[test]
    fn nothing_to_say_makes_no_file() {
        let scratch = tempfile::tempdir().unwrap();
        let mut file = StatusFile::beside(&scratch.path().join("mesh"));
        file.write(std::iter::empty(), UNIX_EPOCH).unwrap();
        assert!(!file.path().exists());
    }
}
