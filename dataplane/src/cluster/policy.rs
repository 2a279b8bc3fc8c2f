//! How a cluster spreads its load.

/// A cluster's load balancing, parsed from `lb_policy` or `load_balancing_policy`.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Which host is next.
    pub algorithm: Algorithm,
    /// Below this share of available hosts, in percent, requests go to all hosts. 50 unless configured; 0 is never.
    pub panic_threshold_percent: u32,
    /// Choose a locality by its weight first (`locality_weighted_lb_config`).
    pub locality_weighted: bool,
    /// In panic no host is chosen at all (`zone_aware_lb_config.fail_traffic_on_panic`).
    pub fail_traffic_on_panic: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            algorithm: Algorithm::RoundRobin,
            panic_threshold_percent: 50,
            locality_weighted: false,
            fail_traffic_on_panic: false,
        }
    }
}

/// Which host of a set is next.
#[derive(Clone, Debug, PartialEq)]
pub enum Algorithm {
    /// Each in turn, as often as its weight says.
    RoundRobin,
    /// The one with the fewest active requests.
    LeastRequest(LeastRequest),
    /// Any.
    Random,
    /// The next point on a hash ring.
    RingHash(RingHash),
    /// A slot of a Maglev table.
    Maglev(Maglev),
}

/// Source: Cluster.LeastRequestLbConfig and load_balancing_policies.least_request.v3.LeastRequest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LeastRequest {
    /// Hosts that are drawn and compared, at least 2; `None` compares all (`FULL_SCAN`).
    pub choice_count: Option<u32>,
    /// With unequal weights, a host's share is `weight / (active requests + 1) ^ bias`.
    pub active_request_bias: f64,
}

/// Source: Cluster.RingHashLbConfig and load_balancing_policies.ring_hash.v3.RingHash.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RingHash {
    /// Fewest points on the ring. 1024 unless configured.
    pub point_count_min: u64,
    /// Most points on the ring. 8 Mi unless configured.
    pub point_count_max: u64,
    /// Hash of a point's name.
    pub function: HashFunction,
    /// Common to the hash policies.
    pub hashing: ConsistentHashing,
}

/// Source: Cluster.RingHashLbConfig.HashFunction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HashFunction {
    /// XXH64 with seed 0.
    #[default]
    XxHash,
    /// MurmurHash2 64A with the seed of libstdc++'s std::hash.
    MurmurHash2,
}

/// Source: Cluster.MaglevLbConfig and load_balancing_policies.maglev.v3.Maglev.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Maglev {
    /// A prime. 65537 unless configured.
    pub table_size: u32,
    /// Common to the hash policies.
    pub hashing: ConsistentHashing,
}

/// Source: Cluster.CommonLbConfig.ConsistentHashingLbConfig.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConsistentHashing {
    /// A host is named by its hostname instead of its address.
    pub use_hostname: bool,
    /// Most active requests on one host in percent of its fair share; at least 100.
    pub balance_factor_percent: Option<u32>,
}

impl Policy {
    /// What the hash policies have in common, if this is one.
    pub fn hashing(&self) -> Option<ConsistentHashing> {
        match &self.algorithm {
            Algorithm::RingHash(ring) => Some(ring.hashing),
            Algorithm::Maglev(maglev) => Some(maglev.hashing),
            Algorithm::RoundRobin | Algorithm::LeastRequest(_) | Algorithm::Random => None,
        }
    }
}
