//! Where a host runs.

use std::sync::{Arc, LazyLock};

/// Region, zone and sub-zone; ordered as Envoy orders localities. Source: envoy.config.core.v3.Locality.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Locality {
    /// For instance a cloud region.
    pub region: Box<str>,
    /// For instance an availability zone.
    pub zone: Box<str>,
    /// For instance a rack.
    pub sub_zone: Box<str>,
}

static NOWHERE: LazyLock<Arc<Locality>> = LazyLock::new(Arc::default);

impl Locality {
    /// The locality without names, in memory that all share.
    pub fn nowhere() -> Arc<Self> {
        Arc::clone(&NOWHERE)
    }
}
