//! Endpoints of clusters whose hosts are names.

mod resolvers;
mod task;

use std::net::SocketAddr;
use std::time::Duration;

use super::endpoint_set::AssignmentOptions;
use super::host::HostTemplate;
pub use resolvers::{Answer, ResolveError, Resolvers};
pub use task::run;

/// What to resolve, when and how. Source: the `dns_*` fields of Cluster and envoy.extensions.clusters.dns.v3.DnsCluster.
#[derive(Clone, Debug, PartialEq)]
pub struct DnsPlan {
    /// One for each configured endpoint.
    pub names: Vec<DnsName>,
    /// Time from one answer to the next question. 5 s unless configured.
    pub refresh: Duration,
    /// The same after a failure: doubled from `base` up to `max` at random; `None` takes `refresh`.
    pub failure_refresh: Option<FailureRefresh>,
    /// Ask again when the answer's TTL ends instead.
    pub respect_ttl: bool,
    /// A shorter TTL counts as this.
    pub ttl_min: Duration,
    /// Added to each wait, from 0 to this at random.
    pub jitter: Duration,
    /// Which addresses are taken.
    pub family: LookupFamily,
    /// Who is asked.
    pub resolver: ResolverPlan,
    /// All addresses of a name are one host (`LOGICAL_DNS`).
    pub logical: bool,
    /// The cluster is ready only after its first question (`wait_for_warm_on_init`).
    pub wait_for_warm: bool,
    /// What the assignment says beside its hosts.
    pub assignment: AssignmentOptions,
}

/// Source: Cluster.RefreshRate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailureRefresh {
    /// Above zero.
    pub base: Duration,
    /// At least `base`; ten times it unless configured.
    pub max: Duration,
}

/// One name and what its hosts have in common.
#[derive(Clone, Debug, PartialEq)]
pub struct DnsName {
    /// A host name or an IP literal.
    pub name: Box<str>,
    /// The port of each address found.
    pub port: u16,
    /// What its hosts have in common.
    pub host: HostTemplate,
}

/// Which addresses are taken. Source: Cluster.DnsLookupFamily.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum LookupFamily {
    /// IPv6, and IPv4 where there is none.
    #[default]
    Auto,
    /// IPv4.
    V4Only,
    /// IPv6.
    V6Only,
    /// IPv4, and IPv6 where there is none.
    V4Preferred,
    /// Both.
    All,
}

/// Who is asked and how. Source: DnsResolverOptions, CaresDnsResolverConfig, GetAddrInfoDnsResolverConfig.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ResolverPlan {
    /// Name servers; none means those of `/etc/resolv.conf`.
    pub servers: Vec<SocketAddr>,
    /// Ask over TCP only.
    pub tcp_only: bool,
    /// Leave the search domains of `/etc/resolv.conf` aside.
    pub no_search_domains: bool,
    /// How long one question may take, if not the resolver's default.
    pub query_timeout: Option<Duration>,
    /// How often a question is asked, if not the resolver's default.
    pub query_tries: Option<u32>,
}
