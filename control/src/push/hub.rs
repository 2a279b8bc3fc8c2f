//! The newest view of the mesh, and the proxies that are to hear of it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use envoy_types::pb::envoy::config::core::v3::Node;
use tokio::sync::watch;
use torus_xds::serving::{Resource, Wanted, url};

use super::client::{Client, ClientStatus};
use crate::serve::metrics::Metrics;

/// One state of the mesh, never changed once it is published.
pub trait View: Send + Sync {
    /// Whether this client can be served, or why not.
    fn admit(&self, node: &Node) -> Result<(), String>;

    /// The resources of a type for a client: all that concern it, or those named that exist.
    fn resources(&self, node: &Node, type_url: &str, wanted: &Wanted) -> Vec<Resource>;

    /// A debug page of this view by its name under `/debug/`, as JSON.
    fn page(&self, name: &str) -> Option<serde_json::Value>;
}

/// How much of the mesh changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Addresses of services only: nothing but endpoints is computed and sent.
    Endpoints,
    Anything,
}

/// A view with its number.
#[derive(Clone)]
pub struct Generation {
    pub number: u64,
    /// The newest generation that changed more than endpoints.
    pub anything: u64,
    pub since: Instant,
    pub view: Arc<dyn View>,
}

impl Generation {
    /// Whether a client that saw generation `seen` must look at `type_url` again.
    pub fn concerns(&self, seen: u64, type_url: &str) -> bool {
        self.anything > seen || (self.number > seen && type_url == url::ENDPOINTS)
    }

    /// How the number is on the wire.
    pub fn version(&self) -> String {
        self.number.to_string()
    }
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generation").field("number", &self.number).finish_non_exhaustive()
    }
}

/// Where views are published and clients are known.
pub struct Hub {
    current: watch::Sender<Generation>,
    shutdown: watch::Sender<bool>,
    clients: Mutex<BTreeMap<u64, Arc<Client>>>,
    client_count: AtomicU64,
    pub metrics: Metrics,
}

impl Hub {
    /// A hub whose first view is `view`.
    pub fn new(view: Arc<dyn View>) -> Self {
        let first = Generation { number: 1, anything: 1, since: Instant::now(), view };
        Self {
            current: watch::Sender::new(first),
            shutdown: watch::Sender::new(false),
            clients: Mutex::default(),
            client_count: AtomicU64::new(0),
            metrics: Metrics::default(),
        }
    }

    /// Makes `view` the newest one; every client hears of it.
    pub fn publish(&self, view: Arc<dyn View>, change: Change) {
        self.metrics.on_publish(change);
        self.current.send_modify(|generation| {
            let number = generation.number + 1;
            let anything = if change == Change::Anything { number } else { generation.anything };
            *generation = Generation { number, anything, since: Instant::now(), view };
        });
    }

    /// The newest generation.
    pub fn current(&self) -> Generation {
        self.current.borrow().clone()
    }

    /// Tells of every generation from now on.
    pub fn subscribe(&self) -> watch::Receiver<Generation> {
        self.current.subscribe()
    }

    /// Ends all streams; clients go to another replica.
    pub fn shut_down(&self) {
        self.shutdown.send_replace(true);
    }

    /// Becomes true at the end.
    pub fn shutdown(&self) -> watch::Receiver<bool> {
        self.shutdown.subscribe()
    }

    /// Registers a client; it is known until the guard is dropped.
    pub fn connect(self: &Arc<Self>, node: Node) -> Connected {
        let number = self.client_count.fetch_add(1, Ordering::Relaxed);
        let client = Arc::new(Client::new(node));
        self.lock().insert(number, client.clone());
        Connected { hub: self.clone(), number, client }
    }

    /// What every connected client was sent and answered, in the order of connecting.
    pub fn clients(&self) -> Vec<(Arc<Client>, ClientStatus)> {
        let clients: Vec<Arc<Client>> = self.lock().values().cloned().collect();
        clients.into_iter().map(|client| (client.clone(), client.status())).collect()
    }

    /// How many clients are connected.
    pub fn client_count(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Arc<Client>>> {
        // A map of handles is whole even if a holder of the lock panicked.
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A client's place in the hub.
pub struct Connected {
    hub: Arc<Hub>,
    number: u64,
    pub client: Arc<Client>,
}

impl Connected {
    /// A number that no other stream of this process has.
    pub fn number(&self) -> u64 {
        self.number
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.hub.lock().remove(&self.number);
    }
}
