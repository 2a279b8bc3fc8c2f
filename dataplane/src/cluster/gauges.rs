//! Gauges that are computed when somebody reads them: membership, circuit breakers, hash tables.

use super::{Cluster, ClusterKind, HostHealth, Priority, Resource};
use crate::telemetry::counters::Core;
use crate::telemetry::names::ClusterStat;

impl Cluster {
    /// Brings the computed gauges up to date in the cells of `core`, which is the config thread's; called before stats are
    /// read. No worker writes these.
    pub fn refresh_gauges(&self, core: Core) {
        self.refresh_membership(core);
        for priority in Priority::ALL {
            self.refresh_breakers(core, priority);
        }
    }

    fn refresh_membership(&self, core: Core) {
        let set = |stat, value: usize| self.stats.set(core, stat, value as u64);
        let endpoints = &self.endpoints;
        if self.kind == ClusterKind::Static
            && !endpoints.hosts.is_empty()
            && self.stats.part(core, ClusterStat::MembershipTotal) == 0
        {
            // The hosts that came with the configuration count as one change; DNS counts its own.
            self.stats.increment(core, ClusterStat::MembershipChange);
        }
        set(ClusterStat::MembershipTotal, endpoints.hosts.len());
        set(ClusterStat::MembershipHealthy, endpoints.count(HostHealth::Healthy));
        set(ClusterStat::MembershipDegraded, endpoints.count(HostHealth::Degraded));
        set(ClusterStat::MembershipExcluded, endpoints.count(HostHealth::Draining));
        if self.kind != ClusterKind::Static {
            let heaviest = endpoints.hosts.iter().map(|host| host.weight).max().unwrap_or(0);
            set(ClusterStat::MaxHostWeight, heaviest as usize);
        }
        let tables = endpoints.priorities.iter().filter_map(|level| level.table.as_ref());
        // Envoy's priorities write the same gauges, so the last one stays.
        if let Some([size, fewest, most]) = tables.clone().filter_map(|table| table.ring_counts()).next_back() {
            self.stats.set(core, ClusterStat::RingHashLbSize, size);
            self.stats.set(core, ClusterStat::RingHashLbMinHashesPerHost, fewest);
            self.stats.set(core, ClusterStat::RingHashLbMaxHashesPerHost, most);
        }
        if let Some([fewest, most]) = tables.filter_map(|table| table.maglev_counts()).next_back() {
            self.stats.set(core, ClusterStat::MaglevLbMinEntriesPerHost, fewest);
            self.stats.set(core, ClusterStat::MaglevLbMaxEntriesPerHost, most);
        }
    }

    fn refresh_breakers(&self, core: Core, priority: Priority) {
        let thresholds = self.breakers.thresholds(priority);
        for (resource, open, remaining) in BreakerGauges::of(priority).by_resource {
            self.stats.set(core, open, self.breakers.is_open(priority, resource).into());
            // Envoy does not follow what a budget leaves.
            let budgeted = resource == Resource::Retries && thresholds.retry_budget.is_some();
            if thresholds.track_remaining && !budgeted {
                self.stats.set(core, remaining, self.breakers.remaining(priority, resource));
            }
        }
    }
}

/// The names of one priority's gauges. `remaining_cx_pools` is not among them: pools are not limited here.
struct BreakerGauges {
    by_resource: [(Resource, ClusterStat, ClusterStat); 4],
}

impl BreakerGauges {
    fn of(priority: Priority) -> Self {
        use ClusterStat::*;
        use Resource::{Connections, Pending, Requests, Retries};
        match priority {
            Priority::Default => Self {
                by_resource: [
                    (Connections, CircuitBreakersDefaultCxOpen, CircuitBreakersDefaultRemainingCx),
                    (Pending, CircuitBreakersDefaultRqPendingOpen, CircuitBreakersDefaultRemainingPending),
                    (Requests, CircuitBreakersDefaultRqOpen, CircuitBreakersDefaultRemainingRq),
                    (Retries, CircuitBreakersDefaultRqRetryOpen, CircuitBreakersDefaultRemainingRetries),
                ],
            },
            Priority::High => Self {
                by_resource: [
                    (Connections, CircuitBreakersHighCxOpen, CircuitBreakersHighRemainingCx),
                    (Pending, CircuitBreakersHighRqPendingOpen, CircuitBreakersHighRemainingPending),
                    (Requests, CircuitBreakersHighRqOpen, CircuitBreakersHighRemainingRq),
                    (Retries, CircuitBreakersHighRqRetryOpen, CircuitBreakersHighRemainingRetries),
                ],
            },
        }
    }
}
