//! Text to objects: multi-document YAML or JSON as `kubectl apply -f` takes it, kind `List` included.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Number, Value};
use torus_xds::diagnostic::{self, Severity};
use torus_xds::document::{Content, Node};
use torus_xds::{Diagnostic, Document, Format};

use super::object::{Object, Place, ResourceName};

/// The objects in `text`, or everything that is wrong with it. A document with nothing in it is no object.
pub fn read(file: &str, text: &str) -> Result<Vec<Object>, Vec<Diagnostic>> {
    let file: Arc<str> = file.into();
    let mut objects = Vec::new();
    let mut findings = Vec::new();
    let is_json = file.ends_with(".json");
    let parts = if is_json { vec![Part { text, line: 0 }] } else { split(text) };
    for part in parts {
        let format = if is_json { Format::Json } else { Format::Yaml };
        match Document::parse(&file, part.text.to_owned(), format) {
            Ok(document) => {
                let lines = Lines::new(&file, part);
                read_root(document.root(), &lines, &mut objects, &mut findings);
            }
            Err(mut finding) => {
                if let Some(place) = &mut finding.place {
                    place.line = place.line.saturating_add(part.line);
                }
                findings.push(finding);
            }
        }
    }
    if findings.is_empty() { Ok(objects) } else { Err(findings) }
}

/// One document of a file, and how many lines stand before it.
#[derive(Clone, Copy)]
struct Part<'a> {
    text: &'a str,
    line: u32,
}

/// Cuts at lines that begin with `---`, as Kubernetes does; what else stands on such a line is a comment or nothing.
fn split(text: &str) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    let (mut start, mut start_line, mut at, mut line) = (0, 0, 0, 0);
    for piece in text.split_inclusive('\n') {
        let separator = piece.strip_prefix("---").is_some_and(|rest| {
            let rest = rest.trim();
            rest.is_empty() || rest.starts_with('#')
        });
        if separator {
            parts.push(Part { text: text.get(start..at).unwrap_or_default(), line: start_line });
            start = at + piece.len();
            start_line = line + 1;
        }
        at += piece.len();
        line += 1;
    }
    parts.push(Part { text: text.get(start..).unwrap_or_default(), line: start_line });
    parts
}

/// Where the lines of a part begin, so that placing a node is a binary search.
struct Lines<'a> {
    file: &'a Arc<str>,
    part: Part<'a>,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    fn new(file: &'a Arc<str>, part: Part<'a>) -> Self {
        let newlines = part.text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1);
        Self { file, part, starts: std::iter::once(0).chain(newlines).collect() }
    }

    fn place(&self, node: Node<'_>) -> Place {
        let offset = node.offset().min(self.part.text.len());
        let line = self.starts.partition_point(|start| *start <= offset).saturating_sub(1);
        let start = self.starts.get(line).copied().unwrap_or_default();
        let column = self.part.text.get(start..offset).unwrap_or_default().chars().count() + 1;
        Place {
            file: self.file.clone(),
            line: u32::try_from(line + 1).unwrap_or(u32::MAX).saturating_add(self.part.line),
            column: u32::try_from(column).unwrap_or(u32::MAX),
        }
    }

    fn error(&self, node: Node<'_>, path: &str, reason: impl Into<String>) -> Diagnostic {
        let place = self.place(node);
        let source_line = self.starts.get((place.line - self.part.line) as usize - 1).and_then(|start| {
            let rest = self.part.text.get(*start..)?;
            rest.lines().next().map(Into::into)
        });
        Diagnostic {
            severity: Severity::Error,
            file: self.file.clone(),
            place: Some(diagnostic::Place {
                line: place.line,
                column: place.column,
                source_line: source_line.unwrap_or_default(),
            }),
            path: path.to_owned(),
            reason: reason.into(),
            suggestion: None,
        }
    }
}

fn read_root(root: Node<'_>, lines: &Lines<'_>, objects: &mut Vec<Object>, findings: &mut Vec<Diagnostic>) {
    match root.content() {
        Content::Null => return,
        Content::Mapping => {}
        _ => {
            let reason =
                format!("a Kubernetes object is a mapping with apiVersion, kind and metadata; this is {}", root.noun());
            findings.push(lines.error(root, "", reason));
            return;
        }
    }
    let is_list = root.get("kind").and_then(Node::text).is_some_and(|kind| kind.ends_with("List"));
    match root.get("items") {
        Some(items) if is_list => {
            for item in items.elements() {
                read_root(item, lines, objects, findings);
            }
        }
        _ => match object(root, lines) {
            Ok(object) => objects.push(object),
            Err(finding) => findings.push(finding),
        },
    }
}

