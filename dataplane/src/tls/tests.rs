//! Certificates of every kind against every rule: who is believed and who is not, and the handshake that says so.

use std::net::IpAddr;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::{DataSource, data_source::Specifier};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as proto;
use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;
use matcher::string_matcher::MatchPattern;
use proto::subject_alt_name_matcher::SanType;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType as RcgenSan, SerialNumber, date_time_ymd,
};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};

use super::identity::{Identity, hex};
use super::validate::{Peer, Validation};
use crate::config::parse::ParseContext;

/// An authority and what it needs to sign.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    der: CertificateDer<'static>,
}

fn authority_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn authority(name: &str) -> Authority {
    let key = KeyPair::generate().unwrap();
    let params = authority_params(name);
    let certificate = params.self_signed(&key).unwrap();
    Authority { pem: certificate.pem(), der: certificate.der().clone(), issuer: Issuer::new(params, key) }
}

fn intermediate(name: &str, parent: &Authority, change: impl FnOnce(&mut CertificateParams)) -> Authority {
    let key = KeyPair::generate().unwrap();
    let mut params = authority_params(name);
    change(&mut params);
    let certificate = params.signed_by(&key, &parent.issuer).unwrap();
    Authority { pem: certificate.pem(), der: certificate.der().clone(), issuer: Issuer::new(params, key) }
}

/// A leaf with the usual names, changed by `change`.
fn leaf(parent: &Authority, change: impl FnOnce(&mut CertificateParams)) -> CertificateDer<'static> {
    let key = KeyPair::generate().unwrap();
    leaf_params(change).signed_by(&key, &parent.issuer).unwrap().der().clone()
}

fn leaf_params(change: impl FnOnce(&mut CertificateParams)) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "leaf");
    params.subject_alt_names = vec![dns("a.example.com"), uri("spiffe://mesh/ns/a/sa/client")];
    params.subject_alt_names.push(RcgenSan::IpAddress("10.1.2.3".parse::<IpAddr>().unwrap()));
    params.subject_alt_names.push(RcgenSan::Rfc822Name("ops@example.com".try_into().unwrap()));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    params.serial_number = Some(SerialNumber::from(77));
    change(&mut params);
    params
}

fn dns(name: &str) -> RcgenSan {
    RcgenSan::DnsName(name.try_into().unwrap())
}

fn uri(name: &str) -> RcgenSan {
    RcgenSan::URI(name.try_into().unwrap())
}

fn inline(text: &str) -> Option<DataSource> {
    Some(DataSource { specifier: Some(Specifier::InlineString(text.to_owned())), ..DataSource::default() })
}

fn san(kind: SanType, pattern: MatchPattern) -> proto::SubjectAltNameMatcher {
    let matcher = matcher::StringMatcher { match_pattern: Some(pattern), ..matcher::StringMatcher::default() };
    proto::SubjectAltNameMatcher { san_type: kind.into(), matcher: Some(matcher), oid: String::new() }
}

fn exact(name: &str) -> MatchPattern {
    MatchPattern::Exact(name.into())
}

fn regex(pattern: &str) -> MatchPattern {
    MatchPattern::SafeRegex(matcher::RegexMatcher { regex: pattern.into(), ..matcher::RegexMatcher::default() })
}

type Config = proto::CertificateValidationContext;

