//! Opens listening sockets; an error is one line that ends with its cure.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use socket2::{Domain, SockAddr, Socket, TcpKeepalive, Type};
use thiserror::Error;
use torus_ring::SocketOption;

use crate::config::address::Address;
use crate::config::snapshot::{ListenSocketOptions, Listener, SocketState};

/// The open sockets of one address.
#[derive(Debug)]
pub struct ListenSockets {
    /// As configured.
    pub configured: Address,
    /// Where they listen; the port is the real one where 0 was configured.
    pub address: Address,
    /// One for each worker (`reuse_port`), or one that all workers share.
    pub sockets: Vec<OwnedFd>,
}

impl ListenSockets {
    /// Refuses connections from now on, whoever still holds the sockets: a request that runs keeps its snapshot.
    pub fn stop(&self) {
        for socket in &self.sockets {
            // One that is not connected any more is what is wanted.
            let _ = socket2::SockRef::from(socket).shutdown(std::net::Shutdown::Both);
        }
    }

    /// The socket that worker number `worker` accepts on, as a file descriptor of its own.
    pub fn for_worker(&self, worker: usize) -> io::Result<OwnedFd> {
        let socket = self.sockets.get(worker).or(self.sockets.first());
        socket.ok_or_else(|| io::Error::from(ErrorKind::NotConnected))?.try_clone()
    }
}

/// Why an address cannot be listened on.
#[derive(Debug, Error)]
#[error("listener `{listener}`: cannot listen on {address}: {error}{}", cure(.address, .error))]
pub struct ListenError {
    /// Name of the listener.
    pub listener: Box<str>,
    /// The address.
    pub address: Address,
    /// What the kernel said.
    pub error: io::Error,
}

/// Opens every address of `listener`, in order. Nothing stays open where one of them fails.
pub fn open(listener: &Listener, worker_count: usize) -> Result<Vec<ListenSockets>, ListenError> {
    listener.sockets().map(|(address, options)| open_one(listener, address, options, worker_count)).collect()
}

/// Opens one address of `listener`.
pub fn open_one(
    listener: &Listener,
    address: &Address,
    options: &ListenSocketOptions,
    worker_count: usize,
) -> Result<ListenSockets, ListenError> {
    open_address(address, options, listener.reuse_port, listener.backlog, worker_count).map_err(|error| ListenError {
        listener: listener.name.clone(),
        address: address.clone(),
        error,
    })
}

fn open_address(
    address: &Address,
    options: &ListenSocketOptions,
    reuse_port: bool,
    backlog: u32,
    worker_count: usize,
) -> io::Result<ListenSockets> {
    match address {
        Address::Ip(wanted) => {
            let count = if reuse_port { worker_count.max(1) } else { 1 };
            let first = open_ip(*wanted, options, reuse_port, backlog)?;
            // The kernel chose a port for the first socket; the others must share it.
            let bound = first.local_addr()?.as_socket().unwrap_or(*wanted);
            let mut sockets = vec![first.into()];
            for _ in 1..count {
                sockets.push(open_ip(bound, options, reuse_port, backlog)?.into());
            }
            Ok(ListenSockets { configured: address.clone(), address: Address::Ip(bound), sockets })
        }
        Address::Pipe(path) => {
            let socket = open_pipe(path, options, backlog)?;
            let address = Address::Pipe(Arc::clone(path));
            Ok(ListenSockets { configured: address.clone(), address, sockets: vec![socket.into()] })
        }
    }
}

fn open_ip(address: SocketAddr, options: &ListenSocketOptions, reuse_port: bool, backlog: u32) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(reuse_port)?;
    if address.is_ipv6() {
        socket.set_only_v6(!options.ipv4_compat)?;
    }
    if options.freebind {
        if address.is_ipv6() { socket.set_freebind_v6(true) } else { socket.set_freebind_v4(true) }?;
    }
    if options.transparent {
        if address.is_ipv6() {
            integer_option(libc::IPPROTO_IPV6, libc::IPV6_TRANSPARENT, 1).apply(&socket)
        } else {
            socket.set_ip_transparent_v4(true)
        }?;
    }
    if let Some(keepalive) = &options.keepalive {
        // Accepted sockets inherit it (tcp(7)).
        socket.set_keepalive(true)?;
        let wanted = TcpKeepalive::new();
        let wanted = keepalive.idle.map_or(wanted.clone(), |idle| wanted.with_time(idle));
        let wanted = keepalive.interval.map_or(wanted.clone(), |interval| wanted.with_interval(interval));
        let wanted = keepalive.probe_count.map_or(wanted.clone(), |count| wanted.with_retries(count));
        socket.set_tcp_keepalive(&wanted)?;
    }
    apply(options, SocketState::Prebind, &socket)?;
    socket.bind(&address.into())?;
    apply(options, SocketState::Bound, &socket)?;
    if let Some(length) = options.fast_open_queue {
        let length = i32::try_from(length).unwrap_or(i32::MAX);
        integer_option(libc::IPPROTO_TCP, libc::TCP_FASTOPEN, length).apply(&socket)?;
    }
    socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
    apply(options, SocketState::Listening, &socket)?;
    Ok(socket)
}

