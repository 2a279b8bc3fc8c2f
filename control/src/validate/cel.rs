//! The part of the Common Expression Language that rules in CustomResourceDefinitions use. Source: github.com/google/cel-spec.

use std::collections::HashMap;
use std::net::IpAddr;

use regex::Regex;
use serde_json::Value;

/// Whether `rule` holds for `this`, which it calls `self`; or why that cannot be told.
pub(super) fn holds(rule: &str, this: &Value) -> Result<bool, String> {
    let mut parser = Parser { tokens: tokens(rule)?, at: 0, depth: 0 };
    let expression = parser.ternary()?;
    if parser.at < parser.tokens.len() {
        return Err("the rule goes on after its end".to_owned());
    }
    let mut scope = HashMap::from([("self".to_owned(), Term::Json(this.clone()))]);
    expression.evaluate(&mut scope)?.truth()
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Name(String),
    Text(String),
    Number(serde_json::Number),
    Sign(&'static str),
}

const SIGNS: [&str; 24] = [
    "&&", "||", "==", "!=", "<=", ">=", "<", ">", "+", "-", "*", "/", "%", "!", "?", ":", "(", ")", "[", "]", ".", ",",
    "{", "}",
];

fn tokens(rule: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut rest = rule.trim_start();
    while let Some(first) = rest.chars().next() {
        let raw = rest.strip_prefix('r').filter(|after| after.starts_with(['"', '\'']));
        if let Some(quoted) = raw.or(Some(rest)).filter(|text| text.starts_with(['"', '\''])) {
            let (text, after) = text(quoted, raw.is_some())?;
            tokens.push(Token::Text(text));
            rest = after;
        } else if first.is_ascii_digit() {
            let end = rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(rest.len());
            let (number, after) = rest.split_at(end);
            let whole = number.parse::<i64>().ok().map(serde_json::Number::from);
            let number = whole.or_else(|| number.parse().ok().and_then(serde_json::Number::from_f64));
            tokens.push(Token::Number(number.ok_or("not a number")?));
            rest = after;
        } else if first.is_ascii_alphabetic() || first == '_' {
            let end = rest.find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_').unwrap_or(rest.len());
            let (name, after) = rest.split_at(end);
            tokens.push(Token::Name(name.to_owned()));
            rest = after;
        } else {
            let sign = SIGNS.into_iter().find(|sign| rest.starts_with(sign));
            let sign = sign.ok_or_else(|| format!("`{first}` is not understood"))?;
            tokens.push(Token::Sign(sign));
            rest = rest.strip_prefix(sign).unwrap_or_default();
        }
        rest = rest.trim_start();
    }
    Ok(tokens)
}

/// A text literal, and what follows it.
fn text(quoted: &str, raw: bool) -> Result<(String, &str), String> {
    for quote in ["\"\"\"", "'''", "\"", "'"] {
        let Some(inner) = quoted.strip_prefix(quote) else { continue };
        let mut text = String::new();
        let mut rest = inner;
        while let Some(letter) = rest.chars().next() {
            if let Some(after) = rest.strip_prefix(quote) {
                return Ok((text, after));
            }
            let mut letters = rest.chars();
            letters.next();
            if letter == '\\' && !raw {
                text.push(match letters.next() {
                    Some('n') => '\n',
                    Some('t') => '\t',
                    Some(other) => other,
                    None => break,
                });
            } else {
                text.push(letter);
            }
            rest = letters.as_str();
        }
        return Err("a text has no end".to_owned());
    }
    Err("not a text".to_owned())
}

#[derive(Debug)]
enum Expression {
    Literal(Value),
    List(Vec<Expression>),
    Name(String),
    Member(Box<Expression>, String),
    Index(Box<Expression>, Box<Expression>),
    Call(Option<Box<Expression>>, String, Vec<Expression>),
    Not(Box<Expression>),
    Negative(Box<Expression>),
    Binary(&'static str, Box<Expression>, Box<Expression>),
    Ternary(Box<Expression>, Box<Expression>, Box<Expression>),
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
    depth: usize,
}

impl Parser {
    fn take(&mut self, sign: &str) -> bool {
        let found = matches!(self.tokens.get(self.at), Some(Token::Sign(known)) if *known == sign);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, sign: &str) -> Result<(), String> {
        if self.take(sign) { Ok(()) } else { Err(format!("`{sign}` was expected")) }
    }

    fn ternary(&mut self) -> Result<Expression, String> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err("nested too deep".to_owned());
        }
        let condition = self.binary(0)?;
        let whole = if self.take("?") {
            let yes = self.ternary()?;
            self.expect(":")?;
            let no = self.ternary()?;
            Expression::Ternary(condition.into(), yes.into(), no.into())
        } else {
            condition
        };
        self.depth -= 1;
        Ok(whole)
    }

    fn binary(&mut self, level: usize) -> Result<Expression, String> {
        const LEVELS: [&[&str]; 5] =
            [&["||"], &["&&"], &["==", "!=", "<=", ">=", "<", ">", "in"], &["+", "-"], &["*", "/", "%"]];
        let Some(signs) = LEVELS.get(level) else { return self.unary() };
        let mut left = self.binary(level + 1)?;
        loop {
            let found = signs.iter().copied().find(|sign| match self.tokens.get(self.at) {
                Some(Token::Sign(known)) => known == sign,
                Some(Token::Name(name)) => name == "in" && *sign == "in",
                _ => false,
            });
            let Some(sign) = found else { return Ok(left) };
            self.at += 1;
            let right = self.binary(level + 1)?;
            left = Expression::Binary(sign, left.into(), right.into());
        }
    }

    fn unary(&mut self) -> Result<Expression, String> {
        let mut signs = Vec::new();
        loop {
            if self.take("!") {
                signs.push('!');
            } else if self.take("-") {
                signs.push('-');
            } else {
                break;
            }
        }
        let mut expression = self.postfix()?;
        for sign in signs.into_iter().rev() {
            expression =
                if sign == '!' { Expression::Not(expression.into()) } else { Expression::Negative(expression.into()) };
        }
        Ok(expression)
    }

    fn postfix(&mut self) -> Result<Expression, String> {
        let mut expression = self.primary()?;
        loop {
            if self.take(".") {
                let name = self.name()?;
                expression = if self.take("(") {
                    Expression::Call(Some(expression.into()), name, self.list(")")?)
                } else {
                    Expression::Member(expression.into(), unescape(&name))
                };
            } else if self.take("[") {
                let index = self.ternary()?;
                self.expect("]")?;
                expression = Expression::Index(expression.into(), index.into());
            } else {
                return Ok(expression);
            }
        }
    }

    fn primary(&mut self) -> Result<Expression, String> {
        if self.take("(") {
            let inner = self.ternary()?;
            self.expect(")")?;
            return Ok(inner);
        }
        if self.take("[") {
            return Ok(Expression::List(self.list("]")?));
        }
        if self.take("{") {
            // Rules have the empty map only, as what to take in place of a field that is missing.
            self.expect("}")?;
            return Ok(Expression::Literal(Value::Object(serde_json::Map::new())));
        }
        let token = self.tokens.get(self.at).cloned().ok_or("the rule ends early")?;
        self.at += 1;
        Ok(match token {
            Token::Text(text) => Expression::Literal(text.into()),
            Token::Number(number) => Expression::Literal(Value::Number(number)),
            Token::Name(name) => match name.as_str() {
                "true" => Expression::Literal(true.into()),
                "false" => Expression::Literal(false.into()),
                "null" => Expression::Literal(Value::Null),
                _ if self.take("(") => Expression::Call(None, name, self.list(")")?),
                _ => Expression::Name(name),
            },
            Token::Sign(sign) => return Err(format!("`{sign}` stands where a value was expected")),
        })
    }

    fn name(&mut self) -> Result<String, String> {
        match self.tokens.get(self.at) {
            Some(Token::Name(name)) => {
                self.at += 1;
                Ok(name.clone())
            }
            _ => Err("a name was expected".to_owned()),
        }
    }

    fn list(&mut self, end: &str) -> Result<Vec<Expression>, String> {
        let mut list = Vec::new();
        while !self.take(end) {
            list.push(self.ternary()?);
            if !self.take(",") {
                self.expect(end)?;
                break;
            }
        }
        Ok(list)
    }
}

