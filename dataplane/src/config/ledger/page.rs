//! The ledger as a page for users: docs/envoy-compatibility.md.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use torus_xds::schema::MessageType;

use super::ENTRIES;
use super::entries::{MessageEntry, Verdict};

/// What `torus-proxy --print-compatibility` prints, in Markdown.
pub fn compatibility_page() -> String {
    let mut messages: Vec<MessageType> = ENTRIES.listed().map(|(message, _)| message).collect();
    messages.sort_by_key(|message| message.full_name());
    let mut body = String::new();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for message in &messages {
        // Writing to a String cannot fail.
        let _ = write!(body, "\n## {}\n\n| field | | |\n|---|---|---|\n", message.full_name());
        rows(*message, &mut body, &mut counts);
    }
    let mut covered: Vec<(MessageType, &Verdict)> = ENTRIES.covered().collect();
    covered.sort_by_key(|(message, _)| message.full_name());
    let _ = write!(body, "\n## Messages that are treated as a whole\n\n| message | | |\n|---|---|---|\n");
    for (message, verdict) in covered {
        let (word, note) = words(verdict);
        let _ = writeln!(body, "| {} | {word} | {note} |", message.full_name());
    }
    let count = |word| counts.get(word).copied().unwrap_or_default();
    format!(
        "# Envoy compatibility\n\n\
         This page is printed by `torus-proxy --print-compatibility`. It lists each field of each message of Envoy's v3 API that a\n\
         configuration may contain, and what this version does about it:\n\n\
         - **honoured** ({}): it does what Envoy's documentation says.\n\
         - **no effect** ({}): it is accepted, and by design there is nothing to do; the note says why.\n\
         - **refused** ({}): a configuration that sets it is not accepted; the error names the feature, with file, line and column.\n\n\
         A message that is not listed is refused as a whole, and so is a field that Envoy's API does not have.\n\
         {} messages are listed.\n{body}",
        count("honoured"),
        count("no effect"),
        count("refused"),
        messages.len(),
    )
}

fn rows(message: MessageType, body: &mut String, counts: &mut BTreeMap<&str, usize>) {
    let MessageEntry::Fields(entries) = ENTRIES.message(message) else { return };
    let mut fields: Vec<_> = message.fields().collect();
    fields.sort_by_key(|field| field.number());
    for field in fields {
        let Some(entry) = entries.get(field.number()) else { continue };
        let (word, mut note) = words(&entry.verdict);
        *counts.entry(word).or_default() += 1;
        for (value, feature) in &entry.values {
            let separator = if note.is_empty() { "" } else { "; " };
            let feature = feature.split("; ").next().unwrap_or_default();
            let _ = write!(note, "{separator}`{value}` is refused: {feature}");
        }
        let deprecated = if field.is_deprecated() { " (deprecated)" } else { "" };
        let _ = writeln!(body, "| {}{deprecated} | {word} | {note} |", field.name());
    }
}

fn words(verdict: &Verdict) -> (&'static str, String) {
    match verdict {
        Verdict::Honoured => ("honoured", String::new()),
        Verdict::NoEffect(reason) => ("no effect", (*reason).to_owned()),
        Verdict::Refused(feature) => ("refused", feature.replace("; ", ": ")),
    }
}