fn open_pipe(path: &Path, options: &ListenSocketOptions, backlog: u32) -> io::Result<Socket> {
    let is_abstract = path.as_os_str().as_bytes().first() == Some(&b'@');
    let address = if is_abstract { SockAddr::unix(abstract_name(path))? } else { SockAddr::unix(path)? };
    if !is_abstract && std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
        // Left over from a run before, as in Envoy. Anything but a socket stays, and bind says that it exists.
        std::fs::remove_file(path)?;
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    apply(options, SocketState::Prebind, &socket)?;
    socket.bind(&address)?;
    if let Some(mode) = options.pipe_mode.filter(|_| !is_abstract) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    }
    apply(options, SocketState::Bound, &socket)?;
    socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
    apply(options, SocketState::Listening, &socket)?;
    Ok(socket)
}

/// `@name` as the kernel has it: a NUL, then the name (unix(7)).
fn abstract_name(path: &Path) -> PathBuf {
    let name = path.as_os_str().as_bytes().get(1..).unwrap_or_default();
    let mut bytes = vec![0];
    bytes.extend_from_slice(name);
    PathBuf::from(std::ffi::OsStr::from_bytes(&bytes))
}

fn apply(options: &ListenSocketOptions, state: SocketState, socket: &Socket) -> io::Result<()> {
    for option in options.raw.iter().filter(|option| option.state == state) {
        let raw = SocketOption { level: option.level, name: option.name, value: option.value.to_vec() };
        raw.apply(socket).map_err(|error| {
            io::Error::new(error.kind(), format!("socket option {}/{}: {error}", option.level, option.name))
        })?;
    }
    Ok(())
}

fn integer_option(level: i32, name: i32, value: i32) -> SocketOption {
    SocketOption { level, name, value: value.to_ne_bytes().into() }
}