fn object(root: Node<'_>, lines: &Lines<'_>) -> Result<Object, Diagnostic> {
    let text = |parent: Node<'_>, name: &str, path: &str| -> Result<String, Diagnostic> {
        match parent.get(name).map(|node| (node, node.text())) {
            Some((_, Some(text))) if !text.is_empty() => Ok(text.to_owned()),
            Some((node, _)) => Err(lines.error(node, path, "must be text and not empty")),
            None => Err(lines.error(parent, path, "is missing; every object has apiVersion, kind and metadata.name")),
        }
    };
    let api_version = text(root, "apiVersion", "apiVersion")?;
    let kind = text(root, "kind", "kind")?;
    let Some(metadata) = root.get("metadata").filter(|node| node.content() == Content::Mapping) else {
        return Err(lines.error(root, "metadata", "is missing; every object has apiVersion, kind and metadata.name"));
    };
    let name = text(metadata, "name", "metadata.name")?;
    let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
    let namespace = if is_of_cluster(&kind) {
        String::new()
    } else {
        let written = metadata.get("namespace").and_then(Node::text).filter(|namespace| !namespace.is_empty());
        written.unwrap_or(NAMESPACE_DEFAULT).to_owned()
    };
    let texts = |name: &str| -> BTreeMap<String, String> {
        let pairs = metadata.get(name).into_iter().flat_map(Node::pairs);
        pairs.filter_map(|(key, _, value)| Some((key.to_owned(), value.text()?.to_owned()))).collect()
    };
    let mut places = BTreeMap::new();
    let content = value(root, &mut String::new(), lines, &mut places);
    Ok(Object {
        resource: ResourceName { group: group.to_owned(), kind, namespace, name },
        version: version.to_owned(),
        labels: texts("labels"),
        annotations: texts("annotations"),
        content,
        place: lines.place(root),
        places: Arc::new(places),
    })
}

/// The node as JSON, noting where each field stands: a member of a mapping at its name, an element of a list at its start.
fn value(node: Node<'_>, path: &mut String, lines: &Lines<'_>, places: &mut BTreeMap<String, Place>) -> Value {
    match node.content() {
        Content::Null => Value::Null,
        Content::Quoted(text) => Value::String(text.to_owned()),
        Content::Plain(text) => plain(text),
        Content::Sequence => {
            let length = path.len();
            let elements = node.elements().enumerate().map(|(index, element)| {
                path.truncate(length);
                path.push_str(&format!("[{index}]"));
                places.insert(path.clone(), lines.place(element));
                value(element, path, lines, places)
            });
            let list = elements.collect();
            path.truncate(length);
            Value::Array(list)
        }
        Content::Mapping => {
            let length = path.len();
            let mut members = Map::new();
            for (name, key, member) in node.pairs() {
                path.truncate(length);
                push_name(path, name);
                places.insert(path.clone(), lines.place(key));
                let member = value(member, path, lines, places);
                members.insert(name.to_owned(), member);
            }
            path.truncate(length);
            Value::Object(members)
        }
    }
}

/// Extends `path` by a member: `.name`, or `["name"]` where the name would be read as several.
pub(crate) fn push_name(path: &mut String, name: &str) {
    if name.contains(['.', '[', ']', '"', '/']) || name.is_empty() {
        path.push_str(&format!("[\"{name}\"]"));
    } else {
        if !path.is_empty() {
            path.push('.');
        }
        path.push_str(name);
    }
}

/// A scalar without quotes as Kubernetes' YAML reader takes it, which knows YAML 1.1's words for truth.
fn plain(text: &str) -> Value {
    match text {
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => return Value::Bool(true),
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => return Value::Bool(false),
        _ => {}
    }
    number(text).map_or_else(|| Value::String(text.to_owned()), Value::Number)
}

