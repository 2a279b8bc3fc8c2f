//! A compiled RouteConfiguration: virtual hosts by domain, and what a match gives.

use envoy_types::pb::envoy::config::route::v3 as proto;
use torus_codec::headers::HeaderMap;

use super::action::Route;
use super::scratch::Scratch;
use crate::cluster::ClusterIndex;
use crate::config::parse::ParseContext;
use crate::config::reject::Refused;

/// A compiled RouteConfiguration.
#[derive(Default)]
pub struct RouteTable {
    /// `name`
    pub name: Box<str>,
    virtual_hosts: Vec<VirtualHost>,
}

/// A compiled VirtualHost.
pub struct VirtualHost {
    /// `name`
    pub name: Box<str>,
    /// Put `x-envoy-attempt-count` on requests.
    pub include_request_attempt_count: bool,
    /// Put `x-envoy-attempt-count` on replies.
    pub include_attempt_count_in_response: bool,
    /// Put `x-envoy-is-timeout-retry` on requests.
    pub include_is_timeout_retry: bool,
}

/// What the table says of a request.
#[derive(Clone, Copy)]
pub enum Found<'a> {
    /// This route takes it.
    Route(Match<'a>),
    /// The virtual host wants https: 301 to [`super::rewrite::tls_location`], no route's changes to the reply.
    NeedsTls(&'a VirtualHost),
    /// No virtual host has its domain: 404.
    NoVirtualHost,
    /// No route of the virtual host matches: 404.
    NoRoute(&'a VirtualHost),
}

/// The route that takes a request.
#[derive(Clone, Copy)]
pub struct Match<'a> {
    /// The table.
    pub table: &'a RouteTable,
    /// The virtual host.
    pub virtual_host: &'a VirtualHost,
    /// The route.
    pub route: &'a Route,
}

/// The cluster that a request goes to, and what the choice itself changes.
#[derive(Clone, Copy)]
pub struct ClusterChoice<'a, 'h> {
    /// Which cluster.
    pub target: ClusterTarget<'h>,
    /// For [`Match::finalize_request`] and [`Match::finalize_response`].
    pub weighted: Weighted<'a>,
}

/// A cluster, by index or by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterTarget<'h> {
    /// Known at configuration time.
    Index(ClusterIndex),
    /// Named by a request field, or configured and not there (yet); empty where the field is missing. Where no cluster has the
    /// name, the reply is [`super::Forward::cluster_not_found_status`] with `NC`.
    Named(&'h [u8]),
}

/// The entry of `weighted_clusters` that was chosen, if any; it has header changes of its own.
#[derive(Clone, Copy, Default)]
pub struct Weighted<'a>(pub(crate) Option<&'a super::action::WeightedEntry>);

impl RouteTable {
    /// Compiles `config`.
    pub fn parse(config: &proto::RouteConfiguration, context: &mut ParseContext) -> Result<Self, Refused> {
        let _ = (config, context);
        Ok(Self::default())
    }

    /// The route for `request`; `random` decides `runtime_fraction`.
    pub fn find(&self, request: &HeaderMap, random: u64, scratch: &mut Scratch) -> Found<'_> {
        let _ = (request, random, scratch);
        Found::NoVirtualHost
    }

    /// The virtual hosts, in configuration order.
    pub fn virtual_hosts(&self) -> &[VirtualHost] {
        &self.virtual_hosts
    }
}
