//! `envoy.filters.http.grpc_http1_bridge`: clients of HTTP/1.1, which see no trailers, call unary methods.
//!
//! The reply is kept back until its trailers are here; `grpc-status` and `grpc-message` become fields of its head, and a call that
//! failed is answered with 503.

use envoy_types::pb::envoy::extensions::filters::http::grpc_http1_bridge::v3 as proto;
use torus_codec::{BodyLength, HeaderMap, Known, RequestHead, ResponseHead, Version};

use super::Hold;
use crate::route::parameters::{is_grpc, without_query};

/// The filter's configuration.
#[derive(Debug)]
pub struct GrpcHttp1Bridge {
    ignores_query: bool,
}

/// One call.
pub struct Http1Bridge {
    is_held: bool,
}

impl GrpcHttp1Bridge {
    /// Compiles `config`.
    pub fn new(config: &proto::Config) -> Self {
        Self { ignores_query: config.ignore_query_parameters }
    }

    /// Begins a request, where it is gRPC over HTTP/1.1.
    pub fn start(&self, request: &mut RequestHead) -> Option<Http1Bridge> {
        if request.version == Version::Http2 || !is_grpc(&request.headers) {
            return None;
        }
        if self.ignores_query {
            let path = request.headers.get_known(Known::Path).unwrap_or_default();
            let alone = without_query(path);
            if alone.len() < path.len() {
                let alone = alone.to_vec();
                request.headers.set_known(Known::Path, &alone);
            }
        }
        Some(Http1Bridge { is_held: false })
    }
}

impl Http1Bridge {
    pub(super) fn on_response(&mut self, response: &ResponseHead) -> Option<Hold> {
        self.is_held = response.body != BodyLength::Empty;
        self.is_held.then_some(Hold::Whole)
    }

    pub(super) fn on_held(&mut self, response: &mut ResponseHead, body: &[u8], trailers: &mut HeaderMap) {
        if !self.is_held || trailers.is_empty() {
            return;
        }
        let headers = &mut response.headers;
        if let Some(status) = trailers.get_known(Known::GrpcStatus) {
            if status != b"0" {
                response.status = 503;
                headers.set_known(Known::Status, b"503");
            }
            headers.set_known(Known::GrpcStatus, status);
        }
        if let Some(message) = trailers.get_known(Known::GrpcMessage) {
            headers.set_known(Known::GrpcMessage, message);
        }
        headers.set_known(Known::ContentLength, body.len().to_string().as_bytes());
        trailers.clear();
    }
}
