//! Where a host runs.

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
