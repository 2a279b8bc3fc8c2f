//! Paths like `/api/{version}/**`, and rewrites that use their variables.
//!
//! Source: envoy.extensions.path.match.uri_template.v3 and envoy.extensions.path.rewrite.uri_template.v3. `*` is one segment,
//! `**` the rest with its slashes, `{name}` one segment with a name, `{name=a/*}` what the inner pattern takes.

use super::pattern::{Part, Pattern, RegexMemory, Substitution};

/// A compiled template.
#[derive(Debug)]
pub(super) struct UriTemplate {
    pattern: Pattern,
    source: Box<str>,
    variables: Vec<Box<str>>,
}

impl UriTemplate {
    /// Compiles `template`; the error says what is wrong.
    pub(super) fn new(template: &str) -> Result<Self, String> {
        let (source, variables) = compile(template)?;
        let pattern = Pattern::full(&source).map_err(|error| error.to_string())?;
        Ok(Self { pattern, source: source.into(), variables })
    }

    /// Whether `path`, without its query, is one that the template describes.
    pub(super) fn matches(&self, path: &[u8], memory: &mut RegexMemory) -> bool {
        self.pattern.matches(path, memory)
    }

    /// Compiles `path_template_rewrite`, which may use this template's variables.
    pub(super) fn rewrite(&self, rewrite: &str) -> Result<Substitution, String> {
        if !rewrite.starts_with('/') || rewrite.contains("//") {
            return Err("must begin with / and must not contain //".into());
        }
        let mut parts = Vec::new();
        let mut rest = rewrite;
        while !rest.is_empty() {
            let (literal, after) = rest.split_once('{').map_or((rest, None), |(literal, after)| (literal, Some(after)));
            if !literal.is_empty() {
                if !literal.bytes().all(|byte| byte == b'/' || is_literal(byte)) {
                    return Err(format!("`{literal}` has characters that a path does not"));
                }
                parts.push(Part::Text(literal.as_bytes().into()));
            }
            let Some(after) = after else { break };
            let (name, after) = after.split_once('}').ok_or("`{` without `}`")?;
            let variable = self.variables.iter().position(|variable| **variable == *name);
            parts.push(Part::Group(1 + variable.ok_or_else(|| format!("the path template has no variable `{name}`"))?));
            rest = after;
        }
        Substitution::whole(&self.source, parts).map_err(|error| error.to_string())
    }
}

/// The pattern of `template` and the names of its variables, in order.
fn compile(template: &str) -> Result<(String, Vec<Box<str>>), String> {
    let Some(mut rest) = template.strip_prefix('/') else { return Err("must begin with /".into()) };
    let mut pattern = String::from("/");
    let mut variables: Vec<Box<str>> = Vec::new();
    let mut after_text_glob = false;
    while !rest.is_empty() {
        if rest.starts_with('*') {
            rest = glob(rest, &mut pattern, &mut after_text_glob)?;
        } else if let Some(variable) = rest.strip_prefix('{') {
            let (inside, after) = variable.split_once('}').ok_or("`{` without `}`")?;
            let (name, inner) = inside.split_once('=').map_or((inside, None), |(name, inner)| (name, Some(inner)));
            check_variable(name, &variables)?;
            variables.push(name.into());
            pattern.push('(');
            inner_pattern(inner.unwrap_or("*"), &mut pattern, &mut after_text_glob)?;
            pattern.push(')');
            rest = after;
        } else {
            rest = literal(rest, &mut pattern)?;
        }
        match rest.as_bytes() {
            [] => {}
            [b'/', ..] => {
                pattern.push('/');
                rest = rest.get(1..).unwrap_or_default();
            }
            _ => {
                rest = literal(rest, &mut pattern)?;
                if !rest.is_empty() {
                    return Err("nothing may follow a suffix".into());
                }
            }
        }
    }
    Ok((pattern, variables))
}

fn check_variable(name: &str, known: &[Box<str>]) -> Result<(), String> {
    let starts_well = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic());
    if !starts_well || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
        return Err(format!("`{name}` is no variable name"));
    }
    if name.len() > VARIABLE_NAME_BYTES_MAX {
        return Err(format!("variable name `{name}` is longer than {VARIABLE_NAME_BYTES_MAX}"));
    }
    if known.iter().any(|other| **other == *name) {
        return Err(format!("variable `{name}` occurs twice"));
    }
    if known.len() >= VARIABLE_COUNT_MAX {
        return Err(format!("more than {VARIABLE_COUNT_MAX} variables"));
    }
    Ok(())
}

