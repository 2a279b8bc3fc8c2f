//! HTTP filters: what looks at a request and its reply on the way, and may change them. One file each, named as Envoy names it.
//!
//! ```text
//! route found ─ start ─ on_cluster ─ on_request_data* ─ on_request_end ─ upstream
//! client ─ on_response_end ─ on_response_data* ─ on_response ─┘        └ or: on_held, after the whole reply was kept back
//! ```
//! The configuration's part is a [`FilterChain`]; what one request needs is a [`Running`], which an exchange uses for one request
//! after another. A filter that has nothing to do with a request has no state for it, and a request without states pays one
//! comparison at each step. Filters decide and change; reading and writing stay with the exchange.

pub mod grpc;
pub mod grpc_http1_bridge;
pub mod grpc_stats;
pub mod grpc_web;
pub mod network;

use std::sync::Arc;

use torus_codec::{HeaderMap, RequestHead, ResponseHead};

use self::grpc::{GrpcMethod, GrpcStatsByName};
use self::grpc_http1_bridge::{GrpcHttp1Bridge, Http1Bridge};
use self::grpc_stats::{GrpcStats, GrpcStatsRequest};
use self::grpc_web::{GrpcWeb, GrpcWebRequest};
use crate::cluster::Cluster;
use crate::telemetry::counters::Core;
use crate::telemetry::registry::Registry;
use crate::telemetry::stream_info::StreamInfo;
use crate::wire::BodyData;

/// The filters of a connection manager before its router, in order.
#[derive(Debug, Default)]
pub struct FilterChain {
    /// In the order in which requests pass them.
    pub filters: Vec<Filter>,
    /// Makes the groups of stats that depend on what is asked for; none where no filter is.
    pub registry: Option<Arc<Registry>>,
}

/// One configured filter.
#[derive(Debug)]
pub enum Filter {
    /// `envoy.filters.http.grpc_stats`
    GrpcStats(Arc<GrpcStats>),
    /// `envoy.filters.http.grpc_web`
    GrpcWeb(GrpcWeb),
    /// `envoy.filters.http.grpc_http1_bridge`
    GrpcHttp1Bridge(GrpcHttp1Bridge),
}

/// Filters at work on one request.
#[derive(Default)]
pub struct Running {
    states: Vec<State>,
    registry: Option<Arc<Registry>>,
}

enum State {
    GrpcStats(GrpcStatsRequest),
    GrpcWeb(GrpcWebRequest),
    Http1Bridge(Http1Bridge),
}

/// A reply that is kept back until all of it is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// As much as the cluster's connections may buffer; a longer one cannot be passed on.
    Whole,
    /// So many bytes of it; the rest is of no use.
    First(usize),
}

/// A request that a filter refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FilterRefusal {
    /// Status of the reply.
    pub status: u16,
    /// Its body.
    pub body: &'static str,
    /// `RESPONSE_CODE_DETAILS`.
    pub details: &'static str,
}

