//! Connecting to a peer.

use std::future::Future;
use std::io;
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, RawFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::address::{PeerAddr, RawAddr};
use crate::core::Phase;
use crate::ring::Inner;
use crate::socket::Socket;
use crate::sys;

/// When a silent TCP peer is asked whether it is still there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keepalive {
    /// Unanswered probes until the connection is given up; the kernel's own number when `None`.
    pub probes: Option<u32>,
    /// Silence before the first probe, in whole seconds.
    pub idle: Option<Duration>,
    /// Time between probes, in whole seconds.
    pub interval: Option<Duration>,
}

impl Keepalive {
    /// Sets the options on a descriptor; a socket that is not TCP has none of them and is left alone.
    pub(crate) fn apply(&self, fd: RawFd) -> io::Result<()> {
        sys::set_integer_option(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1)?;
        let seconds = |time: Duration| time.as_secs().clamp(1, i32::MAX as u64) as i32;
        let options = [
            (libc::TCP_KEEPCNT, self.probes.map(|probes| probes.clamp(1, i32::MAX as u32) as i32)),
            (libc::TCP_KEEPIDLE, self.idle.map(seconds)),
            (libc::TCP_KEEPINTVL, self.interval.map(seconds)),
        ];
        for (name, value) in options.into_iter().filter_map(|(name, value)| value.map(|value| (name, value))) {
            match sys::set_integer_option(fd, libc::IPPROTO_TCP, name, value) {
                Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(()),
                result => result?,
            }
        }
        Ok(())
    }
}

/// A socket option as its number and bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketOption {
    /// The protocol level, such as SOL_SOCKET.
    pub level: i32,
    /// The option's number.
    pub name: i32,
    /// Its value as the kernel takes it.
    pub value: Vec<u8>,
}

impl SocketOption {
    /// Sets the option on a socket.
    pub fn apply(&self, socket: impl AsFd) -> io::Result<()> {
        sys::set_option(socket.as_fd().as_raw_fd(), self.level, self.name, &self.value)
    }
}

/// How a connection is made.
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    /// The local address to connect from.
    pub bind: Option<PeerAddr>,
    /// TCP keepalive; off when `None`.
    pub keepalive: Option<Keepalive>,
    /// TCP_NODELAY.
    pub nodelay: bool,
    /// Further options, set before the connect in this order.
    pub options: Vec<SocketOption>,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self { bind: None, keepalive: None, nodelay: true, options: Vec::new() }
    }
}

/// Starts a connect.
pub(crate) fn connect(ring: &Rc<Inner>, peer: &PeerAddr, options: &ConnectOptions) -> io::Result<Connect> {
    let index = ring.with(|core, driver| -> io::Result<u32> {
        if let Some(sim) = driver.simulated() {
            return Ok(sim.connect_simulated(core, peer));
        }
        let address = RawAddr::try_from(peer)?;
        let fd = sys::socket(address.family(), driver.nonblocking())?;
        let raw = fd.as_raw_fd();
        for option in &options.options {
            sys::set_option(raw, option.level, option.name, &option.value)?;
        }
        if let Some(keepalive) = &options.keepalive {
            keepalive.apply(raw)?;
        }
        if options.nodelay && matches!(peer, PeerAddr::Ip(_)) {
            sys::set_integer_option(raw, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)?;
        }
        if let Some(local) = &options.bind {
            if matches!(local, PeerAddr::Ip(address) if address.port() == 0) {
                // The port is chosen at connect, when the kernel knows the peer, so that more connections fit the
                // port range (ip(7)).
                let _ = sys::set_integer_option(raw, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1);
            }
            sys::bind(raw, &RawAddr::try_from(local)?)?;
        }
        let index = core.insert_socket(fd.into_raw_fd(), Phase::Connecting);
        if let Some(slot) = core.sockets.get_mut(index) {
            slot.address = Some(Box::new(address));
        }
        driver.connect(core, index);
        Ok(index)
    })?;
    Ok(Connect { socket: Some(Socket::new(Rc::clone(ring), index)), index, ring: Rc::clone(ring) })
}

/// A connect that runs. Dropping it drops the socket, which cancels the connect.
pub(crate) struct Connect {
    socket: Option<Socket>,
    index: u32,
    ring: Rc<Inner>,
}

impl Future for Connect {
    type Output = io::Result<Socket>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<Socket>> {
        let index = self.index;
        match self.ring.with(|core, _| core.connected(index, context.waker())) {
            None => Poll::Pending,
            Some(Ok(())) => match self.socket.take() {
                Some(socket) => Poll::Ready(Ok(socket)),
                None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
            },
            Some(Err(error)) => {
                self.socket = None;
                Poll::Ready(Err(error))
            }
        }
    }
}
