//! The control plane under TLS, and what it saw of its clients.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use super::Plane;

/// What a completed handshake says of the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenHandshake {
    pub server_name: Option<String>,
    pub protocol: Option<String>,
    /// It has shown a certificate.
    pub shows: bool,
}

/// An authority whose files are in a folder: `ca.pem`, and `NAME.pem` with `NAME.key` of those that it has signed.
pub struct Authority {
    folder: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub fn new(folder: &Path) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        std::fs::write(folder.join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        Self { folder: folder.to_owned(), issuer: Issuer::new(params, key) }
    }

    /// Makes a certificate for a DNS name.
    pub fn sign(&self, name: &str) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        std::fs::write(self.folder.join(format!("{name}.pem")), certificate.pem()).unwrap();
        std::fs::write(self.folder.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }

    fn server(&self, name: &str, asks: bool) -> ServerConfig {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let file = |name: &str| self.folder.join(name);
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(file("ca.pem")).unwrap()).unwrap();
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone()).build().unwrap();
        let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let builder = if asks { builder.with_client_cert_verifier(verifier) } else { builder.with_no_client_auth() };
        let chain = vec![CertificateDer::from_pem_file(file(&format!("{name}.pem"))).unwrap()];
        let key = PrivateKeyDer::from_pem_file(file(&format!("{name}.key"))).unwrap();
        let mut config = builder.with_single_cert(chain, key).unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        config
    }
}

impl Plane {
    /// Serves with the certificate `name`; whether it `asks` for the client's.
    pub fn serve_tls(
        &self,
        port: u16,
        authority: &Authority,
        name: &str,
        asks: bool,
    ) -> (tokio::runtime::Runtime, Arc<Mutex<Vec<SeenHandshake>>>) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(authority.server(name, asks)));
        let seen: Arc<Mutex<Vec<SeenHandshake>>> = Arc::default();
        let (sender, accepted) = mpsc::channel(1);
        let noted = seen.clone();
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.unwrap();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let Ok(stream) = acceptor.accept(stream).await else { continue };
                let (_, connection) = stream.get_ref();
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                noted.lock().unwrap().push(SeenHandshake {
                    server_name: connection.server_name().map(ToOwned::to_owned),
                    protocol: connection.alpn_protocol().map(text),
                    shows: connection.peer_certificates().is_some(),
                });
                if sender.send(io::Result::Ok(Wire(stream))).await.is_err() {
                    return;
                }
            }
        });
        let plane = self.clone();
        runtime.spawn(async move {
            let server = tonic::transport::Server::builder().add_service(AggregatedDiscoveryServiceServer::new(plane));
            server.serve_with_incoming(ReceiverStream::new(accepted)).await.unwrap();
        });
        (runtime, seen)
    }
}

/// A TLS connection as the server of tonic wants it.
struct Wire(TlsStream<TcpStream>);

impl Connected for Wire {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