impl Running {
    /// Whether no filter has anything to do with the request.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.states.is_empty()
    }

    /// Forgets the last request.
    pub fn clear(&mut self) {
        self.states.clear();
    }

    /// Begins a request whose route is known.
    pub fn start(&mut self, chain: &FilterChain, core: Core, request: &mut RequestHead, info: &mut StreamInfo) {
        for filter in &chain.filters {
            let state = match filter {
                Filter::GrpcStats(filter) => filter.start(core, request).map(State::GrpcStats),
                Filter::GrpcWeb(filter) => filter.start(core, request, info).map(State::GrpcWeb),
                Filter::GrpcHttp1Bridge(filter) => filter.start(request).map(State::Http1Bridge),
            };
            self.states.extend(state);
        }
        if !self.states.is_empty() {
            self.registry.clone_from(&chain.registry);
        }
    }

    /// The request's cluster was chosen; its path is still the client's.
    pub fn on_cluster(&mut self, stats: &mut GrpcStatsByName, cluster: &Cluster, path: &[u8]) {
        let Some(registry) = &self.registry else { return };
        let method = GrpcMethod::of(path);
        let cluster = cluster.stats.prefix();
        for state in &mut self.states {
            match state {
                State::GrpcStats(state) => state.on_cluster(stats, registry, cluster, method),
                State::GrpcWeb(state) => state.on_cluster(stats, registry, cluster, method),
                State::Http1Bridge(_) => {}
            }
        }
    }

    /// A piece of the request's body; what goes on of it, which may be nothing.
    pub fn on_request_data(&mut self, mut data: BodyData) -> Result<BodyData, FilterRefusal> {
        for state in &mut self.states {
            match state {
                State::GrpcStats(state) => state.on_request_data(&data),
                State::GrpcWeb(state) => data = state.on_request_data(data)?,
                State::Http1Bridge(_) => {}
            }
        }
        Ok(data)
    }

    /// The request's body is complete.
    pub fn on_request_end(&mut self) -> Result<(), FilterRefusal> {
        self.states.iter_mut().try_for_each(|state| match state {
            State::GrpcWeb(state) => state.on_request_end(),
            State::GrpcStats(_) | State::Http1Bridge(_) => Ok(()),
        })
    }

    /// The head of the reply that the client is to get; whether the reply is kept back.
    pub fn on_response(&mut self, response: &mut ResponseHead) -> Option<Hold> {
        let mut hold = None;
        for state in self.states.iter_mut().rev() {
            match state {
                State::GrpcStats(state) => state.on_response(response),
                State::GrpcWeb(state) => hold = hold.or(state.on_response(response)),
                State::Http1Bridge(state) => hold = hold.or(state.on_response(response)),
            }
        }
        hold
    }

    /// A piece of the reply's body; what goes on of it, which may be nothing.
    pub fn on_response_data(&mut self, mut data: BodyData) -> BodyData {
        for state in self.states.iter_mut().rev() {
            match state {
                State::GrpcStats(state) => state.on_response_data(&data),
                State::GrpcWeb(state) => data = state.on_response_data(data),
                State::Http1Bridge(_) => {}
            }
        }
        data
    }

    /// The reply's body is complete; what follows it before the end.
    pub fn on_response_end(&mut self, trailers: &mut HeaderMap) -> Option<BodyData> {
        let mut more = None;
        for state in self.states.iter_mut().rev() {
            match state {
                State::GrpcStats(state) => state.on_trailers(trailers),
                State::GrpcWeb(state) => more = more.or(state.on_response_end(trailers)),
                State::Http1Bridge(_) => {}
            }
        }
        more
    }

    /// A reply that was kept back is here, as far as it was wanted, and [`Self::on_response_end`] was told: makes it what the
    /// client gets.
    pub fn on_held(&mut self, response: &mut ResponseHead, body: &mut Vec<u8>, trailers: &mut HeaderMap) {
        for state in self.states.iter_mut().rev() {
            match state {
                State::GrpcStats(_) => {}
                State::GrpcWeb(state) => state.on_held(response.status, &mut response.headers, body),
                State::Http1Bridge(state) => state.on_held(response, body, trailers),
            }
        }
    }

    /// One of the proxy's own replies.
    pub fn on_local_reply(&mut self, status: u16, headers: &mut HeaderMap, body: &mut Vec<u8>) {
        for state in self.states.iter_mut().rev() {
            match state {
                State::GrpcStats(state) => state.on_trailers(headers),
                State::GrpcWeb(state) => state.on_local_reply(status, headers, body),
                State::Http1Bridge(_) => {}
            }
        }
    }

    /// The request is over.
    pub fn on_finish(&mut self, info: &StreamInfo) {
        for state in &self.states {
            if let State::GrpcStats(state) = state {
                state.on_finish(info);
            }
        }
        self.states.clear();
    }
}
