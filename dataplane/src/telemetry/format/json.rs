//! JSON formats: a template of fields, lists and texts. Source: SubstitutionFormatString.json_format.
//!
//! A text that is one operator keeps the operator's type (number, string, null); any other text becomes a string. Fields are
//! sorted by name, as in Envoy.

use envoy_types::pb::google::protobuf::{Struct, Value, value::Kind};

use super::FormatContext;
use super::operator::{Operator, Written};
use super::parse::{Piece, pieces};
use crate::config::parse::ParseContext;
use crate::config::reject::Refused;

/// A compiled template.
#[derive(Debug)]
pub(super) struct Template {
    root: Node,
    omit_empty: bool,
}

#[derive(Debug)]
enum Node {
    /// JSON text that is always the same.
    Constant(Box<str>),
    Null,
    Number(Operator),
    String(Operator),
    Mixed(Box<[Piece]>),
    /// `"name":` and what follows.
    Object(Box<[(Box<str>, Node)]>),
    Array(Box<[Node]>),
}

impl Template {
    /// Compiles `template`; `context` stands at it.
    pub(super) fn parse(template: &Struct, omit_empty: bool, context: &mut ParseContext) -> Result<Self, Refused> {
        Ok(Self { root: object(template, context)?, omit_empty })
    }

    /// Adds the object and a line break to `out`.
    pub(super) fn write(&self, context: &FormatContext<'_>, out: &mut Vec<u8>) {
        if self.write_node(&self.root, context, out) == Written::Nothing {
            out.extend_from_slice(b"{}");
        }
        out.push(b'\n');
    }

    /// `Nothing` where the node is left out, which only happens with `omit_empty_values`.
    fn write_node(&self, node: &Node, context: &FormatContext<'_>, out: &mut Vec<u8>) -> Written {
        let missing = |out: &mut Vec<u8>| {
            if self.omit_empty {
                return Written::Nothing;
            }
            out.extend_from_slice(b"null");
            Written::Value
        };
        match node {
            Node::Constant(text) => out.extend_from_slice(text.as_bytes()),
            Node::Null => return missing(out),
            Node::Number(operator) => {
                if operator.write(context, out) == Written::Nothing {
                    return missing(out);
                }
            }
            Node::String(operator) => {
                let start = out.len();
                out.push(b'"');
                if operator.write(context, out) == Written::Nothing {
                    out.truncate(start);
                    return missing(out);
                }
                escape(out, start + 1);
                out.push(b'"');
            }
            Node::Mixed(pieces) => {
                out.push(b'"');
                for piece in pieces {
                    match piece {
                        // Compiled with its escapes.
                        Piece::Literal(text) => out.extend_from_slice(text.as_bytes()),
                        Piece::Operator(operator) => {
                            let start = out.len();
                            match operator.write(context, out) {
                                Written::Value => escape(out, start),
                                Written::Nothing if self.omit_empty => {}
                                Written::Nothing => out.push(b'-'),
                            }
                        }
                    }
                }
                out.push(b'"');
            }
            Node::Object(fields) => {
                let start = out.len();
                out.push(b'{');
                let mut any = false;
                for (name, value) in fields {
                    let before = out.len();
                    if any {
                        out.push(b',');
                    }
                    out.extend_from_slice(name.as_bytes());
                    match self.write_node(value, context, out) {
                        Written::Value => any = true,
                        Written::Nothing => out.truncate(before),
                    }
                }
                if !any && self.omit_empty {
                    out.truncate(start);
                    return Written::Nothing;
                }
                out.push(b'}');
            }
            Node::Array(items) => {
                let start = out.len();
                out.push(b'[');
                let mut any = false;
                for item in items {
                    let before = out.len();
                    if any {
                        out.push(b',');
                    }
                    match self.write_node(item, context, out) {
                        Written::Value => any = true,
                        Written::Nothing => out.truncate(before),
                    }
                }
                if !any && self.omit_empty {
                    out.truncate(start);
                    return Written::Nothing;
                }
                out.push(b']');
            }
        }
        Written::Value
    }
}

fn object(fields: &Struct, context: &mut ParseContext) -> Result<Node, Refused> {
    let mut sorted: Vec<_> = fields.fields.iter().collect();
    sorted.sort_by(|a, b| a.0.cmp(b.0));
    let mut compiled = Vec::with_capacity(sorted.len());
    let mut refused = None;
    for (name, value) in sorted {
        match context.within(name, |context| node(value, context)) {
            Ok(value) => compiled.push((format!("{}:", quoted(name)).into(), value)),
            Err(why) => refused = Some(why),
        }
    }
    refused.map_or_else(|| Ok(Node::Object(compiled.into())), Err)
}

