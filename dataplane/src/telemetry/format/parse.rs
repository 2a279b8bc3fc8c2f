//! From `%OPERATOR(parameters):length%` text to operators.

use torus_codec::headers::HeaderName;

use super::operator::{
    AddressPart, Count, FieldNames, GrpcForm, HostOrName, Message, Operator, PathSource, Point, Span, Text, TimeUnit,
    Which,
};
use super::time::{self, TimeFormat};
use super::tls::ValidityEdge;

/// A stretch of a format.
#[derive(Debug)]
pub(super) enum Piece {
    Literal(Box<str>),
    Operator(Operator),
}

/// Splits `text` into literals and operators; the error says what is wrong and, for a name, what was probably meant.
pub(super) fn pieces(text: &str) -> Result<Vec<Piece>, Wrong> {
    let mut pieces = Vec::new();
    let mut literal = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        let (before, from_percent) = rest.split_at(at);
        literal.push_str(before);
        if let Some(after) = from_percent.strip_prefix("%%") {
            literal.push('%');
            rest = after;
            continue;
        }
        if !literal.is_empty() {
            pieces.push(Piece::Literal(std::mem::take(&mut literal).into()));
        }
        let (command, after) =
            Command::at(from_percent).ok_or_else(|| Wrong::at(text.len() - from_percent.len(), text))?;
        pieces.push(Piece::Operator(command.operator()?));
        rest = after;
    }
    literal.push_str(rest);
    if !literal.is_empty() {
        pieces.push(Piece::Literal(literal.into()));
    }
    Ok(pieces)
}

/// What is wrong with a format.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    pub(super) reason: String,
    pub(super) suggestion: Option<&'static str>,
}

impl From<String> for Wrong {
    fn from(reason: String) -> Self {
        Self { reason, suggestion: None }
    }
}

impl Wrong {
    fn at(position: usize, text: &str) -> Self {
        format!("`{text}`: no operator at position {position}; a percent sign itself is written %%").into()
    }
}

/// `%NAME(parameters):length%`
struct Command<'a> {
    name: &'a str,
    parameters: &'a str,
    len_max: Option<usize>,
}

impl<'a> Command<'a> {
    /// The command at the start of `text`, and what follows it.
    fn at(text: &'a str) -> Option<(Self, &'a str)> {
        let text = text.strip_prefix('%')?;
        let name_len = text.bytes().take_while(|byte| matches!(byte, b'A'..=b'Z' | b'0'..=b'9' | b'_')).count();
        let (name, mut rest) = text.split_at_checked(name_len).filter(|(name, _)| !name.is_empty())?;
        let mut parameters = "";
        if let Some(inside) = rest.strip_prefix('(') {
            // A time format has percent signs of its own, so the end is a bracket before `%` or `:`.
            let end = inside
                .match_indices(')')
                .map(|(at, _)| at)
                .find(|at| matches!(inside.as_bytes().get(at + 1), Some(b'%' | b':')))?;
            parameters = inside.get(..end)?;
            rest = inside.get(end + 1..)?;
        }
        let mut len_max = None;
        if let Some(after) = rest.strip_prefix(':') {
            let (digits, after) = after.split_once('%')?;
            len_max = Some(digits.parse().ok()?);
            return Some((Self { name, parameters, len_max }, after));
        }
        Some((Self { name, parameters, len_max }, rest.strip_prefix('%')?))
    }

