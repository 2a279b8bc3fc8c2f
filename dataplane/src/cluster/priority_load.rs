//! How much of the load each priority gets, from the health of its hosts.
//!
//! A priority is as available as its healthy hosts' share times the overprovisioning factor, at most 100 %. Load goes to
//! healthy hosts of priority 0 up to that, then to priority 1, and so on; what no healthy host can take goes to degraded
//! hosts in the same way. Where all priorities together reach less than 100 %, each priority below the panic threshold
//! ignores health (panic); where all panic, load follows the number of hosts.
//!
//! Source: Envoy's documentation of load balancing priorities, overprovisioning, degraded endpoints and panic threshold.

/// What is counted of one priority.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PriorityHealth {
    /// All hosts.
    pub host_count: u32,
    /// Hosts that do not count when health is computed.
    pub excluded_count: u32,
    /// Healthy hosts.
    pub healthy_count: u32,
    /// Degraded hosts.
    pub degraded_count: u32,
    /// Weight of all hosts that are not excluded; equals the count unless health is weighted.
    pub available_weight_max: u64,
    /// Weight of the healthy hosts.
    pub healthy_weight: u64,
    /// Weight of the degraded hosts.
    pub degraded_weight: u64,
}

/// The share of one priority.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PriorityShare {
    /// Percent of all requests that go to healthy hosts of this priority.
    pub healthy_percent: u32,
    /// Percent of all requests that go to its degraded hosts.
    pub degraded_percent: u32,
    /// Requests go to all of its hosts whatever their health.
    pub panic: bool,
}

/// Each priority's share; the percentages add up to 100 unless there is no priority.
pub fn shares(
    priorities: &[PriorityHealth],
    overprovisioning_percent: u32,
    panic_threshold_percent: u32,
) -> Vec<PriorityShare> {
    let availability: Vec<Availability> =
        priorities.iter().map(|priority| Availability::of(priority, overprovisioning_percent)).collect();
    let available_percent =
        availability.iter().map(|priority| priority.healthy_percent + priority.degraded_percent).sum::<u32>().min(100);
    let mut shares = vec![PriorityShare::default(); priorities.len()];

    let scaled = |percent: u32| (percent * 100).checked_div(available_percent).unwrap_or(0);
    if available_percent > 0 {
        let mut rest = 100;
        for (share, priority) in shares.iter_mut().zip(&availability) {
            share.healthy_percent = rest.min(scaled(priority.healthy_percent));
            rest -= share.healthy_percent;
        }
        for (share, priority) in shares.iter_mut().zip(&availability) {
            share.degraded_percent = rest.min(scaled(priority.degraded_percent));
            rest -= share.degraded_percent;
        }
        // What rounding left over.
        let healthy = availability.iter().position(|priority| priority.healthy_percent > 0);
        let degraded = availability.iter().position(|priority| priority.degraded_percent > 0);
        if let Some(share) = healthy.and_then(|place| shares.get_mut(place)) {
            share.healthy_percent += rest;
        } else if let Some(share) = degraded.and_then(|place| shares.get_mut(place)) {
            share.degraded_percent += rest;
        }
    } else if panic_threshold_percent == 0 {
        // No host is available and none may be used against its health: priority 0 gets the load and has nobody to take it.
        if let Some(first) = shares.first_mut() {
            first.healthy_percent = 100;
        }
        return shares;
    }

    if available_percent < 100 {
        for (share, priority) in shares.iter_mut().zip(priorities) {
            share.panic = in_panic(priority, panic_threshold_percent);
        }
        if shares.iter().all(|share| share.panic) {
            share_by_host_count(&mut shares, priorities);
        }
    }
    shares
}

#[derive(Clone, Copy)]
struct Availability {
    healthy_percent: u32,
    degraded_percent: u32,
}

impl Availability {
    fn of(priority: &PriorityHealth, overprovisioning_percent: u32) -> Self {
        let percent = |weight: u64| {
            let share =
                u64::from(overprovisioning_percent).saturating_mul(weight) / priority.available_weight_max.max(1);
            u32::try_from(share.min(100)).unwrap_or(100)
        };
        if priority.host_count <= priority.excluded_count {
            return Self { healthy_percent: 0, degraded_percent: 0 };
        }
        Self { healthy_percent: percent(priority.healthy_weight), degraded_percent: percent(priority.degraded_weight) }
    }
}

fn in_panic(priority: &PriorityHealth, threshold_percent: u32) -> bool {
    let counted = priority.host_count.saturating_sub(priority.excluded_count);
    let available = if counted == 0 {
        0.0
    } else {
        100.0 * f64::from(priority.healthy_count) / f64::from(counted)
            + 100.0 * f64::from(priority.degraded_count) / f64::from(counted)
    };
    available < f64::from(threshold_percent.min(100))
}

