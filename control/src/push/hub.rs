//! The newest view of the mesh, and the proxies that are to hear of it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use envoy_types::pb::envoy::config::core::v3::Node;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use torus_xds::serving::{Resource, Session, Wanted, url};

use super::client::{Client, ClientStatus};
use crate::serve::incoming::Peer;
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Addresses of services only: nothing but the assignments of these names is computed and sent.
    Endpoints(Vec<Box<str>>),
    /// Virtual services only, which decide what gateways are sent, and sidecars where one is for the `mesh`.
    Routes {
        mesh: bool,
    },
    Anything,
}

/// The number of a generation, and which assignments may differ from the one before.
type EndpointChange = (u64, Arc<[Box<str>]>);

/// A view with its number.
#[derive(Clone)]
pub struct Generation {
    pub number: u64,
    /// The newest generation that changed more than endpoints.
    pub anything: u64,
    /// The newest generation that changed virtual services, and the newest that changed one for sidecars.
    routes: u64,
    mesh_routes: u64,
    /// The newest generations after the last that changed anything.
    endpoints: Arc<[EndpointChange]>,
    pub since: Instant,
    pub view: Arc<dyn View>,
}

impl Generation {
    /// Notes in the session of a client, a gateway or not, what may differ from generation `seen`, which it saw last.
    pub fn note_changes(&self, seen: u64, is_gateway: bool, session: &mut Session) {
        if self.anything > seen {
            return session.on_change(|_| true);
        }
        if (if is_gateway { self.routes } else { self.mesh_routes }) > seen {
            // Which clusters there are follows from where routes lead; what is in them does not.
            session.on_change(|type_url| matches!(type_url, url::CLUSTER | url::LISTENER | url::ROUTES));
        }
        let kept_from = self.endpoints.first().map_or(u64::MAX, |(number, _)| *number);
        if self.number > seen && kept_from > seen + 1 {
            // Too long ago to tell what changed.
            return session.on_change(|type_url| type_url == url::ENDPOINTS);
        }
        for (_, names) in self.endpoints.iter().filter(|(number, _)| *number > seen) {
            session.on_some_changed(url::ENDPOINTS, names);
        }
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
    /// Places for streams that are sent much at once, so that a thousand that come back do not need the memory of a thousand pushes.
    much: Arc<Semaphore>,
    pub metrics: Metrics,
    log: OnceLock<LogControl>,
}

/// Changes what is logged to a filter, if one is given; returns the filter in force.
pub type LogControl = Box<dyn Fn(Option<&str>) -> Result<String, String> + Send + Sync>;

impl Hub {
    /// A hub whose first view is `view`.
    pub fn new(view: Arc<dyn View>) -> Self {
        let first = Generation {
            number: 1,
            anything: 1,
            routes: 1,
            mesh_routes: 1,
            endpoints: Arc::default(),
            since: Instant::now(),
            view,
        };
        Self {
            current: watch::Sender::new(first),
            shutdown: watch::Sender::new(false),
            clients: Mutex::default(),
            client_count: AtomicU64::new(0),
            much: Arc::new(Semaphore::new(MUCH_AT_ONCE)),
            metrics: Metrics::default(),
            log: OnceLock::new(),
        }
    }

    /// Makes `view` the newest one; every client hears of it.
    pub fn publish(&self, view: Arc<dyn View>, change: Change) {
        self.metrics.on_publish(&change);
        self.current.send_modify(|generation| {
            let number = generation.number + 1;
            let names = match change {
                Change::Endpoints(names) => names,
                Change::Routes { mesh } => {
                    generation.routes = number;
                    generation.mesh_routes = if mesh { number } else { generation.mesh_routes };
                    Vec::new()
                }
                Change::Anything => {
                    generation.anything = number;
                    generation.endpoints = Arc::default();
                    Vec::new()
                }
            };
            if generation.anything < number {
                // A generation without endpoints is in the list as well, so that the list has no gap.
                let kept = generation.endpoints.len().saturating_sub(KEPT_MAX - 1);
                let kept = generation.endpoints.iter().skip(kept).cloned();
                generation.endpoints = kept.chain(std::iter::once((number, names.into()))).collect();
            }
            (generation.number, generation.since, generation.view) = (number, Instant::now(), view);
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

    /// Lets operators change what is logged.
    pub fn control_log(&self, control: LogControl) {
        // Whoever came first keeps it.
        drop(self.log.set(control));
    }

    /// The filter of what is logged, `filter` from now on if one is given; `None` where it cannot be changed.
    pub fn log(&self, filter: Option<&str>) -> Option<Result<String, String>> {
        self.log.get().map(|control| control(filter))
    }

    /// Waits for a place among the streams that are sent much at once.
    pub async fn place_for_much(&self) -> Option<OwnedSemaphorePermit> {
        self.much.clone().acquire_owned().await.ok()
    }

    /// Registers a client; it is known until the guard is dropped.
    pub fn connect(self: &Arc<Self>, node: Node, peer: Peer) -> Connected {
        let number = self.client_count.fetch_add(1, Ordering::Relaxed);
        let client = Arc::new(Client::new(node, peer));
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

/// Generations of which it is known what changed; a client that is further behind looks at everything.
const KEPT_MAX: usize = 64;
/// Streams that are sent much at once, as istiod bounds them.
const MUCH_AT_ONCE: usize = 32;
