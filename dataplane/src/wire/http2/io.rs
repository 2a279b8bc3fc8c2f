//! A ring socket as the `h2` codec reads and writes it. tokio's I/O traits only: nothing of its runtime runs here.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use torus_ring::{Nanos, Ring};

use crate::transport::Transport;

use super::{FrameLimits, FrameMeter, Offence};

/// Bytes that may wait to be sent before the codec has to wait.
const QUEUED_BYTES_MAX: usize = 256 * 1024;

/// Bytes that the codec reads before its owner is asked.
const TURN_BYTES_MAX: usize = 64 * 1024;

/// The socket of an HTTP/2 connection, shared by the codec and by the task that drives it.
pub struct SharedSocket {
    ring: Ring,
    socket: RefCell<Option<Transport>>,
    meter: RefCell<FrameMeter>,
    offence: Cell<Option<Offence>>,
    /// Bytes that the codec took.
    read_bytes: Cell<u64>,
    /// How many more it may take before its owner has looked at what they brought.
    turn_bytes: Cell<usize>,
}

impl SharedSocket {
    /// Takes a socket over; `limits` bound what its peer may send without progress.
    pub fn new(ring: &Ring, socket: Transport, limits: FrameLimits, peer_is_client: bool) -> Rc<Self> {
        Rc::new(Self {
            ring: ring.clone(),
            socket: RefCell::new(Some(socket)),
            meter: RefCell::new(FrameMeter::new(limits, peer_is_client)),
            offence: Cell::new(None),
            read_bytes: Cell::new(0),
            turn_bytes: Cell::new(TURN_BYTES_MAX),
        })
    }

    /// The socket, for its graceful end; the codec sees a closed connection from now on.
    pub fn take(&self) -> Option<Transport> {
        self.socket.borrow_mut().take()
    }

    /// What the peer did too often or wrong, once.
    pub fn take_offence(&self) -> Option<Offence> {
        self.offence.take()
    }

    /// Since when a header block is unfinished.
    pub fn header_block_since(&self) -> Option<Nanos> {
        self.meter.borrow().header_block_since()
    }

    /// When bytes last left while some wait; `None` where none wait.
    pub fn stalled_since(&self) -> Option<Nanos> {
        let socket = self.socket.borrow();
        let socket = socket.as_ref()?;
        (socket.queued_bytes() > 0).then(|| socket.last_write_progress())
    }

    /// Bytes received and sent over the connection's life.
    pub fn byte_counts(&self) -> (u64, u64) {
        self.socket.borrow().as_ref().map_or((0, 0), |socket| (socket.bytes_received(), socket.bytes_sent()))
    }

    /// The owner has looked at everything that the codec had for it: reading goes on.
    pub fn begin_turn(&self) {
        self.turn_bytes.set(TURN_BYTES_MAX);
    }

    /// Bytes that the codec has read; more of them is a sign of life.
    pub fn read_bytes(&self) -> u64 {
        self.read_bytes.get()
    }
}

/// The half of a [`SharedSocket`] that the codec owns.
pub struct RingIo(pub Rc<SharedSocket>);

impl AsyncRead for RingIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let shared = &self.0;
        let mut socket = shared.socket.borrow_mut();
        let Some(socket) = socket.as_mut() else { return Poll::Ready(Ok(())) };
        // The task that drives the connection ends it; until then nothing more is read.
        if shared.offence.get().is_some() {
            return Poll::Pending;
        }
        // What the codec keeps for its owner grows with what it reads in one go: a hundred times its size at worst.
        if shared.turn_bytes.get() == 0 {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        loop {
            let Some(mut chunk) = ready!(socket.poll_recv(cx))? else { return Poll::Ready(Ok(())) };
            if chunk.is_empty() {
                continue;
            }
            let taken = chunk.split_to(out.remaining());
            if !chunk.is_empty() {
                socket.unread(chunk);
            }
            shared.turn_bytes.set(shared.turn_bytes.get().saturating_sub(taken.len()));
            shared.read_bytes.set(shared.read_bytes.get() + taken.len() as u64);
            if let Err(offence) = shared.meter.borrow_mut().on_received(&taken, shared.ring.now()) {
                shared.offence.set(Some(offence));
                return Poll::Pending;
            }
            out.put_slice(&taken);
            return Poll::Ready(Ok(()));
        }
    }
}

impl AsyncWrite for RingIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let shared = &self.0;
        let mut socket = shared.socket.borrow_mut();
        let Some(socket) = socket.as_mut() else { return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())) };
        ready!(socket.poll_drained(cx, QUEUED_BYTES_MAX))?;
        let mut buffer = shared.ring.buffer();
        for slice in slices {
            buffer.extend_from_slice(slice);
        }
        let count = buffer.len();
        if let Err(offence) = shared.meter.borrow_mut().on_sent(&buffer, shared.ring.now()) {
            shared.offence.set(Some(offence));
        }
        socket.write(buffer);
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// What was written leaves at the end of the ring's turn by itself.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The socket is ended by its owner, gracefully.
        Poll::Ready(Ok(()))
    }
}
