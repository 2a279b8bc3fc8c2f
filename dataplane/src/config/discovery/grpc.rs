//! A stream to a control plane, of all discovery or of one kind: connects, speaks, and connects again. What is said is decided elsewhere.

use std::time::{Duration, Instant};

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::service::discovery::v3 as discovery;
use envoy_types::pb::google::protobuf::Any;
use envoy_types::pb::google::rpc;
use prost::{Message as _, Name as _};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic_prost::ProstCodec;
use torus_xds::subscription::{BackOff, Body, Protocol, Request, Resource, Response};
use torus_xds::wire;

use super::connect::{self, Target};
use super::source::SourceIndex;
use crate::config::parse::context::type_name;
use crate::worker::random::Random;

/// Whom to ask, and how.
#[derive(Clone, Debug)]
pub struct GrpcPlan {
    /// State of the world or delta.
    pub protocol: Protocol,
    /// Of the server.
    pub method: &'static str,
    /// Says who asks.
    pub node: core::Node,
}

/// The method of the stream of all discovery.
pub fn aggregated_method(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Sotw => "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources",
        Protocol::Delta => "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
    }
}

/// What happens on the stream.
pub enum Event {
    /// A connection is there; requests go into this.
    Opened(mpsc::UnboundedSender<Request>),
    /// An answer with its type URL, and when it came.
    Received(Box<str>, Response, Instant),
    /// A file that holds nothing that can be used, for this reason.
    Unreadable(String),
    /// The stream is gone, or could not be opened, for this reason.
    Ended(String),
}

/// Keeps a stream to one of `targets`, one after the other where they fail. Ends when nobody listens to `events`.
pub async fn run(
    plan: GrpcPlan,
    targets: impl Fn() -> Vec<Target>,
    source: SourceIndex,
    events: mpsc::Sender<(SourceIndex, Event)>,
) {
    let mut back_off = BackOff::new(BACK_OFF_BASE, BACK_OFF_MAX);
    let mut random = Random::from_entropy();
    let mut turn = 0usize;
    loop {
        let targets = targets();
        let target = targets.get(turn.checked_rem(targets.len()).unwrap_or(0));
        let outcome = match target {
            None => Err("its cluster has no endpoint".to_owned()),
            Some(target) => follow(&plan, target, source, &events, &mut back_off).await,
        };
        let reason = outcome.err().unwrap_or_else(|| "the server ended the stream".to_owned());
        if events.send((source, Event::Ended(reason))).await.is_err() {
            return;
        }
        turn = turn.wrapping_add(1);
        tokio::time::sleep(back_off.next(random.next_u64())).await;
    }
}

async fn follow(
    plan: &GrpcPlan,
    target: &Target,
    source: SourceIndex,
    events: &mpsc::Sender<(SourceIndex, Event)>,
    back_off: &mut BackOff,
) -> Result<(), String> {
    let channel = connect::connect(target).await?;
    let address = &target.place;
    let mut client = Grpc::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let failed = |status: tonic::Status| format!("{address}: {:?}: {}", status.code(), status.message());
    client.ready().await.map_err(|error| format!("{address}: {error}"))?;
    let (requests, queue) = mpsc::unbounded_channel();
    let tell = async |event: Event| events.send((source, event)).await.map_err(|error| error.to_string());
    // Many servers answer the call itself with their first response only, so that requests go first.
    tell(Event::Opened(requests)).await?;
    let queue = UnboundedReceiverStream::new(queue);
    let node = plan.node.clone();
    let method = PathAndQuery::from_static(plan.method);
    match plan.protocol {
        Protocol::Sotw => {
            let requests = tonic::Request::new(queue.map(move |request| sotw_request(request, &node)));
            let answers = client.streaming(requests, method, ProstCodec::default()).await.map_err(failed)?;
            let mut answers = answers.into_inner();
            while let Some(answer) = answers.message().await.map_err(failed)? {
                back_off.reset();
                let received = Instant::now();
                let (type_url, response) = sotw_response(answer);
                tell(Event::Received(type_url, response, received)).await?;
            }
        }
        Protocol::Delta => {
            let requests = tonic::Request::new(queue.map(move |request| delta_request(request, &node)));
            let answers = client.streaming(requests, method, ProstCodec::default()).await.map_err(failed)?;
            let mut answers = answers.into_inner();
            while let Some(answer) = answers.message().await.map_err(failed)? {
                back_off.reset();
                let received = Instant::now();
                let (type_url, response) = delta_response(answer);
                tell(Event::Received(type_url, response, received)).await?;
            }
        }
    }
    Ok(())
}