fn node(value: &Value, context: &mut ParseContext) -> Result<Node, Refused> {
    Ok(match &value.kind {
        None | Some(Kind::NullValue(_)) => Node::Null,
        Some(Kind::BoolValue(value)) => Node::Constant(value.to_string().into()),
        Some(Kind::NumberValue(number)) => Node::Constant(number.to_string().into()),
        Some(Kind::StructValue(fields)) => object(fields, context)?,
        Some(Kind::ListValue(list)) => Node::Array(context.each("", &list.values, node)?.into()),
        Some(Kind::StringValue(text)) => {
            let mut pieces =
                pieces(text).map_err(|wrong| context.problems.reject_with("", wrong.reason, wrong.suggestion))?;
            match (pieces.pop(), pieces.is_empty()) {
                (None, _) => Node::Constant("\"\"".into()),
                (Some(Piece::Literal(text)), true) => Node::Constant(quoted(&text).into()),
                (Some(Piece::Operator(operator)), true) if operator.is_number() => Node::Number(operator),
                (Some(Piece::Operator(operator)), true) => Node::String(operator),
                (Some(last), false) => {
                    pieces.push(last);
                    let escaped = pieces.into_iter().map(|piece| match piece {
                        Piece::Literal(text) => {
                            let quoted = quoted(&text);
                            Piece::Literal(quoted.get(1..quoted.len() - 1).unwrap_or_default().into())
                        }
                        operator => operator,
                    });
                    Node::Mixed(escaped.collect())
                }
            }
        }
    })
}

fn quoted(text: &str) -> String {
    let mut out = vec![b'"'];
    out.extend_from_slice(text.as_bytes());
    escape(&mut out, 1);
    out.push(b'"');
    // Escaping UTF-8 gives UTF-8.
    String::from_utf8(out).unwrap_or_default()
}

/// Escapes what stands in `out` from `start` on for use inside a JSON string, in place.
///
/// Source: RFC 8259 §7. Bytes that are no UTF-8 are taken as Latin-1, and then every escape is `\u00XX`, as in Envoy.
pub(super) fn escape(out: &mut Vec<u8>, start: usize) {
    let text = out.get(start..).unwrap_or_default();
    let plain = |byte: &u8| matches!(byte, 0x20..=0x7e) && *byte != b'"' && *byte != b'\\';
    if text.iter().all(plain) {
        return;
    }
    let is_utf8 = std::str::from_utf8(text).is_ok();
    let raw_len = text.len();
    let escaped_len: usize = text.iter().map(|byte| escaped_byte(*byte, is_utf8).1).sum();
    // From the back, so that no byte is overwritten before it was read.
    out.resize(start + escaped_len, 0);
    let mut write_end = start + escaped_len;
    for read in (start..start + raw_len).rev() {
        let Some(byte) = out.get(read).copied() else { continue };
        let (escaped, len) = escaped_byte(byte, is_utf8);
        write_end -= len;
        if let (Some(target), Some(source)) = (out.get_mut(write_end..write_end + len), escaped.get(..len)) {
            target.copy_from_slice(source);
        }
    }
}

/// The bytes for `byte` and how many they are.
fn escaped_byte(byte: u8, is_utf8: bool) -> ([u8; 6], usize) {
    let short = |letter: u8| ([b'\\', letter, 0, 0, 0, 0], 2);
    let hex = |digit: u8| b"0123456789abcdef".get(usize::from(digit)).copied().unwrap_or(b'0');
    let long = |byte: u8| ([b'\\', b'u', b'0', b'0', hex(byte >> 4), hex(byte & 0xf)], 6);
    match byte {
        b'"' | b'\\' if is_utf8 => short(byte),
        0x08 if is_utf8 => short(b'b'),
        0x09 if is_utf8 => short(b't'),
        0x0a if is_utf8 => short(b'n'),
        0x0c if is_utf8 => short(b'f'),
        0x0d if is_utf8 => short(b'r'),
        0x00..0x20 => long(byte),
        b'"' | b'\\' => long(byte),
        0x7f.. if !is_utf8 => long(byte),
        _ => ([byte, 0, 0, 0, 0, 0], 1),
    }
}
