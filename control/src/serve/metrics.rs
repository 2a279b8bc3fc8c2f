//! The control plane's own counters, under istiod's names.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use torus_xds::serving::url;

use crate::push::Change;

/// Counters of one process.
#[derive(Debug, Default)]
pub struct Metrics {
    pushes: [AtomicU64; KINDS.len()],
    refusals: [AtomicU64; KINDS.len()],
    internal_errors: AtomicU64,
    changes: AtomicU64,
    endpoint_changes: AtomicU64,
    convergence: [AtomicU64; CONVERGENCE_SECONDS.len()],
    convergence_count: AtomicU64,
    convergence_micros: AtomicU64,
}

impl Metrics {
    pub fn on_publish(&self, change: &Change) {
        let counter = if matches!(change, Change::Endpoints(_)) { &self.endpoint_changes } else { &self.changes };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub fn on_push(&self, type_url: &str) {
        add(&self.pushes, type_url);
    }

    pub fn on_refused(&self, type_url: &str) {
        add(&self.refusals, type_url);
    }

    /// A stream ended because of what the client sent.
    pub fn on_internal_error(&self) {
        self.internal_errors.fetch_add(1, Ordering::Relaxed);
    }

    /// A proxy took over what was published `elapsed` ago.
    pub fn on_accepted(&self, elapsed: Duration) {
        let bounds = self.convergence.iter().zip(CONVERGENCE_SECONDS);
        for (counter, _) in bounds.filter(|(_, bound)| elapsed.as_secs_f64() <= *bound) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        self.convergence_count.fetch_add(1, Ordering::Relaxed);
        self.convergence_micros.fetch_add(u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// The page for Prometheus (text format 0.0.4).
    pub fn page(&self, client_count: usize) -> String {
        let mut page = String::new();
        let version = env!("CARGO_PKG_VERSION");
        let head = |page: &mut String, name: &str, kind: &str, help: &str| {
            // Writing to a String cannot fail.
            let _ = writeln!(page, "# HELP {name} {help}\n# TYPE {name} {kind}");
        };
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        head(&mut page, "pilot_info", "gauge", "Version of the control plane.");
        let _ = writeln!(page, "pilot_info{{version=\"{version}\"}} 1");
        head(&mut page, "pilot_xds", "gauge", "Number of endpoints connected to this control plane using XDS.");
        let _ = writeln!(page, "pilot_xds{{version=\"{version}\"}} {client_count}");
        head(&mut page, "pilot_xds_pushes", "counter", "Pushes by type.");
        for ((_, kind), counter) in KINDS.iter().zip(&self.pushes) {
            let _ = writeln!(page, "pilot_xds_pushes{{type=\"{kind}\"}} {}", load(counter));
        }
        head(&mut page, "pilot_total_xds_rejects", "counter", "Pushes that a proxy refused, by type.");
        for ((_, kind), counter) in KINDS.iter().zip(&self.refusals) {
            let _ = writeln!(page, "pilot_total_xds_rejects{{type=\"{kind}\"}} {}", load(counter));
        }
        head(
            &mut page,
            "pilot_total_xds_internal_errors",
            "counter",
            "Streams that ended because of what was said on them.",
        );
        let _ = writeln!(page, "pilot_total_xds_internal_errors {}", load(&self.internal_errors));
        head(&mut page, "pilot_push_triggers", "counter", "Published changes by reason.");
        let _ = writeln!(page, "pilot_push_triggers{{type=\"config\"}} {}", load(&self.changes));
        let _ = writeln!(page, "pilot_push_triggers{{type=\"endpoint\"}} {}", load(&self.endpoint_changes));
        let name = "pilot_proxy_convergence_time";
        head(&mut page, name, "histogram", "Seconds from the publication of a change to its acceptance by a proxy.");
        for (bound, counter) in CONVERGENCE_SECONDS.iter().zip(&self.convergence) {
            let _ = writeln!(page, "{name}_bucket{{le=\"{bound}\"}} {}", load(counter));
        }
        let count = load(&self.convergence_count);
        let _ = writeln!(page, "{name}_bucket{{le=\"+Inf\"}} {count}");
        let _ = writeln!(page, "{name}_sum {}", load(&self.convergence_micros) as f64 / 1e6);
        let _ = writeln!(page, "{name}_count {count}");
        page
    }
}

fn add(counters: &[AtomicU64; KINDS.len()], type_url: &str) {
    let index = KINDS.iter().position(|(known, _)| *known == type_url).unwrap_or(KINDS.len() - 1);
    if let Some(counter) = counters.get(index) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// Type URLs and how metrics call them; the last is for all others.
const KINDS: [(&str, &str); 6] = [
    (url::CLUSTER, "cds"),
    (url::ENDPOINTS, "eds"),
    (url::LISTENER, "lds"),
    (url::ROUTES, "rds"),
    (url::SECRET, "sds"),
    ("", "other"),
];
const CONVERGENCE_SECONDS: [f64; 9] = [0.005, 0.02, 0.1, 0.5, 1.0, 3.0, 5.0, 10.0, 30.0];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_told_by_istios_names() {
        let metrics = Metrics::default();
        metrics.on_push(url::CLUSTER);
        metrics.on_refused("other");
        metrics.on_accepted(Duration::from_millis(30));
        let page = metrics.page(3);
        for line in [
            "pilot_xds_pushes{type=\"cds\"} 1",
            "pilot_total_xds_rejects{type=\"other\"} 1",
            "pilot_proxy_convergence_time_bucket{le=\"0.02\"} 0",
            "pilot_proxy_convergence_time_bucket{le=\"0.1\"} 1",
        ] {
            assert!(page.lines().any(|known| known == line), "{line}\n{page}");
        }
    }
}
