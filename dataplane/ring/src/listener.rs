//! A listening socket, as a ring accepts from it.

use std::future;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll};

use crate::listener_slot::Accepting;
use crate::ring::Inner;
use crate::socket::Socket;

/// Accepts connections of one listening socket.
///
/// The listening socket belongs to the process: dropping the listener stops accepting here and leaves the socket as it
/// is. A connection that the kernel had accepted and nobody took is closed; [`Listener::stop`] loses none.
pub struct Listener {
    ring: Rc<Inner>,
    index: u32,
}

impl Listener {
    pub(crate) fn new(ring: Rc<Inner>, index: u32) -> Listener {
        Listener { ring, index }
    }

    /// Ready with the next connection.
    ///
    /// An error such as EMFILE is reported once, and the listener then pauses a tenth of a second before it tries again:
    /// the caller may simply call again. After [`Listener::stop`] the error `NotConnected` ends the stream.
    pub fn poll_accept(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Socket>> {
        self.ring.with(|core, driver| {
            let Some(slot) = core.listeners.get_mut(self.index) else {
                return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
            };
            match slot.accepted.pop_front() {
                Some(Ok(socket)) => return Poll::Ready(Ok(Socket::new(Rc::clone(&self.ring), socket))),
                Some(Err(errno)) => return Poll::Ready(Err(io::Error::from_raw_os_error(errno))),
                None if slot.stopped && slot.accepting == Accepting::Idle => {
                    return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
                }
                None => {}
            }
            slot.waker = Some(context.waker().clone());
            if slot.accepting == Accepting::Idle {
                driver.arm_accept(core, self.index);
            }
            Poll::Pending
        })
    }

    /// The next connection.
    pub async fn accept(&mut self) -> io::Result<Socket> {
        future::poll_fn(|context| self.poll_accept(context)).await
    }

    /// Accepts no more. Connections that were accepted already still come out, then `NotConnected`.
    pub fn stop(&mut self) {
        self.ring.with(|core, driver| {
            let Some(slot) = core.listeners.get_mut(self.index) else { return };
            slot.stopped = true;
            driver.cancel_accept(core, self.index);
            if let Some(slot) = core.listeners.get_mut(self.index)
                && let Some(waker) = slot.waker.take()
            {
                waker.wake();
            }
        });
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.ring.close_listener(self.index);
    }
}
