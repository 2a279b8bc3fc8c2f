//! One `%OPERATOR%`: what it writes for a request.

use std::io::Write as _;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use torus_codec::headers::{HeaderMap, HeaderName, Known};

use super::FormatContext;
use super::time::TimeFormat;
use super::tls::{Side, TlsFact, ValidityEdge};
use crate::config::address::Address;
use crate::route::parameters::{is_grpc, query_value, without_query};
use crate::telemetry::stream_info::{ResponseFlag, StreamInfo};

/// A compiled operator.
#[derive(Debug)]
pub(super) enum Operator {
    /// Known when the format was compiled.
    Constant(Box<str>),
    /// Needs a feature that has no value to give.
    Absent,
    StartTime(TimeFormat),
    /// Where the validity of a client's certificate begins or ends.
    PeerValidity(ValidityEdge, TimeFormat),
    EmitTime(TimeFormat),
    Count(Count),
    Time(Span),
    Text(Text),
    Address(Which, AddressPart),
    Field(Message, FieldNames, Option<usize>),
    FieldWithoutQuery(Message, FieldNames, Option<usize>),
    HeaderBytes(Message),
    GrpcStatus(GrpcForm),
    QueryParameter(Box<str>, Option<usize>),
    Query(PathSource, Option<usize>),
    Path(PathSource, bool, Option<usize>),
    RequestedServerName {
        host: HostOrName,
        original: bool,
    },
    Tls(Side, TlsFact),
}

/// Whether `%REQUESTED_SERVER_NAME%` is the name of the TLS handshake or the request's host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HostOrName {
    NameOnly,
    NameFirst,
    HostFirst,
}

/// Numbers of [`StreamInfo`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Count {
    BytesReceived,
    BytesSent,
    ResponseCode,
    Attempts,
    UpstreamWireBytesSent,
    UpstreamWireBytesReceived,
    DownstreamWireBytesSent,
    DownstreamWireBytesReceived,
    UpstreamHeaderBytesSent,
    UpstreamHeaderBytesReceived,
    DownstreamHeaderBytesSent,
    DownstreamHeaderBytesReceived,
    ConnectionId,
    UpstreamConnectionId,
}

/// Time between two points.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) from: Point,
    pub(super) to: Point,
    pub(super) unit: TimeUnit,
}

/// A point in the life of a request. Source: Envoy, `COMMON_DURATION`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Point {
    /// The first byte of the request.
    Start,
    RequestComplete,
    ConnectStart,
    ConnectEnd,
    ConnectionReady,
    UpstreamFirstSent,
    UpstreamLastSent,
    UpstreamFirstReceived,
    UpstreamLastReceived,
    DownstreamFirstSent,
    DownstreamLastSent,
    /// The end of the request, or now while it lasts.
    End,
    /// A name that nothing sets.
    Never,
}

/// The unit of a [`Span`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TimeUnit {
    Milliseconds,
    Microseconds,
    Nanoseconds,
}

/// Texts of [`StreamInfo`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Text {
    Protocol,
    UpstreamProtocol,
    ResponseCodeDetails,
    ConnectionTerminationDetails,
    ResponseFlags,
    ResponseFlagsLong,
    RouteName,
    VirtualClusterName,
    UpstreamCluster,
    UpstreamHostName,
    UpstreamHostNameWithoutPort,
    UpstreamTransportFailure,
    DownstreamTransportFailure,
    UpstreamDetectedCloseType,
    FilterChainName,
    ListenerName,
    LocalReplyBody,
    LogType,
    StreamId,
    UniqueId,
    HostsAttempted,
    HostsAttemptedWithoutPort,
    HostNamesAttempted,
    HostNamesAttemptedWithoutPort,
    ConnectionIdsAttempted,
}

/// An address of [`StreamInfo`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    UpstreamHost,
    UpstreamLocal,
    DownstreamLocal,
    DownstreamDirectLocal,
    DownstreamRemote,
    DownstreamDirectRemote,
}

/// What of an address is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AddressPart {
    Whole,
    WithoutPort,
    /// The range of so many bits that the address lies in.
    Masked(u8),
    Port,
}

/// Which head a field is read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Message {
    Request,
    Response,
    ResponseTrailers,
}

/// A field, and the one that is read where it is missing.
#[derive(Debug)]
pub(super) struct FieldNames {
    pub(super) main: HeaderName,
    pub(super) alternative: Option<HeaderName>,
}

