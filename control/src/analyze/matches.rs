//! Rules of virtual services that no request can reach.

use std::collections::HashMap;

use serde_json::Value;

use super::world::{ISTIO, World, finding, list};
use crate::model::{Finding, Severity};
use crate::source::Object;

/// IST0130, IST0131: rules and matches that earlier ones take everything from.
pub(super) fn unreachable(world: &World<'_>, findings: &mut Vec<Finding>) {
    for service in world.of(ISTIO, "VirtualService") {
        for kind in ["http", "tls", "tcp"] {
            rules(service, kind, findings);
        }
    }
}

fn rules(service: &Object, kind: &str, findings: &mut Vec<Finding>) {
    let mut first_of: HashMap<String, usize> = HashMap::new();
    let mut catch_all: Option<usize> = None;
    // Conditions on a prefix so far: the rule, the prefix, and what else must hold.
    let mut prefixes: Vec<(usize, String, Value)> = Vec::new();
    for (rule, route) in list(service.spec(), kind).iter().enumerate() {
        let path = format!("spec.{kind}[{rule}]");
        let mut unreachable = |reason: String| {
            let message = format!("{} rule {rule} is never used ({reason})", kind.to_uppercase());
            findings.push(finding(service, &path, Severity::Warning, "IST0130", message));
        };
        if let Some(earlier) = catch_all {
            unreachable(format!("rule {earlier} has no matches and takes everything"));
            continue;
        }
        let matches = list(route, "match");
        if matches.is_empty() {
            catch_all = Some(rule);
            continue;
        }
        let mut duplicates = 0;
        let mut told = Vec::new();
        for (index, condition) in matches.iter().enumerate() {
            let mut condition = condition.clone();
            if let Value::Object(fields) = &mut condition {
                fields.remove("name");
            }
            let key = canonical(&condition);
            if let Some(earlier) = first_of.get(&key) {
                duplicates += 1;
                told.push((index, *earlier, "duplicate"));
                continue;
            }
            first_of.insert(key, rule);
            let Some((prefix, rest)) = prefix_of(&condition) else { continue };
            let covered =
                prefixes.iter().find(|(_, shorter, less)| prefix.starts_with(shorter.as_str()) && holds(less, &rest));
            if let Some((earlier, _, _)) = covered {
                told.push((index, *earlier, "overlapping"));
            }
            prefixes.push((rule, prefix, rest));
        }
        if duplicates == matches.len() {
            unreachable("all its matches are used by prior rules".to_owned());
        }
        for (index, earlier, how) in told {
            let message = format!(
                "{} rule {rule} match {index} is not used ({how} match in rule {earlier})",
                kind.to_uppercase()
            );
            findings.push(finding(service, &format!("{path}.match[{index}]"), Severity::Info, "IST0131", message));
        }
    }
}

/// The prefix of the path, and every other condition.
fn prefix_of(condition: &Value) -> Option<(String, Value)> {
    let prefix = condition.get("uri")?.get("prefix")?.as_str()?.to_owned();
    let mut rest = condition.clone();
    rest.as_object_mut()?.remove("uri");
    Some((prefix, rest))
}

/// True if whatever meets `more` meets `less` as well.
fn holds(less: &Value, more: &Value) -> bool {
    let fields = less.as_object().into_iter().flatten();
    fields.into_iter().all(|(name, condition)| more.get(name) == Some(condition))
}

/// Equal conditions as equal text, in whatever order their fields were written.
fn canonical(value: &Value) -> String {
    match value {
        Value::Object(fields) => {
            let mut fields: Vec<String> =
                fields.iter().map(|(name, value)| format!("{name:?}:{}", canonical(value))).collect();
            fields.sort();
            format!("{{{}}}", fields.join(","))
        }
        Value::Array(elements) => format!("[{}]", elements.iter().map(canonical).collect::<Vec<_>>().join(",")),
        other => other.to_string(),
    }
}
