//! `envoy.config.core.v3.GrpcService.GoogleGrpc`: a gRPC server by its URI, without a cluster.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::grpc_service::GoogleGrpc;
use envoy_types::pb::envoy::config::core::v3::grpc_service::google_grpc::SslCredentials;
use envoy_types::pb::envoy::config::core::v3::grpc_service::google_grpc::channel_credentials::CredentialSpecifier;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::common_tls_context::ValidationContextType;
use prost::Message as _;
use xxhash_rust::xxh64::xxh64;

use super::ParseContext;
use crate::config::address::Address;
use crate::config::discovery::connect::Place;
use crate::config::discovery::source::GoogleServer;
use crate::config::reject::Refused;
use crate::tls::parse_client;

/// A server that is named by its URI. Source: gRPC, doc/naming.md.
pub(super) fn parse(config: &GoogleGrpc, context: &mut ParseContext) -> Result<GoogleServer, Refused> {
    let uri = context.non_empty("target_uri", &config.target_uri)?;
    let place = place(uri).ok_or_else(|| {
        let reason =
            format!("`{uri}` is none of HOST:PORT, dns:HOST:PORT, ipv4:ADDRESS:PORT, ipv6:[ADDRESS]:PORT, unix:PATH");
        context.reject("target_uri", reason)
    })?;
    let credentials = config.channel_credentials.as_ref().and_then(|it| it.credential_specifier.as_ref());
    let (tls, credentials) = match credentials {
        // Source: Envoy takes insecure credentials where none are configured.
        None => (None, 0),
        Some(CredentialSpecifier::SslCredentials(ssl)) => {
            let tls = context.within("channel_credentials", |context| {
                context.within("ssl_credentials", |context| client(ssl, config, &place, context))
            })?;
            (Some(Arc::new(tls)), xxh64(&ssl.encode_to_vec(), 1))
        }
        Some(CredentialSpecifier::GoogleDefault(_) | CredentialSpecifier::LocalCredentials(_)) => {
            return Err(context.reject("channel_credentials", "must be ssl_credentials, or nothing for none"));
        }
    };
    Ok(GoogleServer { place, tls, credentials })
}

/// As of an UpstreamTlsContext that believes `root_certs` and asks for the name of the server.
fn client(
    ssl: &SslCredentials,
    config: &GoogleGrpc,
    place: &Place,
    context: &mut ParseContext,
) -> Result<crate::tls::ClientTls, Refused> {
    if ssl.root_certs.is_none() {
        return Err(
            context.reject("root_certs", "is required: the authorities that the server's certificate may come from")
        );
    }
    let sni = match place {
        Place::Named(host, _) => host.to_string(),
        Place::Address(Address::Ip(address)) => address.ip().to_string(),
        Place::Address(Address::Pipe(_)) => {
            return Err(context.reject("", "needs a target_uri with a host, whose name the certificate must have"));
        }
    };
    let validation = tls::CertificateValidationContext { trusted_ca: ssl.root_certs.clone(), ..Default::default() };
    let certificate = tls::TlsCertificate {
        certificate_chain: ssl.cert_chain.clone(),
        private_key: ssl.private_key.clone(),
        ..Default::default()
    };
    let shows_one = ssl.cert_chain.is_some() || ssl.private_key.is_some();
    let common = tls::CommonTlsContext {
        tls_certificates: shows_one.then_some(certificate).into_iter().collect(),
        validation_context_type: Some(ValidationContextType::ValidationContext(validation)),
        ..Default::default()
    };
    let upstream = tls::UpstreamTlsContext {
        common_tls_context: Some(common),
        sni,
        auto_sni_san_validation: true,
        ..Default::default()
    };
    let prefix = if config.stat_prefix.is_empty() { "grpc" } else { &config.stat_prefix };
    parse_client(&upstream, &format!("grpc.{prefix}."), context)
}

/// Where `uri` says; `None` where it says nothing that is understood.
fn place(uri: &str) -> Option<Place> {
    let address = |text: &str| text.parse().ok().map(|address| Place::Address(Address::Ip(address)));
    if let Some(path) = uri.strip_prefix("unix:") {
        let path = path.strip_prefix("//").unwrap_or(path);
        return (!path.is_empty()).then(|| Place::Address(Address::Pipe(Path::new(path).into())));
    }
    if let Some(rest) = uri.strip_prefix("ipv4:").or_else(|| uri.strip_prefix("ipv6:")) {
        return address(rest);
    }
    let rest = match uri.strip_prefix("dns:") {
        // dns:[//AUTHORITY/]HOST:PORT; no server of names but the system's is asked.
        Some(rest) => rest.strip_prefix("///").or_else(|| (!rest.starts_with("//")).then_some(rest))?,
        None => uri,
    };
    if let Some(place) = address(rest) {
        return Some(place);
    }
    let (host, port) = rest.rsplit_once(':')?;
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    let is_host = !host.is_empty() && host.bytes().all(is_name) && host.parse::<IpAddr>().is_err();
    Some(Place::Named(host.into(), port.parse().ok().filter(|port| *port > 0 && is_host)?))
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::core::v3 as core;

    use super::*;

    #[test]
    fn targets_are_hosts_addresses_and_paths() {
        let check = |uri: &str, wanted: Option<&str>| {
            assert_eq!(place(uri).map(|place| place.to_string()).as_deref(), wanted, "{uri}");
        };
        check("istiod.istio-system:15012", Some("istiod.istio-system:15012"));
        check("dns:istiod:15012", Some("istiod:15012"));
        check("dns:///istiod:15012", Some("istiod:15012"));
        check("127.0.0.1:18000", Some("127.0.0.1:18000"));
        check("ipv4:127.0.0.1:18000", Some("127.0.0.1:18000"));
        check("ipv6:[::1]:18000", Some("[::1]:18000"));
        check("unix:/run/xds", Some("/run/xds"));
        check("unix:///run/xds", Some("/run/xds"));
        for uri in
            ["", "istiod", "istiod:", "istiod:0", "istiod:x", ":80", "dns://8.8.8.8/a:1", "xds:///a", "a/b:80", "unix:"]
        {
            check(uri, None);
        }
    }

    #[test]
    fn what_is_not_there_is_refused_by_its_field() {
        let check = |config: &GoogleGrpc, wanted: &str| {
            let mut context = ParseContext::new(1);
            assert!(parse(config, &mut context).is_err(), "{wanted}");
            let said = context.problems.first_error();
            assert!(said.contains(wanted), "{said}");
        };
        let with = |specifier| GoogleGrpc {
            target_uri: "a:1".to_owned(),
            channel_credentials: Some(core::grpc_service::google_grpc::ChannelCredentials {
                credential_specifier: Some(specifier),
            }),
            ..GoogleGrpc::default()
        };
        check(&GoogleGrpc::default(), "target_uri: must not be empty");
        check(&GoogleGrpc { target_uri: "a".to_owned(), ..GoogleGrpc::default() }, "target_uri: `a` is none of");
        check(
            &with(CredentialSpecifier::GoogleDefault(Default::default())),
            "channel_credentials: must be ssl_credentials",
        );
        let bare = CredentialSpecifier::SslCredentials(SslCredentials::default());
        check(&with(bare), "channel_credentials.ssl_credentials.root_certs: is required");
    }
}
