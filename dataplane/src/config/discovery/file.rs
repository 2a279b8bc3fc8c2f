//! Resources that a file holds: a DiscoveryResponse in YAML, JSON or protobuf, replaced by renaming another over it.
//!
//! Each content of the file is an answer in state of the world, as if a server had sent it; requests go nowhere.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::service::discovery::v3 as discovery;
use prost::Name as _;
use tokio::sync::mpsc;
use torus_xds::subscription::Response;
use torus_xds::{Diagnostic, MessageType, Source, UnknownFields};

use super::grpc::{Event, unwrapped};
use super::kind::Kind;
use super::source::SourceIndex;
use crate::config::watched_file::WatchedFile;

/// Follows the file at `path`. Ends when nobody listens to `events`.
pub async fn run(
    kind: Kind,
    path: PathBuf,
    interval: Duration,
    source: SourceIndex,
    events: mpsc::Sender<(SourceIndex, Event)>,
) {
    // Nobody reads requests; the sender outlives this only in the hands of the receiver of events.
    let (requests, _unread) = mpsc::unbounded_channel();
    if events.send((source, Event::Opened(requests))).await.is_err() {
        return;
    }
    let mut file = WatchedFile::new(path.clone());
    let mut revision = 0u64;
    loop {
        if file.has_changed() {
            let received = Instant::now();
            let content = tokio::fs::read(&path).await.map_err(|error| format!("{}: {error}", path.display()));
            revision += 1;
            let event = match content.and_then(|content| read(&path, content, revision)) {
                Ok(response) => Event::Received(kind.type_url().into(), response, received),
                Err(reason) => Event::Unreadable(reason),
            };
            if events.send((source, event)).await.is_err() {
                return;
            }
        }
        tokio::time::sleep(interval).await;
    }
}

/// The DiscoveryResponse in `content`; the error is a line with its place.
fn read(path: &Path, content: Vec<u8>, revision: u64) -> Result<Response, String> {
    if content.len() > FILE_BYTES_MAX {
        return Err(format!("{}: is larger than {FILE_BYTES_MAX} bytes", path.display()));
    }
    let line = |finding: Diagnostic| finding.line().to_string();
    let first = |findings: Vec<Diagnostic>| findings.into_iter().next().map(line).unwrap_or_default();
    let source = Source::parse(&path.to_string_lossy(), content).map_err(line)?;
    let full_name = discovery::DiscoveryResponse::full_name();
    let message = MessageType::named(&full_name).ok_or_else(|| format!("{full_name} is not part of the schema"))?;
    let encoded = torus_xds::encode(vec![source], message, UnknownFields::Refuse).map_err(first)?;
    let response: discovery::DiscoveryResponse = encoded.decode().map_err(first)?;
    Ok(Response {
        version: response.version_info.into(),
        nonce: revision.to_string().into(),
        resources: response.resources.into_iter().map(unwrapped).collect(),
        removed: Vec::new(),
    })
}

/// Bytes of a file of resources.
const FILE_BYTES_MAX: usize = 256 << 20;
