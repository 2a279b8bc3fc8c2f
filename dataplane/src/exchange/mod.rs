//! One request, from its parsed head to the last byte of its reply.
//!
//! ```text
//! head ─ edge rules ─ route ─┬─ redirect, direct response, refusal ──────────── local reply ─┐
//!                            └─ forward: choose endpoint ─ lease ─ send ─ reply head ─ relay ─┴─ finish: stats, access log
//!                                 ^                                 │
//!                                 └──────────── retry ──────────────┘
//! ```
//! An [`Exchange`] belongs to a runner and is used for one request after another: after warm-up a request allocates nothing.

pub mod attempt;
pub mod client;
pub mod client_stream;
pub mod core_state;
pub mod deadline;
pub mod finish;
pub mod forward;
pub mod local_reply;
pub mod relay;
pub mod retry;
pub mod upgrade;
pub mod upload;

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use torus_codec::{
    ConnectionToken, EncodeOptions, HeaderMap, Known, Malformed, RequestHead, RequestMethod, ResponseHead, Version,
};
use torus_ring::Nanos;

use self::client_stream::ClientStream;
use self::core_state::CoreState;
use self::deadline::{Deadline, Deadlines};
use self::local_reply::Refusal;
use self::retry::RetryState;
use self::upload::Upload;
use crate::cluster::{Cluster, ClusterIndex};
use crate::config::address::Address;
use crate::config::snapshot::{Listener, Snapshot};
use crate::downstream::edge;
use crate::downstream::{ConnectionInfo, HttpConnectionManager};
use crate::filter;
use crate::route::{self, Action, ClusterTarget, Found};
use crate::telemetry::format::{FormatContext, LogType};
use crate::telemetry::names::HttpStat;
use crate::telemetry::stream_info::{ResponseFlag, StreamInfo};

/// What one request needs while it runs; reused for the next.
pub struct Exchange {
    /// The request: parsed into here by the connection, changed by edge rules and route.
    pub request: RequestHead,
    response: ResponseHead,
    request_trailers: HeaderMap,
    response_trailers: HeaderMap,
    info: StreamInfo,
    /// Timers; the connection uses [`Deadline::RequestHead`] while it reads the head.
    pub deadlines: Deadlines,
    retry: RetryState,
    tried: Vec<Address>,
    upload: Upload,
    filters: filter::Running,
    route_scratch: route::Scratch,
    edge_scratch: edge::Scratch,
    body: Vec<u8>,
    text: Vec<u8>,
    started_at: Nanos,
    idle_timeout: Option<Duration>,
    informational_count: u32,
    /// It asks for another protocol, and may.
    asks_upgrade: bool,
    /// The endpoint of the attempt is a canary.
    is_canary: bool,
}

/// What an exchange runs within.
#[derive(Clone, Copy)]
pub struct Scope<'a> {
    /// The core.
    pub core: &'a Rc<CoreState>,
    /// The configuration that this request sees.
    pub snapshot: &'a Snapshot,
    /// The listener that accepted the connection.
    pub listener: &'a Listener,
    /// Its HTTP connection manager.
    pub manager: &'a HttpConnectionManager,
    /// The client's connection.
    pub connection: &'a ConnectionInfo,
    /// The connection has served enough requests, or for long enough.
    pub last_request: bool,
}

impl<'a> Scope<'a> {
    /// The cluster that a route names.
    fn cluster(&self, target: &ClusterTarget<'_>) -> Option<(ClusterIndex, &'a Arc<Cluster>)> {
        match target {
            ClusterTarget::Index(index) => self.snapshot.cluster(*index).map(|cluster| (*index, cluster)),
            ClusterTarget::Named(name) => self.snapshot.cluster_named(std::str::from_utf8(name).ok()?),
        }
    }

