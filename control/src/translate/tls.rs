//! TLS contexts of both sides.

use envoy_types::pb::envoy::config::cluster::v3::{Cluster, cluster::TransportSocketMatch};
use envoy_types::pb::envoy::config::core::v3::{
    DataSource, TransportSocket, data_source, transport_socket::ConfigType,
};
use envoy_types::pb::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as envoy;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SdsSecretConfig, SubjectAltNameMatcher,
    TlsCertificate, TlsParameters, UpstreamTlsContext,
    common_tls_context::{CombinedCertificateValidationContext, ValidationContextType},
    subject_alt_name_matcher::SanType,
    tls_parameters::TlsProtocol,
};
use envoy_types::pb::envoy::r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern};

use super::wire;
use crate::model::api::{ServerTls, TrafficPolicy};
use crate::model::{Mesh, Service, ServicePort};

const UPSTREAM: &str = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";

/// The name under which a gateway asks for a credential.
pub(super) fn credential(name: &str) -> String {
    if name.contains("://") { name.to_owned() } else { format!("kubernetes://{name}") }
}

fn remote(name: &str) -> SdsSecretConfig {
    SdsSecretConfig { name: name.to_owned(), sds_config: wire::aggregated() }
}

fn own(name: &str) -> SdsSecretConfig {
    SdsSecretConfig { name: name.to_owned(), sds_config: wire::agent() }
}

fn file(path: &str) -> Option<DataSource> {
    Some(DataSource { specifier: Some(data_source::Specifier::Filename(path.to_owned())), ..DataSource::default() })
}

fn files(certificate: &str, key: &str) -> TlsCertificate {
    TlsCertificate { certificate_chain: file(certificate), private_key: file(key), ..TlsCertificate::default() }
}

fn names(list: &[String]) -> Vec<SubjectAltNameMatcher> {
    let of = |kind: SanType, name: &String| {
        let pattern = match name.strip_suffix('*') {
            Some(prefix) => MatchPattern::Prefix(prefix.to_owned()),
            None => MatchPattern::Exact(name.clone()),
        };
        SubjectAltNameMatcher {
            san_type: kind.into(),
            matcher: Some(StringMatcher { match_pattern: Some(pattern), ..StringMatcher::default() }),
            ..SubjectAltNameMatcher::default()
        }
    };
    list.iter().map(|name| of(if name.contains("://") { SanType::Uri } else { SanType::Dns }, name)).collect()
}

fn version(name: &str) -> i32 {
    let version = match name {
        "TLSV1_0" => TlsProtocol::TlSv10,
        "TLSV1_1" => TlsProtocol::TlSv11,
        "TLSV1_2" => TlsProtocol::TlSv12,
        "TLSV1_3" => TlsProtocol::TlSv13,
        _ => TlsProtocol::TlsAuto,
    };
    version.into()
}

pub(super) fn downstream_socket(context: &DownstreamTlsContext) -> TransportSocket {
    TransportSocket {
        name: "envoy.transport_sockets.tls".to_owned(),
        config_type: Some(ConfigType::TypedConfig(wire::any(
            "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            context,
        ))),
    }
}

/// The context in which a sidecar ends the mesh's own mutual TLS.
pub(super) fn workload(http: bool) -> DownstreamTlsContext {
    let alpn: &[&str] = if http { &["h2", "http/1.1"] } else { &["istio-peer-exchange", "h2", "http/1.1"] };
    let common = CommonTlsContext {
        tls_params: Some(TlsParameters {
            tls_minimum_protocol_version: TlsProtocol::TlSv12.into(),
            ..TlsParameters::default()
        }),
        alpn_protocols: alpn.iter().map(|&name| name.to_owned()).collect(),
        tls_certificate_sds_secret_configs: vec![own("default")],
        validation_context_type: Some(ValidationContextType::CombinedValidationContext(
            CombinedCertificateValidationContext {
                default_validation_context: Some(CertificateValidationContext::default()),
                validation_context_sds_secret_config: Some(own("ROOTCA")),
                ..CombinedCertificateValidationContext::default()
            },
        )),
        ..CommonTlsContext::default()
    };
    DownstreamTlsContext {
        common_tls_context: Some(common),
        require_client_certificate: wire::flag(true),
        ..DownstreamTlsContext::default()
    }
}

