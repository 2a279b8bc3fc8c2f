//! Which requests an access log (or a local-reply mapper) takes. Source: envoy.config.accesslog.v3.AccessLogFilter.

use envoy_types::pb::envoy::config::accesslog::v3 as proto;

use super::format::FormatContext;
use crate::config::parse::ParseContext;
use crate::config::reject::Refused;

/// A compiled AccessLogFilter.
pub struct LogFilter {}

impl LogFilter {
    /// Compiles `config`.
    pub fn parse(config: &proto::AccessLogFilter, context: &mut ParseContext) -> Result<Self, Refused> {
        let _ = (config, context);
        Ok(Self {})
    }

    /// Whether the request is taken; `random` decides `runtime_filter`.
    pub fn takes(&self, context: &FormatContext<'_>, random: u64) -> bool {
        let _ = (context, random);
        true
    }
}
