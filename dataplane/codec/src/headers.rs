//! The fields of one message, in wire order, in one arena that is reused from request to request.
//!
//! Pseudo-headers (`:method`, `:scheme`, `:authority`, `:path`, `:status`) are ordinary entries, as Envoy and HTTP/2 treat them;
//! the HTTP/1.1 encoder writes them as the start line and `host`. Names are stored in lower case.

use std::ops::Range;

pub use crate::known::Known;
use crate::{KnownSet, Malformed, bytes};

/// The fields of one message. After warm-up neither reading nor changing it allocates.
#[derive(Clone, Default)]
pub struct HeaderMap {
    arena: Vec<u8>,
    entries: Vec<Entry>,
    /// One bit for each [`Known`] that was ever added since [`clear`](Self::clear): an absent name costs one test.
    seen: u128,
    /// One bit for each [`Known`] that was added again while `seen` had it: what is absent here occurs once at most.
    repeated: u128,
}

#[derive(Clone, Copy)]
struct Entry {
    /// Meaningless where `known` says the name, unless the origin is a line.
    name: Span,
    value: Span,
    known: Option<Known>,
    origin: Origin,
}

/// Where an entry's bytes come from, which says what an encoder may take for granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// Set by the proxy and not looked at yet: any byte may be in it.
    Set,
    /// From a parser, which has refused every byte that may not be on the wire.
    Parsed,
    /// The arena has `name: value` CR LF just as an encoder would write it, and no byte that may not be on the wire.
    Line,
}

#[derive(Clone, Copy, Default)]
struct Span {
    start: u32,
    len: u32,
}

/// One field as an encoder needs it: most are copied as lines, and neither name nor value is looked at.
pub(crate) struct Field<'a> {
    pub(crate) known: Option<Known>,
    entry: &'a Entry,
    arena: &'a [u8],
}

impl<'a> Field<'a> {
    pub(crate) fn name(&self) -> &'a [u8] {
        self.entry.name_in(self.arena)
    }

    pub(crate) fn value(&self) -> &'a [u8] {
        slice(self.arena, self.entry.value)
    }

    /// Whether every byte that may not be on the wire was refused.
    pub(crate) fn is_checked(&self) -> bool {
        self.entry.origin != Origin::Set
    }

    /// Where in [`HeaderMap::arena`] it stands as it is written, if it does.
    #[inline]
    pub(crate) fn line(&self) -> Option<Range<usize>> {
        let Entry { name, value, origin, .. } = self.entry;
        let end = value.start as usize + value.len as usize + b"\r\n".len();
        (*origin == Origin::Line).then_some(name.start as usize..end)
    }
}

/// What becomes of a parsed field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Keep,
    Drop,
    /// The value without its first bytes is kept.
    TrimStart(usize),
}

/// A field name in lower case, with its known id if it has one; made at configuration time.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HeaderName {
    known: Option<Known>,
    text: Box<str>,
}

impl HeaderName {
    /// The name in lower case, or `None` if it is no token (RFC 9110 §5.1; a leading `:` is allowed for pseudo-headers).
    pub fn new(text: &str) -> Option<Self> {
        let token = text.strip_prefix(':').unwrap_or(text);
        let valid = !token.is_empty() && token.bytes().all(bytes::is_token);
        valid.then(|| {
            let text = text.to_ascii_lowercase();
            // Envoy keeps `host` as `:authority`; so do we, from configuration to wire.
            let text = if text == "host" { ":authority".to_owned() } else { text };
            Self { known: Known::from_lower(text.as_bytes()), text: text.into() }
        })
    }

    /// The name in lower case.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl From<Known> for HeaderName {
    fn from(known: Known) -> Self {
        Self { known: Some(known), text: known.as_str().into() }
    }
}

impl HeaderMap {
    /// Removes every field and keeps the memory.
    pub fn clear(&mut self) {
        self.arena.clear();
        self.entries.clear();
        self.seen = 0;
        self.repeated = 0;
    }