    /// Whether the connection closes after the reply whose head is about to be sent. Asked once a reply: a drain that began while
    /// the request ran still tells the client.
    fn closes_after_reply(&self) -> bool {
        if self.last_request {
            return true;
        }
        let core = self.core;
        let random = core.random.borrow_mut().next_u64();
        let is_draining = core.lifecycle.closes_connections_of(self.listener, random);
        if is_draining {
            self.manager.stats.increment(core.core, HttpStat::DownstreamCxDrainClose);
        }
        is_draining
    }
}

/// What becomes of the client's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// It may bring another request.
    KeepAlive,
    /// It closes once the reply is sent.
    Close,
    /// It is reset: the reply can't be completed.
    Abort,
    /// The client is gone.
    Gone,
}

impl Exchange {
    /// Memory for one request at a time on `core`.
    pub fn new(core: &CoreState) -> Self {
        Self {
            request: RequestHead::default(),
            response: ResponseHead::default(),
            request_trailers: HeaderMap::default(),
            response_trailers: HeaderMap::default(),
            info: StreamInfo::default(),
            deadlines: Deadlines::new(&core.ring),
            retry: RetryState::default(),
            tried: Vec::new(),
            upload: Upload::default(),
            filters: filter::Running::default(),
            route_scratch: route::Scratch::default(),
            edge_scratch: edge::Scratch::default(),
            body: Vec::new(),
            text: Vec::new(),
            started_at: core.ring.now(),
            idle_timeout: None,
            informational_count: 0,
            asks_upgrade: false,
            is_canary: false,
        }
    }

    /// Runs the request whose head is in [`Self::request`].
    pub async fn run(&mut self, scope: &Scope<'_>, client: &mut ClientStream<'_>, head_bytes: usize) -> After {
        self.begin(scope, head_bytes);
        client.start_body(&self.request, &scope.manager.request_options.limits);
        let with_trailers = client.takes_trailers(scope.manager.http1.enable_trailers);
        self.upload.start(&self.request, client.request_is_complete(), with_trailers);
        if client.request_is_complete() {
            self.info.request_complete = Some(Duration::ZERO);
        }
        self.start_deadlines(scope, client);
        self.log_start(scope);
        let after = match self.answer(scope, client).await {
            Ok(after) => after,
            Err(refusal) => self.refuse(scope, client, None, &refusal),
        };
        self.finish(scope, after);
        after
    }

    /// Answers a head that may not be forwarded, and counts and logs it.
    pub fn run_refused(&mut self, scope: &Scope<'_>, client: &mut ClientStream<'_>, refusal: &Refusal<'_>) -> After {
        if refusal.flag == Some(ResponseFlag::DownstreamProtocolError) || refusal.status == 408 {
            // What was read of the head so far means nothing.
            self.request.headers.clear();
            if self.request.version != Version::Http2 {
                self.request.version = Version::Http11;
            }
        } else if self.request.headers.get_known(Known::Authority).is_some_and(<[u8]>::is_empty) {
            self.request.headers.remove_known(Known::Authority);
        }
        self.begin(scope, 0);
        self.refuse(scope, client, None, refusal);
        self.finish(scope, After::Close);
        After::Close
    }

    /// Counts and logs a request whose stream is reset instead of answered.
    pub fn run_reset(&mut self, scope: &Scope<'_>, malformed: Malformed) {
        self.request.version = Version::Http2;
        self.begin(scope, 0);
        self.note(Some(ResponseFlag::DownstreamProtocolError), malformed.details());
        scope.manager.stats.increment(scope.core.core, HttpStat::DownstreamRqTxReset);
        self.finish(scope, After::Gone);
    }

    /// Gives back the memory of a request that is over, while its reply waits for its client.
    pub fn release(&mut self) {
        self.request = RequestHead::default();
        self.response = ResponseHead::default();
        self.body = Vec::new();
        self.text = Vec::new();
    }

