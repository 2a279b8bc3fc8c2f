//! One line of an access log.

use std::time::{Duration, SystemTime};

use torus_proxy::config::address::Address;
use torus_proxy::config::parse::context::ParseContext;
use torus_proxy::telemetry::format::{Format, FormatContext};
use torus_proxy::telemetry::stream_info::StreamInfo;

use crate::head::{BROWSER_REQUEST, ReplyParse, RequestParse};

/// A request that was answered, and the format of its line.
pub struct LogLine {
    format: Format,
    info: StreamInfo,
    request: RequestParse,
    reply: ReplyParse,
    out: Vec<u8>,
}

impl LogLine {
    /// In Envoy's default format; `None` where the format is refused.
    pub fn new() -> Option<Self> {
        let format = Format::parse_text("format", Format::ENVOY_DEFAULT, false, &mut ParseContext::new(1)).ok()?;
        let info = StreamInfo {
            start: Some(SystemTime::UNIX_EPOCH + Duration::from_millis(784_111_777_123)),
            complete: Some(Duration::from_millis(12)),
            protocol: Some("HTTP/1.1"),
            response_code: 200,
            body_bytes_sent: 1024,
            upstream_host: "10.0.0.1:80".parse().ok().map(Address::Ip),
            ..StreamInfo::default()
        };
        let (request, reply) = (RequestParse::new(BROWSER_REQUEST), ReplyParse::new());
        let mut bench = Self { format, info, request, reply, out: Vec::with_capacity(4096) };
        bench.run();
        Some(bench)
    }

    /// Writes the line once; how many bytes it has.
    pub fn run(&mut self) -> usize {
        self.out.clear();
        let context = FormatContext {
            response: Some(&self.reply.head().headers),
            ..FormatContext::new(&self.info, &self.request.head().headers)
        };
        self.format.write(&context, &mut self.out);
        self.out.len()
    }
}