/// The context of a Sidecar's ingress listener with a certificate of its own, which the workload's agent reads.
pub(super) fn ingress(tls: &ServerTls, http: bool) -> DownstreamTlsContext {
    let mutual = tls.mode == "MUTUAL";
    let name = format!("file-cert:{}~{}", tls.server_certificate, tls.private_key);
    let matching = CertificateValidationContext {
        match_typed_subject_alt_names: names(&tls.subject_alt_names),
        ..CertificateValidationContext::default()
    };
    let alpn: &[&str] = if http { &["h2", "http/1.1"] } else { &[] };
    let common = CommonTlsContext {
        tls_params: Some(parameters(tls)),
        alpn_protocols: alpn.iter().map(|&name| name.to_owned()).collect(),
        tls_certificate_sds_secret_configs: vec![own(&name)],
        validation_context_type: mutual.then(|| {
            ValidationContextType::CombinedValidationContext(CombinedCertificateValidationContext {
                default_validation_context: Some(matching),
                validation_context_sds_secret_config: Some(own(&format!("file-root:{}", tls.ca_certificates))),
                ..CombinedCertificateValidationContext::default()
            })
        }),
        ..CommonTlsContext::default()
    };
    DownstreamTlsContext {
        common_tls_context: Some(common),
        require_client_certificate: wire::flag(mutual),
        ..DownstreamTlsContext::default()
    }
}

fn parameters(tls: &ServerTls) -> TlsParameters {
    let minimum = if tls.min_protocol_version.is_empty() { "TLSV1_2" } else { &tls.min_protocol_version };
    TlsParameters {
        tls_minimum_protocol_version: version(minimum),
        tls_maximum_protocol_version: version(&tls.max_protocol_version),
        cipher_suites: tls.cipher_suites.clone(),
        ..TlsParameters::default()
    }
}

/// The context of a gateway's server, or none where it does not terminate TLS.
pub(super) fn server(tls: &ServerTls, alpn: &[&str]) -> Option<DownstreamTlsContext> {
    let mode = tls.mode.as_str();
    if matches!(mode, "PASSTHROUGH" | "AUTO_PASSTHROUGH") {
        return None;
    }
    let mutual = matches!(mode, "MUTUAL" | "ISTIO_MUTUAL" | "OPTIONAL_MUTUAL");
    let mut common = CommonTlsContext {
        alpn_protocols: alpn.iter().map(|&name| name.to_owned()).collect(),
        ..CommonTlsContext::default()
    };
    common.tls_params = Some(parameters(tls));
    let matching = CertificateValidationContext {
        match_typed_subject_alt_names: names(&tls.subject_alt_names),
        verify_certificate_spki: tls.verify_certificate_spki.clone(),
        verify_certificate_hash: tls.verify_certificate_hash.clone(),
        ..CertificateValidationContext::default()
    };
    let combined = |secret: SdsSecretConfig| {
        ValidationContextType::CombinedValidationContext(CombinedCertificateValidationContext {
            default_validation_context: Some(matching.clone()),
            validation_context_sds_secret_config: Some(secret),
            ..CombinedCertificateValidationContext::default()
        })
    };
    if mode == "ISTIO_MUTUAL" {
        common.tls_certificate_sds_secret_configs = vec![own("default")];
        common.validation_context_type = Some(combined(own("ROOTCA")));
    } else if !tls.credential_name.is_empty() || !tls.credential_names.is_empty() {
        let all = std::iter::once(&tls.credential_name).chain(&tls.credential_names).filter(|name| !name.is_empty());
        common.tls_certificate_sds_secret_configs = all.map(|name| remote(&credential(name))).collect();
        if mutual {
            let root = if tls.ca_cert_credential_name.is_empty() {
                let first = if tls.credential_name.is_empty() {
                    tls.credential_names.first()
                } else {
                    Some(&tls.credential_name)
                };
                format!("{}-cacert", credential(first.map_or("", String::as_str)))
            } else {
                credential(&tls.ca_cert_credential_name)
            };
            common.validation_context_type = Some(combined(remote(&root)));
        }
    } else {
        common.tls_certificates = vec![files(&tls.server_certificate, &tls.private_key)];
        if mutual {
            let context = CertificateValidationContext { trusted_ca: file(&tls.ca_certificates), ..matching.clone() };
            common.validation_context_type = Some(ValidationContextType::ValidationContext(context));
        }
    }
    Some(DownstreamTlsContext {
        common_tls_context: Some(common),
        require_client_certificate: wire::flag(mutual && mode != "OPTIONAL_MUTUAL"),
        ..DownstreamTlsContext::default()
    })
}

