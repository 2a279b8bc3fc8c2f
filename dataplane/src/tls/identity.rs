//! What a certificate says of its holder: names, serial number, fingerprints.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::prelude::BASE64_STANDARD as BASE64;
use rustls::pki_types::CertificateDer;
use thiserror::Error;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;
use x509_parser::x509::X509Name;

/// The names and numbers of one certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// URI SANs, in the certificate's order; a SPIFFE identity is one of them.
    pub uris: Vec<Box<str>>,
    /// DNS SANs.
    pub dns_names: Vec<Box<str>>,
    /// IP SANs.
    pub ips: Vec<IpAddr>,
    /// E-mail SANs.
    pub emails: Vec<Box<str>>,
    /// The subject, last part first (RFC 4514).
    pub subject: Box<str>,
    /// The common name of the subject; empty where it has none.
    pub common_name: Box<str>,
    /// The issuer, last part first.
    pub issuer: Box<str>,
    /// The serial number in lower-case hex, without leading zeros.
    pub serial: Box<str>,
    /// SHA-256 of the certificate in lower-case hex.
    pub fingerprint: Box<str>,
    /// SHA-256 of the public key (SubjectPublicKeyInfo).
    pub key_hash: Arc<[u8]>,
    /// Begin and end of validity, in unix seconds.
    pub validity: (i64, i64),
    /// The certificate and those sent with it, the holder's own first.
    pub chain: Arc<[Box<[u8]>]>,
    /// The chain as text for `x-forwarded-client-cert`, from the first request that tells it.
    pub(crate) escaped: OnceLock<Escaped>,
}

/// Certificates as PEM (RFC 7468), with Envoy's percent-escapes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Escaped {
    all: Box<str>,
    /// Bytes of the first certificate.
    first_length: usize,
}

/// Why a certificate says nothing.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("is no X.509 certificate")]
pub struct NoCertificate;

impl Identity {
    /// The identity in the first certificate of `chain`.
    ///
    /// A name with a NUL or another control byte in it is left out: it never matches and never reaches a header
    /// (CVE-2009-2408 and its kin).
    pub fn parse(chain: &[CertificateDer<'_>]) -> Result<Self, NoCertificate> {
        let first = chain.first().ok_or(NoCertificate)?;
        let (_, certificate) = X509Certificate::from_der(first).map_err(|_| NoCertificate)?;
        let mut identity = Self {
            subject: distinguished_name(certificate.subject()).into(),
            common_name: common_name(certificate.subject()).into(),
            issuer: distinguished_name(certificate.issuer()).into(),
            serial: hex(strip_zeros(certificate.raw_serial())).into(),
            fingerprint: hex(digest(&SHA256, first).as_ref()).into(),
            key_hash: digest(&SHA256, certificate.public_key().raw).as_ref().into(),
            validity: (certificate.validity().not_before.timestamp(), certificate.validity().not_after.timestamp()),
            chain: chain.iter().map(|der| Box::from(der.as_ref())).collect(),
            ..Self::default()
        };
        let names = certificate.subject_alternative_name().map_err(|_| NoCertificate)?;
        for name in names.iter().flat_map(|names| &names.value.general_names) {
            match name {
                GeneralName::DNSName(name) if is_clean(name) => identity.dns_names.push((*name).into()),
                GeneralName::URI(name) if is_clean(name) => identity.uris.push((*name).into()),
                GeneralName::RFC822Name(name) if is_clean(name) => identity.emails.push((*name).into()),
                GeneralName::IPAddress(bytes) => identity.ips.extend(ip(bytes)),
                _ => {}
            }
        }
        Ok(identity)
    }

    /// The certificate as PEM, percent-escaped.
    pub fn escaped_pem(&self) -> &str {
        let escaped = self.escaped();
        escaped.all.get(..escaped.first_length).unwrap_or_default()
    }

    /// The certificate and those sent with it as PEM, percent-escaped.
    pub fn escaped_chain(&self) -> &str {
        &self.escaped().all
    }

    fn escaped(&self) -> &Escaped {
        self.escaped.get_or_init(|| {
            let mut all = String::new();
            let mut first_length = None;
            for certificate in self.chain.iter() {
                escape_pem(certificate, &mut all);
                first_length.get_or_insert(all.len());
            }
            Escaped { all: all.into(), first_length: first_length.unwrap_or_default() }
        })
    }

    /// Names that a server's certificate may be chosen by: its DNS SANs, its common name where it has none.
    pub fn server_names(&self) -> impl Iterator<Item = &str> {
        let fallback = self.dns_names.is_empty().then_some(&*self.common_name).filter(|name| !name.is_empty());
        self.dns_names.iter().map(AsRef::as_ref).chain(fallback)
    }
}

/// Whether the certificate's `pattern` covers `name`: equal, or `*` for exactly one first label (RFC 6125 §6.4.3).
pub fn dns_name_matches(name: &str, pattern: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    if let Some(suffix) = pattern.strip_prefix("*.") {
        return name.split_once('.').is_some_and(|(label, rest)| {
            !label.is_empty() && suffix.contains('.') && rest.eq_ignore_ascii_case(suffix)
        });
    }
    !pattern.is_empty() && name.eq_ignore_ascii_case(pattern)
}

fn is_clean(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| (0x20..0x7f).contains(&byte))
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes).map(IpAddr::from).or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

