//! The access log of the admin server itself. Source: envoy.config.bootstrap.v3.Admin.access_log.

use std::time::{Instant, SystemTime};

use axum::http::request::Parts;
use torus_codec::HeaderName;
use torus_codec::headers::HeaderMap;

use super::request::Reply;
use super::{Admin, lock};
use crate::telemetry::format::{FormatContext, LogType};
use crate::telemetry::stream_info::StreamInfo;

/// When a request to the admin server began.
pub(super) struct Began {
    wall: SystemTime,
    clock: Instant,
}

impl Began {
    /// Now.
    pub(super) fn now() -> Self {
        Self { wall: SystemTime::now(), clock: Instant::now() }
    }
}

/// Writes a line for a request that was answered.
pub(super) fn write(admin: &Admin, head: &Parts, reply: &Reply, began: &Began) {
    if admin.access_logs.is_empty() {
        return;
    }
    let taken = began.clock.elapsed();
    let mut info = StreamInfo {
        start: Some(began.wall),
        request_complete: Some(taken),
        downstream_first_sent: Some(taken),
        downstream_last_sent: Some(taken),
        complete: Some(taken),
        protocol: Some(if head.version == axum::http::Version::HTTP_10 { "HTTP/1.0" } else { "HTTP/1.1" }),
        response_code: reply.status,
        body_bytes_sent: reply.body.len() as u64,
        local_reply: true,
        ..StreamInfo::default()
    };
    info.response_code_details.push_str("admin_filter_response");
    let mut request = HeaderMap::default();
    let target = head.uri.path_and_query().map_or("/", |target| target.as_str());
    for (name, value) in [(":method", head.method.as_str()), (":path", target)] {
        append(&mut request, name, value.as_bytes());
    }
    for (name, value) in &head.headers {
        let name = if name == axum::http::header::HOST { ":authority" } else { name.as_str() };
        append(&mut request, name, value.as_bytes());
    }
    let now = SystemTime::now();
    let context = FormatContext { log_type: LogType::DownstreamEnd, now, ..FormatContext::new(&info, &request) };
    let mut buffers = lock(&admin.log_buffers);
    for log in &admin.access_logs {
        log.log(&mut buffers, &context, 0);
    }
}

fn append(headers: &mut HeaderMap, name: &str, value: &[u8]) {
    if let Some(name) = HeaderName::new(name) {
        headers.append(&name, value);
    }
}
