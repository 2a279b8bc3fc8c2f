//! Operators about TLS: what the two handshakes established and who the peers are.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::FormatContext;
use crate::transport::TlsInfo;

/// Which connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Downstream,
    Upstream,
}

/// What is written of it; lists are joined by commas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TlsFact {
    Version,
    Cipher,
    Group,
    PeerSubject,
    PeerIssuer,
    PeerSerial,
    PeerFingerprint,
    PeerCertificate,
    PeerUris,
    PeerDnsNames,
    PeerIps,
    PeerEmails,
    LocalSubject,
    LocalUris,
    LocalDnsNames,
    LocalIps,
    LocalEmails,
}

/// An edge of a certificate's validity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ValidityEdge {
    Begin,
    End,
}

impl ValidityEdge {
    /// When it is for the peer's certificate.
    pub(super) fn of(self, info: &TlsInfo) -> Option<SystemTime> {
        let (begin, end) = info.peer.as_ref()?.validity;
        let seconds = match self {
            Self::Begin => begin,
            Self::End => end,
        };
        let distance = Duration::from_secs(seconds.unsigned_abs());
        if seconds < 0 { UNIX_EPOCH.checked_sub(distance) } else { UNIX_EPOCH.checked_add(distance) }
    }
}

/// The fact that an operator of this name writes.
pub(super) fn named(name: &str) -> Option<(Side, TlsFact)> {
    let (side, rest) = match name.strip_prefix("DOWNSTREAM_") {
        Some(rest) => (Side::Downstream, rest),
        None => (Side::Upstream, name.strip_prefix("UPSTREAM_")?),
    };
    let fact = match rest {
        "TLS_VERSION" => TlsFact::Version,
        "TLS_CIPHER" => TlsFact::Cipher,
        "TLS_GROUP" => TlsFact::Group,
        "PEER_SUBJECT" => TlsFact::PeerSubject,
        "PEER_ISSUER" => TlsFact::PeerIssuer,
        "PEER_SERIAL" if side == Side::Downstream => TlsFact::PeerSerial,
        "PEER_FINGERPRINT_256" if side == Side::Downstream => TlsFact::PeerFingerprint,
        "PEER_CERT" if side == Side::Downstream => TlsFact::PeerCertificate,
        "PEER_URI_SAN" => TlsFact::PeerUris,
        "PEER_DNS_SAN" => TlsFact::PeerDnsNames,
        "PEER_IP_SAN" => TlsFact::PeerIps,
        "PEER_EMAIL_SAN" if side == Side::Downstream => TlsFact::PeerEmails,
        "LOCAL_SUBJECT" if side == Side::Downstream => TlsFact::LocalSubject,
        "LOCAL_URI_SAN" => TlsFact::LocalUris,
        "LOCAL_DNS_SAN" => TlsFact::LocalDnsNames,
        "LOCAL_IP_SAN" => TlsFact::LocalIps,
        "LOCAL_EMAIL_SAN" if side == Side::Downstream => TlsFact::LocalEmails,
        _ => return None,
    };
    Some((side, fact))
}

/// Writes the fact; `None` where there is nothing to write.
pub(super) fn write(side: Side, fact: TlsFact, context: &FormatContext<'_>, out: &mut Vec<u8>) -> Option<()> {
    let info = match side {
        Side::Downstream => context.info.downstream_tls.as_deref()?,
        Side::Upstream => context.info.upstream_tls.as_deref()?,
    };
    let before = out.len();
    write_of(info, fact, out)?;
    (out.len() > before).then_some(())
}

fn write_of(info: &TlsInfo, fact: TlsFact, out: &mut Vec<u8>) -> Option<()> {
    let text: &str = match fact {
        TlsFact::Version => info.version,
        TlsFact::Cipher => info.cipher,
        TlsFact::Group => info.group,
        TlsFact::PeerSubject => &info.peer.as_ref()?.subject,
        TlsFact::PeerIssuer => &info.peer.as_ref()?.issuer,
        TlsFact::PeerSerial => &info.peer.as_ref()?.serial,
        TlsFact::PeerFingerprint => &info.peer.as_ref()?.fingerprint,
        TlsFact::PeerCertificate => info.peer.as_ref()?.escaped_pem(),
        TlsFact::LocalSubject => &info.local.as_ref()?.subject,
        TlsFact::PeerUris => return joined(&info.peer.as_ref()?.uris, out),
        TlsFact::PeerDnsNames => return joined(&info.peer.as_ref()?.dns_names, out),
        TlsFact::PeerIps => return joined(&info.peer.as_ref()?.ips, out),
        TlsFact::PeerEmails => return joined(&info.peer.as_ref()?.emails, out),
        TlsFact::LocalUris => return joined(&info.local.as_ref()?.uris, out),
        TlsFact::LocalDnsNames => return joined(&info.local.as_ref()?.dns_names, out),
        TlsFact::LocalIps => return joined(&info.local.as_ref()?.ips, out),
        TlsFact::LocalEmails => return joined(&info.local.as_ref()?.emails, out),
    };
    out.extend_from_slice(text.as_bytes());
    Some(())
}

fn joined(items: &[impl std::fmt::Display], out: &mut Vec<u8>) -> Option<()> {
    use std::io::Write as _;
    for (place, item) in items.iter().enumerate() {
        let separator = if place == 0 { "" } else { "," };
        write!(out, "{separator}{item}").ok()?;
    }
    Some(())
}
