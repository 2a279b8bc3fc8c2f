//! A YAML or JSON document as a compact tree of nodes that know their place.
//!
//! Nodes lie in one vector in document order: a collection is followed by its children, and knows where they end. A scalar is a range
//! of the source, or of `decoded` where the source spells it with escapes or folds. So a document costs 16 bytes a node beside its text.

use std::fmt;
use std::sync::Arc;

use crate::diagnostic::{Diagnostic, Place};
use crate::schema::is_json_name;

mod json;
#[cfg(test)]
mod tests;
mod yaml;

/// How a text document is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// YAML 1.2, with the scalar rules of Envoy's loader.
    Yaml,
    /// JSON (RFC 8259).
    Json,
}

/// A parsed document.
pub struct Document {
    name: Arc<str>,
    format: Format,
    source: String,
    decoded: String,
    nodes: Vec<RawNode>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct RawNode {
    shape: Shape,
    /// Byte offset in the source.
    start: u32,
    /// Scalar: where the text starts, in the source or in `decoded`. Collection: how many elements or pairs.
    first: u32,
    /// Scalar: where the text ends. Collection: index of the node after the last child.
    end: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    Null,
    Plain { decoded: bool },
    Quoted { decoded: bool },
    Sequence,
    Mapping,
}

/// One node of a document.
#[derive(Clone, Copy)]
pub struct Node<'a> {
    document: &'a Document,
    index: u32,
}

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content<'a> {
    /// `null`, `~` or nothing.
    Null,
    /// A scalar without quotes: its reader decides what it is.
    Plain(&'a str),
    /// Text.
    Quoted(&'a str),
    /// A list.
    Sequence,
    /// Names with values.
    Mapping,
}

impl Document {
    /// Parses `source`, which `name` (a file, a flag) supplied.
    pub fn parse(name: &str, source: String, format: Format) -> Result<Self, Diagnostic> {
        let name: Arc<str> = name.into();
        if source.len() > SOURCE_BYTES_MAX {
            return Err(Diagnostic::error(name, "", format!("larger than {SOURCE_BYTES_MAX} bytes")));
        }
        let mut document = Self { name, format, source, decoded: String::new(), nodes: Vec::new() };
        let parsed = match format {
            Format::Yaml => yaml::parse(&document.source),
            Format::Json => json::parse(&document.source),
        };
        match parsed {
            Ok(tree) => {
                document.nodes = tree.nodes;
                document.decoded = tree.decoded;
                Ok(document)
            }
            Err(SyntaxError { offset, reason }) => {
                let place = document.place_at(offset);
                Err(Diagnostic { place: Some(place), ..Diagnostic::error(document.name.clone(), "", reason) })
            }
        }
    }

    /// The file or flag that the document came from.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// How the document is written.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The outermost node.
    pub fn root(&self) -> Node<'_> {
        Node { document: self, index: 0 }
    }

    /// Line and column of what `path` names, or of the nearest that encloses it.
    pub fn locate(&self, path: &str) -> Option<Place> {
        locate(&[self], path).map(|(_, place)| place)
    }

    fn place_at(&self, offset: usize) -> Place {
        let offset = offset.min(self.source.len());
        let before = self.source.get(..offset).unwrap_or(&self.source);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
        let column = before.get(line_start..).unwrap_or_default().chars().count() + 1;
        let rest = self.source.get(line_start..).unwrap_or_default();
        let source_line = rest.lines().next().unwrap_or_default();
        // A document of one endless line is not repeated for every finding.
        let cut =
            source_line.char_indices().nth(column + SOURCE_LINE_CHARS_MAX).map_or(source_line.len(), |(at, _)| at);
        Place {
            line: u32::try_from(line).unwrap_or(u32::MAX),
            column: u32::try_from(column).unwrap_or(u32::MAX),
            source_line: source_line.get(..cut).unwrap_or_default().into(),
        }
    }

    fn raw(&self, index: u32) -> RawNode {
        const NOTHING: RawNode = RawNode { shape: Shape::Null, start: 0, first: 0, end: 0 };
        self.nodes.get(index as usize).copied().unwrap_or(NOTHING)
    }

    fn text(&self, node: RawNode, decoded: bool) -> &str {
        let buffer = if decoded { &self.decoded } else { &self.source };
        buffer.get(node.first as usize..node.end as usize).unwrap_or_default()
    }

    fn after(&self, index: u32) -> u32 {
        match self.raw(index).shape {
            Shape::Sequence | Shape::Mapping => self.raw(index).end,
            _ => index + 1,
        }
    }
}