/// Sets how the cluster speaks TLS: as the DestinationRule says, else mutual TLS to every endpoint whose proxy takes it.
pub(super) fn upstream(made: &mut Cluster, mesh: &Mesh, service: &Service, port: &ServicePort, policy: &TrafficPolicy) {
    let http2 = port.protocol.is_http2();
    let Some(tls) = &policy.tls else {
        if service.endpoints_of(port.number).iter().any(crate::model::Endpoint::is_mutual_tls) {
            let context = mutual(mesh, &made.name, http2, &[]);
            made.transport_socket_matches = vec![
                TransportSocketMatch {
                    name: "tlsMode-istio".to_owned(),
                    r#match: Some(wire::fields([("tlsMode", wire::text("istio"))])),
                    transport_socket: Some(socket(&context)),
                },
                TransportSocketMatch {
                    name: "tlsMode-disabled".to_owned(),
                    r#match: Some(wire::fields([])),
                    transport_socket: Some(TransportSocket {
                        name: "envoy.transport_sockets.raw_buffer".to_owned(),
                        config_type: Some(ConfigType::TypedConfig(wire::any(
                            "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer",
                            &RawBuffer {},
                        ))),
                    }),
                },
            ];
        }
        return;
    };
    let context = match tls.mode.as_str() {
        "ISTIO_MUTUAL" => mutual(mesh, &made.name, http2, &tls.subject_alt_names),
        "SIMPLE" | "MUTUAL" => {
            let mut common = CommonTlsContext::default();
            if http2 {
                common.alpn_protocols = vec!["h2".to_owned()];
            }
            if tls.mode == "MUTUAL" {
                if tls.credential_name.is_empty() {
                    common.tls_certificates = vec![files(&tls.client_certificate, &tls.private_key)];
                } else {
                    common.tls_certificate_sds_secret_configs = vec![remote(&credential(&tls.credential_name))];
                }
            }
            let matching = CertificateValidationContext {
                match_typed_subject_alt_names: names(&tls.subject_alt_names),
                ..CertificateValidationContext::default()
            };
            if tls.insecure_skip_verify != Some(true) {
                common.validation_context_type = if !tls.credential_name.is_empty() {
                    Some(ValidationContextType::CombinedValidationContext(CombinedCertificateValidationContext {
                        default_validation_context: Some(matching),
                        validation_context_sds_secret_config: Some(remote(&format!(
                            "{}-cacert",
                            credential(&tls.credential_name)
                        ))),
                        ..CombinedCertificateValidationContext::default()
                    }))
                } else if tls.ca_certificates.is_empty() {
                    Some(ValidationContextType::ValidationContext(CertificateValidationContext {
                        system_root_certs: Some(envoy::certificate_validation_context::SystemRootCerts {}),
                        ..matching
                    }))
                } else {
                    Some(ValidationContextType::ValidationContext(CertificateValidationContext {
                        trusted_ca: file(&tls.ca_certificates),
                        ..matching
                    }))
                };
            }
            UpstreamTlsContext {
                common_tls_context: Some(common),
                sni: if tls.sni.is_empty() && service.mesh_external {
                    service.hostname.clone()
                } else {
                    tls.sni.clone()
                },
                ..UpstreamTlsContext::default()
            }
        }
        _ => return,
    };
    made.transport_socket = Some(socket(&context));
}

fn socket(context: &UpstreamTlsContext) -> TransportSocket {
    TransportSocket {
        name: "envoy.transport_sockets.tls".to_owned(),
        config_type: Some(ConfigType::TypedConfig(wire::any(UPSTREAM, context))),
    }
}

