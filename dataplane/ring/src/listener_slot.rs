//! Listening sockets, as every driver sees them.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd, RawFd};
use std::task::Waker;
use std::time::Duration;

use crate::core::{Core, Phase};

/// One listening socket.
pub(crate) struct ListenerSlot {
    /// A duplicate of the process's descriptor: closing it leaves the listening socket alone. None when simulated.
    fd: Option<OwnedFd>,
    pub(crate) accepting: Accepting,
    /// Completions that the kernel owes (io_uring).
    pub(crate) operations: u16,
    /// The handle is gone.
    pub(crate) orphaned: bool,
    /// No more connections are wanted.
    pub(crate) stopped: bool,
    /// Accepted sockets, or errors, in order; sockets stand as slot indices.
    pub(crate) accepted: VecDeque<Result<u32, i32>>,
    pub(crate) waker: Option<Waker>,
    /// Ends the pause after an error that would repeat at once.
    pub(crate) retry_timer: Option<u32>,
    /// epoll: whether the descriptor is registered.
    pub(crate) registered: bool,
}

impl ListenerSlot {
    pub(crate) fn fd(&self) -> RawFd {
        self.fd.as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }
}

/// How accepting stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Accepting {
    Idle,
    Armed,
    Stopping,
    /// Descriptors or memory ran out; the timer ends the pause.
    Paused,
}

/// Accepted connections that may wait in one listener before the ring leaves further ones to the kernel's queue.
pub(crate) const ACCEPTED_MAX: usize = 256;
/// How long a listener waits after an error that would repeat at once, such as too many open files.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

impl Core {
    pub(crate) fn insert_listener(&mut self, fd: Option<OwnedFd>) -> u32 {
        let slot = ListenerSlot {
            fd,
            accepting: Accepting::Idle,
            operations: 0,
            orphaned: false,
            stopped: false,
            accepted: VecDeque::new(),
            waker: None,
            retry_timer: None,
            registered: false,
        };
        self.listeners.insert(slot).index
    }

    /// Takes in an accepted descriptor or an error.
    pub(crate) fn on_accepted(&mut self, index: u32, result: Result<OwnedFd, i32>) {
        // A connection that raced with the cancel of an orphaned listener is closed: nobody is left to serve it.
        if self.listeners.get(index).is_some_and(|listener| !listener.orphaned) {
            let entry = result.map(|fd| self.insert_socket(fd.into_raw_fd(), Phase::Open));
            self.enqueue_accepted(index, entry);
        }
    }

    /// Queues an accepted socket or an error for whoever accepts.
    pub(crate) fn enqueue_accepted(&mut self, index: u32, entry: Result<u32, i32>) {
        let Some(listener) = self.listeners.get_mut(index) else { return };
        self.stats.accepted += u64::from(entry.is_ok());
        listener.accepted.push_back(entry);
        if let Some(waker) = listener.waker.take() {
            waker.wake();
        }
    }

    /// Frees a listener; every completion has been reaped. Connections that nobody took are closed.
    pub(crate) fn free_listener(&mut self, index: u32) {
        let Some(slot) = self.listeners.remove(index) else { return };
        debug_assert_eq!(slot.operations, 0, "a slot is freed after its last completion");
        slot.accepted.into_iter().flatten().for_each(|socket| self.free_socket(socket));
    }
}
