//! `DownstreamTlsContext` and `UpstreamTlsContext` become [`ServerTls`] and [`ClientTls`].

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::{DataSource, data_source::Specifier};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as proto;
use proto::common_tls_context::ValidationContextType;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName};
use rustls::sign::CertifiedKey;
use rustls::{DistinguishedName, SupportedProtocolVersion, version};
use webpki::{CertRevocationList, OwnedCertRevocationList, anchor_from_trusted_cert};

use super::client::{ClientParts, ClientTls};
use super::identity::Identity;
use super::names;
use super::secret::{self, Renewal};
use super::server::{Certificate, ServerParts, ServerTls};
use super::validate::{NameKind, NameMatcher, NameTest, Validation};
use crate::config::parse::ParseContext;
use crate::config::reject::Refused;
use crate::route::string_match::StringMatcher;

/// Compiles what a filter chain offers. `stat_prefix` is `listener.<address>.`. It is not ready where a secret is missing.
pub fn parse_server(
    config: &proto::DownstreamTlsContext,
    stat_prefix: &str,
    context: &mut ParseContext,
) -> Result<ServerTls, Refused> {
    let common = context.required("common_tls_context", &config.common_tls_context)?;
    let (base, needs) = context.within("common_tls_context", |context| secret::plan(common, context))?;
    if base.tls_certificates.is_empty() && needs.certificate_count() == 0 {
        let reason = "must hold at least one certificate: clients need one";
        return Err(context.reject("common_tls_context.tls_certificates", reason));
    }
    let config = proto::DownstreamTlsContext { common_tls_context: Some(base.clone()), ..config.clone() };
    let filled = context.within("common_tls_context", |context| needs.filled(&base, context))?;
    let tls = match filled {
        Some(filled) => compile_server(
            &proto::DownstreamTlsContext { common_tls_context: Some(filled), ..config.clone() },
            stat_prefix,
            context,
        )?,
        None => {
            context.within("common_tls_context", |context| check_without_secrets(&base, context))?;
            ServerTls::waiting(context.registry.group(&format!("{stat_prefix}ssl.")))
        }
    };
    Ok(tls.counting(context.registry.group(&format!("{stat_prefix}server_ssl_socket_factory."))).naming(Renewal {
        config,
        needs,
        stat_prefix: stat_prefix.into(),
    }))
}

/// Compiles what names no secret.
pub(super) fn compile_server(
    config: &proto::DownstreamTlsContext,
    stat_prefix: &str,
    context: &mut ParseContext,
) -> Result<ServerTls, Refused> {
    let start = context.problems.checkpoint();
    let common = context.required("common_tls_context", &config.common_tls_context)?;
    let require = config.require_client_certificate.is_some_and(|require| require.value);
    let (parameters, certificates, validation) = context.within("common_tls_context", |context| {
        let parameters = parameters(common, context);
        let certificates = context.each("tls_certificates", &common.tls_certificates, certificate);
        (parameters, certificates, validation(common, context))
    });
    context.problems.clean_since(start)?;
    let (provider, versions) = parameters?;
    // A required certificate that nothing is checked of would prove nothing (Envoy takes it as well).
    let validation = match validation? {
        None if require => Some(Arc::new(Validation::accepting(provider.signature_verification_algorithms))),
        other => other.map(Arc::new),
    };
    let disabled = Some(proto::downstream_tls_context::SessionTicketKeysType::DisableStatelessSessionResumption(true));
    ServerTls::new(ServerParts {
        provider: Arc::new(provider),
        versions,
        certificates: certificates?,
        validation,
        require_client_certificate: require,
        require_sni: config.require_sni.is_some_and(|require| require.value),
        full_scan: config.full_scan_certs_on_sni_mismatch.is_some_and(|scan| scan.value),
        alpn: alpn(common),
        tickets: config.session_ticket_keys_type != disabled,
        prefer_client_ciphers: config.prefer_client_ciphers,
        stats: context.registry.group(&format!("{stat_prefix}ssl.")),
    })
    .map(|tls| tls.following_files(config, stat_prefix))
    .map_err(|error| context.reject("", error.to_string()))
}