    fn begin(&mut self, scope: &Scope<'_>, head_bytes: usize) {
        let core = scope.core;
        self.started_at = core.ring.now();
        self.info.reset();
        self.response.headers.clear();
        self.request_trailers.clear();
        self.response_trailers.clear();
        self.tried.clear();
        self.filters.clear();
        self.informational_count = 0;
        self.asks_upgrade = false;
        let info = &mut self.info;
        info.start = Some(core.wall());
        info.stream_id = core.next_stream_id();
        info.connection_id = scope.connection.id;
        info.protocol = Some(match self.request.version {
            Version::Http10 => "HTTP/1.0",
            Version::Http11 => "HTTP/1.1",
            Version::Http2 => "HTTP/2",
        });
        info.header_bytes_received = self.request.headers.byte_count() as u64;
        info.downstream_wire_bytes_received = head_bytes as u64;
        info.downstream_local = Some(scope.connection.local.clone());
        info.downstream_direct_remote = Some(scope.connection.direct_remote.clone());
        info.downstream_remote = Some(scope.connection.remote.clone());
        info.downstream_tls = scope.connection.tls.clone();
        info.inspected_name.clone_from(&scope.connection.inspected_name);
        info.listener_name.push_str(&scope.listener.name);
        if let Some(chain) = scope.listener.chain(scope.connection.chain) {
            info.filter_chain_name.push_str(&chain.name);
        }
        let stats = &scope.manager.stats;
        stats.increment(core.core, HttpStat::DownstreamRqTotal);
        stats.increment(
            core.core,
            match self.request.version {
                Version::Http10 | Version::Http11 => HttpStat::DownstreamRqHttp1Total,
                Version::Http2 => HttpStat::DownstreamRqHttp2Total,
            },
        );
        stats.increment(core.core, HttpStat::DownstreamRqActive);
    }

    fn start_deadlines(&mut self, scope: &Scope<'_>, client: &ClientStream<'_>) {
        let now = self.started_at;
        let timeouts = &scope.manager.timeouts;
        self.deadlines.clear_all();
        self.idle_timeout = timeouts.stream_idle;
        self.deadlines.set(Deadline::StreamIdle, now, self.idle_timeout);
        self.deadlines.set(Deadline::StreamDuration, now, timeouts.stream_duration_max);
        if !client.request_is_complete() {
            self.deadlines.set(Deadline::Request, now, timeouts.request);
        }
    }