/// How a gRPC status is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GrpcForm {
    Camel,
    Snake,
    Number,
}

/// Which path is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PathSource {
    /// `x-envoy-original-path`
    Original,
    /// `:path`
    Path,
    /// The first, or else the second.
    OriginalOrPath,
}

/// Whether an operator had a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    Nothing,
    Value,
}

impl Operator {
    /// Whether a JSON format writes the value as a number.
    pub(super) fn is_number(&self) -> bool {
        matches!(
            self,
            Self::Count(_)
                | Self::Time(_)
                | Self::Address(_, AddressPart::Port)
                | Self::HeaderBytes(_)
                | Self::GrpcStatus(GrpcForm::Number)
        )
    }

    /// Adds the value to `out`, if there is one.
    pub(super) fn write(&self, context: &FormatContext<'_>, out: &mut Vec<u8>) -> Written {
        match self.try_write(context, out) {
            Some(()) => Written::Value,
            None => Written::Nothing,
        }
    }

    fn try_write(&self, context: &FormatContext<'_>, out: &mut Vec<u8>) -> Option<()> {
        let info = context.info;
        match self {
            Self::Constant(text) => out.extend_from_slice(text.as_bytes()),
            Self::Absent => return None,
            Self::StartTime(format) => format.write(info.start?, out),
            Self::PeerValidity(edge, format) => format.write(edge.of(info.downstream_tls.as_deref()?)?, out),
            Self::EmitTime(format) => format.write(context.now, out),
            Self::Count(count) => decimal(out, count.of(info)),
            Self::Time(span) => decimal(out, span.of(context)?),
            Self::Text(text) => text.write(context, out)?,
            Self::Address(which, part) => part.write(which.of(info)?, out)?,
            Self::Field(message, names, len_max) => {
                out.extend_from_slice(truncated(names.value(message.of(context)?)?, *len_max));
            }
            Self::FieldWithoutQuery(message, names, len_max) => {
                let value = without_query(names.value(message.of(context)?)?);
                out.extend_from_slice(truncated(value, *len_max));
            }
            Self::HeaderBytes(message) => decimal(out, message.of(context).map_or(0, HeaderMap::byte_count) as u64),
            Self::GrpcStatus(form) => form.write(context, out)?,
            Self::QueryParameter(name, len_max) => {
                let value = query_value(PathSource::OriginalOrPath.of(context)?, name.as_bytes())?;
                let start = out.len();
                percent_decode(value, out);
                out.truncate(len_max.map_or(out.len(), |len_max| (start + len_max).min(out.len())));
            }
            Self::Query(source, len_max) => {
                let path = source.of(context)?;
                let query = path.get(memchr::memchr(b'?', path)? + 1..)?;
                out.extend_from_slice(truncated(query, *len_max));
            }
            Self::Path(source, with_query, len_max) => {
                let path = source.of(context)?;
                let path = if *with_query { path } else { without_query(path) };
                out.extend_from_slice(truncated(path, *len_max));
            }
            Self::RequestedServerName { host, original } => {
                let known = if *original { Known::XEnvoyOriginalHost } else { Known::Authority };
                let host_name = || context.request.get_known(known).map(host_without_port);
                let tls = context.info.downstream_tls.as_deref();
                let inspected = context.info.inspected_name.as_deref();
                let name = || tls.and_then(|tls| tls.server_name.as_deref()).or(inspected).map(str::as_bytes);
                out.extend_from_slice(match host {
                    HostOrName::NameOnly => name()?,
                    HostOrName::NameFirst => name().or_else(host_name)?,
                    HostOrName::HostFirst => host_name().or_else(name)?,
                });
            }
            Self::Tls(side, fact) => super::tls::write(*side, *fact, context, out)?,
        }
        Some(())
    }
}