/// Compiles what a cluster asks for. `stat_prefix` is `cluster.<name>.`. It is not ready where a secret is missing.
pub fn parse_client(
    config: &proto::UpstreamTlsContext,
    stat_prefix: &str,
    context: &mut ParseContext,
) -> Result<ClientTls, Refused> {
    let empty = proto::CommonTlsContext::default();
    let common = config.common_tls_context.as_ref().unwrap_or(&empty);
    let (base, needs) = context.within("common_tls_context", |context| secret::plan(common, context))?;
    if base.tls_certificates.len() + needs.certificate_count() > 1 {
        let reason = "must hold at most one certificate";
        return Err(context.reject("common_tls_context.tls_certificates", reason));
    }
    let config = proto::UpstreamTlsContext { common_tls_context: Some(base.clone()), ..config.clone() };
    let filled = context.within("common_tls_context", |context| needs.filled(&base, context))?;
    let tls = match filled {
        Some(filled) => compile_client(
            &proto::UpstreamTlsContext { common_tls_context: Some(filled), ..config.clone() },
            stat_prefix,
            context,
        )?,
        None => {
            context.within("common_tls_context", |context| check_without_secrets(&base, context))?;
            let name = server_name(&config, context)?;
            session_count_max(&config, context)?;
            let stats = context.registry.group(&format!("{stat_prefix}ssl."));
            ClientTls::waiting(name, config.auto_host_sni, stats)
        }
    };
    Ok(tls.counting(context.registry.group(&format!("{stat_prefix}client_ssl_socket_factory."))).naming(Renewal {
        config,
        needs,
        stat_prefix: stat_prefix.into(),
    }))
}

/// Compiles what names no secret.
pub(super) fn compile_client(
    config: &proto::UpstreamTlsContext,
    stat_prefix: &str,
    context: &mut ParseContext,
) -> Result<ClientTls, Refused> {
    let start = context.problems.checkpoint();
    let empty = proto::CommonTlsContext::default();
    let common = config.common_tls_context.as_ref().unwrap_or(&empty);
    let (parameters, certificates, validation) = context.within("common_tls_context", |context| {
        let parameters = parameters(common, context);
        let certificates = context.each("tls_certificates", &common.tls_certificates, certificate);
        (parameters, certificates, validation(common, context))
    });
    let name = server_name(config, context);
    let session_count_max = session_count_max(config, context);
    context.problems.clean_since(start)?;
    let (provider, versions) = parameters?;
    let validation = validation?;
    if config.auto_sni_san_validation && validation.as_ref().is_none_or(|validation| validation.anchors.is_empty()) {
        return Err(context.reject("auto_sni_san_validation", "needs a trusted_ca to validate with"));
    }
    let validation = validation.unwrap_or_else(|| Validation::accepting(provider.signature_verification_algorithms));
    ClientTls::new(ClientParts {
        provider: Arc::new(provider),
        versions,
        certificate: certificates?.into_iter().next(),
        validation: Arc::new(validation),
        name: name?,
        host_name: config.auto_host_sni,
        match_server_name: config.auto_sni_san_validation,
        alpn: alpn(common),
        session_count_max: session_count_max?,
        stats: context.registry.group(&format!("{stat_prefix}ssl.")),
    })
    .map(|tls| tls.following_files(config, stat_prefix))
    .map_err(|error| context.reject("", error.to_string()))
}

/// Refuses what is wrong whatever the secrets that are missing will say.
fn check_without_secrets(common: &proto::CommonTlsContext, context: &mut ParseContext) -> Result<(), Refused> {
    let start = context.problems.checkpoint();
    let _ = parameters(common, context);
    let _ = context.each("tls_certificates", &common.tls_certificates, certificate);
    if let Some(ValidationContextType::ValidationContext(config)) = &common.validation_context_type {
        let _ = context.within("validation_context", |context| validation_fields(config, context));
    }
    context.problems.clean_since(start)
}

/// The server name to ask for, where one is configured.
fn server_name(
    config: &proto::UpstreamTlsContext,
    context: &mut ParseContext,
) -> Result<Option<ServerName<'static>>, Refused> {
    match config.sni.as_str() {
        "" => Ok(None),
        // The certificate may be checked for an address, which is never sent (RFC 6066 §3).
        name => ServerName::try_from(name.to_owned())
            .map(Some)
            .map_err(|_| context.reject("sni", format!("`{name}` is neither a host name nor an address"))),
    }
}