/// Names that are words of the language are written `__in__`, and `__namespace__`.
fn unescape(name: &str) -> String {
    name.strip_prefix("__").and_then(|name| name.strip_suffix("__")).unwrap_or(name).to_owned()
}

#[derive(Clone, Debug, PartialEq)]
enum Term {
    Json(Value),
    /// In nanoseconds.
    Duration(i128),
}

impl Term {
    fn truth(self) -> Result<bool, String> {
        match self {
            Self::Json(Value::Bool(truth)) => Ok(truth),
            _ => Err("not true or false".to_owned()),
        }
    }

    fn text(self) -> Result<String, String> {
        match self {
            Self::Json(Value::String(text)) => Ok(text),
            _ => Err("not a text".to_owned()),
        }
    }

    fn json(self) -> Result<Value, String> {
        match self {
            Self::Json(value) => Ok(value),
            Self::Duration(_) => Err("a duration is out of place".to_owned()),
        }
    }

    fn number(&self) -> Option<f64> {
        match self {
            Self::Json(value) => value.as_f64(),
            Self::Duration(nanos) => Some(*nanos as f64),
        }
    }

    /// What a loop over the term visits.
    fn elements(self) -> Result<Vec<Value>, String> {
        match self {
            Self::Json(Value::Array(elements)) => Ok(elements),
            Self::Json(Value::Object(members)) => Ok(members.into_iter().map(|(name, _)| name.into()).collect()),
            _ => Err("not a list or a map".to_owned()),
        }
    }

