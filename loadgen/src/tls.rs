//! TLS to a target and of the test server: which certificates are believed, and which one this side shows.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};

/// Where distributions keep the certificates that they trust.
const SYSTEM_FILES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Flags about TLS.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct TlsOptions {
    /// Certificates of the authorities that are believed, as PEM, instead of the system's.
    #[arg(long, value_name = "FILE")]
    pub cacert: Option<PathBuf>,
    /// Certificate to show to the target, with its chain, as PEM.
    #[arg(long, value_name = "FILE", requires = "key")]
    pub cert: Option<PathBuf>,
    /// Private key of --cert, as PEM.
    #[arg(long, value_name = "FILE", requires = "cert")]
    pub key: Option<PathBuf>,
    /// Name that the target's certificate must have, and that it is asked for; the host of the target by default.
    #[arg(long, value_name = "NAME")]
    pub server_name: Option<String>,
    /// Believe any certificate.
    #[arg(long, conflicts_with = "cacert")]
    pub insecure: bool,
}

/// What connections are made with.
#[derive(Clone)]
pub struct Tls {
    pub config: Arc<ClientConfig>,
    pub name: ServerName<'static>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Tls").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{path}: {reason}; a PEM file with {wanted} is wanted")]
    Pem { path: String, reason: String, wanted: &'static str },
    #[error("no file of trusted certificates was found on this system; try: --cacert FILE, or --insecure")]
    NoRoots,
    #[error("{cert} and {key} do not belong together, or cannot be used: {source}")]
    Pair { cert: String, key: String, source: rustls::Error },
    #[error("{path}: clients cannot be verified with it: {reason}")]
    ClientAuthority { path: String, reason: String },
    #[error("`{0}` is no name for a certificate; try: --server-name NAME")]
    Name(String),
    #[error("TLS: {0}")]
    Other(#[from] rustls::Error),
}

impl Tls {
    /// TLS to `host` that offers `alpn`.
    ///
    /// Errors: a file that cannot be read or holds something else, or a host that no certificate can name.
    pub fn new(options: &TlsOptions, host: &str, alpn: &[&[u8]]) -> Result<Tls, TlsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder =
            ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
        let builder = if options.insecure {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Anyone(provider)))
        } else {
            builder.with_root_certificates(roots(options.cacert.as_deref())?)
        };
        let mut config = match (&options.cert, &options.key) {
            (Some(cert), Some(key)) => {
                let chain = certificates(cert)?;
                let private = PrivateKeyDer::from_pem_file(key).map_err(|error| bad(key, &error, "a private key"))?;
                let pair = |source| TlsError::Pair {
                    cert: cert.display().to_string(),
                    key: key.display().to_string(),
                    source,
                };
                builder.with_client_auth_cert(chain, private).map_err(pair)?
            }
            _ => builder.with_no_client_auth(),
        };
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        let name = options.server_name.as_deref().unwrap_or(host);
        let name = ServerName::try_from(name.to_owned()).map_err(|_| TlsError::Name(name.to_owned()))?;
        Ok(Tls { config: Arc::new(config), name })
    }

    /// The same, offering `alpn` alone.
    pub fn offering(&self, alpn: &[u8]) -> Tls {
        let mut config = ClientConfig::clone(&self.config);
        config.alpn_protocols = vec![alpn.to_vec()];
        Tls { config: Arc::new(config), name: self.name.clone() }
    }
}

/// TLS of a server with the certificate chain `cert`; with `client_ca` clients have to show a certificate of that authority.
///
/// Errors: a file that cannot be read or holds something else.
pub fn server(
    cert: &Path,
    key: &Path,
    client_ca: Option<&Path>,
    alpn: &[&[u8]],
) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let fail = |reason: String| TlsError::ClientAuthority { path: path.display().to_string(), reason };
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(Some(path))?), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|error| fail(error.to_string()))?)
        }
    };
    let chain = certificates(cert)?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| bad(key, &error, "a private key"))?;
    let pair = |source| TlsError::Pair { cert: cert.display().to_string(), key: key.display().to_string(), source };
    let mut config = builder.with_single_cert(chain, private).map_err(pair)?;
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(Arc::new(config))
}

fn bad(path: &Path, error: &rustls::pki_types::pem::Error, wanted: &'static str) -> TlsError {
    use rustls::pki_types::pem::Error;
    let reason = match error {
        Error::Io(error) => error.to_string(),
        Error::NoItemsFound => format!("holds no {}", wanted.trim_start_matches("a ")),
        other => other.to_string(),
    };
    TlsError::Pem { path: path.display().to_string(), reason, wanted }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    const WANTED: &str = "certificates";
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let read = read.map_err(|error| bad(path, &error, WANTED))?;
    if read.is_empty() {
        return Err(bad(path, &rustls::pki_types::pem::Error::NoItemsFound, WANTED));
    }
    Ok(read)
}

fn roots(file: Option<&Path>) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    match file {
        // A file that the user names must be right in whole.
        Some(path) => {
            for certificate in certificates(path)? {
                store.add(certificate)?;
            }
        }
        None => {
            let found = SYSTEM_FILES.iter().map(Path::new).find(|path| path.exists()).ok_or(TlsError::NoRoots)?;
            store.add_parsable_certificates(certificates(found)?);
        }
    }
    Ok(store)
}

/// Believes any certificate, whose key must still have signed the handshake.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
