//! Rewrites of the proxy's own replies. Source: LocalReplyConfig.

use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as proto;
use torus_codec::headers::HeaderMap;

use super::scratch::Scratch;
use crate::config::parse::ParseContext;
use crate::config::reject::Refused;
use crate::telemetry::stream_info::StreamInfo;

/// `local_reply_config`, compiled.
#[derive(Default)]
pub struct LocalReplyMapper {}

impl LocalReplyMapper {
    /// Compiles `config`.
    pub fn parse(config: &proto::LocalReplyConfig, context: &mut ParseContext) -> Result<Self, Refused> {
        let _ = (config, context);
        Ok(Self {})
    }

    /// Rewrites one of the proxy's own replies: `status`, the fields of `response` and its body. `response` has its `:status` and,
    /// where there is a body, its `content-type` already; both are brought in line. The caller sets `content-length` after.
    pub fn map(
        &self,
        info: &mut StreamInfo,
        request: &HeaderMap,
        response: &mut HeaderMap,
        status: &mut u16,
        body: &mut Vec<u8>,
        random: u64,
        scratch: &mut Scratch,
    ) {
        let _ = (info, request, response, status, body, random, scratch);
    }
}
