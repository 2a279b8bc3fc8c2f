//! TLS that begins here: what a cluster asks of its endpoints.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{CommonTlsContext, UpstreamTlsContext};
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, Connection};
use torus_ring::{Ring, Socket};

use super::identity::Identity;
use super::parse::compile_client;
use super::reload::Reload;
use super::secret::{NamesSecrets, Renewal, Renewed, SecretKey};
use super::server::{Certificate, count_failure, count_handshake};
use super::session::{TlsError, TlsSession};
use super::validate::{Peer, ServerVerifier, Validation};
use crate::config::parse::ParseContext;
use crate::config::reject::Refused;
use crate::telemetry::counters::{Core, Stats};
use crate::telemetry::names::{TlsFactoryStat, TlsStat};
use crate::transport::TlsInfo;

/// An UpstreamTlsContext, compiled. Its sessions are resumed by no other one, and by none of its other versions.
pub struct ClientTls {
    /// Read once a handshake, replaced when certificates change; `None` while a secret is missing.
    current: RwLock<Option<Arc<Current>>>,
    /// The config thread alone looks at it.
    reload: Mutex<Option<Reload<UpstreamTlsContext>>>,
    renewal: Option<Renewal<UpstreamTlsContext>>,
    /// Grows whenever somebody who was believed may not be any more.
    trust_epoch: AtomicU64,
    /// The server name to ask for.
    name: Option<ServerName<'static>>,
    /// The endpoint's host name is the server name where it has one.
    host_name: bool,
    /// `cluster.<name>.ssl.`
    pub stats: Arc<Stats<TlsStat>>,
    factory: Option<Arc<Stats<TlsFactoryStat>>>,
}

/// What new handshakes use.
struct Current {
    http1: Arc<ClientConfig>,
    http2: Arc<ClientConfig>,
    either: Arc<ClientConfig>,
    local: Option<Arc<Identity>>,
    proves_identity: bool,
    validation: Arc<Validation>,
}

impl Current {
    fn config(&self, offer: Offer) -> Arc<ClientConfig> {
        Arc::clone(match offer {
            Offer::Http1 => &self.http1,
            Offer::Http2 => &self.http2,
            Offer::Either => &self.either,
        })
    }
}