    fn same(&self, other: &Self) -> bool {
        match (self.number(), other.number()) {
            (Some(one), Some(other)) => one == other,
            _ => self == other,
        }
    }
}

type Scope = HashMap<String, Term>;

fn truth(value: bool) -> Term {
    Term::Json(Value::Bool(value))
}

impl Expression {
    fn evaluate(&self, scope: &mut Scope) -> Result<Term, String> {
        Ok(match self {
            Self::Literal(value) => Term::Json(value.clone()),
            Self::List(list) => {
                let elements: Result<Vec<Value>, String> =
                    list.iter().map(|element| element.evaluate(scope)?.json()).collect();
                Term::Json(Value::Array(elements?))
            }
            Self::Name(name) => scope.get(name).cloned().ok_or_else(|| format!("`{name}` is not known"))?,
            Self::Member(of, name) => {
                let of = of.evaluate(scope)?.json()?;
                Term::Json(of.get(name.as_str()).cloned().ok_or_else(|| format!("no such key: {name}"))?)
            }
            Self::Index(of, index) => {
                let of = of.evaluate(scope)?.json()?;
                let index = index.evaluate(scope)?.json()?;
                let found = match &index {
                    Value::String(name) => of.get(name.as_str()),
                    index => index.as_u64().and_then(|index| of.get(usize::try_from(index).ok()?)),
                };
                Term::Json(found.cloned().ok_or_else(|| format!("no such element: {index}"))?)
            }
            Self::Not(inner) => truth(!inner.evaluate(scope)?.truth()?),
            Self::Negative(inner) => {
                let number = inner.evaluate(scope)?.number().ok_or("not a number")?;
                Term::Json(serde_json::Number::from_f64(-number).map_or(Value::Null, Value::Number))
            }
            Self::Ternary(condition, yes, no) => {
                if condition.evaluate(scope)?.truth()? {
                    yes.evaluate(scope)?
                } else {
                    no.evaluate(scope)?
                }
            }
            Self::Binary(sign, left, right) => binary(sign, left, right, scope)?,
            Self::Call(of, name, arguments) => call(of.as_deref(), name, arguments, scope)?,
        })
    }
}

