//! A structural schema (OpenAPI v3, as in CustomResourceDefinitions) against a value. Reasons are worded as an API server words them.

use regex::Regex;
use serde_json::Value;
use torus_xds::diagnostic::nearest;

use super::cel;
use crate::source::push_name;

/// One thing that is wrong.
pub(super) struct Fault {
    pub(super) path: String,
    pub(super) reason: String,
    pub(super) suggestion: Option<String>,
    /// Whether a rule found it; rules of what stands around it can be judged all the same.
    by_rule: bool,
}

/// Fills in what the schema gives by default, as an API server does before it judges.
pub(super) fn apply_defaults(value: &mut Value, schema: &Value) {
    match value {
        Value::Object(members) => {
            for (name, property) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
                if let (Some(default), false) = (property.get("default"), members.contains_key(name)) {
                    members.insert(name.clone(), default.clone());
                }
                if let Some(member) = members.get_mut(name) {
                    apply_defaults(member, property);
                }
            }
            if let Some(others) = schema.get("additionalProperties").filter(|others| others.is_object()) {
                members.values_mut().for_each(|member| apply_defaults(member, others));
            }
        }
        Value::Array(elements) => {
            if let Some(items) = schema.get("items") {
                elements.iter_mut().for_each(|element| apply_defaults(element, items));
            }
        }
        _ => {}
    }
}

/// Appends what is wrong with `value`, which stands at `path`.
pub(super) fn check(value: &Value, schema: &Value, path: &mut String, faults: &mut Vec<Fault>) {
    let before = faults.len();
    check_form(value, schema, path, faults);
    // Rules may rely on the form.
    if faults.iter().skip(before).all(|fault| fault.by_rule) {
        check_rules(value, schema, path, faults);
    }
}

fn check_form(value: &Value, schema: &Value, path: &mut String, faults: &mut Vec<Fault>) {
    let mut fault =
        |reason: String| faults.push(Fault { path: path.clone(), reason, suggestion: None, by_rule: false });
    let is_set = |name: &str| schema.get(name).and_then(Value::as_bool) == Some(true);
    if value.is_null() && is_set("nullable") {
        return;
    }
    let int_or_string = is_set("x-kubernetes-int-or-string") && (value.is_i64() || value.is_u64() || value.is_string());
    if let Some(wanted) = schema.get("type").and_then(Value::as_str).filter(|_| !int_or_string)
        && !is_of_type(value, wanted)
    {
        let found = type_of(value);
        fault(format!("Invalid value: \"{found}\": {path} in body must be of type {wanted}: \"{found}\""));
        return;
    }
    if let Some(allowed) = schema.get("enum").and_then(Value::as_array)
        && !allowed.contains(value)
    {
        let names: Vec<String> = allowed.iter().map(Value::to_string).collect();
        fault(format!("Unsupported value: {value}: supported values: {}", names.join(", ")));
    }
    let limit = |name: &str| schema.get(name).and_then(Value::as_f64);
    let count = |name: &str| schema.get(name).and_then(Value::as_u64).map(|count| count as usize);
    match value {
        Value::Number(number) => {
            let number = number.as_f64().unwrap_or_default();
            let (format_min, format_max) = match schema.get("format").and_then(Value::as_str) {
                Some("int32") => (Some(f64::from(i32::MIN)), Some(f64::from(i32::MAX))),
                Some("uint32") => (Some(0.0), Some(f64::from(u32::MAX))),
                _ => (None, None),
            };
            if let Some(min) = limit("minimum").or(format_min).filter(|min| number < *min) {
                fault(format!("Invalid value: {value}: {path} in body should be greater than or equal to {min}"));
            }
            if let Some(max) = limit("maximum").or(format_max).filter(|max| number > *max) {
                fault(format!("Invalid value: {value}: {path} in body should be less than or equal to {max}"));
            }
        }
        Value::String(text) => {
            let length = text.chars().count();
            if let Some(min) = count("minLength").filter(|min| length < *min) {
                fault(format!("Invalid value: {value}: {path} in body should be at least {min} chars long"));
            }
            if let Some(max) = count("maxLength").filter(|max| length > *max) {
                fault(format!("Too long: may not be more than {max} characters; {path} has {length}"));
            }
            if let Some(pattern) = schema.get("pattern").and_then(Value::as_str)
                && Regex::new(pattern).is_ok_and(|pattern| !pattern.is_match(text))
            {
                fault(format!("Invalid value: {value}: {path} in body should match '{pattern}'"));
            }
        }
        Value::Array(elements) => {
            if let Some(min) = count("minItems").filter(|min| elements.len() < *min) {
                fault(format!("Invalid value: {}: {path} in body should have at least {min} items", elements.len()));
            }
            if let Some(max) = count("maxItems").filter(|max| elements.len() > *max) {
                fault(format!("Too many: {}: must have at most {max} items", elements.len()));
            }
            check_list(elements, schema, path, faults);
        }
        Value::Object(members) => {
            if let Some(min) = count("minProperties").filter(|min| members.len() < *min) {
                fault(format!(
                    "Invalid value: {}: {path} in body should have at least {min} properties",
                    members.len()
                ));
            }
            if let Some(max) = count("maxProperties").filter(|max| members.len() > *max) {
                fault(format!("Too many: {}: must have at most {max} items", members.len()));
            }
            check_members(members, schema, path, faults);
        }
        Value::Null | Value::Bool(_) => {}
    }
    check_combined(value, schema, path, faults);
}