fn number(text: &str) -> Option<Number> {
    let digits = text.trim_start_matches(['-', '+']);
    if text.len() - digits.len() > 1 || !digits.starts_with(|first: char| first.is_ascii_digit() || first == '.') {
        return None;
    }
    if let Some(hexadecimal) = digits.strip_prefix("0x") {
        return (digits.len() == text.len()).then(|| i64::from_str_radix(hexadecimal, 16).ok().map(Number::from))?;
    }
    let octal = digits.strip_prefix("0o").or_else(|| digits.strip_prefix('0').filter(|rest| !rest.is_empty()));
    if let Some(octal) = octal.filter(|rest| rest.bytes().all(|byte| byte.is_ascii_digit())) {
        return (digits.len() == text.len()).then(|| i64::from_str_radix(octal, 8).ok().map(Number::from))?;
    }
    if let Ok(whole) = text.parse::<i64>() {
        return Some(whole.into());
    }
    if let Ok(whole) = text.parse::<u64>() {
        return Some(whole.into());
    }
    let fraction = digits.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'e' | b'E' | b'+' | b'-'));
    if fraction { text.parse::<f64>().ok().and_then(Number::from_f64) } else { None }
}

/// Whether objects of this kind belong to no namespace.
fn is_of_cluster(kind: &str) -> bool {
    matches!(
        kind,
        "Namespace"
            | "Node"
            | "GatewayClass"
            | "CustomResourceDefinition"
            | "ClusterRole"
            | "ClusterRoleBinding"
            | "MutatingWebhookConfiguration"
            | "ValidatingWebhookConfiguration"
            | "PersistentVolume"
            | "StorageClass"
            | "IngressClass"
            | "PriorityClass"
            | "ClusterTrustBundle"
    )
}

/// What `kubectl` assumes for an object that names no namespace.
pub const NAMESPACE_DEFAULT: &str = "default";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_lists_and_places() {
        let text = "# shop\napiVersion: v1\nkind: Service\nmetadata:\n  name: cart\n  labels: {app.kubernetes.io/name: cart}\nspec:\n  ports:\n  - port: 80\n    name: http\n---\n\n---\nkind: List\napiVersion: v1\nitems:\n- apiVersion: networking.istio.io/v1\n  kind: Gateway\n  metadata: {name: edge, namespace: istio-system}\n- apiVersion: v1\n  kind: Namespace\n  metadata: {name: shop}\n";
        let objects = read("shop.yaml", text).unwrap();
        let names: Vec<_> = objects
            .iter()
            .map(|object| {
                format!(
                    "{} {}/{} {}",
                    object.resource.kind, object.resource.namespace, object.resource.name, object.place.line
                )
            })
            .collect();
        assert_eq!(names, ["Service default/cart 2", "Gateway istio-system/edge 17", "Namespace /shop 20"]);
        let cart = &objects[0];
        assert_eq!(cart.labels["app.kubernetes.io/name"], "cart");
        let place = cart.place_of("spec.ports[0].port");
        assert_eq!((place.line, place.column), (9, 5));
        assert_eq!(cart.place_of("spec.ports[0].targetPort").line, 9);
        assert_eq!(cart.content["spec"]["ports"][0]["port"], 80);
        assert_eq!(objects[1].place_of("metadata.namespace").line, 19);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        let check = |text: &str, wanted: &str| {
            let findings = read("a.yaml", text).unwrap_err();
            assert_eq!(findings[0].line().to_string(), wanted);
        };
        check(
            "apiVersion: v1\nkind: Service\nmetadata: {}\n",
            "a.yaml:3:11: metadata.name: is missing; every object has apiVersion, kind and metadata.name",
        );
        check(
            "---\n---\n- a\n",
            "a.yaml:3:1: a Kubernetes object is a mapping with apiVersion, kind and metadata; this is a list",
        );
        assert_eq!(read("a.yaml", "a: b\n---\na: [\n").unwrap_err().len(), 2);
        assert!(read("a.yaml", "apiVersion: v1\n---\na: [b\n").unwrap_err()[1].place.as_ref().unwrap().line >= 3);
    }

    #[test]
    fn scalars_as_kubernetes_reads_them() {
        let check = |text: &str, wanted: Value| assert_eq!(plain(text), wanted, "{text}");
        check("on", true.into());
        check("15", 15.into());
        check("-1.5", (-1.5).into());
        check("0644", 420.into());
        check("1s", "1s".into());
        check("1.2.3.4", "1.2.3.4".into());
        check("001:db8::", "001:db8::".into());
        check("-", "-".into());
        check("+1", 1.into());
    }
}
