//! A connected stream socket.

use std::future;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::address::PeerAddr;
use crate::buffer::Chunk;
use crate::clock::Nanos;
use crate::connect::Keepalive;
use crate::core::SocketSlot;
use crate::driver::Driver;
use crate::part::Part;
use crate::ring::Inner;
use crate::sys;

/// A connected stream socket of a ring.
///
/// Dropping it closes the connection at once and throws away what was not sent; [`Socket::close_gracefully`] does not.
pub struct Socket {
    ring: Rc<Inner>,
    index: u32,
}

impl Socket {
    pub(crate) fn new(ring: Rc<Inner>, index: u32) -> Socket {
        Socket { ring, index }
    }

    fn read_slot<T>(&self, read: impl FnOnce(&SocketSlot) -> T) -> Option<T> {
        self.ring.state.borrow().core.sockets.get(self.index).map(read)
    }

    /// Ready with the next received chunk, or `None` at the end of the peer's side.
    ///
    /// The first call begins to receive; from then on bytes are taken in whether or not somebody asks, up to
    /// `receive_queue_bytes_max`.
    pub fn poll_recv(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Option<Chunk>>> {
        self.ring.with(|core, driver| match core.take_input(self.index) {
            Some(taken) => Poll::Ready(taken),
            None => {
                if core.await_input(self.index, context.waker()) {
                    driver.arm_receive(core, self.index);
                }
                Poll::Pending
            }
        })
    }

    /// The next received chunk, or `None` at the end of the peer's side.
    pub async fn recv(&mut self) -> io::Result<Option<Chunk>> {
        future::poll_fn(|context| self.poll_recv(context)).await
    }

    /// Puts a chunk back: the next receive returns it first.
    pub fn unread(&mut self, chunk: Chunk) {
        self.ring.with(|core, _| core.unread(self.index, chunk));
    }

    /// Whether bytes, the end of the peer's side or an error wait to be received.
    pub fn has_received(&self) -> bool {
        self.read_slot(SocketSlot::has_received).unwrap_or(true)
    }

    /// Queues a part. All parts of a turn leave in one send at its end; parts of a broken connection are dropped.
    pub fn write(&mut self, part: impl Into<Part>) {
        let part = part.into();
        self.ring.with(|core, _| core.write(self.index, part));
    }

    /// Bytes written and not yet sent.
    pub fn queued_bytes(&self) -> usize {
        self.read_slot(SocketSlot::queued_bytes).unwrap_or(0)
    }

    /// Ready once at most so many bytes wait to be sent; an error when the peer is gone.
    pub fn poll_drained(&mut self, context: &mut Context<'_>, at_most_queued: usize) -> Poll<io::Result<()>> {
        self.ring.with(|core, _| match core.drained(self.index, at_most_queued, context.waker()) {
            Some(result) => Poll::Ready(result),
            None => Poll::Pending,
        })
    }

    /// Completes once at most so many bytes wait to be sent.
    pub async fn drained(&mut self, at_most_queued: usize) -> io::Result<()> {
        future::poll_fn(|context| self.poll_drained(context, at_most_queued)).await
    }

    /// When bytes last left, or when the queue last began to fill.
    pub fn last_write_progress(&self) -> Nanos {
        self.read_slot(SocketSlot::write_progress).unwrap_or(Nanos::ZERO)
    }

    /// Bytes received over the connection's life.
    pub fn bytes_received(&self) -> u64 {
        self.read_slot(SocketSlot::bytes_received).unwrap_or(0)
    }

    /// Bytes sent over the connection's life.
    pub fn bytes_sent(&self) -> u64 {
        self.read_slot(SocketSlot::bytes_sent).unwrap_or(0)
    }

    /// Ends our side once everything written has been sent; later writes are dropped.
    pub fn shutdown_write(&mut self) {
        self.ring.with(|core, _| core.shutdown_write(self.index));
    }

    /// Sends what was written, ends our side, throws away what the peer still sends until it ends its side or `linger`
    /// is over, and closes. A peer that takes nothing for `linger` is reset.
    ///
    /// Hearing the peer out keeps the last response from being lost to a reset (RFC 9112 §9.6).
    pub fn close_gracefully(self, linger: Duration) {
        let ring = Rc::clone(&self.ring);
        let index = self.forget();
        ring.close_gracefully(index, linger);
    }

    /// Closes at once with a reset.
    pub fn abort(self) {
        let fd = self.as_raw_fd();
        if fd >= 0 {
            sys::reset_on_close(fd);
        }
        self.ring.with(|core, driver| {
            if let Some(sim) = driver.simulated() {
                sim.reset(core, self.index);
            }
        });
    }

    /// Leaves an idle connection to the ring: no task waits for it, and when bytes, the end or an error come, `token`
    /// comes out of `Ring::next_parked`, once.
    pub fn park(&mut self, token: u64) {
        self.ring.with(|core, driver| {
            if core.park(self.index, token) {
                driver.arm_receive(core, self.index);
            }
        });
    }

    /// Takes a parked connection back. A token that is on its way out of `next_parked` still comes.
    pub fn unpark(&mut self) {
        self.ring.with(|core, _| core.unpark(self.index));
    }

    /// The peer's address.
    pub fn peer_addr(&self) -> io::Result<PeerAddr> {
        let simulated = self.ring.with(|_, driver| driver.simulated().map(|sim| sim.peer_addr(self.index)));
        if let Some(address) = simulated {
            return address.ok_or_else(|| io::ErrorKind::NotConnected.into());
        }
        sys::peer_address(self.as_raw_fd())?.to_peer()
    }

    /// Our address.
    pub fn local_addr(&self) -> io::Result<PeerAddr> {
        let simulated = self.ring.with(|_, driver| driver.simulated().map(|sim| sim.local_addr(self.index)));
        if let Some(address) = simulated {
            return address.ok_or_else(|| io::ErrorKind::NotConnected.into());
        }
        sys::local_address(self.as_raw_fd())?.to_peer()
    }

    /// Where the connection was going before the kernel redirected it to us; `None` where it was not (netfilter's
    /// `SO_ORIGINAL_DST`).
    pub fn original_destination(&self) -> Option<PeerAddr> {
        let fd = self.as_raw_fd();
        let Ok(PeerAddr::Ip(local)) = self.local_addr() else { return None };
        if fd < 0 {
            return None;
        }
        // An IPv6 socket with an IPv4 peer was redirected by the rules of IPv4.
        let is_ipv6 = local.ip().to_canonical().is_ipv6();
        sys::original_destination(fd, is_ipv6).ok()?.to_peer().ok()
    }

    /// Sets TCP_NODELAY; nothing on a socket that is not TCP.
    pub fn set_nodelay(&self, nodelay: bool) -> io::Result<()> {
        self.set_tcp_option(libc::TCP_NODELAY, i32::from(nodelay))
    }

    /// Sets TCP keepalive; nothing on a socket that is not TCP.
    pub fn set_keepalive(&self, keepalive: &Keepalive) -> io::Result<()> {
        let fd = self.as_raw_fd();
        if fd < 0 { Ok(()) } else { keepalive.apply(fd) }
    }

    /// Sets a raw socket option.
    pub fn set_option(&self, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
        let fd = self.as_raw_fd();
        if fd < 0 { Ok(()) } else { sys::set_option(fd, level, name, value) }
    }

    fn set_tcp_option(&self, name: i32, value: i32) -> io::Result<()> {
        let fd = self.as_raw_fd();
        if fd < 0 {
            return Ok(());
        }
        match sys::set_integer_option(fd, libc::IPPROTO_TCP, name, value) {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
            result => result,
        }
    }

    /// Gives the slot away without closing it.
    fn forget(self) -> u32 {
        let this = std::mem::ManuallyDrop::new(self);
        // SAFETY: `this` is never used again and never dropped, so the reference count is taken over exactly once.
        drop(unsafe { std::ptr::read(&raw const this.ring) });
        this.index
    }
}

impl AsRawFd for Socket {
    /// The descriptor; -1 on the simulated driver.
    fn as_raw_fd(&self) -> RawFd {
        self.read_slot(|slot| slot.fd).unwrap_or(-1)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.ring.with(|core, driver: &mut Driver| self.ring.close_socket(core, driver, self.index));
    }
}
