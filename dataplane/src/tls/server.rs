//! TLS that ends here: what a filter chain offers to clients.

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::DownstreamTlsContext;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{Connection, ServerConfig, ServerConnection};
use torus_ring::{Ring, Socket};

use super::identity::{Identity, dns_name_matches};
use super::parse::compile_server;
use super::reload::Reload;
use super::secret::{NamesSecrets, Renewal, Renewed, SecretKey};
use super::session::{CertificateFault, TlsError, TlsSession};
use super::validate::{ClientVerifier, Peer, Validation};
use crate::config::parse::ParseContext;
use crate::config::reject::Refused;
use crate::telemetry::counters::{Core, Stats};
use crate::telemetry::names::{TlsFactoryStat, TlsStat};
use crate::transport::TlsInfo;

/// A handshake that takes longer is given up, where `transport_socket_connect_timeout` says nothing else.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// A DownstreamTlsContext, compiled. Its tickets open no session of another one, and none of its older versions.
pub struct ServerTls {
    /// Read once a handshake, replaced when certificates change; `None` while a secret is missing.
    current: RwLock<Option<Arc<Current>>>,
    /// The config thread alone looks at it.
    reload: Mutex<Option<Reload<DownstreamTlsContext>>>,
    renewal: Option<Renewal<DownstreamTlsContext>>,
    /// Grows whenever somebody who was believed may not be any more.
    trust_epoch: AtomicU64,
    /// `listener.<address>.ssl.`
    pub stats: Arc<Stats<TlsStat>>,
    factory: Option<Arc<Stats<TlsFactoryStat>>>,
}

/// What new handshakes get.
struct Current {
    config: Arc<ServerConfig>,
    proves_identity: bool,
    validation: Option<Arc<Validation>>,
    trust_epoch: u64,
}

impl Current {
    /// Whether everybody whom `before` believed is believed.
    fn believes_all_of(&self, before: &Self) -> bool {
        match (&before.validation, &self.validation) {
            (_, None) => true,
            (None, Some(_)) => false,
            (Some(before), Some(newer)) => newer.extends(before),
        }
    }
}

/// What a [`ServerTls`] is made of.
pub(super) struct ServerParts {
    pub provider: Arc<rustls::crypto::CryptoProvider>,
    pub versions: Vec<&'static rustls::SupportedProtocolVersion>,
    pub certificates: Vec<Certificate>,
    /// How clients' certificates are judged; `None` asks for none.
    pub validation: Option<Arc<Validation>>,
    pub require_client_certificate: bool,
    pub require_sni: bool,
    /// Where no certificate has the name that was asked for, all are looked through for one that the client can use, and
    /// not the first alone.
    pub full_scan: bool,
    pub alpn: Vec<Vec<u8>>,
    pub tickets: bool,
    pub prefer_client_ciphers: bool,
    pub stats: Arc<Stats<TlsStat>>,
}

/// A certificate with its key and names.
#[derive(Debug)]
pub(super) struct Certificate {
    pub key: Arc<CertifiedKey>,
    pub identity: Arc<Identity>,
}

impl ServerTls {
    pub(super) fn new(parts: ServerParts) -> Result<Self, rustls::Error> {
        let builder = ServerConfig::builder_with_provider(parts.provider).with_protocol_versions(&parts.versions)?;
        let validation = parts.validation.clone();
        let proves_identity = validation.as_ref().is_some_and(|validation| validation.proves_identity());
        let builder = match parts.validation {
            None => builder.with_no_client_auth(),
            Some(validation) => builder.with_client_cert_verifier(Arc::new(ClientVerifier {
                validation,
                required: parts.require_client_certificate,
            })),
        };
        let mut config = builder.with_cert_resolver(Arc::new(ByName {
            certificates: parts.certificates,
            require_sni: parts.require_sni,
            full_scan: parts.full_scan,
        }));
        config.alpn_protocols = parts.alpn;
        config.ignore_client_order = !parts.prefer_client_ciphers;
        // State of sessions is kept by clients alone, so that this side's memory is bounded.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        // A client needs one for its next connection, which brings another one.
        config.send_tls13_tickets = 1;
        if parts.tickets {
            config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new()?;
        } else {
            config.send_tls13_tickets = 0;
        }
        let current = Current { config: Arc::new(config), proves_identity, validation, trust_epoch: 0 };
        Ok(Self { current: RwLock::new(Some(Arc::new(current))), ..Self::waiting(parts.stats) })
    }

