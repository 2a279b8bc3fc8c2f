//! Rewrites of the proxy's own replies. Source: LocalReplyConfig.
//!
//! The first mapper whose filter takes the reply changes its body, fields and status; then the mapper's format, or else the
//! common one, writes the body. A reply to a gRPC request says the same in gRPC's words.

use std::io::Write as _;

use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as proto;
use torus_codec::headers::{HeaderMap, Known};

use super::mutation::{Mutations, Side};
use super::parameters::is_grpc;
use super::rewrite::set_number;
use super::scratch::Scratch;
use crate::config::parse::ParseContext;
use crate::config::reject::Refused;
use crate::telemetry::format::{Format, FormatContext, data_source, http_to_grpc};
use crate::telemetry::log_filter::LogFilter;
use crate::telemetry::stream_info::StreamInfo;

/// `local_reply_config`, compiled.
#[derive(Debug, Default)]
pub struct LocalReplyMapper {
    mappers: Vec<Mapper>,
    format: Option<Format>,
}

#[derive(Debug)]
struct Mapper {
    filter: LogFilter,
    status: Option<u16>,
    body: Option<Box<[u8]>>,
    format: Option<Format>,
    headers: Mutations,
}

/// One of the proxy's own replies while it is rewritten.
pub struct LocalReply<'a> {
    /// The status.
    pub status: u16,
    /// The fields, with `:status`; `content-type` only where a header change of the route put it.
    pub headers: &'a mut HeaderMap,
    /// The body.
    pub body: &'a mut Vec<u8>,
}

impl LocalReplyMapper {
    /// Compiles `config`; `context` stands at the message.
    pub fn parse(config: &proto::LocalReplyConfig, context: &mut ParseContext) -> Result<Self, Refused> {
        let mappers = context.each("mappers", &config.mappers, Mapper::parse);
        let format = match &config.body_format {
            None => Ok(None),
            Some(format) => context.within("body_format", |context| Format::parse(format, context).map(Some)),
        };
        Ok(Self { mappers: mappers?, format: format? })
    }

    /// Rewrites one of the proxy's own replies: status, fields and body; `content-type` and `content-length` are brought in line
    /// with the body. Call it last, after the route's changes to the reply. `random` decides `runtime_filter`.
    pub fn map(
        &self,
        reply: &mut LocalReply<'_>,
        info: &mut StreamInfo,
        request: &HeaderMap,
        random: u64,
        scratch: &mut Scratch,
    ) {
        info.response_code = reply.status;
        let had_content_type = reply.headers.get_known(Known::ContentType).is_some();
        let mut format = self.format.as_ref();
        let mut changed = false;
        let mut own_content_type = false;
        let taking = self.mappers.iter().find(|mapper| {
            let context = FormatContext {
                response: Some(&*reply.headers),
                local_reply_body: reply.body,
                ..FormatContext::new(info, request)
            };
            mapper.filter.takes(&context, random, scratch)
        });
        if let Some(mapper) = taking {
            if let Some(body) = &mapper.body {
                changed = reply.body.as_slice() != &**body;
                reply.body.clear();
                reply.body.extend_from_slice(body);
            }
            scratch.other.clear();
            scratch.other.extend_from_slice(reply.headers.get_known(Known::ContentType).unwrap_or_default());
            mapper.headers.apply(Side::Response(request), info, reply.headers, scratch);
            let now = reply.headers.get_known(Known::ContentType);
            own_content_type = now.is_some_and(|now| now != scratch.other);
            if let Some(status) = mapper.status {
                reply.status = status;
                info.response_code = status;
                set_number(reply.headers, Known::Status, status.into(), scratch);
            }
            format = mapper.format.as_ref().or(format);
        }
        let mut content_type = "text/plain";
        if let Some(format) = format {
            content_type = format.content_type();
            scratch.other.clear();
            let context = FormatContext {
                response: Some(&*reply.headers),
                local_reply_body: reply.body,
                ..FormatContext::new(info, request)
            };
            format.write(&context, &mut scratch.other);
            changed |= *reply.body != scratch.other;
            std::mem::swap(reply.body, &mut scratch.other);
        }
        // To a browser that calls by gRPC Web, Envoy's filter says it another way.
        if is_grpc(request) && !info.is_grpc_web {
            reply.speak_grpc(scratch);
            info.response_code = reply.status;
        } else if reply.body.is_empty() {
            reply.headers.remove_known(Known::ContentType);
            reply.headers.remove_known(Known::ContentLength);
        } else {
            set_number(reply.headers, Known::ContentLength, reply.body.len() as u64, scratch);
            if !own_content_type && (changed || !had_content_type) {
                reply.headers.set_known(Known::ContentType, content_type.as_bytes());
            }
        }
    }
}