impl fmt::Debug for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Document").field("name", &self.name).field("nodes", &self.nodes.len()).finish_non_exhaustive()
    }
}

impl<'a> Node<'a> {
    /// The document that the node is part of.
    pub fn document(self) -> &'a Document {
        self.document
    }

    /// What the node is.
    pub fn content(self) -> Content<'a> {
        let raw = self.document.raw(self.index);
        match raw.shape {
            Shape::Null => Content::Null,
            Shape::Plain { decoded } => Content::Plain(self.document.text(raw, decoded)),
            Shape::Quoted { decoded } => Content::Quoted(self.document.text(raw, decoded)),
            Shape::Sequence => Content::Sequence,
            Shape::Mapping => Content::Mapping,
        }
    }

    /// Byte offset of the node's start in the source, for callers that place many nodes and keep a table of lines.
    pub fn offset(self) -> usize {
        self.document.raw(self.index).start as usize
    }

    /// Where the node starts.
    pub fn place(self) -> Place {
        self.document.place_at(self.document.raw(self.index).start as usize)
    }

    /// How many elements or pairs a collection has.
    pub fn length(self) -> usize {
        let raw = self.document.raw(self.index);
        if matches!(raw.shape, Shape::Sequence | Shape::Mapping) { raw.first as usize } else { 0 }
    }

    /// The elements of a sequence; nothing for anything else.
    pub fn elements(self) -> impl Iterator<Item = Node<'a>> {
        let count = if self.content() == Content::Sequence { self.length() } else { 0 };
        let mut index = self.index + 1;
        (0..count).map(move |_| {
            let node = Node { document: self.document, index };
            index = self.document.after(index);
            node
        })
    }

    /// Names and values of a mapping in document order, each with the name's node; nothing for anything else.
    pub fn pairs(self) -> impl Iterator<Item = (&'a str, Node<'a>, Node<'a>)> {
        let count = if self.content() == Content::Mapping { self.length() } else { 0 };
        let mut index = self.index + 1;
        (0..count).map(move |_| {
            let key = Node { document: self.document, index };
            let value = Node { document: self.document, index: index + 1 };
            index = self.document.after(index + 1);
            (key.text().unwrap_or_default(), key, value)
        })
    }

    /// The value called `name` in a mapping, by exactly this name.
    pub fn get(self, name: &str) -> Option<Node<'a>> {
        self.pairs().find(|(known, ..)| *known == name).map(|(.., value)| value)
    }

    /// The text of a scalar, with or without quotes.
    pub fn text(self) -> Option<&'a str> {
        match self.content() {
            Content::Plain(text) | Content::Quoted(text) => Some(text),
            _ => None,
        }
    }

    /// What kind of thing the node is, for a message: "a list".
    pub fn noun(self) -> &'static str {
        match self.content() {
            Content::Null => "null",
            Content::Plain(_) => "a plain value",
            Content::Quoted(_) => "a text",
            Content::Sequence => "a list",
            Content::Mapping => "a mapping",
        }
    }
}

/// The document and place of what `path` names in `documents`, which are merged as protobuf merges them: later scalars win,
/// lists are joined. Where a part of the path does not exist, the place of what encloses it.
pub fn locate<'a>(documents: &[&'a Document], path: &str) -> Option<(&'a Document, Place)> {
    let mut nodes: Vec<Node<'a>> = documents.iter().map(|document| document.root()).collect();
    let mut found = nodes.last().copied()?;
    for segment in segments(path) {
        nodes = match segment {
            Segment::Index(index) => element(&nodes, index).into_iter().collect(),
            Segment::Name(name) => nodes.iter().filter_map(|node| member(*node, name)).collect(),
        };
        match nodes.last() {
            // The name is a better place than the start of a nested value, which may be on the next line.
            Some(node) => found = *node,
            None => break,
        }
    }
    Some((found.document, key_place(found)))
}