    /// One whose secrets have not come.
    pub(super) fn waiting(stats: Arc<Stats<TlsStat>>) -> Self {
        Self {
            current: RwLock::default(),
            reload: Mutex::default(),
            renewal: None,
            trust_epoch: AtomicU64::new(0),
            stats,
            factory: None,
        }
    }

    /// The same, with its `listener.<address>.server_ssl_socket_factory.`
    pub(super) fn counting(self, factory: Arc<Stats<TlsFactoryStat>>) -> Self {
        Self { factory: Some(factory), ..self }
    }

    /// The same, compiled again when a secret changes.
    pub(super) fn naming(self, renewal: Renewal<DownstreamTlsContext>) -> Self {
        Self { renewal: Some(renewal).filter(|renewal| !renewal.needs.keys().is_empty()), ..self }
    }

    /// The same, compiled again when a file of `config` changes.
    pub(super) fn following_files(self, config: &DownstreamTlsContext, stat_prefix: &str) -> Self {
        let common = config.common_tls_context.as_ref();
        Self { reload: Mutex::new(common.and_then(|common| Reload::new(config.clone(), common, stat_prefix))), ..self }
    }

    /// Gives new handshakes what `newer` has. Sessions of before are not resumed, for their keys are gone. Whether somebody who was
    /// believed may not be any more.
    pub fn replace(&self, newer: Self) -> bool {
        let mut current = newer.current.into_inner().unwrap_or_else(PoisonError::into_inner);
        let reload = newer.reload.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut place = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let ends_trust = match (&*place, &current) {
            (Some(before), Some(newer)) => !newer.believes_all_of(before),
            _ => false,
        };
        let epoch = self.trust_epoch.load(Ordering::Relaxed) + u64::from(ends_trust);
        if let Some(current) = current.as_mut().and_then(Arc::get_mut) {
            current.trust_epoch = epoch;
        }
        *place = current;
        drop(place);
        *self.reload.lock().unwrap_or_else(PoisonError::into_inner) = reload;
        self.trust_epoch.store(epoch, Ordering::Release);
        ends_trust
    }

    /// Whether a client that proved who it is would be believed today; `seen` is the connection's memory of the last look.
    pub fn still_believes(&self, seen: &Cell<u64>, client: &TlsInfo) -> bool {
        if self.trust_epoch.load(Ordering::Acquire) == seen.get() {
            return true;
        }
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(current) = current else { return true };
        let believes = match (&current.validation, &client.peer) {
            (Some(validation), Some(identity)) => validation.believes(Peer::Client, identity),
            _ => true,
        };
        if believes {
            seen.set(current.trust_epoch);
        }
        believes
    }

    /// Reads its files again where one has changed: `None` where none has, the fault where what they hold cannot be used.
    /// Whether somebody who was believed may not be any more.
    pub fn follow_files(&self, context: impl FnOnce() -> ParseContext) -> Option<Result<bool, String>> {
        let (context, parsed) = {
            let reload = self.reload.lock().unwrap_or_else(PoisonError::into_inner);
            let reload = reload.as_ref().filter(|reload| reload.is_due())?;
            let mut context = context();
            let parsed = compile_server(&reload.config, &reload.stat_prefix, &mut context);
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

    /// Begins a handshake as the server.
    pub fn accept(&self, socket: Socket, ring: &Ring) -> Result<TlsSession, TlsError> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner).clone();
        let current = current.ok_or(TlsError::NotReady)?;
        let connection = ServerConnection::new(Arc::clone(&current.config)).map_err(TlsError::Protocol)?;
        let mut session = TlsSession::new(socket, ring, Connection::Server(connection), current.proves_identity);
        session.set_trust_epoch(current.trust_epoch);
        Ok(session)
    }

    /// Counts a completed handshake.
    pub fn count_handshake(&self, core: Core, info: &TlsInfo) {
        count_handshake(&self.stats, core, info);
    }

    /// Counts a handshake that failed.
    pub fn count_failure(&self, core: Core, error: &TlsError) {
        count_failure(&self.stats, core, error);
        if matches!(error, TlsError::NotReady) {
            self.factory.iter().for_each(|it| it.increment(core, TlsFactoryStat::DownstreamContextSecretsNotReady));
        }
    }
}