    fn operator(&self) -> Result<Operator, Wrong> {
        if let Some(operator) = plain(self.name) {
            if !self.parameters.is_empty() || self.len_max.is_some() {
                return Err(format!("{} takes neither parameters nor a length", self.name).into());
            }
            return Ok(operator);
        }
        Ok(match self.name {
            "START_TIME" => self.without_length(Operator::StartTime(self.time_format(time::DEFAULT)?))?,
            "DOWNSTREAM_PEER_CERT_V_START" => self.without_length(self.peer_validity(ValidityEdge::Begin)?)?,
            "DOWNSTREAM_PEER_CERT_V_END" => self.without_length(self.peer_validity(ValidityEdge::End)?)?,
            "START_TIME_LOCAL" => self.without_length(Operator::StartTime(self.time_format(time::DEFAULT_LOCAL)?))?,
            "EMIT_TIME" => self.without_length(Operator::EmitTime(self.time_format(time::DEFAULT)?))?,
            "EMIT_TIME_LOCAL" => self.without_length(Operator::EmitTime(self.time_format(time::DEFAULT_LOCAL)?))?,
            "REQ" | "REQUEST_HEADER" => self.field(Message::Request)?,
            "RESP" | "RESPONSE_HEADER" => self.field(Message::Response)?,
            "TRAILER" | "RESPONSE_TRAILER" => self.field(Message::ResponseTrailers)?,
            "COMMON_DURATION" => self.without_length(self.common_duration()?)?,
            "GRPC_STATUS" => self.without_length(Operator::GrpcStatus(match self.parameters {
                "" | "CAMEL_STRING" => GrpcForm::Camel,
                "SNAKE_STRING" => GrpcForm::Snake,
                "NUMBER" => GrpcForm::Number,
                other => {
                    return Err(format!("GRPC_STATUS takes CAMEL_STRING, SNAKE_STRING or NUMBER, not {other}").into());
                }
            }))?,
            "QUERY_PARAM" => Operator::QueryParameter(self.required_parameters()?.into(), self.len_max),
            "QUERY_PARAMS" => match self.parameters {
                "" | "ORIG" | "DECODED" => Operator::Query(PathSource::OriginalOrPath, self.len_max),
                other => return Err(format!("QUERY_PARAMS takes ORIG or DECODED, not {other}").into()),
            },
            "PATH" => self.path()?,
            "REQUESTED_SERVER_NAME" => self.requested_server_name()?,
            "ENVIRONMENT" => {
                let value = std::env::var(self.required_parameters()?).unwrap_or_else(|_| "-".into());
                let end = value.char_indices().map(|(at, _)| at).nth(self.len_max.unwrap_or(usize::MAX));
                Operator::Constant(value.get(..end.unwrap_or(value.len())).unwrap_or_default().into())
            }
            "DYNAMIC_METADATA"
            | "CLUSTER_METADATA"
            | "UPSTREAM_METADATA"
            | "FILTER_STATE"
            | "UPSTREAM_FILTER_STATE" => {
                self.required_parameters()?;
                Operator::Absent
            }
            "METADATA" => {
                let kind = self.required_parameters()?.split(':').next().unwrap_or_default();
                if !METADATA_KINDS.contains(&kind) {
                    return Err(format!("METADATA has no kind `{kind}`").into());
                }
                Operator::Absent
            }
            // Envoy's req_without_query formatter extension.
            "REQ_WITHOUT_QUERY" => {
                let Operator::Field(message, names, len_max) = self.field(Message::Request)? else {
                    return Err(format!("{} needs a header", self.name).into());
                };
                Operator::FieldWithoutQuery(message, names, len_max)
            }
            "CEL" | "TYPED_CEL" => return Err("the CEL formatter is not there yet in this version".to_owned().into()),
            _ => match masked(self.name) {
                Some(which) => self.without_length(self.masked_address(which))?,
                None => return Err(unknown(self.name)),
            },
        })
    }

    fn without_length(&self, operator: Operator) -> Result<Operator, Wrong> {
        match self.len_max {
            None => Ok(operator),
            Some(_) => Err(format!("{} takes no length", self.name).into()),
        }
    }

