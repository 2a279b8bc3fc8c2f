//! JSON text (RFC 8259) to nodes.

use super::{Shape, SyntaxError, Tree};

/// Parses the one value in `source`.
pub(super) fn parse(source: &str) -> Result<Tree, SyntaxError> {
    let start = if source.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
    let mut reader = Reader { source, at: start, tree: Tree::new() };
    reader.document()?;
    Ok(reader.tree)
}

struct Reader<'a> {
    source: &'a str,
    at: usize,
    tree: Tree,
}

impl Reader<'_> {
    /// A value, then whatever the collections around it ask for, until none is open.
    fn document(&mut self) -> Result<(), SyntaxError> {
        loop {
            self.value()?;
            loop {
                self.skip_space();
                let Some((index, _)) = self.tree.open.last() else {
                    return if self.at == self.source.len() {
                        Ok(())
                    } else {
                        Err(self.error("the end was expected here"))
                    };
                };
                let is_mapping = self.tree.nodes.get(*index as usize).is_some_and(|node| node.shape == Shape::Mapping);
                match (self.peek(), is_mapping) {
                    (Some(b','), _) => {
                        self.at += 1;
                        if is_mapping {
                            self.key()?;
                        }
                        break;
                    }
                    (Some(b'}'), true) | (Some(b']'), false) => {
                        self.at += 1;
                        self.tree.finish(self.source)?;
                    }
                    (_, true) => return Err(self.error("`,` or `}` was expected here")),
                    (_, false) => return Err(self.error("`,` or `]` was expected here")),
                }
            }
        }
    }

    /// One scalar, or the start of a collection up to its first scalar; empty collections are complete values.
    fn value(&mut self) -> Result<(), SyntaxError> {
        loop {
            self.skip_space();
            let start = self.at;
            match self.peek() {
                Some(b'{') => {
                    self.at += 1;
                    self.tree.begin(start, Shape::Mapping)?;
                    self.skip_space();
                    if self.peek() == Some(b'}') {
                        self.at += 1;
                        return self.tree.finish(self.source);
                    }
                    self.key()?;
                }
                Some(b'[') => {
                    self.at += 1;
                    self.tree.begin(start, Shape::Sequence)?;
                    self.skip_space();
                    if self.peek() == Some(b']') {
                        self.at += 1;
                        return self.tree.finish(self.source);
                    }
                }
                Some(b'"') => return self.string(),
                Some(b'-' | b'0'..=b'9') => return self.number(),
                _ => return self.word(),
            }
        }
    }

    fn key(&mut self) -> Result<(), SyntaxError> {
        self.skip_space();
        if self.peek() != Some(b'"') {
            return Err(self.error("a name in quotes was expected here"));
        }
        self.string()?;
        self.skip_space();
        if self.peek() != Some(b':') {
            return Err(self.error("`:` was expected here"));
        }
        self.at += 1;
        Ok(())
    }

    fn word(&mut self) -> Result<(), SyntaxError> {
        let start = self.at;
        let rest = self.source.get(start..).unwrap_or_default();
        let length = rest.bytes().take_while(u8::is_ascii_alphanumeric).count();
        self.at += length;
        match rest.get(..length) {
            Some("null") => self.tree.null(start),
            Some(word @ ("true" | "false")) => self.tree.scalar(start, false, word, Some(start)),
            _ => {
                self.at = start;
                Err(self.error(if rest.is_empty() {
                    "the document ends too early"
                } else {
                    "a value was expected here"
                }))
            }
        }
    }

    fn number(&mut self) -> Result<(), SyntaxError> {
        let start = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        let first = self.peek();
        let whole = self.digits();
        let mut valid = whole == 1 || (whole > 1 && first != Some(b'0'));
        if self.peek() == Some(b'.') {
            self.at += 1;
            valid &= self.digits() > 0;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            valid &= self.digits() > 0;
        }
        if !valid {
            self.at = start;
            return Err(self.error("this is not a JSON number"));
        }
        let text = self.source.get(start..self.at).unwrap_or_default();
        self.tree.scalar(start, false, text, Some(start))
    }

    fn digits(&mut self) -> usize {
        let start = self.at;
        while let Some(b'0'..=b'9') = self.peek() {
            self.at += 1;
        }
        self.at - start
    }

    fn string(&mut self) -> Result<(), SyntaxError> {
        let quote = self.at;
        self.at += 1;
        let start = self.at;
        let mut decoded: Option<String> = None;
        loop {
            let piece = self.at;
            while self.peek().is_some_and(|byte| byte != b'"' && byte != b'\\' && byte >= 0x20) {
                self.at += 1;
            }
            let text = self.source.get(piece..self.at).unwrap_or_default();
            if let Some(decoded) = &mut decoded {
                decoded.push_str(text);
            }
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return match decoded {
                        Some(decoded) => self.tree.scalar(quote, true, &decoded, None),
                        None => self.tree.scalar(quote, true, text, Some(start)),
                    };
                }
                Some(b'\\') => {
                    let letter = self.escape()?;
                    decoded.get_or_insert_with(|| text.to_owned()).push(letter);
                }
                Some(_) => return Err(self.error("a control character in a text must be written as an escape")),
                None => return Err(self.error("this text has no closing quote")),
            }
        }
    }

    /// RFC 8259 §7. A lone surrogate stands for no character and is refused.
    fn escape(&mut self) -> Result<char, SyntaxError> {
        let start = self.at;
        self.at += 1;
        let code = self.peek();
        self.at += 1;
        let letter = match code {
            Some(b'"') => Some('"'),
            Some(b'\\') => Some('\\'),
            Some(b'/') => Some('/'),
            Some(b'b') => Some('\u{8}'),
            Some(b'f') => Some('\u{c}'),
            Some(b'n') => Some('\n'),
            Some(b'r') => Some('\r'),
            Some(b't') => Some('\t'),
            Some(b'u') => self.unicode(),
            _ => None,
        };
        letter.ok_or_else(|| {
            self.at = start;
            self.error("this is not a JSON escape")
        })
    }

    fn unicode(&mut self) -> Option<char> {
        let high = self.hex()?;
        if !(0xd800..0xdc00).contains(&high) {
            return char::from_u32(high);
        }
        if self.source.get(self.at..self.at + 2) != Some("\\u") {
            return None;
        }
        self.at += 2;
        let low = self.hex().filter(|low| (0xdc00..0xe000).contains(low))?;
        char::from_u32(0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00))
    }

    fn hex(&mut self) -> Option<u32> {
        let digits = self.source.get(self.at..self.at + 4)?;
        self.at += 4;
        if digits.bytes().all(|digit| digit.is_ascii_hexdigit()) { u32::from_str_radix(digits, 16).ok() } else { None }
    }

    fn skip_space(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.at += 1;
        }
    }

    fn peek(&self) -> Option<u8> {
        self.source.as_bytes().get(self.at).copied()
    }

    fn error(&self, reason: &str) -> SyntaxError {
        SyntaxError { offset: self.at, reason: format!("this is not JSON: {reason}") }
    }
}
