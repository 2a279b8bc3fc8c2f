//! Which peers are believed: trusted authorities, revocation lists, name matchers and pins, compiled.

use std::net::IpAddr;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, RevocationCheckDepth, RevocationOptionsBuilder,
    UnknownStatusPolicy,
};

use super::identity::{Identity, dns_name_matches};
use crate::route::pattern::RegexMemory;
use crate::route::string_match::StringMatcher;

/// What a peer's certificate must fulfil.
/// Source: envoy.extensions.transport_sockets.tls.v3.CertificateValidationContext.
#[derive(Debug)]
pub struct Validation {
    /// Authorities; empty where none is configured, and then no chain is built.
    pub anchors: Vec<TrustAnchor<'static>>,
    /// Their names, sent to clients that are asked for a certificate.
    pub subjects: Vec<DistinguishedName>,
    /// Revocation lists; where there are any, every issuer needs one (as in Envoy).
    pub revoked: Vec<CertRevocationList<'static>>,
    /// Only the peer's own certificate is looked up in them.
    pub revocation_of_leaf_only: bool,
    /// Certificates out of their validity are taken.
    pub allow_expired: bool,
    /// Intermediate certificates that a chain may have.
    pub depth_max: Option<u32>,
    /// One of them must match; empty takes every name.
    pub names: Vec<NameMatcher>,
    /// SHA-256 of certificates, one of which (or of `key_pins`) the peer must have.
    pub certificate_pins: Vec<[u8; 32]>,
    /// SHA-256 of public keys.
    pub key_pins: Vec<[u8; 32]>,
    /// A certificate that fails any of this is taken all the same, as one that proves nothing.
    pub accept_untrusted: bool,
    /// How signatures are checked.
    pub algorithms: WebPkiSupportedAlgorithms,
}

/// One matcher of subject alternative names.
#[derive(Debug)]
pub struct NameMatcher {
    /// The kind of name.
    pub kind: NameKind,
    /// The text that must match; an exact DNS name may be covered by a certificate's wildcard.
    pub test: NameTest,
}

/// How a name is tested.
#[derive(Debug)]
pub enum NameTest {
    /// This DNS name, or a wildcard that covers it.
    Covers(Box<str>),
    /// Any other test of the text.
    Text(StringMatcher),
}

/// Kinds of subject alternative names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameKind {
    /// A DNS name.
    Dns,
    /// A URI, such as a SPIFFE identity.
    Uri,
    /// An IP address, matched as text.
    Ip,
    /// An e-mail address.
    Email,
}

impl NameMatcher {
    fn matches(&self, identity: &Identity, memory: &mut RegexMemory) -> bool {
        let mut test = |name: &str| match &self.test {
            NameTest::Covers(wanted) => dns_name_matches(wanted, name),
            NameTest::Text(matcher) => matcher.matches(name.as_bytes(), memory),
        };
        match self.kind {
            NameKind::Dns => identity.dns_names.iter().any(|name| test(name)),
            NameKind::Uri => identity.uris.iter().any(|name| test(name)),
            NameKind::Email => identity.emails.iter().any(|name| test(name)),
            NameKind::Ip => identity.ips.iter().any(|ip| test(&ip.to_string())),
        }
    }
}

/// Which side the peer is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    Client,
    Server,
}

impl Validation {
    /// Takes every certificate, as one that proves nothing.
    pub fn accepting(algorithms: WebPkiSupportedAlgorithms) -> Self {
        Self {
            anchors: Vec::new(),
            subjects: Vec::new(),
            revoked: Vec::new(),
            revocation_of_leaf_only: false,
            allow_expired: false,
            depth_max: None,
            names: Vec::new(),
            certificate_pins: Vec::new(),
            key_pins: Vec::new(),
            accept_untrusted: false,
            algorithms,
        }
    }