fn mutual(mesh: &Mesh, cluster: &str, http2: bool, sans: &[String]) -> UpstreamTlsContext {
    let sans = if sans.is_empty() { vec![format!("spiffe://{}/*", mesh.config.trust_domain)] } else { sans.to_vec() };
    let mut alpn = vec!["istio-peer-exchange".to_owned(), "istio".to_owned()];
    if http2 {
        alpn.push("h2".to_owned());
    }
    let mut name = cluster.splitn(4, '|');
    let mut part = || name.next().unwrap_or_default();
    let sni = format!("{}_.{}_.{}_.{}", part(), part(), part(), part());
    let common = CommonTlsContext {
        alpn_protocols: alpn,
        tls_certificate_sds_secret_configs: vec![own("default")],
        validation_context_type: Some(ValidationContextType::CombinedValidationContext(
            CombinedCertificateValidationContext {
                default_validation_context: Some(CertificateValidationContext {
                    match_typed_subject_alt_names: names(&sans),
                    ..CertificateValidationContext::default()
                }),
                validation_context_sds_secret_config: Some(own("ROOTCA")),
                ..CombinedCertificateValidationContext::default()
            },
        )),
        ..CommonTlsContext::default()
    };
    UpstreamTlsContext { common_tls_context: Some(common), sni, ..UpstreamTlsContext::default() }
}

/// The secret that a proxy asks for under `name`; `None` where there is none that this proxy may have.
pub(super) fn secret(mesh: &Mesh, namespace: &str, name: &str) -> Option<envoy::Secret> {
    let (place, root) = match name.strip_suffix("-cacert") {
        Some(base) => (base, true),
        None => (name, false),
    };
    let granted = mesh.secrets.is_granted(namespace, place);
    let place = match place.strip_prefix("configmap://").and_then(|place| place.split_once('/')) {
        Some((namespace, object)) => return authority(mesh, namespace, object, name),
        None => place.strip_prefix("kubernetes://").or_else(|| place.strip_prefix("kubernetes-gateway://"))?,
    };
    let (namespace, object) = match place.split_once('/') {
        // Another namespace's key only with its consent, which only the Gateway API can tell of.
        Some((other, object)) if other == namespace || granted => (other, object),
        Some(_) => return None,
        None => (namespace, place),
    };
    let bytes = |bytes: &[u8]| DataSource {
        specifier: Some(data_source::Specifier::InlineBytes(bytes.to_vec())),
        ..DataSource::default()
    };
    let kind = if root {
        let own =
            mesh.secrets.get(namespace, &format!("{object}-cacert")).filter(|credential| !credential.root.is_empty());
        let credential =
            own.or_else(|| mesh.secrets.get(namespace, object)).filter(|credential| !credential.root.is_empty())?;
        envoy::secret::Type::ValidationContext(CertificateValidationContext {
            trusted_ca: Some(bytes(&credential.root)),
            ..CertificateValidationContext::default()
        })
    } else {
        let credential = mesh.secrets.get(namespace, object)?;
        if credential.certificate.is_empty() || credential.key.is_empty() {
            return None;
        }
        envoy::secret::Type::TlsCertificate(TlsCertificate {
            certificate_chain: Some(bytes(&credential.certificate)),
            private_key: Some(bytes(&credential.key)),
            ..TlsCertificate::default()
        })
    };
    Some(envoy::Secret { name: name.to_owned(), r#type: Some(kind) })
}

/// An authority that a policy names, under the name that was asked for.
fn authority(mesh: &Mesh, namespace: &str, object: &str, name: &str) -> Option<envoy::Secret> {
    let root = mesh.secrets.root(namespace, object)?.to_vec();
    let trusted = DataSource { specifier: Some(data_source::Specifier::InlineBytes(root)), ..DataSource::default() };
    Some(envoy::Secret {
        name: name.to_owned(),
        r#type: Some(envoy::secret::Type::ValidationContext(CertificateValidationContext {
            trusted_ca: Some(trusted),
            ..CertificateValidationContext::default()
        })),
    })
}
