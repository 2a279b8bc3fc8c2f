//! Names of ciphers and groups as Envoy's configuration and its logs have them, which is as BoringSSL has them.

use rustls::crypto::SupportedKxGroup;
use rustls::crypto::aws_lc_rs::{ALL_CIPHER_SUITES, ALL_KX_GROUPS};
use rustls::{CipherSuite, NamedGroup, SupportedCipherSuite};

/// The name of a cipher suite; empty where it is none of ours.
pub fn suite_name(suite: CipherSuite) -> &'static str {
    SUITES.iter().find(|(known, _)| *known == suite).map_or("", |(_, name)| name)
}

/// The name of a key-exchange group.
pub fn group_name(group: NamedGroup) -> &'static str {
    GROUPS.iter().find(|(known, _)| *known == group).map_or("", |(_, name)| name)
}

/// The TLS 1.2 suite called `name`, by either of its names.
pub fn suite_named(name: &str) -> Option<SupportedCipherSuite> {
    let (suite, _) =
        SUITES.iter().find(|(suite, known)| *known == name || suite.as_str().is_some_and(|iana| iana == name))?;
    ALL_CIPHER_SUITES.iter().find(|supported| supported.suite() == *suite).copied()
}

/// The group called `name`.
pub fn group_named(name: &str) -> Option<&'static dyn SupportedKxGroup> {
    let (group, _) = GROUPS.iter().find(|(_, known)| *known == name)?;
    ALL_KX_GROUPS.iter().find(|supported| supported.name() == *group).copied()
}

/// Names that BoringSSL knows and that are not offered here: they have no forward secrecy or no authenticated encryption.
pub const WEAK_SUITES: &[&str] = &[
    "AES128-GCM-SHA256",
    "AES256-GCM-SHA384",
    "AES128-SHA",
    "AES256-SHA",
    "ECDHE-ECDSA-AES128-SHA",
    "ECDHE-RSA-AES128-SHA",
    "ECDHE-ECDSA-AES256-SHA",
    "ECDHE-RSA-AES256-SHA",
    "ECDHE-RSA-AES128-SHA256",
    "DES-CBC3-SHA",
];

/// Puts the suites that Envoy prefers first. Those with AES-128 and SHA-256 cost a handshake least: processors have instructions
/// for that hash and none for SHA-384.
pub fn sort_by_preference(suites: &mut [SupportedCipherSuite]) {
    suites.sort_by_key(|suite| SUITES.iter().position(|(known, _)| *known == suite.suite()));
}

/// In the order of Envoy's default for TLS 1.2.
const SUITES: &[(CipherSuite, &str)] = &[
    (CipherSuite::TLS13_AES_128_GCM_SHA256, "TLS_AES_128_GCM_SHA256"),
    (CipherSuite::TLS13_AES_256_GCM_SHA384, "TLS_AES_256_GCM_SHA384"),
    (CipherSuite::TLS13_CHACHA20_POLY1305_SHA256, "TLS_CHACHA20_POLY1305_SHA256"),
    (CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, "ECDHE-ECDSA-AES128-GCM-SHA256"),
    (CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, "ECDHE-ECDSA-CHACHA20-POLY1305"),
    (CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, "ECDHE-RSA-AES128-GCM-SHA256"),
    (CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256, "ECDHE-RSA-CHACHA20-POLY1305"),
    (CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, "ECDHE-ECDSA-AES256-GCM-SHA384"),
    (CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, "ECDHE-RSA-AES256-GCM-SHA384"),
];

const GROUPS: &[(NamedGroup, &str)] = &[
    (NamedGroup::X25519, "X25519"),
    (NamedGroup::secp256r1, "P-256"),
    (NamedGroup::secp384r1, "P-384"),
    (NamedGroup::X25519MLKEM768, "X25519MLKEM768"),
];
