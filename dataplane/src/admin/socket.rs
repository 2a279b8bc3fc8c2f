//! The admin server's listening socket.

use std::io;
use std::net::SocketAddr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use thiserror::Error;

use crate::config::address::Address;

/// A bound socket, not served yet.
pub struct AdminSocket {
    pub(super) kind: SocketKind,
    address: Address,
}

pub(super) enum SocketKind {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener),
}

/// Why the admin server cannot listen.
#[derive(Debug, Error)]
#[error("admin server cannot listen on {address}: {source}; {}", cure(.source, .address))]
pub struct BindError {
    address: String,
    source: io::Error,
}

fn cure(error: &io::Error, address: &str) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!(
                "another process has it (`ss -ltnp` or `ss -lxp` shows which); stop it or change admin.address ({address})"
            )
        }
        io::ErrorKind::PermissionDenied => "use a port above 1023 or a folder that this user may write".to_owned(),
        io::ErrorKind::AddrNotAvailable => "no interface has this address; use 127.0.0.1".to_owned(),
        io::ErrorKind::NotFound => "create the folder of the socket first".to_owned(),
        _ => "change admin.address".to_owned(),
    }
}

impl AdminSocket {
    /// Binds `address`; port 0 takes a free one.
    pub fn bind(address: &Address) -> Result<Self, BindError> {
        let bound = match address {
            Address::Ip(ip) => bind_tcp(*ip).map(|(socket, ip)| (SocketKind::Tcp(socket), Address::Ip(ip))),
            Address::Pipe(path) => bind_unix(path).map(|socket| (SocketKind::Unix(socket), address.clone())),
        };
        match bound {
            Ok((kind, address)) => Ok(Self { kind, address }),
            Err(source) => Err(BindError { address: address.to_string(), source }),
        }
    }

    /// Where it listens, with the real port.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Writes the address to the file of `--admin-address-path`.
    pub fn write_address(&self, path: &Path) -> io::Result<()> {
        std::fs::write(path, self.address.to_string())
    }
}

fn bind_tcp(address: SocketAddr) -> io::Result<(std::net::TcpListener, SocketAddr)> {
    // The standard library sets SO_REUSEADDR, so that a restart does not wait for TIME_WAIT.
    let socket = std::net::TcpListener::bind(address)?;
    socket.set_nonblocking(true)?;
    let address = socket.local_addr()?;
    Ok((socket, address))
}

fn bind_unix(path: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
    let text = path.as_os_str().as_encoded_bytes();
    let socket = match text.strip_prefix(b"@") {
        Some(name) => UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?),
        None => {
            // A socket file outlives its process; one that nobody answers on is left over.
            let is_socket = std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
            if is_socket
                && UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
            {
                std::fs::remove_file(path)?;
            }
            UnixListener::bind(path)
        }
    }?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_names_the_cure() {
        let first = AdminSocket::bind(&Address::Ip("127.0.0.1:0".parse().unwrap())).unwrap();
        assert_ne!(first.address().ip().map(|ip| ip.port()), Some(0));
        let error = AdminSocket::bind(first.address()).err().unwrap().to_string();
        assert!(error.starts_with("admin server cannot listen on 127.0.0.1:") && error.contains("ss -ltnp"), "{error}");
    }

    #[test]
    fn a_left_over_socket_file_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        let address = Address::Pipe(path.as_path().into());
        let first = AdminSocket::bind(&address).unwrap();
        assert!(AdminSocket::bind(&address).is_err());
        drop(first);
        let second = AdminSocket::bind(&address).unwrap();
        let file = folder.path().join("address");
        second.write_address(&file).unwrap();
        assert_eq!(std::fs::read_to_string(file).unwrap(), path.to_str().unwrap());
        let other = folder.path().join("file");
        std::fs::write(&other, "kept").unwrap();
        assert!(AdminSocket::bind(&Address::Pipe(other.as_path().into())).is_err());
        assert_eq!(std::fs::read_to_string(other).unwrap(), "kept");
    }

    #[test]
    fn abstract_names_leave_no_file() {
        let name = format!("@torus-admin-test-{}", std::process::id());
        let address = Address::Pipe(Path::new(&name).into());
        let first = AdminSocket::bind(&address).unwrap();
        assert!(AdminSocket::bind(&address).is_err());
        drop(first);
        AdminSocket::bind(&address).unwrap();
    }
}
