//! What a request meets in generated configuration: listener, filter chain, virtual host, route and cluster, or why it fails.
//!
//! It reads only what a proxy is sent, so its answer is about the configuration as pushed.

mod chain;
mod route;

use std::collections::BTreeMap;

use envoy_types::pb::envoy::config::core::v3::Metadata;
use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use envoy_types::pb::google::protobuf::value::Kind;

/// What is inside any TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spoken {
    Http,
    Http2,
    Tcp,
}

/// How the connection is secured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Security {
    Plaintext,
    Tls,
    /// With the mesh's own certificates.
    MutualTls,
}

/// One request.
#[derive(Debug, Clone)]
pub struct Call {
    /// Where the client connects to.
    pub address: String,
    pub port: u32,
    pub spoken: Spoken,
    pub security: Security,
    pub host: String,
    pub path: String,
    /// Fields with `:method`; `None` leaves conditions on fields out of account.
    pub headers: Option<BTreeMap<String, String>>,
    pub sni: String,
    pub alpn: String,
    /// Redirected to the port for arriving connections.
    pub inbound: bool,
    /// The certificate that marks a chain as the mesh's own.
    pub mesh_certificate: String,
}

/// Why a request fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    NoListener,
    NoFilterChain,
    MultipleFilterChains,
    Tls,
    MutualTls,
    Protocol,
    NoVirtualHost,
    TlsRedirect,
    NoRoute,
}

impl Failure {
    /// A short name for reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoListener => "no_listener",
            Self::NoFilterChain => "no_filter_chain",
            Self::MultipleFilterChains => "multiple_filter_chains",
            Self::Tls => "tls_error",
            Self::MutualTls => "mtls_error",
            Self::Protocol => "protocol_error",
            Self::NoVirtualHost => "no_virtual_host",
            Self::TlsRedirect => "tls_redirect",
            Self::NoRoute => "no_route",
        }
    }
}

/// What the request met, as far as it came; names found before a failure stay.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    pub failure: Option<Failure>,
    pub listener: String,
    pub filter_chain: String,
    pub route_config: String,
    pub virtual_host: String,
    pub route: String,
    /// Empty for redirects, direct responses and splits.
    pub cluster: String,
    /// The clusters of a split with their weights.
    pub split: Vec<(String, u32)>,
    /// The status that the proxy answers by itself: redirects and direct responses.
    pub answer: Option<u32>,
    /// Filters that the route configures for itself, such as fault injection.
    pub route_filters: Vec<String>,
    /// The address of the object that decided: of the route, else the virtual host, else the listener.
    pub config: Option<String>,
    /// `file:line:column` of what decided.
    pub place: Option<String>,
}

/// Follows `call` through the listeners and route configurations of one proxy.
pub fn evaluate(listeners: &[Listener], routes: &[RouteConfiguration], call: &Call) -> Outcome {
    let mut outcome = Outcome::default();
    outcome.failure = follow(listeners, routes, call, &mut outcome).err();
    outcome
}

fn follow(
    listeners: &[Listener],
    routes: &[RouteConfiguration],
    call: &Call,
    outcome: &mut Outcome,
) -> Result<(), Failure> {
    let listener = chain::listener(listeners, call).ok_or(Failure::NoListener)?;
    outcome.listener.clone_from(&listener.name);
    outcome.decided_by(listener.metadata.as_ref());
    let chain = chain::choose(listener, call)?;
    outcome.filter_chain.clone_from(&chain.name);
    chain::check_tls(chain, call)?;
    match chain::terminal(chain) {
        Some(chain::Terminal::Http(manager)) => route::http(&manager, routes, chain, call, outcome),
        Some(chain::Terminal::Tcp(proxy)) => {
            route::tcp(&proxy, outcome);
            Ok(())
        }
        None => Ok(()),
    }
}

impl Outcome {
    /// What decided so far; something without a known origin leaves it as it was.
    fn decided_by(&mut self, metadata: Option<&Metadata>) {
        if let Some(origin) = origin(metadata) {
            (self.config, self.place) = (Some(origin.0), Some(origin.1));
        }
    }
}

/// The object and the place that translation left in metadata `istio`.
pub fn origin(metadata: Option<&Metadata>) -> Option<(String, String)> {
    let fields = &metadata?.filter_metadata.get("istio")?.fields;
    let text = |name: &str| match fields.get(name)?.kind.as_ref()? {
        Kind::StringValue(text) => Some(text.clone()),
        _ => None,
    };
    Some((text("config")?, text("place")?))
}