    /// How many fields there are, pseudo-headers included.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no field.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Every field in order, pseudo-headers included.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> + '_ {
        self.entries.iter().map(|entry| (entry.name_in(&self.arena), slice(&self.arena, entry.value)))
    }

    /// The first value of `name`.
    pub fn get(&self, name: &HeaderName) -> Option<&[u8]> {
        match name.known {
            Some(known) => self.get_known(known),
            None => {
                let named = |entry: &&Entry| is_named(&self.arena, entry, None, &name.text);
                self.entries.iter().find(named).map(|entry| slice(&self.arena, entry.value))
            }
        }
    }

    /// The first value of a known name.
    pub fn get_known(&self, known: Known) -> Option<&[u8]> {
        if !self.may_have(known) {
            return None;
        }
        self.entries.iter().find(|entry| entry.known == Some(known)).map(|entry| slice(&self.arena, entry.value))
    }

    /// Every value of `name`, in order.
    pub fn get_all<'a>(&'a self, name: &'a HeaderName) -> impl Iterator<Item = &'a [u8]> + 'a {
        let named = |entry: &&Entry| is_named(&self.arena, entry, name.known, &name.text);
        self.entries.iter().filter(named).map(|entry| slice(&self.arena, entry.value))
    }

    /// Every value of a known name, in order.
    pub fn get_all_known(&self, known: Known) -> impl Iterator<Item = &[u8]> + '_ {
        let entries = if self.may_have(known) { self.entries.as_slice() } else { &[] };
        let named = move |entry: &&Entry| entry.known == Some(known);
        entries.iter().filter(named).map(|entry| slice(&self.arena, entry.value))
    }

    /// Adds a field after the others.
    pub fn append(&mut self, name: &HeaderName, value: &[u8]) {
        let entry = self.store_field(name.known, name.text.as_bytes(), value);
        self.push_entry(entry);
    }

    /// Adds a field with a known name after the others.
    pub fn append_known(&mut self, known: Known, value: &[u8]) {
        let entry = self.store_field(Some(known), known.as_str().as_bytes(), value);
        self.push_entry(entry);
    }

    /// Adds a field as read from the wire; `name` is stored in lower case.
    pub fn append_wire(&mut self, name: &[u8], value: &[u8]) {
        let name = self.store(name);
        let known = lower_in_place(&mut self.arena, name).0;
        let value = self.store(value);
        let name = if known.is_some() { Span::default() } else { name };
        self.push_entry(Entry { name, value, known, origin: Origin::Set });
    }

    /// Makes `value` the only value of `name`: the first field with that name takes it, the others go.
    pub fn set(&mut self, name: &HeaderName, value: &[u8]) {
        let entry = self.store_field(name.known, name.text.as_bytes(), value);
        if !self.replace(&name.text, entry) {
            self.push_entry(entry);
        }
    }

    /// Makes `value` the only value of a known name.
    pub fn set_known(&mut self, known: Known, value: &[u8]) {
        let entry = self.store_field(Some(known), known.as_str().as_bytes(), value);
        if !self.may_have(known) || !self.replace("", entry) {
            self.push_entry(entry);
        }
    }

    /// Removes every field called `name`; whether there was one.
    pub fn remove(&mut self, name: &HeaderName) -> bool {
        if let Some(known) = name.known {
            return self.remove_known(known);
        }
        let before = self.entries.len();
        let arena = &self.arena;
        self.entries.retain(|entry| !is_named(arena, entry, None, &name.text));
        self.entries.len() != before
    }

    /// Removes every field with a known name; whether there was one.
    pub fn remove_known(&mut self, known: Known) -> bool {
        if !self.may_have(known) {
            return false;
        }
        let before = self.entries.len();
        self.entries.retain(|entry| entry.known != Some(known));
        self.seen &= !known.bit();
        self.entries.len() != before
    }

    /// Removes every field whose name is in `names`.
    pub fn remove_all(&mut self, names: KnownSet) {
        if self.seen & names.bits() == 0 {
            return;
        }
        self.entries.retain(|entry| !entry.known.is_some_and(|known| names.has(known)));
        self.seen &= !names.bits();
    }

    /// Keeps the fields for which `keep(name, value)` holds.
    pub fn retain(&mut self, mut keep: impl FnMut(&[u8], &[u8]) -> bool) {
        let arena = &self.arena;
        self.entries.retain(|entry| keep(entry.name_in(arena), slice(arena, entry.value)));
    }

    /// Joins the values of fields that come more than once and whose name is in `names`, with `,` and in order, at the place of
    /// the first (RFC 9110 §5.3). Envoy does so to every field that it keeps by name.
    pub fn join_repeated(&mut self, names: KnownSet) {
        let mut repeated = self.repeated & names.bits();
        self.repeated &= !names.bits();
        while repeated != 0 {
            let only = KnownSet::from_bits(1 << repeated.trailing_zeros());
            repeated &= !only.bits();
            self.join(only);
        }
    }

    fn join(&mut self, name: KnownSet) {
        let is_named = |entry: &Entry| entry.known.is_some_and(|known| name.has(known));
        let start = self.arena.len();
        for entry in self.entries.iter().filter(|entry| is_named(entry)) {
            if self.arena.len() != start {
                self.arena.push(b',');
            }
            let value = entry.value.start as usize..(entry.value.start + entry.value.len) as usize;
            self.arena.extend_from_within(value);
        }
        let joined = Span { start: start as u32, len: (self.arena.len() - start) as u32 };
        let mut first = true;
        self.entries.retain_mut(|entry| {
            if !is_named(entry) {
                return true;
            }
            entry.value = joined;
            entry.origin = Origin::Set;
            std::mem::take(&mut first)
        });
    }

    /// Bytes of all names and values, without separators.
    pub fn byte_count(&self) -> usize {
        let name_bytes = |entry: &Entry| match (entry.origin, entry.known) {
            (Origin::Set | Origin::Parsed, Some(known)) => known.as_str().len(),
            _ => entry.name.len as usize,
        };
        self.entries.iter().map(|entry| name_bytes(entry) + entry.value.len as usize).sum()
    }

    /// Whether a field with one of these names may be there; `false` is certain.
    pub(crate) fn may_have(&self, known: Known) -> bool {
        self.seen & known.bit() != 0
    }

    /// The first value of a known name, and whether a parser has refused every byte that may not be on the wire.
    pub(crate) fn get_checked(&self, known: Known) -> Option<(&[u8], bool)> {
        if !self.may_have(known) {
            return None;
        }
        let entry = self.entries.iter().find(|entry| entry.known == Some(known))?;
        Some((slice(&self.arena, entry.value), entry.origin != Origin::Set))
    }

    /// Every field with what an encoder asks of it.
    #[inline]
    pub(crate) fn fields(&self) -> impl Iterator<Item = Field<'_>> {
        self.entries.iter().map(|entry| Field { known: entry.known, entry, arena: &self.arena })
    }

    /// The memory that [`Field::line`] points into.
    pub(crate) fn arena(&self) -> &[u8] {
        &self.arena
    }

    /// Adds a field of a head that is being scanned, by its place in the head. [`load`](Self::load) and [`settle`](Self::settle) follow.
    pub(crate) fn push_scanned(&mut self, name: Range<usize>, value: Range<usize>, as_written: bool) {
        let origin = if as_written { Origin::Line } else { Origin::Parsed };
        self.entries.push(Entry { name: name.into(), value: value.into(), known: None, origin });
    }

    /// Adds a field with a known name whose value is at this place in the head that is being scanned.
    pub(crate) fn push_scanned_known(&mut self, known: Known, value: Range<usize>) {
        self.push_entry(Entry {
            name: Span::default(),
            value: value.into(),
            known: Some(known),
            origin: Origin::Parsed,
        });
    }

    /// Copies the head that was scanned: one copy for all fields.
    pub(crate) fn load(&mut self, head: &[u8]) {
        self.arena.clear();
        self.arena.extend_from_slice(head);
    }

    /// Gives every scanned field its name in lower case and its known id, and asks what becomes of it.
    ///
    /// Errors: a name that is no token, or what `judge(known, name, value, place of the value in the head)` says.
    pub(crate) fn settle(
        &mut self,
        mut judge: impl FnMut(Option<Known>, &[u8], &[u8], Range<usize>) -> Result<Verdict, Malformed>,
    ) -> Result<(), Malformed> {
        let mut fault = None;
        let (arena, seen, repeated) = (&mut self.arena, &mut self.seen, &mut self.repeated);
        self.entries.retain_mut(|entry| {
            if fault.is_some() || entry.known.is_some() {
                return true;
            }
            let (known, name) = lower_in_place(arena, entry.name);
            entry.known = known;
            if known.is_none() && !bytes::is_token_text(name) {
                fault = Some(Malformed::FieldName);
                return true;
            }
            let (start, end) = (entry.value.start as usize, entry.value.start as usize + entry.value.len as usize);
            match judge(entry.known, slice(arena, entry.name), slice(arena, entry.value), start..end) {
                Ok(Verdict::Keep) => {}
                Ok(Verdict::Drop) => return false,
                Ok(Verdict::TrimStart(count)) => {
                    entry.value = Span::from(start + count..end);
                    if count > 0 {
                        entry.origin = Origin::Parsed;
                    }
                }
                Err(found) => fault = Some(found),
            }
            if let Some(known) = entry.known {
                *repeated |= *seen & known.bit();
                *seen |= known.bit();
            }
            true
        });
        fault.map_or(Ok(()), Err)
    }

    /// Makes a place in the loaded head lower case.
    pub(crate) fn lower_loaded(&mut self, place: Range<usize>) {
        lower_in_place(&mut self.arena, place.into());
    }

    /// Gives the field at `index` the value at this place in the head.
    pub(crate) fn set_loaded(&mut self, index: usize, place: Range<usize>) {
        if let Some(entry) = self.entries.get_mut(index) {
            entry.value = place.into();
        }
    }

    /// Gives the field at `index` a value made of two parts.
    pub(crate) fn set_parts(&mut self, index: usize, first: &[u8], second: &[u8]) {
        let Span { start, len } = self.store(first);
        let len = len + self.store(second).len;
        if let Some(entry) = self.entries.get_mut(index) {
            entry.value = Span { start, len };
        }
    }

    /// Removes the fields that `connection` nominates (RFC 9110 §7.6.1) and that are not `protected`.
    pub(crate) fn remove_nominated(&mut self, protected: impl Fn(&[u8]) -> bool) {
        let is_connection = |entry: &&Entry| entry.known == Some(Known::Connection);
        let mut line = 0;
        while let Some(nominations) = self.entries.iter().filter(is_connection).nth(line).map(|entry| entry.value) {
            line += 1;
            let arena = &self.arena;
            let nominations = slice(arena, nominations);
            if is_connection_option(nominations) || bytes::list(nominations).all(is_connection_option) {
                continue;
            }
            self.entries.retain(|entry| {
                let name = entry.name_in(arena);
                let nominated = bytes::list(nominations).any(|nominated| nominated.eq_ignore_ascii_case(name));
                !nominated || entry.known == Some(Known::Connection) || protected(name)
            });
        }
    }

    /// Puts `field` in the place of the first field of its name and takes the others away; whether there was one.
    fn replace(&mut self, text: &str, field: Entry) -> bool {
        let mut found = false;
        let arena = &self.arena;
        self.entries.retain_mut(|entry| {
            if !is_named(arena, entry, field.known, text) {
                return true;
            }
            let first = !found;
            found = true;
            *entry = field;
            first
        });
        found
    }

    /// Stores a field as the line that it becomes, so that an encoder copies it with its neighbours; `name` is a token in lower
    /// case. What can be no line (a pseudo-header, a value with a control byte) is stored as it is.
    fn store_field(&mut self, known: Option<Known>, name: &[u8], value: &[u8]) -> Entry {
        if known.is_some_and(Known::is_pseudo) || name.starts_with(b":") || !bytes::is_value_text(value) {
            let name = if known.is_some() { Span::default() } else { self.store(name) };
            return Entry { name, value: self.store(value), known, origin: Origin::Set };
        }
        self.arena.reserve(name.len() + value.len() + b": \r\n".len());
        let name = self.store(name);
        self.arena.extend_from_slice(b": ");
        let value = self.store(value);
        self.arena.extend_from_slice(b"\r\n");
        Entry { name, value, known, origin: Origin::Line }
    }

    fn push_entry(&mut self, entry: Entry) {
        if let Some(known) = entry.known {
            self.repeated |= self.seen & known.bit();
            self.seen |= known.bit();
        }
        self.entries.push(entry);
    }

    fn store(&mut self, bytes: &[u8]) -> Span {
        let start = self.arena.len() as u32;
        self.arena.extend_from_slice(bytes);
        Span { start, len: bytes.len() as u32 }
    }
}

