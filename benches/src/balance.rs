//! Which endpoint takes a request, by each policy.

use torus_proxy::cluster::Cluster;
use torus_proxy::cluster::balance::{Balancer, Choice};
use torus_proxy::config::parse::context::ParseContext;
use torus_proxy::telemetry::counters::Core;
use torus_proxy::worker::random::Random;

/// A cluster of a hundred endpoints.
pub struct Endpoints {
    cluster: Cluster,
    balancer: Balancer,
    random: Random,
    active: Vec<u32>,
    hash: u64,
}

const ENDPOINT_COUNT: usize = 100;

impl Endpoints {
    /// Under the policy of this name; `None` where there is no such policy.
    pub fn new(policy: &str) -> Option<Self> {
        let endpoint = |number: usize| {
            format!(
                "\n    - endpoint: {{address: {{socket_address: {{address: 10.0.0.{}, port_value: 80}}}}}}",
                number + 1
            )
        };
        let endpoints: String = (0..ENDPOINT_COUNT).map(endpoint).collect();
        let yaml = format!(
            "name: c\nlb_policy: {policy}\nload_assignment:\n  cluster_name: c\n  endpoints:\n  - lb_endpoints:{endpoints}\n"
        );
        let config = torus_xds::from_yaml(&yaml).ok()?;
        let cluster = Cluster::parse(&config, &mut ParseContext::new(1)).ok()?;
        let mut random = Random::seeded(1);
        let balancer = Balancer::new(&cluster, &mut random);
        let active = (0..ENDPOINT_COUNT as u32).map(|number| number * 7 % 13).collect();
        Some(Self { cluster, balancer, random, active, hash: 1 })
    }

    /// Chooses once; the endpoint's number, from one.
    pub fn run(&mut self) -> u32 {
        self.hash = self.hash.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        let active = &self.active;
        let mut choice = Choice {
            core: Core(0),
            random: &mut self.random,
            hash: Some(self.hash),
            active: &|host| active.get(host.0 as usize).copied().unwrap_or_default(),
            active_total: 0,
            retry: None,
        };
        self.balancer.choose(&self.cluster, &mut choice).map_or(0, |host| host.0 + 1)
    }
}
