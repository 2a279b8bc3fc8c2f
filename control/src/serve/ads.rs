//! Aggregated discovery in both variants: one task a stream, which owns the stream's state.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3 as discovery;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::AggregatedDiscoveryService;
use envoy_types::pb::google::protobuf::Any;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tonic::{Code, Request, Response, Status, Streaming};
use torus_xds::serving::{Ask, Outcome, Push, Session, Variant, Wanted, format_version};

use super::incoming::Peer;
use crate::push::Hub;

/// The service; all streams share the hub.
#[derive(Clone)]
pub struct Ads {
    hub: Arc<Hub>,
    identity: String,
    age_max: Option<Duration>,
}

impl Ads {
    /// Serves what `hub` publishes. A stream older than `age_max` is ended, so that clients spread over replicas again.
    pub fn new(hub: Arc<Hub>, identity: String, age_max: Option<Duration>) -> Self {
        Self { hub, identity, age_max }
    }

    fn start<W: Wire>(&self, request: Request<Streaming<W::Request>>) -> Answers<W::Response> {
        let peer = request.extensions().get::<Peer>().cloned().unwrap_or_default();
        let requests = request.into_inner();
        let (sender, receiver) = mpsc::channel(ANSWERS_WAITING_MAX);
        let (stream, hub) = (self.clone(), self.hub.clone());
        tokio::spawn(async move {
            let address = peer.address.map(|address| address.to_string()).unwrap_or_default();
            if let Err(status) = stream.run::<W>(requests, peer, &sender).await {
                match status.code() {
                    // What the client did wrong is for the operator to mend.
                    Code::InvalidArgument | Code::PermissionDenied | Code::Internal | Code::OutOfRange => {
                        hub.metrics.on_internal_error();
                        tracing::warn!("xDS stream of {address} ended: {}", status.message());
                    }
                    _ => tracing::info!("xDS stream of {address} ended: {}", status.message()),
                }
                // The client may be gone already.
                drop(sender.send(Err(status)).await);
            }
        });
        Box::pin(Receiver(receiver))
    }

    async fn run<W: Wire>(
        self,
        mut requests: Streaming<W::Request>,
        peer: Peer,
        answers: &mpsc::Sender<Result<W::Response, Status>>,
    ) -> Result<(), Status> {
        let Some(first) = requests.message().await? else { return Ok(()) };
        let mut first = W::read(first);
        let node = first.node.take().ok_or_else(|| Status::invalid_argument("the first request carries no node"))?;
        self.hub.current().view.admit(&node).map_err(Status::invalid_argument)?;
        peer.may_speak_for(&node).map_err(Status::permission_denied)?;
        let connected = self.hub.connect(node, peer);
        let client = connected.client.clone();
        tracing::info!("proxy {} connected", client.node.id);
        let mut generations = self.hub.subscribe();
        let mut generation = generations.borrow_and_update().clone();
        let mut shutdown = self.hub.shutdown();
        let mut session = Session::new(W::VARIANT);
        // A part more for each stream, so that a thousand of one age do not end in one moment.
        let age = self.age_max.map(|age| age + age.mul_f64((connected.number() % 100) as f64 / 400.0));
        let ended = tokio::time::sleep(age.unwrap_or(Duration::from_secs(u32::MAX.into())));
        tokio::pin!(ended);
        self.take(&mut session, &client, first);
        // A place among the streams that are sent much at once, and until when it is kept without an answer.
        let mut place = None;
        let mut kept_until = tokio::time::Instant::now();
        loop {
            while let Some((type_url, wanted)) = session.next_due() {
                if place.is_none() && is_much(&wanted) {
                    place = self.hub.place_for_much().await;
                }
                kept_until = tokio::time::Instant::now() + PLACE_KEPT_MAX;
                let resources = generation.view.resources(&client.node, &type_url, &wanted);
                let Some(push) = session.push(&type_url, resources) else { continue };
                self.hub.metrics.on_push(&type_url);
                let version = generation.version();
                client.note(
                    &type_url,
                    || wanted.clone(),
                    |status| {
                        status.sent_version.clone_from(&version);
                        status.sent_nonce = push.nonce.to_string();
                        status.sent_at = Some(SystemTime::now());
                    },
                );
                tracing::debug!(
                    "{}: push {type_url} #{} with {} resources, {} removed",
                    client.node.id,
                    push.nonce,
                    push.resources.len(),
                    push.removed.len()
                );
                let answer = W::write(&self.identity, &type_url, version, push);
                if answers.send(Ok(answer)).await.is_err() {
                    return Ok(());
                }
            }
            if session.types().all(|(_, subscription)| subscription.outstanding().is_none()) {
                place = None;
            }
            tokio::select! {
                () = tokio::time::sleep_until(kept_until), if place.is_some() => place = None,
                request = requests.message() => match request? {
                    Some(request) => {
                        let outcome = self.take(&mut session, &client, W::read(request));
                        if outcome == Outcome::Accepted {
                            self.hub.metrics.on_accepted(generation.since.elapsed());
                        }
                    }
                    None => return Ok(()),
                },
                changed = generations.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    let seen = generation.number;
                    generation = generations.borrow_and_update().clone();
                    generation.note_changes(seen, client.node.id.starts_with("router~"), &mut session);
                }
                _ = shutdown.wait_for(|shutdown| *shutdown) => {
                    return Err(Status::unavailable("torusd is shutting down"));
                }
                () = &mut ended => return Err(Status::unavailable("the stream reached its maximum age; connect again")),
            }
        }
    }

    fn take(&self, session: &mut Session, client: &crate::push::Client, heard: Heard) -> Outcome {
        let Heard { type_url, ask, .. } = heard;
        let refusal = ask.refusal.clone();
        let nonce = ask.nonce.to_string();
        let outcome = session.on_request(&type_url, ask);
        let Some(subscription) = session.get(&type_url) else { return outcome };
        let wanted = || subscription.wanted();
        client.note(&type_url, wanted, |status| {
            status.wanted = wanted();
            match outcome {
                Outcome::Accepted => {
                    status.acked_version.clone_from(&status.sent_version);
                    status.acked_nonce = nonce;
                    status.refusal = None;
                }
                Outcome::Refused => status.refusal = refusal.as_deref().map(str::to_owned),
                Outcome::Subscribed | Outcome::Stale => {}
            }
        });
        if let (Outcome::Refused, Some(reason)) = (&outcome, &refusal) {
            self.hub.metrics.on_refused(&type_url);
            tracing::warn!("proxy {} refused {type_url}: {reason}", client.node.id);
        }
        outcome
    }
}

