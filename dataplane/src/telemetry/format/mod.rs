//! `%OPERATOR%` formats for access logs, header values and bodies.
//!
//! Source: Envoy, "Substitution formatting" (configuration/advanced/substitution_formatter).

mod json;
mod operator;
mod parse;
#[cfg(test)]
mod tests;
mod time;
mod tls;

use std::time::SystemTime;

use envoy_types::pb::envoy::config::core::v3 as core;
use torus_codec::headers::HeaderMap;

pub(super) use self::operator::grpc_code;
pub use self::operator::http_to_grpc;

use self::operator::Written;
use self::parse::Piece;
use super::stream_info::StreamInfo;
use crate::config::parse::ParseContext;
use crate::config::parse::context::type_name;
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
    /// A connection of the TCP proxy ended.
    TcpConnectionEnd,
}

impl LogType {
    /// The type that Envoy calls `name`; kinds that a proxy without TCP and UDP listeners never meets count as `NotSet`.
    pub fn from_name(name: &str) -> Self {
        let all = [Self::DownstreamStart, Self::DownstreamPeriodic, Self::DownstreamEnd, Self::TcpConnectionEnd];
        all.into_iter().find(|kind| kind.name() == name).unwrap_or_default()
    }

    /// Envoy's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotSet => "NotSet",
            Self::DownstreamStart => "DownstreamStart",
            Self::DownstreamPeriodic => "DownstreamPeriodic",
            Self::DownstreamEnd => "DownstreamEnd",
            Self::TcpConnectionEnd => "TcpConnectionEnd",
        }
    }
}

/// A compiled format: text or JSON.
#[derive(Debug)]
pub struct Format {
    kind: Kind,
    content_type: Box<str>,
}

#[derive(Debug)]
enum Kind {
    Text { pieces: Box<[Piece]>, missing: &'static str },
    Json(json::Template),
}

impl Format {
    /// Envoy's access-log format where none is configured.
    pub const ENVOY_DEFAULT: &'static str = concat!(
        "[%START_TIME%] \"%REQUEST_HEADER(:METHOD)% %REQUEST_HEADER(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" ",
        "%RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% ",
        "%RESPONSE_HEADER(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQUEST_HEADER(X-FORWARDED-FOR)%\" ",
        "\"%REQUEST_HEADER(USER-AGENT)%\" \"%REQUEST_HEADER(X-REQUEST-ID)%\" ",
        "\"%REQUEST_HEADER(:AUTHORITY)%\" \"%UPSTREAM_HOST%\"\n",
    );

    /// Compiles a text format. `field` names where it stands. A value that is missing is written as `-`, or left out with
    /// `omit_empty_values`.
    pub fn parse_text(
        field: &str,
        text: &str,
        omit_empty_values: bool,
        context: &mut ParseContext,
    ) -> Result<Self, Refused> {
        let pieces =
            parse::pieces(text).map_err(|wrong| context.problems.reject_with(field, wrong.reason, wrong.suggestion))?;
        let missing = if omit_empty_values { "" } else { "-" };
        Ok(Self { kind: Kind::Text { pieces: pieces.into(), missing }, content_type: TEXT_PLAIN.into() })
    }

    #[allow(deprecated, reason = "text_format is still common")]
    /// Compiles `log_format`, `body_format` and the like: text, text source or JSON; `context` stands at the message.
    pub fn parse(config: &core::SubstitutionFormatString, context: &mut ParseContext) -> Result<Self, Refused> {
        use core::substitution_format_string::Format as Kinds;
        for (index, formatter) in config.formatters.iter().enumerate() {
            let name = formatter.typed_config.as_ref().map(|config| type_name(&config.type_url)).unwrap_or_default();
            if !KNOWN_FORMATTERS.contains(&name) {
                let field = format!("formatters[{index}]");
                return Err(context.reject(&field, format!("formatter `{name}` is not there yet in this version")));
            }
        }
        let omit = config.omit_empty_values;
        let mut format = match &config.format {
            None => return Err(context.reject("", "needs one of text_format, text_format_source or json_format")),
            Some(Kinds::TextFormat(text)) => Self::parse_text("text_format", text, omit, context)?,
            Some(Kinds::TextFormatSource(source)) => context.within("text_format_source", |context| {
                let bytes = data_source(source, context)?;
                let text = String::from_utf8(bytes).map_err(|_| context.reject("", "is not UTF-8"))?;
                Self::parse_text("", &text, omit, context)
            })?,
            Some(Kinds::JsonFormat(template)) => {
                let template =
                    context.within("json_format", |context| json::Template::parse(template, omit, context))?;
                Self { kind: Kind::Json(template), content_type: "application/json".into() }
            }
        };
        if !config.content_type.is_empty() {
            format.content_type = config.content_type.as_str().into();
        }
        Ok(format)
    }

    /// Adds the formatted bytes to `out`; a JSON format ends its line. Allocates nothing besides growing `out`.
    pub fn write(&self, context: &FormatContext<'_>, out: &mut Vec<u8>) {
        match &self.kind {
            Kind::Json(template) => template.write(context, out),
            Kind::Text { pieces, missing } => {
                for piece in pieces {
                    match piece {
                        Piece::Literal(text) => out.extend_from_slice(text.as_bytes()),
                        Piece::Operator(operator) => {
                            if operator.write(context, out) == Written::Nothing {
                                out.extend_from_slice(missing.as_bytes());
                            }
                        }
                    }
                }
            }
        }
    }

    /// The content type that a direct response sets itself: what is configured, or `application/json` for a JSON format.
    pub fn own_content_type(&self) -> Option<&str> {
        (&*self.content_type != TEXT_PLAIN).then_some(&*self.content_type)
    }

    /// `content_type` where set; else `text/plain`, or `application/json` for a JSON format.
    pub fn content_type(&self) -> &str {
        &self.content_type
    }
}

/// The bytes of a DataSource; `context` stands at the message.
pub fn data_source(source: &core::DataSource, context: &mut ParseContext) -> Result<Vec<u8>, Refused> {
    use core::data_source::Specifier;
    match &source.specifier {
        None => Err(context.reject("", "needs one of filename, inline_bytes, inline_string or environment_variable")),
        Some(Specifier::InlineString(text)) => Ok(text.as_bytes().to_vec()),
        Some(Specifier::InlineBytes(bytes)) => Ok(bytes.clone()),
        Some(Specifier::Filename(path)) => {
            context.non_empty("filename", path)?;
            std::fs::read(path).map_err(|error| context.reject("filename", format!("cannot read {path}: {error}")))
        }
        Some(Specifier::EnvironmentVariable(name)) => {
            context.non_empty("environment_variable", name)?;
            let value = std::env::var_os(name);
            let value = value.ok_or_else(|| {
                context.reject("environment_variable", format!("environment variable `{name}` is not set"))
            })?;
            Ok(value.into_encoded_bytes())
        }
    }
}

const TEXT_PLAIN: &str = "text/plain";

/// Formatter extensions whose operators are built in here.
const KNOWN_FORMATTERS: [&str; 2] = [
    "envoy.extensions.formatter.req_without_query.v3.ReqWithoutQuery",
    "envoy.extensions.formatter.metadata.v3.Metadata",
];
