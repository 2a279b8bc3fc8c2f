//! What the control plane listens on: xDS for proxies, HTTP for operators.

pub mod ads;
pub mod csds;
pub mod http;
pub mod incoming;
pub mod metrics;
pub mod tls;

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer;
use envoy_types::pb::envoy::service::status::v3::client_status_discovery_service_server::ClientStatusDiscoveryServiceServer;
use tokio::net::TcpListener;
use tonic::transport::Server;

use crate::push::Hub;

/// Why serving ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("xDS server: {0}")]
    Xds(#[from] tonic::transport::Error),
    #[error("HTTP server: {0}")]
    Http(#[from] std::io::Error),
}

/// What is served on.
pub struct Ports {
    /// xDS without TLS.
    pub xds: TcpListener,
    /// xDS under TLS.
    pub xds_tls: Option<(TcpListener, Arc<tls::Tls>)>,
    /// HTTP for operators.
    pub operator: TcpListener,
}

/// Serves what `hub` publishes on all `ports` until the hub is shut down and every client has left. Streams older than `age_max` end,
/// so that clients spread over replicas again.
pub async fn serve(hub: Arc<Hub>, ports: Ports, age_max: Option<Duration>) -> Result<(), ServeError> {
    let identity = format!("{{\"Component\":\"torusd\",\"Info\":{{\"version\":\"{}\"}}}}", env!("CARGO_PKG_VERSION"));
    let ads = AggregatedDiscoveryServiceServer::new(ads::Ads::new(hub.clone(), identity, age_max));
    let csds = ClientStatusDiscoveryServiceServer::new(csds::Csds::new(hub.clone()));
    let Ports { xds, xds_tls, operator } = ports;
    let followed = xds_tls.as_ref().map(|(_, tls)| tls.clone());
    let connections = incoming::incoming(xds, xds_tls, || ended(hub.clone()));
    let xds = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .add_service(ads.max_decoding_message_size(REQUEST_BYTES_MAX))
        .add_service(csds)
        .serve_with_incoming_shutdown(connections, ended(hub.clone()));
    let operator = axum::serve(operator, http::router(hub.clone())).with_graceful_shutdown(ended(hub));
    let served = async {
        tokio::try_join!(async { xds.await.map_err(ServeError::Xds) }, async {
            operator.await.map_err(ServeError::Http)
        })
    };
    let follow = async {
        match followed {
            Some(tls) => tls.follow().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        served = served => served.map(|_| ()),
        () = follow => Ok(()),
    }
}

async fn ended(hub: Arc<Hub>) {
    // The sender lives in the hub, so this ends with the word and no sooner.
    let mut shutdown = hub.shutdown();
    while !*shutdown.borrow_and_update() {
        if shutdown.changed().await.is_err() {
            return;
        }
    }
}

/// Finds clients that are gone without a word, as istiod does.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// Requests name resources; Envoy's for 10,000 clusters are about 1 MB.
const REQUEST_BYTES_MAX: usize = 16 << 20;
