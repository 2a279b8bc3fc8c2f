//! `circuit_breakers` becomes [`Thresholds`].

use envoy_types::pb::envoy::config::cluster::v3 as proto;
use envoy_types::pb::envoy::config::core::v3::RoutingPriority;

use crate::cluster::Breakers;
use crate::cluster::circuit_breaker::{RetryBudget, Thresholds};
use crate::config::parse::ParseContext;
use crate::config::reject::Refused;

/// Both priorities' limits and the limit of each host.
pub(super) struct Limits {
    default: Thresholds,
    high: Thresholds,
    pub(super) host_connections_max: Option<u32>,
}

impl Limits {
    pub(super) fn breakers(&self, worker_count: usize) -> Breakers {
        Breakers::new(self.default, self.high, worker_count)
    }
}

pub(super) fn parse(config: &proto::Cluster, context: &mut ParseContext) -> Result<Limits, Refused> {
    let start = context.problems.checkpoint();
    let mut limits = Limits { default: Thresholds::default(), high: Thresholds::default(), host_connections_max: None };
    if let Some(breakers) = &config.circuit_breakers {
        context.within("circuit_breakers", |context| {
            // The first entry of a priority counts.
            for (index, entry) in breakers.thresholds.iter().enumerate().rev() {
                let parsed = context.within_item("thresholds", index, |context| thresholds(entry, context));
                match (entry.priority(), parsed) {
                    (RoutingPriority::Default, Ok(parsed)) => limits.default = parsed,
                    (RoutingPriority::High, Ok(parsed)) => limits.high = parsed,
                    (_, Err(_)) => {}
                }
            }
            for (index, entry) in breakers.per_host_thresholds.iter().enumerate().rev() {
                context.within_item("per_host_thresholds", index, |context| per_host(entry, context));
                if entry.priority() == RoutingPriority::Default {
                    limits.host_connections_max = entry.max_connections.map(|limit| limit.value);
                }
            }
        });
    }
    override_by_runtime(&config.name, &mut limits, context);
    context.problems.clean_since(start).map(|()| limits)
}

fn thresholds(entry: &proto::circuit_breakers::Thresholds, context: &mut ParseContext) -> Result<Thresholds, Refused> {
    let start = context.problems.checkpoint();
    known_priority(entry, context);
    let defaults = Thresholds::default();
    let retry_budget = match &entry.retry_budget {
        Some(budget) => context.within("retry_budget", |context| retry_budget(budget, context)).ok(),
        None => None,
    };
    context.problems.clean_since(start)?;
    Ok(Thresholds {
        connections: entry.max_connections.map_or(defaults.connections, |limit| limit.value),
        pending: entry.max_pending_requests.map_or(defaults.pending, |limit| limit.value),
        requests: entry.max_requests.map_or(defaults.requests, |limit| limit.value),
        retries: entry.max_retries.map_or(defaults.retries, |limit| limit.value),
        retry_budget,
        track_remaining: entry.track_remaining,
    })
}

fn retry_budget(
    budget: &proto::circuit_breakers::thresholds::RetryBudget,
    context: &mut ParseContext,
) -> Result<RetryBudget, Refused> {
    let percent = budget.budget_percent.map_or(20.0, |percent| percent.value);
    if !(0.0..=100.0).contains(&percent) {
        return Err(context.reject("budget_percent", "must be from 0 to 100"));
    }
    if context.timeout("budget_interval", &budget.budget_interval, None)?.is_some() {
        return Err(context.reject("budget_interval", "is not there yet in this version"));
    }
    Ok(RetryBudget { percent, concurrency_min: budget.min_retry_concurrency.map_or(3, |count| count.value) })
}

fn per_host(entry: &proto::circuit_breakers::Thresholds, context: &mut ParseContext) {
    known_priority(entry, context);
    let others = [
        ("max_pending_requests", entry.max_pending_requests.is_some()),
        ("max_requests", entry.max_requests.is_some()),
        ("max_retries", entry.max_retries.is_some()),
        ("max_connection_pools", entry.max_connection_pools.is_some()),
        ("retry_budget", entry.retry_budget.is_some()),
    ];
    for (field, _) in others.iter().filter(|(_, present)| *present) {
        let _ = context.reject(field, "only `max_connections` can be limited per host");
    }
}

fn known_priority(entry: &proto::circuit_breakers::Thresholds, context: &mut ParseContext) {
    if RoutingPriority::try_from(entry.priority).is_err() {
        let _ = context.reject("priority", "is no known priority");
    }
}

/// Runtime keys go over the configuration: `circuit_breakers.<cluster>.<priority>.<limit>`.
fn override_by_runtime(cluster: &str, limits: &mut Limits, context: &ParseContext) {
    if context.runtime.iter().next().is_none() {
        return;
    }
    for (priority, thresholds) in [("default", &mut limits.default), ("high", &mut limits.high)] {
        let value = |limit: &str, default: u32| {
            let key = format!("circuit_breakers.{cluster}.{priority}.{limit}");
            u32::try_from(context.runtime.integer(&key, default.into())).unwrap_or(u32::MAX)
        };
        thresholds.connections = value("max_connections", thresholds.connections);
        thresholds.pending = value("max_pending_requests", thresholds.pending);
        thresholds.requests = value("max_requests", thresholds.requests);
        thresholds.retries = value("max_retries", thresholds.retries);
        if let Some(budget) = &mut thresholds.retry_budget {
            let key = format!("circuit_breakers.{cluster}.{priority}.retry_budget.budget_percent");
            budget.percent = context.runtime.number(&key, budget.percent).clamp(0.0, 100.0);
            budget.concurrency_min = value("retry_budget.min_retry_concurrency", budget.concurrency_min);
        }
    }
}
