//! YAML text to nodes. Aliases are expanded in place, within the document's bound on nodes.

use std::collections::HashMap;

use serde_saphyr::granit_parser::{self, Event, Parser, ScalarStyle, Span, Tag};

use super::{RawNode, Shape, SyntaxError, Tree};

/// Parses the one document in `source`.
pub(super) fn parse(source: &str) -> Result<Tree, SyntaxError> {
    let mut loader =
        Loader { source, tree: Tree::new(), anchors: HashMap::new(), aside: Vec::new(), ignored: Vec::new() };
    let options = granit_parser::options! { emit_comments: false };
    let mut document_count = 0;
    for event in Parser::new_from_str_with_options(source, options) {
        let (event, span) = event.map_err(|error| SyntaxError {
            offset: error.marker().byte_offset().unwrap_or_default(),
            reason: format!("this is not YAML: {}", error.kind()),
        })?;
        let start = offset(&span);
        match event {
            Event::DocumentStart(..) => {
                document_count += 1;
                if document_count > 1 {
                    return Err(SyntaxError {
                        offset: start,
                        reason: "a second document starts here; one is expected".to_owned(),
                    });
                }
            }
            Event::Scalar(text, style, anchor, tag) => loader.scalar(start, &text, style, anchor, tag.as_deref())?,
            Event::SequenceStart(_, anchor, _) => loader.begin(start, Shape::Sequence, anchor)?,
            Event::MappingStart(_, anchor, _) => loader.begin(start, Shape::Mapping, anchor)?,
            Event::SequenceEnd | Event::MappingEnd => loader.finish()?,
            Event::Alias(anchor) => loader.alias(start, anchor)?,
            _ => {}
        }
    }
    if loader.tree.nodes.is_empty() {
        loader.tree.null(0)?;
    }
    Ok(loader.tree)
}

struct Loader<'a> {
    source: &'a str,
    tree: Tree,
    anchors: HashMap<usize, Anchor>,
    /// Nodes under a name tagged `!ignore`: no part of the document, but aliases may use them.
    aside: Vec<RawNode>,
    ignored: Vec<Ignored>,
}

/// Where an anchored value's nodes are; `end` is missing while the value is still open.
struct Anchor {
    aside: bool,
    start: usize,
    end: Option<usize>,
}

/// A pair that is being read only to be put aside.
struct Ignored {
    depth: usize,
    start: usize,
}

impl Loader<'_> {
    fn scalar(
        &mut self,
        start: usize,
        text: &str,
        style: ScalarStyle,
        anchor: usize,
        tag: Option<&Tag>,
    ) -> Result<(), SyntaxError> {
        let is_key = self.tree.expects_key();
        let index = self.tree.nodes.len();
        if is_key && tag.is_some_and(|tag| tag.original() == "!ignore") {
            self.ignored.push(Ignored { depth: self.tree.open.len(), start: index });
        }
        let core = tag.and_then(Tag::core_suffix);
        let quoted = match core {
            Some("str") => true,
            Some(_) => false,
            None => style != ScalarStyle::Plain || tag.is_some_and(|tag| tag.original() == "!"),
        };
        if !quoted && !is_key && matches!(text, "" | "~" | "null" | "Null" | "NULL") {
            self.tree.null(start)?;
        } else {
            self.tree.scalar(start, quoted, text, position_in(text, self.source))?;
        }
        self.anchor(anchor, index, true);
        self.put_aside();
        Ok(())
    }

    fn begin(&mut self, start: usize, shape: Shape, anchor: usize) -> Result<(), SyntaxError> {
        let index = self.tree.begin(start, shape)?;
        self.anchor(anchor, index as usize, false);
        Ok(())
    }

    fn finish(&mut self) -> Result<(), SyntaxError> {
        let start = self.tree.open.last().map(|(index, _)| *index as usize);
        self.tree.finish(self.source)?;
        let end = self.tree.nodes.len();
        for anchor in self.anchors.values_mut() {
            if !anchor.aside && anchor.end.is_none() && Some(anchor.start) == start {
                anchor.end = Some(end);
            }
        }
        self.put_aside();
        Ok(())
    }

    fn anchor(&mut self, id: usize, start: usize, complete: bool) {
        if id != 0 {
            let end = complete.then_some(self.tree.nodes.len());
            self.anchors.insert(id, Anchor { aside: false, start, end });
        }
    }

    fn alias(&mut self, start: usize, id: usize) -> Result<(), SyntaxError> {
        let Some(Anchor { aside, start: first, end: Some(end) }) = self.anchors.get(&id) else {
            return Err(SyntaxError { offset: start, reason: "this alias is part of what it stands for".to_owned() });
        };
        let (aside, first, end) = (*aside, *first, *end);
        let base = self.tree.nodes.len();
        for index in first..end {
            let nodes = if aside { &self.aside } else { &self.tree.nodes };
            let Some(mut node) = nodes.get(index).copied() else { break };
            if matches!(node.shape, Shape::Sequence | Shape::Mapping) {
                node.end = (node.end as usize - first + base) as u32;
            }
            if index == first {
                self.tree.push(node)?;
            } else {
                self.tree.push_inner(node)?;
            }
        }
        self.put_aside();
        Ok(())
    }

    /// Moves an ignored pair out of the document once its value is complete.
    fn put_aside(&mut self) {
        let Some(Ignored { depth, start }) = self.ignored.last() else { return };
        let (depth, start) = (*depth, *start);
        if self.tree.open.len() != depth || self.tree.lacks_value(start) {
            return;
        }
        self.ignored.pop();
        let base = self.aside.len();
        for anchor in self.anchors.values_mut().filter(|anchor| !anchor.aside && anchor.start >= start) {
            anchor.aside = true;
            anchor.start = anchor.start - start + base;
            anchor.end = anchor.end.map(|end| end - start + base);
        }
        let moved = self.tree.forget_pair(start);
        self.aside.extend(moved.into_iter().map(|mut node| {
            if matches!(node.shape, Shape::Sequence | Shape::Mapping) {
                node.end = (node.end as usize - start + base) as u32;
            }
            node
        }));
    }
}

fn offset(span: &Span) -> usize {
    span.byte_range().map_or(0, |range| range.start)
}

/// Where `text` lies in `source`, if it is a part of it and no copy.
fn position_in(text: &str, source: &str) -> Option<usize> {
    let position = (text.as_ptr() as usize).checked_sub(source.as_ptr() as usize)?;
    (position + text.len() <= source.len()).then_some(position)
}