fn binary(sign: &str, left: &Expression, right: &Expression, scope: &mut Scope) -> Result<Term, String> {
    if matches!(sign, "&&" | "||") {
        // Either side may decide, even if the other fails.
        let decisive = sign == "||";
        let left = left.evaluate(scope).and_then(Term::truth);
        if left == Ok(decisive) {
            return Ok(truth(decisive));
        }
        let right = right.evaluate(scope).and_then(Term::truth);
        return if right == Ok(decisive) { Ok(truth(decisive)) } else { Ok(truth(left? && right?)) };
    }
    let (left, right) = (left.evaluate(scope)?, right.evaluate(scope)?);
    Ok(match sign {
        "==" => truth(left.same(&right)),
        "!=" => truth(!left.same(&right)),
        "in" => match right {
            Term::Json(Value::Object(members)) => truth(members.contains_key(&left.text()?)),
            list => truth(list.elements()?.into_iter().any(|element| Term::Json(element).same(&left))),
        },
        "+" => match (&left, &right) {
            (Term::Json(Value::String(one)), Term::Json(Value::String(other))) => {
                Term::Json(format!("{one}{other}").into())
            }
            _ => arithmetic(sign, &left, &right)?,
        },
        "-" | "*" | "/" | "%" => arithmetic(sign, &left, &right)?,
        _ => {
            let order = match (&left, &right) {
                (Term::Json(Value::String(one)), Term::Json(Value::String(other))) => one.cmp(other),
                _ => {
                    let order = left.number().zip(right.number()).and_then(|(one, other)| one.partial_cmp(&other));
                    order.ok_or("these cannot be compared")?
                }
            };
            truth(match sign {
                "<" => order.is_lt(),
                "<=" => order.is_le(),
                ">" => order.is_gt(),
                _ => order.is_ge(),
            })
        }
    })
}

fn arithmetic(sign: &str, left: &Term, right: &Term) -> Result<Term, String> {
    let whole = |term: &Term| match term {
        Term::Json(value) => value.as_i64(),
        Term::Duration(_) => None,
    };
    let (one, other) = whole(left).zip(whole(right)).ok_or("not whole numbers")?;
    let result = match sign {
        "+" => one.checked_add(other),
        "-" => one.checked_sub(other),
        "*" => one.checked_mul(other),
        "/" => one.checked_div(other),
        _ => one.checked_rem(other),
    };
    Ok(Term::Json(result.ok_or("the result has no place in 64 bits")?.into()))
}

