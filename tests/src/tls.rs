//! TLS for tests: certificates of every kind, and a client that says what it saw of a handshake.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};
use serde::Deserialize;

/// A TLS connection of a client.
pub struct TlsStream(pub StreamOwned<ClientConnection, TcpStream>);

impl Drop for TlsStream {
    fn drop(&mut self) {
        self.0.conn.send_close_notify();
        let _ = self.0.flush();
    }
}

/// A certificate to make.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Certificate {
    /// Name of the authority that signs it; itself where empty.
    pub by: String,
    /// It may sign others.
    pub authority: bool,
    /// Its common name; the certificate's name where empty.
    pub common_name: Option<String>,
    /// DNS names.
    pub dns: Vec<String>,
    /// URIs.
    pub uri: Vec<String>,
    /// IP addresses.
    pub ip: Vec<std::net::IpAddr>,
    /// E-mail addresses.
    pub email: Vec<String>,
    /// Its validity is over.
    pub expired: bool,
    /// Its validity has not begun.
    pub not_yet: bool,
    /// For clients or servers alone: `client`, `server`.
    pub usage: Option<String>,
    /// Names of certificates of this authority that its list `NAME.crl` revokes.
    pub revokes: Option<Vec<String>>,
    /// The files hold its authority's certificate behind its own.
    pub with_chain: bool,
}

/// Makes every certificate in `folder`, as `NAME.pem`, `NAME.key` and, where it revokes, `NAME.crl`.
///
/// # Panics
/// Where a certificate names an authority that is not there.
pub fn write_certificates(folder: &Path, certificates: &BTreeMap<String, Certificate>) {
    let mut made: BTreeMap<&str, (CertificateParams, KeyPair, String)> = BTreeMap::new();
    let mut serial = 16;
    // Authorities that sign themselves come first, then what they sign.
    while made.len() < certificates.len() {
        let before = made.len();
        for (name, config) in certificates {
            if made.contains_key(name.as_str()) || !config.by.is_empty() && !made.contains_key(config.by.as_str()) {
                continue;
            }
            serial += 1;
            let params = config.params(name, serial);
            let key = KeyPair::generate().expect("a key");
            let pem = match made.get(config.by.as_str()) {
                None => params.self_signed(&key).expect("a certificate").pem(),
                Some((authority, authority_key, authority_pem)) => {
                    let issuer = Issuer::from_params(authority, authority_key);
                    let own = params.signed_by(&key, &issuer).expect("a certificate").pem();
                    if config.with_chain { own + authority_pem } else { own }
                }
            };
            fs::write(folder.join(format!("{name}.pem")), &pem).expect("a writable folder");
            fs::write(folder.join(format!("{name}.key")), key.serialize_pem()).expect("a writable folder");
            made.insert(name, (params, key, pem));
        }
        assert!(made.len() > before, "a certificate is signed by one that is not there");
    }
    for (name, config) in certificates {
        let (Some(revoked), Some((params, key, _))) = (&config.revokes, made.get(name.as_str())) else { continue };
        let serials = revoked.iter().filter_map(|name| made.get(name.as_str())?.0.serial_number.clone());
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(2100, 1, 1),
            crl_number: SerialNumber::from(1u64),
            issuing_distribution_point: None,
            revoked_certs: serials
                .map(|serial_number| RevokedCertParams {
                    serial_number,
                    revocation_time: date_time_ymd(2024, 1, 1),
                    reason_code: None,
                    invalidity_date: None,
                })
                .collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&Issuer::from_params(params, key)).expect("a list");
        fs::write(folder.join(format!("{name}.crl")), list.pem().expect("PEM")).expect("a writable folder");
    }
}

impl Certificate {
    fn params(&self, name: &str, serial: u64) -> CertificateParams {
        let mut params = CertificateParams::default();
        let common_name = self.common_name.as_deref().unwrap_or(name);
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.serial_number = Some(SerialNumber::from(serial));
        if self.authority {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        }
        let text = |text: &String| text.as_str().try_into().expect("an ASCII name");
        params.subject_alt_names = (self.dns.iter().map(|name| SanType::DnsName(text(name))))
            .chain(self.uri.iter().map(|name| SanType::URI(text(name))))
            .chain(self.email.iter().map(|name| SanType::Rfc822Name(text(name))))
            .chain(self.ip.iter().map(|ip| SanType::IpAddress(*ip)))
            .collect();
        (params.not_before, params.not_after) = match (self.expired, self.not_yet) {
            (true, _) => (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1)),
            (_, true) => (date_time_ymd(2090, 1, 1), date_time_ymd(2091, 1, 1)),
            _ => (date_time_ymd(2024, 1, 1), date_time_ymd(2090, 1, 1)),
        };
        match self.usage.as_deref() {
            Some("client") => params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth),
            Some(_) => params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth),
            None => {}
        }
        params
    }
}

