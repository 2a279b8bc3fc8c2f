//! Secrets that have names: those of the bootstrap, and those that are discovered (SDS).
//!
//! A TLS context that names secrets is compiled from a copy of its configuration in which they are filled in, anew whenever one of
//! them changes. Until the last of them has come it is not ready: what it serves waits, and after that connections are refused.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as proto;
use prost::Message as _;
use proto::common_tls_context::{CombinedCertificateValidationContext, ValidationContextType};
use proto::secret::Type;

use super::parse::{certificate, validation_fields};
use crate::config::discovery::kind::Kind;
use crate::config::discovery::source::SourceIndex;
use crate::config::parse::{ParseContext, config_source};
use crate::config::reject::Refused;

/// A discovered secret: whom it is asked from, and its name.
pub type SecretKey = (SourceIndex, Box<str>);

/// Every secret that is known, and those that are asked for.
#[derive(Default)]
pub struct Secrets {
    /// Source: Bootstrap.static_resources.secrets.
    fixed: HashMap<Box<str>, Arc<proto::Secret>>,
    discovered: HashMap<SecretKey, Found>,
    /// How long each may be missing at first.
    limits: HashMap<SecretKey, Duration>,
    /// Those that did not come in time.
    given_up: BTreeSet<SecretKey>,
}

/// A secret as it came.
#[derive(Clone)]
pub struct Found {
    /// In wire format.
    pub body: Arc<[u8]>,
    /// Read.
    pub secret: Arc<proto::Secret>,
}

impl fmt::Debug for Secrets {
    /// Names alone.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.fixed.keys().chain(self.discovered.keys().map(|(_, name)| name));
        formatter.debug_set().entries(names).finish()
    }
}

impl Secrets {
    /// The newest of a name.
    pub fn found(&self, key: &SecretKey) -> Option<&Found> {
        self.discovered.get(key)
    }

    /// Takes the newest of a name in, and gives back the one before.
    pub fn insert(&mut self, key: &SecretKey, found: Found) -> Option<Found> {
        self.given_up.remove(key);
        self.discovered.insert(key.clone(), found)
    }

    /// As if nothing had come, or `before` alone.
    pub fn restore(&mut self, key: &SecretKey, before: Option<Found>) {
        match before {
            Some(before) => drop(self.discovered.insert(key.clone(), before)),
            None => drop(self.discovered.remove(key)),
        }
    }

    /// It did not come in time; nothing waits for it any more.
    pub fn give_up(&mut self, key: SecretKey) {
        self.given_up.insert(key);
    }

    /// How long it may be missing at first.
    pub fn limit(&self, key: &SecretKey) -> Duration {
        self.limits.get(key).copied().unwrap_or(config_source::FETCH_TIMEOUT)
    }

    /// Whether one of `keys` may still come.
    pub fn awaits<'a>(&self, mut keys: impl Iterator<Item = &'a SecretKey>) -> bool {
        keys.any(|key| !self.discovered.contains_key(key) && !self.given_up.contains(key))
    }

    /// Forgets all but those that are `wanted`.
    pub fn retain(&mut self, wanted: &BTreeMap<SourceIndex, BTreeMap<Box<str>, Duration>>) {
        let is_wanted =
            |(source, name): &SecretKey| wanted.get(source).is_some_and(|names| names.contains_key(&**name));
        self.discovered.retain(|key, _| is_wanted(key));
        self.limits.retain(|key, _| is_wanted(key));
        self.given_up.retain(is_wanted);
    }
}

/// Which discovered secrets a context needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Needs {
    /// Certificates, then the validation context, if that is one.
    keys: Vec<SecretKey>,
    /// The last key is of a validation context.
    has_validation: bool,
}

impl Needs {
    pub(super) fn keys(&self) -> &[SecretKey] {
        &self.keys
    }

    /// Names of certificates.
    pub(super) fn certificate_count(&self) -> usize {
        self.keys.len() - usize::from(self.has_validation)
    }

