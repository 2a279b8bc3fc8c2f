//! The last good configuration as a file, so that a restart serves before the control plane answers.
//!
//! ```text
//! torus-proxy snapshot 1\n
//! length of the rest: 8 bytes, XXH64 of the rest: 8 bytes, both little-endian
//! Node, then a DeltaDiscoveryResponse for each kind and source, whose nonce names the source: each after its length as a varint
//! ```
//! What holds a secret of any kind is left out, and asked for anew. A file is replaced as a whole or not at all; one that is broken, or
//! not ours, is reported and left alone.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::service::discovery::v3 as discovery;
use envoy_types::pb::google::protobuf::Any;
use prost::Message;
use thiserror::Error;
use tokio::task::JoinHandle;
use torus_xds::{MessageType, redacted};
use xxhash_rust::xxh64::xxh64;

use super::kind::Kind;

/// What was accepted of one kind from one source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The source, in words that are the same after a restart.
    pub source: String,
    /// Of what.
    pub kind: Kind,
    /// State of the world: of the newest answer; empty where not all of it is here.
    pub version: Box<str>,
    /// By name.
    pub resources: Vec<KeptResource>,
}

/// One resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptResource {
    /// Its name.
    pub name: Box<str>,
    /// Its version.
    pub version: Box<str>,
    /// In wire format.
    pub body: Arc<[u8]>,
}

