//! Client status: what every connected proxy has of what it was sent, from the control plane's side.

use std::pin::Pin;
use std::sync::Arc;

use envoy_types::pb::envoy::admin::v3::ClientResourceStatus;
use envoy_types::pb::envoy::admin::v3::UpdateFailureState;
use envoy_types::pb::envoy::service::status::v3 as status;
use envoy_types::pb::envoy::service::status::v3::client_config::GenericXdsConfig;
use envoy_types::pb::envoy::service::status::v3::client_status_discovery_service_server::ClientStatusDiscoveryService;
use envoy_types::pb::google::protobuf::Any;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};
use torus_xds::MessageType;

use crate::push::{Client, ClientStatus, Hub, TypeStatus};

/// The service.
pub struct Csds {
    hub: Arc<Hub>,
}

impl Csds {
    /// Tells of the clients of `hub`.
    pub fn new(hub: Arc<Hub>) -> Self {
        Self { hub }
    }
}

/// The clients as CSDS tells of them, without private keys; no `node` means all.
pub fn report(hub: &Hub, node: Option<&str>, with_resources: bool) -> status::ClientStatusResponse {
    let view = hub.current().view;
    let config = hub
        .clients()
        .into_iter()
        .filter(|(client, _)| node.is_none_or(|node| client.node.id == node))
        .map(|(client, state)| client_config(&*view, &client, &state, with_resources))
        .collect();
    status::ClientStatusResponse { config }
}

fn client_config(
    view: &dyn crate::push::View,
    client: &Client,
    state: &ClientStatus,
    with_resources: bool,
) -> status::ClientConfig {
    let of_type = |(type_url, state): (&String, &TypeStatus)| -> Vec<GenericXdsConfig> {
        let mut resources = view.resources(&client.node, type_url, &state.wanted);
        resources.sort_by(|one, other| one.name.cmp(&other.name));
        resources
            .into_iter()
            .map(|resource| GenericXdsConfig {
                type_url: type_url.clone(),
                name: resource.name.into(),
                version_info: state.acked_version.clone(),
                xds_config: with_resources.then(|| shown(type_url, &resource.body)),
                last_updated: state.sent_at.map(timestamp),
                config_status: config_status(state).into(),
                client_status: client_status(state).into(),
                error_state: state.refusal.as_ref().map(|reason| UpdateFailureState {
                    details: reason.clone(),
                    version_info: state.sent_version.clone(),
                    ..Default::default()
                }),
                ..Default::default()
            })
            .collect()
    };
    status::ClientConfig {
        node: Some(client.node.clone()),
        generic_xds_configs: state.types.iter().flat_map(of_type).collect(),
        ..Default::default()
    }
}

/// A resource without its secrets; of a type that is not known, whose secrets cannot be told, nothing but the type.
fn shown(type_url: &str, body: &[u8]) -> Any {
    let message = MessageType::from_type_url(type_url);
    let value = message.map(|message| torus_xds::redacted(message, body)).unwrap_or_default();
    Any { type_url: type_url.to_owned(), value }
}

fn config_status(state: &TypeStatus) -> status::ConfigStatus {
    match state.word() {
        "SYNCED" => status::ConfigStatus::Synced,
        "STALE" => status::ConfigStatus::Stale,
        "ERROR" => status::ConfigStatus::Error,
        _ => status::ConfigStatus::NotSent,
    }
}

fn client_status(state: &TypeStatus) -> ClientResourceStatus {
    match state.word() {
        "SYNCED" => ClientResourceStatus::Acked,
        "ERROR" => ClientResourceStatus::Nacked,
        _ => ClientResourceStatus::Requested,
    }
}

fn timestamp(time: std::time::SystemTime) -> envoy_types::pb::google::protobuf::Timestamp {
    let since = time.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    envoy_types::pb::google::protobuf::Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or_default(),
    }
}

#[tonic::async_trait]
impl ClientStatusDiscoveryService for Csds {
    type StreamClientStatusStream = Pin<Box<dyn Stream<Item = Result<status::ClientStatusResponse, Status>> + Send>>;

    async fn stream_client_status(
        &self,
        request: Request<Streaming<status::ClientStatusRequest>>,
    ) -> Result<Response<Self::StreamClientStatusStream>, Status> {
        let hub = self.hub.clone();
        let answers = request.into_inner().map(move |request| {
            let request = request?;
            Ok(report(&hub, None, !request.exclude_resource_contents))
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn fetch_client_status(
        &self,
        request: Request<status::ClientStatusRequest>,
    ) -> Result<Response<status::ClientStatusResponse>, Status> {
        Ok(Response::new(report(&self.hub, None, !request.get_ref().exclude_resource_contents)))
    }
}