fn element<'a>(nodes: &[Node<'a>], mut index: usize) -> Option<Node<'a>> {
    for node in nodes {
        if index < node.length() {
            return node.elements().nth(index);
        }
        index -= node.length();
    }
    None
}

fn member<'a>(node: Node<'a>, name: &str) -> Option<Node<'a>> {
    let found = node.pairs().find(|(known, ..)| *known == name || is_json_name(known, name)).map(|(.., value)| value);
    // A TypedStruct holds the message's own fields one level deeper.
    found.or_else(|| node.get("@type").and(node.get("value")).and_then(|inner| member(inner, name)))
}

/// A collection in block style is shown at the name that introduces it.
fn key_place(node: Node<'_>) -> Place {
    let previous = node.index.checked_sub(1).map(|index| Node { document: node.document, index });
    match (node.content(), previous) {
        (Content::Mapping | Content::Sequence | Content::Null, Some(key)) if is_key_of(key, node) => key.place(),
        _ => node.place(),
    }
}

/// A scalar right before a node is its key, unless both are elements of one list; a list's elements never follow a `:`.
fn is_key_of(key: Node<'_>, value: Node<'_>) -> bool {
    let document = key.document;
    let Some(text) = key.text() else { return false };
    let raw = document.raw(key.index);
    let quotes = usize::from(matches!(raw.shape, Shape::Quoted { .. }));
    let after = raw.start as usize + text.len() + 2 * quotes;
    let between = document.source.get(after..document.raw(value.index).start as usize);
    between.is_some_and(|between| between.trim_start().starts_with(':'))
}

enum Segment<'a> {
    Name(&'a str),
    Index(usize),
}

/// `a.b[3].c["x.y"]` as its parts.
fn segments(path: &str) -> impl Iterator<Item = Segment<'_>> {
    let mut rest = path;
    std::iter::from_fn(move || {
        rest = rest.trim_start_matches('.');
        if rest.is_empty() {
            return None;
        }
        if let Some(quoted) = rest.strip_prefix("[\"") {
            let (name, after) = quoted.split_once("\"]").unwrap_or((quoted, ""));
            rest = after;
            return Some(Segment::Name(name));
        }
        if let Some(bracketed) = rest.strip_prefix('[') {
            let (index, after) = bracketed.split_once(']').unwrap_or((bracketed, ""));
            rest = after;
            return Some(match index.parse() {
                Ok(index) => Segment::Index(index),
                Err(_) => Segment::Name(index),
            });
        }
        let end = rest.find(['.', '[']).unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        rest = after;
        Some(Segment::Name(name))
    })
}

/// Where and why a text is not the format that it should be.
#[derive(Debug)]
struct SyntaxError {
    offset: usize,
    reason: String,
}

/// The nodes of a document while it is parsed.
struct Tree {
    nodes: Vec<RawNode>,
    decoded: String,
    /// Open collections: their node, and how many nodes follow directly inside.
    open: Vec<(u32, u32)>,
}

impl Tree {
    fn new() -> Self {
        Self { nodes: Vec::new(), decoded: String::new(), open: Vec::new() }
    }

    /// Adds a node to the innermost collection.
    fn push(&mut self, node: RawNode) -> Result<u32, SyntaxError> {
        if let Some((_, children)) = self.open.last_mut() {
            *children += 1;
        }
        self.push_inner(node)
    }

    /// Adds a node inside the one before it, which knows already where it ends.
    fn push_inner(&mut self, node: RawNode) -> Result<u32, SyntaxError> {
        if self.nodes.len() >= NODE_COUNT_MAX {
            let reason = format!("more than {NODE_COUNT_MAX} values, aliases counted each time they are used");
            return Err(SyntaxError { offset: node.start as usize, reason });
        }
        let index = self.nodes.len() as u32;
        self.nodes.push(node);
        Ok(index)
    }

    /// Adds a scalar whose `text` stands in `source` at `text_start`, or is spelt differently there (`None`).
    fn scalar(&mut self, start: usize, quoted: bool, text: &str, text_start: Option<usize>) -> Result<(), SyntaxError> {
        let (first, decoded) = match text_start {
            Some(at) => (at, false),
            None => {
                self.decoded.push_str(text);
                (self.decoded.len() - text.len(), true)
            }
        };
        let shape = if quoted { Shape::Quoted { decoded } } else { Shape::Plain { decoded } };
        let node = RawNode { shape, start: start as u32, first: first as u32, end: (first + text.len()) as u32 };
        self.push(node).map(|_| ())
    }

