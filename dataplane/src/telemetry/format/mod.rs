//! `%OPERATOR%` formats for access logs, header values and bodies.
//!
//! Source: Envoy, "Substitution formatting" (configuration/advanced/substitution_formatter).

use std::time::SystemTime;

use envoy_types::pb::envoy::config::core::v3 as core;
use torus_codec::headers::HeaderMap;

use super::stream_info::StreamInfo;
use crate::config::parse::ParseContext;
use crate::config::reject::Refused;

/// What a format reads.
#[derive(Clone, Copy)]
pub struct FormatContext<'a> {
    /// The facts of the request.
    pub info: &'a StreamInfo,
    /// The request's head.
    pub request: &'a HeaderMap,
    /// The reply's head.
    pub response: Option<&'a HeaderMap>,
    /// The reply's trailers.
    pub response_trailers: Option<&'a HeaderMap>,
    /// Body of the proxy's own reply (`%LOCAL_REPLY_BODY%`).
    pub local_reply_body: &'a [u8],
    /// `%ACCESS_LOG_TYPE%`
    pub log_type: LogType,
    /// `%EMIT_TIME%`
    pub now: SystemTime,
}

impl<'a> FormatContext<'a> {
    /// A context with the facts and the request's head alone.
    pub fn new(info: &'a StreamInfo, request: &'a HeaderMap) -> Self {
        Self {
            info,
            request,
            response: None,
            response_trailers: None,
            local_reply_body: b"",
            log_type: LogType::NotSet,
            now: SystemTime::UNIX_EPOCH,
        }
    }
}

/// When an access-log line is written. Source: envoy.data.accesslog.v3.AccessLogType.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogType {
    /// Not an access log.
    #[default]
    NotSet,
    /// A request began.
    DownstreamStart,
    /// A request lasts.
    DownstreamPeriodic,
    /// A request ended.
    DownstreamEnd,
}

/// A compiled format: text or JSON.
pub struct Format {
    content_type: Box<str>,
}

impl Format {
    /// Envoy's access-log format where none is configured.
    pub const ENVOY_DEFAULT: &'static str = "[%START_TIME%] \"%REQUEST_HEADER(:METHOD)% %REQUEST_HEADER(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESPONSE_HEADER(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQUEST_HEADER(X-FORWARDED-FOR)%\" \"%REQUEST_HEADER(USER-AGENT)%\" \"%REQUEST_HEADER(X-REQUEST-ID)%\" \"%REQUEST_HEADER(:AUTHORITY)%\" \"%UPSTREAM_HOST%\"\n";

    /// Compiles a text format. `field` names where it stands.
    pub fn parse_text(
        field: &str,
        text: &str,
        omit_empty_values: bool,
        context: &mut ParseContext,
    ) -> Result<Self, Refused> {
        let _ = (field, text, omit_empty_values, context);
        Ok(Self { content_type: "".into() })
    }

    /// Compiles `log_format`, `body_format` and the like: text, text source or JSON.
    pub fn parse(config: &core::SubstitutionFormatString, context: &mut ParseContext) -> Result<Self, Refused> {
        let _ = (config, context);
        Ok(Self { content_type: "".into() })
    }

    /// Adds the formatted bytes to `out`; a JSON format ends its line. Allocates nothing besides growing `out`.
    pub fn write(&self, context: &FormatContext<'_>, out: &mut Vec<u8>) {
        let _ = (context, out);
    }

    /// `content_type` where set; else `text/plain`, or `application/json` for a JSON format.
    pub fn content_type(&self) -> &str {
        &self.content_type
    }
}