/// How a client speaks TLS.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsClient {
    /// Server name to ask for; none where absent.
    pub sni: Option<String>,
    /// Application protocols to offer.
    pub alpn: Vec<String>,
    /// Name of the certificate to present.
    pub certificate: Option<String>,
    /// `1.2` or `1.3`; both where absent.
    pub version: Option<String>,
    #[serde(skip)]
    folder: PathBuf,
}

/// What a client saw of a handshake, as `field -> text`.
#[derive(Debug, Default)]
pub struct Seen(pub BTreeMap<String, String>);

impl TlsClient {
    /// The same, with its certificates in `folder`.
    pub fn in_folder(&self, folder: &Path) -> Self {
        Self { folder: folder.to_owned(), ..self.clone() }
    }

    /// Completes a handshake, whoever the server is.
    pub fn handshake(&self, mut socket: TcpStream, patience: Duration) -> (Seen, Option<TlsStream>) {
        let mut seen = Seen::default();
        let mut connection = self.connection();
        let _ = socket.set_read_timeout(Some(patience));
        let mut put = |field: &str, text: String| seen.0.insert(format!("tls.{field}"), text);
        while connection.is_handshaking() {
            if let Err(error) = connection.complete_io(&mut socket) {
                // Who reads first of an alert and a reset is chance.
                put("failed", failure(&error));
                return (seen, None);
            }
        }
        // In TLS 1.3 the server judges the client's certificate after the client is done (RFC 8446 §4.4.2.4).
        let mut stream = StreamOwned::new(connection, socket);
        if self.certificate.is_some() || self.version.as_deref() != Some("1.2") {
            let _ = stream.flush();
            let _ = stream.sock.set_read_timeout(Some(Duration::from_millis(60)));
            let mut byte = [];
            if let Err(error) = stream.conn.complete_io(&mut stream.sock).and_then(|_| stream.read(&mut byte))
                && !matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
            {
                put("failed", failure(&error));
                return (seen, None);
            }
            let _ = stream.sock.set_read_timeout(Some(patience));
        }
        let connection = &stream.conn;
        put("version", format!("{:?}", connection.protocol_version()));
        put("alpn", connection.alpn_protocol().map_or("-".into(), |alpn| String::from_utf8_lossy(alpn).into_owned()));
        let suite = connection.negotiated_cipher_suite();
        put("cipher", suite.map_or("-".into(), |suite| format!("{:?}", suite.suite())));
        let server = connection.peer_certificates().and_then(|chain| chain.first());
        put("server", server.and_then(|server| self.named(server)).unwrap_or_else(|| "-".into()));
        (seen, Some(TlsStream(stream)))
    }

    fn connection(&self) -> ClientConnection {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let versions: Vec<_> = match self.version.as_deref() {
            Some("1.2") => vec![&rustls::version::TLS12],
            Some("1.3") => vec![&rustls::version::TLS13],
            _ => vec![&rustls::version::TLS12, &rustls::version::TLS13],
        };
        let verifier = Arc::new(Anyone(Arc::clone(&provider)));
        let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(&versions);
        let builder = builder.expect("versions").dangerous().with_custom_certificate_verifier(verifier);
        let mut config = match &self.certificate {
            None => builder.with_no_client_auth(),
            Some(name) => {
                let chain = CertificateDer::pem_file_iter(self.folder.join(format!("{name}.pem"))).expect("its file");
                let chain = chain.collect::<Result<_, _>>().expect("certificates");
                let key = PrivateKeyDer::from_pem_file(self.folder.join(format!("{name}.key"))).expect("a key");
                builder.with_client_auth_cert(chain, key).expect("a certificate and its key")
            }
        };
        config.alpn_protocols = self.alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        config.enable_sni = self.sni.is_some();
        let name = self.sni.clone().unwrap_or_else(|| "127.0.0.1".into());
        let name = ServerName::try_from(name).expect("a server name");
        ClientConnection::new(Arc::new(config), name).expect("a client")
    }

    /// The name of a certificate by its file.
    fn named(&self, wanted: &CertificateDer<'_>) -> Option<String> {
        let files = fs::read_dir(&self.folder).ok()?;
        let paths = files.filter_map(|file| Some(file.ok()?.path()));
        paths.filter(|path| path.extension().is_some_and(|it| it == "pem")).find_map(|path| {
            let first = CertificateDer::pem_file_iter(&path).ok()?.next()?.ok()?;
            (first == *wanted).then(|| path.file_stem().map(|name| name.to_string_lossy().into_owned()))?
        })
    }
}

fn failure(error: &std::io::Error) -> String {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(error) => error.to_string(),
        None => "closed".into(),
    }
}

/// Takes every server.
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