/// Why a file cannot be used.
#[derive(Debug, Error)]
pub enum SnapshotError {
    /// It is there and cannot be read.
    #[error("it cannot be read: {0}")]
    Unreadable(#[from] io::Error),
    /// It begins otherwise.
    #[error("it is no snapshot of torus-proxy")]
    Foreign,
    /// Written in another format.
    #[error("it is of format {0}; this version of torus-proxy reads format {FORMAT}")]
    OtherFormat(String),
    /// Shorter or longer than it says.
    #[error("it is cut off: {found} bytes follow its head, which names {named}")]
    Truncated {
        /// In the head.
        named: u64,
        /// In the file.
        found: u64,
    },
    /// Its content is not what was written.
    #[error("its checksum does not fit its content")]
    Damaged,
    /// Its content cannot be decoded.
    #[error("its content cannot be read: {0}")]
    Undecodable(#[from] prost::DecodeError),
    /// Of another proxy.
    #[error("it belongs to node `{id}` of cluster `{cluster}`")]
    OtherNode {
        /// node.id
        id: String,
        /// node.cluster
        cluster: String,
    },
}

/// What the file at `path` holds for `node`; nothing where there is no file.
pub fn load(path: &Path, node: &core::Node) -> Result<Vec<Kept>, SnapshotError> {
    match fs::read(path) {
        Ok(content) => decode(&content, node),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

fn decode(content: &[u8], node: &core::Node) -> Result<Vec<Kept>, SnapshotError> {
    let rest = content.strip_prefix(MAGIC).ok_or(SnapshotError::Foreign)?;
    let end = rest.iter().take(FORMAT_BYTES_MAX).position(|byte| *byte == b'\n').ok_or(SnapshotError::Foreign)?;
    let (format, rest) = rest.split_at_checked(end).ok_or(SnapshotError::Foreign)?;
    let format = String::from_utf8_lossy(format);
    if format != FORMAT {
        return Err(SnapshotError::OtherFormat(format.into_owned()));
    }
    let rest = rest.get(1..).unwrap_or_default();
    let cut_off = || SnapshotError::Truncated { named: HEAD_BYTES as u64, found: rest.len() as u64 };
    let (length, after) = rest.split_first_chunk::<8>().ok_or_else(cut_off)?;
    let (checksum, body) = after.split_first_chunk::<8>().ok_or_else(cut_off)?;
    let (named, found) = (u64::from_le_bytes(*length), body.len() as u64);
    if named != found {
        return Err(SnapshotError::Truncated { named, found });
    }
    if u64::from_le_bytes(*checksum) != xxh64(body, 0) {
        return Err(SnapshotError::Damaged);
    }
    let mut body = body;
    let owner = core::Node::decode_length_delimited(&mut body)?;
    if (&owner.id, &owner.cluster) != (&node.id, &node.cluster) {
        return Err(SnapshotError::OtherNode { id: owner.id, cluster: owner.cluster });
    }
    let mut all = Vec::new();
    while !body.is_empty() {
        let section = discovery::DeltaDiscoveryResponse::decode_length_delimited(&mut body)?;
        // A kind that this version does not keep is asked for anew.
        let Some(kind) = Kind::of(&section.type_url) else { continue };
        let resource = |it: discovery::Resource| KeptResource {
            name: it.name.into(),
            version: it.version.into(),
            body: it.resource.map(|packed| packed.value).unwrap_or_default().into(),
        };
        let resources = section.resources.into_iter().map(resource).collect();
        all.push(Kept { source: section.nonce, kind, version: section.system_version_info.into(), resources });
    }
    Ok(all)
}

/// The content of a file for `node`.
fn encode(node: &core::Node, all: Vec<Kept>) -> Result<Vec<u8>, prost::EncodeError> {
    let owner = core::Node { id: node.id.clone(), cluster: node.cluster.clone(), ..core::Node::default() };
    let mut body = Vec::new();
    owner.encode_length_delimited(&mut body)?;
    for Kept { source, kind, version, mut resources } in all {
        let message = MessageType::from_type_url(kind.type_url());
        let count = resources.len();
        resources.retain(|it| message.is_some_and(|message| *redacted(message, &it.body) == *it.body));
        let is_whole = resources.len() == count;
        let resource = |it: KeptResource| discovery::Resource {
            name: it.name.into(),
            version: it.version.into(),
            resource: Some(Any { type_url: String::new(), value: it.body.to_vec() }),
            ..discovery::Resource::default()
        };
        let section = discovery::DeltaDiscoveryResponse {
            system_version_info: if is_whole { version.into() } else { String::new() },
            type_url: kind.type_url().to_owned(),
            nonce: source,
            resources: resources.into_iter().map(resource).collect(),
            ..discovery::DeltaDiscoveryResponse::default()
        };
        section.encode_length_delimited(&mut body)?;
    }
    let mut content = [MAGIC, FORMAT.as_bytes(), b"\n"].concat();
    content.extend_from_slice(&(body.len() as u64).to_le_bytes());
    content.extend_from_slice(&xxh64(&body, 0).to_le_bytes());
    content.extend_from_slice(&body);
    Ok(content)
}

/// Puts `content` at `path` in one step; a crash leaves the file before or this one.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    name.push(".new");
    let draft = path.with_file_name(name);
    // What a mesh looks like is nobody else's business.
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    file.write_all(content)?;
    file.sync_all()?;
    drop(file);
    fs::rename(&draft, path)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

/// Keeps a file up to date, seldom enough that this costs little.
pub struct Keeper {
    path: PathBuf,
    node: core::Node,
    is_behind: bool,
    due: Instant,
    writing: Option<JoinHandle<Duration>>,
}

impl Keeper {
    /// Of the file at `path`.
    pub fn new(path: PathBuf, node: core::Node) -> Self {
        Self { path, node, is_behind: false, due: Instant::now(), writing: None }
    }

    /// What the file holds; one that cannot be used is reported.
    pub fn load(&self) -> Vec<Kept> {
        load(&self.path, &self.node).unwrap_or_else(|error| {
            let path = self.path.display();
            tracing::warn!(target: "config", "the snapshot {path} is ignored: {error}; the control plane is waited for");
            Vec::new()
        })
    }

    /// What is in the file is the newest no more.
    pub fn note_change(&mut self) {
        self.is_behind = true;
    }

    /// Whether [`Self::keep`] should be called now.
    pub async fn is_due(&mut self) -> bool {
        if let Some(writing) = self.writing.take_if(|writing| writing.is_finished()) {
            let took = writing.await.unwrap_or_default();
            self.due = Instant::now() + KEEP_INTERVAL.max(took * KEEP_TIMES);
        }
        self.is_behind && self.writing.is_none() && Instant::now() >= self.due
    }

    /// Writes `all` on another thread.
    pub fn keep(&mut self, all: Vec<Kept>) {
        self.is_behind = false;
        let (path, node) = (self.path.clone(), self.node.clone());
        self.writing = Some(tokio::task::spawn_blocking(move || {
            let began = Instant::now();
            write(&path, &node, all);
            began.elapsed()
        }));
    }

    /// Writes what `all` makes, if the file is behind, before the process ends.
    pub fn finish(&mut self, all: impl FnOnce() -> Vec<Kept>) {
        // What another thread still writes is older, and must not come last.
        if self.is_behind && self.writing.as_ref().is_none_or(JoinHandle::is_finished) {
            write(&self.path, &self.node, all());
        }
    }
}

fn write(path: &Path, node: &core::Node, all: Vec<Kept>) {
    let content = encode(node, all).map_err(io::Error::other);
    if let Err(error) = content.and_then(|content| replace(path, &content)) {
        let path = path.display();
        tracing::error!(
            target: "config",
            "the configuration cannot be kept at {path}: {error}; name a file that can be written with --snapshot-path"
        );
    }
}

/// What a file begins with.
const MAGIC: &[u8] = b"torus-proxy snapshot ";
/// Of the format; another one is not read.
const FORMAT: &str = "1";
/// More than any format's name has.
const FORMAT_BYTES_MAX: usize = 20;
/// Length and checksum.
const HEAD_BYTES: usize = 16;
/// A file is written at most this often.
const KEEP_INTERVAL: Duration = Duration::from_secs(1);
/// And no more often than this many times what writing takes.
const KEEP_TIMES: u32 = 100;

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: &str) -> core::Node {
        core::Node { id: id.to_owned(), cluster: "c".to_owned(), ..core::Node::default() }
    }

    fn resource(name: &str, body: Vec<u8>) -> KeptResource {
        KeptResource { name: name.into(), version: "3".into(), body: body.into() }
    }

    fn kept(resources: Vec<KeptResource>) -> Vec<Kept> {
        vec![Kept { source: "ads".to_owned(), kind: Kind::Cluster, version: "7".into(), resources }]
    }

    fn plain(name: &str) -> KeptResource {
        // Field 1, the name.
        resource(name, [&[0x0a, name.len() as u8], name.as_bytes()].concat())
    }

    #[test]
    fn what_was_written_is_read() {
        let all = kept(vec![plain("a"), plain("b")]);
        assert_eq!(decode(&encode(&node("n"), all.clone()).unwrap(), &node("n")).unwrap(), all);
    }

    #[test]
    fn what_holds_a_private_key_is_left_out_and_the_version_with_it() {
        use envoy_types::pb::envoy::config::cluster::v3::Cluster;
        use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
        let key = core::DataSource {
            specifier: Some(core::data_source::Specifier::InlineString("-----BEGIN".to_owned())),
            ..core::DataSource::default()
        };
        let certificate = tls::TlsCertificate { private_key: Some(key), ..tls::TlsCertificate::default() };
        let common = tls::CommonTlsContext { tls_certificates: vec![certificate], ..tls::CommonTlsContext::default() };
        let context =
            tls::UpstreamTlsContext { common_tls_context: Some(common), ..tls::UpstreamTlsContext::default() };
        let packed = Any {
            type_url: "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext".to_owned(),
            value: context.encode_to_vec(),
        };
        let socket = core::TransportSocket {
            name: "tls".to_owned(),
            config_type: Some(core::transport_socket::ConfigType::TypedConfig(packed)),
        };
        let cluster =
            Cluster { name: "s".to_owned(), transport_socket: Some(socket), ..Cluster::default() }.encode_to_vec();
        let content = encode(&node("n"), kept(vec![plain("a"), resource("s", cluster)])).unwrap();
        let read = decode(&content, &node("n")).unwrap();
        assert_eq!(read[0].resources, [plain("a")]);
        assert_eq!(&*read[0].version, "", "not all of that version is here");
        assert!(!String::from_utf8_lossy(&content).contains("BEGIN"));
    }

    #[test]
    fn what_is_not_a_whole_snapshot_of_this_proxy_is_refused_in_a_line() {
        let good = encode(&node("n"), kept(vec![plain("a")])).unwrap();
        let changed = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            bytes
        };
        let check = |content: &[u8], wanted: &str| {
            let refused = decode(content, &node("n")).unwrap_err().to_string();
            assert!(refused.starts_with(wanted) && !refused.contains('\n'), "{refused}");
        };
        check(b"", "it is no snapshot of torus-proxy");
        check(b"node: {id: n}\n", "it is no snapshot of torus-proxy");
        check(&changed(MAGIC.len(), b'2'), "it is of format 2; this version of torus-proxy reads format 1");
        check(&good[..good.len() - 1], "it is cut off:");
        check(&good[..MAGIC.len() + 7], "it is cut off:");
        check(&changed(good.len() - 1, 0xff), "its checksum does not fit its content");
        let other = decode(&good, &node("m")).unwrap_err().to_string();
        assert_eq!(other, "it belongs to node `n` of cluster `c`");
        for length in 0..good.len() {
            assert!(decode(&good[..length], &node("n")).is_err(), "{length} bytes of it");
        }
    }

    #[test]
    fn a_file_is_replaced_as_a_whole_and_readable_by_its_owner_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("snapshot");
        assert_eq!(load(&path, &node("n")).unwrap(), []);
        for name in ["a", "b"] {
            write(&path, &node("n"), kept(vec![plain(name)]));
            assert_eq!(load(&path, &node("n")).unwrap(), kept(vec![plain(name)]));
        }
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no draft is left");
    }
}