impl Entry {
    fn name_in<'a>(&self, arena: &'a [u8]) -> &'a [u8] {
        match self.known {
            Some(known) => known.as_str().as_bytes(),
            None => slice(arena, self.name),
        }
    }
}

impl From<Range<usize>> for Span {
    fn from(range: Range<usize>) -> Self {
        Self { start: range.start as u32, len: range.len() as u32 }
    }
}

impl std::fmt::Debug for HeaderMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.iter().map(|(n, v)| (String::from_utf8_lossy(n), String::from_utf8_lossy(v))))
            .finish()
    }
}

fn slice(arena: &[u8], span: Span) -> &[u8] {
    arena.get(span.start as usize..span.start as usize + span.len as usize).unwrap_or_default()
}

/// Whether a `connection` member is an option of its own and nominates no field.
fn is_connection_option(member: &[u8]) -> bool {
    [b"close".as_slice(), b"keep-alive", b"upgrade"].iter().any(|option| member.eq_ignore_ascii_case(option))
}

/// Makes a name lower case; its known id and the name.
fn lower_in_place(arena: &mut [u8], span: Span) -> (Option<Known>, &[u8]) {
    let (start, end) = (span.start as usize, span.start as usize + span.len as usize);
    let Some(name) = arena.get_mut(start..end) else { return (None, &[]) };
    (Known::from_wire(name), name)
}

