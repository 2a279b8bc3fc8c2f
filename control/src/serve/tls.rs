//! TLS of the xDS port: the certificate it shows and whose certificates it believes, read again when their files change.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Files in PEM, and what is asked of clients.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The certificate that is shown, with its chain.
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// Authorities whose certificates are believed of clients; clients are asked for none without them.
    pub client_authorities: Option<PathBuf>,
    pub client_certificate: ClientCertificate,
}

/// Whether a client must show a certificate, where authorities are named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ClientCertificate {
    /// One that is shown must be good
    Optional,
    /// Who shows none is turned away
    Required,
}

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{flag} {path}: {reason}; a PEM file with {wanted} is wanted")]
    Pem { flag: &'static str, path: String, reason: String, wanted: &'static str },
    #[error("--tls-cert {cert} and --tls-key {key}: do not belong together, or cannot be used: {source}")]
    Pair { cert: String, key: String, source: rustls::Error },
    #[error("--tls-client-ca {path}: clients cannot be verified with it: {reason}")]
    Authorities { path: String, reason: String },
    #[error("TLS: {0}")]
    Other(#[from] rustls::Error),
}

/// What new connections are served with.
pub struct Tls {
    files: TlsFiles,
    current: RwLock<Arc<ServerConfig>>,
}

impl Tls {
    /// TLS from `files`. Errors name the flag and the file.
    pub fn read(files: TlsFiles) -> Result<Self, TlsError> {
        let current = RwLock::new(Arc::new(files.configuration()?));
        Ok(Self { files, current })
    }

    /// What a connection that begins now is served with.
    pub fn current(&self) -> Arc<ServerConfig> {
        // A handle is whole even if a holder of the lock panicked.
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes up files that changed, for as long as it is polled. Those that cannot be used are told, and what was before stays in force.
    pub async fn follow(&self) {
        let mut read = self.files.stamps();
        let mut seen = read.clone();
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let found = self.files.stamps();
            // Certificate and key are two files: both must have stood still for one look.
            let stands_still = seen == found;
            seen.clone_from(&found);
            if !stands_still || read == found {
                continue;
            }
            read = found;
            match self.files.configuration() {
                Ok(configuration) => {
                    *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(configuration);
                    tracing::info!("{}: the new certificate is in force", self.files.certificate.display());
                }
                Err(error) => tracing::error!("{error}; what was read before stays in force"),
            }
        }
    }
}

impl TlsFiles {
    fn configuration(&self) -> Result<ServerConfig, TlsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
        let builder = match &self.client_authorities {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let fail = |reason: String| TlsError::Authorities { path: path.display().to_string(), reason };
                let mut roots = RootCertStore::empty();
                for certificate in certificates("--tls-client-ca", path)? {
                    roots.add(certificate).map_err(|error| fail(error.to_string()))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                let verifier = match self.client_certificate {
                    ClientCertificate::Optional => verifier.allow_unauthenticated(),
                    ClientCertificate::Required => verifier,
                };
                builder.with_client_cert_verifier(verifier.build().map_err(|error| fail(error.to_string()))?)
            }
        };
        let chain = certificates("--tls-cert", &self.certificate)?;
        let key = PrivateKeyDer::from_pem_file(&self.key)
            .map_err(|error| bad("--tls-key", &self.key, &error, "a private key"))?;
        let pair = |source| TlsError::Pair {
            cert: self.certificate.display().to_string(),
            key: self.key.display().to_string(),
            source,
        };
        let mut configuration = builder.with_single_cert(chain, key).map_err(pair)?;
        configuration.alpn_protocols = vec![b"h2".to_vec()];
        Ok(configuration)
    }

    /// What a write or a rename of one of the files changes.
    fn stamps(&self) -> Vec<Option<Stamp>> {
        let files = [Some(&self.certificate), Some(&self.key), self.client_authorities.as_ref()];
        let stamp = |path: &PathBuf| {
            let found = fs::metadata(path).ok()?;
            Some((found.dev(), found.ino(), found.mtime(), found.mtime_nsec(), found.len()))
        };
        files.into_iter().flatten().map(stamp).collect()
    }
}

/// Device, inode, time of the last write and length of a file.
type Stamp = (u64, u64, i64, i64, u64);

/// The names of a certificate's holder: URIs, of which a SPIFFE identity is one, and DNS names.
pub fn subject_names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return Vec::new() };
    let Ok(Some(names)) = parsed.subject_alternative_name() else { return Vec::new() };
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::URI(name) | GeneralName::DNSName(name) => Some((*name).to_owned()),
        _ => None,
    };
    names.value.general_names.iter().filter_map(name).take(NAMES_MAX).collect()
}

fn certificates(flag: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    const WANTED: &str = "certificates";
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let read = read.map_err(|error| bad(flag, path, &error, WANTED))?;
    if read.is_empty() {
        return Err(bad(flag, path, &pem::Error::NoItemsFound, WANTED));
    }
    Ok(read)
}

fn bad(flag: &'static str, path: &Path, error: &pem::Error, wanted: &'static str) -> TlsError {
    let reason = match error {
        pem::Error::Io(error) => error.to_string(),
        pem::Error::NoItemsFound => "holds none".to_owned(),
        other => other.to_string(),
    };
    TlsError::Pem { flag, path: path.display().to_string(), reason, wanted }
}

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Certificates of workloads have one or two.
const NAMES_MAX: usize = 64;