    /// `common` with every secret in its place; `None` while one is missing.
    pub(super) fn filled(
        &self,
        common: &proto::CommonTlsContext,
        context: &mut ParseContext,
    ) -> Result<Option<proto::CommonTlsContext>, Refused> {
        let mut filled = common.clone();
        let (certificates, validation) = self.keys.split_at(self.certificate_count());
        for key in certificates {
            let Some(found) = context.secrets.found(key) else { return Ok(None) };
            let secret = Arc::clone(&found.secret);
            put_certificate(&secret, &mut filled, context)?;
        }
        for key in validation {
            let Some(found) = context.secrets.found(key) else { return Ok(None) };
            let secret = Arc::clone(&found.secret);
            put_validation(&secret, &mut filled, context)?;
        }
        Ok(Some(filled))
    }
}

/// `common` with the secrets of the bootstrap in their places, and what else it needs. The default of a combined validation context
/// stays in it, for the secret to be merged into.
pub(super) fn plan(
    common: &proto::CommonTlsContext,
    context: &mut ParseContext,
) -> Result<(proto::CommonTlsContext, Needs), Refused> {
    let mut base = proto::CommonTlsContext {
        tls_certificate_sds_secret_configs: Vec::new(),
        validation_context_type: None,
        ..common.clone()
    };
    let mut needs = Needs::default();
    let start = context.problems.checkpoint();
    let named = &common.tls_certificate_sds_secret_configs;
    if !named.is_empty() && !common.tls_certificates.is_empty() {
        let _ = context.reject("tls_certificate_sds_secret_configs", "cannot stand beside `tls_certificates`");
    }
    let _ = context.each("tls_certificate_sds_secret_configs", named, |config, context| {
        match named_secret(config, context)? {
            Named::Fixed(secret) => put_certificate(&secret, &mut base, context),
            Named::Discovered(key) => {
                needs.keys.push(key);
                Ok(())
            }
        }
    });
    let sds = match &common.validation_context_type {
        Some(ValidationContextType::ValidationContextSdsSecretConfig(config)) => {
            Some(("validation_context_sds_secret_config", config))
        }
        Some(ValidationContextType::CombinedValidationContext(combined)) => {
            let CombinedCertificateValidationContext { default_validation_context: default, .. } = combined;
            if default.is_none() {
                let _ = context.reject("combined_validation_context.default_validation_context", "is required");
            }
            base.validation_context_type = default.clone().map(ValidationContextType::ValidationContext);
            let config = combined.validation_context_sds_secret_config.as_ref();
            if config.is_none() {
                let field = "combined_validation_context.validation_context_sds_secret_config";
                let _ = context.reject(field, "is required");
            }
            config.map(|config| ("combined_validation_context.validation_context_sds_secret_config", config))
        }
        other => {
            base.validation_context_type.clone_from(other);
            None
        }
    };
    if let Some((field, config)) = sds {
        let _ = context.within(field, |context| {
            match named_secret(config, context)? {
                Named::Fixed(secret) => put_validation(&secret, &mut base, context)?,
                Named::Discovered(key) => {
                    needs.keys.push(key);
                    needs.has_validation = true;
                }
            }
            Ok::<_, Refused>(())
        });
    }
    context.problems.clean_since(start)?;
    Ok((base, needs))
}

enum Named {
    Fixed(Arc<proto::Secret>),
    Discovered(SecretKey),
}

fn named_secret(config: &proto::SdsSecretConfig, context: &mut ParseContext) -> Result<Named, Refused> {
    let name = context.non_empty("name", &config.name)?;
    let Some(source) = &config.sds_config else {
        let fixed = context.secrets.fixed.get(name).cloned();
        let reason =
            || format!("no secret of static_resources.secrets is called `{name}`; or say whom to ask in sds_config");
        return fixed.map(Named::Fixed).ok_or_else(|| context.reject("name", reason()));
    };
    let asked = context.within("sds_config", |context| config_source::parse(source, Kind::Secret, context))?;
    let key = (asked.source, Box::from(name));
    context.secrets.limits.insert(key.clone(), asked.limit);
    Ok(Named::Discovered(key))
}