    fn required_parameters(&self) -> Result<&'a str, Wrong> {
        if self.parameters.is_empty() {
            return Err(format!("{} needs parameters", self.name).into());
        }
        Ok(self.parameters)
    }

    fn peer_validity(&self, edge: ValidityEdge) -> Result<Operator, Wrong> {
        Ok(Operator::PeerValidity(edge, self.time_format(time::DEFAULT)?))
    }

    fn time_format(&self, default: &str) -> Result<TimeFormat, Wrong> {
        let format = if self.parameters.is_empty() { default } else { self.parameters };
        // A line break inside a value would let one request write two log lines.
        if format.contains('\n') || has_newline_conversion(format) {
            return Err(format!("{}: the time format has a line break", self.name).into());
        }
        Ok(TimeFormat::new(format))
    }

    fn field(&self, message: Message) -> Result<Operator, Wrong> {
        let parameters = self.required_parameters()?;
        let mut names = parameters.split('?');
        let mut name = || -> Result<Option<HeaderName>, Wrong> {
            let Some(text) = names.next().filter(|text| !text.is_empty()) else { return Ok(None) };
            HeaderName::new(text).map(Some).ok_or_else(|| format!("{}: `{text}` is no header name", self.name).into())
        };
        let main = name()?;
        let alternative = name()?;
        if name()?.is_some() {
            return Err(format!("{}: more than one alternative in `{parameters}`", self.name).into());
        }
        let (main, alternative) = match (main, alternative) {
            (Some(main), alternative) => (main, alternative),
            (None, Some(alternative)) => (alternative, None),
            (None, None) => return Err(format!("{} needs a header name", self.name).into()),
        };
        Ok(Operator::Field(message, FieldNames { main, alternative }, self.len_max))
    }

    fn common_duration(&self) -> Result<Operator, Wrong> {
        let parameters = self.required_parameters()?;
        let mut parts = parameters.split(':');
        let (Some(from), Some(to), unit, None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
            return Err(format!("COMMON_DURATION takes START:END:PRECISION, not {parameters}").into());
        };
        let unit = match unit {
            None | Some("ms") => TimeUnit::Milliseconds,
            Some("us") => TimeUnit::Microseconds,
            Some("ns") => TimeUnit::Nanoseconds,
            Some(other) => return Err(format!("COMMON_DURATION counts ms, us or ns, not {other}").into()),
        };
        Ok(Operator::Time(Span { from: point(from), to: point(to), unit }))
    }

    fn path(&self) -> Result<Operator, Wrong> {
        let mut parts = self.parameters.split(':');
        let with_query = match parts.next() {
            None | Some("" | "WQ") => true,
            Some("NQ") => false,
            Some(other) => return Err(format!("PATH takes WQ or NQ first, not {other}").into()),
        };
        let source = match parts.next() {
            None | Some("" | "ORIG_OR_PATH") => PathSource::OriginalOrPath,
            Some("ORIG") => PathSource::Original,
            Some("PATH") => PathSource::Path,
            Some(other) => return Err(format!("PATH takes ORIG, PATH or ORIG_OR_PATH second, not {other}").into()),
        };
        Ok(Operator::Path(source, with_query, self.len_max))
    }

    fn requested_server_name(&self) -> Result<Operator, Wrong> {
        let mut parts = self.parameters.split(':');
        let host = match parts.next() {
            None | Some("" | "SNI_ONLY") => HostOrName::NameOnly,
            Some("SNI_FIRST") => HostOrName::NameFirst,
            Some("HOST_FIRST") => HostOrName::HostFirst,
            Some(other) => {
                let name = self.name;
                return Err(format!("{name} takes SNI_ONLY, SNI_FIRST or HOST_FIRST, not {other}").into());
            }
        };
        let original = match parts.next() {
            None | Some("" | "HOST") => false,
            Some("ORIG") => true,
            Some(other) => return Err(format!("{} takes ORIG or HOST second, not {other}", self.name).into()),
        };
        Ok(Operator::RequestedServerName { host, original })
    }

    fn masked_address(&self, which: Which) -> Operator {
        // As in Envoy, what is no number asks for no mask.
        let part = self
            .parameters
            .parse()
            .map_or(AddressPart::WithoutPort, |bits: u32| AddressPart::Masked(u8::try_from(bits).unwrap_or(u8::MAX)));
        Operator::Address(which, part)
    }
}

/// `%[-_0^#]*[1-9]*(E|O)?n`, which glibc writes as a line break.
fn has_newline_conversion(format: &str) -> bool {
    format.match_indices('%').any(|(at, _)| {
        let rest = format.get(at + 1..).unwrap_or_default();
        let rest =
            rest.trim_start_matches(['-', '_', '0', '^', '#']).trim_start_matches(|c: char| ('1'..='9').contains(&c));
        rest.strip_prefix(['E', 'O']).unwrap_or(rest).starts_with('n')
    })
}

