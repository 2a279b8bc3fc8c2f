//! Where a peer is: an IP address and port, or a path.

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::mem;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

/// A peer that can be connected to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PeerAddr {
    /// An IP address and port.
    Ip(SocketAddr),
    /// A unix socket's path; a leading `@` is the abstract namespace, an empty path a peer without a name.
    Path(Arc<Path>),
}

impl fmt::Display for PeerAddr {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(formatter),
            Self::Path(path) => path.display().fmt(formatter),
        }
    }
}

impl From<SocketAddr> for PeerAddr {
    fn from(address: SocketAddr) -> Self {
        Self::Ip(address)
    }
}

/// A peer in the kernel's layout.
pub(crate) struct RawAddr {
    storage: libc::sockaddr_storage,
    length: libc::socklen_t,
}

impl RawAddr {
    /// Room for an address that the kernel writes.
    pub(crate) fn empty() -> Self {
        // SAFETY: sockaddr_storage is plain integers, for which all zeroes is a value.
        let storage = unsafe { mem::zeroed::<libc::sockaddr_storage>() };
        Self { storage, length: mem::size_of::<libc::sockaddr_storage>() as libc::socklen_t }
    }

    pub(crate) fn pointer(&self) -> *const libc::sockaddr {
        (&raw const self.storage).cast()
    }

    pub(crate) fn pointer_mut(&mut self) -> *mut libc::sockaddr {
        (&raw mut self.storage).cast()
    }

    pub(crate) fn length(&self) -> libc::socklen_t {
        self.length
    }

    pub(crate) fn length_mut(&mut self) -> &mut libc::socklen_t {
        &mut self.length
    }

    /// The address family, for socket(2).
    pub(crate) fn family(&self) -> libc::c_int {
        libc::c_int::from(self.storage.ss_family)
    }

    /// Stores one of the kernel's address structures.
    fn store<T: Copy>(address: T, length: usize) -> Self {
        let mut raw = Self::empty();
        assert!(
            mem::size_of::<T>() <= mem::size_of::<libc::sockaddr_storage>(),
            "an address structure fits its storage"
        );
        let target = (&raw mut raw.storage).cast::<T>();
        // SAFETY: the storage is large enough (asserted) and aligned for every address structure (its purpose).
        unsafe { target.write(address) };
        raw.length = length as libc::socklen_t;
        raw
    }

    /// Reads the stored bytes as one of the kernel's address structures.
    fn load<T: Copy>(&self) -> T {
        assert!(
            mem::size_of::<T>() <= mem::size_of::<libc::sockaddr_storage>(),
            "an address structure fits its storage"
        );
        let source = (&raw const self.storage).cast::<T>();
        // SAFETY: the storage is initialised in full, large enough (asserted), aligned, and T is plain integers.
        unsafe { source.read() }
    }

    /// What the kernel wrote, as a peer.
    pub(crate) fn to_peer(&self) -> io::Result<PeerAddr> {
        match self.family() {
            libc::AF_INET => {
                let address: libc::sockaddr_in = self.load();
                let ip = Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr));
                Ok(PeerAddr::Ip(SocketAddrV4::new(ip, u16::from_be(address.sin_port)).into()))
            }
            libc::AF_INET6 => {
                let address: libc::sockaddr_in6 = self.load();
                let ip = Ipv6Addr::from(address.sin6_addr.s6_addr);
                let port = u16::from_be(address.sin6_port);
                Ok(PeerAddr::Ip(SocketAddrV6::new(ip, port, address.sin6_flowinfo, address.sin6_scope_id).into()))
            }
            libc::AF_UNIX => {
                let address: libc::sockaddr_un = self.load();
                let length = (self.length as usize).saturating_sub(mem::offset_of!(libc::sockaddr_un, sun_path));
                let mut name: Vec<u8> = address.sun_path.iter().take(length).map(|&byte| byte as u8).collect();
                match name.first() {
                    None => {}
                    Some(0) => name[0] = b'@',
                    Some(_) => name.truncate(name.iter().position(|&byte| byte == 0).unwrap_or(name.len())),
                }
                Ok(PeerAddr::Path(Path::new(OsStr::from_bytes(&name)).into()))
            }
            family => Err(io::Error::new(io::ErrorKind::Unsupported, format!("address family {family}"))),
        }
    }
}

impl TryFrom<&PeerAddr> for RawAddr {
    type Error = io::Error;

    fn try_from(peer: &PeerAddr) -> io::Result<RawAddr> {
        match peer {
            PeerAddr::Ip(SocketAddr::V4(address)) => Ok(RawAddr::store(
                libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: address.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from(*address.ip()).to_be() },
                    sin_zero: [0; 8],
                },
                mem::size_of::<libc::sockaddr_in>(),
            )),
            PeerAddr::Ip(SocketAddr::V6(address)) => Ok(RawAddr::store(
                libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: address.port().to_be(),
                    sin6_flowinfo: address.flowinfo(),
                    sin6_addr: libc::in6_addr { s6_addr: address.ip().octets() },
                    sin6_scope_id: address.scope_id(),
                },
                mem::size_of::<libc::sockaddr_in6>(),
            )),
            PeerAddr::Path(path) => {
                let name = path.as_os_str().as_bytes();
                let abstract_name = name.first() == Some(&b'@');
                let mut address =
                    libc::sockaddr_un { sun_family: libc::AF_UNIX as libc::sa_family_t, sun_path: [0; 108] };
                // A path in the file system ends with a zero byte; an abstract name has its own length (unix(7)).
                let room = address.sun_path.len() - usize::from(!abstract_name);
                if name.is_empty() || name.len() > room || name.contains(&0) {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidInput,
                        format!("a unix socket's path must have 1 to {room} bytes and no zero byte"),
                    ));
                }
                for (target, &byte) in address.sun_path.iter_mut().zip(name) {
                    *target = byte as libc::c_char;
                }
                if abstract_name {
                    address.sun_path[0] = 0;
                }
                let length = mem::offset_of!(libc::sockaddr_un, sun_path) + name.len() + usize::from(!abstract_name);
                Ok(RawAddr::store(address, length))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_survive_the_kernels_layout() {
        let check = |peer: PeerAddr| assert_eq!(RawAddr::try_from(&peer).unwrap().to_peer().unwrap(), peer);
        check(PeerAddr::Ip("127.0.0.1:80".parse().unwrap()));
        check(PeerAddr::Ip("[2001:db8::1%3]:65535".parse().unwrap()));
        check(PeerAddr::Path(Path::new("/run/a.sock").into()));
        check(PeerAddr::Path(Path::new("@name").into()));
        check(PeerAddr::Path(Path::new(&"x".repeat(107)).into()));
        check(PeerAddr::Path(Path::new(&format!("@{}", "x".repeat(107))).into()));
    }

    #[test]
    fn paths_that_do_not_fit_are_refused() {
        let check = |path: &str| {
            let refused = RawAddr::try_from(&PeerAddr::Path(Path::new(path).into()));
            assert_eq!(refused.err().map(|error| error.kind()), Some(io::ErrorKind::InvalidInput), "{path:?}");
        };
        check("");
        check(&"x".repeat(108));
        check(&format!("@{}", "x".repeat(108)));
        check("a\0b");
    }
}