/// Which version of HTTP a handshake offers by ALPN, where the configuration names no protocols.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    /// HTTP/1.1
    Http1,
    /// HTTP/2
    Http2,
    /// HTTP/2 before HTTP/1.1: the server chooses.
    Either,
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
        let validation = Arc::clone(&parts.validation);
        let proves_identity = validation.proves_identity();
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
        let (http1, http2, either) = if parts.alpn.is_empty() {
            // Where nothing is configured, the version that will be spoken is offered (as Envoy does).
            let (http1, http2) = (b"http/1.1".to_vec(), b"h2".to_vec());
            (offering(vec![http1.clone()]), offering(vec![http2.clone()]), offering(vec![http2, http1]))
        } else {
            let configured = offering(parts.alpn);
            (Arc::clone(&configured), Arc::clone(&configured), configured)
        };
        let current = Current { http1, http2, either, local, proves_identity, validation };
        Ok(Self {
            current: RwLock::new(Some(Arc::new(current))),
            ..Self::waiting(parts.name, parts.host_name, parts.stats)
        })
    }

    /// One whose secrets have not come.
    pub(super) fn waiting(name: Option<ServerName<'static>>, host_name: bool, stats: Arc<Stats<TlsStat>>) -> Self {
        Self {
            current: RwLock::default(),
            reload: Mutex::default(),
            renewal: None,
            trust_epoch: AtomicU64::new(0),
            name,
            host_name,
            stats,
            factory: None,
        }
    }

    /// The same, with its `cluster.<name>.client_ssl_socket_factory.`
    pub(super) fn counting(self, factory: Arc<Stats<TlsFactoryStat>>) -> Self {
        Self { factory: Some(factory), ..self }
    }

    /// The same, compiled again when a secret changes.
    pub(super) fn naming(self, renewal: Renewal<UpstreamTlsContext>) -> Self {
        Self { renewal: Some(renewal).filter(|renewal| !renewal.needs.keys().is_empty()), ..self }
    }

    /// The same, compiled again when a file of `config` changes.
    pub(super) fn following_files(self, config: &UpstreamTlsContext, stat_prefix: &str) -> Self {
        let common = config.common_tls_context.as_ref();
        Self { reload: Mutex::new(common.and_then(|common| Reload::new(config.clone(), common, stat_prefix))), ..self }
    }

    /// Gives new handshakes what `newer` has; its sessions are its own. Whether a server that was believed may not be any more.
    pub fn replace(&self, newer: Self) -> bool {
        let current = newer.current.into_inner().unwrap_or_else(PoisonError::into_inner);
        let reload = newer.reload.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut place = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let ends_trust = match (&*place, &current) {
            (Some(before), Some(newer)) => !newer.validation.extends(&before.validation),
            _ => false,
        };
        *place = current;
        drop(place);
        *self.reload.lock().unwrap_or_else(PoisonError::into_inner) = reload;
        self.trust_epoch.fetch_add(u64::from(ends_trust), Ordering::Release);
        ends_trust
    }

    /// How often trust was taken from a server. Connections of an earlier number carry no new request.
    pub fn trust_epoch(&self) -> u64 {
        self.trust_epoch.load(Ordering::Acquire)
    }

    /// Whether a server that proved who it is would be believed today.
    pub fn still_believes(&self, server: &TlsInfo) -> bool {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner).clone();
        current.zip(server.peer.as_ref()).is_none_or(|(it, identity)| it.validation.believes(Peer::Server, identity))
    }

    /// As [`super::ServerTls::follow_files`].
    pub fn follow_files(&self, context: impl FnOnce() -> ParseContext) -> Option<Result<bool, String>> {
        let (context, parsed) = {
            let reload = self.reload.lock().unwrap_or_else(PoisonError::into_inner);
            let reload = reload.as_ref().filter(|reload| reload.is_due())?;
            let mut context = context();
            let parsed = compile_client(&reload.config, &reload.stat_prefix, &mut context);
            (context, parsed)
        };
        let core = context.registry.config_core();
        Some(match parsed {
            Ok(newer) => {
                let ends_trust = self.replace(newer);
                self.stats.increment(core, TlsStat::CertificatesReloaded);
                Ok(ends_trust)
            }
            Err(_) => {
                self.stats.increment(core, TlsStat::CertificatesReloadFailed);
                Err(context.problems.first_error())
            }
        })
    }

    /// Begins a handshake as the client, with the endpoint called `host_name` at `address`, to speak what `offer` says.
    pub fn connect(
        &self,
        socket: Socket,
        ring: &Ring,
        host_name: &str,
        address: Option<IpAddr>,
        offer: Offer,
    ) -> Result<TlsSession, TlsError> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner).clone();
        let current = current.ok_or(TlsError::NotReady)?;
        let name = self.name_of(host_name, address);
        let asked = match &name {
            ServerName::DnsName(name) => Some(Arc::from(name.as_ref())),
            _ => None,
        };
        let connection = ClientConnection::new(current.config(offer), name).map_err(TlsError::Protocol)?;
        let mut session = TlsSession::new(socket, ring, Connection::Client(connection), current.proves_identity);
        session.set_local(current.local.clone());
        session.set_server_name(asked);
        Ok(session)
    }

    /// What a handshake with that endpoint is made of, for those who drive it themselves.
    pub fn handshake_config(
        &self,
        host_name: &str,
        address: Option<IpAddr>,
        offer: Offer,
    ) -> Result<(Arc<ClientConfig>, ServerName<'static>), TlsError> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        let current = current.as_ref().ok_or(TlsError::NotReady)?;
        Ok((current.config(offer), self.name_of(host_name, address)))
    }

    /// The name that an endpoint's certificate is asked for.
    fn name_of(&self, host_name: &str, address: Option<IpAddr>) -> ServerName<'static> {
        let by_host = self.host_name.then(|| ServerName::try_from(host_name.to_owned()).ok()).flatten();
        let by_host = by_host.filter(|name| matches!(name, ServerName::DnsName(_)));
        // Without a name to ask for, the address stands for it; an address is never sent (RFC 6066 §3).
        by_host.or_else(|| self.name.clone()).unwrap_or_else(|| {
            ServerName::IpAddress(address.unwrap_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED)).into())
        })
    }

    /// Counts a completed handshake.
    pub fn count_handshake(&self, core: Core, info: &TlsInfo) {
        count_handshake(&self.stats, core, info);
    }

    /// Counts a handshake that failed.
    pub fn count_failure(&self, core: Core, error: &TlsError) {
        count_failure(&self.stats, core, error);
        if matches!(error, TlsError::NotReady) {
            self.factory.iter().for_each(|it| it.increment(core, TlsFactoryStat::UpstreamContextSecretsNotReady));
        }
    }
}

impl NamesSecrets for ClientTls {
    fn secrets(&self) -> &[SecretKey] {
        self.renewal.as_ref().map_or(&[], |renewal| renewal.needs.keys())
    }

    fn is_ready(&self) -> bool {
        self.current.read().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    fn renew<'a>(&'a self, context: &mut ParseContext) -> Result<Renewed<'a>, Refused> {
        let Some(Renewal { config, needs, stat_prefix }) = &self.renewal else { return Ok(Box::new(|| false)) };
        let empty = CommonTlsContext::default();
        let common = config.common_tls_context.as_ref().unwrap_or(&empty);
        let Some(filled) = needs.filled(common, context)? else { return Ok(Box::new(|| false)) };
        let filled = UpstreamTlsContext { common_tls_context: Some(filled), ..config.clone() };
        let newer = compile_client(&filled, stat_prefix, context)?;
        let core = context.registry.config_core();
        Ok(Box::new(move || {
            let ends_trust = self.replace(newer);
            self.factory.iter().for_each(|stats| stats.increment(core, TlsFactoryStat::SslContextUpdateBySds));
            ends_trust
        }))
    }
}