fn session_count_max(config: &proto::UpstreamTlsContext, context: &mut ParseContext) -> Result<usize, Refused> {
    let max = config.max_session_keys.map_or(1, |max| max.value as usize);
    if max > SESSION_COUNT_LIMIT {
        return Err(context.reject("max_session_keys", format!("must be at most {SESSION_COUNT_LIMIT}")));
    }
    Ok(max)
}

/// Sessions that a cluster may keep.
const SESSION_COUNT_LIMIT: usize = 65_536;

type Parameters = (CryptoProvider, Vec<&'static SupportedProtocolVersion>);

/// Versions, ciphers and groups. Names that are weaker than what is offered here are left out, with a warning.
fn parameters(common: &proto::CommonTlsContext, context: &mut ParseContext) -> Result<Parameters, Refused> {
    use proto::tls_parameters::TlsProtocol;
    let mut provider = aws_lc_rs::default_provider();
    names::sort_by_preference(&mut provider.cipher_suites);
    let Some(config) = &common.tls_params else { return Ok((provider, vec![&version::TLS13, &version::TLS12])) };
    context.within("tls_params", |context| {
        let minimum = match config.tls_minimum_protocol_version() {
            TlsProtocol::TlSv13 => 3,
            _ => 2,
        };
        let maximum = match config.tls_maximum_protocol_version() {
            TlsProtocol::TlsAuto | TlsProtocol::TlSv13 => 3,
            _ => 2,
        };
        let versions: Vec<_> = [(3, &version::TLS13), (2, &version::TLS12)]
            .into_iter()
            .filter(|(number, _)| (minimum..=maximum).contains(number))
            .map(|(_, version)| version)
            .collect();
        if versions.is_empty() {
            return Err(context.reject("tls_maximum_protocol_version", "is below the minimum version"));
        }
        if !config.cipher_suites.is_empty() {
            let mut suites = Vec::new();
            let named = config.cipher_suites.iter().flat_map(|names| names.trim_matches(['[', ']']).split('|'));
            for name in named {
                match names::suite_named(name) {
                    Some(suite) => suites.push(suite),
                    None if names::WEAK_SUITES.contains(&name) => {
                        context.warn("cipher_suites", format!("`{name}` is too weak and not offered"));
                    }
                    None => return Err(context.reject("cipher_suites", format!("unknown cipher suite `{name}`"))),
                }
            }
            if suites.is_empty() {
                return Err(context.reject("cipher_suites", "none of them is offered here"));
            }
            // The list is of TLS 1.2 alone, as in BoringSSL; those of 1.3 are always there.
            provider.cipher_suites.retain(|suite| suite.tls13().is_some());
            provider.cipher_suites.extend(suites);
        }
        if !config.ecdh_curves.is_empty() {
            provider.kx_groups.clear();
            for name in &config.ecdh_curves {
                match names::group_named(name) {
                    Some(group) => provider.kx_groups.push(group),
                    None => return Err(context.reject("ecdh_curves", format!("unknown curve `{name}`"))),
                }
            }
        }
        Ok((provider, versions))
    })
}

fn alpn(common: &proto::CommonTlsContext) -> Vec<Vec<u8>> {
    // Envoy takes lists in one string as well.
    let names = common.alpn_protocols.iter().flat_map(|names| names.split(','));
    names.filter(|name| !name.is_empty()).map(|name| name.as_bytes().to_vec()).collect()
}

pub(super) fn certificate(config: &proto::TlsCertificate, context: &mut ParseContext) -> Result<Certificate, Refused> {
    let chain = required_source("certificate_chain", &config.certificate_chain, context);
    let key = required_source("private_key", &config.private_key, context);
    let (chain, key) = (chain?, key?);
    let chain = pem_certificates("certificate_chain", &chain, context)?;
    let identity = Identity::parse(&chain).map_err(|error| context.reject("certificate_chain", error.to_string()))?;
    let key = PrivateKeyDer::from_pem_slice(&key)
        .map_err(|error| context.reject("private_key", format!("holds no private key in PEM form: {error}")))?;
    let key = CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider());
    let mut key = key.map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => context.reject("private_key", "is not the key of the certificate"),
        error => context.reject("private_key", error.to_string()),
    })?;
    if let Some(staple) = &config.ocsp_staple {
        key.ocsp = Some(source("ocsp_staple", staple, context)?);
    }
    Ok(Certificate { key: Arc::new(key), identity: Arc::new(identity) })
}