impl Count {
    fn of(self, info: &StreamInfo) -> u64 {
        match self {
            Self::BytesReceived => info.body_bytes_received,
            Self::BytesSent => info.body_bytes_sent,
            Self::ResponseCode => info.response_code.into(),
            Self::Attempts => info.attempt_count.into(),
            Self::UpstreamWireBytesSent => info.upstream_wire_bytes_sent,
            Self::UpstreamWireBytesReceived => info.upstream_wire_bytes_received,
            Self::DownstreamWireBytesSent => info.downstream_wire_bytes_sent,
            Self::DownstreamWireBytesReceived => info.downstream_wire_bytes_received,
            Self::UpstreamHeaderBytesSent => info.upstream_header_bytes_sent,
            Self::UpstreamHeaderBytesReceived => info.upstream_header_bytes_received,
            Self::DownstreamHeaderBytesSent => info.header_bytes_sent,
            Self::DownstreamHeaderBytesReceived => info.header_bytes_received,
            Self::ConnectionId => info.connection_id,
            Self::UpstreamConnectionId => info.upstream_connection_id,
        }
    }
}

impl Span {
    fn of(self, context: &FormatContext<'_>) -> Option<u64> {
        let between = self.to.of(context)?.checked_sub(self.from.of(context)?)?;
        let count = match self.unit {
            TimeUnit::Milliseconds => between.as_millis(),
            TimeUnit::Microseconds => between.as_micros(),
            TimeUnit::Nanoseconds => between.as_nanos(),
        };
        u64::try_from(count).ok()
    }
}

impl Point {
    /// When it was, since the start of the request.
    fn of(self, context: &FormatContext<'_>) -> Option<Duration> {
        let info = context.info;
        match self {
            Self::Start => Some(Duration::ZERO),
            Self::RequestComplete => info.request_complete,
            Self::ConnectStart => info.upstream_connect_start,
            Self::ConnectEnd => info.upstream_connect_end,
            Self::ConnectionReady => info.upstream_connection_ready,
            Self::UpstreamFirstSent => info.upstream_first_sent,
            Self::UpstreamLastSent => info.upstream_last_sent,
            Self::UpstreamFirstReceived => info.upstream_first_received,
            Self::UpstreamLastReceived => info.upstream_last_received,
            Self::DownstreamFirstSent => info.downstream_first_sent,
            Self::DownstreamLastSent => info.downstream_last_sent,
            Self::End => info.complete.or_else(|| context.now.duration_since(info.start?).ok()),
            Self::Never => None,
        }
    }
}

impl Text {
    fn write(self, context: &FormatContext<'_>, out: &mut Vec<u8>) -> Option<()> {
        let info = context.info;
        let text: &str = match self {
            Self::Protocol => info.protocol?,
            Self::UpstreamProtocol => info.upstream_protocol?,
            Self::ResponseCodeDetails => non_empty(&info.response_code_details)?,
            Self::ConnectionTerminationDetails => info.connection_termination_details?,
            Self::ResponseFlags | Self::ResponseFlagsLong => {
                let name = if self == Self::ResponseFlags { ResponseFlag::short } else { ResponseFlag::long };
                write_flags(info, name, out);
                return Some(());
            }
            Self::RouteName => non_empty(&info.route_name)?,
            Self::VirtualClusterName => non_empty(&info.virtual_cluster_name)?,
            Self::UpstreamCluster => non_empty(&info.cluster_name)?,
            Self::UpstreamHostName => return write_host_name(info, false, out),
            Self::UpstreamHostNameWithoutPort => return write_host_name(info, true, out),
            Self::UpstreamTransportFailure => non_empty(&info.upstream_transport_failure)?,
            Self::DownstreamTransportFailure => non_empty(&info.downstream_transport_failure)?,
            Self::UpstreamDetectedCloseType => {
                info.upstream_host.as_ref()?;
                "Normal"
            }
            Self::FilterChainName => non_empty(&info.filter_chain_name)?,
            Self::ListenerName => non_empty(&info.listener_name)?,
            Self::LocalReplyBody => {
                out.extend_from_slice(context.local_reply_body);
                return Some(());
            }
            Self::LogType => context.log_type.name(),
            Self::StreamId => {
                uuid(info.stream_id, out);
                return Some(());
            }
            Self::UniqueId => {
                let since = context.now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                uuid(info.stream_id.rotate_left(32) ^ since.as_nanos() as u64, out);
                return Some(());
            }
            Self::HostsAttempted | Self::HostsAttemptedWithoutPort => {
                let part = if self == Self::HostsAttempted { AddressPart::Whole } else { AddressPart::WithoutPort };
                let attempted = if info.hosts_attempted.is_empty() {
                    std::slice::from_ref(info.upstream_host.as_ref()?)
                } else {
                    &info.hosts_attempted
                };
                return each_with_commas(attempted, out, |address, out| part.write(address, out));
            }
            Self::HostNamesAttempted => return write_host_name(info, false, out),
            Self::HostNamesAttemptedWithoutPort => return write_host_name(info, true, out),
            Self::ConnectionIdsAttempted => {
                let attempted = if !info.connection_ids_attempted.is_empty() {
                    &info.connection_ids_attempted
                } else if info.upstream_connection_id != 0 {
                    std::slice::from_ref(&info.upstream_connection_id)
                } else {
                    return None;
                };
                return each_with_commas(attempted, out, |id, out| {
                    decimal(out, *id);
                    Some(())
                });
            }
        };
        out.extend_from_slice(text.as_bytes());
        Some(())
    }
}