impl LocalReply<'_> {
    /// Says it as a gRPC status with a message and without a body. Source: gRPC over HTTP/2, "Trailers-Only".
    fn speak_grpc(&mut self, scratch: &mut Scratch) {
        if self.headers.get_known(Known::GrpcStatus).is_none() {
            set_number(self.headers, Known::GrpcStatus, http_to_grpc(self.status), scratch);
        }
        self.status = 200;
        self.headers.set_known(Known::Status, b"200");
        self.headers.set_known(Known::ContentType, b"application/grpc");
        self.headers.remove_known(Known::ContentLength);
        if !self.body.is_empty() {
            scratch.value.clear();
            write_grpc_message(self.body, &mut scratch.value);
            self.headers.set_known(Known::GrpcMessage, &scratch.value);
            self.body.clear();
        }
    }
}

/// Writes `text` as a value of `grpc-message`. Source: gRPC over HTTP/2, `Percent-Encoded`.
pub fn write_grpc_message(text: &[u8], out: &mut Vec<u8>) {
    for byte in text {
        let _ = match byte {
            b'%' | 0x00..0x20 | 0x7f.. => write!(out, "%{byte:02X}"),
            _ => out.write_all(&[*byte]),
        };
    }
}

impl Mapper {
    fn parse(config: &proto::ResponseMapper, context: &mut ParseContext) -> Result<Self, Refused> {
        let filter = context.required("filter", &config.filter)?;
        let filter = context.within("filter", |context| LogFilter::parse(filter, context));
        let status = match &config.status_code {
            None => Ok(None),
            Some(status) => {
                let status = u16::try_from(status.value).ok().filter(|status| (200..600).contains(status));
                status.map(Some).ok_or_else(|| context.reject("status_code", "must be from 200 to 599"))
            }
        };
        let body = match &config.body {
            None => Ok(None),
            Some(source) => context.within("body", |context| data_source(source, context).map(Some)),
        };
        let format = match &config.body_format_override {
            None => Ok(None),
            Some(format) => context.within("body_format_override", |context| Format::parse(format, context).map(Some)),
        };
        let headers = Mutations::parse_additions("headers_to_add", &config.headers_to_add, context);
        Ok(Self { filter: filter?, status: status?, body: body?.map(Into::into), format: format?, headers: headers? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapped(config: &str, status: u16, body: &str, request: &[(&str, &str)], route: &[(&str, &str)]) -> String {
        let config = torus_xds::from_yaml::<proto::LocalReplyConfig>(config).unwrap();
        let mut context = ParseContext::new(1);
        let mapper =
            LocalReplyMapper::parse(&config, &mut context).unwrap_or_else(|_| panic!("{:?}", context.problems.take()));
        let mut headers = HeaderMap::default();
        headers.append_known(Known::Status, status.to_string().as_bytes());
        route.iter().for_each(|(name, value)| headers.append_wire(name.as_bytes(), value.as_bytes()));
        let mut request_headers = HeaderMap::default();
        request_headers.append_known(Known::Path, b"/p");
        request.iter().for_each(|(name, value)| request_headers.append_wire(name.as_bytes(), value.as_bytes()));
        let mut info = StreamInfo::default();
        let mut body = body.as_bytes().to_vec();
        let mut reply = LocalReply { status, headers: &mut headers, body: &mut body };
        mapper.map(&mut reply, &mut info, &request_headers, 0, &mut Scratch::default());
        assert_eq!(reply.status, info.response_code);
        let fields: Vec<String> = headers
            .iter()
            .map(|(n, v)| format!("{}: {}", String::from_utf8_lossy(n), String::from_utf8_lossy(v)))
            .collect();
        format!("{} | {}", fields.join(", "), String::from_utf8(body).unwrap())
    }

    /// Each row was checked against Envoy 1.40.
    #[test]
    fn replies_are_rewritten_as_in_envoy() {
        let check = |config: &str, status: u16, body: &str, expect: &str| {
            assert_eq!(mapped(config, status, body, &[], &[]), expect, "{config}");
        };
        let is_503 =
            "filter: {status_code_filter: {comparison: {op: EQ, value: {default_value: 503, runtime_key: k}}}}";
        check("{}", 404, "", ":status: 404 | ");
        check("{}", 503, "x", ":status: 503, content-length: 1, content-type: text/plain | x");
        let config = format!("{{mappers: [{{{is_503}, status_code: 599, body: {{inline_string: sorry}}}}]}}");
        check(&config, 503, "x", ":status: 599, content-length: 5, content-type: text/plain | sorry");
        check(&config, 502, "x", ":status: 502, content-length: 1, content-type: text/plain | x");
        check(
            "body_format: {json_format: {status: \"%RESPONSE_CODE%\", body: \"%LOCAL_REPLY_BODY%\", path: \"%REQ(:path)%\"}}",
            404,
            "",
            ":status: 404, content-length: 37, content-type: application/json | {\"body\":\"\",\"path\":\"/p\",\"status\":404}\n",
        );
        let config = format!(
            "{{mappers: [{{{is_503}, headers_to_add: [{{header: {{key: x-a, value: \"%RESPONSE_CODE%\"}}}}], status_code: 401, \
             body_format_override: {{content_type: text/html, text_format_source: \
             {{inline_string: \"<b>%LOCAL_REPLY_BODY%%RESP(:status)%</b>\"}}}}}}]}}"
        );
        check(&config, 503, "x", ":status: 401, x-a: 503, content-length: 11, content-type: text/html | <b>x401</b>");
    }

    #[test]
    fn a_content_type_of_the_route_stays_with_its_body() {
        let json = [("content-type", "application/json")];
        let same = mapped("{}", 503, "{}", &[], &json);
        assert_eq!(same, ":status: 503, content-type: application/json, content-length: 2 | {}");
        let mapper = "{mappers: [{filter: {not_health_check_filter: {}}, body: {inline_string: zz}, headers_to_add: \
                      [{header: {key: content-type, value: a/b}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}]}]}";
        let own = mapped(mapper, 503, "{}", &[], &json);
        assert_eq!(own, ":status: 503, content-type: a/b, content-length: 2 | zz");
        let changed = mapped("body_format: {text_format_source: {inline_string: y}}", 503, "{}", &[], &json);
        assert_eq!(changed, ":status: 503, content-type: text/plain, content-length: 1 | y");
        let empty = mapped("{}", 503, "", &[], &json);
        assert_eq!(empty, ":status: 503 | ");
    }

    #[test]
    fn grpc_requests_get_a_grpc_status() {
        let request = [("content-type", "application/grpc")];
        let shown = mapped("{}", 503, "no 100%", &request, &[]);
        let expect = ":status: 200, grpc-status: 14, content-type: application/grpc, grpc-message: no 100%25 | ";
        assert_eq!(shown, expect);
    }
}
