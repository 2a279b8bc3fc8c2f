//! `envoy.config.core.v3.ConfigSource`: where a resource that is named elsewhere comes from.

use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;

use super::ParseContext;
use crate::config::reject::Refused;

/// Accepts the stream of all discovery as the source, and nothing else; how long what it brings may be missing, zero for ever.
pub fn aggregated(source: &core::ConfigSource, context: &mut ParseContext) -> Result<Duration, Refused> {
    use core::config_source::ConfigSourceSpecifier;
    match &source.config_source_specifier {
        Some(ConfigSourceSpecifier::Ads(_)) if context.has_ads => {
            let limit = context.duration("initial_fetch_timeout", &source.initial_fetch_timeout)?;
            Ok(limit.unwrap_or(FETCH_TIMEOUT))
        }
        Some(ConfigSourceSpecifier::Ads(_)) => {
            Err(context.reject("ads", "needs dynamic_resources.ads_config in the bootstrap, which says whom to ask"))
        }
        _ => Err(context.reject("", "needs ads; other sources are not there yet in this version")),
    }
}

/// Source: ConfigSource.initial_fetch_timeout.
pub const FETCH_TIMEOUT: Duration = Duration::from_secs(15);