fn each_with_commas<T>(
    items: &[T],
    out: &mut Vec<u8>,
    mut write: impl FnMut(&T, &mut Vec<u8>) -> Option<()>,
) -> Option<()> {
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write(item, out)?;
    }
    Some(())
}

/// The endpoint's host name, or its address where it has none.
fn write_host_name(info: &StreamInfo, without_port: bool, out: &mut Vec<u8>) -> Option<()> {
    let address = info.upstream_host.as_ref()?;
    if info.upstream_host_name.is_empty() {
        let part = if without_port { AddressPart::WithoutPort } else { AddressPart::Whole };
        return part.write(address, out);
    }
    let name = info.upstream_host_name.as_bytes();
    out.extend_from_slice(if without_port { host_without_port(name) } else { name });
    Some(())
}

fn write_flags(info: &StreamInfo, name: fn(ResponseFlag) -> &'static str, out: &mut Vec<u8>) {
    if info.flags.is_empty() {
        out.push(b'-');
        return;
    }
    let mut first = true;
    for flag in info.flags.iter() {
        if !std::mem::take(&mut first) {
            out.push(b',');
        }
        out.extend_from_slice(name(flag).as_bytes());
    }
}

impl Which {
    fn of(self, info: &StreamInfo) -> Option<&Address> {
        match self {
            Self::UpstreamHost => info.upstream_host.as_ref(),
            Self::UpstreamLocal => info.upstream_local.as_ref(),
            Self::DownstreamLocal | Self::DownstreamDirectLocal => info.downstream_local.as_ref(),
            Self::DownstreamRemote => info.downstream_remote.as_ref(),
            Self::DownstreamDirectRemote => info.downstream_direct_remote.as_ref(),
        }
    }
}

impl AddressPart {
    fn write(self, address: &Address, out: &mut Vec<u8>) -> Option<()> {
        // Writing to a Vec cannot fail.
        let _ = match (self, address.ip()) {
            (Self::Port, None) | (Self::Masked(_), None) => return None,
            (Self::Whole | Self::WithoutPort, None) => write!(out, "{address}"),
            (Self::Whole, Some(address)) => write!(out, "{address}"),
            (Self::WithoutPort, Some(address)) => write!(out, "{}", address.ip()),
            (Self::Port, Some(address)) => write!(out, "{}", address.port()),
            (Self::Masked(bits), Some(address)) => match address.ip() {
                IpAddr::V4(ip) => {
                    let bits = bits.min(32);
                    let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
                    write!(out, "{}/{bits}", std::net::Ipv4Addr::from(u32::from(ip) & mask))
                }
                IpAddr::V6(ip) => {
                    let bits = bits.min(128);
                    let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
                    write!(out, "{}/{bits}", std::net::Ipv6Addr::from(u128::from(ip) & mask))
                }
            },
        };
        Some(())
    }
}

impl Message {
    fn of<'a>(self, context: &FormatContext<'a>) -> Option<&'a HeaderMap> {
        match self {
            Self::Request => Some(context.request),
            Self::Response => context.response,
            Self::ResponseTrailers => context.response_trailers,
        }
    }
}

impl FieldNames {
    fn value<'a>(&self, headers: &'a HeaderMap) -> Option<&'a [u8]> {
        headers.get(&self.main).or_else(|| headers.get(self.alternative.as_ref()?))
    }
}

impl PathSource {
    fn of<'a>(self, context: &FormatContext<'a>) -> Option<&'a [u8]> {
        let original = || context.request.get_known(Known::XEnvoyOriginalPath);
        let path = || context.request.get_known(Known::Path);
        match self {
            Self::Original => original(),
            Self::Path => path(),
            Self::OriginalOrPath => original().or_else(path),
        }
    }
}