    /// Everything between the head and the end of the reply.
    async fn answer(&mut self, scope: &Scope<'_>, client: &mut ClientStream<'_>) -> Result<After, Refusal<'static>> {
        let core = scope.core;
        if self.request.expect_continue && !scope.manager.proxy_100_continue {
            // The client is told to go on at once; the field means nothing to the upstream (RFC 9110 §10.1.1).
            if !client.request_is_complete() {
                client.send_continue();
            }
            self.request.headers.remove_known(Known::Expect);
        }
        let routes = scope.manager.routes.table(scope.snapshot);
        let prepared = edge::prepare_request(
            scope.manager,
            scope.connection,
            &mut self.request.headers,
            routes.map_or(&[], |table| &table.internal_only_headers),
            &mut self.edge_scratch,
            &mut core.random.borrow_mut(),
        );
        match prepared {
            Ok(prepared) => self.info.downstream_remote = Some(prepared.remote),
            Err(refusal) => return self.refuse_at_edge(scope, client, refusal),
        }
        let random = core.random.borrow_mut().next_u64();
        let (headers, scratch) = (&self.request.headers, &mut self.route_scratch);
        let found = routes.map(|routes| routes.find(headers, random, scratch));
        self.admit_upgrade(scope, found.as_ref())?;
        scope.manager.stats.increment(core.core, HttpStat::RqTotal);
        // Envoy answers the same until a discovered table is there.
        let Some(found) = found else {
            scope.manager.stats.increment(core.core, HttpStat::NoRoute);
            return Err(Refusal::NO_ROUTE);
        };
        match found {
            Found::NoVirtualHost => {
                scope.manager.stats.increment(core.core, HttpStat::NoRoute);
                Err(Refusal::NO_ROUTE)
            }
            Found::NoRoute(virtual_host) => {
                self.info.virtual_host_name.push_str(&virtual_host.name);
                scope.manager.stats.increment(core.core, HttpStat::NoRoute);
                Err(Refusal::NO_ROUTE)
            }
            Found::NeedsTls(virtual_host) => {
                self.info.virtual_host_name.push_str(&virtual_host.name);
                scope.manager.stats.increment(core.core, HttpStat::RqDirectResponse);
                route::rewrite::tls_location(&self.request.headers, &mut self.text);
                Ok(self.send_redirect(scope, client, None, 301))
            }
            Found::Route(matched) => {
                self.info.virtual_host_name.push_str(&matched.virtual_host.name);
                self.info.route_name.push_str(&matched.route.name);
                if !scope.manager.filters.filters.is_empty() {
                    let filters = &scope.manager.filters;
                    self.filters.start(filters, core.core, &mut self.request, &mut self.info);
                    self.upload.set_length(self.request.body);
                }
                match &matched.route.action {
                    Action::Forward(forward) => self.forward(scope, client, &matched, forward).await,
                    Action::Redirect(_) => {
                        scope.manager.stats.increment(core.core, HttpStat::RqDirectResponse);
                        let keep_original = !scope.manager.router.suppress_envoy_headers;
                        let (info, request) = (&self.info, &mut self.request.headers);
                        let (text, scratch) = (&mut self.text, &mut self.route_scratch);
                        let status = matched.redirect(keep_original, info, request, text, scratch);
                        Ok(self.send_redirect(scope, client, Some(&matched), status))
                    }
                    Action::DirectResponse(_) => {
                        scope.manager.stats.increment(core.core, HttpStat::RqDirectResponse);
                        Ok(self.send_direct_response(scope, client, &matched))
                    }
                    Action::NonForwarding => {
                        scope.manager.stats.increment(core.core, HttpStat::NoCluster);
                        let matched = Some((&matched, route::Weighted::default()));
                        Ok(self.refuse(scope, client, matched, &Refusal::NO_CLUSTER))
                    }
                }
            }
        }
    }

    /// What formats and log filters may read of this request.
    fn format_context(&self, log_type: LogType, core: &CoreState) -> FormatContext<'_> {
        FormatContext {
            response: Some(&self.response.headers),
            response_trailers: Some(&self.response_trailers),
            local_reply_body: b"",
            log_type,
            now: core.wall(),
            ..FormatContext::new(&self.info, &self.request.headers)
        }
    }

    /// Whether the client's connection closes after this reply. An HTTP/2 connection has no last reply: it ends by GOAWAY.
    fn closes_after_reply(&self, scope: &Scope<'_>) -> bool {
        self.request.version != Version::Http2 && scope.closes_after_reply()
    }

    /// What the request's method says about the framing of its reply.
    fn method(&self) -> RequestMethod {
        RequestMethod::of(self.request.headers.get_known(Known::Method).unwrap_or_default())
    }

    fn encode_options(&self, scope: &Scope<'_>) -> EncodeOptions {
        EncodeOptions { case: scope.manager.http1.header_case, request_method: self.method() }
    }

    /// What the reply's `connection` field says.
    fn connection_token(&self, close: bool) -> ConnectionToken {
        match (close, self.request.version) {
            (true, _) => ConnectionToken::Close,
            (false, Version::Http10) => ConnectionToken::KeepAlive,
            (false, Version::Http11 | Version::Http2) => ConnectionToken::None,
        }
    }

    /// Time since the request began.
    fn elapsed(&self, core: &CoreState) -> Duration {
        core.ring.now().since(self.started_at)
    }

    /// Notes why the proxy answered instead of an upstream.
    fn note(&mut self, flag: Option<ResponseFlag>, details: &str) {
        if let Some(flag) = flag {
            self.info.flags.set(flag);
        }
        self.info.response_code_details.clear();
        self.info.response_code_details.push_str(details);
    }
}
