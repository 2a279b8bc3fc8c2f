//! Where resources come from: a stream of all discovery, a server for one kind, a file.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use torus_xds::subscription::Protocol;

use super::connect::Place;
use super::kind::Kind;
use crate::tls::ClientTls;

/// One source. Source: envoy.config.core.v3.ConfigSource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The stream of all discovery. Source: Bootstrap.dynamic_resources.ads_config.
    Ads(GrpcTarget),
    /// A server of its own for one kind.
    Grpc(Kind, GrpcTarget),
    /// A file with resources of one kind.
    File {
        /// Of what.
        kind: Kind,
        /// Where it is.
        path: PathBuf,
        /// How often it is looked at.
        poll_interval: Duration,
    },
}

/// A server of discovery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrpcTarget {
    /// State of the world or delta.
    pub protocol: Protocol,
    /// The servers; the next one is asked where one fails.
    pub servers: Box<[Server]>,
    /// Say who asks once a stream.
    pub node_once: bool,
}

/// A server, or those that a cluster stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Server {
    /// The endpoints of this static cluster. Source: GrpcService.EnvoyGrpc.
    Cluster(Box<str>),
    /// One that is named by its URI. Source: GrpcService.GoogleGrpc.
    Google(GoogleServer),
}

/// A server that is no cluster's.
#[derive(Clone)]
pub struct GoogleServer {
    /// Where it is.
    pub place: Place,
    /// How it is spoken to; in the clear where `None`.
    pub tls: Option<Arc<ClientTls>>,
    /// Tells one configuration of [`Self::tls`] from another.
    pub credentials: u64,
}

impl PartialEq for GoogleServer {
    fn eq(&self, other: &Self) -> bool {
        (&self.place, self.credentials) == (&other.place, other.credentials)
    }
}

impl Eq for GoogleServer {}

impl fmt::Debug for GoogleServer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {:x}", self.place, self.credentials)
    }
}

impl Source {
    /// What it brings.
    pub fn kinds(&self) -> &[Kind] {
        match self {
            Self::Ads(_) => &Kind::ALL,
            Self::Grpc(kind, _) | Self::File { kind, .. } => std::slice::from_ref(kind),
        }
    }

    /// How it speaks.
    pub fn protocol(&self) -> Protocol {
        match self {
            Self::Ads(target) | Self::Grpc(_, target) => target.protocol,
            Self::File { .. } => Protocol::Sotw,
        }
    }

    /// The server, where it is one.
    pub fn target(&self) -> Option<&GrpcTarget> {
        match self {
            Self::Ads(target) | Self::Grpc(_, target) => Some(target),
            Self::File { .. } => None,
        }
    }
}

/// A source's place in [`Sources`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceIndex(pub u16);

/// Every source that was named so far; equal ones are one.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    all: Vec<Source>,
}

impl Sources {
    /// The place of `source`, which it keeps; `None` where there are too many.
    pub fn place(&mut self, source: Source) -> Option<SourceIndex> {
        let place = self.all.iter().position(|known| *known == source).unwrap_or_else(|| {
            self.all.push(source);
            self.all.len() - 1
        });
        u16::try_from(place).ok().filter(|place| *place < SOURCES_MAX).map(SourceIndex)
    }

    /// The stream of all discovery, where there is one.
    pub fn ads(&self) -> Option<SourceIndex> {
        let place = self.all.iter().position(|source| matches!(source, Source::Ads(_)))?;
        u16::try_from(place).ok().map(SourceIndex)
    }

    /// Every source by its place.
    pub fn iter(&self) -> impl Iterator<Item = (SourceIndex, &Source)> {
        (0u16..).map(SourceIndex).zip(&self.all)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }
}

/// What a resource that is named elsewhere is asked from, and how long it may be missing at first; zero is for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Whom.
    pub source: SourceIndex,
    /// Source: ConfigSource.initial_fetch_timeout.
    pub limit: Duration,
}

/// Sources in the life of a process; each is a connection or a file.
const SOURCES_MAX: u16 = 1024;