fn call(of: Option<&Expression>, name: &str, arguments: &[Expression], scope: &mut Scope) -> Result<Term, String> {
    if let (None, "has", [Expression::Member(of, name)]) = (of, name, arguments) {
        let of = of.evaluate(scope)?.json()?;
        return Ok(truth(of.get(name.as_str()).is_some()));
    }
    if let (Some(list), [Expression::Name(variable), body]) = (of, arguments)
        && matches!(name, "all" | "exists" | "exists_one" | "filter" | "map")
    {
        return comprehend(list, name, variable, body, scope);
    }
    // format.dns1123Label().validate(text).hasValue(): a value is a complaint.
    if let (Some(Expression::Call(_, format, _)), "validate", [text]) = (of, name, arguments) {
        let text = text.evaluate(scope)?.text()?;
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let is_label =
            (1..=63).contains(&text.len()) && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-');
        return if format == "dns1123Label" {
            Ok(truth(!is_label))
        } else {
            Err(format!("format {format} is not known"))
        };
    }
    let mut values = Vec::new();
    if let Some(of) = of {
        values.push(of.evaluate(scope)?);
    }
    for argument in arguments {
        values.push(argument.evaluate(scope)?);
    }
    let mut values = values.into_iter();
    let first = values.next().ok_or("an argument is missing")?;
    let second = values.next();
    let two_texts = |first: Term, second: Option<Term>| -> Result<(String, String), String> {
        Ok((first.text()?, second.ok_or("an argument is missing")?.text()?))
    };
    Ok(match name {
        "size" => Term::Json(match first.json()? {
            Value::String(text) => text.chars().count().into(),
            Value::Array(elements) => elements.len().into(),
            Value::Object(members) => members.len().into(),
            _ => return Err("this has no size".to_owned()),
        }),
        "startsWith" => two_texts(first, second).map(|(text, start)| truth(text.starts_with(&start)))?,
        "endsWith" => two_texts(first, second).map(|(text, end)| truth(text.ends_with(&end)))?,
        "contains" => two_texts(first, second).map(|(text, part)| truth(text.contains(&part)))?,
        "matches" => {
            let (text, pattern) = two_texts(first, second)?;
            truth(Regex::new(&pattern).map_err(|error| error.to_string())?.is_match(&text))
        }
        "split" => {
            let (text, separator) = two_texts(first, second)?;
            Term::Json(text.split(separator.as_str()).map(Value::from).collect())
        }
        "substring" => {
            let text = first.text()?;
            let bound = |term: Option<Term>| {
                term.and_then(|term| term.json().ok()?.as_u64()).and_then(|at| usize::try_from(at).ok())
            };
            let start = bound(second).ok_or("substring needs a start")?;
            let length = text.chars().count();
            let end = bound(values.next()).unwrap_or(length);
            if start > end || end > length {
                return Err("index out of range".to_owned());
            }
            Term::Json(text.chars().skip(start).take(end - start).collect::<String>().into())
        }
        "int" => match first.json()? {
            Value::String(text) => Term::Json(text.parse::<i64>().map_err(|error| error.to_string())?.into()),
            number => Term::Json(number.as_f64().map(|number| number as i64).ok_or("not a number")?.into()),
        },
        "string" => match first.json()? {
            Value::String(text) => Term::Json(text.into()),
            other => Term::Json(other.to_string().into()),
        },
        "duration" => Term::Duration(duration(&first.text()?)?),
        "isIP" => truth(first.text()?.parse::<IpAddr>().is_ok()),
        "isURL" => truth(is_url(&first.text()?)),
        "url" => {
            let text = first.text()?;
            if !is_url(&text) {
                return Err("not a URL".to_owned());
            }
            Term::Json(text.into())
        }
        "getScheme" => {
            let text = first.text()?;
            Term::Json(text.split_once(':').map_or("", |(scheme, _)| scheme).into())
        }
        "hasValue" => first,
        _ => return Err(format!("function {name} is not known")),
    })
}

fn comprehend(
    list: &Expression,
    name: &str,
    variable: &str,
    body: &Expression,
    scope: &mut Scope,
) -> Result<Term, String> {
    let elements = list.evaluate(scope)?.elements()?;
    let outer = scope.remove(variable);
    let mut count = 0;
    let mut kept = Vec::new();
    let total = elements.len();
    let mut failed = None;
    for element in elements {
        scope.insert(variable.to_owned(), Term::Json(element.clone()));
        match body.evaluate(scope) {
            Ok(Term::Json(value)) if name == "map" => kept.push(value),
            Ok(Term::Json(Value::Bool(true))) => {
                count += 1;
                kept.push(element);
            }
            Ok(Term::Json(Value::Bool(false))) => {}
            Ok(_) => failed = Some("not true or false".to_owned()),
            Err(error) => failed = Some(error),
        }
    }
    scope.remove(variable);
    if let Some(outer) = outer {
        scope.insert(variable.to_owned(), outer);
    }
    match (failed, name) {
        (Some(_), "exists") if count > 0 => Ok(truth(true)),
        (Some(error), _) => Err(error),
        (None, "all") => Ok(truth(count == total)),
        (None, "exists") => Ok(truth(count > 0)),
        (None, "exists_one") => Ok(truth(count == 1)),
        (None, _) => Ok(Term::Json(Value::Array(kept))),
    }
}