fn texts(names: Vec<Box<str>>) -> Vec<String> {
    names.into_iter().map(Into::into).collect()
}

fn sotw_request(request: Request, node: &core::Node) -> discovery::DiscoveryRequest {
    let (version, names) = match request.ask.body {
        Body::Sotw { version, resource_names } => (version, resource_names),
        Body::Delta { subscribe, .. } => ("".into(), subscribe),
    };
    discovery::DiscoveryRequest {
        version_info: version.into(),
        node: request.with_node.then(|| node.clone()),
        resource_names: texts(names),
        type_url: request.type_url.to_string(),
        response_nonce: request.ask.nonce.into(),
        error_detail: request.ask.refusal.map(|refusal| status(refusal.message)),
        ..discovery::DiscoveryRequest::default()
    }
}

fn delta_request(request: Request, node: &core::Node) -> discovery::DeltaDiscoveryRequest {
    let (subscribe, unsubscribe, versions) = match request.ask.body {
        Body::Delta { subscribe, unsubscribe, initial_versions } => (subscribe, unsubscribe, initial_versions),
        Body::Sotw { resource_names, .. } => (resource_names, Vec::new(), Vec::new()),
    };
    discovery::DeltaDiscoveryRequest {
        node: request.with_node.then(|| node.clone()),
        type_url: request.type_url.to_string(),
        resource_names_subscribe: texts(subscribe),
        resource_names_unsubscribe: texts(unsubscribe),
        initial_resource_versions: versions.into_iter().map(|(name, version)| (name.into(), version.into())).collect(),
        response_nonce: request.ask.nonce.into(),
        error_detail: request.ask.refusal.map(|refusal| status(refusal.message)),
        ..discovery::DeltaDiscoveryRequest::default()
    }
}

fn status(message: String) -> rpc::Status {
    rpc::Status { code: INVALID_ARGUMENT, message, details: Vec::new() }
}

fn sotw_response(answer: discovery::DiscoveryResponse) -> (Box<str>, Response) {
    let response = Response {
        version: answer.version_info.into(),
        nonce: answer.nonce.into(),
        resources: answer.resources.into_iter().map(unwrapped).collect(),
        removed: Vec::new(),
    };
    (answer.type_url.into(), response)
}

fn delta_response(answer: discovery::DeltaDiscoveryResponse) -> (Box<str>, Response) {
    let response = Response {
        version: answer.system_version_info.into(),
        nonce: answer.nonce.into(),
        resources: answer.resources.into_iter().map(resource).collect(),
        removed: answer.removed_resources.into_iter().map(Into::into).collect(),
    };
    (answer.type_url.into(), response)
}

/// A resource of a SotW answer, which may come in a wrapper that names it.
pub(super) fn unwrapped(packed: Any) -> Resource {
    if type_name(&packed.type_url) == discovery::Resource::full_name()
        && let Ok(wrapper) = discovery::Resource::decode(packed.value.as_slice())
    {
        return resource(wrapper);
    }
    // The name is the first field of all types that are asked for. Later values of a field win (protobuf.dev, "Encoding").
    let name = wire::length_values(&packed.value, NAME).last().unwrap_or_default();
    Resource {
        name: String::from_utf8_lossy(name).into(),
        type_url: packed.type_url.into(),
        body: Some(packed.value),
        ..Resource::default()
    }
}

fn resource(wrapper: discovery::Resource) -> Resource {
    let ttl = wrapper.ttl.and_then(|ttl| {
        Some(Duration::new(u64::try_from(ttl.seconds).ok()?, u32::try_from(ttl.nanos).ok().filter(|it| *it < NANOS)?))
    });
    let (type_url, body) = wrapper.resource.map_or(("".into(), None), |it| (it.type_url.into(), Some(it.value)));
    Resource { name: wrapper.name.into(), version: wrapper.version.into(), type_url, body, ttl }
}

/// Nanoseconds of a second.
const NANOS: u32 = 1_000_000_000;
/// Below which the first wait is.
const BACK_OFF_BASE: Duration = Duration::from_millis(500);
/// A control plane that is back is found within this.
const BACK_OFF_MAX: Duration = Duration::from_secs(5);
/// Bytes of one answer.
const MESSAGE_BYTES_MAX: usize = 256 << 20;
/// Source: google/rpc/code.proto.
const INVALID_ARGUMENT: i32 = 3;
/// Field number of the name in Cluster, ClusterLoadAssignment, Listener and RouteConfiguration.
const NAME: u32 = 1;