    /// Whether everybody whom `before` believed is believed: nothing but authorities was added.
    pub(super) fn extends(&self, before: &Self) -> bool {
        let facts = |it: &Self| {
            let names = format!("{:?}", it.names);
            (
                names,
                it.certificate_pins.clone(),
                it.key_pins.clone(),
                it.allow_expired,
                it.depth_max,
                it.accept_untrusted,
            )
        };
        before.anchors.is_empty() == self.anchors.is_empty()
            && before.anchors.iter().all(|anchor| self.anchors.contains(anchor))
            // Lists are not compared: one more look at each peer tells.
            && self.revoked.is_empty()
            && facts(before) == facts(self)
    }

    /// Whether a peer that was believed once is so now.
    pub(super) fn believes(&self, peer: Peer, identity: &Identity) -> bool {
        let chain: Vec<CertificateDer<'_>> = identity.chain.iter().map(|der| CertificateDer::from(&**der)).collect();
        self.check(peer, &chain, None, UnixTime::now()).is_ok()
    }

    /// Whether a peer's certificate proves anything when it is accepted.
    pub fn proves_identity(&self) -> bool {
        let checks = [self.anchors.is_empty(), self.certificate_pins.is_empty(), self.key_pins.is_empty()];
        !self.accept_untrusted && checks.contains(&false)
    }

