//! `envoy.config.core.v3.ConfigSource`: where a resource that is named elsewhere comes from.

use envoy_types::pb::envoy::config::core::v3 as core;

use super::ParseContext;
use crate::config::reject::Refused;

/// Accepts the stream of all discovery as the source, and nothing else.
pub fn aggregated(source: &core::ConfigSource, context: &mut ParseContext) -> Result<(), Refused> {
    use core::config_source::ConfigSourceSpecifier;
    match &source.config_source_specifier {
        Some(ConfigSourceSpecifier::Ads(_)) if context.has_ads => Ok(()),
        Some(ConfigSourceSpecifier::Ads(_)) => {
            Err(context.reject("ads", "needs dynamic_resources.ads_config in the bootstrap, which says whom to ask"))
        }
        _ => Err(context.reject("", "needs ads; other sources are not there yet in this version")),
    }
}
