//! `envoy.filters.network.local_ratelimit`: no more than so many new connections in a time, over all workers.
//!
//! One word holds the bucket: how often it was filled, and the tokens left. A connection takes its token with one exchange of that
//! word, so that no lock is needed and no token is given twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use envoy_types::pb::envoy::extensions::filters::network::local_ratelimit::v3 as proto;
use torus_ring::Nanos;

use super::Admission;
use crate::config::parse::ParseContext;
use crate::config::reject::Refused;
use crate::telemetry::counters::{Core, Stats};
use crate::telemetry::names::LocalRateLimitStat;

/// A bucket of tokens, one a connection.
/// Source: envoy.extensions.filters.network.local_ratelimit.v3.LocalRateLimit, envoy.type.v3.TokenBucket.
pub struct LocalRateLimit {
    /// Above: fills since the clock began, counted around. Below: tokens left.
    state: AtomicU64,
    tokens_max: u32,
    tokens_per_fill: u32,
    fill_interval: Duration,
    /// `local_rate_limit.<stat_prefix>.`
    stats: Arc<Stats<LocalRateLimitStat>>,
}

impl LocalRateLimit {
    /// Compiles `config`.
    pub fn parse(config: &proto::LocalRateLimit, context: &mut ParseContext) -> Result<Self, Refused> {
        let prefix = context.non_empty("stat_prefix", &config.stat_prefix);
        let bucket = context.required("token_bucket", &config.token_bucket)?;
        let (tokens_per_fill, fill_interval) = context.within("token_bucket", |context| {
            let per_fill = bucket.tokens_per_fill.map_or(1, |tokens| tokens.value);
            let interval = context.duration("fill_interval", &bucket.fill_interval)?;
            if bucket.max_tokens == 0 {
                return Err(context.reject("max_tokens", "must be at least 1"));
            }
            if per_fill == 0 {
                return Err(context.reject("tokens_per_fill", "must be at least 1"));
            }
            // Source: Envoy refuses shorter ones.
            match interval.filter(|interval| *interval >= FILL_INTERVAL_MIN) {
                Some(interval) => Ok((per_fill, interval)),
                None => Err(context.reject("fill_interval", "must be at least 50ms")),
            }
        })?;
        let stats = context.registry.group(&format!("local_rate_limit.{}.", prefix?));
        Ok(Self { state: AtomicU64::new(UNUSED), tokens_max: bucket.max_tokens, tokens_per_fill, fill_interval, stats })
    }

    pub(super) fn admit(&self, core: Core, now: Nanos) -> Admission {
        if self.take(now) {
            return Admission::Pass;
        }
        self.stats.increment(core, LocalRateLimitStat::RateLimited);
        Admission::End(Duration::ZERO)
    }

    fn take(&self, now: Nanos) -> bool {
        let fills = u128::from(now.as_nanos()) / self.fill_interval.as_nanos().max(1);
        let fills = fills as u32 & u32::MAX >> 1;
        let taken = self.state.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |state| {
            let (seen_fills, left) = ((state >> 32) as u32, state as u32);
            let left = match state {
                UNUSED => self.tokens_max,
                _ => {
                    // Another worker's clock may be a turn ahead.
                    let passed = fills.wrapping_sub(seen_fills) & u32::MAX >> 1;
                    let passed = if passed > u32::MAX >> 2 { 0 } else { passed };
                    left.saturating_add(self.tokens_per_fill.saturating_mul(passed)).min(self.tokens_max)
                }
            };
            let is_behind = state != UNUSED && fills.wrapping_sub(seen_fills) & u32::MAX >> 1 > u32::MAX >> 2;
            let fills = if is_behind { seen_fills } else { fills };
            Some(u64::from(fills) << 32 | u64::from(left.checked_sub(1)?))
        });
        taken.is_ok()
    }
}

/// No bucket in use looks like this: the number of fills has 31 bits.
const UNUSED: u64 = u64::MAX;
const FILL_INTERVAL_MIN: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::registry::Registry;

    #[test]
    fn tokens_come_back_with_time_and_never_above_the_maximum() {
        let limit = LocalRateLimit {
            state: AtomicU64::new(UNUSED),
            tokens_max: 3,
            tokens_per_fill: 2,
            fill_interval: Duration::from_secs(1),
            stats: Registry::new(1).group("local_rate_limit.a."),
        };
        let taken = |at_ms: u64| {
            let now = Nanos::from_nanos(at_ms * 1_000_000);
            (0..10).filter(|_| limit.take(now)).count()
        };
        assert_eq!(taken(10_000), 3);
        assert_eq!(taken(10_999), 0);
        assert_eq!(taken(11_000), 2);
        // The clock of another worker, a turn behind.
        assert_eq!(taken(10_999), 0);
        assert_eq!(taken(11_500), 0);
        assert_eq!(taken(12_000), 2);
        assert_eq!(taken(60_000), 3);
        assert_eq!(limit.admit(Core(0), Nanos::from_nanos(60_000_000_000)), Admission::End(Duration::ZERO));
        assert_eq!(limit.stats.total(LocalRateLimitStat::RateLimited), 1);
    }
}