fn strip_zeros(bytes: &[u8]) -> &[u8] {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    bytes.get(zeros..).unwrap_or_default()
}

/// Source: Envoy, `urlEncodedPemEncodedPeerCertificate`: line ends, blanks, `+`, `/` and `=` are escaped.
fn escape_pem(certificate: &[u8], out: &mut String) {
    out.push_str("-----BEGIN%20CERTIFICATE-----%0A");
    // 48 bytes are a line of 64 characters (RFC 7468 §2).
    for line in certificate.chunks(48) {
        for character in BASE64.encode(line).chars() {
            match character {
                '+' => out.push_str("%2B"),
                '/' => out.push_str("%2F"),
                '=' => out.push_str("%3D"),
                character => out.push(character),
            }
        }
        out.push_str("%0A");
    }
    out.push_str("-----END%20CERTIFICATE-----%0A");
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn common_name(name: &X509Name<'_>) -> String {
    let first = name.iter_common_name().next().and_then(|name| name.as_str().ok());
    first.filter(|name| is_clean(name)).unwrap_or_default().to_owned()
}

/// A name as RFC 4514 writes it: last part first, special characters escaped.
fn distinguished_name(name: &X509Name<'_>) -> String {
    let mut parts: Vec<String> = Vec::new();
    for set in name.iter() {
        let attributes = set.iter().map(|attribute| {
            let oid = attribute.attr_type().to_id_string();
            let label =
                ATTRIBUTE_LABELS.iter().find(|(known, _)| *known == oid).map_or(oid.as_str(), |(_, label)| label);
            format!("{label}={}", escaped(attribute.as_str().unwrap_or_default()))
        });
        parts.push(attributes.collect::<Vec<_>>().join("+"));
    }
    parts.reverse();
    parts.join(",")
}

/// Source: RFC 4514 §2.4; control bytes in hex.
fn escaped(value: &str) -> String {
    use std::fmt::Write as _;
    let last = value.chars().count().saturating_sub(1);
    let mut text = String::with_capacity(value.len());
    for (place, letter) in value.chars().enumerate() {
        let at_edge = letter == ' ' && (place == 0 || place == last) || letter == '#' && place == 0;
        if letter.is_control() {
            let mut bytes = [0; 4];
            for byte in letter.encode_utf8(&mut bytes).bytes() {
                let _ = write!(text, "\\{byte:02X}");
            }
            continue;
        }
        if at_edge || matches!(letter, '"' | '+' | ',' | ';' | '<' | '>' | '\\') {
            text.push('\\');
        }
        text.push(letter);
    }
    text
}

/// Short names of subject attributes. Source: RFC 4514 §3, and e-mail as OpenSSL writes it.
const ATTRIBUTE_LABELS: &[(&str, &str)] = &[
    ("2.5.4.3", "CN"),
    ("2.5.4.6", "C"),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.9", "street"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("2.5.4.4", "SN"),
    ("2.5.4.42", "GN"),
    ("2.5.4.5", "serialNumber"),
    ("0.9.2342.19200300.100.1.1", "UID"),
    ("0.9.2342.19200300.100.1.25", "DC"),
    ("1.2.840.113549.1.9.1", "emailAddress"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_cover_one_label() {
        let check = |name: &str, pattern: &str, expect: bool| {
            assert_eq!(dns_name_matches(name, pattern), expect, "{name} by {pattern}");
        };
        check("a.example.com", "a.example.com", true);
        check("A.Example.com", "a.example.COM", true);
        check("a.example.com", "*.example.com", true);
        check("a.b.example.com", "*.example.com", false);
        check("example.com", "*.example.com", false);
        check(".example.com", "*.example.com", false);
        check("a.com", "*.com", false);
        check("a.example.com", "a*.example.com", false);
        check("a.example.com", "*", false);
        check("", "", false);
    }

    #[test]
    fn special_characters_of_a_name_are_escaped() {
        assert_eq!(escaped("a, b"), "a\\, b");
        assert_eq!(escaped(" #a "), "\\ #a\\ ");
        assert_eq!(escaped("#a"), "\\#a");
        assert_eq!(escaped("a\0b"), "a\\00b");
    }
}
