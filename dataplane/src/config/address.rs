//! Where a socket listens or connects: an IP address and port, or a path.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use torus_ring::PeerAddr;

/// A socket's address.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Address {
    /// IPv4 or IPv6 with a port.
    Ip(SocketAddr),
    /// A unix socket; a leading `@` means the abstract namespace.
    Pipe(Arc<Path>),
}

impl Address {
    /// The IP address and port, if it has one.
    pub fn ip(&self) -> Option<SocketAddr> {
        match self {
            Self::Ip(address) => Some(*address),
            Self::Pipe(_) => None,
        }
    }
}

impl From<&PeerAddr> for Address {
    fn from(peer: &PeerAddr) -> Self {
        match peer {
            PeerAddr::Ip(address) => Self::Ip(*address),
            PeerAddr::Path(path) => Self::Pipe(Arc::clone(path)),
        }
    }
}

impl From<&Address> for PeerAddr {
    fn from(address: &Address) -> Self {
        match address {
            Address::Ip(address) => Self::Ip(*address),
            Address::Pipe(path) => Self::Path(Arc::clone(path)),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Pipe(path) => path.display().fmt(f),
        }
    }
}