fn inner_pattern(inner: &str, pattern: &mut String, after_text_glob: &mut bool) -> Result<(), String> {
    if inner.is_empty() {
        return Err("empty variable pattern".into());
    }
    let mut rest = inner;
    while !rest.is_empty() {
        rest = if rest.starts_with('*') { glob(rest, pattern, after_text_glob)? } else { literal(rest, pattern)? };
        if let Some(after) = rest.strip_prefix('/').filter(|after| !after.is_empty()) {
            pattern.push('/');
            rest = after;
        } else if !rest.is_empty() {
            return Err(format!("`{inner}` is no variable pattern"));
        }
    }
    Ok(())
}

fn glob<'a>(rest: &'a str, pattern: &mut String, after_text_glob: &mut bool) -> Result<&'a str, String> {
    if *after_text_glob {
        return Err("nothing but literals may follow **".into());
    }
    Ok(match rest.strip_prefix("**") {
        Some(after) => {
            *after_text_glob = true;
            pattern.push_str(&format!("[{LITERAL_CLASS}/]*"));
            after
        }
        None => {
            pattern.push_str(&format!("[{LITERAL_CLASS}]+"));
            rest.get(1..).unwrap_or_default()
        }
    })
}

fn literal<'a>(rest: &'a str, pattern: &mut String) -> Result<&'a str, String> {
    let (literal, _) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    if literal.is_empty() || !literal.bytes().all(is_literal) {
        return Err(format!("`{literal}` is no literal segment"));
    }
    for byte in literal.chars() {
        if !byte.is_ascii_alphanumeric() {
            pattern.push('\\');
        }
        pattern.push(byte);
    }
    Ok(rest.get(literal.len()..).unwrap_or_default())
}

/// RFC 3986 appendix A, `pchar` without `*` and `=`.
fn is_literal(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~%!$&'()+,;:@".contains(&byte)
}

const LITERAL_CLASS: &str = r"a-zA-Z0-9\-._~%!$&'()+,;:@";

/// Source: Envoy, uri_template: at most so many variables.
const VARIABLE_COUNT_MAX: usize = 5;

/// Source: Envoy, uri_template: longest variable name.
const VARIABLE_NAME_BYTES_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_match_and_rewrite() {
        let check = |template: &str, rewrite: &str, path: &str, expect: Option<&str>| {
            let template = UriTemplate::new(template).unwrap();
            let mut memory = RegexMemory::default();
            let matched = template.matches(path.as_bytes(), &mut memory);
            assert_eq!(matched, expect.is_some(), "{path}");
            let Some(expect) = expect else { return };
            let mut out = Vec::new();
            template.rewrite(rewrite).unwrap().replace_all(path.as_bytes(), &mut memory, &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), expect, "{path}");
        };
        check("/u/{a}/{b=**}.m", "/w/{b}/{a}", "/u/x/y/z.m", Some("/w/y/z/x"));
        check("/u/{a}/{b=**}.m", "/w/{b}/{a}", "/u/x.m", None);
        check("/*/{b}", "/{b}", "/x/y", Some("/y"));
        check("/*/{b}", "/{b}", "/x/", None);
        check("/{b=x/*}/z", "/{b}", "/x/y/z", Some("/x/y"));
        check("/a.b/**", "/n", "/a.b/", Some("/n"));
        check("/a.b/**", "/n", "/axb/", None);
        check("/a/", "/n", "/a/", Some("/n"));
        check("/", "/n", "/", Some("/n"));
    }

    #[test]
    fn bad_templates_are_refused() {
        for template in [
            "a",
            "/{",
            "/{a",
            "/{1}",
            "/{a}/{a}",
            "/**/*",
            "/{a=}",
            "/{a=*b}",
            "/a//b",
            "/a b",
            "/{a}x/y",
            "/{toolongvariablename}",
        ] {
            assert!(UriTemplate::new(template).is_err(), "{template}");
        }
        let template = UriTemplate::new("/{a}").unwrap();
        for rewrite in ["a", "//", "/{b}", "/{a", "/ "] {
            assert!(template.rewrite(rewrite).is_err(), "{rewrite}");
        }
    }
}