/// Whether a push of this may be large.
fn is_much(wanted: &Wanted) -> bool {
    match wanted {
        Wanted::All => true,
        Wanted::Names(names) => names.len() > 100,
    }
}

/// A request, whichever protocol it is of.
struct Heard {
    type_url: String,
    node: Option<Node>,
    ask: Ask,
}

/// What differs between the protocols.
trait Wire: 'static {
    type Request: Send + 'static;
    type Response: Send + 'static;
    const VARIANT: Variant;
    fn read(request: Self::Request) -> Heard;
    fn write(identity: &str, type_url: &str, version: String, push: Push) -> Self::Response;
}

struct Sotw;
struct Delta;

impl Wire for Sotw {
    type Request = discovery::DiscoveryRequest;
    type Response = discovery::DiscoveryResponse;
    const VARIANT: Variant = Variant::Sotw;

    fn read(request: Self::Request) -> Heard {
        let ask = Ask {
            names: request.resource_names.into_iter().map(Into::into).collect(),
            nonce: request.response_nonce.into(),
            refusal: request.error_detail.map(|error| error.message.into()),
            ..Ask::default()
        };
        Heard { type_url: request.type_url, node: request.node, ask }
    }

    fn write(identity: &str, type_url: &str, version: String, push: Push) -> Self::Response {
        discovery::DiscoveryResponse {
            version_info: version,
            resources: push
                .resources
                .into_iter()
                .map(|resource| Any { type_url: type_url.to_owned(), value: resource.body })
                .collect(),
            type_url: type_url.to_owned(),
            nonce: push.nonce.into(),
            control_plane: Some(control_plane(identity)),
            ..Default::default()
        }
    }
}

impl Wire for Delta {
    type Request = discovery::DeltaDiscoveryRequest;
    type Response = discovery::DeltaDiscoveryResponse;
    const VARIANT: Variant = Variant::Delta;

    fn read(request: Self::Request) -> Heard {
        let ask = Ask {
            names: request.resource_names_subscribe.into_iter().map(Into::into).collect(),
            unsubscribed: request.resource_names_unsubscribe.into_iter().map(Into::into).collect(),
            held: request
                .initial_resource_versions
                .into_iter()
                .map(|(name, version)| (name.into(), version.into()))
                .collect(),
            nonce: request.response_nonce.into(),
            refusal: request.error_detail.map(|error| error.message.into()),
        };
        Heard { type_url: request.type_url, node: request.node, ask }
    }

    fn write(identity: &str, type_url: &str, version: String, push: Push) -> Self::Response {
        let resource = |resource: torus_xds::serving::Resource| discovery::Resource {
            name: resource.name.into(),
            version: format_version(resource.version),
            resource: Some(Any { type_url: type_url.to_owned(), value: resource.body }),
            ..Default::default()
        };
        discovery::DeltaDiscoveryResponse {
            system_version_info: version,
            resources: push.resources.into_iter().map(resource).collect(),
            type_url: type_url.to_owned(),
            removed_resources: push.removed.into_iter().map(Into::into).collect(),
            nonce: push.nonce.into(),
            control_plane: Some(control_plane(identity)),
            ..Default::default()
        }
    }
}

fn control_plane(identity: &str) -> envoy_types::pb::envoy::config::core::v3::ControlPlane {
    envoy_types::pb::envoy::config::core::v3::ControlPlane { identifier: identity.to_owned() }
}

type Answers<R> = Pin<Box<dyn Stream<Item = Result<R, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Ads {
    type StreamAggregatedResourcesStream = Answers<discovery::DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Answers<discovery::DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<discovery::DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Ok(Response::new(self.start::<Sotw>(request)))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<discovery::DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        Ok(Response::new(self.start::<Delta>(request)))
    }
}

/// The receiving half as a stream.
struct Receiver<T>(mpsc::Receiver<T>);

impl<T> Stream for Receiver<T> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut std::task::Context<'_>) -> std::task::Poll<Option<T>> {
        self.0.poll_recv(context)
    }
}

/// Pushes that the transport has not taken yet; one more waits in the stream's task.
const ANSWERS_WAITING_MAX: usize = 2;
/// A client that takes longer than this to answer is on a slow way, or never answers: others need not wait for it.
const PLACE_KEPT_MAX: Duration = Duration::from_millis(500);