fn share_by_host_count(shares: &mut [PriorityShare], priorities: &[PriorityHealth]) {
    let host_count: u64 = priorities.iter().map(|priority| u64::from(priority.host_count)).sum();
    let mut rest = 100;
    for (share, priority) in shares.iter_mut().zip(priorities) {
        let percent = (100 * u64::from(priority.host_count)).checked_div(host_count).unwrap_or(0);
        share.healthy_percent = u32::try_from(percent).unwrap_or(100);
        share.degraded_percent = 0;
        rest -= share.healthy_percent;
    }
    let first = priorities.iter().position(|priority| priority.host_count > 0).unwrap_or(0);
    if let Some(share) = shares.get_mut(first) {
        share.healthy_percent += rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `(healthy, degraded, all)` hosts of each priority to `(healthy %, degraded %, panic)`.
    fn check(priorities: &[(u32, u32, u32)], threshold: u32, expect: &[(u32, u32, bool)]) {
        let health: Vec<PriorityHealth> = priorities
            .iter()
            .map(|(healthy, degraded, all)| PriorityHealth {
                host_count: *all,
                healthy_count: *healthy,
                degraded_count: *degraded,
                available_weight_max: u64::from(*all),
                healthy_weight: u64::from(*healthy),
                degraded_weight: u64::from(*degraded),
                excluded_count: 0,
            })
            .collect();
        let shares: Vec<_> = shares(&health, 140, threshold)
            .iter()
            .map(|share| (share.healthy_percent, share.degraded_percent, share.panic))
            .collect();
        assert_eq!(shares, expect, "{priorities:?} at {threshold} %");
    }

    /// The tables of Envoy's documentation on priority levels.
    #[test]
    fn load_spills_to_the_next_priority() {
        check(&[(100, 0, 100), (100, 0, 100)], 50, &[(100, 0, false), (0, 0, false)]);
        check(&[(72, 0, 100), (72, 0, 100)], 50, &[(100, 0, false), (0, 0, false)]);
        check(&[(71, 0, 100), (71, 0, 100)], 50, &[(99, 0, false), (1, 0, false)]);
        check(&[(50, 0, 100), (50, 0, 100)], 50, &[(70, 0, false), (30, 0, false)]);
        check(&[(25, 0, 100), (100, 0, 100)], 50, &[(35, 0, false), (65, 0, false)]);
        check(&[(25, 0, 100), (25, 0, 100)], 50, &[(50, 0, true), (50, 0, true)]);
        check(&[(100, 0, 100), (100, 0, 100), (100, 0, 100)], 50, &[(100, 0, false), (0, 0, false), (0, 0, false)]);
        check(&[(25, 0, 100), (25, 0, 100), (100, 0, 100)], 50, &[(35, 0, false), (35, 0, false), (30, 0, false)]);
    }

    #[test]
    fn degraded_hosts_take_what_healthy_ones_cannot() {
        check(&[(0, 4, 4)], 50, &[(0, 100, false)]);
        check(&[(1, 3, 4)], 50, &[(35, 65, false)]);
        check(&[(1, 1, 4), (4, 0, 4)], 50, &[(35, 0, false), (65, 0, false)]);
    }

    #[test]
    fn panic_needs_too_few_hosts_everywhere() {
        check(&[(1, 0, 4)], 50, &[(100, 0, true)]);
        check(&[(2, 0, 4)], 50, &[(100, 0, false)]);
        check(&[(0, 0, 4)], 50, &[(100, 0, true)]);
        check(&[(0, 0, 4)], 0, &[(100, 0, false)]);
        check(&[(0, 0, 0)], 50, &[(100, 0, true)]);
        check(&[(0, 0, 3), (0, 0, 1)], 50, &[(75, 0, true), (25, 0, true)]);
        check(&[(0, 0, 0), (0, 0, 3), (0, 0, 3)], 50, &[(0, 0, true), (50, 0, true), (50, 0, true)]);
        check(&[], 50, &[]);
    }

    #[test]
    fn shares_add_up() {
        for healthy in 0..=7 {
            for degraded in 0..=7 - healthy {
                for second in 0..=5 {
                    for threshold in [0, 50, 100] {
                        let level = |healthy: u32, degraded: u32, all: u32| PriorityHealth {
                            host_count: all,
                            healthy_count: healthy,
                            degraded_count: degraded,
                            available_weight_max: u64::from(all),
                            healthy_weight: u64::from(healthy),
                            degraded_weight: u64::from(degraded),
                            excluded_count: 0,
                        };
                        let shares = shares(&[level(healthy, degraded, 7), level(second, 0, 5)], 140, threshold);
                        let sum: u32 = shares.iter().map(|share| share.healthy_percent + share.degraded_percent).sum();
                        assert_eq!(sum, 100, "{healthy} {degraded} {second} {threshold}");
                    }
                }
            }
        }
    }
}