    fn null(&mut self, start: usize) -> Result<(), SyntaxError> {
        self.push(RawNode { shape: Shape::Null, start: start as u32, first: 0, end: 0 }).map(|_| ())
    }

    fn begin(&mut self, start: usize, shape: Shape) -> Result<u32, SyntaxError> {
        if self.open.len() >= DEPTH_MAX {
            return Err(SyntaxError { offset: start, reason: format!("nested deeper than {DEPTH_MAX} levels") });
        }
        let index = self.push(RawNode { shape, start: start as u32, first: 0, end: 0 })?;
        self.open.push((index, 0));
        Ok(index)
    }

    /// Closes the innermost collection. A mapping's names must be scalars that differ.
    fn finish(&mut self, source: &str) -> Result<(), SyntaxError> {
        let Some((index, children)) = self.open.pop() else { return Ok(()) };
        let end = self.nodes.len() as u32;
        let Some(node) = self.nodes.get_mut(index as usize) else { return Ok(()) };
        let is_mapping = node.shape == Shape::Mapping;
        node.first = if is_mapping { children / 2 } else { children };
        node.end = end;
        if is_mapping { self.check_keys(index, children / 2, source) } else { Ok(()) }
    }

    fn check_keys(&self, index: u32, count: u32, source: &str) -> Result<(), SyntaxError> {
        const FEW: u32 = 24;
        let mut few: [&str; FEW as usize] = [""; FEW as usize];
        let mut many = std::collections::HashSet::new();
        let mut at = index as usize + 1;
        for seen in 0..count {
            let (Some(key), Some(value)) = (self.nodes.get(at), self.nodes.get(at + 1)) else { break };
            let buffer = match key.shape {
                Shape::Plain { decoded } | Shape::Quoted { decoded } => {
                    if decoded {
                        self.decoded.as_str()
                    } else {
                        source
                    }
                }
                Shape::Null => "",
                Shape::Sequence | Shape::Mapping => {
                    let reason = "a name must be text, not a list or a mapping".to_owned();
                    return Err(SyntaxError { offset: key.start as usize, reason });
                }
            };
            let text = buffer.get(key.first as usize..key.end as usize).unwrap_or_default();
            let known = few.get(..seen.min(FEW) as usize).is_some_and(|few| few.contains(&text));
            if known || (seen >= FEW && !many.insert(text)) {
                return Err(SyntaxError {
                    offset: key.start as usize,
                    reason: format!("`{text}` is given twice in one mapping"),
                });
            }
            if let Some(slot) = few.get_mut(seen as usize) {
                *slot = text;
            }
            at = match value.shape {
                Shape::Sequence | Shape::Mapping => value.end as usize,
                _ => at + 2,
            };
        }
        Ok(())
    }

    /// Whether the pair whose name is node `start` still lacks its value.
    fn lacks_value(&self, start: usize) -> bool {
        self.nodes.len() == start + 1
    }

    /// Takes the last pair, whose name is node `start`, out of the innermost mapping.
    fn forget_pair(&mut self, start: usize) -> Vec<RawNode> {
        if let Some((_, children)) = self.open.last_mut() {
            *children = children.saturating_sub(2);
        }
        self.nodes.split_off(start.min(self.nodes.len()))
    }

    /// Whether the next node of the innermost collection is a mapping's name.
    fn expects_key(&self) -> bool {
        self.open.last().is_some_and(|(index, children)| {
            children % 2 == 0 && self.nodes.get(*index as usize).is_some_and(|node| node.shape == Shape::Mapping)
        })
    }
}

/// Node offsets are 32 bits wide; no configuration comes near.
const SOURCE_BYTES_MAX: usize = 256 << 20;
/// Bounds what aliases can expand to.
const NODE_COUNT_MAX: usize = 16 << 20;
/// Protobuf's own limit on nested messages is 100; an `Any` takes two levels in the document for one there.
const DEPTH_MAX: usize = 200;
/// How much of a line is kept beyond the place of a finding.
const SOURCE_LINE_CHARS_MAX: usize = 100;
