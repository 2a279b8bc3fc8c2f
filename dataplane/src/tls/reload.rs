//! Certificates, keys, authorities and revocation lists from files, read again when one of them has changed.
//!
//! A file counts as changed when what its path leads to, through all links, is another one than it was or was written, and then stood
//! still for one look. What cannot be used is refused whole, and what was there before serves on.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use envoy_types::pb::envoy::config::core::v3::{DataSource, data_source::Specifier};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as proto;
use proto::common_tls_context::ValidationContextType;

use crate::config::watched_file::WatchedFile;

/// A configuration that names files, to be compiled again when they change.
pub(super) struct Reload<C> {
    /// As it came.
    pub config: C,
    /// Prefix of its stats.
    pub stat_prefix: Box<str>,
    /// The config thread alone looks at them.
    files: Mutex<Vec<WatchedFile>>,
}

impl<C> Reload<C> {
    /// Watches the files of `common`; `None` where it names none. They were read just now.
    pub(super) fn new(config: C, common: &proto::CommonTlsContext, stat_prefix: &str) -> Option<Self> {
        let mut files: Vec<WatchedFile> = paths(common).into_iter().map(WatchedFile::new).collect();
        for file in &mut files {
            file.has_changed();
        }
        (!files.is_empty()).then(|| Self { config, stat_prefix: stat_prefix.into(), files: Mutex::new(files) })
    }

    /// Whether a file has changed since the last call.
    pub(super) fn is_due(&self) -> bool {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let mut is_due = false;
        for file in files.iter_mut() {
            // Each one is looked at, for each remembers what it saw.
            is_due |= file.has_changed();
        }
        is_due
    }
}

fn paths(common: &proto::CommonTlsContext) -> Vec<PathBuf> {
    let mut sources: Vec<Option<&DataSource>> = Vec::new();
    for certificate in &common.tls_certificates {
        sources.extend(
            [&certificate.certificate_chain, &certificate.private_key, &certificate.ocsp_staple].map(Option::as_ref),
        );
    }
    if let Some(ValidationContextType::ValidationContext(validation)) = &common.validation_context_type {
        sources.extend([&validation.trusted_ca, &validation.crl].map(Option::as_ref));
    }
    let path = |source: &DataSource| match &source.specifier {
        Some(Specifier::Filename(path)) => Some(PathBuf::from(path)),
        _ => None,
    };
    let mut paths: Vec<PathBuf> = sources.into_iter().flatten().filter_map(path).collect();
    paths.sort();
    paths.dedup();
    paths
}