fn point(name: &str) -> Point {
    match name {
        "DS_RX_BEG" => Point::Start,
        "DS_RX_END" => Point::RequestComplete,
        "US_CX_BEG" => Point::ConnectStart,
        "US_CX_END" => Point::ConnectEnd,
        "US_TX_BEG" => Point::UpstreamFirstSent,
        "US_TX_END" => Point::UpstreamLastSent,
        "US_RX_BEG" => Point::UpstreamFirstReceived,
        "US_RX_END" => Point::UpstreamLastReceived,
        "DS_TX_BEG" => Point::DownstreamFirstSent,
        "DS_TX_END" => Point::DownstreamLastSent,
        _ => Point::Never,
    }
}

/// Operators with an optional mask.
fn masked(name: &str) -> Option<Which> {
    Some(match name {
        "UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT" => Which::UpstreamLocal,
        "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => Which::UpstreamHost,
        "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT" => Which::DownstreamLocal,
        "DOWNSTREAM_DIRECT_LOCAL_ADDRESS_WITHOUT_PORT" => Which::DownstreamDirectLocal,
        "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => Which::DownstreamRemote,
        "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT" => Which::DownstreamDirectRemote,
        _ => return None,
    })
}

/// Operators that take neither parameters nor a length.
fn plain(name: &str) -> Option<Operator> {
    let since_start = |to| Operator::Time(Span { from: Point::Start, to, unit: TimeUnit::Milliseconds });
    let address = |which| Operator::Address(which, AddressPart::Whole);
    let port = |which| Operator::Address(which, AddressPart::Port);
    Some(match name {
        "PROTOCOL" => Operator::Text(Text::Protocol),
        "UPSTREAM_PROTOCOL" => Operator::Text(Text::UpstreamProtocol),
        "RESPONSE_CODE" => Operator::Count(Count::ResponseCode),
        "RESPONSE_CODE_DETAILS" => Operator::Text(Text::ResponseCodeDetails),
        "CONNECTION_TERMINATION_DETAILS" => Operator::Text(Text::ConnectionTerminationDetails),
        "REQUEST_HEADERS_BYTES" => Operator::HeaderBytes(Message::Request),
        "RESPONSE_HEADERS_BYTES" => Operator::HeaderBytes(Message::Response),
        "RESPONSE_TRAILERS_BYTES" => Operator::HeaderBytes(Message::ResponseTrailers),
        "BYTES_RECEIVED" => Operator::Count(Count::BytesReceived),
        "BYTES_SENT" => Operator::Count(Count::BytesSent),
        "UPSTREAM_REQUEST_ATTEMPT_COUNT" => Operator::Count(Count::Attempts),
        "UPSTREAM_WIRE_BYTES_SENT" => Operator::Count(Count::UpstreamWireBytesSent),
        "UPSTREAM_WIRE_BYTES_RECEIVED" => Operator::Count(Count::UpstreamWireBytesReceived),
        "DOWNSTREAM_WIRE_BYTES_SENT" => Operator::Count(Count::DownstreamWireBytesSent),
        "DOWNSTREAM_WIRE_BYTES_RECEIVED" => Operator::Count(Count::DownstreamWireBytesReceived),
        "UPSTREAM_HEADER_BYTES_SENT" | "UPSTREAM_DECOMPRESSED_HEADER_BYTES_SENT" => {
            Operator::Count(Count::UpstreamHeaderBytesSent)
        }
        "UPSTREAM_HEADER_BYTES_RECEIVED" | "UPSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED" => {
            Operator::Count(Count::UpstreamHeaderBytesReceived)
        }
        "DOWNSTREAM_HEADER_BYTES_SENT" | "DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_SENT" => {
            Operator::Count(Count::DownstreamHeaderBytesSent)
        }
        "DOWNSTREAM_HEADER_BYTES_RECEIVED" | "DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED" => {
            Operator::Count(Count::DownstreamHeaderBytesReceived)
        }
        "DURATION" => since_start(Point::End),
        "REQUEST_DURATION" => since_start(Point::RequestComplete),
        "REQUEST_TX_DURATION" => since_start(Point::UpstreamLastSent),
        "RESPONSE_DURATION" => since_start(Point::UpstreamFirstReceived),
        "RESPONSE_TX_DURATION" => Operator::Time(Span {
            from: Point::UpstreamFirstReceived,
            to: Point::DownstreamLastSent,
            unit: TimeUnit::Milliseconds,
        }),
        "UPSTREAM_CONNECTION_POOL_READY_DURATION" => since_start(Point::ConnectionReady),
        "DOWNSTREAM_HANDSHAKE_DURATION" => since_start(Point::Never),
        "RESPONSE_FLAGS" => Operator::Text(Text::ResponseFlags),
        "RESPONSE_FLAGS_LONG" => Operator::Text(Text::ResponseFlagsLong),
        "ROUTE_NAME" => Operator::Text(Text::RouteName),
        "VIRTUAL_CLUSTER_NAME" => Operator::Text(Text::VirtualClusterName),
        "UPSTREAM_HOST" | "UPSTREAM_REMOTE_ADDRESS" => address(Which::UpstreamHost),
        "UPSTREAM_REMOTE_PORT" => port(Which::UpstreamHost),
        "UPSTREAM_HOST_NAME" => Operator::Text(Text::UpstreamHostName),
        "UPSTREAM_HOST_NAME_WITHOUT_PORT" => Operator::Text(Text::UpstreamHostNameWithoutPort),
        "UPSTREAM_HOSTS_ATTEMPTED" => Operator::Text(Text::HostsAttempted),
        "UPSTREAM_HOSTS_ATTEMPTED_WITHOUT_PORT" => Operator::Text(Text::HostsAttemptedWithoutPort),
        "UPSTREAM_HOST_NAMES_ATTEMPTED" => Operator::Text(Text::HostNamesAttempted),
        "UPSTREAM_HOST_NAMES_ATTEMPTED_WITHOUT_PORT" => Operator::Text(Text::HostNamesAttemptedWithoutPort),
        "UPSTREAM_CONNECTION_IDS_ATTEMPTED" => Operator::Text(Text::ConnectionIdsAttempted),
        "UPSTREAM_CLUSTER" | "UPSTREAM_CLUSTER_RAW" => Operator::Text(Text::UpstreamCluster),
        "UPSTREAM_LOCAL_ADDRESS" => address(Which::UpstreamLocal),
        "UPSTREAM_LOCAL_PORT" => port(Which::UpstreamLocal),
        "DOWNSTREAM_LOCAL_ADDRESS" => address(Which::DownstreamLocal),
        "DOWNSTREAM_LOCAL_PORT" => port(Which::DownstreamLocal),
        "DOWNSTREAM_DIRECT_LOCAL_ADDRESS" => address(Which::DownstreamDirectLocal),
        "DOWNSTREAM_DIRECT_LOCAL_PORT" => port(Which::DownstreamDirectLocal),
        "DOWNSTREAM_REMOTE_ADDRESS" => address(Which::DownstreamRemote),
        "DOWNSTREAM_REMOTE_PORT" => port(Which::DownstreamRemote),
        "DOWNSTREAM_DIRECT_REMOTE_ADDRESS" => address(Which::DownstreamDirectRemote),
        "DOWNSTREAM_DIRECT_REMOTE_PORT" => port(Which::DownstreamDirectRemote),
        "DOWNSTREAM_TRANSPORT_FAILURE_REASON" => Operator::Text(Text::DownstreamTransportFailure),
        "UPSTREAM_TRANSPORT_FAILURE_REASON" => Operator::Text(Text::UpstreamTransportFailure),
        "UPSTREAM_DETECTED_CLOSE_TYPE" => Operator::Text(Text::UpstreamDetectedCloseType),
        "DOWNSTREAM_DETECTED_CLOSE_TYPE" => Operator::Constant("Normal".into()),
        "CONNECTION_ID" => Operator::Count(Count::ConnectionId),
        "UPSTREAM_CONNECTION_ID" => Operator::Count(Count::UpstreamConnectionId),
        "STREAM_ID" => Operator::Text(Text::StreamId),
        "UNIQUE_ID" => Operator::Text(Text::UniqueId),
        "GRPC_STATUS_NUMBER" => Operator::GrpcStatus(GrpcForm::Number),
        "FILTER_CHAIN_NAME" => Operator::Text(Text::FilterChainName),
        "LISTENER_NAME" => Operator::Text(Text::ListenerName),
        "ACCESS_LOG_TYPE" => Operator::Text(Text::LogType),
        "LOCAL_REPLY_BODY" => Operator::Text(Text::LocalReplyBody),
        "HOSTNAME" => Operator::Constant(host_name().into()),
        "CUSTOM_FLAGS" => Operator::Constant("".into()),
        _ => match super::tls::named(name) {
            Some((side, fact)) => Operator::Tls(side, fact),
            None if ABSENT.contains(&name) => Operator::Absent,
            None => return None,
        },
    })
}