impl NamesSecrets for ServerTls {
    fn secrets(&self) -> &[SecretKey] {
        self.renewal.as_ref().map_or(&[], |renewal| renewal.needs.keys())
    }

    fn is_ready(&self) -> bool {
        self.current.read().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    fn renew<'a>(&'a self, context: &mut ParseContext) -> Result<Renewed<'a>, Refused> {
        let Some(Renewal { config, needs, stat_prefix }) = &self.renewal else { return Ok(Box::new(|| false)) };
        let common = context.required("common_tls_context", &config.common_tls_context)?;
        let Some(filled) = needs.filled(common, context)? else { return Ok(Box::new(|| false)) };
        let filled = DownstreamTlsContext { common_tls_context: Some(filled), ..config.clone() };
        let newer = compile_server(&filled, stat_prefix, context)?;
        let core = context.registry.config_core();
        Ok(Box::new(move || {
            let ends_trust = self.replace(newer);
            self.factory.iter().for_each(|stats| stats.increment(core, TlsFactoryStat::SslContextUpdateBySds));
            ends_trust
        }))
    }
}

/// Counts a completed handshake.
pub(super) fn count_handshake(stats: &Stats<TlsStat>, core: Core, info: &TlsInfo) {
    stats.increment(core, TlsStat::Handshake);
    if info.is_resumed {
        stats.increment(core, TlsStat::SessionReused);
    }
    if info.peer.is_none() {
        stats.increment(core, TlsStat::NoCertificate);
    }
    let dynamic = [TlsStat::version(info.version), TlsStat::cipher(info.cipher), TlsStat::curve(info.group)];
    for stat in dynamic.into_iter().flatten() {
        stats.increment(core, stat);
    }
}

/// Counts a handshake that failed. A peer that only went away is no error of TLS.
pub(super) fn count_failure(stats: &Stats<TlsStat>, core: Core, error: &TlsError) {
    let stat = match (error.certificate(), error) {
        (Some(CertificateFault::Missing), _) => TlsStat::FailVerifyNoCert,
        (Some(CertificateFault::Chain), _) => TlsStat::FailVerifyError,
        (Some(CertificateFault::Name), _) => TlsStat::FailVerifySan,
        (Some(CertificateFault::Pin), _) => TlsStat::FailVerifyCertHash,
        (None, TlsError::Protocol(_)) => TlsStat::ConnectionError,
        (None, TlsError::Io(_) | TlsError::Closed | TlsError::Late | TlsError::NotReady) => return,
    };
    stats.increment(core, stat);
}

thread_local! {
    /// Whom the certificate that this thread chose last belongs to. The session that asked for it takes it at once.
    static CHOSEN: RefCell<Option<Arc<Identity>>> = const { RefCell::new(None) };
}

/// Whom the certificate belongs to that the session at work has just chosen, if it has.
pub(super) fn take_chosen() -> Option<Arc<Identity>> {
    CHOSEN.take()
}

/// Chooses a certificate by the name that the client asks for: one with that very name, else one whose wildcard covers it, else
/// the first. Among those, the first whose key the client can check.
#[derive(Debug)]
struct ByName {
    certificates: Vec<Certificate>,
    require_sni: bool,
    full_scan: bool,
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let schemes = hello.signature_schemes();
        let usable = |certificate: &&Certificate| certificate.key.key.choose_scheme(schemes).is_some();
        let key = |certificate: &Certificate| {
            CHOSEN.set(Some(Arc::clone(&certificate.identity)));
            Arc::clone(&certificate.key)
        };
        let Some(name) = hello.server_name() else {
            if self.require_sni {
                return None;
            }
            return self.certificates.iter().find(usable).map(key);
        };
        let exact = |certificate: &&Certificate| {
            certificate.identity.server_names().any(|known| known.eq_ignore_ascii_case(name))
        };
        let covering =
            |certificate: &&Certificate| certificate.identity.server_names().any(|known| dns_name_matches(name, known));
        let named = self.certificates.iter().filter(exact).find(usable);
        let named = named.or_else(|| self.certificates.iter().filter(covering).find(usable));
        let fallback = || match self.full_scan {
            true => self.certificates.iter().find(usable),
            false => self.certificates.first().filter(usable),
        };
        named.or_else(fallback).map(key)
    }
}