fn check_list(elements: &[Value], schema: &Value, path: &mut String, faults: &mut Vec<Fault>) {
    let length = path.len();
    let keys: Option<Vec<&str>> = match schema.get("x-kubernetes-list-type").and_then(Value::as_str) {
        Some("map") => {
            let keys = schema.get("x-kubernetes-list-map-keys").and_then(Value::as_array);
            Some(keys.into_iter().flatten().filter_map(Value::as_str).collect())
        }
        Some("set") => Some(Vec::new()),
        _ => None,
    };
    let mut seen: Vec<Value> = Vec::new();
    for (index, element) in elements.iter().enumerate() {
        path.push_str(&format!("[{index}]"));
        if let Some(items) = schema.get("items") {
            check(element, items, path, faults);
        }
        if let Some(keys) = &keys {
            let identity = if keys.is_empty() {
                element.clone()
            } else {
                keys.iter().map(|key| element.get(key).cloned().unwrap_or_default()).collect()
            };
            if seen.contains(&identity) {
                faults.push(Fault {
                    path: path.clone(),
                    reason: format!("Duplicate value: {identity}"),
                    suggestion: None,
                    by_rule: false,
                });
            } else {
                seen.push(identity);
            }
        }
        path.truncate(length);
    }
}

fn check_members(members: &serde_json::Map<String, Value>, schema: &Value, path: &mut String, faults: &mut Vec<Fault>) {
    let length = path.len();
    let required = schema.get("required").and_then(Value::as_array);
    for name in required.into_iter().flatten().filter_map(Value::as_str).filter(|name| !members.contains_key(*name)) {
        push_name(path, name);
        faults.push(Fault {
            path: path.clone(),
            reason: "Required value".to_owned(),
            suggestion: None,
            by_rule: false,
        });
        path.truncate(length);
    }
    let properties = schema.get("properties").and_then(Value::as_object);
    let additional = schema.get("additionalProperties");
    let keeps_unknown = schema.get("x-kubernetes-preserve-unknown-fields").and_then(Value::as_bool) == Some(true);
    for (name, member) in members {
        push_name(path, name);
        match (properties.and_then(|properties| properties.get(name)), additional) {
            (Some(schema), _) | (None, Some(schema @ Value::Object(_))) => check(member, schema, path, faults),
            (None, Some(Value::Bool(true))) => {}
            // A schema that lists nothing is a part of another, or takes anything.
            (None, _) if keeps_unknown || properties.is_none() => {}
            (None, _) => {
                let known = properties.into_iter().flat_map(serde_json::Map::keys).map(String::as_str);
                let suggestion = nearest(name, known).map(str::to_owned);
                faults.push(Fault {
                    path: path.clone(),
                    reason: "unknown field".to_owned(),
                    suggestion,
                    by_rule: false,
                });
            }
        }
        path.truncate(length);
    }
}

/// `allOf`, `anyOf`, `oneOf` and `not`, which in a structural schema only restrict what stands beside them.
fn check_combined(value: &Value, schema: &Value, path: &mut String, faults: &mut Vec<Fault>) {
    let list = |name: &str| schema.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let fits = |part: &Value| -> bool {
        let mut found = Vec::new();
        check_part(value, part, &mut path.clone(), &mut found);
        found.is_empty()
    };
    let mut reasons = Vec::new();
    if !list("allOf").iter().all(fits) {
        reasons.push("must validate all the schemas (allOf)");
    }
    let any = list("anyOf");
    if !any.is_empty() && !any.iter().any(fits) {
        reasons.push("must validate at least one schema (anyOf)");
    }
    let one = list("oneOf");
    if !one.is_empty() && one.iter().filter(|part| fits(part)).count() != 1 {
        reasons.push("must validate one and only one schema (oneOf)");
    }
    if schema.get("not").is_some_and(fits) {
        reasons.push("must not validate the schema (not)");
    }
    for reason in reasons {
        let reason = format!("Invalid value: \"{}\": {path} in body {reason}", type_of(value));
        faults.push(Fault { path: path.clone(), reason, suggestion: None, by_rule: false });
    }
}

/// Parts of a combination name some fields and are silent about others.
fn check_part(value: &Value, part: &Value, path: &mut String, faults: &mut Vec<Fault>) {
    let mut open = part.clone();
    if let Value::Object(members) = &mut open {
        members.insert("x-kubernetes-preserve-unknown-fields".to_owned(), Value::Bool(true));
    }
    check_form(value, &open, path, faults);
}

fn check_rules(value: &Value, schema: &Value, path: &str, faults: &mut Vec<Fault>) {
    let rules = schema.get("x-kubernetes-validations").and_then(Value::as_array);
    for rule in rules.into_iter().flatten() {
        let Some(text) = rule.get("rule").and_then(Value::as_str) else { continue };
        // A rule about changes has nothing to compare with.
        if text.contains("oldSelf") {
            continue;
        }
        let message = rule.get("message").and_then(Value::as_str);
        let reason = match cel::holds(text, value) {
            Ok(true) => continue,
            Ok(false) => message.map_or_else(|| format!("failed rule: {}", text.trim()), str::to_owned),
            Err(error) => format!("{}: {error}", message.unwrap_or_else(|| text.trim())),
        };
        let shown = type_of(value);
        faults.push(Fault {
            path: path.to_owned(),
            reason: format!("Invalid value: \"{shown}\": {reason}"),
            suggestion: None,
            by_rule: true,
        });
    }
}

fn is_of_type(value: &Value, wanted: &str) -> bool {
    match wanted {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        _ => true,
    }
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}