fn host_name() -> String {
    let read = std::fs::read_to_string("/proc/sys/kernel/hostname");
    read.map_or_else(|_| "-".into(), |name| name.trim_end().to_owned())
}

/// Known, and never with a value in this version.
const ABSENT: &[&str] = &[
    "DOWNSTREAM_LOCAL_CLOSE_REASON",
    "UPSTREAM_LOCAL_CLOSE_REASON",
    "UPSTREAM_SERVER_NAME",
    "TRACE_ID",
    "SPAN_ID",
    "TLS_JA3_FINGERPRINT",
    "TLS_JA4_FINGERPRINT",
    "DOWNSTREAM_PEER_OTHERNAME_SAN",
    "DOWNSTREAM_LOCAL_OTHERNAME_SAN",
    "DOWNSTREAM_TLS_SESSION_ID",
    "DOWNSTREAM_PEER_FINGERPRINT_1",
    "DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_256",
    "DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_1",
    "DOWNSTREAM_PEER_CHAIN_SERIALS",
    "UPSTREAM_PEER_CERT",
    "UPSTREAM_TLS_SESSION_ID",
];

/// Source: Envoy, `METADATA(TYPE:NAMESPACE:KEY)`.
const METADATA_KINDS: [&str; 8] =
    ["DYNAMIC", "CLUSTER", "ROUTE", "UPSTREAM_HOST", "LISTENER", "LISTENER_FILTER_CHAIN", "VIRTUAL_HOST", "ENDPOINT"];