fn validation(common: &proto::CommonTlsContext, context: &mut ParseContext) -> Result<Option<Validation>, Refused> {
    match &common.validation_context_type {
        None => Ok(None),
        Some(ValidationContextType::ValidationContext(config)) => {
            context.within("validation_context", |context| validation_context(config, context)).map(Some)
        }
        Some(_) => Err(context.reject("validation_context", "of this kind is not there yet in this version")),
    }
}

pub(super) fn validation_context(
    config: &proto::CertificateValidationContext,
    context: &mut ParseContext,
) -> Result<Validation, Refused> {
    let validation = validation_fields(config, context)?;
    if !validation.names.is_empty() && validation.anchors.is_empty() {
        return Err(
            context.reject("trusted_ca", "is required: names in a certificate that nobody vouches for prove nothing")
        );
    }
    if !validation.revoked.is_empty() && validation.anchors.is_empty() {
        return Err(context.reject("trusted_ca", "is required where revocation lists are given"));
    }
    Ok(validation)
}

/// Its fields, each for itself.
pub(super) fn validation_fields(
    config: &proto::CertificateValidationContext,
    context: &mut ParseContext,
) -> Result<Validation, Refused> {
    let start = context.problems.checkpoint();
    let mut validation = Validation::accepting(aws_lc_rs::default_provider().signature_verification_algorithms);
    if let Some(authorities) = &config.trusted_ca {
        let _ = trust(authorities, config.suppress_client_ca_list, &mut validation, context);
    }
    if let Some(lists) = &config.crl {
        let _ = revoke(lists, &mut validation, context);
    }
    let names = context.each("match_typed_subject_alt_names", &config.match_typed_subject_alt_names, name_matcher);
    #[expect(deprecated, reason = "Envoy still honours it")]
    let untyped = context.each("match_subject_alt_names", &config.match_subject_alt_names, |matcher, context| {
        let kinds = [NameKind::Dns, NameKind::Uri, NameKind::Email, NameKind::Ip];
        let parsed = kinds.map(|kind| name_test(kind, matcher, context).map(|test| NameMatcher { kind, test }));
        parsed.into_iter().collect::<Result<Vec<_>, _>>()
    });
    let hashes = &config.verify_certificate_hash;
    let certificate_pins = context.each("verify_certificate_hash", hashes, |hash, context| hex_pin(hash, context));
    let keys = &config.verify_certificate_spki;
    let key_pins = context.each("verify_certificate_spki", keys, |hash, context| base64_pin(hash, context));
    context.problems.clean_since(start)?;
    validation.names = names?.into_iter().chain(untyped?.into_iter().flatten()).collect();
    validation.certificate_pins = certificate_pins?;
    validation.key_pins = key_pins?;
    validation.revocation_of_leaf_only = config.only_verify_leaf_cert_crl;
    validation.allow_expired = config.allow_expired_certificate;
    validation.depth_max = config.max_verify_depth.map(|depth| depth.value);
    validation.accept_untrusted = config.trust_chain_verification()
        == proto::certificate_validation_context::TrustChainVerification::AcceptUntrusted;
    Ok(validation)
}

fn trust(
    authorities: &DataSource,
    suppress_names: bool,
    validation: &mut Validation,
    context: &mut ParseContext,
) -> Result<(), Refused> {
    let pem = source("trusted_ca", authorities, context)?;
    for der in pem_certificates("trusted_ca", &pem, context)? {
        let anchor = anchor_from_trusted_cert(&der)
            .map_err(|error| context.reject("trusted_ca", format!("holds a certificate that is unusable: {error}")))?;
        if !suppress_names {
            validation.subjects.push(DistinguishedName::in_sequence(&anchor.subject));
        }
        validation.anchors.push(anchor.to_owned());
    }
    Ok(())
}

fn revoke(lists: &DataSource, validation: &mut Validation, context: &mut ParseContext) -> Result<(), Refused> {
    let pem = source("crl", lists, context)?;
    for list in CertificateRevocationListDer::pem_slice_iter(&pem) {
        let list = list.map_err(|error| context.reject("crl", format!("is no PEM: {error}")))?;
        let list = OwnedCertRevocationList::from_der(&list)
            .map_err(|error| context.reject("crl", format!("holds a list that is unusable: {error}")))?;
        validation.revoked.push(CertRevocationList::Owned(list));
    }
    if validation.revoked.is_empty() {
        return Err(context.reject("crl", "holds no revocation list in PEM form"));
    }
    Ok(())
}

