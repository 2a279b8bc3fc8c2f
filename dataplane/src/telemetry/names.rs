//! Every metric name, once, as Envoy spells it. A variant is the name in CamelCase.

use super::counters::{StatDefinition, StatGroup, StatKind};

macro_rules! stat_group {
    ($(#[$doc:meta])* $group:ident { $($variant:ident = $kind:ident $name:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $group { $(#[doc = $name] $variant,)* }
        impl StatGroup for $group {
            const DEFINITIONS: &'static [StatDefinition] =
                &[$(StatDefinition { name: $name, kind: StatKind::$kind },)*];
            #[inline]
            fn index(self) -> usize { self as usize }
        }
    };
}

stat_group! {
    /// `listener.<address>.`
    ListenerStat {
        DownstreamCxTotal = Counter "downstream_cx_total",
        DownstreamCxActive = Gauge "downstream_cx_active",
        DownstreamCxDestroy = Counter "downstream_cx_destroy",
        DownstreamCxOverflow = Counter "downstream_cx_overflow",
    }
}

stat_group! {
    /// `http.<stat_prefix>.`
    HttpStat {
        DownstreamCxTotal = Counter "downstream_cx_total",
        DownstreamRqTotal = Counter "downstream_rq_total",
    }
}

stat_group! {
    /// `cluster.<name>.`
    ClusterStat {
        UpstreamCxTotal = Counter "upstream_cx_total",
        UpstreamRqTotal = Counter "upstream_rq_total",
    }
}