fn put_certificate(
    secret: &proto::Secret,
    into: &mut proto::CommonTlsContext,
    context: &mut ParseContext,
) -> Result<(), Refused> {
    match &secret.r#type {
        Some(Type::TlsCertificate(certificate)) => {
            into.tls_certificates.push(certificate.clone());
            Ok(())
        }
        other => Err(context.reject("", wrong_kind(&secret.name, other.as_ref(), "tls_certificate"))),
    }
}

fn put_validation(
    secret: &proto::Secret,
    into: &mut proto::CommonTlsContext,
    context: &mut ParseContext,
) -> Result<(), Refused> {
    let Some(Type::ValidationContext(validation)) = &secret.r#type else {
        return Err(context.reject("", wrong_kind(&secret.name, secret.r#type.as_ref(), "validation_context")));
    };
    let mut merged = match into.validation_context_type.take() {
        Some(ValidationContextType::ValidationContext(default)) => default,
        _ => proto::CertificateValidationContext::default(),
    };
    // Source: CombinedCertificateValidationContext, which merges messages as protobuf does.
    let merging = merged.merge(validation.encode_to_vec().as_slice());
    into.validation_context_type = Some(ValidationContextType::ValidationContext(merged));
    merging.map_err(|error| context.reject("", error.to_string()))
}

fn wrong_kind(name: &str, found: Option<&Type>, needed: &str) -> String {
    let found = match found {
        Some(Type::TlsCertificate(_)) => "a tls_certificate",
        Some(Type::ValidationContext(_)) => "a validation_context",
        Some(Type::SessionTicketKeys(_)) => "session_ticket_keys",
        Some(Type::GenericSecret(_)) => "a generic_secret",
        None => "empty",
    };
    format!("secret `{name}` is {found} where a {needed} is needed")
}

/// Refuses a secret that nobody could use.
pub fn check(secret: &proto::Secret, context: &mut ParseContext) -> Result<(), Refused> {
    context.non_empty("name", &secret.name)?;
    match &secret.r#type {
        Some(Type::TlsCertificate(config)) => {
            context.within("tls_certificate", |context| certificate(config, context)).map(drop)
        }
        Some(Type::ValidationContext(config)) => {
            context.within("validation_context", |context| validation_fields(config, context)).map(drop)
        }
        // The ledger has refused these.
        Some(Type::SessionTicketKeys(_)) => {
            Err(context.reject("session_ticket_keys", "are not there yet in this version"))
        }
        Some(Type::GenericSecret(_)) => Err(context.reject("generic_secret", "is not there yet in this version")),
        None => Err(context.reject("", "must hold a tls_certificate or a validation_context")),
    }
}

/// Takes a secret of the bootstrap.
pub fn parse_fixed(secret: proto::Secret, context: &mut ParseContext) -> Result<(), Refused> {
    check(&secret, context)?;
    let name = Box::from(secret.name.as_str());
    match context.secrets.fixed.insert(name, Arc::new(secret)) {
        None => Ok(()),
        Some(other) => Err(context.reject("name", format!("another secret is called `{}`", other.name))),
    }
}

/// A TLS context that names discovered secrets.
pub trait NamesSecrets {
    /// Which ones.
    fn secrets(&self) -> &[SecretKey];

    /// Whether all of them have come once.
    fn is_ready(&self) -> bool;

    /// Compiles it with what the secrets are now.
    fn renew<'a>(&'a self, context: &mut ParseContext) -> Result<Renewed<'a>, Refused>;
}

/// Gives a context that was compiled again to new handshakes. Whether somebody who was believed may not be any more.
pub type Renewed<'a> = Box<dyn FnOnce() -> bool + 'a>;

/// A configuration to be compiled again when a secret changes.
pub(super) struct Renewal<C> {
    /// With secrets of the bootstrap in it, and without others.
    pub config: C,
    pub needs: Needs,
    /// Prefix of its stats.
    pub stat_prefix: Box<str>,
}