fn name_matcher(config: &proto::SubjectAltNameMatcher, context: &mut ParseContext) -> Result<NameMatcher, Refused> {
    use proto::subject_alt_name_matcher::SanType;
    let kind = match config.san_type() {
        SanType::Email => NameKind::Email,
        SanType::Dns => NameKind::Dns,
        SanType::Uri => NameKind::Uri,
        SanType::IpAddress => NameKind::Ip,
        SanType::OtherName => {
            return Err(context.reject("san_type", "OTHER_NAME is not there yet in this version"));
        }
        SanType::Unspecified => return Err(context.reject("san_type", "is required")),
    };
    let matcher = context.required("matcher", &config.matcher)?;
    let test = context.within("matcher", |context| name_test(kind, matcher, context))?;
    Ok(NameMatcher { kind, test })
}

fn name_test(
    kind: NameKind,
    matcher: &envoy_types::pb::envoy::r#type::matcher::v3::StringMatcher,
    context: &mut ParseContext,
) -> Result<NameTest, Refused> {
    use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
    match &matcher.match_pattern {
        Some(MatchPattern::Exact(name)) if kind == NameKind::Dns => Ok(NameTest::Covers(name.as_str().into())),
        _ => StringMatcher::parse(matcher, context).map(NameTest::Text),
    }
}

/// A SHA-256 in hex, with or without colons.
fn hex_pin(text: &str, context: &mut ParseContext) -> Result<[u8; 32], Refused> {
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b':').collect();
    let pairs = digits.chunks(2).map(|pair| {
        let pair = std::str::from_utf8(pair).ok().filter(|pair| pair.len() == 2 && !pair.starts_with('+'))?;
        u8::from_str_radix(pair, 16).ok()
    });
    let bytes: Option<Vec<u8>> = pairs.collect();
    let pin = bytes.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
    pin.ok_or_else(|| context.reject("", format!("`{text}` is no SHA-256 in hex")))
}

/// A SHA-256 in base64 (RFC 4648 §4).
fn base64_pin(text: &str, context: &mut ParseContext) -> Result<[u8; 32], Refused> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let decoded = text.strip_suffix('=').filter(|digits| digits.len() == 43).and_then(|digits| {
        let mut bits: u32 = 0;
        let mut bit_count = 0;
        let mut bytes = Vec::with_capacity(32);
        for digit in digits.bytes() {
            bits = bits << 6 | ALPHABET.iter().position(|known| *known == digit)? as u32;
            bit_count += 6;
            if bit_count >= 8 {
                bit_count -= 8;
                bytes.push((bits >> bit_count) as u8);
                bits &= (1 << bit_count) - 1;
            }
        }
        (bits == 0).then_some(bytes)
    });
    let pin = decoded.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
    pin.ok_or_else(|| context.reject("", format!("`{text}` is no SHA-256 in base64")))
}

fn pem_certificates(
    field: &str,
    pem: &[u8],
    context: &mut ParseContext,
) -> Result<Vec<CertificateDer<'static>>, Refused> {
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match parsed {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        Ok(_) => Err(context.reject(field, "holds no certificate in PEM form")),
        Err(error) => Err(context.reject(field, format!("is no PEM: {error}"))),
    }
}

fn required_source(field: &str, config: &Option<DataSource>, context: &mut ParseContext) -> Result<Vec<u8>, Refused> {
    let config = context.required(field, config)?;
    source(field, config, context)
}

/// The bytes that a DataSource names.
fn source(field: &str, config: &DataSource, context: &mut ParseContext) -> Result<Vec<u8>, Refused> {
    match &config.specifier {
        Some(Specifier::Filename(path)) => {
            std::fs::read(path).map_err(|error| context.reject(field, format!("cannot read `{path}`: {error}")))
        }
        Some(Specifier::InlineBytes(bytes)) => Ok(bytes.clone()),
        Some(Specifier::InlineString(text)) => Ok(text.clone().into_bytes()),
        Some(Specifier::EnvironmentVariable(name)) => std::env::var(name)
            .map(String::into_bytes)
            .map_err(|error| context.reject(field, format!("environment variable `{name}`: {error}"))),
        None => Err(context.reject(field, "needs one of filename, inline_bytes, inline_string, environment_variable")),
    }
}
