//! A worker's ring as stats: `torus.ring.*`.

use std::sync::Arc;
use std::time::Duration;

use torus_ring::{Ring, RingStats};

use crate::telemetry::counters::{Core, Stats};
use crate::telemetry::names::TorusStat;

/// Writes the ring's own counts to `stats` every second, for as long as the ring runs.
pub async fn report(ring: Ring, stats: Arc<Stats<TorusStat>>, core: Core) {
    loop {
        write(&ring.stats(), &stats, core);
        ring.sleep(REPORT_INTERVAL).await;
    }
}

fn write(ring: &RingStats, stats: &Stats<TorusStat>, core: Core) {
    for (stat, value) in [
        (TorusStat::LoopLagMaxUs, ring.loop_lag_max.as_micros() as u64),
        (TorusStat::RingBuffersLeased, ring.buffers_leased),
        (TorusStat::RingCancelled, ring.cancelled),
        (TorusStat::RingCompletionOverflow, ring.completions_overflowed),
        (TorusStat::RingEnters, ring.enters),
        (TorusStat::RingNoBuffers, ring.buffers_exhausted),
        (TorusStat::RingOperationsInFlight, ring.operations_in_flight),
        (TorusStat::RingSocketsOpen, ring.sockets_open),
        (TorusStat::RingSocketsParked, ring.sockets_parked),
        (TorusStat::RingTaskPanics, ring.task_panics),
        (TorusStat::RingTurns, ring.turns),
    ] {
        stats.set(core, stat, value);
    }
}

const REPORT_INTERVAL: Duration = Duration::from_secs(1);
