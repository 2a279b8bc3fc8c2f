//! `server.*`, `listener_manager.*`, `cluster_manager.*` and the like: stats of the process, measured when they are read.

use std::sync::Arc;

use super::counters::{Core, Stats};
use super::names::{
    ClusterManagerStat, Http1Stat, ListenerManagerStat, RuntimeStat, ServerStat, TorusStat, WatchdogStat,
};
use super::registry::Registry;
use crate::config::discovery::records::Counts;
use crate::config::lifecycle::Lifecycle;
use crate::config::snapshot::Snapshot;

/// The groups that belong to the process and not to a part of its configuration.
pub struct ServerStats {
    core: Core,
    /// `server.`
    pub server: Arc<Stats<ServerStat>>,
    /// `listener_manager.`
    pub listener_manager: Arc<Stats<ListenerManagerStat>>,
    /// `cluster_manager.`
    pub cluster_manager: Arc<Stats<ClusterManagerStat>>,
    /// `runtime.`
    pub runtime: Arc<Stats<RuntimeStat>>,
    /// `http1.`
    pub http1: Arc<Stats<Http1Stat>>,
    /// `torus.`
    pub torus: Arc<Stats<TorusStat>>,
    /// `main_thread.` and `server.main_thread.`
    pub main_thread: [Arc<Stats<WatchdogStat>>; 2],
}

impl ServerStats {
    /// The groups, with the values that do not change.
    pub fn new(registry: &Registry, version: &str) -> Self {
        let stats = Self {
            core: registry.config_core(),
            server: registry.group("server."),
            listener_manager: registry.group("listener_manager."),
            cluster_manager: registry.group("cluster_manager."),
            runtime: registry.group("runtime."),
            http1: registry.group("http1."),
            torus: registry.group("torus."),
            main_thread: [registry.group("main_thread."), registry.group("server.main_thread.")],
        };
        let (major, minor, patch) = version_number(version);
        for (stat, value) in [
            (ServerStat::Concurrency, registry.core_count().saturating_sub(1) as u64),
            (ServerStat::HotRestartEpoch, 0),
            (ServerStat::HotRestartGeneration, 1),
            (ServerStat::CompilationSettingsFipsMode, 0),
            // Source: Envoy's value where there is no certificate.
            (ServerStat::DaysUntilFirstCertExpiring, u64::from(u32::MAX)),
            (ServerStat::SecondsUntilFirstOcspResponseExpiring, 0),
            (ServerStat::ParentConnections, 0),
            (ServerStat::Version, (major << 16) | (minor << 8) | patch),
        ] {
            stats.server.set(stats.core, stat, value);
        }
        stats
    }

    /// Counts the configuration that was loaded at start.
    pub fn loaded(&self, snapshot: &Snapshot) {
        let (listeners, clusters) = (snapshot.listeners.len() as u64, snapshot.live_clusters().count() as u64);
        self.listener_manager.add(self.core, ListenerManagerStat::ListenerAdded, listeners);
        self.cluster_manager.add(self.core, ClusterManagerStat::ClusterAdded, clusters);
        self.runtime.increment(self.core, RuntimeStat::LoadSuccess);
    }

    /// Counts that a worker listens on all sockets of its listeners.
    pub fn listeners_created(&self, count: u64) {
        self.listener_manager.add(self.core, ListenerManagerStat::ListenerCreateSuccess, count);
    }

    /// Measures what changes by itself.
    pub fn refresh(&self, lifecycle: &Lifecycle, snapshot: &Snapshot, discovered: Counts) {
        let phase = lifecycle.phase();
        // Source: envoy.admin.v3.ServerInfo.State.
        let state = match () {
            () if phase.is_warming() => 2,
            () if phase.health_failed() || phase.is_leaving() => 1,
            () => 0,
        };
        let memory = ProcessMemory::read();
        for (stat, value) in [
            (ServerStat::Uptime, lifecycle.started().elapsed().as_secs()),
            (ServerStat::State, state),
            (ServerStat::Live, u64::from(state == 0)),
            (ServerStat::TotalConnections, lifecycle.connections()),
            (ServerStat::MemoryAllocated, memory.allocated_bytes),
            (ServerStat::MemoryHeapSize, memory.heap_bytes),
            (ServerStat::MemoryPhysicalSize, memory.resident_bytes),
        ] {
            self.server.set(self.core, stat, value);
        }
        let listening = |count: usize| {
            let stopped =
                |listener: &&Arc<crate::config::snapshot::Listener>| phase.listeners_stopped(listener.direction);
            count - snapshot.listeners.iter().filter(stopped).count()
        };
        let (listeners, clusters) = (snapshot.listeners.len(), snapshot.live_clusters().count() as u64);
        for (stat, value) in [
            (ListenerManagerStat::TotalListenersActive, if phase.is_warming() { 0 } else { listening(listeners) }),
            (ListenerManagerStat::TotalListenersDraining, discovered.listeners_draining as usize),
            (
                ListenerManagerStat::TotalListenersWarming,
                discovered.listeners_warming as usize + if phase.is_warming() { listeners } else { 0 },
            ),
            (ListenerManagerStat::WorkersStarted, usize::from(!phase.is_warming())),
        ] {
            self.listener_manager.set(self.core, stat, value as u64);
        }
        self.cluster_manager.set(self.core, ClusterManagerStat::ActiveClusters, clusters);
        self.cluster_manager.set(self.core, ClusterManagerStat::WarmingClusters, discovered.clusters_warming);
        for (_, cluster) in snapshot.live_clusters() {
            cluster.refresh_gauges(self.core);
        }
        self.torus.set(self.core, TorusStat::ConfigVersion, snapshot.version);
    }
}

/// Memory of this process, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessMemory {
    /// Resident and not shared with another process.
    pub allocated_bytes: u64,
    /// Data segment and heap, whether resident or not.
    pub heap_bytes: u64,
    /// Resident.
    pub resident_bytes: u64,
}

impl ProcessMemory {
    /// What the kernel counts now; zero where it does not say. Source: proc(5), `/proc/pid/statm`.
    pub fn read() -> Self {
        let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
        Self::parse(&text).unwrap_or_default()
    }

    fn parse(statm: &str) -> Option<Self> {
        let mut pages = statm.split_ascii_whitespace().map(|field| field.parse::<u64>().ok());
        let (_total, resident, shared) = (pages.next()??, pages.next()??, pages.next()??);
        let data = pages.nth(2)??;
        Some(Self {
            allocated_bytes: resident.saturating_sub(shared) * PAGE_BYTES,
            heap_bytes: data * PAGE_BYTES,
            resident_bytes: resident * PAGE_BYTES,
        })
    }
}

/// `1.40.0` as numbers; what is no number is 0.
pub fn version_number(version: &str) -> (u64, u64, u64) {
    let mut numbers = version.split('.').map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Of x86-64 and of most arm64 kernels.
const PAGE_BYTES: u64 = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_the_kernel() {
        let memory = ProcessMemory::parse("100 50 20 5 0 70 0\n").unwrap();
        assert_eq!(memory, ProcessMemory { allocated_bytes: 30 << 12, heap_bytes: 70 << 12, resident_bytes: 50 << 12 });
        assert_eq!(ProcessMemory::parse("100 x"), None);
        assert!(ProcessMemory::read().resident_bytes > 0);
    }

    #[test]
    fn versions_are_numbers() {
        assert_eq!(version_number("1.40.2"), (1, 40, 2));
        assert_eq!(version_number("1"), (1, 0, 0));
    }
}
