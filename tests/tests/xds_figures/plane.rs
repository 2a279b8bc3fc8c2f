//! A control plane that speaks delta xDS and sends each change once, so that ten thousand clusters cost it little.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use envoy_types::pb::envoy::service::discovery::v3 as discovery;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use envoy_types::pb::google::protobuf::Any;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

pub const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";
pub const ENDPOINTS: &str = "envoy.config.endpoint.v3.ClusterLoadAssignment";
pub const LISTENER: &str = "envoy.config.listener.v3.Listener";
pub const ROUTES: &str = "envoy.config.route.v3.RouteConfiguration";
/// In the order in which they are sent: nothing names what was not sent before.
const KINDS: [&str; 4] = [CLUSTER, ENDPOINTS, LISTENER, ROUTES];

/// A resource to set: its type, its name, its bytes.
pub type Put = (&'static str, String, Vec<u8>);

/// What there is, shared with every stream.
#[derive(Clone)]
pub struct Plane {
    world: Arc<Mutex<World>>,
    version: watch::Sender<u64>,
    refusals: Arc<Mutex<Vec<String>>>,
}

/// By type and name, each with the version that brought it.
type World = BTreeMap<&'static str, BTreeMap<String, (u64, Vec<u8>)>>;

/// What a stream asked for of one type.
#[derive(Default)]
struct Asked {
    names: BTreeSet<String>,
    /// Everything up to this version was sent.
    sent: u64,
    /// To be sent whatever their version.
    fresh: BTreeSet<String>,
    is_answered: bool,
}

impl Plane {
    pub fn new() -> Self {
        Self { world: Arc::default(), version: watch::channel(0).0, refusals: Arc::default() }
    }

    /// Sets resources; they are on their way when this returns.
    pub fn put(&self, changes: impl IntoIterator<Item = Put>) {
        let version = *self.version.borrow() + 1;
        let mut world = self.world.lock().unwrap();
        for (kind, name, body) in changes {
            world.entry(kind).or_default().insert(name, (version, body));
        }
        drop(world);
        self.version.send_replace(version);
    }

    /// Why answers were refused so far.
    pub fn refusals(&self) -> Vec<String> {
        self.refusals.lock().unwrap().clone()
    }

    /// Listens for as long as the value lives.
    pub fn serve(&self, port: u16) -> Runtime {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let plane = self.clone();
        runtime.spawn(async move {
            let service = AggregatedDiscoveryServiceServer::new(plane);
            let address = SocketAddr::from(([127, 0, 0, 1], port));
            tonic::transport::Server::builder().add_service(service).serve(address).await.unwrap();
        });
        runtime
    }

    /// What is due to a stream of `kind`, if anything is.
    fn due(&self, kind: &'static str, asked: &mut Asked, version: u64) -> Option<discovery::DeltaDiscoveryResponse> {
        let is_wildcard = kind == CLUSTER || kind == LISTENER;
        let world = self.world.lock().unwrap();
        let mut resources = Vec::new();
        for (name, (changed, body)) in world.get(kind).into_iter().flatten() {
            let is_due = *changed > asked.sent || asked.fresh.contains(name);
            if is_due && (is_wildcard || asked.names.contains(name)) {
                let body = Any { type_url: url(kind), value: body.clone() };
                let (name, version) = (name.clone(), changed.to_string());
                resources.push(discovery::Resource { name, version, resource: Some(body), ..Default::default() });
            }
        }
        drop(world);
        asked.sent = version;
        asked.fresh.clear();
        let is_first = is_wildcard && !std::mem::replace(&mut asked.is_answered, true);
        (!resources.is_empty() || is_first).then(|| discovery::DeltaDiscoveryResponse {
            system_version_info: version.to_string(),
            nonce: version.to_string(),
            type_url: url(kind),
            resources,
            ..Default::default()
        })
    }
}

fn url(kind: &str) -> String {
    format!("type.googleapis.com/{kind}")
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Plane {
    type StreamAggregatedResourcesStream =
        Pin<Box<dyn Stream<Item = Result<discovery::DiscoveryResponse, Status>> + Send>>;
    type DeltaAggregatedResourcesStream =
        Pin<Box<dyn Stream<Item = Result<discovery::DeltaDiscoveryResponse, Status>> + Send>>;

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<discovery::DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("delta alone"))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<discovery::DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (mut requests, plane) = (request.into_inner(), self.clone());
        let (sender, receiver) = mpsc::channel(16);
        tokio::spawn(async move {
            let mut versions = plane.version.subscribe();
            let mut asked: BTreeMap<&str, Asked> = BTreeMap::new();
            loop {
                let version = *versions.borrow_and_update();
                for kind in KINDS {
                    let due = asked.get_mut(kind).and_then(|asked| plane.due(kind, asked, version));
                    if let Some(answer) = due
                        && sender.send(Ok(answer)).await.is_err()
                    {
                        return;
                    }
                }
                tokio::select! {
                    changed = versions.changed() => if changed.is_err() { return },
                    request = requests.next() => {
                        let Some(Ok(request)) = request else { return };
                        if let Some(error) = request.error_detail {
                            plane.refusals.lock().unwrap().push(error.message);
                        }
                        let Some(kind) = KINDS.into_iter().find(|kind| request.type_url.ends_with(kind)) else { continue };
                        let asked = asked.entry(kind).or_default();
                        for name in request.resource_names_subscribe {
                            asked.fresh.insert(name.clone());
                            asked.names.insert(name);
                        }
                        asked.names.retain(|name| !request.resource_names_unsubscribe.contains(name));
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}