/// Operators that people spell wrong; the nearest is suggested.
const SUGGESTED: &[&str] = &[
    "START_TIME",
    "REQ",
    "RESP",
    "TRAILER",
    "PROTOCOL",
    "RESPONSE_CODE",
    "RESPONSE_CODE_DETAILS",
    "RESPONSE_FLAGS",
    "BYTES_RECEIVED",
    "BYTES_SENT",
    "DURATION",
    "REQUEST_DURATION",
    "RESPONSE_DURATION",
    "ROUTE_NAME",
    "UPSTREAM_HOST",
    "UPSTREAM_CLUSTER",
    "UPSTREAM_LOCAL_ADDRESS",
    "UPSTREAM_REMOTE_ADDRESS",
    "DOWNSTREAM_LOCAL_ADDRESS",
    "DOWNSTREAM_REMOTE_ADDRESS",
    "CONNECTION_ID",
    "HOSTNAME",
    "LOCAL_REPLY_BODY",
    "QUERY_PARAM",
    "PATH",
    "ENVIRONMENT",
];

fn unknown(name: &str) -> Wrong {
    let nearest = SUGGESTED.iter().map(|known| (strsim::levenshtein(known, name), *known)).min();
    let suggestion = nearest.filter(|(distance, _)| *distance <= 3).map(|(_, known)| known);
    Wrong { reason: format!("unknown operator `{name}`"), suggestion }
}
