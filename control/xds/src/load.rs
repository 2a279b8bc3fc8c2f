//! Documents to messages: one or more files, merged as Envoy merges `-c` and `--config-yaml`.

use std::sync::Arc;

use prost::{Message, Name};

use crate::binary;
use crate::diagnostic::{Diagnostic, Severity};
use crate::document::{self, Document, Format};
use crate::schema::MessageType;
use crate::transcode::{self, UnknownFields};

/// A configuration as protobuf bytes, with the documents that it was made from.
#[derive(Debug)]
pub struct Encoded {
    /// What the bytes are.
    pub message: MessageType,
    /// The message. Where several sources were merged, singular submessages may occur more than once: protobuf readers merge them.
    pub bytes: Vec<u8>,
    /// Findings that do not stop the configuration from being used.
    pub warnings: Vec<Diagnostic>,
    documents: Vec<Document>,
    file: Arc<str>,
}

/// Where a configuration comes from.
#[derive(Debug)]
pub enum Source {
    /// YAML or JSON.
    Text(Document),
    /// A protobuf message in wire format, from the file or flag of this name.
    Binary(Arc<str>, Vec<u8>),
}

impl Source {
    /// Parses what `name` holds; the format follows from the extension: `.json`, `.pb` (protobuf in wire format), anything else YAML.
    pub fn parse(name: &str, content: Vec<u8>) -> Result<Self, Diagnostic> {
        let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension);
        let format = match extension {
            "pb" => return Ok(Self::Binary(name.into(), content)),
            "pb_text" => {
                let reason =
                    "protobuf text format is not read; convert the file to YAML, JSON or binary protobuf (.pb)";
                return Err(Diagnostic::error(name.into(), "", reason));
            }
            "json" => Format::Json,
            _ => Format::Yaml,
        };
        let text = String::from_utf8(content).map_err(|error| {
            let reason = format!("not UTF-8 text: byte {} is invalid", error.utf8_error().valid_up_to());
            Diagnostic::error(name.into(), "", reason)
        })?;
        Document::parse(name, text, format).map(Self::Text)
    }
}

/// Writes `sources`, merged in order, as one `message`. All errors of all sources come back together.
pub fn encode(
    sources: Vec<Source>,
    message: MessageType,
    unknown_fields: UnknownFields,
) -> Result<Encoded, Vec<Diagnostic>> {
    let mut findings = Vec::new();
    let mut encoded =
        Encoded { message, bytes: Vec::new(), warnings: Vec::new(), documents: Vec::new(), file: Arc::from("") };
    for source in sources {
        match source {
            Source::Text(document) => {
                let bytes = transcode::encode(&document, message, unknown_fields, &mut findings);
                encoded.append(bytes);
                encoded.file = document.name().clone();
                encoded.documents.push(document);
            }
            Source::Binary(name, bytes) => {
                binary::check(&name, message, &bytes, unknown_fields, &mut findings);
                encoded.append(bytes);
                encoded.file = name;
            }
        }
    }
    encoded.warnings = refuse_errors(findings)?;
    Ok(encoded)
}

/// Writes a document that is a list of `message`.
pub fn encode_list(
    document: &Document,
    message: MessageType,
    unknown_fields: UnknownFields,
) -> Result<Vec<Vec<u8>>, Vec<Diagnostic>> {
    let mut findings = Vec::new();
    let messages = transcode::encode_list(document, message, unknown_fields, &mut findings);
    refuse_errors(findings)?;
    Ok(messages)
}

/// A message from YAML text, for tests and small documents.
pub fn from_yaml<M: Message + Name + Default>(text: &str) -> Result<M, Vec<Diagnostic>> {
    from_text("yaml", text, Format::Yaml)
}

/// A message from JSON text.
pub fn from_json<M: Message + Name + Default>(text: &str) -> Result<M, Vec<Diagnostic>> {
    from_text("json", text, Format::Json)
}

fn from_text<M: Message + Name + Default>(name: &str, text: &str, format: Format) -> Result<M, Vec<Diagnostic>> {
    let document = Document::parse(name, text.to_owned(), format).map_err(|error| vec![error])?;
    let Some(message) = MessageType::named(&M::full_name()) else {
        let reason = format!("{} is not part of the schema", M::full_name());
        return Err(vec![Diagnostic::error(name.into(), "", reason)]);
    };
    encode(vec![Source::Text(document)], message, UnknownFields::Refuse)?.decode()
}

impl Encoded {
    /// The bytes as a message.
    pub fn decode<M: Message + Default>(&self) -> Result<M, Vec<Diagnostic>> {
        M::decode(self.bytes.as_slice())
            .map_err(|error| vec![self.diagnose("", format!("not a protobuf message: {error}"), None)])
    }

    /// An error about the field at `path`, with its line and column where the configuration is text.
    pub fn diagnose(&self, path: &str, reason: String, suggestion: Option<String>) -> Diagnostic {
        let documents: Vec<&Document> = self.documents.iter().collect();
        let (file, place) = match document::locate(&documents, path) {
            Some((document, place)) => (document.name().clone(), Some(place)),
            None => (self.file.clone(), None),
        };
        Diagnostic { severity: Severity::Error, file, place, path: path.to_owned(), reason, suggestion }
    }

    /// Frees the documents' text and nodes; findings from then on have a path but no line.
    pub fn forget_documents(&mut self) {
        self.documents = Vec::new();
    }

    fn append(&mut self, bytes: Vec<u8>) {
        if self.bytes.is_empty() {
            self.bytes = bytes;
        } else {
            // Concatenated messages are merged ones (protobuf.dev, "Encoding": last one wins, submessages merge).
            self.bytes.extend_from_slice(&bytes);
        }
    }
}

/// The warnings among `findings`, unless there is an error.
fn refuse_errors(findings: Vec<Diagnostic>) -> Result<Vec<Diagnostic>, Vec<Diagnostic>> {
    if findings.iter().any(|finding| finding.severity == Severity::Error) { Err(findings) } else { Ok(findings) }
}
