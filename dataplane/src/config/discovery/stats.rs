//! `cluster_manager.*`, `listener_manager.*`, `http.<prefix>.rds.<name>.*`, `sds.<name>.*`, the `update_*` of clusters and `control_plane.*`.
//!
//! An attempt is the first request, and whatever follows an answer or the end of a stream.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use xxhash_rust::xxh64::xxh64;

use crate::telemetry::counters::{Core, Stats};
use crate::telemetry::names::{ClusterManagerStat, ControlPlaneStat, ListenerManagerStat, UpdateStat};
use crate::telemetry::registry::Registry;

/// Counters of discovery; the config thread writes them.
pub(super) struct DiscoveryStats {
    pub core: Core,
    registry: Arc<Registry>,
    pub control_plane: Arc<Stats<ControlPlaneStat>>,
    pub cluster_manager: Arc<Stats<ClusterManagerStat>>,
    pub listener_manager: Arc<Stats<ListenerManagerStat>>,
    pub clusters: Option<Arc<Stats<UpdateStat>>>,
    pub listeners: Option<Arc<Stats<UpdateStat>>>,
    /// By the name of the table.
    pub routes: HashMap<Box<str>, Arc<Stats<UpdateStat>>>,
    /// By the name of the secret.
    pub secrets: HashMap<Box<str>, Arc<Stats<UpdateStat>>>,
}

impl DiscoveryStats {
    pub(super) fn new(registry: &Arc<Registry>) -> Self {
        Self {
            core: registry.config_core(),
            registry: registry.clone(),
            control_plane: registry.group("control_plane."),
            cluster_manager: registry.group("cluster_manager."),
            listener_manager: registry.group("listener_manager."),
            clusters: None,
            listeners: None,
            routes: HashMap::new(),
            secrets: HashMap::new(),
        }
    }

    /// All clusters are asked for.
    pub(super) fn follow_clusters(&mut self) {
        let stats = self.registry.group("cluster_manager.cds.");
        self.begin(&stats, true);
        self.clusters = Some(stats);
    }

    /// All listeners are asked for.
    pub(super) fn follow_listeners(&mut self) {
        let stats = self.registry.group("listener_manager.lds.");
        self.begin(&stats, false);
        self.listeners = Some(stats);
    }

    /// The table `name` is asked for, by a connection manager with this `stat_prefix`. What the text of its version is called, where
    /// that is new.
    pub(super) fn follow_table(&mut self, name: &str, stat_prefix: &str) -> Option<String> {
        if self.routes.contains_key(name) {
            return None;
        }
        let stats = self.registry.group(&format!("http.{stat_prefix}.rds.{name}."));
        self.begin(&stats, true);
        stats.add(self.core, UpdateStat::UpdateEmpty, 0);
        let text = format!("{}version_text", stats.prefix());
        self.routes.insert(name.into(), stats);
        Some(text)
    }

    /// The secret `name` is asked for. What the text of its version is called, where that is new.
    pub(super) fn follow_secret(&mut self, name: &str) -> Option<String> {
        if self.secrets.contains_key(name) {
            return None;
        }
        let stats = self.registry.group(&format!("sds.{name}."));
        self.begin(&stats, false);
        stats.add(self.core, UpdateStat::KeyRotationFailed, 0);
        let text = format!("{}version_text", stats.prefix());
        self.secrets.insert(name.into(), stats);
        Some(text)
    }

    fn begin(&self, stats: &Stats<UpdateStat>, counts_reloads: bool) {
        stats.increment(self.core, UpdateStat::UpdateAttempt);
        if counts_reloads {
            stats.add(self.core, UpdateStat::ConfigReload, 0);
            stats.set(self.core, UpdateStat::ConfigReloadTimeMs, 0);
        }
    }

    /// An answer was taken.
    pub(super) fn succeeded(&self, stats: &Stats<UpdateStat>, version: &str, took: Duration, reloads: bool) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        stats.increment(self.core, UpdateStat::UpdateSuccess);
        stats.increment(self.core, UpdateStat::UpdateAttempt);
        stats.set(self.core, UpdateStat::UpdateTime, now);
        stats.set(self.core, UpdateStat::Version, xxh64(version.as_bytes(), 0) & VERSION_BITS);
        stats.record(self.core, UpdateStat::UpdateDuration, took.as_millis() as u64);
        if reloads {
            stats.increment(self.core, UpdateStat::ConfigReload);
            stats.set(self.core, UpdateStat::ConfigReloadTimeMs, now);
        }
    }

    /// An answer was refused, or none came.
    pub(super) fn failed(&self, stats: &Stats<UpdateStat>, how: UpdateStat) {
        stats.increment(self.core, how);
        if how != UpdateStat::InitFetchTimeout {
            stats.increment(self.core, UpdateStat::UpdateAttempt);
        }
    }
}

/// Of the hash of a version, as much as a gauge holds.
const VERSION_BITS: u64 = (1 << 62) - 1;
