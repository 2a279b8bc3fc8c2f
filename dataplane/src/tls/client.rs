//! TLS that begins here: what a cluster asks of its endpoints.

use std::net::IpAddr;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, Connection};
use torus_ring::{Ring, Socket};

use super::identity::Identity;
use super::server::{Certificate, count_failure, count_handshake};
use super::session::{TlsError, TlsSession};
use super::validate::{ServerVerifier, Validation};
use crate::telemetry::counters::{Core, Stats};
use crate::telemetry::names::TlsStat;
use crate::transport::TlsInfo;

/// An UpstreamTlsContext, compiled. Its sessions are resumed by no other one, and by none of its other versions.
pub struct ClientTls {
    http1: Arc<ClientConfig>,
    http2: Arc<ClientConfig>,
    /// The server name to ask for.
    name: Option<ServerName<'static>>,
    /// The endpoint's host name is the server name where it has one.
    host_name: bool,
    local: Option<Arc<Identity>>,
    proves_identity: bool,
    /// `cluster.<name>.ssl.`
    pub stats: Arc<Stats<TlsStat>>,
}

/// What a [`ClientTls`] is made of.
pub(super) struct ClientParts {
    pub provider: Arc<rustls::crypto::CryptoProvider>,
    pub versions: Vec<&'static rustls::SupportedProtocolVersion>,
    pub certificate: Option<Certificate>,
    pub validation: Arc<Validation>,
    pub name: Option<ServerName<'static>>,
    pub host_name: bool,
    /// The server's certificate must have the server name that was asked for.
    pub match_server_name: bool,
    pub alpn: Vec<Vec<u8>>,
    /// Sessions kept for resumption.
    pub session_count_max: usize,
    pub stats: Arc<Stats<TlsStat>>,
}

impl ClientTls {
    pub(super) fn new(parts: ClientParts) -> Result<Self, rustls::Error> {
        let proves_identity = parts.validation.proves_identity();
        let verifier = ServerVerifier { validation: parts.validation, match_server_name: parts.match_server_name };
        let builder = ClientConfig::builder_with_provider(parts.provider)
            .with_protocol_versions(&parts.versions)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let local = parts.certificate.as_ref().map(|certificate| Arc::clone(&certificate.identity));
        let mut config = match parts.certificate {
            None => builder.with_no_client_auth(),
            Some(certificate) => {
                builder.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(certificate.key)))
            }
        };
        config.enable_sni = true;
        config.resumption = match parts.session_count_max {
            0 => Resumption::disabled(),
            count => Resumption::in_memory_sessions(count),
        };
        let offering = |alpn: Vec<Vec<u8>>| {
            let mut config = config.clone();
            config.alpn_protocols = alpn;
            Arc::new(config)
        };
        let (http1, http2) = if parts.alpn.is_empty() {
            // Where nothing is configured, the version that will be spoken is offered (as Envoy does).
            (offering(vec![b"http/1.1".to_vec()]), offering(vec![b"h2".to_vec()]))
        } else {
            let configured = offering(parts.alpn);
            (Arc::clone(&configured), configured)
        };
        Ok(Self {
            http1,
            http2,
            name: parts.name,
            host_name: parts.host_name,
            local,
            proves_identity,
            stats: parts.stats,
        })
    }

    /// Begins a handshake as the client, with the endpoint called `host_name` at `address`, to speak HTTP/2 or HTTP/1.1.
    pub fn connect(
        &self,
        socket: Socket,
        ring: &Ring,
        host_name: &str,
        address: Option<IpAddr>,
        http2: bool,
    ) -> Result<TlsSession, TlsError> {
        let by_host = self.host_name.then(|| ServerName::try_from(host_name.to_owned()).ok()).flatten();
        let by_host = by_host.filter(|name| matches!(name, ServerName::DnsName(_)));
        // Without a name to ask for, the address stands for it; an address is never sent (RFC 6066 §3).
        let name = by_host.or_else(|| self.name.clone()).unwrap_or_else(|| {
            ServerName::IpAddress(address.unwrap_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED)).into())
        });
        let asked = match &name {
            ServerName::DnsName(name) => Some(Arc::from(name.as_ref())),
            _ => None,
        };
        let config = if http2 { &self.http2 } else { &self.http1 };
        let connection = ClientConnection::new(Arc::clone(config), name).map_err(TlsError::Protocol)?;
        let mut session = TlsSession::new(socket, ring, Connection::Client(connection), self.proves_identity);
        session.set_local(self.local.clone());
        session.set_server_name(asked);
        Ok(session)
    }

    /// Counts a completed handshake.
    pub fn count_handshake(&self, core: Core, info: &TlsInfo) {
        count_handshake(&self.stats, core, info);
    }

    /// Counts a handshake that failed.
    pub fn count_failure(&self, core: Core, error: &TlsError) {
        count_failure(&self.stats, core, error);
    }
}