fn is_named(arena: &[u8], entry: &Entry, known: Option<Known>, text: &str) -> bool {
    match (entry.known, known) {
        (Some(a), Some(b)) => a == b,
        (None, None) => slice(arena, entry.name) == text.as_bytes(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::default();
        for (name, value) in fields {
            map.append_wire(name.as_bytes(), value.as_bytes());
        }
        map
    }

    fn check(map: &HeaderMap, expected: &[(&str, &str)]) {
        let expected = expected.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())).collect::<Vec<_>>();
        assert_eq!(map.iter().collect::<Vec<_>>(), expected);
        assert_eq!(map.len(), expected.len());
        assert_eq!(map.is_empty(), expected.is_empty());
        assert_eq!(map.byte_count(), expected.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>());
    }

    #[test]
    fn names_are_tokens_in_lower_case() {
        for (text, name) in
            [("X-Y", Some("x-y")), (":Path", Some(":path")), ("Host", Some(":authority")), ("a_b!", Some("a_b!"))]
        {
            assert_eq!(HeaderName::new(text).as_ref().map(HeaderName::as_str), name, "{text}");
        }
        for text in ["", ":", "a b", "a:b", "a\r\n", "é", "a,b"] {
            assert_eq!(HeaderName::new(text), None, "{text}");
        }
    }

    #[test]
    fn fields_keep_their_order_and_repeat() {
        let map = map(&[("Cookie", "a"), ("X-Own", "1"), ("cookie", "b"), ("X-OWN", "2")]);
        check(&map, &[("cookie", "a"), ("x-own", "1"), ("cookie", "b"), ("x-own", "2")]);
        let own = HeaderName::new("x-own").unwrap();
        assert_eq!(map.get(&own), Some(b"1".as_slice()));
        assert_eq!(map.get_all(&own).collect::<Vec<_>>(), [b"1", b"2"]);
        assert_eq!(map.get_known(Known::Cookie), Some(b"a".as_slice()));
        assert_eq!(map.get_all_known(Known::Cookie).collect::<Vec<_>>(), [b"a", b"b"]);
        assert_eq!(map.get_known(Known::Host), None);
        assert_eq!(map.get(&HeaderName::new("x-other").unwrap()), None);
    }

    #[test]
    fn set_replaces_the_first_and_removes_the_others() {
        let own = HeaderName::new("x-own").unwrap();
        let mut map = map(&[("x-own", "1"), ("via", "a"), ("x-own", "2"), ("via", "b")]);
        map.set(&own, b"3");
        map.set_known(Known::Via, b"c");
        check(&map, &[("x-own", "3"), ("via", "c")]);
        map.set_known(Known::Date, b"now");
        map.set(&HeaderName::new("x-new").unwrap(), b"");
        check(&map, &[("x-own", "3"), ("via", "c"), ("date", "now"), ("x-new", "")]);
    }

    #[test]
    fn removed_fields_can_come_again() {
        let own = HeaderName::new("x-own").unwrap();
        let mut map = map(&[("x-own", "1"), ("via", "a"), ("x-own", "2")]);
        assert!(map.remove(&own));
        assert!(!map.remove(&own));
        assert!(map.remove_known(Known::Via));
        assert!(!map.remove_known(Known::Via));
        check(&map, &[]);
        map.append_known(Known::Via, b"b");
        map.append(&own, b"3");
        check(&map, &[("via", "b"), ("x-own", "3")]);
        map.retain(|name, _| name == b"via");
        check(&map, &[("via", "b")]);
        map.clear();
        assert_eq!(map.get_known(Known::Via), None);
        check(&map, &[]);
    }
}