/// A validation context as configured: through the parser, as a bootstrap would.
fn compile(config: &Config) -> Result<Validation, String> {
    let mut context = ParseContext::new(1);
    super::parse::validation_context(config, &mut context)
        .map_err(|_| context.problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
}

fn accepts(config: &Config, peer: Peer, chain: &[CertificateDer<'_>], name: Option<&str>) -> bool {
    let validation = compile(config).unwrap();
    let name = name.map(|name| ServerName::try_from(name.to_owned()).unwrap());
    validation.check(peer, chain, name.as_ref(), UnixTime::now()).is_ok()
}

fn trusting(authority: &Authority) -> Config {
    Config { trusted_ca: inline(&authority.pem), ..Config::default() }
}

#[test]
fn chains() {
    let root = authority("root");
    let other = authority("other");
    // The same name with another key.
    let impostor = authority("root");
    let middle = intermediate("middle", &root, |_| {});
    let deep = intermediate("deep", &middle, |_| {});
    let old_middle = intermediate("old middle", &root, |params| {
        (params.not_before, params.not_after) = (date_time_ymd(2001, 1, 1), date_time_ymd(2002, 1, 1));
    });
    let no_authority = intermediate("no authority", &root, |params| params.is_ca = IsCa::NoCa);
    let by_root = leaf(&root, |_| {});
    let by_middle = leaf(&middle, |_| {});
    let by_deep = leaf(&deep, |_| {});
    let expired = leaf(&root, |params| {
        (params.not_before, params.not_after) = (date_time_ymd(2001, 1, 1), date_time_ymd(2002, 1, 1));
    });
    let future = leaf(&root, |params| {
        (params.not_before, params.not_after) = (date_time_ymd(2090, 1, 1), date_time_ymd(2091, 1, 1));
    });
    let own_key = KeyPair::generate().unwrap();
    let self_signed = leaf_params(|_| {}).self_signed(&own_key).unwrap().der().clone();
    let mut broken = by_root.to_vec();
    let last = broken.len() - 1;
    broken[last] ^= 1;
    let broken = CertificateDer::from(broken);
    let server_only = leaf(&root, |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
    let client_only = leaf(&root, |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]);
    let any_use = leaf(&root, |params| params.extended_key_usages.clear());
    let garbage = CertificateDer::from(vec![0x30, 0x03, 0x02, 0x01, 0x00]);
    let (client, server) = (Peer::Client, Peer::Server);
    let (trust, trust_middle) = (trusting(&root), trusting(&middle));
    let shallow = |depth| Config {
        max_verify_depth: Some(envoy_types::pb::google::protobuf::UInt32Value { value: depth }),
        ..trusting(&root)
    };
    let tolerant = Config { allow_expired_certificate: true, ..trusting(&root) };
    let untrusted = Config {
        trust_chain_verification: proto::certificate_validation_context::TrustChainVerification::AcceptUntrusted.into(),
        ..trusting(&root)
    };
    let cases: &[(&str, &Config, Peer, &[&CertificateDer<'_>], bool)] = &[
        ("by the root", &trust, client, &[&by_root], true),
        ("by the root, as a server", &trust, server, &[&by_root], true),
        ("root sent as well", &trust, client, &[&by_root, &root.der], true),
        ("by an intermediate", &trust, client, &[&by_middle, &middle.der], true),
        ("intermediate missing", &trust, client, &[&by_middle], false),
        ("two intermediates", &trust, client, &[&by_deep, &deep.der, &middle.der], true),
        ("two intermediates in another order", &trust, client, &[&by_deep, &middle.der, &deep.der], true),
        ("one of two missing", &trust, client, &[&by_deep, &deep.der], false),
        ("intermediate trusted", &trust_middle, client, &[&by_middle], true),
        ("root not trusted, its intermediate is", &trust_middle, client, &[&by_root], false),
        ("expired", &trust, client, &[&expired], false),
        ("expired, as a server", &trust, server, &[&expired], false),
        ("not yet valid", &trust, client, &[&future], false),
        ("not yet valid, as a server", &trust, server, &[&future], false),
        ("expired and allowed", &tolerant, client, &[&expired], true),
        ("not yet valid and allowed", &tolerant, client, &[&future], true),
        ("expired is allowed, a stranger is not", &tolerant, client, &[&self_signed], false),
        ("intermediate expired", &trust, client, &[&leaf(&old_middle, |_| {}), &old_middle.der], false),
        ("intermediate is no authority", &trust, client, &[&leaf(&no_authority, |_| {}), &no_authority.der], false),
        ("self-signed", &trust, client, &[&self_signed], false),
        ("self-signed with the root beside it", &trust, client, &[&self_signed, &root.der], false),
        ("by another authority", &trust, client, &[&leaf(&other, |_| {})], false),
        ("by another authority, as a server", &trust, server, &[&leaf(&other, |_| {})], false),
        ("by another authority, sent as well", &trust, client, &[&leaf(&other, |_| {}), &other.der], false),
        ("by one of the same name", &trust, client, &[&leaf(&impostor, |_| {})], false),
        ("by one of the same name, sent as well", &trust, client, &[&leaf(&impostor, |_| {}), &impostor.der], false),
        ("signature broken", &trust, client, &[&broken], false),
        ("server's use as a client", &trust, client, &[&server_only], false),
        ("server's use as a server", &trust, server, &[&server_only], true),
        ("client's use as a server", &trust, server, &[&client_only], false),
        ("client's use as a client", &trust, client, &[&client_only], true),
        ("any use", &trust, client, &[&any_use], true),
        ("the authority itself", &trust, client, &[&root.der], false),
        ("an intermediate itself", &trust, client, &[&middle.der], false),
        ("garbage", &trust, client, &[&garbage], false),
        ("garbage where nothing is checked", &Config::default(), client, &[&garbage], false),
        ("anything where nothing is checked", &Config::default(), client, &[&self_signed], true),
        ("no certificate", &trust, client, &[], false),
        ("depth 1 with one intermediate", &shallow(1), client, &[&by_middle, &middle.der], true),
        ("depth 1 with two intermediates", &shallow(1), client, &[&by_deep, &deep.der, &middle.der], false),
        ("depth 0 with none", &shallow(0), client, &[&by_root], true),
        ("depth 0 with one intermediate", &shallow(0), client, &[&by_middle, &middle.der], false),
        ("untrusted and accepted", &untrusted, client, &[&self_signed], true),
    ];
    for (case, config, peer, chain, expect) in cases {
        let chain: Vec<_> = chain.iter().map(|der| (*der).clone()).collect();
        assert_eq!(accepts(config, *peer, &chain, None), *expect, "{case}");
    }
    assert!(!compile(&untrusted).unwrap().proves_identity(), "what is accepted unchecked proves nothing");
    assert!(!compile(&Config::default()).unwrap().proves_identity());
    assert!(compile(&trust).unwrap().proves_identity());
}

#[test]
fn names() {
    let root = authority("root");
    let usual = leaf(&root, |_| {});
    let wildcard = leaf(&root, |params| params.subject_alt_names = vec![dns("*.example.com")]);
    let nul = leaf(&root, |params| {
        params.subject_alt_names = vec![dns("a.example.com\0.evil.com"), uri("spiffe://mesh/a\0b")]
    });
    let nameless = leaf(&root, |params| {
        params.subject_alt_names.clear();
        params.distinguished_name.push(DnType::CommonName, "a.example.com");
    });
    let (dns_kind, uri_kind, ip_kind, email) = (SanType::Dns, SanType::Uri, SanType::IpAddress, SanType::Email);
    let spiffe = "spiffe://mesh/ns/a/sa/client";
    let cases: &[(&str, &CertificateDer<'_>, SanType, MatchPattern, bool)] = &[
        ("exact DNS", &usual, dns_kind, exact("a.example.com"), true),
        ("exact DNS in other case", &usual, dns_kind, exact("A.Example.Com"), true),
        ("other DNS", &usual, dns_kind, exact("b.example.com"), false),
        ("DNS name of the parent", &usual, dns_kind, exact("example.com"), false),
        ("wildcard covers", &wildcard, dns_kind, exact("b.example.com"), true),
        ("wildcard covers one label", &wildcard, dns_kind, exact("a.b.example.com"), false),
        ("wildcard covers not its parent", &wildcard, dns_kind, exact("example.com"), false),
        ("DNS prefix", &usual, dns_kind, MatchPattern::Prefix("a.".into()), true),
        ("DNS suffix", &usual, dns_kind, MatchPattern::Suffix(".example.com".into()), true),
        ("DNS suffix of another", &usual, dns_kind, MatchPattern::Suffix(".example.org".into()), false),
        ("exact URI", &usual, uri_kind, exact(spiffe), true),
        ("other URI", &usual, uri_kind, exact("spiffe://mesh/ns/a/sa/other"), false),
        ("longer URI", &usual, uri_kind, exact("spiffe://mesh/ns/a/sa/client2"), false),
        ("URI prefix", &usual, uri_kind, MatchPattern::Prefix("spiffe://mesh/".into()), true),
        ("URI prefix of another domain", &usual, uri_kind, MatchPattern::Prefix("spiffe://mesh2/".into()), false),
        ("URI suffix", &usual, uri_kind, MatchPattern::Suffix("/client".into()), true),
        ("URI regex", &usual, uri_kind, regex("spiffe://mesh/ns/[a-z]+/sa/client"), true),
        ("URI regex matches the whole", &usual, uri_kind, regex("spiffe://mesh/ns"), false),
        ("a URI is no DNS name", &usual, dns_kind, exact(spiffe), false),
        ("a DNS name is no URI", &usual, uri_kind, exact("a.example.com"), false),
        ("exact IP", &usual, ip_kind, exact("10.1.2.3"), true),
        ("other IP", &usual, ip_kind, exact("10.1.2.4"), false),
        ("exact e-mail", &usual, email, exact("ops@example.com"), true),
        ("other e-mail", &usual, email, exact("dev@example.com"), false),
        ("URI in other case", &usual, uri_kind, exact("spiffe://MESH/ns/a/sa/client"), false),
        ("shorter URI", &usual, uri_kind, exact("spiffe://mesh/ns/a/sa/clien"), false),
        ("URI with one more slash", &usual, uri_kind, exact("spiffe://mesh/ns/a/sa/client/"), false),
        ("URI contains", &usual, uri_kind, MatchPattern::Contains("/ns/a/".into()), true),
        ("URI does not contain", &usual, uri_kind, MatchPattern::Contains("/ns/b/".into()), false),
        ("DNS regex", &usual, dns_kind, regex("[a-z]\\.example\\.com"), true),
        ("DNS regex of a part", &usual, dns_kind, regex("example\\.com"), false),
        ("DNS with a final dot", &usual, dns_kind, exact("a.example.com."), true),
        ("a wildcard asked for is no wildcard", &usual, dns_kind, exact("*.example.com"), false),
        ("an e-mail is no DNS name", &usual, dns_kind, exact("ops@example.com"), false),
        ("an IP is no DNS name", &usual, dns_kind, exact("10.1.2.3"), false),
        ("a DNS name is no e-mail", &usual, email, exact("a.example.com"), false),
        ("IP prefix", &usual, ip_kind, MatchPattern::Prefix("10.1.".into()), true),
        ("NUL in a DNS name", &nul, dns_kind, exact("a.example.com"), false),
        ("NUL in a DNS name, by prefix", &nul, dns_kind, MatchPattern::Prefix("a.example.com".into()), false),
        ("NUL in a DNS name, by suffix", &nul, dns_kind, MatchPattern::Suffix("evil.com".into()), false),
        ("NUL in a URI, by prefix", &nul, uri_kind, MatchPattern::Prefix("spiffe://mesh/a".into()), false),
        ("a common name is no DNS name", &nameless, dns_kind, exact("a.example.com"), false),
        ("no names at all", &nameless, uri_kind, MatchPattern::Prefix("spiffe".into()), false),
    ];
    for (case, certificate, kind, pattern, expect) in cases {
        let config = Config { match_typed_subject_alt_names: vec![san(*kind, pattern.clone())], ..trusting(&root) };
        let chain = [(*certificate).clone()];
        assert_eq!(accepts(&config, Peer::Client, &chain, None), *expect, "{case}");
    }
    // A server that must have the name that was asked for.
    let server_cases: &[(&str, &CertificateDer<'_>, &str, bool)] = &[
        ("its name", &usual, "a.example.com", true),
        ("another name", &usual, "b.example.com", false),
        ("by wildcard", &wildcard, "b.example.com", true),
        ("two labels by wildcard", &wildcard, "a.b.example.com", false),
        ("its address", &usual, "10.1.2.3", true),
        ("another address", &usual, "10.1.2.4", false),
        ("NUL", &nul, "a.example.com", false),
        ("common name", &nameless, "a.example.com", false),
    ];
    for (case, certificate, name, expect) in server_cases {
        let chain = [(*certificate).clone()];
        assert_eq!(accepts(&trusting(&root), Peer::Server, &chain, Some(name)), *expect, "{case}");
    }
}

#[test]
fn pins_and_revocation() {
    let root = authority("root");
    let usual = leaf(&root, |_| {});
    let other = leaf(&root, |params| params.serial_number = Some(SerialNumber::from(78)));
    let hash = hex(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &usual).as_ref());
    let pinned = Config { verify_certificate_hash: vec![hash.clone()], ..Config::default() };
    let key = Identity::parse(std::slice::from_ref(&usual)).unwrap().key_hash;
    let by_key = |pin: String| Config { verify_certificate_spki: vec![pin], ..trusting(&root) };
    let base64 = base64(&key);
    let list = |serials: &[u64], next: i32| {
        let revoked = serials.iter().map(|serial| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: date_time_ymd(2020, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(next, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        }
    };
    let with_list = |params: CertificateRevocationListParams, by: &Authority| Config {
        crl: inline(&params.signed_by(&by.issuer).unwrap().pem().unwrap()),
        ..trusting(&root)
    };
    let impostor = authority("root");
    let colons = hash.as_bytes().chunks(2).map(|pair| str::from_utf8(pair).unwrap()).collect::<Vec<_>>().join(":");
    let cases: &[(&str, Config, &CertificateDer<'_>, bool)] = &[
        ("pinned", pinned.clone(), &usual, true),
        ("pinned with colons", Config { verify_certificate_hash: vec![colons], ..Config::default() }, &usual, true),
        ("not the pinned one", pinned.clone(), &other, false),
        ("key pinned", by_key(base64.clone()), &usual, true),
        ("not the pinned key", by_key(base64), &other, false),
        ("pinned, and trusted by nobody", Config { trusted_ca: inline(&authority("x").pem), ..pinned }, &usual, false),
        ("revoked", with_list(list(&[77], 2100), &root), &usual, false),
        ("another revoked", with_list(list(&[78], 2100), &root), &usual, true),
        ("none revoked", with_list(list(&[], 2100), &root), &usual, true),
        ("list expired", with_list(list(&[], 2021), &root), &usual, false),
        ("list by an impostor", with_list(list(&[], 2100), &impostor), &usual, false),
    ];
    for (case, config, certificate, expect) in cases {
        assert_eq!(accepts(config, Peer::Client, &[(*certificate).clone()], None), *expect, "{case}");
    }
}

fn base64(bytes: &[u8]) -> String {
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for place in 0..4 {
            let digit = char::from(alphabet[(bits >> (18 - 6 * place) & 63) as usize]);
            text.push(if place <= group.len() { digit } else { '=' });
        }
    }
    text
}

#[test]
fn bad_configurations_are_refused_by_name() {
    let root = authority("root");
    let check = |config: Config, expect: &str| {
        let message = compile(&config).err().unwrap_or_default();
        assert!(message.contains(expect), "{message:?} does not say {expect:?}");
    };
    check(
        Config { trusted_ca: inline("nothing"), ..Config::default() },
        "trusted_ca: holds no certificate in PEM form",
    );
    let names = vec![san(SanType::Uri, exact("spiffe://a"))];
    check(Config { match_typed_subject_alt_names: names, ..Config::default() }, "trusted_ca: is required");
    check(Config { crl: inline("nothing"), ..trusting(&root) }, "crl: holds no revocation list");
    check(Config { verify_certificate_hash: vec!["abc".into()], ..Config::default() }, "is no SHA-256 in hex");
    check(Config { verify_certificate_spki: vec!["abc=".into()], ..Config::default() }, "is no SHA-256 in base64");
    let missing =
        DataSource { specifier: Some(Specifier::Filename("/nonexistent.pem".into())), ..DataSource::default() };
    check(Config { trusted_ca: Some(missing), ..Config::default() }, "cannot read `/nonexistent.pem`");
}

#[test]
fn an_identity_tells_names_and_numbers() {
    let root = authority("root, and more");
    let certificate = leaf(&root, |params| params.distinguished_name.push(DnType::OrganizationName, "A"));
    let identity = Identity::parse(&[certificate]).unwrap();
    assert_eq!((&*identity.subject, &*identity.issuer), ("O=A,CN=leaf", "CN=root\\, and more"));
    assert_eq!((&*identity.serial, identity.fingerprint.len()), ("4d", 64));
    assert_eq!(identity.uris, ["spiffe://mesh/ns/a/sa/client".into()]);
    let _: Arc<[u8]> = identity.key_hash;
}