    /// Judges a peer's certificates; `name` is the server name that it must have besides, if any.
    pub(super) fn check(
        &self,
        peer: Peer,
        chain: &[CertificateDer<'_>],
        name: Option<&ServerName<'_>>,
        now: UnixTime,
    ) -> Result<(), Error> {
        match self.judge(peer, chain, name, now) {
            Err(_) if self.accept_untrusted => Ok(()),
            judged => judged,
        }
    }

    fn judge(
        &self,
        peer: Peer,
        chain: &[CertificateDer<'_>],
        name: Option<&ServerName<'_>>,
        now: UnixTime,
    ) -> Result<(), Error> {
        if !self.anchors.is_empty() {
            self.build_path(peer, chain, now)?;
        }
        let identity = Identity::parse(chain).map_err(|_| CertificateError::BadEncoding)?;
        if name.is_some_and(|name| !identity_has(&identity, name)) {
            return Err(NameMismatch::error());
        }
        if !self.names.is_empty() {
            let mut memory = RegexMemory::default();
            if !self.names.iter().any(|matcher| matcher.matches(&identity, &mut memory)) {
                return Err(NameMismatch::error());
            }
        }
        let has_pins = !self.certificate_pins.is_empty() || !self.key_pins.is_empty();
        if has_pins && !self.is_pinned(&identity, chain) {
            return Err(CertificateError::ApplicationVerificationFailure.into());
        }
        Ok(())
    }

    fn is_pinned(&self, identity: &Identity, chain: &[CertificateDer<'_>]) -> bool {
        let certificate = chain.first().map(|der| aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, der));
        certificate.is_some_and(|hash| self.certificate_pins.iter().any(|pin| pin == hash.as_ref()))
            || self.key_pins.iter().any(|pin| pin == &*identity.key_hash)
    }

    /// Builds a chain to an authority. A time out of a certificate's validity is moved to its edge where that is allowed.
    fn build_path(&self, peer: Peer, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<(), Error> {
        let (first, rest) = chain.split_first().ok_or(Error::NoCertificatesPresented)?;
        let certificate = EndEntityCert::try_from(first).map_err(failure)?;
        let lists: Vec<&CertRevocationList<'_>> = self.revoked.iter().collect();
        let mut at = now;
        for _ in 0..VALIDITY_STEPS_MAX {
            let usage = match peer {
                Peer::Client => KeyUsage::client_auth(),
                Peer::Server => KeyUsage::server_auth(),
            };
            let revocation = RevocationOptionsBuilder::new(&lists).ok().map(|options| {
                let depth = match self.revocation_of_leaf_only {
                    true => RevocationCheckDepth::EndEntity,
                    false => RevocationCheckDepth::Chain,
                };
                options
                    .with_depth(depth)
                    .with_status_policy(UnknownStatusPolicy::Deny)
                    .with_expiration_policy(ExpirationPolicy::Enforce)
                    .build()
            });
            let depth_max = self.depth_max;
            let is_short = move |path: &webpki::VerifiedPath<'_>| {
                let count = path.intermediate_certificates().count();
                match depth_max {
                    Some(max) if count > max as usize => Err(webpki::Error::UnknownIssuer),
                    _ => Ok(()),
                }
            };
            let verified = certificate.verify_for_usage(
                self.algorithms.all,
                &self.anchors,
                rest,
                at,
                usage,
                revocation,
                Some(&is_short),
            );
            match verified {
                Ok(_) => return Ok(()),
                Err(webpki::Error::CertExpired { not_after, .. }) if self.allow_expired => at = not_after,
                Err(webpki::Error::CertNotValidYet { not_before, .. }) if self.allow_expired => at = not_before,
                Err(error) => return Err(failure(error)),
            }
        }
        Err(CertificateError::Expired.into())
    }
}

/// A chain whose certificates were never valid together is given up after so many moves of the clock.
const VALIDITY_STEPS_MAX: usize = 8;

fn identity_has(identity: &Identity, name: &ServerName<'_>) -> bool {
    match name {
        ServerName::DnsName(name) => identity.dns_names.iter().any(|san| dns_name_matches(name.as_ref(), san)),
        ServerName::IpAddress(ip) => identity.ips.contains(&IpAddr::from(*ip)),
        _ => false,
    }
}

/// No name of the certificate is among those allowed. Its alert is certificate_unknown (RFC 8446 §6.2).
#[derive(Debug, thiserror::Error)]
#[error("no name in it is allowed")]
pub(super) struct NameMismatch;

impl NameMismatch {
    fn error() -> Error {
        CertificateError::Other(rustls::OtherError(Arc::new(Self))).into()
    }

    /// Whether that is what `error` says.
    pub(super) fn is_in(error: &CertificateError) -> bool {
        matches!(error, CertificateError::Other(other) if other.0.is::<Self>())
    }
}

fn failure(error: webpki::Error) -> Error {
    use webpki::Error as Cause;
    match error {
        Cause::CertExpired { .. } | Cause::InvalidCertValidity => CertificateError::Expired,
        Cause::CertNotValidYet { .. } => CertificateError::NotValidYet,
        Cause::CertRevoked => CertificateError::Revoked,
        Cause::UnknownRevocationStatus => CertificateError::UnknownRevocationStatus,
        Cause::UnknownIssuer | Cause::CaUsedAsEndEntity | Cause::EndEntityUsedAsCa => CertificateError::UnknownIssuer,
        Cause::RequiredEkuNotFoundContext(_) => CertificateError::InvalidPurpose,
        Cause::InvalidSignatureForPublicKey => CertificateError::BadSignature,
        Cause::BadDer | Cause::BadDerTime | Cause::TrailingData(_) => CertificateError::BadEncoding,
        error => CertificateError::Other(rustls::OtherError(Arc::new(error))),
    }
    .into()
}

/// Judges the certificates of clients.
#[derive(Debug)]
pub(super) struct ClientVerifier {
    pub(super) validation: Arc<Validation>,
    /// A client without a certificate is refused.
    pub(super) required: bool,
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.required
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.validation.subjects
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let chain: Vec<_> = std::iter::once(end_entity).chain(intermediates).cloned().collect();
        self.validation.check(Peer::Client, &chain, None, now).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.validation.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.validation.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.validation.algorithms.supported_schemes()
    }
}

/// Judges the certificates of servers.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    pub(super) validation: Arc<Validation>,
    /// The certificate must have the server name that was asked for.
    pub(super) match_server_name: bool,
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let chain: Vec<_> = std::iter::once(end_entity).chain(intermediates).cloned().collect();
        let name = self.match_server_name.then_some(server_name);
        self.validation.check(Peer::Server, &chain, name, now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.validation.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.validation.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.validation.algorithms.supported_schemes()
    }
}
