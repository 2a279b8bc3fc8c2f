//! What a route does with its requests.

use std::time::Duration;

use crate::cluster::Priority;
use crate::exchange::retry::RetryPolicy;

/// A compiled Route.
pub struct Route {
    /// `name`
    pub name: Box<str>,
    /// `stat_prefix`
    pub stat_prefix: Box<str>,
    /// What happens to the request.
    pub action: Action,
}

/// What happens to a request.
pub enum Action {
    /// `route`
    Forward(Box<Forward>),
    /// `redirect`
    Redirect(Box<Redirect>),
    /// `direct_response`
    DirectResponse(Box<DirectResponse>),
    /// `non_forwarding_action`
    NonForwarding,
}

/// A compiled RouteAction.
pub struct Forward {
    /// Whole request to whole reply; `None` is off. 15 s by default.
    pub timeout: Option<Duration>,
    /// Overrides the connection manager's stream idle timeout; `Some(None)` turns it off.
    pub idle_timeout: Option<Option<Duration>>,
    /// Overrides the connection manager's maximum stream duration; `Some(None)` turns it off.
    pub max_stream_duration: Option<Option<Duration>>,
    /// The route's policy, or else its virtual host's.
    pub retry: RetryPolicy,
    /// Which circuit breakers.
    pub priority: Priority,
    /// Status where the cluster is not there: 503 by default.
    pub cluster_not_found_status: u16,
    /// `auto_host_rewrite`: call [`super::Match::rewrite_host_for_endpoint`] when the endpoint is chosen.
    pub auto_host_rewrite: bool,
    /// `upgrade_configs`: upgrade token in lower case, and whether it is allowed here; overrides the connection manager's list.
    pub upgrades: Vec<(Box<str>, bool)>,
}

/// A compiled RedirectAction.
pub struct Redirect {
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
}

/// A compiled DirectResponseAction.
pub struct DirectResponse {
    /// 200 to 599.
    pub status: u16,
}

/// One entry of `weighted_clusters`.
pub struct WeightedEntry {}
