//! `envoy.filters.network.connection_limit`: no more than so many connections of a filter chain at once, over all workers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use envoy_types::pb::envoy::extensions::filters::network::connection_limit::v3 as proto;

use super::Admission;
use crate::config::parse::ParseContext;
use crate::config::reject::Refused;
use crate::telemetry::counters::{Core, Stats};
use crate::telemetry::names::ConnectionLimitStat;

/// A limit and what it counts. Source: envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit.
pub struct ConnectionLimit {
    open_count: AtomicU64,
    open_count_max: u64,
    /// A connection too many is closed after this long, so that its client does not come again at once.
    delay: Duration,
    /// `connection_limit.<stat_prefix>.`
    stats: Arc<Stats<ConnectionLimitStat>>,
}

impl ConnectionLimit {
    /// Compiles `config`.
    pub fn parse(config: &proto::ConnectionLimit, context: &mut ParseContext) -> Result<Self, Refused> {
        let prefix = context.non_empty("stat_prefix", &config.stat_prefix);
        let delay = context.duration("delay", &config.delay);
        let max = context.required("max_connections", &config.max_connections)?.value;
        if max == 0 {
            return Err(context.reject("max_connections", "must be at least 1"));
        }
        let stats = context.registry.group(&format!("connection_limit.{}.", prefix?));
        Ok(Self { open_count: AtomicU64::new(0), open_count_max: max, delay: delay?.unwrap_or_default(), stats })
    }

    pub(super) fn admit(&self, core: Core) -> Admission {
        if self.open_count.fetch_add(1, Ordering::Relaxed) < self.open_count_max {
            self.stats.increment(core, ConnectionLimitStat::ActiveConnections);
            return Admission::Pass;
        }
        self.open_count.fetch_sub(1, Ordering::Relaxed);
        self.stats.increment(core, ConnectionLimitStat::LimitedConnections);
        Admission::End(self.delay)
    }

    pub(super) fn release(&self, core: Core) {
        self.open_count.fetch_sub(1, Ordering::Relaxed);
        self.stats.decrement(core, ConnectionLimitStat::ActiveConnections);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::registry::Registry;

    #[test]
    fn a_place_is_free_again_once_its_connection_has_closed() {
        let stats = Registry::new(1).group("connection_limit.a.");
        let limit = ConnectionLimit {
            open_count: AtomicU64::new(0),
            open_count_max: 2,
            delay: Duration::from_millis(5),
            stats: Arc::clone(&stats),
        };
        let late = Admission::End(Duration::from_millis(5));
        let seen: Vec<_> = (0..4).map(|_| limit.admit(Core(0))).collect();
        assert_eq!(seen, [Admission::Pass, Admission::Pass, late, late]);
        limit.release(Core(0));
        assert_eq!((limit.admit(Core(0)), limit.admit(Core(0))), (Admission::Pass, late));
        assert_eq!(stats.total(ConnectionLimitStat::ActiveConnections), 2);
        assert_eq!(stats.total(ConnectionLimitStat::LimitedConnections), 3);
    }
}
