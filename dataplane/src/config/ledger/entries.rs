//! `fields.txt`, read once. Its format is described at its top.

use std::collections::HashMap;

use torus_xds::schema::{Field, MessageType};

/// What this version does about something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It does what Envoy does.
    Honoured,
    /// It is accepted and ignored, for this reason.
    NoEffect(&'static str),
    /// It is an error: this feature is missing.
    Refused(&'static str),
}

/// What is said of a field, and of single values of it.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) field: Field,
    pub(super) verdict: Verdict,
    /// Values that are refused although the field is honoured, with the feature that they ask for.
    pub(super) values: Vec<(&'static str, &'static str)>,
}

/// What is said of the fields of a message.
#[derive(Debug, Default)]
pub(super) struct Fields {
    by_number: Vec<Entry>,
    /// The field that makes an extension optional, if the message has one.
    pub(super) is_optional: Option<Field>,
}

impl Fields {
    /// What is said of the field with wire number `number`.
    pub(super) fn get(&self, number: u32) -> Option<&Entry> {
        let place = self.by_number.binary_search_by_key(&number, |entry| entry.field.number()).ok()?;
        self.by_number.get(place)
    }

    fn get_mut(&mut self, number: u32) -> Option<&mut Entry> {
        let place = self.by_number.binary_search_by_key(&number, |entry| entry.field.number()).ok()?;
        self.by_number.get_mut(place)
    }

    /// `None` where the field has an entry already.
    fn insert(&mut self, entry: Entry) -> Option<()> {
        let place = self.by_number.binary_search_by_key(&entry.field.number(), |entry| entry.field.number()).err()?;
        self.by_number.insert(place, entry);
        Some(())
    }
}

/// What is said of a message.
pub(super) enum MessageEntry<'a> {
    /// Its fields.
    Fields(&'a Fields),
    /// The same of all of it.
    Whole(Verdict),
    /// Nothing, so it is refused.
    Unlisted,
}

/// The whole ledger.
#[derive(Debug, Default)]
pub(super) struct Entries {
    /// By [`MessageType::index`].
    messages: Vec<Option<Fields>>,
    whole: HashMap<MessageType, Verdict>,
    foreign: HashMap<&'static str, Verdict>,
    /// Prefixes of type names, with what such types are.
    families: Vec<(&'static str, &'static str)>,
    /// Lines that could not be read, for the test.
    pub(super) faults: Vec<String>,
}

impl Entries {
    /// Reads the text; a line that makes no sense is kept among `faults` and refuses nothing.
    pub(super) fn parse(text: &'static str) -> Self {
        let mut entries = Self { messages: MessageType::all().map(|_| None).collect(), ..Self::default() };
        let (mut message, mut field) = (None, None);
        for line in text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
            if entries.line(line, &mut message, &mut field).is_none() {
                entries.faults.push(line.to_owned());
            }
        }
        entries
    }

    fn line(&mut self, line: &'static str, message: &mut Option<MessageType>, field: &mut Option<u32>) -> Option<()> {
        let (name, verdict) = line.trim().split_once(": ").unwrap_or((line.trim(), ""));
        if line.starts_with("    ") {
            let Some(Verdict::Refused(feature)) = Verdict::parse(verdict) else { return None };
            self.fields_mut((*message)?)?.get_mut((*field)?)?.values.push((name, feature));
        } else if line.starts_with("  ") {
            let known = (*message)?.field(name).filter(|known| known.name() == name)?;
            *field = Some(known.number());
            let entry = Entry { field: known, verdict: Verdict::parse(verdict)?, values: Vec::new() };
            return self.fields_mut((*message)?)?.insert(entry);
        } else if let Some(name) = name.strip_prefix("message ") {
            let known = MessageType::named(name)?;
            (*message, *field) = (None, None);
            if verdict.is_empty() {
                *message = Some(known);
                let slot = self.messages.get_mut(known.index())?;
                let fields = Fields { by_number: Vec::new(), is_optional: known.field("is_optional") };
                return slot.replace(fields).is_none().then_some(());
            }
            self.whole.insert(known, Verdict::parse(verdict)?);
        } else if let Some(name) = name.strip_prefix("foreign ") {
            self.foreign.insert(name, Verdict::parse(verdict)?);
        } else if let Some(prefix) = name.strip_prefix("family ") {
            self.families.push((prefix, verdict));
        } else {
            return None;
        }
        Some(())
    }

    /// What is said of `message`.
    pub(super) fn message(&self, message: MessageType) -> MessageEntry<'_> {
        if let Some(Some(fields)) = self.messages.get(message.index()) {
            return MessageEntry::Fields(fields);
        }
        self.whole.get(&message).map_or(MessageEntry::Unlisted, |verdict| MessageEntry::Whole(verdict.clone()))
    }

    fn fields_mut(&mut self, message: MessageType) -> Option<&mut Fields> {
        self.messages.get_mut(message.index())?.as_mut()
    }

    /// What is said of a message type that is not part of Envoy's own API.
    pub(super) fn foreign(&self, name: &str) -> Option<&Verdict> {
        self.foreign.get(name)
    }

    /// What an unlisted type is, by the longest prefix that fits: "HTTP filter `cors`".
    pub(super) fn family(&self, full_name: &str) -> String {
        let fitting = self.families.iter().filter(|(prefix, _)| full_name.starts_with(prefix));
        match fitting.max_by_key(|(prefix, _)| prefix.len()) {
            Some((prefix, kind)) => {
                let rest = full_name.get(prefix.len()..).unwrap_or_default();
                let name = rest.split('.').next().unwrap_or_default();
                if name.starts_with(|letter: char| letter.is_ascii_lowercase()) && prefix.ends_with('.') {
                    format!("{kind} `{name}`")
                } else {
                    (*kind).to_owned()
                }
            }
            None => format!("`{full_name}`"),
        }
    }

    /// Messages with an entry for each field.
    pub(super) fn listed(&self) -> impl Iterator<Item = (MessageType, &Fields)> {
        MessageType::all().zip(&self.messages).filter_map(|(message, fields)| Some((message, fields.as_ref()?)))
    }

    /// Messages that one verdict covers.
    pub(super) fn covered(&self) -> impl Iterator<Item = (MessageType, &Verdict)> {
        self.whole.iter().map(|(message, verdict)| (*message, verdict))
    }
}

impl Verdict {
    fn parse(text: &'static str) -> Option<Self> {
        if text == "honoured" {
            return Some(Self::Honoured);
        }
        let (word, rest) = text.split_once(": ")?;
        match word {
            "no-effect" => Some(Self::NoEffect(rest)),
            "refused" => Some(Self::Refused(rest)),
            _ => None,
        }
    }
}