fn is_url(text: &str) -> bool {
    let scheme = text.split_once(':').map(|(scheme, rest)| {
        let named = scheme.starts_with(|first: char| first.is_ascii_alphabetic())
            && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'));
        named && !rest.is_empty()
    });
    // RFC 3986, section 2.1: a percent sign begins two hexadecimal digits.
    let is_escaped = |after: &str| after.len() >= 2 && after.bytes().take(2).all(|byte| byte.is_ascii_hexdigit());
    let escapes = text.split('%').skip(1).all(is_escaped);
    scheme.unwrap_or(text.starts_with('/'))
        && escapes
        && !text.contains(|letter: char| letter.is_whitespace() || letter.is_control())
}

/// A duration as Go writes it, in nanoseconds: `1h30m`, `0.5s`.
fn duration(text: &str) -> Result<i128, String> {
    let bad = || format!("{text:?} is not a duration");
    let (sign, mut rest) = text.strip_prefix('-').map_or((1.0, text), |rest| (-1.0, rest));
    if rest == "0" {
        return Ok(0);
    }
    let mut nanos = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.').ok_or_else(bad)?;
        let (number, after) = rest.split_at(end);
        let units = [("ns", 1.0), ("us", 1e3), ("ms", 1e6), ("s", 1e9), ("m", 6e10), ("h", 3.6e12)];
        let (unit, factor) = units.into_iter().find(|(unit, _)| after.starts_with(unit)).ok_or_else(bad)?;
        nanos += number.parse::<f64>().map_err(|_| bad())? * factor;
        rest = after.strip_prefix(unit).ok_or_else(bad)?;
    }
    if text.is_empty() { Err(bad()) } else { Ok((nanos * sign) as i128) }
}

/// The deepest rule has about ten levels.
const DEPTH_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rules_as_custom_resources_have_them() {
        let check = |rule: &str, this: Value, wanted: bool| assert_eq!(holds(rule, &this), Ok(wanted), "{rule} {this}");
        check("0 < self && self <= 65535", json!(80), true);
        check("0 < self && self <= 65535", json!(70000), false);
        check("(has(self.a) ? 1 : 0) + (has(self.b) ? 1 : 0) <= 1", json!({"a": 1, "b": 2}), false);
        check("duration(self) >= duration('1ms')", json!("1m0.5s"), true);
        check("duration(self) >= duration('1ms')", json!("10us"), false);
        check("self.all(key, !key.contains(\"*\"))", json!({"app": "x", "a*": "y"}), false);
        check("self.all(l1, self.exists_one(l2, l1.n == l2.n))", json!([{"n": 1}, {"n": 1}]), false);
        check("url(self).getScheme() in [\"http\", \"https\"]", json!("oci://x"), false);
        check("isURL(self)", json!("http://a.example/%20"), true);
        check("isURL(self)", json!("http://#%blah$#@"), false);
        check("self.startsWith(\"unix://\") ? self.substring(7, 8) == \"/\" : true", json!("unix:///x"), true);
        check("self.matches(r\"\"\"^\\.a$\"\"\")", json!(".a"), true);
        check("!has(self.__namespace__) || self.__namespace__ == 'x'", json!({"namespace": "x"}), true);
        check("self.missing || true", json!({}), true);
        check("self == 1 || self == 2 && false", json!(1), true);
        assert!(holds("self.missing", &json!({})).is_err());
        assert!(holds("self ==", &json!({})).is_err());
    }
}
