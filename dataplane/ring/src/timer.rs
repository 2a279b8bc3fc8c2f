//! Deadlines that tasks wait for.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use crate::clock::Nanos;
use crate::ring::Inner;
use crate::timer_heap::Action;

/// A deadline that can be moved. Moving it later is a store; an unset timer never expires.
pub struct Timer {
    ring: Rc<Inner>,
    timer: u32,
}

impl Timer {
    pub(crate) fn new(ring: Rc<Inner>) -> Timer {
        let timer = ring.timers.borrow_mut().insert(Action::None);
        Timer { ring, timer }
    }

    /// Moves the deadline.
    pub fn set(&mut self, deadline: Nanos) {
        self.ring.timers.borrow_mut().set(self.timer, deadline);
    }

    /// Takes the deadline away.
    pub fn clear(&mut self) {
        self.set(Nanos::MAX);
    }

    /// The deadline; `None` when there is none.
    pub fn deadline(&self) -> Option<Nanos> {
        Some(self.ring.timers.borrow().deadline(self.timer)).filter(|&deadline| deadline < Nanos::MAX)
    }

    /// Ready once the deadline has passed, and until it is moved or cleared.
    pub fn poll_expired(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let mut timers = self.ring.timers.borrow_mut();
        if timers.deadline(self.timer) <= self.ring.now() {
            return Poll::Ready(());
        }
        match timers.action_mut(self.timer) {
            Action::Wake(known) => known.clone_from(context.waker()),
            action => *action = Action::Wake(context.waker().clone()),
        }
        Poll::Pending
    }

    /// Completes once the deadline has passed.
    pub async fn expired(&mut self) {
        std::future::poll_fn(|context| self.poll_expired(context)).await;
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.ring.timers.borrow_mut().remove(self.timer);
    }
}

/// Completes after a wait.
pub struct Sleep {
    timer: Timer,
}

impl Sleep {
    pub(crate) fn new(timer: Timer) -> Sleep {
        Sleep { timer }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.timer.poll_expired(context)
    }
}
