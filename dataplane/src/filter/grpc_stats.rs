//! `envoy.filters.http.grpc_stats`: counts calls, their messages and how they ended, for each cluster and, where asked for, method.

use std::collections::HashSet;
use std::sync::Arc;

use envoy_types::pb::envoy::extensions::filters::http::grpc_stats::v3 as proto;
use torus_codec::{BodyLength, HeaderMap, RequestHead, ResponseHead};

use super::grpc::{GrpcMethod, GrpcStatsByName, MessageMeter, count_status};
use crate::config::parse::ParseContext;
use crate::config::reject::Refused;
use crate::route::parameters::is_grpc;
use crate::telemetry::counters::{Core, Stats};
use crate::telemetry::names::GrpcStat;
use crate::telemetry::registry::Registry;
use crate::telemetry::stream_info::StreamInfo;

/// The filter's configuration.
#[derive(Debug)]
pub struct GrpcStats {
    methods: Methods,
    upstream_time: bool,
    /// `a.b.Service` is named `a_b_Service`.
    replaces_dots: bool,
}

/// Which methods have stats of their own.
#[derive(Debug)]
enum Methods {
    None,
    All,
    /// Service and method.
    Listed(HashSet<(Box<str>, Box<str>)>),
}

/// One call.
pub struct GrpcStatsRequest {
    config: Arc<GrpcStats>,
    core: Core,
    stats: Option<Arc<Stats<GrpcStat>>>,
    sent: MessageMeter,
    received: MessageMeter,
    /// The reply is gRPC too.
    counts_reply: bool,
}

impl GrpcStats {
    /// Compiles `config`; `context` stands at the message.
    pub fn parse(config: &proto::FilterConfig, context: &mut ParseContext) -> Result<Self, Refused> {
        use proto::filter_config::PerMethodStatSpecifier;
        let methods = match &config.per_method_stat_specifier {
            None => Methods::None,
            Some(PerMethodStatSpecifier::StatsForAllMethods(all)) if all.value => Methods::All,
            Some(PerMethodStatSpecifier::StatsForAllMethods(_)) => Methods::None,
            Some(PerMethodStatSpecifier::IndividualMethodStatsAllowlist(list)) => {
                context.within("individual_method_stats_allowlist", |context| {
                    let services = context.each("services", &list.services, |service, context| {
                        let name = context.non_empty("name", &service.name)?;
                        if service.method_names.is_empty() {
                            return Err(context.reject("method_names", "must not be empty"));
                        }
                        let methods = service.method_names.iter();
                        Ok(methods.map(|method| (name.into(), method.as_str().into())).collect::<Vec<_>>())
                    })?;
                    Ok(Methods::Listed(services.into_iter().flatten().collect()))
                })?
            }
        };
        Ok(Self {
            methods,
            upstream_time: config.enable_upstream_stats,
            replaces_dots: config.replace_dots_in_grpc_service_name,
        })
    }

    /// Begins a request, where it is gRPC.
    pub fn start(self: &Arc<Self>, core: Core, request: &RequestHead) -> Option<GrpcStatsRequest> {
        is_grpc(&request.headers).then(|| GrpcStatsRequest {
            config: Arc::clone(self),
            core,
            stats: None,
            sent: MessageMeter::default(),
            received: MessageMeter::default(),
            counts_reply: false,
        })
    }
}

impl GrpcStatsRequest {
    pub(super) fn on_cluster(
        &mut self,
        stats: &mut GrpcStatsByName,
        registry: &Registry,
        cluster: &str,
        method: Option<GrpcMethod<'_>>,
    ) {
        let Some(method) = method else { return };
        let own = match &self.config.methods {
            Methods::None => None,
            Methods::All if self.config.replaces_dots => {
                let service = method.service.replace('.', "_");
                let method = Some(GrpcMethod { service: &service, ..method });
                self.stats = Some(stats.get(registry, cluster, "grpc", method));
                return;
            }
            Methods::All => Some(method),
            Methods::Listed(list) => list.contains(&(method.service.into(), method.name.into())).then_some(method),
        };
        self.stats = Some(stats.get(registry, cluster, "grpc", own));
    }

    pub(super) fn on_request_data(&mut self, data: &[u8]) {
        let count = self.sent.begun_in(data);
        self.add(GrpcStat::RequestMessageCount, count);
    }

    pub(super) fn on_response(&mut self, response: &ResponseHead) {
        self.counts_reply = is_grpc_reply(response);
        self.on_trailers(&response.headers);
    }

    pub(super) fn on_response_data(&mut self, data: &[u8]) {
        if self.counts_reply {
            let count = self.received.begun_in(data);
            self.add(GrpcStat::ResponseMessageCount, count);
        }
    }

    /// Fields or trailers that may tell how the call ended.
    pub(super) fn on_trailers(&mut self, fields: &HeaderMap) {
        if let Some(stats) = &self.stats {
            count_status(self.core, stats, fields);
        }
    }

    pub(super) fn on_finish(&self, info: &StreamInfo) {
        if !self.config.upstream_time {
            return;
        }
        let times = (&self.stats, info.upstream_last_sent, info.upstream_last_received);
        if let (Some(stats), Some(sent), Some(received)) = times {
            let milliseconds = received.saturating_sub(sent).as_millis() as u64;
            stats.record(self.core, GrpcStat::UpstreamRqTime, milliseconds);
        }
    }

    fn add(&self, stat: GrpcStat, count: u64) {
        if let Some(stats) = self.stats.as_ref().filter(|_| count > 0) {
            stats.add(self.core, stat, count);
        }
    }
}

/// Whether a reply is one of gRPC: a status alone, or 200 with its content type.
pub(super) fn is_grpc_reply(response: &ResponseHead) -> bool {
    if response.body == BodyLength::Empty {
        return response.headers.get_known(torus_codec::Known::GrpcStatus).is_some();
    }
    response.status == 200 && is_grpc(&response.headers)
}