impl GrpcForm {
    fn write(self, context: &FormatContext<'_>, out: &mut Vec<u8>) -> Option<()> {
        if !is_grpc(context.request) {
            return None;
        }
        let code = grpc_code(context)?;
        let names = usize::try_from(code).ok().and_then(|code| GRPC_NAMES.get(code));
        match (self, names) {
            (Self::Camel, Some((camel, _))) => out.extend_from_slice(camel.as_bytes()),
            (Self::Snake, Some((_, snake))) => out.extend_from_slice(snake.as_bytes()),
            (Self::Number, _) | (_, None) => decimal(out, code),
        }
        Some(())
    }
}

/// From the trailers, else the head, else what the HTTP status stands for.
pub(in crate::telemetry) fn grpc_code(context: &FormatContext<'_>) -> Option<u64> {
    let read = |headers: Option<&HeaderMap>| {
        let text = std::str::from_utf8(headers?.get_known(Known::GrpcStatus)?).ok()?;
        text.parse().ok()
    };
    read(context.response_trailers).or_else(|| read(context.response)).or(match context.info.response_code {
        0 => None,
        status => Some(http_to_grpc(status)),
    })
}

/// The gRPC status that an HTTP status stands for. Source: gRPC, "HTTP to gRPC Status Code Mapping".
pub fn http_to_grpc(status: u16) -> u64 {
    match status {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

/// Source: gRPC, "Status codes and their use in gRPC"; Envoy's spelling.
const GRPC_NAMES: [(&str, &str); 17] = [
    ("OK", "OK"),
    ("Canceled", "CANCELLED"),
    ("Unknown", "UNKNOWN"),
    ("InvalidArgument", "INVALID_ARGUMENT"),
    ("DeadlineExceeded", "DEADLINE_EXCEEDED"),
    ("NotFound", "NOT_FOUND"),
    ("AlreadyExists", "ALREADY_EXISTS"),
    ("PermissionDenied", "PERMISSION_DENIED"),
    ("ResourceExhausted", "RESOURCE_EXHAUSTED"),
    ("FailedPrecondition", "FAILED_PRECONDITION"),
    ("Aborted", "ABORTED"),
    ("OutOfRange", "OUT_OF_RANGE"),
    ("Unimplemented", "UNIMPLEMENTED"),
    ("Internal", "INTERNAL"),
    ("Unavailable", "UNAVAILABLE"),
    ("DataLoss", "DATA_LOSS"),
    ("Unauthenticated", "UNAUTHENTICATED"),
];

fn non_empty(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

fn truncated(value: &[u8], len_max: Option<usize>) -> &[u8] {
    len_max.and_then(|len_max| value.get(..len_max)).unwrap_or(value)
}

fn decimal(out: &mut Vec<u8>, value: u64) {
    // Writing to a Vec cannot fail.
    let _ = write!(out, "{value}");
}

/// `host` or `[v6]` of `host:port`.
fn host_without_port(host: &[u8]) -> &[u8] {
    let after_brackets = memchr::memrchr(b']', host).map_or(0, |at| at + 1);
    match memchr::memrchr(b':', host) {
        Some(colon) if colon >= after_brackets => host.get(..colon).unwrap_or(host),
        _ => host,
    }
}

fn percent_decode(value: &[u8], out: &mut Vec<u8>) {
    let mut rest = value;
    while let Some((first, tail)) = rest.split_first() {
        let code = match (first, tail) {
            (b'%', [high, low, ..]) => hex_digit(*high).zip(hex_digit(*low)),
            _ => None,
        };
        match code {
            Some((high, low)) => {
                out.push(high * 16 + low);
                rest = tail.get(2..).unwrap_or_default();
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
}

fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

/// Writes a version 4 UUID (RFC 9562 §5.4) that is made of `seed` alone: the same for the same stream.
pub(super) fn uuid(seed: u64, out: &mut Vec<u8>) {
    // SplitMix64 spreads counted ids over all bits.
    let mix = |seed: u64| {
        let mut bits = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    };
    let (high, low) = (mix(seed), mix(seed ^ 0x5851_f42d_4c95_7f2d));
    let _ = write!(
        out,
        "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
        high >> 32,
        (high >> 16) & 0xffff,
        high & 0xfff,
        0x8000 | (low >> 48 & 0x3fff),
        low & 0xffff_ffff_ffff,
    );
}