/// What to do about it; empty where the error says all.
fn cure(address: &Address, error: &io::Error) -> String {
    match (error.kind(), address) {
        (ErrorKind::AddrInUse, Address::Ip(address)) => {
            format!("; see which process has the port: ss -ltnp 'sport = :{}'", address.port())
        }
        (ErrorKind::AddrInUse, Address::Pipe(path)) if path.exists() => {
            format!("; {} exists and is no socket: remove it or choose another path", path.display())
        }
        (ErrorKind::AddrInUse, Address::Pipe(_)) => "; see which process has it: ss -lxp".to_owned(),
        (ErrorKind::PermissionDenied, Address::Ip(address)) if address.port() < 1024 => {
            "; ports below 1024 need CAP_NET_BIND_SERVICE: run `setcap cap_net_bind_service=+ep` on the program, \
             or choose a higher port"
                .to_owned()
        }
        (ErrorKind::PermissionDenied, Address::Ip(_)) => "; transparent sockets need CAP_NET_ADMIN".to_owned(),
        (ErrorKind::PermissionDenied, Address::Pipe(path)) => {
            format!("; make {} writable for this user, or choose another path", folder(path).display())
        }
        (ErrorKind::NotFound, Address::Pipe(path)) => {
            format!("; create the folder: mkdir -p {}", folder(path).display())
        }
        (ErrorKind::AddrNotAvailable, Address::Ip(address)) => {
            format!(
                "; no interface has {}: see `ip address`, or set `freebind: true` to listen all the same",
                address.ip()
            )
        }
        _ if error.raw_os_error() == Some(libc::EMFILE) => "; too many open files: raise `ulimit -n`".to_owned(),
        _ => String::new(),
    }
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{SocketAddr as UnixAddress, UnixStream};
    use std::time::Duration;

    use super::*;
    use crate::config::snapshot::RawSocketOption;

    fn ip(text: &str) -> Address {
        Address::Ip(text.parse().unwrap())
    }

    fn pipe(path: impl AsRef<Path>) -> Address {
        Address::Pipe(path.as_ref().into())
    }

    fn opened(address: &Address, options: &ListenSocketOptions, reuse_port: bool) -> ListenSockets {
        open_address(address, options, reuse_port, 16, 2).unwrap_or_else(|error| panic!("{address}: {error}"))
    }

    fn failure(address: Address, reuse_port: bool) -> String {
        let error = open_address(&address, &ListenSocketOptions::default(), reuse_port, 16, 1).unwrap_err();
        ListenError { listener: "l".into(), address, error }.to_string()
    }

    #[test]
    fn each_worker_has_a_socket_of_its_own_or_all_share_one() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let own = opened(&ip(address), &ListenSocketOptions::default(), true);
            assert_eq!(own.sockets.len(), 2, "{address}");
            std::net::TcpStream::connect(own.address.ip().unwrap()).unwrap();
            assert_eq!(opened(&ip(address), &ListenSocketOptions::default(), false).sockets.len(), 1);
        }
    }

    #[test]
    fn options_reach_the_socket() {
        let keepalive = crate::config::snapshot::TcpKeepalive {
            probe_count: Some(3),
            idle: Some(Duration::from_secs(11)),
            interval: Some(Duration::from_secs(7)),
        };
        let mark = RawSocketOption {
            state: SocketState::Prebind,
            level: libc::SOL_SOCKET,
            name: libc::SO_RCVBUF,
            value: 30_000i32.to_ne_bytes().into(),
        };
        let options = ListenSocketOptions {
            freebind: true,
            fast_open_queue: Some(5),
            keepalive: Some(keepalive),
            raw: vec![mark],
            ..Default::default()
        };
        // RFC 5737 TEST-NET-3: no interface has it, which freebind allows.
        let sockets = opened(&ip("203.0.113.7:0"), &options, true).sockets;
        let socket = Socket::from(sockets.into_iter().next().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(11));
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(7));
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 3);
        // The kernel doubles it for its own bookkeeping (socket(7)).
        assert_eq!(socket.recv_buffer_size().unwrap(), 60_000);
    }

    #[test]
    fn ipv4_reaches_an_ipv6_socket_only_where_asked() {
        let check = |ipv4_compat: bool| {
            let options = ListenSocketOptions { ipv4_compat, ..Default::default() };
            let sockets = opened(&ip("[::]:0"), &options, true);
            let port = sockets.address.ip().unwrap().port();
            assert_eq!(std::net::TcpStream::connect(("127.0.0.1", port)).is_ok(), ipv4_compat);
        };
        check(true);
        check(false);
    }

    #[test]
    fn unix_sockets_have_paths_modes_and_abstract_names() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        let options = ListenSocketOptions { pipe_mode: Some(0o600), ..Default::default() };
        drop(opened(&pipe(&path), &options, true));
        // The file of the run before is replaced.
        let sockets = opened(&pipe(&path), &options, true);
        assert_eq!(sockets.sockets.len(), 1);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();

        let name = format!("torus-test-{}", std::process::id());
        let _sockets = opened(&pipe(format!("@{name}")), &options, true);
        use std::os::linux::net::SocketAddrExt as _;
        UnixStream::connect_addr(&UnixAddress::from_abstract_name(&name).unwrap()).unwrap();
    }

    #[test]
    fn errors_name_the_cure() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let holder = std::net::TcpListener::bind(taken).unwrap();
        let expect = format!(
            "listener `l`: cannot listen on {taken}: Address already in use (os error 98); \
             see which process has the port: ss -ltnp 'sport = :{}'",
            taken.port()
        );
        assert_eq!(failure(Address::Ip(taken), true), expect);
        drop(holder);
        assert_eq!(
            failure(ip("203.0.113.7:8080"), true),
            "listener `l`: cannot listen on 203.0.113.7:8080: Cannot assign requested address (os error 99); \
             no interface has 203.0.113.7: see `ip address`, or set `freebind: true` to listen all the same"
        );
        assert!(failure(pipe("/nowhere/at/all.sock"), true).ends_with("; create the folder: mkdir -p /nowhere/at"));
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "kept").unwrap();
        assert!(failure(pipe(&file), true).ends_with("exists and is no socket: remove it or choose another path"));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "kept");
    }

    #[test]
    fn low_ports_and_folders_need_permission() {
        let check = |address: Address, expect: &str| {
            let error = io::Error::from(ErrorKind::PermissionDenied);
            assert!(cure(&address, &error).contains(expect), "{address}");
        };
        check(ip("0.0.0.0:80"), "CAP_NET_BIND_SERVICE");
        check(ip("0.0.0.0:8080"), "CAP_NET_ADMIN");
        check(pipe("/srv/a.sock"), "make /srv writable");
    }
}
